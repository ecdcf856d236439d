//! A byte stream, seen by whoever serves on it: the one interface between a server (NBD, the monitor) and a transport.
//!
//! ```text
//!             opened            step, step, step …            closed          ready → listen again
//!   listening ───────▶ open ─────────────────────────▶ gone ─────────▶ closing ───────▶ listening
//! ```
//!
//! The transport owns connection *slots*, 0 .. n. For each connection it calls [`StreamHandler::opened`], then
//! [`StreamHandler::step`] whenever the connection moved (bytes came, space became free, the peer closed), when the
//! handler's wake function was called for the slot, or when the deadline that `step` returned has passed; and at the
//! end [`StreamHandler::closed`], once. A slot is reused only while [`StreamHandler::ready`] says so: a server whose
//! requests still run says no, and wakes the slot when the last one is back.
//!
//! Everything here runs on one core, the transport's; nothing blocks. A handler is lent the stream for the length of
//! `step` only and must not keep it. No call re-enters the handler.
#![forbid(unsafe_code)]

use core::fmt;
use core::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use crate::sync::Buffer;

/// Longest `header`, in bytes, that [`ByteStream::send_buffer`] takes along with a buffer.
pub const MAX_HEADER: usize = 64;

/// What [`ByteStream::receive`] found out about the peer's sending side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReceiveState {
    /// More bytes may come (or are there already).
    Open,
    /// The peer has finished sending and every byte it sent was consumed.
    Finished,
    /// The connection was reset, timed out or aborted: nothing can be sent or received any more.
    Reset,
}

/// Who is at the other end; only for people to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerAddress {
    /// A TCP peer.
    Internet(SocketAddr),
    /// A peer on the same machine (UNIX socket, UART, an in-memory stream), with a number to tell them apart.
    Local(u32),
}

impl PeerAddress {
    /// Nobody yet; all zeroes, so that tables of peers live in `.bss`.
    pub const NOBODY: Self =
        PeerAddress::Internet(SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0)));
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PeerAddress::Internet(address) => write!(f, "{address}"),
            PeerAddress::Local(number) => write!(f, "local#{number}"),
        }
    }
}

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The handler called `close` or `abort`.
    Local,
    /// The peer closed in order.
    Peer,
    /// The peer reset the connection.
    Reset,
    /// The peer neither sent nor acknowledged for too long.
    Timeout,
    /// The transport is being stopped.
    Stopped,
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CloseReason::Local => "closed",
            CloseReason::Peer => "closed by peer",
            CloseReason::Reset => "reset by peer",
            CloseReason::Timeout => "peer silent",
            CloseReason::Stopped => "stopped",
        })
    }
}

/// One connection, non-blocking in both directions.
///
/// What is sent leaves in the order of the `send` and `send_buffer` calls.
pub trait ByteStream {
    /// Lends the contiguous bytes that have arrived to `f`, which returns how many of them it consumed.
    ///
    /// `f` is called at most once, and only with a window that is not empty. The window can end before all that has
    /// arrived (a ring that wraps): whoever wants more calls again until nothing is lent or consumed. The state is the
    /// one after the call; [`ReceiveState::Finished`] only when nothing is left to lend.
    fn receive(&mut self, f: &mut dyn FnMut(&[u8]) -> usize) -> ReceiveState;

    /// Whether the peer is known to send no more, also while bytes that it sent before are still to be received.
    fn peer_finished(&self) -> bool;

    /// Copies as many of `bytes` as fit and returns their number; 0 while an earlier buffer waits for room.
    fn send(&mut self, bytes: &[u8]) -> usize;

    /// Queues `header` (at most [`MAX_HEADER`] bytes, copied; may be empty) and after it `buffer[start .. start + len]`,
    /// all or nothing. The stream drops the buffer when it needs it no longer, also on close or abort.
    ///
    /// # Errors
    /// Gives the buffer back, nothing queued, while the queue is full or after the connection has ended; the handler
    /// is stepped again when there is room. At least one buffer of any length is always taken by an idle open stream.
    fn send_buffer(
        &mut self,
        header: &[u8],
        buffer: Buffer,
        start: usize,
        len: usize,
    ) -> Result<(), Buffer>;

    /// Bytes that [`ByteStream::send`] would take now.
    fn send_space(&self) -> usize;

    /// Bytes accepted by `send` and `send_buffer` that the peer (TCP) or the kernel (a socket) has not taken yet.
    fn unsent(&self) -> usize;

    /// Ends our side in order, after everything queued; what still arrives is discarded. Idempotent.
    fn close(&mut self);

    /// Ends the connection at once (TCP reset); queued buffers are dropped. Idempotent.
    fn abort(&mut self);

    /// Who is at the other end.
    fn peer(&self) -> PeerAddress;
}

/// A server: one object for all slots of one transport, called on the transport's core only.
pub trait StreamHandler: Sync {
    /// A connection came in on `slot`. It is stepped next.
    fn opened(&'static self, slot: usize, peer: PeerAddress, now_ns: u64);

    /// Does what can be done now without waiting, in bounded time. Returns when to step again at the latest (ns since
    /// boot; a time that has passed means at once, after the other slots had their turn), or `None` if only an event
    /// or a wake can help. After it called `close` or `abort`, it is not stepped again before [`StreamHandler::closed`].
    fn step(&'static self, slot: usize, stream: &mut dyn ByteStream, now_ns: u64) -> Option<u64>;

    /// The connection on `slot` is over. Called once for each `opened`, whoever ended it, also when `step` closed it;
    /// after an orderly close it may come before the peer has acknowledged everything.
    fn closed(&'static self, slot: usize, reason: CloseReason, now_ns: u64);

    /// Whether `slot` can take a new connection. Asked after `closed` and at each wake of the slot until it says yes.
    fn ready(&'static self, slot: usize) -> bool;
}

/// How a handler asks, from any core, to be stepped again on a slot.
pub type Wake = &'static (dyn Fn(usize) + Sync);

//! One place for a connection: its TCP socket, the buffers that wait for room in it, and where it stands.
//!
//! ```text
//!            SYN             ACK           handler closes, peer resets, time-out
//! Listening ────▶ Opening ────────▶ Open ──────────────────────────────────────▶ Closing
//!     ▲ ▲            │ 10 s, RST                                                    │ socket done, or 30 s
//!     │ └────────────┘                                                              ▼
//!     └─────────────────────────────── handler is ready ◀──────────────────────── Waiting
//! ```
//!
//! `Off` is a slot without a listening port. Only the stack (`super::stack`) uses slots, on its core.
#![forbid(unsafe_code)]

mod lent;

use core::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use smoltcp::iface::{SocketHandle, SocketSet, SocketStorage};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Duration;

use super::frame::Segment;
use super::stream::{ByteStream, PeerAddress};
use crate::config;
pub use lent::Ended;
use lent::{SlotStream, Tail};

/// The memory of one slot.
pub struct SlotMemory {
    /// Bytes that arrived and were not taken.
    pub receive: &'static mut [u8],
    /// Bytes sent and not acknowledged.
    pub transmit: &'static mut [u8],
    /// Room for the socket's record.
    pub storage: &'static mut [SocketStorage<'static>; 1],
}

/// Where a slot stands; see the picture above.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// No port listens here.
    #[default]
    Off,
    /// Waiting for a connection.
    Listening,
    /// Half open.
    Opening,
    /// The handler has it.
    Open,
    /// The handler is done with it; what it queued is still being sent.
    Closing,
    /// Over; the handler is not ready for another.
    Waiting,
}

/// What tells connections apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// The peer.
    pub remote: Ipv4Addr,
    /// Its port.
    pub remote_port: u16,
    /// Our port.
    pub local_port: u16,
}

impl Key {
    /// Of a received segment.
    pub fn of(segment: &Segment) -> Self {
        Self {
            remote: segment.remote,
            remote_port: segment.remote_port,
            local_port: segment.local_port,
        }
    }

    /// The peer, for people.
    pub fn peer(&self) -> PeerAddress {
        PeerAddress::Internet(SocketAddr::V4(SocketAddrV4::new(
            self.remote,
            self.remote_port,
        )))
    }
}

/// A connection's place.
pub struct Slot {
    bound: Option<(SocketSet<'static>, SocketHandle)>,
    tail: Tail,
    /// Where it stands.
    pub phase: Phase,
    /// The port (index in the stack's table) that it listens for.
    pub port: u8,
    /// The connection, from the SYN on.
    pub key: Option<Key>,
    /// Sequence number of the connection's first byte.
    first_sequence: u32,
    /// Our window was announced with its scale; until then see [`Slot::plausible`].
    settled: bool,
    /// The socket gave up by itself.
    pub timed_out: bool,
    /// When the handler wants to be stepped (ns); `u64::MAX`: no wish. The other two alike.
    pub handler_deadline: u64,
    /// When smoltcp wants to be polled.
    pub socket_deadline: u64,
    /// When this phase ends at the latest.
    pub phase_deadline: u64,
}

impl Slot {
    /// A slot without memory, in phase `Off`, all zeros; before it is used see [`Slot::forget`].
    pub const EMPTY: Self = Self {
        bound: None,
        tail: Tail::EMPTY,
        phase: Phase::Off,
        port: 0,
        key: None,
        first_sequence: 0,
        settled: false,
        timed_out: false,
        handler_deadline: 0,
        socket_deadline: 0,
        phase_deadline: 0,
    };

    /// Gives the slot its memory and its port.
    pub fn bind(&mut self, memory: SlotMemory, port: u8) {
        let mut socket = Socket::new(
            SocketBuffer::new(memory.receive),
            SocketBuffer::new(memory.transmit),
        );
        socket.set_nagle_enabled(false);
        // A client that sends header and payload apart under Nagle's algorithm waits for this acknowledgement: one
        // that is delayed by a millisecond costs a millisecond a write.
        socket.set_ack_delay(None);
        socket.set_keep_alive(Some(Duration::from_secs(config::NET_KEEP_ALIVE_SECONDS)));
        socket.set_timeout(Some(Duration::from_secs(config::NET_SILENCE_SECONDS)));
        let mut set = SocketSet::new(&mut memory.storage[..]);
        let handle = set.add(socket);
        self.bound = Some((set, handle));
        self.port = port;
        self.phase = Phase::Waiting;
    }

    /// The socket set, for smoltcp.
    pub fn set(&mut self) -> Option<&mut SocketSet<'static>> {
        self.bound.as_mut().map(|(set, _)| set)
    }

    fn socket(&mut self) -> Option<&mut Socket<'static>> {
        self.bound
            .as_mut()
            .map(|(set, handle)| set.get_mut(*handle))
    }

    /// The socket's TCP state; `Closed` without memory.
    pub fn state(&mut self) -> State {
        self.socket().map_or(State::Closed, |socket| socket.state())
    }

    /// True when nothing of the old connection is left to be sent, a reset included.
    pub fn is_done(&mut self) -> bool {
        self.tail.queue.is_empty()
            && self.socket().is_none_or(|socket| match socket.state() {
                State::Closed => socket.remote_endpoint().is_none(),
                State::Listen | State::TimeWait => true,
                _ => false,
            })
    }

    /// Forgets the old connection and listens. False: that cannot be (no memory, port 0).
    pub fn listen(&mut self, address: SocketAddrV4) -> bool {
        self.tail.clear();
        self.forget();
        let Some(socket) = self.socket() else {
            return false;
        };
        // What is still open here was given up: its time has passed.
        socket.abort();
        let any = address.ip().is_unspecified();
        let endpoint = smoltcp::wire::IpListenEndpoint {
            addr: (!any).then_some((*address.ip()).into()),
            port: address.port(),
        };
        let listening = socket.listen(endpoint).is_ok();
        self.phase = if listening {
            Phase::Listening
        } else {
            Phase::Off
        };
        listening
    }

    /// Clears what belongs to one connection.
    pub fn forget(&mut self) {
        self.key = None;
        self.settled = false;
        self.timed_out = false;
        self.handler_deadline = u64::MAX;
        self.socket_deadline = u64::MAX;
        self.phase_deadline = u64::MAX;
    }

    /// Notes the connection that a SYN began.
    pub fn begin(&mut self, segment: &Segment, deadline: u64) {
        self.key = Some(Key::of(segment));
        self.first_sequence = segment.sequence.wrapping_add(1);
        self.settled = false;
        self.phase = Phase::Opening;
        self.phase_deadline = deadline;
    }

    /// False for a segment that reaches beyond the receive buffer before our window was announced with its scale.
    ///
    /// smoltcp reads the unscaled window of its own SYN as a scaled one until it sends the next segment, so it would take
    /// bytes that do not fit and panic. No honest peer sends them.
    pub fn plausible(&mut self, segment: &Segment) -> bool {
        let offset = segment.sequence.wrapping_sub(self.first_sequence);
        // A keep-alive carries the byte before the first one.
        let before = offset == u32::MAX && segment.length <= 1;
        let end = offset as usize + segment.length;
        self.settled
            || segment.length == 0
            || before
            || self
                .socket()
                .is_some_and(|socket| end <= socket.recv_capacity())
    }

    /// Something was sent: if it came after our SYN, the window's scale is known now.
    pub fn note_sent(&mut self, state_before: State) {
        self.settled |= !matches!(state_before, State::Listen | State::SynReceived);
    }

    /// Moves waiting buffers into the socket as far as there is room.
    pub fn pump(&mut self) {
        if let Some((set, handle)) = &mut self.bound {
            self.tail.pump(set.get_mut(*handle));
        }
    }

    /// Throws away what arrived and, once everything queued is in the socket, ends our side.
    pub fn wind_up(&mut self) {
        let Some((set, handle)) = &mut self.bound else {
            return;
        };
        let socket: &mut Socket = set.get_mut(*handle);
        while socket
            .recv(|bytes| (bytes.len(), bytes.len()))
            .is_ok_and(|taken| taken > 0)
        {}
        self.tail.pump(socket);
        if socket.state() == State::Closed {
            self.tail.clear();
        }
        if self.tail.queue.is_empty() {
            socket.close();
        }
    }

    /// Resets the connection.
    pub fn abort(&mut self) {
        self.tail.clear();
        if let Some(socket) = self.socket() {
            socket.abort();
        }
    }

    /// Lends the slot as a stream to `f`; returns what it returned, how it ended, and whether the peer had finished.
    pub fn lend<R>(
        &mut self,
        f: impl FnOnce(&mut dyn ByteStream) -> R,
    ) -> Option<(R, Ended, bool)> {
        let peer = self.key?.peer();
        let (set, handle) = self.bound.as_mut()?;
        let mut stream = SlotStream {
            socket: set.get_mut(*handle),
            tail: &mut self.tail,
            peer,
            ended: Ended::No,
        };
        let result = f(&mut stream);
        let (ended, finished) = (stream.ended, !stream.socket.may_recv());
        Some((result, ended, finished))
    }
}

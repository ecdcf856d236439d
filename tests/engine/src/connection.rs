//! One connection on a real socket: a byte stream with bounded queues.

use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use ironthread::net::stream::{ByteStream, CloseReason, MAX_HEADER, PeerAddress, ReceiveState};
use ironthread::sync::Buffer;

/// Bytes received ahead of the handler.
const RECEIVE_BYTES: usize = 256 * 1024;
/// Small replies queued.
const SEND_BYTES: usize = 64 * 1024;
/// Owned buffers queued.
const SEND_BUFFERS: usize = 64;
/// A connected socket.
pub(crate) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    pub fn fd(&self) -> RawFd {
        match self {
            Socket::Tcp(socket) => socket.as_raw_fd(),
            Socket::Unix(socket) => socket.as_raw_fd(),
        }
    }

    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Socket::Tcp(socket) => socket.read(bytes),
            Socket::Unix(socket) => socket.read(bytes),
        }
    }

    fn write(&mut self, slices: &[IoSlice<'_>]) -> std::io::Result<usize> {
        match self {
            Socket::Tcp(socket) => socket.write_vectored(slices),
            Socket::Unix(socket) => socket.write_vectored(slices),
        }
    }

    fn shutdown(&self) {
        let _ = match self {
            Socket::Tcp(socket) => socket.shutdown(Shutdown::Write),
            Socket::Unix(socket) => socket.shutdown(Shutdown::Write),
        };
    }
}

enum Outgoing {
    Bytes(VecDeque<u8>),
    Owned {
        header: Vec<u8>,
        buffer: Buffer,
        start: usize,
        len: usize,
    },
}

/// One connection.
pub(crate) struct Connection {
    socket: Socket,
    peer: PeerAddress,
    received: Vec<u8>,
    consumed: usize,
    state: ReceiveState,
    outgoing: VecDeque<Outgoing>,
    /// Bytes of the first outgoing item that the kernel has.
    head: usize,
    bytes: usize,
    buffers: usize,
    pub closing: bool,
    aborted: bool,
    pub deadline: Option<u64>,
}

impl Connection {
    /// A new one, on a non-blocking socket.
    pub fn new(socket: Socket, peer: PeerAddress) -> Self {
        Self {
            socket,
            peer,
            received: Vec::with_capacity(RECEIVE_BYTES),
            consumed: 0,
            state: ReceiveState::Open,
            outgoing: VecDeque::new(),
            head: 0,
            bytes: 0,
            buffers: 0,
            closing: false,
            aborted: false,
            deadline: None,
        }
    }

    /// Drops what has arrived.
    pub fn discard(&mut self) {
        self.consumed = self.received.len();
    }

    /// Ends the socket as the handler asked for: in order, or with a reset.
    pub fn finish(&self) {
        if self.aborted {
            let linger = libc::linger {
                l_onoff: 1,
                l_linger: 0,
            };
            let size = size_of::<libc::linger>() as libc::socklen_t;
            let value = (&raw const linger).cast();
            // SAFETY: `value` points to a linger structure of the size that is passed; the descriptor is open.
            unsafe {
                libc::setsockopt(
                    self.socket.fd(),
                    libc::SOL_SOCKET,
                    libc::SO_LINGER,
                    value,
                    size,
                )
            };
        } else {
            self.socket.shutdown();
        }
    }

    /// Reads what the kernel has, while there is room. Returns whether anything came.
    pub fn pump_in(&mut self) -> bool {
        if self.consumed > 0 {
            self.received.drain(..self.consumed);
            self.consumed = 0;
        }
        let mut moved = false;
        while self.state == ReceiveState::Open && self.received.len() < RECEIVE_BYTES {
            let filled = self.received.len();
            self.received.resize(RECEIVE_BYTES, 0);
            let outcome = self.socket.read(&mut self.received[filled..]);
            self.received
                .truncate(filled + *outcome.as_ref().unwrap_or(&0));
            match outcome {
                Ok(0) => self.state = ReceiveState::Finished,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return moved,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => self.state = ReceiveState::Reset,
            }
            moved = true;
        }
        moved
    }

    /// Writes what is queued, while the kernel takes it. Returns whether it took anything.
    pub fn pump_out(&mut self) -> bool {
        let mut moved = false;
        while !self.outgoing.is_empty() && self.state != ReceiveState::Reset {
            let mut slices = Vec::with_capacity(64);
            let mut skip = self.head;
            for item in self.outgoing.iter().take(20) {
                let parts: [&[u8]; 2] = match item {
                    Outgoing::Bytes(bytes) => {
                        let (a, b) = bytes.as_slices();
                        [a, b]
                    }
                    Outgoing::Owned {
                        header,
                        buffer,
                        start,
                        len,
                    } => [header, &buffer.as_slice()[*start..*start + *len]],
                };
                for part in parts {
                    let cut = skip.min(part.len());
                    skip -= cut;
                    if cut < part.len() {
                        slices.push(IoSlice::new(&part[cut..]));
                    }
                }
            }
            match self.socket.write(&slices) {
                Ok(taken) => {
                    self.taken(taken);
                    moved = true;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.state = ReceiveState::Reset,
            }
        }
        moved
    }

    fn taken(&mut self, taken: usize) {
        self.head += taken;
        while let Some(item) = self.outgoing.front() {
            let length = match item {
                Outgoing::Bytes(bytes) => bytes.len(),
                Outgoing::Owned { header, len, .. } => header.len() + len,
            };
            if self.head < length {
                return;
            }
            self.head -= length;
            match self.outgoing.pop_front() {
                Some(Outgoing::Bytes(bytes)) => self.bytes -= bytes.len(),
                Some(Outgoing::Owned { .. }) => self.buffers -= 1,
                None => {}
            }
        }
    }

    /// Why the connection is over, if it is.
    pub fn over(&self) -> Option<CloseReason> {
        if self.aborted {
            return Some(CloseReason::Local);
        }
        match self.state {
            ReceiveState::Reset => Some(CloseReason::Reset),
            _ if self.closing && self.outgoing.is_empty() => Some(CloseReason::Local),
            _ => None,
        }
    }
}

impl ByteStream for Connection {
    fn receive(&mut self, f: &mut dyn FnMut(&[u8]) -> usize) -> ReceiveState {
        if self.consumed < self.received.len() && self.state != ReceiveState::Reset {
            let taken = f(&self.received[self.consumed..]);
            self.consumed += taken;
        }
        match self.state {
            ReceiveState::Finished if self.consumed < self.received.len() => ReceiveState::Open,
            state => state,
        }
    }

    fn peer_finished(&self) -> bool {
        self.state != ReceiveState::Open
    }

    fn send(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.send_space());
        if taken > 0 {
            match self.outgoing.back_mut() {
                Some(Outgoing::Bytes(queue)) => queue.extend(&bytes[..taken]),
                _ => self
                    .outgoing
                    .push_back(Outgoing::Bytes(bytes[..taken].iter().copied().collect())),
            }
            self.bytes += taken;
        }
        taken
    }

    fn send_buffer(
        &mut self,
        header: &[u8],
        buffer: Buffer,
        start: usize,
        len: usize,
    ) -> Result<(), Buffer> {
        assert!(header.len() <= MAX_HEADER && start + len <= buffer.len());
        if self.closing
            || self.aborted
            || self.state == ReceiveState::Reset
            || self.buffers >= SEND_BUFFERS
        {
            return Err(buffer);
        }
        self.buffers += 1;
        self.outgoing.push_back(Outgoing::Owned {
            header: header.to_vec(),
            buffer,
            start,
            len,
        });
        Ok(())
    }

    fn send_space(&self) -> usize {
        if self.closing || self.aborted || self.state == ReceiveState::Reset {
            return 0;
        }
        SEND_BYTES.saturating_sub(self.bytes)
    }

    fn unsent(&self) -> usize {
        let queued: usize = self
            .outgoing
            .iter()
            .map(|item| match item {
                Outgoing::Bytes(bytes) => bytes.len(),
                Outgoing::Owned { header, len, .. } => header.len() + len,
            })
            .sum();
        queued - self.head
    }

    fn close(&mut self) {
        self.closing = true;
    }

    fn abort(&mut self) {
        self.aborted = true;
        self.outgoing.clear();
        self.head = 0;
    }

    fn peer(&self) -> PeerAddress {
        self.peer
    }
}

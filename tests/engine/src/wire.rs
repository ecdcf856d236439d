//! A stream in memory, both of its ends.

use std::collections::VecDeque;

use ironthread::net::stream::{ByteStream, MAX_HEADER, PeerAddress, ReceiveState};
use ironthread::sync::Buffer;

/// Room for what was sent and not yet taken by the peer.
const RING: usize = 16 * 1024;
/// Owned buffers that may wait for room in the ring.
const BUFFERS: usize = 4;
struct Waiting {
    header: Vec<u8>,
    buffer: Buffer,
    start: usize,
    len: usize,
}

/// One connection, both ends.
pub struct Wire {
    /// Sent by the peer, not yet taken by the server.
    pub to_server: VecDeque<u8>,
    /// Longest piece that the server is lent at once.
    pub lend: usize,
    /// The peer sends no more.
    pub peer_finished: bool,
    /// The connection was reset.
    pub reset: bool,
    ring: VecDeque<u8>,
    waiting: VecDeque<Waiting>,
    /// Bytes that the peer still accepts.
    pub window: usize,
    /// What the peer has, for it to read.
    pub delivered: Vec<u8>,
    /// The server closed in order.
    pub closed: bool,
    /// The server gave up.
    pub aborted: bool,
    /// Something changed since the last step.
    pub moved: bool,
    /// When the server wants to be stepped again.
    pub deadline: Option<u64>,
    /// The server was told that the connection is over.
    pub over: bool,
}

impl Wire {
    /// Drops what was queued and not yet taken.
    pub fn drop_queue(&mut self) {
        self.waiting.clear();
        self.ring.clear();
    }

    /// An open connection on which nothing has moved yet.
    pub fn new() -> Self {
        Self {
            to_server: VecDeque::new(),
            lend: usize::MAX,
            peer_finished: false,
            reset: false,
            ring: VecDeque::new(),
            waiting: VecDeque::new(),
            window: usize::MAX,
            delivered: Vec::new(),
            closed: false,
            aborted: false,
            moved: true,
            deadline: None,
            over: false,
        }
    }

    /// Moves bytes towards the peer. Returns whether any moved.
    pub fn pump(&mut self) -> bool {
        let mut any = false;
        loop {
            let mut now = false;
            if let Some(first) = self.waiting.front_mut() {
                let room = RING - self.ring.len();
                let head = first.header.len().min(room);
                self.ring.extend(first.header.drain(..head));
                let body = first.len.min(room - head);
                self.ring
                    .extend(&first.buffer.as_slice()[first.start..first.start + body]);
                first.start += body;
                first.len -= body;
                now |= head + body > 0;
                if first.len == 0 && first.header.is_empty() {
                    self.waiting.pop_front();
                    now = true;
                }
            }
            let part = self.ring.len().min(self.window);
            if part > 0 {
                self.delivered.extend(self.ring.drain(..part));
                if self.window != usize::MAX {
                    self.window -= part;
                }
                now = true;
            }
            if !now {
                return any;
            }
            any = true;
        }
    }
}

impl Default for Wire {
    fn default() -> Self {
        Self::new()
    }
}

impl ByteStream for Wire {
    fn receive(&mut self, f: &mut dyn FnMut(&[u8]) -> usize) -> ReceiveState {
        if self.reset || self.aborted {
            return ReceiveState::Reset;
        }
        let (first, _) = self.to_server.as_slices();
        if !first.is_empty() {
            let lent = &first[..first.len().min(self.lend)];
            let taken = f(lent);
            assert!(taken <= lent.len(), "more consumed than lent");
            self.to_server.drain(..taken);
        }
        if self.to_server.is_empty() && self.peer_finished {
            ReceiveState::Finished
        } else {
            ReceiveState::Open
        }
    }

    fn peer_finished(&self) -> bool {
        self.peer_finished || self.reset
    }

    fn send(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.send_space());
        self.ring.extend(&bytes[..taken]);
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
        if self.closed || self.aborted || self.reset || self.waiting.len() == BUFFERS {
            return Err(buffer);
        }
        self.waiting.push_back(Waiting {
            header: header.to_vec(),
            buffer,
            start,
            len,
        });
        Ok(())
    }

    fn send_space(&self) -> usize {
        let no_room = self.closed || self.aborted || self.reset || !self.waiting.is_empty();
        if no_room { 0 } else { RING - self.ring.len() }
    }

    fn unsent(&self) -> usize {
        self.ring.len()
            + self
                .waiting
                .iter()
                .map(|w| w.header.len() + w.len)
                .sum::<usize>()
    }

    fn close(&mut self) {
        self.closed = true;
    }

    fn abort(&mut self) {
        self.aborted = true;
        self.waiting.clear();
        self.ring.clear();
    }

    fn peer(&self) -> PeerAddress {
        PeerAddress::Local(0)
    }
}

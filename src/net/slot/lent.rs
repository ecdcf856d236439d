//! What a server is lent of a slot: the stream over its socket, and the buffers that wait for room there.
#![forbid(unsafe_code)]

use heapless::Deque;
use smoltcp::socket::tcp::{RecvError, Socket, State};

use super::super::stream::{ByteStream, MAX_HEADER, PeerAddress, ReceiveState};
use crate::config;
use crate::sync::Buffer;

/// How the handler ended its side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ended {
    /// It did not.
    #[default]
    No,
    /// In order, after what is queued.
    Close,
    /// At once.
    Abort,
}

/// A buffer on its way into the socket.
pub(super) struct Queued {
    header: [u8; MAX_HEADER],
    header_len: usize,
    buffer: Buffer,
    start: usize,
    len: usize,
    /// Bytes of header and buffer together that the socket has taken.
    done: usize,
}

/// What was sent and did not fit into the socket yet.
pub(super) struct Tail {
    pub(super) queue: Deque<Queued, { config::NET_SEND_QUEUE }>,
    bytes: usize,
}

impl Tail {
    pub(super) const EMPTY: Self = Self {
        queue: Deque::new(),
        bytes: 0,
    };

    /// Moves what fits into the socket; drops each buffer when its last byte is copied.
    pub(super) fn pump(&mut self, socket: &mut Socket<'static>) {
        while let Some(front) = self.queue.front_mut() {
            while front.done < front.header_len + front.len {
                let rest = match front.done.checked_sub(front.header_len) {
                    None => &front.header[front.done..front.header_len],
                    Some(done) => {
                        &front.buffer.as_slice()[front.start + done..front.start + front.len]
                    }
                };
                let taken = socket.send_slice(rest).unwrap_or(0);
                if taken == 0 {
                    return;
                }
                front.done += taken;
                self.bytes -= taken;
            }
            self.queue.pop_front();
        }
    }

    pub(super) fn clear(&mut self) {
        self.queue.clear();
        self.bytes = 0;
    }
}

/// A slot as a [`ByteStream`].
pub(super) struct SlotStream<'a> {
    pub(super) socket: &'a mut Socket<'static>,
    pub(super) tail: &'a mut Tail,
    pub(super) peer: PeerAddress,
    pub(super) ended: Ended,
}

impl SlotStream<'_> {
    fn may_send(&self) -> bool {
        self.ended == Ended::No && self.socket.may_send()
    }
}

impl ByteStream for SlotStream<'_> {
    fn receive(&mut self, f: &mut dyn FnMut(&[u8]) -> usize) -> ReceiveState {
        if self.ended != Ended::No {
            return ReceiveState::Reset;
        }
        let lent = self.socket.recv(|window| {
            let taken = if window.is_empty() {
                0
            } else {
                f(window).min(window.len())
            };
            (taken, ())
        });
        if lent.is_ok() && self.socket.may_recv() {
            return ReceiveState::Open;
        }
        match self.socket.recv(|_| (0, ())) {
            Ok(()) => ReceiveState::Open,
            Err(RecvError::Finished) => ReceiveState::Finished,
            Err(RecvError::InvalidState) => ReceiveState::Reset,
        }
    }

    fn peer_finished(&self) -> bool {
        matches!(
            self.socket.state(),
            State::CloseWait | State::LastAck | State::Closing | State::TimeWait | State::Closed
        )
    }

    fn send(&mut self, bytes: &[u8]) -> usize {
        if self.tail.queue.is_empty() && self.may_send() {
            self.socket.send_slice(bytes).unwrap_or(0)
        } else {
            0
        }
    }

    fn send_buffer(
        &mut self,
        header: &[u8],
        buffer: Buffer,
        start: usize,
        len: usize,
    ) -> Result<(), Buffer> {
        let fits = start
            .checked_add(len)
            .is_some_and(|end| end <= buffer.len())
            && header.len() <= MAX_HEADER;
        debug_assert!(
            fits,
            "send_buffer: a range outside the buffer, or a long header"
        );
        if !fits || !self.may_send() {
            return Err(buffer);
        }
        let all = header.len() + len;
        if self.tail.queue.is_empty()
            && all <= self.socket.send_capacity() - self.socket.send_queue()
        {
            // Room for both: no detour. `send_slice` takes all, as there is room and the state allows it.
            let _ = self.socket.send_slice(header);
            let _ = self
                .socket
                .send_slice(&buffer.as_slice()[start..start + len]);
            return Ok(());
        }
        let mut queued = Queued {
            header: [0; MAX_HEADER],
            header_len: header.len(),
            buffer,
            start,
            len,
            done: 0,
        };
        queued.header[..header.len()].copy_from_slice(header);
        self.tail
            .queue
            .push_back(queued)
            .map_err(|queued| queued.buffer)?;
        self.tail.bytes += all;
        self.tail.pump(self.socket);
        Ok(())
    }

    fn send_space(&self) -> usize {
        if self.tail.queue.is_empty() && self.may_send() {
            self.socket.send_capacity() - self.socket.send_queue()
        } else {
            0
        }
    }

    fn unsent(&self) -> usize {
        self.socket.send_queue() + self.tail.bytes
    }

    fn close(&mut self) {
        if self.ended == Ended::No {
            self.ended = Ended::Close;
        }
    }

    fn abort(&mut self) {
        self.ended = Ended::Abort;
    }

    fn peer(&self) -> PeerAddress {
        self.peer
    }
}

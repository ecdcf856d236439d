//! The way out: replies without data, pieces of reads, and which of them may go next.
//!
//! | reply | when |
//! |---|---|
//! | no data (or an error) | as soon as the request is done and the stream has room |
//! | simple read up to [`SESSION_CHUNK`] | when its one piece is there: an error is a proper error reply |
//! | simple read beyond | piece after piece in order, the header with the first; nothing else is sent meanwhile; a late error ends the connection |
//! | structured read | each piece a chunk, in any order; a late error is a chunk with its offset, and the last |
//!
//! Data leave as owned buffers, which the stream drops when they are with the peer; their pages are then free again.
//!
//! [`SESSION_CHUNK`]: crate::config::SESSION_CHUNK
#![forbid(unsafe_code)]

use heapless::Vec;

use super::handshake::CONTEXT_ID;
use super::session::{Piece, Session};
use super::wire::{self, ChunkHeader, NbdError, SimpleReply, chunk, command, command_flag};
use crate::net::stream::ByteStream;

/// Extents in one block status reply; the client asks again for the rest.
const EXTENTS: usize = 32;

/// The longest reply without data: a block status chunk.
const REPLY_BYTES: usize = ChunkHeader::LEN + 4 + EXTENTS * 8;

/// Most replies sent in one step before the other sessions have their turn.
const STEP_REPLIES: usize = 128;

/// What to do with a piece.
enum Verdict {
    /// Send it, with this before it.
    Send(Vec<u8, { ChunkHeader::LEN + 8 }>),
    /// Its request has failed and says so instead.
    Drop,
    /// Others go first.
    Later,
}

/// Sends all of a reply, or, without room for all, nothing.
fn put(stream: &mut dyn ByteStream, reply: &[u8]) -> bool {
    if stream.send_space() < reply.len() {
        return false;
    }
    let taken = stream.send(reply);
    debug_assert_eq!(
        taken,
        reply.len(),
        "the stream took less than the room that it had"
    );
    true
}

impl Session {
    /// Sends what is ready, as far as the stream has room.
    pub(super) fn send(&mut self, stream: &mut dyn ByteStream) {
        if self.owner.is_none() && !self.send_finished(stream) {
            // Pieces would take the room that these wait for.
            return;
        }
        self.send_pieces(stream);
        if self.owner.is_none() {
            self.send_finished(stream);
        }
    }

    /// `false`: no room for the next one.
    fn send_finished(&mut self, stream: &mut dyn ByteStream) -> bool {
        for _ in 0..STEP_REPLIES {
            let Some(&index) = self.finished.front() else {
                return true;
            };
            let sent = match self.simple(index) {
                Some(reply) => put(stream, &reply.emit()),
                None => put(stream, &self.chunk(index)),
            };
            if !sent {
                return false;
            }
            self.finished.pop_front();
            self.operations.remove(index);
            self.moved = true;
        }
        true
    }

    fn send_pieces(&mut self, stream: &mut dyn ByteStream) {
        let mut turn = self.pieces.len();
        while turn > 0 && self.doomed.is_none() {
            turn -= 1;
            let Some(piece) = self.pieces.pop_front() else {
                return;
            };
            match self.judge(&piece) {
                Verdict::Later => {
                    // The place was just freed.
                    let _ = self.pieces.push_back(piece);
                }
                Verdict::Drop => {
                    self.read_pieces -= 1;
                    self.operations.get(piece.operation).ready -= 1;
                    self.finished_if_done(piece.operation);
                }
                Verdict::Send(header) => {
                    let Piece {
                        operation,
                        start,
                        length,
                        buffer,
                    } = piece;
                    if let Err(buffer) = stream.send_buffer(&header, buffer, 0, length as usize) {
                        let _ = self.pieces.push_front(Piece {
                            operation,
                            start,
                            length,
                            buffer,
                        });
                        return;
                    }
                    let before = self.owner;
                    self.piece_sent(operation, length);
                    if before != self.owner {
                        // What had to wait, or has to wait now, is looked at again.
                        turn = self.pieces.len();
                    }
                }
            }
        }
    }

    fn judge(&mut self, piece: &Piece) -> Verdict {
        let structured = self.is_structured();
        let owner = self.owner;
        let operation = self.operations.get(piece.operation);
        let cookie = operation.header.cookie;
        let mut header = Vec::new();
        let mut push = |bytes: &[u8]| {
            let pushed = header.extend_from_slice(bytes);
            debug_assert!(pushed.is_ok(), "a data header longer than its place");
        };
        if structured {
            let last = operation.ready == 1
                && operation.outstanding == 0
                && operation.next == operation.total
                && operation.error.is_none();
            let flags = if last { wire::CHUNK_DONE } else { 0 };
            push(
                &ChunkHeader {
                    flags,
                    kind: chunk::OFFSET_DATA,
                    cookie,
                    length: piece.length + 8,
                }
                .emit(),
            );
            push(&(operation.header.offset + u64::from(piece.start)).to_be_bytes());
            return Verdict::Send(header);
        }
        if operation.error.is_some() {
            // Nothing was sent: a late error would have doomed the connection.
            return Verdict::Drop;
        }
        if owner.is_some_and(|owner| owner != piece.operation) || piece.start != operation.sent {
            return Verdict::Later;
        }
        if piece.start == 0 {
            push(&SimpleReply { error: 0, cookie }.emit());
        }
        Verdict::Send(header)
    }

    fn piece_sent(&mut self, index: u8, length: u32) {
        self.moved = true;
        self.read_pieces -= 1;
        let structured = self.is_structured();
        let operation = self.operations.get(index);
        operation.ready -= 1;
        operation.sent += length;
        if operation.sent == operation.total {
            self.operations.remove(index);
            self.owner = None;
        } else if structured {
            self.finished_if_failed(index);
        } else {
            self.owner = Some(index);
        }
    }

    fn finished_if_failed(&mut self, index: u8) {
        if self.operations.get(index).error.is_some() {
            self.finished_if_done(index);
        }
    }

    /// The reply of a request that is done, if a simple one serves: a read or block status has to be answered with chunks
    /// once these were agreed on.
    fn simple(&mut self, index: u8) -> Option<SimpleReply> {
        let structured = self.is_structured();
        let operation = self.operations.get(index);
        let chunked = matches!(
            operation.header.command,
            command::READ | command::BLOCK_STATUS
        );
        let error = operation.error.map_or(0, |error| error as u32);
        (!structured || !chunked).then_some(SimpleReply {
            error,
            cookie: operation.header.cookie,
        })
    }

    /// The last chunk of a request that is done: an error, a success without data, or the block status.
    fn chunk(&mut self, index: u8) -> Vec<u8, REPLY_BYTES> {
        let operation = *self.operations.get(index);
        let header = operation.header;
        let mut out = Vec::new();
        let mut push = |bytes: &[u8]| {
            let pushed = out.extend_from_slice(bytes);
            debug_assert!(pushed.is_ok(), "a reply longer than its place");
        };
        let head = |kind: u16, length: usize| {
            let (flags, length) = (wire::CHUNK_DONE, length as u32);
            ChunkHeader {
                flags,
                kind,
                cookie: header.cookie,
                length,
            }
            .emit()
        };
        let no_message = 0u16.to_be_bytes();
        let is_read = header.command == command::READ;
        let mut extents = Vec::new();
        let mut error = operation.error;
        if !is_read && error.is_none() {
            let one = header.flags & command_flag::REQ_ONE != 0;
            extents = self.extents(header.offset, header.length, one);
            if extents.is_empty() {
                // The export has shrunk since the request was checked.
                error = Some(NbdError::Invalid);
            }
        }
        match error {
            Some(error) if is_read => {
                push(&head(chunk::ERROR_OFFSET, 4 + 2 + 8));
                push(&(error as u32).to_be_bytes());
                push(&no_message);
                push(&operation.error_at.to_be_bytes());
            }
            Some(error) => {
                push(&head(chunk::ERROR, 4 + 2));
                push(&(error as u32).to_be_bytes());
                push(&no_message);
            }
            None if is_read => push(&head(chunk::NONE, 0)),
            None => {
                push(&head(chunk::BLOCK_STATUS, 4 + extents.len() * 8));
                push(&CONTEXT_ID.to_be_bytes());
                for (length, state) in extents {
                    push(&length.to_be_bytes());
                    push(&state.to_be_bytes());
                }
            }
        }
        out
    }

    /// Lengths and states of the range, neighbours of one state joined.
    fn extents(&self, offset: u64, length: u32, one: bool) -> Vec<(u32, u32), EXTENTS> {
        let mut extents = Vec::<(u32, u32), EXTENTS>::new();
        let Some(backend) = self.backend() else {
            return extents;
        };
        let mut done = 0;
        while done < length {
            let Some(status) =
                backend.block_status(offset + u64::from(done), u64::from(length - done))
            else {
                break;
            };
            let part = u32::try_from(status.len)
                .unwrap_or(u32::MAX)
                .min(length - done);
            let hole = if status.hole { wire::STATE_HOLE } else { 0 };
            let state = hole | if status.zero { wire::STATE_ZERO } else { 0 };
            match extents.last_mut() {
                Some(last) if last.1 == state => last.0 += part,
                Some(_) if one => break,
                _ => {
                    if extents.push((part, state)).is_err() {
                        break;
                    }
                }
            }
            done += part;
        }
        extents
    }
}

//! The way in: request headers, their checks, and the payload of writes.
//!
//! ```text
//!            ┌──────────── no payload ────────────┐
//!            ▼                                    │
//!         header ──▶ write ──▶ payload ──▶ submit ─┤  (a long write: payload, submit, payload, submit …)
//!            ▲        │ refused   │ a piece failed │
//!            └────────┴──▶ discard ◀───────────────┘
//! ```
//! The payload of a refused write is read and dropped, so that the connection survives; its error is sent when the payload
//! has passed. A write's pages are taken when its payload begins: with none free the session stops reading, which is all
//! the back-pressure that there is.
#![forbid(unsafe_code)]

use super::handshake::Agreed;
use super::io::{self, Progress};
use super::session::{Budget, Session};
use super::wire::{NbdError, RequestHeader, command, command_flag};
use super::{Arenas, BlockSizes, MAX_REQUEST, WRITE_PIECE};
use crate::config::SESSION_CHUNK;
use crate::net::stream::ByteStream;
use crate::sync::Buffer;

/// What is received next.
pub(super) enum Intake {
    /// A request header, or the end.
    Header,
    /// Part of a header.
    PartialHeader {
        bytes: [u8; RequestHeader::LEN],
        filled: usize,
    },
    /// The payload of a write; the piece being filled goes to the backend when it is full.
    Payload {
        operation: u8,
        buffer: Option<Buffer>,
        filled: usize,
    },
    /// `left` bytes of payload that nobody wants.
    Discard { operation: u8, left: u64 },
}

/// Why receiving stopped.
enum Stop {
    /// Nothing more has arrived.
    Empty,
    /// There is more, or may be, but the budget, a place, pages or a record is missing.
    Hungry,
}

impl Session {
    /// Receives until nothing is left or something is missing; `true` in the latter case.
    pub(super) fn receive(
        &mut self,
        stream: &mut dyn ByteStream,
        arenas: Arenas,
        budget: &mut Budget,
    ) -> bool {
        loop {
            if self.phase != super::Phase::Transmission || self.doomed.is_some() {
                return false;
            }
            let stop = match core::mem::replace(&mut self.intake, Intake::Header) {
                Intake::Header => self.header(stream, [0; RequestHeader::LEN], 0, budget),
                Intake::PartialHeader { bytes, filled } => {
                    self.header(stream, bytes, filled, budget)
                }
                Intake::Payload {
                    operation,
                    buffer,
                    filled,
                } => self.payload(stream, arenas, operation, buffer, filled, budget),
                Intake::Discard { operation, left } => {
                    self.discard(stream, operation, left, budget)
                }
            };
            match stop {
                Ok(()) => self.moved = true,
                Err(Stop::Empty) => return false,
                Err(Stop::Hungry) => return true,
            }
        }
    }

    /// Turns what stopped a read of the stream into what stops the session.
    fn stopped(&mut self, progress: Progress, clean: bool, budget: &Budget) -> Stop {
        match progress {
            Progress::Done | Progress::Wait if budget.bytes == 0 => return Stop::Hungry,
            Progress::Done | Progress::Wait => {}
            Progress::Finished if clean => self.begin_ending("closed by the client"),
            Progress::Finished => self.doomed = Some("closed by the client in mid-request"),
            Progress::Reset => self.doomed = Some("reset by the client"),
        }
        Stop::Empty
    }

    fn header(
        &mut self,
        stream: &mut dyn ByteStream,
        mut bytes: [u8; RequestHeader::LEN],
        mut filled: usize,
        budget: &mut Budget,
    ) -> Result<(), Stop> {
        let full = self.operations.is_full() || budget.requests == 0;
        let progress = if full {
            Progress::Wait
        } else {
            io::fill(stream, &mut bytes, &mut filled, &mut budget.bytes)
        };
        if progress != Progress::Done {
            if filled > 0 {
                self.intake = Intake::PartialHeader { bytes, filled };
            }
            return Err(if full {
                Stop::Hungry
            } else {
                self.stopped(progress, filled == 0, budget)
            });
        }
        budget.requests -= 1;
        match RequestHeader::parse(&bytes) {
            Some(header) => self.request(header),
            None => self.doomed = Some("wrong request magic"),
        }
        Ok(())
    }

    fn request(&mut self, header: RequestHeader) {
        if header.command == command::DISC {
            return self.begin_ending("disconnected by the client");
        }
        let Some(index) = self.operations.add(header) else {
            return;
        };
        let refused = self.check(&header).err();
        let writes = header.command == command::WRITE;
        if let Some(error) = refused {
            self.operations.get(index).fail(error, header.offset);
            if writes && header.length > MAX_REQUEST {
                // Too much to skip: there is no way back to the next header.
                self.finished_if_done(index);
                return self.begin_ending("a write longer than allowed");
            }
        }
        let operation = self.operations.get(index);
        match header.command {
            command::WRITE if refused.is_some() => {
                self.intake = Intake::Discard {
                    operation: index,
                    left: u64::from(header.length),
                };
                return;
            }
            _ if refused.is_some() => {}
            command::WRITE if header.length > 0 => {
                operation.total = header.length;
                self.intake = Intake::Payload {
                    operation: index,
                    buffer: None,
                    filled: 0,
                };
                return;
            }
            command::READ if header.length > 0 => {
                operation.total = header.length;
                operation.flush_first = header.flags & command_flag::FUA != 0;
            }
            command::FLUSH => operation.total = 1,
            command::TRIM | command::WRITE_ZEROES if header.length > 0 => operation.total = 1,
            // CACHE is advice that we do not need; BLOCK_STATUS is looked up when the reply is made.
            _ => {}
        }
        if operation.total > 0 {
            // As many places as operations: never full.
            let _ = self.waiting.push_back(index);
        } else {
            self.finished_if_done(index);
        }
    }

    /// The checks that need no device; the backend repeats those of range and alignment against its present size.
    fn check(&self, header: &RequestHeader) -> Result<(), NbdError> {
        let Some(entered) = &self.entered else {
            return Err(NbdError::Shutdown);
        };
        let RequestHeader {
            flags,
            command,
            offset,
            length,
            ..
        } = *header;
        let allowed = match command {
            command::READ if entered.agreed.contains(Agreed::STRUCTURED) => {
                command_flag::FUA | command_flag::DF
            }
            command::READ | command::WRITE | command::FLUSH | command::TRIM | command::CACHE => {
                command_flag::FUA
            }
            command::WRITE_ZEROES => {
                command_flag::FUA | command_flag::NO_HOLE | command_flag::FAST_ZERO
            }
            command::BLOCK_STATUS => command_flag::FUA | command_flag::REQ_ONE,
            _ => return Err(NbdError::Invalid),
        };
        if flags & !allowed != 0 {
            return Err(NbdError::Invalid);
        }
        let changes = matches!(
            command,
            command::WRITE | command::TRIM | command::WRITE_ZEROES
        );
        if changes && !entered.agreed.contains(Agreed::WRITABLE) {
            return Err(NbdError::Permission);
        }
        if command == command::FLUSH {
            return Ok(());
        }
        let moves = matches!(command, command::READ | command::WRITE | command::CACHE);
        if moves && length > MAX_REQUEST {
            return Err(NbdError::Invalid);
        }
        let mask = u64::from(BlockSizes::of(entered.export.backend).minimum) - 1;
        let exact = !matches!(command, command::TRIM | command::CACHE);
        if exact && (offset | u64::from(length)) & mask != 0 {
            return Err(NbdError::Invalid);
        }
        let inside = offset
            .checked_add(u64::from(length))
            .is_some_and(|end| end <= entered.size);
        if !inside {
            let grows = matches!(command, command::WRITE | command::WRITE_ZEROES);
            return Err(if grows {
                NbdError::NoSpace
            } else {
                NbdError::Invalid
            });
        }
        if command == command::BLOCK_STATUS
            && (length == 0 || !entered.agreed.contains(Agreed::ALLOCATION))
        {
            return Err(NbdError::Invalid);
        }
        if flags & command_flag::DF != 0 && length as usize > SESSION_CHUNK {
            return Err(NbdError::Overflow);
        }
        Ok(())
    }

    fn payload(
        &mut self,
        stream: &mut dyn ByteStream,
        arenas: Arenas,
        index: u8,
        buffer: Option<Buffer>,
        mut filled: usize,
        budget: &mut Budget,
    ) -> Result<(), Stop> {
        let operation = self.operations.get(index);
        let left = operation.total - operation.next;
        if operation.error.is_some() {
            // An earlier piece failed: what follows must not be written after it.
            self.intake = Intake::Discard {
                operation: index,
                left: u64::from(left) - filled as u64,
            };
            return Ok(());
        }
        let most = self
            .backend()
            .map_or(WRITE_PIECE, |backend| BlockSizes::of(backend).write_piece());
        let piece = (left as usize).min(most);
        let Some(mut buffer) = buffer.or_else(|| arenas.receive.alloc_contiguous(piece)) else {
            self.intake = Intake::Payload {
                operation: index,
                buffer: None,
                filled,
            };
            return Err(Stop::Hungry);
        };
        let before = filled;
        let progress = io::fill(
            stream,
            &mut buffer.as_mut_slice()[..piece],
            &mut filled,
            &mut budget.bytes,
        );
        self.moved |= filled > before;
        if progress != Progress::Done {
            let stop = self.stopped(progress, false, budget);
            self.intake = Intake::Payload {
                operation: index,
                buffer: Some(buffer),
                filled,
            };
            return Err(stop);
        }
        if let Err(buffer) = self.submit_write(index, buffer, piece) {
            self.intake = Intake::Payload {
                operation: index,
                buffer: Some(buffer),
                filled,
            };
            return Err(Stop::Hungry);
        }
        if piece < left as usize {
            self.intake = Intake::Payload {
                operation: index,
                buffer: None,
                filled: 0,
            };
        }
        Ok(())
    }

    fn discard(
        &mut self,
        stream: &mut dyn ByteStream,
        index: u8,
        mut left: u64,
        budget: &mut Budget,
    ) -> Result<(), Stop> {
        let before = left;
        let progress = io::skip(stream, &mut left, &mut budget.bytes);
        self.moved |= left < before;
        if progress != Progress::Done {
            let stop = self.stopped(progress, false, budget);
            self.intake = Intake::Discard {
                operation: index,
                left,
            };
            return Err(stop);
        }
        let operation = self.operations.get(index);
        operation.next = operation.total;
        self.finished_if_done(index);
        Ok(())
    }
}

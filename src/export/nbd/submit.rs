//! The way to the backend and back: pieces of reads, filled pieces of writes, and commands without data.
//!
//! Requests are started strictly in the order in which they came: an older one that wants pages gets them before a younger
//! one, so that the one whose reply must come next always moves. (Writes take theirs while their payload arrives.)
#![forbid(unsafe_code)]

use super::Arenas;
use super::handshake::Agreed;
use super::session::{Phase, Piece, READ_PIECES, Session};
use super::wire::{NbdError, command, command_flag};
use crate::block::{self, Backend, BlockError, Operation as Block, Request, RequestFlags};
use crate::config::SESSION_CHUNK;
use crate::sync::Buffer;

/// What became of an attempt to submit.
enum Submitted {
    /// Nothing of it is left.
    All,
    /// There is more of it.
    Part,
    /// It goes on when a request of it is back.
    Later,
    /// Pages, places or records are missing: it stays first in line.
    Nothing,
}

/// The protocol's number for an error of the block layer.
pub(super) fn to_wire(error: BlockError) -> NbdError {
    match error {
        BlockError::ReadOnly => NbdError::Permission,
        BlockError::NoMemory => NbdError::NoMemory,
        BlockError::NoSpace => NbdError::NoSpace,
        BlockError::Invalid => NbdError::Invalid,
        BlockError::NotSupported => NbdError::NotSupported,
        BlockError::Shutdown => NbdError::Shutdown,
        BlockError::Io | BlockError::NoMedium | BlockError::Busy | BlockError::Cancelled => {
            NbdError::Io
        }
    }
}

fn flag(flags: u16, wanted: u16, block: RequestFlags) -> RequestFlags {
    if flags & wanted != 0 {
        block
    } else {
        RequestFlags::empty()
    }
}

impl Session {
    /// Starts what waits, oldest first, as far as pages and records go.
    pub(super) fn submit_waiting(&mut self, arenas: Arenas, drained: bool) {
        while let Some(&index) = self.waiting.front() {
            let operation = self.operations.get(index);
            if operation.error.is_some() {
                // A piece of it failed: the rest is not read.
                operation.next = operation.total;
                self.waiting.pop_front();
                self.finished_if_done(index);
                continue;
            }
            if drained {
                return;
            }
            match self.submit_next(index, arenas) {
                Submitted::All | Submitted::Later => {
                    self.waiting.pop_front();
                }
                Submitted::Part => {}
                Submitted::Nothing => return,
            }
            self.moved = true;
        }
    }

    fn submit_next(&mut self, index: u8, arenas: Arenas) -> Submitted {
        let operation = *self.operations.get(index);
        let header = operation.header;
        let (offset, length) = (header.offset, u64::from(header.length));
        let flags = flag(header.flags, command_flag::FUA, RequestFlags::FUA);
        match header.command {
            command::READ if operation.flush_first => {
                match self.record(index, Block::Flush, 0, 0) {
                    None => Submitted::Nothing,
                    Some(request) => {
                        self.start(index, request, 0);
                        Submitted::Later
                    }
                }
            }
            command::READ => self.submit_read(index, arenas),
            command::FLUSH => self.submit_whole(index, Block::Flush, 0, 0, RequestFlags::empty()),
            command::TRIM => self.submit_whole(index, Block::Discard, offset, length, flags),
            _ => {
                let unmap = flag(
                    !header.flags,
                    command_flag::NO_HOLE,
                    RequestFlags::MAY_UNMAP,
                );
                let fast = flag(
                    header.flags,
                    command_flag::FAST_ZERO,
                    RequestFlags::FAST_ZERO,
                );
                self.submit_whole(
                    index,
                    Block::WriteZeroes,
                    offset,
                    length,
                    flags | unmap | fast,
                )
            }
        }
    }

    fn submit_whole(
        &mut self,
        index: u8,
        block: Block,
        offset: u64,
        length: u64,
        flags: RequestFlags,
    ) -> Submitted {
        let Some(mut request) = self.record(index, block, offset, length) else {
            return Submitted::Nothing;
        };
        request.flags = flags;
        self.start(index, request, 1);
        Submitted::All
    }

    fn submit_read(&mut self, index: u8, arenas: Arenas) -> Submitted {
        let operation = *self.operations.get(index);
        let left = operation.total - operation.next;
        let piece = left.min(SESSION_CHUNK as u32);
        if self.read_pieces == READ_PIECES {
            return Submitted::Nothing;
        }
        let Some(buffer) = arenas.reply.alloc_contiguous(piece as usize) else {
            return Submitted::Nothing;
        };
        let offset = operation.header.offset + u64::from(operation.next);
        let Some(mut request) = self.record(index, Block::Read, offset, u64::from(piece)) else {
            return Submitted::Nothing;
        };
        if request.add_buffer(buffer, piece as usize).is_err() {
            return Submitted::Nothing;
        }
        self.read_pieces += 1;
        self.start(index, request, piece);
        if piece == left {
            Submitted::All
        } else {
            Submitted::Part
        }
    }

    /// Submits a filled piece of a write. Gives the buffer back if there is no record for it.
    pub(super) fn submit_write(
        &mut self,
        index: u8,
        buffer: Buffer,
        piece: usize,
    ) -> Result<(), Buffer> {
        let operation = *self.operations.get(index);
        let offset = operation.header.offset + u64::from(operation.next);
        let Some(mut request) = self.record(index, Block::Write, offset, piece as u64) else {
            return Err(buffer);
        };
        request.flags = flag(operation.header.flags, command_flag::FUA, RequestFlags::FUA);
        request.add_buffer(buffer, piece)?;
        self.start(index, request, piece as u32);
        Ok(())
    }

    /// A request record addressed back to this session; without one, asks to be woken when there is.
    fn record(&mut self, index: u8, block: Block, offset: u64, length: u64) -> Option<Request> {
        if !super::may_take_record(self.in_flight) {
            return None;
        }
        let Some(mut request) = block::request::new(block, offset, length) else {
            self.starved = true;
            super::await_records();
            return None;
        };
        let start = self.operations.get(index).next;
        request.user = [self.slot as u64, u64::from(index) << 32 | u64::from(start)];
        request.completion = &super::completed;
        Some(request)
    }

    fn start(&mut self, index: u8, request: Request, advance: u32) {
        let Some(backend) = self.backend() else {
            return;
        };
        let operation = self.operations.get(index);
        operation.next += advance;
        operation.outstanding += 1;
        super::took_record(self.in_flight);
        self.in_flight += 1;
        backend.submit(request);
    }

    pub(super) fn backend(&self) -> Option<&'static Backend> {
        self.entered.as_ref().map(|entered| entered.export.backend)
    }

    /// A request is back. Called on the session's core, never inside a submission.
    pub(super) fn completed(&mut self, mut request: Request) {
        let (index, start) = ((request.user[1] >> 32) as u8, request.user[1] as u32);
        let (result, length, block) = (request.result, request.len as u32, request.operation);
        let buffer = request.take_buffer();
        drop(request);
        self.in_flight -= 1;
        super::gave_record(self.in_flight);
        if block == Block::Read {
            self.read_pieces -= 1;
        }
        if matches!(self.phase, Phase::Closing | Phase::Gone) {
            drop(buffer);
            self.settle();
            return self.leave_if_back();
        }
        self.moved = true;
        let operation = self.operations.get(index);
        operation.outstanding -= 1;
        let at = operation.header.offset + u64::from(start);
        match (result, buffer) {
            (Err(error), _) => operation.fail(to_wire(error), at),
            (Ok(()), Some(buffer)) if block == Block::Read => {
                operation.ready += 1;
                self.read_pieces += 1;
                let piece = Piece {
                    operation: index,
                    start,
                    length,
                    buffer,
                };
                // `read_pieces` bounds them: never full.
                let _ = self.pieces.push_back(piece);
            }
            (Ok(()), _) if operation.flush_first => {
                operation.flush_first = false;
                // As many places as operations: never full.
                let _ = self.waiting.push_back(index);
            }
            (Ok(()), _) => {}
        }
        self.completed_operation(index);
    }

    /// Looks at a request one of whose parts is back.
    fn completed_operation(&mut self, index: u8) {
        let structured = self.is_structured();
        let operation = self.operations.get(index);
        if operation.is_read() {
            if operation.error.is_none() {
                return;
            }
            if operation.flush_first {
                operation.flush_first = false;
                operation.next = operation.total;
            }
            if !structured && operation.sent > 0 {
                // Its header said success, and a simple reply has no other place for an error.
                self.doomed = Some("a read failed after its reply had begun");
                return;
            }
        }
        self.finished_if_done(index);
    }

    /// Queues the reply of a request that has nothing else left (a read only with an error, or empty).
    pub(super) fn finished_if_done(&mut self, index: u8) {
        if self.operations.get(index).is_done() {
            // As many places as operations: never full.
            let _ = self.finished.push_back(index);
        }
    }

    pub(super) fn is_structured(&self) -> bool {
        self.entered
            .as_ref()
            .is_some_and(|entered| entered.agreed.contains(Agreed::STRUCTURED))
    }
}

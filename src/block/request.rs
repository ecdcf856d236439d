//! Requests: owned, move-only handles on records from a per-core static pool.
//!
//! A request is made on the core that will get its answer ([`new`]), filled with owned buffers, given a completion, and
//! submitted to a [`Backend`](super::Backend). It comes back, with its buffers, to its completion, on that same core, from a
//! bottom half, never inside `submit`. Whoever gets it may [`reuse`](Request::reuse) or drop it.
//!
//! ```text
//!            new()                submit()                    complete()            callback
//!  free ──────────────▶ filled ──────────────▶ travelling ──────────────▶ finished ─────────▶ filled or free
//!   ▲                                (parked while its backend is drained)                        │
//!   └─────────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//! Nodes narrow a request's *window* (`offset`, `len`, and where its data starts) and may change its operation; the frame that
//! they push holds what was there, so that one record serves a whole chain, split or not.
#![forbid(unsafe_code)]

use core::ops::{Deref, DerefMut};

use heapless::Vec;

use super::BlockError;
use super::core_state;
pub use super::data::{Piece, Pieces, Segment};
use super::node::{Layer, NodeDriver};
pub use super::operation::{Operation, RequestFlags};
use super::token::{InFlight, Queued};
use crate::aio::BottomHalf;
use crate::arch::{self, CoreId};
use crate::config::{MAX_DEPTH, MAX_SEGMENTS};
use crate::sync::{PoolBox, Recycle, Recycled};

/// What is called with the finished request, on [`home`](RequestRecord::home).
pub type Completion = &'static (dyn Fn(Request) + Sync);

/// A completion that lets the request go.
pub fn forget(_request: Request) {}

/// What a layer needs to know of a request when it comes back up; see [`Layer::completed`]. It stays where it was pushed until
/// the layer is done with it: copying it would cost more than what it holds.
#[derive(Clone, Copy)]
pub struct Frame {
    /// Whose frame it is.
    pub(crate) node: &'static dyn Layer,
    /// The core on which the node wants it back.
    pub(crate) core: u8,
    /// The node's own note.
    pub stage: u8,
    /// Operation as it came from above.
    pub operation: Operation,
    /// Flags as they came from above.
    pub flags: RequestFlags,
    pub(crate) data_start: u32,
    /// Offset as it came from above.
    pub offset: u64,
    /// Length as it came from above.
    pub len: u64,
}

/// Which way a request is going when it reaches another core or the completion list.
#[derive(Clone, Copy)]
pub(crate) enum Direction {
    /// Up: frames first, then the completion.
    Up,
    /// Down: into this node.
    Into(&'static dyn NodeDriver),
    /// Back to its pool: it was dropped on another core.
    Home,
}

/// The record behind a [`Request`].
pub struct RequestRecord {
    /// What to do.
    pub operation: Operation,
    /// How.
    pub flags: RequestFlags,
    /// First byte, from the start of whatever it was submitted to.
    pub offset: u64,
    /// Bytes; 0 for a flush.
    pub len: u64,
    /// The data of a read or write: the lengths add up to `len`.
    pub segments: Vec<Segment, MAX_SEGMENTS>,
    /// Who gets the request back.
    pub completion: Completion,
    /// For the submitter; untouched by the block layer.
    pub user: [u64; 2],
    /// The outcome, valid in the completion.
    pub result: Result<(), BlockError>,
    pub(crate) home: CoreId,
    /// Where the window's data starts in the concatenated segments.
    pub(crate) data_start: u32,
    /// The data are zeroes from the shared zero page instead of the segments.
    pub(crate) zeroes: bool,
    /// Number of the record in its pool.
    pub(crate) slot: u16,
    /// For nodes that delay.
    pub(crate) due_ns: u64,
    pub(crate) direction: Direction,
    pub(crate) token: Option<InFlight>,
    pub(crate) queued: Option<Queued>,
    pub(crate) next: Option<Request>,
    /// A record of the spares' pool.
    pub(crate) spare: bool,
    /// Spares reserved for this request, chained.
    pub(crate) spares: Option<Request>,
    pub(crate) frames: Vec<Frame, MAX_DEPTH>,
}

impl RequestRecord {
    pub(crate) const fn empty(home: CoreId) -> Self {
        Self {
            operation: Operation::Read,
            flags: RequestFlags::empty(),
            offset: 0,
            len: 0,
            segments: Vec::new(),
            completion: &forget,
            user: [0; 2],
            result: Ok(()),
            home,
            data_start: 0,
            zeroes: false,
            slot: 0,
            due_ns: 0,
            direction: Direction::Up,
            token: None,
            queued: None,
            next: None,
            spare: false,
            spares: None,
            frames: Vec::new(),
        }
    }

    /// The core that made the request and gets it back (CS-10).
    pub fn home(&self) -> CoreId {
        self.home
    }

    /// Gives it the token with which it counts as being worked on.
    #[inline]
    pub(crate) fn begin(&mut self, token: InFlight) {
        let before = self.token.replace(token);
        debug_assert!(
            before.is_none(),
            "a request that is under way was submitted"
        );
        // There is none; said so, nothing need be dropped on the path of every request.
        core::mem::forget(before);
    }

    /// Pushes a frame with the present window. `false`: the stack is full, which a graph checked at construction never causes.
    #[must_use]
    #[inline]
    pub(crate) fn push_frame(&mut self, node: &'static dyn Layer, core: CoreId, stage: u8) -> bool {
        let frame = Frame {
            node,
            core: core as u8,
            stage,
            operation: self.operation,
            flags: self.flags,
            data_start: self.data_start,
            offset: self.offset,
            len: self.len,
        };
        self.frames.push(frame).is_ok()
    }

    /// The top frame: that of the layer which has the request.
    ///
    /// # Panics
    /// Without a frame; only a layer that pushed one asks.
    #[inline]
    pub(crate) fn frame(&self) -> &Frame {
        match self.frames.last() {
            Some(frame) => frame,
            None => unreachable!("a layer asked for a frame that it did not push"),
        }
    }

    /// The note in the top frame, to change.
    #[inline]
    pub(crate) fn stage_mut(&mut self) -> &mut u8 {
        match self.frames.last_mut() {
            Some(frame) => &mut frame.stage,
            None => unreachable!("a layer asked for a frame that it did not push"),
        }
    }

    /// Takes the top frame off and makes the window what it was when that was pushed.
    #[inline]
    pub(crate) fn leave(&mut self) {
        let frame = match self.frames.last() {
            Some(frame) => frame,
            None => unreachable!("a layer left that had not pushed a frame"),
        };
        self.operation = frame.operation;
        self.flags = frame.flags;
        self.offset = frame.offset;
        self.len = frame.len;
        self.data_start = frame.data_start;
        self.zeroes = false;
        let depth = self.frames.len() - 1;
        self.frames.truncate(depth);
    }

    /// Moves the window to `[offset, offset + len)`, a part of the one in the top frame.
    pub(crate) fn set_window(&mut self, offset: u64, len: u64) {
        let frame = self.frame();
        self.data_start = frame
            .data_start
            .wrapping_add((offset - frame.offset) as u32);
        self.offset = offset;
        self.len = len;
    }
}

/// An owned request. Dropping it gives the record back to its core and wakes who waits for one; dropping one that is
/// travelling is a bug, reported in debug builds, and still returns its token.
#[must_use = "a request that is dropped is never answered"]
pub struct Request {
    record: Recycled<RequestRecord>,
}

impl Request {
    pub(crate) fn from_record(record: PoolBox<RequestRecord>) -> Self {
        Self {
            record: Recycled::new(record),
        }
    }

    /// Makes a finished request ready for another use: buffers, completion and `user` stay.
    pub fn reuse(&mut self, operation: Operation, offset: u64, len: u64) {
        let record = &mut **self;
        record.operation = operation;
        record.flags = RequestFlags::empty();
        record.offset = offset;
        record.len = len;
        record.result = Ok(());
        record.data_start = 0;
        record.zeroes = false;
        record.direction = Direction::Up;
        record.frames.clear();
    }

    /// The record's number in its core's pool.
    #[inline]
    pub fn index(&self) -> usize {
        self.slot as usize
    }
}

impl Deref for Request {
    type Target = RequestRecord;

    #[inline]
    fn deref(&self) -> &RequestRecord {
        &self.record
    }
}

impl DerefMut for Request {
    #[inline]
    fn deref_mut(&mut self) -> &mut RequestRecord {
        &mut self.record
    }
}

impl Recycle for RequestRecord {
    #[inline(never)]
    fn recycle(mut record: PoolBox<Self>) {
        debug_assert!(
            (record.token.is_none() && record.queued.is_none() && record.spares.is_none())
                || super::unwinding(),
            "a travelling request was dropped: {} at {}",
            record.operation.name(),
            record.offset,
        );
        record.token = None;
        record.queued = None;
        record.segments.clear();
        record.frames.clear();
        core_state::free(record);
    }
}

/// A request record of the current core, or `None`: all are in use, so call [`wait_for_request`] and try again when it
/// schedules you.
pub fn new(operation: Operation, offset: u64, len: u64) -> Option<Request> {
    take(operation, offset, len, false)
}

/// Like [`new`], but may take the records that are kept back for drain and shutdown.
pub fn new_reserved(operation: Operation, offset: u64, len: u64) -> Option<Request> {
    take(operation, offset, len, true)
}

fn take(operation: Operation, offset: u64, len: u64, reserved: bool) -> Option<Request> {
    let core = arch::current_core()?;
    let mut request = Request::from_record(core_state::allocate(core, reserved)?);
    request.reuse(operation, offset, len);
    request.completion = &forget;
    request.user = [0; 2];
    Some(request)
}

/// Schedules `waiter` (once) when a record of this core is free; waiters are served in order, one a record.
pub fn wait_for_request(waiter: BottomHalf) {
    core_state::wait(waiter);
}

/// Answers a request: hands it up to the nodes it passed and at last to its completion, each on the core where it belongs,
/// later, from a bottom half. For devices and nodes, on any core; exactly once a submission.
#[inline]
pub fn complete(mut request: Request, result: Result<(), BlockError>) {
    request.result = result;
    request.direction = Direction::Up;
    let target = request
        .frames
        .last()
        .map_or(request.home, |frame| frame.core as CoreId);
    core_state::deliver(target, request);
}

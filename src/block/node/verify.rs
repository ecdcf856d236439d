//! The verify node: two children that must agree.
//!
//! A read goes to both at once, the second into memory of the node's own, a window at a time; where the two differ, the answer is an
//! error, the log names the place, and [`mismatches`] counts. Everything else goes to both. Requests are tracked
//! ([`tracked`](crate::block::tracked)): what changes data has its range for itself, so that no read sees one child before and the
//! other after it.
//!
//! | request | first child, second child |
//! |---|---|
//! | read | both at once; an error of either is the answer, and nothing is compared |
//! | write | one after the other, for the data have one owner; after an error the second keeps what it has (DUR-7) |
//! | write-zeroes, flush | both at once, and both are waited for (DUR-6) |
//! | write-zeroes that must be fast | refused unless both say that they are, for one could do it and the other refuse |
//! | discard | as zeroes that may unmap, where both do that fast; else nothing: what a discard leaves, each may choose |
//!
//! A request needs one spare record. Reads that find no memory wait, first come first served; each holds memory only while its
//! children read, so they go on.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use spin::mutex::SpinMutex;

use super::instance::{self, Place};
use super::{Ascent, BlockStatus, Layer, NodeDriver, NodeId, NodeInfo};
use crate::arch::{self, CoreId};
use crate::block::graph::{self, Access, Link, Permissions, Reason, Refusal};
use crate::block::request::{RequestFlags, RequestRecord, complete};
use crate::block::tracked::{PLACE_MASK, PLACES, Tracked};
use crate::block::{BlockError, Operation, Request, RequestQueue};
use crate::config::{VERIFIES, VERIFY_PAGES, VERIFY_WINDOW};
use crate::sync::{Buffer, IrqLock, PAGE_SIZE, PageArena};

const _: () = assert!(VERIFY_WINDOW as usize <= VERIFY_PAGES * PAGE_SIZE);

/// What a frame's stage says, beside the place in the table: the request may (now) begin, or is below, with which child.
const WAITING: u8 = 0x40;
const FIRST: u8 = 0x80;
const SECOND: u8 = 0xc0;

/// What a verify node is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// The two that must agree; the first takes the node's place when that is removed.
    pub children: [NodeId; 2],
}

/// A node that compares its children.
pub struct Verify {
    place: Place,
    links: [Link; 2],
    /// Spare records that the second child needs.
    second_cost: AtomicU32,
    fast_zeroes: AtomicBool,
    mismatches: AtomicU64,
    last_offset: AtomicU64,
    tracked: Tracked,
    /// Requests of which one half has come back, by place.
    halves: IrqLock<[Option<Request>; PLACES]>,
    /// Reads that wait for memory.
    line: SpinMutex<RequestQueue>,
    pages: PageArena<VERIFY_PAGES>,
}

static ARENA: [Verify; VERIFIES] = [const { Verify::new() }; VERIFIES];

/// Makes a verify node on two children. Main loop only.
///
/// # Errors
/// No node left, blocks too large to compare; those of [`graph::add`] and [`graph::attach`].
pub fn create(name: &str, options: Options) -> Result<NodeId, Refusal> {
    for child in options.children {
        if graph::info(child).is_some_and(|info| u64::from(info.logical_block) > VERIFY_WINDOW) {
            return Err(Refusal::new(name, Reason::Node(BlockError::NotSupported)));
        }
    }
    let verify = instance::take(&ARENA, |verify| &verify.place, "verify nodes")?;
    instance::build(name, verify, &verify.place, &options.children)
}

/// How often the children of a verify node differed, and at which byte the last time; `None` for another kind of node.
pub fn mismatches(node: NodeId) -> Option<(u64, u64)> {
    let verify = ARENA.iter().find(|verify| verify.place.is(node))?;
    let [count, last] =
        [&verify.mismatches, &verify.last_offset].map(|word| word.load(Ordering::Relaxed));
    Some((count, last))
}

impl Verify {
    const fn new() -> Self {
        Self {
            place: Place::new(),
            links: [Link::new(), Link::new()],
            second_cost: AtomicU32::new(0),
            fast_zeroes: AtomicBool::new(false),
            mismatches: AtomicU64::new(0),
            last_offset: AtomicU64::new(0),
            tracked: Tracked::new(),
            halves: IrqLock::new([const { None }; PLACES]),
            line: SpinMutex::new(RequestQueue::new()),
            pages: PageArena::new(),
        }
    }

    /// A request whose turn it is, or the next window of a read.
    fn start(&'static self, mut request: Request) {
        match request.operation {
            Operation::Read => self.start_read(request),
            Operation::Write => {
                set_state(&mut request, FIRST);
                self.links[0].submit(request);
            }
            _ => self.submit_to_both(request, None),
        }
    }

    fn start_read(&'static self, mut request: Request) {
        let (offset, end) = (request.offset, end_of(&request));
        let len = (end - offset).min(VERIFY_WINDOW);
        request.set_window(offset, len);
        let has_memory = request
            .spares
            .as_ref()
            .is_some_and(|spare| !spare.segments.is_empty());
        if has_memory {
            return self.submit_to_both(request, None);
        }
        let mut line = self.line.lock();
        if line.is_empty()
            && let Some(buffer) = self.pages.alloc_contiguous(len as usize)
        {
            drop(line);
            return self.submit_to_both(request, Some(buffer));
        }
        line.push(request);
    }

    /// Memory is free again: those that wait for it go on, in order.
    fn memory_is_free(&'static self) {
        loop {
            let mut line = self.line.lock();
            let Some(mut request) = line.pop() else {
                return;
            };
            let Some(buffer) = self.pages.alloc_contiguous(request.len as usize) else {
                return line.push_front(request);
            };
            drop(line);
            // The request's own core goes on with it; till then the spare keeps the memory.
            if let Some(mut spare) = request.take_spare() {
                let len = request.len as usize;
                // A spare has no segments of its own.
                let _ = spare.add_buffer(buffer, len);
                request.give_spare(spare);
            }
            complete(request, Ok(()));
        }
    }

    /// Sends the window to both children; the second one's data are in `buffer`, or in the spare already.
    fn submit_to_both(&'static self, mut request: Request, buffer: Option<Buffer>) {
        let below = self.second_cost.load(Ordering::Relaxed) as usize;
        let Some(mut spare) = request.take_spare_with(below) else {
            debug_assert!(false, "the cost of a graph was told wrong");
            drop(buffer);
            return self.answer(request, Err(BlockError::NoMemory));
        };
        let (offset, len, core) = (request.offset, request.len, request.frame().core);
        spare.reuse(request.operation, offset, len);
        spare.flags = request.flags;
        if let Some(buffer) = buffer {
            // A spare has no segments of its own.
            let _ = spare.add_buffer(buffer, len as usize);
        }
        let place = request.frame().stage & PLACE_MASK;
        // The first frame of a record always fits.
        let _ = spare.push_frame(self, CoreId::from(core), SECOND | place);
        set_state(&mut request, FIRST);
        self.links[0].submit(request);
        self.links[1].submit(spare);
    }

    /// One half is back; both, when the other was before.
    fn half(&'static self, request: Request) -> Ascent {
        let stage = request.frame().stage;
        let other = {
            let half = &mut self.halves.lock()[usize::from(stage & PLACE_MASK)];
            match half.take() {
                Some(other) => other,
                None => {
                    *half = Some(request);
                    return Ascent::Taken;
                }
            }
        };
        if stage & SECOND == SECOND {
            self.joined(other, request)
        } else {
            self.joined(request, other)
        }
    }

    /// Both children have answered.
    fn joined(&'static self, mut request: Request, mut spare: Request) -> Ascent {
        spare.leave();
        let mut result = request.result.and(spare.result);
        if let Some(buffer) = spare.take_buffer() {
            if result.is_ok()
                && let Some(offset) = first_difference(&request, &buffer)
            {
                self.report(offset);
                result = Err(BlockError::Io);
            }
            drop(buffer);
            self.memory_is_free();
        }
        request.give_spare(spare);
        let next = request.offset + request.len;
        let end = end_of(&request);
        if result.is_ok() && request.operation == Operation::Read && next < end {
            request.set_window(next, end - next);
            set_state(&mut request, WAITING);
            self.start_read(request);
            return Ascent::Taken;
        }
        Ascent::Up(self.finished(request, result))
    }

    /// Takes a request that is done out of the table, and our frame off it.
    fn finished(&'static self, mut request: Request, result: Result<(), BlockError>) -> Request {
        self.tracked.end(request.frame().stage & PLACE_MASK);
        request.leave();
        request.result = result;
        request
    }

    fn answer(&'static self, request: Request, result: Result<(), BlockError>) {
        complete(self.finished(request, result), result);
    }

    #[cold]
    fn report(&self, offset: u64) {
        self.mismatches.fetch_add(1, Ordering::Relaxed);
        self.last_offset.store(offset, Ordering::Relaxed);
        let name = self.place.node().and_then(graph::name).unwrap_or_default();
        log::error!("{name}: the children differ at offset {offset}");
    }
}

/// What the frame's stage says of the request, the place in the table apart.
fn set_state(request: &mut RequestRecord, state: u8) {
    let stage = request.stage_mut();
    *stage = *stage & PLACE_MASK | state;
}

/// Where the request as it came from above ends.
fn end_of(request: &RequestRecord) -> u64 {
    let frame = request.frame();
    frame.offset + frame.len
}

/// Offset of the first byte of the window that is not as in `other`.
fn first_difference(request: &RequestRecord, other: &Buffer) -> Option<u64> {
    let mut rest = other.as_slice();
    let mut found = None;
    request.for_each_slice(|ours| {
        let (theirs, left) = rest.split_at(ours.len().min(rest.len()));
        if found.is_none() && ours != theirs {
            let same = ours.iter().zip(theirs).take_while(|(a, b)| a == b).count();
            found = Some(request.offset + (other.len() - rest.len() + same) as u64);
        }
        rest = left;
    });
    found
}

impl Layer for Verify {
    fn completed(&'static self, mut request: Request) -> Ascent {
        match (request.frame().stage & SECOND, request.operation) {
            (WAITING, _) => {
                self.start(request);
                Ascent::Taken
            }
            (FIRST, Operation::Write) if request.result.is_ok() => {
                set_state(&mut request, SECOND);
                self.links[1].submit(request);
                Ascent::Taken
            }
            (_, Operation::Write) => {
                let result = request.result;
                Ascent::Up(self.finished(request, result))
            }
            _ => self.half(request),
        }
    }
}

impl NodeDriver for Verify {
    fn info(&self) -> NodeInfo {
        let [a, b] = [&self.links[0], &self.links[1]].map(instance::info_below);
        let fast_zeroes = a.fast_zeroes && b.fast_zeroes;
        NodeInfo {
            kind: "verify",
            size: a.size.min(b.size),
            logical_block: a.logical_block.max(b.logical_block),
            physical_block: a.physical_block.max(b.physical_block),
            optimal_io: a.optimal_io.max(b.optimal_io),
            discard_align: a.discard_align.max(b.discard_align),
            read_only: a.read_only || b.read_only,
            discard: fast_zeroes,
            fast_zeroes,
            writeback: a.writeback || b.writeback,
            cost: 1 + a.cost + b.cost,
            depth: 1 + a.depth.max(b.depth),
        }
    }

    fn submit(&'static self, mut request: Request) {
        let Some(core) = arch::current_core() else {
            return complete(request, Err(BlockError::Invalid));
        };
        let fast_zeroes = self.fast_zeroes.load(Ordering::Relaxed);
        if request.flags.contains(RequestFlags::FAST_ZERO) && !fast_zeroes {
            return complete(request, Err(BlockError::NotSupported));
        }
        if request.operation == Operation::Discard && !fast_zeroes {
            return complete(request, Ok(()));
        }
        if !request.push_frame(self, core, WAITING) {
            return complete(request, Err(BlockError::NoMemory));
        }
        if request.operation == Operation::Discard {
            request.operation = Operation::WriteZeroes;
            request.flags |= RequestFlags::MAY_UNMAP;
        }
        let serialising = request.operation.is_write();
        if let Some(request) = self.tracked.begin(request, serialising) {
            self.start(request);
        }
    }

    fn block_status(&self, offset: u64, len: u64) -> BlockStatus {
        let mut status = BlockStatus {
            len,
            hole: true,
            zero: true,
        };
        for link in &self.links {
            let other = instance::status_below(link, offset, status.len);
            status.len = other.len;
            status.hole &= other.hole;
            status.zero &= other.zero;
        }
        status
    }

    fn links(&'static self) -> &'static [Link] {
        &self.links
    }

    fn filtered(&'static self) -> Option<usize> {
        Some(0)
    }

    fn permissions(&self, _slot: usize, above: Permissions) -> Permissions {
        // Whoever else writes to one of the children makes them differ; while nobody reads here, that is nobody's business.
        if above.needs.is_empty() {
            return above;
        }
        Permissions {
            shares: above.shares - Access::WRITE,
            ..above
        }
    }

    fn child_changed(&'static self) {
        let info = self.info();
        self.fast_zeroes.store(info.fast_zeroes, Ordering::Relaxed);
        let second = instance::info_below(&self.links[1]).cost;
        self.second_cost.store(second.into(), Ordering::Relaxed);
    }

    fn release(&'static self) {
        self.mismatches.store(0, Ordering::Relaxed);
        self.last_offset.store(0, Ordering::Relaxed);
        self.place.give_back();
    }
}

//! The concat node: its children one after another in one address space.
//!
//! | | |
//! |---|---|
//! | block size | the largest of the children's; what a child has beyond a whole one is not used |
//! | a child that grows or shrinks | only the last one's size counts; elsewhere data would move, so room beyond is not used, and what a child has lost it refuses itself |
//! | a request over a boundary | part by part, in its own record; a part that fails ends it |
//! | FUA | each part has it |
//! | flush | each child written since a flush of it that has ended well, one after another (DUR-6) |
//!
//! Whether a child needs a flush: every core counts the writes that have come back; a flush notes their sum before it goes down, and
//! when it has ended well every write in that sum is durable. Who finds a sum that is not larger needs no flush. The durable sum is
//! read first and the counters after, so equal sums mean the same writes. A flush that is still under way counts for nothing: who
//! comes meanwhile sends another.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use super::instance::{self, Place};
use super::{Ascent, BlockStatus, Layer, NodeDriver, NodeId, NodeInfo};
use crate::arch::{self, CoreId};
use crate::block::backend::beyond_end;
use crate::block::graph::{self, Link, Reason, Refusal};
use crate::block::request::{RequestFlags, complete};
use crate::block::{BlockError, Operation, Request};
use crate::config::{CONCATS, MAX_CHILDREN, MAX_CORES};
use crate::sync::{CachePadded, CoreArray};

/// Writes that have come back, by child. Written by its core alone.
struct Written([AtomicU64; MAX_CHILDREN]);

/// Several nodes in a row.
pub struct Concat {
    place: Place,
    links: [Link; MAX_CHILDREN],
    count: AtomicUsize,
    block: AtomicU64,
    /// Where each child ends; where it starts is the end of the one before. Only the last one's changes.
    ends: [AtomicU64; MAX_CHILDREN],
    /// A child has got larger blocks than the row was made for: nothing can be done.
    misfit: AtomicBool,
    written: CoreArray<Written>,
    /// Times that a child may have been written by others, or another one took its place.
    changes: [AtomicU64; MAX_CHILDREN],
    /// The largest sum of which all writes are durable.
    durable: [AtomicU64; MAX_CHILDREN],
}

static ARENA: [Concat; CONCATS] = [const { Concat::new() }; CONCATS];

/// Makes a row of nodes. Main loop only.
///
/// # Errors
/// `Invalid` without children, with more than [`MAX_CHILDREN`], or with one that has no room for a block; no concat is left; those
/// of [`graph::add`] and [`graph::attach`].
pub fn create(name: &str, children: &[NodeId]) -> Result<NodeId, Refusal> {
    let invalid = |name: &str| Refusal::new(name, Reason::Node(BlockError::Invalid));
    if !(1..=MAX_CHILDREN).contains(&children.len()) {
        return Err(invalid(name));
    }
    let mut block = 512;
    for child in children {
        block = block.max(u64::from(info_of(*child)?.logical_block));
    }
    let mut ends = [0; MAX_CHILDREN];
    let mut end = 0u64;
    for (place, child) in ends.iter_mut().zip(children) {
        let size = info_of(*child)?.size;
        let child_name = graph::name(*child).unwrap_or_default();
        if size < block {
            return Err(invalid(&child_name));
        }
        end = end
            .checked_add(size - size % block)
            .ok_or_else(|| invalid(&child_name))?;
        *place = end;
    }
    let concat = instance::take(&ARENA, |concat| &concat.place, "concats")?;
    concat.count.store(children.len(), Ordering::Relaxed);
    concat.block.store(block, Ordering::Relaxed);
    concat.misfit.store(false, Ordering::Relaxed);
    for (child, end) in ends.into_iter().enumerate() {
        concat.ends[child].store(end, Ordering::Relaxed);
        // What was written before may not have been flushed.
        concat.changes[child].fetch_add(1, Ordering::Relaxed);
    }
    instance::build(name, concat, &concat.place, children)
}

fn info_of(child: NodeId) -> Result<NodeInfo, Refusal> {
    let driver = graph::driver(child).ok_or_else(|| Refusal::new("", Reason::NoSuchNode))?;
    Ok(driver.info())
}

impl Concat {
    const fn new() -> Self {
        Self {
            place: Place::new(),
            links: [const { Link::new() }; MAX_CHILDREN],
            count: AtomicUsize::new(0),
            block: AtomicU64::new(512),
            ends: [const { AtomicU64::new(0) }; MAX_CHILDREN],
            misfit: AtomicBool::new(false),
            written: CoreArray::new(
                [const { CachePadded::new(Written([const { AtomicU64::new(0) }; MAX_CHILDREN])) };
                    MAX_CORES],
            ),
            changes: [const { AtomicU64::new(0) }; MAX_CHILDREN],
            durable: [const { AtomicU64::new(0) }; MAX_CHILDREN],
        }
    }

    fn children(&self) -> &[Link] {
        &self.links[..self.count.load(Ordering::Relaxed)]
    }

    fn end(&self, child: usize) -> u64 {
        self.ends[child].load(Ordering::Relaxed)
    }

    fn start(&self, child: usize) -> u64 {
        child.checked_sub(1).map_or(0, |before| self.end(before))
    }

    fn child_at(&self, offset: u64) -> Option<usize> {
        (0..self.count.load(Ordering::Relaxed)).find(|child| offset < self.end(*child))
    }

    /// Sends the part of the request that begins at `offset`, one of our bytes, to the child that has it. Our frame is on top.
    fn part(&'static self, mut request: Request, offset: u64) {
        let Some(child) = self.child_at(offset) else {
            let error = beyond_end(request.operation);
            return complete(request, Err(error));
        };
        let frame = request.frame();
        let (flags, end) = (frame.flags, frame.offset + frame.len);
        request.set_window(offset, end.min(self.end(child)) - offset);
        request.offset = offset - self.start(child);
        request.flags = flags;
        *request.stage_mut() = child as u8;
        self.links[child].submit(request);
    }

    /// Whether zeroes that must be fast can be in every child that the range touches: a part that cannot must not come after one
    /// that could.
    fn zeroes_are_fast(&self, offset: u64, end: u64) -> bool {
        self.children().iter().enumerate().all(|(child, link)| {
            self.end(child) <= offset
                || end <= self.start(child)
                || instance::info_below(link).fast_zeroes
        })
    }

    /// Writes of a child that have come back, and all else that may need a flush.
    fn sum(&self, child: usize) -> u64 {
        let counted = self
            .written
            .iter()
            .map(|core| core.0[child].load(Ordering::Acquire));
        counted.fold(
            self.changes[child].load(Ordering::Acquire),
            u64::wrapping_add,
        )
    }

    fn wrote(&self, core: CoreId, child: usize) {
        let count = &self.written.get(core).0[child];
        // Released to whoever hears of the write and flushes.
        count.store(count.load(Ordering::Relaxed) + 1, Ordering::Release);
    }

    /// Flushes the first child from `child` on that needs it, or answers. No frame of ours is on the request.
    fn flush_from(&'static self, mut request: Request, core: CoreId, child: usize) {
        for child in child..self.count.load(Ordering::Relaxed) {
            let durable = self.durable[child].load(Ordering::Acquire);
            let sum = self.sum(child);
            if sum <= durable {
                continue;
            }
            // The frame keeps the sum until the flush is back.
            request.offset = sum;
            if !request.push_frame(self, core, child as u8) {
                request.offset = 0;
                return complete(request, Err(BlockError::NoMemory));
            }
            request.offset = 0;
            return self.links[child].submit(request);
        }
        complete(request, Ok(()));
    }

    fn flush_done(&'static self, mut request: Request) -> Ascent {
        let frame = request.frame();
        let (core, child, sum) = (frame.core as CoreId, frame.stage as usize, frame.offset);
        request.leave();
        request.offset = 0;
        if request.result.is_err() {
            return Ascent::Up(request);
        }
        self.durable[child].fetch_max(sum, Ordering::AcqRel);
        self.flush_from(request, core, child + 1);
        Ascent::Taken
    }
}

impl Layer for Concat {
    fn completed(&'static self, mut request: Request) -> Ascent {
        let frame = request.frame();
        let operation = frame.operation;
        if operation == Operation::Flush {
            return self.flush_done(request);
        }
        let (core, child) = (frame.core as CoreId, frame.stage as usize);
        let end = frame.offset + frame.len;
        if operation.is_write() {
            // A failed one too: some of its blocks may be there.
            self.wrote(core, child);
        }
        let next = self.start(child) + request.offset + request.len;
        if request.result.is_ok() && next < end {
            self.part(request, next);
            return Ascent::Taken;
        }
        request.leave();
        Ascent::Up(request)
    }
}

impl NodeDriver for Concat {
    fn info(&self) -> NodeInfo {
        let block = self.block.load(Ordering::Relaxed) as u32;
        let mut all = NodeInfo {
            kind: "concat",
            size: self
                .children()
                .len()
                .checked_sub(1)
                .map_or(0, |last| self.end(last)),
            logical_block: block,
            physical_block: block,
            optimal_io: 0,
            discard_align: 0,
            read_only: false,
            discard: false,
            fast_zeroes: true,
            writeback: false,
            cost: 0,
            depth: 0,
        };
        for link in self.children() {
            let child = instance::info_below(link);
            all.physical_block = all.physical_block.max(child.physical_block);
            all.optimal_io = all.optimal_io.max(child.optimal_io);
            all.discard_align = all.discard_align.max(child.discard_align);
            all.read_only |= child.read_only;
            all.discard |= child.discard;
            all.fast_zeroes &= child.fast_zeroes;
            all.writeback |= child.writeback;
            // One child at a time has the request.
            all.cost = all.cost.max(child.cost);
            all.depth = all.depth.max(child.depth);
        }
        all.depth += 1;
        all
    }

    fn submit(&'static self, mut request: Request) {
        let Some(core) = arch::current_core() else {
            return complete(request, Err(BlockError::Invalid));
        };
        if self.misfit.load(Ordering::Relaxed) {
            return complete(request, Err(BlockError::Invalid));
        }
        if request.operation == Operation::Flush {
            return self.flush_from(request, core, 0);
        }
        let (offset, end) = (request.offset, request.offset + request.len);
        if request.flags.contains(RequestFlags::FAST_ZERO) && !self.zeroes_are_fast(offset, end) {
            return complete(request, Err(BlockError::NotSupported));
        }
        if !request.push_frame(self, core, 0) {
            return complete(request, Err(BlockError::NoMemory));
        }
        self.part(request, offset);
    }

    fn block_status(&self, offset: u64, len: u64) -> BlockStatus {
        match self.child_at(offset) {
            Some(child) => {
                let len = len.min(self.end(child) - offset);
                instance::status_below(&self.links[child], offset - self.start(child), len)
            }
            None => BlockStatus {
                len,
                hole: false,
                zero: false,
            },
        }
    }

    fn links(&'static self) -> &'static [Link] {
        self.children()
    }

    fn child_changed(&'static self) {
        let block = self.block.load(Ordering::Relaxed);
        let mut misfit = false;
        for (child, link) in self.children().iter().enumerate() {
            self.changes[child].fetch_add(1, Ordering::AcqRel);
            let Some(driver) = link.driver() else {
                continue;
            };
            let info = driver.info();
            misfit |= u64::from(info.logical_block) > block;
            if child + 1 == self.children().len() {
                let start = self.start(child);
                let end = start.saturating_add(info.size - info.size % block);
                self.ends[child].store(end, Ordering::Relaxed);
            }
        }
        self.misfit.store(misfit, Ordering::Relaxed);
    }

    fn release(&'static self) {
        self.place.give_back();
    }
}

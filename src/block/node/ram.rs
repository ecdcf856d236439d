//! The ram node: lent memory as a disk, with a truthful map of what is allocated.
//!
//! The memory is cut into shards, each under a lock that is held only while bytes are copied, so that several cores work at
//! once. Allocation is kept by granules of at least 4 KiB: a write allocates the granules it touches, a discard or a
//! write-zeroes that may deallocate frees those it covers whole. Unallocated granules are zero, always.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use spin::mutex::SpinMutex;

use super::instance::{self, Place};
use super::{Ascent, BlockStatus, Layer, NodeDriver, NodeId, NodeInfo};
use crate::block::graph::{Reason, Refusal};
use crate::block::request::{RequestFlags, complete};
use crate::block::{BlockError, Operation, Request};
use crate::config::RAM_PAGES;
use crate::sync::{Buffer, PageArena};

/// Ram nodes that can exist.
const RAMS: usize = 4;
/// Shards of one node.
const SHARDS: usize = 64;
/// Granules of one node.
const GRANULES: usize = 16 * 1024;
const MIN_GRANULE: usize = 4096;

/// Memory of nodes that are made without any.
static PAGES: PageArena<RAM_PAGES> = PageArena::new();

/// A shard's memory; it goes back to whom it belongs when the node does.
enum Memory {
    None,
    Lent(&'static mut [u8]),
    Pages(Buffer),
}

impl Memory {
    fn bytes(&mut self) -> &mut [u8] {
        match self {
            Self::None => &mut [],
            Self::Lent(bytes) => bytes,
            Self::Pages(buffer) => buffer.as_mut_slice(),
        }
    }
}

/// A disk in memory. Shards are equal but for the last.
pub struct Ram {
    place: Place,
    shards: [SpinMutex<Memory>; SHARDS],
    shard_len: AtomicU64,
    granule: AtomicU64,
    size: AtomicU64,
    block: AtomicU32,
    allocated: [AtomicU32; GRANULES / 32],
    writes: AtomicU64,
}

static ARENA: [Ram; RAMS] = [const { Ram::new() }; RAMS];

/// How memory of some size is cut.
struct Cut {
    size: usize,
    granule: usize,
    shard_len: usize,
}

impl Cut {
    fn of(len: usize, block: u32) -> Option<Self> {
        if !block.is_power_of_two() || !(512..=65536).contains(&block) || len < block as usize {
            return None;
        }
        let size = len - len % block as usize;
        let granule = size
            .div_ceil(GRANULES)
            .checked_next_power_of_two()?
            .max(MIN_GRANULE)
            .max(block as usize);
        Some(Self {
            size,
            granule,
            shard_len: size.div_ceil(SHARDS).next_multiple_of(granule),
        })
    }
}

/// Makes a node of lent memory, zeroed first, with blocks of `block` bytes. The memory stays lent when the node is deleted.
///
/// # Errors
/// `Invalid` for an impossible block size or memory shorter than a block; no ram node is left; those of
/// [`graph::add`](crate::block::graph::add).
pub fn create(name: &str, memory: &'static mut [u8], block: u32) -> Result<NodeId, Refusal> {
    let cut = Cut::of(memory.len(), block).ok_or_else(|| impossible(name))?;
    let ram = instance::take(&ARENA, |ram| &ram.place, "ram nodes")?;
    ram.prepare(&cut, block);
    let (memory, _) = memory.split_at_mut(cut.size);
    for (shard, bytes) in ram.shards.iter().zip(memory.chunks_mut(cut.shard_len)) {
        bytes.fill(0);
        *shard.lock() = Memory::Lent(bytes);
    }
    instance::build(name, ram, &ram.place, &[])
}

/// Makes a node of `size` bytes from the firmware's own pages, which are free again when it is deleted.
///
/// # Errors
/// `Invalid` for an impossible block size, or a size below a block; no ram node is left, or not so many pages; those of
/// [`graph::add`](crate::block::graph::add).
pub fn create_from_pages(name: &str, size: usize, block: u32) -> Result<NodeId, Refusal> {
    let cut = Cut::of(size, block).ok_or_else(|| impossible(name))?;
    let ram = instance::take(&ARENA, |ram| &ram.place, "ram nodes")?;
    ram.prepare(&cut, block);
    let mut left = cut.size;
    for shard in &ram.shards {
        let len = left.min(cut.shard_len);
        left -= len;
        if len == 0 {
            break;
        }
        let Some(mut buffer) = PAGES.alloc_contiguous(len) else {
            ram.release();
            return Err(Refusal::new(name, Reason::NoRoom("ram pages")));
        };
        buffer.as_mut_slice().fill(0);
        *shard.lock() = Memory::Pages(buffer);
    }
    instance::build(name, ram, &ram.place, &[])
}

fn impossible(name: &str) -> Refusal {
    Refusal::new(name, Reason::Node(BlockError::Invalid))
}

/// The firmware's own pages for ram nodes: taken now, and all.
pub fn pages() -> (usize, usize) {
    (PAGES.in_use(), PAGES.capacity())
}

impl Ram {
    const fn new() -> Self {
        Self {
            place: Place::new(),
            shards: [const { SpinMutex::new(Memory::None) }; SHARDS],
            shard_len: AtomicU64::new(0),
            granule: AtomicU64::new(0),
            size: AtomicU64::new(0),
            block: AtomicU32::new(0),
            allocated: [const { AtomicU32::new(0) }; GRANULES / 32],
            writes: AtomicU64::new(0),
        }
    }

    fn prepare(&self, cut: &Cut, block: u32) {
        self.shard_len
            .store(cut.shard_len as u64, Ordering::Relaxed);
        self.granule.store(cut.granule as u64, Ordering::Relaxed);
        self.size.store(cut.size as u64, Ordering::Relaxed);
        self.block.store(block, Ordering::Relaxed);
        for word in &self.allocated {
            word.store(0, Ordering::Relaxed);
        }
        self.writes.store(0, Ordering::Relaxed);
    }

    fn granule(&self) -> u64 {
        self.granule.load(Ordering::Relaxed)
    }

    fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    fn is_allocated(&self, granule: u64) -> bool {
        let word = &self.allocated[granule as usize / 32];
        word.load(Ordering::Acquire) & 1 << (granule % 32) != 0
    }

    fn set_allocated(&self, granule: u64, allocated: bool) {
        let word = &self.allocated[granule as usize / 32];
        if allocated {
            word.fetch_or(1 << (granule % 32), Ordering::AcqRel);
        } else {
            word.fetch_and(!(1 << (granule % 32)), Ordering::AcqRel);
        }
    }

    /// Calls `f` for each shard's part of a range, under the shard's lock, with the part's place in the node.
    fn for_each_part(&self, offset: u64, len: u64, mut f: impl FnMut(u64, &mut [u8])) {
        let shard_len = self.shard_len.load(Ordering::Relaxed);
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let Some(shard) = self.shards.get((at / shard_len) as usize) else {
                return;
            };
            let start = at % shard_len;
            let part = (shard_len - start).min(end - at);
            f(
                at,
                &mut shard.lock().bytes()[start as usize..(start + part) as usize],
            );
            at += part;
        }
    }

    fn allocate(&self, at: u64, len: u64) {
        let granule = self.granule();
        for granule in at / granule..(at + len).div_ceil(granule) {
            if !self.is_allocated(granule) {
                self.set_allocated(granule, true);
            }
        }
    }

    /// Zeroes a range; granules covered whole become unallocated. With `keep`, what is not covered whole is left as it is.
    fn deallocate(&self, offset: u64, len: u64, keep: bool) {
        let granule = self.granule();
        let size = self.size();
        self.for_each_part(offset, len, |at, bytes| {
            let end = at + bytes.len() as u64;
            let first = at.next_multiple_of(granule);
            let last = if end == size {
                end
            } else {
                end - end % granule
            };
            if first < last {
                bytes[(first - at) as usize..(last - at) as usize].fill(0);
                for granule in first / granule..last.div_ceil(granule) {
                    self.set_allocated(granule, false);
                }
            }
            if !keep {
                bytes.fill(0);
            }
        });
    }

    fn execute(&self, request: &mut Request) {
        let (offset, len) = (request.offset, request.len);
        match request.operation {
            Operation::Read => {
                let mut from = offset;
                request.for_each_slice_mut(|slice| {
                    let mut done = 0;
                    self.for_each_part(from, slice.len() as u64, |_, bytes| {
                        slice[done..done + bytes.len()].copy_from_slice(bytes);
                        done += bytes.len();
                    });
                    from += slice.len() as u64;
                });
            }
            Operation::Write => {
                let mut to = offset;
                request.for_each_slice(|slice| {
                    let mut done = 0;
                    self.for_each_part(to, slice.len() as u64, |at, bytes| {
                        bytes.copy_from_slice(&slice[done..done + bytes.len()]);
                        self.allocate(at, bytes.len() as u64);
                        done += bytes.len();
                    });
                    to += slice.len() as u64;
                });
            }
            Operation::Flush => {}
            Operation::Discard => self.deallocate(offset, len, true),
            Operation::WriteZeroes if request.flags.contains(RequestFlags::MAY_UNMAP) => {
                self.deallocate(offset, len, false);
            }
            Operation::WriteZeroes => self.for_each_part(offset, len, |at, bytes| {
                bytes.fill(0);
                self.allocate(at, bytes.len() as u64);
            }),
        }
        if request.operation.is_write() {
            self.writes.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Layer for Ram {
    fn completed(&'static self, mut request: Request) -> Ascent {
        request.leave();
        Ascent::Up(request)
    }
}

impl NodeDriver for Ram {
    fn info(&self) -> NodeInfo {
        let (block, granule) = (self.block.load(Ordering::Relaxed), self.granule() as u32);
        NodeInfo {
            kind: "ram",
            size: self.size(),
            logical_block: block,
            physical_block: block,
            optimal_io: granule,
            discard_align: granule,
            read_only: false,
            discard: true,
            fast_zeroes: true,
            writeback: false,
            cost: 0,
            depth: 0,
        }
    }

    fn submit(&'static self, mut request: Request) {
        let inside = request
            .offset
            .checked_add(request.len)
            .is_some_and(|end| end <= self.size());
        if !inside {
            let error = crate::block::backend::beyond_end(request.operation);
            return complete(request, Err(error));
        }
        self.execute(&mut request);
        complete(request, Ok(()));
    }

    fn block_status(&self, offset: u64, len: u64) -> BlockStatus {
        let granule = self.granule();
        let end = (offset + len).min(self.size());
        let allocated = self.is_allocated(offset / granule);
        let mut next = (offset / granule + 1) * granule;
        while next < end && self.is_allocated(next / granule) == allocated {
            next += granule;
        }
        BlockStatus {
            len: next.min(end) - offset,
            hole: !allocated,
            zero: !allocated,
        }
    }
    fn release(&'static self) {
        for shard in &self.shards {
            *shard.lock() = Memory::None;
        }
        self.place.give_back();
    }
}

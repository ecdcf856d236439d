//! The ram node: lent memory as a disk, with a truthful map of what is allocated.
//!
//! The memory is cut into shards, each under a lock that is held only while bytes are copied, so that several cores work at
//! once. Allocation is kept by granules of at least 4 KiB: a write allocates the granules it touches, a discard or a
//! write-zeroes that may deallocate frees those it covers whole. Unallocated granules are zero, always.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use heapless::Vec;
use spin::Once;
use spin::mutex::SpinMutex;

use super::{Ascent, BlockStatus, Layer, NodeDriver, NodeId, NodeInfo};
use crate::block::request::{RequestFlags, complete};
use crate::block::{BlockError, Operation, Request, graph};

/// Ram nodes that can exist.
const RAMS: usize = 4;
/// Shards of one node.
const SHARDS: usize = 64;
/// Granules of one node.
const GRANULES: usize = 16 * 1024;
const MIN_GRANULE: usize = 4096;

/// The memory of a node. Shards are equal but for the last.
struct Memory {
    shards: Vec<SpinMutex<&'static mut [u8]>, SHARDS>,
    shard_len: u64,
    granule: u64,
    size: u64,
    block: u32,
}

/// A disk in memory.
pub struct Ram {
    taken: AtomicBool,
    memory: Once<Memory>,
    allocated: [AtomicU32; GRANULES / 32],
    writes: AtomicU64,
}

static ARENA: [Ram; RAMS] = [const { Ram::new() }; RAMS];

/// Makes a node of lent memory, zeroed first, with blocks of `block` bytes.
///
/// # Errors
/// `Invalid` for an impossible block size or memory shorter than a block or larger than 64 MiB granules allow; `NoMemory` when
/// all ram nodes are in use; those of [`add`].
pub fn create(name: &str, memory: &'static mut [u8], block: u32) -> Result<NodeId, BlockError> {
    if !block.is_power_of_two() || !(512..=65536).contains(&block) || memory.len() < block as usize
    {
        return Err(BlockError::Invalid);
    }
    if graph::find(name).is_some() || !graph::name_is_valid(name) {
        return Err(BlockError::Invalid);
    }
    let ram = ARENA
        .iter()
        .find(|ram| {
            ram.taken
                .compare_exchange(false, true, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        })
        .ok_or(BlockError::NoMemory)?;
    ram.memory.call_once(|| Memory::new(memory, block));
    Ok(graph::add(name, ram)?)
}

impl Memory {
    fn new(memory: &'static mut [u8], block: u32) -> Self {
        let usable = memory.len() - memory.len() % block as usize;
        let granule = usable
            .div_ceil(GRANULES)
            .next_power_of_two()
            .max(MIN_GRANULE)
            .max(block as usize);
        let shard_len = usable.div_ceil(SHARDS).next_multiple_of(granule);
        let mut shards = Vec::new();
        for shard in memory[..usable].chunks_mut(shard_len) {
            shard.fill(0);
            // Room for all: the shard length was rounded up.
            let _ = shards.push(SpinMutex::new(shard));
        }
        Self {
            shards,
            shard_len: shard_len as u64,
            granule: granule as u64,
            size: usable as u64,
            block,
        }
    }
}

impl Ram {
    const fn new() -> Self {
        Self {
            taken: AtomicBool::new(false),
            memory: Once::new(),
            allocated: [const { AtomicU32::new(0) }; GRANULES / 32],
            writes: AtomicU64::new(0),
        }
    }

    fn memory(&self) -> &Memory {
        match self.memory.get() {
            Some(memory) => memory,
            None => unreachable!("a ram node is added only once it has its memory"),
        }
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
        let memory = self.memory();
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let Some(shard) = memory.shards.get((at / memory.shard_len) as usize) else {
                return;
            };
            let start = at % memory.shard_len;
            let part = (memory.shard_len - start).min(end - at);
            f(
                at,
                &mut shard.lock()[start as usize..(start + part) as usize],
            );
            at += part;
        }
    }

    fn allocate(&self, at: u64, len: u64) {
        let granule = self.memory().granule;
        for granule in at / granule..(at + len).div_ceil(granule) {
            if !self.is_allocated(granule) {
                self.set_allocated(granule, true);
            }
        }
    }

    /// Zeroes a range; granules covered whole become unallocated. With `keep`, what is not covered whole is left as it is.
    fn deallocate(&self, offset: u64, len: u64, keep: bool) {
        let granule = self.memory().granule;
        let size = self.memory().size;
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
        let memory = self.memory();
        NodeInfo {
            kind: "ram",
            size: memory.size,
            logical_block: memory.block,
            physical_block: memory.block,
            optimal_io: memory.granule as u32,
            discard_align: memory.granule as u32,
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
            .is_some_and(|end| end <= self.memory().size);
        if !inside {
            let error = crate::block::backend::beyond_end(request.operation);
            return complete(request, Err(error));
        }
        self.execute(&mut request);
        complete(request, Ok(()));
    }

    fn block_status(&self, offset: u64, len: u64) -> BlockStatus {
        let granule = self.memory().granule;
        let end = (offset + len).min(self.memory().size);
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
}

//! The null node: swallows writes, reads zeroes or leaves the buffer as it is, at once or after a chosen time.
//!
//! An instrument: it shows what everything above a disk costs.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::instance::{self, Place};
use super::{Ascent, BlockStatus, Layer, NodeDriver, NodeId, NodeInfo};
use crate::aio::{self, Callback, Timer};
use crate::arch::{self, CoreId};
use crate::block::graph::{Reason, Refusal};
use crate::block::request::complete;
use crate::block::{BlockError, Operation, Request, RequestQueue};
use crate::config::MAX_CORES;
use crate::sync::{CachePadded, CoreArray, HomeCell};

/// Null nodes that can exist.
const NULLS: usize = 4;

/// What a null node is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NullOptions {
    /// Bytes.
    pub size: u64,
    /// Logical block size, bytes.
    pub block: u32,
    /// Reads give zeroes; otherwise the buffer stays as it is.
    pub read_zeroes: bool,
    /// Every request takes that long; 0: it is answered at once.
    pub latency_ns: u64,
}

/// Requests of one core that wait for their time; all wait equally long, so the oldest is always the next.
struct Delayed {
    queue: RequestQueue,
    timer: Option<Timer>,
}

/// A node that does nothing.
pub struct Null {
    place: Place,
    size: AtomicU64,
    block: AtomicU64,
    read_zeroes: AtomicBool,
    latency_ns: AtomicU64,
    delayed: CoreArray<HomeCell<Delayed>>,
}

static ARENA: [Null; NULLS] = [const { Null::new() }; NULLS];

/// Makes a null node.
///
/// # Errors
/// `Invalid` for an impossible block size; no null node is left; those of [`graph::add`](crate::block::graph::add).
pub fn create(name: &str, options: NullOptions) -> Result<NodeId, Refusal> {
    if !options.block.is_power_of_two() || !(512..=65536).contains(&options.block) {
        return Err(Refusal::new(name, Reason::Node(BlockError::Invalid)));
    }
    let null = instance::take(&ARENA, |null| &null.place, "null nodes")?;
    null.size.store(
        options.size - options.size % u64::from(options.block),
        Ordering::Relaxed,
    );
    null.block
        .store(u64::from(options.block), Ordering::Relaxed);
    null.read_zeroes
        .store(options.read_zeroes, Ordering::Relaxed);
    null.latency_ns.store(options.latency_ns, Ordering::Relaxed);
    instance::build(name, null, &null.place, &[])
}

/// Prepares the delays of `core`.
pub(crate) fn start(core: CoreId) -> Result<(), BlockError> {
    for (index, null) in ARENA.iter().enumerate() {
        let delayed = null.delayed.get(core);
        delayed.bind(core);
        let timer = aio::context(core)
            .timer("null latency", Callback::new(&expired, index))
            .map_err(|_| BlockError::NoMemory)?;
        delayed.with(|delayed| delayed.timer = Some(timer));
    }
    Ok(())
}

fn expired(index: usize) {
    let (Some(core), Some(null)) = (arch::current_core(), ARENA.get(index)) else {
        return;
    };
    let now = arch::now_ns();
    loop {
        let due = null.delayed.get(core).with(|delayed| {
            let request = delayed.queue.pop()?;
            if request.due_ns <= now {
                return Some(request);
            }
            if let Some(timer) = delayed.timer {
                timer.arm_at(request.due_ns);
            }
            delayed.queue.push_front(request);
            None
        });
        let Some(request) = due else { return };
        complete(request, Ok(()));
    }
}

impl Null {
    const fn new() -> Self {
        Self {
            place: Place::new(),
            size: AtomicU64::new(0),
            block: AtomicU64::new(0),
            read_zeroes: AtomicBool::new(false),
            latency_ns: AtomicU64::new(0),
            delayed: CoreArray::new(
                [const {
                    CachePadded::new(HomeCell::new(Delayed {
                        queue: RequestQueue::new(),
                        timer: None,
                    }))
                }; MAX_CORES],
            ),
        }
    }
}

impl Layer for Null {
    fn completed(&'static self, mut request: Request) -> Ascent {
        request.leave();
        Ascent::Up(request)
    }
}

impl NodeDriver for Null {
    fn info(&self) -> NodeInfo {
        let block = self.block.load(Ordering::Relaxed) as u32;
        NodeInfo {
            kind: "null",
            size: self.size.load(Ordering::Relaxed),
            logical_block: block,
            physical_block: block,
            optimal_io: 0,
            discard_align: block,
            read_only: false,
            discard: true,
            fast_zeroes: true,
            writeback: false,
            cost: 0,
            depth: 0,
        }
    }

    fn submit(&'static self, mut request: Request) {
        if request.operation == Operation::Read && self.read_zeroes.load(Ordering::Relaxed) {
            request.for_each_slice_mut(|slice| slice.fill(0));
        }
        let latency = self.latency_ns.load(Ordering::Relaxed);
        let core = request.home;
        if latency == 0 || arch::current_core() != Some(core) {
            return complete(request, Ok(()));
        }
        request.due_ns = arch::now_ns().saturating_add(latency);
        self.delayed.get(core).with(|delayed| {
            if let (true, Some(timer)) = (delayed.queue.is_empty(), delayed.timer) {
                timer.arm_at(request.due_ns);
            }
            delayed.queue.push(request);
        });
    }

    fn block_status(&self, _offset: u64, len: u64) -> BlockStatus {
        let zero = self.read_zeroes.load(Ordering::Relaxed);
        BlockStatus {
            len,
            hole: zero,
            zero,
        }
    }
    fn release(&'static self) {
        self.place.give_back();
    }
}

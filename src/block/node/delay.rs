//! The delay node: holds each request for a time before its child gets it.
//!
//! An instrument: it makes a fast disk slow. A request waits on the core that it is on; the times can be changed at any moment and
//! then hold for what waits already, where that makes it shorter. A drained section lets everything go at once: whoever drains does
//! not wait for an instrument.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::instance::{self, Place};
use super::{Ascent, BlockStatus, Layer, NodeDriver, NodeId, NodeInfo};
use crate::aio::{self, BottomHalf, Callback, Timer};
use crate::arch::{self, CoreId};
use crate::block::graph::{Link, Refusal};
use crate::block::{BlockError, Operation, Request, RequestQueue, core_state};
use crate::config::{DELAYS, MAX_CORES};
use crate::sync::{CachePadded, CoreArray, HomeCell, IrqLock};

/// How long requests are held, in ns; 0: not at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latencies {
    /// Reads.
    pub read: u64,
    /// Writes, write-zeroes, discards.
    pub write: u64,
    /// Flushes.
    pub flush: u64,
}

/// What a delay is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DelayOptions {
    /// What gets the requests.
    pub child: NodeId,
    /// When.
    pub latencies: Latencies,
}

/// Reads, writes, flushes: each sort waits equally long, so the oldest of a sort is the next.
const SORTS: usize = 3;

fn sort(operation: Operation) -> usize {
    match operation {
        Operation::Read => 0,
        Operation::Write | Operation::WriteZeroes | Operation::Discard => 1,
        Operation::Flush => 2,
    }
}

/// What one core holds.
struct Held {
    queues: [RequestQueue; SORTS],
    timer: Option<Timer>,
}

/// A node that waits.
pub struct Delay {
    place: Place,
    links: [Link; 1],
    latencies: [AtomicU64; SORTS],
    /// In a drained section: nothing is held.
    open: AtomicBool,
    held: CoreArray<HomeCell<Held>>,
}

static ARENA: [Delay; DELAYS] = [const { Delay::new() }; DELAYS];

/// Makes each core look at what it holds again.
static LOOK: CoreArray<IrqLock<Option<BottomHalf>>> =
    CoreArray::new([const { CachePadded::new(IrqLock::new(None)) }; MAX_CORES]);

/// Makes a delay. Main loop only.
///
/// # Errors
/// No delay is left; those of [`graph::add`](crate::block::graph::add) and [`graph::attach`](crate::block::graph::attach).
pub fn create(name: &str, options: DelayOptions) -> Result<NodeId, Refusal> {
    let delay = instance::take(&ARENA, |delay| &delay.place, "delays")?;
    delay.set(options.latencies);
    delay.open.store(false, Ordering::Relaxed);
    instance::build(name, delay, &delay.place, &[options.child])
}

/// Changes the times of a delay. Any core.
///
/// # Errors
/// `NoMedium` for another node.
pub fn set(id: NodeId, latencies: Latencies) -> Result<(), BlockError> {
    let delay = of(id).ok_or(BlockError::NoMedium)?;
    delay.set(latencies);
    look_everywhere();
    Ok(())
}

/// The times of a delay; `None` for another node.
pub fn latencies(id: NodeId) -> Option<Latencies> {
    let delay = of(id)?;
    let [read, write, flush] = &delay.latencies;
    Some(Latencies {
        read: read.load(Ordering::Relaxed),
        write: write.load(Ordering::Relaxed),
        flush: flush.load(Ordering::Relaxed),
    })
}

fn of(id: NodeId) -> Option<&'static Delay> {
    ARENA.iter().find(|delay| delay.place.is(id))
}

/// Prepares the timers of `core`.
pub(crate) fn start(core: CoreId) -> Result<(), BlockError> {
    let context = aio::context(core);
    for (index, delay) in ARENA.iter().enumerate() {
        let held = delay.held.get(core);
        held.bind(core);
        let timer = context
            .timer("delay", Callback::new(&expired, index))
            .map_err(|_| BlockError::NoMemory)?;
        held.with(|held| held.timer = Some(timer));
    }
    let look = context
        .bottom_half("delay", Callback::new(&look, core))
        .map_err(|_| BlockError::NoMemory)?;
    *LOOK.get(core).lock() = Some(look);
    Ok(())
}

fn look_everywhere() {
    let started = core_state::started();
    for core in (0..MAX_CORES).filter(|core| started & (1 << core) != 0) {
        let look = *LOOK.get(core).lock();
        if let Some(look) = look {
            look.schedule();
        }
    }
}

/// The times have changed, or a drained section has begun.
fn look(core: CoreId) {
    for delay in &ARENA {
        delay.shorten(core);
        delay.let_go(core);
    }
}

fn expired(index: usize) {
    if let (Some(core), Some(delay)) = (arch::current_core(), ARENA.get(index)) {
        delay.let_go(core);
    }
}

impl Delay {
    const fn new() -> Self {
        Self {
            place: Place::new(),
            links: [Link::new()],
            latencies: [const { AtomicU64::new(0) }; SORTS],
            open: AtomicBool::new(false),
            held: CoreArray::new(
                [const {
                    CachePadded::new(HomeCell::new(Held {
                        queues: [const { RequestQueue::new() }; SORTS],
                        timer: None,
                    }))
                }; MAX_CORES],
            ),
        }
    }

    fn set(&self, latencies: Latencies) {
        let all = [latencies.read, latencies.write, latencies.flush];
        for (place, ns) in self.latencies.iter().zip(all) {
            place.store(ns, Ordering::Relaxed);
        }
    }

    /// Nothing waits longer than it would if it came now; the order by age stays one by time.
    fn shorten(&self, core: CoreId) {
        let now = arch::now_ns();
        self.held.get(core).with(|held| {
            for (queue, latency) in held.queues.iter_mut().zip(&self.latencies) {
                let most = now.saturating_add(latency.load(Ordering::Relaxed));
                let mut all = queue.take();
                while let Some(mut request) = all.pop() {
                    request.due_ns = request.due_ns.min(most);
                    queue.push(request);
                }
            }
        });
    }

    /// Sends what has waited long enough on its way, and arms the timer for the rest.
    fn let_go(&'static self, core: CoreId) {
        let now = if self.open.load(Ordering::Acquire) {
            u64::MAX
        } else {
            arch::now_ns()
        };
        loop {
            let due = self.held.get(core).with(|held| {
                let mut next = u64::MAX;
                for queue in &mut held.queues {
                    let Some(request) = queue.pop() else { continue };
                    if request.due_ns <= now {
                        return Some(request);
                    }
                    next = next.min(request.due_ns);
                    queue.push_front(request);
                }
                if let (Some(timer), true) = (held.timer, next != u64::MAX) {
                    timer.arm_at(next);
                }
                None
            });
            // The borrow is over before the child sees it.
            let Some(request) = due else { return };
            self.links[0].submit(request);
        }
    }
}

impl Layer for Delay {
    fn completed(&'static self, mut request: Request) -> Ascent {
        request.leave();
        Ascent::Up(request)
    }
}

impl NodeDriver for Delay {
    fn info(&self) -> NodeInfo {
        NodeInfo {
            kind: "delay",
            ..instance::info_below(&self.links[0])
        }
    }

    #[inline]
    fn submit(&'static self, mut request: Request) {
        let sort = sort(request.operation);
        let latency = self.latencies[sort].load(Ordering::Relaxed);
        let Some(core) = arch::current_core() else {
            return self.links[0].submit(request);
        };
        if latency == 0 || self.open.load(Ordering::Acquire) {
            return self.links[0].submit(request);
        }
        request.due_ns = arch::now_ns().saturating_add(latency).min(u64::MAX - 1);
        self.held.get(core).with(|held| {
            if let Some(timer) = held.timer {
                timer.anticipate(request.due_ns);
            }
            held.queues[sort].push(request);
        });
    }

    fn block_status(&self, offset: u64, len: u64) -> BlockStatus {
        instance::status_below(&self.links[0], offset, len)
    }

    fn links(&'static self) -> &'static [Link] {
        &self.links
    }

    fn drain_begin(&'static self) {
        self.open.store(true, Ordering::Release);
        look_everywhere();
    }

    fn drain_end(&'static self) {
        self.open.store(false, Ordering::Release);
    }

    fn release(&'static self) {
        self.place.give_back();
    }
}

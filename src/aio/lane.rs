//! Lanes into a context: one ring a sending core, so that no two cores ever write the same one.
//!
//! An item is in at most one lane once (its *pending* flag sees to that) and a lane has more places than there are
//! items, so a lane is never full. Order is FIFO per sender (CS-18).
//!
//! What the home core sends itself needs no handshake: a lane of its own, which is read and written by that core only.
//! It is emptied after the others, because what the home core sent before it was attached lies in one of those.
//!
//! Not `heapless::spsc`: it enqueues through a `Producer` split off a `&'static mut Queue`, which a context in a shared
//! static cannot lend to each core without `unsafe` or a lock, and it does not show the tail, by which batches end.
#![forbid(unsafe_code)]

use crate::arch::{self, CoreId};
use crate::config::{BOTTOM_HALVES, COROUTINES, MAX_CORES, ONESHOTS};
use crate::sync::IrqLock;
use crate::sync::atomic::{AtomicU16, AtomicU32, Ordering};

/// Bottom halves that the loop itself owns; see [`super::bottom_half::Internal`].
pub(super) const INTERNALS: usize = 4;

/// Records of a context: bottom halves, one-shots, internal ones.
pub(super) const RECORDS: usize = BOTTOM_HALVES + ONESHOTS + INTERNALS;

/// Coroutine slots of all contexts; a coroutine can wait in any context's lanes.
pub(super) const COROUTINE_SLOTS: usize = COROUTINES * MAX_CORES;

/// What can be queued: a record of the context, or a coroutine.
pub(super) const ITEMS: usize = RECORDS + COROUTINE_SLOTS;

/// Places of a lane: more than there are items, a power of two.
const PLACES: usize = (ITEMS + 1).next_power_of_two();
const _: () = assert!(PLACES > ITEMS && PLACES <= 1 << 15);

/// A lane for every core, and one for host threads that are no core.
pub(super) const LANES: usize = MAX_CORES + 1;
const _: () = assert!(LANES <= 16, "lane masks are 16 bits wide");

/// Polls inside polls whose batches are kept apart; deeper ones share the last batch's bounds.
pub(super) const NESTING: usize = 8;

/// One producer at a time (the sending core, interrupts masked), one consumer (the home core).
#[repr(C)]
struct Lane {
    /// Next place to write; written by the producer.
    tail: AtomicU32,
    /// Next place to read; written by the home core.
    head: AtomicU32,
    places: [AtomicU16; PLACES],
}

impl Lane {
    const fn new() -> Self {
        Self {
            tail: AtomicU32::new(0),
            head: AtomicU32::new(0),
            places: [const { AtomicU16::new(0) }; PLACES],
        }
    }

    #[inline]
    fn push(&self, item: u16) {
        let tail = self.tail.load(Ordering::Relaxed);
        debug_assert!(
            tail.wrapping_sub(self.head.load(Ordering::Relaxed)) < PLACES as u32,
            "a lane is full"
        );
        self.places[tail as usize % PLACES].store(item, Ordering::Relaxed);
        // Publishes the place, and all that the sender wrote before (BH-3).
        self.tail.store(tail.wrapping_add(1), Ordering::Release);
    }

    /// As [`push`](Self::push), where producer and consumer are the same core: all it has to bear is an interrupt
    /// handler between its steps, which takes the place after this one.
    #[inline]
    fn push_own(&self, item: u16) {
        let tail = self.tail.fetch_add(1, Ordering::Relaxed);
        debug_assert!(
            tail.wrapping_sub(self.head.load(Ordering::Relaxed)) < PLACES as u32,
            "a lane is full"
        );
        self.places[tail as usize % PLACES].store(item, Ordering::Relaxed);
    }

    /// The item at the head unless the head has reached `end`.
    #[inline]
    fn pop_before(&self, end: u32) -> Option<u16> {
        let head = self.head.load(Ordering::Relaxed);
        // A nested poll may have gone beyond `end` already.
        if (end.wrapping_sub(head) as i32) <= 0 {
            return None;
        }
        let item = self.places[head as usize % PLACES].load(Ordering::Relaxed);
        self.head.store(head.wrapping_add(1), Ordering::Relaxed);
        Some(item)
    }
}

/// The bounds of one batch: how far each lane in `lanes`, and then the home core's own, is worked through.
#[repr(C)]
struct Batch {
    lanes: AtomicU16,
    own_end: AtomicU32,
    ends: [AtomicU32; LANES],
}

/// All lanes of a context, and the batches of its (nested) polls. What every turn looks at comes first: it is reached
/// without address arithmetic.
#[repr(C)]
pub(super) struct Lanes {
    /// Bit n: lane n got something since its last snapshot.
    signal: AtomicU32,
    /// Batches begun and not finished, outermost first; written by the home core.
    depth: AtomicU32,
    /// How far the own lane belongs to batches that have begun; written by the home core.
    taken: AtomicU32,
    /// What the home core sends itself.
    own: Lane,
    batches: [Batch; NESTING],
    lanes: [Lane; LANES],
    /// Makes host threads that are no core take turns in the last lane.
    outsiders: IrqLock<()>,
}

impl Lanes {
    pub(super) const fn new() -> Self {
        Self {
            signal: AtomicU32::new(0),
            depth: AtomicU32::new(0),
            taken: AtomicU32::new(0),
            own: Lane::new(),
            lanes: [const { Lane::new() }; LANES],
            outsiders: IrqLock::new(()),
            batches: [const {
                Batch {
                    lanes: AtomicU16::new(0),
                    own_end: AtomicU32::new(0),
                    ends: [const { AtomicU32::new(0) }; LANES],
                }
            }; NESTING],
        }
    }

    /// Queues `item` behind what the home core queued before. Home core only, interrupt handlers too.
    #[inline]
    pub(super) fn push_own(&self, item: usize) {
        self.own.push_own(item as u16);
    }

    /// Queues `item` behind what this core, `sender`, queued before. Any core but the home core, interrupt handlers,
    /// any host thread.
    #[inline]
    pub(super) fn push_from(&self, sender: Option<CoreId>, item: usize) {
        let lane = match sender {
            Some(core) => {
                // An interrupt handler of this core may push into the same lane.
                let irq = arch::irq_mask();
                self.lanes[core].push(item as u16);
                arch::irq_restore(irq);
                core
            }
            None => {
                let _turn = self.outsiders.lock();
                self.lanes[MAX_CORES].push(item as u16);
                MAX_CORES
            }
        };
        // After the tail. The home core's exchange either reads this write, and then sees the tail, or comes before
        // it, and then the bit stays for the next batch.
        self.signal.fetch_or(1 << lane, Ordering::Release);
    }

    /// Whether nothing was queued since the last batch and no outer batch is unfinished. Plain loads.
    #[inline]
    pub(super) fn is_quiet(&self) -> bool {
        !self.signalled() && self.depth.load(Ordering::Relaxed) == 0
    }

    /// Whether something was queued since the last batch began. Plain loads, also for the watchdog of any core.
    #[inline]
    pub(super) fn signalled(&self) -> bool {
        self.own.tail.load(Ordering::Relaxed) != self.taken.load(Ordering::Relaxed)
            || self.signal.load(Ordering::Relaxed) != 0
    }

    /// Begins a batch: everything queued until now. Returns the depth to give to [`end_batch`](Self::end_batch), or
    /// `None` when there is nothing to do. Home core only.
    #[inline]
    pub(super) fn begin_batch(&self) -> Option<u32> {
        let depth = self.depth.load(Ordering::Relaxed);
        if depth != 0 || self.signal.load(Ordering::Relaxed) != 0 {
            return self.begin_any_batch(depth);
        }
        // Mostly there is nothing but what the home core sent itself. `batch.lanes` is 0 since the last batch ended.
        let own_end = self.own.tail.load(Ordering::Relaxed);
        self.batches[0].own_end.store(own_end, Ordering::Relaxed);
        self.taken.store(own_end, Ordering::Relaxed);
        self.depth.store(1, Ordering::Relaxed);
        Some(0)
    }

    /// As [`begin_batch`](Self::begin_batch), inside outer batches and with items from other cores.
    #[inline(never)]
    fn begin_any_batch(&self, depth: u32) -> Option<u32> {
        if !self.signalled() {
            // A nested poll still works through the outer batches (BH-15).
            return (depth > 0).then_some(depth);
        }
        let mut lanes = match self.signal.load(Ordering::Relaxed) {
            0 => 0,
            _ => self.signal.swap(0, Ordering::Acquire),
        };
        let level = depth.min(NESTING as u32 - 1);
        let batch = &self.batches[level as usize];
        let shared = if depth > level {
            batch.lanes.load(Ordering::Relaxed)
        } else {
            0
        };
        batch.lanes.store(shared | lanes as u16, Ordering::Relaxed);
        let own_end = self.own.tail.load(Ordering::Relaxed);
        batch.own_end.store(own_end, Ordering::Relaxed);
        self.taken.store(own_end, Ordering::Relaxed);
        while lanes != 0 {
            let lane = lanes.trailing_zeros() as usize;
            lanes &= lanes - 1;
            batch.ends[lane].store(
                self.lanes[lane].tail.load(Ordering::Acquire),
                Ordering::Relaxed,
            );
        }
        self.depth.store(level + 1, Ordering::Relaxed);
        Some(depth)
    }

    /// The next item of the outermost batch. Home core only.
    #[inline]
    pub(super) fn next(&self) -> Option<usize> {
        self.next_of(&self.batches[0])
    }

    /// The next item of a nested batch, or of one around it: of the oldest unfinished one first. Home core only.
    pub(super) fn next_nested(&self) -> Option<usize> {
        let depth = self.depth.load(Ordering::Relaxed) as usize;
        self.batches[..depth]
            .iter()
            .find_map(|batch| self.next_of(batch))
    }

    #[inline]
    fn next_of(&self, batch: &Batch) -> Option<usize> {
        if batch.lanes.load(Ordering::Relaxed) != 0
            && let Some(item) = self.next_sent(batch)
        {
            return Some(item);
        }
        let item = self.own.pop_before(batch.own_end.load(Ordering::Relaxed))?;
        Some(item as usize)
    }

    /// The next item that came from another core.
    #[inline(never)]
    fn next_sent(&self, batch: &Batch) -> Option<usize> {
        let mut lanes = batch.lanes.load(Ordering::Relaxed);
        while lanes != 0 {
            let lane = lanes.trailing_zeros() as usize;
            if let Some(item) =
                self.lanes[lane].pop_before(batch.ends[lane].load(Ordering::Relaxed))
            {
                return Some(item as usize);
            }
            lanes &= lanes - 1;
            batch.lanes.store(lanes, Ordering::Relaxed);
        }
        None
    }

    /// Ends the batch that `begin_batch` returned `depth` for; by now it and the outer ones are worked through.
    #[inline]
    pub(super) fn end_batch(&self, depth: u32) {
        self.depth.store(depth, Ordering::Relaxed);
    }

    /// Calls `f` with every queued item, outer batches included, until it returns true. Home core only.
    pub(super) fn any_queued(&self, mut f: impl FnMut(usize) -> bool) -> bool {
        self.lanes.iter().chain([&self.own]).any(|lane| {
            let tail = lane.tail.load(Ordering::Acquire);
            let mut head = lane.head.load(Ordering::Relaxed);
            while head != tail {
                if f(lane.places[head as usize % PLACES].load(Ordering::Relaxed) as usize) {
                    return true;
                }
                head = head.wrapping_add(1);
            }
            false
        })
    }
}

/// The lanes alone, for `tests/models`.
#[cfg(loom)]
pub mod model {
    use super::Lanes;
    use crate::arch;

    /// All lanes of a context, without the context.
    pub struct LaneModel(Lanes);

    impl LaneModel {
        /// Nothing queued.
        #[expect(clippy::new_without_default, reason = "made in statics")]
        pub const fn new() -> Self {
            Self(Lanes::new())
        }

        /// Queues `item`.
        pub fn push(&self, item: usize) {
            self.0.push_from(arch::current_core(), item);
        }

        /// Takes one batch off the lanes and calls `f` with each item; false when there was none.
        pub fn batch(&self, mut f: impl FnMut(usize)) -> bool {
            if self.0.is_quiet() {
                return false;
            }
            let Some(depth) = self.0.begin_batch() else {
                return false;
            };
            while let Some(item) = self.0.next() {
                f(item);
            }
            self.0.end_batch(depth);
            true
        }
    }
}

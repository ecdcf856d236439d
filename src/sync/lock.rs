//! The context lock: recursive, strictly first come first served, and quiet: who waits long sleeps.
//!
//! Tickets: `tail` is the next one to hand out, `head` the one being served (LCK-1…4: compared for equality only, so
//! they may wrap). A waiter spins a few hundred turns while it is next; then it registers its core in the slot of its
//! ticket and sleeps. Pure spinning collapses when there are more virtual cores than real ones.
//!
//! ```text
//!  waiter                                 holder, outermost release
//!  slot[ticket] = core                    head = ticket
//!  fence(SeqCst)                    (A)   fence(SeqCst)                    (B)
//!  head == ticket ? -> has the lock       slot[ticket] registered ? -> kick that core
//!  masked wait, look again
//! ```
//! (A) and (B) are a store→load pair on each side: in every order of the two fences at least one side sees the
//! other's store, so either the waiter sees that it is served, or the holder sees that it sleeps. The kick is sticky
//! and the wait is masked, so a kick between the look and the sleep ends the sleep.
//!
//! Interrupt handlers never take it. Taking it does not end anybody's `poll`, and a waiter's kick goes to the waiter.
//!
//! Debug builds check the order between contexts' locks; see `order`.
#![forbid(unsafe_code)]

#[cfg(all(debug_assertions, not(loom)))]
use core::panic::Location;

use super::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
#[cfg(all(debug_assertions, not(loom)))]
use super::order::Rank;
use super::{CachePadded, CoreArray};
use crate::arch::{self, CoreId};
use crate::config::MAX_CORES;

/// Turns that the next waiter spins before it sleeps.
const SPINS: u32 = if cfg!(loom) {
    1
} else if cfg!(preempt) {
    2
} else {
    300
};

/// One slot a ticket that can be outstanding at once: a core has at most one.
const SLOTS: usize = MAX_CORES.next_power_of_two();

/// `owner` of a free lock; else it is the core plus one. All zeros is a free lock, so statics lie in `.bss`.
const NOBODY: usize = 0;

/// Levels of any context lock that callers on each core hold, to see that a callback gave back what it took. What the
/// event loops take for themselves while they dispatch does not count: it is the same before and after a callback.
static HELD: CoreArray<AtomicU32> =
    CoreArray::new([const { CachePadded::new(AtomicU32::new(0)) }; MAX_CORES]);

/// How many levels of context locks callers on the current core hold, over all contexts, beside those of the event
/// loops that run there: what a callback took, or whoever called `poll` from outside.
#[inline]
pub fn caller_levels() -> u32 {
    HELD.mine().map_or(0, |held| held.load(Ordering::Relaxed))
}

/// What [`caller_levels`] reads on `core`.
#[inline]
pub(crate) fn held_on(core: CoreId) -> &'static AtomicU32 {
    HELD.get(core)
}

/// `core` took a level more.
#[inline]
fn count_taken(core: CoreId) {
    let held = HELD.get(core);
    held.store(
        held.load(Ordering::Relaxed).wrapping_add(1),
        Ordering::Relaxed,
    );
}

/// A recursive FIFO lock between cores.
pub struct ContextLock {
    /// The ticket being served.
    head: AtomicU32,
    /// The next ticket to hand out.
    tail: AtomicU32,
    /// The core that holds it plus one, or [`NOBODY`].
    owner: AtomicUsize,
    /// Levels held; written by the owner only.
    depth: AtomicU32,
    /// When the outermost level was taken; written by the owner only, 0 when nobody looks.
    since_ns: AtomicU64,
    high_water_ns: AtomicU64,
    /// Sleeping waiters: `ticket << 32 | core + 1`, at `ticket % SLOTS`; 0: nobody.
    sleepers: [AtomicU64; SLOTS],
    #[cfg(all(debug_assertions, not(loom)))]
    rank: Rank,
}

impl ContextLock {
    /// A free lock.
    pub const fn new() -> Self {
        Self {
            head: AtomicU32::new(0),
            tail: AtomicU32::new(0),
            owner: AtomicUsize::new(NOBODY),
            depth: AtomicU32::new(0),
            since_ns: AtomicU64::new(0),
            high_water_ns: AtomicU64::new(0),
            sleepers: [const { AtomicU64::new(0) }; SLOTS],
            #[cfg(all(debug_assertions, not(loom)))]
            rank: Rank::new(),
        }
    }

    /// It is the lock of the context whose home is `core`; for the check of the lock order.
    pub(crate) fn belongs_to(&self, core: CoreId) {
        #[cfg(all(debug_assertions, not(loom)))]
        self.rank.set(core);
        let _ = core;
    }

    /// A free lock whose next ticket is `ticket`: for tests of what happens when tickets wrap.
    pub fn starting_at(ticket: u32) -> Self {
        let lock = Self::new();
        lock.head.store(ticket, Ordering::Relaxed);
        lock.tail.store(ticket, Ordering::Relaxed);
        lock
    }

    /// Takes one level; waits, in order of arrival, while another core has it.
    ///
    /// # Panics
    /// In an interrupt handler and on a thread that is no core. In debug builds also when it would have to be waited
    /// for with interrupts masked, and when it is taken out of order: only the main loop's core may hold the locks of
    /// several contexts beside the main loop's.
    #[cfg_attr(debug_assertions, track_caller)]
    pub fn acquire(&self) {
        let core = self.caller();
        if self.enter(core) {
            self.since_ns
                .store(arch::now_ns().max(1), Ordering::Relaxed);
        }
        count_taken(core);
    }

    /// As [`acquire`](Self::acquire), for the level of the event loop on `core`, the current one, which has seen that
    /// it is in no interrupt handler. Its held time is not measured, because reading the clock twice a turn would cost
    /// more than the lock.
    #[inline]
    #[cfg_attr(debug_assertions, track_caller)]
    pub(crate) fn acquire_for_loop(&self, core: CoreId) {
        self.enter(core);
    }

    /// Gives back what [`acquire_for_loop`](Self::acquire_for_loop) took.
    #[inline(always)]
    pub(crate) fn release_for_loop(&self, core: CoreId) {
        self.leave(core);
    }

    /// Takes one level if nobody else holds or waits for the lock. It never waits, so any order is right.
    #[cfg_attr(debug_assertions, track_caller)]
    pub fn try_acquire(&self) -> bool {
        let core = self.caller();
        if self.owner.load(Ordering::Relaxed) == core + 1 {
            self.deepen();
            count_taken(core);
            return true;
        }
        let ticket = self.head.load(Ordering::Relaxed);
        if self
            .tail
            .compare_exchange(
                ticket,
                ticket.wrapping_add(1),
                Ordering::Acquire,
                Ordering::Relaxed,
            )
            .is_err()
        {
            return false;
        }
        // Ours is the ticket being served. The acquire below pairs with the release of `head` by the last holder.
        let served = self.head.load(Ordering::Acquire);
        debug_assert_eq!(served, ticket);
        self.take(core);
        self.since_ns
            .store(arch::now_ns().max(1), Ordering::Relaxed);
        count_taken(core);
        true
    }

    /// Gives one level back; the outermost one lets the next waiter in.
    ///
    /// # Panics
    /// On a core that does not hold it.
    pub fn release(&self) {
        let core = arch::current_core().expect("a context lock is released by cores only");
        self.leave(core);
        // Below zero when a callback gives back a level of the loop's: then it is seen to have done so.
        let held = HELD.get(core);
        held.store(
            held.load(Ordering::Relaxed).wrapping_sub(1),
            Ordering::Relaxed,
        );
    }

    #[inline(always)]
    fn leave(&self, core: CoreId) {
        if self.owner.load(Ordering::Relaxed) != core + 1 {
            not_held(core);
        }
        let depth = self.depth.load(Ordering::Relaxed).wrapping_sub(1);
        self.depth.store(depth, Ordering::Relaxed);
        if depth > 0 {
            return;
        }
        let since = self.since_ns.load(Ordering::Relaxed);
        if since != 0 {
            self.measure(since);
        }
        #[cfg(all(debug_assertions, not(loom)))]
        self.rank.released(core);
        self.owner.store(NOBODY, Ordering::Relaxed);
        let next = self.head.load(Ordering::Relaxed).wrapping_add(1);
        self.head.store(next, Ordering::Release);
        fence(Ordering::SeqCst); // (B)
        let sleeper = self.sleepers[next as usize % SLOTS].load(Ordering::Relaxed);
        if sleeper != 0 && (sleeper >> 32) as u32 == next {
            arch::kick((sleeper as u32 - 1) as CoreId);
        }
    }

    /// The outermost level, taken at `since`, is given back. The marks are the owner's, so plain stores do.
    #[inline(never)]
    fn measure(&self, since: u64) {
        self.since_ns.store(0, Ordering::Relaxed);
        let held = arch::now_ns().saturating_sub(since);
        if held > self.high_water_ns.load(Ordering::Relaxed) {
            self.high_water_ns.store(held, Ordering::Relaxed);
        }
    }

    /// Whether the current core holds it.
    #[inline]
    pub fn is_held_by_me(&self) -> bool {
        arch::current_core().is_some_and(|core| self.owner.load(Ordering::Relaxed) == core + 1)
    }

    /// Levels that the holder has; 0 when it is free.
    pub fn depth(&self) -> u32 {
        self.depth.load(Ordering::Relaxed)
    }

    /// Whether a core waits for it (or is just getting it).
    #[inline]
    pub fn has_waiters(&self) -> bool {
        let ahead = self
            .tail
            .load(Ordering::Relaxed)
            .wrapping_sub(self.head.load(Ordering::Relaxed));
        ahead > u32::from(self.owner.load(Ordering::Relaxed) != NOBODY)
    }

    /// Tickets handed out and not served to the end: the holder and the waiters. For tests.
    pub fn queued(&self) -> u32 {
        self.tail
            .load(Ordering::SeqCst)
            .wrapping_sub(self.head.load(Ordering::SeqCst))
    }

    /// The longest time, in nanoseconds, for which an [`acquire`](Self::acquire) kept the lock.
    pub fn high_water_ns(&self) -> u64 {
        self.high_water_ns.load(Ordering::Relaxed)
    }

    #[inline]
    fn caller(&self) -> CoreId {
        assert!(
            !arch::in_interrupt(),
            "a context lock was taken in an interrupt handler"
        );
        arch::current_core().expect("a context lock is taken by cores only")
    }

    /// Takes one level; true when it is the outermost.
    #[inline]
    #[cfg_attr(debug_assertions, track_caller)]
    fn enter(&self, core: CoreId) -> bool {
        // Nobody but this core ever writes this core's id here, so the answer cannot change meanwhile. Recursion
        // takes no ticket: it never queues behind waiters (LCK-3).
        if self.owner.load(Ordering::Relaxed) == core + 1 {
            self.deepen();
            return false;
        }
        #[cfg(all(debug_assertions, not(loom)))]
        self.rank.check(core, Location::caller());
        let ticket = self.tail.fetch_add(1, Ordering::Relaxed);
        if self.head.load(Ordering::Acquire) != ticket {
            self.wait_for(ticket, core);
        }
        self.take(core);
        true
    }

    #[inline]
    #[cfg_attr(debug_assertions, track_caller)]
    fn take(&self, core: CoreId) {
        debug_assert_eq!(self.depth.load(Ordering::Relaxed), 0);
        self.owner.store(core + 1, Ordering::Relaxed);
        #[cfg(all(debug_assertions, not(loom)))]
        self.rank.taken(core, Location::caller());
        self.depth.store(1, Ordering::Relaxed);
    }

    #[inline]
    fn deepen(&self) {
        let depth = self.depth.load(Ordering::Relaxed);
        assert!(depth < u32::MAX, "a context lock was taken too deep");
        self.depth.store(depth + 1, Ordering::Relaxed);
    }

    #[cold]
    fn wait_for(&self, ticket: u32, core: CoreId) {
        debug_assert!(
            !arch::irq_masked(),
            "a context lock was waited for with interrupts masked"
        );
        let mut spins = 0;
        // Only the next in line spins: the others would have to wait for a whole turn of somebody else.
        while self.head.load(Ordering::Relaxed).wrapping_add(1) == ticket && spins < SPINS {
            arch::relax();
            spins += 1;
        }
        if self.head.load(Ordering::Acquire) == ticket {
            return;
        }
        let slot = &self.sleepers[ticket as usize % SLOTS];
        slot.store(
            u64::from(ticket) << 32 | (core as u64 + 1),
            Ordering::Relaxed,
        );
        fence(Ordering::SeqCst); // (A)
        loop {
            let irq = arch::irq_mask();
            let served = self.head.load(Ordering::Acquire) == ticket;
            if !served {
                arch::wait(None);
            }
            // Interrupts that ended the wait are handled here.
            arch::irq_restore(irq);
            if served {
                break;
            }
        }
        // Ours alone until we release: the next user of this slot has ticket + SLOTS.
        slot.store(0, Ordering::Relaxed);
    }
}

#[cold]
#[inline(never)]
fn not_held(core: CoreId) -> ! {
    panic!("a context lock was released by core {core}, which does not hold it");
}

impl Default for ContextLock {
    fn default() -> Self {
        Self::new()
    }
}

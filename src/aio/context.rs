//! The context: one event loop, whose home is one core.
#![forbid(unsafe_code)]

use core::ptr;

use super::adaptive::{Adaptive, Policy};
use super::bottom_half::Records;
use super::callback::Callback;
use super::elsewhere::WorkLists;
use super::hook::Hooks;
use super::iothread::LoopState;
use super::lane::Lanes;
use super::notifier::Handlers;
use super::timer::Timers;
use super::trace::{Event, trace};
use super::watchdog::Watch;
use crate::arch::{self, CoreId};
use crate::config::MAX_CORES;
use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
use crate::sync::{CachePadded, ContextLock, CoreArray, StaticRef, held_on};

/// The firmware's contexts, one a core; number 0 is the main loop's.
pub static CONTEXTS: [AioContext; MAX_CORES] = [const { AioContext::unnamed() }; MAX_CORES];

/// Which context has its home on which core.
static ATTACHED: CoreArray<StaticRef<AioContext>> =
    CoreArray::new([const { CachePadded::new(StaticRef::new()) }; MAX_CORES]);

const CORE_NAMES: [&str; 8] = ["main", "io1", "io2", "io3", "io4", "io5", "io6", "io7"];
const _: () = assert!(MAX_CORES <= CORE_NAMES.len());

/// The context whose home is `core`; before it was attached, the firmware's context for that core.
///
/// # Panics
/// When `core` is not below `MAX_CORES`.
#[inline]
pub fn context(core: CoreId) -> &'static AioContext {
    ATTACHED.get(core).get().unwrap_or(&CONTEXTS[core])
}

/// The main loop's context: core 0's.
#[inline]
pub fn main_context() -> &'static AioContext {
    context(0)
}

/// A counter that its home core writes and anyone reads.
pub(super) struct Counter(AtomicU64);

impl Counter {
    const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Home core only: no read-modify-write instruction.
    #[inline]
    pub(super) fn bump(&self) {
        self.0
            .store(self.0.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a context counts.
pub(super) struct Counters {
    pub(super) turns: Counter,
    pub(super) bottom_halves: Counter,
    pub(super) handlers: Counter,
    pub(super) timers: Counter,
    pub(super) coroutine_steps: Counter,
    pub(super) sleeps: Counter,
    /// Any core.
    kicks: AtomicU64,
}

/// What a context has done since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ContextStats {
    /// Calls of `poll`.
    pub turns: u64,
    /// Bottom halves run, one-shots included.
    pub bottom_halves: u64,
    /// Handlers called.
    pub handlers: u64,
    /// Timers fired.
    pub timers: u64,
    /// Coroutine steps.
    pub coroutine_steps: u64,
    /// Waits for an interrupt.
    pub sleeps: u64,
    /// Kicks (SGIs) sent to it by `notify`.
    pub kicks: u64,
    /// Looks of the watchdog that found it asleep although there was work for it; see [`AioContext::watch`].
    pub lost_wakeups: u32,
    /// Rounds of busy polling that found something.
    pub poll_hits: u64,
    /// Rounds of busy polling that found nothing.
    pub poll_misses: u64,
    /// Longest time its lock was held by `acquire`, in ns.
    pub lock_high_water_ns: u64,
    /// Bottom halves that exist.
    pub bottom_halves_in_use: usize,
    /// One-shot bottom halves under way.
    pub oneshots_in_use: usize,
    /// Timers that exist.
    pub timers_in_use: usize,
    /// Timers that are armed.
    pub timers_armed: usize,
}

impl ContextStats {
    /// Nothing done yet.
    pub const ZERO: Self = Self {
        turns: 0,
        bottom_halves: 0,
        handlers: 0,
        timers: 0,
        coroutine_steps: 0,
        sleeps: 0,
        kicks: 0,
        lost_wakeups: 0,
        poll_hits: 0,
        poll_misses: 0,
        lock_high_water_ns: 0,
        bottom_halves_in_use: 0,
        oneshots_in_use: 0,
        timers_in_use: 0,
        timers_armed: 0,
    };

    /// What was counted since `before` was taken; gauges and high-water marks as they are now.
    pub fn since(&self, before: &Self) -> Self {
        Self {
            turns: self.turns - before.turns,
            bottom_halves: self.bottom_halves - before.bottom_halves,
            handlers: self.handlers - before.handlers,
            timers: self.timers - before.timers,
            coroutine_steps: self.coroutine_steps - before.coroutine_steps,
            sleeps: self.sleeps - before.sleeps,
            kicks: self.kicks - before.kicks,
            lost_wakeups: self.lost_wakeups - before.lost_wakeups,
            poll_hits: self.poll_hits - before.poll_hits,
            poll_misses: self.poll_misses - before.poll_misses,
            ..*self
        }
    }
}

/// An event loop: bottom halves, notifiers, timers, coroutines and a lock. Its *home core* runs it; other cores send
/// it work and may hold its lock.
///
/// Its fields lie in the order in which a turn needs them, tables last, so that instructions reach what every turn looks
/// at with the offsets that fit into them.
#[repr(C)]
pub struct AioContext {
    /// The home core plus one; 0 before `attach`.
    pub(super) home: AtomicUsize,
    pub(super) lock: ContextLock,
    pub(super) state: LoopState,
    pub(super) counters: Counters,
    /// A wake-up was requested and not accepted yet.
    pub(super) notified: CachePadded<AtomicBool>,
    /// How many polls are between "may sleep" and "finished waiting". Written by the home core.
    pub(super) notify_me: AtomicU32,
    pub(super) lanes: Lanes,
    pub(super) hooks: Hooks,
    pub(super) adaptive: Adaptive,
    pub(super) handlers: Handlers,
    pub(super) timers: Timers,
    pub(super) records: Records,
    pub(super) work: WorkLists,
    pub(super) watch: Watch,
    name: Option<&'static str>,
}

/// One level of a context's lock, given back on drop.
#[must_use = "dropping the guard releases the lock"]
pub struct ContextGuard<'a> {
    context: &'a AioContext,
    /// A lock is released by the core that took it.
    _not_send: core::marker::PhantomData<*const ()>,
}

impl Drop for ContextGuard<'_> {
    fn drop(&mut self) {
        self.context.release();
    }
}

impl AioContext {
    /// A context of its own, for tests and simulations; the firmware's are [`CONTEXTS`].
    pub const fn new(name: &'static str) -> Self {
        let mut context = Self::unnamed();
        context.name = Some(name);
        context
    }

    /// All zeros, so that the firmware's contexts lie in `.bss`.
    const fn unnamed() -> Self {
        Self {
            name: None,
            home: AtomicUsize::new(0),
            lock: ContextLock::new(),
            lanes: Lanes::new(),
            records: Records::new(),
            handlers: Handlers::new(),
            timers: Timers::new(),
            hooks: Hooks::new(),
            adaptive: Adaptive::new(),
            work: WorkLists::new(),
            state: LoopState::new(),
            notified: CachePadded::new(AtomicBool::new(false)),
            notify_me: AtomicU32::new(0),
            counters: Counters {
                turns: Counter::new(),
                bottom_halves: Counter::new(),
                handlers: Counter::new(),
                timers: Counter::new(),
                coroutine_steps: Counter::new(),
                sleeps: Counter::new(),
                kicks: AtomicU64::new(0),
            },
            watch: Watch::new(),
        }
    }

    /// Makes `core` its home: called on that core before its first poll. Work sent before is kept. Again with the
    /// same core is allowed.
    ///
    /// # Panics
    /// When called on another core, or when the context has another home.
    pub fn attach(&'static self, core: CoreId) {
        assert_eq!(
            arch::current_core(),
            Some(core),
            "a context is attached on its own core"
        );
        let home = self
            .home
            .compare_exchange(0, core + 1, Ordering::AcqRel, Ordering::Acquire);
        assert!(
            home.is_ok() || home == Err(core + 1),
            "context {} has its home elsewhere",
            self.name()
        );
        self.lock.belongs_to(core);
        ATTACHED.get(core).set(Some(self));
    }

    /// The context whose home is the current core; `None` before it was attached, and on a host thread that is no
    /// core.
    #[inline]
    pub fn current() -> Option<&'static Self> {
        ATTACHED.mine().and_then(StaticRef::get)
    }

    /// The home core; for a firmware context, also before it was attached.
    ///
    /// # Panics
    /// For a context that is neither attached nor one of [`CONTEXTS`].
    pub fn core(&self) -> CoreId {
        match self.home.load(Ordering::Relaxed) {
            0 => CONTEXTS
                .iter()
                .position(|other| ptr::eq(self, other))
                .expect("the context has no home yet"),
            home => home - 1,
        }
    }

    /// Its name: `main`, `io1` … for the firmware's.
    pub fn name(&self) -> &'static str {
        self.name.unwrap_or_else(|| CORE_NAMES[self.core()])
    }

    /// Whether the current core is its home.
    #[inline]
    pub fn is_home(&self) -> bool {
        self.is_home_of(arch::current_core())
    }

    /// Takes one level of the context's lock: keeps its callbacks from running in parallel. Waits in order of
    /// arrival. Not needed, but allowed, in its own callbacks.
    ///
    /// # Panics
    /// In an interrupt handler, and on a host thread that is no core. In debug builds also out of order, naming both
    /// places: an IOThread's core may hold the lock of one context, its own loop's included, beside the main loop's;
    /// the main loop's core may hold any (ACQ-3). A lock taken inside the main loop's there and around it elsewhere
    /// is an inversion as well.
    #[cfg_attr(debug_assertions, track_caller)]
    pub fn acquire(&self) {
        self.lock.acquire();
    }

    /// Gives one level back.
    ///
    /// # Panics
    /// When the current core does not hold the lock.
    pub fn release(&self) {
        self.lock.release();
    }

    /// [`acquire`](Self::acquire)s until the guard is dropped.
    #[cfg_attr(debug_assertions, track_caller)]
    pub fn lock(&self) -> ContextGuard<'_> {
        self.acquire();
        ContextGuard {
            context: self,
            _not_send: core::marker::PhantomData,
        }
    }

    /// The lock itself, to look at its depth, holder and marks.
    pub fn context_lock(&self) -> &ContextLock {
        &self.lock
    }

    /// Makes the loop look at everything again: ends its wait, now or when it next begins one. Any core, interrupt
    /// handlers too. On its own it is no progress (NFY-8).
    #[inline]
    pub fn notify(&self) {
        // Publishes what the caller wrote before; the loop's accepting exchange reads it. An exchange, not a store: a
        // store would end the release sequence of a notification that is not accepted yet, and its sender's work with it.
        self.notified.swap(true, Ordering::Release);
        // NFY-1: our store of `notified` before our look at `notify_me`, against the loop's store of `notify_me`
        // before its look at `notified`: at least one of us sees the other.
        fence(Ordering::SeqCst);
        if self.notify_me.load(Ordering::Relaxed) != 0 {
            self.kick();
        }
    }

    #[cold]
    fn kick(&self) {
        let home = self.home.load(Ordering::Relaxed);
        if home != 0 {
            self.counters.kicks.fetch_add(1, Ordering::Relaxed);
            trace(Event::Kick, home as u32 - 1, 0);
            arch::kick(home - 1);
        }
    }

    /// After queueing work: as [`notify`](Self::notify), but free on the home core.
    ///
    /// There the loop is not asleep, and it looks at its queues before it sleeps. Only an interrupt handler may have
    /// come between that look and the sleep: it leaves a note, which the loop reads with interrupts masked.
    #[inline]
    pub(super) fn wake(&self) {
        if !self.is_home() {
            self.notify();
        } else if arch::in_interrupt() {
            self.note();
        }
    }

    /// An interrupt handler's note on the home core; see [`wake`](Self::wake).
    #[inline(never)]
    fn note(&self) {
        self.notified.swap(true, Ordering::Release);
    }

    /// Queues `item` and [`wake`](Self::wake)s.
    #[inline]
    pub(super) fn send(&self, item: usize) {
        let sender = arch::current_core();
        if self.is_home_of(sender) {
            self.send_home(item);
        } else {
            self.send_far(sender, item);
        }
    }

    /// [`send`](Self::send) on the home core.
    #[inline]
    pub(super) fn send_home(&self, item: usize) {
        self.lanes.push_own(item);
        if arch::in_interrupt() {
            self.note();
        }
    }

    /// [`send`](Self::send) from any other core, `sender`.
    #[inline(never)]
    pub(super) fn send_far(&self, sender: Option<CoreId>, item: usize) {
        self.lanes.push_from(sender, item);
        self.notify();
    }

    #[inline]
    pub(super) fn is_home_of(&self, core: Option<CoreId>) -> bool {
        core.is_some_and(|core| self.home.load(Ordering::Relaxed) == core + 1)
    }

    /// Whether it takes no work: its loop was stopped, and this is not the home core, which may still poll by hand or
    /// run the loop again.
    #[inline]
    pub(super) fn refuses(&self) -> bool {
        self.state.is_stopped() && !self.is_home()
    }

    /// Calls `callback` and sees that it gave back the locks it took.
    #[inline]
    pub(super) fn call(&self, callback: Callback, name: &'static str) {
        call(
            held_on(self.home.load(Ordering::Relaxed).wrapping_sub(1)),
            callback,
            name,
        );
    }

    /// The budget of adaptive polling: how long, in ns, the loop may look for work before it sleeps; 0 is off.
    /// Forgets what was learnt. Any core, also while the loop runs.
    pub fn set_poll_max_ns(&self, ns: u64) {
        self.set_polling(ns, 0, 0);
    }

    /// As [`set_poll_max_ns`](Self::set_poll_max_ns), with the factor by which a budget grows (0: 2) and the divisor
    /// by which it shrinks (0: to nothing).
    pub fn set_polling(&self, max_ns: u64, grow: u32, shrink: u32) {
        self.adaptive.configure(Policy {
            max_ns,
            grow,
            shrink,
        });
        self.notify();
    }

    /// The budget set by [`set_poll_max_ns`](Self::set_poll_max_ns).
    pub fn poll_max_ns(&self) -> u64 {
        self.adaptive.max_ns()
    }

    /// What it has done since the start.
    pub fn stats(&self) -> ContextStats {
        let (bottom_halves_in_use, oneshots_in_use) = self.records.in_use();
        ContextStats {
            turns: self.counters.turns.get(),
            bottom_halves: self.counters.bottom_halves.get(),
            handlers: self.counters.handlers.get(),
            timers: self.counters.timers.get(),
            coroutine_steps: self.counters.coroutine_steps.get(),
            sleeps: self.counters.sleeps.get(),
            kicks: self.counters.kicks.load(Ordering::Relaxed),
            lost_wakeups: self.watch.lost(),
            poll_hits: self.adaptive.hits.load(Ordering::Relaxed),
            poll_misses: self.adaptive.misses.load(Ordering::Relaxed),
            lock_high_water_ns: self.lock.high_water_ns(),
            bottom_halves_in_use,
            oneshots_in_use,
            timers_in_use: self.timers.in_use(),
            timers_armed: self.timers.armed(),
        }
    }

    /// The names of queued bottom halves, for leak reports (BH-13).
    ///
    /// # Panics
    /// On another core than its home.
    pub fn for_each_queued(&self, mut f: impl FnMut(&'static str)) {
        assert!(
            self.is_home(),
            "queued bottom halves are listed on the home core"
        );
        self.lanes.any_queued(|item| {
            f(if item < super::lane::RECORDS {
                self.records.queued_name(item)
            } else {
                "coroutine"
            });
            false
        });
    }
}

/// As [`AioContext::call`], for a caller that has the core's count of held levels at hand.
#[inline]
pub(super) fn call(held: &AtomicU32, callback: Callback, name: &'static str) {
    let before = held.load(Ordering::Relaxed);
    callback.call();
    if held.load(Ordering::Relaxed) != before {
        unbalanced(name);
    }
}

#[cold]
#[inline(never)]
pub(super) fn unbalanced(name: &'static str) -> ! {
    panic!("{name} returned with other context locks than it was called with");
}

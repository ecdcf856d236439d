//! Timers: for each clock a static pool and a binary heap by (deadline, order of arming).
//!
//! A run samples the clock once and moves what is due to a list; then it calls that list's timers one after another.
//! So a callback that re-arms for "now" waits for the next run whatever the clock's grain (TMR-7), equal deadlines
//! fire in the order of arming (TMR-2), and a nested poll continues the outer run's list.
//!
//! The heap is under an interrupt-safe lock, so any core arms and cancels directly, in O(log n), and notifies the
//! home core only when its timer became the first (TMR-3). The lists run in the order of [`Clock`] (TMR-1).
#![forbid(unsafe_code)]

mod queue;

use queue::{Fire, NOWHERE, PIECE, Queue};

use super::callback::{AioError, Callback};
use super::clock::{self, Clock};
use super::context::{AioContext, call};
use super::trace::{self, Event, trace_on};
use crate::arch::CoreId;
use crate::config::{HOST_TIMERS, TIMERS};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{IndexStack, IrqLock, held_on};

/// The timers of a context on one clock.
#[repr(C)]
struct List<const N: usize> {
    /// [`Queue::earliest`] plus one (0: nothing armed), for the loop to look at without the lock.
    earliest: AtomicU64,
    queue: IrqLock<Queue<N>>,
    free: IndexStack<N>,
}

impl<const N: usize> List<N> {
    const fn new() -> Self {
        Self {
            queue: IrqLock::new(Queue::new()),
            earliest: AtomicU64::new(0),
            free: IndexStack::new(),
        }
    }

    /// The earliest deadline; `u64::MAX` when no timer is armed. A plain load. A change after the look is safe,
    /// because arming an earlier timer notifies (TMR-9).
    #[inline]
    fn earliest(&self) -> u64 {
        self.earliest.load(Ordering::Relaxed).wrapping_sub(1)
    }

    /// Lets `f` change the queue and publishes the earliest deadline.
    #[inline]
    fn change<R>(&self, f: impl FnOnce(&mut Queue<N>) -> R) -> R {
        let mut queue = self.queue.lock();
        let result = f(&mut queue);
        self.earliest
            .store(queue.earliest().wrapping_add(1), Ordering::Relaxed);
        result
    }

    fn create(&self, callback: Callback, name: &'static str) -> Option<(usize, u32)> {
        let index = self.free.take()?;
        let mut queue = self.queue.lock();
        let record = &mut queue.records[index];
        record.body = Some((callback, name));
        Some((index, record.generation))
    }

    /// `Some(true)` when the timer became the first; `None` when the handle is stale.
    fn arm(
        &self,
        index: usize,
        generation: u32,
        deadline_ns: u64,
        only_earlier: bool,
    ) -> Option<bool> {
        self.change(|queue| {
            if !queue.is_live(index, generation) {
                return None;
            }
            let record = &queue.records[index];
            if only_earlier && record.place != NOWHERE && record.deadline_ns <= deadline_ns {
                return Some(false);
            }
            queue.remove(index);
            queue.insert(index, deadline_ns);
            Some(queue.at(0) as usize == index)
        })
    }

    fn cancel(&self, index: usize, generation: u32) {
        self.change(|queue| {
            if queue.is_live(index, generation) {
                queue.remove(index);
            }
        });
    }

    fn deadline_ns(&self, index: usize, generation: u32) -> Option<u64> {
        let queue = self.queue.lock();
        let record = &queue.records[index];
        (queue.is_live(index, generation) && record.place != NOWHERE).then_some(record.deadline_ns)
    }

    fn delete(&self, index: usize, generation: u32) -> Result<(), AioError> {
        let mut queue = self.queue.lock();
        if !queue.is_live(index, generation) {
            return Err(AioError::Stale);
        }
        if queue.records[index].place != NOWHERE {
            return Err(AioError::Busy);
        }
        queue.records[index].body = None;
        queue.records[index].generation = generation.wrapping_add(1);
        drop(queue);
        self.free.give_back(index);
        Ok(())
    }

    /// Fires what is due in `context` when `clock` is read; returns whether a callback ran.
    #[inline]
    fn run(
        &'static self,
        context: &'static AioContext,
        core: CoreId,
        clock: impl FnOnce() -> u64,
    ) -> bool {
        let earliest = self.earliest();
        if earliest == u64::MAX {
            return false;
        }
        // The one sample of the clock for this run (TMR-6).
        let now = clock();
        if earliest > now {
            return false;
        }
        let only = self.change(|queue| {
            if !queue.is_due(now) {
                // Cancelled meanwhile, or there are only those that an outer run has left.
                return None;
            }
            let index = queue.take_only(now)?;
            queue.fire(index)
        });
        let Some(only) = only else {
            return self.run_several(context, core, now);
        };
        self.call(context, core, &only);
        true
    }

    /// As [`run`](Self::run), when there may be several.
    #[inline(never)]
    fn run_several(&'static self, context: &'static AioContext, core: CoreId, now: u64) -> bool {
        // In pieces; not more of them than there are timers for, should another core keep arming in the past.
        for _ in 0..N.div_ceil(PIECE) {
            if !self.change(|queue| queue.collect(now)) {
                break;
            }
        }
        let mut progress = false;
        while let Some(due) = self.change(Queue::next_due) {
            self.call(context, core, &due);
            progress = true;
        }
        progress
    }

    #[inline]
    fn call(&self, context: &'static AioContext, core: CoreId, due: &Fire) {
        trace_on(core, Event::Timer, due.index, due.deadline_ns);
        context.counters.timers.bump();
        call(held_on(core), due.callback, due.name);
    }
}

/// The timers of a context, a list a clock. The long one last, for the same reason as in the context.
#[repr(C)]
pub(super) struct Timers {
    host: List<HOST_TIMERS>,
    realtime: List<TIMERS>,
}

impl Timers {
    pub(super) const fn new() -> Self {
        Self {
            realtime: List::new(),
            host: List::new(),
        }
    }

    /// Whether a timer of any clock is armed or due. Plain loads.
    #[inline]
    pub(super) fn any_armed(&self) -> bool {
        self.realtime.earliest() != u64::MAX || self.host.earliest() != u64::MAX
    }

    /// The earliest deadline of all clocks as a time of [`arch::now_ns`](crate::arch::now_ns); `u64::MAX` when no timer
    /// is armed. Setting the wall clock notifies, so a change after the look is safe.
    #[inline]
    pub(super) fn earliest(&self) -> u64 {
        let realtime = self.realtime.earliest();
        match self.host.earliest() {
            u64::MAX => realtime,
            host => realtime.min(clock::monotonic_of(host)),
        }
    }

    pub(super) fn in_use(&self) -> usize {
        self.realtime.free.in_use() + self.host.free.in_use()
    }

    /// How many timers are armed.
    pub(super) fn armed(&self) -> usize {
        self.realtime.queue.lock().len + self.host.queue.lock().len
    }
}

impl AioContext {
    /// A timer on [`Clock::Realtime`] that calls `callback` in this context. Any core.
    ///
    /// # Errors
    /// [`AioError::Exhausted`] when the context has [`TIMERS`] already.
    pub fn timer(&'static self, name: &'static str, callback: Callback) -> Result<Timer, AioError> {
        self.timer_on(Clock::Realtime, name, callback)
    }

    /// A timer on `clock` that calls `callback` in this context. Any core.
    ///
    /// # Errors
    /// [`AioError::Exhausted`] when the context has [`TIMERS`] (of [`Clock::Host`]: [`HOST_TIMERS`]) already.
    pub fn timer_on(
        &'static self,
        clock: Clock,
        name: &'static str,
        callback: Callback,
    ) -> Result<Timer, AioError> {
        let created = match clock {
            Clock::Realtime => self.timers.realtime.create(callback, name),
            Clock::Host => self.timers.host.create(callback, name),
        };
        let (index, generation) = created.ok_or(AioError::Exhausted)?;
        Ok(Timer {
            context: self,
            index: index as u16,
            clock,
            generation,
        })
    }

    /// Fires what is due, clock by clock; returns whether a callback ran. Home core only.
    #[inline(never)]
    pub(super) fn run_timers(&'static self, core: CoreId) -> bool {
        let realtime = self.timers.realtime.run(self, core, trace::clock);
        let host = self.timers.host.run(self, core, clock::host_now_ns);
        realtime | host
    }
}

/// Handle of a timer; a copy is the same timer. Using one whose record was deleted does nothing.
#[derive(Clone, Copy)]
pub struct Timer {
    context: &'static AioContext,
    index: u16,
    clock: Clock,
    generation: u32,
}

impl Timer {
    /// Arms it, or arms it anew, for `deadline_ns` of its clock, [`arch::now_ns`](crate::arch::now_ns) or
    /// [`host_now_ns`](clock::host_now_ns); a deadline that has
    /// passed fires in the next poll. Any core, interrupt handlers too. False when it was refused:
    /// [`try_arm_at`](Self::try_arm_at) says why.
    pub fn arm_at(&self, deadline_ns: u64) -> bool {
        self.arm(deadline_ns, false)
    }

    /// As [`arm_at`](Self::arm_at), for callers that can meet a refusal.
    ///
    /// # Errors
    /// [`AioError::Stale`] when it was deleted, [`AioError::Stopped`] when its context's loop was stopped and not run
    /// again and this is not its home core.
    pub fn try_arm_at(&self, deadline_ns: u64) -> Result<(), AioError> {
        if self.arm(deadline_ns, false) {
            return Ok(());
        }
        Err(if self.context.refuses() {
            AioError::Stopped
        } else {
            AioError::Stale
        })
    }

    /// As [`arm_at`](Self::arm_at), but never later than it is armed for already.
    pub fn anticipate(&self, deadline_ns: u64) -> bool {
        self.arm(deadline_ns, true)
    }

    fn arm(&self, deadline_ns: u64, only_earlier: bool) -> bool {
        if self.context.refuses() {
            return false;
        }
        // The last nanosecond stands for "never" in the loop's arithmetic.
        let deadline_ns = deadline_ns.min(u64::MAX - 1);
        let (timers, index) = (&self.context.timers, self.index as usize);
        let first = match self.clock {
            Clock::Realtime => {
                timers
                    .realtime
                    .arm(index, self.generation, deadline_ns, only_earlier)
            }
            Clock::Host => timers
                .host
                .arm(index, self.generation, deadline_ns, only_earlier),
        };
        if first == Some(true) {
            // The queue was changed under its lock before this, so a loop that has computed its deadline without
            // this timer sees the notification, and one that computes it later sees the timer.
            self.context.wake();
        }
        first.is_some()
    }

    /// Disarms it; idempotent. Does not wait for a callback that runs already on the home core (TMR-4).
    pub fn cancel(&self) {
        let (timers, index) = (&self.context.timers, self.index as usize);
        match self.clock {
            Clock::Realtime => timers.realtime.cancel(index, self.generation),
            Clock::Host => timers.host.cancel(index, self.generation),
        }
    }

    /// Whether it is armed.
    pub fn is_pending(&self) -> bool {
        self.deadline_ns().is_some()
    }

    /// What it is armed for.
    pub fn deadline_ns(&self) -> Option<u64> {
        let (timers, index) = (&self.context.timers, self.index as usize);
        match self.clock {
            Clock::Realtime => timers.realtime.deadline_ns(index, self.generation),
            Clock::Host => timers.host.deadline_ns(index, self.generation),
        }
    }

    /// Frees the record. Legal inside its own callback. All copies of the handle are stale from now on.
    ///
    /// # Errors
    /// [`AioError::Busy`] while it is armed, [`AioError::Stale`] when it was deleted before.
    pub fn delete(self) -> Result<(), AioError> {
        let (timers, index) = (&self.context.timers, self.index as usize);
        match self.clock {
            Clock::Realtime => timers.realtime.delete(index, self.generation),
            Clock::Host => timers.host.delete(index, self.generation),
        }
    }

    /// The clock that it follows.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// The context that it fires in.
    pub fn context(&self) -> &'static AioContext {
        self.context
    }
}

//! One turn of the loop.
//!
//! ```text
//!  take one level of the lock
//!  blocking: hooks ─▶ deadline ─▶ look for a while ─▶ give the level back, sleep, take it again
//!  accept the notification
//!  bottom halves ─▶ handlers ─▶ timers ─▶ hooks            every callback may poll again
//!  give the level back
//! ```
//! The level is given back only around a real wait: a caller that already holds the lock keeps everybody else out
//! for the whole of it (ACQ-4). `poll` takes `&self` and no reference into the loop's tables lives across a callback.
#![forbid(unsafe_code)]

use super::adaptive::{CHECKS, slots};
use super::bottom_half::{Body, Dequeued, FIRST_INTERNAL, Internal, ReentrancyGuard};
use super::callback::Callback;
use super::context::{AioContext, call};
use super::coroutine;
use super::lane::RECORDS;
use super::notifier::{PollCheck, Registration, WORDS, bit};
use super::trace::{self, Event, trace, trace_on};
use crate::arch::{self, CoreId};
use crate::sync::atomic::{Ordering, fence};
use crate::sync::held_on;

/// How long an idle bottom half may wait, in ns (BH-5).
const IDLE_NS: u64 = 10_000_000;

/// "There is work now": a deadline that lies behind us.
const NOW: u64 = 0;
/// "Until something happens".
const NEVER: u64 = u64::MAX;

/// How a blocking turn waited, for adaptive polling.
#[derive(Clone, Copy)]
struct Waited {
    block_ns: u64,
    until: u64,
}

impl AioContext {
    /// One turn: waits (when `blocking`) until there is work, runs it once, and returns whether there was *progress*:
    /// a bottom half other than an idle one, a handler, a timer or a coroutine ran. A wake-up alone is none, so
    /// callers loop on their own condition. Re-entrant from every callback.
    ///
    /// # Panics
    /// On another core than its home, in an interrupt handler, and in a coroutine.
    pub fn poll(&'static self, blocking: bool) -> bool {
        let core = self.poller();
        self.lock.acquire_for_loop(core);
        self.counters.turns.bump();
        let waited = if blocking {
            self.wait_for_work(core)
        } else {
            None
        };
        // From here on each phase is entered only when a plain load says that there is something in it, and lies out
        // of line, so that an empty turn stays small.
        if self.has_begun() {
            self.look_at_begun();
        }
        // Accept before looking at anything (NFY-3). The exchange reads the newest notification, and with it all
        // that its sender queued; one that comes later stays for the next turn.
        if self.notified.load(Ordering::Relaxed) {
            self.notified.swap(false, Ordering::Acquire);
            if let Some(waited) = waited {
                self.adaptive.learn_own(waited.block_ns);
            }
        }
        let mut progress = false;
        let bottom_halves = !self.lanes.is_quiet();
        if bottom_halves {
            // What they register is first called in the next turn (POLL-11).
            self.handlers.begin_pass();
            progress = self.run_bottom_halves(core);
        }
        if self.handlers.any_ready() {
            if !bottom_halves {
                self.handlers.begin_pass();
            }
            progress |= self.run_handlers(waited);
        }
        if self.timers.any_armed() {
            progress |= self.run_timers(core);
        }
        self.run_hooks();
        self.lock.release_for_loop(core);
        progress
    }

    /// The current core, which may poll here.
    #[inline]
    fn poller(&self) -> CoreId {
        let core = match arch::current_core() {
            Some(core) if self.home.load(Ordering::Relaxed) == core + 1 => core,
            _ => panic!("a context is polled on its home core only"),
        };
        assert!(
            !arch::in_interrupt(),
            "a context was polled in an interrupt handler"
        );
        assert!(
            !coroutine::is_running(core),
            "a context was polled in a coroutine"
        );
        core
    }

    /// Until when there is nothing to do, as far as the loop itself can see. Notifications are not looked at.
    fn next_deadline(&self) -> u64 {
        if self.handlers.any_ready() || self.hooks.any_armed() {
            return NOW;
        }
        let mut deadline = self.timers.earliest();
        if !self.lanes.is_quiet() {
            let mut idle = false;
            // Outer, suspended batches count as well (BH-21).
            let normal = self.lanes.any_queued(|item| {
                if item >= RECORDS {
                    return true;
                }
                let scheduled = self.records.scheduled(item);
                idle |= scheduled == Some(true);
                scheduled == Some(false)
            });
            if normal {
                return NOW;
            }
            if idle {
                deadline = deadline.min(trace::clock().saturating_add(IDLE_NS));
            }
        }
        deadline
    }

    /// Waits until there may be work; `Some` when adaptive polling is on and it waited at all.
    #[inline(never)]
    fn wait_for_work(&'static self, core: CoreId) -> Option<Waited> {
        let turns = self.counters.turns.get();
        // What was asked for at the end of the turn happens before any wait, a nested poll's too.
        self.run_hooks();
        if self.counters.turns.get() != turns {
            // It polled, and that turn may have taken the wake-up that our caller waits for (NFY-3).
            return None;
        }
        let mut deadline = self.next_deadline();
        if deadline == NOW || (deadline != NEVER && deadline <= trace::clock()) {
            return None;
        }
        if !self.adaptive.enabled() && !self.has_begun() {
            self.sleep(core, deadline);
            return None;
        }
        let start = trace::clock();
        if !self.look_for_work(start, deadline) && !self.leave_poll_mode() {
            // A poll check, begin or end may have queued something.
            deadline = deadline.min(self.next_deadline());
            // One that polled may have taken our caller's wake-up: see above.
            if deadline != NOW && self.counters.turns.get() == turns {
                self.sleep(core, deadline);
            }
        }
        let until = trace::clock();
        Some(Waited {
            block_ns: until.saturating_sub(start),
            until,
        })
    }

    /// Busy polling from `start` for as long as the budget says; true when there is a reason not to sleep.
    fn look_for_work(&'static self, start: u64, deadline: u64) -> bool {
        let budget = self.adaptive.budget(start);
        if budget == 0 {
            return false;
        }
        let end = start.saturating_add(budget).min(deadline);
        // Copied once: a registration that changes meanwhile notifies, which ends the round.
        let mut checks: [Option<(usize, PollCheck, usize)>; CHECKS] = [None; CHECKS];
        let mut count = 0;
        for slot in slots(&self.adaptive.polling) {
            let (word, mask) = bit(slot);
            if count == CHECKS || self.handlers.busy[word].load(Ordering::Relaxed) & mask != 0 {
                continue;
            }
            let Some(registration) = self.handlers.get(slot) else {
                continue;
            };
            let Some(check) = registration.handler.poll_check else {
                continue;
            };
            if self.adaptive.begun[word].fetch_or(mask, Ordering::Relaxed) & mask == 0
                && let Some(begin) = registration.handler.poll_begin
            {
                self.call(begin, registration.name);
            }
            checks[count] = Some((slot, check, registration.handler.ready.argument()));
            count += 1;
        }
        // A source that left poll mode, or found no place in this round, must be able to interrupt again.
        if self.end_polling(|slot| {
            checks[..count]
                .iter()
                .flatten()
                .any(|(checked, ..)| *checked == slot)
        }) {
            return true;
        }
        self.adaptive.unlooked.store(0, Ordering::Relaxed);
        let mut now = start;
        let found = loop {
            let mut ready = false;
            for (slot, check, argument) in checks[..count].iter().flatten() {
                let (word, mask) = bit(*slot);
                // Unless another's begin has removed it.
                if self.adaptive.begun[word].load(Ordering::Relaxed) & mask != 0 && check(*argument)
                {
                    self.handlers.polled[word].fetch_or(mask, Ordering::Relaxed);
                    ready = true;
                }
            }
            // A notification ends the round at once (ADP-7) without being progress (POLL-12).
            if ready || self.notified.load(Ordering::Relaxed) || self.handlers.any_ready() {
                break true;
            }
            // Somebody waits for the lock, which we give back only while we sleep.
            if now >= end || self.lock.has_waiters() {
                break false;
            }
            arch::relax();
            now = trace::clock();
        };
        self.adaptive.account(found, now.saturating_sub(start));
        found
    }

    #[inline]
    fn has_begun(&self) -> bool {
        self.adaptive
            .begun
            .iter()
            .fold(0, |all, word| all | word.load(Ordering::Relaxed))
            != 0
    }

    /// Asks the sources in poll mode, whose notifications are off, in a turn that neither polled nor slept: a loop that
    /// always has something else to do would never hear of them. Only in every fourth such turn, because a busy loop
    /// polls between its batches anyway.
    #[inline(never)]
    fn look_at_begun(&'static self) {
        const TURNS: u32 = 4;
        let unlooked = self.adaptive.unlooked.load(Ordering::Relaxed) + 1;
        if unlooked <= TURNS {
            self.adaptive.unlooked.store(unlooked, Ordering::Relaxed);
            return;
        }
        self.adaptive.unlooked.store(0, Ordering::Relaxed);
        for slot in slots(&self.adaptive.begun) {
            self.ask(slot);
        }
    }

    /// Asks the poll check of a slot; marks it and returns true when it has work.
    fn ask(&self, slot: usize) -> bool {
        let ready = self
            .handlers
            .get(slot)
            .is_some_and(|registration| self.has_work(slot, &registration));
        if ready {
            let (word, mask) = bit(slot);
            self.handlers.polled[word].fetch_or(mask, Ordering::Relaxed);
        }
        ready
    }

    /// What the poll check of a slot says; no while its handler runs just now.
    fn has_work(&self, slot: usize, registration: &Registration) -> bool {
        let (word, mask) = bit(slot);
        self.handlers.busy[word].load(Ordering::Relaxed) & mask == 0
            && registration
                .handler
                .poll_check
                .is_some_and(|check| check(registration.handler.ready.argument()))
    }

    /// About to sleep: ends polling at every source. True when one has work.
    fn leave_poll_mode(&'static self) -> bool {
        self.end_polling(|_| false)
    }

    /// Ends polling at every source that is not to be kept, then asks each once more, since an event may have come
    /// while its notifications were off (EN-13, ADP-6). True when one has work.
    fn end_polling(&'static self, keep: impl Fn(usize) -> bool) -> bool {
        let mut ready = false;
        for slot in slots(&self.adaptive.begun) {
            if keep(slot) {
                continue;
            }
            let (word, mask) = bit(slot);
            if self.adaptive.begun[word].fetch_and(!mask, Ordering::Relaxed) & mask == 0 {
                // Another's end has removed it.
                continue;
            }
            let Some(registration) = self.handlers.get(slot) else {
                continue;
            };
            if let Some(end) = registration.handler.poll_end {
                self.call(end, registration.name);
            }
            ready |= self.ask(slot);
        }
        ready
    }

    /// The real wait, with one level of the lock given back.
    fn sleep(&self, core: CoreId, deadline: u64) {
        self.lock.release_for_loop(core);
        let irq = arch::irq_mask();
        // Only this core writes it, so a plain store does (NFY-11).
        self.notify_me.store(
            self.notify_me.load(Ordering::Relaxed) + 1,
            Ordering::Relaxed,
        );
        // NFY-1, the loop's side: see `notify`.
        fence(Ordering::SeqCst);
        if !self.notified.load(Ordering::Relaxed) {
            self.counters.sleeps.bump();
            trace(Event::Sleep, 0, deadline);
            arch::wait((deadline != NEVER).then_some(deadline));
            trace(
                Event::Wake,
                u32::from(self.notified.load(Ordering::Relaxed)),
                0,
            );
        }
        self.notify_me.store(
            self.notify_me.load(Ordering::Relaxed) - 1,
            Ordering::Release,
        );
        // The interrupt that ended the wait is handled here.
        arch::irq_restore(irq);
        self.lock.acquire_for_loop(core);
    }

    /// Runs one batch: what was queued when it began, and before that what outer batches have left.
    #[inline(always)]
    fn run_bottom_halves(&'static self, core: CoreId) -> bool {
        let Some(depth) = self.lanes.begin_batch() else {
            return false;
        };
        let progress = if depth == 0 {
            self.run_batch(core, || self.lanes.next())
        } else {
            self.run_nested_batch(core)
        };
        self.lanes.end_batch(depth);
        progress
    }

    #[inline(never)]
    fn run_nested_batch(&'static self, core: CoreId) -> bool {
        self.run_batch(core, || self.lanes.next_nested())
    }

    #[inline(always)]
    fn run_batch(&'static self, core: CoreId, next: impl Fn() -> Option<usize>) -> bool {
        let mut progress = false;
        while let Some(item) = next() {
            if item >= FIRST_INTERNAL {
                progress |= if item >= RECORDS {
                    self.run_coroutine(core, item - RECORDS)
                } else {
                    self.run_internal(item)
                };
                continue;
            }
            let (body, word) = self.records.dequeue(item);
            progress |= if word.ends() {
                self.run_last(core, item, word)
            } else {
                word.is_scheduled() && self.run_bottom_half(core, item, body, word)
            };
        }
        progress
    }

    /// Runs a bottom half that exists no more; whether that was progress.
    #[inline(never)]
    fn run_last(&'static self, core: CoreId, item: usize, word: Dequeued) -> bool {
        let body = self.records.end(item, word);
        word.is_scheduled() && self.run_bottom_half(core, item, body, word)
    }

    /// Calls a bottom half; whether that was progress.
    #[inline(always)]
    fn run_bottom_half(
        &'static self,
        core: CoreId,
        item: usize,
        body: Body,
        word: Dequeued,
    ) -> bool {
        trace_on(core, Event::Run, item as u32, 0);
        self.counters.bottom_halves.bump();
        match body.guard {
            None => call(held_on(core), body.callback, body.name),
            Some(guard) => self.call_guarded(item, body.callback, body.name, guard),
        }
        !word.is_idle()
    }

    #[inline(never)]
    fn call_guarded(
        &self,
        item: usize,
        callback: Callback,
        name: &'static str,
        guard: &'static ReentrancyGuard,
    ) {
        let engaged = guard.engage();
        if engaged.is_nested() {
            trace(Event::Reentered, item as u32, 0);
        }
        self.call(callback, name);
    }

    /// One of the loop's own bottom halves was taken off the lanes; whether it ran.
    #[inline(never)]
    fn run_internal(&'static self, item: usize) -> bool {
        let Some(which) = self.records.dequeue_internal(item) else {
            return false;
        };
        const STOP: usize = Internal::Stop as usize;
        const WORK_IN: usize = Internal::WorkIn as usize;
        const WORK_DONE: usize = Internal::WorkDone as usize;
        match which {
            STOP => self.state.end(),
            WORK_IN => self.run_work(),
            WORK_DONE => self.finish_work(),
            // A kick of `wait_while`: it only has to have run.
            _ => {}
        }
        true
    }

    /// Calls the handlers that are due, each readiness once, by the innermost poll that meets it (EN-10).
    #[inline(never)]
    fn run_handlers(&'static self, waited: Option<Waited>) -> bool {
        let handlers = &self.handlers;
        let pass = handlers.pass.load(Ordering::Relaxed);
        let mut progress = false;
        for word in 0..WORDS {
            // What becomes ready from here on waits for the next pass.
            let mut todo = handlers.ready[word].load(Ordering::Relaxed)
                | handlers.polled[word].load(Ordering::Relaxed);
            while todo != 0 {
                let slot = word * 64 + todo.trailing_zeros() as usize;
                todo &= todo - 1;
                progress |= self.run_handler(slot, pass, waited);
            }
        }
        progress
    }

    fn run_handler(&'static self, slot: usize, pass: u32, waited: Option<Waited>) -> bool {
        let handlers = &self.handlers;
        let (word, mask) = bit(slot);
        let polled = handlers.polled[word].load(Ordering::Relaxed) & mask != 0;
        if polled {
            handlers.polled[word].fetch_and(!mask, Ordering::Relaxed);
        }
        let marked = handlers.ready[word].fetch_and(!mask, Ordering::Acquire) & mask != 0;
        if !polled && !marked {
            // A nested poll has been here.
            return false;
        }
        // An earlier handler of this pass may have unregistered it (EN-8).
        let Some(registration) = handlers.get(slot) else {
            return false;
        };
        if registration.born.wrapping_sub(pass).cast_signed() >= 0 {
            // Registered in this very pass: the next one sees it (POLL-11).
            handlers.mark(slot);
            return false;
        }
        if !polled && !registration.notifier.is_set() && !self.has_work(slot, &registration) {
            return false;
        }
        trace(Event::Handler, slot as u32, 0);
        self.counters.handlers.bump();
        let was_busy = handlers.busy[word].fetch_or(mask, Ordering::Relaxed) & mask;
        self.call(registration.handler.ready, registration.name);
        if was_busy == 0 {
            handlers.busy[word].fetch_and(!mask, Ordering::Relaxed);
        }
        if registration.is_current(self, slot) {
            // Level-triggered: not cleared, so called again in the next pass (EN-3).
            if registration.notifier.is_set() {
                handlers.mark(slot);
            }
            if let Some(waited) = waited {
                self.adaptive.learn(
                    slot,
                    registration.handler.poll_check,
                    waited.block_ns,
                    waited.until,
                );
            }
        }
        true
    }

    /// What the handler of `notifier` has learnt as its polling budget, in ns; 0 when it is not registered here.
    pub fn learnt_poll_ns(&self, notifier: &super::EventNotifier) -> u64 {
        notifier
            .slot_in(self)
            .map_or(0, |slot| self.adaptive.learnt(slot))
    }
}

//! Bottom halves: static records that can be marked, from anywhere, to run soon in their context.
//!
//! ```text
//!            create                 schedule                    dequeued
//!   FREE ───────────────▶ idle ───────────────────▶ queued ───────────────▶ callback runs, idle again
//!    ▲                     │                        │    ▲                  (one-shot: FREE before it runs)
//!    │      delete         │                 cancel │    │ schedule
//!    ├─────────────────────┘                        ▼    │
//!    │                      dequeued          queued, will not run
//!    └──────────────────────────────────────────────┘ (when deleted)
//! ```
//! One word a record holds flags and generation. *Pending* says "in a lane"; only its change from clear to set
//! enqueues, so a record is in at most one lane once. *Scheduled* says "is to run". All changes are
//! compare-and-exchange on the whole word: a stale handle finds another generation and does nothing. Generations have
//! 24 bits: a stale handle would have to be kept while its record is created and deleted 16.7 million times, and be
//! used after exactly a multiple of that. At a million one-shots a second, which have no handles, nothing is lost.
use core::cell::UnsafeCell;
use core::mem::MaybeUninit;

use super::callback::{AioError, Callback};
use super::context::AioContext;
use super::lane::RECORDS;
use super::trace::{Event, trace, trace_on};
use crate::arch;
use crate::config::{BOTTOM_HALVES, ONESHOT_RESERVED, ONESHOTS};
use crate::sync::IndexStack;
use crate::sync::atomic::{AtomicBool, AtomicU32, Ordering};

const PENDING: u32 = 1;
const SCHEDULED: u32 = 2;
const DELETED: u32 = 4;
const ONESHOT: u32 = 8;
const IDLE: u32 = 16;
const LIVE: u32 = 32;
const GENERATION: u32 = 1 << 8;
const FLAGS: u32 = GENERATION - 1;

/// The loop's own bottom halves, always there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(super) enum Internal {
    /// Ends `run_loop`.
    Stop = 0,
    /// Makes `wait_while` look at its condition again.
    WaitKick = 1,
    /// Work from other contexts arrived (`run_on`).
    WorkIn = 2,
    /// Work in other contexts ended.
    WorkDone = 3,
}

const FIRST_ONESHOT: usize = BOTTOM_HALVES;
/// Records from here on are the loop's own.
pub(super) const FIRST_INTERNAL: usize = BOTTOM_HALVES + ONESHOTS;

#[derive(Clone, Copy)]
pub(super) struct Body {
    pub(super) callback: Callback,
    pub(super) name: &'static str,
    pub(super) guard: Option<&'static ReentrancyGuard>,
}

// A power of two in size: found by a shift.
#[repr(align(64))]
struct Record {
    /// Generation and flags.
    word: AtomicU32,
    /// Written while FREE and owned by whoever took the index; read while PENDING.
    body: UnsafeCell<MaybeUninit<Body>>,
}

// SAFETY: `body` is written only by the one core that took the record's index from the free stack, before the word
// says LIVE, and read only by the home core while PENDING is set, when nobody can free the record.
unsafe impl Sync for Record {}

/// Says whether a device's code is at work, so that it can refuse to be entered from itself: device, bottom half,
/// access to a register, the same device again.
///
/// Bottom halves that were created with it set it while they run. One that fires while it is set already leaves
/// [`Event::Reentered`] in the trace and runs nevertheless.
#[derive(Default)]
pub struct ReentrancyGuard(AtomicBool);

impl ReentrancyGuard {
    /// Nobody is at work.
    pub const fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// Whether somebody is at work.
    pub fn is_engaged(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// At work until the answer is dropped; then it is as it was before.
    pub fn engage(&'static self) -> Engaged {
        Engaged {
            guard: self,
            before: self.0.swap(true, Ordering::Relaxed),
        }
    }
}

/// See [`ReentrancyGuard::engage`].
#[must_use = "dropping it ends the engagement"]
pub struct Engaged {
    guard: &'static ReentrancyGuard,
    before: bool,
}

impl Engaged {
    /// Whether somebody was at work already.
    pub fn is_nested(&self) -> bool {
        self.before
    }
}

impl Drop for Engaged {
    fn drop(&mut self) {
        self.guard.0.store(self.before, Ordering::Relaxed);
    }
}

/// The bottom-half records of a context.
pub(super) struct Records {
    records: [Record; RECORDS],
    free: IndexStack<BOTTOM_HALVES>,
    free_oneshots: IndexStack<ONESHOTS>,
}

/// The word of a record when it was taken off its lane.
#[derive(Clone, Copy)]
pub(super) struct Dequeued(u32);

impl Dequeued {
    /// A one-shot, or deleted: the record is freed now.
    #[inline]
    pub(super) fn ends(self) -> bool {
        self.0 & (DELETED | ONESHOT) != 0
    }

    /// Neither cancelled nor deleted meanwhile.
    #[inline]
    pub(super) fn is_scheduled(self) -> bool {
        self.0 & SCHEDULED != 0
    }

    /// Its run is no progress.
    #[inline]
    pub(super) fn is_idle(self) -> bool {
        self.0 & IDLE != 0
    }
}

impl Records {
    pub(super) const fn new() -> Self {
        Self {
            records: [const {
                Record {
                    word: AtomicU32::new(0),
                    body: UnsafeCell::new(MaybeUninit::uninit()),
                }
            }; RECORDS],
            free: IndexStack::new(),
            free_oneshots: IndexStack::new(),
        }
    }

    pub(super) fn in_use(&self) -> (usize, usize) {
        (self.free.in_use(), self.free_oneshots.in_use())
    }

    /// Makes the record at `index` live with `flags`; returns its generation word.
    fn create(&self, index: usize, body: Body, flags: u32) -> u32 {
        let record = &self.records[index];
        // SAFETY: the index came from the free stack, so this core alone owns the record, and its word is not LIVE:
        // nobody reads the body.
        unsafe { (*record.body.get()).write(body) };
        let generation = record.word.load(Ordering::Relaxed) & !FLAGS;
        record
            .word
            .store(generation | LIVE | flags, Ordering::Release);
        generation
    }

    /// Applies `change` to the word of a live record of this generation; returns the word before and after.
    #[inline]
    fn update(
        &self,
        index: usize,
        generation: u32,
        change: impl Fn(u32) -> u32,
    ) -> Option<(u32, u32)> {
        let word = &self.records[index].word;
        let mut old = word.load(Ordering::Relaxed);
        loop {
            if old & !FLAGS != generation || old & (LIVE | DELETED) != LIVE {
                return None;
            }
            let new = change(old);
            // Written even when nothing changes: the callback must see what the scheduler wrote before (BH-3), which
            // takes a write that the dequeuing exchange reads.
            match word.compare_exchange_weak(old, new, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return Some((old, new)),
                Err(now) => old = now,
            }
        }
    }

    /// Whether a dequeued `index` would run, and as what: `Some(idle)`.
    #[inline]
    pub(super) fn scheduled(&self, index: usize) -> Option<bool> {
        let word = self.records[index].word.load(Ordering::Relaxed);
        (word & SCHEDULED != 0).then_some(word & IDLE != 0)
    }

    /// The name of a queued record. Home core only.
    pub(super) fn queued_name(&self, index: usize) -> &'static str {
        if index >= FIRST_INTERNAL
            || self.records[index].word.load(Ordering::Acquire) & PENDING == 0
        {
            return "internal";
        }
        // SAFETY: PENDING is set and this is the home core, which alone clears it.
        unsafe { (*self.records[index].body.get()).assume_init_ref() }.name
    }

    /// Takes one of the loop's own off its lane; which one, unless it was taken back. Home core only.
    pub(super) fn dequeue_internal(&self, index: usize) -> Option<usize> {
        let old = self.records[index]
            .word
            .fetch_and(!(PENDING | SCHEDULED), Ordering::AcqRel);
        (old & SCHEDULED != 0).then_some(index - FIRST_INTERNAL)
    }

    /// Takes a record off its lane: clears the flags before the callback runs (BH-4). What to call, and what the flags
    /// were; one that [ends](Dequeued::ends) is given to [`end`](Self::end). Home core only.
    #[inline]
    pub(super) fn dequeue(&self, index: usize) -> (Body, Dequeued) {
        let record = &self.records[index];
        // Copied first: from the exchange on, another core may delete the record and create it anew (BH-11).
        // SAFETY: the record is PENDING (it came from a lane), so it is LIVE and cannot be freed before the exchange
        // below; its body was written before it was first queued, which the lane's tail made visible.
        let body = unsafe { *(*record.body.get()).assume_init_ref() };
        let old = record
            .word
            .fetch_and(!(PENDING | SCHEDULED | IDLE), Ordering::AcqRel);
        debug_assert_ne!(old & PENDING, 0, "a record was queued twice");
        (body, Dequeued(old))
    }

    /// Frees a record that left its lane and is deleted, or a one-shot, which is free before it runs, so that its
    /// callback finds a record for the next one. All handles of the one are refused already, the other has none: nobody
    /// else changes word or body until it is created anew.
    pub(super) fn end(&self, index: usize, word: Dequeued) -> Body {
        let record = &self.records[index];
        // SAFETY: it was PENDING, so it was LIVE and its body written; it is not free before `give_back` below.
        let body = unsafe { *(*record.body.get()).assume_init_ref() };
        let next = (word.0 & !FLAGS).wrapping_add(GENERATION);
        record.word.store(next, Ordering::Release);
        self.give_back(index);
        body
    }

    fn give_back(&self, index: usize) {
        if index >= FIRST_ONESHOT {
            self.free_oneshots.give_back(index - FIRST_ONESHOT);
        } else {
            self.free.give_back(index);
        }
    }
}

impl AioContext {
    /// A bottom half that calls `callback` in this context whenever it was scheduled. Any core.
    ///
    /// # Errors
    /// [`AioError::Exhausted`] when the context has [`BOTTOM_HALVES`] already.
    pub fn bottom_half(
        &'static self,
        name: &'static str,
        callback: Callback,
    ) -> Result<BottomHalf, AioError> {
        self.create_bottom_half(Body {
            callback,
            name,
            guard: None,
        })
    }

    /// As [`bottom_half`](Self::bottom_half), with `guard` set while its callback runs (BH-12).
    ///
    /// # Errors
    /// As `bottom_half`.
    pub fn guarded_bottom_half(
        &'static self,
        name: &'static str,
        callback: Callback,
        guard: &'static ReentrancyGuard,
    ) -> Result<BottomHalf, AioError> {
        self.create_bottom_half(Body {
            callback,
            name,
            guard: Some(guard),
        })
    }

    fn create_bottom_half(&'static self, body: Body) -> Result<BottomHalf, AioError> {
        let index = self.records.free.take().ok_or(AioError::Exhausted)?;
        let generation = self.records.create(index, body, 0);
        Ok(BottomHalf {
            context: self,
            index: index as u16,
            generation,
        })
    }

    /// Calls `callback` once in this context, soon. There is no handle, so it cannot be taken back. Any core,
    /// interrupt handlers too.
    ///
    /// # Errors
    /// [`AioError::Exhausted`] when all records but the reserved ones are under way, [`AioError::Stopped`] from another
    /// core when its loop was stopped and not run again.
    pub fn schedule_oneshot(
        &'static self,
        name: &'static str,
        callback: Callback,
    ) -> Result<(), AioError> {
        self.oneshot_below(ONESHOTS - ONESHOT_RESERVED, name, callback)
    }

    /// As [`schedule_oneshot`](Self::schedule_oneshot), from the records kept back for drain and shutdown.
    ///
    /// # Errors
    /// As `schedule_oneshot`, when even those are under way.
    pub fn schedule_oneshot_reserved(
        &'static self,
        name: &'static str,
        callback: Callback,
    ) -> Result<(), AioError> {
        self.oneshot_below(ONESHOTS, name, callback)
    }

    fn oneshot_below(
        &'static self,
        limit: usize,
        name: &'static str,
        callback: Callback,
    ) -> Result<(), AioError> {
        if self.refuses() {
            return Err(AioError::Stopped);
        }
        let index = FIRST_ONESHOT
            + self
                .records
                .free_oneshots
                .take_below(limit)
                .ok_or(AioError::Exhausted)?;
        self.records.create(
            index,
            Body {
                callback,
                name,
                guard: None,
            },
            ONESHOT | PENDING | SCHEDULED,
        );
        self.send(index);
        Ok(())
    }

    /// Schedules one of the loop's own bottom halves; idempotent while it is queued.
    pub(super) fn schedule_internal(&self, which: Internal) {
        let index = FIRST_INTERNAL + which as usize;
        let old = self.records.records[index]
            .word
            .fetch_or(PENDING | SCHEDULED, Ordering::AcqRel);
        if old & PENDING == 0 {
            self.send(index);
        } else {
            self.wake();
        }
    }
}

/// Handle of a bottom half; a copy is the same bottom half. Using one whose record was deleted does nothing.
#[derive(Clone, Copy)]
pub struct BottomHalf {
    context: &'static AioContext,
    index: u16,
    generation: u32,
}

impl BottomHalf {
    /// Runs the callback once in the next batch of its context; scheduling again before that changes nothing, inside
    /// the callback it means one more run, in a later batch (BH-2). Everything written before is visible to the
    /// callback (BH-3). Any core, interrupt handlers too. Returns false when it was refused:
    /// [`try_schedule`](Self::try_schedule) says why.
    #[inline]
    pub fn schedule(&self) -> bool {
        let sender = arch::current_core();
        let at_home = self.context.is_home_of(sender);
        if !at_home && self.context.state.is_stopped() {
            return false;
        }
        // Mostly it is idle, and one exchange without a look before it does.
        let idle = self.generation | LIVE;
        let record = &self.context.records.records[self.index as usize];
        let scheduled = idle | PENDING | SCHEDULED;
        if record
            .word
            .compare_exchange(idle, scheduled, Ordering::AcqRel, Ordering::Relaxed)
            .is_err()
        {
            return self.schedule_again();
        }
        if let Some(core) = sender {
            trace_on(core, Event::Schedule, self.index as u32, 0);
        }
        if at_home {
            self.context.send_home(self.index as usize);
        } else {
            self.context.send_far(sender, self.index as usize);
        }
        true
    }

    #[inline(never)]
    fn schedule_again(&self) -> bool {
        // A normal schedule wins over an idle one (BH-6).
        self.schedule_with(|word| (word | PENDING | SCHEDULED) & !IDLE)
    }

    /// As [`schedule`](Self::schedule), for callers that can meet a refusal.
    ///
    /// # Errors
    /// [`AioError::Stale`] when it was deleted, [`AioError::Stopped`] when its context's loop was stopped and not run
    /// again and this is not its home core. A context that was never run accepts work, which waits for its first run;
    /// so does work that was accepted and not reached before a stop.
    pub fn try_schedule(&self) -> Result<(), AioError> {
        if self.schedule() {
            return Ok(());
        }
        Err(if self.context.refuses() {
            AioError::Stopped
        } else {
            AioError::Stale
        })
    }

    /// As [`schedule`](Self::schedule), but for work that can wait: it lets the loop sleep up to 10 ms and its run
    /// is no progress. It does not slow down a normal schedule that is under way.
    pub fn schedule_idle(&self) -> bool {
        self.schedule_with(|word| {
            if word & SCHEDULED != 0 {
                word
            } else {
                word | PENDING | SCHEDULED | IDLE
            }
        })
    }

    fn schedule_with(&self, change: impl Fn(u32) -> u32) -> bool {
        if self.context.refuses() {
            return false;
        }
        let Some((old, new)) =
            self.context
                .records
                .update(self.index as usize, self.generation, change)
        else {
            return false;
        };
        if old != new {
            trace(Event::Schedule, self.index as u32, 0);
        }
        if old & PENDING == 0 {
            self.context.send(self.index as usize);
        } else if old != new {
            self.context.wake();
        }
        true
    }

    /// Takes a schedule back. On the home core the callback does not run any more; from another core it may just be
    /// running. Scheduled again while still queued it keeps its old place (BH-8).
    pub fn cancel(&self) {
        self.context
            .records
            .update(self.index as usize, self.generation, |word| {
                word & !(SCHEDULED | IDLE)
            });
    }

    /// Cancels it and frees the record, at once or when it is reached in its lane. Legal inside its own callback;
    /// from another core the callback may just be running. All copies of the handle are stale from now on.
    pub fn delete(self) {
        let records = &self.context.records;
        let changed = records.update(self.index as usize, self.generation, |word| {
            if word & PENDING != 0 {
                // Still in a lane: freed when it is reached.
                (word | DELETED) & !(SCHEDULED | IDLE)
            } else {
                (word & !FLAGS).wrapping_add(GENERATION)
            }
        });
        if let Some((old, _)) = changed
            && old & PENDING == 0
        {
            records.give_back(self.index as usize);
        }
    }

    /// Whether it is going to run.
    pub fn is_scheduled(&self) -> bool {
        let word = self.context.records.records[self.index as usize]
            .word
            .load(Ordering::Acquire);
        word & !FLAGS == self.generation && word & SCHEDULED != 0
    }

    /// The context that it runs in.
    pub fn context(&self) -> &'static AioContext {
        self.context
    }
}

//! Run elsewhere: work for another context, and its completion at home.
//!
//! ```text
//!  FREE ─run_on▶ QUEUED ─taken by the target▶ ACTIVE ─▶ DONE ─`done` called at home▶ FREE
//!                  └──────cancel──▶ CANCELLED ─────────────────────┘ (through the same way, without running)
//! ```
//! Records are static. Each context has a list of work that arrived and one of work that ended, both FIFO.
#![forbid(unsafe_code)]

use super::bottom_half::Internal;
use super::callback::{AioError, Callback};
use super::context::{AioContext, unbalanced};
use super::wait::wait_kick;
use crate::config::ELSEWHERE;
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::{IndexStack, IrqLock, caller_levels};

const QUEUED: u32 = 1;
const ACTIVE: u32 = 2;
const DONE: u32 = 3;
const CANCELLED: u32 = 4;
const STATE: u32 = 7;
const GENERATION: u32 = 8;

/// How a piece of work ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkResult {
    /// It ran.
    Done,
    /// It was cancelled before it began.
    Cancelled,
}

/// Called at home with its argument when the work has ended.
pub type WorkDone = &'static (dyn Fn(usize, WorkResult) + Sync);

#[derive(Clone, Copy)]
struct Work {
    work: Callback,
    done: WorkDone,
    argument: usize,
    home: &'static AioContext,
    /// The next in its list, plus one.
    next: u16,
}

struct Slot {
    /// Generation and state.
    word: AtomicU32,
    work: IrqLock<Option<Work>>,
}

static SLOTS: [Slot; ELSEWHERE] = [const {
    Slot {
        word: AtomicU32::new(0),
        work: IrqLock::new(None),
    }
}; ELSEWHERE];
static FREE: IndexStack<ELSEWHERE> = IndexStack::new();

/// A FIFO of slots, linked through them; ends are plus one.
#[derive(Clone, Copy)]
struct List {
    head: u16,
    tail: u16,
}

impl List {
    fn append(&mut self, index: usize) {
        if let Some(work) = SLOTS[index].work.lock().as_mut() {
            work.next = 0;
        }
        match self.tail {
            0 => self.head = index as u16 + 1,
            tail => {
                if let Some(last) = SLOTS[tail as usize - 1].work.lock().as_mut() {
                    last.next = index as u16 + 1;
                }
            }
        }
        self.tail = index as u16 + 1;
    }

    fn pop(&mut self) -> Option<(usize, Work)> {
        let index = (self.head as usize).checked_sub(1)?;
        let work = (*SLOTS[index].work.lock())?;
        self.head = work.next;
        if work.next == 0 {
            self.tail = 0;
        }
        Some((index, work))
    }
}

/// A context's work from others, and its own that has ended.
pub(super) struct WorkLists {
    arrived: IrqLock<List>,
    ended: IrqLock<List>,
}

impl WorkLists {
    pub(super) const fn new() -> Self {
        Self {
            arrived: IrqLock::new(List { head: 0, tail: 0 }),
            ended: IrqLock::new(List { head: 0, tail: 0 }),
        }
    }
}

/// Runs `work` as a bottom half of `context`, then `done(argument, result)` as a bottom half of the current context.
/// FIFO per target. `done` is called exactly once, never inside this call.
///
/// # Errors
/// [`AioError::Exhausted`] when [`ELSEWHERE`] pieces of work are on their way, [`AioError::Stopped`] when the loop of
/// another core's `context` was stopped and not run again.
///
/// # Panics
/// On a core without a context.
pub fn run_on(
    context: &'static AioContext,
    work: Callback,
    done: WorkDone,
    argument: usize,
) -> Result<WorkHandle, AioError> {
    let home = AioContext::current().expect("work is sent from a core that has a context");
    if context.refuses() {
        return Err(AioError::Stopped);
    }
    let index = FREE.take().ok_or(AioError::Exhausted)?;
    let slot = &SLOTS[index];
    *slot.work.lock() = Some(Work {
        work,
        done,
        argument,
        home,
        next: 0,
    });
    let generation = slot.word.load(Ordering::Relaxed) & !STATE;
    slot.word.store(generation | QUEUED, Ordering::Release);
    context.work.arrived.lock().append(index);
    context.schedule_internal(Internal::WorkIn);
    Ok(WorkHandle {
        index: index as u16,
        generation,
    })
}

impl AioContext {
    /// Runs what has arrived until now; a nested poll inside a piece of work goes on with the others. What arrives
    /// meanwhile brings a message of its own.
    pub(super) fn run_work(&'static self) {
        let last = self.work.arrived.lock().tail;
        for _ in 0..ELSEWHERE {
            let popped = self.work.arrived.lock().pop();
            let Some((index, work)) = popped else { return };
            let word = &SLOTS[index].word;
            let generation = word.load(Ordering::Relaxed) & !STATE;
            if word
                .compare_exchange(
                    generation | QUEUED,
                    generation | ACTIVE,
                    Ordering::AcqRel,
                    Ordering::Acquire,
                )
                .is_ok()
            {
                if index as u16 + 1 != last && self.work.arrived.lock().head != 0 {
                    // So that a nested poll inside this piece reaches the rest.
                    self.schedule_internal(Internal::WorkIn);
                }
                self.call(work.work, "run_on");
                // The result is visible to whoever sees DONE (TPL-2).
                word.store(generation | DONE, Ordering::Release);
            }
            work.home.work.ended.lock().append(index);
            work.home.schedule_internal(Internal::WorkDone);
            wait_kick();
            if index as u16 + 1 == last {
                return;
            }
        }
        // A nested poll ran the last one, so there was no end to meet.
        self.schedule_internal(Internal::WorkIn);
    }

    /// Calls the completions of work that has ended until now, so that a completion that sends work on to a faster
    /// core does not keep this batch going for ever.
    pub(super) fn finish_work(&'static self) {
        let last = self.work.ended.lock().tail;
        for _ in 0..ELSEWHERE {
            let popped = self.work.ended.lock().pop();
            let Some((index, work)) = popped else { return };
            let slot = &SLOTS[index];
            let word = slot.word.load(Ordering::Acquire);
            let result = if word & STATE == DONE {
                WorkResult::Done
            } else {
                WorkResult::Cancelled
            };
            if index as u16 + 1 != last && self.work.ended.lock().head != 0 {
                // So that a nested poll inside this completion reaches the others.
                self.schedule_internal(Internal::WorkDone);
            }
            let held = caller_levels();
            (work.done)(work.argument, result);
            *slot.work.lock() = None;
            // Over only now, with all that the completion wrote.
            slot.word
                .store((word & !STATE).wrapping_add(GENERATION), Ordering::Release);
            FREE.give_back(index);
            wait_kick();
            if caller_levels() != held {
                unbalanced("a completion of run_on");
            }
            if index as u16 + 1 == last {
                return;
            }
        }
        self.schedule_internal(Internal::WorkDone);
    }
}

/// Handle of a piece of work; a copy is the same.
#[derive(Clone, Copy)]
pub struct WorkHandle {
    index: u16,
    generation: u32,
}

impl WorkHandle {
    /// Cancels it if it has not begun: then it never runs, and its completion comes with
    /// [`WorkResult::Cancelled`]. Returns whether that succeeded; work that runs already ends normally. Any core.
    pub fn cancel(&self) -> bool {
        let (queued, cancelled) = (self.generation | QUEUED, self.generation | CANCELLED);
        SLOTS[self.index as usize]
            .word
            .compare_exchange(queued, cancelled, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    /// Whether its completion has returned too, and the record is free again. Any core.
    pub fn is_over(&self) -> bool {
        SLOTS[self.index as usize].word.load(Ordering::Acquire) & !STATE != self.generation
    }

    /// Whether the work itself has ended; its completion may still be due. Any core.
    pub fn is_finished(&self) -> bool {
        let word = SLOTS[self.index as usize].word.load(Ordering::Acquire);
        word & !STATE != self.generation || word & STATE == DONE
    }
}

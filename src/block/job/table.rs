//! The jobs' fields: one static table behind one lock, held for a few instructions and never across a call of a driver (JOB-14).
#![forbid(unsafe_code)]

use heapless::Vec;

use super::state::State;
use super::{Job, JobDriver, Policy};
use crate::aio::CoroutineHandle;
use crate::arch::CoreId;
use crate::block::BlockError;
use crate::block::node::Name;
use crate::block::throttle::bucket::{Bucket, Limit};
use crate::config::{JOB_BACKENDS, JOBS};
use crate::sync::IrqLock;

/// What the main loop last asked of a driver.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    None,
    Prepare,
    Prepared,
    /// Commit or abort.
    End,
    /// Its backends are being taken away.
    Close,
}

/// One job.
pub(super) struct Slot {
    pub generation: u32,
    pub state: State,
    /// Empty: an internal one.
    pub id: Name,
    pub driver: Option<&'static dyn JobDriver>,
    pub kind: &'static str,
    /// Core of its context.
    pub core: CoreId,
    /// The body, as it last stopped.
    pub coroutine: Option<CoroutineHandle>,
    pub pause_count: u32,
    pub user_paused: bool,
    /// The body stands at a pause point.
    pub paused: bool,
    /// The body runs or waits for I/O (JOB-3).
    pub busy: bool,
    pub started: bool,
    /// The body has ended; the rest is the main loop's.
    pub handed: bool,
    /// The main loop has seen the end of the body.
    pub completed: bool,
    /// It sleeps, and a timer will wake it.
    pub sleeping: bool,
    /// Somebody wanted it to look around while it was busy.
    pub kicked: bool,
    pub cancelled: bool,
    /// Cancelled for good, not only told to end.
    pub forced: bool,
    pub end_wanted: bool,
    pub result: Result<(), BlockError>,
    pub auto_finalize: bool,
    pub auto_dismiss: bool,
    pub transaction: u8,
    pub done: u64,
    pub total: u64,
    pub limit: Limit,
    pub bucket: Bucket,
    pub leaked_ns: u64,
    /// By [`Side`](super::Side).
    pub policy: [Policy; 2],
    pub errors: [u32; 2],
    pub backends: Vec<u8, JOB_BACKENDS>,
    /// Backends that are still being taken away.
    pub closing: u8,
    /// How far its finalisation is.
    pub step: Step,
    /// What the driver answered to the last step.
    pub answer: Option<Result<(), BlockError>>,
    pub started_ns: u64,
    /// Time spent at pause points.
    pub paused_ns: u64,
    pub paused_since_ns: u64,
}

impl Slot {
    const fn new() -> Self {
        Self {
            generation: 0,
            state: State::Null,
            id: Name::new(),
            driver: None,
            kind: "",
            core: 0,
            coroutine: None,
            pause_count: 0,
            user_paused: false,
            paused: false,
            busy: false,
            started: false,
            handed: false,
            completed: false,
            sleeping: false,
            kicked: false,
            cancelled: false,
            forced: false,
            end_wanted: false,
            result: Ok(()),
            auto_finalize: true,
            auto_dismiss: true,
            transaction: 0,
            done: 0,
            total: 0,
            limit: Limit::NONE,
            bucket: Bucket::EMPTY,
            leaked_ns: 0,
            policy: [Policy::Report; 2],
            errors: [0; 2],
            backends: Vec::new(),
            closing: 0,
            step: Step::None,
            answer: None,
            started_ns: 0,
            paused_ns: 0,
            paused_since_ns: 0,
        }
    }

    /// Everything as in a new one, but for the generation.
    pub fn reset(&mut self) {
        *self = Self {
            generation: self.generation,
            ..Self::new()
        };
    }

    /// Goes to another state; returns the one before.
    pub fn go(&mut self, to: State) -> State {
        debug_assert!(
            self.state.leads_to(to),
            "a job went from {} to {to}",
            self.state
        );
        core::mem::replace(&mut self.state, to)
    }

    /// Lets the body run again if it sleeps, has yielded or stands at a pause point; the coroutine to wake then. Ignored before the
    /// start, while it is busy anyway, while something keeps it paused, and after its end (JOB-4). The timer of a sleep is gone with it.
    #[must_use]
    pub fn enter(&mut self) -> Option<CoroutineHandle> {
        if !self.started || self.busy || self.handed || (self.paused && self.pause_count > 0) {
            return None;
        }
        self.sleeping = false;
        self.busy = true;
        self.coroutine
    }

    /// One more reason to pause.
    #[must_use]
    pub fn pause(&mut self) -> Option<CoroutineHandle> {
        self.pause_count += 1;
        if self.paused { None } else { self.enter() }
    }

    /// One reason less. A sleep goes on (JOB-5).
    #[must_use]
    pub fn resume(&mut self) -> Option<CoroutineHandle> {
        debug_assert!(
            self.pause_count > 0,
            "a job was resumed that was not paused"
        );
        self.pause_count = self.pause_count.saturating_sub(1);
        if self.pause_count > 0 || self.sleeping {
            return None;
        }
        self.enter()
    }

    /// Whether a drain has to wait for it.
    pub fn is_busy(&self) -> bool {
        self.started && self.busy && !self.handed
    }
}

static TABLE: IrqLock<[Slot; JOBS]> = IrqLock::new([const { Slot::new() }; JOBS]);

/// Borrows the slots, for a few instructions.
pub(super) fn with_all<R>(f: impl FnOnce(&mut [Slot; JOBS]) -> R) -> R {
    f(&mut TABLE.lock())
}

/// Borrows the slot in that place.
pub(super) fn at<R>(index: usize, f: impl FnOnce(&mut Slot) -> R) -> R {
    f(&mut TABLE.lock()[index])
}

impl Job {
    /// Borrows the job's slot; `None` when the job is gone.
    pub(super) fn slot<R>(self, f: impl FnOnce(&mut Slot) -> R) -> Option<R> {
        let mut table = TABLE.lock();
        let slot = &mut table[self.index as usize];
        (slot.generation == self.generation && slot.state != State::Null).then(|| f(slot))
    }
}

/// Wakes what [`Slot::enter`] and its like returned, with the lock free again.
pub(super) fn wake(coroutine: Option<Option<CoroutineHandle>>) {
    if let Some(coroutine) = coroutine.flatten() {
        coroutine.wake();
    }
}

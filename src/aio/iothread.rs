//! The loop of a core: run until stopped.
#![forbid(unsafe_code)]

use super::bottom_half::Internal;
use super::context::AioContext;
use crate::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Not run yet.
const NEW: u32 = 0;
const RUNNING: u32 = 1;
const STOPPED: u32 = 2;
const STATE: u32 = 3;
/// One run; the number of the current or last one is above the state.
const RUN: u32 = 4;

/// Whether a context's loop runs.
pub(super) struct LoopState {
    /// State and number of the run.
    word: AtomicU32,
    /// Which run was asked to end.
    stop: AtomicU32,
    /// The stop message was processed; written by the home core.
    ended: AtomicBool,
}

impl LoopState {
    pub(super) const fn new() -> Self {
        Self {
            word: AtomicU32::new(NEW),
            stop: AtomicU32::new(0),
            ended: AtomicBool::new(false),
        }
    }

    /// A run begins; an error when one is going on.
    fn begin(&self) -> Result<(), u32> {
        let before = self.word.load(Ordering::Relaxed);
        if before & STATE == RUNNING {
            return Err(before);
        }
        let run = (before & !STATE).wrapping_add(RUN);
        self.word
            .compare_exchange(before, run | RUNNING, Ordering::AcqRel, Ordering::Relaxed)?;
        self.ended.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// The run has ended.
    fn finish(&self) {
        let run = self.word.load(Ordering::Relaxed) & !STATE;
        self.word.store(run | STOPPED, Ordering::Release);
    }

    /// A stop message arrived. One for an earlier run, sent before that ended but queued after, does nothing.
    pub(super) fn end(&self) {
        let run = self.word.load(Ordering::Relaxed) / RUN;
        if self.stop.load(Ordering::Relaxed) == run {
            self.ended.store(true, Ordering::Relaxed);
        }
    }

    /// Whether the loop was stopped and not run again. One that was never run is not.
    #[inline]
    pub(super) fn is_stopped(&self) -> bool {
        self.word.load(Ordering::Relaxed) & STATE == STOPPED
    }
}

/// Polls `context` on its home core until [`stop`]; then it can be run again. A stop that was sent before the first
/// run is found by it; one sent to a loop that has stopped does nothing.
///
/// # Panics
/// On another core than the context's home, and when its loop runs already.
pub fn run_loop(context: &'static AioContext) {
    let state = &context.state;
    assert!(
        state.begin().is_ok(),
        "the loop of context {} runs already",
        context.name()
    );
    if state.stop.load(Ordering::Relaxed) == state.word.load(Ordering::Relaxed) / RUN {
        // A stop for this run came before it. A turn by hand may have taken its message off the queue already.
        context.schedule_internal(Internal::Stop);
    }
    while !state.ended.load(Ordering::Relaxed) {
        context.poll(true);
    }
    state.finish();
}

/// A stop that has chosen the run it ends and has not sent its message yet.
struct Stop(u32);

impl Stop {
    /// `None` for a loop that has stopped.
    fn prepare(state: &LoopState) -> Option<Self> {
        let word = state.word.load(Ordering::Acquire);
        match word & STATE {
            STOPPED => None,
            RUNNING => Some(Self(word / RUN)),
            _ => Some(Self(word / RUN + 1)),
        }
    }

    /// Before the message is sent. Of two at once, the later run's counts.
    fn record(self, state: &LoopState) {
        state.stop.fetch_max(self.0, Ordering::Relaxed);
    }
}

/// Ends the loop of `context` after what its queue holds already. The message is a bottom half, so it cannot be lost
/// between the loop's check and its sleep (NFY-7, IOT-3). It ends the run that it met, or the first one, never a later
/// one. Idempotent; any core, interrupt handlers too. Returns at
/// once: the loop has ended when [`is_running`] says so.
pub fn stop(context: &'static AioContext) {
    if let Some(stop) = Stop::prepare(&context.state) {
        stop.record(&context.state);
        context.schedule_internal(Internal::Stop);
    }
}

/// Whether [`run_loop`] is at work for `context`.
pub fn is_running(context: &AioContext) -> bool {
    context.state.word.load(Ordering::Acquire) & STATE == RUNNING
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_stop_that_is_late_by_a_whole_run_does_not_end_the_next() {
        let state = LoopState::new();
        state.begin().unwrap();
        // Another core's stop gets this far; then the run ends, and the next begins.
        let late = Stop::prepare(&state).unwrap();
        Stop::prepare(&state).unwrap().record(&state);
        state.end();
        assert!(state.ended.load(Ordering::Relaxed));
        state.finish();
        assert!(state.is_stopped() && Stop::prepare(&state).is_none());
        state.begin().unwrap();
        late.record(&state);
        state.end();
        assert!(
            !state.ended.load(Ordering::Relaxed),
            "it ended the next run"
        );
        // Nor does a late one undo one that is in time.
        let late = Stop(1);
        Stop::prepare(&state).unwrap().record(&state);
        late.record(&state);
        state.end();
        assert!(state.ended.load(Ordering::Relaxed));
    }

    #[test]
    fn a_stop_before_the_first_run_ends_that() {
        let state = LoopState::new();
        Stop::prepare(&state).unwrap().record(&state);
        state.begin().unwrap();
        assert!(state.begin().is_err(), "one run at a time");
        state.end();
        assert!(state.ended.load(Ordering::Relaxed));
    }
}

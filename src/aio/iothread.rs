//! The loop of a core: run until stopped.
#![forbid(unsafe_code)]

use super::bottom_half::Internal;
use super::context::AioContext;
use crate::sync::atomic::{AtomicBool, AtomicU32, Ordering};

const NEW: u32 = 0;
const RUNNING: u32 = 1;
const STOPPED: u32 = 2;

/// Whether a context's loop runs.
pub(super) struct LoopState {
    state: AtomicU32,
    /// The stop message was processed; written by the home core.
    ended: AtomicBool,
}

impl LoopState {
    pub(super) const fn new() -> Self {
        Self {
            state: AtomicU32::new(NEW),
            ended: AtomicBool::new(false),
        }
    }

    /// The stop message arrived.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

/// Polls `context` on its home core until [`stop`]; then it can be run again. A stop that was sent before the first
/// run is found by it; one sent to a loop that has stopped does nothing.
///
/// # Panics
/// On another core than the context's home, and when its loop runs already.
pub fn run_loop(context: &'static AioContext) {
    let state = &context.state;
    let before = state.state.swap(RUNNING, Ordering::AcqRel);
    assert_ne!(
        before,
        RUNNING,
        "the loop of context {} runs already",
        context.name()
    );
    state.ended.store(false, Ordering::Relaxed);
    while !state.ended.load(Ordering::Relaxed) {
        context.poll(true);
    }
    state.state.store(STOPPED, Ordering::Release);
    // A second stop that raced with the end of the loop must not end the next run.
    context.cancel_internal(Internal::Stop);
}

/// Ends the loop of `context` after what its queue holds already. The message is a bottom half, so it cannot be lost
/// between the loop's check and its sleep (NFY-7, IOT-3). Idempotent; any core, interrupt handlers too. Returns at
/// once: the loop has ended when [`is_running`] says so.
pub fn stop(context: &'static AioContext) {
    if context.state.state.load(Ordering::Acquire) != STOPPED {
        context.schedule_internal(Internal::Stop);
    }
}

/// Whether [`run_loop`] is at work for `context`.
pub fn is_running(context: &AioContext) -> bool {
    context.state.state.load(Ordering::Acquire) == RUNNING
}

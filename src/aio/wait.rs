//! The main loop waits for conditions that other contexts make come true (WAIT-1…9).
//!
//! One counter of waiters for all conditions: a kick is cheap, and nothing sleeps through a change it did not expect.
//! The kick is one static bottom half of the main context.
#![forbid(unsafe_code)]

use super::bottom_half::Internal;
use super::callback::{AioError, Callback};
use super::context::{AioContext, main_context};
use super::elsewhere::{WorkResult, run_on};
use crate::arch;
use crate::sync::atomic::{AtomicU32, Ordering, fence};

/// How many waits are going on (they nest).
static WAITERS: AtomicU32 = AtomicU32::new(0);

/// Runs the main loop while `condition` holds; returns whether it waited at all. Anything can happen meanwhile: the
/// caller holds no reference that a callback may make stale. Who makes a condition false from another context calls
/// [`wait_kick`] afterwards.
///
/// # Panics
/// On another core than the main loop's, in a coroutine and in an interrupt handler.
pub fn wait_while(condition: impl FnMut() -> bool) -> bool {
    wait_releasing(None, condition)
}

/// As [`wait_while`], for a caller that holds `context`'s lock **exactly once**: that level is given back around each
/// wait when the context is another core's, so that it can make progress (ACQ-6).
///
/// # Panics
/// As `wait_while`; and when the lock is not held exactly once.
pub fn wait_while_releasing(context: &'static AioContext, condition: impl FnMut() -> bool) -> bool {
    if context.is_home() {
        return wait_releasing(None, condition);
    }
    let lock = context.context_lock();
    assert!(
        lock.is_held_by_me() && lock.depth() == 1,
        "a foreign context has to be held exactly once here"
    );
    wait_releasing(Some(context), condition)
}

fn wait_releasing(held: Option<&'static AioContext>, mut condition: impl FnMut() -> bool) -> bool {
    let main = AioContext::current().expect("only the main loop waits for other contexts");
    assert_eq!(
        arch::current_core(),
        Some(main_context().core()),
        "only the main loop waits for other contexts"
    );
    // Before the first look at the condition (WAIT-1), also when only our own context could change it (WAIT-5).
    WAITERS.fetch_add(1, Ordering::Relaxed);
    // With the one in `wait_kick`: either we see the changed condition, or the kicker sees us.
    fence(Ordering::SeqCst);
    let mut waited = false;
    while condition() {
        if let Some(context) = held {
            context.release();
        }
        main.poll(true);
        if let Some(context) = held {
            context.acquire();
        }
        waited = true;
    }
    WAITERS.fetch_sub(1, Ordering::Relaxed);
    waited
}

/// Makes the main loop look at its conditions again, if it waits for any. Called after every change that could make
/// one false: after the result was stored, not only after a count dropped. Any core, interrupt handlers too.
#[inline]
pub fn wait_kick() {
    fence(Ordering::SeqCst);
    if WAITERS.load(Ordering::Relaxed) != 0 {
        main_context().schedule_internal(Internal::WaitKick);
    }
}

/// Runs `work` as a bottom half of `context` and waits for its end, running the main loop meanwhile. No context lock
/// may be held across it.
///
/// # Errors
/// [`AioError::Exhausted`] when too much work is on its way, [`AioError::Stopped`] when the loop of `context` was
/// stopped and not run again.
///
/// # Panics
/// As [`wait_while`], unless the current core is the home of `context`: there it runs at once.
pub fn run_and_wait(context: &'static AioContext, work: Callback) -> Result<(), AioError> {
    static NOTHING: fn(usize, WorkResult) = |_, _| ();
    if context.is_home() {
        work.call();
        return Ok(());
    }
    let handle = run_on(context, work, &NOTHING, 0)?;
    // Until the completion has run here: its record is free again, however fast the work was.
    wait_while(|| !handle.is_over());
    Ok(())
}

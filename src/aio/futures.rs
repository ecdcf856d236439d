//! What coroutines await: a turn, a time, a move, a wake.
#![forbid(unsafe_code)]

use core::fmt;
use core::future::{Future, poll_fn};
use core::pin::{Pin, pin};
use core::ptr;
use core::task::{Context, Poll};

use super::callback::Callback;
use super::context::AioContext;
use super::coroutine::{current_coroutine, request_move, wake_packed};
use super::timer::Timer;
use crate::arch;

/// Lets others of the context run; goes on in its next batch.
pub fn yield_now() -> impl Future<Output = ()> + Send {
    Suspend {
        again: true,
        done: false,
    }
}

/// Waits for the next [`wake`](super::CoroutineHandle::wake) of this coroutine. Any wake ends it, so callers loop on
/// their own condition.
pub fn suspend() -> impl Future<Output = ()> + Send {
    Suspend {
        again: false,
        done: false,
    }
}

struct Suspend {
    again: bool,
    done: bool,
}

impl Future for Suspend {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.done {
            return Poll::Ready(());
        }
        self.done = true;
        if self.again {
            context.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

/// Waits until [`arch::now_ns`] has reached `deadline_ns`, on a timer of the context in which it is first polled.
/// Without a free timer it looks at the clock once a turn instead. Dropping it disarms the timer.
pub fn sleep_until(deadline_ns: u64) -> Sleep {
    Sleep {
        deadline_ns,
        timer: None,
    }
}

/// See [`sleep_until`].
#[must_use = "a future does nothing unless it is awaited"]
pub struct Sleep {
    deadline_ns: u64,
    timer: Option<Timer>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if arch::now_ns() >= self.deadline_ns {
            return Poll::Ready(());
        }
        if self.timer.is_none()
            && let (Some(coroutine), Some(home)) = (current_coroutine(), AioContext::current())
        {
            self.timer = home
                .timer("sleep", Callback::new(&wake_packed, coroutine.packed()))
                .ok();
        }
        match self.timer {
            Some(timer) => {
                timer.anticipate(self.deadline_ns);
            }
            None => context.waker().wake_by_ref(),
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(timer) = self.timer {
            timer.cancel();
            let _ = timer.delete();
        }
    }
}

/// A [`timeout`] ended before its future.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimedOut;

impl fmt::Display for TimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("timed out")
    }
}

impl core::error::Error for TimedOut {}

/// Runs `future` until it ends or [`arch::now_ns`] has reached `deadline_ns`; then it is dropped, which cancels it. A future
/// that is ready at its deadline counts as done.
///
/// # Errors
/// [`TimedOut`] at the deadline.
pub async fn timeout<F: Future>(deadline_ns: u64, future: F) -> Result<F::Output, TimedOut> {
    let mut future = pin!(future);
    let mut sleep = pin!(sleep_until(deadline_ns));
    poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Ok(output)),
        Poll::Pending => sleep.as_mut().poll(context).map(|()| Err(TimedOut)),
    })
    .await
}

/// Moves the calling coroutine to `target`: what follows runs on its home core. No-op when it is there already.
///
/// # Panics
/// Outside of a coroutine.
pub fn reschedule_self(target: &'static AioContext) -> impl Future<Output = ()> + Send {
    Move { target }
}

struct Move {
    target: &'static AioContext,
}

impl Future for Move {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<()> {
        if AioContext::current().is_some_and(|here| ptr::eq(here, self.target)) {
            return Poll::Ready(());
        }
        // The loop moves it after it has yielded: done here, the target could resume it while it still runs (CO-6).
        request_move(self.target);
        Poll::Pending
    }
}

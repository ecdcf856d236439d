//! What coroutines wait for: a queue that is woken one by one or as a whole, and an event that stays set.
#![forbid(unsafe_code)]

use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll};

use super::wait_list::{Ticket, Turn, WaitList};
use crate::sync::IrqLock;

struct State {
    set: bool,
    waiters: WaitList,
}

/// A queue of waiting coroutines, first come first served. A wake without a waiter is not remembered; see [`Event`] for what is.
pub struct WaitQueue {
    state: IrqLock<State>,
}

impl WaitQueue {
    /// A queue in which nobody waits.
    pub const fn new() -> Self {
        Self {
            state: IrqLock::new(State {
                set: false,
                waiters: WaitList::new(),
            }),
        }
    }

    /// Waits for its turn. The place in the queue is taken when the future is first polled.
    pub fn wait(&self) -> Wait<'_> {
        Wait {
            queue: self,
            ticket: None,
        }
    }

    /// Wakes the longest waiter; false when nobody waits. A waiter that is dropped before it went on passes the wake to the
    /// next. Any core, interrupt handlers too.
    pub fn wake_one(&self) -> bool {
        // A statement of its own: the lock is free again before the waker runs.
        let next = self.state.lock().waiters.grant();
        match next {
            Some(waker) => {
                waker.wake();
                true
            }
            None => false,
        }
    }

    /// Wakes all that wait now, in order; returns how many. Who begins to wait meanwhile is not among them. Any core,
    /// interrupt handlers too.
    pub fn wake_all(&self) -> usize {
        let last = self.state.lock().waiters.last();
        let mut woken = 0;
        loop {
            // A statement of its own: the lock is free again before the waker runs.
            let next = self.state.lock().waiters.grant_until(last);
            let Some(waker) = next else { return woken };
            waker.wake();
            woken += 1;
        }
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.state.lock().waiters.is_empty()
    }
}

impl Default for WaitQueue {
    fn default() -> Self {
        Self::new()
    }
}

/// What [`WaitQueue::wait`] and [`Event::wait`] return.
#[must_use = "a future does nothing unless it is awaited"]
pub struct Wait<'a> {
    queue: &'a WaitQueue,
    ticket: Option<Ticket>,
}

impl Future for Wait<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let queue = self.queue;
        let mut state = queue.state.lock();
        match self.ticket {
            Some(ticket) => {
                if state.waiters.look(ticket, context) == Turn::Waiting {
                    return Poll::Pending;
                }
                self.ticket = None;
            }
            None if !state.set => {
                self.ticket = state.waiters.enter(context);
                return Poll::Pending;
            }
            None => {}
        }
        Poll::Ready(())
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket
            && self.queue.state.lock().waiters.leave(ticket)
        {
            self.queue.wake_one();
        }
    }
}

/// Something that has happened or not: once set, everyone who waits goes on, and whoever comes later does not wait, until it
/// is cleared.
pub struct Event {
    queue: WaitQueue,
}

impl Event {
    /// An event that is not set.
    pub const fn new() -> Self {
        Self {
            queue: WaitQueue::new(),
        }
    }

    /// Sets it and wakes all that wait. Any core, interrupt handlers too.
    pub fn set(&self) {
        self.queue.state.lock().set = true;
        self.queue.wake_all();
    }

    /// Whoever waits from now on waits for the next [`set`](Self::set). Any core.
    pub fn clear(&self) {
        self.queue.state.lock().set = false;
    }

    /// Whether it is set.
    pub fn is_set(&self) -> bool {
        self.queue.state.lock().set
    }

    /// Waits until it is set. Who was let go by `set` goes on even if it was cleared again meanwhile.
    pub fn wait(&self) -> Wait<'_> {
        self.queue.wait()
    }
}

impl Default for Event {
    fn default() -> Self {
        Self::new()
    }
}

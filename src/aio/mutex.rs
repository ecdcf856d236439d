//! A lock that coroutines may hold while they wait for something.
use core::cell::UnsafeCell;
use core::future::Future;
use core::ops::{Deref, DerefMut};
use core::pin::Pin;
use core::task::{Context, Poll};

use super::wait_list::{Ticket, Turn, WaitList};
use crate::sync::IrqLock;

struct State {
    held: bool,
    waiters: WaitList,
}

/// Mutual exclusion between coroutines of any contexts, first come first served.
///
/// The holder may await while it holds it and may move to another context. Unlocking hands the lock to the longest
/// waiter, so whoever unlocks and locks again queues behind all that wait. A waiter that is dropped leaves the queue; if the
/// lock had been handed to it, it goes to the next. Not for interrupt handlers.
pub struct Mutex<T> {
    state: IrqLock<State>,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached through a guard only, of which `held` admits one at a time, so sharing the mutex moves
// access to the value from thread to thread, which `T: Send` allows.
unsafe impl<T: Send> Sync for Mutex<T> {}

impl<T> Mutex<T> {
    /// A free mutex around `value`.
    pub const fn new(value: T) -> Self {
        Self {
            state: IrqLock::new(State {
                held: false,
                waiters: WaitList::new(),
            }),
            value: UnsafeCell::new(value),
        }
    }

    /// Waits for the lock. Any coroutine.
    pub fn lock(&self) -> Lock<'_, T> {
        Lock {
            mutex: self,
            ticket: None,
        }
    }

    /// Takes the lock if nobody has it or waits for it. Any core, outside of coroutines too.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        let mut state = self.state.lock();
        if state.held || !state.waiters.is_empty() {
            return None;
        }
        state.held = true;
        Some(MutexGuard { mutex: self })
    }

    /// Whether somebody holds it, or has been handed it.
    pub fn is_held(&self) -> bool {
        self.state.lock().held
    }

    fn unlock(&self) {
        let next = {
            let mut state = self.state.lock();
            let next = state.waiters.grant();
            // Handed on, it stays held: nobody can come between.
            state.held = next.is_some();
            next
        };
        if let Some(waker) = next {
            waker.wake();
        }
    }
}

/// What [`Mutex::lock`] returns.
#[must_use = "a future does nothing unless it is awaited"]
pub struct Lock<'a, T> {
    mutex: &'a Mutex<T>,
    ticket: Option<Ticket>,
}

impl<'a, T> Future for Lock<'a, T> {
    type Output = MutexGuard<'a, T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mutex = self.mutex;
        let mut state = mutex.state.lock();
        match self.ticket {
            Some(ticket) => {
                if state.waiters.look(ticket, context) == Turn::Waiting {
                    return Poll::Pending;
                }
            }
            None if state.held || !state.waiters.is_empty() => {
                self.ticket = state.waiters.enter(context);
                return Poll::Pending;
            }
            None => state.held = true,
        }
        self.ticket = None;
        Poll::Ready(MutexGuard { mutex })
    }
}

impl<T> Drop for Lock<'_, T> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket
            && self.mutex.state.lock().waiters.leave(ticket)
        {
            self.mutex.unlock();
        }
    }
}

/// The lock is held until this is dropped, on whichever core.
#[must_use = "dropping the guard unlocks"]
pub struct MutexGuard<'a, T> {
    mutex: &'a Mutex<T>,
}

// SAFETY: the guard is a reference to the value: sharing it shares the value.
unsafe impl<T: Sync> Sync for MutexGuard<'_, T> {}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: this guard is the only one (`held` was won or handed over), so nobody else has a `&mut` to the value;
        // what the last holder wrote is visible, because both went through the lock around `state`.
        unsafe { &*self.mutex.value.get() }
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`, and `&mut self` makes this the guard's only borrow.
        unsafe { &mut *self.mutex.value.get() }
    }
}

impl<T> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        self.mutex.unlock();
    }
}

//! The coroutines that wait for one thing, first come first served: what [`Mutex`](super::Mutex),
//! [`WaitQueue`](super::WaitQueue) and [`Event`](super::Event) are made of.
//!
//! A waiter keeps its place until its own future takes it away. One that was granted its turn and is dropped before it
//! could use it is seen to by the owner of the list: the turn goes on to the next, so no wake-up is lost by a cancel.
#![forbid(unsafe_code)]

use core::task::{Context, Waker};

use heapless::Deque;

use super::lane::COROUTINE_SLOTS;

/// Who a place in the list belongs to; never used twice.
pub(super) type Ticket = u64;

struct Waiter {
    ticket: Ticket,
    waker: Waker,
    granted: bool,
}

/// Waiters in the order in which they came. A coroutine waits in one place at a time, so there is room for all.
pub(super) struct WaitList {
    waiters: Deque<Waiter, COROUTINE_SLOTS>,
    last: Ticket,
}

/// What a waiter finds when it looks.
#[derive(PartialEq, Eq)]
pub(super) enum Turn {
    /// It is its turn; its place is gone.
    Granted,
    /// Not yet.
    Waiting,
}

impl WaitList {
    pub(super) const fn new() -> Self {
        Self {
            waiters: Deque::new(),
            last: 0,
        }
    }

    /// Whether nobody waits, granted waiters included.
    pub(super) fn is_empty(&self) -> bool {
        self.waiters.is_empty()
    }

    /// Takes the last place. Without room (futures that wait several times in one coroutine can fill the list) the caller is
    /// woken at once, to ask again.
    pub(super) fn enter(&mut self, context: &Context<'_>) -> Option<Ticket> {
        let ticket = self.last + 1;
        let waiter = Waiter {
            ticket,
            waker: context.waker().clone(),
            granted: false,
        };
        if self.waiters.push_back(waiter).is_err() {
            context.waker().wake_by_ref();
            return None;
        }
        self.last = ticket;
        Some(ticket)
    }

    fn position(&self, ticket: Ticket) -> Option<usize> {
        self.waiters
            .iter()
            .position(|waiter| waiter.ticket == ticket)
    }

    /// Whether the turn of `ticket` has come; then its place is given up. Else its waker is the one of `context` from now on.
    pub(super) fn look(&mut self, ticket: Ticket, context: &Context<'_>) -> Turn {
        let Some(position) = self.position(ticket) else {
            return Turn::Granted;
        };
        match self.waiters.iter_mut().nth(position) {
            Some(waiter) if !waiter.granted => {
                waiter.waker.clone_from(context.waker());
                Turn::Waiting
            }
            _ => {
                self.remove(position);
                Turn::Granted
            }
        }
    }

    /// Gives the place of `ticket` up; true when it had been granted its turn and did not use it.
    pub(super) fn leave(&mut self, ticket: Ticket) -> bool {
        self.position(ticket)
            .is_some_and(|position| self.remove(position))
    }

    /// Grants the first waiter that has not been granted its turn; the caller wakes it once the lock is free.
    pub(super) fn grant(&mut self) -> Option<Waker> {
        self.grant_until(self.last)
    }

    /// The ticket of who came last.
    pub(super) fn last(&self) -> Ticket {
        self.last
    }

    /// As [`grant`](Self::grant), but nobody who came after `last`.
    pub(super) fn grant_until(&mut self, last: Ticket) -> Option<Waker> {
        let next = self
            .waiters
            .iter_mut()
            .find(|waiter| !waiter.granted && waiter.ticket <= last)?;
        next.granted = true;
        Some(next.waker.clone())
    }

    /// Takes the waiter at `position` out, the others in their order; returns whether it had been granted.
    fn remove(&mut self, position: usize) -> bool {
        let mut granted = false;
        for place in 0..self.waiters.len() {
            let Some(waiter) = self.waiters.pop_front() else {
                break;
            };
            if place == position {
                granted = waiter.granted;
            } else {
                // A place was freed just now.
                let _ = self.waiters.push_back(waiter);
            }
        }
        granted
    }
}

//! A FIFO of requests, chained through their own records: constant space, never full.
#![forbid(unsafe_code)]

use super::Request;

/// Two stacks that make a queue: `incoming` has the newest on top, `outgoing` the oldest. Each request is turned over once.
pub(crate) struct RequestQueue {
    incoming: Option<Request>,
    outgoing: Option<Request>,
    len: usize,
}

impl RequestQueue {
    pub(crate) const fn new() -> Self {
        Self {
            incoming: None,
            outgoing: None,
            len: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds behind all others.
    #[inline]
    pub(crate) fn push(&mut self, mut request: Request) {
        debug_assert!(request.next.is_none());
        request.next = self.incoming.take();
        self.incoming = Some(request);
        self.len += 1;
    }

    /// Adds before all others: for one that was popped and could not go.
    pub(crate) fn push_front(&mut self, mut request: Request) {
        debug_assert!(request.next.is_none());
        request.next = self.outgoing.take();
        self.outgoing = Some(request);
        self.len += 1;
    }

    /// Takes the oldest.
    #[inline]
    pub(crate) fn pop(&mut self) -> Option<Request> {
        if self.outgoing.is_none() {
            while let Some(mut request) = self.incoming.take() {
                self.incoming = request.next.take();
                request.next = self.outgoing.take();
                self.outgoing = Some(request);
            }
        }
        let mut request = self.outgoing.take()?;
        self.outgoing = request.next.take();
        self.len -= 1;
        Some(request)
    }

    /// Moves everything of `other` behind what is here; O(1) when this queue is empty.
    pub(crate) fn append(&mut self, other: &mut Self) {
        if self.is_empty() {
            core::mem::swap(self, other);
            return;
        }
        while let Some(request) = other.pop() {
            self.push(request);
        }
    }

    /// Everything, leaving it empty.
    pub(crate) fn take(&mut self) -> Self {
        core::mem::replace(self, Self::new())
    }
}

impl Drop for RequestQueue {
    fn drop(&mut self) {
        // One by one: a chain dropped from its head would recurse.
        while self.pop().is_some() {}
    }
}

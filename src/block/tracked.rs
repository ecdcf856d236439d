//! Tracked requests: which ranges a node works on, and who has to wait for whom (MQ-7).
//!
//! A node that cannot bear two requests in one range at once keeps a [`Tracked`] table. A *serialising* request has its range
//! for itself: it waits for every request there that came before, and every one that comes later waits for it. Others wait for
//! nobody else. Waiting is first come first served and only ever for earlier requests, so it has no cycles; the one way to wait
//! for a later one, [`serialise`](Tracked::serialise), leaves out those that already wait, directly or not, for the request
//! itself. A request never waits for its own entry.
//!
//! The table is of fixed size. Who finds it full waits for a place, in order.
//!
//! ```text
//!  begin ──▶ place free? ──no──▶ line ──(a place is free)──┐
//!              │ yes                                       │
//!              ▼                                           ▼
//!        overlaps? ──yes──▶ parked in its place ──(they ended)──▶ back to the node, on the frame's core
//!              │ no
//!              ▼
//!        the node goes on                      end ──▶ lets go those that wait for it
//! ```
//! Any core; the lock is held for one walk over the table, never across a callback.
#![forbid(unsafe_code)]

use spin::mutex::SpinMutex;

use super::request::complete;
use super::{Request, RequestQueue};

/// Requests that one table holds: one bit each in a word.
pub const PLACES: usize = 64;

/// Bits of a frame's stage that hold the request's place; the others are the node's.
pub const PLACE_MASK: u8 = PLACES as u8 - 1;

/// What a place knows of its request.
struct Place {
    /// Order of arrival.
    sequence: u64,
    offset: u64,
    len: u64,
    serialising: bool,
    /// Places that it waits for, one bit each.
    waits_for: u64,
    /// The request, while it waits.
    parked: Option<Request>,
}

impl Place {
    const FREE: Self = Self {
        sequence: 0,
        offset: 0,
        len: 0,
        serialising: false,
        waits_for: 0,
        parked: None,
    };

    fn overlaps(&self, offset: u64, len: u64) -> bool {
        // In this form nothing overflows, and an empty range overlaps nothing.
        if self.offset <= offset {
            len != 0 && offset - self.offset < self.len
        } else {
            self.len != 0 && self.offset - offset < len
        }
    }
}

struct Table {
    /// Places taken, one bit each.
    taken: u64,
    sequence: u64,
    places: [Place; PLACES],
    /// Those that found no place; `due_ns` of each notes whether it is serialising.
    line: RequestQueue,
}

/// The requests of one node.
pub struct Tracked {
    table: SpinMutex<Table>,
}

impl Tracked {
    /// An empty table.
    pub const fn new() -> Self {
        Self {
            table: SpinMutex::new(Table {
                taken: 0,
                sequence: 0,
                places: [const { Place::FREE }; PLACES],
                line: RequestQueue::new(),
            }),
        }
    }

    /// Enters a request with its window. Back at once, it may go on; else it comes back later, to the layer of its top frame.
    /// In both cases the frame's stage then holds its place.
    #[must_use]
    pub fn begin(&self, mut request: Request, serialising: bool) -> Option<Request> {
        let mut table = self.table.lock();
        // Only a full table has a line.
        if table.taken == u64::MAX {
            request.due_ns = u64::from(serialising);
            table.line.push(request);
            return None;
        }
        table.enter(request, serialising)
    }

    /// Makes a request that goes on now the only one in its range, widened to hold `[offset, offset + len)`; as
    /// [`begin`](Self::begin) otherwise.
    #[must_use]
    pub fn serialise(&self, request: Request, offset: u64, len: u64) -> Option<Request> {
        let mut table = self.table.lock();
        let me = usize::from(request.frame().stage & PLACE_MASK);
        let place = &mut table.places[me];
        let end = (place.offset + place.len).max(offset + len);
        place.offset = place.offset.min(offset);
        place.len = end - place.offset;
        place.serialising = true;
        let (offset, len) = (place.offset, place.len);
        let mut waits_for = 0;
        for other in ones(table.taken & !(1 << me)) {
            if table.places[other].overlaps(offset, len) && !table.waits_for(other, me) {
                waits_for |= 1 << other;
            }
        }
        table.park_or_go(me, waits_for, request)
    }

    /// The request in that place is done. Those that waited for it alone go on, in the order in which they came.
    pub fn end(&self, place: u8) {
        let mut ready = {
            let mut table = self.table.lock();
            table.leave(usize::from(place & PLACE_MASK))
        };
        while let Some(request) = ready.pop() {
            complete(request, Ok(()));
        }
    }

    /// Requests that have a place, and those that wait for one.
    pub fn usage(&self) -> (usize, usize) {
        let table = self.table.lock();
        (table.taken.count_ones() as usize, table.line.len())
    }
}

impl Default for Tracked {
    fn default() -> Self {
        Self::new()
    }
}

/// The bits that are set, from the lowest.
fn ones(mut bits: u64) -> impl Iterator<Item = usize> {
    core::iter::from_fn(move || {
        let one = (bits != 0).then(|| bits.trailing_zeros() as usize)?;
        bits &= bits - 1;
        Some(one)
    })
}

impl Table {
    /// Gives the request a place, of which there is one; back, when it need not wait.
    fn enter(&mut self, request: Request, serialising: bool) -> Option<Request> {
        let me = (!self.taken).trailing_zeros() as usize;
        let (offset, len) = (request.offset, request.len);
        let mut waits_for = 0;
        // All that are here came before.
        for other in ones(self.taken) {
            let place = &self.places[other];
            if (serialising || place.serialising) && place.overlaps(offset, len) {
                waits_for |= 1 << other;
            }
        }
        self.taken |= 1 << me;
        self.sequence += 1;
        self.places[me] = Place {
            sequence: self.sequence,
            offset,
            len,
            serialising,
            ..Place::FREE
        };
        self.park_or_go(me, waits_for, request)
    }

    fn park_or_go(&mut self, me: usize, waits_for: u64, mut request: Request) -> Option<Request> {
        let stage = request.stage_mut();
        *stage = *stage & !PLACE_MASK | me as u8;
        let place = &mut self.places[me];
        place.waits_for = waits_for;
        if waits_for == 0 {
            return Some(request);
        }
        place.parked = Some(request);
        None
    }

    /// Whether `one` waits for `other`, directly or not.
    fn waits_for(&self, one: usize, other: usize) -> bool {
        let mut all = self.places[one].waits_for;
        let mut looked_at = 0;
        loop {
            let new = all & !looked_at;
            if new == 0 {
                return all & 1 << other != 0;
            }
            looked_at |= new;
            for place in ones(new) {
                all |= self.places[place].waits_for;
            }
        }
    }

    /// Frees a place; those that can go on now, in order.
    fn leave(&mut self, me: usize) -> RequestQueue {
        debug_assert!(self.taken & 1 << me != 0, "a place was left twice");
        self.taken &= !(1 << me);
        let mut able = 0;
        for other in ones(self.taken) {
            let place = &mut self.places[other];
            place.waits_for &= !(1 << me);
            if place.waits_for == 0 && place.parked.is_some() {
                able |= 1u64 << other;
            }
        }
        let mut ready = RequestQueue::new();
        while let Some(first) = ones(able).min_by_key(|place| self.places[*place].sequence) {
            able &= !(1 << first);
            ready.extend(self.places[first].parked.take());
        }
        while self.taken != u64::MAX
            && let Some(request) = self.line.pop()
        {
            let serialising = request.due_ns != 0;
            ready.extend(self.enter(request, serialising));
        }
        ready
    }
}

impl RequestQueue {
    fn extend(&mut self, request: Option<Request>) {
        if let Some(request) = request {
            self.push(request);
        }
    }
}

//! Spare records: what a node makes further requests from, reserved before a request begins (CS-12).
//!
//! A graph in which a node makes several requests of one has a cost: how many further records one request can need below its
//! backend. The backend takes so many from its core's spares before the request goes down, hangs them on the request
//! ([`Request::take_spare`]), and puts them back when it comes up. So a node never finds none halfway, and no set of requests
//! can block each other over records. Where there are not enough, requests wait, first come first served, still counted in
//! flight: they go on as the others end, so a drain waits for them and ends.
//!
//! Spares are records of a pool of their own, kept by the core that made the request.
#![forbid(unsafe_code)]

use heapless::Vec;

use super::request::RequestRecord;
use super::{Request, RequestQueue};
use crate::arch::CoreId;
use crate::config::{MAX_CORES, SPARES_PER_CORE};
use crate::sync::{CachePadded, CoreArray, HomeCell, Pool};

static RECORDS: CoreArray<Pool<RequestRecord, SPARES_PER_CORE>> =
    CoreArray::new([const { CachePadded::new(Pool::new()) }; MAX_CORES]);

/// The spares of one core, and who waits for some.
struct Spares {
    free: Vec<Request, SPARES_PER_CORE>,
    /// Records taken out of the pool so far; a record leaves it once.
    made: usize,
    waiting: RequestQueue,
}

static SPARES: CoreArray<HomeCell<Spares>> = CoreArray::new(
    [const {
        CachePadded::new(HomeCell::new(Spares {
            free: Vec::new(),
            made: 0,
            waiting: RequestQueue::new(),
        }))
    }; MAX_CORES],
);

/// Prepares the current core.
pub(crate) fn start(core: CoreId) {
    SPARES.get(core).bind(core);
}

impl Spares {
    fn available(&self) -> usize {
        self.free.len() + SPARES_PER_CORE - self.made
    }

    fn take(&mut self, core: CoreId) -> Option<Request> {
        if let Some(spare) = self.free.pop() {
            return Some(spare);
        }
        let mut record = RECORDS.get(core).alloc(RequestRecord::empty(core)).ok()?;
        record.spare = true;
        self.made += 1;
        Some(Request::from_record(record))
    }

    /// Hangs `cost` spares on the request; false when there are not so many.
    fn give(&mut self, core: CoreId, request: &mut Request, cost: usize) -> bool {
        if self.available() < cost {
            return false;
        }
        for _ in 0..cost {
            let Some(spare) = self.take(core) else {
                return false;
            };
            request.hang(spare);
        }
        true
    }
}

/// Hangs `cost` spares on a request, on its home core, or keeps it until there are so many.
pub(super) fn reserve(mut request: Request, cost: usize) -> Option<Request> {
    let core = request.home;
    SPARES.get(core).with(|spares| {
        if spares.waiting.is_empty() && spares.give(core, &mut request, cost) {
            return Some(request);
        }
        // Nobody else uses it while the request waits.
        request.due_ns = cost as u64;
        spares.waiting.push(request);
        None
    })
}

impl Request {
    /// Takes one of the spares that were reserved for this request; `None`: its graph's cost was told wrong.
    pub fn take_spare(&mut self) -> Option<Self> {
        let mut spare = self.spares.take()?;
        self.spares = spare.next.take();
        Some(spare)
    }

    /// As [`take_spare`](Self::take_spare), with `below` further ones hung on it, for nodes below that need them.
    pub fn take_spare_with(&mut self, below: usize) -> Option<Self> {
        let mut spare = self.take_spare()?;
        for _ in 0..below {
            match self.take_spare() {
                Some(further) => spare.hang(further),
                None => {
                    self.give_spare(spare);
                    return None;
                }
            }
        }
        Some(spare)
    }

    /// Hangs a spare that is no longer needed, with all that hang on it, on the request again.
    pub fn give_spare(&mut self, mut spare: Self) {
        debug_assert!(spare.spare && spare.next.is_none() && spare.frames.is_empty());
        while let Some(further) = spare.take_spare() {
            self.hang(further);
        }
        self.hang(spare);
    }

    fn hang(&mut self, mut spare: Self) {
        spare.next = self.spares.take();
        self.spares = Some(spare);
    }
}

/// Puts the spares of a request back, on its home core.
pub(super) fn release(request: &mut Request) {
    while let Some(spare) = request.take_spare() {
        put_back(spare);
    }
}

/// Puts a spare back, on its home core.
pub(super) fn put_back(spare: Request) {
    SPARES.get(spare.home).with(|spares| {
        // Room for every record of the pool.
        if let Err(spare) = spares.free.push(spare) {
            debug_assert!(false, "more spares than the pool has");
            core::mem::forget(spare);
        }
    });
}

/// The request that waited longest, with its spares, when there are enough by now.
pub(super) fn next(core: CoreId) -> Option<Request> {
    SPARES.get(core).with(|spares| {
        let mut request = spares.waiting.pop()?;
        let cost = request.due_ns as usize;
        if spares.give(core, &mut request, cost) {
            return Some(request);
        }
        spares.waiting.push_front(request);
        None
    })
}

/// Spares of a core in use, and requests that wait for some. Only on that core.
pub fn usage(core: CoreId) -> (usize, usize) {
    SPARES
        .get(core)
        .with(|spares| (spares.made - spares.free.len(), spares.waiting.len()))
}

//! A backend's part on each core: what is in flight there, the gate that a drained section closes, what waits behind it.
//!
//! Everything here runs on the core it belongs to; the main loop only sets what it wants ([`Backend::gate`]) and reads the answers.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::accounting::{Counters, Latencies};
use super::backend::{Backend, NO_PARKING};
use super::node::NodeDriver;
use super::request::{RequestRecord, complete};
use super::{BlockError, Request, RequestQueue, drain};
use crate::arch::CoreId;
use crate::sync::HomeCell;

/// What one core keeps of a backend.
pub(super) struct Gate {
    /// The root, as of the last opening; `None`: look it up.
    pub(super) root: Option<&'static dyn NodeDriver>,
    /// The root instead, where its graph needs spare records, with how many: so only such a graph's requests pay for it.
    costly: Option<(&'static dyn NodeDriver, usize)>,
    pub(super) parking: bool,
    parked: RequestQueue,
    /// Change of the gate that this core has seen.
    generation: u64,
}

pub(crate) struct PerCore {
    pub(super) gate: HomeCell<Gate>,
    pub(super) in_flight: AtomicU32,
    pub(super) parked: AtomicU32,
    /// Generation for which this core owes the drain an answer; 0: none. Home core only.
    owes: AtomicU64,
    /// Last generation that this core answered.
    pub(crate) answered: AtomicU64,
    pub(super) counters: Counters,
    pub(super) latencies: Latencies,
}

impl PerCore {
    pub(super) const fn new() -> Self {
        Self {
            gate: HomeCell::new(Gate {
                root: None,
                costly: None,
                parking: false,
                parked: RequestQueue::new(),
                generation: 0,
            }),
            in_flight: AtomicU32::new(0),
            parked: AtomicU32::new(0),
            owes: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            counters: Counters::new(),
            latencies: Latencies::new(),
        }
    }
}

impl PerCore {
    #[inline]
    pub(super) fn count_up(&self) {
        let count = self.in_flight.load(Ordering::Relaxed) + 1;
        self.in_flight.store(count, Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn count_down(&self) {
        let left = self.in_flight.load(Ordering::Relaxed).wrapping_sub(1);
        self.in_flight.store(left, Ordering::Relaxed);
        if left == 0 && self.owes.load(Ordering::Relaxed) != 0 {
            self.answer();
        }
    }

    #[inline]
    pub(super) fn account(&self, record: &RequestRecord, latency_ns: u64) {
        self.counters
            .book(record.operation, record.len, record.result);
        self.latencies.book(record.operation, latency_ns);
    }

    #[cold]
    #[inline(never)]
    fn answer(&self) {
        let generation = self.owes.swap(0, Ordering::Relaxed);
        self.answered.store(generation, Ordering::Release);
        drain::kick();
    }
}

impl Backend {
    /// In a drained section, or for the first time since the root may have changed.
    #[cold]
    pub(super) fn submit_slowly(&'static self, mut request: Request) {
        let per_core = self.cores.get(request.home);
        // A change that this core has not come to yet: the backend may be new, and closed.
        self.apply_gate(request.home);
        let parking = per_core.gate.with(|gate| gate.parking);
        if parking && self.flags.load(Ordering::Relaxed) & NO_PARKING == 0 {
            request.queued = request.token.take().map(|token| token.park(self, &request));
            return per_core.gate.with(|gate| gate.parked.push(request));
        }
        self.admit_at_root(request);
    }

    /// Sends a counted request down to the root, whatever that is by now.
    fn admit_at_root(&'static self, request: Request) {
        match self.find_root(request.home) {
            Some((root, 0)) => self.admit(request, root),
            Some((root, cost)) => self.admit_at_cost(request, root, cost),
            None => complete(request, Err(BlockError::NoMedium)),
        }
    }

    /// The root, and how many spare records a request of its graph needs; remembered until the gate moves. Behind a closed one it may
    /// be another any time.
    pub(super) fn find_root(&self, core: CoreId) -> Option<(&'static dyn NodeDriver, usize)> {
        let cell = &self.cores.get(core).gate;
        if let Some(found) = cell.with(|gate| gate.costly.or(gate.root.map(|root| (root, 0)))) {
            return Some(found);
        }
        let root = self.root_driver()?;
        let cost = usize::from(root.info().cost);
        cell.with(|gate| match cost {
            _ if gate.parking => {}
            0 => gate.root = Some(root),
            _ => gate.costly = Some((root, cost)),
        });
        Some((root, cost))
    }

    pub(crate) fn parked_up(&self, core: CoreId) {
        self.cores.get(core).parked.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn parked_down(&self, core: CoreId) {
        self.cores.get(core).parked.fetch_sub(1, Ordering::Relaxed);
    }

    /// Brings this core's gate to what the main loop wants: parks, and answers when nothing is in flight; or opens, and lets go
    /// what is parked, in order.
    pub(crate) fn apply_gate(&'static self, core: CoreId) {
        let wanted = self.gate.load(Ordering::Acquire);
        let (generation, parking) = (wanted >> 1, wanted & 1 != 0);
        let per_core = self.cores.get(core);
        let change = per_core.gate.with(|gate| {
            if gate.generation == generation {
                return None;
            }
            gate.generation = generation;
            gate.parking = parking;
            gate.root = None;
            gate.costly = None;
            Some(if parking {
                RequestQueue::new()
            } else {
                gate.parked.take()
            })
        });
        let Some(mut released) = change else { return };
        if parking {
            per_core.owes.store(generation, Ordering::Relaxed);
            if per_core.in_flight.load(Ordering::Relaxed) == 0 {
                per_core.answer();
            }
            return;
        }
        per_core.owes.store(0, Ordering::Relaxed);
        // All are counted before the first goes, so that a drain that begins now waits for every one of them.
        let mut counted = RequestQueue::new();
        while let Some(mut request) = released.pop() {
            if let Some(queued) = request.queued.take() {
                request.token = Some(queued.admit(&request));
            }
            counted.push(request);
        }
        while let Some(request) = counted.pop() {
            self.admit_at_root(request);
        }
    }
}

//! In-flight tokens: what a drain counts (CS-5).
//!
//! A token is made before a request can be reached by anyone, travels in the record, spans everything the request does
//! (DUR-8), and is dropped after the completion returned (DRN-29). While a request is parked it carries a [`Queued`] token
//! instead, which does not count but keeps the backend from being deleted. Both live on the request's home core.
//!
//! Each token also fills a place in a table that any core may read, so that "what hangs, where, since when" has an answer
//! (CS-13) without a clock read: ages count in the seconds of [`watch`].
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering};

use super::gate::PerCore;
use super::request::RequestRecord;
use super::{Backend, Operation, Request, backend, core_state, watch};
use crate::arch::CoreId;
use crate::config::{MAX_CORES, REQUESTS_PER_CORE};
use crate::sync::{CachePadded, CoreArray};

/// One request in flight, as others see it.
struct Entry {
    /// 0, or `LIVE | disk << 48 | backend << 40 | operation << 32 | tick`.
    what: AtomicU64,
    /// Offset, from the backend's start.
    offset: AtomicU64,
}

const LIVE: u64 = 1 << 63;

static TABLE: CoreArray<[Entry; REQUESTS_PER_CORE]> = CoreArray::new(
    [const {
        CachePadded::new(
            [const {
                Entry {
                    what: AtomicU64::new(0),
                    offset: AtomicU64::new(0),
                }
            }; REQUESTS_PER_CORE],
        )
    }; MAX_CORES],
);

/// A request that is being worked on: its places in its core's part of the backend and in the table.
#[must_use = "dropping the token ends the request's count"]
pub(crate) struct InFlight {
    per_core: &'static PerCore,
    entry: &'static Entry,
    started_ns: u64,
}

/// A request that waits for the end of a drained section.
#[must_use = "dropping the token forgets the parked request"]
pub(crate) struct Queued {
    backend: &'static Backend,
    core: u16,
}

impl InFlight {
    /// Counts `request`, on its home core, before anybody else can see it.
    #[inline]
    pub(crate) fn new(backend: &'static Backend, request: &Request) -> Self {
        let core = request.home;
        let per_core = backend.cores.get(core);
        per_core.count_up();
        let what = LIVE
            | (backend.index() as u64) << 40
            | (request.operation.index() as u64) << 32
            | u64::from(watch::tick());
        let entry = &TABLE.get(core)[request.index()];
        entry.offset.store(request.offset, Ordering::Relaxed);
        entry.what.store(what, Ordering::Relaxed);
        Self {
            per_core,
            entry,
            started_ns: core_state::turn_ns(core),
        }
    }

    /// Ends the count while `request` waits for the end of a drain. The other token is made before, so that it is never
    /// without one.
    pub(crate) fn park(self, backend: &'static Backend, request: &Request) -> Queued {
        Queued::new(backend, request.home)
    }

    /// Whose count it is.
    pub(crate) fn backend(&self) -> &'static Backend {
        let index = self.entry.what.load(Ordering::Relaxed) >> 40 & 0xff;
        &backend::arena()[index as usize]
    }

    /// Notes that the request is with the disk of which `mark` is the [`disk_mark`].
    #[inline]
    pub(crate) fn at_disk(&self, mark: u64) {
        let what = &self.entry.what;
        what.store(what.load(Ordering::Relaxed) | mark, Ordering::Relaxed);
    }

    /// Books the finished request.
    #[inline]
    pub(crate) fn account(&self, record: &RequestRecord) {
        let now = core_state::turn_ns(record.home);
        self.per_core
            .account(record, now.saturating_sub(self.started_ns));
    }
}

/// How the table says that disk number `disk` has a request.
pub(crate) const fn disk_mark(disk: usize) -> u64 {
    (disk as u64 + 1) << 48
}

impl Drop for InFlight {
    #[inline]
    fn drop(&mut self) {
        self.entry.what.store(0, Ordering::Relaxed);
        self.per_core.count_down();
    }
}

impl Queued {
    fn new(backend: &'static Backend, core: CoreId) -> Self {
        backend.parked_up(core);
        Self {
            backend,
            core: core as u16,
        }
    }

    /// Counts the request again, before it is let go (DRN-12).
    pub(crate) fn admit(self, request: &Request) -> InFlight {
        InFlight::new(self.backend, request)
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.backend.parked_down(self.core as CoreId);
    }
}

/// A request in flight, as a person wants to see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InFlightView {
    /// Number of its backend ([`Backend::index`]).
    pub backend: usize,
    /// Number of the disk that has it, if it has come so far.
    pub disk: Option<usize>,
    /// What it does.
    pub operation: Operation,
    /// First byte, from the backend's start.
    pub offset: u64,
    /// Core that submitted it.
    pub core: CoreId,
    /// Seconds since then.
    pub age_s: u32,
}

/// Calls `f` for every request in flight; a snapshot without locks, so one that just ended may still be in it.
pub fn for_each_in_flight(mut f: impl FnMut(InFlightView)) {
    let now = watch::tick();
    for core in 0..MAX_CORES {
        if core_state::started() & (1 << core) == 0 {
            continue;
        }
        for entry in TABLE.get(core) {
            let what = entry.what.load(Ordering::Relaxed);
            if what & LIVE == 0 {
                continue;
            }
            f(InFlightView {
                backend: (what >> 40) as usize & 0xff,
                disk: ((what >> 48) as usize & 0xff).checked_sub(1),
                operation: Operation::ALL[((what >> 32) as usize & 0xf).min(4)],
                offset: entry.offset.load(Ordering::Relaxed),
                core,
                age_s: now.wrapping_sub(what as u32),
            });
        }
    }
}

//! Finds lost wake-ups, and only finds them (CS-3): a context that sleeps although there is work for it.
//!
//! A look is a handful of loads from another core. It writes nothing that the watched loop reads, and it wakes nobody,
//! so a protocol that loses a wake-up stays broken for all to see. A wake-up may be on its way at the moment of a
//! look; therefore one look accuses nobody: the same sleep, not a turn further, has to be found twice, [`APART_NS`]
//! apart. If the looks are much further apart, the machine as a whole stood still, and the first look is forgotten.
#![forbid(unsafe_code)]

use log::error;

use super::context::AioContext;
use crate::arch;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Least time between two looks that count, in ns. A looker may come as often as it likes.
const APART_NS: u64 = 900_000_000;
/// Most time between them.
const STALE_NS: u64 = 4_000_000_000;
/// How far behind us the deadline of a timer must lie before its context is late.
const SLACK_NS: u64 = 500_000_000;

/// What the watchdog knows about a context.
pub(super) struct Watch {
    /// When somebody looked last; taken by an exchange, so that one looker at a time goes on.
    looked_ns: AtomicU64,
    /// Sleeps of the context, plus one, when it was found asleep with work waiting; 0: it was not.
    suspect: AtomicU64,
    lost: AtomicU32,
}

impl Watch {
    pub(super) const fn new() -> Self {
        Self {
            looked_ns: AtomicU64::new(0),
            suspect: AtomicU64::new(0),
            lost: AtomicU32::new(0),
        }
    }

    pub(super) fn lost(&self) -> u32 {
        self.lost.load(Ordering::Relaxed)
    }
}

impl AioContext {
    /// Looks whether this context has lost a wake-up; called every now and then by another core's callbacks, at least
    /// once a second for looks to count. Sleeping with work for two such looks is counted once, in
    /// [`ContextStats::lost_wakeups`](super::ContextStats), and the first time it is logged. Never wakes it.
    pub fn watch(&self) {
        let now = arch::now_ns();
        let watch = &self.watch;
        let looked = watch.looked_ns.load(Ordering::Relaxed);
        let since = now.saturating_sub(looked);
        if since < APART_NS
            || watch
                .looked_ns
                .compare_exchange(looked, now, Ordering::AcqRel, Ordering::Relaxed)
                .is_err()
        {
            return;
        }
        let Some(what) = self.oversleeps(now) else {
            watch.suspect.store(0, Ordering::Relaxed);
            return;
        };
        // A context sleeps at most once a turn, so the same number is the same sleep.
        let sleep = self.counters.sleeps.get() + 1;
        if watch.suspect.swap(sleep, Ordering::Relaxed) != sleep || since > STALE_NS {
            return;
        }
        // Found again at every later look, so the count tells how long it has been standing.
        if watch.lost.fetch_add(1, Ordering::Relaxed) == 0 {
            error!(
                "context {} sleeps although there is {what} for it: a wake-up was lost",
                self.name()
            );
        }
    }

    /// What a sleeping context should be awake for.
    fn oversleeps(&self, now: u64) -> Option<&'static str> {
        if self.notify_me.load(Ordering::Acquire) == 0 {
            None
        } else if self.notified.load(Ordering::Relaxed) {
            Some("a notification")
        } else if self.lanes.signalled() {
            Some("a bottom half")
        } else if self.handlers.any_ready() {
            Some("an event")
        } else if self.timers.earliest() < now.saturating_sub(SLACK_NS) {
            Some("a timer long due")
        } else {
            None
        }
    }
}

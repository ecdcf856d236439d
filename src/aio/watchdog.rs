//! Finds lost wake-ups, and only finds them (CS-3): a context that sleeps although there is work for it.
//!
//! A look is a handful of loads from another core. It writes nothing that the watched loop reads, and it wakes nobody,
//! so a protocol that loses a wake-up stays broken for all to see. A wake-up may be on its way at the moment of a
//! look; therefore one look accuses nobody: the same sleep, not a turn further, has to be found twice, [`APART_NS`]
//! apart. If the looks are much further apart, the machine as a whole stood still, and the first look is forgotten.
//!
//! Whoever looks regularly is woken by its own timer, and then oversleeps nothing for long. So the watch goes round
//! ([`start_watch`]): one core has it for a while, looks at all the others, and hands it on, but never to a core that
//! seems to oversleep, since that would wake it. Until the next one has begun the last one goes on, so a hand-over
//! that gets lost is found like any other wake-up.
#![forbid(unsafe_code)]

use log::error;

use super::callback::{AioError, Callback};
use super::context::{AioContext, context};
use super::timer::Timer;
use crate::arch::{self, CoreId};
use crate::config::MAX_CORES;
use crate::sync::IrqLock;
use crate::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

/// Least time between two looks that count, in ns. A looker may come as often as it likes.
const APART_NS: u64 = 900_000_000;
/// Most time between them.
const STALE_NS: u64 = 4_000_000_000;
/// How far behind us the deadline of a timer must lie before its context is late.
const SLACK_NS: u64 = 500_000_000;
/// How often the core on watch looks.
const PERIOD_NS: u64 = 1_000_000_000;
/// Looks after which the watch is handed on.
const TURN: u32 = 8;

/// The timer of each core that wakes it for its looks.
static TIMERS: IrqLock<[Option<Timer>; MAX_CORES]> = IrqLock::new([None; MAX_CORES]);
static ON_WATCH: AtomicUsize = AtomicUsize::new(0);
/// The core that was asked to take over, plus one; 0: nobody.
static RELIEF: AtomicUsize = AtomicUsize::new(0);
/// Looks of the core on watch since it took over; written by it alone.
static LOOKS: AtomicU32 = AtomicU32::new(0);

/// Begins to watch all online cores' loops, from the core that calls it. With one core there is nothing to do: nobody
/// could look at it without waking it. A loop that is stopped while it has the watch ends it.
///
/// # Errors
/// [`AioError::Exhausted`] when a context has no timer left.
pub fn start_watch() -> Result<(), AioError> {
    let (Some(own), true) = (arch::current_core(), arch::cores() > 1) else {
        return Ok(());
    };
    for core in 0..arch::cores() {
        let timer = context(core).timer("watchdog", Callback::new(&look_around, core))?;
        TIMERS.lock()[core] = Some(timer);
    }
    RELIEF.store(0, Ordering::Relaxed);
    LOOKS.store(0, Ordering::Relaxed);
    ON_WATCH.store(own, Ordering::Release);
    look_around(own);
    Ok(())
}

/// The core that has the watch.
pub fn on_watch() -> CoreId {
    ON_WATCH.load(Ordering::Relaxed)
}

/// Lets `core` look a period from now; false when its loop was stopped.
fn arm(core: CoreId) -> bool {
    let timer = TIMERS.lock()[core];
    timer.is_some_and(|timer| timer.arm_at(arch::now_ns() + PERIOD_NS))
}

/// The timer of `core`, the current one.
fn look_around(core: usize) {
    if ON_WATCH.load(Ordering::Acquire) != core {
        let asked = RELIEF.load(Ordering::Acquire) == core + 1;
        if !asked {
            // Relieved: this was the last tick.
            return;
        }
        LOOKS.store(0, Ordering::Relaxed);
        ON_WATCH.store(core, Ordering::Release);
        RELIEF.store(0, Ordering::Release);
    }
    let cores = arch::cores();
    let others = (1..cores).map(|n| (core + n) % cores);
    others.clone().for_each(|other| context(other).watch());
    let looks = LOOKS.load(Ordering::Relaxed) + 1;
    LOOKS.store(looks, Ordering::Relaxed);
    if looks >= TURN && RELIEF.load(Ordering::Acquire) == 0 {
        for next in others.filter(|other| !context(*other).seems_to_oversleep()) {
            RELIEF.store(next + 1, Ordering::Release);
            if arm(next) {
                break;
            }
            RELIEF.store(0, Ordering::Release);
        }
    }
    arm(core);
}

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

    /// Whether a look now or the last one found something.
    fn seems_to_oversleep(&self) -> bool {
        self.watch.suspect.load(Ordering::Relaxed) != 0 || self.oversleeps(arch::now_ns()).is_some()
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

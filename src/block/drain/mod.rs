//! Drained sections of backends: a state machine with generations, no nested loop (CS-4).
//!
//! ```text
//!            begin (0→1):                  no listener busy:            every core answered,
//!            listeners told                gate closed on every core    no listener busy again
//!  Running ───────────────▶ Listeners ───────────────────▶ Cores ───────────────────────────▶ Quiet ── done callbacks
//!     ▲                        ▲                             │                                  │
//!     │                        └──── a listener is busy ─────┘                                  │
//!     └───────────────────────── end (1→0): gates opened, listeners told ───────────────────────┘
//! ```
//! A core closes its gate when it hears of the new generation and answers once, when nothing of that backend is in flight on
//! it. All of this runs in the main loop, but for the cores' own part (`Backend::apply_gate`). What arrives meanwhile is parked
//! in the order of arrival and let go, counted first, before anything newer (DRN-12, DRN-25).
//!
//! Two entries: [`Backend::drain_begin`] never waits and is refused while a context lock is held; [`Backend::drained`] waits, and
//! is for the main loop outside coroutines.
#![forbid(unsafe_code)]

mod report;

use core::sync::atomic::{AtomicU64, Ordering};

use heapless::Vec;

pub(crate) use report::report_slow;
pub use report::{DrainState, for_each_section};

use super::backend::{self, Backend, BackendListener, LISTENERS};
use super::graph::drain::Telling;
use super::node::throttle;
use super::{BlockError, core_state, graph, watch};
use crate::aio::{self, BottomHalf, Callback};
use crate::arch::{self, CoreId};
use crate::config::{BACKENDS, MAX_CORES};
use crate::sync::{CachePadded, CoreArray, IrqLock, caller_levels};

/// Callers that can wait for one backend's section at once.
const WAITERS: usize = 8;

const _: () = assert!(BACKENDS <= 64, "one bit a backend");

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    Listeners,
    Cores,
    Quiet,
}

/// The main loop's part of a backend.
pub(crate) struct Section {
    count: u32,
    phase: Phase,
    since_tick: u32,
    reported: bool,
    waiters: Vec<Callback, WAITERS>,
    listeners: Vec<&'static dyn BackendListener, LISTENERS>,
}

impl Section {
    pub(crate) const fn new() -> Self {
        Self {
            count: 0,
            phase: Phase::Running,
            since_tick: 0,
            reported: false,
            waiters: Vec::new(),
            listeners: Vec::new(),
        }
    }
}

/// Backends whose gate has changed, one bit each, per core.
static CHANGED: CoreArray<AtomicU64> =
    CoreArray::new([const { CachePadded::new(AtomicU64::new(0)) }; MAX_CORES]);
static GATE_BH: CoreArray<IrqLock<Option<BottomHalf>>> =
    CoreArray::new([const { CachePadded::new(IrqLock::new(None)) }; MAX_CORES]);
static MAIN_BH: IrqLock<Option<BottomHalf>> = IrqLock::new(None);
pub(crate) fn start(core: CoreId) -> Result<(), BlockError> {
    let context = aio::context(core);
    let gates = context
        .bottom_half("block gates", Callback::new(&apply_gates, core))
        .map_err(|_| BlockError::NoMemory)?;
    *GATE_BH.get(core).lock() = Some(gates);
    if core == 0 {
        graph::drain::start()?;
        let main = context
            .bottom_half("drain", Callback::new(&advance_all, 0))
            .map_err(|_| BlockError::NoMemory)?;
        *MAIN_BH.lock() = Some(main);
    }
    Ok(())
}

/// Makes the main loop look at its drained sections again. Any core.
pub fn drain_kick() {
    kick();
}

pub(crate) fn kick() {
    let main = *MAIN_BH.lock();
    if let Some(main) = main {
        main.schedule();
    }
}

fn apply_gates(core: CoreId) {
    let mut changed = CHANGED.get(core).swap(0, Ordering::AcqRel);
    while changed != 0 {
        let index = changed.trailing_zeros() as usize;
        changed &= changed - 1;
        backend::arena()[index].apply_gate(core);
    }
}

/// Sets the gate of `backend` for all cores; returns nothing: cores hear of it in their own time.
fn set_gate(backend: &'static Backend, parking: bool) {
    let generation = (backend.gate.load(Ordering::Relaxed) >> 1) + 1;
    backend
        .gate
        .store(generation << 1 | u64::from(parking), Ordering::Release);
    let bit = 1u64 << backend.index();
    for core in started_cores() {
        CHANGED.get(core).fetch_or(bit, Ordering::AcqRel);
        let gates = *GATE_BH.get(core).lock();
        if let Some(gates) = gates {
            gates.schedule();
        }
    }
}

fn started_cores() -> impl Iterator<Item = CoreId> {
    let started = core_state::started();
    (0..MAX_CORES).filter(move |core| started & (1 << core) != 0)
}

/// Calls `f` for each listener, with no borrow held.
pub(crate) fn for_each_listener(
    backend: &'static Backend,
    mut f: impl FnMut(&'static dyn BackendListener),
) {
    let listeners = backend.section.with(|section| section.listeners.clone());
    let _telling = Telling::begin();
    for listener in listeners {
        f(listener);
    }
}

fn any_listener_busy(backend: &'static Backend) -> bool {
    let mut busy = false;
    for_each_listener(backend, |listener| busy |= listener.drained_poll(backend));
    busy
}

/// A new backend, closed on every core until [`open_gate`]. One without a node joins the sections over everything by itself; the
/// others hear of them through their root.
pub(crate) fn created(backend: &'static Backend, rootless: bool) {
    let sections = if rootless {
        graph::drain::sections_over_all()
    } else {
        0
    };
    backend.section.with(|section| {
        section.count = sections;
        section.phase = if sections == 0 {
            Phase::Running
        } else {
            Phase::Listeners
        };
        section.since_tick = watch::tick();
        section.reported = false;
        section.waiters.clear();
        section.listeners.clear();
    });
}

/// Opens the gates of a new backend, unless it is drained already; then its gates are closed from the first request on.
pub(crate) fn open_gate(backend: &'static Backend) {
    let drained = backend.section.with(|section| {
        let drained = section.count > 0;
        if drained {
            // Nobody has had the time to listen.
            section.phase = Phase::Cores;
        }
        drained
    });
    set_gate(backend, drained);
    if drained {
        kick();
    }
}

/// A deleted backend's sections end with it.
pub(crate) fn deleted(backend: &'static Backend) {
    backend.section.with(|section| {
        section.count = 0;
        section.phase = Phase::Running;
        section.waiters.clear();
        section.listeners.clear();
    });
    throttle::users_changed();
}

fn advance_all(_: usize) {
    for backend in backend::backends() {
        while advance(backend) {}
    }
    graph::drain::finish_waiting();
}

/// One step of a backend's machine; whether another may follow at once.
fn advance(backend: &'static Backend) -> bool {
    match backend.section.with(|section| section.phase) {
        Phase::Running => false,
        // Whoever began a further section has nothing to wait for.
        Phase::Quiet => call_waiters(backend),
        Phase::Listeners => {
            if any_listener_busy(backend) {
                return false;
            }
            backend.section.with(|section| section.phase = Phase::Cores);
            set_gate(backend, true);
            // The cores answer from their own loops.
            false
        }
        Phase::Cores => {
            let generation = backend.gate.load(Ordering::Relaxed) >> 1;
            if started_cores()
                .any(|core| backend.cores.get(core).answered.load(Ordering::Acquire) != generation)
            {
                return false;
            }
            if any_listener_busy(backend) {
                backend
                    .section
                    .with(|section| section.phase = Phase::Listeners);
                return true;
            }
            backend.section.with(|section| {
                section.phase = Phase::Quiet;
                if section.reported {
                    let seconds = watch::tick().wrapping_sub(section.since_tick);
                    log::warn!("drain of {} over after {seconds} s", backend.name());
                }
            });
            aio::wait_kick();
            call_waiters(backend)
        }
    }
}

fn call_waiters(backend: &'static Backend) -> bool {
    let waiters = backend
        .section
        .with(|section| core::mem::take(&mut section.waiters));
    for waiter in waiters {
        waiter.call();
    }
    false
}

impl Backend {
    /// Adds a listener. Main loop only. In a drained section it is told at once that one is on.
    ///
    /// # Errors
    /// `NoMemory` when there are [`LISTENERS`] already.
    pub fn add_listener(
        &'static self,
        listener: &'static dyn BackendListener,
    ) -> Result<(), BlockError> {
        let drained = self.section.with(|section| {
            section
                .listeners
                .push(listener)
                .map_err(|_| BlockError::NoMemory)?;
            Ok::<_, BlockError>(section.count > 0)
        })?;
        if drained {
            listener.drained_begin(self);
        }
        Ok(())
    }

    /// Removes a listener; it hears the end of a section that it heard begin. Main loop only.
    pub fn remove_listener(&'static self, listener: &'static dyn BackendListener) {
        let told = self.section.with(|section| {
            let place = section
                .listeners
                .iter()
                .position(|l| core::ptr::addr_eq(*l, listener));
            place.map(|place| {
                section.listeners.remove(place);
                section.count > 0
            })
        });
        if told == Some(true) {
            listener.drained_end(self);
            kick();
        }
    }

    /// Begins a drained section: `done` is called in the main loop, later, when everything that entered before has completed and
    /// nothing new gets in. Sections nest. Main loop only.
    ///
    /// # Errors
    /// `Busy` while this core holds a context lock; `Invalid` off the main loop; `NoMemory` when too many wait already. On
    /// an error no section has begun.
    pub fn drain_begin(&'static self, done: Callback) -> Result<(), BlockError> {
        if caller_levels() != 0 {
            return Err(BlockError::Busy);
        }
        self.begin(Some(done))
    }

    /// The same also while this core holds a context lock: for what goes on from a bottom half by itself.
    pub(crate) fn drain_begin_locked(&'static self, done: Callback) -> Result<(), BlockError> {
        self.begin(Some(done))
    }

    /// Begins a section for an edge: nobody waits for this backend alone.
    pub(crate) fn begin_quietly(&'static self) {
        // Without a waiter only another core could be refused.
        let begun = self.begin(None);
        debug_assert!(begun.is_ok());
    }

    fn begin(&'static self, done: Option<Callback>) -> Result<(), BlockError> {
        if arch::current_core() != Some(0) {
            return Err(BlockError::Invalid);
        }
        let first = self.section.with(|section| {
            if let Some(done) = done {
                section
                    .waiters
                    .push(done)
                    .map_err(|_| BlockError::NoMemory)?;
            }
            section.count += 1;
            if section.count == 1 {
                section.phase = Phase::Listeners;
                section.since_tick = watch::tick();
                section.reported = false;
            }
            Ok::<_, BlockError>(section.count == 1)
        })?;
        if first {
            for_each_listener(self, |listener| listener.drained_begin(self));
            throttle::users_changed();
        }
        kick();
        Ok(())
    }

    /// Ends a drained section. On the last end, gates open and what is parked goes on. Never waits. Main loop only.
    pub fn drain_end(&'static self) {
        let last = self.section.with(|section| {
            debug_assert!(
                section.count > 0,
                "a drained section ended that never began"
            );
            section.count = section.count.saturating_sub(1);
            if section.count == 0 {
                section.phase = Phase::Running;
                debug_assert!(
                    section.waiters.is_empty(),
                    "a drained section ended before it was quiet"
                );
            }
            section.count == 0
        });
        if last {
            throttle::users_changed();
            set_gate(self, false);
            for_each_listener(self, |listener| listener.drained_end(self));
        }
    }

    /// Begins a drained section and waits until it is quiet; the guard ends it. Main loop only, outside coroutines; allowed between
    /// `acquire` and `release` of the main context.
    ///
    /// # Errors
    /// `Invalid` off the main loop; `Busy` in a callback of a drained section (DRN-8).
    pub fn drained(&'static self) -> Result<DrainGuard, BlockError> {
        if Telling::is_on() {
            return Err(BlockError::Busy);
        }
        self.begin(None)?;
        let guard = DrainGuard { backend: self };
        aio::wait_while(|| !self.is_quiet());
        Ok(guard)
    }

    /// Whether a drained section is on and quiet. Main loop only.
    pub fn is_quiet(&'static self) -> bool {
        self.section.with(|section| section.phase == Phase::Quiet)
    }

    /// How many drained sections are on. Main loop only.
    pub fn quiesce_count(&'static self) -> u32 {
        self.section.with(|section| section.count)
    }
}

/// A drained section; ends when dropped (CS-6).
#[must_use = "the section ends when the guard is dropped"]
pub struct DrainGuard {
    backend: &'static Backend,
}

impl Drop for DrainGuard {
    fn drop(&mut self) {
        self.backend.drain_end();
    }
}

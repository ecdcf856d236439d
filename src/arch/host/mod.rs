//! The host's stand-in for a machine: a core is a thread, an interrupt is a call, a kick is a condition variable.
//!
//! Two ways to use it:
//! - **threads**: every thread calls [`enter_core`] with its own id; [`wait`] really sleeps and [`kick`] really wakes.
//! - **stepped**: one thread enters several cores one after another (guards nest) after [`set_stepped`]`(true)`;
//!   [`wait`] then returns at once and counts the sleep it would have been, so that a run is deterministic.
//!
//! Time is real, or set by hand through [`clock`]. A core id belongs to one thread at a time: [`enter_core`] waits for
//! its turn, which also keeps tests of one process that use the same core from disturbing each other; a test that uses
//! several cores takes [`machine`] first.
use core::cell::{Cell, RefCell};
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::boxed::Box;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Duration;
use std::vec::Vec;

use crate::arch::CoreId;
use crate::config::MAX_CORES;

pub mod clock;
#[cfg(preempt)]
pub mod preempt;

std::thread_local! {
    static CORE: Cell<Option<CoreId>> = const { Cell::new(None) };
    static MASK_DEPTH: Cell<usize> = const { Cell::new(0) };
    static INTERRUPT_DEPTH: Cell<usize> = const { Cell::new(0) };
    static HAS_PENDING: Cell<bool> = const { Cell::new(false) };
    static PENDING_INTERRUPTS: RefCell<Vec<Box<dyn FnOnce()>>> = const { RefCell::new(Vec::new()) };
}

/// What [`irq_mask`] found: whether interrupts were masked before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the state has to be given back with irq_restore"]
pub struct IrqState(usize);

/// The wake-up line of one core: sticky, as a pending SGI is.
struct Line {
    kicked: Mutex<bool>,
    changed: Condvar,
    kicks: AtomicU64,
    sleeps: AtomicU64,
}

static LINES: [Line; MAX_CORES] = [const {
    Line {
        kicked: Mutex::new(false),
        changed: Condvar::new(),
        kicks: AtomicU64::new(0),
        sleeps: AtomicU64::new(0),
    }
}; MAX_CORES];

static CORES: AtomicUsize = AtomicUsize::new(1);
static ON_WAIT: Mutex<Option<&'static (dyn Fn() + Sync)>> = Mutex::new(None);
static STEPPED: AtomicBool = AtomicBool::new(false);

/// Which thread is which core.
static OCCUPANTS: Mutex<[Option<ThreadId>; MAX_CORES]> = Mutex::new([None; MAX_CORES]);
static VACATED: Condvar = Condvar::new();
static MACHINE: Mutex<()> = Mutex::new(());

/// A mutex of the test machine stays usable after a test that panicked while holding it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The whole machine for one test that uses several cores; see [`machine`].
pub struct Machine {
    _turn: MutexGuard<'static, ()>,
}

/// Takes the machine for one multi-core test: `cores` online, not stepped, real clock, no kick pending.
/// Blocks until the test that holds it lets go.
///
/// # Panics
/// When `cores` is 0 or above `MAX_CORES`.
pub fn machine(cores: usize) -> Machine {
    let turn = lock(&MACHINE);
    set_cores(cores);
    set_stepped(false);
    on_wait(None);
    clock::real();
    for line in &LINES {
        *lock(&line.kicked) = false;
    }
    Machine { _turn: turn }
}

impl Drop for Machine {
    fn drop(&mut self) {
        set_stepped(false);
        clock::real();
        set_cores(1);
    }
}

/// Makes the current thread core `id` until it is dropped; then the thread is again what it was before.
pub struct CoreGuard {
    id: CoreId,
    previous: Option<CoreId>,
    /// The same thread had this id already, further out.
    nested: bool,
    /// A guard ends in the thread in which it began.
    _not_send: core::marker::PhantomData<*const ()>,
}

/// Registers the current thread as core `id`; blocks while another thread is that core.
///
/// # Panics
/// When `id` is not below `MAX_CORES`.
pub fn enter_core(id: CoreId) -> CoreGuard {
    assert!(id < MAX_CORES, "core {id} does not exist");
    let me = thread::current().id();
    let mut occupants = lock(&OCCUPANTS);
    let nested = occupants[id] == Some(me);
    while occupants[id].is_some_and(|other| other != me) {
        occupants = VACATED
            .wait(occupants)
            .unwrap_or_else(PoisonError::into_inner);
    }
    occupants[id] = Some(me);
    drop(occupants);
    let previous = CORE.replace(Some(id));
    CoreGuard {
        id,
        previous,
        nested,
        _not_send: core::marker::PhantomData,
    }
}

impl Drop for CoreGuard {
    fn drop(&mut self) {
        CORE.set(self.previous);
        if !self.nested {
            lock(&OCCUPANTS)[self.id] = None;
            VACATED.notify_all();
        }
    }
}

/// Sets the number of online cores that [`cores`] reports.
///
/// # Panics
/// When `n` is 0 or above `MAX_CORES`.
pub fn set_cores(n: usize) {
    assert!((1..=MAX_CORES).contains(&n), "{n} cores");
    CORES.store(n, Ordering::SeqCst);
}

/// In stepped mode [`wait`] returns at once; the simulator decides which core runs next.
pub fn set_stepped(stepped: bool) {
    STEPPED.store(stepped, Ordering::SeqCst);
}

/// How often `core` slept, or would have slept in stepped mode.
pub fn sleeps(core: CoreId) -> u64 {
    LINES[core].sleeps.load(Ordering::Relaxed)
}

/// Runs `handler` as an interrupt of the current core: [`in_interrupt`] is true and interrupts are masked inside.
///
/// # Panics
/// When interrupts are masked: the machine would not have delivered it here.
pub fn interrupt<R>(handler: impl FnOnce() -> R) -> R {
    assert_eq!(
        MASK_DEPTH.get(),
        0,
        "an interrupt arrived although they are masked"
    );
    struct Leave(IrqState);
    impl Drop for Leave {
        fn drop(&mut self) {
            INTERRUPT_DEPTH.set(INTERRUPT_DEPTH.get() - 1);
            irq_restore(self.0);
        }
    }
    let _leave = Leave(irq_mask());
    INTERRUPT_DEPTH.set(INTERRUPT_DEPTH.get() + 1);
    handler()
}

/// In stepped mode, calls `f` instead of sleeping in [`wait`]: what happens in the world meanwhile. `None`: nothing.
pub fn on_wait(f: Option<&'static (dyn Fn() + Sync)>) {
    *lock(&ON_WAIT) = f;
}

/// Lets `handler` run as an interrupt of this thread's core as soon as interrupts are unmasked: for use in
/// [`on_wait`], where they are masked as they would be around a real wait.
pub fn after_wait_interrupt(handler: impl FnOnce() + 'static) {
    HAS_PENDING.set(true);
    PENDING_INTERRUPTS.with_borrow_mut(|pending| pending.push(Box::new(handler)));
}

/// The core that runs this code; `None` on a thread that is no core.
#[inline]
pub fn current_core() -> Option<CoreId> {
    CORE.get()
}

/// Masks interrupts on this core and says how it was before.
#[inline]
pub fn irq_mask() -> IrqState {
    // An interrupt may come just before.
    #[cfg(preempt)]
    preempt::point();
    let depth = MASK_DEPTH.get();
    MASK_DEPTH.set(depth + 1);
    IrqState(depth)
}

/// Puts the mask back to what [`irq_mask`] found.
#[inline]
pub fn irq_restore(state: IrqState) {
    MASK_DEPTH.set(state.0);
    if state.0 == 0 && HAS_PENDING.get() {
        deliver();
    }
    #[cfg(preempt)]
    if state.0 == 0
        && let Some(hooks) = preempt::hooks()
    {
        (hooks.unmasked)();
    }
}

#[cold]
fn deliver() {
    HAS_PENDING.set(false);
    for handler in PENDING_INTERRUPTS.take() {
        interrupt(handler);
    }
}

/// Whether interrupts are masked on this core.
#[inline]
pub fn irq_masked() -> bool {
    MASK_DEPTH.get() != 0
}

/// Whether this code runs in an interrupt handler of this core.
#[inline]
pub fn in_interrupt() -> bool {
    INTERRUPT_DEPTH.get() != 0
}

/// Sleeps until a kick arrived since the last wait returned, or until `deadline_ns` of [`now_ns`]'s clock.
/// Called with interrupts masked. Spurious returns are allowed.
pub fn wait(deadline_ns: Option<u64>) {
    debug_assert!(
        irq_masked(),
        "wait with interrupts enabled loses the wake-up between check and sleep"
    );
    let core = current_core().expect("wait on a thread that is no core");
    let line = &LINES[core];
    line.sleeps.fetch_add(1, Ordering::Relaxed);
    #[cfg(preempt)]
    if let Some(hooks) = preempt::hooks() {
        return (hooks.wait)(deadline_ns);
    }
    if STEPPED.load(Ordering::Relaxed) {
        let world = *lock(&ON_WAIT);
        if let Some(world) = world {
            world();
        }
        *lock(&line.kicked) = false;
        return;
    }
    let mut kicked = lock(&line.kicked);
    if !*kicked {
        kicked = match deadline_ns {
            None => line
                .changed
                .wait(kicked)
                .unwrap_or_else(PoisonError::into_inner),
            Some(deadline) => {
                // A manual clock moves only by hand: look at it now and then.
                let left = clock::real_duration_until(deadline).min(Duration::from_secs(3600));
                line.changed
                    .wait_timeout(kicked, left)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
            }
        };
    }
    *kicked = false;
}

/// Ends the [`wait`] of `core`, now or when it next begins.
pub fn kick(core: CoreId) {
    let line = &LINES[core];
    line.kicks.fetch_add(1, Ordering::Relaxed);
    #[cfg(preempt)]
    if let Some(hooks) = preempt::hooks() {
        return (hooks.kick)(core);
    }
    *lock(&line.kicked) = true;
    line.changed.notify_all();
}

/// How many kicks were sent to `core` since the start.
pub fn kicks(core: CoreId) -> u64 {
    LINES[core].kicks.load(Ordering::Relaxed)
}

/// Monotonic nanoseconds.
#[inline]
pub fn now_ns() -> u64 {
    clock::now_ns()
}

/// A turn of a spin loop. Threads outnumber the host's cores in tests, so the turn is given away. In stepped mode it
/// takes 100 ns of a manual clock, so that a loop that looks at the clock ends.
#[inline]
pub fn relax() {
    #[cfg(preempt)]
    if let Some(hooks) = preempt::hooks() {
        return (hooks.relax)();
    }
    if STEPPED.load(Ordering::Relaxed) {
        clock::tick(100);
    } else {
        thread::yield_now();
    }
}

/// The number of online cores.
#[inline]
pub fn cores() -> usize {
    CORES.load(Ordering::Relaxed)
}

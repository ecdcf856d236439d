//! The machine of a loom model: a core is a thread of the model, a kick ends a park.
//!
//! A wait that nobody ends is a deadlock, which loom reports: so a lost wake-up fails the model. Time stands still:
//! a deadline ahead never comes, so a wake-up that only the clock would bring is lost as well.
#![forbid(unsafe_code)]

use core::cell::Cell;
use core::sync::atomic::AtomicBool as HostBool;
use std::sync::{Arc, Mutex};

use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread::{self, Thread};

use crate::arch::CoreId;
use crate::config::MAX_CORES;

/// The time, in ns, in every execution.
pub const NOW_NS: u64 = 1_000_000;

loom::thread_local! {
    static CORE: Cell<Option<CoreId>> = Cell::new(None);
    static MASK_DEPTH: Cell<usize> = Cell::new(0);
}

/// What [`irq_mask`] found: how deep interrupts were masked before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the state has to be given back with irq_restore"]
pub struct IrqState(usize);

/// A kick came and no wait has ended with it: a pending SGI. Made anew in every execution.
static KICKED: Mutex<[Option<Arc<AtomicBool>>; MAX_CORES]> =
    Mutex::new([const { None }; MAX_CORES]);
/// Whether a core is parked in [`wait`]. Not part of the model: set and looked at without a step in between.
static PARKED: [HostBool; MAX_CORES] = [const { HostBool::new(false) }; MAX_CORES];
/// The threads that are cores, in this execution.
static THREADS: Mutex<[Option<Thread>; MAX_CORES]> = Mutex::new([const { None }; MAX_CORES]);

/// Begins an execution, before anything else of this module.
pub fn begin() {
    *THREADS.lock().unwrap() = [const { None }; MAX_CORES];
    for kicked in &mut *KICKED.lock().unwrap() {
        *kicked = Some(Arc::new(AtomicBool::new(false)));
    }
    for parked in &PARKED {
        parked.store(false, Ordering::Relaxed);
    }
}

fn kicked(core: CoreId) -> Arc<AtomicBool> {
    let kicked = KICKED.lock().unwrap()[core].clone();
    kicked.expect("a model calls begin first")
}

/// Makes the current thread core `id`, for good.
pub fn enter_core(id: CoreId) {
    CORE.with(|core| core.set(Some(id)));
    let me = thread::current();
    THREADS.lock().unwrap()[id] = Some(me);
}

/// The core that runs this code; `None` on a thread that is no core.
pub fn current_core() -> Option<CoreId> {
    CORE.with(Cell::get)
}

/// Masks interrupts on this core and says how it was before.
pub fn irq_mask() -> IrqState {
    MASK_DEPTH.with(|depth| {
        depth.set(depth.get() + 1);
        IrqState(depth.get() - 1)
    })
}

/// Puts the mask back to what [`irq_mask`] found.
pub fn irq_restore(state: IrqState) {
    MASK_DEPTH.with(|depth| depth.set(state.0));
}

/// Whether interrupts are masked on this core.
pub fn irq_masked() -> bool {
    MASK_DEPTH.with(|depth| depth.get() != 0)
}

/// Models have no interrupts.
pub fn in_interrupt() -> bool {
    false
}

/// Sleeps until a kick arrived since the last wait returned, or returns at once when the deadline has passed.
pub fn wait(deadline_ns: Option<u64>) {
    assert!(irq_masked(), "wait with interrupts enabled");
    let core = current_core().expect("wait on a thread that is no core");
    let kicked = kicked(core);
    if !kicked.swap(false, Ordering::Acquire) && deadline_ns.is_none_or(|at| at > NOW_NS) {
        // No other thread runs between the exchange and the park.
        PARKED[core].store(true, Ordering::Relaxed);
        thread::park();
        PARKED[core].store(false, Ordering::Relaxed);
        let _ = kicked.swap(false, Ordering::Acquire);
    }
}

/// Ends the [`wait`] of `core`, now or when it next begins. What came before is visible after the wait, as it is on
/// the metal, where a barrier precedes the SGI.
pub fn kick(core: CoreId) {
    let _ = kicked(core).swap(true, Ordering::Release);
    // A thread that is blocked in something else of loom's must not be unparked.
    if PARKED[core].load(Ordering::Relaxed)
        && let Some(thread) = THREADS.lock().unwrap()[core].clone()
    {
        thread.unpark();
    }
}

/// Not counted here.
pub fn kicks(_core: CoreId) -> u64 {
    0
}

/// [`NOW_NS`].
pub fn now_ns() -> u64 {
    NOW_NS
}

/// A turn of a spin loop: the other threads go first.
pub fn relax() {
    thread::yield_now();
}

/// All cores are online.
pub fn cores() -> usize {
    MAX_CORES
}

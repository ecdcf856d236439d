//! The core itself: who am I, mask and restore, sleep, wake another.
//!
//! One record a core, found through TPIDR_EL1, which the entry code sets before Rust runs. Masking is PSTATE.I,
//! never the controller's priority mask: an interrupt masked there does not end WFI.

use core::arch::asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use super::{clock, gic};
use crate::arch::CoreId;
use crate::config::MAX_CORES;

/// What a core keeps about itself. Written by its core except where a field says otherwise.
#[repr(C, align(128))]
pub(super) struct PerCore {
    /// Dense index; the entry code stores it, before any Rust runs on the core. No atomic, so that the compiler need not
    /// read it again and again.
    index: UnsafeCell<usize>,
    /// Top of the stack for an exception taken from an exception; the entry code stores it.
    pub(super) emergency_stack: AtomicUsize,
    /// MPIDR affinity fields; stored by core 0 before the core starts.
    pub(super) affinity: AtomicU64,
    /// How the controller names this core in an SGI; 0 until its interface is up.
    pub(super) sgi_target: AtomicU64,
    /// Counter value the timer is set to; `u64::MAX` when it is off.
    pub(super) armed: AtomicU64,
    /// Interrupts handled.
    pub(super) interrupts: AtomicU64,
    /// Timer interrupts among them.
    pub(super) timer_interrupts: AtomicU64,
    /// Waits that reached WFI.
    sleeps: AtomicU64,
    /// A kick came since the last wait returned; stored by other cores.
    kicked: AtomicBool,
    /// Kicks sent to this core; counted by the senders.
    kicks: AtomicU64,
}

// SAFETY: the one field that is no atomic is written only by the entry code of its core, and read by that core.
unsafe impl Sync for PerCore {}

impl PerCore {
    const fn new() -> PerCore {
        PerCore {
            index: UnsafeCell::new(0),
            emergency_stack: AtomicUsize::new(0),
            affinity: AtomicU64::new(0),
            sgi_target: AtomicU64::new(0),
            armed: AtomicU64::new(0),
            interrupts: AtomicU64::new(0),
            timer_interrupts: AtomicU64::new(0),
            sleeps: AtomicU64::new(0),
            kicked: AtomicBool::new(false),
            kicks: AtomicU64::new(0),
        }
    }
}

/// Offset of the field that the vectors read; the entry code writes index and this one as a pair.
pub(super) const EMERGENCY_STACK_OFFSET: usize = core::mem::offset_of!(PerCore, emergency_stack);
const _: () = assert!(core::mem::offset_of!(PerCore, index) == 0 && EMERGENCY_STACK_OFFSET == 8);

pub(super) static PER_CORE: [PerCore; MAX_CORES] = [const { PerCore::new() }; MAX_CORES];

/// Cores that have reached Rust.
pub(super) static ONLINE: AtomicUsize = AtomicUsize::new(0);

/// The record of the running core.
#[inline]
pub(super) fn me() -> &'static PerCore {
    let record: *const PerCore;
    // SAFETY: reads a register that changes no state; it never changes after the entry code set it.
    unsafe {
        asm!("mrs {}, tpidr_el1", out(reg) record, options(nomem, nostack, preserves_flags, pure))
    };
    // SAFETY: the entry code set TPIDR_EL1 to an element of `PER_CORE` before any Rust ran on this core.
    unsafe { &*record }
}

/// The running core. Never `None` here; on the host a thread may be no core.
#[inline]
pub fn current_core() -> Option<CoreId> {
    // SAFETY: the entry code wrote it before any Rust ran on this core, and nobody writes it again.
    let index = unsafe { *me().index.get() };
    // SAFETY: the entry code set TPIDR_EL1 to element `index` of `PER_CORE`, which has MAX_CORES of them.
    unsafe { core::hint::assert_unchecked(index < MAX_CORES) };
    Some(index)
}

/// The number of cores that have started.
#[inline]
pub fn cores() -> usize {
    ONLINE.load(Ordering::Relaxed)
}

/// MPIDR_EL1 of the running core, its affinity fields only (as device trees and PSCI name a core).
pub fn own_affinity() -> u64 {
    let mpidr: u64;
    // SAFETY: reads an identification register.
    unsafe {
        asm!("mrs {}, mpidr_el1", out(reg) mpidr, options(nomem, nostack, preserves_flags, pure))
    };
    mpidr & 0xff_00ff_ffff
}

/// PSTATE.I as it was when [`irq_mask`] was called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the mask stays until irq_restore"]
pub struct IrqState(u64);

/// DAIF.I.
const DAIF_I: u64 = 1 << 7;

/// Masks interrupts on this core and says what the mask was. Not `nomem`: what follows stays behind the mask.
#[inline]
pub fn irq_mask() -> IrqState {
    let daif: u64;
    // SAFETY: setting PSTATE.I only delays interrupts.
    unsafe {
        asm!("mrs {}, daif", "msr daifset, #2", out(reg) daif, options(nostack, preserves_flags))
    };
    IrqState(daif & DAIF_I)
}

/// Puts the mask back to what [`irq_mask`] found.
#[inline]
pub fn irq_restore(state: IrqState) {
    if state.0 == 0 {
        // SAFETY: the state before the mask was "unmasked": handlers may run here, as they could before it.
        unsafe { asm!("msr daifclr, #2", options(nostack, preserves_flags)) };
    }
}

/// True while interrupts are masked on this core.
#[inline]
pub fn irq_masked() -> bool {
    let daif: u64;
    // SAFETY: reads PSTATE.
    unsafe { asm!("mrs {}, daif", out(reg) daif, options(nostack, preserves_flags)) };
    daif & DAIF_I != 0
}

/// Lets interrupts through for the first time on this core. Afterwards use [`irq_mask`] and [`irq_restore`].
pub fn irq_enable() {
    irq_restore(IrqState(0));
}

/// True in an interrupt handler: those, and only those, run on SP_EL1.
#[inline]
pub fn in_interrupt() -> bool {
    let selected: u64;
    // SAFETY: reads PSTATE.SP.
    unsafe { asm!("mrs {}, spsel", out(reg) selected, options(nomem, nostack, preserves_flags)) };
    selected & 1 != 0
}

/// Sleeps until an interrupt pends, a [`kick`] came since the last wait returned, or `deadline_ns` is reached.
///
/// Call with interrupts masked: a pending interrupt then ends WFI without running its handler, so nothing is lost
/// between the caller's last look and the sleep. May return early.
pub fn wait(deadline_ns: Option<u64>) {
    debug_assert!(
        irq_masked(),
        "wait() with interrupts unmasked could sleep through a wake"
    );
    let core = me();
    if core.kicked.swap(false, Ordering::SeqCst) {
        return;
    }
    if let Some(deadline) = deadline_ns
        && !clock::arm(core, deadline)
    {
        return;
    }
    core.sleeps
        .store(core.sleeps.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    // SAFETY: WFI only waits. `dsb sy` first: stores that a waker must see have left this core.
    unsafe { asm!("dsb sy", "wfi", options(nostack, preserves_flags)) };
    // A kick whose store is seen here has been answered by this return; its SGI may still come.
    core.kicked.swap(false, Ordering::SeqCst);
}

/// Ends the [`wait`] of `core`, now or the next one. From any core and from interrupt handlers.
pub fn kick(core: CoreId) {
    let target = &PER_CORE[core];
    target.kicks.fetch_add(1, Ordering::Relaxed);
    target.kicked.store(true, Ordering::SeqCst);
    gic::send_sgi(target, gic::SGI_KICK);
}

/// Kicks that were sent to `core` since the start.
pub fn kicks(core: CoreId) -> u64 {
    PER_CORE[core].kicks.load(Ordering::Relaxed)
}

/// What a core has counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Interrupts handled, kicks and timer included.
    pub interrupts: u64,
    /// Timer interrupts.
    pub timer_interrupts: u64,
    /// Times it slept in WFI.
    pub sleeps: u64,
    /// Kicks that were sent to it.
    pub kicks: u64,
}

/// The counters of `core`; each is exact, together they are no snapshot.
pub fn counters(core: CoreId) -> Counters {
    let record = &PER_CORE[core];
    Counters {
        interrupts: record.interrupts.load(Ordering::Relaxed),
        timer_interrupts: record.timer_interrupts.load(Ordering::Relaxed),
        sleeps: record.sleeps.load(Ordering::Relaxed),
        kicks: record.kicks.load(Ordering::Relaxed),
    }
}

/// A turn of a spin loop.
#[inline]
pub fn relax() {
    core::hint::spin_loop();
}

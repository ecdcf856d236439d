//! PSCI: start cores, switch the machine off, reset it.

use core::arch::asm;
use core::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use smccc::{Hvc, Smc, psci};

use super::cpu::{ONLINE, PER_CORE};
use super::{entry, memory};
use crate::arch::CoreId;
use crate::config::MAX_CORES;

/// How PSCI is called: `/psci/method`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduit {
    /// `hvc`.
    Hvc = 1,
    /// `smc`.
    Smc = 2,
}

/// 0 until the tree has been read.
static CONDUIT: AtomicU8 = AtomicU8::new(0);

/// Sets how PSCI is called. Until then: SMC if the machine started in EL2, else HVC, so that a machine whose tree
/// cannot be read still stops.
pub fn set_conduit(conduit: Conduit) {
    CONDUIT.store(conduit as u8, Ordering::Relaxed);
}

fn conduit() -> Conduit {
    match CONDUIT.load(Ordering::Relaxed) {
        1 => Conduit::Hvc,
        2 => Conduit::Smc,
        _ if entry::start_level() == 2 => Conduit::Smc,
        _ => Conduit::Hvc,
    }
}

/// Why a core could not be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartError {
    /// The index is not below `MAX_CORES`, or not the next one.
    Index,
    /// [`memory::map_memory`] has not run: the core would start without tables.
    NoTables,
    /// PSCI's answer.
    Psci(psci::Error),
    /// It was started and did not reach Rust within a second. Its index, and with it its stacks, is taken for good: no
    /// other core can be started after it. Should it come up later, it parks.
    Silent,
}

impl core::fmt::Display for StartError {
    fn fmt(&self, out: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            StartError::Index => out.write_str("core index out of order"),
            StartError::NoTables => out.write_str("memory is not mapped yet"),
            StartError::Psci(error) => write!(out, "PSCI: {error}"),
            StartError::Silent => out.write_str("did not come up within a second"),
        }
    }
}

/// What a started core runs.
static CORE_MAIN: spin::Once<fn(CoreId) -> !> = spin::Once::new();

/// Index of the core that is being started; 0: it has come up; [`GIVEN_UP`]: it was too late, and so are all others.
static STARTING: AtomicUsize = AtomicUsize::new(0);
const GIVEN_UP: usize = usize::MAX;

/// Starts core `core` (dense, ascending from 1), whose MPIDR affinity is `affinity` (`reg` of its tree node), and
/// returns once it runs `main`. On that core interrupts are masked and its GIC interface is not yet set up. All
/// cores run the `main` of the first call. Core 0 only, after [`memory::map_memory`].
///
/// # Errors
/// See [`StartError`]; the core is then not online.
pub fn start_core(core: CoreId, affinity: u64, main: fn(CoreId) -> !) -> Result<(), StartError> {
    unsafe extern "C" {
        fn ironthread_secondary_entry();
    }
    if core >= MAX_CORES || core != ONLINE.load(Ordering::Relaxed) {
        return Err(StartError::Index);
    }
    if STARTING.load(Ordering::Relaxed) == GIVEN_UP {
        return Err(StartError::Silent);
    }
    if !memory::is_mapped() {
        return Err(StartError::NoTables);
    }
    CORE_MAIN.call_once(|| main);
    PER_CORE[core].affinity.store(affinity, Ordering::Release);
    STARTING.store(core, Ordering::Release);
    let entry = (ironthread_secondary_entry as unsafe extern "C" fn()) as usize as u64;
    // SAFETY: orders the stores above, and the tables, before the call that lets another core look at them.
    unsafe { asm!("dsb sy", options(nostack, preserves_flags)) };
    match conduit() {
        Conduit::Hvc => psci::cpu_on::<Hvc>(affinity, entry, core as u64),
        Conduit::Smc => psci::cpu_on::<Smc>(affinity, entry, core as u64),
    }
    .map_err(StartError::Psci)?;
    let end = super::now_ns() + 1_000_000_000;
    while ONLINE.load(Ordering::Acquire) <= core {
        if super::now_ns() > end
            && STARTING
                .compare_exchange(core, GIVEN_UP, Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
        {
            return Err(StartError::Silent);
        }
        super::relax();
    }
    Ok(())
}

/// The way of a started core into its main function.
pub(super) fn run_started(core: CoreId) -> ! {
    if STARTING
        .compare_exchange(core, 0, Ordering::AcqRel, Ordering::Acquire)
        .is_err()
    {
        park();
    }
    ONLINE.store(core + 1, Ordering::Release);
    match CORE_MAIN.get() {
        Some(main) => main(core),
        None => park(),
    }
}

/// Switches the machine off.
pub fn power_off() -> ! {
    // An error leaves nothing to do but to stay here.
    let _ = match conduit() {
        Conduit::Hvc => psci::system_off::<Hvc>(),
        Conduit::Smc => psci::system_off::<Smc>(),
    };
    park()
}

/// Starts the machine anew.
pub fn reset() -> ! {
    // As for `power_off`.
    let _ = match conduit() {
        Conduit::Hvc => psci::system_reset::<Hvc>(),
        Conduit::Smc => psci::system_reset::<Smc>(),
    };
    park()
}

/// Stays here for good, interrupts masked.
pub fn park() -> ! {
    let _masked = super::irq_mask();
    loop {
        // SAFETY: WFI only waits.
        unsafe { asm!("wfi", options(nomem, nostack, preserves_flags)) };
    }
}

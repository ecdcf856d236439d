//! Interrupt controller, GICv2 and GICv3: set-up through the arm-gic crate; routing, SGIs and version 2's hot path here.
//!
//! Core 0 calls [`start_gic`], then every core [`start_gic_core`]. SGIs are sent from own instructions because the
//! crate's have no barrier before them: what was written must be seen by the core that is woken.

use core::arch::asm;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicUsize, Ordering};

use arm_gic::gicv2::GicV2;
use arm_gic::gicv3::registers::{Gicd, GicrSgi};
use arm_gic::gicv3::{GicCpuInterface, GicDistributor, GicRedistributor, Group};
use arm_gic::{IntId, InterruptGroup, UniqueMmioPointer};
use spin::Mutex;

use super::cpu::{self, PER_CORE, PerCore, me};
use super::interrupts::{INTERRUPTS, InterruptError, Trigger};
use super::mmio;
use crate::arch::CoreId;
use crate::arch::mmio::MmioRegion;

/// SGI that ends a wait.
pub(super) const SGI_KICK: u32 = 0;
/// SGI that halts a core while another reports.
pub(super) const SGI_HALT: u32 = 1;

/// Ids from here on are answers ("nothing pending"), not interrupts.
const SPECIAL: u32 = 1020;

/// Version 2 registers that the crate does not reach (GICv2 architecture, IHI 0048B).
const GICD_ITARGETSR: usize = 0x800;
const GICD_SGIR: usize = 0xf00;
const GICD_BYTES: usize = 0x1000;
const GICC_BYTES: usize = 0x2000;
const GICC_IAR: usize = 0x0c;
const GICC_EOIR: usize = 0x10;

/// Where the controller's registers are, from the device tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GicAddresses {
    /// `arm,cortex-a15-gic`, `arm,gic-400`.
    V2 {
        /// `reg[0]`.
        distributor: usize,
        /// `reg[1]`.
        cpu_interface: usize,
    },
    /// `arm,gic-v3`.
    V3 {
        /// `reg[0]`.
        distributor: usize,
        /// `reg[1]`: the first redistributor region.
        redistributors: usize,
        /// Its length in bytes.
        redistributors_len: usize,
    },
}

/// What goes wrong with a controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GicError {
    /// The registers do not lie in a mapped device range, or somebody has them.
    NotMapped,
    /// It was started before.
    Twice,
    /// No redistributor has this core's affinity.
    NoRedistributor,
    /// [`start_gic`] has not run.
    NotStarted,
    /// The kick, halt or timer interrupt cannot be enabled.
    Refused,
}

impl core::fmt::Display for GicError {
    fn fmt(&self, out: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        out.write_str(match self {
            GicError::NotMapped => "interrupt controller outside the mapped device ranges",
            GicError::Twice => "interrupt controller started twice",
            GicError::NoRedistributor => "no redistributor for this core",
            GicError::NotStarted => "interrupt controller not started",
            GicError::Refused => "interrupt controller refuses a private interrupt",
        })
    }
}

enum Controller {
    V2(GicV2<'static>),
    V3 {
        distributor: GicDistributor<'static>,
        redistributors: MmioRegion,
    },
}

// SAFETY: device registers, reachable from every core; the lock around it serialises all use.
unsafe impl Send for Controller {}

/// For set-up only, interrupts masked. The hot path reads the words below.
static CONTROLLER: Mutex<Option<Controller>> = Mutex::new(None);

/// 0 none yet, 2, 3.
static VERSION: AtomicU8 = AtomicU8::new(0);
static DISTRIBUTOR: AtomicUsize = AtomicUsize::new(0);
static CPU_INTERFACE: AtomicUsize = AtomicUsize::new(0);
static TIMER: AtomicU32 = AtomicU32::new(u32::MAX);
/// Shared interrupts end below this id.
static LIMIT: AtomicU32 = AtomicU32::new(0);

/// The virtual timer's interrupt id.
#[inline]
pub(super) fn timer_interrupt() -> u32 {
    TIMER.load(Ordering::Relaxed)
}

/// Runs `body` on the controller, interrupts masked.
fn with_controller<R>(body: impl FnOnce(&mut Controller) -> R) -> Option<R> {
    let masked = cpu::irq_mask();
    let result = CONTROLLER.lock().as_mut().map(body);
    cpu::irq_restore(masked);
    result
}

/// Sets the controller up, all interrupts disabled. Core 0 calls it once, after
/// [`map_memory`](super::memory::map_memory), before any core takes interrupts. It claims the controller's registers.
/// `timer` is the interrupt id of the virtual timer (27 on every machine known).
///
/// # Errors
/// See [`GicError`].
pub fn start_gic(addresses: GicAddresses, timer: u32) -> Result<(), GicError> {
    let masked = cpu::irq_mask();
    let mut controller = CONTROLLER.lock();
    let result = if controller.is_some() {
        Err(GicError::Twice)
    } else {
        set_up(addresses).map(|started| *controller = Some(started))
    };
    drop(controller);
    if result.is_ok() {
        TIMER.store(timer, Ordering::Relaxed);
    }
    cpu::irq_restore(masked);
    result
}

/// Claims registers of the controller.
fn claim(base: usize, len: usize) -> Result<MmioRegion, GicError> {
    crate::arch::mmio::claim(base as u64, len as u64).ok_or(GicError::NotMapped)
}

fn set_up(addresses: GicAddresses) -> Result<Controller, GicError> {
    match addresses {
        GicAddresses::V2 {
            distributor,
            cpu_interface,
        } => {
            let registers = claim(distributor, GICD_BYTES)?.base().cast().as_ptr();
            let interface = claim(cpu_interface, GICC_BYTES)?.base().cast().as_ptr();
            // SAFETY: claimed: device memory that nobody else uses. The only other accesses, those of the hot path in
            // this file, are to registers that the crate's driver does not touch after set-up.
            let mut gic = unsafe { GicV2::new(registers, interface) };
            gic.enable_all_interrupts(false);
            gic.setup();
            // SAFETY: GICD_TYPER of the distributor claimed above; its low bits count lines in 32s.
            let lines = (unsafe { mmio::read32(distributor + 4) } & 31) * 32 + 32;
            LIMIT.store(lines.min(SPECIAL), Ordering::Relaxed);
            DISTRIBUTOR.store(distributor, Ordering::Relaxed);
            CPU_INTERFACE.store(cpu_interface, Ordering::Relaxed);
            VERSION.store(2, Ordering::Release);
            Ok(Controller::V2(gic))
        }
        GicAddresses::V3 {
            distributor,
            redistributors,
            redistributors_len,
        } => {
            let registers = claim(distributor, size_of::<Gicd>())?.base().cast::<Gicd>();
            let redistributors = claim(redistributors, redistributors_len)?;
            // SAFETY: claimed: device memory that nobody else uses, as long as the block.
            let mut gicd = GicDistributor::new(unsafe { UniqueMmioPointer::new(registers) });
            gicd.enable_all_interrupts(false);
            gicd.configure_default_settings();
            LIMIT.store(
                (gicd.typer().num_spis() + 32).min(SPECIAL),
                Ordering::Relaxed,
            );
            VERSION.store(3, Ordering::Release);
            Ok(Controller::V3 {
                distributor: gicd,
                redistributors,
            })
        }
    }
}

/// Sets up the running core's interface: kick, halt and timer interrupts are on when it returns. Every core calls it
/// once, interrupts masked, before it takes any.
///
/// # Errors
/// See [`GicError`].
pub fn start_gic_core() -> Result<(), GicError> {
    let core = me();
    let private = [
        IntId::sgi(SGI_KICK),
        IntId::sgi(SGI_HALT),
        private_id(timer_interrupt())?,
    ];
    let started = with_controller(|controller| match controller {
        Controller::V2(gic) => {
            gic.setup();
            for id in private {
                gic.enable_interrupt(id, true)
                    .map_err(|_| GicError::Refused)?;
            }
            // SAFETY: ITARGETSR0 is banked: it says which bit this core is; reads as zero on a single core.
            let own = unsafe { mmio::read32(DISTRIBUTOR.load(Ordering::Relaxed) + GICD_ITARGETSR) }
                & 0xff;
            Ok(u64::from(own.max(1)) << 16)
        }
        Controller::V3 { redistributors, .. } => {
            let mut frame = own_redistributor(redistributors)?;
            GicCpuInterface::enable_system_register_el1();
            // An error says that it is awake already.
            let _ = frame.mark_core_awake();
            frame.configure_default_settings();
            for id in private {
                frame
                    .enable_interrupt(id, true)
                    .map_err(|_| GicError::Refused)?;
            }
            GicCpuInterface::set_priority_mask(0xff);
            GicCpuInterface::enable_group1(true);
            // SAFETY: makes the system register writes above take effect.
            unsafe { asm!("isb", options(nostack, preserves_flags)) };
            let affinity = cpu::own_affinity();
            let list = 1 << (affinity & 15) | (affinity >> 4 & 15) << 44;
            Ok(list
                | (affinity >> 8 & 0xff) << 16
                | (affinity >> 16 & 0xff) << 32
                | (affinity >> 32 & 0xff) << 48)
        }
    });
    let target = started.ok_or(GicError::NotStarted)??;
    core.sgi_target.store(target, Ordering::Release);
    Ok(())
}

fn private_id(timer: u32) -> Result<IntId, GicError> {
    match timer {
        16..32 => Ok(IntId::ppi(timer - 16)),
        _ => Err(GicError::Refused),
    }
}

/// The redistributor whose affinity is that of the running core. The controller's lock is held, so no other frame is
/// in use.
fn own_redistributor(region: &MmioRegion) -> Result<GicRedistributor<'static>, GicError> {
    let affinity = cpu::own_affinity();
    let mut offset = 0;
    while offset + size_of::<GicrSgi>() <= region.size() {
        let frame = region
            .base()
            .as_ptr()
            .wrapping_byte_add(offset)
            .cast::<GicrSgi>();
        let frame = NonNull::new(frame).ok_or(GicError::NotMapped)?;
        // SAFETY: inside the claimed region (the loop's condition), which is device memory that nobody else uses.
        let redistributor = GicRedistributor::new(unsafe { UniqueMmioPointer::new(frame) });
        let kind = redistributor.typer();
        if kind.core_mpidr() == affinity {
            return Ok(redistributor);
        }
        if kind.last_redistributor() {
            break;
        }
        // Version 4 has two more 64 KiB frames, for virtual interrupts.
        offset += size_of::<GicrSgi>() * if kind.virtual_lpis_supported() { 2 } else { 1 };
    }
    Err(GicError::NoRedistributor)
}

/// Sends SGI `id` to the core of `target`; nothing if its interface is not up.
#[inline]
pub(super) fn send_sgi(target: &PerCore, id: u32) {
    let destination = target.sgi_target.load(Ordering::Relaxed);
    if destination == 0 {
        return;
    }
    if VERSION.load(Ordering::Relaxed) == 3 {
        let value = destination | u64::from(id) << 24;
        // SAFETY: sends an interrupt. The barrier first: what was stored before is seen by the core that wakes.
        unsafe {
            asm!("dsb ishst", "msr S3_0_C12_C11_5, {}", "isb", in(reg) value, options(nostack, preserves_flags));
        }
    } else {
        // SAFETY: as above; the barrier orders, the store sends.
        unsafe { asm!("dsb ishst", options(nostack, preserves_flags)) };
        // SAFETY: GICD_SGIR of a started version 2 distributor: `sgi_target` is set only then.
        unsafe {
            mmio::write32(
                DISTRIBUTOR.load(Ordering::Relaxed) + GICD_SGIR,
                destination as u32 | id,
            )
        };
    }
}

/// Halts every other core that takes interrupts.
pub(super) fn halt_other_cores() {
    let own: *const PerCore = me();
    for core in PER_CORE.iter().filter(|core| !core::ptr::eq(*core, own)) {
        send_sgi(core, SGI_HALT);
    }
}

/// An interrupt that has been acknowledged and not yet ended.
pub(super) struct Acknowledged {
    /// Interrupt id.
    pub(super) id: u32,
    /// What the controller wants to get back: with version 2 the SGI's sender is in it.
    token: u32,
}

/// Acknowledges the interrupt that is signalled; `None` if it went away.
#[inline]
pub(super) fn acknowledge() -> Option<Acknowledged> {
    let token = if VERSION.load(Ordering::Relaxed) == 3 {
        u32::from(GicCpuInterface::get_and_acknowledge_interrupt(
            InterruptGroup::Group1,
        )?)
    } else {
        // SAFETY: GICC_IAR of a started version 2 interface: without one no interrupt comes.
        unsafe { mmio::read32(CPU_INTERFACE.load(Ordering::Relaxed) + GICC_IAR) }
    };
    // SAFETY: orders the acknowledge before the handler's accesses to the device and to what an SGI's sender wrote.
    unsafe { asm!("dsb sy", options(nostack, preserves_flags)) };
    let id = if VERSION.load(Ordering::Relaxed) == 3 {
        token
    } else {
        token & 0x3ff
    };
    (id < SPECIAL).then_some(Acknowledged { id, token })
}

/// Ends it: the next may be signalled.
#[inline]
pub(super) fn end(interrupt: Acknowledged) {
    if VERSION.load(Ordering::Relaxed) == 3 {
        // SAFETY: nothing but a barrier: the handler's accesses come before the end.
        unsafe { asm!("", options(nostack, preserves_flags)) };
        if let Ok(id) = IntId::try_from(interrupt.token) {
            GicCpuInterface::end_interrupt(id, InterruptGroup::Group1);
        }
    } else {
        // SAFETY: GICC_EOIR of a started version 2 interface.
        unsafe {
            mmio::write32(
                CPU_INTERFACE.load(Ordering::Relaxed) + GICC_EOIR,
                interrupt.token,
            )
        };
    }
}

/// Checks that `intid` is a shared interrupt and `core` can take one.
pub(super) fn check_spi(intid: u32, core: CoreId) -> Result<(), InterruptError> {
    if VERSION.load(Ordering::Acquire) == 0 {
        return Err(InterruptError::NoController);
    }
    if intid < 32 || intid >= LIMIT.load(Ordering::Relaxed).min(INTERRUPTS as u32) {
        return Err(InterruptError::OutOfRange);
    }
    match PER_CORE.get(core) {
        Some(record) if record.sgi_target.load(Ordering::Acquire) != 0 => Ok(()),
        _ => Err(InterruptError::NoSuchCore),
    }
}

/// Sets trigger and route of `intid` and enables it. Both arguments checked by [`check_spi`].
pub(super) fn enable_spi(intid: u32, trigger: Trigger, core: CoreId) -> Result<(), InterruptError> {
    route_spi(intid, core)?;
    let trigger = match trigger {
        Trigger::Edge => arm_gic::Trigger::Edge,
        Trigger::Level => arm_gic::Trigger::Level,
    };
    let id = IntId::spi(intid - 32);
    with_controller(|controller| match controller {
        Controller::V2(gic) => {
            gic.set_trigger(id, trigger);
            gic.enable_interrupt(id, true)
                .map_err(|_| InterruptError::Refused)
        }
        Controller::V3 { distributor, .. } => distributor
            .set_trigger(id, trigger)
            .and_then(|()| distributor.set_group(id, Group::Group1NS))
            .and_then(|()| distributor.enable_interrupt(id, true))
            .map_err(|_| InterruptError::Refused),
    })
    .ok_or(InterruptError::NoController)?
}

/// Routes `intid` to `core`. Both arguments checked by [`check_spi`].
pub(super) fn route_spi(intid: u32, core: CoreId) -> Result<(), InterruptError> {
    let record = &PER_CORE[core];
    with_controller(|controller| match controller {
        Controller::V2(_) => {
            // Byte `intid` of ITARGETSR, inside its word: the field is a mask of interfaces.
            let register =
                DISTRIBUTOR.load(Ordering::Relaxed) + GICD_ITARGETSR + (intid as usize & !3);
            let shift = intid % 4 * 8;
            let mask = (record.sgi_target.load(Ordering::Relaxed) >> 16) as u32 & 0xff;
            // SAFETY: a word of ITARGETSR that belongs to shared interrupts; the controller's lock is held.
            unsafe {
                mmio::write32(
                    register,
                    mmio::read32(register) & !(0xff << shift) | mask << shift,
                )
            };
            Ok(())
        }
        Controller::V3 { distributor, .. } => {
            let affinity = record.affinity.load(Ordering::Relaxed);
            distributor
                .set_routing(IntId::spi(intid - 32), Some(affinity))
                .map_err(|_| InterruptError::Refused)
        }
    })
    .ok_or(InterruptError::NoController)?
}

/// Turns off an interrupt that has no handler, so that a stray line cannot keep a core busy for ever.
/// From the dispatcher, where set-up on the same core cannot be under way: it masks interrupts.
pub(super) fn disable_unexpected(intid: u32) {
    if intid < 32 {
        return;
    }
    let id = IntId::spi(intid - 32);
    let _ = with_controller(|controller| match controller {
        Controller::V2(gic) => gic.enable_interrupt(id, false).is_ok(),
        Controller::V3 { distributor, .. } => distributor.enable_interrupt(id, false).is_ok(),
    });
}

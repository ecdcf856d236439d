//! The core we run on, under the same names for every target: core id, interrupt mask, wait, kick, clock.
//!
//! On the metal these come from `aarch64`, on the host from `host`, where a core is a thread (under loom, from `model`).
mod barrier;
pub mod mmio;

#[cfg(target_os = "none")]
pub use barrier::not_alone;
pub use barrier::{device_full_barrier, device_read_barrier, device_write_barrier};

#[cfg(target_os = "none")]
pub mod aarch64;
#[cfg(target_os = "none")]
pub use aarch64::{
    IrqState, cores, current_core, in_interrupt, irq_mask, irq_masked, irq_restore, kick, kicks,
    now_ns, relax, wait,
};

#[cfg(all(not(target_os = "none"), not(loom)))]
pub mod host;
#[cfg(loom)]
#[path = "model.rs"]
pub mod host;
#[cfg(not(target_os = "none"))]
pub use host::{
    IrqState, cores, current_core, in_interrupt, irq_mask, irq_masked, irq_restore, kick, kicks,
    now_ns, relax, wait,
};

/// Dense index of a core, below [`MAX_CORES`](crate::config::MAX_CORES); not MPIDR.
pub type CoreId = usize;

/// The address of `pointer` as a device sees it: memory is mapped one to one.
#[inline(always)]
pub fn dma_address(pointer: *const u8) -> u64 {
    pointer as u64
}

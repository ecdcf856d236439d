//! The core we run on, under the same names for every target.
mod barrier;
pub mod mmio;

pub use barrier::{device_full_barrier, device_read_barrier, device_write_barrier};

/// The address of `pointer` as a device sees it: memory is mapped one to one.
#[inline(always)]
pub fn dma_address(pointer: *const u8) -> u64 {
    pointer as u64
}

//! The shared zero page: what is written where a device does not know write-zeroes.
#![forbid(unsafe_code)]

use crate::arch;

/// Bytes of the shared page; in constants, so the image carries them: 16 KiB make a 1 MiB write of 64 pieces.
const LEN: usize = 16 * 1024;

/// A page-aligned block of zeroes that nobody writes.
#[repr(C, align(4096))]
pub(crate) struct ZeroPage([u8; LEN]);

/// The one instance.
pub(crate) static ZEROES: ZeroPage = ZeroPage([0; LEN]);

impl ZeroPage {
    /// Bytes in it.
    pub(crate) const fn len(&self) -> usize {
        LEN
    }

    /// Its content.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Its address for a device.
    pub(crate) fn dma(&self) -> u64 {
        arch::dma_address(self.0.as_ptr())
    }
}

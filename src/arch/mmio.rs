//! Who may touch which device registers: the memory map grants ranges, each driver claims its own once.
//!
//! Used by the boot core before other cores run drivers. A claim is the proof that a range is mapped as device
//! memory for ever and that nobody else has it, so drivers above need no `unsafe` to get at their registers.
use core::ptr::NonNull;

use safe_mmio::UniqueMmioPointer;
use spin::Mutex;
use zerocopy::{FromBytes, IntoBytes};

/// Ranges that can be granted (QEMU `virt`: UART, RTC, GPIO, fw_cfg, virtio slots in one).
const GRANTS: usize = 24;
/// Ranges that can be claimed: 32 virtio slots and the rest.
const CLAIMS: usize = 48;

/// A range of addresses: first and one past the last.
type Range = (usize, usize);

struct Table {
    granted: heapless::Vec<Range, GRANTS>,
    claimed: heapless::Vec<Range, CLAIMS>,
}

static TABLE: Mutex<Table> = Mutex::new(Table {
    granted: heapless::Vec::new(),
    claimed: heapless::Vec::new(),
});

/// Registers of one device, owned: mapped as device memory for ever, claimed by nobody else.
#[derive(Debug)]
#[must_use = "a claim that is dropped stays claimed"]
pub struct MmioRegion {
    base: NonNull<u8>,
    size: usize,
}

// SAFETY: only an address; device memory is mapped alike on every core, and the claim makes its owner the only one.
unsafe impl Send for MmioRegion {}

impl MmioRegion {
    /// First byte.
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Length in bytes.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The registers as a typed block; `None` if the block does not fit or is misaligned.
    pub fn into_pointer<T: FromBytes + IntoBytes>(self) -> Option<UniqueMmioPointer<'static, T>> {
        let base = self.base.cast::<T>();
        if size_of::<T>() > self.size || !base.is_aligned() {
            return None;
        }
        // SAFETY: the claim promises device memory for ever without another user; `T` fits and is aligned, and any
        // bytes are a valid `T`.
        Some(unsafe { UniqueMmioPointer::new(base) })
    }
}

/// Says that `base..base + size` holds device registers that drivers may claim. False if the table is full.
///
/// # Safety
/// The range is, from now on and for ever, mapped as device memory on every core, holds nothing but device
/// registers, and nothing reaches it except through a claim (an early console that only writes its data register
/// and is silent while the driver runs is tolerated).
pub unsafe fn grant(base: usize, size: usize) -> bool {
    let Some(end) = base.checked_add(size) else {
        return false;
    };
    TABLE.lock().granted.push((base, end)).is_ok()
}

/// Claims `base..base + size`. `None`: not granted, overlaps an earlier claim, or the table is full.
pub fn claim(base: u64, size: u64) -> Option<MmioRegion> {
    let base = usize::try_from(base).ok()?;
    let size = usize::try_from(size).ok()?;
    let end = base.checked_add(size)?;
    let pointer = NonNull::new(base as *mut u8)?;
    let mut table = TABLE.lock();
    let granted = table
        .granted
        .iter()
        .any(|range| range.0 <= base && end <= range.1);
    let taken = table
        .claimed
        .iter()
        .any(|range| range.0 < end && base < range.1);
    if size == 0 || !granted || taken {
        return None;
    }
    table.claimed.push((base, end)).ok()?;
    Some(MmioRegion {
        base: pointer,
        size,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_claimed_once_and_only_where_granted() {
        static REGISTERS: [u32; 16] = [0; 16];
        let base = REGISTERS.as_ptr() as u64;
        assert!(claim(base, 4).is_none());
        // SAFETY: nothing below is read or written through the claim.
        assert!(unsafe { grant(base as usize, 64) });
        assert!(claim(base, 65).is_none());
        assert!(claim(base, 0).is_none());
        let region = claim(base + 16, 16).unwrap();
        assert!(claim(base + 8, 16).is_none());
        assert!(claim(base + 31, 1).is_none());
        assert!(claim(base, 16).is_some());
        assert!(claim(base + 32, 32).is_some());
        assert!(claim(u64::MAX - 3, 8).is_none());
        assert!(region.into_pointer::<[u32; 5]>().is_none());
    }
}

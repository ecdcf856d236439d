//! From slot addresses, as the device tree lists them, to devices.
//!
//! Called once at boot by the main loop, with the MMU on. The devices are kept in statics for ever: a `Mmio` that went
//! away would reset its device.
#![forbid(unsafe_code)]

use super::mmio::Mmio;
use crate::arch::mmio;
use spin::Once;

/// Device type of a network card.
pub const NETWORK: u32 = 1;
/// Device type of a disk.
pub const DISK: u32 = 2;

/// Most slots that are looked at (QEMU `virt` has 32).
pub const MAX_SLOTS: usize = 32;

static DEVICES: [Once<Mmio>; MAX_SLOTS] = [const { Once::new() }; MAX_SLOTS];

/// Claims slot number `slot` (its place in the caller's list, below [`MAX_SLOTS`]), which lies at `base` and has `size`
/// bytes, and returns the device in it; the same one when it is claimed again. `None`: the range is not granted
/// ([`mmio::grant`]) or not free, the slot is empty, or its device is of a kind that nobody knows.
pub fn claim(slot: usize, base: u64, size: u64) -> Option<&'static Mmio> {
    let place = DEVICES.get(slot)?;
    if let Some(device) = place.get() {
        return Some(device);
    }
    let device = Mmio::new(mmio::claim(base, size)?)?;
    Some(place.call_once(|| device))
}

/// Every device found so far, with its slot number.
pub fn devices() -> impl DoubleEndedIterator<Item = (usize, &'static Mmio)> {
    DEVICES
        .iter()
        .enumerate()
        .filter_map(|(slot, place)| Some((slot, place.get()?)))
}

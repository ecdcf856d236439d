//! From slot addresses, as the device tree lists them, to devices.
//!
//! Called once at boot by the main loop, with the MMU on. The devices are kept in statics for ever: a `Mmio`
//! that went away would reset its device.
use super::mmio::{self, Identity, Mmio};
use core::ptr::NonNull;
use spin::Once;

/// Device type of a network card.
pub const NETWORK: u32 = 1;
/// Device type of a disk.
pub const DISK: u32 = 2;

/// Most slots that are looked at (QEMU `virt` has 32).
pub const MAX_SLOTS: usize = 32;

static DEVICES: [Once<Mmio>; MAX_SLOTS] = [const { Once::new() }; MAX_SLOTS];

/// What lies in the slot of `bytes` bytes at `base`, without claiming it. `None`: no virtio slot; device type 0:
/// an empty one.
///
/// # Safety
/// As for [`claim`].
pub unsafe fn look(base: usize, bytes: usize) -> Option<Identity> {
    if bytes < mmio::MIN_SLOT {
        return None;
    }
    // SAFETY: promised by the caller.
    unsafe { mmio::identify(NonNull::new(base as *mut u8)?) }
}

/// Claims the device in slot number `slot` (its place in the caller's list, below [`MAX_SLOTS`]), which lies at
/// `base`. `None` if there is no device, or one of an unknown type; the same device when claimed again.
///
/// # Safety
/// `base..base + bytes` is a virtio-MMIO slot of the device tree, mapped as device memory for ever, and always
/// given with the same `slot`.
pub unsafe fn claim(slot: usize, base: usize, bytes: usize) -> Option<&'static Mmio> {
    let place = DEVICES.get(slot)?;
    if let Some(device) = place.get() {
        return Some(device);
    }
    // SAFETY: promised by the caller; `place` was empty, so this is the only one.
    let device = unsafe { Mmio::new(NonNull::new(base as *mut u8)?, bytes) }?;
    Some(place.call_once(|| device))
}

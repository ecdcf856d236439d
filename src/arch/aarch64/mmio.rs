//! Single device registers, one instruction each, so that a hypervisor can decode the access that it traps.

use core::arch::asm;

/// Reads a 32-bit register.
///
/// # Safety
/// `address` is that of a readable 32-bit device register, mapped as device memory, and the read's side effects are
/// wanted.
#[inline]
pub(super) unsafe fn read32(address: usize) -> u32 {
    let value: u32;
    // SAFETY: the caller vouches for the address.
    unsafe {
        asm!("ldr {:w}, [{}]", out(reg) value, in(reg) address, options(nostack, preserves_flags))
    };
    value
}

/// Writes a 32-bit register.
///
/// # Safety
/// `address` is that of a writable 32-bit device register, mapped as device memory, and the write's effects are wanted.
#[inline]
pub(super) unsafe fn write32(address: usize, value: u32) {
    // SAFETY: the caller vouches for the address.
    unsafe {
        asm!("str {:w}, [{}]", in(reg) value, in(reg) address, options(nostack, preserves_flags))
    };
}

/// Reads an 8-bit register.
///
/// # Safety
/// As [`read32`], for one byte.
#[inline]
pub(super) unsafe fn write8(address: usize, value: u8) {
    // SAFETY: the caller vouches for the address.
    unsafe {
        asm!("strb {:w}, [{}]", in(reg) u32::from(value), in(reg) address, options(nostack, preserves_flags))
    };
}

//! Barriers between this core and a device that reads and writes memory by itself.
//!
//! On aarch64 the outer shareable domain holds the devices, so the core-to-core barriers that
//! `core::sync::atomic::fence` emits (inner shareable) are not enough. On the host the "device" is code of the
//! same process, and an ordinary fence is.

/// Everything this core wrote before is visible to devices before anything it writes later
/// (descriptors before the index that publishes them).
#[inline(always)]
pub fn device_write_barrier() {
    #[cfg(target_os = "none")]
    // SAFETY: a barrier changes no memory and no register; without `nomem` the compiler keeps the order too.
    unsafe {
        core::arch::asm!("dmb oshst", options(nostack, preserves_flags))
    }
    #[cfg(not(target_os = "none"))]
    core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
}

/// Everything this core read before is read before anything it reads or writes later
/// (a used index before the entries that it covers).
#[inline(always)]
pub fn device_read_barrier() {
    #[cfg(target_os = "none")]
    // SAFETY: as in `device_write_barrier`.
    unsafe {
        core::arch::asm!("dmb oshld", options(nostack, preserves_flags))
    }
    #[cfg(not(target_os = "none"))]
    core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
}

/// Orders everything before against everything after, a later read after an earlier write included
/// (publish, then look whether the device wants a kick; re-arm, then look whether something came).
#[inline(always)]
pub fn device_full_barrier() {
    #[cfg(target_os = "none")]
    // SAFETY: as in `device_write_barrier`.
    unsafe {
        core::arch::asm!("dmb osh", options(nostack, preserves_flags))
    }
    #[cfg(not(target_os = "none"))]
    core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
}

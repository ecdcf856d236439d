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
///
/// QEMU's TCG before version 8 leaves barriers out while the machine has one core, though its devices run on threads of
/// their own: our index may then be seen after our look at the device's wish, and a kick that both sides wait for is
/// never sent. Reading the counter takes QEMU's big lock, which is a barrier on the host. A core that is not alone
/// needs it not; real hardware loses some cycles.
#[inline(always)]
pub fn device_full_barrier() {
    #[cfg(target_os = "none")]
    // SAFETY: a barrier, and a read of a counter; without `nomem` the compiler keeps the order too.
    unsafe {
        core::arch::asm!("dmb osh", options(nostack, preserves_flags));
        if ALONE.load(core::sync::atomic::Ordering::Relaxed) {
            core::arch::asm!("mrs {}, cntvct_el0", out(reg) _, options(nostack, preserves_flags));
        }
    }
    #[cfg(not(target_os = "none"))]
    core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
}

/// Whether this may be the machine's only core; see [`device_full_barrier`].
#[cfg(target_os = "none")]
static ALONE: core::sync::atomic::AtomicBool = core::sync::atomic::AtomicBool::new(true);

/// The machine has several cores, whether they run or not. Any time; costs nothing but speed if it is never said.
#[cfg(target_os = "none")]
pub fn not_alone() {
    ALONE.store(false, core::sync::atomic::Ordering::Relaxed);
}

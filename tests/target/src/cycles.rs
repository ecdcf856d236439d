//! The core's cycle counter, which counts executed instructions under `-icount shift=0`.

use core::arch::asm;

/// Starts this core's counter.
pub fn count_cycles() {
    // SAFETY: configures this core's cycle counter, which nothing else uses.
    unsafe {
        asm!(
            "msr pmccfiltr_el0, xzr",
            "msr pmcntenset_el0, {bit}",
            "msr pmcr_el0, {enable}",
            "isb",
            bit = in(reg) 1u64 << 31,
            // Enabled, 64 bits wide.
            enable = in(reg) 1u64 | 1 << 6,
            options(nostack)
        );
    }
}

/// What it shows. A barrier for the compiler.
#[inline(always)]
pub fn cycles() -> u64 {
    let now: u64;
    // SAFETY: reads a counter.
    unsafe { asm!("mrs {}, pmccntr_el0", out(reg) now, options(nostack)) };
    now
}

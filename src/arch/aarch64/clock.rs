//! Time: the virtual counter, and the virtual timer as a one-shot deadline.
//!
//! Nanoseconds come from one multiplication of 64 by 64 bits, so nothing overflows and no division runs.
//! The timer is set lazily: one that is set to fire earlier than wanted stays, fires, and the loop sleeps again.
//! A write to it costs more than a spurious wake, and deadlines mostly move away (timeouts that do not happen).

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use super::cpu::{PerCore, me};

/// Counter value at the start of core 0.
static ORIGIN: AtomicU64 = AtomicU64::new(0);
/// Nanoseconds per tick, times 2^32.
static NANOS_PER_TICK: AtomicU64 = AtomicU64::new(0);
/// Ticks per nanosecond, times 2^32, rounded up.
static TICKS_PER_NANO: AtomicU64 = AtomicU64::new(0);

/// QEMU's and most boards' counter frequency, for a firmware that left CNTFRQ_EL0 at zero.
const FALLBACK_FREQUENCY: u64 = 62_500_000;

/// `PerCore::armed` of a timer that is off.
pub(super) const OFF: u64 = u64::MAX;

/// Starts the clock. Core 0 calls it once, first of all.
pub(super) fn start() {
    let frequency: u64;
    // SAFETY: reads a register that the firmware set.
    unsafe {
        asm!("mrs {}, cntfrq_el0", out(reg) frequency, options(nomem, nostack, preserves_flags))
    };
    set_frequency(if frequency == 0 {
        FALLBACK_FREQUENCY
    } else {
        frequency
    });
    ORIGIN.store(ticks(), Ordering::Relaxed);
}

/// Sets the counter's frequency in Hz where the tree's timer node overrides the register. Before other cores run.
pub fn set_frequency(hertz: u64) {
    let hertz = hertz.max(1);
    NANOS_PER_TICK.store(
        ((1_000_000_000_u128 << 32) / u128::from(hertz)) as u64,
        Ordering::Relaxed,
    );
    TICKS_PER_NANO.store(
        ((u128::from(hertz) << 32) / 1_000_000_000) as u64 + 1,
        Ordering::Relaxed,
    );
}

/// The counter. No barrier before it: callers measure and set deadlines, they do not order memory by it.
#[inline]
fn ticks() -> u64 {
    let value: u64;
    // SAFETY: reads the counter. Not `nomem`, so that the compiler keeps its place among memory accesses.
    unsafe { asm!("mrs {}, cntvct_el0", out(reg) value, options(nostack, preserves_flags)) };
    value
}

/// `value * factor / 2^32`.
#[inline]
fn scale(value: u64, factor: u64) -> u64 {
    ((u128::from(value) * u128::from(factor)) >> 32) as u64
}

/// Monotonic nanoseconds since core 0 started, the same on every core.
#[inline]
pub fn now_ns() -> u64 {
    scale(
        ticks().wrapping_sub(ORIGIN.load(Ordering::Relaxed)),
        NANOS_PER_TICK.load(Ordering::Relaxed),
    )
}

/// Turns the timer of the running core off; each core calls it before it takes interrupts.
pub(super) fn start_core() {
    set_control(0);
    me().armed.store(OFF, Ordering::Relaxed);
}

/// Sets the timer of this core to fire at `deadline_ns` or before. False if that moment has passed.
pub(super) fn arm(core: &PerCore, deadline_ns: u64) -> bool {
    let from_start = scale(deadline_ns, TICKS_PER_NANO.load(Ordering::Relaxed));
    let at = ORIGIN
        .load(Ordering::Relaxed)
        .saturating_add(from_start)
        .saturating_add(1);
    if at <= ticks() {
        return false;
    }
    if core.armed.load(Ordering::Relaxed) > at {
        core.armed.store(at, Ordering::Relaxed);
        // SAFETY: sets this core's timer; its interrupt only ends a wait.
        unsafe { asm!("msr cntv_cval_el0, {}", in(reg) at, options(nostack, preserves_flags)) };
        set_control(1);
    }
    true
}

/// The timer's interrupt: turn it off, so that the level falls. Whoever waits looks at the clock itself.
pub(super) fn interrupt(core: &PerCore) {
    set_control(0);
    core.armed.store(OFF, Ordering::Relaxed);
    core.timer_interrupts.store(
        core.timer_interrupts.load(Ordering::Relaxed) + 1,
        Ordering::Relaxed,
    );
}

/// Writes CNTV_CTL_EL0: 1 enabled, 0 off.
fn set_control(value: u64) {
    // SAFETY: touches only this core's virtual timer. The barrier makes it effective before interrupts are unmasked.
    unsafe {
        asm!("msr cntv_ctl_el0, {}", "isb", in(reg) value, options(nostack, preserves_flags))
    };
}

/// Busy delays on the counter. Never shorter than asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Delay;

impl embedded_hal::delay::DelayNs for Delay {
    fn delay_ns(&mut self, ns: u32) {
        let end = now_ns() + u64::from(ns);
        // `<=`: now_ns() rounds down, so one more tick makes the delay whole.
        while now_ns() <= end {
            super::relax();
        }
    }
}

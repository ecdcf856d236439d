//! The clocks of timers: one that only ever moves on, and the wall clock, which may be set.
//!
//! The wall clock is the monotonic one plus an offset, which the machine takes from its real-time clock at the start.
//! Its timers wait for a time of day: when the clock is set, every loop looks at its deadlines again.
#![forbid(unsafe_code)]

use super::context::context;
use crate::arch;
use crate::config::MAX_CORES;
use crate::sync::atomic::{AtomicU64, Ordering};

/// What a timer's deadline is a time of. A context's lists run in this order (TMR-1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Clock {
    /// [`arch::now_ns`]: monotonic, always runs.
    #[default]
    Realtime,
    /// [`host_now_ns`]: nanoseconds since 1970; jumps when it is set.
    Host,
}

/// What the wall clock shows more than the monotonic one.
static OFFSET_NS: AtomicU64 = AtomicU64::new(0);

/// The wall clock: nanoseconds since 1970, or since the start until somebody set it.
#[inline]
pub fn host_now_ns() -> u64 {
    arch::now_ns().saturating_add(OFFSET_NS.load(Ordering::Relaxed))
}

/// Sets the wall clock: it shows `offset_ns` more than [`arch::now_ns`] from now on. Timers of [`Clock::Host`] that are
/// due by this, ahead or back, fire or wait accordingly. Any core, interrupt handlers too.
pub fn set_host_offset(offset_ns: u64) {
    OFFSET_NS.store(offset_ns, Ordering::Relaxed);
    for core in 0..MAX_CORES {
        // After the store: a loop that has looked at its deadlines with the old offset does not sleep, or wakes.
        context(core).notify();
    }
}

/// When the monotonic clock shows what a wall-clock time will be.
pub(super) fn monotonic_of(host_ns: u64) -> u64 {
    host_ns.saturating_sub(OFFSET_NS.load(Ordering::Relaxed))
}

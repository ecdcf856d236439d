//! The host's clock: the real one, or one that a simulation moves by hand.
use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// `u64::MAX`: the real clock; else the manual one's nanoseconds.
static MANUAL: AtomicU64 = AtomicU64::new(u64::MAX);

fn start() -> Instant {
    static START: OnceLock<Instant> = OnceLock::new();
    *START.get_or_init(Instant::now)
}

/// Follows the real monotonic clock (the default).
pub fn real() {
    MANUAL.store(u64::MAX, Ordering::SeqCst);
}

/// Stops the clock at `ns`; only [`advance`] and [`manual`] move it from now on.
pub fn manual(ns: u64) {
    assert_ne!(ns, u64::MAX, "reserved");
    MANUAL.store(ns, Ordering::SeqCst);
}

/// Moves the manual clock forward by `ns`.
///
/// # Panics
/// When the clock is the real one.
pub fn advance(ns: u64) {
    let old = MANUAL.load(Ordering::SeqCst);
    assert_ne!(old, u64::MAX, "only a manual clock can be advanced");
    MANUAL.store(old + ns, Ordering::SeqCst);
}

/// Moves a manual clock forward; the real one moves by itself.
pub(super) fn tick(ns: u64) {
    let old = MANUAL.load(Ordering::Relaxed);
    if old != u64::MAX {
        MANUAL.store(old + ns, Ordering::Relaxed);
    }
}

/// Nanoseconds since the first use, or the manual value.
pub(super) fn now_ns() -> u64 {
    match MANUAL.load(Ordering::Relaxed) {
        u64::MAX => start().elapsed().as_nanos() as u64,
        manual => manual,
    }
}

/// How long a real thread may sleep for `deadline` to be met.
pub(super) fn real_duration_until(deadline: u64) -> Duration {
    match MANUAL.load(Ordering::Relaxed) {
        u64::MAX => Duration::from_nanos(deadline.saturating_sub(now_ns())),
        manual if manual >= deadline => Duration::ZERO,
        // The clock moves by hand: look again soon.
        _ => Duration::from_millis(1),
    }
}

//! What the event loop's operations cost in guest instructions, and what embassy's cost on the same core.
//!
//! Under `-icount shift=0` QEMU's cycle counter counts executed instructions, exactly. An operation is measured from
//! the instruction after [`begin`] to the one before [`end`], which may lie in the callback that the operation leads
//! to; what an empty measurement shows is taken off. Prints lines `cost CASE VALUE`.
#![no_std]
#![no_main]

mod embassy;
mod ours;

use core::sync::atomic::{AtomicU64, Ordering};

use ironthread::aio;
use ironthread::arch::CoreId;
use ironthread::arch::aarch64::EmergencyConsole;
use ironthread_target_tests::cycles::{count_cycles, cycles};
use ironthread_target_tests::{entry, pass, say, start, start_cores};

entry!(main);

/// Rounds that are counted, after as many that are not.
pub const ROUNDS: u64 = 64;

static BEGIN: AtomicU64 = AtomicU64::new(0);
static END: AtomicU64 = AtomicU64::new(0);

/// The measured part begins.
#[inline(always)]
pub fn begin() {
    BEGIN.store(cycles(), Ordering::Relaxed);
}

/// The measured part ends, here or wherever the work arrives.
#[inline(always)]
pub fn end() {
    END.store(cycles(), Ordering::Relaxed);
}

/// What lies between the last [`begin`] and the last [`end`], without what an empty measurement has.
pub fn last() -> u64 {
    (END.load(Ordering::Relaxed) - BEGIN.load(Ordering::Relaxed)) - overhead()
}

fn overhead() -> u64 {
    static OVERHEAD: AtomicU64 = AtomicU64::new(0);
    if OVERHEAD.load(Ordering::Relaxed) == 0 {
        let from = cycles();
        BEGIN.store(from, Ordering::Relaxed);
        let to = cycles();
        OVERHEAD.store(to - from, Ordering::Relaxed);
    }
    OVERHEAD.load(Ordering::Relaxed)
}

/// Prints one figure: the mean of `sum` over [`ROUNDS`].
pub fn report(case: &str, suffix: &str, sum: u64) {
    let tenths = (10 * sum + ROUNDS / 2) / ROUNDS;
    say!("cost {case}{suffix} {}.{}", tenths / 10, tenths % 10);
}

/// Measures `round`, which calls [`begin`] and [`end`] (or what it calls does), and reports the mean.
pub fn measure(case: &str, suffix: &str, mut round: impl FnMut(u64)) {
    let mut sum = 0;
    for number in 0..2 * ROUNDS {
        round(number);
        if number >= ROUNDS {
            sum += last();
        }
    }
    report(case, suffix, sum);
}

/// Numbers without order, for deadlines.
pub fn scatter(n: u64) -> u64 {
    n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40
}

fn secondary(core: CoreId) {
    count_cycles();
    ours::other_core(core);
}

fn main(tree: usize) -> ! {
    let info = start(tree);
    count_cycles();
    aio::main_context().attach(0);
    overhead();
    ours::own_core();
    embassy::run();
    start_cores(&info, secondary);
    ours::cross_core();
    // Somebody reads the trace, or the compiler would see that it need not be written.
    if aio::trace::dump(0, &mut EmergencyConsole, 4).is_err() {
        say!("no trace");
    }
    pass()
}

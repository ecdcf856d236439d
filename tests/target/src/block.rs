//! What the images share that run the block layer: all cores in their loops, and core 0 waiting for what they do.

use core::sync::atomic::{AtomicUsize, Ordering};

use ironthread::aio::{self, Callback, Timer};
use ironthread::arch::{self, CoreId};
use ironthread::block;
use ironthread::machine::tree::MachineInfo;
use spin::Once;

use crate::{start, start_cores};

/// The longest that anything is waited for, in nanoseconds.
pub const PATIENCE: u64 = 20_000_000_000;

static READY: AtomicUsize = AtomicUsize::new(0);

fn secondary(core: CoreId) {
    aio::context(core).attach(core);
    if let Err(error) = block::start_core(core) {
        panic!("core {core}: {error}");
    }
    READY.fetch_add(1, Ordering::SeqCst);
    aio::run_loop(aio::context(core));
}

/// From the board's first call to every core with its context and the block layer; all but core 0 are in their loops.
pub fn start_block(tree: usize) -> MachineInfo {
    let info = start(tree);
    aio::main_context().attach(0);
    if let Err(error) = block::start_core(0) {
        panic!("block: {error}");
    }
    start_cores(&info, secondary);
    run_until("cores", || {
        READY.load(Ordering::SeqCst) + 1 == arch::cores()
    });
    info
}

/// Runs core 0's loop until `done`.
pub fn run_until(what: &str, done: impl FnMut() -> bool) {
    run_until_looking(50_000_000, what, done);
}

/// The same, with a look every `period_ns` at least: the other cores do not wake this one for what they only count.
pub fn run_until_looking(period_ns: u64, what: &str, mut done: impl FnMut() -> bool) {
    static WATCHDOG: Once<Timer> = Once::new();
    let watchdog = WATCHDOG.call_once(|| {
        match aio::main_context().timer("watchdog", Callback::new(&|_| {}, 0)) {
            Ok(timer) => timer,
            Err(error) => panic!("watchdog: {error}"),
        }
    });
    let end = arch::now_ns() + PATIENCE;
    while !done() {
        assert!(arch::now_ns() < end, "{what}: not done in time");
        watchdog.arm_at(arch::now_ns() + period_ns);
        aio::main_context().poll(true);
    }
    watchdog.cancel();
}

//! The world of the cases, and what runs them.
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use ironthread::aio::{self, AioContext, Callback, ContextStats, Timer};
use ironthread::arch::{self, CoreId};
use ironthread::config::MAX_CORES;

use crate::{CASES, Case};

/// How long a condition may take to come true, in ns: far longer than any machine needs.
const PATIENCE: u64 = 100_000_000_000;
/// How often a wait looks at the clock, in ns.
const HEARTBEAT: u64 = 20_000_000;

/// Cores that do not begin another run of their loop while this is set.
static HELD: [AtomicBool; MAX_CORES] = [const { AtomicBool::new(false) }; MAX_CORES];
/// How often each core's loop has ended.
static ENDED: [AtomicUsize; MAX_CORES] = [const { AtomicUsize::new(0) }; MAX_CORES];
static OVER: AtomicBool = AtomicBool::new(false);

/// What a case finds around itself.
pub struct World {
    heartbeat: Timer,
    /// The full counts of QEMU's long variants.
    pub long: bool,
}

impl World {
    /// The main loop's context, whose home is the caller's core.
    pub fn main(&self) -> &'static AioContext {
        aio::main_context()
    }

    /// The context of an IOThread, from 1 on.
    pub fn io(&self, core: CoreId) -> &'static AioContext {
        assert!((1..self.cores()).contains(&core));
        aio::context(core)
    }

    /// How many cores there are.
    pub fn cores(&self) -> usize {
        arch::cores()
    }

    /// Polls the main loop until `condition` holds.
    #[track_caller]
    pub fn until(&self, mut condition: impl FnMut() -> bool) {
        let end = arch::now_ns() + PATIENCE;
        while !condition() {
            assert!(arch::now_ns() < end, "the condition did not come true");
            self.heartbeat.arm_at(arch::now_ns() + HEARTBEAT);
            self.main().poll(true);
        }
        self.heartbeat.cancel();
    }

    /// Waits until `condition` holds while the main loop stands still.
    #[track_caller]
    pub fn watch(&self, condition: impl FnMut() -> bool) {
        watch(condition);
    }

    /// Keeps `core` from beginning its loop again once that has ended, or lets it.
    pub fn hold(&self, core: CoreId, held: bool) {
        HELD[core].store(held, SeqCst);
    }

    /// How often the loop of `core` has ended.
    pub fn ended(&self, core: CoreId) -> usize {
        ENDED[core].load(SeqCst)
    }

    /// Uses up wake-ups that were sent and not met: afterwards a poll of the main loop that waits really waits.
    fn settle(&self) {
        self.heartbeat.arm_at(arch::now_ns() + 1_000_000);
        while self.heartbeat.is_pending() {
            self.main().poll(true);
        }
        while self.main().poll(false) {}
    }
}

/// Waits, on any core, until `condition` holds.
#[track_caller]
pub fn watch(mut condition: impl FnMut() -> bool) {
    let end = arch::now_ns() + PATIENCE;
    while !condition() {
        assert!(arch::now_ns() < end, "the condition did not come true");
        arch::relax();
    }
}

/// The life of a core other than 0: its loop, again whenever it was stopped, until [`shutdown`].
pub fn secondary(core: CoreId) {
    let context = aio::context(core);
    context.attach(core);
    loop {
        aio::run_loop(context);
        ENDED[core].fetch_add(1, SeqCst);
        if OVER.load(SeqCst) {
            return;
        }
        while HELD[core].load(SeqCst) {
            arch::relax();
        }
    }
}

/// What must be the same before and after a case: records in use, by context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Gauges {
    bottom_halves: usize,
    oneshots: usize,
    timers: usize,
    armed: usize,
    handlers: usize,
    locked: u32,
    coroutines: usize,
}

fn gauges(core: CoreId) -> Gauges {
    let context = aio::context(core);
    let stats: ContextStats = context.stats();
    let mut handlers = 0;
    context.for_each_handler(|_| handlers += 1);
    Gauges {
        bottom_halves: stats.bottom_halves_in_use,
        oneshots: stats.oneshots_in_use,
        timers: stats.timers_in_use,
        armed: stats.timers_armed,
        handlers,
        // A loop holds its own lock while it dispatches; the main one's stands still while this looks.
        locked: if core == 0 {
            context.context_lock().depth()
        } else {
            0
        },
        coroutines: aio::coroutines_in_use().0,
    }
}

/// Sees that the records in use are again what they were; a deleted one may still have to be taken off its lane.
fn expect_gauges(world: &World, before: &[Gauges], name: &str) {
    let end = arch::now_ns() + PATIENCE;
    for (core, before) in before.iter().enumerate() {
        loop {
            world.settle();
            let now = gauges(core);
            if now == *before {
                break;
            }
            assert!(
                arch::now_ns() < end,
                "{name} left something behind on core {core}: {before:?} became {now:?}"
            );
        }
    }
}

/// Runs every case that the machine has cores for and whose name begins with `prefix`; `begin` and `end` are told its
/// name. Called on core 0, which is attached to the main context, when the other cores are in [`secondary`].
///
/// # Panics
/// When a case fails, or leaves something behind.
pub fn run(long: bool, prefix: &str, mut begin: impl FnMut(&Case), mut end: impl FnMut(&Case)) {
    let heartbeat = aio::main_context()
        .timer("heartbeat", Callback::new(&|_| (), 0))
        .expect("the first timer");
    let world = World { heartbeat, long };
    let cores = world.cores();
    for core in 1..cores {
        watch(|| aio::is_running(aio::context(core)));
    }
    for case in CASES
        .iter()
        .filter(|case| case.cores <= cores && case.name.starts_with(prefix))
    {
        world.settle();
        let mut before = [gauges(0); MAX_CORES];
        for (core, before) in before.iter_mut().enumerate().take(cores) {
            *before = gauges(core);
        }
        begin(case);
        (case.run)(&world);
        expect_gauges(&world, &before[..cores], case.name);
        end(case);
    }
    heartbeat.cancel();
    heartbeat.delete().expect("the heartbeat has stopped");
}

/// Ends the loops of the other cores and waits for that.
pub fn shutdown() {
    OVER.store(true, SeqCst);
    for core in 1..arch::cores() {
        let before = ENDED[core].load(SeqCst);
        HELD[core].store(false, SeqCst);
        aio::stop(aio::context(core));
        watch(|| ENDED[core].load(SeqCst) > before);
    }
}

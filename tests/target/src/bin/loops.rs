//! The event loop on real cores: bottom halves round a ring of contexts that sleep in between, timers, an interrupt
//! that sets a notifier on a chosen core, the context lock from all cores, no kick to a core that runs, and stop.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use ironthread::aio::{self, AioContext, BottomHalf, Callback, EventNotifier, Timer};
use ironthread::arch::aarch64::{
    Trigger, counters, register_interrupt, route_interrupt, stack_use,
};
use ironthread::arch::{self, mmio};
use ironthread::config::MAX_CORES;
use ironthread_target_tests::{entry, pass, run_loop, say, start, start_cores};
use spin::Once;

entry!(main);

const PATIENCE: u64 = 20_000_000_000;

/// Polls the main loop until `done`.
fn run_until(what: &str, mut done: impl FnMut() -> bool) {
    let end = arch::now_ns() + PATIENCE;
    // The watchdog's timer ends a wait that nothing else would.
    static WATCHDOG: Once<Timer> = Once::new();
    let watchdog = WATCHDOG.call_once(|| {
        match aio::main_context().timer("watchdog", Callback::new(&|_| {}, 0)) {
            Ok(timer) => timer,
            Err(error) => panic!("watchdog: {error}"),
        }
    });
    while !done() {
        assert!(arch::now_ns() < end, "{what}: not done in time");
        watchdog.arm_at(arch::now_ns() + 50_000_000);
        aio::main_context().poll(true);
    }
}

fn bottom_half(context: &'static AioContext, name: &'static str, callback: Callback) -> BottomHalf {
    match context.bottom_half(name, callback) {
        Ok(bottom_half) => bottom_half,
        Err(error) => panic!("{name}: {error}"),
    }
}

// --- the ring ---

static RING: [Once<BottomHalf>; MAX_CORES] = [const { Once::new() }; MAX_CORES];
static HOPS: AtomicUsize = AtomicUsize::new(0);
const RING_HOPS: usize = 10_000;

fn hop(core: usize) {
    assert_eq!(
        arch::current_core(),
        Some(core),
        "a bottom half ran away from home"
    );
    if HOPS.fetch_add(1, Ordering::Relaxed) < RING_HOPS
        && let Some(next) = RING[(core + 1) % arch::cores()].get()
    {
        next.schedule();
    }
}

fn ring() {
    for (core, slot) in RING.iter().enumerate().take(arch::cores()) {
        slot.call_once(|| bottom_half(aio::context(core), "hop", Callback::new(&hop, core)));
    }
    let begin = arch::now_ns();
    if let Some(first) = RING[0].get() {
        first.schedule();
    }
    run_until("ring", || HOPS.load(Ordering::Relaxed) > RING_HOPS);
    say!(
        "ring: {} ns a hop",
        (arch::now_ns() - begin) / RING_HOPS as u64
    );
}

// --- a core that runs is not kicked ---

static OWN: Once<BottomHalf> = Once::new();
static OWN_RUNS: AtomicUsize = AtomicUsize::new(0);

fn own(_: usize) {
    if OWN_RUNS.fetch_add(1, Ordering::Relaxed) < 10_000
        && let Some(own) = OWN.get()
    {
        own.schedule();
    }
}

fn no_kicks() {
    let own = OWN.call_once(|| bottom_half(aio::main_context(), "own", Callback::new(&own, 0)));
    // Kicks of the ring may still be under way.
    let quiet = arch::now_ns() + 20_000_000;
    run_until("quiet", || arch::now_ns() > quiet);
    let before = arch::kicks(0);
    own.schedule();
    run_until("own", || OWN_RUNS.load(Ordering::Relaxed) > 10_000);
    assert_eq!(arch::kicks(0), before, "a running core was kicked");
}

// --- timers ---

static TIMERS: [Once<Timer>; MAX_CORES] = [const { Once::new() }; MAX_CORES];
static DUE: [AtomicU64; MAX_CORES] = [const { AtomicU64::new(0) }; MAX_CORES];
static FIRED: [AtomicUsize; MAX_CORES] = [const { AtomicUsize::new(0) }; MAX_CORES];
static LATEST: AtomicU64 = AtomicU64::new(0);
const FIRINGS: usize = 100;

fn arm(core: usize) {
    let due = arch::now_ns() + 200_000 + 37_000 * core as u64;
    DUE[core].store(due, Ordering::Relaxed);
    if let Some(timer) = TIMERS[core].get() {
        timer.arm_at(due);
    }
}

fn fired(core: usize) {
    let now = arch::now_ns();
    let due = DUE[core].load(Ordering::Relaxed);
    assert!(now >= due, "core {core}: a timer {} ns early", due - now);
    LATEST.fetch_max(now - due, Ordering::Relaxed);
    if FIRED[core].fetch_add(1, Ordering::Relaxed) + 1 < FIRINGS {
        arm(core);
    }
}

fn timers() {
    let cores = arch::cores();
    for (core, slot) in TIMERS.iter().enumerate().take(cores) {
        slot.call_once(
            || match aio::context(core).timer("fire", Callback::new(&fired, core)) {
                Ok(timer) => timer,
                Err(error) => panic!("timer: {error}"),
            },
        );
        arm(core);
    }
    run_until("timers", || {
        FIRED[..cores]
            .iter()
            .all(|fired| fired.load(Ordering::Relaxed) == FIRINGS)
    });
    say!(
        "timers: at most {} us late",
        LATEST.load(Ordering::Relaxed) / 1000
    );
}

// --- an interrupt sets a notifier ---

static LINE: [EventNotifier; MAX_CORES] = [const { EventNotifier::new() }; MAX_CORES];
static HANDLED: [AtomicUsize; MAX_CORES] = [const { AtomicUsize::new(0) }; MAX_CORES];

/// PL011: interrupt mask, interrupt clear; bit 5 is "transmit".
const UART_MASK: usize = 0x38 / 4;
const UART_CLEAR: usize = 0x44 / 4;
const TRANSMIT: u32 = 1 << 5;

fn uart_interrupt(base: usize) {
    let registers = core::ptr::with_exposed_provenance_mut::<u32>(base);
    // SAFETY: the claimed UART; masking and clearing lowers the line.
    unsafe {
        registers.add(UART_MASK).write_volatile(0);
        registers.add(UART_CLEAR).write_volatile(TRANSMIT);
    }
    if let Some(core) = arch::current_core() {
        LINE[core].set();
    }
}

fn ready(core: usize) {
    assert_eq!(arch::current_core(), Some(core));
    if LINE[core].test_and_clear() {
        HANDLED[core].fetch_add(1, Ordering::Relaxed);
    }
}

fn interrupts(base: usize, intid: u32) {
    let registers = core::ptr::with_exposed_provenance_mut::<u32>(base);
    for core in 0..arch::cores() {
        if let Err(error) =
            aio::context(core).register(&LINE[core], "line", Callback::new(&ready, core), None)
        {
            panic!("notifier: {error}");
        }
        let routed = match core {
            0 => register_interrupt(intid, Trigger::Level, 0, uart_interrupt, base),
            _ => route_interrupt(intid, core),
        };
        if let Err(error) = routed {
            panic!("interrupt: {error}");
        }
        for count in 1..=20 {
            // SAFETY: the claimed UART; a byte sent raises "transmit".
            unsafe {
                registers.add(UART_MASK).write_volatile(TRANSMIT);
                registers.write_volatile(u32::from(b'.'));
            }
            run_until("interrupt", || {
                HANDLED[core].load(Ordering::Relaxed) == count
            });
        }
    }
    say!("");
}

// --- the context lock ---

static LOCKERS: [Once<BottomHalf>; MAX_CORES] = [const { Once::new() }; MAX_CORES];
static INSIDE: AtomicUsize = AtomicUsize::new(0);
static LOCKED: [AtomicUsize; MAX_CORES] = [const { AtomicUsize::new(0) }; MAX_CORES];
/// Read and written apart: loses counts unless the lock excludes.
static SUM: AtomicUsize = AtomicUsize::new(0);
const LOCKINGS: usize = 1_000;

fn locker(core: usize) {
    {
        let _guard = aio::main_context().lock();
        let again = aio::main_context().lock();
        assert_eq!(
            INSIDE.fetch_add(1, Ordering::SeqCst),
            0,
            "two cores hold one lock"
        );
        SUM.store(SUM.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        INSIDE.fetch_sub(1, Ordering::SeqCst);
        drop(again);
    }
    if LOCKED[core].fetch_add(1, Ordering::Relaxed) + 1 < LOCKINGS
        && let Some(own) = LOCKERS[core].get()
    {
        own.schedule();
    }
}

fn locks() {
    let cores = arch::cores();
    let begin = arch::now_ns();
    for (core, slot) in LOCKERS.iter().enumerate().take(cores) {
        slot.call_once(|| bottom_half(aio::context(core), "locker", Callback::new(&locker, core)))
            .schedule();
    }
    run_until("locks", || {
        LOCKED[..cores]
            .iter()
            .all(|locked| locked.load(Ordering::Relaxed) == LOCKINGS)
    });
    assert_eq!(
        SUM.load(Ordering::Relaxed),
        cores * LOCKINGS,
        "the lock lost counts"
    );
    say!(
        "lock: {} ns each, {cores} cores at it",
        (arch::now_ns() - begin) / (cores * LOCKINGS) as u64
    );
}

// --- beginning and end ---

fn main(tree: usize) -> ! {
    let info = start(tree);
    aio::main_context().attach(0);
    start_cores(&info, run_loop);
    let Some(uart) = mmio::claim(info.uart.region.base, info.uart.region.size) else {
        panic!("no claim on the UART")
    };
    for polling in [0, 100_000] {
        for core in 0..arch::cores() {
            aio::context(core).set_poll_max_ns(polling);
        }
        HOPS.store(0, Ordering::Relaxed);
        ring();
    }
    no_kicks();
    timers();
    interrupts(
        uart.base().as_ptr().expose_provenance(),
        info.uart.interrupt,
    );
    locks();
    for core in 1..arch::cores() {
        aio::stop(aio::context(core));
    }
    run_until("stop", || {
        (1..arch::cores()).all(|core| !aio::is_running(aio::context(core)))
    });
    for core in 0..arch::cores() {
        say!("core {core}: {:?}", counters(core));
        let stacks = stack_use(core);
        assert!(
            stacks
                .iter()
                .all(|stack| stack.high_water > 0 && stack.high_water < stack.size),
            "{stacks:?}"
        );
        say!("core {core}: {stacks:?}");
    }
    pass()
}

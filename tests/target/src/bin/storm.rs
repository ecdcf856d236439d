//! An interrupt storm: a timer every 50 us on every core, and the UART's transmit interrupt on core 0, while context
//! locks, bottom halves and notifiers go on. Every count must add up at the end.
//!
//! On a busy host the machine is too slow for that rate: a core that falls behind leaves periods out, and says how
//! many. Where the machine's time follows its instructions (`-icount`) it does not depend on the host: `exact=1` then
//! demands that no period was left out.
//!
//! Boot arguments: `count=` timers a core (20,000), `exact=1`.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use ironthread::aio::{self, BottomHalf, Callback, EventNotifier, Timer};
use ironthread::arch::aarch64::{Trigger, counters, register_interrupt};
use ironthread::arch::{self, mmio};
use ironthread_target_tests::{argument, entry, pass, run_loop, say, start, start_cores};
use spin::Once;

entry!(main);

const CORES: usize = 4;
const PERIOD_NS: u64 = 50_000;

// --- the storm: a timer every 50 us ---

static TIMERS: [Once<Timer>; CORES] = [const { Once::new() }; CORES];
static ARMED: [AtomicU64; CORES] = [const { AtomicU64::new(0) }; CORES];
static FIRED: [AtomicU64; CORES] = [const { AtomicU64::new(0) }; CORES];
/// When each fires next, when it fired first, and last; periods that were over before it had fired.
static DUE: [AtomicU64; CORES] = [const { AtomicU64::new(0) }; CORES];
static FIRST: [AtomicU64; CORES] = [const { AtomicU64::new(0) }; CORES];
static LAST: [AtomicU64; CORES] = [const { AtomicU64::new(0) }; CORES];
static LEFT_OUT: [AtomicU64; CORES] = [const { AtomicU64::new(0) }; CORES];
/// How often each timer fires.
static COUNT: AtomicU64 = AtomicU64::new(0);

fn arm(core: usize) {
    let ordering = Ordering::Relaxed;
    ARMED[core].fetch_add(1, ordering);
    let (mut due, now) = (DUE[core].load(ordering) + PERIOD_NS, arch::now_ns());
    if due <= now {
        let late = (now - due) / PERIOD_NS + 1;
        LEFT_OUT[core].fetch_add(late, ordering);
        due += late * PERIOD_NS;
    }
    DUE[core].store(due, ordering);
    if let Some(timer) = TIMERS[core].get() {
        timer.arm_at(due);
    }
}

fn fired(core: usize) {
    assert_eq!(arch::current_core(), Some(core));
    let fired = FIRED[core].fetch_add(1, Ordering::Relaxed) + 1;
    let now = arch::now_ns();
    if fired == 1 {
        FIRST[core].store(now, Ordering::Relaxed);
    }
    LAST[core].store(now, Ordering::Relaxed);
    if let Some(half) = HALVES[core].get() {
        half.schedule();
    }
    if core == 0
        && fired.is_multiple_of(16)
        && RAISED.load(Ordering::Relaxed) == HANDLED.load(Ordering::Relaxed)
    {
        raise();
    }
    aio::context((core + 1) % CORES).watch();
    if fired < COUNT.load(Ordering::Relaxed) {
        arm(core);
    }
}

// --- a second source: the UART's transmit interrupt, handed to the loop through a notifier ---

/// PL011: interrupt mask, interrupt clear; bit 5 is "transmit".
const UART_MASK: usize = 0x38 / 4;
const UART_CLEAR: usize = 0x44 / 4;
const TRANSMIT: u32 = 1 << 5;

static UART: AtomicUsize = AtomicUsize::new(0);
static LINE: EventNotifier = EventNotifier::new();
static RAISED: AtomicU64 = AtomicU64::new(0);
static TAKEN: AtomicU64 = AtomicU64::new(0);
static HANDLED: AtomicU64 = AtomicU64::new(0);

fn uart(register: usize, value: u32) {
    let base = core::ptr::with_exposed_provenance_mut::<u32>(UART.load(Ordering::Relaxed));
    // SAFETY: the claimed UART, whose address `main` stored; core 0 alone comes here.
    unsafe { base.add(register).write_volatile(value) };
}

fn raise() {
    RAISED.fetch_add(1, Ordering::Relaxed);
    uart(UART_MASK, TRANSMIT);
    uart(0, u32::from(b'.'));
}

fn uart_interrupt(_: usize) {
    uart(UART_MASK, 0);
    uart(UART_CLEAR, TRANSMIT);
    TAKEN.fetch_add(1, Ordering::Relaxed);
    LINE.set();
}

fn line_ready(_: usize) {
    if LINE.test_and_clear() {
        HANDLED.fetch_add(1, Ordering::Relaxed);
    }
}

// --- the load of each core: a bottom half a timer, which takes a context's lock, then sets the next core's notifier ---

static HALVES: [Once<BottomHalf>; CORES] = [const { Once::new() }; CORES];
static NOTIFIERS: [EventNotifier; CORES] = [const { EventNotifier::new() }; CORES];
/// Bottom halves run; notifiers set for a core, and how many of them its handler has seen.
static RUNS: [AtomicU64; CORES] = [const { AtomicU64::new(0) }; CORES];
static SENT: [AtomicU64; CORES] = [const { AtomicU64::new(0) }; CORES];
static SEEN: [AtomicU64; CORES] = [const { AtomicU64::new(0) }; CORES];
/// By context: read and written apart under its lock, so that a broken lock loses counts.
static SUMS: [AtomicU64; CORES] = [const { AtomicU64::new(0) }; CORES];
static INSIDE: [AtomicU32; CORES] = [const { AtomicU32::new(0) }; CORES];
/// Loads that are not at their end.
static LOADS: AtomicU32 = AtomicU32::new(CORES as u32);

fn half(core: usize) {
    let run = RUNS[core].fetch_add(1, Ordering::Relaxed);
    // A callback holds its own context's lock already: only those of lower contexts, so that no two cores can wait
    // for each other.
    let other = run as usize % (core + 1);
    {
        let _guard = aio::context(other).lock();
        assert_eq!(
            INSIDE[other].fetch_add(1, Ordering::SeqCst),
            0,
            "two cores hold one lock"
        );
        let sum = SUMS[other].load(Ordering::Relaxed);
        arch::relax();
        SUMS[other].store(sum + 1, Ordering::Relaxed);
        INSIDE[other].fetch_sub(1, Ordering::SeqCst);
    }
    let next = (core + 1) % CORES;
    SENT[next].fetch_add(1, Ordering::Relaxed);
    NOTIFIERS[next].set();
    if run + 1 == COUNT.load(Ordering::Relaxed) && LOADS.fetch_sub(1, Ordering::AcqRel) == 1 {
        aio::stop(aio::main_context());
    }
}

fn ready(core: usize) {
    if NOTIFIERS[core].test_and_clear() {
        SEEN[core].store(SENT[core].load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

// --- beginning and end ---

fn begin(core: usize) {
    DUE[core].store(arch::now_ns(), Ordering::Relaxed);
    arm(core);
}

fn prepare(core: usize) {
    let context = aio::context(core);
    match context.bottom_half("load", Callback::new(&half, core)) {
        Ok(made) => HALVES[core].call_once(|| made),
        Err(error) => panic!("bottom half: {error}"),
    };
    match context.timer("storm", Callback::new(&fired, core)) {
        Ok(made) => TIMERS[core].call_once(|| made),
        Err(error) => panic!("timer: {error}"),
    };
    if let Err(error) =
        context.register(&NOTIFIERS[core], "load", Callback::new(&ready, core), None)
    {
        panic!("notifier: {error}");
    }
}

fn main(tree: usize) -> ! {
    let info = start(tree);
    let count = argument(&info, "count")
        .and_then(|text| text.parse().ok())
        .unwrap_or(20_000_u64);
    assert!(count > 1, "a rate needs two timers");
    COUNT.store(count, Ordering::Relaxed);
    let exact = argument(&info, "exact") == Some("1");
    aio::main_context().attach(0);
    start_cores(&info, run_loop);
    assert_eq!(arch::cores(), CORES, "started with -smp 4");
    let Some(claim) = mmio::claim(info.uart.region.base, info.uart.region.size) else {
        panic!("no claim on the UART")
    };
    UART.store(claim.base().as_ptr().expose_provenance(), Ordering::Relaxed);
    if let Err(error) =
        aio::main_context().register(&LINE, "line", Callback::new(&line_ready, 0), None)
    {
        panic!("notifier: {error}");
    }
    if let Err(error) =
        register_interrupt(info.uart.interrupt, Trigger::Level, 0, uart_interrupt, 0)
    {
        panic!("interrupt: {error}");
    }
    (0..CORES).for_each(prepare);
    let start = arch::now_ns();
    for core in 0..CORES {
        if let Err(error) =
            aio::context(core).schedule_oneshot("begin", Callback::new(&begin, core))
        {
            panic!("begin: {error}");
        }
    }
    aio::run_loop(aio::main_context());
    let ns = arch::now_ns() - start;
    for core in 1..CORES {
        aio::stop(aio::context(core));
    }
    while (1..CORES).any(|core| aio::is_running(aio::context(core))) {
        // Asleep: where cores take turns, one that spins keeps the others from theirs.
        let masked = arch::irq_mask();
        arch::wait(Some(arch::now_ns() + PERIOD_NS));
        arch::irq_restore(masked);
    }
    // What the last interrupt and the last bottom halves left for this loop.
    while HANDLED.load(Ordering::Relaxed) < RAISED.load(Ordering::Relaxed) {
        aio::main_context().poll(true);
    }
    while aio::main_context().poll(false) {}
    say!("");
    let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    for core in 0..CORES {
        let (metal, stats) = (counters(core), aio::context(core).stats());
        say!(
            "core {core}: {} timers a second, {} periods left out, {} timer interrupts, {} sleeps, {} kicks",
            (count - 1) * 1_000_000_000 / (get(&LAST[core]) - get(&FIRST[core])).max(1),
            get(&LEFT_OUT[core]),
            metal.timer_interrupts,
            stats.sleeps,
            stats.kicks
        );
        assert_eq!(stats.lost_wakeups, 0, "core {core}: lost wake-ups");
        assert_eq!(get(&ARMED[core]), count, "core {core}: armed");
        assert_eq!(get(&FIRED[core]), count, "core {core}: timers lost");
        assert_eq!(get(&RUNS[core]), count, "core {core}: bottom halves lost");
        assert_eq!(get(&SENT[core]), count, "core {core}: sets");
        assert_eq!(
            get(&SEEN[core]),
            count,
            "core {core}: the last set was lost"
        );
        assert!(
            metal.timer_interrupts > 0,
            "core {core}: no timer interrupt came"
        );
        assert!(
            !exact || get(&LEFT_OUT[core]) == 0,
            "core {core}: slower than asked"
        );
    }
    assert_eq!(
        SUMS.iter().map(get).sum::<u64>(),
        count * CORES as u64,
        "a lock lost counts"
    );
    assert_eq!(get(&RAISED), get(&TAKEN), "interrupts of the UART");
    say!(
        "storm: {} ns a timer and load, {} interrupts of the UART",
        ns / (count * CORES as u64),
        get(&TAKEN)
    );
    pass()
}

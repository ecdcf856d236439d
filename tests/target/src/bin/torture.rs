//! No wake-up of the event loop is lost: tokens go from core to core between loops that sleep, by every way that work
//! takes from one context to another, mixed from a seed. No timer is armed and no loop polls before it sleeps, so
//! nothing saves a lost wake-up: the tokens stand still, and the runner ends the machine. It sends a byte on the
//! console first, whose interrupt reports the trace of every core.
//!
//! Boot arguments: `count=` hand-offs (200,000), `seed=`.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use ironthread::aio::{
    self, BottomHalf, Callback, CoroutineHandle, EventNotifier, WorkResult, run_on, suspend,
};
use ironthread::arch::aarch64::{Trigger, register_interrupt, set_dump_hook};
use ironthread::arch::{self, CoreId, mmio};
use ironthread_target_tests::{argument, entry, pass, run_loop, say, start, start_cores};
use spin::Once;

entry!(main);

const CORES: usize = 4;
const TOKENS: usize = 4;
/// How many tokens are under way in each round: with few, every hand-off meets a loop that sleeps; with many, loops
/// that are about to.
const ROUNDS: [usize; 3] = [1, 2, TOKENS];
const WAYS: usize = 4;
const NAMES: [&str; WAYS] = ["bottom half", "notifier", "coroutine", "run_on"];

/// A token that lies in a context has its number plus this; under way it has the receiver's alone.
const LYING: u32 = 1 << 8;

struct Token {
    /// Who has it, or is to get it.
    at: AtomicU32,
    random: AtomicU64,
}

static STATE: [Token; TOKENS] = [const {
    Token {
        at: AtomicU32::new(0),
        random: AtomicU64::new(0),
    }
}; TOKENS];

/// What receives a token, by token and core.
static HALVES: [[Once<BottomHalf>; CORES]; TOKENS] =
    [const { [const { Once::new() }; CORES] }; TOKENS];
static NOTIFIERS: [[EventNotifier; CORES]; TOKENS] =
    [const { [const { EventNotifier::new() }; CORES] }; TOKENS];
static COROUTINES: [[Once<CoroutineHandle>; CORES]; TOKENS] =
    [const { [const { Once::new() }; CORES] }; TOKENS];
/// A wake is no message: this says that it brought the token.
static BROUGHT: [[AtomicU32; CORES]; TOKENS] =
    [const { [const { AtomicU32::new(0) }; CORES] }; TOKENS];

static HANDED: [AtomicU64; WAYS] = [const { AtomicU64::new(0) }; WAYS];
static LEFT: AtomicU64 = AtomicU64::new(0);
static UNDER_WAY: AtomicU32 = AtomicU32::new(0);

/// xorshift64*; of a token, which only one core has at a time.
fn random(token: usize) -> u64 {
    let cell = &STATE[token].random;
    let mut x = cell.load(Ordering::Relaxed);
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    cell.store(x, Ordering::Relaxed);
    x.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
}

/// A token has come to this core.
fn arrive(token: usize, core: usize, way: usize) {
    assert_eq!(
        arch::current_core(),
        Some(core),
        "{}: on the wrong core",
        NAMES[way]
    );
    let at = STATE[token].at.swap(core as u32 | LYING, Ordering::AcqRel);
    assert_eq!(
        at, core as u32,
        "{}: token {token} came twice, or to the wrong core",
        NAMES[way]
    );
    HANDED[way].fetch_add(1, Ordering::Relaxed);
    let before = LEFT
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            left.checked_sub(1)
        })
        .is_ok();
    if before {
        // The watchdog looks from what goes on anyway: it may not be what wakes a core.
        aio::context(to_watch(core)).watch();
        pass_on(token, core);
    } else if UNDER_WAY.fetch_sub(1, Ordering::AcqRel) == 1 {
        aio::stop(aio::main_context());
    }
}

/// The core that `core` watches.
fn to_watch(core: usize) -> usize {
    (core + 1) % CORES
}

/// Hands a token that lies here to another core.
fn pass_on(token: usize, core: usize) {
    let draw = random(token);
    let to = (core + 1 + draw as usize % (CORES - 1)) % CORES;
    // So that the receiver is met at every point of its way to sleep.
    for _ in 0..draw >> 8 & 63 {
        arch::relax();
    }
    STATE[token].at.store(to as u32, Ordering::Release);
    match draw as usize >> 20 & (WAYS - 1) {
        0 => {
            if let Some(half) = HALVES[token][to].get() {
                assert!(half.schedule(), "refused");
            }
        }
        1 => NOTIFIERS[token][to].set(),
        2 => {
            BROUGHT[token][to].store(1, Ordering::Release);
            if let Some(coroutine) = COROUTINES[token][to].get() {
                assert!(coroutine.wake(), "refused");
            }
        }
        _ => {
            // There and back: the work is one hand-off, its completion at home another.
            let work = Callback::new(&work, token * CORES + to);
            if let Err(error) = run_on(aio::context(to), work, &worked, token * CORES + core) {
                panic!("run_on: {error}");
            }
        }
    }
}

fn half(index: usize) {
    arrive(index / CORES, index % CORES, 0);
}

fn ready(index: usize) {
    let (token, core) = (index / CORES, index % CORES);
    if NOTIFIERS[token][core].test_and_clear() {
        arrive(token, core, 1);
    }
}

async fn receiver(token: usize, core: usize) {
    loop {
        if BROUGHT[token][core].swap(0, Ordering::Acquire) == 1 {
            arrive(token, core, 2);
        } else {
            suspend().await;
        }
    }
}

fn work(index: usize) {
    let (token, core) = (index / CORES, index % CORES);
    assert_eq!(arch::current_core(), Some(core), "work ran elsewhere");
    assert_eq!(
        STATE[token].at.load(Ordering::Acquire),
        core as u32,
        "work ran twice"
    );
    HANDED[3].fetch_add(1, Ordering::Relaxed);
    // Under way again, to where it came from.
    STATE[token].at.store(u32::MAX, Ordering::Release);
}

fn worked(index: usize, result: WorkResult) {
    let (token, core) = (index / CORES, index % CORES);
    assert_eq!(result, WorkResult::Done);
    let at = STATE[token].at.swap(core as u32, Ordering::AcqRel);
    assert_eq!(at, u32::MAX, "a completion without its work");
    arrive(token, core, 3);
}

/// Everything that receives tokens; before the first one is under way.
fn receivers() {
    for token in 0..TOKENS {
        for core in 0..CORES {
            let (context, index) = (aio::context(core), token * CORES + core);
            match context.bottom_half("token", Callback::new(&half, index)) {
                Ok(made) => HALVES[token][core].call_once(|| made),
                Err(error) => panic!("bottom half: {error}"),
            };
            let notifier = &NOTIFIERS[token][core];
            if let Err(error) =
                context.register(notifier, "token", Callback::new(&ready, index), None)
            {
                panic!("notifier: {error}");
            }
            match context.spawn("token", receiver(token, core)) {
                Ok(made) => COROUTINES[token][core].call_once(|| made),
                Err(error) => panic!("coroutine: {error}"),
            };
        }
    }
}

/// PL011: data, interrupt mask; bit 4 is "received".
const UART_MASK: usize = 0x38 / 4;
const RECEIVED: u32 = 1 << 4;

/// The runner lost patience: says where everything stands, with the traces.
fn impatient(_: usize) {
    for (token, state) in STATE.iter().enumerate() {
        say!("token {token}: {:#x}", state.at.load(Ordering::Relaxed));
    }
    panic!("{} hand-offs are missing", LEFT.load(Ordering::Relaxed));
}

fn dump(core: CoreId, out: &mut dyn core::fmt::Write) {
    // A report that cannot be written cannot be reported.
    let _ = writeln!(
        out,
        "  last events of core {core}: {:?}",
        aio::context(core).stats()
    );
    let _ = aio::trace::dump(core, out, 64);
}

fn main(tree: usize) -> ! {
    let info = start(tree);
    let number = |key, default| {
        argument(&info, key)
            .and_then(|text| text.parse().ok())
            .unwrap_or(default)
    };
    let (count, seed): (u64, u64) = (number("count", 200_000), number("seed", 1));
    set_dump_hook(dump);
    aio::main_context().attach(0);
    start_cores(&info, run_loop);
    assert_eq!(arch::cores(), CORES, "started with -smp 4");
    let Some(uart) = mmio::claim(info.uart.region.base, info.uart.region.size) else {
        panic!("no claim on the UART")
    };
    if let Err(error) = register_interrupt(info.uart.interrupt, Trigger::Level, 0, impatient, 0) {
        panic!("interrupt: {error}");
    }
    // SAFETY: the claimed UART; its handler ends the machine.
    unsafe {
        uart.base()
            .as_ptr()
            .cast::<u32>()
            .add(UART_MASK)
            .write_volatile(RECEIVED)
    };
    receivers();
    for tokens in ROUNDS {
        let hand_offs = count.div_ceil(ROUNDS.len() as u64);
        let sum = || {
            HANDED
                .iter()
                .map(|way| way.load(Ordering::Relaxed))
                .sum::<u64>()
        };
        let before = sum();
        LEFT.store(hand_offs, Ordering::Relaxed);
        UNDER_WAY.store(tokens as u32, Ordering::Relaxed);
        let begin = arch::now_ns();
        for (token, state) in STATE.iter().enumerate().take(tokens) {
            let seed =
                (seed << 8 | (tokens * TOKENS + token) as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            state.random.store(seed | 1, Ordering::Relaxed);
            state.at.store(LYING, Ordering::Relaxed);
        }
        // Out of the loop: between two rounds it is stopped, and a stopped context takes no tokens from other cores.
        let set_out = Callback::new(
            &|tokens| (0..tokens).for_each(|token| pass_on(token, 0)),
            tokens,
        );
        if let Err(error) = aio::main_context().schedule_oneshot("set out", set_out) {
            panic!("set out: {error}");
        }
        aio::run_loop(aio::main_context());
        let handed = sum() - before;
        assert!(handed >= hand_offs, "{handed} of {hand_offs}");
        say!(
            "tokens {tokens}: {handed} hand-offs, {} ns each",
            (arch::now_ns() - begin) / handed
        );
    }
    for (name, handed) in NAMES.iter().zip(&HANDED) {
        say!("by {name}: {}", handed.load(Ordering::Relaxed));
    }
    for core in 1..CORES {
        aio::stop(aio::context(core));
    }
    while (1..CORES).any(|core| aio::is_running(aio::context(core))) {
        arch::relax();
    }
    for core in 0..CORES {
        let stats = aio::context(core).stats();
        say!(
            "core {core}: {} sleeps, {} kicks",
            stats.sleeps,
            stats.kicks
        );
        assert_eq!(
            stats.lost_wakeups, 0,
            "core {core}: the watchdog has found lost wake-ups"
        );
        assert_eq!(stats.timers, 0, "a timer could have saved a lost wake-up");
    }
    pass()
}

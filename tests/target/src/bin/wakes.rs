//! No wake is lost: tokens go round a ring of cores that sleep without a deadline, each hop a kick; then the same
//! with deadlines in between, so that timer and kick meet. A lost kick leaves the ring standing.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, Ordering};

use ironthread::arch::aarch64::counters;
use ironthread::arch::{self, CoreId};
use ironthread::config::MAX_CORES;
use ironthread_target_tests::{entry, pass, say, start, start_cores};

entry!(main);

/// Tokens that lie before each core.
static INBOX: [AtomicU32; MAX_CORES] = [const { AtomicU32::new(0) }; MAX_CORES];
/// Hops of each core.
static HOPS: [AtomicU32; MAX_CORES] = [const { AtomicU32::new(0) }; MAX_CORES];
static ROUND: AtomicU32 = AtomicU32::new(0);
const WITHOUT_DEADLINES: u32 = 1;
const WITH_DEADLINES: u32 = 2;
const HOPS_PER_CORE: u32 = 5_000;

/// One turn of a core: pass a token on, or sleep.
fn turn(core: CoreId) {
    let masked = arch::irq_mask();
    if INBOX[core].load(Ordering::SeqCst) > 0 {
        INBOX[core].fetch_sub(1, Ordering::SeqCst);
        let next = (core + 1) % arch::cores();
        INBOX[next].fetch_add(1, Ordering::SeqCst);
        arch::kick(next);
        HOPS[core].fetch_add(1, Ordering::Relaxed);
    } else if ROUND.load(Ordering::Relaxed) == WITH_DEADLINES {
        // 1 to 64 µs, different each time: kicks and deadlines come in every order.
        let spread = u64::from(HOPS[core].load(Ordering::Relaxed)) % 64 * 1000;
        arch::wait(Some(arch::now_ns() + 1000 + spread));
    } else {
        arch::wait(None);
    }
    arch::irq_restore(masked);
}

fn secondary(core: CoreId) {
    loop {
        turn(core);
    }
}

fn ring(round: u32, tokens: u32) {
    for hops in &HOPS {
        hops.store(0, Ordering::Relaxed);
    }
    ROUND.store(round, Ordering::SeqCst);
    let begin = arch::now_ns();
    let kicks: u64 = (0..arch::cores()).map(arch::kicks).sum();
    INBOX[0].fetch_add(tokens, Ordering::SeqCst);
    while HOPS[0].load(Ordering::Relaxed) < HOPS_PER_CORE {
        turn(0);
    }
    let hops: u64 = HOPS
        .iter()
        .map(|hops| u64::from(hops.load(Ordering::Relaxed)))
        .sum();
    let kicked = (0..arch::cores()).map(arch::kicks).sum::<u64>() - kicks;
    assert!(
        kicked + 64 >= hops && kicked <= hops + 64,
        "{hops} hops, {kicked} kicks"
    );
    say!(
        "round {round}, {tokens} tokens: {hops} hops, {} ns each",
        (arch::now_ns() - begin) / hops.max(1)
    );
    // The tokens come home, so that the next round has its own number.
    while INBOX[0].load(Ordering::SeqCst) < tokens {
        let masked = arch::irq_mask();
        if INBOX[0].load(Ordering::SeqCst) < tokens {
            arch::wait(None);
        }
        arch::irq_restore(masked);
    }
    INBOX[0].fetch_sub(tokens, Ordering::SeqCst);
}

fn main(tree: usize) -> ! {
    let info = start(tree);
    start_cores(&info, secondary);
    for tokens in [1, 3] {
        ring(WITHOUT_DEADLINES, tokens);
        ring(WITH_DEADLINES, tokens);
    }
    for core in 0..arch::cores() {
        say!("core {core}: {:?}", counters(core));
    }
    pass()
}

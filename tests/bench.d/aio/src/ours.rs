//! The event loop's own figures.

use core::future::poll_fn;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use core::task::Poll;

use ironthread::aio::{self, AioContext, BottomHalf, Callback, EventNotifier, Timer};
use ironthread::arch::{self, CoreId};
use ironthread::config::{HANDLERS, TIMERS};
use spin::Once;

use crate::{ROUNDS, begin, end, last, measure, report, scatter};

/// Far enough that no such timer fires here.
const FAR: u64 = 1 << 50;

fn nothing(_: usize) {}

fn arrived(_: usize) {
    end();
}

fn bottom_half(context: &'static AioContext, callback: Callback) -> BottomHalf {
    match context.bottom_half("cost", callback) {
        Ok(bottom_half) => bottom_half,
        Err(error) => panic!("bottom half: {error}"),
    }
}

fn timer(context: &'static AioContext, callback: Callback) -> Timer {
    match context.timer("cost", callback) {
        Ok(timer) => timer,
        Err(error) => panic!("timer: {error}"),
    }
}

pub fn own_core() {
    let context = aio::main_context();
    empty_polls(context);
    bottom_halves(context);
    notifiers(context);
    timers(context);
    locks(context);
    coroutines(context);
}

fn empty_polls(context: &'static AioContext) {
    static IDLE: [EventNotifier; HANDLERS] = [const { EventNotifier::new() }; HANDLERS];
    let mut registered = 0;
    for (handlers, suffix) in [(0, "_0"), (8, "_8"), (64, "_64")] {
        for notifier in &IDLE[registered..handlers] {
            if let Err(error) = context.register(notifier, "idle", Callback::new(&nothing, 0), None)
            {
                panic!("register: {error}");
            }
        }
        registered = handlers;
        measure("poll_empty_handlers", suffix, |_| {
            begin();
            context.poll(false);
            end();
        });
    }
    for notifier in &IDLE[8..registered] {
        context.unregister(notifier);
    }
    context.poll(false);
}

fn bottom_halves(context: &'static AioContext) {
    let arriving = bottom_half(context, Callback::new(&arrived, 0));
    let empty = bottom_half(context, Callback::new(&nothing, 0));
    measure("bh_schedule", "", |_| {
        begin();
        empty.schedule();
        end();
        context.poll(false);
    });
    measure("bh_schedule_to_run", "", |_| {
        begin();
        arriving.schedule();
        context.poll(false);
    });
    measure("bh_schedule_and_poll", "", |_| {
        begin();
        empty.schedule();
        context.poll(false);
        end();
    });
    let many: [BottomHalf; 32] =
        core::array::from_fn(|_| bottom_half(context, Callback::new(&nothing, 0)));
    let mut sum = 0;
    for _ in 0..ROUNDS {
        begin();
        for bottom_half in &many {
            bottom_half.schedule();
        }
        context.poll(false);
        end();
        sum += last();
    }
    report("bh_each_of_32", "", sum / 32);
}

fn notifiers(context: &'static AioContext) {
    static NOTIFIER: EventNotifier = EventNotifier::new();
    fn handler(_: usize) {
        end();
        NOTIFIER.test_and_clear();
    }
    fn quiet(_: usize) {
        NOTIFIER.test_and_clear();
    }
    for (case, function) in [
        (
            "notifier_set_to_handler",
            &handler as &'static (dyn Fn(usize) + Sync),
        ),
        ("notifier_set_and_poll", &quiet),
    ] {
        if let Err(error) = context.register(&NOTIFIER, "cost", Callback::new(function, 0), None) {
            panic!("register: {error}");
        }
        context.poll(false);
        measure(case, "", |_| {
            begin();
            NOTIFIER.set();
            context.poll(false);
            if case == "notifier_set_and_poll" {
                end();
            }
        });
    }
    context.unregister(&NOTIFIER);
}

fn timers(context: &'static AioContext) {
    let arriving = timer(context, Callback::new(&arrived, 0));
    let empty = timer(context, Callback::new(&nothing, 0));
    let mut armed = 0;
    for (count, suffix) in [(10, "_10"), (1000, "_1000")] {
        while armed < count && armed < TIMERS {
            timer(context, Callback::new(&nothing, 0)).arm_at(FAR + scatter(armed as u64));
            armed += 1;
        }
        measure("timer_arm", suffix, |number| {
            begin();
            empty.arm_at(FAR + scatter(number + 5000));
            end();
            empty.cancel();
        });
        measure("timer_cancel", suffix, |number| {
            empty.arm_at(FAR + scatter(number + 5000));
            begin();
            empty.cancel();
            end();
        });
        measure("timer_arm_first", suffix, |number| {
            begin();
            empty.arm_at(FAR - number - 1);
            end();
            empty.cancel();
        });
        measure("timer_due_to_callback", suffix, |_| {
            arriving.arm_at(1);
            begin();
            context.poll(false);
        });
        measure("timer_due_and_poll", suffix, |_| {
            empty.arm_at(1);
            begin();
            context.poll(false);
            end();
        });
    }
}

fn locks(context: &'static AioContext) {
    measure("lock_acquire_release", "", |_| {
        begin();
        context.acquire();
        context.release();
        end();
    });
    context.acquire();
    measure("lock_acquire_release_nested", "", |_| {
        begin();
        context.acquire();
        context.release();
        end();
    });
    context.release();
}

fn coroutines(context: &'static AioContext) {
    static ARRIVES: AtomicBool = AtomicBool::new(true);
    let spawned = context.spawn("cost", async {
        poll_fn(|_| {
            if ARRIVES.load(Ordering::Relaxed) {
                end();
            }
            Poll::<()>::Pending
        })
        .await
    });
    let handle = match spawned {
        Ok(handle) => handle,
        Err(error) => panic!("spawn: {error}"),
    };
    context.poll(false);
    measure("coroutine_wake_to_resume", "", |_| {
        begin();
        handle.wake();
        context.poll(false);
    });
    ARRIVES.store(false, Ordering::Relaxed);
    measure("coroutine_wake_and_poll", "", |_| {
        begin();
        handle.wake();
        context.poll(false);
        end();
    });
    handle.cancel();
    context.poll(false);
}

// --- two cores ---

/// What the other core does: 0 waits, 1 one empty-handed poll when kicked, 2 runs its loop.
static MODE: AtomicU32 = AtomicU32::new(0);
/// Rounds done by the other core in mode 1.
static POLLED: AtomicU64 = AtomicU64::new(0);
static READY: AtomicBool = AtomicBool::new(false);

const ONE_POLL: u32 = 1;
const LOOP: u32 = 2;

fn wait_for(done: impl Fn() -> bool) {
    loop {
        let masked = arch::irq_mask();
        let done = done();
        if !done {
            arch::wait(None);
        }
        arch::irq_restore(masked);
        if done {
            return;
        }
    }
}

pub fn other_core(core: CoreId) {
    let context = aio::context(core);
    context.attach(core);
    READY.store(true, Ordering::Release);
    arch::kick(0);
    let mut seen = 0;
    loop {
        wait_for(|| {
            MODE.load(Ordering::Acquire) == LOOP || POLLED.load(Ordering::Acquire) & 1 != 0
        });
        if MODE.load(Ordering::Acquire) == LOOP {
            aio::run_loop(context);
            return;
        }
        // The callback ends the measurement that begins here.
        begin();
        context.poll(false);
        seen += 1;
        POLLED.store(2 * seen, Ordering::Release);
        arch::kick(0);
    }
}

static BACK: Once<BottomHalf> = Once::new();
static HOME: AtomicU64 = AtomicU64::new(0);

pub fn cross_core() {
    wait_for(|| READY.load(Ordering::Acquire));
    let (here, there) = (aio::main_context(), aio::context(1));
    let arriving = bottom_half(there, Callback::new(&arrived, 0));
    let mut sums = (0, 0);
    for number in 0..2 * ROUNDS {
        begin();
        arriving.schedule();
        end();
        let sent = last();
        MODE.store(ONE_POLL, Ordering::Relaxed);
        POLLED.fetch_or(1, Ordering::Release);
        arch::kick(1);
        wait_for(|| POLLED.load(Ordering::Acquire) & 1 == 0);
        if number >= ROUNDS {
            sums.0 += sent;
            sums.1 += last();
        }
    }
    report("bh_cross_awake_schedule", "", sums.0);
    report("bh_cross_awake_to_run", "", sums.0 + sums.1);
    // There and back again, both asleep when their turn comes: schedule, kick, interrupt, turn, and back to sleep.
    fn back(_: usize) {
        if let Some(back) = BACK.get() {
            back.schedule();
        }
    }
    fn home(_: usize) {
        HOME.fetch_add(1, Ordering::Relaxed);
    }
    BACK.call_once(|| bottom_half(here, Callback::new(&home, 0)));
    let forth = bottom_half(there, Callback::new(&back, 0));
    MODE.store(LOOP, Ordering::Release);
    arch::kick(1);
    let round = || {
        let before = HOME.load(Ordering::Relaxed);
        forth.schedule();
        while HOME.load(Ordering::Relaxed) == before {
            here.poll(true);
        }
    };
    let mut sum = 0;
    for number in 0..2 * ROUNDS {
        begin();
        round();
        end();
        if number >= ROUNDS {
            sum += last();
        }
    }
    report("bh_cross_asleep_to_run", "", sum / 2);
}

//! Shared by the event loop's tests: contexts, counters and logs that live for ever, as the firmware's statics do.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Mutex, OnceLock};

use ironthread::aio::{AioContext, BottomHalf, Callback, EventNotifier, Handler, PollCheck, Timer};
use ironthread::arch;
use ironthread::arch::host::{self, CoreGuard, Machine, clock};

/// Gives a value the life of a static.
pub fn leak<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

/// A context of its own, too large to pass through the stack in small threads.
pub fn leak_context(name: &'static str) -> &'static AioContext {
    leak(AioContext::new(name))
}

/// A callback out of a closure.
pub fn call<R>(f: impl Fn(usize) -> R + Sync + 'static) -> Callback {
    Callback::new(
        leak(move |argument| {
            f(argument);
        }),
        0,
    )
}

/// A counter.
pub fn count() -> &'static AtomicUsize {
    leak(AtomicUsize::new(0))
}

/// Counts; returns the new value.
pub fn add(counter: &AtomicUsize) -> usize {
    counter.fetch_add(1, SeqCst) + 1
}

/// The counter's value.
pub fn get(counter: &AtomicUsize) -> usize {
    counter.load(SeqCst)
}

/// What happened, in order.
pub struct Log(Mutex<Vec<usize>>);

impl Log {
    pub fn push(&self, what: usize) {
        self.0.lock().unwrap().push(what);
    }

    pub fn take(&self) -> Vec<usize> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

pub fn log() -> &'static Log {
    leak(Log(Mutex::new(vec![])))
}

pub fn notifier() -> &'static EventNotifier {
    leak(EventNotifier::new())
}

/// Places for handles that callbacks need before they exist.
pub type Late<T> = &'static OnceLock<T>;

pub fn late() -> Late<BottomHalf> {
    leak(OnceLock::new())
}

pub fn set_bh(place: Late<BottomHalf>, bh: BottomHalf) {
    assert!(place.set(bh).is_ok());
}

pub fn bh_of(place: Late<BottomHalf>) -> BottomHalf {
    *place.get().expect("set before it is used")
}

pub fn late_timer() -> Late<Timer> {
    leak(OnceLock::new())
}

pub fn set_timer(place: Late<Timer>, timer: Timer) {
    assert!(place.set(timer).is_ok());
}

pub fn timer_of(place: Late<Timer>) -> Timer {
    *place.get().expect("set before it is used")
}

/// The stepped machine with a context on core 0, and this thread as core 0.
pub fn single() -> ((CoreGuard, Machine), &'static AioContext) {
    let (machine, ctx) = stepped(1);
    ((host::enter_core(0), machine), ctx)
}

/// The stepped machine: waits return at once. A context on core 0, this thread is no core yet.
pub fn stepped(cores: usize) -> (Machine, &'static AioContext) {
    let machine = host::machine(cores);
    host::set_stepped(true);
    (machine, attach(0, "core 0"))
}

/// A fresh context with its home on `core`.
pub fn attach(core: usize, name: &'static str) -> &'static AioContext {
    let _core = host::enter_core(core);
    let ctx = leak_context(name);
    ctx.attach(core);
    ctx
}

/// A thread that dumps the cores' traces and ends the process when a test hangs: a lost wake-up shows as one.
pub struct Watchdog(std::sync::mpsc::Sender<()>);

pub fn watchdog(test: &'static str) -> Watchdog {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let limit = std::time::Duration::from_secs(120);
        if receiver.recv_timeout(limit) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            let mut text = String::new();
            for core in 0..ironthread::config::MAX_CORES {
                let _ = ironthread::aio::trace::dump(core, &mut text, 64);
            }
            eprintln!("{test} hangs; the last events of each core:\n{text}");
            std::process::abort();
        }
    });
    Watchdog(sender)
}

/// Runs `ctx`'s loop on `core` in a thread of its own until it is stopped.
pub fn io_thread(core: usize, ctx: &'static AioContext) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let _core = host::enter_core(core);
        ctx.attach(core);
        ironthread::aio::run_loop(ctx);
    })
}

/// Spins until `condition` holds.
pub fn until(mut condition: impl FnMut() -> bool) {
    while !condition() {
        std::thread::yield_now();
    }
}

/// Registers a handler of `event` that clears it and goes on with `f`.
pub fn on_event<R>(
    ctx: &'static AioContext,
    event: &'static EventNotifier,
    f: impl Fn(usize) -> R + Sync + 'static,
) {
    let ready = call(move |argument| {
        event.test_and_clear();
        f(argument);
    });
    ctx.register(event, "event", ready, None).unwrap();
}

/// Registers a handler of `event` that only clears it, and that `check` finds when the loop polls.
pub fn polled_by(ctx: &'static AioContext, event: &'static EventNotifier, check: PollCheck) {
    let ready = call(move |_| event.test_and_clear());
    ctx.register(event, "polled", ready, Some(check)).unwrap();
}

/// A device under adaptive polling, with its log and its work, which its poll check finds: begin is logged as 1, a check as 2, end
/// as 3, the handler as 9. By the end of this it has learnt a budget of 4 us. From here on the clock is manual.
pub fn polled_device(
    ctx: &'static AioContext,
) -> (&'static EventNotifier, &'static Log, &'static AtomicUsize) {
    clock::manual(1_000_000);
    let (event, log, work) = (notifier(), log(), count());
    ctx.set_poll_max_ns(100_000);
    let handler = Handler {
        ready: call(move |_| {
            event.test_and_clear();
            work.store(0, SeqCst);
            log.push(9);
        }),
        poll_check: Some(leak(move |_: usize| {
            log.push(2);
            clock::advance(1_000);
            get(work) > 0
        })),
        poll_begin: Some(call(move |_| log.push(1))),
        poll_end: Some(call(move |_| log.push(3))),
    };
    ctx.register_handler(event, "disk", handler).unwrap();
    ctx.poll(false);
    assert_eq!(log.take(), [2], "asked once when it came (EN-15)");
    // Not polled before it was ever ready (ADP-4). During the wait its interrupt comes, 10 us after the start.
    let during_wait = ctx.timer("device", call(|_| ())).unwrap();
    during_wait.arm_at(arch::now_ns() + 10_000);
    ready_in_a_wait(ctx, event);
    assert_eq!(log.take(), [9]);
    assert_eq!(ctx.learnt_poll_ns(event), 4_000);
    during_wait.delete().unwrap();
    (event, log, work)
}

/// Runs `f` in the next wait of a stepped core, interrupts masked, as the rest of the world would meanwhile.
pub fn during_wait(f: impl Fn() + Sync + 'static) {
    host::on_wait(Some(leak(move || {
        host::on_wait(None);
        f();
    })));
}

/// Runs `f` in a thread that is no core, to its end.
pub fn on_no_core(f: impl FnOnce() + Send) {
    std::thread::scope(|scope| scope.spawn(f).join().expect("no panic there"));
}

/// Until when `core` meant to sleep when it last did; `u64::MAX` is until an event.
pub fn slept_until(core: usize) -> u64 {
    let mut text = String::new();
    ironthread::aio::trace::dump(core, &mut text, 64).unwrap();
    let line = text
        .lines()
        .rfind(|line| line.contains(" sleep "))
        .expect("it slept");
    let deadline = line.rsplit("0x").next().expect("a hexadecimal number");
    u64::from_str_radix(deadline, 16).unwrap()
}

/// Lets `event`'s interrupt come 10 us into a wait, so that its handler learns a first budget. The clock is manual.
pub fn ready_in_a_wait(ctx: &'static AioContext, event: &'static EventNotifier) {
    during_wait(move || {
        clock::advance(10_000);
        host::after_wait_interrupt(move || event.set());
    });
    assert!(ctx.poll(true));
}

//! Bad use: refused with a typed error where a caller can meet it, a named assertion where it is a bug of ours.
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

use crate::common::*;
use ironthread::aio::{self, AioContext, AioError};
use ironthread::arch::host;

/// The message with which `f` panics; `None` when it returns.
fn panic_of(f: impl FnOnce()) -> Option<String> {
    catch_unwind(AssertUnwindSafe(f)).err().map(|panic| {
        panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).into()))
            .unwrap_or_default()
    })
}

/// The stepped machine with the main context and two others.
fn three() -> (host::Machine, [&'static AioContext; 3]) {
    let (machine, main) = stepped(3);
    (machine, [main, attach(1, "io1"), attach(2, "io2")])
}

#[test]
fn acq_3_iothread_takes_another_iothreads_lock() {
    let (_machine, [_, io1, io2]) = three();
    let _core = host::enter_core(1);
    let text = leak(Mutex::new(None));
    let bh = io1
        .bottom_half(
            "inversion",
            call(move |_| *text.lock().unwrap() = panic_of(|| drop(io2.lock()))),
        )
        .unwrap();
    bh.schedule();
    assert!(io1.poll(false));
    let text = text.lock().unwrap().take().expect("an inversion");
    assert!(
        text.starts_with("lock order: core 1 takes the lock of context 2"),
        "{text}"
    );
    // Both places: the loop's own level, and the callback's.
    assert!(text.contains("aio/poll.rs:"), "{text}");
    assert!(text.contains("rules/bad_use.rs:"), "{text}");
    assert_eq!(
        io2.context_lock().queued(),
        0,
        "refused before it took a ticket"
    );
}

#[test]
fn acq_3_outside_of_any_loop() {
    let (_machine, [_, io1, io2]) = three();
    let _core = host::enter_core(1);
    let _first = io2.lock();
    let text = panic_of(|| io1.acquire()).expect("an inversion");
    assert_eq!(text.matches("rules/bad_use.rs:").count(), 2, "{text}");
}

#[test]
fn acq_3_main_core_holds_several() {
    let (_machine, [main, io1, io2]) = three();
    let _core = host::enter_core(0);
    for order in [[main, io1, io2], [io2, io1, main]] {
        let _held = order.map(AioContext::lock);
        assert!(order.iter().all(|ctx| ctx.context_lock().is_held_by_me()));
    }
}

#[test]
fn acq_3_iothread_takes_the_main_loops_lock() {
    let (_machine, [main, io1, io2]) = three();
    for (core, io) in [(1, io1), (2, io2)] {
        let _core = host::enter_core(core);
        let _own = io.lock();
        let _main = main.lock();
        let _again = io.lock();
    }
}

#[test]
fn acq_3_one_lock_after_the_other() {
    let (_machine, [_, io1, io2]) = three();
    let _core = host::enter_core(1);
    drop(io1.lock());
    drop(io2.lock());
    drop(io1.lock());
}

#[test]
fn cs_17_main_and_context_nested_both_ways() {
    let (_machine, [main, io1, _]) = three();
    {
        let _core = host::enter_core(0);
        let _main = main.lock();
        let _io = io1.lock();
    }
    let _core = host::enter_core(1);
    let _io = io1.lock();
    let text = panic_of(|| main.acquire()).expect("an inversion");
    assert!(text.contains("the other way round"), "{text}");
    assert_eq!(text.matches("rules/bad_use.rs:").count(), 2, "{text}");
}

/// A context on core 1 whose loop was run and stopped.
fn stopped() -> (host::Machine, &'static AioContext, &'static AioContext) {
    let (machine, [main, io, _]) = three();
    let _core = host::enter_core(1);
    aio::stop(io);
    aio::run_loop(io);
    (machine, main, io)
}

#[test]
fn bad_work_for_a_stopped_context() {
    let (_machine, _, io) = stopped();
    let runs = count();
    let bh = io.bottom_half("refused", call(|_| add(runs))).unwrap();
    let timer = io.timer("refused", call(|_| add(runs))).unwrap();
    let work = call(|_| add(runs));
    let done: aio::WorkDone = leak(|_, _| ());
    let suspended = {
        let _core = host::enter_core(0);
        let parked = aio::main_context().spawn("parked", async { aio::suspend().await });
        assert!(aio::main_context().poll(false));
        parked.unwrap()
    };
    let _core = host::enter_core(0);
    assert!(!bh.schedule() && !bh.schedule_idle() && !timer.arm_at(0) && !timer.anticipate(0));
    assert_eq!(bh.try_schedule(), Err(AioError::Stopped));
    assert_eq!(timer.try_arm_at(0), Err(AioError::Stopped));
    assert_eq!(io.schedule_oneshot("refused", work), Err(AioError::Stopped));
    assert_eq!(
        io.schedule_oneshot_reserved("refused", work),
        Err(AioError::Stopped)
    );
    assert_eq!(io.spawn("refused", async {}).err(), Some(AioError::Stopped));
    assert_eq!(suspended.schedule_in(io), Err(AioError::Stopped));
    assert_eq!(
        aio::run_on(io, work, done, 0).err(),
        Some(AioError::Stopped)
    );
    assert!(!bh.is_scheduled() && !timer.is_pending());
    suspended.cancel();
    assert!(aio::main_context().poll(false));
    // Home is not refused: it may poll by hand, and it may run the loop again.
    let _core = host::enter_core(1);
    assert_eq!(bh.try_schedule(), Ok(()));
    assert_eq!(timer.try_arm_at(0), Ok(()));
    assert!(io.poll(false));
    assert_eq!(get(runs), 2);
}

#[test]
fn bad_stale_handles() {
    let (_core, ctx) = single();
    let bh = ctx.bottom_half("stale", call(|_| ())).unwrap();
    let timer = ctx.timer("stale", call(|_| ())).unwrap();
    bh.delete();
    timer.delete().unwrap();
    assert_eq!(bh.try_schedule(), Err(AioError::Stale));
    assert_eq!(timer.try_arm_at(0), Err(AioError::Stale));
    assert_eq!(timer.delete(), Err(AioError::Stale));
}

#[test]
fn cs_15_a_context_not_yet_run_takes_work() {
    let (_machine, [_, io, _]) = three();
    let runs = count();
    let bh = io.bottom_half("early", call(|_| add(runs))).unwrap();
    {
        let _core = host::enter_core(0);
        assert_eq!(bh.try_schedule(), Ok(()));
        assert_eq!(io.schedule_oneshot("early", call(|_| add(runs))), Ok(()));
    }
    let _core = host::enter_core(1);
    aio::stop(io);
    aio::run_loop(io);
    assert_eq!(get(runs), 2);
    // Stopped, run again: it takes work again.
    bh.schedule();
    io.schedule_oneshot("stop", call(move |_| aio::stop(io)))
        .unwrap();
    aio::run_loop(io);
    assert_eq!(get(runs), 3);
}

#[test]
fn bad_poll_from_a_foreign_core() {
    let (_machine, [_, io, _]) = three();
    let _core = host::enter_core(2);
    let text = panic_of(|| {
        io.poll(false);
    })
    .unwrap();
    assert_eq!(text, "a context is polled on its home core only");
}

#[test]
fn bad_lock_in_an_interrupt_handler() {
    let (_core, ctx) = single();
    let text = panic_of(|| host::interrupt(|| ctx.acquire())).unwrap();
    assert_eq!(text, "a context lock was taken in an interrupt handler");
}

#[test]
fn bad_poll_in_an_interrupt_handler() {
    let (_core, ctx) = single();
    let text = panic_of(|| {
        host::interrupt(|| ctx.poll(false));
    })
    .unwrap();
    assert_eq!(text, "a context was polled in an interrupt handler");
}

#[test]
fn bad_release_without_acquire() {
    let (_core, ctx) = single();
    let text = panic_of(|| ctx.release()).unwrap();
    assert!(text.contains("which does not hold it"), "{text}");
}

#[test]
fn bad_release_of_the_loops_own_level() {
    let (_core, ctx) = single();
    ctx.schedule_oneshot("releases", call(|_| ctx.release()))
        .unwrap();
    let text = panic_of(|| {
        ctx.poll(false);
    })
    .unwrap();
    assert!(text.starts_with("releases returned with other"), "{text}");
}

#[test]
fn bad_second_home() {
    let (_machine, [_, io, _]) = three();
    let _core = host::enter_core(2);
    let text = panic_of(|| io.attach(1)).unwrap();
    assert!(text.contains("attached on its own core"), "{text}");
    let text = panic_of(|| io.attach(2)).unwrap();
    assert!(text.ends_with("has its home elsewhere"), "{text}");
}

#[test]
fn bad_delete_of_an_armed_timer() {
    let (_core, ctx) = single();
    let timer = ctx.timer("armed", call(|_| ())).unwrap();
    timer.arm_at(u64::MAX);
    assert_eq!(timer.delete(), Err(AioError::Busy));
    timer.cancel();
    assert_eq!(timer.delete(), Ok(()));
}

#[test]
fn tpl_work_is_over_when_its_completion_has_returned() {
    let (_core, ctx) = single();
    let place = leak(Mutex::new(None::<aio::WorkHandle>));
    let seen = log();
    let done: aio::WorkDone = leak(move |_, _| {
        let handle = place.lock().unwrap().expect("sent");
        seen.push(usize::from(handle.is_finished()) * 2 + usize::from(handle.is_over()));
    });
    let handle = aio::run_on(ctx, call(|_| ()), done, 0).unwrap();
    *place.lock().unwrap() = Some(handle);
    while ctx.poll(false) {}
    assert_eq!(seen.take(), [2], "finished, not over");
    assert!(handle.is_over());
}

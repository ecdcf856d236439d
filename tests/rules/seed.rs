//! The lock that is given away in the wait (SEED).

use crate::common::*;
use ironthread::aio::{self};
use ironthread::arch;
use ironthread::arch::host::{self};

#[test]
fn seed_3_mirror_another_core_gets_in_while_the_loop_waits() {
    let _watchdog = watchdog("seed_3");
    let _machine = host::machine(2);
    let ctx = leak_context("mirror");
    let _zero = host::enter_core(0);
    let sleeping = io_thread(1, ctx);
    until(|| ctx.stats().sleeps > 0);
    let (turns, kicks) = (ctx.stats().turns, arch::kicks(1));
    for _ in 0..100 {
        ctx.acquire();
        assert!(ctx.context_lock().is_held_by_me());
        ctx.release();
    }
    // Nobody woke the loop: no kick was sent to it (a wait may end on its own, then it waits again).
    assert_eq!((arch::kicks(1), ctx.stats().kicks), (kicks, 0));
    assert!(ctx.stats().turns - turns <= 1 + ctx.stats().sleeps);
    // While another core holds the lock, the loop's callbacks stay out.
    let ran = count();
    ctx.acquire();
    ctx.schedule_oneshot("callback", call(move |_| add(ran)))
        .unwrap();
    until(|| ctx.context_lock().queued() == 2);
    assert_eq!(get(ran), 0);
    ctx.release();
    until(|| get(ran) == 1);
    aio::stop(ctx);
    sleeping.join().unwrap();
    assert_eq!(ctx.context_lock().depth(), 0);
}

/// A blocking poll with `outer` levels held, during which another core tries to get in; returns whether it got in.
fn another_core_in_the_wait(outer: u32, event: bool) -> (bool, bool) {
    let (_machine, ctx) = stepped(2);
    let _zero = host::enter_core(0);
    let notifier = notifier();
    ctx.register(
        notifier,
        "event",
        call(move |_| notifier.test_and_clear()),
        None,
    )
    .unwrap();
    while ctx.poll(false) {}
    let got_in = count();
    let waits = count();
    host::on_wait(Some(leak(move || {
        add(waits);
        let _one = host::enter_core(1);
        if event {
            notifier.set();
        }
        if ctx.context_lock().try_acquire() {
            add(got_in);
            ctx.release();
        }
    })));
    (0..outer).for_each(|_| ctx.acquire());
    let kicks = ctx.stats().kicks;
    let progress = ctx.poll(true);
    assert_eq!(get(waits), 1);
    assert_eq!(
        ctx.stats().kicks - kicks,
        u64::from(event),
        "only the event kicks"
    );
    assert_eq!(ctx.context_lock().depth(), outer);
    (0..outer).for_each(|_| ctx.release());
    ctx.unregister(notifier);
    (progress, get(got_in) == 1)
}

#[test]
fn seed_1_the_poll_returns_true_because_of_the_event_only() {
    assert_eq!(another_core_in_the_wait(1, true), (true, false));
    assert_eq!(another_core_in_the_wait(1, false), (false, false));
}

#[test]
fn seed_2_one_outer_level_keeps_everybody_out_of_the_wait() {
    for outer in 1..=3 {
        assert!(!another_core_in_the_wait(outer, true).1);
    }
}

#[test]
fn seed_3_mirror_without_an_outer_level_is_no_progress() {
    assert_eq!(another_core_in_the_wait(0, false), (false, true));
    assert_eq!(another_core_in_the_wait(0, true), (true, true));
}

#[test]
fn seed_3_a_waiter_does_not_end_the_wait() {
    let _watchdog = watchdog("seed_3");
    let _machine = host::machine(3);
    let ctx = attach(0, "contended");
    let _zero = host::enter_core(0);
    let event = notifier();
    ctx.register(event, "event", call(move |_| event.test_and_clear()), None)
        .unwrap();
    while ctx.poll(false) {}
    ctx.acquire();
    let waiter = std::thread::spawn(move || {
        let _one = host::enter_core(1);
        ctx.acquire();
        ctx.release();
    });
    until(|| ctx.context_lock().queued() == 2);
    let (sleeps, kicks) = (ctx.stats().sleeps, arch::kicks(0));
    let waker = std::thread::spawn(move || {
        let _two = host::enter_core(2);
        until(|| ctx.stats().sleeps > sleeps);
        // The waiter has been there all the time.
        assert_eq!((ctx.context_lock().queued(), arch::kicks(0)), (2, kicks));
        event.set();
    });
    while !ctx.poll(true) {}
    assert_eq!(
        (ctx.context_lock().queued(), arch::kicks(0)),
        (2, kicks + 1)
    );
    ctx.release();
    waiter.join().unwrap();
    waker.join().unwrap();
    ctx.unregister(event);
}

#[test]
fn seed_4_stop_does_not_depend_on_the_lock() {
    let _watchdog = watchdog("seed_4");
    let _machine = host::machine(3);
    let ctx = leak_context("held");
    let _zero = host::enter_core(0);
    let looping = io_thread(1, ctx);
    until(|| ctx.stats().sleeps > 0);
    ctx.acquire();
    // Neither a core that does not hold the lock nor an interrupt handler waits for it here.
    std::thread::spawn(move || {
        let _two = host::enter_core(2);
        aio::stop(ctx);
        host::interrupt(|| aio::stop(ctx));
    })
    .join()
    .unwrap();
    ctx.release();
    looping.join().unwrap();
    assert!(!aio::is_running(ctx));
}

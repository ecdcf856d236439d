//! Loops that run and stop (IOT).
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use crate::common::*;
use ironthread::aio::{self};
use ironthread::arch::host::{self, clock};

#[test]
fn iot_3_stop_races_with_the_first_iteration_and_is_idempotent() {
    let _watchdog = watchdog("iot_3");
    let _machine = host::machine(2);
    let _zero = host::enter_core(0);
    for _ in 0..300 {
        let ctx = leak_context("stopped");
        let looping = io_thread(1, ctx);
        aio::stop(ctx);
        aio::stop(ctx);
        looping.join().unwrap();
        assert!(!aio::is_running(ctx));
        aio::stop(ctx);
        // A late stop does not end the next run.
        let ran = count();
        let again = io_thread(1, ctx);
        until(|| aio::is_running(ctx));
        ctx.schedule_oneshot("alive", call(move |_| add(ran)))
            .unwrap();
        until(|| get(ran) == 1);
        aio::stop(ctx);
        again.join().unwrap();
    }
}

#[test]
fn iot_3_a_stop_sent_before_the_first_run_is_found_by_it() {
    let _machine = host::machine(2);
    let ctx = leak_context("early");
    aio::stop(ctx);
    let ran = count();
    ctx.schedule_oneshot("queued", call(move |_| add(ran)))
        .unwrap();
    io_thread(1, ctx).join().unwrap();
    assert_eq!(get(ran), 1, "what is in the same batch runs");
}

#[test]
fn iot_3_a_stop_is_found_by_the_first_run_although_a_turn_by_hand_came_between() {
    let (_core, ctx) = single();
    aio::stop(ctx);
    while ctx.poll(false) {}
    host::on_wait(Some(leak(|| panic!("slept although a stop was sent"))));
    let ran = count();
    ctx.schedule_oneshot("queued", call(move |_| add(ran)))
        .unwrap();
    aio::run_loop(ctx);
    assert_eq!((get(ran), aio::is_running(ctx)), (1, false));
}

#[test]
fn iot_3_a_second_stop_that_came_too_late_does_not_end_the_next_run() {
    let _watchdog = watchdog("iot_3");
    let _machine = host::machine(1);
    let main = attach(0, "main");
    let _zero = host::enter_core(0);
    aio::stop(main);
    // Runs in the same batch as the stop, behind it.
    main.schedule_oneshot("late stop", call(move |_| aio::stop(main)))
        .unwrap();
    aio::run_loop(main);
    let turns = count();
    let again = late();
    set_bh(
        again,
        main.bottom_half(
            "turns",
            call(move |_| {
                if add(turns) < 5 {
                    bh_of(again).schedule();
                } else {
                    aio::stop(main);
                }
            }),
        )
        .unwrap(),
    );
    bh_of(again).schedule();
    aio::run_loop(main);
    assert_eq!(get(turns), 5);
    bh_of(again).delete();
}

#[test]
fn aio_multi_lifecycle() {
    let _watchdog = watchdog("aio_multi_lifecycle");
    let _machine = host::machine(6);
    let _main = attach(0, "main");
    let _zero = host::enter_core(0);
    let contexts: Vec<_> = (1..6).map(|_| leak_context("multi")).collect();
    let threads: Vec<_> = contexts
        .iter()
        .enumerate()
        .map(|(n, ctx)| io_thread(n + 1, ctx))
        .collect();
    for (n, ctx) in contexts.iter().enumerate() {
        let id = leak(AtomicUsize::new(0));
        aio::run_and_wait(
            ctx,
            call(move |_| id.store(aio::AioContext::current().unwrap().core(), SeqCst)),
        )
        .unwrap();
        assert_eq!(id.load(SeqCst), n + 1);
    }
    contexts.iter().for_each(|ctx| aio::stop(ctx));
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
}

#[test]
fn iot_1_what_was_set_before_the_first_run_holds_in_it() {
    let _watchdog = watchdog("iot_1");
    let _machine = host::machine(2);
    let ctx = leak_context("configured");
    ctx.set_polling(4_000, 3, 5);
    let seen = count();
    ctx.schedule_oneshot(
        "first",
        call(move |_| {
            let current = aio::AioContext::current().unwrap();
            assert!(std::ptr::eq(current, ctx) && ctx.is_home() && aio::is_running(ctx));
            seen.store(ctx.poll_max_ns() as usize, SeqCst);
            aio::stop(ctx);
        }),
    )
    .unwrap();
    assert!(!aio::is_running(ctx));
    io_thread(1, ctx).join().unwrap();
    assert_eq!((get(seen), aio::is_running(ctx)), (4_000, false));
}

#[test]
#[should_panic(expected = "runs already")]
fn iot_2_a_loop_is_run_once_at_a_time() {
    let (_core, ctx) = single();
    ctx.schedule_oneshot("inner", call(move |_| aio::run_loop(ctx)))
        .unwrap();
    aio::run_loop(ctx);
}

#[test]
fn iot_3_stop_is_a_message_that_needs_no_sleep() {
    let (_core, ctx) = single();
    host::on_wait(Some(leak(|| panic!("slept although a stop was sent"))));
    for _ in 0..3 {
        let ran = count();
        ctx.schedule_oneshot("before", call(|_| add(ran))).unwrap();
        aio::stop(ctx);
        aio::stop(ctx);
        ctx.schedule_oneshot("same batch", call(|_| add(ran)))
            .unwrap();
        // After the first run a stop of a stopped loop is nothing: it is sent from inside.
        ctx.schedule_oneshot("stop", call(move |_| aio::stop(ctx)))
            .unwrap();
        aio::run_loop(ctx);
        assert_eq!(get(ran), 2);
    }
}

#[test]
fn iot_4_what_comes_after_the_stop_waits_for_the_next_run() {
    let (_core, ctx) = single();
    let order = log();
    ctx.schedule_oneshot(
        "stopper",
        call(move |_| {
            aio::stop(ctx);
            ctx.schedule_oneshot(
                "in the stop's batch",
                call(move |_| {
                    order.push(1);
                    ctx.schedule_oneshot(
                        "too late",
                        call(move |_| {
                            order.push(2);
                            aio::stop(ctx);
                        }),
                    )
                    .unwrap();
                }),
            )
            .unwrap();
        }),
    )
    .unwrap();
    aio::run_loop(ctx);
    assert_eq!(order.take(), [1]);
    aio::run_loop(ctx);
    assert_eq!(order.take(), [2], "kept, not dropped");
}

#[test]
fn iot_6_polling_is_settable_while_the_loop_waits() {
    let (_machine, ctx) = stepped(2);
    clock::manual(0);
    let _zero = host::enter_core(0);
    assert!(!ctx.poll(true));
    assert_eq!((ctx.stats().poll_misses, ctx.poll_max_ns()), (0, 0));
    host::on_wait(Some(leak(move || {
        let _one = host::enter_core(1);
        ctx.set_polling(2_000, 0, 0);
        host::on_wait(None);
    })));
    assert!(!ctx.poll(true));
    assert_eq!((ctx.poll_max_ns(), ctx.stats().kicks), (2_000, 1));
}

#[test]
fn iot_7_loops_can_be_listed() {
    for (core, ctx) in aio::CONTEXTS.iter().enumerate() {
        assert_eq!(ctx.core(), core);
        assert_eq!(
            ctx.name(),
            ["main", "io1", "io2", "io3", "io4", "io5", "io6", "io7"][core]
        );
        assert_eq!(ctx.poll_max_ns(), aio::CONTEXTS[0].poll_max_ns());
    }
}

#[test]
fn iot_8_everything_runs_on_the_home_core() {
    let _watchdog = watchdog("iot_8");
    let _machine = host::machine(2);
    let _zero = host::enter_core(0);
    let ctx = leak_context("pinned");
    let looping = io_thread(1, ctx);
    let ran = count();
    let here = move |_| {
        assert_eq!(ironthread::arch::current_core(), Some(1));
        add(ran);
    };
    let event = notifier();
    on_event(ctx, event, here);
    event.set();
    ctx.schedule_oneshot("bottom half", call(here)).unwrap();
    ctx.timer("timer", call(here)).unwrap().arm_at(0);
    ctx.spawn("coroutine", async move { here(0) }).unwrap();
    until(|| get(ran) == 4);
    ctx.unregister(event);
    aio::stop(ctx);
    looping.join().unwrap();
}

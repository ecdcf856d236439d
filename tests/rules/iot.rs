//! Loops that run and stop (IOT).
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use crate::common::*;
use ironthread::aio::{self};
use ironthread::arch::host::{self};

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

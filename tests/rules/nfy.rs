//! The wake-up handshake (NFY).

use crate::common::*;
use ironthread::aio::{self};
use ironthread::arch;
use ironthread::arch::host::{self};

#[test]
fn nfy_8_a_notification_alone_ends_the_wait_without_progress() {
    let (_core, ctx) = single();
    let sleeps = ctx.stats().sleeps;
    ctx.notify();
    assert!(!ctx.poll(true));
    assert_eq!(ctx.stats().sleeps, sleeps, "it did not sleep");
    assert!(!ctx.poll(true));
    assert_eq!(
        ctx.stats().sleeps,
        sleeps + 1,
        "the notification was used up"
    );
}

#[test]
fn nfy_6_no_kick_to_a_loop_that_does_not_wait() {
    let (_machine, ctx) = stepped(2);
    let kicks = arch::kicks(0);
    {
        let _one = host::enter_core(1);
        ctx.schedule_oneshot("x", call(|_| ())).unwrap();
        ctx.notify();
    }
    assert_eq!((arch::kicks(0), ctx.stats().kicks), (kicks, 0));
    let _zero = host::enter_core(0);
    assert!(ctx.poll(true));
}

#[test]
fn nfy_12_an_interrupt_before_or_in_the_wait_is_served_in_the_same_turn() {
    let (_core, ctx) = single();
    let calls = count();
    let bh = ctx
        .bottom_half("from interrupt", call(move |_| add(calls)))
        .unwrap();
    host::interrupt(|| bh.schedule());
    let sleeps = ctx.stats().sleeps;
    assert!(ctx.poll(true));
    assert_eq!((get(calls), ctx.stats().sleeps), (1, sleeps));
    // While it waits: the handler runs when the mask is lifted, in the same turn.
    host::on_wait(Some(leak(move || {
        host::on_wait(None);
        host::after_wait_interrupt(move || {
            bh.schedule();
        });
    })));
    assert!(ctx.poll(true));
    assert_eq!(get(calls), 2);
}

#[test]
fn nfy_3_a_notification_that_arrives_during_dispatch_is_kept() {
    let (_machine, ctx) = stepped(2);
    let _zero = host::enter_core(0);
    let notify_from_core_1 = move |_| {
        let _one = host::enter_core(1);
        ctx.notify();
    };
    ctx.schedule_oneshot("meanwhile", call(notify_from_core_1))
        .unwrap();
    assert!(ctx.poll(true));
    let sleeps = ctx.stats().sleeps;
    assert!(!ctx.poll(true));
    assert_eq!(
        ctx.stats().sleeps,
        sleeps,
        "it came after the accept, so it ends the next wait"
    );
}

#[test]
fn nfy_ping_pong_never_loses_a_wake_up() {
    let _watchdog = watchdog("nfy_ping_pong");
    let _machine = host::machine(2);
    let (ping, pong) = (leak_context("ping"), leak_context("pong"));
    let turns = count();
    const HAND_OFFS: usize = 200_000;
    let back = late();
    let there = late();
    let a = ping
        .bottom_half(
            "ping",
            call(move |_| {
                if add(turns) < HAND_OFFS {
                    bh_of(there).schedule();
                } else {
                    aio::stop(ping);
                    aio::stop(pong);
                }
            }),
        )
        .unwrap();
    let b = pong
        .bottom_half(
            "pong",
            call(move |_| {
                add(turns);
                bh_of(back).schedule();
            }),
        )
        .unwrap();
    set_bh(back, a);
    set_bh(there, b);
    a.schedule();
    let threads = [io_thread(0, ping), io_thread(1, pong)];
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
    assert!(get(turns) >= HAND_OFFS);
    assert!(ping.stats().sleeps > 0 && pong.stats().sleeps > 0);
}

#[test]
fn nfy_notifiers_and_timers_wake_a_sleeper() {
    let _watchdog = watchdog("nfy_notifiers");
    let _machine = host::machine(2);
    let ctx = leak_context("sleeper");
    let _zero = host::enter_core(0);
    let calls = count();
    let event = notifier();
    ctx.register(
        event,
        "event",
        call(move |_| {
            event.test_and_clear();
            add(calls);
        }),
        None,
    )
    .unwrap();
    let timer = ctx.timer("timer", call(move |_| add(calls))).unwrap();
    let never = ctx.timer("never", call(|_| ())).unwrap();
    never.arm_at(u64::MAX);
    let sleeping = io_thread(1, ctx);
    for n in (0..20_000).step_by(2) {
        event.set();
        until(|| get(calls) == n + 1);
        // Due at once, but armed from another core behind a later one: it became the first, so it wakes the loop.
        timer.arm_at(1);
        until(|| get(calls) == n + 2);
    }
    never.cancel();
    aio::stop(ctx);
    sleeping.join().unwrap();
}

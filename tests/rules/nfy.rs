//! The wake-up handshake (NFY).
use std::sync::atomic::Ordering::SeqCst;

use crate::common::*;
use ironthread::aio::{self, Handler};
use ironthread::arch;
use ironthread::arch::host::{self, clock};

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
    on_event(ctx, event, move |_| add(calls));
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

#[test]
fn nfy_2_a_notification_kicks_exactly_when_the_loop_may_sleep() {
    let (_machine, ctx) = stepped(2);
    let _zero = host::enter_core(0);
    let kicks = move || ctx.stats().kicks;
    let from_core_1 = move || {
        let _one = host::enter_core(1);
        ctx.notify();
    };
    from_core_1();
    assert_eq!(kicks(), 0, "between two turns");
    ctx.poll(false);
    during_wait(from_core_1);
    ctx.poll(true);
    assert_eq!(kicks(), 1, "in the wait");
    ctx.schedule_oneshot("dispatch", call(move |_| from_core_1()))
        .unwrap();
    ctx.poll(true);
    assert_eq!(kicks(), 1, "in a callback");
}

#[test]
fn nfy_4_every_notification_of_a_sleep_is_sent() {
    let (_machine, ctx) = stepped(3);
    let _zero = host::enter_core(0);
    during_wait(move || {
        for core in [1, 2] {
            let _core = host::enter_core(core);
            ctx.notify();
        }
    });
    assert!(!ctx.poll(true));
    assert_eq!(
        ctx.stats().kicks,
        2,
        "that one was sent already is no reason not to send another"
    );
}

#[test]
fn nfy_5_a_loop_that_polls_hears_a_notification_without_a_kick() {
    let (_machine, ctx) = stepped(2);
    let _zero = host::enter_core(0);
    clock::manual(1_000_000);
    let checks = count();
    let event = notifier();
    ctx.set_poll_max_ns(100_000);
    let check = leak(move |_: usize| {
        if add(checks) == 1 {
            let _one = host::enter_core(1);
            ctx.notify();
        }
        clock::advance(1_000);
        false
    });
    polled_by(ctx, event, check);
    // The check is asked when its handler comes.
    (0..2).for_each(|_| _ = ctx.poll(false));
    checks.store(0, SeqCst);
    ready_in_a_wait(ctx, event);
    let before = ctx.stats();
    assert!(!ctx.poll(true));
    let done = ctx.stats().since(&before);
    assert_eq!((get(checks), done.kicks, done.sleeps), (1, 0, 0));
    ctx.unregister(event);
}

#[test]
fn nfy_6_a_turn_that_does_not_block_asks_for_no_kick() {
    let (_machine, ctx) = stepped(2);
    let _zero = host::enter_core(0);
    let seen = count();
    let look = move || {
        ctx.schedule_oneshot(
            "notified",
            call(move |_| {
                let _one = host::enter_core(1);
                ctx.notify();
                add(seen);
            }),
        )
        .unwrap();
    };
    look();
    ctx.poll(false);
    assert_eq!((get(seen), ctx.stats().kicks), (1, 0));
}

#[test]
fn nfy_7_a_stop_that_comes_before_the_loop_is_not_lost() {
    let (_machine, ctx) = stepped(2);
    let _zero = host::enter_core(0);
    {
        let _one = host::enter_core(1);
        aio::stop(ctx);
    }
    during_wait(|| panic!("it slept through the stop"));
    aio::run_loop(ctx);
    host::on_wait(None);
    // One that comes in the wait ends it as well.
    during_wait(move || {
        let _one = host::enter_core(1);
        aio::stop(ctx);
    });
    let kicks = ctx.stats().kicks;
    aio::run_loop(ctx);
    assert!(!aio::is_running(ctx));
    assert_eq!(ctx.stats().kicks, kicks + 1, "it woke the sleeper");
}

#[test]
fn nfy_9_a_nested_wait_leaves_the_outer_turn_as_it_was() {
    let (_machine, ctx) = stepped(2);
    let _zero = host::enter_core(0);
    let from_core_1 = move || {
        let _one = host::enter_core(1);
        ctx.notify();
    };
    ctx.schedule_oneshot(
        "outer",
        call(move |_| {
            during_wait(from_core_1);
            assert!(!ctx.poll(true));
            assert_eq!(ctx.stats().kicks, 1, "the nested loop slept");
            from_core_1();
            assert_eq!(ctx.stats().kicks, 1, "the outer one dispatches");
        }),
    )
    .unwrap();
    assert!(ctx.poll(true));
    let sleeps = ctx.stats().sleeps;
    assert!(!ctx.poll(true));
    assert_eq!(ctx.stats().sleeps, sleeps, "and what came then is kept");
}

#[test]
#[should_panic(expected = "home core only")]
fn nfy_10_another_thread_cannot_accept_a_notification() {
    let (_machine, ctx) = stepped(1);
    ctx.notify();
    // Not even one that is no core.
    ctx.poll(false);
}

#[test]
fn nfy_13_a_wait_that_ends_for_nothing_is_no_progress() {
    let (_machine, ctx) = stepped(2);
    let _zero = host::enter_core(0);
    let runs = count();
    for _ in 0..3 {
        during_wait(|| arch::kick(0));
        assert!(!ctx.poll(true));
    }
    ctx.schedule_oneshot("later", call(move |_| add(runs)))
        .unwrap();
    assert!(ctx.poll(true));
    assert_eq!(get(runs), 1);
}

#[test]
fn nfy_3_a_turn_nested_in_a_blocking_one_leaves_it_awake() {
    let (_core, ctx) = single();
    let done = count();
    // What the outer turn waits for happens in a turn inside it that does not block, and that accepts the wake-up.
    let inner = call(move |_| {
        ctx.notify();
        ctx.schedule_oneshot("awaited", call(move |_| _ = add(done)))
            .unwrap();
        ctx.poll(false);
    });
    let hook = ctx.turn_hook("nested", inner).unwrap();
    hook.arm();
    ctx.poll(true);
    assert_eq!((get(done), ctx.stats().sleeps), (1, 0));
}

#[test]
fn nfy_3_a_turn_nested_in_a_poll_callback_leaves_it_awake() {
    for nests_in in 1..=3 {
        let (_core, ctx) = single();
        let (event, log, _) = polled_device(ctx);
        let done = count();
        // As the hook above, but from the begin (1), the check (2) or the end (3) of busy polling.
        let callback = move |which| {
            log.push(which);
            if which == nests_in && get(done) == 0 {
                ctx.notify();
                ctx.schedule_oneshot("awaited", call(move |_| _ = add(done)))
                    .unwrap();
                ctx.poll(false);
            }
        };
        let check = leak(move |_: usize| {
            clock::advance(1_000);
            callback(2);
            false
        });
        let handler = Handler {
            ready: call(|_| ()),
            poll_check: Some(check),
            poll_begin: Some(call(move |_| callback(1))),
            poll_end: Some(call(move |_| callback(3))),
        };
        // Not yet when it is asked because it came.
        add(done);
        ctx.register_handler(event, "nests", handler).unwrap();
        ctx.poll(false);
        done.store(0, SeqCst);
        log.take();
        let sleeps = ctx.stats().sleeps;
        ctx.poll(true);
        assert_eq!(get(done), 1, "callback {nests_in}: {:?}", log.take());
        assert_eq!(ctx.stats().sleeps, sleeps, "callback {nests_in}");
        // Without such a turn it sleeps.
        ctx.poll(true);
        assert_eq!(ctx.stats().sleeps, sleeps + 1, "callback {nests_in}");
        ctx.unregister(event);
    }
}

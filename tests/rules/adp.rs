//! Adaptive polling and batching (ADP).
use std::sync::atomic::Ordering::SeqCst;

use crate::common::*;
use ironthread::arch;
use ironthread::arch::host::{self, clock};

#[test]
fn adp_4_a_source_that_leaves_poll_mode_while_another_keeps_the_loop_awake_notifies_again() {
    let (_core, ctx) = single();
    let (event, log, work) = polled_device(ctx);
    let other = notifier();
    let always = leak(|_: usize| {
        clock::advance(1_000);
        true
    });
    polled_by(ctx, other, always);
    ctx.poll(false);
    // It learns a budget in a wait of 10 us; from then on it is polled and keeps the loop awake.
    ready_in_a_wait(ctx, other);
    let sleeps = ctx.stats().sleeps;
    log.take();
    work.store(1, SeqCst);
    assert!(ctx.poll(true));
    assert_eq!(log.take(), [1, 2, 9], "the device is in poll mode");
    for _ in 0..2 {
        clock::advance(4_000_000_000);
        assert!(ctx.poll(true));
    }
    assert_eq!(ctx.stats().sleeps, sleeps);
    assert!(log.take().ends_with(&[3, 2]), "its interrupts are on again");
    ctx.unregister(event);
    ctx.unregister(other);
}

#[test]
fn adp_7_poll_12_a_notification_ends_polling_without_progress() {
    let (_core, ctx) = single();
    let (event, log, _) = polled_device(ctx);
    let sleeps = ctx.stats().sleeps;
    ctx.notify();
    assert!(!ctx.poll(true));
    assert_eq!((log.take(), ctx.stats().sleeps), (vec![1, 2], sleeps));
    ctx.unregister(event);
    assert_eq!(ctx.learnt_poll_ns(event), 0);
}

#[test]
fn adp_1_changing_the_budget_forgets_what_was_learnt() {
    let (_core, ctx) = single();
    let (event, log, _) = polled_device(ctx);
    ctx.set_poll_max_ns(50_000);
    ctx.poll(false);
    assert!(!ctx.poll(true));
    assert_eq!((log.take(), ctx.learnt_poll_ns(event)), (vec![], 0));
    ctx.unregister(event);
}

#[test]
fn adp_10_hooks_run_before_a_nested_wait() {
    let (_core, ctx) = single();
    let log = log();
    let hook = ctx.turn_hook("kick", call(move |_| log.push(2))).unwrap();
    ctx.schedule_oneshot(
        "submit",
        call(move |_| {
            log.push(1);
            // Queued once, however often it is asked for.
            hook.arm();
            hook.arm();
            during_wait(move || log.push(3));
            ctx.poll(true);
            log.push(4);
        }),
    )
    .unwrap();
    ctx.poll(false);
    assert_eq!(log.take(), [1, 2, 3, 4]);
}

#[test]
fn adp_1_a_plain_context_does_not_poll_and_a_change_wakes_it() {
    let (_machine, ctx) = stepped(2);
    let _zero = host::enter_core(0);
    assert_eq!(ctx.poll_max_ns(), 0);
    during_wait(move || {
        let _one = host::enter_core(1);
        ctx.set_poll_max_ns(32_768);
    });
    assert!(!ctx.poll(true));
    assert_eq!((ctx.stats().kicks, ctx.poll_max_ns()), (1, 32_768));
}

#[test]
fn adp_2_the_budget_follows_the_waits() {
    let (_core, ctx) = single();
    clock::manual(1_000_000);
    let event = notifier();
    ctx.set_polling(20_000, 3, 2);
    let check = leak(|_: usize| {
        clock::advance(100);
        false
    });
    polled_by(ctx, event, check);
    ctx.poll(false);
    // The wait ends this long after it began, whatever part of it was polled.
    let learnt_after = |block_ns: u64| {
        // Long enough for the charge of the last round to be forgiven.
        clock::advance(100_000_000);
        let end = arch::now_ns() + block_ns;
        during_wait(move || {
            clock::manual(end);
            host::after_wait_interrupt(move || event.set());
        });
        while !ctx.poll(true) {}
        ctx.learnt_poll_ns(event)
    };
    assert_eq!(learnt_after(15_000), 4_000, "the first step");
    assert_eq!(learnt_after(15_000), 12_000, "times three");
    assert_eq!(learnt_after(20_000), 20_000, "capped");
    assert_eq!(learnt_after(20_001), 10_000, "too long: halved");
    assert_eq!(learnt_after(1_000_000), 5_000);
    ctx.set_polling(20_000, 0, 0);
    ctx.poll(false);
    assert_eq!(learnt_after(15_000), 4_000);
    assert_eq!(learnt_after(15_000), 8_000, "0 stands for 2");
    assert_eq!(learnt_after(30_000), 0, "0 stands for nothing left");
    ctx.unregister(event);
}

#[test]
fn adp_3_each_handler_learns_from_its_own_readiness() {
    let (_core, ctx) = single();
    clock::manual(1_000_000);
    let never = leak(|_: usize| {
        clock::advance(1_000);
        false
    });
    let [fast, slow, silent] = [notifier(), notifier(), notifier()];
    ctx.set_poll_max_ns(100_000);
    for event in [fast, slow, silent] {
        polled_by(ctx, event, never);
    }
    ctx.poll(false);
    ready_in_a_wait(ctx, fast);
    during_wait(move || {
        clock::advance(500_000_000);
        host::after_wait_interrupt(move || slow.set());
    });
    assert!(ctx.poll(true));
    let learnt = [fast, slow, silent].map(|event| ctx.learnt_poll_ns(event));
    assert_eq!(learnt, [4_000, 0, 0], "the slow one does not spoil it");
    // And the loop polls for the longest of them.
    let misses = ctx.stats().poll_misses;
    ctx.poll(true);
    assert_eq!(ctx.stats().poll_misses, misses + 1);
}

#[test]
fn adp_5_a_handler_without_a_check_ends_the_polling_of_others() {
    let (_core, ctx) = single();
    clock::manual(1_000_000);
    let (checks, calls) = (count(), count());
    let [plain, event] = [notifier(), notifier()];
    let ready = call(move |_| {
        plain.test_and_clear();
        add(calls);
    });
    ctx.register(plain, "plain", ready, None).unwrap();
    ctx.set_poll_max_ns(100_000);
    let check = leak(move |_: usize| {
        if add(checks) == 1 {
            plain.set();
        }
        clock::advance(100);
        false
    });
    polled_by(ctx, event, check);
    // The check is asked when its handler comes.
    (0..2).for_each(|_| _ = ctx.poll(false));
    checks.store(0, SeqCst);
    calls.store(0, SeqCst);
    ready_in_a_wait(ctx, event);
    let sleeps = ctx.stats().sleeps;
    assert!(ctx.poll(true));
    assert_eq!(
        (get(calls), get(checks), ctx.stats().sleeps),
        (1, 1, sleeps)
    );
}

#[test]
fn adp_6_poll_mode_is_left_before_a_sleep_and_not_before() {
    let (_core, ctx) = single();
    let (event, log, work) = polled_device(ctx);
    for n in 0..5 {
        work.store(1, SeqCst);
        assert!(ctx.poll(true));
        assert!(!ctx.poll(false), "a turn that cannot sleep");
        let expected: &[usize] = if n == 0 { &[1, 2, 9] } else { &[2, 9] };
        assert_eq!(log.take(), expected);
    }
    during_wait(move || log.push(7));
    assert!(!ctx.poll(true));
    let log = log.take();
    assert!(
        log.ends_with(&[3, 2, 7]),
        "{log:?}: on again, one look, sleep"
    );
    ctx.unregister(event);
}

#[test]
fn adp_8_handlers_that_are_never_ready_are_not_asked() {
    let (_core, ctx) = single();
    let idle_checks = count();
    let idle = leak(move |_: usize| {
        add(idle_checks);
        false
    });
    for _ in 0..100 {
        ctx.register(notifier(), "idle", call(|_| ()), Some(idle))
            .unwrap();
    }
    let (event, log, _) = polled_device(ctx);
    assert_eq!(get(idle_checks), 100, "once, when they came");
    assert!(!ctx.poll(true));
    assert_eq!(log.take(), [1, 2, 2, 2, 2, 2, 3, 2]);
    assert_eq!(get(idle_checks), 100);
    ctx.unregister(event);
}

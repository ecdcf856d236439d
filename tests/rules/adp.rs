//! Adaptive polling and batching (ADP).
use std::sync::atomic::Ordering::SeqCst;

use crate::common::*;
use ironthread::arch::host::{self, clock};

#[test]
fn adp_4_a_source_that_leaves_poll_mode_while_another_keeps_the_loop_awake_notifies_again() {
    let (_core, ctx) = single();
    clock::manual(1_000_000);
    let (log, work) = (log(), count());
    let event = polled_device(ctx, log, work);
    let other = notifier();
    let always = leak(|_: usize| {
        clock::advance(1_000);
        true
    });
    ctx.register(
        other,
        "always",
        call(move |_| other.test_and_clear()),
        Some(always),
    )
    .unwrap();
    ctx.poll(false);
    // It learns a budget in a wait of 10 us; from then on it is polled and keeps the loop awake.
    host::on_wait(Some(leak(move || {
        clock::advance(10_000);
        host::on_wait(None);
        host::after_wait_interrupt(move || other.set());
    })));
    assert!(ctx.poll(true));
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
    clock::manual(1_000_000);
    let (log, work) = (log(), count());
    let event = polled_device(ctx, log, work);
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
    clock::manual(1_000_000);
    let (log, work) = (log(), count());
    let event = polled_device(ctx, log, work);
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
            hook.arm();
            ctx.poll(true);
            log.push(3);
        }),
    )
    .unwrap();
    ctx.poll(false);
    assert_eq!(log.take(), [1, 2, 3]);
}

//! Handlers that can be polled (EN-5, EN-11 to EN-13).
use std::sync::atomic::Ordering::SeqCst;

use crate::common::*;
use ironthread::aio::Handler;
use ironthread::arch::host::{self, clock};

#[test]
fn en_13_polling_begins_and_ends_around_the_checks() {
    let (_core, ctx) = single();
    clock::manual(1_000_000);
    let (log, work) = (log(), count());
    let event = polled_device(ctx, log, work);
    let sleeps = ctx.stats().sleeps;
    // Nothing comes: begin, checks until the budget is used up, end, one check more, sleep.
    assert!(!ctx.poll(true));
    assert_eq!(log.take(), [1, 2, 2, 2, 2, 2, 3, 2]);
    assert_eq!(
        (ctx.stats().sleeps, ctx.stats().poll_misses),
        (sleeps + 1, 1)
    );
    // Work comes while it polls: no sleep, and poll mode is not left (ADP-6).
    work.store(1, SeqCst);
    assert!(ctx.poll(true));
    assert_eq!(log.take(), [1, 2, 9]);
    work.store(1, SeqCst);
    assert!(ctx.poll(true));
    assert_eq!(log.take(), [2, 9]);
    assert_eq!((ctx.stats().sleeps, ctx.stats().poll_hits), (sleeps + 1, 2));
    ctx.unregister(event);
}

#[test]
fn en_13_a_source_in_poll_mode_is_heard_by_a_loop_that_never_sleeps() {
    let (_core, ctx) = single();
    clock::manual(1_000_000);
    let (log, work) = (log(), count());
    let event = polled_device(ctx, log, work);
    work.store(1, SeqCst);
    assert!(ctx.poll(true));
    assert_eq!(log.take(), [1, 2, 9], "in poll mode: it does not notify");
    // From here on there is always a bottom half to run, so no turn polls and none sleeps.
    let busy = late();
    set_bh(
        busy,
        ctx.bottom_half("busy", call(move |_| assert!(bh_of(busy).schedule())))
            .unwrap(),
    );
    bh_of(busy).schedule();
    for blocking in [true, false] {
        work.store(1, SeqCst);
        (0..10).for_each(|_| assert!(ctx.poll(blocking)));
        assert_eq!(get(work), 0, "blocking: {blocking}");
    }
    bh_of(busy).delete();
    ctx.unregister(event);
}

#[test]
fn en_12_a_handler_that_runs_is_not_polled_by_its_nested_poll() {
    let (_core, ctx) = single();
    clock::manual(1_000_000);
    let calls = count();
    let event = notifier();
    ctx.set_poll_max_ns(100_000);
    let check = leak(|_: usize| {
        clock::advance(1_000);
        true
    });
    ctx.register(
        event,
        "always",
        call(move |_| {
            event.test_and_clear();
            if add(calls) < 10 {
                ctx.poll(true);
            }
        }),
        Some(check),
    )
    .unwrap();
    ctx.poll(false);
    host::on_wait(Some(leak(move || {
        clock::advance(1_000);
        host::on_wait(None);
        host::after_wait_interrupt(move || event.set());
    })));
    assert!(ctx.poll(true));
    assert_eq!(get(calls), 1);
    ctx.poll(true);
    assert_eq!(get(calls), 2);
    ctx.unregister(event);
}

#[test]
fn en_11_a_check_only_marks_and_the_handler_runs_in_its_place() {
    let (_core, ctx) = single();
    clock::manual(1_000_000);
    let log = log();
    let event = notifier();
    ctx.set_poll_max_ns(100_000);
    let check = leak(move |_: usize| {
        log.push(1);
        ctx.schedule_oneshot("between", call(move |_| log.push(2)))
            .unwrap();
        true
    });
    let ready = call(move |_| {
        event.test_and_clear();
        log.push(3);
    });
    ctx.register(event, "disk", ready, Some(check)).unwrap();
    ctx.poll(false);
    ready_in_a_wait(ctx, event);
    assert_eq!(log.take(), [3]);
    assert!(ctx.poll(true));
    assert_eq!(log.take(), [1, 2, 3]);
    ctx.unregister(event);
}

#[test]
fn en_13_a_source_removed_in_poll_mode_gets_no_end_and_its_slot_begins_anew() {
    let (_core, ctx) = single();
    clock::manual(1_000_000);
    let (log, work) = (log(), count());
    let event = polled_device(ctx, log, work);
    work.store(1, SeqCst);
    assert!(ctx.poll(true));
    assert_eq!(log.take(), [1, 2, 9], "in poll mode");
    ctx.unregister(event);
    // The same slot; never in poll mode.
    let next = notifier();
    let handler = Handler {
        ready: call(|_| ()),
        poll_check: Some(leak(|_: usize| false)),
        poll_begin: Some(call(move |_| log.push(6))),
        poll_end: Some(call(move |_| log.push(7))),
    };
    ctx.register_handler(next, "next", handler).unwrap();
    ctx.poll(false);
    assert!(!ctx.poll(true));
    assert_eq!(log.take(), []);
}

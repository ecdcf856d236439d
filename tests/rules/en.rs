//! Event notifiers and their handlers (EN).
use std::sync::atomic::Ordering::SeqCst;

use crate::common::*;
use ironthread::aio::{AioError, EventNotifier};
use ironthread::arch::host::{self, clock};
use ironthread::config;

#[test]
fn aio_event_add_remove() {
    let (_core, ctx) = single();
    let calls = count();
    let event = notifier();
    ctx.register(event, "event", call(|_| add(calls)), None)
        .unwrap();
    assert!(!ctx.poll(false));
    assert_eq!(get(calls), 0);
    ctx.unregister(event);
    assert!(!ctx.poll(false));
    assert_eq!(get(calls), 0);
}

#[test]
fn aio_event_wait() {
    let (_core, ctx) = single();
    let calls = count();
    let event = notifier();
    ctx.register(
        event,
        "event",
        call(move |_| {
            assert!(event.test_and_clear());
            add(calls);
        }),
        None,
    )
    .unwrap();
    while ctx.poll(false) {}
    assert_eq!(get(calls), 0);
    event.set();
    event.set();
    assert!(ctx.poll(false));
    assert_eq!(get(calls), 1);
    assert!(!ctx.poll(false));
    ctx.unregister(event);
    event.set();
    assert!(!ctx.poll(false));
    assert_eq!(get(calls), 1);
    assert!(event.test_and_clear() && !event.test_and_clear());
}

#[test]
fn aio_event_flush() {
    let (_core, ctx) = single();
    let calls = count();
    let event = notifier();
    ctx.register(
        event,
        "event",
        call(move |_| {
            event.test_and_clear();
            if add(calls) < 10 {
                event.set();
            }
        }),
        None,
    )
    .unwrap();
    while ctx.poll(false) {}
    event.set();
    for calls_so_far in 1..=10 {
        assert!(ctx.poll(false));
        assert_eq!(get(calls), calls_so_far);
    }
    assert!(!ctx.poll(false));
    ctx.unregister(event);
    assert!(!ctx.poll(false));
}

#[test]
fn en_3_a_handler_that_does_not_clear_is_called_again() {
    let (_core, ctx) = single();
    let calls = count();
    let event = notifier();
    ctx.register(event, "sticky", call(|_| add(calls)), None)
        .unwrap();
    event.set();
    for n in 1..=3 {
        assert!(ctx.poll(true));
        assert_eq!(get(calls), n);
    }
    event.test_and_clear();
    assert!(!ctx.poll(false));
    assert_eq!(get(calls), 3);
}

#[test]
fn en_1_registered_when_already_set_is_called() {
    let (_core, ctx) = single();
    let calls = count();
    let event = notifier();
    event.set();
    ctx.register(
        event,
        "late",
        call(move |_| {
            event.test_and_clear();
            add(calls);
        }),
        None,
    )
    .unwrap();
    assert!(ctx.poll(true));
    assert_eq!(get(calls), 1);
}

#[test]
fn en_4_registering_again_replaces_and_a_second_context_is_refused() {
    let (_core, ctx) = single();
    let log = log();
    let event = notifier();
    ctx.register(event, "one", call(move |_| log.push(1)), None)
        .unwrap();
    ctx.register(
        event,
        "two",
        call(move |_| {
            event.test_and_clear();
            log.push(2);
        }),
        None,
    )
    .unwrap();
    event.set();
    assert!(ctx.poll(false));
    assert_eq!(log.take(), [2]);
    let other = leak_context("other");
    assert_eq!(
        other.register(event, "three", call(|_| ()), None),
        Err(AioError::Busy)
    );
    other.unregister(event);
    ctx.unregister(event);
    ctx.unregister(event);
    other.register(event, "three", call(|_| ()), None).unwrap();
}

#[test]
fn en_7_8_a_handler_removes_itself_and_others_during_dispatch() {
    let (_core, ctx) = single();
    let log = log();
    let (a, b, c) = (notifier(), notifier(), notifier());
    ctx.register(
        a,
        "a",
        call(move |_| {
            log.push(1);
            ctx.unregister(a);
            ctx.unregister(b);
            // The freed slot is taken at once, by a source that is ready: it waits for the next pass (POLL-11).
            c.set();
            ctx.register(
                c,
                "c",
                call(move |_| {
                    c.test_and_clear();
                    log.push(3);
                }),
                None,
            )
            .unwrap();
        }),
        None,
    )
    .unwrap();
    ctx.register(b, "b", call(move |_| log.push(2)), None)
        .unwrap();
    a.set();
    b.set();
    assert!(ctx.poll(false));
    assert_eq!(log.take(), [1]);
    assert!(ctx.poll(false));
    assert_eq!(log.take(), [3]);
    assert!(!ctx.poll(false));
}

#[test]
fn en_6_a_handler_replaces_itself_from_its_own_callback() {
    let (_core, ctx) = single();
    let log = log();
    let event = notifier();
    ctx.register(
        event,
        "old",
        call(move |_| {
            log.push(1);
            ctx.register(
                event,
                "new",
                call(move |_| {
                    event.test_and_clear();
                    log.push(2);
                }),
                None,
            )
            .unwrap();
        }),
        None,
    )
    .unwrap();
    event.set();
    assert!(ctx.poll(false));
    assert_eq!(log.take(), [1]);
    assert!(ctx.poll(false));
    assert_eq!(log.take(), [2]);
    assert!(!ctx.poll(false));
}

#[test]
fn en_10_each_readiness_is_dispatched_once_by_the_innermost_poll() {
    let (_core, ctx) = single();
    let log = log();
    let (a, b) = (notifier(), notifier());
    ctx.register(
        a,
        "a",
        call(move |_| {
            a.test_and_clear();
            log.push(1);
            assert!(ctx.poll(false), "b is still due");
            log.push(3);
        }),
        None,
    )
    .unwrap();
    ctx.register(
        b,
        "b",
        call(move |_| {
            b.test_and_clear();
            log.push(2);
        }),
        None,
    )
    .unwrap();
    a.set();
    b.set();
    assert!(ctx.poll(false));
    assert_eq!(log.take(), [1, 2, 3]);
}

#[test]
fn en_12_an_uncleared_handler_is_not_entered_by_its_own_nested_poll() {
    let (_core, ctx) = single();
    let calls = count();
    let event = notifier();
    ctx.register(
        event,
        "a",
        call(move |_| {
            add(calls);
            assert!(!ctx.poll(false));
            event.test_and_clear();
        }),
        None,
    )
    .unwrap();
    event.set();
    assert!(ctx.poll(false));
    assert_eq!(get(calls), 1);
}

#[test]
fn en_all_slots_are_served_and_exhaustion_is_an_error() {
    let (_core, ctx) = single();
    let calls = count();
    let events: Vec<&'static EventNotifier> = (0..config::HANDLERS).map(|_| notifier()).collect();
    for &event in &events {
        ctx.register(
            event,
            "n",
            call(move |_| {
                event.test_and_clear();
                add(calls);
            }),
            None,
        )
        .unwrap();
    }
    assert_eq!(
        ctx.register(notifier(), "one more", call(|_| ()), None),
        Err(AioError::Exhausted)
    );
    events.iter().for_each(|event| event.set());
    assert!(ctx.poll(false));
    assert_eq!(get(calls), config::HANDLERS);
    assert!(!ctx.poll(false));
    events.iter().for_each(|event| ctx.unregister(event));
}

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

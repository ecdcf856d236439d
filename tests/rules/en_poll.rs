//! Handlers that can be polled (EN-5, EN-11 to EN-13).
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use crate::common::*;
use ironthread::aio::{EventNotifier, Handler};
use ironthread::arch::host::{self, clock};

#[test]
fn en_13_polling_begins_and_ends_around_the_checks() {
    let (_core, ctx) = single();
    let (event, log, work) = polled_device(ctx);
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
    let (event, log, work) = polled_device(ctx);
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
    assert!(ctx.poll(false), "asked when it came (EN-15)");
    assert_eq!(get(calls), 1, "but not by its own nested poll");
    calls.store(0, SeqCst);
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
    while ctx.poll(false) {}
    assert_eq!(log.take(), [1, 3, 2], "asked once when it came (EN-15)");
    ready_in_a_wait(ctx, event);
    assert_eq!(log.take(), [3]);
    assert!(ctx.poll(true));
    assert_eq!(log.take(), [1, 2, 3]);
    ctx.unregister(event);
}

#[test]
fn en_13_a_source_removed_in_poll_mode_gets_no_end_and_its_slot_begins_anew() {
    let (_core, ctx) = single();
    let (event, log, work) = polled_device(ctx);
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

#[test]
fn en_15_a_source_that_comes_back_is_asked_once_for_what_came_meanwhile() {
    let (_core, ctx) = single();
    clock::manual(1_000_000);
    let (log, work) = (log(), count());
    let event = notifier();
    let handler = Handler {
        ready: call(move |_| {
            work.store(0, SeqCst);
            log.push(9);
        }),
        poll_check: Some(leak(move |_: usize| {
            log.push(2);
            get(work) > 0
        })),
        poll_begin: None,
        poll_end: None,
    };
    // The context does not poll, and the device's interrupt is lost while nobody listens.
    for (found, expected) in [(0, &[2][..]), (1, &[2, 9])] {
        work.store(found, SeqCst);
        ctx.register_handler(event, "queue", handler).unwrap();
        assert_eq!(ctx.poll(true), found == 1);
        assert_eq!(log.take(), expected);
        assert!(!ctx.poll(false));
        assert_eq!(log.take(), [], "once");
        ctx.unregister(event);
    }
}

#[test]
fn en_7_what_a_check_found_is_not_for_the_next_in_its_slot() {
    let (_core, ctx) = single();
    let (event, log, work) = polled_device(ctx);
    // Asked behind the device, it gives the device's slot to another.
    let (swaps, next) = (notifier(), notifier());
    let nothing_there = leak(move |_: usize| {
        log.push(5);
        false
    });
    let swap = leak(move |_: usize| {
        if get(work) > 0 {
            ctx.unregister(event);
            ctx.register(
                next,
                "next",
                call(move |_| log.push(7)),
                Some(nothing_there),
            )
            .unwrap();
        }
        false
    });
    polled_by(ctx, swaps, swap);
    ctx.poll(false);
    ready_in_a_wait(ctx, swaps);
    log.take();
    work.store(1, SeqCst);
    assert!(!ctx.poll(true));
    assert_eq!(log.take(), [1, 2, 5]);
    ctx.unregister(next);
    ctx.unregister(swaps);
}

#[test]
fn en_13_a_begin_or_end_that_removes_another_ends_its_polling() {
    let (_core, ctx) = single();
    clock::manual(1_000_000);
    let log = log();
    ctx.set_poll_max_ns(100_000);
    let [first, second] = [notifier(), notifier()];
    let removes = leak(AtomicUsize::new(0));
    let of = |event: &'static EventNotifier, other: &'static EventNotifier, n: usize| {
        let takes_away = move |when: usize| {
            log.push(10 * n + when);
            if get(removes) == 10 * n + when {
                ctx.unregister(other);
            }
        };
        let handler = Handler {
            ready: call(move |_| event.test_and_clear()),
            poll_check: Some(leak(move |_: usize| {
                log.push(10 * n + 2);
                clock::advance(1_000);
                false
            })),
            poll_begin: Some(call(move |_| takes_away(1))),
            poll_end: Some(call(move |_| takes_away(3))),
        };
        ctx.register_handler(event, "n", handler).unwrap();
        ctx.poll(false);
        ready_in_a_wait(ctx, event);
    };
    // The second one's begin takes the first away, which began before it.
    of(first, second, 1);
    of(second, first, 2);
    ctx.poll(true);
    ctx.poll(true);
    log.take();
    clock::advance(100_000_000);
    removes.store(21, SeqCst);
    ctx.poll(true);
    let seen = log.take();
    assert!(seen.starts_with(&[11, 21]), "{seen:?}");
    assert!(
        !seen[2..].iter().any(|event| event / 10 == 1),
        "{seen:?}: neither asked nor ended"
    );
    // The first one's end takes the second away, and another comes to its place.
    ctx.unregister(second);
    of(first, second, 1);
    of(second, first, 2);
    clock::advance(100_000_000);
    removes.store(13, SeqCst);
    log.take();
    ctx.poll(true);
    let seen = log.take();
    assert!(seen.contains(&13) && !seen.contains(&23), "{seen:?}");
    ctx.unregister(first);
}

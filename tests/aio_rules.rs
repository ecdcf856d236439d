//! The event loop in one thread, rule by rule: nothing here depends on time or on another core.
mod common;

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use common::*;
use ironthread::aio::{AioContext, AioError, Callback, EventNotifier, Handler};
use ironthread::arch;
use ironthread::arch::host::{self, clock};
use ironthread::config;

#[test]
fn aio_bh_schedule() {
    let (_core, ctx) = single();
    let runs = count();
    let bh = ctx.bottom_half("count", call(|_| add(runs))).unwrap();
    assert!(bh.schedule());
    assert_eq!(get(runs), 0);
    assert!(ctx.poll(true));
    assert_eq!(get(runs), 1);
    assert!(!ctx.poll(false));
    assert_eq!(get(runs), 1);
}

#[test]
fn aio_bh_schedule10() {
    let (_core, ctx) = single();
    let runs = count();
    let this = late();
    let bh = ctx
        .bottom_half(
            "ten",
            call(move |_| {
                if add(runs) < 10 {
                    bh_of(this).schedule();
                }
            }),
        )
        .unwrap();
    set_bh(this, bh);
    bh.schedule();
    assert!(ctx.poll(false));
    assert_eq!(get(runs), 1);
    assert!(ctx.poll(true));
    assert_eq!(get(runs), 2);
    while get(runs) < 10 {
        assert!(ctx.poll(true));
    }
    assert!(!ctx.poll(false));
    assert_eq!(get(runs), 10);
}

#[test]
fn aio_bh_cancel() {
    let (_core, ctx) = single();
    let runs = count();
    let bh = ctx.bottom_half("cancelled", call(|_| add(runs))).unwrap();
    bh.schedule();
    bh.cancel();
    assert!(!ctx.poll(false));
    bh.delete();
    assert!(!ctx.poll(false));
    assert_eq!(get(runs), 0);
}

#[test]
fn aio_bh_delete() {
    let (_core, ctx) = single();
    let runs = count();
    let bh = ctx.bottom_half("deleted", call(|_| add(runs))).unwrap();
    bh.schedule();
    bh.delete();
    assert_eq!(ctx.stats().bottom_halves_in_use, 1, "still in its lane");
    assert!(!ctx.poll(false));
    assert_eq!(get(runs), 0);
    assert_eq!(ctx.stats().bottom_halves_in_use, 0);
}

#[test]
fn aio_bh_callback_delete_one() {
    let (_core, ctx) = single();
    let runs = count();
    let this = late();
    let bh = ctx
        .bottom_half(
            "own end",
            call(move |_| {
                add(runs);
                bh_of(this).delete();
            }),
        )
        .unwrap();
    set_bh(this, bh);
    bh.schedule();
    assert!(ctx.poll(true));
    assert_eq!(get(runs), 1);
    assert!(!bh.schedule(), "the handle is stale");
    assert!(!ctx.poll(false));
    assert_eq!(ctx.stats().bottom_halves_in_use, 0);
}

#[test]
fn bh_8_cancelled_and_scheduled_again_keeps_its_place() {
    let (_core, ctx) = single();
    let log = log();
    let first = ctx.bottom_half("1", call(|_| log.push(1))).unwrap();
    let second = ctx.bottom_half("2", call(|_| log.push(2))).unwrap();
    first.schedule();
    second.schedule();
    first.cancel();
    first.schedule();
    assert!(ctx.poll(false));
    assert_eq!(log.take(), [1, 2]);
}

#[test]
fn bh_10_delete_other_from_callback() {
    let (_core, ctx) = single();
    let runs = count();
    let other = late();
    let first = ctx
        .bottom_half("first", call(move |_| bh_of(other).delete()))
        .unwrap();
    let second = ctx.bottom_half("second", call(|_| add(runs))).unwrap();
    set_bh(other, second);
    first.schedule();
    second.schedule();
    assert!(ctx.poll(false));
    assert_eq!(get(runs), 0);
}

#[test]
fn bh_5_idle_is_no_progress_and_bounds_the_wait() {
    let (_core, ctx) = single();
    clock::manual(1_000);
    let runs = count();
    let bh = ctx.bottom_half("idle", call(|_| add(runs))).unwrap();
    bh.schedule_idle();
    assert!(!ctx.poll(false), "idle is no progress");
    assert_eq!(get(runs), 1);
    bh.schedule_idle();
    let sleeps = ctx.stats().sleeps;
    assert!(!ctx.poll(true));
    assert_eq!(
        (get(runs), ctx.stats().sleeps),
        (2, sleeps + 1),
        "an idle one lets the loop sleep"
    );
    bh.schedule();
    assert!(ctx.poll(true));
    assert_eq!(ctx.stats().sleeps, sleeps + 1, "a normal one does not");
}

#[test]
fn bh_6_normal_wins_over_idle_in_both_orders() {
    let (_core, ctx) = single();
    let bh = ctx.bottom_half("both", call(|_| ())).unwrap();
    bh.schedule_idle();
    bh.schedule();
    assert!(ctx.poll(false));
    bh.schedule();
    bh.schedule_idle();
    assert!(ctx.poll(false));
}

#[test]
fn bh_14_order_is_fifo_and_a_batch_is_bounded() {
    let (_core, ctx) = single();
    let log = log();
    let this = late();
    let spinning = ctx
        .bottom_half(
            "again",
            call(move |_| {
                log.push(0);
                bh_of(this).schedule();
            }),
        )
        .unwrap();
    set_bh(this, spinning);
    spinning.schedule();
    for n in 1..=3 {
        ctx.schedule_oneshot("n", call(move |_| log.push(n)))
            .unwrap();
    }
    assert!(ctx.poll(false));
    assert_eq!(log.take(), [0, 1, 2, 3]);
    assert!(ctx.poll(false));
    assert_eq!(log.take(), [0]);
}

#[test]
fn bh_15_nested_poll_runs_the_outer_rest_once_and_first() {
    let (_core, ctx) = single();
    let log = log();
    let ctx_ = ctx;
    ctx.schedule_oneshot(
        "outer",
        call(move |_| {
            log.push(1);
            ctx_.schedule_oneshot("new", call(move |_| log.push(4)))
                .unwrap();
            assert!(ctx_.poll(false));
            log.push(5);
        }),
    )
    .unwrap();
    for n in 2..=3 {
        ctx.schedule_oneshot("rest", call(move |_| log.push(n)))
            .unwrap();
    }
    assert!(ctx.poll(false));
    assert_eq!(log.take(), [1, 2, 3, 4, 5]);
    assert!(!ctx.poll(false));
}

#[test]
fn bh_15_batches_stay_in_order_across_lanes_and_levels() {
    // Core 1's entry is in the outer batch, core 0's in the nested one: the outer one comes first although its lane
    // has the higher number. Deeper than the kept batches, everything still runs exactly once.
    let (_machine, ctx) = stepped(2);
    let log = log();
    let _zero = host::enter_core(0);
    ctx.schedule_oneshot(
        "outer",
        call(move |_| {
            ctx.schedule_oneshot("inner", call(move |_| log.push(2)))
                .unwrap();
            ctx.poll(false);
        }),
    )
    .unwrap();
    {
        let _one = host::enter_core(1);
        ctx.schedule_oneshot("from 1", call(move |_| log.push(1)))
            .unwrap();
    }
    ctx.poll(false);
    assert_eq!(log.take(), [1, 2]);

    let depth = count();
    let this = late();
    let bh = ctx
        .bottom_half(
            "deep",
            call(move |_| {
                let level = add(depth);
                if level < 20 {
                    bh_of(this).schedule();
                    ctx.schedule_oneshot("level", call(move |_| log.push(level)))
                        .unwrap();
                    ctx.poll(false);
                }
            }),
        )
        .unwrap();
    set_bh(this, bh);
    bh.schedule();
    while ctx.poll(false) {}
    let mut seen = log.take();
    seen.sort();
    assert_eq!(seen, (1..20).collect::<Vec<_>>());
}

#[test]
fn bh_7_oneshots_are_exhausted_with_an_error_and_reserved_ones_are_left() {
    let (_core, ctx) = single();
    let runs = count();
    let usable = config::ONESHOTS - config::ONESHOT_RESERVED;
    for _ in 0..usable {
        ctx.schedule_oneshot("n", call(|_| add(runs))).unwrap();
    }
    assert_eq!(
        ctx.schedule_oneshot("one more", call(|_| add(runs))),
        Err(AioError::Exhausted)
    );
    for _ in 0..config::ONESHOT_RESERVED {
        ctx.schedule_oneshot_reserved("drain", call(|_| add(runs)))
            .unwrap();
    }
    assert_eq!(
        ctx.schedule_oneshot_reserved("drain", call(|_| ())),
        Err(AioError::Exhausted)
    );
    assert!(ctx.poll(false));
    assert_eq!(get(runs), config::ONESHOTS);
    assert_eq!(ctx.stats().oneshots_in_use, 0);
    ctx.schedule_oneshot("again", call(|_| add(runs))).unwrap();
    assert!(ctx.poll(false));
}

#[test]
fn bh_7_a_full_pool_lets_each_callback_schedule_the_next() {
    let (_core, ctx) = single();
    let runs = count();
    for _ in 0..config::ONESHOTS - config::ONESHOT_RESERVED {
        ctx.schedule_oneshot(
            "chain",
            call(move |_| {
                add(runs);
                ctx.schedule_oneshot("next", call(|_| add(runs))).unwrap();
            }),
        )
        .unwrap();
    }
    while ctx.poll(false) {}
    assert_eq!(get(runs), 2 * (config::ONESHOTS - config::ONESHOT_RESERVED));
}

#[test]
fn bh_handles_are_checked_by_generation() {
    let (_core, ctx) = single();
    let (old, new) = (count(), count());
    let handle = ctx.bottom_half("old", call(|_| add(old))).unwrap();
    handle.delete();
    let reused = ctx.bottom_half("new", call(|_| add(new))).unwrap();
    assert!(!handle.schedule());
    handle.cancel();
    handle.delete();
    assert!(reused.schedule());
    handle.cancel();
    assert!(ctx.poll(false));
    assert_eq!((get(old), get(new)), (0, 1));
    let mut all = vec![reused];
    while let Ok(bh) = ctx.bottom_half("fill", call(|_| ())) {
        all.push(bh);
    }
    assert_eq!(all.len(), config::BOTTOM_HALVES);
    assert!(
        all.iter().all(|bh| bh.schedule()),
        "every record fits its lane"
    );
    assert!(ctx.poll(false));
    all.into_iter().for_each(|bh| bh.delete());
    assert_eq!(ctx.stats().bottom_halves_in_use, 0);
}

#[test]
fn bh_13_queued_ones_are_listed_by_name() {
    let (_core, ctx) = single();
    ctx.schedule_oneshot("leak a", call(|_| ())).unwrap();
    let bh = ctx.bottom_half("leak b", call(|_| ())).unwrap();
    bh.schedule();
    let mut names = vec![];
    ctx.for_each_queued(|name| names.push(name));
    assert_eq!(names, ["leak a", "leak b"]);
    while ctx.poll(false) {}
}

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

/// A device under adaptive polling: `work` is what its poll check finds; begin is logged as 1, a check as 2, end as 3,
/// the handler as 9. By the end of this it has learnt a budget of 4 us.
fn polled_device(
    ctx: &'static AioContext,
    log: &'static Log,
    work: &'static AtomicUsize,
) -> &'static EventNotifier {
    let event = notifier();
    ctx.set_poll_max_ns(100_000);
    let handler = Handler {
        ready: call(move |_| {
            event.test_and_clear();
            work.store(0, SeqCst);
            log.push(9);
        }),
        poll_check: Some(leak(move |_: usize| {
            log.push(2);
            clock::advance(1_000);
            get(work) > 0
        })),
        poll_begin: Some(call(move |_| log.push(1))),
        poll_end: Some(call(move |_| log.push(3))),
    };
    ctx.register_handler(event, "disk", handler).unwrap();
    ctx.poll(false);
    // Not polled before it was ever ready (ADP-4). During the wait its interrupt comes, 10 us after the start.
    let during_wait = ctx.timer("device", call(|_| ())).unwrap();
    during_wait.arm_at(arch::now_ns() + 10_000);
    host::on_wait(Some(leak(move || {
        clock::advance(10_000);
        host::on_wait(None);
        host::after_wait_interrupt(move || event.set());
    })));
    assert!(ctx.poll(true));
    assert_eq!(log.take(), [9]);
    assert_eq!(ctx.learnt_poll_ns(event), 4_000);
    during_wait.delete().unwrap();
    event
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
fn aio_timer_schedule() {
    let (_core, ctx) = single();
    clock::manual(1_000);
    let fires = count();
    let this = late_timer();
    let timer = ctx
        .timer(
            "tick",
            call(move |_| {
                if add(fires) == 1 {
                    timer_of(this).arm_at(3_000);
                }
            }),
        )
        .unwrap();
    set_timer(this, timer);
    timer.arm_at(2_000);
    assert!(!ctx.poll(false));
    clock::manual(2_500);
    assert_eq!(get(fires), 0, "no poll, no fire (TMR-13)");
    assert!(ctx.poll(false));
    assert_eq!(get(fires), 1);
    assert!(!ctx.poll(false));
    clock::manual(3_000);
    assert!(
        ctx.poll(true),
        "a deadline equal to now has been reached (TMR-8)"
    );
    assert_eq!(get(fires), 2);
    assert!(!timer.is_pending());
}

#[test]
fn tmr_2_equal_deadlines_fire_in_the_order_of_arming() {
    let (_core, ctx) = single();
    clock::manual(0);
    let log = log();
    let timers: Vec<_> = (0..100)
        .map(|n| ctx.timer("n", call(move |_| log.push(n))).unwrap())
        .collect();
    for timer in timers.iter().rev() {
        timer.arm_at(50);
    }
    // Armed anew: now the last one.
    timers[99].arm_at(50);
    timers[7].arm_at(49);
    clock::manual(50);
    assert!(ctx.poll(false));
    let mut expected = vec![7];
    expected.extend((0..99).rev().filter(|n| *n != 7));
    expected.push(99);
    assert_eq!(log.take(), expected);
    timers.into_iter().for_each(|timer| timer.delete().unwrap());
}

#[test]
fn tmr_3_anticipate_is_never_later() {
    let (_core, ctx) = single();
    clock::manual(0);
    let timer = ctx.timer("t", call(|_| ())).unwrap();
    timer.anticipate(100);
    assert_eq!(timer.deadline_ns(), Some(100));
    timer.anticipate(200);
    assert_eq!(timer.deadline_ns(), Some(100));
    timer.anticipate(50);
    assert_eq!(timer.deadline_ns(), Some(50));
    assert_eq!(timer.delete(), Err(AioError::Busy), "armed");
    timer.cancel();
    timer.cancel();
    assert!(!timer.is_pending());
    assert_eq!(timer.delete(), Ok(()));
    assert_eq!(timer.delete(), Err(AioError::Stale));
    assert!(!timer.arm_at(1));
}

#[test]
fn tmr_6_7_callbacks_rearm_to_now_and_delete_others() {
    let (_core, ctx) = single();
    clock::manual(10);
    let log = log();
    let (first, second, third) = (late_timer(), late_timer(), late_timer());
    let a = ctx
        .timer(
            "a",
            call(move |_| {
                log.push(1);
                timer_of(first).arm_at(0);
                timer_of(second).cancel();
                timer_of(second).delete().unwrap();
                timer_of(third).arm_at(99);
            }),
        )
        .unwrap();
    let b = ctx.timer("b", call(move |_| log.push(2))).unwrap();
    let c = ctx.timer("c", call(move |_| log.push(3))).unwrap();
    let d = ctx.timer("d", call(move |_| log.push(4))).unwrap();
    set_timer(first, a);
    set_timer(second, b);
    set_timer(third, c);
    for timer in [a, b, c, d] {
        timer.arm_at(10);
    }
    assert!(ctx.poll(false));
    assert_eq!(
        log.take(),
        [1, 4],
        "re-armed to the past: next run; cancelled while due: never"
    );
    assert_eq!(ctx.stats().timers_armed, 2);
    a.cancel();
    c.cancel();
}

#[test]
fn tmr_nested_poll_continues_the_outer_runs_list() {
    let (_core, ctx) = single();
    clock::manual(10);
    let log = log();
    let a = ctx
        .timer(
            "a",
            call(move |_| {
                log.push(1);
                assert!(ctx.poll(true));
                log.push(3);
            }),
        )
        .unwrap();
    let b = ctx.timer("b", call(move |_| log.push(2))).unwrap();
    a.arm_at(5);
    b.arm_at(6);
    assert!(ctx.poll(false));
    assert_eq!(log.take(), [1, 2, 3]);
}

#[test]
fn tmr_the_heap_agrees_with_a_sorted_list() {
    let (_core, ctx) = single();
    clock::manual(0);
    let log = log();
    let timers: Vec<_> = (0..config::TIMERS)
        .map(|n| ctx.timer("n", call(move |_| log.push(n))).unwrap())
        .collect();
    assert_eq!(
        ctx.timer("one more", call(|_| ())).err(),
        Some(AioError::Exhausted)
    );
    let mut model: Vec<(u64, u64, usize)> = vec![];
    let mut random = 0x9E37_79B9_7F4A_7C15u64;
    for sequence in 0..20_000 {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let index = (random >> 33) as usize % timers.len();
        model.retain(|entry| entry.2 != index);
        if random >> 60 == 0 {
            timers[index].cancel();
        } else {
            let deadline = 1 + (random >> 20) % 500;
            timers[index].arm_at(deadline);
            model.push((deadline, sequence, index));
        }
    }
    clock::manual(1_000);
    ctx.poll(false);
    model.sort();
    assert_eq!(
        log.take(),
        model.iter().map(|entry| entry.2).collect::<Vec<_>>()
    );
    timers.into_iter().for_each(|timer| timer.delete().unwrap());
}

#[test]
fn poll_1_bottom_halves_then_handlers_then_timers_then_hooks() {
    let (_core, ctx) = single();
    clock::manual(5);
    let log = log();
    let event = notifier();
    let hook = ctx.turn_hook("hook", call(move |_| log.push(4))).unwrap();
    let timer = ctx.timer("t", call(move |_| log.push(3))).unwrap();
    timer.arm_at(5);
    ctx.register(
        event,
        "e",
        call(move |_| {
            event.test_and_clear();
            hook.arm();
            hook.arm();
            log.push(2);
        }),
        None,
    )
    .unwrap();
    event.set();
    ctx.schedule_oneshot("b", call(move |_| log.push(1)))
        .unwrap();
    assert!(ctx.poll(true));
    assert_eq!(log.take(), [1, 2, 3, 4]);
    assert!(!ctx.poll(false));
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
#[should_panic(expected = "home core only")]
fn own_1_poll_from_a_foreign_core() {
    let (_machine, ctx) = stepped(2);
    let _one = host::enter_core(1);
    ctx.poll(false);
}

#[test]
#[should_panic(expected = "polled in a coroutine")]
fn poll_9_not_in_a_coroutine() {
    let (_core, ctx) = single();
    ctx.spawn("bad", async move {
        ctx.poll(false);
    })
    .unwrap();
    ctx.poll(false);
}

#[test]
#[should_panic(expected = "other context locks")]
fn a_callback_that_keeps_a_lock_is_named() {
    let (_core, ctx) = single();
    ctx.schedule_oneshot("leaky", call(move |_| ctx.acquire()))
        .unwrap();
    ctx.poll(false);
}

#[test]
#[should_panic(expected = "interrupt handler")]
fn lck_9_not_in_an_interrupt_handler() {
    let (_core, ctx) = single();
    host::interrupt(|| ctx.acquire());
}

#[test]
#[should_panic(expected = "does not hold it")]
fn lck_2_release_without_acquire() {
    let (_core, ctx) = single();
    ctx.release();
}

#[test]
fn callbacks_carry_their_argument() {
    fn plain(argument: usize) {
        SEEN.with(|seen| seen.set(argument));
    }
    std::thread_local!(static SEEN: Cell<usize> = const { Cell::new(0) });
    let (_core, ctx) = single();
    ctx.schedule_oneshot("plain", Callback::new(&plain, 3))
        .unwrap();
    ctx.poll(false);
    assert_eq!(SEEN.with(Cell::get), 3);
    static TOTAL: AtomicUsize = AtomicUsize::new(0);
    ctx.schedule_oneshot(
        "static",
        Callback::new(
            &|n| {
                TOTAL.fetch_add(n, SeqCst);
            },
            4,
        ),
    )
    .unwrap();
    ctx.poll(false);
    assert_eq!(TOTAL.load(SeqCst), 4);
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
fn poll_11_a_handler_in_a_slot_that_was_due_waits_for_the_next_pass() {
    let (_core, ctx) = single();
    let log = log();
    let (a, b, c) = (notifier(), notifier(), notifier());
    let ready_c = call(move |_| {
        c.test_and_clear();
        log.push(3);
    });
    let ready_a = call(move |_| {
        a.test_and_clear();
        log.push(1);
        // The slot of `b`, which is due in this pass, goes to `c`, which is ready.
        ctx.unregister(b);
        c.set();
        ctx.register(c, "c", ready_c, None).unwrap();
    });
    ctx.register(a, "a", ready_a, None).unwrap();
    ctx.register(b, "b", call(move |_| log.push(2)), None)
        .unwrap();
    a.set();
    b.set();
    assert!(ctx.poll(false));
    assert_eq!(log.take(), [1]);
    assert!(ctx.poll(false));
    assert_eq!(log.take(), [3]);
}

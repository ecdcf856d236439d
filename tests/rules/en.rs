//! Event notifiers and their handlers (EN).
use crate::common::*;
use ironthread::aio::{AioError, Callback, EventNotifier, PollCheck};
use ironthread::arch::host;
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
    on_event(ctx, event, move |_| {
        if add(calls) < 10 {
            event.set();
        }
    });
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
    on_event(ctx, event, move |_| add(calls));
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
    on_event(ctx, event, move |_| log.push(2));
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
            on_event(ctx, c, move |_| log.push(3));
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
            on_event(ctx, event, move |_| log.push(2));
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
    on_event(ctx, a, move |_| {
        log.push(1);
        assert!(ctx.poll(false), "b is still due");
        log.push(3);
    });
    on_event(ctx, b, move |_| log.push(2));
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
        on_event(ctx, event, move |_| add(calls));
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
fn en_1_2_any_number_of_sets_is_one_until_it_is_cleared() {
    let (_machine, ctx) = stepped(2);
    let _zero = host::enter_core(0);
    let calls = count();
    let event = notifier();
    ctx.register(
        event,
        "event",
        call(move |_| {
            add(calls);
            assert!(event.test_and_clear());
            assert!(!event.test_and_clear() && !event.is_set());
        }),
        None,
    )
    .unwrap();
    ctx.poll(false);
    for n in 1..=3 {
        let kicks = ctx.stats().kicks;
        during_wait(move || {
            on_no_core(|| (0..n).for_each(|_| event.set()));
            let _one = host::enter_core(1);
            event.set();
        });
        // An interrupt handler may set it too; it never blocks.
        host::after_wait_interrupt(move || event.set());
        assert!(ctx.poll(true));
        assert!(!ctx.poll(false));
        assert!(ctx.stats().kicks > kicks);
        assert_eq!(get(calls), n);
    }
}

#[test]
fn en_4_registering_and_removing_wake_the_loop() {
    let (_machine, ctx) = stepped(2);
    let _zero = host::enter_core(0);
    let [event, unknown] = [notifier(), notifier()];
    let registered = move || {
        let _one = host::enter_core(1);
        ctx.register(event, "event", call(|_| ()), None).unwrap();
    };
    let removed = move || {
        let _one = host::enter_core(1);
        ctx.unregister(event);
    };
    let nothing = move || {
        let _one = host::enter_core(1);
        ctx.unregister(unknown);
    };
    let kicks_during = |f: Box<dyn Fn() + Sync>| {
        let kicks = ctx.stats().kicks;
        ctx.poll(false);
        during_wait(f);
        assert!(!ctx.poll(true));
        ctx.stats().kicks - kicks
    };
    assert_eq!(kicks_during(Box::new(registered)), 1);
    assert_eq!(kicks_during(Box::new(registered)), 1, "replaced");
    assert_eq!(kicks_during(Box::new(removed)), 1);
    assert_eq!(kicks_during(Box::new(nothing)), 0);
}

#[test]
fn en_6_a_replacement_is_whole() {
    let (_core, ctx) = single();
    let log = log();
    let event = notifier();
    let of = move |n: usize| {
        let ready = Callback::new(
            leak(move |argument: usize| {
                event.test_and_clear();
                assert_eq!(argument, n);
                log.push(n);
            }),
            n,
        );
        let check: PollCheck = leak(move |argument: usize| {
            assert_eq!(argument, n, "a check with another's argument");
            false
        });
        (ready, Some(check))
    };
    ctx.set_poll_max_ns(100_000);
    for (n, name) in [(1, "one"), (2, "two"), (3, "three")] {
        let (ready, check) = of(n);
        ctx.register(event, name, ready, check).unwrap();
        let mut names = vec![];
        ctx.for_each_handler(|name| names.push(name));
        assert_eq!(names, [name]);
        ctx.poll(false);
        // Ready in a wait, so that from then on its check is asked.
        during_wait(move || host::after_wait_interrupt(move || event.set()));
        while log.take() != [n] {
            ctx.poll(true);
        }
        ctx.poll(true);
    }
}

#[test]
fn en_9_a_mark_without_a_set_notifier_is_neither_call_nor_progress() {
    let (_core, ctx) = single();
    let calls = count();
    let event = notifier();
    ctx.register(event, "event", call(|_| add(calls)), None)
        .unwrap();
    event.set();
    assert!(event.test_and_clear());
    assert!(!ctx.poll(false));
    // Set again by its own handler's pass, removed before its turn.
    event.set();
    ctx.schedule_oneshot("remover", call(move |_| ctx.unregister(event)))
        .unwrap();
    assert!(ctx.poll(false));
    assert_eq!(get(calls), 0);
}

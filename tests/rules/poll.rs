//! One turn of the loop (POLL).
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use crate::common::*;
use ironthread::aio::{Callback, EventNotifier, Handler};
use ironthread::arch;
use ironthread::arch::host::{self, clock};

#[test]
fn poll_1_bottom_halves_then_handlers_then_timers_then_hooks() {
    let (_core, ctx) = single();
    clock::manual(5);
    let log = log();
    let event = notifier();
    let hook = ctx.turn_hook("hook", call(move |_| log.push(4))).unwrap();
    let timer = ctx.timer("t", call(move |_| log.push(3))).unwrap();
    timer.arm_at(5);
    on_event(ctx, event, move |_| {
        hook.arm();
        hook.arm();
        log.push(2);
    });
    event.set();
    ctx.schedule_oneshot("b", call(move |_| log.push(1)))
        .unwrap();
    assert!(ctx.poll(true));
    assert_eq!(log.take(), [1, 2, 3, 4]);
    assert!(!ctx.poll(false));
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

#[test]
fn poll_11_what_a_bottom_half_registers_is_first_called_in_the_next_turn() {
    let (_core, ctx) = single();
    let log = log();
    let (other, event) = (notifier(), notifier());
    let ready = move |n: usize, event: &'static EventNotifier| {
        call(move |_| {
            event.test_and_clear();
            log.push(n);
        })
    };
    ctx.register(other, "other", ready(2, other), None).unwrap();
    let registers = move |_| {
        log.push(1);
        event.set();
        ctx.register(event, "event", ready(3, event), None).unwrap();
    };
    ctx.schedule_oneshot("registers", call(registers)).unwrap();
    other.set();
    assert!(ctx.poll(false));
    assert_eq!(log.take(), [1, 2]);
    assert!(ctx.poll(false));
    assert_eq!(log.take(), [3]);
    assert!(!ctx.poll(false));
}

#[test]
fn poll_2_each_kind_of_work_is_progress_and_nothing_else_is() {
    let (_core, ctx) = single();
    clock::manual(5);
    assert!(!ctx.poll(false), "nothing");
    ctx.notify();
    assert!(!ctx.poll(true), "a notification");
    let hook = ctx.turn_hook("hook", call(|_| ())).unwrap();
    hook.arm();
    assert!(!ctx.poll(false), "what is done at the end of a turn");
    let idle = ctx.bottom_half("idle", call(|_| ())).unwrap();
    idle.schedule_idle();
    assert!(!ctx.poll(false), "an idle bottom half");
    ctx.schedule_oneshot("bh", call(|_| ())).unwrap();
    assert!(ctx.poll(false), "a bottom half");
    let event = notifier();
    let ready = call(move |_| event.test_and_clear());
    ctx.register(event, "event", ready, None).unwrap();
    event.set();
    assert!(ctx.poll(false), "a handler");
    let timer = ctx.timer("timer", call(|_| ())).unwrap();
    timer.arm_at(5);
    assert!(ctx.poll(false), "a timer");
    ctx.spawn("coroutine", async {}).unwrap();
    assert!(ctx.poll(false), "a coroutine");
    assert!(!ctx.poll(false), "nothing again");
}

#[test]
fn poll_3_the_wait_ends_at_the_earliest_of_idle_work_and_timers() {
    let (_core, ctx) = single();
    clock::manual(1_000);
    let timer = ctx.timer("timer", call(|_| ())).unwrap();
    let later = ctx.timer("later", call(|_| ())).unwrap();
    let idle = ctx.bottom_half("idle", call(|_| ())).unwrap();
    let sleep = || {
        ctx.poll(true);
        slept_until(0)
    };
    assert_eq!(sleep(), u64::MAX, "nothing to wait for");
    later.arm_at(50_000_000);
    timer.arm_at(20_000_000);
    assert_eq!(sleep(), 20_000_000);
    idle.schedule_idle();
    assert_eq!(sleep(), 10_001_000, "10 ms from now");
    timer.arm_at(5_000_000);
    idle.schedule_idle();
    assert_eq!(sleep(), 5_000_000);
    let sleeps = ctx.stats().sleeps;
    idle.schedule_idle();
    ctx.schedule_oneshot("normal", call(|_| ())).unwrap();
    assert!(ctx.poll(true));
    clock::manual(5_000_000);
    assert!(ctx.poll(true), "a timer that is due");
    assert_eq!(ctx.stats().sleeps, sleeps);
}

#[test]
fn poll_4_polling_is_part_of_the_wait_and_ends_with_it() {
    let (_core, ctx) = single();
    let (event, log, _) = polled_device(ctx);
    let timer = ctx.timer("soon", call(move |_| log.push(8))).unwrap();
    // The budget is 4 us and a check takes one.
    timer.arm_at(arch::now_ns() + 1_500);
    assert!(ctx.poll(true));
    assert_eq!(log.take(), [1, 2, 2, 2, 3, 2, 8]);
    ctx.unregister(event);
}

#[test]
fn poll_5_what_the_last_look_finds_keeps_the_loop_awake() {
    let (_core, ctx) = single();
    clock::manual(1_000_000);
    let (asked, found) = (count(), count());
    let event = notifier();
    ctx.set_poll_max_ns(100_000);
    let handler = Handler {
        ready: call(move |_| {
            event.test_and_clear();
            add(found);
        }),
        poll_check: Some(leak(move |_: usize| {
            clock::advance(1_000);
            get(asked) > 0
        })),
        poll_begin: None,
        // Comes while notifications were off; found by the look after the end.
        poll_end: Some(call(move |_| add(asked))),
    };
    ctx.register_handler(event, "disk", handler).unwrap();
    ctx.poll(false);
    ready_in_a_wait(ctx, event);
    let sleeps = ctx.stats().sleeps;
    assert!(ctx.poll(true));
    assert_eq!((get(found), ctx.stats().sleeps), (2, sleeps));
    // And what a check finds: no sleep either, and polling has not ended.
    assert!(ctx.poll(true));
    assert_eq!((get(found), get(asked), ctx.stats().sleeps), (3, 1, sleeps));
    ctx.unregister(event);
}

#[test]
fn poll_6_a_turn_that_does_not_block_never_waits() {
    let (_core, ctx) = single();
    clock::manual(0);
    let runs = count();
    during_wait(|| panic!("it waited"));
    let timer = ctx.timer("later", call(move |_| add(runs))).unwrap();
    timer.arm_at(10);
    assert!(!ctx.poll(false));
    ctx.schedule_oneshot("now", call(move |_| add(runs)))
        .unwrap();
    clock::manual(10);
    assert!(ctx.poll(false));
    assert_eq!(get(runs), 2);
    assert!(!ctx.poll(false));
    host::on_wait(None);
}

#[test]
fn poll_7_with_nothing_registered_it_waits_for_a_notification() {
    let (_machine, ctx) = stepped(2);
    let _zero = host::enter_core(0);
    during_wait(move || {
        let _one = host::enter_core(1);
        ctx.notify();
    });
    assert!(!ctx.poll(true));
    assert_eq!((ctx.stats().sleeps, ctx.stats().kicks), (1, 1));
    assert_eq!(slept_until(0), u64::MAX);
}

#[test]
fn poll_8_progress_promises_nothing_about_the_next_wait() {
    let (_core, ctx) = single();
    for n in 1..=3 {
        ctx.schedule_oneshot("work", call(|_| ())).unwrap();
        assert!(ctx.poll(true));
        assert!(!ctx.poll(true));
        assert_eq!(ctx.stats().sleeps, n);
    }
}

#[test]
fn poll_9_every_callback_may_poll_again() {
    let (_core, ctx) = single();
    clock::manual(5);
    let log = log();
    let event = notifier();
    // What each callback leaves for its nested poll.
    let nested = move |n: usize| {
        ctx.schedule_oneshot("inner", call(move |_| log.push(10 * n)))
            .unwrap();
        log.push(n);
        assert!(ctx.poll(n.is_multiple_of(2)), "callback {n}");
        log.push(n);
    };
    let hook = ctx.turn_hook("hook", call(move |_| nested(4))).unwrap();
    let last = call(move |_| {
        nested(3);
        hook.arm();
    });
    let timer = ctx.timer("timer", last).unwrap();
    let ready = call(move |_| {
        event.test_and_clear();
        nested(2);
        timer.arm_at(5);
    });
    ctx.register(event, "event", ready, None).unwrap();
    event.set();
    ctx.schedule_oneshot(
        "bh",
        call(move |_| {
            // The nested poll would run the handler inside.
            event.test_and_clear();
            nested(1);
            event.set();
        }),
    )
    .unwrap();
    while ctx.poll(false) {}
    assert_eq!(log.take(), [1, 10, 1, 2, 20, 2, 3, 30, 3, 4, 40, 4]);
}

#[test]
fn poll_10_a_timer_may_remove_the_handler_that_just_ran() {
    let (_core, ctx) = single();
    clock::manual(5);
    let log = log();
    let (event, reused) = (notifier(), notifier());
    ctx.register(event, "sticky", call(move |_| log.push(1)), None)
        .unwrap();
    let ready = call(move |_| {
        reused.test_and_clear();
        log.push(3);
    });
    let timer = ctx
        .timer(
            "remover",
            call(move |_| {
                log.push(2);
                ctx.unregister(event);
                // In the slot that the loop has just left.
                reused.set();
                ctx.register(reused, "reused", ready, None).unwrap();
            }),
        )
        .unwrap();
    timer.arm_at(5);
    event.set();
    assert!(ctx.poll(true));
    assert_eq!(log.take(), [1, 2]);
    assert!(ctx.poll(true));
    assert_eq!(log.take(), [3]);
    assert!(!ctx.poll(false));
}

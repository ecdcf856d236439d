//! One turn of the loop (POLL).
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use crate::common::*;
use ironthread::aio::Callback;
use ironthread::arch::host::clock;

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

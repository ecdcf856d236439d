//! Acquiring a context around its loop (ACQ).
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;

use crate::common::*;
use ironthread::aio::{self};
use ironthread::arch::host::{self, clock};

/// The seed's acceptance test; `during`: the event comes while the loop waits, else before it polls.
fn aio_acquire(during: bool) {
    let _watchdog = watchdog("aio_acquire");
    let _machine = host::machine(2);
    let ctx = attach(0, "acquire");
    let _core = host::enter_core(0);
    let event = notifier();
    ctx.register(event, "event", call(move |_| event.test_and_clear()), None)
        .unwrap();
    while ctx.poll(false) {}
    let acquired = leak(AtomicBool::new(false));
    let sleeps = ctx.stats().sleeps;
    ctx.acquire();
    let worker = thread::spawn(move || {
        let _core = host::enter_core(1);
        if during {
            until(|| ctx.stats().sleeps > sleeps);
        }
        event.set();
        ctx.acquire();
        acquired.store(true, SeqCst);
        ctx.release();
    });
    if !during {
        // It waits for the lock already.
        until(|| ctx.context_lock().queued() == 2);
    }
    let mut progress = ctx.poll(true);
    while !progress {
        // A wait may end for no reason; contention is never one, and the worker stays out.
        assert!(!acquired.load(SeqCst));
        progress = ctx.poll(true);
    }
    assert!(
        !acquired.load(SeqCst),
        "the outer level is held through the wait"
    );
    assert_eq!(ctx.context_lock().depth(), 1);
    ctx.release();
    worker.join().unwrap();
    assert!(acquired.load(SeqCst));
    ctx.unregister(event);
}

#[test]
fn aio_acquire_event_before_poll() {
    aio_acquire(false);
}

#[test]
fn aio_acquire_event_during_poll() {
    aio_acquire(true);
}

#[test]
fn acq_5_a_busy_loop_lets_waiters_in_between_two_turns() {
    let _watchdog = watchdog("acq_5");
    let _machine = host::machine(2);
    let ctx = leak_context("busy");
    let _zero = host::enter_core(0);
    let this = late();
    let bh = ctx
        .bottom_half("always", call(move |_| bh_of(this).schedule()))
        .unwrap();
    set_bh(this, bh);
    bh.schedule();
    let busy = io_thread(1, ctx);
    until(|| ctx.stats().turns > 10);
    for _ in 0..200 {
        ctx.acquire();
        ctx.release();
    }
    aio::stop(ctx);
    busy.join().unwrap();
}

#[test]
fn acq_1_all_levels_keep_the_callbacks_out() {
    let _watchdog = watchdog("acq_1");
    let _machine = host::machine(2);
    let ctx = leak_context("nested");
    let _zero = host::enter_core(0);
    let looping = io_thread(1, ctx);
    until(|| ctx.stats().sleeps > 0);
    let ran = count();
    let outer = ctx.lock();
    let inner = ctx.lock();
    ctx.schedule_oneshot("kept out", call(|_| add(ran)))
        .unwrap();
    until(|| ctx.context_lock().queued() == 2);
    drop(inner);
    assert_eq!((ctx.context_lock().depth(), get(ran)), (1, 0));
    drop(outer);
    until(|| get(ran) == 1);
    aio::stop(ctx);
    looping.join().unwrap();
}

#[test]
fn acq_2_callbacks_hold_the_lock_already() {
    let (_core, ctx) = single();
    clock::manual(10);
    let seen = log();
    let look = move |_| {
        assert!(ctx.context_lock().is_held_by_me());
        seen.push(ctx.context_lock().depth() as usize);
        // Not needed, but allowed.
        let _level = ctx.lock();
    };
    let event = notifier();
    on_event(ctx, event, look);
    event.set();
    ctx.schedule_oneshot("bottom half", call(look)).unwrap();
    ctx.timer("timer", call(look)).unwrap().arm_at(10);
    assert!(ctx.poll(true));
    assert_eq!(seen.take(), [1, 1, 1]);
    assert_eq!(ctx.context_lock().depth(), 0);
    ctx.unregister(event);
}

#[test]
fn acq_4_exactly_one_level_is_given_back_around_the_wait() {
    let (_machine, ctx) = stepped(2);
    let _zero = host::enter_core(0);
    let seen = log();
    host::on_wait(Some(leak(move || {
        seen.push(ctx.context_lock().depth() as usize);
        let _one = host::enter_core(1);
        let free = ctx.context_lock().try_acquire();
        seen.push(usize::from(free));
        if free {
            ctx.release();
        }
    })));
    for outer in 0..3 {
        for _ in 0..outer {
            ctx.acquire();
        }
        assert!(!ctx.poll(true));
        assert_eq!(seen.take(), [outer, usize::from(outer == 0)]);
        assert_eq!(ctx.context_lock().depth() as usize, outer);
        for _ in 0..outer {
            ctx.release();
        }
    }
}

#[test]
fn acq_5_a_turn_without_a_wait_is_not_interrupted() {
    let _watchdog = watchdog("acq_5");
    let _machine = host::machine(2);
    let ctx = attach(0, "turn");
    let _zero = host::enter_core(0);
    let order = log();
    let waiter = leak(std::sync::Mutex::new(None));
    ctx.schedule_oneshot(
        "first",
        call(move |_| {
            let thread = thread::spawn(move || {
                let _one = host::enter_core(1);
                ctx.acquire();
                order.push(9);
                ctx.release();
            });
            *waiter.lock().unwrap() = Some(thread);
            until(|| ctx.context_lock().queued() == 2);
            order.push(1);
        }),
    )
    .unwrap();
    for n in 2..=4 {
        ctx.schedule_oneshot("rest", call(move |_| order.push(n)))
            .unwrap();
    }
    assert!(ctx.poll(true));
    // It is served before the next turn, although there is work again.
    ctx.schedule_oneshot("next", call(move |_| order.push(5)))
        .unwrap();
    assert!(ctx.poll(false));
    waiter.lock().unwrap().take().unwrap().join().unwrap();
    assert_eq!(order.take(), [1, 2, 3, 4, 9, 5]);
}

fn waits_with_levels(levels: usize) {
    let (_machine, _main) = stepped(2);
    let io = attach(1, "io");
    let _zero = host::enter_core(0);
    for _ in 0..levels {
        io.acquire();
    }
    let turns = count();
    aio::wait_while_releasing(io, || add(turns) < 3);
    assert_eq!(io.context_lock().depth() as usize, levels);
}

#[test]
#[should_panic(expected = "exactly once")]
fn acq_6_a_foreign_context_held_twice() {
    waits_with_levels(2);
}

#[test]
#[should_panic(expected = "exactly once")]
fn acq_6_a_foreign_context_not_held() {
    waits_with_levels(0);
}

#[test]
fn acq_6_a_foreign_context_is_free_during_the_wait() {
    let (_machine, _main) = stepped(2);
    let io = attach(1, "io");
    let _zero = host::enter_core(0);
    let got = count();
    host::on_wait(Some(leak(move || {
        let _one = host::enter_core(1);
        if io.context_lock().try_acquire() {
            add(got);
            io.release();
        }
    })));
    io.acquire();
    assert!(aio::wait_while_releasing(io, || get(got) == 0
        && ironthread::aio::main_context().stats().sleeps < 3));
    assert!(io.context_lock().is_held_by_me() && get(got) == 1);
    io.release();
}

#[test]
fn acq_7_what_changed_during_the_wait_is_seen_after_it() {
    let (_machine, ctx) = stepped(2);
    let _zero = host::enter_core(0);
    let event = notifier();
    let ran = count();
    ctx.register(event, "gone", call(|_| add(ran)), None)
        .unwrap();
    while ctx.poll(false) {}
    let idle = ctx.bottom_half("gone too", call(|_| add(ran))).unwrap();
    idle.schedule_idle();
    host::on_wait(Some(leak(move || {
        let _one = host::enter_core(1);
        let _lock = ctx.lock();
        event.set();
        ctx.unregister(event);
        idle.delete();
    })));
    assert!(!ctx.poll(true));
    assert_eq!((get(ran), ctx.stats().bottom_halves_in_use), (0, 0));
}

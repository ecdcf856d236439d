//! Acquiring a context around its loop (ACQ).
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;

use crate::common::*;
use ironthread::aio::{self};
use ironthread::arch::host::{self};

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

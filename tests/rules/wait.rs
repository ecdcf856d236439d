//! Waiting for another context (WAIT).
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use crate::common::*;
use ironthread::aio::{self};
use ironthread::arch;
use ironthread::arch::host::{self};

#[test]
fn wait_kick_wakes_nested_waiters() {
    let _watchdog = watchdog("wait_kick");
    let _machine = host::machine(2);
    let main = attach(0, "main");
    let _zero = host::enter_core(0);
    let io = leak_context("io");
    let looping = io_thread(1, io);
    until(|| aio::is_running(io));
    aio::wait_kick();
    assert!(!main.poll(false), "a kick without a waiter is nothing");
    assert!(!aio::wait_while(|| false), "nothing to wait for");
    for _ in 0..2_000 {
        let (inner, outer) = (leak(AtomicBool::new(false)), leak(AtomicBool::new(false)));
        // The inner wait runs inside the outer one's poll.
        main.schedule_oneshot(
            "nested",
            call(move |_| {
                assert!(aio::wait_while(|| !inner.load(SeqCst)) || inner.load(SeqCst));
            }),
        )
        .unwrap();
        io.schedule_oneshot(
            "both",
            call(move |_| {
                outer.store(true, SeqCst);
                aio::wait_kick();
                inner.store(true, SeqCst);
                aio::wait_kick();
            }),
        )
        .unwrap();
        aio::wait_while(|| !outer.load(SeqCst) || !inner.load(SeqCst));
        // The other core may have been faster than the first look.
        while main.poll(false) {}
    }
    aio::stop(io);
    looping.join().unwrap();
}

#[test]
fn wait_7_run_and_wait() {
    let _watchdog = watchdog("wait_7");
    let _machine = host::machine(2);
    let _main = attach(0, "main");
    let _zero = host::enter_core(0);
    let io = leak_context("io");
    let looping = io_thread(1, io);
    let seen = leak(AtomicUsize::new(usize::MAX));
    for _ in 0..2_000 {
        seen.store(usize::MAX, SeqCst);
        aio::run_and_wait(
            io,
            call(move |_| seen.store(arch::current_core().unwrap(), SeqCst)),
        )
        .unwrap();
        assert_eq!(seen.load(SeqCst), 1);
    }
    // A held foreign context is given back while waiting (ACQ-6).
    let done = leak(AtomicBool::new(false));
    io.acquire();
    io.schedule_oneshot(
        "needs the lock",
        call(move |_| {
            done.store(true, SeqCst);
            aio::wait_kick();
        }),
    )
    .unwrap();
    aio::wait_while_releasing(io, || !done.load(SeqCst));
    assert!(io.context_lock().is_held_by_me());
    io.release();
    aio::stop(io);
    looping.join().unwrap();
}

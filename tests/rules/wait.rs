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

#[test]
fn wait_1_says_whether_it_waited() {
    let (_machine, main) = stepped(1);
    let _zero = host::enter_core(0);
    assert!(!aio::wait_while(|| false));
    assert_eq!(main.stats().turns, 0);
    let looks = count();
    assert!(aio::wait_while(|| add(looks) < 3));
    assert_eq!((get(looks), main.stats().turns), (3, 2));
}

#[test]
#[should_panic(expected = "only the main loop waits")]
fn wait_1_only_the_main_loop_waits() {
    let (_machine, _main) = stepped(2);
    attach(1, "io");
    let _one = host::enter_core(1);
    aio::wait_while(|| false);
}

/// Kicks from core 1 while core 0 waits: the main loop's wake-ups and what it had queued.
#[test]
fn wait_2_9_a_kick_wakes_once_and_only_a_waiter() {
    let (_machine, main) = stepped(2);
    let _zero = host::enter_core(0);
    let done = leak(AtomicBool::new(false));
    host::on_wait(Some(leak(move || {
        let _one = host::enter_core(1);
        done.store(true, SeqCst);
        for _ in 0..1_000 {
            aio::wait_kick();
        }
        assert_eq!(main.stats().oneshots_in_use, 0, "one static record");
    })));
    assert!(!main.poll(true));
    assert_eq!(main.stats().kicks, 0, "nobody waited");
    done.store(false, SeqCst);
    let queued = leak(AtomicUsize::new(0));
    assert!(aio::wait_while(|| {
        if done.load(SeqCst) {
            return false;
        }
        main.for_each_queued(|_| {
            queued.fetch_add(1, SeqCst);
        });
        true
    }));
    assert!(main.stats().kicks >= 1, "the waiter was kicked");
    // One static record however many kicks (WAIT-9): no one-shot, and nothing is left over.
    assert_eq!((queued.load(SeqCst), main.stats().oneshots_in_use), (0, 0));
    host::on_wait(None);
    assert!(!main.poll(false));
}

#[test]
fn wait_3_4_any_kick_makes_nested_waits_look_again() {
    let (_machine, main) = stepped(2);
    let _zero = host::enter_core(0);
    let stage = count();
    let (inner, outer) = (log(), log());
    host::on_wait(Some(leak(move || {
        let _one = host::enter_core(1);
        add(stage);
        aio::wait_kick();
    })));
    main.schedule_oneshot(
        "nested",
        call(move |_| {
            aio::wait_while(|| {
                inner.push(get(stage));
                get(stage) < 3
            });
        }),
    )
    .unwrap();
    assert!(aio::wait_while(|| {
        outer.push(get(stage));
        get(stage) < 2
    }));
    // Each change is looked at by the inner wait, then the outer one is tested again and ends too.
    let mut looks = inner.take();
    looks.dedup();
    assert_eq!((looks, outer.take()), (vec![0, 1, 2, 3], vec![0, 3]));
}

#[test]
fn wait_5_counts_also_when_only_its_own_context_seems_to_matter() {
    let (_machine, main) = stepped(2);
    let _zero = host::enter_core(0);
    let done = leak(AtomicBool::new(false));
    host::on_wait(Some(leak(move || {
        let _one = host::enter_core(1);
        done.store(true, SeqCst);
        aio::wait_kick();
    })));
    main.acquire();
    assert!(aio::wait_while_releasing(main, || !done.load(SeqCst)));
    assert_eq!(main.stats().kicks, 1);
    main.release();
}

#[test]
fn wait_6_the_result_is_there_when_the_kick_comes() {
    let (_machine, main) = stepped(3);
    let (sender, worker) = (attach(1, "sender"), attach(2, "worker"));
    let _zero = host::enter_core(0);
    static NOTHING: fn(usize, aio::WorkResult) = |_, _| ();
    let handle = {
        let _one = host::enter_core(1);
        aio::run_on(worker, call(|_| ()), &NOTHING, 0).unwrap()
    };
    // The worker's loop has one turn while the main loop waits.
    let turns = count();
    let second = leak(AtomicBool::new(false));
    host::on_wait(Some(leak(move || {
        add(turns);
        second.store(true, SeqCst);
    })));
    assert!(aio::wait_while(|| {
        if second.swap(false, SeqCst) {
            let _two = host::enter_core(2);
            while worker.poll(false) {}
        }
        !handle.is_finished()
    }));
    assert_eq!(get(turns), 1);
    assert!(main.stats().kicks <= 1 && !handle.is_over());
    let mut queued = 0;
    main.for_each_queued(|_| queued += 1);
    assert_eq!(
        queued, 1,
        "the work kicked the main loop, although its home is another"
    );
    while main.poll(false) {}
    let _one = host::enter_core(1);
    while sender.poll(false) {}
    assert!(handle.is_over());
}

#[test]
fn wait_8_what_was_deleted_during_the_wait_is_refused_after_it() {
    let (_machine, main) = stepped(2);
    let _zero = host::enter_core(0);
    let bh = main.bottom_half("gone", call(|_| ())).unwrap();
    let done = leak(AtomicBool::new(false));
    main.schedule_oneshot(
        "deletes",
        call(move |_| {
            bh.delete();
            done.store(true, SeqCst);
        }),
    )
    .unwrap();
    assert!(aio::wait_while(|| !done.load(SeqCst)));
    assert!(!bh.schedule() && !bh.is_scheduled());
}

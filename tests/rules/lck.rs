//! The context lock (LCK).
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;

use crate::common::*;
use ironthread::arch::host::{self, clock};
use ironthread::sync::ContextLock;

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
fn rfifolock_nesting() {
    let _machine = host::machine(1);
    let _core = host::enter_core(0);
    let lock = ContextLock::new();
    for depth in 1..=3 {
        lock.acquire();
        assert_eq!(lock.depth(), depth);
    }
    assert!(lock.is_held_by_me() && lock.try_acquire());
    for depth in (0..=3).rev() {
        lock.release();
        assert_eq!(lock.depth(), depth);
    }
    assert!(!lock.is_held_by_me());
}

#[test]
fn lck_3_5_first_come_first_served_with_four_contenders() {
    let _watchdog = watchdog("lck_3_5");
    let _machine = host::machine(5);
    let _core = host::enter_core(0);
    for round in 0..50 {
        let lock = leak(ContextLock::new());
        let order = log();
        lock.acquire();
        let threads: Vec<_> = (1..5)
            .map(|n| {
                // Arrival order differs from round to round.
                let core = 1 + (n + round) % 4;
                let thread = thread::spawn(move || {
                    let _core = host::enter_core(core);
                    lock.acquire();
                    assert!(
                        !lock.try_acquire() || {
                            lock.release();
                            true
                        }
                    );
                    order.push(core);
                    lock.release();
                });
                // It has its ticket before the next one comes.
                until(|| lock.queued() == 1 + n as u32);
                thread
            })
            .collect();
        assert!(lock.has_waiters());
        lock.release();
        // An owner that lets go and comes back queues behind every waiter (LCK-5).
        lock.acquire();
        let mut expected: Vec<_> = (1..5).map(|n| 1 + (n + round) % 4).collect();
        assert_eq!(order.take(), expected);
        lock.release();
        threads
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
        expected.clear();
    }
}

#[test]
fn lck_excludes_under_contention() {
    let _watchdog = watchdog("lck_excludes");
    let _machine = host::machine(4);
    let lock = leak(ContextLock::new());
    let (inside, total) = (leak(AtomicUsize::new(0)), leak(AtomicUsize::new(0)));
    let threads: Vec<_> = (0..4)
        .map(|core| {
            thread::spawn(move || {
                let _core = host::enter_core(core);
                for turn in 0..5_000 {
                    lock.acquire();
                    if turn % 3 == 0 {
                        lock.acquire();
                        lock.release();
                    }
                    assert_eq!(inside.fetch_add(1, SeqCst), 0);
                    total.fetch_add(1, SeqCst);
                    inside.fetch_sub(1, SeqCst);
                    lock.release();
                }
            })
        })
        .collect();
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
    assert_eq!(total.load(SeqCst), 20_000);
    assert_eq!((lock.depth(), lock.queued()), (0, 0));
}

/// A stopped picture of who gets the lock when core 0 lets it go.
fn served_in_order(lock: &'static ContextLock) {
    let order = log();
    lock.acquire();
    let threads: Vec<_> = (1..5)
        .map(|core| {
            let thread = thread::spawn(move || {
                let _core = host::enter_core(core);
                lock.acquire();
                order.push(core);
                lock.release();
            });
            until(|| lock.queued() == 1 + core as u32);
            assert_eq!(order.take(), [], "a waiter got in");
            thread
        })
        .collect();
    lock.release();
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
    assert_eq!(order.take(), [1, 2, 3, 4]);
}

#[test]
fn lck_1_recursion_deepens_without_a_ticket() {
    let _machine = host::machine(2);
    let _zero = host::enter_core(0);
    let lock = ContextLock::new();
    for depth in 1..=4 {
        lock.acquire();
        assert_eq!((lock.depth(), lock.queued()), (depth, 1));
    }
    assert!(lock.is_held_by_me() && !lock.has_waiters());
    for depth in (0..4).rev() {
        lock.release();
        assert_eq!((lock.depth(), lock.queued()), (depth, u32::from(depth > 0)));
    }
}

#[test]
#[should_panic(expected = "does not hold it")]
fn lck_2_release_by_another_core_than_the_owner() {
    let _machine = host::machine(2);
    let lock = ContextLock::new();
    let _one = host::enter_core(1);
    lock.acquire();
    let _zero = host::enter_core(0);
    lock.release();
}

#[test]
fn lck_3_reentry_does_not_queue_behind_waiters() {
    let _watchdog = watchdog("lck_3");
    let _machine = host::machine(2);
    let _zero = host::enter_core(0);
    let lock = leak(ContextLock::new());
    lock.acquire();
    let got = count();
    let waiter = thread::spawn(move || {
        let _one = host::enter_core(1);
        lock.acquire();
        add(got);
        lock.release();
    });
    until(|| lock.queued() == 2);
    lock.acquire();
    assert_eq!((lock.queued(), lock.depth(), get(got)), (2, 2, 0));
    lock.release();
    assert_eq!(get(got), 0, "the outer level still keeps it out");
    lock.release();
    waiter.join().unwrap();
}

#[test]
fn lck_4_tickets_wrap() {
    let _watchdog = watchdog("lck_4");
    let _machine = host::machine(5);
    let _zero = host::enter_core(0);
    for back in 0..8 {
        let lock = leak(ContextLock::starting_at(u32::MAX - back));
        served_in_order(lock);
        assert!(lock.try_acquire());
        lock.release();
        assert_eq!((lock.depth(), lock.queued()), (0, 0));
    }
}

#[test]
#[should_panic(expected = "interrupts masked")]
fn lck_9_not_waited_for_with_interrupts_masked() {
    let _machine = host::machine(2);
    let lock = ContextLock::new();
    let _one = host::enter_core(1);
    lock.acquire();
    let _zero = host::enter_core(0);
    let _irq = ironthread::arch::irq_mask();
    lock.acquire();
}

#[test]
fn lck_10_depth_holder_and_high_water_can_be_read() {
    let _machine = host::machine(2);
    let _zero = host::enter_core(0);
    clock::manual(1_000);
    let lock = ContextLock::new();
    assert_eq!((lock.depth(), lock.high_water_ns()), (0, 0));
    lock.acquire();
    clock::advance(300);
    assert!(lock.try_acquire());
    {
        let _one = host::enter_core(1);
        assert!(!lock.is_held_by_me() && !lock.try_acquire());
        assert_eq!(lock.queued(), 1, "a failed try leaves no ticket");
    }
    lock.release();
    assert_eq!(lock.high_water_ns(), 0, "measured over all levels");
    clock::advance(400);
    lock.release();
    assert_eq!(lock.high_water_ns(), 700);
    lock.acquire();
    clock::advance(100);
    lock.release();
    assert_eq!(lock.high_water_ns(), 700, "the longest stays");
}

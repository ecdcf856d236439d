//! The context lock (LCK).
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;

use crate::common::*;
use ironthread::arch::host::{self};
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

//! Coroutines: futures in static slots, woken from anywhere (CO).
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};
use std::thread;

use crate::common::*;
use ironthread::aio::{self, AioError, CoroutineHandle};
use ironthread::arch;
use ironthread::arch::host::{self, clock};

#[test]
fn coroutine_lifecycle_and_order() {
    let (_core, ctx) = single();
    let log = log();
    for n in 1..=2 {
        ctx.spawn("order", async move {
            for step in 1..=3 {
                log.push(10 * n + step);
                aio::yield_now().await;
            }
        })
        .unwrap();
    }
    assert_eq!(log.take(), [], "nothing runs inside spawn");
    while ctx.poll(false) {}
    assert_eq!(log.take(), [11, 21, 12, 22, 13, 23]);
    assert_eq!(aio::coroutines_in_use().0, 0);
}

#[test]
fn aio_coroutine_queue_chaining() {
    let (_core, ctx) = single();
    const TURNS: usize = 25_000;
    let handles: &'static [Mutex<Option<CoroutineHandle>>; 2] =
        leak([const { Mutex::new(None) }; 2]);
    let counts: &'static [AtomicUsize; 2] = leak([const { AtomicUsize::new(0) }; 2]);
    let deepest = leak(AtomicUsize::new(usize::MAX));
    for me in 0..2 {
        let handle = ctx
            .spawn("chain", async move {
                // Started by the other's first wake, or by spawn.
                for _ in 0..TURNS {
                    counts[me].fetch_add(1, SeqCst);
                    let here = 0u8;
                    deepest.fetch_min(&raw const here as usize, SeqCst);
                    handles[1 - me].lock().unwrap().expect("both exist").wake();
                    aio::suspend().await;
                }
            })
            .unwrap();
        *handles[me].lock().unwrap() = Some(handle);
    }
    let first = leak(AtomicUsize::new(0));
    while ctx.poll(false) {
        if first.load(SeqCst) == 0 {
            first.store(deepest.load(SeqCst), SeqCst);
        }
    }
    assert!(counts.iter().any(|count| count.load(SeqCst) == TURNS));
    assert!(counts.iter().all(|count| count.load(SeqCst) >= TURNS - 1));
    assert_eq!(first.load(SeqCst), deepest.load(SeqCst), "no stack growth");
    for handle in handles {
        handle.lock().unwrap().unwrap().wake();
    }
    while ctx.poll(false) {}
    assert_eq!(aio::coroutines_in_use().0, 0);
}

#[test]
fn aio_coroutine_worker_thread_co_enter() {
    let (_core, ctx) = single();
    let here = thread::current().id();
    let ran = count();
    // A thread that is no core spawns into the main context: it must not run there.
    thread::spawn(move || {
        ctx.spawn("entered", async move {
            assert_eq!(thread::current().id(), here);
            add(ran);
        })
        .unwrap();
    })
    .join()
    .unwrap();
    assert_eq!(get(ran), 0);
    assert!(ctx.poll(true));
    assert_eq!(get(ran), 1);
    assert!(!ctx.poll(false));
}

#[test]
fn co_3_scheduling_twice_is_an_error() {
    let (_machine, ctx) = stepped(2);
    let other = attach(1, "other");
    let _zero = host::enter_core(0);
    let ran = log();
    let handle = ctx
        .spawn("twice", async move {
            for step in 0..3 {
                ran.push(arch::current_core().unwrap());
                if step < 2 {
                    aio::suspend().await;
                }
            }
        })
        .unwrap();
    assert_eq!(
        handle.schedule_in(other),
        Err(AioError::Busy),
        "scheduled by spawn"
    );
    ctx.poll(false);
    assert_eq!(handle.schedule_in(other), Ok(()));
    assert_eq!(handle.schedule_in(ctx), Err(AioError::Busy));
    assert!(handle.wake(), "a wake while scheduled is the same schedule");
    assert!(!ctx.poll(false));
    {
        let _one = host::enter_core(1);
        assert!(other.poll(false));
        assert!(!other.poll(false));
    }
    assert!(handle.wake());
    assert!(!ctx.poll(false), "its home is the other context now");
    {
        let _one = host::enter_core(1);
        assert!(other.poll(false));
    }
    assert!(handle.is_finished() && !handle.wake());
    assert_eq!(handle.schedule_in(ctx), Err(AioError::Stale));
    assert_eq!(ran.take(), [0, 1, 1]);
}

#[test]
fn co_6_reschedule_self_between_two_loops() {
    let _watchdog = watchdog("co_6");
    let _machine = host::machine(2);
    let (a, b) = (leak_context("a"), leak_context("b"));
    let threads = [io_thread(0, a), io_thread(1, b)];
    let moves = count();
    let handle = a
        .spawn("wanderer", async move {
            for _ in 0..5_000 {
                aio::reschedule_self(b).await;
                assert_eq!(arch::current_core(), Some(1));
                aio::reschedule_self(b).await;
                aio::reschedule_self(a).await;
                assert_eq!(arch::current_core(), Some(0));
                add(moves);
            }
        })
        .unwrap();
    // Wakes from outside while it moves are harmless.
    while !handle.is_finished() {
        handle.wake();
    }
    assert_eq!(get(moves), 5_000);
    aio::stop(a);
    aio::stop(b);
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
}

#[test]
fn co_5_wakes_from_another_core_race_with_the_yield() {
    let _watchdog = watchdog("co_5");
    let _machine = host::machine(2);
    let ctx = leak_context("woken");
    let looping = io_thread(0, ctx);
    let _one = host::enter_core(1);
    // The classic hand-over: value and waker under one lock, woken after the value was set.
    let shared: Arc<Mutex<(usize, Option<Waker>)>> = Arc::default();
    let received = count();
    let theirs = Arc::clone(&shared);
    let handle = ctx
        .spawn("receiver", async move {
            for expected in 1..=20_000 {
                std::future::poll_fn(|cx| {
                    let mut shared = theirs.lock().unwrap();
                    if shared.0 >= expected {
                        return Poll::Ready(());
                    }
                    shared.1 = Some(cx.waker().clone());
                    Poll::Pending
                })
                .await;
                add(received);
            }
        })
        .unwrap();
    for n in 1..=20_000 {
        let waker = {
            let mut shared = shared.lock().unwrap();
            shared.0 = n;
            shared.1.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        until(|| get(received) >= n);
    }
    until(|| handle.is_finished());
    aio::stop(ctx);
    looping.join().unwrap();
    // A waker that outlives its coroutine does nothing.
    assert!(shared.lock().unwrap().1.is_none());
}

#[test]
fn sleep_until_waits_for_the_clock_and_gives_its_timer_back() {
    let (_core, ctx) = single();
    clock::manual(100);
    let log = log();
    let handle = ctx
        .spawn("sleeper", async move {
            aio::sleep_until(100).await;
            log.push(1);
            aio::sleep_until(200).await;
            log.push(2);
            aio::sleep_until(u64::MAX).await;
        })
        .unwrap();
    ctx.poll(false);
    assert_eq!((log.take(), ctx.stats().timers_armed), (vec![1], 1));
    handle.wake();
    ctx.poll(false);
    assert_eq!(log.take(), [], "a wake is no deadline");
    clock::manual(200);
    while ctx.poll(false) {}
    assert_eq!(log.take(), [2]);
    assert!(handle.cancel());
    while ctx.poll(false) {}
    assert!(handle.is_finished());
    assert_eq!(
        (ctx.stats().timers_armed, ctx.stats().timers_in_use),
        (0, 0)
    );
}

#[test]
fn cancelled_and_woken_futures_are_dropped_once() {
    struct Flag(&'static AtomicUsize);
    impl Drop for Flag {
        fn drop(&mut self) {
            add(self.0);
        }
    }
    let (_core, ctx) = single();
    let drops = count();
    let flag = Flag(drops);
    let handle = ctx
        .spawn("dropped", async move {
            let _flag = flag;
            loop {
                aio::suspend().await;
            }
        })
        .unwrap();
    ctx.poll(false);
    handle.wake();
    handle.cancel();
    handle.cancel();
    while ctx.poll(false) {}
    assert_eq!(get(drops), 1);
    assert!(handle.is_finished() && !handle.cancel());
    // Woken in its last step: the slot is freed when the wake leaves the lane.
    let flag = Flag(drops);
    ctx.spawn("last", async move {
        let _flag = flag;
        aio::current_coroutine().unwrap().wake();
    })
    .unwrap();
    while ctx.poll(false) {}
    assert_eq!((get(drops), aio::coroutines_in_use().0), (2, 0));
}

#[test]
fn co_slots_are_bounded() {
    let (_core, ctx) = single();
    let handles: Vec<_> = std::iter::from_fn(|| ctx.spawn("fill", aio::suspend()).ok()).collect();
    assert_eq!(
        handles.len(),
        ironthread::config::COROUTINES * ironthread::config::MAX_CORES
    );
    assert_eq!(ctx.spawn("one more", async {}), Err(AioError::Exhausted));
    while ctx.poll(false) {}
    handles.iter().for_each(|handle| assert!(handle.wake()));
    while ctx.poll(false) {}
    assert_eq!(aio::coroutines_in_use().0, 0);
}

#[test]
fn co_6_a_wake_queued_before_the_move_is_forwarded() {
    let (_machine, ctx) = stepped(2);
    let other = attach(1, "other");
    let _zero = host::enter_core(0);
    let cores = log();
    ctx.spawn("woken mover", async move {
        // Queued in the old home's lane while it still runs there.
        aio::current_coroutine().unwrap().wake();
        aio::reschedule_self(other).await;
        cores.push(arch::current_core().unwrap());
    })
    .unwrap();
    while ctx.poll(false) {}
    assert_eq!(
        (ctx.stats().coroutine_steps, other.stats().coroutine_steps),
        (1, 0)
    );
    {
        let _one = host::enter_core(1);
        assert!(other.poll(false));
    }
    assert_eq!((cores.take(), other.stats().coroutine_steps), (vec![1], 1));
    assert_eq!(aio::coroutines_in_use().0, 0);
}

//! What coroutines wait for: mutex, wait queue, event, time limit (CO, on top).
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Wake, Waker};

use crate::common::*;
use ironthread::aio::{self, AioContext, CoroutineHandle, Event, Mutex, TimedOut, WaitQueue};
use ironthread::arch;
use ironthread::arch::host::{self, clock};

fn spawn(
    ctx: &'static AioContext,
    future: impl Future<Output = ()> + Send + 'static,
) -> CoroutineHandle {
    ctx.spawn("waiter", future).unwrap()
}

fn run(ctx: &'static AioContext) {
    while ctx.poll(false) {}
}

#[test]
fn co_mutex_is_handed_on_first_come_first_served() {
    let (_core, ctx) = single();
    let log = log();
    let mutex: &'static Mutex<usize> = leak(Mutex::new(0));
    for n in 1..=4 {
        spawn(ctx, async move {
            for turn in 0..2 {
                let mut count = mutex.lock().await;
                *count += 1;
                log.push(10 * n + turn);
                // Held over a wait: the others come by and find it taken.
                aio::yield_now().await;
                assert!(mutex.try_lock().is_none());
            }
        });
    }
    run(ctx);
    // Whoever locks again at once queues behind all that wait.
    assert_eq!(log.take(), [10, 20, 30, 40, 11, 21, 31, 41]);
    assert!(!mutex.is_held());
    assert_eq!(*mutex.try_lock().expect("free at the end"), 8);
    assert_eq!(aio::coroutines_in_use().0, 0);
}

/// A mutex held by the test, and three coroutines that wait for it in order.
fn three_waiters() -> (
    &'static Mutex<()>,
    Option<aio::MutexGuard<'static, ()>>,
    [CoroutineHandle; 3],
    &'static Log,
    &'static AioContext,
) {
    let ctx = AioContext::current().expect("on a core");
    let log = log();
    let mutex: &'static Mutex<()> = leak(Mutex::new(()));
    let held = mutex.try_lock();
    let waiters = [1, 2, 3].map(|n| {
        spawn(ctx, async move {
            let _guard = mutex.lock().await;
            log.push(n);
        })
    });
    run(ctx);
    (mutex, held, waiters, log, ctx)
}

#[test]
fn co_mutex_a_cancelled_waiter_leaves_the_queue() {
    let (_core, _ctx) = single();
    let (mutex, held, waiters, log, ctx) = three_waiters();
    assert!(waiters[1].cancel());
    run(ctx);
    drop(held);
    run(ctx);
    assert_eq!(log.take(), [1, 3]);
    assert!(!mutex.is_held());
}

#[test]
fn co_mutex_a_waiter_cancelled_after_the_hand_over_passes_it_on() {
    let (_core, _ctx) = single();
    let (mutex, held, waiters, log, ctx) = three_waiters();
    // The lock is the first one's now, but it has not run yet.
    drop(held);
    assert!(mutex.is_held());
    assert!(waiters[0].cancel());
    run(ctx);
    assert_eq!(log.take(), [2, 3]);
    assert!(!mutex.is_held());
}

#[test]
fn co_wait_queue_wakes_in_order_and_remembers_nothing() {
    let (_core, ctx) = single();
    let log = log();
    let queue: &'static WaitQueue = leak(WaitQueue::new());
    assert!(!queue.wake_one(), "nobody waits");
    let waiters = [1, 2, 3, 4].map(|n| {
        spawn(ctx, async move {
            queue.wait().await;
            log.push(n);
        })
    });
    run(ctx);
    assert_eq!(log.take(), [], "a wake before the wait is not remembered");
    // A wake of the coroutine by others is none of the queue.
    assert!(waiters[0].wake());
    run(ctx);
    assert_eq!(log.take(), []);
    assert!(queue.wake_one());
    run(ctx);
    assert_eq!(log.take(), [1]);
    // Granted, then cancelled before it went on: the next one gets the wake.
    assert!(queue.wake_one());
    waiters[1].cancel();
    run(ctx);
    assert_eq!(log.take(), [3]);
    assert_eq!(queue.wake_all(), 1);
    run(ctx);
    assert_eq!(log.take(), [4]);
    assert!(queue.is_empty());
}

#[test]
fn co_wait_queue_wakes_all_that_wait_now_and_not_who_comes_back_meanwhile() {
    struct Again {
        queue: &'static WaitQueue,
        wakes: AtomicUsize,
        wait: std::sync::Mutex<Option<aio::Wait<'static>>>,
    }
    impl Again {
        fn look(self: &Arc<Self>) {
            // As a faster core would: it takes its turn, and waits again before the caller goes on.
            let waker = Waker::from(Arc::clone(self));
            let mut wait = self.wait.lock().unwrap();
            let old = wait.get_or_insert_with(|| self.queue.wait());
            if Pin::new(old)
                .poll(&mut std::task::Context::from_waker(&waker))
                .is_ready()
            {
                let mut new = self.queue.wait();
                let again = Pin::new(&mut new).poll(&mut std::task::Context::from_waker(&waker));
                assert!(again.is_pending());
                *wait = Some(new);
            }
        }
    }
    impl Wake for Again {
        fn wake(self: Arc<Self>) {
            assert!(add(&self.wakes) < 10, "woken again and again");
            self.look();
        }
    }
    let (_core, _ctx) = single();
    let queue: &'static WaitQueue = leak(WaitQueue::new());
    let waiters = [(); 3].map(|()| {
        Arc::new(Again {
            queue,
            wakes: AtomicUsize::new(0),
            wait: std::sync::Mutex::new(None),
        })
    });
    waiters.iter().for_each(Again::look);
    for round in 1..=2 {
        assert_eq!(queue.wake_all(), 3);
        assert!(waiters.iter().all(|waiter| get(&waiter.wakes) == round));
    }
}

#[test]
fn co_event_stays_set_until_cleared() {
    let (_core, ctx) = single();
    let log = log();
    let event: &'static Event = leak(Event::new());
    let wait = move |n| async move {
        event.wait().await;
        log.push(n);
    };
    spawn(ctx, wait(1));
    spawn(ctx, wait(2));
    run(ctx);
    event.set();
    // Cleared before they ran: they were let go already.
    event.clear();
    spawn(ctx, wait(3));
    run(ctx);
    assert_eq!(log.take(), [1, 2]);
    event.set();
    assert!(event.is_set());
    spawn(ctx, wait(4));
    run(ctx);
    assert_eq!(log.take(), [3, 4]);
}

#[test]
fn co_timeout_drops_its_future_at_the_deadline() {
    let (_core, ctx) = single();
    clock::manual(1_000);
    let log = log();
    let queue: &'static WaitQueue = leak(WaitQueue::new());
    let results: &'static std::sync::Mutex<Vec<Result<usize, TimedOut>>> =
        leak(std::sync::Mutex::new(vec![]));
    struct Dropped(&'static Log);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.push(7);
        }
    }
    let wait = move |n, deadline| async move {
        let result = aio::timeout(deadline, async move {
            let _dropped = Dropped(log);
            queue.wait().await;
            n
        })
        .await;
        results.lock().unwrap().push(result);
    };
    spawn(ctx, wait(1, arch::now_ns() + 5_000));
    spawn(ctx, wait(2, arch::now_ns() + 9_000));
    run(ctx);
    assert_eq!(ctx.stats().timers_armed, 2);
    clock::advance(5_000);
    run(ctx);
    assert_eq!(*results.lock().unwrap(), [Err(TimedOut)]);
    assert_eq!(log.take(), [7], "dropped once, at the deadline");
    // The one that gave up has left the queue, so this wake is the second one's.
    assert!(queue.wake_one());
    assert!(!queue.wake_one());
    run(ctx);
    assert_eq!(*results.lock().unwrap(), [Err(TimedOut), Ok(2)]);
    assert_eq!(log.take(), [7]);
    assert_eq!(ctx.stats().timers_in_use, 0, "the timers were given back");
}

#[test]
fn aio_multi_mutex_contended() {
    const CONTEXTS: usize = 5;
    const TURNS: usize = 2_000;
    let _watchdog = watchdog("aio_multi_mutex_contended");
    let _machine = host::machine(CONTEXTS + 1);
    let mutex: &'static Mutex<usize> = leak(Mutex::new(0));
    let (inside, total) = (count(), count());
    let contexts: Vec<_> = (1..=CONTEXTS).map(|_| leak_context("io")).collect();
    let threads: Vec<_> = (1..)
        .zip(&contexts)
        .map(|(core, ctx)| io_thread(core, ctx))
        .collect();
    let workers: Vec<_> = contexts
        .iter()
        .map(|ctx| {
            spawn(ctx, async move {
                for turn in 0..TURNS {
                    let mut sum = mutex.lock().await;
                    assert_eq!(inside.fetch_add(1, SeqCst), 0, "two hold one mutex");
                    *sum += 1;
                    if turn % 8 == 0 {
                        aio::yield_now().await;
                    }
                    inside.fetch_sub(1, SeqCst);
                    drop(sum);
                    total.fetch_add(1, SeqCst);
                }
            })
        })
        .collect();
    until(|| workers.iter().all(CoroutineHandle::is_finished));
    let sum: usize = *mutex.try_lock().expect("free at the end");
    assert_eq!(sum, AtomicUsize::load(total, SeqCst));
    assert_eq!(sum, CONTEXTS * TURNS);
    for ctx in contexts {
        aio::stop(ctx);
    }
    for thread in threads {
        thread.join().unwrap();
    }
}

//! The event loop on real threads: the lock, sleeping and waking, stopping, waiting for others.
mod common;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;

use common::*;
use ironthread::aio::{self, AioError, Callback, WorkResult};
use ironthread::arch::{self, host};
use ironthread::sync::ContextLock;

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
fn seed_3_mirror_another_core_gets_in_while_the_loop_waits() {
    let _watchdog = watchdog("seed_3");
    let _machine = host::machine(2);
    let ctx = leak_context("mirror");
    let _zero = host::enter_core(0);
    let sleeping = io_thread(1, ctx);
    until(|| ctx.stats().sleeps > 0);
    let (turns, kicks) = (ctx.stats().turns, arch::kicks(1));
    for _ in 0..100 {
        ctx.acquire();
        assert!(ctx.context_lock().is_held_by_me());
        ctx.release();
    }
    // Nobody woke the loop: no kick was sent to it (a wait may end on its own, then it waits again).
    assert_eq!((arch::kicks(1), ctx.stats().kicks), (kicks, 0));
    assert!(ctx.stats().turns - turns <= 1 + ctx.stats().sleeps);
    // While another core holds the lock, the loop's callbacks stay out.
    let ran = count();
    ctx.acquire();
    ctx.schedule_oneshot("callback", call(move |_| add(ran)))
        .unwrap();
    until(|| ctx.context_lock().queued() == 2);
    assert_eq!(get(ran), 0);
    ctx.release();
    until(|| get(ran) == 1);
    aio::stop(ctx);
    sleeping.join().unwrap();
    assert_eq!(ctx.context_lock().depth(), 0);
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
fn nfy_ping_pong_never_loses_a_wake_up() {
    let _watchdog = watchdog("nfy_ping_pong");
    let _machine = host::machine(2);
    let (ping, pong) = (leak_context("ping"), leak_context("pong"));
    let turns = count();
    const HAND_OFFS: usize = 200_000;
    let back = late();
    let there = late();
    let a = ping
        .bottom_half(
            "ping",
            call(move |_| {
                if add(turns) < HAND_OFFS {
                    bh_of(there).schedule();
                } else {
                    aio::stop(ping);
                    aio::stop(pong);
                }
            }),
        )
        .unwrap();
    let b = pong
        .bottom_half(
            "pong",
            call(move |_| {
                add(turns);
                bh_of(back).schedule();
            }),
        )
        .unwrap();
    set_bh(back, a);
    set_bh(there, b);
    a.schedule();
    let threads = [io_thread(0, ping), io_thread(1, pong)];
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
    assert!(get(turns) >= HAND_OFFS);
    assert!(ping.stats().sleeps > 0 && pong.stats().sleeps > 0);
}

#[test]
fn nfy_notifiers_and_timers_wake_a_sleeper() {
    let _watchdog = watchdog("nfy_notifiers");
    let _machine = host::machine(2);
    let ctx = leak_context("sleeper");
    let _zero = host::enter_core(0);
    let calls = count();
    let event = notifier();
    ctx.register(
        event,
        "event",
        call(move |_| {
            event.test_and_clear();
            add(calls);
        }),
        None,
    )
    .unwrap();
    let timer = ctx.timer("timer", call(move |_| add(calls))).unwrap();
    let never = ctx.timer("never", call(|_| ())).unwrap();
    never.arm_at(u64::MAX);
    let sleeping = io_thread(1, ctx);
    for n in (0..20_000).step_by(2) {
        event.set();
        until(|| get(calls) == n + 1);
        // Due at once, but armed from another core behind a later one: it became the first, so it wakes the loop.
        timer.arm_at(1);
        until(|| get(calls) == n + 2);
    }
    never.cancel();
    aio::stop(ctx);
    sleeping.join().unwrap();
}

#[test]
fn bh_many_senders_keep_their_own_order() {
    let _watchdog = watchdog("bh_many_senders");
    let _machine = host::machine(4);
    let ctx = leak_context("target");
    const SENDS: usize = 20_000;
    let last: &'static [AtomicUsize; 5] = leak([const { AtomicUsize::new(0) }; 5]);
    let target = io_thread(0, ctx);
    // Three cores and one thread that is no core.
    let senders: Vec<_> = (1..=4)
        .map(|sender| {
            thread::spawn(move || {
                let _core = (sender < 4).then(|| host::enter_core(sender));
                let bhs: Vec<_> = (0..8)
                    .map(|_| {
                        ctx.bottom_half(
                            "ordered",
                            Callback::new(
                                leak(move |n: usize| {
                                    last[n].fetch_add(1, SeqCst);
                                }),
                                sender,
                            ),
                        )
                        .unwrap()
                    })
                    .collect();
                let marks = log();
                let ordered: Vec<_> = (0..8)
                    .map(|n| {
                        ctx.bottom_half("mark", call(move |_| marks.push(n)))
                            .unwrap()
                    })
                    .collect();
                for round in 0..SENDS / 8 {
                    let before = last[sender].load(SeqCst);
                    bhs.iter().for_each(|bh| assert!(bh.schedule()));
                    until(|| last[sender].load(SeqCst) == before + 8);
                    if round % 50 == 0 {
                        ordered.iter().for_each(|bh| assert!(bh.schedule()));
                        let mut seen = vec![];
                        until(|| {
                            seen.extend(marks.take());
                            seen.len() == 8
                        });
                        assert_eq!(seen, [0, 1, 2, 3, 4, 5, 6, 7], "FIFO per sender");
                    }
                }
                bhs.into_iter().chain(ordered).for_each(|bh| bh.delete());
            })
        })
        .collect();
    senders
        .into_iter()
        .for_each(|sender| sender.join().unwrap());
    aio::stop(ctx);
    target.join().unwrap();
    assert!(last[1..].iter().all(|n| n.load(SeqCst) == SENDS));
    assert_eq!(ctx.stats().bottom_halves_in_use, 0);
}

#[test]
fn bh_3_one_record_scheduled_by_all_sees_every_write() {
    let _watchdog = watchdog("bh_3");
    let _machine = host::machine(4);
    let ctx = leak_context("shared");
    let written: &'static [AtomicUsize; 4] = leak([const { AtomicUsize::new(0) }; 4]);
    let seen: &'static [AtomicUsize; 4] = leak([const { AtomicUsize::new(0) }; 4]);
    let bh = ctx
        .bottom_half(
            "shared",
            call(move |_| {
                // Relaxed on purpose: `schedule` itself has to order these.
                for (seen, written) in seen.iter().zip(written) {
                    seen.store(written.load(std::sync::atomic::Ordering::Relaxed), SeqCst);
                }
            }),
        )
        .unwrap();
    let target = io_thread(0, ctx);
    let senders: Vec<_> = (1..4)
        .map(|core| {
            thread::spawn(move || {
                let _core = host::enter_core(core);
                for n in 1..=10_000 {
                    written[core].store(n, std::sync::atomic::Ordering::Relaxed);
                    bh.schedule();
                    if n % 64 == 0 {
                        until(|| seen[core].load(SeqCst) == n);
                    }
                }
                until(|| seen[core].load(SeqCst) == 10_000);
            })
        })
        .collect();
    senders
        .into_iter()
        .for_each(|sender| sender.join().unwrap());
    aio::stop(ctx);
    target.join().unwrap();
}

#[test]
fn iot_3_stop_races_with_the_first_iteration_and_is_idempotent() {
    let _watchdog = watchdog("iot_3");
    let _machine = host::machine(2);
    let _zero = host::enter_core(0);
    for _ in 0..300 {
        let ctx = leak_context("stopped");
        let looping = io_thread(1, ctx);
        aio::stop(ctx);
        aio::stop(ctx);
        looping.join().unwrap();
        assert!(!aio::is_running(ctx));
        aio::stop(ctx);
        // A late stop does not end the next run.
        let ran = count();
        let again = io_thread(1, ctx);
        until(|| aio::is_running(ctx));
        ctx.schedule_oneshot("alive", call(move |_| add(ran)))
            .unwrap();
        until(|| get(ran) == 1);
        aio::stop(ctx);
        again.join().unwrap();
    }
}

#[test]
fn iot_3_a_stop_sent_before_the_first_run_is_found_by_it() {
    let _machine = host::machine(2);
    let ctx = leak_context("early");
    aio::stop(ctx);
    let ran = count();
    ctx.schedule_oneshot("queued", call(move |_| add(ran)))
        .unwrap();
    io_thread(1, ctx).join().unwrap();
    assert_eq!(get(ran), 1, "what is in the same batch runs");
}

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
fn tpl_run_on_is_fifo_completes_at_home_and_can_be_cancelled_while_queued() {
    let _watchdog = watchdog("tpl");
    let _machine = host::machine(2);
    let main = attach(0, "main");
    let _zero = host::enter_core(0);
    let io = leak_context("io");
    let (ran, done) = (log(), log());
    let completion: aio::WorkDone = leak(move |n: usize, result: WorkResult| {
        assert_eq!(arch::current_core(), Some(0));
        done.push(
            n + if result == WorkResult::Cancelled {
                100
            } else {
                0
            },
        );
    });
    let handles: Vec<_> = (0..8)
        .map(|n| aio::run_on(io, call(move |_| ran.push(n)), completion, n).unwrap())
        .collect();
    assert!(handles[2].cancel() && !handles[2].cancel());
    assert!(handles[5].cancel());
    assert!(!main.poll(false), "nothing completes inside run_on");
    let looping = io_thread(1, io);
    let mut seen = vec![];
    aio::wait_while(|| {
        seen.extend(done.take());
        seen.len() < 8
    });
    assert_eq!(ran.take(), [0, 1, 3, 4, 6, 7]);
    assert_eq!(seen, [0, 1, 102, 3, 4, 105, 6, 7]);
    assert!(
        handles
            .iter()
            .all(|handle| handle.is_finished() && !handle.cancel())
    );
    aio::stop(io);
    looping.join().unwrap();
    let parked = leak_context("parked");
    let queued: Vec<_> =
        std::iter::from_fn(|| aio::run_on(parked, call(|_| ()), completion, 0).ok()).collect();
    assert_eq!(queued.len(), ironthread::config::ELSEWHERE);
    assert_eq!(
        aio::run_on(parked, call(|_| ()), completion, 0).err(),
        Some(AioError::Exhausted)
    );
    io_thread(1, {
        aio::stop(parked);
        parked
    })
    .join()
    .unwrap();
    while main.poll(false) {}
    assert_eq!(done.take().len(), queued.len());
}

#[test]
fn tpl_bh_15_a_completion_that_polls_reaches_the_completions_behind_it() {
    let _watchdog = watchdog("tpl_bh_15");
    let _machine = host::machine(1);
    let main = attach(0, "main");
    let _zero = host::enter_core(0);
    let done = log();
    let completion: aio::WorkDone = leak(move |n: usize, _: WorkResult| {
        if n == 0 {
            let mut seen = vec![];
            aio::wait_while(|| {
                seen.extend(done.take());
                seen.len() < 2
            });
            assert_eq!(seen, [1, 2]);
        }
        done.push(n);
    });
    for n in 0..3 {
        aio::run_on(main, call(|_| ()), completion, n).unwrap();
    }
    while main.poll(false) {}
    assert_eq!(done.take(), [0]);
}

#[test]
fn iot_3_a_second_stop_that_came_too_late_does_not_end_the_next_run() {
    let _watchdog = watchdog("iot_3");
    let _machine = host::machine(1);
    let main = attach(0, "main");
    let _zero = host::enter_core(0);
    aio::stop(main);
    // Runs in the same batch as the stop, behind it.
    main.schedule_oneshot("late stop", call(move |_| aio::stop(main)))
        .unwrap();
    aio::run_loop(main);
    let turns = count();
    let again = late();
    set_bh(
        again,
        main.bottom_half(
            "turns",
            call(move |_| {
                if add(turns) < 5 {
                    bh_of(again).schedule();
                } else {
                    aio::stop(main);
                }
            }),
        )
        .unwrap(),
    );
    bh_of(again).schedule();
    aio::run_loop(main);
    assert_eq!(get(turns), 5);
    bh_of(again).delete();
}

#[test]
fn aio_multi_lifecycle() {
    let _watchdog = watchdog("aio_multi_lifecycle");
    let _machine = host::machine(6);
    let _main = attach(0, "main");
    let _zero = host::enter_core(0);
    let contexts: Vec<_> = (1..6).map(|_| leak_context("multi")).collect();
    let threads: Vec<_> = contexts
        .iter()
        .enumerate()
        .map(|(n, ctx)| io_thread(n + 1, ctx))
        .collect();
    for (n, ctx) in contexts.iter().enumerate() {
        let id = leak(AtomicUsize::new(0));
        aio::run_and_wait(
            ctx,
            call(move |_| id.store(aio::AioContext::current().unwrap().core(), SeqCst)),
        )
        .unwrap();
        assert_eq!(id.load(SeqCst), n + 1);
    }
    contexts.iter().for_each(|ctx| aio::stop(ctx));
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
}

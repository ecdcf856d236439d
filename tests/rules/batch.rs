//! Batches of bottom halves: bounds, order, nesting (BH-14 to BH-22).
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;

use crate::common::*;
use ironthread::aio::{self, Callback};
use ironthread::arch::host;

#[test]
fn bh_14_order_is_fifo_and_a_batch_is_bounded() {
    let (_core, ctx) = single();
    let log = log();
    let (this, rounds) = (late(), count());
    let spinning = ctx
        .bottom_half(
            "again",
            call(move |_| {
                log.push(0);
                // Ends some time, so that an unbounded batch shows as a wrong order.
                if add(rounds) < 50 {
                    bh_of(this).schedule();
                }
            }),
        )
        .unwrap();
    set_bh(this, spinning);
    spinning.schedule();
    for n in 1..=3 {
        ctx.schedule_oneshot("n", call(move |_| log.push(n)))
            .unwrap();
    }
    assert!(ctx.poll(false));
    assert_eq!(log.take(), [0, 1, 2, 3]);
    assert!(ctx.poll(false));
    assert_eq!(log.take(), [0]);
}

#[test]
fn bh_15_nested_poll_runs_the_outer_rest_once_and_first() {
    let (_core, ctx) = single();
    let log = log();
    let ctx_ = ctx;
    ctx.schedule_oneshot(
        "outer",
        call(move |_| {
            log.push(1);
            ctx_.schedule_oneshot("new", call(move |_| log.push(4)))
                .unwrap();
            assert!(ctx_.poll(false));
            log.push(5);
        }),
    )
    .unwrap();
    for n in 2..=3 {
        ctx.schedule_oneshot("rest", call(move |_| log.push(n)))
            .unwrap();
    }
    assert!(ctx.poll(false));
    assert_eq!(log.take(), [1, 2, 3, 4, 5]);
    assert!(!ctx.poll(false));
}

#[test]
fn bh_15_batches_stay_in_order_across_lanes_and_levels() {
    // Core 1's entry is in the outer batch, core 0's in the nested one: the outer one comes first although its lane
    // has the higher number. Deeper than the kept batches, everything still runs exactly once.
    let (_machine, ctx) = stepped(2);
    let log = log();
    let _zero = host::enter_core(0);
    ctx.schedule_oneshot(
        "outer",
        call(move |_| {
            ctx.schedule_oneshot("inner", call(move |_| log.push(2)))
                .unwrap();
            ctx.poll(false);
        }),
    )
    .unwrap();
    {
        let _one = host::enter_core(1);
        ctx.schedule_oneshot("from 1", call(move |_| log.push(1)))
            .unwrap();
    }
    ctx.poll(false);
    assert_eq!(log.take(), [1, 2]);

    // The other way round: the outer rest is core 0's own, and what the nested poll finds new is core 1's.
    ctx.schedule_oneshot(
        "outer",
        call(move |_| {
            {
                let _one = host::enter_core(1);
                ctx.schedule_oneshot("from 1", call(move |_| log.push(2)))
                    .unwrap();
            }
            ctx.poll(false);
        }),
    )
    .unwrap();
    ctx.schedule_oneshot("rest", call(move |_| log.push(1)))
        .unwrap();
    ctx.poll(false);
    assert_eq!(log.take(), [1, 2]);

    let depth = count();
    let this = late();
    let bh = ctx
        .bottom_half(
            "deep",
            call(move |_| {
                let level = add(depth);
                if level < 20 {
                    bh_of(this).schedule();
                    ctx.schedule_oneshot("level", call(move |_| log.push(level)))
                        .unwrap();
                    ctx.poll(false);
                }
            }),
        )
        .unwrap();
    set_bh(this, bh);
    bh.schedule();
    while ctx.poll(false) {}
    let mut seen = log.take();
    seen.sort();
    assert_eq!(seen, (1..20).collect::<Vec<_>>());
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
fn bh_16_a_batch_is_never_run_by_another_core() {
    let (_machine, ctx) = stepped(2);
    let _zero = host::enter_core(0);
    let runs = count();
    ctx.schedule_oneshot(
        "inside",
        call(move |_| {
            ctx.schedule_oneshot("behind", call(move |_| add(runs)))
                .unwrap();
            let foreign = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let _one = host::enter_core(1);
                ctx.poll(false)
            }));
            assert!(foreign.is_err(), "another core may not nest here");
            assert_eq!(get(runs), 0);
        }),
    )
    .unwrap();
    assert!(ctx.poll(false));
    assert!(ctx.poll(false));
    assert_eq!(get(runs), 1);
}

#[test]
fn bh_17_order_is_that_of_scheduling_not_of_creation() {
    let (_core, ctx) = single();
    let log = log();
    let bhs: Vec<_> = (0..4)
        .map(|n| ctx.bottom_half("n", call(move |_| log.push(n))).unwrap())
        .collect();
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]] {
        order.iter().for_each(|&n| assert!(bhs[n].schedule()));
        assert!(ctx.poll(false));
        assert_eq!(log.take(), order);
    }
}

#[test]
fn bh_18_one_scheduled_by_an_earlier_one_of_the_pass_waits_for_the_next() {
    let (_core, ctx) = single();
    let log = log();
    let others = [late(), late()];
    // Created before and after the one that schedules them.
    let older = ctx.bottom_half("older", call(|_| log.push(1))).unwrap();
    let first = ctx
        .bottom_half(
            "first",
            call(move |_| {
                log.push(0);
                others.iter().for_each(|&other| {
                    bh_of(other).schedule();
                });
            }),
        )
        .unwrap();
    let newer = ctx.bottom_half("newer", call(|_| log.push(2))).unwrap();
    set_bh(others[0], older);
    set_bh(others[1], newer);
    first.schedule();
    assert!(ctx.poll(false));
    assert_eq!(log.take(), [0]);
    assert!(ctx.poll(false));
    assert_eq!(log.take(), [1, 2]);
}

#[test]
fn bh_19_a_deleted_one_is_reclaimed_when_reached_in_a_nested_poll_too() {
    let (_core, ctx) = single();
    let (old, new) = (count(), count());
    let other = late();
    ctx.schedule_oneshot(
        "outer",
        call(move |_| {
            bh_of(other).delete();
            assert_eq!(ctx.stats().bottom_halves_in_use, 1);
            assert!(!ctx.poll(false));
            assert_eq!(ctx.stats().bottom_halves_in_use, 0);
            // Takes the same record; the outer pass goes on behind it.
            let reused = ctx.bottom_half("new", call(move |_| add(new))).unwrap();
            assert!(reused.schedule());
        }),
    )
    .unwrap();
    let bh = ctx.bottom_half("old", call(move |_| add(old))).unwrap();
    set_bh(other, bh);
    bh.schedule();
    assert!(ctx.poll(false));
    assert_eq!((get(old), get(new)), (0, 0));
    assert!(ctx.poll(false));
    assert_eq!((get(old), get(new)), (0, 1));
}

#[test]
fn bh_20_only_a_normal_run_is_progress() {
    let (_core, ctx) = single();
    let runs = count();
    let [idle, cancelled, deleted, normal] = ["idle", "cancelled", "deleted", "normal"]
        .map(|name| ctx.bottom_half(name, call(move |_| add(runs))).unwrap());
    idle.schedule_idle();
    cancelled.schedule();
    cancelled.cancel();
    deleted.schedule();
    deleted.delete();
    assert!(!ctx.poll(false));
    assert_eq!(get(runs), 1);
    idle.schedule_idle();
    normal.schedule();
    assert!(ctx.poll(false));
    assert_eq!(get(runs), 3);
    assert!(!ctx.poll(false));
}

#[test]
fn bh_21_the_rest_of_an_outer_batch_keeps_a_nested_poll_awake() {
    let (_core, ctx) = single();
    let log = log();
    ctx.schedule_oneshot(
        "outer",
        call(move |_| {
            assert!(ctx.poll(true));
            log.push(2);
        }),
    )
    .unwrap();
    ctx.schedule_oneshot("rest", call(move |_| log.push(1)))
        .unwrap();
    let sleeps = ctx.stats().sleeps;
    assert!(ctx.poll(false));
    assert_eq!((log.take(), ctx.stats().sleeps), (vec![1, 2], sleeps));
}

#[test]
fn bh_22_those_that_only_exist_are_not_looked_at() {
    let (_core, ctx) = single();
    let runs = count();
    let bhs: Vec<_> =
        std::iter::from_fn(|| ctx.bottom_half("n", call(move |_| add(runs))).ok()).collect();
    let sleeps = ctx.stats().sleeps;
    assert!(!ctx.poll(true));
    bhs[bhs.len() - 1].schedule();
    assert!(ctx.poll(true));
    let stats = ctx.stats();
    assert_eq!(
        (get(runs), stats.bottom_halves, stats.sleeps),
        (1, 1, sleeps + 1)
    );
    bhs.into_iter().for_each(|bh| bh.delete());
}

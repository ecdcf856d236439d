//! Bottom halves (BH).
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;

use crate::common::*;
use ironthread::aio::{self, AioError, Callback};
use ironthread::arch::host::{self, clock};
use ironthread::config;

#[test]
fn aio_bh_schedule() {
    let (_core, ctx) = single();
    let runs = count();
    let bh = ctx.bottom_half("count", call(|_| add(runs))).unwrap();
    assert!(bh.schedule());
    assert_eq!(get(runs), 0);
    assert!(ctx.poll(true));
    assert_eq!(get(runs), 1);
    assert!(!ctx.poll(false));
    assert_eq!(get(runs), 1);
}

#[test]
fn aio_bh_schedule10() {
    let (_core, ctx) = single();
    let runs = count();
    let this = late();
    let bh = ctx
        .bottom_half(
            "ten",
            call(move |_| {
                if add(runs) < 10 {
                    bh_of(this).schedule();
                }
            }),
        )
        .unwrap();
    set_bh(this, bh);
    bh.schedule();
    assert!(ctx.poll(false));
    assert_eq!(get(runs), 1);
    assert!(ctx.poll(true));
    assert_eq!(get(runs), 2);
    while get(runs) < 10 {
        assert!(ctx.poll(true));
    }
    assert!(!ctx.poll(false));
    assert_eq!(get(runs), 10);
}

#[test]
fn aio_bh_cancel() {
    let (_core, ctx) = single();
    let runs = count();
    let bh = ctx.bottom_half("cancelled", call(|_| add(runs))).unwrap();
    bh.schedule();
    bh.cancel();
    assert!(!ctx.poll(false));
    bh.delete();
    assert!(!ctx.poll(false));
    assert_eq!(get(runs), 0);
}

#[test]
fn aio_bh_delete() {
    let (_core, ctx) = single();
    let runs = count();
    let bh = ctx.bottom_half("deleted", call(|_| add(runs))).unwrap();
    bh.schedule();
    bh.delete();
    assert_eq!(ctx.stats().bottom_halves_in_use, 1, "still in its lane");
    assert!(!ctx.poll(false));
    assert_eq!(get(runs), 0);
    assert_eq!(ctx.stats().bottom_halves_in_use, 0);
}

#[test]
fn aio_bh_callback_delete_one() {
    let (_core, ctx) = single();
    let runs = count();
    let this = late();
    let bh = ctx
        .bottom_half(
            "own end",
            call(move |_| {
                add(runs);
                bh_of(this).delete();
            }),
        )
        .unwrap();
    set_bh(this, bh);
    bh.schedule();
    assert!(ctx.poll(true));
    assert_eq!(get(runs), 1);
    assert!(!bh.schedule(), "the handle is stale");
    assert!(!ctx.poll(false));
    assert_eq!(ctx.stats().bottom_halves_in_use, 0);
}

#[test]
fn bh_8_cancelled_and_scheduled_again_keeps_its_place() {
    let (_core, ctx) = single();
    let log = log();
    let first = ctx.bottom_half("1", call(|_| log.push(1))).unwrap();
    let second = ctx.bottom_half("2", call(|_| log.push(2))).unwrap();
    first.schedule();
    second.schedule();
    first.cancel();
    first.schedule();
    assert!(ctx.poll(false));
    assert_eq!(log.take(), [1, 2]);
}

#[test]
fn bh_10_delete_other_from_callback() {
    let (_core, ctx) = single();
    let runs = count();
    let other = late();
    let first = ctx
        .bottom_half("first", call(move |_| bh_of(other).delete()))
        .unwrap();
    let second = ctx.bottom_half("second", call(|_| add(runs))).unwrap();
    set_bh(other, second);
    first.schedule();
    second.schedule();
    assert!(ctx.poll(false));
    assert_eq!(get(runs), 0);
}

#[test]
fn bh_5_idle_is_no_progress_and_bounds_the_wait() {
    let (_core, ctx) = single();
    clock::manual(1_000);
    let runs = count();
    let bh = ctx.bottom_half("idle", call(|_| add(runs))).unwrap();
    bh.schedule_idle();
    assert!(!ctx.poll(false), "idle is no progress");
    assert_eq!(get(runs), 1);
    bh.schedule_idle();
    let sleeps = ctx.stats().sleeps;
    assert!(!ctx.poll(true));
    assert_eq!(
        (get(runs), ctx.stats().sleeps),
        (2, sleeps + 1),
        "an idle one lets the loop sleep"
    );
    bh.schedule();
    assert!(ctx.poll(true));
    assert_eq!(ctx.stats().sleeps, sleeps + 1, "a normal one does not");
}

#[test]
fn bh_6_normal_wins_over_idle_in_both_orders() {
    let (_core, ctx) = single();
    let bh = ctx.bottom_half("both", call(|_| ())).unwrap();
    bh.schedule_idle();
    bh.schedule();
    assert!(ctx.poll(false));
    bh.schedule();
    bh.schedule_idle();
    assert!(ctx.poll(false));
}

#[test]
fn bh_14_order_is_fifo_and_a_batch_is_bounded() {
    let (_core, ctx) = single();
    let log = log();
    let this = late();
    let spinning = ctx
        .bottom_half(
            "again",
            call(move |_| {
                log.push(0);
                bh_of(this).schedule();
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
fn bh_7_oneshots_are_exhausted_with_an_error_and_reserved_ones_are_left() {
    let (_core, ctx) = single();
    let runs = count();
    let usable = config::ONESHOTS - config::ONESHOT_RESERVED;
    for _ in 0..usable {
        ctx.schedule_oneshot("n", call(|_| add(runs))).unwrap();
    }
    assert_eq!(
        ctx.schedule_oneshot("one more", call(|_| add(runs))),
        Err(AioError::Exhausted)
    );
    for _ in 0..config::ONESHOT_RESERVED {
        ctx.schedule_oneshot_reserved("drain", call(|_| add(runs)))
            .unwrap();
    }
    assert_eq!(
        ctx.schedule_oneshot_reserved("drain", call(|_| ())),
        Err(AioError::Exhausted)
    );
    assert!(ctx.poll(false));
    assert_eq!(get(runs), config::ONESHOTS);
    assert_eq!(ctx.stats().oneshots_in_use, 0);
    ctx.schedule_oneshot("again", call(|_| add(runs))).unwrap();
    assert!(ctx.poll(false));
}

#[test]
fn bh_7_a_full_pool_lets_each_callback_schedule_the_next() {
    let (_core, ctx) = single();
    let runs = count();
    for _ in 0..config::ONESHOTS - config::ONESHOT_RESERVED {
        ctx.schedule_oneshot(
            "chain",
            call(move |_| {
                add(runs);
                ctx.schedule_oneshot("next", call(|_| add(runs))).unwrap();
            }),
        )
        .unwrap();
    }
    while ctx.poll(false) {}
    assert_eq!(get(runs), 2 * (config::ONESHOTS - config::ONESHOT_RESERVED));
}

#[test]
fn bh_handles_are_checked_by_generation() {
    let (_core, ctx) = single();
    let (old, new) = (count(), count());
    let handle = ctx.bottom_half("old", call(|_| add(old))).unwrap();
    handle.delete();
    let reused = ctx.bottom_half("new", call(|_| add(new))).unwrap();
    assert!(!handle.schedule());
    handle.cancel();
    handle.delete();
    assert!(reused.schedule());
    handle.cancel();
    assert!(ctx.poll(false));
    assert_eq!((get(old), get(new)), (0, 1));
    let mut all = vec![reused];
    while let Ok(bh) = ctx.bottom_half("fill", call(|_| ())) {
        all.push(bh);
    }
    assert_eq!(all.len(), config::BOTTOM_HALVES);
    assert!(
        all.iter().all(|bh| bh.schedule()),
        "every record fits its lane"
    );
    assert!(ctx.poll(false));
    all.into_iter().for_each(|bh| bh.delete());
    assert_eq!(ctx.stats().bottom_halves_in_use, 0);
}

#[test]
fn bh_13_queued_ones_are_listed_by_name() {
    let (_core, ctx) = single();
    ctx.schedule_oneshot("leak a", call(|_| ())).unwrap();
    let bh = ctx.bottom_half("leak b", call(|_| ())).unwrap();
    bh.schedule();
    let mut names = vec![];
    ctx.for_each_queued(|name| names.push(name));
    assert_eq!(names, ["leak a", "leak b"]);
    while ctx.poll(false) {}
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

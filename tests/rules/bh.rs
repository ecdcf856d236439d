//! Bottom halves (BH).
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;

use crate::common::*;
use ironthread::aio::{self, AioError};
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
fn bh_1_scheduling_queues_once_and_wakes_from_anywhere() {
    let (_machine, ctx) = stepped(2);
    let _zero = host::enter_core(0);
    let runs = count();
    let bh = ctx.bottom_half("woken", call(|_| add(runs))).unwrap();
    for outsider in [false, true] {
        let kicks = ctx.stats().kicks;
        during_wait(move || {
            let twice = move || {
                assert!(bh.schedule());
                assert!(bh.schedule());
            };
            if outsider {
                on_no_core(twice);
            } else {
                let _one = host::enter_core(1);
                twice();
            }
        });
        assert!(ctx.poll(true), "what came during the wait runs after it");
        assert_eq!(ctx.stats().kicks, kicks + 1, "outsider: {outsider}");
    }
    assert_eq!(get(runs), 2);
    assert!(!ctx.poll(false));
}

#[test]
fn bh_2_twice_before_the_run_is_one_and_inside_is_one_more_in_the_next_batch() {
    let (_core, ctx) = single();
    let runs = count();
    let this = late();
    let bh = ctx
        .bottom_half(
            "again",
            call(move |_| {
                if add(runs) == 1 {
                    bh_of(this).schedule();
                    bh_of(this).schedule();
                }
            }),
        )
        .unwrap();
    set_bh(this, bh);
    bh.schedule();
    bh.schedule();
    assert!(ctx.poll(false));
    assert_eq!(get(runs), 1);
    assert!(ctx.poll(false));
    assert_eq!(get(runs), 2);
    assert!(!ctx.poll(false));
}

#[test]
fn bh_4_flags_are_cleared_before_the_callback() {
    let (_machine, ctx) = stepped(2);
    let _zero = host::enter_core(0);
    let runs = count();
    let this = late();
    let bh = ctx
        .bottom_half(
            "met",
            call(move |_| {
                assert!(!bh_of(this).is_scheduled());
                if add(runs) == 1 {
                    let _one = host::enter_core(1);
                    bh_of(this).schedule();
                }
            }),
        )
        .unwrap();
    set_bh(this, bh);
    bh.schedule();
    assert!(ctx.poll(false));
    assert!(
        bh.is_scheduled(),
        "the schedule during the callback is kept"
    );
    assert!(ctx.poll(false));
    assert_eq!(get(runs), 2);
}

#[test]
fn bh_5_idle_bounds_the_wait_to_10_ms_and_wakes_from_another_core() {
    let (_machine, ctx) = stepped(2);
    let _zero = host::enter_core(0);
    clock::manual(1_000);
    let bh = ctx.bottom_half("idle", call(|_| ())).unwrap();
    bh.schedule_idle();
    assert!(!ctx.poll(true));
    assert_eq!(slept_until(0), 10_001_000);
    during_wait(move || {
        let _one = host::enter_core(1);
        bh.schedule_idle();
    });
    assert!(!ctx.poll(true));
    assert_eq!((slept_until(0), ctx.stats().kicks), (u64::MAX, 1));
}

#[test]
fn bh_9_delete_cancels_and_frees_when_reached() {
    let (_core, ctx) = single();
    let runs = count();
    let [queued, unqueued] =
        ["queued", "unqueued"].map(|name| ctx.bottom_half(name, call(move |_| add(runs))).unwrap());
    queued.schedule();
    queued.delete();
    unqueued.delete();
    assert_eq!(ctx.stats().bottom_halves_in_use, 1, "still in its lane");
    assert!(!queued.schedule() && !queued.is_scheduled());
    assert!(!ctx.poll(false));
    assert_eq!((get(runs), ctx.stats().bottom_halves_in_use), (0, 0));
}

#[test]
#[should_panic(expected = "old returned with other context locks")]
fn bh_11_the_name_outlives_the_record() {
    let (_core, ctx) = single();
    let this = late();
    let bh = ctx
        .bottom_half(
            "old",
            call(move |_| {
                bh_of(this).delete();
                // Takes the freed record while the callback still runs.
                assert!(ctx.bottom_half("new", call(|_| ())).unwrap().schedule());
                ctx.acquire();
            }),
        )
        .unwrap();
    set_bh(this, bh);
    bh.schedule();
    ctx.poll(false);
}

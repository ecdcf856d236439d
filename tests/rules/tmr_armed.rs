//! Timers beside 1,000 others that are armed (TMR).

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use crate::common::*;
use ironthread::aio::{AioContext, AioError, Timer, trace};
use ironthread::arch;
use ironthread::arch::host::{self, clock};

const FAR: u64 = 1_000_000_000;

/// 1,000 armed timers that are not due during a test.
fn thousand(ctx: &'static AioContext) -> Vec<Timer> {
    (0..1_000)
        .map(|n| {
            let timer = ctx
                .timer("far", call(|_| panic!("a far timer fired")))
                .unwrap();
            assert!(timer.arm_at(FAR + n % 7));
            timer
        })
        .collect()
}

/// What core 1 does while core 0 waits; once.
fn while_waiting(f: impl Fn() + Sync + 'static) {
    let calls = count();
    host::on_wait(Some(leak(move || {
        if add(calls) == 1 {
            let _one = host::enter_core(1);
            f();
        }
    })));
}

#[test]
fn tmr_3_arming_notifies_only_when_it_became_the_first() {
    let (_machine, ctx) = stepped(2);
    clock::manual(0);
    let _zero = host::enter_core(0);
    thousand(ctx);
    let timer = |name| ctx.timer(name, call(|_| ())).unwrap();
    let (a, b, c) = (timer("a"), timer("b"), timer("c"));
    let kicks = move || ctx.stats().kicks;
    while_waiting(move || {
        let step = |what: &str, arm: &dyn Fn() -> bool, expected: u64| {
            let before = kicks();
            assert!(arm());
            assert_eq!(kicks() - before, expected, "{what}");
        };
        step("behind the others", &|| a.arm_at(2 * FAR), 0);
        step("the new first", &|| b.arm_at(1_000), 1);
        step("behind the first", &|| c.arm_at(1_001), 0);
        step("equal to the first", &|| c.arm_at(1_000), 0);
        step("re-armed later", &|| b.arm_at(3_000), 0);
        step("anticipated to later", &|| a.anticipate(3 * FAR), 0);
        step("anticipated behind the first", &|| a.anticipate(2_000), 0);
        step("anticipated to the front", &|| a.anticipate(500), 1);
        step("re-armed to now", &|| b.arm_at(arch::now_ns()), 1);
        assert_eq!(
            [a, b, c].map(|timer| timer.deadline_ns()),
            [Some(500), Some(0), Some(1_000)]
        );
    });
    assert!(ctx.poll(true), "what was armed during the wait is seen");
    assert_eq!((ctx.stats().timers, ctx.stats().timers_armed), (1, 1_002));
}

#[test]
fn tmr_3_the_earliest_deadline_clamps_to_the_past() {
    let (_core, ctx) = single();
    clock::manual(0);
    thousand(ctx);
    let fires = count();
    let timer = ctx.timer("zero", call(|_| add(fires))).unwrap();
    timer.arm_at(0);
    let sleeps = ctx.stats().sleeps;
    assert!(ctx.poll(true));
    assert_eq!((get(fires), ctx.stats().sleeps), (1, sleeps));
}

#[test]
fn tmr_4_deleting_is_idempotent_and_does_not_notify() {
    let (_machine, ctx) = stepped(2);
    clock::manual(0);
    let _zero = host::enter_core(0);
    thousand(ctx);
    let runs = count();
    let this = late_timer();
    let first = ctx
        .timer(
            "first",
            call(move |_| {
                add(runs);
                // From another core while it runs: returns at once, without effect.
                let _one = host::enter_core(1);
                timer_of(this).cancel();
                timer_of(this).cancel();
                timer_of(this).delete().unwrap();
            }),
        )
        .unwrap();
    set_timer(this, first);
    first.arm_at(10);
    while_waiting(move || {
        first.cancel();
        first.cancel();
        assert_eq!(first.deadline_ns(), None);
    });
    clock::manual(5);
    assert!(!ctx.poll(true), "it may wake too early, but nothing fires");
    clock::manual(20);
    assert!(!ctx.poll(false));
    assert_eq!((get(runs), ctx.stats().kicks), (0, 0));
    first.arm_at(20);
    assert!(ctx.poll(false));
    assert_eq!((get(runs), ctx.stats().timers_armed), (1, 1_000));
    assert_eq!(first.delete(), Err(AioError::Stale));
    first.cancel();
}

#[test]
fn tmr_5_pending_from_arming_until_just_before_the_callback() {
    let (_core, ctx) = single();
    clock::manual(0);
    thousand(ctx);
    let this = late_timer();
    let runs = count();
    let timer = ctx
        .timer(
            "pending",
            call(move |_| {
                add(runs);
                assert!(!timer_of(this).is_pending(), "not in its own callback");
            }),
        )
        .unwrap();
    set_timer(this, timer);
    assert!(!timer.is_pending());
    timer.arm_at(10);
    assert!(timer.is_pending());
    clock::manual(11);
    assert!(timer.is_pending(), "due, but not run");
    assert_eq!(timer.delete(), Err(AioError::Busy));
    assert!(ctx.poll(false));
    assert!(!timer.is_pending());
    assert_eq!((get(runs), timer.delete()), (1, Ok(())));
}

#[test]
fn tmr_6_the_clock_is_sampled_once_a_run() {
    let (_core, ctx) = single();
    clock::manual(10);
    thousand(ctx);
    let log = log();
    let slow = ctx
        .timer(
            "slow",
            call(move |_| {
                log.push(1);
                clock::manual(30);
            }),
        )
        .unwrap();
    let next = ctx.timer("next", call(move |_| log.push(2))).unwrap();
    slow.arm_at(10);
    next.arm_at(20);
    assert!(ctx.poll(false));
    assert_eq!(log.take(), [1], "it became due during the run");
    assert!(ctx.poll(false));
    assert_eq!(log.take(), [2]);
}

#[test]
fn tmr_7_rearmed_to_now_fires_in_the_next_run() {
    let (_core, ctx) = single();
    clock::manual(10);
    thousand(ctx);
    let runs = count();
    let this = late_timer();
    let timer = ctx
        .timer(
            "again",
            call(move |_| {
                if add(runs) < 3 {
                    // The clock has not moved: a coarse counter.
                    timer_of(this).arm_at(arch::now_ns());
                }
            }),
        )
        .unwrap();
    set_timer(this, timer);
    timer.arm_at(10);
    for n in 1..=3 {
        assert!(ctx.poll(true));
        assert_eq!(get(runs), n, "one a run");
    }
    assert!(!ctx.poll(false));
}

#[test]
fn tmr_8_a_deadline_equal_to_now_is_due_everywhere() {
    let (_core, ctx) = single();
    clock::manual(99);
    thousand(ctx);
    let runs = count();
    let timer = ctx.timer("exact", call(|_| add(runs))).unwrap();
    timer.arm_at(100);
    assert!(!ctx.poll(false));
    clock::manual(100);
    let sleeps = ctx.stats().sleeps;
    assert!(ctx.poll(true));
    assert_eq!((get(runs), ctx.stats().sleeps), (1, sleeps), "no wait");
}

#[test]
fn tmr_9_the_wait_ends_at_the_first_deadline() {
    let (_machine, ctx) = stepped(2);
    clock::manual(0);
    let _zero = host::enter_core(0);
    let waits_until = || {
        let mut text = String::new();
        trace::dump(0, &mut text, 64).unwrap();
        let line = text.lines().rev().find(|line| line.contains("sleep"));
        let hex = line.unwrap().rsplit("0x").next().unwrap();
        u64::from_str_radix(hex, 16).unwrap()
    };
    assert!(!ctx.poll(true));
    assert_eq!(waits_until(), u64::MAX, "nothing armed");
    thousand(ctx);
    assert!(!ctx.poll(true));
    assert_eq!(waits_until(), FAR);
    let timer = ctx.timer("first", call(|_| ())).unwrap();
    timer.arm_at(5_000);
    let seen = leak(AtomicUsize::new(0));
    while_waiting(move || {
        // After the loop has computed its deadline.
        timer.arm_at(4_000);
        seen.store(ctx.stats().kicks as usize, SeqCst);
    });
    assert!(!ctx.poll(true));
    assert_eq!((waits_until(), seen.load(SeqCst)), (5_000, 1));
    timer.cancel();
    assert!(!ctx.poll(true));
    assert_eq!(waits_until(), FAR);
}

#[test]
fn tmr_12_arming_moves_no_time() {
    let (_core, ctx) = single();
    clock::manual(77);
    let timers = thousand(ctx);
    for timer in &timers {
        timer.arm_at(FAR - 1);
        timer.anticipate(FAR - 2);
        timer.cancel();
    }
    assert_eq!((arch::now_ns(), ctx.stats().turns), (77, 0));
}

#[test]
fn tmr_13_a_due_timer_waits_for_the_poll() {
    let (_core, ctx) = single();
    clock::manual(0);
    let runs = count();
    for n in 0..1_000 {
        let timer = ctx.timer("due", call(|_| add(runs))).unwrap();
        timer.arm_at(n);
    }
    clock::manual(5_000);
    let last = ctx.timer("last", call(|_| add(runs))).unwrap();
    last.arm_at(0);
    assert_eq!(get(runs), 0);
    assert!(ctx.poll(false));
    assert_eq!(get(runs), 1_001);
    assert!(!ctx.poll(false));
}

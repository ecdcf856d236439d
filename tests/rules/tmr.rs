//! Timers (TMR).

use crate::common::*;
use ironthread::aio::AioError;
use ironthread::arch::host::clock;
use ironthread::config;

#[test]
fn aio_timer_schedule() {
    let (_core, ctx) = single();
    clock::manual(1_000);
    let fires = count();
    let this = late_timer();
    let timer = ctx
        .timer(
            "tick",
            call(move |_| {
                if add(fires) == 1 {
                    timer_of(this).arm_at(3_000);
                }
            }),
        )
        .unwrap();
    set_timer(this, timer);
    timer.arm_at(2_000);
    assert!(!ctx.poll(false));
    clock::manual(2_500);
    assert_eq!(get(fires), 0, "no poll, no fire (TMR-13)");
    assert!(ctx.poll(false));
    assert_eq!(get(fires), 1);
    assert!(!ctx.poll(false));
    clock::manual(3_000);
    assert!(
        ctx.poll(true),
        "a deadline equal to now has been reached (TMR-8)"
    );
    assert_eq!(get(fires), 2);
    assert!(!timer.is_pending());
}

#[test]
fn tmr_2_equal_deadlines_fire_in_the_order_of_arming() {
    let (_core, ctx) = single();
    clock::manual(0);
    let log = log();
    let timers: Vec<_> = (0..100)
        .map(|n| ctx.timer("n", call(move |_| log.push(n))).unwrap())
        .collect();
    for timer in timers.iter().rev() {
        timer.arm_at(50);
    }
    // Armed anew: now the last one.
    timers[99].arm_at(50);
    timers[7].arm_at(49);
    clock::manual(50);
    assert!(ctx.poll(false));
    let mut expected = vec![7];
    expected.extend((0..99).rev().filter(|n| *n != 7));
    expected.push(99);
    assert_eq!(log.take(), expected);
    timers.into_iter().for_each(|timer| timer.delete().unwrap());
}

#[test]
fn tmr_3_anticipate_is_never_later() {
    let (_core, ctx) = single();
    clock::manual(0);
    let timer = ctx.timer("t", call(|_| ())).unwrap();
    timer.anticipate(100);
    assert_eq!(timer.deadline_ns(), Some(100));
    timer.anticipate(200);
    assert_eq!(timer.deadline_ns(), Some(100));
    timer.anticipate(50);
    assert_eq!(timer.deadline_ns(), Some(50));
    assert_eq!(timer.delete(), Err(AioError::Busy), "armed");
    timer.cancel();
    timer.cancel();
    assert!(!timer.is_pending());
    assert_eq!(timer.delete(), Ok(()));
    assert_eq!(timer.delete(), Err(AioError::Stale));
    assert!(!timer.arm_at(1));
}

#[test]
fn tmr_6_7_callbacks_rearm_to_now_and_delete_others() {
    let (_core, ctx) = single();
    clock::manual(10);
    let log = log();
    let (first, second, third) = (late_timer(), late_timer(), late_timer());
    let a = ctx
        .timer(
            "a",
            call(move |_| {
                log.push(1);
                timer_of(first).arm_at(0);
                timer_of(second).cancel();
                timer_of(second).delete().unwrap();
                timer_of(third).arm_at(99);
            }),
        )
        .unwrap();
    let b = ctx.timer("b", call(move |_| log.push(2))).unwrap();
    let c = ctx.timer("c", call(move |_| log.push(3))).unwrap();
    let d = ctx.timer("d", call(move |_| log.push(4))).unwrap();
    set_timer(first, a);
    set_timer(second, b);
    set_timer(third, c);
    for timer in [a, b, c, d] {
        timer.arm_at(10);
    }
    assert!(ctx.poll(false));
    assert_eq!(
        log.take(),
        [1, 4],
        "re-armed to the past: next run; cancelled while due: never"
    );
    assert_eq!(ctx.stats().timers_armed, 2);
    a.cancel();
    c.cancel();
}

#[test]
fn tmr_nested_poll_continues_the_outer_runs_list() {
    let (_core, ctx) = single();
    clock::manual(10);
    let log = log();
    let a = ctx
        .timer(
            "a",
            call(move |_| {
                log.push(1);
                assert!(ctx.poll(true));
                log.push(3);
            }),
        )
        .unwrap();
    let b = ctx.timer("b", call(move |_| log.push(2))).unwrap();
    a.arm_at(5);
    b.arm_at(6);
    assert!(ctx.poll(false));
    assert_eq!(log.take(), [1, 2, 3]);
}

#[test]
fn tmr_the_heap_agrees_with_a_sorted_list() {
    let (_core, ctx) = single();
    clock::manual(0);
    let log = log();
    let timers: Vec<_> = (0..config::TIMERS)
        .map(|n| ctx.timer("n", call(move |_| log.push(n))).unwrap())
        .collect();
    assert_eq!(
        ctx.timer("one more", call(|_| ())).err(),
        Some(AioError::Exhausted)
    );
    let mut model: Vec<(u64, u64, usize)> = vec![];
    let mut random = 0x9E37_79B9_7F4A_7C15u64;
    for sequence in 0..20_000 {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let index = (random >> 33) as usize % timers.len();
        model.retain(|entry| entry.2 != index);
        if random >> 60 == 0 {
            timers[index].cancel();
        } else {
            let deadline = 1 + (random >> 20) % 500;
            timers[index].arm_at(deadline);
            model.push((deadline, sequence, index));
        }
    }
    clock::manual(1_000);
    ctx.poll(false);
    model.sort();
    assert_eq!(
        log.take(),
        model.iter().map(|entry| entry.2).collect::<Vec<_>>()
    );
    timers.into_iter().for_each(|timer| timer.delete().unwrap());
}

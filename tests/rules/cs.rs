//! The clean-slate rules that the event core itself shows (CS).
use std::thread;

use crate::common::*;
use ironthread::aio::{self, trace};
use ironthread::arch::host::{self, clock};
use ironthread::sync::ContextLock;

#[test]
fn cs_7_a_bottom_half_that_schedules_itself_starves_nothing() {
    let (_core, ctx) = single();
    clock::manual(10);
    let order = log();
    let this = late();
    let greedy = ctx
        .bottom_half(
            "greedy",
            call(move |_| {
                order.push(0);
                bh_of(this).schedule();
            }),
        )
        .unwrap();
    set_bh(this, greedy);
    greedy.schedule();
    let event = notifier();
    on_event(ctx, event, move |_| order.push(1));
    event.set();
    ctx.timer("timer", call(move |_| order.push(2)))
        .unwrap()
        .arm_at(10);
    assert!(ctx.poll(true));
    assert_eq!(order.take(), [0, 1, 2]);
    greedy.delete();
    ctx.unregister(event);
}

#[test]
fn cs_15_stop_keeps_its_place_among_the_messages() {
    let (_core, ctx) = single();
    host::on_wait(Some(leak(|| panic!("slept although a stop was sent"))));
    let order = log();
    // Before the first turn, and twice.
    ctx.schedule_oneshot("before", call(move |_| order.push(1)))
        .unwrap();
    aio::stop(ctx);
    aio::stop(ctx);
    aio::run_loop(ctx);
    assert_eq!(order.take(), [1]);
    assert!(!aio::is_running(ctx));
    // After it has stopped: nothing is left over for the next run.
    aio::stop(ctx);
    ctx.schedule_oneshot(
        "again",
        call(move |_| {
            order.push(2);
            ctx.schedule_oneshot(
                "next batch",
                call(move |_| {
                    order.push(3);
                    aio::stop(ctx);
                }),
            )
            .unwrap();
        }),
    )
    .unwrap();
    aio::run_loop(ctx);
    assert_eq!(order.take(), [2, 3]);
}

#[test]
fn cs_19_the_last_events_of_a_core_can_be_dumped() {
    let (_core, ctx) = single();
    clock::manual(3_000_001);
    ctx.poll(true);
    let bh = ctx.bottom_half("traced", call(|_| ())).unwrap();
    bh.schedule();
    ctx.timer("timer", call(|_| ())).unwrap().arm_at(5);
    ctx.poll(true);
    ctx.poll(true);
    let mut text = String::new();
    trace::dump(0, &mut text, 6).unwrap();
    let words: Vec<_> = text
        .lines()
        .map(|line| line.split(' ').nth(4).unwrap())
        .collect();
    let wanted = ["wake", "schedule", "run", "timer", "sleep", "wake"];
    assert_eq!(words, wanted, "{text}");
    // The clock is as the loop last read it: for its timers.
    assert!(
        text.lines()
            .skip(3)
            .all(|line| line.starts_with("core 0 3.000001 ms "))
    );
    for _ in 0..100 {
        bh.schedule();
        ctx.poll(false);
    }
    text.clear();
    trace::dump(0, &mut text, 64).unwrap();
    assert_eq!(text.lines().count(), 64);
}

#[test]
fn cs_20_contenders_take_turns() {
    const ROUNDS: usize = 5;
    let _watchdog = watchdog("cs_20");
    let _machine = host::machine(5);
    let _zero = host::enter_core(0);
    let lock = leak(ContextLock::new());
    let order = log();
    lock.acquire();
    let threads: Vec<_> = (1..5)
        .map(|core| {
            let thread = thread::spawn(move || {
                let _core = host::enter_core(core);
                for round in 0..ROUNDS {
                    lock.acquire();
                    order.push(core);
                    // All the others have come back: a wait is at most three holds long.
                    if round + 1 < ROUNDS {
                        until(|| lock.queued() == 4);
                    }
                    lock.release();
                }
            });
            until(|| lock.queued() == 1 + core as u32);
            thread
        })
        .collect();
    lock.release();
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
    assert_eq!(order.take(), [1, 2, 3, 4].repeat(ROUNDS));
}

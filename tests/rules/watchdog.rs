//! The watchdog (CS-3): it finds a sleep through work, does nothing about it, and accuses nobody else.

use crate::common::*;
use ironthread::aio::AioContext;
use ironthread::arch;
use ironthread::arch::host::{self, clock};

const SECOND: u64 = 1_000_000_000;

/// Lets `ctx`, core 0's, sleep once without being woken by anything, and calls `meanwhile` as core 1.
fn while_asleep(ctx: &'static AioContext, meanwhile: impl Fn() + Sync + 'static) {
    host::on_wait(Some(leak(move || {
        host::on_wait(None);
        let _one = host::enter_core(1);
        meanwhile();
    })));
    let _zero = host::enter_core(0);
    ctx.poll(true);
}

fn look(ctx: &AioContext) -> u32 {
    clock::advance(SECOND);
    ctx.watch();
    ctx.stats().lost_wakeups
}

#[test]
fn cs_3_a_sleep_through_work_is_counted_and_not_ended() {
    let (_machine, ctx) = stepped(2);
    clock::manual(SECOND);
    let runs = count();
    while_asleep(ctx, move || {
        // The stepped sleep does not hear its kick: a lost wake-up.
        ctx.schedule_oneshot("lost", call(move |_| add(runs)))
            .unwrap();
        let kicks = ctx.stats().kicks;
        assert_eq!(look(ctx), 0, "one look accuses nobody");
        ctx.watch();
        assert_eq!(ctx.stats().lost_wakeups, 0, "nor do two at once");
        assert_eq!(look(ctx), 1);
        assert_eq!(ctx.stats().kicks, kicks, "the watchdog woke it");
        assert_eq!(get(runs), 0);
    });
    assert_eq!(get(runs), 1);
    assert_eq!((look(ctx), look(ctx), look(ctx)), (1, 1, 1), "awake");
}

#[test]
fn cs_3_events_and_late_timers_count_as_work() {
    let (_machine, ctx) = stepped(2);
    clock::manual(SECOND);
    let notifier = leak(ironthread::aio::EventNotifier::new());
    ctx.register(notifier, "lost", call(|_| ()), None).unwrap();
    let timer = ctx.timer("late", call(|_| ())).unwrap();
    {
        let _zero = host::enter_core(0);
        while ctx.poll(false) {}
    }
    while_asleep(ctx, move || {
        notifier.set();
        look(ctx);
        assert_eq!(look(ctx), 1);
    });
    notifier.test_and_clear();
    {
        let _zero = host::enter_core(0);
        while ctx.poll(false) {}
        ctx.poll(false);
    }
    timer.arm_at(arch::now_ns() + SECOND / 2);
    {
        let _zero = host::enter_core(0);
        ctx.poll(false);
    }
    while_asleep(ctx, move || {
        // Not due, then less than the slack late, then late at two looks.
        assert_eq!(look(ctx), 1);
        assert_eq!(look(ctx), 1);
        assert_eq!(look(ctx), 2);
    });
}

#[test]
fn cs_3_a_healthy_loop_is_never_accused() {
    let (_machine, ctx) = stepped(2);
    clock::manual(SECOND);
    for _ in 0..10 {
        // Asleep without work, for long.
        while_asleep(ctx, move || assert_eq!((look(ctx), look(ctx)), (0, 0)));
        // Work at every look, but each time in another sleep.
        while_asleep(ctx, move || {
            ctx.schedule_oneshot("x", call(|_| ())).unwrap();
            assert_eq!(look(ctx), 0);
        });
        let _zero = host::enter_core(0);
        while ctx.poll(false) {}
    }
}

#[test]
fn cs_3_a_machine_that_stood_still_accuses_nobody() {
    let (_machine, ctx) = stepped(2);
    clock::manual(SECOND);
    while_asleep(ctx, move || {
        ctx.schedule_oneshot("x", call(|_| ())).unwrap();
        assert_eq!(look(ctx), 0);
        clock::advance(100 * SECOND);
        assert_eq!(look(ctx), 0, "the looks are too far apart");
    });
}

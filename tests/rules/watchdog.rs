//! The watchdog (CS-3): it finds a sleep through work, does nothing about it, and accuses nobody else.

use crate::common::*;
use ironthread::aio::{self, AioContext};
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

/// A second on all cores but `asleep`: each takes its due timers.
fn second(contexts: &[&'static AioContext], asleep: Option<usize>) {
    clock::advance(SECOND);
    for (core, ctx) in contexts.iter().enumerate() {
        if Some(core) != asleep {
            let _core = host::enter_core(core);
            while ctx.poll(false) {}
        }
    }
}

/// Three cores under watch since just now.
fn watched() -> (host::Machine, [&'static AioContext; 3]) {
    let (machine, main) = stepped(3);
    clock::manual(SECOND);
    let contexts = [main, attach(1, "io1"), attach(2, "io2")];
    let _zero = host::enter_core(0);
    aio::start_watch().unwrap();
    assert_eq!(aio::on_watch(), 0);
    (machine, contexts)
}

/// Lets the context of core `who` sleep through `lost`, which another core does, while the others live on. It must be
/// found, and not be ended; before that it may be offered the watch, which is a kick that it does not hear.
fn found(
    contexts: [&'static AioContext; 3],
    who: usize,
    offers: u64,
    lost: impl Fn() + Sync + 'static,
) {
    host::on_wait(Some(leak(move || {
        host::on_wait(None);
        {
            let _other = host::enter_core((who + 1) % 3);
            lost();
        }
        let kicks = contexts[who].stats().kicks;
        for _ in 0..60 {
            second(&contexts, Some(who));
            assert_ne!(aio::on_watch(), who);
        }
        let stats = contexts[who].stats();
        assert!(stats.lost_wakeups > 40, "core {who}: {stats:?}");
        assert_eq!(stats.kicks - kicks, offers, "the watch woke core {who}");
    })));
    let _core = host::enter_core(who);
    contexts[who].poll(true);
}

#[test]
fn cs_3_every_core_is_watched() {
    for who in 0..3 {
        let (_machine, contexts) = watched();
        if who == 0 {
            (0..12).for_each(|_| second(&contexts, None));
            assert_eq!(aio::on_watch(), 1, "it was not handed on");
        }
        found(contexts, who, 0, move || {
            contexts[who]
                .schedule_oneshot("lost", call(|_| ()))
                .unwrap();
        });
    }
}

#[test]
fn cs_3_a_watch_that_is_lost_when_handed_on_is_found() {
    let (_machine, contexts) = watched();
    // Asleep without work, until it is asked to take the watch: that wake-up gets lost.
    found(contexts, 1, 1, || ());
}

#[test]
fn cs_3_the_watch_goes_round_and_accuses_nobody() {
    let (_machine, contexts) = watched();
    let mut turns = [0; 3];
    for _ in 0..100 {
        second(&contexts, None);
        turns[aio::on_watch()] += 1;
    }
    assert!(turns.iter().all(|turns| *turns > 25), "{turns:?}");
    assert!(contexts.iter().all(|ctx| ctx.stats().lost_wakeups == 0));
    // A stopped loop cannot take it, and it goes on without.
    {
        let _core = host::enter_core(1);
        aio::stop(contexts[1]);
        aio::run_loop(contexts[1]);
    }
    turns = [0; 3];
    for _ in 0..100 {
        second(&contexts, Some(1));
        turns[aio::on_watch()] += 1;
    }
    assert!(turns[0] > 30 && turns[2] > 30, "{turns:?}");
}

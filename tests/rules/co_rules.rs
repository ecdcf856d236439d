//! Coroutines, a rule a test (CO).

use std::future::Future;

use crate::common::*;
use ironthread::aio::{self, AioError};
use ironthread::arch;
use ironthread::arch::host;

#[test]
fn co_1_woken_coroutines_go_on_in_order() {
    let (_machine, ctx) = stepped(2);
    let _zero = host::enter_core(0);
    let order = log();
    let handles: Vec<_> = (0..6)
        .map(|n| {
            ctx.spawn("n", async move {
                aio::suspend().await;
                order.push(n);
            })
            .unwrap()
        })
        .collect();
    while ctx.poll(false) {}
    let _one = host::enter_core(1);
    let wanted = [3, 0, 5, 1, 4, 2];
    for n in wanted {
        assert!(handles[n].wake() && handles[n].wake());
    }
    let _zero = host::enter_core(0);
    assert!(ctx.poll(false));
    assert_eq!(order.take(), wanted);
}

#[test]
fn co_2_a_running_coroutine_is_not_scheduled_elsewhere() {
    let (_machine, ctx) = stepped(2);
    let other = attach(1, "other");
    let _zero = host::enter_core(0);
    let steps = count();
    let handle = ctx
        .spawn("running", async move {
            let me = aio::current_coroutine().unwrap();
            assert_eq!(me.schedule_in(other), Err(AioError::Busy));
            assert_eq!(me.schedule_in(ctx), Err(AioError::Busy));
            add(steps);
            aio::suspend().await;
            add(steps);
        })
        .unwrap();
    while ctx.poll(false) {}
    assert_eq!((get(steps), handle.schedule_in(other)), (1, Ok(())));
    let _one = host::enter_core(1);
    assert!(other.poll(false));
    assert_eq!(get(steps), 2);
}

#[test]
fn co_3_a_scheduled_coroutine_is_entered_once() {
    let (_core, ctx) = single();
    let steps = count();
    let handle = ctx
        .spawn("once", async move {
            loop {
                add(steps);
                aio::suspend().await;
            }
        })
        .unwrap();
    while ctx.poll(false) {}
    for _ in 0..10 {
        assert!(handle.wake());
    }
    while ctx.poll(false) {}
    assert_eq!(get(steps), 2);
    handle.cancel();
    while ctx.poll(false) {}
}

#[test]
fn co_4_a_wake_queues_and_never_enters() {
    let (_core, ctx) = single();
    let order = log();
    let woken = ctx
        .spawn("woken", async move {
            aio::suspend().await;
            order.push(2);
        })
        .unwrap();
    while ctx.poll(false) {}
    ctx.spawn("waker", async move {
        assert!(woken.wake());
        order.push(1);
    })
    .unwrap();
    assert!(ctx.poll(false));
    assert_eq!(order.take(), [1], "it goes on first");
    assert!(ctx.poll(false));
    assert_eq!(order.take(), [2]);
}

#[test]
fn co_5_a_wake_before_the_yield_is_kept() {
    let (_machine, ctx) = stepped(2);
    let _zero = host::enter_core(0);
    let steps = count();
    let handle = ctx
        .spawn("woken while it runs", async move {
            for _ in 0..5 {
                let me = aio::current_coroutine().unwrap();
                {
                    let _one = host::enter_core(1);
                    assert!(me.wake());
                }
                add(steps);
                aio::suspend().await;
            }
        })
        .unwrap();
    for step in 1..=5 {
        assert!(ctx.poll(false));
        assert_eq!(get(steps), step, "one step a batch");
    }
    assert!(ctx.poll(false));
    assert!(handle.is_finished());
}

#[test]
fn co_6_it_moves_only_after_it_has_yielded() {
    let (_machine, ctx) = stepped(2);
    let other = attach(1, "other");
    let _zero = host::enter_core(0);
    let cores = log();
    ctx.spawn("mover", async move {
        let mut moving = Box::pin(aio::reschedule_self(other));
        std::future::poll_fn(|task| {
            let result = moving.as_mut().poll(task);
            if result.is_pending() {
                // Not resumed there while it still runs here.
                let _one = host::enter_core(1);
                assert_eq!(other.stats().turns, 0);
                assert!(!other.lists_anything());
            }
            result
        })
        .await;
        cores.push(arch::current_core().unwrap());
        aio::reschedule_self(other).await;
        cores.push(arch::current_core().unwrap());
    })
    .unwrap();
    while ctx.poll(false) {}
    let _one = host::enter_core(1);
    assert!(other.poll(false));
    assert_eq!(cores.take(), [1, 1], "already there: no move");
    assert_eq!(other.stats().coroutine_steps, 1);
}

#[test]
fn co_8_it_resumes_where_it_lives_whoever_wakes_it() {
    let (_machine, ctx) = stepped(2);
    let other = attach(1, "other");
    let _zero = host::enter_core(0);
    let cores = log();
    let handle = ctx
        .spawn("submitter", async move {
            aio::suspend().await;
            cores.push(arch::current_core().unwrap());
        })
        .unwrap();
    while ctx.poll(false) {}
    {
        let _one = host::enter_core(1);
        other
            .schedule_oneshot("completes", call(move |_| handle.wake()))
            .unwrap();
        while other.poll(false) {}
        assert_eq!((cores.take(), other.stats().coroutine_steps), (vec![], 0));
    }
    assert!(ctx.poll(false));
    assert_eq!(cores.take(), [0]);
}

/// What core 1's context has queued, seen from its own core.
trait Lists {
    fn lists_anything(&self) -> bool;
}

impl Lists for aio::AioContext {
    fn lists_anything(&self) -> bool {
        let mut any = false;
        self.for_each_queued(|_| any = true);
        any
    }
}

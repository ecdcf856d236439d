//! Whose loop it is (OWN).

use crate::common::*;
use ironthread::aio::{self, AioContext, AioError};
use ironthread::arch;
use ironthread::arch::host;

#[test]
#[should_panic(expected = "home core only")]
fn own_1_poll_from_a_foreign_core() {
    let (_machine, ctx) = stepped(2);
    let _one = host::enter_core(1);
    ctx.poll(false);
}

#[test]
fn own_2_the_current_context_is_the_cores_own() {
    let is = |context: &'static AioContext| {
        AioContext::current().is_some_and(|current| std::ptr::eq(current, context))
    };
    let (_machine, main) = stepped(2);
    let other = attach(1, "other");
    let _zero = host::enter_core(0);
    assert!(is(main));
    {
        let _one = host::enter_core(1);
        assert!(is(other));
    }
    assert!(is(main));
    on_no_core(|| assert!(AioContext::current().is_none(), "a thread that is no core"));
}

#[test]
fn own_3_all_but_polling_works_from_any_thread_and_wakes_the_loop() {
    let (_machine, ctx) = stepped(2);
    let _zero = host::enter_core(0);
    let runs = count();
    let bh = ctx.bottom_half("bh", call(move |_| add(runs))).unwrap();
    let event = notifier();
    on_event(ctx, event, move |_| add(runs));
    let timer = ctx.timer("timer", call(move |_| add(runs))).unwrap();
    let sleeper = ctx
        .spawn("sleeper", async move {
            aio::suspend().await;
            add(runs);
        })
        .unwrap();
    while ctx.poll(false) {}
    let all: [(&str, &'static (dyn Fn() + Sync)); 6] = [
        ("schedule", leak(move || assert!(bh.schedule()))),
        (
            "one-shot",
            leak(move || {
                ctx.schedule_oneshot("one", call(move |_| add(runs)))
                    .unwrap()
            }),
        ),
        ("set", leak(move || event.set())),
        ("arm", leak(move || assert!(timer.arm_at(arch::now_ns())))),
        ("wake", leak(move || assert!(sleeper.wake()))),
        (
            "spawn",
            leak(move || {
                ctx.spawn("new", async move {
                    add(runs);
                })
                .unwrap();
            }),
        ),
    ];
    for (n, (name, what)) in all.into_iter().enumerate() {
        let kicks = ctx.stats().kicks;
        during_wait(move || on_no_core(what));
        assert!(ctx.poll(true), "{name}");
        assert_eq!((get(runs), ctx.stats().kicks), (n + 1, kicks + 1), "{name}");
    }
    // And what takes things back.
    bh.schedule();
    timer.arm_at(0);
    on_no_core(|| {
        bh.cancel();
        bh.delete();
        timer.cancel();
        timer.delete().unwrap();
        ctx.unregister(event);
    });
    assert!(!ctx.poll(false));
    let left = ctx.stats();
    assert_eq!((left.bottom_halves_in_use, left.timers_in_use), (0, 0));
}

#[test]
#[should_panic(expected = "only the main loop waits")]
fn own_4_an_io_loop_waits_for_nobody() {
    let (_machine, _main) = stepped(2);
    let _other = attach(1, "other");
    let _one = host::enter_core(1);
    aio::wait_while(|| false);
}

#[test]
fn own_6_what_a_context_still_holds_can_be_named() {
    let (_core, ctx) = single();
    let names = || {
        let mut names = vec![];
        ctx.for_each_queued(|name| names.push(name));
        ctx.for_each_handler(|name| names.push(name));
        names
    };
    assert_eq!(names(), [""; 0]);
    let event = notifier();
    let bh = ctx.bottom_half("leak", call(|_| ())).unwrap();
    let timer = ctx.timer("armed", call(|_| ())).unwrap();
    ctx.spawn("coroutine", async {}).unwrap();
    bh.schedule();
    timer.arm_at(u64::MAX);
    ctx.register(event, "handler", call(|_| ()), None).unwrap();
    assert_eq!(names(), ["coroutine", "leak", "handler"]);
    assert_eq!(ctx.stats().timers_armed, 1);
    ctx.unregister(event);
    assert_eq!(
        timer.delete(),
        Err(AioError::Busy),
        "an armed timer does not go"
    );
    timer.cancel();
    timer.delete().unwrap();
    bh.delete();
    while ctx.poll(false) {}
    let left = ctx.stats();
    assert_eq!(names(), [""; 0]);
    assert_eq!((left.bottom_halves_in_use, left.timers_in_use), (0, 0));
}

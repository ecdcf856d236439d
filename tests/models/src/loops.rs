//! Models of the whole loop: core 0 polls and sleeps, another core has something for it. What is lost is a deadlock.
use std::future::poll_fn;
use std::task::Poll;

use ironthread::aio::{
    AioContext, Callback, EventNotifier, WorkResult, main_context, run_on, wait_kick, wait_while,
};
use ironthread::aio::{CONTEXTS, CoroutineHandle};
use ironthread::arch::host::NOW_NS;
use ironthread::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crate::check::{Model, core, join};

/// The models of this file.
pub const MODELS: &[Model] = &[
    ("notify", 2, notify),
    ("notify_twice", 3, notify_twice),
    ("bottom_half", 3, bottom_half),
    ("bottom_half_sleep", 2, bottom_half_sleep),
    ("oneshot", 2, oneshot),
    ("timer", 2, timer),
    ("coroutine", 2, coroutine),
    ("run_on", 2, work),
    ("wait_kick", 2, waiting),
    ("notifier", 2, notifier),
    ("notifier_twice", 3, notifier_twice),
    ("notifier_register", 2, notifier_register),
];

/// What the other cores write, relaxed: only the handshake under test makes it visible.
static SENT: [AtomicU32; 2] = [const { AtomicU32::new(0) }; 2];
/// What core 0's callback saw of it, as bits.
static SEEN: AtomicU32 = AtomicU32::new(0);

fn send(which: usize) {
    SENT[which].store(1, Relaxed);
}

fn sent() -> u32 {
    SENT[0].load(Relaxed) | SENT[1].load(Relaxed) << 1
}

fn see(_: usize) {
    SEEN.store(sent(), Relaxed);
}

fn main_loop() -> &'static AioContext {
    let main = main_context();
    main.attach(0);
    main
}

/// Polls until `SEEN` is `all`.
fn poll_until_seen(main: &'static AioContext, all: u32) {
    while SEEN.load(Relaxed) != all {
        main.poll(true);
    }
}

/// NFY-1: a notify is not lost, and brings what was written before it.
fn notify() {
    let main = main_loop();
    let other = core(1, || {
        send(0);
        main_context().notify();
    });
    while sent() != 1 {
        main.poll(true);
    }
    join([other]);
}

/// The same from two cores.
fn notify_twice() {
    let main = main_loop();
    let others = [0, 1].map(|which| {
        core(which + 1, move || {
            send(which);
            main_context().notify();
        })
    });
    while sent() != 3 {
        main.poll(true);
    }
    join(others);
}

/// BH-2…4: two cores schedule one bottom half while it is taken off: the last run sees what both wrote.
fn bottom_half() {
    let main = main_loop();
    let half = main.bottom_half("model", Callback::new(&see, 0)).unwrap();
    let others = [0, 1].map(|which| {
        core(which + 1, move || {
            send(which);
            assert!(half.schedule());
        })
    });
    main.poll(false);
    join(others);
    main.poll(false);
    assert_eq!(SEEN.load(Relaxed), 3);
    assert!(!main.poll(false), "it ran once too often");
}

/// The same from one core, against a loop that sleeps.
fn bottom_half_sleep() {
    let main = main_loop();
    let half = main.bottom_half("model", Callback::new(&see, 0)).unwrap();
    let other = core(1, move || {
        send(0);
        half.schedule();
    });
    poll_until_seen(main, 1);
    join([other]);
}

/// One-shots: the record is won, filled and freed by different cores.
fn oneshot() {
    let main = main_loop();
    let other = core(1, || {
        send(0);
        main_context()
            .schedule_oneshot("model", Callback::new(&see, 0))
            .unwrap();
    });
    poll_until_seen(main, 1);
    join([other]);
}

/// TMR-3, TMR-9: a timer armed by another core is seen by the loop's look at its deadline, or ends its sleep.
fn timer() {
    let main = main_loop();
    let timer = main.timer("model", Callback::new(&see, 0)).unwrap();
    let other = core(1, move || {
        send(0);
        assert!(timer.arm_at(NOW_NS));
    });
    poll_until_seen(main, 1);
    join([other]);
    timer.delete().unwrap();
}

/// CO-4: a wake while the coroutine gives up its turn is not lost, and brings what was written before it.
fn coroutine() {
    let main = main_loop();
    let waiting = main
        .spawn(
            "model",
            poll_fn(|_| match sent() {
                1 => Poll::Ready(()),
                _ => Poll::Pending,
            }),
        )
        .unwrap();
    let other = core(1, move || {
        send(0);
        CoroutineHandle::wake(&waiting);
    });
    while !waiting.is_finished() {
        main.poll(true);
    }
    join([other]);
}

/// TPL-2: the completion at home sees the work's result.
fn work() {
    let main = main_loop();
    let target = &CONTEXTS[1];
    let other = core(1, move || {
        target.attach(1);
        while sent() == 0 {
            target.poll(true);
        }
    });
    run_on(
        target,
        Callback::new(&send, 0),
        &|_, result| {
            assert_eq!(result, WorkResult::Done);
            assert_eq!(sent(), 1, "the result is not visible");
            SEEN.store(1, Relaxed);
        },
        0,
    )
    .unwrap();
    poll_until_seen(main, 1);
    join([other]);
}

/// WAIT-1: whoever makes the condition false sees the waiter, or the waiter sees the condition.
fn waiting() {
    main_loop();
    let other = core(1, || {
        send(0);
        wait_kick();
    });
    wait_while(|| sent() == 0);
    join([other]);
}

static NOTIFIER: EventNotifier = EventNotifier::new();

fn clear_and_see(_: usize) {
    if NOTIFIER.test_and_clear() {
        see(0);
    }
}

/// EN-1, EN-2: a set is not lost, and brings what was written before it.
fn notifier() {
    let main = main_loop();
    main.register(&NOTIFIER, "model", Callback::new(&clear_and_see, 0), None)
        .unwrap();
    let other = core(1, || {
        send(0);
        NOTIFIER.set();
    });
    poll_until_seen(main, 1);
    join([other]);
    main.unregister(&NOTIFIER);
}

/// The same from two cores: one clear takes both sets, and then sees what both wrote.
fn notifier_twice() {
    let main = main_loop();
    main.register(&NOTIFIER, "model", Callback::new(&clear_and_see, 0), None)
        .unwrap();
    let others = [0, 1].map(|which| {
        core(which + 1, move || {
            send(which);
            NOTIFIER.set();
        })
    });
    main.poll(false);
    join(others);
    main.poll(false);
    assert_eq!(SEEN.load(Relaxed), 3);
    main.unregister(&NOTIFIER);
}

/// A set that comes while the notifier is being registered.
fn notifier_register() {
    let main = main_loop();
    let other = core(1, || {
        send(0);
        NOTIFIER.set();
    });
    main.register(&NOTIFIER, "model", Callback::new(&clear_and_see, 0), None)
        .unwrap();
    poll_until_seen(main, 1);
    join([other]);
    main.unregister(&NOTIFIER);
}

//! Bad use: refused with a typed error where a caller can meet it, a named assertion where it is a bug of ours.
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

use crate::common::*;
use ironthread::aio::AioContext;
use ironthread::arch::host;

/// The message with which `f` panics; `None` when it returns.
fn panic_of(f: impl FnOnce()) -> Option<String> {
    catch_unwind(AssertUnwindSafe(f)).err().map(|panic| {
        panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).into()))
            .unwrap_or_default()
    })
}

/// The stepped machine with the main context and two others.
fn three() -> (host::Machine, [&'static AioContext; 3]) {
    let (machine, main) = stepped(3);
    (machine, [main, attach(1, "io1"), attach(2, "io2")])
}

#[test]
fn acq_3_iothread_takes_another_iothreads_lock() {
    let (_machine, [_, io1, io2]) = three();
    let _core = host::enter_core(1);
    let text = leak(Mutex::new(None));
    let bh = io1
        .bottom_half(
            "inversion",
            call(move |_| *text.lock().unwrap() = panic_of(|| drop(io2.lock()))),
        )
        .unwrap();
    bh.schedule();
    assert!(io1.poll(false));
    let text = text.lock().unwrap().take().expect("an inversion");
    assert!(
        text.starts_with("lock order: core 1 takes the lock of context 2"),
        "{text}"
    );
    // Both places: the loop's own level, and the callback's.
    assert!(text.contains("aio/poll.rs:"), "{text}");
    assert!(text.contains("rules/bad_use.rs:"), "{text}");
    assert_eq!(
        io2.context_lock().queued(),
        0,
        "refused before it took a ticket"
    );
}

#[test]
fn acq_3_outside_of_any_loop() {
    let (_machine, [_, io1, io2]) = three();
    let _core = host::enter_core(1);
    let _first = io2.lock();
    let text = panic_of(|| io1.acquire()).expect("an inversion");
    assert_eq!(text.matches("rules/bad_use.rs:").count(), 2, "{text}");
}

#[test]
fn acq_3_main_core_holds_several() {
    let (_machine, [main, io1, io2]) = three();
    let _core = host::enter_core(0);
    for order in [[main, io1, io2], [io2, io1, main]] {
        let _held = order.map(AioContext::lock);
        assert!(order.iter().all(|ctx| ctx.context_lock().is_held_by_me()));
    }
}

#[test]
fn acq_3_iothread_takes_the_main_loops_lock() {
    let (_machine, [main, io1, io2]) = three();
    for (core, io) in [(1, io1), (2, io2)] {
        let _core = host::enter_core(core);
        let _own = io.lock();
        let _main = main.lock();
        let _again = io.lock();
    }
}

#[test]
fn acq_3_one_lock_after_the_other() {
    let (_machine, [_, io1, io2]) = three();
    let _core = host::enter_core(1);
    drop(io1.lock());
    drop(io2.lock());
    drop(io1.lock());
}

#[test]
fn cs_17_main_and_context_nested_both_ways() {
    let (_machine, [main, io1, _]) = three();
    {
        let _core = host::enter_core(0);
        let _main = main.lock();
        let _io = io1.lock();
    }
    let _core = host::enter_core(1);
    let _io = io1.lock();
    let text = panic_of(|| main.acquire()).expect("an inversion");
    assert!(text.contains("the other way round"), "{text}");
    assert_eq!(text.matches("rules/bad_use.rs:").count(), 2, "{text}");
}

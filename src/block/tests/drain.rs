//! Drained sections: empty, pending, nested, parked, with listeners, over all backends.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::*;
use crate::aio::Callback;

static CALLED: AtomicU32 = AtomicU32::new(0);

fn called(_: usize) {
    CALLED.fetch_add(1, Ordering::Relaxed);
}

fn begin(backend: &'static Backend) {
    on(0, || {
        backend.drain_begin(Callback::new(&called, 0)).unwrap()
    });
}

#[test]
fn an_empty_drain_is_quiet_when_every_core_has_answered() {
    let mut rig = rig(4);
    let f = rig.disk(with_flush(1 << 20));
    CALLED.store(0, Ordering::Relaxed);
    begin(f.backend);
    assert!(!rig.quiet(f.backend), "begin never waits, and calls nobody");
    assert_eq!(CALLED.load(Ordering::Relaxed), 0);
    rig.settle();
    assert!(rig.quiet(f.backend));
    assert_eq!(CALLED.load(Ordering::Relaxed), 1);
    rig.undrain(f.backend);
    assert!(!rig.quiet(f.backend));
    rig.finish();
}

#[test]
fn drn_1_a_drain_waits_for_what_entered_before() {
    let mut rig = rig(3);
    let f = rig.disk(with_flush(1 << 20));
    for core in 0..3 {
        submit(core, f.backend, read(0, 512), core as u64);
    }
    rig.drain(f.backend);
    for core in 0..3 {
        assert!(!rig.quiet(f.backend));
        let n = (0..f.device.held())
            .find(|n| f.device.core_of(*n) == core)
            .unwrap();
        on(core, || f.device.finish(n));
        rig.settle();
    }
    assert!(rig.quiet(f.backend));
    assert_eq!(results().len(), 3);
    rig.undrain(f.backend);
    rig.finish();
}

#[test]
fn drn_14_sections_nest() {
    let mut rig = rig(2);
    let f = rig.disk(with_flush(1 << 20));
    CALLED.store(0, Ordering::Relaxed);
    begin(f.backend);
    begin(f.backend);
    rig.settle();
    assert_eq!(CALLED.load(Ordering::Relaxed), 2);
    begin(f.backend);
    assert_eq!(CALLED.load(Ordering::Relaxed), 2, "never inside begin");
    rig.settle();
    assert_eq!(
        (
            CALLED.load(Ordering::Relaxed),
            on(0, || f.backend.quiesce_count())
        ),
        (3, 3)
    );
    submit(1, f.backend, read(0, 512), 1);
    rig.undrain(f.backend);
    rig.undrain(f.backend);
    assert!(rig.quiet(f.backend));
    assert_eq!((f.device.held(), f.backend.parked()), (0, 1));
    rig.undrain(f.backend);
    assert_eq!(
        (f.device.held(), f.backend.parked(), f.backend.in_flight()),
        (1, 0, 1)
    );
    rig.run(f.device);
    assert_eq!(results(), [(1, Ok(()))]);
    rig.finish();
}

#[test]
fn drn_25_requests_are_parked_uncounted_and_go_on_in_order() {
    let mut rig = rig(2);
    let f = rig.disk(with_flush(1 << 20));
    rig.drain(f.backend);
    for n in 0..6u64 {
        submit(1, f.backend, write(n * 512, 512, 1), n);
    }
    // An impossible request is parked like any other, and refused like any other.
    submit(1, f.backend, write(7, 512, 1), 6);
    rig.settle();
    assert!(
        rig.quiet(f.backend),
        "a parked request must not keep the drain from ending"
    );
    assert_eq!(
        (f.backend.parked(), f.backend.in_flight(), f.device.held()),
        (7, 0, 0)
    );
    assert_eq!(
        on(0, || f.backend.delete()),
        Err(BlockError::Busy),
        "DRN-28"
    );
    on(0, || f.backend.drain_end());
    // Newer than the parked ones, before this core has heard of the end.
    submit(1, f.backend, write(6 * 512, 512, 1), 7);
    rig.settle();
    let order: Vec<u64> = f.device.log().iter().map(|e| e.offset / 512).collect();
    assert_eq!(order, [0, 1, 2, 3, 4, 5, 6]);
    rig.run(f.device);
    assert_eq!(results().len(), 8);
    rig.finish();
}

#[test]
fn consecutive_drains_meet_their_own_requests_only() {
    let mut rig = rig(2);
    let f = rig.disk(with_flush(1 << 20));
    rig.drain(f.backend);
    submit(1, f.backend, write(0, 512, 1), 1);
    // End and begin before core 1 has looked: it never opens, and answers the second begin.
    on(0, || f.backend.drain_end());
    begin(f.backend);
    rig.settle();
    assert!(rig.quiet(f.backend));
    assert_eq!((f.backend.parked(), f.device.held()), (1, 0));
    // Now it opens first: the released request counts before it runs, so the next drain waits for it (DRN-12).
    on(0, || f.backend.drain_end());
    on(1, || aio::context(1).poll(false));
    begin(f.backend);
    rig.settle();
    assert!(!rig.quiet(f.backend));
    rig.run(f.device);
    assert!(rig.quiet(f.backend));
    assert_eq!(results(), [(1, Ok(()))]);
    rig.undrain(f.backend);
    rig.finish();
}

static QUIET_IN_CALLBACK: AtomicBool = AtomicBool::new(false);
static WATCHED: AtomicU32 = AtomicU32::new(u32::MAX);

fn look_at_drain(request: Request) {
    let backend = backend(WATCHED.load(Ordering::Relaxed) as usize).unwrap();
    // The main loop gets every chance to end the drain while the completion runs.
    QUIET_IN_CALLBACK.store(backend.in_flight() == 0, Ordering::Relaxed);
    drop(request);
}

#[test]
fn drn_29_the_token_outlives_the_completion() {
    let mut rig = rig(1);
    let f = rig.disk(with_flush(1 << 20));
    WATCHED.store(f.backend.index() as u32, Ordering::Relaxed);
    QUIET_IN_CALLBACK.store(true, Ordering::Relaxed);
    on(0, || {
        let mut request = request(read(0, 512), 1);
        request.completion = &look_at_drain;
        f.backend.submit(request);
    });
    rig.run(f.device);
    assert!(
        !QUIET_IN_CALLBACK.load(Ordering::Relaxed),
        "the request was no longer counted in its own completion"
    );
    rig.finish();
}

#[test]
fn cs_5_no_error_path_leaks_a_token() {
    let mut rig = rig(2);
    let mut info = with_flush(1 << 16);
    info.features |= DeviceFeatures::READ_ONLY;
    let read_only = rig.disk(info);
    let f = rig.disk(with_flush(1 << 16));
    f.device.set_automatic(true);
    read_only.device.set_automatic(true);
    let mut tag = 0;
    let mut expect = Vec::new();
    let mut one = |backend, ask, error| {
        submit((tag % 2) as usize, backend, ask, tag);
        expect.push((tag, Err(error)));
        tag += 1;
    };
    use Operation::{Discard, Read, WriteZeroes};
    one(read_only.backend, write(0, 512, 1), BlockError::ReadOnly);
    one(
        read_only.backend,
        ask(Discard, 0, 512),
        BlockError::ReadOnly,
    );
    one(
        read_only.backend,
        ask(WriteZeroes, 0, 512),
        BlockError::ReadOnly,
    );
    one(f.backend, read(1, 512), BlockError::Invalid);
    one(f.backend, read(0, 100), BlockError::Invalid);
    one(f.backend, write(3, 512, 1), BlockError::Invalid);
    one(f.backend, write(0, 511, 1), BlockError::Invalid);
    one(f.backend, ask(WriteZeroes, 3, 512), BlockError::Invalid);
    one(f.backend, read(1 << 16, 512), BlockError::Invalid);
    one(
        f.backend,
        write((1 << 16) - 512, 1024, 1),
        BlockError::NoSpace,
    );
    one(
        f.backend,
        ask(WriteZeroes, 1 << 16, 512),
        BlockError::NoSpace,
    );
    one(f.backend, ask(Discard, 1 << 16, 512), BlockError::Invalid);
    one(
        f.backend,
        ask(Discard, u64::MAX - 511, 512),
        BlockError::Invalid,
    );
    one(f.backend, read(u64::MAX - 511, 512), BlockError::Invalid);
    one(
        f.backend,
        ask(WriteZeroes, 0, 512).flags(RequestFlags::FAST_ZERO),
        BlockError::NotSupported,
    );
    rig.settle();
    f.device.fail_next(Read, 1);
    one(f.backend, read(0, 512), BlockError::Io);
    rig.settle();
    // Data that do not add up.
    on(0, || {
        let mut request = request(write(0, 512, 1), 100);
        request.len = 1024;
        f.backend.submit(request);
    });
    expect.push((100, Err(BlockError::Invalid)));
    rig.settle();
    assert_eq!(results(), expect);
    assert_eq!(
        (f.backend.in_flight(), read_only.backend.in_flight()),
        (0, 0)
    );
    rig.finish();
}

#[derive(Default)]
struct Listener {
    begun: AtomicU32,
    ended: AtomicU32,
    busy: AtomicBool,
    size: AtomicU32,
}

impl BackendListener for Listener {
    fn drained_begin(&self, _: &'static Backend) {
        self.begun.fetch_add(1, Ordering::Relaxed);
    }
    fn drained_poll(&self, _: &'static Backend) -> bool {
        self.busy.load(Ordering::Relaxed)
    }
    fn drained_end(&self, _: &'static Backend) {
        self.ended.fetch_add(1, Ordering::Relaxed);
    }
    fn resized(&self, _: &'static Backend, size: u64) {
        self.size.store(size as u32, Ordering::Relaxed);
    }
}

#[test]
fn drn_27_a_busy_listener_is_waited_for_and_its_requests_are_not_parked() {
    let mut rig = rig(2);
    let f = rig.disk(with_flush(1 << 20));
    let listener: &'static Listener = Box::leak(Box::default());
    on(0, || f.backend.add_listener(listener).unwrap());
    listener.busy.store(true, Ordering::Relaxed);
    rig.drain(f.backend);
    rig.drain(f.backend);
    assert_eq!(
        listener.begun.load(Ordering::Relaxed),
        1,
        "told on 0 to 1 only"
    );
    assert!(!rig.quiet(f.backend));
    submit(1, f.backend, read(0, 512), 1);
    rig.settle();
    assert_eq!((f.backend.parked(), f.device.held()), (0, 1));
    listener.busy.store(false, Ordering::Relaxed);
    on(1, drain_kick);
    rig.settle();
    assert!(!rig.quiet(f.backend), "its request is still in flight");
    rig.run(f.device);
    assert!(rig.quiet(f.backend));
    rig.undrain(f.backend);
    assert_eq!(listener.ended.load(Ordering::Relaxed), 0);
    rig.undrain(f.backend);
    assert_eq!(
        (
            listener.begun.load(Ordering::Relaxed),
            listener.ended.load(Ordering::Relaxed)
        ),
        (1, 1)
    );
    on(0, || f.device.resize(1 << 19));
    rig.settle();
    assert_eq!(listener.size.load(Ordering::Relaxed), 1 << 19);
    on(0, || f.backend.remove_listener(listener));
    results();
    rig.finish();
}

#[test]
fn drn_18_drain_all_holds_new_backends_too() {
    let mut rig = rig(2);
    let a = rig.disk(with_flush(1 << 20));
    submit(1, a.backend, read(0, 512), 1);
    CALLED.store(0, Ordering::Relaxed);
    on(0, || drain_all_begin(Callback::new(&called, 0)).unwrap());
    rig.settle();
    let b = rig.disk(with_flush(1 << 20));
    assert_eq!(on(0, || b.backend.quiesce_count()), 1);
    assert_eq!(CALLED.load(Ordering::Relaxed), 0);
    rig.run(a.device);
    assert_eq!(CALLED.load(Ordering::Relaxed), 1);
    submit(0, b.backend, read(0, 512), 2);
    rig.settle();
    assert_eq!(b.backend.parked(), 1);
    on(0, drain_all_end);
    rig.run(b.device);
    assert_eq!(results(), [(1, Ok(())), (2, Ok(()))]);
    rig.finish();
}

#[test]
fn a_synchronous_drain_waits_and_its_guard_ends_it() {
    let mut rig = rig(1);
    let f = rig.disk(with_flush(1 << 20));
    f.device.set_automatic(true);
    rig.with_others(|| {
        on(0, || {
            f.backend.submit(request(write(0, 4096, 1), 1));
            let guard = f.backend.drained().unwrap();
            assert!(f.backend.is_quiet());
            assert_eq!(results(), [(1, Ok(()))]);
            drop(guard);
            assert_eq!(f.backend.quiesce_count(), 0);
        });
    });
    on(1, || {
        assert_eq!(f.backend.drained().map(drop), Err(BlockError::Invalid))
    });
    rig.finish();
}

#[test]
fn the_asynchronous_drain_is_refused_under_a_lock_and_the_synchronous_one_is_not() {
    let mut rig = rig(1);
    let f = rig.disk(with_flush(1 << 20));
    CALLED.store(0, Ordering::Relaxed);
    on(0, || {
        let _held = aio::main_context().lock();
        let refused = f.backend.drain_begin(Callback::new(&called, 0));
        assert_eq!(refused, Err(BlockError::Busy));
        assert_eq!(
            drain_all_begin(Callback::new(&called, 0)),
            Err(BlockError::Busy)
        );
        assert_eq!(f.backend.quiesce_count(), 0);
        // The synchronous one gives the main context back while it waits, and takes it again.
        let guard = rig.with_others(|| f.backend.drained().unwrap());
        assert!(f.backend.is_quiet());
        drop(guard);
    });
    rig.settle();
    assert_eq!(CALLED.load(Ordering::Relaxed), 0);
    // From a bottom half, whose poll holds the loop's own level, it is not refused.
    fn from_loop(index: usize) {
        let backend = backend(index).unwrap();
        backend.drain_begin(Callback::new(&called, 0)).unwrap();
    }
    let begin = Callback::new(&from_loop, f.backend.index());
    on(0, || {
        aio::main_context()
            .schedule_oneshot("begin", begin)
            .unwrap()
    });
    rig.settle();
    assert_eq!(CALLED.load(Ordering::Relaxed), 1);
    rig.undrain(f.backend);
    rig.finish();
}

#[test]
fn cs_13_a_section_that_does_not_end_names_what_it_waits_for() {
    let mut rig = rig(2);
    let f = rig.disk(with_flush(1 << 20));
    submit(1, f.backend, write(8192, 512, 1), 1);
    rig.drain(f.backend);
    let mut seen = Vec::new();
    on(0, || {
        for_each_section(|backend, count, _, state| seen.push((backend.index(), count, state)))
    });
    assert_eq!(seen, [(f.backend.index(), 1, DrainState::Core(1))]);
    host::clock::advance(31_000_000_000);
    rig.settle();
    let mut views = Vec::new();
    for_each_in_flight(|view| views.push(view));
    assert_eq!(views.len(), 1);
    assert_eq!(
        (views[0].operation, views[0].offset, views[0].core),
        (Operation::Write, 8192, 1)
    );
    assert_eq!(
        (views[0].backend, views[0].disk),
        (f.backend.index(), Some(f.disk.index()))
    );
    assert!((30..=32).contains(&views[0].age_s), "{views:?}");
    rig.run(f.device);
    rig.undrain(f.backend);
    results();
    rig.finish();
}

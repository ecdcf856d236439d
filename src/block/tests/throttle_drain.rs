//! The throttle node in drained sections and moves: what waits goes at once, timers and queues move along.

use std::sync::atomic::{AtomicU32, Ordering};

use super::throttle::{MS, free, limit, on_disk, reached, throttled, wait};
use super::*;
use crate::aio::Callback;
use crate::block::graph;
use crate::block::node::throttle;
use crate::block::throttle::{Kind, Limit};
use crate::config::TIMERS;

static QUIET: AtomicU32 = AtomicU32::new(0);

fn quiet(_: usize) {
    QUIET.fetch_add(1, Ordering::Relaxed);
}

fn drain(node: NodeId) {
    QUIET.store(0, Ordering::Relaxed);
    on(0, || {
        graph::drain::drain_begin(node, Callback::new(&quiet, 0)).unwrap()
    });
}

/// QEMU's iotest `stream-under-throttle`, the point of it: a job's drain ends although a throttled request is pending above.
#[test]
fn stream_under_throttle_drn_6_a_drain_lets_all_that_waits_go() {
    let mut rig = rig(3);
    let t = throttled(&mut rig, "drain");
    limit("drain", Kind::BytesTotal, Limit::average(512));
    t.device.set_automatic(true);
    for core in 0..3 {
        for n in 0..20 {
            submit(core, t.backend, read(0, 4096), core as u64 * 100 + n);
            submit(
                core,
                t.backend,
                write(0, 4096, 1),
                core as u64 * 100 + 50 + n,
            );
        }
    }
    rig.settle();
    let before = results().len();
    assert!(before <= 2, "throttled");
    assert_eq!(t.backend.in_flight() as usize, 120 - before);
    drain(t.node);
    // No time passes.
    rig.settle();
    assert_eq!(QUIET.load(Ordering::Relaxed), 1, "the drain ended");
    assert_eq!(results().len(), 120 - before);
    assert_eq!(t.backend.in_flight(), 0);
    on(0, || graph::drain::drain_end(t.node));
    rig.settle();
    // What went is booked: the limits hold again, and remember.
    submit(0, t.backend, read(0, 512), 1);
    wait(&rig, 200 * 1000 * MS);
    assert_eq!(results().len(), 0);
    wait(&rig, 1000 * 1000 * MS);
    assert_eq!(results().len(), 1);
    rig.finish();
    free("drain");
}

#[test]
fn drn_6_a_drain_of_a_backend_alone_lets_go_what_waits_below_it() {
    let mut rig = rig(2);
    let t = throttled(&mut rig, "alone");
    limit("alone", Kind::OpsTotal, Limit::average(1));
    t.device.set_automatic(true);
    let beside = rig.backend(t.node);
    for n in 0..20 {
        submit(1, t.backend, read(0, 512), n);
        submit(1, beside, read(0, 512), 100 + n);
    }
    rig.settle();
    let before = results().len();
    assert!(before <= 2);
    rig.drain(t.backend);
    assert!(rig.quiet(t.backend), "no time has passed");
    assert_eq!(results().len(), 40 - before);
    // Two sections on two backends: the limits hold when both are over.
    rig.drain(beside);
    rig.undrain(t.backend);
    submit(1, t.backend, read(0, 512), 200);
    rig.settle();
    assert_eq!(results().len(), 1);
    rig.undrain(beside);
    submit(1, t.backend, read(0, 512), 201);
    rig.settle();
    assert_eq!(results().len(), 0, "they hold again");
    wait(&rig, 60_000 * MS);
    assert_eq!(results().len(), 1);
    // A backend that goes ends its section.
    rig.drain(beside);
    on(0, || beside.delete()).unwrap();
    rig.opened.retain(|one| !core::ptr::eq(*one, beside));
    for n in 0..5 {
        submit(1, t.backend, read(0, 512), n);
    }
    rig.settle();
    assert!(results().len() <= 2);
    rig.drain(t.backend);
    rig.undrain(t.backend);
    rig.finish();
    free("alone");
}

#[test]
fn on_the_way_down_no_limit_holds() {
    let mut rig = rig(2);
    let t = throttled(&mut rig, "down");
    limit("down", Kind::BytesTotal, Limit::average(512));
    t.device.set_automatic(true);
    for n in 0..20 {
        submit(1, t.backend, read(0, 4096), n);
    }
    rig.settle();
    assert!(results().len() < 20, "throttled");
    on(0, || throttle::suspend_all(true));
    rig.settle();
    assert_eq!(t.backend.in_flight(), 0);
    // A section that ends does not bring the limits back.
    rig.drain(t.backend);
    rig.undrain(t.backend);
    for n in 0..20 {
        submit(1, t.backend, read(0, 4096), n);
    }
    rig.settle();
    assert_eq!(t.backend.in_flight(), 0);
    on(0, || throttle::suspend_all(false));
    results();
    rig.finish();
    free("down");
}

#[test]
fn drn_6_limits_are_suspended_inside_a_section() {
    let mut rig = rig(2);
    let t = throttled(&mut rig, "inside");
    limit("inside", Kind::OpsTotal, Limit::average(1));
    t.device.set_automatic(true);
    // A user whose requests are not parked in a section (DRN-27).
    t.backend.set_parking(false);
    on(0, || graph::drain::begin_no_wait(t.node).unwrap());
    rig.settle();
    for n in 0..10 {
        submit(1, t.backend, read(0, 512), n);
    }
    rig.settle();
    assert_eq!(results().len(), 10);
    on(0, || graph::drain::drain_end(t.node));
    submit(1, t.backend, read(0, 512), 10);
    rig.settle();
    assert_eq!(results().len(), 0, "over, they hold again");
    wait(&rig, 60_000 * MS);
    assert_eq!(results().len(), 1);
    rig.finish();
    free("inside");
}

#[test]
fn a_member_that_is_drained_leaves_its_timer_to_the_others() {
    let mut rig = rig(1);
    let [a, b] = [0, 1].map(|_| throttled(&mut rig, "heir"));
    for t in [&a, &b] {
        t.device.set_automatic(true);
    }
    limit("heir", Kind::OpsTotal, Limit::average(10));
    for n in 0..4 {
        submit(0, a.backend, read(0, 512), n);
    }
    for n in 10..13 {
        submit(0, b.backend, read(0, 512), n);
    }
    rig.settle();
    assert_eq!((reached(a.device), reached(b.device)), (2, 0));
    // The armed timer is that of the first, whose drain takes it.
    drain(a.node);
    rig.settle();
    assert_eq!((QUIET.load(Ordering::Relaxed), reached(a.device)), (1, 4));
    assert_eq!(reached(b.device), 0, "the other is not drained");
    for n in 1..=3 {
        wait(&rig, if n == 1 { 300 } else { 100 } * MS);
        assert_eq!(reached(b.device), n);
    }
    // Deleted, too.
    on(0, || graph::drain::drain_end(a.node));
    rig.settle();
    assert_eq!(results().len(), 7);
    rig.finish();
    free("heir");
}

#[test]
fn ctx_10_timers_and_queue_move_with_the_context() {
    let mut rig = rig(3);
    let t = throttled(&mut rig, "move");
    t.device.set_automatic(true);
    limit("move", Kind::OpsTotal, Limit::average(10));
    for target in [2, 1, 0, 2] {
        // What waits when the move begins goes, in the old context.
        for n in 0..5 {
            submit(1, t.backend, read(0, 512), n);
        }
        rig.settle();
        on(0, || graph::drain::begin_no_wait(t.node).unwrap());
        rig.settle();
        assert_eq!(results().len(), 5);
        on(0, || graph::context::move_quiet(t.node, target).unwrap());
        on(0, || graph::drain::drain_end(t.node));
        rig.settle();
        // An empty bucket to begin with.
        host::clock::advance(60_000 * MS);
        t.device.clear_log();
        for n in 0..3 {
            submit(1, t.backend, read(0, 512), n);
        }
        rig.settle();
        assert!(t.device.log().iter().all(|entry| entry.core == target));
        assert_eq!(results().len(), 2);
        host::clock::advance(100 * MS);
        for core in (0..3).filter(|core| *core != target) {
            for _ in 0..10 {
                on(core, || aio::context(core).poll(false));
            }
        }
        assert_eq!(reached(t.device), 2, "no other core has the timer");
        on(target, || aio::context(target).poll(false));
        rig.settle();
        assert_eq!(results().len(), 1);
    }
    rig.finish();
    free("move");
}

#[test]
fn a_move_to_a_context_without_timers_is_refused_and_changes_nothing() {
    let mut rig = rig(2);
    let t = throttled(&mut rig, "full");
    t.device.set_automatic(true);
    limit("full", Kind::OpsTotal, Limit::average(10));
    let mut taken = Vec::new();
    while let Ok(timer) = aio::context(1).timer("test", Callback::new(&quiet, 0)) {
        taken.push(timer);
        assert!(taken.len() <= TIMERS);
    }
    // One is not enough.
    taken.pop().unwrap().delete().unwrap();
    on(0, || graph::drain::begin_no_wait(t.node).unwrap());
    rig.settle();
    assert!(on(0, || graph::context::move_quiet(t.node, 1)).is_err());
    assert_eq!(graph::home(t.node), Some(0));
    on(0, || graph::drain::drain_end(t.node));
    for n in 0..3 {
        submit(1, t.backend, read(0, 512), n);
    }
    rig.settle();
    assert_eq!(results().len(), 2);
    wait(&rig, 100 * MS);
    assert_eq!(results().len(), 1);
    // What the refused move took is there again.
    taken.pop().unwrap().delete().unwrap();
    on(0, || graph::drain::begin_no_wait(t.node).unwrap());
    rig.settle();
    on(0, || graph::context::move_quiet(t.node, 1)).unwrap();
    on(0, || graph::drain::drain_end(t.node));
    for timer in taken {
        timer.delete().unwrap();
    }
    rig.finish();
    free("full");
}

#[test]
fn cs_9_a_move_that_another_node_refuses_gives_back_what_was_reserved() {
    let mut rig = rig(2);
    let t = throttled(&mut rig, "inner");
    let outer = on_disk(1, t.node, Some("outer"));
    let free_timers = || {
        let mut free = Vec::new();
        while let Ok(timer) = aio::context(1).timer("test", Callback::new(&quiet, 0)) {
            free.push(timer);
        }
        free
    };
    let mut taken = free_timers();
    // Enough for one of the two.
    for _ in 0..3 {
        taken.pop().unwrap().delete().unwrap();
    }
    on(0, || graph::drain::begin_no_wait(t.node).unwrap());
    rig.settle();
    assert!(on(0, || graph::context::move_quiet(t.node, 1)).is_err());
    let again = free_timers();
    assert_eq!(again.len(), 3);
    assert_eq!(
        [graph::home(t.node), graph::home(outer)],
        [Some(0), Some(0)]
    );
    on(0, || graph::drain::drain_end(t.node));
    for timer in taken.into_iter().chain(again) {
        timer.delete().unwrap();
    }
    on(0, || graph::delete(outer)).unwrap();
    rig.finish();
}

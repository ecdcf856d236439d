//! The throttle node: rates, bursts, groups and their fairness, drained sections, moves, changes of the limits.

use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::aio::Callback;
use crate::block::graph;
use crate::block::node::throttle::{self, Options, create, group_of};
use crate::block::throttle::{Config, GroupError, Kind, Limit, Unfit, configure, remove_group};
use crate::config::{THROTTLES, TIMERS};

const MS: u64 = 1_000_000;

/// A scripted disk without a backend.
pub(super) fn bare_disk(_rig: &mut Rig) -> (&'static TestDisk, NodeId) {
    let device = TestDisk::leak(with_flush(1 << 20));
    let disk: &'static Disk = Box::leak(Box::new(Disk::new()));
    let index = 40 + NEXT_DISK.fetch_add(1, Ordering::Relaxed) % 200;
    disk.open(device, 0, index).unwrap();
    (device, disk.node())
}

/// A throttle on a disk.
pub(super) fn on_disk(number: usize, disk: NodeId, group: Option<&str>) -> NodeId {
    let name = std::format!("t{number}-{}", NEXT_DISK.fetch_add(1, Ordering::Relaxed));
    on(0, || create(&name, Options { child: disk, group }).unwrap())
}

struct Throttled {
    device: &'static TestDisk,
    node: NodeId,
    backend: &'static Backend,
}

/// A backend on a throttle on a disk.
fn throttled(rig: &mut Rig, group: &str) -> Throttled {
    let (device, disk) = bare_disk(rig);
    let node = on_disk(0, disk, Some(group));
    let backend = rig.backend(node);
    rig.nodes.push(disk);
    Throttled {
        device,
        node,
        backend,
    }
}

fn limit(group: &str, kind: Kind, limit: Limit) {
    on(0, || configure(group, &Config::only(kind, limit)).unwrap());
}

fn free(group: &str) {
    on(0, || remove_group(group).unwrap());
}

fn wait(rig: &Rig, ns: u64) {
    host::clock::advance(ns);
    rig.settle();
}

fn reached(device: &TestDisk) -> usize {
    device.log().len()
}

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

#[test]
fn a_rate_holds_after_a_tenth_of_a_second_at_once() {
    let mut rig = rig(1);
    let t = throttled(&mut rig, "rate");
    t.device.set_automatic(true);
    limit("rate", Kind::OpsTotal, Limit::average(20));
    for n in 0..10 {
        submit(0, t.backend, read(n * 512, 512), n);
    }
    rig.settle();
    // Two fill the bucket, the third runs it over.
    assert_eq!(reached(t.device), 3);
    wait(&rig, 49 * MS);
    assert_eq!(reached(t.device), 3, "not before its time");
    for n in 4..=10 {
        wait(&rig, if n == 4 { MS } else { 50 * MS });
        assert_eq!(reached(t.device), n);
    }
    assert_eq!(results().len(), 10);
    // Order is kept.
    let order: Vec<u64> = t.device.log().iter().map(|e| e.offset / 512).collect();
    assert_eq!(order, (0..10).collect::<Vec<_>>());
    rig.finish();
    free("rate");
}

#[test]
fn bytes_and_bursts_and_flushes() {
    let mut rig = rig(1);
    let t = throttled(&mut rig, "burst");
    t.device.set_automatic(true);
    let burst = Limit {
        avg: 4096,
        max: 8192,
        burst_s: 1,
    };
    limit("burst", Kind::BytesWrite, burst);
    for n in 0..6 {
        submit(0, t.backend, write(n * 4096, 4096, 1), n);
        submit(0, t.backend, read(n * 4096, 4096), 100 + n);
        submit(0, t.backend, flush(), 200 + n);
    }
    rig.settle();
    let count = |operation| {
        operations(t.device)
            .iter()
            .filter(|o| **o == operation)
            .count()
    };
    assert_eq!(count(Operation::Read), 6, "reads are not limited");
    // Those that came together share a flush, or two.
    assert!(count(Operation::Flush) >= 1);
    assert_eq!(results().len(), 6 + 6 + 3);
    assert_eq!(count(Operation::Write), 3);
    // A single request as large as ten seconds' worth goes, and the next pays for it.
    submit(0, t.backend, write(0, 40960, 1), 300);
    for _ in 0..3 {
        wait(&rig, 1000 * MS);
    }
    assert_eq!(count(Operation::Write), 6);
    submit(0, t.backend, write(0, 4096, 1), 301);
    wait(&rig, 1000 * MS);
    assert_eq!(count(Operation::Write), 7);
    wait(&rig, 9999 * MS);
    assert_eq!(count(Operation::Write), 7);
    wait(&rig, MS);
    assert_eq!(count(Operation::Write), 8);
    rig.finish();
    free("burst");
}

#[test]
fn reads_and_writes_take_turns_at_a_common_limit() {
    let mut rig = rig(1);
    let t = throttled(&mut rig, "turns");
    t.device.set_automatic(true);
    limit("turns", Kind::OpsTotal, Limit::average(10));
    for n in 0..10 {
        submit(0, t.backend, read(0, 512), n);
    }
    for n in 10..20 {
        submit(0, t.backend, write(0, 512, 1), n);
    }
    rig.settle();
    t.device.clear_log();
    for _ in 0..8 {
        wait(&rig, 100 * MS);
    }
    let operations = operations(t.device);
    assert_eq!(operations.len(), 8);
    for pair in operations.windows(2) {
        assert_ne!(pair[0], pair[1], "{operations:?}");
    }
    limit("turns", Kind::OpsTotal, Limit::NONE);
    rig.settle();
    assert_eq!(results().len(), 20);
    rig.finish();
    free("turns");
}

#[test]
fn cs_20_the_members_of_a_group_take_turns() {
    let mut rig = rig(3);
    let members: Vec<Throttled> = (0..3).map(|_| throttled(&mut rig, "fair")).collect();
    for (core, t) in members.iter().enumerate() {
        t.device.set_automatic(true);
        on(0, || {
            let guard = graph::drain::begin_no_wait(t.node);
            guard.unwrap();
        });
        rig.settle();
        on(0, || graph::context::move_quiet(t.node, core).unwrap());
        on(0, || graph::drain::drain_end(t.node));
        rig.settle();
    }
    limit("fair", Kind::OpsTotal, Limit::average(10));
    // The first has much to do before the others come.
    for n in 0..30 {
        submit(0, members[0].backend, read(0, 512), n);
    }
    rig.settle();
    for (core, t) in members.iter().enumerate().skip(1) {
        for n in 0..8 {
            submit(core, t.backend, read(0, 512), 100 * core as u64 + n);
        }
    }
    rig.settle();
    for t in &members {
        t.device.clear_log();
    }
    let mut last = [0; 3];
    for round in 0..8 {
        for _ in 0..3 {
            wait(&rig, 100 * MS);
        }
        let now: Vec<usize> = members.iter().map(|t| reached(t.device)).collect();
        for (member, count) in now.iter().enumerate() {
            assert_eq!(count - last[member], 1, "round {round}: {now:?}");
            last[member] = *count;
        }
    }
    // Then the rest belongs to the one that is left.
    for _ in 0..20 {
        wait(&rig, 100 * MS);
    }
    assert_eq!(results().len(), 30 + 16);
    rig.finish();
    free("fair");
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

#[test]
fn limits_change_while_requests_wait() {
    let mut rig = rig(2);
    let t = throttled(&mut rig, "change");
    t.device.set_automatic(true);
    limit("change", Kind::OpsTotal, Limit::average(1));
    for n in 0..30 {
        submit(1, t.backend, read(0, 512), n);
    }
    rig.settle();
    let first = results().len();
    assert!(first <= 2);
    // An unfit configuration changes nothing.
    let mut unfit = Config::only(Kind::OpsTotal, Limit::average(5));
    unfit.limit_mut(Kind::OpsRead).avg = 1;
    assert_eq!(
        on(0, || configure("change", &unfit)),
        Err(GroupError::Unfit(Unfit::Conflict(Kind::OpsTotal)))
    );
    rig.settle();
    assert_eq!(results().len(), 0);
    // More: the waiting do not wait for the old time, nor is there more than the new limit allows.
    limit("change", Kind::OpsTotal, Limit::average(50));
    rig.settle();
    assert_eq!(results().len(), 6);
    wait(&rig, 20 * MS);
    assert_eq!(results().len(), 1);
    // None.
    on(0, || configure("change", &Config::NONE).unwrap());
    rig.settle();
    assert_eq!(results().len(), 30 - first - 7);
    assert_eq!(t.backend.in_flight(), 0);
    // Without limits requests do not cross to the node's core.
    t.device.clear_log();
    submit(1, t.backend, read(0, 512), 1);
    rig.settle();
    assert_eq!(t.device.log()[0].core, 1);
    rig.finish();
    free("change");
}

#[test]
fn errors_pass_and_nothing_leaks() {
    let mut rig = rig(2);
    let t = throttled(&mut rig, "errors");
    t.device.set_automatic(true);
    limit("errors", Kind::OpsTotal, Limit::average(10));
    t.device.fail_next(Operation::Read, 3);
    for n in 0..5 {
        submit(1, t.backend, read(0, 512), n);
    }
    for _ in 0..5 {
        wait(&rig, 100 * MS);
    }
    let errors = results()
        .iter()
        .filter(|r| r.1 == Err(BlockError::Io))
        .count();
    assert_eq!(errors, 3);
    rig.finish();
    free("errors");
}

#[test]
fn the_node_is_what_its_child_is_and_its_places_come_back() {
    let mut rig = rig(1);
    let (device, disk) = bare_disk(&mut rig);
    let node = on_disk(0, disk, None);
    let backend = rig.backend(node);
    let info = backend.limits().unwrap();
    assert_eq!((info.kind, info.size), ("throttle", 1 << 20));
    let driver = graph::driver(node).unwrap();
    assert_eq!(group_of(driver), graph::name(node));
    assert_eq!(group_of(graph::driver(disk).unwrap()), None);
    device.resize(1 << 21);
    rig.settle();
    assert_eq!(backend.size(), 1 << 21);
    rig.nodes.push(disk);
    // More often than there are nodes or groups: all come back, whatever stood against them.
    for round in 0..4 * THROTTLES {
        let (name, group) = [("8", "ok"), ("ok", "7"), ("ok", "ok"), ("ok", "ok")][round % 4];
        let child = if round % 4 == 2 { node } else { disk };
        let options = Options {
            child,
            group: Some(group),
        };
        let made = on(0, || create(name, options));
        assert_eq!(made.is_ok(), round % 4 >= 2, "{made:?}");
        if let Ok(made) = made {
            on(0, || graph::delete(made)).unwrap();
        }
    }
    rig.finish();
}

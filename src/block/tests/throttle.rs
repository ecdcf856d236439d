//! The throttle node: rates, bursts, groups and their fairness, changes of the limits.

use std::sync::atomic::Ordering;

use super::*;
use crate::block::graph;
use crate::block::node::throttle::{Options, create, group_of};
use crate::block::throttle::{Config, GroupError, Kind, Limit, Unfit, configure, remove_group};
use crate::config::THROTTLES;

pub(super) const MS: u64 = 1_000_000;

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

pub(super) struct Throttled {
    pub device: &'static TestDisk,
    pub node: NodeId,
    pub backend: &'static Backend,
}

/// A backend on a throttle on a disk.
pub(super) fn throttled(rig: &mut Rig, group: &str) -> Throttled {
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

pub(super) fn limit(group: &str, kind: Kind, limit: Limit) {
    on(0, || configure(group, &Config::only(kind, limit)).unwrap());
}

pub(super) fn free(group: &str) {
    on(0, || remove_group(group).unwrap());
}

pub(super) fn wait(rig: &Rig, ns: u64) {
    host::clock::advance(ns);
    rig.settle();
}

pub(super) fn reached(device: &TestDisk) -> usize {
    device.log().len()
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

//! Spare records (CS-12): reservation in order, back-pressure, drained sections at full load, nothing lost.

use std::sync::atomic::{AtomicU32, Ordering};

use super::verify::{Pair, pair};
use super::*;
use crate::aio::Callback;
use crate::block::graph;
use crate::block::node::verify::{Options, create, mismatches};
use crate::config::{REQUEST_RESERVED, REQUESTS_PER_CORE, SPARES_PER_CORE};

static QUIET: AtomicU32 = AtomicU32::new(0);

fn quiet(_: usize) {
    QUIET.fetch_add(1, Ordering::Relaxed);
}

/// Two pairs below a pair: a read becomes four, of three spares.
struct Deep {
    backend: &'static Backend,
    top: NodeId,
    devices: Vec<&'static TestDisk>,
}

fn deep(rig: &mut Rig) -> Deep {
    let pairs = [0, 1].map(|_| pair(rig, with_everything(1 << 20)));
    let children = [pairs[0].node, pairs[1].node];
    let top = on(0, || create(&super::verify::name(), Options { children })).unwrap();
    let backend = rig.backend(top);
    rig.nodes.extend(children);
    let mut devices = Vec::new();
    for Pair { disks, below, .. } in pairs {
        rig.nodes.extend(below);
        devices.extend(disks);
    }
    Deep {
        backend,
        top,
        devices,
    }
}

fn held(deep: &Deep) -> usize {
    deep.devices.iter().map(|device| device.held()).sum()
}

/// The devices answer until nothing is left to answer.
fn run(rig: &Rig, devices: &[&'static TestDisk]) {
    loop {
        rig.settle();
        let answered: usize = devices
            .iter()
            .map(|device| {
                (0..rig.cores)
                    .map(|core| on(core, || device.finish_all()))
                    .sum::<usize>()
            })
            .sum();
        if answered == 0 {
            return;
        }
    }
}

#[test]
fn cs_12_a_deep_graph_at_exactly_full_load_pushes_back_and_a_drain_completes() {
    let mut rig = rig(2);
    let deep = deep(&mut rig);
    assert_eq!(deep.backend.limits().unwrap().cost, 3);
    let most = REQUESTS_PER_CORE - REQUEST_RESERVED;
    for n in 0..most as u64 {
        submit(1, deep.backend, read(n * 512, 512), n);
    }
    assert!(
        on(1, || request::new(Operation::Read, 0, 512)).is_none(),
        "full load"
    );
    rig.settle();
    let running = SPARES_PER_CORE / 3;
    assert_eq!(
        on(1, || spare_usage(1)),
        (running * 3, most - running),
        "as many as there are spares for, and the others wait"
    );
    assert_eq!(held(&deep), running * 4);
    assert_eq!(
        deep.backend.in_flight() as usize,
        most,
        "those that wait are in flight"
    );
    assert_eq!(deep.backend.parked(), 0);
    QUIET.store(0, Ordering::Relaxed);
    on(0, || {
        graph::drain::drain_begin(deep.top, Callback::new(&quiet, 0)).unwrap()
    });
    rig.settle();
    assert_eq!(QUIET.load(Ordering::Relaxed), 0);
    run(&rig, &deep.devices);
    assert_eq!(
        QUIET.load(Ordering::Relaxed),
        1,
        "they went on, and the drain ended"
    );
    assert_eq!(deep.backend.in_flight(), 0);
    assert_eq!(on(1, || spare_usage(1)), (0, 0));
    let order: Vec<u64> = done().iter().map(|done| done.tag).collect();
    assert_eq!(order.len(), most);
    assert!(order.is_sorted(), "first come, first served");
    on(0, || graph::drain::drain_end(deep.top));
    assert_eq!(mismatches(deep.top), Some((0, 0)));
    rig.finish();
}

#[test]
fn spares_come_back_after_errors_refusals_and_parts() {
    let mut rig = rig(2);
    let deep = deep(&mut rig);
    // Never more than there are, so nobody waits for long; each of them fails in another place.
    for (n, device) in deep.devices.iter().enumerate() {
        for operation in [
            Operation::Read,
            Operation::Write,
            Operation::WriteZeroes,
            Operation::Flush,
        ] {
            device.fail_next(operation, 1);
            let ask = match operation {
                Operation::Flush => flush(),
                Operation::Write => write(0, 4096, 7),
                other => ask(other, 0, 4096),
            };
            submit(1, deep.backend, ask, n as u64);
            run(&rig, &deep.devices);
            device.fail_next(operation, 0);
            assert_eq!(
                results(),
                [(n as u64, Err(BlockError::Io))],
                "{operation:?}"
            );
            assert_eq!(on(1, || spare_usage(1)), (0, 0));
        }
        // A device that failed is reset for the next.
        run(&rig, &deep.devices);
    }
    // Refused before it needs any.
    submit(1, deep.backend, read(1 << 30, 512), 100);
    submit(1, deep.backend, read(1, 512), 101);
    submit(1, deep.backend, read(0, 0), 102);
    rig.settle();
    assert_eq!(
        results(),
        [
            (100, Err(BlockError::Invalid)),
            (101, Err(BlockError::Invalid)),
            (102, Ok(()))
        ]
    );
    rig.finish();
}

#[test]
fn those_that_wait_for_spares_go_on_when_others_end_whatever_their_backend() {
    let mut rig = rig(1);
    let a = pair(&mut rig, with_everything(1 << 20));
    let b = pair(&mut rig, with_everything(1 << 20));
    let backends = [a.node, b.node].map(|node| rig.backend(node));
    rig.nodes.extend(a.below);
    rig.nodes.extend(b.below);
    for n in 0..SPARES_PER_CORE as u64 {
        submit(0, backends[0], flush(), n);
    }
    for n in 0..4 {
        submit(0, backends[1], write(n * 4096, 4096, 1), 100 + n);
    }
    rig.settle();
    assert_eq!(on(0, || spare_usage(0)), (SPARES_PER_CORE, 4));
    assert_eq!(b.disks[0].held(), 0);
    // A drain of the second backend waits for requests that wait for the first's.
    rig.drain(backends[1]);
    assert!(!rig.quiet(backends[1]));
    run(&rig, &a.disks);
    assert_eq!(
        b.disks[0].held(),
        4,
        "they go on inside the section: they entered before"
    );
    run(&rig, &b.disks);
    assert!(rig.quiet(backends[1]));
    assert_eq!(results().len(), SPARES_PER_CORE + 4);
    rig.undrain(backends[1]);
    rig.finish();
}

#[test]
fn who_needs_less_does_not_pass_who_waits() {
    let mut rig = rig(1);
    let deep = deep(&mut rig);
    let pair = pair(&mut rig, with_everything(1 << 20));
    let backend = rig.backend(pair.node);
    rig.nodes.extend(pair.below);
    let running = SPARES_PER_CORE as u64 / 3;
    for n in 0..=running {
        submit(0, deep.backend, flush(), n);
    }
    // There is a spare left, as it happens; but one that needs three came before.
    const { assert!(SPARES_PER_CORE % 3 >= 1) };
    submit(0, backend, flush(), 100);
    rig.settle();
    assert_eq!(on(0, || spare_usage(0)), (SPARES_PER_CORE / 3 * 3, 2));
    let devices: Vec<_> = deep.devices.iter().chain(&pair.disks).copied().collect();
    run(&rig, &devices);
    assert_eq!(results().len() as u64, running + 2);
    rig.finish();
}

#[test]
fn without_a_cost_no_spare_is_touched() {
    let mut rig = rig(1);
    let f = rig.disk(with_flush(1 << 20));
    submit(0, f.backend, read(0, 512), 1);
    rig.settle();
    assert_eq!(on(0, || spare_usage(0)), (0, 0));
    rig.run(f.device);
    rig.finish();
}

#[test]
fn a_graph_that_needs_more_spares_than_there_are_is_refused() {
    let rig = rig(1);
    struct Greedy;
    impl node::Layer for Greedy {
        fn completed(&'static self, request: Request) -> node::Ascent {
            node::Ascent::Up(request)
        }
    }
    impl node::NodeDriver for Greedy {
        fn info(&self) -> NodeInfo {
            NodeInfo {
                cost: SPARES_PER_CORE as u16 + 1,
                ..NodeInfo::NONE
            }
        }
        fn submit(&'static self, request: Request) {
            request::complete(request, Ok(()));
        }
    }
    let node = on(0, || graph::add("greedy", &Greedy)).unwrap();
    assert!(on(0, || Backend::create("too-much", "test", node)).is_err());
    on(0, || graph::delete(node)).unwrap();
    rig.finish();
}

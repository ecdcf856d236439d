//! Delay, null and ram: when they answer, with what, and what they leave behind.

use super::kinds::{faulty, slow};
use super::*;
use crate::block::graph;
use crate::block::node::delay::{self, DelayOptions, Latencies};
use crate::block::node::error::{self, Rule};
use crate::block::node::{null, ram};
use crate::config::{DELAYS, ERRORS};
use Operation::{Discard, Flush, WriteZeroes};

pub(super) const MS: u64 = 1_000_000;

fn pass(rig: &Rig, ns: u64) -> Vec<u64> {
    host::clock::advance(ns);
    rig.settle();
    results()
        .into_iter()
        .map(|(tag, result)| {
            assert_eq!(result, Ok(()));
            tag
        })
        .collect()
}

pub(super) const ALL: Latencies = Latencies {
    read: MS,
    write: 3 * MS,
    flush: 5 * MS,
};

#[test]
fn a_delay_holds_each_sort_of_request_for_its_time() {
    let mut rig = rig(3);
    let f = rig.disk(with_everything(1 << 20));
    f.device.set_automatic(true);
    let backend = rig.backend(slow(f.disk.node(), ALL));
    submit(1, backend, flush(), 1);
    submit(1, backend, write(0, 512, 1), 2);
    submit(2, backend, ask(Discard, 512, 512), 3);
    submit(2, backend, ask(WriteZeroes, 1024, 512), 4);
    submit(1, backend, read(0, 512), 5);
    rig.settle();
    assert_eq!(pass(&rig, MS - 1), []);
    assert_eq!(f.device.log(), [], "the child has not seen it yet");
    assert_eq!(backend.in_flight(), 5);
    submit(1, backend, read(0, 512), 6);
    assert_eq!(pass(&rig, 1), [5]);
    assert_eq!(pass(&rig, MS), [6]);
    assert_eq!(pass(&rig, MS), [2, 3, 4]);
    assert_eq!(pass(&rig, 2 * MS - 1), []);
    assert_eq!(pass(&rig, 1), [1]);
    assert_eq!(operations(f.device).last(), Some(&Flush));
    // None at all goes through at once.
    let node = backend.root().unwrap();
    delay::set(node, Latencies::default()).unwrap();
    submit(0, backend, read(0, 512), 7);
    rig.settle();
    assert_eq!(results(), [(7, Ok(()))]);
    assert_eq!(delay::latencies(node), Some(Latencies::default()));
    rig.finish();
}

#[test]
fn a_shorter_time_holds_for_what_waits_already() {
    let mut rig = rig(2);
    let f = rig.disk(with_flush(1 << 20));
    f.device.set_automatic(true);
    let node = slow(
        f.disk.node(),
        Latencies {
            read: 60_000 * MS,
            ..ALL
        },
    );
    let backend = rig.backend(node);
    submit(1, backend, read(0, 512), 1);
    submit(1, backend, read(0, 512), 2);
    assert_eq!(pass(&rig, MS), []);
    delay::set(
        node,
        Latencies {
            read: 2 * MS,
            ..ALL
        },
    )
    .unwrap();
    rig.settle();
    submit(1, backend, read(0, 512), 3);
    assert_eq!(pass(&rig, 2 * MS - 1), []);
    assert_eq!(pass(&rig, 1), [1, 2, 3]);
    // A longer one does not.
    submit(1, backend, read(0, 512), 4);
    delay::set(
        node,
        Latencies {
            read: u64::MAX,
            ..ALL
        },
    )
    .unwrap();
    submit(1, backend, read(0, 512), 5);
    assert_eq!(pass(&rig, 2 * MS), [4]);
    delay::set(node, ALL).unwrap();
    rig.settle();
    assert_eq!(pass(&rig, MS), [5]);
    assert_eq!(delay::set(f.disk.node(), ALL), Err(BlockError::NoMedium));
    rig.finish();
}

/// Nobody who drains waits for an instrument, and what is submitted meanwhile by a user without parking is not held either.
#[test]
fn a_drained_section_lets_a_delay_s_requests_go_at_once() {
    let mut rig = rig(3);
    let f = rig.disk(with_flush(1 << 20));
    f.device.set_automatic(true);
    let hour = Latencies {
        read: 3_600_000 * MS,
        write: 3_600_000 * MS,
        flush: 0,
    };
    let node = slow(f.disk.node(), hour);
    let backend = rig.backend(node);
    for core in 0..3 {
        submit(core, backend, read(0, 512), core as u64);
        submit(core, backend, write(512, 512, 1), 10 + core as u64);
    }
    rig.settle();
    assert_eq!((results().len(), backend.in_flight()), (0, 6));
    on(0, || {
        graph::drain::drain_begin(node, aio::Callback::new(&ignore, 0))
    })
    .unwrap();
    rig.settle();
    assert_eq!(results().len(), 6);
    assert!(on(0, || graph::drain::is_quiet(node)));
    backend.set_parking(false);
    on(0, || graph::drain::drain_end(node));
    rig.settle();
    submit(0, backend, read(0, 512), 1);
    rig.settle();
    assert_eq!(results(), [], "held again");
    on(0, || {
        graph::drain::drain_begin(node, aio::Callback::new(&ignore, 0))
    })
    .unwrap();
    submit(0, backend, read(0, 512), 2);
    rig.settle();
    assert_eq!(results().len(), 2);
    on(0, || graph::drain::drain_end(node));
    rig.settle();
    rig.finish();
}

#[test]
fn a_delay_is_as_durable_as_its_child() {
    let mut rig = rig(1);
    let f = rig.disk(with_flush(1 << 20));
    f.device.set_automatic(true);
    let backend = rig.backend(slow(f.disk.node(), ALL));
    submit(0, backend, write(0, 512, 1).fua(), 1);
    assert_eq!(pass(&rig, 3 * MS), [1]);
    submit(0, backend, write(512, 512, 2), 2);
    assert_eq!(pass(&rig, 3 * MS), [2]);
    assert_eq!((f.device.durable()[0], f.device.durable()[512]), (1, 0));
    submit(0, backend, flush(), 3);
    assert_eq!(pass(&rig, 5 * MS), [3]);
    assert_eq!(f.device.durable()[512], 2);
    rig.finish();
}

#[test]
fn delays_and_error_nodes_are_free_again_when_deleted() {
    let mut rig = rig(1);
    let f = rig.disk(with_flush(1 << 20));
    for _ in 0..3 {
        let mut nodes = Vec::new();
        (0..DELAYS).for_each(|_| nodes.push(slow(f.disk.node(), ALL)));
        (0..ERRORS).for_each(|_| nodes.push(faulty(f.disk.node())));
        let (first, options) = (
            nodes[DELAYS],
            DelayOptions {
                child: f.disk.node(),
                latencies: ALL,
            },
        );
        assert!(on(0, || delay::create("one-more", options)).is_err());
        assert!(on(0, || error::create("one-more", f.disk.node())).is_err());
        error::add_rule(first, Rule::new(BlockError::Io)).unwrap();
        nodes
            .into_iter()
            .for_each(|node| on(0, || graph::delete(node)).unwrap());
        assert_eq!(
            error::add_rule(first, Rule::new(BlockError::Io)),
            Err(BlockError::NoMedium)
        );
    }
    // The next one has no rules of the last.
    let backend = rig.backend(faulty(f.disk.node()));
    assert_eq!(error::rules(backend.root().unwrap()).len(), 0);
    rig.finish();
}

#[test]
fn null_and_ram_nodes_are_free_again_when_deleted() {
    let rig = rig(1);
    let options = null::NullOptions {
        size: 1 << 20,
        block: 512,
        read_zeroes: true,
        latency_ns: 0,
    };
    let taken = ram::pages().0;
    for round in 0..10 {
        let null = on(0, || null::create("null-again", options)).unwrap();
        assert!(on(0, || null::create("null-again", options)).is_err());
        let memory = Vec::leak(std::vec![1; 8192]);
        let ram = on(0, || ram::create("ram-again", memory, 512)).unwrap();
        let own = on(0, || ram::create_from_pages("ram-own", 40_000, 512)).unwrap();
        assert_eq!(
            graph::driver(own).unwrap().info().size,
            39_936,
            "round {round}"
        );
        assert_eq!(ram::pages().0 - taken, 10);
        assert!(on(0, || ram::create_from_pages("ram-own", 512, 512)).is_err());
        let all = ram::pages().1 * 4096;
        let refusal = on(0, || ram::create_from_pages("too-large", all, 512)).unwrap_err();
        assert_eq!(BlockError::from(refusal), BlockError::NoMemory);
        for node in [null, ram, own] {
            on(0, || graph::delete(node)).unwrap();
        }
        assert_eq!(ram::pages().0, taken);
    }
    rig.finish();
}

/// What one node left in its pages is not the next one's.
#[test]
fn pages_of_a_deleted_ram_node_come_back_as_zeroes() {
    // All of them, so that the second one has what the first one had.
    let size = crate::config::RAM_PAGES as u64 * 4096;
    for round in 0..2 {
        let mut rig = rig(1);
        let node = on(0, || {
            ram::create_from_pages(&unique("own"), size as usize, 4096)
        })
        .unwrap();
        let backend = rig.backend(node);
        let status = backend.block_status(0, size).unwrap();
        assert_eq!((status.len, status.hole), (size, true));
        submit(0, backend, read(0, size), 1);
        rig.settle();
        assert!(done()[0].data.iter().all(|b| *b == 0), "round {round}");
        submit(0, backend, write(4096, size / 2, 7), 2);
        submit(0, backend, read(4096, size / 2), 3);
        rig.settle();
        assert!(done()[1].data.iter().all(|b| *b == 7));
        rig.finish();
    }
}

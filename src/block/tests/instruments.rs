//! Delay, error, null and ram: when they answer, with what, and what they leave behind.

use super::model::Random;
use super::*;
use crate::block::graph;
use crate::block::node::delay::{self, DelayOptions, Latencies};
use crate::block::node::error::{self, Operations, Rule, When};
use crate::block::node::partition::{self, PartitionOptions};
use crate::block::node::{concat, null, ram};
use crate::config::{DELAYS, ERROR_RULES, ERRORS};
use Operation::{Discard, Flush, Read, Write, WriteZeroes};

const MS: u64 = 1_000_000;

fn slow(child: NodeId, latencies: Latencies) -> NodeId {
    let options = DelayOptions { child, latencies };
    on(0, || delay::create(&unique("delay"), options).unwrap())
}

fn faulty(child: NodeId) -> NodeId {
    on(0, || error::create(&unique("error"), child).unwrap())
}

fn part(child: NodeId, offset: u64, len: u64) -> NodeId {
    let options = PartitionOptions {
        child,
        offset,
        len: Some(len),
    };
    on(0, || partition::create(&unique("part"), options).unwrap())
}

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

const ALL: Latencies = Latencies {
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

/// Tags of what failed, of `asks` in order, one after another; all with `error`.
fn failures(rig: &Rig, backend: &'static Backend, asks: &[Ask], error: BlockError) -> Vec<u64> {
    let mut failed = Vec::new();
    for (tag, ask) in asks.iter().enumerate() {
        submit(0, backend, *ask, tag as u64);
        rig.settle();
        for (tag, result) in results() {
            if result.is_err() {
                assert_eq!(result, Err(error));
                failed.push(tag);
            }
        }
    }
    failed
}

#[test]
fn rules_choose_operations_ranges_counts_and_errors() {
    let mut rig = rig(1);
    let f = rig.disk(with_everything(1 << 20));
    f.device.set_automatic(true);
    let node = faulty(f.disk.node());
    let backend = rig.backend(node);
    let asks = [
        read(0, 4096),
        write(0, 4096, 1),
        flush(),
        ask(Discard, 0, 4096),
        ask(WriteZeroes, 0, 4096),
        read(4096, 4096),
        read(4096, 8192),
        read(12288, 512),
        write(4096, 512, 2),
    ];
    let fail = |rule: Rule| {
        let number = error::add_rule(node, rule).unwrap();
        let failed = failures(&rig, backend, &asks, rule.error);
        error::remove_rule(node, Some(number)).unwrap();
        failed
    };
    let all = Rule::new(BlockError::NoSpace);
    assert_eq!(fail(all), [0, 1, 2, 3, 4, 5, 6, 7, 8]);
    let only = |operations| Rule { operations, ..all };
    assert_eq!(fail(only(Operations::READ)), [0, 5, 6, 7]);
    assert_eq!(fail(only(Operations::WRITE)), [1, 8]);
    assert_eq!(fail(only(Operations::FLUSH)), [2]);
    assert_eq!(
        fail(only(Operations::DISCARD | Operations::WRITE_ZEROES)),
        [3, 4]
    );
    // From byte 8191 to 12287, both included.
    let range = Rule {
        start: 8191,
        end: 12288,
        ..all
    };
    assert_eq!(fail(range), [5, 6]);
    assert_eq!(fail(Rule { skip: 2, ..all }), [2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(
        fail(Rule {
            skip: 1,
            count: Some(3),
            ..all
        }),
        [1, 2, 3]
    );
    assert_eq!(
        fail(Rule {
            count: Some(1),
            operations: Operations::READ,
            ..range
        }),
        [5]
    );
    for error in [
        "eio",
        "ENOSPC",
        "einval",
        "eperm",
        "enotsup",
        "enomedium",
        "ebusy",
        "ecanceled",
        "eshutdown",
        "enomem",
    ] {
        let error = error::error_named(error).unwrap();
        assert_eq!(
            fail(Rule {
                count: Some(1),
                ..Rule::new(error)
            }),
            [0]
        );
    }
    assert_eq!(error::error_named("efoo"), None);
    assert_eq!(
        fail(Rule {
            probability: 0,
            ..all
        }),
        []
    );
    rig.finish();
}

#[test]
fn the_first_rule_that_applies_wins_and_counts() {
    let mut rig = rig(1);
    let f = rig.disk(with_flush(1 << 20));
    f.device.set_automatic(true);
    let node = faulty(f.disk.node());
    let backend = rig.backend(node);
    let reads = Rule {
        operations: Operations::READ,
        count: Some(1),
        ..Rule::new(BlockError::NoMemory)
    };
    error::add_rule(node, reads).unwrap();
    let second = error::add_rule(node, Rule::new(BlockError::Io)).unwrap();
    for tag in 0..3 {
        submit(0, backend, read(0, 512), tag);
        rig.settle();
    }
    let io = Err(BlockError::Io);
    assert_eq!(
        results(),
        [(0, Err(BlockError::NoMemory)), (1, io), (2, io)]
    );
    let seen: Vec<_> = error::rules(node)
        .iter()
        .map(|r| (r.number, r.seen, r.failed))
        .collect();
    assert_eq!(seen, [(1, 3, 1), (2, 2, 2)]);
    for _ in 2..ERROR_RULES {
        error::add_rule(node, reads).unwrap();
    }
    assert_eq!(error::add_rule(node, reads), Err(BlockError::NoMemory));
    error::remove_rule(node, Some(second)).unwrap();
    assert_eq!(
        error::remove_rule(node, Some(second)),
        Err(BlockError::Invalid)
    );
    let nothing = [
        Rule {
            operations: Operations::empty(),
            ..reads
        },
        Rule {
            start: 512,
            end: 512,
            ..reads
        },
        Rule {
            probability: error::ALWAYS + 1,
            ..reads
        },
    ];
    error::remove_rule(node, None).unwrap();
    for rule in nothing {
        assert_eq!(error::add_rule(node, rule), Err(BlockError::Invalid));
    }
    assert!(failures(&rig, backend, &[read(0, 512)], BlockError::Io).is_empty());
    rig.finish();
}

#[test]
fn an_error_comes_before_or_after_the_child_has_done_it() {
    let mut rig = rig(2);
    let f = rig.disk(with_flush(1 << 20));
    f.device.set_automatic(true);
    let node = faulty(f.disk.node());
    let backend = rig.backend(node);
    let once = |when| Rule {
        when,
        count: Some(1),
        ..Rule::new(BlockError::NoSpace)
    };
    error::add_rule(node, once(When::Before)).unwrap();
    submit(1, backend, write(0, 512, 1), 1);
    rig.settle();
    assert_eq!((f.device.log().len(), f.device.visible()[0]), (0, 0));
    error::add_rule(node, once(When::After)).unwrap();
    submit(1, backend, write(0, 512, 2).fua(), 2);
    rig.settle();
    assert_eq!((f.device.visible()[0], f.device.durable()[0]), (2, 2));
    // The child's own error is not covered up.
    error::add_rule(node, once(When::After)).unwrap();
    f.device.fail_next(Read, 1);
    submit(1, backend, read(0, 512), 3);
    rig.settle();
    let no = Err(BlockError::NoSpace);
    assert_eq!(results(), [(1, no), (2, no), (3, Err(BlockError::Io))]);
    rig.finish();
}

#[test]
fn chance_comes_from_the_seed_alone() {
    let mut rig = rig(1);
    let f = rig.disk(with_flush(1 << 20));
    f.device.set_automatic(true);
    let node = faulty(f.disk.node());
    let backend = rig.backend(node);
    let asks = std::vec![read(0, 512); 400];
    let play = |seed, probability| {
        let rule = Rule {
            seed,
            probability,
            ..Rule::new(BlockError::Io)
        };
        let number = error::add_rule(node, rule).unwrap();
        let failed = failures(&rig, backend, &asks, BlockError::Io);
        error::remove_rule(node, Some(number)).unwrap();
        failed
    };
    let quarter = play(1, 250_000);
    // Binomial: 100 expected, standard deviation 8.7; the seed is fixed, so this cannot fail by chance.
    assert!((60..=140).contains(&quarter.len()), "{}", quarter.len());
    assert_eq!(play(1, 250_000), quarter);
    assert_ne!(play(2, 250_000), quarter);
    assert_ne!(play(0, 250_000), quarter);
    rig.finish();
}

/// A chain of every filter, with an error node in each place in turn: the error arrives as it is, nothing is left behind, and all
/// that follows is as if nothing had been.
#[test]
fn an_error_in_every_place_of_a_chain_arrives_and_leaks_nothing() {
    const FILTERS: usize = 4;
    for place in 0..=FILTERS {
        for when in [When::Before, When::After] {
            let mut rig = rig(3);
            let disks = [(); 2].map(|()| rig.disk(with_everything(1 << 20)));
            disks.iter().for_each(|f| f.device.set_automatic(true));
            let mut node = disks[0].disk.node();
            let mut failing = None;
            for n in 0..=FILTERS {
                if n == place {
                    node = rig.keep(faulty(node));
                    failing = Some(node);
                }
                node = match n {
                    0 => slow(node, Latencies { read: MS, ..ALL }),
                    1 => part(node, 64 * 1024, 512 * 1024),
                    2 => on(0, || {
                        concat::create(&unique("row"), &[node, disks[1].disk.node()])
                    })
                    .unwrap(),
                    3 => part(node, 4096, 1 << 20),
                    _ => break,
                };
                rig.keep(node);
            }
            let failing = failing.unwrap();
            let backend = rig.backend(node);
            let end = backend.size();
            // Over the boundary of the two, and longer than a backend sends down in one piece.
            let asks = [
                write(0, 4096, 1),
                write(500 * 1024, 32 * 1024, 2).fua(),
                read(500 * 1024, 32 * 1024),
                flush(),
                ask(WriteZeroes, 0, end),
                ask(Discard, 4096, 8192),
            ];
            for (tag, ask) in asks.into_iter().enumerate() {
                let rule = Rule {
                    when,
                    count: Some(1),
                    ..Rule::new(BlockError::NoSpace)
                };
                let number = error::add_rule(failing, rule).unwrap();
                let core = tag % 3;
                // All at once, of which one fails.
                (0..6).for_each(|n| submit(core, backend, ask, n));
                for _ in 0..12 {
                    pass_all(&rig);
                }
                let all = results();
                let failed = all
                    .iter()
                    .filter(|(_, r)| *r == Err(BlockError::NoSpace))
                    .count();
                let good = all.iter().filter(|(_, r)| r.is_ok()).count();
                assert_eq!(
                    (failed, good),
                    (1, 5),
                    "place {place}, {when:?}, request {tag}"
                );
                assert_eq!(backend.in_flight(), 0);
                (0..3).for_each(|core| assert_eq!(on(core, || request_usage().0), 0));
                error::remove_rule(failing, Some(number)).unwrap();
            }
            assert_eq!(backend.stats().all_errors(), 6);
            submit(0, backend, write(0, 512, 0xaa), 1);
            pass_all(&rig);
            submit(0, backend, read(0, 512), 2);
            pass_all(&rig);
            let all = done();
            assert!(all[0].result.is_ok() && all[1].data.iter().all(|b| *b == 0xaa));
            rig.finish();
        }
    }
}

fn pass_all(rig: &Rig) {
    rig.settle();
    host::clock::advance(6 * MS);
    rig.settle();
}

/// Random operations through the whole chain against a vector.
#[test]
fn a_chain_of_all_filters_matches_a_vector() {
    let mut rig = rig(3);
    let disks = [(); 3].map(|()| rig.disk(with_everything(256 * 1024)));
    disks.iter().for_each(|f| f.device.set_automatic(true));
    let late = rig.keep(slow(disks[1].disk.node(), ALL));
    let piece = rig.keep(part(disks[0].disk.node(), 512, 100 * 1024));
    let row = [piece, late, disks[2].disk.node()];
    let row = rig.keep(on(0, || concat::create(&unique("row"), &row)).unwrap());
    let window = rig.keep(part(row, 1536, 500 * 1024));
    let backend = rig.backend(faulty(window));
    let size = backend.size();
    let mut model = std::vec![0u8; size as usize];
    let mut random = Random::new(11);
    for step in 0..500u64 {
        let offset = random.below(size / 512) * 512;
        let len = (1 + random.below(400)).min((size - offset) / 512) * 512;
        let range = offset as usize..(offset + len) as usize;
        let fill = random.below(255) as u8 + 1;
        let operation = [Read, Write, WriteZeroes, Flush][random.below(4) as usize];
        match operation {
            Write => model[range.clone()].fill(fill),
            WriteZeroes => model[range.clone()].fill(0),
            _ => {}
        }
        let fua = random.below(4) == 0;
        let mut asked = Ask {
            fill,
            ..ask(operation, offset, len)
        }
        .in_segments(16 * 1024);
        if fua {
            asked = asked.fua();
        }
        submit(random.below(3) as usize, backend, asked, step);
        (0..3).for_each(|_| pass_all(&rig));
        let done = done();
        assert_eq!(done[0].result, Ok(()), "step {step}");
        assert!(
            operation != Read || done[0].data == model[range.clone()],
            "step {step}"
        );
        if operation == Flush {
            disks
                .iter()
                .for_each(|f| assert!(f.device.durable() == f.device.visible()));
        }
    }
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

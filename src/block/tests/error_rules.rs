//! The error node: which rule applies, when, how often, and with what.

use super::kinds::faulty;
use super::*;
use crate::block::node::error::{self, Operations, Rule, When};
use crate::config::ERROR_RULES;
use Operation::{Discard, Read, WriteZeroes};

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

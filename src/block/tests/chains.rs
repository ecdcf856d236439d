//! Chains of every filter: an error in each place, and random operations against a vector.

use super::instruments::{ALL, MS};
use super::kinds::{faulty, part, row, slow};
use super::model::Random;
use super::*;
use crate::block::node::delay::Latencies;
use crate::block::node::error::{self, Rule, When};
use Operation::{Discard, Flush, Read, Write, WriteZeroes};

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
                    2 => row(&[node, disks[1].disk.node()]),
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
    let long = rig.keep(row(&[piece, late, disks[2].disk.node()]));
    let window = rig.keep(part(long, 1536, 500 * 1024));
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

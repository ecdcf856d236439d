//! Concat: where the data go, what is made durable, what errors leave behind.

use super::kinds::{memory, row};
use super::model::Random;
use super::*;
use crate::block::graph;
use crate::block::node::concat;
use Operation::{Discard, Flush, Read, Write, WriteZeroes};

#[test]
fn a_row_matches_a_vector() {
    for blocks in [[512, 512, 512], [512, 4096, 512]] {
        let mut rig = rig(3);
        let sizes = [96 * 1024 + 512, 64 * 1024, 128 * 1024 + 1024];
        let children: Vec<_> = (0..3).map(|n| memory(sizes[n], blocks[n])).collect();
        let node = row(&children);
        let backend = rig.backend(node);
        children.iter().for_each(|child| _ = rig.keep(*child));
        let block = u64::from(blocks[1].max(blocks[0]));
        assert_eq!(u64::from(backend.logical_block()), block);
        let used = sizes.map(|size| size as u64 / block * block);
        assert_eq!(backend.size(), used.iter().sum::<u64>());
        let size = backend.size();
        let mut model = std::vec![0u8; size as usize];
        let mut random = Random::new(7);
        for step in 0..600u64 {
            let offset = random.below(size / block) * block;
            let most = if random.below(4) == 0 {
                size
            } else {
                16 * block
            };
            let len = (1 + random.below(most / block)).min((size - offset) / block) * block;
            let range = offset as usize..(offset + len) as usize;
            let fill = random.below(255) as u8 + 1;
            let operation = [Read, Read, Write, WriteZeroes, Flush][random.below(5) as usize];
            match operation {
                Write => model[range.clone()].fill(fill),
                WriteZeroes => model[range.clone()].fill(0),
                _ => {}
            }
            let asked = Ask {
                fill,
                ..ask(operation, offset, len)
            };
            let segment = [0, 4096, 12 * 1024 + 512][random.below(3) as usize];
            let asked = if len <= 64 * 1024 {
                asked.in_segments(segment)
            } else {
                asked
            };
            submit(random.below(3) as usize, backend, asked, step);
            rig.settle();
            let done = done();
            assert_eq!(done[0].result, Ok(()), "step {step}");
            assert!(
                operation != Read || done[0].data == model[range],
                "step {step}"
            );
        }
        // What is beyond the last whole block of a child is not touched.
        submit(0, backend, read(size, block), 1);
        rig.settle();
        assert_eq!(results(), [(1, Err(BlockError::Invalid))]);
        rig.finish();
    }
}

struct Row {
    disks: [Fixture; 3],
    node: NodeId,
    backend: &'static Backend,
}

/// Three disks of 64 KiB in a row.
fn three(rig: &mut Rig) -> Row {
    let disks = [(); 3].map(|()| rig.disk(with_everything(64 * 1024)));
    let node = row(&disks.map(|f| f.disk.node()));
    let backend = rig.backend(node);
    Row {
        disks,
        node,
        backend,
    }
}

impl Row {
    fn automatic(&self) {
        self.disks.iter().for_each(|f| f.device.set_automatic(true));
    }

    fn flushes(&self) -> [usize; 3] {
        self.disks.map(|f| {
            let log = f.device.log();
            log.iter().filter(|e| e.operation == Flush).count()
        })
    }

    fn run(&self, rig: &Rig) {
        for _ in 0..4 {
            self.disks.iter().for_each(|f| rig.run(f.device));
        }
    }
}

#[test]
fn a_request_over_boundaries_goes_part_by_part() {
    let mut rig = rig(2);
    let row = three(&mut rig);
    row.automatic();
    let k = 1024;
    submit(
        1,
        row.backend,
        write(60 * k, 72 * k, 3).in_segments(5 * 1024).fua(),
        1,
    );
    rig.settle();
    assert_eq!(results(), [(1, Ok(()))]);
    assert_eq!(
        row.disks.map(|f| submitted(f.device)),
        [
            Vec::from([(Write, 60 * k, 4 * k), (Flush, 0, 0)]),
            Vec::from([(Write, 0, 64 * k), (Flush, 0, 0)]),
            Vec::from([(Write, 0, 4 * k), (Flush, 0, 0)])
        ],
        "each part has its FUA"
    );
    for f in row.disks {
        assert_eq!(f.device.durable(), f.device.visible());
        f.device.clear_log();
    }
    submit(0, row.backend, read(60 * k, 72 * k), 1);
    submit(0, row.backend, ask(Discard, 63 * k, 2 * k), 2);
    rig.settle();
    let all = done();
    assert!(all.iter().all(|d| d.result.is_ok()));
    assert!(
        all.iter()
            .any(|d| d.data.len() == 72 * 1024 && d.data.iter().all(|b| *b == 3))
    );
    assert_eq!(submitted(row.disks[0].device)[1..], [(Discard, 63 * k, k)]);
    assert_eq!(submitted(row.disks[1].device)[1..], [(Discard, 0, k)]);
    // Allocation, too, ends at the boundary.
    assert_eq!(row.backend.block_status(0, 192 * k).unwrap().len, 64 * k);
    assert_eq!(
        row.backend.block_status(100 * k, 92 * k).unwrap().len,
        28 * k
    );
    rig.finish();
}

#[test]
fn dur_6_a_flush_goes_to_each_child_written_since_its_last() {
    let mut rig = rig(3);
    let row = three(&mut rig);
    row.automatic();
    let flush_now = |core| {
        submit(core, row.backend, flush(), 9);
        rig.settle();
        assert_eq!(results(), [(9, Ok(()))]);
        row.flushes()
    };
    // What others wrote before is not known.
    assert_eq!(flush_now(0), [1, 1, 1]);
    assert_eq!(flush_now(0), [1, 1, 1], "nothing was written");
    // From any core, for any core.
    submit(1, row.backend, write(64 * 1024, 512, 1), 1);
    submit(2, row.backend, write(128 * 1024, 512, 1), 2);
    rig.settle();
    results();
    assert_eq!(flush_now(0), [1, 2, 2]);
    submit(2, row.backend, ask(WriteZeroes, 0, 512), 1);
    submit(1, row.backend, ask(Discard, 128 * 1024, 512), 1);
    rig.settle();
    results();
    assert_eq!(flush_now(2), [2, 2, 3]);
    for f in row.disks {
        assert_eq!(f.device.durable(), f.device.visible());
    }
    rig.finish();
}

/// A flush that is still under way proves nothing to one that comes meanwhile.
#[test]
fn dur_1_a_flush_does_not_lean_on_one_that_has_not_ended() {
    let mut rig = rig(2);
    let row = three(&mut rig);
    submit(0, row.backend, flush(), 0);
    row.run(&rig);
    submit(0, row.backend, write(64 * 1024, 512, 7), 1);
    row.run(&rig);
    assert_eq!(results(), [(0, Ok(())), (1, Ok(()))]);
    submit(0, row.backend, flush(), 2);
    rig.settle();
    assert_eq!(row.disks[1].device.held(), 1);
    submit(1, row.backend, flush(), 3);
    rig.settle();
    assert_eq!(results(), [], "the write is not durable yet");
    assert_eq!(row.disks[1].device.durable()[0], 0);
    row.run(&rig);
    assert_eq!(results(), [(2, Ok(())), (3, Ok(()))]);
    assert_eq!(row.disks[1].device.durable()[0], 7);
    rig.finish();
}

/// A write that comes back while a flush is under way is the next flush's.
#[test]
fn dur_1_a_write_that_ends_during_a_flush_is_not_covered_by_it() {
    let mut rig = rig(1);
    let row = three(&mut rig);
    submit(0, row.backend, flush(), 0);
    row.run(&rig);
    submit(0, row.backend, write(0, 512, 1), 1);
    row.run(&rig);
    submit(0, row.backend, flush(), 2);
    submit(0, row.backend, write(512, 512, 2), 3);
    rig.settle();
    // The flush came first; the device does the write first.
    on(0, || row.disks[0].device.finish(1));
    rig.settle();
    row.run(&rig);
    submit(0, row.backend, flush(), 4);
    row.run(&rig);
    assert!(results().iter().all(|(_, result)| result.is_ok()));
    assert_eq!(row.disks[0].device.durable()[512], 2);
    rig.finish();
}

#[test]
fn a_failed_flush_is_owed_still() {
    let mut rig = rig(1);
    let row = three(&mut rig);
    row.automatic();
    submit(0, row.backend, flush(), 0);
    rig.settle();
    submit(0, row.backend, write(0, 512, 1), 1);
    submit(0, row.backend, write(128 * 1024, 512, 1), 2);
    rig.settle();
    row.disks[0].device.fail_next(Flush, 1);
    submit(0, row.backend, flush(), 3);
    rig.settle();
    assert_eq!(results().last(), Some(&(3, Err(BlockError::Io))));
    // The first disk has latched its error (DUR-5), so this one fails too, and says so.
    submit(0, row.backend, flush(), 4);
    rig.settle();
    assert_eq!(results(), [(4, Err(BlockError::Io))]);
    assert_eq!(on(0, || row.disks[0].disk.reset()), ResetOutcome::Cleared);
    submit(0, row.backend, flush(), 5);
    rig.settle();
    assert_eq!(results(), [(5, Ok(()))]);
    assert_eq!(row.flushes(), [3, 1, 2]);
    rig.finish();
}

#[test]
fn a_part_that_fails_ends_the_request() {
    let mut rig = rig(1);
    let row = three(&mut rig);
    row.automatic();
    row.disks[1].device.fail_next(Write, 1);
    submit(0, row.backend, write(0, 192 * 1024, 1), 1);
    rig.settle();
    assert_eq!(results(), [(1, Err(BlockError::Io))]);
    assert_eq!(submitted(row.disks[2].device), []);
    assert_eq!(row.backend.in_flight(), 0);
    rig.finish();
}

/// FAST_ZERO writes nothing where it cannot be fast, so one slow child is enough.
#[test]
fn zeroes_that_must_be_fast_are_not_begun_where_one_part_is_slow() {
    let mut rig = rig(1);
    let fast = rig.disk(with_everything(64 * 1024));
    let slow = rig.disk(with_flush(64 * 1024));
    [fast, slow]
        .iter()
        .for_each(|f| f.device.set_automatic(true));
    let backend = rig.backend(row(&[fast.disk.node(), slow.disk.node()]));
    let zeroes = |offset, len| ask(WriteZeroes, offset, len).flags(RequestFlags::FAST_ZERO);
    submit(0, backend, zeroes(60 * 1024, 8192), 1);
    submit(0, backend, zeroes(60 * 1024, 4096), 2);
    submit(0, backend, zeroes(64 * 1024, 4096), 3);
    rig.settle();
    let no = Err(BlockError::NotSupported);
    assert_eq!(results(), [(1, no), (2, Ok(())), (3, no)]);
    assert_eq!(submitted(fast.device), [(WriteZeroes, 60 * 1024, 4096)]);
    assert_eq!(submitted(slow.device), []);
    rig.finish();
}

#[test]
fn only_the_last_child_changes_the_size_of_a_row() {
    let mut rig = rig(1);
    let row = three(&mut rig);
    row.automatic();
    on(0, || row.disks[0].device.resize(256 * 1024));
    on(0, || row.disks[1].device.resize(32 * 1024));
    rig.settle();
    assert_eq!(row.backend.size(), 192 * 1024);
    submit(0, row.backend, write(64 * 1024, 512, 5), 1);
    submit(0, row.backend, write(90 * 1024, 8192, 5), 2);
    submit(0, row.backend, read(100 * 1024, 512), 3);
    rig.settle();
    assert_eq!(
        results(),
        [
            (1, Ok(())),
            (2, Err(BlockError::NoSpace)),
            (3, Err(BlockError::Invalid))
        ]
    );
    assert_eq!(row.disks[1].device.visible()[0], 5, "nothing has moved");
    on(0, || row.disks[2].device.resize(128 * 1024));
    rig.settle();
    assert_eq!(row.backend.size(), 256 * 1024);
    submit(0, row.backend, write(255 * 1024, 1024, 6), 4);
    rig.settle();
    assert_eq!(results(), [(4, Ok(()))]);
    assert_eq!(row.disks[2].device.visible()[127 * 1024], 6);
    on(0, || row.disks[2].device.resize(16 * 1024));
    rig.settle();
    assert_eq!(row.backend.size(), 144 * 1024);
    assert_eq!(graph::driver(row.node).unwrap().info().depth, 2);
    rig.finish();
}

#[test]
fn a_row_that_cannot_be_is_refused() {
    let mut rig = rig(1);
    let mut info = with_flush(64 * 1024);
    info.logical_block = 4096;
    let large = rig.disk(info);
    let small = rig.disk(with_flush(2048));
    let create = |children: &[NodeId]| on(0, || concat::create("no", children));
    assert!(create(&[]).is_err());
    let many = [small.disk.node(); crate::config::MAX_CHILDREN + 1];
    assert!(create(&many).is_err());
    let refusal = create(&[large.disk.node(), small.disk.node()]).unwrap_err();
    assert_eq!(*refusal.node, *small.disk.name(), "no whole block of 4096");
    for _ in 0..2 * crate::config::CONCATS {
        let id = create(&[large.disk.node()]).unwrap();
        on(0, || graph::delete(id)).unwrap();
    }
    rig.finish();
}

pub(super) fn replace(rig: &Rig, backend: &'static Backend, slot: usize, child: NodeId) {
    rig.drain(backend);
    on(0, || graph::replace(backend.root().unwrap(), slot, child)).unwrap();
    rig.undrain(backend);
}

/// What was written to a child before it came into the row may not be durable.
#[test]
fn dur_6_a_child_that_takes_another_s_place_is_flushed() {
    let mut rig = rig(1);
    let row = three(&mut rig);
    row.automatic();
    let new = rig.disk(with_flush(64 * 1024));
    new.device.set_automatic(true);
    submit(0, row.backend, flush(), 0);
    submit(0, new.backend, write(0, 512, 3), 1);
    rig.settle();
    replace(&rig, row.backend, 1, new.disk.node());
    submit(0, row.backend, flush(), 2);
    rig.settle();
    assert!(results().iter().all(|(_, result)| result.is_ok()));
    assert_eq!(new.device.durable()[0], 3);
    rig.finish();
}

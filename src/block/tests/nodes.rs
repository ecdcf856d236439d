//! Partition and concat: where the data go, what is made durable, what errors leave behind.

use super::model::Random;
use super::*;
use crate::block::graph::{self, Permissions};
use crate::block::node::concat;
use crate::block::node::partition::{self, PartitionOptions};
use crate::block::node::ram;
use Operation::{Discard, Flush, Read, Write, WriteZeroes};

fn part(child: NodeId, offset: u64, len: u64) -> NodeId {
    let options = PartitionOptions {
        child,
        offset,
        len: Some(len),
    };
    on(0, || partition::create(&unique("part"), options).unwrap())
}

fn row(children: &[NodeId]) -> NodeId {
    on(0, || concat::create(&unique("row"), children).unwrap())
}

fn memory(bytes: usize, block: u32) -> NodeId {
    on(0, || {
        ram::create(&unique("mem"), Vec::leak(std::vec![0; bytes]), block).unwrap()
    })
}

fn submitted(device: &TestDisk) -> Vec<(Operation, u64, u64)> {
    let log = device.log();
    log.iter().map(|e| (e.operation, e.offset, e.len)).collect()
}

#[test]
fn a_partition_is_a_window_on_its_child() {
    let mut rig = rig(2);
    let f = rig.disk(with_everything(1 << 20));
    f.device.set_automatic(true);
    let (at, len) = (64 * 1024u64, 256 * 1024u64);
    let node = part(f.disk.node(), at, len);
    let backend = rig.backend(node);
    assert_eq!(backend.size(), len);
    submit(1, backend, write(0, 4096, 1).in_segments(1536), 1);
    submit(1, backend, write(len - 512, 512, 2), 2);
    submit(1, backend, ask(WriteZeroes, 8192, 512), 3);
    submit(1, backend, ask(Discard, 16384, 512), 4);
    submit(1, backend, flush(), 5);
    submit(1, backend, read(0, 4096), 6);
    rig.settle();
    let all = done();
    assert!(all.iter().all(|d| d.result.is_ok() && d.core == 1));
    assert!(all[5].data.iter().all(|b| *b == 1));
    assert_eq!(
        submitted(f.device),
        [
            (Write, at, 4096),
            (Write, at + len - 512, 512),
            (WriteZeroes, at + 8192, 512),
            (Discard, at + 16384, 512),
            (Flush, 0, 0),
            (Read, at, 4096)
        ]
    );
    // Not a byte beside it.
    submit(0, backend, write(len, 512, 9), 1);
    submit(0, backend, read(len - 512, 1024), 2);
    submit(0, backend, write(u64::MAX - 511, 512, 9), 3);
    rig.settle();
    assert_eq!(
        results(),
        [
            (1, Err(BlockError::NoSpace)),
            (2, Err(BlockError::Invalid)),
            (3, Err(BlockError::NoSpace))
        ]
    );
    let visible = f.device.visible();
    assert!(visible[..at as usize].iter().all(|b| *b == 0));
    assert!(visible[(at + len) as usize..].iter().all(|b| *b == 0));
    rig.finish();
}

#[test]
fn a_partition_that_cannot_be_is_refused() {
    let mut rig = rig(1);
    let mut info = with_flush(1 << 20);
    info.logical_block = 4096;
    let f = rig.disk(info);
    let child = f.disk.node();
    let before = (0..64).filter(|n| graph::find(&std::format!("p{n}")).is_some());
    assert_eq!(before.count(), 0);
    for (n, (offset, len)) in [
        (512, Some(4096)),
        (4096, Some(512)),
        (0, Some(0)),
        (0, Some((1 << 20) + 4096)),
        (1 << 20, Some(4096)),
        (1 << 20, None),
        (u64::MAX - 4095, Some(4096)),
        (4096, Some(u64::MAX - 4095)),
    ]
    .into_iter()
    .enumerate()
    {
        let options = PartitionOptions { child, offset, len };
        let refusal = on(0, || partition::create(&std::format!("p{n}"), options)).unwrap_err();
        assert_eq!(
            BlockError::from(refusal),
            BlockError::Invalid,
            "{options:?}"
        );
    }
    // Up to the end, and the name is taken only once; nothing of a refused one is left.
    let rest = PartitionOptions {
        child,
        offset: 8192,
        len: None,
    };
    for _ in 0..2 * crate::config::PARTITIONS {
        let id = on(0, || partition::create("rest", rest)).unwrap();
        assert!(on(0, || partition::create("rest", rest)).is_err());
        assert_eq!(
            partition::options_of(id).unwrap().len,
            Some((1 << 20) - 8192)
        );
        on(0, || graph::delete(id)).unwrap();
        assert_eq!(partition::options_of(id), None);
    }
    rig.finish();
}

#[test]
fn a_partition_keeps_its_size_and_its_child_refuses_what_is_gone() {
    let mut rig = rig(1);
    let f = rig.disk(with_flush(1 << 20));
    f.device.set_automatic(true);
    let node = part(f.disk.node(), 1 << 19, 1 << 19);
    let backend = rig.backend(node);
    on(0, || f.device.resize((1 << 19) + 4096));
    rig.settle();
    assert_eq!(backend.size(), 1 << 19);
    submit(0, backend, write(4096, 512, 1), 1);
    submit(0, backend, read(4096, 512), 2);
    submit(0, backend, read(0, 4096), 3);
    rig.settle();
    assert_eq!(
        results(),
        [
            (1, Err(BlockError::NoSpace)),
            (2, Err(BlockError::Invalid)),
            (3, Ok(()))
        ]
    );
    assert!(backend.block_status(8192, 512).is_some());
    on(0, || f.device.resize(4 << 20));
    rig.settle();
    assert_eq!(backend.size(), 1 << 19);
    rig.finish();
}

/// Requests that the backend and the disk cut, and zeroes that the disk writes itself, land in the right place.
#[test]
fn what_is_cut_above_and_below_a_partition_stays_whole() {
    let mut rig = rig(1);
    let mut info = with_flush(8 << 20);
    (info.max_segments, info.max_transfer) = (3, 96 * 1024);
    let f = rig.disk(info);
    f.device.set_automatic(true);
    let at = (1 << 20) + 4096;
    let inner = part(f.disk.node(), 4096, 6 << 20);
    let node = part(inner, at - 4096, 3 << 20);
    let backend = rig.backend(node);
    rig.keep(inner);
    submit(
        0,
        backend,
        write(0, 5 << 19, 7).in_segments(256 * 1024).fua(),
        1,
    );
    rig.settle();
    submit(0, backend, ask(WriteZeroes, 1 << 20, 100 * 1024).fua(), 2);
    rig.settle();
    assert_eq!(results(), [(1, Ok(())), (2, Ok(()))]);
    submit(0, backend, read((1 << 20) - 512, 1024), 3);
    rig.settle();
    let data = &done()[0].data;
    assert_eq!((data[511], data[512]), (7, 0));
    let durable = f.device.durable();
    let expected = |i: usize| {
        let i = i.wrapping_sub(at as usize);
        let zeroed = (1 << 20..(1 << 20) + 100 * 1024).contains(&i);
        if i < 5 << 19 && !zeroed { 7 } else { 0 }
    };
    assert!(durable.iter().enumerate().all(|(i, b)| *b == expected(i)));
    rig.finish();
}

#[test]
fn a_partition_passes_allocation_and_flushes_on() {
    let mut rig = rig(1);
    let child = memory(1 << 20, 512);
    let below = rig.backend(child);
    let backend = rig.backend(part(child, 64 * 1024, 512 * 1024));
    submit(0, below, write(128 * 1024, 4096, 1), 1);
    rig.settle();
    results();
    let status = backend.block_status(0, 512 * 1024).unwrap();
    assert_eq!((status.len, status.hole), (64 * 1024, true));
    let status = backend.block_status(64 * 1024, 8192).unwrap();
    assert_eq!((status.len, status.hole), (4096, false));
    assert!(backend.block_status(0, 512 * 1024 + 1).is_none());
    rig.finish();

    // DUR-1 and DUR-2 through two of them.
    let mut rig = super::rig(1);
    let f = rig.disk(with_flush(1 << 20));
    let inner = part(f.disk.node(), 8192, 1 << 19);
    let backend = rig.backend(part(inner, 8192, 1 << 18));
    rig.keep(inner);
    submit(0, backend, write(0, 512, 1), 1);
    rig.run(f.device);
    assert_eq!(f.device.durable()[16384], 0);
    submit(0, backend, flush(), 2);
    rig.run(f.device);
    assert_eq!(f.device.durable()[16384], 1);
    submit(0, backend, write(512, 512, 2).fua(), 3);
    rig.settle();
    on(0, || f.device.finish(0));
    rig.settle();
    assert_eq!(
        results(),
        [(1, Ok(())), (2, Ok(()))],
        "not before its flush"
    );
    rig.run(f.device);
    assert_eq!(
        (results(), f.device.durable()[16896]),
        (Vec::from([(3, Ok(()))]), 2)
    );
    rig.finish();
}

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

fn writer(rig: &mut Rig, node: NodeId) -> Result<(), BlockError> {
    let backend = on(0, || {
        Backend::open(&unique("w"), "test", Some(node), Permissions::WRITER)
    })?;
    rig.opened.push(backend);
    rig.settle();
    Ok(())
}

/// Who keeps one partition to itself need not know of who has the next; whoever has the whole disk would have to.
#[test]
fn partitions_of_a_disk_have_a_writer_each_but_not_beside_one_of_the_disk() {
    let mut rig = rig(1);
    let f = rig.disk(with_flush(1 << 20));
    let parts = [0, 1].map(|n| part(f.disk.node(), n << 19, 1 << 19));
    parts.iter().for_each(|node| _ = rig.keep(*node));
    assert_eq!(writer(&mut rig, parts[0]), Ok(()));
    assert_eq!(writer(&mut rig, parts[1]), Ok(()));
    assert_eq!(writer(&mut rig, parts[1]), Err(BlockError::Busy));
    assert_eq!(writer(&mut rig, f.disk.node()), Err(BlockError::Busy));
    rig.finish();

    let mut rig = super::rig(1);
    let f = rig.disk(with_flush(1 << 20));
    let node = rig.keep(part(f.disk.node(), 0, 1 << 19));
    on(0, || f.backend.set_permissions(Permissions::READER)).unwrap();
    assert_eq!(writer(&mut rig, f.disk.node()), Ok(()));
    assert_eq!(writer(&mut rig, node), Err(BlockError::Busy));
    rig.finish();
}

fn replace(rig: &Rig, backend: &'static Backend, slot: usize, child: NodeId) {
    rig.drain(backend);
    on(0, || graph::replace(backend.root().unwrap(), slot, child)).unwrap();
    rig.undrain(backend);
}

/// A child with larger blocks takes the place of one: what would not begin at a block any more is refused, not sent down askew.
#[test]
fn a_child_whose_blocks_are_too_large_gets_nothing() {
    let mut rig = rig(1);
    let small = rig.disk(with_flush(1 << 20));
    let mut info = with_flush(1 << 20);
    info.logical_block = 4096;
    let large = rig.disk(info);
    [small, large]
        .iter()
        .for_each(|f| f.device.set_automatic(true));
    let one = rig.backend(part(small.disk.node(), 512, 1 << 19));
    let other = rig.backend(row(&[small.disk.node()]));
    for backend in [one, other] {
        replace(&rig, backend, 0, large.disk.node());
        submit(0, backend, write(0, 4096, 1), 1);
        submit(0, backend, read(4096, 4096), 2);
        rig.settle();
        let no = Err(BlockError::Invalid);
        assert_eq!(results(), [(1, no), (2, no)]);
        assert_eq!(large.device.log(), []);
        replace(&rig, backend, 0, small.disk.node());
        submit(0, backend, write(0, 512, 1), 1);
        rig.settle();
        assert_eq!(results(), [(1, Ok(()))]);
    }
    rig.finish();
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

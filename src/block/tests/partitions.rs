//! Partition: where the data go, what is refused, who may write beside whom.

use super::kinds::{memory, part, row};
use super::rows::replace;
use super::*;
use crate::block::graph::{self, Permissions};
use crate::block::node::partition::{self, PartitionOptions};
use Operation::{Discard, Flush, Read, Write, WriteZeroes};

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

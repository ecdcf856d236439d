//! The dirty node: what is marked, when, in which bitmaps; cleaning while writes are under way.

use super::*;
use crate::block::bitmap::DEFAULT_GRANULARITY;
use crate::block::graph::change::{insert_begin, remove_begin};
use crate::block::graph::{self, Access, Permissions, Reason};
use crate::block::node::dirty::{
    BITMAPS_PER_NODE, BitmapId, add_bitmap, bitmap, create, for_each_bitmap, remove_bitmap,
};

use super::graph_rig::{outcome, outcomes};

const MIB: u64 = 1 << 20;
const GRANULE: u64 = 4096;

/// A scripted disk, a dirty node above it, a backend above that.
fn noted(rig: &mut Rig) -> (&'static TestDisk, NodeId, &'static Backend) {
    let (device, below) = super::verify::disk(with_everything(MIB));
    let node = on(0, || create(&unique("dirty"), Some(below))).unwrap();
    let backend = rig.backend(node);
    rig.keep(below);
    (device, node, backend)
}

fn add(node: NodeId, granularity: u64) -> BitmapId {
    on(0, || add_bitmap(node, &unique("bits"), Some(granularity))).unwrap()
}

/// What is dirty, part by part.
fn parts(bitmap: BitmapId) -> Vec<(u64, u64)> {
    let mut parts = Vec::new();
    let mut from = 0;
    while let Some(range) = bitmap
        .use_bitmap(|bits| bits.next_dirty(from, u64::MAX))
        .unwrap()
    {
        parts.push((range.start, range.end));
        from = range.end;
    }
    parts
}

#[test]
fn what_writes_touch_is_marked_when_they_come_back() {
    let mut rig = rig(2);
    let (device, node, backend) = noted(&mut rig);
    let bits = add(node, GRANULE);
    submit(1, backend, write(5000 / 512 * 512, 1024, 1), 1);
    rig.settle();
    assert_eq!(parts(bits), [], "it is still below");
    rig.run(device);
    assert_eq!(parts(bits), [(4096, 8192)]);
    // Cleaned while another write of the same place is below: its end marks it again.
    submit(1, backend, write(4096, 512, 2), 2);
    rig.settle();
    bits.use_bitmap(|bits| bits.clear_all()).unwrap();
    rig.run(device);
    assert_eq!(parts(bits), [(4096, 8192)]);
    rig.finish();
}

#[test]
fn zeroes_discards_and_writes_that_fail_are_marked_and_nothing_else() {
    let mut rig = rig(1);
    let (device, node, backend) = noted(&mut rig);
    device.set_automatic(true);
    let bits = add(node, GRANULE);
    for (ask, expected) in [
        (read(0, MIB), &[][..]),
        (flush(), &[]),
        (ask(Operation::WriteZeroes, 8192, 512), &[(8192, 12288)]),
        (ask(Operation::Discard, 20480, 8192), &[(20480, 28672)]),
        (write(MIB - 512, 512, 3).fua(), &[(MIB - GRANULE, MIB)]),
        (write(0, MIB, 3), &[(0, MIB)]),
    ] {
        submit(0, backend, ask, 1);
        rig.settle();
        assert_eq!(results(), [(1, Ok(()))]);
        assert_eq!(parts(bits), expected, "{ask:?}");
        bits.use_bitmap(|bits| bits.clear_all()).unwrap();
    }
    device.fail_next(Operation::Write, 1);
    submit(0, backend, write(4096, 4096, 4), 2);
    rig.settle();
    assert_eq!(results(), [(2, Err(BlockError::Io))]);
    assert_eq!(parts(bits), [(4096, 8192)], "half of it may be written");
    // A device that failed is reset.
    rig.run(device);
    rig.finish();
}

#[test]
fn several_bitmaps_note_the_same_writes_each_in_its_own_granules() {
    let mut rig = rig(1);
    let (device, node, backend) = noted(&mut rig);
    device.set_automatic(true);
    let [fine, coarse] = [GRANULE, 1 << 17].map(|granularity| add(node, granularity));
    submit(0, backend, write(8192, 4096, 1), 1);
    rig.settle();
    let late = add(node, DEFAULT_GRANULARITY);
    submit(0, backend, write(1 << 18, 512, 1), 2);
    rig.settle();
    assert_eq!(parts(fine), [(8192, 12288), (1 << 18, (1 << 18) + 4096)]);
    assert_eq!(parts(coarse), [(0, 1 << 17), (1 << 18, 3 << 17)]);
    assert_eq!(parts(late), [(1 << 18, 5 << 16)]);
    coarse.use_bitmap(|bits| bits.clear(0..1 << 17)).unwrap();
    assert_eq!(parts(coarse), [(1 << 18, 3 << 17)]);
    assert_eq!(parts(fine).len(), 2, "each is cleaned for itself");
    let mut views = Vec::new();
    for_each_bitmap(node, |view| {
        views.push((view.granularity, view.dirty, view.size))
    });
    assert_eq!(
        views,
        [
            (GRANULE, 8192, MIB),
            (1 << 17, 1 << 17, MIB),
            (1 << 16, 1 << 16, MIB)
        ]
    );
    // One that is gone is stale, and its place is another's.
    on(0, || remove_bitmap(coarse)).unwrap();
    assert_eq!(
        coarse.use_bitmap(|bits| bits.set_all()),
        Err(BlockError::NoMedium)
    );
    assert!(on(0, || remove_bitmap(coarse)).is_err());
    let next = add(node, GRANULE);
    assert_ne!(next, coarse);
    assert_eq!(parts(next), []);
    rig.finish();
    assert_eq!(fine.use_bitmap(|_| ()), Err(BlockError::NoMedium));
}

#[test]
fn bitmaps_that_cannot_be_are_refused() {
    let mut rig = rig(1);
    let (_, node, backend) = noted(&mut rig);
    let below = graph::children(node)[0].1;
    let refused = |node, name: &str, granularity| {
        on(0, || add_bitmap(node, name, granularity))
            .unwrap_err()
            .reason
    };
    assert_eq!(refused(node, "1bad", None), Reason::BadName);
    assert_eq!(
        refused(below, "bits", None),
        Reason::Node(BlockError::NotSupported)
    );
    for granularity in [0, 512, 5000, 1 << 50] {
        assert_eq!(
            refused(node, "bits", Some(granularity)),
            Reason::Node(BlockError::Invalid)
        );
    }
    let first = on(0, || add_bitmap(node, "bits", None)).unwrap();
    assert_eq!(refused(node, "bits", None), Reason::NameInUse);
    assert_eq!(bitmap(node, "bits"), Some(first));
    assert_eq!(bitmap(node, "other"), None);
    assert_eq!(bitmap(below, "bits"), None);
    for _ in 1..BITMAPS_PER_NODE {
        add(node, GRANULE);
    }
    assert!(matches!(refused(node, "more", None), Reason::NoRoom(_)));
    // Whoever writes to the child would be missed.
    let permissions = Permissions::SHARED_WRITER;
    let writer = on(0, || {
        Backend::open("writer", "test", Some(below), permissions)
    });
    let over = Access::WRITE;
    assert!(matches!(writer.err().unwrap().reason, Reason::Conflict { over: o, .. } if o == over));
    let reader = on(0, || {
        Backend::open("reader", "test", Some(below), Permissions::READER)
    });
    super::graph_rig::delete_backend(&rig, reader.ok().unwrap());
    let _ = backend;
    rig.finish();
}

#[test]
fn it_is_inserted_and_removed_under_load_and_follows_the_size() {
    let mut rig = rig(2);
    let below = rig.disk(with_everything(MIB));
    let node = on(0, || create(&unique("dirty"), None)).unwrap();
    submit(1, below.backend, write(0, 4096, 1), 1);
    rig.settle();
    outcomes();
    on(0, || {
        insert_begin(node, below.disk.node(), &outcome, 1).unwrap();
    });
    rig.settle();
    submit(1, below.backend, write(8192, 4096, 1), 2);
    rig.settle();
    assert_eq!(outcomes(), [], "the first is under way");
    let early = add(node, GRANULE);
    rig.run(below.device);
    assert_eq!(outcomes(), [(1, Ok(()))]);
    assert_eq!(results(), [(1, Ok(())), (2, Ok(()))]);
    assert_eq!(
        parts(early),
        [(0, MIB)],
        "made over nothing, it got its size with the child: nobody has seen that"
    );
    let bits = add(node, GRANULE);
    below.device.resize(2 * MIB);
    rig.settle();
    assert_eq!(parts(bits), [(MIB, 2 * MIB)]);
    below.device.resize(MIB);
    rig.settle();
    assert_eq!(parts(bits), []);
    submit(1, below.backend, write(0, 4096, 1), 3);
    rig.settle();
    on(0, || remove_begin(node, &outcome, 2)).unwrap();
    rig.settle();
    rig.run(below.device);
    assert_eq!(outcomes(), [(2, Ok(()))]);
    assert_eq!(results(), [(3, Ok(()))]);
    assert!(graph::name(node).is_none());
    rig.finish();
}

/// Copies what the bitmap says is dirty, until nothing is.
fn copy(bits: BitmapId, from: &TestDisk, to: &mut [u8], steps: u64) {
    for _ in 0..steps {
        let part = bits.use_bitmap(|bits| bits.take_next(0, 8 * GRANULE));
        let Some(part) = part.unwrap() else { return };
        let part = part.start as usize..part.end as usize;
        to[part.clone()].copy_from_slice(&from.visible()[part]);
    }
}

#[test]
fn a_copy_that_cleans_first_and_then_reads_misses_no_write_of_any_core() {
    let mut rig = rig(4);
    let (device, node, backend) = noted(&mut rig);
    let bits = add(node, GRANULE);
    bits.use_bitmap(|bits| bits.set_all()).unwrap();
    let mut image = std::vec![0xff; MIB as usize];
    let mut random = model::Random::new(11);
    for round in 0..400u64 {
        for _ in 0..random.below(6) {
            let core = random.below(4) as CoreId;
            let offset = random.below(30) * 4096 + random.below(3) * 512;
            let len = (1 + random.below(20)) * 512;
            let ask = match random.below(4) {
                0 => ask(Operation::WriteZeroes, offset, len),
                1 => ask(Operation::Discard, offset, len),
                _ => write(offset, len, round as u8),
            };
            submit(core, backend, ask, round);
        }
        copy(bits, device, &mut image, random.below(4));
        for _ in 0..random.below(8) {
            if device.held() > 0 {
                let n = random.below(device.held() as u64) as usize;
                on(device.core_of(n), || device.finish(n));
            }
            // Between the effect of a write and its way up there is time too.
            copy(bits, device, &mut image, random.below(2));
            if random.below(2) == 0 {
                rig.settle();
            }
        }
    }
    rig.run(device);
    copy(bits, device, &mut image, u64::MAX);
    assert!(image == device.visible(), "a write was missed");
    assert!(results().iter().all(|(_, result)| *result == Ok(())));
    rig.finish();
}

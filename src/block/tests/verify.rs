//! The verify node: agreement, mismatches, both children in everything, errors on one leg, memory, drained sections.

use std::sync::atomic::Ordering;

use super::*;
use crate::block::graph;
use crate::block::node::verify::{Options, create, mismatches};
use crate::config::{VERIFY_PAGES, VERIFY_WINDOW};
use crate::sync::PAGE_SIZE;

pub(super) struct Pair {
    pub disks: [&'static TestDisk; 2],
    pub below: [NodeId; 2],
    pub node: NodeId,
}

pub(super) fn name() -> std::string::String {
    std::format!("v{}", NEXT_DISK.fetch_add(1, Ordering::Relaxed))
}

pub(super) fn disk(info: DeviceInfo) -> (&'static TestDisk, NodeId) {
    let device = TestDisk::leak(info);
    let disk: &'static Disk = Box::leak(Box::new(Disk::new()));
    let index = 40 + NEXT_DISK.fetch_add(1, Ordering::Relaxed) % 200;
    disk.open(device, 0, index).unwrap();
    (device, disk.node())
}

/// A verify node on two scripted disks.
pub(super) fn pair(_rig: &mut Rig, info: DeviceInfo) -> Pair {
    let [a, b] = [0, 1].map(|_| disk(info));
    let children = [a.1, b.1];
    let node = on(0, || create(&name(), Options { children })).unwrap();
    Pair {
        disks: [a.0, b.0],
        below: children,
        node,
    }
}

/// The same with a backend, devices that answer by themselves, to be cleared away by the rig.
fn ready(rig: &mut Rig, info: DeviceInfo) -> (Pair, &'static Backend) {
    let pair = pair(rig, info);
    let backend = rig.backend(pair.node);
    rig.nodes.extend(pair.below);
    for disk in pair.disks {
        disk.set_automatic(true);
    }
    (pair, backend)
}

fn finish(core: CoreId, disk: &TestDisk) {
    on(core, || disk.finish(0));
}

#[test]
fn children_that_agree_read_as_one() {
    let mut rig = rig(2);
    let (pair, backend) = ready(&mut rig, with_everything(1 << 20));
    submit(0, backend, write(4096, 8192, 5), 1);
    rig.settle();
    assert_eq!(results(), [(1, Ok(()))]);
    for (tag, ask) in [
        read(0, 512),
        read(4096, 8192),
        read(0, 16384).in_segments(512 * 3),
        read(0, 1 << 20).in_segments(1 << 17),
    ]
    .into_iter()
    .enumerate()
    {
        submit(tag % 2, backend, ask, tag as u64);
        rig.settle();
        let done = done();
        assert_eq!((done[0].tag, done[0].result), (tag as u64, Ok(())));
        assert_eq!(done[0].core, tag % 2);
        let visible = pair.disks[1].visible();
        let range = ask.offset as usize..(ask.offset + ask.len) as usize;
        assert!(done[0].data == visible[range]);
    }
    let count = |disk: &TestDisk| {
        operations(disk)
            .iter()
            .filter(|o| **o == Operation::Read)
            .count()
    };
    let expected = 3 + ((1 << 20) / VERIFY_WINDOW) as usize;
    assert_eq!(
        pair.disks.map(count),
        [expected; 2],
        "both, window by window"
    );
    assert_eq!(mismatches(pair.node), Some((0, 0)));
    assert_eq!(mismatches(pair.below[0]), None);
    rig.finish();
}

#[test]
fn a_difference_is_an_error_with_its_place() {
    let mut rig = rig(1);
    let (pair, backend) = ready(&mut rig, with_everything(1 << 20));
    let last = VERIFY_WINDOW as usize + 8191;
    for (n, (disk, at)) in [(1, 0), (0, 70_000), (1, last)].into_iter().enumerate() {
        pair.disks[disk].corrupt(at);
        let around = at as u64 / 4096 * 4096;
        for ask in [
            read(around, 4096),
            read(0, 1 << 18),
            read(around, 4096).in_segments(512),
        ] {
            submit(0, backend, ask, 1);
            rig.settle();
            assert_eq!(results(), [(1, Err(BlockError::Io))], "{n}: {ask:?}");
        }
        let count = 3 * (n as u64 + 1);
        assert_eq!(mismatches(pair.node), Some((count, at as u64)));
        // Where they agree they read.
        let beside = if around == 0 { 4096 } else { around - 4096 };
        submit(0, backend, read(beside, 4096), 2);
        rig.settle();
        assert_eq!(results(), [(2, Ok(()))]);
        pair.disks[disk].corrupt(at);
    }
    // What is written anew agrees again.
    pair.disks[0].corrupt(9000);
    submit(0, backend, write(8192, 4096, 3), 3);
    rig.settle();
    submit(0, backend, read(8192, 4096), 4);
    rig.settle();
    assert_eq!(results(), [(3, Ok(())), (4, Ok(()))]);
    rig.finish();
}

#[test]
fn dur_6_everything_but_reads_goes_to_both() {
    let mut rig = rig(1);
    let (pair, backend) = ready(&mut rig, with_everything(1 << 20));
    for (tag, ask) in [
        write(0, 65536, 9).in_segments(4096),
        write(65536, 4096, 8).fua(),
        ask(Operation::WriteZeroes, 4096, 8192),
        ask(Operation::Discard, 32768, 8192),
        flush(),
    ]
    .into_iter()
    .enumerate()
    {
        submit(0, backend, ask, tag as u64);
        rig.settle();
        assert_eq!(results(), [(tag as u64, Ok(()))]);
    }
    let [a, b] = pair.disks;
    assert_eq!(operations(a), operations(b));
    assert_eq!(
        operations(a)
            .iter()
            .filter(|o| **o == Operation::Flush)
            .count(),
        2
    );
    let image = a.durable();
    assert!(image == b.durable() && image == a.visible());
    assert_eq!(
        (image[0], image[4096], image[32768], image[65536]),
        (9, 0, 0, 8)
    );
    rig.finish();
}

#[test]
fn what_only_one_could_do_is_not_begun() {
    let mut rig = rig(1);
    let [a, b] = [disk(with_everything(1 << 20)), disk(with_flush(1 << 19))];
    let children = [a.1, b.1];
    let node = on(0, || create(&name(), Options { children })).unwrap();
    let backend = rig.backend(node);
    rig.nodes.extend(children);
    a.0.set_automatic(true);
    b.0.set_automatic(true);
    let info = backend.limits().unwrap();
    assert_eq!(
        (info.size, info.fast_zeroes, info.discard),
        (1 << 19, false, false)
    );
    submit(0, backend, write(0, 4096, 1), 0);
    rig.settle();
    a.0.clear_log();
    b.0.clear_log();
    submit(0, backend, ask(Operation::Discard, 0, 4096), 1);
    let zeroes = ask(Operation::WriteZeroes, 0, 4096);
    submit(0, backend, zeroes.flags(RequestFlags::FAST_ZERO), 2);
    rig.settle();
    assert_eq!(
        results(),
        [(0, Ok(())), (1, Ok(())), (2, Err(BlockError::NotSupported))]
    );
    assert_eq!((a.0.log().len(), b.0.log().len()), (0, 0));
    submit(0, backend, zeroes, 3);
    rig.settle();
    submit(0, backend, read(0, 4096), 4);
    rig.settle();
    assert_eq!(results(), [(3, Ok(())), (4, Ok(()))]);
    rig.finish();
}

#[test]
fn dur_7_an_error_on_one_leg_is_the_answer_once_both_are_done() {
    for operation in [Operation::Read, Operation::WriteZeroes, Operation::Flush] {
        for failing in 0..2 {
            let mut rig = rig(1);
            let (pair, backend) = ready(&mut rig, with_everything(1 << 20));
            for disk in pair.disks {
                disk.set_automatic(false);
            }
            let ask = match operation {
                Operation::Flush => flush(),
                other => ask(other, 0, 4096),
            };
            submit(0, backend, ask, 1);
            rig.settle();
            assert_eq!(pair.disks.map(TestDisk::held), [1, 1], "at once");
            on(0, || pair.disks[failing].fail(0));
            rig.settle();
            assert_eq!(results(), [], "{operation:?}: the other is still at it");
            finish(0, pair.disks[1 - failing]);
            rig.settle();
            assert_eq!(results(), [(1, Err(BlockError::Io))]);
            let none = (0, 0);
            assert_eq!(
                mismatches(pair.node),
                Some(none),
                "an error is no difference"
            );
            rig.finish();
        }
    }
}

#[test]
fn dur_7_after_an_error_the_second_child_keeps_what_it_has() {
    let mut rig = rig(1);
    let (pair, backend) = ready(&mut rig, with_everything(1 << 20));
    for disk in pair.disks {
        disk.set_automatic(false);
    }
    submit(0, backend, write(0, 4096, 1), 2);
    rig.settle();
    assert_eq!(pair.disks.map(TestDisk::held), [1, 0]);
    on(0, || pair.disks[0].fail(0));
    rig.settle();
    assert_eq!(results(), [(2, Err(BlockError::Io))]);
    assert_eq!(pair.disks.map(TestDisk::held), [0, 0]);
    submit(0, backend, write(0, 4096, 1), 3);
    rig.settle();
    finish(0, pair.disks[0]);
    rig.settle();
    on(0, || pair.disks[1].fail(0));
    rig.settle();
    assert_eq!(results(), [(3, Err(BlockError::Io))]);
    rig.finish();
}

#[test]
fn mq_7_a_read_beside_a_write_under_way_is_no_mismatch() {
    let mut rig = rig(2);
    let (pair, backend) = ready(&mut rig, with_everything(1 << 20));
    pair.disks[1].set_automatic(false);
    submit(0, backend, write(0, 8192, 1), 1);
    rig.settle();
    // The first child has the new data, the second the old.
    assert_eq!(pair.disks[1].held(), 1);
    submit(1, backend, read(4096, 8192), 2);
    submit(1, backend, read(8192, 4096), 3);
    rig.settle();
    assert_eq!(
        pair.disks[1].held(),
        2,
        "one beside it reads, the other waits"
    );
    finish(0, pair.disks[1]);
    pair.disks[1].set_automatic(true);
    finish(1, pair.disks[1]);
    rig.settle();
    assert_eq!(results(), [(1, Ok(())), (2, Ok(())), (3, Ok(()))]);
    assert_eq!(mismatches(pair.node), Some((0, 0)));
    rig.finish();
}

#[test]
fn reads_without_memory_wait_in_order_and_a_drain_completes() {
    let mut rig = rig(2);
    let (pair, backend) = ready(&mut rig, with_everything(1 << 20));
    for disk in pair.disks {
        disk.set_automatic(false);
    }
    let at_once = VERIFY_PAGES * PAGE_SIZE / VERIFY_WINDOW as usize;
    let asked = at_once as u64 + 3;
    for n in 0..asked {
        submit(1, backend, read(n * VERIFY_WINDOW, VERIFY_WINDOW), n);
    }
    // Small, and there might be room: but others came before.
    submit(1, backend, read(0, 512), asked);
    rig.settle();
    assert_eq!(pair.disks.map(TestDisk::held), [at_once; 2]);
    rig.drain(backend);
    assert!(!rig.quiet(backend));
    let mut order = Vec::new();
    for _ in 0..=asked {
        // The second child answers first, and nothing is free until the first has, too.
        finish(1, pair.disks[1]);
        rig.settle();
        assert_eq!(results(), []);
        finish(1, pair.disks[0]);
        rig.settle();
        order.extend(results());
    }
    assert_eq!(order, (0..=asked).map(|n| (n, Ok(()))).collect::<Vec<_>>());
    assert!(rig.quiet(backend));
    rig.undrain(backend);
    rig.finish();
}

#[test]
fn a_small_read_does_not_pass_a_large_one_that_waits_for_memory() {
    let mut rig = rig(1);
    let (pair, backend) = ready(&mut rig, with_everything(1 << 20));
    for disk in pair.disks {
        disk.set_automatic(false);
    }
    let page = PAGE_SIZE as u64;
    let mut free = VERIFY_PAGES as u64;
    let mut tag = 0;
    // All but one page.
    while free > 1 {
        let pages = (free - 1).min(VERIFY_WINDOW / page);
        submit(0, backend, read(0, pages * page), tag);
        free -= pages;
        tag += 1;
    }
    submit(0, backend, read(0, 2 * page), 100);
    submit(0, backend, read(0, page), 101);
    rig.settle();
    assert_eq!(pair.disks.map(TestDisk::held), [tag as usize; 2]);
    for _ in 0..tag + 2 {
        pair.disks.iter().for_each(|disk| finish(0, disk));
        rig.settle();
    }
    let order: Vec<u64> = done().iter().map(|done| done.tag).collect();
    let expected: Vec<u64> = (0..tag).chain([100, 101]).collect();
    assert_eq!(order, expected);
    rig.finish();
}

static CHANGED: Mutex<Vec<(usize, bool)>> = Mutex::new(Vec::new());

fn changed(argument: usize, result: Result<(), graph::Refusal>) {
    CHANGED.lock().unwrap().push((argument, result.is_ok()));
}

#[test]
fn it_comes_between_and_goes_again_under_load() {
    let mut rig = rig(2);
    let [a, b] = [0, 1].map(|_| disk(with_everything(1 << 20)));
    CHANGED.lock().unwrap().clear();
    let backend = rig.backend(a.1);
    rig.nodes.push(b.1);
    for device in [a.0, b.0] {
        device.set_automatic(true);
    }
    let children = [a.1, b.1];
    let verify = on(0, || create(&name(), Options { children })).unwrap();
    submit(1, backend, write(0, 512, 1), 0);
    rig.settle();
    assert_eq!(operations(b.0), [], "not yet");
    // What was written before is on one child alone; the rest is written on both from now on.
    a.0.set_automatic(false);
    submit(1, backend, write(4096, 4096, 2), 1);
    rig.settle();
    on(0, || graph::change::insert_begin(verify, a.1, &changed, 1)).unwrap();
    rig.settle();
    submit(1, backend, write(8192, 4096, 3), 2);
    rig.settle();
    assert_eq!(*CHANGED.lock().unwrap(), [], "a request is under way");
    a.0.set_automatic(true);
    finish(1, a.0);
    rig.settle();
    assert_eq!(*CHANGED.lock().unwrap(), [(1, true)]);
    submit(1, backend, read(8192, 4096), 3);
    submit(1, backend, read(4096, 4096), 4);
    rig.settle();
    let ok = Ok(());
    assert_eq!(
        results(),
        [(0, ok), (1, ok), (2, ok), (3, ok), (4, Err(BlockError::Io))]
    );
    assert_eq!(mismatches(verify), Some((1, 4096)));
    // Nobody else may write to a child that is compared.
    let writer = graph::Permissions::SHARED_WRITER;
    assert!(on(0, || Backend::open("other", "test", Some(b.1), writer)).is_err());
    on(0, || graph::change::remove_begin(verify, &changed, 2)).unwrap();
    rig.settle();
    assert_eq!(*CHANGED.lock().unwrap(), [(1, true), (2, true)]);
    assert_eq!(backend.root(), Some(a.1), "the first child takes its place");
    assert_eq!(mismatches(verify), None);
    submit(1, backend, read(4096, 4096), 5);
    rig.settle();
    assert_eq!(results(), [(5, Ok(()))]);
    rig.finish();
}

#[test]
fn many_cores_at_random_end_with_equal_children_and_nothing_lost() {
    let mut rig = rig(4);
    let (pair, backend) = ready(&mut rig, with_everything(1 << 18));
    let mut random = model::Random::new(5);
    pair.disks[0].set_single_queue(2);
    for disk in pair.disks {
        disk.set_automatic(false);
    }
    let mut answered = 0;
    for round in 0..300u64 {
        for n in 0..random.below(12) {
            let core = random.below(4) as CoreId;
            let offset = random.below(30) * 4096;
            let len = (1 + random.below(32)) * 4096;
            let ask = match random.below(7) {
                0 => flush(),
                1 => ask(Operation::WriteZeroes, offset, len),
                2 => ask(Operation::Discard, offset, len),
                3 | 4 => write(offset, len, (round + n) as u8),
                _ => read(offset, len),
            };
            submit(core, backend, ask, round);
            answered += 1;
        }
        for _ in 0..random.below(20) {
            let disk = pair.disks[random.below(2) as usize];
            if disk.held() > 0 {
                let n = random.below(disk.held() as u64) as usize;
                on(disk.core_of(n), || disk.finish(n));
            }
            if random.below(3) == 0 {
                rig.settle();
            }
        }
        if round % 10 == 9 {
            rig.drain(backend);
            while !rig.quiet(backend) {
                for core in 0..4 {
                    on(core, || pair.disks.map(TestDisk::finish_all));
                }
                rig.settle();
            }
            assert_eq!(backend.in_flight(), 0);
            assert!(pair.disks[0].visible() == pair.disks[1].visible());
            rig.undrain(backend);
        }
    }
    let results = results();
    assert_eq!(results.len(), answered);
    assert!(results.iter().all(|(_, result)| *result == Ok(())));
    assert_eq!(mismatches(pair.node), Some((0, 0)));
    rig.finish();
}

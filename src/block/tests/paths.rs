//! What happens to a request between its backend and its device: splitting, substitution, crossing, queueing, resizing.

use super::*;
use Operation::{Discard, Flush, Read, Write, WriteZeroes};

#[test]
fn a_completion_never_runs_inside_submit_and_runs_at_home() {
    let mut rig = rig(3);
    let f = rig.disk(with_flush(1 << 20));
    f.device.set_automatic(true);
    on(2, || {
        f.backend.submit(request(write(0, 512, 1), 1));
        f.backend.submit(request(read(5, 512), 2));
        assert_eq!(done(), []);
    });
    rig.settle();
    let done = done();
    assert_eq!(done.len(), 2);
    assert!(done.iter().all(|d| d.core == 2));
    rig.finish();
}

#[test]
fn cs_10_requests_cross_to_the_queue_and_come_home() {
    let mut rig = rig(4);
    let f = rig.disk(with_flush(1 << 20));
    f.device.set_single_queue(2);
    for core in 0..4u64 {
        for n in 0..3u64 {
            submit(
                core as usize,
                f.backend,
                write((core * 3 + n) * 512, 512, core as u8 + 1).fua(),
                core * 3 + n,
            );
        }
    }
    rig.run(f.device);
    assert!(f.device.log().iter().all(|entry| entry.core == 2));
    for core in 0..4u64 {
        let order: Vec<u64> = f
            .device
            .log()
            .iter()
            .map(|e| e.offset / 512)
            .filter(|n| *n / 3 == core)
            .take(3)
            .collect();
        let expected = if core == 0 {
            std::vec![0, 1, 2]
        } else {
            order.clone()
        };
        assert_eq!(order, expected, "order per sender");
    }
    let done = done();
    assert_eq!(done.len(), 12);
    for one in done {
        assert_eq!((one.result, one.core), (Ok(()), one.tag as usize / 3));
    }
    assert_eq!(f.device.durable(), f.device.visible());
    rig.finish();
}

#[test]
fn a_backend_splits_at_its_largest_transfer_and_flushes_once() {
    let mut rig = rig(1);
    let f = rig.disk(with_flush(8 << 20));
    f.device.set_automatic(true);
    submit(
        0,
        f.backend,
        write(1 << 20, 3 << 20, 9).in_segments(512 * 1024).fua(),
        1,
    );
    rig.settle();
    assert_eq!(results(), [(1, Ok(()))]);
    let log: Vec<_> = f
        .device
        .log()
        .iter()
        .map(|e| (e.operation, e.offset >> 20, e.len >> 20))
        .collect();
    assert_eq!(
        log,
        [(Write, 1, 1), (Write, 2, 1), (Write, 3, 1), (Flush, 0, 0)]
    );
    assert!(f.device.durable()[1 << 20..4 << 20].iter().all(|b| *b == 9));
    let stats = f.backend.stats();
    assert_eq!((stats.operations[1], stats.bytes[1]), (1, 3 << 20));
    rig.finish();
}

#[test]
fn device_limits_are_honoured_by_splitting() {
    let mut rig = rig(1);
    let mut info = with_everything(1 << 20);
    info.max_segments = 2;
    info.max_segment_bytes = 8192;
    info.max_transfer = 12 * 1024;
    info.max_discard = 64 * 1024;
    info.discard_align = 16 * 1024;
    info.max_zeroes = 32 * 1024;
    let f = rig.disk(info);
    f.device.set_automatic(true);
    submit(
        0,
        f.backend,
        write(0, 40 * 1024, 1).in_segments(6 * 1024),
        1,
    );
    submit(0, f.backend, write(512 * 1024, 64 * 1024, 2), 2);
    submit(0, f.backend, ask(Discard, 4096, 200 * 1024), 3);
    submit(0, f.backend, ask(WriteZeroes, 512 * 1024, 100 * 1024), 4);
    rig.settle();
    assert_eq!(
        results(),
        [(1, Ok(())), (2, Ok(())), (3, Ok(())), (4, Ok(()))]
    );
    for entry in f.device.log() {
        match entry.operation {
            Write => assert!(entry.len <= 12 * 1024 && entry.pieces <= 2, "{entry:?}"),
            Discard => {
                assert!(entry.len <= 64 * 1024, "{entry:?}");
                assert!(
                    (entry.offset + entry.len) % (16 * 1024) == 0
                        || entry.offset + entry.len == 204 * 1024
                );
            }
            WriteZeroes => assert!(entry.len <= 32 * 1024, "{entry:?}"),
            _ => panic!("{entry:?}"),
        }
    }
    rig.finish();
}

#[test]
fn a_preference_for_discards_never_cuts_a_block() {
    let mut rig = rig(1);
    let mut info = with_everything(1 << 20);
    info.logical_block = 4096;
    info.max_discard = 64 * 1024;
    info.discard_align = 4608;
    let f = rig.disk(info);
    f.device.set_automatic(true);
    submit(0, f.backend, ask(Discard, 4096, 200 * 1024), 1);
    rig.settle();
    assert_eq!(results(), [(1, Ok(()))]);
    for entry in f.device.log() {
        assert_eq!((entry.offset | entry.len) % 4096, 0, "{entry:?}");
    }
    rig.finish();
}

#[test]
fn segments_smaller_than_a_block_are_refused_not_looped_over() {
    let mut rig = rig(1);
    let mut info = with_flush(1 << 20);
    info.max_segments = 2;
    let f = rig.disk(info);
    f.device.set_automatic(true);
    submit(0, f.backend, write(0, 1024, 1).in_segments(128), 1);
    rig.settle();
    assert_eq!(results(), [(1, Err(BlockError::Invalid))]);
    assert_eq!(f.device.log(), []);
    rig.finish();
}

#[test]
fn zeroes_are_written_where_the_device_does_not_know_them() {
    let mut rig = rig(1);
    let mut info = with_flush(4 << 20);
    info.max_segments = 3;
    let f = rig.disk(info);
    f.device.set_automatic(true);
    submit(0, f.backend, write(0, 1 << 20, 7), 1);
    rig.settle();
    f.device.clear_log();
    submit(
        0,
        f.backend,
        ask(WriteZeroes, 4096, 200 * 1024)
            .flags(RequestFlags::MAY_UNMAP)
            .fua(),
        2,
    );
    submit(
        0,
        f.backend,
        ask(WriteZeroes, 0, 512).flags(RequestFlags::FAST_ZERO),
        3,
    );
    submit(0, f.backend, ask(Discard, 0, 512).fua(), 4);
    rig.settle();
    assert_eq!(
        results(),
        [
            (1, Ok(())),
            (2, Ok(())),
            (3, Err(BlockError::NotSupported)),
            (4, Ok(()))
        ],
    );
    let visible = f.device.visible();
    assert!(
        visible[..4096].iter().all(|b| *b == 7),
        "a discard the device does not know changes nothing"
    );
    assert!(visible[4096..][..200 * 1024].iter().all(|b| *b == 0));
    assert!(visible[204 * 1024..1 << 20].iter().all(|b| *b == 7));
    let log = f.device.log();
    let writes = log.iter().filter(|e| e.operation == Write).count();
    assert_eq!(writes, (200usize).div_ceil(48));
    assert!(
        log.iter()
            .all(|e| e.pieces <= 3 && e.operation != WriteZeroes && e.operation != Discard)
    );
    assert_eq!(log.iter().filter(|e| e.operation == Flush).count(), 1);
    assert_eq!(f.device.durable(), visible);
    rig.finish();
}

#[test]
fn unmap_is_asked_for_only_where_allowed_and_possible() {
    let mut rig = rig(1);
    let may = rig.disk(with_everything(1 << 20));
    let mut info = with_everything(1 << 20);
    info.features.remove(DeviceFeatures::ZEROES_MAY_UNMAP);
    let cannot = rig.disk(info);
    for f in [may, cannot] {
        f.device.set_automatic(true);
        submit(0, f.backend, ask(WriteZeroes, 0, 512), 1);
        submit(
            0,
            f.backend,
            ask(WriteZeroes, 0, 512).flags(RequestFlags::MAY_UNMAP | RequestFlags::FAST_ZERO),
            2,
        );
    }
    rig.settle();
    let unmaps = |f: Fixture| -> Vec<bool> {
        f.device
            .log()
            .iter()
            .map(|e| e.flags.contains(RequestFlags::MAY_UNMAP))
            .collect()
    };
    assert_eq!(unmaps(may), [false, true]);
    assert_eq!(unmaps(cannot), [false, false]);
    assert!(results().iter().all(|(_, r)| r.is_ok()));
    rig.finish();
}

#[test]
fn trims_are_rounded_inwards() {
    let mut rig = rig(1);
    let mut info = with_everything(1 << 20);
    info.logical_block = 4096;
    let f = rig.disk(info);
    f.device.set_automatic(true);
    submit(0, f.backend, ask(Discard, 100, 8192), 1);
    submit(0, f.backend, ask(Discard, 100, 4096), 2);
    submit(0, f.backend, ask(Discard, (1 << 20) - 5000, 5000), 3);
    rig.settle();
    assert_eq!(results(), [(1, Ok(())), (2, Ok(())), (3, Ok(()))]);
    let log: Vec<_> = f.device.log().iter().map(|e| (e.offset, e.len)).collect();
    assert_eq!(log, [(4096, 4096), ((1 << 20) - 4096, 4096)]);
    rig.finish();
}

#[test]
fn a_shrunken_disk_refuses_what_lies_beyond_without_asking_the_device() {
    let mut rig = rig(1);
    let f = rig.disk(with_flush(1 << 20));
    f.device.set_depth(1);
    submit(0, f.backend, read(0, 512), 1);
    // Waits for a place in the queue while the disk shrinks under it.
    submit(0, f.backend, write(1 << 19, 512, 1), 2);
    rig.settle();
    on(0, || f.device.resize(1 << 19));
    rig.settle();
    assert_eq!(f.backend.size(), 1 << 19);
    submit(0, f.backend, read(1 << 19, 512), 3);
    submit(0, f.backend, read((1 << 19) - 512, 512), 4);
    rig.run(f.device);
    assert_eq!(
        results(),
        [
            (1, Ok(())),
            (2, Err(BlockError::NoSpace)),
            (3, Err(BlockError::Invalid)),
            (4, Ok(()))
        ],
    );
    assert_eq!(operations(f.device), [Read, Read]);
    on(0, || f.device.resize(2 << 20));
    rig.settle();
    assert_eq!(f.backend.size(), 2 << 20);
    submit(0, f.backend, write((2 << 20) - 512, 512, 1), 5);
    rig.run(f.device);
    assert_eq!(results(), [(5, Ok(()))]);
    rig.finish();
}

#[test]
fn a_silent_disk_is_reported_and_its_requests_end_only_with_a_reset() {
    let mut rig = rig(2);
    let f = rig.disk(with_flush(1 << 20));
    f.device.set_silent(true);
    submit(1, f.backend, read(0, 512), 1);
    submit(1, f.backend, write(0, 512, 1), 2);
    rig.run(f.device);
    host::clock::advance(40_000_000_000);
    rig.run(f.device);
    assert_eq!(results(), [], "no timer ends a request");
    let view = f.disk.view();
    assert_eq!((view.in_flight, view.state), (2, DiskState::Online));
    assert!(view.oldest_s.unwrap() >= 39);
    assert_eq!(on(0, || f.disk.reset()), ResetOutcome::Started);
    rig.run(f.device);
    assert_eq!(
        results(),
        [(1, Err(BlockError::Io)), (2, Err(BlockError::Io))]
    );
    assert_eq!(
        f.disk.state(),
        DiskState::WriteError,
        "the write may have been half done"
    );
    assert_eq!(on(0, || f.disk.reset()), ResetOutcome::Cleared);
    assert_eq!(on(0, || f.disk.reset()), ResetOutcome::Nothing);
    rig.finish();
}

#[test]
fn a_disk_that_keeps_failing_is_left_alone() {
    let mut rig = rig(1);
    let f = rig.disk(with_flush(1 << 20));
    for _ in 0..6 {
        on(0, || f.device.need_reset());
        rig.settle();
    }
    assert_eq!((f.device.resets(), f.disk.state()), (4, DiskState::Failed));
    submit(0, f.backend, read(0, 512), 1);
    rig.settle();
    assert_eq!(results(), [(1, Err(BlockError::Io))]);
    assert_eq!(f.device.log(), []);
    f.device.set_reset_works(false);
    assert_eq!(on(0, || f.disk.reset()), ResetOutcome::Started);
    assert_eq!(f.disk.state(), DiskState::Failed);
    f.device.set_reset_works(true);
    assert_eq!(on(0, || f.disk.reset()), ResetOutcome::Started);
    assert_eq!(f.disk.state(), DiskState::Online);
    f.device.set_automatic(true);
    submit(0, f.backend, read(0, 512), 1);
    rig.settle();
    assert_eq!(results(), [(1, Ok(()))]);
    rig.finish();
}

/// The reset that leaves it alone still ends the requests that it holds.
#[test]
fn a_disk_that_keeps_failing_keeps_no_request() {
    let mut rig = rig(1);
    let f = rig.disk(with_flush(1 << 20));
    for tag in 0..6 {
        submit(0, f.backend, read(0, 512), tag);
        rig.settle();
        on(0, || f.device.need_reset());
        rig.settle();
        assert_eq!(results(), [(tag, Err(BlockError::Io))]);
    }
    assert_eq!(f.disk.state(), DiskState::Failed);
    assert_eq!(on(0, || f.disk.reset()), ResetOutcome::Started);
    assert_eq!(f.disk.state(), DiskState::Online);
    f.device.set_automatic(true);
    submit(0, f.backend, read(0, 512), 9);
    rig.settle();
    assert_eq!(results(), [(9, Ok(()))]);
    rig.finish();
}

#[test]
fn requests_that_wait_for_a_full_queue_fail_with_the_disk() {
    let mut rig = rig(1);
    let f = rig.disk(with_flush(1 << 20));
    f.device.set_depth(1);
    for n in 0..4 {
        submit(0, f.backend, read(n * 512, 512), n);
    }
    submit(0, f.backend, flush(), 4);
    submit(0, f.backend, flush(), 5);
    rig.settle();
    assert_eq!((f.disk.waiting(), f.disk.launched()), (4, 1));
    f.device.set_reset_works(false);
    on(0, || f.device.need_reset());
    rig.settle();
    assert!(results().iter().all(|(_, r)| *r == Err(BlockError::Io)));
    assert_eq!((f.disk.waiting(), f.disk.launched()), (0, 0));
    rig.finish();
}

#[test]
fn the_registry_names_disks_in_order_and_finds_them_by_serial() {
    let _rig = rig(1);
    let make = |serial: &[u8]| {
        let mut info = DeviceInfo::new(1 << 16);
        info.serial[..serial.len()].copy_from_slice(serial);
        on(0, || add_disk(TestDisk::leak(info), 0).unwrap())
    };
    let before = disks().count();
    let (a, b, c) = (make(b"alpha"), make(b"twin"), make(b"twin"));
    assert_eq!(disks().count(), before + 3);
    assert_eq!(
        (a.index(), b.index(), c.index()),
        (before, before + 1, before + 2)
    );
    assert_eq!(find_disk("alpha").map(Disk::index), Some(a.index()));
    assert!(
        find_disk("twin").is_none(),
        "a doubled serial is never guessed"
    );
    assert!(find_disk("").is_none());
    assert_eq!(find_disk(&b.name()).map(Disk::index), Some(b.index()));
    assert_eq!(crate::block::graph::name(b.node()).unwrap(), b.name());
    let mut bad = DeviceInfo::new(1 << 16);
    bad.logical_block = 520;
    assert!(matches!(
        on(0, || add_disk(TestDisk::leak(bad), 0)),
        Err(BlockError::Invalid)
    ));
}

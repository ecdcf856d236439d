//! DUR-1 … DUR-8, one test a rule; DUR-9 is the NBD server's.

use super::*;
use Operation::{Discard, Flush, Read, Write, WriteZeroes};

const IO: Result<(), BlockError> = Err(BlockError::Io);

#[test]
fn dur_1_flush_covers_every_answered_write_of_any_core() {
    let mut rig = rig(3);
    let f = rig.disk(with_flush(1 << 20));
    for core in 0..3u64 {
        submit(
            core as usize,
            f.backend,
            write(core * 4096, 4096, core as u8 + 1),
            core,
        );
    }
    rig.run(f.device);
    assert_eq!(results(), [(0, Ok(())), (1, Ok(())), (2, Ok(()))]);
    assert!(f.device.durable().iter().all(|b| *b == 0));
    submit(2, f.backend, flush(), 9);
    rig.run(f.device);
    assert_eq!(results(), [(9, Ok(()))]);
    f.device.power_cut();
    for core in 0..3 {
        assert!(
            f.device.visible()[core * 4096..][..4096]
                .iter()
                .all(|b| *b == core as u8 + 1)
        );
    }
    rig.finish();
}

#[test]
fn dur_2_fua_is_data_used_then_flush_then_answer() {
    for ask in [
        write(4096, 4096, 7),
        ask(WriteZeroes, 4096, 4096),
        ask(Discard, 4096, 4096),
    ] {
        let mut rig = rig(2);
        let f = rig.disk(with_everything(1 << 20));
        submit(1, f.backend, ask.fua(), 1);
        rig.settle();
        assert_eq!(
            operations(f.device),
            [ask.operation],
            "the flush must not go with the data"
        );
        on(1, || f.device.finish(0));
        assert_eq!(
            operations(f.device),
            [ask.operation],
            "the flush is made available from the loop"
        );
        rig.settle();
        assert_eq!(operations(f.device), [ask.operation, Flush]);
        assert_eq!(results(), [], "the answer waits for the flush");
        on(1, || f.device.finish(0));
        rig.settle();
        assert_eq!(results(), [(1, Ok(()))]);
        assert_eq!(f.device.durable(), f.device.visible());
        rig.finish();
    }
}

#[test]
fn dur_3_a_flush_joins_the_next_one_never_the_running_one() {
    let mut rig = rig(1);
    let f = rig.disk(with_flush(1 << 20));
    submit(0, f.backend, flush(), 1);
    rig.settle();
    // This write ends while the first flush runs.
    submit(0, f.backend, write(0, 512, 5), 2);
    rig.settle();
    on(0, || f.device.finish(1));
    rig.settle();
    assert_eq!(results(), [(2, Ok(()))]);
    submit(0, f.backend, flush(), 3);
    submit(0, f.backend, flush(), 4);
    rig.settle();
    assert_eq!(
        operations(f.device),
        [Flush, Write],
        "one flush a core at a time"
    );
    on(0, || f.device.finish(0));
    rig.settle();
    assert_eq!(
        results(),
        [(1, Ok(()))],
        "the running flush answers for itself alone"
    );
    assert_eq!(f.device.durable()[0], 0);
    assert_eq!(operations(f.device), [Flush, Write, Flush]);
    // This one comes too late even for the second.
    submit(0, f.backend, flush(), 5);
    rig.run(f.device);
    assert_eq!(results(), [(3, Ok(())), (4, Ok(())), (5, Ok(()))]);
    assert_eq!(
        operations(f.device),
        [Flush, Write, Flush, Flush],
        "two shared one"
    );
    assert_eq!(f.disk.device_flushes(), 3);
    assert_eq!(f.device.durable()[0], 5);
    rig.finish();
}

#[test]
fn dur_3_every_order_of_completion_keeps_what_was_flushed() {
    for seed in 0..200u64 {
        let mut random = model::Random::new(seed);
        let mut rig = rig(2);
        let f = rig.disk(with_flush(64 * 512));
        let mut next = 0u64;
        // Blocks whose write was answered before a flush was asked for, by the flush's tag.
        let mut covered: Vec<(u64, Vec<usize>)> = Vec::new();
        let mut answered: Vec<usize> = Vec::new();
        for _ in 0..60 {
            let core = random.below(2) as usize;
            match random.below(3) {
                0 if next < 60 => {
                    submit(core, f.backend, write(next * 512, 512, 1), next);
                    next += 1;
                }
                1 => {
                    let tag = 1000 + covered.len() as u64;
                    covered.push((tag, answered.clone()));
                    submit(core, f.backend, flush(), tag);
                }
                _ => {
                    let held = f.device.held() as u64;
                    if held > 0 {
                        let n = random.below(held) as usize;
                        let queue = f.device.core_of(n);
                        on(queue, || f.device.finish(n));
                    }
                }
            }
            rig.settle();
            for done in done() {
                assert_eq!(done.result, Ok(()));
                if done.tag < 1000 {
                    answered.push(done.tag as usize);
                } else {
                    let (_, blocks) = &covered[done.tag as usize - 1000];
                    let durable = f.device.durable();
                    for block in blocks {
                        assert_eq!(
                            durable[block * 512],
                            1,
                            "seed {seed}: block {block} was flushed and is not durable"
                        );
                    }
                }
            }
        }
        rig.run(f.device);
        done();
        rig.finish();
    }
}

#[test]
fn dur_4_flush_is_sent_when_offered_and_free_when_not() {
    let mut rig = rig(1);
    let mut info = with_flush(1 << 20);
    info.writeback = false;
    let offered = rig.disk(info);
    submit(0, offered.backend, flush(), 1);
    submit(0, offered.backend, write(0, 512, 1).fua(), 2);
    rig.run(offered.device);
    assert_eq!(results(), [(1, Ok(())), (2, Ok(()))]);
    assert_eq!(
        operations(offered.device)
            .iter()
            .filter(|op| **op == Flush)
            .count(),
        2
    );
    assert_eq!(offered.disk.view().mode, "write-back");

    let without = rig.disk(DeviceInfo::new(1 << 20));
    submit(0, without.backend, flush(), 1);
    submit(0, without.backend, write(0, 512, 1).fua(), 2);
    rig.run(without.device);
    assert_eq!(results(), [(1, Ok(())), (2, Ok(()))]);
    assert_eq!(operations(without.device), [Write]);
    assert_eq!(without.disk.view().mode, "write-through");
    rig.finish();
}

#[test]
fn dur_5_a_failed_flush_latches_write_error() {
    let mut rig = rig(2);
    let f = rig.disk(with_everything(1 << 20));
    f.device.set_automatic(true);
    submit(0, f.backend, write(0, 512, 3), 1);
    rig.settle();
    f.device.fail_next(Flush, 1);
    submit(1, f.backend, flush(), 2);
    rig.settle();
    assert_eq!(results(), [(1, Ok(())), (2, IO)]);
    assert_eq!(f.disk.state(), DiskState::WriteError);
    f.device.clear_log();
    submit(0, f.backend, flush(), 1);
    submit(1, f.backend, write(0, 512, 4), 2);
    submit(1, f.backend, write(0, 512, 4).fua(), 3);
    submit(0, f.backend, ask(Discard, 0, 512), 4);
    submit(0, f.backend, ask(WriteZeroes, 0, 512), 5);
    submit(0, f.backend, read(0, 512), 6);
    rig.settle();
    assert_eq!(
        results(),
        [(1, IO), (2, IO), (3, IO), (4, IO), (5, IO), (6, Ok(()))]
    );
    assert_eq!(
        operations(f.device),
        [Read],
        "nothing but reads reaches the device"
    );
    assert_eq!(on(0, || f.disk.reset()), ResetOutcome::Cleared);
    assert_eq!(f.disk.state(), DiskState::Online);
    submit(0, f.backend, flush(), 1);
    rig.settle();
    assert_eq!(results(), [(1, Ok(()))]);
    assert_eq!(f.device.resets(), 0);
    rig.finish();
}

#[test]
fn dur_5_a_flush_that_succeeds_after_another_failed_proves_nothing() {
    let mut rig = rig(2);
    let f = rig.disk(with_flush(1 << 20));
    submit(0, f.backend, flush(), 1);
    submit(1, f.backend, flush(), 2);
    submit(1, f.backend, write(0, 512, 1).fua(), 3);
    rig.settle();
    assert_eq!(operations(f.device), [Flush, Flush, Write]);
    on(0, || f.device.fail(0));
    rig.settle();
    on(1, || f.device.finish(0));
    on(1, || f.device.finish(0));
    rig.settle();
    assert_eq!(results(), [(1, IO), (2, IO), (3, IO)]);
    assert_eq!(
        operations(f.device),
        [Flush, Flush, Write],
        "the FUA write's flush is not even tried"
    );
    on(0, || f.disk.reset());
    rig.finish();
}

#[test]
fn dur_5_a_reset_with_unflushed_writes_latches_and_a_clean_one_does_not() {
    let mut rig = rig(2);
    let f = rig.disk(with_flush(1 << 20));
    f.device.set_automatic(true);
    submit(1, f.backend, write(0, 512, 3), 1);
    rig.settle();
    submit(1, f.backend, flush(), 2);
    rig.settle();
    f.device.set_automatic(false);
    submit(0, f.backend, read(0, 512), 3);
    rig.settle();
    on(0, || f.device.need_reset());
    rig.settle();
    assert_eq!(results(), [(1, Ok(())), (2, Ok(())), (3, IO)]);
    assert_eq!((f.device.resets(), f.disk.state()), (1, DiskState::Online));

    f.device.set_automatic(true);
    submit(1, f.backend, write(0, 512, 3), 1);
    rig.settle();
    on(0, || f.device.need_reset());
    rig.settle();
    assert_eq!(
        (f.device.resets(), f.disk.state()),
        (2, DiskState::WriteError)
    );
    submit(0, f.backend, flush(), 2);
    submit(0, f.backend, read(0, 512), 3);
    rig.settle();
    assert_eq!(results(), [(1, Ok(())), (2, IO), (3, Ok(()))]);
    assert_eq!(on(0, || f.disk.reset()), ResetOutcome::Cleared);

    // A write that was under way while a flush ran is not covered by it.
    f.device.set_automatic(false);
    submit(0, f.backend, write(0, 512, 3), 1);
    submit(1, f.backend, flush(), 2);
    rig.settle();
    on(1, || f.device.finish(1));
    rig.settle();
    rig.run(f.device);
    assert_eq!(results(), [(1, Ok(())), (2, Ok(()))]);
    on(0, || f.device.need_reset());
    rig.settle();
    assert_eq!(f.disk.state(), DiskState::WriteError);
    assert_eq!(on(0, || f.disk.reset()), ResetOutcome::Cleared);

    // A device without a cache has nothing to lose.
    let f = rig.disk(DeviceInfo::new(1 << 20));
    f.device.set_automatic(true);
    submit(1, f.backend, write(0, 512, 3), 1);
    rig.settle();
    on(0, || f.device.need_reset());
    rig.settle();
    assert_eq!(
        (results(), f.disk.state()),
        (std::vec![(1, Ok(()))], DiskState::Online)
    );
    rig.finish();
}

#[test]
fn dur_6_one_flush_covers_the_whole_device() {
    let mut rig = rig(4);
    let f = rig.disk(with_flush(1 << 20));
    for core in 1..4usize {
        submit(
            core,
            f.backend,
            write(core as u64 * 512, 512, 1),
            core as u64,
        );
    }
    rig.run(f.device);
    submit(0, f.backend, flush(), 9);
    rig.run(f.device);
    assert_eq!(
        operations(f.device)
            .iter()
            .filter(|op| **op == Flush)
            .count(),
        1
    );
    assert_eq!(f.device.durable(), f.device.visible());
    done();
    rig.finish();
}

#[test]
fn dur_7_a_failed_write_is_neither_retried_nor_continued() {
    let mut rig = rig(1);
    let mut info = with_flush(1 << 20);
    info.max_transfer = 1024;
    let f = rig.disk(info);
    f.device.set_automatic(true);
    submit(0, f.backend, write(1024, 512, 1), 0);
    f.device.fail_next(Write, 1);
    submit(0, f.backend, write(4096, 4096, 2), 1);
    rig.settle();
    assert_eq!(results(), [(0, Ok(())), (1, IO)]);
    assert_eq!(operations(f.device), [Write, Write]);
    f.device.clear_log();
    f.device.fail_next(Write, 1);
    submit(0, f.backend, write(8192, 4096, 3).fua(), 2);
    rig.settle();
    assert_eq!(results(), [(2, IO)]);
    assert_eq!(
        operations(f.device),
        [Write],
        "no further part, no flush, no second try"
    );
    assert!(f.device.visible()[8192..][..4096].iter().all(|b| *b == 0));
    assert_eq!(
        f.disk.state(),
        DiskState::Online,
        "a failed write latches nothing"
    );
    assert_eq!(f.disk.last_error(), Some((Write, BlockError::Io)));
    rig.finish();
}

#[test]
fn dur_8_one_token_spans_data_and_flush() {
    let mut rig = rig(2);
    let f = rig.disk(with_flush(1 << 20));
    submit(1, f.backend, write(0, 4096, 1).fua(), 1);
    rig.settle();
    rig.drain(f.backend);
    assert!(!rig.quiet(f.backend));
    on(1, || f.device.finish(0));
    rig.settle();
    assert!(
        !rig.quiet(f.backend),
        "no drain falls between the data and their flush"
    );
    assert_eq!(f.backend.in_flight(), 1);
    on(1, || f.device.finish(0));
    rig.settle();
    assert!(rig.quiet(f.backend));
    assert_eq!(results(), [(1, Ok(()))]);
    rig.undrain(f.backend);
    rig.finish();
}

#[test]
fn dur_8_nothing_is_submitted_to_a_device_twice() {
    let mut rig = rig(2);
    let f = rig.disk(with_flush(1 << 20));
    f.device.set_depth(2);
    for n in 0..20u64 {
        submit((n % 2) as usize, f.backend, write(n * 512, 512, n as u8), n);
    }
    rig.run(f.device);
    let mut offsets: Vec<u64> = f
        .device
        .log()
        .iter()
        .map(|entry| entry.offset / 512)
        .collect();
    for core in 0..2 {
        let order: Vec<u64> = offsets.iter().copied().filter(|n| n % 2 == core).collect();
        assert!(order.is_sorted(), "a full queue keeps the order: {order:?}");
    }
    offsets.sort();
    assert_eq!(offsets, (0..20).collect::<Vec<_>>());
    assert_eq!(results().len(), 20);
    rig.finish();
}

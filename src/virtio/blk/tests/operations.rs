//! What works: operations, configuration, queues, batching, polling.
use super::*;

#[test]
fn every_operation_on_every_kind_of_ring() {
    for legacy in [false, true] {
        for features in [
            ALL,
            ALL & !INDIRECT_DESC,
            ALL & !EVENT_INDEX,
            ALL & !(INDIRECT_DESC | EVENT_INDEX),
        ] {
            let rig = rig_with(1, 1, 0, legacy, features, 64);
            let data = pattern(7, 4096);
            rig.submit(0, Operation::Write, 8192, &data, 1);
            rig.run();
            assert_eq!(rig.done()[0].result, Ok(()));
            rig.submit(0, Operation::Read, 8192, &[0; 4096], 2);
            rig.submit(0, Operation::Flush, 0, &[], 3);
            rig.run();
            let done = rig.done();
            assert_eq!(
                (done[0].tag, done[0].result, &done[0].data),
                (2, Ok(()), &data)
            );
            assert_eq!((done[1].tag, done[1].result), (3, Ok(())));
            on(0, || {
                for (operation, flags) in [
                    (Operation::Discard, RequestFlags::empty()),
                    (Operation::WriteZeroes, RequestFlags::empty()),
                    (Operation::WriteZeroes, RequestFlags::MAY_UNMAP),
                ] {
                    let mut request = rig.request(operation, 4096, 8192, 4);
                    request.flags = flags;
                    assert!(rig.blk.submit(request).is_ok());
                }
            });
            rig.run();
            assert!(rig.done().iter().all(|d| d.result == Ok(())));
            let model = rig.model.lock().unwrap();
            let seen = |kind, sector, bytes, flags| Seen {
                kind,
                sector,
                bytes,
                flags,
            };
            assert_eq!(
                model.seen,
                [
                    seen(kind::WRITE, 16, 4096, 0),
                    seen(kind::READ, 16, 4096, 0),
                    seen(kind::FLUSH, 0, 0, 0),
                    seen(kind::DISCARD, 8, 8192, 0),
                    seen(kind::WRITE_ZEROES, 8, 8192, 0),
                    seen(kind::WRITE_ZEROES, 8, 8192, 1),
                ]
            );
            assert!(model.data[8192..12_288].iter().all(|b| *b == 0));
        }
    }
}

#[test]
fn pieces_are_gathered_and_scattered() {
    for features in [ALL, ALL & !INDIRECT_DESC] {
        let rig = rig_with(1, 1, 0, false, features, 64);
        let segments = crate::config::MAX_SEGMENTS;
        assert_eq!(rig.blk.info().max_segments as usize, segments);
        let all = pattern(3, segments * 512);
        let submit = |operation, tag| {
            on(0, || {
                let mut request = rig.request(operation, 512, all.len() as u64, tag);
                for part in all.chunks(512) {
                    let mut buffer = PAGES.alloc_contiguous(4096).unwrap();
                    if operation == Operation::Write {
                        buffer.as_mut_slice()[..512].copy_from_slice(part);
                    }
                    assert!(request.add_buffer(buffer, 512).is_ok());
                }
                assert!(rig.blk.submit(request).is_ok());
            });
            rig.run();
        };
        submit(Operation::Write, 1);
        submit(Operation::Read, 2);
        let done = rig.done();
        assert_eq!((done[1].result, &done[1].data), (Ok(()), &all));
        let model = rig.model.lock().unwrap();
        assert_eq!(model.most_pieces, segments);
        assert_eq!(&model.data[512..512 + all.len()], &all[..]);
    }
}

#[test]
fn the_configuration_is_read() {
    let rig = rig(4, 4);
    let info = rig.blk.info();
    assert_eq!(
        (info.capacity, info.logical_block, info.physical_block),
        (2048 * 512, 512, 4096)
    );
    assert_eq!(
        (info.optimal_io, info.queues, info.writeback),
        (16 * 512, 4, true)
    );
    assert_eq!(
        (info.max_discard, info.discard_align, info.max_zeroes),
        (32_768 * 512, 4096, 4096 * 512)
    );
    assert_eq!(info.serial_str(), "serial-of-this-disk");
    let expected = DeviceFeatures::all() - DeviceFeatures::READ_ONLY;
    assert_eq!(info.features, expected);
    assert!(rig.device.status() & status::DRIVER_OK != 0);
    // Write cache off is shown; FLUSH is there all the same, and sent.
    let plain = rig_with_config(ALL | blk_feature::RO, |c| {
        c[32] = 0;
        c[24] = 200;
        c[36..40].fill(0);
    })
    .unwrap();
    let info = plain.info();
    assert!(
        !info.writeback
            && info
                .features
                .contains(DeviceFeatures::FLUSH | DeviceFeatures::READ_ONLY)
    );
    assert_eq!(info.physical_block, 512, "an absurd exponent is ignored");
    assert!(
        !info.features.contains(DeviceFeatures::DISCARD),
        "discards of no sectors are none"
    );
    let bare = rig_with_config(0, |_| {}).unwrap().info();
    assert_eq!(
        (
            bare.max_segments,
            bare.queues,
            bare.features,
            bare.writeback
        ),
        (1, 1, DeviceFeatures::empty(), false)
    );
}

/// A disk of its own, on a machine that the caller holds.
fn rig_with_config(
    features: u64,
    change: impl Fn(&mut Vec<u8>),
) -> Result<&'static Blk, SetupError> {
    let device = FakeDevice::new(2, false, 4, 64, features);
    configure(device, 2048, 4);
    change(&mut device.state().config);
    let (blk, _) = add_disk(device, Model::new(2048), 0, 1);
    if blk.is_err() {
        assert_ne!(device.status() & status::FAILED, 0);
    }
    blk
}

#[test]
fn nonsense_in_the_configuration_is_refused() {
    let _machine = machine(1);
    for size in [0u32, 1, 256, 513, 131_072, u32::MAX] {
        let result = rig_with_config(ALL, |c| c[20..24].copy_from_slice(&size.to_le_bytes()));
        assert_eq!(result.err(), Some(SetupError::BadConfiguration), "{size}");
    }
    let result = rig_with_config(ALL, |c| c[0..8].fill(0xff));
    assert_eq!(result.err(), Some(SetupError::BadConfiguration));
}

#[test]
fn queues_belong_to_cores() {
    let rig4 = rig(4, 4);
    assert_eq!(
        (0..4).map(|c| rig4.blk.submitter(c)).collect::<Vec<_>>(),
        [0, 1, 2, 3]
    );
    for core in 0..4 {
        rig4.submit(core, Operation::Read, 0, &[0; 512], core as u64);
    }
    rig4.settle();
    assert_eq!(
        (0..4).map(|q| rig4.device.kicks(q)).collect::<Vec<_>>()[1..],
        [1, 1, 1]
    );
    rig4.run();
    let mut done = rig4.done();
    done.sort_by_key(|d| d.tag);
    assert!(
        done.iter()
            .all(|d| d.core as u64 == d.tag && d.result == Ok(()))
            && done.len() == 4
    );
    drop(rig4);
    // One queue: all of it on the home core. Two: the home core and the next.
    let rig1 = rig(4, 1);
    assert_eq!(
        (0..4).map(|c| rig1.blk.submitter(c)).collect::<Vec<_>>(),
        [3, 3, 3, 3]
    );
    drop(rig1);
    let rig2 = rig(4, 2);
    assert_eq!(
        (0..4).map(|c| rig2.blk.submitter(c)).collect::<Vec<_>>(),
        [0, 0, 3, 3],
        "owners: 3, then 0"
    );
}

#[test]
fn mq_2_the_drivers_table_gives_each_core_its_turn() {
    for cores in 1..=MAX_CORES {
        for home in 0..cores {
            for lanes in 1..=cores {
                let table = rehome::table(lanes, home, cores).unwrap();
                let moved: Vec<_> = (0..lanes)
                    .map(|lane| rehome::owner(lane, lanes, home, cores) as u8)
                    .collect();
                assert_eq!(
                    table[..],
                    moved[..],
                    "{lanes} queues, home {home} of {cores}"
                );
                assert!(lanes == cores || usize::from(table[0]) == home);
            }
        }
    }
}

#[test]
fn one_kick_a_turn_and_one_interrupt_a_batch() {
    let rig = rig(1, 1);
    let (kicks, interrupts) = (rig.kicks(), rig.blk.counters().interrupts);
    for i in 0..32 {
        rig.submit(0, Operation::Read, i * 512, &[0; 512], i);
    }
    assert_eq!(rig.kicks(), kicks, "nothing before the end of the turn");
    rig.run();
    assert_eq!(rig.kicks(), kicks + 1);
    assert_eq!(rig.blk.counters().interrupts, interrupts + 1);
    assert_eq!(rig.done().len(), 32);
}

#[test]
fn a_full_queue_gives_the_request_back() {
    let rig = rig_with(1, 1, 0, false, ALL, 8);
    for i in 0..8 {
        rig.submit(0, Operation::Read, i * 512, &[0; 512], i);
    }
    on(0, || {
        let request = rig.request(Operation::Flush, 0, 0, 99);
        let request = rig.blk.submit(request).expect_err("full");
        assert_eq!(request.user[0], 99);
    });
    rig.run();
    assert_eq!(rig.done().len(), 8);
    rig.submit(0, Operation::Flush, 0, &[], 9);
    rig.run();
    assert_eq!(rig.done().len(), 1);
}

#[test]
fn errors_of_the_device_are_typed() {
    let rig = rig(1, 1);
    rig.model.lock().unwrap().bad_sector = Some(8);
    rig.submit(0, Operation::Read, 4096, &[0; 512], 1);
    rig.submit(0, Operation::Read, 2048 * 512, &[0; 512], 2);
    rig.submit(0, Operation::Read, 0, &[0; 512], 3);
    rig.run();
    let results: Vec<_> = rig.done().iter().map(|d| d.result).collect();
    assert_eq!(results, [Err(BlockError::Io), Err(BlockError::Io), Ok(())]);
    // A device that says "used" but writes no status has not done it.
    rig.submit(0, Operation::Read, 0, &[0; 512], 4);
    rig.submit(0, Operation::Read, 0, &[0; 512], 5);
    rig.settle();
    rig.device.look(0, 9);
    let chain = rig.device.take(0, 0).unwrap();
    rig.device.answer(0, &[(u32::from(chain.head), 0)]);
    let chain = rig.device.take(0, 0).unwrap();
    chain.write(chain.room() as usize - 1, &[2]);
    rig.device.answer(0, &[(u32::from(chain.head), 1)]);
    rig.settle();
    let results: Vec<_> = rig.done().iter().map(|d| d.result).collect();
    assert_eq!(
        results,
        [Err(BlockError::Io), Err(BlockError::NotSupported)]
    );
}

#[test]
fn polling_does_without_interrupts() {
    for features in [ALL, ALL & !EVENT_INDEX] {
        let rig = rig_with(1, 1, 0, false, features, 64);
        let argument = argument(usize::from(rig.blk.index.load(Relaxed)), 0);
        use super::super::seat::{poll_begin, poll_check, poll_end, ready};
        // The fake device has interrupted once, as devices do, for the first answer.
        rig.submit(0, Operation::Read, 0, &[0; 512], 0);
        rig.run();
        on(0, || poll_begin(argument));
        let interrupts = rig.device.state().interrupts;
        for i in 1..40 {
            rig.submit(0, Operation::Read, 0, &[0; 512], i);
            rig.settle();
            assert!(!on(0, || poll_check(argument)));
            rig.model.lock().unwrap().serve(rig.device, 0);
            assert!(on(0, || poll_check(argument)));
            on(0, || ready(argument));
            assert!(!on(0, || poll_check(argument)));
        }
        assert_eq!(
            rig.device.state().interrupts,
            interrupts,
            "polling, so no interrupt"
        );
        // One that comes between the last check and the end of polling is found by the check after it.
        rig.submit(0, Operation::Read, 0, &[0; 512], 40);
        rig.settle();
        rig.model.lock().unwrap().serve(rig.device, 0);
        on(0, || poll_end(argument));
        assert!(on(0, || poll_check(argument)));
        on(0, || ready(argument));
        rig.submit(0, Operation::Read, 0, &[0; 512], 41);
        rig.run();
        assert!(
            rig.device.state().interrupts > interrupts,
            "and by interrupt again"
        );
        assert_eq!(rig.done().len(), 42);
    }
}

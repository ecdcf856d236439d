//! Devices that lie, and what a reset leaves of them.
use super::*;

fn one_in_flight(features: u64) -> (&'static FakeDevice, VirtQueue, u16) {
    let (device, mut queue) = make(false, features, 16, 4);
    queue.arm();
    let data = &raw const DATA as u64;
    let head = queue
        .add(&[
            Piece::read(data, 16),
            Piece::write(data, 32),
            Piece::write(data, 1),
        ])
        .unwrap();
    queue.publish();
    device.look(0, 16);
    (device, queue, head)
}

#[test]
fn a_lying_device_is_found_out() {
    for features in [0, INDIRECT_DESC, EVENT_INDEX | INDIRECT_DESC] {
        let expect = |queue: &mut VirtQueue, fault| {
            assert_eq!(queue.pop(), Err(fault));
            // It stays so, and nothing goes out any more.
            assert_eq!(queue.pop(), Err(fault));
            assert_eq!(queue.fault(), Some(fault));
            assert_eq!(
                queue.add(&[Piece::read(&raw const DATA as u64, 1)]),
                Err(QueueFull)
            );
            assert!(!queue.publish() && !queue.arm());
        };
        for id in [16, 17, 65_535, 65_536, 0x8000_0000, u32::MAX] {
            let (device, mut queue, _) = one_in_flight(features);
            device.answer(0, &[(id, 0)]);
            expect(&mut queue, DeviceFault::BadId(id));
        }
        // A head that was never given (in a chain of three without indirect: an inner descriptor, or a free one).
        for other in [1, 2, 9] {
            let (device, mut queue, head) = one_in_flight(features);
            device.answer(0, &[(u32::from(head + other), 0)]);
            expect(&mut queue, DeviceFault::NotInFlight(head + other));
        }
        // Twice, in one walk and in two.
        for walks in [1, 2] {
            let (device, mut queue, head) = one_in_flight(features);
            let other = queue
                .add(&[Piece::read(&raw const DATA as u64, 1)])
                .unwrap();
            queue.publish();
            assert_ne!(head, other);
            device.answer(0, &[(u32::from(head), 0)]);
            if walks == 2 {
                assert!(queue.pop().unwrap().is_some() && queue.pop().unwrap().is_none());
            }
            device.answer(0, &[(u32::from(head), 0)]);
            if walks == 1 {
                assert_eq!(queue.pop(), Ok(Some(Used { head, len: 0 })));
            }
            expect(&mut queue, DeviceFault::NotInFlight(head));
        }
        // Staged, but not published.
        let (device, mut queue, _) = one_in_flight(features);
        let staged = queue
            .add(&[Piece::read(&raw const DATA as u64, 1)])
            .unwrap();
        device.answer(0, &[(u32::from(staged), 0)]);
        expect(&mut queue, DeviceFault::NotInFlight(staged));
        for len in [34, 4096, u32::MAX] {
            let (device, mut queue, head) = one_in_flight(features);
            device.answer(0, &[(u32::from(head), len)]);
            expect(
                &mut queue,
                DeviceFault::BadLength {
                    head,
                    len,
                    room: 33,
                },
            );
        }
        let (device, mut queue, head) = one_in_flight(features);
        device.answer(0, &[(u32::from(head), 33)]);
        assert_eq!(queue.pop(), Ok(Some(Used { head, len: 33 })));
        for by in [2, 17, 0x8000, 0xffff] {
            let (device, mut queue, _) = one_in_flight(features);
            device.jump(0, by);
            expect(
                &mut queue,
                DeviceFault::IndexJump {
                    from: 0,
                    to: by,
                    in_flight: 1,
                },
            );
        }
    }
}

#[test]
fn after_a_reset_late_writes_hit_nothing() {
    let (device, mut queue, head) = one_in_flight(EVENT_INDEX | INDIRECT_DESC);
    device.answer(0, &[(99, 0)]);
    assert!(queue.pop().is_err());
    assert_eq!(queue.outstanding().collect::<Vec<_>>(), [head]);
    device.set_status(0);
    queue.recycle();
    transport::negotiate(device, INDIRECT_DESC | EVENT_INDEX).unwrap();
    queue.tell_device();
    transport::start(device).unwrap();
    // The old ring lives on in the device's mind.
    let old = device.state().old_rings[0];
    write_used(&old, 1, u32::from(head), 1);
    old.used_index().store(2, Relaxed);
    assert_eq!(queue.pop(), Ok(None));
    assert_eq!(
        (queue.in_flight(), queue.free(), queue.outstanding().count()),
        (0, 16, 0)
    );
    queue.arm();
    let again = queue
        .add(&[Piece::read(&raw const DATA as u64, 1)])
        .unwrap();
    assert!(queue.publish());
    assert_eq!(device.look(0, 9), 1);
    device.answer(0, &[(u32::from(again), 0)]);
    assert_eq!(
        queue.pop(),
        Ok(Some(Used {
            head: again,
            len: 0
        }))
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a device puts into its ring, the driver neither crashes nor takes a chain twice.
    #[test]
    fn garbage_in_the_used_ring(seed in 1u64.., indirect: bool) {
        let features = EVENT_INDEX | if indirect { INDIRECT_DESC } else { 0 };
        let (device, mut queue) = make(false, features, 16, 4);
        let mut random = Random(seed);
        let mut out = HashMap::new();
        for _ in 0..300 {
            let chain = pieces(&mut random, 4);
            if let Ok(head) = queue.add(&chain) {
                prop_assert!(out.insert(head, ()).is_none());
            }
            queue.publish();
            if random.below(3) == 0 {
                device.look(0, 64);
                if let Some(chain) = device.take(0, 0) {
                    device.answer(0, &[(u32::from(chain.head), 0)]);
                }
            }
            match random.below(20) {
                0 => device.answer(0, &[(random.below(24) as u32, random.below(100) as u32)]),
                1 => device.jump(0, random.below(4) as u16),
                _ => {}
            }
            loop {
                match queue.pop() {
                    Ok(Some(used)) => prop_assert!(out.remove(&used.head).is_some()),
                    Ok(None) => break,
                    Err(_) => return Ok(()),
                }
            }
        }
    }
}

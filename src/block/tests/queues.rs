//! A disk with several queues: who serves whom, and where what was stopped goes on (MQ-1 … MQ-6).

use super::*;

/// A disk whose queues belong to `owners`, by the core they serve.
fn disk(rig: &mut Rig, owners: [CoreId; 4]) -> Fixture {
    let fixture = rig.disk(DeviceInfo::new(1 << 20));
    fixture
        .device
        .set_queues(core::array::from_fn(|core| owners[core % 4]));
    fixture
}

fn read_on_every_core(fixture: Fixture) {
    for core in 0..4 {
        submit(
            core,
            fixture.backend,
            read(core as u64 * 4096, 4096),
            core as u64,
        );
    }
}

/// Sees that each core's read reached the device on the queue that is its own, and came back to that core.
fn all_came_back(fixture: Fixture, owners: [CoreId; 4]) {
    let log = fixture.device.log();
    assert_eq!(log.len(), 4);
    for seen in log {
        assert_eq!(seen.core, owners[(seen.offset / 4096) as usize]);
    }
    let mut cores: Vec<_> = done().iter().map(|d| (d.tag, d.core, d.result)).collect();
    cores.sort_by_key(|seen| seen.0);
    assert_eq!(
        cores,
        [0, 1, 2, 3].map(|core| (core, core as usize, Ok(())))
    );
}

#[test]
fn mq_1_requests_run_on_their_callers_core() {
    let mut rig = rig(4);
    for owners in [[0, 1, 2, 3], [0, 1, 0, 1], [3; 4]] {
        let fixture = disk(&mut rig, owners);
        read_on_every_core(fixture);
        if owners == [0, 1, 2, 3] {
            assert_eq!(
                fixture.device.log().len(),
                4,
                "no request went through another core"
            );
        }
        rig.run(fixture.device);
        all_came_back(fixture, owners);
    }
    rig.finish();
}

#[test]
fn mq_3_a_node_has_one_home_and_takes_requests_from_every_core() {
    let mut rig = rig(4);
    let fixture = disk(&mut rig, [0, 1, 2, 3]);
    let id = fixture.disk.node();
    assert_eq!(on(0, || crate::block::graph::home(id)), Some(0));
    for home in [2, 3, 0] {
        fixture.device.clear_log();
        rig.drain(fixture.backend);
        on(0, || crate::block::graph::context::move_quiet(id, home)).unwrap();
        rig.undrain(fixture.backend);
        assert_eq!(on(0, || crate::block::graph::home(id)), Some(home));
        read_on_every_core(fixture);
        rig.run(fixture.device);
        all_came_back(fixture, [0, 1, 2, 3]);
    }
    assert_eq!(
        fixture.backend.stats().operations[0],
        12,
        "summed over all cores"
    );
    rig.finish();
}

#[test]
fn mq_4_what_was_stopped_goes_on_in_its_own_queue() {
    // Stopped by a drained section …
    let mut rig = rig(4);
    let fixture = disk(&mut rig, [0, 1, 2, 3]);
    rig.drain(fixture.backend);
    read_on_every_core(fixture);
    rig.settle();
    assert!(fixture.device.log().is_empty() && fixture.backend.parked() == 4);
    rig.undrain(fixture.backend);
    rig.run(fixture.device);
    all_came_back(fixture, [0, 1, 2, 3]);
    // … and by a full queue, of which only its own completions make room.
    fixture.device.clear_log();
    fixture.device.set_depth(1);
    read_on_every_core(fixture);
    read_on_every_core(fixture);
    rig.settle();
    assert_eq!((fixture.device.log().len(), fixture.disk.waiting()), (4, 4));
    on(2, || fixture.device.finish_all());
    rig.settle();
    let last = fixture.device.log().last().map(|seen| seen.core);
    assert_eq!((fixture.device.log().len(), last), (5, Some(2)));
    rig.run(fixture.device);
    let done = done();
    assert!(
        done.len() == 8
            && done
                .iter()
                .all(|d| d.core as u64 == d.tag && d.result == Ok(()))
    );
    rig.finish();
}

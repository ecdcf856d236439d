//! Disks that move to another core, with a device that takes its time.

use super::*;
use crate::block::graph::context::{is_moving, move_quiet};
use crate::block::graph::drain::quiesce_count;

/// A disk with one queue, on core 1, and a backend.
fn slow(rig: &mut Rig) -> Fixture {
    let fixture = rig.disk(DeviceInfo::new(1 << 20));
    fixture.device.set_single_queue(1);
    fixture.device.set_slow_moves();
    fixture
}

fn end(fixture: Fixture, result: Result<(), BlockError>) {
    on(0, || fixture.device.end_move(result));
}

#[test]
fn a_moving_disk_keeps_its_section_open() {
    let mut rig = rig(4);
    let fixture = slow(&mut rig);
    rig.drain(fixture.backend);
    on(0, || move_quiet(fixture.disk.node(), 2)).unwrap();
    submit(3, fixture.backend, read(0, 4096), 3);
    rig.undrain(fixture.backend);
    assert!(on(0, || is_moving(fixture.disk.node())));
    assert_eq!(
        (done().len(), fixture.device.log().len()),
        (0, 0),
        "still parked"
    );
    end(fixture, Ok(()));
    rig.run(fixture.device);
    assert!(!on(0, || is_moving(fixture.disk.node())));
    assert_eq!(
        fixture.device.log()[0].core,
        2,
        "served where the disk is now"
    );
    let done = done();
    assert_eq!((done.len(), done[0].core, done[0].result), (1, 3, Ok(())));
    assert_eq!(fixture.disk.home(), 2);
    rig.finish();
}

#[test]
fn requests_that_reach_a_moving_disk_wait_for_its_end() {
    for result in [Ok(()), Err(BlockError::Busy)] {
        let mut rig = rig(4);
        let fixture = slow(&mut rig);
        on(0, || fixture.disk.set_home(2)).unwrap();
        for core in 0..4 {
            submit(core, fixture.backend, read(0, 4096), 1);
        }
        rig.settle();
        assert_eq!((done().len(), fixture.device.log().len()), (0, 0));
        end(fixture, result);
        rig.run(fixture.device);
        let home = if result.is_ok() { 2 } else { 0 };
        assert_eq!(fixture.disk.home(), home);
        let queue = if result.is_ok() { 2 } else { 1 };
        assert!(fixture.device.log().iter().all(|seen| seen.core == queue));
        let mut cores: Vec<_> = done().iter().map(|d| (d.core, d.result)).collect();
        cores.sort_by_key(|seen| seen.0);
        assert_eq!(cores, [0, 1, 2, 3].map(|core| (core, Ok(()))));
        rig.finish();
    }
}

#[test]
fn a_disk_that_has_requests_or_moves_does_not_move() {
    let mut rig = rig(2);
    let fixture = slow(&mut rig);
    let ask = |core| {
        on(0, || {
            fixture
                .disk
                .check_home(core)
                .and_then(|()| fixture.disk.set_home(core))
        })
    };
    submit(0, fixture.backend, read(0, 4096), 0);
    rig.settle();
    assert_eq!(ask(0), Err(BlockError::Busy));
    rig.run(fixture.device);
    assert_eq!(ask(0), Ok(()));
    assert_eq!(ask(1), Err(BlockError::Busy));
    end(fixture, Ok(()));
    rig.settle();
    assert_eq!((ask(1), fixture.disk.is_moving()), (Ok(()), true));
    end(fixture, Ok(()));
    rig.settle();
    rig.finish();
}

#[test]
fn a_second_move_before_anybody_saw_the_end_of_the_first() {
    let mut rig = rig(4);
    let fixture = slow(&mut rig);
    rig.drain(fixture.backend);
    let node = fixture.disk.node();
    on(0, || move_quiet(node, 2)).unwrap();
    end(fixture, Ok(()));
    // The disk is at rest, but the bottom half that ends its section has not run.
    on(0, || {
        assert!(!fixture.disk.is_moving() && is_moving(node));
        move_quiet(node, 3).unwrap();
    });
    end(fixture, Ok(()));
    rig.settle();
    rig.undrain(fixture.backend);
    rig.settle();
    assert_eq!(
        on(0, || quiesce_count(node)),
        0,
        "a section that nobody ends"
    );
    rig.finish();
}

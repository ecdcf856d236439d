//! Mirrors on legs that lie: devices that lose what they had and answer again, that shrink, whose superblocks were made by somebody else.

use super::mirror::{
    MIB, NEW, OLD, delete, do_one, later, on_disk, read_one, stand, standings, start, stop,
};
use super::*;
use crate::block::graph;
use crate::block::job::{self, Job, Options};
use crate::block::node::mirror::drop_leg;
use crate::block::node::mirror::regions::Regions;
use crate::block::node::mirror::superblock::{Standing, decode, encode};
use crate::block::node::mirror::{Start, Status, View};

const LEG: u64 = 6 * MIB;

/// An array of legs, whose disks the operator can reach.
struct Legs {
    devices: [&'static TestDisk; 2],
    disks: [&'static Disk; 2],
    below: [NodeId; 2],
    node: NodeId,
    backend: &'static Backend,
}

fn legs(rig: &mut Rig) -> Legs {
    let disks: [(&'static TestDisk, &'static Disk); 2] = [0, 1].map(|_| {
        let device = TestDisk::leak(with_everything(LEG));
        device.set_automatic(true);
        let disk: &'static Disk = Box::leak(Box::new(Disk::new()));
        let index = 40 + NEXT_DISK.fetch_add(1, Ordering::Relaxed) % 200;
        disk.open(device, 0, index).unwrap();
        rig.nodes.push(disk.node());
        (device, disk)
    });
    let below = disks.map(|(_, disk)| disk.node());
    let node = start(rig, &below, NEW).unwrap();
    Legs {
        devices: disks.map(|(device, _)| device),
        disks: disks.map(|(_, disk)| disk),
        below,
        node,
        backend: rig.backend(node),
    }
}

/// The device is reset, and what it had in its cache is gone.
fn reset_and_lose(rig: &Rig, device: &TestDisk) {
    device.power_cut();
    on(0, || device.need_reset());
    rig.settle();
}

fn stale(view: &View, slot: usize) -> bool {
    view.legs[slot].is_some_and(|leg| leg.standing == Standing::Stale)
}

#[test]
fn a_leg_that_lost_what_it_had_acknowledged_is_never_read_again() {
    for (lost, cleared) in [(0, false), (1, false), (0, true), (1, true)] {
        let mut rig = rig(1);
        let legs = legs(&mut rig);
        assert_eq!(do_one(&rig, legs.backend, write(0, 4096, 1)), Ok(()));
        assert_eq!(do_one(&rig, legs.backend, flush()), Ok(()));
        assert_eq!(do_one(&rig, legs.backend, write(0, 4096, 2)), Ok(()));
        reset_and_lose(&rig, legs.devices[lost]);
        if cleared {
            // So that nothing fails any more.
            on(0, || legs.disks[lost].reset());
        }
        // Several at once: the answers of more than one may be old.
        for tag in 0..4 {
            submit(0, legs.backend, read(0, 512), tag);
        }
        rig.settle();
        let done = done();
        assert_eq!(done.len(), 4);
        for read in done {
            assert_eq!((read.result, read.data[0]), (Ok(()), 2), "leg {lost}");
        }
        assert!(stale(&stand(legs.node), lost), "{cleared}");
        let (header, _) = on_disk(legs.devices[1 - lost]);
        assert_eq!(header.standing(Standing::Stale), 1 << lost);
        // The last one is read, whatever it has.
        reset_and_lose(&rig, legs.devices[1 - lost]);
        assert_eq!(read_one(&rig, legs.backend, 0), 2, "its record flushed it");
        rig.finish();
    }
}

#[test]
fn a_write_or_flush_after_a_loss_is_answered_when_the_loss_is_recorded() {
    for ask in [write(8192, 4096, 3), flush()] {
        let mut rig = rig(1);
        let legs = legs(&mut rig);
        assert_eq!(do_one(&rig, legs.backend, write(0, 4096, 2)), Ok(()));
        reset_and_lose(&rig, legs.devices[0]);
        on(0, || legs.disks[0].reset());
        assert_eq!(do_one(&rig, legs.backend, ask), Ok(()));
        let (header, _) = on_disk(legs.devices[1]);
        assert_eq!(header.standing(Standing::Stale), 1, "{ask:?}");
        assert_eq!(read_one(&rig, legs.backend, 0), 2);
        rig.finish();
    }
}

#[test]
fn a_loss_without_requests_is_recorded_before_marks_go() {
    let mut rig = rig(1);
    let legs = legs(&mut rig);
    assert_eq!(do_one(&rig, legs.backend, write(0, 4096, 2)), Ok(()));
    reset_and_lose(&rig, legs.devices[0]);
    on(0, || legs.disks[0].reset());
    for _ in 0..4 {
        later(&rig, crate::config::MIRROR_CLEAR_NS);
    }
    assert!(stale(&stand(legs.node), 0));
    let (header, marked) = on_disk(legs.devices[1]);
    assert_eq!(
        (header.standing(Standing::Stale), marked.is_empty()),
        (1, true)
    );
    rig.finish();
}

#[test]
fn a_loss_elsewhere_or_before_the_start_is_none_of_the_arrays() {
    let mut rig = rig(1);
    let before = legs(&mut rig);
    assert_eq!(do_one(&rig, before.backend, write(0, 4096, 2)), Ok(()));
    let array = legs(&mut rig);
    reset_and_lose(&rig, before.devices[0]);
    read_one(&rig, array.backend, 0);
    assert_eq!(standings(array.node), [Standing::Active; 2]);
    assert_eq!(read_one(&rig, before.backend, 0), 2);
    on(0, || before.disks[0].reset());
    rig.opened.clear();
    for array in [&before, &array] {
        delete(&rig, array.backend);
        stop(&rig, array.node);
    }
    let again = start(
        &rig,
        &before.below,
        Start::Create {
            equal: true,
            region: None,
            force: true,
        },
    )
    .unwrap();
    let backend = rig.backend(again);
    read_one(&rig, backend, 0);
    assert_eq!(standings(again), [Standing::Active; 2]);
    rig.finish();
}

#[test]
fn marks_beyond_the_end_are_nothing() {
    let mut rig = rig(1);
    let legs = legs(&mut rig);
    rig.opened.clear();
    delete(&rig, legs.backend);
    stop(&rig, legs.node);
    for device in legs.devices {
        for at in [MIB, LEG] {
            for place in [4096, 8192] {
                let at = (at - MIB) as usize + place;
                let mut block = device.durable()[at..at + 4096].to_vec();
                let (number, header) = decode(&block).unwrap();
                let mut intent = Regions::NONE;
                for region in [1, 4, 5, 63, 64, 8191] {
                    intent.insert(region);
                }
                encode(&header, number, &intent, &mut block);
                device.poke(at, &block);
            }
        }
    }
    let node = start(&rig, &legs.below, OLD).unwrap();
    let backend = rig.backend(node);
    read_one(&rig, backend, 0);
    for _ in 0..4 {
        later(&rig, crate::config::MIRROR_CLEAR_NS);
    }
    let view = stand(node);
    assert_eq!((view.unsynced, view.marked), (0, 0), "{view:?}");
    assert_eq!(standings(node), [Standing::Active; 2]);
    for device in legs.devices {
        let _ = on_disk(device);
    }
    rig.finish();
}

#[test]
fn a_leg_that_shrank_gets_no_superblock_over_data() {
    let mut rig = rig(1);
    let legs = legs(&mut rig);
    let end = LEG - 2 * MIB;
    assert_eq!(do_one(&rig, legs.backend, write(end - MIB, MIB, 7)), Ok(()));
    on(0, || legs.devices[1].resize(LEG - MIB));
    rig.settle();
    // A region without a mark: a superblock is written.
    assert_eq!(do_one(&rig, legs.backend, write(0, 4096, 1)), Ok(()));
    let image = legs.devices[1].visible();
    let data = &image[(LEG - 2 * MIB) as usize..(LEG - MIB) as usize];
    assert!(data.iter().all(|byte| *byte == 7));
    assert!(stale(&stand(legs.node), 1));
    for at in (end - MIB..end).step_by(4096) {
        assert_eq!(read_one(&rig, legs.backend, at), 7);
    }
    rig.finish();
}

#[test]
fn a_failed_array_reads_no_leg_that_failed_before_and_acknowledges_nothing() {
    let mut rig = rig(1);
    let legs = legs(&mut rig);
    assert_eq!(do_one(&rig, legs.backend, write(0, 16384, 1)), Ok(()));
    legs.devices[0].fail_next(Operation::Write, 2);
    legs.devices[1].set_automatic(false);
    submit(0, legs.backend, write(0, 4096, 2), 1);
    submit(0, legs.backend, write(8192, 4096, 2), 2);
    rig.settle();
    assert_eq!(legs.devices[1].held(), 2);
    on(0, || legs.devices[1].finish(0));
    rig.settle();
    // The other one is under way when the record fails, in both places.
    for _ in 0..2 {
        assert_eq!(legs.devices[1].held(), 2);
        on(0, || legs.devices[1].fail(1));
        rig.settle();
    }
    assert_eq!(stand(legs.node).status, Status::Failed);
    on(0, || legs.devices[1].finish_all());
    rig.settle();
    assert_eq!(
        results(),
        [(1, Err(BlockError::Io)), (2, Err(BlockError::Io))]
    );
    legs.devices[1].set_automatic(true);
    legs.devices[0].clear_log();
    for _ in 0..4 {
        assert_eq!(read_one(&rig, legs.backend, 0), 2);
    }
    assert_eq!(legs.devices[0].log(), [], "it lacks a write");
    assert_eq!(do_one(&rig, legs.backend, flush()), Err(BlockError::Io));
    graph::name(legs.node).unwrap();
    rig.finish();
}

/// The first leg is stale, and a job begins to fill it.
fn rebuild(rig: &Rig, legs: &Legs) -> Job {
    legs.devices[0].fail_next(Operation::Write, 1);
    assert_eq!(do_one(rig, legs.backend, write(0, 8192, 1)), Ok(()));
    assert!(stale(&stand(legs.node), 0));
    on(0, || begin(legs)).unwrap()
}

fn begin(legs: &Legs) -> Result<Job, graph::Refusal> {
    let id = unique("r");
    let options = Options {
        id: Some(&id),
        auto_dismiss: false,
        ..Options::DEFAULT
    };
    job::rebuild::create(legs.node, legs.below[0], &options)
}

#[test]
fn a_write_that_fails_on_the_last_leg_ends_the_rebuild() {
    let mut rig = rig(1);
    let legs = legs(&mut rig);
    legs.devices[0].fail_next(Operation::Write, 1);
    assert_eq!(do_one(&rig, legs.backend, write(0, 8192, 1)), Ok(()));
    legs.devices[0].set_automatic(false);
    let job = on(0, || begin(&legs)).unwrap();
    // Its superblocks, four with their flushes; then there are data.
    for _ in 0..10 {
        rig.settle();
        on(0, || legs.devices[0].finish_all());
    }
    rig.settle();
    assert!(legs.devices[0].held() > 0 && job.state() == job::State::Running);
    legs.devices[1].fail_next(Operation::Write, 1);
    submit(0, legs.backend, write(0, 4096, 2), 1);
    for _ in 0..200 {
        rig.settle();
        on(0, || legs.devices[0].finish_all());
    }
    assert_eq!(results(), [(1, Err(BlockError::Io))]);
    assert_eq!(
        (job.state(), job.result()),
        (job::State::Concluded, Err(BlockError::Io))
    );
    assert!(
        stale(&stand(legs.node), 0),
        "it may have what the other lacks"
    );
    legs.devices[0].set_automatic(true);
    on(0, || job.dismiss()).unwrap();
    rig.finish();
}

#[test]
fn one_array_has_one_rebuild() {
    let mut rig = rig(1);
    let legs = legs(&mut rig);
    let first = rebuild(&rig, &legs);
    assert!(on(0, || begin(&legs)).is_err());
    rig.settle();
    assert_eq!(first.result(), Ok(()));
    on(0, || first.dismiss()).unwrap();
    rig.finish();
}

#[test]
fn who_asks_while_another_change_of_the_legs_is_made_waits() {
    let mut rig = rig(1);
    let legs = legs(&mut rig);
    let job = rebuild(&rig, &legs);
    on(0, || drop_leg(legs.node, legs.below[0])).unwrap();
    rig.settle();
    assert_eq!(job.state(), job::State::Concluded);
    assert!(stand(legs.node).legs[0].is_none(), "it is gone");
    // And nobody is left behind.
    on(0, || {
        crate::block::node::mirror::add_leg(legs.node, legs.below[0]).unwrap();
    });
    rig.settle();
    let again = on(0, || begin(&legs)).unwrap();
    rig.settle();
    assert_eq!(
        (again.state(), again.result()),
        (job::State::Concluded, Ok(()))
    );
    for job in [job, again] {
        on(0, || job.dismiss()).unwrap();
    }
    rig.finish();
}

//! Mirrors and power cuts: marks that come and go, what is read after a cut, halves that went on separately.

use super::mirror::*;
use super::*;
use crate::block::graph;
use crate::block::node::mirror::superblock::Standing;
use crate::block::node::mirror::{Status, Why, create};
use crate::config::MIRROR_CLEAR_NS;

/// The power goes and comes back; nothing was in flight.
fn cut(rig: &mut Rig, array: &Array, backend: &'static Backend) {
    rig.opened.clear();
    delete(rig, backend);
    stop(rig, array.node);
    for disk in array.disks {
        disk.power_cut();
    }
}

#[test]
fn bits_are_cleared_only_after_every_leg_was_flushed() {
    let mut rig = rig(1);
    let (array, backend) = ready(&mut rig);
    assert_eq!(do_one(&rig, backend, write(0, 4096, 1)), Ok(()));
    assert_eq!(stand(array.node).marked, 1);
    by_hand(&array);
    // Written to in this interval: not yet. In the next: flushes, and one of them is slow.
    later(&rig, MIRROR_CLEAR_NS + 1);
    assert_eq!(array.disks.map(logged), ["", ""]);
    later(&rig, MIRROR_CLEAR_NS + 1);
    assert_eq!(array.disks.map(logged), ["f", "f"]);
    on(0, || array.disks[0].finish_all());
    rig.settle();
    assert_eq!(array.disks.map(logged), ["f", "f"]);
    // A write meanwhile keeps its region marked.
    submit(0, backend, write(4096, 4096, 2), 1);
    rig.settle();
    by_themselves(&rig, &array);
    assert_eq!(results(), [(1, Ok(()))]);
    assert_eq!(stand(array.node).marked, 1);
    assert_eq!(array.disks.map(on_disk).map(|(_, bits)| bits), [[0], [0]]);
    later(&rig, MIRROR_CLEAR_NS + 1);
    later(&rig, MIRROR_CLEAR_NS + 1);
    assert_eq!(stand(array.node).marked, 0);
    let none: [Vec<u64>; 2] = [Vec::new(), Vec::new()];
    assert_eq!(array.disks.map(on_disk).map(|(_, bits)| bits), none);
    assert!(
        array
            .disks
            .iter()
            .all(|disk| disk.durable()[MIB as usize] == 1)
    );
    rig.finish();
}

#[test]
fn a_write_under_way_while_bits_are_cleared_keeps_its_bit() {
    let mut rig = rig(1);
    let (array, backend) = ready(&mut rig);
    assert_eq!(do_one(&rig, backend, write(0, 4096, 1)), Ok(()));
    by_hand(&array);
    submit(0, backend, write(0, 4096, 2), 1);
    rig.settle();
    for _ in 0..4 {
        later(&rig, MIRROR_CLEAR_NS + 1);
    }
    assert_eq!(array.disks.map(logged), ["d", ""]);
    assert_eq!(stand(array.node).marked, 1);
    by_themselves(&rig, &array);
    assert_eq!(results(), [(1, Ok(()))]);
    rig.finish();
}

#[test]
fn after_a_cut_reads_of_marked_regions_come_from_one_leg_until_all_are_equal() {
    for swapped in [false, true] {
        let mut rig = rig(1);
        let (array, backend) = ready(&mut rig);
        assert_eq!(do_one(&rig, backend, write(0, 8192, 1)), Ok(()));
        assert_eq!(do_one(&rig, backend, flush()), Ok(()));
        // Acknowledged, not flushed: only the first leg keeps it.
        assert_eq!(do_one(&rig, backend, write(0, 8192, 2)), Ok(()));
        submit(0, array_backend(&mut rig, array.below[0]), flush(), 9);
        rig.settle();
        done();
        close_extra(&mut rig);
        cut(&mut rig, &array, backend);
        assert_eq!(
            array.disks.map(|disk| disk.visible()[MIB as usize]),
            [2, 1],
            "they differ"
        );
        let legs = if swapped {
            [array.below[1], array.below[0]]
        } else {
            array.below
        };
        let node = start(&rig, &legs, OLD).unwrap();
        let backend = rig.backend(node);
        for _ in 0..4 {
            assert_eq!(read_one(&rig, backend, 0), 2, "always the same leg");
        }
        rig.settle();
        assert_eq!(stand(node).unsynced, 0);
        assert_eq!(array.disks.map(|disk| disk.visible()[MIB as usize]), [2, 2]);
        assert_eq!(
            array.disks.map(|disk| disk.visible()[MIB as usize + 4096]),
            [2, 2]
        );
        rig.finish();
    }
}

/// A backend on a leg, beside the array, that only flushes.
fn array_backend(rig: &mut Rig, leg: NodeId) -> &'static Backend {
    let backend = on(0, || {
        Backend::open(&unique("x"), "test", Some(leg), graph::Permissions::NONE).unwrap()
    });
    rig.opened.push(backend);
    rig.settle();
    backend
}

fn close_extra(rig: &mut Rig) {
    let backend = rig.opened.pop().expect("one");
    delete(rig, backend);
}

#[test]
fn what_a_read_saw_after_a_cut_survives_the_leg_that_had_it() {
    let mut rig = rig(1);
    let (array, backend) = ready(&mut rig);
    assert_eq!(do_one(&rig, backend, write(0, 4096, 1)), Ok(()));
    assert_eq!(do_one(&rig, backend, flush()), Ok(()));
    assert_eq!(do_one(&rig, backend, write(0, 4096, 2)), Ok(()));
    submit(0, array_backend(&mut rig, array.below[0]), flush(), 9);
    rig.settle();
    done();
    close_extra(&mut rig);
    cut(&mut rig, &array, backend);
    let node = start(&rig, &array.below, OLD).unwrap();
    let backend = rig.backend(node);
    assert_eq!(read_one(&rig, backend, 0), 2);
    assert_eq!(do_one(&rig, backend, flush()), Ok(()));
    array.disks[0].fail_next(Operation::Write, 1);
    assert_eq!(do_one(&rig, backend, write(MIB, 4096, 3)), Ok(()));
    assert_eq!(standings(node), [Standing::Stale, Standing::Active]);
    assert_eq!(read_one(&rig, backend, 0), 2);
    assert_eq!(array.disks[1].durable()[MIB as usize], 2);
    rig.finish();
}

#[test]
fn halves_that_went_on_separately_are_refused() {
    let mut rig = rig(1);
    let (array, backend) = ready(&mut rig);
    assert_eq!(do_one(&rig, backend, write(0, 4096, 1)), Ok(()));
    assert_eq!(do_one(&rig, backend, flush()), Ok(()));
    cut(&mut rig, &array, backend);
    for leg in 0..2 {
        let alone = [array.below[leg]];
        assert!(matches!(start(&rig, &alone, OLD), Err(Why::Assembly(_))));
        let node = start(&rig, &alone, FORCED).unwrap();
        let backend = rig.backend(node);
        assert_eq!(do_one(&rig, backend, write(0, 4096, 2 + leg as u8)), Ok(()));
        rig.opened.clear();
        delete(&rig, backend);
        stop(&rig, node);
    }
    let refused = start(&rig, &array.below, OLD).unwrap_err();
    assert!(matches!(
        refused,
        Why::Assembly(crate::block::node::mirror::assembly::Trouble::SplitBrain(_))
    ));
    let node = start(&rig, &[array.below[1], array.below[0]], FORCED).unwrap();
    let backend = rig.backend(node);
    for _ in 0..4 {
        assert_eq!(read_one(&rig, backend, 0), 3, "the first that was named");
    }
    rig.opened.clear();
    delete(&rig, backend);
    stop(&rig, node);
    let given_up = start(&rig, &[array.below[0]], OLD);
    assert!(
        matches!(given_up, Err(Why::Assembly(_))),
        "the half that was given up goes on alone"
    );
    let node = start(&rig, &[array.below[1]], OLD).unwrap();
    let backend = rig.backend(node);
    assert_eq!(read_one(&rig, backend, 0), 3);
    rig.finish();
}

#[test]
fn what_is_read_before_the_resync_is_on_all_legs_before_it_is_answered() {
    let mut rig = rig(1);
    let (array, backend) = ready(&mut rig);
    let end = MIB - 4096;
    assert_eq!(do_one(&rig, backend, write(end, 4096, 1)), Ok(()));
    assert_eq!(do_one(&rig, backend, flush()), Ok(()));
    assert_eq!(do_one(&rig, backend, write(end, 4096, 2)), Ok(()));
    submit(0, array_backend(&mut rig, array.below[0]), flush(), 9);
    rig.settle();
    done();
    close_extra(&mut rig);
    cut(&mut rig, &array, backend);
    let node = on(0, || create(&unique("m"), &array.below, OLD)).unwrap();
    for _ in 0..1000 {
        on(0, || aio::context(0).poll(false));
        if stand(node).status == Status::Running {
            break;
        }
    }
    // The resync has come to its first write, and no further.
    array.disks[1].set_automatic(false);
    rig.settle();
    let backend = rig.backend(node);
    assert_eq!(stand(node).unsynced, MIB);
    submit(0, backend, read(end, 4096), 1);
    rig.settle();
    assert_eq!(results(), []);
    let held = array.disks[1].held();
    for _ in 0..held {
        on(0, || array.disks[1].finish(0));
    }
    rig.settle();
    let done = done();
    assert_eq!((done.len(), done[0].data[0]), (1, 2));
    assert_eq!(array.disks[1].visible()[(MIB + end) as usize], 2);
    by_themselves(&rig, &array);
    assert_eq!(stand(node).unsynced, 0);
    rig.finish();
}

//! The mirror node: what stands on the legs at each moment, which leg is read, who waits for what.

use super::*;
use crate::block::graph;
use crate::block::node::mirror::superblock::{MARGIN, Standing, decode};
use crate::block::node::mirror::{Start, Status, View, Why, create, last_refusal, view};
use crate::config::MIRROR_CLEAR_NS;

pub(super) const MIB: u64 = 1 << 20;
/// 4 MiB of data.
const LEG: u64 = 6 * MIB;
pub(super) const NEW: Start = Start::Create {
    equal: true,
    region: None,
    force: false,
};
pub(super) const OLD: Start = Start::Assemble { force: false };
pub(super) const FORCED: Start = Start::Assemble { force: true };

/// An array on scripted disks.
#[derive(Clone, Copy)]
pub(super) struct Array {
    pub disks: [&'static TestDisk; 2],
    pub below: [NodeId; 2],
    pub node: NodeId,
}

pub(super) fn leg(rig: &mut Rig) -> (&'static TestDisk, NodeId) {
    let device = TestDisk::leak(with_everything(LEG));
    device.set_automatic(true);
    let disk: &'static Disk = Box::leak(Box::new(Disk::new()));
    let index = 40 + NEXT_DISK.fetch_add(1, Ordering::Relaxed) % 200;
    disk.open(device, 0, index).unwrap();
    rig.nodes.push(disk.node());
    (device, disk.node())
}

pub(super) fn start(rig: &Rig, legs: &[NodeId], start: Start) -> Result<NodeId, Why> {
    last_refusal();
    let node = on(0, || create(&unique("m"), legs, start)).unwrap();
    rig.settle();
    match last_refusal() {
        Some(why) => {
            assert_eq!(view(node), None, "what is no array is deleted");
            Err(why)
        }
        None => Ok(node),
    }
}

pub(super) fn stop(rig: &Rig, node: NodeId) {
    on(0, || graph::delete(node)).unwrap();
    rig.settle();
}

/// A new array of equal legs, with devices that answer by themselves.
pub(super) fn array(rig: &mut Rig) -> Array {
    let [a, b] = [0, 1].map(|_| leg(rig));
    let below = [a.1, b.1];
    let node = start(rig, &below, NEW).unwrap();
    Array {
        disks: [a.0, b.0],
        below,
        node,
    }
}

pub(super) fn ready(rig: &mut Rig) -> (Array, &'static Backend) {
    let array = array(rig);
    let backend = rig.backend(array.node);
    (array, backend)
}

pub(super) fn stand(node: NodeId) -> View {
    view(node).expect("a mirror")
}

pub(super) fn standings(node: NodeId) -> [Standing; 2] {
    let legs = stand(node).legs;
    [0, 1].map(|slot| legs[slot].map_or(Standing::Absent, |leg| leg.standing))
}

/// The newest superblock that would survive a power cut, with whether it marks `region`.
pub(super) fn on_disk(
    disk: &TestDisk,
) -> (crate::block::node::mirror::superblock::Header, Vec<u64>) {
    let image = disk.durable();
    let last = image.len() - MIB as usize;
    let mut newest = None;
    for at in [4096, 8192, last + 4096, last + 8192] {
        let block = &image[at..at + 4096];
        if let Some((_, header)) = decode(block) {
            let mut bits = crate::block::node::mirror::regions::Regions::NONE;
            crate::block::node::mirror::superblock::add_intent(block, &mut bits);
            let age =
                |h: &crate::block::node::mirror::superblock::Header| (h.now.event, h.sequence);
            if newest
                .as_ref()
                .is_none_or(|(known, _)| age(&header) > age(known))
            {
                newest = Some((header, bits.iter().collect()));
            }
        }
    }
    newest.expect("a superblock")
}

/// Data writes that reached the device.
pub(super) fn data_writes(disk: &TestDisk) -> usize {
    let is_data = |entry: &&crate::block::testing::Submitted| {
        entry.operation == Operation::Write && (MARGIN..LEG - MARGIN).contains(&entry.offset)
    };
    disk.log().iter().filter(is_data).count()
}

pub(super) fn do_one(rig: &Rig, backend: &'static Backend, ask: Ask) -> Result<(), BlockError> {
    submit(0, backend, ask, 77);
    rig.settle();
    let done = done();
    assert_eq!((done.len(), done[0].tag), (1, 77), "{ask:?}");
    done[0].result
}

pub(super) fn read_one(rig: &Rig, backend: &'static Backend, offset: u64) -> u8 {
    submit(0, backend, read(offset, 4096), 78);
    rig.settle();
    let done = done();
    assert_eq!((done.len(), done[0].result), (1, Ok(())));
    assert!(done[0].data.iter().all(|byte| *byte == done[0].data[0]));
    done[0].data[0]
}

/// Time goes by.
pub(super) fn later(rig: &Rig, ns: u64) {
    host::clock::advance(ns);
    rig.settle();
}

#[test]
fn a_new_array_serves_what_is_between_the_superblocks() {
    let mut rig = rig(2);
    let (array, backend) = ready(&mut rig);
    let info = backend.limits().unwrap();
    assert_eq!((info.size, info.kind), (LEG - 2 * MIB, "mirror"));
    assert_eq!(stand(array.node).status, Status::Running);
    assert_eq!(standings(array.node), [Standing::Active; 2]);
    for core in 0..2 {
        submit(
            core,
            backend,
            write(core as u64 * 8192, 4096, 5 + core as u8),
            1,
        );
        rig.settle();
        submit(core, backend, read(core as u64 * 8192, 4096), 2);
        rig.settle();
        let done = done();
        assert_eq!(
            done.iter()
                .map(|d| (d.tag, d.result, d.core))
                .collect::<Vec<_>>(),
            [(1, Ok(()), core), (2, Ok(()), core)]
        );
        assert!(done[1].data.iter().all(|byte| *byte == 5 + core as u8));
    }
    for device in array.disks {
        let image = device.visible();
        assert_eq!((image[MIB as usize], image[MIB as usize + 8192]), (5, 6));
    }
    assert_eq!(
        do_one(&rig, backend, ask(Operation::WriteZeroes, 0, 4096)),
        Ok(())
    );
    assert_eq!(read_one(&rig, backend, 0), 0);
    assert_eq!(do_one(&rig, backend, flush()), Ok(()));
    rig.finish();
}

#[test]
fn reads_are_spread_over_the_legs() {
    let mut rig = rig(1);
    let (array, backend) = ready(&mut rig);
    array.disks.iter().for_each(|disk| disk.clear_log());
    for n in 0..20 {
        read_one(&rig, backend, n * 4096);
    }
    assert_eq!(array.disks.map(|disk| disk.log().len()), [10, 10]);
    rig.finish();
}

#[test]
fn what_was_written_is_there_after_a_stop_and_an_assembly() {
    let mut rig = rig(1);
    let (array, backend) = ready(&mut rig);
    assert_eq!(do_one(&rig, backend, write(4096, 4096, 9)), Ok(()));
    rig.opened.clear();
    delete(&rig, backend);
    stop(&rig, array.node);
    // In the other order: legs are known by their numbers.
    let node = start(&rig, &[array.below[1], array.below[0]], OLD).unwrap();
    assert_eq!(stand(node).legs[0].unwrap().number, Some(1));
    let backend = rig.backend(node);
    assert_eq!(read_one(&rig, backend, 4096), 9);
    rig.finish();
}

pub(super) fn delete(rig: &Rig, backend: &'static Backend) {
    rig.drain(backend);
    on(0, || backend.delete()).unwrap();
}

/// The legs' requests are answered by hand.
pub(super) fn by_hand(array: &Array) {
    for disk in array.disks {
        disk.set_automatic(false);
        disk.clear_log();
    }
}

pub(super) fn by_themselves(rig: &Rig, array: &Array) {
    for disk in array.disks {
        disk.set_automatic(true);
    }
    for disk in array.disks {
        on(0, || disk.finish_all());
    }
    rig.settle();
}

/// What the legs hold, oldest first, as short words: superblock, data, flush.
pub(super) fn logged(disk: &TestDisk) -> std::string::String {
    let word = |entry: &crate::block::testing::Submitted| match entry.operation {
        Operation::Flush => 'f',
        Operation::Read => 'r',
        _ if (MARGIN..LEG - MARGIN).contains(&entry.offset) => 'd',
        _ => 's',
    };
    disk.log().iter().map(word).collect()
}

#[test]
fn the_intent_bit_is_stable_on_all_legs_before_the_first_write() {
    let mut rig = rig(1);
    let (array, backend) = ready(&mut rig);
    by_hand(&array);
    submit(0, backend, write(MIB, 4096, 1), 1);
    submit(0, backend, write(MIB + 8192, 4096, 2), 2);
    // Each place: superblock, flush. One leg is slow; nothing is written anywhere before it is done.
    for step in ["sf", "sfsf"] {
        for _ in 0..2 {
            rig.settle();
            assert!(
                logged(array.disks[0]).len() <= step.len(),
                "the other leg is not so far"
            );
            on(0, || array.disks[0].finish_all());
        }
        rig.settle();
        assert_eq!(logged(array.disks[0]), step);
        for _ in 0..2 {
            assert_eq!(array.disks.map(data_writes), [0, 0]);
            on(0, || array.disks[1].finish_all());
            rig.settle();
        }
    }
    rig.settle();
    assert_eq!(
        array.disks.map(data_writes),
        [2, 0],
        "both share one superblock"
    );
    assert_eq!(array.disks.map(on_disk).map(|(_, bits)| bits), [[1], [1]]);
    by_themselves(&rig, &array);
    assert_eq!(results(), [(1, Ok(())), (2, Ok(()))]);
    // The next one there needs none.
    array.disks[0].clear_log();
    assert_eq!(do_one(&rig, backend, write(MIB, 4096, 3)), Ok(()));
    assert_eq!(logged(array.disks[0]), "d");
    rig.finish();
}

#[test]
fn a_write_is_answered_when_every_leg_has_it() {
    let mut rig = rig(1);
    let (array, backend) = ready(&mut rig);
    assert_eq!(do_one(&rig, backend, write(0, 4096, 1)), Ok(()));
    by_hand(&array);
    submit(0, backend, write(0, 4096, 2), 1);
    rig.settle();
    assert_eq!(
        array.disks.map(TestDisk::held),
        [1, 0],
        "one owner of the data"
    );
    on(0, || array.disks[0].finish_all());
    rig.settle();
    assert_eq!(results(), []);
    assert_eq!(array.disks.map(TestDisk::held), [0, 1]);
    // Overlapping: waits. A read there goes to the leg that is written last.
    submit(0, backend, write(2048, 4096, 3), 2);
    submit(0, backend, read(0, 512), 3);
    rig.settle();
    assert_eq!(array.disks.map(TestDisk::held), [0, 2]);
    by_themselves(&rig, &array);
    assert_eq!(results(), [(1, Ok(())), (2, Ok(())), (3, Ok(()))]);
    rig.finish();
}

#[test]
fn legs_in_use_or_too_small_make_no_array() {
    let mut rig = rig(1);
    let array = array(&mut rig);
    stop(&rig, array.node);
    assert_eq!(start(&rig, &array.below, NEW), Err(Why::InUse(0)));
    let region = Some(MIB + 1);
    let odd = Start::Create {
        equal: true,
        region,
        force: true,
    };
    assert_eq!(start(&rig, &array.below, odd), Err(Why::Region));
    let anew = Start::Create {
        equal: false,
        region: None,
        force: true,
    };
    let node = start(&rig, &array.below, anew).unwrap();
    // Everything was copied.
    assert_eq!(stand(node).unsynced, 0);
    rig.keep(node);
    rig.finish();
}

#[test]
fn a_drain_waits_for_what_the_node_writes_by_itself() {
    let mut rig = rig(2);
    let (array, backend) = ready(&mut rig);
    by_hand(&array);
    submit(1, backend, write(0, 4096, 1), 1);
    rig.settle();
    let section = super::graph_rig::Section::Node(array.below[1]);
    super::graph_rig::quiets();
    section.begin();
    rig.settle();
    assert_eq!(super::graph_rig::quiets(), 0);
    for _ in 0..20 {
        for disk in array.disks {
            for core in 0..2 {
                on(core, || disk.finish_all());
            }
        }
        rig.settle();
    }
    assert_eq!(results(), [(1, Ok(()))]);
    assert_eq!(super::graph_rig::quiets(), 1);
    // Nothing happens inside the section, however long it takes.
    array.disks.iter().for_each(|disk| disk.clear_log());
    for _ in 0..4 {
        later(&rig, MIRROR_CLEAR_NS + 1);
    }
    assert_eq!(array.disks.map(logged), ["", ""]);
    section.end();
    rig.settle();
    by_themselves(&rig, &array);
    later(&rig, MIRROR_CLEAR_NS + 1);
    later(&rig, MIRROR_CLEAR_NS + 1);
    assert_eq!(stand(array.node).marked, 0);
    rig.finish();
}

#[test]
fn it_moves_with_its_context() {
    let mut rig = rig(3);
    let (array, backend) = ready(&mut rig);
    for core in [1, 2, 0] {
        super::graph_rig::move_to(&rig, array.node, core).unwrap();
        for from in 0..3 {
            submit(
                from,
                backend,
                write(core as u64 * MIB, 4096, core as u8 + 1),
                1,
            );
            rig.settle();
            submit(from, backend, read(core as u64 * MIB, 4096), 2);
            rig.settle();
            let done = done();
            assert_eq!(
                (done.len(), done[1].result, done[1].core),
                (2, Ok(()), from)
            );
            assert_eq!(done[1].data[0], core as u8 + 1);
        }
        later(&rig, MIRROR_CLEAR_NS + 1);
        later(&rig, MIRROR_CLEAR_NS + 1);
        assert_eq!(stand(array.node).marked, 0);
    }
    rig.finish();
}

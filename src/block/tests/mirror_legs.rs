//! Legs of a mirror that come, go and are filled; its orderly end.

use super::mirror::*;
use super::*;
use crate::block::graph;
use crate::block::job::{self, Job, Options, State};
use crate::block::node::mirror::superblock::Standing;
use crate::block::node::mirror::{
    Status, add_leg, all_closed, close_all, drop_leg, stop as stop_begin,
};

/// The first leg fails a write: stale.
fn degrade(rig: &Rig, array: &Array, backend: &'static Backend, fill: u8) {
    array.disks[0].fail_next(Operation::Write, 1);
    assert_eq!(do_one(rig, backend, write(0, 8192, fill)), Ok(()));
    assert_eq!(standings(array.node), [Standing::Stale, Standing::Active]);
}

fn rebuild(node: NodeId, leg: NodeId) -> Job {
    on(0, || {
        let id = unique("r");
        let options = Options {
            id: Some(&id),
            auto_dismiss: false,
            ..Options::DEFAULT
        };
        job::rebuild::create(node, leg, &options).unwrap()
    })
}

fn end_of(job: Job) -> Result<(), BlockError> {
    assert_eq!(job.state(), State::Concluded);
    let result = job.result();
    on(0, || job.dismiss()).unwrap();
    result
}

fn data_of(disk: &TestDisk) -> Vec<u8> {
    let image = disk.visible();
    image[MIB as usize..image.len() - MIB as usize].to_vec()
}

#[test]
fn a_rebuilt_leg_has_all_data_and_is_read_again() {
    for core in [0, 1] {
        let mut rig = rig(2);
        let (array, backend) = ready(&mut rig);
        degrade(&rig, &array, backend, 7);
        for n in 0..64 {
            assert_eq!(
                do_one(&rig, backend, write(n * 65536, 4096, n as u8 + 1)),
                Ok(())
            );
        }
        super::graph_rig::move_to(&rig, array.node, core).unwrap();
        let job = rebuild(array.node, array.below[0]);
        rig.settle();
        assert_eq!(end_of(job), Ok(()));
        rig.settle();
        assert_eq!(standings(array.node), [Standing::Active; 2]);
        assert!(data_of(array.disks[0]) == data_of(array.disks[1]));
        assert_eq!(on_disk(array.disks[0]).0, on_disk(array.disks[1]).0);
        // It was flushed before it counted.
        assert_eq!(array.disks[0].durable()[MIB as usize + 65536], 2);
        array.disks[0].clear_log();
        for n in 0..8 {
            read_one(&rig, backend, n * 4096);
        }
        assert!(!array.disks[0].log().is_empty());
        rig.opened.clear();
        delete(&rig, backend);
        stop(&rig, array.node);
        let node = start(&rig, &array.below, OLD).unwrap();
        assert_eq!(standings(node), [Standing::Active; 2]);
        rig.keep(node);
        rig.finish();
    }
}

#[test]
fn writes_while_a_leg_is_filled_reach_it_and_it_is_never_read() {
    let mut rig = rig(1);
    let (array, backend) = ready(&mut rig);
    degrade(&rig, &array, backend, 7);
    array.disks[0].set_automatic(false);
    array.disks[0].clear_log();
    let job = rebuild(array.node, array.below[0]);
    let mut tag = 0;
    // Every step of the rebuild, with a write and a read between: before, at and behind where it is.
    for round in 0.. {
        rig.settle();
        if array.disks[0].held() == 0 && job.state() == State::Concluded {
            break;
        }
        assert!(round < 2000, "it does not end");
        on(0, || {
            while array.disks[0].held() > 0 {
                array.disks[0].finish(0)
            }
        });
        if job.state() == State::Running {
            submit(
                0,
                backend,
                write(tag % 16 * 262_144, 4096, tag as u8 + 100),
                tag,
            );
            submit(0, backend, read(tag % 16 * 262_144, 4096), 1000 + tag);
            tag += 1;
        }
    }
    array.disks[0].set_automatic(true);
    rig.settle();
    assert!(done().iter().all(|done| done.result == Ok(())));
    assert!(tag > 8, "{tag} while it was filled");
    assert!(!operations(array.disks[0]).contains(&Operation::Read));
    assert_eq!(end_of(job), Ok(()));
    assert!(data_of(array.disks[0]) == data_of(array.disks[1]));
    assert_eq!(standings(array.node), [Standing::Active; 2]);
    rig.finish();
}

#[test]
fn a_rebuild_that_fails_or_is_cancelled_leaves_the_leg_stale() {
    for how in 0..3 {
        let mut rig = rig(1);
        let (array, backend) = ready(&mut rig);
        degrade(&rig, &array, backend, 7);
        array.disks[0].set_automatic(false);
        let job = rebuild(array.node, array.below[0]);
        // Its superblocks, four with their flushes, and the first data.
        for _ in 0..10 {
            rig.settle();
            on(0, || {
                while array.disks[0].held() > 0 {
                    array.disks[0].finish(0)
                }
            });
        }
        rig.settle();
        let expected = match how {
            0 => {
                on(0, || job.cancel(true)).unwrap();
                BlockError::Cancelled
            }
            1 => {
                on(0, || array.disks[0].fail(0));
                BlockError::Io
            }
            // The leg that has the data cannot read them.
            _ => {
                array.disks[1].fail_next(Operation::Read, 1);
                BlockError::Io
            }
        };
        array.disks[0].set_automatic(true);
        on(0, || array.disks[0].finish_all());
        rig.settle();
        assert_eq!(end_of(job), Err(expected), "{how}");
        assert_eq!(standings(array.node), [Standing::Stale, Standing::Active]);
        assert_eq!(
            on_disk(array.disks[0]).0.standing(Standing::Stale),
            1,
            "it knows"
        );
        // And can be begun anew.
        let job = rebuild(array.node, array.below[0]);
        rig.settle();
        assert_eq!(end_of(job), Ok(()));
        assert!(data_of(array.disks[0]) == data_of(array.disks[1]));
        rig.finish();
    }
}

#[test]
fn the_other_legs_hear_of_a_new_active_one_first() {
    let mut rig = rig(1);
    let (array, backend) = ready(&mut rig);
    degrade(&rig, &array, backend, 7);
    for disk in array.disks {
        disk.set_automatic(false);
    }
    let job = rebuild(array.node, array.below[0]);
    let mut told = 0;
    for round in 0.. {
        rig.settle();
        let (own, other) = (on_disk(array.disks[0]).0, on_disk(array.disks[1]).0);
        let filled = |header: &crate::block::node::mirror::superblock::Header| {
            header.now.event > 2 && header.standing(Standing::Active) == 3
        };
        // Whenever the filled leg says of itself that it is active, the other has said so before …
        assert!(!filled(&own) || filled(&other));
        if filled(&other) {
            // … and when that says so, the filled one has lost nothing if the power goes.
            told += 1;
            let image = array.disks[0].durable();
            let end = image.len() - MIB as usize;
            assert!(image[MIB as usize..end] == data_of(array.disks[1])[..]);
        }
        // The filled leg is always as far as it can be.
        let next = array.disks.iter().find(|disk| disk.held() > 0);
        let Some(next) = next else { break };
        assert!(round < 2000);
        on(0, || next.finish(0));
    }
    assert!(told > 2, "{told}");
    for disk in array.disks {
        disk.set_automatic(true);
    }
    rig.settle();
    assert_eq!(end_of(job), Ok(()));
    rig.finish();
}

#[test]
fn a_leg_is_added_filled_and_another_dropped_under_load() {
    let mut rig = rig(1);
    let (array, backend) = ready(&mut rig);
    for n in 0..16 {
        assert_eq!(
            do_one(&rig, backend, write(n * 262_144, 4096, n as u8 + 1)),
            Ok(())
        );
    }
    let (third, id) = leg(&mut rig);
    on(0, || add_leg(array.node, id)).unwrap();
    rig.settle();
    let view = stand(array.node);
    assert_eq!(view.legs[2].unwrap().standing, Standing::Absent);
    assert_eq!(data_writes(third), 0);
    let job = rebuild(array.node, id);
    rig.settle();
    assert_eq!(end_of(job), Ok(()));
    assert_eq!(stand(array.node).legs[2].unwrap().number, Some(2));
    assert_eq!(stand(array.node).members, 3);
    assert!(data_of(third) == data_of(array.disks[1]));
    for leg in array.below {
        on(0, || drop_leg(array.node, leg)).unwrap();
        rig.settle();
    }
    assert_eq!(stand(array.node).legs.iter().flatten().count(), 1);
    // The last one stays.
    assert!(on(0, || drop_leg(array.node, id)).is_err());
    for n in 0..16 {
        assert_eq!(read_one(&rig, backend, n * 262_144), n as u8 + 1);
    }
    rig.opened.clear();
    delete(&rig, backend);
    stop(&rig, array.node);
    // Those that left are stale, and alone they are nothing.
    for leg in array.below {
        assert!(start(&rig, &[leg], OLD).is_err());
    }
    let node = start(&rig, &[array.below[0], id], OLD).unwrap();
    assert_eq!(stand(node).legs[0].unwrap().standing, Standing::Stale);
    assert_eq!(stand(node).legs[1].unwrap().standing, Standing::Active);
    rig.keep(node);
    rig.finish();
}

#[test]
fn an_orderly_end_leaves_no_marks() {
    for by_hand in [false, true] {
        let mut rig = rig(1);
        let (array, backend) = ready(&mut rig);
        assert_eq!(do_one(&rig, backend, write(0, 4096, 1)), Ok(()));
        assert_eq!(stand(array.node).marked, 1);
        assert!(on(0, || stop_begin(array.node)).is_err(), "in use");
        rig.opened.clear();
        if by_hand {
            delete(&rig, backend);
            on(0, || stop_begin(array.node)).unwrap();
            rig.settle();
            assert!(crate::block::node::mirror::view(array.node).is_none());
        } else {
            on(0, close_all);
            assert!(!all_closed());
            rig.settle();
            assert!(all_closed());
            assert_eq!(stand(array.node).status, Status::Running);
            delete(&rig, backend);
            stop(&rig, array.node);
        }
        for disk in array.disks {
            let (header, bits) = on_disk(disk);
            assert!(header.clean && bits.is_empty());
            assert_eq!(disk.durable()[MIB as usize], 1);
        }
        rig.finish();
    }
}

#[test]
fn a_rebuild_is_paused_by_a_drained_section_and_goes_on() {
    let mut rig = rig(1);
    let (array, backend) = ready(&mut rig);
    degrade(&rig, &array, backend, 7);
    array.disks[0].set_automatic(false);
    let job = rebuild(array.node, array.below[0]);
    for _ in 0..12 {
        rig.settle();
        on(0, || {
            while array.disks[0].held() > 0 {
                array.disks[0].finish(0)
            }
        });
    }
    rig.settle();
    let section = super::graph_rig::Section::Node(array.below[0]);
    super::graph_rig::quiets();
    section.begin();
    array.disks[0].set_automatic(true);
    on(0, || array.disks[0].finish_all());
    rig.settle();
    assert_eq!(super::graph_rig::quiets(), 1);
    assert_ne!(job.state(), State::Concluded);
    array.disks.iter().for_each(|disk| disk.clear_log());
    later(&rig, 5_000_000_000);
    assert_eq!(array.disks.map(|disk| disk.log().len()), [0, 0]);
    section.end();
    rig.settle();
    assert_eq!(end_of(job), Ok(()));
    assert!(data_of(array.disks[0]) == data_of(array.disks[1]));
    assert!(graph::info(array.node).is_some());
    rig.finish();
}

#[test]
fn what_a_flush_promises_while_a_leg_is_filled_is_durable_on_it_too() {
    let mut rig = rig(1);
    let (array, backend) = ready(&mut rig);
    degrade(&rig, &array, backend, 7);
    array.disks[0].set_automatic(false);
    let job = rebuild(array.node, array.below[0]);
    let mut flushes = 0;
    for round in 0.. {
        rig.settle();
        if array.disks[0].held() == 0 && job.state() == State::Concluded {
            break;
        }
        assert!(round < 2000, "it does not end");
        on(0, || array.disks[0].finish(0));
        let filled = stand(array.node).legs[0].unwrap().rebuilding;
        let fill = 100 + round as u8;
        for (tag, ask) in [(1, write(0, 4096, fill)), (2, flush())] {
            submit(0, backend, ask, tag);
            for step in 0.. {
                rig.settle();
                if !results().is_empty() {
                    break;
                }
                assert!(step < 200 && array.disks[0].held() > 0);
                on(0, || array.disks[0].finish(0));
            }
        }
        if filled {
            flushes += 1;
            let durable = array.disks.map(|disk| disk.durable()[MIB as usize]);
            assert_eq!(durable, [fill; 2]);
        }
    }
    array.disks[0].set_automatic(true);
    assert!(flushes >= 3, "{flushes}");
    assert_eq!(end_of(job), Ok(()));
    rig.finish();
}

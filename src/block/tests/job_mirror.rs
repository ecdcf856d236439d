//! Mirror jobs: equal under load, the pivot, cancel in every state, errors, moves, pairs.

use super::copy_rig::*;
use super::graph_rig::{delete_backend, outcome, outcomes, own_backend};
use super::jobs_rig::{KEPT, MANUAL};
use super::*;
use crate::block::graph::change::move_begin;
use crate::block::graph::{self, Permissions, Reason};
use crate::block::job::{Options, Policy, Start, StartError, State};

fn is(job: crate::block::job::Job, state: State) -> impl FnMut() -> bool {
    move || job.state() == state
}

#[test]
fn a_mirror_gets_ready_under_load_and_its_users_go_to_the_target() {
    for seed in 0..6 {
        let mut rig = rig(3);
        let d = two_disks(&mut rig, MIB, 100 + seed);
        let job = begin(What::Mirror, &d, KEPT).unwrap();
        d.storm(&rig, is(job, State::Ready));
        assert_eq!(launches(), [Ok(())]);
        for _ in 0..20 {
            d.load(&rig, 3);
            d.answer(&rig, 9);
        }
        assert_eq!(job.state(), State::Ready);
        on(0, || job.complete()).unwrap();
        d.storm(&rig, is(job, State::Concluded));
        assert_eq!(ended(job), Ok(()));
        let before = d.source.log().len();
        d.check_client(&rig, d.nodes[1]);
        assert_eq!(d.source.log().len(), before, "nobody goes there any more");
        rig.finish();
        on(0, || graph::delete(d.nodes[0])).ok();
    }
}

#[test]
fn a_mirror_of_a_quiet_source_copies_each_part_once_and_zeroes_as_zeroes() {
    let mut rig = rig(2);
    let d = two_disks(&mut rig, MIB, 1);
    d.target.clear_log();
    let job = begin(What::Mirror, &d, KEPT).unwrap();
    rig.settle();
    // Nothing but time and the devices.
    for _ in 0..50 {
        d.run(&rig);
        host::clock::advance(200_000_000);
    }
    assert_eq!(job.state(), State::Ready);
    let view = on(0, || job.view()).unwrap();
    assert_eq!((view.done, view.total), (MIB, MIB));
    let written: u64 = d.target.log().iter().map(|entry| entry.len).sum();
    assert_eq!(written, MIB);
    assert!(d.target.visible() == d.source.visible());
    // Soft: its end without the switch. What came last is there, and flushed.
    d.write(1, 3, 0x33);
    d.run(&rig);
    on(0, || job.cancel(false)).unwrap();
    for _ in 0..5 {
        host::clock::advance(200_000_000);
        d.run(&rig);
    }
    assert_eq!(ended(job), Ok(()));
    assert!(d.target.durable() == d.source.visible());
    d.check_client(&rig, d.nodes[0]);
    rig.finish();
}

#[test]
fn a_write_that_comes_back_while_its_place_is_copied_is_copied_again() {
    let mut rig = rig(2);
    let d = two_disks(&mut rig, MIB, 2);
    let job = begin(What::Mirror, &d, KEPT).unwrap();
    rig.settle();
    // The first chunk has been read and is on its way to the target when the write comes and is answered.
    assert!(d.source.held() > 0);
    on(d.source.core_of(0), || d.source.finish(0));
    rig.settle();
    assert_eq!(d.target.held(), 1);
    d.write(1, 1, 0xee);
    rig.settle();
    let n = d.source.held() - 1;
    on(1, || d.source.finish(n));
    rig.settle();
    assert_eq!(d.note(), 1);
    d.storm(&rig, is(job, State::Ready));
    on(0, || job.complete()).unwrap();
    d.storm(&rig, is(job, State::Concluded));
    assert_eq!(ended(job), Ok(()));
    d.check_client(&rig, d.nodes[1]);
    rig.finish();
}

#[test]
fn a_cancel_in_every_state_leaves_the_users_where_they_were() {
    for state in [
        State::Created,
        State::Running,
        State::Paused,
        State::Ready,
        State::Standby,
        State::Pending,
        State::Concluded,
    ] {
        let mut rig = rig(2);
        let d = two_disks(&mut rig, MIB, 3);
        // A write under way keeps the filter from its place.
        d.write(1, 1, 1);
        rig.settle();
        let job = begin(What::Mirror, &d, MANUAL).unwrap();
        rig.settle();
        assert_eq!(job.state(), State::Created);
        if state != State::Created {
            d.run_until(&rig, || job.state() == State::Running);
        }
        match state {
            State::Created | State::Running => {}
            State::Paused => {
                on(0, || job.pause()).unwrap();
                d.storm(&rig, is(job, State::Paused));
            }
            _ => d.storm(&rig, is(job, State::Ready)),
        }
        match state {
            State::Standby => {
                on(0, || job.pause()).unwrap();
                d.storm(&rig, is(job, State::Standby));
            }
            State::Pending | State::Concluded => {
                on(0, || job.complete()).unwrap();
                d.run_until(&rig, || job.state() == State::Pending);
            }
            _ => {}
        }
        if state == State::Concluded {
            on(0, || job.finalize()).unwrap();
            d.storm(&rig, is(job, State::Concluded));
        }
        assert_eq!(job.state(), state);
        on(0, || job.cancel(true)).unwrap();
        d.storm(&rig, || {
            !job.exists() || (state != State::Concluded && job.state() == State::Concluded)
        });
        if job.exists() {
            assert_eq!(ended(job), Err(BlockError::Cancelled), "{state}");
        }
        let root = d.nodes[usize::from(state == State::Concluded)];
        d.check_client(&rig, root);
        done();
        rig.finish();
    }
}

#[test]
fn errors_of_either_side_end_it_stop_it_or_are_tried_again() {
    for policy in [Policy::Report, Policy::Stop, Policy::Ignore] {
        for operation in [Operation::Read, Operation::Write, Operation::Flush] {
            if operation == Operation::Flush && policy != Policy::Report {
                // A disk that failed a flush fails everything until it is reset.
                continue;
            }
            let mut rig = rig(2);
            let d = two_disks(&mut rig, MIB, 4);
            let options = Options {
                on_source_error: policy,
                on_target_error: policy,
                ..KEPT
            };
            let job = begin(What::Mirror, &d, options).unwrap();
            rig.settle();
            let side = usize::from(operation != Operation::Read);
            // The client only writes, and the source fails reads alone.
            [d.source, d.target][side].fail_next(operation, 1);
            let mut completed = false;
            let mut stopped = false;
            d.storm(&rig, || {
                if job.state() == State::Ready && !completed {
                    completed = on(0, || job.complete()).is_ok();
                }
                let paused = matches!(job.state(), State::Paused | State::Standby);
                if policy == Policy::Stop && paused && on(0, || job.resume()).is_ok() {
                    stopped = true;
                }
                job.state() == State::Concluded
            });
            let errors = on(0, || job.view()).unwrap().errors;
            assert_eq!(errors[side], 1, "{policy:?} {operation:?}");
            assert_eq!(stopped, policy == Policy::Stop, "{operation:?}");
            let result = ended(job);
            if policy == Policy::Report {
                assert_eq!(result, Err(BlockError::Io), "{operation:?}");
                d.check_client(&rig, d.nodes[0]);
            } else {
                assert_eq!(result, Ok(()), "{policy:?} {operation:?}");
                d.check_client(&rig, d.nodes[1]);
            }
            rig.finish();
        }
    }
}

#[test]
fn it_follows_its_source_from_core_to_core_in_all_that_it_does() {
    let mut rig = rig(3);
    let d = two_disks(&mut rig, MIB, 5);
    let job = begin(What::Mirror, &d, KEPT).unwrap();
    d.storm(&rig, is(job, State::Running));
    outcomes();
    let mut moves = 0;
    let mut go = |d: &Disks, core: CoreId| {
        on(0, || move_begin(d.nodes[0], core, &outcome, core)).unwrap();
        d.storm(&rig, || !outcomes().is_empty());
        assert_eq!(graph::home(d.nodes[0]), Some(core));
        assert_eq!(job.core(), core);
        moves += 1;
    };
    for core in [1, 2] {
        go(&d, core);
        for _ in 0..5 {
            d.load(&rig, 2);
            d.answer(&rig, 6);
        }
    }
    d.storm(&rig, is(job, State::Ready));
    go(&d, 1);
    d.storm(&rig, is(job, State::Ready));
    // The end is wanted, and the disk moves at once.
    on(0, || job.complete()).unwrap();
    on(0, || move_begin(d.nodes[0], 2, &outcome, 0)).unwrap();
    d.storm(&rig, is(job, State::Concluded));
    assert_eq!(ended(job), Ok(()));
    assert_eq!(moves, 3);
    d.check_client(&rig, d.nodes[1]);
    outcomes();
    rig.finish();
}

#[test]
fn what_cannot_be_a_mirror_is_refused_and_leaves_nothing() {
    let mut rig = rig(2);
    let d = two_disks(&mut rig, MIB, 6);
    let (_, small) = super::verify::disk(with_everything(MIB / 2));
    rig.nodes.push(small);
    let reason = |result: Result<_, StartError>| match result {
        Err(StartError::Graph(refusal)) => refusal.reason,
        _ => panic!("not refused by the graph"),
    };
    let [source, target] = d.nodes;
    for what in BOTH {
        let refused = begin_with(what, [source, small], KEPT, |_| {});
        assert_eq!(reason(refused), Reason::Node(BlockError::NoSpace));
        let refused = begin_with(what, [source, source], KEPT, |_| {});
        assert_eq!(reason(refused), Reason::Cycle);
        // Its target is in use: a backup sees that at once, a mirror when its filter is in its place.
        let user = own_backend(target);
        let refused = begin(what, &d, KEPT);
        if let Ok(job) = &refused {
            d.run(&rig);
            assert!(matches!(
                launches().as_slice(),
                [Err(StartError::Graph(refusal))] if matches!(refusal.reason, Reason::Conflict { .. })
            ));
            assert!(!job.exists());
        } else {
            assert!(matches!(reason(refused), Reason::Conflict { .. }));
        }
        delete_backend(&rig, user);
        // An id that is taken.
        let first = begin_with(
            what,
            d.nodes,
            Options {
                id: Some("twice"),
                ..KEPT
            },
            |_| {},
        );
        let second = begin_with(
            what,
            d.nodes,
            Options {
                id: Some("twice"),
                ..KEPT
            },
            |_| {},
        );
        assert!(matches!(second, Err(StartError::Job(_))));
        let first = first.unwrap();
        on(0, || first.cancel(true)).unwrap();
        d.storm(&rig, || {
            !first.exists() || first.state() == State::Concluded
        });
        if first.exists() {
            ended(first).unwrap_err();
        }
        launches();
        d.check_client(&rig, source);
    }
    rig.finish();
}

#[test]
fn mirrors_of_a_transaction_switch_together_or_not_at_all() {
    for fail in [false, true] {
        let mut rig = rig(2);
        let [a, b] = [7, 8].map(|seed| two_disks(&mut rig, MIB / 2, seed));
        let ids = [unique("pair"), unique("pair")];
        let starts = [(&a, &ids[0]), (&b, &ids[1])].map(|(d, id)| {
            let mut start = Start::new(d.nodes[0], d.nodes[1]);
            start.options = Options {
                id: Some(id),
                ..KEPT
            };
            start
        });
        let jobs = begin_all(What::Mirror, &starts).unwrap();
        let step = || {
            for d in [&a, &b] {
                // Each knows its own writes only.
                d.load(&rig, 2);
                d.run(&rig);
            }
            host::clock::advance(150_000_000);
        };
        let mut rounds = 0;
        while !jobs.iter().all(|job| job.state() == State::Ready) {
            step();
            rounds += 1;
            assert!(rounds < 1000);
        }
        on(0, || jobs[0].complete()).unwrap();
        for _ in 0..20 {
            step();
        }
        assert_eq!(jobs[0].state(), State::Waiting, "for the other");
        if fail {
            b.target.fail_next(Operation::Flush, 1);
        }
        on(0, || jobs[1].complete()).unwrap();
        while !jobs.iter().all(|job| job.state() == State::Concluded) {
            step();
            rounds += 1;
            assert!(rounds < 2000);
        }
        let results = [0, 1].map(|n| ended(jobs[n]));
        let root = usize::from(!fail);
        if fail {
            assert_eq!(results, [Err(BlockError::Cancelled), Err(BlockError::Io)]);
        } else {
            assert_eq!(results, [Ok(()); 2]);
        }
        for d in [&a, &b] {
            d.check_client(&rig, d.nodes[root]);
        }
        rig.finish();
    }
}

#[test]
fn a_pivot_that_is_refused_leaves_the_users_where_they_were() {
    let mut rig = rig(3);
    let d = two_disks(&mut rig, MIB, 9);
    outcomes();
    on(0, || move_begin(d.nodes[0], 2, &outcome, 0)).unwrap();
    d.run(&rig);
    assert_eq!(outcomes(), [(0, Ok(()))]);
    let job = begin(What::Mirror, &d, KEPT).unwrap();
    d.storm(&rig, is(job, State::Ready));
    // Both must stay where they are, and that is not one place.
    d.backend.set_context_fixed(true);
    let name = unique("fixed");
    let fixed = on(0, || {
        Backend::open(&name, "test", Some(d.nodes[1]), Permissions::READER)
    });
    let fixed = fixed.ok().unwrap();
    fixed.set_context_fixed(true);
    on(0, || job.complete()).unwrap();
    d.storm(&rig, is(job, State::Concluded));
    assert!(ended(job).is_err());
    delete_backend(&rig, fixed);
    d.check_client(&rig, d.nodes[0]);
    rig.finish();
}

#[test]
fn a_mirror_and_a_backup_of_one_source_do_not_disturb_each_other() {
    for mirror_first in [true, false] {
        let mut rig = rig(3);
        let d = two_disks(&mut rig, MIB, 10);
        let (second, node) = super::verify::disk(with_everything(MIB));
        rig.nodes.push(node);
        let begin_backup = || {
            keep_images(&[d.source]);
            let job = begin_with(What::Backup, [d.nodes[0], node], KEPT, |start| {
                start.options.speed = MIB / 2;
                start.cluster = Some(1 << 14);
            });
            job.unwrap()
        };
        let run = |over: &mut dyn FnMut() -> bool| {
            d.storm(&rig, || {
                for core in 0..3 {
                    on(core, || second.finish_all());
                }
                over()
            });
        };
        let (mirror, backup);
        if mirror_first {
            mirror = begin(What::Mirror, &d, KEPT).unwrap();
            run(&mut is(mirror, State::Ready));
            backup = begin_backup();
        } else {
            backup = begin_backup();
            run(&mut is(backup, State::Running));
            mirror = begin(What::Mirror, &d, KEPT).unwrap();
            run(&mut is(mirror, State::Ready));
        }
        run(&mut is(backup, State::Running));
        on(0, || mirror.complete()).unwrap();
        run(&mut is(mirror, State::Concluded));
        assert_eq!(ended(mirror), Ok(()));
        assert_eq!(backup.state(), State::Running, "it goes on");
        run(&mut is(backup, State::Concluded));
        assert_eq!(ended(backup), Ok(()));
        assert!(second.durable() == images()[0]);
        d.check_client(&rig, d.nodes[1]);
        rig.finish();
    }
}

#[test]
fn nobody_writes_past_a_mirrors_filter_also_while_it_has_no_users() {
    let mut rig = rig(2);
    let d = two_disks(&mut rig, MIB, 9);
    let job = begin(What::Mirror, &d, KEPT).unwrap();
    d.storm(&rig, is(job, State::Ready));
    rig.opened.clear();
    on(0, || {
        d.backend.drain_begin(crate::aio::Callback::new(&ignore, 0))
    })
    .unwrap();
    d.run(&rig);
    on(0, || d.backend.delete()).unwrap();
    let writer = || on(0, || Backend::create(&unique("w"), "test", d.nodes[0]));
    assert_eq!(writer().err(), Some(BlockError::Busy));
    on(0, || job.cancel(true)).unwrap();
    d.run(&rig);
    assert_eq!(ended(job), Err(BlockError::Cancelled));
    rig.opened.push(writer().unwrap());
    rig.finish();
}

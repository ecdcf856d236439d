//! Backup jobs: the image of the first moment, cancel in every state, errors and policies, moves, pairs at one moment.

use super::copy_rig::*;
use super::graph_rig::{delete_backend, outcome, outcomes};
use super::jobs_rig::{KEPT, MANUAL};
use super::*;
use crate::block::graph::change::{move_begin, remove_begin};
use crate::block::graph::{self, Permissions};
use crate::block::job::{Job, Options, Policy, Start, State};
use crate::block::node::copy_before_write::OnError;

fn is(job: Job, state: State) -> impl FnMut() -> bool {
    move || job.state() == state
}

/// The target holds what the source held when it began, for good.
fn check_image(d: &Disks) {
    assert!(d.target.durable() == images()[0]);
}

#[test]
fn a_backup_is_the_image_of_its_first_moment_while_writes_go_on() {
    for seed in 0..6 {
        let mut rig = rig(3);
        let d = two_disks(&mut rig, MIB, 20 + seed);
        for _ in 0..5 {
            d.load(&rig, 4);
            d.answer(&rig, 3);
        }
        keep_images(&[d.source]);
        let job = begin_with(What::Backup, d.nodes, KEPT, |start| {
            start.cluster = (seed % 2 == 0).then_some(1 << (12 + seed));
        });
        let job = job.unwrap();
        d.storm(&rig, is(job, State::Concluded));
        assert_eq!(launches(), [Ok(())]);
        let view = on(0, || job.view()).unwrap();
        assert_eq!((view.done, view.total), (MIB, MIB));
        assert_eq!(ended(job), Ok(()));
        assert!(d.source.visible() != d.target.visible());
        check_image(&d);
        d.check_client(&rig, d.nodes[0]);
        rig.finish();
    }
}

#[test]
fn a_cancel_in_every_state_takes_the_filter_away() {
    for state in [
        State::Created,
        State::Running,
        State::Paused,
        State::Pending,
        State::Concluded,
    ] {
        let mut rig = rig(2);
        let d = two_disks(&mut rig, MIB, 3);
        // A write under way keeps the filter from its place.
        d.write(1, 1, 1);
        rig.settle();
        let job = begin(What::Backup, &d, MANUAL).unwrap();
        rig.settle();
        if state != State::Created {
            d.run_until(&rig, || job.state() == State::Running);
        }
        match state {
            State::Created | State::Running => {}
            State::Paused => {
                on(0, || job.pause()).unwrap();
                d.storm(&rig, is(job, State::Paused));
            }
            _ => d.storm(&rig, is(job, State::Pending)),
        }
        if state == State::Concluded {
            on(0, || job.finalize()).unwrap();
            d.storm(&rig, is(job, State::Concluded));
        }
        assert_eq!(job.state(), state);
        // As long as it lives its filter is its own.
        if let Some(filter) = d.backend.root().filter(|root| *root != d.nodes[0]) {
            outcomes();
            on(0, || remove_begin(filter, &outcome, 0)).unwrap();
            d.storm(&rig, || !outcomes().is_empty());
            assert_eq!(d.backend.root(), Some(filter), "no user can remove it");
        }
        on(0, || job.cancel(true)).unwrap();
        d.storm(&rig, || {
            !job.exists() || (state != State::Concluded && job.state() == State::Concluded)
        });
        if job.exists() {
            assert_eq!(ended(job), Err(BlockError::Cancelled), "{state}");
        }
        launches();
        d.check_client(&rig, d.nodes[0]);
        rig.finish();
    }
}

#[test]
fn errors_of_its_own_copies_end_it_stop_it_or_leave_a_gap() {
    for policy in [Policy::Report, Policy::Stop, Policy::Ignore] {
        for operation in [Operation::Read, Operation::Write] {
            let mut rig = rig(2);
            let d = two_disks(&mut rig, MIB, 4);
            let options = Options {
                on_source_error: policy,
                on_target_error: policy,
                ..KEPT
            };
            keep_images(&[d.source]);
            let job = begin(What::Backup, &d, options).unwrap();
            d.run_until(&rig, is(job, State::Running));
            let side = usize::from(operation != Operation::Read);
            [d.source, d.target][side].fail_next(operation, 1);
            let mut stopped = false;
            // Without a client, so that the copy that fails is the job's.
            d.run_until(&rig, || {
                if policy == Policy::Stop
                    && job.state() == State::Paused
                    && on(0, || job.resume()).is_ok()
                {
                    stopped = true;
                }
                job.state() == State::Concluded
            });
            let errors = on(0, || job.view()).unwrap().errors;
            assert_eq!(errors[side], 1, "{policy:?} {operation:?}");
            assert_eq!(stopped, policy == Policy::Stop);
            match policy {
                Policy::Report => assert_eq!(ended(job), Err(BlockError::Io)),
                Policy::Stop => {
                    assert_eq!(ended(job), Ok(()));
                    check_image(&d);
                }
                Policy::Ignore => {
                    assert_eq!(ended(job), Ok(()));
                    let (image, copy) = (&images()[0], d.target.durable());
                    let chunks = image.chunks(1 << 16).zip(copy.chunks(1 << 16));
                    assert_eq!(chunks.filter(|(a, b)| a != b).count(), 1);
                }
            }
            d.check_client(&rig, d.nodes[0]);
            rig.finish();
        }
    }
}

#[test]
fn a_copy_for_a_client_that_fails_breaks_the_backup_or_the_write() {
    for on_error in [OnError::BreakCopy, OnError::BreakWrite] {
        let mut rig = rig(2);
        let d = two_disks(&mut rig, MIB, 4);
        keep_images(&[d.source]);
        let job = begin_with(What::Backup, d.nodes, KEPT, |start| {
            start.on_error = on_error;
        });
        let job = job.unwrap();
        d.run_until(&rig, is(job, State::Running));
        on(0, || job.pause()).unwrap();
        d.run_until(&rig, is(job, State::Paused));
        d.run(&rig);
        d.target.fail_next(Operation::Write, 1);
        submit(1, d.backend, write(MIB - 4096, 4096, 0xee), 5);
        let mut result = None;
        while result.is_none() {
            rig.settle();
            for core in 0..2 {
                on(core, || d.source.finish_all() + d.target.finish_all());
            }
            result = done().pop().map(|done| done.result);
        }
        on(0, || job.resume()).unwrap();
        d.run_until(&rig, is(job, State::Concluded));
        match on_error {
            OnError::BreakCopy => {
                assert_eq!(result, Some(Ok(())));
                assert_eq!(ended(job), Err(BlockError::Io));
                d.model.lock().unwrap()[MIB as usize - 4096..].fill(0xee);
            }
            OnError::BreakWrite => {
                assert_eq!(result, Some(Err(BlockError::Io)));
                assert_eq!(ended(job), Ok(()));
                check_image(&d);
            }
        }
        d.check_client(&rig, d.nodes[0]);
        rig.finish();
    }
}

#[test]
fn it_follows_its_source_from_core_to_core() {
    let mut rig = rig(3);
    let d = two_disks(&mut rig, MIB, 5);
    // The source is at home elsewhere than the target, and stays there.
    outcomes();
    on(0, || move_begin(d.nodes[0], 2, &outcome, 0)).unwrap();
    d.run(&rig);
    keep_images(&[d.source]);
    let job = begin_with(What::Backup, d.nodes, KEPT, |start| {
        start.cluster = Some(1 << 13);
    });
    let job = job.unwrap();
    d.run_until(&rig, is(job, State::Running));
    assert_eq!(d.nodes.map(graph::home), [Some(2); 2]);
    assert_eq!(job.core(), 2);
    for core in [1, 0, 2, 1] {
        outcomes();
        on(0, || move_begin(d.nodes[0], core, &outcome, core)).unwrap();
        d.storm(&rig, || !outcomes().is_empty());
        assert_eq!(job.core(), core);
        assert_eq!(d.nodes.map(graph::home), [Some(core); 2]);
    }
    assert_eq!(job.state(), State::Running, "it was not done before");
    d.storm(&rig, is(job, State::Concluded));
    assert_eq!(ended(job), Ok(()));
    check_image(&d);
    d.check_client(&rig, d.nodes[0]);
    rig.finish();
}

/// Starts backups of both, as one.
fn begin_pair(d: [&Disks; 2]) -> [Job; 2] {
    let ids = [unique("pair"), unique("pair")];
    let starts = [0, 1].map(|n| {
        let mut start = Start::new(d[n].nodes[0], d[n].nodes[1]);
        start.options = Options {
            id: Some(&ids[n]),
            ..KEPT
        };
        start
    });
    keep_images(&[d[0].source, d[1].source]);
    let jobs = begin_all(What::Backup, &starts).unwrap();
    [jobs[0], jobs[1]]
}

#[test]
fn a_pair_of_backups_has_one_moment_for_both() {
    for delay in 0..40 {
        let mut rig = rig(2);
        let [a, b] = [7, 8].map(|seed| two_disks(&mut rig, MIB / 4, seed + delay));
        // The second filter has to come from another core, and its target's reader keeps it waiting: it is in its place much later.
        outcomes();
        on(0, || move_begin(b.nodes[0], 1, &outcome, 0)).unwrap();
        b.run(&rig);
        let name = unique("reader");
        let reader = on(0, || {
            Backend::open(&name, "test", Some(b.nodes[1]), Permissions::READER)
        });
        let reader = reader.ok().unwrap();
        b.target.set_silent(true);
        submit(1, reader, read(0, 512), 0);
        // A client that writes a number to the first disk, and when it is there, to the second: as a database does with its log.
        let mut number = 1u8;
        let mut second = false;
        a.write(1, 0, number);
        let mut step = |d: [&Disks; 2], rig: &Rig| {
            for d in d {
                d.answer(rig, 2);
            }
            let at = usize::from(second);
            if d[at].model.lock().unwrap()[0] == number {
                second = !second;
                number += u8::from(!second);
                d[usize::from(second)].write(1, 0, number);
            }
        };
        for _ in 0..delay {
            step([&a, &b], &rig);
        }
        let jobs = begin_pair([&a, &b]);
        for round in 0.. {
            if jobs.iter().all(|job| job.state() == State::Concluded) {
                break;
            }
            assert!(round < 5000);
            if round == 60 {
                b.target.set_silent(false);
            }
            step([&a, &b], &rig);
            host::clock::advance(1_000_000);
        }
        for job in jobs {
            assert_eq!(ended(job), Ok(()));
        }
        let images = images();
        let (first, second) = (a.target.durable(), b.target.durable());
        assert!(first == images[0] && second == images[1]);
        let (log, data) = (first[0], second[0]);
        assert!(
            log == data || log == data + 1,
            "the second disk is ahead: {log} {data}"
        );
        delete_backend(&rig, reader);
        for d in [&a, &b] {
            d.run(&rig);
            d.check_client(&rig, d.nodes[0]);
        }
        rig.finish();
    }
}

#[test]
fn of_a_pair_both_succeed_or_neither() {
    for fail in [0, 1] {
        let mut rig = rig(2);
        let [a, b] = [7, 8].map(|seed| two_disks(&mut rig, MIB / 2, seed));
        let jobs = begin_pair([&a, &b]);
        [&a, &b][fail].target.fail_next(Operation::Write, 1);
        for round in 0.. {
            if jobs.iter().all(|job| job.state() == State::Concluded) {
                break;
            }
            assert!(round < 5000);
            for d in [&a, &b] {
                d.answer(&rig, 2);
            }
            host::clock::advance(1_000_000);
        }
        let results = jobs.map(ended);
        assert_eq!(results[fail], Err(BlockError::Io));
        assert_eq!(results[1 - fail], Err(BlockError::Cancelled));
        for d in [&a, &b] {
            d.check_client(&rig, d.nodes[0]);
        }
        rig.finish();
    }
}

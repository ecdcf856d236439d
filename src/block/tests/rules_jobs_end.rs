//! The rules of jobs, JOB-7, JOB-8, JOB-10 to JOB-12, JOB-14, JOB-15: how jobs end, alone and together.

use super::catalogue_jobs::together;
use super::graph_rig::*;
use super::jobs_rig::*;
use super::*;
use crate::block::job::{self, JobError, Options, State, find};

const CANCELLED: Result<(), BlockError> = Err(BlockError::Cancelled);
const FAILED: Result<(), BlockError> = Err(BlockError::Io);

#[test]
fn job_7_the_end_is_the_main_loops_and_no_drain_waits_for_it() {
    let mut rig = rig(2);
    let (_, node) = leaf(&mut rig);
    move_to(&rig, node, 1).unwrap();
    let driver = test_job(Pace::Busy, 1).leak();
    driver.holding.store(true, Ordering::SeqCst);
    let job = run(driver, &KEPT, &[node]);
    rig.settle();
    host::clock::advance(1_000_000);
    for _ in 0..5 {
        on(1, || aio::context(1).poll(false));
    }
    // The body is at its end; the main loop has not looked yet.
    assert_eq!((driver.asked().len(), see(job).busy), (0, false));
    rig.settle();
    // Each of its steps is held back: what it drains is quiet nevertheless.
    for step in [Asked::Prepare, Asked::Commit] {
        assert_eq!(driver.asked().last(), Some(&step));
        quiets();
        Section::Node(node).begin();
        rig.settle();
        assert_eq!(quiets(), 1);
        Section::Node(node).end();
        assert_eq!(driver.let_go(), 1);
        rig.settle();
    }
    assert_eq!(over(&rig, job), Ok(()));
    driver.was_right();
    rig.finish();
}

#[test]
fn job_8_the_end_may_drain_and_flush() {
    for core in [0, 2] {
        for (run, prepare) in [(Ok(()), Ok(())), (FAILED, Ok(())), (Ok(()), FAILED)] {
            let mut rig = rig(3);
            let (_, node) = leaf(&mut rig);
            move_to(&rig, node, core).unwrap();
            let client = rig.backend(node);
            let driver = TestJob {
                run,
                prepare,
                ..test_job(Pace::Read, 2)
            }
            .leak();
            *driver.thorough.lock().unwrap() = Some(node);
            let job = self::run(driver, &KEPT, &[node]);
            // Somebody else is at work there, and drains as well.
            send(1, client, 1);
            Section::All.begin();
            rig.settle();
            Section::All.end();
            let result = over(&rig, job);
            assert_eq!(
                result,
                if run.is_err() || prepare.is_err() {
                    FAILED
                } else {
                    Ok(())
                }
            );
            let last = if result.is_ok() {
                Asked::Commit
            } else {
                Asked::Abort
            };
            let asked = driver.asked();
            assert_eq!(asked[asked.len() - 2..], [last, Asked::Clean(result)]);
            assert_eq!(asked.contains(&Asked::Prepare), run.is_ok());
            driver.was_right();
            rig.finish();
        }
    }
}

fn turns(steps: u64) -> &'static TestJob {
    test_job(Pace::Sleep, steps).leak()
}

#[test]
fn job_10_all_wait_for_all_and_one_finalises_all() {
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
        let mut rig = rig(2);
        let drivers = order.map(|place: u64| turns(place + 1));
        let jobs = together(&mut rig, &drivers, &MANUAL);
        for passed in 1..=3 {
            pass(&rig, 1);
            for (job, place) in jobs.iter().zip(order) {
                let state = match (passed, place < passed) {
                    (3, _) => State::Pending,
                    (_, true) => State::Waiting,
                    (_, false) => State::Running,
                };
                assert_eq!(job.state(), state, "{order:?} after {passed}");
            }
            assert!(drivers.iter().all(|driver| driver.asked().is_empty()));
        }
        on(0, || jobs[1].finalize()).unwrap();
        assert_eq!(on(0, || jobs[0].finalize()), Err(JobError::Ending));
        rig.settle();
        let prepared = drivers.map(|driver| driver.asked()[0]);
        assert_eq!(prepared, [Asked::Prepare; 3]);
        for job in jobs {
            assert_eq!(over(&rig, job), Ok(()));
        }
        rig.finish();
    }
}

#[test]
fn job_10_one_that_cannot_end_takes_all_along() {
    for bad in 0..3 {
        let mut rig = rig(2);
        let mut number = 0;
        let drivers = [(); 3].map(|()| {
            let prepare = if number == bad { FAILED } else { Ok(()) };
            number += 1;
            TestJob {
                prepare,
                ..test_job(Pace::Sleep, 1)
            }
            .leak()
        });
        let jobs = together(&mut rig, &drivers, &KEPT);
        pass(&rig, 1);
        for (number, job) in jobs.into_iter().enumerate() {
            let asked = drivers[number].asked();
            // Those after it are not asked any more; nobody commits.
            assert_eq!(asked.contains(&Asked::Prepare), number <= bad);
            assert!(asked.contains(&Asked::Abort) && !asked.contains(&Asked::Commit));
            let result = if number == bad { FAILED } else { CANCELLED };
            assert_eq!(over(&rig, job), result, "{bad}");
        }
        rig.finish();
    }
}

#[test]
fn job_10_a_cancel_reaches_the_others_in_whatever_state() {
    let mut rig = rig(2);
    let drivers = [
        turns(NO_END),
        turns(1),
        test_job(Pace::Wait, NO_END).leak(),
        turns(NO_END),
    ];
    let jobs = together(&mut rig, &drivers, &KEPT);
    pass(&rig, 1);
    on(0, || jobs[3].pause()).unwrap();
    rig.settle();
    let states: Vec<_> = jobs.iter().map(|job| job.state()).collect();
    let running = State::Running;
    assert_eq!(states, [running, State::Waiting, running, State::Paused]);
    on(0, || jobs[0].cancel(true)).unwrap();
    for job in jobs {
        assert_eq!(over(&rig, job), CANCELLED);
    }
    for driver in drivers {
        assert_eq!(driver.asked(), [Asked::Abort, Asked::Clean(CANCELLED)]);
        driver.was_right();
    }
    rig.finish();
}

#[test]
fn job_10_one_that_waits_or_was_never_started_is_cancelled_too() {
    let mut rig = rig(2);
    let (_, node) = leaf(&mut rig);
    let transaction = on(0, job::Transaction::new).unwrap();
    let options = || Options {
        transaction: Some(&transaction),
        auto_dismiss: false,
        ..Options::DEFAULT
    };
    let drivers = [turns(1), turns(1)];
    let waits = run(drivers[0], &options(), &[node]);
    let idle = make(drivers[1], &options(), &[node]);
    pass(&rig, 1);
    assert_eq!(
        (waits.state(), idle.state()),
        (State::Waiting, State::Created)
    );
    on(0, || waits.cancel(true)).unwrap();
    rig.settle();
    assert!(!idle.exists());
    assert_eq!(over(&rig, waits), CANCELLED);
    let gone = on(0, || {
        job::create(
            drivers[0],
            &Options {
                id: Some("late"),
                ..options()
            },
        )
    });
    // Nobody is left in it, so it starts afresh. Another may join by way of the job, until its end begins.
    let first = gone.unwrap();
    let same = on(0, || job::Transaction::of(first)).unwrap();
    let joined = Options {
        id: Some("joined"),
        transaction: Some(&same),
        ..Options::DEFAULT
    };
    let second = on(0, || job::create(drivers[1], &joined)).unwrap();
    on(0, || first.cancel(true)).unwrap();
    rig.settle();
    assert!(!first.exists() && !second.exists());
    assert_eq!(
        on(0, || job::Transaction::of(first).err()),
        Some(JobError::NoSuchJob)
    );
    on(0, || drop(same));
    on(0, || drop(transaction));
    rig.finish();
}

#[test]
fn job_10_a_failure_reaches_one_that_was_not_started() {
    let mut rig = rig(2);
    let (_, node) = leaf(&mut rig);
    let transaction = on(0, job::Transaction::new).unwrap();
    let options = Options {
        transaction: Some(&transaction),
        auto_dismiss: false,
        ..Options::DEFAULT
    };
    let idle = make(turns(1), &options, &[node]);
    let failing = TestJob {
        run: FAILED,
        ..test_job(Pace::Sleep, 1)
    };
    let failing = run(failing.leak(), &options, &[node]);
    on(0, || drop(transaction));
    pass(&rig, 1);
    assert_eq!(over(&rig, failing), FAILED);
    assert!(!idle.exists());
    rig.finish();
}

#[test]
fn job_11_a_soft_cancel_of_a_ready_job_is_its_end() {
    let mut rig = rig(2);
    let (_, node) = leaf(&mut rig);
    let ready = || {
        let driver = TestJob {
            ready_end: true,
            ..test_job(Pace::Wait, NO_END)
        }
        .leak();
        driver.make_ready.store(true, Ordering::SeqCst);
        driver
    };
    // Ready: it ends well, and its end knows that there is no switch.
    let driver = ready();
    let job = run(driver, &KEPT, &[node]);
    rig.settle();
    on(0, || job.cancel(false)).unwrap();
    assert!(!job.is_cancelled() && job.cancel_requested() && !job.end_wanted());
    assert_eq!(on(0, || job.complete()), Err(JobError::CannotComplete));
    assert_eq!(over(&rig, job), Ok(()));
    let clean = Asked::Clean(Ok(()));
    assert_eq!(driver.asked(), [Asked::Prepare, Asked::Commit, clean]);
    // Its body has ended: too late for a soft one, not for a forced one.
    for (force, result) in [(false, Ok(())), (true, CANCELLED)] {
        let driver = ready();
        let job = run(driver, &KEPT, &[node]);
        rig.settle();
        on(0, || job.complete()).unwrap();
        for _ in 0..1000 {
            if !see(job).busy && job.state() == State::Ready && driver.asked().len() == 1 {
                break;
            }
            on(0, || aio::context(0).poll(false));
        }
        let before = job.state();
        on(0, || job.cancel(force)).unwrap();
        assert_eq!(before, State::Ready);
        assert_eq!(over(&rig, job), result);
    }
    // Not ready: given up.
    let driver = TestJob {
        ready_end: true,
        ..test_job(Pace::Wait, NO_END)
    }
    .leak();
    let job = run(driver, &KEPT, &[node]);
    rig.settle();
    on(0, || job.cancel(false)).unwrap();
    assert_eq!(over(&rig, job), CANCELLED);
    rig.finish();
}

#[test]
fn job_11_cancel_dismisses_what_is_over_and_ends_what_was_not_started() {
    let mut rig = rig(2);
    let (_, node) = leaf(&mut rig);
    let driver = turns(0);
    let job = run(driver, &KEPT, &[node]);
    rig.settle();
    assert_eq!(job.state(), State::Concluded);
    on(0, || job.cancel(false)).unwrap();
    assert!(!job.exists());
    let idle = make(driver, &KEPT, &[node]);
    on(0, || idle.cancel(false)).unwrap();
    assert_eq!(on(0, || idle.start()), Err(JobError::Ending));
    rig.settle();
    assert!(!idle.exists());
    assert_eq!(driver.made(), 0);
    // While its end is made final, nobody can take it back.
    let driver = turns(0);
    driver.holding.store(true, Ordering::SeqCst);
    let job = run(driver, &KEPT, &[node]);
    rig.settle();
    assert_eq!(job.state(), State::Pending);
    assert_eq!(on(0, || job.cancel(true)), Err(JobError::Ending));
    driver.holding.store(false, Ordering::SeqCst);
    driver.let_go();
    assert_eq!(over(&rig, job), Ok(()));
    rig.finish();
}

/// So many wait for its backends that no more can: they are taken away when these have gone.
#[test]
fn a_job_whose_backend_others_drain_ends_after_them() {
    for started in [false, true] {
        let mut rig = rig(2);
        let (leaf, node) = leaf(&mut rig);
        let driver = turns(0);
        let job = make(driver, &KEPT, &[node]);
        let backend = on(0, || job.backend()).unwrap();
        // Something is in flight there, so nobody is answered.
        leaf.set_holding(true);
        send(0, backend, 1);
        for _ in 0..8 {
            let ignore = aio::Callback::new(&super::ignore, 0);
            on(0, || backend.drain_begin(ignore)).unwrap();
        }
        if started {
            on(0, || job.cancel(true)).unwrap();
        } else {
            on(0, || job.give_up());
        }
        for _ in 0..20 {
            on(0, || aio::context(0).poll(false));
        }
        assert_eq!((job.exists(), backend.in_flight()), (started, 1));
        on(0, || leaf.let_go(Ok(())));
        rig.settle();
        assert!(!job.exists());
        rig.finish();
    }
}

#[test]
fn job_12_ids_are_unique_and_internal_jobs_have_none() {
    let mut rig = rig(2);
    let driver = test_job(Pace::Wait, NO_END).leak();
    let internal = Options {
        internal: true,
        ..Options::DEFAULT
    };
    let hidden = [(); 2].map(|()| on(0, || job::create(driver, &internal)).unwrap());
    assert_eq!(find(""), None);
    let mut seen = Vec::new();
    on(0, || job::for_each(|view| seen.push(view)));
    assert!(seen.is_empty() && hidden[0].id().is_empty(), "{seen:?}");
    let named = Options {
        id: Some("x"),
        ..Options::DEFAULT
    };
    for _ in 0..3 {
        let job = on(0, || job::create(driver, &named)).unwrap();
        assert_eq!(
            on(0, || job::create(driver, &named)),
            Err(JobError::IdInUse)
        );
        assert_eq!(find("x"), Some(job));
        on(0, || job.start()).unwrap();
        rig.settle();
        on(0, || job.cancel(true)).unwrap();
        rig.settle();
        assert_eq!(find("x"), None);
        // What knows the old one by its handle does not reach the new one.
        assert_eq!(on(0, || job.pause()), Err(JobError::NoSuchJob));
    }
    for job in hidden {
        on(0, || job.cancel(true)).unwrap();
    }
    rig.settle();
    // A table full of jobs.
    let mut all = Vec::new();
    loop {
        match on(0, || job::create(driver, &internal)) {
            Ok(job) => all.push(job),
            Err(error) => {
                assert_eq!(error, JobError::NoRoom("jobs"));
                break;
            }
        }
    }
    assert_eq!(all.len(), crate::config::JOBS);
    for job in all {
        on(0, || job.give_up());
    }
    rig.settle();
    let _ = leaf(&mut rig);
    rig.finish();
}

/// The main loop asks and tells while the body runs on another core: no lock is held across a call of either.
#[test]
fn job_14_the_fields_are_one_locks_and_no_call_is_made_under_it() {
    let mut rig = rig(2);
    let (_, node) = leaf(&mut rig);
    move_to(&rig, node, 1).unwrap();
    let driver = TestJob {
        ready_end: true,
        ..test_job(Pace::Read, NO_END)
    }
    .leak();
    driver.make_ready.store(true, Ordering::SeqCst);
    let job = run(driver, &KEPT, &[node]);
    rig.with_others(|| {
        let mut turn = 0u64;
        while driver.made() < 2_000 {
            turn += 1;
            on(0, || {
                let _ = match turn % 4 {
                    0 => job.pause(),
                    1 => job.resume(),
                    2 => job.set_speed(0),
                    _ => Ok(()),
                };
                job.wake();
                job::for_each(|view| assert!(view.pause_count <= 2));
                aio::context(0).poll(false);
            });
            if turn.is_multiple_of(64) {
                let section = on(0, || crate::block::graph::drain::drained(node)).unwrap();
                assert!(!see(job).busy);
                let made = driver.made();
                on(0, || {
                    assert_eq!(driver.made(), made);
                    drop(section);
                });
            }
        }
    });
    on(0, || job.cancel(true)).unwrap();
    assert_eq!(over(&rig, job), CANCELLED);
    driver.was_right();
    rig.finish();
}

/// Members in two contexts end while the main loop holds its own lock and waits for something else.
#[test]
fn job_15_members_are_waited_for_without_a_lock() {
    let mut rig = rig(3);
    let nodes = [leaf(&mut rig).1, leaf(&mut rig).1];
    for (node, core) in nodes.into_iter().zip([1, 2]) {
        move_to(&rig, node, core).unwrap();
    }
    let transaction = on(0, job::Transaction::new).unwrap();
    let options = Options {
        transaction: Some(&transaction),
        ..KEPT
    };
    let drivers = [(); 2].map(|()| test_job(Pace::Wait, NO_END).leak());
    let jobs = [0, 1].map(|n| run(drivers[n], &options, &[nodes[n]]));
    on(0, || drop(transaction));
    rig.settle();
    rig.with_others(|| {
        on(0, || {
            aio::main_context().acquire();
            jobs[0].cancel(true).unwrap();
            aio::wait_while(|| jobs.iter().any(|job| job.state() != State::Concluded));
            aio::main_context().release();
        });
    });
    for (job, driver) in jobs.into_iter().zip(drivers) {
        assert_eq!(over(&rig, job), CANCELLED);
        assert_eq!(driver.asked(), [Asked::Abort, Asked::Clean(CANCELLED)]);
    }
    rig.finish();
}

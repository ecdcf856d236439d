//! QEMU's cases of jobs and transactions, by name (tests.md §2.10, §2.11).

use super::graph_rig::*;
use super::jobs_rig::*;
use super::*;
use crate::block::job::{self, Job, JobError, Options, State, Transaction, find};

/// A driver that becomes ready and ends when told.
fn cancel_job() -> TestJob {
    TestJob {
        ready_end: true,
        ..test_job(Pace::Wait, NO_END)
    }
}

/// `/blockjob/ids`
#[test]
fn blockjob_ids() {
    let mut rig = rig(2);
    let (_, node) = leaf(&mut rig);
    let driver = || test_job(Pace::Wait, NO_END).leak();
    let create = |id, default_id| {
        let options = Options {
            id,
            default_id,
            ..Options::DEFAULT
        };
        on(0, || job::create(driver(), &options))
    };
    assert_eq!(create(None, ""), Err(JobError::NoId));
    for bad in [
        "0x", "", "  ", " a", "123", "_id", "-id", ".id", "#id", "a b", "a#b",
    ] {
        assert_eq!(create(Some(bad), ""), Err(JobError::BadId), "{bad:?}");
    }
    let long = "x".repeat(32);
    assert_eq!(create(Some(&long), ""), Err(JobError::BadId));
    // Two on one node.
    let first = create(Some("id0"), "").unwrap();
    let second = create(Some("id1-a.b_C"), "").unwrap();
    for job in [first, second] {
        on(0, || job.open("source", node, READER)).unwrap();
    }
    assert_eq!(create(Some("id0"), ""), Err(JobError::IdInUse));
    // Free again as soon as the first has failed, before its backend is gone.
    on(0, || first.give_up());
    assert!(!first.exists());
    let again = create(Some("id0"), "").unwrap();
    // Of what it works on, for want of another.
    let named = create(None, "drive0").unwrap();
    assert_eq!(named.id(), "drive0");
    assert_eq!(create(None, "drive0"), Err(JobError::IdInUse));
    assert_eq!(find("drive0"), Some(named));
    for job in [second, again, named] {
        on(0, || job.give_up());
    }
    rig.settle();
    assert_eq!(find("drive0"), None);
    rig.finish();
}

const READER: crate::block::graph::Permissions = crate::block::graph::Permissions::READER;

/// A job of which all is done by hand, at home on core 1, brought to that state.
fn in_state(rig: &mut Rig, state: State) -> (Job, &'static TestJob) {
    let (_, node) = leaf(rig);
    move_to(rig, node, 1).unwrap();
    let driver = cancel_job().leak();
    let job = make(driver, &MANUAL, &[node]);
    assert_eq!(job.state(), State::Created);
    if state == State::Created {
        return (job, driver);
    }
    on(0, || job.start()).unwrap();
    assert_eq!(job.state(), State::Running);
    rig.settle();
    assert_eq!(job.state(), State::Running);
    if state == State::Paused {
        on(0, || job.pause()).unwrap();
        assert_eq!(job.state(), State::Running);
        rig.settle();
        assert_eq!(job.state(), State::Paused);
    }
    if matches!(state, State::Running | State::Paused) {
        return (job, driver);
    }
    driver.make_ready.store(true, Ordering::SeqCst);
    on(0, || job.wake());
    rig.settle();
    assert_eq!(job.state(), State::Ready);
    if state == State::Standby {
        on(0, || job.pause()).unwrap();
        rig.settle();
        assert_eq!(job.state(), State::Standby);
    }
    if matches!(state, State::Ready | State::Standby) {
        return (job, driver);
    }
    on(0, || job.complete()).unwrap();
    for _ in 0..5 {
        on(1, || aio::context(1).poll(false));
    }
    // The body has ended; the main loop has not heard of it.
    assert!(!see(job).busy);
    assert_eq!(
        (job.state(), driver.asked()),
        (State::Ready, Vec::from([Asked::Complete]))
    );
    rig.settle();
    assert_eq!(job.state(), State::Pending);
    if state == State::Concluded {
        on(0, || job.finalize()).unwrap();
        rig.settle();
        assert_eq!(job.state(), State::Concluded);
    }
    (job, driver)
}

fn cancel_in(state: State) {
    let mut rig = rig(2);
    let (job, driver) = in_state(&mut rig, state);
    on(0, || job.cancel(true)).unwrap();
    rig.settle();
    match state {
        // Never started: nobody can want its result. Concluded: that was a dismissal.
        State::Created | State::Concluded => {}
        _ => assert_eq!(over(&rig, job), Err(BlockError::Cancelled)),
    }
    assert_eq!((job.state(), job.exists()), (State::Null, false));
    let asked = driver.asked();
    let abort = [Asked::Abort, Asked::Clean(Err(BlockError::Cancelled))];
    let well = [
        Asked::Complete,
        Asked::Prepare,
        Asked::Commit,
        Asked::Clean(Ok(())),
    ];
    match state {
        State::Concluded => assert_eq!(asked, well),
        State::Pending => assert_eq!(asked, [Asked::Complete, abort[0], abort[1]]),
        _ => assert_eq!(asked, abort),
    }
    driver.was_right();
    rig.finish();
}

/// `/blockjob/cancel/created`
#[test]
fn blockjob_cancel_created() {
    cancel_in(State::Created);
}

/// `/blockjob/cancel/running`
#[test]
fn blockjob_cancel_running() {
    cancel_in(State::Running);
}

/// `/blockjob/cancel/paused`
#[test]
fn blockjob_cancel_paused() {
    cancel_in(State::Paused);
}

/// `/blockjob/cancel/ready`
#[test]
fn blockjob_cancel_ready() {
    cancel_in(State::Ready);
}

/// `/blockjob/cancel/standby`
#[test]
fn blockjob_cancel_standby() {
    cancel_in(State::Standby);
}

/// `/blockjob/cancel/pending`
#[test]
fn blockjob_cancel_pending() {
    cancel_in(State::Pending);
}

/// `/blockjob/cancel/concluded`
#[test]
fn blockjob_cancel_concluded() {
    cancel_in(State::Concluded);
}

/// Jobs of one transaction, of which nobody can add to when they start.
pub(super) fn together(
    rig: &mut Rig,
    drivers: &[&'static TestJob],
    options: &Options<'_>,
) -> Vec<Job> {
    let (_, node) = leaf(rig);
    let transaction = on(0, Transaction::new).unwrap();
    let jobs: Vec<Job> = drivers
        .iter()
        .map(|driver| {
            let options = Options {
                transaction: Some(&transaction),
                ..*options
            };
            make(driver, &options, &[node])
        })
        .collect();
    on(0, || drop(transaction));
    for job in &jobs {
        on(0, || job.start()).unwrap();
    }
    jobs
}

/// Ends after `steps` turns, like that.
fn turns(steps: u64, run: Result<(), BlockError>) -> &'static TestJob {
    TestJob {
        run,
        ..test_job(Pace::Sleep, steps)
    }
    .leak()
}

const CANCELLED: Result<(), BlockError> = Err(BlockError::Cancelled);
const FAILED: Result<(), BlockError> = Err(BlockError::Io);

fn single(expected: Result<(), BlockError>) {
    let mut rig = rig(2);
    let run = if expected == FAILED { FAILED } else { Ok(()) };
    let driver = turns(1, run);
    let job = together(&mut rig, &[driver], &KEPT)[0];
    if expected == CANCELLED {
        on(0, || job.cancel(true)).unwrap();
    }
    pass(&rig, 1);
    assert_eq!(over(&rig, job), expected);
    driver.was_right();
    rig.finish();
}

/// `/single/success`
#[test]
fn blockjob_txn_single_success() {
    single(Ok(()));
}

/// `/single/failure`
#[test]
fn blockjob_txn_single_failure() {
    single(FAILED);
}

/// `/single/cancel`
#[test]
fn blockjob_txn_single_cancel() {
    single(CANCELLED);
}

fn pair_of(first: Result<(), BlockError>, second: Result<(), BlockError>) {
    for steps in [[1, 2], [2, 1], [1, 1]] {
        let mut rig = rig(2);
        let wanted = [first, second];
        let runs = wanted.map(|result| if result == FAILED { FAILED } else { Ok(()) });
        let drivers = [turns(steps[0], runs[0]), turns(steps[1], runs[1])];
        let jobs = together(&mut rig, &drivers, &KEPT);
        for (job, wanted) in jobs.iter().zip(wanted) {
            if wanted == CANCELLED {
                on(0, || job.cancel(true)).unwrap();
            }
        }
        pass(&rig, 2);
        let well = wanted == [Ok(()); 2];
        let results: Vec<_> = jobs.iter().map(|job| over(&rig, *job)).collect();
        let mut expected = wanted;
        if !well {
            for result in &mut expected {
                // What came last of two that fail by themselves may have been cancelled before.
                if result.is_ok() {
                    *result = CANCELLED;
                }
            }
        }
        for (number, result) in results.iter().enumerate() {
            let late = steps[number] > steps[1 - number];
            let allowed = *result == expected[number]
                || (late && wanted[1 - number].is_err() && *result == CANCELLED);
            assert!(allowed, "{steps:?} {wanted:?}: {results:?}");
        }
        for driver in drivers {
            assert_eq!(driver.asked().contains(&Asked::Commit), well);
            assert_eq!(driver.asked().contains(&Asked::Abort), !well);
            driver.was_right();
        }
        rig.finish();
    }
}

/// `/pair/success`
#[test]
fn blockjob_txn_pair_success() {
    pair_of(Ok(()), Ok(()));
}

/// `/pair/failure`
#[test]
fn blockjob_txn_pair_failure() {
    pair_of(FAILED, Ok(()));
    pair_of(Ok(()), FAILED);
    pair_of(FAILED, FAILED);
}

/// `/pair/cancel`
#[test]
fn blockjob_txn_pair_cancel() {
    pair_of(CANCELLED, Ok(()));
    pair_of(Ok(()), CANCELLED);
}

/// `/pair/fail-cancel-race`: the second ends between the cancel of the first and its kick.
#[test]
fn blockjob_txn_pair_fail_cancel_race() {
    let mut rig = rig(2);
    let drivers = [turns(1, Ok(())), test_job(Pace::Wait, 1).leak()];
    let jobs = together(&mut rig, &drivers, &KEPT);
    rig.settle();
    on(0, || {
        jobs[0].cancel(true).unwrap();
        jobs[1].wake();
    });
    pass(&rig, 1);
    for job in jobs {
        assert_eq!(over(&rig, job), CANCELLED);
    }
    rig.finish();
}

//! Jobs: what users ask of them, what their bodies await.

use super::graph_rig::*;
use super::jobs_rig::*;
use super::*;
use crate::block::job::{Policy, State};

#[test]
fn a_job_runs_ends_and_is_gone() {
    let mut rig = rig(2);
    let (_, node) = leaf(&mut rig);
    let driver = test_job(Pace::Sleep, 3).leak();
    let job = run(driver, &crate::block::job::Options::DEFAULT, &[node]);
    rig.settle();
    assert_eq!((job.state(), driver.made()), (State::Running, 0));
    pass(&rig, 3);
    assert_eq!(driver.made(), 3);
    assert!(!job.exists());
    let clean = Asked::Clean(Ok(()));
    assert_eq!(driver.asked(), [Asked::Prepare, Asked::Commit, clean]);
    driver.was_right();
    rig.finish();
}

#[test]
fn errors_are_reported_ignored_or_stop_the_job() {
    for policy in [Policy::Report, Policy::Ignore, Policy::Stop] {
        let mut rig = rig(2);
        let (leaf, node) = leaf(&mut rig);
        leaf.set_holding(true);
        let driver = test_job(Pace::Read, 2).leak();
        let options = crate::block::job::Options {
            on_source_error: policy,
            ..KEPT
        };
        let job = run(driver, &options, &[node]);
        rig.settle();
        on(0, || leaf.let_go(Err(BlockError::Io)));
        rig.settle();
        assert_eq!(see(job).errors, [1, 0]);
        match policy {
            Policy::Report => assert_eq!(over(&rig, job), Err(BlockError::Io)),
            Policy::Ignore => {
                assert_eq!((driver.made(), job.state()), (1, State::Running));
            }
            Policy::Stop => {
                assert_eq!((driver.made(), job.state()), (0, State::Paused));
                assert!(see(job).user_paused);
                on(0, || job.resume()).unwrap();
            }
        }
        while job.exists() {
            rig.settle();
            if leaf.held() == 0 {
                assert_eq!(over(&rig, job), Ok(()));
                assert_eq!(driver.made(), 2);
                break;
            }
            on(0, || leaf.let_go(Ok(())));
        }
        driver.was_right();
        rig.finish();
    }
}

//! The rules of jobs, JOB-1 to JOB-6, JOB-9, JOB-13: pauses, busy or not, sleeps, moves.

use super::graph_rig::*;
use super::jobs_rig::*;
use super::*;
use crate::block::job::{JobError, State, Verb};

const MS: u64 = 1_000_000;

#[test]
fn job_1_pauses_are_counted_and_a_user_has_one() {
    let mut rig = rig(2);
    let (_, node) = leaf(&mut rig);
    let driver = test_job(Pace::Sleep, NO_END).leak();
    let job = run(driver, &KEPT, &[node]);
    rig.settle();
    assert_eq!(on(0, || job.resume()), Err(JobError::NotPaused));
    Section::Node(node).begin();
    on(0, || job.pause()).unwrap();
    assert_eq!(on(0, || job.pause()), Err(JobError::AlreadyPaused));
    Section::All.begin();
    rig.settle();
    let seen = see(job);
    assert_eq!((seen.pause_count, seen.user_paused), (2, true));
    assert_eq!(seen.state, State::Paused);
    // None of them alone lets it go.
    Section::Node(node).end();
    pass(&rig, 1);
    assert_eq!(see(job).pause_count, 2);
    on(0, || job.resume()).unwrap();
    assert_eq!(on(0, || job.resume()), Err(JobError::NotPaused));
    pass(&rig, 1);
    assert_eq!((see(job).pause_count, job.state()), (1, State::Paused));
    assert_eq!(driver.made(), 0);
    Section::All.end();
    pass(&rig, 2);
    assert_eq!((see(job).pause_count, job.state()), (0, State::Running));
    assert!(driver.made() > 0);
    on(0, || job.cancel(true)).unwrap();
    assert_eq!(over(&rig, job), Err(BlockError::Cancelled));
    rig.finish();
}

#[test]
fn job_2_stops_at_pause_points_only_and_begins_with_one() {
    let mut rig = rig(2);
    let (_, node) = leaf(&mut rig);
    move_to(&rig, node, 1).unwrap();
    let driver = test_job(Pace::Busy, NO_END).leak();
    let job = make(driver, &KEPT, &[node]);
    // Paused before its first instruction.
    on(0, || job.pause()).unwrap();
    assert_eq!(job.state(), State::Created);
    on(0, || job.start()).unwrap();
    driver.make_ready.store(true, Ordering::SeqCst);
    pass(&rig, 2);
    assert_eq!((job.state(), driver.made()), (State::Paused, 0));
    on(0, || job.resume()).unwrap();
    rig.settle();
    assert_eq!(job.state(), State::Ready);
    // In the middle of a step it goes on to the next pause point.
    on(0, || job.pause()).unwrap();
    rig.settle();
    assert_eq!((job.state(), driver.made()), (State::Ready, 0));
    pass(&rig, 1);
    assert_eq!((job.state(), driver.made()), (State::Standby, 1));
    pass(&rig, 3);
    assert_eq!((job.state(), driver.made()), (State::Standby, 1));
    on(0, || job.resume()).unwrap();
    pass(&rig, 1);
    assert_eq!((job.state(), driver.made()), (State::Ready, 2));
    on(0, || job.cancel(true)).unwrap();
    pass(&rig, 1);
    assert_eq!(over(&rig, job), Err(BlockError::Cancelled));
    driver.was_right();
    rig.finish();
}

#[test]
fn job_2_one_that_is_started_in_a_section_stands_at_once() {
    let mut rig = rig(2);
    let (_, node) = leaf(&mut rig);
    move_to(&rig, node, 1).unwrap();
    let driver = test_job(Pace::Busy, NO_END).leak();
    Section::Node(node).begin();
    let job = make(driver, &KEPT, &[node]);
    rig.settle();
    quiets();
    assert!(on(0, || crate::block::graph::drain::is_quiet(node)));
    on(0, || job.start()).unwrap();
    on(0, || job.wake());
    assert!(!see(job).busy, "busy in a quiet node");
    rig.settle();
    assert_eq!((job.state(), driver.made()), (State::Paused, 0));
    Section::Node(node).end();
    pass(&rig, 1);
    assert_eq!((job.state(), driver.made()), (State::Running, 1));
    on(0, || job.cancel(true)).unwrap();
    pass(&rig, 1);
    assert_eq!(over(&rig, job), Err(BlockError::Cancelled));
    // The reason to pause is gone before the body has run at all.
    let job = make(driver, &KEPT, &[node]);
    on(0, || {
        job.pause().unwrap();
        job.start().unwrap();
        job.resume().unwrap();
    });
    assert!(see(job).busy);
    rig.settle();
    assert_eq!((job.state(), see(job).pause_count), (State::Running, 0));
    on(0, || job.cancel(true)).unwrap();
    pass(&rig, 1);
    assert_eq!(over(&rig, job), Err(BlockError::Cancelled));
    driver.was_right();
    rig.finish();
}

#[test]
fn job_3_a_job_that_sleeps_or_yields_is_quiet_one_at_work_is_not() {
    for (pace, busy) in [
        (Pace::Busy, true),
        (Pace::Sleep, false),
        (Pace::Wait, false),
    ] {
        let mut rig = rig(2);
        let (_, node) = leaf(&mut rig);
        move_to(&rig, node, 1).unwrap();
        let driver = test_job(pace, NO_END).leak();
        let job = run(driver, &KEPT, &[node]);
        rig.settle();
        quiets();
        assert_eq!(see(job).busy, busy);
        Section::Node(node).begin();
        rig.settle();
        assert_eq!(quiets(), usize::from(!busy));
        // Whoever enters one that is not busy enters a pause point first.
        let made = driver.made();
        on(1, || job.wake());
        rig.settle();
        assert_eq!(job.state() == State::Paused, !busy);
        assert!(!see(job).busy || busy);
        if busy {
            pass(&rig, 1);
            assert_eq!(quiets(), 1);
        } else {
            pass(&rig, 2);
            assert_eq!(driver.made(), made, "it works in a drained section");
        }
        Section::Node(node).end();
        on(0, || job.cancel(true)).unwrap();
        pass(&rig, 1);
        assert_eq!(over(&rig, job), Err(BlockError::Cancelled));
        rig.finish();
    }
}

#[test]
fn job_3_requests_of_a_job_pass_while_the_section_waits_for_it() {
    let mut rig = rig(2);
    let (leaf, node) = leaf(&mut rig);
    leaf.set_holding(true);
    let driver = test_job(Pace::Read, NO_END).leak();
    let job = run(driver, &KEPT, &[node]);
    rig.settle();
    quiets();
    Section::Node(node).begin();
    rig.settle();
    assert_eq!((quiets(), leaf.held()), (0, 1));
    on(0, || leaf.let_go(Ok(())));
    rig.settle();
    assert_eq!((quiets(), leaf.held(), driver.made()), (1, 0, 1));
    assert_eq!(job.state(), State::Paused);
    Section::Node(node).end();
    rig.settle();
    assert_eq!(leaf.held(), 1);
    on(0, || job.cancel(true)).unwrap();
    on(0, || leaf.let_go(Ok(())));
    assert_eq!(over(&rig, job), Err(BlockError::Cancelled));
    rig.finish();
}

#[test]
fn job_4_an_early_enter_ends_the_sleep_and_its_timer() {
    let mut rig = rig(2);
    let (_, node) = leaf(&mut rig);
    let driver = test_job(Pace::Sleep, NO_END).leak();
    let job = make(driver, &KEPT, &[node]);
    // Before the start nobody enters it.
    on(0, || job.wake());
    rig.settle();
    assert_eq!(job.state(), State::Created);
    on(0, || job.start()).unwrap();
    rig.settle();
    assert!(see(job).sleeping);
    on(1, || job.wake());
    rig.settle();
    assert_eq!(driver.made(), 1);
    // The next sleep has a deadline of its own.
    host::clock::advance(MS / 2);
    on(1, || job.wake());
    rig.settle();
    assert_eq!(driver.made(), 2);
    host::clock::advance(MS / 2);
    rig.settle();
    assert_eq!(driver.made(), 2, "the timer of an ended sleep woke it");
    host::clock::advance(MS / 2);
    rig.settle();
    assert_eq!(driver.made(), 3);
    on(0, || job.cancel(true)).unwrap();
    assert_eq!(over(&rig, job), Err(BlockError::Cancelled));
    rig.finish();
}

#[test]
fn job_4_nobody_enters_a_job_that_is_busy_or_ended() {
    let mut rig = rig(2);
    let (_, node) = leaf(&mut rig);
    let driver = test_job(Pace::Busy, 1).leak();
    driver.holding.store(true, Ordering::SeqCst);
    let job = run(driver, &KEPT, &[node]);
    rig.settle();
    on(1, || job.wake());
    rig.settle();
    assert_eq!((driver.made(), see(job).busy), (0, true));
    pass(&rig, 1);
    assert_eq!((driver.made(), job.state()), (1, State::Pending));
    on(1, || job.wake());
    rig.settle();
    assert!(!see(job).busy);
    driver.holding.store(false, Ordering::SeqCst);
    driver.let_go();
    assert_eq!(over(&rig, job), Ok(()));
    rig.finish();
}

#[test]
fn job_5_a_pause_does_not_break_the_rate_and_only_a_looser_limit_wakes() {
    let mut rig = rig(2);
    let (_, node) = leaf(&mut rig);
    let driver = RateJob::leak();
    let job = on(0, || {
        let options = crate::block::job::Options {
            id: Some("rate"),
            auto_dismiss: false,
            speed: 100_000,
            ..crate::block::job::Options::DEFAULT
        };
        let job = crate::block::job::create(driver, &options).unwrap();
        job.open("source", node, crate::block::graph::Permissions::READER)
            .unwrap();
        job.start().unwrap();
        job
    });
    rig.settle();
    // The level may stand above its bucket once: of 10,000 bytes, two chunks of 10,000.
    let booked = || driver.booked.load(Ordering::SeqCst);
    assert_eq!((booked(), see(job).sleeping), (2, true));
    // A pause on the way: it sleeps again, to the same moment.
    host::clock::advance(50 * MS);
    on(0, || job.pause()).unwrap();
    rig.settle();
    assert_eq!(job.state(), State::Paused);
    on(0, || job.resume()).unwrap();
    rig.settle();
    assert_eq!((booked(), see(job).sleeping), (2, true));
    // A tighter limit does not wake it, a looser one does.
    on(0, || job.set_speed(50_000)).unwrap();
    assert!(see(job).sleeping && !see(job).busy);
    rig.settle();
    on(0, || job.set_speed(50_000)).unwrap();
    assert!(see(job).sleeping && !see(job).busy);
    on(0, || job.set_speed(60_000)).unwrap();
    assert!(!see(job).sleeping && see(job).busy);
    rig.settle();
    assert_eq!((booked(), see(job).sleeping), (2, true));
    // No limit: it runs to its end.
    on(0, || job.set_speed(0)).unwrap();
    assert_eq!(over(&rig, job), Ok(()));
    assert_eq!(booked(), 10);
    rig.finish();
}

#[test]
fn job_6_drains_count_and_wait_until_it_stands() {
    let mut rig = rig(3);
    let nodes = [leaf(&mut rig).1, leaf(&mut rig).1];
    for node in nodes {
        move_to(&rig, node, 2).unwrap();
    }
    let driver = test_job(Pace::Busy, NO_END).leak();
    let job = run(driver, &KEPT, &nodes);
    rig.settle();
    quiets();
    for (section, count) in [
        (Section::All, 2),
        (Section::Node(nodes[0]), 1),
        (Section::Node(nodes[1]), 1),
    ] {
        // Twice: the second changes nothing, no edge is drained anew.
        section.begin();
        section.begin();
        rig.settle();
        let seen = see(job);
        assert_eq!((seen.pause_count, seen.busy, quiets()), (count, true, 0));
        pass(&rig, 1);
        let seen = see(job);
        assert_eq!((seen.pause_count, seen.busy, quiets()), (count, false, 2));
        assert_eq!(seen.state, State::Paused);
        section.end();
        assert_eq!(see(job).pause_count, count);
        section.end();
        rig.settle();
        assert_eq!((see(job).pause_count, job.state()), (0, State::Running));
    }
    on(0, || job.cancel(true)).unwrap();
    pass(&rig, 1);
    assert_eq!(over(&rig, job), Err(BlockError::Cancelled));
    driver.was_right();
    rig.finish();
}

#[test]
fn job_9_a_job_follows_its_node_at_each_kind_of_stop() {
    for pace in [Pace::Busy, Pace::Sleep, Pace::Wait, Pace::Read] {
        let mut rig = rig(3);
        let (leaf, node) = leaf(&mut rig);
        leaf.set_holding(true);
        let driver = test_job(pace, 80).leak();
        let job = run(driver, &KEPT, &[node]);
        for turn in 0..12 {
            on(0, || job.wake());
            outcomes();
            on(0, || {
                crate::block::graph::change::move_begin(node, [1, 2, 0][turn % 3], &outcome, 0)
            })
            .unwrap();
            for _ in 0..3 {
                on(0, || leaf.let_go(Ok(())));
                pass(&rig, 1);
                on(1, || job.wake());
            }
            assert_eq!(outcomes().pop().unwrap().1, Ok(()));
            driver.was_right();
        }
        assert!(job.state() == State::Running && driver.made() >= 12);
        for _ in 0..100 {
            on(1, || job.wake());
            on(0, || leaf.let_go(Ok(())));
            pass(&rig, 1);
        }
        assert_eq!((over(&rig, job), driver.made()), (Ok(()), 80));
        driver.was_right();
        rig.finish();
    }
}

/// A writer of the graph is let in while a job stands at its pause point, whichever way the job came there.
#[test]
fn job_13_a_paused_job_keeps_nobody_from_changing_the_graph() {
    let mut rig = rig(3);
    let (_, below) = leaf(&mut rig);
    let (_, node) = filter(&mut rig, &[below]);
    let (_, other) = leaf(&mut rig);
    let driver = test_job(Pace::Sleep, NO_END).leak();
    let job = run(driver, &KEPT, &[node]);
    rig.settle();
    on(0, || job.pause()).unwrap();
    rig.settle();
    assert_eq!(job.state(), State::Paused);
    outcomes();
    on(0, || {
        crate::block::graph::change::replace_begin(node, 0, other, &outcome, 0).unwrap();
    });
    // And a coroutine that drains, which pins the node first.
    quiets();
    Section::Node(node).begin_in_coroutine(2);
    rig.settle();
    assert_eq!(outcomes().pop().unwrap().1, Ok(()));
    assert_eq!(quiets(), 1);
    Section::end_coroutines();
    on(0, || job.resume()).unwrap();
    rig.settle();
    assert_eq!(job.state(), State::Running);
    on(0, || job.cancel(true)).unwrap();
    assert_eq!(over(&rig, job), Err(BlockError::Cancelled));
    rig.finish();
}

#[test]
fn verbs_are_refused_in_other_states() {
    let mut rig = rig(2);
    let (_, node) = leaf(&mut rig);
    let driver = test_job(Pace::Wait, NO_END).leak();
    let job = run(driver, &MANUAL, &[node]);
    rig.settle();
    for (verb, result) in [
        (Verb::Complete, on(0, || job.complete())),
        (Verb::Finalize, on(0, || job.finalize())),
        (Verb::Dismiss, on(0, || job.dismiss())),
    ] {
        assert_eq!(result, Err(JobError::State(verb, State::Running)));
    }
    driver.make_ready.store(true, Ordering::SeqCst);
    on(0, || job.wake());
    rig.settle();
    // It has no end that could be asked for.
    assert_eq!(on(0, || job.complete()), Err(JobError::CannotComplete));
    driver.end.store(true, Ordering::SeqCst);
    on(0, || job.wake());
    rig.settle();
    assert_eq!(job.state(), State::Pending);
    for (verb, result) in [
        (Verb::Pause, on(0, || job.pause())),
        (Verb::Resume, on(0, || job.resume())),
        (Verb::SetSpeed, on(0, || job.set_speed(1))),
        (Verb::Complete, on(0, || job.complete())),
        (Verb::Dismiss, on(0, || job.dismiss())),
    ] {
        assert_eq!(result, Err(JobError::State(verb, State::Pending)));
    }
    on(0, || job.finalize()).unwrap();
    assert_eq!(on(0, || job.finalize()), Err(JobError::Ending));
    rig.settle();
    let result = on(0, || job.finalize());
    assert_eq!(
        result,
        Err(JobError::State(Verb::Finalize, State::Concluded))
    );
    assert_eq!(on(1, || job.dismiss()), Err(JobError::NotMainLoop));
    assert_eq!(over(&rig, job), Ok(()));
    assert_eq!(on(0, || job.pause()), Err(JobError::NoSuchJob));
    rig.finish();
}

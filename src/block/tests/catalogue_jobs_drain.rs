//! QEMU's cases of jobs in drained sections and moves, by name (tests.md §2.8, §2.9, §2.12).

use super::graph_rig::*;
use super::jobs_rig::*;
use super::*;
use crate::block::graph::change::{move_begin, remove_begin};
use crate::block::graph::{self, Refusal};
use crate::block::job::{self, Job, State};
use crate::block::testing::TestNode;

const FAILED: Result<(), BlockError> = Err(BlockError::Io);

/// Where a job fails.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fails {
    Nowhere,
    Run,
    Prepare,
}

/// A job on `source`, of overlay → source → backing, and on a target.
struct Fixture {
    rig: Rig,
    backing: NodeId,
    source: NodeId,
    target: NodeId,
    driver: &'static TestJob,
    job: Job,
}

fn fixture(core: CoreId, fails: Fails) -> Fixture {
    let mut rig = rig(3);
    let backing = leaf(&mut rig).1;
    let source = filter(&mut rig, &[backing]).1;
    let overlay = filter(&mut rig, &[source]).1;
    rig.backend(overlay);
    let target = leaf(&mut rig).1;
    for node in [source, target] {
        move_to(&rig, node, core).unwrap();
    }
    let driver = TestJob {
        ready_end: true,
        run: if fails == Fails::Run { FAILED } else { Ok(()) },
        prepare: if fails == Fails::Prepare {
            FAILED
        } else {
            Ok(())
        },
        ..test_job(Pace::Busy, NO_END)
    }
    .leak();
    driver.make_ready.store(true, Ordering::SeqCst);
    *driver.thorough.lock().unwrap() = Some(source);
    let job = run(driver, &KEPT, &[source, target]);
    rig.settle();
    quiets();
    Fixture {
        rig,
        backing,
        source,
        target,
        driver,
        job,
    }
}

fn blockjob(everything: bool, core: CoreId, fails: Fails) {
    let f = fixture(core, fails);
    for node in [f.source, f.backing, f.target] {
        let before = see(f.job);
        assert_eq!(
            (before.pause_count, before.busy, before.core),
            (0, true, core)
        );
        assert_eq!(before.state, State::Ready);
        let (section, count) = if everything {
            (Section::All, 2)
        } else {
            (Section::Node(node), 1)
        };
        section.begin();
        f.rig.settle();
        // Not before it has come to a pause point.
        assert_eq!((quiets(), see(f.job).pause_count), (0, count));
        pass(&f.rig, 1);
        let inside = see(f.job);
        assert_eq!(quiets(), 1);
        assert_eq!((inside.pause_count, inside.busy), (count, false));
        assert_eq!(inside.state, State::Standby);
        let steps = f.driver.made();
        pass(&f.rig, 3);
        assert_eq!(f.driver.made(), steps, "it works in a drained section");
        section.end();
        f.rig.settle();
        let after = see(f.job);
        assert_eq!((after.pause_count, after.busy), (0, true));
        assert_eq!(after.state, State::Ready);
        pass(&f.rig, 1);
        assert_eq!(f.driver.made(), steps + 1);
    }
    on(0, || f.job.complete()).unwrap();
    pass(&f.rig, 1);
    let result = if fails == Fails::Nowhere {
        Ok(())
    } else {
        FAILED
    };
    assert_eq!(over(&f.rig, f.job), result);
    let (complete, prepare) = (Asked::Complete, Asked::Prepare);
    let clean = Asked::Clean(result);
    let asked: &[Asked] = match fails {
        Fails::Nowhere => &[complete, prepare, Asked::Commit, clean],
        Fails::Run => &[complete, Asked::Abort, clean],
        Fails::Prepare => &[complete, prepare, Asked::Abort, clean],
    };
    assert_eq!(f.driver.asked(), asked);
    f.driver.was_right();
    f.rig.finish();
}

/// `/bdrv-drain/blockjob/drain_all`
#[test]
fn bdrv_drain_blockjob_drain_all() {
    blockjob(true, 0, Fails::Nowhere);
}

/// `/bdrv-drain/blockjob/drain`
#[test]
fn bdrv_drain_blockjob_drain() {
    blockjob(false, 0, Fails::Nowhere);
}

/// `/bdrv-drain/blockjob/error/drain_all`
#[test]
fn bdrv_drain_blockjob_error_drain_all() {
    blockjob(true, 0, Fails::Run);
    blockjob(true, 0, Fails::Prepare);
}

/// `/bdrv-drain/blockjob/error/drain`
#[test]
fn bdrv_drain_blockjob_error_drain() {
    blockjob(false, 0, Fails::Run);
    blockjob(false, 0, Fails::Prepare);
}

/// `/bdrv-drain/blockjob/iothread/drain_all`
#[test]
fn bdrv_drain_blockjob_iothread_drain_all() {
    blockjob(true, 2, Fails::Nowhere);
}

/// `/bdrv-drain/blockjob/iothread/drain`
#[test]
fn bdrv_drain_blockjob_iothread_drain() {
    blockjob(false, 2, Fails::Nowhere);
}

/// `/bdrv-drain/blockjob/iothread/error/drain_all`
#[test]
fn bdrv_drain_blockjob_iothread_error_drain_all() {
    blockjob(true, 1, Fails::Run);
    blockjob(true, 1, Fails::Prepare);
}

/// `/bdrv-drain/blockjob/iothread/error/drain`
#[test]
fn bdrv_drain_blockjob_iothread_error_drain() {
    blockjob(false, 1, Fails::Run);
    blockjob(false, 1, Fails::Prepare);
}

static DROPPED: AtomicUsize = AtomicUsize::new(0);

/// Polls twice as soon as the node is gone: what the job does then finds the graph whole.
fn polls_twice(_: usize, result: Result<(), Refusal>) {
    result.unwrap();
    for _ in 0..2 {
        aio::main_context().poll(false);
    }
    DROPPED.fetch_add(1, Ordering::SeqCst);
}

/// `/bdrv-drain/bdrv_drop_intermediate/poll`
#[test]
fn bdrv_drain_drop_intermediate_poll() {
    let mut rig = rig(2);
    let base = leaf(&mut rig).1;
    let middle = graph_filter(&[base]);
    let top = filter(&mut rig, &[middle]).1;
    let own = filter(&mut rig, &[middle]).1;
    rig.backend(top);
    let driver = test_job(Pace::Busy, NO_END).leak();
    let job = run(driver, &KEPT, &[own]);
    rig.settle();
    driver.end.store(true, Ordering::SeqCst);
    on(0, || remove_begin(middle, &polls_twice, 0)).unwrap();
    rig.settle();
    // The job is busy, so nothing has changed, and its node is held.
    assert!(on(0, || graph::delete(own)).is_err());
    assert_eq!(graph::children(own)[0].1, middle);
    let before = DROPPED.load(Ordering::SeqCst);
    pass(&rig, 1);
    assert_eq!(DROPPED.load(Ordering::SeqCst), before + 1);
    assert_eq!(graph::children(own)[0].1, base);
    assert_eq!(over(&rig, job), Ok(()));
    rig.finish();
}

/// A filter that the test takes away.
fn graph_filter(children: &[NodeId]) -> NodeId {
    let node = TestNode::filter(children.len());
    on(0, || node.add(&unique("middle"), children)).unwrap()
}

/// Moves a node whose job is busy for a while.
fn move_busy(rig: &Rig, node: NodeId, core: CoreId) {
    outcomes();
    on(0, || move_begin(node, core, &outcome, 0)).unwrap();
    rig.settle();
    assert!(outcomes().is_empty(), "moved while the job was busy");
    pass(rig, 1);
    assert_eq!(outcomes().pop().unwrap().1, Ok(()));
}

/// `/attach/blockjob`
#[test]
fn attach_blockjob() {
    let mut rig = rig(3);
    let (_, node) = leaf(&mut rig);
    rig.backend(node);
    let driver = TestJob {
        ready_end: true,
        ..test_job(Pace::Busy, NO_END)
    }
    .leak();
    driver.make_ready.store(true, Ordering::SeqCst);
    let job = run(driver, &KEPT, &[node]);
    pass(&rig, 1);
    for core in [1, 0, 2, 1] {
        let before = driver.made();
        move_busy(&rig, node, core);
        assert_eq!(see(job).core, core);
        pass(&rig, 2);
        assert!(driver.made() >= before + 2, "no progress on core {core}");
        driver.was_right();
    }
    on(0, || job.complete()).unwrap();
    pass(&rig, 1);
    assert_eq!(over(&rig, job), Ok(()));
    let clean = Asked::Clean(Ok(()));
    let asked = [Asked::Complete, Asked::Prepare, Asked::Commit, clean];
    assert_eq!(driver.asked(), asked);
    driver.was_right();
    rig.finish();
}

/// `iothreads-stream`: two jobs in one context, and somebody who looks at them all the time.
#[test]
fn iotest_iothreads_stream() {
    let mut rig = rig(2);
    let nodes = [leaf(&mut rig).1, leaf(&mut rig).1];
    for node in nodes {
        move_to(&rig, node, 1).unwrap();
    }
    let drivers = [(); 2].map(|()| test_job(Pace::Read, 50).leak());
    let jobs = [0, 1].map(|n| run(drivers[n], &KEPT, &[nodes[n]]));
    let mut looks = 0;
    while !jobs.iter().all(|job| job.state() == State::Concluded) {
        on(0, || job::for_each(|_| looks += 1));
        for core in 0..crate::config::MAX_CORES {
            on(core, || aio::context(core).poll(false));
        }
    }
    assert!(looks > 50, "{looks}");
    for (job, driver) in jobs.into_iter().zip(drivers) {
        assert_eq!((over(&rig, job), driver.made()), (Ok(()), 50));
        driver.was_right();
    }
    rig.finish();
}

/// `iothreads-create`: a job on a node in another context is made and started at once.
#[test]
fn iotest_iothreads_create_job() {
    let mut rig = rig(2);
    let (_, node) = leaf(&mut rig);
    move_to(&rig, node, 1).unwrap();
    let driver = test_job(Pace::Sleep, 1).leak();
    let job = run(driver, &KEPT, &[node]);
    assert_eq!((job.state(), see(job).core), (State::Running, 1));
    pass(&rig, 1);
    assert_eq!(over(&rig, job), Ok(()));
    rig.finish();
}

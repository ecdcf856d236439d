//! Jobs: what users ask of them, what their bodies await.

use super::graph_rig::*;
use super::jobs_rig::*;
use super::*;
use crate::block::io;
use crate::block::job::{JobError, Policy, Side, State, copier};
use crate::config::{COPY_CHUNK, COPY_WINDOW};

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

#[test]
fn a_cancelled_job_is_not_stopped_by_an_error_or_a_user() {
    let mut rig = rig(2);
    let (leaf, node) = leaf(&mut rig);
    leaf.set_holding(true);
    let driver = test_job(Pace::Read, 2).leak();
    let options = crate::block::job::Options {
        on_source_error: Policy::Stop,
        ..KEPT
    };
    let job = run(driver, &options, &[node]);
    rig.settle();
    on(0, || job.cancel(true)).unwrap();
    assert_eq!(on(0, || job.pause()), Err(JobError::Ending));
    on(0, || leaf.let_go(Err(BlockError::Io)));
    assert_eq!(over(&rig, job), Err(BlockError::Io));
    rig.finish();
}

const CHUNK: u64 = COPY_CHUNK as u64;

fn by(chunk: u64) -> CopyJob {
    CopyJob {
        chunk,
        pausing: false,
        copied: Mutex::new(Vec::new()),
    }
}

/// Two disks of 1 MiB, the first with something on it.
fn disks(rig: &mut Rig) -> [Fixture; 2] {
    let source = rig.disk(with_everything(1 << 20));
    let target = rig.disk(with_everything(1 << 20));
    for offset in (0..1 << 20).step_by(3 << 16) {
        submit(0, source.backend, write(offset, 4096, 0x5a), 0);
    }
    rig.run(source.device);
    done();
    [source, target]
}

#[test]
fn a_copier_keeps_its_window_full_and_writes_zeroes_as_such() {
    let mut rig = rig(2);
    let [source, target] = disks(&mut rig);
    target.device.clear_log();
    let (job, driver) = copy(by(CHUNK), source.disk.node(), target.disk.node());
    rig.settle();
    assert_eq!(source.device.held(), COPY_WINDOW);
    // Each chunk goes on by itself; what comes back makes room.
    on(0, || source.device.finish(3));
    rig.settle();
    assert_eq!(
        (source.device.held(), target.device.held()),
        (COPY_WINDOW - 1, 1)
    );
    on(0, || target.device.finish(0));
    rig.settle();
    assert_eq!(
        (source.device.held(), target.device.held()),
        (COPY_WINDOW, 0)
    );
    assert_eq!((see(job).done, see(job).total), (CHUNK, 1 << 20));
    for device in [source.device, target.device] {
        device.set_automatic(true);
        on(0, || device.finish_all());
    }
    assert_eq!(over(&rig, job), Ok(()));
    assert_eq!(source.device.visible(), target.device.visible());
    let zeroes = target
        .device
        .log()
        .iter()
        .filter(|s| s.operation == Operation::WriteZeroes)
        .count();
    assert_eq!(zeroes, 10, "chunks of zeroes");
    assert_eq!(target.device.durable(), target.device.visible());
    assert_eq!(driver.copied.lock().unwrap().len(), 16);
    rig.finish();
}

#[test]
fn a_drain_waits_for_the_chunks_of_a_job_that_stands_at_a_pause_point() {
    for node in 0..2 {
        let mut rig = rig(2);
        let both = disks(&mut rig);
        let driver = CopyJob {
            pausing: true,
            ..by(CHUNK)
        };
        let (job, _) = copy(driver, both[0].disk.node(), both[1].disk.node());
        rig.settle();
        on(0, || job.pause()).unwrap();
        // One comes back; the body starts another, and stops.
        on(0, || both[0].device.finish(0));
        rig.settle();
        on(0, || both[1].device.finish(0));
        rig.settle();
        assert_eq!((job.state(), both[1].device.held()), (State::Paused, 0));
        quiets();
        let section = Section::Node(both[node].disk.node());
        section.begin();
        rig.settle();
        // All are being read; the section waits for them, also on the side that they are to be written to.
        assert_eq!(both[0].device.held(), COPY_WINDOW);
        assert_eq!(quiets(), 0, "quiet with a chunk under way");
        for _ in 0..3 {
            on(0, || both[0].device.finish_all());
            rig.settle();
            on(0, || both[1].device.finish_all());
            rig.settle();
        }
        assert_eq!((quiets(), see(job).state), (1, State::Paused));
        section.end();
        on(0, || job.resume()).unwrap();
        for fixture in both {
            fixture.device.set_automatic(true);
        }
        rig.settle();
        on(0, || both[0].device.finish_all());
        rig.settle();
        assert_eq!(over(&rig, job), Ok(()));
        assert_eq!(both[0].device.visible(), both[1].device.visible());
        rig.finish();
    }
}

#[test]
fn a_copier_says_on_which_side_a_chunk_failed() {
    for side in [Side::Source, Side::Target] {
        let mut rig = rig(2);
        let [source, target] = disks(&mut rig);
        let (job, driver) = copy(by(CHUNK), source.disk.node(), target.disk.node());
        match side {
            Side::Source => source.device.fail_next(Operation::Read, 1),
            Side::Target => target.device.fail_next(Operation::Write, 1),
        }
        for _ in 0..4 {
            rig.run(source.device);
            rig.run(target.device);
        }
        assert_eq!(
            see(job).errors,
            if side == Side::Source { [1, 0] } else { [0, 1] }
        );
        assert_eq!(over(&rig, job), Err(BlockError::Io));
        let chunks = driver.copied.lock().unwrap();
        assert_eq!(chunks.last().unwrap().side, side);
        drop(chunks);
        rig.finish();
    }
}

#[test]
fn a_future_that_is_dropped_leaves_its_request_alone() {
    let mut rig = rig(2);
    let fixture = rig.disk(with_flush(1 << 20));
    let coroutine = on(0, || {
        aio::context(0).spawn("reader", async move {
            let buffer = PAGES.alloc_contiguous(4096).expect("a page");
            let _ = io::read(fixture.backend, 0, buffer, 4096).await;
            panic!("it was cancelled");
        })
    })
    .unwrap();
    rig.settle();
    assert_eq!((fixture.device.held(), PAGES.in_use()), (1, 1));
    on(0, || coroutine.cancel());
    rig.settle();
    // The device still has the buffer, and a drain waits for it.
    assert!(coroutine.is_finished());
    assert_eq!((PAGES.in_use(), fixture.backend.in_flight()), (1, 1));
    rig.drain(fixture.backend);
    assert!(!rig.quiet(fixture.backend));
    on(0, || fixture.device.finish(0));
    rig.settle();
    assert!(rig.quiet(fixture.backend));
    assert_eq!(PAGES.in_use(), 0);
    rig.undrain(fixture.backend);
    rig.finish();
}

#[test]
fn awaited_requests_wait_for_records_and_for_places() {
    let mut rig = rig(2);
    let fixture = rig.disk(with_flush(1 << 20));
    static BACK: AtomicUsize = AtomicUsize::new(0);
    BACK.store(0, Ordering::SeqCst);
    // More than can be awaited at once, while there is hardly a record.
    let mut taken: Vec<_> = on(1, || {
        core::iter::from_fn(|| request::new(Operation::Flush, 0, 0)).collect()
    });
    let many = crate::config::IO_FUTURES + 8;
    for _ in 0..many {
        on(1, || {
            aio::context(1).spawn("flusher", async move {
                io::flush(fixture.backend).await.unwrap();
                BACK.fetch_add(1, Ordering::SeqCst);
            })
        })
        .unwrap();
    }
    rig.settle();
    assert_eq!(fixture.device.held(), 0);
    fixture.device.set_automatic(true);
    on(1, || taken.truncate(taken.len() - 1));
    rig.settle();
    assert_eq!(BACK.load(Ordering::SeqCst), many);
    fixture.device.set_automatic(false);
    on(1, || taken.clear());
    BACK.store(0, Ordering::SeqCst);
    for _ in 0..many {
        on(1, || {
            aio::context(1).spawn("reader", async move {
                let buffer = copier::buffer(512).await;
                let (buffer, result) = io::read(fixture.backend, 0, buffer, 512).await;
                drop(buffer);
                copier::buffer_is_free();
                result.unwrap();
                BACK.fetch_add(1, Ordering::SeqCst);
            })
        })
        .unwrap();
    }
    rig.settle();
    assert_eq!(fixture.device.held(), crate::config::IO_FUTURES);
    rig.run(fixture.device);
    assert_eq!(BACK.load(Ordering::SeqCst), many);
    rig.finish();
}

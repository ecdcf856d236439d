//! What the tests of jobs share: a driver that does what a test says.

use std::collections::BTreeMap;

use super::*;
use crate::aio::{AioContext, AioError, Callback, CoroutineHandle};
use crate::block::graph::{Permissions, drain};
use crate::block::io;
use crate::block::job::copier::{Chunk, Copier};
use crate::block::job::{self, Action, Job, JobDriver, JobView, Options, Side, State, Ticket};
use crate::sync::caller_levels;

/// What a driver was asked, in order, with the core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Complete,
    Prepare,
    Commit,
    Abort,
    Clean(Result<(), BlockError>),
}

/// How a body passes its time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// Busy, as with I/O, until the clock has moved on by a millisecond.
    Busy,
    /// Sleeps as long.
    Sleep,
    /// Reads a block of its first node.
    Read,
    /// Yields until it is entered.
    Wait,
}

/// A job type for tests: makes steps until it is told to end.
pub(super) struct TestJob {
    pub pace: Pace,
    /// Ends after so many steps.
    pub steps: u64,
    pub ready_end: bool,
    pub run: Result<(), BlockError>,
    pub prepare: Result<(), BlockError>,
    pub make_ready: AtomicBool,
    pub end: AtomicBool,
    /// Answers of the end are held back.
    pub holding: AtomicBool,
    pub tickets: Mutex<Vec<(Ticket, Result<(), BlockError>)>>,
    pub made: AtomicU64,
    /// On the wrong core, or with a lock.
    pub wrong: AtomicUsize,
    pub asked: Mutex<Vec<Asked>>,
    /// The end drains this node, flushes the job's first backend, and answers then.
    pub thorough: Mutex<Option<NodeId>>,
}

/// A driver that makes `steps` steps.
pub(super) fn test_job(pace: Pace, steps: u64) -> TestJob {
    TestJob {
        pace,
        steps,
        ready_end: false,
        run: Ok(()),
        prepare: Ok(()),
        make_ready: AtomicBool::new(false),
        end: AtomicBool::new(false),
        holding: AtomicBool::new(false),
        tickets: Mutex::new(Vec::new()),
        made: AtomicU64::new(0),
        wrong: AtomicUsize::new(0),
        asked: Mutex::new(Vec::new()),
        thorough: Mutex::new(None),
    }
}

/// For one that does not end by itself.
pub(super) const NO_END: u64 = u64::MAX;

impl TestJob {
    pub fn leak(self) -> &'static Self {
        Box::leak(Box::new(self))
    }

    /// Steps made.
    pub fn made(&self) -> u64 {
        self.made.load(Ordering::SeqCst)
    }

    /// What it was asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// Everything was asked on the main loop without a lock, and every step made in the job's context.
    pub fn was_right(&self) {
        assert_eq!(
            self.wrong.load(Ordering::SeqCst),
            0,
            "wrong core, or a lock"
        );
    }

    /// Answers what is held back.
    pub fn let_go(&self) -> usize {
        let tickets = core::mem::take(&mut *self.tickets.lock().unwrap());
        let count = tickets.len();
        for (ticket, result) in tickets {
            ticket.done(result);
        }
        count
    }

    fn note(&self, what: Asked) {
        if arch::current_core() != Some(0) || caller_levels() != 0 {
            self.wrong.fetch_add(1, Ordering::SeqCst);
        }
        self.asked.lock().unwrap().push(what);
    }

    fn answer(&'static self, then: Ticket, result: Result<(), BlockError>) {
        let node = *self.thorough.lock().unwrap();
        if let Some(node) = node {
            let mut enders = ENDERS.lock().unwrap();
            let place = enders
                .iter()
                .position(Option::is_none)
                .unwrap_or(enders.len());
            if place == enders.len() {
                enders.push(None);
            }
            enders[place] = Some((self, then, result, node));
            drop(enders);
            return drain::begin_no_wait(node)
                .and_then(|()| drain::when_quiet(node, Callback::new(&quiet_at_end, place)))
                .unwrap();
        }
        self.tickets.lock().unwrap().push((then, result));
        if !self.holding.load(Ordering::SeqCst) {
            self.let_go();
        }
    }

    async fn step(&self, job: Job) -> Result<(), BlockError> {
        let until_ns = arch::now_ns() + 1_000_000;
        match self.pace {
            Pace::Busy => aio::sleep_until(until_ns).await,
            Pace::Sleep => job.sleep_until(until_ns).await,
            Pace::Wait => job.wait().await,
            Pace::Read => {
                let buffer = PAGES.alloc_contiguous(512).expect("a page");
                let (buffer, result) = io::read(job.backend().unwrap(), 0, buffer, 512).await;
                drop(buffer);
                return result;
            }
        }
        Ok(())
    }

    async fn body(&'static self, job: Job) -> Result<(), BlockError> {
        while !job.is_cancelled() && !job.cancel_requested() && !job.end_wanted() {
            if arch::current_core() != Some(job.core()) {
                self.wrong.fetch_add(1, Ordering::SeqCst);
            }
            if self.make_ready.load(Ordering::SeqCst) {
                job.ready();
            }
            if self.end.load(Ordering::SeqCst) || self.made() >= self.steps {
                break;
            }
            match self.step(job).await {
                Ok(()) => {
                    self.made.fetch_add(1, Ordering::SeqCst);
                    job.progress(512);
                }
                Err(error) => match job.on_error(Side::Source, error) {
                    Action::Report => return Err(error),
                    Action::Ignore => {
                        self.made.fetch_add(1, Ordering::SeqCst);
                    }
                    Action::Retry => {}
                },
            }
            job.pause_point().await;
        }
        if arch::current_core() != Some(job.core()) {
            self.wrong.fetch_add(1, Ordering::SeqCst);
        }
        self.run
    }
}

type Ender = (&'static TestJob, Ticket, Result<(), BlockError>, NodeId);

/// Ends that drain and flush first.
static ENDERS: Mutex<Vec<Option<Ender>>> = Mutex::new(Vec::new());

fn quiet_at_end(place: usize) {
    let mut request = request::new_reserved(Operation::Flush, 0, 0).expect("a record");
    request.user[0] = place as u64;
    request.completion = &flushed_at_end;
    let job = ENDERS.lock().unwrap()[place].as_ref().unwrap().1.job();
    job.backend()
        .expect("the job's backends are there to the end")
        .submit(request);
}

fn flushed_at_end(request: Request) {
    let place = request.user[0] as usize;
    let (_, then, result, node) = ENDERS.lock().unwrap()[place].take().unwrap();
    drain::drain_end(node);
    then.done(result.and(request.result));
}

impl JobDriver for TestJob {
    fn kind(&self) -> &'static str {
        "test"
    }

    fn spawn(
        &'static self,
        job: Job,
        on: &'static AioContext,
    ) -> Result<CoroutineHandle, AioError> {
        on.spawn("test job", job.run(move || self.body(job)))
    }

    fn has_ready_end(&self) -> bool {
        self.ready_end
    }

    fn complete(&'static self, _job: Job) {
        self.note(Asked::Complete);
    }

    fn prepare(&'static self, _job: Job, then: Ticket) {
        self.note(Asked::Prepare);
        self.answer(then, self.prepare);
    }

    fn commit(&'static self, _job: Job, then: Ticket) {
        self.note(Asked::Commit);
        self.answer(then, Ok(()));
    }

    fn abort(&'static self, _job: Job, then: Ticket) {
        self.note(Asked::Abort);
        self.answer(then, Ok(()));
    }

    fn clean(&'static self, job: Job) {
        self.note(Asked::Clean(job.result()));
    }
}

/// By hand in every respect.
pub(super) const MANUAL: Options<'static> = Options {
    auto_finalize: false,
    auto_dismiss: false,
    ..Options::DEFAULT
};

/// Kept when it is over.
pub(super) const KEPT: Options<'static> = Options {
    auto_dismiss: false,
    ..Options::DEFAULT
};

/// A job, not started, with a backend on each of `nodes`.
pub(super) fn make(driver: &'static TestJob, options: &Options<'_>, nodes: &[NodeId]) -> Job {
    let name = unique("job");
    let id = options.id.unwrap_or(&name);
    on(0, || {
        let options = Options {
            id: Some(id),
            transaction: options.transaction,
            ..*options
        };
        let job = job::create(driver, &options).unwrap();
        for (number, node) in nodes.iter().enumerate() {
            let role = std::format!("n{number}");
            job.open(&role, *node, Permissions::READER).unwrap();
        }
        job
    })
}

/// The same, started.
pub(super) fn run(driver: &'static TestJob, options: &Options<'_>, nodes: &[NodeId]) -> Job {
    let job = make(driver, options, nodes);
    on(0, || job.start()).unwrap();
    job
}

/// What there is to see of it.
pub(super) fn see(job: Job) -> JobView {
    on(0, || job.view()).expect("the job is there")
}

/// Lets a millisecond pass, once or more.
pub(super) fn pass(rig: &Rig, times: usize) {
    rig.settle();
    for _ in 0..times {
        host::clock::advance(1_000_000);
        rig.settle();
    }
}

/// It has come to an end, with its result; dismissed.
pub(super) fn over(rig: &Rig, job: Job) -> Result<(), BlockError> {
    rig.settle();
    assert_eq!(job.state(), State::Concluded);
    let result = job.result();
    on(0, || job.dismiss()).unwrap();
    assert!(!job.exists());
    result
}

/// Books ten chunks of 10,000 bytes on its rate limit.
pub(super) struct RateJob {
    pub booked: AtomicUsize,
}

impl RateJob {
    pub fn leak() -> &'static Self {
        Box::leak(Box::new(Self {
            booked: AtomicUsize::new(0),
        }))
    }

    async fn body(&'static self, job: Job) -> Result<(), BlockError> {
        while self.booked.load(Ordering::SeqCst) < 10 && !job.is_cancelled() {
            job.rate_limit(10_000).await;
            self.booked.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }
}

impl JobDriver for RateJob {
    fn kind(&self) -> &'static str {
        "rate"
    }

    fn spawn(
        &'static self,
        job: Job,
        on: &'static AioContext,
    ) -> Result<CoroutineHandle, AioError> {
        on.spawn("rate job", job.run(move || self.body(job)))
    }

    fn clean(&'static self, _job: Job) {}
}

/// Copies the whole of its first node to its second, in chunks of that many bytes.
pub(super) struct CopyJob {
    pub chunk: u64,
    /// Stops at a pause point after each chunk started, with others under way.
    pub pausing: bool,
    pub copied: Mutex<Vec<Chunk>>,
}

impl CopyJob {
    async fn body(&'static self, job: Job, nodes: [&'static Backend; 2]) -> Result<(), BlockError> {
        let [source, target] = nodes;
        let copier = Copier::new(job, source, target, true);
        job.set_total(source.size());
        let mut next = 0;
        loop {
            while next < source.size() && copier.has_room() && !job.is_cancelled() {
                let len = self.chunk.min(source.size() - next);
                copier.start(next, len).await;
                next += len;
                if self.pausing {
                    job.pause_point().await;
                }
            }
            let Some(chunk) = copier.next().await else {
                return io::flush(target).await;
            };
            self.copied.lock().unwrap().push(chunk);
            if let Err(error) = chunk.result
                && job.on_error(chunk.side, error) == Action::Report
            {
                copier.settle().await;
                return Err(error);
            }
            job.progress(chunk.len);
        }
    }
}

impl JobDriver for CopyJob {
    fn kind(&self) -> &'static str {
        "copy"
    }

    fn spawn(
        &'static self,
        job: Job,
        on: &'static AioContext,
    ) -> Result<CoroutineHandle, AioError> {
        let nodes = COPIES.lock().unwrap()[&job.index()];
        on.spawn("copy job", job.run(move || self.body(job, nodes)))
    }

    fn clean(&'static self, job: Job) {
        COPIES.lock().unwrap().remove(&job.index());
    }
}

static COPIES: Mutex<BTreeMap<usize, [&'static Backend; 2]>> = Mutex::new(BTreeMap::new());

/// A job that copies `source` to `target`.
pub(super) fn copy(driver: CopyJob, source: NodeId, target: NodeId) -> (Job, &'static CopyJob) {
    let driver: &'static CopyJob = Box::leak(Box::new(driver));
    let id = unique("copy");
    let job = on(0, || {
        let options = Options {
            id: Some(&id),
            ..KEPT
        };
        let job = job::create(driver, &options).unwrap();
        let nodes = [
            job.open("source", source, Permissions::READER).unwrap(),
            job.open("target", target, Permissions::SHARED_WRITER)
                .unwrap(),
        ];
        COPIES.lock().unwrap().insert(job.index(), nodes);
        job.start().unwrap();
        job
    });
    (job, driver)
}

//! Jobs on four real cores, on nodes that clients keep busy from each of them all the time. Cases bear QEMU's names where they are
//! QEMU's.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use ironthread::aio::{self, AioContext, AioError, Callback, CoroutineHandle};
use ironthread::arch;
use ironthread::block::graph::{self, Permissions, Refusal, change, drain};
use ironthread::block::job::{self, Job, JobDriver, JobError, Options, State, Ticket, Transaction};
use ironthread::block::node::delay::{self, DelayOptions, Latencies};
use ironthread::block::node::null::{self, NullOptions};
use ironthread::block::{self, Backend, BlockError, NodeId, Operation, Request, io, request};
use ironthread::sync::{IrqLock, caller_levels};
use ironthread_target_tests::block::{run_until_looking, start_block};
use ironthread_target_tests::{argument, entry, pass, say};
use spin::Once;

entry!(main);

/// Requests that each core keeps going.
const DEPTH: usize = 4;
const FAILED: Result<(), BlockError> = Err(BlockError::Io);
const CANCELLED: Result<(), BlockError> = Err(BlockError::Cancelled);
/// Steps of a job that does not end by itself.
const NO_END: u64 = u64::MAX;

static CLIENT: Once<&'static Backend> = Once::new();
static ANSWERED: AtomicUsize = AtomicUsize::new(0);
static CHANGED: AtomicUsize = AtomicUsize::new(0);
static QUIET: AtomicUsize = AtomicUsize::new(0);

fn run_until(what: &str, done: impl FnMut() -> bool) {
    run_until_looking(200_000, what, done);
}

/// A client's request came back: the next goes.
fn again(mut request: Request) {
    assert_eq!(request.result, Ok(()));
    ANSWERED.fetch_add(1, Ordering::SeqCst);
    request.reuse(Operation::Flush, 0, 0);
    if let Some(client) = CLIENT.get() {
        client.submit(request);
    }
}

fn load(_: usize) {
    for _ in 0..DEPTH {
        let Some(mut request) = request::new(Operation::Flush, 0, 0) else {
            panic!("no request")
        };
        request.completion = &again;
        if let Some(client) = CLIENT.get() {
            client.submit(request);
        }
    }
}

/// The clients get on.
fn progress() {
    let before = ANSWERED.load(Ordering::SeqCst);
    run_until("progress", || {
        ANSWERED.load(Ordering::SeqCst) >= before + 40
    });
}

/// A job type that flushes its first node, again and again; its end drains that node and flushes it as well.
struct Driver {
    steps: AtomicU64,
    made: AtomicU64,
    make_ready: AtomicBool,
    fail_run: AtomicBool,
    fail_prepare: AtomicBool,
    commits: AtomicUsize,
    aborts: AtomicUsize,
    /// What the end is to drain.
    node: IrqLock<Option<NodeId>>,
    /// What it is about to answer.
    answer: IrqLock<Option<(Ticket, Result<(), BlockError>)>>,
}

static DRIVERS: [Driver; 4] = [const {
    Driver {
        steps: AtomicU64::new(0),
        made: AtomicU64::new(0),
        make_ready: AtomicBool::new(false),
        fail_run: AtomicBool::new(false),
        fail_prepare: AtomicBool::new(false),
        commits: AtomicUsize::new(0),
        aborts: AtomicUsize::new(0),
        node: IrqLock::new(None),
        answer: IrqLock::new(None),
    }
}; 4];

fn on_main() {
    assert_eq!((arch::current_core(), caller_levels()), (Some(0), 0));
}

impl Driver {
    /// As new, with so many steps to make.
    fn fresh(&self, steps: u64) {
        self.steps.store(steps, Ordering::SeqCst);
        self.made.store(0, Ordering::SeqCst);
        for flag in [&self.make_ready, &self.fail_run, &self.fail_prepare] {
            flag.store(false, Ordering::SeqCst);
        }
        self.commits.store(0, Ordering::SeqCst);
        self.aborts.store(0, Ordering::SeqCst);
        *self.node.lock() = None;
    }

    fn made(&self) -> u64 {
        self.made.load(Ordering::SeqCst)
    }

    fn ends(&self) -> (usize, usize) {
        (
            self.commits.load(Ordering::SeqCst),
            self.aborts.load(Ordering::SeqCst),
        )
    }

    async fn body(&'static self, job: Job) -> Result<(), BlockError> {
        while !job.cancel_requested() && !job.end_wanted() {
            assert_eq!(
                arch::current_core(),
                Some(job.core()),
                "in the job's context"
            );
            if self.make_ready.load(Ordering::SeqCst) {
                job.ready();
            }
            if self.made() >= self.steps.load(Ordering::SeqCst) {
                break;
            }
            if let Some(backend) = job.backend() {
                io::flush(backend).await?;
            }
            self.made.fetch_add(1, Ordering::SeqCst);
            job.progress(1);
            job.pause_point().await;
        }
        if self.fail_run.load(Ordering::SeqCst) {
            return FAILED;
        }
        Ok(())
    }

    fn end(&'static self, then: Ticket, result: Result<(), BlockError>) {
        on_main();
        let node = *self.node.lock();
        let Some(node) = node else {
            return then.done(result);
        };
        *self.answer.lock() = Some((then, result));
        let index = DRIVERS
            .iter()
            .position(|driver| core::ptr::eq(driver, self));
        let done = Callback::new(&quiet_at_end, index.unwrap_or(0));
        if let Err(error) = drain::drain_begin(node, done) {
            panic!("drain at the end: {error}");
        }
    }
}

fn quiet_at_end(index: usize) {
    let job = DRIVERS[index]
        .answer
        .lock()
        .as_ref()
        .map(|(ticket, _)| ticket.job());
    let backend = job.and_then(Job::backend);
    let (Some(backend), Some(mut request)) =
        (backend, request::new_reserved(Operation::Flush, 0, 0))
    else {
        panic!("nothing to flush with")
    };
    request.user[0] = index as u64;
    request.completion = &flushed_at_end;
    backend.submit(request);
}

fn flushed_at_end(request: Request) {
    let driver = &DRIVERS[request.user[0] as usize];
    assert_eq!(request.result, Ok(()));
    let node = *driver.node.lock();
    if let Some(node) = node {
        drain::drain_end(node);
    }
    let answer = driver.answer.lock().take();
    if let Some((ticket, result)) = answer {
        ticket.done(result);
    }
}

impl JobDriver for Driver {
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
        true
    }

    fn prepare(&'static self, _job: Job, then: Ticket) {
        let failed = self.fail_prepare.load(Ordering::SeqCst);
        self.end(then, if failed { FAILED } else { Ok(()) });
    }

    fn commit(&'static self, _job: Job, then: Ticket) {
        self.commits.fetch_add(1, Ordering::SeqCst);
        self.end(then, Ok(()));
    }

    fn abort(&'static self, _job: Job, then: Ticket) {
        self.aborts.fetch_add(1, Ordering::SeqCst);
        self.end(then, Ok(()));
    }

    fn clean(&'static self, _job: Job) {
        on_main();
    }
}

fn made<T, E: core::fmt::Display>(result: Result<T, E>) -> T {
    match result {
        Ok(made) => made,
        Err(error) => panic!("{error}"),
    }
}

const KEPT: Options<'static> = Options {
    auto_dismiss: false,
    ..Options::DEFAULT
};
const MANUAL: Options<'static> = Options {
    auto_finalize: false,
    ..KEPT
};

/// A job, not started.
fn create(driver: &'static Driver, id: &str, options: &Options<'_>, nodes: &[NodeId]) -> Job {
    let options = Options {
        id: Some(id),
        transaction: options.transaction,
        ..*options
    };
    let job = made(job::create(driver, &options));
    for (node, role) in nodes.iter().zip(["source", "target"]) {
        made(job.open(role, *node, Permissions::READER));
    }
    job
}

fn reaches(job: Job, state: State) {
    run_until(state.name(), || job.state() == state);
}

fn over(job: Job, result: Result<(), BlockError>) {
    reaches(job, State::Concluded);
    assert_eq!(job.result(), result);
    made(job.dismiss());
    assert!(!job.exists());
}

fn ok(case: &str) {
    progress();
    say!("ok jobs {case}");
}

fn quiet() -> Callback {
    Callback::new(
        &|_| {
            QUIET.fetch_add(1, Ordering::SeqCst);
        },
        0,
    )
}

fn begin(node: Option<NodeId>) {
    let before = QUIET.load(Ordering::SeqCst);
    made(match node {
        Some(id) => drain::drain_begin(id, quiet()),
        None => drain::drain_all_begin(quiet()),
    });
    run_until("drain", || QUIET.load(Ordering::SeqCst) != before);
}

fn end(node: Option<NodeId>) {
    match node {
        Some(id) => drain::drain_end(id),
        None => drain::drain_all_end(),
    }
}

fn changed(_: usize, result: Result<(), Refusal>) {
    made(result);
    CHANGED.fetch_add(1, Ordering::SeqCst);
}

fn run_change(begun: Result<(), Refusal>, before: usize) {
    made(begun);
    run_until("change", || CHANGED.load(Ordering::SeqCst) != before);
}

fn move_to(node: NodeId, core: usize) {
    let before = CHANGED.load(Ordering::SeqCst);
    run_change(change::move_begin(node, core, &changed, 0), before);
}

/// The nodes of a test: a slow chain that clients use, and another.
struct Nodes {
    below: NodeId,
    source: NodeId,
    target: NodeId,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fails {
    Nowhere,
    Run,
    Prepare,
}

fn drains(nodes: &Nodes, everything: bool, core: usize, fails: Fails) {
    let driver = &DRIVERS[0];
    driver.fresh(NO_END);
    driver.make_ready.store(true, Ordering::SeqCst);
    driver.fail_run.store(fails == Fails::Run, Ordering::SeqCst);
    driver
        .fail_prepare
        .store(fails == Fails::Prepare, Ordering::SeqCst);
    *driver.node.lock() = Some(nodes.source);
    for node in [nodes.source, nodes.target] {
        move_to(node, core);
    }
    let job = create(driver, "drained", &KEPT, &[nodes.source, nodes.target]);
    made(job.start());
    reaches(job, State::Ready);
    for node in [nodes.source, nodes.below, nodes.target] {
        let section = (!everything).then_some(node);
        begin(section);
        let Some(view) = job.view() else {
            panic!("the job is gone")
        };
        assert_eq!(view.pause_count, if everything { 2 } else { 1 });
        assert_eq!(
            (view.state, view.busy, view.core),
            (State::Standby, false, core)
        );
        let before = driver.made();
        for _ in 0..20 {
            aio::main_context().poll(false);
        }
        assert_eq!(driver.made(), before, "it works in a drained section");
        end(section);
        run_until("the job goes on", || driver.made() > before + 3);
    }
    made(job.complete());
    let well = fails == Fails::Nowhere;
    over(job, if well { Ok(()) } else { FAILED });
    assert_eq!(driver.ends(), (usize::from(well), usize::from(!well)));
}

/// A job with everything by hand, in that state.
fn in_state(nodes: &Nodes, state: State) -> Job {
    let driver = &DRIVERS[0];
    driver.fresh(NO_END);
    let job = create(driver, "cancelled", &MANUAL, &[nodes.source]);
    if state == State::Created {
        return job;
    }
    made(job.start());
    run_until("the job works", || driver.made() > 0);
    if state == State::Paused {
        made(job.pause());
        assert_eq!(job.pause(), Err(JobError::AlreadyPaused));
        reaches(job, State::Paused);
    }
    if matches!(state, State::Running | State::Paused) {
        return job;
    }
    driver.make_ready.store(true, Ordering::SeqCst);
    reaches(job, State::Ready);
    if state == State::Standby {
        made(job.pause());
        reaches(job, State::Standby);
    }
    if matches!(state, State::Ready | State::Standby) {
        return job;
    }
    made(job.complete());
    reaches(job, State::Pending);
    if state == State::Concluded {
        made(job.finalize());
        reaches(job, State::Concluded);
    }
    job
}

fn cancels(nodes: &Nodes) {
    for state in [
        State::Created,
        State::Running,
        State::Paused,
        State::Ready,
        State::Standby,
        State::Pending,
        State::Concluded,
    ] {
        let job = in_state(nodes, state);
        assert_eq!(job.state(), state);
        made(job.cancel(true));
        if !matches!(state, State::Created | State::Concluded) {
            over(job, CANCELLED);
        }
        run_until("its end", || !job.exists());
        progress();
        say!("ok jobs /blockjob/cancel/{state}");
    }
}

/// Two jobs that end together, of so many steps, and what becomes of each.
fn pair(nodes: &Nodes, steps: [u64; 2], wanted: [Result<(), BlockError>; 2]) {
    let transaction = made(Transaction::new());
    let options = Options {
        transaction: Some(&transaction),
        ..KEPT
    };
    let places = [nodes.source, nodes.target];
    let ids = ["first", "second"];
    let jobs = [0, 1].map(|n| {
        DRIVERS[n].fresh(steps[n]);
        DRIVERS[n]
            .fail_run
            .store(wanted[n] == FAILED, Ordering::SeqCst);
        create(&DRIVERS[n], ids[n], &options, &[places[n]])
    });
    drop(transaction);
    for job in jobs {
        made(job.start());
    }
    for n in [0, 1] {
        if wanted[n] == CANCELLED {
            made(jobs[n].cancel(true));
        }
    }
    let well = wanted == [Ok(()); 2];
    for n in [0, 1] {
        reaches(jobs[n], State::Concluded);
        let result = jobs[n].result();
        let allowed = match wanted[n] {
            Ok(()) if well => result == Ok(()),
            Ok(()) => result == CANCELLED,
            error => result == error,
        };
        assert!(allowed, "{:?} instead of {:?}", result, wanted[n]);
        assert_eq!(DRIVERS[n].ends(), (usize::from(well), usize::from(!well)));
        made(jobs[n].dismiss());
    }
}

fn main(tree: usize) -> ! {
    let info = start_block(tree);
    let cores = arch::cores();
    let rounds: usize = argument(&info, "rounds")
        .and_then(|text| text.parse().ok())
        .unwrap_or(5);
    let options = NullOptions {
        size: 1 << 20,
        block: 512,
        read_zeroes: true,
        latency_ns: 0,
    };
    let latencies = Latencies {
        read: 20_000,
        write: 20_000,
        flush: 50_000,
    };
    let below = made(null::create("below", options));
    let delayed = |name, child| made(delay::create(name, DelayOptions { child, latencies }));
    let source = delayed("source", below);
    let other = made(null::create("other", options));
    let target = delayed("target", other);
    let nodes = Nodes {
        below,
        source,
        target,
    };
    let client = made(Backend::create("client", "test", source));
    CLIENT.call_once(|| client);
    for core in 0..cores {
        let load = Callback::new(&load, 0);
        if aio::context(core).schedule_oneshot("load", load).is_err() {
            panic!("no bottom half");
        }
    }
    progress();

    let driver = &DRIVERS[0];
    for bad in ["0x", "", "_id", "-id", ".id", "#id", "a b"] {
        let options = Options {
            id: Some(bad),
            ..Options::DEFAULT
        };
        assert_eq!(job::create(driver, &options), Err(JobError::BadId));
    }
    assert_eq!(job::create(driver, &Options::DEFAULT), Err(JobError::NoId));
    let [one, two] = ["one", "two"].map(|id| create(driver, id, &KEPT, &[source]));
    let same = Options {
        id: Some("one"),
        ..Options::DEFAULT
    };
    assert_eq!(job::create(driver, &same), Err(JobError::IdInUse));
    one.give_up();
    let again = made(job::create(driver, &same));
    for job in [two, again] {
        job.give_up();
    }
    assert_eq!(job::find("one"), None);
    ok("/blockjob/ids");

    for _ in 1..rounds {
        in_state(&nodes, State::Ready).cancel(true).ok();
        run_until("its end", || {
            job::find("cancelled").is_none_or(|job| job.dismiss().is_ok())
        });
    }
    cancels(&nodes);

    for (case, results) in [
        ("success", [[Ok(()); 2]; 2]),
        ("failure", [[FAILED, Ok(())], [Ok(()), FAILED]]),
        ("cancel", [[CANCELLED, Ok(())], [Ok(()), CANCELLED]]),
    ] {
        for round in 0..rounds {
            // The one that does not fail by itself must not be over before it hears of the other.
            let steps = |n: usize, other: Result<(), BlockError>| match other {
                Ok(()) => [1, 20][(round + n) % 2],
                Err(_) => NO_END,
            };
            for wanted in results {
                pair(&nodes, [steps(0, wanted[1]), steps(1, wanted[0])], wanted);
            }
        }
        progress();
        say!("ok jobs /pair/{case}");
    }

    for (core, place) in [(0, ""), (cores - 1, "/iothread")] {
        for (everything, drain) in [(true, "drain_all"), (false, "drain")] {
            for _ in 0..rounds {
                drains(&nodes, everything, core, Fails::Nowhere);
            }
            progress();
            say!("ok jobs /bdrv-drain/blockjob{place}/{drain}");
            for _ in 0..rounds {
                drains(&nodes, everything, core, Fails::Run);
                drains(&nodes, everything, core, Fails::Prepare);
            }
            progress();
            say!("ok jobs /bdrv-drain/blockjob{place}/error/{drain}");
        }
    }

    driver.fresh(NO_END);
    driver.make_ready.store(true, Ordering::SeqCst);
    let job = create(driver, "moving", &KEPT, &[source]);
    made(job.start());
    for round in 0..rounds * 4 {
        let core = round % cores;
        move_to(source, core);
        let before = driver.made();
        assert_eq!(job.core(), core);
        run_until("progress in the new context", || driver.made() > before + 3);
    }
    made(job.complete());
    over(job, Ok(()));
    assert_eq!(driver.ends(), (1, 0));
    ok("/attach/blockjob");

    for _ in 0..rounds {
        let middle = delayed("middle", other);
        let own = delayed("own", middle);
        driver.fresh(NO_END);
        let job = create(driver, "beside", &KEPT, &[own]);
        made(job.start());
        run_until("the job works", || driver.made() > 3);
        let before = CHANGED.load(Ordering::SeqCst);
        made(change::remove_begin(middle, &changed, 0));
        driver.steps.store(0, Ordering::SeqCst);
        run_until("change", || CHANGED.load(Ordering::SeqCst) != before);
        assert!(graph::find("middle").is_none() && graph::stands_on(own, other));
        over(job, Ok(()));
        made(graph::delete(own));
    }
    ok("/bdrv-drain/bdrv_drop_intermediate/poll");

    say!(
        "jobs: {} steps of clients on {cores} cores",
        ANSWERED.load(Ordering::SeqCst)
    );
    let _ = block::request_usage();
    pass()
}

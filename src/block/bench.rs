//! A load generator: keeps a fixed number of requests in flight through a backend and measures them.
//!
//! One run at a time. [`start`] (main loop) hands the plan to a core; everything else happens there, in completions:
//! each one books its latency and submits the next, until time or count is up; then the report is published and the
//! caller's `done` is called on that core. Buffers come from an arena of the bench's own, so that a run takes nothing
//! from a client.
//!
//! ```text
//!   idle --start--> running --time, count or stop--> ending --last completion--> idle (report is ready)
//! ```
//! Latencies are taken with the clock of the turn (it is not read per request), so one is exact to a turn of the loop.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use super::core_state::turn_ns;
use super::device::{BareLoad, Offsets};
use super::{Backend, BlockError, Disk, Operation, Request, request};
use crate::aio::{self, AioContext, AioError, Callback, ContextStats};
use crate::arch::{self, CoreId};
use crate::config::{BENCH_PAGES, MAX_CORES};
use crate::sync::{CachePadded, CoreArray, HomeCell, IrqLock, PageArena};

/// Greatest depth of a run.
pub const MAX_DEPTH: u16 = 128;

/// A run on a bare queue stops its core's loop, so it ends after this time at the latest, in ns.
const MAX_BARE_NS: u64 = 10_000_000_000;

/// What to run.
#[derive(Clone, Copy)]
pub struct Plan {
    /// Through which backend.
    pub backend: &'static Backend,
    /// Read or write.
    pub operation: Operation,
    /// Bytes of one request, a multiple of the logical block.
    pub block: u32,
    /// Requests in flight, 1 to [`MAX_DEPTH`].
    pub depth: u16,
    /// One after the other instead of at random.
    pub sequential: bool,
    /// Ends after this time, in ns …
    pub duration_ns: u64,
    /// … or after this many requests, whichever comes first; 0: no such end.
    pub count: u64,
    /// First state of the random offsets.
    pub seed: u64,
    /// Reads on the bare queue of this disk instead, with nothing above it; keeps the core's loop busy meanwhile.
    pub bare: Option<&'static Disk>,
}

impl Plan {
    fn offsets(&self) -> Offsets {
        Offsets::new(self.backend.size(), self.block, self.sequential, self.seed)
    }
}

/// What came of it.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// Requests completed.
    pub requests: u64,
    /// Of these, with an error.
    pub errors: u64,
    /// Bytes of one request.
    pub block: u32,
    /// From the first submission to the last completion, in ns.
    pub elapsed_ns: u64,
    /// Latencies that half, 99 % and 99.9 % of the requests did not exceed, in ns; exact within 1/8.
    pub latency_ns: [u64; 3],
    /// What the core's loop did meanwhile.
    pub context: ContextStats,
}

impl Report {
    const NONE: Self = Self {
        requests: 0,
        errors: 0,
        block: 0,
        elapsed_ns: 0,
        latency_ns: [0; 3],
        context: ContextStats::ZERO,
    };

    /// Requests a second.
    pub fn iops(&self) -> u64 {
        per_second(self.requests, self.elapsed_ns)
    }

    /// Bytes a second.
    pub fn bytes_per_second(&self) -> u64 {
        per_second(self.requests * u64::from(self.block), self.elapsed_ns)
    }
}

fn per_second(amount: u64, ns: u64) -> u64 {
    (u128::from(amount) * 1_000_000_000 / u128::from(ns.max(1))) as u64
}

/// Why a run cannot start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BenchError {
    /// Another run is not over.
    Busy,
    /// Depth, block or size make no sense together.
    Invalid,
    /// Depth times block is more than the bench's buffers hold.
    TooLarge,
    /// The event loop had no record free.
    NoMemory,
}

impl From<AioError> for BenchError {
    fn from(_: AioError) -> Self {
        Self::NoMemory
    }
}

/// Latency histogram: eight buckets for each power of two, in ns.
struct Histogram([u32; Self::BUCKETS]);

impl Histogram {
    const STEPS: u32 = 8;
    const BUCKETS: usize = 40 * Self::STEPS as usize;

    const fn new() -> Self {
        Self([0; Self::BUCKETS])
    }

    fn add(&mut self, ns: u64) {
        let ns = ns.max(u64::from(Self::STEPS));
        let power = ns.ilog2();
        let step = (ns >> (power - Self::STEPS.ilog2())) as u32 & (Self::STEPS - 1);
        let bucket = (power * Self::STEPS + step) as usize;
        let bucket = bucket.min(Self::BUCKETS - 1);
        self.0[bucket] += 1;
    }

    /// Upper end of the bucket below which `share` (in thousandths) of the entries lie.
    fn percentile(&self, share: u64) -> u64 {
        let total: u64 = self.0.iter().map(|&n| u64::from(n)).sum();
        let wanted = (total * share).div_ceil(1000);
        let mut seen = 0;
        for (bucket, &n) in self.0.iter().enumerate() {
            seen += u64::from(n);
            if n != 0 && seen >= wanted {
                let (power, step) = (
                    bucket as u32 / Self::STEPS,
                    bucket as u64 % u64::from(Self::STEPS),
                );
                return (1 << power) + ((step + 1) << (power - Self::STEPS.ilog2()));
            }
        }
        0
    }
}

/// A run under way; lives on the core that runs it.
struct Run {
    plan: Option<Plan>,
    done: Option<Callback>,
    offsets: Offsets,
    submitted: u64,
    in_flight: u16,
    started_ns: u64,
    before: ContextStats,
    report: Report,
    histogram: Histogram,
}

impl Run {
    const IDLE: Self = Self {
        plan: None,
        done: None,
        offsets: Offsets::NONE,
        submitted: 0,
        in_flight: 0,
        started_ns: 0,
        before: ContextStats::ZERO,
        report: Report::NONE,
        histogram: Histogram::new(),
    };
}

/// One a core, so that consecutive runs may be on different cores; `STATE` lets one run at a time.
static RUNS: CoreArray<HomeCell<Run>> =
    CoreArray::new([const { CachePadded::new(HomeCell::new(Run::IDLE)) }; MAX_CORES]);

static BUFFERS: PageArena<BENCH_PAGES> = PageArena::new();
static PENDING: IrqLock<Option<(Plan, Callback)>> = IrqLock::new(None);
static REPORT: IrqLock<Report> = IrqLock::new(Report::NONE);

const IDLE: u8 = 0;
const RUNNING: u8 = 1;

static STATE: AtomicU8 = AtomicU8::new(IDLE);
static STOP: AtomicBool = AtomicBool::new(false);

/// Starts a run in `context`; `done` is called there when it is over and [`report`] has the result. From any core.
///
/// # Errors
/// See [`BenchError`]; nothing was started then.
pub fn start(plan: Plan, context: &'static AioContext, done: Callback) -> Result<(), BenchError> {
    let block = plan.backend.logical_block();
    if plan.depth == 0
        || plan.depth > MAX_DEPTH
        || plan.block == 0
        || !plan.block.is_multiple_of(block)
        || u64::from(plan.block) > plan.backend.size()
        || !plan.operation.has_data()
    {
        return Err(BenchError::Invalid);
    }
    let pages = (plan.block as usize).div_ceil(4096) * usize::from(plan.depth);
    if pages > BENCH_PAGES {
        return Err(BenchError::TooLarge);
    }
    // AcqRel: who takes the bench sees all that the run before it wrote.
    if STATE
        .compare_exchange(IDLE, RUNNING, Ordering::AcqRel, Ordering::Relaxed)
        .is_err()
    {
        return Err(BenchError::Busy);
    }
    STOP.store(false, Ordering::Relaxed);
    *PENDING.lock() = Some((plan, done));
    if let Err(error) = context.schedule_oneshot("bench", Callback::new(&begin, 0)) {
        *PENDING.lock() = None;
        STATE.store(IDLE, Ordering::Release);
        return Err(error.into());
    }
    Ok(())
}

/// Asks a run to end early; its `done` is still called.
pub fn stop() {
    STOP.store(true, Ordering::Relaxed);
}

/// Whether a run is under way.
pub fn is_running() -> bool {
    STATE.load(Ordering::Acquire) == RUNNING
}

/// The report of the last run.
pub fn report() -> Report {
    *REPORT.lock()
}

fn begin(_: usize) {
    let Some((plan, done)) = PENDING.lock().take() else {
        return;
    };
    let Some(core) = arch::current_core() else {
        return;
    };
    let context = aio::context(core);
    if let Some(disk) = plan.bare {
        return bare(disk, &plan, done);
    }
    RUNS.get(core).bind(core);
    RUNS.get(core).with(|run| {
        run.plan = Some(plan);
        run.done = Some(done);
        run.offsets = plan.offsets();
        run.submitted = 0;
        run.in_flight = 0;
        run.started_ns = arch::now_ns();
        run.before = context.stats();
        run.report = Report {
            block: plan.block,
            ..Report::NONE
        };
        run.histogram = Histogram::new();
    });
    for _ in 0..plan.depth {
        let Some(mut request) = request::new(plan.operation, 0, 0) else {
            break;
        };
        let Some(buffer) = BUFFERS.alloc_contiguous(plan.block as usize) else {
            break;
        };
        if request.add_buffer(buffer, plan.block as usize).is_err() {
            break;
        }
        request.completion = &completed;
        if !next(request) {
            break;
        }
    }
    if RUNS.get(core).with(|run| run.in_flight == 0) {
        finish(core);
    }
}

/// A run on the bare queue, from begin to end.
fn bare(disk: &'static Disk, plan: &Plan, done: Callback) {
    let mut report = Report {
        block: plan.block,
        ..Report::NONE
    };
    if let Some(memory) = BUFFERS.alloc_contiguous(plan.block as usize * usize::from(plan.depth)) {
        let load = BareLoad {
            depth: plan.depth,
            block: plan.block,
            offsets: plan.offsets(),
            duration_ns: plan.duration_ns.min(MAX_BARE_NS),
            count: plan.count,
            memory: &memory,
        };
        match disk.device().bare_reads(&load) {
            Ok(found) => {
                report.requests = found.requests;
                report.errors = found.errors;
                report.elapsed_ns = found.elapsed_ns;
            }
            Err(error) => {
                log::warn!("bench: bare queue of {}: {error}", disk.name());
                report.errors = 1;
                if error == BlockError::Io {
                    // The device may still write to it; after this the bench runs no more.
                    core::mem::forget(memory);
                }
            }
        }
    } else {
        log::warn!("bench: no memory: an earlier run on a bare queue left it with a device");
        report.errors = 1;
    }
    publish(report, Some(done));
}

impl Run {
    /// What the next request does, if there is one.
    #[inline(always)]
    fn take_next(
        &mut self,
        now: u64,
        stopped: bool,
    ) -> Option<(&'static Backend, Operation, u64, u32)> {
        let plan = self.plan.as_ref()?;
        if stopped
            || (plan.count != 0 && self.submitted >= plan.count)
            || now.saturating_sub(self.started_ns) >= plan.duration_ns
        {
            return None;
        }
        self.submitted += 1;
        self.in_flight += 1;
        Some((
            plan.backend,
            plan.operation,
            self.offsets.next_offset(),
            plan.block,
        ))
    }
}

/// Sends `request` out once more. `false`: the run is over and the request was let go.
fn next(request: Request) -> bool {
    let now = turn_ns(request.home());
    let stopped = STOP.load(Ordering::Relaxed);
    let target = RUNS
        .get(request.home())
        .with(|run| run.take_next(now, stopped));
    send(request, now, target)
}

#[inline(always)]
fn send(
    mut request: Request,
    now: u64,
    target: Option<(&'static Backend, Operation, u64, u32)>,
) -> bool {
    let Some((backend, operation, offset, block)) = target else {
        return false;
    };
    request.reuse(operation, offset, u64::from(block));
    request.user[0] = now;
    backend.submit(request);
    true
}

fn completed(request: Request) {
    let core = request.home();
    let now = turn_ns(core);
    let latency = now.saturating_sub(request.user[0]);
    let failed = request.result.is_err();
    // A device that fails everything at once must not keep the loop busy for the whole run.
    if failed {
        stop();
    }
    let stopped = STOP.load(Ordering::Relaxed);
    let target = RUNS.get(core).with(|run| {
        run.in_flight -= 1;
        run.report.requests += 1;
        run.report.errors += u64::from(failed);
        run.histogram.add(latency);
        run.take_next(now, stopped)
    });
    if !send(request, now, target) && RUNS.get(core).with(|run| run.in_flight == 0) {
        finish(core);
    }
}

fn finish(core: CoreId) {
    let context = aio::context(core);
    let (report, done) = RUNS.get(core).with(|run| {
        run.report.elapsed_ns = arch::now_ns().saturating_sub(run.started_ns);
        run.report.latency_ns = [500, 990, 999].map(|share| run.histogram.percentile(share));
        run.report.context = context.stats().since(&run.before);
        run.plan = None;
        (run.report, run.done.take())
    });
    publish(report, done);
}

fn publish(report: Report, done: Option<Callback>) {
    *REPORT.lock() = report;
    // Release: pairs with the acquire of the next `start` and of `is_running`.
    STATE.store(IDLE, Ordering::Release);
    if let Some(done) = done {
        done.call();
    }
}

#[cfg(test)]
mod tests {
    use super::Histogram;

    #[test]
    fn percentiles_lie_within_an_eighth() {
        let mut histogram = Histogram::new();
        for us in 1..=1000u64 {
            histogram.add(us * 1000);
        }
        for (share, exact) in [(500, 500_000.0), (990, 990_000.0), (999, 999_000.0)] {
            let found = histogram.percentile(share) as f64;
            assert!(
                found >= exact && found <= exact * 1.125 + 1.0,
                "{share}: {found}"
            );
        }
    }

    #[test]
    fn extreme_latencies_have_a_bucket() {
        let mut histogram = Histogram::new();
        histogram.add(0);
        histogram.add(u64::MAX);
        assert!(histogram.percentile(1) <= 16);
        assert!(histogram.percentile(1000) > 1 << 39);
    }
}

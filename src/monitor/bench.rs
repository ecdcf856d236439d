//! `bench`: runs [`block::bench`](mod@crate::block::bench) against a disk or another node and prints what came of it.
//!
//! ```text
//! idle ── read ──────────────────────────────────────────▶ running ── done (one-shot to context 0) ──▶ report, idle
//!   └──── write ──▶ head ──▶ last block ──────────────────────┘
//!                              └──────────┴── something is recognised: refused ──▶ idle
//! ```
//! Everything here runs in context 0; the load itself in the disk's home context.
#![forbid(unsafe_code)]

use core::fmt::Write;

use heapless::String;

use super::commands::{Refusal, System, Words};
use super::console;
use super::format::{Duration, Size, parse_size};
use super::signature;
use crate::aio::{self, Callback};
use crate::arch::{self, CoreId};
use crate::block::bench::{self, BenchError, Plan};
use crate::block::graph::{self, Permissions};
use crate::block::node::{NodeId, null};
use crate::block::{self, Backend, Operation, Request, request};
use crate::sync::{HomeCell, PAGE_SIZE, PageArena};

/// How the command is used.
pub(super) const USAGE: &str = "bench disk vdN|NODE|null read|write SIZE [seq|rand] [qd N] [SECONDS | count N] [--destroy SERIAL|NODE]; \
     bench ring vdN read SIZE …: the bare virtqueue, to compare with";

/// Longest run, in seconds.
const MAX_SECONDS: u64 = 3600;
/// Size of the null node, in bytes.
const NULL_BYTES: u64 = 1 << 40;
/// Pages for a look at a disk: its head, rounded up to the largest logical block.
const LOOK_PAGES: usize = 128 * 1024 / PAGE_SIZE;

static LOOK: PageArena<LOOK_PAGES> = PageArena::new();

/// What was typed, checked.
#[derive(Clone)]
struct Job {
    target: String<32>,
    node: NodeId,
    core: CoreId,
    permissions: Permissions,
    operation: Operation,
    block: u32,
    depth: u16,
    sequential: bool,
    seconds: u64,
    count: u64,
    bare: Option<&'static block::Disk>,
    /// It may carry something of value: look first.
    look: bool,
}

struct State {
    job: Option<Job>,
    backend: Option<&'static Backend>,
    system: Option<&'static dyn System>,
    interrupts_before: u64,
    device_kicks_before: u64,
}

static STATE: HomeCell<State> = HomeCell::new(State {
    job: None,
    backend: None,
    system: None,
    interrupts_before: 0,
    device_kicks_before: 0,
});

/// Starts what was typed. It ends with [`console::finished`].
pub(super) fn start(words: &mut Words<'_>, system: &'static dyn System) -> Result<(), Refusal> {
    STATE.bind(0);
    if STATE.with(|state| state.job.is_some()) {
        return Err(Refusal::Reason("another bench is not over"));
    }
    let job = parse(words, system)?;
    let opened = Backend::open("bench", "bench", Some(job.node), job.permissions);
    let backend = opened.map_err(|refusal| {
        log::warn!("bench: {refusal}");
        Refusal::Reason("no backend for the bench; the log says why")
    })?;
    let look = job.look;
    STATE.with(|state| {
        state.job = Some(job);
        state.backend = Some(backend);
        state.system = Some(system);
    });
    if look {
        let block = backend.logical_block() as u64;
        let head = (signature::HEAD_BYTES as u64)
            .next_multiple_of(block)
            .min(backend.size());
        look_at(backend, 0, head, &on_head);
    } else {
        run();
    }
    Ok(())
}

fn parse(words: &mut Words<'_>, system: &'static dyn System) -> Result<Job, Refusal> {
    const BAD: Refusal = Refusal::Usage(USAGE);
    let on_ring = match words.next() {
        Some("disk") => false,
        Some("ring") => true,
        _ => return Err(BAD),
    };
    let name = words.next().ok_or(BAD)?;
    let operation = match words.next() {
        Some("read") => Operation::Read,
        Some("write") => Operation::Write,
        _ => return Err(BAD),
    };
    let block = words.next().and_then(parse_size).ok_or(BAD)?;
    let block = u32::try_from(block)
        .ok()
        .filter(|block| *block > 0)
        .ok_or(BAD)?;
    let (mut depth, mut seconds, mut count, mut sequential, mut destroy) = (1, 5, 0, false, None);
    while let Some(word) = words.next() {
        match word {
            "seq" => sequential = true,
            "rand" => sequential = false,
            "qd" => {
                depth = words
                    .next()
                    .and_then(|word| word.parse().ok())
                    .filter(|depth| *depth > 0)
                    .ok_or(BAD)?;
            }
            "count" => {
                count = words
                    .next()
                    .and_then(|word| word.parse().ok())
                    .filter(|count| *count > 0)
                    .ok_or(BAD)?;
                seconds = MAX_SECONDS;
            }
            "--destroy" => destroy = Some(words.next().ok_or(BAD)?),
            _ => {
                seconds = word
                    .parse()
                    .ok()
                    .filter(|seconds| (1..=MAX_SECONDS).contains(seconds))
                    .ok_or(BAD)?;
            }
        }
    }
    let mut look = false;
    let mut bare = None;
    if on_ring {
        let disk = block::disks().find(|disk| disk.name() == name);
        bare = Some(disk.ok_or(Refusal::Reason("no such disk; see 'info disks'"))?);
        if operation != Operation::Read {
            return Err(BAD);
        }
    }
    let writes = operation == Operation::Write;
    let mut permissions = if writes {
        Permissions::SHARED_WRITER
    } else {
        Permissions::READER
    };
    let second = arch::cores().min(2) - 1;
    let (node, core) = if let Some(disk) = block::disks().find(|disk| disk.name() == name) {
        if writes {
            let confirmed = is_confirmed(destroy, disk.serial())?;
            if !confirmed && system.is_exported(disk.index()) {
                return Err(Refusal::Reason(
                    "the disk is exported; to overwrite it, add --destroy SERIAL",
                ));
            }
            look = !confirmed;
        }
        (disk.node(), disk.home())
    } else if name == "null" {
        (null_node()?, second)
    } else {
        let id = graph::find(name).ok_or(Refusal::Reason("no such disk; see 'info disks'"))?;
        let kind = graph::driver(id).map_or("", |driver| driver.info().kind);
        if matches!(kind, "ram" | "null") {
            (id, second)
        } else {
            if writes {
                look = !is_confirmed(destroy, name)?;
                // Whoever else writes there stands against it.
                permissions = Permissions::WRITER;
            }
            (id, graph::home(id).unwrap_or(0))
        }
    };
    Ok(Job {
        target: String::try_from(name).map_err(|_| BAD)?,
        node,
        core,
        permissions,
        operation,
        block,
        depth,
        sequential,
        seconds,
        count,
        bare,
        look,
    })
}

/// Whether what is to be overwritten was named once more.
fn is_confirmed(destroy: Option<&str>, serial: &str) -> Result<bool, Refusal> {
    match destroy {
        None => Ok(false),
        Some(named) if !named.is_empty() && named == serial => Ok(true),
        Some(_) => Err(Refusal::Reason(
            "--destroy names another serial than the disk's",
        )),
    }
}

fn null_node() -> Result<NodeId, Refusal> {
    const NAME: &str = "bench-null";
    match graph::find(NAME) {
        Some(id) => Ok(id),
        None => {
            let options = null::NullOptions {
                size: NULL_BYTES,
                block: 512,
                read_zeroes: false,
                latency_ns: 0,
            };
            null::create(NAME, options).map_err(|_| Refusal::Reason("no null node left"))
        }
    }
}

fn look_at(
    backend: &'static Backend,
    offset: u64,
    len: u64,
    then: &'static (dyn Fn(Request) + Sync),
) {
    let request =
        request::new(Operation::Read, offset, len).zip(LOOK.alloc_contiguous(len as usize));
    let Some((mut request, buffer)) = request else {
        return give_up("no memory to look at the disk first");
    };
    if request.add_buffer(buffer, len as usize).is_err() {
        return give_up("no memory to look at the disk first");
    }
    request.completion = then;
    backend.submit(request);
}

/// What `find` says of the data of a read, or why the disk could not be read.
fn verdict(request: &mut Request, find: fn(&[u8]) -> Option<&'static str>) -> Option<&'static str> {
    if request.result.is_err() {
        return Some("the disk cannot be read");
    }
    match request.take_buffer() {
        Some(buffer) => find(buffer.as_slice()),
        None => Some("the disk cannot be read"),
    }
}

fn on_head(mut request: Request) {
    let found = verdict(&mut request, signature::find);
    drop(request);
    if let Some(what) = found {
        return refuse(what);
    }
    let Some(backend) = STATE.with(|state| state.backend) else {
        return;
    };
    let block = u64::from(backend.logical_block());
    look_at(
        backend,
        backend.size().saturating_sub(block),
        block,
        &on_last,
    );
}

fn on_last(mut request: Request) {
    let found = verdict(&mut request, signature::find_in_last_block);
    drop(request);
    match found {
        Some(what) => refuse(what),
        None => run(),
    }
}

fn refuse(what: &str) {
    console::print(format_args!(
        "error: refused: {what}; to overwrite it, add --destroy SERIAL\n"
    ));
    end();
}

fn give_up(why: &str) {
    console::print(format_args!("error: {why}\n"));
    end();
}

/// Lets everything go; the command ends when the backend is gone.
fn end() {
    let backend = STATE.with(|state| {
        state.job = None;
        state.backend.take()
    });
    let Some(backend) = backend else {
        return console::finished();
    };
    // The last request's token is dropped after its completion: a drain waits for it.
    if let Err(error) = backend.drain_begin(Callback::new(&delete, backend.index())) {
        log::warn!("bench: backend not drained: {error}");
        console::finished();
    }
}

fn delete(index: usize) {
    if let Some(backend) = block::backend(index)
        && let Err(error) = backend.delete()
    {
        log::warn!("bench: backend not deleted: {error}");
    }
    console::finished();
}

fn run() {
    let ready = STATE.with(|state| {
        let (job, backend, system) = (state.job.clone()?, state.backend?, state.system?);
        state.interrupts_before = system.interrupts(job.core);
        state.device_kicks_before = system.device_kicks();
        Some((job, backend))
    });
    let Some((job, backend)) = ready else { return };
    let plan = Plan {
        backend,
        operation: job.operation,
        block: job.block,
        depth: job.depth,
        sequential: job.sequential,
        duration_ns: job.seconds * 1_000_000_000,
        count: job.count,
        seed: arch::now_ns(),
        bare: job.bare,
    };
    if let Err(error) = bench::start(plan, aio::context(job.core), Callback::new(&on_done, 0)) {
        give_up(match error {
            BenchError::Busy => "another run is not over",
            BenchError::Invalid => "depth (1 to 128), size and disk do not fit together",
            BenchError::TooLarge => "depth times size is more than the bench's buffers hold",
            BenchError::NoMemory => "the event loop has no record free",
        });
    }
}

/// `^C`: ends a run early; its report still comes.
pub(super) fn interrupt() {
    bench::stop();
}

/// On the core of the run.
fn on_done(_: usize) {
    let report = aio::main_context().schedule_oneshot("bench report", Callback::new(&report, 0));
    if report.is_err() {
        log::warn!("bench: no record for the report; '^C' ends it");
    }
}

fn report(_: usize) {
    let ready = STATE.with(|state| {
        let system = state.system?;
        let job = state.job.clone()?;
        let interrupts = system.interrupts(job.core) - state.interrupts_before;
        let kicks = system.device_kicks() - state.device_kicks_before;
        Some((job, interrupts, kicks))
    });
    let Some((job, interrupts, device_kicks)) = ready else {
        return;
    };
    let report = bench::report();
    let requests = report.requests.max(1);
    let operation = job.operation.name();
    let pattern = if job.sequential { "seq" } else { "rand" };
    let [p50, p99, p999] = report.latency_ns;
    let mut text: String<1024> = String::new();
    // 1024 bytes hold the four lines.
    let _ = writeln!(
        text,
        "{} {operation} {} {pattern} qd {}: {} requests in {}, {} errors",
        job.target,
        Size(job.block.into()),
        job.depth,
        report.requests,
        Duration(report.elapsed_ns),
        report.errors,
    );
    let _ = writeln!(
        text,
        "  {} IOPS   {}.{} MB/s   p50 {}   p99 {}   p99.9 {}",
        report.iops(),
        report.bytes_per_second() / 1_000_000,
        report.bytes_per_second() / 100_000 % 10,
        Duration(p50),
        Duration(p99),
        Duration(p999),
    );
    let each = |count: u64| Milli(count * 1000 / requests);
    let _ = writeln!(
        text,
        "  per request: {} interrupts   {} kicks to the device   {} bottom halves   {} SGIs",
        each(interrupts),
        each(device_kicks),
        each(report.context.bottom_halves),
        each(report.context.kicks),
    );
    let _ = writeln!(
        text,
        "bench target={} op={operation} size={} pattern={pattern} qd={} ns={} requests={} errors={} iops={} bytes_per_second={} \
         p50_ns={p50} p99_ns={p99} p999_ns={p999} interrupts={interrupts} device_kicks={device_kicks} bottom_halves={} sgis={} \
         turns={} sleeps={}",
        job.target,
        job.block,
        job.depth,
        report.elapsed_ns,
        report.requests,
        report.errors,
        report.iops(),
        report.bytes_per_second(),
        report.context.bottom_halves,
        report.context.kicks,
        report.context.turns,
        report.context.sleeps,
    );
    console::print(format_args!("{text}"));
    end();
}

/// Thousandths.
struct Milli(u64);

impl core::fmt::Display for Milli {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}.{:03}", self.0 / 1000, self.0 % 1000)
    }
}

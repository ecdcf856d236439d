//! What each layer of the block graph adds to a 4 KiB read or write, and what an empty drained section costs, in guest instructions.
//!
//! Under `-icount shift=0` QEMU's cycle counter counts executed instructions, exactly. A round is 32 requests, sent one after
//! the other and brought to their completions by the loop; what the same round costs with nothing between sender and
//! completion is taken off, then what the layers below cost. Prints lines `cost CASE VALUE`.
#![no_std]
#![no_main]

use core::fmt::Write as _;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use heapless::{String, Vec};
use ironthread::aio::{self, Callback};
use ironthread::arch::CoreId;
use ironthread::block::device::{BlockDevice, DeviceEvents, DeviceInfo, Owners};
use ironthread::block::graph;
use ironthread::block::node::{
    Ascent, Layer, NodeDriver, NodeId, NodeInfo, copy_before_write, dirty, error, mirror, null,
    partition, throttle,
};
use ironthread::block::{self, Backend, Operation, Request};
use ironthread::config::{MAX_CORES, NODES};
use ironthread::sync::PageArena;
use ironthread_target_tests::cycles::{count_cycles, cycles};
use ironthread_target_tests::{entry, pass, say, start};

entry!(main);

const DEPTH: u64 = 32;
const ROUNDS: u64 = 16;
const BLOCK: u64 = 4096;
const SIZE: u64 = 1 << 24;

static PAGES: PageArena<64> = PageArena::new();
static ENDED: AtomicU64 = AtomicU64::new(0);
static QUIET: AtomicU32 = AtomicU32::new(0);
static BACK: ironthread::sync::IrqLock<Vec<Request, 32>> =
    ironthread::sync::IrqLock::new(Vec::new());

fn completed(request: Request) {
    assert!(request.result.is_ok());
    ENDED.fetch_add(1, Ordering::Relaxed);
    assert!(BACK.lock().push(request).is_ok());
}

fn must<T, E: core::fmt::Debug>(what: &str, result: Result<T, E>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{what}: {error:?}"),
    }
}

/// Instructions of one request, in tenths: the mean of the rounds that count.
fn each(operation: Operation, mut send: impl FnMut(Request)) -> u64 {
    let mut sum = 0;
    for round in 0..2 * ROUNDS {
        let before = cycles();
        let ended = ENDED.load(Ordering::Relaxed);
        for n in 0..DEPTH {
            let request = BACK.lock().pop();
            let Some(mut request) = request else {
                panic!("a request is missing")
            };
            request.reuse(operation, (n * 7 % 32) * BLOCK, BLOCK);
            send(request);
        }
        while ENDED.load(Ordering::Relaxed) != ended + DEPTH {
            aio::main_context().poll(false);
        }
        if round >= ROUNDS {
            sum += cycles() - before;
        }
    }
    10 * sum / (ROUNDS * DEPTH)
}

fn report(case: &str, tenths: u64) {
    say!("cost {case} {}.{}", tenths / 10, tenths % 10);
}

/// A backend on `node`; what a request through it costs.
fn through(node: NodeId, operation: Operation) -> u64 {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let mut name: String<8> = String::new();
    let _ = write!(name, "b{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    let backend = must("backend", Backend::create(&name, "bench", node));
    let cost = each(operation, |request| backend.submit(request));
    let seen = QUIET.load(Ordering::Relaxed);
    must("drain", backend.drain_begin(Callback::new(&quiet, 0)));
    while QUIET.load(Ordering::Relaxed) == seen {
        aio::main_context().poll(false);
    }
    must("delete", backend.delete());
    cost
}

fn quiet(_: usize) {
    QUIET.fetch_add(1, Ordering::Relaxed);
}

/// Drained sections over everything, begun, waited for and ended.
fn drains() -> u64 {
    let mut sum = 0;
    for round in 0..2 * ROUNDS {
        let seen = QUIET.load(Ordering::Relaxed);
        let before = cycles();
        must("drain", graph::drain_all_begin(Callback::new(&quiet, 0)));
        while QUIET.load(Ordering::Relaxed) == seen {
            aio::main_context().poll(false);
        }
        graph::drain_all_end();
        while aio::main_context().poll(false) {}
        if round >= ROUNDS {
            sum += cycles() - before;
        }
    }
    10 * sum / ROUNDS
}

/// A node that does nothing but stand there.
struct Idle;

impl Layer for Idle {
    fn completed(&'static self, request: Request) -> Ascent {
        Ascent::Up(request)
    }
}

impl NodeDriver for Idle {
    fn info(&self) -> NodeInfo {
        NodeInfo {
            kind: "idle",
            size: SIZE,
            ..NodeInfo::NONE
        }
    }

    fn submit(&'static self, request: Request) {
        block::complete(request, Ok(()));
    }
}

static IDLE: [Idle; NODES] = [const { Idle }; NODES];

/// Adds idle nodes until there are `nodes`, the `others` included.
fn fill(idle: &mut usize, others: usize, nodes: usize) {
    while *idle + others < nodes {
        let mut name: String<8> = String::new();
        let _ = write!(name, "idle{idle}");
        must("idle node", graph::add(&name, &IDLE[*idle]));
        *idle += 1;
    }
}

/// A device that has done everything at once.
struct Instant(Owners);

impl BlockDevice for Instant {
    fn info(&self) -> DeviceInfo {
        DeviceInfo::new(SIZE)
    }

    fn submitter(&self, core: CoreId) -> CoreId {
        core
    }

    fn owners(&'static self) -> Option<&'static Owners> {
        Some(&self.0)
    }

    fn submit(&self, request: Request) -> Result<(), Request> {
        block::complete(request, Ok(()));
        Ok(())
    }

    fn reset(&self) {}

    fn attach(&self, _: &'static dyn DeviceEvents) {}
}

static INSTANT: Instant = {
    use core::sync::atomic::AtomicU8;
    let mut owners = [const { AtomicU8::new(0) }; MAX_CORES];
    let mut core = 0;
    while core < MAX_CORES {
        owners[core] = AtomicU8::new(core as u8);
        core += 1;
    }
    Instant(owners)
};

fn null_node(name: &str) -> NodeId {
    let options = null::NullOptions {
        size: SIZE,
        block: 512,
        read_zeroes: false,
        latency_ns: 0,
    };
    must(name, null::create(name, options))
}

/// What keeps data twice, or notes what is written.
fn copies(bottom: NodeId) {
    let [read, write] =
        [Operation::Read, Operation::Write].map(|what| (what, through(bottom, what)));
    let over = |case: &str, node: NodeId, (operation, below): (Operation, u64)| {
        report(case, through(node, operation) - below);
    };
    let legs = [null_node("leg0"), null_node("leg1")];
    let array = mirror::Start::Create {
        equal: true,
        region: None,
        force: false,
    };
    let array = must("mirror", mirror::create("mirror", &legs, array));
    while mirror::view(array).is_none_or(|view| view.status != mirror::Status::Running) {
        aio::main_context().poll(false);
    }
    over("mirror_read", array, read);
    // The first rounds, which do not count, mark the region and copy the clusters.
    over("mirror_write", array, write);
    let noting = must("dirty", dirty::create("dirty", Some(bottom)));
    over("dirty_without_bitmaps_write", noting, write);
    must("bitmap", dirty::add_bitmap(noting, "one", None));
    over("dirty_write", noting, write);
    for node in [noting, array] {
        must("delete", graph::delete(node));
    }
    let options = copy_before_write::Options {
        child: Some(bottom),
        target: legs[0],
        cluster: None,
        on_error: copy_before_write::OnError::BreakWrite,
    };
    let saving = must(
        "copy-before-write",
        copy_before_write::create("saving", options),
    );
    over("copy_before_write_done_write", saving, write);
}

fn main(tree: usize) -> ! {
    start(tree);
    count_cycles();
    aio::main_context().attach(0);
    must("block", block::start_core(0));
    for _ in 0..DEPTH {
        let Some(mut request) = block::request::new(Operation::Read, 0, BLOCK) else {
            panic!("no request")
        };
        request.completion = &completed;
        let Some(buffer) = PAGES.alloc_contiguous(BLOCK as usize) else {
            panic!("no buffer")
        };
        assert!(request.add_buffer(buffer, BLOCK as usize).is_ok());
        assert!(BACK.lock().push(request).is_ok());
    }
    let read = Operation::Read;
    let nothing = each(read, |request| block::complete(request, Ok(())));
    let bottom = null_node("bottom");
    report("drain_nodes_1", drains());
    let backend = through(bottom, read);
    report("backend_and_null", backend - nothing);
    let disk = must("disk", block::add_disk(&INSTANT, 0));
    report("disk", through(disk.node(), read) - backend);
    let over = |case: &str, node: NodeId| report(case, through(node, read) - backend);
    let options = throttle::Options {
        child: bottom,
        group: None,
    };
    over(
        "throttle_without_limits",
        must("throttle", throttle::create("throttle", options)),
    );
    over(
        "error_without_rules",
        must("error", error::create("error", bottom)),
    );
    let options = partition::PartitionOptions {
        child: bottom,
        offset: 1 << 20,
        len: None,
    };
    over(
        "partition",
        must("partition", partition::create("partition", options)),
    );
    let (mut idle, others) = (0, 5);
    fill(&mut idle, others, 8);
    report("drain_nodes_8", drains());
    fill(&mut idle, others, NODES);
    report("drain_nodes_64", drains());
    let beside = through(bottom, read);
    report("idle_nodes_59_added", beside.abs_diff(backend));
    for n in 0..idle {
        let mut name: String<8> = String::new();
        let _ = write!(name, "idle{n}");
        let node = graph::find(&name).and_then(|node| graph::delete(node).ok());
        assert!(node.is_some(), "{name} stays");
    }
    copies(bottom);
    pass()
}

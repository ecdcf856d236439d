//! Host tests of the block layer: several cores stepped in one thread, over the scripted disk.

mod catalogue_drain;
mod catalogue_drain_gone;
mod catalogue_graph;
mod catalogue_iothread;
mod catalogue_jobs;
mod catalogue_jobs_drain;
mod chains;
mod copy_before_write;
mod copy_rig;
mod dirty;
mod drain;
mod durability;
mod edges;
mod error_rules;
mod graph_changes;
mod graph_random;
mod graph_rig;
mod images;
mod instruments;
mod job_backup;
mod job_cuts;
mod job_mirror;
mod jobs;
mod jobs_random;
mod jobs_random_copies;
mod jobs_rig;
mod kinds;
mod layered;
mod load;
mod lost_writes;
mod mirror;
mod mirror_cuts;
mod mirror_faults;
mod mirror_legs;
mod model;
mod moves;
mod partitions;
mod paths;
mod pool;
mod queues;
mod rows;
mod rules_context;
mod rules_context_moves;
mod rules_counts;
mod rules_drain;
mod rules_drain_graph;
mod rules_exports;
mod rules_jobs;
mod rules_jobs_end;
mod scans;
mod spares;
mod tables;
mod threads;
mod threads_copies;
mod threads_nodes;
mod throttle;
mod throttle_catalogue;
mod throttle_drain;
mod tracked;
mod verify;

use std::boxed::Box;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::vec::Vec;

use super::node::disk::Disk;
use super::testing::TestDisk;
use super::*;
use crate::aio;
use crate::arch::{self, host};
use crate::sync::PageArena;

static PAGES: PageArena<2048> = PageArena::new();
static START_NS: AtomicU64 = AtomicU64::new(1_000_000_000_000);
static NEXT_DISK: AtomicUsize = AtomicUsize::new(0);

/// One finished request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Done {
    pub tag: u64,
    pub result: Result<(), BlockError>,
    pub core: CoreId,
    pub data: Vec<u8>,
}

static DONE: Mutex<Vec<Done>> = Mutex::new(Vec::new());

fn record(request: Request) {
    let mut data = Vec::new();
    if request.operation == Operation::Read && request.result.is_ok() {
        request.for_each_slice(|slice| data.extend_from_slice(slice));
    }
    let core = arch::current_core().unwrap();
    DONE.lock().unwrap().push(Done {
        tag: request.user[0],
        result: request.result,
        core,
        data,
    });
}

/// A machine whose cores this thread steps.
pub(super) struct Rig {
    cores: usize,
    opened: Vec<&'static Backend>,
    nodes: Vec<NodeId>,
    _machine: host::Machine,
}

pub(super) fn rig(cores: usize) -> Rig {
    let machine = host::machine(cores);
    host::set_stepped(true);
    // Timers outlive a test, so its clock goes on where the last test's can have ended.
    host::clock::manual(START_NS.fetch_add(1_000_000_000_000, Ordering::Relaxed));
    for core in 0..cores {
        on(core, || {
            aio::context(core).attach(core);
            start_core(core).unwrap();
        });
    }
    DONE.lock().unwrap().clear();
    let rig = Rig {
        cores,
        opened: Vec::new(),
        nodes: Vec::new(),
        _machine: machine,
    };
    // Cores that an earlier test used have gates to look at.
    for core in cores..crate::config::MAX_CORES {
        on(core, || {
            aio::context(core).attach(core);
            start_core(core).unwrap();
        });
    }
    rig.settle();
    rig
}

/// Runs `f` as `core`.
pub(super) fn on<R>(core: CoreId, f: impl FnOnce() -> R) -> R {
    let _guard = host::enter_core(core);
    f()
}

impl Rig {
    /// Polls every core until nobody makes progress.
    pub fn settle(&self) {
        // Sending to another core at the end of a turn is no progress, so one quiet round proves nothing.
        let mut quiet = 0;
        for _ in 0..10_000 {
            let mut progress = false;
            for core in 0..crate::config::MAX_CORES {
                progress |= on(core, || aio::context(core).poll(false));
            }
            quiet = if progress { 0 } else { quiet + 1 };
            if quiet == 2 {
                return;
            }
        }
        panic!("the cores do not come to rest");
    }

    /// Runs `f` while the other cores run on a thread of their own: for what waits in the main loop.
    pub fn with_others<R>(&self, f: impl FnOnce() -> R) -> R {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    for core in 1..crate::config::MAX_CORES {
                        on(core, || aio::context(core).poll(false));
                    }
                }
            });
            let result = f();
            over.store(true, Ordering::Relaxed);
            result
        })
    }

    /// Lets the device answer what it holds, all cores, again and again, until nothing is left.
    pub fn run(&self, device: &TestDisk) {
        loop {
            self.settle();
            let answered: usize = (0..self.cores)
                .map(|core| on(core, || device.finish_all()))
                .sum();
            if answered == 0 {
                return;
            }
        }
    }

    /// A disk on a scripted device, and a backend on it.
    pub fn disk(&mut self, info: DeviceInfo) -> Fixture {
        let device = TestDisk::leak(info);
        let disk: &'static Disk = Box::leak(Box::new(Disk::new()));
        disk.open(
            device,
            0,
            40 + NEXT_DISK.fetch_add(1, Ordering::Relaxed) % 200,
        )
        .unwrap();
        let backend = self.backend(disk.node());
        Fixture {
            device,
            disk,
            backend,
        }
    }

    pub fn backend(&mut self, node: NodeId) -> &'static Backend {
        self.nodes.push(node);
        let mut name = heapless::String::<16>::new();
        let number = NEXT_DISK.fetch_add(1, Ordering::Relaxed);
        core::fmt::write(&mut name, format_args!("b{number}")).unwrap();
        let backend = on(0, || Backend::create(&name, "test", node).unwrap());
        self.opened.push(backend);
        self.settle();
        backend
    }

    /// A node that goes with the others at the end.
    pub fn keep(&mut self, node: NodeId) -> NodeId {
        self.nodes.push(node);
        node
    }

    pub fn drain(&self, backend: &'static Backend) {
        on(0, || {
            backend.drain_begin(aio::Callback::new(&ignore, 0)).unwrap()
        });
        self.settle();
    }

    pub fn undrain(&self, backend: &'static Backend) {
        on(0, || backend.drain_end());
        self.settle();
    }

    pub fn quiet(&self, backend: &'static Backend) -> bool {
        on(0, || backend.is_quiet())
    }

    /// Everything is back where it was: no token, no record, no page is missing.
    pub fn finish(mut self) {
        for backend in core::mem::take(&mut self.opened) {
            assert_eq!(backend.in_flight(), 0, "tokens leaked");
            assert_eq!(backend.parked(), 0, "parked requests leaked");
            self.drain(backend);
            assert!(
                self.quiet(backend),
                "a drain of an idle backend does not end"
            );
            on(0, || backend.delete()).unwrap();
        }
        // Whatever nothing stands on any more, until nothing is left.
        use crate::block::graph::{delete, driver};
        let mut nodes = core::mem::take(&mut self.nodes);
        while !nodes.is_empty() {
            let before = nodes.len();
            nodes.retain(|node| on(0, || driver(*node).is_some() && delete(*node).is_err()));
            assert!(nodes.len() < before, "nodes stay in use");
        }
        for core in 0..self.cores {
            assert_eq!(
                on(core, || request_usage().0),
                0,
                "records of core {core} leaked"
            );
            assert_eq!(
                on(core, || spare_usage(core)),
                (0, 0),
                "spares of core {core} leaked"
            );
        }
        assert_eq!(PAGES.in_use(), 0, "pages leaked");
    }
}

fn ignore(_: usize) {}

/// A name that no other node has.
pub(super) fn unique(kind: &str) -> std::string::String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    std::format!("{kind}{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

#[derive(Clone, Copy)]
pub(super) struct Fixture {
    pub device: &'static TestDisk,
    pub disk: &'static Disk,
    pub backend: &'static Backend,
}

/// What to ask for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask {
    pub operation: Operation,
    pub offset: u64,
    pub len: u64,
    pub flags: RequestFlags,
    pub fill: u8,
    /// Data are cut into segments of that size; 0: one.
    pub segment: usize,
}

pub(super) fn ask(operation: Operation, offset: u64, len: u64) -> Ask {
    Ask {
        operation,
        offset,
        len,
        flags: RequestFlags::empty(),
        fill: 0,
        segment: 0,
    }
}

pub(super) fn read(offset: u64, len: u64) -> Ask {
    ask(Operation::Read, offset, len)
}

pub(super) fn write(offset: u64, len: u64, fill: u8) -> Ask {
    Ask {
        fill,
        ..ask(Operation::Write, offset, len)
    }
}

pub(super) fn flush() -> Ask {
    ask(Operation::Flush, 0, 0)
}

impl Ask {
    pub fn flags(self, flags: RequestFlags) -> Self {
        Self { flags, ..self }
    }

    pub fn fua(self) -> Self {
        self.flags(self.flags | RequestFlags::FUA)
    }

    pub fn in_segments(self, segment: usize) -> Self {
        Self { segment, ..self }
    }
}

pub(super) fn request(ask: Ask, tag: u64) -> Request {
    let mut request = request::new(ask.operation, ask.offset, ask.len).expect("a record");
    request.flags = ask.flags;
    request.user[0] = tag;
    request.completion = &record;
    if ask.operation.has_data() {
        let mut left = ask.len as usize;
        while left > 0 {
            let len = if ask.segment == 0 {
                left
            } else {
                left.min(ask.segment)
            };
            let mut buffer = PAGES.alloc_contiguous(len).expect("pages");
            buffer
                .as_mut_slice()
                .fill(if ask.operation == Operation::Write {
                    ask.fill
                } else {
                    0xee
                });
            request.add_buffer(buffer, len).unwrap();
            left -= len;
        }
    }
    request
}

pub(super) fn submit(core: CoreId, backend: &'static Backend, ask: Ask, tag: u64) {
    on(core, || backend.submit(request(ask, tag)));
}

/// What has finished since the last look.
pub(super) fn done() -> Vec<Done> {
    core::mem::take(&mut DONE.lock().unwrap())
}

/// Tags and results of [`done`], sorted by tag.
pub(super) fn results() -> Vec<(u64, Result<(), BlockError>)> {
    let mut results: Vec<_> = done().into_iter().map(|d| (d.tag, d.result)).collect();
    results.sort_by_key(|(tag, _)| *tag);
    results
}

pub(super) fn with_flush(capacity: u64) -> DeviceInfo {
    let mut info = DeviceInfo::new(capacity);
    info.features |= DeviceFeatures::FLUSH;
    info.writeback = true;
    info
}

pub(super) fn with_everything(capacity: u64) -> DeviceInfo {
    let mut info = with_flush(capacity);
    info.features |=
        DeviceFeatures::DISCARD | DeviceFeatures::WRITE_ZEROES | DeviceFeatures::ZEROES_MAY_UNMAP;
    info
}

pub(super) fn operations(device: &TestDisk) -> Vec<Operation> {
    device.log().iter().map(|entry| entry.operation).collect()
}

pub(super) fn submitted(device: &TestDisk) -> Vec<(Operation, u64, u64)> {
    let log = device.log();
    log.iter().map(|e| (e.operation, e.offset, e.len)).collect()
}

//! The driver against the fake device, with the real event loop and the real completion path, stepped in one thread.
//! Here the machine; the tests are beside it.
mod failures;
mod moves;
mod operations;

use super::model::{Model, Seen};
use super::*;
use crate::aio;
use crate::arch::host;
use crate::block;
use crate::block::device::DeviceFeatures;
use crate::block::{Operation, RequestFlags};
use crate::sync::PageArena;
use crate::virtio::dma::{DmaArena, DmaMemory};
use crate::virtio::fake::{FakeDevice, Reset, State, write_used};
use crate::virtio::transport::{SetupError, feature, status};
use config::{feature as blk_feature, kind};
use core::sync::atomic::AtomicUsize;
use std::boxed::Box;
use std::sync::Mutex;
use std::vec::Vec;

const INDIRECT_DESC: u64 = feature::INDIRECT_DESC;
const EVENT_INDEX: u64 = feature::EVENT_INDEX;
const ALL: u64 = INDIRECT_DESC
    | EVENT_INDEX
    | blk_feature::SEG_MAX
    | blk_feature::FLUSH
    | blk_feature::DISCARD
    | blk_feature::WRITE_ZEROES
    | blk_feature::BLK_SIZE
    | blk_feature::TOPOLOGY
    | blk_feature::CONFIG_WCE
    | blk_feature::MQ;

static PAGES: PageArena<4096> = PageArena::new();

/// A finished request: its tag, its result, its data if it was a read, the core of the completion.
#[derive(Debug, PartialEq)]
struct Done {
    tag: u64,
    result: Result<(), BlockError>,
    data: Vec<u8>,
    core: CoreId,
}

static DONE: Mutex<Vec<Done>> = Mutex::new(Vec::new());

fn record(request: Request) {
    let mut data = Vec::new();
    if request.operation == Operation::Read {
        request.for_each_slice(|slice| data.extend_from_slice(slice));
    }
    let core = arch::current_core().unwrap();
    DONE.lock().unwrap().push(Done {
        tag: request.user[0],
        result: request.result,
        data,
        core,
    });
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    Resized,
    NeedsReset,
    ResetDone(Result<(), BlockError>),
    Moved(Result<(), BlockError>),
}

/// Plays the disk node's part in events.
struct Listener {
    seen: Mutex<Vec<Event>>,
    blk: Once<&'static Blk>,
}

impl DeviceEvents for Listener {
    fn resized(&self) {
        self.seen.lock().unwrap().push(Event::Resized);
    }

    fn needs_reset(&self, _: &'static str) {
        self.seen.lock().unwrap().push(Event::NeedsReset);
        self.blk.get().unwrap().reset();
    }

    fn reset_done(&self, result: Result<(), BlockError>) {
        self.seen.lock().unwrap().push(Event::ResetDone(result));
    }

    fn moved(&'static self, result: Result<(), BlockError>) {
        assert_eq!(arch::current_core(), Some(0), "moves end in the main loop");
        self.seen.lock().unwrap().push(Event::Moved(result));
    }
}

/// A machine of `cores` cores with one disk on it.
struct Rig {
    cores: usize,
    device: &'static FakeDevice,
    blk: &'static Blk,
    model: Mutex<Model>,
    listener: &'static Listener,
    /// An edge-triggered controller; without one the line is looked at.
    route: Option<&'static Route>,
    _machine: host::Machine,
}

/// The interrupt controller's part.
struct Route {
    core: AtomicUsize,
    refuses: AtomicUsize,
    seen: AtomicU64,
}

impl InterruptRoute for Route {
    fn check(&self, core: CoreId) -> bool {
        self.refuses.load(SeqCst) != core
    }

    fn route(&self, core: CoreId) -> bool {
        self.core.store(core, SeqCst);
        true
    }
}

fn on<R>(core: CoreId, f: impl FnOnce() -> R) -> R {
    let _guard = host::enter_core(core);
    f()
}

fn machine(cores: usize) -> host::Machine {
    let machine = host::machine(cores);
    host::set_stepped(true);
    host::clock::manual(1_000_000_000);
    for core in 0..MAX_CORES {
        on(core, || {
            aio::context(core).attach(core);
            block::start_core(core).unwrap();
        });
    }
    DONE.lock().unwrap().clear();
    machine
}

fn arena() -> &'static DmaArena {
    let memory: &'static DmaMemory<{ 256 * 4096 }> = Box::leak(Box::default());
    Box::leak(Box::new(DmaArena::new(memory)))
}

/// A thread that answers GET_ID while the driver waits for it.
fn add_disk(
    device: &'static FakeDevice,
    model: Model,
    home: CoreId,
    cores: usize,
) -> (Result<&'static Blk, SetupError>, Model) {
    use std::sync::atomic::AtomicBool;
    host::clock::real();
    let stop: &'static AtomicBool = Box::leak(Box::new(AtomicBool::new(false)));
    let server = std::thread::spawn(move || {
        let mut model = model;
        while !stop.load(SeqCst) {
            model.serve(device, 0);
            std::thread::yield_now();
        }
        model
    });
    let blk = on(0, || add(device, home, cores, 900 * 1024, arena()));
    stop.store(true, SeqCst);
    let model = server.join().unwrap();
    host::clock::manual(1_000_000_000);
    (blk, model)
}

fn configure(device: &FakeDevice, sectors: u64, queues: u16) {
    let mut state = device.state();
    let c = &mut state.config;
    c[0..8].copy_from_slice(&sectors.to_le_bytes());
    c[12..16].copy_from_slice(&126u32.to_le_bytes());
    c[20..24].copy_from_slice(&512u32.to_le_bytes());
    c[24] = 3;
    c[28..32].copy_from_slice(&16u32.to_le_bytes());
    c[32] = 1;
    c[34..36].copy_from_slice(&queues.to_le_bytes());
    c[36..40].copy_from_slice(&32_768u32.to_le_bytes());
    c[44..48].copy_from_slice(&8u32.to_le_bytes());
    c[48..52].copy_from_slice(&4096u32.to_le_bytes());
    c[56] = 1;
}

fn rig_with(
    cores: usize,
    queues: u16,
    home: CoreId,
    legacy: bool,
    features: u64,
    depth: u32,
) -> Rig {
    let machine = machine(cores);
    let device = FakeDevice::new(2, legacy, usize::from(queues), depth, features);
    configure(device, 2048, queues);
    let (blk, model) = add_disk(device, Model::new(2048), home, cores);
    let blk = blk.unwrap();
    let listener: &'static Listener = Box::leak(Box::new(Listener {
        seen: Mutex::new(Vec::new()),
        blk: Once::new(),
    }));
    listener.blk.call_once(|| blk);
    blk.attach(listener);
    let rig = Rig {
        cores,
        device,
        blk,
        model: Mutex::new(model),
        listener,
        route: None,
        _machine: machine,
    };
    rig.settle();
    rig
}

fn rig(cores: usize, queues: u16) -> Rig {
    rig_with(cores, queues, cores - 1, false, ALL, 256)
}

impl Rig {
    /// Delivers interrupts and polls every core until nobody has anything to do. The device does nothing.
    fn settle(&self) {
        for _ in 0..1000 {
            let mut progress = self.deliver();
            for core in 0..MAX_CORES {
                progress |= on(core, || aio::context(core).poll(false));
            }
            if !progress {
                return;
            }
        }
        panic!("the cores do not come to rest");
    }

    /// Takes the interrupt on the core where it is routed to, if the controller signals it.
    fn deliver(&self) -> bool {
        let raised = self.device.state().interrupts;
        let signalled = match self.route {
            // It sees lines that rise, and those once.
            Some(route) => route.seen.swap(raised, SeqCst) != raised,
            None => self.device.line(),
        };
        if signalled {
            let core = self
                .route
                .map_or(self.blk.home(), |route| route.core.load(SeqCst));
            on(core, || self.blk.interrupt());
        }
        signalled
    }

    /// The same, and the device serves.
    fn run(&self) {
        loop {
            self.settle();
            let mut model = self.model.lock().unwrap();
            let queues = self.blk.info().queues;
            let served: usize = (0..queues).map(|q| model.serve(self.device, q)).sum();
            if served == 0 {
                return;
            }
        }
    }

    fn request(&self, operation: Operation, offset: u64, len: u64, tag: u64) -> Request {
        let mut request = block::request::new(operation, offset, len).expect("a free record");
        request.completion = &record;
        request.user[0] = tag;
        request
    }

    /// A request of one buffer, submitted on `core`, which must be a submitter.
    fn submit(&self, core: CoreId, operation: Operation, offset: u64, bytes: &[u8], tag: u64) {
        on(core, || {
            assert_eq!(self.blk.submitter(core), core);
            let mut request = self.request(operation, offset, bytes.len() as u64, tag);
            if operation.has_data() {
                let mut buffer = PAGES.alloc_contiguous(bytes.len()).unwrap();
                buffer.as_mut_slice()[..bytes.len()].copy_from_slice(bytes);
                assert!(request.add_buffer(buffer, bytes.len()).is_ok());
            }
            assert!(self.blk.submit(request).is_ok());
        });
    }

    fn done(&self) -> Vec<Done> {
        std::mem::take(&mut DONE.lock().unwrap())
    }

    fn events(&self) -> Vec<Event> {
        std::mem::take(&mut self.listener.seen.lock().unwrap())
    }

    fn kicks(&self) -> u64 {
        (0..self.blk.info().queues)
            .map(|q| self.device.kicks(q))
            .sum()
    }

    fn pass(&self, ns: u64) {
        host::clock::advance(ns);
        self.settle();
    }
}

fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed))
        .collect()
}

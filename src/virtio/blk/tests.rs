//! The driver against the fake device, with the real event loop and the real completion path, stepped in one thread.
use super::model::{Model, Seen};
use super::*;
use crate::aio;
use crate::arch::host;
use crate::block::device::DeviceFeatures;
use crate::block::{Operation, RequestFlags};
use crate::sync::PageArena;
use crate::virtio::dma::{DmaArena, DmaMemory};
use crate::virtio::fake::{FakeDevice, Reset, State, write_used};
use crate::virtio::transport::{SetupError, feature, status};
use config::{feature as blk_feature, kind};
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
}

/// A machine of `cores` cores with one disk on it.
struct Rig {
    cores: usize,
    device: &'static FakeDevice,
    blk: &'static Blk,
    model: Mutex<Model>,
    listener: &'static Listener,
    _machine: host::Machine,
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
            let mut progress = false;
            if self.device.line() {
                on(self.blk.home(), || self.blk.interrupt());
                progress = true;
            }
            for core in 0..MAX_CORES {
                progress |= on(core, || aio::context(core).poll(false));
            }
            if !progress {
                return;
            }
        }
        panic!("the cores do not come to rest");
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

#[test]
fn every_operation_on_every_kind_of_ring() {
    for legacy in [false, true] {
        for features in [
            ALL,
            ALL & !INDIRECT_DESC,
            ALL & !EVENT_INDEX,
            ALL & !(INDIRECT_DESC | EVENT_INDEX),
        ] {
            let rig = rig_with(1, 1, 0, legacy, features, 64);
            let data = pattern(7, 4096);
            rig.submit(0, Operation::Write, 8192, &data, 1);
            rig.run();
            assert_eq!(rig.done()[0].result, Ok(()));
            rig.submit(0, Operation::Read, 8192, &[0; 4096], 2);
            rig.submit(0, Operation::Flush, 0, &[], 3);
            rig.run();
            let done = rig.done();
            assert_eq!(
                (done[0].tag, done[0].result, &done[0].data),
                (2, Ok(()), &data)
            );
            assert_eq!((done[1].tag, done[1].result), (3, Ok(())));
            on(0, || {
                for (operation, flags) in [
                    (Operation::Discard, RequestFlags::empty()),
                    (Operation::WriteZeroes, RequestFlags::empty()),
                    (Operation::WriteZeroes, RequestFlags::MAY_UNMAP),
                ] {
                    let mut request = rig.request(operation, 4096, 8192, 4);
                    request.flags = flags;
                    assert!(rig.blk.submit(request).is_ok());
                }
            });
            rig.run();
            assert!(rig.done().iter().all(|d| d.result == Ok(())));
            let model = rig.model.lock().unwrap();
            let seen = |kind, sector, bytes, flags| Seen {
                kind,
                sector,
                bytes,
                flags,
            };
            assert_eq!(
                model.seen,
                [
                    seen(kind::WRITE, 16, 4096, 0),
                    seen(kind::READ, 16, 4096, 0),
                    seen(kind::FLUSH, 0, 0, 0),
                    seen(kind::DISCARD, 8, 8192, 0),
                    seen(kind::WRITE_ZEROES, 8, 8192, 0),
                    seen(kind::WRITE_ZEROES, 8, 8192, 1),
                ]
            );
            assert!(model.data[8192..12_288].iter().all(|b| *b == 0));
        }
    }
}

#[test]
fn pieces_are_gathered_and_scattered() {
    for features in [ALL, ALL & !INDIRECT_DESC] {
        let rig = rig_with(1, 1, 0, false, features, 64);
        let segments = crate::config::MAX_SEGMENTS;
        assert_eq!(rig.blk.info().max_segments as usize, segments);
        let all = pattern(3, segments * 512);
        let submit = |operation, tag| {
            on(0, || {
                let mut request = rig.request(operation, 512, all.len() as u64, tag);
                for part in all.chunks(512) {
                    let mut buffer = PAGES.alloc_contiguous(4096).unwrap();
                    if operation == Operation::Write {
                        buffer.as_mut_slice()[..512].copy_from_slice(part);
                    }
                    assert!(request.add_buffer(buffer, 512).is_ok());
                }
                assert!(rig.blk.submit(request).is_ok());
            });
            rig.run();
        };
        submit(Operation::Write, 1);
        submit(Operation::Read, 2);
        let done = rig.done();
        assert_eq!((done[1].result, &done[1].data), (Ok(()), &all));
        let model = rig.model.lock().unwrap();
        assert_eq!(model.most_pieces, segments);
        assert_eq!(&model.data[512..512 + all.len()], &all[..]);
    }
}

#[test]
fn the_configuration_is_read() {
    let rig = rig(4, 4);
    let info = rig.blk.info();
    assert_eq!(
        (info.capacity, info.logical_block, info.physical_block),
        (2048 * 512, 512, 4096)
    );
    assert_eq!(
        (info.optimal_io, info.queues, info.writeback),
        (16 * 512, 4, true)
    );
    assert_eq!(
        (info.max_discard, info.discard_align, info.max_zeroes),
        (32_768 * 512, 4096, 4096 * 512)
    );
    assert_eq!(info.serial_str(), "serial-of-this-disk");
    let expected = DeviceFeatures::all() - DeviceFeatures::READ_ONLY;
    assert_eq!(info.features, expected);
    assert!(rig.device.status() & status::DRIVER_OK != 0);
    // Write cache off is shown; FLUSH is there all the same, and sent.
    let plain = rig_with_config(ALL | blk_feature::RO, |c| {
        c[32] = 0;
        c[24] = 200;
        c[36..40].fill(0);
    })
    .unwrap();
    let info = plain.info();
    assert!(
        !info.writeback
            && info
                .features
                .contains(DeviceFeatures::FLUSH | DeviceFeatures::READ_ONLY)
    );
    assert_eq!(info.physical_block, 512, "an absurd exponent is ignored");
    assert!(
        !info.features.contains(DeviceFeatures::DISCARD),
        "discards of no sectors are none"
    );
    let bare = rig_with_config(0, |_| {}).unwrap().info();
    assert_eq!(
        (
            bare.max_segments,
            bare.queues,
            bare.features,
            bare.writeback
        ),
        (1, 1, DeviceFeatures::empty(), false)
    );
}

/// A disk of its own, on a machine that the caller holds.
fn rig_with_config(
    features: u64,
    change: impl Fn(&mut Vec<u8>),
) -> Result<&'static Blk, SetupError> {
    let device = FakeDevice::new(2, false, 4, 64, features);
    configure(device, 2048, 4);
    change(&mut device.state().config);
    let (blk, _) = add_disk(device, Model::new(2048), 0, 1);
    if blk.is_err() {
        assert_ne!(device.status() & status::FAILED, 0);
    }
    blk
}

#[test]
fn nonsense_in_the_configuration_is_refused() {
    let _machine = machine(1);
    for size in [0u32, 1, 256, 513, 131_072, u32::MAX] {
        let result = rig_with_config(ALL, |c| c[20..24].copy_from_slice(&size.to_le_bytes()));
        assert_eq!(result.err(), Some(SetupError::BadConfiguration), "{size}");
    }
    let result = rig_with_config(ALL, |c| c[0..8].fill(0xff));
    assert_eq!(result.err(), Some(SetupError::BadConfiguration));
}

#[test]
fn queues_belong_to_cores() {
    let rig4 = rig(4, 4);
    assert_eq!(
        (0..4).map(|c| rig4.blk.submitter(c)).collect::<Vec<_>>(),
        [0, 1, 2, 3]
    );
    for core in 0..4 {
        rig4.submit(core, Operation::Read, 0, &[0; 512], core as u64);
    }
    rig4.settle();
    assert_eq!(
        (0..4).map(|q| rig4.device.kicks(q)).collect::<Vec<_>>()[1..],
        [1, 1, 1]
    );
    rig4.run();
    let mut done = rig4.done();
    done.sort_by_key(|d| d.tag);
    assert!(
        done.iter()
            .all(|d| d.core as u64 == d.tag && d.result == Ok(()))
            && done.len() == 4
    );
    drop(rig4);
    // One queue: all of it on the home core. Two: the home core and the next.
    let rig1 = rig(4, 1);
    assert_eq!(
        (0..4).map(|c| rig1.blk.submitter(c)).collect::<Vec<_>>(),
        [3, 3, 3, 3]
    );
    drop(rig1);
    let rig2 = rig(4, 2);
    assert_eq!(
        (0..4).map(|c| rig2.blk.submitter(c)).collect::<Vec<_>>(),
        [0, 0, 3, 3],
        "owners: 3, then 0"
    );
}

#[test]
fn one_kick_a_turn_and_one_interrupt_a_batch() {
    let rig = rig(1, 1);
    let (kicks, interrupts) = (rig.kicks(), rig.blk.counters().interrupts);
    for i in 0..32 {
        rig.submit(0, Operation::Read, i * 512, &[0; 512], i);
    }
    assert_eq!(rig.kicks(), kicks, "nothing before the end of the turn");
    rig.run();
    assert_eq!(rig.kicks(), kicks + 1);
    assert_eq!(rig.blk.counters().interrupts, interrupts + 1);
    assert_eq!(rig.done().len(), 32);
}

#[test]
fn a_full_queue_gives_the_request_back() {
    let rig = rig_with(1, 1, 0, false, ALL, 8);
    for i in 0..8 {
        rig.submit(0, Operation::Read, i * 512, &[0; 512], i);
    }
    on(0, || {
        let request = rig.request(Operation::Flush, 0, 0, 99);
        let request = rig.blk.submit(request).expect_err("full");
        assert_eq!(request.user[0], 99);
    });
    rig.run();
    assert_eq!(rig.done().len(), 8);
    rig.submit(0, Operation::Flush, 0, &[], 9);
    rig.run();
    assert_eq!(rig.done().len(), 1);
}

#[test]
fn errors_of_the_device_are_typed() {
    let rig = rig(1, 1);
    rig.model.lock().unwrap().bad_sector = Some(8);
    rig.submit(0, Operation::Read, 4096, &[0; 512], 1);
    rig.submit(0, Operation::Read, 2048 * 512, &[0; 512], 2);
    rig.submit(0, Operation::Read, 0, &[0; 512], 3);
    rig.run();
    let results: Vec<_> = rig.done().iter().map(|d| d.result).collect();
    assert_eq!(results, [Err(BlockError::Io), Err(BlockError::Io), Ok(())]);
    // A device that says "used" but writes no status has not done it.
    rig.submit(0, Operation::Read, 0, &[0; 512], 4);
    rig.submit(0, Operation::Read, 0, &[0; 512], 5);
    rig.settle();
    rig.device.look(0, 9);
    let chain = rig.device.take(0, 0).unwrap();
    rig.device.answer(0, &[(u32::from(chain.head), 0)]);
    let chain = rig.device.take(0, 0).unwrap();
    chain.write(chain.room() as usize - 1, &[2]);
    rig.device.answer(0, &[(u32::from(chain.head), 1)]);
    rig.settle();
    let results: Vec<_> = rig.done().iter().map(|d| d.result).collect();
    assert_eq!(
        results,
        [Err(BlockError::Io), Err(BlockError::NotSupported)]
    );
}

#[test]
fn a_device_that_never_answers_keeps_its_buffers() {
    let rig = rig(2, 2);
    rig.submit(1, Operation::Write, 0, &pattern(1, 512), 1);
    rig.submit(0, Operation::Read, 0, &[0; 512], 2);
    rig.settle();
    for _ in 0..100 {
        rig.pass(60_000_000_000);
    }
    assert_eq!(rig.done(), [], "no timer completes a request");
    // Neither does a reset that the device does not confirm.
    rig.device.state().reset = Reset::Late;
    rig.blk.reset();
    rig.blk.reset();
    for _ in 0..100 {
        rig.pass(1_000_000_000);
    }
    assert_eq!((rig.done(), rig.events()), (std::vec![], std::vec![]));
    assert_eq!(
        rig.device
            .state()
            .status_log
            .iter()
            .filter(|s| **s == 0)
            .count(),
        2,
        "at boot and now, once each"
    );
    // New requests fail at once, but not inside submit.
    rig.submit(0, Operation::Flush, 0, &[], 3);
    assert_eq!(rig.done(), []);
    rig.settle();
    let done = rig.done();
    assert_eq!(
        (done[0].tag, done[0].result, done.len()),
        (3, Err(BlockError::Io), 1)
    );
    rig.device.confirm_reset();
    rig.pass(1_000_000_000);
    let mut tags: Vec<_> = rig.done().iter().map(|d| (d.tag, d.result)).collect();
    tags.sort_by_key(|t| t.0);
    assert_eq!(tags, [(1, Err(BlockError::Io)), (2, Err(BlockError::Io))]);
    assert_eq!(rig.events(), [Event::ResetDone(Ok(()))]);
    assert_eq!(rig.blk.counters().resets, 1);
    rig.submit(1, Operation::Read, 0, &[0; 512], 4);
    rig.submit(0, Operation::Read, 0, &[0; 512], 5);
    rig.run();
    assert!(rig.done().iter().all(|d| d.result == Ok(())));
}

#[test]
fn answers_after_the_reset_are_ignored() {
    let rig = rig(1, 1);
    rig.submit(0, Operation::Read, 0, &[0; 512], 1);
    rig.settle();
    rig.device.look(0, 9);
    let late = rig.device.take(0, 0).unwrap();
    rig.blk.reset();
    rig.settle();
    assert_eq!(rig.done()[0].result, Err(BlockError::Io));
    rig.submit(0, Operation::Read, 0, &[0; 512], 2);
    rig.settle();
    // The device comes back to the old ring, and interrupts.
    let old = rig.device.state().old_rings[0];
    write_used(&old, 1, u32::from(late.head), 513);
    old.used_index().store(2, SeqCst);
    rig.device.state().raise(1);
    rig.settle();
    assert_eq!(
        (rig.done(), rig.events()),
        (std::vec![], std::vec![Event::ResetDone(Ok(()))])
    );
    rig.run();
    assert_eq!(rig.done()[0].result, Ok(()));
}

#[test]
fn what_a_resetting_device_says_is_not_believed() {
    let rig = rig(1, 1);
    rig.submit(0, Operation::Read, 0, &[0; 512], 1);
    rig.settle();
    rig.device.state().reset = Reset::Late;
    rig.blk.reset();
    rig.settle();
    // Status 0 was written; the device answers all the same before it confirms.
    assert_eq!(rig.model.lock().unwrap().serve(rig.device, 0), 1);
    rig.device.state().raise(1);
    rig.settle();
    assert_eq!(rig.done(), []);
    rig.device.confirm_reset();
    rig.pass(1_000_000_000);
    assert_eq!(rig.done()[0].result, Err(BlockError::Io));
    assert_eq!(rig.events(), [Event::ResetDone(Ok(()))]);
}

#[test]
fn needs_reset_is_obeyed() {
    let rig = rig(2, 2);
    rig.submit(0, Operation::Read, 0, &[0; 512], 1);
    rig.settle();
    rig.device.needs_reset();
    rig.settle();
    assert_eq!(rig.events(), [Event::NeedsReset, Event::ResetDone(Ok(()))]);
    assert_eq!(rig.done()[0].result, Err(BlockError::Io));
    rig.submit(0, Operation::Read, 0, &[0; 512], 2);
    rig.run();
    assert_eq!(rig.done()[0].result, Ok(()));
}

#[test]
fn a_lying_device_is_reset() {
    let rig = rig(1, 1);
    for round in 0..3 {
        rig.submit(0, Operation::Read, 0, &[0; 512], 1);
        rig.settle();
        rig.device.look(0, 9);
        match round {
            0 => rig.device.answer(0, &[(4711, 0)]),
            1 => {
                let head = u32::from(rig.device.take(0, 0).unwrap().head);
                rig.device.answer(0, &[(head, 100_000)]);
            }
            _ => rig.device.jump(0, 77),
        }
        rig.settle();
        assert_eq!(rig.events(), [Event::NeedsReset, Event::ResetDone(Ok(()))]);
        let done = rig.done();
        assert_eq!((done.len(), done[0].result), (1, Err(BlockError::Io)));
        rig.submit(0, Operation::Read, 0, &[0; 512], 2);
        rig.run();
        assert_eq!(rig.done()[0].result, Ok(()));
    }
}

#[test]
fn a_device_that_comes_back_different_stays_down() {
    let rig = rig(1, 1);
    rig.submit(0, Operation::Read, 0, &[0; 512], 1);
    rig.settle();
    rig.device.state().offered &= !blk_feature::FLUSH;
    rig.blk.reset();
    rig.settle();
    assert_eq!(rig.events(), [Event::ResetDone(Err(BlockError::Io))]);
    assert_ne!(rig.device.status() & status::FAILED, 0);
    rig.submit(0, Operation::Read, 0, &[0; 512], 2);
    rig.settle();
    assert!(rig.done().iter().all(|d| d.result == Err(BlockError::Io)));
    rig.device.state().offered |= blk_feature::FLUSH;
    rig.blk.reset();
    rig.settle();
    assert_eq!(rig.events(), [Event::ResetDone(Ok(()))]);
    rig.submit(0, Operation::Read, 0, &[0; 512], 3);
    rig.run();
    assert_eq!(rig.done()[0].result, Ok(()));
}

fn grow(state: &mut State) {
    state.config[0..8].copy_from_slice(&4096u64.to_le_bytes());
    state.generation += 1;
    state.raise(2);
}

#[test]
fn a_config_change_in_the_middle_of_a_used_ring_interrupt() {
    let rig = rig(2, 2);
    rig.submit(0, Operation::Read, 0, &[0; 512], 1);
    rig.settle();
    rig.model.lock().unwrap().serve(rig.device, 0);
    // The queue bit is up; the configuration changes right after the handler has acknowledged it. One call, since an
    // edge that came in between would be lost.
    rig.device.state().after_ack = Some(grow);
    on(1, || rig.blk.interrupt());
    assert!(!rig.device.line(), "the handler leaves the line down");
    rig.settle();
    assert_eq!(rig.done()[0].result, Ok(()));
    assert_eq!(
        (rig.events(), rig.blk.info().capacity),
        (std::vec![Event::Resized], 4096 * 512)
    );
    // The other way round: a used ring that moves right after a configuration bit was acknowledged.
    rig.submit(1, Operation::Read, 0, &[0; 512], 2);
    rig.settle();
    rig.device
        .change_config(|c| c[0..8].copy_from_slice(&1024u64.to_le_bytes()));
    rig.device.state().after_ack = Some(|state| state.raise(1));
    rig.model.lock().unwrap().serve(rig.device, 1);
    on(1, || rig.blk.interrupt());
    rig.settle();
    assert_eq!(
        (rig.done().len(), rig.events()),
        (1, std::vec![Event::Resized])
    );
    assert_eq!(rig.blk.info().capacity, 1024 * 512);
    // A change that changes nothing is no news.
    rig.device.change_config(|c| c[32] = 0);
    rig.settle();
    assert_eq!(rig.events(), []);
}

#[test]
fn polling_does_without_interrupts() {
    for features in [ALL, ALL & !EVENT_INDEX] {
        let rig = rig_with(1, 1, 0, false, features, 64);
        let argument = argument(usize::from(rig.blk.index.load(Relaxed)), 0);
        // The fake device has interrupted once, as devices do, for the first answer.
        rig.submit(0, Operation::Read, 0, &[0; 512], 0);
        rig.run();
        on(0, || poll_begin(argument));
        let interrupts = rig.device.state().interrupts;
        for i in 1..40 {
            rig.submit(0, Operation::Read, 0, &[0; 512], i);
            rig.settle();
            assert!(!on(0, || poll_check(argument)));
            rig.model.lock().unwrap().serve(rig.device, 0);
            assert!(on(0, || poll_check(argument)));
            on(0, || ready(argument));
            assert!(!on(0, || poll_check(argument)));
        }
        assert_eq!(
            rig.device.state().interrupts,
            interrupts,
            "polling, so no interrupt"
        );
        // One that comes between the last check and the end of polling is found by the check after it.
        rig.submit(0, Operation::Read, 0, &[0; 512], 40);
        rig.settle();
        rig.model.lock().unwrap().serve(rig.device, 0);
        on(0, || poll_end(argument));
        assert!(on(0, || poll_check(argument)));
        on(0, || ready(argument));
        rig.submit(0, Operation::Read, 0, &[0; 512], 41);
        rig.run();
        assert!(
            rig.device.state().interrupts > interrupts,
            "and by interrupt again"
        );
        assert_eq!(rig.done().len(), 42);
    }
}

/// Many cores, random operations, resets in between: each request is answered once, and reads tell the truth.
#[test]
fn random_work_with_resets() {
    let rig = rig(4, 4);
    let mut seed = 0x1234_5678_9abc_def1u64;
    let mut random = move |n: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed >> 11) % n
    };
    let (mut submitted, mut answered, mut failed) = (0u64, 0u64, 0u64);
    for round in 0..3000u64 {
        for core in 0..rig.cores {
            for _ in 0..random(6) {
                // Each core has its own sectors, so what a read finds is known.
                let offset = (core as u64 * 512 + random(8)) * 512;
                let operation =
                    [Operation::Read, Operation::Write, Operation::Flush][random(3) as usize];
                let bytes = if operation == Operation::Flush {
                    0
                } else {
                    512
                };
                rig.submit(
                    core,
                    operation,
                    offset,
                    &std::vec![core as u8 + 1; bytes],
                    submitted,
                );
                submitted += 1;
            }
        }
        rig.settle();
        for queue in 0..4 {
            if random(3) > 0 {
                rig.model.lock().unwrap().serve(rig.device, queue);
            }
        }
        if round % 500 == 499 {
            rig.blk.reset();
        }
        rig.settle();
        for done in rig.done() {
            answered += 1;
            failed += u64::from(done.result.is_err());
            let fine = done
                .data
                .iter()
                .all(|b| *b == 0 || *b == done.core as u8 + 1);
            assert!(fine, "foreign data");
        }
    }
    rig.run();
    answered += rig.done().len() as u64;
    assert_eq!(answered, submitted);
    assert!(failed > 0 && failed < submitted / 20);
    assert_eq!(rig.blk.counters().resets, 6);
    assert_eq!(rig.events(), [Event::ResetDone(Ok(())); 6]);
}

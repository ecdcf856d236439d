//! A simulated disk: the fake virtio device of `ironthread::virtio::fake` in front, a medium with a volatile cache behind.
//!
//! The driver above is the shipped one, rings and all. What the device does, and when, is decided by chance: it takes
//! chains when it likes, executes them in any order, answers later still, fails some, and falls silent.
//!
//! The cache: each sector has what the medium holds, and the values that were written since and not flushed. A flush covers
//! the writes that had been *answered* when the flush was made available, and no others: the least that the specification
//! asks for. When power is lost each sector keeps any of its values, and of a write under way any of its sectors are done.

mod medium;

use std::sync::{Mutex, MutexGuard, PoisonError};

use ironthread::virtio::fake::{Chain, FakeDevice, Reset};
use ironthread::virtio::transport::{QueueAddresses, Transport, feature};

use crate::oracle::SECTOR;
use crate::random::Random;

/// Sectors of the largest disk that clients use as it is.
pub const SECTORS: usize = 512;
/// What a medium is stored in; parts that nobody wrote to are not stored.
pub const PAGE: usize = 4096;

const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const ZEROES: u32 = 13;

const OK: u8 = 0;
const IO_ERROR: u8 = 1;

/// Features of virtio-blk: SEG_MAX, BLK_SIZE, FLUSH, TOPOLOGY, CONFIG_WCE, MQ, DISCARD, WRITE_ZEROES.
const ALWAYS: u64 = 1 << 2 | 1 << 6 | 1 << 10 | 1 << 12 | 1 << 13 | 1 << 14;
const HAS_FLUSH: u64 = 1 << 9;

/// What a disk is; the same in all lives of a seed.
#[derive(Clone, Copy, Debug)]
pub struct Model {
    pub queues: u16,
    pub depth: u32,
    pub legacy: bool,
    pub indirect: bool,
    pub event_index: bool,
    pub block: u32,
    /// It has a cache that flushes empty.
    pub flush: bool,
    /// A reset empties the cache, unwritten.
    pub forgets: bool,
    /// Confirms a reset when it likes.
    pub slow_reset: bool,
    /// Of so many chances to do something it takes one.
    pub slow: usize,
    /// Chains are seen late, not as soon as they are there.
    pub lazy: bool,
}

impl Model {
    pub fn new(random: &mut Random) -> Self {
        Self {
            queues: random.pick(&[1, 1, 2, 4]),
            depth: random.pick(&[8, 16, 64, 256]),
            legacy: random.chance(1, 4),
            indirect: random.chance(3, 4),
            event_index: random.chance(1, 2),
            block: random.pick(&[512, 512, 4096]),
            flush: !random.chance(1, 10),
            forgets: random.chance(1, 2),
            slow_reset: random.chance(1, 2),
            slow: random.pick(&[1, 1, 2, 8]),
            lazy: random.chance(1, 4),
        }
    }
}

#[derive(Clone)]
struct Sector {
    visible: [u8; SECTOR],
    durable: [u8; SECTOR],
    /// Written since the last flush, with the number of the write.
    unflushed: Vec<(usize, [u8; SECTOR])>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Taken,
    Executed { status: u8, written: u32 },
}

/// What a disk fails, each request of it.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Ill {
    pub reads: bool,
    pub writes: bool,
    pub flushes: bool,
}

struct Pending {
    queue: u16,
    chain: Chain,
    kind: u32,
    first: usize,
    count: usize,
    /// When it was made available.
    available: u64,
    write: Option<usize>,
    stage: Stage,
}

/// What the scheduler and the checks know of a disk.
pub struct State {
    model: Model,
    random: Random,
    /// In sectors.
    pub capacity: usize,
    /// By page; `None`: zeroes.
    pages: Vec<Option<Box<[Sector; PAGE / SECTOR]>>>,
    /// When each write was answered.
    answered: Vec<u64>,
    tick: u64,
    pending: Vec<Pending>,
    boot: bool,
    resetting: bool,
    broken: bool,
    pub silent: bool,
    /// So many of the next requests fail.
    pub fail: u32,
    /// What fails until it is repaired.
    pub ill: Ill,
    /// Something went wrong that may have reached a client.
    pub faults: u64,
    /// The cache was lost in a reset, and nobody has looked yet.
    pub lost: bool,
    /// Every user of the disk is in a drained section: nothing may come.
    pub quiet: bool,
    /// What came all the same.
    pub slipped: Option<String>,
    /// Executed so far: reads, writes, flushes, others.
    pub executed: [u64; 4],
}

/// The device as the driver sees it.
pub struct Port {
    device: &'static FakeDevice,
    state: Mutex<State>,
}

impl Port {
    /// A disk of `capacity` sectors, at most `most` in later times, that holds what is in `image`: pages and their numbers. It
    /// lives for ever.
    pub fn new<'a>(
        model: Model,
        capacity: usize,
        most: usize,
        image: impl Iterator<Item = (usize, &'a [u8])>,
        random: Random,
    ) -> &'static Self {
        let mut features = ALWAYS;
        for (has, bit) in [
            (model.flush, HAS_FLUSH),
            (model.indirect, feature::INDIRECT_DESC),
            (model.event_index, feature::EVENT_INDEX),
        ] {
            features |= if has { bit } else { 0 };
        }
        let queues = usize::from(model.queues);
        let device = FakeDevice::new(2, model.legacy, queues, model.depth, features);
        {
            let mut state = device.state();
            if model.slow_reset {
                state.reset = Reset::Late;
            }
            let c = &mut state.config;
            c[0..8].copy_from_slice(&(capacity as u64).to_le_bytes());
            c[12..16].copy_from_slice(&126u32.to_le_bytes());
            c[20..24].copy_from_slice(&model.block.to_le_bytes());
            c[34..36].copy_from_slice(&model.queues.to_le_bytes());
            c[36..40].copy_from_slice(&64u32.to_le_bytes());
            c[44..48].copy_from_slice(&8u32.to_le_bytes());
            c[48..52].copy_from_slice(&96u32.to_le_bytes());
            c[56] = 1;
        }
        let mut pages = vec![None; most.div_ceil(PAGE / SECTOR)];
        for (number, page) in image {
            pages[number] = Some(medium::page(page));
        }
        let state = State {
            model,
            random,
            capacity,
            pages,
            answered: Vec::new(),
            tick: 1,
            pending: Vec::new(),
            boot: true,
            resetting: false,
            broken: false,
            silent: false,
            fail: 0,
            ill: Ill::default(),
            faults: 0,
            lost: false,
            quiet: false,
            slipped: None,
            executed: [0; 4],
        };
        Box::leak(Box::new(Self {
            device,
            state: Mutex::new(state),
        }))
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The driver is up.
    pub fn booted(&self) {
        self.state().boot = false;
    }

    /// How often its interrupt line has gone up: an edge is all that the interrupt controller sees.
    pub fn edges(&self) -> u64 {
        self.device.state().interrupts
    }

    /// After each turn of a core: what has become available is noted now, so that a flush covers nothing that is answered
    /// later. A lazy device looks when it is its turn, and covers more.
    pub fn observe(&self) {
        let mut state = self.state();
        if !state.model.lazy {
            state.look(self.device);
        }
    }

    /// One step of the device's own. Says what it did: a letter and a place; `None`: nothing.
    pub fn step(&self) -> Option<(char, u64)> {
        let mut state = self.state();
        let slow = state.model.slow;
        if !state.random.chance(1, slow) {
            return None;
        }
        if state.resetting && state.random.chance(1, 20) {
            state.reset(self.device);
            return Some(('R', 0));
        }
        if state.model.lazy && state.random.chance(1, 2) {
            state.look(self.device);
        }
        if state.silent || state.broken || state.pending.is_empty() {
            return None;
        }
        let count = state.pending.len();
        // Mostly in order, often not.
        let n = if state.random.chance(1, 2) {
            0
        } else {
            state.random.below(count)
        };
        if state.pending[n].stage == Stage::Taken {
            state.execute(n);
            if state.random.chance(1, 4) {
                return Some(('x', state.pending[n].first as u64));
            }
        }
        let first = state.pending[n].first;
        state.answer(self.device, n);
        Some(('a', first as u64))
    }

    /// The device breaks and asks for a reset, at any moment of the one that it may just be getting too.
    pub fn ask_reset(&self) {
        {
            let mut state = self.state();
            state.broken = true;
            state.faults += 1;
        }
        self.device.needs_reset();
    }

    /// It becomes larger.
    pub fn grow(&self, capacity: usize) {
        self.state().capacity = capacity;
        self.device
            .change_config(|c| c[0..8].copy_from_slice(&(capacity as u64).to_le_bytes()));
    }
}

impl Transport for Port {
    fn device_type(&self) -> u32 {
        self.device.device_type()
    }
    fn is_legacy(&self) -> bool {
        self.device.is_legacy()
    }
    fn status(&self) -> u32 {
        self.device.status()
    }
    fn set_status(&self, status: u32) {
        self.device.set_status(status);
        if status != 0 {
            return;
        }
        let mut state = self.state();
        if state.boot {
            if state.model.slow_reset {
                self.device.confirm_reset();
            }
        } else if state.model.slow_reset {
            // One that reads 0 already has confirmed.
            state.resetting = self.device.status() != 0;
        } else {
            state.reset(self.device);
        }
    }
    fn device_features(&self) -> u64 {
        self.device.device_features()
    }
    fn set_driver_features(&self, features: u64) {
        self.device.set_driver_features(features);
    }
    fn queue_max(&self, queue: u16) -> u32 {
        self.device.queue_max(queue)
    }
    fn set_queue(&self, queue: u16, depth: u16, addresses: &QueueAddresses) {
        self.device.set_queue(queue, depth, addresses);
    }
    fn config_u8(&self, offset: usize) -> u8 {
        self.device.config_u8(offset)
    }
    fn config_u16(&self, offset: usize) -> u16 {
        self.device.config_u16(offset)
    }
    fn config_u32(&self, offset: usize) -> u32 {
        self.device.config_u32(offset)
    }
    fn config_generation(&self) -> u32 {
        self.device.config_generation()
    }
    fn notify(&self, queue: u16) {
        self.device.notify(queue);
        let mut state = self.state();
        if state.boot {
            // The driver waits for the disk's name, and nobody else runs.
            state.look(self.device);
            while !state.pending.is_empty() {
                state.execute(0);
                state.answer(self.device, 0);
            }
        }
    }
    fn interrupt_status(&self) -> u32 {
        self.device.interrupt_status()
    }
    fn interrupt_ack(&self, bits: u32) {
        self.device.interrupt_ack(bits);
    }
}

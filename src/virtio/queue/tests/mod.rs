//! The ring against the fake device: every request comes back once, no kick and no interrupt is missed, and no lie is
//! believed.
mod lies;

use super::*;
use crate::virtio::dma::{DmaArena, DmaMemory};
use crate::virtio::fake::{FakeDevice, Reset, write_used};
use crate::virtio::transport::{self, SetupError, feature, status};
use proptest::prelude::*;
use std::boxed::Box;
use std::collections::HashMap;
use std::vec::Vec;

const INDIRECT_DESC: u64 = feature::INDIRECT_DESC;
const EVENT_INDEX: u64 = feature::EVENT_INDEX;

/// Memory that chains point to; nobody reads it in these tests.
static DATA: [u8; 64] = [0; 64];

fn arena() -> &'static DmaArena {
    let memory: &'static DmaMemory<{ 64 * 4096 }> = Box::leak(Box::default());
    Box::leak(Box::new(DmaArena::new(memory)))
}

fn make(legacy: bool, features: u64, depth: u16, chain: u16) -> (&'static FakeDevice, VirtQueue) {
    let device = FakeDevice::new(2, legacy, 1, u32::from(depth), features);
    transport::reset_at_boot(device).unwrap();
    let features = transport::negotiate(device, INDIRECT_DESC | EVENT_INDEX).unwrap();
    let config = QueueConfig {
        depth: 256,
        chain,
        features,
        spare: true,
    };
    let queue = VirtQueue::new(device, 0, &config, arena()).unwrap();
    transport::start(device).unwrap();
    assert_eq!(queue.depth(), depth);
    (device, queue)
}

/// A small deterministic generator.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 11
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

fn pieces(random: &mut Random, most: u16) -> Vec<Piece> {
    let count = 1 + random.below(u64::from(most)) as usize;
    let readable = random.below(count as u64 + 1) as usize;
    (0..count)
        .map(|i| Piece {
            address: &raw const DATA as u64,
            len: 1 + random.below(64) as u32,
            device_writes: i >= readable,
        })
        .collect()
}

/// Driver and device, stepped by one random generator.
struct World {
    device: &'static FakeDevice,
    queue: VirtQueue,
    random: Random,
    /// What is out, by head: the bytes that the device may write.
    out: HashMap<u16, u32>,
    added: u64,
    done: u64,
}

impl World {
    fn add(&mut self, most: u64) {
        for _ in 0..most {
            let chain = pieces(&mut self.random, self.queue.max_pieces().min(5));
            if !self.queue.has_room(chain.len()) {
                assert_eq!(self.queue.add(&chain), Err(QueueFull));
                return;
            }
            let expected = self.queue.next_head();
            let head = self.queue.add(&chain).unwrap();
            assert_eq!(head, expected);
            let room = chain
                .iter()
                .filter(|p| p.device_writes)
                .map(|p| p.len)
                .sum();
            assert!(
                self.out.insert(head, room).is_none(),
                "head {head} is out twice"
            );
            self.added += 1;
        }
    }

    /// The device takes some chains if it was kicked, and answers some of them in any order.
    fn device_step(&mut self) {
        let take = self.random.below(80) as usize;
        self.device.look(0, take);
        let pending = self.device.pending(0) as u64;
        let mut answers = Vec::new();
        for _ in 0..self.random.below(pending.min(48) + 1) {
            let n = self.random.below(self.device.pending(0) as u64) as usize;
            let chain = self.device.take(0, n).unwrap();
            let len = self.random.below(u64::from(chain.room()) + 1) as u32;
            answers.push((u32::from(chain.head), len));
        }
        if !answers.is_empty() {
            self.device.answer(0, &answers);
        }
    }

    fn pop_all(&mut self) {
        while let Some(used) = self.queue.pop().expect("an honest device") {
            let room = self.out.remove(&used.head).expect("a head that is out");
            assert!(used.len <= room);
            self.done += 1;
        }
    }

    /// The driver looks at the used ring only if the line is up.
    fn driver_interrupt(&mut self, interleave: bool) -> bool {
        if !self.device.line() {
            return false;
        }
        self.device.interrupt_ack(self.device.interrupt_status());
        loop {
            self.queue.disarm();
            self.pop_all();
            // The device may act between the last look and the re-arming.
            if interleave && self.random.below(2) == 0 {
                self.device_step();
            }
            if !self.queue.arm() {
                return true;
            }
        }
    }

    /// No new requests: all that are out must come back by kicks and interrupts alone.
    fn settle(&mut self) {
        self.queue.publish();
        for _ in 0..10_000 {
            self.device_step();
            self.driver_interrupt(false);
            if self.out.is_empty() {
                break;
            }
        }
        assert!(
            self.out.is_empty(),
            "after {} requests {} hang: a missed kick or interrupt",
            self.done,
            self.out.len()
        );
        assert_eq!(
            (self.queue.in_flight(), self.queue.free()),
            (0, self.queue.depth())
        );
    }

    fn run(&mut self, total: u64) {
        let mut settle_at = 500;
        while self.added < total {
            match self.random.below(8) {
                0..=2 => {
                    let burst = 1 + self.random.below(64);
                    self.add(burst);
                }
                3 => {
                    self.queue.publish();
                }
                4..=5 => self.device_step(),
                _ => {
                    self.driver_interrupt(true);
                }
            }
            if self.added >= settle_at {
                self.settle();
                settle_at = self.added + 1 + self.random.below(4000);
            }
        }
        self.settle();
        assert_eq!(self.done, self.added);
    }
}

fn world(legacy: bool, features: u64, depth: u16, seed: u64) -> World {
    let (device, mut queue) = make(legacy, features, depth, 8);
    queue.arm();
    World {
        device,
        queue,
        random: Random(seed),
        out: HashMap::new(),
        added: 0,
        done: 0,
    }
}

#[test]
fn two_hundred_thousand_batched_requests_over_the_wrap() {
    for (i, features) in [0, EVENT_INDEX, INDIRECT_DESC, INDIRECT_DESC | EVENT_INDEX]
        .into_iter()
        .enumerate()
    {
        for legacy in [false, true] {
            let mut world = world(legacy, features, 256, 0x9e37_79b9 + i as u64);
            world.run(200_000);
            let c = world.queue.counters();
            assert_eq!(world.device.kicks(0), c.kicks);
            // Suppression works: a kick and an interrupt serve many requests.
            assert!(
                c.kicks < world.added / 4,
                "{} kicks for {} requests",
                c.kicks,
                world.added
            );
            assert!(world.device.state().interrupts < world.added / 4);
        }
    }
}

#[test]
fn shallow_queues_wrap_too() {
    for depth in [4, 8, 32] {
        world(false, EVENT_INDEX, depth, 77).run(70_000);
        world(false, INDIRECT_DESC | EVENT_INDEX, depth, 78).run(70_000);
    }
}

/// Driver and device on two threads: the barriers, not the steps, keep kicks and interrupts from being missed. Each
/// round is a few publishes close together, at odd distances, and then everything must come back: nothing that is
/// published later can make up for a missed kick, nothing that is used later for a missed interrupt.
#[test]
fn two_threads_miss_nothing() {
    use std::sync::atomic::{AtomicBool, Ordering};
    for features in [0, EVENT_INDEX | INDIRECT_DESC] {
        let (device, mut queue) = make(false, features, 64, 2);
        let stop: &'static AtomicBool = Box::leak(Box::new(AtomicBool::new(false)));
        queue.arm();
        let thread = std::thread::spawn(move || {
            let mut random = Random(5);
            let mut idle = 0;
            while !stop.load(Ordering::Relaxed) {
                device.look(0, 1 + random.below(40) as usize);
                let mut answers = Vec::new();
                while let Some(chain) = device.take(0, 0) {
                    answers.push((u32::from(chain.head), 0));
                }
                idle = if answers.is_empty() { idle + 1 } else { 0 };
                if idle > 200 {
                    std::thread::yield_now();
                } else if !answers.is_empty() {
                    device.answer(0, &answers);
                }
            }
        });
        let mut random = Random(6);
        let (mut added, mut done) = (0u64, 0u64);
        while added < 60_000 {
            for _ in 0..1 + random.below(4) {
                for _ in 0..1 + random.below(3) {
                    let data = &raw const DATA as u64;
                    queue
                        .add(&[Piece::read(data, 8), Piece::write(data, 8)])
                        .unwrap();
                    added += 1;
                }
                queue.publish();
                for _ in 0..random.below(400) {
                    core::hint::spin_loop();
                }
            }
            let mut begun = None;
            let mut turns = 0u32;
            while done < added {
                if device.line() {
                    device.interrupt_ack(device.interrupt_status());
                    loop {
                        queue.disarm();
                        while queue.pop().unwrap().is_some() {
                            done += 1;
                        }
                        if !queue.arm() {
                            break;
                        }
                    }
                    begun = None;
                }
                turns += 1;
                if turns > 500 {
                    std::thread::yield_now();
                    let begun = *begun.get_or_insert_with(std::time::Instant::now);
                    assert!(begun.elapsed().as_secs() < 20, "hangs at {done} of {added}");
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
        thread.join().unwrap();
    }
}

#[test]
fn the_event_comparison_is_the_one_of_the_specification() {
    // By counting: does any step from `old` to `new` go from `event` to `event + 1`?
    let mut random = Random(1);
    for _ in 0..20_000 {
        let old = random.next() as u16;
        let steps = random.below(600) as u16;
        let event = old
            .wrapping_sub(300)
            .wrapping_add(random.below(1200) as u16);
        let expected = (0..steps).any(|i| old.wrapping_add(i) == event);
        assert_eq!(
            passes(event, old.wrapping_add(steps), old),
            expected,
            "{event} {old} {steps}"
        );
    }
}

#[test]
fn the_depth_follows_device_and_memory() {
    let config = |depth| QueueConfig {
        depth,
        chain: 18,
        features: INDIRECT_DESC,
        spare: true,
    };
    let device = FakeDevice::new(2, false, 1, 1000, INDIRECT_DESC);
    let queue = VirtQueue::new(device, 0, &config(300), arena()).unwrap();
    assert_eq!((queue.depth(), queue.max_pieces()), (256, 18));
    let small: &'static DmaMemory<{ 6 * 4096 }> = Box::leak(Box::default());
    let small = Box::leak(Box::new(DmaArena::new(small)));
    let device = FakeDevice::new(2, false, 2, 256, INDIRECT_DESC);
    let queue = VirtQueue::new(device, 0, &config(256), small).unwrap();
    assert_eq!(queue.depth(), 16);
    // A chain may not be longer than the queue, nor the table.
    assert_eq!(queue.max_pieces(), 16);
    assert_eq!(
        VirtQueue::new(device, 1, &config(256), small).err(),
        Some(SetupError::NoMemory)
    );
    assert_eq!(
        VirtQueue::new(device, 2, &config(256), small).err(),
        Some(SetupError::NoQueue(2))
    );
}

#[test]
fn negotiation_reads_back_and_gives_up_aloud() {
    let device = FakeDevice::new(2, false, 1, 64, EVENT_INDEX);
    device.state().refuse_features = true;
    assert_eq!(
        transport::negotiate(device, EVENT_INDEX),
        Err(SetupError::FeaturesRefused)
    );
    assert_ne!(device.status() & status::FAILED, 0);
    let device = FakeDevice::new(2, false, 1, 64, 0);
    device.state().offered = EVENT_INDEX;
    assert_eq!(
        transport::negotiate(device, EVENT_INDEX),
        Err(SetupError::NotModern)
    );
    assert_ne!(device.status() & status::FAILED, 0);
    let device = FakeDevice::new(2, false, 1, 64, 0);
    device.state().status = 15;
    device.state().reset = Reset::Late;
    assert_eq!(transport::reset_at_boot(device), Err(SetupError::NoReset));
    let device = FakeDevice::new(2, true, 1, 64, EVENT_INDEX | 1 << 9);
    assert_eq!(transport::negotiate(device, EVENT_INDEX), Ok(EVENT_INDEX));
    transport::start(device).unwrap();
    assert_eq!(device.status(), 7, "no FEATURES_OK on a legacy device");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// What the device sees of a chain is what was added, piece by piece, whatever was added and taken before.
    #[test]
    fn the_device_sees_the_chains(seed in 1u64.., indirect: bool, legacy: bool) {
        let features = if indirect { INDIRECT_DESC } else { 0 };
        let (device, mut queue) = make(legacy, features, 32, 7);
        let mut random = Random(seed);
        let mut out = HashMap::new();
        for _ in 0..200 {
            let chain = pieces(&mut random, 7);
            match queue.add(&chain) {
                Ok(head) => prop_assert!(out.insert(head, chain).is_none()),
                Err(QueueFull) => prop_assert!(!queue.has_room(chain.len())),
            }
            if random.below(4) == 0 {
                queue.publish();
                device.look(0, 64);
                while let Some(chain) = device.take(0, random.below(32) as usize) {
                    prop_assert_eq!(&chain.pieces, &out[&chain.head]);
                    device.answer(0, &[(u32::from(chain.head), chain.room())]);
                }
                while let Some(used) = queue.pop().unwrap() {
                    let chain = out.remove(&used.head).unwrap();
                    let room: u32 = chain.iter().filter(|p| p.device_writes).map(|p| p.len).sum();
                    prop_assert_eq!(used.len, room);
                }
            }
        }
    }
}

//! The driver against the fake device: what a card does in order, out of order, and when it lies.
use std::boxed::Box;
use std::collections::VecDeque;
use std::vec;
use std::vec::Vec;

use super::setup::{MEMORY_BYTES, feature, set_up};
use super::*;
use crate::arch::host;
use crate::config::{NET_MAX_FRAME, NET_RING, NET_RX_BUFFER};
use crate::virtio::dma::{DmaArena, DmaMemory};
use crate::virtio::fake::{Chain, FakeDevice, Reset};

const ALL: u64 = feature::CSUM
    | feature::GUEST_CSUM
    | feature::MAC
    | feature::GUEST_TSO4
    | feature::HOST_TSO4
    | feature::MRG_RXBUF
    | feature::STATUS
    | feature::ANY_LAYOUT
    | feature::EVENT_INDEX;

const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];

struct Bench {
    card: &'static VirtioNet,
    device: &'static FakeDevice,
    header: usize,
    _core: host::CoreGuard,
}

fn arena<const BYTES: usize>() -> &'static DmaArena {
    let layout = std::alloc::Layout::new::<DmaMemory<BYTES>>();
    // SAFETY: zeroed memory of the right layout is what `DmaMemory::new` makes, and is leaked.
    let memory: &'static DmaMemory<BYTES> =
        unsafe { &*std::alloc::alloc_zeroed(layout).cast::<DmaMemory<BYTES>>() };
    Box::leak(Box::new(DmaArena::new(memory)))
}

impl Bench {
    fn new(legacy: bool, features: u64) -> Self {
        let core = host::enter_core(0);
        let device = FakeDevice::new(1, legacy, 2, 256, features);
        {
            let mut state = device.state();
            state.config[..6].copy_from_slice(&MAC);
            state.config[6] = 1;
        }
        let card = set_up(device, "test0", arena::<MEMORY_BYTES>(), arena::<200_000>()).unwrap();
        let card: &'static VirtioNet = Box::leak(Box::new(card));
        card.attach();
        let long = !legacy || features & feature::MRG_RXBUF != 0;
        let bench = Self {
            card,
            device,
            header: if long { 12 } else { 10 },
            _core: core,
        };
        bench.device.look(RECEIVE, usize::MAX);
        bench
    }

    /// The device receives a frame that fills `buffers` buffers as far as it goes.
    fn deliver(&self, frame: &[u8], flags: u8) {
        self.device.look(RECEIVE, usize::MAX);
        let mut bytes = vec![0u8; self.header];
        bytes[0] = flags;
        let buffers = (self.header + frame.len()).div_ceil(NET_RX_BUFFER);
        if self.header == 12 {
            bytes[10..12].copy_from_slice(&(buffers as u16).to_le_bytes());
        }
        bytes.extend_from_slice(frame);
        let mut answers = Vec::new();
        for part in bytes.chunks(NET_RX_BUFFER) {
            let chain = self.device.take(RECEIVE, 0).expect("a receive buffer");
            chain.write(0, part);
            answers.push((u32::from(chain.head), part.len() as u32));
        }
        self.device.answer(RECEIVE, &answers);
    }

    fn receive(&self) -> Option<Vec<u8>> {
        let (frame, _) = self.card.receive()?;
        let bytes = frame.bytes().to_vec();
        self.card.recycle(frame);
        Some(bytes)
    }

    fn send(&self, bytes: &[u8], offload: TransmitOffload) -> bool {
        let Some(mut frame) = self.card.reserve() else {
            return false;
        };
        frame.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
        self.card.transmit(frame, bytes.len(), offload);
        true
    }

    /// The interrupt controller's part.
    fn interrupt(&self) {
        if self.device.line() {
            self.card.interrupt();
        }
    }
}

fn frame(len: usize, salt: usize) -> Vec<u8> {
    (0..len)
        .map(|i| (i * 7 + salt * 13 + (i >> 8)) as u8)
        .collect()
}

fn kinds() -> [(bool, u64); 5] {
    [
        (false, ALL),
        (false, ALL & !feature::EVENT_INDEX & !feature::MRG_RXBUF),
        (true, ALL),
        (true, ALL & !feature::MRG_RXBUF),
        (true, feature::MAC),
    ]
}

#[test]
fn features_follow_from_one_another() {
    let bench = Bench::new(false, ALL);
    let info = bench.card.info();
    assert_eq!(
        (info.mac, info.mtu, info.transmit_checksum),
        (MAC, 1500, true)
    );
    assert_eq!(info.segmentation, Some(NET_MAX_FRAME));
    drop(bench);
    let bench = Bench::new(
        false,
        ALL & !feature::CSUM & !feature::GUEST_CSUM & !feature::MAC,
    );
    let info = bench.card.info();
    assert_eq!((info.transmit_checksum, info.segmentation), (false, None));
    assert_eq!(info.mac[0] & 3, 2);
    let accepted = bench.device.state().accepted;
    assert_eq!(
        accepted & (feature::HOST_TSO4 | feature::GUEST_TSO4 | feature::MRG_RXBUF),
        0
    );
}

#[test]
fn frames_arrive_whole_and_in_order() {
    for (legacy, features) in kinds() {
        let bench = Bench::new(legacy, features);
        for round in 0..2000 {
            let len = 14 + (round * 37) % 1500;
            bench.deliver(&frame(len, round), 0);
            if round % 3 == 0 {
                bench.deliver(&frame(60, round + 1), 0);
            }
            assert_eq!(bench.receive(), Some(frame(len, round)));
            if round % 3 == 0 {
                assert_eq!(bench.receive(), Some(frame(60, round + 1)));
            }
            assert_eq!(bench.receive(), None);
            bench.card.flush();
        }
        assert_eq!(bench.card.state(), CardState::Up);
    }
}

#[test]
fn merged_frames_lie_in_one_piece_or_are_copied() {
    let bench = Bench::new(false, ALL);
    let lengths = [1500, 2036, 2037, 4000, 65_549, 14, 30_000, 65_549, 65_549];
    for round in 0..300 {
        let len = lengths[round % lengths.len()];
        bench.deliver(&frame(len, round), 1);
        let (received, checksum) = bench.card.receive().expect("a frame");
        assert!(matches!(checksum, ReceiveChecksum::Partial { .. }));
        assert!(
            received.bytes() == frame(len, round),
            "{len} bytes in round {round}"
        );
        bench.card.recycle(received);
        bench.card.flush();
    }
    // Buffers given back in another order than they lie.
    bench.device.look(RECEIVE, usize::MAX);
    let bytes = frame(3 * NET_RX_BUFFER - 12, 5);
    let mut all = vec![0u8; 12];
    all[10] = 3;
    all.extend_from_slice(&bytes);
    let chains: Vec<Chain> = [4, 1, 2]
        .into_iter()
        .map(|n| bench.device.take(RECEIVE, n).unwrap())
        .collect();
    let mut answers = Vec::new();
    for (chain, part) in chains.iter().zip(all.chunks(NET_RX_BUFFER)) {
        chain.write(0, part);
        answers.push((u32::from(chain.head), part.len() as u32));
    }
    bench.device.answer(RECEIVE, &answers);
    assert!(bench.receive() == Some(bytes));
}

#[test]
fn what_is_sent_is_what_the_device_reads() {
    for (legacy, features) in kinds() {
        let bench = Bench::new(legacy, features);
        let longest = bench.card.info().segmentation.unwrap_or(1514);
        let mut expected: VecDeque<Vec<u8>> = VecDeque::new();
        let mut pending: Vec<(usize, Chain)> = Vec::new();
        let mut taken = 0;
        let mut refused = 0;
        let mut random = 12345usize;
        for round in 0..4000 {
            random = random
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            let len = 14 + (random >> 33) % if round % 5 == 0 { longest - 14 } else { 200 };
            let bytes = frame(len, round);
            if bench.send(&bytes, TransmitOffload::default()) {
                expected.push_back(bytes);
            } else {
                refused += 1;
                // Answers out of order, as a device may give them; then an interrupt must follow.
                bench.card.flush();
                bench.device.look(TRANSMIT, usize::MAX);
                while let Some(chain) = bench.device.take(TRANSMIT, 0) {
                    pending.push((taken, chain));
                    taken += 1;
                }
                for (number, chain) in &pending {
                    let bytes = chain.readable();
                    let first = taken - expected.len();
                    assert!(
                        bytes[bench.header..] == expected[number - first],
                        "frame {number}"
                    );
                }
                pending.reverse();
                for (_, chain) in pending.drain(..) {
                    bench.device.answer(TRANSMIT, &[(u32::from(chain.head), 0)]);
                }
                expected.clear();
                assert!(
                    bench.device.line(),
                    "no interrupt although there was no room"
                );
                bench.card.notifier().test_and_clear();
                bench.interrupt();
                assert!(bench.card.notifier().is_set());
                assert!(bench.send(&bytes, TransmitOffload::default()));
                expected.push_back(bytes);
            }
        }
        assert!(refused > 3);
        assert_eq!(bench.card.state(), CardState::Up);
    }
}

#[test]
fn a_frame_to_be_cut_says_so() {
    let bench = Bench::new(false, ALL);
    let offload = TransmitOffload {
        checksum: Some((34, 16)),
        segment: Some((1460, 54)),
    };
    assert!(bench.send(&frame(9000, 1), offload));
    assert!(bench.send(&frame(60, 2), TransmitOffload::default()));
    assert_eq!(bench.device.kicks(TRANSMIT), 0);
    bench.card.flush();
    assert_eq!(bench.device.kicks(TRANSMIT), 1);
    bench.device.look(TRANSMIT, usize::MAX);
    let chain = bench.device.take(TRANSMIT, 0).unwrap();
    assert_eq!(
        chain.readable()[..12],
        [1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 0, 0]
    );
    assert_eq!(
        bench.device.take(TRANSMIT, 0).unwrap().readable()[..12],
        [0; 12]
    );
}

#[test]
fn interrupts_come_when_they_are_wanted() {
    let bench = Bench::new(false, ALL);
    bench.deliver(&frame(60, 1), 0);
    assert!(bench.device.line());
    bench.interrupt();
    assert!(bench.card.notifier().test_and_clear());
    // Not asked for again yet: the loop is at work.
    bench.deliver(&frame(60, 2), 0);
    assert!(!bench.device.line());
    assert!(bench.receive().is_some() && bench.receive().is_some());
    assert!(!bench.card.rearm());
    bench.deliver(&frame(60, 3), 0);
    assert!(bench.device.line());
    bench.interrupt();
    assert!(bench.card.rearm(), "a frame is there already");
    assert!(bench.receive().is_some());
    bench.card.set_polling(true);
    assert!(!bench.card.rearm());
    bench.deliver(&frame(60, 4), 0);
    assert!(!bench.device.line());
    assert!(bench.card.pending());
    bench.card.set_polling(false);
    assert!(bench.receive().is_some());
    assert!(!bench.card.rearm());
    bench.deliver(&frame(60, 5), 0);
    assert!(bench.device.line());
}

#[test]
fn frames_that_make_no_sense_are_skipped() {
    let bench = Bench::new(false, ALL);
    for len in [0, 1, 11, 12, 25] {
        bench.device.look(RECEIVE, usize::MAX);
        let chain = bench.device.take(RECEIVE, 0).unwrap();
        chain.write(0, &vec![0; len]);
        bench
            .device
            .answer(RECEIVE, &[(u32::from(chain.head), len as u32)]);
    }
    assert_eq!(bench.receive(), None);
    bench.deliver(&frame(100, 1), 0);
    assert_eq!(bench.receive(), Some(frame(100, 1)));
    bench.card.flush();
    assert_eq!(bench.card.stats().bad, 5);
    assert_eq!(
        bench.device.pending(RECEIVE) + bench.device.look(RECEIVE, usize::MAX),
        NET_RING
    );
}

/// Lies on the receive queue.
fn lies() -> Vec<fn(&Bench)> {
    fn merged(bench: &Bench, count: u16, lens: &[u32]) {
        let chains: Vec<_> = lens
            .iter()
            .map(|_| bench.device.take(RECEIVE, 0).unwrap())
            .collect();
        let mut header = [0; 12];
        header[10..].copy_from_slice(&count.to_le_bytes());
        chains[0].write(0, &header);
        let answers: Vec<_> = chains
            .iter()
            .zip(lens)
            .map(|(chain, len)| (u32::from(chain.head), *len))
            .collect();
        bench.device.answer(RECEIVE, &answers);
    }
    vec![
        |bench| bench.device.answer(RECEIVE, &[(256, 60)]),
        |bench| bench.device.answer(RECEIVE, &[(u32::MAX, 60)]),
        |bench| {
            bench
                .device
                .answer(RECEIVE, &[(0, NET_RX_BUFFER as u32 + 1)])
        },
        |bench| bench.device.answer(RECEIVE, &[(0, 5), (0, 5)]),
        |bench| bench.device.jump(RECEIVE, 300),
        |bench| merged(bench, 2, &[2048]),
        |bench| merged(bench, u16::MAX, &[2048, 2048]),
        // Longer than any frame: 256 buffers are there.
        |bench| merged(bench, 40, &[2048; 40]),
        |bench| bench.device.needs_reset(),
    ]
}

#[test]
fn a_lie_stops_the_card_and_a_confirmed_reset_brings_it_back() {
    for (number, lie) in lies().into_iter().enumerate() {
        for late in [false, true] {
            let bench = Bench::new(false, ALL);
            bench.deliver(&frame(60, 1), 0);
            assert!(bench.receive().is_some());
            bench.card.flush();
            bench.device.look(RECEIVE, usize::MAX);
            if late {
                bench.device.state().reset = Reset::Late;
            }
            bench.card.notifier().test_and_clear();
            lie(&bench);
            bench.interrupt();
            while bench
                .card
                .receive()
                .map(|(frame, _)| bench.card.recycle(frame))
                .is_some()
            {}
            let state = bench.card.state();
            if number == 7 && state == CardState::Up {
                // 40 full buffers in one piece: absurd, but inside the memory; the stack drops it.
                continue;
            }
            assert!(
                matches!(state, CardState::Failed(_)),
                "lie {number}: {state:?}"
            );
            assert!(bench.card.notifier().is_set());
            assert!(bench.card.receive().is_none() && bench.card.reserve().is_none());
            assert!(!bench.card.pending());
            bench.card.flush();
            if late {
                assert!(matches!(bench.card.restart(), CardState::Failed(_)));
                bench.device.confirm_reset();
            }
            assert_eq!(bench.card.restart(), CardState::Up, "lie {number}");
            for round in 0..600 {
                bench.deliver(&frame(1514, round), 0);
                assert_eq!(bench.receive(), Some(frame(1514, round)));
                assert!(bench.send(&frame(50, round), TransmitOffload::default()));
                bench.card.flush();
                bench.device.look(TRANSMIT, usize::MAX);
                let chain = bench.device.take(TRANSMIT, 0).unwrap();
                assert!(chain.readable()[12..] == frame(50, round));
                bench.device.answer(TRANSMIT, &[(u32::from(chain.head), 0)]);
            }
            assert_eq!(bench.card.stats().resets, 1);
        }
    }
}

#[test]
fn the_link_goes_down_and_up() {
    let bench = Bench::new(false, ALL);
    assert_eq!(bench.card.state(), CardState::Up);
    bench.device.change_config(|config| config[6] = 0);
    bench.interrupt();
    assert!(bench.card.changed());
    assert_eq!(bench.card.state(), CardState::Down);
    bench.device.change_config(|config| config[6] = 1);
    bench.interrupt();
    assert_eq!(bench.card.state(), CardState::Up);
    assert!(!bench.card.changed());
}

//! Random operations against a plain vector, and the ram and null nodes.

use super::*;
use crate::block::node::{null, ram};
use Operation::{Discard, Flush, Read, Write, WriteZeroes};

/// SplitMix64.
pub(super) struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// Rounds of operations that do not overlap, so that their order does not matter, against `model`; what a discard leaves is
/// `discard_zeroes` or unchanged.
fn play(
    rig: &Rig,
    backend: &'static Backend,
    seed: u64,
    discard_zeroes: bool,
    mut answer: impl FnMut(&mut Random),
) {
    let mut random = Random::new(seed);
    let size = backend.size();
    let block = u64::from(backend.logical_block());
    let mut model = std::vec![0u8; size as usize];
    for round in 0..60 {
        let lanes = 8;
        let lane_blocks = size / block / lanes;
        let mut reads = Vec::new();
        for lane in 0..lanes {
            let start = random.below(lane_blocks);
            let len = 1 + random.below(lane_blocks - start);
            let (offset, len) = ((lane * lane_blocks + start) * block, len * block);
            let range = offset as usize..(offset + len) as usize;
            let fill = random.below(255) as u8 + 1;
            let operation =
                [Read, Write, Write, WriteZeroes, Discard, Flush][random.below(6) as usize];
            let flags =
                RequestFlags::from_bits_truncate(random.next() as u8) - RequestFlags::FAST_ZERO;
            let mut asked = Ask {
                fill,
                ..ask(operation, offset, len)
            }
            .flags(flags);
            let smallest = len
                .div_ceil(crate::config::MAX_SEGMENTS as u64)
                .next_multiple_of(block);
            asked.segment = (smallest + random.below(4) * block) as usize;
            match operation {
                Read => reads.push((lane, range)),
                Write => model[range].fill(fill),
                WriteZeroes => model[range].fill(0),
                Discard if discard_zeroes => model[range].fill(0),
                Discard | Flush => {}
            }
            submit(
                random.below(rig.cores as u64) as usize,
                backend,
                asked,
                lane,
            );
        }
        answer(&mut random);
        rig.settle();
        let done = done();
        assert_eq!(done.len(), lanes as usize, "seed {seed} round {round}");
        for one in &done {
            assert_eq!(one.result, Ok(()), "seed {seed} round {round}");
            if let Some((_, range)) = reads.iter().find(|(lane, _)| *lane == one.tag) {
                assert!(
                    one.data == model[range.clone()],
                    "seed {seed} round {round}: a read differs"
                );
            }
        }
    }
}

#[test]
fn random_operations_on_a_disk_match_a_vector() {
    for seed in 0..24 {
        let mut random = Random::new(seed ^ 0xabcd);
        let mut rig = rig(3);
        let mut info = if random.below(2) == 0 {
            with_everything(1 << 19)
        } else {
            with_flush(1 << 19)
        };
        info.logical_block = 512 << random.below(4);
        info.max_transfer = [0, 5000, 64 * 1024][random.below(3) as usize];
        info.max_segments = [0, 1, 3, 20][random.below(4) as usize];
        info.max_discard = [0, 30_000][random.below(2) as usize];
        info.max_zeroes = [0, 30_000][random.below(2) as usize];
        info.discard_align = [0, 8192][random.below(2) as usize];
        let zeroes = info.features.contains(DeviceFeatures::DISCARD);
        let f = rig.disk(info);
        f.device.set_depth(1 + random.below(4) as usize);
        if random.below(2) == 0 {
            f.device.set_single_queue(random.below(3) as usize);
        }
        play(&rig, f.backend, seed, zeroes, |random| {
            loop {
                rig.settle();
                let held = f.device.held() as u64;
                if held == 0 {
                    return;
                }
                // Any of them may be the next.
                let n = random.below(held) as usize;
                on(f.device.core_of(n), || f.device.finish(n));
            }
        });
        rig.finish();
    }
}

fn lend(bytes: usize) -> &'static mut [u8] {
    Box::leak(std::vec![0x55u8; bytes].into_boxed_slice())
}

#[test]
fn random_operations_on_ram_match_a_vector() {
    let mut rig = rig(3);
    let node = on(0, || ram::create("ram-model", lend(1 << 19), 512).unwrap());
    let backend = rig.backend(node);
    for seed in 0..8 {
        // The model begins with zeroes.
        submit(0, backend, ask(Discard, 0, backend.size()), 0);
        rig.settle();
        assert_eq!(results(), [(0, Ok(()))]);
        // A discard of ram frees whole granules only, so the model cannot follow a discard to the byte.
        play_without_discard(&rig, backend, seed);
    }
    rig.finish();
}

fn play_without_discard(rig: &Rig, backend: &'static Backend, seed: u64) {
    let mut random = Random::new(seed);
    let size = backend.size();
    let mut model = std::vec![0u8; size as usize];
    for _ in 0..200 {
        let offset = random.below(size / 512) * 512;
        let len = (1 + random.below(64)).min((size - offset) / 512) * 512;
        let range = offset as usize..(offset + len) as usize;
        let fill = random.below(255) as u8 + 1;
        let operation = [Read, Write, WriteZeroes][random.below(3) as usize];
        let flags = if random.below(2) == 0 {
            RequestFlags::MAY_UNMAP
        } else {
            RequestFlags::empty()
        };
        match operation {
            Write => model[range.clone()].fill(fill),
            WriteZeroes => model[range.clone()].fill(0),
            _ => {}
        }
        let asked = Ask {
            fill,
            ..ask(operation, offset, len)
        }
        .flags(flags)
        .in_segments(4096);
        submit(random.below(3) as usize, backend, asked, 1);
        rig.settle();
        let done = done();
        assert_eq!(done[0].result, Ok(()));
        if operation == Read {
            assert!(done[0].data == model[range], "seed {seed}");
        }
        // What the map calls a hole reads as zeroes.
        let mut at = 0;
        while at < size {
            let status = backend.block_status(at, size - at).unwrap();
            let range = at as usize..(at + status.len) as usize;
            assert!(status.len > 0 && status.hole == status.zero);
            assert!(
                !status.hole || model[range].iter().all(|b| *b == 0),
                "seed {seed}: data in a hole"
            );
            at += status.len;
        }
    }
}

#[test]
fn ram_tells_the_truth_about_allocation() {
    let mut rig = rig(1);
    let node = on(0, || {
        ram::create("ram-map", lend(256 * 1024 + 300), 4096).unwrap()
    });
    let backend = rig.backend(node);
    assert_eq!(backend.size(), 256 * 1024);
    let map = || -> Vec<(u64, bool)> {
        let mut at = 0;
        let mut map = Vec::new();
        while at < backend.size() {
            let status = backend.block_status(at, backend.size() - at).unwrap();
            map.push((status.len / 4096, status.hole));
            at += status.len;
        }
        map
    };
    assert_eq!(map(), [(64, true)]);
    submit(0, backend, write(4096 * 3, 4096 * 4, 1), 1);
    rig.settle();
    assert_eq!(map(), [(3, true), (4, false), (57, true)]);
    submit(0, backend, ask(Discard, 4096 * 4, 4096), 2);
    rig.settle();
    assert_eq!(
        map(),
        [(3, true), (1, false), (1, true), (2, false), (57, true)]
    );
    submit(0, backend, ask(WriteZeroes, 4096 * 4, 4096), 3);
    submit(
        0,
        backend,
        ask(WriteZeroes, 4096 * 5, 4096).flags(RequestFlags::MAY_UNMAP),
        4,
    );
    rig.settle();
    assert_eq!(
        map(),
        [(3, true), (2, false), (1, true), (1, false), (57, true)]
    );
    submit(0, backend, ask(Discard, 0, 256 * 1024), 5);
    rig.settle();
    assert_eq!(map(), [(64, true)]);
    assert!(backend.block_status(256 * 1024, 1).is_none() && backend.block_status(0, 0).is_none());
    results();
    rig.finish();
}

#[test]
fn null_answers_at_once_or_after_its_time() {
    let mut rig = rig(2);
    let options = null::NullOptions {
        size: 1 << 30,
        block: 512,
        read_zeroes: true,
        latency_ns: 0,
    };
    let at_once = on(0, || null::create("null-now", options).unwrap());
    let late = on(0, || {
        null::create(
            "null-late",
            null::NullOptions {
                latency_ns: 2_000_000,
                ..options
            },
        )
        .unwrap()
    });
    let (at_once, late) = (rig.backend(at_once), rig.backend(late));
    submit(1, at_once, read(0, 4096), 1);
    submit(1, late, read(0, 4096), 2);
    rig.settle();
    assert_eq!(
        done()
            .iter()
            .map(|d| (d.tag, d.data[0]))
            .collect::<Vec<_>>(),
        [(1, 0)]
    );
    host::clock::advance(1_000_000);
    submit(1, late, write(0, 4096, 1), 3);
    rig.settle();
    assert_eq!(done(), []);
    host::clock::advance(1_000_000);
    rig.settle();
    assert_eq!(results(), [(2, Ok(()))]);
    host::clock::advance(1_000_000);
    rig.settle();
    assert_eq!(results(), [(3, Ok(()))]);
    let stats = late.stats();
    assert_eq!(stats.latency_ns(Operation::Read, 1), Some(2 << 20));
    assert_eq!(stats.latency_ns(Operation::Write, 1), Some(2 << 20));
    rig.finish();
}

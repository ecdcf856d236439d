//! Many requests, connections and faults: every counter comes back to zero, and no pool needs more in the second half than
//! in the first.

mod common;

use common::*;
use ironthread::block::{self, BlockError, Operation};
use ironthread::config::SESSIONS;
use ironthread::export::nbd::{self, wire::*};
use ironthread_engine::device::Fault;
use ironthread_engine::memory::{Bench, DISK};

/// A small generator: the same run for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Sends one random request.
fn ask(client: &mut Client<'_>, random: &mut Random) {
    let length =
        [512, 512, 4096, 4096, 16384, 65536, 131_072, 600 * 1024][random.below(8) as usize];
    let offset = random.below((DISK - length) / 512) * 512;
    let fua = if random.below(8) == 0 {
        command_flag::FUA
    } else {
        0
    };
    match random.below(20) {
        0..=8 => client.send(command::READ, 0, offset, length as u32),
        9..=15 => client.send_write(fua, offset, &vec![0x5a; length as usize]),
        16 => client.send(command::FLUSH, 0, 0, 0),
        17 => client.send(command::TRIM, fua, offset, length as u32),
        18 => client.send(command::WRITE_ZEROES, fua, offset, length as u32),
        // Refused.
        _ => client.send_write(0, DISK - 512, &vec![1; length as usize + 512]),
    };
}

fn high_water() -> (usize, usize) {
    let pages = (0..SESSIONS)
        .map(|slot| nbd::pages(slot).1)
        .max()
        .unwrap_or(0);
    (block::request_usage().1, pages)
}

fn soak(seed: u64, requests: u64, connections: u64, faults: u64) {
    let bench = Bench::new();
    let device = bench.disks().disk;
    let mut marks = Vec::new();
    for half in 0..2 {
        // Both halves do the same, so the second may not need more.
        let mut random = Random(seed);
        let mut asked = 0;
        for connection in 0..connections / 2 {
            if connection * faults / connections != (connection + 1) * faults / connections {
                let operation = [Operation::Read, Operation::Write, Operation::WriteZeroes]
                    [random.below(3) as usize];
                let from = random.below(DISK / 512) * 512;
                device.plant(Fault {
                    operation,
                    from,
                    to: from + 65536,
                    times: 3,
                    every: 1,
                    error: BlockError::Io,
                });
            }
            let mut clients: Vec<_> = (0..1 + random.below(3))
                .map(|_| {
                    if random.below(2) == 0 {
                        Client::simple(&bench, "disk")
                    } else {
                        Client::structured(&bench, "disk")
                    }
                })
                .collect();
            while asked * (connections / 2) < (connection + 1) * (requests / 2) {
                let count = 1 + random.below(60);
                for client in &mut clients {
                    (0..count).for_each(|_| ask(client, &mut random));
                    asked += count;
                }
                bench.run();
                clients
                    .iter_mut()
                    .for_each(|client| drop(client.peer.read_all()));
            }
            for client in &mut clients {
                match random.below(4) {
                    // In the middle of things.
                    0 => {
                        ask(client, &mut random);
                        client.peer.reset();
                    }
                    1 => client.peer.finish(),
                    2 => {
                        ask(client, &mut random);
                        bench.round();
                        client.peer.reset();
                    }
                    _ => {
                        client.send(command::DISC, 0, 0, 0);
                    }
                }
            }
            bench.run();
            bench.assert_idle();
            device.heal();
        }
        marks.push(high_water());
        assert!(
            half == 0 || (marks[1].0 <= marks[0].0 && marks[1].1 <= marks[0].1),
            "{marks:?}"
        );
    }
    bench.finish();
}

#[test]
fn soak_briefly() {
    soak(1, 20_000, 400, 80);
}

#[test]
#[ignore = "minutes: for the long run"]
fn soak_long() {
    for seed in 2..4 {
        soak(seed, 100_000, 1000, 200);
    }
}

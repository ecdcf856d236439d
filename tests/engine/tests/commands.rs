//! Every command with every flag, on every kind of export.

mod common;

use common::*;
use ironthread::block::node::ram;
use ironthread::block::{Backend, Operation};
use ironthread::config::SESSION_CHUNK;
use ironthread::export::nbd::wire::*;
use ironthread::export::{self, RemoveMode};
use ironthread_engine::device::Seen;
use ironthread_engine::memory::{Bench, DISK, NULL};

const INVALID: u32 = NbdError::Invalid as u32;
const OVERFLOW: u32 = NbdError::Overflow as u32;
const NOT_SUPPORTED: u32 = NbdError::NotSupported as u32;

fn seen(operation: Operation, offset: u64, len: u64) -> Seen {
    Seen {
        operation,
        offset,
        len,
    }
}

#[test]
fn what_is_written_is_read() {
    let bench = Bench::new();
    for name in ["disk", "blocks", "plain", "ram"] {
        let mut simple = Client::simple(&bench, name);
        let mut structured = Client::structured(&bench, name);
        for (offset, length) in [
            (0, 4096),
            (8192, 65536),
            (DISK - 4096, 4096),
            (1 << 20, 2 << 20),
        ] {
            let data = pattern(offset + length as u64, length);
            assert_eq!(simple.write(0, offset, &data), 0);
            assert_eq!(
                structured.read_structured(0, offset, length as u32),
                Ok(data.clone())
            );
            let data = pattern(offset, length);
            assert_eq!(structured.write(command_flag::FUA, offset, &data), 0);
            assert_eq!(simple.read(0, offset, length as u32), Ok(data));
        }
        simple.disconnect();
        structured.disconnect();
    }
    bench.finish();
}

#[test]
fn sizes_around_pieces_and_chunks() {
    let bench = Bench::new();
    let mut simple = Client::simple(&bench, "disk");
    let mut structured = Client::structured(&bench, "disk");
    let chunk = SESSION_CHUNK;
    for length in [
        512,
        64 << 10,
        128 << 10,
        (128 << 10) + 512,
        chunk - 512,
        chunk,
        chunk + 512,
        3 * chunk + 1024,
    ] {
        for offset in [0, 512, 1 << 20] {
            let data = pattern(length as u64 ^ offset, length);
            assert_eq!(simple.write(0, offset, &data), 0);
            assert_eq!(bench.disks().disk.peek(offset, length), data);
            assert_eq!(simple.read(0, offset, length as u32), Ok(data.clone()));
            assert_eq!(
                structured.read_structured(0, offset, length as u32),
                Ok(data)
            );
        }
    }
    simple.disconnect();
    structured.disconnect();
    bench.finish();
}

#[test]
fn the_longest_requests() {
    let bench = Bench::new();
    let mut client = Client::simple(&bench, "null");
    let longest = 32 << 20;
    assert_eq!(
        client.read(0, 0, longest).map(|data| data.len()),
        Ok(longest as usize)
    );
    assert_eq!(client.write(0, 4096, &vec![7; longest as usize]), 0);
    client.disconnect();
    let mut client = Client::structured(&bench, "null");
    assert_eq!(
        client
            .read_structured(0, NULL - u64::from(longest), longest)
            .map(|data| data.len()),
        Ok(longest as usize)
    );
    client.disconnect();
    bench.finish();
}

#[test]
fn nothing_at_all_succeeds() {
    let bench = Bench::new();
    let mut client = Client::simple(&bench, "disk");
    assert_eq!(client.read(0, 512, 0), Ok(vec![]));
    assert_eq!(client.write(0, 512, &[]), 0);
    for command in [command::TRIM, command::CACHE, command::WRITE_ZEROES] {
        assert_eq!(client.command(command, 0, DISK, 0), 0);
    }
    client.disconnect();
    let mut client = Client::structured(&bench, "disk");
    assert_eq!(
        client.chunks(command::READ, 0, 512, 0),
        [(chunk::NONE, vec![])]
    );
    assert_eq!(
        client.chunks(command::BLOCK_STATUS, 0, 512, 0)[0].0,
        chunk::ERROR
    );
    assert_eq!(client.command(command::FLUSH, 0, 0, 0), 0);
    client.disconnect();
    bench.finish();
}

/// Writes are cut into pieces of whole blocks, however large these are.
#[test]
fn long_writes_to_large_blocks() {
    let bench = Bench::new();
    for block in [16_384u32, 32_768, 65_536] {
        let name = format!("large{block}");
        let node = ram::create(&name, Vec::leak(vec![0; 1 << 20]), block).unwrap();
        let backend = Backend::create(&format!("{name}-backend"), "nbd", node).unwrap();
        export::add(&name, "", backend, true).unwrap();
        let mut client = Client::simple(&bench, &name);
        let data = pattern(u64::from(block), 1 << 19);
        assert_eq!(client.write(0, u64::from(block), &data), 0);
        assert_eq!(client.read(0, u64::from(block), 1 << 19), Ok(data));
        client.disconnect();
        assert_eq!(export::remove(&name, RemoveMode::Safe), Ok(true));
    }
    bench.finish();
}

#[test]
fn a_trim_is_rounded_inwards() {
    let bench = Bench::new();
    let mut client = Client::simple(&bench, "blocks");
    let device = bench.disks().blocks;
    device.watch();
    assert_eq!(client.command(command::TRIM, 0, 1000, 12000), 0);
    assert_eq!(client.command(command::TRIM, 0, 4097, 4095), 0);
    assert_eq!(device.seen(), [seen(Operation::Discard, 4096, 8192)]);
    client.disconnect();
    bench.finish();
}

#[test]
fn do_not_fragment() {
    let bench = Bench::new();
    let mut client = Client::structured(&bench, "disk");
    let df = command_flag::DF;
    for length in [512, 65536, SESSION_CHUNK as u32] {
        let chunks = client.chunks(command::READ, df, 0, length);
        assert_eq!(chunks.len(), 1);
        assert_eq!(
            (chunks[0].0, chunks[0].1.len()),
            (chunk::OFFSET_DATA, length as usize + 8)
        );
    }
    assert_eq!(
        client.read_structured(df, 512, SESSION_CHUNK as u32 + 512),
        Err((OVERFLOW, 512))
    );
    client.disconnect();
    bench.finish();
}

#[test]
fn fua_flushes_before_the_reply() {
    let bench = Bench::new();
    let device = bench.disks().disk;
    let mut client = Client::simple(&bench, "disk");
    let fua = command_flag::FUA;
    device.watch();
    assert_eq!(client.write(fua, 512, &[1; 512]), 0);
    assert_eq!(
        device.seen(),
        [
            seen(Operation::Write, 512, 512),
            seen(Operation::Flush, 0, 0)
        ]
    );
    device.watch();
    assert_eq!(client.command(command::WRITE_ZEROES, fua, 512, 512), 0);
    assert_eq!(
        device.seen(),
        [
            seen(Operation::WriteZeroes, 512, 512),
            seen(Operation::Flush, 0, 0)
        ]
    );
    device.watch();
    assert_eq!(client.command(command::TRIM, fua, 512, 512), 0);
    assert_eq!(
        device.seen(),
        [
            seen(Operation::Discard, 512, 512),
            seen(Operation::Flush, 0, 0)
        ]
    );
    // A read with FUA flushes first.
    device.watch();
    assert_eq!(client.read(fua, 512, 512), Ok(vec![0; 512]));
    assert_eq!(
        device.seen(),
        [
            seen(Operation::Flush, 0, 0),
            seen(Operation::Read, 512, 512)
        ]
    );
    // Every piece of a long one is durable before the reply.
    device.watch();
    assert_eq!(client.write(fua, 0, &vec![3; 1 << 20]), 0);
    let log = device.seen();
    assert_eq!(
        log.iter()
            .filter(|seen| seen.operation == Operation::Write)
            .map(|seen| seen.len)
            .sum::<u64>(),
        1 << 20
    );
    assert_eq!(log.last().unwrap().operation, Operation::Flush);
    client.disconnect();
    bench.finish();
}

#[test]
fn write_zeroes() {
    let bench = Bench::new();
    for name in ["disk", "plain", "ram"] {
        let mut client = Client::simple(&bench, name);
        for flags in [
            0,
            command_flag::NO_HOLE,
            command_flag::FUA,
            command_flag::NO_HOLE | command_flag::FUA,
        ] {
            assert_eq!(client.write(0, 0, &[9; 65536]), 0);
            assert_eq!(client.command(command::WRITE_ZEROES, flags, 4096, 8192), 0);
            let data = client.read(0, 0, 65536).unwrap();
            assert!(
                data[..4096]
                    .iter()
                    .chain(&data[12288..])
                    .all(|byte| *byte == 9),
                "{name}"
            );
            assert!(data[4096..12288].iter().all(|byte| *byte == 0), "{name}");
        }
        client.disconnect();
    }
    // FAST_ZERO: only where it is faster than writing, and nothing is written otherwise.
    let device = bench.disks().plain;
    let mut client = Client::simple(&bench, "plain");
    assert_eq!(client.write(0, 0, &[9; 4096]), 0);
    device.watch();
    assert_eq!(
        client.command(command::WRITE_ZEROES, command_flag::FAST_ZERO, 0, 4096),
        NOT_SUPPORTED
    );
    assert!(device.seen().is_empty());
    client.disconnect();
    let mut client = Client::simple(&bench, "ram");
    assert_eq!(
        client.command(command::WRITE_ZEROES, command_flag::FAST_ZERO, 0, 4096),
        0
    );
    client.disconnect();
    bench.finish();
}

fn extents(chunks: &[(u16, Vec<u8>)]) -> Vec<(u32, u32)> {
    assert_eq!((chunks.len(), chunks[0].0), (1, chunk::BLOCK_STATUS));
    assert_eq!(u32_at(&chunks[0].1, 0), 1);
    chunks[0].1[4..]
        .chunks(8)
        .map(|extent| (u32_at(extent, 0), u32_at(extent, 4)))
        .collect()
}

#[test]
fn block_status() {
    let bench = Bench::new();
    let status = command::BLOCK_STATUS;
    // A disk is always allocated.
    let mut client = Client::structured(&bench, "disk");
    assert_eq!(
        extents(&client.chunks(status, 0, 0, DISK as u32)),
        [(DISK as u32, 0)]
    );
    assert_eq!(
        extents(&client.chunks(status, command_flag::REQ_ONE, 512, 1024)),
        [(1024, 0)]
    );
    client.disconnect();
    // Memory tells the truth.
    let hole = STATE_HOLE | STATE_ZERO;
    let mut client = Client::structured(&bench, "ram");
    assert_eq!(client.command(command::TRIM, 0, 0, DISK as u32), 0);
    assert_eq!(client.write(0, 65536, &[5; 65536]), 0);
    let all = extents(&client.chunks(status, 0, 0, DISK as u32));
    assert_eq!(
        all,
        [(65536, hole), (65536, 0), (DISK as u32 - 131072, hole)]
    );
    let one = extents(&client.chunks(status, command_flag::REQ_ONE, 0, DISK as u32));
    assert_eq!(one, [(65536, hole)]);
    // More extents than a reply holds: the first of them, and the client asks on.
    for place in (0..DISK).step_by(32768) {
        assert_eq!(client.write(0, place, &[5; 4096]), 0);
        assert_eq!(client.command(command::TRIM, 0, place + 16384, 4096), 0);
    }
    let (mut at, mut asked) = (0, 0);
    while at < DISK {
        let part = extents(&client.chunks(status, 0, at, (DISK - at) as u32));
        assert!(part.len() <= 32 && !part.is_empty());
        at += part.iter().map(|extent| u64::from(extent.0)).sum::<u64>();
        asked += 1;
    }
    assert_eq!(at, DISK);
    assert!(asked > 1);
    assert_eq!(client.command(command::TRIM, 0, 0, DISK as u32), 0);
    client.disconnect();
    // Not asked for: not served, with simple replies neither.
    let mut client = Client::simple(&bench, "ram");
    assert_eq!(client.command(status, 0, 0, 512), INVALID);
    client.disconnect();
    bench.finish();
}

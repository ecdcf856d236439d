//! What is refused, of every command and export, and what the medium refuses.

mod common;

use common::*;
use ironthread::block::{BlockError, Operation};
use ironthread::config::SESSION_CHUNK;
use ironthread::export::nbd::wire::*;
use ironthread_engine::device::Fault;
use ironthread_engine::memory::{Bench, DISK, NULL};

const PERMISSION: u32 = NbdError::Permission as u32;
const IO: u32 = NbdError::Io as u32;
const INVALID: u32 = NbdError::Invalid as u32;
const NO_SPACE: u32 = NbdError::NoSpace as u32;

#[test]
fn beyond_the_end() {
    let bench = Bench::new();
    for (name, size) in [("disk", DISK), ("ram", DISK), ("null", NULL)] {
        let mut client = Client::simple(&bench, name);
        for (offset, length) in [
            (size, 512),
            (size - 512, 1024),
            (size + 512, 512),
            (u64::MAX - 511, 512),
            (u64::MAX - 511, 1024),
            (1 << 63, 512),
        ] {
            assert_eq!(client.read(0, offset, length), Err(INVALID));
            assert_eq!(client.write(0, offset, &vec![1; length as usize]), NO_SPACE);
            assert_eq!(client.command(command::TRIM, 0, offset, length), INVALID);
            assert_eq!(client.command(command::CACHE, 0, offset, length), INVALID);
            assert_eq!(
                client.command(command::WRITE_ZEROES, 0, offset, length),
                NO_SPACE
            );
        }
        assert_eq!(client.read(0, size - 512, 512), Ok(vec![0; 512]));
        client.disconnect();
        let mut client = Client::structured(&bench, name);
        assert_eq!(client.read_structured(0, size, 512), Err((INVALID, size)));
        assert_eq!(
            client.chunks(command::BLOCK_STATUS, 0, size - 512, 1024)[0].0,
            chunk::ERROR
        );
        client.disconnect();
    }
    bench.finish();
}

#[test]
fn unaligned() {
    let bench = Bench::new();
    for (name, block) in [("disk", 512u32), ("blocks", 4096)] {
        let mut client = Client::simple(&bench, name);
        for (offset, length) in [
            (1, block),
            (0, block - 1),
            (u64::from(block) / 2, block),
            (0, 1),
            (3, 5),
        ] {
            assert_eq!(client.read(0, offset, length), Err(INVALID));
            assert_eq!(client.write(0, offset, &vec![1; length as usize]), INVALID);
            assert_eq!(
                client.command(command::WRITE_ZEROES, 0, offset, length),
                INVALID
            );
            // A trim is rounded inwards, CACHE is only advice.
            assert_eq!(client.command(command::TRIM, 0, offset, length), 0);
            assert_eq!(client.command(command::CACHE, 0, offset, length), 0);
        }
        client.disconnect();
        let mut client = Client::structured(&bench, name);
        assert_eq!(client.read_structured(0, 1, block), Err((INVALID, 1)));
        assert_eq!(
            client.chunks(command::BLOCK_STATUS, 0, 1, block)[0].0,
            chunk::ERROR
        );
        client.disconnect();
    }
    bench.finish();
}

#[test]
fn read_only_exports() {
    let bench = Bench::new();
    let mut client = Client::simple(&bench, "locked");
    bench.disks().disk.watch();
    assert_eq!(client.write(0, 0, &[1; 512]), PERMISSION);
    assert_eq!(
        client.write(command_flag::FUA, 0, &[1; 300_000]),
        PERMISSION
    );
    assert_eq!(client.command(command::TRIM, 0, 0, 512), PERMISSION);
    assert_eq!(client.command(command::WRITE_ZEROES, 0, 0, 512), PERMISSION);
    assert!(bench.disks().disk.seen().is_empty());
    assert_eq!(client.read(0, 0, 512), Ok(vec![0; 512]));
    assert_eq!(client.command(command::FLUSH, 0, 0, 0), 0);
    client.disconnect();
    bench.finish();
}

#[test]
fn flags_that_do_not_belong() {
    let bench = Bench::new();
    use command_flag::*;
    let mut simple = Client::simple(&bench, "disk");
    let mut structured = Client::structured(&bench, "disk");
    let all = [FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO, 32, 64, 1 << 15];
    for flag in all {
        let good = |allowed: u16| if flag & allowed != 0 { 0 } else { INVALID };
        assert_eq!(simple.read(flag, 0, 512).err().unwrap_or(0), good(FUA));
        assert_eq!(simple.write(flag, 0, &[1; 512]), good(FUA));
        assert_eq!(simple.command(command::FLUSH, flag, 0, 0), good(FUA));
        assert_eq!(simple.command(command::TRIM, flag, 0, 512), good(FUA));
        assert_eq!(simple.command(command::CACHE, flag, 0, 512), good(FUA));
        assert_eq!(
            simple.command(command::WRITE_ZEROES, flag, 0, 512),
            good(FUA | NO_HOLE | FAST_ZERO)
        );
        assert_eq!(
            structured
                .read_structured(flag, 0, 512)
                .err()
                .map_or(0, |(error, _)| error),
            good(FUA | DF)
        );
        let status = structured.chunks(command::BLOCK_STATUS, flag, 0, 512);
        assert_eq!(status[0].0 == chunk::BLOCK_STATUS, good(FUA | REQ_ONE) == 0);
    }
    for command in [8, 9, 77, u16::MAX] {
        assert_eq!(simple.command(command, 0, 0, 512), INVALID);
        assert_eq!(structured.command(command, 0, 0, 512), INVALID);
    }
    simple.disconnect();
    structured.disconnect();
    bench.finish();
}

#[test]
fn too_long() {
    let bench = Bench::new();
    let mut client = Client::simple(&bench, "null");
    let long = (32 << 20) + 512;
    assert_eq!(client.read(0, 0, long), Err(INVALID));
    assert_eq!(client.read(0, 0, u32::MAX - 511), Err(INVALID));
    assert_eq!(client.command(command::CACHE, 0, 0, long), INVALID);
    // These carry no data.
    assert_eq!(client.command(command::TRIM, 0, 0, u32::MAX - 511), 0);
    assert_eq!(
        client.command(command::WRITE_ZEROES, 0, 0, u32::MAX - 511),
        0
    );
    // A write that cannot be skipped: the error, then the end, but what was asked before is answered.
    let read = client.send(command::READ, 0, 0, 4096);
    let write = client.send(command::WRITE, 0, 0, long);
    client.peer.write(&[1; 100]);
    bench.run();
    let mut errors = [None; 2];
    for _ in 0..2 {
        let Some(Reply::Simple { cookie, error }) = client.reply() else {
            panic!("no reply")
        };
        if cookie == read {
            client.peer.read(4096).unwrap();
        }
        errors[usize::from(cookie == write)] = Some(error);
    }
    assert_eq!(errors, [Some(0), Some(INVALID)]);
    assert!(client.peer.is_over() && !client.peer.was_aborted());
    bench.finish();
}

#[test]
fn errors_of_the_medium() {
    let bench = Bench::new();
    let device = bench.disks().disk;
    let fault = |operation| Fault {
        operation,
        from: 4096,
        to: 8192,
        times: u32::MAX,
        every: 1,
        error: BlockError::Io,
    };
    device.plant(fault(Operation::Read));
    device.plant(fault(Operation::Write));
    device.plant(fault(Operation::WriteZeroes));
    let mut simple = Client::simple(&bench, "disk");
    let mut structured = Client::structured(&bench, "disk");
    assert_eq!(simple.read(0, 0, 8192), Err(IO));
    assert_eq!(simple.read(0, 0, SESSION_CHUNK as u32), Err(IO));
    assert_eq!(structured.read_structured(0, 0, 8192), Err((IO, 0)));
    assert_eq!(structured.read_structured(0, 4096, 512), Err((IO, 4096)));
    assert_eq!(simple.write(0, 4096, &[1; 4096]), IO);
    assert_eq!(structured.command(command::WRITE_ZEROES, 0, 0, 8192), IO);
    // Others are served, on the same connections.
    assert_eq!(simple.read(0, 0, 4096), Ok(vec![0; 4096]));
    assert_eq!(structured.write(0, 8192, &[2; 512]), 0);
    simple.disconnect();
    structured.disconnect();
    bench.finish();
}

#[test]
fn a_late_error_in_a_long_read() {
    let bench = Bench::new();
    let device = bench.disks().disk;
    let chunk = SESSION_CHUNK as u64;
    device.plant(Fault {
        operation: Operation::Read,
        from: 3 * chunk,
        to: 3 * chunk + 512,
        times: u32::MAX,
        every: 1,
        error: BlockError::Io,
    });
    // Structured: data until there, then the error with its offset, and the connection lives.
    let mut structured = Client::structured(&bench, "disk");
    let length = 6 * chunk as u32;
    let chunks = structured.chunks(command::READ, 0, 0, length);
    let (last, data) = chunks.split_last().unwrap();
    assert_eq!(last.0, chunk::ERROR_OFFSET);
    assert_eq!((u32_at(&last.1, 0), u64_at(&last.1, 6)), (IO, 3 * chunk));
    assert!(
        data.iter()
            .all(|(kind, payload)| *kind == chunk::OFFSET_DATA && u64_at(payload, 0) != 3 * chunk)
    );
    assert_eq!(structured.read_structured(0, 0, 512), Ok(vec![0; 512]));
    // Simple, after data were sent: only that connection ends.
    let mut other = Client::simple(&bench, "disk");
    let mut simple = Client::simple(&bench, "disk");
    simple.send(command::READ, 0, 0, length);
    bench.run();
    assert!(simple.peer.is_over() && simple.peer.was_aborted());
    assert!((simple.peer.read_all().len() as u64) < 16 + 4 * chunk);
    // Simple, in the first piece: a proper error.
    assert_eq!(other.read(0, 3 * chunk, length / 3), Err(IO));
    assert_eq!(other.read(0, 0, 512), Ok(vec![0; 512]));
    other.disconnect();
    structured.disconnect();
    bench.finish();
}

#[test]
fn an_error_in_a_long_write_is_reported_once() {
    let bench = Bench::new();
    let device = bench.disks().disk;
    let mut client = Client::simple(&bench, "disk");
    for place in [0, 128 << 10, 500 << 10, (1 << 20) - 512] {
        device.plant(Fault {
            operation: Operation::Write,
            from: place,
            to: place + 512,
            times: u32::MAX,
            every: 1,
            error: BlockError::Io,
        });
        assert_eq!(client.write(0, 0, &vec![1; 1 << 20]), IO);
        client.assert_quiet();
        device.heal();
        assert_eq!(client.write(0, 0, &vec![2; 1 << 20]), 0);
        assert_eq!(device.peek(0, 1 << 20), vec![2; 1 << 20]);
    }
    client.disconnect();
    bench.finish();
}

#[test]
fn a_failed_flush_is_an_error() {
    let bench = Bench::new();
    let device = bench.disks().other;
    let mut client = Client::simple(&bench, "other");
    device.plant(Fault {
        operation: Operation::Flush,
        from: 0,
        to: 0,
        times: 1,
        every: 1,
        error: BlockError::Io,
    });
    assert_eq!(client.write(0, 0, &[1; 512]), 0);
    assert_eq!(client.command(command::FLUSH, 0, 0, 0), IO);
    // Latched (DUR-5): writes fail on every connection until an operator clears it, reads go on.
    let mut second = Client::simple(&bench, "other");
    assert_eq!(second.write(0, 0, &[1; 512]), IO);
    assert_eq!(second.command(command::FLUSH, 0, 0, 0), IO);
    assert_eq!(second.read(0, 0, 512), Ok(vec![1; 512]));
    client.disconnect();
    second.disconnect();
    bench.finish();
}

#[test]
fn the_size_stays_what_was_negotiated() {
    let bench = Bench::new();
    let device = bench.disks().plain;
    let mut before = Client::simple(&bench, "plain");
    device.resize(DISK + 65536);
    bench.run();
    assert_eq!(before.read(0, DISK, 512), Err(INVALID));
    let mut after = Client::simple(&bench, "plain");
    assert_eq!(after.agreed.size, DISK + 65536);
    assert_eq!(after.write(0, DISK, &[1; 512]), 0);
    device.resize(DISK);
    bench.run();
    device.watch();
    assert_eq!(after.write(0, DISK, &[1; 512]), NO_SPACE);
    assert_eq!(after.read(0, DISK, 512), Err(INVALID));
    assert!(device.seen().is_empty());
    before.disconnect();
    after.disconnect();
    bench.finish();
}

//! What goes on between requests: drained sections, broken connections, removal of exports, fairness, back-pressure.

mod common;

use std::sync::atomic::{AtomicU32, Ordering};

use common::*;
use ironthread::aio::Callback;
use ironthread::block::{Backend, Operation};
use ironthread::config::SESSIONS;
use ironthread::export::nbd::wire::*;
use ironthread::export::{self, ExportError, RemoveMode, nbd};
use ironthread_engine::memory::{Bench, DISK};

fn backend_of(name: &str) -> &'static Backend {
    let mut found = None;
    export::for_each(|export| {
        if export.name == name {
            found = Some(export.backend);
        }
    });
    found.expect("an export")
}

static QUIET: AtomicU32 = AtomicU32::new(0);

fn quiet(_: usize) {
    QUIET.fetch_add(1, Ordering::SeqCst);
}

/// Begins a drained section; returns once it has been asked for, not once it is quiet.
fn begin_drain(backend: &'static Backend) -> u32 {
    let before = QUIET.load(Ordering::SeqCst);
    backend
        .drain_begin(Callback::new(&quiet, 0))
        .expect("a drained section");
    before
}

fn is_quiet_since(before: u32) -> bool {
    QUIET.load(Ordering::SeqCst) > before
}

#[test]
fn a_drained_section_rests_the_sessions() {
    let bench = Bench::new();
    let device = bench.disks().disk;
    let backend = backend_of("disk");
    let mut client = Client::simple(&bench, "disk");
    let mut elsewhere = Client::simple(&bench, "ram");
    device.hold();
    let first = client.send(command::READ, 0, 0, 4096);
    bench.run();
    let mark = begin_drain(backend);
    bench.run();
    assert!(!is_quiet_since(mark), "a request is with the device");
    // What comes now is not even parsed.
    let second = client.send(command::READ, 0, 4096, 4096);
    let third = client.send_write(0, 8192, &[1; 4096]);
    bench.run();
    assert_eq!(client.peer.unread_by_server(), 28 + 28 + 4096);
    // What was submitted comes back and is answered.
    device.release();
    bench.run();
    assert!(is_quiet_since(mark));
    assert_eq!(client.simple_reply(first), 0);
    client.peer.read(4096).unwrap();
    device.watch();
    bench.run();
    assert!(device.seen().is_empty());
    assert_eq!(backend.in_flight() + backend.parked(), 0);
    assert_eq!(elsewhere.write(0, 0, &[1; 512]), 0);
    backend.drain_end();
    bench.run();
    // In any order.
    for _ in 0..2 {
        let Some(Reply::Simple { cookie, error: 0 }) = client.reply() else {
            panic!("no reply")
        };
        assert!(cookie == second || cookie == third);
        if cookie == second {
            client.peer.read(4096).unwrap();
        }
    }
    client.disconnect();
    elsewhere.disconnect();
    bench.finish();
}

#[test]
fn a_drained_section_does_not_wait_for_bytes() {
    let bench = Bench::new();
    let device = bench.disks().disk;
    let backend = backend_of("disk");
    // Half a header, half a payload, a long write half done, and a long read that nobody takes.
    let half_header = Client::simple(&bench, "disk");
    half_header.peer.write(&[0x25, 0x60]);
    let mut half_payload = Client::simple(&bench, "disk");
    half_payload.send(command::WRITE, 0, 0, 4096);
    half_payload.peer.write(&[1; 100]);
    let mut long = Client::simple(&bench, "disk");
    let written = long.send(command::WRITE, 0, 1 << 20, 1 << 20);
    long.peer.write(&[3; 200_000]);
    let mut deaf = Client::simple(&bench, "disk");
    deaf.peer.set_window(1000);
    let read = deaf.send(command::READ, 0, 2 << 20, 2 << 20);
    bench.run();
    let mark = begin_drain(backend);
    bench.run();
    assert!(is_quiet_since(mark), "nothing is with the device");
    device.watch();
    half_payload.peer.write(&[1; 3996]);
    long.peer.write(&vec![3; (1 << 20) - 200_000]);
    deaf.peer.set_window(usize::MAX);
    bench.run();
    assert!(device.seen().is_empty());
    // A second section follows at once (DRN-32).
    backend.drain_end();
    let mark = begin_drain(backend);
    bench.run();
    assert!(is_quiet_since(mark));
    assert!(device.seen().is_empty());
    backend.drain_end();
    bench.run();
    assert_eq!(long.simple_reply(written), 0);
    assert_eq!(device.peek(1 << 20, 1 << 20), vec![3; 1 << 20]);
    assert_eq!(deaf.simple_reply(read), 0);
    assert_eq!(deaf.peer.read(2 << 20).unwrap(), vec![0; 2 << 20]);
    assert_eq!(device.peek(0, 4096), vec![1; 4096]);
    bench.finish();
}

#[test]
fn connections_come_and_go_in_a_drained_section() {
    let bench = Bench::new();
    let device = bench.disks().disk;
    let backend = backend_of("disk");
    let leaver = Client::simple(&bench, "disk");
    device.hold();
    let mut asker = Client::simple(&bench, "disk");
    asker.send(command::WRITE_ZEROES, 0, 0, 4096);
    bench.run();
    let mark = begin_drain(backend);
    bench.run();
    leaver.peer.reset();
    asker.peer.reset();
    bench.run();
    assert!(bench.is_free(leaver.peer.slot) && !bench.is_free(asker.peer.slot));
    device.release();
    bench.run();
    assert!(is_quiet_since(mark) && bench.is_free(asker.peer.slot));
    let mut newcomer = Client::simple(&bench, "disk");
    let cookie = newcomer.send(command::FLUSH, 0, 0, 0);
    bench.run();
    newcomer.assert_quiet();
    backend.drain_end();
    bench.run();
    assert_eq!(newcomer.simple_reply(cookie), 0);
    newcomer.disconnect();
    bench.finish();
}

/// DUR-9: a late write of a broken connection must not overtake a write of the client that came back.
#[test]
fn dur_9_requests_of_a_broken_connection_finish_first() {
    let bench = Bench::new();
    let device = bench.disks().disk;
    for way in 0..3 {
        for go in [false, true] {
            let mut old = Client::simple(&bench, "disk");
            device.hold();
            old.send_write(0, 0, &[1; 4096]);
            bench.run();
            match way {
                0 => old.peer.reset(),
                1 => old.peer.finish(),
                _ => {
                    old.send(command::DISC, 0, 0, 0);
                }
            }
            bench.run();
            assert_eq!(device.held(), 1);
            // Other exports admit, this one does not yet; waiting does not run into the handshake's time.
            Client::simple(&bench, "other").disconnect();
            let mut new = Client::greet(&bench);
            if go {
                new.send_option(option::GO, &go_payload("disk", &[]));
            } else {
                new.send_option(option::EXPORT_NAME, b"disk");
            }
            let early = new.send_write(0, 0, &[2; 4096]);
            bench.run();
            bench.advance(60_000_000_000);
            assert!(!new.peer.is_over());
            assert_eq!(
                device.held(),
                1,
                "the new write reached the device before the old one was done"
            );
            device.release();
            bench.run();
            if go {
                assert_eq!(new.answers(option::GO).last().unwrap().kind, reply::ACK);
            } else {
                new.peer.read(10).unwrap();
            }
            assert_eq!(new.simple_reply(early), 0);
            assert_eq!(device.peek(0, 4096), [2; 4096]);
            new.disconnect();
        }
    }
    bench.finish();
}

/// The same for writes that a client sent before it left and that were not even taken yet.
#[test]
fn dur_9_requests_not_yet_received_of_a_client_that_left_go_first() {
    let bench = Bench::new();
    let device = bench.disks().disk;
    let mut old = Client::simple(&bench, "disk");
    device.hold();
    for _ in 0..100 {
        old.send_write(0, 0, &[1; 4096]);
    }
    bench.run();
    assert!(old.peer.unread_by_server() > 0);
    old.peer.finish();
    bench.run();
    let mut new = Client::greet(&bench);
    new.send_option(option::GO, &go_payload("disk", &[]));
    let late = new.send_write(0, 0, &[2; 4096]);
    bench.run();
    bench.advance(60_000_000_000);
    assert!(!new.peer.is_over() && !old.peer.is_over());
    device.release();
    bench.run();
    assert_eq!(old.peer.read_all().len(), 100 * 16);
    assert_eq!(new.answers(option::GO).last().unwrap().kind, reply::ACK);
    assert_eq!(new.simple_reply(late), 0);
    assert_eq!(device.peek(0, 4096), [2; 4096]);
    new.disconnect();
    bench.finish();
}

/// One that left and takes no replies keeps nobody waiting for long.
#[test]
fn a_client_that_left_and_takes_nothing_is_let_go() {
    let bench = Bench::new();
    let mut old = Client::simple(&bench, "disk");
    old.peer.set_window(0);
    for _ in 0..200 {
        old.send(command::READ, 0, 0, 65536);
    }
    bench.run();
    assert!(old.peer.unread_by_server() > 0);
    old.peer.finish();
    bench.run();
    let mut new = Client::greet(&bench);
    new.send_option(option::GO, &go_payload("disk", &[]));
    bench.run();
    bench.advance(11_000_000_000);
    assert!(old.peer.was_aborted());
    assert_eq!(new.answers(option::GO).last().unwrap().kind, reply::ACK);
    new.disconnect();
    bench.finish();
}

#[test]
fn a_client_that_waits_for_admission_may_leave() {
    let bench = Bench::new();
    let device = bench.disks().disk;
    let mut old = Client::simple(&bench, "disk");
    device.hold();
    old.send_write(0, 0, &[1; 4096]);
    bench.run();
    old.peer.reset();
    bench.run();
    let new = Client::greet(&bench);
    new.send_option(option::GO, &go_payload("disk", &[]));
    new.peer.reset();
    bench.run();
    assert!(bench.is_free(new.peer.slot) && !bench.is_free(old.peer.slot));
    device.release();
    bench.run();
    bench.finish();
}

/// DUR-1: a flush on one connection covers what was answered on another.
#[test]
fn dur_1_a_flush_covers_other_connections() {
    let bench = Bench::new();
    let device = bench.disks().disk;
    let mut writers: Vec<_> = (0..4).map(|_| Client::simple(&bench, "disk")).collect();
    let mut flusher = Client::structured(&bench, "disk");
    for round in 0..20 {
        device.watch();
        for (index, writer) in writers.iter_mut().enumerate() {
            assert_eq!(writer.write(0, index as u64 * 4096, &[round; 4096]), 0);
        }
        assert_eq!(flusher.command(command::FLUSH, 0, 0, 0), 0);
        let log = device.seen();
        let flush = log
            .iter()
            .rposition(|seen| seen.operation == Operation::Flush)
            .expect("a flush at the device");
        assert!(
            log[flush..]
                .iter()
                .all(|seen| seen.operation != Operation::Write)
        );
        assert_eq!(log.len(), 5);
    }
    bench.finish();
}

#[test]
fn exports_are_added_and_removed() {
    let bench = Bench::new();
    let backend = backend_of("ram");
    assert_eq!(
        export::add("ram", "", backend, true),
        Err(ExportError::NameInUse)
    );
    assert_eq!(
        export::add("", "", backend, true),
        Err(ExportError::BadName)
    );
    assert_eq!(
        export::add(&"x".repeat(65), "", backend, true),
        Err(ExportError::BadName)
    );
    assert_eq!(
        export::remove("nothing", RemoveMode::Hard),
        Err(ExportError::NotFound)
    );
    let id = export::add("more", "another name", backend, true).unwrap();
    let mut client = Client::simple(&bench, "more");
    let mut other = Client::simple(&bench, "ram");
    assert_eq!(
        export::remove("more", RemoveMode::Safe),
        Err(ExportError::InUse(1))
    );
    assert_eq!(client.command(command::FLUSH, 0, 0, 0), 0);
    assert_eq!(export::remove("more", RemoveMode::Hard), Ok(false));
    assert!(export::exists(id));
    nbd::wake_all();
    bench.run();
    assert!(client.peer.is_over() && !export::exists(id));
    assert_eq!(other.command(command::FLUSH, 0, 0, 0), 0);
    let mut late = Client::greet(&bench);
    assert_eq!(
        late.option(option::GO, &go_payload("more", &[]))[0].kind,
        reply::ERR_UNKNOWN
    );
    export::add("more", "again", backend, false).unwrap();
    late.go("more");
    assert_ne!(late.agreed.flags & export_flag::READ_ONLY, 0);
    late.disconnect();
    assert_eq!(export::remove("more", RemoveMode::Safe), Ok(true));
    other.disconnect();
    bench.finish();
}

#[test]
fn a_removed_export_waits_for_its_last_request() {
    let bench = Bench::new();
    let device = bench.disks().other;
    let id = export::add("more", "", backend_of("other"), true).unwrap();
    let mut client = Client::simple(&bench, "more");
    device.hold();
    client.send(command::READ, 0, 0, 4096);
    bench.run();
    assert_eq!(export::remove("more", RemoveMode::Hard), Ok(false));
    nbd::wake_all();
    bench.run();
    assert!(client.peer.is_over() && export::exists(id) && !bench.is_free(client.peer.slot));
    device.release();
    bench.run();
    assert!(!export::exists(id) && bench.is_free(client.peer.slot));
    bench.finish();
}

/// Every session has its turn: one that floods does not keep the others waiting.
#[test]
fn a_flood_on_one_session_leaves_the_others_their_turn() {
    let bench = Bench::new();
    let mut flood = Client::simple(&bench, "null");
    flood.peer.set_window(0);
    for _ in 0..2000 {
        flood.send_write(0, 0, &[1; 32768]);
    }
    let mut others: Vec<_> = (1..SESSIONS)
        .map(|_| Client::simple(&bench, "disk"))
        .collect();
    for client in &mut others {
        assert_eq!(client.write(0, 0, &[1; 4096]), 0);
    }
    flood.peer.set_window(usize::MAX);
    bench.run();
    assert_eq!(flood.peer.read_all().len(), 2000 * 16);
    flood.disconnect();
    bench.finish();
}

/// Equal floods move on equally, and a small request does not wait for another session's long ones.
#[test]
fn sessions_take_turns() {
    let bench = Bench::new();
    let mut floods: Vec<_> = (0..3).map(|_| Client::simple(&bench, "null")).collect();
    let mut long = Client::simple(&bench, "null");
    let mut small = Client::simple(&bench, "disk");
    for client in &mut floods {
        for _ in 0..20_000 {
            client.send_write(0, 0, &[1; 512]);
        }
    }
    for _ in 0..40 {
        long.send(command::READ, 0, 0, 4 << 20);
    }
    let mut done = vec![0; floods.len()];
    for _ in 0..40 {
        let asked = small.send(command::READ, 0, 0, 512);
        let mut rounds = 0;
        while small.peer.unread_by_server() > 0 || small.peer.read(16 + 512).is_none() {
            assert!(bench.round());
            rounds += 1;
            assert!(rounds < 6, "request {asked} has to wait for others");
        }
        for (client, done) in floods.iter_mut().zip(&mut done) {
            *done += client.peer.read_all().len() / 16;
        }
        let (least, most) = (done.iter().min().unwrap(), done.iter().max().unwrap());
        assert!(most - least <= 128, "{done:?}");
    }
    assert!(
        *done.iter().min().unwrap() < 20_000,
        "the floods ended too early to say anything"
    );
    bench.run();
    assert_eq!(long.peer.read_all().len(), 40 * (16 + (4 << 20)));
    bench.finish();
}

/// More requests than the block layer has records: everybody waits a little, nobody gets an error, nobody is forgotten.
#[test]
fn with_every_record_in_use_sessions_wait() {
    let bench = Bench::new();
    let device = bench.disks().disk;
    device.hold();
    let mut clients: Vec<_> = (0..SESSIONS)
        .map(|_| Client::simple(&bench, "disk"))
        .collect();
    for client in &mut clients {
        for request in 0..64 {
            client.send(command::READ, 0, request * 512, 512);
        }
        for request in 0..64 {
            client.send_write(0, request * 512, &[2; 512]);
        }
    }
    bench.run();
    device.release();
    bench.run();
    for client in &mut clients {
        assert_eq!(client.peer.read_all().len(), 64 * (512 + 16) + 64 * 16);
    }
    bench.finish();
}

/// Clients of a disk that does not answer hold what is theirs; a client of another disk has its own records.
#[test]
fn a_disk_that_never_answers_starves_no_other() {
    let bench = Bench::new();
    let device = bench.disks().disk;
    device.hold();
    let mut stuck: Vec<_> = (1..SESSIONS)
        .map(|_| Client::simple(&bench, "disk"))
        .collect();
    for client in &mut stuck {
        for request in 0..64 {
            client.send(command::READ, 0, request * 512, 512);
        }
    }
    bench.run();
    let mut well = Client::simple(&bench, "other");
    for turn in 0..3 {
        assert_eq!(well.write(0, 0, &[turn; 4096]), 0);
        assert_eq!(well.read(0, 0, 4096), Ok(vec![turn; 4096]));
    }
    device.release();
    bench.run();
    for client in &mut stuck {
        assert_eq!(client.peer.read_all().len(), 64 * (512 + 16));
    }
    bench.finish();
}

/// Long and short, structured and simple, all mixed: every reply is complete, and as it must be.
#[test]
fn a_mix_of_everything() {
    let bench = Bench::new();
    let data = pattern(99, DISK as usize);
    bench.disks().disk.poke(0, &data);
    for window in [usize::MAX, 3000] {
        for structured in [false, true] {
            let mut client = if structured {
                Client::structured(&bench, "disk")
            } else {
                Client::simple(&bench, "disk")
            };
            let mut expected = std::collections::HashMap::new();
            for round in 0u64..120 {
                let length =
                    [512, 4096, 65536, 262_144, 262_656, 1 << 20, 3 << 20][round as usize % 7];
                let offset = (round * 7919 * 512) % (DISK - u64::from(length) + 1) / 512 * 512;
                match round % 5 {
                    4 => {
                        expected.insert(client.send(command::FLUSH, 0, 0, 0), (0, 0));
                    }
                    3 => {
                        // What is written is what is there, so that reads at the same time see one content.
                        let part = &data[offset as usize..][..length as usize];
                        expected.insert(client.send_write(0, offset, part), (0, 0));
                    }
                    _ => {
                        expected.insert(
                            client.send(command::READ, 0, offset, length),
                            (offset, length),
                        );
                    }
                }
            }
            client.peer.set_window(window);
            bench.run();
            let mut rounds = 0;
            while window != usize::MAX && rounds < 100_000 && !client.peer.is_over() {
                client.peer.set_window(3_000_000);
                bench.run();
                rounds += 1;
                if rounds > 60 {
                    break;
                }
            }
            let mut covered = std::collections::HashMap::<u64, u32>::new();
            while !expected.is_empty() {
                match client.reply().expect("another reply") {
                    Reply::Simple { cookie, error } => {
                        assert_eq!(error, 0);
                        let (offset, length) = expected.remove(&cookie).expect("a cookie of ours");
                        if !structured {
                            let read = client.peer.read(length as usize).unwrap();
                            assert!(read == data[offset as usize..][..length as usize]);
                        }
                    }
                    Reply::Chunk {
                        cookie,
                        done,
                        kind,
                        payload,
                    } => {
                        assert_eq!(kind, chunk::OFFSET_DATA);
                        let at = u64_at(&payload, 0) as usize;
                        assert!(payload[8..] == data[at..][..payload.len() - 8]);
                        *covered.entry(cookie).or_default() += payload.len() as u32 - 8;
                        if done {
                            let (_, length) = expected.remove(&cookie).expect("a cookie of ours");
                            assert_eq!(covered[&cookie], length);
                        }
                    }
                }
            }
            client.disconnect();
        }
    }
    bench.finish();
}

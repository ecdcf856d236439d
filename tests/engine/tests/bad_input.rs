//! Peers that break the rules or stop in the middle: that one connection ends or waits, nobody else notices, and every
//! counter goes back to zero.

mod common;

use common::*;
use ironthread::block::Operation;
use ironthread::export::nbd::wire::*;
use ironthread::export::nbd::{self, RECEIVE_PAGES, REPLY_PAGES};
use ironthread_engine::memory::{Bench, DISK};
use proptest::prelude::*;

/// A second client that must not notice anything.
struct Witness<'a>(Client<'a>);

impl<'a> Witness<'a> {
    fn new(bench: &'a Bench) -> Self {
        Self(Client::structured(bench, "disk"))
    }

    fn check(&mut self) {
        let data = pattern(7, 8192);
        assert_eq!(self.0.write(command_flag::FUA, DISK - 8192, &data), 0);
        assert_eq!(self.0.read_structured(0, DISK - 8192, 8192), Ok(data));
    }
}

#[test]
fn a_wrong_request_magic_ends_the_connection() {
    let bench = Bench::new();
    let mut witness = Witness::new(&bench);
    let mut client = Client::simple(&bench, "disk");
    client.send(command::READ, 0, 0, 4096);
    client.peer.write(&[0; 28]);
    bench.run();
    assert!(client.peer.is_over() && client.peer.was_aborted());
    witness.check();
    bench.finish();
}

#[test]
fn half_a_header_and_half_a_payload() {
    let bench = Bench::new();
    let mut witness = Witness::new(&bench);
    let header = RequestHeader {
        flags: 0,
        command: command::WRITE,
        cookie: 1,
        offset: 0,
        length: 300_000,
    };
    for sent in [0, 1, 27, 28, 29, 1000, 131_072 + 28, 200_000] {
        for end in 0..3 {
            let mut client = Client::simple(&bench, "disk");
            let mut bytes = header.emit().to_vec();
            bytes.extend(vec![0x55; 300_000]);
            // Not a multiple of 512, so refused once it is complete; a good one comes after.
            client.peer.write(&bytes[..sent]);
            bench.run();
            client.assert_quiet();
            witness.check();
            // Silence costs no request in flight, and at most its own pages.
            assert_eq!(witness.0.bench.disks().disk.held(), 0);
            assert!(nbd::pages(client.peer.slot).0 <= RECEIVE_PAGES);
            bench.advance(80_000_000_000);
            assert!(!client.peer.is_over());
            match end {
                0 => client.peer.finish(),
                1 => client.peer.reset(),
                _ => client.peer.write(&[0; 0]),
            }
            bench.run();
            assert!(end == 2 || client.peer.is_over());
            if end == 2 {
                client.peer.write(&bytes[sent..]);
                bench.run();
                assert_eq!(client.simple_reply(1), NbdError::Invalid as u32);
                client.disconnect();
            } else {
                assert!(bench.is_free(client.peer.slot));
            }
        }
    }
    witness.check();
    bench.finish();
}

#[test]
fn a_good_write_that_stops_half_way_writes_only_whole_pieces() {
    let bench = Bench::new();
    let device = bench.disks().disk;
    let client = {
        let mut client = Client::simple(&bench, "disk");
        client.send(command::WRITE, 0, 0, 1 << 20);
        client
    };
    client.peer.write(&vec![0x55; 300_000]);
    bench.run();
    let written: u64 = device
        .seen()
        .iter()
        .filter(|s| s.operation == Operation::Write)
        .map(|s| s.len)
        .sum();
    let whole = 300_000 / nbd::WRITE_PIECE * nbd::WRITE_PIECE;
    assert!(whole > 0 && whole < 300_000);
    assert_eq!(written, whole as u64);
    // In flight only while the device has it, not while bytes are awaited.
    nbd::connections(|connection| assert_eq!((connection.requests, connection.in_flight), (1, 0)));
    client.peer.reset();
    bench.run();
    assert_eq!(device.peek(written, 4096), [0; 4096]);
    bench.finish();
}

#[test]
fn a_closed_window_holds_only_its_own_quota() {
    let bench = Bench::new();
    let mut witness = Witness::new(&bench);
    for structured in [false, true] {
        let mut client = if structured {
            Client::structured(&bench, "disk")
        } else {
            Client::simple(&bench, "disk")
        };
        client.peer.set_window(0);
        for request in 0..200 {
            client.send(command::READ, 0, request * 4096, 65536);
        }
        bench.run();
        assert!(client.peer.unread_by_server() > 0, "it reads without end");
        assert!(nbd::pages(client.peer.slot).0 <= REPLY_PAGES + RECEIVE_PAGES);
        witness.check();
        bench.advance(60_000_000_000);
        witness.check();
        // It opens again: all replies come.
        client.peer.set_window(usize::MAX);
        bench.run();
        let per_reply = if structured {
            20 + 8 + 65536
        } else {
            16 + 65536
        };
        assert_eq!(client.peer.read_all().len(), 200 * per_reply);
        client.disconnect();
        // And one that never opens.
        let mut client = Client::simple(&bench, "disk");
        client.peer.set_window(0);
        for _ in 0..64 {
            client.send(command::READ, 0, 0, 1 << 20);
        }
        bench.run();
        client.peer.reset();
        bench.run();
        assert!(bench.is_free(client.peer.slot));
    }
    witness.check();
    bench.finish();
}

#[test]
fn a_client_that_leaves_without_taking_its_replies() {
    let bench = Bench::new();
    let mut witness = Witness::new(&bench);
    let mut client = Client::simple(&bench, "disk");
    client.peer.set_window(0);
    for _ in 0..10 {
        client.send(command::READ, 0, 0, 1 << 20);
    }
    client.send(command::DISC, 0, 0, 0);
    bench.run();
    bench.advance(5_000_000_000);
    assert!(!client.peer.is_over());
    bench.advance(6_000_000_000);
    bench.advance(11_000_000_000);
    assert!(client.peer.is_over() && client.peer.was_aborted());
    witness.check();
    bench.finish();
}

#[test]
fn the_end_of_sending_is_answered_in_full() {
    let bench = Bench::new();
    let mut client = Client::simple(&bench, "disk");
    for request in 0..5 {
        client.send_write(0, request * 4096, &[request as u8; 4096]);
    }
    client.send(command::READ, 0, 0, 3 << 20);
    client.peer.finish();
    bench.run();
    assert_eq!(client.peer.read_all().len(), 5 * 16 + 16 + (3 << 20));
    assert!(client.peer.is_over() && !client.peer.was_aborted());
    bench.finish();
}

#[test]
fn leaving_in_mid_request() {
    let bench = Bench::new();
    let mut witness = Witness::new(&bench);
    let device = bench.disks().disk;
    for length in [4096, 1 << 20] {
        for fin in [false, true] {
            device.hold();
            let mut client = Client::simple(&bench, "disk");
            client.send(command::READ, 0, 0, length);
            client.send_write(0, 0, &vec![1; length as usize]);
            client.send(command::FLUSH, 0, 0, 0);
            client.send(command::WRITE_ZEROES, 0, 0, 4096);
            bench.run();
            assert!(device.held() > 0);
            if fin {
                client.peer.finish()
            } else {
                client.peer.reset()
            }
            bench.run();
            let slot = client.peer.slot;
            assert!(
                !bench.is_free(slot),
                "its requests are still with the device"
            );
            device.release();
            bench.run();
            assert!(bench.is_free(slot));
            witness.check();
        }
    }
    bench.finish();
}

#[test]
fn more_requests_than_places_are_not_read() {
    let bench = Bench::new();
    let device = bench.disks().disk;
    device.hold();
    let mut client = Client::simple(&bench, "disk");
    for request in 0..100 {
        client.send(command::READ, 0, request * 512, 512);
    }
    bench.run();
    assert_eq!(client.peer.unread_by_server(), 36 * 28);
    assert_eq!(device.held(), 64);
    device.release();
    bench.run();
    assert_eq!(client.peer.read_all().len(), 100 * (512 + 16));
    client.disconnect();
    bench.finish();
}

#[test]
fn refused_writes_in_a_row_keep_the_stream_in_step() {
    let bench = Bench::new();
    let mut client = Client::simple(&bench, "locked");
    let mut cookies = Vec::new();
    for length in [512usize, 1, 300_000, 0, 4096, 1 << 20] {
        cookies.push(client.send_write(0, 0, &vec![0x25; length]));
    }
    bench.run();
    for cookie in cookies {
        assert_eq!(client.simple_reply(cookie), NbdError::Permission as u32);
    }
    assert_eq!(client.read(0, 0, 512), Ok(vec![0; 512]));
    client.disconnect();
    bench.finish();
}

/// Something a client sends.
#[derive(Clone, Debug)]
enum Act {
    Garbage(Vec<u8>),
    Option(u32, Vec<u8>),
    Go(bool),
    Request(u16, u16, u64, u32, usize),
    Window(usize),
    Run,
    Time(u64),
    Finish,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        1 => prop::collection::vec(any::<u8>(), 0..80).prop_map(Act::Garbage),
        2 => (0u32..13, prop::collection::vec(any::<u8>(), 0..60)).prop_map(|(o, p)| Act::Option(o, p)),
        3 => any::<bool>().prop_map(Act::Go),
        12 => (0u16..9, 0u16..64, prop_oneof![0..DISK / 512, Just(DISK / 512), any::<u64>()], 0u32..700, 0usize..2)
            .prop_map(|(c, f, o, l, whole)| Act::Request(c, if f < 32 { f } else { 0 }, o.wrapping_mul(512), l * 512, whole)),
        2 => prop_oneof![Just(0), 1usize..5000, Just(usize::MAX)].prop_map(Act::Window),
        4 => Just(Act::Run),
        1 => (0u64..12_000_000_000).prop_map(Act::Time),
        1 => Just(Act::Finish),
    ]
}

fn play(acts: &[Act], lend: usize, structured: bool, greeted: bool) {
    let bench = Bench::new();
    let mut witness = Witness::new(&bench);
    let client = bench.connect().unwrap();
    client.set_lend(lend);
    let (mut finished, mut cookie) = (false, 0);
    if greeted {
        client.write(&3u32.to_be_bytes());
        if structured {
            client.write(
                &OptionHeader {
                    option: option::STRUCTURED_REPLY,
                    length: 0,
                }
                .emit(),
            );
        }
    }
    for act in acts {
        if finished || client.is_over() {
            break;
        }
        match act {
            Act::Garbage(bytes) => client.write(bytes),
            Act::Option(option, payload) => {
                client.write(
                    &OptionHeader {
                        option: *option,
                        length: payload.len() as u32,
                    }
                    .emit(),
                );
                client.write(payload);
            }
            Act::Go(meta) => {
                if *meta {
                    let payload = meta_payload("disk", &["base:allocation"]);
                    client.write(
                        &OptionHeader {
                            option: option::SET_META_CONTEXT,
                            length: payload.len() as u32,
                        }
                        .emit(),
                    );
                    client.write(&payload);
                }
                let payload = go_payload("disk", &[]);
                client.write(
                    &OptionHeader {
                        option: option::GO,
                        length: payload.len() as u32,
                    }
                    .emit(),
                );
                client.write(&payload);
            }
            Act::Request(command, flags, offset, length, whole) => {
                cookie += 1;
                let header = RequestHeader {
                    flags: *flags,
                    command: *command,
                    cookie,
                    offset: *offset,
                    length: *length,
                };
                client.write(&header.emit());
                if *command == command::WRITE {
                    let sent = if *whole == 1 {
                        *length as usize
                    } else {
                        *length as usize / 2
                    };
                    client.write(&vec![0x11; sent]);
                }
            }
            Act::Window(bytes) => client.set_window(*bytes),
            Act::Run => bench.run(),
            Act::Time(ns) => bench.advance(*ns),
            Act::Finish => {
                client.finish();
                finished = true;
            }
        }
    }
    bench.run();
    assert!(nbd::pages(client.slot).0 <= REPLY_PAGES + RECEIVE_PAGES);
    witness.check();
    bench.finish();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_clients(acts in prop::collection::vec(act(), 0..40), lend in prop_oneof![Just(1usize), 2usize..100, Just(usize::MAX)],
                      structured: bool) {
        play(&acts, lend, structured, true);
    }

    #[test]
    fn random_bytes(bytes in prop::collection::vec(any::<u8>(), 0..3000), greeted: bool, structured: bool) {
        play(&[Act::Garbage(bytes), Act::Run, Act::Time(20_000_000_000)], usize::MAX, structured, greeted);
    }

    /// Random bytes where requests belong.
    #[test]
    fn random_transmission(acts in prop::collection::vec(act(), 0..60), structured: bool) {
        let mut all = vec![Act::Go(true)];
        all.extend(acts.into_iter().filter(|act| !matches!(act, Act::Go(_) | Act::Option(..))));
        play(&all, usize::MAX, structured, true);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 30_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    #[ignore = "minutes: for the long run"]
    fn random_clients_long(acts in prop::collection::vec(act(), 0..80), lend in prop_oneof![Just(1usize), 2usize..100, Just(usize::MAX)],
                           structured: bool, direct: bool) {
        let mut all = if direct { vec![Act::Go(true)] } else { vec![] };
        all.extend(acts.into_iter().filter(|act| !direct || !matches!(act, Act::Go(_) | Act::Option(..))));
        play(&all, lend, structured, true);
    }
}

//! Every option of the handshake, good and bad.

mod common;

use common::*;
use ironthread::export::nbd::wire::*;
use ironthread_engine::memory::{Bench, DISK, NULL};

#[test]
fn go_tells_size_flags_and_block_sizes() {
    let bench = Bench::new();
    let mut client = Client::simple(&bench, "disk");
    use export_flag::*;
    let common = HAS_FLAGS | SEND_FLUSH | SEND_FUA | SEND_CACHE | CAN_MULTI_CONN;
    let writable = SEND_TRIM | SEND_WRITE_ZEROES | SEND_FAST_ZERO;
    let expected = Agreed {
        size: DISK,
        flags: common | writable,
        minimum: 512,
        preferred: 4096,
        maximum: 32 << 20,
    };
    assert_eq!(client.agreed, expected);
    client.assert_quiet();
    client.disconnect();

    let client = Client::structured(&bench, "locked");
    assert_eq!(
        client.agreed,
        Agreed {
            flags: common | READ_ONLY | SEND_DF,
            ..expected
        }
    );
    client.disconnect();

    let client = Client::simple(&bench, "blocks");
    assert_eq!(
        (client.agreed.minimum, client.agreed.preferred),
        (4096, 4096)
    );
    client.disconnect();

    let client = Client::simple(&bench, "null");
    assert_eq!(client.agreed.size, NULL);
    client.disconnect();
    bench.finish();
}

#[test]
fn the_empty_name_is_the_first_export() {
    let bench = Bench::new();
    let mut client = Client::greet(&bench);
    let answers = client.option(
        option::INFO,
        &go_payload("", &[info::NAME, info::DESCRIPTION]),
    );
    let of = |kind: u16| {
        answers
            .iter()
            .find(|a| a.kind == reply::INFO && u16_at(&a.payload, 0) == kind)
            .unwrap()
    };
    assert_eq!(&of(info::NAME).payload[2..], b"disk");
    assert_eq!(&of(info::DESCRIPTION).payload[2..], b"about disk");
    assert_eq!(u64_at(&of(info::EXPORT).payload, 2), DISK);
    assert_eq!(answers.last().unwrap().kind, reply::ACK);
    // INFO does not enter: GO still can.
    client.go("");
    assert_eq!(client.command(command::FLUSH, 0, 0, 0), 0);
    client.disconnect();
    bench.finish();
}

#[test]
fn export_name_with_and_without_zeroes() {
    let bench = Bench::new();
    for (flags, zeroes) in [(3, 0), (1, 124), (0, 124), (2, 0)] {
        let mut client = Client::greet_with(&bench, flags);
        client.send_option(option::EXPORT_NAME, b"other");
        let answer = client.peer.read_all();
        assert_eq!(answer.len(), 10 + zeroes);
        assert_eq!(u64_at(&answer, 0), DISK);
        assert_eq!(client.command(command::FLUSH, 0, 0, 0), 0);
        client.disconnect();
    }
    bench.finish();
}

#[test]
fn export_name_of_nothing_ends_the_connection() {
    let bench = Bench::new();
    let client = Client::greet(&bench);
    client.send_option(option::EXPORT_NAME, b"nothing");
    assert!(client.peer.is_over());
    let client = Client::greet(&bench);
    client.send_option(option::EXPORT_NAME, &[b'x'; 4097]);
    assert!(client.peer.is_over());
    bench.finish();
}

#[test]
fn an_unknown_export_leaves_the_client_negotiating() {
    let bench = Bench::new();
    let mut client = Client::greet(&bench);
    for option in [option::INFO, option::GO] {
        let answers = client.option(option, &go_payload("nothing", &[]));
        assert_eq!(
            answers,
            [Answer {
                kind: reply::ERR_UNKNOWN,
                payload: vec![]
            }]
        );
    }
    client.go("other");
    client.disconnect();
    bench.finish();
}

#[test]
fn list_names_every_export_in_order() {
    let bench = Bench::new();
    let mut client = Client::greet(&bench);
    let answers = client.option(option::LIST, &[]);
    let names: Vec<_> = answers
        .iter()
        .filter(|answer| answer.kind == reply::SERVER)
        .map(|answer| {
            let length = u32_at(&answer.payload, 0) as usize;
            let name = String::from_utf8(answer.payload[4..4 + length].to_vec()).unwrap();
            assert_eq!(
                answer.payload[4 + length..],
                *format!("about {name}").as_bytes()
            );
            name
        })
        .collect();
    assert_eq!(
        names,
        ["disk", "locked", "other", "blocks", "plain", "ram", "null"]
    );
    assert_eq!(answers.last().unwrap().kind, reply::ACK);
    assert_eq!(
        client.option(option::LIST, b"x")[0].kind,
        reply::ERR_INVALID
    );
    bench.finish();
}

#[test]
fn abort_is_acknowledged_and_closes() {
    let bench = Bench::new();
    for payload in [&b""[..], b"bye"] {
        let mut client = Client::greet(&bench);
        assert_eq!(
            client.option(option::ABORT, payload),
            [Answer {
                kind: reply::ACK,
                payload: vec![]
            }]
        );
        assert!(client.peer.is_over() && !client.peer.was_aborted());
    }
    // A client that does not wait for the acknowledgement.
    let client = Client::greet(&bench);
    client.peer.set_window(0);
    client.send_option(option::ABORT, &[]);
    client.peer.reset();
    bench.run();
    bench.finish();
}

#[test]
fn tls_and_unknown_options_are_refused() {
    let bench = Bench::new();
    let mut client = Client::greet(&bench);
    assert_eq!(
        client.option(option::STARTTLS, &[])[0].kind,
        reply::ERR_POLICY
    );
    assert_eq!(
        client.option(option::STARTTLS, b"x")[0].kind,
        reply::ERR_INVALID
    );
    for unknown in [0, 4, option::EXTENDED_HEADERS, 12, 77, u32::MAX] {
        for payload in [&[][..], &[0xff; 100_000]] {
            assert_eq!(
                client.option(unknown, payload),
                [Answer {
                    kind: reply::ERR_UNSUP,
                    payload: vec![]
                }]
            );
        }
    }
    client.go("disk");
    client.disconnect();
    bench.finish();
}

#[test]
fn too_long_an_option_is_skipped_or_ends() {
    let bench = Bench::new();
    let mut client = Client::greet(&bench);
    for option in [
        option::INFO,
        option::GO,
        option::LIST_META_CONTEXT,
        option::SET_META_CONTEXT,
    ] {
        assert_eq!(
            client.option(option, &vec![0; 100_000])[0].kind,
            reply::ERR_TOO_BIG
        );
    }
    client.peer.write(
        &OptionHeader {
            option: option::GO,
            length: u32::MAX,
        }
        .emit(),
    );
    bench.run();
    assert!(client.peer.is_over());
    bench.finish();
}

#[test]
fn malformed_payloads_are_invalid() {
    let bench = Bench::new();
    let mut client = Client::greet(&bench);
    client.option(option::STRUCTURED_REPLY, &[]);
    let mut long = go_payload("disk", &[]);
    long.push(0);
    for payload in [
        &[][..],
        &[0, 0, 0],
        &[0xff; 40],
        &long,
        &go_payload("disk", &[1, 2])[..13],
    ] {
        for option in [
            option::INFO,
            option::GO,
            option::LIST_META_CONTEXT,
            option::SET_META_CONTEXT,
        ] {
            assert_eq!(
                client.option(option, payload)[0].kind,
                reply::ERR_INVALID,
                "{option} {payload:?}"
            );
        }
    }
    client.go("disk");
    client.disconnect();
    bench.finish();
}

#[test]
fn structured_replies_once() {
    let bench = Bench::new();
    let mut client = Client::greet(&bench);
    assert_eq!(
        client.option(option::STRUCTURED_REPLY, b"x")[0].kind,
        reply::ERR_INVALID
    );
    assert_eq!(
        client.option(option::STRUCTURED_REPLY, &[])[0].kind,
        reply::ACK
    );
    assert_eq!(
        client.option(option::STRUCTURED_REPLY, &[])[0].kind,
        reply::ERR_INVALID
    );
    bench.finish();
}

#[test]
fn meta_contexts() {
    let bench = Bench::new();
    let mut client = Client::greet(&bench);
    let set = option::SET_META_CONTEXT;
    let list = option::LIST_META_CONTEXT;
    assert_eq!(
        client.option(set, &meta_payload("disk", &["base:allocation"]))[0].kind,
        reply::ERR_INVALID
    );
    client.option(option::STRUCTURED_REPLY, &[]);
    let contexts = |answers: Vec<Answer>| -> Vec<(u32, Vec<u8>)> {
        assert_eq!(answers.last().unwrap().kind, reply::ACK);
        let found = answers
            .iter()
            .filter(|answer| answer.kind == reply::META_CONTEXT);
        found
            .map(|answer| (u32_at(&answer.payload, 0), answer.payload[4..].to_vec()))
            .collect()
    };
    let base = b"base:allocation".to_vec();
    assert_eq!(
        contexts(client.option(list, &meta_payload("disk", &[]))),
        [(0, base.clone())]
    );
    assert_eq!(
        contexts(client.option(list, &meta_payload("disk", &["base:"]))),
        [(0, base.clone())]
    );
    assert_eq!(
        contexts(client.option(list, &meta_payload("disk", &["x:", "base:allocation"]))),
        [(0, base.clone())]
    );
    assert_eq!(
        contexts(client.option(list, &meta_payload("disk", &["qemu:"]))),
        []
    );
    assert_eq!(
        client.option(list, &meta_payload("nothing", &[]))[0].kind,
        reply::ERR_UNKNOWN
    );
    assert_eq!(
        contexts(client.option(set, &meta_payload("disk", &["base:allocation"]))),
        [(1, base.clone())]
    );
    // Each SET replaces the one before.
    assert_eq!(
        contexts(client.option(set, &meta_payload("disk", &["other"]))),
        []
    );
    client.go("disk");
    assert_eq!(
        client.chunks(command::BLOCK_STATUS, 0, 0, 512)[0].0,
        chunk::ERROR
    );
    client.disconnect();

    // A context for another export is void.
    let mut client = Client::greet(&bench);
    client.option(option::STRUCTURED_REPLY, &[]);
    client.option(set, &meta_payload("other", &["base:allocation"]));
    client.go("disk");
    assert_eq!(
        client.chunks(command::BLOCK_STATUS, 0, 0, 512)[0].0,
        chunk::ERROR
    );
    client.disconnect();
    bench.finish();
}

#[test]
fn large_blocks_have_to_be_asked_for() {
    let bench = Bench::new();
    let mut client = Client::greet(&bench);
    for option in [option::INFO, option::GO] {
        let answers = client.option(option, &go_payload("blocks", &[]));
        assert_eq!(
            answers,
            [Answer {
                kind: reply::ERR_BLOCK_SIZE_REQD,
                payload: vec![]
            }]
        );
    }
    client.go("blocks");
    client.disconnect();
    bench.finish();
}

#[test]
fn clients_that_are_not_fixed_newstyle() {
    let bench = Bench::new();
    let client = Client::greet_with(&bench, 0);
    client.send_option(option::LIST, &[]);
    assert!(client.peer.is_over());
    let client = Client::greet_with(&bench, 4);
    assert!(client.peer.is_over());
    let client = Client::greet_with(&bench, u32::MAX);
    assert!(client.peer.is_over());
    bench.finish();
}

#[test]
fn a_wrong_magic_ends_the_connection() {
    let bench = Bench::new();
    let client = Client::greet(&bench);
    client.peer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    bench.run();
    assert!(client.peer.is_over());
    bench.finish();
}

#[test]
fn ten_seconds_for_a_handshake() {
    let bench = Bench::new();
    let second = 1_000_000_000;
    let mute = bench.connect().unwrap();
    let half = Client::greet(&bench);
    half.peer.write(
        &OptionHeader {
            option: option::GO,
            length: 50,
        }
        .emit()[..9],
    );
    let mut busy = Client::greet(&bench);
    let deaf = Client::greet(&bench);
    deaf.peer.set_window(0);
    deaf.send_option(option::LIST, &[]);
    let mut served = Client::simple(&bench, "disk");
    bench.advance(9 * second);
    busy.option(option::LIST, &[]);
    assert!(
        !mute.is_over() && !half.peer.is_over() && !busy.peer.is_over() && !deaf.peer.is_over()
    );
    bench.advance(second);
    assert!(mute.is_over() && half.peer.is_over() && busy.peer.is_over() && deaf.peer.is_over());
    assert_eq!(served.command(command::FLUSH, 0, 0, 0), 0);
    served.disconnect();
    bench.finish();
}

#[test]
fn bytes_may_come_one_by_one() {
    let bench = Bench::new();
    let mut client = Client::greet(&bench);
    client.peer.set_lend(1);
    client.peer.set_window(0);
    let payload = go_payload("disk", &[info::NAME, info::BLOCK_SIZE]);
    let mut bytes = OptionHeader {
        option: option::GO,
        length: payload.len() as u32,
    }
    .emit()
    .to_vec();
    bytes.extend(payload);
    for byte in bytes {
        client.peer.write(&[byte]);
        bench.run();
    }
    for _ in 0..200 {
        client.peer.set_window(1);
        bench.run();
    }
    let answers = client.answers(option::GO);
    assert_eq!(answers.len(), 4);
    client.peer.set_window(usize::MAX);
    assert_eq!(client.command(command::FLUSH, 0, 0, 0), 0);
    client.disconnect();
    bench.finish();
}

#[test]
fn a_client_that_leaves_early() {
    let bench = Bench::new();
    for sent in 0..40 {
        let client = Client::greet(&bench);
        let payload = go_payload("disk", &[]);
        let mut bytes = OptionHeader {
            option: option::GO,
            length: payload.len() as u32,
        }
        .emit()
        .to_vec();
        bytes.extend(payload);
        client.peer.write(&bytes[..sent.min(bytes.len())]);
        if sent % 2 == 0 {
            client.peer.finish();
        } else {
            client.peer.reset();
        }
        bench.run();
        assert!(client.peer.is_over());
        assert!(bench.is_free(client.peer.slot));
    }
    bench.finish();
}

#[test]
fn every_slot_serves() {
    let bench = Bench::new();
    let mut clients: Vec<_> = (0..ironthread::config::SESSIONS)
        .map(|_| Client::simple(&bench, "disk"))
        .collect();
    assert!(bench.connect().is_none());
    for client in &mut clients {
        assert_eq!(client.command(command::FLUSH, 0, 0, 0), 0);
    }
    clients.pop().unwrap().disconnect();
    Client::simple(&bench, "other").disconnect();
    drop(clients);
    bench.finish();
}

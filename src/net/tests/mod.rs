//! The stack against a client: see each test's name.
mod server;
mod world;

use std::vec;
use std::vec::Vec;

use smoltcp::socket::tcp::State;

use self::server::{Behaviour, Server};
use self::world::{PORT, SECOND, Setup, THEIRS, World, leak};
use super::device::{CardState, NetDevice};
use super::slot::Phase;
use super::stream::CloseReason;
use crate::config::NET_SLOTS;

fn pattern(len: usize, salt: u8) -> Vec<u8> {
    (0..len)
        .map(|i| ((i * 31) >> 3) as u8 ^ (i as u8) ^ salt)
        .collect()
}

/// Sends `data` over `handle` and reads the echo.
fn echo(world: &mut World, handle: smoltcp::iface::SocketHandle, data: &[u8]) {
    let (mut sent, mut back) = (0, Vec::new());
    for _ in 0..200_000 {
        let socket = world.socket(handle);
        if sent < data.len() && socket.can_send() {
            sent += socket.send_slice(&data[sent..]).unwrap();
        }
        if socket.can_recv() {
            let _ = socket.recv(|bytes| {
                back.extend_from_slice(bytes);
                (bytes.len(), ())
            });
        }
        if back.len() >= data.len() {
            break;
        }
        world.run(1);
    }
    assert!(
        back == data,
        "echo differs: {} of {}",
        back.len(),
        data.len()
    );
}

fn transfer(offload: bool, ring: usize, behaviour: Behaviour, len: usize) -> World {
    let server = Server::new(behaviour);
    let mut world = World::new(
        Setup {
            offload,
            ring,
            ..Setup::default()
        },
        server,
    );
    let handle = world.connect();
    echo(&mut world, handle, &pattern(len, 7));
    assert_eq!(server.opened(), 1);
    world.socket(handle).close();
    world.run(50);
    assert_eq!(server.reasons(), [CloseReason::Peer]);
    assert_eq!(server.arena.in_use(), 0);
    assert_eq!(world.card.lost(), 0);
    assert!(world.stack.phases().all(|phase| phase == Phase::Listening));
    world
}

#[test]
fn what_is_sent_comes_back() {
    transfer(false, 64, Behaviour::Echo, 1_000_000);
    transfer(false, 64, Behaviour::EchoBuffers, 1_000_000);
}

#[test]
fn a_card_with_little_room_only_slows_down() {
    transfer(false, 1, Behaviour::Echo, 300_000);
    transfer(true, 2, Behaviour::EchoBuffers, 300_000);
}

#[test]
fn segmentation_by_the_card_saves_frames() {
    let plain = transfer(false, 64, Behaviour::EchoBuffers, 1_000_000);
    let cut = transfer(true, 64, Behaviour::EchoBuffers, 1_000_000);
    assert!(cut.card.frames_out() * 2 < plain.card.frames_out());
}

#[test]
fn the_seventeenth_waits_for_a_slot() {
    let server = Server::new(Behaviour::Echo);
    let mut world = World::new(Setup::default(), server);
    let handles: Vec<_> = (0..NET_SLOTS).map(|_| world.connect()).collect();
    world.run(20);
    assert_eq!(server.open(), NET_SLOTS);
    let late = world.connect();
    world.run(20);
    // Dropped, not reset.
    assert_eq!(world.socket(late).state(), State::SynSent);
    assert_eq!(server.open(), NET_SLOTS);
    world.socket(handles[3]).close();
    world.pass(3);
    assert_eq!(world.socket(late).state(), State::Established);
    echo(&mut world, late, &pattern(5000, 1));
    assert_eq!(server.open(), NET_SLOTS);
    for handle in handles.into_iter().chain([late]) {
        world.socket(handle).abort();
    }
    world.run(20);
    assert_eq!(server.open(), 0);
    assert_eq!(
        server
            .reasons()
            .iter()
            .filter(|reason| **reason == CloseReason::Reset)
            .count(),
        NET_SLOTS
    );
}

#[test]
fn slots_are_used_again_whoever_ends() {
    for behaviour in [
        Behaviour::Echo,
        Behaviour::CloseAtOnce,
        Behaviour::AbortAtOnce,
    ] {
        let server = Server::new(behaviour);
        let mut world = World::new(
            Setup {
                slots: 2,
                ..Setup::default()
            },
            server,
        );
        let handle = world.connect();
        for round in 1..=100 {
            world.run(10);
            assert_eq!(server.opened(), round, "{}", world.socket(handle).state());
            world.socket(handle).send_slice(b"x").unwrap();
            world.run(10);
            match round % 2 {
                0 => world.socket(handle).close(),
                _ => world.socket(handle).abort(),
            }
            world.run(10);
            assert_eq!(server.open(), 0);
            world.socket(handle).abort();
            world.run(5);
            world.reconnect(handle);
        }
        let mut shown = 0;
        world.status.connections(&mut |_| shown += 1);
        assert!(shown <= 1);
    }
}

#[test]
fn a_slot_waits_until_its_server_is_ready() {
    let server = Server::new(Behaviour::Echo);
    let mut world = World::new(
        Setup {
            slots: 1,
            ..Setup::default()
        },
        server,
    );
    let handle = world.connect();
    world.run(10);
    *server.ready.lock().unwrap() = false;
    world.socket(handle).abort();
    world.run(10);
    assert_eq!(world.stack.phase(0), Phase::Waiting);
    world.reconnect(handle);
    world.pass(2);
    assert_eq!(server.opened(), 1);
    *server.ready.lock().unwrap() = true;
    world.run(5);
    assert_eq!(world.stack.phase(0), Phase::Waiting);
    world
        .status
        .wakes
        .store(1, core::sync::atomic::Ordering::SeqCst);
    world.pass(4);
    assert_eq!(server.opened(), 2);
}

#[test]
fn a_peer_that_vanished_is_given_up_after_90_s() {
    for behaviour in [Behaviour::Echo, Behaviour::Flood] {
        let server = Server::new(behaviour);
        let mut world = World::new(Setup::default(), server);
        world.connect();
        world.run(20);
        assert_eq!(server.open(), 1);
        world.pass_without_client(85);
        assert_eq!(server.open(), 1);
        world.pass_without_client(7);
        assert_eq!(server.open(), 0, "after {} s", world.now / SECOND);
        assert_eq!(server.reasons(), [CloseReason::Timeout]);
        assert_eq!(server.arena.in_use(), 0);
        // The reset cannot be sent if the client's address is forgotten; the slot is free all the same.
        world.pass_without_client(5);
        assert!(world.stack.phases().all(|phase| phase == Phase::Listening));
    }
}

#[test]
fn an_idle_peer_that_answers_stays() {
    let server = Server::new(Behaviour::Ignore);
    let mut world = World::new(Setup::default(), server);
    let handle = world.connect();
    world.run(10);
    world.pass(400);
    assert_eq!(server.open(), 1);
    assert_eq!(world.socket(handle).state(), State::Established);
}

#[test]
fn a_closed_window_holds_one_connection_only() {
    let server = Server::new(Behaviour::Flood);
    let mut world = World::new(Setup::default(), server);
    let stalled = world.connect();
    world.pass(200);
    // It acknowledges our probes, so it stays, with its own buffers and nothing else.
    assert_eq!(server.open(), 1);
    assert!(server.arena.in_use() > 0);
    *server.behaviour.lock().unwrap() = Behaviour::Echo;
    let other = world.connect();
    world.run(10);
    echo(&mut world, other, &pattern(300_000, 3));
    world.socket(stalled).abort();
    world.run(10);
    assert_eq!(server.arena.in_use(), 0);
}

#[test]
fn everything_queued_is_sent_before_the_end() {
    let server = Server::new(Behaviour::SendAndClose);
    let mut world = World::new(Setup::default(), server);
    let handle = world.connect();
    let mut received = 0;
    for _ in 0..2000 {
        let socket = world.socket(handle);
        if socket.can_recv() {
            received += socket
                .recv(|bytes| (bytes.len().min(7000), bytes.len().min(7000)))
                .unwrap();
        }
        world.run(1);
    }
    assert_eq!(
        received,
        (512 * 1024usize).div_ceil(server::FLOOD + 4) * (server::FLOOD + 4)
    );
    assert_eq!(world.socket(handle).state(), State::CloseWait);
    world.socket(handle).close();
    world.run(10);
    assert_eq!(server.arena.in_use(), 0);
    assert!(world.stack.phases().all(|phase| phase == Phase::Listening));
}

#[test]
fn a_peer_that_never_ends_its_side_is_reset() {
    let server = Server::new(Behaviour::CloseAtOnce);
    let mut world = World::new(Setup::default(), server);
    let handle = world.connect();
    world.run(10);
    world.socket(handle).send_slice(b"x").unwrap();
    world.pass(25);
    assert_eq!(world.stack.phase(0), Phase::Closing);
    world.pass(10);
    assert_eq!(world.stack.phase(0), Phase::Listening);
    assert_eq!(world.socket(handle).state(), State::Closed);
}

#[test]
fn strangers_are_refused() {
    let server = Server::new(Behaviour::Echo);
    let allow = "10.0.0.3,10.1.0.0/16".parse().unwrap();
    let mut world = World::new(
        Setup {
            allow,
            ..Setup::default()
        },
        server,
    );
    let handle = world.connect();
    world.run(10);
    assert_eq!(world.socket(handle).state(), State::Closed);
    assert_eq!(server.opened(), 0);
    assert_eq!(world.status.stats(world.card.stats()).refused, 1);
    let server = Server::new(Behaviour::Echo);
    let allow = "10.0.0.0/30".parse().unwrap();
    let mut world = World::new(
        Setup {
            allow,
            ..Setup::default()
        },
        server,
    );
    let handle = world.connect();
    world.run(10);
    assert_eq!(world.socket(handle).state(), State::Established);
}

#[test]
fn half_open_connections_hold_a_slot_for_ten_seconds() {
    let server = Server::new(Behaviour::Echo);
    let mut world = World::new(Setup::default(), server);
    for port in 0..40u16 {
        world.card.push(syn(50_000 + port));
    }
    world.run(1);
    assert!(world.stack.phases().all(|phase| phase == Phase::Opening));
    let late = world.connect();
    // The client host answers the SYN-ACKs that it knows nothing of with resets, so it is switched off.
    world.pass_without_client(9);
    assert!(world.stack.phases().all(|phase| phase == Phase::Opening));
    world.pass_without_client(3);
    assert!(world.stack.phases().all(|phase| phase == Phase::Listening));
    world.pass(10);
    assert_eq!(world.socket(late).state(), State::Established);
    assert_eq!(server.opened(), 1);
}

/// A segment of the client's host, as a hostile program there could write it.
fn segment(
    port: u16,
    sequence: u32,
    acknowledge: Option<u32>,
    flags: u8,
    options: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    let header = 20 + options.len();
    let mut frame = vec![0; 34];
    frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 2]);
    frame[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
    frame[16..18].copy_from_slice(&((20 + header + payload.len()) as u16).to_be_bytes());
    frame[22..24].copy_from_slice(&[64, 6]);
    frame[26..30].copy_from_slice(&THEIRS.octets());
    frame[30..34].copy_from_slice(&world::OURS.octets());
    let sum = super::checksum::finish(super::checksum::sum(&frame[14..34]));
    frame[24..26].copy_from_slice(&sum.to_ne_bytes());
    frame.extend_from_slice(&port.to_be_bytes());
    frame.extend_from_slice(&PORT.to_be_bytes());
    frame.extend_from_slice(&sequence.to_be_bytes());
    frame.extend_from_slice(&acknowledge.unwrap_or(0).to_be_bytes());
    frame.extend_from_slice(&[(header as u8 / 4) << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    frame.extend_from_slice(options);
    frame.extend_from_slice(payload);
    super::frame::finish_transmit(&mut frame, false, None);
    frame
}

fn syn(port: u16) -> Vec<u8> {
    segment(port, 1000, None, super::frame::SYN, &[3, 3, 7, 0], &[])
}

#[test]
fn bytes_beyond_the_first_window_are_dropped() {
    let server = Server::new(Behaviour::Ignore);
    let mut world = World::new(Setup::default(), server);
    // Makes the two hosts known to each other.
    let first = world.connect();
    world.run(10);
    world.socket(first).abort();
    world.run(10);
    world.card.push(syn(50_000));
    world.step_server();
    let reply = world.card.pull().expect("a SYN-ACK");
    let theirs = u32::from_be_bytes(reply[38..42].try_into().unwrap());
    let ack = Some(theirs.wrapping_add(1));
    // Our window is 128 KiB, announced as 64 KiB; smoltcp would take 256 KiB until it sends something.
    for offset in [131_072u32 - 700, 140_000, 200_000, 250_000] {
        world.card.push(segment(
            50_000,
            1001 + offset,
            ack,
            super::frame::ACK,
            &[],
            &[1; 1000],
        ));
    }
    for offset in (0..131_000u32).step_by(1000) {
        world.card.push(segment(
            50_000,
            1001 + offset,
            ack,
            super::frame::ACK,
            &[],
            &[1; 1000],
        ));
    }
    for _ in 0..20 {
        world.step_server();
        while world.card.pull().is_some() {}
    }
    assert_eq!(server.open(), 1);
}

#[test]
fn garbage_does_no_harm() {
    let server = Server::new(Behaviour::Echo);
    let mut world = World::new(Setup::default(), server);
    let handle = world.connect();
    world.run(10);
    let mut state = 9u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let seeds = [
        syn(1),
        segment(
            40_001,
            5,
            Some(77),
            0x18,
            &[1, 1, 5, 10, 1, 2, 3, 4, 5, 6, 7, 8],
            &[5; 100],
        ),
    ];
    for round in 0..30_000 {
        let mut frame = seeds[round % 2].clone();
        for _ in 0..random() % 6 {
            let at = random() as usize % frame.len();
            frame[at] = random() as u8;
        }
        if random() % 8 == 0 {
            frame.truncate(random() as usize % (frame.len() + 1));
        }
        if frame.len() > 54 && random() % 2 == 0 {
            // So that what comes behind the checksum is reached too.
            super::frame::finish_transmit(&mut frame, false, None);
        }
        world.card.push(frame);
        world.step_server();
        while world.card.pull().is_some() {}
        world.now += 50_000;
    }
    world.pass_without_client(15);
    echo(&mut world, handle, &pattern(10_000, 9));
    assert_eq!(world.card.lost(), 0);
}

#[test]
fn a_failed_card_comes_back_and_connections_go_on() {
    let server = Server::new(Behaviour::Echo);
    let mut world = World::new(Setup::default(), server);
    let handle = world.connect();
    echo(&mut world, handle, &pattern(1000, 1));
    *world.card.state.lock().unwrap() = CardState::Failed("told a lie");
    world.run(5);
    assert!(matches!(
        world.status.interface().1,
        Some(CardState::Failed(_))
    ));
    world.pass(3);
    assert_eq!(world.status.interface().1, Some(CardState::Up));
    echo(&mut world, handle, &pattern(1000, 2));
    assert_eq!(server.opened(), 1);
}

#[test]
fn stop_ends_everything_within_its_time() {
    let server = Server::new(Behaviour::EchoBuffers);
    let mut world = World::new(Setup::default(), server);
    let polite = world.connect();
    let _rude = world.connect();
    world.run(10);
    world.stack.stop(world.now);
    assert_eq!(server.reasons(), [CloseReason::Stopped; 2]);
    world.run(5);
    world.socket(polite).close();
    world.pass(4);
    assert!(world.stack.is_stopped());
    let late = world.connect();
    world.run(10);
    assert_eq!(world.socket(late).state(), State::SynSent);
}

#[test]
fn a_full_card_in_mid_burst_does_not_hang() {
    let server = Server::new(Behaviour::Echo);
    let mut world = World::new(
        Setup {
            ring: 1,
            ..Setup::default()
        },
        server,
    );
    let handle = world.connect();
    world.run(10);
    // More resets to answer than the card takes before it is notified.
    for port in 0..20 {
        world.card.push(segment(
            60_000 + port,
            1,
            Some(1),
            super::frame::ACK,
            &[],
            &[],
        ));
    }
    assert_eq!(
        world.stack.ingress(world.now, 64),
        super::stack::Ingress::Blocked
    );
    assert_eq!(
        world.stack.ingress(world.now, 64),
        super::stack::Ingress::Blocked
    );
    for _ in 0..60 {
        world.step_server();
        world.card.pull();
    }
    assert_eq!(
        world.stack.ingress(world.now, 64),
        super::stack::Ingress::Done
    );
    echo(&mut world, handle, &pattern(1000, 1));
}

#[test]
fn a_ping_is_answered() {
    let mut world = World::new(Setup::default(), Server::new(Behaviour::Echo));
    let first = world.connect();
    world.run(10);
    world.socket(first).abort();
    world.run(10);
    let mut ping = segment(0, 0, None, 0, &[], &[7; 40]);
    ping[23] = 1;
    ping[24..26].fill(0);
    let sum = super::checksum::finish(super::checksum::sum(&ping[14..34]));
    ping[24..26].copy_from_slice(&sum.to_ne_bytes());
    ping[34..42].copy_from_slice(&[8, 0, 0, 0, 0, 1, 0, 1]);
    let sum = super::checksum::finish(super::checksum::sum(&ping[34..]));
    ping[36..38].copy_from_slice(&sum.to_ne_bytes());
    world.card.push(ping.clone());
    world.step_server();
    let reply = world.card.pull().expect("an answer");
    assert_eq!((reply[23], reply[34]), (1, 0));
    assert_eq!(reply[42..], ping[42..]);
}

//! A stack on a fake card, wired to a smoltcp client, under a clock that the test turns.
use std::boxed::Box;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};
use std::vec;
use std::vec::Vec;

use core::net::{Ipv4Addr, SocketAddrV4};

use smoltcp::iface::{Interface, SocketHandle, SocketSet, SocketStorage};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr, Ipv4Cidr};

use crate::aio::EventNotifier;
use crate::config::NET_SLOTS;
use crate::net::checksum;
use crate::net::config::{AllowList, Cidr, IpConfig, NetConfig};
use crate::net::device::{
    CardInfo, CardState, CardStats, Frame, NetDevice, ReceiveChecksum, TransmitOffload,
};
use crate::net::slot::{Slot, SlotMemory};
use crate::net::stack::Stack;
use crate::net::status::Status;
use crate::net::stream::StreamHandler;

pub const OURS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
pub const THEIRS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
pub const PORT: u16 = 10809;
pub const SECOND: u64 = 1_000_000_000;
const ROOM: usize = 66_000;

pub fn leak<T>(value: T) -> &'static mut T {
    Box::leak(Box::new(value))
}

#[derive(Default)]
struct Wires {
    incoming: VecDeque<Vec<u8>>,
    outgoing: VecDeque<Vec<u8>>,
    spare: Vec<&'static mut [u8]>,
    reserved: bool,
    frames_out: usize,
}

/// A card in memory.
pub struct FakeCard {
    wires: Mutex<Wires>,
    /// Completes checksums and cuts segments itself.
    pub offload: bool,
    /// Frames that it takes before somebody carries them off.
    pub ring: usize,
    pub state: Mutex<CardState>,
    notifier: EventNotifier,
}

impl FakeCard {
    pub fn new(offload: bool, ring: usize) -> &'static Self {
        leak(Self {
            wires: Mutex::new(Wires::default()),
            offload,
            ring,
            state: Mutex::new(CardState::Up),
            notifier: EventNotifier::new(),
        })
    }

    fn wires(&self) -> MutexGuard<'_, Wires> {
        self.wires.lock().unwrap()
    }

    pub fn push(&self, frame: Vec<u8>) {
        self.wires().incoming.push_back(frame);
    }

    pub fn pull(&self) -> Option<Vec<u8>> {
        self.wires().outgoing.pop_front()
    }

    /// Frames handed over for sending so far, uncut.
    pub fn frames_out(&self) -> usize {
        self.wires().frames_out
    }

    /// Buffers that were given out and did not come back.
    pub fn lost(&self) -> usize {
        let wires = self.wires();
        usize::from(wires.reserved)
    }
}

fn complete(frame: &mut [u8], start: usize, offset: usize) {
    let value = checksum::finish(checksum::sum(&frame[start..]));
    frame[start + offset..start + offset + 2].copy_from_slice(&value.to_ne_bytes());
}

/// What a card with TSO does with a frame.
fn cut(frame: &[u8], size: usize, header: usize) -> Vec<Vec<u8>> {
    let payload = &frame[header..];
    let parts = payload.chunks(size).count();
    let mut out = Vec::new();
    for (index, part) in payload.chunks(size).enumerate() {
        let mut one = frame[..header].to_vec();
        one.extend_from_slice(part);
        let total = (one.len() - 14) as u16;
        one[16..18].copy_from_slice(&total.to_be_bytes());
        one[24..26].fill(0);
        let sum = checksum::finish(checksum::sum(&one[14..34]));
        one[24..26].copy_from_slice(&sum.to_ne_bytes());
        let sequence =
            u32::from_be_bytes(one[38..42].try_into().unwrap()).wrapping_add((index * size) as u32);
        one[38..42].copy_from_slice(&sequence.to_be_bytes());
        if index + 1 != parts {
            one[47] &= !0x09;
        }
        let pseudo = checksum::pseudo_header(one[26..34].try_into().unwrap(), 6, total - 20);
        one[50..52].copy_from_slice(&pseudo.to_ne_bytes());
        complete(&mut one, 34, 16);
        out.push(one);
    }
    out
}

impl NetDevice for FakeCard {
    fn info(&self) -> CardInfo {
        CardInfo {
            name: "fake0",
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            transmit_checksum: self.offload,
            segmentation: self.offload.then_some(60_000),
            receive_ring: 256,
        }
    }
    fn attach(&'static self) {}
    fn notifier(&'static self) -> &'static EventNotifier {
        &self.notifier
    }
    fn pending(&self) -> bool {
        !self.wires().incoming.is_empty()
    }
    fn receive(&self) -> Option<(Frame, ReceiveChecksum)> {
        let frame = self.wires().incoming.pop_front()?;
        Some((Frame::new(frame.leak(), 7), ReceiveChecksum::Unknown))
    }
    fn recycle(&self, frame: Frame) {
        assert_eq!(frame.id(), 7);
        // SAFETY is not needed: the leaked vector is simply kept for later use.
        self.wires().spare.push(frame.into_bytes());
    }
    fn reserve(&self) -> Option<Frame> {
        let mut wires = self.wires();
        assert!(!wires.reserved, "one at a time");
        if wires.outgoing.len() >= self.ring {
            return None;
        }
        wires.reserved = true;
        let found = wires.spare.iter().position(|bytes| bytes.len() == ROOM);
        let bytes = match found {
            Some(index) => wires.spare.swap_remove(index),
            None => vec![0; ROOM].leak(),
        };
        Some(Frame::new(bytes, 9))
    }
    fn transmit(&self, frame: Frame, len: usize, offload: TransmitOffload) {
        assert_eq!(frame.id(), 9);
        let mut wires = self.wires();
        wires.reserved = false;
        wires.frames_out += 1;
        let mut bytes = frame.bytes()[..len].to_vec();
        wires.spare.push(frame.into_bytes());
        match (offload.segment, offload.checksum) {
            (Some((size, header)), Some(_)) => {
                assert!(self.offload);
                wires
                    .outgoing
                    .extend(cut(&bytes, size.into(), header.into()));
            }
            (Some(_), None) => panic!("segments without checksums"),
            (None, Some((start, offset))) => {
                assert!(self.offload);
                complete(&mut bytes, start.into(), offset.into());
                wires.outgoing.push_back(bytes);
            }
            (None, None) => wires.outgoing.push_back(bytes),
        }
    }
    fn cancel(&self, frame: Frame) {
        let mut wires = self.wires();
        wires.reserved = false;
        wires.spare.push(frame.into_bytes());
    }
    fn flush(&self) {}
    fn rearm(&self) -> bool {
        self.pending()
    }
    fn set_polling(&self, _: bool) {}
    fn changed(&self) -> bool {
        true
    }
    fn state(&self) -> CardState {
        *self.state.lock().unwrap()
    }
    fn restart(&self) -> CardState {
        *self.state.lock().unwrap() = CardState::Up;
        CardState::Up
    }
    fn stats(&self) -> CardStats {
        CardStats::default()
    }
}

/// The other end of the wire.
pub struct ClientDevice(pub &'static FakeCard);

pub struct Received(Vec<u8>);
pub struct Sending(&'static FakeCard);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Sending {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.push(frame);
        result
    }
}

impl Device for ClientDevice {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending;
    fn receive(&mut self, _: Instant) -> Option<(Received, Sending)> {
        Some((Received(self.0.pull()?), Sending(self.0)))
    }
    fn transmit(&mut self, _: Instant) -> Option<Sending> {
        Some(Sending(self.0))
    }
    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

pub struct Client {
    pub interface: Interface,
    pub sockets: SocketSet<'static>,
    pub device: ClientDevice,
    next_port: u16,
}

/// Everything, and the time.
pub struct World {
    pub stack: &'static mut Stack,
    pub status: &'static Status,
    pub card: &'static FakeCard,
    pub client: Client,
    pub now: u64,
}

pub struct Setup {
    pub offload: bool,
    pub ring: usize,
    pub allow: AllowList,
    pub slots: usize,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            offload: false,
            ring: 64,
            allow: AllowList::everyone(),
            slots: NET_SLOTS,
        }
    }
}

pub fn memory(count: usize) -> impl Iterator<Item = SlotMemory> {
    (0..count).map(|_| SlotMemory {
        receive: vec![0; 128 * 1024].leak(),
        transmit: vec![0; 256 * 1024].leak(),
        storage: leak([SocketStorage::EMPTY]),
    })
}

impl World {
    pub fn new(setup: Setup, handler: &'static dyn StreamHandler) -> Self {
        let card = FakeCard::new(setup.offload, setup.ring);
        let status: &'static Status = leak(Status::new());
        let stack = leak(Stack::new(status));
        let config = NetConfig {
            ip: IpConfig::Static {
                address: Cidr {
                    address: OURS,
                    prefix: 24,
                },
                gateway: None,
            },
            listen: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT),
            allow: setup.allow,
            seed: 1,
        };
        stack.start(
            card,
            &config,
            leak([const { Slot::EMPTY }; NET_SLOTS]),
            leak([SocketStorage::EMPTY]),
            0,
        );
        assert_eq!(
            stack.listen(config.listen, handler, memory(setup.slots)),
            Some(0)
        );
        let mut device = ClientDevice(card);
        let mac = HardwareAddress::Ethernet(EthernetAddress([2, 0, 0, 0, 0, 2]));
        let mut interface =
            Interface::new(smoltcp::iface::Config::new(mac), &mut device, Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            addresses
                .push(IpCidr::Ipv4(Ipv4Cidr::new(THEIRS, 24)))
                .unwrap();
        });
        let storage: &'static mut [SocketStorage<'static>] = Box::leak(
            (0..64)
                .map(|_| SocketStorage::EMPTY)
                .collect::<Vec<_>>()
                .into_boxed_slice(),
        );
        let client = Client {
            interface,
            sockets: SocketSet::new(storage),
            device,
            next_port: 40_000,
        };
        let mut world = Self {
            stack,
            status,
            card,
            client,
            now: 0,
        };
        world.run(5);
        world
    }

    /// A new client connection, not yet established.
    pub fn connect(&mut self) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 60_000].leak());
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        let handle = self.client.sockets.add(socket);
        self.reconnect(handle);
        handle
    }

    pub fn reconnect(&mut self, handle: SocketHandle) {
        self.client.next_port += 1;
        let (interface, sockets) = (&mut self.client.interface, &mut self.client.sockets);
        let socket = sockets.get_mut::<tcp::Socket>(handle);
        socket
            .connect(interface.context(), (OURS, PORT), self.client.next_port)
            .unwrap();
    }

    pub fn socket(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.client.sockets.get_mut(handle)
    }

    pub fn step_server(&mut self) {
        self.stack.ingress(self.now, 64);
        self.stack.check_card(self.now);
        self.stack.service(self.now);
        self.stack.egress(self.now);
    }

    pub fn step_client(&mut self) {
        let now = Instant::from_micros((self.now / 1000) as i64);
        self.client
            .interface
            .poll(now, &mut self.client.device, &mut self.client.sockets);
    }

    /// `turns` turns of both sides, 100 µs apart.
    pub fn run(&mut self, turns: usize) {
        for _ in 0..turns {
            self.step_client();
            self.step_server();
            self.now += 100_000;
        }
    }

    /// Both sides at their deadlines, or every 100 ms, for `seconds`.
    pub fn pass(&mut self, seconds: u64) {
        let end = self.now + seconds * SECOND;
        while self.now < end {
            self.run(1);
            self.now += SECOND / 10;
        }
    }

    /// As `pass`, with the client's host switched off and nothing reaching it.
    pub fn pass_without_client(&mut self, seconds: u64) {
        let end = self.now + seconds * SECOND;
        while self.now < end {
            self.step_server();
            while self.card.pull().is_some() {}
            let next = self.stack.deadline().min(end).max(self.now + 1_000_000);
            self.now = next;
        }
    }
}

//! What the rest of the firmware may see of the network, from any core: connections, address, counters; and the wakes.
#![forbid(unsafe_code)]

use core::net::Ipv4Addr;
use core::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{Relaxed, Release},
};

use super::config::Cidr;
use super::device::{CardState, CardStats};
use super::stream::PeerAddress;
use crate::config::{NET_PORTS, NET_SLOTS};
use crate::sync::IrqLock;

/// One connection, for `info connections`.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionInfo {
    /// The port's index: 0 is NBD.
    pub port: usize,
    /// The slot within the port, as its handler knows it.
    pub slot: usize,
    /// The other end.
    pub peer: PeerAddress,
    /// When it was opened, in ns since boot.
    pub since_ns: u64,
    /// When the peer was last heard of.
    pub heard_ns: u64,
}

/// The interface.
#[derive(Clone, Copy, Debug, Default)]
pub struct AddressInfo {
    /// Our address, once we have one.
    pub address: Option<Cidr>,
    /// The router.
    pub gateway: Option<Ipv4Addr>,
    /// It came, or shall come, by DHCP.
    pub dhcp: bool,
}

/// Counters of the stack, since boot.
#[derive(Clone, Copy, Debug, Default)]
pub struct NetStats {
    /// What the card did.
    pub card: CardStats,
    /// Connections handed to a server.
    pub opened: u64,
    /// Connection attempts dropped for want of a free slot.
    pub no_slot: u64,
    /// Connection attempts refused by the allow list.
    pub refused: u64,
    /// Frames dropped: damaged, or not for us.
    pub dropped: u64,
}

/// The shared record. The stack writes, everyone reads.
pub struct Status {
    connections: IrqLock<[Option<ConnectionInfo>; NET_SLOTS]>,
    heard: [AtomicU64; NET_SLOTS],
    /// Slots whose servers asked to be stepped.
    pub(super) wakes: AtomicU32,
    /// First slot of each port.
    firsts: [AtomicU32; NET_PORTS],
    interface: IrqLock<(AddressInfo, Option<CardState>)>,
    pub(super) opened: AtomicU64,
    pub(super) no_slot: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) dropped: AtomicU64,
}

const _: () = assert!(NET_SLOTS <= 32, "slots are bits of a u32");

impl Status {
    /// Nothing yet.
    pub const fn new() -> Self {
        Self {
            connections: IrqLock::new([None; NET_SLOTS]),
            heard: [const { AtomicU64::new(0) }; NET_SLOTS],
            wakes: AtomicU32::new(0),
            firsts: [const { AtomicU32::new(0) }; NET_PORTS],
            interface: IrqLock::new((
                AddressInfo {
                    address: None,
                    gateway: None,
                    dhcp: false,
                },
                None,
            )),
            opened: AtomicU64::new(0),
            no_slot: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        }
    }

    /// Calls `f` with each open connection; the table is copied first, so `f` may take its time.
    pub fn connections(&self, f: &mut dyn FnMut(&ConnectionInfo)) {
        let table = *self.connections.lock();
        for (entry, heard) in table.into_iter().zip(&self.heard) {
            if let Some(mut info) = entry {
                info.heard_ns = heard.load(Relaxed);
                f(&info);
            }
        }
    }

    /// Address and state of the interface; no state: there is no card.
    pub fn interface(&self) -> (AddressInfo, Option<CardState>) {
        *self.interface.lock()
    }

    /// Counters; `card` are the card's own.
    pub fn stats(&self, card: CardStats) -> NetStats {
        NetStats {
            card,
            opened: self.opened.load(Relaxed),
            no_slot: self.no_slot.load(Relaxed),
            refused: self.refused.load(Relaxed),
            dropped: self.dropped.load(Relaxed),
        }
    }

    pub(super) fn set_connection(&self, slot: usize, info: Option<ConnectionInfo>) {
        self.connections.lock()[slot] = info;
    }

    pub(super) fn heard(&self, slot: usize, now_ns: u64) {
        self.heard[slot].store(now_ns, Relaxed);
    }

    pub(super) fn set_port(&self, port: usize, first: usize) {
        self.firsts[port].store(first as u32, Relaxed);
    }

    /// Notes that the server of `port` wants to be stepped on `slot`. False: there is no such slot.
    pub(super) fn wake(&self, port: usize, slot: usize) -> bool {
        let Some(first) = self.firsts.get(port) else {
            return false;
        };
        let index = first.load(Relaxed) as usize + slot;
        if index >= NET_SLOTS {
            return false;
        }
        self.wakes.fetch_or(1 << index, Release);
        true
    }

    pub(super) fn set_address(&self, address: AddressInfo) {
        self.interface.lock().0 = address;
    }

    pub(super) fn set_card(&self, state: CardState) {
        self.interface.lock().1 = Some(state);
    }
}

impl Default for Status {
    fn default() -> Self {
        Self::new()
    }
}

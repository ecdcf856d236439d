//! From a transport to a card, and back to one after a fault.
use core::sync::atomic::{AtomicBool, AtomicU64};

use spin::Once;

use super::receive::{COPY_BYTES, Receiver};
use super::transmit::Transmitter;
use super::{Inner, RECEIVE, TRANSMIT, VirtioNet};
use crate::aio::EventNotifier;
use crate::config::{NET_MAX_FRAME, NET_RING, NET_RX_BUFFER, NET_TX_RING_BYTES};
use crate::net::device::{CardInfo, CardStats, ETHERNET_HEADER};
use crate::sync::{HomeCell, IrqLock};
use crate::virtio::dma::{DMA, DmaArena, DmaMemory, PAGE};
use crate::virtio::layout::UsedWatch;
use crate::virtio::queue::{QueueConfig, VirtQueue};
use crate::virtio::transport::{self, SetupError, Transport};

/// Feature bits of a network card.
pub(super) mod feature {
    pub const CSUM: u64 = 1 << 0;
    pub const GUEST_CSUM: u64 = 1 << 1;
    pub const MAC: u64 = 1 << 5;
    pub const GUEST_TSO4: u64 = 1 << 7;
    pub const HOST_TSO4: u64 = 1 << 11;
    pub const MRG_RXBUF: u64 = 1 << 15;
    pub const STATUS: u64 = 1 << 16;
    pub const ANY_LAYOUT: u64 = 1 << 27;
    pub use crate::virtio::transport::feature::{EVENT_INDEX, VERSION_1};
}

/// Largest IP packet that goes over the wire.
const MTU: usize = 1500;

pub(super) const MEMORY_BYTES: usize =
    NET_RING * NET_RX_BUFFER + NET_TX_RING_BYTES + COPY_BYTES + PAGE;
const _: () = assert!(COPY_BYTES >= 65_535 + ETHERNET_HEADER + super::header::LONG);
const _: () = assert!(NET_MAX_FRAME > MTU + ETHERNET_HEADER && NET_MAX_FRAME <= 65_535);
const _: () = assert!(
    NET_TX_RING_BYTES >= 2 * (NET_MAX_FRAME + 1024),
    "a frame can be written while one is sent"
);
const _: () = assert!(NET_RX_BUFFER >= MTU + ETHERNET_HEADER + super::header::LONG + 4);

static MEMORY: DmaMemory<MEMORY_BYTES> = DmaMemory::new();
static ARENA: DmaArena = DmaArena::new(&MEMORY);

/// The card that is used; others are listed only.
pub type Card = VirtioNet;
static CARD: Once<VirtioNet> = Once::new();

/// Sets the card behind `transport` up, up to DRIVER_OK, which [`NetDevice::attach`](crate::net::device::NetDevice::attach)
/// says on the card's core. One card is served: a second call fails with `NoMemory`. From the main loop, at boot.
///
/// # Errors
/// What is wrong with the device; it is left reset or FAILED.
pub fn add(
    transport: &'static dyn Transport,
    name: &'static str,
) -> Result<&'static VirtioNet, SetupError> {
    if CARD.get().is_some() {
        return Err(SetupError::NoMemory);
    }
    let card = set_up(transport, name, &ARENA, &DMA)?;
    Ok(CARD.call_once(|| card))
}

fn wanted(transport: &dyn Transport) -> u64 {
    let offered = transport.device_features();
    let has = |bits| offered & bits == bits;
    let mut wanted = feature::MAC | feature::STATUS | feature::ANY_LAYOUT | feature::EVENT_INDEX;
    wanted |= feature::CSUM | feature::GUEST_CSUM;
    if has(feature::CSUM) {
        wanted |= feature::HOST_TSO4;
    }
    // Long frames come in merged buffers or not at all.
    if has(feature::GUEST_CSUM | feature::MRG_RXBUF) {
        wanted |= feature::GUEST_TSO4 | feature::MRG_RXBUF;
    }
    wanted
}

/// The address that the device's configuration holds.
fn configured_mac(transport: &dyn Transport) -> [u8; 6] {
    let mut mac = [0; 6];
    for (at, byte) in mac.iter_mut().enumerate() {
        *byte = transport.config_u8(at);
    }
    mac
}

fn usable_mac(transport: &dyn Transport, features: u64) -> [u8; 6] {
    let mac = configured_mac(transport);
    if features & feature::MAC == 0 || mac[0] & 1 != 0 || mac == [0; 6] {
        // A device without an address of its own, or with one that is none: a local one.
        return [0x02, 0x69, 0x74, 0, 0, 1];
    }
    mac
}

pub(super) fn set_up(
    transport: &'static dyn Transport,
    name: &'static str,
    arena: &DmaArena,
    rings: &DmaArena,
) -> Result<VirtioNet, SetupError> {
    transport::reset_at_boot(transport)?;
    let features = transport::negotiate(transport, wanted(transport))?;
    let has = |bit| features & bit != 0;
    let long = has(feature::VERSION_1) || has(feature::MRG_RXBUF);
    let split = !has(feature::VERSION_1) && !has(feature::ANY_LAYOUT);
    let config = QueueConfig {
        depth: NET_RING as u16,
        chain: if split { 2 } else { 1 },
        features,
        spare: true,
    };
    let receive = VirtQueue::new(transport, RECEIVE, &config, rings)?;
    let transmit = VirtQueue::new(transport, TRANSMIT, &config, rings)?;
    let carve = |bytes| arena.carve(bytes, 64).ok_or(SetupError::NoMemory);
    let receiver = Receiver::new(
        receive,
        carve(NET_RING * NET_RX_BUFFER)?,
        carve(COPY_BYTES)?,
        has(feature::MRG_RXBUF),
        long,
        split,
    );
    let segmentation = has(feature::HOST_TSO4).then_some(NET_MAX_FRAME);
    let longest = segmentation.unwrap_or(MTU + ETHERNET_HEADER);
    let transmitter = Transmitter::new(transmit, carve(NET_TX_RING_BYTES)?, longest, long, split);
    let info = CardInfo {
        name,
        mac: usable_mac(transport, features),
        mtu: MTU,
        transmit_checksum: has(feature::CSUM),
        segmentation,
        receive_ring: receiver.buffers(),
    };
    let (receive_watch, transmit_watch) = (UsedWatch::new(), UsedWatch::new());
    receiver.queue.watch(&receive_watch);
    transmitter.queue.watch(&transmit_watch);
    let inner = Inner {
        receiver,
        transmitter,
        failed: None,
        bad: 0,
        resets: 0,
    };
    Ok(VirtioNet {
        transport,
        features,
        info,
        notifier: EventNotifier::new(),
        receive_watch,
        transmit_watch,
        polling: AtomicBool::new(false),
        changed: AtomicBool::new(false),
        interrupts: AtomicU64::new(0),
        stats: IrqLock::new(CardStats::default()),
        inner: HomeCell::new(inner),
    })
}

/// After a fault, when status 0 was written: negotiates the same features again. The caller makes the queues new and says
/// DRIVER_OK.
pub(super) fn restart(transport: &dyn Transport, features: u64) -> Result<(), &'static str> {
    if transport.status() != 0 {
        return Err("the card does not confirm its reset");
    }
    match transport::negotiate(transport, features) {
        Ok(agreed) if agreed == features => Ok(()),
        Ok(_) => Err("the card came back with other features"),
        Err(_) => Err("the card does not come back"),
    }
}

/// Whether the link is up; a card that cannot say is.
pub(super) fn link_is_up(transport: &dyn Transport, features: u64) -> bool {
    const LINK_UP: u16 = 1;
    const STATUS_FIELD: usize = 6;
    features & feature::STATUS == 0 || transport.config_u16(STATUS_FIELD) & LINK_UP != 0
}

//! The network card, the stack on it, and the NBD server's port.
//!
//! One card is used: the first from the top, or the one that `ironthread.nic` names; others are listed. Card, stack and
//! sessions live on core 1 where there is one, else on core 0.
#![forbid(unsafe_code)]

use core::net::{Ipv4Addr, SocketAddrV4};
use core::sync::atomic::{AtomicBool, Ordering};

use log::{error, info, warn};
use spin::Once;

use super::options::{IpConfig, NBD_PORT, Nic, Options};
use super::storage;
use super::tree::MachineInfo;
use crate::aio::{self, Callback};
use crate::arch::{self, CoreId};
use crate::export::nbd;
use crate::monitor::log as kept;
use crate::net::{self, AllowList, NetConfig, NetDevice};
use crate::virtio::mmio::Mmio;
use crate::virtio::net::Card;
use crate::virtio::probe;
use crate::virtio::transport::Transport;

/// What the network's core needs to start it.
struct Plan {
    card: &'static Card,
    config: NetConfig,
}

static CARD: Once<&'static Card> = Once::new();
static PLAN: Once<Plan> = Once::new();
static STARTED: AtomicBool = AtomicBool::new(false);
static STOPPED: AtomicBool = AtomicBool::new(true);

/// The network's core.
pub fn home() -> CoreId {
    arch::cores().min(2) - 1
}

/// Sets the card up, and stack and server on their core. Core 0, before its loop runs; after the exports.
pub fn start(machine: &MachineInfo, options: &Options) {
    let cards = || {
        probe::devices()
            .rev()
            .filter(|(_, device)| device.identity().device_type == probe::NETWORK)
    };
    if options.ip == IpConfig::Off {
        return info!("network: off");
    }
    let chosen = match options.nic {
        Nic::First => cards().next(),
        Nic::Slot(wanted) => cards().find(|(slot, _)| *slot == usize::from(wanted)),
        Nic::Mac(wanted) => cards().find(|(_, device)| mac(device) == wanted),
    };
    for (slot, device) in cards().filter(|(slot, _)| Some(*slot) != chosen.map(|(slot, _)| slot)) {
        info!(
            "network: card {} in slot {slot} is not used",
            Mac(mac(device))
        );
    }
    let Some((slot, device)) = chosen else {
        return match options.nic {
            Nic::First => info!("network: no card"),
            _ => error!("network: no card as ironthread.nic names it"),
        };
    };
    let card = match crate::virtio::net::add(device, "net0") {
        Ok(card) => card,
        Err(why) => return error!("network: card in slot {slot}: {why}; no network"),
    };
    CARD.call_once(|| card);
    // As with disks: an edge-triggered controller sees only lines that rise.
    card.interrupt();
    let routed = match machine.virtio.get(slot) {
        Some(line) => storage::route(line, home(), on_interrupt, 0),
        None => return,
    };
    if let Err(why) = routed {
        return error!("network: {why}; no network");
    }
    PLAN.call_once(|| Plan {
        card,
        config: config(options),
    });
    if let Err(why) = aio::run_and_wait(aio::context(home()), Callback::new(&start_here, 0)) {
        return error!("network: {why:?}; no network");
    }
    if STARTED.load(Ordering::Acquire) {
        STOPPED.store(false, Ordering::Release);
        report(card, options);
    }
}

fn config(options: &Options) -> NetConfig {
    // Without a port nobody is admitted anywhere.
    let allow = if options.listen.is_none() {
        Some(heapless::Vec::new())
    } else {
        options.allow.clone()
    };
    NetConfig {
        ip: options.ip,
        listen: options
            .listen
            .unwrap_or(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, NBD_PORT)),
        allow: AllowList(allow),
        // Wall time and the moment of the boot differ from boot to boot.
        seed: kept::wall_seconds(0)
            .unwrap_or(1)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            ^ arch::now_ns(),
    }
}

/// On the network's core.
fn start_here(_: usize) {
    let Some(plan) = PLAN.get() else { return };
    let core = home();
    if let Err(why) = nbd::start(core, &net::wake) {
        return error!("network: nbd: {why:?}");
    }
    match net::init(plan.card, aio::context(core), &plan.config, nbd::server()) {
        Ok(()) => STARTED.store(true, Ordering::Release),
        Err(why) => error!("network: {why:?}"),
    }
}

fn report(card: &Card, options: &Options) {
    let mac = Mac(card.info().mac);
    let Some(listen) = options.listen else {
        return info!("network: {mac}, not listening");
    };
    match options.ip {
        IpConfig::Static { address, .. } => {
            info!("network: {mac} {address}, nbd on {listen}");
        }
        _ => info!("network: {mac}, asking for an address, nbd on {listen}"),
    }
    if options.allow.as_ref().is_some_and(|list| list.is_empty()) {
        warn!("network: nobody is admitted");
    }
}

fn on_interrupt(_: usize) {
    if let Some(card) = CARD.get() {
        card.interrupt();
    }
}

/// The hardware address that a card's configuration begins with.
fn mac(device: &Mmio) -> [u8; 6] {
    core::array::from_fn(|at| device.config_u8(at))
}

struct Mac([u8; 6]);

impl core::fmt::Display for Mac {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Ends listening and connections; see [`is_stopped`]. Core 0.
pub fn stop() {
    if !STOPPED.load(Ordering::Acquire) {
        net::shutdown(Callback::new(
            &|_| STOPPED.store(true, Ordering::Release),
            0,
        ));
    }
}

/// Whether nothing is sent or received any more.
pub fn is_stopped() -> bool {
    STOPPED.load(Ordering::Acquire)
}

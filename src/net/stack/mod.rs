//! The stack: smoltcp over one card, a slot per connection, ports that hand connections to servers.
//!
//! It runs on one core and never waits: [`Stack::ingress`] takes frames, [`Stack::service`] steps the servers whose
//! connection moved, [`Stack::egress`] sends what they left and kicks the card once, [`Stack::deadline`] says when to come
//! back at the latest. The glue to an event loop is in `super`; the tests drive a stack by hand with a clock of their own.
//!
//! Each slot is a smoltcp socket set of its own, and frames are matched to slots here: smoltcp's own `poll` walks all
//! sockets for each frame in and out, and cannot say which of them moved. Whatever belongs to no slot (ARP, ping, DHCP,
//! segments of connections that are gone) goes to a control set.
#![forbid(unsafe_code)]

mod inbound;
mod outbound;
mod serve;

use core::net::SocketAddrV4;

use heapless::Vec;
use smoltcp::iface::{Interface, SocketSet, SocketStorage};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress};

use super::address::Addressing;
use super::config::{AllowList, NetConfig};
use super::device::{CardState, NetDevice};
use super::phy::Phy;
use super::slot::{Phase, Slot, SlotMemory};
use super::status::Status;
use super::stream::{CloseReason, StreamHandler};
use crate::config::{self, NET_PORTS, NET_SLOTS};

/// Nanoseconds in a second.
const SECOND: u64 = 1_000_000_000;

/// A bit for each slot.
const ALL_SLOTS: u32 = u32::MAX >> (32 - NET_SLOTS);

/// A listening port and whom its connections go to.
#[derive(Clone, Copy)]
pub struct Port {
    /// Where it listens; the unspecified address is any of ours.
    pub listen: SocketAddrV4,
    /// The server.
    pub handler: &'static dyn StreamHandler,
    /// First of the stack's slots that serve it; the handler counts from 0.
    pub first: usize,
    /// How many.
    pub slots: usize,
}

/// Where a received frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Slot(usize),
    Control,
    Drop,
}

/// How [`Stack::ingress`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ingress {
    /// All frames are taken.
    Done,
    /// The budget is used up; there may be more.
    More,
    /// The card has no room for a reply; it sets its notifier when it has.
    Blocked,
}

/// What exists once there is a card.
struct Core {
    interface: Interface,
    phy: Phy,
    control: SocketSet<'static>,
    addressing: Addressing,
    control_deadline: u64,
    /// A frame waits in `phy` until there is room for the reply to it.
    held: Option<Target>,
}

/// The stack. See the module's text.
pub struct Stack {
    core: Option<Core>,
    /// In memory of their own, which is all zeros at first.
    slots: &'static mut [Slot],
    ports: Vec<Port, NET_PORTS>,
    allow: AllowList,
    status: &'static Status,
    /// Slots to be stepped, and slots that may have something to send: one bit each.
    dirty: u32,
    sending: u32,
    rotation: usize,
    /// No slot listens again.
    deaf: bool,
    stopping: Option<u64>,
    last_refusal: u64,
    card_state: Option<CardState>,
    restart_at: u64,
}

fn instant(now_ns: u64) -> Instant {
    Instant::from_micros((now_ns / 1000) as i64)
}

fn nanoseconds(instant: Option<Instant>) -> u64 {
    instant.map_or(u64::MAX, |instant| {
        (instant.total_micros().max(0) as u64).saturating_mul(1000)
    })
}

impl Stack {
    /// A stack without a card: nothing happens until [`Stack::start`].
    pub const fn new(status: &'static Status) -> Self {
        Self {
            core: None,
            slots: &mut [],
            ports: Vec::new(),
            allow: AllowList::everyone(),
            status,
            dirty: 0,
            sending: 0,
            rotation: 0,
            deaf: false,
            stopping: None,
            last_refusal: 0,
            card_state: None,
            restart_at: u64::MAX,
        }
    }

    /// Attaches the card and takes the configuration. `slots` are all empty; `control` is room for the DHCP socket.
    pub fn start(
        &mut self,
        card: &'static dyn NetDevice,
        config: &NetConfig,
        slots: &'static mut [Slot; NET_SLOTS],
        control: &'static mut [SocketStorage<'static>; 1],
        now_ns: u64,
    ) {
        slots.iter_mut().for_each(Slot::forget);
        self.slots = slots;
        card.attach();
        let mut phy = Phy::new(card);
        let mac = phy.info().mac;
        let mut options =
            smoltcp::iface::Config::new(HardwareAddress::Ethernet(EthernetAddress(mac)));
        options.random_seed = config.seed;
        let mut interface = Interface::new(options, &mut phy, instant(now_ns));
        let mut control = SocketSet::new(&mut control[..]);
        let addressing = Addressing::new(
            config.ip,
            &mut interface,
            &mut control,
            self.status,
            phy.info().name,
            now_ns,
        );
        self.allow = config.allow.clone();
        self.core = Some(Core {
            interface,
            phy,
            control,
            addressing,
            control_deadline: 0,
            held: None,
        });
        self.check_card(now_ns);
    }

    /// Adds a listening port that is served by the next `memory.len()` slots. Its index, or `None` when the table of ports
    /// or of slots is full.
    pub fn listen(
        &mut self,
        listen: SocketAddrV4,
        handler: &'static dyn StreamHandler,
        memory: impl IntoIterator<Item = SlotMemory>,
    ) -> Option<usize> {
        let first = self
            .ports
            .iter()
            .map(|port| port.first + port.slots)
            .max()
            .unwrap_or(0);
        let index = self.ports.len();
        if index == NET_PORTS || first == NET_SLOTS {
            return None;
        }
        let mut slots = 0;
        for (slot, memory) in self.slots[first..].iter_mut().zip(memory) {
            slot.bind(memory, index as u8);
            slots += 1;
        }
        self.status.set_port(index, first);
        let _ = self.ports.push(Port {
            listen,
            handler,
            first,
            slots,
        });
        for slot in first..first + slots {
            self.dirty |= 1 << slot;
        }
        Some(index)
    }

    /// The ports.
    pub fn ports(&self) -> &[Port] {
        &self.ports
    }

    /// When [`Stack::service`] and [`Stack::egress`] must run again at the latest, in ns since boot.
    pub fn deadline(&self) -> u64 {
        let Some(core) = &self.core else {
            return u64::MAX;
        };
        self.slots
            .iter()
            .map(|slot| {
                slot.handler_deadline
                    .min(slot.socket_deadline)
                    .min(slot.phase_deadline)
            })
            .fold(core.control_deadline.min(self.restart_at), u64::min)
    }

    /// Looks at the card's link and health, after its notifier was set.
    pub fn check_card(&mut self, now_ns: u64) {
        let Some(core) = &mut self.core else { return };
        if self.card_state.is_some() && !core.phy.card().changed() {
            return;
        }
        let state = core.phy.card().state();
        if self.card_state == Some(state) {
            return;
        }
        let name = core.phy.info().name;
        let first = self.card_state.is_none();
        self.card_state = Some(state);
        self.status.set_card(state);
        match state {
            CardState::Up if first => {}
            CardState::Up => {
                log::info!("{name}: link up");
                self.sending = ALL_SLOTS;
            }
            CardState::Down => log::warn!("{name}: link down"),
            CardState::Failed(reason) => {
                log::error!("{name}: link down: {reason}; reset, next try in 1 s");
                core.held = None;
                core.phy.forget();
                self.restart_at = now_ns + SECOND;
            }
        }
    }

    fn restart(&mut self, now_ns: u64) {
        self.restart_at = u64::MAX;
        let Some(core) = &mut self.core else { return };
        core.phy.card().restart();
        // A second failure with the same words is told again.
        self.card_state = self
            .card_state
            .filter(|state| matches!(state, CardState::Up | CardState::Down));
        let failed = self.card_state.is_none();
        if failed {
            self.card_state = Some(CardState::Down);
        }
        self.check_card(now_ns);
    }

    /// Takes no new connections; those that are open go on.
    pub fn stop_listening(&mut self, now_ns: u64) {
        self.deaf = true;
        for index in 0..self.slots.len() {
            if matches!(self.slots[index].phase, Phase::Listening | Phase::Waiting) {
                self.rest(index, now_ns);
            }
        }
    }

    /// Ends everything: no more listening, each connection closed, reset where its peer does not follow in time.
    pub fn stop(&mut self, now_ns: u64) {
        self.stop_listening(now_ns);
        let limit = now_ns + config::NET_SHUTDOWN_SECONDS * SECOND;
        self.stopping = Some(limit);
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            match slot.phase {
                Phase::Off | Phase::Listening | Phase::Waiting => {}
                Phase::Opening => {
                    slot.abort();
                    slot.phase = Phase::Closing;
                    slot.phase_deadline = limit;
                    self.sending |= 1 << index;
                }
                Phase::Open => {
                    slot.wind_up();
                    self.close(index, CloseReason::Stopped, now_ns);
                }
                Phase::Closing => slot.phase_deadline = limit,
            }
        }
    }

    /// True after [`Stack::stop`], when nothing is open any more.
    pub fn is_stopped(&self) -> bool {
        self.stopping.is_some() && self.slots.iter().all(|slot| slot.phase == Phase::Off)
    }

    /// Where a slot stands, for tests.
    #[cfg(test)]
    pub(super) fn phase(&self, slot: usize) -> Phase {
        self.slots[slot].phase
    }

    /// Where all slots of the first port stand, for tests.
    #[cfg(test)]
    pub(super) fn phases(&self) -> impl Iterator<Item = Phase> + '_ {
        self.slots[..self.ports[0].slots]
            .iter()
            .map(|slot| slot.phase)
    }
}

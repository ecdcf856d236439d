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

use core::net::SocketAddrV4;
use core::sync::atomic::Ordering::{AcqRel, Relaxed};

use heapless::Vec;
use smoltcp::iface::{Interface, SocketSet, SocketStorage};
use smoltcp::socket::tcp::State;
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress};

use super::address::Addressing;
use super::config::{AllowList, NetConfig};
use super::device::{CardState, NetDevice};
use super::frame::{self, ACK, FIN, Kind, RST, SYN, Segment};
use super::phy::Phy;
use super::slot::{Ended, Key, Phase, Slot, SlotMemory};
use super::status::{ConnectionInfo, Status};
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
    slots: [Slot; NET_SLOTS],
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
            slots: [const { Slot::EMPTY }; NET_SLOTS],
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

    /// Attaches the card and takes the configuration. `control` is room for the DHCP socket.
    pub fn start(
        &mut self,
        card: &'static dyn NetDevice,
        config: &NetConfig,
        control: &'static mut [SocketStorage<'static>; 1],
        now_ns: u64,
    ) {
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

    /// Takes up to `budget` frames from the card. True: there may be more.
    pub fn ingress(&mut self, now_ns: u64, budget: usize) -> bool {
        let Some(core) = &mut self.core else {
            return false;
        };
        core.phy.exhausted = false;
        if let Some(target) = core.held.take() {
            self.deliver(target, None, now_ns);
        }
        for _ in 0..budget {
            let Some(core) = &mut self.core else {
                return false;
            };
            if core.held.is_some() {
                // No room for replies: the card says when there is some.
                return false;
            }
            let Some((mut frame, sums)) = core.phy.card().receive() else {
                return false;
            };
            let kind = frame::classify(frame.bytes());
            let (target, segment) = match kind {
                Kind::Tcp(segment) => (self.route(&segment, now_ns), Some(segment)),
                Kind::Arp | Kind::Ip => (Target::Control, None),
                Kind::Other => (Target::Drop, None),
            };
            let Some(core) = &mut self.core else {
                return false;
            };
            if target == Target::Drop || !frame::check_received(frame.bytes_mut(), sums) {
                self.status.dropped.fetch_add(1, Relaxed);
                core.phy.card().recycle(frame);
                continue;
            }
            core.phy.offer(frame);
            self.deliver(target, segment, now_ns);
            if kind == Kind::Arp {
                // A neighbour may have become known that some connection waits for.
                self.sending = ALL_SLOTS;
            }
        }
        true
    }

    fn route(&mut self, segment: &Segment, now_ns: u64) -> Target {
        let Some(core) = &self.core else {
            return Target::Drop;
        };
        if core.interface.ipv4_addr() != Some(segment.local) {
            return Target::Drop;
        }
        let key = Some(Key::of(segment));
        if let Some(index) = self.slots.iter().position(|slot| slot.key == key) {
            return if self.slots[index].plausible(segment) {
                Target::Slot(index)
            } else {
                Target::Drop
            };
        }
        if segment.flags & (SYN | ACK | RST | FIN) != SYN {
            // smoltcp answers what belongs to no connection with a reset.
            return Target::Control;
        }
        let wanted = |port: &&Port| {
            let address = *port.listen.ip();
            port.listen.port() == segment.local_port
                && (address.is_unspecified() || address == segment.local)
        };
        let Some(port) = self.ports.iter().find(wanted).copied() else {
            return Target::Control;
        };
        if !self.allow.admits(segment.remote) {
            self.refuse(segment, now_ns);
            return Target::Control;
        }
        let mut places = port.first..port.first + port.slots;
        match places.find(|index| self.slots[*index].phase == Phase::Listening) {
            Some(index) => Target::Slot(index),
            None => {
                // Silence makes the client try again; a reset would make it give up.
                self.status.no_slot.fetch_add(1, Relaxed);
                Target::Drop
            }
        }
    }

    fn refuse(&mut self, segment: &Segment, now_ns: u64) {
        self.status.refused.fetch_add(1, Relaxed);
        // A flood of attempts must not become a flood of lines.
        if self.last_refusal == 0 || now_ns - self.last_refusal >= SECOND {
            self.last_refusal = now_ns.max(1);
            log::warn!("net: {} refused: not in ironthread.allow", segment.remote);
        }
    }

    /// Gives the frame that `phy` holds to its target; it stays held if there is no room for a reply.
    fn deliver(&mut self, target: Target, segment: Option<Segment>, now_ns: u64) {
        let Some(core) = &mut self.core else { return };
        let set = match target {
            Target::Slot(index) => self.slots[index].set(),
            Target::Control | Target::Drop => Some(&mut core.control),
        };
        let Some(set) = set else { return };
        core.interface
            .poll_ingress_single(instant(now_ns), &mut core.phy, set);
        if let Some(frame) = core.phy.take_back() {
            core.phy.offer(frame);
            core.held = Some(target);
        }
        let Target::Slot(index) = target else {
            core.control_deadline = 0;
            return;
        };
        self.dirty |= 1 << index;
        self.sending |= 1 << index;
        self.status.heard(index, now_ns);
        let slot = &mut self.slots[index];
        if slot.phase == Phase::Listening
            && let Some(segment) = segment
        {
            // Also when the frame is held: the slot is taken, and the next one finds another.
            slot.begin(&segment, now_ns + config::NET_OPENING_SECONDS * SECOND);
        }
    }

    /// Steps every server whose connection moved, which woke its slot, or whose time has come.
    pub fn service(&mut self, now_ns: u64) {
        self.check_deadlines(now_ns);
        self.dirty |= self.status.wakes.swap(0, AcqRel) & ALL_SLOTS;
        let round = core::mem::take(&mut self.dirty);
        for turn in 0..NET_SLOTS {
            let index = (self.rotation + turn) % NET_SLOTS;
            if round & 1 << index != 0 {
                self.serve(index, now_ns);
            }
        }
        self.rotation = (self.rotation + 1) % NET_SLOTS;
    }

    /// True when some server asked to be stepped again at once.
    pub fn is_dirty(&self) -> bool {
        self.dirty != 0 || self.status.wakes.load(Relaxed) != 0
    }

    fn check_deadlines(&mut self, now_ns: u64) {
        for index in 0..NET_SLOTS {
            let slot = &mut self.slots[index];
            if slot.handler_deadline <= now_ns {
                self.dirty |= 1 << index;
            }
            if slot.socket_deadline <= now_ns {
                self.sending |= 1 << index;
            }
            if slot.phase_deadline <= now_ns {
                slot.phase_deadline = now_ns + SECOND;
                self.sending |= 1 << index;
                self.dirty |= 1 << index;
                if slot.phase == Phase::Closing && slot.state() == State::Closed {
                    // Not even the reset could be sent: nobody answers for that address. Forget it.
                    self.rest(index, now_ns);
                } else {
                    slot.abort();
                }
            }
        }
        if self.restart_at <= now_ns {
            self.restart(now_ns);
        }
    }

    fn port_of(&self, index: usize) -> Option<(&'static dyn StreamHandler, usize, SocketAddrV4)> {
        let port = self.ports.get(usize::from(self.slots[index].port))?;
        Some((port.handler, index - port.first, port.listen))
    }

    fn serve(&mut self, index: usize, now_ns: u64) {
        match self.slots[index].phase {
            Phase::Off => {}
            Phase::Listening | Phase::Opening => self.serve_opening(index, now_ns),
            Phase::Open => self.serve_open(index, now_ns),
            Phase::Closing => self.serve_closing(index),
            Phase::Waiting => self.rest(index, now_ns),
        }
    }

    fn serve_opening(&mut self, index: usize, now_ns: u64) {
        let slot = &mut self.slots[index];
        match slot.state() {
            State::Listen => {
                // The SYN was damaged, or a reset took it back.
                if self
                    .core
                    .as_ref()
                    .is_none_or(|core| core.held != Some(Target::Slot(index)))
                {
                    slot.forget();
                    slot.phase = Phase::Listening;
                }
            }
            State::SynReceived => {}
            State::Closed => {
                slot.phase = Phase::Closing;
                self.sending |= 1 << index;
            }
            _ => {
                slot.phase = Phase::Open;
                slot.phase_deadline = u64::MAX;
                let (Some(key), Some((handler, local, _))) = (slot.key, self.port_of(index)) else {
                    return;
                };
                self.status.opened.fetch_add(1, Relaxed);
                let port = usize::from(self.slots[index].port);
                let info = ConnectionInfo {
                    port,
                    slot: local,
                    peer: key.peer(),
                    since_ns: now_ns,
                    heard_ns: now_ns,
                };
                self.status.set_connection(index, Some(info));
                handler.opened(local, key.peer(), now_ns);
                self.serve_open(index, now_ns);
            }
        }
    }

    fn serve_open(&mut self, index: usize, now_ns: u64) {
        let Some((handler, local, _)) = self.port_of(index) else {
            return;
        };
        let slot = &mut self.slots[index];
        if slot.state() == State::Closed {
            let reason = if slot.timed_out {
                CloseReason::Timeout
            } else {
                CloseReason::Reset
            };
            slot.abort();
            self.close(index, reason, now_ns);
            return;
        }
        slot.pump();
        slot.handler_deadline = u64::MAX;
        let Some((deadline, ended, finished)) =
            slot.lend(|stream| handler.step(local, stream, now_ns))
        else {
            return;
        };
        self.sending |= 1 << index;
        match ended {
            Ended::No => match deadline {
                Some(at) if at <= now_ns => self.dirty |= 1 << index,
                Some(at) => slot.handler_deadline = at,
                None => {}
            },
            Ended::Close => {
                slot.wind_up();
                let reason = if finished {
                    CloseReason::Peer
                } else {
                    CloseReason::Local
                };
                self.close(index, reason, now_ns);
            }
            Ended::Abort => {
                slot.abort();
                self.close(index, CloseReason::Local, now_ns);
            }
        }
    }

    /// The handler is done with the slot; the socket may not be.
    fn close(&mut self, index: usize, reason: CloseReason, now_ns: u64) {
        let slot = &mut self.slots[index];
        slot.phase = Phase::Closing;
        slot.handler_deadline = u64::MAX;
        // Where nobody answers any more, only our reset is left to be sent.
        let gone = matches!(reason, CloseReason::Timeout | CloseReason::Reset);
        let limit = if gone {
            config::NET_SHUTDOWN_SECONDS
        } else {
            config::NET_CLOSING_SECONDS
        };
        slot.phase_deadline = now_ns + limit * SECOND;
        if let Some(stop) = self.stopping {
            slot.phase_deadline = slot.phase_deadline.min(stop);
        }
        self.sending |= 1 << index;
        self.status.set_connection(index, None);
        if let Some((handler, local, _)) = self.port_of(index) {
            handler.closed(local, reason, now_ns);
        }
    }

    fn serve_closing(&mut self, index: usize) {
        self.slots[index].wind_up();
        // Whether it is done is looked at after the next egress, when the last acknowledgement has left.
        self.sending |= 1 << index;
    }

    /// The socket is done: listen again, or wait until the handler is ready.
    fn rest(&mut self, index: usize, _now_ns: u64) {
        let Some((handler, local, address)) = self.port_of(index) else {
            return;
        };
        let slot = &mut self.slots[index];
        if self.deaf {
            slot.abort();
            slot.forget();
            slot.phase = Phase::Off;
        } else if handler.ready(local) {
            slot.listen(address);
        } else {
            slot.forget();
            slot.phase = Phase::Waiting;
        }
    }

    /// Sends what there is, a frame per connection in turn, and notifies the card once.
    pub fn egress(&mut self, now_ns: u64) {
        let Some(core) = &mut self.core else { return };
        let now = instant(now_ns);
        core.phy.exhausted = false;
        if core.control_deadline <= now_ns {
            core.interface
                .poll_egress(now, &mut core.phy, &mut core.control);
            if core
                .addressing
                .look(&mut core.interface, &mut core.control, now_ns)
            {
                self.sending = ALL_SLOTS;
            }
            let next = nanoseconds(core.interface.poll_at(now, &core.control));
            core.control_deadline = next.max(now_ns + 1_000_000).min(core.addressing.deadline());
        }
        while self.sending != 0 {
            for turn in 0..NET_SLOTS {
                let index = (self.rotation + turn) % NET_SLOTS;
                if self.sending & 1 << index != 0 && !self.send_one(index, now_ns) {
                    // The card is full; it sets its notifier when it is not.
                    if let Some(core) = &self.core {
                        core.phy.card().flush();
                    }
                    return;
                }
            }
        }
        if let Some(core) = &self.core {
            core.phy.card().flush();
        }
    }

    /// Lets one slot send one frame; clears its bit when it has no more. False: the card has no room.
    fn send_one(&mut self, index: usize, now_ns: u64) -> bool {
        let Some(core) = &mut self.core else {
            return false;
        };
        let slot = &mut self.slots[index];
        let before = slot.state();
        let Some(set) = slot.set() else {
            self.sending &= !(1 << index);
            return true;
        };
        let sent = core.phy.sent;
        core.interface
            .poll_egress(instant(now_ns), &mut core.phy, set);
        if core.phy.sent != sent {
            slot.note_sent(before);
        }
        let after = slot.state();
        if before != State::Closed && after == State::Closed && slot.phase != Phase::Closing {
            // Only its timer (or the loss of our address) closes a socket that is being sent from.
            slot.timed_out = true;
            self.dirty |= 1 << index;
        }
        if core.phy.exhausted {
            return false;
        }
        if core.phy.sent != sent {
            return true;
        }
        self.sending &= !(1 << index);
        let next = match slot.set() {
            Some(set) => nanoseconds(core.interface.poll_at(instant(now_ns), set)),
            None => u64::MAX,
        };
        // "Now" although nothing could be sent: look again soon, but do not spin.
        slot.socket_deadline = next.max(now_ns + 1_000_000);
        if slot.phase == Phase::Closing && slot.is_done() {
            self.rest(index, now_ns);
        }
        true
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
        for index in 0..NET_SLOTS {
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
        for index in 0..NET_SLOTS {
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

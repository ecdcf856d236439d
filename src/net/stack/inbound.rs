//! Frames in: which slot each belongs to, and who may connect.
#![forbid(unsafe_code)]

use core::sync::atomic::Ordering::Relaxed;

use super::super::frame::{self, ACK, FIN, Kind, RST, SYN, Segment};
use super::super::slot::{Key, Phase};
use super::{ALL_SLOTS, Ingress, Port, SECOND, Stack, Target, instant};
use crate::config;

impl Stack {
    /// Takes up to `budget` frames from the card.
    pub fn ingress(&mut self, now_ns: u64, budget: usize) -> Ingress {
        let Some(core) = &mut self.core else {
            return Ingress::Done;
        };
        core.phy.exhausted = false;
        if let Some(target) = core.held.take() {
            self.deliver(target, None, now_ns);
        }
        for _ in 0..budget {
            let Some(core) = &mut self.core else {
                return Ingress::Done;
            };
            if core.held.is_some() {
                return Ingress::Blocked;
            }
            let Some((mut frame, sums)) = core.phy.card().receive() else {
                return Ingress::Done;
            };
            let kind = frame::classify(frame.bytes());
            let (target, segment) = match kind {
                Kind::Tcp(segment) => (self.route(&segment, now_ns), Some(segment)),
                Kind::Arp | Kind::Ip => (Target::Control, None),
                Kind::Other => (Target::Drop, None),
            };
            let Some(core) = &mut self.core else {
                return Ingress::Done;
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
        Ingress::More
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
}

//! Frames out: a frame per connection in turn, and one notification of the card.
#![forbid(unsafe_code)]

use smoltcp::socket::tcp::State;

use super::super::slot::Phase;
use super::{ALL_SLOTS, Stack, instant, nanoseconds};
use crate::config::NET_SLOTS;

impl Stack {
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
}

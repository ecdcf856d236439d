//! The servers' turns: who is stepped, and what becomes of a connection.
#![forbid(unsafe_code)]

use core::net::SocketAddrV4;
use core::sync::atomic::Ordering::{AcqRel, Relaxed};

use smoltcp::socket::tcp::State;

use super::super::slot::{Ended, Phase};
use super::super::status::ConnectionInfo;
use super::super::stream::{CloseReason, StreamHandler};
use super::{ALL_SLOTS, SECOND, Stack, Target};
use crate::config::{self, NET_SLOTS};

impl Stack {
    /// Steps every server whose connection moved, which woke its slot, or whose time has come.
    pub fn service(&mut self, now_ns: u64) {
        if self.core.is_none() {
            return;
        }
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
    pub(super) fn close(&mut self, index: usize, reason: CloseReason, now_ns: u64) {
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
    pub(super) fn rest(&mut self, index: usize, _now_ns: u64) {
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
}

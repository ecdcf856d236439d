//! One connection: its state, its life, and what a step does.
//!
//! ```text
//!         opened               entered                 DISC, FIN, oversized write
//!  free ─────────▶ handshake ──────────▶ transmission ───────────────────────────▶ ending
//!   ▲                  │                      │                                       │ all replied: close
//!   │                  └──────────┬───────────┴────────────── abort ──┬───────────────┘ no progress: abort
//!   │                             ▼                                   ▼
//!   │                           gone ◀──────── closed ──────────── closing
//!   └── every request is back ────┘
//! ```
//! Sans I/O: a step takes what has arrived, submits what it can, sends what is ready, and returns. All of it, and the
//! completions, run on the core of the network's context. [`receive`](super::receive) has the way in,
//! [`submit`](super::submit) the way to the backend and back, [`send`](super::send) the way out.
//!
//! A request is in flight from the submission of a filled buffer to its completion; while bytes are awaited nothing is. In
//! a drained section of the backend the session neither parses nor submits; what was submitted comes back and is answered.
#![forbid(unsafe_code)]

use heapless::Deque;

use super::handshake::{Entered, Handshake, Outcome};
use super::operations::Operations;
use super::quiet;
use super::receive::Intake;
use super::status::Status;
use crate::config::SESSION_REQUESTS;
use crate::export::table;
use crate::net::stream::{ByteStream, CloseReason, PeerAddress};
use crate::sync::Buffer;

/// Time for a whole handshake.
const HANDSHAKE_NS: u64 = 10_000_000_000;

/// Time without progress after which an ending session is aborted: it may keep its export from admitting others.
const ENDING_NS: u64 = 10_000_000_000;

/// Bytes received in one step before the other sessions have their turn.
const STEP_BYTES: usize = 256 * 1024;

/// Bytes received in one step of a handshake: a thousand options.
const NEGOTIATE_BYTES: usize = 16 * 1024;

/// Request headers parsed in one step before the other sessions have their turn.
const STEP_REQUESTS: usize = 64;

/// Pieces of reads, at the backend or waiting to be sent: one for each request, and some for long ones.
pub(super) const READ_PIECES: usize = SESSION_REQUESTS + 8;

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// No connection.
    Free,
    /// Negotiating.
    Handshake,
    /// Serving.
    Transmission,
    /// No more requests; the last replies are on their way.
    Ending,
    /// Closed or aborted by us, to be confirmed by the transport.
    Closing,
    /// The connection is over, requests of it still run.
    Gone,
}

/// A piece of a read that is ready to be sent.
pub(super) struct Piece {
    pub operation: u8,
    /// First byte, from the start of the request.
    pub start: u32,
    pub length: u32,
    pub buffer: Buffer,
}

/// What may still be received in a step.
pub(super) struct Budget {
    pub bytes: usize,
    pub requests: usize,
}

/// The state of one slot.
pub(super) struct Session {
    pub slot: usize,
    pub phase: Phase,
    handshake: Handshake,
    pub entered: Option<Entered>,
    pub intake: Intake,
    pub operations: Operations,
    /// Requests with something left to submit, in order.
    pub waiting: Deque<u8, SESSION_REQUESTS>,
    /// Requests whose reply without data is due, in order.
    pub finished: Deque<u8, SESSION_REQUESTS>,
    pub pieces: Deque<Piece, READ_PIECES>,
    /// Pieces of reads at the backend, and in `pieces`.
    pub read_pieces: usize,
    /// The long simple read whose data is being sent: nothing else may be sent until it is complete.
    pub owner: Option<u8>,
    /// Requests at the backend.
    pub in_flight: u32,
    /// The block layer had no request record; its bottom half wakes us.
    pub starved: bool,
    /// Why the connection must be aborted.
    pub doomed: Option<&'static str>,
    /// Something was received, sent, submitted or completed in this step.
    pub moved: bool,
    /// The client sends no more, though not all that it sent has been taken.
    leaving: bool,
    /// The export's table was told that our requests outlive us.
    unsettled: bool,
    awaiting_admission: bool,
    removals: u32,
    deadline_ns: u64,
    reason: Option<&'static str>,
    peer: PeerAddress,
}

impl Session {
    pub const fn new() -> Self {
        Self {
            slot: 0,
            phase: Phase::Free,
            handshake: Handshake::new(),
            entered: None,
            intake: Intake::Header,
            operations: Operations::new(),
            waiting: Deque::new(),
            finished: Deque::new(),
            pieces: Deque::new(),
            read_pieces: 0,
            owner: None,
            in_flight: 0,
            starved: false,
            doomed: None,
            moved: false,
            leaving: false,
            unsettled: false,
            awaiting_admission: false,
            removals: 0,
            deadline_ns: 0,
            reason: None,
            peer: PeerAddress::NOBODY,
        }
    }

    /// A connection came in.
    pub fn opened(&mut self, peer: PeerAddress, now_ns: u64) {
        debug_assert!(self.phase == Phase::Free, "a slot was opened twice");
        self.handshake.reset();
        self.phase = Phase::Handshake;
        self.deadline_ns = now_ns.saturating_add(HANDSHAKE_NS);
        self.peer = peer;
        self.reason = None;
    }

    /// Does what can be done now; see [`StreamHandler::step`](crate::net::stream::StreamHandler::step).
    pub fn step(
        &mut self,
        stream: &mut dyn ByteStream,
        status: &Status,
        now_ns: u64,
    ) -> Option<u64> {
        if self.phase == Phase::Handshake {
            let deadline = self.negotiate(stream, status, now_ns);
            if self.phase != Phase::Transmission {
                return deadline;
            }
        }
        match self.phase {
            Phase::Transmission | Phase::Ending => self.serve(stream, status, now_ns),
            _ => None,
        }
    }

    fn negotiate(
        &mut self,
        stream: &mut dyn ByteStream,
        status: &Status,
        now_ns: u64,
    ) -> Option<u64> {
        if !self.awaiting_admission && now_ns >= self.deadline_ns {
            self.abort(stream, "the handshake took too long");
            return None;
        }
        let mut budget = NEGOTIATE_BYTES;
        let outcome = self.handshake.step(stream, &mut budget);
        self.awaiting_admission = false;
        match outcome {
            Outcome::Wait => Some(self.deadline_ns),
            Outcome::Again => Some(now_ns),
            Outcome::WaitAdmission => {
                // Not the client's fault: its time starts again when it is admitted.
                self.awaiting_admission = true;
                self.deadline_ns = now_ns.saturating_add(HANDSHAKE_NS);
                None
            }
            Outcome::Entered(entered) => {
                status.entered(&entered.export.name);
                log::info!(
                    "nbd {}: {} connected to {}",
                    self.slot,
                    self.peer,
                    entered.export.name
                );
                self.entered = Some(entered);
                // An export may be removed between its admission and this line: `serve` looks once in any case.
                self.removals = table::removals().wrapping_sub(1);
                self.phase = Phase::Transmission;
                self.leaving = false;
                self.intake = Intake::Header;
                None
            }
            Outcome::Close(reason) => {
                self.close(stream, reason);
                None
            }
            Outcome::Abort(reason) => {
                self.abort(stream, reason);
                None
            }
        }
    }

    fn serve(&mut self, stream: &mut dyn ByteStream, status: &Status, now_ns: u64) -> Option<u64> {
        self.check_removal();
        if self.phase == Phase::Transmission && !self.leaving && stream.peer_finished() {
            self.leaving = true;
            self.deadline_ns = 0;
            self.settle();
        }
        let arenas = super::arenas(self.slot);
        let drained = self
            .entered
            .as_ref()
            .is_some_and(|entered| quiet::is_quiet(entered.export.backend));
        let mut budget = Budget {
            bytes: STEP_BYTES,
            requests: STEP_REQUESTS,
        };
        self.moved = false;
        self.send(stream);
        let mut hungry = false;
        if self.phase == Phase::Transmission && !drained {
            hungry = self.receive(stream, arenas, &mut budget);
        }
        self.submit_waiting(arenas, drained);
        // What was refused, or frees a place for the next request, is sent at once.
        let before = self.operations.len();
        self.send(stream);
        let freed = self.operations.len() < before;
        if let Some(reason) = self.doomed.take() {
            self.abort(stream, reason);
            return None;
        }
        if self.moved {
            status.active(now_ns);
        }
        if self.phase == Phase::Ending {
            return self.finish_ending(stream, drained, now_ns);
        }
        let again = hungry && (freed || budget.bytes == 0 || budget.requests == 0);
        if self.leaving {
            if self.is_overdue(drained, now_ns) {
                self.abort(stream, "the client left and does not take its replies");
                return None;
            }
            return Some(if again { now_ns } else { self.deadline_ns });
        }
        again.then_some(now_ns)
    }

    /// Whether a client that asks for nothing more has had time enough to take its replies; others may wait for its end.
    fn is_overdue(&mut self, drained: bool, now_ns: u64) -> bool {
        // Only the client's own slowness counts.
        let ours = drained || self.starved || self.in_flight > 0;
        if self.moved || self.deadline_ns == 0 || ours {
            self.deadline_ns = now_ns.saturating_add(ENDING_NS);
            return false;
        }
        now_ns >= self.deadline_ns
    }

    /// After the last request: closes when everything is answered, aborts when nothing moves any more.
    fn finish_ending(
        &mut self,
        stream: &mut dyn ByteStream,
        drained: bool,
        now_ns: u64,
    ) -> Option<u64> {
        if self.operations.len() == 0 {
            self.close(stream, self.reason.unwrap_or("closed"));
            return None;
        }
        if self.is_overdue(drained, now_ns) {
            self.abort(stream, "the client does not take its last replies");
            return None;
        }
        self.settle();
        Some(self.deadline_ns)
    }

    /// Ends the session when its export was removed.
    fn check_removal(&mut self) {
        let removals = table::removals();
        if removals != self.removals {
            self.removals = removals;
            if self
                .entered
                .as_ref()
                .is_some_and(|entered| table::is_going(entered.export.id))
            {
                self.doomed = Some("the export was removed");
            }
        }
    }

    /// Takes no more requests, answers those that are here, then closes.
    pub fn begin_ending(&mut self, reason: &'static str) {
        self.phase = Phase::Ending;
        self.intake = Intake::Header;
        self.reason = Some(reason);
        self.deadline_ns = 0;
        self.moved = true;
        self.settle();
    }

    fn close(&mut self, stream: &mut dyn ByteStream, reason: &'static str) {
        stream.close();
        self.reason = Some(reason);
        self.let_go(Phase::Closing);
    }

    fn abort(&mut self, stream: &mut dyn ByteStream, reason: &'static str) {
        stream.abort();
        self.reason = Some(reason);
        self.let_go(Phase::Closing);
    }

    /// The connection is over.
    pub fn closed(&mut self, reason: CloseReason) {
        let name = self
            .entered
            .as_ref()
            .map_or("no export", |entered| entered.export.name.as_str());
        match self.reason {
            Some(why) => log::info!("nbd {}: {} left {name}: {why}", self.slot, self.peer),
            None => log::info!("nbd {}: {} left {name}: {reason}", self.slot, self.peer),
        }
        self.let_go(Phase::Gone);
        self.leave_if_back();
    }

    /// Drops everything but the requests at the backend.
    fn let_go(&mut self, phase: Phase) {
        self.phase = phase;
        self.intake = Intake::Header;
        self.handshake.reset();
        self.waiting.clear();
        self.finished.clear();
        self.read_pieces -= self.pieces.len();
        self.pieces.clear();
        self.owner = None;
        self.starved = false;
        self.doomed = None;
        self.awaiting_admission = false;
        self.settle();
    }

    /// Tells the export whether requests outlive this session (DUR-9): those at the backend when no more can come, and all
    /// that may still come of a client that has left. Called whenever that may have changed.
    pub fn settle(&mut self) {
        let Some(entered) = &self.entered else { return };
        let over = matches!(self.phase, Phase::Ending | Phase::Closing | Phase::Gone);
        let busy = match over {
            true => self.in_flight > 0 || !self.waiting.is_empty(),
            false => self.leaving && self.phase == Phase::Transmission,
        };
        if busy && !self.unsettled {
            self.unsettled = true;
            table::unsettle(entered.export.id);
        } else if !busy && self.unsettled {
            self.unsettled = false;
            if table::settle(entered.export.id) {
                super::wake_all();
            }
        }
    }

    /// Frees the slot when the connection is over and the last request is back.
    pub fn leave_if_back(&mut self) {
        if self.phase != Phase::Gone || self.in_flight > 0 {
            return;
        }
        self.settle();
        if let Some(entered) = self.entered.take() {
            table::leave(entered.export.id);
        }
        debug_assert!(self.read_pieces == 0, "a piece of a read was lost");
        self.operations.clear();
        self.phase = Phase::Free;
        super::wake(self.slot);
    }
}

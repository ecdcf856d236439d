//! What can be seen of the connections from any core: written by the sessions, read by the console.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use heapless::String;

use super::session::Phase;
use crate::export::table::NAME_BYTES;
use crate::net::stream::PeerAddress;
use crate::sync::IrqLock;

/// A connection, as the console shows it.
#[derive(Clone)]
pub struct Connection {
    /// Its slot.
    pub slot: usize,
    /// Where it is in its life.
    pub phase: Phase,
    /// Who is at the other end; `None` once the connection is over and only its requests are left.
    pub peer: Option<PeerAddress>,
    /// The export served; empty before transmission.
    pub export: String<NAME_BYTES>,
    /// Requests received and not yet answered.
    pub requests: u32,
    /// Requests at the backend.
    pub in_flight: u32,
    /// When it was opened (ns since boot).
    pub opened_ns: u64,
    /// When something last moved in the transmission phase, or it was opened (ns since boot).
    pub active_ns: u64,
}

struct Identity {
    peer: PeerAddress,
    export: String<NAME_BYTES>,
    opened_ns: u64,
}

/// One slot's part.
pub(super) struct Status {
    identity: IrqLock<Identity>,
    phase: AtomicU8,
    requests: AtomicU32,
    in_flight: AtomicU32,
    active_ns: AtomicU64,
}

const PHASES: [Phase; 6] = [
    Phase::Free,
    Phase::Handshake,
    Phase::Transmission,
    Phase::Ending,
    Phase::Closing,
    Phase::Gone,
];

impl Status {
    pub const fn new() -> Self {
        Self {
            identity: IrqLock::new(Identity {
                peer: PeerAddress::NOBODY,
                export: String::new(),
                opened_ns: 0,
            }),
            phase: AtomicU8::new(0),
            requests: AtomicU32::new(0),
            in_flight: AtomicU32::new(0),
            active_ns: AtomicU64::new(0),
        }
    }

    pub fn opened(&self, peer: PeerAddress, now_ns: u64) {
        let mut identity = self.identity.lock();
        identity.peer = peer;
        identity.export.clear();
        identity.opened_ns = now_ns;
        self.active(now_ns);
    }

    pub fn entered(&self, export: &String<NAME_BYTES>) {
        self.identity.lock().export = export.clone();
    }

    pub fn active(&self, now_ns: u64) {
        self.active_ns.store(now_ns, Ordering::Relaxed);
    }

    pub fn set(&self, phase: Phase, requests: usize, in_flight: u32) {
        self.phase.store(phase as u8, Ordering::Relaxed);
        self.requests.store(requests as u32, Ordering::Relaxed);
        self.in_flight.store(in_flight, Ordering::Relaxed);
    }

    pub fn phase(&self) -> Phase {
        PHASES[usize::from(self.phase.load(Ordering::Relaxed)) % PHASES.len()]
    }

    pub fn snapshot(&self, slot: usize) -> Option<Connection> {
        let phase = self.phase();
        if phase == Phase::Free {
            return None;
        }
        let identity = self.identity.lock();
        Some(Connection {
            slot,
            phase,
            peer: (phase != Phase::Gone).then_some(identity.peer),
            export: identity.export.clone(),
            requests: self.requests.load(Ordering::Relaxed),
            in_flight: self.in_flight.load(Ordering::Relaxed),
            opened_ns: identity.opened_ns,
            active_ns: self.active_ns.load(Ordering::Relaxed),
        })
    }
}

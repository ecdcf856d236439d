//! The NBD server: fixed newstyle, simple and structured replies, `base:allocation`, over any byte stream.
//!
//! | file | what it is |
//! |---|---|
//! | [`wire`], [`constants`], [`payload`] | the format on the wire: parsed forms and views |
//! | `handshake`, `options` | negotiation |
//! | `session` | one connection: its states, what a step does |
//! | `receive`, `submit`, `send` | its way in, to the backend and back, and out |
//! | `operations` | the requests of a session |
//! | `quiet` | drained sections |
//! | `status` | what the console shows |
//!
//! [`server`] is a [`StreamHandler`] with [`SESSIONS`] slots, one session each. A transport (smoltcp, or sockets on the host)
//! calls it on the core that [`start`] named; completions come to that core too. Any core may read [`connections`] and call
//! [`wake`]. Each session owns its pages: [`RECEIVE_PAGES`] for payloads, [`REPLY_PAGES`] for replies, and can take no other's;
//! some request records are kept for each, so that sessions on a disk that does not answer cannot hold them all.
//!
//! | command | served | notes |
//! |---|---|---|
//! | READ | yes | FUA flushes first; DF up to [`SESSION_CHUNK`], beyond it EOVERFLOW; no hole chunks |
//! | WRITE | yes | FUA; streamed, no more than a piece in memory before it goes to the disk |
//! | FLUSH, TRIM, WRITE_ZEROES | yes | NO_HOLE, FAST_ZERO, FUA |
//! | CACHE | yes | checked, then nothing: there is no cache |
//! | BLOCK_STATUS | yes | REQ_ONE; at most 32 extents a reply |
//! | extended headers, TLS | no | UNSUP, POLICY |
#![forbid(unsafe_code)]

pub mod constants;
pub mod payload;
pub mod wire;

mod handshake;
mod io;
mod operations;
mod options;
mod quiet;
mod receive;
mod send;
mod session;
mod status;
mod submit;
#[cfg(test)]
mod wire_tests;

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use spin::Once;

use self::session::Session;
use self::status::Status;
use self::wire::export_flag;
use super::table::Export;
use crate::aio::{AioError, BottomHalf, Callback};
use crate::arch::CoreId;
use crate::block::{self, Backend, Request};
use crate::config::{REQUEST_RESERVED, REQUESTS_PER_CORE, SESSION_CHUNK, SESSION_PAGES, SESSIONS};
use crate::net::stream::{ByteStream, CloseReason, PeerAddress, StreamHandler, Wake};
use crate::sync::{HomeCell, PAGE_SIZE, PageArena};

pub use quiet::listener;
pub use session::Phase;
pub use status::Connection;

/// Longest read or write, in bytes.
pub const MAX_REQUEST: u32 = 32 << 20;

/// Pages of a session for the payload of writes: a third of its quota.
pub const RECEIVE_PAGES: usize = SESSION_PAGES / 3;

/// Pages of a session for the data of reads: the rest of its quota.
pub const REPLY_PAGES: usize = SESSION_PAGES - RECEIVE_PAGES;

/// Longest part of a write, in bytes, that goes to the backend at once (rounded down to the export's blocks): with half of
/// the pages, one part is received while another is written.
pub const WRITE_PIECE: usize = RECEIVE_PAGES / 2 * PAGE_SIZE;

/// Request records that a session gets whatever the others do: half of its share of a core's. The other half is for whoever
/// comes first, so that a few sessions go as deep as they can.
const OWN_RECORDS: u32 = ((REQUESTS_PER_CORE - REQUEST_RESERVED) / SESSIONS / 2) as u32;

const _: () = assert!(OWN_RECORDS > 0, "each session has a record of its own");
const _: () = assert!(
    REPLY_PAGES * PAGE_SIZE >= SESSION_CHUNK,
    "a session must hold a whole chunk"
);
const _: () = assert!(
    SESSION_CHUNK >= 256 * 1024,
    "reads up to 256 KiB are complete before their header is sent"
);
const _: () = assert!(
    WRITE_PIECE >= 64 * 1024,
    "a piece of a write holds the largest logical block"
);

/// Block sizes as the client is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct BlockSizes {
    minimum: u32,
    preferred: u32,
    maximum: u32,
}

impl BlockSizes {
    fn of(backend: &Backend) -> Self {
        let minimum = backend.logical_block();
        Self {
            minimum,
            preferred: minimum.max(4096),
            maximum: MAX_REQUEST,
        }
    }

    /// Longest part of a write that goes to the backend at once: whole blocks.
    fn write_piece(self) -> usize {
        WRITE_PIECE - WRITE_PIECE % self.minimum as usize
    }

    /// The size of the export: whole blocks.
    fn round(self, size: u64) -> u64 {
        size & !(u64::from(self.minimum) - 1)
    }
}

/// Transmission flags of an export.
fn export_flags(export: &Export, structured: bool) -> u16 {
    use export_flag::*;
    let mut flags = HAS_FLAGS | SEND_FLUSH | SEND_FUA | SEND_CACHE | CAN_MULTI_CONN;
    flags |= if export.writable() && !export.backend.read_only() {
        SEND_TRIM | SEND_WRITE_ZEROES | SEND_FAST_ZERO
    } else {
        READ_ONLY
    };
    if structured { flags | SEND_DF } else { flags }
}

/// The pages of one session.
#[derive(Clone, Copy)]
struct Arenas {
    receive: &'static PageArena<RECEIVE_PAGES>,
    reply: &'static PageArena<REPLY_PAGES>,
}

/// The server; see [`server`].
pub struct Server {
    sessions: [HomeCell<Session>; SESSIONS],
    status: [Status; SESSIONS],
    wake: Once<Wake>,
    records_free: Once<BottomHalf>,
    /// The bottom half above is on the block layer's list of waiters.
    awaiting_records: AtomicBool,
    /// Of the [`OWN_RECORDS`] of all sessions, how many are in use; the others are promised. Home core only.
    claimed: AtomicU32,
}

static SERVER: Server = Server {
    sessions: [const { HomeCell::new(Session::new()) }; SESSIONS],
    status: [const { Status::new() }; SESSIONS],
    wake: Once::new(),
    records_free: Once::new(),
    awaiting_records: AtomicBool::new(false),
    claimed: AtomicU32::new(0),
};

static RECEIVE: [PageArena<RECEIVE_PAGES>; SESSIONS] = [const { PageArena::new() }; SESSIONS];
static REPLY: [PageArena<REPLY_PAGES>; SESSIONS] = [const { PageArena::new() }; SESSIONS];

/// The server, for the transport to call.
pub fn server() -> &'static Server {
    &SERVER
}

/// Makes `core`, whose context runs the transport, the server's home; called once, on that core, before the first connection.
/// `wake` must do no more than note the slot and notify the transport: sessions call it while they work.
///
/// # Errors
/// When the context has no bottom half left.
pub fn start(core: CoreId, wake: Wake) -> Result<(), AioError> {
    for (slot, session) in SERVER.sessions.iter().enumerate() {
        session.bind(core);
        session.with(|session| session.slot = slot);
    }
    if SERVER.records_free.get().is_none() {
        let context = crate::aio::context(core);
        let bottom_half = context.bottom_half("nbd records", Callback::new(&records_free, 0))?;
        SERVER.records_free.call_once(|| bottom_half);
    }
    SERVER.wake.call_once(|| wake);
    Ok(())
}

/// Has a slot stepped again. Any core.
pub fn wake(slot: usize) {
    if let Some(wake) = SERVER.wake.get() {
        wake(slot);
    }
}

/// Has every slot with a connection stepped again. Any core.
pub fn wake_all() {
    for (slot, status) in SERVER.status.iter().enumerate() {
        if status.phase() != Phase::Free {
            wake(slot);
        }
    }
}

/// Calls `f` with each connection. Any core.
pub fn connections(mut f: impl FnMut(&Connection)) {
    for (slot, status) in SERVER.status.iter().enumerate() {
        if let Some(connection) = status.snapshot(slot) {
            f(&connection);
        }
    }
}

/// Pages that a slot's session holds now, and the most it ever held. Any core.
pub fn pages(slot: usize) -> (usize, usize) {
    let arenas = arenas(slot);
    (
        arenas.receive.in_use() + arenas.reply.in_use(),
        arenas.receive.high_water() + arenas.reply.high_water(),
    )
}

fn arenas(slot: usize) -> Arenas {
    Arenas {
        receive: &RECEIVE[slot % SESSIONS],
        reply: &REPLY[slot % SESSIONS],
    }
}

/// A request of a session is back, on the server's core.
fn completed(request: Request) {
    let slot = request.user[0] as usize % SESSIONS;
    SERVER.sessions[slot].with(|session| {
        session.completed(request);
        SERVER.show(slot, session);
    });
    wake(slot);
}

/// A session is about to have a further request in flight, besides `in_flight`.
fn took_record(in_flight: u32) {
    if in_flight < OWN_RECORDS {
        SERVER.claimed.fetch_add(1, Ordering::Relaxed);
    }
}

/// A session has one request in flight less, and `in_flight` are left.
fn gave_record(in_flight: u32) {
    if in_flight < OWN_RECORDS {
        SERVER.claimed.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether a session with `in_flight` requests may have another record: one of its own, or one that is promised to nobody.
/// One that may not has requests in flight, whose answers wake it.
fn may_take_record(in_flight: u32) -> bool {
    if in_flight < OWN_RECORDS {
        return true;
    }
    let claimed = SERVER.claimed.load(Ordering::Relaxed);
    let promised = (OWN_RECORDS * SESSIONS as u32).saturating_sub(claimed) as usize;
    block::request_usage().0 + promised < REQUESTS_PER_CORE - REQUEST_RESERVED
}

/// A session found no request record: has all starved ones woken when there is one.
fn await_records() {
    if let Some(bottom_half) = SERVER.records_free.get()
        && !SERVER.awaiting_records.swap(true, Ordering::Relaxed)
    {
        block::request::wait_for_request(*bottom_half);
    }
}

fn records_free(_: usize) {
    SERVER.awaiting_records.store(false, Ordering::Relaxed);
    for (slot, session) in SERVER.sessions.iter().enumerate() {
        if session.with(|session| core::mem::take(&mut session.starved)) {
            wake(slot);
        }
    }
}

impl Server {
    fn show(&self, slot: usize, session: &Session) {
        self.status[slot].set(session.phase, session.operations.len(), session.in_flight);
    }
}

impl StreamHandler for Server {
    fn opened(&'static self, slot: usize, peer: PeerAddress, now_ns: u64) {
        self.status[slot].opened(peer, now_ns);
        self.sessions[slot].with(|session| {
            session.opened(peer, now_ns);
            self.show(slot, session);
        });
    }

    fn step(&'static self, slot: usize, stream: &mut dyn ByteStream, now_ns: u64) -> Option<u64> {
        let status = &self.status[slot];
        self.sessions[slot].with(|session| {
            let deadline = session.step(stream, status, now_ns);
            self.show(slot, session);
            deadline
        })
    }

    fn closed(&'static self, slot: usize, reason: CloseReason, _now_ns: u64) {
        self.sessions[slot].with(|session| {
            session.closed(reason);
            self.show(slot, session);
        });
    }

    fn ready(&'static self, slot: usize) -> bool {
        self.status[slot].phase() == Phase::Free
    }
}

//! The table of exports: which backend is served under which name, and by how many sessions.
//!
//! The main loop adds and removes; sessions look up and count themselves in and out, on the network's core. Every access is
//! a few instructions under a lock with interrupts masked, never per request.
//!
//! ```text
//!          add             remove (safe: no session; hard: any)         last session left
//!   free ───────▶ listed ───────────────────────────────────────▶ going ─────────────────▶ free
//! ```
//! *Going* admits nobody, is not listed, and keeps its name until the last session (with its requests) has left.
//!
//! DUR-9: a session that has ended while requests of it still run is *unsettled*; its export admits no new session until
//! they are back, so that a late old write cannot overtake a reconnected client's new one.
#![forbid(unsafe_code)]

use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};

use heapless::String;

use crate::aio::BottomHalf;
use crate::block::Backend;
use crate::config::EXPORTS;
use crate::sync::IrqLock;

/// Longest name of an export, in bytes.
pub const NAME_BYTES: usize = 64;
/// Longest description of an export, in bytes.
pub const DESCRIPTION_BYTES: usize = 128;

/// Names one export for as long as it exists; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportId(u32);

/// What a session or a person needs to know of an export.
#[derive(Clone)]
pub struct Export {
    /// Its identity.
    pub id: ExportId,
    /// Name on the wire, unique.
    pub name: String<NAME_BYTES>,
    /// A sentence for people.
    pub description: String<DESCRIPTION_BYTES>,
    /// What is served.
    pub backend: &'static Backend,
    flags: Flags,
    /// Sessions in transmission, those with requests still to come back included.
    pub sessions: u32,
}

impl Export {
    /// Whether clients may write, unless the backend is read-only.
    pub fn writable(&self) -> bool {
        self.flags.contains(Flags::WRITABLE)
    }

    fn is_going(&self) -> bool {
        self.flags.contains(Flags::GOING)
    }
}

bitflags::bitflags! {
    /// (Bits, not bools: an empty place of the table is then all zeroes, and the table lives in `.bss`.)
    #[derive(Clone, Copy)]
    struct Flags: u8 {
        const WRITABLE = 1 << 0;
        const GOING = 1 << 1;
    }
}

/// Why the table refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportError {
    /// No entry is free.
    Full,
    /// The name is empty, or name or description is too long.
    BadName,
    /// Another export has this name.
    NameInUse,
    /// There is no such export.
    NotFound,
    /// Clients use it (their number), and it was to be removed only if none does.
    InUse(u32),
}

impl fmt::Display for ExportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExportError::Full => f.write_str("no room for another export"),
            ExportError::BadName => f.write_str("name or description is empty or too long"),
            ExportError::NameInUse => f.write_str("the name is in use"),
            ExportError::NotFound => f.write_str("no such export"),
            ExportError::InUse(sessions) => write!(f, "in use by {sessions} clients"),
        }
    }
}

impl core::error::Error for ExportError {}

/// What to do about clients when an export is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoveMode {
    /// Refuse while there are any.
    Safe,
    /// Close their connections; requests that run are finished.
    Hard,
}

struct Entry {
    export: Export,
    unsettled: u32,
}

struct Table {
    entries: [Option<Entry>; EXPORTS],
    /// Number of the youngest export: identity and order at once.
    last: u32,
}

static TABLE: IrqLock<Table> = IrqLock::new(Table {
    entries: [const { None }; EXPORTS],
    last: 0,
});

/// Scheduled when the last session of a removed export has left.
static GONE: IrqLock<Option<BottomHalf>> = IrqLock::new(None);

/// Says who is scheduled when the last session of a removed export has left.
pub(super) fn set_gone(bottom_half: BottomHalf) {
    *GONE.lock() = Some(bottom_half);
}

/// Counts hard removals, so that sessions need not take the lock to see that nothing happened.
static REMOVALS: AtomicU32 = AtomicU32::new(0);

impl Table {
    fn entry(&mut self, id: ExportId) -> Option<&mut Entry> {
        self.entries
            .iter_mut()
            .flatten()
            .find(|entry| entry.export.id == id)
    }

    fn listed(&self) -> impl Iterator<Item = &Entry> {
        self.entries
            .iter()
            .flatten()
            .filter(|entry| !entry.export.is_going())
    }

    /// Whether a visible export serves the backend, and so listens to it.
    fn serves(&self, backend: &'static Backend) -> bool {
        self.listed()
            .any(|entry| core::ptr::eq(entry.export.backend, backend))
    }

    fn forget(&mut self, id: ExportId) {
        for slot in &mut self.entries {
            if slot.as_ref().is_some_and(|entry| entry.export.id == id) {
                *slot = None;
            }
        }
    }

    /// Whether that was the end of the entry.
    fn free_if_left(&mut self, id: ExportId) -> bool {
        for slot in &mut self.entries {
            if slot
                .as_ref()
                .is_some_and(|e| e.export.id == id && e.export.is_going() && e.export.sessions == 0)
            {
                *slot = None;
                return true;
            }
        }
        false
    }
}

/// Exports `backend` under `name`. The first one added is also the default, which clients get for the empty name. Main loop
/// only, since it registers a listener with the backend.
///
/// # Errors
/// [`ExportError::Full`], [`ExportError::BadName`], [`ExportError::NameInUse`].
pub fn add(
    name: &str,
    description: &str,
    backend: &'static Backend,
    writable: bool,
) -> Result<ExportId, ExportError> {
    if name.is_empty() {
        return Err(ExportError::BadName);
    }
    let name = String::try_from(name).map_err(|_| ExportError::BadName)?;
    let description = String::try_from(description).map_err(|_| ExportError::BadName)?;
    let (id, shared) = {
        let mut table = TABLE.lock();
        if table
            .entries
            .iter()
            .flatten()
            .any(|entry| entry.export.name == name)
        {
            return Err(ExportError::NameInUse);
        }
        let id = ExportId(table.last + 1);
        let shared = table.serves(backend);
        let flags = if writable {
            Flags::WRITABLE
        } else {
            Flags::empty()
        };
        let slot = table
            .entries
            .iter_mut()
            .find(|slot| slot.is_none())
            .ok_or(ExportError::Full)?;
        let export = Export {
            id,
            name,
            description,
            backend,
            sessions: 0,
            flags,
        };
        *slot = Some(Entry {
            export,
            unsettled: 0,
        });
        table.last += 1;
        (id, shared)
    };
    if !shared && backend.add_listener(super::nbd::listener()).is_err() {
        TABLE.lock().forget(id);
        return Err(ExportError::Full);
    }
    Ok(id)
}

/// Removes an export. Main loop only. `Ok(true)`: it is gone; `Ok(false)`: its sessions are being closed, wake them
/// ([`nbd::wake_all`](super::nbd::wake_all)) and look again with [`exists`].
///
/// # Errors
/// [`ExportError::NotFound`]; [`ExportError::InUse`] with [`RemoveMode::Safe`].
pub fn remove(name: &str, mode: RemoveMode) -> Result<bool, ExportError> {
    let (backend, shared, gone) = {
        let mut table = TABLE.lock();
        let entry = table
            .entries
            .iter_mut()
            .flatten()
            .find(|entry| entry.export.name == name && !entry.export.is_going());
        let entry = entry.ok_or(ExportError::NotFound)?;
        if entry.export.sessions > 0 && mode == RemoveMode::Safe {
            return Err(ExportError::InUse(entry.export.sessions));
        }
        entry.export.flags |= Flags::GOING;
        let (id, backend, gone) = (
            entry.export.id,
            entry.export.backend,
            entry.export.sessions == 0,
        );
        table.free_if_left(id);
        (backend, table.serves(backend), gone)
    };
    REMOVALS.fetch_add(1, Ordering::Release);
    if !shared {
        // Sessions that are still here are told to end; what they submit until they notice, the backend parks by itself.
        backend.remove_listener(super::nbd::listener());
    }
    Ok(gone)
}

/// Whether the export still has an entry: listed, or waiting for its last session.
pub fn exists(id: ExportId) -> bool {
    TABLE.lock().entry(id).is_some()
}

/// Exports that clients can see.
pub fn export_count() -> usize {
    TABLE.lock().listed().count()
}

/// Calls `f` with each export that clients can see, the oldest first, without holding the lock.
pub fn for_each(mut f: impl FnMut(&Export)) {
    let mut last = None;
    while let Some(export) = next_after(last) {
        last = Some(export.id);
        f(&export);
    }
}

/// The oldest visible export younger than `last` (the oldest of all for `None`).
pub(super) fn next_after(last: Option<ExportId>) -> Option<Export> {
    let after = last.map_or(0, |id| id.0);
    let table = TABLE.lock();
    let entry = table
        .listed()
        .filter(|e| e.export.id.0 > after)
        .min_by_key(|e| e.export.id.0)?;
    Some(entry.export.clone())
}

/// The export of that name; the oldest one for the empty name.
pub(super) fn find(name: &[u8]) -> Option<Export> {
    if name.is_empty() {
        return next_after(None);
    }
    let table = TABLE.lock();
    let entry = table
        .listed()
        .find(|entry| entry.export.name.as_bytes() == name)?;
    Some(entry.export.clone())
}

/// The answer to a session that wants to serve an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// It is counted in; [`leave`] counts it out.
    Admitted,
    /// Requests of broken connections still run (DUR-9): ask again when woken.
    Wait,
    /// The export is gone.
    Gone,
}

/// Counts a session in.
pub(super) fn enter(id: ExportId) -> Admission {
    match TABLE.lock().entry(id) {
        None => Admission::Gone,
        Some(entry) if entry.export.is_going() => Admission::Gone,
        Some(entry) if entry.unsettled > 0 => Admission::Wait,
        Some(entry) => {
            entry.export.sessions += 1;
            Admission::Admitted
        }
    }
}

/// Counts a session out, when its last request is back.
pub(super) fn leave(id: ExportId) {
    let mut table = TABLE.lock();
    if let Some(entry) = table.entry(id) {
        debug_assert!(entry.export.sessions > 0);
        entry.export.sessions = entry.export.sessions.saturating_sub(1);
    }
    let freed = table.free_if_left(id);
    drop(table);
    let gone = *GONE.lock();
    if let (true, Some(gone)) = (freed, gone) {
        gone.schedule();
    }
}

/// Notes that a session has ended with requests still running.
pub(super) fn unsettle(id: ExportId) {
    if let Some(entry) = TABLE.lock().entry(id) {
        entry.unsettled += 1;
    }
}

/// Takes back one [`unsettle`]; `true` if it was the last, so that waiting sessions can be woken.
pub(super) fn settle(id: ExportId) -> bool {
    let mut table = TABLE.lock();
    let Some(entry) = table.entry(id) else {
        return true;
    };
    debug_assert!(entry.unsettled > 0);
    entry.unsettled = entry.unsettled.saturating_sub(1);
    entry.unsettled == 0
}

/// How many removals there were; when it moves, sessions ask [`is_going`].
pub(super) fn removals() -> u32 {
    REMOVALS.load(Ordering::Acquire)
}

/// Whether the sessions of this export have to end.
pub(super) fn is_going(id: ExportId) -> bool {
    TABLE
        .lock()
        .entry(id)
        .is_none_or(|entry| entry.export.is_going())
}

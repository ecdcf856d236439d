//! Backends: a user's handle on a root node.
//!
//! A backend checks what its user sends, counts it in flight on the core that sent it, parks it while drained, splits what is
//! too large, and books what came of it. Any core may submit; creation, deletion, listeners and drained sections belong to
//! the main loop. The way of a request is in `path`, the drained section in [`drain`].
//!
//! | request | answer |
//! |---|---|
//! | write, write-zeroes, discard to something read-only | `ReadOnly` |
//! | not aligned to the logical block (a discard is rounded inwards instead) | `Invalid` |
//! | beyond the end: write, write-zeroes | `NoSpace` |
//! | beyond the end: read, discard | `Invalid` |
//! | segments that do not add up to the length | `Invalid` |
//! | nothing left: length 0, or a discard smaller than a block | success |
//! | no root node | `NoMedium` |
#![forbid(unsafe_code)]

use core::fmt::Write as _;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

mod path;

pub(crate) use path::beyond_end;

use super::BlockError;
use super::accounting::Totals;
use super::drain::{self, Section};
use super::gate::PerCore;
use super::graph::drain::Telling;
use super::graph::{self, Access, Permissions, Reason, Refusal};
use super::node::{BlockStatus, Name, NodeDriver, NodeId, NodeInfo};
use crate::arch::{self, CoreId};
use crate::config::{BACKENDS, MAX_CORES};
use crate::sync::{CachePadded, CoreArray, HomeCell, IrqLock};

/// Listeners of one backend.
pub const LISTENERS: usize = 4;

/// A user of a backend that wants to know of drained sections and size changes: an export, a device model. Called in the main
/// loop; must neither poll nor change the graph (DRN-8).
pub trait BackendListener: Sync {
    /// A drained section begins: take no new work (DRN-30). May wake other cores, must not wait for them.
    fn drained_begin(&self, backend: &'static Backend);

    /// Whether work is still under way that will submit more to the backend without further input from outside. Whoever says
    /// yes calls [`drain_kick`](super::drain_kick) when that ends. Requests already submitted are counted by the backend itself:
    /// say `false` for them.
    fn drained_poll(&self, backend: &'static Backend) -> bool {
        let _ = backend;
        false
    }

    /// The section is over: take up work again, and look once for what came meanwhile (EN-15).
    fn drained_end(&self, backend: &'static Backend);

    /// The root node has a new size, in bytes.
    fn resized(&self, backend: &'static Backend, size: u64) {
        let _ = (backend, size);
    }
}

/// What rarely changes; written by the main loop.
struct Meta {
    live: bool,
    name: Name,
    /// `None` instead of an empty text, so that the arena is all zeroes and lies in `.bss`.
    user: Option<&'static str>,
    root: Option<NodeId>,
}

const READ_ONLY: u32 = 1;
/// Requests are not parked in a drained section (DRN-27).
pub(super) const NO_PARKING: u32 = 2;
const ROOT_READ_ONLY: u32 = 4;
/// Its user must stay in its context (CTX-7).
const CONTEXT_FIXED: u32 = 8;
/// Its user has not asked the graph for writing.
const NO_WRITE: u32 = 16;

/// A user's handle on a root node.
pub struct Backend {
    meta: IrqLock<Meta>,
    index: AtomicU32,
    size: AtomicU64,
    /// Logical block minus one.
    block_mask: AtomicU32,
    /// Core of its context.
    home: AtomicU32,
    pub(super) flags: AtomicU32,
    /// `generation << 1 | parking`, for all cores.
    pub(crate) gate: AtomicU64,
    pub(crate) cores: CoreArray<PerCore>,
    pub(crate) section: HomeCell<Section>,
}

static ARENA: [Backend; BACKENDS] = [const { Backend::new() }; BACKENDS];

/// The backend with that [`index`](Backend::index), if it exists.
pub fn backend(index: usize) -> Option<&'static Backend> {
    ARENA.get(index).filter(|b| b.is_live())
}

/// All backends.
pub fn backends() -> impl Iterator<Item = &'static Backend> {
    ARENA.iter().filter(|b| b.is_live())
}

/// Places in the arena, live or not.
pub(crate) fn arena() -> &'static [Backend] {
    &ARENA
}

/// The backend of that name.
pub fn named(name: &str) -> Option<&'static Backend> {
    backends().find(|b| b.meta.lock().name == name)
}

impl Backend {
    const fn new() -> Self {
        Self {
            meta: IrqLock::new(Meta {
                live: false,
                name: Name::new(),
                user: None,
                root: None,
            }),
            index: AtomicU32::new(0),
            size: AtomicU64::new(0),
            block_mask: AtomicU32::new(0),
            home: AtomicU32::new(0),
            flags: AtomicU32::new(0),
            gate: AtomicU64::new(0),
            cores: CoreArray::new([const { CachePadded::new(PerCore::new()) }; MAX_CORES]),
            section: HomeCell::new(Section::new()),
        }
    }

    /// Makes a backend on a node, for a user that reads, and writes where the node can be written, and shares everything with others.
    /// `user` says who uses it (`"nbd"`, `"bench"`), for reports. Main loop only.
    ///
    /// # Errors
    /// `Invalid` for a bad name or off the main loop, `Busy` for a name in use or a node that another user keeps to itself,
    /// `NoMedium` for a stale node, `NoMemory` when the arena is full.
    pub fn create(
        name: &str,
        user: &'static str,
        root: NodeId,
    ) -> Result<&'static Self, BlockError> {
        let permissions = match graph::info(root) {
            Some(info) if !info.read_only => Permissions::SHARED_WRITER,
            _ => Permissions::READER,
        };
        Ok(Self::open(name, user, Some(root), permissions)?)
    }

    /// Makes a backend, on a node or without one, that needs and shares what `permissions` say. Main loop only.
    ///
    /// # Errors
    /// A bad name or one in use by a backend or a node, a stale node, what the node's other users keep to themselves, no room.
    pub fn open(
        name: &str,
        user: &'static str,
        root: Option<NodeId>,
        permissions: Permissions,
    ) -> Result<&'static Self, Refusal> {
        let refuse = |reason| Err(Refusal::new(name, reason));
        if arch::current_core() != Some(0) {
            return refuse(Reason::NotMainLoop);
        }
        if !graph::name_is_valid(name) {
            return refuse(Reason::BadName);
        }
        if named(name).is_some() || graph::find(name).is_some() {
            return refuse(Reason::NameInUse);
        }
        let Some((index, backend)) = ARENA.iter().enumerate().find(|(_, b)| !b.is_live()) else {
            return refuse(Reason::NoRoom("backends"));
        };
        backend.section.bind(0);
        for (core, per_core) in backend.cores.iter().enumerate() {
            per_core.gate.bind(core);
        }
        backend.index.store(index as u32, Ordering::Relaxed);
        backend.flags.store(0, Ordering::Relaxed);
        backend.size.store(0, Ordering::Relaxed);
        backend.block_mask.store(511, Ordering::Relaxed);
        backend.home.store(0, Ordering::Relaxed);
        for core in backend.cores.iter() {
            core.counters.clear();
            core.latencies.clear();
        }
        {
            let mut meta = backend.meta.lock();
            meta.live = true;
            meta.user = Some(user);
            meta.root = None;
            meta.name.clear();
            let _ = meta.name.write_str(name);
        }
        drain::created(backend, root.is_none());
        if let Some(root) = root
            && let Err(refusal) = backend.take_root(root, permissions)
        {
            backend.retire();
            return Err(refusal);
        }
        drain::open_gate(backend);
        Ok(backend)
    }

    /// Puts a node below a backend that has none. Main loop only. The node moves to the backend's context where it can, else the backend
    /// to the node's.
    ///
    /// # Errors
    /// A stale node, a root that is there already, what the node's other users keep to themselves, contexts that cannot meet; a node
    /// in a drained section while the backend is not quiet (`NotQuiet`).
    pub fn insert(&'static self, root: NodeId, permissions: Permissions) -> Result<(), Refusal> {
        let refuse = |reason| Err(Refusal::new(&self.name(), reason));
        if self.root().is_some() {
            return refuse(Reason::Slot);
        }
        // No request may reach a drained node (DRN-16).
        if graph::drain::quiesce_count(root) > 0 && !self.is_quiet() {
            return refuse(Reason::NotQuiet);
        }
        graph::attach_backend(self, root, permissions)?;
        if let Err(refusal) = graph::context::meet(self, root) {
            graph::detach_backend(self);
            return Err(refusal);
        }
        // Of sections over everything it now hears through its root.
        for _ in 0..graph::drain::sections_over_all() {
            self.drain_end();
        }
        self.note_permissions(permissions);
        self.refresh();
        Ok(())
    }

    /// A new backend's first root, whose context it takes over.
    fn take_root(&'static self, root: NodeId, permissions: Permissions) -> Result<(), Refusal> {
        if let Some(home) = graph::home(root) {
            self.set_home(home);
        }
        graph::attach_backend(self, root, permissions)?;
        self.note_permissions(permissions);
        self.refresh();
        Ok(())
    }

    fn note_permissions(&self, permissions: Permissions) {
        self.set_flag(NO_WRITE, !permissions.needs.contains(Access::WRITE));
    }

    /// Takes the root away. Main loop only, inside a drained section of this backend. Requests are answered with `NoMedium` from then
    /// on. The backend keeps its context (CTX-8), and the node the one that it has.
    ///
    /// # Errors
    /// `NotQuiet` outside a drained section; `InCallback` in a callback of one.
    pub fn eject(&'static self) -> Result<(), Refusal> {
        if Telling::is_on() {
            return Err(Refusal::new(&self.name(), Reason::InCallback));
        }
        if !self.is_quiet() {
            return Err(Refusal::new(&self.name(), Reason::NotQuiet));
        }
        // From here on it hears of sections over everything by itself; those that are on stay on.
        for _ in 0..graph::drain::sections_over_all() {
            self.begin_quietly();
        }
        graph::detach_backend(self);
        self.size.store(0, Ordering::Relaxed);
        Ok(())
    }

    /// Changes what the backend needs of its root and leaves to others there. Main loop only.
    ///
    /// # Errors
    /// What the node's other users keep to themselves.
    pub fn set_permissions(&'static self, permissions: Permissions) -> Result<(), Refusal> {
        graph::set_permissions(self, permissions)?;
        self.note_permissions(permissions);
        Ok(())
    }

    /// Takes the backend away. Main loop only, inside a drained section of this backend, which ends with it; its user has let go.
    ///
    /// # Errors
    /// `Busy` outside a drained section, and while requests are parked (DRN-28).
    pub fn delete(&'static self) -> Result<(), BlockError> {
        if !self.is_live() {
            return Err(BlockError::NoMedium);
        }
        if !self.is_quiet() || self.parked() != 0 || Telling::is_on() {
            return Err(BlockError::Busy);
        }
        graph::detach_backend(self);
        self.retire();
        Ok(())
    }

    /// Back to the arena.
    fn retire(&'static self) {
        self.meta.lock().live = false;
        drain::deleted(self);
    }

    fn is_live(&self) -> bool {
        self.meta.lock().live
    }

    /// Its number, for tables; stable while it lives.
    pub fn index(&self) -> usize {
        self.index.load(Ordering::Relaxed) as usize
    }

    /// Its name.
    pub fn name(&self) -> Name {
        self.meta.lock().name.clone()
    }

    /// Who uses it.
    pub fn user(&self) -> &'static str {
        self.meta.lock().user.unwrap_or("")
    }

    /// Its root node.
    pub fn root(&self) -> Option<NodeId> {
        self.meta.lock().root
    }

    /// Called by the graph alone.
    pub(super) fn set_root_id(&self, root: Option<NodeId>) {
        self.meta.lock().root = root;
    }

    pub(super) fn root_driver(&self) -> Option<&'static dyn NodeDriver> {
        graph::driver(self.root()?)
    }

    /// Core of its context: that of its root, or the last one's. A hint unless the backend is quiet or has a request in flight
    /// (CTX-12).
    pub fn home(&self) -> CoreId {
        self.home.load(Ordering::Relaxed) as CoreId
    }

    pub(super) fn set_home(&self, core: CoreId) {
        self.home.store(core as u32, Ordering::Relaxed);
    }

    /// Says whether its user must stay in its context; its root then refuses to move (CTX-7). Off by default: a user whose
    /// requests may come from any core does not care where the node is.
    pub fn set_context_fixed(&self, fixed: bool) {
        self.set_flag(CONTEXT_FIXED, fixed);
    }

    /// Whether its user must stay in its context.
    pub fn context_is_fixed(&self) -> bool {
        self.flags.load(Ordering::Relaxed) & CONTEXT_FIXED != 0
    }

    /// Bytes that can be addressed now.
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    /// Properties of the root node; `None` without one.
    pub fn limits(&self) -> Option<NodeInfo> {
        Some(self.root_driver()?.info())
    }

    /// The logical block size, in bytes.
    pub fn logical_block(&self) -> u32 {
        self.block_mask.load(Ordering::Relaxed) + 1
    }

    /// Whether writes are refused.
    pub fn read_only(&self) -> bool {
        self.flags.load(Ordering::Relaxed) & (READ_ONLY | ROOT_READ_ONLY | NO_WRITE) != 0
    }

    /// Refuses writes from now on, or allows them again where the node and the user's permissions do.
    pub fn set_read_only(&self, read_only: bool) {
        self.set_flag(READ_ONLY, read_only);
    }

    /// Whether requests that arrive in a drained section are parked (the default) or let through, for a user that answers
    /// [`BackendListener::drained_poll`] with "busy" until they are done (DRN-27).
    pub fn set_parking(&self, parking: bool) {
        self.set_flag(NO_PARKING, !parking);
    }

    fn set_flag(&self, flag: u32, on: bool) {
        if on {
            self.flags.fetch_or(flag, Ordering::Relaxed);
        } else {
            self.flags.fetch_and(!flag, Ordering::Relaxed);
        }
    }

    fn adopt(&self, info: &NodeInfo) {
        self.size.store(info.size, Ordering::Relaxed);
        self.block_mask
            .store(info.logical_block.max(512) - 1, Ordering::Relaxed);
        self.set_flag(ROOT_READ_ONLY, info.read_only);
    }

    /// The root's properties have changed. Main loop only.
    pub(crate) fn refresh(&'static self) {
        let Some(driver) = self.root_driver() else {
            return;
        };
        let before = self.size();
        self.adopt(&driver.info());
        if self.size() != before {
            drain::for_each_listener(self, |listener| listener.resized(self, self.size()));
        }
    }

    /// Allocation of the start of `[offset, offset + len)`: how long, and what. `None` for a range outside, or empty.
    pub fn block_status(&self, offset: u64, len: u64) -> Option<BlockStatus> {
        if len == 0 || offset.checked_add(len)? > self.size() {
            return None;
        }
        let mut status = self.root_driver()?.block_status(offset, len);
        status.len = status.len.clamp(1, len);
        Some(status)
    }

    /// Requests in flight, all cores: a snapshot for people; a drain collects one answer a core instead.
    pub fn in_flight(&self) -> u32 {
        self.cores
            .iter()
            .map(|core| core.in_flight.load(Ordering::Relaxed))
            .sum()
    }

    /// Requests parked by a drained section, all cores.
    pub fn parked(&self) -> u32 {
        self.cores
            .iter()
            .map(|core| core.parked.load(Ordering::Relaxed))
            .sum()
    }

    /// Counters, summed over all cores.
    pub fn stats(&self) -> Totals {
        let mut totals = Totals::default();
        for core in self.cores.iter() {
            core.counters.add_to(&mut totals);
            core.latencies.add_to(&mut totals);
        }
        totals
    }
}

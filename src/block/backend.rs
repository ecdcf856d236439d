//! Backends: a user's handle on a root node.
//!
//! A backend checks what its user sends, counts it in flight on the core that sent it, parks it while drained, splits what is
//! too large, and books what came of it. Any core may submit; creation, deletion, listeners and drained sections belong to
//! the main loop. The drained section is in [`drain`].
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

use super::accounting::Totals;
use super::drain::{self, Section};
use super::gate::PerCore;
use super::node::{self, Ascent, BlockStatus, Layer, Name, NodeDriver, NodeId, NodeInfo};
use super::request::{RequestFlags, RequestRecord, complete};
use super::token::InFlight;
use super::{BlockError, Operation, Request};
use crate::arch;
use crate::config::{BACKENDS, MAX_CORES, MAX_TRANSFER};
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

/// A user's handle on a root node.
pub struct Backend {
    meta: IrqLock<Meta>,
    index: AtomicU32,
    size: AtomicU64,
    /// Logical block minus one.
    block_mask: AtomicU32,
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

/// Whether a backend has the node as its root.
pub(crate) fn uses(id: NodeId) -> bool {
    backends().any(|b| b.meta.lock().root == Some(id))
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
            flags: AtomicU32::new(0),
            gate: AtomicU64::new(0),
            cores: CoreArray::new([const { CachePadded::new(PerCore::new()) }; MAX_CORES]),
            section: HomeCell::new(Section::new()),
        }
    }

    /// Makes a backend on a node. `user` says who uses it (`"nbd"`, `"bench"`), for reports. Main loop only.
    ///
    /// # Errors
    /// `Invalid` for a bad name or off the main loop, `Busy` for a name in use, `NoMedium` for a stale node, `NoMemory` when the
    /// arena is full.
    pub fn create(
        name: &str,
        user: &'static str,
        root: NodeId,
    ) -> Result<&'static Self, BlockError> {
        if arch::current_core() != Some(0) || !node::name_is_valid(name) {
            return Err(BlockError::Invalid);
        }
        let driver = node::driver(root).ok_or(BlockError::NoMedium)?;
        if backends().any(|b| b.meta.lock().name == name) {
            return Err(BlockError::Busy);
        }
        let (index, backend) = ARENA
            .iter()
            .enumerate()
            .find(|(_, b)| !b.is_live())
            .ok_or(BlockError::NoMemory)?;
        backend.section.bind(0);
        for (core, per_core) in backend.cores.iter().enumerate() {
            per_core.gate.bind(core);
        }
        backend.index.store(index as u32, Ordering::Relaxed);
        backend.flags.store(0, Ordering::Relaxed);
        for core in backend.cores.iter() {
            core.counters.clear();
        }
        backend.adopt(&driver.info());
        {
            let mut meta = backend.meta.lock();
            meta.live = true;
            meta.user = Some(user);
            meta.root = Some(root);
            meta.name.clear();
            let _ = meta.name.write_str(name);
        }
        drain::created(backend);
        Ok(backend)
    }

    /// Takes the backend away. Main loop only, inside a drained section of this backend, which ends with it; its user has let go.
    ///
    /// # Errors
    /// `Busy` outside a drained section, and while requests are parked (DRN-28).
    pub fn delete(&'static self) -> Result<(), BlockError> {
        if !self.is_live() {
            return Err(BlockError::NoMedium);
        }
        if !self.is_quiet() || self.parked() != 0 {
            return Err(BlockError::Busy);
        }
        {
            let mut meta = self.meta.lock();
            meta.live = false;
            meta.root = None;
        }
        drain::deleted(self);
        Ok(())
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

    pub(super) fn root_driver(&self) -> Option<&'static dyn NodeDriver> {
        node::driver(self.root()?)
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
        self.flags.load(Ordering::Relaxed) & (READ_ONLY | ROOT_READ_ONLY) != 0
    }

    /// Refuses writes from now on, or allows them again where the node does.
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
        }
        totals
    }

    /// Takes a request, on its home core. It comes back to its completion, always, later; never inside this call.
    #[inline]
    pub fn submit(&'static self, mut request: Request) {
        let core = request.home;
        let per_core = self.cores.get(core);
        // Counted before anything can see it (DRN-25); nothing is dropped on any path below.
        request.token = Some(InFlight::new(self, &request));
        match per_core.gate.with(|gate| (gate.parking, gate.root)) {
            (false, Some(root)) => self.admit(request, root),
            (parking, _) => self.submit_slowly(request, parking),
        }
    }

    #[inline]
    pub(super) fn admit(&'static self, mut request: Request, root: &'static dyn NodeDriver) {
        match self.check(&mut request) {
            Verdict::Pass => {}
            Verdict::Done(result) => return complete(request, result),
        }
        if request.len > MAX_TRANSFER && request.operation.has_data() {
            let (home, offset) = (request.home, request.offset);
            if !request.push_frame(self, home, 0) {
                return complete(request, Err(BlockError::NoMemory));
            }
            part(&mut request, offset, MAX_TRANSFER);
        }
        root.submit(request);
    }

    fn check(&self, request: &mut RequestRecord) -> Verdict {
        let operation = request.operation;
        if operation == Operation::Flush {
            request.offset = 0;
            request.len = 0;
            return Verdict::Pass;
        }
        if operation.is_write() && self.read_only() {
            return Verdict::Done(Err(BlockError::ReadOnly));
        }
        let mask = u64::from(self.block_mask.load(Ordering::Relaxed));
        let end = match request.offset.checked_add(request.len) {
            Some(end) if end <= self.size() => end,
            _ => return Verdict::Done(Err(beyond_end(operation))),
        };
        if (request.offset | request.len) & mask != 0 {
            if operation != Operation::Discard {
                return Verdict::Done(Err(BlockError::Invalid));
            }
            let start = (request.offset + mask) & !mask;
            request.offset = start;
            request.len = (end & !mask).saturating_sub(start);
        }
        if !request.data_fits() {
            return Verdict::Done(Err(BlockError::Invalid));
        }
        if request.len == 0 {
            return Verdict::Done(Ok(()));
        }
        Verdict::Pass
    }
}

enum Verdict {
    Pass,
    Done(Result<(), BlockError>),
}

/// The error of a request beyond the end.
pub(crate) fn beyond_end(operation: Operation) -> BlockError {
    match operation {
        Operation::Write | Operation::WriteZeroes => BlockError::NoSpace,
        _ => BlockError::Invalid,
    }
}

/// Moves the window to a part of the frame's. The parts go one after another, so the flush of the last one covers them all.
fn part(request: &mut RequestRecord, offset: u64, len: u64) {
    request.set_window(offset, len);
    let frame = request.frame();
    let (end, flags) = (frame.offset + frame.len, frame.flags);
    request.flags = if offset + len < end {
        flags - RequestFlags::FUA
    } else {
        flags
    };
}

impl Layer for Backend {
    fn completed(&'static self, mut request: Request) -> Ascent {
        let next = request.offset + request.len;
        let end = request.frame().offset + request.frame().len;
        if request.result.is_ok() && next < end {
            if let Some(root) = self.root_driver() {
                part(&mut request, next, (end - next).min(MAX_TRANSFER));
                root.submit(request);
                return Ascent::Taken;
            }
            request.result = Err(BlockError::NoMedium);
        }
        request.leave();
        Ascent::Up(request)
    }
}

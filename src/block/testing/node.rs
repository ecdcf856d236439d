//! A node that does what a test says: passes on or holds, and counts what it is told.
//!
//! Host only.

use std::boxed::Box;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::vec::Vec;

use crate::arch::CoreId;
use crate::block::graph::{self, Access, Link, Permissions, Refusal};
use crate::block::node::{Ascent, Layer, NodeDriver, NodeId, NodeInfo};
use crate::block::{BlockError, Request, complete, drain_kick};

/// A call of the graph, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// `drain_begin`.
    DrainBegin,
    /// `drain_end`.
    DrainEnd,
    /// `detach_context`.
    Detach,
    /// `attach_context`, with the core.
    Attach(CoreId),
    /// `cancel_context`.
    Cancel,
    /// `release`.
    Release,
}

/// A node with up to four children. Without any it is a leaf that answers by itself; with some it passes everything to the first.
pub struct TestNode {
    links: Box<[Link]>,
    size: u64,
    holding: AtomicBool,
    held: Mutex<VecDeque<Request>>,
    busy: AtomicBool,
    refuse_context: AtomicBool,
    /// Drained sections that the driver was told of, less those whose end it was told of.
    drained: AtomicI32,
    begins: AtomicU32,
    submitted: AtomicUsize,
    /// Requests that came while the driver was drained.
    slipped: AtomicUsize,
    heard: Mutex<Vec<Heard>>,
    /// By slot.
    child_permissions: Mutex<[Option<Permissions>; 4]>,
    hook: Mutex<Option<fn(Heard)>>,
    read_only: AtomicBool,
}

impl TestNode {
    /// A leaf of `size` bytes, living for ever.
    pub fn leaf(size: u64) -> &'static Self {
        Self::with_links(size, 0)
    }

    /// A filter with `children` places.
    pub fn filter(children: usize) -> &'static Self {
        Self::with_links(0, children)
    }

    fn with_links(size: u64, children: usize) -> &'static Self {
        Box::leak(Box::new(Self {
            links: (0..children).map(|_| Link::new()).collect(),
            size,
            holding: AtomicBool::new(false),
            held: Mutex::new(VecDeque::new()),
            busy: AtomicBool::new(false),
            refuse_context: AtomicBool::new(false),
            drained: AtomicI32::new(0),
            begins: AtomicU32::new(0),
            submitted: AtomicUsize::new(0),
            slipped: AtomicUsize::new(0),
            heard: Mutex::new(Vec::new()),
            child_permissions: Mutex::new([None; 4]),
            hook: Mutex::new(None),
            read_only: AtomicBool::new(false),
        }))
    }

    /// Puts it into the graph, over `children` in the order of the slots.
    ///
    /// # Errors
    /// Those of [`graph::add`] and [`graph::attach`]; then it is not in the graph.
    pub fn add(&'static self, name: &str, children: &[NodeId]) -> Result<NodeId, Refusal> {
        let id = graph::add(name, self)?;
        for (slot, child) in children.iter().enumerate() {
            if let Err(refusal) = graph::attach(id, slot, *child) {
                graph::delete(id)?;
                return Err(refusal);
            }
        }
        Ok(id)
    }

    /// Holds requests from now on (or not), those of a leaf and of a filter.
    pub fn set_holding(&self, holding: bool) {
        self.holding.store(holding, Ordering::Relaxed);
    }

    /// Lets go what it holds, oldest first: a leaf answers, a filter passes on.
    pub fn let_go(&self, result: Result<(), BlockError>) -> usize {
        let held: Vec<Request> = self.lock(&self.held).drain(..).collect();
        let count = held.len();
        for request in held {
            match self.links.first() {
                Some(link) => link.submit(request),
                None => complete(request, result),
            }
        }
        count
    }

    /// What it answers to `drain_poll`; kicks when it is over.
    pub fn set_busy(&self, busy: bool) {
        self.busy.store(busy, Ordering::Relaxed);
        if !busy {
            drain_kick();
        }
    }

    /// Refuses to move from now on.
    pub fn set_refuse_context(&self, refuse: bool) {
        self.refuse_context.store(refuse, Ordering::Relaxed);
    }

    /// What it needs of its children, instead of what is needed of it.
    pub fn set_child_permissions(&self, permissions: Option<Permissions>) {
        *self.lock(&self.child_permissions) = [permissions; 4];
    }

    /// The same for one child.
    pub fn set_permissions_of(&self, slot: usize, permissions: Option<Permissions>) {
        self.lock(&self.child_permissions)[slot] = permissions;
    }

    /// Calls `hook` from inside whatever the graph tells the node.
    pub fn set_hook(&self, hook: Option<fn(Heard)>) {
        *self.lock(&self.hook) = hook;
    }

    /// Cannot be written.
    pub fn set_read_only(&self, read_only: bool) {
        self.read_only.store(read_only, Ordering::Relaxed);
    }

    /// `drain_begin`s less `drain_end`s: 0 or 1.
    pub fn drained(&self) -> i32 {
        self.drained.load(Ordering::Relaxed)
    }

    /// How often `drain_begin` was called at all.
    pub fn begins(&self) -> u32 {
        self.begins.load(Ordering::Relaxed)
    }

    /// Requests that came.
    pub fn submitted(&self) -> usize {
        self.submitted.load(Ordering::Relaxed)
    }

    /// Requests that came in a drained section.
    pub fn slipped(&self) -> usize {
        self.slipped.load(Ordering::Relaxed)
    }

    /// Requests that it holds.
    pub fn held(&self) -> usize {
        self.lock(&self.held).len()
    }

    /// What it was told, taking it away.
    pub fn heard(&self) -> Vec<Heard> {
        core::mem::take(&mut *self.lock(&self.heard))
    }

    fn hear(&self, what: Heard) {
        self.lock(&self.heard).push(what);
        let hook = *self.lock(&self.hook);
        if let Some(hook) = hook {
            hook(what);
        }
    }

    fn lock<'a, T>(&self, mutex: &'a Mutex<T>) -> std::sync::MutexGuard<'a, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Layer for TestNode {
    fn completed(&'static self, mut request: Request) -> Ascent {
        request.leave();
        Ascent::Up(request)
    }
}

impl NodeDriver for TestNode {
    fn info(&self) -> NodeInfo {
        let child = self
            .links
            .first()
            .and_then(Link::driver)
            .map(NodeDriver::info);
        NodeInfo {
            kind: "test",
            size: child.map_or(self.size, |child| child.size),
            logical_block: 512,
            physical_block: 512,
            optimal_io: 0,
            discard_align: 0,
            read_only: self.read_only.load(Ordering::Relaxed)
                || child.is_some_and(|child| child.read_only),
            discard: true,
            fast_zeroes: true,
            writeback: true,
            cost: child.map_or(0, |child| child.cost),
            depth: child.map_or(0, |child| child.depth),
        }
    }

    fn submit(&'static self, request: Request) {
        self.submitted.fetch_add(1, Ordering::Relaxed);
        if self.drained() > 0 {
            self.slipped.fetch_add(1, Ordering::Relaxed);
        }
        if self.holding.load(Ordering::Relaxed) {
            return self.lock(&self.held).push_back(request);
        }
        match self.links.first() {
            Some(link) => link.submit(request),
            None => complete(request, Ok(())),
        }
    }

    fn links(&'static self) -> &'static [Link] {
        &self.links
    }

    fn permissions(&self, slot: usize, above: Permissions) -> Permissions {
        self.lock(&self.child_permissions)[slot].unwrap_or(above)
    }

    fn drain_begin(&'static self) {
        self.drained.fetch_add(1, Ordering::Relaxed);
        self.begins.fetch_add(1, Ordering::Relaxed);
        self.hear(Heard::DrainBegin);
    }

    fn drain_poll(&'static self) -> bool {
        self.busy.load(Ordering::Relaxed)
    }

    fn drain_end(&'static self) {
        self.drained.fetch_sub(1, Ordering::Relaxed);
        self.hear(Heard::DrainEnd);
    }

    fn check_context(&'static self, _core: CoreId) -> Result<(), BlockError> {
        if self.refuse_context.load(Ordering::Relaxed) {
            Err(BlockError::NotSupported)
        } else {
            Ok(())
        }
    }

    fn cancel_context(&'static self) {
        self.hear(Heard::Cancel);
    }

    fn detach_context(&'static self) {
        self.hear(Heard::Detach);
    }

    fn attach_context(&'static self, core: CoreId) {
        self.hear(Heard::Attach(core));
    }

    fn release(&'static self) {
        self.hear(Heard::Release);
    }
}

/// Writes, and lets nobody else.
pub const EXCLUSIVE: Permissions = Permissions {
    needs: Access::READ.union(Access::WRITE),
    shares: Access::READ,
};

//! Drained sections on nodes and on everything.
//!
//! Beginning one (a node's count goes 0→1) tells every parent through its edge, parents first, then the node's driver; a parent that
//! is a node does the same upwards, one that is a backend begins a section of its own ([`block::drain`](crate::block::drain)). Each
//! edge remembers that it did, so that the end, a new link or a deletion undoes exactly that (DRN-5 … DRN-7, DRN-20). Nothing here
//! polls but [`drained`] and [`drained_all`], which are for the main loop outside coroutines.
//!
//! A node is quiet when nothing above it is busy: every backend has had its answers, no driver has work of its own (DRN-9). Requests
//! of other users to the node's children go on (DRN-2).
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU32, Ordering};

use heapless::Vec;

use super::arena::{self, Parent, driver_at, for_each_above, with};
use crate::aio::{self, Callback};
use crate::arch;
use crate::block::BlockError;
use crate::block::backend::{self, Backend};
use crate::block::drain::kick;
use crate::block::node::NodeId;
use crate::config::{DRAIN_WAITERS, NODES};
use crate::sync::{HomeCell, caller_levels};

/// Sections over everything: what is created meanwhile starts with so many (DRN-18).
static SECTIONS: AtomicU32 = AtomicU32::new(0);

/// Drivers and listeners that are being told of something just now, one inside the other. Main loop only.
static TELLING: AtomicU32 = AtomicU32::new(0);

/// While this lives, drivers and listeners are being told: the graph stays as it is, and nobody waits (DRN-8).
pub(crate) struct Telling(());

impl Telling {
    pub(crate) fn begin() -> Self {
        TELLING.fetch_add(1, Ordering::Relaxed);
        Self(())
    }

    /// Whether somebody is being told.
    pub(crate) fn is_on() -> bool {
        TELLING.load(Ordering::Relaxed) != 0
    }
}

impl Drop for Telling {
    fn drop(&mut self) {
        TELLING.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What somebody waits for to be quiet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Target {
    Node(NodeId),
    All,
}

static WAITING: HomeCell<Vec<(Target, Callback), DRAIN_WAITERS>> = HomeCell::new(Vec::new());

/// Prepares the main loop's part.
pub(crate) fn start() -> Result<(), BlockError> {
    WAITING.bind(0);
    super::context::start();
    super::change::start();
    super::report::start();
    super::coroutine::start()
}

/// Sections over everything that are on.
pub(crate) fn sections_over_all() -> u32 {
    SECTIONS.load(Ordering::Relaxed)
}

/// One more section on the node in `place` (DRN-5). Never waits.
pub(super) fn begin_at(place: u16) {
    let first = with(|graph| {
        let node = graph.node(place);
        node.quiesce += 1;
        node.quiesce == 1
    });
    if !first {
        return;
    }
    let _telling = Telling::begin();
    for_each_above(place, |edge, _| quiesce_edge(edge));
    if let Some(driver) = driver_at(place) {
        driver.drain_begin();
    }
}

/// One section less. On the last, the node's driver hears first, then the parents. Never waits (DRN-11).
pub(super) fn end_at(place: u16) {
    let last = with(|graph| {
        let node = graph.node(place);
        debug_assert!(node.quiesce > 0, "a drained section ended that never began");
        node.quiesce = node.quiesce.saturating_sub(1);
        node.quiesce == 0
    });
    if !last {
        return;
    }
    let _telling = Telling::begin();
    if let Some(driver) = driver_at(place) {
        driver.drain_end();
    }
    for_each_above(place, |edge, _| release_edge(edge));
}

/// Quiesces the parent through the edge, once.
pub(super) fn quiesce_edge(place: u16) {
    let parent = with(|graph| {
        let edge = graph.edge_mut(place).filter(|edge| !edge.quiesced)?;
        edge.quiesced = true;
        Some(edge.parent)
    });
    match parent {
        Some(Parent::Node(node)) => begin_at(node),
        Some(Parent::Backend(index)) => {
            if let Some(backend) = backend::backend(usize::from(index)) {
                backend.begin_quietly();
            }
        }
        None => {}
    }
}

/// Undoes what [`quiesce_edge`] did through this edge, if it did.
pub(super) fn release_edge(place: u16) {
    let parent = with(|graph| {
        let edge = graph.edge_mut(place).filter(|edge| edge.quiesced)?;
        edge.quiesced = false;
        Some(edge.parent)
    });
    release_parent(parent);
}

/// Undoes one quiescing of a parent whose edge is gone or open already.
pub(super) fn release_parent(parent: Option<Parent>) {
    match parent {
        Some(Parent::Node(node)) => end_at(node),
        Some(Parent::Backend(index)) => {
            if let Some(backend) = backend::backend(usize::from(index)) {
                backend.drain_end();
            }
        }
        None => {}
    }
}

/// Whether nothing is under way in the node or above it (DRN-9). It may begin again at once unless a section is on.
pub(super) fn quiet_at(place: u16) -> bool {
    // A diamond's top is looked at once.
    let mut seen = 0u64;
    quiet_upwards(place, &mut seen)
}

/// Whether a backend above the node is in a drained section, of its own or through an edge. Main loop only.
pub(crate) fn user_drains(id: NodeId) -> bool {
    let mut seen = 0u64;
    with(|graph| graph.place(id)).is_some_and(|place| drains_upwards(place, &mut seen))
}

fn drains_upwards(place: u16, seen: &mut u64) -> bool {
    if *seen & (1 << place) != 0 {
        return false;
    }
    *seen |= 1 << place;
    let mut drains = false;
    for_each_above(place, |_, edge| {
        drains = drains
            || match edge.parent {
                Parent::Node(parent) => drains_upwards(parent, seen),
                Parent::Backend(index) => {
                    backend::backend(usize::from(index)).is_some_and(|b| b.quiesce_count() > 0)
                }
            };
    });
    drains
}

fn quiet_upwards(place: u16, seen: &mut u64) -> bool {
    if *seen & (1 << place) != 0 {
        return true;
    }
    *seen |= 1 << place;
    let (driver, pins) = with(|graph| {
        let node = graph.node(place);
        (node.driver, node.pins)
    });
    if pins != 0 || driver.is_some_and(|driver| driver.drain_poll()) {
        return false;
    }
    let mut quiet = true;
    for_each_above(place, |_, edge| {
        quiet = quiet
            && match edge.parent {
                Parent::Node(parent) => quiet_upwards(parent, seen),
                Parent::Backend(index) => {
                    backend::backend(usize::from(index)).is_none_or(Backend::is_quiet)
                }
            };
    });
    quiet
}

fn all_quiet() -> bool {
    let busy = |place: u16| {
        let (driver, pins) = with(|graph| {
            let node = graph.node(place);
            (node.driver, node.pins)
        });
        driver.is_some_and(|driver| pins != 0 || driver.drain_poll())
    };
    backend::backends().all(Backend::is_quiet) && !(0..NODES as u16).any(busy)
}

/// Whether the node is in a drained section and quiet. A node that is gone is quiet. Main loop only.
pub fn is_quiet(id: NodeId) -> bool {
    match with(|graph| {
        let place = graph.place(id)?;
        Some((place, graph.node(place).quiesce))
    }) {
        Some((place, quiesce)) => quiesce > 0 && quiet_at(place),
        None => true,
    }
}

/// How many drained sections are on the node, those through its children included. Main loop only.
pub fn quiesce_count(id: NodeId) -> u32 {
    with(|graph| graph.place(id).map_or(0, |place| graph.node(place).quiesce))
}

fn may_begin() -> Result<(), BlockError> {
    if caller_levels() != 0 {
        return Err(BlockError::Busy);
    }
    main_loop()
}

/// Whether the caller may wait in a nested loop for what others do.
fn may_wait() -> Result<(), BlockError> {
    main_loop()?;
    if Telling::is_on() {
        return Err(BlockError::Busy);
    }
    Ok(())
}

fn main_loop() -> Result<(), BlockError> {
    if arch::current_core() == Some(0) {
        Ok(())
    } else {
        Err(BlockError::Invalid)
    }
}

fn wait_for(target: Target, done: Callback) -> Result<(), BlockError> {
    WAITING
        .with(|waiting| waiting.push((target, done)))
        .map_err(|_| BlockError::NoMemory)
}

/// Begins a drained section on the node: `done` is called in the main loop, later, when it is quiet. Sections nest. Main loop only.
///
/// # Errors
/// `Busy` while this core holds a context lock; `Invalid` off the main loop; `NoMedium` for a stale id; `NoMemory` when too many
/// wait already. On an error no section has begun.
pub fn drain_begin(id: NodeId, done: Callback) -> Result<(), BlockError> {
    may_begin()?;
    let place = with(|graph| graph.place(id)).ok_or(BlockError::NoMedium)?;
    wait_for(Target::Node(id), done)?;
    begin_at(place);
    kick();
    Ok(())
}

/// Begins a section without anybody waiting for it (DRN-10). Main loop only.
///
/// # Errors
/// `Invalid` off the main loop; `NoMedium` for a stale id.
pub fn begin_no_wait(id: NodeId) -> Result<(), BlockError> {
    main_loop()?;
    let place = with(|graph| graph.place(id)).ok_or(BlockError::NoMedium)?;
    begin_at(place);
    kick();
    Ok(())
}

/// Ends a section on the node. Never waits. A node that is gone took its sections with it. Whoever still waits for it to be quiet, and
/// for whom no section is left, waits no longer: he is called as well. Main loop only.
pub fn drain_end(id: NodeId) {
    if let Some(place) = with(|graph| graph.place(id)) {
        end_at(place);
        kick_waiting();
    }
}

/// A section is over: those who waited in vain hear of it.
fn kick_waiting() {
    if WAITING.with(|waiting| !waiting.is_empty()) {
        kick();
    }
}

/// Calls `done`, in the main loop, later, when the node is quiet; a section on it must be on, begun by whoever asks. Main loop only.
///
/// # Errors
/// `NoMemory` when too many wait already.
pub fn when_quiet(id: NodeId, done: Callback) -> Result<(), BlockError> {
    wait_for(Target::Node(id), done)?;
    kick();
    Ok(())
}

/// Calls `done`, in the main loop, later, when everything is quiet; a section over everything must be on. Main loop only.
///
/// # Errors
/// `NoMemory` when too many wait already.
pub fn when_all_quiet(done: Callback) -> Result<(), BlockError> {
    wait_for(Target::All, done)?;
    kick();
    Ok(())
}

/// Begins a drained section on the node and waits until it is quiet; the guard ends it. Main loop only, outside coroutines; allowed
/// between `acquire` and `release` of the main context.
///
/// # Errors
/// `Invalid` off the main loop; `NoMedium` for a stale id; `Busy` in a callback of a drained section (DRN-8).
pub fn drained(id: NodeId) -> Result<NodeDrained, BlockError> {
    may_wait()?;
    begin_no_wait(id)?;
    let guard = NodeDrained(id);
    aio::wait_while(|| !is_quiet(id));
    Ok(guard)
}

/// A drained section on a node; ends when dropped (CS-6).
#[must_use = "the section ends when the guard is dropped"]
pub struct NodeDrained(NodeId);

impl Drop for NodeDrained {
    fn drop(&mut self) {
        drain_end(self.0);
    }
}

/// Begins a drained section on every node and backend, also on those created before it ends (DRN-21); `done` as for
/// [`drain_begin`]. Main loop only.
///
/// # Errors
/// As [`drain_begin`].
pub fn drain_all_begin(done: Callback) -> Result<(), BlockError> {
    may_begin()?;
    wait_for(Target::All, done)?;
    begin_all();
    Ok(())
}

/// Begins a section over everything without anybody waiting for it. Main loop only.
pub(super) fn begin_all() {
    SECTIONS.fetch_add(1, Ordering::Relaxed);
    arena::for_each_node(|id| {
        if let Some(place) = with(|graph| graph.place(id)) {
            begin_at(place);
        }
    });
    // A backend without a node has no edge to hear through (DRN-23).
    for backend in backend::backends().filter(|backend| backend.root().is_none()) {
        backend.begin_quietly();
    }
    kick();
}

/// Ends a section over everything. Main loop only.
pub fn drain_all_end() {
    let before = SECTIONS.fetch_sub(1, Ordering::Relaxed);
    debug_assert!(
        before > 0,
        "a section over everything ended that never began"
    );
    arena::for_each_node(drain_end);
    for backend in backend::backends().filter(|backend| backend.root().is_none()) {
        backend.drain_end();
    }
    kick_waiting();
}

/// Begins a section over everything and waits until it is quiet; the guard ends it. Main loop only, outside coroutines.
///
/// # Errors
/// `Invalid` off the main loop; `Busy` in a callback of a drained section (DRN-8).
pub fn drained_all() -> Result<AllDrained, BlockError> {
    may_wait()?;
    begin_all();
    let guard = AllDrained(());
    aio::wait_while(|| !all_quiet());
    Ok(guard)
}

/// A drained section over everything; ends when dropped (CS-6).
#[must_use = "the section ends when the guard is dropped"]
pub struct AllDrained(());

impl Drop for AllDrained {
    fn drop(&mut self) {
        drain_all_end();
    }
}

/// Tells those whose target is quiet by now, or no longer in any section; from the drain's bottom half, after the backends have moved on.
pub(crate) fn finish_waiting() {
    super::context::finish_moves();
    loop {
        let waiting = WAITING.with(|waiting| waiting.clone());
        let ready = waiting.iter().position(|(target, _)| match target {
            Target::Node(id) => quiesce_count(*id) == 0 || is_quiet(*id),
            Target::All => sections_over_all() == 0 || all_quiet(),
        });
        let Some(place) = ready else { return };
        let (_, done) = WAITING.with(|waiting| waiting.remove(place));
        done.call();
    }
}

//! Nodes and edges: two static tables behind one lock, chained by index.
//!
//! The lock is held for a few instructions, never while a driver is called. Only the main loop writes.
#![forbid(unsafe_code)]

use core::fmt::Write as _;

use heapless::Vec;

use super::permissions::Permissions;
use super::refusal::{Reason, Refusal};
use super::{drain, link};
use crate::arch::{self, CoreId};
use crate::block::backend;
use crate::block::node::{NAME_LEN, Name, NodeDriver, NodeId, NodeInfo};
use crate::config::{BACKENDS, EDGES, NODES};
use crate::sync::IrqLock;

/// Who stands at the upper end of an edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parent {
    /// A node: its place in the arena.
    Node(u16),
    /// A backend: its index.
    Backend(u16),
}

/// An edge: parent, child, and what the one may do to the other.
#[derive(Clone, Copy)]
pub(super) struct Edge {
    pub parent: Parent,
    /// The child's place in the arena.
    pub child: u16,
    /// Which of the parent's children it is.
    pub slot: u8,
    /// The parent was quiesced through this edge (DRN-7).
    pub quiesced: bool,
    pub permissions: Permissions,
    /// The next edge to the same child; places plus one, 0 ends the chain.
    next_above: u16,
    /// The next edge of the same parent node.
    next_below: u16,
}

pub(super) struct Node {
    generation: u16,
    pub driver: Option<&'static dyn NodeDriver>,
    name: Name,
    above: u16,
    below: u16,
    /// Drained sections on the node, those through its children included.
    pub quiesce: u32,
    /// What keeps it busy besides requests: coroutines on their way to a drained section.
    pub pins: u32,
    pub home: u8,
}

impl Node {
    const EMPTY: Self = Self {
        generation: 0,
        driver: None,
        name: Name::new(),
        above: 0,
        below: 0,
        quiesce: 0,
        pins: 0,
        home: 0,
    };
}

pub(super) struct Graph {
    nodes: [Node; NODES],
    edges: [Option<Edge>; EDGES],
}

static GRAPH: IrqLock<Graph> = IrqLock::new(Graph {
    nodes: [const { Node::EMPTY }; NODES],
    edges: [const { None }; EDGES],
});

const _: () = assert!(NODES <= 64, "one bit a node");
const _: () = assert!(EDGES >= NODES + BACKENDS);

impl Graph {
    /// The node behind an id that is not stale.
    pub fn place(&self, id: NodeId) -> Option<u16> {
        let node = self.nodes.get(usize::from(id.index))?;
        (node.driver.is_some() && node.generation == id.generation).then_some(id.index)
    }

    pub fn node(&mut self, place: u16) -> &mut Node {
        &mut self.nodes[usize::from(place)]
    }

    pub fn id(&self, place: u16) -> NodeId {
        NodeId {
            index: place,
            generation: self.nodes[usize::from(place)].generation,
        }
    }

    pub fn edge(&self, place: u16) -> Option<&Edge> {
        self.edges.get(usize::from(place))?.as_ref()
    }

    pub fn edge_mut(&mut self, place: u16) -> Option<&mut Edge> {
        self.edges.get_mut(usize::from(place))?.as_mut()
    }

    /// Edges to `child`, beginning behind the edge `after`.
    fn next_above(&self, child: u16, after: Option<u16>) -> Option<u16> {
        let next = match after {
            None => self.nodes[usize::from(child)].above,
            Some(edge) => self.edge(edge)?.next_above,
        };
        next.checked_sub(1)
    }

    fn next_below(&self, parent: u16, after: Option<u16>) -> Option<u16> {
        let next = match after {
            None => self.nodes[usize::from(parent)].below,
            Some(edge) => self.edge(edge)?.next_below,
        };
        next.checked_sub(1)
    }

    /// Adds an edge at the head of its chains.
    pub fn link(
        &mut self,
        parent: Parent,
        child: u16,
        slot: u8,
        permissions: Permissions,
    ) -> Option<u16> {
        let place = self.edges.iter().position(Option::is_none)? as u16;
        let child_node = &mut self.nodes[usize::from(child)];
        let next_above = core::mem::replace(&mut child_node.above, place + 1);
        let next_below = match parent {
            Parent::Node(parent) => {
                core::mem::replace(&mut self.nodes[usize::from(parent)].below, place + 1)
            }
            Parent::Backend(_) => 0,
        };
        self.edges[usize::from(place)] = Some(Edge {
            parent,
            child,
            slot,
            quiesced: false,
            permissions,
            next_above,
            next_below,
        });
        Some(place)
    }

    /// Takes an edge out of its chains.
    pub fn unlink(&mut self, place: u16) -> Option<Edge> {
        let edge = self.edges.get_mut(usize::from(place))?.take()?;
        let above = Self::cut(
            &mut self.nodes[usize::from(edge.child)].above,
            &mut self.edges,
            place,
            edge.next_above,
            |edge| &mut edge.next_above,
        );
        debug_assert!(above, "an edge is in its child's chain");
        if let Parent::Node(parent) = edge.parent {
            let below = Self::cut(
                &mut self.nodes[usize::from(parent)].below,
                &mut self.edges,
                place,
                edge.next_below,
                |edge| &mut edge.next_below,
            );
            debug_assert!(below, "an edge is in its parent's chain");
        }
        Some(edge)
    }

    /// The edge from `parent` in `slot`.
    pub fn edge_of(&self, parent: Parent, slot: u8) -> Option<u16> {
        let matches = |edge: &Option<Edge>| {
            edge.is_some_and(|edge| edge.parent == parent && edge.slot == slot)
        };
        self.edges
            .iter()
            .position(matches)
            .map(|place| place as u16)
    }

    fn cut(
        head: &mut u16,
        edges: &mut [Option<Edge>; EDGES],
        place: u16,
        next: u16,
        of: impl Fn(&mut Edge) -> &mut u16,
    ) -> bool {
        if *head == place + 1 {
            *head = next;
            return true;
        }
        let mut at = *head;
        while let Some(edge) = at
            .checked_sub(1)
            .and_then(|at| edges[usize::from(at)].as_mut())
        {
            let link = of(edge);
            if *link == place + 1 {
                *link = next;
                return true;
            }
            at = *link;
        }
        false
    }
}

/// Lends the tables to `f`; must not call drivers.
pub(super) fn with<R>(f: impl FnOnce(&mut Graph) -> R) -> R {
    f(&mut GRAPH.lock())
}

/// Calls `f` with the edges to `child`, without the lock. The graph must not change meanwhile (DRN-8).
pub(super) fn for_each_above(child: u16, mut f: impl FnMut(u16, Edge)) {
    let mut last = None;
    while let Some((place, edge)) = with(|graph| {
        let place = graph.next_above(child, last)?;
        Some((place, *graph.edge(place)?))
    }) {
        last = Some(place);
        f(place, edge);
    }
}

/// Calls `f` with the edges from `parent` down, without the lock; not in the order of the slots.
pub(super) fn for_each_below(parent: u16, mut f: impl FnMut(u16, Edge)) {
    let mut last = None;
    while let Some((place, edge)) = with(|graph| {
        let place = graph.next_below(parent, last)?;
        Some((place, *graph.edge(place)?))
    }) {
        last = Some(place);
        f(place, edge);
    }
}

/// The driver in that place.
pub(super) fn driver_at(place: u16) -> Option<&'static dyn NodeDriver> {
    with(|graph| graph.node(place).driver)
}

/// Whether a name may be given: a letter first, then letters, digits, `-`, `.`, `_`.
pub fn name_is_valid(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic())
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
        && name.len() <= NAME_LEN
}

/// Puts a node into the graph, in the main loop's context. Main loop, or before the loops run. Inside a drained section over
/// everything it begins drained (DRN-18).
///
/// # Errors
/// A bad name or one in use by a node or a backend; no room.
pub fn add(name: &str, driver: &'static dyn NodeDriver) -> Result<NodeId, Refusal> {
    add_at(name, driver, 0)
}

/// Like [`add`], with core `home` as its context.
///
/// # Errors
/// Those of [`add`].
pub fn add_at(
    name: &str,
    driver: &'static dyn NodeDriver,
    home: CoreId,
) -> Result<NodeId, Refusal> {
    let refuse = |reason| Err(Refusal::new(name, reason));
    if !name_is_valid(name) {
        return refuse(Reason::BadName);
    }
    if find(name).is_some() || backend::named(name).is_some() {
        return refuse(Reason::NameInUse);
    }
    if drain::Telling::is_on() {
        return refuse(Reason::InCallback);
    }
    let sections = drain::sections_over_all();
    let id = with(|graph| {
        let place = graph.nodes.iter().position(|node| node.driver.is_none())? as u16;
        let node = graph.node(place);
        node.driver = Some(driver);
        node.name.clear();
        let _ = node.name.write_str(name);
        node.quiesce = sections;
        node.pins = 0;
        node.home = home as u8;
        Some(graph.id(place))
    });
    let Some(id) = id else {
        return refuse(Reason::NoRoom("nodes"));
    };
    if sections > 0 {
        driver.drain_begin();
    }
    Ok(id)
}

/// Takes a node without edges out of the graph; its share of all drained sections ends with it, which its driver hears.
pub(super) fn remove(place: u16) {
    let (driver, quiesce) = with(|graph| {
        let node = graph.node(place);
        debug_assert!(node.above == 0 && node.below == 0);
        node.pins = 0;
        node.generation = node.generation.wrapping_add(1);
        (node.driver.take(), core::mem::take(&mut node.quiesce))
    });
    link::forget_cached();
    if let (Some(driver), true) = (driver, quiesce > 0) {
        let _telling = drain::Telling::begin();
        driver.drain_end();
    }
}

/// The node's driver, unless the id is stale. Any core.
pub fn driver(id: NodeId) -> Option<&'static dyn NodeDriver> {
    with(|graph| {
        let place = graph.place(id)?;
        graph.node(place).driver
    })
}

/// The node's properties, unless the id is stale. Any core.
pub fn info(id: NodeId) -> Option<NodeInfo> {
    Some(driver(id)?.info())
}

/// The node's name, unless the id is stale. Any core.
pub fn name(id: NodeId) -> Option<Name> {
    with(|graph| {
        let place = graph.place(id)?;
        Some(graph.node(place).name.clone())
    })
}

/// The core of the node's context, unless the id is stale. Any core; a hint unless the node is quiet or has a request in
/// flight (CTX-12).
pub fn home(id: NodeId) -> Option<CoreId> {
    with(|graph| {
        let place = graph.place(id)?;
        Some(CoreId::from(graph.node(place).home))
    })
}

/// The node of that name. Any core.
pub fn find(name: &str) -> Option<NodeId> {
    with(|graph| {
        let place = graph
            .nodes
            .iter()
            .position(|node| node.driver.is_some() && node.name == name)?;
        Some(graph.id(place as u16))
    })
}

/// Calls `f` for every node, in the order of the arena. Main loop only.
pub fn for_each_node(mut f: impl FnMut(NodeId)) {
    for place in 0..NODES as u16 {
        let id = with(|graph| graph.node(place).driver.map(|_| graph.id(place)));
        if let Some(id) = id {
            f(id);
        }
    }
}

/// The node's children with their slots. Main loop only.
pub fn children(id: NodeId) -> Vec<(u8, NodeId), { crate::config::MAX_CHILDREN }> {
    let mut found = Vec::new();
    if let Some(place) = with(|graph| graph.place(id)) {
        for_each_below(place, |_, edge| {
            // A node has no more slots than this.
            let _ = found.push((edge.slot, with(|graph| graph.id(edge.child))));
        });
    }
    found.sort_unstable_by_key(|(slot, _)| *slot);
    found
}

/// Calls `f` with the name of everything directly above the node. Main loop only.
pub fn parent_names(id: NodeId, mut f: impl FnMut(Name)) {
    if let Some(place) = with(|graph| graph.place(id)) {
        for_each_above(place, |_, edge| f(name_of(edge.parent)));
    }
}

/// What a person calls it.
pub(super) fn name_of(parent: Parent) -> Name {
    match parent {
        Parent::Node(place) => with(|graph| graph.node(place).name.clone()),
        Parent::Backend(index) => {
            backend::backend(usize::from(index)).map_or_else(Name::new, |b| b.name())
        }
    }
}

/// The node has new properties: everything above it takes them over. Main loop only.
pub(crate) fn changed(id: NodeId) {
    debug_assert!(arch::current_core() == Some(0));
    if let Some(place) = with(|graph| graph.place(id)) {
        changed_at(place);
    }
}

/// What is above `place` takes over its properties, from below upwards.
pub(super) fn changed_at(place: u16) {
    for_each_above(place, |_, edge| match edge.parent {
        Parent::Node(parent) => {
            if let Some(driver) = driver_at(parent) {
                driver.child_changed();
            }
            changed_at(parent);
        }
        Parent::Backend(index) => {
            if let Some(backend) = backend::backend(usize::from(index)) {
                backend.refresh();
            }
        }
    });
}

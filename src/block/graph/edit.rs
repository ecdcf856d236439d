//! Changes of edges, each complete or not at all.
//!
//! An edge changes only while its parent is quiet, so that no request is on its way through it: either nothing that submits stands
//! above, or a drained section is on. The callers in [`change`](super) bring that about; here it is checked.
#![forbid(unsafe_code)]

use super::arena::{self, Edge, Parent, driver_at, for_each_above, for_each_below, name_of, with};
use super::drain::{Telling, begin_at, end_at, quiesce_edge, quiet_at, release_parent};
use super::link;
use super::permissions::{Access, Permissions};
use super::refusal::{Reason, Refusal};
use crate::arch;
use crate::block::backend::{self, Backend};
use crate::block::node::NodeId;
use crate::config::{EDGES, MAX_DEPTH, NODES, SPARES_PER_CORE};

/// Most ways from one node down: more than a graph of that many edges has, unless nodes stand several times on the same.
const MAX_WAYS: u32 = EDGES as u32;

fn refuse(id: NodeId, reason: Reason) -> Refusal {
    let name = arena::name(id).unwrap_or_default();
    Refusal::new(&name, reason)
}

fn refuse_at(place: u16, reason: Reason) -> Refusal {
    Refusal::new(&name_of(Parent::Node(place)), reason)
}

fn place_of(id: NodeId) -> Result<u16, Refusal> {
    if arch::current_core() != Some(0) {
        return Err(refuse(id, Reason::NotMainLoop));
    }
    if Telling::is_on() {
        return Err(refuse(id, Reason::InCallback));
    }
    with(|graph| graph.place(id)).ok_or_else(|| refuse(id, Reason::NoSuchNode))
}

/// Whether `to` is `from` or stands below it.
pub(super) fn reaches(from: u16, to: u16) -> bool {
    let mut seen = 0u64;
    reaches_down(from, to, &mut seen)
}

fn reaches_down(from: u16, to: u16, seen: &mut u64) -> bool {
    if from == to {
        return true;
    }
    if *seen & (1 << from) != 0 {
        return false;
    }
    *seen |= 1 << from;
    let mut found = false;
    for_each_below(from, |_, edge| {
        found = found || reaches_down(edge.child, to, seen);
    });
    found
}

/// Whether `upper` is `lower` or stands on it, over any number of edges. Main loop only.
pub fn stands_on(upper: NodeId, lower: NodeId) -> bool {
    let places = with(|graph| Some((graph.place(upper)?, graph.place(lower)?)));
    places.is_some_and(|(upper, lower)| reaches(upper, lower))
}

/// The edge of `parent` in `slot`.
fn edge_in(parent: u16, slot: usize) -> Option<(u16, Edge)> {
    let mut found = None;
    for_each_below(parent, |place, edge| {
        if usize::from(edge.slot) == slot {
            found = Some((place, edge));
        }
    });
    found
}

/// What all parents of a node need of it and share, together.
fn above(place: u16) -> Permissions {
    let mut all = Permissions::NONE;
    for_each_above(place, |_, edge| all = all.and(edge.permissions));
    all
}

/// Works out what every node needs of its children, from the top down, and whether all edges agree. On a refusal the edges are what
/// they were.
pub(super) fn settle_permissions() -> Result<(), Refusal> {
    let before: [Option<Permissions>; EDGES] =
        core::array::from_fn(|place| with(|graph| Some(graph.edge(place as u16)?.permissions)));
    let mut visited = 0u64;
    for place in 0..NODES as u16 {
        derive(place, &mut visited);
    }
    let result = (0..NODES as u16).try_for_each(agree);
    if result.is_err() {
        for (place, permissions) in before.into_iter().enumerate() {
            if let Some(permissions) = permissions {
                with(|graph| {
                    if let Some(edge) = graph.edge_mut(place as u16) {
                        edge.permissions = permissions;
                    }
                });
            }
        }
    }
    result
}

/// Brings the edges below `place` in line with those above, after those above are.
fn derive(place: u16, visited: &mut u64) {
    if *visited & (1 << place) != 0 {
        return;
    }
    *visited |= 1 << place;
    for_each_above(place, |_, edge| {
        if let Parent::Node(parent) = edge.parent {
            derive(parent, visited);
        }
    });
    let Some(driver) = driver_at(place) else {
        return;
    };
    let above = above(place);
    for_each_below(place, |below, edge| {
        let permissions = driver.permissions(usize::from(edge.slot), above);
        with(|graph| {
            if let Some(edge) = graph.edge_mut(below) {
                edge.permissions = permissions;
            }
        });
    });
}

/// Whether those above `place` let each other do what they need, and the node can do it.
fn agree(place: u16) -> Result<(), Refusal> {
    let mut refusal = None;
    for_each_above(place, |one, edge| {
        for_each_above(place, |other, against| {
            let over = edge.permissions.denied_by(against.permissions);
            // A parent with several ways to the node does not stand in its own way.
            let others = one != other && edge.parent != against.parent;
            if others && !over.is_empty() && refusal.is_none() {
                let with = name_of(against.parent);
                refusal = Some(refuse_at(place, Reason::Conflict { with, over }));
            }
        });
    });
    if let Some(refusal) = refusal {
        return Err(refusal);
    }
    let writes = above(place).needs.intersects(Access::WRITE);
    if writes && driver_at(place).is_some_and(|driver| driver.info().read_only) {
        return Err(refuse_at(place, Reason::ReadOnly));
    }
    Ok(())
}

/// Ways from the node in `place` down to what stands on nothing. Whoever asks all below it, or tells all above it, takes each of them.
fn ways_down(place: u16, known: &mut [u32; NODES]) -> u32 {
    if known[usize::from(place)] == 0 {
        let mut ways = 0u32;
        for_each_below(place, |_, edge| {
            ways = ways.saturating_add(ways_down(edge.child, known));
        });
        known[usize::from(place)] = ways.max(1);
    }
    known[usize::from(place)]
}

/// Whether everything at and above `place` is within what a request, and the main loop, can bear.
fn check_size(place: u16) -> Result<(), Refusal> {
    let mut known = [0; NODES];
    let wide = (0..NODES as u16).find(|place| ways_down(*place, &mut known) > MAX_WAYS);
    if let Some(wide) = wide {
        return Err(refuse_at(wide, Reason::TooWide));
    }
    check_carried(place)
}

fn check_carried(place: u16) -> Result<(), Refusal> {
    if let Some(driver) = driver_at(place) {
        let info = driver.info();
        // A backend's own frame comes on top.
        if usize::from(info.depth) >= MAX_DEPTH {
            return Err(refuse_at(place, Reason::TooDeep));
        }
        if usize::from(info.cost) > SPARES_PER_CORE {
            return Err(refuse_at(place, Reason::TooCostly));
        }
    }
    let mut result = Ok(());
    for_each_above(place, |_, edge| {
        if let Parent::Node(parent) = edge.parent
            && result.is_ok()
        {
            result = check_carried(parent);
        }
    });
    result
}

fn set_link(parent: Parent, slot: u8, child: Option<u16>) {
    let child = child.map(|child| with(|graph| graph.id(child)));
    match parent {
        Parent::Node(parent) => {
            if let Some(link) =
                driver_at(parent).and_then(|driver| driver.links().get(usize::from(slot)))
            {
                link.set(child);
            }
        }
        Parent::Backend(index) => {
            if let Some(backend) = backend::backend(usize::from(index)) {
                backend.set_root_id(child);
            }
        }
    }
    link::forget_cached();
}

/// The parent takes over what its (new) child is, and those above it follow.
fn tell(parent: Parent) {
    match parent {
        Parent::Node(parent) => {
            if let Some(driver) = driver_at(parent) {
                driver.child_changed();
            }
            arena::changed_at(parent);
        }
        Parent::Backend(index) => {
            if let Some(backend) = backend::backend(usize::from(index)) {
                backend.refresh();
            }
        }
    }
}

fn parent_is_quiet(parent: Parent) -> bool {
    match parent {
        Parent::Node(parent) => quiet_at(parent),
        Parent::Backend(index) => {
            backend::backend(usize::from(index)).is_none_or(Backend::is_quiet)
        }
    }
}

/// Links without asking whether it may be; the parent's drained state follows the child's (DRN-16).
fn link_edge(parent: Parent, slot: u8, child: u16, permissions: Permissions) -> Option<u16> {
    let (place, drained) = with(|graph| {
        let place = graph.link(parent, child, slot, permissions)?;
        Some((place, graph.node(child).quiesce > 0))
    })?;
    if drained {
        quiesce_edge(place);
    }
    set_link(parent, slot, Some(child));
    Some(place)
}

/// Takes an edge away. Its share of the parent's drained sections ends with it.
pub(super) fn unlink_edge(place: u16) {
    let Some(edge) = with(|graph| graph.unlink(place)) else {
        return;
    };
    set_link(edge.parent, edge.slot, None);
    if edge.quiesced {
        release_parent(Some(edge.parent));
    }
}

/// Puts `child` below `parent`, in one of the places that its driver has ([`NodeDriver::links`](crate::block::node::NodeDriver::links)). A parent of which nobody makes
/// use yet takes over the child's context. Main loop only.
///
/// # Errors
/// Stale ids, no such place or a taken one, a cycle, too deep, too costly, permissions, no room, the parent in use and not drained.
pub fn attach(parent: NodeId, slot: usize, child: NodeId) -> Result<(), Refusal> {
    let (above, below) = (place_of(parent)?, place_of(child)?);
    let driver = driver_at(above).ok_or_else(|| refuse(parent, Reason::NoSuchNode))?;
    if slot >= driver.links().len() || edge_in(above, slot).is_some() {
        return Err(refuse(parent, Reason::Slot));
    }
    if reaches(below, above) {
        return Err(refuse(parent, Reason::Cycle));
    }
    if !quiet_at(above) {
        return Err(refuse(parent, Reason::NotQuiet));
    }
    let plan = super::context::plan(above, below)?;
    let linked = link_edge(Parent::Node(above), slot as u8, below, Permissions::NONE);
    let Some(edge) = linked else {
        plan.cancel();
        return Err(refuse(parent, Reason::NoRoom("edges")));
    };
    driver.child_changed();
    let checked = check_size(above).and_then(|()| settle_permissions());
    if let Err(refusal) = checked {
        unlink_edge(edge);
        driver.child_changed();
        plan.cancel();
        return Err(refusal);
    }
    plan.commit();
    arena::changed_at(above);
    Ok(())
}

/// Takes the child in `slot` away from `parent`. Main loop only.
///
/// # Errors
/// A stale id, an empty place, the parent in use and not drained.
pub fn detach(parent: NodeId, slot: usize) -> Result<(), Refusal> {
    let place = place_of(parent)?;
    let (edge, _) = edge_in(place, slot).ok_or_else(|| refuse(parent, Reason::Slot))?;
    if !quiet_at(place) {
        return Err(refuse(parent, Reason::NotQuiet));
    }
    unlink_edge(edge);
    // What is needed of the rest can only have become less.
    let _ = settle_permissions();
    tell(Parent::Node(place));
    Ok(())
}

/// Moves the edge in `place` to `child`, without asking whether it may be. What the old child's sections did to the parent is undone
/// only after the new one's have done it, so that the parent is never open in between (DRN-16, DRN-17).
pub(super) fn move_edge(place: u16, child: u16) -> bool {
    let Some(old) = with(|graph| graph.edge(place).copied()) else {
        return false;
    };
    let moved = with(|graph| {
        graph.unlink(place)?;
        // The place just given back is free, so there is one.
        let place = graph.link(old.parent, child, old.slot, old.permissions)?;
        let drained = graph.node(child).quiesce > 0;
        if let Some(edge) = graph.edge_mut(place) {
            edge.quiesced = old.quiesced && drained;
        }
        Some((place, drained))
    });
    let Some((place, drained)) = moved else {
        return false;
    };
    set_link(old.parent, old.slot, Some(child));
    match (old.quiesced, drained) {
        (false, true) => quiesce_edge(place),
        (true, false) => release_parent(Some(old.parent)),
        _ => {}
    }
    true
}

/// Puts a filter that stands on nothing yet above `child`, without asking what its users may do: legal or not is decided when the
/// users have come to stand above it ([`redirect`]). Gives the edge.
pub(super) fn link_filter(filter: u16, child: u16) -> Result<u16, Refusal> {
    let not_a_filter = || refuse_at(filter, Reason::NotAFilter);
    let driver = driver_at(filter).ok_or_else(not_a_filter)?;
    let slot = driver.filtered().ok_or_else(not_a_filter)?;
    if edge_in(filter, slot).is_some() {
        return Err(not_a_filter());
    }
    if reaches(child, filter) {
        return Err(refuse_at(filter, Reason::Cycle));
    }
    if !quiet_at(filter) {
        return Err(refuse_at(filter, Reason::NotQuiet));
    }
    super::context::plan(filter, child)?.commit();
    let edge = link_edge(Parent::Node(filter), slot as u8, child, Permissions::NONE)
        .ok_or_else(|| refuse_at(filter, Reason::NoRoom("edges")))?;
    driver.child_changed();
    Ok(edge)
}

/// Undoes [`link_filter`].
pub(super) fn unlink_filter(filter: u16, edge: u16) {
    unlink_edge(edge);
    if let Some(driver) = driver_at(filter) {
        driver.child_changed();
    }
    let _ = settle_permissions();
}

/// Puts `child` in the place of what `parent` has in `slot`. Main loop only.
///
/// # Errors
/// As [`attach`]; on an error everything is as it was.
pub fn replace(parent: NodeId, slot: usize, child: NodeId) -> Result<(), Refusal> {
    let (above, below) = (place_of(parent)?, place_of(child)?);
    let (_, edge) = edge_in(above, slot).ok_or_else(|| refuse(parent, Reason::Slot))?;
    redirect(&[(Parent::Node(above), edge.slot)], edge.child, below)
}

/// Moves the edges of `users` (parent and slot) from `old` to `new`, all or none.
pub(super) fn redirect(users: &[(Parent, u8)], old: u16, new: u16) -> Result<(), Refusal> {
    for (parent, _) in users {
        if let Parent::Node(parent) = parent
            && reaches(new, *parent)
        {
            return Err(refuse_at(*parent, Reason::Cycle));
        }
        if !parent_is_quiet(*parent) {
            return Err(Refusal::new(&name_of(*parent), Reason::NotQuiet));
        }
    }
    let plan = super::context::plan(old, new)?;
    // Nobody comes through before it is settled where the edges lead, also when they leave a drained node for an open one.
    begin_at(new);
    move_all(users, new);
    let checked = check_size(new).and_then(|()| settle_permissions());
    if checked.is_ok() {
        plan.commit();
    } else {
        move_all(users, old);
        plan.cancel();
    }
    users.iter().for_each(|(parent, _)| tell(*parent));
    end_at(new);
    checked
}

fn move_all(users: &[(Parent, u8)], child: u16) {
    for user in users {
        let edge = with(|graph| graph.edge_of(user.0, user.1));
        if let Some(edge) = edge {
            move_edge(edge, child);
        }
        tell(user.0);
    }
}

/// Takes a node out of the graph, with its edges downwards; its share of every drained section ends with it. Main loop only.
///
/// # Errors
/// A stale id, something above it, a node of the machine, work of its own under way.
pub fn delete(id: NodeId) -> Result<(), Refusal> {
    let place = place_of(id)?;
    let driver = driver_at(place).ok_or_else(|| refuse(id, Reason::NoSuchNode))?;
    if !driver.deletable() {
        return Err(refuse(id, Reason::Permanent));
    }
    let mut user = None;
    for_each_above(place, |_, edge| user = Some(edge.parent));
    if let Some(user) = user {
        return Err(refuse(id, Reason::InUse(name_of(user))));
    }
    if !quiet_at(place) {
        return Err(refuse(id, Reason::NotQuiet));
    }
    for slot in 0..driver.links().len() {
        if let Some((edge, _)) = edge_in(place, slot) {
            unlink_edge(edge);
        }
    }
    let _ = settle_permissions();
    super::context::forget(id);
    arena::remove(place);
    driver.release();
    // Who waits for this node to be quiet has waited long enough (DRN-19).
    crate::block::drain::kick();
    Ok(())
}

/// Puts a backend above `root`. The backend's drained state follows the node's.
pub(crate) fn attach_backend(
    backend: &'static Backend,
    root: NodeId,
    permissions: Permissions,
) -> Result<(), Refusal> {
    let place = place_of(root)?;
    let parent = Parent::Backend(backend.index() as u16);
    let edge = link_edge(parent, 0, place, permissions)
        .ok_or_else(|| refuse(root, Reason::NoRoom("edges")))?;
    if let Err(refusal) = check_size(place).and_then(|()| settle_permissions()) {
        unlink_edge(edge);
        return Err(refusal);
    }
    Ok(())
}

/// Takes a backend from above its root.
pub(crate) fn detach_backend(backend: &'static Backend) {
    let parent = Parent::Backend(backend.index() as u16);
    if let Some(edge) = with(|graph| graph.edge_of(parent, 0)) {
        unlink_edge(edge);
        let _ = settle_permissions();
    }
}

/// Gives a backend's edge other permissions.
pub(crate) fn set_permissions(
    backend: &'static Backend,
    permissions: Permissions,
) -> Result<(), Refusal> {
    let parent = Parent::Backend(backend.index() as u16);
    let Some(place) = with(|graph| graph.edge_of(parent, 0)) else {
        return Ok(());
    };
    let set = |permissions| {
        with(|graph| {
            graph
                .edge_mut(place)
                .map(|edge| core::mem::replace(&mut edge.permissions, permissions))
        })
    };
    let before = set(permissions);
    settle_permissions().inspect_err(|_| {
        if let Some(before) = before {
            set(before);
        }
    })
}

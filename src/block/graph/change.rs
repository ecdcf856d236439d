//! Changes under load: a drained section on what is touched, the change once that is quiet, the end of the section (CS-8: continued
//! from the drain's bottom half, nothing waits in a nested loop).
//!
//! ```text
//!   insert_begin(filter, child)     users ─▶ child            users ─▶ filter ─▶ child
//!   remove_begin(filter)            users ─▶ filter ─▶ child   users ─▶ child, and the filter is deleted
//!   replace_begin(node, slot, new)  node ─▶ old               node ─▶ new
//!   take_over_begin(old, new)       users ─▶ old              users ─▶ new, and the old one is deleted
//!   move_begin(node, core)          the whole component goes to another context
//! ```
//! A section covers only what the change touches: a disk that hangs elsewhere stops no change here. What joins meanwhile is drained
//! too, before the change is made. Requests of clients wait in their backends and notice nothing but time.
#![forbid(unsafe_code)]

use heapless::Vec;

use super::arena::{self, Parent, driver_at, for_each_above, for_each_below, name_of, with};
use super::drain::{self, is_quiet, when_quiet};
use super::edit;
use super::refusal::{Reason, Refusal};
use crate::aio::Callback;
use crate::arch::{self, CoreId};
use crate::block::node::NodeId;
use crate::config::{EDGES, GRAPH_CHANGES, NODES};
use crate::sync::{HomeCell, caller_levels};

/// Who is told of the end: in the main loop, with the `argument` given at the beginning.
pub type ChangeDone = &'static (dyn Fn(usize, Result<(), Refusal>) + Sync);

#[derive(Clone, Copy)]
enum What {
    Insert {
        filter: NodeId,
        child: NodeId,
    },
    Remove {
        filter: NodeId,
    },
    Replace {
        parent: NodeId,
        slot: usize,
        new: NodeId,
    },
    TakeOver {
        old: NodeId,
        new: NodeId,
    },
    Move {
        node: NodeId,
        core: CoreId,
    },
}

struct Change {
    what: What,
    done: ChangeDone,
    argument: usize,
    /// Nodes on which a section of ours is on.
    drained: Vec<NodeId, NODES>,
    /// The move is made and goes on in other loops.
    moved: bool,
}

static CHANGES: HomeCell<[Option<Change>; GRAPH_CHANGES]> =
    HomeCell::new([const { None }; GRAPH_CHANGES]);

pub(super) fn start() {
    CHANGES.bind(0);
}

/// Puts `filter`, which has `child` below it already or nothing, between `child` and all that stand above it (but `filter` itself,
/// and what stands below `filter`). One with nothing below it is judged only when it is in its place. `done` hears the outcome. Main loop only.
///
/// # Errors
/// As for [`drain::drain_begin`]; stale ids; too many changes at once. Then `done` is not called.
pub fn insert_begin(
    filter: NodeId,
    child: NodeId,
    done: ChangeDone,
    argument: usize,
) -> Result<(), Refusal> {
    begin(What::Insert { filter, child }, done, argument)
}

/// Takes `filter` from between its child and all that stand above it, and deletes it. `done` hears the outcome. Main loop only.
///
/// # Errors
/// As for [`insert_begin`].
pub fn remove_begin(filter: NodeId, done: ChangeDone, argument: usize) -> Result<(), Refusal> {
    begin(What::Remove { filter }, done, argument)
}

/// Puts `new` in the place of what `parent` has in `slot`. `done` hears the outcome. Main loop only.
///
/// # Errors
/// As for [`insert_begin`].
pub fn replace_begin(
    parent: NodeId,
    slot: usize,
    new: NodeId,
    done: ChangeDone,
    argument: usize,
) -> Result<(), Refusal> {
    begin(What::Replace { parent, slot, new }, done, argument)
}

/// Puts `new` in the place of `old` below all that stand above `old`, and deletes that: as one change, or not at all. What both hold is
/// the caller's business. `done` hears the outcome. Main loop only.
///
/// # Errors
/// As for [`insert_begin`].
pub fn take_over_begin(
    old: NodeId,
    new: NodeId,
    done: ChangeDone,
    argument: usize,
) -> Result<(), Refusal> {
    begin(What::TakeOver { old, new }, done, argument)
}

/// Moves `node`, and all that hangs together with it, to `core`'s context. `done` hears the outcome, when the move is over in all
/// loops. Main loop only.
///
/// # Errors
/// As for [`insert_begin`].
pub fn move_begin(
    node: NodeId,
    core: CoreId,
    done: ChangeDone,
    argument: usize,
) -> Result<(), Refusal> {
    begin(What::Move { node, core }, done, argument)
}

fn begin(what: What, done: ChangeDone, argument: usize) -> Result<(), Refusal> {
    let node = what.subject();
    let refuse = |reason| Err(Refusal::new(&arena::name(node).unwrap_or_default(), reason));
    if drain::Telling::is_on() {
        return refuse(Reason::InCallback);
    }
    if arch::current_core() != Some(0) || caller_levels() != 0 {
        return refuse(Reason::NotMainLoop);
    }
    if arena::driver(node).is_none() {
        return refuse(Reason::NoSuchNode);
    }
    let change = Change {
        what,
        done,
        argument,
        drained: Vec::new(),
        moved: false,
    };
    let place = CHANGES.with(|changes| {
        let place = changes.iter().position(Option::is_none)?;
        changes[place] = Some(change);
        Some(place)
    });
    match place {
        Some(place) => {
            step(place);
            Ok(())
        }
        None => refuse(Reason::NoRoom("changes at once")),
    }
}

impl What {
    fn subject(self) -> NodeId {
        match self {
            What::Insert { filter, .. } | What::Remove { filter } => filter,
            What::Replace { parent, .. } => parent,
            What::TakeOver { old, .. } => old,
            What::Move { node, .. } => node,
        }
    }

    /// What has to be quiet: as the graph is now.
    fn touches(self) -> Vec<NodeId, NODES> {
        let mut nodes = Vec::new();
        let mut add = |id: Option<NodeId>| {
            if let Some(id) = id {
                // There are no more nodes than places.
                let _ = nodes.push(id);
            }
        };
        match self {
            What::Insert { filter, child } => {
                add(Some(child));
                add(Some(filter));
            }
            What::Remove { filter } => {
                add(filtered(filter));
                add(Some(filter));
            }
            What::Replace { parent, slot, new } => {
                let old = arena::children(parent)
                    .iter()
                    .find(|(at, _)| usize::from(*at) == slot)
                    .map(|(_, old)| *old);
                add(old);
                add(Some(new));
            }
            What::TakeOver { old, new } => {
                add(Some(old));
                add(Some(new));
            }
            What::Move { node, .. } => {
                super::context::for_each_in_component(node, |id| add(Some(id)))
            }
        }
        nodes
    }

    fn perform(self) -> Result<(), Refusal> {
        match self {
            What::Insert { filter, child } => insert(filter, child),
            What::Remove { filter } => remove(filter),
            What::Replace { parent, slot, new } => edit::replace(parent, slot, new),
            What::TakeOver { old, new } => take_over(old, new),
            What::Move { node, core } => super::context::move_quiet(node, core),
        }
    }
}

/// One step of a change: more to drain, something to wait for, or the change itself.
fn step(place: usize) {
    let Some((what, moved)) = CHANGES.with(|changes| {
        let change = changes[place].as_ref()?;
        Some((change.what, change.moved))
    }) else {
        return;
    };
    for id in what.touches() {
        let new = CHANGES.with(|changes| {
            let Some(change) = changes[place].as_mut() else {
                return false;
            };
            !change.drained.contains(&id) && change.drained.push(id).is_ok()
        });
        // An id that has become stale since is refused when the change is made.
        if new && drain::begin_no_wait(id).is_err() {
            CHANGES.with(|changes| {
                if let Some(change) = changes[place].as_mut() {
                    change.drained.retain(|drained| *drained != id);
                }
            });
        }
    }
    let busy = CHANGES.with(|changes| changes[place].as_ref().map(|c| c.drained.clone()));
    let busy = busy.and_then(|drained| drained.into_iter().find(|id| !is_quiet(*id)));
    if let Some(id) = busy {
        if when_quiet(id, Callback::new(&step, place)).is_err() {
            finish(
                place,
                Err(Refusal::new(
                    "",
                    Reason::NoRoom("drained sections waited for"),
                )),
            );
        }
        return;
    }
    if moved {
        return finish(place, Ok(()));
    }
    let result = what.perform();
    if let (What::Move { .. }, Ok(())) = (what, &result) {
        CHANGES.with(|changes| {
            if let Some(change) = changes[place].as_mut() {
                change.moved = true;
            }
        });
        // Drivers may go on in other loops; they are busy as long.
        return step(place);
    }
    finish(place, result);
}

fn finish(place: usize, result: Result<(), Refusal>) {
    let Some(change) = CHANGES.with(|changes| changes[place].take()) else {
        return;
    };
    for id in change.drained {
        drain::drain_end(id);
    }
    (change.done)(change.argument, result);
}

/// The child that takes a filter's place when that is removed.
fn filtered(filter: NodeId) -> Option<NodeId> {
    let slot = arena::driver(filter)?.filtered()?;
    let children = arena::children(filter);
    children
        .iter()
        .find(|(at, _)| usize::from(*at) == slot)
        .map(|(_, child)| *child)
}

type Users = Vec<(Parent, u8), EDGES>;

fn insert(filter: NodeId, child: NodeId) -> Result<(), Refusal> {
    let places = with(|graph| Some((graph.place(filter)?, graph.place(child)?)));
    let Some((above, below)) = places else {
        return Err(Refusal::new("", Reason::NoSuchNode));
    };
    let mut linked = false;
    for_each_below(above, |_, edge| linked |= edge.child == below);
    let edge = if linked {
        None
    } else {
        Some(edit::link_filter(above, below)?)
    };
    let mut users = Users::new();
    for_each_above(below, |_, edge| {
        // What the filter itself stands on must not end up above it.
        let inside = matches!(edge.parent, Parent::Node(parent) if edit::reaches(above, parent));
        if !inside {
            let _ = users.push((edge.parent, edge.slot));
        }
    });
    edit::redirect(&users, below, above).inspect_err(|_| {
        if let Some(edge) = edge {
            edit::unlink_filter(above, edge);
        }
    })
}

fn remove(filter: NodeId) -> Result<(), Refusal> {
    let place =
        with(|graph| graph.place(filter)).ok_or_else(|| Refusal::new("", Reason::NoSuchNode))?;
    let below = filtered(filter)
        .and_then(|child| with(|graph| graph.place(child)))
        .ok_or_else(|| Refusal::new(&name_of(Parent::Node(place)), Reason::NotAFilter))?;
    if driver_at(place).is_some_and(|driver| !driver.deletable()) {
        return Err(Refusal::new(
            &name_of(Parent::Node(place)),
            Reason::Permanent,
        ));
    }
    let mut users = Users::new();
    for_each_above(place, |_, edge| {
        let _ = users.push((edge.parent, edge.slot));
    });
    edit::redirect(&users, place, below)?;
    edit::delete(filter)
}

fn take_over(old: NodeId, new: NodeId) -> Result<(), Refusal> {
    let places = with(|graph| Some((graph.place(old)?, graph.place(new)?)));
    let Some((from, to)) = places else {
        return Err(Refusal::new("", Reason::NoSuchNode));
    };
    if driver_at(from).is_some_and(|driver| !driver.deletable()) {
        return Err(Refusal::new(
            &name_of(Parent::Node(from)),
            Reason::Permanent,
        ));
    }
    let mut users = Users::new();
    for_each_above(from, |_, edge| {
        let _ = users.push((edge.parent, edge.slot));
    });
    edit::redirect(&users, from, to)?;
    edit::delete(old)
}

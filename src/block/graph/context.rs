//! Moving nodes between contexts (CTX-1 … CTX-11): all of a connected component or nothing.
//!
//! Two phases (CTX-3, CS-9). First everyone who would move is asked, and reserves what it needs in the target; one refusal, and
//! nothing has changed. Then, without anything that can fail: detach notifiers, the driver's detach, the new context, the driver's
//! attach, attach notifiers. The component is quiet throughout: a move happens inside a drained section, or nothing submits. A driver
//! whose move goes on in other cores' loops says so with `drain_poll`; the component then stays drained until it is over.
#![forbid(unsafe_code)]

use heapless::Vec;

use super::arena::{self, Parent, driver_at, for_each_above, for_each_below, name_of, with};
use super::drain::{begin_at, end_at, quiet_at};
use super::refusal::{Reason, Refusal};
use crate::arch::{self, CoreId};
use crate::block::backend::{self, Backend};
use crate::block::core_state;
use crate::block::drain::kick as drain_kick;
use crate::block::node::NodeId;
use crate::config::{CONTEXT_NOTIFIERS, MAX_CORES, NODES};
use crate::sync::HomeCell;

/// Who wants to know that a node or a backend changes its context; compared whole when it is removed (CTX-5).
#[derive(Clone, Copy)]
pub struct ContextNotifier {
    /// It now belongs to that core.
    pub attached: fn(usize, CoreId),
    /// It is about to leave its core.
    pub detach: fn(usize),
    /// Passed to both.
    pub argument: usize,
}

impl PartialEq for ContextNotifier {
    fn eq(&self, other: &Self) -> bool {
        core::ptr::fn_addr_eq(self.attached, other.attached)
            && core::ptr::fn_addr_eq(self.detach, other.detach)
            && self.argument == other.argument
    }
}

/// What a notifier watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watched {
    /// A node.
    Node(NodeId),
    /// A backend, by its index.
    Backend(usize),
}

struct State {
    /// `None` in the notifier: removed while the list was walked (CTX-6).
    notifiers: Vec<(Watched, Option<ContextNotifier>), CONTEXT_NOTIFIERS>,
    walking: bool,
    /// Nodes whose move still goes on, one bit each.
    moving: u64,
}

static STATE: HomeCell<State> = HomeCell::new(State {
    notifiers: Vec::new(),
    walking: false,
    moving: 0,
});

pub(super) fn start() {
    STATE.bind(0);
}

/// Adds a notifier. Main loop only.
///
/// # Errors
/// No room.
pub fn add_context_notifier(on: Watched, notifier: ContextNotifier) -> Result<(), Refusal> {
    STATE
        .with(|state| state.notifiers.push((on, Some(notifier))))
        .map_err(|_| Refusal::new("", Reason::NoRoom("context notifiers")))
}

/// Removes a notifier, also one of those being called; `false` if exactly this one is not there. Main loop only.
pub fn remove_context_notifier(on: Watched, notifier: ContextNotifier) -> bool {
    STATE.with(|state| {
        let place = state
            .notifiers
            .iter()
            .rposition(|(watched, known)| *watched == on && *known == Some(notifier));
        let Some(place) = place else { return false };
        if state.walking {
            state.notifiers[place].1 = None;
        } else {
            state.notifiers.remove(place);
        }
        true
    })
}

/// Calls `f` with the notifiers on `on`, the newest first, also while they remove themselves or each other.
fn for_each_notifier(on: Watched, f: impl Fn(ContextNotifier)) {
    let count = STATE.with(|state| {
        debug_assert!(!state.walking, "walks over context notifiers must not nest");
        state.walking = true;
        state.notifiers.len()
    });
    for place in (0..count).rev() {
        let entry = STATE.with(|state| state.notifiers[place]);
        if let (watched, Some(notifier)) = entry
            && watched == on
        {
            f(notifier);
        }
    }
    STATE.with(|state| {
        state.walking = false;
        state.notifiers.retain(|(_, notifier)| notifier.is_some());
    });
}

/// Nodes and backends that hang together, one bit each.
#[derive(Clone, Copy, Default)]
struct Component {
    nodes: u64,
    backends: u64,
}

impl Component {
    /// Everything that can be reached from the node in `place`, up and down, each once (CTX-2).
    fn of(place: u16) -> Self {
        let mut component = Self::default();
        component.add(Parent::Node(place));
        component
    }

    fn add(&mut self, what: Parent) {
        let place = match what {
            Parent::Backend(index) => {
                self.backends |= 1 << index;
                return;
            }
            Parent::Node(place) => place,
        };
        if self.nodes & (1 << place) != 0 {
            return;
        }
        self.nodes |= 1 << place;
        for_each_above(place, |_, edge| self.add(edge.parent));
        for_each_below(place, |_, edge| self.add(Parent::Node(edge.child)));
    }

    fn nodes(self) -> impl Iterator<Item = u16> {
        (0..NODES as u16).filter(move |place| self.nodes & (1 << place) != 0)
    }

    fn backends(self) -> impl Iterator<Item = &'static Backend> {
        backend::backends().filter(move |b| self.backends & (1 << b.index()) != 0)
    }

    fn is_quiet(self) -> bool {
        self.nodes().all(quiet_at)
    }

    /// Asks everyone; `willing` goes even where its user must stay. Nothing has changed after a refusal.
    fn check(self, core: CoreId, willing: Option<&'static Backend>) -> Result<(), Refusal> {
        check_core(core)?;
        let stays = |backend: &&'static Backend| {
            let willing = willing.is_some_and(|willing| core::ptr::eq(willing, *backend));
            backend.context_is_fixed() && !willing
        };
        if let Some(fixed) = self.backends().find(stays) {
            return Err(Refusal::new(
                &fixed.name(),
                Reason::ContextFixed(fixed.name()),
            ));
        }
        for place in self.nodes() {
            let answer = driver_at(place).map_or(Ok(()), |driver| driver.check_context(core));
            if let Err(error) = answer {
                for asked in self.nodes().take_while(|asked| *asked != place) {
                    if let Some(driver) = driver_at(asked) {
                        driver.cancel_context();
                    }
                }
                return Err(Refusal::new(
                    &name_of(Parent::Node(place)),
                    Reason::Node(error),
                ));
            }
        }
        Ok(())
    }

    /// What everyone took when asked is given back.
    fn cancel(self) {
        for place in self.nodes() {
            if let Some(driver) = driver_at(place) {
                driver.cancel_context();
            }
        }
    }

    /// Moves all of it. The component is quiet, and all have been asked.
    fn commit(self, core: CoreId) {
        self.nodes().for_each(begin_at);
        // A move before this one may be over without anybody having looked: its sections end now, or nobody would end them.
        finish_moves();
        for backend in self.backends() {
            for_each_notifier(Watched::Backend(backend.index()), |n| {
                (n.detach)(n.argument)
            });
        }
        for place in self.nodes() {
            let id = with(|graph| graph.id(place));
            for_each_notifier(Watched::Node(id), |n| (n.detach)(n.argument));
            if let Some(driver) = driver_at(place) {
                driver.detach_context();
            }
        }
        for place in self.nodes() {
            let id = with(|graph| {
                graph.node(place).home = core as u8;
                graph.id(place)
            });
            if let Some(driver) = driver_at(place) {
                driver.attach_context(core);
            }
            for_each_notifier(Watched::Node(id), |n| (n.attached)(n.argument, core));
        }
        for backend in self.backends() {
            backend.set_home(core);
            for_each_notifier(Watched::Backend(backend.index()), |n| {
                (n.attached)(n.argument, core);
            });
        }
        STATE.with(|state| state.moving |= self.nodes);
        finish_moves();
    }
}

/// Ends the sections of the nodes whose move is over. From the drain's bottom half, and at the end of a move.
pub(super) fn finish_moves() {
    let moving = STATE.with(|state| state.moving);
    for place in (0..NODES as u16).filter(|place| moving & (1 << place) != 0) {
        if driver_at(place).is_some_and(|driver| driver.drain_poll()) {
            continue;
        }
        STATE.with(|state| state.moving &= !(1 << place));
        end_at(place);
    }
}

/// Whether a node's move goes on in other cores' loops. Main loop only.
pub fn is_moving(id: NodeId) -> bool {
    with(|graph| graph.place(id))
        .is_some_and(|place| STATE.with(|state| state.moving & (1 << place) != 0))
}

/// Calls `f` with every node that would move with `id`, itself included.
pub(super) fn for_each_in_component(id: NodeId, mut f: impl FnMut(NodeId)) {
    if let Some(place) = with(|graph| graph.place(id)) {
        Component::of(place)
            .nodes()
            .for_each(|place| f(with(|graph| graph.id(place))));
    }
}

fn home_at(place: u16) -> CoreId {
    with(|graph| CoreId::from(graph.node(place).home))
}

/// Moves the node, and all that hangs together with it, to `core`'s context. Main loop only, with all of it quiet: inside a drained
/// section on it or over everything ([`move_begin`](super::change::move_begin) brings that about).
///
/// # Errors
/// A stale id, something not quiet, a user that must stay, a node that refuses; nothing has moved then.
pub fn move_quiet(id: NodeId, core: CoreId) -> Result<(), Refusal> {
    let refuse = |reason| Err(Refusal::new(&arena::name(id).unwrap_or_default(), reason));
    if arch::current_core() != Some(0) {
        return refuse(Reason::NotMainLoop);
    }
    let Some(place) = with(|graph| graph.place(id)) else {
        return refuse(Reason::NoSuchNode);
    };
    let component = Component::of(place);
    if !component.is_quiet() {
        return refuse(Reason::NotQuiet);
    }
    if component.nodes().all(|place| home_at(place) == core)
        && component.backends().all(|b| b.home() == core)
    {
        return Ok(());
    }
    component.check(core, None)?;
    component.commit(core);
    drain_kick();
    Ok(())
}

/// Moves a backend to `core`'s context, with all that hangs together with it, also where its user must stay ([`Backend::set_context_fixed`]):
/// whoever asks for this one has asked its user (CTX-7). Without a root, only the backend itself moves (CTX-8). Main loop only, with all
/// of it quiet.
///
/// # Errors
/// As for [`move_quiet`].
pub fn move_backend(backend: &'static Backend, core: CoreId) -> Result<(), Refusal> {
    if arch::current_core() != Some(0) {
        return Err(Refusal::new(&backend.name(), Reason::NotMainLoop));
    }
    let place = backend.root().and_then(|id| with(|graph| graph.place(id)));
    let mut component = place.map_or_else(Component::default, Component::of);
    component.add(Parent::Backend(backend.index() as u16));
    if !component.is_quiet() || !backend.is_quiet() {
        return Err(Refusal::new(&backend.name(), Reason::NotQuiet));
    }
    component.check(core, Some(backend))?;
    component.commit(core);
    drain_kick();
    Ok(())
}

/// Brings a backend and the node that it is about to get into one context: the node moves where it can, else the backend (CTX-8, CTX-9).
pub(crate) fn meet(backend: &'static Backend, root: NodeId) -> Result<(), Refusal> {
    let Some(place) = with(|graph| graph.place(root)) else {
        return Err(Refusal::new(&backend.name(), Reason::NoSuchNode));
    };
    let (own, theirs) = (backend.home(), home_at(place));
    if own == theirs {
        return Ok(());
    }
    let component = Component::of(place);
    // The backend is where it shall be.
    if component.is_quiet() && component.check(own, Some(backend)).is_ok() {
        component.commit(own);
        return Ok(());
    }
    if backend.context_is_fixed() {
        return Err(Refusal::new(
            &backend.name(),
            Reason::ContextFixed(backend.name()),
        ));
    }
    backend.set_home(theirs);
    Ok(())
}

fn check_core(core: CoreId) -> Result<(), Refusal> {
    if core >= MAX_CORES || core_state::started() & (1 << core) == 0 {
        return Err(Refusal::new("", Reason::NoSuchCore));
    }
    Ok(())
}

/// A node is about to go: what is left of a move of it, and those who watch it, go along.
pub(super) fn forget(id: NodeId) {
    let place = with(|graph| graph.place(id));
    STATE.with(|state| {
        if let Some(place) = place {
            state.moving &= !(1 << place);
        }
        for (watched, notifier) in &mut state.notifiers {
            if *watched == Watched::Node(id) {
                *notifier = None;
            }
        }
        if !state.walking {
            state.notifiers.retain(|(_, notifier)| notifier.is_some());
        }
    });
}

/// A move to which everyone has agreed, not made yet.
#[must_use = "what was taken for the move is given back or used"]
pub(super) struct Plan(Option<(Component, CoreId)>);

impl Plan {
    /// Moves.
    pub(super) fn commit(self) {
        if let Some((component, core)) = self.0 {
            component.commit(core);
        }
    }

    /// Stays.
    pub(super) fn cancel(self) {
        if let Some((component, _)) = self.0 {
            component.cancel();
        }
    }
}

/// How to bring what will stand above and what will stand below an edge into one context (CTX-9): a parent without edges follows the
/// child; else the child's component moves to the parent's context, or the other way round.
pub(super) fn plan(above: u16, below: u16) -> Result<Plan, Refusal> {
    let (upper, lower) = (home_at(above), home_at(below));
    if upper == lower {
        return Ok(Plan(None));
    }
    let (parents, children) = (Component::of(above), Component::of(below));
    let lone = parents.nodes.count_ones() == 1 && parents.backends == 0;
    if !lone && children.is_quiet() && children.check(upper, None).is_ok() {
        return Ok(Plan(Some((children, upper))));
    }
    if !parents.is_quiet() {
        return Err(Refusal::new(
            &name_of(Parent::Node(above)),
            Reason::NotQuiet,
        ));
    }
    parents.check(lower, None)?;
    Ok(Plan(Some((parents, lower))))
}

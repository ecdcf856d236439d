//! Drained sections from coroutines, on any core (DRN-4).
//!
//! A coroutine may not wait in a nested loop, and only the main loop drains. So it pins the node, for drains that run already to wait
//! for it, and asks the main loop, which takes the pin off, begins the section and lets the coroutine go on when it is quiet. One
//! bottom half serves all, so that neither a beginning nor an end can lack a record.
#![forbid(unsafe_code)]

use super::arena::with;
use super::drain::{self, begin_no_wait};
use crate::aio::{self, BottomHalf, Callback, Event};
use crate::block::BlockError;
use crate::block::node::NodeId;
use crate::config::COROUTINE_DRAINS;
use crate::sync::IrqLock;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Free,
    /// The main loop is to begin.
    Asked,
    /// Begun, not quiet yet.
    Begun,
    /// Quiet.
    On,
    /// The main loop is to end it.
    Over,
    Refused(BlockError),
}

#[derive(Clone, Copy)]
struct State {
    phase: Phase,
    /// The node; `None`: everything.
    node: Option<NodeId>,
    /// The coroutine is gone: the section ends as soon as it is quiet.
    abandoned: bool,
}

struct Slot {
    state: IrqLock<State>,
    quiet: Event,
}

static SLOTS: [Slot; COROUTINE_DRAINS] = [const {
    Slot {
        state: IrqLock::new(State {
            phase: Phase::Free,
            node: None,
            abandoned: false,
        }),
        quiet: Event::new(),
    }
}; COROUTINE_DRAINS];
static MAIN_BH: IrqLock<Option<BottomHalf>> = IrqLock::new(None);

pub(super) fn start() -> Result<(), BlockError> {
    let main = aio::main_context()
        .bottom_half("coroutine drains", Callback::new(&serve, 0))
        .map_err(|_| BlockError::NoMemory)?;
    *MAIN_BH.lock() = Some(main);
    Ok(())
}

fn ask() {
    let main = *MAIN_BH.lock();
    if let Some(main) = main {
        main.schedule();
    }
}

fn pin(id: NodeId) -> bool {
    with(|graph| match graph.place(id) {
        Some(place) => {
            graph.node(place).pins += 1;
            true
        }
        None => false,
    })
}

fn unpin(id: NodeId) {
    with(|graph| {
        if let Some(place) = graph.place(id) {
            let node = graph.node(place);
            node.pins = node.pins.saturating_sub(1);
        }
    });
}

/// A drained section that a coroutine has; ends when dropped, on any core, a little later.
#[must_use = "the section ends when the guard is dropped"]
pub struct Drained(usize);

impl Drained {
    fn claim(node: Option<NodeId>) -> Result<Self, BlockError> {
        if node.is_some_and(|id| !pin(id)) {
            return Err(BlockError::NoMedium);
        }
        for (index, slot) in SLOTS.iter().enumerate() {
            let mut state = slot.state.lock();
            if state.phase == Phase::Free {
                // Before anybody can set it for this section.
                slot.quiet.clear();
                *state = State {
                    phase: Phase::Asked,
                    node,
                    abandoned: false,
                };
                drop(state);
                ask();
                return Ok(Self(index));
            }
        }
        if let Some(id) = node {
            unpin(id);
            crate::block::drain_kick();
        }
        Err(BlockError::NoMemory)
    }

    async fn wait(self) -> Result<Self, BlockError> {
        let slot = &SLOTS[self.0];
        slot.quiet.wait().await;
        let phase = slot.state.lock().phase;
        match phase {
            Phase::Refused(error) => Err(error),
            _ => Ok(self),
        }
    }
}

impl Drop for Drained {
    fn drop(&mut self) {
        let wanted = {
            let mut state = SLOTS[self.0].state.lock();
            match state.phase {
                Phase::On => {
                    state.phase = Phase::Over;
                    true
                }
                Phase::Refused(_) => {
                    state.phase = Phase::Free;
                    false
                }
                _ => {
                    state.abandoned = true;
                    true
                }
            }
        };
        if wanted {
            ask();
        }
    }
}

/// Begins a drained section on the node and waits, as a coroutine, until it is quiet. A request of the same coroutine must not be in
/// flight there. Any core.
///
/// # Errors
/// `NoMedium` for a stale id; `NoMemory` when too many coroutines drain at once.
pub async fn drained_in_coroutine(id: NodeId) -> Result<Drained, BlockError> {
    Drained::claim(Some(id))?.wait().await
}

/// The same for everything (DRN-21).
///
/// # Errors
/// `NoMemory` when too many coroutines drain at once.
pub async fn drained_all_in_coroutine() -> Result<Drained, BlockError> {
    Drained::claim(None)?.wait().await
}

/// The main loop's part: begins and ends what was asked for.
fn serve(_: usize) {
    for (index, slot) in SLOTS.iter().enumerate() {
        let state = *slot.state.lock();
        match state.phase {
            Phase::Asked => begin(index, state),
            Phase::Over => end(slot, state.node),
            _ => {}
        }
    }
}

fn begin(index: usize, state: State) {
    let slot = &SLOTS[index];
    if let Some(id) = state.node {
        unpin(id);
    }
    if state.abandoned {
        slot.state.lock().phase = Phase::Free;
        crate::block::drain_kick();
        return;
    }
    // Before the section begins: it may be quiet at once.
    slot.state.lock().phase = Phase::Begun;
    let done = Callback::new(&quiet, index);
    let begun = match state.node {
        Some(id) => begin_no_wait(id)
            .and_then(|()| drain::when_quiet(id, done).inspect_err(|_| drain::drain_end(id))),
        // As for a node: also while the main loop holds a lock and waits.
        None => {
            drain::begin_all();
            drain::when_all_quiet(done).inspect_err(|_| drain::drain_all_end())
        }
    };
    if let Err(error) = begun {
        {
            let mut state = slot.state.lock();
            state.phase = if state.abandoned {
                Phase::Free
            } else {
                Phase::Refused(error)
            };
        }
        slot.quiet.set();
        crate::block::drain_kick();
    }
}

/// The section is quiet.
fn quiet(index: usize) {
    let slot = &SLOTS[index];
    let (abandoned, node) = {
        let mut state = slot.state.lock();
        if !state.abandoned {
            state.phase = Phase::On;
        }
        (state.abandoned, state.node)
    };
    if abandoned {
        end(slot, node);
    } else {
        slot.quiet.set();
    }
}

fn end(slot: &Slot, node: Option<NodeId>) {
    match node {
        Some(id) => drain::drain_end(id),
        None => drain::drain_all_end(),
    }
    slot.state.lock().phase = Phase::Free;
}

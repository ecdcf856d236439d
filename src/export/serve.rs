//! From a node to an export, and back: the backend between them, its permissions, and their end.
//!
//! ```text
//!   serve: backend on the node ─▶ listed          withdraw: not listed ─▶ last session left ─▶ backend drained ─▶ deleted
//! ```
//! Main loop only. Nothing waits: the end of a withdrawal is told to whoever asked for it.
#![forbid(unsafe_code)]

use core::fmt::{self, Write as _};
use core::sync::atomic::{AtomicU32, Ordering};

use heapless::{String, Vec};

use super::nbd;
use super::table::{self, Export, ExportError, ExportId, RemoveMode};
use crate::aio::{self, BottomHalf, Callback};
use crate::block::graph::{Permissions, Refusal};
use crate::block::{Backend, NodeId};
use crate::config::EXPORTS;
use crate::sync::HomeCell;

/// Why a node is not served, or goes on being served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServeError {
    /// The table of exports refused.
    Export(ExportError),
    /// The graph refused.
    Graph(Refusal),
}

impl fmt::Display for ServeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ServeError::Export(error) => write!(f, "{error}"),
            ServeError::Graph(refusal) => write!(f, "{refusal}"),
        }
    }
}

impl core::error::Error for ServeError {}

impl From<ExportError> for ServeError {
    fn from(error: ExportError) -> Self {
        ServeError::Export(error)
    }
}

impl From<Refusal> for ServeError {
    fn from(refusal: Refusal) -> Self {
        ServeError::Graph(refusal)
    }
}

/// An export that is being withdrawn.
struct Leaving {
    id: ExportId,
    backend: &'static Backend,
    /// Its sessions are gone, and a drained section on the backend has begun.
    draining: bool,
    done: Callback,
}

struct State {
    leaving: Vec<Leaving, EXPORTS>,
    bottom_half: Option<BottomHalf>,
}

static STATE: HomeCell<State> = HomeCell::new(State {
    leaving: Vec::new(),
    bottom_half: None,
});

/// Numbers the backends of exports.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// Exports `node` under `name`. Clients share what they write with the node's other users.
///
/// # Errors
/// A stale or read-only node (for a writable export), a node that another user keeps to itself, a bad name or one in use, no room.
/// Then nothing is left behind.
pub fn serve(
    node: NodeId,
    name: &str,
    description: &str,
    writable: bool,
) -> Result<ExportId, ServeError> {
    let mut backend_name: String<24> = String::new();
    // Ten digits at most.
    let _ = write!(
        backend_name,
        "export-{}",
        NEXT.fetch_add(1, Ordering::Relaxed)
    );
    let permissions = if writable {
        Permissions::SHARED_WRITER
    } else {
        Permissions::READER
    };
    let backend = Backend::open(&backend_name, "nbd", Some(node), permissions)?;
    backend.set_read_only(!writable);
    match table::add(name, description, backend, writable) {
        Ok(id) => Ok(id),
        Err(error) => {
            // It has no user yet, so it is quiet as soon as its gates are closed.
            if backend
                .drain_begin(Callback::new(&drop_unused, backend.index()))
                .is_err()
            {
                log::error!("backend {backend_name} stays, unused: too many drained sections");
            }
            Err(error.into())
        }
    }
}

/// A backend whose export the table refused.
fn drop_unused(index: usize) {
    if let Some(backend) = crate::block::backend(index)
        && let Err(error) = backend.delete()
    {
        log::error!("backend {} stays, unused: {error}", backend.name());
    }
}

/// Takes the export away: `done` is called, in the main loop, later, when its last session has left and its backend is gone.
///
/// # Errors
/// No such export; one with clients, in safe mode; no room. Then nothing has changed.
pub fn withdraw(name: &str, mode: RemoveMode, done: Callback) -> Result<(), ServeError> {
    start()?;
    let mut found: Option<Export> = None;
    table::for_each(|export| {
        if export.name == name {
            found = Some(export.clone());
        }
    });
    let export = found.ok_or(ExportError::NotFound)?;
    let leaving = Leaving {
        id: export.id,
        backend: export.backend,
        draining: false,
        done,
    };
    let gone = table::remove(name, mode)?;
    STATE.with(|state| {
        // There are no more exports than places.
        let pushed = state.leaving.push(leaving);
        debug_assert!(pushed.is_ok());
    });
    if !gone {
        nbd::wake_all();
    }
    look(0);
    Ok(())
}

/// Registers the bottom half that hears of exports whose last session has left.
fn start() -> Result<(), ServeError> {
    STATE.bind(0);
    if STATE.with(|state| state.bottom_half.is_some()) {
        return Ok(());
    }
    let bottom_half = aio::main_context()
        .bottom_half("exports", Callback::new(&look, 0))
        .map_err(|_| ExportError::Full)?;
    STATE.with(|state| state.bottom_half = Some(bottom_half));
    table::set_gone(bottom_half);
    Ok(())
}

/// Drains the backends of those that have no session any more.
fn look(_: usize) {
    loop {
        let next = STATE.with(|state| {
            let leaving = state
                .leaving
                .iter_mut()
                .find(|leaving| !leaving.draining && !table::exists(leaving.id))?;
            leaving.draining = true;
            Some(leaving.backend)
        });
        let Some(backend) = next else { return };
        let begun = backend.drain_begin(Callback::new(&quiet, backend.index()));
        if let Err(error) = begun {
            log::error!("backend {} stays: {error}", backend.name());
            finish(backend.index());
        }
    }
}

/// A withdrawn export's backend is quiet.
fn quiet(index: usize) {
    if let Some(backend) = crate::block::backend(index)
        && let Err(error) = backend.delete()
    {
        log::error!("backend {} stays: {error}", backend.name());
        backend.drain_end();
    }
    finish(index);
}

fn finish(index: usize) {
    let done = STATE.with(|state| {
        let place = state
            .leaving
            .iter()
            .position(|leaving| leaving.draining && leaving.backend.index() == index)?;
        Some(state.leaving.swap_remove(place).done)
    });
    if let Some(done) = done {
        done.call();
    }
}

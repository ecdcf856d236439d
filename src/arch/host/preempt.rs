//! The host under a scheduler of its own (`--cfg preempt`): every core is a stackful coroutine of one thread, and may
//! be switched away from at every atomic access.
//!
//! The scheduler (`tests/replay`) gives its hooks with [`set`]; without them everything is as on the plain host. On a
//! switch it exchanges what belongs to a core with [`CoreState::swap`].
use core::cell::Cell;

use super::{CORE, INTERRUPT_DEPTH, MASK_DEPTH};
use crate::arch::CoreId;

/// What the scheduler does.
#[derive(Clone, Copy)]
pub struct Hooks {
    /// Before every atomic access of a core: may switch to another one.
    pub point: fn(),
    /// In place of [`wait`](super::wait).
    pub wait: fn(Option<u64>),
    /// In place of [`kick`](super::kick).
    pub kick: fn(CoreId),
    /// In place of [`relax`](super::relax).
    pub relax: fn(),
    /// Interrupts of the running core have just been unmasked: those that came meanwhile are taken.
    pub unmasked: fn(),
}

std::thread_local! {
    static HOOKS: Cell<Option<Hooks>> = const { Cell::new(None) };
}

/// Sets the hooks of this thread.
pub fn set(hooks: Option<Hooks>) {
    HOOKS.set(hooks);
}

/// The hooks of this thread.
#[inline]
pub(super) fn hooks() -> Option<Hooks> {
    HOOKS.get()
}

/// A place where another core may go on.
#[inline]
pub fn point() {
    if let Some(hooks) = hooks() {
        (hooks.point)();
    }
}

/// What belongs to a core and lies in thread-locals while it runs.
#[derive(Clone, Copy, Debug)]
pub struct CoreState {
    core: Option<CoreId>,
    mask_depth: usize,
    interrupt_depth: usize,
}

impl CoreState {
    /// Core `id` at its start; `None`: no core.
    pub const fn new(id: Option<CoreId>) -> Self {
        Self {
            core: id,
            mask_depth: 0,
            interrupt_depth: 0,
        }
    }

    /// Exchanges this with the state of the running thread.
    pub fn swap(&mut self) {
        self.core = CORE.replace(self.core);
        self.mask_depth = MASK_DEPTH.replace(self.mask_depth);
        self.interrupt_depth = INTERRUPT_DEPTH.replace(self.interrupt_depth);
    }
}

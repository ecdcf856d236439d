//! Turn hooks: what is done once at the end of a turn, however often it was asked for (ADP-10): "publish and kick".
#![forbid(unsafe_code)]

use super::callback::{AioError, Callback};
use super::context::AioContext;
use crate::config::TURN_HOOKS;
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::{IndexStack, IrqLock};

const _: () = assert!(TURN_HOOKS <= 32, "armed hooks are bits of one word");

/// The hooks of a context.
#[repr(C)]
pub(super) struct Hooks {
    armed: AtomicU32,
    table: IrqLock<[Option<(Callback, &'static str)>; TURN_HOOKS]>,
    free: IndexStack<TURN_HOOKS>,
}

impl Hooks {
    pub(super) const fn new() -> Self {
        Self {
            table: IrqLock::new([const { None }; TURN_HOOKS]),
            free: IndexStack::new(),
            armed: AtomicU32::new(0),
        }
    }

    #[inline]
    pub(super) fn any_armed(&self) -> bool {
        self.armed.load(Ordering::Relaxed) != 0
    }
}

impl AioContext {
    /// A hook that calls `callback` at the end of each turn in which it was armed. Hooks are never freed.
    ///
    /// # Errors
    /// [`AioError::Exhausted`] when the context has [`TURN_HOOKS`] already.
    pub fn turn_hook(
        &'static self,
        name: &'static str,
        callback: Callback,
    ) -> Result<TurnHook, AioError> {
        let index = self.hooks.free.take().ok_or(AioError::Exhausted)?;
        self.hooks.table.lock()[index] = Some((callback, name));
        Ok(TurnHook {
            context: self,
            index: index as u8,
        })
    }

    /// Runs the hooks armed so far; one that arms itself again waits for the next turn.
    #[inline]
    pub(super) fn run_hooks(&'static self) {
        if self.hooks.any_armed() {
            self.run_armed_hooks();
        }
    }

    #[inline(never)]
    fn run_armed_hooks(&'static self) {
        let mut armed = self.hooks.armed.swap(0, Ordering::Relaxed);
        while armed != 0 {
            let index = armed.trailing_zeros() as usize;
            armed &= armed - 1;
            let hook = self.hooks.table.lock()[index];
            if let Some((callback, name)) = hook {
                self.call(callback, name);
            }
        }
    }
}

/// Handle of a turn hook.
#[derive(Clone, Copy)]
pub struct TurnHook {
    context: &'static AioContext,
    index: u8,
}

impl TurnHook {
    /// Runs it once at the end of this poll's dispatch, before any wait (a nested poll's too). Cheap when armed.
    ///
    /// # Panics
    /// On another core than the context's home (debug builds).
    #[inline]
    pub fn arm(&self) {
        debug_assert!(
            self.context.is_home(),
            "a turn hook is armed on its home core only"
        );
        let armed = &self.context.hooks.armed;
        let mask = 1 << self.index;
        if armed.load(Ordering::Relaxed) & mask == 0 {
            armed.fetch_or(mask, Ordering::Relaxed);
        }
    }
}

//! The timers of one member of a group, in the context of its node.
#![forbid(unsafe_code)]

use super::config::Direction;
use crate::aio::{self, Callback, Timer};
use crate::arch::CoreId;
use crate::block::BlockError;
use crate::sync::IrqLock;

type Slots = [Option<Timer>; 2];

/// A timer for each direction in use, or none while the member is between contexts.
pub struct Timers {
    slots: IrqLock<Slots>,
    /// Those of the context to which the member may be moving.
    reserved: IrqLock<Slots>,
}

fn delete(slots: Slots) {
    for timer in slots.into_iter().flatten() {
        timer.cancel();
        // Disarmed just now, and only its owner arms it.
        let _ = timer.delete();
    }
}

impl Timers {
    /// No timers.
    pub const fn new() -> Self {
        Self {
            slots: IrqLock::new([None; 2]),
            reserved: IrqLock::new([None; 2]),
        }
    }

    /// Takes timers for `directions` in the context of `core`, whose callbacks are `fired` (by [`Direction::index`]);
    /// [`attach`](Self::attach) puts them to use. Any core.
    ///
    /// # Errors
    /// `NoMemory` when the context has none left; then nothing was taken.
    pub fn reserve(
        &self,
        core: CoreId,
        fired: [Callback; 2],
        directions: &[Direction],
    ) -> Result<(), BlockError> {
        self.cancel_reserved();
        for direction in directions {
            let d = direction.index();
            match aio::context(core).timer("throttle", fired[d]) {
                Ok(timer) => self.reserved.lock()[d] = Some(timer),
                Err(_) => {
                    self.cancel_reserved();
                    return Err(BlockError::NoMemory);
                }
            }
        }
        Ok(())
    }

    /// Gives back what [`reserve`](Self::reserve) took.
    pub fn cancel_reserved(&self) {
        delete(core::mem::take(&mut *self.reserved.lock()));
    }

    /// The reserved timers are the timers from now on.
    pub fn attach(&self) {
        let reserved = core::mem::take(&mut *self.reserved.lock());
        delete(core::mem::replace(&mut *self.slots.lock(), reserved));
    }

    /// Disarms and frees the timers. Any core; one that is firing now finds nothing any more.
    pub fn detach(&self) {
        delete(core::mem::take(&mut *self.slots.lock()));
    }

    /// The timer of a direction.
    pub fn get(&self, direction: Direction) -> Option<Timer> {
        self.slots.lock()[direction.index()]
    }

    /// Whether there are timers.
    pub fn exist(&self) -> bool {
        self.slots.lock().iter().any(Option::is_some)
    }

    /// Whether the timer of a direction is armed.
    pub fn is_armed(&self, direction: Direction) -> bool {
        self.get(direction).is_some_and(|timer| timer.is_pending())
    }

    /// Arms the timer of a direction, for a time of the monotonic clock; false when there is none.
    pub fn arm(&self, direction: Direction, deadline_ns: u64) -> bool {
        self.get(direction)
            .is_some_and(|timer| timer.arm_at(deadline_ns))
    }

    /// Disarms the timer of a direction.
    pub fn cancel(&self, direction: Direction) {
        if let Some(timer) = self.get(direction) {
            timer.cancel();
        }
    }
}

impl Default for Timers {
    fn default() -> Self {
        Self::new()
    }
}

//! A static that is handed out once, for ever: how large memory reaches its owner without a stack in between.
use core::cell::UnsafeCell;

use super::atomic::{AtomicBool, Ordering};

/// A value that the first caller of [`Claim::take`] gets for good. Zeros stay in `.bss`.
pub struct Claim<T> {
    taken: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached only through the one reference that `take` gives out, possibly on another core than the
// one that made it, which `T: Send` allows.
unsafe impl<T: Send> Sync for Claim<T> {}

impl<T> Claim<T> {
    /// Not taken yet.
    pub const fn new(value: T) -> Self {
        Self {
            taken: AtomicBool::new(false),
            value: UnsafeCell::new(value),
        }
    }

    /// The value, for the first caller; `None` for all others. Any core.
    #[expect(
        clippy::mut_from_ref,
        reason = "given out once, see the SAFETY comment"
    )]
    pub fn take(&'static self) -> Option<&'static mut T> {
        if self.taken.swap(true, Ordering::AcqRel) {
            return None;
        }
        // SAFETY: `taken` was clear and never is again, so this is the only reference; `self` lives for ever.
        Some(unsafe { &mut *self.value.get() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_given_once() {
        static MEMORY: Claim<[u8; 100]> = Claim::new([0; 100]);
        let memory = MEMORY.take().unwrap();
        memory[99] = 1;
        assert!(MEMORY.take().is_none());
    }
}

//! A value that only its home core touches: the owner's private state inside a shared static.
use core::cell::UnsafeCell;

use super::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::arch::{self, CoreId};

/// `home` of a cell that no core has claimed yet. Zero, so that a cell of zeroes lives in `.bss`; a core is stored as its
/// number plus one.
const UNBOUND: usize = 0;

/// A value whose home core alone may borrow it, one borrow at a time. Another core's attempt, or a borrow inside a
/// borrow, is a bug of ours and panics in [`HomeCell::with`].
///
/// No `&mut` of it may live across a callback: borrow, change, let go, then call.
pub struct HomeCell<T> {
    home: AtomicUsize,
    borrowed: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached only by the core in `home`, which is set once and is one thread of execution at a time;
// `borrowed` excludes a second borrow on that core (from a callback or an interrupt handler). So the value is used
// from one thread, possibly not the one that made it, which `T: Send` allows.
unsafe impl<T: Send> Sync for HomeCell<T> {}

/// Ends the borrow, also when the closure panics (host tests unwind).
struct Borrow<'a>(&'a AtomicBool);

impl Drop for Borrow<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl<T> HomeCell<T> {
    /// A cell without a home.
    pub const fn new(value: T) -> Self {
        Self {
            home: AtomicUsize::new(UNBOUND),
            borrowed: AtomicBool::new(false),
            value: UnsafeCell::new(value),
        }
    }

    /// Makes `core` the home; again with the same core is allowed.
    ///
    /// # Panics
    /// When another core is its home.
    pub fn bind(&self, core: CoreId) {
        if let Err(home) =
            self.home
                .compare_exchange(UNBOUND, core + 1, Ordering::AcqRel, Ordering::Acquire)
        {
            assert_eq!(
                home,
                core + 1,
                "core {core} claims a cell whose home is core {}",
                home - 1
            );
        }
    }

    /// The home core, once bound.
    pub fn home(&self) -> Option<CoreId> {
        match self.home.load(Ordering::Acquire) {
            UNBOUND => None,
            home => Some(home - 1),
        }
    }

    /// Lends the value to `f`.
    ///
    /// # Panics
    /// On a core that is not its home, and while it is borrowed: both are bugs of ours.
    #[inline(always)]
    pub fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        self.check_home();
        if self.borrowed.load(Ordering::Acquire) {
            borrowed_twice();
        }
        self.lend(f)
    }

    /// Lends the value to `f`, or returns `None` while it is borrowed.
    ///
    /// # Panics
    /// On a core that is not its home.
    #[inline(always)]
    pub fn try_with<R>(&self, f: impl FnOnce(&mut T) -> R) -> Option<R> {
        self.check_home();
        if self.borrowed.load(Ordering::Acquire) {
            return None;
        }
        Some(self.lend(f))
    }

    #[inline(always)]
    fn check_home(&self) {
        let home = self.home.load(Ordering::Relaxed);
        if arch::current_core().is_none_or(|core| core + 1 != home) {
            self.foreign(home);
        }
    }

    /// After `check_home`, with `borrowed` clear.
    #[inline(always)]
    fn lend<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        // Only this core gets here, so the look at `borrowed` and this store need not be one step: an interrupt handler
        // between them takes and gives back the borrow before this code goes on.
        self.borrowed.store(true, Ordering::Relaxed);
        core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::SeqCst);
        let _borrow = Borrow(&self.borrowed);
        // SAFETY: both callers have seen that we run on the home core and that `borrowed` was clear, so no other
        // reference to the value exists until `_borrow` is dropped.
        f(unsafe { &mut *self.value.get() })
    }

    #[cold]
    #[inline(never)]
    fn foreign(&self, home: usize) -> ! {
        match (home, arch::current_core()) {
            (UNBOUND, _) => panic!("a home cell was used before it was bound"),
            (home, Some(core)) => {
                panic!("core {core} touched a cell whose home is core {}", home - 1)
            }
            (home, None) => panic!(
                "a thread that is no core touched a cell whose home is core {}",
                home - 1
            ),
        }
    }
}

#[cold]
#[inline(never)]
fn borrowed_twice() -> ! {
    panic!("a home cell was borrowed inside its own borrow")
}

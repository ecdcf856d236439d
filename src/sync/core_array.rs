//! One value a core, each in cache lines of its own.
#![forbid(unsafe_code)]

use core::ops::{Deref, DerefMut};

use crate::arch::{self, CoreId};
use crate::config::MAX_CORES;

/// A value alone in its cache lines (128 bytes: cores fetch pairs of 64-byte lines).
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct CachePadded<T>(T);

impl<T> CachePadded<T> {
    /// Wraps `value`.
    pub const fn new(value: T) -> Self {
        Self(value)
    }
}

impl<T> Deref for CachePadded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for CachePadded<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

/// One `T` a core.
///
/// ```
/// use core::sync::atomic::AtomicU64;
/// use ironthread::sync::{CachePadded, CoreArray};
/// static COUNTS: CoreArray<AtomicU64> = CoreArray::new([const { CachePadded::new(AtomicU64::new(0)) }; _]);
/// assert_eq!(COUNTS.iter().count(), ironthread::config::MAX_CORES);
/// ```
pub struct CoreArray<T>([CachePadded<T>; MAX_CORES]);

impl<T> CoreArray<T> {
    /// From one value a core.
    pub const fn new(values: [CachePadded<T>; MAX_CORES]) -> Self {
        Self(values)
    }

    /// The value of `core`.
    ///
    /// # Panics
    /// When `core` is not below `MAX_CORES`.
    #[inline]
    pub const fn get(&self, core: CoreId) -> &T {
        &self.0[core].0
    }

    /// The current core's value; `None` on a host thread that is no core.
    #[inline]
    pub fn mine(&self) -> Option<&T> {
        arch::current_core().map(|core| self.get(core))
    }

    /// All values, in core order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|padded| &padded.0)
    }
}

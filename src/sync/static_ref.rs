//! A reference to a static that can be set and read from any core without a lock.
use core::ptr;

use super::atomic::{AtomicPtr, Ordering};

/// `Option<&'static T>`, atomically. Setting releases, getting acquires.
pub struct StaticRef<T: 'static>(AtomicPtr<T>);

// SAFETY: the cell hands out `&'static T` to any thread, which `T: Sync` allows, and drops no `T`.
unsafe impl<T: Sync> Sync for StaticRef<T> {}
// SAFETY: as above: moving the cell moves a shared reference.
unsafe impl<T: Sync> Send for StaticRef<T> {}

impl<T> StaticRef<T> {
    /// Refers to nothing.
    pub const fn new() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }

    /// Refers to `value` from now on.
    #[inline]
    pub fn set(&self, value: Option<&'static T>) {
        let pointer = value.map_or(ptr::null_mut(), |value| ptr::from_ref(value).cast_mut());
        self.0.store(pointer, Ordering::Release);
    }

    /// What it refers to now.
    #[inline]
    pub fn get(&self) -> Option<&'static T> {
        // SAFETY: the pointer is null or came from a `&'static T` in `set`; nothing makes a `&mut` of it.
        unsafe { self.0.load(Ordering::Acquire).as_ref() }
    }

    /// Whether it refers to exactly `value`.
    #[inline]
    pub fn is(&self, value: &T) -> bool {
        ptr::eq(self.0.load(Ordering::Acquire), value)
    }
}

impl<T> Default for StaticRef<T> {
    fn default() -> Self {
        Self::new()
    }
}

//! `core`'s atomics with a place for preemption before every access (`--cfg preempt`, for `tests/replay`).
//!
//! All cores are one thread then, so every access is sequentially consistent whatever it says: this finds wrong
//! interleavings, and `tests/models` finds wrong orderings.
#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "the methods are those of core's atomics")]

use core::sync::atomic as plain;

use crate::arch::host::preempt::point;
pub use plain::{Ordering, compiler_fence};

/// A fence, where another core may go on.
pub fn fence(order: Ordering) {
    point();
    plain::fence(order);
}

macro_rules! wrapper {
    ($name:ty, $value:ty, [$($rmw:ident)*]) => {
        #[inline]
        fn apply<R>(
            &self,
            atomic: impl FnOnce(&$name) -> R,
            _plain: impl FnOnce(&mut $value) -> R,
        ) -> R {
            point();
            atomic(&self.0)
        }
        accesses!($value, [$($rmw)*]);
        pub fn get_mut(&mut self) -> &mut $value {
            self.0.get_mut()
        }
        pub fn into_inner(self) -> $value {
            self.0.into_inner()
        }
    };
}

macro_rules! integers {
    ($($name:ident $value:ty,)*) => {
        $(
            #[doc = concat!("`core`'s `", stringify!($name), "`, preemptible.")]
            #[derive(Debug, Default)]
            #[repr(transparent)]
            pub struct $name(plain::$name);

            impl $name {
                pub const fn new(value: $value) -> Self {
                    Self(plain::$name::new(value))
                }
                wrapper!(
                    plain::$name,
                    $value,
                    [fetch_add fetch_sub fetch_and fetch_or fetch_xor fetch_max fetch_min]
                );
                pub fn fetch_update(
                    &self,
                    set: Ordering,
                    fetch: Ordering,
                    mut change: impl FnMut($value) -> Option<$value>,
                ) -> Result<$value, $value> {
                    let mut old = self.load(fetch);
                    while let Some(new) = change(old) {
                        match self.compare_exchange(old, new, set, fetch) {
                            Ok(old) => return Ok(old),
                            Err(now) => old = now,
                        }
                    }
                    Err(old)
                }
            }
        )*
    };
}

integers! {
    AtomicU8 u8,
    AtomicU16 u16,
    AtomicU32 u32,
    AtomicU64 u64,
    AtomicUsize usize,
}

/// `core`'s `AtomicBool`, preemptible.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct AtomicBool(plain::AtomicBool);

impl AtomicBool {
    pub const fn new(value: bool) -> Self {
        Self(plain::AtomicBool::new(value))
    }
    wrapper!(plain::AtomicBool, bool, [fetch_and fetch_or fetch_xor]);
}

/// `core`'s `AtomicPtr`, preemptible.
#[derive(Debug)]
#[repr(transparent)]
pub struct AtomicPtr<T>(plain::AtomicPtr<T>);

impl<T> AtomicPtr<T> {
    pub const fn new(value: *mut T) -> Self {
        Self(plain::AtomicPtr::new(value))
    }
    wrapper!(plain::AtomicPtr<T>, *mut T, []);
}

impl<T> Default for AtomicPtr<T> {
    fn default() -> Self {
        Self::new(core::ptr::null_mut())
    }
}

//! The accesses of an atomic that stands in for `core`'s: written once for [loom's](super::model) and for
//! [preemptible ones](super::preempt).
#![forbid(unsafe_code)]

/// The methods of an atomic of `$value`, the named read-modify-writes among them.
///
/// The atomic has `fn apply(&self, atomic, plain)`: it calls `atomic` with the one that it wraps, or, while it has none, `plain`
/// with the bare value.
macro_rules! accesses {
    ($value:ty, [$($rmw:ident)*]) => {
        /// Loads.
        #[inline]
        pub fn load(&self, order: Ordering) -> $value {
            self.apply(|a| a.load(order), |p| *p)
        }

        /// Stores.
        #[inline]
        pub fn store(&self, value: $value, order: Ordering) {
            self.apply(|a| a.store(value, order), |p| *p = value);
        }

        /// Stores and returns what was there.
        #[inline]
        pub fn swap(&self, value: $value, order: Ordering) -> $value {
            self.apply(|a| a.swap(value, order), |p| core::mem::replace(p, value))
        }

        /// Stores `new` when `current` is there.
        ///
        /// # Errors
        /// What was there instead.
        #[inline]
        pub fn compare_exchange(
            &self,
            current: $value,
            new: $value,
            success: Ordering,
            failure: Ordering,
        ) -> Result<$value, $value> {
            self.apply(
                |a| a.compare_exchange(current, new, success, failure),
                |p| {
                    if *p == current {
                        Ok(core::mem::replace(p, new))
                    } else {
                        Err(*p)
                    }
                },
            )
        }

        /// As [`compare_exchange`](Self::compare_exchange): it never fails without reason, so that a run can be done again.
        ///
        /// # Errors
        /// What was there instead.
        #[inline]
        pub fn compare_exchange_weak(
            &self,
            current: $value,
            new: $value,
            success: Ordering,
            failure: Ordering,
        ) -> Result<$value, $value> {
            self.compare_exchange(current, new, success, failure)
        }

        $(accesses!(@ $rmw, $value);)*
    };
    (@ fetch_add, $value:ty) => { accesses!(@@ fetch_add, $value, |old, value| old.wrapping_add(value)); };
    (@ fetch_sub, $value:ty) => { accesses!(@@ fetch_sub, $value, |old, value| old.wrapping_sub(value)); };
    (@ fetch_and, $value:ty) => { accesses!(@@ fetch_and, $value, |old, value| old & value); };
    (@ fetch_or, $value:ty) => { accesses!(@@ fetch_or, $value, |old, value| old | value); };
    (@ fetch_xor, $value:ty) => { accesses!(@@ fetch_xor, $value, |old, value| old ^ value); };
    (@ fetch_max, $value:ty) => { accesses!(@@ fetch_max, $value, |old, value| old.max(value)); };
    (@ fetch_min, $value:ty) => { accesses!(@@ fetch_min, $value, |old, value| old.min(value)); };
    (@@ $name:ident, $value:ty, |$old:ident, $new:ident| $result:expr) => {
        /// As `core`'s function of this name.
        #[inline]
        pub fn $name(&self, value: $value, order: Ordering) -> $value {
            self.apply(
                |a| a.$name(value, order),
                |p| {
                    let ($old, $new) = (*p, value);
                    *p = $result;
                    $old
                },
            )
        }
    };
}

//! Counters by operation and core: written by one core, read by any, summed on query.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::{BlockError, Operation};

/// Buckets of the latency histogram: bucket `n` counts requests of `2^n` to `2^(n+1)` microseconds, the last all longer ones.
pub const LATENCY_BUCKETS: usize = 24;

/// A counter with one writer: no atomic read-modify-write.
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Only on the core that owns it.
    #[inline]
    pub(crate) fn add(&self, n: u64) {
        self.0.store(
            self.0.load(Ordering::Relaxed).wrapping_add(n),
            Ordering::Release,
        );
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    pub(crate) fn clear(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

/// Per-core counters of a backend or node.
pub(crate) struct Counters {
    operations: [Counter; 5],
    errors: [Counter; 5],
    bytes: [Counter; 5],
    latency: [AtomicU32; LATENCY_BUCKETS],
}

impl Counters {
    pub(crate) const fn new() -> Self {
        Self {
            operations: [const { Counter::new() }; 5],
            errors: [const { Counter::new() }; 5],
            bytes: [const { Counter::new() }; 5],
            latency: [const { AtomicU32::new(0) }; LATENCY_BUCKETS],
        }
    }

    /// Books one finished request; only on the owning core.
    #[inline]
    pub(crate) fn book(&self, operation: Operation, len: u64, result: Result<(), BlockError>) {
        let index = operation.index();
        if result.is_ok() {
            self.operations[index].add(1);
            self.bytes[index].add(len);
        } else {
            self.errors[index].add(1);
        }
    }

    /// Books how long it took, to the accuracy of the loop's turns.
    #[inline]
    pub(crate) fn book_latency(&self, ns: u64) {
        let bucket = ((ns >> 10) | 1).ilog2().min(LATENCY_BUCKETS as u32 - 1);
        let counter = &self.latency[bucket as usize];
        counter.store(
            counter.load(Ordering::Relaxed).wrapping_add(1),
            Ordering::Relaxed,
        );
    }

    pub(crate) fn clear(&self) {
        for counters in [&self.operations, &self.errors, &self.bytes] {
            counters.iter().for_each(Counter::clear);
        }
        self.latency
            .iter()
            .for_each(|c| c.store(0, Ordering::Relaxed));
    }

    pub(crate) fn add_to(&self, totals: &mut Totals) {
        for operation in Operation::ALL {
            let index = operation.index();
            totals.operations[index] += self.operations[index].get();
            totals.errors[index] += self.errors[index].get();
            totals.bytes[index] += self.bytes[index].get();
        }
        for (total, counter) in totals.latency.iter_mut().zip(&self.latency) {
            *total += u64::from(counter.load(Ordering::Relaxed));
        }
    }
}

/// Sums over all cores; tables are in the order of [`Operation::ALL`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Requests that succeeded.
    pub operations: [u64; 5],
    /// Requests that failed.
    pub errors: [u64; 5],
    /// Bytes of those that succeeded.
    pub bytes: [u64; 5],
    /// Requests by duration: bucket `n` from `2^n` microseconds on.
    pub latency: [u64; LATENCY_BUCKETS],
}

impl Totals {
    /// Requests that failed, all operations.
    pub fn all_errors(&self) -> u64 {
        self.errors.iter().sum()
    }
}

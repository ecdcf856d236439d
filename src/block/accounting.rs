//! Counters by operation and core: written by one core, read by any, summed on query.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::{BlockError, Operation};

/// Buckets of a latency histogram: bucket `n` counts requests of `2^n` to `2^(n+1)` microseconds (1.024 µs, to be exact), the last
/// all from half a second on.
pub const LATENCY_BUCKETS: usize = 20;

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
}

/// Per-core histograms of a backend: how long its requests took, by operation.
pub(crate) struct Latencies([[AtomicU32; LATENCY_BUCKETS]; 5]);

impl Latencies {
    pub(crate) const fn new() -> Self {
        Self([const { [const { AtomicU32::new(0) }; LATENCY_BUCKETS] }; 5])
    }

    /// Books one finished request, to the accuracy of the loop's turns; only on the owning core.
    #[inline]
    pub(crate) fn book(&self, operation: Operation, ns: u64) {
        let bucket = ((ns >> 10) | 1).ilog2().min(LATENCY_BUCKETS as u32 - 1);
        let counter = &self.0[operation.index()][bucket as usize];
        counter.store(
            counter.load(Ordering::Relaxed).wrapping_add(1),
            Ordering::Relaxed,
        );
    }

    fn all(&self) -> impl Iterator<Item = &AtomicU32> {
        self.0.iter().flatten()
    }

    pub(crate) fn clear(&self) {
        self.all().for_each(|c| c.store(0, Ordering::Relaxed));
    }

    pub(crate) fn add_to(&self, totals: &mut Totals) {
        for (total, counter) in totals.latency.iter_mut().flatten().zip(self.all()) {
            *total += u64::from(counter.load(Ordering::Relaxed));
        }
    }
}

impl Counters {
    pub(crate) const fn new() -> Self {
        Self {
            operations: [const { Counter::new() }; 5],
            errors: [const { Counter::new() }; 5],
            bytes: [const { Counter::new() }; 5],
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

    pub(crate) fn clear(&self) {
        for counters in [&self.operations, &self.errors, &self.bytes] {
            counters.iter().for_each(Counter::clear);
        }
    }

    pub(crate) fn add_to(&self, totals: &mut Totals) {
        for operation in Operation::ALL {
            let index = operation.index();
            totals.operations[index] += self.operations[index].get();
            totals.errors[index] += self.errors[index].get();
            totals.bytes[index] += self.bytes[index].get();
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
    /// Requests by operation and duration: bucket `n` from `2^n` microseconds on.
    pub latency: [[u64; LATENCY_BUCKETS]; 5],
}

impl Totals {
    /// Requests that failed, all operations.
    pub fn all_errors(&self) -> u64 {
        self.errors.iter().sum()
    }

    /// A duration, in ns, that `share` of 1,000 requests of the operation did not exceed, as far as the buckets tell (the last has no
    /// end); `None` without any.
    pub fn latency_ns(&self, operation: Operation, share: u64) -> Option<u64> {
        let buckets = &self.latency[operation.index()];
        let count: u64 = buckets.iter().sum();
        let wanted = (count * share).div_ceil(1000).max(1);
        let mut seen = 0;
        let bucket = buckets.iter().position(|n| {
            seen += n;
            seen >= wanted
        })?;
        Some(1024 << (bucket + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_kept_by_operation() {
        let latencies = Latencies::new();
        for ns in [0, 1_500, 3_000, 1_000_000, u64::MAX] {
            latencies.book(Operation::Read, ns);
        }
        latencies.book(Operation::Flush, 5_000_000);
        let mut totals = Totals::default();
        latencies.add_to(&mut totals);
        assert_eq!(totals.latency_ns(Operation::Write, 500), None);
        assert_eq!(totals.latency_ns(Operation::Read, 400), Some(2048));
        assert_eq!(totals.latency_ns(Operation::Read, 500), Some(4096));
        assert_eq!(totals.latency_ns(Operation::Read, 800), Some(1 << 20));
        assert_eq!(totals.latency_ns(Operation::Read, 1000), Some(1024 << 20));
        assert_eq!(totals.latency_ns(Operation::Flush, 1), Some(8 << 20));
        latencies.clear();
        totals = Totals::default();
        latencies.add_to(&mut totals);
        assert_eq!(totals, Totals::default());
    }
}

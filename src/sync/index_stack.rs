//! A lock-free stack of the indices `0..N`: the free list of a static table.
//!
//! The head is one word: {tag, indices taken, top of the stack}. The tag changes with every operation, so that a
//! compare-and-exchange fails when the stack was popped and pushed again meanwhile (ABA). All zeros means "nothing
//! taken": a link that was never written stands for "the next index", so tables start life in `.bss`.
#![forbid(unsafe_code)]

use super::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

const TOP_BITS: u32 = 16;
const TAKEN_SHIFT: u32 = 16;
const TAG_SHIFT: u32 = 32;

/// Indices `0..N`, all free at first. Any core, interrupt handlers too.
pub struct IndexStack<const N: usize> {
    head: AtomicU64,
    high_water: AtomicU32,
    /// 0: `index + 1` follows (never pushed yet); else the following index plus one.
    links: [AtomicU16; N],
}

impl<const N: usize> IndexStack<N> {
    /// All indices free.
    pub const fn new() -> Self {
        assert!(N < u16::MAX as usize, "indices are 16 bits wide");
        Self {
            head: AtomicU64::new(0),
            high_water: AtomicU32::new(0),
            links: [const { AtomicU16::new(0) }; N],
        }
    }

    /// Takes an index, unless `limit` or more are taken already.
    #[inline]
    pub fn take_below(&self, limit: usize) -> Option<usize> {
        let mut head = self.head.load(Ordering::Acquire);
        loop {
            let top = (head & ((1 << TOP_BITS) - 1)) as usize;
            let taken = head >> TAKEN_SHIFT & 0xFFFF;
            if top >= N || taken as usize >= limit {
                return None;
            }
            // May be stale when another core takes `top` now; the exchange fails then, because of the tag.
            let link = self.links[top].load(Ordering::Relaxed) as u64;
            let next = if link == 0 { top as u64 + 1 } else { link - 1 };
            let new = next | (taken + 1) << TAKEN_SHIFT | Self::next_tag(head);
            match self
                .head
                .compare_exchange_weak(head, new, Ordering::Acquire, Ordering::Acquire)
            {
                Ok(_) => {
                    let taken = taken as u32 + 1;
                    if taken > self.high_water.load(Ordering::Relaxed) {
                        self.high_water.fetch_max(taken, Ordering::Relaxed);
                    }
                    return Some(top);
                }
                Err(now) => head = now,
            }
        }
    }

    /// Takes an index, if one is free.
    #[inline]
    pub fn take(&self) -> Option<usize> {
        self.take_below(N)
    }

    /// Gives `index` back. What was written before is visible to whoever takes it next.
    #[inline]
    pub fn give_back(&self, index: usize) {
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            let top = head & ((1 << TOP_BITS) - 1);
            let taken = head >> TAKEN_SHIFT & 0xFFFF;
            debug_assert!(taken > 0, "an index was given back twice");
            self.links[index].store(top as u16 + 1, Ordering::Relaxed);
            let new = index as u64 | taken.wrapping_sub(1) << TAKEN_SHIFT | Self::next_tag(head);
            match self
                .head
                .compare_exchange_weak(head, new, Ordering::Release, Ordering::Relaxed)
            {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// How many indices are taken.
    pub fn in_use(&self) -> usize {
        (self.head.load(Ordering::Relaxed) >> TAKEN_SHIFT & 0xFFFF) as usize
    }

    /// The most that were ever taken at once.
    pub fn high_water(&self) -> usize {
        self.high_water.load(Ordering::Relaxed) as usize
    }

    #[inline]
    fn next_tag(head: u64) -> u64 {
        ((head >> TAG_SHIFT) + 1) << TAG_SHIFT
    }
}

impl<const N: usize> Default for IndexStack<N> {
    fn default() -> Self {
        Self::new()
    }
}

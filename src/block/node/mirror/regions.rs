//! A set of regions: one bit each.
#![forbid(unsafe_code)]

use crate::config::MIRROR_REGIONS;

const WORDS: usize = MIRROR_REGIONS / 64;

/// Bytes that a set takes in a superblock.
pub const REGIONS_BYTES: usize = MIRROR_REGIONS / 8;

const _: () = assert!(MIRROR_REGIONS.is_multiple_of(64));

/// Regions of an array.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Regions {
    words: [u64; WORDS],
}

impl Regions {
    /// None.
    pub const NONE: Self = Self { words: [0; WORDS] };

    /// Takes all out.
    pub fn clear(&mut self) {
        self.words = [0; WORDS];
    }

    /// Makes it the first `count` regions.
    pub fn fill(&mut self, count: u64) {
        self.clear();
        (0..count).for_each(|region| self.insert(region));
    }

    /// Takes all out but the first `count`.
    pub fn truncate(&mut self, count: u64) {
        for (index, word) in self.words.iter_mut().enumerate() {
            let left = count.saturating_sub(index as u64 * 64);
            if left < 64 {
                *word &= (1 << left) - 1;
            }
        }
    }

    /// Whether the region is in it.
    #[inline]
    pub fn has(&self, region: u64) -> bool {
        self.words
            .get((region / 64) as usize)
            .is_some_and(|word| word >> (region % 64) & 1 != 0)
    }

    /// Puts a region in.
    #[inline]
    pub fn insert(&mut self, region: u64) {
        if let Some(word) = self.words.get_mut((region / 64) as usize) {
            *word |= 1 << (region % 64);
        }
    }

    /// Takes a region out.
    #[inline]
    pub fn remove(&mut self, region: u64) {
        if let Some(word) = self.words.get_mut((region / 64) as usize) {
            *word &= !(1 << (region % 64));
        }
    }

    /// Puts all of `other` in.
    pub fn add(&mut self, other: &Self) {
        for (word, other) in self.words.iter_mut().zip(&other.words) {
            *word |= other;
        }
    }

    /// Takes all of `other` out.
    pub fn subtract(&mut self, other: &Self) {
        for (word, other) in self.words.iter_mut().zip(&other.words) {
            *word &= !other;
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.words
            .iter()
            .map(|word| u64::from(word.count_ones()))
            .sum()
    }

    /// The first, from `from` on.
    pub fn next(&self, from: u64) -> Option<u64> {
        let mut index = (from / 64) as usize;
        let mut word = *self.words.get(index)? & (u64::MAX << (from % 64));
        while word == 0 {
            index += 1;
            word = *self.words.get(index)?;
        }
        Some(index as u64 * 64 + u64::from(word.trailing_zeros()))
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = u64> {
        let mut from = 0;
        core::iter::from_fn(move || {
            let region = self.next(from)?;
            from = region + 1;
            Some(region)
        })
    }

    /// As a superblock holds it: little-endian words.
    pub(super) fn encode(&self, out: &mut [u8]) {
        for (bytes, word) in out.chunks_exact_mut(8).zip(&self.words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
    }

    /// Adds what a superblock holds.
    pub(super) fn add_encoded(&mut self, from: &[u8]) {
        let (bytes, _) = from.as_chunks::<8>();
        for (word, bytes) in self.words.iter_mut().zip(bytes) {
            *word |= u64::from_le_bytes(*bytes);
        }
    }
}

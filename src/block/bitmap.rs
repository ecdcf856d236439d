//! Dirty bitmaps: which parts of an address space something has happened to.
//!
//! One bit stands for `granularity` bytes. Above the bits are two levels of sums, 64 to 1: a bit there says that the word below it has
//! a bit set. So the next dirty part is three looks away, however large and empty the bitmap is, and the way to the next clean bit is as
//! long as the part itself, which the caller bounds.
//!
//! ```text
//!   top      1 word        one bit a word of sums
//!   sums     32 words      one bit a word of bits
//!   bits     2048 words    one bit a granule
//! ```
//! What is set is rounded outwards to whole granules, what is cleared inwards: a granule is clean only when all of it is. The last
//! granule of an address space may be cut off by its end.
//!
//! Pure: no lock, no clock. Its owner says on which core.
#![forbid(unsafe_code)]

use core::ops::Range;

use crate::config::BITMAP_BITS;

const WORD: usize = 64;
const WORDS: usize = BITMAP_BITS / WORD;
const SUMS: usize = WORDS.div_ceil(WORD);

const _: () = assert!(BITMAP_BITS.is_multiple_of(WORD) && SUMS <= WORD);

/// Smallest granularity, in bytes.
pub const MIN_GRANULARITY: u64 = 4096;

/// Largest granularity, in bytes: a power of two that no sum with an offset overflows.
pub const MAX_GRANULARITY: u64 = 1 << 40;

/// Granularity, in bytes, of a bitmap for which none is asked for and that has room for it.
pub const DEFAULT_GRANULARITY: u64 = 64 * 1024;

/// The granularity asked for is no power of two in range, or has more bits than a bitmap holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadGranularity;

/// A hierarchical bitmap over `[0, size)` bytes. A new one is over nothing.
pub struct Bitmap {
    size: u64,
    /// Logarithm of the granularity.
    shift: u32,
    /// Bits that are set.
    count: u32,
    top: u64,
    sums: [u64; SUMS],
    bits: [u64; WORDS],
}

/// The smallest granularity, from `at_least` on, with which a bitmap is over `size` bytes.
pub fn granularity_for(size: u64, at_least: u64) -> u64 {
    let mut granularity = at_least.next_power_of_two().max(MIN_GRANULARITY);
    while granularity < MAX_GRANULARITY && size.div_ceil(granularity) > BITMAP_BITS as u64 {
        granularity *= 2;
    }
    granularity
}

impl Bitmap {
    /// Over nothing.
    pub const fn new() -> Self {
        Self {
            size: 0,
            shift: 0,
            count: 0,
            top: 0,
            sums: [0; SUMS],
            bits: [0; WORDS],
        }
    }

    /// Makes it one over `size` bytes, all clean.
    ///
    /// # Errors
    /// A granularity that is no power of two between [`MIN_GRANULARITY`] and [`MAX_GRANULARITY`], or too fine for the size; then it is
    /// what it was.
    pub fn reset(&mut self, size: u64, granularity: u64) -> Result<(), BadGranularity> {
        let valid = granularity.is_power_of_two()
            && (MIN_GRANULARITY..=MAX_GRANULARITY).contains(&granularity)
            && size.div_ceil(granularity) <= BITMAP_BITS as u64;
        if !valid {
            return Err(BadGranularity);
        }
        self.size = size;
        self.shift = granularity.trailing_zeros();
        self.clear_all();
        Ok(())
    }

    /// Bytes that it is over.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of a granule; 1 for a bitmap over nothing that was never reset.
    pub fn granularity(&self) -> u64 {
        1 << self.shift
    }

    /// Bits in use.
    fn len(&self) -> usize {
        (self.size.div_ceil(self.granularity())) as usize
    }

    /// Marks what the range touches. What is outside is left out.
    pub fn set(&mut self, range: Range<u64>) {
        let end = range.end.min(self.size);
        if range.start < end {
            let last = ((end - 1) >> self.shift) as usize;
            self.change((range.start >> self.shift) as usize..last + 1, true);
        }
    }

    /// Marks everything.
    pub fn set_all(&mut self) {
        self.set(0..self.size);
    }

    /// Cleans the granules that lie in the range altogether.
    pub fn clear(&mut self, range: Range<u64>) {
        let end = if range.end >= self.size {
            self.len()
        } else {
            (range.end >> self.shift) as usize
        };
        let start = range
            .start
            .checked_next_multiple_of(self.granularity())
            .map_or(end, |start| (start >> self.shift) as usize);
        if start < end {
            self.change(start..end, false);
        }
    }

    /// Cleans everything.
    pub fn clear_all(&mut self) {
        self.count = 0;
        self.top = 0;
        self.sums.fill(0);
        self.bits.fill(0);
    }

    fn change(&mut self, range: Range<usize>, dirty: bool) {
        let mut at = range.start;
        while at < range.end {
            let word = at / WORD;
            let end = range.end.min((word + 1) * WORD);
            let mask = (u64::MAX >> (WORD - (end - at))) << (at % WORD);
            let before = self.bits[word];
            let after = if dirty { before | mask } else { before & !mask };
            self.bits[word] = after;
            self.count = self.count + after.count_ones() - before.count_ones();
            if (before == 0) != (after == 0) {
                self.sum(word, after != 0);
            }
            at = end;
        }
    }

    /// The word has come to be empty, or no longer is.
    fn sum(&mut self, word: usize, dirty: bool) {
        let sum = &mut self.sums[word / WORD];
        put(sum, word % WORD, dirty);
        let any = *sum != 0;
        put(&mut self.top, word / WORD, any);
    }

    /// Whether the granule of `offset` is dirty.
    pub fn is_dirty(&self, offset: u64) -> bool {
        let bit = (offset >> self.shift) as usize;
        offset < self.size && self.bits[bit / WORD] & 1 << (bit % WORD) != 0
    }

    /// Whether the range touches something dirty.
    pub fn any_dirty(&self, range: Range<u64>) -> bool {
        self.next_bit((range.start >> self.shift) as usize)
            .is_some_and(|bit| (bit as u64) << self.shift < range.end)
            && range.start < range.end.min(self.size)
    }

    /// The first dirty part from the granule of `from` on, in whole granules, of at most `most` bytes (but at least a granule); cut at the
    /// end of the address space.
    pub fn next_dirty(&self, from: u64, most: u64) -> Option<Range<u64>> {
        if from >= self.size {
            return None;
        }
        let start = self.next_bit((from >> self.shift) as usize)?;
        let most = (most >> self.shift).clamp(1, BITMAP_BITS as u64) as usize;
        let end = self.next_clean(start, (start + most).min(self.len()));
        let end = ((end as u64) << self.shift).min(self.size);
        Some((start as u64) << self.shift..end)
    }

    /// As [`next_dirty`](Self::next_dirty), and cleans it.
    pub fn take_next(&mut self, from: u64, most: u64) -> Option<Range<u64>> {
        let range = self.next_dirty(from, most)?;
        self.clear(range.clone());
        Some(range)
    }

    /// Bytes that are dirty.
    pub fn dirty_bytes(&self) -> u64 {
        let whole = u64::from(self.count) << self.shift;
        let over = (self.len() as u64) << self.shift;
        let last_is_dirty = self.size > 0 && self.is_dirty(self.size - 1);
        whole - if last_is_dirty { over - self.size } else { 0 }
    }

    /// The address space has another size. What is new is `dirty` or not; a granule that lies across the old end is dirty if either part
    /// is. Where the bits do not suffice, granules become larger.
    pub fn resize(&mut self, size: u64, dirty: bool) {
        let before = self.size;
        if size < before {
            let gone = size.div_ceil(self.granularity()) as usize..self.len();
            self.change(gone, false);
            self.size = size;
            return;
        }
        while size.div_ceil(self.granularity()) > BITMAP_BITS as u64 {
            if self.count > 0 {
                self.coarsen();
            }
            self.shift += 1;
        }
        self.size = size;
        if dirty {
            self.set(before..size);
        }
    }

    /// Makes one bit of two.
    fn coarsen(&mut self) {
        for bit in 0..BITMAP_BITS {
            // What is read has not been written yet: it lies ahead.
            let pair = [2 * bit, 2 * bit + 1];
            let dirty = pair
                .iter()
                .any(|&b| b < BITMAP_BITS && self.bits[b / WORD] & 1 << (b % WORD) != 0);
            self.change(bit..bit + 1, dirty);
        }
    }

    /// The first bit set from `from` on.
    fn next_bit(&self, from: usize) -> Option<usize> {
        let word = from / WORD;
        if word >= WORDS {
            return None;
        }
        if let Some(bit) = first(self.bits[word], from % WORD) {
            return Some(word * WORD + bit);
        }
        let above = (word + 1) / WORD;
        let word = match self.sums.get(above) {
            None => return None,
            Some(sum) => match first(*sum, (word + 1) % WORD) {
                Some(bit) => above * WORD + bit,
                None => {
                    let sum = first(self.top, above + 1)?;
                    sum * WORD + first(self.sums[sum], 0)?
                }
            },
        };
        Some(word * WORD + first(self.bits[word], 0)?)
    }

    /// The first clean bit from `from` on, or `end`.
    fn next_clean(&self, from: usize, end: usize) -> usize {
        let mut at = from;
        while at < end {
            match first(!self.bits[at / WORD], at % WORD) {
                Some(bit) => return (at / WORD * WORD + bit).min(end),
                None => at = (at / WORD + 1) * WORD,
            }
        }
        end
    }
}

impl Default for Bitmap {
    fn default() -> Self {
        Self::new()
    }
}

/// The first bit set in a word from bit `from` on; there is none from 64 on.
fn first(word: u64, from: usize) -> Option<usize> {
    if from >= WORD {
        return None;
    }
    let rest = word >> from << from;
    (rest != 0).then(|| rest.trailing_zeros() as usize)
}

fn put(word: &mut u64, bit: usize, on: bool) {
    if on {
        *word |= 1 << bit;
    } else {
        *word &= !(1 << bit);
    }
}

#[cfg(test)]
mod tests;

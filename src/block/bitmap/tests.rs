//! The bitmap against a model without sums: one bool a granule.

use std::boxed::Box;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

/// What a bitmap should be.
struct Model {
    size: u64,
    granularity: u64,
    dirty: Vec<bool>,
}

impl Model {
    fn new(size: u64, granularity: u64) -> Self {
        Self {
            size,
            granularity,
            dirty: std::vec![false; size.div_ceil(granularity) as usize],
        }
    }

    fn granule(&self, bit: usize) -> Range<u64> {
        let start = bit as u64 * self.granularity;
        start..(start + self.granularity).min(self.size)
    }

    fn change(&mut self, range: Range<u64>, to: bool) {
        for bit in 0..self.dirty.len() {
            let granule = self.granule(bit);
            let touched = granule.start < range.end && range.start < granule.end;
            let inside = range.start <= granule.start && granule.end <= range.end;
            if range.start < range.end && if to { touched } else { inside } {
                self.dirty[bit] = to;
            }
        }
    }

    fn next(&self, from: u64, most: u64) -> Option<Range<u64>> {
        if from >= self.size {
            return None;
        }
        let start = (from / self.granularity) as usize;
        let start = (start..self.dirty.len()).find(|bit| self.dirty[*bit])?;
        let most = ((most / self.granularity) as usize).max(1);
        let run = self.dirty[start..].iter().take(most).take_while(|d| **d);
        let last = start + run.count() - 1;
        Some(self.granule(start).start..self.granule(last).end)
    }

    fn bytes(&self) -> u64 {
        (0..self.dirty.len())
            .filter(|bit| self.dirty[*bit])
            .map(|bit| self.granule(bit).end - self.granule(bit).start)
            .sum()
    }

    /// Everything at once: any bit, all sums.
    fn check(&self, bitmap: &Bitmap) {
        assert_eq!(bitmap.size(), self.size);
        assert_eq!(bitmap.granularity(), self.granularity);
        assert_eq!(bitmap.dirty_bytes(), self.bytes());
        for (bit, dirty) in self.dirty.iter().enumerate() {
            assert_eq!(bitmap.is_dirty(self.granule(bit).start), *dirty, "{bit}");
        }
        for (place, word) in bitmap.bits.iter().enumerate() {
            let sum = bitmap.sums[place / WORD] >> (place % WORD) & 1 != 0;
            assert_eq!(sum, *word != 0, "sum of word {place}");
        }
        for (place, sum) in bitmap.sums.iter().enumerate() {
            assert_eq!(bitmap.top >> place & 1 != 0, *sum != 0);
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Set(u64, u64),
    Clear(u64, u64),
    Next(u64, u64),
    Take(u64, u64),
    Any(u64, u64),
    SetAll,
    ClearAll,
    Resize(u64, bool),
}

/// Sizes about as large as the bitmap can be at a granularity of 4 KiB, and small ones.
fn size() -> impl Strategy<Value = u64> {
    let most = BITMAP_BITS as u64 * MIN_GRANULARITY;
    prop_oneof![
        0..MIN_GRANULARITY * 3,
        0..MIN_GRANULARITY * 9000,
        most - MIN_GRANULARITY * 200..=most,
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let most = BITMAP_BITS as u64 * MIN_GRANULARITY + 10_000;
    let at = prop_oneof![0..MIN_GRANULARITY * 9000, 0..most, Just(u64::MAX - 5)];
    let len = prop_oneof![
        0..20_000u64,
        0..MIN_GRANULARITY * 5000,
        0..most,
        Just(u64::MAX)
    ];
    (0..10u8, at, len, any::<bool>(), size()).prop_map(|(what, at, len, flag, size)| match what {
        0..3 => Step::Set(at, len),
        3..5 => Step::Clear(at, len),
        5 => Step::Next(at, len),
        6 => Step::Take(at, len),
        7 => Step::Any(at, len),
        8 if flag => Step::SetAll,
        8 => Step::ClearAll,
        _ => Step::Resize(size, flag),
    })
}

fn run(size: u64, steps: Vec<Step>) {
    let granularity = granularity_for(size, MIN_GRANULARITY);
    let mut bitmap = Box::new(Bitmap::new());
    bitmap.reset(size, granularity).unwrap();
    let mut model = Model::new(size, granularity);
    for step in steps {
        match step {
            Step::Set(at, len) => {
                bitmap.set(at..at.saturating_add(len));
                model.change(at..at.saturating_add(len), true);
            }
            Step::Clear(at, len) => {
                bitmap.clear(at..at.saturating_add(len));
                model.change(at..at.saturating_add(len), false);
            }
            Step::Next(at, most) => {
                assert_eq!(bitmap.next_dirty(at, most), model.next(at, most));
            }
            Step::Take(at, most) => {
                let next = model.next(at, most);
                assert_eq!(bitmap.take_next(at, most), next);
                if let Some(next) = next {
                    model.change(next, false);
                }
            }
            Step::Any(at, len) => {
                let end = at.saturating_add(len);
                let any = model
                    .next(at, 1)
                    .is_some_and(|next| next.start < end && at < end.min(model.size));
                assert_eq!(bitmap.any_dirty(at..end), any);
            }
            Step::SetAll => {
                bitmap.set_all();
                model.dirty.fill(true);
            }
            Step::ClearAll => {
                bitmap.clear_all();
                model.dirty.fill(false);
            }
            Step::Resize(size, dirty) => {
                bitmap.resize(size, dirty);
                let before = core::mem::replace(&mut model.size, size);
                model
                    .dirty
                    .resize(size.div_ceil(model.granularity) as usize, false);
                if dirty && size > before {
                    model.change(before..size, true);
                }
            }
        }
    }
    model.check(&bitmap);
    // Taking everything gives each part once, in order, and leaves nothing.
    let mut from = 0;
    while let Some(range) = bitmap.take_next(from, 1 << 20) {
        assert_eq!(Some(range.clone()), model.next(from, 1 << 20));
        from = range.end;
    }
    assert_eq!(bitmap.dirty_bytes(), 0);
    assert_eq!(bitmap.top, 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_bitmap_is_what_the_model_is(size in size(), steps in prop::collection::vec(step(), 1..24)) {
        run(size, steps);
    }
}

#[test]
fn granularities_that_do_not_fit_are_refused() {
    let mut bitmap = Box::new(Bitmap::new());
    let most = BITMAP_BITS as u64 * MIN_GRANULARITY;
    for (size, granularity, fits) in [
        (most, MIN_GRANULARITY, true),
        (most + 1, MIN_GRANULARITY, false),
        (most + 1, 2 * MIN_GRANULARITY, true),
        (4096, 2048, false),
        (4096, 4097, false),
        (4096, 12288, false),
        (4096, 0, false),
        (u64::MAX, MAX_GRANULARITY, BITMAP_BITS >= 1 << 24),
        (4096, 2 * MAX_GRANULARITY, false),
        (0, 4096, true),
    ] {
        let result = bitmap.reset(size, granularity);
        assert_eq!(result.is_ok(), fits, "{size} {granularity}");
    }
    assert_eq!(granularity_for(most, 4096), 4096);
    assert_eq!(granularity_for(most + 1, 4096), 8192);
    assert_eq!(
        granularity_for(4096, DEFAULT_GRANULARITY),
        DEFAULT_GRANULARITY
    );
    assert_eq!(granularity_for(0, 1), MIN_GRANULARITY);
}

#[test]
fn a_bitmap_that_grows_too_large_becomes_coarser_and_loses_nothing() {
    let most = BITMAP_BITS as u64 * MIN_GRANULARITY;
    let mut bitmap = Box::new(Bitmap::new());
    bitmap.reset(most, MIN_GRANULARITY).unwrap();
    let marked = [0, 3 * MIN_GRANULARITY, most / 2 + 1, most - 1];
    for at in marked {
        bitmap.set(at..at + 1);
    }
    bitmap.resize(3 * most, false);
    assert_eq!(bitmap.granularity(), 4 * MIN_GRANULARITY);
    assert_eq!(bitmap.dirty_bytes(), 3 * 4 * MIN_GRANULARITY);
    for at in marked {
        assert!(bitmap.is_dirty(at), "{at}");
    }
    assert!(!bitmap.is_dirty(most));
    bitmap.resize(3 * most + 1, true);
    assert!(bitmap.is_dirty(3 * most));
    assert_eq!(
        bitmap.next_dirty(most, u64::MAX),
        Some(3 * most..3 * most + 1)
    );
}

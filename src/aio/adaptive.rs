//! Adaptive polling: look for work for a while before sleeping, as long as that has paid off (ADP-1…7).
//!
//! Every handler with a poll check learns its own budget, and so does the context for notifications from other cores;
//! a round lasts as long as the greatest of them. What a round finds nothing with is charged to the core, and no
//! round begins while more than 5 % of the recent time was spent that way (CS-14).
#![forbid(unsafe_code)]

use super::notifier::{PollCheck, WORDS, bit};
use crate::config::HANDLERS;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// First budget that a source learns, in ns.
const FIRST_STEP: u64 = 4_000;

/// A handler leaves poll mode after this long without success, in ns.
const GIVE_UP: u64 = 7_000_000_000;

/// A round may begin while no more than this is charged, in ns: 5 % of a millisecond.
const ALLOWANCE: u64 = 50_000;

/// Poll checks asked in one round.
pub(super) const CHECKS: usize = 16;

/// How budgets change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Policy {
    /// Greatest budget in ns; 0: never poll.
    pub(super) max_ns: u64,
    /// Factor of growth; 0 stands for 2.
    pub(super) grow: u32,
    /// Divisor of shrinking; 0: back to nothing.
    pub(super) shrink: u32,
}

/// The budget after a wait of `block_ns` that ended with this source ready (ADP-2).
pub(super) fn adjusted(budget: u64, block_ns: u64, policy: Policy) -> u64 {
    if block_ns <= budget {
        budget
    } else if block_ns > policy.max_ns {
        if policy.shrink == 0 {
            0
        } else {
            budget / u64::from(policy.shrink)
        }
    } else {
        let factor = if policy.grow == 0 {
            2
        } else {
            u64::from(policy.grow)
        };
        let grown = if budget == 0 {
            FIRST_STEP
        } else {
            budget.saturating_mul(factor)
        };
        grown.min(policy.max_ns)
    }
}

/// What a context has learnt. Parameters are written by any core, the rest by the home core.
#[repr(C)]
pub(super) struct Adaptive {
    max_ns: AtomicU64,
    grow: AtomicU32,
    shrink: AtomicU32,
    /// Raised by a change of parameters: everything learnt is void.
    epoch: AtomicU32,
    seen_epoch: AtomicU32,
    /// Slots in poll mode.
    pub(super) polling: [AtomicU64; WORDS],
    /// Slots whose `poll_begin` ran and whose `poll_end` did not.
    pub(super) begun: [AtomicU64; WORDS],
    /// Turns since the sources in poll mode were last asked. Home core.
    pub(super) unlooked: AtomicU32,
    budgets: [AtomicU32; HANDLERS],
    successes: [AtomicU64; HANDLERS],
    /// The budget for notifications from other cores.
    own: AtomicU32,
    /// Time spent for nothing, in ns, less 5 % of the time that passed since.
    charged: AtomicU64,
    charged_at: AtomicU64,
    pub(super) hits: AtomicU64,
    pub(super) misses: AtomicU64,
}

impl Adaptive {
    pub(super) const fn new() -> Self {
        Self {
            max_ns: AtomicU64::new(0),
            grow: AtomicU32::new(0),
            shrink: AtomicU32::new(0),
            epoch: AtomicU32::new(0),
            seen_epoch: AtomicU32::new(0),
            polling: [const { AtomicU64::new(0) }; WORDS],
            begun: [const { AtomicU64::new(0) }; WORDS],
            unlooked: AtomicU32::new(0),
            budgets: [const { AtomicU32::new(0) }; HANDLERS],
            successes: [const { AtomicU64::new(0) }; HANDLERS],
            own: AtomicU32::new(0),
            charged: AtomicU64::new(0),
            charged_at: AtomicU64::new(0),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        }
    }

    /// Sets the parameters and forgets what was learnt (ADP-1). Any core.
    pub(super) fn configure(&self, policy: Policy) {
        // A budget is kept in 32 bits: 4 s at most.
        self.max_ns
            .store(policy.max_ns.min(u64::from(u32::MAX)), Ordering::Relaxed);
        self.grow.store(policy.grow, Ordering::Relaxed);
        self.shrink.store(policy.shrink, Ordering::Relaxed);
        self.epoch.fetch_add(1, Ordering::Release);
    }

    /// Whether the context polls at all. One plain load.
    #[inline]
    pub(super) fn enabled(&self) -> bool {
        self.max_ns.load(Ordering::Relaxed) != 0
    }

    pub(super) fn max_ns(&self) -> u64 {
        self.max_ns.load(Ordering::Relaxed)
    }

    fn policy(&self) -> Policy {
        Policy {
            max_ns: self.max_ns(),
            grow: self.grow.load(Ordering::Relaxed),
            shrink: self.shrink.load(Ordering::Relaxed),
        }
    }

    /// A handler came or went: its slot has learnt nothing and is not in poll mode.
    pub(super) fn forget(&self, slot: usize) {
        let (word, mask) = bit(slot);
        self.polling[word].fetch_and(!mask, Ordering::Relaxed);
        self.begun[word].fetch_and(!mask, Ordering::Relaxed);
        self.budgets[slot].store(0, Ordering::Relaxed);
    }

    /// How long the next round may last, from `now`: 0 for no round. Handlers without success for long leave.
    pub(super) fn budget(&self, now: u64) -> u64 {
        let epoch = self.epoch.load(Ordering::Acquire);
        if epoch != self.seen_epoch.load(Ordering::Relaxed) {
            self.seen_epoch.store(epoch, Ordering::Relaxed);
            self.own.store(0, Ordering::Relaxed);
            self.budgets
                .iter()
                .for_each(|budget| budget.store(0, Ordering::Relaxed));
        }
        let passed = now.saturating_sub(self.charged_at.load(Ordering::Relaxed));
        let charged = self
            .charged
            .load(Ordering::Relaxed)
            .saturating_sub(passed / 20);
        self.charged.store(charged, Ordering::Relaxed);
        self.charged_at.store(now, Ordering::Relaxed);
        if charged > ALLOWANCE {
            return 0;
        }
        let mut budget = self.own.load(Ordering::Relaxed);
        for slot in slots(&self.polling) {
            if now.saturating_sub(self.successes[slot].load(Ordering::Relaxed)) > GIVE_UP {
                let (word, mask) = bit(slot);
                self.polling[word].fetch_and(!mask, Ordering::Relaxed);
            } else {
                budget = budget.max(self.budgets[slot].load(Ordering::Relaxed));
            }
        }
        u64::from(budget).min(self.max_ns())
    }

    /// A round ended after `spent` ns.
    pub(super) fn account(&self, found: bool, spent: u64) {
        let counter = if found { &self.hits } else { &self.misses };
        counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        let charged = if found {
            0
        } else {
            self.charged.load(Ordering::Relaxed) + spent
        };
        self.charged.store(charged, Ordering::Relaxed);
    }

    /// The handler in `slot` was called after a wait of `block_ns` that ended at `now`.
    pub(super) fn learn(&self, slot: usize, check: Option<PollCheck>, block_ns: u64, now: u64) {
        if check.is_none() {
            return;
        }
        let (word, mask) = bit(slot);
        self.polling[word].fetch_or(mask, Ordering::Relaxed);
        self.successes[slot].store(now, Ordering::Relaxed);
        let budget = &self.budgets[slot];
        budget.store(
            adjusted(
                budget.load(Ordering::Relaxed).into(),
                block_ns,
                self.policy(),
            ) as u32,
            Ordering::Relaxed,
        );
    }

    /// Another core's notification ended a wait of `block_ns`.
    pub(super) fn learn_own(&self, block_ns: u64) {
        let own = adjusted(
            self.own.load(Ordering::Relaxed).into(),
            block_ns,
            self.policy(),
        );
        self.own.store(own as u32, Ordering::Relaxed);
    }

    /// What the handler in `slot` has learnt, in ns. For tests and reports.
    pub(super) fn learnt(&self, slot: usize) -> u64 {
        self.budgets[slot].load(Ordering::Relaxed).into()
    }
}

/// The slots whose bits are set in `words`.
pub(super) fn slots(words: &[AtomicU64; WORDS]) -> impl Iterator<Item = usize> + '_ {
    words.iter().enumerate().flat_map(|(word, bits)| {
        let mut left = bits.load(Ordering::Relaxed);
        core::iter::from_fn(move || {
            let slot = (left != 0).then(|| word * 64 + left.trailing_zeros() as usize)?;
            left &= left - 1;
            Some(slot)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy = Policy {
        max_ns: 32_768,
        grow: 0,
        shrink: 0,
    };

    #[test]
    fn adp_2_grows_from_nothing_by_doubling_to_the_cap() {
        let mut budget = 0;
        for expected in [4_000, 8_000, 16_000, 32_000, 32_768] {
            budget = adjusted(budget, 32_768, POLICY);
            assert_eq!(budget, expected);
        }
        assert_eq!(
            adjusted(32_768, 32_768, POLICY),
            32_768,
            "within the budget: kept"
        );
    }

    #[test]
    fn adp_2_shrinks_after_a_long_wait() {
        assert_eq!(adjusted(16_000, 32_769, POLICY), 0);
        assert_eq!(
            adjusted(
                16_000,
                40_000,
                Policy {
                    shrink: 4,
                    ..POLICY
                }
            ),
            4_000
        );
        assert_eq!(
            adjusted(
                16_000,
                20_000,
                Policy {
                    grow: 3,
                    max_ns: 100_000,
                    shrink: 0
                }
            ),
            48_000
        );
    }

    #[test]
    fn cs_14_polling_for_nothing_is_capped() {
        let adaptive = Adaptive::new();
        adaptive.configure(POLICY);
        let _ = adaptive.budget(0);
        adaptive.learn_own(10_000);
        assert_eq!(adaptive.budget(0), 4_000);
        adaptive.account(false, 100_000);
        assert_eq!(
            adaptive.budget(900_000),
            0,
            "5 % of 0.9 ms are 45 us: 55 us are still charged"
        );
        assert_eq!(adaptive.budget(1_100_000), 4_000);
        adaptive.account(false, 100_000);
        adaptive.account(true, 100);
        assert_eq!(adaptive.budget(1_100_000), 4_000, "success forgives");
    }

    #[test]
    fn adp_4_a_handler_without_success_leaves_after_7_s() {
        let adaptive = Adaptive::new();
        adaptive.configure(POLICY);
        let _ = adaptive.budget(0);
        adaptive.learn(70, Some(&|_| true), 10_000, 1);
        assert_eq!(slots(&adaptive.polling).collect::<std::vec::Vec<_>>(), [70]);
        assert_eq!(adaptive.budget(7_000_000_001), 4_000);
        assert_eq!(adaptive.budget(7_000_000_002), 0);
    }
}

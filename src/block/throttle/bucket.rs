//! One leaky bucket: a level that requests raise and time lowers.
//!
//! Levels count in billionths of a unit (a byte, an operation), so what leaks in a nanosecond is a whole number: nothing is
//! rounded, and no time is lost however often one looks.
#![forbid(unsafe_code)]

/// Billionths of a unit in a unit; nanoseconds in a second.
pub const NANO: u128 = 1_000_000_000;

/// What one bucket allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Units a second in the long run; 0: no limit.
    pub avg: u64,
    /// Units a second in a burst; 0: none allowed but for a tenth of a second of `avg`.
    pub max: u64,
    /// Seconds that a burst may last.
    pub burst_s: u64,
}

impl Limit {
    /// No limit.
    pub const NONE: Self = Self {
        avg: 0,
        max: 0,
        burst_s: 1,
    };

    /// `avg` units a second, without bursts.
    pub const fn average(avg: u64) -> Self {
        Self { avg, ..Self::NONE }
    }

    /// Level up to which requests pass.
    const fn size(&self) -> u128 {
        if self.max == 0 {
            self.avg as u128 * (NANO / 10)
        } else {
            self.max as u128 * self.burst_s as u128 * NANO
        }
    }

    /// Level of the burst up to which requests pass: a tenth of a second of `max`.
    const fn burst_size(&self) -> u128 {
        self.max as u128 * (NANO / 10)
    }
}

/// The levels that go with a [`Limit`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    /// Lowered by `avg`.
    pub level: u128,
    /// Lowered by `max`; kept only where bursts last longer than a second.
    pub burst_level: u128,
}

impl Bucket {
    /// An empty one.
    pub const EMPTY: Self = Self {
        level: 0,
        burst_level: 0,
    };

    /// Lets `delta_ns` of time pass.
    pub fn leak(&mut self, limit: &Limit, delta_ns: u64) {
        let leaked = |rate: u64| u128::from(rate) * u128::from(delta_ns);
        self.level = self.level.saturating_sub(leaked(limit.avg));
        if limit.burst_s > 1 {
            self.burst_level = self.burst_level.saturating_sub(leaked(limit.max));
        }
    }

    /// How long a request has to wait, in ns; 0: it may go.
    pub fn wait_ns(&self, limit: &Limit) -> u64 {
        if limit.avg == 0 {
            return 0;
        }
        let over = self.level.saturating_sub(limit.size());
        if over > 0 {
            return time_to_leak(over, limit.avg);
        }
        if limit.burst_s > 1 && limit.max > 0 {
            let over = self.burst_level.saturating_sub(limit.burst_size());
            if over > 0 {
                return time_to_leak(over, limit.max);
            }
        }
        0
    }

    /// Books a request of so many billionths of a unit.
    pub fn add(&mut self, limit: &Limit, nano_units: u128) {
        self.level = self.level.saturating_add(nano_units);
        if limit.burst_s > 1 {
            self.burst_level = self.burst_level.saturating_add(nano_units);
        }
    }
}

/// The first whole nanosecond after which `over` has leaked at `rate` units a second.
fn time_to_leak(over: u128, rate: u64) -> u64 {
    match u64::try_from(over) {
        // The division of a long number costs ten times as much.
        Ok(over) => over.div_ceil(rate),
        Err(_) => u64::try_from(over.div_ceil(u128::from(rate))).unwrap_or(u64::MAX),
    }
}

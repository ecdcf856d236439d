//! Six buckets and what lowers them: the state of a group, without those who wait.
#![forbid(unsafe_code)]

use super::bucket::{Bucket, NANO};
use super::config::{Config, Direction, Kind, Unfit};

/// The levels of a group. Times are of the monotonic clock, in ns.
#[derive(Clone, Copy, Debug)]
pub struct State {
    config: Config,
    buckets: [Bucket; 6],
    /// Until when the levels have been lowered.
    leaked_ns: u64,
}

impl State {
    /// No limits, nothing booked.
    pub const fn new() -> Self {
        Self {
            config: Config::NONE,
            buckets: [Bucket::EMPTY; 6],
            leaked_ns: 0,
        }
    }

    /// Sets the limits; what was booked is forgotten.
    ///
    /// # Errors
    /// Those of [`Config::check`]; then nothing has changed.
    pub fn configure(&mut self, config: &Config, now_ns: u64) -> Result<(), Unfit> {
        config.check()?;
        *self = Self {
            config: *config,
            buckets: [Bucket::EMPTY; 6],
            leaked_ns: now_ns,
        };
        Ok(())
    }

    /// The limits.
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// One of the buckets.
    pub const fn bucket(&self, kind: Kind) -> &Bucket {
        &self.buckets[kind.index()]
    }

    /// How long a request has to wait from now, in ns; 0: it may go, and is to be [booked](Self::account).
    pub fn wait_ns(&mut self, direction: Direction, now_ns: u64) -> u64 {
        self.leak(now_ns);
        let waits = direction
            .kinds()
            .map(|kind| self.bucket(kind).wait_ns(self.config.limit(kind)));
        waits.into_iter().max().unwrap_or(0)
    }

    fn leak(&mut self, now_ns: u64) {
        // Cores read the clock before they come here, so a time may lie before the last.
        let delta_ns = now_ns.saturating_sub(self.leaked_ns);
        if delta_ns == 0 {
            return;
        }
        self.leaked_ns = now_ns;
        for (bucket, limit) in self.buckets.iter_mut().zip(&self.config.limits) {
            bucket.leak(limit, delta_ns);
        }
    }

    /// Books a request of `bytes` bytes that goes.
    pub fn account(&mut self, direction: Direction, bytes: u64) {
        let operations = match self.config.op_size {
            size @ 1.. if bytes > size => u128::from(bytes) * NANO / u128::from(size),
            _ => NANO,
        };
        for kind in direction.kinds() {
            let units = if kind.is_bytes() {
                u128::from(bytes) * NANO
            } else {
                operations
            };
            let index = kind.index();
            self.buckets[index].add(&self.config.limits[index], units);
        }
    }
}

impl Default for State {
    fn default() -> Self {
        Self::new()
    }
}

//! The rate limit: a leaky bucket a job.
#![forbid(unsafe_code)]

use super::Job;
use super::table::Slot;
use crate::arch;
use crate::block::throttle::bucket::NANO;

impl Slot {
    /// Lets time pass; how long the next request has to wait, in ns.
    fn wait_ns(&mut self, now_ns: u64) -> u64 {
        let delta_ns = now_ns.saturating_sub(self.leaked_ns);
        self.leaked_ns = self.leaked_ns.max(now_ns);
        let limit = self.limit;
        self.bucket.leak(&limit, delta_ns);
        self.bucket.wait_ns(&limit)
    }
}

impl Job {
    /// Books `bytes` that are about to be moved; sleeps first, as long as what was booked before is too much for the limit. Returns
    /// early when the job is cancelled. A pause or a new limit on the way is honoured, and the limit nevertheless kept.
    pub async fn rate_limit(self, bytes: u64) {
        loop {
            let now_ns = arch::now_ns();
            let wait_ns = self.slot(|slot| {
                if slot.cancelled || slot.limit.avg == 0 {
                    return 0;
                }
                let wait_ns = slot.wait_ns(now_ns);
                if wait_ns == 0 {
                    let limit = slot.limit;
                    slot.bucket.add(&limit, u128::from(bytes) * NANO);
                }
                wait_ns
            });
            match wait_ns {
                None | Some(0) => return,
                Some(wait_ns) => self.sleep_until(now_ns.saturating_add(wait_ns)).await,
            }
        }
    }
}

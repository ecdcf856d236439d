//! A job as others see it.
#![forbid(unsafe_code)]

use super::state::State;
use super::table::Slot;
use super::{Job, Policy};
use crate::arch::{self, CoreId};
use crate::block::BlockError;
use crate::block::node::Name;
use crate::config::JOBS;

/// What there is to know of a job. Sizes in bytes.
#[derive(Clone, Debug)]
pub struct JobView {
    /// The job.
    pub job: Job,
    /// Its id.
    pub id: Name,
    /// What it does.
    pub kind: &'static str,
    /// Where it stands.
    pub state: State,
    /// Core of its context.
    pub core: CoreId,
    /// How it ended, or is about to.
    pub result: Result<(), BlockError>,
    /// Done so far.
    pub done: u64,
    /// To do in all, as far as is known.
    pub total: u64,
    /// Bytes a second it is limited to; 0: no limit.
    pub speed: u64,
    /// Bytes a second, on average, the time of pauses left out.
    pub rate: u64,
    /// Seconds that it will go on at that rate; `None`: cannot be said.
    pub left_s: Option<u64>,
    /// Reasons for which it is paused.
    pub pause_count: u32,
    /// One of them is a user's.
    pub user_paused: bool,
    /// Its body runs or waits for I/O.
    pub busy: bool,
    /// It sleeps.
    pub sleeping: bool,
    /// A user has cancelled it.
    pub cancelled: bool,
    /// Errors of reading, and of writing.
    pub errors: [u32; 2],
    /// What is done about these.
    pub policy: [Policy; 2],
    /// Whether it ends, and is forgotten, without being told.
    pub auto_finalize: bool,
    /// The same for being forgotten.
    pub auto_dismiss: bool,
}

impl Job {
    /// The job as it is now; `None` when it is gone.
    pub fn view(self) -> Option<JobView> {
        let now_ns = arch::now_ns();
        self.slot(|slot| slot.view(self, now_ns))
    }
}

/// The job of that id as it is now.
pub fn view(id: &str) -> Option<JobView> {
    super::find(id)?.view()
}

/// Calls `f` with each job that has an id.
pub fn for_each(mut f: impl FnMut(JobView)) {
    for index in 0..JOBS {
        let job = Job::in_place(index);
        if let Some(view) = job.view()
            && !view.id.is_empty()
        {
            f(view);
        }
    }
}

impl Slot {
    fn view(&self, job: Job, now_ns: u64) -> JobView {
        let now_ns = if self.paused {
            self.paused_since_ns
        } else {
            now_ns
        };
        let worked_ns = now_ns
            .saturating_sub(self.started_ns)
            .saturating_sub(self.paused_ns);
        let rate = rate(self.done, worked_ns);
        let left = self.total.saturating_sub(self.done);
        let going_on = matches!(self.state, State::Running | State::Paused);
        JobView {
            job,
            id: self.id.clone(),
            kind: self.kind,
            state: self.state,
            core: self.core,
            result: self.result,
            done: self.done,
            total: self.total,
            speed: self.limit.avg,
            rate,
            left_s: (going_on && rate > 0).then(|| left.div_ceil(rate)),
            pause_count: self.pause_count,
            user_paused: self.user_paused,
            busy: self.is_busy(),
            sleeping: self.sleeping,
            cancelled: self.cancelled,
            errors: self.errors,
            policy: self.policy,
            auto_finalize: self.auto_finalize,
            auto_dismiss: self.auto_dismiss,
        }
    }
}

/// Bytes a second.
fn rate(bytes: u64, ns: u64) -> u64 {
    if ns == 0 {
        return 0;
    }
    let rate = u128::from(bytes) * 1_000_000_000 / u128::from(ns);
    u64::try_from(rate).unwrap_or(u64::MAX)
}

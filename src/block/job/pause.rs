//! What a job's body awaits and asks, on the core of its context.
//!
//! A body stops nowhere but at pause points, and in sleeps and waits, which end with one (JOB-2). Otherwise it is *busy*, and a drained
//! section of one of its nodes waits for it (JOB-3): it hits a pause point between any two steps that may take long, and always
//! when its requests have come back.
#![forbid(unsafe_code)]

use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::Poll;

use super::state::State;
use super::table::{self, Slot};
use super::{Action, Job, Policy, Side, completion, copier};
use crate::aio;
use crate::arch;
use crate::block::{BlockError, drain_kick};
use crate::sync::caller_levels;

impl Job {
    /// The whole of a body: a pause point before its first instruction, the body, its end. `body` is called on the job's core.
    pub async fn run<F>(self, body: impl FnOnce() -> F)
    where
        F: Future<Output = Result<(), BlockError>>,
    {
        self.pause_point().await;
        let result = body().await;
        // The body and what it held are gone by now.
        self.finished(result);
    }

    /// The body has ended: the rest is the main loop's (JOB-7). From here on nothing waits for this job. All its requests have come back.
    pub fn finished(self, result: Result<(), BlockError>) {
        debug_assert_eq!(copier::in_flight(self.index()), 0, "chunks are under way");
        self.slot(|slot| {
            slot.result = result;
            slot.handed = true;
            slot.busy = false;
        });
        completion::kick();
        drain_kick();
    }

    /// Stops here while anything keeps the job paused; then goes on in the context that is the job's by then (JOB-9). The body
    /// holds nothing that others could wait for: no context lock, no drained section (JOB-13).
    pub async fn pause_point(self) {
        debug_assert_eq!(caller_levels(), 0, "a job paused with a context lock");
        while self.begin_pause() {
            // Not busy any more: a section may be quiet.
            drain_kick();
            self.entered().await;
            self.end_pause();
        }
        loop {
            let core = self.core();
            if arch::current_core() == Some(core) {
                return;
            }
            aio::reschedule_self(aio::context(core)).await;
        }
    }

    fn begin_pause(self) -> bool {
        let now_ns = arch::now_ns();
        let change = self.slot(|slot| {
            if slot.pause_count == 0 {
                // It may have begun with a pause that was over before its first instruction.
                slot.paused = false;
                return None;
            }
            let to = match slot.state {
                State::Ready => State::Standby,
                _ => State::Paused,
            };
            let from = slot.go(to);
            slot.paused = true;
            slot.paused_since_ns = now_ns;
            slot.stop();
            Some((from, to))
        });
        if let Some((from, to)) = change.flatten() {
            self.tell(from, to);
            return true;
        }
        false
    }

    fn end_pause(self) {
        let now_ns = arch::now_ns();
        let change = self.slot(|slot| {
            let to = match slot.state {
                State::Standby => State::Ready,
                _ => State::Running,
            };
            slot.paused = false;
            slot.paused_ns += now_ns.saturating_sub(slot.paused_since_ns);
            (slot.go(to), to)
        });
        if let Some((from, to)) = change {
            self.tell(from, to);
        }
    }

    /// Ready when somebody has entered the job.
    fn entered(self) -> impl Future<Output = ()> + Send {
        poll_fn(move |_| match self.slot(|slot| slot.busy) {
            Some(false) => Poll::Pending,
            _ => Poll::Ready(()),
        })
    }

    /// Sleeps until [`arch::now_ns`] has reached `deadline_ns`, or somebody enters the job. Not busy meanwhile. Ends with a pause point.
    pub async fn sleep_until(self, deadline_ns: u64) {
        self.pause_point().await;
        let sleeps = self.slot(|slot| {
            let sleeps = slot.pause_count == 0 && !slot.cancelled;
            if sleeps {
                slot.sleeping = true;
                slot.stop();
            }
            sleeps
        });
        if sleeps == Some(true) {
            drain_kick();
            let mut sleep = pin!(aio::sleep_until(deadline_ns));
            poll_fn(|context| {
                if self.slot(|slot| slot.busy) != Some(false) {
                    return Poll::Ready(());
                }
                let over = sleep.as_mut().poll(context);
                if over.is_ready() {
                    // Whoever enters it from here on finds it busy.
                    self.slot(|slot| {
                        slot.sleeping = false;
                        slot.busy = true;
                    });
                }
                over
            })
            .await;
        }
        self.pause_point().await;
    }

    /// Yields until somebody enters the job: [`wake`](Self::wake), a verb, a drained section. Not busy meanwhile. A wake that came
    /// before, while the job was busy, is not lost. Ends with a pause point; callers loop on their own condition.
    pub async fn wait(self) {
        let yields = self.slot(|slot| {
            let yields = !core::mem::take(&mut slot.kicked) && slot.pause_count == 0;
            if yields {
                slot.stop();
            }
            yields
        });
        if yields == Some(true) {
            drain_kick();
            self.entered().await;
        }
        self.pause_point().await;
    }

    /// Ends the job's [`wait`](Self::wait) or sleep, or its next wait. Any core, interrupt handlers too.
    pub fn wake(self) {
        let coroutine = self.slot(|slot| {
            let coroutine = slot.enter();
            slot.kicked |= coroutine.is_none();
            coroutine
        });
        table::wake(coroutine);
    }

    /// Whether the job is given up: the body ends soon, with whatever result.
    pub fn is_cancelled(self) -> bool {
        self.slot(|slot| slot.forced).unwrap_or(true)
    }

    /// Whether a user wants it to end, given up or, being ready, without the switch.
    pub fn cancel_requested(self) -> bool {
        self.slot(|slot| slot.cancelled).unwrap_or(true)
    }

    /// Whether a user wants the end of a job that is ready.
    pub fn end_wanted(self) -> bool {
        self.slot(|slot| slot.end_wanted).unwrap_or(false)
    }

    /// The job has reached what it was made for, and keeps it up from now on. Once.
    pub fn ready(self) {
        let ready = self.slot(|slot| {
            let running = slot.state == State::Running;
            if running {
                slot.go(State::Ready);
            }
            running
        });
        if ready == Some(true) {
            self.tell(State::Running, State::Ready);
            let id = self.id();
            if !id.is_empty() {
                log::info!("job {id} is ready");
            }
        }
    }

    /// `bytes` more are done.
    pub fn progress(self, bytes: u64) {
        self.slot(|slot| slot.done = slot.done.saturating_add(bytes));
    }

    /// Bytes that there are to do in all, those done included.
    pub fn set_total(self, bytes: u64) {
        self.slot(|slot| slot.total = bytes);
    }

    /// What to do about an error on that side, which is counted. With [`Action::Retry`] the job has been paused as by a user.
    pub fn on_error(self, side: Side, error: BlockError) -> Action {
        let decided = self.slot(|slot| {
            let side = side as usize;
            slot.errors[side] = slot.errors[side].saturating_add(1);
            let action = match slot.policy[side] {
                // One that is to end tries no more.
                _ if slot.cancelled => Action::Report,
                Policy::Report => Action::Report,
                Policy::Ignore => Action::Ignore,
                Policy::Stop => {
                    // The body runs, so there is nobody to wake.
                    if !core::mem::replace(&mut slot.user_paused, true) {
                        slot.pause_count += 1;
                    }
                    Action::Retry
                }
            };
            (action, slot.id.clone())
        });
        let Some((action, id)) = decided else {
            return Action::Report;
        };
        let (side, what) = (
            match side {
                Side::Source => "reading",
                Side::Target => "writing",
            },
            match action {
                Action::Report => "it fails",
                Action::Ignore => "it goes on",
                Action::Retry => "it is paused",
            },
        );
        log::warn!("job {id}: {side}: {error}; {what}");
        action
    }
}

impl Slot {
    /// The body, which calls this, stops until it is entered.
    fn stop(&mut self) {
        self.coroutine = aio::current_coroutine();
        self.busy = false;
    }
}

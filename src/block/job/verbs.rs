//! What users ask of jobs. Main loop only; none waits: what was asked for has begun when the call returns.
#![forbid(unsafe_code)]

use super::state::{State, Verb};
use super::table::{self, Slot};
use super::{Job, JobError, completion, main_loop, transaction};
use crate::block::throttle::bucket::{Bucket, Limit};

/// The job of that id. Internal ones are never found (JOB-12).
pub fn find(id: &str) -> Option<Job> {
    table::with_all(|slots| {
        let named = |slot: &Slot| slot.state != State::Null && !id.is_empty() && slot.id == id;
        let index = slots.iter().position(named)?;
        Some(Job {
            index: index as u8,
            generation: slots[index].generation,
        })
    })
}

impl Job {
    /// Borrows the slot when the verb is allowed in its state.
    fn ask<R>(
        self,
        verb: Verb,
        f: impl FnOnce(&mut Slot) -> Result<R, JobError>,
    ) -> Result<R, JobError> {
        main_loop()?;
        self.slot(|slot| {
            if !verb.is_allowed_in(slot.state) {
                return Err(JobError::State(verb, slot.state));
            }
            f(slot)
        })
        .ok_or(JobError::NoSuchJob)?
    }

    /// Stops the job at its next pause point.
    ///
    /// # Errors
    /// Not in this state; `AlreadyPaused` by a user (JOB-1); `Ending` when it was cancelled.
    pub fn pause(self) -> Result<(), JobError> {
        let coroutine = self.ask(Verb::Pause, |slot| {
            if slot.cancelled {
                return Err(JobError::Ending);
            }
            if slot.user_paused {
                return Err(JobError::AlreadyPaused);
            }
            slot.user_paused = true;
            Ok(slot.pause())
        })?;
        table::wake(Some(coroutine));
        Ok(())
    }

    /// Lets it go on, unless something else keeps it paused.
    ///
    /// # Errors
    /// Not in this state; `NotPaused` by a user (JOB-1).
    pub fn resume(self) -> Result<(), JobError> {
        let coroutine = self.ask(Verb::Resume, |slot| {
            if !slot.user_paused {
                return Err(JobError::NotPaused);
            }
            slot.user_paused = false;
            Ok(slot.resume())
        })?;
        table::wake(Some(coroutine));
        Ok(())
    }

    /// Limits it to so many bytes a second; 0: no limit. It is woken from its sleep only by a limit that is looser (JOB-5).
    ///
    /// # Errors
    /// Not in this state.
    pub fn set_speed(self, speed: u64) -> Result<(), JobError> {
        let coroutine = self.ask(Verb::SetSpeed, |slot| {
            let before = slot.limit.avg;
            slot.limit = Limit::average(speed);
            if speed == 0 {
                slot.bucket = Bucket::EMPTY;
            }
            let looser = before != 0 && (speed == 0 || speed > before);
            Ok(if looser && slot.sleeping {
                slot.enter()
            } else {
                None
            })
        })?;
        table::wake(Some(coroutine));
        Ok(())
    }

    /// Ends a job that is ready.
    ///
    /// # Errors
    /// Not in this state; `CannotComplete` for one without such an end, or that is being cancelled; `Ending` after its body's end.
    pub fn complete(self) -> Result<(), JobError> {
        main_loop()?;
        let driver = self.driver().ok_or(JobError::NoSuchJob)?;
        let has_end = driver.has_ready_end();
        self.ask(Verb::Complete, |slot| {
            if slot.cancelled || !has_end {
                return Err(JobError::CannotComplete);
            }
            if slot.handed {
                return Err(JobError::Ending);
            }
            slot.end_wanted = true;
            Ok(())
        })?;
        driver.complete(self);
        self.wake();
        Ok(())
    }

    /// Gives it up. Not forced, one that is ready and has an end that can be asked for ends there instead, without its switch, and one
    /// whose body has ended is left alone (JOB-11). One that is concluded is dismissed.
    ///
    /// # Errors
    /// Not in this state; `Ending` while its end is being made final or taken back.
    pub fn cancel(self, force: bool) -> Result<(), JobError> {
        if self.state() == State::Concluded {
            return self.dismiss();
        }
        main_loop()?;
        let driver = self.driver().ok_or(JobError::NoSuchJob)?;
        let has_end = driver.has_ready_end();
        let number = self.ask(Verb::Cancel, |slot| Ok(slot.transaction))?;
        if transaction::is_ending(number) {
            return Err(JobError::Ending);
        }
        self.ask(Verb::Cancel, |slot| {
            let soft = !force && has_end && matches!(slot.state, State::Ready | State::Standby);
            if soft && slot.handed {
                return Ok(());
            }
            slot.cancelled = true;
            slot.forced |= !soft;
            Ok(())
        })?;
        completion::given_up(self);
        Ok(())
    }

    /// Makes final what it and the others of its transaction did.
    ///
    /// # Errors
    /// Not in this state; `Ending` when that has begun.
    pub fn finalize(self) -> Result<(), JobError> {
        let number = self.ask(Verb::Finalize, |slot| Ok(slot.transaction))?;
        if !transaction::finalize(number) {
            return Err(JobError::Ending);
        }
        completion::kick();
        Ok(())
    }

    /// Forgets a job that is over.
    ///
    /// # Errors
    /// Not in this state.
    pub fn dismiss(self) -> Result<(), JobError> {
        self.ask(Verb::Dismiss, |slot| {
            slot.go(State::Null);
            Ok(())
        })?;
        self.tell(State::Concluded, State::Null);
        Ok(())
    }
}

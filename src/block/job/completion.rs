//! From the end of a job's body to the end of the job: a machine in the main loop, driven by one bottom half (JOB-7).
//!
//! ```text
//!   bodies ended ─▶ all well: WAITING ─▶ PENDING ─▶ prepare, one by one ─▶ commit, clean, backends away, CONCLUDED, one by one
//!                │                                        │ one cannot
//!                └▶ one failed or was given up: the others are cancelled; when all bodies have ended:
//!                                         ABORTING ─▶ abort, clean, backends away, CONCLUDED, one by one
//! ```
//! Drivers answer through a [`Ticket`], when they like: they may drain, flush and change the graph meanwhile (JOB-8). Nothing waits in
//! a nested loop, and no lock is held (JOB-15).
#![forbid(unsafe_code)]

use super::state::State;
use super::table::{self, Step};
use super::transaction::{self, Phase};
use super::{Job, backends};
use crate::aio::{self, BottomHalf, Callback};
use crate::block::BlockError;
use crate::config::JOBS;
use crate::sync::IrqLock;

static MAIN_BH: IrqLock<Option<BottomHalf>> = IrqLock::new(None);

/// Prepares the main loop's part.
pub(in crate::block) fn start() -> Result<(), BlockError> {
    let main = aio::main_context()
        .bottom_half("jobs", Callback::new(&serve, 0))
        .map_err(|_| BlockError::NoMemory)?;
    *MAIN_BH.lock() = Some(main);
    Ok(())
}

/// Makes the main loop look at the jobs. Any core.
pub(super) fn kick() {
    let main = *MAIN_BH.lock();
    if let Some(main) = main {
        main.schedule();
    }
}

/// The right to answer one question of the main loop to a driver: once, from any core.
#[must_use = "the job waits for the answer"]
pub struct Ticket(Job);

impl Ticket {
    /// Whose it is.
    pub fn job(&self) -> Job {
        self.0
    }

    /// The answer.
    pub fn done(self, result: Result<(), BlockError>) {
        self.0.slot(|slot| slot.answer = Some(result));
        kick();
    }
}

/// The bottom half.
fn serve(_: usize) {
    for index in 0..JOBS {
        let ended = table::at(index, |slot| {
            let ended = slot.handed && !slot.completed && slot.state != State::Null;
            slot.completed |= ended;
            ended
        });
        if ended {
            body_ended(Job::in_place(index));
        }
        let given_up = table::at(index, |slot| {
            slot.state == State::Null && !slot.backends.is_empty()
        });
        if given_up {
            backends::close_all(index);
        }
    }
    for number in transaction::numbers() {
        while advance(number) {}
    }
}

/// The main loop hears of the end of a body.
fn body_ended(job: Job) {
    let well = judge(job);
    if well {
        change(job, State::Waiting);
    } else {
        abort_others(job);
    }
}

/// Works out a job's result; a bad one makes it abort. Whether it is good.
fn judge(job: Job) -> bool {
    let aborts = job.slot(|slot| {
        if slot.result.is_ok() && slot.forced {
            slot.result = Err(BlockError::Cancelled);
        }
        let bad = slot.result.is_err();
        (bad, bad && slot.state != State::Aborting)
    });
    if let Some((_, true)) = aborts {
        change(job, State::Aborting);
    }
    aborts.is_some_and(|(bad, _)| !bad)
}

fn change(job: Job, to: State) {
    if let Some(from) = job.slot(|slot| slot.go(to)) {
        job.tell(from, to);
    }
}

/// The others of its transaction are given up.
fn abort_others(job: Job) {
    let Some(number) = job.slot(|slot| slot.transaction) else {
        return;
    };
    let others = transaction::with(number, |record| {
        // Else whoever began it has told all.
        (!core::mem::replace(&mut record.aborting, true)).then(|| record.members.clone())
    });
    for other in others.unwrap_or_default() {
        if other != job.index {
            let other = Job::in_place(other.into());
            other.slot(|slot| {
                slot.cancelled = true;
                slot.forced = true;
            });
            give_up_body(other);
        }
    }
}

/// A job was cancelled, in the one way or the other.
pub(super) fn given_up(job: Job) {
    let Some((forced, handed)) = job.slot(|slot| (slot.forced, slot.handed)) else {
        return;
    };
    if handed && forced {
        abort_others(job);
    }
    give_up_body(job);
}

/// Lets the body of a cancelled job see it. One that was never started has ended, which is to be seen in another turn.
fn give_up_body(job: Job) {
    job.slot(|slot| {
        if core::mem::take(&mut slot.user_paused) {
            slot.pause_count = slot.pause_count.saturating_sub(1);
        }
        slot.handed |= !slot.started;
    });
    job.wake();
    kick();
}

/// One step of a transaction; whether another may follow at once.
fn advance(number: u8) -> bool {
    let record = transaction::with(number, |record| record.clone());
    if record.members.is_empty() {
        return false;
    }
    let members = || record.members.iter().map(|m| Job::in_place((*m).into()));
    match record.phase {
        Phase::Open => {
            if !members().all(|job| job.slot(|slot| slot.completed) == Some(true)) {
                return false;
            }
            if record.aborting {
                transaction::with(number, |record| record.phase = Phase::Ending);
                return true;
            }
            for job in members().filter(|job| job.state() == State::Waiting) {
                change(job, State::Pending);
            }
            if members().all(|job| job.slot(|slot| slot.auto_finalize) == Some(true)) {
                return transaction::finalize(number);
            }
            false
        }
        Phase::Preparing => {
            for job in members() {
                match prepare(job) {
                    None => return false,
                    Some(true) => {}
                    Some(false) => {
                        judge(job);
                        abort_others(job);
                        break;
                    }
                }
            }
            transaction::with(number, |record| record.phase = Phase::Ending);
            true
        }
        Phase::Ending => match members().next() {
            Some(job) => end(job),
            None => false,
        },
    }
}

/// What the driver answered to `step`, asking it first where that was not done; `None`: nothing yet.
fn answer(job: Job, step: Step, ask: impl FnOnce(Ticket)) -> Option<Result<(), BlockError>> {
    let asked = job.slot(|slot| {
        let asked = slot.step == step;
        if !asked {
            slot.step = step;
            slot.answer = None;
        }
        asked
    });
    if asked == Some(false) {
        ask(Ticket(job));
    }
    job.slot(|slot| slot.answer.take()).flatten()
}

/// Whether the job can end; `None`: not known yet.
fn prepare(job: Job) -> Option<bool> {
    let driver = job.driver()?;
    if job.slot(|slot| slot.step) == Some(Step::Prepared) {
        return Some(true);
    }
    let result = answer(job, Step::Prepare, |ticket| driver.prepare(job, ticket))?;
    job.slot(|slot| {
        slot.step = Step::Prepared;
        slot.result = result;
    });
    Some(result.is_ok())
}

/// One step towards the end of a job, good or bad; whether another may follow at once.
fn end(job: Job) -> bool {
    let Some(driver) = job.driver() else {
        return false;
    };
    if job.slot(|slot| slot.step) == Some(Step::Close) {
        return conclude(job);
    }
    let well = judge(job);
    let result = answer(job, Step::End, |ticket| {
        if well {
            driver.commit(job, ticket);
        } else {
            driver.abort(job, ticket);
        }
    });
    let Some(result) = result else { return false };
    if let Err(error) = result {
        let id = job.id();
        log::error!("job {id}: its end: {error}");
    }
    driver.clean(job);
    job.slot(|slot| slot.step = Step::Close);
    backends::close_all(job.index());
    true
}

/// The job is over, when its backends are gone.
fn conclude(job: Job) -> bool {
    let left = job.slot(|slot| (slot.closing, slot.backends.len()));
    match left {
        Some((0, 0)) => {}
        Some((0, _)) => {
            backends::close_all(job.index());
            return false;
        }
        _ => return false,
    }
    change(job, State::Concluded);
    let Some((transaction, dismiss, result, id)) = job.slot(|slot| {
        let dismiss = slot.auto_dismiss || !slot.started;
        (slot.transaction, dismiss, slot.result, slot.id.clone())
    }) else {
        return false;
    };
    if !id.is_empty() {
        match result {
            Ok(()) => log::info!("job {id} is done"),
            Err(error) => log::warn!("job {id}: {error}"),
        }
    }
    transaction::leave(job.index, transaction);
    if dismiss {
        job.slot(|slot| slot.go(State::Null));
        job.tell(State::Concluded, State::Null);
    }
    true
}

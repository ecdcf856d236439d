//! Transactions: jobs that all succeed or all fail (JOB-10). Every job is in one, mostly alone.
#![forbid(unsafe_code)]

use heapless::Vec;

use super::{Job, JobError, main_loop};
use crate::config::{JOBS, TRANSACTIONS};
use crate::sync::IrqLock;

/// How far a transaction is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Bodies are at work, or wait for the others.
    Open,
    /// Its members are asked, one after another, whether they can end.
    Preparing,
    /// They end, one after another.
    Ending,
}

/// One transaction.
#[derive(Clone)]
pub(super) struct Record {
    /// So many may still add to it.
    held: u8,
    pub members: Vec<u8, JOBS>,
    pub phase: Phase,
    pub aborting: bool,
}

impl Record {
    const fn new() -> Self {
        Self {
            held: 0,
            members: Vec::new(),
            phase: Phase::Open,
            aborting: false,
        }
    }

    /// Whether jobs can be added.
    fn is_open(&self) -> bool {
        self.phase == Phase::Open && !self.aborting
    }

    fn is_free(&self) -> bool {
        self.held == 0 && self.members.is_empty()
    }
}

static RECORDS: IrqLock<[Record; TRANSACTIONS]> =
    IrqLock::new([const { Record::new() }; TRANSACTIONS]);

/// Lets jobs be added to a transaction; they stay in it when this is dropped.
pub struct Transaction(u8);

impl Transaction {
    /// One without jobs. Main loop only.
    ///
    /// # Errors
    /// No room.
    pub fn new() -> Result<Self, JobError> {
        main_loop()?;
        let number = take()?;
        with(number, |record| record.held += 1);
        Ok(Self(number))
    }

    /// That of a job. Main loop only.
    ///
    /// # Errors
    /// `NoSuchJob`; `Ending` when it takes no more.
    pub fn of(job: Job) -> Result<Self, JobError> {
        main_loop()?;
        let number = job.slot(|slot| slot.transaction);
        let number = number.ok_or(JobError::NoSuchJob)?;
        let open = with(number, |record| {
            let open = record.members.contains(&job.index) && record.is_open();
            record.held += u8::from(open);
            open
        });
        if open {
            Ok(Self(number))
        } else {
            Err(JobError::Ending)
        }
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        with(self.0, |record| record.held -= 1);
    }
}

pub(super) fn with<R>(number: u8, f: impl FnOnce(&mut Record) -> R) -> R {
    f(&mut RECORDS.lock()[usize::from(number)])
}

fn take() -> Result<u8, JobError> {
    let mut records = RECORDS.lock();
    let number = records
        .iter()
        .position(Record::is_free)
        .ok_or(JobError::NoRoom("transactions"))?;
    records[number] = Record::new();
    Ok(number as u8)
}

/// Adds the job in that place, to a transaction of its own if there is none.
pub(super) fn join(job: u8, transaction: Option<&Transaction>) -> Result<u8, JobError> {
    let number = match transaction {
        Some(transaction) => transaction.0,
        None => take()?,
    };
    with(number, |record| {
        if !record.is_open() {
            return Err(JobError::Ending);
        }
        // There are no more jobs than places.
        record
            .members
            .push(job)
            .map_err(|_| JobError::NoRoom("jobs"))?;
        Ok(number)
    })
}

/// A job is over, or never was.
pub(super) fn leave(job: u8, number: u8) {
    with(number, |record| {
        record.members.retain(|member| *member != job);
        if record.members.is_empty() {
            record.phase = Phase::Open;
            record.aborting = false;
        }
    });
}

/// The numbers of those that have members.
pub(super) fn numbers() -> impl Iterator<Item = u8> {
    (0..TRANSACTIONS as u8).filter(|number| with(*number, |record| !record.members.is_empty()))
}

/// Whether its members are being finalised.
pub(super) fn is_ending(number: u8) -> bool {
    with(number, |record| record.phase != Phase::Open)
}

/// A user finalises it; `false` when that has begun before.
pub(super) fn finalize(number: u8) -> bool {
    with(number, |record| {
        let open = record.is_open();
        if open {
            record.phase = Phase::Preparing;
        }
        open
    })
}

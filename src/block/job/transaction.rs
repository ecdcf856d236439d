//! Transactions: jobs that all succeed or all fail (JOB-10). Every job is in one, mostly alone.
#![forbid(unsafe_code)]

use heapless::Vec;

use super::{JobError, main_loop};
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
    /// Somebody may still add to it.
    held: bool,
    pub members: Vec<u8, JOBS>,
    pub phase: Phase,
    pub aborting: bool,
}

impl Record {
    const fn new() -> Self {
        Self {
            held: false,
            members: Vec::new(),
            phase: Phase::Open,
            aborting: false,
        }
    }

    fn is_free(&self) -> bool {
        !self.held && self.members.is_empty()
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
        with(number, |record| record.held = true);
        Ok(Self(number))
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        with(self.0, |record| record.held = false);
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
        if record.phase != Phase::Open || record.aborting {
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
        let open = record.phase == Phase::Open && !record.aborting;
        if open {
            record.phase = Phase::Preparing;
        }
        open
    })
}

//! Jobs: long work on nodes in use, that a user can watch, pause, limit, cancel, and that ends as a whole or not at all.
//!
//! ```text
//!   main loop                                          core of the job's context
//!   ─────────                                          ─────────────────────────
//!   create ─▶ open (backends) ─▶ start ──────────────▶ body: a coroutine, pause points, requests
//!   verbs: pause, resume, speed, cancel, complete ───▶   stops at pause points only, moves with its node
//!   drained section of a node of its ─▶ pause, busy? ─▶  …
//!   prepare ─▶ commit or abort ─▶ clean ◀────────────── finished(result)
//! ```
//! | module | what |
//! |---|---|
//! | [`state`] | states and verbs |
//! | `table` | the fields, under one lock (JOB-14) |
//! | [`verbs`] | what users ask for; none waits |
//! | `pause` | what a body awaits: pause points, sleeps |
//! | `rate` | the rate limit |
//! | `backends` | a job's hold on its nodes, through which it hears of drained sections and moves |
//! | `transaction` | jobs that end together |
//! | `completion` | from the end of the body to the end of the job, in the main loop |
//! | [`rebuild`] | fills a leg of a mirror |
//! | [`copier`] | chunks under way from one backend to another |
//! | [`mod@view`] | a job as others see it |
//! | [`mirror`] | a copy that stays equal, and takes over |
//! | [`backup`] | a copy of one moment |
//! | `filtered` | what these two have in common |
//!
//! A job type is a [`JobDriver`]. Its constructor runs in the main loop: it prepares a static instance, calls [`create`], opens the
//! job's nodes with [`Job::open`], and calls [`Job::start`]; where that fails on the way, [`Job::give_up`]. The body is spawned as
//! `on.spawn(kind, job.run(move || body(job)))`.
#![forbid(unsafe_code)]

mod backends;
pub mod backup;
mod completion;
pub mod copier;
mod filtered;
pub mod mirror;
mod pause;
mod rate;
pub mod rebuild;
pub mod state;
mod table;
mod transaction;
pub mod verbs;
pub mod view;

use core::fmt;

pub use completion::Ticket;
pub use filtered::{Launched, Start, StartError};
pub use state::{State, Verb};
pub use transaction::Transaction;
pub use verbs::find;
pub use view::{JobView, for_each, view};

pub(super) use completion::start;

use super::BlockError;
use super::graph::name_is_valid;
use super::node::Name;
use super::throttle::bucket::Limit;
use crate::aio::{self, AioContext, AioError, CoroutineHandle};
use crate::arch::{self, CoreId};

/// A job; a copy is the same. Once the job is gone, all functions do nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Job {
    index: u8,
    generation: u32,
}

/// What a type of job does. One static instance a running job. No lock is held in any of the calls.
pub trait JobDriver: Sync {
    /// `"mirror"`, `"backup"` …
    fn kind(&self) -> &'static str;

    /// Starts the body on `on`: `on.spawn(kind, job.run(move || body(job)))`. Main loop.
    ///
    /// # Errors
    /// That of [`AioContext::spawn`]; the job has failed then.
    fn spawn(&'static self, job: Job, on: &'static AioContext)
    -> Result<CoroutineHandle, AioError>;

    /// Whether a user may end the job when it is ready, without giving up what it did: [`complete`](Self::complete) by the verb of that
    /// name, or, by a cancel that is not forced, its end without the switch (JOB-11).
    fn has_ready_end(&self) -> bool {
        false
    }

    /// The user wants the end; [`Job::end_wanted`] says so too, and the body was woken. Main loop.
    fn complete(&'static self, job: Job) {
        let _ = job;
    }

    /// The body has succeeded, and so have those of the transaction. May begin drained sections, flushes, changes of the graph, and
    /// answers when they are over; an error makes all of the transaction abort. Main loop.
    fn prepare(&'static self, job: Job, then: Ticket) {
        let _ = job;
        then.done(Ok(()));
    }

    /// Makes final what the job did. Main loop. An error is reported, and changes nothing any more.
    fn commit(&'static self, job: Job, then: Ticket) {
        let _ = job;
        then.done(Ok(()));
    }

    /// Takes back what the job did. Main loop.
    fn abort(&'static self, job: Job, then: Ticket) {
        let _ = job;
        then.done(Ok(()));
    }

    /// Lets go of the instance and what it holds; [`Job::result`] says how it ended. The job's backends are taken away afterwards. Main loop.
    fn clean(&'static self, job: Job);
}

/// Which side of a job an error is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Where it reads.
    Source,
    /// Where it writes.
    Target,
}

/// What a user wants done about errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Policy {
    /// End the job with the error.
    #[default]
    Report,
    /// Count it and go on.
    Ignore,
    /// Pause the job, until a user lets it try again.
    Stop,
}

/// What a body is to do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// End with this error.
    Report,
    /// Go on; what failed is not done, and whoever can do it later does.
    Ignore,
    /// The job is paused by now: hit a pause point, then try again.
    Retry,
}

/// How a job is made.
pub struct Options<'a> {
    /// Its name; `None`: that of `default_id`.
    pub id: Option<&'a str>,
    /// The name of what it works on, for want of an id.
    pub default_id: &'a str,
    /// No name at all: part of something else, out of reach of the verbs.
    pub internal: bool,
    /// Goes on to its end without [`Job::finalize`].
    pub auto_finalize: bool,
    /// Is forgotten when it ends, without [`Job::dismiss`].
    pub auto_dismiss: bool,
    /// Bytes a second; 0: no limit.
    pub speed: u64,
    /// What to do about errors of reading, and of writing.
    pub on_source_error: Policy,
    /// The same for writing.
    pub on_target_error: Policy,
    /// Whom it ends with.
    pub transaction: Option<&'a Transaction>,
}

impl Options<'_> {
    /// No id; all by itself, without a limit.
    pub const DEFAULT: Options<'static> = Options {
        id: None,
        default_id: "",
        internal: false,
        auto_finalize: true,
        auto_dismiss: true,
        speed: 0,
        on_source_error: Policy::Report,
        on_target_error: Policy::Report,
        transaction: None,
    };
}

/// Why a job, or something about one, was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobError {
    /// Not on the main loop.
    NotMainLoop,
    /// No id given, and nothing to take one from.
    NoId,
    /// Ids begin with a letter; letters, digits, `-`, `.`, `_` follow; at most 31 bytes.
    BadId,
    /// Another job has this id.
    IdInUse,
    /// All places are taken: of what.
    NoRoom(&'static str),
    /// There is no such job (any more).
    NoSuchJob,
    /// Not in this state.
    State(Verb, State),
    /// A user has paused it already.
    AlreadyPaused,
    /// No user has paused it.
    NotPaused,
    /// This kind of job has no end that could be asked for, or it is being cancelled.
    CannotComplete,
    /// It is about to end.
    Ending,
}

impl fmt::Display for JobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotMainLoop => f.write_str("only the main loop may do this"),
            Self::NoId => f.write_str("the job needs an id"),
            Self::BadId => {
                f.write_str("not an id (a letter, then letters, digits, '-', '.', '_'; at most 31)")
            }
            Self::IdInUse => f.write_str("a job of this id exists"),
            Self::NoRoom(what) => write!(f, "no room for more {what}"),
            Self::NoSuchJob => f.write_str("no such job"),
            Self::State(verb, state) => write!(f, "no '{}' of a job that is {state}", verb.name()),
            Self::AlreadyPaused => f.write_str("it is paused already"),
            Self::NotPaused => f.write_str("it is not paused"),
            Self::CannotComplete => f.write_str("it has no end that could be asked for"),
            Self::Ending => f.write_str("it is about to end"),
        }
    }
}

impl core::error::Error for JobError {}

impl From<JobError> for BlockError {
    fn from(error: JobError) -> Self {
        match error {
            JobError::NoRoom(_) => Self::NoMemory,
            JobError::NoSuchJob => Self::NoMedium,
            JobError::IdInUse | JobError::State(..) | JobError::Ending => Self::Busy,
            _ => Self::Invalid,
        }
    }
}

fn main_loop() -> Result<(), JobError> {
    if arch::current_core() == Some(0) {
        Ok(())
    } else {
        Err(JobError::NotMainLoop)
    }
}

/// Makes a job of `driver`, not started. Main loop only.
///
/// # Errors
/// A bad id, one in use, no id at all; no room.
pub fn create(driver: &'static dyn JobDriver, options: &Options<'_>) -> Result<Job, JobError> {
    main_loop()?;
    let id = if options.internal {
        ""
    } else {
        options.id.unwrap_or(options.default_id)
    };
    if !options.internal {
        if id.is_empty() && options.id.is_none() {
            return Err(JobError::NoId);
        }
        if !name_is_valid(id) {
            return Err(JobError::BadId);
        }
        if find(id).is_some() {
            return Err(JobError::IdInUse);
        }
    }
    let index = table::with_all(|slots| {
        slots.iter().position(|slot| {
            slot.state == State::Null && slot.closing == 0 && slot.backends.is_empty()
        })
    });
    let index = index.ok_or(JobError::NoRoom("jobs"))? as u8;
    let transaction = transaction::join(index, options.transaction)?;
    let kind = driver.kind();
    let generation = table::at(index.into(), |slot| {
        slot.reset();
        slot.generation = slot.generation.wrapping_add(1);
        slot.go(State::Created);
        // It was found valid, so it fits.
        slot.id = Name::try_from(id).unwrap_or_default();
        slot.driver = Some(driver);
        slot.kind = kind;
        slot.auto_finalize = options.auto_finalize;
        slot.auto_dismiss = options.auto_dismiss;
        slot.limit = Limit::average(options.speed);
        slot.policy = [options.on_source_error, options.on_target_error];
        slot.transaction = transaction;
        slot.generation
    });
    let job = Job { index, generation };
    job.tell(State::Null, State::Created);
    Ok(job)
}

impl Job {
    /// The job in that place of the table.
    fn in_place(index: usize) -> Self {
        let generation = table::at(index, |slot| slot.generation);
        Self {
            index: index as u8,
            generation,
        }
    }

    /// Its place, below [`JOBS`](crate::config::JOBS): for tables of drivers.
    pub fn index(self) -> usize {
        self.index.into()
    }

    /// Whether it still exists, concluded or not.
    pub fn exists(self) -> bool {
        self.slot(|_| ()).is_some()
    }

    /// Where it stands.
    pub fn state(self) -> State {
        self.slot(|slot| slot.state).unwrap_or(State::Null)
    }

    /// Its id; empty for an internal one, or one that is gone.
    pub fn id(self) -> Name {
        self.slot(|slot| slot.id.clone()).unwrap_or_default()
    }

    /// Core of its context.
    pub fn core(self) -> CoreId {
        self.slot(|slot| slot.core).unwrap_or(0)
    }

    /// How it ended, valid in [`JobDriver::clean`] and while it is concluded.
    ///
    /// # Errors
    /// Its own; `Cancelled`.
    pub fn result(self) -> Result<(), BlockError> {
        self.slot(|slot| slot.result)
            .unwrap_or(Err(BlockError::Cancelled))
    }

    fn driver(self) -> Option<&'static dyn JobDriver> {
        self.slot(|slot| slot.driver).flatten()
    }

    /// Starts the body, in the context of the first node that was opened. It begins with a pause point (JOB-2). Main loop only.
    ///
    /// # Errors
    /// `NotMainLoop`, `Ending` when it was started or given up before. A body that finds no coroutine fails as any other does.
    pub fn start(self) -> Result<(), JobError> {
        main_loop()?;
        let now_ns = arch::now_ns();
        let begun = self.slot(|slot| {
            // One that was cancelled before counts as ended.
            if slot.state != State::Created || slot.handed {
                return None;
            }
            slot.go(State::Running);
            slot.started = true;
            // One that begins with a pause stands already: nobody waits for it, nobody enters it.
            slot.paused = slot.pause_count > 0;
            slot.busy = !slot.paused;
            slot.paused_since_ns = now_ns;
            slot.started_ns = now_ns;
            slot.leaked_ns = now_ns;
            slot.driver.map(|driver| (driver, slot.core))
        });
        let (driver, core) = begun.ok_or(JobError::NoSuchJob)?.ok_or(JobError::Ending)?;
        self.tell(State::Created, State::Running);
        if driver.spawn(self, aio::context(core)).is_err() {
            self.finished(Err(BlockError::NoMemory));
        }
        Ok(())
    }

    /// Drops a job that was not started: it is gone at once, and its id free, without a word to the driver; its backends follow. Main
    /// loop only.
    pub fn give_up(self) {
        let given_up = self.slot(|slot| {
            let created = slot.state == State::Created;
            if created {
                slot.go(State::Null);
            }
            created.then_some(slot.transaction)
        });
        if let Some(transaction) = given_up.flatten() {
            transaction::leave(self.index, transaction);
            backends::close_all(self.index());
        }
    }

    /// Writes the event log's line, and lets those look who wait for a state.
    fn tell(self, from: State, to: State) {
        let (id, kind) = table::at(self.index(), |slot| (slot.id.clone(), slot.kind));
        if !id.is_empty() {
            log::debug!("{kind} job {id}: {from} to {to}");
        }
        // The main loop may wait for just this state.
        aio::wait_kick();
    }
}

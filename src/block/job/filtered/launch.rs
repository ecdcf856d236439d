//! Jobs with filters begin: several at one moment, or none.
//!
//! Drained sections on all sources go on until all filters are in their places and all jobs are started. So what a client was told to be
//! written before is in every image, and what it writes after hearing that is in none.
#![forbid(unsafe_code)]

use core::fmt::{self, Write as _};

use heapless::Vec;

use super::super::{Job, JobError, Options, State as JobState, Transaction};
use super::{ARENA, Filtered, Kind, Parts};
use crate::block::BlockError;
use crate::block::bitmap::{MIN_GRANULARITY, granularity_for};
use crate::block::graph::{self, Permissions, Reason, Refusal, change, drain};
use crate::block::node::{Name, NodeId, copy_before_write, dirty};
use crate::config::JOBS;
use crate::sync::IrqLock;

/// Who is told what became of a launch: in the main loop, with the argument given at the beginning.
pub type Launched = &'static (dyn Fn(usize, Result<(), StartError>) + Sync);

/// Why jobs were not started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartError {
    /// The job.
    Job(JobError),
    /// The graph.
    Graph(Refusal),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Job(error) => error.fmt(f),
            Self::Graph(refusal) => refusal.fmt(f),
        }
    }
}

impl core::error::Error for StartError {}

impl From<JobError> for StartError {
    fn from(error: JobError) -> Self {
        Self::Job(error)
    }
}

impl From<Refusal> for StartError {
    fn from(refusal: Refusal) -> Self {
        Self::Graph(refusal)
    }
}

/// From where to where.
pub struct Start<'a> {
    /// What is in use.
    pub source: NodeId,
    /// Where its data go: no smaller, and nobody else writes there.
    pub target: NodeId,
    /// The job.
    pub options: Options<'a>,
    /// A backup's cluster, and what happens when a client's copy fails.
    pub cluster: Option<u64>,
    /// When a copy for a client fails.
    pub on_error: copy_before_write::OnError,
}

impl Start<'_> {
    /// A job with an id that is given or the source's name, and nothing unusual.
    pub fn new(source: NodeId, target: NodeId) -> Self {
        Self {
            source,
            target,
            options: Options::DEFAULT,
            cluster: None,
            on_error: copy_before_write::OnError::default(),
        }
    }
}

struct Launch {
    members: Vec<u8, JOBS>,
    /// Filters that are not in their place yet.
    waiting: usize,
    failed: Option<StartError>,
    done: Launched,
    argument: usize,
}

static LAUNCHES: IrqLock<[Option<Launch>; JOBS]> = IrqLock::new([const { None }; JOBS]);

/// Launches all of `starts`, or none; more than one end together (JOB-10), unless their options name transactions. `done` hears when they run, or why not. Main loop only.
///
/// # Errors
/// What can be seen at once; then nothing has begun, and `done` is not called.
pub(in super::super) fn launch(
    kind: Kind,
    starts: &[Start<'_>],
    done: Launched,
    argument: usize,
) -> Result<Vec<Job, JOBS>, StartError> {
    let transaction = Transaction::new()?;
    let mut members: Vec<(usize, &'static Filtered), JOBS> = Vec::new();
    let mut result = Ok(());
    for start in starts {
        result = prepare(kind, start, &transaction).map(|member| {
            // There are no more instances than places.
            let _ = members.push(member);
        });
        if result.is_err() {
            break;
        }
    }
    if let Err(error) = result {
        members
            .into_iter()
            .for_each(|(_, member)| drop_unborn(member));
        return Err(error);
    }
    let jobs = members
        .iter()
        .filter_map(|(_, m)| m.with(|s| s.job))
        .collect();
    let launch = Launch {
        members: members.iter().map(|(index, _)| *index as u8).collect(),
        waiting: members.len(),
        failed: None,
        done,
        argument,
    };
    let place = {
        let mut launches = LAUNCHES.lock();
        // Each has a member of its own, and there are no more of those.
        let place = launches
            .iter()
            .position(Option::is_none)
            .unwrap_or_default();
        launches[place] = Some(launch);
        place
    };
    for (_, member) in &members {
        member.with(|state| state.launching = true);
        if let Some((source, _)) = member.with(|state| state.ends) {
            let _ = drain::begin_no_wait(source);
        }
    }
    for (index, member) in members {
        come_close(place, index, member);
    }
    Ok(jobs)
}

/// An instance with a job and a filter that stands nowhere yet.
fn prepare(
    kind: Kind,
    start: &Start<'_>,
    transaction: &Transaction,
) -> Result<(usize, &'static Filtered), StartError> {
    let (source, target) = (start.source, start.target);
    let source_name = graph::name(source).unwrap_or_default();
    if graph::stands_on(source, target) || graph::stands_on(target, source) {
        return Err(Refusal::new(&source_name, Reason::Cycle).into());
    }
    copy_before_write::check(source, target)?;
    if let Kind::Mirror = kind
        && graph::info(target).is_some_and(|info| info.read_only)
    {
        let name = graph::name(target).unwrap_or_default();
        return Err(Refusal::new(&name, Reason::ReadOnly).into());
    }
    let (index, member) = Filtered::take(kind).ok_or(JobError::NoRoom("jobs"))?;
    let options = Options {
        default_id: if start.options.default_id.is_empty() {
            &source_name
        } else {
            start.options.default_id
        },
        transaction: start.options.transaction.or(Some(transaction)),
        ..start.options
    };
    let job = super::super::create(member, &options).inspect_err(|_| member.release())?;
    member.with(|state| {
        state.job = Some(job);
        state.ends = Some((source, target));
    });
    let mut name = Name::new();
    // A digit or two and a word.
    let _ = write!(name, "job{}.filter", job.index());
    let filter = match kind {
        Kind::Mirror => dirty::create(&name, None),
        Kind::Backup => copy_before_write::create(
            &name,
            copy_before_write::Options {
                child: None,
                target,
                cluster: start.cluster,
                on_error: start.on_error,
            },
        ),
    };
    match filter {
        Ok(filter) => {
            member.with(|state| state.filter = Some(filter));
            Ok((index, member))
        }
        Err(refusal) => {
            drop_unborn(member);
            Err(refusal.into())
        }
    }
}

/// A job that is not to be: nothing of it was ever in use.
fn drop_unborn(member: &'static Filtered) {
    let (job, filter) = member.with(|state| (state.job, state.filter));
    if let Some(filter) = filter {
        // Nothing stands on it.
        let _ = graph::delete(filter);
    }
    if let Some(job) = job {
        job.give_up();
    }
    member.release();
}

/// One number for both: a launch and its member.
fn argument(place: usize, index: usize) -> usize {
    place * JOBS + index
}

/// The filter comes to the source, not the source to the filter's target (CTX-9): a disk in use stays where it is.
fn come_close(place: usize, index: usize, member: &'static Filtered) {
    let (ends, filter) = member.with(|state| (state.ends, state.filter));
    let (Some((source, _)), Some(filter)) = (ends, filter) else {
        return arrived(
            argument(place, index),
            Err(Refusal::new("", Reason::NoSuchNode)),
        );
    };
    let home = graph::home(source);
    if home == graph::home(filter) || graph::children(filter).is_empty() {
        return insert(argument(place, index), Ok(()));
    }
    let core = home.unwrap_or_default();
    if change::move_begin(filter, core, &insert, argument(place, index)).is_err() {
        insert(argument(place, index), Ok(()));
    }
}

/// The filter is in the source's context, or stays where it is.
fn insert(argument: usize, _moved: Result<(), Refusal>) {
    let member = &ARENA[argument % JOBS];
    let (ends, filter) = member.with(|state| (state.ends, state.filter));
    let begun = match (ends, filter) {
        (Some((source, _)), Some(filter)) => {
            change::insert_begin(filter, source, &arrived, argument)
        }
        _ => Err(Refusal::new("", Reason::NoSuchNode)),
    };
    if let Err(refusal) = begun {
        arrived(argument, Err(refusal));
    }
}

/// A filter is in its place, or cannot come there.
fn arrived(argument: usize, result: Result<(), Refusal>) {
    let (place, index) = (argument / JOBS, argument % JOBS);
    if result.is_err() {
        let filter = ARENA[index].with(|state| state.filter.take());
        if let Some(filter) = filter {
            let _ = graph::delete(filter);
        }
    }
    let launch = {
        let mut launches = LAUNCHES.lock();
        let Some(launch) = &mut launches[place] else {
            return;
        };
        launch.waiting -= 1;
        if let (Err(refusal), None) = (result, &launch.failed) {
            launch.failed = Some(refusal.into());
        }
        if launch.waiting > 0 {
            return;
        }
        launches[place].take()
    };
    if let Some(launch) = launch {
        finish(launch);
    }
}

/// All filters are where they should be, or one is not. The sections are still on.
fn finish(launch: Launch) {
    let members = || launch.members.iter().map(|m| &ARENA[usize::from(*m)]);
    let mut result = launch.failed.map_or(Ok(()), Err);
    for member in members() {
        result = result.and_then(|()| equip(member));
    }
    let ends: Vec<_, JOBS> = members().filter_map(|m| m.with(|s| s.ends)).collect();
    for member in members() {
        let (job, then) = member.with(|state| {
            state.launching = false;
            (state.job, state.then.take())
        });
        let unborn = job.filter(|job| job.state() == JobState::Created);
        match (unborn, &result) {
            // One that finds no coroutine fails as a job does.
            (Some(job), Ok(())) => drop(job.start()),
            (Some(job), Err(_)) => {
                withdraw(member);
                job.give_up();
            }
            // Given up meanwhile: its end goes on now, or comes to this later.
            (None, _) => then.into_iter().for_each(|then| member.remove_filter(then)),
        }
    }
    for (source, _) in ends {
        drain::drain_end(source);
    }
    (launch.done)(launch.argument, result);
}

/// The job gets what its body needs.
fn equip(member: &'static Filtered) -> Result<(), StartError> {
    let (job, ends, filter, kind) =
        member.with(|state| (state.job, state.ends, state.filter, state.kind));
    let (Some(job), Some((source, target)), Some(filter)) = (job, ends, filter) else {
        return Err(JobError::NoSuchJob.into());
    };
    if job.state() != JobState::Created {
        return Err(JobError::NoSuchJob.into());
    }
    let parts = match kind {
        // Below the filter, so that the job goes on when that is drained.
        Kind::Mirror => {
            let size = graph::info(source).map_or(0, |info| info.size);
            // Each chunk begins and ends at a block of both.
            let blocks = [source, target].map(|id| graph::info(id).map_or(0, |i| i.logical_block));
            let block = u64::from(blocks[0].max(blocks[1]));
            let granularity = granularity_for(size, MIN_GRANULARITY.max(block));
            let bitmap = dirty::add_bitmap(filter, "mirror", Some(granularity))?;
            bitmap
                .use_bitmap(|bits| bits.set_all())
                .map_err(|error| Refusal::new("", Reason::Node(error)))?;
            let parts = Parts {
                filter,
                source: job.open("source", source, Permissions::READER)?,
                target: job.open("target", target, Permissions::WRITER)?,
                bitmap: Some(bitmap),
            };
            hold(dirty::hold(filter, true))?;
            parts
        }
        Kind::Backup => {
            let parts = Parts {
                filter,
                source: job.open("source", filter, Permissions::READER)?,
                target: job.open("target", target, Permissions::READER)?,
                bitmap: None,
            };
            hold(copy_before_write::set_copier(filter, Some(parts.source)))?;
            parts
        }
    };
    member.with(|state| state.parts = Some(parts));
    Ok(())
}

fn hold(held: Result<(), BlockError>) -> Result<(), StartError> {
    held.map_err(|error| Refusal::new("", Reason::Node(error)).into())
}

/// A filter that is in its place goes again; its instance with it.
fn withdraw(member: &'static Filtered) {
    let Some(filter) = member.let_go_of_filter() else {
        return member.release();
    };
    if let Err(refusal) = change::remove_begin(filter, &withdrawn, member.index()) {
        withdrawn(member.index(), Err(refusal));
    }
}

fn withdrawn(index: usize, result: Result<(), Refusal>) {
    if let Err(refusal) = result {
        log::error!("a job's filter stays: {refusal}");
    }
    ARENA[index].release();
}

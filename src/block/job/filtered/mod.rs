//! What mirror and backup jobs have in common: a filter above their source, from their first moment to their last.
//!
//! ```text
//!   launch:  sections on all sources ─▶ filters inserted ─▶ backends, first state ─▶ bodies started ─▶ sections end
//!   end:     mirror: users ─▶ target, the filter is gone     backup, or any that is given up: the filter is removed
//! ```
//! | file | what |
//! |---|---|
//! | [`launch`](mod@launch) | several jobs begin at one moment, or none |
//! | this one | the instances, what the end of a job does to the graph |
//!
//! All of it in the main loop, but for what a body asks. Nothing waits.
#![forbid(unsafe_code)]

mod launch;

pub(super) use launch::launch;
pub use launch::{Launched, Start, StartError};

use super::{Job, JobDriver, Ticket, backup, mirror};
use crate::aio::{AioContext, AioError, CoroutineHandle};
use crate::block::graph::{Drained, Permissions, Refusal, change};
use crate::block::node::dirty::BitmapId;
use crate::block::node::{NodeId, copy_before_write, dirty};
use crate::block::{Backend, BlockError};
use crate::config::JOBS;
use crate::sync::IrqLock;

/// What a job does with its filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Mirror,
    Backup,
}

/// A body's part of the instance.
#[derive(Clone, Copy)]
pub(super) struct Parts {
    pub filter: NodeId,
    pub source: &'static Backend,
    pub target: &'static Backend,
    /// A mirror's.
    pub bitmap: Option<BitmapId>,
}

struct State {
    taken: bool,
    kind: Kind,
    job: Option<Job>,
    ends: Option<(NodeId, NodeId)>,
    filter: Option<NodeId>,
    parts: Option<Parts>,
    /// The filter is not known to be in its place yet; the job may have been given up all the same.
    launching: bool,
    /// A mirror's last section: from its last chunk until its users are elsewhere.
    section: Option<Drained>,
    /// The users are to go to the target.
    pivots: bool,
    then: Option<Ticket>,
}

/// One job with a filter.
pub(super) struct Filtered {
    state: IrqLock<State>,
}

static ARENA: [Filtered; JOBS] = [const {
    Filtered {
        state: IrqLock::new(State {
            taken: false,
            kind: Kind::Mirror,
            job: None,
            ends: None,
            filter: None,
            parts: None,
            launching: false,
            section: None,
            pivots: false,
            then: None,
        }),
    }
}; JOBS];

impl Filtered {
    /// A free instance, from now on taken.
    fn take(kind: Kind) -> Option<(usize, &'static Self)> {
        ARENA.iter().enumerate().find(|(_, instance)| {
            let mut state = instance.state.lock();
            let free = !state.taken;
            if free {
                state.taken = true;
                state.kind = kind;
                state.pivots = false;
            }
            free
        })
    }

    fn with<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        f(&mut self.state.lock())
    }

    fn index(&self) -> usize {
        let place = ARENA.iter().position(|known| core::ptr::eq(known, self));
        place.unwrap_or_default()
    }

    fn kind_of(&self) -> Kind {
        self.with(|state| state.kind)
    }

    /// What a body works with; a body that finds nothing was not launched.
    pub fn parts(&self) -> Result<Parts, BlockError> {
        self.with(|state| state.parts).ok_or(BlockError::NoMedium)
    }

    /// Keeps a mirror's last section. Any core.
    pub fn keep_section(&self, section: Drained) {
        self.with(|state| state.section = Some(section));
    }

    /// Ends it, if it is on. Any core.
    pub fn end_section(&self) {
        let section = self.with(|state| state.section.take());
        drop(section);
    }

    /// Says whether the users go to the target at the end.
    pub fn set_pivots(&self, pivots: bool) {
        self.with(|state| state.pivots = pivots);
    }

    /// Gives the instance back.
    fn release(&self) {
        self.end_section();
        self.with(|state| {
            state.parts = None;
            state.job = None;
            state.ends = None;
            state.filter = None;
            state.taken = false;
        });
    }

    /// Lets users do with the filter what they like.
    fn let_go_of_filter(&self) -> Option<NodeId> {
        let (kind, filter) = self.with(|state| (state.kind, state.filter));
        let filter = filter?;
        // It is there: we made it, and nobody else could delete it.
        let _ = match kind {
            Kind::Mirror => dirty::hold(filter, false),
            Kind::Backup => copy_before_write::set_copier(filter, None),
        };
        Some(filter)
    }

    /// Takes the filter out of the graph, if it is there, and answers.
    fn remove_filter(&'static self, then: Ticket) {
        self.end_section();
        let Some(filter) = self.let_go_of_filter() else {
            return then.done(Ok(()));
        };
        self.with(|state| state.then = Some(then));
        if let Err(refusal) = change::remove_begin(filter, &removed, self.index()) {
            removed(self.index(), Err(refusal));
        }
    }

    /// The users go from the filter to the target.
    fn pivot(&'static self, then: Ticket) {
        let (Some(filter), Some((_, target)), Ok(parts)) = (
            self.let_go_of_filter(),
            self.with(|state| state.ends),
            self.parts(),
        ) else {
            return then.done(Err(BlockError::NoMedium));
        };
        self.with(|state| state.then = Some(then));
        // The job was the target's only writer; from now on its users are.
        let begun = parts
            .target
            .set_permissions(Permissions::READER)
            .and_then(|()| change::take_over_begin(filter, target, &pivoted, self.index()));
        if let Err(refusal) = begun {
            pivoted(self.index(), Err(refusal));
        }
    }

    fn answer(&self, result: Result<(), BlockError>) {
        let then = self.with(|state| state.then.take());
        if let Some(then) = then {
            then.done(result);
        }
    }
}

/// A filter was removed, or could not be.
fn removed(index: usize, result: Result<(), Refusal>) {
    let instance = &ARENA[index];
    if let Err(refusal) = &result {
        log::error!("a job's filter stays: {refusal}");
    }
    instance.with(|state| state.filter = None);
    instance.answer(result.map_err(BlockError::from));
}

/// The users of a mirror's filter are at the target, or where they were.
fn pivoted(index: usize, result: Result<(), Refusal>) {
    let instance = &ARENA[index];
    match &result {
        Ok(()) => {
            instance.with(|state| state.filter = None);
            instance.end_section();
        }
        Err(refusal) => log::error!("a mirror's users stay where they are: {refusal}"),
    }
    instance.answer(result.map_err(BlockError::from));
}

impl JobDriver for Filtered {
    fn kind(&self) -> &'static str {
        match self.kind_of() {
            Kind::Mirror => "mirror",
            Kind::Backup => "backup",
        }
    }

    fn spawn(
        &'static self,
        job: Job,
        on: &'static AioContext,
    ) -> Result<CoroutineHandle, AioError> {
        match self.kind_of() {
            Kind::Mirror => on.spawn("mirror", job.run(move || mirror::body(job, self))),
            Kind::Backup => on.spawn("backup", job.run(move || backup::body(job, self))),
        }
    }

    fn has_ready_end(&self) -> bool {
        self.kind_of() == Kind::Mirror
    }

    fn prepare(&'static self, _job: Job, then: Ticket) {
        if self.with(|state| state.pivots) {
            self.pivot(then);
        } else {
            then.done(Ok(()));
        }
    }

    fn commit(&'static self, _job: Job, then: Ticket) {
        self.remove_filter(then);
    }

    fn abort(&'static self, _job: Job, then: Ticket) {
        let then = self.with(|state| {
            if state.launching {
                // Until it is known where the filter is.
                state.then = Some(then);
                return None;
            }
            Some(then)
        });
        if let Some(then) = then {
            self.remove_filter(then);
        }
    }

    fn clean(&'static self, _job: Job) {
        self.release();
    }
}

//! A job's hold on its nodes: backends of its own, through which it hears of drained sections and follows its first node's context.
//!
//! A section begins: one more reason to pause; it is not quiet before the body has stopped (JOB-6). Requests of the body are let through
//! meanwhile, so that it comes to its next pause point (DRN-27).
#![forbid(unsafe_code)]

use core::fmt::Write as _;

use super::table;
use super::{Job, JobError, completion, copier};
use crate::aio::Callback;
use crate::arch::CoreId;
use crate::block::backend::{self, Backend, BackendListener};
use crate::block::graph::context::{
    ContextNotifier, Watched, add_context_notifier, remove_context_notifier,
};
use crate::block::graph::{Permissions, Reason, Refusal};
use crate::block::node::{Name, NodeId};
use crate::config::JOBS;

/// The job in that place hears of its backends' sections.
struct Listener(usize);

static LISTENERS: [Listener; JOBS] = {
    let mut listeners = [const { Listener(0) }; JOBS];
    let mut index = 0;
    while index < JOBS {
        listeners[index].0 = index;
        index += 1;
    }
    listeners
};

impl BackendListener for Listener {
    fn drained_begin(&self, _backend: &'static Backend) {
        table::wake(Some(table::at(self.0, |slot| slot.pause())));
    }

    fn drained_poll(&self, _backend: &'static Backend) -> bool {
        table::at(self.0, |slot| slot.is_busy()) || copier::in_flight(self.0) > 0
    }

    fn drained_end(&self, _backend: &'static Backend) {
        table::wake(Some(table::at(self.0, |slot| slot.resume())));
    }
}

/// The first backend's context has changed: the body goes there before it goes on (JOB-9).
fn attached(index: usize, core: CoreId) {
    table::at(index, |slot| slot.core = core);
}

fn detach(index: usize) {
    table::at(index, |slot| {
        debug_assert!(!slot.is_busy(), "a job that is at work was moved");
    });
}

fn notifier(index: usize) -> ContextNotifier {
    ContextNotifier {
        attached,
        detach,
        argument: index,
    }
}

impl Job {
    /// A backend of the job on a node, until the job ends. The first one's context is the job's. `role` tells it from the job's others:
    /// `"source"`. Main loop only, before the job is started or in [`JobDriver::prepare`](super::JobDriver::prepare).
    ///
    /// # Errors
    /// As [`Backend::open`]; no room.
    pub fn open(
        self,
        role: &str,
        node: NodeId,
        permissions: Permissions,
    ) -> Result<&'static Backend, Refusal> {
        let mut name = Name::new();
        let _ = write!(name, "job{}.{role}", self.index());
        let refuse = |reason| Err(Refusal::new(&name, reason));
        let Some((user, count, room)) = self.slot(|slot| {
            let room = !slot.backends.is_full();
            (slot.kind, slot.backends.len(), room)
        }) else {
            return refuse(Reason::NoRoom("jobs"));
        };
        if !room {
            return refuse(Reason::NoRoom("backends of one job"));
        }
        let backend = Backend::open(&name, user, Some(node), permissions)?;
        backend.set_parking(false);
        // There was room, and the main loop alone adds.
        self.slot(|slot| slot.backends.push(backend.index() as u8));
        // It has no other listeners, so there is a place.
        let _ = backend.add_listener(&LISTENERS[self.index()]);
        if count == 0 {
            self.slot(|slot| slot.core = backend.home());
            let watched = Watched::Backend(backend.index());
            if let Err(refusal) = add_context_notifier(watched, notifier(self.index())) {
                close(self.index(), backend);
                return Err(refusal);
            }
        }
        Ok(backend)
    }

    /// The job's first backend, if it has one.
    pub fn backend(self) -> Option<&'static Backend> {
        let index = self.slot(|slot| slot.backends.first().copied())??;
        backend::backend(index.into())
    }

    /// Takes one of the job's backends away, a little later, not the first. All its requests have come back. Main loop only.
    ///
    /// # Errors
    /// `NoSuchJob` when it is none of this job.
    pub fn close(self, backend: &'static Backend) -> Result<(), JobError> {
        let own = self.slot(|slot| slot.backends.contains(&(backend.index() as u8)));
        if own != Some(true) {
            return Err(JobError::NoSuchJob);
        }
        close(self.index(), backend);
        Ok(())
    }
}

/// Takes all backends of the job in that place away.
pub(super) fn close_all(index: usize) {
    let backends = table::at(index, |slot| slot.backends.clone());
    for backend in backends {
        if let Some(backend) = backend::backend(backend.into()) {
            close(index, backend);
        }
    }
}

fn close(index: usize, backend: &'static Backend) {
    let number = backend.index() as u8;
    table::at(index, |slot| {
        slot.backends.retain(|known| *known != number);
        slot.closing += 1;
    });
    let argument = index << 8 | backend.index();
    let begun = backend.drain_begin_locked(Callback::new(&closed, argument));
    if begun.is_err() {
        // Too many wait for its quiet already: again when they have gone.
        table::at(index, |slot| {
            slot.closing -= 1;
            // It was in there before.
            let _ = slot.backends.push(number);
        });
        completion::kick();
    }
}

/// A backend that is to go is quiet.
fn closed(argument: usize) {
    let (index, number) = (argument >> 8, argument & 0xff);
    if let Some(backend) = backend::backend(number) {
        backend.remove_listener(&LISTENERS[index]);
        remove_context_notifier(Watched::Backend(number), notifier(index));
        let gone = backend.delete();
        debug_assert!(gone.is_ok(), "a job's backend stays");
    }
    table::at(index, |slot| slot.closing = slot.closing.saturating_sub(1));
    completion::kick();
}

//! The rebuild job: fills a leg of a mirror while clients use it.
//!
//! Every range is read once, from a leg that has it, and written to the leg that is being filled, which gets clients' writes too from
//! the beginning; the mirror keeps the two apart. At the end the leg is flushed and becomes active. Cancelled or failed, it stays
//! stale; a rebuild begins anew.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicBool, Ordering};

use heapless::Vec;

use super::copier::{Chunk, Copier};
use super::{Action, Job, JobDriver, JobError, Options, Side};
use crate::aio::{AioContext, AioError, CoroutineHandle};
use crate::block::graph::{self, Permissions, Reason, Refusal};
use crate::block::node::{NodeId, mirror};
use crate::block::{Backend, BlockError};
use crate::config::{COPY_CHUNK, COPY_WINDOW, MIRRORS};
use crate::sync::IrqLock;

/// What a job fills.
#[derive(Clone, Copy)]
struct Work {
    node: NodeId,
    slot: u8,
    backend: &'static Backend,
}

struct Rebuild {
    taken: AtomicBool,
    work: IrqLock<Option<Work>>,
}

static ARENA: [Rebuild; MIRRORS] = [const {
    Rebuild {
        taken: AtomicBool::new(false),
        work: IrqLock::new(None),
    }
}; MIRRORS];

/// Begins to fill `leg`, which is attached to the mirror `node` and not active. Main loop only.
///
/// # Errors
/// Another kind of node (`NotSupported`), no such leg (`NoMedium`), an active one or an array that does not run (`Busy`); those of [`create`](super::create), [`Job::open`] and [`Job::start`].
pub fn create(node: NodeId, leg: NodeId, options: &Options<'_>) -> Result<Job, Refusal> {
    let name = graph::name(node).unwrap_or_default();
    let refuse = |error| Refusal::new(&name, Reason::Node(error));
    let failed = |error: JobError| refuse(error.into());
    let view = mirror::view(node).ok_or_else(|| refuse(BlockError::NotSupported))?;
    let slot = mirror::slot_of(node, leg).ok_or_else(|| refuse(BlockError::NoMedium))?;
    let active = |leg: mirror::LegView| leg.standing == mirror::superblock::Standing::Active;
    if view.status != mirror::Status::Running || view.legs[slot].is_none_or(active) {
        return Err(refuse(BlockError::Busy));
    }
    // One after the other: a second one would promote what the first one lacks, and the other way round.
    let is_filling = |rebuild: &Rebuild| {
        let work = *rebuild.work.lock();
        work.is_some_and(|work| work.node == node)
    };
    if ARENA.iter().any(is_filling) {
        return Err(refuse(BlockError::Busy));
    }
    let rebuild = ARENA
        .iter()
        .find(|rebuild| !rebuild.taken.swap(true, Ordering::AcqRel))
        .ok_or_else(|| Refusal::new(&name, Reason::NoRoom("rebuild jobs")))?;
    let begun = (|| {
        let job = super::create(rebuild, options).map_err(failed)?;
        let opened = job
            .open("mirror", node, Permissions::READER)
            .and_then(|backend| {
                *rebuild.work.lock() = Some(Work {
                    node,
                    slot: slot as u8,
                    backend,
                });
                job.start().map_err(failed)
            });
        match opened {
            Ok(()) => Ok(job),
            Err(error) => {
                job.give_up();
                Err(error)
            }
        }
    })();
    if begun.is_err() {
        rebuild.let_go();
    }
    begun
}

impl Rebuild {
    fn let_go(&self) {
        *self.work.lock() = None;
        self.taken.store(false, Ordering::Release);
    }
}

async fn body(job: Job, rebuild: &'static Rebuild) -> Result<(), BlockError> {
    let Some(work) = *rebuild.work.lock() else {
        return Err(BlockError::NoMedium);
    };
    let slot = usize::from(work.slot);
    let size = graph::info(work.node).map_or(0, |info| info.size);
    job.set_total(size);
    mirror::rebuild_begin(work.node, slot).await?;
    let filled = fill(job, work, size).await;
    let whole = filled.is_ok() && !job.is_cancelled();
    let ended = mirror::rebuild_end(work.node, slot, whole).await;
    filled.and(ended)
}

/// Copies everything; all that was begun is over when it ends.
async fn fill(job: Job, work: Work, size: u64) -> Result<(), BlockError> {
    let copier = Copier::new(job, work.backend, work.backend, false);
    let mut again: Vec<(u64, u64), COPY_WINDOW> = Vec::new();
    let mut at = 0;
    let mut result = Ok(());
    while result.is_ok() {
        job.pause_point().await;
        if job.is_cancelled() {
            break;
        }
        if copier.has_room() && (at < size || !again.is_empty()) {
            let (offset, len) = match again.pop() {
                Some(chunk) => chunk,
                None => {
                    let chunk = (at, (size - at).min(COPY_CHUNK as u64));
                    at += chunk.1;
                    chunk
                }
            };
            job.rate_limit(len).await;
            copier
                .start_with(offset, len, |request| {
                    mirror::rebuild_chunk(work.node, request);
                })
                .await;
            continue;
        }
        let Some(chunk) = copier.next().await else {
            break;
        };
        result = took(job, chunk, &mut again);
    }
    copier.settle().await;
    result
}

/// A chunk came back.
fn took(
    job: Job,
    chunk: Chunk,
    again: &mut Vec<(u64, u64), COPY_WINDOW>,
) -> Result<(), BlockError> {
    match chunk.result {
        Ok(()) => job.progress(chunk.len),
        Err(error) => match job.on_error(Side::Source, error) {
            Action::Retry => {
                // No more than are in the window can fail.
                let _ = again.push((chunk.offset, chunk.len));
            }
            // A leg that lacks a range is not whole, whatever a user would ignore.
            Action::Ignore | Action::Report => return Err(error),
        },
    }
    Ok(())
}

impl JobDriver for Rebuild {
    fn kind(&self) -> &'static str {
        "rebuild"
    }

    fn spawn(
        &'static self,
        job: Job,
        on: &'static AioContext,
    ) -> Result<CoroutineHandle, AioError> {
        on.spawn("rebuild", job.run(move || body(job, self)))
    }

    fn clean(&'static self, _job: Job) {
        self.let_go();
    }
}

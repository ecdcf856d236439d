//! The backup job: a target gets what the source held at one moment, while the source is written.
//!
//! The moment is that at which a [copy-before-write](crate::block::node::copy_before_write) filter comes to stand above the source. What
//! clients are about to overwrite is copied first; the job copies the rest, through the filter, flushes the target, and takes the filter
//! away. Several backups that are started as one have one moment, and one end.
//!
//! What cannot be copied because of an error that is ignored is missing in the image.
#![forbid(unsafe_code)]

use heapless::Vec;

use super::copier::{Chunk, Copier};
use super::filtered::{self, Filtered, Kind, Launched, Parts, Start, StartError};
use super::{Action, Job, Side};
use crate::block::node::copy_before_write::{self as filter, broken, left, next_copy};
use crate::block::{BlockError, io};
use crate::config::JOBS;

/// Starts backups: all at one moment, and all or none (JOB-10). `done` hears when they run, or why not; they exist before. Main loop only.
///
/// # Errors
/// What can be seen at once; then `done` is not called.
pub fn start(
    starts: &[Start<'_>],
    done: Launched,
    argument: usize,
) -> Result<Vec<Job, JOBS>, StartError> {
    filtered::launch(Kind::Backup, starts, done, argument)
}

/// The body.
pub(super) async fn body(job: Job, me: &'static Filtered) -> Result<(), BlockError> {
    let parts = me.parts()?;
    let copier = Copier::new(job, parts.source, parts.target, false);
    let result = copy(job, &parts, &copier).await;
    copier.settle().await;
    result?;
    flush(job, &parts).await
}

async fn copy(job: Job, parts: &Parts, copier: &Copier) -> Result<(), BlockError> {
    let size = parts.source.size();
    job.set_total(size);
    let (mut at, mut done) = (0, 0);
    loop {
        job.pause_point().await;
        if job.is_cancelled() {
            return Ok(());
        }
        image_is_good(parts)?;
        let cluster = filter::cluster(parts.filter).ok_or(BlockError::NoMedium)?;
        if copier.has_room()
            && let Some(range) = next_copy(parts.filter, at)
        {
            at = range.start + cluster;
            job.rate_limit(cluster.min(size - range.start)).await;
            let send = |request| parts.source.submit(request);
            copier
                .start_with(range.start, range.end - range.start, send)
                .await;
            continue;
        }
        let Some(chunk) = copier.next().await else {
            return Ok(());
        };
        // What clients' writes have had copied counts too.
        let now = size - left(parts.filter).ok_or(BlockError::NoMedium)?.min(size);
        job.progress(now.saturating_sub(done));
        done = now;
        if let Err(error) = chunk.result {
            // Of a broken image, copies come back as cancelled.
            image_is_good(parts)?;
            match job.on_error(chunk.side, error) {
                Action::Report => return Err(error),
                Action::Ignore => {}
                Action::Retry => at = at.min(chunk_start(&chunk, cluster)),
            }
        }
    }
}

fn chunk_start(chunk: &Chunk, cluster: u64) -> u64 {
    chunk.offset & !(cluster - 1)
}

/// What was about to be overwritten could be copied so far.
fn image_is_good(parts: &Parts) -> Result<(), BlockError> {
    match broken(parts.filter) {
        Some((_, error)) => Err(error),
        None => Ok(()),
    }
}

async fn flush(job: Job, parts: &Parts) -> Result<(), BlockError> {
    while !job.is_cancelled() {
        image_is_good(parts)?;
        let Err(error) = io::flush(parts.target).await else {
            return Ok(());
        };
        match job.on_error(Side::Target, error) {
            Action::Report => return Err(error),
            Action::Ignore => return Ok(()),
            Action::Retry => job.pause_point().await,
        }
    }
    Ok(())
}

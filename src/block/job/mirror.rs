//! The mirror job: a target becomes, and stays, equal to a source in use; in the end the source's users go to the target.
//!
//! A [dirty](crate::block::node::dirty) filter above the source notes what is written. The body goes over the source in *passes*: from the
//! start to the end it takes what is dirty, cleans it, and copies it, several chunks at once; at the end of a pass it waits for all of
//! them. So no two chunks of one place are ever under way at once, the older of which could win. What is written meanwhile is dirty again
//! for the next pass.
//!
//! ```text
//!   pass ─▶ pass ─▶ … little is left: READY ─▶ pass … ─▶ the end is wanted:
//!        section on the filter ─▶ last pass ─▶ flush ─▶ users go to the target, the filter is gone ─▶ the section ends
//! ```
//! The end does not depend on how busy the clients are: it comes after the pass under way, with whatever is dirty then. A cancel that is
//! not forced ends a job that is ready in the same way, but leaves the users where they are: the target is what the source was then.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering};

use heapless::Vec;

use super::copier::{Chunk, Copier};
use super::filtered::{self, Filtered, Kind, Launched, Parts, Start, StartError};
use super::{Action, Job, Side};
use crate::arch;
use crate::block::bitmap::Bitmap;
use crate::block::graph::drained_in_coroutine;
use crate::block::node::dirty::BitmapId;
use crate::block::{BlockError, io};
use crate::config::{COPY_CHUNK, JOBS, MIRROR_LOOK_NS, MIRROR_READY_BYTES};

/// Starts mirrors: all or none, and they end together (JOB-10). `done` hears when they run, or why not; they exist before. Main loop only.
///
/// # Errors
/// What can be seen at once; then `done` is not called.
pub fn start(
    starts: &[Start<'_>],
    done: Launched,
    argument: usize,
) -> Result<Vec<Job, JOBS>, StartError> {
    filtered::launch(Kind::Mirror, starts, done, argument)
}

/// The body.
pub(super) async fn body(job: Job, me: &'static Filtered) -> Result<(), BlockError> {
    let parts = me.parts()?;
    let bits = parts.bitmap.ok_or(BlockError::NoMedium)?;
    let zeroes = parts.target.limits().is_some_and(|info| info.fast_zeroes);
    let copier = Copier::new(job, parts.source, parts.target, zeroes);
    let mirror = Mirror {
        job,
        me,
        parts,
        bits,
        copier,
        under_way: AtomicU64::new(0),
    };
    let result = mirror.work().await;
    mirror.copier.settle().await;
    if result.is_err() || job.is_cancelled() {
        me.end_section();
    }
    result
}

struct Mirror {
    job: Job,
    me: &'static Filtered,
    parts: Parts,
    bits: BitmapId,
    copier: Copier,
    /// Bytes of chunks under way. The body's alone.
    under_way: AtomicU64,
}

/// What became of a pass.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    /// All that was dirty ahead of it is on the target.
    Good,
    /// Something could not be copied, and is dirty still.
    Failed(Side, BlockError),
    /// The job was given up.
    Cancelled,
}

impl Mirror {
    async fn work(&self) -> Result<(), BlockError> {
        let mut is_ready = false;
        loop {
            let pass = self.pass(true).await?;
            let dirty = self.bits(|bits| bits.dirty_bytes())?;
            match pass {
                Pass::Cancelled => return Ok(()),
                Pass::Failed(side, error) => {
                    self.judge(side, error)?;
                    self.rest().await;
                    continue;
                }
                Pass::Good => {}
            }
            if dirty <= MIRROR_READY_BYTES && !is_ready {
                is_ready = true;
                self.job.ready();
            }
            if is_ready && (self.job.end_wanted() || self.job.cancel_requested()) {
                if self.end().await? {
                    return Ok(());
                }
            } else if dirty == 0 {
                self.rest().await;
            }
        }
    }

    fn bits<R>(&self, f: impl FnOnce(&mut Bitmap) -> R) -> Result<R, BlockError> {
        self.bits.use_bitmap(f)
    }

    /// For a while, unless somebody wants something.
    async fn rest(&self) {
        self.job
            .sleep_until(arch::now_ns().saturating_add(MIRROR_LOOK_NS))
            .await;
    }

    /// Copies what is dirty, once, from the start to the end. In one that is polite the job is paused, limited and given up.
    async fn pass(&self, polite: bool) -> Result<Pass, BlockError> {
        let mut at = 0;
        let mut pass = Pass::Good;
        loop {
            if polite {
                self.job.pause_point().await;
            }
            if self.job.is_cancelled() {
                self.copier.settle().await;
                return Ok(Pass::Cancelled);
            }
            if pass == Pass::Good
                && self.copier.has_room()
                && let Some(range) = self.bits(|bits| bits.take_next(at, COPY_CHUNK as u64))?
            {
                at = range.end;
                let len = range.end - range.start;
                if polite {
                    self.job.rate_limit(len).await;
                }
                self.start(range.start, len, &mut pass).await?;
                continue;
            }
            match self.copier.next().await {
                Some(chunk) => self.back(chunk, &mut pass)?,
                None => return Ok(pass),
            }
        }
    }

    /// Starts to copy a granule or more; one that is larger than a chunk chunk by chunk.
    async fn start(&self, offset: u64, len: u64, pass: &mut Pass) -> Result<(), BlockError> {
        let mut at = offset;
        while at < offset + len {
            let part = (offset + len - at).min(COPY_CHUNK as u64);
            while !self.copier.has_room() {
                if let Some(chunk) = self.copier.next().await {
                    self.back(chunk, pass)?;
                }
            }
            self.copier.start(at, part).await;
            self.under_way.fetch_add(part, Ordering::Relaxed);
            at += part;
        }
        self.reckon()
    }

    /// What there is to do has grown by what became dirty meanwhile.
    fn reckon(&self) -> Result<(), BlockError> {
        let left = self.bits(|bits| bits.dirty_bytes())?;
        let under_way = self.under_way.load(Ordering::Relaxed);
        let done = self.job.view().map_or(0, |view| view.done);
        self.job.set_total(done + under_way + left);
        Ok(())
    }

    /// A chunk came back. One that failed is dirty again.
    fn back(&self, chunk: Chunk, pass: &mut Pass) -> Result<(), BlockError> {
        self.under_way.fetch_sub(chunk.len, Ordering::Relaxed);
        match chunk.result {
            Ok(()) => self.job.progress(chunk.len),
            Err(error) => {
                self.bits(|bits| bits.set(chunk.offset..chunk.offset + chunk.len))?;
                *pass = Pass::Failed(chunk.side, error);
            }
        }
        Ok(())
    }

    /// What a user wants done about an error: nothing is ever left out, for the target would not be equal.
    fn judge(&self, side: Side, error: BlockError) -> Result<(), BlockError> {
        match self.job.on_error(side, error) {
            Action::Report => Err(error),
            Action::Ignore | Action::Retry => Ok(()),
        }
    }

    /// The end: what is dirty when no client writes any more, and a flush. Whether it is reached; the section then stays on.
    async fn end(&self) -> Result<bool, BlockError> {
        let Ok(section) = drained_in_coroutine(self.parts.filter).await else {
            self.rest().await;
            return Ok(false);
        };
        self.me.keep_section(section);
        let pass = self.pass(false).await?;
        let flushed = match pass {
            Pass::Good => io::flush(self.parts.target).await,
            _ => Ok(()),
        };
        let dirty = self.bits(|bits| bits.dirty_bytes())?;
        debug_assert!(
            dirty == 0 || pass != Pass::Good,
            "a write in the last section"
        );
        let failed = match (pass, flushed) {
            (Pass::Failed(side, error), _) => Some((side, error)),
            (_, Err(error)) => Some((Side::Target, error)),
            _ => None,
        };
        if let Some((side, error)) = failed {
            self.me.end_section();
            self.judge(side, error)?;
            self.rest().await;
            return Ok(false);
        }
        if pass == Pass::Cancelled {
            return Ok(true);
        }
        self.me
            .set_pivots(self.job.end_wanted() && !self.job.cancel_requested());
        Ok(true)
    }
}

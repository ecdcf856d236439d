//! States of a disk, and what moves it between them.
//!
//! ```text
//!            failed flush, or reset with unflushed writes
//!   online ──────────────────────────────────────────────▶ write-error    reads go on; writes and flushes: Io
//!     ▲  ▲                 operator clears                    │
//!     │  └────────────────────────────────────────────────────┘
//!     │         reset done                needs a reset, or the operator resets
//!     └────────────────────────── failed ◀───────── (either)              everything: Io
//! ```
//! `failed` and `write-error` are independent: a disk that comes out of a reset may still be latched.
#![forbid(unsafe_code)]

use core::sync::atomic::Ordering;

use super::{Disk, registry};
use crate::block::device::DeviceEvents;
use crate::block::node::note_loss;
use crate::block::request::RequestRecord;
use crate::block::{BlockError, Operation, watch};

/// Writes and flushes fail until an operator clears it (DUR-5).
const LATCHED: u32 = 1;
/// The device cannot be used.
const FAILED: u32 = 2;
/// A reset is under way.
const RESETTING: u32 = 4;
/// It failed too often: a reset that ends well does not bring it back, unless the operator asked for it.
const GIVEN_UP: u32 = 8;

/// Resets that a device gets by itself within [`RESET_WINDOW_S`]; then it is
/// reset once more, so that the requests it holds end, and stays failed until an operator resets it.
const AUTOMATIC_RESETS: u32 = 3;
const RESET_WINDOW_S: u32 = 10;

/// What a disk can do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskState {
    /// Everything.
    Online,
    /// Reads; a flush failed or completed writes were lost.
    WriteError,
    /// Nothing.
    Failed,
}

impl DiskState {
    /// A word for a person.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::WriteError => "write-error",
            Self::Failed => "failed",
        }
    }
}

/// What [`Disk::reset`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetOutcome {
    /// The write error is cleared.
    Cleared,
    /// The device is being reset; the log tells the end. If completed writes were not flushed, `write-error` is latched then,
    /// and a second reset clears it.
    Started,
    /// The disk is in order.
    Nothing,
}

impl Disk {
    /// Its state.
    pub fn state(&self) -> DiskState {
        match self.state.load(Ordering::Acquire) {
            flags if flags & (FAILED | RESETTING) != 0 => DiskState::Failed,
            flags if flags & LATCHED != 0 => DiskState::WriteError,
            _ => DiskState::Online,
        }
    }

    /// Whether such a request fails now, without reaching the device.
    #[inline]
    pub(super) fn refuses(&self, operation: Operation) -> bool {
        match self.state.load(Ordering::Acquire) {
            0 => false,
            LATCHED => operation != Operation::Read,
            _ => true,
        }
    }

    pub(super) fn latch(&self, why: &str) {
        // Before anything is read again.
        self.losses.fetch_add(1, Ordering::AcqRel);
        note_loss();
        if self.state.fetch_or(LATCHED, Ordering::AcqRel) & LATCHED == 0 {
            log::error!(
                "{}: write-error: {why}; writes fail until `disk {} reset`",
                self.name(),
                self.name()
            );
        }
    }

    pub(super) fn note_error(&self, record: &RequestRecord, error: BlockError) {
        let code = u32::from(error.code()) | (record.operation.index() as u32) << 8;
        self.last_error.store(code, Ordering::Relaxed);
        // A line a second at most: a dead disk fails thousands of requests in that time; the counters have them all.
        let now = watch::tick() + 1;
        if self.logged_s.swap(now, Ordering::Relaxed) == now {
            return;
        }
        log::warn!(
            "{}: {} of {} at {}: {error}",
            self.name(),
            record.operation.name(),
            record.len,
            record.offset
        );
    }

    /// The last error, and of which operation.
    pub fn last_error(&self) -> Option<(Operation, BlockError)> {
        let code = self.last_error.load(Ordering::Relaxed);
        let error = BlockError::from_code(code as u8)?;
        Some((
            Operation::ALL[(code >> 8) as usize % Operation::ALL.len()],
            error,
        ))
    }

    /// Whether the device may hold writes that no flush has covered.
    fn unflushed(&self) -> bool {
        self.writeback()
            && self
                .queues
                .iter()
                .any(|q| q.writes_started.get() != q.writes_flushed.load(Ordering::Acquire))
    }

    /// The operator's `disk vdN reset`: resets a device that has failed or has not answered for 5 s, else clears a write error.
    pub fn reset(&'static self) -> ResetOutcome {
        const SILENT_S: u32 = 5;
        let flags = self.state.fetch_and(!GIVEN_UP, Ordering::AcqRel);
        if flags & RESETTING != 0 {
            return ResetOutcome::Started;
        }
        if flags & FAILED != 0
            || registry::oldest_age_s(self.index()).is_some_and(|age| age >= SILENT_S)
        {
            self.resets.store(0, Ordering::Relaxed);
            self.start_reset("the operator asks");
            return ResetOutcome::Started;
        }
        if flags & LATCHED != 0 {
            self.state.fetch_and(!LATCHED, Ordering::AcqRel);
            log::warn!("{}: write error cleared by the operator", self.name());
            return ResetOutcome::Cleared;
        }
        ResetOutcome::Nothing
    }

    fn start_reset(&'static self, why: &str) {
        if self.state.fetch_or(FAILED | RESETTING, Ordering::AcqRel) & RESETTING != 0 {
            return;
        }
        log::warn!("{}: reset: {why}", self.name());
        self.device().reset();
    }
}

impl DeviceEvents for Disk {
    fn resized(&self) {
        let block = u64::from(self.limits().info.logical_block);
        let capacity = self.device().info().capacity;
        let capacity = capacity - capacity % block;
        let before = self.capacity.swap(capacity, Ordering::AcqRel);
        if before == capacity {
            return;
        }
        log::info!("{}: size {before} -> {capacity}", self.name());
        registry::kick();
    }

    fn needs_reset(&self, why: &'static str) {
        let before = self.state.fetch_or(FAILED, Ordering::AcqRel);
        if before & (RESETTING | GIVEN_UP) != 0 {
            return;
        }
        log::error!("{}: failed: {why}", self.name());
        let now = watch::tick();
        if now.wrapping_sub(self.last_reset_s.swap(now, Ordering::Relaxed)) > RESET_WINDOW_S {
            self.resets.store(0, Ordering::Relaxed);
        }
        if self.resets.fetch_add(1, Ordering::Relaxed) >= AUTOMATIC_RESETS {
            log::error!(
                "{}: stays failed until `disk {} reset`",
                self.name(),
                self.name()
            );
            self.state.fetch_or(GIVEN_UP, Ordering::AcqRel);
        }
        if self.state.fetch_or(RESETTING, Ordering::AcqRel) & RESETTING == 0 {
            self.device().reset();
        }
    }

    fn moved(&'static self, result: Result<(), BlockError>) {
        self.move_done(result);
    }

    fn reset_done(&self, result: Result<(), BlockError>) {
        // What the device had and was not asked to flush may be gone, also when it did not come back.
        if self.unflushed() {
            self.latch("the device was reset with unflushed writes");
        }
        for queue in self.queues.iter() {
            queue
                .writes_flushed
                .fetch_max(queue.writes_started.get(), Ordering::AcqRel);
        }
        match result {
            Ok(()) => {
                let given_up = self.state.load(Ordering::Acquire) & GIVEN_UP != 0;
                let over = if given_up {
                    RESETTING
                } else {
                    FAILED | RESETTING
                };
                self.state.fetch_and(!over, Ordering::AcqRel);
                log::warn!("{}: reset done, {}", self.name(), self.state().name());
                self.resized();
            }
            Err(error) => {
                self.state.fetch_and(!RESETTING, Ordering::AcqRel);
                log::error!("{}: reset failed: {error}", self.name());
            }
        }
    }
}

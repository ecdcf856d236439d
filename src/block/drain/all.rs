//! Drained sections over all backends.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU32, Ordering};

use heapless::Vec;

use super::{WAITERS, kick};
use crate::aio::Callback;
use crate::arch;
use crate::block::BlockError;
use crate::block::backend::{self, Backend};
use crate::sync::{HomeCell, caller_levels};

/// Sections over all backends: a backend that is created starts with so many (DRN-18).
pub(super) static ALL_SECTIONS: AtomicU32 = AtomicU32::new(0);

/// Somebody who drains everything.
pub(super) struct All {
    waiting: Vec<Callback, WAITERS>,
}
pub(super) static ALL: HomeCell<All> = HomeCell::new(All {
    waiting: Vec::new(),
});

/// Begins a drained section on every backend, also on those created before it ends; `done` as for
/// [`Backend::drain_begin`]. Main loop only.
///
/// # Errors
/// As [`Backend::drain_begin`].
pub fn drain_all_begin(done: Callback) -> Result<(), BlockError> {
    if caller_levels() != 0 {
        return Err(BlockError::Busy);
    }
    if arch::current_core() != Some(0) {
        return Err(BlockError::Invalid);
    }
    ALL.with(|all| all.waiting.push(done))
        .map_err(|_| BlockError::NoMemory)?;
    ALL_SECTIONS.fetch_add(1, Ordering::Relaxed);
    for backend in backend::backends() {
        // Without a waiter this cannot fail: we are the main loop.
        let _ = backend.begin(None);
    }
    kick();
    Ok(())
}

/// Ends a section of [`drain_all_begin`]. Main loop only.
pub fn drain_all_end() {
    ALL_SECTIONS.fetch_sub(1, Ordering::Relaxed);
    for backend in backend::backends() {
        backend.drain_end();
    }
}

/// Tells those who wait, when every backend is quiet.
pub(super) fn finish_all() {
    let waiting = ALL.with(|all| all.waiting.len());
    if waiting == 0 || !backend::backends().all(Backend::is_quiet) {
        return;
    }
    let waiters = ALL.with(|all| {
        let waiters = all.waiting.clone();
        all.waiting.clear();
        waiters
    });
    for waiter in waiters {
        waiter.call();
    }
}

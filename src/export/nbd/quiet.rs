//! Drained sections: which backends are to be left alone, as their listener was told (DRN-30, DRN-31).
//!
//! The main loop counts a backend up and down; sessions look before they parse or submit. A session that submits at the same
//! moment does no harm: the backend parks the request. Sessions sleep while their backend is quiet and are woken, through the
//! network's context, when the section ends; they keep no request counted while they wait for bytes, so there is nobody to
//! kick (DRN-31), and two sections in a row cannot confuse them (DRN-32): they only ever look at the count.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU32, Ordering};

use crate::block::{Backend, BackendListener};
use crate::config::BACKENDS;

/// Hears of the drained sections of every exported backend: how many each is in.
struct Listener([AtomicU32; BACKENDS]);

static LISTENER: Listener = Listener([const { AtomicU32::new(0) }; BACKENDS]);

/// What an exported backend registers as its listener.
pub fn listener() -> &'static dyn BackendListener {
    &LISTENER
}

/// Whether sessions on this backend have to rest.
pub(super) fn is_quiet(backend: &Backend) -> bool {
    LISTENER
        .0
        .get(backend.index())
        .is_some_and(|count| count.load(Ordering::Acquire) > 0)
}

impl BackendListener for Listener {
    fn drained_begin(&self, backend: &'static Backend) {
        if let Some(count) = self.0.get(backend.index()) {
            count.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn drained_end(&self, backend: &'static Backend) {
        if let Some(count) = self.0.get(backend.index()) {
            let before = count.fetch_sub(1, Ordering::AcqRel);
            debug_assert!(before > 0, "a drained section ended twice");
            if before == 1 {
                super::wake_all();
            }
        }
    }
}

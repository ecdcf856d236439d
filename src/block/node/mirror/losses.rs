//! Legs that lose what they had acknowledged, and go on answering.
//!
//! A device that was reset may come back without the writes that it had only in its cache. It answers reads then, with old data, and
//! no request has failed. So after each answer it is looked whether any node has lost something meanwhile ([`all_losses`]: one load
//! where nothing has), and a leg that has is treated as one that failed a write: stale, unless it is the last. What it has answered
//! since is read again from another leg.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use super::Mirror;
use super::path::{KINDS, READ};
use super::state::{State, Status, ones};
use super::superblock::MAX_LEGS;
use crate::block::graph::{self, Link};
use crate::block::node::{NodeDriver, all_losses};
use crate::block::tracked::PLACE_MASK;

/// What is known of the legs' losses.
pub(super) struct Losses {
    /// As of this number of all losses.
    seen: AtomicU32,
    /// Of the leg in each slot.
    known: [AtomicU32; MAX_LEGS],
    /// Legs that lost something: their answers may still be on the way, one bit each.
    suspects: AtomicU8,
}

impl Losses {
    pub const fn new() -> Self {
        Self {
            seen: AtomicU32::new(0),
            known: [const { AtomicU32::new(0) }; MAX_LEGS],
            suspects: AtomicU8::new(0),
        }
    }

    /// Whether a read that has come back, with the stage of its frame, is from a suspect.
    #[inline]
    pub fn is_suspect(&self, stage: u8) -> bool {
        stage & KINDS == READ
            && self.suspects.load(Ordering::Relaxed) >> (stage & PLACE_MASK & 7) & 1 != 0
    }

    /// Legs that are read again are no suspects any more.
    pub fn trust(&self, legs: u8) {
        if self.suspects.load(Ordering::Relaxed) & legs != 0 {
            self.suspects.fetch_and(!legs, Ordering::Relaxed);
        }
    }
}

fn losses_of(link: &Link) -> u32 {
    link.driver().map_or(0, NodeDriver::losses)
}

impl Mirror {
    /// What was lost before an array begins is no business of its own: the superblocks are read after this.
    pub(super) fn forget_losses(&self) {
        self.losses.seen.store(all_losses(), Ordering::Relaxed);
        self.losses.suspects.store(0, Ordering::Relaxed);
        for (link, known) in self.links.iter().zip(&self.losses.known) {
            known.store(losses_of(link), Ordering::Relaxed);
        }
    }

    /// A leg that the array does not use yet begins with the losses that it has. Main loop only.
    pub(super) fn forget_losses_of_idle(&self) {
        let state = self.state.lock();
        for (slot, link) in self.links.iter().enumerate() {
            if (state.active | state.rebuilding) >> slot & 1 == 0 {
                self.losses.known[slot].store(losses_of(link), Ordering::Relaxed);
            }
        }
    }

    /// Whether any node has lost something since it was last looked.
    #[inline]
    pub(super) fn may_have_lost(&self) -> bool {
        self.losses.seen.load(Ordering::Relaxed) != all_losses()
    }

    /// Looks for losses, where there are any new ones at all.
    #[inline]
    pub(super) fn look_for_losses(&self) {
        if self.may_have_lost() {
            self.note_losses();
        }
    }

    #[cold]
    #[inline(never)]
    fn note_losses(&self) {
        // Before the legs are asked: what they lose from here on is looked for again.
        self.losses.seen.store(all_losses(), Ordering::Relaxed);
        let mut state = self.state.lock();
        let mut lost = 0;
        for (slot, link) in self.links.iter().enumerate() {
            let losses = losses_of(link);
            let known = self.losses.known[slot].swap(losses, Ordering::Relaxed);
            let used = (state.active | state.rebuilding) >> slot & 1 != 0;
            if known != losses && used && state.status == Status::Running {
                lost |= 1 << slot;
            }
        }
        let lost = Self::fail_all(&mut state, lost);
        if lost == 0 {
            return;
        }
        self.losses.suspects.fetch_or(lost, Ordering::Relaxed);
        self.publish(&state);
        drop(state);
        let name = self.place.id().and_then(graph::name).unwrap_or_default();
        for slot in ones(lost) {
            let leg = self.links[slot].child().and_then(graph::name);
            let leg = leg.unwrap_or_default();
            log::warn!("{name}: {leg} lost what it had not flushed");
        }
        self.wake.set();
    }

    /// Those of `lost` that can be done without.
    fn fail_all(state: &mut State, lost: u8) -> u8 {
        let lost = lost & (state.active | state.rebuilding);
        ones(lost).fold(0, |failed, slot| {
            failed | u8::from(state.failed(slot as u8)) << slot
        })
    }
}

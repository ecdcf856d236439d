//! The disk's move to another core: the device's part is asynchronous, so the disk counts as busy until it has ended.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::Disk;
use crate::arch::CoreId;
use crate::block::device::{Move, NO_CORE};
use crate::block::{BlockError, Request, RequestQueue, core_state, drain};
use crate::sync::IrqLock;

/// A move under way.
pub(super) struct Moving {
    /// Main loop only.
    under_way: AtomicBool,
    target: AtomicU32,
    /// Requests that came although the disk moves: whoever moves it keeps them away, so hardly ever any.
    held: IrqLock<RequestQueue>,
}

impl Moving {
    pub(super) const fn new() -> Self {
        Self {
            under_way: AtomicBool::new(false),
            target: AtomicU32::new(0),
            held: IrqLock::new(RequestQueue::new()),
        }
    }
}

impl Disk {
    /// Sends a request to the core that serves `core`, this one, which it is not.
    #[inline(never)]
    pub(super) fn cross(&'static self, core: CoreId, request: Request) {
        let target = self.device().submitter(core);
        if target != NO_CORE {
            return core_state::forward(target, request, self);
        }
        self.moving.held.lock().push(request);
        // The move may have ended before the request lay there.
        if self.device().submitter(self.home()) != NO_CORE {
            self.let_go();
        }
    }

    fn let_go(&'static self) {
        let mut held = self.moving.held.lock().take();
        while let Some(request) = held.pop() {
            core_state::forward(request.home(), request, self);
        }
    }

    /// Whether it could move to `core` now, and takes what it needs there: see
    /// [`BlockDevice::check_home`](crate::block::device::BlockDevice::check_home). Main loop.
    ///
    /// # Errors
    /// Those of the device; `Busy` while requests are with it.
    pub fn check_home(&self, core: CoreId) -> Result<(), BlockError> {
        if self.is_moving() || self.launched() != 0 || self.waiting() != 0 {
            return Err(BlockError::Busy);
        }
        self.device().check_home(core)
    }

    /// Starts the move to `core`; nothing may be in flight. [`is_moving`](Self::is_moving) until it has ended, which kicks
    /// the drained sections. Main loop.
    ///
    /// # Errors
    /// As for [`check_home`](Self::check_home); nothing has changed then.
    pub fn set_home(&'static self, core: CoreId) -> Result<(), BlockError> {
        if self.is_moving() || self.launched() != 0 || self.waiting() != 0 {
            return Err(BlockError::Busy);
        }
        self.moving.target.store(core as u32, Ordering::Relaxed);
        match self.device().set_home(core)? {
            Move::Done => self.home.store(core as u32, Ordering::Relaxed),
            Move::UnderWay => self.moving.under_way.store(true, Ordering::Relaxed),
        }
        Ok(())
    }

    /// Gives back what [`check_home`](Self::check_home) took.
    pub(super) fn stay(&self) {
        // Asked for the home that it has, the device only gives back.
        let _ = self.device().check_home(self.home());
    }

    /// Its node now belongs to `core`. The node may be there without the device: then requests cross over.
    pub(super) fn follow(&'static self, core: CoreId) {
        if let Err(error) = self.set_home(core) {
            log::warn!("{}: stays on core {}: {error}", self.name(), self.home());
        }
    }

    /// Whether a move is under way.
    pub fn is_moving(&self) -> bool {
        self.moving.under_way.load(Ordering::Relaxed)
    }

    /// The device says that its move has ended.
    pub(super) fn move_done(&'static self, result: Result<(), BlockError>) {
        match result {
            Ok(()) => self.home.store(
                self.moving.target.load(Ordering::Relaxed),
                Ordering::Relaxed,
            ),
            Err(error) => log::warn!("{}: stays on core {}: {error}", self.name(), self.home()),
        }
        self.moving.under_way.store(false, Ordering::Relaxed);
        self.let_go();
        drain::kick();
    }
}

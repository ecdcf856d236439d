//! Flush joining: at most one device flush a core, shared by those that came before it was made available (DUR-3).
//!
//! ```text
//!   idle ──first flush──▶ running (leader at the device, members wait) ──done──▶ idle, or
//!                            │  arrivals ──▶ next                                  running with everybody in `next`
//! ```
//! A flush covers a write when it was made available after the write had completed. The running flush may have been made
//! available before a newcomer's writes completed, so a newcomer never shares it.
#![forbid(unsafe_code)]

use core::sync::atomic::Ordering;

use super::{Disk, LAUNCHED, LEADER, MEMBER};
use crate::arch::CoreId;
use crate::block::node::Ascent;
use crate::block::request::complete;
use crate::block::{BlockError, Operation, Request, RequestQueue};
use crate::config::MAX_CORES;

/// Flushes of one core.
pub(super) struct FlushState {
    running: bool,
    /// Share the running flush with its leader.
    members: RequestQueue,
    /// Will share the next one.
    next: RequestQueue,
    /// Writes of each core that had ended when the running flush was made available.
    covered: [u64; MAX_CORES],
}

impl FlushState {
    pub(super) const fn new() -> Self {
        Self {
            running: false,
            members: RequestQueue::new(),
            next: RequestQueue::new(),
            covered: [0; MAX_CORES],
        }
    }
}

impl Disk {
    /// A flush, or the second half of a FUA request whose data the device has used.
    pub(super) fn join_flush(&'static self, core: CoreId, mut request: Request) {
        request.operation = Operation::Flush;
        request.zeroes = false;
        (request.offset, request.len) = (0, 0);
        *request.stage_mut() = MEMBER;
        if self.refuses(Operation::Flush) {
            return complete(request, Err(BlockError::Io));
        }
        // `fault-flush` is the control of the power-cut test: it must be seen to lose data.
        if cfg!(feature = "fault-flush") || !self.writeback() {
            return complete(request, Ok(()));
        }
        let leader = self.queues.get(core).cell.with(|cell| {
            if cell.flush.running {
                cell.flush.next.push(request);
                return None;
            }
            cell.flush.running = true;
            Some(request)
        });
        if let Some(leader) = leader {
            self.lead(core, leader);
        }
    }

    fn lead(&'static self, core: CoreId, mut leader: Request) {
        let mut covered = [0; MAX_CORES];
        for (covered, queue) in covered.iter_mut().zip(self.queues.iter()) {
            *covered = queue.writes_ended.get();
        }
        let queue = self.queues.get(core);
        queue.cell.with(|cell| cell.flush.covered = covered);
        queue.flushes.add(1);
        *leader.stage_mut() = LEADER;
        self.launch(core, leader);
    }

    /// The device's flush has ended: so have those of all who shared it; the next one starts.
    pub(super) fn flush_done(&'static self, core: CoreId, mut request: Request) -> Ascent {
        if request.result.is_err() && request.frame().stage & LAUNCHED != 0 {
            self.latch("a flush failed");
        }
        if self.refuses(Operation::Flush) {
            // Also a flush that succeeds after another one failed: it proves nothing (DUR-5).
            request.result = Err(BlockError::Io);
        }
        let queue = self.queues.get(core);
        let (covered, mut members, leader) = queue.cell.with(|cell| {
            let flush = &mut cell.flush;
            let members = flush.members.take();
            flush.members = flush.next.take();
            let leader = flush.members.pop();
            flush.running = leader.is_some();
            (flush.covered, members, leader)
        });
        if request.result.is_ok() {
            for (covered, queue) in covered.iter().zip(self.queues.iter()) {
                queue.writes_flushed.fetch_max(*covered, Ordering::AcqRel);
            }
        }
        while let Some(member) = members.pop() {
            complete(member, request.result);
        }
        if let Some(leader) = leader {
            self.lead(core, leader);
        }
        self.finish(core, request)
    }
}

//! A scripted disk for host tests and for the host engine: holds, reorders, fails, goes silent, resets, loses power.
//!
//! Host only. The device keeps two images: what a read sees, and what would survive a power cut: a flush makes durable the
//! writes that had ended when it was *submitted*, no later ones, as the virtio contract says.
#![forbid(unsafe_code)]

mod node;

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::vec::Vec;

pub use node::{EXCLUSIVE, Heard, TestNode};

use super::device::{Move, NO_CORE};
use super::{
    BlockDevice, BlockError, DeviceEvents, DeviceInfo, Operation, Request, RequestFlags, complete,
};
use crate::arch::{self, CoreId};
use crate::config::MAX_CORES;

/// What reached the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Submitted {
    /// What.
    pub operation: Operation,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Flags as the device saw them.
    pub flags: RequestFlags,
    /// Data pieces.
    pub pieces: usize,
    /// Core on whose queue it came.
    pub core: CoreId,
}

/// A request that the device has.
struct Held {
    request: Request,
    core: CoreId,
    /// Writes that had ended when it was submitted.
    ended_before: usize,
}

struct Inner {
    info: DeviceInfo,
    visible: Vec<u8>,
    durable: Vec<u8>,
    /// Writes that ended, in order; those below `flushed` are in `durable`.
    ended: Vec<(u64, Vec<u8>)>,
    flushed: usize,
    held: VecDeque<Held>,
    log: Vec<Submitted>,
    depth: usize,
    automatic: bool,
    silent: bool,
    fail: Option<(Operation, u32)>,
    resets: u32,
    reset_works: bool,
    /// The queue's core for each core.
    queue_of: [CoreId; MAX_CORES],
    slow_moves: bool,
    /// A move under way: where to, and what `queue_of` was.
    moving: Option<(CoreId, [CoreId; MAX_CORES])>,
}

/// A disk in memory that does what a test says.
pub struct TestDisk {
    inner: Mutex<Inner>,
    events: OnceLock<&'static dyn DeviceEvents>,
}

impl TestDisk {
    /// A disk with these properties, all zero, one queue a core, 256 deep, that holds requests until told.
    pub fn new(info: DeviceInfo) -> Self {
        let len = info.capacity as usize;
        Self {
            inner: Mutex::new(Inner {
                info,
                visible: std::vec![0; len],
                durable: std::vec![0; len],
                ended: Vec::new(),
                flushed: 0,
                held: VecDeque::new(),
                log: Vec::new(),
                depth: 256,
                automatic: false,
                silent: false,
                fail: None,
                resets: 0,
                reset_works: true,
                queue_of: core::array::from_fn(|core| core),
                slow_moves: false,
                moving: None,
            }),
            events: OnceLock::new(),
        }
    }

    /// The same, living for ever, as statics want it.
    pub fn leak(info: DeviceInfo) -> &'static Self {
        std::boxed::Box::leak(std::boxed::Box::new(Self::new(info)))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers by itself from now on, in order (or holds requests again).
    pub fn set_automatic(&self, automatic: bool) {
        self.inner().automatic = automatic;
    }

    /// Requests that fit at once, per queue.
    pub fn set_depth(&self, depth: usize) {
        self.inner().depth = depth;
    }

    /// Takes requests and never answers, automatic or not, until reset.
    pub fn set_silent(&self, silent: bool) {
        self.inner().silent = silent;
    }

    /// Only this core has a queue.
    pub fn set_single_queue(&self, core: CoreId) {
        self.inner().queue_of = [core; MAX_CORES];
    }

    /// Moves to another home go on until [`end_move`](Self::end_move).
    pub fn set_slow_moves(&self) {
        self.inner().slow_moves = true;
    }

    /// Ends a move: with `Ok`, the only queue is the new home's; else all is as it was. In the main loop.
    pub fn end_move(&self, result: Result<(), BlockError>) {
        {
            let mut inner = self.inner();
            let (target, before) = inner.moving.take().expect("a move is under way");
            inner.queue_of = if result.is_ok() {
                [target; MAX_CORES]
            } else {
                before
            };
        }
        self.events.get().expect("a disk").moved(result);
    }

    /// Whose queue serves each core.
    pub fn set_queues(&self, queues: [CoreId; MAX_CORES]) {
        self.inner().queue_of = queues;
    }

    /// The next `count` requests of that operation fail.
    pub fn fail_next(&self, operation: Operation, count: u32) {
        self.inner().fail = Some((operation, count));
    }

    /// Whether a reset brings the device back.
    pub fn set_reset_works(&self, works: bool) {
        self.inner().reset_works = works;
    }

    /// Resets so far.
    pub fn resets(&self) -> u32 {
        self.inner().resets
    }

    /// What reached the device so far.
    pub fn log(&self) -> Vec<Submitted> {
        self.inner().log.clone()
    }

    /// Forgets the log.
    pub fn clear_log(&self) {
        self.inner().log.clear();
    }

    /// Requests that it holds, in the order in which they came.
    pub fn held(&self) -> usize {
        self.inner().held.len()
    }

    /// Core on whose queue the `n`th held request is.
    ///
    /// # Panics
    /// When there is no such request.
    pub fn core_of(&self, n: usize) -> CoreId {
        self.inner().held[n].core
    }

    /// What a read sees.
    pub fn visible(&self) -> Vec<u8> {
        self.inner().visible.clone()
    }

    /// Changes a byte of what a read sees, behind everybody's back.
    pub fn corrupt(&self, offset: usize) {
        self.inner().visible[offset] ^= 0x55;
    }

    /// Puts these bytes there, durably, behind everybody's back.
    pub fn poke(&self, offset: usize, bytes: &[u8]) {
        let mut inner = self.inner();
        inner.visible[offset..offset + bytes.len()].copy_from_slice(bytes);
        inner.durable[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    /// What would survive a power cut now.
    pub fn durable(&self) -> Vec<u8> {
        self.inner().durable.clone()
    }

    /// Answers the `n`th held request, with its effect; on that request's queue core. Does nothing on a silent device.
    ///
    /// # Panics
    /// When there is no such request, or on the wrong core.
    pub fn finish(&self, n: usize) {
        let mut inner = self.inner();
        if inner.silent {
            return;
        }
        let held = inner.held.remove(n).expect("no such request");
        assert_eq!(
            arch::current_core(),
            Some(held.core),
            "a queue is served on its own core"
        );
        let (request, result) = inner.execute(held);
        drop(inner);
        complete(request, result);
    }

    /// Answers the `n`th held request with an error, without effect.
    ///
    /// # Panics
    /// When there is no such request.
    pub fn fail(&self, n: usize) {
        let held = self.inner().held.remove(n).expect("no such request");
        complete(held.request, Err(BlockError::Io));
    }

    /// Answers everything that is held for the current core, oldest first; how many.
    pub fn finish_all(&self) -> usize {
        let mut count = 0;
        loop {
            let next = self
                .inner()
                .held
                .iter()
                .position(|held| Some(held.core) == arch::current_core());
            match next {
                Some(n) if !self.inner().silent => self.finish(n),
                _ => return count,
            }
            count += 1;
        }
    }

    /// Changes the capacity and says so.
    pub fn resize(&self, capacity: u64) {
        {
            let mut inner = self.inner();
            inner.info.capacity = capacity;
            inner.visible.resize(capacity as usize, 0);
            inner.durable.resize(capacity as usize, 0);
        }
        if let Some(events) = self.events.get() {
            events.resized();
        }
    }

    /// The device asks for a reset.
    pub fn need_reset(&self) {
        if let Some(events) = self.events.get() {
            events.needs_reset("the test says so");
        }
    }

    /// Power goes and comes back: what was not flushed is gone. Held requests are lost with the machine.
    pub fn power_cut(&self) {
        let mut inner = self.inner();
        inner.visible = inner.durable.clone();
        inner.ended.clear();
        inner.flushed = 0;
    }
}

impl Inner {
    fn execute(&mut self, held: Held) -> (Request, Result<(), BlockError>) {
        let Held {
            mut request,
            ended_before,
            ..
        } = held;
        let operation = request.operation;
        if let Some((failing, count @ 1..)) = self.fail
            && failing == operation
        {
            self.fail = Some((failing, count - 1));
            return (request, Err(BlockError::Io));
        }
        let (start, len) = (request.offset as usize, request.len as usize);
        if start + len > self.visible.len() {
            return (request, Err(BlockError::Io));
        }
        match operation {
            Operation::Read => {
                let mut at = start;
                let visible = &self.visible;
                request.for_each_slice_mut(|slice| {
                    slice.copy_from_slice(&visible[at..at + slice.len()]);
                    at += slice.len();
                });
                assert_eq!(at, start + len, "a read's pieces do not cover its window");
            }
            Operation::Write => {
                let mut data = Vec::with_capacity(len);
                request.for_each_slice(|slice| data.extend_from_slice(slice));
                assert_eq!(data.len(), len, "a write's pieces do not cover its window");
                assert_eq!(
                    request.pieces().map(|p| u64::from(p.len)).sum::<u64>(),
                    request.len
                );
                self.visible[start..start + len].copy_from_slice(&data);
                self.ended.push((start as u64, data));
            }
            Operation::WriteZeroes | Operation::Discard => {
                self.visible[start..start + len].fill(0);
                self.ended.push((start as u64, std::vec![0; len]));
            }
            Operation::Flush => {
                for (start, data) in &self.ended[self.flushed.min(ended_before)..ended_before] {
                    let start = *start as usize;
                    self.durable[start..start + data.len()].copy_from_slice(data);
                }
                self.flushed = self.flushed.max(ended_before);
            }
        }
        (request, Ok(()))
    }
}

impl BlockDevice for TestDisk {
    fn info(&self) -> DeviceInfo {
        self.inner().info
    }

    fn submitter(&self, core: CoreId) -> CoreId {
        self.inner().queue_of[core]
    }

    fn submit(&self, request: Request) -> Result<(), Request> {
        let core = arch::current_core().expect("submit on a core");
        let mut inner = self.inner();
        assert_eq!(
            inner.queue_of[core], core,
            "a request reached a core without a queue"
        );
        let here = inner.held.iter().filter(|held| held.core == core).count();
        if here >= inner.depth {
            return Err(request);
        }
        inner.log.push(Submitted {
            operation: request.operation,
            offset: request.offset,
            len: request.len,
            flags: request.flags,
            pieces: request.pieces().count(),
            core,
        });
        let held = Held {
            ended_before: inner.ended.len(),
            request,
            core,
        };
        if inner.automatic && !inner.silent {
            let (request, result) = inner.execute(held);
            drop(inner);
            complete(request, result);
        } else {
            inner.held.push_back(held);
        }
        Ok(())
    }

    fn set_home(&'static self, core: CoreId) -> Result<Move, BlockError> {
        let mut inner = self.inner();
        if inner.slow_moves {
            inner.moving = Some((core, inner.queue_of));
            inner.queue_of = [NO_CORE; MAX_CORES];
            return Ok(Move::UnderWay);
        }
        Ok(Move::Done)
    }

    fn reset(&self) {
        let (held, works) = {
            let mut inner = self.inner();
            inner.resets += 1;
            inner.silent = false;
            (core::mem::take(&mut inner.held), inner.reset_works)
        };
        for held in held {
            complete(held.request, Err(BlockError::Io));
        }
        if let Some(events) = self.events.get() {
            events.reset_done(if works { Ok(()) } else { Err(BlockError::Io) });
        }
    }

    fn attach(&self, events: &'static dyn DeviceEvents) {
        assert!(self.events.set(events).is_ok(), "a device has one disk");
    }
}

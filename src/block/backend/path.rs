//! The way of a request through a backend: counted, checked, cut into parts, given its spares, and back.
#![forbid(unsafe_code)]

use core::sync::atomic::Ordering;

use super::Backend;
use crate::arch::CoreId;
use crate::block::node::{Ascent, Layer, NodeDriver};
use crate::block::request::{RequestFlags, RequestRecord, complete};
use crate::block::token::InFlight;
use crate::block::{BlockError, Operation, Request, credits};
use crate::config::MAX_TRANSFER;

/// Stage of a frame below which the request has spares; any other is there for the parts alone.
const CREDITED: u8 = 1;

impl Backend {
    /// Takes a request, on its home core. It comes back to its completion, always, later; never inside this call.
    #[inline]
    pub fn submit(&'static self, mut request: Request) {
        let core = request.home;
        let per_core = self.cores.get(core);
        // Counted before anything can see it (DRN-25); nothing is dropped on any path below.
        let token = InFlight::new(self, &request);
        request.begin(token);
        match per_core.gate.with(|gate| (gate.parking, gate.root)) {
            (false, Some(root)) => self.admit(request, root),
            _ => self.submit_slowly(request),
        }
    }

    #[inline]
    pub(in crate::block) fn admit(
        &'static self,
        mut request: Request,
        root: &'static dyn NodeDriver,
    ) {
        match self.check(&mut request) {
            Verdict::Pass => {}
            Verdict::Done(result) => return complete(request, result),
        }
        if request.len > MAX_TRANSFER && request.operation.has_data() {
            let (home, offset) = (request.home, request.offset);
            if !request.push_frame(self, home, 0) {
                return complete(request, Err(BlockError::NoMemory));
            }
            part(&mut request, offset, MAX_TRANSFER);
        }
        root.submit(request);
    }

    /// As [`admit`](Self::admit), for a graph that needs spare records: as soon as there are enough.
    pub(in crate::block) fn admit_at_cost(
        &'static self,
        mut request: Request,
        root: &'static dyn NodeDriver,
        cost: usize,
    ) {
        match self.check(&mut request) {
            Verdict::Pass => {}
            Verdict::Done(result) => return complete(request, result),
        }
        if let Some(request) = credits::reserve(request, cost) {
            self.go_at_cost(request, root);
        }
    }

    /// A request that has its spares goes down, under a frame that puts them back.
    fn go_at_cost(&'static self, mut request: Request, root: &'static dyn NodeDriver) {
        let (home, offset) = (request.home, request.offset);
        if !request.push_frame(self, home, CREDITED) {
            credits::release(&mut request);
            complete(request, Err(BlockError::NoMemory));
            return go_on(home);
        }
        if request.len > MAX_TRANSFER && request.operation.has_data() {
            part(&mut request, offset, MAX_TRANSFER);
        }
        root.submit(request);
    }

    fn check(&self, request: &mut RequestRecord) -> Verdict {
        let operation = request.operation;
        if operation == Operation::Flush {
            request.offset = 0;
            request.len = 0;
            return Verdict::Pass;
        }
        if operation.is_write() && self.read_only() {
            return Verdict::Done(Err(BlockError::ReadOnly));
        }
        let mask = u64::from(self.block_mask.load(Ordering::Relaxed));
        let end = match request.offset.checked_add(request.len) {
            Some(end) if end <= self.size() => end,
            _ => return Verdict::Done(Err(beyond_end(operation))),
        };
        if (request.offset | request.len) & mask != 0 {
            if operation != Operation::Discard {
                return Verdict::Done(Err(BlockError::Invalid));
            }
            let start = (request.offset + mask) & !mask;
            request.offset = start;
            request.len = (end & !mask).saturating_sub(start);
        }
        if operation.has_data() && !request.data_fits() {
            return Verdict::Done(Err(BlockError::Invalid));
        }
        if request.len == 0 {
            return Verdict::Done(Ok(()));
        }
        Verdict::Pass
    }
}

enum Verdict {
    Pass,
    Done(Result<(), BlockError>),
}

/// The error of a request beyond the end.
pub(crate) fn beyond_end(operation: Operation) -> BlockError {
    match operation {
        Operation::Write | Operation::WriteZeroes => BlockError::NoSpace,
        _ => BlockError::Invalid,
    }
}

/// Moves the window to a part of the frame's. The parts go one after another, so the flush of the last one covers them all.
fn part(request: &mut RequestRecord, offset: u64, len: u64) {
    request.set_window(offset, len);
    let frame = request.frame();
    let (end, flags) = (frame.offset + frame.len, frame.flags);
    request.flags = if offset + len < end {
        flags - RequestFlags::FUA
    } else {
        flags
    };
}

/// Lets go requests that waited for spares, of any backend, as far as those suffice.
fn go_on(core: CoreId) {
    while let Some(mut request) = credits::next(core) {
        let backend = request.token.as_ref().map(InFlight::backend);
        match backend.and_then(|backend| Some((backend, backend.find_root(core)?.0))) {
            Some((backend, root)) => backend.go_at_cost(request, root),
            None => {
                credits::release(&mut request);
                complete(request, Err(BlockError::NoMedium));
            }
        }
    }
}

impl Layer for Backend {
    fn completed(&'static self, mut request: Request) -> Ascent {
        let next = request.offset + request.len;
        let end = request.frame().offset + request.frame().len;
        if request.result.is_ok() && next < end {
            if let Some(root) = self.root_driver() {
                part(&mut request, next, (end - next).min(MAX_TRANSFER));
                root.submit(request);
                return Ascent::Taken;
            }
            request.result = Err(BlockError::NoMedium);
        }
        let credited = request.frame().stage == CREDITED;
        request.leave();
        if credited {
            credits::release(&mut request);
            go_on(request.home);
        }
        Ascent::Up(request)
    }
}

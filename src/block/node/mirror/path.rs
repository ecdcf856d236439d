//! The way of a request through a mirror.
//!
//! ```text
//!  read ──▶ one leg ──ok──▶ up                           (region unsynced, or an error: serialised, read from another leg,
//!                                                         written to those that lack it, then up)
//!  write ─▶ intent bit stable? ──▶ range free? ──▶ leg after leg ──▶ every failure recorded? ──▶ up
//!             │ no: the keeper        │ Tracked                        │ no: the keeper
//!             ▼                       ▼                                ▼
//!            line                   parked                            held
//!  flush ─────────────────────────────────────────▶ leg after leg ──▶ as a write
//! ```
//! A request visits one leg after the other, because its data have one owner: nobody can change them between the legs. Reads of a
//! region with writes under way go to the leg that is written last, so that none sees what a later one does not.
#![forbid(unsafe_code)]

use core::sync::atomic::Ordering;

use super::Mirror;
use super::start::lowest;
use super::state::{State, Status, Visit, ones, regions_of};
use super::superblock::MARGIN;
use crate::arch::CoreId;
use crate::block::node::Ascent;
use crate::block::request::{RequestFlags, complete};
use crate::block::tracked::PLACE_MASK;
use crate::block::{BlockError, Operation, Request};

/// What a frame's stage says beside the place in the table (a read has the slot of its leg there instead): a read on its way; one
/// that waits for its range; one that visits the legs.
pub(super) const READ: u8 = 0;
pub(super) const WAITING: u8 = 0x40;
pub(super) const VISITING: u8 = 0x80;
pub(super) const KINDS: u8 = !PLACE_MASK;

fn set_kind(request: &mut Request, kind: u8) {
    let stage = request.stage_mut();
    *stage = *stage & PLACE_MASK | kind;
}

fn place_of(request: &Request) -> usize {
    usize::from(request.frame().stage & PLACE_MASK)
}

impl Mirror {
    /// What is no read, from above, on the core of the node's context.
    #[inline(never)]
    pub(super) fn enter(&'static self, mut request: Request, core: CoreId) {
        let fast_zeroes = self.fast_zeroes.load(Ordering::Relaxed);
        if request.flags.contains(RequestFlags::FAST_ZERO) && !fast_zeroes {
            return complete(request, Err(BlockError::NotSupported));
        }
        if request.operation == Operation::Discard && !fast_zeroes {
            return complete(request, Ok(()));
        }
        if !request.push_frame(self, core, WAITING) {
            return complete(request, Err(BlockError::NoMemory));
        }
        if request.operation == Operation::Flush {
            if let Some(request) = self.tracked.begin(request, false) {
                self.serve(request);
            }
            return;
        }
        if let Some(request) = self.admit(request) {
            self.begin(request);
        }
    }

    /// A write that is admitted: it begins as soon as its range is free.
    pub(super) fn begin(&'static self, mut request: Request) {
        if request.operation == Operation::Discard {
            request.operation = Operation::WriteZeroes;
            request.flags |= RequestFlags::MAY_UNMAP;
        }
        if let Some(request) = self.tracked.begin(request, true) {
            self.serve(request);
        }
    }

    /// Back: a write whose regions are marked. Else it waits in the line for the keeper.
    pub(super) fn admit(&'static self, mut request: Request) -> Option<Request> {
        let mut state = self.state.lock();
        if state.status != Status::Running {
            drop(state);
            request.leave();
            complete(request, Err(BlockError::Io));
            return None;
        }
        let (offset, len) = (request.offset, request.len);
        let (from, to) = regions_of(&state.header, offset, len);
        let marked = (from..=to).all(|region| state.stable.has(region));
        if marked && state.failing == 0 {
            state.begin_write(offset, len);
            self.publish(&state);
            return Some(request);
        }
        for region in from..=to {
            if !state.stable.has(region) {
                state.wanted.insert(region);
            }
        }
        state.line.push(request);
        drop(state);
        self.wake.set();
        None
    }

    /// Tells the fast path of reads which legs it may spread them over; none: it has to ask.
    pub(super) fn publish(&self, state: &State) {
        let plain = state.writes == 0 && state.status == Status::Running && !self.unsynced(state);
        let legs = if plain { state.readable() } else { 0 };
        self.spread.store(legs, Ordering::Relaxed);
        self.losses.trust(state.readable());
    }

    /// Whether legs may differ anywhere.
    fn unsynced(&self, state: &State) -> bool {
        state.active.count_ones() > 1 && !state.unsynced.is_empty()
    }

    /// A read from above, on the core of the node's context.
    #[inline]
    pub(super) fn enter_read(&'static self, mut request: Request, core: CoreId) {
        let legs = self.spread.load(Ordering::Relaxed);
        let leg = match self.next_leg(legs) {
            Some(leg) if !request.flags.contains(RequestFlags::REBUILD) => leg,
            _ => return self.read_slowly(request),
        };
        if !request.push_frame(self, core, READ | leg) {
            return complete(request, Err(BlockError::NoMemory));
        }
        request.offset += MARGIN;
        self.links[usize::from(leg)].submit(request);
    }

    #[inline(never)]
    fn read_slowly(&'static self, mut request: Request) {
        let (synced, leg) = {
            let state = self.state.lock();
            let (from, to) = regions_of(&state.header, request.offset, request.len);
            let synced = state.active.count_ones() < 2
                || (from..=to).all(|region| !state.unsynced.has(region));
            // Where a write may be under way: the one that is written last.
            let leg = if (from..=to).any(|region| state.is_busy(region)) {
                state.readable().checked_ilog2().map(|leg| leg as u8)
            } else {
                self.next_leg(state.readable())
            };
            (synced, leg)
        };
        let Some(leg) = leg else {
            return complete(request, Err(BlockError::Io));
        };
        if !request.push_frame(self, self.home(), READ | leg) {
            return complete(request, Err(BlockError::NoMemory));
        }
        if !synced || request.flags.contains(RequestFlags::REBUILD) {
            return self.read_serialised(request);
        }
        request.offset += MARGIN;
        self.links[usize::from(leg)].submit(request);
    }

    /// The leg of `legs` whose turn it is.
    #[inline]
    fn next_leg(&self, legs: u8) -> Option<u8> {
        if legs == 0 {
            return None;
        }
        let mut leg = (self.turn.load(Ordering::Relaxed) + 1) & 3;
        while legs >> leg & 1 == 0 {
            leg = (leg + 1) & 3;
        }
        self.turn.store(leg, Ordering::Relaxed);
        Some(leg)
    }

    /// A read that may have to write what one leg has to others.
    pub(super) fn read_serialised(&'static self, mut request: Request) {
        set_kind(&mut request, WAITING);
        if let Some(request) = self.tracked.begin(request, true) {
            self.serve(request);
        }
    }

    /// A request whose turn it is: its first leg.
    fn serve(&'static self, mut request: Request) {
        set_kind(&mut request, VISITING);
        let place = place_of(&request);
        let frame = request.frame();
        let is_read = frame.operation == Operation::Read;
        {
            let mut state = self.state.lock();
            let all = state.active | state.rebuilding;
            let left = match frame.operation {
                // One at a time, until one can.
                Operation::Read => 0,
                // A leg that is being filled, too: what a client was promised must not be missing when it becomes active.
                _ => all,
            };
            state.visits[place] = Visit {
                left,
                ..Visit::NONE
            };
            if state.status == Status::Failed && !is_read {
                state.visits[place].left = 0;
                state.visits[place].error = Some(BlockError::Io);
            }
        }
        if is_read {
            self.read_next(request);
        } else if let Some(request) = self.visit_next(request) {
            let result = request.result;
            complete(request, result);
        }
    }

    /// Sends the request to its next leg; back, with the frame off, when there is none and it may be answered.
    fn visit_next(&'static self, mut request: Request) -> Option<Request> {
        let place = place_of(&request);
        let frame = *request.frame();
        let leg = {
            let mut state = self.state.lock();
            let skip = state.failing;
            // What a failed array has not recorded may be missing on a leg that the next start reads.
            let failed = state.status == Status::Failed && frame.operation != Operation::Read;
            let visit = &mut state.visits[place];
            visit.left &= !skip;
            match ones(visit.left).next() {
                Some(leg) => {
                    visit.left &= !(1 << leg);
                    visit.leg = leg as u8;
                    Some(leg)
                }
                None => {
                    let error = visit.error.or(failed.then_some(BlockError::Io));
                    request.result = error.map_or(Ok(()), Err);
                    if state.failing != 0 && state.status == Status::Running {
                        // Not before the failure is recorded on the other legs.
                        state.held.push(request);
                        drop(state);
                        self.wake.set();
                        return None;
                    }
                    None
                }
            }
        };
        let Some(leg) = leg else {
            return Some(self.conclude(request));
        };
        if frame.operation == Operation::Read {
            request.operation = Operation::Write;
            request.flags = RequestFlags::empty();
        }
        request.offset = match frame.operation {
            Operation::Flush => 0,
            _ => frame.offset + MARGIN,
        };
        request.len = frame.len;
        request.data_start = frame.data_start;
        self.links[leg].submit(request);
        None
    }

    /// Takes a request that is done out of the table, and the frame off it. Its result stands.
    pub(super) fn conclude(&'static self, mut request: Request) -> Request {
        let frame = *request.frame();
        if frame.operation.is_write() {
            let mut state = self.state.lock();
            state.end_write(frame.offset, frame.len);
            self.publish(&state);
        }
        self.tracked.end(frame.stage & PLACE_MASK);
        let result = request.result;
        request.leave();
        request.result = result;
        request
    }

    /// Reads from the next leg that has not failed to.
    fn read_next(&'static self, mut request: Request) {
        let place = place_of(&request);
        let frame = *request.frame();
        let leg = {
            let mut state = self.state.lock();
            // The same after every start: it counts where legs may differ.
            let leg = lowest(&state, state.readable() & !state.visits[place].bad);
            if let Some(leg) = leg {
                state.visits[place].leg = leg as u8;
            }
            leg
        };
        let Some(leg) = leg else {
            request.result = Err(BlockError::Io);
            let request = self.conclude(request);
            return complete(request, Err(BlockError::Io));
        };
        request.operation = Operation::Read;
        request.flags = RequestFlags::empty();
        request.offset = frame.offset + MARGIN;
        request.len = frame.len;
        request.data_start = frame.data_start;
        self.links[leg].submit(request);
    }

    /// A leg has answered a read that may have to be written elsewhere.
    fn read_back(&'static self, request: Request) -> Option<Request> {
        let place = place_of(&request);
        let frame = *request.frame();
        {
            let mut state = self.state.lock();
            let leg = state.visits[place].leg;
            // Also one that has lost something since it was asked.
            if request.result.is_err() || state.readable() >> leg & 1 == 0 {
                state.visits[place].bad |= 1 << leg;
                drop(state);
                self.read_next(request);
                return None;
            }
            let (from, to) = regions_of(&state.header, frame.offset, frame.len);
            let mut left = state.visits[place].bad & state.readable();
            if (from..=to).any(|region| state.unsynced.has(region)) {
                left |= state.readable();
            }
            if frame.flags.contains(RequestFlags::REBUILD) {
                left |= state.rebuilding;
                if state.rebuilding == 0 {
                    state.visits[place].error = Some(BlockError::Io);
                }
            }
            if state.status != Status::Running {
                left = 0;
            }
            left &= !(1 << leg);
            if state.visits[place].bad & left != 0 {
                state.repaired += 1;
            }
            state.visits[place].left = left;
            state.visits[place].back = true;
        }
        self.visit_next(request)
    }

    /// A leg has answered.
    #[inline]
    pub(super) fn answered(&'static self, mut request: Request) -> Ascent {
        let stage = request.frame().stage;
        let plain = request.result.is_ok() && stage & KINDS == READ;
        if plain && !self.may_have_lost() && !self.losses.is_suspect(stage) {
            request.leave();
            return Ascent::Up(request);
        }
        self.answered_otherwise(request)
    }

    #[inline(never)]
    fn answered_otherwise(&'static self, mut request: Request) -> Ascent {
        // An error says by itself that its leg has failed.
        if request.result.is_ok() {
            self.look_for_losses();
        }
        let stage = request.frame().stage;
        match stage & KINDS {
            READ if request.result.is_ok() && !self.losses.is_suspect(stage) => {
                request.leave();
                return Ascent::Up(request);
            }
            READ => {
                let others = self.state.lock().readable() & !(1 << (stage & PLACE_MASK));
                if others == 0 {
                    request.leave();
                    return Ascent::Up(request);
                }
                request.offset -= MARGIN;
                self.read_serialised(request);
            }
            WAITING => self.serve(request),
            _ => {
                let place = place_of(&request);
                let is_read = request.frame().operation == Operation::Read;
                let mut state = self.state.lock();
                if is_read && !state.visits[place].back {
                    drop(state);
                    return self.read_back(request).map_or(Ascent::Taken, Ascent::Up);
                }
                if let Err(error) = request.result {
                    let leg = state.visits[place].leg;
                    if !state.failed(leg) && !is_read {
                        state.visits[place].error = Some(error);
                    }
                    self.publish(&state);
                }
                drop(state);
                return self.visit_next(request).map_or(Ascent::Taken, Ascent::Up);
            }
        }
        Ascent::Taken
    }
}

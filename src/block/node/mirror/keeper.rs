//! The keeper: a mirror's coroutine, which writes its superblocks and so decides when writes may begin and be acknowledged.
//!
//! | what it does | when | what waits |
//! |---|---|---|
//! | marks regions | a write waits in the line | those writes; all that wait share one superblock |
//! | records failures | a leg failed a write or flush | every acknowledgement, and new writes |
//! | syncs a piece | regions in which legs may differ are left | requests in that piece |
//! | clears marks | regions had no write for [`MIRROR_CLEAR_NS`] | nothing |
//!
//! In a drained section it does only what requests that are under way wait for, records failures, and clears all marks when the array
//! is to end.
#![forbid(unsafe_code)]

use core::sync::atomic::Ordering;

use log::Level;

use super::meta::PIECE;
use super::state::{Status, Wish, ones};
use super::superblock::Standing;
use super::{Mirror, Start, drain_kick};
use crate::aio;
use crate::arch;
use crate::block::Operation;
use crate::block::node::{NodeDriver, NodeId};
use crate::block::request;
use crate::config::{MIRROR_CHUNK, MIRROR_CLEAR_NS, MIRRORS};
use crate::sync::{PAGE_SIZE, PageArena};

/// For the pieces that are being synced.
static PIECES: PageArena<{ MIRRORS * MIRROR_CHUNK / PAGE_SIZE }> = PageArena::new();

/// What there is to do.
enum Task {
    Record,
    Sync(u64, u64),
    Clear,
    Wish(Wish),
    /// The marks go, as far as they can.
    Close,
    End,
    /// Nothing before that time, in ns; or nothing at all.
    Wait(Option<u64>),
}

/// Lets the instance go when the coroutine ends, however it does.
struct End(&'static Mirror);

impl Drop for End {
    fn drop(&mut self) {
        self.0.kept.store(false, Ordering::Relaxed);
        self.0.let_go();
    }
}

/// The coroutine of the mirror in place `index`, which is node `id`.
pub(super) async fn keep(mirror: &'static Mirror, index: usize, id: NodeId, start: Start) {
    let _end = End(mirror);
    mirror.begin_work();
    mirror.settle_at_home().await;
    let started = mirror.start(index, start).await;
    mirror.end_work();
    // What stands above takes over the size, or nothing does.
    aio::reschedule_self(aio::main_context()).await;
    mirror.started(id, started);
    let mut clear_at = u64::MAX;
    loop {
        mirror.settle_at_home().await;
        mirror.wake.clear();
        // Before the look at `drained`: whoever drains sees one or the other.
        mirror.begin_work();
        let now = arch::now_ns();
        let task = mirror.next_task(now >= clear_at);
        match task {
            Task::Record => {
                mirror.record(index).await;
            }
            Task::Sync(offset, len) => mirror.sync(index, offset, len).await,
            Task::Clear => {
                mirror.clear(index, false).await;
                clear_at = u64::MAX;
            }
            Task::Wish(wish) => {
                let result = mirror.grant(index, wish).await;
                mirror.state.lock().wish = Wish::Answered(result);
                mirror.answered.set();
            }
            Task::Close => {
                mirror.clear(index, true).await;
                mirror.closing.store(false, Ordering::Release);
                mirror.closed.set();
            }
            Task::End => {
                mirror.end_work();
                return;
            }
            Task::Wait(_) => {}
        }
        mirror.end_work();
        if let Task::Wait(marked) = task {
            match marked {
                None => {
                    clear_at = u64::MAX;
                    mirror.wake.wait().await;
                }
                Some(interval) => {
                    clear_at = clear_at.min(now.saturating_add(interval));
                    let _ = aio::timeout(clear_at, mirror.wake.wait()).await;
                }
            }
        }
    }
}

impl Mirror {
    pub(super) fn begin_work(&self) {
        self.busy.store(true, Ordering::SeqCst);
    }

    pub(super) fn end_work(&self) {
        self.busy.store(false, Ordering::SeqCst);
        if self.drained.load(Ordering::SeqCst) {
            drain_kick();
        }
    }

    /// Goes to where the node is now.
    async fn settle_at_home(&self) {
        while arch::current_core() != Some(self.home()) {
            aio::reschedule_self(aio::context(self.home())).await;
        }
    }

    fn next_task(&self, clear_due: bool) -> Task {
        if self.gone.load(Ordering::Acquire) {
            return Task::End;
        }
        let state = self.state.lock();
        if state.status != Status::Running {
            return match state.wish {
                Wish::None | Wish::Answered(_) => Task::Wait(None),
                _ => Task::Wish(Wish::None),
            };
        }
        if state.waits_for_record() {
            return Task::Record;
        }
        // Whoever waits for one keeps the section from becoming quiet.
        if !matches!(state.wish, Wish::None | Wish::Answered(_)) {
            return Task::Wish(state.wish);
        }
        // A leg that failed must not be taken for a good one at the next start, nor marks stay for want of users.
        if state.failing != 0 {
            return Task::Record;
        }
        if self.closing.load(Ordering::Acquire) {
            return Task::Close;
        }
        if self.drained.load(Ordering::SeqCst) {
            return Task::Wait(None);
        }
        if state.active.count_ones() > 1
            && let Some(piece) = self.next_piece(&state)
        {
            return piece;
        }
        let clearable = state
            .stable
            .iter()
            .any(|region| !state.unsynced.has(region));
        match (clearable, clear_due) {
            (true, true) => Task::Clear,
            (true, false) => Task::Wait(Some(MIRROR_CLEAR_NS)),
            (false, _) => Task::Wait(None),
        }
    }

    /// The next piece to sync.
    fn next_piece(&self, state: &super::State) -> Option<Task> {
        let header = &state.header;
        let mut from = state.sync_at;
        let region = state.unsynced.next(from / header.region)?;
        from = from.max(region * header.region);
        let end = ((from / header.region + 1) * header.region).min(header.size);
        Some(Task::Sync(from, (end - from).min(MIRROR_CHUNK as u64)))
    }

    /// Writes the next superblock: with the bits that are wanted, and without the legs that failed. Then what waited for it goes on.
    /// `false`: there is no leg left on which it could be written.
    pub(super) async fn record(&'static self, index: usize) -> bool {
        loop {
            let (slots, late, failing) = {
                let mut state = self.state.lock();
                let failing = state.failing;
                if failing != 0 {
                    for slot in ones(failing) {
                        state.set_standing(slot, Standing::Stale);
                    }
                    let random = self.random(&state);
                    state.header.happen(0, random);
                }
                let state = &mut *state;
                state.composed.clear();
                state.composed.add(&state.stable);
                state.composed.add(&state.wanted);
                state.header.clean = state.composed.is_empty();
                state.header.advance();
                let late = (state.rebuilding | state.learning | state.promoted) & !failing;
                (state.active & !failing & !late, late, failing)
            };
            let mut failed = self.write_places(index, slots).await;
            if late != 0 && failed == 0 {
                failed |= self.write_places(index, late).await;
            }
            let mut state = self.state.lock();
            let numbers = state.numbers_of((slots | late) & !failed);
            state.header.is_stable_on(numbers);
            state.records += 1;
            // What failed meanwhile lacks a write; what fails here lacks a superblock.
            let sound = slots & !state.failing;
            for slot in ones(failed) {
                state.rebuilding &= !(1 << slot);
                state.learning &= !(1 << slot);
                state.failing |= 1 << slot & state.active;
            }
            if state.readable() == 0 {
                drop(state);
                self.fail(sound);
                return false;
            }
            if failed & slots == 0 {
                state.active &= !failing;
                state.failing &= !failing;
                if state.active.count_ones() < 2 {
                    // What one leg has is what there is.
                    state.unsynced.clear();
                }
                let state = &mut *state;
                state.stable.clear();
                state.stable.add(&state.composed);
                state.wanted.subtract(&state.composed);
            }
            let again = state.failing != 0;
            self.publish(&state);
            drop(state);
            if failing != 0 && failed & slots == 0 {
                for slot in ones(failing) {
                    let name = self.leg_name(slot);
                    self.say(Level::Warn, format_args!("{name} is stale from now on"));
                }
            }
            if !again {
                self.go_on();
                return true;
            }
        }
    }

    /// Nothing can be recorded any more, so nothing can be promised. The legs in `sound` lack no more than
    /// superblocks.
    fn fail(&'static self, sound: u8) {
        {
            let mut state = self.state.lock();
            state.status = Status::Failed;
            state.active = sound;
            state.failing = 0;
            self.publish(&state);
        }
        // There is no orderly end any more.
        self.closing.store(false, Ordering::Release);
        self.closed.set();
        self.say(
            Level::Error,
            format_args!("no leg takes superblocks: writes fail from now on"),
        );
        self.go_on();
    }

    /// What waited for a superblock goes on.
    pub(super) fn go_on(&'static self) {
        let (mut held, mut line, failed) = {
            let mut state = self.state.lock();
            let failed = state.status == Status::Failed;
            (state.held.take(), state.line.take(), failed)
        };
        while let Some(mut request) = held.pop() {
            if failed && request.frame().operation != Operation::Read {
                request.result = Err(crate::block::BlockError::Io);
            }
            let request = self.conclude(request);
            let result = request.result;
            request::complete(request, result);
        }
        while let Some(request) = line.pop() {
            if let Some(request) = self.admit(request) {
                self.begin(request);
            }
        }
    }

    /// Makes legs equal in a range: a read of it does. It may have to wait for a record, as may what stands in its way.
    async fn sync(&'static self, index: usize, offset: u64, len: u64) {
        let mut request = self
            .own_request(index, PIECE, Operation::Read, offset, len)
            .await;
        let Some(buffer) = PIECES.alloc_contiguous(len as usize) else {
            return aio::yield_now().await;
        };
        let _ = request.add_buffer(buffer, len as usize);
        self.submit(request);
        let failed = loop {
            self.wake.clear();
            let synced = self.meta.lock().synced.take();
            if let Some(request) = synced {
                break request.result.is_err();
            }
            if self.state.lock().waits_for_record() {
                self.record(index).await;
            } else {
                self.wake.wait().await;
            }
        };
        let mut state = self.state.lock();
        let region = offset / state.header.region;
        let end = offset + len;
        state.resynced += len;
        if failed {
            // It stays as it is, and marked, until the next start.
            state.sync_at = (region + 1) * state.header.region;
            return;
        }
        state.sync_at = end;
        if end == ((region + 1) * state.header.region).min(state.header.size) {
            state.unsynced.remove(region);
            if state.unsynced.is_empty() {
                drop(state);
                self.say(Level::Info, format_args!("all legs are equal again"));
                state = self.state.lock();
            }
        }
        self.publish(&state);
    }

    /// Takes the marks off regions without writes; those written to since the last time keep them, unless `all`.
    pub(super) async fn clear(&'static self, index: usize, all: bool) {
        let slots = {
            let mut state = self.state.lock();
            let state = &mut *state;
            state.leaving.clear();
            state.leaving.add(&state.stable);
            state.leaving.subtract(&state.unsynced);
            if !all {
                state.leaving.subtract(&state.touched);
            }
            state.touched.clear();
            // What is under way now may not be covered by the flush.
            for region in 0..state.header.regions() {
                if state.is_busy(region) {
                    state.leaving.remove(region);
                }
            }
            if state.leaving.is_empty() {
                return;
            }
            state.readable()
        };
        let failed = self.on_legs(index, slots, Operation::Flush, 0, 0).await;
        self.look_for_losses();
        {
            let mut state = self.state.lock();
            if failed != 0 {
                for slot in ones(failed) {
                    // The last one keeps its marks.
                    let _ = state.failed(slot as u8);
                }
                self.publish(&state);
            } else {
                let state = &mut *state;
                state.leaving.subtract(&state.touched);
                for region in state.leaving.iter() {
                    if !state.is_busy(region) {
                        state.stable.remove(region);
                    }
                }
            }
        }
        self.record(index).await;
    }
}

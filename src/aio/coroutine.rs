//! Coroutines: futures in static slots, resumed by the loops.
//!
//! ```text
//!          spawn            dequeued             Ready, or cancelled
//!   FREE ─────────▶ PENDING ────────▶ RUNNING ───────────────────────▶ FREE
//!                      ▲                │ Pending
//!                      │ wake           ▼
//!                      └──────────── suspended      woken while RUNNING: PENDING|RUNNING, queued, runs again
//! ```
//! A coroutine is queued in the lanes of its *home* context like a bottom half, so a wake from any core or interrupt
//! is a schedule, wakes are idempotent, and mutual wakes need no stack (CO-4). Whoever takes it off the lane and finds
//! that its home has changed forwards it, so that a move (CO-6) cannot race with a wake. Wakers carry slot and
//! generation (24 bits, as a bottom half's), not a pointer: one that outlives its coroutine does nothing.
use core::cell::UnsafeCell;
use core::future::Future;
use core::mem::{ManuallyDrop, MaybeUninit};
use core::ptr;
use core::task::{Context, Poll, RawWaker, RawWakerVTable, Waker};

use super::callback::AioError;
use super::context::{AioContext, unbalanced};
use super::lane::{COROUTINE_SLOTS, RECORDS};
use super::trace::{Event, trace_on};
use crate::arch::CoreId;
use crate::config::{COROUTINE_BYTES, MAX_CORES};
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::{CachePadded, CoreArray, IndexStack, StaticRef, held_on};

const LIVE: u32 = 1;
const PENDING: u32 = 2;
const RUNNING: u32 = 4;
const CANCELLED: u32 = 8;
const GENERATION: u32 = 1 << 8;
const FLAGS: u32 = GENERATION - 1;

#[repr(C, align(16))]
struct Storage(MaybeUninit<[u8; COROUTINE_BYTES]>);

/// The future's own functions, its type forgotten.
#[derive(Clone, Copy)]
struct Body {
    poll: unsafe fn(*mut Storage, &mut Context<'_>) -> Poll<()>,
    drop: unsafe fn(*mut Storage),
    name: &'static str,
}

struct Slot {
    /// Generation and flags.
    word: AtomicU32,
    /// The context that runs it.
    home: StaticRef<AioContext>,
    /// Where it asked to go; written and read by the core that runs it.
    moving_to: StaticRef<AioContext>,
    /// Written by `spawn`, which owns the slot; read by the runner.
    body: UnsafeCell<MaybeUninit<Body>>,
    /// The future; touched by `spawn`, then by the runner only.
    storage: UnsafeCell<Storage>,
}

// SAFETY: `body` and `storage` are touched by the one core that took the slot from the free stack, until it publishes
// the slot by PENDING, and after that only by the core that holds RUNNING, which one exchange grants. Futures are
// `Send`, so they may go from one to the other.
unsafe impl Sync for Slot {}

static SLOTS: [Slot; COROUTINE_SLOTS] = [const {
    Slot {
        word: AtomicU32::new(0),
        home: StaticRef::new(),
        moving_to: StaticRef::new(),
        body: UnsafeCell::new(MaybeUninit::uninit()),
        storage: UnsafeCell::new(Storage(MaybeUninit::uninit())),
    }
}; COROUTINE_SLOTS];
static FREE: IndexStack<COROUTINE_SLOTS> = IndexStack::new();

/// The coroutine that each core runs, as slot plus one; 0: none.
static CURRENT: CoreArray<AtomicU32> =
    CoreArray::new([const { CachePadded::new(AtomicU32::new(0)) }; MAX_CORES]);

/// Whether `core`, the current one, runs a coroutine just now.
#[inline]
pub(super) fn is_running(core: CoreId) -> bool {
    CURRENT.get(core).load(Ordering::Relaxed) != 0
}

/// This core runs a coroutine until this is dropped, also when the coroutine panics (host tests unwind).
struct Running(&'static AtomicU32);

impl Running {
    #[inline]
    fn enter(core: CoreId, index: usize) -> Self {
        let current = CURRENT.get(core);
        current.store(index as u32 + 1, Ordering::Relaxed);
        Self(current)
    }
}

impl Drop for Running {
    #[inline]
    fn drop(&mut self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

/// The coroutine that calls this; `None` outside of coroutines.
pub fn current_coroutine() -> Option<CoroutineHandle> {
    let slot = CURRENT.mine()?.load(Ordering::Relaxed).checked_sub(1)?;
    let generation = SLOTS[slot as usize].word.load(Ordering::Relaxed) & !FLAGS;
    Some(CoroutineHandle {
        slot: slot as u16,
        generation,
    })
}

/// How many coroutines exist, and how many ever existed at once.
pub fn coroutines_in_use() -> (usize, usize) {
    (FREE.in_use(), FREE.high_water())
}

/// # Safety
/// `storage` holds an initialised `F` that is polled by nobody else and never moves.
unsafe fn poll_future<F: Future<Output = ()>>(
    storage: *mut Storage,
    context: &mut Context<'_>,
) -> Poll<()> {
    // SAFETY: the caller promises a valid, exclusive, pinned `F`.
    unsafe { core::pin::Pin::new_unchecked(&mut *storage.cast::<F>()) }.poll(context)
}

/// # Safety
/// `storage` holds an initialised `F` that is not used again.
unsafe fn drop_future<F>(storage: *mut Storage) {
    // SAFETY: the caller promises a valid `F`, dropped once.
    unsafe { storage.cast::<F>().drop_in_place() }
}

impl AioContext {
    /// Runs `future` as a coroutine of this context, from its next batch on. Its size is checked when it is compiled.
    /// Any core.
    ///
    /// # Errors
    /// [`AioError::Exhausted`] when all slots (of all contexts together) are taken, [`AioError::Stopped`] from another
    /// core when the context's loop was stopped and not run again.
    pub fn spawn<F>(
        &'static self,
        name: &'static str,
        future: F,
    ) -> Result<CoroutineHandle, AioError>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        const {
            assert!(
                size_of::<F>() <= COROUTINE_BYTES,
                "the future does not fit a coroutine slot"
            );
            assert!(
                align_of::<F>() <= align_of::<Storage>(),
                "the future needs a greater alignment"
            );
        }
        if self.refuses() {
            return Err(AioError::Stopped);
        }
        let index = FREE.take().ok_or(AioError::Exhausted)?;
        let slot = &SLOTS[index];
        // SAFETY: the slot came from the free stack, so this core alone owns it; size and alignment were checked.
        unsafe {
            slot.storage.get().cast::<F>().write(future);
            (*slot.body.get()).write(Body {
                poll: poll_future::<F>,
                drop: drop_future::<F>,
                name,
            });
        }
        slot.home.set(Some(self));
        let generation = slot.word.load(Ordering::Relaxed) & !FLAGS;
        slot.word
            .store(generation | LIVE | PENDING, Ordering::Release);
        self.send(RECORDS + index);
        Ok(CoroutineHandle {
            slot: index as u16,
            generation,
        })
    }

    /// A coroutine was taken off this context's lanes. Returns whether it made a step.
    #[inline(never)]
    pub(super) fn run_coroutine(&'static self, core: CoreId, index: usize) -> bool {
        let slot = &SLOTS[index];
        if !slot.home.is(self)
            && let Some(home) = slot.home.get()
        {
            // It moved while queued here; still PENDING, it goes on to where it lives now.
            home.send(RECORDS + index);
            return false;
        }
        let mut word = slot.word.load(Ordering::Relaxed);
        loop {
            if word & LIVE == 0 {
                // It ended after it was woken: only now does the slot leave the lane.
                slot.word
                    .store((word & !FLAGS).wrapping_add(GENERATION), Ordering::Release);
                FREE.give_back(index);
                return false;
            }
            if word & RUNNING != 0 {
                // Woken in its new home while it leaves the old one: stays queued for a later batch.
                self.lanes.push_own(RECORDS + index);
                return false;
            }
            let new = (word & !PENDING) | RUNNING;
            match slot
                .word
                .compare_exchange_weak(word, new, Ordering::AcqRel, Ordering::Relaxed)
            {
                Ok(_) => break,
                Err(now) => word = now,
            }
        }
        trace_on(core, Event::Coroutine, index as u32, 0);
        self.counters.coroutine_steps.bump();
        self.step(core, index, word);
        true
    }

    /// One step of a coroutine that this core made RUNNING; its `word` was this before.
    #[inline]
    fn step(&'static self, core: CoreId, index: usize, word: u32) {
        let slot = &SLOTS[index];
        let generation = word & !FLAGS;
        // SAFETY: this core holds RUNNING, so it alone touches the slot, and `spawn` wrote body and storage before
        // the slot was first queued. The storage is static and was not moved since.
        let ended = unsafe {
            let body = (*slot.body.get()).assume_init_ref();
            let storage = slot.storage.get();
            let ready = word & CANCELLED != 0 || {
                let waker = ManuallyDrop::new(waker(index, generation));
                let held = held_on(core);
                let before = held.load(Ordering::Relaxed);
                let current = Running::enter(core, index);
                let ready = (body.poll)(storage, &mut Context::from_waker(&waker)).is_ready();
                drop(current);
                if held.load(Ordering::Relaxed) != before {
                    unbalanced(body.name);
                }
                ready
            };
            if ready {
                (body.drop)(storage);
            }
            ready
        };
        let target = slot.moving_to.get();
        if target.is_some() {
            slot.moving_to.set(None);
        }
        if ended {
            self.retire(index);
            return;
        }
        let Some(target) = target else {
            // From here on another core may run it.
            slot.word.fetch_and(!RUNNING, Ordering::AcqRel);
            return;
        };
        // A wake before this store queues it here, and we forward it.
        slot.home.set(Some(target));
        // No longer running and scheduled in one step, so that nobody schedules it elsewhere, and ends it, in between.
        let mut word = slot.word.load(Ordering::Relaxed);
        while let Err(now) = slot.word.compare_exchange_weak(
            word,
            (word & !RUNNING) | PENDING,
            Ordering::AcqRel,
            Ordering::Relaxed,
        ) {
            word = now;
        }
        if word & PENDING == 0 {
            target.send(RECORDS + index);
        }
    }

    /// The future is gone: frees the slot, now or when its last wake is taken off the lane.
    #[inline(never)]
    fn retire(&self, index: usize) {
        let slot = &SLOTS[index];
        let mut word = slot.word.load(Ordering::Relaxed);
        loop {
            let queued = word & PENDING != 0;
            let new = if queued {
                (word & !FLAGS) | PENDING
            } else {
                (word & !FLAGS).wrapping_add(GENERATION)
            };
            match slot
                .word
                .compare_exchange_weak(word, new, Ordering::AcqRel, Ordering::Relaxed)
            {
                Ok(_) if queued => return,
                Ok(_) => break,
                Err(now) => word = now,
            }
        }
        FREE.give_back(index);
    }
}

/// Queues the coroutine in its home unless it is queued already. Returns false when it has ended.
#[inline(never)]
fn wake(index: usize, generation: u32) -> bool {
    let slot = &SLOTS[index];
    // Mostly it is suspended, and one exchange without a look before it does.
    let suspended = generation | LIVE;
    let queued = suspended | PENDING;
    if slot
        .word
        .compare_exchange(suspended, queued, Ordering::AcqRel, Ordering::Relaxed)
        .is_err()
    {
        return mark(index, generation, PENDING);
    }
    if let Some(home) = slot.home.get() {
        home.send(RECORDS + index);
    }
    true
}

#[inline(never)]
fn mark(index: usize, generation: u32, flags: u32) -> bool {
    let slot = &SLOTS[index];
    let mut word = slot.word.load(Ordering::Relaxed);
    loop {
        if word & !FLAGS != generation || word & LIVE == 0 {
            return false;
        }
        // Written also when nothing changes, so that the step sees what the waker wrote before.
        match slot.word.compare_exchange_weak(
            word,
            word | flags,
            Ordering::AcqRel,
            Ordering::Relaxed,
        ) {
            Ok(_) => break,
            Err(now) => word = now,
        }
    }
    if word & PENDING == 0
        && let Some(home) = slot.home.get()
    {
        home.send(RECORDS + index);
    }
    true
}

const VTABLE: RawWakerVTable = RawWakerVTable::new(
    |data| RawWaker::new(data, &VTABLE),
    |data| wake_packed(data.addr()),
    |data| wake_packed(data.addr()),
    |_| (),
);

/// Generation and slot in one word; see [`wake_packed`].
fn pack(index: usize, generation: u32) -> usize {
    generation as usize >> 8 << 16 | index
}

/// Wakes the coroutine that [`pack`] packed: what a waker and a timer carry.
pub(super) fn wake_packed(packed: usize) {
    wake(packed & 0xFFFF, ((packed >> 16) as u32) << 8);
}

fn waker(index: usize, generation: u32) -> Waker {
    let raw = RawWaker::new(ptr::without_provenance(pack(index, generation)), &VTABLE);
    // SAFETY: the data is a number, never followed as a pointer; clone copies it, drop does nothing, and waking is
    // safe from any thread: the contract of `RawWaker` is met.
    unsafe { Waker::from_raw(raw) }
}

/// A spawned coroutine; a copy is the same. After its end all functions do nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoroutineHandle {
    slot: u16,
    generation: u32,
}

impl CoroutineHandle {
    /// Whether it has ended. What it wrote before is then visible.
    pub fn is_finished(&self) -> bool {
        let word = SLOTS[self.slot as usize].word.load(Ordering::Acquire);
        word & !FLAGS != self.generation || word & LIVE == 0
    }

    /// Resumes it at its home; several wakes before that are one. Any core, interrupt handlers too. False after its
    /// end.
    pub fn wake(&self) -> bool {
        wake(self.slot as usize, self.generation)
    }

    /// Drops its future, at its home, instead of resuming it again. Any core.
    pub fn cancel(&self) -> bool {
        mark(self.slot as usize, self.generation, CANCELLED | PENDING)
    }

    /// Resumes a suspended coroutine in another context, which is its home from then on.
    ///
    /// # Errors
    /// [`AioError::Busy`] while it runs or is scheduled (CO-3), [`AioError::Stale`] after its end,
    /// [`AioError::Stopped`] from another core when that context's loop was stopped and not run again.
    pub fn schedule_in(&self, context: &'static AioContext) -> Result<(), AioError> {
        if context.refuses() {
            return Err(AioError::Stopped);
        }
        let slot = &SLOTS[self.slot as usize];
        let word = slot.word.load(Ordering::Relaxed);
        if word & !FLAGS != self.generation || word & LIVE == 0 {
            return Err(AioError::Stale);
        }
        if word & (PENDING | RUNNING) != 0 {
            return Err(AioError::Busy);
        }
        // PENDING makes it ours: nobody queues it until it was dequeued.
        slot.word
            .compare_exchange(word, word | PENDING, Ordering::AcqRel, Ordering::Relaxed)
            .map_err(|_| AioError::Busy)?;
        slot.home.set(Some(context));
        context.send(RECORDS + self.slot as usize);
        Ok(())
    }

    /// What a timer's callback carries to wake it.
    pub(super) fn packed(&self) -> usize {
        pack(self.slot as usize, self.generation)
    }
}

/// Asks for the running coroutine to be moved to `target` after this step.
pub(super) fn request_move(target: &'static AioContext) {
    let slot = CURRENT
        .mine()
        .and_then(|current| current.load(Ordering::Relaxed).checked_sub(1));
    let slot = slot.expect("only a coroutine moves itself");
    SLOTS[slot as usize].moving_to.set(Some(target));
}

//! What each core keeps for the block layer: free records, finished requests, requests on their way to other cores.
//!
//! ```text
//!   complete() on this core ──▶ finished ──┐
//!                                          ├─▶ bottom half: frames, completion, token
//!   other cores ── inbox (one batch a turn)┘
//!   forward()/complete() for another core ──▶ outgoing[target] ── turn hook ──▶ its inbox
//! ```
//! Everything is first in, first out per sender (CS-18). A completion runs only from the bottom half, which takes what was
//! there when it began: a completion that submits, and is answered at once, does not keep the loop from its other work. A
//! nested `poll` inside a completion does not run the rest of its batch: completions must not wait.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use heapless::{Deque, Vec};

use super::node::{Ascent, NodeDriver};
use super::request::{Direction, RequestRecord};
use super::{BlockError, Request, RequestQueue, credits};
use crate::aio::{self, BottomHalf, Callback, TurnHook};
use crate::arch::{self, CoreId};
use crate::config::{BOTTOM_HALVES, MAX_CORES, REQUEST_RESERVED, REQUESTS_PER_CORE};
use crate::sync::{CachePadded, CoreArray, HomeCell, IrqLock, Pool, PoolBox};

/// The records; a record leaves its pool once and from then on lives in its core's free list.
static RECORDS: CoreArray<Pool<RequestRecord, REQUESTS_PER_CORE>> =
    CoreArray::new([const { CachePadded::new(Pool::new()) }; MAX_CORES]);

/// The most request records of `core` that were ever in use at once. Any core.
pub fn most_records(core: CoreId) -> usize {
    RECORDS.get(core).in_use()
}

/// Free records of one core, and who waits for one.
struct Free {
    records: Vec<PoolBox<RequestRecord>, REQUESTS_PER_CORE>,
    /// Records taken out of the pool so far: the most that were ever in use at once.
    made: usize,
    waiters: Deque<BottomHalf, BOTTOM_HALVES>,
}

static FREE: CoreArray<HomeCell<Free>> = CoreArray::new(
    [const {
        CachePadded::new(HomeCell::new(Free {
            records: Vec::new(),
            made: 0,
            waiters: Deque::new(),
        }))
    }; MAX_CORES],
);

/// Lists of one core that only it touches.
struct Lists {
    finished: RequestQueue,
    outgoing: [RequestQueue; MAX_CORES],
    /// Bit per target with something in `outgoing`.
    targets: u32,
    bottom_half: Option<BottomHalf>,
    hook: Option<TurnHook>,
}

static LISTS: CoreArray<HomeCell<Lists>> = CoreArray::new(
    [const {
        CachePadded::new(HomeCell::new(Lists {
            finished: RequestQueue::new(),
            outgoing: [const { RequestQueue::new() }; MAX_CORES],
            targets: 0,
            bottom_half: None,
            hook: None,
        }))
    }; MAX_CORES],
);

/// What other cores have sent, and how to wake the owner.
struct Inbox {
    queue: IrqLock<RequestQueue>,
    /// Something is in `queue`; saves the lock in most turns.
    full: AtomicBool,
    bottom_half: IrqLock<Option<BottomHalf>>,
}

static INBOX: CoreArray<Inbox> = CoreArray::new(
    [const {
        CachePadded::new(Inbox {
            queue: IrqLock::new(RequestQueue::new()),
            full: AtomicBool::new(false),
            bottom_half: IrqLock::new(None),
        })
    }; MAX_CORES],
);

/// The clock as this turn first read it; 0: not read yet. Written by its core alone.
static TURN_NS: CoreArray<AtomicU64> =
    CoreArray::new([const { CachePadded::new(AtomicU64::new(0)) }; MAX_CORES]);

/// The time for accounting, read once a turn (the clock costs as much as a tenth of a request).
#[inline]
pub(crate) fn turn_ns(core: CoreId) -> u64 {
    match TURN_NS.get(core).load(Ordering::Relaxed) {
        0 => read_clock(core),
        ns => ns,
    }
}

#[inline(never)]
fn read_clock(core: CoreId) -> u64 {
    let ns = arch::now_ns().max(1);
    TURN_NS.get(core).store(ns, Ordering::Relaxed);
    if let Some(hook) = LISTS.get(core).with(|lists| lists.hook) {
        hook.arm();
    }
    ns
}

/// Bit per core that runs the block layer.
static STARTED: AtomicU32 = AtomicU32::new(0);

/// Cores that run the block layer, one bit each.
pub(crate) fn started() -> u32 {
    STARTED.load(Ordering::Acquire)
}

/// Prepares the current core; its context must be attached. Idempotent.
pub(crate) fn start(core: CoreId) -> Result<(), BlockError> {
    if started() & (1 << core) != 0 {
        return Ok(());
    }
    FREE.get(core).bind(core);
    credits::start(core);
    LISTS.get(core).bind(core);
    let context = aio::context(core);
    let bottom_half = context
        .bottom_half("block completions", Callback::new(&run, core))
        .map_err(|_| BlockError::NoMemory)?;
    let hook = context
        .turn_hook("block crossings", Callback::new(&send, core))
        .map_err(|_| BlockError::NoMemory)?;
    *INBOX.get(core).bottom_half.lock() = Some(bottom_half);
    LISTS.get(core).with(|lists| {
        lists.bottom_half = Some(bottom_half);
        lists.hook = Some(hook);
    });
    STARTED.fetch_or(1 << core, Ordering::AcqRel);
    Ok(())
}

/// A record for `core`, the current one.
#[inline]
pub(crate) fn allocate(core: CoreId, reserved: bool) -> Option<PoolBox<RequestRecord>> {
    let keep = if reserved { 0 } else { REQUEST_RESERVED };
    FREE.get(core).with(|free| {
        let unmade = REQUESTS_PER_CORE - free.made;
        if free.records.len() + unmade <= keep {
            return None;
        }
        if let Some(record) = free.records.pop() {
            return Some(record);
        }
        let mut record = RECORDS.get(core).alloc(RequestRecord::empty(core)).ok()?;
        record.slot = record.index() as u16;
        free.made += 1;
        Some(record)
    })
}

/// Takes a clean record back, from any core.
#[inline]
pub(crate) fn free(record: PoolBox<RequestRecord>) {
    let home = record.home;
    if arch::current_core() != Some(home) {
        let mut request = Request::from_record(record);
        request.direction = Direction::Home;
        deliver(home, request);
        return;
    }
    if record.spare {
        return credits::put_back(Request::from_record(record));
    }
    let waiter = FREE.get(home).with(|free| {
        // Never full: it has room for every record of this core.
        if free.records.push(record).is_err() {
            debug_assert!(false, "more records than the pool has");
        }
        // A record more than the kept-back ones is free: somebody may go on.
        if free.waiters.is_empty()
            || free.records.len() + REQUESTS_PER_CORE - free.made <= REQUEST_RESERVED
        {
            None
        } else {
            free.waiters.pop_front()
        }
    });
    if let Some(waiter) = waiter {
        waiter.schedule();
    }
}

/// Queues `waiter` for a free record of the current core; scheduled at once when there is one.
pub(crate) fn wait(waiter: BottomHalf) {
    let Some(core) = arch::current_core() else {
        return;
    };
    let now = FREE.get(core).with(|free| {
        let available = free.records.len() + REQUESTS_PER_CORE - free.made > REQUEST_RESERVED;
        if available {
            return true;
        }
        // A place for every bottom half; should it be full all the same, asking again at once is never wrong.
        free.waiters.push_back(waiter).is_err()
    });
    if now {
        waiter.schedule();
    }
}

/// Records of `core` in use, and the most ever in use. Only on that core.
pub(crate) fn usage(core: CoreId) -> (usize, usize) {
    FREE.get(core)
        .with(|free| (free.made - free.records.len(), free.made))
}

/// Sends a request towards `target`: up or down, as its direction says.
#[inline]
pub(crate) fn deliver(target: CoreId, request: Request) {
    if arch::current_core() != Some(target) {
        return deliver_elsewhere(target, request);
    }
    let first = LISTS.get(target).with(|lists| {
        let first = lists.finished.is_empty();
        lists.finished.push(request);
        first
    });
    if first {
        wake(target);
    }
}

/// Schedules the bottom half of `core`, this one: once a batch.
#[inline(never)]
fn wake(core: CoreId) {
    let bottom_half = LISTS.get(core).with(|lists| lists.bottom_half);
    if let Some(bottom_half) = bottom_half {
        bottom_half.schedule();
    }
}

#[inline(never)]
fn deliver_elsewhere(target: CoreId, request: Request) {
    let Some(core) = arch::current_core() else {
        let mut queue = RequestQueue::new();
        queue.push(request);
        return post(target, &mut queue);
    };
    let hook = LISTS.get(core).with(|lists| {
        lists.outgoing[target].push(request);
        lists.targets |= 1 << target;
        lists.hook
    });
    match hook {
        Some(hook) => hook.arm(),
        None => send(core),
    }
}

/// Sends a request down into `node` on another core.
pub(crate) fn forward(target: CoreId, mut request: Request, node: &'static dyn NodeDriver) {
    request.direction = Direction::Into(node);
    deliver(target, request);
}

/// The turn hook: everything for other cores goes, one lock and one wake a target.
fn send(core: CoreId) {
    TURN_NS.get(core).store(0, Ordering::Relaxed);
    loop {
        let next = LISTS.get(core).with(|lists| {
            let target = lists.targets.trailing_zeros() as usize;
            if target >= MAX_CORES {
                return None;
            }
            lists.targets &= !(1 << target);
            Some((target, lists.outgoing[target].take()))
        });
        let Some((target, mut queue)) = next else {
            return;
        };
        post(target, &mut queue);
    }
}

fn post(target: CoreId, queue: &mut RequestQueue) {
    let inbox = INBOX.get(target);
    {
        let mut waiting = inbox.queue.lock();
        waiting.append(queue);
        inbox.full.store(true, Ordering::Release);
    }
    let bottom_half = *inbox.bottom_half.lock();
    if let Some(bottom_half) = bottom_half {
        bottom_half.schedule();
    }
}

/// The bottom half: what was there when it began.
fn run(core: CoreId) {
    let inbox = INBOX.get(core);
    if inbox.full.load(Ordering::Acquire) {
        let mut arrived = {
            let mut queue = inbox.queue.lock();
            inbox.full.store(false, Ordering::Relaxed);
            queue.take()
        };
        LISTS
            .get(core)
            .with(|lists| lists.finished.append(&mut arrived));
    }
    // What comes from now on schedules us again, since it finds the list empty.
    let mut batch = LISTS.get(core).with(|lists| lists.finished.take());
    while let Some(request) = batch.pop() {
        step(core, request);
    }
}

/// Takes one request as far as it goes on this core.
fn step(core: CoreId, mut request: Request) {
    match request.direction {
        Direction::Into(node) => {
            request.direction = Direction::Up;
            return node.submit(request);
        }
        Direction::Home => {
            request.direction = Direction::Up;
            return drop(request);
        }
        Direction::Up => {}
    }
    while let Some(frame) = request.frames.last() {
        let target = frame.core as CoreId;
        if target != core {
            return deliver(target, request);
        }
        match frame.node.completed(request) {
            Ascent::Up(up) => request = up,
            Ascent::Taken => return,
        }
    }
    if request.home != core {
        return deliver(request.home, request);
    }
    let token = request.token.take();
    if let Some(token) = &token {
        token.account(&request);
    }
    (request.completion)(request);
    // Only now: what the completion did belongs to this request (DRN-29).
    drop(token);
}

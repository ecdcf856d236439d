//! The trace ring of each core: the last events of its loop, for the post-mortem of a hang (CS-19).
#![forbid(unsafe_code)]

use core::fmt;

use crate::arch::{self, CoreId};
use crate::config::{MAX_CORES, TRACE_RECORDS};
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::sync::{CachePadded, CoreArray};

const _: () = assert!(TRACE_RECORDS.is_power_of_two());

/// What happened. `a` and `b` are the two values given to [`trace`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[non_exhaustive]
pub enum Event {
    /// A bottom half was scheduled; a: its index.
    Schedule = 1,
    /// A bottom half ran; a: its index.
    Run,
    /// A handler was called; a: its slot.
    Handler,
    /// A timer fired; a: its index; b: its deadline.
    Timer,
    /// A coroutine made a step; a: its slot.
    Coroutine,
    /// The loop goes to sleep; b: until when (`u64::MAX`: until an event).
    Sleep,
    /// The loop woke; a: 1 when it was notified.
    Wake,
    /// A kick was sent; a: to which core.
    Kick,
    /// A drained section began; a: backend or node.
    DrainBegin,
    /// A drained section became quiet; a: backend or node.
    DrainQuiet,
    /// A drained section ended; a: backend or node.
    DrainEnd,
    /// A request was submitted to a device; a: device; b: request.
    Submit,
    /// A device completed a request; a: device; b: request.
    Complete,
    /// An error that has a log line; a: a code; b: detail.
    Error,
    /// A bottom half fired while its guard was engaged; a: its index.
    Reentered,
}

const NAMES: [&str; 16] = [
    "?",
    "schedule",
    "run",
    "handler",
    "timer",
    "coroutine",
    "sleep",
    "wake",
    "kick",
    "drain-begin",
    "drain-quiet",
    "drain-end",
    "submit",
    "complete",
    "error",
    "reentered",
];

// A power of two in size: found by a shift.
#[repr(C, align(32))]
struct Record {
    /// Event in the high half, `a` in the low one; 0: empty.
    what: AtomicU64,
    b: AtomicU64,
    /// The loop's last reading of the clock, not a new one.
    time_ns: AtomicU64,
}

struct Ring {
    next: AtomicU32,
    clock_ns: AtomicU64,
}

static RINGS: CoreArray<Ring> = CoreArray::new(
    [const {
        CachePadded::new(Ring {
            next: AtomicU32::new(0),
            clock_ns: AtomicU64::new(0),
        })
    }; MAX_CORES],
);

/// The records of one core after the other.
static RECORDS: [Record; TRACE_RECORDS * MAX_CORES] = [const {
    Record {
        what: AtomicU64::new(0),
        b: AtomicU64::new(0),
        time_ns: AtomicU64::new(0),
    }
}; TRACE_RECORDS * MAX_CORES];

#[inline]
fn record(core: CoreId, index: u32) -> &'static Record {
    &RECORDS[core * TRACE_RECORDS + index as usize % TRACE_RECORDS]
}

/// Leaves an event in the current core's ring: a few stores, no clock. From anywhere on a core; an interrupt between
/// the stores may lose one of two records, nothing else.
#[inline]
pub fn trace(event: Event, a: u32, b: u64) {
    if let Some(core) = arch::current_core() {
        trace_on(core, event, a, b);
    }
}

/// As [`trace`], for a caller that knows that it is `core`.
#[inline]
pub(super) fn trace_on(core: CoreId, event: Event, a: u32, b: u64) {
    if cfg!(loom) {
        // Nothing depends on it, and every store would be a step of the model.
        return;
    }
    let ring = RINGS.get(core);
    let next = ring.next.load(Ordering::Relaxed);
    ring.next.store(next.wrapping_add(1), Ordering::Relaxed);
    let record = record(core, next);
    record
        .what
        .store((event as u64) << 32 | u64::from(a), Ordering::Relaxed);
    record.b.store(b, Ordering::Relaxed);
    record
        .time_ns
        .store(ring.clock_ns.load(Ordering::Relaxed), Ordering::Relaxed);
}

/// Reads the clock and remembers it for the events that follow.
#[inline]
pub(super) fn clock() -> u64 {
    let now = arch::now_ns();
    if let Some(ring) = RINGS.mine() {
        ring.clock_ns.store(now, Ordering::Relaxed);
    }
    now
}

/// Writes the last `last_n` events of `core`, oldest first, one a line. Of another core that runs on meanwhile, a
/// line may mix two events.
///
/// # Errors
/// What `out` reports.
pub fn dump(core: CoreId, out: &mut dyn fmt::Write, last_n: usize) -> fmt::Result {
    let ring = RINGS.get(core);
    let next = ring.next.load(Ordering::Acquire);
    let count = last_n.min(TRACE_RECORDS) as u32;
    for index in (0..count).map(|back| next.wrapping_sub(count - back)) {
        let record = record(core, index);
        let what = record.what.load(Ordering::Relaxed);
        if what == 0 {
            continue;
        }
        let name = NAMES.get((what >> 32) as usize).copied().unwrap_or("?");
        let (time, b) = (
            record.time_ns.load(Ordering::Relaxed),
            record.b.load(Ordering::Relaxed),
        );
        writeln!(
            out,
            "core {core} {}.{:06} ms {name} {} {b:#x}",
            time / 1_000_000,
            time % 1_000_000,
            what as u32
        )?;
    }
    Ok(())
}

//! Bottom halves.
use ironthread::aio::BottomHalf;

use crate::World;
use crate::support::{Count, Log, Place, bottom_half, drain, poll_here};

static RUNS: [Count; 4] = [const { Count::new() }; 4];
static HANDLES: [Place<BottomHalf>; 4] = [const { Place::new() }; 4];

fn reset() {
    RUNS.iter().for_each(|runs| runs.set(0));
}

fn count(which: usize) {
    RUNS[which].add();
}

/// Nothing runs inside `schedule`; one schedule is one run, which is progress. As `/aio/bh/flush` too, whose API is
/// older than the loop's present one and whose contract is the same.
pub fn schedule(w: &World) {
    reset();
    let (main, bh) = (w.main(), bottom_half(w.main(), &count, 0));
    bh.schedule();
    assert_eq!(RUNS[0].get(), 0);
    assert!(main.poll(true));
    assert_eq!(RUNS[0].get(), 1);
    assert!(!main.poll(false));
    assert_eq!(RUNS[0].get(), 1);
    bh.delete();
}

/// A bottom half that schedules itself runs once a poll.
pub fn schedule10(w: &World) {
    fn again(_: usize) {
        if RUNS[0].add() < 10 {
            HANDLES[0].get().schedule();
        }
    }
    reset();
    let (main, bh) = (w.main(), HANDLES[0].set(bottom_half(w.main(), &again, 0)));
    bh.schedule();
    assert!(main.poll(false));
    assert_eq!(RUNS[0].get(), 1);
    assert!(main.poll(true));
    assert_eq!(RUNS[0].get(), 2);
    for runs in 3..=10 {
        assert!(main.poll(true));
        assert_eq!(RUNS[0].get(), runs);
    }
    assert!(!main.poll(false));
    assert_eq!(RUNS[0].get(), 10);
    HANDLES[0].take().delete();
}

/// Cancelled, it does not run, and taking it off its lane is no progress.
pub fn cancel(w: &World) {
    reset();
    let bh = bottom_half(w.main(), &count, 0);
    bh.schedule();
    bh.cancel();
    assert!(!w.main().poll(false));
    assert_eq!(RUNS[0].get(), 0);
    bh.delete();
    assert!(!w.main().poll(false));
    assert_eq!(RUNS[0].get(), 0);
}

/// Deleted, it does not run, and freeing it is no progress.
pub fn delete(w: &World) {
    reset();
    let bh = bottom_half(w.main(), &count, 0);
    bh.schedule();
    bh.delete();
    assert!(!w.main().poll(false));
    assert_eq!(RUNS[0].get(), 0);
}

fn delete_self(which: usize) {
    RUNS[which].add();
    let bh = HANDLES[which].take();
    bh.schedule();
    bh.delete();
    assert!(!bh.is_scheduled() && !bh.schedule(), "its handle is stale");
}

/// It deletes itself in its first run.
pub fn callback_delete_one(w: &World) {
    reset();
    HANDLES[0]
        .set(bottom_half(w.main(), &delete_self, 0))
        .schedule();
    assert_eq!(RUNS[0].get(), 0);
    assert!(w.main().poll(true));
    assert_eq!(RUNS[0].get(), 1);
    assert!(HANDLES[0].peek().is_none());
    assert!(!w.main().poll(false));
    assert_eq!(RUNS[0].get(), 1);
}

/// Several that are due in one batch delete themselves.
pub fn callback_delete_many(w: &World) {
    reset();
    for (which, handle) in HANDLES.iter().enumerate() {
        handle
            .set(bottom_half(w.main(), &delete_self, which))
            .schedule();
    }
    assert!(w.main().poll(true));
    for (runs, handle) in RUNS.iter().zip(&HANDLES) {
        assert_eq!(runs.get(), 1);
        assert!(handle.peek().is_none());
    }
    assert!(!w.main().poll(false));
    assert!(RUNS.iter().all(|runs| runs.get() == 1));
}

static ORDER: Log = Log::new();

fn log(what: usize) {
    ORDER.push(what);
}

/// Cancelled and scheduled again while it is still queued, it keeps its place.
pub fn cancel_then_schedule(w: &World) {
    let all = [0, 1, 2].map(|which| bottom_half(w.main(), &log, which));
    all.iter().for_each(|bh| assert!(bh.schedule()));
    all[0].cancel();
    assert!(!all[0].is_scheduled());
    all[0].schedule();
    all[1].cancel();
    assert!(w.main().poll(false));
    ORDER.expect(&[0, 2]);
    drain(w.main());
    ORDER.expect(&[]);
    all.iter().for_each(|bh| bh.delete());
}

/// Idle ones run without being waited for, within what bounds the wait; their runs are no progress.
pub fn idle(w: &World) {
    reset();
    let bh = bottom_half(w.main(), &count, 0);
    bh.schedule_idle();
    // Nothing else would end this wait.
    while RUNS[0].get() == 0 {
        assert!(!w.main().poll(true), "an idle run counted as progress");
    }
    assert_eq!(RUNS[0].get(), 1);
    // A normal schedule wins, whichever came first.
    for idle_first in [true, false] {
        if idle_first {
            bh.schedule_idle();
            bh.schedule();
        } else {
            bh.schedule();
            bh.schedule_idle();
        }
        assert!(w.main().poll(false));
    }
    assert_eq!(RUNS[0].get(), 3);
    assert!(!w.main().poll(false));
    bh.delete();
}

/// A callback deletes, or cancels, another that is due in the same batch: it does not run.
pub fn delete_other(w: &World) {
    fn delete_next(which: usize) {
        ORDER.push(which);
        HANDLES[1].take().delete();
        HANDLES[2].take().cancel();
    }
    let first = bottom_half(w.main(), &delete_next, 0);
    let cancelled = bottom_half(w.main(), &log, 2);
    first.schedule();
    HANDLES[1].set(bottom_half(w.main(), &log, 1)).schedule();
    HANDLES[2].set(cancelled).schedule();
    assert!(w.main().poll(false));
    ORDER.expect(&[0]);
    drain(w.main());
    ORDER.expect(&[]);
    first.delete();
    cancelled.delete();
}

/// A callback polls: the rest of its batch runs inside, once.
pub fn nested_poll(w: &World) {
    fn polls(which: usize) {
        ORDER.push(which);
        // Scheduled now, so in the nested batch, behind the rest of the outer one.
        HANDLES[3].get().schedule();
        assert!(poll_here(false));
        ORDER.push(10 + which);
        assert!(!poll_here(false));
    }
    let first = bottom_half(w.main(), &polls, 0);
    let rest = [1, 2].map(|which| bottom_half(w.main(), &log, which));
    let late = HANDLES[3].set(bottom_half(w.main(), &log, 3));
    first.schedule();
    rest.iter().for_each(|bh| assert!(bh.schedule()));
    assert!(w.main().poll(false));
    ORDER.expect(&[0, 1, 2, 3, 10]);
    assert!(!w.main().poll(false));
    ORDER.expect(&[]);
    first.delete();
    rest.iter().for_each(|bh| bh.delete());
    late.delete();
    HANDLES[3].take();
}

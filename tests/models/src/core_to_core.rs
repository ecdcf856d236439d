//! Models of single parts: the lock and the lanes.
use ironthread::aio::LaneModel;
use ironthread::arch;
use ironthread::sync::ContextLock;
use ironthread::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crate::check::{Model, core, join};

/// The models of this file.
pub const MODELS: &[Model] = &[
    ("lock", 2, lock),
    ("lock_sleep", 3, lock_sleep),
    ("lock_try", 2, lock_try),
    ("lanes", 3, lanes),
    ("lanes_fifo", 2, lanes_fifo),
];

static LOCK: ContextLock = ContextLock::new();
/// Changed by load and store only: an addition is lost when two cores are inside, or one does not see the last.
static SUM: AtomicU32 = AtomicU32::new(0);

fn add() {
    LOCK.acquire();
    SUM.store(SUM.load(Relaxed) + 1, Relaxed);
    LOCK.release();
}

/// Two cores, one of them recursively (LCK-1…3): exclusion, and what the last holder wrote is seen.
fn lock() {
    let other = core(1, || {
        add();
        add();
    });
    LOCK.acquire();
    add();
    LOCK.release();
    join([other]);
    LOCK.acquire();
    assert_eq!(SUM.load(Relaxed), 3);
    assert_eq!(LOCK.queued(), 1);
}

/// Three cores: the last one registers and sleeps (LCK-4…6). A release that does not see the sleeper, or a sleeper
/// that does not see the release, is a deadlock.
fn lock_sleep() {
    let others = [core(1, add), core(2, add)];
    add();
    join(others);
    assert_eq!(SUM.load(Relaxed), 3);
    assert_eq!(LOCK.queued(), 0);
}

/// One core only tries: it never gets in beside the holder, and sees what the last one wrote.
fn lock_try() {
    let other = core(1, add);
    let tried = LOCK.try_acquire();
    if tried {
        SUM.store(SUM.load(Relaxed) + 1, Relaxed);
        LOCK.release();
    }
    join([other]);
    assert_eq!(SUM.load(Relaxed), 1 + u32::from(tried));
}

static LANES: LaneModel = LaneModel::new();
/// What was written before the item of this number was pushed.
static PAYLOAD: [AtomicU32; 4] = [const { AtomicU32::new(0) }; 4];

fn push(item: usize) {
    PAYLOAD[item].store(item as u32, Relaxed);
    LANES.push(item);
}

/// Takes a batch, adds its items to `got`, and sees that their payload came along.
fn take(got: &mut Vec<usize>) {
    LANES.batch(|item| {
        assert_eq!(
            PAYLOAD[item].load(Relaxed),
            item as u32,
            "the payload of {item} is not visible"
        );
        got.push(item);
    });
}

/// Two senders against two batches: nothing is lost, doubled or seen without what was written before it (BH-3).
fn lanes() {
    let others = [core(1, || push(1)), core(2, || push(2))];
    let mut got = Vec::new();
    take(&mut got);
    take(&mut got);
    join(others);
    take(&mut got);
    got.sort_unstable();
    assert_eq!(got, [1, 2]);
}

/// One sender, three items, while batches begin and end: in the order in which they were sent (CS-18).
fn lanes_fifo() {
    let other = core(1, || (1..=3).for_each(push));
    let mut got = Vec::new();
    take(&mut got);
    arch::relax();
    take(&mut got);
    join([other]);
    take(&mut got);
    assert_eq!(got, [1, 2, 3]);
}

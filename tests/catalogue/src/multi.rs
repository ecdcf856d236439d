//! Several IOThreads at once: beginning, end, locks.
use ironthread::aio::{self, AioError, Callback};
use ironthread::arch;
use ironthread::config::MAX_CORES;
use ironthread::sync::ContextLock;

use crate::World;
use crate::support::{Count, Log, send};
use crate::world::watch;

/// Ends the loop of `core` and waits for that; it does not begin again before it is let.
fn stop(w: &World, core: usize) {
    let before = w.ended(core);
    w.hold(core, true);
    aio::stop(w.io(core));
    w.until(|| w.ended(core) > before);
    assert!(!aio::is_running(w.io(core)));
}

/// Lets the loop of `core` begin again.
fn start(w: &World, core: usize) {
    w.hold(core, false);
    watch(|| aio::is_running(w.io(core)));
}

/// Every IOThread begins, learns its number from the main loop, which waits for that, and ends.
pub fn lifecycle(w: &World) {
    static IDS: [Count; MAX_CORES] = [const { Count::new() }; MAX_CORES];
    for _ in 0..if w.long { 500 } else { 20 } {
        for (core, id) in IDS.iter().enumerate().take(w.cores()).skip(1) {
            id.set(0);
            let learn = Callback::new(
                &|core| {
                    assert_eq!(arch::current_core(), Some(core));
                    IDS[core].set(core);
                },
                core,
            );
            aio::run_and_wait(w.io(core), learn).expect("a free record");
            assert_eq!(id.get(), core);
        }
        for core in 1..w.cores() {
            stop(w, core);
        }
        for core in 1..w.cores() {
            start(w, core);
        }
    }
}

/// Work for `core` comes through: its loop runs.
fn expect_alive(w: &World, core: usize) {
    static ALIVE: Count = Count::new();
    ALIVE.set(0);
    for round in 1..=3 {
        aio::run_and_wait(w.io(core), Callback::new(&|_| _ = ALIVE.add(), 0))
            .expect("a free record");
        assert_eq!(ALIVE.get(), round);
    }
}

/// A stop that comes while the loop begins ends it, whether its first iteration has begun or not.
pub fn stop_races_start(w: &World) {
    stop(w, 1);
    for _ in 0..if w.long { 4_000 } else { 200 } {
        let before = w.ended(1);
        w.hold(1, false);
        watch(|| aio::is_running(w.io(1)));
        // From here on the loop goes to its first iteration, or sleeps already; only the stop ends it.
        aio::stop(w.io(1));
        watch(|| w.ended(1) > before);
        w.hold(1, true);
        // It may have begun once more before it was held.
        w.until(|| {
            aio::stop(w.io(1));
            !aio::is_running(w.io(1))
        });
    }
    start(w, 1);
    expect_alive(w, 1);
}

/// A second stop, before or after the loop has ended, is none: the next run of the loop does not end by it.
pub fn stop_twice(w: &World) {
    for _ in 0..20 {
        let before = w.ended(1);
        w.hold(1, true);
        aio::stop(w.io(1));
        aio::stop(w.io(1));
        watch(|| w.ended(1) > before);
        aio::stop(w.io(1));
        start(w, 1);
        expect_alive(w, 1);
        assert_eq!(w.ended(1), before + 1);
    }
}

/// What was sent before the stop runs before the end; what is sent to the stopped loop is refused.
pub fn stop_after_work(w: &World) {
    static RUNS: Count = Count::new();
    RUNS.set(0);
    for round in 1..=10 {
        let before = w.ended(1);
        w.hold(1, true);
        for _ in 0..5 {
            send(w.io(1), &|_| _ = RUNS.add(), 0);
        }
        aio::stop(w.io(1));
        watch(|| w.ended(1) > before);
        assert_eq!(RUNS.get(), round * 5);
        let refused = w
            .io(1)
            .schedule_oneshot("case", Callback::new(&|_| _ = RUNS.add(), 0));
        assert_eq!(refused, Err(AioError::Stopped));
        start(w, 1);
        expect_alive(w, 1);
        assert_eq!(RUNS.get(), round * 5);
    }
    expect_alive(w, 1);
}

/// Three cores wait for the lock: they get it in the order in which they came, one at a time.
pub fn lock_fifo(w: &World) {
    static LOCK: ContextLock = ContextLock::new();
    static ORDER: Log = Log::new();
    static INSIDE: Count = Count::new();
    static ENDED: Count = Count::new();
    fn contend(core: usize) {
        LOCK.acquire();
        assert_eq!(INSIDE.add(), 1);
        ORDER.push(core);
        // A recursive level does not queue behind those that wait.
        LOCK.acquire();
        LOCK.release();
        INSIDE.set(0);
        LOCK.release();
        ENDED.add();
    }
    for order in [[1, 2, 3], [3, 2, 1], [2, 3, 1], [1, 3, 2]] {
        ENDED.set(0);
        LOCK.acquire();
        for (waiting, core) in order.into_iter().enumerate() {
            send(w.io(core), &contend, core);
            watch(|| LOCK.queued() as usize == waiting + 2);
        }
        ORDER.expect(&[]);
        LOCK.release();
        watch(|| ENDED.get() == 3);
        ORDER.expect(&order);
    }
}

/// Every core increments what the lock protects, as fast as it can: no increment is lost and no core starves.
pub fn lock_contended(w: &World) {
    static LOCK: ContextLock = ContextLock::new();
    static SUM: Count = Count::new();
    static ENDED: Count = Count::new();
    static ROUNDS: Count = Count::new();
    fn contend(_: usize) {
        for _ in 0..ROUNDS.get() {
            LOCK.acquire();
            // Read and written apart: loses counts unless the lock excludes.
            SUM.set(SUM.get() + 1);
            LOCK.release();
        }
        ENDED.add();
    }
    SUM.set(0);
    ENDED.set(0);
    ROUNDS.set(if w.long { 50_000 } else { 500 });
    for core in 1..w.cores() {
        send(w.io(core), &contend, 0);
    }
    contend(0);
    watch(|| ENDED.get() == w.cores());
    assert_eq!(SUM.get(), w.cores() * ROUNDS.get());
}

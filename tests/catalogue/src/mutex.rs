//! The coroutines' lock: QEMU's `CoMutex`, alone and under contention from several contexts.
use ironthread::aio::{self, AioContext, CoroutineHandle, Mutex};
use ironthread::arch;
use ironthread::config::MAX_CORES;

use crate::World;
use crate::support::{Count, Log, Place, drain};

static ORDER: Log = Log::new();

/// The second locker is suspended and goes on when the first unlocks, though that one goes on running.
fn two_lockers(w: &World, lockable: fn(&'static Mutex<usize>, usize) -> CoroutineHandle) {
    static MUTEX: Mutex<usize> = Mutex::new(0);
    *MUTEX.try_lock().expect("it is free") = 0;
    let handles = [1, 2].map(|which| lockable(&MUTEX, which));
    drain(w.main());
    assert!(MUTEX.is_held() && MUTEX.try_lock().is_none());
    // The first is suspended inside, the second waits for it.
    ORDER.expect(&[11]);
    // A wake that is not the unlock does not let it in.
    handles[1].wake();
    drain(w.main());
    ORDER.expect(&[]);
    handles[0].wake();
    drain(w.main());
    ORDER.expect(&[12, 21]);
    handles[1].wake();
    drain(w.main());
    ORDER.expect(&[22]);
    assert!(handles.iter().all(CoroutineHandle::is_finished));
    assert_eq!(*MUTEX.try_lock().expect("it is free again"), 12);
}

/// Locks, is suspended inside, unlocks.
pub fn co_mutex(w: &World) {
    two_lockers(w, |mutex, which| {
        let locks = async move {
            let mut guard = mutex.lock().await;
            ORDER.push(10 * which + 1);
            aio::suspend().await;
            *guard = *guard * 10 + which;
            ORDER.push(10 * which + 2);
        };
        aio::main_context()
            .spawn("locks", locks)
            .expect("a free coroutine")
    });
}

/// The same through the form that a caller gives what it wants to lock: here a function over the guard.
pub fn co_mutex_lockable(w: &World) {
    async fn with<T: Send>(mutex: &'static Mutex<T>, which: usize, change: fn(&mut T, usize)) {
        let mut guard = mutex.lock().await;
        ORDER.push(10 * which + 1);
        aio::suspend().await;
        change(&mut guard, which);
        ORDER.push(10 * which + 2);
    }
    two_lockers(w, |mutex, which| {
        let locks = with(mutex, which, |value, which| *value = *value * 10 + which);
        aio::main_context()
            .spawn("locks", locks)
            .expect("a free coroutine")
    });
}

/// What the mutex protects: read and written apart, so that counts are lost unless it excludes.
static SUM: Mutex<usize> = Mutex::new(0);
static TOTAL: Count = Count::new();
static INSIDE: Count = Count::new();
static STOP: Count = Count::new();
static OWN: [Count; MAX_CORES] = [const { Count::new() }; MAX_CORES];
static HANDLES: [Place<CoroutineHandle>; MAX_CORES] = [const { Place::new() }; MAX_CORES];

async fn increments(context: &'static AioContext) {
    let core = context.core();
    while STOP.get() == 0 {
        {
            let mut sum = SUM.lock().await;
            assert_eq!(arch::current_core(), Some(core), "resumed at home");
            assert_eq!(INSIDE.add(), 1, "two hold the mutex");
            let before = *sum;
            if before % 4 == 0 {
                // Others come to wait.
                aio::yield_now().await;
            }
            *sum = before + 1;
            INSIDE.set(0);
        }
        TOTAL.add();
        OWN[core].add();
        // Others of this context have their turn, also when nobody contends.
        aio::yield_now().await;
    }
}

/// A coroutine in each of `contexts` increments under the mutex; at the end the sum is what they count apart.
fn contend(w: &World, contexts: &[&'static AioContext], rounds: usize) {
    *SUM.try_lock().expect("it is free") = 0;
    for count in OWN.iter().chain([&TOTAL, &INSIDE, &STOP]) {
        count.set(0);
    }
    for context in contexts {
        let handle = context.spawn("increments", increments(context));
        HANDLES[context.core()].set(handle.expect("a free coroutine"));
    }
    // Every one gets its turns: nobody starves.
    w.until(|| {
        contexts
            .iter()
            .all(|context| OWN[context.core()].get() >= rounds)
    });
    STOP.set(1);
    for context in contexts {
        let handle = HANDLES[context.core()].take();
        w.until(|| handle.is_finished());
    }
    assert_eq!(*SUM.try_lock().expect("it is free again"), TOTAL.get());
}

/// A coroutine in every context of the machine.
pub fn contended(w: &World) {
    let all: [_; MAX_CORES] = core::array::from_fn(aio::context);
    contend(w, &all[..w.cores()], if w.long { 200_000 } else { 1_000 });
}

/// Two contexts, for longer: the unlock that meets a locker that is just about to wait.
pub fn handoff(w: &World) {
    contend(
        w,
        &[w.main(), w.io(1)],
        if w.long { 500_000 } else { 3_000 },
    );
}

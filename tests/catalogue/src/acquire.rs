//! The context lock, and the loop that gives one level of it back while it waits.
use ironthread::aio::{self, EventNotifier};
use ironthread::arch;
use ironthread::sync::ContextLock;

use crate::World;
use crate::support::{Count, drain, register, send};
use crate::world::watch;

/// The lock is recursive: three levels taken by one core are three to give back, and only then is it free.
pub fn nesting(w: &World) {
    static LOCK: ContextLock = ContextLock::new();
    static TRIED: Count = Count::new();
    static GOT: Count = Count::new();
    let others_get = || {
        TRIED.set(0);
        send(
            w.io(1),
            &|_| {
                GOT.set(usize::from(LOCK.try_acquire()));
                if GOT.get() == 1 {
                    LOCK.release();
                }
                TRIED.set(1);
            },
            0,
        );
        watch(|| TRIED.get() == 1);
        GOT.get() == 1
    };
    assert!(others_get());
    for depth in 1..=3 {
        LOCK.acquire();
        assert_eq!(LOCK.depth(), depth);
    }
    for depth in [2, 1, 0] {
        assert!(!others_get(), "let in at depth {}", depth + 1);
        LOCK.release();
        assert_eq!(LOCK.depth(), depth);
    }
    assert!(others_get());
}

static NOTIFIER: EventNotifier = EventNotifier::new();
static CALLS: Count = Count::new();
static ACQUIRED: Count = Count::new();
/// The other core may go on.
static GO: Count = Count::new();
/// Sleeps of the main loop after which it has gone to sleep once more.
static SLEEPS: Count = Count::new();
/// Turns of the main loop when it went to sleep.
static TURNS: Count = Count::new();

fn clear(_: usize) {
    assert!(NOTIFIER.test_and_clear());
    CALLS.add();
}

fn sleeps() -> usize {
    aio::main_context().stats().sleeps as usize
}

/// On the other core: sets the notifier, before the main loop waits or while it does, and then takes the lock.
fn set_and_acquire(during: usize) {
    watch(|| GO.get() == 1);
    if during == 1 {
        watch(|| sleeps() > SLEEPS.get());
    }
    NOTIFIER.set();
    let main = aio::main_context();
    main.acquire();
    main.release();
    ACQUIRED.set(1);
}

/// With one level held outside, a poll that waits ends by the event; nobody gets in meanwhile.
fn acquire(w: &World, during: usize) {
    CALLS.set(0);
    ACQUIRED.set(0);
    GO.set(0);
    let main = w.main();
    register(main, &NOTIFIER, &clear);
    drain(main);
    send(w.io(1), &set_and_acquire, during);
    main.acquire();
    SLEEPS.set(sleeps());
    GO.set(1);
    if during == 0 {
        // Until the other core waits for the lock.
        watch(|| main.context_lock().queued() == 2);
    }
    assert!(
        main.poll(true),
        "the event ends the wait, contention does not"
    );
    assert_eq!(CALLS.get(), 1);
    // It does wait for the lock, and it does not get it.
    watch(|| main.context_lock().queued() == 2);
    assert_eq!(ACQUIRED.get(), 0);
    main.release();
    watch(|| ACQUIRED.get() == 1);
    assert!(!main.poll(false));
    main.unregister(&NOTIFIER);
}

/// The event is there before the main loop polls.
pub fn set_before_poll(w: &World) {
    acquire(w, 0);
}

/// The event comes while the main loop waits.
pub fn set_during_poll(w: &World) {
    acquire(w, 1);
}

/// With no level held outside, another core gets the lock while the loop waits; that neither wakes the loop nor counts
/// as progress.
pub fn mirror(w: &World) {
    fn other(_: usize) {
        watch(|| sleeps() > SLEEPS.get());
        let main = aio::main_context();
        TURNS.set(main.stats().turns as usize);
        main.acquire();
        assert_eq!(CALLS.get(), 0);
        ACQUIRED.set(1);
        // A wake-up that acquire or release sent would make the loop turn in this time.
        let end = arch::now_ns() + 2_000_000;
        watch(|| arch::now_ns() > end);
        main.release();
        let end = arch::now_ns() + 2_000_000;
        watch(|| arch::now_ns() > end);
        assert_eq!(
            main.stats().turns as usize,
            TURNS.get(),
            "contention woke the loop"
        );
        NOTIFIER.set();
    }
    CALLS.set(0);
    ACQUIRED.set(0);
    let main = w.main();
    register(main, &NOTIFIER, &clear);
    drain(main);
    SLEEPS.set(sleeps());
    let kicks = main.stats().kicks;
    send(w.io(1), &other, 0);
    assert!(
        main.poll(true),
        "the event ends the wait, contention does not"
    );
    assert_eq!((ACQUIRED.get(), CALLS.get()), (1, 1));
    assert!(main.stats().kicks <= kicks + 1, "only the event kicks");
    main.unregister(&NOTIFIER);
}

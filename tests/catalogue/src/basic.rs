//! Coroutines by themselves: QEMU's `test-coroutine`, with a spawn and a poll in place of enter.
use ironthread::aio::{self, CoroutineHandle, current_coroutine};
use ironthread::config::{COROUTINES, MAX_CORES};

use crate::World;
use crate::support::{Count, Log, Place, drain};

static STEPS: Count = Count::new();
static ORDER: Log = Log::new();
static HANDLE: Place<CoroutineHandle> = Place::new();

/// Inside a coroutine there is a current one, outside there is none.
pub fn in_coroutine(w: &World) {
    STEPS.set(0);
    assert_eq!(current_coroutine(), None);
    w.main()
        .spawn("in", async {
            assert!(current_coroutine().is_some());
            STEPS.add();
        })
        .expect("a free coroutine");
    assert_eq!(STEPS.get(), 0);
    drain(w.main());
    assert_eq!(STEPS.get(), 1);
    assert_eq!(current_coroutine(), None);
}

/// The current one is the one that was spawned, before and after it was suspended.
pub fn myself(w: &World) {
    let handle = w
        .main()
        .spawn("self", async {
            assert_eq!(current_coroutine(), Some(HANDLE.get()));
            aio::suspend().await;
            assert_eq!(current_coroutine(), Some(HANDLE.get()));
        })
        .expect("a free coroutine");
    HANDLE.set(handle);
    drain(w.main());
    assert!(!handle.is_finished());
    handle.wake();
    drain(w.main());
    assert!(handle.is_finished());
}

/// Entered is the one that runs and no other: not before, not while it is suspended, not when it has ended.
pub fn entered(w: &World) {
    let entered = || current_coroutine() == HANDLE.peek();
    HANDLE.set(
        w.main()
            .spawn("entered", async move {
                assert!(entered());
                aio::suspend().await;
                assert!(entered());
            })
            .expect("a free coroutine"),
    );
    let other = async move {
        assert!(!entered());
    };
    assert!(!entered());
    w.main().spawn("other", other).expect("a free coroutine");
    drain(w.main());
    assert!(!entered() && !HANDLE.get().is_finished());
    HANDLE.get().wake();
    assert!(!entered(), "a wake runs nothing");
    drain(w.main());
    assert!(!entered() && HANDLE.take().is_finished());
}

/// It suspends itself five times and is resumed as often.
pub fn yields(w: &World) {
    STEPS.set(0);
    let handle = w
        .main()
        .spawn("yield", async {
            for _ in 0..5 {
                STEPS.add();
                aio::suspend().await;
            }
        })
        .expect("a free coroutine");
    let mut resumed = 0;
    drain(w.main());
    while !handle.is_finished() {
        assert_eq!(STEPS.get(), resumed + 1);
        resumed += 1;
        handle.wake();
        assert!(w.main().poll(false));
        assert!(!w.main().poll(false), "one wake, one step");
    }
    assert_eq!((resumed, STEPS.get()), (5, 5));
}

/// Each enters the next and goes on when that one has ended, as deep as there are coroutines.
pub fn nesting(w: &World) {
    const DEPTH: usize = COROUTINES * MAX_CORES;
    static HANDLES: [Place<CoroutineHandle>; DEPTH] = [const { Place::new() }; DEPTH];
    static RETURNED: Count = Count::new();
    fn enter(depth: usize) {
        let level = async move {
            STEPS.add();
            if depth + 1 < DEPTH {
                enter(depth + 1);
                aio::suspend().await;
            }
            assert_eq!(RETURNED.add(), DEPTH - depth);
            if depth > 0 {
                HANDLES[depth - 1].get().wake();
            }
        };
        let handle = aio::main_context().spawn("level", level);
        HANDLES[depth].set(handle.expect("a free coroutine"));
    }
    assert_eq!(aio::coroutines_in_use().0, 0);
    STEPS.set(0);
    RETURNED.set(0);
    enter(0);
    drain(w.main());
    assert_eq!((STEPS.get(), RETURNED.get()), (DEPTH, DEPTH));
    assert!(HANDLES.iter().all(|handle| handle.take().is_finished()));
}

/// One ends, and its slot serves the next.
pub fn lifecycle(w: &World) {
    STEPS.set(0);
    for round in 1..=3 {
        let handle = w
            .main()
            .spawn("life", async {
                STEPS.add();
            })
            .expect("a free coroutine");
        assert!(!handle.is_finished());
        drain(w.main());
        assert!(handle.is_finished());
        assert_eq!(STEPS.get(), round);
        assert_eq!(aio::coroutines_in_use().0, 0);
    }
    // Ended, too, by being cancelled where it is suspended.
    let handle = w
        .main()
        .spawn("cancelled", async {
            aio::suspend().await;
            unreachable!("it was cancelled");
        })
        .expect("a free coroutine");
    drain(w.main());
    assert!(handle.cancel());
    drain(w.main());
    assert!(handle.is_finished() && !handle.cancel());
}

/// Two that take turns: 1.1 2.1 1.2 2.2 1.3.
pub fn order(w: &World) {
    for which in 1..=2 {
        let steps = if which == 1 { 3 } else { 2 };
        let turns = async move {
            for step in 1..=steps {
                ORDER.push(10 * which + step);
                aio::yield_now().await;
            }
        };
        w.main().spawn("turns", turns).expect("a free coroutine");
    }
    ORDER.expect(&[]);
    drain(w.main());
    ORDER.expect(&[11, 21, 12, 22, 13]);
}

/// Handles of a coroutine that has ended do nothing, also when its slot serves another.
pub fn no_dangling_access(w: &World) {
    STEPS.set(0);
    let spawn = || {
        w.main()
            .spawn("slot", async {
                STEPS.add();
                aio::suspend().await;
                STEPS.add();
            })
            .expect("a free coroutine")
    };
    let first = spawn();
    drain(w.main());
    first.wake();
    // Woken once more in its last step.
    first.wake();
    drain(w.main());
    assert!(first.is_finished());
    assert_eq!(STEPS.get(), 2);
    let second = spawn();
    assert_ne!(first, second);
    drain(w.main());
    assert_eq!(STEPS.get(), 3);
    assert!(!first.wake() && !first.cancel());
    assert!(first.schedule_in(w.main()).is_err());
    assert!(!w.main().poll(false));
    assert!(!second.is_finished());
    assert!(second.wake());
    drain(w.main());
    assert_eq!(STEPS.get(), 4);
}

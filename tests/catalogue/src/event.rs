//! Event notifiers.
use ironthread::aio::EventNotifier;

use crate::World;
use crate::support::{Count, drain, register};

static CALLS: Count = Count::new();
static LEFT: Count = Count::new();
static NOTIFIER: EventNotifier = EventNotifier::new();

fn clear(_: usize) {
    if NOTIFIER.test_and_clear() {
        CALLS.add();
    }
}

/// Adding and removing calls nothing and is no progress.
pub fn add_remove(w: &World) {
    CALLS.set(0);
    let main = w.main();
    register(main, &NOTIFIER, &clear);
    assert!(!main.poll(false));
    assert_eq!(CALLS.get(), 0);
    main.unregister(&NOTIFIER);
    assert!(!main.poll(false));
    assert_eq!(CALLS.get(), 0);
}

/// One set is one call.
pub fn wait(w: &World) {
    CALLS.set(0);
    let main = w.main();
    register(main, &NOTIFIER, &clear);
    drain(main);
    assert_eq!(CALLS.get(), 0);
    NOTIFIER.set();
    assert!(main.poll(false));
    assert_eq!(CALLS.get(), 1);
    assert!(!main.poll(false));
    assert_eq!(CALLS.get(), 1);
    main.unregister(&NOTIFIER);
    assert!(!main.poll(false));
    assert_eq!(CALLS.get(), 1);
}

/// A handler that sets its own notifier again is called once a poll.
pub fn flush(w: &World) {
    fn again(_: usize) {
        if NOTIFIER.test_and_clear() {
            CALLS.add();
            LEFT.set(LEFT.get() - 1);
            if LEFT.get() > 0 {
                NOTIFIER.set();
            }
        }
    }
    CALLS.set(0);
    LEFT.set(10);
    let main = w.main();
    register(main, &NOTIFIER, &again);
    drain(main);
    assert_eq!((CALLS.get(), LEFT.get()), (0, 10));
    NOTIFIER.set();
    assert!(main.poll(false));
    assert_eq!((CALLS.get(), LEFT.get()), (1, 9));
    assert!(main.poll(false));
    assert_eq!((CALLS.get(), LEFT.get()), (2, 8));
    while LEFT.get() > 0 {
        assert!(main.poll(true));
    }
    assert_eq!(CALLS.get(), 10);
    assert!(!main.poll(false));
    main.unregister(&NOTIFIER);
    assert!(!main.poll(false));
    assert_eq!(CALLS.get(), 10);
}

static DRAINED: Count = Count::new();

fn drained_begin(w: &World) {
    if DRAINED.add() == 1 {
        w.main().unregister(&NOTIFIER);
    }
}

fn drained_end(w: &World) {
    DRAINED.set(DRAINED.get() - 1);
    if DRAINED.get() == 0 {
        register(w.main(), &NOTIFIER, &clear);
    }
}

/// QEMU's contexts had a switch for handlers that take work from outside; here a source goes and comes back in its
/// drained-begin and drained-end callbacks. What has to hold is the same: inside, however deep, its event is neither
/// handled nor lost, and the last end makes the loop see it.
pub fn external_client(w: &World) {
    for depth in 1..=2 {
        CALLS.set(0);
        DRAINED.set(0);
        let main = w.main();
        register(main, &NOTIFIER, &clear);
        NOTIFIER.set();
        for _ in 0..depth {
            drained_begin(w);
        }
        for _ in 0..depth {
            assert!(!main.poll(false));
            assert!(NOTIFIER.test_and_clear(), "the event is still there");
            NOTIFIER.set();
            drained_end(w);
        }
        assert!(main.poll(false));
        assert_eq!(CALLS.get(), 1);
        assert!(!NOTIFIER.is_set());
        main.unregister(&NOTIFIER);
    }
}

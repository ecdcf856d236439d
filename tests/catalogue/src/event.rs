//! Event notifiers.
use ironthread::aio::{self, Callback, EventNotifier};

use crate::World;
use crate::support::{Count, drain, poll_here, register, send};
use crate::world::watch;

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

static PAIR: [EventNotifier; 2] = [const { EventNotifier::new() }; 2];

/// A handler removes another that is due in the same pass: that one is not called, and its event is kept.
pub fn remove_due(w: &World) {
    fn remove_other(which: usize) {
        assert!(PAIR[which].test_and_clear());
        CALLS.add();
        aio::main_context().unregister(&PAIR[1 - which]);
    }
    CALLS.set(0);
    let main = w.main();
    for (which, notifier) in PAIR.iter().enumerate() {
        main.register(notifier, "pair", Callback::new(&remove_other, which), None)
            .expect("a free handler");
    }
    drain(main);
    PAIR.iter().for_each(EventNotifier::set);
    assert!(main.poll(false));
    drain(main);
    assert_eq!(CALLS.get(), 1);
    assert_eq!(
        PAIR.iter().filter(|notifier| notifier.is_set()).count(),
        1,
        "the event of the one that was not called is kept"
    );
    for notifier in &PAIR {
        main.unregister(notifier);
        notifier.test_and_clear();
    }
}

/// A handler removes itself and registers another function for the same notifier, which is still set: the new one is
/// called in the next pass, not in this one.
pub fn replace_self(w: &World) {
    fn first(_: usize) {
        CALLS.add();
        let main = aio::main_context();
        main.unregister(&NOTIFIER);
        register(main, &NOTIFIER, &second);
    }
    fn second(_: usize) {
        CALLS.add();
        // Replaced in place, this time.
        register(aio::main_context(), &NOTIFIER, &clear);
    }
    CALLS.set(0);
    let main = w.main();
    register(main, &NOTIFIER, &first);
    drain(main);
    NOTIFIER.set();
    for calls in 1..=3 {
        assert!(main.poll(false));
        assert_eq!(CALLS.get(), calls);
    }
    assert!(!NOTIFIER.is_set() && !main.poll(false));
    assert_eq!(CALLS.get(), 3);
    main.unregister(&NOTIFIER);
}

/// A source whose poll check always says yes polls the loop in its handler: the nested poll, which would find that
/// source ready at once, does not call it again, but goes on to what else there is.
pub fn nested_aio_poll(w: &World) {
    static DUMMY: EventNotifier = EventNotifier::new();
    static INSIDE: Count = Count::new();
    static DUMMY_CALLS: Count = Count::new();
    static LOOKS: Count = Count::new();
    static SENT: Count = Count::new();
    fn ready(_: usize) {
        assert_eq!(INSIDE.add(), 1, "the handler was called inside itself");
        NOTIFIER.test_and_clear();
        let (before, looks) = (DUMMY_CALLS.get(), LOOKS.get());
        DUMMY.set();
        while DUMMY_CALLS.get() == before {
            poll_here(true);
        }
        assert_eq!(LOOKS.get(), looks, "asked while its handler runs");
        CALLS.add();
        INSIDE.set(0);
    }
    for count in [&INSIDE, &DUMMY_CALLS, &LOOKS, &CALLS] {
        count.set(0);
    }
    let main = w.main();
    register(main, &DUMMY, &|_| {
        if DUMMY.test_and_clear() {
            DUMMY_CALLS.add();
        }
    });
    main.register(
        &NOTIFIER,
        "polled",
        Callback::new(&ready, 0),
        Some(&|_| {
            LOOKS.add();
            true
        }),
    )
    .expect("a free handler");
    // It is asked once because it came.
    drain(main);
    LOOKS.set(0);
    main.set_poll_max_ns(1_000_000_000);
    // Waits that end by this handler teach the loop to poll for it; from then on nobody sets its notifier.
    while LOOKS.get() == 0 {
        let sleeps = main.stats().sleeps;
        SENT.set(0);
        send(
            w.io(1),
            &|sleeps| {
                watch(|| aio::main_context().stats().sleeps > sleeps as u64 || LOOKS.get() > 0);
                NOTIFIER.set();
                SENT.set(1);
            },
            sleeps as usize,
        );
        let calls = CALLS.get();
        while CALLS.get() == calls {
            main.poll(true);
        }
        watch(|| SENT.get() == 1);
    }
    let calls = CALLS.get();
    w.until(|| CALLS.get() > calls + 3);
    main.set_poll_max_ns(0);
    main.unregister(&NOTIFIER);
    main.unregister(&DUMMY);
    NOTIFIER.test_and_clear();
}

/// Ping-pong between loops that sleep in between, with nothing that would end a wait in which a wake-up was lost.
pub fn lost_wakeups(w: &World) {
    static TURN: Count = Count::new();
    static ROUNDS: Count = Count::new();
    fn serve(which: usize) {
        assert!(PAIR[which].test_and_clear());
        // The loops of both sides go to sleep in every order, and sometimes not at all.
        if TURN.add() < ROUNDS.get() {
            PAIR[1 - which].set();
        }
    }
    TURN.set(0);
    ROUNDS.set(if w.long { 200_000 } else { 5_000 });
    let contexts = [w.main(), w.io(1)];
    for (which, (notifier, context)) in PAIR.iter().zip(contexts).enumerate() {
        context
            .register(notifier, "pair", Callback::new(&serve, which), None)
            .expect("a free handler");
    }
    PAIR[1].set();
    while TURN.get() < ROUNDS.get() {
        // The last turn is the main loop's, since their number is even.
        w.main().poll(true);
    }
    for (notifier, context) in PAIR.iter().zip(contexts) {
        context.unregister(notifier);
    }
}

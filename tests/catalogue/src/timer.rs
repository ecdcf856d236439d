//! Timers.
use ironthread::aio::{EventNotifier, Timer};
use ironthread::arch;

use crate::World;
use crate::support::{Count, Place, drain, register, timer};

static FIRES: Count = Count::new();
static TIMERS: [Place<Timer>; 1] = [const { Place::new() }; 1];

const DELAY: u64 = 100_000_000;

/// A timer that arms itself once more: it fires in polls only, not before its time, and a poll that waits ends at it.
pub fn schedule(w: &World) {
    static DUMMY: EventNotifier = EventNotifier::new();
    static DUE: Place<u64> = Place::new();
    fn fire(_: usize) {
        assert!(arch::now_ns() >= DUE.get(), "early");
        if FIRES.add() == 1 {
            TIMERS[0].get().arm_at(DUE.set(arch::now_ns() + DELAY));
        }
    }
    FIRES.set(0);
    let main = w.main();
    register(main, &DUMMY, &|_| unreachable!("nobody sets it"));
    drain(main);
    let timer = TIMERS[0].set(timer(main, &fire, 0));
    timer.arm_at(DUE.set(arch::now_ns() + DELAY));
    assert!(timer.is_pending());
    // A host that stalls may let the time pass at once.
    if !main.poll(false) {
        assert_eq!(FIRES.get(), 0);
        w.watch(|| arch::now_ns() > DUE.get() + DELAY / 10);
        assert_eq!(FIRES.get(), 0, "it fired without a poll");
        assert!(main.poll(false));
    }
    assert_eq!(FIRES.get(), 1);
    assert!(timer.is_pending());
    while FIRES.get() < 2 {
        main.poll(true);
    }
    assert!(arch::now_ns() >= DUE.get());
    assert!(!timer.is_pending() && !main.poll(false));
    assert_eq!(FIRES.get(), 2);
    main.unregister(&DUMMY);
    TIMERS[0].take().delete().expect("it is not armed");
}

//! Timers.
use ironthread::aio::{self, AioError, EventNotifier, Timer};
use ironthread::arch;

use crate::World;
use crate::support::{Count, Log, Place, drain, register, send, timer};
use crate::world::watch;

static FIRES: Count = Count::new();
static TIMERS: [Place<Timer>; 3] = [const { Place::new() }; 3];

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

static ORDER: Log = Log::new();

fn log(which: usize) {
    ORDER.push(which);
}

/// Equal deadlines fire in the order of arming, in one poll, behind earlier ones that were armed later.
pub fn equal_deadlines(w: &World) {
    let all = [0, 1, 2, 3].map(|which| timer(w.main(), &log, which));
    let past = arch::now_ns();
    for which in [2, 0, 1] {
        all[which].arm_at(past);
    }
    all[3].arm_at(past - 1);
    // Armed anew it counts as armed later.
    all[2].arm_at(past);
    assert!(w.main().poll(false));
    ORDER.expect(&[3, 0, 1, 2]);
    assert!(!w.main().poll(false));
    for timer in all {
        timer.delete().expect("it has fired");
    }
}

/// A timer that arms itself for now, or for the past, fires once a poll.
pub fn rearm_now(w: &World) {
    fn again(_: usize) {
        if FIRES.add() < 10 {
            TIMERS[0].get().arm_at(arch::now_ns() - 1);
        }
    }
    FIRES.set(0);
    TIMERS[0]
        .set(timer(w.main(), &again, 0))
        .arm_at(arch::now_ns());
    for fires in 1..=10 {
        assert!(w.main().poll(fires % 2 == 0));
        assert_eq!(FIRES.get(), fires);
    }
    assert!(!w.main().poll(false));
    TIMERS[0].take().delete().expect("it is not armed");
}

/// A callback deletes another timer that is due in the same run, and cancels a third: neither fires.
pub fn delete_other(w: &World) {
    fn first(which: usize) {
        ORDER.push(which);
        let other = TIMERS[0].take();
        assert_eq!(other.delete(), Err(AioError::Busy), "it is armed");
        other.cancel();
        other.delete().expect("it is not armed any more");
        assert!(
            !other.arm_at(0) && !other.is_pending(),
            "its handle is stale"
        );
        TIMERS[1].get().cancel();
        // Armed again in the same run, it waits for the next.
        TIMERS[2].get().arm_at(0);
    }
    let main = w.main();
    let now = arch::now_ns();
    let begin = timer(main, &first, 0);
    begin.arm_at(now);
    for (which, place) in TIMERS.iter().enumerate() {
        place.set(timer(main, &log, which + 1)).arm_at(now);
    }
    assert!(main.poll(false));
    ORDER.expect(&[0]);
    assert!(main.poll(false));
    ORDER.expect(&[3]);
    assert!(!main.poll(false));
    begin.delete().expect("it has fired");
    TIMERS[1].take().delete().expect("it was cancelled");
    TIMERS[2].take().delete().expect("it has fired");
}

/// A loop that sleeps for ever, or until a far deadline, is woken by a timer that another core arms.
pub fn arm_from_elsewhere(w: &World) {
    FIRES.set(0);
    let far = timer(w.main(), &|_| unreachable!("an hour has not passed"), 0);
    let near = TIMERS[0].set(timer(w.main(), &|_| _ = FIRES.add(), 0));
    for round in 1..=20 {
        if round > 10 {
            far.arm_at(arch::now_ns() + 3_600_000_000_000);
        }
        let sleeps = w.main().stats().sleeps as usize;
        send(
            w.io(1),
            &|sleeps| {
                watch(|| aio::main_context().stats().sleeps as usize > sleeps);
                TIMERS[0].get().arm_at(arch::now_ns() + 100_000);
            },
            sleeps,
        );
        while FIRES.get() < round {
            w.main().poll(true);
        }
    }
    far.cancel();
    far.delete().expect("cancelled");
    near.delete().expect("it has fired");
}

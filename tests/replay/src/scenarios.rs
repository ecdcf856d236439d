//! The races: what each core does, and what must be true at the end.
//!
//! A loop ends itself when it has seen everything that it is to see, so that nobody's `stop` wakes it by accident.
use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use ironthread::aio::{
    self, AioContext, BottomHalf, Callback, EventNotifier, Timer, WorkHandle, WorkResult, run_loop,
    run_on, suspend, wait_kick, wait_while,
};
use ironthread::arch;
use ironthread::arch::host::preempt::{CoreState, point};
use ironthread::sync::ContextLock;

use crate::machine::Body;

/// A race: its name, its cores, and what is checked when all have ended.
pub struct Scenario {
    pub name: &'static str,
    pub cores: fn() -> Vec<Body>,
    pub check: fn(),
}

pub const ALL: [Scenario; 12] = [
    Scenario {
        name: "notify",
        cores: notify,
        check: notify_check,
    },
    Scenario {
        name: "lock",
        cores: lock,
        check: lock_check,
    },
    Scenario {
        name: "bottom-half",
        cores: bottom_half,
        check: bottom_half_check,
    },
    Scenario {
        name: "coroutine",
        cores: coroutine,
        check: coroutine_check,
    },
    Scenario {
        name: "run-on",
        cores: work,
        check: work_check,
    },
    Scenario {
        name: "timer",
        cores: timer,
        check: timer_check,
    },
    Scenario {
        name: "stop",
        cores: stop,
        check: stop_check,
    },
    Scenario {
        name: "wait-kick",
        cores: waiting,
        check: nothing_else,
    },
    Scenario {
        name: "wait-work",
        cores: work_of_others,
        check: nothing_else,
    },
    super::moving::SCENARIO,
    super::interrupts::BOTH_SIDES,
    super::interrupts::ALONE,
];

/// Counters of a scenario; each seed runs in a process of its own, so they begin at 0.
pub static COUNT: [AtomicUsize; 8] = [const { AtomicUsize::new(0) }; 8];

pub fn add(counter: usize) -> usize {
    COUNT[counter].fetch_add(1, SeqCst) + 1
}

pub fn get(counter: usize) -> usize {
    COUNT[counter].load(SeqCst)
}

/// The context of `core`, attached before the race begins.
pub fn attached(core: usize) -> &'static AioContext {
    let context = &aio::CONTEXTS[core];
    let mut state = CoreState::new(Some(core));
    state.swap();
    context.attach(core);
    state.swap();
    context
}

pub fn body(f: impl FnOnce() + 'static) -> Body {
    Box::new(f)
}

// --- notify against sleep ---

static EVENT: EventNotifier = EventNotifier::new();

const ROUNDS: usize = 6;

fn notify() -> Vec<Body> {
    let context = attached(0);
    let ready = |_| {
        if EVENT.test_and_clear() {
            add(0);
        }
    };
    static READY: OnceLock<Box<dyn Fn(usize) + Send + Sync>> = OnceLock::new();
    let ready: &'static (dyn Fn(usize) + Sync) = READY.get_or_init(|| Box::new(ready));
    context
        .register(&EVENT, "event", Callback::new(ready, 0), None)
        .expect("a handler");
    vec![
        body(move || {
            for round in 1..=ROUNDS {
                while get(0) < round {
                    context.poll(true);
                }
                add(1);
                arch::kick(1);
            }
        }),
        // One wake-up at a time, so that none covers for another.
        body(move || {
            for round in 1..=ROUNDS {
                if round % 2 == 0 {
                    EVENT.set();
                } else {
                    add(0);
                    context.notify();
                }
                while get(1) < round {
                    let masked = arch::irq_mask();
                    arch::wait(None);
                    arch::irq_restore(masked);
                }
            }
        }),
    ]
}

fn notify_check() {
    assert_eq!((get(0), get(1)), (ROUNDS, ROUNDS));
}

// --- the context lock: register and sleep, three at it ---

static LOCK: ContextLock = ContextLock::new();

fn contender() -> Body {
    body(|| {
        for _ in 0..3 {
            LOCK.acquire();
            assert_eq!(add(0), 1, "two cores hold one lock");
            point();
            point();
            COUNT[0].store(0, SeqCst);
            add(1);
            LOCK.release();
        }
    })
}

fn lock() -> Vec<Body> {
    vec![contender(), contender(), contender()]
}

fn lock_check() {
    assert_eq!((get(1), LOCK.queued(), LOCK.depth()), (9, 0, 0));
}

// --- schedule, cancel and delete from two cores ---

static HALVES: OnceLock<[BottomHalf; 3]> = OnceLock::new();

pub fn made(name: &'static str, f: &'static (dyn Fn(usize) + Sync), argument: usize) -> BottomHalf {
    aio::main_context()
        .bottom_half(name, Callback::new(f, argument))
        .expect("a bottom half")
}

fn bottom_half() -> Vec<Body> {
    let context = attached(0);
    fn finished(core: usize) {
        COUNT[core].store(1, SeqCst);
        if get(1) + get(2) == 2 {
            assert!(get(0) >= 1, "a schedule was lost");
            aio::stop(aio::main_context());
        }
    }
    let [shared, ..] = *HALVES.get_or_init(|| {
        [
            made(
                "shared",
                &|_| {
                    add(0);
                },
                0,
            ),
            made("one", &finished, 1),
            made("two", &finished, 2),
        ]
    });
    let end = |index: usize| HALVES.get().expect("made")[index].schedule();
    vec![
        body(move || run_loop(context)),
        body(move || {
            shared.schedule();
            shared.cancel();
            shared.schedule();
            end(1);
        }),
        body(move || {
            let own = made(
                "own",
                &|_| {
                    add(3);
                },
                0,
            );
            own.schedule();
            shared.schedule();
            own.delete();
            assert!(!own.schedule(), "a deleted bottom half was scheduled");
            end(2);
        }),
    ]
}

fn bottom_half_check() {
    assert!(get(0) <= 3 && get(3) <= 1, "{} and {} runs", get(0), get(3));
    assert_eq!(
        aio::main_context().stats().bottom_halves_in_use,
        3,
        "a record was lost"
    );
}

// --- a coroutine that suspends while it is woken ---

fn coroutine() -> Vec<Body> {
    let context = attached(0);
    let handle = context
        .spawn("waiter", async {
            while get(0) < 3 {
                point();
                suspend().await;
                add(1);
            }
            aio::stop(aio::main_context());
        })
        .expect("a coroutine");
    let waker = move |times: usize| {
        body(move || {
            for _ in 0..times {
                add(0);
                handle.wake();
            }
        })
    };
    vec![body(move || run_loop(context)), waker(1), waker(2)]
}

fn coroutine_check() {
    assert!((0..=4).contains(&get(1)), "{} steps of 3 wakes", get(1));
    // A wake that met its last step frees it when it is taken off the lane; it may have come after the stop.
    let mut state = CoreState::new(Some(0));
    state.swap();
    aio::main_context().poll(false);
    state.swap();
    assert_eq!(aio::coroutines_in_use().0, 0, "the coroutine did not end");
}

// --- run_on, cancelled meanwhile ---

static HANDLE: Mutex<Option<WorkHandle>> = Mutex::new(None);

fn work() -> Vec<Body> {
    let (home, target) = (attached(0), attached(1));
    static DONE: fn(usize, WorkResult) = |which, result| {
        if which == 0 {
            add(if result == WorkResult::Done { 2 } else { 3 });
        }
        if add(4) == 2 {
            aio::stop(aio::context(1));
            aio::stop(aio::main_context());
        }
    };
    vec![
        body(move || {
            let first = run_on(
                target,
                Callback::new(
                    &|_| {
                        add(0);
                    },
                    0,
                ),
                &DONE,
                0,
            )
            .expect("a record");
            *HANDLE.lock().expect("no panic") = Some(first);
            run_on(
                target,
                Callback::new(
                    &|_| {
                        add(1);
                    },
                    0,
                ),
                &DONE,
                1,
            )
            .expect("a record");
            run_loop(home);
        }),
        body(move || run_loop(target)),
        body(|| {
            for _ in 0..20 {
                if let Some(handle) = *HANDLE.lock().expect("no panic") {
                    if handle.cancel() {
                        add(5);
                    }
                    break;
                }
                arch::relax();
            }
        }),
    ]
}

fn work_check() {
    assert_eq!(
        (get(1), get(4)),
        (1, 2),
        "the work that nobody cancelled, and completions"
    );
    assert_eq!(
        (get(2), get(3)),
        (get(0), get(5)),
        "completions say what happened"
    );
    assert_eq!(get(0) + get(5), 1, "run or cancelled, not both");
}

// --- an earlier timer, armed from another core ---

static TIMERS: OnceLock<[Timer; 3]> = OnceLock::new();
const LATE_NS: u64 = 1_000_000_000;

fn timer() -> Vec<Body> {
    let context = attached(0);
    fn fired(which: usize) {
        assert!(
            which == 2 || arch::now_ns() < LATE_NS,
            "slept through an earlier deadline"
        );
        if add(0) == 3 {
            aio::stop(aio::main_context());
        }
    }
    let timers = *TIMERS.get_or_init(|| {
        [0, 1, 2].map(|which| {
            context
                .timer("race", Callback::new(&fired, which))
                .expect("a timer")
        })
    });
    timers[2].arm_at(LATE_NS);
    vec![
        body(move || run_loop(context)),
        body(move || {
            timers[0].arm_at(2_000);
        }),
        body(move || {
            timers[1].arm_at(LATE_NS + 1);
            timers[1].anticipate(1_000);
        }),
    ]
}

fn timer_check() {
    assert_eq!((get(0), aio::main_context().stats().timers_armed), (3, 0));
}

// --- stop against the first turn ---

fn stop() -> Vec<Body> {
    let context = attached(0);
    vec![
        body(move || run_loop(context)),
        body(move || aio::stop(context)),
        body(move || aio::stop(context)),
    ]
}

fn stop_check() {
    assert!(!aio::is_running(aio::main_context()));
}

// --- wait_while against wait_kick ---

fn waiting() -> Vec<Body> {
    attached(0);
    let change = |counter| {
        body(move || {
            add(counter);
            wait_kick();
        })
    };
    vec![
        body(|| {
            wait_while(|| get(0) == 0);
            wait_while(|| get(1) == 0);
        }),
        change(0),
        change(1),
    ]
}

/// It ended: nobody sleeps for ever.
fn nothing_else() {}

// --- wait_while for the end of work that other cores do for each other ---

fn work_of_others() -> Vec<Body> {
    attached(0);
    attached(1);
    let target = attached(2);
    static DONE: fn(usize, WorkResult) = |_, _| ();
    let finished = || {
        let handle = *HANDLE.lock().expect("no panic");
        handle.is_some_and(|handle| handle.is_finished())
    };
    vec![
        body(move || {
            wait_while(|| !finished());
            aio::stop(target);
        }),
        // It does not run its loop, so the only kick after the work is that of its end.
        body(move || {
            let work = Callback::new(
                &|_| {
                    add(0);
                },
                0,
            );
            let handle = run_on(target, work, &DONE, 0).expect("a record");
            *HANDLE.lock().expect("no panic") = Some(handle);
            wait_kick();
        }),
        body(move || run_loop(target)),
    ]
}

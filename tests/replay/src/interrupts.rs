//! The race of interrupt handlers with what their core does just now: both hand the main loop work of every kind.
use std::sync::OnceLock;
use std::sync::atomic::Ordering::SeqCst;

use ironthread::aio::{self, BottomHalf, Callback, EventNotifier, Timer, run_loop};
use ironthread::arch;

use crate::machine::{Body, Interrupt, interrupts, random};
use crate::scenarios::{COUNT, Scenario, add, attached, body, get, made};

pub const BOTH_SIDES: Scenario = Scenario {
    name: "interrupt",
    cores: interrupted,
    check: interrupted_check,
};

pub const ALONE: Scenario = Scenario {
    name: "interrupt-alone",
    cores: interrupted_alone,
    check: interrupted_check,
};

static LINE: EventNotifier = EventNotifier::new();
/// By source: core 0's loop, its interrupts, core 1, its interrupts.
static MADE: OnceLock<[(BottomHalf, Timer); SOURCES]> = OnceLock::new();
const SOURCES: usize = 4;
const PIECES: usize = 3;

/// One-shots, notifier sets, those that the handler has seen, timers, bottom halves.
const WANTED: [usize; 5] = [SOURCES * PIECES, SOURCES, SOURCES, SOURCES, SOURCES];

fn happened(what: usize) {
    add(what);
    if (0..WANTED.len()).all(|what| get(what) == WANTED[what]) {
        aio::stop(aio::main_context());
    }
}

/// Something for the main loop, from wherever this is called.
fn piece(source: usize, which: usize) {
    aio::main_context()
        .schedule_oneshot("piece", Callback::new(&happened, 0))
        .expect("a record");
    let (half, timer) = MADE.get().expect("made")[source];
    match which {
        0 => {
            add(1);
            LINE.set();
        }
        1 => assert!(timer.arm_at(arch::now_ns())),
        _ => assert!(half.schedule()),
    }
}

fn interrupted() -> Vec<Body> {
    let context = attached(0);
    fn line(_: usize) {
        if LINE.test_and_clear() {
            COUNT[2].store(get(1) - 1, SeqCst);
            happened(2);
        }
    }
    context
        .register(&LINE, "line", Callback::new(&line, 0), None)
        .expect("a handler");
    MADE.get_or_init(|| {
        [(); SOURCES].map(|()| {
            let half = made("half", &happened, 4);
            let timer = context.timer("timer", Callback::new(&happened, 3));
            (half, timer.expect("a timer"))
        })
    });
    let handlers = |source: usize, after: fn()| {
        let handler = |which| -> Interrupt {
            Box::new(move || {
                piece(source, which);
                after();
            })
        };
        (0..PIECES).map(handler).collect()
    };
    interrupts(0, handlers(1, || ()));
    interrupts(
        1,
        handlers(3, || {
            add(5);
        }),
    );
    let begin = Callback::new(&|_| (0..PIECES).for_each(|which| piece(0, which)), 0);
    context.schedule_oneshot("begin", begin).expect("a record");
    vec![
        body(move || run_loop(context)),
        body(|| {
            (0..PIECES).for_each(|which| piece(2, which));
            // Its interrupts come to the end, whatever the main loop does meanwhile.
            loop {
                let masked = arch::irq_mask();
                let left = get(5) < PIECES;
                if left {
                    arch::wait(None);
                }
                arch::irq_restore(masked);
                if !left {
                    break;
                }
            }
        }),
    ]
}

fn interrupted_check() {
    let stats = aio::main_context().stats();
    assert_eq!((stats.oneshots_in_use, stats.timers_armed), (0, 0));
}

/// Nobody else is there: what an interrupt has for a loop that is about to sleep must keep it awake.
fn interrupted_alone() -> Vec<Body> {
    let context = attached(0);
    fn seen(_: usize) {
        if add(0) == PIECES {
            aio::stop(aio::main_context());
        }
    }
    let half = made("half", &seen, 0);
    let timer = context.timer("timer", Callback::new(&seen, 0));
    let timer = timer.expect("a timer");
    fn line(_: usize) {
        if LINE.test_and_clear() {
            seen(0);
        }
    }
    context
        .register(&LINE, "line", Callback::new(&line, 0), None)
        .expect("a handler");
    let handlers: [Interrupt; PIECES] = [
        Box::new(move || assert!(half.schedule())),
        Box::new(move || assert!(timer.arm_at(arch::now_ns()))),
        Box::new(|| LINE.set()),
    ];
    let mut handlers = Vec::from(handlers);
    // Each of them is the last one now and then, which nothing covers.
    handlers.rotate_left(random(PIECES as u64) as usize);
    interrupts(0, handlers);
    vec![body(move || run_loop(context))]
}

//! Adaptive polling: how a budget grows and shrinks.
use ironthread::aio::{self, Callback, EventNotifier};
use ironthread::arch;

use crate::World;
use crate::support::{Count, drain, send};
use crate::world::watch;

static NOTIFIER: EventNotifier = EventNotifier::new();
static CALLS: Count = Count::new();
/// The other core lets the main loop sleep for so long, in ns, before it sets the notifier.
static DELAY: Count = Count::new();

const MAX: u64 = 60_000_000;

/// One wait of the main loop that the notifier ends. The least and the most, in ns, that it can have waited.
fn one_wait(w: &World, delay: u64) -> (u64, u64) {
    let (main, calls) = (w.main(), CALLS.get());
    static SEEN: Count = Count::new();
    SEEN.set(0);
    DELAY.set(delay as usize);
    let sleeps = main.stats().sleeps as usize;
    send(
        w.io(1),
        &|sleeps| {
            watch(|| aio::main_context().stats().sleeps as usize > sleeps);
            let asleep = arch::now_ns();
            watch(|| arch::now_ns() >= asleep + DELAY.get() as u64);
            SEEN.set((arch::now_ns() - asleep) as usize);
            NOTIFIER.set();
        },
        sleeps,
    );
    let begun = arch::now_ns();
    let mut polls = 0;
    while CALLS.get() == calls {
        main.poll(true);
        polls += 1;
    }
    let most = arch::now_ns() - begun;
    watch(|| SEEN.get() > 0);
    // Several turns are several waits, of which nothing is known.
    if polls == 1 {
        (SEEN.get() as u64, most)
    } else {
        (0, u64::MAX)
    }
}

/// Waits that end within the maximum let the budget begin at 4 us and grow by its factor to the maximum; one that is
/// longer shrinks it. Waits of which the clock cannot say which kind they were are made again.
pub fn arithmetic(w: &World) {
    let main = w.main();
    for (grow, shrink) in [(0, 0), (4, 2)] {
        let factor = if grow == 0 { 2 } else { u64::from(grow) };
        CALLS.set(0);
        main.register(
            &NOTIFIER,
            "source",
            Callback::new(
                &|_| {
                    if NOTIFIER.test_and_clear() {
                        CALLS.add();
                    }
                },
                0,
            ),
            Some(&|_| false),
        )
        .expect("a free handler");
        drain(main);
        main.set_polling(MAX, grow, shrink);
        assert_eq!(main.learnt_poll_ns(&NOTIFIER), 0);
        let mut expected = [4_000; 4];
        for n in 1..expected.len() {
            expected[n] = expected[n - 1] * factor;
        }
        'again: loop {
            // Forgets what was learnt.
            main.set_polling(MAX, grow, shrink);
            drain(main);
            let mut learnt = 0;
            for expected in expected {
                // Longer than the budget, since the loop slept after it, and far shorter than the maximum.
                let (_, most) = one_wait(w, 1_000_000);
                learnt = main.learnt_poll_ns(&NOTIFIER);
                if most > MAX {
                    continue 'again;
                }
                assert_eq!(learnt, expected);
            }
            let (least, _) = one_wait(w, MAX + 20_000_000);
            if least <= MAX {
                continue 'again;
            }
            let shrunk = if shrink == 0 {
                0
            } else {
                learnt / u64::from(shrink)
            };
            assert_eq!(main.learnt_poll_ns(&NOTIFIER), shrunk);
            break;
        }
        main.set_poll_max_ns(0);
        main.unregister(&NOTIFIER);
    }
}

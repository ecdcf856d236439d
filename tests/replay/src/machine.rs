//! The machine of one seed: cores are stackful coroutines of this thread, and a generator says who goes on.
//!
//! A core may lose its turn before every atomic access, in `relax`, and in `wait`, where it stays away until it is
//! kicked. When every core that has not ended waits, a deadline ends the earliest wait and moves the clock; where
//! there is none, a wake-up was lost.
use std::cell::{Cell, RefCell};

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult, Yielder};
use ironthread::arch::CoreId;
use ironthread::arch::host::clock;
use ironthread::arch::host::preempt::{self, CoreState, Hooks};

/// Turns after which a seed counts as going round in circles.
const TURNS: u64 = 200_000;

type Away = Yielder<(), ()>;

#[derive(Clone, Copy, Default)]
struct Status {
    /// Waits, and until when.
    waits: Option<Option<u64>>,
    kicked: bool,
    ended: bool,
}

thread_local! {
    static RANDOM: Cell<u64> = const { Cell::new(1) };
    /// One in so many places is a preemption.
    static RARITY: Cell<u64> = const { Cell::new(2) };
    static STATUS: RefCell<Vec<Status>> = const { RefCell::new(Vec::new()) };
    /// The running core and its way back to the scheduler.
    static RUNNING: Cell<Option<(CoreId, *const Away)>> = const { Cell::new(None) };
}

fn random(below: u64) -> u64 {
    let mut x = RANDOM.get();
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    RANDOM.set(x);
    (x >> 11) % below
}

fn leave() {
    if let Some((_, away)) = RUNNING.get() {
        // SAFETY: the scheduler sets the running core's own yielder, which lives on the stack that this runs on.
        unsafe { &*away }.suspend(());
    }
}

fn point() {
    if RUNNING.get().is_some() && random(RARITY.get()) == 0 {
        leave();
    }
}

fn wait(deadline: Option<u64>) {
    let Some((core, _)) = RUNNING.get() else {
        return;
    };
    let asleep = STATUS.with_borrow_mut(|status| {
        let mine = &mut status[core];
        if !mine.kicked {
            mine.waits = Some(deadline);
        }
        !mine.kicked
    });
    if asleep {
        leave();
    }
    STATUS.with_borrow_mut(|status| status[core].kicked = false);
}

fn kick(core: CoreId) {
    point();
    STATUS.with_borrow_mut(|status| {
        if let Some(other) = status.get_mut(core) {
            other.kicked = true;
        }
    });
}

/// A core of a scenario.
pub type Body = Box<dyn FnOnce()>;

/// Runs `bodies` as cores 0, 1, … in an order that `seed` decides, until all have ended. Why it failed, otherwise.
pub fn run(seed: u64, bodies: Vec<Body>) -> Result<(), String> {
    RANDOM.set((seed + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    // Some seeds preempt everywhere, some seldom: both find what the other does not.
    RARITY.set([1, 2, 4, 8, 16][random(5) as usize]);
    clock::manual(1);
    STATUS.with_borrow_mut(|status| {
        status.clear();
        status.resize(bodies.len(), Status::default());
    });
    let mut cores: Vec<_> = bodies
        .into_iter()
        .enumerate()
        .map(|(core, body)| {
            let stack = DefaultStack::new(128 << 10).expect("a stack");
            let coroutine = Coroutine::with_stack(stack, move |away: &Away, ()| {
                RUNNING.set(Some((core, away)));
                body();
            });
            (coroutine, CoreState::new(Some(core)), None)
        })
        .collect();
    preempt::set(Some(Hooks {
        point,
        wait,
        kick,
        relax: leave,
    }));
    let mut result = Err(format!("not done after {TURNS} turns"));
    for _ in 0..TURNS {
        let Some(core) = next() else {
            let left =
                STATUS.with_borrow(|status| status.iter().filter(|core| !core.ended).count());
            result = match left {
                0 => Ok(()),
                _ => Err(format!("a wake-up was lost: {left} cores sleep for ever")),
            };
            break;
        };
        let (coroutine, state, away) = &mut cores[core];
        state.swap();
        RUNNING.set(*away);
        let ended = matches!(coroutine.resume(()), CoroutineResult::Return(()));
        *away = RUNNING.take();
        state.swap();
        if ended {
            STATUS.with_borrow_mut(|status| status[core].ended = true);
        }
    }
    preempt::set(None);
    if result.is_err() {
        // Cores in the middle of something are not unwound: the process ends.
        std::mem::forget(cores);
    }
    result
}

/// The core that goes on, no longer waiting; `None` when none can.
fn next() -> Option<CoreId> {
    STATUS.with_borrow_mut(|status| {
        let ready: Vec<CoreId> = (0..status.len())
            .filter(|core| {
                !status[*core].ended && (status[*core].waits.is_none() || status[*core].kicked)
            })
            .collect();
        let core = if ready.is_empty() {
            let (deadline, core) = (0..status.len())
                .filter(|core| !status[*core].ended)
                .filter_map(|core| {
                    status[core]
                        .waits
                        .flatten()
                        .map(|deadline| (deadline, core))
                })
                .min()?;
            clock::manual(deadline);
            core
        } else {
            ready[random(ready.len() as u64) as usize]
        };
        status[core].waits = None;
        Some(core)
    })
}

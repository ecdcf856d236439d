//! The machine of one seed: cores are stackful coroutines of this thread, and a generator says who goes on.
//!
//! A core may lose its turn before every atomic access, in `relax`, and in `wait`, where it stays away until it is
//! kicked. When every core that has not ended waits, a deadline ends the earliest wait and moves the clock; where
//! there is none, a wake-up was lost.
//!
//! Interrupts of a core come at any of these places where it has them unmasked, or end its wait and are taken as soon
//! as it unmasks them: as on the metal, on the stack of what they interrupt. A handler can lose its core's turn too.
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult, Yielder};
use ironthread::arch::host::preempt::{self, CoreState, Hooks};
use ironthread::arch::host::{self, clock};
use ironthread::arch::{self, CoreId};

/// Turns after which a seed counts as going round in circles.
const TURNS: u64 = 200_000;

type Away = Yielder<(), ()>;

#[derive(Clone, Copy, Default)]
struct Status {
    /// Waits, and until when.
    waits: Option<Option<u64>>,
    kicked: bool,
    ended: bool,
    /// Interrupts that came while they were masked.
    raised: usize,
}

thread_local! {
    static RANDOM: Cell<u64> = const { Cell::new(1) };
    /// One in so many places is a preemption.
    static RARITY: Cell<u64> = const { Cell::new(2) };
    static STATUS: RefCell<Vec<Status>> = const { RefCell::new(Vec::new()) };
    /// What is still to interrupt each core.
    static INTERRUPTS: RefCell<Vec<VecDeque<Interrupt>>> = const { RefCell::new(Vec::new()) };
    /// The running core and its way back to the scheduler.
    static RUNNING: Cell<Option<(CoreId, *const Away)>> = const { Cell::new(None) };
}

/// The next number of this seed.
pub fn random(below: u64) -> u64 {
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
    let Some((core, _)) = RUNNING.get() else {
        return;
    };
    if random(RARITY.get()) == 0 {
        leave();
    }
    may_interrupt(core);
}

fn may_interrupt(core: CoreId) {
    if coming(core) && random(2 * RARITY.get()) == 0 {
        if arch::irq_masked() {
            STATUS.with_borrow_mut(|status| status[core].raised += 1);
        } else {
            interrupt(core);
        }
    }
}

/// Whether an interrupt of `core` has not come yet.
fn coming(core: CoreId) -> bool {
    let raised = STATUS.with_borrow(|status| status[core].raised);
    INTERRUPTS.with_borrow(|all| all[core].len() > raised)
}

/// The next interrupt of the running core.
fn interrupt(core: CoreId) {
    if let Some(handler) = INTERRUPTS.with_borrow_mut(|all| all[core].pop_front()) {
        host::interrupt(handler);
    }
}

fn unmasked() {
    let Some((core, _)) = RUNNING.get() else {
        return;
    };
    while STATUS.with_borrow_mut(|status| {
        let raised = &mut status[core].raised;
        let any = *raised > 0;
        *raised -= usize::from(any);
        any
    }) {
        interrupt(core);
    }
}

/// A turn of a spin loop: the others go first, or an interrupt comes.
fn relax() {
    leave();
    if let Some((core, _)) = RUNNING.get() {
        may_interrupt(core);
    }
}

fn wait(deadline: Option<u64>) {
    let Some((core, _)) = RUNNING.get() else {
        return;
    };
    let asleep = STATUS.with_borrow_mut(|status| {
        let mine = &mut status[core];
        // One that came since interrupts were masked ends the wait, as it does on the metal.
        let asleep = !mine.kicked && mine.raised == 0;
        if asleep {
            mine.waits = Some(deadline);
        }
        asleep
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

/// A handler that interrupts a core once.
pub type Interrupt = Box<dyn FnOnce()>;

/// Lets `handlers` interrupt `core` in this order, each once, at places that the seed decides. Before [`run`]; a core
/// that ends before they came is not interrupted any more.
pub fn interrupts(core: CoreId, handlers: Vec<Interrupt>) {
    INTERRUPTS.with_borrow_mut(|all| {
        if all.len() <= core {
            all.resize_with(core + 1, VecDeque::new);
        }
        all[core].extend(handlers);
    });
}

/// Begins a seed: it decides everything from here on.
pub fn begin(seed: u64) {
    RANDOM.set((seed + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
}

/// Runs `bodies` as cores 0, 1, … in an order that the seed decides, until all have ended. Why it failed, otherwise.
pub fn run(bodies: Vec<Body>) -> Result<(), String> {
    INTERRUPTS.with_borrow_mut(|all| all.resize_with(bodies.len(), VecDeque::new));
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
        relax,
        unmasked,
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
                !status[*core].ended
                    && (status[*core].waits.is_none()
                        || status[*core].kicked
                        || INTERRUPTS.with_borrow(|all| !all[*core].is_empty()))
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
        if status[core].waits.take().is_some() && !status[core].kicked {
            // An interrupt ended the wait, if there is one; else the deadline did.
            let raised = usize::from(INTERRUPTS.with_borrow(|all| !all[core].is_empty()));
            status[core].raised = status[core].raised.max(raised);
        }
        Some(core)
    })
}

//! What the tests on real threads share: one a core, each in its loop, beside the main loop that drains, moves and changes things.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use super::*;
use crate::config::MAX_CORES;

/// Requests that keep all cores but 0 busy: whoever gets an answer sends the next.
pub(super) struct Load {
    /// No request is followed by another.
    stop: AtomicBool,
    /// The main loop is through, so the others need not run for it any more.
    over: AtomicBool,
    /// The main loop has panicked: nobody waits for what is on its way.
    abandoned: AtomicBool,
    answered: AtomicU64,
    running: AtomicU32,
}

impl Load {
    pub const fn new() -> Self {
        Self {
            stop: AtomicBool::new(false),
            over: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            answered: AtomicU64::new(0),
            running: AtomicU32::new(0),
        }
    }

    /// Requests answered in this run.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    pub fn submit(&self, backend: &'static Backend, request: Request) {
        self.running.fetch_add(1, Ordering::Relaxed);
        backend.submit(request);
    }

    /// Looks at an answer: which one it is, and where the next is to go. None is when the load stops.
    pub fn answer(&self, request: &Request) -> Option<(u64, &'static Backend)> {
        assert_eq!(request.result, Ok(()));
        assert_eq!(arch::current_core(), Some(request.home()));
        let n = self.answered.fetch_add(1, Ordering::Relaxed);
        if self.stopped() {
            self.running.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some((n, super::backend(request.user[0] as usize).unwrap()))
    }

    /// Runs `main` in core 0's loop while every other core begins with `start` and then runs its own. Afterwards nothing is on its way,
    /// and the machine is stepped again.
    pub fn run(&'static self, rig: &Rig, start: impl Fn(CoreId) + Sync, main: impl FnOnce()) {
        self.stop.store(false, Ordering::Relaxed);
        self.over.store(false, Ordering::Relaxed);
        self.abandoned.store(false, Ordering::Relaxed);
        self.running.store(0, Ordering::Relaxed);
        self.answered.store(0, Ordering::Relaxed);
        host::set_stepped(false);
        host::clock::real();
        std::thread::scope(|scope| {
            for core in 1..MAX_CORES {
                let start = &start;
                scope.spawn(move || {
                    let _core = host::enter_core(core);
                    start(core);
                    while !self.over.load(Ordering::Relaxed) || self.is_busy() {
                        aio::context(core).poll(false);
                        std::thread::yield_now();
                    }
                });
            }
            on(0, || {
                let _end = End(self);
                main();
                self.stop();
                self.over.store(true, Ordering::Relaxed);
                turn_while(|| self.is_busy());
            });
        });
        host::set_stepped(true);
        host::clock::manual(START_NS.fetch_add(1_000_000_000_000, Ordering::Relaxed));
        rig.settle();
    }

    fn is_busy(&self) -> bool {
        self.running.load(Ordering::Relaxed) != 0 && !self.abandoned.load(Ordering::Relaxed)
    }
}

/// Lets the other cores go when the main loop fails: a test that hangs does not say why.
struct End(&'static Load);

impl Drop for End {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.abandoned.store(true, Ordering::Relaxed);
            self.0.over.store(true, Ordering::Relaxed);
        }
    }
}

/// Turns of the main loop while `condition` holds.
pub(super) fn turn_while(mut condition: impl FnMut() -> bool) {
    while condition() {
        aio::main_context().poll(false);
        std::thread::yield_now();
    }
}

/// A few turns of the main loop: long enough for what slips through a drained section to be seen.
pub(super) fn turn() {
    let mut turns = 0..20;
    turn_while(|| turns.next().is_some());
}

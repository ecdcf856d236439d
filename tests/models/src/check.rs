//! Runs a model through all its executions.
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use ironthread::arch::host;
use ironthread::sync::atomic::model as atomics;
use loom::model::Builder;
use loom::thread::{self, JoinHandle};

/// A model's name, how many cores it has, and its main thread, which is core 0.
pub type Model = (&'static str, usize, fn());

/// Executions of a round that only looks for atomics.
const LOOK: usize = 30;
/// Steps of one execution, beyond which it counts as endless.
const STEPS: usize = 5_000;

/// Checks `model` in all executions with at most `bound` preemptions.
///
/// # Panics
/// When one of them fails, also by deadlock.
pub fn check(name: &str, model: fn(), bound: Option<usize>) {
    let begun = Instant::now();
    let mut rounds = 0;
    let mut look = Some(LOOK);
    loop {
        static EXECUTIONS: AtomicU64 = AtomicU64::new(0);
        EXECUTIONS.store(0, Ordering::Relaxed);
        let mut builder = Builder::new();
        builder.preemption_bound = bound;
        builder.max_branches = STEPS;
        builder.max_permutations = look;
        builder.check(move || {
            EXECUTIONS.fetch_add(1, Ordering::Relaxed);
            atomics::begin();
            host::begin();
            host::enter_core(0);
            model();
        });
        rounds += 1;
        // An atomic that was met just now was a plain value until here: all this counts only when there is none.
        match (atomics::learn(), look) {
            (0, None) => {
                println!(
                    "ok {name}: {} executions, {}, {:.1} s ({rounds} rounds)",
                    EXECUTIONS.load(Ordering::Relaxed),
                    bound.map_or("no bound".into(), |bound| format!("bound {bound}")),
                    begun.elapsed().as_secs_f64()
                );
                return;
            }
            (0, Some(_)) => look = None,
            _ => look = Some(LOOK),
        }
    }
}

/// Starts core `id`.
pub fn core(id: usize, run: impl FnOnce() + 'static) -> JoinHandle<()> {
    thread::spawn(move || {
        host::enter_core(id);
        run();
    })
}

/// Waits for the end of `cores`.
pub fn join<const N: usize>(cores: [JoinHandle<()>; N]) {
    for core in cores {
        core.join().unwrap();
    }
}

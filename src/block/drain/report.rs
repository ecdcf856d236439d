//! What a drained section waits for (CS-13).
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicBool, Ordering};

use super::{Phase, started_cores};
use crate::arch::CoreId;
use crate::block::backend::{self, Backend};
use crate::block::{token, watch};

/// Why a drained section is not quiet yet, or that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainState {
    /// A listener still works.
    Listener,
    /// This core has requests in flight, or has not looked yet.
    Core(CoreId),
    /// Nothing: the section is quiet.
    Quiet,
}

/// Calls `f(backend, nesting, seconds since it began, what it waits for)` for every drained section; the requests themselves
/// are in [`for_each_in_flight`](crate::block::for_each_in_flight). Main loop only.
pub fn for_each_section(mut f: impl FnMut(&'static Backend, u32, u32, DrainState)) {
    for backend in backend::backends() {
        let (count, phase, since) = backend.section.with(|s| (s.count, s.phase, s.since_tick));
        let age = watch::tick().wrapping_sub(since);
        match phase {
            Phase::Running => {}
            Phase::Quiet => f(backend, count, age, DrainState::Quiet),
            Phase::Listeners => f(backend, count, age, DrainState::Listener),
            Phase::Cores => {
                let generation = backend.gate.load(Ordering::Relaxed) >> 1;
                for core in started_cores() {
                    if backend.cores.get(core).answered.load(Ordering::Acquire) != generation {
                        f(backend, count, age, DrainState::Core(core));
                    }
                }
            }
        }
    }
}

/// Seconds after which a drained section that is not quiet is reported.
const REPORT_AFTER_S: u32 = 5;

/// Once a second, from the watch: names what a slow drain waits for (CS-13), once a section.
pub(crate) fn report_slow() {
    for backend in backend::backends() {
        let slow = backend.section.with(|section| {
            let slow = matches!(section.phase, Phase::Listeners | Phase::Cores)
                && !section.reported
                && watch::tick().wrapping_sub(section.since_tick) >= REPORT_AFTER_S;
            section.reported |= slow;
            slow
        });
        if !slow {
            continue;
        }
        let named = AtomicBool::new(false);
        token::for_each_in_flight(|view| {
            if view.backend == backend.index() && !named.swap(true, Ordering::Relaxed) {
                log::warn!(
                    "drain of {} waits {} s: {} at {} from core {}, {} s old",
                    backend.name(),
                    REPORT_AFTER_S,
                    view.operation.name(),
                    view.offset,
                    view.core,
                    view.age_s
                );
            }
        });
        if !named.load(Ordering::Relaxed) {
            log::warn!(
                "drain of {} waits {REPORT_AFTER_S} s for its user",
                backend.name()
            );
        }
    }
}

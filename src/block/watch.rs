//! Once a second: the coarse clock of the in-flight table, and reports of what takes too long.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU32, Ordering};

use super::{BlockError, drain, graph, node};
use crate::aio::{self, Callback, Timer};
use crate::arch;
use crate::sync::HomeCell;

const SECOND_NS: u64 = 1_000_000_000;

static TICK: AtomicU32 = AtomicU32::new(0);
static TIMER: HomeCell<Option<Timer>> = HomeCell::new(None);

/// Seconds since boot, as of the last second that the main loop saw.
#[inline]
pub(crate) fn tick() -> u32 {
    TICK.load(Ordering::Relaxed)
}

pub(crate) fn start() -> Result<(), BlockError> {
    TIMER.bind(0);
    let timer = aio::main_context()
        .timer("block watch", Callback::new(&second, 0))
        .map_err(|_| BlockError::NoMemory)?;
    TIMER.with(|slot| *slot = Some(timer));
    let now_ns = arch::now_ns();
    TICK.store((now_ns / SECOND_NS) as u32, Ordering::Relaxed);
    timer.arm_at(now_ns + SECOND_NS);
    Ok(())
}

fn second(_: usize) {
    let now_ns = arch::now_ns();
    TICK.store((now_ns / SECOND_NS) as u32, Ordering::Relaxed);
    drain::report_slow();
    graph::report::log_slow();
    node::disk::report_slow();
    if let Some(timer) = TIMER.with(|slot| *slot) {
        timer.arm_at(now_ns + SECOND_NS);
    }
}

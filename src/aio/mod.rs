//! The event loop: one context a core, and everything else is a message to it.
//!
//! | file | what |
//! |---|---|
//! | `context` | [`AioContext`]: home core, lock, notify, statistics |
//! | `poll` | one turn: wait, accept, bottom halves, handlers, timers, hooks |
//! | `lane` | rings from each core into a context, batches of (nested) polls |
//! | `bottom_half` | [`BottomHalf`]: run soon, in a context |
//! | `notifier` | [`EventNotifier`]: sticky bits set by interrupts and other cores, and their handlers |
//! | `timer` | [`Timer`]: deadlines |
//! | `clock` | what deadlines are times of: monotonic or wall [`Clock`] |
//! | `adaptive` | look for work a while before sleeping |
//! | `hook` | [`TurnHook`]: once at the end of a turn |
//! | `coroutine`, `futures` | futures in static slots, and what they await |
//! | `mutex`, `event` | [`Mutex`], [`WaitQueue`] and [`Event`] for coroutines, on a `wait_list` |
//! | `iothread` | [`run_loop`] and [`stop`] |
//! | `wait` | [`wait_while`]: the main loop waits for other contexts |
//! | `elsewhere` | [`run_on`]: work in another context, completion at home |
//! | `watchdog` | finds lost wake-ups, mends none |
//! | `trace` | the last events of each core |
//!
//! Core *n* runs context *n*; context 0 is the main loop. Whatever may be called "from any core" is a few
//! instructions and never waits; only the context lock waits, and only callbacks run long.
//!
//! Order (CS-18): work of one sender reaches a context in the order in which it was sent; timers fire by (deadline,
//! order of arming); work sent to one context by `run_on` runs in the order of arrival.
mod adaptive;
mod bottom_half;
mod callback;
pub mod clock;
mod context;
mod coroutine;
mod elsewhere;
mod event;
mod futures;
mod hook;
mod iothread;
mod lane;
mod mutex;
mod notifier;
mod poll;
mod timer;
pub mod trace;
mod wait;
mod wait_list;
mod watchdog;

pub use bottom_half::{BottomHalf, Engaged, ReentrancyGuard};
pub use callback::{AioError, Callback};
pub use clock::Clock;
pub use context::{AioContext, CONTEXTS, ContextGuard, ContextStats, context, main_context};
pub use coroutine::{CoroutineHandle, coroutines_in_use, current_coroutine};
pub use elsewhere::{WorkDone, WorkHandle, WorkResult, run_on};
pub use event::{Event, Wait, WaitQueue};
pub use futures::{Sleep, TimedOut, reschedule_self, sleep_until, suspend, timeout, yield_now};
pub use hook::TurnHook;
pub use iothread::{is_running, run_loop, stop};
#[cfg(loom)]
pub use lane::model::LaneModel;
pub use mutex::{Lock, Mutex, MutexGuard};
pub use notifier::{EventNotifier, Handler, PollCheck};
pub use timer::Timer;
pub use trace::trace;
pub use wait::{run_and_wait, wait_kick, wait_while, wait_while_releasing};
pub use watchdog::{on_watch, start_watch};

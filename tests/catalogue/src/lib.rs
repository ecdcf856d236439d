//! The catalogue: the cases that QEMU holds an event loop to, under QEMU's names, and what QEMU has no case for, under
//! `/ironthread/`. Written once; `tests/host.rs` runs them on threads, `tests/target` in an image on real cores.
//!
//! The world of a case: the main context on core 0, which calls it, and running IOThreads on the other cores. No case
//! depends on time: it waits for conditions. Callbacks are functions, so what they share are statics, which a case
//! sets at its beginning; whatever it creates it deletes, which [`run`] checks.
#![no_std]
#![forbid(unsafe_code)]
// The cases are no interface: only the table is.
#![allow(clippy::new_without_default)]

mod acquire;
mod bh;
mod coroutine;
mod event;
mod support;
mod timer;
mod world;

pub use world::{World, run, secondary, shutdown};

/// One case.
pub struct Case {
    /// QEMU's path of the test, or one under `/ironthread/`.
    pub name: &'static str,
    /// Cores that it needs.
    pub cores: usize,
    /// Panics when the case fails. Called on core 0.
    pub run: fn(&World),
}

const fn case(name: &'static str, cores: usize, run: fn(&World)) -> Case {
    Case { name, cores, run }
}

/// All cases, in the order in which they run.
pub static CASES: &[Case] = &[
    case("/nesting", 2, acquire::nesting),
    case("/aio/acquire", 2, acquire::set_before_poll),
    case("/aio/acquire/set-during-poll", 2, acquire::set_during_poll),
    case("/ironthread/lock/acquire-during-wait", 2, acquire::mirror),
    case("/aio/bh/schedule", 1, bh::schedule),
    case("/aio/bh/schedule10", 1, bh::schedule10),
    case("/aio/bh/cancel", 1, bh::cancel),
    case("/aio/bh/delete", 1, bh::delete),
    case("/aio/bh/callback-delete/one", 1, bh::callback_delete_one),
    case("/aio/bh/callback-delete/many", 1, bh::callback_delete_many),
    case("/aio/bh/flush", 1, bh::schedule),
    case("/aio/event/add-remove", 1, event::add_remove),
    case("/aio/event/wait", 1, event::wait),
    case("/aio/event/flush", 1, event::flush),
    case("/aio/external-client", 1, event::external_client),
    case("/aio/timer/schedule", 1, timer::schedule),
    case(
        "/aio/coroutine/queue-chaining",
        1,
        coroutine::queue_chaining,
    ),
    case(
        "/aio/coroutine/worker-thread-co-enter",
        2,
        coroutine::worker_thread_co_enter,
    ),
    case("/ironthread/bh/idle", 1, bh::idle),
    case(
        "/ironthread/bh/cancel-then-schedule",
        1,
        bh::cancel_then_schedule,
    ),
    case("/ironthread/bh/delete-other", 1, bh::delete_other),
    case("/ironthread/bh/nested-poll", 1, bh::nested_poll),
];

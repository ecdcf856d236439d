//! The catalogue: the cases that QEMU holds an event loop to, under QEMU's names, and what QEMU has no case for, under
//! `/ironthread/`. Written once; `tests/host.rs` runs them on threads, `tests/target` in an image on real cores.
//!
//! The world of a case: the main context on core 0, which calls it, and running IOThreads on the other cores: five of
//! them on the host, as QEMU's `/aio/multi/` cases have; in the image three, and those cases once more with five. No case
//! depends on time: it waits for conditions. Callbacks are functions, so what they share are statics, which a case
//! sets at its beginning; whatever it creates it deletes, which [`run`] checks.
#![no_std]
#![forbid(unsafe_code)]
// The cases are no interface: only the table is.
#![allow(clippy::new_without_default)]

mod acquire;
mod adaptive;
mod basic;
mod bh;
mod coroutine;
mod event;
mod multi;
mod mutex;
mod pool;
mod support;
mod timer;
mod wait;
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
    case("/nested-aio-poll", 2, event::nested_aio_poll),
    case("/aio/multi/lifecycle", 2, multi::lifecycle),
    case("/aio/multi/mutex/contended", 2, mutex::contended),
    case("/aio/multi/mutex/handoff", 2, mutex::handoff),
    case(
        "/thread-pool/submit-no-complete",
        2,
        pool::submit_no_complete,
    ),
    case("/thread-pool/submit-aio", 2, pool::submit_aio),
    case("/thread-pool/submit-co", 2, pool::submit_co),
    case("/thread-pool/submit-many", 2, pool::submit_many),
    case("/thread-pool/cancel", 3, pool::cancel),
    case("/thread-pool/cancel-async", 3, pool::cancel_async),
    case("/basic/in_coroutine", 1, basic::in_coroutine),
    case("/basic/self", 1, basic::myself),
    case("/basic/entered", 1, basic::entered),
    case("/basic/yield", 1, basic::yields),
    case("/basic/nesting", 1, basic::nesting),
    case("/basic/lifecycle", 1, basic::lifecycle),
    case("/basic/order", 1, basic::order),
    case("/basic/no-dangling-access", 1, basic::no_dangling_access),
    case("/locking/co-mutex", 1, mutex::co_mutex),
    case("/locking/co-mutex/lockable", 1, mutex::co_mutex_lockable),
    case("/ironthread/lock/fifo", 4, multi::lock_fifo),
    case("/ironthread/lock/contended", 2, multi::lock_contended),
    case("/ironthread/bh/idle", 1, bh::idle),
    case(
        "/ironthread/bh/cancel-then-schedule",
        1,
        bh::cancel_then_schedule,
    ),
    case("/ironthread/bh/delete-other", 1, bh::delete_other),
    case("/ironthread/bh/nested-poll", 1, bh::nested_poll),
    case("/ironthread/event/remove-due", 1, event::remove_due),
    case("/ironthread/event/replace-self", 1, event::replace_self),
    case("/ironthread/notify/lost-wake-ups", 2, event::lost_wakeups),
    case(
        "/ironthread/timer/equal-deadlines",
        1,
        timer::equal_deadlines,
    ),
    case("/ironthread/timer/re-arm-now", 1, timer::rearm_now),
    case("/ironthread/timer/delete-other", 1, timer::delete_other),
    case(
        "/ironthread/timer/arm-from-elsewhere",
        2,
        timer::arm_from_elsewhere,
    ),
    case(
        "/ironthread/iothread/stop-races-start",
        2,
        multi::stop_races_start,
    ),
    case("/ironthread/iothread/stop-twice", 2, multi::stop_twice),
    case(
        "/ironthread/iothread/stop-after-work",
        2,
        multi::stop_after_work,
    ),
    case("/ironthread/adaptive/arithmetic", 2, adaptive::arithmetic),
    case(
        "/ironthread/wait/kick-without-waiter",
        2,
        wait::kick_without_waiter,
    ),
    case(
        "/ironthread/wait/waiter-without-kick",
        1,
        wait::waiter_without_kick,
    ),
    case("/ironthread/wait/kick", 2, wait::kick),
    case("/ironthread/wait/nested", 2, wait::nested),
];

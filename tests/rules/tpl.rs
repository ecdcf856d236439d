//! Work on other cores (TPL).

use crate::common::*;
use ironthread::aio::{self, AioError, WorkResult};
use ironthread::arch;
use ironthread::arch::host::{self};

#[test]
fn tpl_run_on_is_fifo_completes_at_home_and_can_be_cancelled_while_queued() {
    let _watchdog = watchdog("tpl");
    let _machine = host::machine(2);
    let main = attach(0, "main");
    let _zero = host::enter_core(0);
    let io = leak_context("io");
    let (ran, done) = (log(), log());
    let completion: aio::WorkDone = leak(move |n: usize, result: WorkResult| {
        assert_eq!(arch::current_core(), Some(0));
        done.push(
            n + if result == WorkResult::Cancelled {
                100
            } else {
                0
            },
        );
    });
    let handles: Vec<_> = (0..8)
        .map(|n| aio::run_on(io, call(move |_| ran.push(n)), completion, n).unwrap())
        .collect();
    assert!(handles[2].cancel() && !handles[2].cancel());
    assert!(handles[5].cancel());
    assert!(!main.poll(false), "nothing completes inside run_on");
    let looping = io_thread(1, io);
    let mut seen = vec![];
    aio::wait_while(|| {
        seen.extend(done.take());
        seen.len() < 8
    });
    assert_eq!(ran.take(), [0, 1, 3, 4, 6, 7]);
    assert_eq!(seen, [0, 1, 102, 3, 4, 105, 6, 7]);
    assert!(
        handles
            .iter()
            .all(|handle| handle.is_finished() && !handle.cancel())
    );
    aio::stop(io);
    looping.join().unwrap();
    let parked = leak_context("parked");
    let queued: Vec<_> =
        std::iter::from_fn(|| aio::run_on(parked, call(|_| ()), completion, 0).ok()).collect();
    assert_eq!(queued.len(), ironthread::config::ELSEWHERE);
    assert_eq!(
        aio::run_on(parked, call(|_| ()), completion, 0).err(),
        Some(AioError::Exhausted)
    );
    io_thread(1, {
        aio::stop(parked);
        parked
    })
    .join()
    .unwrap();
    while main.poll(false) {}
    assert_eq!(done.take().len(), queued.len());
}

#[test]
fn tpl_bh_15_a_completion_that_polls_reaches_the_completions_behind_it() {
    let _watchdog = watchdog("tpl_bh_15");
    let _machine = host::machine(1);
    let main = attach(0, "main");
    let _zero = host::enter_core(0);
    let done = log();
    let completion: aio::WorkDone = leak(move |n: usize, _: WorkResult| {
        if n == 0 {
            let mut seen = vec![];
            aio::wait_while(|| {
                seen.extend(done.take());
                seen.len() < 2
            });
            assert_eq!(seen, [1, 2]);
        }
        done.push(n);
    });
    for n in 0..3 {
        aio::run_on(main, call(|_| ()), completion, n).unwrap();
    }
    while main.poll(false) {}
    assert_eq!(done.take(), [0]);
}

/// On x86 every store is a release, so here miri is the judge: it calls a missing order a data race.
#[test]
fn tpl_2_what_the_work_wrote_is_seen_by_who_sees_it_finished() {
    struct Plain(std::cell::UnsafeCell<u64>);
    // SAFETY: the work writes before it has ended, the test reads after it has seen that it ended.
    unsafe impl Sync for Plain {}
    static RESULT: Plain = Plain(std::cell::UnsafeCell::new(0));
    let _watchdog = watchdog("tpl_2");
    let _machine = host::machine(2);
    let _main = attach(0, "main");
    let _zero = host::enter_core(0);
    let io = leak_context("io");
    let looping = io_thread(1, io);
    // SAFETY: as above.
    let work = call(|_| unsafe { *RESULT.0.get() = 7 });
    let handle = aio::run_on(io, work, leak(|_: usize, _: WorkResult| ()), 0).unwrap();
    while !handle.is_finished() {
        std::thread::yield_now();
    }
    // SAFETY: as above.
    assert_eq!(unsafe { *RESULT.0.get() }, 7);
    aio::wait_while(|| !handle.is_over());
    aio::stop(io);
    looping.join().unwrap();
}

static IGNORED: fn(usize, WorkResult) = |_, _| ();

#[test]
#[should_panic(expected = "from a core that has a context")]
fn tpl_1_sent_from_a_core_with_a_context() {
    let (_machine, ctx) = stepped(1);
    let _ = aio::run_on(ctx, call(|_| ()), &IGNORED, 0);
}

#[test]
fn tpl_2_finished_only_after_it_has_run() {
    let (_core, ctx) = single();
    let handle: &'static std::sync::OnceLock<aio::WorkHandle> = leak(std::sync::OnceLock::new());
    let ran = count();
    let work = call(move |_| {
        let handle = handle.get().unwrap();
        assert!(!handle.is_finished() && !handle.is_over(), "while it runs");
        assert!(!handle.cancel(), "it has begun");
        add(ran);
    });
    let sent = aio::run_on(ctx, work, &IGNORED, 0).unwrap();
    assert!(handle.set(sent).is_ok());
    while ctx.poll(false) {}
    assert!(sent.is_finished() && sent.is_over() && get(ran) == 1);
}

#[test]
fn tpl_4_5_first_in_first_out_and_never_inside_the_call() {
    let (_machine, main) = stepped(2);
    let io = attach(1, "io");
    let _zero = host::enter_core(0);
    let (ran, done) = (log(), log());
    let completion: aio::WorkDone = leak(move |n: usize, _: WorkResult| done.push(n));
    for n in 0..5 {
        aio::run_on(io, call(move |_| ran.push(n)), completion, n).unwrap();
    }
    assert_eq!(ran.take(), []);
    {
        let _one = host::enter_core(1);
        while io.poll(false) {}
    }
    assert_eq!((ran.take(), done.take()), (vec![0, 1, 2, 3, 4], vec![]));
    while main.poll(false) {}
    assert_eq!(done.take(), [0, 1, 2, 3, 4]);
}

#[test]
fn tpl_6_cancelled_while_queued_completes_as_cancelled() {
    let (_machine, main) = stepped(2);
    let io = attach(1, "io");
    let _zero = host::enter_core(0);
    let done = log();
    let completion: aio::WorkDone = leak(move |n: usize, result: WorkResult| {
        done.push(
            n + if result == WorkResult::Cancelled {
                10
            } else {
                0
            },
        );
    });
    let ran = count();
    let send = |n| aio::run_on(io, call(|_| add(ran)), completion, n).unwrap();
    let (a, b) = (send(1), send(2));
    assert!(b.cancel() && !b.cancel());
    assert_eq!(done.take(), [], "not inside the cancel");
    {
        let _one = host::enter_core(1);
        while io.poll(false) {}
    }
    assert!(!a.cancel(), "done: not cancellable");
    while main.poll(false) {}
    assert_eq!((done.take(), get(ran)), (vec![1, 12], 1));
    assert!(a.is_over() && b.is_over());
}

#[test]
fn tpl_10_a_coroutine_waits_for_work_elsewhere() {
    let (_machine, main) = stepped(2);
    let io = attach(1, "io");
    let _zero = host::enter_core(0);
    let cores = log();
    main.spawn("asks", async move {
        let me: &'static aio::CoroutineHandle = leak(aio::current_coroutine().unwrap());
        let completion: aio::WorkDone = leak(move |_: usize, _: WorkResult| {
            me.wake();
        });
        let work = call(move |_| cores.push(arch::current_core().unwrap()));
        let handle = aio::run_on(io, work, completion, 0).unwrap();
        while !handle.is_over() {
            aio::suspend().await;
        }
        cores.push(arch::current_core().unwrap());
    })
    .unwrap();
    while main.poll(false) {}
    assert_eq!(cores.take(), []);
    {
        let _one = host::enter_core(1);
        while io.poll(false) {}
    }
    while main.poll(false) {}
    assert_eq!(cores.take(), [1, 0]);
}

#[test]
fn tpl_8_11_full_is_an_error_and_nothing_is_dropped() {
    let (_machine, main) = stepped(2);
    let io = attach(1, "io");
    let _zero = host::enter_core(0);
    let ran = count();
    for round in 1..=3 {
        let mut sent = 0;
        while aio::run_on(io, call(|_| add(ran)), &IGNORED, 0).is_ok() {
            sent += 1;
        }
        assert_eq!(sent, ironthread::config::ELSEWHERE);
        {
            let _one = host::enter_core(1);
            while io.poll(false) {}
        }
        while main.poll(false) {}
        assert_eq!(
            get(ran),
            round * sent,
            "all ran, and their records are free again"
        );
    }
}

#[test]
fn tpl_bh_14_a_completion_that_sends_on_to_a_faster_core_waits_for_the_next_batch() {
    let (_machine, main) = stepped(2);
    let io = attach(1, "io");
    let _zero = host::enter_core(0);
    let rounds = count();
    static COMPLETION: std::sync::OnceLock<aio::WorkDone> = std::sync::OnceLock::new();
    let send = move || {
        aio::run_on(io, call(|_| ()), *COMPLETION.get().unwrap(), 0).unwrap();
        let _one = host::enter_core(1);
        assert!(io.poll(false), "done at once");
    };
    let again: aio::WorkDone = leak(move |_: usize, _: WorkResult| {
        if add(rounds) < 10 {
            send();
        }
    });
    assert!(COMPLETION.set(again).is_ok());
    send();
    for round in 1..=10 {
        assert!(main.poll(false));
        assert_eq!(get(rounds), round);
    }
    assert!(!main.poll(false));
}

#[test]
#[should_panic(expected = "other context locks")]
fn tpl_a_completion_that_keeps_a_lock_is_named() {
    let (_core, ctx) = single();
    let leaky: aio::WorkDone = leak(move |_: usize, _: WorkResult| ctx.acquire());
    aio::run_on(ctx, call(|_| ()), leaky, 0).unwrap();
    while ctx.poll(false) {}
}

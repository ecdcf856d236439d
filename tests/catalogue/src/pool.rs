//! QEMU's thread pool: here work runs in another context, `run_on`, one piece at a time and in order.
use ironthread::aio::{self, AioError, Callback, CoroutineHandle, WorkHandle, WorkResult, run_on};
use ironthread::arch;

use crate::World;
use crate::support::{Count, Place, drain, send};
use crate::world::watch;

const ITEMS: usize = 100;

static RAN: [Count; ITEMS] = [const { Count::new() }; ITEMS];
static ENDED: [Count; ITEMS] = [const { Count::new() }; ITEMS];
static ACTIVE: Count = Count::new();
static CANCELLED: Count = Count::new();

fn reset() {
    for count in RAN.iter().chain(&ENDED).chain([&ACTIVE, &CANCELLED]) {
        count.set(0);
    }
}

fn work(which: usize) {
    assert_ne!(arch::current_core(), Some(0), "work runs elsewhere");
    RAN[which].add();
}

fn done(which: usize, result: WorkResult) {
    assert_eq!(arch::current_core(), Some(0), "completions run at home");
    if result == WorkResult::Cancelled {
        CANCELLED.add();
    }
    ENDED[which].add();
    ACTIVE.set(ACTIVE.get() - 1);
}

fn submit(w: &World, core: usize, which: usize) -> Result<WorkHandle, AioError> {
    let handle = run_on(w.io(core), Callback::new(&work, which), &done, which)?;
    ACTIVE.add();
    Ok(handle)
}

/// Without a completion that anybody looks at, it runs once.
pub fn submit_no_complete(w: &World) {
    reset();
    let handle = run_on(w.io(1), Callback::new(&work, 0), &|_, _| (), 0).expect("a free record");
    w.until(|| handle.is_over());
    assert_eq!(RAN[0].get(), 1);
}

/// The completion comes in a poll at home and not before, once.
pub fn submit_aio(w: &World) {
    reset();
    let handle = submit(w, 1, 0).expect("a free record");
    assert_eq!((ACTIVE.get(), ENDED[0].get()), (1, 0), "in progress");
    watch(|| handle.is_finished());
    assert_eq!((ACTIVE.get(), ENDED[0].get(), RAN[0].get()), (1, 0, 1));
    w.until(|| ACTIVE.get() == 0);
    assert_eq!((ENDED[0].get(), RAN[0].get(), CANCELLED.get()), (1, 1, 0));
    assert!(handle.is_over() && !handle.cancel());
}

/// A coroutine submits and is suspended until the completion.
pub fn submit_co(w: &World) {
    static HANDLE: Place<CoroutineHandle> = Place::new();
    reset();
    let io = w.io(1);
    let coroutine = async move {
        run_on(
            io,
            Callback::new(&work, 0),
            &|which, result| {
                done(which, result);
                HANDLE.get().wake();
            },
            0,
        )
        .expect("a free record");
        ACTIVE.add();
        while ENDED[0].get() == 0 {
            aio::suspend().await;
        }
        ENDED[1].add();
    };
    HANDLE.set(
        w.main()
            .spawn("submits", coroutine)
            .expect("a free coroutine"),
    );
    w.until(|| ACTIVE.get() == 1);
    assert!(!HANDLE.get().is_finished(), "in progress");
    w.until(|| HANDLE.get().is_finished());
    assert_eq!((RAN[0].get(), ENDED[0].get(), ENDED[1].get()), (1, 1, 1));
    HANDLE.take();
}

/// More pieces than there are records: each runs once.
pub fn submit_many(w: &World) {
    reset();
    for which in 0..ITEMS {
        loop {
            match submit(w, 1 + which % (w.cores() - 1), which) {
                Ok(_) => break,
                Err(error) => assert_eq!(error, AioError::Exhausted),
            }
            let active = ACTIVE.get();
            w.until(|| ACTIVE.get() < active);
        }
    }
    w.until(|| ACTIVE.get() == 0);
    for (ran, ended) in RAN.iter().zip(&ENDED) {
        assert_eq!((ran.get(), ended.get()), (1, 1));
    }
    assert_eq!(CANCELLED.get(), 0);
}

/// The first piece of work begins and stays; of those behind it every other one is cancelled, by this core or by
/// another one. Cancelled ones never run and complete as such, once; one that runs cannot be cancelled.
fn cancelling(w: &World, elsewhere: bool) {
    const QUEUED: usize = 32;
    static HANDLES: [Place<WorkHandle>; QUEUED] = [const { Place::new() }; QUEUED];
    static GO: Count = Count::new();
    static BEGUN: Count = Count::new();
    fn cancel_odd(_: usize) {
        for handle in HANDLES.iter().skip(1).step_by(2) {
            assert!(handle.get().cancel());
            assert!(!handle.get().cancel(), "it is cancelled already");
        }
        BEGUN.add();
    }
    reset();
    GO.set(0);
    BEGUN.set(0);
    let stay = Callback::new(
        &|which| {
            BEGUN.set(1);
            watch(|| GO.get() == 1);
            work(which);
        },
        0,
    );
    HANDLES[0].set(run_on(w.io(1), stay, &done, 0).expect("a free record"));
    ACTIVE.add();
    for (which, handle) in HANDLES.iter().enumerate().skip(1) {
        handle.set(submit(w, 1, which).expect("a free record"));
    }
    watch(|| BEGUN.get() == 1);
    assert!(!HANDLES[0].get().cancel(), "it runs already");
    if elsewhere {
        send(w.io(2), &cancel_odd, 0);
        watch(|| BEGUN.get() == 2);
    } else {
        cancel_odd(0);
    }
    assert_eq!(ENDED[1].get(), 0, "no completion inside cancel");
    drain(w.main());
    GO.set(1);
    if elsewhere {
        w.until(|| ACTIVE.get() == 0);
    } else {
        // One after another, as a caller that waits for what it cancelled.
        for handle in &HANDLES {
            aio::wait_while(|| !handle.get().is_over());
        }
        assert_eq!(ACTIVE.get(), 0);
    }
    for (which, (ran, ended)) in RAN.iter().zip(&ENDED).take(QUEUED).enumerate() {
        assert_eq!((ran.get(), ended.get()), (usize::from(which % 2 == 0), 1));
    }
    assert_eq!(CANCELLED.get(), QUEUED / 2);
    HANDLES.iter().for_each(|handle| _ = handle.take());
}

/// Cancelled at home, which waits for the end of each.
pub fn cancel(w: &World) {
    cancelling(w, false);
}

/// Cancelled on another core, which does not wait.
pub fn cancel_async(w: &World) {
    cancelling(w, true);
}

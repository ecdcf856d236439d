//! Drained sections, moves and changes of the graph on four real cores, each of which keeps requests going all the time. Cases bear
//! QEMU's names where they are QEMU's.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use ironthread::aio::{self, Callback};
use ironthread::arch;
use ironthread::block::graph::{
    self, Refusal, change, context, drain, drained_all_in_coroutine, drained_in_coroutine,
};
use ironthread::block::node::delay::{self, DelayOptions, Latencies};
use ironthread::block::node::null::{self, NullOptions};
use ironthread::block::node::ram;
use ironthread::block::{self, Backend, NodeId, Operation, Request};
use ironthread_target_tests::block::{run_until_looking, start_block};
use ironthread_target_tests::{argument, entry, pass, say};
use spin::Once;

entry!(main);

/// Requests that each core keeps going at each backend.
const DEPTH: usize = 8;

/// The backends under load.
static USERS: Once<[&'static Backend; 2]> = Once::new();
/// Requests answered, by backend.
static ANSWERED: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];
/// Requests that go round and round.
static RUNNING: AtomicUsize = AtomicUsize::new(0);
static STOP: AtomicUsize = AtomicUsize::new(0);
static QUIET: AtomicU32 = AtomicU32::new(0);
static CHANGED: AtomicU32 = AtomicU32::new(0);
/// Coroutines that have come to their end, and sections that they had.
static ENDED: AtomicUsize = AtomicUsize::new(0);
static SECTIONS: AtomicUsize = AtomicUsize::new(0);
/// What the coroutines drain; `None`: everything.
static TARGET: Once<NodeId> = Once::new();

fn run_until(what: &str, done: impl FnMut() -> bool) {
    run_until_looking(200_000, what, done);
}

fn user(index: usize) -> &'static Backend {
    match USERS.get() {
        Some(users) => users[index],
        None => panic!("no backends yet"),
    }
}

/// A request came back: the next of another kind goes.
fn again(mut request: Request) {
    assert_eq!(request.result, Ok(()));
    assert_eq!(arch::current_core(), Some(request.home()));
    let index = request.user[0] as usize;
    let count = ANSWERED[index].fetch_add(1, Ordering::SeqCst);
    if STOP.load(Ordering::SeqCst) != 0 {
        RUNNING.fetch_sub(1, Ordering::SeqCst);
        return;
    }
    let (operation, len) = match count % 4 {
        0 => (Operation::Flush, 0),
        1 => (Operation::Discard, 4096),
        _ => (Operation::WriteZeroes, 4096),
    };
    let offset = if len == 0 {
        0
    } else {
        (count % 8 * 4096) as u64
    };
    request.reuse(operation, offset, len);
    user(index).submit(request);
}

/// Sets this core's requests going.
fn load(_: usize) {
    for index in 0..2 {
        for _ in 0..DEPTH {
            let Some(mut request) = block::request::new(Operation::Flush, 0, 0) else {
                panic!("no request")
            };
            request.completion = &again;
            request.user[0] = index as u64;
            user(index).submit(request);
        }
    }
}

fn answered() -> [usize; 2] {
    [0, 1].map(|index| ANSWERED[index].load(Ordering::SeqCst))
}

/// Both users get on.
fn progress() {
    let before = answered();
    run_until("progress", || {
        let now = answered();
        now[0] >= before[0] + 40 && now[1] >= before[1] + 40
    });
}

/// Nothing of the users in `which` is in flight, nor comes for a while; the others get on.
fn holds(what: &str, which: [bool; 2]) {
    let before = answered();
    for _ in 0..40 {
        for index in (0..2).filter(|index| which[*index]) {
            assert_eq!(user(index).in_flight(), 0, "{what}: in flight");
        }
        aio::main_context().poll(false);
    }
    let after = answered();
    for index in (0..2).filter(|index| which[*index]) {
        assert_eq!(
            before[index], after[index],
            "{what}: a request slipped through"
        );
    }
    if let Some(free) = (0..2).find(|index| !which[*index]) {
        run_until("the other user", || answered()[free] > after[free]);
    }
}

fn quiet() -> Callback {
    Callback::new(
        &|_| {
            QUIET.fetch_add(1, Ordering::SeqCst);
        },
        0,
    )
}

/// Begins a section (on everything without a node), and runs the loop until it is quiet.
fn begin(node: Option<NodeId>) {
    let before = QUIET.load(Ordering::SeqCst);
    let begun = match node {
        Some(id) => drain::drain_begin(id, quiet()),
        None => drain::drain_all_begin(quiet()),
    };
    if let Err(error) = begun {
        panic!("drain: {error}");
    }
    run_until("drain", || QUIET.load(Ordering::SeqCst) != before);
}

fn end(node: Option<NodeId>) {
    match node {
        Some(id) => drain::drain_end(id),
        None => drain::drain_all_end(),
    }
}

fn changed(_: usize, result: Result<(), Refusal>) {
    if let Err(refusal) = result {
        panic!("change: {refusal}");
    }
    CHANGED.fetch_add(1, Ordering::SeqCst);
}

/// Runs a change of the graph to its end.
fn run_change(begun: Result<(), Refusal>, before: u32) {
    if let Err(refusal) = begun {
        panic!("change: {refusal}");
    }
    run_until("change", || CHANGED.load(Ordering::SeqCst) != before);
}

fn delay_on(name: &str, child: NodeId) -> NodeId {
    let latencies = Latencies {
        read: 20_000,
        write: 20_000,
        flush: 50_000,
    };
    made(delay::create(name, DelayOptions { child, latencies }))
}

fn made<T>(result: Result<T, Refusal>) -> T {
    match result {
        Ok(made) => made,
        Err(refusal) => panic!("{refusal}"),
    }
}

/// One coroutine a core, `rounds` sections each, at the same time; in each, nothing of the drained users is in flight.
fn coroutines(everything: bool, rounds: usize) {
    let cores = arch::cores();
    ENDED.store(0, Ordering::SeqCst);
    SECTIONS.store(0, Ordering::SeqCst);
    for core in 1..cores {
        let coroutine = async move {
            for _ in 0..rounds {
                let guard = match TARGET.get() {
                    Some(id) if !everything => drained_in_coroutine(*id).await,
                    _ => drained_all_in_coroutine().await,
                };
                assert!(guard.is_ok());
                assert_eq!(arch::current_core(), Some(core), "resumed at home");
                let before = ANSWERED[0].load(Ordering::SeqCst);
                for _ in 0..5 {
                    aio::yield_now().await;
                    assert_eq!(user(0).in_flight(), 0, "in flight");
                    assert!(!everything || user(1).in_flight() == 0, "in flight");
                }
                assert_eq!(
                    before,
                    ANSWERED[0].load(Ordering::SeqCst),
                    "a request slipped through"
                );
                SECTIONS.fetch_add(1, Ordering::SeqCst);
                drop(guard);
                aio::yield_now().await;
            }
            ENDED.fetch_add(1, Ordering::SeqCst);
        };
        if aio::context(core).spawn("section", coroutine).is_err() {
            panic!("no coroutine");
        }
    }
    run_until("coroutines", || ENDED.load(Ordering::SeqCst) == cores - 1);
    assert_eq!(SECTIONS.load(Ordering::SeqCst), rounds * (cores - 1));
}

fn ok(case: &str) {
    progress();
    say!("ok drains {case}");
}

fn main(tree: usize) -> ! {
    let info = start_block(tree);
    let cores = arch::cores();
    let rounds: usize = argument(&info, "rounds")
        .and_then(|text| text.parse().ok())
        .unwrap_or(15);
    // Two users: one of a slow chain over memory, one of a node that answers at once.
    let memory = made(ram::create_from_pages("memory", 32768, 4096));
    let slow = delay_on("slow", memory);
    let options = NullOptions {
        size: 1 << 20,
        block: 512,
        read_zeroes: true,
        latency_ns: 0,
    };
    let other = made(null::create("other", options));
    let open = |name, node| match Backend::create(name, "test", node) {
        Ok(backend) => backend,
        Err(error) => panic!("{name}: {error}"),
    };
    let users = USERS.call_once(|| [open("b0", slow), open("b1", other)]);
    TARGET.call_once(|| slow);
    RUNNING.store(2 * DEPTH * cores, Ordering::SeqCst);
    for core in 0..cores {
        let load = Callback::new(&load, 0);
        if aio::context(core).schedule_oneshot("load", load).is_err() {
            panic!("no bottom half");
        }
    }
    progress();

    for _ in 0..rounds {
        begin(Some(slow));
        holds("drain", [true, false]);
        assert_eq!(
            (drain::quiesce_count(slow), drain::quiesce_count(memory)),
            (1, 0)
        );
        end(Some(slow));
        // From below: what is above is quiet as well.
        begin(Some(memory));
        holds("drain below", [true, false]);
        assert_eq!(
            (drain::quiesce_count(slow), drain::quiesce_count(memory)),
            (1, 1)
        );
        end(Some(memory));
        progress();
    }
    ok("/bdrv-drain/driver-cb/drain");

    for _ in 0..rounds {
        begin(None);
        holds("drain_all", [true; 2]);
        assert_eq!(
            (drain::quiesce_count(slow), drain::quiesce_count(memory)),
            (2, 1)
        );
        end(None);
        progress();
    }
    ok("/bdrv-drain/driver-cb/drain_all");

    for pair in 0..4 {
        let sections = [[None, Some(slow)][pair & 1], [None, Some(slow)][pair >> 1]];
        sections.into_iter().for_each(begin);
        let with_all = |sections: &[Option<NodeId>]| [true, sections.contains(&None)];
        holds("nested", with_all(&sections));
        end(sections[1]);
        holds("the outer one", with_all(&sections[..1]));
        // Consecutive: the cores may not have seen the end.
        end(sections[0]);
        begin(sections[0]);
        holds("begun again at once", with_all(&sections[..1]));
        end(sections[0]);
        assert_eq!(
            (drain::quiesce_count(slow), drain::quiesce_count(memory)),
            (0, 0)
        );
    }
    ok("/bdrv-drain/nested");

    for _ in 0..rounds {
        let Ok(guard) = drain::drained_all() else {
            panic!("no section")
        };
        holds("the waiting kind", [true; 2]);
        drop(guard);
    }
    ok("drained-and-waited-for");

    coroutines(false, rounds);
    ok("/bdrv-drain/driver-cb/co/drain");
    coroutines(true, rounds);
    ok("/bdrv-drain/driver-cb/co/drain_all");

    begin(None);
    let extra = open("b2", slow);
    assert_eq!(extra.quiesce_count(), 1);
    run_until("a new backend", || extra.is_quiet());
    assert_eq!(extra.delete(), Ok(()));
    let born = made(null::create("born", options));
    assert_eq!(drain::quiesce_count(born), 1);
    made(graph::delete(born));
    end(None);
    ok("/bdrv-drain/graph-change/drain_all");

    for round in 0..rounds {
        for step in 1..=cores {
            let core = (round + step) % cores;
            let before = CHANGED.load(Ordering::SeqCst);
            run_change(change::move_begin(memory, core, &changed, 0), before);
            assert_eq!(
                (graph::home(memory), graph::home(slow)),
                (Some(core), Some(core))
            );
            assert_eq!((users[0].home(), users[1].home()), (core, 0));
            assert!(!context::is_moving(memory));
        }
    }
    assert!(
        context::move_quiet(slow, cores).is_err(),
        "there is no such core, and it is not quiet"
    );
    let before = CHANGED.load(Ordering::SeqCst);
    run_change(change::move_begin(memory, 0, &changed, 0), before);
    ok("/bdrv-drain/set_aio_context");

    for _ in 0..rounds {
        let added = delay_on("added", memory);
        let before = CHANGED.load(Ordering::SeqCst);
        run_change(change::insert_begin(added, memory, &changed, 0), before);
        assert!(graph::stands_on(slow, added));
        progress();
        run_change(change::remove_begin(added, &changed, 0), before + 1);
        assert!(graph::find("added").is_none());
    }
    ok("graph-changes-while-io");

    STOP.store(1, Ordering::SeqCst);
    run_until("the end", || RUNNING.load(Ordering::SeqCst) == 0);
    begin(None);
    assert_eq!(
        users.map(|user| (user.in_flight(), user.parked())),
        [(0, 0); 2]
    );
    end(None);
    say!("drains: {:?} requests on {cores} cores", answered());
    pass()
}

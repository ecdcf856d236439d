//! The graph's readers and writer, rule by rule (GRL-1 … GRL-7), and what several queues share (MQ-5, MQ-6).
//!
//! QEMU has a lock whose readers are counted by context. Here a request in flight is the reader, counted by backend and core; the
//! writer is the main loop, which changes the graph inside a drained section.

use super::graph_rig::*;
use super::*;
use crate::aio::Callback;
use crate::block::graph::change::insert_begin;
use crate::block::graph::{self, Reason, drain};
use crate::config::MAX_CORES;

#[test]
fn grl_1_readers_are_counted_by_core_and_the_writer_is_the_main_loop() {
    let mut rig = rig(4);
    let (node, id) = leaf(&mut rig);
    let (_, above) = filter(&mut rig, &[id]);
    let backend = rig.backend(id);
    node.set_holding(true);
    for core in 0..4 {
        (0..=core).for_each(|_| send(core, backend, 0));
    }
    let counted: Vec<u32> = (0..4)
        .map(|core| backend.cores.get(core).in_flight.load(Ordering::Relaxed))
        .collect();
    assert_eq!(
        (counted, backend.in_flight()),
        (Vec::from([1, 2, 3, 4]), 10)
    );
    for core in 1..4 {
        let refused = on(core, || [graph::detach(above, 0), graph::delete(above)]);
        assert!(
            refused
                .iter()
                .all(|r| r.as_ref().unwrap_err().reason == Reason::NotMainLoop)
        );
    }
    on(0, || node.let_go(Ok(())));
    rig.settle();
    rig.finish();
}

#[test]
fn grl_2_a_reader_that_meets_the_writer_steps_back_and_says_so() {
    let mut rig = rig(2);
    let (node, id) = leaf(&mut rig);
    let backend = rig.backend(id);
    Section::Node(id).begin();
    rig.settle();
    quiets();
    send(1, backend, 1);
    let core = backend.cores.get(1);
    assert_eq!(
        core.in_flight.load(Ordering::Relaxed),
        0,
        "counted, and taken back"
    );
    assert_eq!((backend.parked(), node.submitted()), (1, 0));
    Section::Node(id).end();
    node.set_holding(true);
    rig.settle();
    // The last reader's end wakes the writer, without anybody polling for it.
    Section::Node(id).begin();
    rig.settle();
    assert_eq!(quiets(), 0);
    on(1, || node.let_go(Ok(())));
    on(1, || aio::context(1).poll(false));
    assert!(
        on(0, || aio::context(0).poll(false)),
        "the main loop has something to do"
    );
    assert_eq!(quiets(), 1);
    Section::Node(id).end();
    rig.settle();
    rig.finish();
}

static LOAD: AtomicBool = AtomicBool::new(false);

fn again(mut request: Request) {
    if LOAD.load(Ordering::Relaxed) {
        let backend = backend(request.user[1] as usize).unwrap();
        request.reuse(Operation::Flush, 0, 0);
        backend.submit(request);
    }
}

#[test]
fn grl_3_readers_cannot_starve_the_writer() {
    let mut rig = rig(4);
    let (_, id) = leaf(&mut rig);
    let (_, extra) = filter(&mut rig, &[id]);
    let backend = rig.backend(id);
    LOAD.store(true, Ordering::Relaxed);
    for core in 0..4 {
        for _ in 0..8 {
            on(core, || {
                let mut request = request(flush(), 0);
                request.completion = &again;
                request.user[1] = backend.index() as u64;
                backend.submit(request);
            });
        }
    }
    let turn = || {
        for core in 0..MAX_CORES {
            on(core, || aio::context(core).poll(false));
        }
    };
    (0..10).for_each(|_| turn());
    outcomes();
    on(0, || insert_begin(extra, id, &outcome, 1)).unwrap();
    let turns = (0..50).find(|_| {
        turn();
        !outcomes().is_empty()
    });
    assert!(turns.is_some(), "the change never comes");
    (0..10).for_each(|_| turn());
    assert_eq!((backend.root(), backend.in_flight()), (Some(extra), 32));
    LOAD.store(false, Ordering::Relaxed);
    rig.settle();
    rig.finish();
}

#[test]
fn grl_4_the_end_wakes_the_readers_of_all_cores() {
    let mut rig = rig(4);
    let (_, id) = leaf(&mut rig);
    let backend = rig.backend(id);
    Section::Node(id).begin();
    rig.settle();
    for core in 0..4 {
        (0..3).for_each(|tag| send(core, backend, tag));
    }
    Section::Node(id).end();
    for core in 0..4 {
        assert!(
            on(core, || aio::context(core).poll(false)),
            "core {core} was told"
        );
        assert_eq!(backend.cores.get(core).parked.load(Ordering::Relaxed), 0);
    }
    rig.settle();
    assert_eq!(results().len(), 12);
    rig.finish();
}

#[test]
fn grl_5_a_section_and_a_change_take_no_lock_that_a_request_could_wait_for() {
    let mut rig = rig(2);
    let (node, id) = leaf(&mut rig);
    let (_, extra) = filter(&mut rig, &[id]);
    let backend = rig.backend(id);
    node.set_holding(true);
    send(1, backend, 1);
    rig.settle();
    on(0, || {
        let _held = aio::main_context().lock();
        let begun = drain::drain_begin(id, Callback::new(&ignore, 0));
        assert_eq!(
            begun,
            Err(BlockError::Busy),
            "would wait with the lock held"
        );
        let changed = insert_begin(extra, id, &outcome, 1).unwrap_err();
        assert_eq!(changed.reason, Reason::NotMainLoop);
        assert_eq!(drain::quiesce_count(id), 0);
    });
    // While a change waits, the graph can be read, by any core.
    on(0, || insert_begin(extra, id, &outcome, 1)).unwrap();
    assert_eq!(on(1, || graph::find(&graph::name(id).unwrap())), Some(id));
    on(1, || node.let_go(Ok(())));
    node.set_holding(false);
    rig.settle();
    assert_eq!(backend.root(), Some(extra));
    rig.finish();
}

#[test]
fn grl_6_a_reader_that_travels_is_counted_where_it_began() {
    let mut rig = rig(3);
    let f = rig.disk(with_flush(1 << 20));
    f.device.set_single_queue(2);
    submit(1, f.backend, read(0, 512), 1);
    let counted =
        || [0, 1, 2].map(|core| f.backend.cores.get(core).in_flight.load(Ordering::Relaxed));
    rig.settle();
    assert_eq!((f.device.held(), counted()), (1, [0, 1, 0]));
    // The core on which it is has nothing to say about it; the one that it came from has.
    rig.drain(f.backend);
    let mut waits_for = Vec::new();
    on(0, || {
        for_each_section(|_, _, _, state| waits_for.push(state))
    });
    assert_eq!(waits_for, [DrainState::Core(1)]);
    on(2, || f.device.finish_all());
    on(2, || aio::context(2).poll(false));
    assert_eq!(counted(), [0, 1, 0]);
    rig.settle();
    assert_eq!((counted(), rig.quiet(f.backend)), ([0; 3], true));
    rig.undrain(f.backend);
    rig.finish();
}

#[test]
fn grl_7_the_counters_of_two_cores_share_no_cache_line() {
    let mut rig = rig(1);
    let (_, id) = leaf(&mut rig);
    let backend = rig.backend(id);
    let place = |core| &raw const backend.cores.get(core).in_flight as usize;
    for core in 1..MAX_CORES {
        assert!(place(core) - place(core - 1) >= 64);
    }
    rig.finish();
}

#[test]
fn mq_5_lists_are_read_as_they_are_while_others_change_them() {
    let mut rig = rig(3);
    let (node, id) = leaf(&mut rig);
    let backend = rig.backend(id);
    node.set_holding(true);
    (0..3).for_each(|core| send(core, backend, 0));
    rig.settle();
    // Whoever reads may ask further, or end what it reads.
    let mut seen = 0;
    for_each_in_flight(|view| {
        assert_eq!(view.backend, backend.index());
        seen += 1;
        on(0, || node.let_go(Ok(())));
        rig.settle();
    });
    assert!((1..=3).contains(&seen));
    let mut names = Vec::new();
    on(0, || {
        graph::parent_names(id, |name| {
            assert!(crate::block::backend::named(&name).is_some());
            names.push(graph::home(id));
        });
    });
    assert_eq!(names, [Some(0)]);
    rig.finish();
}

#[test]
fn mq_6_who_waits_is_called_with_nothing_borrowed() {
    static NODE: Mutex<Option<NodeId>> = Mutex::new(None);
    static LEFT: AtomicUsize = AtomicUsize::new(0);
    /// Ends its section, and begins and waits for another.
    fn next(_: usize) {
        let id = NODE.lock().unwrap().unwrap();
        drain::drain_end(id);
        if LEFT.fetch_sub(1, Ordering::SeqCst) > 1 {
            drain::drain_begin(id, Callback::new(&next, 0)).unwrap();
            let backend = backends().find(|b| b.root() == Some(id)).unwrap();
            backend
                .drain_begin(Callback::new(&over, backend.index()))
                .unwrap();
        }
    }
    fn over(index: usize) {
        backend(index).unwrap().drain_end();
    }
    let mut rig = rig(2);
    let (_, id) = leaf(&mut rig);
    let backend = rig.backend(id);
    *NODE.lock().unwrap() = Some(id);
    LEFT.store(10, Ordering::SeqCst);
    on(0, || drain::drain_begin(id, Callback::new(&next, 0))).unwrap();
    rig.settle();
    assert_eq!(LEFT.load(Ordering::SeqCst), 0);
    assert_eq!((counts([id]), on(0, || backend.quiesce_count())), ([0], 0));
    rig.finish();
}

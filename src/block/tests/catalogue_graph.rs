//! QEMU's cases of graph changes, by name (tests.md §2.12): permissions in one piece, no loops, changes while clients work.

use super::graph_rig::*;
use super::*;
use crate::block::graph::change::{insert_begin, remove_begin, replace_begin};
use crate::block::graph::{self, Permissions, Reason};
use crate::block::node::delay::{self, DelayOptions, Latencies};
use crate::block::testing::{EXCLUSIVE, Heard, TestNode};

/// A backend that writes and lets nobody else.
fn writer(node: NodeId) -> &'static Backend {
    let open = || Backend::open(&unique("writer"), "test", Some(node), EXCLUSIVE);
    on(0, open).unwrap()
}

fn is_conflict(result: &Result<(), graph::Refusal>) -> bool {
    matches!(result, Err(refusal) if matches!(refusal.reason, Reason::Conflict { .. }))
}

/// `/bdrv-graph-mod/update-perm-tree`
#[test]
fn bdrv_graph_mod_update_perm_tree() {
    let mut rig = rig(2);
    let (_, base) = leaf(&mut rig);
    let backend = writer(base);
    // Writes to two children, the second of which already has a writer who does not share.
    let (_, other) = leaf(&mut rig);
    let second = writer(other);
    let node = TestNode::filter(2);
    let id = on(0, || node.add(&unique("greedy"), &[base, other])).unwrap();
    rig.keep(id);
    rig.settle();
    outcomes();
    on(0, || insert_begin(id, base, &outcome, 1)).unwrap();
    rig.settle();
    let refused = outcomes();
    assert!(is_conflict(&refused[0].1), "{refused:?}");
    assert_eq!(backend.root(), Some(base), "nothing has changed");
    assert_eq!(graph::children(id).as_slice(), [(0, base), (1, other)]);
    assert_eq!(counts([base, other, id]), [0; 3]);
    send(1, backend, 1);
    rig.settle();
    assert_eq!(results(), [(1, Ok(()))]);
    delete_backend(&rig, backend);
    delete_backend(&rig, second);
    rig.finish();
}

/// `/bdrv-graph-mod/should-update-child`
#[test]
fn bdrv_graph_mod_should_update_child() {
    let mut rig = rig(2);
    let (_, base) = leaf(&mut rig);
    let (_, inner) = filter(&mut rig, &[base]);
    let backend = rig.backend(base);
    let (_, outer) = filter(&mut rig, &[base, inner]);
    outcomes();
    on(0, || insert_begin(outer, base, &outcome, 1)).unwrap();
    rig.settle();
    assert_eq!(outcomes(), [(1, Ok(()))]);
    assert_eq!(
        graph::children(inner).as_slice(),
        [(0, base)],
        "stands below: no loop"
    );
    assert_eq!(graph::children(outer).as_slice(), [(0, base), (1, inner)]);
    assert_eq!(backend.root(), Some(outer));
    assert!(on(0, || graph::stands_on(outer, inner)
        && !graph::stands_on(inner, outer)));
    rig.finish();
}

/// `/bdrv-graph-mod/parallel-exclusive-write`
#[test]
fn bdrv_graph_mod_parallel_exclusive_write() {
    let mut rig = rig(2);
    let (base_node, base) = leaf(&mut rig);
    let (_, first) = filter(&mut rig, &[base]);
    let (_, second) = filter(&mut rig, &[base]);
    let (_, top) = filter(&mut rig, &[first]);
    let backend = writer(top);
    rig.settle();
    outcomes();
    on(0, || replace_begin(top, 0, second, &outcome, 1)).unwrap();
    rig.settle();
    assert_eq!(
        outcomes(),
        [(1, Ok(()))],
        "what was granted to the old one is taken back first"
    );
    assert_eq!(graph::children(top).as_slice(), [(0, second)]);
    let taken = on(0, || {
        Backend::open(&unique("w"), "test", Some(base), EXCLUSIVE)
    })
    .err();
    assert!(taken.is_some(), "the write is granted to the new one");
    send(1, backend, 1);
    rig.settle();
    assert_eq!(
        (results(), base_node.submitted()),
        (Vec::from([(1, Ok(()))]), 1)
    );
    delete_backend(&rig, backend);
    rig.finish();
}

/// `/bdrv-graph-mod/parallel-perm-update`
#[test]
fn bdrv_graph_mod_parallel_perm_update() {
    let mut rig = rig(2);
    let (_, base) = leaf(&mut rig);
    let (_, left) = filter(&mut rig, &[base]);
    let (_, right) = filter(&mut rig, &[base]);
    let (top_node, top) = filter(&mut rig, &[left, right]);
    // Whoever does not write leaves it to the other.
    let resting = Permissions::NONE;
    top_node.set_permissions_of(0, Some(EXCLUSIVE));
    top_node.set_permissions_of(1, Some(resting));
    let backend = rig.backend(top);
    for round in 0..4 {
        let (writing, idle) = (round % 2, 1 - round % 2);
        top_node.set_permissions_of(writing, Some(EXCLUSIVE));
        top_node.set_permissions_of(idle, Some(resting));
        let updated = on(0, || backend.set_permissions(Permissions::READER));
        assert_eq!(updated, Ok(()), "from side {idle} to side {writing}");
        // The side that rests may have a writer as little as the base itself.
        let sides = [left, right];
        let open = |id| {
            on(0, || {
                Backend::open(&unique("w"), "test", Some(id), EXCLUSIVE)
            })
            .err()
        };
        assert!(open(base).is_some() && open(sides[idle]).is_some());
    }
    top_node.set_permissions_of(0, Some(EXCLUSIVE));
    top_node.set_permissions_of(1, Some(EXCLUSIVE));
    let both = on(0, || backend.set_permissions(Permissions::READER));
    assert!(is_conflict(&both), "both at once is refused: {both:?}");
    rig.finish();
}

/// `/bdrv-graph-mod/append-greedy-filter`
#[test]
fn bdrv_graph_mod_append_greedy_filter() {
    let mut rig = rig(2);
    let (_, base) = leaf(&mut rig);
    let backend = writer(base);
    rig.settle();
    let greedy = TestNode::filter(1);
    greedy.set_child_permissions(Some(EXCLUSIVE));
    let beside = on(0, || greedy.add(&unique("greedy"), &[base])).unwrap_err();
    assert!(is_conflict(&Err(beside)), "beside the writer it cannot be");
    let id = on(0, || greedy.add(&unique("greedy"), &[])).unwrap();
    rig.keep(id);
    outcomes();
    on(0, || insert_begin(id, base, &outcome, 1)).unwrap();
    rig.settle();
    assert_eq!(outcomes(), [(1, Ok(()))], "above it, it can");
    assert_eq!(
        (backend.root(), graph::children(id).as_slice()),
        (Some(id), &[(0, base)][..])
    );
    send(1, backend, 1);
    rig.settle();
    assert_eq!(
        (results(), greedy.submitted()),
        (Vec::from([(1, Ok(()))]), 1)
    );
    // Refused in its place, it has nothing below it.
    let (read_only, other) = leaf(&mut rig);
    read_only.set_read_only(true);
    let reader = rig.backend(other);
    let second = TestNode::filter(1);
    second.set_child_permissions(Some(EXCLUSIVE));
    let second_id = on(0, || second.add(&unique("greedy"), &[])).unwrap();
    rig.keep(second_id);
    on(0, || insert_begin(second_id, other, &outcome, 2)).unwrap();
    rig.settle();
    let refused = outcomes().pop().unwrap().1.unwrap_err();
    assert_eq!(refused.reason, Reason::ReadOnly);
    assert!(graph::children(second_id).is_empty());
    assert_eq!(
        (reader.root(), counts([other, second_id])),
        (Some(other), [0, 0])
    );
    delete_backend(&rig, backend);
    rig.finish();
}

/// One request after another from each core, until told to stop.
static GO_ON: AtomicBool = AtomicBool::new(false);

fn again(mut request: Request) {
    assert_eq!(request.result, Ok(()));
    DONE.lock().unwrap().push(Done {
        tag: request.user[0],
        result: Ok(()),
        core: arch::current_core().unwrap(),
        data: Vec::new(),
    });
    if GO_ON.load(Ordering::Relaxed) {
        let backend = backend(request.user[1] as usize).unwrap();
        request.reuse(Operation::Flush, 0, 0);
        backend.submit(request);
    }
}

static BOTTOM: Mutex<Option<&'static TestNode>> = Mutex::new(None);

/// A section is over, and nobody is open yet: whatever came is done.
fn at_the_end(heard: Heard) {
    if heard == Heard::DrainEnd {
        let bottom = BOTTOM.lock().unwrap().unwrap();
        assert_eq!(bottom.held(), 0, "a request slipped through");
    }
}

fn load(backend: &'static Backend, cores: usize) {
    GO_ON.store(true, Ordering::Relaxed);
    for core in 0..cores {
        on(core, || {
            let mut request = request(flush(), core as u64);
            request.completion = &again;
            request.user[1] = backend.index() as u64;
            backend.submit(request);
        });
    }
}

/// iotest `graph-changes-while-io`: `blockdev_add_while_io`, with real nodes added above and removed; a node of the test sees every
/// request. (Its other two cases are jobs.)
#[test]
fn iotest_graph_changes_while_io() {
    let mut rig = rig(4);
    let (bottom, bottom_id) = leaf(&mut rig);
    let (_, top_id) = filter(&mut rig, &[bottom_id]);
    let backend = rig.backend(top_id);
    bottom.set_holding(true);
    *BOTTOM.lock().unwrap() = Some(bottom);
    bottom.set_hook(Some(at_the_end));
    load(backend, 4);
    let turn = || {
        for core in 0..crate::config::MAX_CORES {
            on(core, || aio::context(core).poll(false));
        }
        on(2, || bottom.let_go(Ok(())));
    };
    let mut before = 0;
    for round in 0..20 {
        let options = DelayOptions {
            child: bottom_id,
            latencies: Latencies::default(),
        };
        let added = on(0, || delay::create(&unique("delay"), options)).unwrap();
        outcomes();
        on(0, || insert_begin(added, bottom_id, &outcome, 1)).unwrap();
        let mut turns = 0;
        while outcomes().is_empty() {
            turn();
            turns += 1;
            assert!(turns < 1000, "round {round}: the change hangs");
        }
        assert_eq!(graph::children(top_id).as_slice(), [(0, added)]);
        (0..20).for_each(|_| turn());
        on(0, || remove_begin(added, &outcome, 2)).unwrap();
        while outcomes().is_empty() {
            turn();
            turns += 1;
            assert!(turns < 2000, "round {round}: the change back hangs");
        }
        (0..20).for_each(|_| turn());
        let answered = DONE.lock().unwrap().len();
        assert!(answered > before, "round {round}: the load stands still");
        before = answered;
    }
    GO_ON.store(false, Ordering::Relaxed);
    bottom.set_holding(false);
    on(2, || bottom.let_go(Ok(())));
    rig.settle();
    bottom.set_hook(None);
    let done = done();
    assert!(
        done.iter().all(|done| done.core == done.tag as usize),
        "each came home"
    );
    rig.finish();
}

/// iotest `iothreads-commit-active`, its point for drained sections: one on a node waits for nothing that is not above that node,
/// however long that takes, and lets it work.
#[test]
fn iotest_iothreads_commit_active() {
    let mut rig = rig(2);
    let (_, id) = leaf(&mut rig);
    let backend = rig.backend(id);
    let (busy, busy_id) = leaf(&mut rig);
    let unrelated = rig.backend(busy_id);
    busy.set_holding(true);
    send(1, unrelated, 1);
    rig.settle();
    quiets();
    Section::Node(id).begin();
    rig.settle();
    assert_eq!((quiets(), unrelated.in_flight()), (1, 1));
    send(1, unrelated, 2);
    rig.settle();
    assert_eq!((busy.held(), unrelated.parked()), (2, 0));
    Section::Node(id).end();
    on(1, || busy.let_go(Ok(())));
    send(1, backend, 3);
    rig.settle();
    assert_eq!(results().len(), 3);
    rig.finish();
}

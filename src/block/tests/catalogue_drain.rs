//! QEMU's drain cases, by name (tests.md §2.8): what drivers hear, how sections nest, what a change of the graph does to them.
//!
//! Cases with jobs: `catalogue_jobs_drain`. A drain that recurses into children, which QEMU gave up, does not exist here.

use super::graph_rig::*;
use super::*;
use crate::block::graph;
use crate::block::graph::change::replace_begin;
use crate::block::graph::drain;
use crate::block::testing::TestNode;

/// A backend on a node on another.
struct Chain {
    rig: Rig,
    node: &'static TestNode,
    backing: &'static TestNode,
    ids: [NodeId; 2],
    backend: &'static Backend,
}

fn chain(cores: usize) -> Chain {
    let mut rig = rig(cores);
    let (backing, below) = leaf(&mut rig);
    let (node, above) = filter(&mut rig, &[below]);
    let backend = rig.backend(above);
    quiets();
    Chain {
        rig,
        node,
        backing,
        ids: [above, below],
        backend,
    }
}

/// Who drains.
#[derive(Clone, Copy)]
enum From {
    Main,
    Coroutine(CoreId),
}

impl From {
    fn begin(self, section: Section, rig: &Rig) {
        match self {
            From::Main => section.begin(),
            From::Coroutine(core) => section.begin_in_coroutine(core),
        }
        rig.settle();
    }

    fn end(self, section: Section, rig: &Rig) {
        match self {
            From::Main => section.end(),
            From::Coroutine(_) => Section::end_coroutines(),
        }
        rig.settle();
    }
}

fn driver_cb(everything: bool, from: From) {
    let c = chain(3);
    let section = if everything {
        Section::All
    } else {
        Section::Node(c.ids[0])
    };
    let inside = (1, i32::from(everything));
    let heard = || (c.node.drained(), c.backing.drained());
    from.begin(section, &c.rig);
    assert_eq!((heard(), quiets()), (inside, 1));
    from.end(section, &c.rig);
    assert_eq!(heard(), (0, 0));
    // Once more with a request on its way.
    c.backing.set_holding(true);
    send(1, c.backend, 7);
    from.begin(section, &c.rig);
    assert_eq!((heard(), quiets(), done()), (inside, 0, Vec::new()));
    on(1, || c.backing.let_go(Ok(())));
    c.rig.settle();
    assert_eq!((quiets(), results()), (1, vec_of(7)));
    assert_eq!(heard(), inside);
    from.end(section, &c.rig);
    assert_eq!((heard(), counts(c.ids)), ((0, 0), [0, 0]));
    if let From::Coroutine(core) = from {
        assert_eq!(core_of_section(), core);
    }
    c.rig.finish();
}

fn vec_of(tag: u64) -> Vec<(u64, Result<(), BlockError>)> {
    Vec::from([(tag, Ok(()))])
}

/// `/bdrv-drain/driver-cb/drain_all`
#[test]
fn bdrv_drain_driver_cb_drain_all() {
    driver_cb(true, From::Main);
}

/// `/bdrv-drain/driver-cb/drain`
#[test]
fn bdrv_drain_driver_cb_drain() {
    driver_cb(false, From::Main);
}

/// `/bdrv-drain/driver-cb/co/drain_all`
#[test]
fn bdrv_drain_driver_cb_co_drain_all() {
    driver_cb(true, From::Coroutine(0));
    driver_cb(true, From::Coroutine(2));
}

/// `/bdrv-drain/driver-cb/co/drain`
#[test]
fn bdrv_drain_driver_cb_co_drain() {
    driver_cb(false, From::Coroutine(0));
    driver_cb(false, From::Coroutine(1));
}

fn quiesce(everything: bool, from: From) {
    let c = chain(2);
    let (section, inside) = if everything {
        (Section::All, [2, 1])
    } else {
        (Section::Node(c.ids[0]), [1, 0])
    };
    from.begin(section, &c.rig);
    assert_eq!((counts(c.ids), quiets()), (inside, 1));
    from.end(section, &c.rig);
    assert_eq!(counts(c.ids), [0, 0]);
    c.rig.finish();
}

/// `/bdrv-drain/quiesce/drain_all`
#[test]
fn bdrv_drain_quiesce_drain_all() {
    quiesce(true, From::Main);
}

/// `/bdrv-drain/quiesce/drain`
#[test]
fn bdrv_drain_quiesce_drain() {
    quiesce(false, From::Main);
}

/// `/bdrv-drain/quiesce/co/drain_all`
#[test]
fn bdrv_drain_quiesce_co_drain_all() {
    quiesce(true, From::Coroutine(1));
}

/// `/bdrv-drain/quiesce/co/drain`
#[test]
fn bdrv_drain_quiesce_co_drain() {
    quiesce(false, From::Coroutine(1));
}

/// `/bdrv-drain/nested`
#[test]
fn bdrv_drain_nested() {
    let c = chain(2);
    let one = Section::Node(c.ids[0]);
    for outer in [Section::All, one] {
        for inner in [Section::All, one] {
            let over_all = [outer, inner]
                .iter()
                .filter(|s| **s == Section::All)
                .count() as u32;
            outer.begin();
            c.rig.settle();
            inner.begin();
            c.rig.settle();
            assert_eq!(quiets(), 2);
            assert_eq!(
                counts(c.ids),
                [2 + over_all.min(1), over_all],
                "{outer:?}/{inner:?}"
            );
            let heard = (c.node.drained(), c.backing.drained());
            assert_eq!(heard, (1, i32::from(over_all > 0)));
            inner.end();
            outer.end();
            c.rig.settle();
            assert_eq!(
                (counts(c.ids), c.node.drained(), c.backing.drained()),
                ([0, 0], 0, 0)
            );
        }
    }
    assert_eq!(c.node.begins(), 4, "once a pair");
    c.rig.finish();
}

/// `/bdrv-drain/graph-change/drain_all`
#[test]
fn bdrv_drain_graph_change_drain_all() {
    let mut rig = rig(2);
    let (a, a_id) = leaf(&mut rig);
    let on_a = own_backend(a_id);
    rig.settle();
    Section::All.begin();
    rig.settle();
    assert_eq!((counts([a_id]), a.drained()), ([1], 1));
    let (b, b_id) = leaf(&mut rig);
    let on_b = rig.backend(b_id);
    assert_eq!((counts([a_id, b_id]), b.drained()), ([1, 1], 1));
    assert!(
        rig.quiet(on_b),
        "born drained, and quiet without being asked"
    );
    on(0, || on_a.delete()).unwrap();
    on(0, || graph::delete(a_id)).unwrap();
    assert_eq!((counts([b_id]), b.drained()), ([1], 1));
    assert_eq!(a.drained(), 0, "its section ended with it");
    send(1, on_b, 1);
    rig.settle();
    assert_eq!((on_b.parked(), b.submitted()), (1, 0));
    Section::All.end();
    rig.settle();
    assert_eq!((counts([b_id]), b.drained()), ([0], 0));
    assert_eq!(results(), vec_of(1));
    rig.finish();
}

/// `/bdrv-drain/iothread/drain`
#[test]
fn bdrv_drain_iothread_drain() {
    for from in [From::Main, From::Coroutine(1)] {
        let c = chain(2);
        move_to(&c.rig, c.ids[0], 1).unwrap();
        assert_eq!(homes(c.ids), [1, 1]);
        c.backing.set_holding(true);
        send(1, c.backend, 1);
        c.rig.settle();
        quiets();
        let section = Section::Node(c.ids[0]);
        from.begin(section, &c.rig);
        assert_eq!((quiets(), done()), (0, Vec::new()));
        on(1, || c.backing.let_go(Ok(())));
        c.rig.settle();
        assert_eq!((quiets(), results()), (1, vec_of(1)));
        from.end(section, &c.rig);
        assert_eq!(counts(c.ids), [0, 0]);
        c.rig.finish();
    }
}

/// `/bdrv-drain/set_aio_context`
#[test]
fn bdrv_drain_set_aio_context() {
    use crate::block::testing::Heard::{Attach, Detach, DrainBegin, DrainEnd};
    let mut rig = rig(3);
    let (node, id) = leaf(&mut rig);
    for core in [1, 2, 0] {
        move_to(&rig, id, core).unwrap();
        assert_eq!(graph::home(id), Some(core));
        assert_eq!(node.heard(), [DrainBegin, Detach, Attach(core), DrainEnd]);
    }
    rig.finish();
}

/// `/bdrv-drain/replace_child/mid-drain`
#[test]
fn bdrv_drain_replace_child_mid_drain() {
    for (old_drained, new_drained) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut rig = rig(2);
        let (old, old_id) = leaf(&mut rig);
        let (new, new_id) = leaf(&mut rig);
        let (parent, parent_id) = filter(&mut rig, &[old_id]);
        let backend = rig.backend(parent_id);
        if new_drained {
            Section::Node(new_id).begin();
        }
        if old_drained {
            Section::Node(old_id).begin();
        }
        rig.settle();
        send(1, backend, 1);
        rig.settle();
        assert_eq!(backend.parked(), u32::from(old_drained));
        let before = parent.begins();
        assert_eq!(parent.drained(), i32::from(old_drained));
        outcomes();
        on(0, || replace_begin(parent_id, 0, new_id, &outcome, 5)).unwrap();
        // Core 1 has closed its gate, the others not yet.
        on(0, || aio::context(0).poll(false));
        on(1, || aio::context(1).poll(false));
        send(1, backend, 2);
        rig.settle();
        assert_eq!(outcomes(), [(5, Ok(()))]);
        assert_eq!(graph::children(parent_id).as_slice(), [(0, new_id)]);
        assert_eq!(parent.drained(), i32::from(new_drained));
        assert_eq!(
            parent.begins() - before,
            u32::from(!old_drained),
            "a drained one stays so, without a gap"
        );
        let at_once = if new_drained {
            0
        } else {
            1 + usize::from(old_drained)
        };
        assert_eq!(new.submitted(), at_once);
        if new_drained {
            Section::Node(new_id).end();
        }
        if old_drained {
            Section::Node(old_id).end();
        }
        rig.settle();
        assert_eq!(results(), [(1, Ok(())), (2, Ok(()))]);
        assert_eq!((old.slipped(), new.slipped(), parent.slipped()), (0, 0, 0));
        assert_eq!((parent.drained(), counts([parent_id])), (0, [0]));
        rig.finish();
    }
}

/// `/bdrv-drain/detach/parent_cb`
#[test]
fn bdrv_drain_detach_parent_cb() {
    static PLACES: Mutex<Option<[NodeId; 3]>> = Mutex::new(None);
    fn swap(_: usize) {
        let [parent_b, _, c] = PLACES.lock().unwrap().unwrap();
        graph::detach(parent_b, 1).unwrap();
        graph::attach(parent_b, 1, c).unwrap();
    }
    fn completed(request: Request) {
        let swap = aio::Callback::new(&swap, 0);
        aio::main_context().schedule_oneshot("swap", swap).unwrap();
        drop(request);
    }
    let mut rig = rig(2);
    let (a, a_id) = leaf(&mut rig);
    let (_, b_id) = leaf(&mut rig);
    let (_, c_id) = leaf(&mut rig);
    let (_, parent_a) = filter(&mut rig, &[a_id]);
    let (parent, parent_b) = filter(&mut rig, &[a_id, b_id]);
    let backend = rig.backend(parent_a);
    *PLACES.lock().unwrap() = Some([parent_b, b_id, c_id]);
    a.set_holding(true);
    on(1, || {
        let mut request = request(flush(), 1);
        request.completion = &completed;
        backend.submit(request);
    });
    let sections = [parent_b, a_id, b_id, c_id].map(Section::Node);
    sections.iter().for_each(|section| section.begin());
    rig.settle();
    assert_eq!(
        counts([parent_b, parent_a, a_id, b_id, c_id]),
        [3, 1, 1, 1, 1]
    );
    assert_eq!(graph::children(parent_b).as_slice(), [(0, a_id), (1, b_id)]);
    on(1, || a.let_go(Ok(())));
    rig.settle();
    assert_eq!(graph::children(parent_b).as_slice(), [(0, a_id), (1, c_id)]);
    assert_eq!(
        counts([parent_b, parent_a, a_id, b_id, c_id]),
        [3, 1, 1, 1, 1]
    );
    assert_eq!(parent.begins(), 1, "drained all the time");
    sections.iter().for_each(|section| section.end());
    rig.settle();
    assert_eq!(counts([parent_b, parent_a, a_id, b_id, c_id]), [0; 5]);
    assert_eq!(parent.drained(), 0);
    assert!(!on(0, || drain::is_quiet(parent_b)));
    rig.finish();
}

//! The graph: edges, permissions, and changes while requests travel.

use super::*;
use crate::block::graph::change::{insert_begin, move_begin, remove_begin};
use crate::block::graph::{self, Permissions, Reason, Refusal, drain};
use crate::block::testing::{EXCLUSIVE, TestNode};

static OUTCOMES: Mutex<Vec<(usize, Result<(), Refusal>)>> = Mutex::new(Vec::new());

fn outcome(argument: usize, result: Result<(), Refusal>) {
    OUTCOMES.lock().unwrap().push((argument, result));
}

fn outcomes() -> Vec<(usize, Result<(), Refusal>)> {
    core::mem::take(&mut *OUTCOMES.lock().unwrap())
}

fn name(prefix: &str) -> heapless::String<24> {
    let mut name = heapless::String::new();
    let number = NEXT_DISK.fetch_add(1, Ordering::Relaxed);
    core::fmt::write(&mut name, format_args!("{prefix}{number}")).unwrap();
    name
}

/// A leaf and its id.
fn leaf(rig: &Rig) -> (&'static TestNode, NodeId) {
    let _ = rig;
    let node = TestNode::leaf(1 << 20);
    let id = on(0, || node.add(&name("leaf"), &[])).unwrap();
    (node, id)
}

fn filter(children: &[NodeId]) -> (&'static TestNode, NodeId) {
    let node = TestNode::filter(children.len());
    let id = on(0, || node.add(&name("filter"), children)).unwrap();
    (node, id)
}

fn delete(ids: &[NodeId]) {
    for id in ids {
        on(0, || graph::delete(*id)).unwrap();
    }
}

fn read(backend: &'static Backend, core: CoreId, tag: u64) {
    on(core, || {
        let mut request = request::new(Operation::Flush, 0, 0).unwrap();
        request.user[0] = tag;
        request.completion = &record;
        backend.submit(request);
    });
}

#[test]
fn a_drained_node_quiesces_what_is_above_and_leaves_what_is_below() {
    let mut rig = rig(2);
    let (bottom, bottom_id) = leaf(&rig);
    let (top, top_id) = filter(&[bottom_id]);
    let backend = rig.backend(top_id);
    on(0, || {
        drain::drain_begin(bottom_id, aio::Callback::new(&ignore, 0))
    })
    .unwrap();
    rig.settle();
    assert!(on(0, || drain::is_quiet(bottom_id)));
    assert_eq!((bottom.drained(), top.drained()), (1, 1));
    assert_eq!(on(0, || backend.quiesce_count()), 1);
    on(0, || drain::drain_end(bottom_id));
    assert_eq!((bottom.drained(), top.drained()), (0, 0));
    on(0, || {
        drain::drain_begin(top_id, aio::Callback::new(&ignore, 0))
    })
    .unwrap();
    rig.settle();
    assert_eq!((bottom.drained(), top.drained()), (0, 1));
    on(0, || drain::drain_end(top_id));
    rig.settle();
    rig.finish();
    delete(&[bottom_id]);
}

#[test]
fn a_filter_is_inserted_and_removed_under_load() {
    let mut rig = rig(2);
    let (bottom, bottom_id) = leaf(&rig);
    let backend = rig.backend(bottom_id);
    bottom.set_holding(true);
    read(backend, 1, 1);
    rig.settle();
    let (top, top_id) = filter(&[bottom_id]);
    on(0, || insert_begin(top_id, bottom_id, &outcome, 7)).unwrap();
    rig.settle();
    assert_eq!(outcomes(), [], "a request is under way below the backend");
    read(backend, 1, 2);
    rig.settle();
    assert_eq!(bottom.submitted(), 1, "the second waits in the backend");
    on(1, || bottom.let_go(Ok(())));
    rig.settle();
    assert_eq!(outcomes(), [(7, Ok(()))]);
    assert_eq!(backend.root(), Some(top_id));
    assert_eq!(
        top.submitted(),
        1,
        "the parked request went through the filter"
    );
    on(1, || bottom.let_go(Ok(())));
    rig.settle();
    on(0, || remove_begin(top_id, &outcome, 8)).unwrap();
    rig.settle();
    assert_eq!(outcomes(), [(8, Ok(()))]);
    assert_eq!(backend.root(), Some(bottom_id));
    assert!(graph::name(top_id).is_none(), "the filter is gone");
    assert_eq!(DONE.lock().unwrap().len(), 2);
    assert_eq!(bottom.slipped() + top.slipped(), 0);
    bottom.set_holding(false);
    rig.finish();
}

#[test]
fn two_writers_that_do_not_share_are_refused_by_name() {
    let rig = rig(1);
    let (_, id) = leaf(&rig);
    let (first, second) = (name("w"), name("w"));
    let one = on(0, || Backend::open(&first, "test", Some(id), EXCLUSIVE)).unwrap();
    let refused = on(0, || Backend::open(&second, "test", Some(id), EXCLUSIVE)).err();
    let reason = refused.map(|refusal| refusal.reason);
    assert!(
        matches!(&reason, Some(Reason::Conflict { with, .. }) if with == first.as_str() || with == second.as_str()),
        "{reason:?}"
    );
    assert!(on(0, || backend::named(&second)).is_none());
    let reader = on(0, || {
        Backend::open(&second, "test", Some(id), Permissions::READER)
    })
    .unwrap();
    for backend in [one, reader] {
        rig.drain(backend);
        on(0, || backend.delete()).unwrap();
    }
    delete(&[id]);
}

#[test]
fn cycles_and_chains_that_are_too_deep_are_refused() {
    let rig = rig(1);
    let (_, bottom) = leaf(&rig);
    let (_, middle) = filter(&[bottom]);
    let (_, top) = filter(&[middle]);
    let refused = on(0, || graph::replace(middle, 0, top)).unwrap_err();
    assert_eq!(refused.reason, Reason::Cycle);
    assert_eq!(graph::children(middle).as_slice(), [(0, bottom)]);
    let refused = on(0, || graph::delete(bottom)).unwrap_err();
    assert_eq!(refused.reason, Reason::InUse(graph::name(middle).unwrap()));
    delete(&[top, middle, bottom]);
    let _ = rig;
}

#[test]
fn a_move_takes_the_component_or_nothing() {
    let mut rig = rig(3);
    let (bottom, bottom_id) = leaf(&rig);
    let (top, top_id) = filter(&[bottom_id]);
    let backend = rig.backend(top_id);
    on(0, || move_begin(top_id, 2, &outcome, 1)).unwrap();
    rig.settle();
    assert_eq!(outcomes(), [(1, Ok(()))]);
    assert_eq!(
        (graph::home(bottom_id), graph::home(top_id), backend.home()),
        (Some(2), Some(2), 2)
    );
    bottom.set_refuse_context(true);
    on(0, || move_begin(bottom_id, 1, &outcome, 2)).unwrap();
    rig.settle();
    assert!(matches!(
        outcomes().as_slice(),
        [(
            2,
            Err(Refusal {
                reason: Reason::Node(BlockError::NotSupported),
                ..
            })
        )]
    ));
    assert_eq!((graph::home(top_id), backend.home()), (Some(2), 2));
    assert_eq!((bottom.drained(), top.drained()), (0, 0));
    rig.finish();
    delete(&[bottom_id]);
}

#[test]
fn a_move_that_goes_on_elsewhere_keeps_the_node_drained() {
    let mut rig = rig(2);
    let (bottom, bottom_id) = leaf(&rig);
    let backend = rig.backend(bottom_id);
    let (_, top_id) = filter(&[bottom_id]);
    // Busy from the moment that it moves, as a disk whose queue another core hands over.
    on(0, || move_begin(bottom_id, 1, &outcome, 1)).unwrap();
    rig.settle();
    assert_eq!(outcomes(), [(1, Ok(()))]);
    on(0, || {
        let drained = drain::drain_begin(bottom_id, aio::Callback::new(&ignore, 0));
        drained.unwrap();
    });
    rig.settle();
    bottom.set_busy(true);
    assert!(!on(0, || drain::is_quiet(bottom_id)));
    on(0, || bottom.set_busy(false));
    rig.settle();
    assert!(on(0, || drain::is_quiet(bottom_id)));
    on(0, || drain::drain_end(bottom_id));
    read(backend, 1, 3);
    rig.settle();
    assert_eq!(DONE.lock().unwrap().len(), 1);
    on(0, || graph::delete(top_id)).unwrap();
    rig.finish();
}

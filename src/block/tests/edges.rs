//! Sections and changes that do not go as planned: ended early, refused halfway, with a user whom no gate holds.

use super::*;
use crate::block::graph::change::insert_begin;
use crate::block::graph::{self, Permissions, Refusal, drain};
use crate::block::testing::{EXCLUSIVE, TestNode};

static CALLED: AtomicUsize = AtomicUsize::new(0);

fn called(_: usize) {
    CALLED.fetch_add(1, Ordering::Relaxed);
}

fn count(_: usize, result: Result<(), Refusal>) {
    result.unwrap();
    called(0);
}

fn leaf(rig: &mut Rig) -> (&'static TestNode, NodeId) {
    let node = TestNode::leaf(1 << 20);
    let id = on(0, || node.add(&unique("edge-leaf"), &[])).unwrap();
    (node, rig.keep(id))
}

fn filter(rig: &mut Rig, child: NodeId) -> (&'static TestNode, NodeId) {
    let node = TestNode::filter(1);
    let id = on(0, || node.add(&unique("edge-filter"), &[child])).unwrap();
    (node, rig.keep(id))
}

fn flush(backend: &'static Backend, core: CoreId) {
    on(core, || {
        let mut request = request::new(Operation::Flush, 0, 0).unwrap();
        request.completion = &record;
        backend.submit(request);
    });
}

#[test]
fn who_ends_a_section_before_it_is_quiet_is_not_kept_waiting() {
    let mut rig = rig(2);
    let (bottom, id) = leaf(&mut rig);
    let backend = rig.backend(id);
    bottom.set_holding(true);
    flush(backend, 1);
    rig.settle();
    let done = || aio::Callback::new(&called, 0);
    CALLED.store(0, Ordering::Relaxed);
    on(0, || drain::drain_begin(id, done())).unwrap();
    rig.settle();
    assert_eq!(CALLED.load(Ordering::Relaxed), 0, "a request is held");
    on(0, || drain::drain_end(id));
    rig.settle();
    assert_eq!(CALLED.load(Ordering::Relaxed), 1);
    on(0, || drain::drain_all_begin(done())).unwrap();
    rig.settle();
    assert_eq!(CALLED.load(Ordering::Relaxed), 1, "it is held still");
    on(0, drain::drain_all_end);
    rig.settle();
    assert_eq!(CALLED.load(Ordering::Relaxed), 2);
    bottom.set_holding(false);
    on(1, || bottom.let_go(Ok(())));
    rig.settle();
    rig.finish();
}

#[test]
fn a_refused_change_away_from_a_drained_child_lets_nobody_through() {
    let mut rig = rig(2);
    let (_, drained) = leaf(&mut rig);
    let (open, open_id) = leaf(&mut rig);
    let (top, top_id) = filter(&mut rig, drained);
    let backend = rig.backend(top_id);
    let writer = on(0, || {
        Backend::open(&unique("edge-w"), "test", Some(open_id), EXCLUSIVE)
    })
    .unwrap();
    rig.settle();
    on(0, || backend.set_permissions(EXCLUSIVE)).unwrap();
    on(0, || {
        drain::drain_begin(drained, aio::Callback::new(&ignore, 0))
    })
    .unwrap();
    rig.settle();
    let begins = top.begins();
    on(0, || {
        graph::replace(top_id, 0, open_id).unwrap_err();
        assert!(backend.is_quiet(), "it was opened for a moment");
    });
    assert_eq!(top.begins(), begins);
    assert_eq!((top.drained(), open.drained()), (1, 0));
    // Where it may be, the parent opens once it is there.
    on(0, || writer.set_permissions(Permissions::READER)).unwrap();
    on(0, || backend.set_permissions(Permissions::READER)).unwrap();
    on(0, || graph::replace(top_id, 0, open_id)).unwrap();
    assert_eq!((top.drained(), open.drained()), (0, 0));
    assert_eq!(on(0, || backend.quiesce_count()), 0);
    on(0, || drain::drain_end(drained));
    rig.settle();
    rig.drain(writer);
    on(0, || writer.delete()).unwrap();
    rig.finish();
}

#[test]
fn a_user_who_is_not_parked_finds_the_root_that_came_inside_the_section() {
    let mut rig = rig(2);
    let (bottom, id) = leaf(&mut rig);
    let backend = rig.backend(id);
    backend.set_parking(false);
    rig.drain(backend);
    flush(backend, 1);
    rig.settle();
    assert_eq!(bottom.submitted(), 1);
    let (top, top_id) = filter(&mut rig, id);
    CALLED.store(0, Ordering::Relaxed);
    on(0, || insert_begin(top_id, id, &count, 0)).unwrap();
    rig.settle();
    assert_eq!(CALLED.load(Ordering::Relaxed), 1);
    flush(backend, 1);
    rig.settle();
    assert_eq!((top.submitted(), bottom.submitted()), (1, 2));
    backend.set_parking(true);
    rig.undrain(backend);
    rig.finish();
}

#[test]
fn only_who_asked_for_it_may_write() {
    let mut rig = rig(1);
    let (_, id) = leaf(&mut rig);
    let open = |permissions| Backend::open(&unique("edge-p"), "test", Some(id), permissions);
    let reader = on(0, || open(Permissions::READER)).unwrap();
    assert!(reader.read_only());
    // Such a user writes as soon as the node's others let it.
    let owner = on(0, || open(EXCLUSIVE)).unwrap();
    assert!(!owner.read_only());
    let shared = Permissions::SHARED_WRITER;
    assert!(on(0, || reader.set_permissions(shared)).is_err());
    assert!(reader.read_only());
    on(0, || owner.set_permissions(Permissions::READER)).unwrap();
    on(0, || reader.set_permissions(shared)).unwrap();
    assert!(!reader.read_only() && owner.read_only());
    // A user without further wishes gets what there is to have.
    let (node, sealed) = leaf(&mut rig);
    node.set_read_only(true);
    assert!(rig.backend(sealed).read_only());
    for backend in [reader, owner] {
        rig.drain(backend);
        on(0, || backend.delete()).unwrap();
    }
    rig.finish();
}

#[test]
fn cs_13_a_node_that_stays_busy_in_a_section_is_named_once() {
    let mut rig = rig(1);
    let (node, id) = leaf(&mut rig);
    let named = |rig: &Rig, seconds: u32| {
        rig.settle();
        let mut names = Vec::new();
        for _ in 0..seconds {
            on(0, || graph::report::report_slow(|name| names.push(name)));
        }
        names
    };
    node.set_busy(true);
    assert!(named(&rig, 10).is_empty());
    on(0, || drain::drain_begin(id, aio::Callback::new(&ignore, 0))).unwrap();
    assert!(named(&rig, 4).is_empty());
    assert_eq!(named(&rig, 10), [graph::name(id).unwrap()]);
    on(0, || node.set_busy(false));
    assert!(named(&rig, 1).is_empty());
    on(0, || node.set_busy(true));
    assert_eq!(named(&rig, 5).len(), 1, "again");
    on(0, || node.set_busy(false));
    rig.settle();
    on(0, || drain::drain_end(id));
    rig.finish();
}

#[test]
fn nodes_that_stand_on_the_same_ones_again_and_again_are_refused() {
    let mut rig = rig(1);
    let (_, mut below) = leaf(&mut rig);
    for _ in 0..3 {
        let node = TestNode::filter(4);
        let added = on(0, || node.add(&unique("edge-wide"), &[below; 4]));
        below = rig.keep(added.unwrap());
    }
    let node = TestNode::filter(4);
    let refusal = on(0, || node.add(&unique("edge-wide"), &[below; 4])).unwrap_err();
    assert_eq!(refusal.reason, graph::Reason::TooWide);
    rig.finish();
}

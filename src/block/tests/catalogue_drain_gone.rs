//! QEMU's drain cases, by name (tests.md §2.8): nodes that go, or lose their children, while they are being drained, and nodes with
//! several parents.

use super::graph_rig::*;
use super::*;
use crate::aio::Event;
use crate::block::graph::{self, drained_all_in_coroutine, drained_in_coroutine};
use crate::block::testing::TestNode;

static ENDED: Event = Event::new();
static FINISHED: AtomicBool = AtomicBool::new(false);

/// The request that a coroutine waits for.
fn ended(request: Request) {
    assert_eq!(request.result, Ok(()));
    ENDED.set();
}

fn signalling(core: CoreId, backend: &'static Backend) {
    on(core, || {
        let mut request = request(flush(), 1);
        request.completion = &ended;
        backend.submit(request);
    });
}

/// Two parents of one child, each with a backend and a request on its way; the second's is held higher up.
struct Family {
    rig: Rig,
    child: &'static TestNode,
    child_id: NodeId,
    dying_id: NodeId,
    dying_backend: &'static Backend,
    staying: &'static TestNode,
    staying_id: NodeId,
}

fn family() -> Family {
    let mut rig = rig(2);
    let (child, child_id) = leaf(&mut rig);
    let (_, dying_id) = filter(&mut rig, &[child_id]);
    let (staying, staying_id) = filter(&mut rig, &[child_id]);
    let dying_backend = own_backend(dying_id);
    let staying_backend = rig.backend(staying_id);
    child.set_holding(true);
    staying.set_holding(true);
    ENDED.clear();
    FINISHED.store(false, Ordering::SeqCst);
    quiets();
    signalling(1, dying_backend);
    send(1, staying_backend, 2);
    rig.settle();
    Family {
        rig,
        child,
        child_id,
        dying_id,
        dying_backend,
        staying,
        staying_id,
    }
}

/// Lets the other parent's request go, all the way.
fn let_the_rest_go(f: &Family) {
    f.child.set_holding(false);
    on(1, || f.staying.let_go(Ok(())));
    f.rig.settle();
}

/// `/bdrv-drain/deletion/drain`
#[test]
fn bdrv_drain_deletion_drain() {
    let f = family();
    let (backend, node) = (f.dying_backend, f.dying_id);
    let coroutine = async move {
        ENDED.wait().await;
        while !backend.is_quiet() {
            aio::yield_now().await;
        }
        backend.delete().unwrap();
        graph::delete(node).unwrap();
        FINISHED.store(true, Ordering::SeqCst);
    };
    on(0, || aio::main_context().spawn("deletion", coroutine)).unwrap();
    let section = Section::Node(f.child_id);
    section.begin();
    f.rig.settle();
    on(1, || f.child.let_go(Ok(())));
    f.rig.settle();
    assert!(
        FINISHED.load(Ordering::SeqCst),
        "the coroutine came to its end"
    );
    assert_eq!(
        graph::name(f.dying_id),
        None,
        "gone in the middle of the drain"
    );
    assert_eq!(quiets(), 0, "the other parent is busy still");
    let_the_rest_go(&f);
    assert_eq!((quiets(), results()), (1, Vec::from([(2, Ok(()))])));
    assert_eq!(counts([f.child_id, f.staying_id]), [1, 1]);
    section.end();
    f.rig.settle();
    assert_eq!(counts([f.child_id, f.staying_id]), [0, 0]);
    f.rig.finish();
}

fn detach(everything: bool) {
    let mut rig = rig(2);
    let (a, a_id) = leaf(&mut rig);
    let (_, b_id) = leaf(&mut rig);
    let (parent, parent_id) = filter(&mut rig, &[a_id, b_id]);
    let backend = rig.backend(parent_id);
    a.set_holding(true);
    ENDED.clear();
    FINISHED.store(false, Ordering::SeqCst);
    quiets();
    signalling(1, backend);
    let coroutine = async move {
        ENDED.wait().await;
        let _guard = if everything {
            drained_all_in_coroutine().await
        } else {
            drained_in_coroutine(parent_id).await
        };
        for (slot, _) in graph::children(parent_id) {
            graph::detach(parent_id, usize::from(slot)).unwrap();
        }
        FINISHED.store(true, Ordering::SeqCst);
    };
    on(0, || aio::main_context().spawn("detach", coroutine)).unwrap();
    let section = Section::Node(a_id);
    section.begin();
    rig.settle();
    assert_eq!((quiets(), counts([parent_id])), (0, [1]));
    on(1, || a.let_go(Ok(())));
    rig.settle();
    assert!(FINISHED.load(Ordering::SeqCst));
    assert_eq!(quiets(), 1);
    assert!(graph::children(parent_id).is_empty());
    assert_eq!(
        (counts([parent_id]), parent.drained()),
        ([0], 0),
        "nothing below it is drained"
    );
    assert_eq!(counts([a_id]), [1], "our own section");
    section.end();
    send(1, backend, 3);
    rig.settle();
    assert_eq!(
        results(),
        [(3, Err(BlockError::NoMedium))],
        "there is nothing below it"
    );
    rig.finish();
}

/// `/bdrv-drain/detach/drain_all`
#[test]
fn bdrv_drain_detach_drain_all() {
    detach(true);
}

/// `/bdrv-drain/detach/drain`
#[test]
fn bdrv_drain_detach_drain() {
    detach(false);
}

/// `/bdrv-drain/multiparent`, as sections are counted today: a parent's own section reaches neither its child nor the other parent.
#[test]
fn bdrv_drain_multiparent() {
    let mut rig = rig(2);
    let (backing, below) = leaf(&mut rig);
    let (a, a_id) = filter(&mut rig, &[below]);
    let (b, b_id) = filter(&mut rig, &[below]);
    let backends = [rig.backend(a_id), rig.backend(b_id)];
    let ids = [a_id, b_id, below];
    for (sections, expected, heard) in [
        (&[Section::Node(a_id)][..], [1, 0, 0], [1, 0, 0]),
        (
            &[Section::Node(a_id), Section::Node(b_id)],
            [1, 1, 0],
            [1, 1, 0],
        ),
        (&[Section::Node(below)], [1, 1, 1], [1, 1, 1]),
        (&[Section::All], [2, 2, 1], [1, 1, 1]),
        (&[Section::All, Section::Node(below)], [2, 2, 2], [1, 1, 1]),
    ] {
        sections.iter().for_each(|section| section.begin());
        rig.settle();
        assert_eq!(counts(ids), expected);
        assert_eq!([a.drained(), b.drained(), backing.drained()], heard);
        sections.iter().for_each(|section| section.end());
        rig.settle();
        assert_eq!(counts(ids), [0; 3]);
    }
    for (tag, backend) in backends.into_iter().enumerate() {
        send(1, backend, tag as u64);
    }
    rig.settle();
    assert_eq!(results().len(), 2);
    rig.finish();
}

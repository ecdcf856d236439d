//! Drained sections, rule by rule: who hears of one, in which order, what is waited for, what they may not do (DRN-2 … DRN-15).

use super::graph_rig::*;
use super::*;
use crate::aio::Callback;
use crate::block::graph::change::remove_begin;
use crate::block::graph::{self, Permissions, Reason, drain};
use crate::block::testing::{Heard, TestNode};

static ORDER: Mutex<Vec<&'static str>> = Mutex::new(Vec::new());

fn told(who: &'static str) {
    ORDER.lock().unwrap().push(who);
}

fn order() -> Vec<&'static str> {
    core::mem::take(&mut *ORDER.lock().unwrap())
}

fn top_hears(_: Heard) {
    told("top");
}

fn bottom_hears(_: Heard) {
    told("bottom");
}

/// A user that notes when it is told, and can be busy.
struct User {
    busy: AtomicBool,
}

static USER: User = User {
    busy: AtomicBool::new(false),
};

impl BackendListener for User {
    fn drained_begin(&self, _: &'static Backend) {
        told("user");
    }
    fn drained_poll(&self, _: &'static Backend) -> bool {
        self.busy.load(Ordering::Relaxed)
    }
    fn drained_end(&self, _: &'static Backend) {
        told("user");
    }
}

struct Chain {
    rig: Rig,
    top: &'static TestNode,
    bottom: &'static TestNode,
    ids: [NodeId; 2],
    backend: &'static Backend,
}

/// A user's backend on a node on another.
fn chain() -> Chain {
    let mut rig = rig(2);
    let (bottom, below) = leaf(&mut rig);
    let (top, above) = filter(&mut rig, &[below]);
    let backend = rig.backend(above);
    USER.busy.store(false, Ordering::Relaxed);
    on(0, || backend.add_listener(&USER)).unwrap();
    top.set_hook(Some(top_hears));
    bottom.set_hook(Some(bottom_hears));
    quiets();
    order();
    Chain {
        rig,
        top,
        bottom,
        ids: [above, below],
        backend,
    }
}

impl Chain {
    fn finish(self) {
        on(0, || self.backend.remove_listener(&USER));
        self.top.set_hook(None);
        self.bottom.set_hook(None);
        self.rig.finish();
    }
}

#[test]
fn drn_2_a_section_flushes_nothing_and_leaves_other_users_of_the_children_alone() {
    let mut c = chain();
    let other = c.rig.backend(c.ids[1]);
    let section = Section::Node(c.ids[0]);
    section.begin();
    c.rig.settle();
    assert_eq!(
        (quiets(), c.bottom.submitted()),
        (1, 0),
        "no flush of its own"
    );
    send(1, other, 1);
    c.rig.settle();
    assert_eq!(results(), [(1, Ok(()))]);
    assert_eq!(c.bottom.drained(), 0);
    section.end();
    c.finish();
}

#[test]
fn drn_3_begin_and_end_at_once_holds_for_a_moment_only() {
    let c = chain();
    // Of the core that waits, so that nothing but the wait can have ended it.
    send(0, c.backend, 1);
    c.rig
        .with_others(|| on(0, || drop(drain::drained(c.ids[1]).unwrap())));
    assert_eq!(results(), [(1, Ok(()))], "what had entered is over");
    assert_eq!(counts(c.ids), [0, 0]);
    send(1, c.backend, 2);
    c.rig.settle();
    assert_eq!(results(), [(2, Ok(()))]);
    c.finish();
}

#[test]
fn drn_4_a_coroutine_on_its_way_to_a_section_is_waited_for_and_resumed_at_home() {
    let mut rig = rig(3);
    let (_, id) = leaf(&mut rig);
    quiets();
    Section::Node(id).begin_in_coroutine(2);
    on(2, || aio::context(2).poll(false));
    on(0, || {
        drain::begin_no_wait(id).unwrap();
        assert!(!drain::is_quiet(id), "nothing else keeps it busy");
    });
    assert_eq!(quiets(), 0);
    rig.settle();
    assert_eq!((quiets(), core_of_section()), (1, 2));
    assert_eq!(counts([id]), [2]);
    assert!(on(0, || drain::is_quiet(id)));
    Section::end_coroutines();
    on(0, || drain::drain_end(id));
    rig.settle();
    assert_eq!(counts([id]), [0]);
    rig.finish();
}

#[test]
fn drn_4_a_coroutine_that_is_cancelled_leaves_no_section() {
    let mut rig = rig(2);
    let (node, id) = leaf(&mut rig);
    let backend = rig.backend(id);
    node.set_holding(true);
    send(1, backend, 1);
    for polls in 0..3 {
        let coroutine = async move {
            let _guard = graph::drained_in_coroutine(id).await;
            aio::suspend().await;
        };
        let handle = on(1, || aio::context(1).spawn("cancelled", coroutine)).unwrap();
        on(1, || aio::context(1).poll(false));
        for _ in 0..polls {
            on(0, || aio::context(0).poll(false));
        }
        handle.cancel();
        rig.settle();
        if polls == 2 {
            on(1, || node.let_go(Ok(())));
            rig.settle();
        }
    }
    assert_eq!((counts([id]), results()), ([0], Vec::from([(1, Ok(()))])));
    send(1, backend, 2);
    rig.settle();
    assert_eq!(node.held(), 1);
    on(1, || node.let_go(Ok(())));
    rig.settle();
    rig.finish();
}

#[test]
fn drn_5_parents_hear_first_and_only_once() {
    let c = chain();
    let section = Section::Node(c.ids[1]);
    section.begin();
    assert_eq!(order(), ["user", "top", "bottom"]);
    section.begin();
    assert_eq!(order(), [""; 0]);
    c.rig.settle();
    section.end();
    assert_eq!(order(), [""; 0]);
    section.end();
    order();
    c.finish();
}

#[test]
fn drn_6_the_quiet_spreads_upwards_to_every_user() {
    let mut rig = rig(2);
    let (_, base) = leaf(&mut rig);
    let (a, a_id) = filter(&mut rig, &[base]);
    let (b, b_id) = filter(&mut rig, &[base]);
    let (top, top_id) = filter(&mut rig, &[a_id, b_id]);
    let users = [rig.backend(base), rig.backend(b_id), rig.backend(top_id)];
    let section = Section::Node(base);
    section.begin();
    rig.settle();
    assert_eq!([a.drained(), b.drained(), top.drained()], [1; 3]);
    assert_eq!(counts([base, a_id, b_id, top_id]), [1, 1, 1, 2]);
    assert_eq!(users.map(|user| rig.quiet(user)), [true; 3]);
    section.end();
    rig.settle();
    assert_eq!(users.map(|user| on(0, || user.quiesce_count())), [0; 3]);
    rig.finish();
}

#[test]
fn drn_7_each_edge_undoes_what_it_did() {
    let mut rig = rig(2);
    let (_, a) = leaf(&mut rig);
    let (_, b) = leaf(&mut rig);
    let (parent, id) = filter(&mut rig, &[a, b]);
    Section::Node(a).begin();
    Section::Node(b).begin();
    Section::Node(b).begin();
    assert_eq!((counts([id]), parent.begins()), ([2], 1));
    Section::Node(a).end();
    assert_eq!((counts([id]), parent.drained()), ([1], 1));
    // The edge takes its share along, however many sections were behind it.
    on(0, || graph::detach(id, 1)).unwrap();
    assert_eq!((counts([id, b]), parent.drained()), ([0, 2], 0));
    rig.settle();
    Section::Node(b).end();
    Section::Node(b).end();
    assert_eq!(counts([id, a, b]), [0; 3]);
    rig.settle();
    rig.finish();
}

static REFUSED: Mutex<Vec<Reason>> = Mutex::new(Vec::new());
static PLACES: Mutex<Option<[NodeId; 2]>> = Mutex::new(None);

/// Tries everything that a callback must not do.
fn misbehave(_: Heard) {
    let [above, below] = PLACES.lock().unwrap().unwrap();
    let extra = TestNode::leaf(512);
    let open = Backend::open(&unique("no"), "test", Some(below), Permissions::READER);
    let refused = [
        extra.add(&unique("no"), &[]).map(drop),
        graph::detach(above, 0),
        graph::replace(above, 0, below),
        graph::delete(above),
        remove_begin(above, &outcome, 0),
        open.map(drop),
    ];
    let mut list = REFUSED.lock().unwrap();
    list.extend(refused.into_iter().map(|result| result.unwrap_err().reason));
    assert_eq!(drain::drained(below).map(drop), Err(BlockError::Busy));
    assert_eq!(drain::drained_all().map(drop), Err(BlockError::Busy));
}

#[test]
fn drn_8_callbacks_neither_poll_nor_change_the_graph() {
    let c = chain();
    *PLACES.lock().unwrap() = Some(c.ids);
    c.top.set_hook(Some(misbehave));
    let section = Section::Node(c.ids[1]);
    section.begin();
    assert_eq!(*REFUSED.lock().unwrap(), [const { Reason::InCallback }; 6]);
    REFUSED.lock().unwrap().clear();
    c.rig.settle();
    section.end();
    assert_eq!(REFUSED.lock().unwrap().len(), 6);
    assert_eq!(graph::children(c.ids[0]).as_slice(), [(0, c.ids[1])]);
    c.top.set_hook(None);
    c.rig.settle();
    assert_eq!(counts(c.ids), [0, 0]);
    c.finish();
}

#[test]
fn drn_9_one_wait_for_all_that_is_busy_above() {
    let mut c = chain();
    let (high, high_id) = filter(&mut c.rig, &[c.ids[0]]);
    let user = c.rig.backend(high_id);
    high.set_busy(true);
    USER.busy.store(true, Ordering::Relaxed);
    c.bottom.set_holding(true);
    send(1, user, 1);
    let section = Section::Node(c.ids[1]);
    section.begin();
    c.rig.settle();
    assert_eq!(quiets(), 0);
    on(0, || high.set_busy(false));
    c.rig.settle();
    assert_eq!(quiets(), 0, "a user is busy");
    USER.busy.store(false, Ordering::Relaxed);
    on(1, drain_kick);
    c.rig.settle();
    assert_eq!(quiets(), 0, "a request is under way");
    // Between two looks the graph may change: one more user, drained from the start.
    let late = c.rig.backend(c.ids[1]);
    send(1, late, 2);
    on(1, || c.bottom.let_go(Ok(())));
    c.rig.settle();
    assert_eq!((quiets(), results()), (1, Vec::from([(1, Ok(()))])));
    assert_eq!(late.parked(), 1);
    c.bottom.set_holding(false);
    section.end();
    c.rig.settle();
    assert_eq!(results(), [(2, Ok(()))]);
    c.finish();
}

#[test]
fn drn_10_a_section_can_be_begun_without_waiting() {
    let c = chain();
    c.bottom.set_holding(true);
    send(1, c.backend, 1);
    on(0, || drain::begin_no_wait(c.ids[1])).unwrap();
    assert_eq!((counts(c.ids), c.backend.in_flight()), ([1, 1], 1));
    c.rig.settle();
    send(1, c.backend, 2);
    assert_eq!(
        (c.bottom.held(), c.backend.parked()),
        (1, 1),
        "closed all the same"
    );
    c.bottom.set_holding(false);
    on(1, || c.bottom.let_go(Ok(())));
    on(0, || drain::drain_end(c.ids[1]));
    c.rig.settle();
    assert_eq!(results(), [(1, Ok(())), (2, Ok(()))]);
    c.finish();
}

#[test]
fn drn_11_the_end_goes_down_to_up_and_runs_nothing_else() {
    static RAN: AtomicBool = AtomicBool::new(false);
    let c = chain();
    let section = Section::Node(c.ids[1]);
    section.begin();
    c.rig.settle();
    order();
    RAN.store(false, Ordering::Relaxed);
    let ran = Callback::new(&|_| RAN.store(true, Ordering::Relaxed), 0);
    aio::main_context().schedule_oneshot("ran", ran).unwrap();
    section.end();
    assert_eq!(order(), ["bottom", "top", "user"]);
    assert!(!RAN.load(Ordering::Relaxed), "an end never polls");
    c.rig.settle();
    assert!(RAN.load(Ordering::Relaxed));
    c.finish();
}

#[test]
fn drn_12_users_hear_of_the_end_then_the_queue_goes_on_in_order() {
    let c = chain();
    let section = Section::Node(c.ids[1]);
    section.begin();
    c.rig.settle();
    for tag in 0..5 {
        send(0, c.backend, tag);
    }
    order();
    on(0, || drain::drain_end(c.ids[1]));
    assert_eq!(order().last(), Some(&"user"));
    assert_eq!(
        (c.backend.parked(), c.bottom.submitted()),
        (5, 0),
        "later, not inside the end"
    );
    c.bottom.set_holding(true);
    on(0, || aio::context(0).poll(false));
    assert_eq!((c.backend.parked(), c.backend.in_flight()), (0, 5));
    // A section right behind waits for each of them.
    section.begin();
    c.rig.settle();
    quiets();
    assert!(!c.rig.quiet(c.backend));
    c.bottom.set_holding(false);
    on(0, || c.bottom.let_go(Ok(())));
    c.rig.settle();
    let tags: Vec<u64> = done().iter().map(|done| done.tag).collect();
    assert_eq!((tags, quiets()), (Vec::from([0, 1, 2, 3, 4]), 1));
    section.end();
    c.finish();
}

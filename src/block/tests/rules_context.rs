//! Moves between contexts, rule by rule: who may move what, in which order all hear of it (CTX-1 … CTX-9).

use super::graph_rig::*;
use super::*;
use crate::block::graph::context::{
    ContextNotifier, Watched, add_context_notifier, move_backend, move_quiet,
    remove_context_notifier,
};
use crate::block::graph::{self, Permissions, Reason};
use crate::block::testing::{EXCLUSIVE, Heard, TestNode};

static CALLS: Mutex<Vec<(usize, Option<CoreId>)>> = Mutex::new(Vec::new());

fn attached(argument: usize, core: CoreId) {
    CALLS.lock().unwrap().push((argument, Some(core)));
}

fn detach(argument: usize) {
    CALLS.lock().unwrap().push((argument, None));
}

fn calls() -> Vec<(usize, Option<CoreId>)> {
    core::mem::take(&mut *CALLS.lock().unwrap())
}

fn notifier(argument: usize) -> ContextNotifier {
    ContextNotifier {
        attached,
        detach,
        argument,
    }
}

fn watch(on_what: Watched, notifier: ContextNotifier) {
    on(0, || add_context_notifier(on_what, notifier)).unwrap();
}

fn unwatch(on_what: Watched, notifier: ContextNotifier) -> bool {
    on(0, || remove_context_notifier(on_what, notifier))
}

fn empty(core: CoreId, rig: &Rig) -> &'static Backend {
    let open = || Backend::open(&unique("empty"), "test", None, Permissions::READER);
    let backend = on(0, open).unwrap();
    rig.drain(backend);
    on(0, || move_backend(backend, core)).unwrap();
    rig.undrain(backend);
    backend
}

#[test]
fn ctx_1_only_the_main_loop_moves_and_only_what_is_quiet() {
    let mut rig = rig(3);
    let (_, id) = leaf(&mut rig);
    let backend = rig.backend(id);
    let reason = |core, to| on(core, || move_quiet(id, to)).map_err(|refusal| refusal.reason);
    assert_eq!(reason(0, 1), Err(Reason::NotQuiet));
    rig.drain(backend);
    assert_eq!(reason(1, 1), Err(Reason::NotMainLoop));
    for to in [crate::config::MAX_CORES, 64, 200] {
        assert_eq!(reason(0, to), Err(Reason::NoSuchCore));
    }
    assert_eq!((homes([id]), reason(0, 1), homes([id])), ([0], Ok(()), [1]));
    rig.undrain(backend);
    rig.finish();
}

#[test]
fn ctx_2_all_that_hangs_together_moves_each_once() {
    let mut rig = rig(3);
    let (a_node, a) = leaf(&mut rig);
    let (_, b) = leaf(&mut rig);
    let (_, c) = leaf(&mut rig);
    let (_, ab) = filter(&mut rig, &[a, b]);
    let (_, ab_again) = filter(&mut rig, &[a, b]);
    let (bc_node, bc) = filter(&mut rig, &[b, c]);
    let (_, apart) = leaf(&mut rig);
    let backend = rig.backend(bc);
    move_to(&rig, a, 2).unwrap();
    assert_eq!(
        homes([a, b, c, ab, ab_again, bc, apart]),
        [2, 2, 2, 2, 2, 2, 0]
    );
    assert_eq!(backend.home(), 2);
    for node in [a_node, bc_node] {
        let moves = node
            .heard()
            .into_iter()
            .filter(|heard| *heard == Heard::Attach(2));
        assert_eq!(moves.count(), 1);
    }
    rig.finish();
}

#[test]
fn ctx_3_one_refusal_and_nothing_has_changed() {
    let mut rig = rig(2);
    let (first, first_id) = leaf(&mut rig);
    let (second, second_id) = leaf(&mut rig);
    let (third, third_id) = filter(&mut rig, &[first_id, second_id]);
    let backend = rig.backend(third_id);
    // Whichever is asked first.
    for refusing in [first, second, third] {
        for node in [first, second, third] {
            node.heard();
        }
        refusing.set_refuse_context(true);
        let refused = move_to(&rig, third_id, 1).unwrap_err();
        assert_eq!(refused.reason, Reason::Node(BlockError::NotSupported));
        refusing.set_refuse_context(false);
        assert_eq!(
            (homes([first_id, second_id, third_id]), backend.home()),
            ([0; 3], 0)
        );
        let heard: Vec<Heard> = [first, second, third]
            .iter()
            .flat_map(|n| n.heard())
            .collect();
        assert!(
            !heard
                .iter()
                .any(|h| matches!(h, Heard::Detach | Heard::Attach(_))),
            "{heard:?}"
        );
    }
    // Those who were asked before the one that refuses give back what they took.
    for node in [first, second, third] {
        node.heard();
    }
    backend.set_context_fixed(false);
    let order = [first_id, second_id, third_id].map(|id| id.index);
    let last = [first, second, third][order
        .iter()
        .position(|i| Some(i) == order.iter().max())
        .unwrap()];
    last.set_refuse_context(true);
    move_to(&rig, third_id, 1).unwrap_err();
    last.set_refuse_context(false);
    let cancelled = [first, second, third]
        .iter()
        .filter(|n| n.heard().contains(&Heard::Cancel))
        .count();
    assert_eq!(cancelled, 2);
    rig.finish();
}

static NODE: Mutex<Option<NodeId>> = Mutex::new(None);

fn driver_hears(heard: Heard) {
    let home = graph::home(NODE.lock().unwrap().unwrap());
    match heard {
        Heard::Detach => CALLS.lock().unwrap().push((100 + home.unwrap(), None)),
        Heard::Attach(core) => CALLS
            .lock()
            .unwrap()
            .push((100 + home.unwrap(), Some(core))),
        _ => {}
    }
}

#[test]
fn ctx_4_detach_newest_first_then_the_driver_then_the_driver_again_and_attach() {
    let mut rig = rig(3);
    let (node, id) = leaf(&mut rig);
    *NODE.lock().unwrap() = Some(id);
    move_to(&rig, id, 1).unwrap();
    node.set_hook(Some(driver_hears));
    let on_node = Watched::Node(id);
    for argument in 1..=3 {
        watch(on_node, notifier(argument));
    }
    calls();
    move_to(&rig, id, 2).unwrap();
    let all = calls();
    let (before, after) = all.split_at(4);
    assert_eq!(
        before,
        [(3, None), (2, None), (1, None), (101, None)],
        "the old context is there still"
    );
    assert_eq!(after[0], (102, Some(2)), "the new one is there already");
    assert_eq!(after[1..].len(), 3);
    assert!(after[1..].iter().all(|(_, core)| *core == Some(2)));
    for argument in 1..=3 {
        assert!(unwatch(on_node, notifier(argument)));
    }
    node.set_hook(None);
    rig.finish();
}

#[test]
fn ctx_5_exactly_the_same_notifier_is_removed_and_goes_with_its_node() {
    let mut rig = rig(2);
    let (_, id) = leaf(&mut rig);
    let backend = rig.backend(id);
    let (on_node, on_backend) = (Watched::Node(id), Watched::Backend(backend.index()));
    watch(on_node, notifier(1));
    watch(on_backend, notifier(2));
    assert!(!unwatch(on_node, notifier(2)) && !unwatch(on_backend, notifier(1)));
    calls();
    move_to(&rig, id, 1).unwrap();
    let mut heard = calls();
    heard.sort_unstable();
    assert_eq!(heard, [(1, None), (1, Some(1)), (2, None), (2, Some(1))]);
    // A backend's follows it to another root.
    let (_, other) = leaf(&mut rig);
    rig.drain(backend);
    on(0, || backend.eject()).unwrap();
    on(0, || backend.insert(other, Permissions::READER)).unwrap();
    rig.undrain(backend);
    calls();
    move_to(&rig, other, 0).unwrap();
    assert_eq!(calls(), [(2, None), (2, Some(0))]);
    on(0, || graph::delete(id)).unwrap();
    assert!(!unwatch(on_node, notifier(1)), "gone with its node");
    assert!(unwatch(on_backend, notifier(2)) && !unwatch(on_backend, notifier(2)));
    rig.finish();
}

/// Removes the one that its argument names, when it is about to be detached.
fn detach_and_remove(argument: usize) {
    detach(argument);
    let id = Watched::Node(NODE.lock().unwrap().unwrap());
    let removed = match argument {
        // Itself; one that comes later in the walk; one that has been called already.
        3 => remove_context_notifier(id, removing(3)),
        2 => remove_context_notifier(id, notifier(1)),
        _ => remove_context_notifier(id, notifier(9)),
    };
    assert!(removed);
}

fn removing(argument: usize) -> ContextNotifier {
    ContextNotifier {
        attached,
        detach: detach_and_remove,
        argument,
    }
}

#[test]
fn ctx_6_notifiers_remove_themselves_and_each_other() {
    let mut rig = rig(2);
    let (_, id) = leaf(&mut rig);
    *NODE.lock().unwrap() = Some(id);
    let on_node = Watched::Node(id);
    for n in [
        removing(0),
        notifier(1),
        removing(2),
        notifier(9),
        removing(3),
        notifier(4),
    ] {
        watch(on_node, n);
    }
    calls();
    move_to(&rig, id, 1).unwrap();
    let all = calls();
    let detached: Vec<usize> = all.iter().filter(|c| c.1.is_none()).map(|c| c.0).collect();
    assert_eq!(detached, [4, 3, 9, 2, 0], "1 was removed before its turn");
    let mut stayed: Vec<usize> = all.iter().filter(|c| c.1.is_some()).map(|c| c.0).collect();
    stayed.sort_unstable();
    assert_eq!(stayed, [0, 2, 4]);
    for n in [removing(0), removing(2), notifier(4)] {
        assert!(unwatch(on_node, n));
    }
    assert!(!unwatch(on_node, notifier(1)) && !unwatch(on_node, notifier(9)));
    rig.finish();
}

#[test]
fn ctx_7_who_must_stay_keeps_the_rest_unless_asked_itself() {
    let mut rig = rig(2);
    let (_, id) = leaf(&mut rig);
    let (fixed, free) = (rig.backend(id), rig.backend(id));
    fixed.set_context_fixed(true);
    let refused = move_to(&rig, id, 1).unwrap_err();
    assert_eq!(refused.reason, Reason::ContextFixed(fixed.name()));
    Section::All.begin();
    rig.settle();
    let by_another = on(0, || move_backend(free, 1)).unwrap_err();
    assert_eq!(by_another.reason, Reason::ContextFixed(fixed.name()));
    assert_eq!((homes([id]), free.home()), ([0], 0));
    on(0, || move_backend(fixed, 1)).unwrap();
    assert_eq!((homes([id]), fixed.home(), free.home()), ([1], 1, 1));
    Section::All.end();
    rig.settle();
    assert!(fixed.context_is_fixed(), "for that once only");
    fixed.set_context_fixed(false);
    move_to(&rig, id, 0).unwrap();
    rig.finish();
}

#[test]
fn ctx_8_a_backend_keeps_its_context_without_a_node() {
    let mut rig = rig(3);
    let (_, id) = leaf(&mut rig);
    let backend = empty(2, &rig);
    assert_eq!(
        (backend.home(), homes([id])),
        (2, [0]),
        "its own pointer, nothing else"
    );
    rig.drain(backend);
    on(0, || backend.insert(id, Permissions::READER)).unwrap();
    assert_eq!((backend.home(), homes([id])), (2, [2]));
    on(0, || backend.eject()).unwrap();
    assert_eq!(backend.home(), 2);
    rig.undrain(backend);
    move_to(&rig, id, 1).unwrap();
    assert_eq!(
        (backend.home(), homes([id])),
        (2, [1]),
        "nothing hangs together"
    );
    rig.drain(backend);
    on(0, || backend.insert(id, Permissions::READER)).unwrap();
    assert_eq!((backend.home(), homes([id])), (2, [2]), "moved again");
    rig.undrain(backend);
    delete_backend(&rig, backend);
    rig.finish();
}

#[test]
fn ctx_9_a_child_comes_to_its_parent_else_the_parent_to_it_else_nothing_changes() {
    let mut rig = rig(3);
    // The parent has a life of its own, the child has not: the child comes.
    let (_, other) = leaf(&mut rig);
    let parent = TestNode::filter(2);
    let parent_id = on(0, || parent.add(&unique("parent"), &[other])).unwrap();
    rig.keep(parent_id);
    move_to(&rig, parent_id, 1).unwrap();
    let (child, id) = leaf(&mut rig);
    on(0, || graph::attach(parent_id, 1, id)).unwrap();
    assert_eq!(homes([parent_id, other, id]), [1; 3]);
    // A child that stays where it is: the parent's side goes.
    on(0, || graph::detach(parent_id, 1)).unwrap();
    move_to(&rig, id, 2).unwrap();
    child.set_refuse_context(true);
    on(0, || graph::attach(parent_id, 1, id)).unwrap();
    assert_eq!(homes([parent_id, other, id]), [2; 3]);
    // Neither goes.
    child.set_refuse_context(false);
    on(0, || graph::detach(parent_id, 1)).unwrap();
    move_to(&rig, id, 0).unwrap();
    child.set_refuse_context(true);
    parent.set_refuse_context(true);
    on(0, || graph::attach(parent_id, 1, id)).unwrap_err();
    assert_eq!(homes([parent_id, other, id]), [2, 2, 0]);
    assert_eq!(graph::children(parent_id).len(), 1);
    // Both would, but the edge itself is refused: the move is undone with it.
    child.set_refuse_context(false);
    parent.set_refuse_context(false);
    parent.set_permissions_of(1, Some(EXCLUSIVE));
    child.set_read_only(true);
    child.heard();
    let refused = on(0, || graph::attach(parent_id, 1, id)).unwrap_err();
    assert_eq!(refused.reason, Reason::ReadOnly);
    assert_eq!(homes([parent_id, other, id]), [2, 2, 0]);
    assert!(
        child.heard().contains(&Heard::Cancel),
        "what it took for the move is given back"
    );
    rig.finish();
}

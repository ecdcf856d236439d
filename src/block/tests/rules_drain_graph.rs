//! Drained sections, rule by rule: changes of the graph, everything at once, what arrives meanwhile (DRN-16 … DRN-28).

use super::graph_rig::*;
use super::*;
use crate::aio::Callback;
use crate::block::graph::{self, Permissions, Reason, drain};

fn open_empty() -> &'static Backend {
    let open = || Backend::open(&unique("empty"), "test", None, Permissions::READER);
    on(0, open).unwrap()
}

#[test]
fn drn_16_a_parent_is_drained_as_long_as_its_child_is() {
    let mut rig = rig(2);
    let (child, id) = leaf(&mut rig);
    let (parent, above) = filter(&mut rig, &[id]);
    on(0, || graph::detach(above, 0)).unwrap();
    Section::Node(id).begin();
    on(0, || graph::attach(above, 0, id)).unwrap();
    assert_eq!((counts([above]), parent.drained()), ([1], 1));
    on(0, || graph::detach(above, 0)).unwrap();
    assert_eq!((counts([above]), parent.drained()), ([0], 0));
    // A backend that is at work gets no drained node.
    let backend = open_empty();
    let refused = on(0, || backend.insert(id, Permissions::READER)).unwrap_err();
    assert_eq!(refused.reason, Reason::NotQuiet);
    send(1, backend, 1);
    rig.settle();
    assert_eq!(
        (results(), child.slipped()),
        (Vec::from([(1, Err(BlockError::NoMedium))]), 0)
    );
    rig.drain(backend);
    on(0, || backend.insert(id, Permissions::READER)).unwrap();
    rig.undrain(backend);
    send(1, backend, 2);
    rig.settle();
    assert_eq!(
        (backend.parked(), child.slipped()),
        (1, 0),
        "drained through its root"
    );
    Section::Node(id).end();
    rig.settle();
    assert_eq!(results(), [(2, Ok(()))]);
    delete_backend(&rig, backend);
    rig.finish();
}

#[test]
fn drn_17_a_child_is_replaced_in_the_quiet_only_and_what_waits_goes_to_the_new_one() {
    let mut rig = rig(2);
    let (old, old_id) = leaf(&mut rig);
    let (new, new_id) = leaf(&mut rig);
    let (_, parent) = filter(&mut rig, &[old_id]);
    let backend = rig.backend(parent);
    for refused in on(0, || {
        [graph::replace(parent, 0, new_id), graph::detach(parent, 0)]
    }) {
        assert_eq!(refused.unwrap_err().reason, Reason::NotQuiet);
    }
    Section::Node(old_id).begin();
    rig.settle();
    send(1, backend, 1);
    on(0, || graph::replace(parent, 0, new_id)).unwrap();
    rig.settle();
    assert_eq!((old.submitted(), new.submitted()), (0, 1));
    Section::Node(old_id).end();
    rig.settle();
    assert_eq!(results(), [(1, Ok(()))]);
    rig.finish();
}

#[test]
fn drn_18_a_backend_that_gets_or_loses_its_root_inside_a_section_over_everything_keeps_its_share() {
    let mut rig = rig(2);
    let (node, id) = leaf(&mut rig);
    let backend = open_empty();
    for rounds in 1..=2 {
        (0..rounds).for_each(|_| Section::All.begin());
        rig.settle();
        assert_eq!(on(0, || backend.quiesce_count()), rounds);
        on(0, || backend.insert(id, Permissions::READER)).unwrap();
        assert!(rig.quiet(backend));
        send(1, backend, 1);
        (0..rounds).for_each(|_| Section::All.end());
        rig.settle();
        assert_eq!(
            on(0, || backend.quiesce_count()),
            0,
            "it does not stay drained for ever"
        );
        assert_eq!(results(), [(1, Ok(()))]);
        (0..rounds).for_each(|_| Section::All.begin());
        rig.settle();
        on(0, || backend.eject()).unwrap();
        assert!(rig.quiet(backend), "nor does it open too early");
        send(1, backend, 2);
        rig.settle();
        assert_eq!(backend.parked(), 1);
        (0..rounds).for_each(|_| Section::All.end());
        rig.settle();
        assert_eq!(on(0, || backend.quiesce_count()), 0);
        assert_eq!(results(), [(2, Err(BlockError::NoMedium))]);
    }
    assert_eq!(node.slipped(), 0);
    delete_backend(&rig, backend);
    rig.finish();
}

#[test]
fn drn_19_a_node_may_go_while_it_is_drained() {
    static NODE: Mutex<Option<NodeId>> = Mutex::new(None);
    fn go(_: usize) {
        let id = NODE.lock().unwrap().unwrap();
        graph::delete(id).unwrap();
    }
    let mut rig = rig(2);
    let (node, id) = leaf(&mut rig);
    *NODE.lock().unwrap() = Some(id);
    quiets();
    Section::Node(id).begin();
    // Before anybody has had the time to look.
    on(0, || graph::delete(id)).unwrap();
    rig.settle();
    assert_eq!(
        (quiets(), node.drained()),
        (1, 0),
        "who waits has waited long enough"
    );
    Section::Node(id).end();
    // The waiting kind: gone inside the wait, the guard ends nothing that is not there.
    let (other, other_id) = leaf(&mut rig);
    *NODE.lock().unwrap() = Some(other_id);
    on(0, || {
        aio::main_context().schedule_oneshot("go", Callback::new(&go, 0))
    })
    .unwrap();
    let next = crate::block::testing::TestNode::leaf(512);
    let next_id = rig.with_others(|| {
        on(0, || {
            let guard = drain::drained_all().unwrap();
            aio::wait_while(|| graph::name(other_id).is_some());
            // In the same place, with sections of its own.
            let id = next.add(&unique("next"), &[]).unwrap();
            assert_eq!((next.drained(), drain::quiesce_count(id)), (1, 1));
            drop(guard);
            id
        })
    });
    rig.keep(next_id);
    assert_eq!(
        (other.drained(), next.drained(), counts([next_id])),
        (0, 0, [0])
    );
    rig.finish();
}

#[test]
fn drn_20_a_parent_that_leaves_meanwhile_has_its_own_share_undone() {
    let mut rig = rig(2);
    let (_, child) = leaf(&mut rig);
    let (first, first_id) = filter(&mut rig, &[child]);
    let (second, second_id) = filter(&mut rig, &[child]);
    let (third, third_id) = filter(&mut rig, &[child]);
    for leaving in [first_id, second_id, third_id] {
        Section::Node(child).begin();
        Section::Node(child).begin();
        rig.settle();
        on(0, || graph::detach(leaving, 0)).unwrap();
        Section::Node(child).end();
        let drained = [first.drained(), second.drained(), third.drained()];
        assert_eq!(
            drained.iter().sum::<i32>(),
            2,
            "the others are held by their own edges"
        );
        Section::Node(child).end();
        assert_eq!([first.drained(), second.drained(), third.drained()], [0; 3]);
        assert_eq!(counts([first_id, second_id, third_id, child]), [0; 4]);
        on(0, || graph::attach(leaving, 0, child)).unwrap();
        rig.settle();
    }
    rig.finish();
}

#[test]
fn drn_21_everything_is_begun_first_then_there_is_one_wait() {
    let mut rig = rig(3);
    let disks = [0; 3].map(|_| rig.disk(with_flush(1 << 20)));
    for f in &disks {
        submit(1, f.backend, read(0, 512), 1);
    }
    assert_eq!(
        on(1, || drain_all_begin(Callback::new(&ignore, 0))),
        Err(BlockError::Invalid)
    );
    quiets();
    Section::All.begin();
    let ids = disks.map(|f| f.disk.node());
    assert_eq!(counts(ids), [1; 3], "before the first has ended");
    rig.settle();
    // One's end starts work at another: that waits until afterwards.
    for (n, f) in disks.iter().enumerate() {
        assert_eq!(quiets(), 0);
        rig.run(f.device);
        submit(1, disks[(n + 1) % 3].backend, read(512, 512), 2);
        rig.settle();
    }
    assert_eq!(quiets(), 1);
    assert!(ids.iter().all(|id| on(0, || drain::is_quiet(*id))));
    assert_eq!(disks.map(|f| f.backend.parked()), [1; 3]);
    Section::All.end();
    disks.iter().for_each(|f| rig.run(f.device));
    assert_eq!((counts(ids), results().len()), ([0; 3], 6));
    rig.finish();
}

#[test]
fn drn_22_a_wait_over_all_contexts_is_woken_by_each() {
    let mut rig = rig(4);
    let f = rig.disk(with_flush(1 << 20));
    f.device.set_automatic(true);
    for round in 0..20 {
        for core in 1..4 {
            submit(
                core,
                f.backend,
                write(core as u64 * 512, 512, 1),
                core as u64,
            );
        }
        let ended = rig.with_others(|| {
            on(0, || {
                let _section = drain::drained_all().unwrap();
                done().len()
            })
        });
        assert_eq!(ended, 3, "round {round}");
    }
    rig.settle();
    rig.finish();
}

#[test]
fn drn_26_a_request_is_counted_or_queued_never_neither() {
    let mut rig = rig(2);
    let f = rig.disk(with_flush(1 << 20));
    on(0, || {
        f.backend.drain_begin(Callback::new(&ignore, 0)).unwrap()
    });
    on(0, || aio::context(0).poll(false));
    // Core 1 has not looked: its request is counted, and the section waits for it.
    submit(1, f.backend, read(0, 512), 1);
    let seen = (f.backend.in_flight(), f.backend.parked());
    assert!(seen == (1, 0) || seen == (0, 1), "{seen:?}");
    rig.settle();
    assert_eq!(rig.quiet(f.backend), f.backend.in_flight() == 0);
    rig.run(f.device);
    assert!(rig.quiet(f.backend));
    submit(1, f.backend, read(0, 512), 2);
    assert_eq!((f.backend.in_flight(), f.backend.parked()), (0, 1 + seen.1));
    rig.undrain(f.backend);
    rig.run(f.device);
    assert_eq!(results().len(), 2);
    rig.finish();
}

#[test]
fn drn_28_a_backend_with_a_queue_is_not_deleted() {
    let mut rig = rig(2);
    let (_, id) = leaf(&mut rig);
    let backend = own_backend(id);
    rig.drain(backend);
    send(1, backend, 1);
    assert_eq!(on(0, || backend.delete()), Err(BlockError::Busy));
    rig.undrain(backend);
    assert_eq!(
        on(0, || backend.delete()),
        Err(BlockError::Busy),
        "nor outside a section"
    );
    rig.drain(backend);
    assert_eq!((on(0, || backend.delete()), results().len()), (Ok(()), 1));
    rig.finish();
}

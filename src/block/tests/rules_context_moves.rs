//! Moves between contexts, rule by rule: what stays behind, what holds a node where it is (CTX-11 … CTX-14).

use super::graph_rig::*;
use super::*;
use crate::block::graph::Reason;
use crate::block::graph::change::move_begin;
use crate::block::graph::context::move_quiet;
use crate::block::node::throttle;

#[test]
fn ctx_11_nothing_stays_behind_in_the_old_context() {
    let mut rig = rig(3);
    let (bottom, bottom_id) = leaf(&mut rig);
    let options = throttle::Options {
        child: bottom_id,
        group: None,
    };
    let name = unique("throttle");
    let node = on(0, || throttle::create(&name, options)).unwrap();
    use crate::block::throttle::{Config, Kind, Limit, configure, remove_group};
    let slow = Config::only(Kind::OpsTotal, Limit::average(1));
    on(0, || configure(&name, &slow)).unwrap();
    let backend = rig.backend(node);
    move_to(&rig, node, 1).unwrap();
    for tag in 0..4 {
        submit(2, backend, read(0, 512), tag);
    }
    rig.settle();
    assert!(bottom.submitted() < 4, "some wait at core 1");
    move_to(&rig, node, 2).unwrap();
    assert_eq!(
        (results().len(), bottom.submitted()),
        (4, 4),
        "the section let them go"
    );
    let mut left = Vec::new();
    on(1, || {
        aio::context(1).for_each_queued(|what| left.push(what))
    });
    assert_eq!(left, [""; 0]);
    // Time passes: nobody calls on core 1.
    host::clock::advance(10_000_000_000);
    assert!(!on(1, || aio::context(1).poll(false)));
    rig.finish();
    on(0, || remove_group(&name)).unwrap();
}

#[test]
fn ctx_12_a_request_in_flight_pins_the_context() {
    let mut rig = rig(2);
    let (node, id) = leaf(&mut rig);
    let backend = rig.backend(id);
    node.set_holding(true);
    send(1, backend, 1);
    let refused = on(0, || move_quiet(id, 1)).unwrap_err();
    assert_eq!(refused.reason, Reason::NotQuiet);
    outcomes();
    on(0, || move_begin(id, 1, &outcome, 1)).unwrap();
    rig.settle();
    assert_eq!(
        (outcomes(), homes([id]), backend.home()),
        (Vec::new(), [0], 0)
    );
    on(1, || node.let_go(Ok(())));
    rig.settle();
    assert_eq!(
        (outcomes(), homes([id]), backend.home()),
        (Vec::from([(1, Ok(()))]), [1], 1)
    );
    rig.finish();
}

#[test]
fn ctx_14_a_request_is_counted_before_it_goes_to_another_context_and_comes_back() {
    let mut rig = rig(3);
    let f = rig.disk(with_flush(1 << 20));
    f.device.set_single_queue(1);
    submit(2, f.backend, read(0, 512), 1);
    assert_eq!(
        (f.backend.in_flight(), f.device.held()),
        (1, 0),
        "counted, not there yet"
    );
    rig.settle();
    assert_eq!((f.device.held(), f.device.core_of(0)), (1, 1));
    assert_eq!(
        on(0, || move_quiet(f.disk.node(), 2)).unwrap_err().reason,
        Reason::NotQuiet
    );
    rig.run(f.device);
    let done = done();
    assert_eq!((done.len(), done[0].core), (1, 2));
    rig.finish();
}

//! A throttle over a verify on real threads, one a core, while the main loop drains, moves and changes the limits. A second throttle
//! of the same group, elsewhere, is left alone and goes on.

use super::load::{Load, turn, turn_while};
use super::*;
use crate::block::graph;
use crate::block::node::verify::mismatches;
use crate::block::throttle::{Config, Kind, Limit, configure, remove_group};
use crate::config::MAX_CORES;

static LOAD: Load = Load::new();

/// Answers a request with the next one, of another kind, somewhere where others are too, until told to stop.
fn next(mut request: Request) {
    let Some((n, backend)) = LOAD.answer(&request) else {
        return;
    };
    let (operation, len) = match n % 7 {
        0 => (Operation::Flush, 0),
        1 | 2 => (Operation::Write, 8192),
        3 => (Operation::WriteZeroes, 4096),
        _ => (Operation::Read, 8192),
    };
    request.for_each_slice_mut(|slice| slice.fill(n as u8));
    request.reuse(operation, n % 24 * 4096, len);
    backend.submit(request);
}

fn limit(operations: u64) {
    let config = Config::only(Kind::OpsTotal, Limit::average(operations));
    on(0, || configure("cores", &config).unwrap());
}

#[test]
fn a_throttle_over_a_verify_holds_on_real_cores() {
    let mut rig = rig(MAX_CORES);
    let pair = super::verify::pair(&mut rig, with_everything(1 << 20));
    let top = super::throttle::on_disk(0, pair.node, Some("cores"));
    let (other_device, other_disk) = super::throttle::bare_disk(&mut rig);
    let other = super::throttle::on_disk(1, other_disk, Some("cores"));
    let backends = [top, other].map(|node| rig.backend(node));
    rig.nodes.push(pair.node);
    rig.nodes.extend(pair.below);
    rig.nodes.push(other_disk);
    for device in [pair.disks[0], pair.disks[1], other_device] {
        device.set_automatic(true);
        device.set_depth(4);
    }
    pair.disks[0].set_single_queue(3);
    limit(1_000_000);
    let start = |_| {
        for n in 0..12 {
            let backend = backends[usize::from(n % 3 == 0)];
            let mut first = request(read(0, 8192), backend.index() as u64);
            first.completion = &next;
            LOAD.submit(backend, first);
        }
    };
    LOAD.run(&rig, start, || {
        let mut before = 0;
        for round in 0..100 {
            // Tight now and then, so that a drain meets some that wait.
            limit([1_000_000, 3000, 20_000, 0][round % 4]);
            let guard = graph::drain::drained(top).unwrap();
            assert_eq!(backends[0].in_flight(), 0, "round {round}");
            assert_eq!(pair.disks.map(|disk| disk.held()), [0, 0]);
            assert_eq!(graph::home(top), graph::home(pair.node));
            if round % 3 == 0 {
                graph::context::move_quiet(top, round / 3 % MAX_CORES).unwrap();
            }
            let log = pair.disks[1].log().len();
            turn();
            assert_eq!(
                pair.disks[1].log().len(),
                log,
                "round {round}: one slipped through"
            );
            drop(guard);
            pair.disks.iter().for_each(|disk| disk.clear_log());
            turn_while(|| LOAD.answered() < before + 100);
            before = LOAD.answered();
        }
        limit(0);
    });
    assert_eq!(mismatches(pair.node), Some((0, 0)));
    assert!(pair.disks[0].visible() == pair.disks[1].visible());
    rig.finish();
    on(0, || remove_group("cores")).unwrap();
}

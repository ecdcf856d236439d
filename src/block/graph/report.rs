//! Nodes whose own work keeps a drained section from being quiet (CS-13): a disk that does not come to the end of its move, a
//! coroutine that nobody serves. Requests are named by the backends' report.
#![forbid(unsafe_code)]

use super::arena::{self, driver_at, with};
use crate::block::node::Name;
use crate::config::NODES;
use crate::sync::HomeCell;

/// Seconds after which a node is named, once as long as it stays busy.
const REPORT_AFTER_S: u8 = 5;

/// For how many seconds in a row each node was found busy inside a section.
static BUSY_S: HomeCell<[u8; NODES]> = HomeCell::new([0; NODES]);

pub(super) fn start() {
    BUSY_S.bind(0);
}

/// Once a second, from the watch: calls `tell` with the name of each node that has been busy for so long.
pub(crate) fn report_slow(mut tell: impl FnMut(Name)) {
    for place in 0..NODES {
        let (quiesce, pins) = with(|graph| {
            let node = graph.node(place as u16);
            (node.quiesce, node.pins)
        });
        let driver = driver_at(place as u16);
        let busy = quiesce > 0 && driver.is_some_and(|driver| pins != 0 || driver.drain_poll());
        let seconds = BUSY_S.with(|all| {
            all[place] = if busy {
                all[place].saturating_add(1)
            } else {
                0
            };
            all[place]
        });
        if seconds == REPORT_AFTER_S {
            tell(arena::name_of(arena::Parent::Node(place as u16)));
        }
    }
}

/// A line in the log for each of them.
pub(crate) fn log_slow() {
    report_slow(|name| {
        log::warn!("drain of node {name} waits {REPORT_AFTER_S} s for the node's own work");
    });
}

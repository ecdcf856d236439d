//! Nodes of each kind, made for a test.

use super::*;
use crate::block::node::delay::{self, DelayOptions, Latencies};
use crate::block::node::partition::{self, PartitionOptions};
use crate::block::node::{concat, error, ram};

pub(super) fn part(child: NodeId, offset: u64, len: u64) -> NodeId {
    let options = PartitionOptions {
        child,
        offset,
        len: Some(len),
    };
    on(0, || partition::create(&unique("part"), options).unwrap())
}

pub(super) fn row(children: &[NodeId]) -> NodeId {
    on(0, || concat::create(&unique("row"), children).unwrap())
}

pub(super) fn memory(bytes: usize, block: u32) -> NodeId {
    on(0, || {
        ram::create(&unique("mem"), Vec::leak(std::vec![0; bytes]), block).unwrap()
    })
}

pub(super) fn slow(child: NodeId, latencies: Latencies) -> NodeId {
    let options = DelayOptions { child, latencies };
    on(0, || delay::create(&unique("delay"), options).unwrap())
}

pub(super) fn faulty(child: NodeId) -> NodeId {
    on(0, || error::create(&unique("error"), child).unwrap())
}

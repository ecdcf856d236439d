//! The copy-before-write node towards the graph: what it is, which requests are its own, what its children mean to it.
#![forbid(unsafe_code)]

use core::sync::atomic::Ordering;

use super::super::{BlockStatus, NodeDriver, NodeInfo, instance};
use super::CopyBeforeWrite;
use crate::block::bitmap::{DEFAULT_GRANULARITY, granularity_for};
use crate::block::graph::{Access, Link, Permissions};
use crate::block::{Operation, Request};

impl NodeDriver for CopyBeforeWrite {
    fn info(&self) -> NodeInfo {
        let [source, target] = [&self.links[0], &self.links[1]].map(instance::info_below);
        NodeInfo {
            kind: "copy-before-write",
            cost: 1 + source.cost.max(target.cost),
            depth: 1 + source.depth.max(target.depth),
            ..source
        }
    }

    #[inline]
    fn submit(&'static self, request: Request) {
        let enters = match request.operation {
            Operation::Read => self.is_copiers(&request),
            Operation::Flush => false,
            _ => {
                let range = request.offset..request.offset.saturating_add(request.len);
                !self.is_broken() && self.left.lock().any_dirty(range)
            }
        };
        if enters {
            return self.enter(request);
        }
        self.links[0].submit(request);
    }

    fn block_status(&self, offset: u64, len: u64) -> BlockStatus {
        instance::status_below(&self.links[0], offset, len)
    }

    fn links(&'static self) -> &'static [Link] {
        &self.links
    }

    fn filtered(&'static self) -> Option<usize> {
        Some(0)
    }

    fn permissions(&self, slot: usize, above: Permissions) -> Permissions {
        if slot == 1 {
            // Half of an image: whoever wrote there would spoil it.
            return Permissions::WRITER;
        }
        // While nobody uses it, it promises nothing: so it can be made under writers, and inserted below them.
        if above.needs.is_empty() {
            return above;
        }
        Permissions {
            needs: above.needs | Access::READ,
            shares: above.shares - Access::WRITE,
        }
    }

    fn child_changed(&'static self) {
        let [source, target] = [&self.links[0], &self.links[1]].map(instance::info_below);
        let below = source.cost.max(target.cost);
        self.below.store(below.into(), Ordering::Relaxed);
        self.target_size.store(target.size, Ordering::Relaxed);
        self.target_block
            .store(target.logical_block, Ordering::Relaxed);
        if self.links[0].child().is_none() || source.size == self.size.load(Ordering::Relaxed) {
            return;
        }
        self.size.store(source.size, Ordering::Relaxed);
        let mut left = self.left.lock();
        if self.begun.swap(true, Ordering::Relaxed) {
            // What is new was not there when the image began.
            left.resize(source.size, false);
        } else {
            let wanted = match self.wanted.load(Ordering::Relaxed) {
                0 => DEFAULT_GRANULARITY,
                wanted => wanted,
            };
            let block = source.logical_block.max(target.logical_block);
            let cluster = granularity_for(source.size, wanted.max(block.into()));
            if left.reset(source.size, cluster).is_ok() {
                left.set_all();
            }
        }
        self.cluster.store(left.granularity(), Ordering::Relaxed);
    }

    fn deletable(&self) -> bool {
        self.copier.load(Ordering::Relaxed) == 0
    }

    fn release(&'static self) {
        self.copier.store(0, Ordering::Relaxed);
        self.broken.store(0, Ordering::Relaxed);
        self.size.store(0, Ordering::Relaxed);
        self.begun.store(false, Ordering::Relaxed);
        self.place.give_back();
    }
}

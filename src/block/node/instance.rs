//! What every kind of node does to make one of its instances a node.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::{BlockStatus, NodeDriver, NodeId, NodeInfo};
use crate::block::graph::{self, Link, Reason, Refusal};

/// Whether an instance of a kind's arena is taken, and which node it is.
pub(super) struct Place {
    taken: AtomicBool,
    /// A packed [`NodeId`], 0 for none.
    id: AtomicU32,
}

impl Place {
    pub const fn new() -> Self {
        Self {
            taken: AtomicBool::new(false),
            id: AtomicU32::new(0),
        }
    }

    fn take(&self) -> bool {
        self.taken
            .compare_exchange(false, true, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    /// The instance is free for the next.
    pub fn give_back(&self) {
        self.id.store(0, Ordering::Relaxed);
        self.taken.store(false, Ordering::Release);
    }

    /// Which node it is; `None` for one that is free or not in the graph yet.
    pub fn node(&self) -> Option<NodeId> {
        NodeId::unpack(self.id.load(Ordering::Relaxed))
    }

    /// Which node it is.
    pub fn id(&self) -> Option<NodeId> {
        NodeId::unpack(self.id.load(Ordering::Relaxed))
    }

    /// Whether it is that node.
    pub fn is(&self, id: NodeId) -> bool {
        self.id.load(Ordering::Relaxed) == id.pack()
    }
}

/// A free instance, from now on taken; `kinds` for the refusal: `"null nodes"`.
pub(super) fn take<T>(
    arena: &'static [T],
    place: fn(&T) -> &Place,
    kinds: &'static str,
) -> Result<&'static T, Refusal> {
    arena
        .iter()
        .find(|instance| place(instance).take())
        .ok_or_else(|| Refusal::new("", Reason::NoRoom(kinds)))
}

/// Puts a prepared instance into the graph, above `children`, slot by slot. On a refusal it is released.
pub(super) fn build(
    name: &str,
    driver: &'static dyn NodeDriver,
    place: &Place,
    children: &[NodeId],
) -> Result<NodeId, Refusal> {
    let id = graph::add(name, driver).inspect_err(|_| driver.release())?;
    place.id.store(id.pack(), Ordering::Relaxed);
    for (slot, child) in children.iter().enumerate() {
        if let Err(refusal) = graph::attach(id, slot, *child) {
            // Nobody knows it yet, so nothing can stand against this.
            let _ = graph::delete(id);
            return Err(refusal);
        }
    }
    Ok(id)
}

/// Properties of what is below a link; those of nothing when there is nothing.
pub(super) fn info_below(link: &Link) -> NodeInfo {
    link.driver().map_or(NodeInfo::NONE, NodeDriver::info)
}

/// Properties of a filter with a frame of its own: those of what is below it.
pub(super) fn filter_info(link: &Link, kind: &'static str) -> NodeInfo {
    let child = info_below(link);
    NodeInfo {
        kind,
        depth: child.depth + 1,
        ..child
    }
}

/// Allocation of a range of what is below a link; cut to what the child has now.
pub(super) fn status_below(link: &Link, offset: u64, len: u64) -> BlockStatus {
    let unknown = BlockStatus {
        len,
        hole: false,
        zero: false,
    };
    let Some(child) = link.driver() else {
        return unknown;
    };
    let inside = child.info().size.saturating_sub(offset).min(len);
    if inside == 0 {
        return unknown;
    }
    let mut status = child.block_status(offset, inside);
    status.len = status.len.clamp(1, inside);
    status
}

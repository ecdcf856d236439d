//! The partition node: a part of its child, from an offset on.
//!
//! Offset and length are fixed; when the child shrinks, it is the child that refuses what lies beyond its end.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering};

use super::instance::{self, Place};
use super::{Ascent, BlockStatus, Layer, NodeDriver, NodeId, NodeInfo};
use crate::arch;
use crate::block::graph::{self, Access, Link, Permissions, Reason, Refusal};
use crate::block::request::complete;
use crate::block::{BlockError, Operation, Request};
use crate::config::PARTITIONS;

/// What a partition is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionOptions {
    /// What it is a part of.
    pub child: NodeId,
    /// First byte; a multiple of the child's logical block.
    pub offset: u64,
    /// Bytes, a multiple of the child's logical block; `None`: up to the child's end.
    pub len: Option<u64>,
}

/// `shift` of a partition that does not begin at a block of its (new) child.
const MISPLACED: u64 = u64::MAX;

/// A part of a node.
pub struct Partition {
    place: Place,
    links: [Link; 1],
    offset: AtomicU64,
    len: AtomicU64,
    /// The offset, or [`MISPLACED`].
    shift: AtomicU64,
}

static ARENA: [Partition; PARTITIONS] = [const { Partition::new() }; PARTITIONS];

/// Makes a part of a node a node. Main loop only.
///
/// # Errors
/// `Invalid` for a part that is empty, not aligned or not inside the child; those of [`graph::add`] and [`graph::attach`].
pub fn create(name: &str, options: PartitionOptions) -> Result<NodeId, Refusal> {
    let child = graph::driver(options.child)
        .ok_or_else(|| Refusal::new("", Reason::NoSuchNode))?
        .info();
    let block = u64::from(child.logical_block);
    let rest = child.size.saturating_sub(options.offset);
    let len = options.len.unwrap_or(rest - rest % block);
    if !(options.offset | len).is_multiple_of(block) || len == 0 || len > rest {
        return Err(Refusal::new(name, Reason::Node(BlockError::Invalid)));
    }
    let partition = instance::take(&ARENA, |p| &p.place, "partitions")?;
    partition.offset.store(options.offset, Ordering::Relaxed);
    partition.len.store(len, Ordering::Relaxed);
    partition.shift.store(options.offset, Ordering::Relaxed);
    instance::build(name, partition, &partition.place, &[options.child])
}

/// Of what, and which part, a partition is; `None` for another node.
pub fn options_of(id: NodeId) -> Option<PartitionOptions> {
    let partition = ARENA.iter().find(|partition| partition.place.is(id))?;
    Some(PartitionOptions {
        child: partition.links[0].child()?,
        offset: partition.offset.load(Ordering::Relaxed),
        len: Some(partition.len.load(Ordering::Relaxed)),
    })
}

impl Partition {
    const fn new() -> Self {
        Self {
            place: Place::new(),
            links: [Link::new()],
            offset: AtomicU64::new(0),
            len: AtomicU64::new(0),
            shift: AtomicU64::new(0),
        }
    }
}

impl Layer for Partition {
    fn completed(&'static self, mut request: Request) -> Ascent {
        request.leave();
        Ascent::Up(request)
    }
}

impl NodeDriver for Partition {
    fn info(&self) -> NodeInfo {
        let offset = self.offset.load(Ordering::Relaxed);
        let child = instance::info_below(&self.links[0]);
        let fits = |align: u32| align == 0 || offset.is_multiple_of(u64::from(align));
        NodeInfo {
            kind: "partition",
            size: self.len.load(Ordering::Relaxed),
            // What the child likes best counts from its own start.
            physical_block: if fits(child.physical_block) {
                child.physical_block
            } else {
                child.logical_block
            },
            discard_align: if fits(child.discard_align) {
                child.discard_align
            } else {
                0
            },
            depth: child.depth + 1,
            ..child
        }
    }

    #[inline]
    fn submit(&'static self, mut request: Request) {
        if request.operation == Operation::Flush {
            return self.links[0].submit(request);
        }
        let shift = self.shift.load(Ordering::Relaxed);
        let Some(core) = arch::current_core() else {
            return complete(request, Err(BlockError::Invalid));
        };
        if shift == MISPLACED {
            return complete(request, Err(BlockError::Invalid));
        }
        if !request.push_frame(self, core, 0) {
            return complete(request, Err(BlockError::NoMemory));
        }
        request.offset += shift;
        self.links[0].submit(request);
    }

    fn block_status(&self, offset: u64, len: u64) -> BlockStatus {
        instance::status_below(
            &self.links[0],
            self.offset.load(Ordering::Relaxed) + offset,
            len,
        )
    }

    fn links(&'static self) -> &'static [Link] {
        &self.links
    }

    fn child_changed(&'static self) {
        let offset = self.offset.load(Ordering::Relaxed);
        let block = u64::from(instance::info_below(&self.links[0]).logical_block);
        let (shift, len) = (offset, self.len.load(Ordering::Relaxed));
        let fits = (shift | len).is_multiple_of(block);
        self.shift
            .store(if fits { shift } else { MISPLACED }, Ordering::Relaxed);
    }

    /// Who writes one partition need not know of who writes the next; a writer of the whole disk must share with both.
    fn permissions(&self, _slot: usize, above: Permissions) -> Permissions {
        Permissions {
            shares: above.shares | Access::WRITE,
            ..above
        }
    }

    fn release(&'static self) {
        self.place.give_back();
    }
}

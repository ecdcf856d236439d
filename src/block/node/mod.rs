//! Block nodes: what can stand below a backend.
//!
//! | node | what it is | where its code runs |
//! |---|---|---|
//! | [`disk`] | a device behind [`BlockDevice`](super::BlockDevice): splitting, flush ordering, error latch | any core; the device's queue core for I/O |
//! | [`ram`] | memory, with a bitmap of what is allocated | any core |
//! | [`null`] | swallows writes, reads zeroes or nothing, after a chosen time | any core |
//! | [`verify`] | two children that must agree: reads compare them, all else goes to both | any core |
//! | [`throttle`] | limits the rate of its group's members, with bursts; lets all go on drain | its context's core, where anything is limited |
//! | [`partition`] | a part of its child; [`partitions`](super::partitions) finds them on disks | any core |
//! | [`mod@concat`] | its children one after another | any core |
//! | [`copy_before_write`] | saves on a target what is about to be overwritten | any core |
//! | [`delay`] | holds requests for a time | any core |
//! | [`dirty`] | notes in bitmaps what is written through it | any core |
//! | [`error`] | fails requests by rule | any core |
//!
//! A node is a static object that implements [`NodeDriver`]; the [`graph`](super::graph) gives it a name and a generation-checked
//! [`NodeId`], and links it with others.
#![forbid(unsafe_code)]

pub mod concat;
pub mod copy_before_write;
pub mod delay;
pub mod dirty;
pub mod disk;
pub mod error;
mod instance;
pub mod mirror;
pub mod null;
pub mod partition;
pub mod ram;
pub mod throttle;
pub mod verify;

use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};

use super::BlockError;
use super::graph::{Link, Permissions};
use super::request::Request;
use crate::arch::CoreId;

/// Longest node name, in bytes.
pub const NAME_LEN: usize = 31;

/// A node or backend name.
pub type Name = heapless::String<NAME_LEN>;

/// Names a node; stale after the node is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeId {
    pub(super) index: u16,
    pub(super) generation: u16,
}

impl NodeId {
    /// One word, never 0.
    pub(super) fn pack(self) -> u32 {
        u32::from(self.generation) << 16 | u32::from(self.index + 1)
    }

    /// What [`pack`](Self::pack) packed; `None` for 0.
    pub(super) fn unpack(word: u32) -> Option<Self> {
        let index = (word as u16).checked_sub(1)?;
        Some(Self {
            index,
            generation: (word >> 16) as u16,
        })
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}.{}", self.index, self.generation)
    }
}

/// What a node says of itself. Sizes in bytes; a limit of 0 means "none".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeInfo {
    /// Kind of node: `disk`, `ram` …
    pub kind: &'static str,
    /// Bytes that can be addressed now.
    pub size: u64,
    /// Requests must be aligned to this (a power of two).
    pub logical_block: u32,
    /// Smallest write without read-modify-write.
    pub physical_block: u32,
    /// Preferred transfer size.
    pub optimal_io: u32,
    /// Multiple at which discards work best.
    pub discard_align: u32,
    /// Nothing can be written.
    pub read_only: bool,
    /// Discard does something.
    pub discard: bool,
    /// Write-zeroes is faster than writing zeroes.
    pub fast_zeroes: bool,
    /// A flush does something; otherwise completed writes are durable.
    pub writeback: bool,
    /// Spare records that one request may need at once, in this node and below.
    pub cost: u16,
    /// Frames that one request may need at once, in this node and below.
    pub depth: u8,
}

impl NodeInfo {
    /// Of a node that stands on nothing.
    pub const NONE: Self = Self {
        kind: "none",
        size: 0,
        logical_block: 512,
        physical_block: 512,
        optimal_io: 0,
        discard_align: 0,
        read_only: false,
        discard: false,
        fast_zeroes: false,
        writeback: false,
        cost: 0,
        depth: 0,
    };
}

/// Allocation of a range, in NBD's `base:allocation` terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockStatus {
    /// Bytes, from the start of the range asked for, for which the rest holds; never 0 for a non-empty range.
    pub len: u64,
    /// Not allocated.
    pub hole: bool,
    /// Reads as zeroes.
    pub zero: bool,
}

/// What a layer does with a request that came up to it.
#[must_use]
pub enum Ascent {
    /// It goes on upwards, with its `result`.
    Up(Request),
    /// The layer keeps it or has sent it down again.
    Taken,
}

/// Whoever pushes frames: nodes and backends.
pub trait Layer: Sync {
    /// The request comes back to where this layer pushed its frame, which is on top, on the core that it asked for. Before it
    /// goes on upwards the layer takes the frame off.
    fn completed(&'static self, request: Request) -> Ascent;
}

/// How often any node has lost something; see [`NodeDriver::losses`].
static LOSSES: AtomicU32 = AtomicU32::new(0);

/// How often any node has lost something: who asks nodes for their [`losses`](NodeDriver::losses) need do so only when this has
/// changed. Whoever gets an answer from a node sees the losses that were before it. Any core.
#[inline]
pub(super) fn all_losses() -> u32 {
    LOSSES.load(Ordering::Relaxed)
}

/// A node has lost something, which its own count says by now.
fn note_loss() {
    LOSSES.fetch_add(1, Ordering::AcqRel);
}

/// A kind of node.
///
/// `info`, `submit`, `block_status` and `completed` may be called on any core, from a context's loop. Everything else is called in the
/// main loop only, and must neither poll nor change the graph (DRN-8).
pub trait NodeDriver: Layer {
    /// Properties; cheap, no I/O.
    fn info(&self) -> NodeInfo;

    /// Takes a request: aligned, in range when the backend looked, not empty unless a flush. The answer goes to
    /// [`complete`](super::complete), never inside.
    fn submit(&'static self, request: Request);

    /// Allocation of `[offset, offset + len)`; the range is inside the node.
    fn block_status(&self, offset: u64, len: u64) -> BlockStatus {
        let _ = offset;
        BlockStatus {
            len,
            hole: false,
            zero: false,
        }
    }

    /// How often what it had acknowledged may have been lost, while it answers again: by a reset of a device that had not been flushed,
    /// by a flush that failed. What stands on several nodes with the same data asks, for no request tells it. Wraps. Any core.
    fn losses(&'static self) -> u32 {
        let links = self.links();
        // A filter has the data of what it filters.
        let links = match self.filtered() {
            Some(slot) => links.get(slot..=slot).unwrap_or(links),
            None => links,
        };
        links
            .iter()
            .filter_map(Link::driver)
            .fold(0, |sum, child| sum.wrapping_add(child.losses()))
    }

    /// The ways to its children, by slot. Always the same.
    fn links(&'static self) -> &'static [Link] {
        &[]
    }

    /// A child was attached, replaced or taken away, or has new properties: take over size and limits.
    fn child_changed(&'static self) {}

    /// What it needs of the child in `slot`, and what it leaves to others there, given the same of all that stand above it. A filter
    /// passes on.
    fn permissions(&self, slot: usize, above: Permissions) -> Permissions {
        let _ = slot;
        above
    }

    /// A drained section begins, after everything above has heard of it; once, however sections nest (DRN-5, DRN-14). What waits in
    /// the node must be let go: those above wait for it.
    fn drain_begin(&'static self) {}

    /// Whether the node has work of its own under way, or is still moving to another context. Who said yes calls
    /// [`drain_kick`](super::drain_kick) when that is over.
    fn drain_poll(&'static self) -> bool {
        false
    }

    /// The last drained section is over; before those above hear of it (DRN-11).
    fn drain_end(&'static self) {}

    /// Whether it can move to `core`'s context; what it needs there it takes now. Called before anybody moves (CTX-3).
    ///
    /// # Errors
    /// What stands against it; then nothing has changed.
    fn check_context(&'static self, core: CoreId) -> Result<(), BlockError> {
        let _ = core;
        Ok(())
    }

    /// Another node or a user refused: what [`check_context`](Self::check_context) took is given back (CS-9).
    fn cancel_context(&'static self) {}

    /// It leaves its context: timers, queues and handlers there are given up. It is quiet.
    fn detach_context(&'static self) {}

    /// It now belongs to `core`'s context. A move that goes on in other loops answers [`drain_poll`](Self::drain_poll) with yes until
    /// it is over; the node stays drained as long.
    fn attach_context(&'static self, core: CoreId) {
        let _ = core;
    }

    /// The slot of the child that takes its place when it is removed from between; `None` for what is no filter. By default the only
    /// child is.
    fn filtered(&'static self) -> Option<usize> {
        (self.links().len() == 1).then_some(0)
    }

    /// Whether a user may delete it.
    fn deletable(&self) -> bool {
        true
    }

    /// It has left the graph: its instance is free for the next.
    fn release(&'static self) {}
}

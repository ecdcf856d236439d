//! Block nodes: what can stand below a backend, and the arena of those that exist.
//!
//! | node | what it is | where its code runs |
//! |---|---|---|
//! | [`disk`] | a device behind [`BlockDevice`](super::BlockDevice): splitting, flush ordering, error latch | any core; the device's queue core for I/O |
//! | [`ram`] | memory, with a bitmap of what is allocated | any core |
//! | [`null`] | swallows writes, reads zeroes or nothing, after a chosen time | any core |
//!
//! A node is a static object that implements [`NodeDriver`]; the arena gives it a name and a generation-checked [`NodeId`].
#![forbid(unsafe_code)]

pub mod disk;
pub mod null;
pub mod ram;

use core::fmt;
use core::fmt::Write as _;

use super::BlockError;
use super::request::Request;
use crate::config::NODES;
use crate::sync::IrqLock;

/// Longest node name, in bytes.
pub const NAME_LEN: usize = 31;

/// A node or backend name.
pub type Name = heapless::String<NAME_LEN>;

/// Names a node; stale after the node is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeId {
    index: u16,
    generation: u16,
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
    /// Further request records that one request occupies below this node.
    pub cost: u16,
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

/// A kind of node. All methods may be called on any core, `submit` and `completed` only from a context's loop.
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
}

#[derive(Clone)]
struct Entry {
    generation: u16,
    driver: Option<&'static dyn NodeDriver>,
    name: Name,
}

impl Entry {
    const EMPTY: Self = Self {
        generation: 0,
        driver: None,
        name: Name::new(),
    };
}

static ARENA: IrqLock<[Entry; NODES]> = IrqLock::new([const { Entry::EMPTY }; NODES]);

/// Whether a name may be given: a letter first, then letters, digits, `-`, `.`, `_`.
pub fn name_is_valid(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic())
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
        && name.len() <= NAME_LEN
}

/// Puts a node into the arena. Main loop only.
///
/// # Errors
/// `Invalid` for a bad name, `Busy` for one in use, `NoMemory` when the arena is full.
pub fn add(name: &str, driver: &'static dyn NodeDriver) -> Result<NodeId, BlockError> {
    if !name_is_valid(name) {
        return Err(BlockError::Invalid);
    }
    let mut arena = ARENA.lock();
    if arena.iter().any(|e| e.driver.is_some() && e.name == name) {
        return Err(BlockError::Busy);
    }
    let (index, entry) = arena
        .iter_mut()
        .enumerate()
        .find(|(_, e)| e.driver.is_none())
        .ok_or(BlockError::NoMemory)?;
    entry.driver = Some(driver);
    entry.name.clear();
    let _ = entry.name.write_str(name);
    Ok(NodeId {
        index: index as u16,
        generation: entry.generation,
    })
}

/// Takes a node out of the arena. Main loop only; refused while a backend uses it.
///
/// # Errors
/// `NoMedium` for a stale id, `Busy` while in use.
pub fn remove(id: NodeId) -> Result<(), BlockError> {
    if super::backend::uses(id) {
        return Err(BlockError::Busy);
    }
    let mut arena = ARENA.lock();
    let entry = arena
        .get_mut(id.index as usize)
        .filter(|e| e.generation == id.generation);
    let entry = entry
        .filter(|e| e.driver.is_some())
        .ok_or(BlockError::NoMedium)?;
    entry.driver = None;
    entry.generation = entry.generation.wrapping_add(1);
    Ok(())
}

/// The node's driver, unless the id is stale.
pub fn driver(id: NodeId) -> Option<&'static dyn NodeDriver> {
    let arena = ARENA.lock();
    arena
        .get(id.index as usize)
        .filter(|e| e.generation == id.generation)?
        .driver
}

/// The node's name, unless the id is stale.
pub fn name(id: NodeId) -> Option<Name> {
    let arena = ARENA.lock();
    let entry = arena
        .get(id.index as usize)
        .filter(|e| e.generation == id.generation && e.driver.is_some())?;
    Some(entry.name.clone())
}

/// The node of that name.
pub fn find(name: &str) -> Option<NodeId> {
    let arena = ARENA.lock();
    let (index, entry) = arena
        .iter()
        .enumerate()
        .find(|(_, e)| e.driver.is_some() && e.name == name)?;
    Some(NodeId {
        index: index as u16,
        generation: entry.generation,
    })
}

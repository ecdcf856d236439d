//! The dirty node: notes in bitmaps what is written through it.
//!
//! A filter that changes nothing. Up to [`BITMAPS_PER_NODE`] named bitmaps hang on it, each with a granularity of its own; a job
//! cleans the bits of what it copies, and comes back for what became dirty meanwhile.
//!
//! What writes, zeroes and discards touch is marked when they *come back*, whatever their result. So a bit that is cleared while a
//! write is under way is set again by that write's end: whoever cleans a bit and then reads either sees the new data or finds the bit
//! set again. Marked when they come in alone, a bit could be cleaned, the old data read, and only then the new ones arrive.
//!
//! ```text
//!   client    write ───▶ below ─────────▶ back: bit set
//!   job             bit cleared, read the old          bit set: read again
//! ```
//! Any core; the lock of a bitmap is held for a few instructions a request. What bypasses the node would be missed, so while it is in
//! use nobody else writes to its child.
#![forbid(unsafe_code)]

use core::fmt::Write as _;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::instance::{self, Place};
use super::{Ascent, BlockStatus, Layer, Name, NodeDriver, NodeId, NodeInfo};
use crate::arch;
use crate::block::bitmap::{Bitmap, DEFAULT_GRANULARITY, granularity_for};
use crate::block::graph::{self, Access, Link, Permissions, Reason, Refusal};
use crate::block::request::complete;
use crate::block::{BlockError, Request};
use crate::config::{BITMAPS, DIRTY_NODES};
use crate::sync::IrqLock;

/// Bitmaps of one node.
pub const BITMAPS_PER_NODE: usize = 4;

/// A bitmap, and whose it is.
struct Record {
    /// Place of the node in its arena, plus one; 0: free.
    owner: u32,
    generation: u32,
    name: Name,
    bitmap: Bitmap,
}

static RECORDS: [IrqLock<Record>; BITMAPS] = [const {
    IrqLock::new(Record {
        owner: 0,
        generation: 0,
        name: Name::new(),
        bitmap: Bitmap::new(),
    })
}; BITMAPS];

/// A filter that notes what is written.
pub struct Dirty {
    place: Place,
    links: [Link; 1],
    /// Places of its bitmaps, plus one; 0: none.
    bitmaps: [AtomicU32; BITMAPS_PER_NODE],
    /// A job needs it.
    held: AtomicBool,
}

static ARENA: [Dirty; DIRTY_NODES] = [const { Dirty::new() }; DIRTY_NODES];

/// Makes a dirty node, without bitmaps, above `child`; without one it is to be inserted
/// ([`insert_begin`](crate::block::graph::change::insert_begin)). Main loop only.
///
/// # Errors
/// No dirty node is left; those of [`graph::add`] and [`graph::attach`].
pub fn create(name: &str, child: Option<NodeId>) -> Result<NodeId, Refusal> {
    let node = instance::take(&ARENA, |node| &node.place, "dirty nodes")?;
    instance::build(name, node, &node.place, child.as_slice())
}

fn of(id: NodeId) -> Option<(u32, &'static Dirty)> {
    let place = ARENA.iter().position(|node| node.place.is(id))?;
    Some((place as u32 + 1, &ARENA[place]))
}

/// Says whether a job needs the node: then no user can delete or remove it. Main loop only.
///
/// # Errors
/// `NoMedium` for another kind of node.
pub fn hold(id: NodeId, held: bool) -> Result<(), BlockError> {
    let (_, node) = of(id).ok_or(BlockError::NoMedium)?;
    node.held.store(held, Ordering::Relaxed);
    Ok(())
}

/// Names a bitmap; stale after that is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitmapId {
    place: u32,
    generation: u32,
}

/// A bitmap, as a person wants to see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitmapView {
    /// Its name.
    pub name: Name,
    /// Bytes of a granule.
    pub granularity: u64,
    /// Bytes that are dirty.
    pub dirty: u64,
    /// Bytes in all.
    pub size: u64,
}

/// Adds a bitmap, all clean, to a dirty node; without a granularity it has [`DEFAULT_GRANULARITY`], or the least that fits. Writes that
/// are under way count as later ones. Main loop only.
///
/// # Errors
/// Another kind of node, a bad name or one in use on this node, a granularity that is invalid or too fine, no room.
pub fn add_bitmap(id: NodeId, name: &str, granularity: Option<u64>) -> Result<BitmapId, Refusal> {
    let refuse = |reason| Err(Refusal::new(name, reason));
    let Some((owner, node)) = of(id) else {
        return refuse(Reason::Node(BlockError::NotSupported));
    };
    if !graph::name_is_valid(name) {
        return refuse(Reason::BadName);
    }
    if bitmap(id, name).is_some() {
        return refuse(Reason::NameInUse);
    }
    let Some(slot) = node.free_slot() else {
        return refuse(Reason::NoRoom("bitmaps of one node"));
    };
    let Some(place) = RECORDS.iter().position(|record| record.lock().owner == 0) else {
        return refuse(Reason::NoRoom("bitmaps"));
    };
    let size = instance::info_below(&node.links[0]).size;
    let granularity = granularity.unwrap_or_else(|| granularity_for(size, DEFAULT_GRANULARITY));
    let generation = {
        let mut record = RECORDS[place].lock();
        if record.bitmap.reset(size, granularity).is_err() {
            return refuse(Reason::Node(BlockError::Invalid));
        }
        record.owner = owner;
        record.generation += 1;
        record.name.clear();
        // Checked above: a valid name fits.
        let _ = record.name.write_str(name);
        record.generation
    };
    let place = place as u32;
    slot.store(place + 1, Ordering::Release);
    Ok(BitmapId { place, generation })
}

/// Takes a bitmap from its node. Main loop only.
///
/// # Errors
/// `NoMedium` for a stale one.
pub fn remove_bitmap(id: BitmapId) -> Result<(), BlockError> {
    let owner = id.with(|record| core::mem::take(&mut record.owner))?;
    if let Some(node) = ARENA.get(owner as usize - 1) {
        for slot in &node.bitmaps {
            if slot.load(Ordering::Relaxed) == id.place + 1 {
                slot.store(0, Ordering::Relaxed);
            }
        }
    }
    Ok(())
}

/// The bitmap of that name on a node.
pub fn bitmap(id: NodeId, name: &str) -> Option<BitmapId> {
    let (owner, node) = of(id)?;
    node.places().find_map(|place| {
        let record = RECORDS[place].lock();
        (record.owner == owner && record.name == name).then_some(BitmapId {
            place: place as u32,
            generation: record.generation,
        })
    })
}

/// Calls `f` for every bitmap of a node; for none of another kind. Any core.
pub fn for_each_bitmap(id: NodeId, mut f: impl FnMut(BitmapView)) {
    let Some((owner, node)) = of(id) else { return };
    for place in node.places() {
        let view = {
            let record = RECORDS[place].lock();
            (record.owner == owner).then(|| BitmapView {
                name: record.name.clone(),
                granularity: record.bitmap.granularity(),
                dirty: record.bitmap.dirty_bytes(),
                size: record.bitmap.size(),
            })
        };
        view.into_iter().for_each(&mut f);
    }
}

impl BitmapId {
    fn with<R>(self, f: impl FnOnce(&mut Record) -> R) -> Result<R, BlockError> {
        let record = RECORDS.get(self.place as usize);
        let mut record = record.ok_or(BlockError::NoMedium)?.lock();
        if record.owner == 0 || record.generation != self.generation {
            return Err(BlockError::NoMedium);
        }
        Ok(f(&mut record))
    }

    /// Uses the bitmap, for a few instructions: interrupts of this core wait. Any core.
    ///
    /// # Errors
    /// `NoMedium` for a stale one.
    pub fn use_bitmap<R>(self, f: impl FnOnce(&mut Bitmap) -> R) -> Result<R, BlockError> {
        self.with(|record| f(&mut record.bitmap))
    }
}

impl Dirty {
    const fn new() -> Self {
        Self {
            place: Place::new(),
            links: [Link::new()],
            bitmaps: [const { AtomicU32::new(0) }; BITMAPS_PER_NODE],
            held: AtomicBool::new(false),
        }
    }

    /// Places of its bitmaps.
    fn places(&self) -> impl Iterator<Item = usize> {
        self.bitmaps
            .iter()
            .filter_map(|slot| (slot.load(Ordering::Acquire) as usize).checked_sub(1))
    }

    fn free_slot(&self) -> Option<&AtomicU32> {
        self.bitmaps
            .iter()
            .find(|slot| slot.load(Ordering::Relaxed) == 0)
    }

    /// Whose the records of this node say that they are.
    fn owner(&self) -> u32 {
        ARENA
            .iter()
            .position(|node| core::ptr::eq(node, self))
            .map_or(0, |place| place as u32 + 1)
    }

    fn mark(&self, range: Range<u64>) {
        for place in self.places() {
            // One that is being taken away, and already another node's, may get a mark too many; never one too few.
            RECORDS[place].lock().bitmap.set(range.clone());
        }
    }
}

impl Layer for Dirty {
    fn completed(&'static self, mut request: Request) -> Ascent {
        // As it came: what is below may have narrowed the window.
        let (offset, len) = (request.frame().offset, request.frame().len);
        self.mark(offset..offset.saturating_add(len));
        request.leave();
        Ascent::Up(request)
    }
}

impl NodeDriver for Dirty {
    fn info(&self) -> NodeInfo {
        instance::filter_info(&self.links[0], "dirty")
    }

    #[inline]
    fn submit(&'static self, mut request: Request) {
        if request.operation.is_write() {
            // Also without a bitmap: one may be added while the request is below.
            let Some(core) = arch::current_core() else {
                return complete(request, Err(BlockError::Invalid));
            };
            if !request.push_frame(self, core, 0) {
                return complete(request, Err(BlockError::NoMemory));
            }
        }
        self.links[0].submit(request);
    }

    fn block_status(&self, offset: u64, len: u64) -> BlockStatus {
        instance::status_below(&self.links[0], offset, len)
    }

    fn links(&'static self) -> &'static [Link] {
        &self.links
    }

    fn permissions(&self, _slot: usize, above: Permissions) -> Permissions {
        // While nobody uses it, it promises nothing: so it can be made under writers, and inserted below them. A job that holds it
        // misses what is written past it, also while its users are gone.
        if above.needs.is_empty() && !self.held.load(Ordering::Relaxed) {
            return above;
        }
        Permissions {
            shares: above.shares - Access::WRITE,
            ..above
        }
    }

    fn child_changed(&'static self) {
        let Some(child) = self.links[0].driver() else {
            return;
        };
        let (size, owner) = (child.info().size, self.owner());
        for place in self.places() {
            let mut record = RECORDS[place].lock();
            if record.owner == owner && record.bitmap.size() != size {
                // Nobody has seen what is new.
                record.bitmap.resize(size, true);
            }
        }
    }

    fn deletable(&self) -> bool {
        !self.held.load(Ordering::Relaxed)
    }

    fn release(&'static self) {
        self.held.store(false, Ordering::Relaxed);
        let owner = self.owner();
        for slot in &self.bitmaps {
            if let Some(place) = (slot.swap(0, Ordering::Relaxed) as usize).checked_sub(1) {
                let mut record = RECORDS[place].lock();
                if record.owner == owner {
                    record.owner = 0;
                }
            }
        }
        self.place.give_back();
    }
}

//! What a backup job does with a copy-before-write node: it copies what no client has.
//!
//! The job has a backend on the node, which [`set_copier`] names. A read from that backend, of the range that [`next_copy`] gives, copies
//! the cluster that begins there, in the request's own memory, and is answered when the cluster is on the target (at once, if it is there
//! already). So a job's copies are counted, drained and given spare records as any request is.
#![forbid(unsafe_code)]

use core::ops::Range;
use core::sync::atomic::Ordering;

use super::super::NodeId;
use super::{ARENA, CopyBeforeWrite, Side};
use crate::block::request::RequestRecord;
use crate::block::token::InFlight;
use crate::block::{Backend, BlockError};

fn of(id: NodeId) -> Option<&'static CopyBeforeWrite> {
    ARENA.iter().find(|node| node.place.is(id))
}

/// Says whose reads are copies; `None`: nobody's. While there is somebody, no user can delete or remove the node. Main loop only, while
/// the backend has none under way.
///
/// # Errors
/// `NoMedium` for another kind of node.
pub fn set_copier(id: NodeId, backend: Option<&'static Backend>) -> Result<(), BlockError> {
    let node = of(id).ok_or(BlockError::NoMedium)?;
    let number = backend.map_or(0, |backend| backend.index() as u32 + 1);
    node.copier.store(number, Ordering::Relaxed);
    Ok(())
}

/// The range with whose read the first cluster from `from` on that is left is copied; `None`: none is left. Any core.
pub fn next_copy(id: NodeId, from: u64) -> Option<Range<u64>> {
    let node = of(id)?;
    let next = node.left.lock().next_dirty(from, 1)?;
    Some(node.piece(next.start))
}

/// Bytes of a cluster; `None` for another kind of node. Any core.
pub fn cluster(id: NodeId) -> Option<u64> {
    Some(of(id)?.cluster.load(Ordering::Relaxed))
}

/// Bytes that are not on the target yet; `None` for another kind of node. Any core.
pub fn left(id: NodeId) -> Option<u64> {
    let node = of(id)?;
    let left = node.left.lock().dirty_bytes();
    Some(left)
}

/// By what the image was broken; `None`: it was not, or this is another kind of node. Any core.
pub fn broken(id: NodeId) -> Option<(Side, BlockError)> {
    let code = of(id)?.broken.load(Ordering::Relaxed);
    let side = if code >> 8 == 0 {
        Side::Source
    } else {
        Side::Target
    };
    Some((side, BlockError::from_code(code as u8)?))
}

/// One word, never 0.
pub(super) fn pack(side: Side, error: BlockError) -> u32 {
    u32::from(side == Side::Target) << 8 | u32::from(error.code())
}

/// Which side failed a copy that was answered with an error.
pub fn side_of(copy: &RequestRecord) -> Side {
    if copy.user[1] == 0 {
        Side::Target
    } else {
        Side::Source
    }
}

/// The second of the copier's own words in its request, which was 0, says which side failed.
pub(super) fn note_side(copy: &mut RequestRecord, side: Side) {
    copy.user[1] = u64::from(side == Side::Source);
}

impl CopyBeforeWrite {
    /// Whether a read is a copy.
    pub(super) fn is_copiers(&self, request: &RequestRecord) -> bool {
        let copier = self.copier.load(Ordering::Relaxed);
        copier != 0
            && request
                .token
                .as_ref()
                .is_some_and(|token: &InFlight| token.backend().index() as u32 + 1 == copier)
    }
}

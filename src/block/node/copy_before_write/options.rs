//! Making a copy-before-write node.
#![forbid(unsafe_code)]

use core::sync::atomic::Ordering;

use super::super::NodeId;
use super::super::instance;
use super::ARENA;
use crate::block::BlockError;
use crate::block::bitmap::{MAX_GRANULARITY, MIN_GRANULARITY};
use crate::block::graph::{self, Reason, Refusal};
use crate::config::COPY_CHUNK;

/// What happens when old data cannot be copied for a client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnError {
    /// The image on the target is given up, and the write goes on.
    #[default]
    BreakCopy,
    /// The write fails, and the image stays good.
    BreakWrite,
}

/// What a copy-before-write node is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// What it protects; `None`: it is to be inserted ([`insert_begin`](crate::block::graph::change::insert_begin)).
    pub child: Option<NodeId>,
    /// Where the old data go; nobody else may write to it, and it is no smaller.
    pub target: NodeId,
    /// Bytes of a cluster, a power of two of at least 4 KiB; `None`: 64 KiB. It becomes larger where the source has too many.
    pub cluster: Option<u64>,
    /// When a copy fails.
    pub on_error: OnError,
}

/// Makes a copy-before-write node. Main loop only.
///
/// # Errors
/// `Invalid` for a cluster that is no power of two in range, `NoSpace` for a target that is smaller than the child, `NotSupported` for
/// one whose blocks the child's end does not meet; no node left; those of [`graph::add`] and [`graph::attach`].
pub fn create(name: &str, options: Options) -> Result<NodeId, Refusal> {
    let refuse = |error| Err(Refusal::new(name, Reason::Node(error)));
    let wanted = options.cluster.unwrap_or(0);
    let range = MIN_GRANULARITY..=MAX_GRANULARITY;
    if options.cluster.is_some() && !(wanted.is_power_of_two() && range.contains(&wanted)) {
        return refuse(BlockError::Invalid);
    }
    if let Some(child) = options.child {
        check(child, options.target)?;
    }
    let node = instance::take(&ARENA, |node| &node.place, "copy-before-write nodes")?;
    node.wanted.store(wanted, Ordering::Relaxed);
    node.break_write
        .store(options.on_error == OnError::BreakWrite, Ordering::Relaxed);
    let id = instance::build(name, node, &node.place, &[])?;
    // The target first: with the source the image begins.
    let attached = graph::attach(id, 1, options.target).and_then(|()| match options.child {
        Some(child) => graph::attach(id, 0, child),
        None => Ok(()),
    });
    if let Err(refusal) = attached {
        // Nobody knows it yet, so nothing can stand against this.
        let _ = graph::delete(id);
        return Err(refusal);
    }
    Ok(id)
}

/// Whether `target` can hold what `source` does, chunk by chunk.
///
/// # Errors
/// A stale id; `NoSpace` for a target that is smaller; `NotSupported` for one whose blocks are too large, or do not meet the source's end.
pub fn check(source: NodeId, target: NodeId) -> Result<(), Refusal> {
    let infos = graph::info(source).zip(graph::info(target));
    let name = graph::name(target).unwrap_or_default();
    let Some((source, target)) = infos else {
        return Err(Refusal::new(&name, Reason::NoSuchNode));
    };
    let block = target.logical_block;
    let error = if target.size < source.size {
        BlockError::NoSpace
    } else if block as usize > COPY_CHUNK || !source.size.is_multiple_of(block.into()) {
        BlockError::NotSupported
    } else {
        return Ok(());
    };
    Err(Refusal::new(&name, Reason::Node(error)))
}

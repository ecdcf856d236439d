//! The block layer: requests, backends, nodes, drained sections, durability.
//!
//! ```text
//!   export, bench, console          make requests, fill them with owned buffers
//!        │ submit                       ▲ completion, on the same core, later
//!   Backend                        checks, counts in flight, parks while drained, splits, books
//!        │                              │
//!   NodeDriver (disk, ram, null)   pushes a frame, narrows the window, takes the frame back
//!        │                              │
//!   BlockDevice (virtio)           one queue a core
//! ```
//! | module | what |
//! |---|---|
//! | [`request`] | records, frames, data, windows; `complete` |
//! | [`mod@backend`] | a user's handle on a node |
//! | [`drain`] | drained sections |
//! | [`node`] | kinds of node |
//! | [`graph`] | how nodes hang together, and how that is changed under load |
//! | [`partitions`] | partition tables: found, checked, offered as nodes |
//! | [`device`] | what a disk driver implements |
//! | [`accounting`] | counters |
//! | [`mod@bench`] | a load generator over a backend |
//! | [`bitmap`] | which parts of an address space are dirty |
//! | [`throttle`] | leaky buckets and the groups that share them |
//! | [`io`] | requests that a coroutine awaits |
//! | [`job`] | long work on nodes in use: copies, rebuilds, backups |
//! | [`tracked`] | which ranges are being worked on, and who waits for whom |
//!
//! The machine calls [`start_core`] on every core, then [`add_disk`] for each device, from the top slot down.
//! Only `submit`, `complete` and what they call are on the path of a request.
#![forbid(unsafe_code)]

pub mod accounting;
pub mod backend;
pub mod bench;
pub mod bitmap;
mod core_state;
mod credits;
mod data;
pub mod device;
pub mod drain;
pub mod error;
mod gate;
pub mod graph;
pub mod io;
pub mod job;
pub mod mapping;
pub mod node;
mod operation;
pub mod partitions;
mod queue;
pub mod request;
#[cfg(not(target_os = "none"))]
pub mod testing;
#[cfg(test)]
mod tests;
pub mod throttle;
mod token;
pub mod tracked;
mod watch;
mod zero;

pub use accounting::Totals;
pub use backend::{Backend, BackendListener, backend, backends};
pub use core_state::most_records;
pub use credits::usage as spare_usage;
pub use device::{BlockDevice, DeviceEvents, DeviceFeatures, DeviceInfo};
pub use drain::{DrainGuard, DrainState, drain_kick, for_each_section};
pub use error::BlockError;
pub use graph::{drain_all_begin, drain_all_end};
pub use node::disk::{Disk, DiskState, DiskView, ResetOutcome, add_disk, disk, disks, find_disk};
pub use node::{BlockStatus, NodeDriver, NodeId, NodeInfo};
pub(crate) use queue::RequestQueue;
pub use request::{
    Completion, Operation, Piece, Request, RequestFlags, RequestRecord, Segment, complete,
};
pub use token::{InFlightView, for_each_in_flight};

use crate::arch::CoreId;

/// The unit of device capacities, in bytes.
pub const SECTOR: u64 = 512;

/// Prepares the block layer on the current core, whose context is attached; core 0 first. Idempotent.
///
/// # Errors
/// `Invalid` on another core; `NoMemory` when the context's static pools are used up.
pub fn start_core(core: CoreId) -> Result<(), BlockError> {
    if crate::arch::current_core() != Some(core) {
        return Err(BlockError::Invalid);
    }
    if core_state::started() & (1 << core) != 0 {
        return Ok(());
    }
    node::disk::start(core)?;
    node::null::start(core)?;
    node::delay::start(core)?;
    drain::start(core)?;
    core_state::start(core)?;
    io::start(core)?;
    if core == 0 {
        job::start()?;
        watch::start()?;
        partitions::scan::start()?;
    }
    Ok(())
}

/// Request records of the current core: in use now, and the most ever in use at once.
pub fn request_usage() -> (usize, usize) {
    crate::arch::current_core().map_or((0, 0), core_state::usage)
}

/// Whether this thread is unwinding from a panic (host tests only): then a second panic would hide the first.
fn unwinding() -> bool {
    #[cfg(not(target_os = "none"))]
    {
        std::thread::panicking()
    }
    #[cfg(target_os = "none")]
    {
        false
    }
}

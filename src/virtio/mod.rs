//! virtio devices: our split virtqueue, and the drivers on it.
//!
//! | file | what it is |
//! |---|---|
//! | [`dma`] | the static arena that rings and request headers are carved from |
//! | [`transport`] | what a driver needs of a device's registers; negotiation |
//! | [`mmio`] | the same over virtio-MMIO, legacy and modern |
//! | [`probe`] | from slot addresses to a list of devices |
//! | [`queue`] | the split virtqueue |
//! | [`net`] | network card: frames on two queues |
//! | [`blk`] | virtio-blk |
//! | [`layout`] | where the parts of a virtqueue lie in memory |
//! | `fake` | host only: a device made of memory, for tests and the simulation |
//!
//! `unsafe` is needed here because a ring is memory that someone else writes too.

pub mod blk;
pub mod dma;
#[cfg(not(target_os = "none"))]
pub mod fake;
pub mod layout;
pub mod mmio;
pub mod net;
pub mod probe;
pub mod queue;
pub mod transport;

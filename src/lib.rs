//! **ironthread**: a block engine on bare metal.
//!
//! | module | what it is |
//! |---|---|
//! | [`config`] | every capacity, in two profiles |
//! | [`arch`] | the core we run on: core id, mask, wait, kick, clock |
//! | [`sync`] | context lock, interrupt-safe lock, home cells, static pools |
//! | [`aio`] | the event loop: bottom halves, notifiers, timers, coroutines |
//! | [`block`] | requests, buffers, backends, nodes, durability |
//! | [`virtio`] | split virtqueue, virtio-blk, virtio-net |
//! | [`devices`] | UART, GPIO, RTC behind embedded traits |
//! | [`net`] | smoltcp run by a context; byte streams |
//! | [`export`] | NBD server over a byte stream |
//! | [`monitor`] | console for a person |
//! | [`machine`] | from device tree to running system |
//!
//! Arrows point one way: `boards → machine → {monitor, export, net} → block → aio → sync → arch`, and
//! `virtio, devices → traits of {block, aio, net}`. `tests/layers` holds the `use crate::` lines against this.
//! Under `--cfg loom` only what the models of `tests/models` check is built: `arch`, `sync`, `aio`.
#![no_std]

#[cfg(not(target_os = "none"))]
extern crate std;

pub mod aio;
pub mod arch;
#[cfg(not(loom))]
pub mod block;
pub mod config;
#[cfg(not(loom))]
pub mod devices;
#[cfg(not(loom))]
pub mod export;
#[cfg(not(loom))]
pub mod machine;
#[cfg(not(loom))]
pub mod monitor;
#[cfg(not(loom))]
pub mod net;
pub mod sync;
#[cfg(not(loom))]
pub mod virtio;

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
#![no_std]

#[cfg(not(target_os = "none"))]
extern crate std;

pub mod aio;
pub mod arch;
pub mod block;
pub mod config;
pub mod devices;
pub mod export;
pub mod machine;
pub mod monitor;
pub mod net;
pub mod sync;
pub mod virtio;

//! From device tree to running system: discovery, boot options, interrupt routing, core start, power.
//!
//! | file | what it does |
//! |---|---|
//! | [`tree`] | device tree → [`tree::MachineInfo`] |
//! | [`options`] | boot arguments → [`options::Options`] |
//! | `start` | the start order, to the running loops |
//! | `serial` | the UART as the console's port |
//! | `surface` | what the console shows of the machine |
//! | `storage` | virtio slots → disks |
//! | `exports` | boot options → exports, and their end |
//! | `network` | card, stack, port |
//! | `power` | power key, shutdown |
#![forbid(unsafe_code)]

#[cfg(target_os = "none")]
pub mod exports;
#[cfg(target_os = "none")]
pub mod network;
pub mod options;
#[cfg(target_os = "none")]
pub mod power;
#[cfg(target_os = "none")]
pub mod serial;
#[cfg(target_os = "none")]
pub mod start;
#[cfg(target_os = "none")]
pub mod storage;
#[cfg(target_os = "none")]
pub mod surface;
pub mod tree;

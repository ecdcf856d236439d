//! The mirror node.
#![forbid(unsafe_code)]

pub mod assembly;
#[cfg(test)]
mod histories;
pub mod regions;
pub mod superblock;

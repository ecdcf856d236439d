//! From device tree to running system: discovery, boot options, interrupt routing, core start, power.
//!
//! | file | what it does |
//! |---|---|
//! | [`tree`] | device tree → [`tree::MachineInfo`] |
//! | [`options`] | boot arguments → [`options::Options`] |
#![forbid(unsafe_code)]

pub mod options;
pub mod tree;

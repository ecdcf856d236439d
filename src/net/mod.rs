//! The network: smoltcp over one card, run by one context; byte streams for whoever serves.
#![forbid(unsafe_code)]

pub mod checksum;
pub mod config;
pub mod stream;

pub use config::{AllowList, Cidr, IpConfig, NetConfig};

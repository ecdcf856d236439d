//! Throttling: leaky buckets, what they allow, and the groups in which several nodes share them.
//!
//! | module | what |
//! |---|---|
//! | [`bucket`] | one level and its arithmetic |
//! | [`config`] | the limits, and which make sense |
//! | [`state`] | the buckets of a group |
//! | [`timers`] | the timers of a member |
//! | [`group`] | groups by name, and who waits in them |
//!
//! The node is [`node::throttle`](super::node::throttle). A request that raises a level above its bucket passes; those after it
//! wait until the level has sunk: so requests of any size get through, and the rate holds in the long run.
#![forbid(unsafe_code)]

pub mod bucket;
pub mod config;
pub mod group;
pub mod state;
pub mod timers;

pub use bucket::{Bucket, Limit};
pub use config::{Config, Direction, Kind, Unfit};
pub use group::{
    GroupError, GroupView, configure, for_each_group, group_config, remove_group, set_limits,
};
pub use state::State;
pub use timers::Timers;

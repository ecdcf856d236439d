//! The block graph: nodes, the edges between them, and what may be done to both while requests travel.
//!
//! ```text
//!   Backend ──edge──▶ node ──edge──▶ node            a change:  begin a drained section on what it touches
//!                        └──edge──▶ node                        ─▶ quiet ─▶ swap edges, check permissions ─▶ end
//! ```
//! | module | what |
//! |---|---|
//! | [`arena`] | nodes and edges: static, chained by index, behind generation-checked ids |
//! | [`link`] | a node's way to a child, as the data path sees it |
//! | [`permissions`] | what users of a node need of it and leave to others |
//! | [`edit`] | attach, detach, replace, delete: each checked, undone when refused |
//! | [`change`] | insert, remove, replace, move: under load, each with its drained section |
//! | [`context`] | moving a connected component to another core, whole or not at all |
//! | [`drain`] | drained sections on nodes and on everything (DRN-5 … DRN-24) |
//! | [`coroutine`] | the same from coroutines of any core (DRN-4) |
//! | [`refusal`] | why something was not done, in words |
//! | [`report`] | which nodes keep a drained section from being quiet |
//!
//! Only the main loop changes the graph. Any core may look things up; the data path does so through [`Link`]s, without a lock.
//! Requests are counted at backends alone: a node is quiet when every backend above it is, so a node costs a request nothing
//! but its own work.
#![forbid(unsafe_code)]

mod arena;
pub mod change;
pub mod context;
mod coroutine;
pub mod drain;
mod edit;
mod link;
mod permissions;
mod refusal;
pub(crate) mod report;

pub(crate) use arena::changed;
pub use arena::{
    add, add_at, children, driver, find, for_each_node, home, info, name, name_is_valid,
    parent_names,
};
pub use coroutine::{Drained, drained_all_in_coroutine, drained_in_coroutine};
pub use drain::{drain_all_begin, drain_all_end};
pub use edit::{attach, delete, detach, replace, stands_on};
pub(crate) use edit::{attach_backend, detach_backend, set_permissions};
pub use link::Link;
pub use permissions::{Access, Permissions};
pub use refusal::{Reason, Refusal};

//! What cores share safely: locks, cells that belong to one core, static pools of records and pages.
//!
//! | type | who may touch the value | waits |
//! |---|---|---|
//! | [`ContextLock`] | the core that holds it, recursively, in FIFO order | spins, then sleeps |
//! | [`IrqLock`] | one core at a time, interrupts masked | spins; for a few instructions only |
//! | [`HomeCell`] | its home core | never |
//! | [`Pool`], [`PoolBox`] | the owner of the record | never |
//! | [`PageArena`], [`Buffer`] | the owner of the pages | never |
//! | [`Claim`] | whoever took it first, for ever | never |
//! | [`CoreArray`] | one cache line a core | never |
//!
//! Everything is `const`-constructible and starts as zeros where it is large, so that statics live in `.bss`.
pub mod atomic;

mod arena;
mod claim;
mod core_array;
mod home_cell;
mod index_stack;
mod irq_lock;
mod lock;
#[cfg(all(debug_assertions, not(loom)))]
mod order;
mod pool;
mod static_ref;

pub use arena::{Buffer, BufferOwner, PAGE_SIZE, PageArena};
pub use claim::Claim;
pub use core_array::{CachePadded, CoreArray};
pub use home_cell::HomeCell;
pub use index_stack::IndexStack;
pub use irq_lock::{IrqLock, IrqLockGuard};
pub(crate) use lock::held_on;
pub use lock::{ContextLock, caller_levels};
pub use pool::{Pool, PoolBox, Recycle, Recycled};
pub use static_ref::StaticRef;

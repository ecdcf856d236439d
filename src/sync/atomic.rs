//! The atomics of this crate: `core`'s, or loom's when a model is checked (`--cfg loom`).
//!
//! With `--cfg preempt` they are `core`'s too, but every access is a place where `tests/replay` may switch cores.
//!
//! loom treats a `SeqCst` access as acquire-release only, so every store→load handshake here says
//! `fence(SeqCst)` where it needs one; model and firmware run the same text.
#[cfg(not(any(loom, preempt)))]
pub use core::sync::atomic::{
    AtomicBool, AtomicPtr, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering,
    compiler_fence, fence,
};

#[cfg(any(loom, preempt))]
#[macro_use]
mod accesses;

#[cfg(loom)]
pub mod model;
#[cfg(loom)]
pub use model::{
    AtomicBool, AtomicPtr, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};

#[cfg(preempt)]
mod preempt;
#[cfg(preempt)]
pub use preempt::{
    AtomicBool, AtomicPtr, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering,
    compiler_fence, fence,
};

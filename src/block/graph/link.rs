//! A node's way to a child.
//!
//! Which child it is changes only while nothing can come through (the parent is quiet, so no request is in it, and whatever opens
//! it again is published after the change, with release ordering, to each core). So each core may keep what it looked up, and
//! asks again only when the graph has changed at all: one load and one compare a request, no lock.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU32, Ordering};

use super::arena;
use crate::arch;
use crate::block::node::{NodeDriver, NodeId};
use crate::block::request::complete;
use crate::block::{BlockError, Request};
use crate::config::MAX_CORES;
use crate::sync::HomeCell;

/// Counts the changes of all links. Never 0 once there was one.
static GENERATION: AtomicU32 = AtomicU32::new(1);

/// A link has changed: whoever keeps a child asks again. (Relaxed: see the head of this file for what orders it.)
pub(super) fn forget_cached() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
}

/// What one core knows of a link; generation 0: nothing.
struct Cached {
    generation: u32,
    driver: Option<&'static dyn NodeDriver>,
}

/// A node's way to one of its children; part of the parent's own static.
pub struct Link {
    /// A packed [`NodeId`], 0 for none.
    child: AtomicU32,
    cores: [HomeCell<Cached>; MAX_CORES],
}

impl Default for Link {
    fn default() -> Self {
        Self::new()
    }
}

impl Link {
    /// Leads nowhere.
    pub const fn new() -> Self {
        Self {
            child: AtomicU32::new(0),
            cores: [const {
                HomeCell::new(Cached {
                    generation: 0,
                    driver: None,
                })
            }; MAX_CORES],
        }
    }

    /// The child. Any core.
    pub fn child(&self) -> Option<NodeId> {
        NodeId::unpack(self.child.load(Ordering::Relaxed))
    }

    pub(super) fn set(&self, child: Option<NodeId>) {
        self.child
            .store(child.map_or(0, NodeId::pack), Ordering::Relaxed);
    }

    /// The child's driver, for what is not on the path of a request (properties, allocation). Any core.
    pub fn driver(&self) -> Option<&'static dyn NodeDriver> {
        arena::driver(self.child()?)
    }

    /// Sends a request down to the child. On any core that runs the block layer; the request is answered with `NoMedium` where
    /// there is no child.
    #[inline]
    pub fn submit(&self, request: Request) {
        let generation = GENERATION.load(Ordering::Relaxed);
        let cell = arch::current_core().and_then(|core| self.cores.get(core));
        let known = cell.and_then(|cell| {
            // Unbound until this core first came through.
            cell.home()?;
            cell.with(|cached| {
                if cached.generation == generation {
                    cached.driver
                } else {
                    None
                }
            })
        });
        match known {
            Some(driver) => driver.submit(request),
            None => self.submit_slowly(request, generation),
        }
    }

    /// Looks the child up, and keeps what it found.
    #[cold]
    #[inline(never)]
    fn submit_slowly(&self, request: Request, generation: u32) {
        let driver = self.driver();
        if let Some(core) = arch::current_core()
            && let Some(cell) = self.cores.get(core)
        {
            cell.bind(core);
            cell.with(|cached| *cached = Cached { generation, driver });
        }
        match driver {
            Some(driver) => driver.submit(request),
            None => complete(request, Err(BlockError::NoMedium)),
        }
    }
}

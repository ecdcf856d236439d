//! The order of context locks, checked in debug builds (ACQ-3, CS-17).
//!
//! Contexts have no order among themselves, so a cycle is avoided by who may hold several:
//! - the main loop's core may hold its own and any other contexts' locks;
//! - another core holds the lock of one context beside the main loop's, not of two. The level that its own loop holds
//!   while it dispatches counts; taking a lock that the core holds already does not.
//! - between the main loop's lock and a context's, either may be the outer one, but not the one way on the main
//!   loop's core and the other way elsewhere: the two could wait for each other.
//!
//! What was nested how is remembered with the place where it first happened, so an inversion is found when its second
//! half is executed, whether or not the two meet. Locks that belong to no attached context have no rank. Loops that
//! follow each other on a core, as in tests, begin with a clean slate.
#![forbid(unsafe_code)]

use core::panic::Location;
use core::sync::atomic::{AtomicUsize, Ordering};

use super::{CachePadded, CoreArray, StaticRef};
use crate::arch::CoreId;
use crate::config::MAX_CORES;

/// Locks of different contexts that a core can be seen to hold; further ones are not checked.
const SEEN: usize = MAX_CORES;

/// The main loop's core, whose context's lock is the main loop's.
const MAIN: CoreId = 0;

type Site = StaticRef<Location<'static>>;

/// A lock that a core holds; only that core reads and writes this.
struct Held {
    /// The lock's address, by which it is told apart; 0: nothing here.
    lock: AtomicUsize,
    home: AtomicUsize,
    site: Site,
}

static HELD: CoreArray<[Held; SEEN]> = CoreArray::new(
    [const {
        CachePadded::new(
            [const {
                Held {
                    lock: AtomicUsize::new(0),
                    home: AtomicUsize::new(0),
                    site: StaticRef::new(),
                }
            }; SEEN],
        )
    }; MAX_CORES],
);

/// Where the lock of a context and the main loop's were first nested: on the main loop's core, and elsewhere.
struct Nested {
    main_outside: [Site; 2],
    main_inside: [Site; 2],
}

/// One a home core.
static NESTED: [Nested; MAX_CORES] = [const {
    Nested {
        main_outside: [const { StaticRef::new() }; 2],
        main_inside: [const { StaticRef::new() }; 2],
    }
}; MAX_CORES];

/// The rank of a lock: the home core of its context.
pub(super) struct Rank(AtomicUsize);

impl Rank {
    /// None yet.
    pub(super) const fn new() -> Self {
        Self(AtomicUsize::new(0))
    }

    /// The lock is that of the context whose home is `core`.
    pub(super) fn set(&self, core: CoreId) {
        if self.0.swap(core + 1, Ordering::Relaxed) == core + 1 {
            return;
        }
        let first = if core == MAIN { 0 } else { core };
        let last = if core == MAIN { MAX_CORES - 1 } else { core };
        for nested in &NESTED[first..=last] {
            for site in nested.main_outside.iter().chain(&nested.main_inside) {
                site.set(None);
            }
        }
    }

    fn home(&self) -> Option<CoreId> {
        self.0.load(Ordering::Relaxed).checked_sub(1)
    }

    fn address(&self) -> usize {
        core::ptr::from_ref(self).addr()
    }

    /// `core` is about to take its outermost level at `site`, and may have to wait for it.
    ///
    /// # Panics
    /// On an inversion.
    pub(super) fn check(&self, core: CoreId, site: &'static Location<'static>) {
        let Some(home) = self.home() else { return };
        for held in HELD.get(core) {
            if held.lock.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let outer = held.home.load(Ordering::Relaxed);
            let Some(first) = held.site.get() else {
                continue;
            };
            match (outer, home) {
                (MAIN, MAIN) => {}
                (MAIN, _) => {
                    let nested = &NESTED[home];
                    note(core, site, &nested.main_outside, &nested.main_inside);
                }
                (_, MAIN) => {
                    let nested = &NESTED[outer];
                    note(core, site, &nested.main_inside, &nested.main_outside);
                }
                _ if core == MAIN => {}
                _ => panic!(
                    "lock order: core {core} takes the lock of context {home} at {site} while it holds that of \
                     context {outer}, taken at {first}; only the main loop's core may hold several"
                ),
            }
        }
    }

    /// `core` got its outermost level at `site`.
    pub(super) fn taken(&self, core: CoreId, site: &'static Location<'static>) {
        let Some(home) = self.home() else { return };
        let place = HELD
            .get(core)
            .iter()
            .find(|held| held.lock.load(Ordering::Relaxed) == 0);
        if let Some(place) = place {
            place.lock.store(self.address(), Ordering::Relaxed);
            place.home.store(home, Ordering::Relaxed);
            place.site.set(Some(site));
        }
    }

    /// `core` gave its outermost level back.
    pub(super) fn released(&self, core: CoreId) {
        for held in HELD.get(core) {
            if held.lock.load(Ordering::Relaxed) == self.address() {
                held.lock.store(0, Ordering::Relaxed);
            }
        }
    }
}

/// Remembers that two locks were nested `this` way at `site`; panics when another core has nested them the `other`
/// way.
fn note(core: CoreId, site: &'static Location<'static>, this: &[Site; 2], other: &[Site; 2]) {
    let side = usize::from(core != MAIN);
    if let Some(first) = other[1 - side].get() {
        panic!(
            "lock order: core {core} nests a context's lock and the main loop's at {site} the other way round than {first}"
        );
    }
    if this[side].get().is_none() {
        this[side].set(Some(site));
    }
}

//! The throttle node: lets requests through to its child as fast as the limits of its group allow.
//!
//! It works in its context's core, where its timers are: requests of other cores cross, unless the group limits nothing. Flushes
//! are never held up. What is held up goes at once when a drained section begins, on the node or on a backend above it, and nothing
//! is held up inside one (DRN-6).
//!
//! The limits are the group's ([`throttle`](crate::block::throttle)): several nodes that name one share them. A node without one
//! has a group of its own name.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::instance::{self, Place};
use super::{Ascent, BlockStatus, Layer, Name, NodeDriver, NodeId, NodeInfo};
use crate::aio::Callback;
use crate::arch::{self, CoreId};
use crate::block::graph::{self, Link, Reason, Refusal};
use crate::block::request::complete;
use crate::block::throttle::group::{self, Group, Waiter};
use crate::block::throttle::{Direction, Timers};
use crate::block::{BlockError, Request, core_state};
use crate::config::THROTTLES;

/// What a throttle node is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options<'a> {
    /// What it stands on.
    pub child: NodeId,
    /// Whose limits hold; `None`: a group of the node's name. One that does not exist yet limits nothing until
    /// [`configure`](crate::block::throttle::configure) is called.
    pub group: Option<&'a str>,
}

/// A node that holds requests up.
pub struct Throttle {
    place: Place,
    /// Which of the arena it is, and so its place in its group.
    index: AtomicU32,
    /// Its group's place, plus one; 0: none.
    group: AtomicU32,
    home: AtomicU32,
    /// In a drained section; below a backend that is in one. Each suspends the limits.
    drained: AtomicBool,
    hurried: AtomicBool,
    links: [Link; 1],
    timers: Timers,
}

/// Instances taken: mostly none, and then a drained section asks nobody.
static TAKEN: AtomicU32 = AtomicU32::new(0);

/// No limit holds any more: the machine is on its way down.
static HURRY: AtomicBool = AtomicBool::new(false);

static ARENA: [Throttle; THROTTLES] = [const { Throttle::new() }; THROTTLES];

/// Makes a throttle node on a child. Main loop only.
///
/// # Errors
/// No node or group left, a bad group name, no timers left in the main context; those of [`graph::add`] and [`graph::attach`].
pub fn create(name: &str, options: Options<'_>) -> Result<NodeId, Refusal> {
    let throttle = instance::take(&ARENA, |throttle| &throttle.place, "throttle nodes")?;
    TAKEN.fetch_add(1, Ordering::Relaxed);
    if let Err(error) = throttle.prepare(options.group.unwrap_or(name)) {
        throttle.release();
        return Err(Refusal::new(name, Reason::Node(error)));
    }
    instance::build(name, throttle, &throttle.place, &[options.child])
}

/// A drained section has begun or ended on a backend: nothing is held up below one that drains. Main loop only.
pub(crate) fn users_changed() {
    if TAKEN.load(Ordering::Relaxed) == 0 {
        return;
    }
    for throttle in &ARENA {
        if let Some(id) = throttle.place.node() {
            let hurried = HURRY.load(Ordering::Relaxed) || graph::drain::user_drains(id);
            throttle.suspend_for(&throttle.hurried, hurried);
        }
    }
}

/// Suspends all limits, or no longer: whoever shuts the machine down does not wait for them. Main loop only.
pub fn suspend_all(on: bool) {
    HURRY.store(on, Ordering::Relaxed);
    users_changed();
}

/// The group of the throttle node that `driver` is, or `None` for another kind of node.
pub fn group_of(driver: &'static dyn NodeDriver) -> Option<Name> {
    let throttle = ARENA
        .iter()
        .find(|throttle| core::ptr::addr_eq(*throttle, driver))?;
    Some(throttle.group()?.name())
}

/// What the timers of node number `index` call.
fn fired_of(index: usize) -> [Callback; 2] {
    Direction::ALL.map(|direction| Callback::new(&fired, index << 1 | direction.index()))
}

fn fired(argument: usize) {
    let direction = Direction::ALL[argument & 1];
    let index = argument >> 1;
    if let Some(group) = ARENA.get(index).and_then(Throttle::group) {
        group.fired(index, direction);
    }
}

impl Throttle {
    const fn new() -> Self {
        Self {
            place: Place::new(),
            index: AtomicU32::new(0),
            group: AtomicU32::new(0),
            home: AtomicU32::new(0),
            drained: AtomicBool::new(false),
            hurried: AtomicBool::new(false),
            links: [Link::new()],
            timers: Timers::new(),
        }
    }

    /// Joins its group and gets its timers; on an error it may have one of them.
    fn prepare(&'static self, group: &str) -> Result<(), BlockError> {
        let index = ARENA
            .iter()
            .position(|throttle| core::ptr::eq(throttle, self))
            .ok_or(BlockError::Invalid)?;
        let group = group::join(group, index, self)?;
        self.index.store(index as u32, Ordering::Relaxed);
        self.group.store(group as u32 + 1, Ordering::Relaxed);
        self.home.store(0, Ordering::Relaxed);
        self.timers.reserve(0, fired_of(index), &Direction::ALL)?;
        self.timers.attach();
        Ok(())
    }

    fn index(&self) -> usize {
        self.index.load(Ordering::Relaxed) as usize
    }

    #[inline]
    fn group(&self) -> Option<&'static Group> {
        let place = self.group.load(Ordering::Relaxed).checked_sub(1)?;
        group::at(place as usize)
    }

    fn home(&self) -> CoreId {
        self.home.load(Ordering::Relaxed) as CoreId
    }

    /// Sets one of the two reasons to suspend the limits. Main loop only.
    fn suspend_for(&self, reason: &AtomicBool, on: bool) {
        let suspended =
            || self.drained.load(Ordering::Relaxed) || self.hurried.load(Ordering::Relaxed);
        let before = suspended();
        reason.store(on, Ordering::Relaxed);
        if let Some(group) = self.group() {
            match (before, suspended()) {
                (false, true) => group.suspend(self.index()),
                (true, false) => group.resume(self.index()),
                _ => {}
            }
        }
    }

    /// A request that is under the limits.
    #[cold]
    #[inline(never)]
    fn limit(&'static self, group: &'static Group, direction: Direction, request: Request) {
        let home = self.home();
        if arch::current_core() != Some(home) {
            return core_state::forward(home, request, self);
        }
        if let Some(request) = group.admit(self.index(), direction, request) {
            self.links[0].submit(request);
        }
    }
}

impl Waiter for Throttle {
    fn let_go(&self, request: Request) {
        match self.links[0].driver() {
            // From a bottom half there, so that a batch that goes at once does not run inside whatever let it go.
            Some(child) => core_state::forward(self.home(), request, child),
            None => complete(request, Err(BlockError::NoMedium)),
        }
    }

    fn timers(&self) -> &Timers {
        &self.timers
    }
}

impl Layer for Throttle {
    fn completed(&'static self, request: Request) -> Ascent {
        // It pushes no frame.
        Ascent::Up(request)
    }
}

impl NodeDriver for Throttle {
    fn info(&self) -> NodeInfo {
        NodeInfo {
            kind: "throttle",
            ..instance::info_below(&self.links[0])
        }
    }

    #[inline]
    fn submit(&'static self, request: Request) {
        if let Some(group) = self.group()
            && group.is_enabled()
            && let Some(direction) = Direction::of(request.operation)
        {
            return self.limit(group, direction, request);
        }
        self.links[0].submit(request);
    }

    fn block_status(&self, offset: u64, len: u64) -> BlockStatus {
        instance::status_below(&self.links[0], offset, len)
    }

    fn links(&'static self) -> &'static [Link] {
        &self.links
    }

    fn drain_begin(&'static self) {
        self.suspend_for(&self.drained, true);
    }

    fn drain_end(&'static self) {
        self.suspend_for(&self.drained, false);
    }

    fn check_context(&'static self, core: CoreId) -> Result<(), BlockError> {
        self.timers
            .reserve(core, fired_of(self.index()), &Direction::ALL)
    }

    fn cancel_context(&'static self) {
        self.timers.cancel_reserved();
    }

    fn detach_context(&'static self) {
        // Drained, so nothing waits, and nobody arms them.
        self.timers.detach();
    }

    fn attach_context(&'static self, core: CoreId) {
        self.home.store(core as u32, Ordering::Relaxed);
        self.timers.attach();
    }

    fn release(&'static self) {
        if let Some(group) = self.group() {
            group.leave(self.index());
        }
        self.group.store(0, Ordering::Relaxed);
        self.drained.store(false, Ordering::Relaxed);
        self.hurried.store(false, Ordering::Relaxed);
        self.timers.detach();
        self.timers.cancel_reserved();
        TAKEN.fetch_sub(1, Ordering::Relaxed);
        self.place.give_back();
    }
}

//! Groups: buckets that several nodes share, and the requests that wait for them.
//!
//! Each member has a queue a direction. Who is served rotates: the member after the one served last, then the next, each one
//! request (CS-20), and reads and writes take turns where both wait for the same bucket. Whoever is next has its timer armed;
//! the timer's core then lets go what may go, for all members.
//!
//! | a member | what happens to it |
//! |---|---|
//! | is drained | all that waits in it goes at once, and what comes meanwhile passes (DRN-6); both are booked all the same |
//! | leaves, or its timer goes | the next one that waits has its timer armed |
#![forbid(unsafe_code)]

use core::fmt::Write as _;
use core::sync::atomic::{AtomicBool, Ordering};

use spin::mutex::{SpinMutex, SpinMutexGuard};

use super::config::{Config, Direction, Unfit};
use super::state::State;
use super::timers::Timers;
use crate::arch;
use crate::block::graph::name_is_valid;
use crate::block::node::Name;
use crate::block::{BlockError, Request, RequestQueue};
use crate::config::{THROTTLE_GROUPS, THROTTLES};

/// A member of a group, as the group sees it.
pub(crate) trait Waiter: Sync {
    /// A request goes on, down the graph. On any core; never inside [`Group::admit`].
    fn let_go(&self, request: Request);

    /// The timers in the member's context, whose callbacks call [`Group::fired`].
    fn timers(&self) -> &Timers;
}

struct Member {
    waiter: Option<&'static dyn Waiter>,
    suspended: bool,
    /// By [`Direction::index`].
    queues: [RequestQueue; 2],
}

struct Inner {
    name: Name,
    /// `None`: nobody's. (Not the state itself, so that a free group is all zeroes.)
    state: Option<State>,
    /// Made by name, so it stays without members.
    kept: bool,
    members: [Member; THROTTLES],
    /// Requests that wait, by direction.
    waiting: [usize; 2],
    /// Member served last, by direction.
    token: [usize; 2],
    /// The last one served was a read: a write goes first.
    write_first: bool,
    /// Member whose timer is armed, by direction.
    armed: [Option<u8>; 2],
}

/// Buckets with a name, and their members.
pub(crate) struct Group {
    inner: SpinMutex<Inner>,
    enabled: AtomicBool,
}

static GROUPS: [Group; THROTTLE_GROUPS] = [const { Group::new() }; THROTTLE_GROUPS];

/// Why a group could not be made, changed or removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupError {
    /// The limits make no sense.
    Unfit(Unfit),
    /// Anything else: a bad name (`Invalid`), no group left (`NoMemory`), none of that name (`NoMedium`), members (`Busy`).
    Block(BlockError),
}

impl core::fmt::Display for GroupError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Unfit(unfit) => write!(f, "{unfit}"),
            Self::Block(error) => write!(f, "{error}"),
        }
    }
}

/// A group, as a person wants to see it.
#[derive(Clone, Debug)]
pub struct GroupView {
    /// Its name.
    pub name: Name,
    /// Its limits.
    pub config: Config,
    /// Nodes that share it.
    pub members: usize,
    /// Requests that wait now: reads, writes.
    pub waiting: [usize; 2],
}

fn find(name: &str) -> Option<&'static Group> {
    GROUPS.iter().find(|group| {
        let inner = group.inner.lock();
        inner.state.is_some() && inner.name == name
    })
}

/// The group of that name, made if there is none. Main loop only.
fn find_or_make(name: &str, kept: bool) -> Result<&'static Group, BlockError> {
    if let Some(group) = find(name) {
        group.inner.lock().kept |= kept;
        return Ok(group);
    }
    if !name_is_valid(name) {
        return Err(BlockError::Invalid);
    }
    let group = GROUPS
        .iter()
        .find(|group| group.inner.lock().state.is_none())
        .ok_or(BlockError::NoMemory)?;
    let mut inner = group.inner.lock();
    inner.state = Some(State::new());
    inner.kept = kept;
    inner.name.clear();
    let _ = inner.name.write_str(name);
    drop(inner);
    group.enabled.store(false, Ordering::Relaxed);
    Ok(group)
}

/// Sets the limits of a group, made if there is none of that name; requests that wait go on as the new limits say. Main loop
/// only.
///
/// # Errors
/// See [`GroupError`]; then nothing has changed.
pub fn configure(name: &str, config: &Config) -> Result<(), GroupError> {
    config.check().map_err(GroupError::Unfit)?;
    let group = find_or_make(name, true).map_err(GroupError::Block)?;
    group.configure(config).map_err(GroupError::Unfit)
}

/// Sets the limits of a group that is there; one that its members have made still goes with the last of them. Main loop only.
///
/// # Errors
/// As [`configure`]; `NoMedium` when there is none of that name.
pub fn set_limits(name: &str, config: &Config) -> Result<(), GroupError> {
    let group = find(name).ok_or(GroupError::Block(BlockError::NoMedium))?;
    group.configure(config).map_err(GroupError::Unfit)
}

/// The limits of a group.
pub fn group_config(name: &str) -> Option<Config> {
    let group = find(name)?;
    let inner = group.inner.lock();
    inner.state.as_ref().map(|state| *state.config())
}

/// Removes a group without members. Main loop only.
///
/// # Errors
/// `NoMedium` when there is none of that name, `Busy` while it has members.
pub fn remove_group(name: &str) -> Result<(), BlockError> {
    let group = find(name).ok_or(BlockError::NoMedium)?;
    let mut inner = group.inner.lock();
    if inner.members.iter().any(|member| member.waiter.is_some()) {
        return Err(BlockError::Busy);
    }
    inner.state = None;
    Ok(())
}

/// Calls `f` for each group.
pub fn for_each_group(mut f: impl FnMut(GroupView)) {
    for group in &GROUPS {
        let view = {
            let inner = group.inner.lock();
            inner.state.as_ref().map(|state| GroupView {
                name: inner.name.clone(),
                config: *state.config(),
                members: inner.members.iter().filter(|m| m.waiter.is_some()).count(),
                waiting: inner.waiting,
            })
        };
        if let Some(view) = view {
            f(view);
        }
    }
}

/// The group in that place, as [`join`] told it.
#[inline]
pub(crate) fn at(place: usize) -> Option<&'static Group> {
    GROUPS.get(place)
}

/// Makes `waiter` member number `index` of the group of that name, made if there is none; the group's place. Main loop only.
///
/// # Errors
/// `Invalid` for a bad name, `NoMemory` when there is no group left.
pub(crate) fn join(
    name: &str,
    index: usize,
    waiter: &'static dyn Waiter,
) -> Result<usize, BlockError> {
    let group = find_or_make(name, false)?;
    let member = &mut group.inner.lock().members[index];
    member.waiter = Some(waiter);
    member.suspended = false;
    GROUPS
        .iter()
        .position(|known| core::ptr::eq(known, group))
        .ok_or(BlockError::NoMemory)
}

impl Group {
    const fn new() -> Self {
        Self {
            inner: SpinMutex::new(Inner {
                name: Name::new(),
                state: None,
                kept: false,
                members: [const {
                    Member {
                        waiter: None,
                        suspended: false,
                        queues: [RequestQueue::new(), RequestQueue::new()],
                    }
                }; THROTTLES],
                waiting: [0; 2],
                token: [0; 2],
                write_first: false,
                armed: [None; 2],
            }),
            enabled: AtomicBool::new(false),
        }
    }

    /// Whether anything is limited; else requests need not come here at all.
    #[inline]
    pub(crate) fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Relaxed)
    }

    /// Its name.
    pub(crate) fn name(&self) -> Name {
        self.inner.lock().name.clone()
    }

    /// A member's request: back at once when it may go, else it waits for [`Waiter::let_go`].
    pub(crate) fn admit(
        &self,
        index: usize,
        direction: Direction,
        request: Request,
    ) -> Option<Request> {
        let now_ns = arch::now_ns();
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        let Some(state) = &mut inner.state else {
            return Some(request);
        };
        let (member, d) = (&mut inner.members[index], direction.index());
        let wait_ns = state.wait_ns(direction, now_ns);
        // Those that came before go before, also the other members'.
        if member.suspended || (wait_ns == 0 && inner.waiting[d] == 0) {
            state.account(direction, request.len);
            inner.token[d] = index;
            return Some(request);
        }
        member.queues[d].push(request);
        inner.waiting[d] += 1;
        inner.arm(direction, now_ns.saturating_add(wait_ns));
        None
    }

    /// The timer of a member has fired, in its context.
    pub(crate) fn fired(&self, index: usize, direction: Direction) {
        {
            let armed = &mut self.inner.lock().armed[direction.index()];
            if *armed == Some(index as u8) {
                *armed = None;
            }
        }
        self.pump();
    }

    /// Lets go all that may go, and arms the timers for the rest.
    fn pump(&self) {
        loop {
            let next = next(&mut self.inner.lock());
            let Some((waiter, request)) = next else {
                return;
            };
            waiter.let_go(request);
        }
    }

    fn configure(&self, config: &Config) -> Result<(), Unfit> {
        let now_ns = arch::now_ns();
        {
            let mut inner = self.inner.lock();
            if let Some(state) = &mut inner.state {
                state.configure(config, now_ns)?;
            }
            self.enabled.store(config.is_enabled(), Ordering::Relaxed);
            disarm(&mut inner, |_| true);
        }
        self.pump();
        Ok(())
    }

    /// A drained section begins for a member: its limits do not hold until [`resume`](Self::resume), and all its requests go.
    pub(crate) fn suspend(&self, index: usize) {
        {
            let mut inner = self.inner.lock();
            inner.members[index].suspended = true;
            disarm(&mut inner, |armed| armed == index);
        }
        loop {
            let next = take_from(&mut self.inner.lock(), index);
            let Some((waiter, request)) = next else { break };
            waiter.let_go(request);
        }
        // Another member may have relied on this one's timer.
        self.pump();
    }

    /// The drained section of a member is over.
    pub(crate) fn resume(&self, index: usize) {
        self.inner.lock().members[index].suspended = false;
    }

    /// A member goes; nothing waits in it. A group that nobody made by name goes with its last one.
    pub(crate) fn leave(&self, index: usize) {
        self.suspend(index);
        let mut inner = self.inner.lock();
        inner.members[index].waiter = None;
        if !inner.kept && inner.members.iter().all(|m| m.waiter.is_none()) {
            inner.state = None;
        }
    }
}

/// Disarms the timers of the members that `which` names.
fn disarm(inner: &mut SpinMutexGuard<'_, Inner>, which: impl Fn(usize) -> bool) {
    for direction in Direction::ALL {
        let d = direction.index();
        let Some(index) = inner.armed[d].map(usize::from) else {
            continue;
        };
        if !which(index) {
            continue;
        }
        inner.armed[d] = None;
        if let Some(waiter) = inner.members[index].waiter {
            waiter.timers().cancel(direction);
        }
    }
}

/// The request that goes next, booked; `None` when none may go now, with timers armed for those that wait.
fn next(inner: &mut Inner) -> Option<(&'static dyn Waiter, Request)> {
    let now_ns = arch::now_ns();
    let first = if inner.write_first {
        Direction::Write
    } else {
        Direction::Read
    };
    for direction in [first, first.other()] {
        let d = direction.index();
        if inner.waiting[d] == 0 {
            continue;
        }
        let wait_ns = inner.state.as_mut()?.wait_ns(direction, now_ns);
        if wait_ns != 0 {
            inner.arm(direction, now_ns.saturating_add(wait_ns));
            continue;
        }
        let index = inner.next_member(direction)?;
        inner.token[d] = index;
        inner.write_first = direction == Direction::Read;
        return inner.take(index, direction);
    }
    None
}

/// The next request of a member, whatever the limits say, booked.
fn take_from(inner: &mut Inner, index: usize) -> Option<(&'static dyn Waiter, Request)> {
    Direction::ALL
        .into_iter()
        .find_map(|direction| inner.take(index, direction))
}

impl Inner {
    /// The member with something to do after the one served last.
    fn next_member(&self, direction: Direction) -> Option<usize> {
        let d = direction.index();
        (1..=THROTTLES)
            .map(|step| (self.token[d] + step) % THROTTLES)
            .find(|index| !self.members[*index].queues[d].is_empty())
    }

    fn take(
        &mut self,
        index: usize,
        direction: Direction,
    ) -> Option<(&'static dyn Waiter, Request)> {
        let d = direction.index();
        let member = &mut self.members[index];
        let waiter = member.waiter?;
        let request = member.queues[d].pop()?;
        self.waiting[d] -= 1;
        if let Some(state) = &mut self.state {
            state.account(direction, request.len);
        }
        Some((waiter, request))
    }

    /// Arms the timer of whoever is next, unless one is armed: levels only sink as time says, so that one is never late.
    fn arm(&mut self, direction: Direction, deadline_ns: u64) {
        let d = direction.index();
        if self.armed[d].is_some() {
            return;
        }
        let Some(index) = self.next_member(direction) else {
            return;
        };
        if let Some(waiter) = self.members[index].waiter {
            waiter.timers().arm(direction, deadline_ns);
            self.armed[d] = Some(index as u8);
        }
    }
}

//! Legs that come, go and are filled; the orderly end of an array.
//!
//! A leg that is not active is filled in three steps: it *learns* where it stands (its superblocks are replaced, all of them, before
//! any of its data are) and from then on gets every write; every range is read once and written to it; and, flushed, it becomes active,
//! which is an event that the other legs hear of first. Whenever that ends early, the leg is what it was recorded as: stale.
#![forbid(unsafe_code)]

use core::sync::atomic::Ordering;

use log::Level;

use super::state::{Status, Wish};
use super::superblock::{MAX_LEGS, Member, Standing, data_size};
use super::{ARENA, Mirror, apart, fits, of};
use crate::aio;
use crate::block::graph::{self, Reason, Refusal};
use crate::block::node::{NodeDriver, NodeId};
use crate::block::request::{RequestFlags, complete};
use crate::block::{BlockError, Operation, Request};

fn mirror_of(id: NodeId) -> Result<&'static Mirror, Refusal> {
    let name = graph::name(id).unwrap_or_default();
    of(id).ok_or_else(|| Refusal::new(&name, Reason::Node(BlockError::NotSupported)))
}

fn refuse(id: NodeId, error: BlockError) -> Refusal {
    Refusal::new(&graph::name(id).unwrap_or_default(), Reason::Node(error))
}

/// The slot in which `leg` is a leg of the mirror `node`.
pub fn slot_of(node: NodeId, leg: NodeId) -> Option<usize> {
    let mirror = of(node)?;
    mirror
        .links
        .iter()
        .position(|link| link.child() == Some(leg))
}

/// Attaches a node as a further leg, stale until it is rebuilt. It begins as soon as the mirror is drained for a moment, and says in the
/// log what became of it. Main loop only.
///
/// # Errors
/// Another kind of node, an array that does not run, no free slot (`NoSpace` also for a node that is too small), what cannot be a leg.
pub fn add_leg(node: NodeId, leg: NodeId) -> Result<(), Refusal> {
    let mirror = mirror_of(node)?;
    fits(leg)?;
    for (_, other) in graph::children(node) {
        apart(leg, &[other])?;
    }
    let (running, size) = {
        let state = mirror.state.lock();
        (state.status == Status::Running, state.header.size)
    };
    if !running {
        return Err(refuse(node, BlockError::Busy));
    }
    if graph::info(leg).is_none_or(|info| data_size(info.size) < size) {
        return Err(refuse(leg, BlockError::NoSpace));
    }
    if mirror.links.iter().all(|link| link.child().is_some()) {
        return Err(refuse(node, BlockError::NoSpace));
    }
    let attach = async move {
        let name = graph::name(leg).unwrap_or_default();
        let done = match graph::drained_in_coroutine(node).await {
            Ok(_section) => match mirror.free_slot() {
                Some(slot) => graph::attach(node, slot, leg),
                None => Err(refuse(node, BlockError::NoSpace)),
            },
            Err(error) => Err(refuse(node, error)),
        };
        match done {
            Ok(()) => mirror.say(
                Level::Info,
                format_args!("{name} is a leg; a rebuild job fills it"),
            ),
            Err(refusal) => mirror.say(Level::Warn, format_args!("{name} is no leg: {refusal}")),
        }
    };
    spawn(node, attach)
}

/// Takes a leg away: recorded stale on all others, then detached as soon as the mirror is drained for a moment. Main loop only.
///
/// # Errors
/// Another kind of node, no such leg, the last that has all data (`Busy`).
pub fn drop_leg(node: NodeId, leg: NodeId) -> Result<(), Refusal> {
    let mirror = mirror_of(node)?;
    let slot = slot_of(node, leg).ok_or_else(|| refuse(leg, BlockError::NoMedium))?;
    if mirror.state.lock().readable() == 1 << slot {
        return Err(refuse(leg, BlockError::Busy));
    }
    let detach = async move {
        let name = graph::name(leg).unwrap_or_default();
        if let Err(error) = wish(mirror, Wish::Retire(slot as u8)).await {
            return mirror.say(Level::Warn, format_args!("{name} stays: {error}"));
        }
        let done = match graph::drained_in_coroutine(node).await {
            Ok(_section) => mirror
                .forget(slot)
                .map_err(|error| refuse(leg, error))
                .and_then(|()| graph::detach(node, slot)),
            Err(error) => Err(refuse(node, error)),
        };
        match done {
            Ok(()) => mirror.say(Level::Info, format_args!("{name} is no leg any more")),
            Err(refusal) => mirror.say(Level::Warn, format_args!("{name}: {refusal}")),
        }
    };
    spawn(node, detach)
}

fn spawn(node: NodeId, work: impl Future<Output = ()> + Send + 'static) -> Result<(), Refusal> {
    match aio::main_context().spawn("mirror legs", work) {
        Ok(_) => Ok(()),
        Err(_) => Err(refuse(node, BlockError::NoMemory)),
    }
}

/// Flushes the legs, takes the marks off them, and deletes the node. Main loop only; the log tells the end.
///
/// # Errors
/// Another kind of node; something stands above it.
pub fn stop(node: NodeId) -> Result<(), Refusal> {
    let mirror = mirror_of(node)?;
    let mut user = None;
    graph::parent_names(node, |name| user = Some(name));
    if let Some(user) = user {
        let name = graph::name(node).unwrap_or_default();
        return Err(Refusal::new(&name, Reason::InUse(user)));
    }
    let end = async move {
        if mirror.state.lock().status == Status::Running {
            mirror.close();
            while mirror.closing.load(Ordering::Acquire) {
                mirror.closed.wait().await;
            }
        }
        // The keeper is about to rest.
        while mirror.drain_poll() {
            aio::yield_now().await;
        }
        if let Err(refusal) = graph::delete(node) {
            log::error!("{refusal}");
        }
    };
    spawn(node, end)
}

/// Begins the orderly end of all arrays: what is written later marks its regions again. Main loop only.
pub fn close_all() {
    for mirror in &ARENA {
        if mirror.kept.load(Ordering::Relaxed) && mirror.state.lock().status == Status::Running {
            mirror.close();
        }
    }
}

/// Whether what [`close_all`] began is over.
pub fn all_closed() -> bool {
    ARENA
        .iter()
        .all(|mirror| !mirror.closing.load(Ordering::Acquire))
}

/// The leg in `slot` gets ready to be filled. From a coroutine, which must keep the node from becoming quiet as long.
///
/// # Errors
/// `Busy`: another change of the legs is under way, or the leg is active; `Io`: it takes no superblock; `NoMedium`: no such leg.
pub async fn rebuild_begin(node: NodeId, slot: usize) -> Result<(), BlockError> {
    let mirror = of(node).ok_or(BlockError::NoMedium)?;
    wish(mirror, Wish::Learn(slot as u8)).await
}

/// Reads what `request`, a read with memory, asks for, and writes it to the leg that is being filled, before it answers. Any core.
pub fn rebuild_chunk(node: NodeId, mut request: Request) {
    debug_assert!(request.operation == Operation::Read);
    match of(node) {
        Some(mirror) => {
            request.flags |= RequestFlags::REBUILD;
            mirror.submit(request);
        }
        None => complete(request, Err(BlockError::NoMedium)),
    }
}

/// The leg in `slot` has been filled (`whole`), and becomes active; or it is stale, as it was. From a coroutine, as
/// [`rebuild_begin`].
///
/// # Errors
/// `Io`: the leg has failed meanwhile; `Busy`, `NoMedium` as there.
pub async fn rebuild_end(node: NodeId, slot: usize, whole: bool) -> Result<(), BlockError> {
    let mirror = of(node).ok_or(BlockError::NoMedium)?;
    wish(mirror, Wish::Promote(slot as u8, whole)).await
}

/// Asks the keeper for a change, and waits for its answer. Whoever finds another one under way waits for its turn.
async fn wish(mirror: &'static Mirror, wish: Wish) -> Result<(), BlockError> {
    let mut asked = false;
    loop {
        if mirror.gone.load(Ordering::Acquire) {
            return Err(BlockError::NoMedium);
        }
        {
            let mut state = mirror.state.lock();
            match state.wish {
                // Nobody takes another's answer: whoever asks waits until the last one has his.
                Wish::None if !asked => {
                    state.wish = wish;
                    asked = true;
                    mirror.wake.set();
                }
                Wish::Answered(result) if asked => {
                    state.wish = Wish::None;
                    drop(state);
                    mirror.answered.set();
                    return result;
                }
                _ => {}
            }
            mirror.answered.clear();
        }
        mirror.answered.wait().await;
    }
}

impl Mirror {
    /// A slot for a further leg: nothing of the last one's is left.
    fn free_slot(&self) -> Option<usize> {
        let active = self.state.lock().active;
        let free = |slot: &usize| self.links[*slot].child().is_none() && active >> *slot & 1 == 0;
        (0..MAX_LEGS).find(free)
    }

    /// A leg that is to go has no number any more.
    fn forget(&self, slot: usize) -> Result<(), BlockError> {
        let mut state = self.state.lock();
        if (state.active | state.rebuilding) >> slot & 1 != 0 {
            // It was filled since it was retired, or is being filled.
            return Err(BlockError::Busy);
        }
        state.numbers[slot] = None;
        Ok(())
    }

    fn close(&self) {
        self.closed.clear();
        self.closing.store(true, Ordering::Release);
        self.wake.set();
    }

    /// Makes a change of the legs. In the keeper.
    pub(super) async fn grant(&'static self, index: usize, wish: Wish) -> Result<(), BlockError> {
        match wish {
            Wish::Learn(slot) => self.learn(index, slot).await,
            Wish::Promote(slot, whole) => self.promote(index, slot, whole).await,
            Wish::Retire(slot) => {
                {
                    let mut state = self.state.lock();
                    state.rebuilding &= !(1 << slot);
                    state.learning &= !(1 << slot);
                    if state.readable() == 1 << slot {
                        return Err(BlockError::Busy);
                    }
                    state.failing |= 1 << slot & state.active;
                    self.publish(&state);
                    if state.failing == 0 {
                        return Ok(());
                    }
                }
                self.recorded(index).await
            }
            Wish::None | Wish::Answered(_) => Err(BlockError::Io),
        }
    }

    async fn recorded(&'static self, index: usize) -> Result<(), BlockError> {
        if self.record(index).await {
            Ok(())
        } else {
            Err(BlockError::Io)
        }
    }

    async fn learn(&'static self, index: usize, slot: u8) -> Result<(), BlockError> {
        let bit = 1 << slot;
        {
            let mut state = self.state.lock();
            if self.links[usize::from(slot)].child().is_none() {
                return Err(BlockError::NoMedium);
            }
            if (state.active | state.rebuilding) & bit != 0 || state.rebuilding != 0 {
                return Err(BlockError::Busy);
            }
            if state.numbers[usize::from(slot)].is_none() {
                let taken = state.numbers;
                let Some(number) = (0..MAX_LEGS as u8).find(|n| !taken.contains(&Some(*n))) else {
                    return Err(BlockError::NoSpace);
                };
                state.numbers[usize::from(slot)] = Some(number);
                state.header.legs = state.header.legs.max(number + 1);
                // Whatever leg had that number is given up: it is not on the way to this array any more.
                state.header.members[usize::from(number)] = Member {
                    standing: Standing::Stale,
                    ..Member::default()
                };
                let random = self.random(&state);
                state.header.happen(0, random);
            }
            state.learning |= bit;
        }
        // Twice, so that none of its places keeps what stood there.
        for _ in 0..2 {
            let result = self.recorded(index).await;
            if result.is_err() || self.state.lock().learning & bit == 0 {
                self.state.lock().learning &= !bit;
                return Err(BlockError::Io);
            }
        }
        let mut state = self.state.lock();
        state.learning &= !bit;
        state.rebuilding |= bit;
        Ok(())
    }

    async fn promote(&'static self, index: usize, slot: u8, whole: bool) -> Result<(), BlockError> {
        let bit = 1 << slot;
        if whole && self.state.lock().rebuilding & bit != 0 {
            let failed = self.on_legs(index, bit, Operation::Flush, 0, 0).await;
            self.look_for_losses();
            let mut state = self.state.lock();
            state.rebuilding &= !failed;
        }
        {
            let mut state = self.state.lock();
            let filled = state.rebuilding & bit != 0;
            state.rebuilding &= !bit;
            if !whole {
                return Ok(());
            }
            if !filled {
                return Err(BlockError::Io);
            }
            // From here on its failures are those of an active leg.
            state.active |= bit;
            state.promoted |= bit;
            state.set_standing(usize::from(slot), Standing::Active);
            let random = self.random(&state);
            state.header.happen(0, random);
        }
        let result = self.recorded(index).await;
        let mut state = self.state.lock();
        state.promoted &= !bit;
        if result.is_err() {
            // The others do not know of it.
            state.active &= !bit;
        }
        self.publish(&state);
        if state.readable() & bit == 0 {
            return Err(BlockError::Io);
        }
        drop(state);
        let name = self.leg_name(usize::from(slot));
        self.say(Level::Info, format_args!("{name} has all data from now on"));
        result
    }
}

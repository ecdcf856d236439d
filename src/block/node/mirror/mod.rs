//! The mirror node: the same data on several legs, each of which can fail.
//!
//! | file | what |
//! |---|---|
//! | [`superblock`] | what is kept on the legs |
//! | [`assembly`] | which legs make an array, from their superblocks alone |
//! | [`regions`] | sets of regions |
//! | `state` | what a running array knows |
//! | `path` | the way of a request |
//! | `keeper` | the coroutine that writes superblocks: intents, failures, resync |
//! | `meta` | the keeper's own requests |
//! | `start` | how an array begins |
//! | `legs` | legs that come, go and are filled; the orderly end |
//! | `losses` | legs that lose what they had, and go on answering |
//!
//! | promise | by |
//! |---|---|
//! | no acknowledged write is ever unread again, whichever leg fails and whenever the power goes | a leg that failed a write or flush is recorded stale on all others before anything is acknowledged |
//! | after a power cut no two reads differ | a region's intent bit is stable before its first write; what is read in such a region is written to the other legs before the answer |
//! | legs are equal where no bit says otherwise | bits are cleared only after all legs were flushed, with no write under way |
//! | two halves that went on separately are never mixed | events with histories ([`superblock`]), refused by [`assembly`] |
//!
//! The node works in its context's core; requests of other cores cross. Everything but reads that nothing stands against goes through
//! one lock, held for a few instructions, never across a callback.
#![forbid(unsafe_code)]

pub mod assembly;
#[cfg(test)]
mod histories;
mod keeper;
mod legs;
mod losses;
mod meta;
mod path;
pub mod regions;
mod start;
mod state;
pub mod superblock;

use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use spin::mutex::SpinMutex;

pub use self::legs::{
    add_leg, all_closed, close_all, drop_leg, rebuild_begin, rebuild_chunk, rebuild_end, slot_of,
    stop,
};
use self::losses::Losses;
use self::meta::Meta;
use self::start::Scratch;
use self::state::State;
pub use self::state::{Status, Why};
use self::superblock::{MAX_LEGS, SUPERBLOCK_BYTES, Standing};
use super::instance::{self, Place};
use super::{Ascent, BlockStatus, Layer, Name, NodeDriver, NodeId, NodeInfo};
use crate::aio::{self, Event};
use crate::arch::{self, CoreId};
use crate::block::graph::{self, Access, Link, Permissions, Reason, Refusal};
use crate::block::tracked::Tracked;
use crate::block::{BlockError, Operation, Request, core_state, drain_kick};
use crate::config::{MIRRORS, SPARES_PER_CORE};
use crate::sync::{IrqLock, PAGE_SIZE, PageArena};

/// How an array comes to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// A new one. The first leg's data become those of all.
    Create {
        /// The legs are equal already: nothing need be copied.
        equal: bool,
        /// Bytes of a region; `None`: the least that does.
        region: Option<u64>,
        /// Also over superblocks of another array.
        force: bool,
    },
    /// From what the legs' superblocks say.
    Assemble {
        /// See [`assembly`].
        force: bool,
    },
}

/// A node whose children have the same data.
pub struct Mirror {
    place: Place,
    home: AtomicU32,
    /// The keeper exists; it gives the instance back when it ends.
    kept: AtomicBool,
    /// The node has left the graph.
    gone: AtomicBool,
    drained: AtomicBool,
    /// The keeper has requests of its own under way.
    busy: AtomicBool,
    /// Bytes of data; 0 until it is known.
    size: AtomicU64,
    fast_zeroes: AtomicBool,
    /// Legs that a read may go to without asking; none: ask.
    spread: AtomicU8,
    /// The leg that was read last.
    turn: AtomicU8,
    links: [Link; MAX_LEGS],
    losses: Losses,
    tracked: Tracked,
    state: SpinMutex<State>,
    /// Something is to do for the keeper.
    wake: Event,
    /// A wish was granted or not, or its answer was taken.
    answered: Event,
    /// There is no orderly end that anybody waits for.
    closed: Event,
    /// An orderly end is wanted.
    closing: AtomicBool,
    meta: SpinMutex<Meta>,
    meta_done: Event,
    scratch: SpinMutex<Scratch>,
    pages: PageArena<MAX_LEGS>,
}

const _: () = assert!(SUPERBLOCK_BYTES == PAGE_SIZE);

/// Why the last array that was none was none.
static LAST: IrqLock<Option<Why>> = IrqLock::new(None);

static ARENA: [Mirror; MIRRORS] = [const { Mirror::new() }; MIRRORS];

/// The legs that can be given when an array is made.
const LEGS_AT_START: core::ops::RangeInclusive<usize> = 1..=MAX_LEGS;

/// Makes a mirror node on its legs. It has no size, and serves nothing, until its superblocks are read and written; see [`view`]. Where
/// its legs make no array it says so in the log and is deleted. Main loop only.
///
/// # Errors
/// No mirror left, a bad number of legs, a leg twice or on another one, legs that need spare records or have blocks larger than 4 KiB; those of [`graph::add`] and
/// [`graph::attach`].
pub fn create(name: &str, legs: &[NodeId], start: Start) -> Result<NodeId, Refusal> {
    let refuse = |error| Err(Refusal::new(name, Reason::Node(error)));
    if !LEGS_AT_START.contains(&legs.len()) {
        return refuse(BlockError::Invalid);
    }
    for (slot, leg) in legs.iter().enumerate() {
        fits(*leg)?;
        apart(*leg, &legs[..slot])?;
    }
    let mirror = instance::take(&ARENA, |mirror| &mirror.place, "mirrors")?;
    let index = ARENA
        .iter()
        .position(|other| core::ptr::eq(other, mirror))
        .unwrap_or_default();
    mirror.gone.store(false, Ordering::Relaxed);
    mirror.home.store(0, Ordering::Relaxed);
    let id = instance::build(name, mirror, &mirror.place, legs)?;
    mirror.kept.store(true, Ordering::Relaxed);
    mirror.wake.set();
    // A section that begins before the keeper's first turn waits for the start, too.
    mirror.begin_work();
    let keeper =
        aio::context(mirror.home()).spawn("mirror", keeper::keep(mirror, index, id, start));
    if keeper.is_err() {
        mirror.end_work();
        mirror.kept.store(false, Ordering::Relaxed);
        let _ = graph::delete(id);
        return Err(Refusal::new(name, Reason::NoRoom("coroutines")));
    }
    Ok(id)
}

/// Whether a node can be a leg at all.
fn fits(leg: NodeId) -> Result<(), Refusal> {
    let name = graph::name(leg).unwrap_or_default();
    let info = graph::info(leg).ok_or_else(|| Refusal::new(&name, Reason::NoSuchNode))?;
    if info.cost > 0 {
        return Err(Refusal::new(&name, Reason::TooCostly));
    }
    if info.logical_block as usize > SUPERBLOCK_BYTES {
        return Err(Refusal::new(&name, Reason::Node(BlockError::NotSupported)));
    }
    Ok(())
}

/// Whether a leg shares nothing with others: what fails one must not be all of them.
fn apart(leg: NodeId, others: &[NodeId]) -> Result<(), Refusal> {
    let shared = others
        .iter()
        .find(|other| graph::stands_on(leg, **other) || graph::stands_on(**other, leg));
    shared.map_or(Ok(()), |other| {
        let name = |id| graph::name(id).unwrap_or_default();
        Err(Refusal::new(&name(leg), Reason::InUse(name(*other))))
    })
}

fn of(id: NodeId) -> Option<&'static Mirror> {
    ARENA.iter().find(|mirror| mirror.place.is(id))
}

/// What a leg of an array is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LegView {
    /// Where it is attached.
    pub node: NodeId,
    /// Its number in the array, once it has one.
    pub number: Option<u8>,
    /// Whether it has all data.
    pub standing: Standing,
    /// It is being filled.
    pub rebuilding: bool,
}

/// An array, as a person wants to see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// How it stands.
    pub status: Status,
    /// Its name for ever.
    pub uuid: [u8; 16],
    /// The last event's number.
    pub event: u64,
    /// The last superblock's number.
    pub sequence: u64,
    /// Bytes of a region.
    pub region: u64,
    /// Legs that it is meant to have.
    pub members: u8,
    /// By slot.
    pub legs: [Option<LegView>; MAX_LEGS],
    /// Regions with an intent bit.
    pub marked: u64,
    /// Bytes of regions in which legs may differ.
    pub unsynced: u64,
    /// A leg has failed, and that is not recorded on the others yet.
    pub failing: bool,
    /// Superblocks written since it started.
    pub records: u64,
    /// Reads whose data were written back to a leg that had failed to give them.
    pub repaired: u64,
}

/// How an array stands; `None` for another node. Any core.
pub fn view(id: NodeId) -> Option<View> {
    let mirror = of(id)?;
    let state = mirror.state.lock();
    let mut legs = [None; MAX_LEGS];
    for (slot, leg) in legs.iter_mut().enumerate() {
        let Some(node) = mirror.links[slot].child() else {
            continue;
        };
        let number = state.numbers[slot];
        *leg = Some(LegView {
            node,
            number,
            standing: if state.readable() >> slot & 1 != 0 {
                Standing::Active
            } else if number.is_some() {
                Standing::Stale
            } else {
                Standing::Absent
            },
            rebuilding: (state.rebuilding | state.promoted) >> slot & 1 != 0,
        });
    }
    Some(View {
        status: state.status,
        uuid: state.header.uuid,
        event: state.header.now.event,
        sequence: state.header.sequence,
        region: state.header.region,
        members: state.header.legs,
        legs,
        marked: state.stable.count(),
        unsynced: state.unsynced.count() * state.header.region,
        failing: state.failing != 0,
        records: state.records,
        repaired: state.repaired,
    })
}

/// Why the last array that could not be made was refused, and forgets it.
pub fn last_refusal() -> Option<Why> {
    LAST.lock().take()
}

/// Calls `f` for every mirror. Main loop only.
pub fn for_each(mut f: impl FnMut(NodeId)) {
    graph::for_each_node(|id| {
        if of(id).is_some() {
            f(id);
        }
    });
}

impl Mirror {
    const fn new() -> Self {
        Self {
            place: Place::new(),
            home: AtomicU32::new(0),
            kept: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            drained: AtomicBool::new(false),
            busy: AtomicBool::new(false),
            size: AtomicU64::new(0),
            fast_zeroes: AtomicBool::new(false),
            spread: AtomicU8::new(0),
            turn: AtomicU8::new(0),
            links: [const { Link::new() }; MAX_LEGS],
            losses: Losses::new(),
            tracked: Tracked::new(),
            state: SpinMutex::new(State::new()),
            wake: Event::new(),
            answered: Event::new(),
            closed: Event::new(),
            closing: AtomicBool::new(false),
            meta: SpinMutex::new(Meta::new()),
            meta_done: Event::new(),
            scratch: SpinMutex::new(Scratch::new()),
            pages: PageArena::new(),
        }
    }

    #[inline]
    fn home(&self) -> CoreId {
        self.home.load(Ordering::Relaxed) as CoreId
    }

    /// Properties of the leg in each slot that has one.
    fn infos(&self) -> impl Iterator<Item = (usize, NodeInfo)> {
        self.links
            .iter()
            .enumerate()
            .filter_map(|(slot, link)| Some((slot, link.driver()?.info())))
    }

    /// Says in the log what has happened.
    fn say(&self, level: log::Level, what: core::fmt::Arguments<'_>) {
        let name = self.place.id().and_then(graph::name).unwrap_or_default();
        log::log!(level, "{name}: {what}");
    }

    /// What a person calls the leg in `slot`.
    fn leg_name(&self, slot: usize) -> Name {
        self.links[slot]
            .child()
            .and_then(graph::name)
            .unwrap_or_default()
    }

    /// The instance is free for the next.
    fn let_go(&self) {
        self.state.lock().reset();
        self.spread.store(0, Ordering::Relaxed);
        self.size.store(0, Ordering::Relaxed);
        self.busy.store(false, Ordering::Relaxed);
        self.drained.store(false, Ordering::Relaxed);
        self.closing.store(false, Ordering::Relaxed);
        self.answered.set();
        self.closed.set();
        self.place.give_back();
    }
}

impl Layer for Mirror {
    fn completed(&'static self, request: Request) -> Ascent {
        self.answered(request)
    }
}

impl NodeDriver for Mirror {
    fn info(&self) -> NodeInfo {
        let mut info = NodeInfo {
            kind: "mirror",
            fast_zeroes: true,
            ..NodeInfo::NONE
        };
        for (_, leg) in self.infos() {
            info.logical_block = info.logical_block.max(leg.logical_block);
            info.physical_block = info.physical_block.max(leg.physical_block);
            info.optimal_io = info.optimal_io.max(leg.optimal_io);
            info.discard_align = info.discard_align.max(leg.discard_align);
            info.read_only |= leg.read_only;
            info.fast_zeroes &= leg.fast_zeroes;
            info.writeback |= leg.writeback;
            info.cost = info.cost.max(leg.cost);
            info.depth = info.depth.max(leg.depth);
        }
        // Superblocks are written by requests that have no spares: what would need some is refused as too costly.
        if info.cost > 0 {
            info.cost = SPARES_PER_CORE as u16 + 1;
        }
        info.discard = info.fast_zeroes;
        info.depth += 1;
        info.size = self.size.load(Ordering::Relaxed);
        info
    }

    #[inline]
    fn submit(&'static self, request: Request) {
        let home = self.home();
        if arch::current_core() != Some(home) {
            return core_state::forward(home, request, self);
        }
        if request.operation == Operation::Read {
            self.enter_read(request, home);
        } else {
            self.enter(request, home);
        }
    }

    fn block_status(&self, _offset: u64, len: u64) -> BlockStatus {
        BlockStatus {
            len,
            hole: false,
            zero: false,
        }
    }

    fn links(&'static self) -> &'static [Link] {
        &self.links
    }

    fn filtered(&'static self) -> Option<usize> {
        // Its legs have superblocks before their data.
        None
    }

    fn permissions(&self, _slot: usize, _above: Permissions) -> Permissions {
        // It writes superblocks by itself, and what others wrote would make the legs differ.
        Permissions {
            needs: Access::READ.union(Access::WRITE),
            shares: Access::READ,
        }
    }

    fn child_changed(&'static self) {
        let info = self.info();
        self.fast_zeroes.store(info.fast_zeroes, Ordering::Relaxed);
        self.forget_losses_of_idle();
    }

    fn drain_begin(&'static self) {
        self.drained.store(true, Ordering::SeqCst);
    }

    fn drain_poll(&'static self) -> bool {
        self.busy.load(Ordering::SeqCst)
    }

    fn drain_end(&'static self) {
        self.drained.store(false, Ordering::SeqCst);
        self.wake.set();
    }

    fn attach_context(&'static self, core: CoreId) {
        self.home.store(core as u32, Ordering::Relaxed);
        self.wake.set();
    }

    fn release(&'static self) {
        self.gone.store(true, Ordering::Release);
        if self.kept.load(Ordering::Relaxed) {
            // It lets go at its end.
            self.wake.set();
        } else {
            self.let_go();
        }
    }
}

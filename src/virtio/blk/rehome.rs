//! Moving a quiet disk to another core: its queues where it has fewer than cores, its control, its interrupt.
//!
//! ```text
//!            main loop                         cores that give a queue away        cores that get one
//!  prepare: handlers, timer, hook, route
//!  start:   no reset from now on, nobody is
//!           served; order GIVE ───────────────▶ queue empty? into `travelling`
//!  all gave: owners, home, route; ─────────────────────────────────────────────────▶ TAKE: interrupts on, look once
//!            order QUIT ──────────────────────▶ handler off
//!  all took: resets again, `moved`
//! ```
//! Everything can fail only before the first queue has left, or is put back: a queue that is not empty stays where it is,
//! and so do all. What the interrupt handler finds meanwhile goes to the owner of that moment; whoever takes a queue up
//! looks at it once, and the new home at the device's interrupt status, so a line that rose in between is not waited for
//! (EN-15, CS-11). A seat that stays registered while it is empty finds nothing.
use super::reset;
use super::{Blk, NOBODY};
use crate::aio::{self, AioError, BottomHalf, Callback};
use crate::arch::{self, CoreId};
use crate::block::BlockError;
use crate::block::device::Move;
use crate::block::mapping::{self, Entry, MappingError};
use crate::config::MAX_CORES;
use core::sync::atomic::{AtomicBool, AtomicU8, Ordering::*, fence};
use spin::Once;

/// Orders to a core; those of a reset are smaller.
const GIVE: u8 = 16;
const TAKE: u8 = 17;
const QUIT: u8 = 18;
const _: () = assert!(reset::STAY_DOWN < GIVE);

pub(super) fn is_order(order: u8) -> bool {
    order >= GIVE
}

/// Where a move stands. Main loop only, but for what cores answer.
const AT_REST: u8 = 0;
const GIVING: u8 = 1;
const TAKING: u8 = 2;
const TAKING_BACK: u8 = 3;

pub(super) struct State {
    phase: AtomicU8,
    target: AtomicU8,
    /// Cores that have not carried out their order.
    pending: AtomicU8,
    /// A queue was not empty.
    busy: AtomicBool,
    /// Cores whose loop serves their seat, one bit each.
    listening: AtomicU8,
}

impl State {
    pub(super) const fn new() -> Self {
        Self {
            phase: AtomicU8::new(AT_REST),
            target: AtomicU8::new(0),
            pending: AtomicU8::new(0),
            busy: AtomicBool::new(false),
            listening: AtomicU8::new(0),
        }
    }
}

/// How a device's interrupt finds its core; the board's.
pub trait InterruptRoute: Sync {
    /// Whether the interrupt could go to `core`.
    fn check(&self, core: CoreId) -> bool;
    /// Routes it to `core` from now on. An interrupt that is pending goes there, one that is being handled is finished
    /// where it is. Main loop.
    fn route(&self, core: CoreId) -> bool;
}

/// Why a disk cannot move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HomeRefusal {
    /// The disk does not use such a core.
    NoCore,
    /// It is just moving.
    Moving,
    /// A reset is under way, or about to begin.
    Resetting,
    /// The device did not come back from its last reset.
    Down,
    /// The core's loop has no room for its handler, hook or timer.
    NoRoom,
    /// The interrupt cannot go there.
    NoRoute,
}

impl core::fmt::Display for HomeRefusal {
    fn fmt(&self, out: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        out.write_str(match self {
            Self::NoCore => "the disk does not use that core",
            Self::Moving => "it is just moving",
            Self::Resetting => "a reset of it is under way",
            Self::Down => "the device did not come back from its last reset",
            Self::NoRoom => "the core's loop has no room for its handler, hook or timer",
            Self::NoRoute => "its interrupt cannot be routed there",
        })
    }
}

impl HomeRefusal {
    /// The same for who knows block devices only.
    pub const fn error(self) -> BlockError {
        match self {
            Self::NoCore => BlockError::Invalid,
            Self::Moving | Self::Resetting => BlockError::Busy,
            Self::Down => BlockError::Io,
            Self::NoRoom => BlockError::NoMemory,
            Self::NoRoute => BlockError::NotSupported,
        }
    }
}

/// The core that owns lane `lane` of `lanes` when `home` is the disk's home: each core one where there are as many,
/// else the home the first and the cores after it the next ones.
pub(super) fn owner(lane: usize, lanes: usize, home: CoreId, cores: usize) -> CoreId {
    if lanes >= cores {
        lane
    } else {
        (home + lane) % cores
    }
}

/// The same for all lanes: the cores take turns (MQ-2), beginning with core 0 where each gets one, else with the home.
pub(super) fn table(
    lanes: usize,
    home: CoreId,
    cores: usize,
) -> Result<mapping::Table, MappingError> {
    let first = if lanes >= cores { 0 } else { home };
    let entries: heapless::Vec<Entry<'_>, MAX_CORES> = (0..cores)
        .map(|turn| Entry::in_turn((first + turn) % cores))
        .collect();
    mapping::assign(&entries, lanes, |core| core < cores)
}

/// Brings moves on, in the main loop.
static MOVER: Once<BottomHalf> = Once::new();

pub(super) fn prepare_mover() -> Result<(), AioError> {
    if MOVER.get().is_none() {
        let mover =
            aio::main_context().bottom_half("virtio-blk moves", Callback::new(&advance, 0))?;
        MOVER.call_once(|| mover);
    }
    Ok(())
}

fn advance(_: usize) {
    for blk in &super::BLKS {
        blk.advance_move();
    }
}

impl Blk {
    fn owner_at(&self, lane: usize, home: CoreId) -> CoreId {
        let fixed = self.fixed();
        owner(lane, fixed.lanes, home, fixed.cores)
    }

    /// The cores that have to do with the disk when `home` is its home, one bit each.
    pub(super) fn seated(&self, home: CoreId) -> u8 {
        (0..self.fixed().lanes).fold(1 << home, |all, lane| all | 1 << self.owner_at(lane, home))
    }

    /// Makes the loops of all cores that it takes serve their seats.
    pub(super) fn prepare_seats(&'static self, home: CoreId) -> Result<(), AioError> {
        let state = &self.moving;
        for core in bits(self.seated(home) & !state.listening.load(Relaxed)) {
            self.listen(core)?;
            state.listening.fetch_or(1 << core, Relaxed);
        }
        Ok(())
    }

    /// Says which core serves which. Whoever reads it may send requests there.
    pub(super) fn serve(&self) {
        let fixed = self.fixed();
        for (core, serves) in self.serves.iter().enumerate() {
            let own = self.lanes().iter().any(|lane| lane.owner() == core);
            let owner = if own {
                core
            } else {
                self.lanes[core % fixed.lanes].owner()
            };
            serves.store(owner as u8, Release);
        }
    }

    /// Sees whether the disk can move to `core`, and takes what it needs there. What an earlier call took for another
    /// core is given back, so asking for the present home gives everything back. Main loop.
    pub(super) fn prepare_move(&'static self, core: CoreId) -> Result<(), HomeRefusal> {
        let fixed = self.fixed();
        if core >= fixed.cores {
            return Err(HomeRefusal::NoCore);
        }
        let state = &self.moving;
        if state.phase.load(Relaxed) != AT_REST {
            return Err(HomeRefusal::Moving);
        }
        let spare = state.listening.load(Relaxed) & !self.seated(self.home()) & !self.seated(core);
        for idle in bits(spare) {
            self.hush(idle);
            state.listening.fetch_and(!(1 << idle), Relaxed);
        }
        if core == self.home() {
            return Ok(());
        }
        if !self.reset.is_idle() {
            return Err(HomeRefusal::Resetting);
        }
        if self.reset.is_down() {
            return Err(HomeRefusal::Down);
        }
        if self.route.get().is_some_and(|route| !route.check(core)) {
            return Err(HomeRefusal::NoRoute);
        }
        self.prepare_seats(core).map_err(|_| {
            // What was got so far is given back.
            let _ = self.prepare_move(self.home());
            HomeRefusal::NoRoom
        })
    }

    /// Starts the move. Main loop; nothing may be in flight on the disk until it has ended.
    pub(super) fn start_move(&'static self, core: CoreId) -> Result<Move, HomeRefusal> {
        self.prepare_move(core)?;
        if core == self.home() {
            return Ok(Move::Done);
        }
        if !self.reset.begin_move() {
            return Err(HomeRefusal::Resetting);
        }
        for serves in &self.serves {
            serves.store(NOBODY, Release);
        }
        let state = &self.moving;
        state.target.store(core as u8, Relaxed);
        state.busy.store(false, Relaxed);
        let givers = self
            .lanes()
            .iter()
            .enumerate()
            .filter(|(lane, place)| place.owner() != self.owner_at(*lane, core))
            .fold(0, |all, (_, lane)| all | 1 << lane.owner());
        self.order_all(GIVING, &[(givers, GIVE)]);
        Ok(Move::UnderWay)
    }

    /// Says for a person why not.
    #[cold]
    pub(super) fn refuse(&self, core: CoreId, refusal: HomeRefusal) -> BlockError {
        log::info!(
            "virtio disk {}: not to core {core}: {refusal}",
            self.index.load(Relaxed)
        );
        refusal.error()
    }

    /// Gives each set of cores an order; the last core that has carried out its own brings the move on.
    fn order_all(&self, phase: u8, orders: &[(u8, u8)]) {
        let state = &self.moving;
        let all: u32 = orders.iter().map(|(cores, _)| cores.count_ones()).sum();
        state.phase.store(phase, Relaxed);
        // One more, so that it is brought on also when there is nobody to order.
        state.pending.store(all as u8 + 1, Release);
        for (cores, order) in orders {
            for core in bits(*cores) {
                self.seats[core].order(*order);
            }
        }
        self.answer();
    }

    fn answer(&self) {
        if self.moving.pending.fetch_sub(1, AcqRel) == 1
            && let Some(mover) = MOVER.get()
        {
            mover.schedule();
        }
    }

    /// On the core of the seat.
    pub(super) fn obey_move(&self, core: CoreId, order: u8) {
        let seat = &self.seats[core];
        match order {
            GIVE => {
                // A queue that has just arrived is taken in first.
                let idle = seat.ask(|channel| {
                    // Interrupts may be off because the loop polls; the end of polling is not said here any more.
                    channel.polling = false;
                    channel.is_idle()
                });
                if idle == Some(true) {
                    let channel = seat.channel.with(Option::take);
                    if let Some(channel) = channel {
                        let lane = channel.lane();
                        *self.lanes[lane].travelling.lock() = Some(channel);
                    }
                } else {
                    self.moving.busy.store(true, Relaxed);
                }
            }
            TAKE => {
                // The walk that follows takes the queue in, asks for its interrupts and looks once.
                if core == self.home() {
                    // A line that rose on its way here may be an edge that nobody has seen.
                    let irq = arch::irq_mask();
                    self.interrupt();
                    arch::irq_restore(irq);
                }
            }
            _ => aio::context(core).unregister(&seat.notifier),
        }
        self.answer();
    }

    /// Main loop: the next step, if all cores have answered.
    fn advance_move(&'static self) {
        let state = &self.moving;
        let phase = state.phase.load(Relaxed);
        if phase == AT_REST || state.pending.load(Acquire) != 0 {
            return;
        }
        let target = usize::from(state.target.load(Relaxed));
        match phase {
            GIVING if state.busy.load(Relaxed) => {
                let takers = self.hand_out();
                self.order_all(TAKING_BACK, &[(takers, TAKE)]);
            }
            GIVING => {
                for (lane, place) in self.lanes().iter().enumerate() {
                    place
                        .owner
                        .store(self.owner_at(lane, target) as u8, Release);
                }
                let before = self.home();
                self.home.store(target as u8, Release);
                // The new home before its look at `control`: see `call_home`.
                fence(SeqCst);
                let takers = self.hand_out() | 1 << target;
                if self.route.get().is_some_and(|route| !route.route(target)) {
                    // It works from any core, only not as well.
                    log::warn!("virtio disk: its interrupt stays where it was");
                }
                let quit = state.listening.load(Relaxed) & !self.seated(target);
                state.listening.fetch_and(!quit, Relaxed);
                // The old home answers too: then it is in no step of a reset, and takes none any more.
                let takers = (takers | 1 << before) & !quit;
                self.order_all(TAKING, &[(takers, TAKE), (quit, QUIT)]);
            }
            _ => {
                state.phase.store(AT_REST, Relaxed);
                self.serve();
                self.reset.end_move();
                // A reset, or a change of the configuration, that waited. It is read once more in any case: for a while two
                // cores took themselves for the home, and the later of two sizes must be the one that stays.
                self.config_changed.store(true, Release);
                self.call_home();
                let result = if phase == TAKING {
                    Ok(())
                } else {
                    Err(BlockError::Busy)
                };
                if let Some(events) = self.events.get() {
                    events.moved(result);
                }
            }
        }
    }

    /// Puts the queues that travel before their owners' doors; returns these cores.
    fn hand_out(&self) -> u8 {
        let mut takers = 0;
        for lane in self.lanes() {
            if let Some(channel) = lane.travelling.lock().take() {
                self.seats[lane.owner()].send_in(channel);
                takers |= 1 << lane.owner();
            }
        }
        takers
    }
}

/// The cores of a set.
fn bits(set: u8) -> impl Iterator<Item = CoreId> {
    (0..MAX_CORES).filter(move |core| set & (1 << core) != 0)
}

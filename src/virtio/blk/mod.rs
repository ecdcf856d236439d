//! virtio-blk: a disk behind our virtqueue, as a [`BlockDevice`].
//!
//! | file | what it is |
//! |---|---|
//! | `config` | features, configuration fields and request types by number |
//! | `bare` | reads on the bare queue, to compare with |
//! | `channel` | one request queue on the core that owns it |
//! | `setup` | from a transport to a running disk |
//! | `reset` | stop, reset, take back, start again |
//!
//! Where the device offers as many queues as there are cores, each core owns one; where there are fewer, the first
//! belongs to the disk's home core and the next ones to the cores after it, and the other cores' requests cross over
//! (the disk node does that: [`BlockDevice::submitter`]).
//!
//! **Submission**: a request is staged; the first of a turn arms the core's turn hook, which publishes and kicks, at most
//! once a queue and turn. **Completion**: the interrupt handler compares used indexes and sets the owner's notifier;
//! its handler walks the used ring. While the owner's loop polls, interrupts are off and the poll check looks at the used
//! index. **Configuration**: the home core's notifier; the field of the write cache is read and never written.
mod bare;
mod channel;
mod config;
#[cfg(test)]
mod model;
mod reset;
mod setup;
#[cfg(test)]
mod tests;

use crate::aio::{EventNotifier, Timer, TurnHook};
use crate::arch::{self, CoreId};
use crate::block::device::{BareLoad, BareReport, BlockDevice, DeviceEvents, DeviceInfo};
use crate::block::{self, BlockError, Request};
use crate::config::{DISKS, MAX_CORES};
use crate::sync::{CachePadded, CoreArray, HomeCell, IrqLock};
use crate::virtio::layout::UsedWatch;
use crate::virtio::transport::{INTERRUPT_CONFIG, Transport};
use channel::{Channel, Walk};
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::*};
use spin::Once;

pub use setup::{add, share};

/// Counters of one disk's driver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlkCounters {
    /// Interrupts taken.
    pub interrupts: u64,
    /// Kicks given.
    pub kicks: u64,
    /// Resets that ended with the device running.
    pub resets: u64,
}

/// A place for the queue of one core.
struct Lane {
    /// The queue, on its owner; moved there from `incoming` when it is first used.
    channel: HomeCell<Option<Channel>>,
    incoming: IrqLock<Option<Channel>>,
    notifier: EventNotifier,
    /// The interrupt handler's view of the used index.
    watch: UsedWatch,
    /// What the reset wants of the owner, see [`reset`].
    order: AtomicU8,
    owner: AtomicU8,
    kicks: AtomicU64,
}

impl Lane {
    const fn new() -> Self {
        Self {
            channel: HomeCell::new(None),
            incoming: IrqLock::new(None),
            notifier: EventNotifier::new(),
            watch: UsedWatch::new(),
            order: AtomicU8::new(0),
            owner: AtomicU8::new(0),
            kicks: AtomicU64::new(0),
        }
    }

    /// Lends the channel to `f`. On the owner only.
    #[inline(always)]
    fn with<R>(&self, f: impl FnOnce(&mut Channel) -> R) -> R {
        self.channel.with(|place| {
            if place.is_none() {
                self.move_in(place);
            }
            match place {
                Some(channel) => f(channel),
                None => panic!("a disk's queue was used before it was set up"),
            }
        })
    }

    #[cold]
    #[inline(never)]
    fn move_in(&self, place: &mut Option<Channel>) {
        *place = self.incoming.lock().take();
    }
}

/// What does not change while a disk runs.
struct Fixed {
    transport: &'static dyn Transport,
    features: u64,
    info: DeviceInfo,
    home: CoreId,
    lanes: usize,
    timer: Timer,
}

/// A virtio disk. Made by [`add`].
pub struct Blk {
    fixed: Once<Fixed>,
    index: AtomicU8,
    lanes: [Lane; MAX_CORES],
    /// Which lane serves a core.
    lane_of: [AtomicU8; MAX_CORES],
    /// Home core: configuration interrupts and the steps of a reset.
    notifier: EventNotifier,
    config_changed: AtomicBool,
    reset: reset::State,
    events: Once<&'static dyn DeviceEvents>,
    capacity: AtomicU64,
    interrupts: AtomicU64,
}

static BLKS: [Blk; DISKS] = [const { Blk::new() }; DISKS];

const _: () = assert!(DISKS <= 32, "disks to publish are bits of one word");

/// What a core has to publish at the end of its turn.
struct Turn {
    hook: Once<TurnHook>,
    /// One bit a disk. Home core only.
    disks: AtomicU32,
}

static TURNS: CoreArray<Turn> = CoreArray::new(
    [const {
        CachePadded::new(Turn {
            hook: Once::new(),
            disks: AtomicU32::new(0),
        })
    }; _],
);

/// The argument of callbacks: which disk, which lane.
fn argument(disk: usize, lane: usize) -> usize {
    disk * MAX_CORES + lane
}

fn blk_of(argument: usize) -> (&'static Blk, usize) {
    (&BLKS[argument / MAX_CORES], argument % MAX_CORES)
}

/// The turn hook: one publish and one kick decision for each disk that got requests.
fn publish(core: usize) {
    let mut disks = TURNS.get(core).disks.load(Relaxed);
    TURNS.get(core).disks.store(0, Relaxed);
    while disks != 0 {
        let blk = &BLKS[disks.trailing_zeros() as usize];
        disks &= disks - 1;
        let lane = blk.lane(core);
        lane.with(|channel| {
            if !channel.stopped && channel.queue.publish() {
                lane.kicks.store(channel.queue.counters().kicks, Relaxed);
            }
        });
    }
}

/// The owner's notifier was set, or its poll check said yes.
fn ready(argument: usize) {
    let (blk, lane) = blk_of(argument);
    blk.lanes[lane].notifier.test_and_clear();
    blk.obey(lane);
    blk.walk(lane);
}

fn poll_check(argument: usize) -> bool {
    let (blk, lane) = blk_of(argument);
    blk.lanes[lane].with(|channel| channel.has_work())
}

fn poll_begin(argument: usize) {
    let (blk, lane) = blk_of(argument);
    blk.lanes[lane].with(|channel| {
        channel.polling = true;
        channel.queue.disarm();
    });
}

fn poll_end(argument: usize) {
    let (blk, lane) = blk_of(argument);
    blk.lanes[lane].with(|channel| {
        channel.polling = false;
        // What came meanwhile is found by the poll check, which the loop asks once more.
        channel.queue.arm();
    });
}

/// The home core's notifier was set.
fn home_event(argument: usize) {
    let (blk, _) = blk_of(argument);
    blk.notifier.test_and_clear();
    if blk.config_changed.swap(false, Acquire) {
        blk.configuration();
    }
    blk.step();
}

impl Blk {
    const fn new() -> Self {
        Self {
            fixed: Once::new(),
            index: AtomicU8::new(0),
            lanes: [const { Lane::new() }; MAX_CORES],
            lane_of: [const { AtomicU8::new(0) }; MAX_CORES],
            notifier: EventNotifier::new(),
            config_changed: AtomicBool::new(false),
            reset: reset::State::new(),
            events: Once::new(),
            capacity: AtomicU64::new(0),
            interrupts: AtomicU64::new(0),
        }
    }

    fn fixed(&self) -> &Fixed {
        match self.fixed.get() {
            Some(fixed) => fixed,
            None => panic!("a disk was used before it was set up"),
        }
    }

    #[inline(always)]
    fn lane(&self, core: CoreId) -> &Lane {
        let lane = self.lane_of[core % MAX_CORES].load(Relaxed);
        &self.lanes[usize::from(lane) % MAX_CORES]
    }

    /// The core to which the interrupt is best routed: the home core.
    pub fn home(&self) -> CoreId {
        self.fixed().home
    }

    /// Counters since the start. Any core.
    pub fn counters(&self) -> BlkCounters {
        BlkCounters {
            interrupts: self.interrupts.load(Relaxed),
            kicks: self.lanes.iter().map(|lane| lane.kicks.load(Relaxed)).sum(),
            resets: self.reset.count(),
        }
    }

    /// The interrupt handler: on any core, with interrupts masked. Takes no lock and calls nobody but notifiers.
    ///
    /// The line is level while the tree says edge, so it is served until the device has nothing more to say; a
    /// configuration change that comes in between is seen by the next look.
    pub fn interrupt(&self) {
        let Some(fixed) = self.fixed.get() else {
            return;
        };
        self.interrupts
            .store(self.interrupts.load(Relaxed) + 1, Relaxed);
        let mut config = false;
        loop {
            let bits = fixed.transport.interrupt_status();
            if bits == 0 {
                break;
            }
            fixed.transport.interrupt_ack(bits);
            config |= bits & INTERRUPT_CONFIG != 0;
        }
        for lane in &self.lanes[..fixed.lanes] {
            if lane.watch.moved() {
                lane.notifier.set();
            }
        }
        if config {
            self.config_changed.store(true, Release);
            self.notifier.set();
        }
    }

    /// On the lane's owner: takes what the device has used.
    #[inline]
    fn walk(&self, lane: usize) {
        let walk = self.lanes[lane].with(|channel| channel.walk());
        if let Walk::Fault(fault) = walk {
            log::warn!(
                "virtio disk {}: the device {fault}",
                self.index.load(Relaxed)
            );
            self.broken("the device broke the rules of its queue");
        }
    }

    /// Tells whoever can order a reset that one is needed.
    fn broken(&self, why: &'static str) {
        if !self.reset.is_idle() {
            self.reset.again();
            // The reset may have ended meanwhile: then nobody else would look.
            return self.notifier.set();
        }
        match self.events.get() {
            Some(events) => events.needs_reset(why),
            None => BlockDevice::reset(self),
        }
    }

    /// On the home core: the device says that its configuration, or its state, changed.
    fn configuration(&self) {
        let transport = self.fixed().transport;
        if transport.status() & crate::virtio::transport::status::NEEDS_RESET != 0 {
            return self.broken("the device asks for a reset");
        }
        self.read_capacity();
    }

    fn read_capacity(&self) {
        // A capacity beyond 64 bits of bytes is nonsense: the old one stays.
        let Some(capacity) = config::capacity(self.fixed().transport) else {
            return;
        };
        if self.capacity.swap(capacity, AcqRel) != capacity
            && let Some(events) = self.events.get()
        {
            events.resized();
        }
    }
}

impl BlockDevice for Blk {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            capacity: self.capacity.load(Acquire),
            ..self.fixed().info
        }
    }

    fn submitter(&self, core: CoreId) -> CoreId {
        usize::from(self.lane(core).owner.load(Relaxed))
    }

    #[inline]
    fn submit(&self, request: Request) -> Result<(), Request> {
        let Some(core) = arch::current_core() else {
            return Err(request);
        };
        self.lane(core).with(|channel| {
            if channel.stopped {
                block::complete(request, Err(BlockError::Io));
                return Ok(());
            }
            let first = channel.queue.staged() == 0;
            channel.submit(request)?;
            if first {
                let turn = TURNS.get(core);
                turn.disks.store(
                    turn.disks.load(Relaxed) | 1 << self.index.load(Relaxed),
                    Relaxed,
                );
                if let Some(hook) = turn.hook.get() {
                    hook.arm();
                }
            }
            Ok(())
        })
    }

    fn bare_reads(&self, load: &BareLoad<'_>) -> Result<BareReport, BlockError> {
        let core = arch::current_core().ok_or(BlockError::Invalid)?;
        let lane = self.lane(core);
        if usize::from(lane.owner.load(Relaxed)) != core {
            return Err(BlockError::Invalid);
        }
        let report = lane.with(|channel| {
            let report = channel.bare_reads(load);
            lane.kicks.store(channel.queue.counters().kicks, Relaxed);
            report
        });
        if report == Err(BlockError::Io) {
            // Reads may still be under way into memory that is lent: only a reset ends that.
            self.broken("the device failed a measurement on its bare queue");
        }
        report
    }

    fn reset(&self) {
        self.ask_reset();
    }

    fn attach(&self, events: &'static dyn DeviceEvents) {
        self.events.call_once(|| events);
    }
}

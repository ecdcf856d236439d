//! virtio-blk: a disk behind our virtqueue, as a [`BlockDevice`].
//!
//! | file | what it is |
//! |---|---|
//! | `config` | features, configuration fields and request types by number |
//! | `bare` | reads on the bare queue, to compare with |
//! | `channel` | one request queue on the core that owns it |
//! | `seat` | what a disk has at one core: the queue that lives there, its handler, its turn hook |
//! | `setup` | from a transport to a running disk |
//! | `reset` | stop, reset, take back, start again |
//! | `rehome` | moving a quiet disk to another core |
//!
//! Where the device offers as many queues as there are cores, each core owns one; where there are fewer, the first
//! belongs to the disk's home core and the next ones to the cores after it, and the other cores' requests cross over
//! (the disk node does that: [`BlockDevice::submitter`]).
//!
//! **Submission**: a request is staged; the first of a turn arms the core's turn hook, which publishes and kicks, at most
//! once a queue and turn. **Completion**: the interrupt handler compares used indexes and sets the owner's notifier;
//! its handler walks the used ring. While the owner's loop polls, interrupts are off and the poll check looks at the used
//! index. **Configuration** and the steps of a reset: a flag, and the notifier of the home core; the field of the write
//! cache is read and never written.
mod bare;
mod channel;
mod config;
#[cfg(test)]
mod model;
mod rehome;
mod reset;
mod seat;
mod setup;
#[cfg(test)]
mod tests;

use crate::arch::{self, CoreId};
use crate::block::device::{
    BareLoad, BareReport, BlockDevice, DeviceEvents, DeviceInfo, Move, NO_CORE, Owners,
};
use crate::block::{BlockError, Request};
use crate::config::{DISKS, MAX_CORES};
use crate::sync::IrqLock;
use crate::virtio::layout::UsedWatch;
use crate::virtio::transport::{INTERRUPT_CONFIG, Transport};
use channel::{Channel, Walk};
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::*, fence};
use reset::Why;
use seat::Seat;
use spin::Once;

pub use rehome::{HomeRefusal, InterruptRoute};
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

/// One request queue, wherever it lives.
struct Lane {
    /// The interrupt handler's view of the used index.
    watch: UsedWatch,
    /// The core whose seat has it.
    owner: AtomicU8,
    kicks: AtomicU64,
    /// The queue between two seats.
    travelling: IrqLock<Option<Channel>>,
}

impl Lane {
    const fn new() -> Self {
        Self {
            watch: UsedWatch::new(),
            owner: AtomicU8::new(0),
            kicks: AtomicU64::new(0),
            travelling: IrqLock::new(None),
        }
    }

    fn owner(&self) -> CoreId {
        usize::from(self.owner.load(Relaxed))
    }
}

/// What does not change while a disk runs.
struct Fixed {
    transport: &'static dyn Transport,
    features: u64,
    info: DeviceInfo,
    lanes: usize,
    /// Cores that it may use.
    cores: usize,
}

/// A virtio disk. Made by [`add`].
pub struct Blk {
    fixed: Once<Fixed>,
    index: AtomicU8,
    lanes: [Lane; MAX_CORES],
    seats: [Seat; MAX_CORES],
    /// The core whose queue serves a core's requests; [`NOBODY`] while that is being changed.
    serves: Owners,
    home: AtomicU8,
    /// There is something for the home core: a configuration interrupt, a step of a reset.
    control: AtomicBool,
    config_changed: AtomicBool,
    reset: reset::State,
    moving: rehome::State,
    route: Once<&'static dyn InterruptRoute>,
    events: Once<&'static dyn DeviceEvents>,
    capacity: AtomicU64,
    interrupts: AtomicU64,
}

/// In `serves`: no core.
const NOBODY: u8 = u8::MAX;

/// Tests never give one back.
const PLACES: usize = if cfg!(test) { 64 } else { DISKS };

static BLKS: [Blk; PLACES] = [const { Blk::new() }; PLACES];

const _: () = assert!(PLACES <= 64, "disks to publish are bits of one word");
const _: () = assert!(MAX_CORES <= 8, "sets of cores are bits of one byte");

/// The argument of callbacks: which disk, which core.
fn argument(disk: usize, core: CoreId) -> usize {
    disk * MAX_CORES + core
}

fn blk_of(argument: usize) -> (&'static Blk, CoreId) {
    (&BLKS[argument / MAX_CORES], argument % MAX_CORES)
}

impl Blk {
    const fn new() -> Self {
        Self {
            fixed: Once::new(),
            index: AtomicU8::new(0),
            lanes: [const { Lane::new() }; MAX_CORES],
            seats: [const { Seat::new() }; MAX_CORES],
            serves: [const { AtomicU8::new(0) }; MAX_CORES],
            home: AtomicU8::new(0),
            control: AtomicBool::new(false),
            config_changed: AtomicBool::new(false),
            reset: reset::State::new(),
            moving: rehome::State::new(),
            route: Once::new(),
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

    /// The queues in use.
    fn lanes(&self) -> &[Lane] {
        &self.lanes[..self.fixed().lanes]
    }

    /// The core to which the interrupt is best routed: the home core.
    pub fn home(&self) -> CoreId {
        usize::from(self.home.load(Relaxed))
    }

    /// Says how the interrupt is routed, so that it follows the disk to another core. Once, before the first move.
    pub fn set_route(&self, route: &'static dyn InterruptRoute) {
        self.route.call_once(|| route);
    }

    /// Makes the home core look at `control`. Any core, interrupt handlers too.
    fn call_home(&self) {
        self.control.store(true, Release);
        // The flag before the look at who is home; a move changes the home, and then makes it look at the flag. So either
        // we see the new home, or it sees the flag.
        fence(SeqCst);
        self.seats[self.home()].notifier.set();
    }

    /// On `core`, whose notifier was set: what there is for the home core.
    fn home_event(&self, core: CoreId) {
        // Elsewhere: another core's notifier, or the home has changed meanwhile, and the end of the move calls the new one.
        if core != self.home() || !self.control.swap(false, AcqRel) {
            return;
        }
        if self.config_changed.swap(false, Acquire) {
            self.configuration();
        }
        self.step();
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
                self.seats[lane.owner() % MAX_CORES].notifier.set();
            }
        }
        if config {
            self.config_changed.store(true, Release);
            self.call_home();
        }
    }

    /// On `core`: takes what the device has used of the queue there.
    #[inline]
    fn walk(&self, core: CoreId) {
        let walk = self.seats[core].ask(Channel::walk);
        if let Some(Walk::Fault(fault)) = walk {
            log::warn!(
                "virtio disk {}: the device {fault}",
                self.index.load(Relaxed)
            );
            self.broken(Why::Queue);
        }
    }

    /// On the home core: the device says that its configuration, or its state, changed.
    fn configuration(&self) {
        let transport = self.fixed().transport;
        if transport.status() & crate::virtio::transport::status::NEEDS_RESET != 0 {
            return self.broken(Why::Asks);
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

    #[inline]
    fn submitter(&self, core: CoreId) -> CoreId {
        match self.serves[core % MAX_CORES].load(Acquire) {
            NOBODY => NO_CORE,
            owner => usize::from(owner),
        }
    }

    fn owners(&'static self) -> Option<&'static Owners> {
        Some(&self.serves)
    }

    #[inline]
    fn submit(&self, request: Request) -> Result<(), Request> {
        let Some(core) = arch::current_core() else {
            return Err(request);
        };
        self.seats[core % MAX_CORES].with(|channel| {
            if channel.stopped {
                return channel::refuse(request);
            }
            let first = channel.queue.staged() == 0;
            channel.submit(request)?;
            if first {
                seat::publish_later(core, self.index.load(Relaxed));
            }
            Ok(())
        })
    }

    fn bare_reads(&self, load: &BareLoad<'_>) -> Result<BareReport, BlockError> {
        let core = arch::current_core().ok_or(BlockError::Invalid)?;
        let report = self.seats[core % MAX_CORES].ask(|channel| {
            let report = channel.bare_reads(load);
            let kicks = channel.queue.counters().kicks;
            self.lanes[channel.lane()].kicks.store(kicks, Relaxed);
            report
        });
        let report = report.unwrap_or(Err(BlockError::Invalid));
        if report == Err(BlockError::Io) {
            // Reads may still be under way into memory that is lent: only a reset ends that.
            self.broken(Why::Bare);
        }
        report
    }

    fn reset(&self) {
        self.ask_reset();
    }

    fn check_home(&'static self, core: CoreId) -> Result<(), BlockError> {
        self.prepare_move(core)
            .map_err(|refusal| self.refuse(core, refusal))
    }

    fn set_home(&'static self, core: CoreId) -> Result<Move, BlockError> {
        self.start_move(core)
            .map_err(|refusal| self.refuse(core, refusal))
    }

    fn attach(&self, events: &'static dyn DeviceEvents) {
        self.events.call_once(|| events);
    }
}

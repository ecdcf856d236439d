//! What a disk has at one core: the queue that lives there, with its handler, its turn hook and the timer of a reset.
//!
//! A seat belongs to its core for ever, a queue only while it sits there: it comes through `incoming`. So no registration
//! of a notifier ever changes its context, and the cell never its core.
use super::channel::Channel;
use super::{BLKS, Blk, argument, blk_of, reset};
use crate::aio::{self, AioError, Callback, EventNotifier, Handler, Timer, TurnHook};
use crate::arch::CoreId;
use crate::config::MAX_CORES;
use crate::sync::{CachePadded, CoreArray, HomeCell, IrqLock};
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::*};
use spin::Once;

/// No order.
pub(super) const NOTHING: u8 = 0;

pub(super) struct Seat {
    /// The queue that sits here; moved there from `incoming` when it is first used.
    pub(super) channel: HomeCell<Option<Channel>>,
    incoming: IrqLock<Option<Channel>>,
    /// There is something in `incoming`.
    expects: AtomicBool,
    pub(super) notifier: EventNotifier,
    /// What a reset or a move wants of this core, see [`reset`] and [`super::rehome`].
    order: AtomicU8,
    /// For a reset with its home here.
    pub(super) timer: Once<Timer>,
}

impl Seat {
    pub(super) const fn new() -> Self {
        Self {
            channel: HomeCell::new(None),
            incoming: IrqLock::new(None),
            expects: AtomicBool::new(false),
            notifier: EventNotifier::new(),
            order: AtomicU8::new(NOTHING),
            timer: Once::new(),
        }
    }

    /// Lends the queue to `f`. On this core only.
    #[inline(always)]
    pub(super) fn with<R>(&self, f: impl FnOnce(&mut Channel) -> R) -> R {
        if self.expects.load(Relaxed) {
            self.move_in();
        }
        self.channel.with(|place| match place {
            Some(channel) => f(channel),
            None => absent(),
        })
    }

    /// The same; `None` when no queue sits here.
    #[inline(always)]
    pub(super) fn ask<R>(&self, f: impl FnOnce(&mut Channel) -> R) -> Option<R> {
        if self.expects.load(Relaxed) {
            self.move_in();
        }
        self.channel.with(|place| place.as_mut().map(f))
    }

    #[cold]
    #[inline(never)]
    fn move_in(&self) {
        self.expects.store(false, Relaxed);
        let channel = self.incoming.lock().take();
        self.channel.with(|place| *place = channel);
    }

    /// Puts `channel` before the door. Nobody else does until it has moved in.
    pub(super) fn send_in(&self, channel: Channel) {
        *self.incoming.lock() = Some(channel);
        self.expects.store(true, Release);
    }

    /// Tells this core to do something. Any core.
    pub(super) fn order(&self, order: u8) {
        self.order.store(order, Release);
        self.notifier.set();
    }
}

#[cold]
#[inline(never)]
fn absent() -> ! {
    panic!("a disk's queue was used where it is not")
}

/// What a core has to publish at the end of its turn.
struct Turn {
    hook: Once<TurnHook>,
    /// One bit a disk. Home core only.
    disks: AtomicU64,
}

static TURNS: CoreArray<Turn> = CoreArray::new(
    [const {
        CachePadded::new(Turn {
            hook: Once::new(),
            disks: AtomicU64::new(0),
        })
    }; _],
);

/// Has `disk` publish what it has staged on `core`, this one, at the end of the turn.
#[inline(always)]
pub(super) fn publish_later(core: CoreId, disk: u8) {
    let turn = TURNS.get(core);
    turn.disks
        .store(turn.disks.load(Relaxed) | 1u64 << disk, Relaxed);
    if let Some(hook) = turn.hook.get() {
        hook.arm();
    }
}

/// The turn hook: one publish and one kick decision for each disk that got requests.
fn publish(core: CoreId) {
    let mut disks = TURNS.get(core).disks.load(Relaxed);
    TURNS.get(core).disks.store(0, Relaxed);
    while disks != 0 {
        let blk = &BLKS[disks.trailing_zeros() as usize];
        disks &= disks - 1;
        blk.seats[core].ask(|channel| {
            if !channel.stopped && channel.queue.publish() {
                let kicks = channel.queue.counters().kicks;
                blk.lanes[channel.lane()].kicks.store(kicks, Relaxed);
            }
        });
    }
}

/// The seat's notifier was set, or its poll check said yes.
pub(super) fn ready(argument: usize) {
    let (blk, core) = blk_of(argument);
    let seat = &blk.seats[core];
    seat.notifier.test_and_clear();
    if seat.order.load(Relaxed) != NOTHING {
        blk.obey(core);
    }
    blk.walk(core);
    if blk.control.load(Relaxed) {
        blk.home_event(core);
    }
}

pub(super) fn poll_check(argument: usize) -> bool {
    let (blk, core) = blk_of(argument);
    blk.seats[core].ask(|channel| channel.has_work()) == Some(true)
}

pub(super) fn poll_begin(argument: usize) {
    let (blk, core) = blk_of(argument);
    blk.seats[core].ask(|channel| {
        channel.polling = true;
        channel.queue.disarm();
    });
}

pub(super) fn poll_end(argument: usize) {
    let (blk, core) = blk_of(argument);
    blk.seats[core].ask(|channel| {
        channel.polling = false;
        // What came meanwhile is found by the poll check, which the loop asks once more.
        channel.queue.arm();
    });
}

impl Blk {
    /// Carries out what was ordered of `core`, this one.
    #[cold]
    fn obey(&self, core: CoreId) {
        let order = self.seats[core].order.swap(NOTHING, AcqRel);
        if super::rehome::is_order(order) {
            self.obey_move(core, order);
        } else if order != NOTHING {
            self.obey_reset(core, order);
        }
    }

    /// Makes `core`'s loop serve the seat there. Once more for one that is served already changes nothing.
    pub(super) fn listen(&'static self, core: CoreId) -> Result<(), AioError> {
        let context = aio::context(core);
        let argument = argument(usize::from(self.index.load(Relaxed)), core % MAX_CORES);
        let turn = TURNS.get(core);
        if turn.hook.get().is_none() {
            let hook = context.turn_hook("virtio-blk publish", Callback::new(&publish, core))?;
            turn.hook.call_once(|| hook);
        }
        let seat = &self.seats[core];
        if seat.timer.get().is_none() {
            let callback = Callback::new(&reset::look_again, argument);
            let timer = context.timer("virtio-blk reset", callback)?;
            seat.timer.call_once(|| timer);
        }
        let handler = Handler {
            ready: Callback::new(&ready, argument),
            poll_check: Some(&poll_check),
            poll_begin: Some(Callback::new(&poll_begin, argument)),
            poll_end: Some(Callback::new(&poll_end, argument)),
        };
        context.register_handler(&seat.notifier, "virtio-blk queue", handler)
    }

    /// Ends that. From another core the handler may just be running, which finds nothing at an empty seat.
    pub(super) fn hush(&'static self, core: CoreId) {
        aio::context(core).unregister(&self.seats[core].notifier);
    }
}

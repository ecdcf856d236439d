//! Reset of a disk, as steps on its home core with rounds over the owners of its queues.
//!
//! ```text
//!  idle ─ask─▶ stopping ──all──▶ resetting ──status reads 0──▶ taking back ──all──▶ starting ──all──▶ idle
//!   ▲          (owners stop       (status := 0, looked at       (features agreed;    (DRIVER_OK;        (reset_done)
//!   │           submitting and     by a timer, for ever:         owners fail what     owners go on)
//!   │           walking)           nothing is completed by it)   they had, new ring)
//!   └── failed: the same, but the device stays down: its owners stay stopped; `ask` tries again
//! ```
//! No request is completed before the device has confirmed: until then it may write into their buffers. One whose status is
//! NEEDS_RESET alone has confirmed, since it has lost the driver's bits; it is reset some more times, then fails.
//!
//! A reset begins only from `idle` and only because somebody asked. What breaks is noted in `broken`, by any core; the
//! home alone tells of it, once no reset runs, and whoever is told asks. So nobody's disk is reset without knowing, and how
//! often one is reset is decided in one place. While the disk moves it is told too, and the reset begins when the move ends.
//!
//! | the home finds | idle | moving | stopping, resetting | taking back, starting |
//! |---|---|---|---|---|
//! | `broken` | tell | tell | this reset mends it | this reset fails; tell when idle |
//! | `asked` | begin | keep for the end | - | - |
use super::{Blk, channel::Channel, config};
use crate::arch::CoreId;
use crate::block::BlockError;
use crate::virtio::transport::{self, SetupError};
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::*};

const IDLE: u8 = 0;
const STOPPING: u8 = 1;
const RESETTING: u8 = 2;
const TAKING: u8 = 3;
const STARTING: u8 = 4;
/// No reset: the disk moves to another core, and none can begin.
const MOVING: u8 = 5;

/// In `broken`.
const WHOLE: u8 = 0;

/// Orders to the owner of a queue.
const STOP: u8 = 1;
const TAKE_BACK: u8 = 2;
const TAKE_BACK_ONLY: u8 = 3;
const GO_ON: u8 = 4;
pub(super) const STAY_DOWN: u8 = 5;

/// First and longest pause, in ns, between two looks at the status of a device that resets.
const FIRST_LOOK_NS: u64 = 100_000;
const LONGEST_LOOK_NS: u64 = 100_000_000;

/// What is wrong with a device.
#[derive(Clone, Copy)]
pub(super) enum Why {
    Asks = 1,
    Queue = 2,
    Bare = 3,
}

impl Why {
    fn text(code: u8) -> &'static str {
        match code {
            code if code == Self::Asks as u8 => "the device asks for a reset",
            code if code == Self::Queue as u8 => "the device broke the rules of its queue",
            _ => "the device failed a measurement on its bare queue",
        }
    }
}

/// Looks at a device that asks for another reset when it has hardly been reset; before each it gets one. Most of a second.
const TRIES: u8 = 16;

/// Where a reset stands. Written by the home core, except `asked`, `broken` and `pending`.
pub(super) struct State {
    stage: AtomicU8,
    asked: AtomicBool,
    /// A [`Why`] that nobody was told of.
    broken: AtomicU8,
    /// Owners that have not carried out their order.
    pending: AtomicU8,
    /// The device took the features again.
    negotiated: AtomicBool,
    /// The last one did not bring the device back.
    down: AtomicBool,
    pause_ns: AtomicU64,
    /// Times that this reset was written to the device.
    tries: AtomicU8,
    count: AtomicU64,
}

impl State {
    pub(super) const fn new() -> Self {
        Self {
            stage: AtomicU8::new(IDLE),
            asked: AtomicBool::new(false),
            broken: AtomicU8::new(WHOLE),
            pending: AtomicU8::new(0),
            negotiated: AtomicBool::new(false),
            down: AtomicBool::new(false),
            pause_ns: AtomicU64::new(0),
            tries: AtomicU8::new(0),
            count: AtomicU64::new(0),
        }
    }

    /// No reset runs.
    pub(super) fn is_idle(&self) -> bool {
        self.stage.load(Acquire) == IDLE
    }

    /// The device stayed down after the last reset.
    pub(super) fn is_down(&self) -> bool {
        self.down.load(Acquire)
    }

    fn claim(&self, from: u8, to: u8) -> bool {
        self.stage
            .compare_exchange(from, to, AcqRel, Acquire)
            .is_ok()
    }

    /// Keeps resets away while the disk moves; false while one runs or is asked for.
    pub(super) fn begin_move(&self) -> bool {
        !self.asked.load(Acquire) && self.broken.load(Acquire) == WHOLE && self.claim(IDLE, MOVING)
    }

    pub(super) fn end_move(&self) {
        self.stage.store(IDLE, Release);
    }

    /// Resets that brought the device back.
    pub(super) fn count(&self) -> u64 {
        self.count.load(Relaxed)
    }
}

/// The timer of a device that has not confirmed yet.
pub(super) fn look_again(argument: usize) {
    let (blk, core) = super::blk_of(argument);
    // The look of a reset that has ended by another event, at a core that was the home then, is nobody's.
    if core == blk.home() {
        blk.step();
    }
}

impl Blk {
    /// Any core: a reset is needed, and the home is to tell so.
    pub(super) fn broken(&self, why: Why) {
        self.reset.broken.store(why as u8, Release);
        self.call_home();
    }

    /// On the home core.
    fn tell_broken(&self) {
        let why = self.reset.broken.swap(WHOLE, AcqRel);
        if why == WHOLE {
            return;
        }
        match self.events.get() {
            Some(events) => events.needs_reset(Why::text(why)),
            None => self.ask_reset(),
        }
    }

    /// Any core. While a reset runs this asks for nothing; while the disk moves, for one afterwards.
    pub(super) fn ask_reset(&self) {
        if matches!(self.reset.stage.load(Acquire), IDLE | MOVING) {
            self.reset.asked.store(true, Release);
            self.call_home();
        }
    }

    /// Gives every owner an order; the last one that has carried it out sets the home core's notifier.
    fn order(&self, stage: u8, order: u8) {
        let lanes = self.lanes();
        self.reset.pending.store(lanes.len() as u8, Release);
        self.reset.stage.store(stage, Release);
        for lane in lanes {
            self.seats[lane.owner()].order(order);
        }
    }

    /// On an owner: carries out `order`.
    pub(super) fn obey_reset(&self, core: CoreId, order: u8) {
        self.seats[core].with(|channel: &mut Channel| match order {
            STOP => channel.stopped = true,
            TAKE_BACK | TAKE_BACK_ONLY => {
                channel.take_back();
                channel.queue.watch(&self.lanes[channel.lane()].watch);
                if channel.polling {
                    channel.queue.disarm();
                }
                if order == TAKE_BACK {
                    channel.queue.tell_device();
                }
            }
            GO_ON => channel.stopped = false,
            _ => {}
        });
        if self.reset.pending.fetch_sub(1, AcqRel) == 1 {
            self.call_home();
        }
    }

    /// On the home core: goes as far as it can.
    pub(super) fn step(&self) {
        let fixed = self.fixed();
        let state = &self.reset;
        let transport = fixed.transport;
        let all = || state.pending.load(Acquire) == 0;
        if matches!(state.stage.load(Relaxed), IDLE | MOVING) {
            self.tell_broken();
        }
        match state.stage.load(Relaxed) {
            // Not while the disk moves, whose end looks again.
            IDLE if state.asked.load(Acquire) && state.claim(IDLE, STOPPING) => {
                state.asked.store(false, Release);
                self.order(STOPPING, STOP);
            }
            STOPPING if all() => {
                transport.set_status(0);
                state.tries.store(1, Relaxed);
                state.pause_ns.store(FIRST_LOOK_NS, Relaxed);
                state.stage.store(RESETTING, Relaxed);
                self.await_confirmation();
            }
            RESETTING => self.await_confirmation(),
            TAKING if all() => {
                let up = state.negotiated.load(Relaxed) && transport::start(transport).is_ok();
                state.negotiated.store(up, Relaxed);
                self.order(STARTING, if up { GO_ON } else { STAY_DOWN });
            }
            STARTING if all() => {
                let broken = state.broken.load(Acquire) != WHOLE;
                let up = state.negotiated.load(Relaxed) && !broken;
                state.down.store(!up, Relaxed);
                // Whoever asked meanwhile has got it.
                state.asked.store(false, Relaxed);
                state.stage.store(IDLE, Release);
                if up {
                    state.count.fetch_add(1, Relaxed);
                    self.read_capacity();
                }
                if let Some(events) = self.events.get() {
                    events.reset_done(if up { Ok(()) } else { Err(BlockError::Io) });
                }
                self.tell_broken();
            }
            _ => {}
        }
    }

    fn await_confirmation(&self) {
        let fixed = self.fixed();
        let status = fixed.transport.status();
        // Without the driver's bits it has been reset and asks for another; it is given some, then it stays down.
        let asks = status == transport::status::NEEDS_RESET;
        let tries = self.reset.tries.load(Relaxed);
        let hopeless = asks && tries >= TRIES;
        if status != 0 && !hopeless {
            if asks {
                self.reset.tries.store(tries + 1, Relaxed);
                fixed.transport.set_status(0);
            }
            let pause = self.reset.pause_ns.load(Relaxed);
            self.reset
                .pause_ns
                .store((pause * 2).min(LONGEST_LOOK_NS), Relaxed);
            if let Some(timer) = self.seats[self.home()].timer.get() {
                timer.arm_at(crate::arch::now_ns() + pause);
            }
            return;
        }
        // What was wrong before is over.
        self.reset.broken.store(WHOLE, Relaxed);
        let features = if hopeless {
            Err(SetupError::NeedsReset)
        } else {
            transport::negotiate(fixed.transport, config::feature::KNOWN)
        };
        // A device that offers other features than before is another disk.
        let same = features == Ok(fixed.features);
        if hopeless || features.is_ok() && !same {
            transport::fail(fixed.transport);
        }
        self.reset.negotiated.store(same, Relaxed);
        self.order(TAKING, if same { TAKE_BACK } else { TAKE_BACK_ONLY });
    }
}

//! The network: smoltcp over one card, run by one context; byte streams for whoever serves.
//!
//! | file | what |
//! |---|---|
//! | [`stream`] | what a server sees of a connection |
//! | [`device`] | what the stack asks of a card |
//! | [`config`] | addresses, ports, who may connect |
//! | [`stack`] | slots, ports, the three steps of a turn |
//! | `slot` | one connection: socket, waiting buffers, phase |
//! | `phy`, `frame`, [`checksum`] | from the card's frames to smoltcp's and back |
//! | `address` | static address or DHCP |
//! | [`status`] | what others may see |
//!
//! | feature | |
//! |---|---|
//! | IPv4 over Ethernet, ARP, ping, DHCP, one address, one router | yes |
//! | checksums and segmentation by the card, both ways; long frames received in merged buffers | yes |
//! | window scaling, selective acknowledgement, fast retransmit, keep-alive, zero-window probes | yes |
//! | Nagle's algorithm, delayed acknowledgement | off |
//! | congestion control | no: the peer's window and our buffer bound what is under way; for local networks |
//! | IPv6, VLANs, IP fragments, TCP timestamps, several cards | no |
//!
//! This file is the glue to the event loop. One context is home to card, stack and servers. Its handler for the card takes
//! the frames that came and steps the servers whose connection moved; whatever they and woken servers left to be sent goes
//! out in a turn hook, with one notification of the card a turn:
//!
//! ```text
//!  card's interrupt ─▶ notifier ─▶ on_card: ingress, service ─┐
//!  wake(slot) here ───────────────────────────────────────────┼▶ turn hook: service, egress, kick, timer
//!  wake(slot) elsewhere ─▶ bottom half ───────────────────────┤
//!  timer ─────────────────────────────────────────────────────┘
//! ```
#![forbid(unsafe_code)]

mod address;
pub mod checksum;
pub mod config;
pub mod device;
mod frame;
mod phy;
mod slot;
pub mod stack;
pub mod status;
pub mod stream;
#[cfg(test)]
mod tests;

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};

use smoltcp::iface::SocketStorage;
use spin::Once;

use crate::aio::{AioContext, AioError, BottomHalf, Callback, Handler, Timer, TurnHook};
use crate::arch;
use crate::config::{NET_FRAMES_PER_TURN, NET_RECEIVE_BYTES, NET_SLOTS, NET_TRANSMIT_BYTES};
use crate::sync::{Claim, HomeCell};

pub use config::{AllowList, Cidr, IpConfig, NetConfig};
pub use device::{CardState, NetDevice};
use slot::{Slot, SlotMemory};
use stack::{Ingress, Stack};
use status::Status;
pub use status::{AddressInfo, ConnectionInfo, NetStats};
use stream::StreamHandler;

/// Why the network does not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetError {
    /// It was started before.
    Started,
    /// The tables of ports or slots are full.
    NoSlots,
    /// The context has no more records.
    Context(AioError),
}

impl From<AioError> for NetError {
    fn from(error: AioError) -> Self {
        Self::Context(error)
    }
}

impl core::fmt::Display for NetError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Started => f.write_str("started twice"),
            Self::NoSlots => f.write_str("no slots left"),
            Self::Context(error) => write!(f, "the event loop has no room: {error:?}"),
        }
    }
}

struct Shared {
    context: &'static AioContext,
    card: &'static dyn NetDevice,
    hook: TurnHook,
    wake: BottomHalf,
    timer: Timer,
}

static STATUS: Status = Status::new();
static STACK: HomeCell<Stack> = HomeCell::new(Stack::new(&STATUS));
static SHARED: Once<Shared> = Once::new();
static STARTED: AtomicBool = AtomicBool::new(false);
/// What the timer is armed for; of the home core.
static ARMED: AtomicU64 = AtomicU64::new(u64::MAX);
static STOPPED: Once<Callback> = Once::new();
static STOP_TOLD: AtomicBool = AtomicBool::new(false);

/// A buffer for each slot, where copies are quick.
#[repr(C, align(4096))]
struct Buffers<const BYTES: usize>([[u8; BYTES]; NET_SLOTS]);

static RECEIVE: Claim<Buffers<NET_RECEIVE_BYTES>> =
    Claim::new(Buffers([[0; NET_RECEIVE_BYTES]; NET_SLOTS]));
static TRANSMIT: Claim<Buffers<NET_TRANSMIT_BYTES>> =
    Claim::new(Buffers([[0; NET_TRANSMIT_BYTES]; NET_SLOTS]));
static SLOTS: Claim<[Slot; NET_SLOTS]> = Claim::new([const { Slot::EMPTY }; NET_SLOTS]);
static STORAGE: Claim<[[SocketStorage<'static>; 1]; NET_SLOTS]> =
    Claim::new([const { [SocketStorage::EMPTY] }; NET_SLOTS]);
static CONTROL: Claim<[SocketStorage<'static>; 1]> = Claim::new([SocketStorage::EMPTY]);

/// Starts the network on `card`, in `context`, with `handler` serving the port `config.listen` on every slot. Called once,
/// on the context's core (from a bottom half that the machine sends there).
///
/// # Errors
/// See [`NetError`]; nothing runs then.
pub fn init(
    card: &'static dyn NetDevice,
    context: &'static AioContext,
    config: &NetConfig,
    handler: &'static dyn StreamHandler,
) -> Result<(), NetError> {
    if STARTED.swap(true, AcqRel) {
        return Err(NetError::Started);
    }
    let hook = context.turn_hook("net", Callback::new(&on_turn_end, 0))?;
    let wake = context.bottom_half("net wake", Callback::new(&on_wake, 0))?;
    let timer = context.timer("net", Callback::new(&on_timer, 0))?;
    SHARED.call_once(|| Shared {
        context,
        card,
        hook,
        wake,
        timer,
    });
    STACK.bind(context.core());
    STACK
        .with(|stack| start(stack, card, config, handler))
        .ok_or(NetError::NoSlots)?;
    let handler = Handler {
        ready: Callback::new(&on_card, 0),
        poll_check: Some(&|_| SHARED.get().is_some_and(|shared| shared.card.pending())),
        poll_begin: Some(Callback::new(&|_| set_polling(true), 0)),
        poll_end: Some(Callback::new(&|_| set_polling(false), 0)),
    };
    context.register_handler(card.notifier(), "net card", handler)?;
    hook.arm();
    Ok(())
}

fn start(
    stack: &mut Stack,
    card: &'static dyn NetDevice,
    config: &NetConfig,
    handler: &'static dyn StreamHandler,
) -> Option<()> {
    let (receive, transmit, storage) = (RECEIVE.take()?, TRANSMIT.take()?, STORAGE.take()?);
    let memory = receive.0.iter_mut().zip(&mut transmit.0).zip(storage);
    let memory = memory.map(|((receive, transmit), storage)| SlotMemory {
        receive,
        transmit,
        storage,
    });
    stack.start(card, config, SLOTS.take()?, CONTROL.take()?, arch::now_ns());
    stack.listen(config.listen, handler, memory)?;
    Some(())
}

fn set_polling(polling: bool) {
    if let Some(shared) = SHARED.get() {
        shared.card.set_polling(polling);
    }
}

/// How often in a turn the frames that came while others were taken are taken too.
const ROUNDS: u32 = 4;

/// Frames, room, or news of the link.
fn on_card(_: usize) {
    let Some(shared) = SHARED.get() else { return };
    shared.card.notifier().test_and_clear();
    let now = arch::now_ns();
    STACK.with(|stack| {
        stack.check_card(now);
        let mut rounds = 0;
        let more = loop {
            rounds += 1;
            match stack.ingress(now, NET_FRAMES_PER_TURN) {
                Ingress::More => break true,
                // What is staged goes out in the turn hook; then there will be room.
                Ingress::Blocked => break false,
                Ingress::Done if !shared.card.rearm() => break false,
                // Whoever sends as fast as we take must not keep the loop here.
                Ingress::Done if rounds == ROUNDS => break true,
                Ingress::Done => {}
            }
        };
        if more {
            // The rest of the loop has its turn, then we go on.
            shared.card.notifier().set();
        }
        stack.service(now);
    });
    shared.hook.arm();
}

fn on_wake(_: usize) {
    if let Some(shared) = SHARED.get() {
        shared.hook.arm();
    }
}

fn on_timer(_: usize) {
    ARMED.store(u64::MAX, Relaxed);
    on_wake(0);
}

fn on_turn_end(_: usize) {
    let Some(shared) = SHARED.get() else { return };
    let now = arch::now_ns();
    let (deadline, again, stopped) = STACK.with(|stack| {
        stack.service(now);
        stack.egress(now);
        (stack.deadline(), stack.is_dirty(), stack.is_stopped())
    });
    if again {
        shared.wake.schedule();
    }
    // Deadlines mostly move away; the timer that fires too early only looks.
    if deadline < ARMED.load(Relaxed) {
        ARMED.store(deadline, Relaxed);
        shared.timer.arm_at(deadline);
    }
    if stopped
        && let Some(done) = STOPPED.get()
        && !STOP_TOLD.swap(true, AcqRel)
    {
        done.call();
    }
}

/// Has the server of NBD's port (the first) stepped on `slot`. Any core.
pub fn wake(slot: usize) {
    wake_on(0, slot);
}

/// Has the server of `port` stepped on `slot`. Any core.
pub fn wake_on(port: usize, slot: usize) {
    let Some(shared) = SHARED.get() else { return };
    if !STATUS.wake(port, slot) {
        return;
    }
    if arch::current_core() == Some(shared.context.core()) && !arch::in_interrupt() {
        shared.hook.arm();
    } else {
        shared.wake.schedule();
    }
}

/// Takes no new connections from now on; those that are open go on. Any core.
pub fn stop_listening() {
    let Some(shared) = SHARED.get() else { return };
    let stop = Callback::new(
        &|_| STACK.with(|stack| stack.stop_listening(arch::now_ns())),
        0,
    );
    if shared.context.schedule_oneshot("net deaf", stop).is_err() {
        log::warn!("net: still listening: no one-shot record is free");
    }
}

/// Ends all listening and every connection, in bounded time; then calls `done` on the network's core. Any core; once.
pub fn shutdown(done: Callback) {
    STOPPED.call_once(|| done);
    let Some(shared) = SHARED.get() else {
        if !STOP_TOLD.swap(true, AcqRel) {
            done.call();
        }
        return;
    };
    if shared
        .context
        .schedule_oneshot("net stop", Callback::new(&on_stop, 0))
        .is_err()
    {
        // One-shots are used up: the clients learn it from the silence instead.
        done.call();
    }
}

fn on_stop(_: usize) {
    STACK.with(|stack| stack.stop(arch::now_ns()));
    on_wake(0);
}

/// Calls `f` with each open connection. Any core.
pub fn connections(f: &mut dyn FnMut(&ConnectionInfo)) {
    STATUS.connections(f);
}

/// Address and link. Any core.
pub fn interface() -> (AddressInfo, Option<CardState>) {
    STATUS.interface()
}

/// Counters. Any core.
pub fn stats() -> NetStats {
    STATUS.stats(
        SHARED
            .get()
            .map(|shared| shared.card.stats())
            .unwrap_or_default(),
    )
}

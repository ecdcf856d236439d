//! The simulated network: connections in memory, served by a bottom half of the network's core as smoltcp is in the firmware.
//! A slot is stepped only when the `StreamHandler` contract says so, so a forgotten wake-up hangs the run.

use std::cell::RefCell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use ironthread::aio::{self, BottomHalf, Callback};
use ironthread::arch::{self, CoreId};
use ironthread::config::SESSIONS;
use ironthread::export::nbd;
use ironthread::net::stream::{ByteStream, CloseReason, PeerAddress, StreamHandler};
use ironthread_engine::wire::Wire;

static WOKEN: AtomicU64 = AtomicU64::new(0);
static TURN: OnceLock<BottomHalf> = OnceLock::new();

thread_local! {
    static WIRES: RefCell<Vec<Option<Wire>>> = RefCell::new((0..SESSIONS).map(|_| None).collect());
}

/// Starts the server on `core`, the current one.
pub fn start(core: CoreId) {
    nbd::start(core, &wake).expect("the server starts");
    let turn = aio::context(core)
        .bottom_half("network", Callback::new(&turn, 0))
        .expect("a bottom half");
    let _ = TURN.set(turn);
}

/// Has a slot stepped.
pub fn wake(slot: usize) {
    WOKEN.fetch_or(1 << slot, Ordering::SeqCst);
    if let Some(turn) = TURN.get() {
        turn.schedule();
    }
}

/// Lends a slot's connection, which is there.
pub fn wire<R>(slot: usize, f: impl FnOnce(&mut Wire) -> R) -> R {
    WIRES.with_borrow_mut(|wires| f(wires[slot].as_mut().expect("a connection")))
}

/// A connection comes in; `None`: no slot is free. On the network's core.
pub fn open() -> Option<usize> {
    let server = nbd::server();
    let slot = WIRES.with_borrow(|wires| {
        (0..SESSIONS).find(|slot| wires[*slot].is_none() && server.ready(*slot))
    })?;
    WIRES.with_borrow_mut(|wires| wires[slot] = Some(Wire::new()));
    server.opened(slot, PeerAddress::Local(slot as u32), arch::now_ns());
    wake(slot);
    Some(slot)
}

/// The client has seen that its connection is over.
pub fn release(slot: usize) {
    WIRES.with_borrow_mut(|wires| wires[slot] = None);
}

/// Wakes the slots whose time has come.
pub fn look_at_clock() {
    let now = arch::now_ns();
    let due = WIRES.with_borrow(|wires| {
        let due = |wire: &Wire| !wire.over && wire.deadline.is_some_and(|deadline| deadline <= now);
        (0..SESSIONS)
            .filter(|slot| wires[*slot].as_ref().is_some_and(due))
            .fold(0u64, |all, slot| all | 1 << slot)
    });
    (0..SESSIONS)
        .filter(|slot| due & 1 << slot != 0)
        .for_each(wake);
}

/// The bottom half: every slot that was woken has its turn.
fn turn(_: usize) {
    let woken = WOKEN.swap(0, Ordering::SeqCst);
    for slot in (0..SESSIONS).filter(|slot| woken & 1 << slot != 0) {
        serve(slot);
    }
}

fn serve(slot: usize) {
    let server = nbd::server();
    let now = arch::now_ns();
    let Some(mut wire) = WIRES.with_borrow_mut(|wires| wires[slot].take()) else {
        return;
    };
    if !wire.over && !wire.closed && !wire.aborted && !wire.reset {
        wire.deadline = server.step(slot, &mut wire, now);
        if wire.deadline.is_some_and(|deadline| deadline <= now) {
            wake(slot);
        }
    }
    if wire.pump() {
        // There is room again.
        wake(slot);
    }
    let reason = if wire.aborted || wire.closed && wire.unsent() == 0 {
        Some(CloseReason::Local)
    } else if wire.reset {
        Some(CloseReason::Reset)
    } else {
        None
    };
    if let (Some(reason), false) = (reason, wire.over) {
        wire.over = true;
        wire.drop_queue();
        server.closed(slot, reason, now);
    }
    WIRES.with_borrow_mut(|wires| wires[slot] = Some(wire));
}

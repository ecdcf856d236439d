//! The transport over real sockets: byte streams on non-blocking TCP or UNIX connections, all served on one core.
//!
//! A thread waits for the kernel's events (epoll, edge-triggered) and passes them on as bits and a set notifier, as an
//! interrupt handler would; everything else happens in the context of the core that called [`start`].

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};

use ironthread::aio::{self, Callback, EventNotifier, Timer};
use ironthread::arch::{self, CoreId};
use ironthread::config::SESSIONS;
use ironthread::net::stream::{PeerAddress, StreamHandler};

use crate::connection::{Connection, Socket};

/// The listener's event.
const LISTENER: u64 = u64::MAX;

/// Where to listen.
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// UNIX.
    Unix(UnixListener),
}

/// What the waiting thread and other cores leave for the serving core.
struct Transport {
    notifier: EventNotifier,
    /// Slots to step.
    pending: AtomicU64,
    accepted: Mutex<VecDeque<(Socket, PeerAddress)>>,
    epoll: OnceLock<OwnedFd>,
    timer: OnceLock<Timer>,
    handler: OnceLock<&'static dyn StreamHandler>,
}

static TRANSPORT: Transport = Transport {
    notifier: EventNotifier::new(),
    pending: AtomicU64::new(0),
    accepted: Mutex::new(VecDeque::new()),
    epoll: OnceLock::new(),
    timer: OnceLock::new(),
    handler: OnceLock::new(),
};

std::thread_local! {
    /// Connections, in the serving core's thread.
    static SLOTS: RefCell<Vec<Option<Connection>>> = RefCell::new((0..SESSIONS).map(|_| None).collect());
}

/// Has a slot stepped; any thread.
pub fn wake(slot: usize) {
    TRANSPORT.pending.fetch_or(1 << slot, Ordering::SeqCst);
    TRANSPORT.notifier.set();
}

/// Serves connections from `listener` with `handler`, in the context of `core`. Called once, on that core.
///
/// # Panics
/// When the kernel or a static pool refuses what is needed.
pub fn start(core: CoreId, listener: Listener, handler: &'static dyn StreamHandler) {
    let context = aio::context(core);
    // SAFETY: no pointers are involved; a negative result is checked.
    let epoll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
    assert!(epoll >= 0, "epoll");
    // SAFETY: the descriptor was just made and belongs to nobody else.
    let epoll = unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(epoll) };
    let fd = match &listener {
        Listener::Tcp(listener) => listener
            .set_nonblocking(true)
            .map(|()| listener.as_raw_fd()),
        Listener::Unix(listener) => listener
            .set_nonblocking(true)
            .map(|()| listener.as_raw_fd()),
    };
    watch(
        epoll.as_raw_fd(),
        fd.expect("a non-blocking listener"),
        LISTENER,
    );
    let _ = TRANSPORT.epoll.set(epoll);
    let _ = TRANSPORT.handler.set(handler);
    let timer = context
        .timer("sockets", Callback::new(&expired, 0))
        .expect("a timer");
    let _ = TRANSPORT.timer.set(timer);
    context
        .register(
            &TRANSPORT.notifier,
            "sockets",
            Callback::new(&ready, 0),
            None,
        )
        .expect("a handler");
    let run = move || wait_for_events(&listener);
    std::thread::Builder::new()
        .name("sockets".into())
        .spawn(run)
        .expect("a thread for events");
}

fn watch(epoll: RawFd, fd: RawFd, token: u64) {
    let events = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET;
    let mut event = libc::epoll_event {
        events: events as u32,
        u64: token,
    };
    // SAFETY: `event` outlives the call; both descriptors are open.
    let outcome = unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, &mut event) };
    assert_eq!(outcome, 0, "epoll_ctl");
}

fn wait_for_events(listener: &Listener) {
    let epoll = TRANSPORT.epoll.get().expect("set before").as_raw_fd();
    let mut events = [libc::epoll_event { events: 0, u64: 0 }; 32];
    loop {
        // SAFETY: the array holds as many events as the kernel is told.
        let count =
            unsafe { libc::epoll_wait(epoll, events.as_mut_ptr(), events.len() as i32, -1) };
        let mut bits = 0;
        for event in events.iter().take(usize::try_from(count).unwrap_or(0)) {
            match event.u64 {
                LISTENER => accept(listener),
                slot => bits |= 1 << slot,
            }
        }
        TRANSPORT.pending.fetch_or(bits, Ordering::SeqCst);
        TRANSPORT.notifier.set();
    }
}

fn accept(listener: &Listener) {
    static NUMBER: AtomicU32 = AtomicU32::new(1);
    loop {
        let connection = match listener {
            Listener::Tcp(listener) => {
                listener
                    .accept()
                    .map(|(socket, peer): (TcpStream, SocketAddr)| {
                        let _ = socket.set_nodelay(true);
                        let _ = socket.set_nonblocking(true);
                        (Socket::Tcp(socket), PeerAddress::Internet(peer))
                    })
            }
            Listener::Unix(listener) => listener.accept().map(|(socket, _)| {
                let _ = socket.set_nonblocking(true);
                (
                    Socket::Unix(socket),
                    PeerAddress::Local(NUMBER.fetch_add(1, Ordering::Relaxed)),
                )
            }),
        };
        match connection {
            Ok(connection) => TRANSPORT
                .accepted
                .lock()
                .expect("no panic inside")
                .push_back(connection),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

fn expired(_: usize) {
    let now = arch::now_ns();
    let due = SLOTS.with_borrow(|slots| {
        let due =
            |connection: &Connection| connection.deadline.is_some_and(|deadline| deadline <= now);
        slots
            .iter()
            .enumerate()
            .filter(|(_, c)| c.as_ref().is_some_and(due))
            .fold(0, |bits, (slot, _)| bits | 1 << slot)
    });
    TRANSPORT.pending.fetch_or(due, Ordering::SeqCst);
    TRANSPORT.notifier.set();
}

fn ready(_: usize) {
    TRANSPORT.notifier.test_and_clear();
    let Some(handler) = TRANSPORT.handler.get() else {
        return;
    };
    admit(*handler);
    let pending = TRANSPORT.pending.swap(0, Ordering::SeqCst);
    let mut earliest = None;
    SLOTS.with_borrow_mut(|slots| {
        for (slot, place) in slots.iter_mut().enumerate() {
            let Some(connection) = place else { continue };
            if pending & 1 << slot != 0 {
                serve(*handler, slot, connection);
                if let Some(reason) = connection.over() {
                    connection.finish();
                    *place = None;
                    handler.closed(slot, reason, arch::now_ns());
                    continue;
                }
            }
            earliest = [earliest, connection.deadline].into_iter().flatten().min();
        }
    });
    if let (Some(deadline), Some(timer)) = (earliest, TRANSPORT.timer.get()) {
        timer.arm_at(deadline);
    }
}

/// Gives waiting connections to free slots.
fn admit(handler: &'static dyn StreamHandler) {
    SLOTS.with_borrow_mut(|slots| {
        for (slot, place) in slots.iter_mut().enumerate() {
            if place.is_some() || !handler.ready(slot) {
                continue;
            }
            let Some((socket, peer)) = TRANSPORT
                .accepted
                .lock()
                .expect("no panic inside")
                .pop_front()
            else {
                return;
            };
            if let Some(epoll) = TRANSPORT.epoll.get() {
                watch(epoll.as_raw_fd(), socket.fd(), slot as u64);
            }
            *place = Some(Connection::new(socket, peer));
            handler.opened(slot, peer, arch::now_ns());
            TRANSPORT.pending.fetch_or(1 << slot, Ordering::SeqCst);
        }
    });
}

/// Moves one connection on: a few rounds, then the others have their turn.
fn serve(handler: &'static dyn StreamHandler, slot: usize, connection: &mut Connection) {
    for _ in 0..4 {
        let came = connection.pump_in();
        if connection.closing {
            // What still arrives is of no interest.
            connection.discard();
            connection.pump_out();
            return;
        }
        let now = arch::now_ns();
        let deadline = handler.step(slot, connection, now);
        let went = connection.pump_out();
        if connection.over().is_some() {
            return;
        }
        let again = deadline.is_some_and(|deadline| deadline <= now);
        connection.deadline = deadline.filter(|deadline| *deadline > now);
        if !came && !went && !again {
            return;
        }
    }
    TRANSPORT.pending.fetch_or(1 << slot, Ordering::SeqCst);
    TRANSPORT.notifier.set();
}

//! The transport over real sockets: byte streams on non-blocking TCP or UNIX connections, all served on one core.
//!
//! A thread waits for the kernel's events (epoll, edge-triggered) and passes them on as bits and a set notifier, as an
//! interrupt handler would; everything else happens in the context of the core that called [`start`].

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};

use ironthread::aio::{self, Callback, EventNotifier, Timer};
use ironthread::arch::{self, CoreId};
use ironthread::config::SESSIONS;
use ironthread::net::stream::{
    ByteStream, CloseReason, MAX_HEADER, PeerAddress, ReceiveState, StreamHandler,
};
use ironthread::sync::Buffer;

/// Bytes received ahead of the handler.
const RECEIVE_BYTES: usize = 256 * 1024;
/// Small replies queued.
const SEND_BYTES: usize = 64 * 1024;
/// Owned buffers queued.
const SEND_BUFFERS: usize = 64;
/// The listener's event.
const LISTENER: u64 = u64::MAX;

/// Where to listen.
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// UNIX.
    Unix(UnixListener),
}

enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    fn fd(&self) -> RawFd {
        match self {
            Socket::Tcp(socket) => socket.as_raw_fd(),
            Socket::Unix(socket) => socket.as_raw_fd(),
        }
    }

    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Socket::Tcp(socket) => socket.read(bytes),
            Socket::Unix(socket) => socket.read(bytes),
        }
    }

    fn write(&mut self, slices: &[IoSlice<'_>]) -> std::io::Result<usize> {
        match self {
            Socket::Tcp(socket) => socket.write_vectored(slices),
            Socket::Unix(socket) => socket.write_vectored(slices),
        }
    }

    fn shutdown(&self) {
        let _ = match self {
            Socket::Tcp(socket) => socket.shutdown(Shutdown::Write),
            Socket::Unix(socket) => socket.shutdown(Shutdown::Write),
        };
    }
}

enum Outgoing {
    Bytes(VecDeque<u8>),
    Owned {
        header: Vec<u8>,
        buffer: Buffer,
        start: usize,
        len: usize,
    },
}

/// One connection.
struct Connection {
    socket: Socket,
    peer: PeerAddress,
    received: Vec<u8>,
    consumed: usize,
    state: ReceiveState,
    outgoing: VecDeque<Outgoing>,
    /// Bytes of the first outgoing item that the kernel has.
    head: usize,
    bytes: usize,
    buffers: usize,
    closing: bool,
    aborted: bool,
    deadline: Option<u64>,
}

impl Connection {
    /// Reads what the kernel has, while there is room. Returns whether anything came.
    fn pump_in(&mut self) -> bool {
        if self.consumed > 0 {
            self.received.drain(..self.consumed);
            self.consumed = 0;
        }
        let mut moved = false;
        while self.state == ReceiveState::Open && self.received.len() < RECEIVE_BYTES {
            let filled = self.received.len();
            self.received.resize(RECEIVE_BYTES, 0);
            let outcome = self.socket.read(&mut self.received[filled..]);
            self.received
                .truncate(filled + *outcome.as_ref().unwrap_or(&0));
            match outcome {
                Ok(0) => self.state = ReceiveState::Finished,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return moved,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => self.state = ReceiveState::Reset,
            }
            moved = true;
        }
        moved
    }

    /// Writes what is queued, while the kernel takes it. Returns whether it took anything.
    fn pump_out(&mut self) -> bool {
        let mut moved = false;
        while !self.outgoing.is_empty() && self.state != ReceiveState::Reset {
            let mut slices = Vec::with_capacity(64);
            let mut skip = self.head;
            for item in self.outgoing.iter().take(20) {
                let parts: [&[u8]; 2] = match item {
                    Outgoing::Bytes(bytes) => {
                        let (a, b) = bytes.as_slices();
                        [a, b]
                    }
                    Outgoing::Owned {
                        header,
                        buffer,
                        start,
                        len,
                    } => [header, &buffer.as_slice()[*start..*start + *len]],
                };
                for part in parts {
                    let cut = skip.min(part.len());
                    skip -= cut;
                    if cut < part.len() {
                        slices.push(IoSlice::new(&part[cut..]));
                    }
                }
            }
            match self.socket.write(&slices) {
                Ok(taken) => {
                    self.taken(taken);
                    moved = true;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.state = ReceiveState::Reset,
            }
        }
        moved
    }

    fn taken(&mut self, taken: usize) {
        self.head += taken;
        while let Some(item) = self.outgoing.front() {
            let length = match item {
                Outgoing::Bytes(bytes) => bytes.len(),
                Outgoing::Owned { header, len, .. } => header.len() + len,
            };
            if self.head < length {
                return;
            }
            self.head -= length;
            match self.outgoing.pop_front() {
                Some(Outgoing::Bytes(bytes)) => self.bytes -= bytes.len(),
                Some(Outgoing::Owned { .. }) => self.buffers -= 1,
                None => {}
            }
        }
    }

    /// Why the connection is over, if it is.
    fn over(&self) -> Option<CloseReason> {
        if self.aborted {
            return Some(CloseReason::Local);
        }
        match self.state {
            ReceiveState::Reset => Some(CloseReason::Reset),
            _ if self.closing && self.outgoing.is_empty() => Some(CloseReason::Local),
            _ => None,
        }
    }
}

impl ByteStream for Connection {
    fn receive(&mut self, f: &mut dyn FnMut(&[u8]) -> usize) -> ReceiveState {
        if self.consumed < self.received.len() && self.state != ReceiveState::Reset {
            let taken = f(&self.received[self.consumed..]);
            self.consumed += taken;
        }
        match self.state {
            ReceiveState::Finished if self.consumed < self.received.len() => ReceiveState::Open,
            state => state,
        }
    }

    fn send(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.send_space());
        if taken > 0 {
            match self.outgoing.back_mut() {
                Some(Outgoing::Bytes(queue)) => queue.extend(&bytes[..taken]),
                _ => self
                    .outgoing
                    .push_back(Outgoing::Bytes(bytes[..taken].iter().copied().collect())),
            }
            self.bytes += taken;
        }
        taken
    }

    fn send_buffer(
        &mut self,
        header: &[u8],
        buffer: Buffer,
        start: usize,
        len: usize,
    ) -> Result<(), Buffer> {
        assert!(header.len() <= MAX_HEADER && start + len <= buffer.len());
        if self.closing
            || self.aborted
            || self.state == ReceiveState::Reset
            || self.buffers >= SEND_BUFFERS
        {
            return Err(buffer);
        }
        self.buffers += 1;
        self.outgoing.push_back(Outgoing::Owned {
            header: header.to_vec(),
            buffer,
            start,
            len,
        });
        Ok(())
    }

    fn send_space(&self) -> usize {
        if self.closing || self.aborted || self.state == ReceiveState::Reset {
            return 0;
        }
        SEND_BYTES.saturating_sub(self.bytes)
    }

    fn unsent(&self) -> usize {
        let queued: usize = self
            .outgoing
            .iter()
            .map(|item| match item {
                Outgoing::Bytes(bytes) => bytes.len(),
                Outgoing::Owned { header, len, .. } => header.len() + len,
            })
            .sum();
        queued - self.head
    }

    fn close(&mut self) {
        self.closing = true;
    }

    fn abort(&mut self) {
        self.aborted = true;
        self.outgoing.clear();
        self.head = 0;
    }

    fn peer(&self) -> PeerAddress {
        self.peer
    }
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
                    finish(connection);
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
            *place = Some(Connection {
                socket,
                peer,
                received: Vec::with_capacity(RECEIVE_BYTES),
                consumed: 0,
                state: ReceiveState::Open,
                outgoing: VecDeque::new(),
                head: 0,
                bytes: 0,
                buffers: 0,
                closing: false,
                aborted: false,
                deadline: None,
            });
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
            connection.consumed = connection.received.len();
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

fn finish(connection: &Connection) {
    if connection.aborted {
        let linger = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        let size = size_of::<libc::linger>() as libc::socklen_t;
        let value = (&raw const linger).cast();
        // SAFETY: `value` points to a linger structure of the size that is passed; the descriptor is open.
        unsafe {
            libc::setsockopt(
                connection.socket.fd(),
                libc::SOL_SOCKET,
                libc::SO_LINGER,
                value,
                size,
            )
        };
    } else {
        connection.socket.shutdown();
    }
}

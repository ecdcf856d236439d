//! A transport without sockets: streams in memory, one thread, one core, a clock that moves by hand. Tests on it are exact:
//! nothing happens but in [`Bench::run`], and a slot is stepped only when the [`StreamHandler`] contract says so (the
//! connection moved, it was woken, its deadline passed), so a forgotten wake-up hangs the test instead of hiding.
//!
//! The sending side is as strict as a TCP socket with a small ring: `send` takes nothing while an owned buffer waits, and
//! nothing gets through a closed window.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, Once, OnceLock, PoisonError};

use ironthread::aio;
use ironthread::arch::host::{self, CoreGuard, Machine};
use ironthread::block::node::{null, ram};
use ironthread::block::{self, Backend, DeviceFeatures};
use ironthread::config::SESSIONS;
use ironthread::export::{self, nbd};
use ironthread::net::stream::{ByteStream, CloseReason, PeerAddress, StreamHandler};

use crate::device::{Storage, TestDevice, full_info};
use crate::wire::Wire;

/// Size of the disks `disk`, `other`, `ram` and `blocks`.
pub const DISK: u64 = 4 << 20;
/// Size of the disk `null`.
pub const NULL: u64 = 1 << 40;

static WIRES: Mutex<[Option<Wire>; SESSIONS]> = Mutex::new([const { None }; SESSIONS]);
static WOKEN: AtomicU64 = AtomicU64::new(0);

fn wires() -> MutexGuard<'static, [Option<Wire>; SESSIONS]> {
    WIRES.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wake(slot: usize) {
    WOKEN.fetch_or(1 << slot, Ordering::SeqCst);
}

/// The disks that every test finds.
pub struct Disks {
    /// Behind the exports `disk` (the default one) and, read-only, `locked`.
    pub disk: &'static TestDevice,
    /// Behind the export `other`.
    pub other: &'static TestDevice,
    /// Behind the export `blocks`: logical blocks of 4096 bytes.
    pub blocks: &'static TestDevice,
    /// Behind the export `plain`: neither flush nor discard nor write-zeroes.
    pub plain: &'static TestDevice,
}

static DISKS: OnceLock<Disks> = OnceLock::new();

fn backend(name: &str, node: block::NodeId) -> &'static Backend {
    Backend::create(name, "nbd", node).expect("a backend")
}

fn boot() {
    aio::context(0).attach(0);
    block::start_core(0).expect("the block layer starts");
    nbd::start(0, &wake).expect("the server starts");
    let mut blocks = full_info(DISK, "blocks");
    blocks.logical_block = 4096;
    let mut plain = full_info(DISK, "plain");
    plain.features = DeviceFeatures::empty();
    let disks = Disks {
        disk: TestDevice::memory(DISK, "disk"),
        other: TestDevice::memory(DISK, "other"),
        blocks: TestDevice::new(blocks, Storage::Memory(vec![0; DISK as usize])),
        plain: TestDevice::new(plain, Storage::Memory(vec![0; DISK as usize])),
    };
    let mut nodes = Vec::new();
    for device in [disks.disk, disks.other, disks.blocks, disks.plain] {
        device.start(0);
        nodes.push(block::add_disk(device, 0).expect("a disk").node());
    }
    let add = |name: &str, node, writable| {
        export::add(
            name,
            &format!("about {name}"),
            backend(name, node),
            writable,
        )
        .expect("an export");
    };
    add("disk", nodes[0], true);
    add("locked", nodes[0], false);
    add("other", nodes[1], true);
    add("blocks", nodes[2], true);
    add("plain", nodes[3], true);
    add(
        "ram",
        ram::create("ram-node", Vec::leak(vec![0; DISK as usize]), 512).expect("a ram node"),
        true,
    );
    let options = null::NullOptions {
        size: NULL,
        block: 512,
        read_zeroes: true,
        latency_ns: 0,
    };
    add(
        "null",
        null::create("null-node", options).expect("a null node"),
        true,
    );
    let _ = DISKS.set(disks);
}

/// The whole engine for one test; other tests of the process wait until it is dropped.
pub struct Bench {
    disks: &'static Disks,
    _core: CoreGuard,
    _machine: Machine,
}

impl Default for Bench {
    fn default() -> Self {
        Self::new()
    }
}

impl Bench {
    /// Takes the engine: clean disks, no connection, time stopped.
    ///
    /// # Panics
    /// When the test before left something behind.
    pub fn new() -> Self {
        static BOOT: Once = Once::new();
        let machine = host::machine(1);
        let core = host::enter_core(0);
        host::set_stepped(true);
        BOOT.call_once(boot);
        host::clock::manual(1_000_000_000);
        // A test that failed may have left connections.
        let left = std::mem::replace(&mut *wires(), [const { None }; SESSIONS]);
        for (slot, wire) in left.into_iter().enumerate() {
            if wire.is_some_and(|wire| !wire.over) {
                nbd::server().closed(slot, CloseReason::Stopped, now());
            }
        }
        let disks = DISKS.get().expect("booted");
        for device in [disks.disk, disks.other, disks.blocks, disks.plain] {
            device.heal();
            device.release();
            device.poke(0, &vec![0; DISK as usize]);
            device.watch();
        }
        let bench = Self {
            disks,
            _core: core,
            _machine: machine,
        };
        bench.run();
        bench.assert_idle();
        bench
    }

    /// The disks.
    pub fn disks(&self) -> &'static Disks {
        self.disks
    }

    /// Connects; `None` when every slot is taken.
    pub fn connect(&self) -> Option<Peer> {
        let server = nbd::server();
        let mut wires = wires();
        let slot = (0..SESSIONS).find(|slot| {
            wires[*slot].as_ref().is_none_or(|wire| wire.over) && server.ready(*slot)
        })?;
        wires[slot] = Some(Wire::new());
        drop(wires);
        server.opened(slot, PeerAddress::Local(slot as u32), now());
        self.run();
        Some(Peer { slot, read: 0 })
    }

    /// Lets time pass.
    pub fn advance(&self, ns: u64) {
        host::clock::advance(ns);
        self.run();
    }

    /// Runs the engine until nothing moves without something from outside.
    ///
    /// # Panics
    /// When it never comes to rest.
    pub fn run(&self) {
        for _ in 0..1_000_000 {
            if !self.round() {
                return;
            }
        }
        panic!("the engine does not come to rest");
    }

    /// Lets every bottom half and timer run, and then every slot have its turn, once. Returns whether there may be more to do.
    pub fn round(&self) -> bool {
        let mut moved = false;
        while aio::context(0).poll(false) {
            moved = true;
        }
        let woken = WOKEN.swap(0, Ordering::SeqCst);
        for slot in 0..SESSIONS {
            moved |= self.turn(slot, woken & 1 << slot != 0);
        }
        moved || WOKEN.load(Ordering::SeqCst) != 0
    }

    /// One slot's turn. Returns whether anything happened.
    fn turn(&self, slot: usize, woken: bool) -> bool {
        let server = nbd::server();
        let Some(mut wire) = wires()[slot].take() else {
            return false;
        };
        let due = wire.deadline.is_some_and(|deadline| deadline <= now());
        let mut moved = false;
        if !wire.over && (woken || wire.moved || due) {
            wire.moved = false;
            // It may have submitted something: the context has to be polled again.
            moved = true;
            if !wire.closed && !wire.aborted && !wire.reset {
                wire.deadline = server.step(slot, &mut wire, now());
            }
        }
        if wire.pump() {
            wire.moved = true;
            moved = true;
        }
        let reason = if wire.aborted {
            Some(CloseReason::Local)
        } else if wire.reset {
            Some(CloseReason::Reset)
        } else if wire.closed && wire.unsent() == 0 {
            Some(CloseReason::Local)
        } else {
            None
        };
        if let (Some(reason), false) = (reason, wire.over) {
            wire.over = true;
            wire.drop_queue();
            server.closed(slot, reason, now());
            moved = true;
        }
        wires()[slot] = Some(wire);
        moved
    }

    /// Whether a slot's session is over, with all of its requests back.
    pub fn is_free(&self, slot: usize) -> bool {
        nbd::server().ready(slot)
    }

    /// Checks that every counter is back to zero.
    ///
    /// # Panics
    /// When one is not.
    pub fn assert_idle(&self) {
        for slot in 0..SESSIONS {
            assert!(self.is_free(slot), "slot {slot} is not free");
            assert_eq!(nbd::pages(slot).0, 0, "slot {slot} holds pages");
        }
        assert_eq!(block::request_usage().0, 0, "request records are in use");
        export::for_each(|export| {
            assert_eq!(export.sessions, 0, "sessions on {}", export.name);
            assert_eq!(
                export.backend.in_flight(),
                0,
                "requests in flight on {}",
                export.name
            );
            assert_eq!(
                export.backend.parked(),
                0,
                "requests parked on {}",
                export.name
            );
        });
        nbd::connections(|connection| panic!("connection {} is left", connection.slot));
    }

    /// Ends a test: every connection is closed, and every counter must go back to zero.
    pub fn finish(self) {
        for wire in wires().iter_mut().flatten() {
            wire.reset = true;
            wire.moved = true;
        }
        for device in [
            self.disks.disk,
            self.disks.other,
            self.disks.blocks,
            self.disks.plain,
        ] {
            device.release();
        }
        self.run();
        self.assert_idle();
    }
}

fn now() -> u64 {
    ironthread::arch::now_ns()
}

/// The client's end of a connection.
pub struct Peer {
    /// Its slot.
    pub slot: usize,
    /// Bytes of what was delivered that were read.
    read: usize,
}

impl Peer {
    fn wire<R>(&self, f: impl FnOnce(&mut Wire) -> R) -> R {
        f(wires()[self.slot]
            .as_mut()
            .expect("a connection of this test"))
    }

    fn touch<R>(&self, f: impl FnOnce(&mut Wire) -> R) -> R {
        self.wire(|wire| {
            wire.moved = true;
            f(wire)
        })
    }

    /// Sends bytes, without letting the engine run.
    pub fn write(&self, bytes: &[u8]) {
        self.touch(|wire| wire.to_server.extend(bytes));
    }

    /// Takes all that arrived.
    pub fn read_all(&mut self) -> Vec<u8> {
        let read = self.read;
        let bytes = self.wire(|wire| wire.delivered[read..].to_vec());
        self.read += bytes.len();
        bytes
    }

    /// Takes exactly `len` bytes, or nothing if fewer arrived.
    pub fn read(&mut self, len: usize) -> Option<Vec<u8>> {
        let read = self.read;
        let bytes = self.wire(|wire| wire.delivered.get(read..read + len).map(<[u8]>::to_vec))?;
        self.read += len;
        Some(bytes)
    }

    /// Bytes sent that the server has not consumed.
    pub fn unread_by_server(&self) -> usize {
        self.wire(|wire| wire.to_server.len())
    }

    /// How many more bytes the client accepts; `usize::MAX`: any number.
    pub fn set_window(&self, bytes: usize) {
        self.touch(|wire| wire.window = bytes);
    }

    /// Lends the server at most so many bytes at once.
    pub fn set_lend(&self, bytes: usize) {
        self.wire(|wire| wire.lend = bytes);
    }

    /// Finishes sending.
    pub fn finish(&self) {
        self.touch(|wire| wire.peer_finished = true);
    }

    /// Resets the connection.
    pub fn reset(&self) {
        self.touch(|wire| wire.reset = true);
    }

    /// Whether the server has ended the connection, in whatever way.
    pub fn is_over(&self) -> bool {
        self.wire(|wire| wire.over)
    }

    /// Whether the server ended it at once instead of in order.
    pub fn was_aborted(&self) -> bool {
        self.wire(|wire| wire.aborted)
    }
}

//! An NBD client: connects, keeps up to 16 requests under way on the export of its choice, leaves in order or not, and
//! tells the oracle what it sent and what came back.

pub mod raw;
mod replies;

use std::collections::BTreeMap;

use ironthread::export::nbd::wire::{RequestHeader, command, command_flag};
use ironthread::net::stream::ByteStream;

use crate::network;
use crate::oracle::{Oracle, Range, SECTOR, fill};
use crate::random::{Random, Trace};

/// Most requests under way.
pub const DEPTH: usize = 16;

/// What a disk's errors and the client's answers have to agree on.
pub struct Faults {
    /// Things that went wrong on each disk so far.
    pub count: [u64; crate::life::DISKS],
    /// Disks that were reset, or asked for it: then a flush can fail without being tried.
    pub reset: [bool; crate::life::DISKS],
    /// When a client was told that a flush failed, and nobody has cleared the disk since (DUR-5).
    pub latched: [Option<u64>; crate::life::DISKS],
    /// When an operator last cleared the disk.
    pub cleared: [u64; crate::life::DISKS],
}

struct Op {
    id: u64,
    command: u16,
    fua: bool,
    range: Range,
    sent: u64,
    /// The disk lost its cache meanwhile: what a read finds may be gone from the histories.
    unchecked: bool,
    data: Vec<u8>,
    error: u32,
}

/// A change whose client has gone.
struct Orphan {
    export: usize,
    ended: u64,
    op: u64,
    range: Range,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Idle,
    Greeting,
    Options,
    Transmission,
    /// It has said that it leaves, and waits for the server's end.
    Leaving,
}

/// One client.
pub struct Client {
    number: usize,
    pub phase: Phase,
    slot: usize,
    pub export: usize,
    name: String,
    /// Which disk the export is on.
    disk: usize,
    /// In sectors, when it connected.
    size: u64,
    block: u64,
    stride: u64,
    structured: bool,
    outbox: Vec<u8>,
    read: usize,
    next_cookie: u64,
    ops: BTreeMap<u64, Op>,
    /// What was under way when the last connection broke, to write over it at once.
    hot: Vec<Range>,
    hot_left: usize,
    /// When it last asked for a connection.
    opened: u64,
    /// Changes of connections that ended, whose outcome nobody will say.
    orphans: Vec<Orphan>,
    /// Requests answered, and of these with an error.
    pub answered: u64,
    pub errors: u64,
}

/// What a client connects to.
pub struct Target<'a> {
    pub export: usize,
    pub name: &'a str,
    pub disk: usize,
    /// Sectors of a logical block.
    pub block: u64,
    /// As in [`part`].
    pub stride: u64,
}

/// What the client needs of the world.
pub struct Around<'a> {
    pub random: &'a mut Random,
    pub trace: &'a mut Trace,
    pub oracle: &'a mut Oracle,
    pub faults: &'a mut Faults,
    pub next_version: &'a mut u32,
    pub next_op: &'a mut u64,
    /// No new requests.
    pub stopping: bool,
    /// Nobody asks for anything to be durable.
    pub careless: bool,
}

/// What the world has to do for a client.
pub enum Wish {
    Nothing,
    /// Connect: call [`Client::opened`] with the slot.
    Connect,
    /// It was admitted to an export, and had asked at that time: call [`Client::settle`] on all.
    Admitted {
        export: usize,
        opened: u64,
    },
}

impl Client {
    pub fn new(number: usize) -> Self {
        Self {
            number,
            phase: Phase::Idle,
            slot: 0,
            export: 0,
            name: String::new(),
            disk: 0,
            size: 0,
            block: 1,
            stride: 0,
            structured: false,
            outbox: Vec::new(),
            read: 0,
            next_cookie: 1,
            ops: BTreeMap::new(),
            hot: Vec::new(),
            hot_left: 0,
            opened: 0,
            orphans: Vec::new(),
            answered: 0,
            errors: 0,
        }
    }

    /// Requests under way.
    pub fn depth(&self) -> usize {
        self.ops.len()
    }

    /// Whether a write with FUA, or a flush, is under way.
    pub fn has(&self, wanted: fn(u16, bool) -> bool) -> bool {
        self.ops.values().any(|op| wanted(op.command, op.fua))
    }

    /// A disk lost its cache.
    pub fn disk_forgot(&mut self, disk: usize) {
        for op in self.ops.values_mut().filter(|op| op.range.disk == disk) {
            op.unchecked = true;
        }
    }

    /// Connected on `slot`.
    pub fn opened(&mut self, slot: usize, target: Target<'_>, structured: bool, now: u64) {
        assert!(self.ops.is_empty());
        self.slot = slot;
        self.export = target.export;
        self.name = target.name.into();
        self.disk = target.disk;
        self.block = target.block;
        self.stride = target.stride;
        self.structured = structured;
        self.opened = now;
        self.phase = Phase::Greeting;
        self.outbox.clear();
        self.read = 0;
    }

    /// One of its moves, by chance.
    pub fn step(&mut self, around: &mut Around<'_>) -> Result<Wish, String> {
        if self.phase == Phase::Idle {
            // Sometimes at once: before what it left behind is over.
            let connects = !around.stopping && around.random.chance(1, 3);
            return Ok(if connects {
                Wish::Connect
            } else {
                Wish::Nothing
            });
        }
        self.pump(around.random);
        let wish = self.take_all(around)?;
        let over = network::wire(self.slot, |wire| wire.over);
        if over {
            self.ended(around);
            return Ok(wish);
        }
        if self.phase == Phase::Transmission {
            if around.stopping {
                if self.ops.is_empty() {
                    self.leave(around);
                }
            } else if around.random.chance(1, 50) {
                self.break_off(around);
            } else {
                for _ in 0..1 + around.random.below(3) {
                    if self.ops.len() < DEPTH && around.random.chance(2, 3) {
                        self.issue(around);
                    }
                }
            }
        }
        self.pump(around.random);
        Ok(wish)
    }

    /// Moves some of what it has to send to the server, and opens the window.
    fn pump(&mut self, random: &mut Random) {
        let mut part = self.outbox.len();
        if part > 0 && random.chance(1, 3) {
            part = 1 + random.below(part);
        }
        // Mostly all at once, sometimes in crumbs.
        let window = [usize::MAX, 4096, 100][random.below(24).saturating_sub(21)];
        let lend = [usize::MAX, 1000, 13][random.below(24).saturating_sub(21)];
        let moved = network::wire(self.slot, |wire| {
            wire.to_server.extend(self.outbox.drain(..part));
            let opened = window > wire.window && wire.unsent() > 0;
            wire.window = window;
            wire.lend = lend;
            part > 0 || opened
        });
        // A server that sleeps is woken by what happens on the connection, and by nothing else.
        if moved {
            network::wake(self.slot);
        }
    }

    /// The connection ends, in order or not, with requests under way or not.
    fn break_off(&mut self, around: &mut Around<'_>) {
        match around.random.below(5) {
            0 => self.leave(around),
            1 => {
                around
                    .trace
                    .note("client finishes", [self.number as u64, 0, 0, 0]);
                network::wire(self.slot, |wire| wire.peer_finished = true);
                self.phase = Phase::Leaving;
            }
            _ => {
                around
                    .trace
                    .note("client resets", [self.number as u64, 0, 0, 0]);
                network::wire(self.slot, |wire| wire.reset = true);
                self.phase = Phase::Leaving;
            }
        }
        network::wake(self.slot);
    }

    fn leave(&mut self, around: &mut Around<'_>) {
        around
            .trace
            .note("client leaves", [self.number as u64, 0, 0, 0]);
        self.request(command::DISC, 0, 0, 0, 0);
        self.phase = Phase::Leaving;
    }

    /// The server has ended the connection.
    fn ended(&mut self, around: &mut Around<'_>) {
        around.trace.note(
            "client ended",
            [self.number as u64, self.ops.len() as u64, 0, 0],
        );
        self.hot.clear();
        self.hot_left = 2 * DEPTH;
        let ended = around.oracle.now();
        for op in std::mem::take(&mut self.ops).into_values() {
            if is_change(op.command) {
                self.orphans.push(Orphan {
                    export: self.export,
                    ended,
                    op: op.id,
                    range: op.range,
                });
                self.hot.push(op.range);
            }
        }
        self.phase = Phase::Idle;
        network::release(self.slot);
    }

    /// Somebody who asked at `opened` was admitted to `export`: nothing can come any more of what ended before (DUR-9).
    pub fn settle(&mut self, export: usize, opened: u64, oracle: &mut Oracle) {
        self.orphans.retain(|orphan| {
            let over = orphan.export == export && orphan.ended < opened;
            if over {
                oracle.done(orphan.op, orphan.range, false, false);
            }
            !over
        });
    }

    fn request(&mut self, command: u16, flags: u16, cookie: u64, offset: u64, length: u32) {
        let header = RequestHeader {
            flags,
            command,
            cookie,
            offset,
            length,
        };
        self.outbox.extend(header.emit());
    }

    fn place(&mut self, random: &mut Random) -> Range {
        if self.hot_left > 0 && !self.hot.is_empty() {
            self.hot_left -= 1;
            let range = self.hot[random.below(self.hot.len())];
            if range.disk == self.disk && range.first + range.count <= self.size {
                return range;
            }
        }
        let (low, blocks) = part(random, self.size, self.stride);
        let blocks = blocks / self.block;
        let most = match random.below(20) {
            0 => blocks,
            1..4 => 64.min(blocks),
            _ => 4.min(blocks),
        };
        let count = 1 + random.below(most as usize) as u64;
        // Few places, so that requests meet.
        let span = if random.chance(1, 2) {
            blocks
        } else {
            blocks.min(count + 12)
        };
        let first = random.below((span - count + 1) as usize) as u64;
        Range {
            disk: self.disk,
            first: low + first * self.block,
            count: count * self.block,
        }
    }

    fn issue(&mut self, around: &mut Around<'_>) {
        let random = &mut *around.random;
        let kind = match random.below(100) {
            72..82 if around.careless => command::WRITE,
            0..30 => command::READ,
            30..72 => command::WRITE,
            72..82 => command::FLUSH,
            82..90 => command::WRITE_ZEROES,
            90..97 => command::TRIM,
            _ => command::CACHE,
        };
        let range = if kind == command::FLUSH {
            Range {
                disk: self.disk,
                first: 0,
                count: 0,
            }
        } else {
            self.place(random)
        };
        let fua = match kind {
            command::READ => random.chance(1, 20),
            command::FLUSH | command::CACHE => false,
            _ if around.careless => false,
            _ => random.chance(1, 5),
        };
        let mut flags = if fua { command_flag::FUA } else { 0 };
        if kind == command::WRITE_ZEROES && random.chance(1, 2) {
            flags |= command_flag::NO_HOLE;
        }
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let sent = around.oracle.now();
        let id = *around.next_op;
        *around.next_op += 1;
        around.trace.note(
            "send",
            [
                self.number as u64 | u64::from(kind) << 8 | u64::from(flags) << 16,
                range.first,
                range.count,
                cookie,
            ],
        );
        let bytes = range.count as usize * SECTOR;
        self.request(
            kind,
            flags,
            cookie,
            range.first * SECTOR as u64,
            bytes as u32,
        );
        if is_change(kind) {
            let mut version = 0;
            if kind == command::WRITE {
                version = *around.next_version;
                *around.next_version += 1;
                let start = self.outbox.len();
                self.outbox.resize(start + bytes, 0);
                for (i, sector) in self.outbox[start..].chunks_exact_mut(SECTOR).enumerate() {
                    fill(sector, range.disk, range.first + i as u64, version);
                }
            }
            around.oracle.sent(id, range, version, sent);
        }
        self.ops.insert(
            cookie,
            Op {
                id,
                command: kind,
                fua,
                range,
                sent,
                unchecked: false,
                data: vec![0; if kind == command::READ { bytes } else { 0 }],
                error: 0,
            },
        );
    }
}

/// Which part of so many sectors requests go to, as its first sector and their number. With a `stride` only a few around each
/// multiple of it are used, so that requests meet on an array that is much larger than they need.
fn part(random: &mut Random, sectors: u64, stride: u64) -> (u64, u64) {
    const BEFORE: u64 = 32;
    const USED: u64 = 96;
    if stride == 0 {
        return (0, sectors);
    }
    let low = stride * random.below(sectors.div_ceil(stride) as usize) as u64;
    let low = low.saturating_sub(BEFORE);
    (low, USED.min(sectors - low))
}

fn is_change(command: u16) -> bool {
    matches!(
        command,
        command::WRITE | command::WRITE_ZEROES | command::TRIM
    )
}

/// What an answer proves, and whether it may be.
fn prove(who: &str, op: &Op, around: &mut Around<'_>) -> Result<(), String> {
    let disk = op.range.disk;
    let ok = op.error == 0;
    if is_change(op.command) {
        let sure = ok && op.command != command::TRIM;
        around.oracle.done(op.id, op.range, sure, op.fua);
    }
    if !ok {
        if around.faults.count[disk] == 0 {
            return Err(format!(
                "{who}: error {} of request {} although nothing went wrong",
                op.error, op.command
            ));
        }
        // A flush can fail for other reasons while the disk is reset; what was asked before an operator cleared it, too.
        if op.command == command::FLUSH
            && !around.faults.reset[disk]
            && op.sent > around.faults.cleared[disk]
        {
            let now = around.oracle.now();
            around.faults.latched[disk].get_or_insert(now);
        }
        return Ok(());
    }
    let latched = around.faults.latched[disk].is_some_and(|at| at < op.sent);
    if latched && (is_change(op.command) || op.command == command::FLUSH) {
        return Err(format!(
            "{who}: request {} succeeded although a flush had failed (DUR-5)",
            op.command
        ));
    }
    if op.command == command::FLUSH || op.fua && op.command == command::READ {
        around.oracle.flushed(disk, op.sent);
    }
    for (i, sector) in op.data.chunks_exact(SECTOR).enumerate() {
        let lba = op.range.first + i as u64;
        if op.unchecked {
            crate::oracle::parse(sector, disk, lba)?;
        } else {
            around.oracle.may_read(disk, lba, sector, op.sent)?;
        }
    }
    Ok(())
}

//! The copy-before-write node: what is about to be overwritten goes to a target first.
//!
//! A filter above a source. From the moment that it stands between the source and its users, the target holds, cluster by cluster, what
//! the source held at that moment: a write waits until the old data of every cluster that it touches are on the target. A backup job
//! copies the rest ([`copier`]).
//!
//! ```text
//!   client's write ──▶ clusters left? ──no──────────────────────────────▶ source
//!                          │ yes                                           ▲
//!                          ▼                                               │ none is left
//!                      Tracked: alone in its clusters ──▶ read the source, write the target, a cluster is done
//!                          ▲
//!   job's copy ────────────┘ (one cluster, in the job's own memory)
//! ```
//! The copies of clients and of the job exclude each other by cluster, so each is copied once. A cluster counts as done only when its
//! data are on the target; until then nothing is written there, and from then on nobody waits for it. Reads, flushes and writes to
//! clusters that are done pass.
//!
//! A copy for a client that fails either fails the write ([`OnError::BreakWrite`]: the image stays good, the client suffers) or breaks
//! the image ([`OnError::BreakCopy`]: from then on everything passes, and [`broken`] says why).
//!
//! Any core. A client's copy needs a spare record, and memory of the node's: who finds none waits, first come first served; memory is
//! held only while source and target work, so it comes back.
#![forbid(unsafe_code)]

mod copier;
mod driver;
mod options;

use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use spin::mutex::SpinMutex;

pub use copier::{broken, cluster, left, next_copy, set_copier, side_of};
pub use options::{OnError, Options, check, create};

use super::instance::Place;
use super::{Ascent, Layer};
use crate::arch;
use crate::block::bitmap::Bitmap;
use crate::block::graph::{self, Link};
use crate::block::request::{RequestFlags, RequestRecord, complete};
use crate::block::tracked::{PLACE_MASK, PLACES, Tracked};
use crate::block::{BlockError, Operation, Request, RequestQueue};
use crate::config::{COPY_BEFORE_WRITE_PAGES, COPY_BEFORE_WRITES, COPY_CHUNK};
use crate::sync::{Buffer, IrqLock, PAGE_SIZE, PageArena};

const _: () = assert!(COPY_CHUNK <= COPY_BEFORE_WRITE_PAGES * PAGE_SIZE);

/// What a frame's stage says, beside the place in the table: the request waits for its turn or for memory; a copy reads; it writes.
const WAITING: u8 = 0x40;
const READING: u8 = 0x80;
const WRITING: u8 = 0xc0;

/// Where a copy failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The old data could not be read.
    Source,
    /// They could not be written.
    Target,
}

/// A filter that saves what is overwritten.
pub struct CopyBeforeWrite {
    place: Place,
    /// The source, the target.
    links: [Link; 2],
    /// Bytes of a cluster as asked for, and as they are.
    wanted: AtomicU64,
    cluster: AtomicU64,
    size: AtomicU64,
    /// What the target can take: bytes, and the multiple that a write must be of.
    target_size: AtomicU64,
    target_block: AtomicU32,
    /// Spare records that either child needs.
    below: AtomicU32,
    break_write: AtomicBool,
    /// Side and code of the error that broke the image; 0: none did.
    broken: AtomicU32,
    /// Number of the backend whose reads are copies, plus one; 0: none's.
    copier: AtomicU32,
    /// The image has begun: what is left is known.
    begun: AtomicBool,
    /// Clusters that are not on the target yet.
    left: IrqLock<Bitmap>,
    tracked: Tracked,
    /// Clients' writes whose old data are being copied, by place.
    clients: IrqLock<[Option<Request>; PLACES]>,
    /// Writes that wait for memory.
    line: SpinMutex<RequestQueue>,
    pages: PageArena<COPY_BEFORE_WRITE_PAGES>,
}

static ARENA: [CopyBeforeWrite; COPY_BEFORE_WRITES] =
    [const { CopyBeforeWrite::new() }; COPY_BEFORE_WRITES];

impl CopyBeforeWrite {
    const fn new() -> Self {
        Self {
            place: Place::new(),
            links: [Link::new(), Link::new()],
            wanted: AtomicU64::new(0),
            cluster: AtomicU64::new(0),
            size: AtomicU64::new(0),
            target_size: AtomicU64::new(0),
            target_block: AtomicU32::new(0),
            below: AtomicU32::new(0),
            break_write: AtomicBool::new(false),
            broken: AtomicU32::new(0),
            copier: AtomicU32::new(0),
            begun: AtomicBool::new(false),
            left: IrqLock::new(Bitmap::new()),
            tracked: Tracked::new(),
            clients: IrqLock::new([const { None }; PLACES]),
            line: SpinMutex::new(RequestQueue::new()),
            pages: PageArena::new(),
        }
    }

    /// The clusters that a range touches.
    fn clusters(&self, offset: u64, len: u64) -> Range<u64> {
        let cluster = self.cluster.load(Ordering::Relaxed);
        let end = offset.saturating_add(len).next_multiple_of(cluster);
        offset & !(cluster - 1)..end.min(self.size.load(Ordering::Relaxed))
    }

    fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed) != 0
    }

    /// Enters a request, which then has the clusters that it touches for itself.
    #[cold]
    fn enter(&'static self, mut request: Request) {
        let Some(core) = arch::current_core() else {
            return complete(request, Err(BlockError::Invalid));
        };
        if !request.push_frame(self, core, WAITING) {
            return complete(request, Err(BlockError::NoMemory));
        }
        // While it waits its window is that of its clusters; the frame holds its own.
        let clusters = self.clusters(request.offset, request.len);
        request.offset = clusters.start;
        request.len = clusters.end - clusters.start;
        if let Some(request) = self.tracked.begin(request, true) {
            self.turn(request);
        }
    }

    /// It is the request's turn, or there is memory for it, or one of its clusters is done.
    fn turn(&'static self, request: Request) {
        let clusters = self.clusters(request.frame().offset, request.frame().len);
        let next = self.left.lock().next_dirty(clusters.start, 1);
        let next = next
            .map(|range| range.start)
            .filter(|at| clusters.contains(at));
        if request.frame().operation == Operation::Read {
            return self.copy_for_job(request, next);
        }
        match next {
            Some(at) if !self.is_broken() => self.copy_for_client(request, at),
            _ => self.let_go(request, Ok(())),
        }
    }

    /// The job's request copies its cluster itself, in its own memory.
    fn copy_for_job(&'static self, mut request: Request, next: Option<u64>) {
        let (offset, len) = (request.frame().offset, request.frame().len);
        let result = match next {
            _ if self.is_broken() => Err(BlockError::Cancelled),
            // Another's range would take the data of a later cluster for this one's.
            _ if self.clusters(offset, 1).start != offset => Err(BlockError::Invalid),
            _ if self.piece(offset).end != offset + len => Err(BlockError::Invalid),
            None => Ok(()),
            Some(_) => {
                aim(&mut request, Operation::Read, offset..offset + len);
                set_state(&mut request, READING);
                return self.links[0].submit(request);
            }
        };
        complete(self.finished(request, result), result);
    }

    /// Copies the cluster at `at` for a client's write.
    fn copy_for_client(&'static self, mut request: Request, at: u64) {
        let has_memory = request
            .spares
            .as_ref()
            .is_some_and(|spare| !spare.segments.is_empty());
        let mut buffer = None;
        if !has_memory {
            let mut line = self.line.lock();
            if line.is_empty() {
                buffer = self.pages.alloc_contiguous(COPY_CHUNK);
            }
            if buffer.is_none() {
                return line.push(request);
            }
        }
        let below = self.below.load(Ordering::Relaxed) as usize;
        let Some(mut copy) = request.take_spare_with(below) else {
            debug_assert!(false, "the cost of a graph was told wrong");
            return self.let_go(request, Err(BlockError::NoMemory));
        };
        give_memory(&mut copy, buffer);
        let piece = self.piece(at);
        copy.reuse(Operation::Read, piece.start, piece.end - piece.start);
        let (core, stage) = (request.frame().core, request.frame().stage);
        // The first frame of a record always fits.
        let _ = copy.push_frame(self, core.into(), READING | stage & PLACE_MASK);
        self.clients.lock()[usize::from(stage & PLACE_MASK)] = Some(request);
        self.links[0].submit(copy);
    }

    /// The first piece of a cluster to be copied, from `at` on.
    fn piece(&self, at: u64) -> Range<u64> {
        at..self
            .clusters(at, 1)
            .end
            .min(at.saturating_add(COPY_CHUNK as u64))
    }

    /// What a copy has read goes to the target.
    fn write(&'static self, mut copy: Request) -> Ascent {
        let (offset, len) = (copy.offset, copy.len);
        let block = u64::from(self.target_block.load(Ordering::Relaxed));
        if offset + len > self.target_size.load(Ordering::Relaxed) {
            return self.over(copy, Err((Side::Target, BlockError::NoSpace)));
        }
        if (offset | len) & (block - 1) != 0 {
            return self.over(copy, Err((Side::Target, BlockError::Invalid)));
        }
        aim(&mut copy, Operation::Write, offset..offset + len);
        set_state(&mut copy, WRITING);
        self.links[1].submit(copy);
        Ascent::Taken
    }

    /// A piece is on the target: the next one, or the cluster is done.
    fn written(&'static self, mut copy: Request) -> Ascent {
        let cluster = self.clusters(copy.offset, 1);
        let next = copy.offset + copy.len;
        if next < cluster.end {
            let piece = self.piece(next);
            aim(&mut copy, Operation::Read, piece);
            set_state(&mut copy, READING);
            self.links[0].submit(copy);
            return Ascent::Taken;
        }
        self.left.lock().clear(cluster);
        self.over(copy, Ok(()))
    }

    /// A copy is over, well or not.
    fn over(&'static self, mut copy: Request, result: Result<(), (Side, BlockError)>) -> Ascent {
        let place = usize::from(copy.frame().stage & PLACE_MASK);
        let client = self.clients.lock()[place].take();
        let Some(mut client) = client else {
            if let Err((side, _)) = result {
                copier::note_side(&mut copy, side);
            }
            let result = result.map_err(|(_, error)| error);
            return Ascent::Up(self.finished(copy, result));
        };
        copy.leave();
        client.give_spare(copy);
        match result {
            Err((_, error)) if self.break_write.load(Ordering::Relaxed) => {
                self.let_go(client, Err(error));
            }
            Err((side, error)) => {
                self.break_image(side, error);
                self.let_go(client, Ok(()));
            }
            Ok(()) => self.turn(client),
        }
        Ascent::Taken
    }

    /// Nothing of the client's is left to copy: its write goes on, or is answered with an error.
    fn let_go(&'static self, mut request: Request, result: Result<(), BlockError>) {
        let memory = request
            .spares
            .as_mut()
            .and_then(|spare| spare.take_buffer());
        if memory.is_some() {
            drop(memory);
            self.memory_is_free();
        }
        let request = self.finished(request, result);
        match result {
            Ok(()) => self.links[0].submit(request),
            Err(error) => complete(request, Err(error)),
        }
    }

    /// Takes a request out of the table, and our frame off it.
    fn finished(&'static self, mut request: Request, result: Result<(), BlockError>) -> Request {
        self.tracked.end(request.frame().stage & PLACE_MASK);
        request.leave();
        request.result = result;
        request
    }

    /// Memory is free again: those that wait for it go on, in order.
    fn memory_is_free(&'static self) {
        loop {
            let mut line = self.line.lock();
            let Some(mut request) = line.pop() else {
                return;
            };
            let Some(buffer) = self.pages.alloc_contiguous(COPY_CHUNK) else {
                return line.push_front(request);
            };
            drop(line);
            // The request's own core goes on with it; till then the spare keeps the memory.
            if let Some(mut spare) = request.take_spare() {
                give_memory(&mut spare, Some(buffer));
                request.give_spare(spare);
            }
            complete(request, Ok(()));
        }
    }

    #[cold]
    fn break_image(&self, side: Side, error: BlockError) {
        let code = copier::pack(side, error);
        let first = self
            .broken
            .compare_exchange(0, code, Ordering::Relaxed, Ordering::Relaxed);
        if first.is_ok() {
            let name = self.place.node().and_then(graph::name).unwrap_or_default();
            log::warn!("{name}: no longer copies before it writes: {error}");
        }
    }
}

/// What the frame's stage says of the request, the place in the table apart.
fn set_state(request: &mut RequestRecord, state: u8) {
    let stage = request.stage_mut();
    *stage = *stage & PLACE_MASK | state;
}

/// Makes a copy's record ask for a piece, with the start of its data.
fn aim(copy: &mut RequestRecord, operation: Operation, piece: Range<u64>) {
    copy.operation = operation;
    copy.flags = RequestFlags::empty();
    copy.offset = piece.start;
    copy.len = piece.end - piece.start;
    copy.data_start = copy.frame().data_start;
    copy.zeroes = false;
    copy.result = Ok(());
}

fn give_memory(copy: &mut RequestRecord, buffer: Option<Buffer>) {
    if let Some(buffer) = buffer {
        // A spare has no segments of its own.
        let _ = copy.add_buffer(buffer, COPY_CHUNK);
    }
}

impl Layer for CopyBeforeWrite {
    fn completed(&'static self, request: Request) -> Ascent {
        match (request.frame().stage & !PLACE_MASK, request.result) {
            (READING, Ok(())) => self.write(request),
            (READING, Err(error)) => self.over(request, Err((Side::Source, error))),
            (WRITING, Ok(())) => self.written(request),
            (WRITING, Err(error)) => self.over(request, Err((Side::Target, error))),
            _ => {
                self.turn(request);
                Ascent::Taken
            }
        }
    }
}

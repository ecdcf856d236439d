//! The disk node: a [`BlockDevice`] with the rules that a device does not know.
//!
//! ```text
//!  submit ──▶ (cross to the queue's core) ──▶ window within limits ──▶ device
//!                                                   ▲                     │
//!                       next window ◀── data_done ◀─┴── FIFO when full ◀──┘
//!                                          │
//!                    FUA: join a flush ◀───┴──▶ answer
//! ```
//! | rule | here |
//! |---|---|
//! | DUR-2, DUR-8 | FUA: the record that wrote the data becomes a member of a flush made available after, with the same token |
//! | DUR-3 | `flush`: one device flush a core at a time; what arrives meanwhile joins the next |
//! | DUR-4 | FLUSH offered: always sent; not offered: success without I/O |
//! | DUR-5 | `state`: a failed flush, or a reset with unflushed writes, latches `write-error` |
//! | DUR-7 | nothing is retried but a request that the device's full queue did not take |
//!
//! One request is worked off window by window in its own record: constant space, however small the device's limits.
#![forbid(unsafe_code)]

mod flush;
mod home;
mod registry;
mod state;

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use spin::Once;

pub use registry::{DiskName, DiskView, add_disk, disk, disks, find_disk};
pub(crate) use registry::{report_slow, start};
pub use state::{DiskState, ResetOutcome};

use self::flush::FlushState;
use super::{Ascent, Layer, NodeDriver, NodeId, NodeInfo};
use crate::arch::{self, CoreId};
use crate::block::accounting::{Counter, Counters, Totals};
use crate::block::backend::beyond_end;
use crate::block::device::{BlockDevice, DeviceFeatures, DeviceInfo, Owners};
use crate::block::request::{RequestFlags, RequestRecord, complete};
use crate::block::{BlockError, Operation, Request, RequestQueue};
use crate::config::MAX_CORES;
use crate::sync::{CachePadded, CoreArray, HomeCell};

/// Stages of a frame: the data, a flush that others may share, a share in one.
const DATA: u8 = 0;
const LEADER: u8 = 1;
const MEMBER: u8 = 2;
/// Set in a stage while the device has the request.
const LAUNCHED: u8 = 0x80;

/// What the device can do, checked once; "none" has become the largest value.
struct Limits {
    info: DeviceInfo,
    max_transfer: u64,
    max_segments: usize,
    max_segment_bytes: u64,
    max_discard: u64,
    max_zeroes: u64,
    /// Most bytes of a read or write of any shape of up to `max_segments`.
    max_whole: u64,
}

/// What stands once the disk has its device.
struct Fixed {
    device: &'static dyn BlockDevice,
    limits: Limits,
    /// See [`BlockDevice::owners`].
    owners: Option<&'static Owners>,
    /// For the table of requests in flight.
    mark: u64,
}

/// The part of a disk that belongs to one queue's core.
struct Queue {
    cell: HomeCell<QueueCell>,
    /// Requests that the full queue did not take; the length of `cell.waiting`.
    waiting: AtomicU32,
    /// Requests that the device has.
    launched: AtomicU32,
    /// Writes, zeroes and discards given to the device, and those that came back.
    writes_started: Counter,
    writes_ended: Counter,
    /// Value of `writes_ended` up to which a successful flush covers.
    writes_flushed: AtomicU64,
    flushes: Counter,
    counters: Counters,
}

struct QueueCell {
    waiting: RequestQueue,
    flush: FlushState,
}

impl Queue {
    const fn new() -> Self {
        Self {
            cell: HomeCell::new(QueueCell {
                waiting: RequestQueue::new(),
                flush: FlushState::new(),
            }),
            waiting: AtomicU32::new(0),
            launched: AtomicU32::new(0),
            writes_started: Counter::new(),
            writes_ended: Counter::new(),
            writes_flushed: AtomicU64::new(0),
            flushes: Counter::new(),
            counters: Counters::new(),
        }
    }
}

impl Queue {
    /// The device has given back a request that is no read.
    #[inline(never)]
    fn ended(&self, operation: Operation) {
        if operation.is_write() {
            self.writes_ended.add(1);
        }
    }
}

/// A disk. Static; made by [`add_disk`].
pub struct Disk {
    fixed: Once<Fixed>,
    node: Once<NodeId>,
    index: AtomicU32,
    home: AtomicU32,
    moving: home::Moving,
    /// Bytes; changes with the device's configuration.
    capacity: AtomicU64,
    /// See [`state`].
    state: AtomicU32,
    /// Times that it latched a write error, or would have.
    losses: AtomicU32,
    last_error: AtomicU32,
    /// When an error was last logged, in seconds plus one.
    logged_s: AtomicU32,
    resets: AtomicU32,
    last_reset_s: AtomicU32,
    reported: AtomicBool,
    queues: CoreArray<Queue>,
}

impl Disk {
    pub(crate) const fn new() -> Self {
        Self {
            fixed: Once::new(),
            node: Once::new(),
            index: AtomicU32::new(0),
            home: AtomicU32::new(0),
            moving: home::Moving::new(),
            capacity: AtomicU64::new(0),
            state: AtomicU32::new(0),
            losses: AtomicU32::new(0),
            last_error: AtomicU32::new(0),
            logged_s: AtomicU32::new(0),
            resets: AtomicU32::new(0),
            last_reset_s: AtomicU32::new(0),
            reported: AtomicBool::new(false),
            queues: CoreArray::new([const { CachePadded::new(Queue::new()) }; MAX_CORES]),
        }
    }

    #[inline(always)]
    fn fixed(&self) -> &Fixed {
        match self.fixed.get() {
            Some(fixed) => fixed,
            None => unreachable!("a disk is listed only once it has its device"),
        }
    }

    pub(crate) fn device(&self) -> &'static dyn BlockDevice {
        self.fixed().device
    }

    fn limits(&self) -> &Limits {
        &self.fixed().limits
    }

    fn has(&self, feature: DeviceFeatures) -> bool {
        self.limits().info.features.contains(feature)
    }

    /// Its number: the N of vdN.
    pub fn index(&self) -> usize {
        self.index.load(Ordering::Relaxed) as usize
    }

    /// Counters, summed over the queues.
    pub fn stats(&self) -> Totals {
        let mut totals = Totals::default();
        for queue in self.queues.iter() {
            queue.counters.add_to(&mut totals);
        }
        totals
    }

    /// Flushes that the device was given, all queues: fewer than were asked for when some shared one.
    pub fn device_flushes(&self) -> u64 {
        self.queues.iter().map(|q| q.flushes.get()).sum()
    }

    /// Requests that the device has now.
    pub fn launched(&self) -> u32 {
        self.queues
            .iter()
            .map(|q| q.launched.load(Ordering::Relaxed))
            .sum()
    }

    /// Requests that wait because the device's queue is full.
    pub fn waiting(&self) -> u32 {
        self.queues
            .iter()
            .map(|q| q.waiting.load(Ordering::Relaxed))
            .sum()
    }

    /// The first look at a request that the device may not take as it is, on the queue's core, with our frame on top.
    #[inline(never)]
    fn begin(&'static self, core: CoreId, mut request: Request) {
        match request.operation {
            // What a device takes as it is was launched before.
            Operation::Read | Operation::Write => {}
            Operation::Flush => return self.join_flush(core, request),
            Operation::Discard => {
                if self.refuses(Operation::Discard) {
                    return complete(request, Err(BlockError::Io));
                }
                if !self.has(DeviceFeatures::DISCARD) {
                    return complete(request, Ok(()));
                }
            }
            Operation::WriteZeroes => {
                if !self.has(DeviceFeatures::WRITE_ZEROES) {
                    if request.flags.contains(RequestFlags::FAST_ZERO) {
                        return complete(request, Err(BlockError::NotSupported));
                    }
                    request.operation = Operation::Write;
                    request.zeroes = true;
                } else if !self.has(DeviceFeatures::ZEROES_MAY_UNMAP) {
                    request.flags.remove(RequestFlags::MAY_UNMAP);
                }
            }
        }
        self.launch_window(core, request);
    }

    /// Cuts the window to what the device takes at once, and launches it.
    fn launch_window(&'static self, core: CoreId, mut request: Request) {
        let len = self.window(&request);
        if len == 0 {
            // Segments so small that no whole block fits into what the device takes: only copying could help.
            return complete(request, Err(BlockError::Invalid));
        }
        request.len = len;
        self.launch(core, request);
    }

    /// How much of the request, from its start, the device takes in one piece; a multiple of the logical block.
    fn window(&self, request: &RequestRecord) -> u64 {
        let limits = self.limits();
        let block = u64::from(limits.info.logical_block);
        match request.operation {
            Operation::Flush => 0,
            Operation::Discard => {
                let len = request.len.min(limits.max_discard);
                // A preference that would cut a block in two cannot be kept.
                let align = match u64::from(limits.info.discard_align) {
                    align if align != 0 && align % block == 0 => align,
                    _ => block,
                };
                let end = request.offset + len;
                // All but the last part end at a multiple of what the device likes best, when that leaves anything.
                if len < request.len && end - end % align > request.offset {
                    len - end % align
                } else {
                    len
                }
            }
            Operation::WriteZeroes => request.len.min(limits.max_zeroes),
            Operation::Read | Operation::Write => {
                let most = request.len.min(limits.max_transfer);
                let mut len = 0;
                for piece in request.pieces().take(limits.max_segments) {
                    let part = u64::from(piece.len).min(limits.max_segment_bytes);
                    len += part;
                    if len >= most || part < u64::from(piece.len) {
                        break;
                    }
                }
                let len = len.min(most);
                len - len % block
            }
        }
    }

    /// Gives the window to the device, or queues it behind those that its full queue did not take.
    #[inline]
    fn launch(&'static self, core: CoreId, request: Request) {
        let queue = self.queues.get(core);
        if queue.waiting.load(Ordering::Relaxed) != 0 {
            return self.wait(core, request, false);
        }
        if let Err(request) = self.try_launch(self.fixed(), queue, request) {
            self.wait(core, request, false);
        }
    }

    /// `Err`: the queue is full.
    #[inline(always)]
    fn try_launch(
        &'static self,
        fixed: &Fixed,
        queue: &Queue,
        mut request: Request,
    ) -> Result<(), Request> {
        let operation = request.operation;
        if self.refuses(operation) {
            return refuse(request, BlockError::Io);
        }
        if request.offset + request.len > self.capacity.load(Ordering::Relaxed) {
            return refuse(request, beyond_end(operation));
        }
        *request.stage_mut() |= LAUNCHED;
        let launched = queue.launched.load(Ordering::Relaxed);
        queue.launched.store(launched + 1, Ordering::Relaxed);
        if operation.is_write() {
            queue.writes_started.add(1);
        }
        let Err(mut request) = fixed.device.submit(request) else {
            return Ok(());
        };
        queue.launched.store(launched, Ordering::Relaxed);
        if operation.is_write() {
            queue.writes_started.add(u64::MAX);
        }
        *request.stage_mut() &= !LAUNCHED;
        Err(request)
    }

    #[cold]
    #[inline(never)]
    fn wait(&self, core: CoreId, request: Request, front: bool) {
        let queue = self.queues.get(core);
        let len = queue.cell.with(|cell| {
            if front {
                cell.waiting.push_front(request);
            } else {
                cell.waiting.push(request);
            }
            cell.waiting.len()
        });
        queue.waiting.store(len as u32, Ordering::Relaxed);
    }

    /// A place in the device's queue is free: those that wait try again, in order.
    #[cold]
    fn pump(&'static self, core: CoreId) {
        let queue = self.queues.get(core);
        loop {
            let (request, left) = queue
                .cell
                .with(|cell| (cell.waiting.pop(), cell.waiting.len()));
            queue.waiting.store(left as u32, Ordering::Relaxed);
            let Some(request) = request else { return };
            if let Err(request) = self.try_launch(self.fixed(), queue, request) {
                return self.wait(core, request, true);
            }
        }
    }

    /// A window, or all there was to do, has ended.
    fn data_done(&'static self, core: CoreId, mut request: Request) -> Ascent {
        let frame = request.frame();
        if request.result.is_ok() && frame.stage & LAUNCHED != 0 {
            let next = request.offset + request.len;
            let end = frame.offset + frame.len;
            if next < end {
                *request.stage_mut() = DATA;
                request.set_window(next, end - next);
                self.launch_window(core, request);
                return Ascent::Taken;
            }
            if frame.flags.contains(RequestFlags::FUA)
                && frame.operation.is_write()
                && self.writeback()
            {
                self.join_flush(core, request);
                return Ascent::Taken;
            }
        }
        self.finish(core, request)
    }

    fn finish(&self, core: CoreId, mut request: Request) -> Ascent {
        let launched = request.frame().stage & LAUNCHED != 0;
        request.leave();
        let counters = &self.queues.get(core).counters;
        counters.book(request.operation, request.len, request.result);
        if let (Err(error), true) = (request.result, launched) {
            // The device's own: what was refused before it got there is the client's, or a consequence.
            self.note_error(&request, error);
        }
        Ascent::Up(request)
    }

    fn writeback(&self) -> bool {
        self.has(DeviceFeatures::FLUSH)
    }
}

/// Answers a request that the device does not get.
#[cold]
#[inline(never)]
fn refuse(request: Request, error: BlockError) -> Result<(), Request> {
    complete(request, Err(error));
    Ok(())
}

impl Disk {
    /// Everything but a read or write that succeeded in one piece.
    #[inline(never)]
    fn completed_slowly(&'static self, core: CoreId, stage: u8, request: Request) -> Ascent {
        match stage & !LAUNCHED {
            DATA => self.data_done(core, request),
            LEADER => self.flush_done(core, request),
            _ => self.finish(core, request),
        }
    }
}

impl Layer for Disk {
    fn completed(&'static self, mut request: Request) -> Ascent {
        let frame = request.frame();
        let (core, stage) = (frame.core as CoreId, frame.stage);
        let queue = self.queues.get(core);
        if stage & LAUNCHED != 0 {
            let launched = queue.launched.load(Ordering::Relaxed);
            queue
                .launched
                .store(launched.wrapping_sub(1), Ordering::Relaxed);
            if request.operation != Operation::Read {
                queue.ended(request.operation);
            }
            if queue.waiting.load(Ordering::Relaxed) != 0 {
                self.pump(core);
            }
        }
        let frame = request.frame();
        if stage != (DATA | LAUNCHED)
            || request.result.is_err()
            || frame.offset + frame.len != request.offset + request.len
            || frame.flags.contains(RequestFlags::FUA)
        {
            return self.completed_slowly(core, stage, request);
        }
        request.leave();
        queue.counters.book(request.operation, request.len, Ok(()));
        Ascent::Up(request)
    }
}

impl NodeDriver for Disk {
    fn info(&self) -> NodeInfo {
        let info = &self.limits().info;
        NodeInfo {
            kind: "disk",
            size: self.capacity.load(Ordering::Relaxed),
            logical_block: info.logical_block,
            physical_block: info.physical_block.max(info.logical_block),
            optimal_io: info.optimal_io,
            discard_align: info.discard_align,
            read_only: info.features.contains(DeviceFeatures::READ_ONLY),
            discard: info.features.contains(DeviceFeatures::DISCARD),
            fast_zeroes: info.features.contains(DeviceFeatures::WRITE_ZEROES),
            writeback: self.writeback(),
            cost: 0,
            depth: 1,
        }
    }

    fn drain_poll(&'static self) -> bool {
        self.is_moving()
    }

    fn check_context(&'static self, core: CoreId) -> Result<(), BlockError> {
        self.check_home(core)
    }

    fn cancel_context(&'static self) {
        self.stay();
    }

    fn attach_context(&'static self, core: CoreId) {
        self.follow(core);
    }

    /// A disk of the machine stays; one that only a test made may go.
    fn deletable(&self) -> bool {
        disk(self.index()).is_none_or(|listed| !core::ptr::eq(listed, self))
    }

    fn losses(&'static self) -> u32 {
        self.losses.load(Ordering::Acquire)
    }

    fn submit(&'static self, mut request: Request) {
        let Some(core) = arch::current_core() else {
            return complete(request, Err(BlockError::Invalid));
        };
        let fixed = self.fixed();
        let target = match fixed.owners {
            Some(owners) => CoreId::from(owners[core % MAX_CORES].load(Ordering::Relaxed)),
            None => fixed.device.submitter(core),
        };
        if target != core {
            return self.cross(core, request);
        }
        if let Some(token) = &request.token {
            token.at_disk(fixed.mark);
        }
        if !request.push_frame(self, core, DATA) {
            return complete(request, Err(BlockError::NoMemory));
        }
        let limits = &fixed.limits;
        if !request.operation.has_data()
            || request.len > limits.max_whole
            || request.segments.len() > limits.max_segments
        {
            return self.begin(core, request);
        }
        let queue = self.queues.get(core);
        if queue.waiting.load(Ordering::Relaxed) != 0 {
            return self.wait(core, request, false);
        }
        if let Err(request) = self.try_launch(fixed, queue, request) {
            self.wait(core, request, false);
        }
    }
}

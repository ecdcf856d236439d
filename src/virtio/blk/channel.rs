//! One request queue of a disk, on the core that owns it: from requests to chains and back.
//!
//! Everything here runs on the owner, from the loop, and calls nobody back: [`complete`](crate::block::complete) only puts a request on the
//! core's list of finished ones, whose bottom half runs the completions. So the walk of the used ring cannot be
//! entered again from within.
use super::config::{self, kind};
use crate::block::{self, BlockError, Operation, Request, RequestFlags};
use crate::config::{MAX_CORES, MAX_SEGMENTS};
use crate::virtio::dma::{DmaArena, DmaRegion};
use crate::virtio::queue::{DeviceFault, Piece, QueueConfig, QueueFull, VirtQueue};
use crate::virtio::transport::SetupError;
use core::ptr::NonNull;

/// Descriptors of the longest request: header, data, status.
pub(super) const CHAIN: u16 = MAX_SEGMENTS as u16 + 2;

/// What goes with each request besides data, in memory that the device reaches. A cache line of its own, so that
/// the device's status byte of one request does not move another request's header about.
#[repr(C, align(64))]
struct Header {
    kind: u32,
    reserved: u32,
    sector: u64,
    /// Discard and write-zeroes: the range.
    range_sector: u64,
    range_count: u32,
    range_flags: u32,
    status: u8,
}

const HEADER: u64 = 0;
const RANGE: u64 = 16;
const STATUS: u64 = 32;

const _: () = {
    assert!(core::mem::offset_of!(Header, range_sector) == RANGE as usize);
    assert!(core::mem::offset_of!(Header, status) == STATUS as usize);
};

/// Bytes of the arena that a queue of `depth` entries takes here, at most, besides the ring.
const fn extra_bytes(depth: u16) -> usize {
    depth as usize * (size_of::<Header>() + size_of::<Option<Request>>()) + 128
}

/// Bytes of the arena that a disk's queue of `depth` entries takes, at most.
pub(super) const fn bytes(depth: u16, config: &QueueConfig) -> usize {
    VirtQueue::bytes(depth, config) + extra_bytes(depth)
}

/// A queue with headers and requests in flight, one of each a head.
pub(super) struct Channel {
    pub(super) queue: VirtQueue,
    headers: NonNull<Header>,
    requests: NonNull<Option<Request>>,
    lane: u8,
    /// Interrupts are off because the loop polls.
    pub(super) polling: bool,
    /// Between the beginning of a reset and its end: nothing goes to the device, nothing is taken from it.
    pub(super) stopped: bool,
}

// SAFETY: the pointers are to memory carved for this channel alone; requests may move between cores.
unsafe impl Send for Channel {}

/// How a walk of the used ring ended.
pub(super) enum Walk {
    /// Everything taken.
    Done,
    /// The device lied.
    Fault(DeviceFault),
}

impl Channel {
    /// Adds headers and a table of requests to `queue`.
    pub(super) fn new(lane: usize, queue: VirtQueue, arena: &DmaArena) -> Result<Self, SetupError> {
        let depth = usize::from(queue.depth());
        let carve = |bytes, align| arena.carve(bytes, align).ok_or(SetupError::NoMemory);
        let headers: DmaRegion = carve(depth * size_of::<Header>(), 64)?;
        let requests: NonNull<Option<Request>> = carve(
            depth * size_of::<Option<Request>>(),
            align_of::<Option<Request>>(),
        )?
        .pointer()
        .cast();
        for i in 0..depth {
            // SAFETY: inside the piece just carved, which is aligned for the type.
            unsafe { requests.add(i).write(None) }
        }
        Ok(Self {
            queue,
            headers: headers.pointer().cast(),
            requests,
            lane: lane as u8,
            polling: false,
            stopped: false,
        })
    }

    /// Which of the disk's queues it is.
    #[inline(always)]
    pub(super) fn lane(&self) -> usize {
        usize::from(self.lane) % MAX_CORES
    }

    /// Nobody waits for anything of it.
    pub(super) fn is_idle(&self) -> bool {
        self.queue.in_flight() == 0 && self.queue.staged() == 0
    }

    #[inline(always)]
    fn request(&mut self, head: u16) -> &mut Option<Request> {
        debug_assert!(head < self.queue.depth());
        // SAFETY: heads come from the queue, which keeps them below its depth, for which the table was made and
        // filled; `&mut self` makes it the only reference.
        unsafe { self.requests.add(usize::from(head)).as_mut() }
    }

    /// Puts `request` into its place in the table, which is empty.
    #[inline(always)]
    fn keep(&mut self, head: u16, request: Request) {
        let before = self.request(head).replace(request);
        debug_assert!(before.is_none());
        // There is none; said so, nothing need be dropped on the path of every request.
        core::mem::forget(before);
    }

    #[inline(always)]
    fn header(&self, head: u16) -> NonNull<Header> {
        debug_assert!(head < self.queue.depth());
        // SAFETY: as in `request`.
        unsafe { self.headers.add(usize::from(head)) }
    }

    /// Writes the header of the request that will get `head`, which the device does not have.
    #[inline(always)]
    pub(super) fn set_header(&mut self, head: u16, kind: u32, sector: u64) -> u64 {
        let header = self.header(head).as_ptr();
        // SAFETY: inside the table; the head is free, so the device neither reads nor writes this header now.
        unsafe {
            (&raw mut (*header).kind).write(kind);
            (&raw mut (*header).sector).write(sector);
            (&raw mut (*header).status).write(config::NO_STATUS);
        }
        crate::arch::dma_address(header.cast_const().cast())
    }

    /// Puts `request` on the ring; the device hears of it with the next publish. `Err`: no room now.
    #[inline(always)]
    pub(super) fn submit(&mut self, request: Request) -> Result<(), Request> {
        let Some(data) = request.only_piece() else {
            return self.submit_other(request);
        };
        if !self.queue.has_room(3) {
            return Err(request);
        }
        // Nearly all: a read or write of one contiguous buffer.
        let read = request.operation == Operation::Read;
        let kind = if read { kind::READ } else { kind::WRITE };
        let base = self.set_header(
            self.queue.next_head(),
            kind,
            request.offset / config::SECTOR,
        );
        let (header, status) = Self::ends(base);
        let data = Piece {
            address: data.dma,
            len: data.len,
            device_writes: read,
        };
        match self.queue.add(&[header, data, status]) {
            Ok(head) => {
                self.keep(head, request);
                Ok(())
            }
            Err(_) => Err(request),
        }
    }

    /// The same for everything else.
    #[inline(never)]
    fn submit_other(&mut self, request: Request) -> Result<(), Request> {
        if !self.queue.has_room(3) {
            return Err(request);
        }
        let head = self.queue.next_head();
        let sector = request.offset / config::SECTOR;
        let added = match request.operation {
            Operation::Read => {
                let base = self.set_header(head, kind::READ, sector);
                self.add_data(base, &request, true)
            }
            Operation::Write => {
                let base = self.set_header(head, kind::WRITE, sector);
                self.add_data(base, &request, false)
            }
            Operation::Flush => {
                // The sector of a flush is reserved.
                let base = self.set_header(head, kind::FLUSH, 0);
                let (header, status) = Self::ends(base);
                self.queue.add(&[header, status])
            }
            Operation::Discard => self.add_range(head, kind::DISCARD, &request, 0),
            Operation::WriteZeroes => {
                let unmap = request.flags.contains(RequestFlags::MAY_UNMAP);
                let flags = if unmap { config::UNMAP } else { 0 };
                self.add_range(head, kind::WRITE_ZEROES, &request, flags)
            }
        };
        match added {
            Ok(head) => {
                self.keep(head, request);
                Ok(())
            }
            Err(_) => Err(request),
        }
    }

    fn add_data(
        &mut self,
        base: u64,
        request: &Request,
        device_writes: bool,
    ) -> Result<u16, QueueFull> {
        let (header, status) = Self::ends(base);
        let data = request.pieces().map(|piece| Piece {
            address: piece.dma,
            len: piece.len,
            device_writes,
        });
        let mut chain: heapless::Vec<Piece, { CHAIN as usize }> = heapless::Vec::new();
        for piece in [header].into_iter().chain(data).chain([status]) {
            if chain.push(piece).is_err() {
                // More than `max_segments` says: a bug of the caller's, whose request waits for ever.
                debug_assert!(false, "more segments than the device takes");
                return Err(QueueFull);
            }
        }
        self.queue.add(&chain)
    }

    fn add_range(
        &mut self,
        head: u16,
        kind: u32,
        request: &Request,
        flags: u32,
    ) -> Result<u16, QueueFull> {
        let base = self.set_header(head, kind, 0);
        let header = self.header(head).as_ptr();
        // The node keeps to the device's limits, which are 32-bit sector counts.
        let count = u32::try_from(request.len / config::SECTOR).unwrap_or(u32::MAX);
        // SAFETY: as in `set_header`.
        unsafe {
            (&raw mut (*header).range_sector).write(request.offset / config::SECTOR);
            (&raw mut (*header).range_count).write(count);
            (&raw mut (*header).range_flags).write(flags);
        }
        self.queue.add(&[
            Piece::read(base + HEADER, 16),
            Piece::read(base + RANGE, 16),
            Piece::write(base + STATUS, 1),
        ])
    }

    /// Takes everything from the used ring and completes it; asks for the next interrupt unless the loop polls.
    #[inline]
    pub(super) fn walk(&mut self) -> Walk {
        if self.stopped {
            return Walk::Done;
        }
        loop {
            if !self.queue.has_event_index() && !self.polling {
                self.queue.disarm();
            }
            loop {
                match self.queue.pop() {
                    Ok(Some(used)) => self.finish(used.head),
                    Ok(None) => break,
                    Err(fault) => {
                        // Said once; the reset that follows makes it well.
                        self.stopped = true;
                        return Walk::Fault(fault);
                    }
                }
            }
            if self.polling || !self.queue.arm() {
                return Walk::Done;
            }
        }
    }

    #[inline(always)]
    fn finish(&mut self, head: u16) {
        let status = self.status(head);
        let Some(request) = self.request(head).take() else {
            return;
        };
        block::complete(request, result(status));
    }

    /// The status byte that the device wrote for a head that was just popped.
    #[inline(always)]
    pub(super) fn status(&self, head: u16) -> u8 {
        // SAFETY: inside the table. Read once, after the barrier in `pop` that follows the used index.
        unsafe { (&raw const (*self.header(head).as_ptr()).status).read_volatile() }
    }

    /// Header and status of a chain whose header lies at `base`.
    #[inline(always)]
    pub(super) fn ends(base: u64) -> (Piece, Piece) {
        (
            Piece::read(base + HEADER, 16),
            Piece::write(base + STATUS, 1),
        )
    }

    /// Whether [`Channel::walk`] would find something.
    #[inline]
    pub(super) fn has_work(&self) -> bool {
        !self.stopped && self.queue.fault().is_none() && self.queue.has_used()
    }

    /// After a confirmed reset: everything that the device had fails, and the ring is new.
    pub(super) fn take_back(&mut self) {
        for head in 0..self.queue.depth() {
            if let Some(request) = self.request(head).take() {
                block::complete(request, Err(BlockError::Io));
            }
        }
        self.queue.recycle();
    }

    /// Asks for the device's serial and waits for it, at most until `deadline_ns`. At boot only, before interrupts.
    /// `Err`: the device does not answer, or lies.
    pub(super) fn serial(&mut self, deadline_ns: u64) -> Result<[u8; 20], SetupError> {
        let mut serial = [0u8; 20];
        let head = self.queue.next_head();
        let base = self.set_header(head, kind::GET_ID, 0);
        // The answer lies in the header of another head, which nobody uses yet.
        let other = self.header((head + 1) % self.queue.depth()).as_ptr();
        let address = crate::arch::dma_address(other.cast_const().cast());
        let chain = [
            Piece::read(base, 16),
            Piece::write(address, 20),
            Piece::write(base + STATUS, 1),
        ];
        self.queue.add(&chain).map_err(|_| SetupError::NoAnswer)?;
        self.queue.disarm();
        self.queue.publish();
        let used = loop {
            match self.queue.pop() {
                Ok(Some(used)) => break used,
                Ok(None) if crate::arch::now_ns() < deadline_ns => crate::arch::relax(),
                _ => return Err(SetupError::NoAnswer),
            }
        };
        self.queue.arm();
        // SAFETY: inside the table; the device has given both headers back.
        let status =
            unsafe { (&raw const (*self.header(used.head).as_ptr()).status).read_volatile() };
        if status == config::OK {
            for (i, byte) in serial.iter_mut().enumerate() {
                // SAFETY: 20 bytes of a header of 64.
                *byte = unsafe { other.cast::<u8>().add(i).read_volatile() };
            }
        }
        Ok(serial)
    }
}

/// Answers a request that the device does not get now.
#[cold]
#[inline(never)]
pub(super) fn refuse(request: Request) -> Result<(), Request> {
    block::complete(request, Err(BlockError::Io));
    Ok(())
}

#[inline(always)]
fn result(status: u8) -> Result<(), BlockError> {
    match status {
        config::OK => Ok(()),
        config::UNSUPPORTED => Err(BlockError::NotSupported),
        // An I/O error, a byte that the device did not write, or nonsense.
        _ => Err(BlockError::Io),
    }
}

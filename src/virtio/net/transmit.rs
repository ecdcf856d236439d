//! The transmit queue and its ring of bytes: see the text of the module above.
//!
//! ```text
//!        tail                     head
//!   ......[hdr frame][hdr frame]...|............
//!         in flight, in order      free: the next frame is written here, or at 0 when it does not fit before the end
//! ```
use core::ptr::NonNull;

use super::header;
use crate::arch;
use crate::config::NET_RING;
use crate::net::device::{Frame, TransmitOffload};
use crate::virtio::dma::DmaRegion;
use crate::virtio::queue::{DeviceFault, Piece, VirtQueue};

/// Frames begin at multiples of this, so that neighbours share no cache line.
const ALIGN: usize = 64;

/// A frame in flight.
#[derive(Clone, Copy)]
struct Sent {
    /// Where the next one may begin.
    end: u32,
    done: bool,
}

/// The queue and the bytes of the frames that it holds.
pub(super) struct Transmitter {
    pub(super) queue: VirtQueue,
    memory: NonNull<u8>,
    size: usize,
    head: usize,
    tail: usize,
    /// Frames in flight, in order, by sequence number.
    sent: [Sent; NET_RING],
    first: usize,
    count: usize,
    /// Sequence number of each head.
    sequence_of: [u16; NET_RING],
    /// Where the frame that is out begins.
    out: Option<usize>,
    /// Longest frame, without the header.
    longest: usize,
    header: usize,
    split: bool,
}

// SAFETY: the memory was carved for this transmitter alone; it may move between cores.
unsafe impl Send for Transmitter {}

impl Transmitter {
    /// Over `memory`, for frames of up to `longest` bytes.
    pub(super) fn new(
        queue: VirtQueue,
        memory: DmaRegion,
        longest: usize,
        long: bool,
        split: bool,
    ) -> Self {
        debug_assert!(memory.len() > longest + header::LONG + ALIGN);
        Self {
            queue,
            memory: memory.pointer(),
            size: memory.len() & !(ALIGN - 1),
            head: 0,
            tail: 0,
            sent: [Sent {
                end: 0,
                done: false,
            }; NET_RING],
            first: 0,
            count: 0,
            sequence_of: [0; NET_RING],
            out: None,
            longest,
            header: if long { header::LONG } else { header::SHORT },
            split,
        }
    }

    /// After a confirmed reset.
    pub(super) fn restart(&mut self) {
        self.queue.recycle();
        self.queue.tell_device();
        (self.head, self.tail, self.first, self.count, self.out) = (0, 0, 0, 0, None);
    }

    /// Notices what the device has sent.
    fn reclaim(&mut self) -> Result<(), DeviceFault> {
        let mut any = false;
        while let Some(used) = self.queue.pop()? {
            any = true;
            let sequence = usize::from(self.sequence_of[usize::from(used.head) % NET_RING]);
            self.sent[sequence % NET_RING].done = true;
        }
        while self.count > 0 && self.sent[self.first % NET_RING].done {
            self.tail = self.sent[self.first % NET_RING].end as usize;
            self.first = (self.first + 1) % NET_RING;
            self.count -= 1;
        }
        if self.count == 0 {
            (self.head, self.tail) = (0, 0);
        }
        if any {
            self.queue.disarm();
        }
        Ok(())
    }

    /// Where a frame of the greatest length fits.
    fn place(&self) -> Option<usize> {
        let need = (self.header + self.longest).next_multiple_of(ALIGN);
        if self.count == NET_RING || !self.queue.has_room(if self.split { 2 } else { 1 }) {
            return None;
        }
        if self.count == 0 {
            return (need <= self.size).then_some(0);
        }
        // `head == tail` with frames in flight is a full ring, which `>` below never lets come about.
        if self.head > self.tail {
            if self.size - self.head >= need {
                return Some(self.head);
            }
            return (self.tail > need).then_some(0);
        }
        (self.tail - self.head > need).then_some(self.head)
    }

    /// A buffer for the next frame; `None`: no room, and an interrupt will say when there is.
    pub(super) fn reserve(&mut self) -> Result<Option<Frame>, DeviceFault> {
        if self.out.is_some() {
            return Ok(None);
        }
        // Before the ring is short, so that the device's answers are looked at in batches.
        while self.place().is_none() {
            self.reclaim()?;
            // What came between the look and the wish may be too little, and taking it takes the wish back: look again.
            // Each round takes something of what is in flight, so this ends.
            if self.place().is_none() && !self.queue.arm() {
                return Ok(None);
            }
        }
        let Some(place) = self.place() else {
            return Ok(None);
        };
        self.out = Some(place);
        // SAFETY: `place` found `header + longest` free bytes there: no frame in flight covers them, and `out` keeps them
        // from being given out twice.
        let bytes = unsafe {
            core::slice::from_raw_parts_mut(
                self.memory.as_ptr().add(place + self.header),
                self.longest,
            )
        };
        Ok(Some(Frame::new(bytes, place as u32)))
    }

    /// Takes a reserved frame back unsent.
    pub(super) fn cancel(&mut self, frame: Frame) {
        if self.out == Some(frame.id() as usize) {
            self.out = None;
        }
    }

    /// Stages the first `len` bytes of a reserved frame.
    pub(super) fn commit(&mut self, frame: Frame, len: usize, offload: TransmitOffload) {
        let place = frame.id() as usize;
        let bytes = frame.into_bytes().as_ptr();
        // SAFETY: only an address is made: `place` is checked to be the one given out.
        let expected =
            |at: usize| unsafe { self.memory.as_ptr().add(at + self.header).cast_const() };
        if self.out != Some(place) || bytes != expected(place) || len > self.longest || len == 0 {
            debug_assert!(false, "a frame was sent that was not reserved");
            return;
        }
        self.out = None;
        let head_bytes = header::for_transmit(&offload);
        // SAFETY: the header's place was reserved with the frame; the slice that covered what follows it is gone.
        unsafe {
            let start = self.memory.as_ptr().add(place);
            core::ptr::copy_nonoverlapping(head_bytes.as_ptr(), start, self.header);
        }
        // SAFETY: only an address is made, inside the memory.
        let address = arch::dma_address(unsafe { self.memory.as_ptr().add(place) });
        let (header, len32) = (self.header as u32, len as u32);
        let added = if self.split {
            self.queue.add(&[
                Piece::read(address, header),
                Piece::read(address + u64::from(header), len32),
            ])
        } else {
            self.queue.add(&[Piece::read(address, header + len32)])
        };
        let Ok(head) = added else {
            // `place` has looked for room.
            debug_assert!(false, "no room for a frame that was reserved");
            return;
        };
        let end = (place + self.header + len).next_multiple_of(ALIGN);
        let sequence = (self.first + self.count) % NET_RING;
        self.sent[sequence] = Sent {
            end: end as u32,
            done: false,
        };
        self.sequence_of[usize::from(head) % NET_RING] = sequence as u16;
        self.count += 1;
        self.head = end;
    }
}

//! The receive queue and its buffers: see the text of the module above.
use core::ptr::NonNull;

use super::header;
use super::words;
use crate::arch;
use crate::config::{NET_RING, NET_RX_BUFFER};
use crate::net::device::{ETHERNET_HEADER, Frame, ReceiveChecksum};
use crate::virtio::dma::DmaRegion;
use crate::virtio::queue::{Piece, Used, VirtQueue};

/// `Frame::id` of a frame that was copied together.
const COPIED: u32 = u32::MAX;

/// Longest frame, header included, that is copied together.
pub(super) const COPY_BYTES: usize = 66_560;

/// The queue, its buffers, and which of them the device has under which head.
pub(super) struct Receiver {
    pub(super) queue: VirtQueue,
    memory: NonNull<u8>,
    /// Buffers in `memory`; all are the device's except those of the frame that is out.
    buffers: usize,
    copy: NonNull<u8>,
    copy_out: bool,
    /// Buffer that each head stands for.
    buffer_of: [u16; NET_RING],
    /// First buffer and number of the frame that is out.
    out: Option<(u16, u16)>,
    header: usize,
    merge: bool,
    /// The header needs a descriptor of its own.
    split: bool,
    /// Frames given to the stack.
    pub(super) frames: u64,
}

// SAFETY: the memory was carved for this receiver alone; it may move between cores.
unsafe impl Send for Receiver {}

/// What is put together from several buffers, or the reason why not.
type Next = Option<(Frame, ReceiveChecksum)>;

impl Receiver {
    /// Over `memory` (for buffers) and `copy` ([`COPY_BYTES`]). The device gets the buffers with [`Receiver::fill`].
    pub(super) fn new(
        queue: VirtQueue,
        memory: DmaRegion,
        copy: DmaRegion,
        merge: bool,
        long: bool,
        split: bool,
    ) -> Self {
        debug_assert!(copy.len() >= COPY_BYTES);
        let chains = usize::from(queue.depth()) / if split { 2 } else { 1 };
        Self {
            buffers: chains.min(memory.len() / NET_RX_BUFFER).min(NET_RING),
            queue,
            memory: memory.pointer(),
            copy: copy.pointer(),
            copy_out: false,
            buffer_of: [0; NET_RING],
            out: None,
            header: if long { header::LONG } else { header::SHORT },
            merge,
            split,
            frames: 0,
        }
    }

    /// Frames of full size that fit.
    pub(super) fn buffers(&self) -> usize {
        self.buffers
    }

    fn buffer(&self, index: u16) -> NonNull<u8> {
        debug_assert!(usize::from(index) < self.buffers);
        // SAFETY: `index < buffers`, and `buffers` of NET_RX_BUFFER bytes fit the memory.
        unsafe { self.memory.add(usize::from(index) * NET_RX_BUFFER) }
    }

    /// Gives the device every buffer. The queue is new.
    pub(super) fn fill(&mut self) {
        for index in 0..self.buffers as u16 {
            self.post(index);
        }
    }

    /// After a confirmed reset.
    pub(super) fn restart(&mut self) {
        self.queue.recycle();
        self.queue.tell_device();
        self.out = None;
        self.copy_out = false;
    }

    fn post(&mut self, index: u16) {
        let address = arch::dma_address(self.buffer(index).as_ptr());
        let (header, all) = (self.header as u32, NET_RX_BUFFER as u32);
        let added = if self.split {
            let rest = Piece::write(address + u64::from(header), all - header);
            self.queue.add(&[Piece::write(address, header), rest])
        } else {
            self.queue.add(&[Piece::write(address, all)])
        };
        match added {
            Ok(head) => self.buffer_of[usize::from(head) % NET_RING] = index,
            // There are not more buffers than chains fit the queue.
            Err(_) => debug_assert!(false, "no room for a receive buffer"),
        }
    }

    fn index_of(&self, used: &Used) -> u16 {
        self.buffer_of[usize::from(used.head) % NET_RING]
    }

    /// The next frame. Frames that make no sense are counted in `bad` and skipped. `Err`: the device must be reset.
    pub(super) fn next(&mut self, bad: &mut u64) -> Result<Next, &'static str> {
        if self.out.is_some() || self.copy_out {
            // One at a time: the stack gives the last one back first.
            debug_assert!(false, "two received frames are out");
            return Ok(None);
        }
        loop {
            let Some(used) = self.queue.pop().map_err(words)? else {
                return Ok(None);
            };
            let first = self.index_of(&used);
            let len = used.len as usize;
            // SAFETY: the buffer is initialised (zeros at first), `pop` has checked `len` against its room, and it is ours
            // since the device gave it back.
            let bytes = unsafe { core::slice::from_raw_parts(self.buffer(first).as_ptr(), len) };
            let known = if len < self.header {
                None
            } else {
                header::received(&bytes[..self.header], self.merge)
            };
            let Some((checksum, buffers)) = known else {
                *bad += 1;
                self.post(first);
                continue;
            };
            if buffers <= 1 {
                if len < self.header + ETHERNET_HEADER {
                    *bad += 1;
                    self.post(first);
                    continue;
                }
                self.frames += 1;
                return Ok(Some((self.lend(first, 1, len), checksum)));
            }
            match self.merged(first, len, buffers)? {
                Some(frame) => {
                    self.frames += 1;
                    return Ok(Some((frame, checksum)));
                }
                None => *bad += 1,
            }
        }
    }

    /// A frame over `count` buffers from `first`, `len` bytes with the header.
    fn lend(&mut self, first: u16, count: u16, len: usize) -> Frame {
        self.out = Some((first, count));
        // SAFETY: `len` bytes from the buffer's beginning lie in buffers that the device gave back; they are given to it
        // again only by `give_back`, which takes this very slice.
        let bytes = unsafe {
            core::slice::from_raw_parts_mut(
                self.buffer(first).as_ptr().add(self.header),
                len - self.header,
            )
        };
        Frame::new(bytes, u32::from(first))
    }

    /// Puts together a frame of `buffers` buffers, the first of which was popped. `None`: it makes no sense.
    fn merged(
        &mut self,
        first: u16,
        first_len: usize,
        buffers: usize,
    ) -> Result<Option<Frame>, &'static str> {
        if buffers > self.buffers {
            return Err("the card merged more buffers than there are");
        }
        // How far the frame lies in one piece, as long as each buffer is full and follows the one before.
        let mut straight = first_len;
        let mut in_line = true;
        let mut last = (first, first_len);
        let mut total = first_len;
        for count in 1..buffers {
            let Some(used) = self.queue.pop().map_err(words)? else {
                return Err("the card announced more buffers than it returned");
            };
            let (index, len) = (self.index_of(&used), used.len as usize);
            if in_line && (last.1 != NET_RX_BUFFER || index != last.0 + 1) {
                in_line = false;
                if self.copy_in(0, first, 0, straight) {
                    self.repost(first, count as u16);
                } else {
                    return Err("the card merged a frame that is too long");
                }
            }
            if in_line {
                straight += len;
            } else {
                let fits = self.copy_in(total, index, 0, len);
                self.post(index);
                if !fits {
                    return Err("the card merged a frame that is too long");
                }
            }
            total += len;
            last = (index, len);
        }
        if in_line {
            return Ok(Some(self.lend(first, buffers as u16, total)));
        }
        if total < self.header + ETHERNET_HEADER {
            return Ok(None);
        }
        self.copy_out = true;
        // SAFETY: `copy_in` has checked that `total` bytes fit, and wrote them; they are given out once until `give_back`.
        let bytes = unsafe {
            core::slice::from_raw_parts_mut(
                self.copy.as_ptr().add(self.header),
                total - self.header,
            )
        };
        Ok(Some(Frame::new(bytes, COPIED)))
    }

    /// Copies `len` bytes that begin `from` bytes into buffer `index` (and go on in the next) to `at`. False: too long.
    fn copy_in(&mut self, at: usize, index: u16, from: usize, len: usize) -> bool {
        if at + len > COPY_BYTES {
            return false;
        }
        // SAFETY: the source lies in buffers that the device gave back, the target inside the copy memory (checked); the
        // two are different regions.
        unsafe {
            core::ptr::copy_nonoverlapping(
                self.buffer(index).as_ptr().add(from),
                self.copy.as_ptr().add(at),
                len,
            );
        }
        true
    }

    fn repost(&mut self, first: u16, count: u16) {
        for index in first..first + count {
            self.post(index);
        }
    }

    /// Takes a frame back and gives its buffers to the device again.
    pub(super) fn give_back(&mut self, frame: Frame) {
        let id = frame.id();
        let bytes = frame.into_bytes().as_ptr();
        // A frame that is not the one we gave out (its bytes lie elsewhere) is a bug of ours, and is not posted.
        // SAFETY: only addresses are made, inside the respective memory.
        let expected =
            |memory: NonNull<u8>| unsafe { memory.as_ptr().add(self.header).cast_const() };
        match self.out {
            Some((first, count))
                if id == u32::from(first) && bytes == expected(self.buffer(first)) =>
            {
                self.out = None;
                self.repost(first, count);
            }
            None if id == COPIED && self.copy_out && bytes == expected(self.copy) => {
                self.copy_out = false
            }
            _ => debug_assert!(false, "a frame came back that was not out"),
        }
    }
}

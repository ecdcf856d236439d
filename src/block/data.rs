//! The data of a request: owned segments, and the part of them that its window covers.
#![forbid(unsafe_code)]

use super::request::RequestRecord;
use super::zero;
use crate::sync::Buffer;

/// Part of an owned buffer that takes or gives data.
pub struct Segment {
    /// The buffer; it comes back with the request.
    pub buffer: Buffer,
    /// First byte used, from the buffer's start.
    pub start: u32,
    /// Bytes used.
    pub len: u32,
}

/// A contiguous run of memory for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Address as the device sees it.
    pub dma: u64,
    /// Bytes.
    pub len: u32,
}

impl RequestRecord {
    /// Adds a whole buffer, or the first `len` bytes of it, to the data.
    ///
    /// # Errors
    /// Gives the buffer back when there are too many segments or `len` is more than the buffer holds.
    pub fn add_buffer(&mut self, buffer: Buffer, len: usize) -> Result<(), Buffer> {
        if len > buffer.len() || len > u32::MAX as usize {
            return Err(buffer);
        }
        let segment = Segment {
            buffer,
            start: 0,
            len: len as u32,
        };
        self.segments
            .push(segment)
            .map_err(|segment| segment.buffer)
    }

    /// Takes the first buffer out; for requests of one buffer.
    pub fn take_buffer(&mut self) -> Option<Buffer> {
        if self.segments.is_empty() {
            None
        } else {
            Some(self.segments.remove(0).buffer)
        }
    }

    /// Memory for the window's data, piece by piece, as a device needs it.
    pub fn pieces(&self) -> Pieces<'_> {
        Pieces {
            record: self,
            segment: 0,
            skip: if self.zeroes {
                0
            } else {
                u64::from(self.data_start)
            },
            left: if self.operation.has_data() {
                self.len
            } else {
                0
            },
        }
    }

    /// The window's data where it is one piece, as it nearly always is; `None`: none, or several ([`pieces`](Self::pieces)).
    #[inline(always)]
    pub fn only_piece(&self) -> Option<Piece> {
        match self.segments.as_slice() {
            [only] if !self.zeroes && self.operation.has_data() => Some(Piece {
                dma: only.buffer.dma() + u64::from(only.start) + u64::from(self.data_start),
                len: self.len as u32,
            }),
            _ => None,
        }
    }

    /// Calls `f` with the window's data in order, to read them (ram node, test devices, exports).
    pub fn for_each_slice(&self, mut f: impl FnMut(&[u8])) {
        let mut left = usize::try_from(self.len).unwrap_or(usize::MAX);
        if self.zeroes {
            while left > 0 {
                let part = left.min(zero::ZEROES.len());
                f(&zero::ZEROES.bytes()[..part]);
                left -= part;
            }
            return;
        }
        let mut skip = self.data_start as usize;
        for segment in &self.segments {
            let (start, len) = (segment.start as usize, segment.len as usize);
            if skip >= len {
                skip -= len;
                continue;
            }
            let part = (len - skip).min(left);
            f(&segment.buffer.as_slice()[start + skip..start + skip + part]);
            skip = 0;
            left -= part;
            if left == 0 {
                return;
            }
        }
    }

    /// Calls `f` with the window's data in order, to fill them.
    pub fn for_each_slice_mut(&mut self, mut f: impl FnMut(&mut [u8])) {
        let mut left = usize::try_from(self.len).unwrap_or(usize::MAX);
        let mut skip = self.data_start as usize;
        for segment in &mut self.segments {
            let (start, len) = (segment.start as usize, segment.len as usize);
            if skip >= len {
                skip -= len;
                continue;
            }
            let part = (len - skip).min(left);
            f(&mut segment.buffer.as_mut_slice()[start + skip..start + skip + part]);
            skip = 0;
            left -= part;
            if left == 0 {
                return;
            }
        }
    }

    /// Whether the segments are inside their buffers and add up to `len`; for a read or write.
    pub(crate) fn data_fits(&self) -> bool {
        if let [segment] = self.segments.as_slice() {
            let end = u64::from(segment.start) + u64::from(segment.len);
            return end <= segment.buffer.len() as u64 && u64::from(segment.len) == self.len;
        }
        let mut sum = 0u64;
        for segment in &self.segments {
            if u64::from(segment.start) + u64::from(segment.len) > segment.buffer.len() as u64 {
                return false;
            }
            sum += u64::from(segment.len);
        }
        sum == self.len && sum <= u64::from(u32::MAX)
    }
}

/// Iterator of [`RequestRecord::pieces`].
pub struct Pieces<'a> {
    record: &'a RequestRecord,
    segment: usize,
    skip: u64,
    left: u64,
}

impl Iterator for Pieces<'_> {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        if self.left == 0 {
            return None;
        }
        if self.record.zeroes {
            let len = self.left.min(zero::ZEROES.len() as u64);
            self.left -= len;
            return Some(Piece {
                dma: zero::ZEROES.dma(),
                len: len as u32,
            });
        }
        loop {
            let segment = self.record.segments.get(self.segment)?;
            self.segment += 1;
            let len = u64::from(segment.len);
            if self.skip >= len {
                self.skip -= len;
                continue;
            }
            let skip = self.skip;
            self.skip = 0;
            let part = (len - skip).min(self.left);
            self.left -= part;
            let dma = segment.buffer.dma() + u64::from(segment.start) + skip;
            return Some(Piece {
                dma,
                len: part as u32,
            });
        }
    }
}

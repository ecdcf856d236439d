//! Reads on the bare ring: the limit that the block layer is measured against.
//!
//! The same queue, headers and barriers as [`channel`](super::channel), polled, with neither requests nor loop above.
use super::channel::Channel;
use super::config::{self, kind};
use crate::arch;
use crate::block::BlockError;
use crate::block::device::{BareLoad, BareReport};
use crate::virtio::queue::Piece;

/// A device that answers nothing for this long ends the run, in ns.
const PATIENCE_NS: u64 = 2_000_000_000;

impl Channel {
    /// See [`BlockDevice::bare_reads`](crate::block::BlockDevice::bare_reads).
    pub(super) fn bare_reads(&mut self, load: &BareLoad<'_>) -> Result<BareReport, BlockError> {
        if self.stopped || self.queue.in_flight() != 0 || self.queue.staged() != 0 {
            return Err(BlockError::Busy);
        }
        // Header, data and status: with this much room no later `add` can fail.
        let entries = if self.queue.is_indirect() { 1 } else { 3 };
        let bytes = usize::from(load.depth) * load.block as usize;
        if load.offsets.is_empty()
            || load.depth == 0
            || !u64::from(load.block).is_multiple_of(config::SECTOR)
            || u32::from(load.depth) * entries > u32::from(self.queue.free())
            || bytes > load.memory.len()
        {
            return Err(BlockError::Invalid);
        }
        self.queue.disarm();
        let kicks = self.queue.counters().kicks;
        let begun = arch::now_ns();
        let result = self.bare_loop(load, begun);
        self.queue.arm();
        let (requests, errors) = result?;
        Ok(BareReport {
            requests,
            errors,
            kicks: self.queue.counters().kicks - kicks,
            elapsed_ns: arch::now_ns().saturating_sub(begun),
        })
    }

    /// Reads completed, and how many of them failed.
    fn bare_loop(&mut self, load: &BareLoad<'_>, begun: u64) -> Result<(u64, u64), BlockError> {
        let mut offsets = load.offsets;
        let most = if load.count == 0 {
            u64::MAX
        } else {
            load.count
        };
        let (mut sent, mut done, mut errors, mut stop) = (0u64, 0u64, 0u64, false);
        while sent < most.min(u64::from(load.depth)) {
            self.bare_read(load, offsets.next_offset())?;
            sent += 1;
        }
        self.queue.publish();
        let mut heard_ns = begun;
        while done < sent {
            self.wait_used(heard_ns)?;
            while let Some(used) = self.queue.pop().map_err(|_| BlockError::Io)? {
                if self.status(used.head) != config::OK {
                    errors += 1;
                    stop = true;
                }
                done += 1;
                if !stop && sent < most {
                    self.bare_read(load, offsets.next_offset())?;
                    sent += 1;
                }
            }
            self.queue.publish();
            self.queue.disarm();
            heard_ns = arch::now_ns();
            stop |= heard_ns.saturating_sub(begun) >= load.duration_ns;
        }
        Ok((done, errors))
    }

    #[inline(always)]
    fn bare_read(&mut self, load: &BareLoad<'_>, offset: u64) -> Result<(), BlockError> {
        let head = self.queue.next_head();
        let base = self.set_header(head, kind::READ, offset / config::SECTOR);
        // Heads are more than the depth: two reads may share memory, which harms no measurement.
        let place = u64::from(head % load.depth) * u64::from(load.block);
        let (header, status) = Self::ends(base);
        self.queue
            .add(&[
                header,
                Piece::write(load.memory.dma() + place, load.block),
                status,
            ])
            .map(|_| ())
            .map_err(|_| BlockError::Invalid)
    }

    /// Spins until something is used. Never inlined, so that an instruction counter can leave it out.
    #[inline(never)]
    fn wait_used(&mut self, since_ns: u64) -> Result<(), BlockError> {
        let mut turns = 0u32;
        while !self.queue.has_used() {
            turns = turns.wrapping_add(1);
            if turns.is_multiple_of(1 << 16)
                && arch::now_ns().saturating_sub(since_ns) > PATIENCE_NS
            {
                return Err(BlockError::Io);
            }
        }
        Ok(())
    }
}

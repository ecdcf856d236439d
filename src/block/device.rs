//! What a disk driver offers to the block layer, and what it reports back.
//!
//! A driver is a dumb executor: it takes a request on the core that owns the queue, puts it before the device, and hands
//! it to [`complete`](super::complete) exactly once, on that same core. Splitting, retry when a queue is full, flush
//! ordering, error latching and accounting are the disk node's ([`node::disk`](super::node::disk)).
#![forbid(unsafe_code)]

use core::sync::atomic::AtomicU8;

use super::{BlockError, Request};
use crate::arch::CoreId;
use crate::config::MAX_CORES;
use crate::sync::Buffer;

bitflags::bitflags! {
    /// What a device can do beyond reading and writing.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct DeviceFeatures: u32 {
        /// Nothing may be written.
        const READ_ONLY = 1 << 0;
        /// `FLUSH` was offered (and so negotiated: DUR-4).
        const FLUSH = 1 << 1;
        /// Discard is understood.
        const DISCARD = 1 << 2;
        /// Write-zeroes is understood.
        const WRITE_ZEROES = 1 << 3;
        /// Write-zeroes may deallocate when asked to.
        const ZEROES_MAY_UNMAP = 1 << 4;
        /// The device has a write-back field in its configuration.
        const CONFIG_WCE = 1 << 5;
    }
}

/// Properties of a device as it describes itself. All sizes in bytes unless stated; a limit of 0 means "none stated".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Bytes that can be addressed now; changes with [`DeviceEvents::resized`].
    pub capacity: u64,
    /// Smallest addressable unit, a power of two from 512 to 64 KiB.
    pub logical_block: u32,
    /// Unit that the medium writes without read-modify-write.
    pub physical_block: u32,
    /// Preferred transfer size.
    pub optimal_io: u32,
    /// Most data segments of one request.
    pub max_segments: u32,
    /// Most bytes of one segment.
    pub max_segment_bytes: u32,
    /// Most bytes of one read or write.
    pub max_transfer: u64,
    /// Most bytes of one discard.
    pub max_discard: u64,
    /// Discards are best split at multiples of this.
    pub discard_align: u32,
    /// Most bytes of one write-zeroes.
    pub max_zeroes: u64,
    /// Abilities.
    pub features: DeviceFeatures,
    /// What GET_ID answered, padded with zeroes.
    pub serial: [u8; 20],
    /// What the device's write-back field says; shown, never relied on (DUR-4).
    pub writeback: bool,
    /// Request queues in use.
    pub queues: u16,
}

impl DeviceInfo {
    /// A writable device of `capacity` bytes with 512-byte blocks, no limits and no features: a start for drivers and tests.
    pub const fn new(capacity: u64) -> Self {
        Self {
            capacity,
            logical_block: 512,
            physical_block: 512,
            optimal_io: 0,
            max_segments: 0,
            max_segment_bytes: 0,
            max_transfer: 0,
            max_discard: 0,
            discard_align: 0,
            max_zeroes: 0,
            features: DeviceFeatures::empty(),
            serial: [0; 20],
            writeback: false,
            queues: 1,
        }
    }

    /// The serial as text, up to the first zero byte; characters that do not print become `?` by being cut off there.
    pub fn serial_str(&self) -> &str {
        let end = self
            .serial
            .iter()
            .position(|b| !b.is_ascii_graphic())
            .unwrap_or(self.serial.len());
        core::str::from_utf8(&self.serial[..end]).unwrap_or("")
    }
}

/// The offsets of a measurement: one block after the other, round and round, or at random.
#[derive(Clone, Copy)]
pub struct Offsets {
    blocks: u64,
    block: u64,
    sequential: bool,
    state: u64,
}

impl Offsets {
    /// No offsets.
    pub const NONE: Self = Self {
        blocks: 0,
        block: 0,
        sequential: false,
        state: 0,
    };

    /// Offsets of the whole `block`s in `bytes`; `seed` is where randomness begins.
    pub fn new(bytes: u64, block: u32, sequential: bool, seed: u64) -> Self {
        Self {
            blocks: bytes.checked_div(u64::from(block)).unwrap_or(0),
            block: u64::from(block),
            sequential,
            state: if sequential { 0 } else { seed | 1 },
        }
    }

    /// Whether there is not one whole block.
    pub fn is_empty(&self) -> bool {
        self.blocks == 0
    }

    /// The next one, in bytes.
    #[inline(always)]
    pub fn next_offset(&mut self) -> u64 {
        let block = if self.sequential {
            let at = self.state;
            self.state = if at + 1 < self.blocks { at + 1 } else { 0 };
            at
        } else {
            // xorshift64*; the high half of the product with the range picks a block without a division.
            self.state ^= self.state >> 12;
            self.state ^= self.state << 25;
            self.state ^= self.state >> 27;
            let random = self.state.wrapping_mul(0x2545_F491_4F6C_DD1D);
            ((u128::from(random) * u128::from(self.blocks)) >> 64) as u64
        };
        block * self.block
    }
}

/// What [`BlockDevice::bare_reads`] is to do.
#[derive(Clone, Copy)]
pub struct BareLoad<'a> {
    /// Requests in flight.
    pub depth: u16,
    /// Bytes of one request.
    pub block: u32,
    /// Where, within the device.
    pub offsets: Offsets,
    /// Ends after this time, in ns …
    pub duration_ns: u64,
    /// … or after this many requests; 0: no such end.
    pub count: u64,
    /// At least `depth` times `block` bytes. After `Io` the device may still write there: it must not be given back.
    pub memory: &'a Buffer,
}

/// What came of a [`BareLoad`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BareReport {
    /// Reads completed.
    pub requests: u64,
    /// Of these, failed; the first ends the run.
    pub errors: u64,
    /// Kicks given.
    pub kicks: u64,
    /// From the first to the last, in ns.
    pub elapsed_ns: u64,
}

/// For each core, the core whose queue serves it.
pub type Owners = [AtomicU8; MAX_CORES];

/// What [`BlockDevice::submitter`] says while there is no such core.
pub const NO_CORE: CoreId = CoreId::MAX;

/// How far [`BlockDevice::set_home`] came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// To the end.
    Done,
    /// The cores concerned have yet to answer.
    UnderWay,
}

/// A disk driver. Everything but `submit` may be called from any core.
pub trait BlockDevice: Sync {
    /// The device's present properties; cheap, no I/O.
    fn info(&self) -> DeviceInfo;

    /// The core whose queue serves requests from `core`; `core` itself when it has its own queue. Constant while requests
    /// are in flight. [`NO_CORE`] while the device moves to another home.
    fn submitter(&self, core: CoreId) -> CoreId;

    /// The same as a table that always says it, for who asks often; a value that is no core: [`NO_CORE`].
    fn owners(&'static self) -> Option<&'static Owners> {
        None
    }

    /// Puts a request before the device; called only on the core that [`submitter`](Self::submitter) names.
    ///
    /// The request's window (`offset`, `len`, [`pieces`](super::RequestRecord::pieces)) is within the limits of
    /// [`info`](Self::info), aligned to the logical block and not empty; its data lies in `pieces()`, also for a write of
    /// zeroes that the device does not know. `MAY_UNMAP` is set only where the device may unmap. `FUA` and `FAST_ZERO` are
    /// to be ignored: the node has dealt with them.
    ///
    /// Never completes inside; the answer goes to [`complete`](super::complete) on this core, later. `Err` gives the request
    /// back untouched: the queue is full, and at least one request of this queue is still with the device, so that its
    /// completion lets the node try again. A device that is being reset or is dead takes the request and completes it with
    /// [`BlockError::Io`].
    fn submit(&self, request: Request) -> Result<(), Request>;

    /// Starts a reset of the device. Every request that it holds is completed with [`BlockError::Io`], but only once the
    /// device has confirmed the reset and so will no longer touch the buffers; then
    /// [`DeviceEvents::reset_done`] is called. Idempotent while a reset runs.
    fn reset(&self);

    /// Reads on the device's bare queue, with nothing above it: what the rest is measured against. Runs on the current
    /// core, which must own a queue, and keeps its loop busy until it ends, so `load` bounds it in time.
    ///
    /// # Errors
    /// `NotSupported` where there is no such queue, `Busy` while requests are under way, `Invalid` for a load that does not
    /// fit, `Io` when the device does not answer or breaks the rules of its queue.
    fn bare_reads(&self, load: &BareLoad<'_>) -> Result<BareReport, BlockError> {
        let _ = load;
        Err(BlockError::NotSupported)
    }

    /// Whether the device could move to `core`, its queues with it where it has fewer than cores; takes what it needs
    /// there, so that [`set_home`](Self::set_home) cannot fail for want of it. What an earlier call took for another core is
    /// given back: asking for the present home gives all of it back. Main loop only.
    ///
    /// # Errors
    /// `Invalid` for a core that it does not use, `Busy` while it is being reset or moves, `Io` when it did not come back from
    /// a reset, `NoMemory` when the core's loop has no room, `NotSupported` when the interrupt cannot go there.
    fn check_home(&'static self, core: CoreId) -> Result<(), BlockError> {
        let _ = core;
        Ok(())
    }

    /// Moves the device to `core`. Main loop only, while no request is in flight on it; never waits: with
    /// [`Move::UnderWay`], the end is said by [`DeviceEvents::moved`]. Until then none may be submitted.
    ///
    /// # Errors
    /// As for [`check_home`](Self::check_home); nothing has changed then.
    fn set_home(&'static self, core: CoreId) -> Result<Move, BlockError> {
        let _ = core;
        Ok(Move::Done)
    }

    /// Says who wants to hear of the device's events; called once, before the first `submit`.
    fn attach(&self, events: &'static dyn DeviceEvents);
}

/// What a driver reports; called from any core, from the loop (never from an interrupt handler).
pub trait DeviceEvents: Sync {
    /// The configuration changed; [`BlockDevice::info`] has the new capacity.
    fn resized(&self);

    /// The device asks for a reset, or has broken the rules of its queue. It takes no more requests to the medium. Answered by
    /// [`BlockDevice::reset`], which the node calls.
    fn needs_reset(&self, why: &'static str);

    /// A reset has ended: `Ok` when the device is up again, with every request that it held already handed to
    /// [`complete`](super::complete).
    fn reset_done(&self, result: Result<(), BlockError>);

    /// A move has ended, in the main loop. `Err`: something was in flight after all, and everything is where it was.
    fn moved(&'static self, result: Result<(), BlockError>) {
        let _ = result;
    }
}

#[cfg(test)]
mod tests {
    use super::Offsets;

    #[test]
    fn offsets_are_whole_blocks_inside() {
        // 10 blocks and a half.
        let mut random = Offsets::new(10 * 4096 + 512, 4096, false, 7);
        let mut seen = [false; 10];
        for _ in 0..1000 {
            let offset = random.next_offset();
            assert_eq!(offset % 4096, 0);
            seen[(offset / 4096) as usize] = true;
        }
        assert_eq!(seen, [true; 10]);
        let mut sequential = Offsets::new(3 * 4096, 4096, true, 7);
        let found = [(); 5].map(|()| sequential.next_offset() / 4096);
        assert_eq!(found, [0, 1, 2, 0, 1]);
        assert!(Offsets::new(511, 512, false, 1).is_empty());
        assert!(Offsets::new(4096, 0, false, 1).is_empty());
    }
}

//! Making a queue, and making it new after a reset. The main loop's part; nothing here is hot.
use super::{QueueConfig, QueueCounters, Slot, VirtQueue};
use crate::virtio::dma::{DmaArena, DmaRegion, PAGE};
use crate::virtio::layout::{self, Ring};
use crate::virtio::transport::{QueueAddresses, SetupError, Transport, feature};
use core::ptr::NonNull;

impl VirtQueue {
    /// Smallest depth that a queue is given.
    pub const MIN_DEPTH: u16 = 4;

    /// Bytes of the arena that a queue takes, at most.
    pub const fn bytes(depth: u16, config: &QueueConfig) -> usize {
        let rings = if config.spare { 2 } else { 1 };
        let tables = if config.features & feature::INDIRECT_DESC != 0 && config.chain > 1 {
            config.chain as usize
        } else {
            0
        };
        // A ring begins on a page, so up to a page is lost before each.
        rings * (Ring::bytes(depth) + PAGE)
            + depth as usize * (16 * tables + size_of::<Slot>())
            + 32
    }

    /// Makes queue `index` of the device and tells the device where it lies. After negotiation, before DRIVER_OK.
    ///
    /// The depth is the largest power of two that `config`, the device and the rest of `arena` allow.
    pub fn new(
        transport: &'static dyn Transport,
        index: u16,
        config: &QueueConfig,
        arena: &DmaArena,
    ) -> Result<Self, SetupError> {
        let most = transport
            .queue_max(index)
            .min(u32::from(config.depth.min(layout::MAX_DEPTH)));
        if most < u32::from(Self::MIN_DEPTH) {
            return Err(SetupError::NoQueue(index));
        }
        let mut depth = 1 << most.ilog2();
        while Self::bytes(depth, config) > arena.remaining() {
            depth /= 2;
            if depth < Self::MIN_DEPTH {
                return Err(SetupError::NoMemory);
            }
        }
        let carve = |bytes, align| arena.carve(bytes, align).ok_or(SetupError::NoMemory);
        // A chain, tables included, may not be longer than the ring (virtio 1.2, 2.7.5.3.1).
        let chain = config.chain.clamp(1, depth);
        let indirect = config.features & feature::INDIRECT_DESC != 0 && chain > 1;
        let ring = |region: DmaRegion| {
            // SAFETY: the region is page-aligned, of `Ring::bytes(depth)` bytes, ours for ever; the depth is a
            // power of two up to MAX_DEPTH.
            unsafe { Ring::new(region.pointer(), depth) }
        };
        let first = ring(carve(Ring::bytes(depth), PAGE)?);
        let spare = if config.spare {
            Some(ring(carve(Ring::bytes(depth), PAGE)?))
        } else {
            None
        };
        let slots = carve(usize::from(depth) * size_of::<Slot>(), 16)?
            .pointer()
            .cast();
        let tables = if indirect {
            carve(usize::from(depth) * usize::from(chain) * 16, 16)?
                .pointer()
                .cast()
        } else {
            NonNull::dangling()
        };
        let mut queue = Self {
            transport,
            ring: first,
            spare,
            tables,
            slots,
            index,
            mask: depth - 1,
            chain,
            indirect,
            event_index: config.features & feature::EVENT_INDEX != 0,
            fault: None,
            free_head: 0,
            free: depth,
            staged: 0,
            published: 0,
            taken: 0,
            seen: 0,
            in_flight: 0,
            counters: QueueCounters::default(),
        };
        queue.clear();
        queue.tell_device();
        Ok(queue)
    }

    /// Forgets everything: all chains are free, the ring is empty. Only while the device does not run.
    fn clear(&mut self) {
        self.ring.clear();
        for i in 0..=self.mask {
            // All on the free list, in order. Also clears `count`.
            *self.slot_mut(i) = Slot {
                batch: 0,
                room: 0,
                count: 0,
                next: (i + 1) & self.mask,
            };
        }
        self.fault = None;
        self.free_head = 0;
        self.free = self.depth();
        (
            self.staged,
            self.published,
            self.taken,
            self.seen,
            self.in_flight,
        ) = (0, 0, 0, 0, 0);
    }

    /// After a confirmed reset: an empty ring in the other memory. All heads are free; whoever keeps something by
    /// head has taken it back before. Then [`VirtQueue::tell_device`], before DRIVER_OK.
    pub fn recycle(&mut self) {
        if let Some(spare) = self.spare.as_mut() {
            core::mem::swap(&mut self.ring, spare);
        }
        self.clear();
    }

    /// Tells the device where the queue lies (the main loop, between negotiation and DRIVER_OK).
    pub fn tell_device(&self) {
        let [descriptors, available, used] = self.ring.addresses();
        self.transport.set_queue(
            self.index,
            self.depth(),
            &QueueAddresses {
                descriptors,
                available,
                used,
            },
        );
    }
}

//! The split virtqueue, driver's side.
//!
//! A request is *staged* ([`VirtQueue::add`]): its descriptors are written and its head stands in the available
//! ring, but the device does not know. Once per loop turn everything staged is *published* and the device is
//! kicked if it wants to be ([`VirtQueue::publish`]). The device moves heads to the used ring, from where
//! [`VirtQueue::pop`] takes them until it is empty; then [`VirtQueue::arm`] asks for the next interrupt and says
//! whether something came meanwhile.
//!
//! ```text
//!   free --add--> staged --publish--> in flight --device, pop--> free
//! ```
//!
//! Owner: one core at a time, `&mut`. Interrupt handlers and poll checks hold a [`crate::virtio::layout::UsedWatch`]
//! instead, which only reads the used index.
//!
//! Nothing that the device writes is believed: what the driver knows of a head (is it in flight? how many bytes
//! may the device have written?) lies in `Slot`s, which the device is never told of. A lie is a
//! [`DeviceFault`]; the queue is poisoned then and says nothing more until [`VirtQueue::recycle`].
//!
//! Which barrier orders what stands at each of them. Published and used index are the only words that carry order.
use crate::arch;
use crate::virtio::layout::{
    Descriptor, INDIRECT, NEXT, NO_INTERRUPT, NO_NOTIFY, Ring, UsedWatch, WRITE, passes,
};
use crate::virtio::transport::Transport;
use core::ptr::NonNull;
use core::sync::atomic::Ordering::Relaxed;
pub use types::{DeviceFault, Piece, QueueConfig, QueueCounters, QueueFull, Used};

mod setup;
#[cfg(test)]
mod tests;
mod types;

/// What the driver knows of a descriptor.
#[derive(Clone, Copy)]
#[repr(C)]
struct Slot {
    /// Number of the publish that gives it to the device; 64 bits never come round.
    batch: u64,
    /// Bytes that the device may write to this chain.
    room: u32,
    /// Descriptors of the chain that begins here; 0: none, so a head that is given back cannot be given back twice.
    count: u16,
    /// The next one of the chain, or of the free list.
    next: u16,
}

/// A split virtqueue.
pub struct VirtQueue {
    transport: &'static dyn Transport,
    ring: Ring,
    spare: Option<Ring>,
    /// Tables of `chain` descriptors, one an entry; dangling without indirect descriptors.
    tables: NonNull<Descriptor>,
    slots: NonNull<Slot>,
    index: u16,
    mask: u16,
    chain: u16,
    indirect: bool,
    event_index: bool,
    fault: Option<DeviceFault>,
    free_head: u16,
    /// Entries that no chain has.
    free: u16,
    /// Available index, staged entries included.
    staged: u16,
    /// Available index as the device sees it.
    published: u16,
    /// Used index up to which chains were taken.
    taken: u16,
    /// Used index as last read: `taken..seen` can be taken without looking again.
    seen: u16,
    /// Published and not taken.
    in_flight: u16,
    counters: QueueCounters,
}

// SAFETY: the queue owns its memory (`DmaRegion`s that were turned into pointers); it may move between cores.
unsafe impl Send for VirtQueue {}

impl VirtQueue {
    /// Entries.
    #[inline(always)]
    pub fn depth(&self) -> u16 {
        self.mask + 1
    }

    /// The number the device knows it by.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Most pieces of one chain.
    pub fn max_pieces(&self) -> u16 {
        self.chain
    }

    /// True if a chain of several pieces takes one entry.
    pub fn is_indirect(&self) -> bool {
        self.indirect
    }

    /// True if both sides use event indexes; then interrupts stay away by themselves until [`VirtQueue::arm`].
    #[inline(always)]
    pub fn has_event_index(&self) -> bool {
        self.event_index
    }

    /// Descriptors that are free: chains of several pieces that can be added if indirect, else single pieces.
    #[inline(always)]
    pub fn free(&self) -> u16 {
        self.free
    }

    /// True if a chain of `pieces` pieces fits now.
    #[inline(always)]
    pub fn has_room(&self, pieces: usize) -> bool {
        pieces <= usize::from(self.chain)
            && self.entries(pieces) <= self.free
            && self.fault.is_none()
    }

    /// Chains that the device has.
    pub fn in_flight(&self) -> u16 {
        self.in_flight
    }

    /// Chains that wait for [`VirtQueue::publish`].
    pub fn staged(&self) -> u16 {
        self.staged.wrapping_sub(self.published)
    }

    /// The lie that poisoned the queue, if any.
    pub fn fault(&self) -> Option<DeviceFault> {
        self.fault
    }

    /// Counters since the queue was made.
    pub fn counters(&self) -> QueueCounters {
        // Not counted one by one: what was given and is not in flight was taken back, or lost in a reset.
        QueueCounters {
            used: self.counters.added - u64::from(self.in_flight),
            ..self.counters
        }
    }

    /// Lets `watch` watch this queue's used index, from the ring's beginning: after `new` and `recycle`.
    pub fn watch(&self, watch: &UsedWatch) {
        watch.watch(&self.ring);
    }

    #[inline(always)]
    fn slot(&self, head: u16) -> &Slot {
        // SAFETY: `slots` has `mask + 1` elements, all written by `clear`; they belong to this queue alone.
        unsafe { self.slots.add(usize::from(head & self.mask)).as_ref() }
    }

    #[inline(always)]
    fn slot_mut(&mut self, head: u16) -> &mut Slot {
        // SAFETY: as in `slot`; `&mut self` makes it the only reference.
        unsafe { self.slots.add(usize::from(head & self.mask)).as_mut() }
    }

    #[inline(always)]
    fn entries(&self, pieces: usize) -> u16 {
        if self.indirect && pieces > 1 {
            1
        } else {
            pieces as u16
        }
    }

    /// The head that the next [`VirtQueue::add`] will return, so that per-head memory can be part of the chain.
    #[inline(always)]
    pub fn next_head(&self) -> u16 {
        self.free_head
    }

    /// Stages a chain of `pieces` (1 to [`VirtQueue::max_pieces`], those that the device reads first) and returns
    /// its head, which identifies it until it is popped. The memory of the pieces belongs to the device from now on.
    #[inline(always)]
    pub fn add(&mut self, pieces: &[Piece]) -> Result<u16, QueueFull> {
        if pieces.is_empty() || !self.has_room(pieces.len()) {
            return Err(QueueFull);
        }
        debug_assert!(pieces.iter().all(|p| p.len != 0));
        debug_assert!(pieces.is_sorted_by_key(|p| p.device_writes));
        let head = self.free_head;
        let mut room = 0u32;
        let count;
        if self.indirect && pieces.len() > 1 {
            // SAFETY: `tables` has `chain` descriptors for each of the `mask + 1` heads, and `has_room` checked
            // that there are not more pieces than that. The device is not told of this table at the moment.
            let table = unsafe {
                self.tables
                    .add(usize::from(head & self.mask) * usize::from(self.chain))
            };
            let last = pieces.len() - 1;
            for (i, piece) in pieces.iter().enumerate() {
                let descriptor = describe(piece, (i != last).then_some(i as u16 + 1), &mut room);
                // SAFETY: `i < pieces.len() <= chain`.
                unsafe { table.add(i).write(descriptor) }
            }
            let bytes = pieces.len() as u32 * 16;
            let address = arch::dma_address(table.as_ptr().cast_const().cast());
            self.ring.set_descriptor(
                head,
                Descriptor {
                    address,
                    len: bytes,
                    flags: INDIRECT,
                    next: 0,
                },
            );
            count = 1;
            self.free_head = self.slot(head).next;
        } else {
            let last = pieces.len() - 1;
            let mut at = head;
            for (i, piece) in pieces.iter().enumerate() {
                let next = self.slot(at).next;
                let descriptor = describe(piece, (i != last).then_some(next), &mut room);
                self.ring.set_descriptor(at, descriptor);
                at = next;
            }
            count = pieces.len() as u16;
            self.free_head = at;
        }
        self.free -= count;
        let batch = self.counters.publishes;
        let slot = self.slot_mut(head);
        (slot.batch, slot.room, slot.count) = (batch, room, count);
        // The device looks at entries below the published index only, so this store needs no order yet.
        self.ring.available_entry(self.staged).store(head, Relaxed);
        self.staged = self.staged.wrapping_add(1);
        Ok(head)
    }

    /// Gives everything staged to the device, and kicks it if it wants to be. True if it was kicked.
    pub fn publish(&mut self) -> bool {
        let old = self.published;
        let new = self.staged;
        if old == new || self.fault.is_some() {
            return false;
        }
        // Descriptors, tables, headers, data to be written and the entries, before the index that covers them.
        arch::device_write_barrier();
        self.ring.available_index().store(new, Relaxed);
        self.published = new;
        self.in_flight += new.wrapping_sub(old);
        self.counters.publishes += 1;
        self.counters.added += u64::from(new.wrapping_sub(old));
        // The index before the look at the device's wish: a device that is about to stop looking writes its wish,
        // then reads the index; so either it sees our index or we see its wish. Also orders the index before the kick.
        arch::device_full_barrier();
        let wanted = if self.event_index {
            passes(self.ring.available_event().load(Relaxed), new, old)
        } else {
            self.ring.used_flags().load(Relaxed) & NO_NOTIFY == 0
        };
        if wanted {
            self.counters.kicks += 1;
            self.transport.notify(self.index);
        }
        wanted
    }

    /// True if [`VirtQueue::pop`] would find something (or a fault). A load, no barrier.
    #[inline(always)]
    pub fn has_used(&self) -> bool {
        self.taken != self.seen || self.ring.used_index().load(Relaxed) != self.taken
    }

    /// Takes the next chain that the device gave back; `None`: nothing more now.
    ///
    /// An error poisons the queue: it is returned again until [`VirtQueue::recycle`], and nothing is taken or given.
    #[inline(always)]
    pub fn pop(&mut self) -> Result<Option<Used>, DeviceFault> {
        if self.taken == self.seen && !self.look()? {
            return Ok(None);
        }
        let (id, len) = self.ring.used_entry(self.taken);
        if id > u32::from(self.mask) {
            return Err(self.poison(DeviceFault::BadId(id)));
        }
        let head = id as u16;
        let Slot {
            batch,
            room,
            count,
            next,
        } = *self.slot(head);
        // A head is in flight if it begins a chain, and that chain was published.
        if count == 0 || batch == self.counters.publishes {
            return Err(self.poison(DeviceFault::NotInFlight(head)));
        }
        if len > room {
            return Err(self.poison(DeviceFault::BadLength { head, len, room }));
        }
        self.taken = self.taken.wrapping_add(1);
        self.in_flight -= 1;
        let free_head = self.free_head;
        let mut last = head;
        let mut after = next;
        for _ in 1..count {
            last = after;
            after = self.slot(last).next;
        }
        self.slot_mut(last).next = free_head;
        self.slot_mut(head).count = 0;
        self.free_head = head;
        self.free += count;
        Ok(Some(Used { head, len }))
    }

    /// Reads the used index again. True if there is something to take.
    #[inline]
    fn look(&mut self) -> Result<bool, DeviceFault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let now = self.ring.used_index().load(Relaxed);
        if now == self.taken {
            return Ok(false);
        }
        if now.wrapping_sub(self.taken) > self.in_flight {
            let fault = DeviceFault::IndexJump {
                from: self.taken,
                to: now,
                in_flight: self.in_flight,
            };
            return Err(self.poison(fault));
        }
        self.seen = now;
        // The index before the entries that it covers, and before the data and status bytes that belong to them.
        arch::device_read_barrier();
        Ok(true)
    }

    #[cold]
    fn poison(&mut self, fault: DeviceFault) -> DeviceFault {
        self.fault = Some(fault);
        // Nothing counts as seen any more, so every later `pop` comes to `look` and gets the fault again.
        self.seen = self.taken;
        fault
    }

    /// Asks for an interrupt at the next used chain. True if one is there already: take it and arm again.
    #[inline(always)]
    pub fn arm(&mut self) -> bool {
        if self.event_index {
            self.ring.used_event().store(self.taken, Relaxed);
        } else {
            self.ring.available_flags().store(0, Relaxed);
        }
        // The wish before the look: the device moves the index, then reads the wish; so either it sees the wish and
        // interrupts, or we see the index.
        arch::device_full_barrier();
        self.ring.used_index().load(Relaxed) != self.taken && self.fault.is_none()
    }

    /// Asks for no interrupts until [`VirtQueue::arm`]. One may come all the same: one that is under way, and with
    /// event index one in 65,536 chains.
    #[inline(always)]
    pub fn disarm(&mut self) {
        if self.event_index {
            self.ring
                .used_event()
                .store(self.taken.wrapping_sub(1), Relaxed);
        } else {
            self.ring.available_flags().store(NO_INTERRUPT, Relaxed);
        }
    }

    /// Head of every chain that is staged or in flight, for whoever takes requests back after a reset.
    pub fn outstanding(&self) -> impl Iterator<Item = u16> + '_ {
        (0..=self.mask).filter(|head| self.slot(*head).count != 0)
    }
}

#[inline(always)]
fn describe(piece: &Piece, next: Option<u16>, room: &mut u32) -> Descriptor {
    let mut flags = 0;
    if piece.device_writes {
        flags = WRITE;
        *room = room.saturating_add(piece.len);
    }
    if next.is_some() {
        flags |= NEXT;
    }
    Descriptor {
        address: piece.address,
        len: piece.len,
        flags,
        next: next.unwrap_or(0),
    }
}

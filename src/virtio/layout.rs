//! Where the parts of a split virtqueue lie in memory (virtio 1.2, 2.7), and how they are read and written.
//!
//! One layout serves both transports: the legacy one (virtio 1.2, 2.7.2), descriptors, available ring, padding
//! to the next page, used ring, in one contiguous page-aligned piece, since modern devices take any addresses.
//! Everything is in native byte order: little endian, and so is this firmware.
use super::dma::PAGE;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicPtr, AtomicU16, AtomicU64, Ordering};

/// The largest depth that a queue is given here (a power of two).
pub const MAX_DEPTH: u16 = 256;

/// Descriptor flag: the chain goes on at `next`.
pub const NEXT: u16 = 1;
/// Descriptor flag: the device writes this piece.
pub const WRITE: u16 = 2;
/// Descriptor flag: the piece is a table of descriptors.
pub const INDIRECT: u16 = 4;
/// Available flag: no interrupt, please (only without event index).
pub const NO_INTERRUPT: u16 = 1;
/// Used flag: no kick, please (only without event index).
pub const NO_NOTIFY: u16 = 1;

/// One descriptor, as the device reads it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(16))]
pub struct Descriptor {
    /// Address of the piece, as the device sees it.
    pub address: u64,
    /// Length in bytes.
    pub len: u32,
    /// [`NEXT`], [`WRITE`], [`INDIRECT`].
    pub flags: u16,
    /// Index of the next descriptor of the chain.
    pub next: u16,
}

/// Pointers into one ring's memory.
///
/// The indexes and flags are shared with a device, so they are atomics here: neither a data race nor an access
/// that the compiler may repeat.
#[derive(Clone, Copy, Debug)]
pub struct Ring {
    base: NonNull<u8>,
    /// Offsets of the available and the used ring, worked out once.
    available: u32,
    used: u32,
    depth: u16,
}

impl Ring {
    /// Bytes from the descriptors to the used ring.
    const fn used_offset(depth: u16) -> usize {
        let available = depth as usize * 16 + 6 + 2 * depth as usize;
        available.next_multiple_of(PAGE)
    }

    /// Bytes of a ring of `depth` entries.
    pub const fn bytes(depth: u16) -> usize {
        Self::used_offset(depth) + 6 + 8 * depth as usize
    }

    /// A ring at `base`.
    ///
    /// # Safety
    /// `base` is page-aligned and points to `bytes(depth)` bytes that stay valid for ever and that nobody but
    /// the users of this ring and the device touches; `depth` is a power of two, at most [`MAX_DEPTH`].
    pub unsafe fn new(base: NonNull<u8>, depth: u16) -> Self {
        Self {
            base,
            available: 16 * u32::from(depth),
            used: Self::used_offset(depth) as u32,
            depth,
        }
    }

    /// Number of entries.
    pub fn depth(&self) -> u16 {
        self.depth
    }

    /// Addresses, as the device sees them, of descriptors, available ring and used ring.
    pub fn addresses(&self) -> [u64; 3] {
        let base = self.base.as_ptr() as u64;
        [
            base,
            base + 16 * u64::from(self.depth),
            base + Self::used_offset(self.depth) as u64,
        ]
    }

    /// Zeroes the ring. Only while no device uses it.
    pub fn clear(&self) {
        // SAFETY: `new` was promised that many bytes; the device does not run, says the caller.
        unsafe { self.base.as_ptr().write_bytes(0, Self::bytes(self.depth)) }
    }

    /// The 16-bit word `offset` bytes into the ring; the callers below keep inside it.
    #[inline(always)]
    fn word(&self, offset: usize) -> &AtomicU16 {
        debug_assert!(offset.is_multiple_of(2) && offset + 2 <= Self::bytes(self.depth));
        // SAFETY: inside the ring (offsets come from the functions below, masked by the depth), aligned, and
        // only ever reached as an atomic.
        unsafe { AtomicU16::from_ptr(self.base.as_ptr().add(offset).cast()) }
    }

    /// Writes descriptor `index` (masked by the depth).
    #[inline(always)]
    pub fn set_descriptor(&self, index: u16, descriptor: Descriptor) {
        let index = usize::from(index & (self.depth - 1));
        // SAFETY: inside the table and aligned; the device reads it only after it was published.
        unsafe { self.base.cast::<Descriptor>().add(index).write(descriptor) }
    }

    /// Reads descriptor `index` (masked by the depth).
    pub fn descriptor(&self, index: u16) -> Descriptor {
        let index = usize::from(index & (self.depth - 1));
        // SAFETY: inside the table and aligned; descriptors are written by the driver alone.
        unsafe { self.base.cast::<Descriptor>().add(index).read() }
    }

    #[inline(always)]
    fn available(&self) -> usize {
        self.available as usize
    }

    #[inline(always)]
    fn used(&self) -> usize {
        self.used as usize
    }

    /// The driver's flags.
    #[inline(always)]
    pub fn available_flags(&self) -> &AtomicU16 {
        self.word(self.available())
    }

    /// The driver's index.
    #[inline(always)]
    pub fn available_index(&self) -> &AtomicU16 {
        self.word(self.available() + 2)
    }

    /// Entry `position` (masked) of the available ring.
    #[inline(always)]
    pub fn available_entry(&self, position: u16) -> &AtomicU16 {
        self.word(self.available() + 4 + 2 * usize::from(position & (self.depth - 1)))
    }

    /// After which used entry the driver wants an interrupt (event index only).
    #[inline(always)]
    pub fn used_event(&self) -> &AtomicU16 {
        self.word(self.available() + 4 + 2 * usize::from(self.depth))
    }

    /// The device's flags.
    #[inline(always)]
    pub fn used_flags(&self) -> &AtomicU16 {
        self.word(self.used())
    }

    /// The device's index.
    #[inline(always)]
    pub fn used_index(&self) -> &AtomicU16 {
        self.word(self.used() + 2)
    }

    /// Entry `position` (masked) of the used ring: head of the chain, bytes that the device says it wrote.
    #[inline(always)]
    pub fn used_entry(&self, position: u16) -> (u32, u32) {
        let offset = self.used() + 4 + 8 * usize::from(position & (self.depth - 1));
        // SAFETY: inside the used ring; 4-byte aligned. One volatile read each: what the device might change
        // meanwhile is read once, checked, and not read again.
        unsafe {
            let entry = self.base.as_ptr().add(offset).cast::<u32>();
            (entry.read_volatile(), entry.add(1).read_volatile())
        }
    }

    /// After which available entry the device wants a kick (event index only).
    #[inline(always)]
    pub fn available_event(&self) -> &AtomicU16 {
        self.word(self.used() + 4 + 8 * usize::from(self.depth))
    }
}

/// Whether moving an index from `old` to `new` passes `event` (virtio 1.2, 2.7.10.1), over the wrap too.
///
/// All three count modulo 2^16. `old` is the index at the last decision, not merely the one before.
#[inline(always)]
pub fn passes(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// A queue's used index for whoever only asks whether it moved: interrupt handlers and poll checks.
///
/// It is one pointer, swapped when a reset gives the queue fresh memory, and one shadow. One asker each.
#[derive(Debug)]
pub struct UsedWatch {
    index: AtomicPtr<u16>,
    /// Where an index was last seen, and which: `address << 16 | index`. With the address in it, a look at the old ring
    /// that is written down after the swap cannot pass for one at the new ring.
    shadow: AtomicU64,
}

impl UsedWatch {
    /// Watches nothing.
    pub const fn new() -> Self {
        Self {
            index: AtomicPtr::new(core::ptr::null_mut()),
            shadow: AtomicU64::new(0),
        }
    }

    /// Watches `ring` from now on; its used index is taken as seen up to 0.
    pub fn watch(&self, ring: &Ring) {
        let index = ring.used_index().as_ptr();
        self.shadow.store(Self::seen(index, 0), Ordering::Relaxed);
        self.index.store(index, Ordering::Release);
    }

    /// Addresses have 48 bits.
    #[inline(always)]
    fn seen(index: *const u16, value: u16) -> u64 {
        (index.addr() as u64) << 16 | u64::from(value)
    }

    /// True if the used index moved since the last call that said so.
    #[inline(always)]
    pub fn moved(&self) -> bool {
        let index = self.index.load(Ordering::Acquire);
        if index.is_null() {
            return false;
        }
        // SAFETY: set by `watch` from a ring, whose memory is valid for ever and reached as an atomic only.
        let now = unsafe { AtomicU16::from_ptr(index) }.load(Ordering::Acquire);
        let seen = Self::seen(index, now);
        let moved = seen != self.shadow.load(Ordering::Relaxed);
        if moved {
            self.shadow.store(seen, Ordering::Relaxed);
        }
        moved
    }
}

impl Default for UsedWatch {
    fn default() -> Self {
        Self::new()
    }
}

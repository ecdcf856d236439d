//! The memory that devices read and write on their own: rings, indirect tables, request headers.
//!
//! It is carved once, when devices are probed, and never given back: a ring lives as long as the firmware.
//! Buffers for data are not taken from here; they come from the page arenas of whoever owns the data.
//! Called from the main loop during probe; carving is safe from any core all the same.
use core::cell::UnsafeCell;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};

/// Page size, in bytes, of rings and of the legacy queue address register.
pub const PAGE: usize = 4096;

/// Zeroed, page-aligned storage of an arena.
#[repr(C, align(4096))]
pub struct DmaMemory<const BYTES: usize>(UnsafeCell<[u8; BYTES]>);

// SAFETY: the bytes are reached only through `DmaArena::carve`, which hands out each of them once.
unsafe impl<const BYTES: usize> Sync for DmaMemory<BYTES> {}

impl<const BYTES: usize> DmaMemory<BYTES> {
    /// Zeroed memory; a `static` of this type lies in `.bss`.
    pub const fn new() -> Self {
        Self(UnsafeCell::new([0; BYTES]))
    }
}

impl<const BYTES: usize> Default for DmaMemory<BYTES> {
    fn default() -> Self {
        Self::new()
    }
}

/// An arena over [`DmaMemory`]: a bump pointer.
pub struct DmaArena {
    base: *mut u8,
    len: usize,
    next: AtomicUsize,
}

// SAFETY: `base` is never dereferenced here; ranges are handed out once each, by an atomic addition.
unsafe impl Sync for DmaArena {}
// SAFETY: as above.
unsafe impl Send for DmaArena {}

/// A piece of the arena, zeroed when it was carved, valid for ever and aliased by nobody but the device.
#[derive(Debug)]
pub struct DmaRegion {
    pointer: NonNull<u8>,
    len: usize,
}

// SAFETY: a region is an exclusive right to its bytes; it may move between cores.
unsafe impl Send for DmaRegion {}

impl DmaRegion {
    /// First byte.
    pub fn pointer(&self) -> NonNull<u8> {
        self.pointer
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True for a region of no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The address of `offset` as a device sees it. The firmware's memory is mapped one to one.
    pub fn address(&self, offset: usize) -> u64 {
        self.pointer.as_ptr() as u64 + offset as u64
    }

    /// Takes the first `bytes` off; `None` if there are fewer. The alignment of the rest follows from `bytes`.
    pub fn split(&mut self, bytes: usize) -> Option<DmaRegion> {
        if bytes > self.len {
            return None;
        }
        let head = DmaRegion {
            pointer: self.pointer,
            len: bytes,
        };
        // SAFETY: `bytes <= len`, so the sum stays inside the region or one past its end.
        self.pointer = unsafe { self.pointer.add(bytes) };
        self.len -= bytes;
        Some(head)
    }
}

impl DmaArena {
    /// An arena over `memory`. The caller makes at most one arena for each memory.
    pub const fn new<const BYTES: usize>(memory: &'static DmaMemory<BYTES>) -> Self {
        Self {
            base: memory.0.get().cast(),
            len: BYTES,
            next: AtomicUsize::new(0),
        }
    }

    /// Carves `bytes`, aligned to `align` (a power of two, at most [`PAGE`]); `None` when the arena is short.
    pub fn carve(&self, bytes: usize, align: usize) -> Option<DmaRegion> {
        debug_assert!(align.is_power_of_two() && align <= PAGE);
        let mut found = 0;
        self.next
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
                found = next.checked_add(align - 1)? & !(align - 1);
                let end = found.checked_add(bytes)?;
                (end <= self.len).then_some(end)
            })
            .ok()?;
        // SAFETY: `found + bytes <= len`, so this stays inside the memory that `base` points to.
        let pointer = unsafe { NonNull::new(self.base.add(found)) }?;
        Some(DmaRegion {
            pointer,
            len: bytes,
        })
    }

    /// Bytes that are not carved yet.
    pub fn remaining(&self) -> usize {
        self.len - self.next.load(Ordering::Relaxed)
    }

    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True for an arena of no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

static MEMORY: DmaMemory<{ crate::config::DMA_BYTES }> = DmaMemory::new();

/// The firmware's arena.
pub static DMA: DmaArena = DmaArena::new(&MEMORY);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn carves_aligned_and_apart_until_it_is_short() {
        static M: DmaMemory<{ 4 * PAGE }> = DmaMemory::new();
        let arena = DmaArena::new(&M);
        let a = arena.carve(100, 16).unwrap();
        let b = arena.carve(PAGE, PAGE).unwrap();
        assert_eq!(b.address(0) % PAGE as u64, 0);
        assert!(b.address(0) >= a.address(0) + 100);
        assert!(arena.carve(3 * PAGE, 1).is_none());
        assert_eq!(arena.remaining(), 2 * PAGE);
        let mut c = arena.carve(2 * PAGE, PAGE).unwrap();
        let d = c.split(PAGE).unwrap();
        assert_eq!(c.address(0), d.address(0) + PAGE as u64);
        assert!(c.split(PAGE + 1).is_none());
        assert!(arena.carve(1, 1).is_none());
    }
}

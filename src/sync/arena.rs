//! Page arenas: the memory of data buffers, which devices reach by DMA.
//!
//! First fit over a bitmap, under an [`IrqLock`]: an arena serves one owner (a session, a job) and has few pages.
use core::cell::UnsafeCell;
use core::fmt;
use core::ptr::NonNull;
use core::slice;

use super::irq_lock::IrqLock;
use crate::arch;

/// Bytes of a page.
pub const PAGE_SIZE: usize = 4096;

#[repr(C, align(4096))]
struct Page(UnsafeCell<[u8; PAGE_SIZE]>);

/// Who takes a [`Buffer`]'s memory back.
///
/// # Safety
/// `give_back` must be safe to call once for every `(first, pages)` that the implementor passed to
/// [`Buffer::from_raw_parts`], from any core.
pub unsafe trait BufferOwner: Sync {
    /// Takes `pages` pages back, starting at page `first` of the owner.
    fn give_back(&self, first: usize, pages: usize);
}

struct Map<const PAGES: usize> {
    /// True: taken.
    taken: [bool; PAGES],
    in_use: usize,
    high_water: usize,
    /// Every page below is taken.
    hint: usize,
}

/// `PAGES` pages of 4 KiB, all zeros at first; a page that was used before keeps its bytes. Any core.
pub struct PageArena<const PAGES: usize> {
    map: IrqLock<Map<PAGES>>,
    pages: [Page; PAGES],
}

// SAFETY: a page's bytes are reached only through the one `Buffer` that the map gave it to.
unsafe impl<const PAGES: usize> Sync for PageArena<PAGES> {}

impl<const PAGES: usize> PageArena<PAGES> {
    /// An arena with every page free.
    pub const fn new() -> Self {
        Self {
            map: IrqLock::new(Map {
                taken: [false; PAGES],
                in_use: 0,
                high_water: 0,
                hint: 0,
            }),
            pages: [const { Page(UnsafeCell::new([0; PAGE_SIZE])) }; PAGES],
        }
    }

    /// A buffer of exactly `bytes` bytes in pages that follow one another; `None` when there is no such run, or for
    /// 0 bytes.
    pub fn alloc_contiguous(&'static self, bytes: usize) -> Option<Buffer> {
        let pages = bytes.div_ceil(PAGE_SIZE);
        if pages == 0 || pages > PAGES {
            return None;
        }
        let first = self.map.lock().reserve(pages)?;
        let start = NonNull::from(&self.pages[first..first + pages]).cast::<u8>();
        // SAFETY: `reserve` gave us these pages and nobody else until `give_back`; the slice covers `bytes`; pages
        // are initialised (zeros at first, then whatever was written).
        Some(unsafe { Buffer::from_raw_parts(self, first, pages, start, bytes) })
    }

    /// Pages that buffers hold now.
    pub fn in_use(&self) -> usize {
        self.map.lock().in_use
    }

    /// The most pages ever held at once.
    pub fn high_water(&self) -> usize {
        self.map.lock().high_water
    }

    /// Pages in all.
    pub const fn capacity(&self) -> usize {
        PAGES
    }
}

impl<const PAGES: usize> Map<PAGES> {
    fn reserve(&mut self, pages: usize) -> Option<usize> {
        let mut run = 0;
        for page in self.hint..PAGES {
            run = if self.taken[page] { 0 } else { run + 1 };
            if run == pages {
                let first = page + 1 - pages;
                self.taken[first..=page].fill(true);
                if first == self.hint {
                    self.hint = page + 1;
                }
                self.in_use += pages;
                self.high_water = self.high_water.max(self.in_use);
                return Some(first);
            }
        }
        None
    }
}

impl<const PAGES: usize> Default for PageArena<PAGES> {
    fn default() -> Self {
        Self::new()
    }
}

// SAFETY: `give_back` only marks pages free under the lock; the buffer that calls it is being dropped.
unsafe impl<const PAGES: usize> BufferOwner for PageArena<PAGES> {
    fn give_back(&self, first: usize, pages: usize) {
        let mut map = self.map.lock();
        debug_assert!(
            map.taken[first..first + pages].iter().all(|taken| *taken),
            "pages were given back twice"
        );
        map.taken[first..first + pages].fill(false);
        map.in_use -= pages;
        map.hint = map.hint.min(first);
    }
}

/// Bytes that belong to whoever holds this handle, at a fixed address; dropping it gives them back to their arena.
///
/// A device may read or write them only while the driver holds the handle.
#[must_use = "dropping the buffer gives its pages back"]
pub struct Buffer {
    owner: &'static dyn BufferOwner,
    first: usize,
    pages: usize,
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the handle is the only way to its bytes; the owner is `Sync`.
unsafe impl Send for Buffer {}
// SAFETY: `&Buffer` gives `&[u8]` only.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// A handle on memory that `owner` lends.
    ///
    /// # Safety
    /// `start..start + len` is initialised, valid for reads and writes for as long as the handle lives, and reached
    /// by nothing else. `owner` accepts `(first, pages)` once.
    pub unsafe fn from_raw_parts(
        owner: &'static dyn BufferOwner,
        first: usize,
        pages: usize,
        start: NonNull<u8>,
        len: usize,
    ) -> Self {
        Self {
            owner,
            first,
            pages,
            start,
            len,
        }
    }

    /// Bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes (never, from an arena).
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes.
    #[inline]
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `from_raw_parts` promised `len` valid bytes that only this handle reaches.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// The bytes, to write.
    #[inline]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`; `&mut self` makes the borrow unique.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    /// The first byte's address as a device sees it.
    #[inline]
    pub fn dma(&self) -> u64 {
        arch::dma_address(self.start.as_ptr())
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.owner.give_back(self.first, self.pages);
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes at {:p})", self.len, self.start)
    }
}

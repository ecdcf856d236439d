//! Static pools of records, handed out as owning boxes.
//!
//! A record is *free*, *owned* (one [`PoolBox`]) or *parked* (only its index is known, [`PoolBox::into_index`]).
use core::cell::UnsafeCell;
use core::fmt;
use core::mem::{ManuallyDrop, MaybeUninit};
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

use super::atomic::{AtomicU32, Ordering};
use super::index_stack::IndexStack;

const FREE: u32 = 0;
const OWNED: u32 = 1;
const PARKED: u32 = 2;

struct Slot<T: 'static> {
    /// FREE, OWNED or PARKED.
    state: AtomicU32,
    value: UnsafeCell<MaybeUninit<T>>,
    /// The pool, written by `alloc`: here and not in the box, so that a box is one pointer and moves in a register.
    home: UnsafeCell<MaybeUninit<&'static dyn Home<T>>>,
}

/// What a box needs of its pool, without the pool's size in its type.
trait Home<T: 'static>: Sync {
    fn index_of(&self, slot: NonNull<Slot<T>>) -> usize;
    fn give_back(&self, index: usize);
}

/// `N` records of `T`. All functions from any core; [`Pool::alloc`] and dropping a box from interrupt handlers too.
pub struct Pool<T: 'static, const N: usize> {
    free: IndexStack<N>,
    slots: [Slot<T>; N],
}

// SAFETY: a slot's value is reached only through its one `PoolBox` (state OWNED, won from the free stack or by the
// exchange PARKED→OWNED), so sharing the pool only moves values between threads.
unsafe impl<T: Send, const N: usize> Sync for Pool<T, N> {}

impl<T, const N: usize> Pool<T, N> {
    /// A pool with every record free; all zeros.
    pub const fn new() -> Self {
        Self {
            free: IndexStack::new(),
            slots: [const {
                Slot {
                    state: AtomicU32::new(FREE),
                    value: UnsafeCell::new(MaybeUninit::uninit()),
                    home: UnsafeCell::new(MaybeUninit::uninit()),
                }
            }; N],
        }
    }

    /// How many records are owned or parked.
    pub fn in_use(&self) -> usize {
        self.free.in_use()
    }

    /// The most that were ever in use at once.
    pub fn high_water(&self) -> usize {
        self.free.high_water()
    }

    /// How many records there are.
    pub const fn capacity(&self) -> usize {
        N
    }
}

impl<T: Send, const N: usize> Pool<T, N> {
    /// Puts `value` into a free record.
    ///
    /// # Errors
    /// Gives `value` back when every record is in use.
    #[inline]
    pub fn alloc(&'static self, value: T) -> Result<PoolBox<T>, T> {
        let Some(index) = self.free.take() else {
            return Err(value);
        };
        let slot = &self.slots[index];
        // SAFETY: the index came from the free stack, so no box and no parked value exists for this slot.
        unsafe {
            (*slot.value.get()).write(value);
            (*slot.home.get()).write(self);
        }
        slot.state.store(OWNED, Ordering::Relaxed);
        Ok(PoolBox {
            slot: NonNull::from(slot),
        })
    }

    /// The box of a record parked at `index`; `None` when nothing is parked there.
    #[inline]
    pub fn take(&'static self, index: usize) -> Option<PoolBox<T>> {
        let slot = self.slots.get(index)?;
        slot.state
            .compare_exchange(PARKED, OWNED, Ordering::Acquire, Ordering::Relaxed)
            .ok()?;
        Some(PoolBox {
            slot: NonNull::from(slot),
        })
    }
}

impl<T: Send, const N: usize> Home<T> for Pool<T, N> {
    #[inline]
    fn index_of(&self, slot: NonNull<Slot<T>>) -> usize {
        (slot.addr().get() - self.slots.as_ptr().addr()) / size_of::<Slot<T>>()
    }

    #[inline]
    fn give_back(&self, index: usize) {
        self.free.give_back(index);
    }
}

impl<T, const N: usize> Default for Pool<T, N> {
    fn default() -> Self {
        Self::new()
    }
}

/// Owns one record of a [`Pool`]; dropping it drops the value and frees the record.
#[must_use = "dropping the box frees the record"]
pub struct PoolBox<T: 'static> {
    /// Points into a static pool; state OWNED as long as this box lives.
    slot: NonNull<Slot<T>>,
}

// SAFETY: the box owns its `T` as a `Box` would; the pool behind it is `Sync`.
unsafe impl<T: Send> Send for PoolBox<T> {}
// SAFETY: `&PoolBox<T>` gives `&T` only.
unsafe impl<T: Sync> Sync for PoolBox<T> {}

impl<T> PoolBox<T> {
    #[inline]
    fn home(&self) -> &'static dyn Home<T> {
        // SAFETY: the slot lies in a static pool and is OWNED by this box, which `alloc` wrote `home` for.
        unsafe { (*self.slot.as_ref().home.get()).assume_init() }
    }

    /// Where in the pool the record lies.
    #[inline]
    pub fn index(&self) -> usize {
        self.home().index_of(self.slot)
    }

    /// Parks the record: it stays in use, known only by the returned index, until [`Pool::take`] fetches it.
    #[inline]
    pub fn into_index(self) -> usize {
        let this = ManuallyDrop::new(self);
        let index = this.index();
        // SAFETY: the slot lies in a static pool. From this store on, this box no longer touches it.
        unsafe { this.slot.as_ref() }
            .state
            .store(PARKED, Ordering::Release);
        index
    }
}

impl<T> Deref for PoolBox<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the slot is OWNED by this box alone and was written by `alloc`.
        unsafe { (*self.slot.as_ref().value.get()).assume_init_ref() }
    }
}

impl<T> DerefMut for PoolBox<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`; `&mut self` makes the borrow unique.
        unsafe { (*self.slot.as_ref().value.get()).assume_init_mut() }
    }
}

impl<T> Drop for PoolBox<T> {
    #[inline]
    fn drop(&mut self) {
        let home = self.home();
        // SAFETY: the slot is OWNED by this box, so its value is initialised and nobody else reaches it; after this
        // block the box is gone and the slot is free.
        unsafe {
            let slot = self.slot.as_ref();
            (*slot.value.get()).assume_init_drop();
            slot.state.store(FREE, Ordering::Relaxed);
        }
        home.give_back(home.index_of(self.slot));
    }
}

/// What is done with a record whose [`Recycled`] owner lets it go, instead of freeing it.
pub trait Recycle: Sized + 'static {
    /// Takes the record over.
    fn recycle(record: PoolBox<Self>);
}

/// A [`PoolBox`] that is handed to [`Recycle::recycle`] when it is dropped.
pub struct Recycled<T: Recycle>(ManuallyDrop<PoolBox<T>>);

impl<T: Recycle> Recycled<T> {
    /// Takes `record`.
    #[inline]
    pub const fn new(record: PoolBox<T>) -> Self {
        Self(ManuallyDrop::new(record))
    }
}

impl<T: Recycle> Deref for Recycled<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Recycle> DerefMut for Recycled<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl<T: Recycle> Drop for Recycled<T> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: taken here only, once: nobody reaches the field after its drop.
        T::recycle(unsafe { ManuallyDrop::take(&mut self.0) });
    }
}

impl<T: fmt::Debug> fmt::Debug for PoolBox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

//! A spin lock for a few instructions, taken with interrupts masked, so that handlers may take it too.
//!
//! Not for anything that calls back, waits or loops over more than a small constant: that would delay interrupts.
use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};

use super::atomic::{AtomicBool, Ordering};
use crate::arch::{self, IrqState};

/// A value that one core at a time touches, with interrupts masked. Not recursive.
#[derive(Default)]
pub struct IrqLock<T> {
    taken: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: `taken` admits one guard at a time, and only a guard reaches the value, so sharing the lock only ever
// moves access to the value from thread to thread.
unsafe impl<T: Send> Sync for IrqLock<T> {}

impl<T> IrqLock<T> {
    /// A free lock around `value`.
    pub const fn new(value: T) -> Self {
        Self {
            taken: AtomicBool::new(false),
            value: UnsafeCell::new(value),
        }
    }

    /// Masks interrupts and takes the lock, spinning while another core has it.
    #[inline]
    pub fn lock(&self) -> IrqLockGuard<'_, T> {
        let irq = arch::irq_mask();
        while self
            .taken
            .compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed)
            .is_err()
        {
            // Look without writing until it seems free, so that the line is not fought over.
            while self.taken.load(Ordering::Relaxed) {
                arch::relax();
            }
        }
        IrqLockGuard {
            lock: self,
            irq,
            _not_send: PhantomData,
        }
    }

    /// The value of a lock that nobody else can know of.
    pub fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }
}

/// The lock is held, and interrupts are masked, until this is dropped.
pub struct IrqLockGuard<'a, T> {
    lock: &'a IrqLock<T>,
    irq: IrqState,
    /// The mask belongs to the core that took the lock.
    _not_send: PhantomData<*const ()>,
}

impl<T> Deref for IrqLockGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: this guard is the only one (`taken` was won), so nothing else reads or writes the value.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for IrqLockGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`, and `&mut self` makes this the guard's only borrow.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for IrqLockGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.lock.taken.store(false, Ordering::Release);
        arch::irq_restore(self.irq);
    }
}

//! Boxes one value, so that `tests/no-heap` has something to find. Built as the firmware is, never run.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::boxed::Box;
use core::alloc::{GlobalAlloc, Layout};
use core::hint::black_box;
use core::sync::atomic::{AtomicUsize, Ordering};

/// Gives out a few bytes and takes none back.
struct Bump {
    used: AtomicUsize,
}

static ROOM: [AtomicUsize; 64] = [const { AtomicUsize::new(0) }; 64];

// SAFETY: every word of ROOM is given out at most once, aligned to 8, and it lives as long as the program.
unsafe impl GlobalAlloc for Bump {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let words = layout.size().div_ceil(8);
        let first = self.used.fetch_add(words, Ordering::Relaxed);
        if layout.align() > 8 || first + words > ROOM.len() {
            return core::ptr::null_mut();
        }
        ROOM[first].as_ptr().cast()
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}

#[global_allocator]
static BUMP: Bump = Bump { used: AtomicUsize::new(0) };

#[unsafe(no_mangle)]
extern "C" fn _start() -> ! {
    let boxed: Box<u64> = Box::new(black_box(1));
    black_box(boxed);
    loop {}
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

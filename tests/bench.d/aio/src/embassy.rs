//! The same for `embassy-executor` and its timer queue, driven as its manual says: an executor of our own over
//! `raw::Executor`, and a time driver whose queue is the one integrated into the tasks.

use core::cell::{Cell, RefCell};
use core::future::poll_fn;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::task::{Poll, Waker};

use critical_section::{Mutex, RawRestoreState};
use embassy_executor::raw::Executor;
use embassy_time_driver::Driver;
use embassy_time_queue_utils::Queue;
use ironthread::arch;
use ironthread_target_tests::Once;

use crate::{begin, end, measure, scatter};

const FAR: u64 = 1 << 50;

// --- one core, so masking interrupts is a critical section ---

struct Masked;
critical_section::set_impl!(Masked);

// SAFETY: only core 0 runs embassy's tasks here, and nothing preempts it while interrupts are masked.
unsafe impl critical_section::Impl for Masked {
    unsafe fn acquire() -> RawRestoreState {
        let daif: u64;
        // SAFETY: masks interrupts.
        unsafe {
            core::arch::asm!("mrs {}, daif", "msr daifset, #2", out(reg) daif, options(nostack));
        }
        daif & 1 << 7 != 0
    }

    unsafe fn release(was_masked: RawRestoreState) {
        if !was_masked {
            // SAFETY: they were unmasked before.
            unsafe { core::arch::asm!("msr daifclr, #2", options(nostack)) };
        }
    }
}

static PENDED: AtomicBool = AtomicBool::new(false);

/// Called by embassy when a task of an executor without other work was woken.
#[unsafe(no_mangle)]
extern "Rust" fn __pender(_: *mut ()) {
    PENDED.store(true, Ordering::Relaxed);
}

struct Clock {
    queue: Mutex<RefCell<Queue>>,
    alarm: AtomicU64,
}

impl Clock {
    fn arm_alarm(&self, next: u64) {
        self.alarm.store(next, Ordering::Relaxed);
    }

    /// The alarm's interrupt, at `now`.
    #[inline]
    fn expire(&self, now: u64) {
        critical_section::with(|section| {
            let next = self.queue.borrow(section).borrow_mut().next_expiration(now);
            self.arm_alarm(next);
        });
    }
}

impl Driver for Clock {
    #[inline]
    fn now(&self) -> u64 {
        arch::now_ns()
    }

    #[inline]
    fn schedule_wake(&self, at: u64, waker: &Waker) {
        critical_section::with(|section| {
            let mut queue = self.queue.borrow(section).borrow_mut();
            if queue.schedule_wake(at, waker) {
                let next = queue.next_expiration(self.now());
                self.arm_alarm(next);
            }
        });
    }
}

embassy_time_driver::time_driver_impl!(static CLOCK: Clock = Clock {
    queue: Mutex::new(RefCell::new(Queue::new())),
    alarm: AtomicU64::new(u64::MAX),
});

// --- the tasks ---

static ARRIVES: AtomicBool = AtomicBool::new(false);
static WAKER: Mutex<Cell<Option<Waker>>> = Mutex::new(Cell::new(None));

#[embassy_executor::task]
async fn woken() {
    poll_fn(|context| {
        if ARRIVES.load(Ordering::Relaxed) {
            end();
        } else {
            critical_section::with(|section| {
                WAKER.borrow(section).set(Some(context.waker().clone()))
            });
        }
        Poll::<()>::Pending
    })
    .await;
}

#[embassy_executor::task(pool_size = 1000)]
async fn parked(at: u64) {
    poll_fn(|context| {
        embassy_time_driver::schedule_wake(at, context.waker());
        Poll::<()>::Pending
    })
    .await;
}

/// 0: [`arming`] does nothing; else its next deadline.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// Arms a timer, measured, whenever it is told one; else its being polled ends a measurement.
#[embassy_executor::task]
async fn arming() {
    poll_fn(|context| {
        match NEXT.swap(0, Ordering::Relaxed) {
            0 => end(),
            at => {
                begin();
                embassy_time_driver::schedule_wake(at, context.waker());
                end();
                critical_section::with(|section| {
                    WAKER.borrow(section).set(Some(context.waker().clone()));
                });
            }
        }
        Poll::<()>::Pending
    })
    .await;
}

struct OneCore(Option<Executor>);
// SAFETY: core 0 makes it and is the only one to use it.
unsafe impl Send for OneCore {}

static EXECUTOR: Once<OneCore> = Once::new(OneCore(None));

fn take_waker() -> Waker {
    match critical_section::with(|section| WAKER.borrow(section).take()) {
        Some(waker) => waker,
        None => panic!("the task was not polled"),
    }
}

pub fn run() {
    let executor: &'static Executor = EXECUTOR
        .take()
        .0
        .insert(Executor::new(core::ptr::null_mut()));
    let spawner = executor.spawner();
    // SAFETY: called here only, by one core, never inside of itself.
    let poll = || unsafe { executor.poll() };
    spawner.must_spawn(woken());
    poll();
    let waker = take_waker();
    measure("embassy_poll_empty", "", |_| {
        begin();
        poll();
        end();
    });
    ARRIVES.store(true, Ordering::Relaxed);
    measure("embassy_wake_to_poll", "", |_| {
        begin();
        waker.wake_by_ref();
        poll();
    });
    ARRIVES.store(false, Ordering::Relaxed);
    measure("embassy_wake", "", |_| {
        begin();
        waker.wake_by_ref();
        end();
        poll();
    });
    measure("embassy_wake_and_poll", "", |_| {
        begin();
        waker.wake_by_ref();
        poll();
        end();
    });
    NEXT.store(FAR, Ordering::Relaxed);
    spawner.must_spawn(arming());
    poll();
    let arming = take_waker();
    CLOCK.expire(FAR);
    poll();
    let mut armed = 0;
    for (count, suffix) in [(10, "_10"), (1000, "_1000")] {
        while armed < count {
            spawner.must_spawn(parked(FAR + (1 << 30) + scatter(armed)));
            armed += 1;
        }
        poll();
        measure("embassy_timer_arm", suffix, |number| {
            NEXT.store(FAR + number, Ordering::Relaxed);
            arming.wake_by_ref();
            poll();
            let cost = (
                crate::BEGIN.load(Ordering::Relaxed),
                crate::END.load(Ordering::Relaxed),
            );
            CLOCK.expire(FAR + number);
            poll();
            crate::BEGIN.store(cost.0, Ordering::Relaxed);
            crate::END.store(cost.1, Ordering::Relaxed);
        });
        measure("embassy_timer_due_to_poll", suffix, |number| {
            NEXT.store(FAR + number, Ordering::Relaxed);
            arming.wake_by_ref();
            poll();
            begin();
            CLOCK.expire(FAR + number);
            poll();
        });
        measure("embassy_timer_due_and_poll", suffix, |number| {
            NEXT.store(FAR + number, Ordering::Relaxed);
            arming.wake_by_ref();
            poll();
            begin();
            CLOCK.expire(FAR + number);
            poll();
            end();
        });
    }
}

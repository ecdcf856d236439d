//! What cases keep in statics: counters, handles, logs; and short forms of what nearly every case does.
use core::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use ironthread::aio::{AioContext, BottomHalf, Callback, EventNotifier, Timer};
use spin::Mutex;

/// A counter, or a flag.
pub struct Count(AtomicUsize);

impl Count {
    pub const fn new() -> Self {
        Self(AtomicUsize::new(0))
    }

    pub fn set(&self, value: usize) {
        self.0.store(value, SeqCst);
    }

    /// Adds one; returns the new value.
    pub fn add(&self) -> usize {
        self.0.fetch_add(1, SeqCst) + 1
    }

    pub fn get(&self) -> usize {
        self.0.load(SeqCst)
    }

    pub fn at_most(&self, value: usize) {
        self.0.fetch_min(value, SeqCst);
    }

    pub fn at_least(&self, value: usize) {
        self.0.fetch_max(value, SeqCst);
    }
}

/// A place for a handle that callbacks need before it exists.
pub struct Place<T>(Mutex<Option<T>>);

impl<T: Copy> Place<T> {
    pub const fn new() -> Self {
        Self(Mutex::new(None))
    }

    pub fn set(&self, value: T) -> T {
        *self.0.lock() = Some(value);
        value
    }

    pub fn get(&self) -> T {
        self.peek().expect("set before it is used")
    }

    pub fn peek(&self) -> Option<T> {
        *self.0.lock()
    }

    /// Takes the value out.
    pub fn take(&self) -> T {
        self.0.lock().take().expect("set before it is taken")
    }
}

/// What happened, in order.
pub struct Log(Mutex<heapless::Vec<usize, 64>>);

impl Log {
    pub const fn new() -> Self {
        Self(Mutex::new(heapless::Vec::new()))
    }

    pub fn push(&self, what: usize) {
        assert!(self.0.lock().push(what).is_ok(), "the log is full");
    }

    /// Sees that just this happened, and forgets it.
    #[track_caller]
    pub fn expect(&self, what: &[usize]) {
        let mut log = self.0.lock();
        assert_eq!(&log[..], what);
        log.clear();
    }
}

/// What callbacks are made of.
pub type Function = &'static (dyn Fn(usize) + Sync);

pub fn bottom_half(
    context: &'static AioContext,
    function: Function,
    argument: usize,
) -> BottomHalf {
    context
        .bottom_half("case", Callback::new(function, argument))
        .expect("a free bottom half")
}

pub fn timer(context: &'static AioContext, function: Function, argument: usize) -> Timer {
    context
        .timer("case", Callback::new(function, argument))
        .expect("a free timer")
}

/// Calls `function` once in `context`.
pub fn send(context: &'static AioContext, function: Function, argument: usize) {
    context
        .schedule_oneshot("case", Callback::new(function, argument))
        .expect("a free one-shot");
}

pub fn register(
    context: &'static AioContext,
    notifier: &'static EventNotifier,
    function: Function,
) {
    context
        .register(notifier, "case", Callback::new(function, 0), None)
        .expect("a free handler");
}

/// Polls without waiting until there is nothing more to do.
pub fn drain(context: &'static AioContext) {
    while context.poll(false) {}
}

/// In a callback: polls the context that it runs in.
pub fn poll_here(blocking: bool) -> bool {
    AioContext::current()
        .expect("a callback runs on a core")
        .poll(blocking)
}

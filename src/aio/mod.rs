//! The event loop (signatures; being filled in).
use core::future::Future;
use crate::arch::CoreId;
use crate::config::MAX_CORES;

/// Why something could not be created or done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AioError {
    /// The static pool of such records is used up.
    Exhausted,
    /// The thing is armed, scheduled or registered elsewhere already.
    Busy,
    /// The handle's record was deleted.
    Stale,
    /// The loop of that context does not run.
    Stopped,
}

/// What to call, and with which argument.
#[derive(Clone, Copy)]
pub struct Callback {
    function: &'static (dyn Fn(usize) + Sync),
    argument: usize,
}

impl Callback {
    /// `function`, to be called with `argument`.
    pub const fn new(function: &'static (dyn Fn(usize) + Sync), argument: usize) -> Self {
        Self { function, argument }
    }

    /// Calls it.
    #[inline]
    pub fn call(self) {
        (self.function)(self.argument);
    }
}

/// A bottom half; see [`AioContext::bottom_half`].
#[derive(Clone, Copy)]
pub struct BottomHalf {
    _context: &'static AioContext,
}

impl BottomHalf {
    /// Runs it once in the next batch. Any core, interrupt handlers too. False: the handle is stale.
    pub fn schedule(&self) -> bool {
        unimplemented!()
    }
    /// As `schedule`, without counting as progress, within 10 ms.
    pub fn schedule_idle(&self) -> bool {
        unimplemented!()
    }
    /// Takes a schedule back.
    pub fn cancel(&self) {
        unimplemented!()
    }
    /// Cancels and frees the record.
    pub fn delete(self) {
        unimplemented!()
    }
}

/// A timer; see [`AioContext::timer`].
#[derive(Clone, Copy)]
pub struct Timer {
    _context: &'static AioContext,
}

impl Timer {
    /// Arms (or re-arms) it for `deadline_ns` of [`arch::now_ns`](crate::arch::now_ns). Any core.
    pub fn arm_at(&self, _deadline_ns: u64) {
        unimplemented!()
    }
    /// As `arm_at`, never later than it is armed for.
    pub fn anticipate(&self, _deadline_ns: u64) {
        unimplemented!()
    }
    /// Disarms it.
    pub fn cancel(&self) {
        unimplemented!()
    }
    /// Whether it is armed.
    pub fn is_pending(&self) -> bool {
        unimplemented!()
    }
    /// Frees the record of a timer that is not armed.
    ///
    /// # Errors
    /// `Busy` while it is armed.
    pub fn delete(self) -> Result<(), AioError> {
        unimplemented!()
    }
}

/// A sticky event.
pub struct EventNotifier {
    _state: crate::sync::atomic::AtomicBool,
}

impl EventNotifier {
    /// A notifier that is not set and not registered.
    pub const fn new() -> Self {
        Self { _state: crate::sync::atomic::AtomicBool::new(false) }
    }
    /// Sets it. Any core, interrupt handlers too.
    pub fn set(&'static self) {
        unimplemented!()
    }
    /// Whether it was set; clears it.
    pub fn test_and_clear(&self) -> bool {
        unimplemented!()
    }
    /// Whether it is set.
    pub fn is_set(&self) -> bool {
        unimplemented!()
    }
}

/// Something to do once at the end of a turn of the loop.
#[derive(Clone, Copy)]
pub struct TurnHook {
    _context: &'static AioContext,
}

impl TurnHook {
    /// Runs it at the end of this poll's dispatch. Home core only.
    pub fn arm(&self) {
        unimplemented!()
    }
}

/// A coroutine that was spawned.
#[derive(Clone, Copy)]
pub struct CoroutineHandle {
    _context: &'static AioContext,
}

impl CoroutineHandle {
    /// Whether it has ended.
    pub fn is_finished(&self) -> bool {
        unimplemented!()
    }
    /// Resumes it. Any core, interrupt handlers too.
    pub fn wake(&self) {
        unimplemented!()
    }
}

/// What a context has done since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ContextStats {
    /// Calls of `poll`.
    pub turns: u64,
    /// Bottom halves run.
    pub bottom_halves: u64,
    /// Handlers called.
    pub handlers: u64,
    /// Timers fired.
    pub timers: u64,
    /// Coroutine steps.
    pub coroutine_steps: u64,
    /// Waits for an interrupt.
    pub sleeps: u64,
    /// Kicks (SGIs) sent to it.
    pub kicks: u64,
    /// Rounds of busy polling that found something.
    pub poll_hits: u64,
    /// Rounds of busy polling that found nothing.
    pub poll_misses: u64,
    /// Longest time its lock was held by `acquire`, in ns.
    pub lock_high_water_ns: u64,
}

/// An event loop: one a core.
pub struct AioContext {
    name: &'static str,
    lock: crate::sync::ContextLock,
}

/// One level of a context's lock.
pub struct ContextGuard<'a> {
    context: &'a AioContext,
}

impl Drop for ContextGuard<'_> {
    fn drop(&mut self) {
        self.context.release();
    }
}

#[allow(missing_docs)]
impl AioContext {
    pub const fn new(name: &'static str) -> Self {
        Self { name, lock: crate::sync::ContextLock::new() }
    }
    pub fn attach(&'static self, _core: CoreId) {
        unimplemented!()
    }
    pub fn current() -> Option<&'static AioContext> {
        unimplemented!()
    }
    pub fn core(&self) -> CoreId {
        unimplemented!()
    }
    pub fn name(&self) -> &'static str {
        self.name
    }
    pub fn poll(&'static self, _blocking: bool) -> bool {
        unimplemented!()
    }
    pub fn notify(&self) {
        unimplemented!()
    }
    pub fn acquire(&self) {
        self.lock.acquire();
    }
    pub fn release(&self) {
        self.lock.release();
    }
    pub fn lock(&self) -> ContextGuard<'_> {
        self.acquire();
        ContextGuard { context: self }
    }
    pub fn bottom_half(&'static self, _name: &'static str, _cb: Callback) -> Result<BottomHalf, AioError> {
        unimplemented!()
    }
    pub fn schedule_oneshot(&'static self, _name: &'static str, _cb: Callback) -> Result<(), AioError> {
        unimplemented!()
    }
    pub fn timer(&'static self, _name: &'static str, _cb: Callback) -> Result<Timer, AioError> {
        unimplemented!()
    }
    pub fn register(
        &'static self,
        _notifier: &'static EventNotifier,
        _name: &'static str,
        _ready: Callback,
        _poll_check: Option<&'static (dyn Fn(usize) -> bool + Sync)>,
    ) -> Result<(), AioError> {
        unimplemented!()
    }
    pub fn unregister(&'static self, _notifier: &EventNotifier) {
        unimplemented!()
    }
    pub fn turn_hook(&'static self, _name: &'static str, _cb: Callback) -> Result<TurnHook, AioError> {
        unimplemented!()
    }
    pub fn spawn<F: Future<Output = ()> + Send + 'static>(
        &'static self,
        _name: &'static str,
        _future: F,
    ) -> Result<CoroutineHandle, AioError> {
        unimplemented!()
    }
    pub fn set_poll_max_ns(&self, _ns: u64) {
        unimplemented!()
    }
    pub fn stats(&self) -> ContextStats {
        unimplemented!()
    }
}

/// The firmware's contexts, one a core.
pub static CONTEXTS: [AioContext; MAX_CORES] = [const { AioContext::new("core") }; MAX_CORES];

/// The context of `core`.
pub fn context(core: CoreId) -> &'static AioContext {
    &CONTEXTS[core]
}

/// The main loop's context: core 0.
pub fn main_context() -> &'static AioContext {
    context(0)
}

/// Runs the current core's loop until [`stop`].
pub fn run_loop(_context: &'static AioContext) {
    unimplemented!()
}

/// Ends the loop of `context`. Idempotent; from any core.
pub fn stop(_context: &'static AioContext) {
    unimplemented!()
}

/// Main loop only: polls while `condition` holds; returns whether it waited at all.
pub fn wait_while(_condition: impl FnMut() -> bool) -> bool {
    unimplemented!()
}

/// Makes the main loop look at its conditions again. Any core.
pub fn wait_kick() {
    unimplemented!()
}

/// Runs `work` in `context` and waits for its end. Main loop only.
pub fn run_and_wait(_context: &'static AioContext, _work: Callback) -> Result<(), AioError> {
    unimplemented!()
}

/// A coroutine waits until `deadline_ns`.
pub async fn sleep_until(_deadline_ns: u64) {
    unimplemented!()
}

/// A coroutine lets others of its context run.
pub async fn yield_now() {
    unimplemented!()
}

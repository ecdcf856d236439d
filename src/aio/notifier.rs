//! Event notifiers: sticky bits that interrupt handlers and other cores set, and whose handlers a context calls.
//!
//! A notifier is registered in one context at a time. Setting it marks its slot in that context's *ready* words; the
//! loop looks at those few words only, so idle handlers cost nothing. Handlers are level-triggered: one that leaves
//! its notifier set is called again in the next poll (EN-3).
#![forbid(unsafe_code)]

use super::callback::{AioError, Callback};
use super::context::AioContext;
use crate::config::HANDLERS;
use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use crate::sync::{IrqLock, StaticRef};

/// Words of one bit a handler.
pub(super) const WORDS: usize = HANDLERS.div_ceil(64);

/// Looks, cheaply and without side effects, whether a source has work now; called with the ready callback's argument.
pub type PollCheck = &'static (dyn Fn(usize) -> bool + Sync);

/// A sticky, coalescing event: n sets are one.
pub struct EventNotifier {
    set: AtomicBool,
    claimed: AtomicBool,
    slot: AtomicU32,
    context: StaticRef<AioContext>,
}

impl EventNotifier {
    /// A notifier that is not set and not registered.
    pub const fn new() -> Self {
        Self {
            set: AtomicBool::new(false),
            claimed: AtomicBool::new(false),
            slot: AtomicU32::new(0),
            context: StaticRef::new(),
        }
    }

    /// Sets it. Any core, interrupt handlers too; never blocks (EN-1).
    #[inline]
    pub fn set(&self) {
        // An exchange, so that one clear takes over from every setter before it, not only from the last.
        self.set.swap(true, Ordering::Release);
        // Pairs with the fence in `register`: either we see the registration here, or it sees the set bit.
        fence(Ordering::SeqCst);
        if let Some(context) = self.context.get() {
            context
                .handlers
                .mark(self.slot.load(Ordering::Relaxed) as usize);
            context.wake();
        }
    }

    /// Whether it was set since the last clear; clears all of that (EN-2).
    #[inline]
    pub fn test_and_clear(&self) -> bool {
        // An exchange, not a store: it reads the newest set and with it all that the setter wrote before.
        self.set.load(Ordering::Relaxed) && self.set.swap(false, Ordering::Acquire)
    }

    /// Its slot, when it is registered in `context`.
    pub(super) fn slot_in(&self, context: &AioContext) -> Option<usize> {
        self.context
            .is(context)
            .then(|| self.slot.load(Ordering::Relaxed) as usize)
    }

    /// Whether it is set.
    #[inline]
    pub fn is_set(&self) -> bool {
        self.set.load(Ordering::Acquire)
    }
}

impl Default for EventNotifier {
    fn default() -> Self {
        Self::new()
    }
}

/// What a context calls for a notifier.
#[derive(Clone, Copy)]
pub struct Handler {
    /// Called in the dispatch phase when the notifier is set or the poll check said yes; clears the notifier.
    pub ready: Callback,
    /// Asked while the loop polls before it sleeps.
    pub poll_check: Option<PollCheck>,
    /// Polling begins: for example, switch the device's interrupts off (EN-13).
    pub poll_begin: Option<Callback>,
    /// Polling ends: switch them on again. The loop asks `poll_check` once more afterwards.
    pub poll_end: Option<Callback>,
}

/// A registered handler. Never changed in place: replaced as a whole, under the table's lock (EN-6).
#[derive(Clone, Copy)]
pub(super) struct Registration {
    pub(super) notifier: &'static EventNotifier,
    pub(super) handler: Handler,
    pub(super) name: &'static str,
    /// The dispatch pass in which it was registered: it is first called in a later one (POLL-11).
    pub(super) born: u32,
}

/// The handlers of a context.
#[repr(C)]
pub(super) struct Handlers {
    /// Slots whose notifier was set. Any core sets, the home core clears.
    pub(super) ready: [AtomicU64; WORDS],
    /// Slots whose poll check said yes. The home core sets, any core that ends the registration clears.
    pub(super) polled: [AtomicU64; WORDS],
    /// Slots whose handler runs now: not poll-checked by a nested poll (EN-12). Home core.
    pub(super) busy: [AtomicU64; WORDS],
    /// Number of the current dispatch pass; written by the home core.
    pub(super) pass: AtomicU32,
    table: IrqLock<[Option<Registration>; HANDLERS]>,
}

#[inline]
pub(super) const fn bit(slot: usize) -> (usize, u64) {
    (slot / 64, 1 << (slot % 64))
}

impl Handlers {
    pub(super) const fn new() -> Self {
        Self {
            table: IrqLock::new([const { None }; HANDLERS]),
            ready: [const { AtomicU64::new(0) }; WORDS],
            polled: [const { AtomicU64::new(0) }; WORDS],
            busy: [const { AtomicU64::new(0) }; WORDS],
            pass: AtomicU32::new(0),
        }
    }

    /// Marks `slot` ready. A mark without a set notifier is harmless: the loop looks at the notifier before it calls,
    /// and asks the poll check, if there is one.
    #[inline]
    pub(super) fn mark(&self, slot: usize) {
        let (word, mask) = bit(slot);
        self.ready[word].fetch_or(mask, Ordering::Release);
    }

    /// Whether any handler is due. Plain loads.
    #[inline]
    pub(super) fn any_ready(&self) -> bool {
        self.ready
            .iter()
            .chain(&self.polled)
            .fold(0, |all, word| all | word.load(Ordering::Relaxed))
            != 0
    }

    /// A dispatch begins: what is registered from now on is first called in the next (POLL-11). Home core.
    #[inline]
    pub(super) fn begin_pass(&self) {
        self.pass.store(
            self.pass.load(Ordering::Relaxed).wrapping_add(1),
            Ordering::Relaxed,
        );
    }

    #[inline]
    pub(super) fn get(&self, slot: usize) -> Option<Registration> {
        self.table.lock()[slot]
    }
}

impl AioContext {
    /// Calls `ready` whenever `notifier` is set, and, while the loop polls before sleeping, whenever `poll_check`
    /// (called with `ready`'s argument) says that there is work. Registering a notifier again in the same context
    /// replaces its handler. A notifier that is set already is called soon, and `poll_check` is asked once, soon, for
    /// what came while nobody listened. Any core.
    ///
    /// # Errors
    /// [`AioError::Busy`]: registered in another context. [`AioError::Exhausted`]: the context has [`HANDLERS`].
    pub fn register(
        &'static self,
        notifier: &'static EventNotifier,
        name: &'static str,
        ready: Callback,
        poll_check: Option<PollCheck>,
    ) -> Result<(), AioError> {
        self.register_handler(
            notifier,
            name,
            Handler {
                ready,
                poll_check,
                poll_begin: None,
                poll_end: None,
            },
        )
    }

    /// As [`register`](Self::register), with callbacks at the begin and end of polling.
    ///
    /// # Errors
    /// As for `register`.
    pub fn register_handler(
        &'static self,
        notifier: &'static EventNotifier,
        name: &'static str,
        handler: Handler,
    ) -> Result<(), AioError> {
        {
            let mut table = self.handlers.table.lock();
            let born = self.handlers.pass.load(Ordering::Relaxed);
            let registration = Registration {
                notifier,
                handler,
                name,
                born,
            };
            if notifier.context.is(self) {
                table[notifier.slot.load(Ordering::Relaxed) as usize] = Some(registration);
            } else {
                if notifier.claimed.swap(true, Ordering::Acquire) {
                    return Err(AioError::Busy);
                }
                let Some(slot) = table.iter().position(Option::is_none) else {
                    notifier.claimed.store(false, Ordering::Release);
                    return Err(AioError::Exhausted);
                };
                table[slot] = Some(registration);
                self.adaptive.forget(slot);
                notifier.slot.store(slot as u32, Ordering::Relaxed);
                notifier.context.set(Some(self));
            }
        }
        // Pairs with the fence in `set`.
        fence(Ordering::SeqCst);
        // A source may have got work while nobody listened: it is asked once (EN-15, CS-11).
        if notifier.is_set() || handler.poll_check.is_some() {
            self.handlers
                .mark(notifier.slot.load(Ordering::Relaxed) as usize);
        }
        self.notify();
        Ok(())
    }

    /// Ends the registration of `notifier`; one that is not registered here is left alone. On the home core its
    /// handler is not called any more, not even in this very pass (EN-8); from another core it may just be running.
    /// The notifier keeps its state.
    pub fn unregister(&'static self, notifier: &EventNotifier) {
        {
            let mut table = self.handlers.table.lock();
            if !notifier.context.is(self) {
                return;
            }
            let slot = notifier.slot.load(Ordering::Relaxed) as usize;
            notifier.context.set(None);
            table[slot] = None;
            self.adaptive.forget(slot);
            // What its check has found is not for the next in this slot (EN-7).
            let (word, mask) = bit(slot);
            self.handlers.polled[word].fetch_and(!mask, Ordering::Relaxed);
            notifier.claimed.store(false, Ordering::Release);
        }
        self.notify();
    }

    /// The names of the registered handlers, in slot order. For reports.
    pub fn for_each_handler(&self, mut f: impl FnMut(&'static str)) {
        for slot in 0..HANDLERS {
            if let Some(registration) = self.handlers.get(slot) {
                f(registration.name);
            }
        }
    }
}

impl Registration {
    /// Whether this very notifier is still registered in `context` at `slot`.
    #[inline]
    pub(super) fn is_current(&self, context: &AioContext, slot: usize) -> bool {
        self.notifier.context.is(context)
            && self.notifier.slot.load(Ordering::Relaxed) as usize == slot
    }
}

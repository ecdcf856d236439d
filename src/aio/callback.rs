//! What the loop calls, and why something is refused.
#![forbid(unsafe_code)]

use core::fmt;

/// What to call, and with which argument (an index into some static table, usually).
///
/// `Callback::new(&function, 3)` works for plain functions: a reference to a function item is `'static`.
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

    /// The argument it is called with.
    #[inline]
    pub const fn argument(&self) -> usize {
        self.argument
    }
}

impl fmt::Debug for Callback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Callback({})", self.argument)
    }
}

/// Why the event loop refused something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AioError {
    /// The static pool of such records is used up; try again when one was freed.
    Exhausted,
    /// It is armed, scheduled, running or registered already.
    Busy,
    /// The record of this handle was deleted.
    Stale,
    /// The loop of that context was stopped.
    Stopped,
}

impl fmt::Display for AioError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exhausted => "no record is free",
            Self::Busy => "busy elsewhere",
            Self::Stale => "deleted",
            Self::Stopped => "the context is stopped",
        })
    }
}

impl core::error::Error for AioError {}

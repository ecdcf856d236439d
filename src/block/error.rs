//! The errors of the block layer, one flat enumeration for every node, device and user.
#![forbid(unsafe_code)]

use core::fmt;

/// Why a request, or an operation on a node, failed.
///
/// No variant is number 0: that is "no error", which so costs least to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockError {
    /// The device or node could not do it; the content of a written range is old or new, block by block (DUR-7).
    Io = 1,
    /// A write beyond the end.
    NoSpace,
    /// Unaligned, out of range, or malformed.
    Invalid,
    /// A write to something read-only.
    ReadOnly,
    /// The operation, or a flag of it, cannot be honoured; nothing was written.
    NotSupported,
    /// The backend has no root node, or the node is gone.
    NoMedium,
    /// In use: the operation has to wait for another one, or for a user to let go.
    Busy,
    /// Given up by its submitter.
    Cancelled,
    /// The system is going down.
    Shutdown,
    /// A static pool is exhausted.
    NoMemory,
}

impl BlockError {
    /// The error's number as Linux counts them (positive).
    ///
    /// `ReadOnly` is `EPERM`, the number that NBD wants for it. NBD knows only 1, 5, 12, 22, 28, 75, 95 and 108; an
    /// export sends `EIO` for the others.
    pub const fn errno(self) -> i32 {
        match self {
            Self::ReadOnly => 1,
            Self::Io => 5,
            Self::NoMemory => 12,
            Self::Busy => 16,
            Self::Invalid => 22,
            Self::NoSpace => 28,
            Self::NotSupported => 95,
            Self::Shutdown => 108,
            Self::NoMedium => 123,
            Self::Cancelled => 125,
        }
    }

    /// A few words for a person.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Io => "input/output error",
            Self::NoSpace => "beyond the end",
            Self::Invalid => "invalid argument",
            Self::ReadOnly => "read-only",
            Self::NotSupported => "not supported",
            Self::NoMedium => "no medium",
            Self::Busy => "busy",
            Self::Cancelled => "cancelled",
            Self::Shutdown => "shutting down",
            Self::NoMemory => "out of records",
        }
    }

    /// For storing an error in an atomic: never zero.
    pub(crate) const fn code(self) -> u8 {
        self as u8
    }

    /// The error with that [`code`](Self::code).
    pub(crate) const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Io,
            2 => Self::NoSpace,
            3 => Self::Invalid,
            4 => Self::ReadOnly,
            5 => Self::NotSupported,
            6 => Self::NoMedium,
            7 => Self::Busy,
            8 => Self::Cancelled,
            9 => Self::Shutdown,
            10 => Self::NoMemory,
            _ => return None,
        })
    }
}

impl fmt::Display for BlockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl core::error::Error for BlockError {}

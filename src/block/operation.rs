//! What a request can ask for.
#![forbid(unsafe_code)]

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Operation {
    /// Fill the segments from the range.
    Read,
    /// Write the segments to the range.
    Write,
    /// Make durable every write that completed before (DUR-1).
    Flush,
    /// The range's content is no longer needed.
    Discard,
    /// The range reads as zeroes from now on.
    WriteZeroes,
}

impl Operation {
    /// All operations, in the order of their [`index`](Self::index).
    pub const ALL: [Self; 5] = [
        Self::Read,
        Self::Write,
        Self::Flush,
        Self::Discard,
        Self::WriteZeroes,
    ];

    /// Position in per-operation tables.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Whether it changes the medium; `Flush` does not.
    pub const fn is_write(self) -> bool {
        matches!(self, Self::Write | Self::Discard | Self::WriteZeroes)
    }

    /// Whether it carries data segments.
    pub const fn has_data(self) -> bool {
        matches!(self, Self::Read | Self::Write)
    }

    /// A word for a person.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Discard => "discard",
            Self::WriteZeroes => "write-zeroes",
        }
    }
}

bitflags::bitflags! {
    /// How an operation is to be done.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct RequestFlags: u8 {
        /// The answer comes only when this request's effect is durable (DUR-2).
        const FUA = 1 << 0;
        /// Write-zeroes may deallocate.
        const MAY_UNMAP = 1 << 1;
        /// Write-zeroes must fail, with nothing written, where it would be no faster than writing zeroes.
        const FAST_ZERO = 1 << 2;
        /// A read by a job: a mirror writes what it reads to the leg that it rebuilds. Nobody else looks at it.
        const REBUILD = 1 << 3;
    }
}

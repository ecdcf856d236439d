//! What a throttle is told: six limits and the size of an operation; which of it makes sense.
#![forbid(unsafe_code)]

use core::fmt;

use super::bucket::Limit;
use crate::block::Operation;

/// Largest rate, burst rate, and product of burst rate and length.
pub const MOST: u64 = 1_000_000_000_000_000;

/// Which limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Bytes, read and written.
    BytesTotal,
    /// Bytes read.
    BytesRead,
    /// Bytes written.
    BytesWrite,
    /// Operations of both kinds.
    OpsTotal,
    /// Reads.
    OpsRead,
    /// Writes.
    OpsWrite,
}

impl Kind {
    /// All, in the order of their [`index`](Self::index).
    pub const ALL: [Self; 6] = [
        Self::BytesTotal,
        Self::BytesRead,
        Self::BytesWrite,
        Self::OpsTotal,
        Self::OpsRead,
        Self::OpsWrite,
    ];

    /// Its place in a table.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Whether it counts bytes.
    pub const fn is_bytes(self) -> bool {
        matches!(self, Self::BytesTotal | Self::BytesRead | Self::BytesWrite)
    }

    /// Its name in a configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BytesTotal => "bps-total",
            Self::BytesRead => "bps-read",
            Self::BytesWrite => "bps-write",
            Self::OpsTotal => "iops-total",
            Self::OpsRead => "iops-read",
            Self::OpsWrite => "iops-write",
        }
    }
}

/// Which way data go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Direction {
    /// From the medium.
    Read,
    /// To it: writes, zeroes, discards.
    Write,
}

impl Direction {
    /// Both, in the order of their [`index`](Self::index).
    pub const ALL: [Self; 2] = [Self::Read, Self::Write];

    /// Its place in a table.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The other one.
    pub const fn other(self) -> Self {
        match self {
            Self::Read => Self::Write,
            Self::Write => Self::Read,
        }
    }

    /// That of an operation; a flush has none: nothing limits it.
    pub const fn of(operation: Operation) -> Option<Self> {
        match operation {
            Operation::Read => Some(Self::Read),
            Operation::Write | Operation::WriteZeroes | Operation::Discard => Some(Self::Write),
            Operation::Flush => None,
        }
    }

    /// The limits that a request of this direction is under.
    pub const fn kinds(self) -> [Kind; 4] {
        match self {
            Self::Read => [
                Kind::BytesTotal,
                Kind::OpsTotal,
                Kind::BytesRead,
                Kind::OpsRead,
            ],
            Self::Write => [
                Kind::BytesTotal,
                Kind::OpsTotal,
                Kind::BytesWrite,
                Kind::OpsWrite,
            ],
        }
    }
}

/// The limits of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// By [`Kind::index`].
    pub limits: [Limit; 6],
    /// A request of more bytes counts as so many operations as it has parts of this size; 0: as one.
    pub op_size: u64,
}

/// Why a configuration is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// A total together with a limit on reads or writes of the same thing.
    Conflict(Kind),
    /// A rate above [`MOST`].
    OutOfRange(Kind),
    /// A burst rate without a rate.
    MaxAlone(Kind),
    /// A burst rate below the rate.
    MaxBelowAverage(Kind),
    /// A burst of no length.
    NoLength(Kind),
    /// A length of bursts without a burst rate.
    LengthAlone(Kind),
    /// Burst rate times length above [`MOST`].
    TooLong(Kind),
    /// A size of operations without a limit on operations.
    SizeAlone,
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, why) = match self {
            Self::Conflict(kind) => (kind, "and a limit on reads or writes exclude each other"),
            Self::OutOfRange(kind) => (kind, "is out of range"),
            Self::MaxAlone(kind) => (kind, "has a burst rate but no rate"),
            Self::MaxBelowAverage(kind) => (kind, "has a burst rate below its rate"),
            Self::NoLength(kind) => (kind, "has bursts of no length"),
            Self::LengthAlone(kind) => (kind, "has a burst length but no burst rate"),
            Self::TooLong(kind) => (kind, "has bursts too long for their rate"),
            Self::SizeAlone => return f.write_str("iops-size needs a limit on operations"),
        };
        write!(f, "{} {why}", kind.name())
    }
}

impl Config {
    /// No limits.
    pub const NONE: Self = Self {
        limits: [Limit::NONE; 6],
        op_size: 0,
    };

    /// One limit and no other.
    pub const fn only(kind: Kind, limit: Limit) -> Self {
        let mut config = Self::NONE;
        config.limits[kind.index()] = limit;
        config
    }

    /// One of the limits.
    pub const fn limit(&self, kind: Kind) -> &Limit {
        &self.limits[kind.index()]
    }

    /// One of the limits, to set.
    pub const fn limit_mut(&mut self, kind: Kind) -> &mut Limit {
        &mut self.limits[kind.index()]
    }

    /// Whether anything is limited.
    pub fn is_enabled(&self) -> bool {
        self.limits.iter().any(|limit| limit.avg != 0)
    }

    /// Whether it makes sense.
    ///
    /// # Errors
    /// The first thing that does not.
    pub fn check(&self) -> Result<(), Unfit> {
        use Kind::{BytesRead, BytesTotal, BytesWrite, OpsRead, OpsTotal, OpsWrite};
        for [total, read, write] in [
            [BytesTotal, BytesRead, BytesWrite],
            [OpsTotal, OpsRead, OpsWrite],
        ] {
            let [all, read, write] = [total, read, write].map(|kind| self.limit(kind));
            if all.avg != 0 && (read.avg != 0 || write.avg != 0)
                || all.max != 0 && (read.max != 0 || write.max != 0)
            {
                return Err(Unfit::Conflict(total));
            }
        }
        if self.op_size != 0
            && [OpsTotal, OpsRead, OpsWrite]
                .iter()
                .all(|kind| self.limit(*kind).avg == 0)
        {
            return Err(Unfit::SizeAlone);
        }
        Kind::ALL
            .iter()
            .try_for_each(|kind| check_limit(*kind, self.limit(*kind)))
    }
}

fn check_limit(kind: Kind, limit: &Limit) -> Result<(), Unfit> {
    if limit.avg > MOST || limit.max > MOST {
        return Err(Unfit::OutOfRange(kind));
    }
    if limit.burst_s == 0 {
        return Err(Unfit::NoLength(kind));
    }
    if limit.max == 0 {
        return if limit.burst_s > 1 {
            Err(Unfit::LengthAlone(kind))
        } else {
            Ok(())
        };
    }
    if limit.avg == 0 {
        return Err(Unfit::MaxAlone(kind));
    }
    if limit.max < limit.avg {
        return Err(Unfit::MaxBelowAverage(kind));
    }
    if limit.burst_s > MOST / limit.max {
        return Err(Unfit::TooLong(kind));
    }
    Ok(())
}

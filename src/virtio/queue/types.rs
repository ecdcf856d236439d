//! The words that a queue and its users speak: pieces, used chains, faults, configuration, counters.
#![forbid(unsafe_code)]

/// A piece of memory that the device reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Address as the device sees it.
    pub address: u64,
    /// Length in bytes, not 0.
    pub len: u32,
    /// The device writes it. Pieces that the device reads come first.
    pub device_writes: bool,
}

impl Piece {
    /// A piece that the device reads.
    #[inline(always)]
    pub const fn read(address: u64, len: u32) -> Self {
        Self {
            address,
            len,
            device_writes: false,
        }
    }

    /// A piece that the device writes.
    #[inline(always)]
    pub const fn write(address: u64, len: u32) -> Self {
        Self {
            address,
            len,
            device_writes: true,
        }
    }
}

/// A chain that the device gave back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// What [`VirtQueue::add`](super::VirtQueue::add) returned for it.
    pub head: u16,
    /// Bytes that the device says it wrote, not more than the chain offers.
    pub len: u32,
}

/// No room for this chain now; room comes with [`VirtQueue::pop`](super::VirtQueue::pop).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueFull;

/// A lie that the device told. The device must be reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceFault {
    /// A used head that is no head of this ring.
    BadId(u32),
    /// A used head that is not in flight: never given, staged only, or given back already.
    NotInFlight(u16),
    /// More bytes written than the chain offers.
    BadLength {
        /// The head.
        head: u16,
        /// What the device says that it wrote.
        len: u32,
        /// What it could have written.
        room: u32,
    },
    /// The used index moved by more than there was in flight.
    IndexJump {
        /// Where it was.
        from: u16,
        /// Where it is.
        to: u16,
        /// What was in flight.
        in_flight: u16,
    },
}

impl core::fmt::Display for DeviceFault {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::BadId(id) => write!(f, "returned chain {id}, which does not exist"),
            Self::NotInFlight(head) => write!(f, "returned chain {head}, which it did not have"),
            Self::BadLength { head, len, room } => {
                write!(f, "wrote {len} bytes into chain {head} of {room}")
            }
            Self::IndexJump {
                from,
                to,
                in_flight,
            } => {
                write!(
                    f,
                    "moved its index from {from} to {to} with {in_flight} in flight"
                )
            }
        }
    }
}

/// How a queue is to be made.
#[derive(Clone, Copy, Debug)]
pub struct QueueConfig {
    /// Entries wanted; less where the device or the memory has less.
    pub depth: u16,
    /// Most descriptors of one chain. Above 1, a table of so many is kept for each entry where the device has
    /// INDIRECT_DESC.
    pub chain: u16,
    /// The features agreed on.
    pub features: u64,
    /// Keep a second ring, so that after a reset late writes of the device into the old one hit nothing.
    pub spare: bool,
}

/// Counters of one queue, for the console and the bench.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueCounters {
    /// Chains given to the device.
    pub added: u64,
    /// Chains taken back.
    pub used: u64,
    /// Times that something was published.
    pub publishes: u64,
    /// Kicks among them.
    pub kicks: u64,
}

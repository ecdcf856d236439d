//! What a partition table says, and what is wrong with it.
#![forbid(unsafe_code)]

use core::fmt;

use gpt_disk_types::{GptPartitionType, Guid, guid};
use heapless::{String, Vec};

use crate::block::BlockError;
use crate::config::PARTITIONS_PER_DISK;

/// Refusals of one table that are kept with their reason; the others are counted.
pub const REFUSALS: usize = 8;

/// Troubles of one table.
pub const TROUBLES: usize = 4;

/// What kind of table it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// None that is known.
    None,
    /// Four entries in block 0, and a chain of further ones.
    Mbr,
    /// GPT.
    Gpt,
    /// GPT, from its backup: the primary one is damaged.
    GptBackup,
}

impl Scheme {
    /// A word for a person.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Mbr => "mbr",
            Self::Gpt => "gpt",
            Self::GptBackup => "gpt (backup)",
        }
    }
}

/// What a partition says that it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The type byte of an MBR.
    Mbr(u8),
    /// The type GUID of a GPT, as it lies on the disk.
    Gpt([u8; 16]),
}

impl Kind {
    /// A word for a person, of the commonest ones.
    pub fn as_str(self) -> &'static str {
        const LINUX: Guid = guid!("0fc63daf-8483-4772-8e79-3d69d8477de4");
        let is = |guid: Guid| self == Self::Gpt(guid.to_bytes());
        match self {
            Self::Mbr(0x83) => "linux",
            Self::Mbr(0x82) => "linux swap",
            Self::Mbr(0x07) => "ntfs",
            Self::Mbr(0x01 | 0x04 | 0x06 | 0x0b | 0x0c | 0x0e) => "fat",
            Self::Mbr(0xef) => "efi system",
            _ if is(LINUX) => "linux",
            _ if is(GptPartitionType::EFI_SYSTEM.0) => "efi system",
            _ if is(GptPartitionType::BASIC_DATA.0) => "basic data",
            _ => "other",
        }
    }
}

/// A partition that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// The N of vd0pN: the place in the table, from 1; from 5 for those in an extended partition.
    pub number: u16,
    /// First byte, from the disk's start.
    pub offset: u64,
    /// Bytes; never 0.
    pub len: u64,
    /// What it is for.
    pub kind: Kind,
    /// Its name in a GPT; characters that are not ASCII have become `?`.
    pub name: String<36>,
}

/// Why an entry is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Not one block.
    Empty,
    /// It ends behind the end of the disk.
    OutsideDisk,
    /// It is not inside what the table sets aside for partitions.
    OutsideArea,
    /// It covers the table itself.
    OnTable,
    /// It shares blocks with that earlier one.
    Overlaps(u16),
    /// A second extended partition.
    SecondExtended,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("it has no blocks"),
            Self::OutsideDisk => f.write_str("it ends behind the end of the disk"),
            Self::OutsideArea => f.write_str("it is not inside the table's space for partitions"),
            Self::OnTable => f.write_str("it covers the table itself"),
            Self::Overlaps(other) => write!(f, "it overlaps partition {other}"),
            Self::SecondExtended => f.write_str("it is a second extended partition"),
        }
    }
}

/// Why a copy of a GPT is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// The disk could not read it.
    Unreadable(BlockError),
    /// The disk is too small to have one.
    NoRoom,
    /// It is not one.
    Signature,
    /// It says that it is of an impossible length.
    HeaderSize,
    /// The header's checksum.
    HeaderSum,
    /// It says that it belongs to another block.
    Place,
    /// The space for partitions is empty or not inside the disk.
    Area,
    /// Number or size of the entries is impossible, or more than is looked at.
    Entries,
    /// The entries do not lie inside the disk.
    ArrayPlace,
    /// The entries' checksum.
    ArraySum,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unreadable(why) => return write!(f, "it cannot be read: {why}"),
            Self::NoRoom => "the disk is too small for it",
            Self::Signature => "it has no signature",
            Self::HeaderSize => "its header has an impossible length",
            Self::HeaderSum => "its header's checksum is wrong",
            Self::Place => "it names another block as its own",
            Self::Area => "its space for partitions is not inside the disk",
            Self::Entries => "the size or number of its entries is impossible",
            Self::ArrayPlace => "its entries are not inside the disk",
            Self::ArraySum => "its entries' checksum is wrong",
        })
    }
}

/// What is wrong with a table as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The disk's first block could not be read.
    Unreadable(BlockError),
    /// The disk's blocks are too large for the scanner.
    BlockSize(u32),
    /// The GPT at the start is not believed.
    Primary(Damage),
    /// The GPT at the end is not believed.
    Backup(Damage),
    /// The chain of an extended partition leads back to a block that it came from.
    ChainLoop,
    /// The chain has more links than are followed.
    ChainLong,
    /// The chain leads to a block that is no link of it, or out of the extended partition.
    ChainBroken,
    /// A link of the chain could not be read.
    ChainUnreadable(BlockError),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(why) => write!(f, "the first block cannot be read: {why}"),
            Self::BlockSize(bytes) => write!(f, "blocks of {bytes} bytes are not looked at"),
            Self::Primary(why) => write!(f, "the primary GPT is damaged: {why}"),
            Self::Backup(why) => write!(f, "the backup GPT is damaged: {why}"),
            Self::ChainLoop => f.write_str("the chain of the extended partition is a loop"),
            Self::ChainLong => f.write_str("the chain of the extended partition is too long"),
            Self::ChainBroken => f.write_str("the chain of the extended partition is broken"),
            Self::ChainUnreadable(why) => {
                write!(
                    f,
                    "the chain of the extended partition cannot be read: {why}"
                )
            }
        }
    }
}

/// A disk's partition table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// What kind of table it is.
    pub scheme: Scheme,
    /// The partitions that can be used, in the order of the table.
    pub partitions: Vec<Partition, PARTITIONS_PER_DISK>,
    /// Numbers of the first entries that cannot, and why.
    pub refused: Vec<(u16, Reason), REFUSALS>,
    /// Further ones that cannot.
    pub more_refused: u32,
    /// Good entries for which there was no place.
    pub left_out: u32,
    /// What is wrong with the table as a whole.
    pub troubles: Vec<Trouble, TROUBLES>,
}

impl Table {
    /// An empty one.
    pub const fn new() -> Self {
        Self {
            scheme: Scheme::None,
            partitions: Vec::new(),
            refused: Vec::new(),
            more_refused: 0,
            left_out: 0,
            troubles: Vec::new(),
        }
    }

    /// Forgets the entries, not the troubles.
    pub(super) fn forget_entries(&mut self) {
        self.partitions.clear();
        self.refused.clear();
        self.more_refused = 0;
        self.left_out = 0;
    }

    pub(super) fn trouble(&mut self, trouble: Trouble) {
        // A scan meets two at most.
        let _ = self.troubles.push(trouble);
    }

    pub(super) fn refuse(&mut self, number: u16, reason: Reason) {
        if self.refused.push((number, reason)).is_err() {
            self.more_refused = self.more_refused.saturating_add(1);
        }
    }

    /// Takes a partition in if it shares no byte with an earlier one.
    pub(super) fn offer(&mut self, partition: Partition) {
        let end = partition.offset + partition.len;
        let other = self
            .partitions
            .iter()
            .find(|p| p.offset < end && partition.offset < p.offset + p.len);
        if let Some(other) = other {
            let reason = Reason::Overlaps(other.number);
            return self.refuse(partition.number, reason);
        }
        if self.partitions.push(partition).is_err() {
            self.left_out = self.left_out.saturating_add(1);
        }
    }
}

impl Default for Table {
    fn default() -> Self {
        Self::new()
    }
}

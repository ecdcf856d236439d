//! The master boot record: four entries in block 0, and the chain of an extended partition.
#![forbid(unsafe_code)]

use gpt_disk_types::{MasterBootRecord, MbrPartitionRecord};
use heapless::String;

use super::scanner::Geometry;
use super::table::{Kind, Partition, Reason, Table};

/// Links of an extended partition's chain that are followed.
pub const MAX_LINKS: usize = 64;

/// The type of the entry that protects a GPT.
const PROTECTIVE: u8 = 0xee;

/// An entry that is not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub kind: u8,
    /// First block, from where the entry counts.
    pub first: u64,
    pub blocks: u64,
}

impl Entry {
    pub fn is_extended(&self) -> bool {
        matches!(self.kind, 0x05 | 0x0f | 0x85)
    }
}

/// The four entries; an empty one is `None`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub entries: [Option<Entry>; 4],
    /// All boot marks are possible ones; a file system's boot block has other bytes there.
    pub plausible: bool,
}

impl Record {
    /// Whether it protects a GPT.
    pub fn is_protective(&self) -> bool {
        self.entries.iter().flatten().any(|e| e.kind == PROTECTIVE)
    }
}

/// Reads a block that ends, at byte 512, with the mark of a boot record.
pub(super) fn record(data: &[u8]) -> Option<Record> {
    let bytes = data.get(..core::mem::size_of::<MasterBootRecord>())?;
    let record: MasterBootRecord = bytemuck::pod_read_unaligned(bytes);
    if record.signature != [0x55, 0xaa] {
        return None;
    }
    let partitions = record.partitions;
    Some(Record {
        entries: partitions.map(|e: MbrPartitionRecord| {
            (e.os_indicator != 0).then(|| Entry {
                kind: e.os_indicator,
                first: u64::from(e.starting_lba.to_u32()),
                blocks: u64::from(e.size_in_lba.to_u32()),
            })
        }),
        plausible: partitions.iter().all(|e| e.boot_indicator & 0x7f == 0),
    })
}

/// The extended partition: its first block and how many it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extended {
    pub first: u64,
    pub blocks: u64,
}

/// The entries of block 0; returns the extended partition, if there is one.
pub(super) fn primary(record: &Record, disk: Geometry, table: &mut Table) -> Option<Extended> {
    let mut extended: Option<(u16, Extended)> = None;
    let entries = || {
        (1..)
            .zip(&record.entries)
            .filter_map(|(n, e)| Some((n, (*e)?)))
    };
    for (number, entry) in entries().filter(|(_, entry)| entry.is_extended()) {
        if extended.is_some() {
            table.refuse(number, Reason::SecondExtended);
        } else if let Some(reason) = misplaced(entry.first, entry.blocks, disk, None) {
            table.refuse(number, reason);
        } else {
            let found = Extended {
                first: entry.first,
                blocks: entry.blocks,
            };
            extended = Some((number, found));
        }
    }
    for (number, entry) in entries().filter(|(_, entry)| !entry.is_extended()) {
        let end = entry.first + entry.blocks;
        match extended {
            Some((other, found))
                if entry.first < found.first + found.blocks
                    && found.first < end
                    && entry.blocks != 0 =>
            {
                table.refuse(number, Reason::Overlaps(other));
            }
            _ => offer(&entry, entry.first, number, disk, None, table),
        }
    }
    extended.map(|(_, found)| found)
}

/// Takes in an entry that begins at block `first` of the disk.
pub(super) fn offer(
    entry: &Entry,
    first: u64,
    number: u16,
    disk: Geometry,
    inside: Option<Extended>,
    table: &mut Table,
) {
    if let Some(reason) = misplaced(first, entry.blocks, disk, inside) {
        return table.refuse(number, reason);
    }
    table.offer(Partition {
        number,
        offset: first * u64::from(disk.block),
        len: entry.blocks * u64::from(disk.block),
        kind: Kind::Mbr(entry.kind),
        name: String::new(),
    });
}

fn misplaced(first: u64, blocks: u64, disk: Geometry, inside: Option<Extended>) -> Option<Reason> {
    // All come from 32 bits, or two of them added.
    let end = first + blocks;
    if blocks == 0 {
        Some(Reason::Empty)
    } else if end > disk.blocks {
        Some(Reason::OutsideDisk)
    } else if first == 0 {
        Some(Reason::OnTable)
    } else {
        let inside = inside?;
        (first <= inside.first || end > inside.first + inside.blocks).then_some(Reason::OutsideArea)
    }
}

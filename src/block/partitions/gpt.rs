//! The GUID partition table: its header and its entries.
#![forbid(unsafe_code)]

use gpt_disk_types::{GptHeader, GptPartitionEntry, GptPartitionEntrySize};
use heapless::String;

use super::scanner::{CHUNK, Geometry};
use super::table::{Damage, Kind, Partition, Reason, Table};

/// Bytes of a header that every GPT has.
const HEADER_BYTES: usize = core::mem::size_of::<GptHeader>();

/// Entries of a table that are looked at; others have 128 at most.
pub const MAX_ENTRIES: u32 = 1024;

/// Bytes of all entries of a table that is looked at.
pub const MAX_ARRAY_BYTES: u64 = 256 * 1024;

const CRC: crc::Crc<u32> = crc::Crc::<u32>::new(&gpt_disk_types::Crc32::ALGORITHM);
static SUM: crc::Crc<u32> = CRC;

/// A checksum that grows piece by piece.
pub(super) type Sum = crc::Digest<'static, u32>;

pub(super) fn sum() -> Sum {
    SUM.digest()
}

/// What a header that is believed says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// First byte of the entries.
    pub array_offset: u64,
    pub entry_size: u32,
    pub entries: u32,
    array_sum: u32,
    /// Blocks for partitions, the last one included.
    first: u64,
    last: u64,
    pub alternate: u64,
    array_first: u64,
    array_last: u64,
}

impl Header {
    pub fn array_bytes(&self) -> u64 {
        u64::from(self.entries) * u64::from(self.entry_size)
    }

    pub fn sum_is(&self, sum: Sum) -> bool {
        sum.finalize() == self.array_sum
    }
}

/// Reads the header that lies in block `lba`.
pub(super) fn header(data: &[u8], lba: u64, disk: Geometry) -> Result<Header, Damage> {
    let bytes = data.get(..HEADER_BYTES).ok_or(Damage::HeaderSize)?;
    let header: GptHeader = bytemuck::pod_read_unaligned(bytes);
    if !header.is_signature_valid() {
        return Err(Damage::Signature);
    }
    let size = header.header_size.to_u32() as usize;
    if size < HEADER_BYTES || size > disk.block as usize {
        return Err(Damage::HeaderSize);
    }
    // The sum covers the length that the header names, with its own place as zeroes.
    let covered = data.get(..size).ok_or(Damage::HeaderSize)?;
    let mut sum = sum();
    sum.update(&covered[..16]);
    sum.update(&[0; 4]);
    sum.update(&covered[20..]);
    if sum.finalize() != header.header_crc32.0.to_u32() {
        return Err(Damage::HeaderSum);
    }
    if header.my_lba.to_u64() != lba {
        return Err(Damage::Place);
    }
    let (first, last) = (
        header.first_usable_lba.to_u64(),
        header.last_usable_lba.to_u64(),
    );
    if first > last || last >= disk.blocks {
        return Err(Damage::Area);
    }
    let entries = header.number_of_partition_entries.to_u32();
    let entry_size = header.size_of_partition_entry.to_u32();
    let array_bytes = u64::from(entries) * u64::from(entry_size);
    if GptPartitionEntrySize::new(entry_size).is_err()
        || entry_size as usize > CHUNK
        || !(1..=MAX_ENTRIES).contains(&entries)
        || array_bytes > MAX_ARRAY_BYTES
    {
        return Err(Damage::Entries);
    }
    let array_first = header.partition_entry_lba.to_u64();
    let array_blocks = array_bytes.div_ceil(u64::from(disk.block));
    let array_end = array_first.checked_add(array_blocks);
    let inside = array_end.is_some_and(|end| end <= disk.blocks);
    if !inside || array_first == 0 || (array_first..array_first + array_blocks).contains(&lba) {
        return Err(Damage::ArrayPlace);
    }
    Ok(Header {
        array_offset: array_first * u64::from(disk.block),
        entry_size,
        entries,
        array_sum: header.partition_entry_array_crc32.0.to_u32(),
        first,
        last,
        alternate: header.alternate_lba.to_u64(),
        array_first,
        array_last: array_first + array_blocks - 1,
    })
}

/// Reads entries, of which the first is number `number` of the table.
pub(super) fn entries(
    data: &[u8],
    header: &Header,
    mut number: u16,
    disk: Geometry,
    table: &mut Table,
) {
    for bytes in data.chunks_exact(header.entry_size as usize) {
        let Some(bytes) = bytes.get(..core::mem::size_of::<GptPartitionEntry>()) else {
            return;
        };
        entry(
            &bytemuck::pod_read_unaligned(bytes),
            header,
            number,
            disk,
            table,
        );
        number = number.saturating_add(1);
    }
}

fn entry(
    entry: &GptPartitionEntry,
    header: &Header,
    number: u16,
    disk: Geometry,
    table: &mut Table,
) {
    if !entry.is_used() {
        return;
    }
    let (first, last) = (entry.starting_lba.to_u64(), entry.ending_lba.to_u64());
    let reason = if last < first {
        Some(Reason::Empty)
    } else if last >= disk.blocks {
        Some(Reason::OutsideDisk)
    } else if first < header.first || last > header.last {
        Some(Reason::OutsideArea)
    } else if first < 2 || (first <= header.array_last && header.array_first <= last) {
        Some(Reason::OnTable)
    } else {
        None
    };
    if let Some(reason) = reason {
        return table.refuse(number, reason);
    }
    let mut name = String::new();
    let text = entry.name;
    for char in text.chars() {
        let shown = if char == ' ' || char.is_ascii_graphic() {
            char
        } else {
            '?'
        };
        // 36 places, 36 characters of one byte.
        let _ = name.push(shown);
    }
    let kind = entry.partition_type_guid;
    table.offer(Partition {
        number,
        offset: first * u64::from(disk.block),
        len: (last - first + 1) * u64::from(disk.block),
        kind: Kind::Gpt(kind.0.to_bytes()),
        name,
    });
}

//! Partition tables, built byte by byte as the specifications describe them; nothing here uses the code under test.

use std::vec::Vec;

/// A disk's bytes.
#[derive(Clone)]
pub(super) struct Image {
    pub bytes: Vec<u8>,
    pub block: usize,
}

/// One entry of a GPT.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    pub first: u64,
    pub last: u64,
    pub name: &'static str,
}

pub(super) fn entry(first: u64, last: u64, name: &'static str) -> Entry {
    Entry { first, last, name }
}

pub(super) const ENTRIES: u32 = 128;
pub(super) const ENTRY_SIZE: u32 = 128;

/// CRC-32 as Ethernet has it, bit by bit.
pub(super) fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

impl Image {
    pub fn empty(blocks: usize, block: usize) -> Self {
        Self {
            bytes: std::vec![0; blocks * block],
            block,
        }
    }

    /// A disk of 1 MiB from a listing of its bytes that are not zero: offset, and 16 of them, in hexadecimal.
    pub fn listed(listing: &str) -> Self {
        let mut image = Self::empty(2048, 512);
        for line in listing.lines().filter(|line| !line.starts_with('#')) {
            let (offset, digits) = line.split_once(' ').unwrap();
            let at = u64::from_str_radix(offset, 16).unwrap();
            let bytes = u128::from_str_radix(digits, 16).unwrap().to_be_bytes();
            image.put(at, &bytes);
        }
        image
    }

    pub fn blocks(&self) -> u64 {
        (self.bytes.len() / self.block) as u64
    }

    pub fn put(&mut self, at: u64, bytes: &[u8]) {
        self.bytes[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    }

    /// Entry `n` of the boot record in block `lba`, and its mark.
    pub fn mbr(&mut self, lba: u64, n: u64, kind: u8, first: u32, blocks: u32) {
        let at = lba * self.block as u64;
        let mut record = [0u8; 16];
        record[4] = kind;
        record[8..12].copy_from_slice(&first.to_le_bytes());
        record[12..16].copy_from_slice(&blocks.to_le_bytes());
        self.put(at + 446 + 16 * n, &record);
        self.put(at + 510, &[0x55, 0xaa]);
    }

    /// A disk with both copies of a GPT.
    pub fn gpt(blocks: usize, block: usize, entries: &[Entry]) -> Self {
        let mut image = Self::empty(blocks, block);
        image.mbr(0, 0, 0xee, 1, (blocks - 1) as u32);
        let mut array = std::vec![0u8; (ENTRIES * ENTRY_SIZE) as usize];
        for (n, entry) in entries.iter().enumerate() {
            let at = n * ENTRY_SIZE as usize;
            array[at..at + 16].fill(0xa5);
            array[at + 16..at + 32].fill(n as u8 + 1);
            array[at + 32..at + 40].copy_from_slice(&entry.first.to_le_bytes());
            array[at + 40..at + 48].copy_from_slice(&entry.last.to_le_bytes());
            for (i, unit) in entry.name.encode_utf16().enumerate() {
                array[at + 56 + 2 * i..at + 58 + 2 * i].copy_from_slice(&unit.to_le_bytes());
            }
        }
        let array_blocks = array.len().div_ceil(block) as u64;
        let end = blocks as u64 - 1;
        image.put(2 * block as u64, &array);
        image.put((end - array_blocks) * block as u64, &array);
        image.header(1, end, 2, 2 + array_blocks, &array);
        image.header(end, 1, end - array_blocks, 2 + array_blocks, &array);
        image
    }

    fn header(&mut self, lba: u64, alternate: u64, array_lba: u64, first: u64, array: &[u8]) {
        let array_blocks = array.len().div_ceil(self.block) as u64;
        let last = self.blocks() - 2 - array_blocks;
        let at = lba * self.block as u64;
        self.put(at, b"EFI PART");
        self.put(at + 8, &0x0001_0000u32.to_le_bytes());
        self.put(at + 12, &92u32.to_le_bytes());
        self.put(at + 24, &lba.to_le_bytes());
        self.put(at + 32, &alternate.to_le_bytes());
        self.put(at + 40, &first.to_le_bytes());
        self.put(at + 48, &last.to_le_bytes());
        self.put(at + 56, &[0x77; 16]);
        self.put(at + 72, &array_lba.to_le_bytes());
        self.put(at + 80, &ENTRIES.to_le_bytes());
        self.put(at + 84, &ENTRY_SIZE.to_le_bytes());
        self.put(at + 88, &crc32(array).to_le_bytes());
        self.seal(lba);
    }

    /// Makes the checksum of the header in block `lba` right again.
    pub fn seal(&mut self, lba: u64) {
        let at = lba as usize * self.block;
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.bytes[at + 12..at + 16]);
        let size = (u32::from_le_bytes(bytes) as usize).min(self.block);
        self.put(at as u64 + 16, &[0; 4]);
        let sum = crc32(&self.bytes[at..at + size]);
        self.put(at as u64 + 16, &sum.to_le_bytes());
    }

    /// Makes the checksum of the entries right again in the header in block `lba`.
    pub fn seal_array(&mut self, lba: u64) {
        let at = lba as usize * self.block;
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.bytes[at + 72..at + 80]);
        let start = u64::from_le_bytes(bytes) as usize * self.block;
        let sum = crc32(&self.bytes[start..start + (ENTRIES * ENTRY_SIZE) as usize]);
        self.put(at as u64 + 88, &sum.to_le_bytes());
        self.seal(lba);
    }

    /// Spoils a byte.
    pub fn spoil(&mut self, at: u64) {
        self.bytes[at as usize] ^= 0x40;
    }
}

//! The disk inside the fake device: it executes chains by the rules that real virtio-blk devices keep.
use super::config::kind;
use crate::virtio::fake::{Chain, FakeDevice};
use std::vec::Vec;

const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

/// A request as it reached the medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    pub kind: u32,
    pub sector: u64,
    pub bytes: u64,
    pub flags: u32,
}

/// A disk of memory.
pub struct Model {
    pub data: Vec<u8>,
    pub read_only: bool,
    pub serial: [u8; 20],
    pub seen: Vec<Seen>,
    /// Fail whatever touches this sector.
    pub bad_sector: Option<u64>,
    /// The most data pieces that a chain had.
    pub most_pieces: usize,
}

impl Model {
    pub fn new(sectors: usize) -> Self {
        Self {
            data: std::vec![0; sectors * 512],
            read_only: false,
            serial: *b"serial-of-this-disk\0",
            seen: Vec::new(),
            bad_sector: None,
            most_pieces: 0,
        }
    }

    /// Takes what the driver kicked for on `queue`, executes it, and answers with one interrupt at most.
    pub fn serve(&mut self, device: &FakeDevice, queue: u16) -> usize {
        device.look(queue, usize::MAX);
        let mut answers = Vec::new();
        while let Some(chain) = device.take(queue, 0) {
            let len = self.execute(&chain);
            answers.push((u32::from(chain.head), len));
        }
        if !answers.is_empty() {
            device.answer(queue, &answers);
        }
        answers.len()
    }

    /// Executes one chain and writes its status; returns the number of bytes written.
    pub fn execute(&mut self, chain: &Chain) -> u32 {
        let input = chain.readable();
        let room = chain.room() as usize;
        assert!(input.len() >= 16 && room >= 1, "no header or no status");
        let word = |at: usize| u32::from_le_bytes(input[at..at + 4].try_into().unwrap());
        let long = |at: usize| u64::from_le_bytes(input[at..at + 8].try_into().unwrap());
        let (kind, sector) = (word(0), long(8));
        self.most_pieces = self.most_pieces.max(chain.pieces.len() - 2);
        let data_room = room - 1;
        let mut written = 1;
        let status = match kind {
            kind::READ => match self.range(sector, data_room as u64) {
                Some(range) if input.len() == 16 => {
                    chain.write(0, &self.data[range]);
                    written += data_room as u32;
                    self.note(kind, sector, data_room as u64, 0)
                }
                _ => IO_ERROR,
            },
            kind::WRITE => match self.range(sector, input.len() as u64 - 16) {
                Some(range) if data_room == 0 && !self.read_only => {
                    self.data[range].copy_from_slice(&input[16..]);
                    self.note(kind, sector, input.len() as u64 - 16, 0)
                }
                _ => IO_ERROR,
            },
            kind::FLUSH if sector == 0 && input.len() == 16 && room == 1 => {
                self.note(kind, 0, 0, 0)
            }
            kind::GET_ID => {
                chain.write(0, &self.serial[..20.min(data_room)]);
                written += 20;
                OK
            }
            kind::DISCARD | kind::WRITE_ZEROES if input.len() == 32 && room == 1 => {
                let (start, count, flags) = (long(16), word(24), word(28));
                let unknown = flags & !1 != 0 || kind == kind::DISCARD && flags != 0;
                match self.range(start, u64::from(count) * 512) {
                    _ if self.read_only || count > 32_768 => IO_ERROR,
                    _ if unknown => UNSUPPORTED,
                    Some(range) => {
                        if kind == kind::WRITE_ZEROES {
                            self.data[range].fill(0);
                        }
                        self.note(kind, start, u64::from(count) * 512, flags)
                    }
                    None => IO_ERROR,
                }
            }
            _ => UNSUPPORTED,
        };
        chain.write(data_room, &[status]);
        written
    }

    fn range(&self, sector: u64, bytes: u64) -> Option<core::ops::Range<usize>> {
        let start = sector.checked_mul(512)?;
        let end = start.checked_add(bytes)?;
        let bad = self
            .bad_sector
            .is_some_and(|bad| bad * 512 >= start && bad * 512 < end);
        (bytes.is_multiple_of(512) && end <= self.data.len() as u64 && !bad)
            .then_some(start as usize..end as usize)
    }

    fn note(&mut self, kind: u32, sector: u64, bytes: u64, flags: u32) -> u8 {
        self.seen.push(Seen {
            kind,
            sector,
            bytes,
            flags,
        });
        OK
    }
}

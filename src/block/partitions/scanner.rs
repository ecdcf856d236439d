//! The rules of partition tables as a machine that asks for blocks and is given them.
//!
//! ```text
//!            no mark          ┌──▶ Over
//!   First ──────────────────▶─┤
//!     │ entries, no 0xEE      │      each link
//!     ├──────────▶ Chain ────▶┤ ◀──────────┐
//!     │ 0xEE                  │            │
//!     └──▶ Header ─▶ Entries ─┘   Chain ───┘
//!             │ damaged │
//!             └────┬────┘  primary: the backup's header; backup: Over, nothing is offered
//! ```
//! At most 1 + 2 × (1 + 64) blocks or chunks are read, whatever they hold.
#![forbid(unsafe_code)]

use heapless::Vec;

use super::gpt::{self, Header};
use super::mbr::{self, Extended, MAX_LINKS};
use super::table::{Damage, Reason, Scheme, Table, Trouble};
use crate::block::BlockError;

/// Most bytes of one read.
pub const CHUNK: usize = 4096;

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Read that and call [`Scanner::next`] with it; inside the disk, aligned to its blocks, at most [`CHUNK`] bytes.
    Read {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// Nothing; the table is complete.
    Over,
}

/// The disk's measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    /// Bytes of a block.
    pub block: u32,
    pub blocks: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Copy {
    Primary,
    Backup,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    First,
    Header(Copy),
    Entries(Copy),
    Chain,
    Over,
}

/// The machine.
pub struct Scanner {
    disk: Geometry,
    state: State,
    table: Table,
    header: Option<Header>,
    sum: Option<gpt::Sum>,
    /// Block of the header or link that is being read.
    lba: u64,
    /// Bytes of the entries that have been looked at.
    done: u64,
    extended: Extended,
    next_number: u16,
    links: Vec<u64, MAX_LINKS>,
}

impl Scanner {
    /// An idle one.
    pub const fn new() -> Self {
        Self {
            disk: Geometry {
                block: 512,
                blocks: 0,
            },
            state: State::Over,
            table: Table::new(),
            header: None,
            sum: None,
            lba: 0,
            done: 0,
            extended: Extended {
                first: 0,
                blocks: 0,
            },
            next_number: 5,
            links: Vec::new(),
        }
    }

    /// Starts with a disk of `size` bytes in blocks of `block` bytes, a power of two.
    pub fn begin(&mut self, size: u64, block: u32) -> Step {
        *self = Self::new();
        if !(512..=CHUNK as u32).contains(&block) || !block.is_power_of_two() {
            self.table.trouble(Trouble::BlockSize(block));
            return Step::Over;
        }
        self.disk = Geometry {
            block,
            blocks: size / u64::from(block),
        };
        if self.disk.blocks == 0 {
            return Step::Over;
        }
        self.state = State::First;
        self.read_block(0)
    }

    /// Goes on with what was read, or with why it could not be.
    pub fn next(&mut self, data: Result<&[u8], BlockError>) -> Step {
        match self.state {
            State::First => self.first(data),
            State::Header(copy) => self.header(copy, data),
            State::Entries(copy) => self.entries(copy, data),
            State::Chain => self.link(data),
            State::Over => Step::Over,
        }
    }

    /// The table; complete after [`Step::Over`].
    pub fn table(&self) -> &Table {
        &self.table
    }

    fn read_block(&mut self, lba: u64) -> Step {
        self.lba = lba;
        Step::Read {
            offset: lba * u64::from(self.disk.block),
            len: self.disk.block,
        }
    }

    fn over(&mut self) -> Step {
        self.state = State::Over;
        Step::Over
    }

    fn first(&mut self, data: Result<&[u8], BlockError>) -> Step {
        let data = match data {
            Ok(data) => data,
            Err(why) => {
                self.table.trouble(Trouble::Unreadable(why));
                return self.over();
            }
        };
        let Some(record) = mbr::record(data) else {
            return self.over();
        };
        if record.is_protective() {
            self.state = State::Header(Copy::Primary);
            if self.disk.blocks < 2 {
                return self.damaged(Copy::Primary, Damage::NoRoom);
            }
            return self.read_block(1);
        }
        if !record.plausible || record.entries == [None; 4] {
            return self.over();
        }
        self.table.scheme = Scheme::Mbr;
        let Some(extended) = mbr::primary(&record, self.disk, &mut self.table) else {
            return self.over();
        };
        self.extended = extended;
        self.state = State::Chain;
        self.read_link(extended.first)
    }

    /// A copy of the GPT is not believed: the other one, or none.
    fn damaged(&mut self, copy: Copy, why: Damage) -> Step {
        self.table.forget_entries();
        if copy == Copy::Backup {
            self.table.trouble(Trouble::Backup(why));
            return self.over();
        }
        self.table.trouble(Trouble::Primary(why));
        // A primary header that is sound knows where its backup is, also on a disk that has grown since.
        let known = self.header.map(|header| header.alternate);
        let last = self.disk.blocks - 1;
        let lba = match known {
            Some(lba) if (2..=last).contains(&lba) => lba,
            _ => last,
        };
        self.header = None;
        self.state = State::Header(Copy::Backup);
        if lba < 2 {
            return self.damaged(Copy::Backup, Damage::NoRoom);
        }
        self.read_block(lba)
    }

    fn header(&mut self, copy: Copy, data: Result<&[u8], BlockError>) -> Step {
        let header = data
            .map_err(Damage::Unreadable)
            .and_then(|data| gpt::header(data, self.lba, self.disk));
        match header {
            Err(why) => self.damaged(copy, why),
            Ok(header) => {
                self.header = Some(header);
                self.sum = Some(gpt::sum());
                self.done = 0;
                self.state = State::Entries(copy);
                self.read_entries(&header)
            }
        }
    }

    fn read_entries(&self, header: &Header) -> Step {
        let left = header.array_bytes() - self.done;
        let len = left
            .min(CHUNK as u64)
            .next_multiple_of(u64::from(self.disk.block));
        Step::Read {
            offset: header.array_offset + self.done,
            len: len as u32,
        }
    }

    fn entries(&mut self, copy: Copy, data: Result<&[u8], BlockError>) -> Step {
        let data = match data {
            Ok(data) => data,
            Err(why) => return self.damaged(copy, Damage::Unreadable(why)),
        };
        let Some(header) = self.header else {
            return self.over();
        };
        let left = header.array_bytes() - self.done;
        let Some(data) = data.get(..left.min(CHUNK as u64) as usize) else {
            return self.damaged(copy, Damage::Unreadable(BlockError::Io));
        };
        if let Some(sum) = &mut self.sum {
            sum.update(data);
        }
        let number = (self.done / u64::from(header.entry_size)) as u16 + 1;
        gpt::entries(data, &header, number, self.disk, &mut self.table);
        self.done += data.len() as u64;
        if self.done < header.array_bytes() {
            return self.read_entries(&header);
        }
        // Only now is known whether any of it may be believed.
        if !self.sum.take().is_some_and(|sum| header.sum_is(sum)) {
            return self.damaged(copy, Damage::ArraySum);
        }
        self.table.scheme = match copy {
            Copy::Primary => Scheme::Gpt,
            Copy::Backup => Scheme::GptBackup,
        };
        self.over()
    }

    fn read_link(&mut self, lba: u64) -> Step {
        let at = lba * u64::from(self.disk.block);
        let inside = lba < self.extended.first + self.extended.blocks
            && !self
                .table
                .partitions
                .iter()
                .any(|p| (p.offset..p.offset + p.len).contains(&at));
        let trouble = if self.links.contains(&lba) {
            Trouble::ChainLoop
        } else if !inside {
            Trouble::ChainBroken
        } else if self.links.push(lba).is_err() {
            Trouble::ChainLong
        } else {
            return self.read_block(lba);
        };
        self.table.trouble(trouble);
        self.over()
    }

    fn link(&mut self, data: Result<&[u8], BlockError>) -> Step {
        let record = match data {
            Ok(data) => mbr::record(data),
            Err(why) => {
                self.table.trouble(Trouble::ChainUnreadable(why));
                return self.over();
            }
        };
        let Some(record) = record else {
            self.table.trouble(Trouble::ChainBroken);
            return self.over();
        };
        // A link has an entry that counts from itself, and one that leads on and counts from the chain's start.
        for entry in record.entries[..2].iter().flatten() {
            if !entry.is_extended() {
                let first = self.lba + entry.first;
                let number = self.next_number;
                self.next_number += 1;
                let blocks = first..first + entry.blocks;
                if self.links.iter().any(|link| blocks.contains(link)) {
                    self.table.refuse(number, Reason::OnTable);
                } else {
                    let inside = Some(self.extended);
                    mbr::offer(entry, first, number, self.disk, inside, &mut self.table);
                }
            }
        }
        let on = record.entries[..2]
            .iter()
            .flatten()
            .find(|e| e.is_extended() && e.blocks != 0);
        match on {
            Some(on) => self.read_link(self.extended.first + on.first),
            None => self.over(),
        }
    }
}

impl Default for Scanner {
    fn default() -> Self {
        Self::new()
    }
}

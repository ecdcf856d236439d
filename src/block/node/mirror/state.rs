//! What a mirror knows while it runs. Touched on the core of its context; the main loop looks.
#![forbid(unsafe_code)]

use super::assembly::Trouble;
use super::regions::Regions;
use super::superblock::{Header, MAX_LEGS, Standing};
use crate::block::tracked::PLACES;
use crate::block::{BlockError, RequestQueue};

/// Counters of writes under way: a region has one, which it may share.
const COUNTERS: usize = 1024;

/// How it stands with an array.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Status {
    /// Its superblocks are being read and written.
    #[default]
    Starting,
    /// It serves.
    Running,
    /// A superblock could not be written on any leg: what is read is right, nothing is written any more.
    Failed,
    /// There is no array.
    Refused(Why),
}

/// Why there is no array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The legs do not make one.
    Assembly(Trouble),
    /// This leg, from 0, carries a superblock already.
    InUse(usize),
    /// This leg, from 0, is too small.
    TooSmall(usize),
    /// The legs have too many regions of the size asked for, or it is none.
    Region,
    /// Its superblocks cannot be written.
    Io,
}

impl core::fmt::Display for Why {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Assembly(trouble) => write!(f, "{trouble}"),
            Self::InUse(leg) => write!(f, "leg {}: has a superblock already", leg + 1),
            Self::TooSmall(leg) => write!(f, "leg {}: too small", leg + 1),
            Self::Region => f.write_str("regions: a power of two, 1 MiB or more, at most 8192"),
            Self::Io => f.write_str("its superblocks cannot be written"),
        }
    }
}

/// A change of the legs that the keeper is to make.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Wish {
    /// Nothing.
    #[default]
    None,
    /// The leg in this slot learns where it stands; then it gets all writes.
    Learn(u8),
    /// The leg in this slot has been filled (or not): it is active, or gets no more writes.
    Promote(u8, bool),
    /// The leg in this slot is stale from now on.
    Retire(u8),
    /// What came of it.
    Answered(Result<(), BlockError>),
}

/// How far a request has come that is in the table of tracked ones.
#[derive(Clone, Copy)]
pub(super) struct Visit {
    /// The leg that has it.
    pub leg: u8,
    /// Legs that are still to get it, one bit each.
    pub left: u8,
    /// Legs that could not read it.
    pub bad: u8,
    /// What was read is now being written.
    pub back: bool,
    /// What the client gets to hear.
    pub error: Option<BlockError>,
}

impl Visit {
    pub const NONE: Self = Self {
        leg: 0,
        left: 0,
        bad: 0,
        back: false,
        error: None,
    };
}

pub(super) struct State {
    pub status: Status,
    pub header: Header,
    /// Number of the leg in each slot.
    pub numbers: [Option<u8>; MAX_LEGS],
    /// Slots of legs that have all data, one bit each.
    pub active: u8,
    /// Of those, the ones that failed and are not recorded as stale yet: meanwhile no write is acknowledged.
    pub failing: u8,
    /// The slot of a leg that is being rebuilt: gets all writes, is never read.
    pub rebuilding: u8,
    /// Legs that get each superblock after the others, and none of whose data count yet: they learn where they stand.
    pub learning: u8,
    /// The leg that became active last, until that is recorded: gets the superblock after the others.
    pub promoted: u8,
    /// What somebody waits for.
    pub wish: Wish,
    /// Regions whose intent bit is stable on all active legs.
    pub stable: Regions,
    /// Regions whose bit writes wait for.
    pub wanted: Regions,
    /// The bits in the superblock that is being written.
    pub composed: Regions,
    /// Regions in which legs may differ, since the power went.
    pub unsynced: Regions,
    /// Up to where they have been made equal.
    pub sync_at: u64,
    /// Regions written to since the bits were last looked at.
    pub touched: Regions,
    /// Regions about to lose their bit.
    pub leaving: Regions,
    under_way: [u16; COUNTERS],
    pub writes: u32,
    pub visits: [Visit; PLACES],
    /// Writes that may not begin yet.
    pub line: RequestQueue,
    /// Requests that are done and may not be answered yet.
    pub held: RequestQueue,
    /// Superblocks written, reads repaired, bytes resynced.
    pub records: u64,
    pub repaired: u64,
    pub resynced: u64,
}

/// Regions of a range: from, to (inclusive).
pub(super) fn regions_of(header: &Header, offset: u64, len: u64) -> (u64, u64) {
    let region = header.region.max(1);
    (offset / region, (offset + len.max(1) - 1) / region)
}

impl State {
    pub const fn new() -> Self {
        Self {
            status: Status::Starting,
            header: Header::NONE,
            numbers: [None; MAX_LEGS],
            active: 0,
            failing: 0,
            rebuilding: 0,
            learning: 0,
            promoted: 0,
            wish: Wish::None,
            stable: Regions::NONE,
            wanted: Regions::NONE,
            composed: Regions::NONE,
            unsynced: Regions::NONE,
            sync_at: 0,
            touched: Regions::NONE,
            leaving: Regions::NONE,
            under_way: [0; COUNTERS],
            writes: 0,
            visits: [Visit::NONE; PLACES],
            line: RequestQueue::new(),
            held: RequestQueue::new(),
            records: 0,
            repaired: 0,
            resynced: 0,
        }
    }

    /// As new; field by field, because the whole is large for a stack.
    pub fn reset(&mut self) {
        self.status = Status::Starting;
        self.header = Header::NONE;
        self.numbers = [None; MAX_LEGS];
        (self.active, self.failing, self.rebuilding) = (0, 0, 0);
        (self.learning, self.promoted, self.wish) = (0, 0, Wish::None);
        for regions in [
            &mut self.stable,
            &mut self.wanted,
            &mut self.composed,
            &mut self.unsynced,
            &mut self.touched,
            &mut self.leaving,
        ] {
            regions.clear();
        }
        self.under_way.fill(0);
        self.writes = 0;
        self.sync_at = 0;
        (self.records, self.repaired, self.resynced) = (0, 0, 0);
    }

    /// Legs that can be read, and without which there is no array: on the disks of the others a leg that is just becoming active may
    /// still be stale, so it cannot take their place yet.
    pub fn readable(&self) -> u8 {
        self.active & !self.failing & !self.promoted
    }

    /// Numbers of the legs in `slots`, one bit each.
    pub fn numbers_of(&self, slots: u8) -> u8 {
        let mut numbers = 0;
        for slot in ones(slots) {
            if let Some(number) = self.numbers[slot] {
                numbers |= 1 << number;
            }
        }
        numbers
    }

    /// Notes what the leg in `slot` is to the others.
    pub fn set_standing(&mut self, slot: usize, standing: Standing) {
        if let Some(number) = self.numbers[slot] {
            self.header.members[usize::from(number)].standing = standing;
        }
    }

    /// A leg did not do what it was asked. `false`: it is the last one, whose errors are the client's.
    #[must_use]
    pub fn failed(&mut self, slot: u8) -> bool {
        let bit = 1 << slot;
        if self.rebuilding & bit != 0 {
            self.rebuilding &= !bit;
            return true;
        }
        if self.readable() == bit {
            // The one that is being filled may have what this one now lacks.
            self.rebuilding = 0;
            return false;
        }
        // One that is no active leg any more has been recorded.
        self.failing |= bit & self.active;
        true
    }

    /// Whether requests wait for the next superblock.
    pub fn waits_for_record(&self) -> bool {
        self.status == Status::Running && !(self.line.is_empty() && self.held.is_empty())
    }

    fn counter(&mut self, region: u64) -> &mut u16 {
        &mut self.under_way[region as usize % COUNTERS]
    }

    /// A write to that range begins.
    pub fn begin_write(&mut self, offset: u64, len: u64) {
        let (from, to) = regions_of(&self.header, offset, len);
        for region in from..=to {
            self.touched.insert(region);
            *self.counter(region) += 1;
        }
        self.writes += 1;
    }

    /// A write to that range has ended.
    pub fn end_write(&mut self, offset: u64, len: u64) {
        let (from, to) = regions_of(&self.header, offset, len);
        for region in from..=to {
            *self.counter(region) -= 1;
        }
        self.writes -= 1;
    }

    /// Whether a write to the region may be under way.
    pub fn is_busy(&self, region: u64) -> bool {
        self.under_way[region as usize % COUNTERS] != 0
    }
}

/// The bits that are set, from the lowest.
pub(super) fn ones(mut bits: u8) -> impl Iterator<Item = usize> {
    core::iter::from_fn(move || {
        let one = (bits != 0).then(|| bits.trailing_zeros() as usize)?;
        bits &= bits - 1;
        Some(one)
    })
}

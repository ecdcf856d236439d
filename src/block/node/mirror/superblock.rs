//! What an array keeps on each of its legs.
//!
//! ```text
//!  leg   0      4 KiB   8 KiB  12 KiB        1 MiB                    last MiB: 4 KiB   8 KiB
//!        │ free │ even  │ odd  │ free        │ data …                 │ free    │ even  │ odd  │ free
//! ```
//! A superblock is one block of 4 KiB with a checksum. A new one goes to the place of its sequence's parity, in the first and in the
//! last MiB, so that its predecessor stays whole until it is stable, and a bad block loses no array.
//!
//! All legs have the same [`Header`] and intent bitmap; only the leg's number differs. A change of the members, or an array that goes
//! on without some of them, is an *event*: the count goes up, and a random word, its *history*, tells it from an event of the same
//! number that legs out of sight had. The header knows the last events, and of each leg the last one that was stable on it.
#![forbid(unsafe_code)]

use super::regions::{REGIONS_BYTES, Regions};
use crate::config::MIRROR_REGIONS;

/// Legs that the format has room for.
pub const MAX_LEGS: usize = 4;

/// Bytes of a superblock.
pub const SUPERBLOCK_BYTES: usize = 4096;

/// Bytes at either end of a leg that are not the array's data.
pub const MARGIN: u64 = 1 << 20;

/// Smallest region, in bytes.
pub const MIN_REGION: u64 = 1 << 20;

/// Events that a header remembers.
pub const LOG: usize = 16;

/// Most bytes of data: whatever is computed of regions and places overflows nothing.
const MAX_SIZE: u64 = 1 << 62;

const MAGIC: [u8; 8] = *b"IrnMirr\x01";
const VERSION: u32 = 1;
const CRC: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI);
static SUM: crc::Crc<u32> = CRC;

/// Where the fields are, in bytes.
const AT_VERSION: usize = 8;
const AT_SUM: usize = 12;
const AT_UUID: usize = 16;
const AT_LEG: usize = 32;
const AT_LEGS: usize = 33;
const AT_CLEAN: usize = 34;
const AT_LOGGED: usize = 35;
const AT_SEQUENCE: usize = 40;
const AT_NOW: usize = 48;
const AT_SIZE: usize = 64;
const AT_REGION: usize = 72;
const AT_MEMBERS: usize = 128;
const MEMBER_BYTES: usize = 24;
const AT_LOG: usize = 256;
const AT_INTENT: usize = 1024;

const _: () = assert!(AT_MEMBERS + MAX_LEGS * MEMBER_BYTES <= AT_LOG);
const _: () = assert!(AT_LOG + LOG * 16 <= AT_INTENT);
const _: () = assert!(AT_INTENT + REGIONS_BYTES <= SUPERBLOCK_BYTES);

/// An event: its number, and the random word that it got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pair {
    /// Counts up; 0: none.
    pub event: u64,
    /// Random.
    pub history: u64,
}

impl Pair {
    const NONE: Self = Self {
        event: 0,
        history: 0,
    };
}

/// What a leg is to the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// There is no such leg.
    #[default]
    Absent,
    /// Has all data.
    Active,
    /// Lacks something: never read.
    Stale,
}

/// What the array knows of one leg.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// Whether it has all data.
    pub standing: Standing,
    /// The last event that was stable on it.
    pub last: Pair,
}

/// What all superblocks of an array say alike, but for the intent bitmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The array.
    pub uuid: [u8; 16],
    /// Legs that it has, absent ones included.
    pub legs: u8,
    /// All legs are equal, and nothing is being written.
    pub clean: bool,
    /// Counts up with every superblock.
    pub sequence: u64,
    /// The last event.
    pub now: Pair,
    /// Bytes of data.
    pub size: u64,
    /// Bytes of a region: a power of two.
    pub region: u64,
    /// By number.
    pub members: [Member; MAX_LEGS],
    /// The events before, newest first.
    pub log: [Pair; LOG],
}

impl Header {
    /// Of no array.
    pub const NONE: Self = Self {
        uuid: [0; 16],
        legs: 0,
        clean: false,
        sequence: 0,
        now: Pair::NONE,
        size: 0,
        region: 0,
        members: [Member {
            standing: Standing::Absent,
            last: Pair::NONE,
        }; MAX_LEGS],
        log: [Pair::NONE; LOG],
    };

    /// Of a new array of `legs` equal legs, numbered from 0.
    pub fn new(uuid: [u8; 16], legs: u8, size: u64, region: u64, random: u64) -> Self {
        let mut header = Self {
            uuid,
            legs,
            clean: true,
            sequence: 1,
            now: Pair {
                event: 1,
                history: random,
            },
            size,
            region,
            members: [Member::default(); MAX_LEGS],
            log: [Pair::default(); LOG],
        };
        for member in header.members.iter_mut().take(usize::from(legs)) {
            member.standing = Standing::Active;
        }
        header
    }

    /// Makes it the header of the next superblock.
    pub fn advance(&mut self) {
        self.sequence += 1;
    }

    /// Notes that something happened to the members. `beyond`: an event number that others have already.
    pub fn happen(&mut self, beyond: u64, random: u64) {
        self.log.copy_within(..LOG - 1, 1);
        self.log[0] = self.now;
        self.now = Pair {
            event: self.now.event.max(beyond) + 1,
            history: random,
        };
    }

    /// Notes that this header is stable on the legs in `numbers`, one bit each.
    pub fn is_stable_on(&mut self, numbers: u8) {
        for (number, member) in self.members.iter_mut().enumerate() {
            if numbers >> number & 1 != 0 {
                member.last = self.now;
            }
        }
    }

    /// Numbers of the legs with that standing, one bit each.
    pub fn standing(&self, standing: Standing) -> u8 {
        let mut numbers = 0;
        for (number, member) in self.members.iter().enumerate() {
            if member.standing == standing {
                numbers |= 1 << number;
            }
        }
        numbers
    }

    /// Whether leg `number`, when it said `pair`, was on the way to this header.
    pub fn descends_from(&self, number: u8, pair: Pair) -> bool {
        let last = self.members[usize::from(number)].last;
        pair == self.now || (pair.event != 0 && (pair == last || self.log.contains(&pair)))
    }

    /// Regions that it has.
    pub fn regions(&self) -> u64 {
        self.size.div_ceil(self.region)
    }
}

/// Bytes of data that legs of `leg_size` bytes have room for; 0: too small.
pub fn data_size(leg_size: u64) -> u64 {
    (leg_size / MARGIN * MARGIN).saturating_sub(2 * MARGIN)
}

/// The smallest legal region of an array of that size, in bytes.
pub fn region_for(size: u64) -> u64 {
    let least = size.div_ceil(MIRROR_REGIONS as u64).max(MIN_REGION);
    least.next_power_of_two()
}

/// Where a superblock of that sequence stands on a leg of `leg_size` bytes: in the first and in the last MiB.
pub fn places(sequence: u64, leg_size: u64) -> [u64; 2] {
    let within = SUPERBLOCK_BYTES as u64 * (1 + (sequence & 1));
    [within, leg_size / MARGIN * MARGIN - MARGIN + within]
}

fn put(out: &mut [u8], at: usize, value: u64) {
    out[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

fn get(from: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&from[at..at + 8]);
    u64::from_le_bytes(bytes)
}

fn put_pair(out: &mut [u8], at: usize, pair: Pair) {
    put(out, at, pair.event);
    put(out, at + 8, pair.history);
}

fn get_pair(from: &[u8], at: usize) -> Pair {
    Pair {
        event: get(from, at),
        history: get(from, at + 8),
    }
}

fn sum(block: &[u8]) -> u32 {
    let mut digest = SUM.digest();
    digest.update(&block[..AT_SUM]);
    digest.update(&[0; 4]);
    digest.update(&block[AT_SUM + 4..SUPERBLOCK_BYTES]);
    digest.finalize()
}

/// Makes the superblock of leg `number` in `out`.
///
/// # Panics
/// When `out` is shorter than [`SUPERBLOCK_BYTES`].
pub fn encode(header: &Header, number: u8, intent: &Regions, out: &mut [u8]) {
    let out = &mut out[..SUPERBLOCK_BYTES];
    out.fill(0);
    out[..8].copy_from_slice(&MAGIC);
    out[AT_VERSION..AT_VERSION + 4].copy_from_slice(&VERSION.to_le_bytes());
    out[AT_UUID..AT_UUID + 16].copy_from_slice(&header.uuid);
    out[AT_LEG] = number;
    out[AT_LEGS] = header.legs;
    out[AT_CLEAN] = u8::from(header.clean);
    out[AT_LOGGED] = LOG as u8;
    put(out, AT_SEQUENCE, header.sequence);
    put_pair(out, AT_NOW, header.now);
    put(out, AT_SIZE, header.size);
    put(out, AT_REGION, header.region);
    for (number, member) in header.members.iter().enumerate() {
        let at = AT_MEMBERS + number * MEMBER_BYTES;
        out[at] = match member.standing {
            Standing::Absent => 0,
            Standing::Active => 1,
            Standing::Stale => 2,
        };
        put_pair(out, at + 8, member.last);
    }
    for (place, pair) in header.log.iter().enumerate() {
        put_pair(out, AT_LOG + place * 16, *pair);
    }
    intent.encode(&mut out[AT_INTENT..AT_INTENT + REGIONS_BYTES]);
    let sum = sum(out);
    out[AT_SUM..AT_SUM + 4].copy_from_slice(&sum.to_le_bytes());
}

/// The leg's number and the header of a superblock; `None`: it is none, or not whole, or makes no sense.
pub fn decode(block: &[u8]) -> Option<(u8, Header)> {
    let block = block.get(..SUPERBLOCK_BYTES)?;
    if block[..8] != MAGIC
        || block[AT_VERSION..AT_VERSION + 4] != VERSION.to_le_bytes()
        || block[AT_SUM..AT_SUM + 4] != sum(block).to_le_bytes()
    {
        return None;
    }
    let mut members = [Member::default(); MAX_LEGS];
    for (number, member) in members.iter_mut().enumerate() {
        let at = AT_MEMBERS + number * MEMBER_BYTES;
        *member = Member {
            standing: match block[at] {
                0 => Standing::Absent,
                1 => Standing::Active,
                2 => Standing::Stale,
                _ => return None,
            },
            last: get_pair(block, at + 8),
        };
    }
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&block[AT_UUID..AT_UUID + 16]);
    let mut log = [Pair::default(); LOG];
    for (place, pair) in log.iter_mut().enumerate() {
        *pair = get_pair(block, AT_LOG + place * 16);
    }
    let header = Header {
        uuid,
        legs: block[AT_LEGS],
        clean: block[AT_CLEAN] != 0,
        sequence: get(block, AT_SEQUENCE),
        now: get_pair(block, AT_NOW),
        size: get(block, AT_SIZE),
        region: get(block, AT_REGION),
        members,
        log,
    };
    let number = block[AT_LEG];
    makes_sense(number, &header).then_some((number, header))
}

/// The intent bitmap of a superblock that [`decode`] took, added to `intent`.
pub fn add_intent(block: &[u8], intent: &mut Regions) {
    if let Some(bytes) = block.get(AT_INTENT..AT_INTENT + REGIONS_BYTES) {
        intent.add_encoded(bytes);
    }
}

/// A block with a right checksum can still come from a program with an error.
fn makes_sense(number: u8, header: &Header) -> bool {
    let legs = usize::from(header.legs);
    (1..=MAX_LEGS).contains(&legs)
        && usize::from(number) < legs
        && header.region.is_power_of_two()
        && header.region >= MIN_REGION
        && header.size > 0
        && header.size.is_multiple_of(MARGIN)
        && header.size <= MAX_SIZE
        && header.regions() <= MIRROR_REGIONS as u64
        && header.now.event > 0
        && header.now.event < u64::MAX / 2
        && header.sequence < u64::MAX / 2
        && header.standing(Standing::Active) != 0
        && header.members[legs..]
            .iter()
            .all(|member| member.standing == Standing::Absent)
}

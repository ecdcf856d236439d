//! What each sector may hold: its history, as the clients know it.
//!
//! Every write has a number, which stands in each of its sectors together with the sector's place and a pattern over all 512
//! bytes, so that a value that is old, foreign or torn is seen for what it is. The order is the clients': a write begins
//! when its client sends it and is done when its client has the answer.
//!
//! - A write is *over* another if it succeeded and was sent after the other was done.
//! - A read may return any write that has begun, unless one that was done before the read was sent is over it.
//! - After a power cut a sector may hold any write that has begun, unless one that is *durable* is over it: answered with
//!   FUA, or answered before a flush was sent that succeeded (DUR-1…3).
//! - A write that failed, a discard, and a write whose connection broke are never over another: they leave old or new.

use crate::random::mix;

/// Bytes of a sector: what a power cut never tears.
pub const SECTOR: usize = 512;

/// Not done yet.
const OPEN: u64 = u64::MAX;

const MAGIC: u32 = 0x494e_5452;

/// Writes the value `version` (0: zeroes) into a sector.
pub fn fill(sector: &mut [u8], disk: usize, lba: u64, version: u32) {
    if version == 0 {
        return sector.fill(0);
    }
    let key = u64::from(version) << 32 | lba << 8 | disk as u64;
    for (i, word) in sector.chunks_exact_mut(8).enumerate() {
        let value = match i {
            0 => u64::from(MAGIC) << 32 | u64::from(version),
            1 => lba << 8 | disk as u64,
            _ => mix(key.wrapping_add(i as u64)),
        };
        word.copy_from_slice(&value.to_le_bytes());
    }
}

/// The value in a sector, or what is wrong with it.
pub fn parse(sector: &[u8], disk: usize, lba: u64) -> Result<u32, String> {
    if sector.iter().all(|byte| *byte == 0) {
        return Ok(0);
    }
    let word = |i: usize| u64::from_le_bytes(sector[8 * i..8 * i + 8].try_into().expect("8 bytes"));
    if word(0) >> 32 != u64::from(MAGIC) {
        return Err(format!("no value of ours: {:02x?}", &sector[..16]));
    }
    let version = word(0) as u32;
    if word(1) != lba << 8 | disk as u64 {
        return Err(format!(
            "a foreign value: write {version} of disk {} sector {}",
            word(1) & 0xff,
            word(1) >> 8
        ));
    }
    let mut whole = [0; SECTOR];
    fill(&mut whole, disk, lba, version);
    if sector != whole {
        return Err(format!("write {version}, torn within the sector"));
    }
    Ok(version)
}

/// One write of one sector.
#[derive(Clone, Copy, Debug)]
struct Entry {
    op: u64,
    /// What it leaves; 0: zeroes.
    version: u32,
    sent: u64,
    done: u64,
    ok: bool,
    durable: bool,
}

impl Entry {
    fn is_over(&self, other: &Self) -> bool {
        self.ok && self.sent > other.done
    }
}

/// The sectors that a write touches.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    pub disk: usize,
    pub first: u64,
    pub count: u64,
}

/// The histories of all sectors of all disks.
pub struct Oracle {
    sectors: Vec<Vec<Vec<Entry>>>,
    tick: u64,
}

impl Oracle {
    /// Disks as they are found.
    pub fn new(images: &[&[u8]]) -> Self {
        let base = |disk: usize, (lba, sector): (usize, &[u8])| {
            let version = parse(sector, disk, lba as u64)
                .unwrap_or_else(|wrong| panic!("disk {disk} sector {lba} at boot: {wrong}"));
            vec![Entry {
                op: 0,
                version,
                sent: 0,
                done: 0,
                ok: true,
                durable: true,
            }]
        };
        let disk = |(disk, image): (usize, &&[u8])| {
            image
                .chunks_exact(SECTOR)
                .enumerate()
                .map(|sector| base(disk, sector))
                .collect()
        };
        Self {
            sectors: images.iter().enumerate().map(disk).collect(),
            tick: 0,
        }
    }

    /// Time passes: the present, later than all before.
    pub fn now(&mut self) -> u64 {
        self.tick += 1;
        self.tick
    }

    fn each(&mut self, range: Range, mut f: impl FnMut(&mut Vec<Entry>)) {
        for lba in range.first..range.first + range.count {
            f(&mut self.sectors[range.disk][lba as usize]);
        }
    }

    /// A write is sent.
    pub fn sent(&mut self, op: u64, range: Range, version: u32, sent: u64) {
        self.each(range, |entries| {
            entries.push(Entry {
                op,
                version,
                sent,
                done: OPEN,
                ok: false,
                durable: false,
            });
        });
    }

    /// A write is answered, or nothing can come of it any more. `sure`: it did what it was to do, and may be over others.
    pub fn done(&mut self, op: u64, range: Range, sure: bool, durable: bool) {
        let now = self.now();
        self.each(range, |entries| {
            if let Some(entry) = entries.iter_mut().rfind(|entry| entry.op == op) {
                entry.done = now;
                entry.ok = sure;
                entry.durable = sure && durable;
            }
        });
    }

    /// A flush that was sent at `sent` has succeeded.
    pub fn flushed(&mut self, disk: usize, sent: u64) {
        for entry in self.sectors[disk].iter_mut().flatten() {
            entry.durable |= entry.ok && entry.done < sent;
        }
    }

    /// Whether a read that was sent at `sent` may see this in a sector.
    pub fn may_read(&self, disk: usize, lba: u64, sector: &[u8], sent: u64) -> Result<(), String> {
        self.may_be(disk, lba, sector, "read", |over| over.done < sent)
    }

    /// Whether a sector may hold this after a power cut.
    pub fn may_survive(&self, disk: usize, lba: u64, sector: &[u8]) -> Result<(), String> {
        self.may_be(disk, lba, sector, "found after the cut", |over| {
            over.durable
        })
    }

    fn may_be(
        &self,
        disk: usize,
        lba: u64,
        sector: &[u8],
        what: &str,
        counts: impl Fn(&Entry) -> bool,
    ) -> Result<(), String> {
        let place = format!("disk {disk} sector {lba}, {what}");
        let version = parse(sector, disk, lba).map_err(|wrong| format!("{place}: {wrong}"))?;
        let entries = &self.sectors[disk][lba as usize];
        let gone = |entry: &Entry| {
            entries
                .iter()
                .find(|over| counts(over) && over.is_over(entry))
        };
        let mut stale = None;
        for entry in entries.iter().filter(|entry| entry.version == version) {
            match gone(entry) {
                None => return Ok(()),
                Some(over) => stale = Some((*entry, *over)),
            }
        }
        Err(match stale {
            Some((entry, over)) => {
                format!("{place}: write {version} is stale: {entry:?} < {over:?}")
            }
            None => format!("{place}: write {version} was never sent here"),
        })
    }

    /// A device lost its cache and lives on: what it holds now is where histories begin again. What is still open may have
    /// been in that cache, so it proves nothing when it is answered.
    pub fn start_again(&mut self, disk: usize, image: &[u8]) -> Result<(), String> {
        let now = self.now();
        for (lba, sector) in image.chunks_exact(SECTOR).enumerate() {
            self.may_survive(disk, lba as u64, sector)?;
            let version = parse(sector, disk, lba as u64)?;
            let entries = &mut self.sectors[disk][lba];
            entries.retain(|entry| entry.done == OPEN);
            entries.push(Entry {
                op: 0,
                version,
                sent: 0,
                done: now,
                ok: true,
                durable: true,
            });
        }
        Ok(())
    }
}

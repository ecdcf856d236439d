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

use std::collections::BTreeMap;

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
    /// What is there from the start.
    fn base(version: u32, done: u64) -> Self {
        Self {
            op: 0,
            version,
            sent: 0,
            done,
            ok: true,
            durable: true,
        }
    }

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

/// What a read found, when it was sent and when it was answered.
#[derive(Clone, Copy, Debug)]
struct Seen {
    version: u32,
    sent: u64,
    done: u64,
}

/// The histories of all sectors of all disks.
pub struct Oracle {
    /// A sector without entries holds zeroes and always did.
    sectors: Vec<Vec<Vec<Entry>>>,
    /// What reads found last, on disks that must not change their mind: the first disk, by sector.
    seen: Option<BTreeMap<u64, Seen>>,
    tick: u64,
    /// When the latest of the writes was sent that have succeeded.
    pub acknowledged: u64,
}

impl Oracle {
    /// By disk and sector: which values may be there. None: zeroes.
    pub fn new(found: Vec<Vec<Vec<u32>>>) -> Self {
        let base = |versions: Vec<u32>| versions.into_iter().map(|v| Entry::base(v, 0)).collect();
        let disk = |sectors: Vec<Vec<u32>>| sectors.into_iter().map(base).collect();
        Self {
            sectors: found.into_iter().map(disk).collect(),
            seen: None,
            tick: 0,
            acknowledged: 0,
        }
    }

    /// The first disk must not change its mind: what a read has found, the next has to find, unless something was written. A
    /// sector that may hold several values is so when it is first read. `seen`: what was found in an earlier life.
    pub fn steady(&mut self, seen: impl Iterator<Item = (u64, u32)>) {
        let seen = seen.map(|(lba, version)| {
            let (sent, done) = (0, 0);
            (
                lba,
                Seen {
                    version,
                    sent,
                    done,
                },
            )
        });
        self.seen = Some(seen.collect());
    }

    /// The first disk may change its mind once more, where `whether` says so.
    pub fn unsettle(&mut self, whether: impl Fn(u64) -> bool) {
        if let Some(seen) = &mut self.seen {
            seen.retain(|lba, _| !whether(*lba));
        }
    }

    /// Whether nothing was written to a sector since the start.
    pub fn is_as_found(&self, disk: usize, lba: u64) -> bool {
        self.sectors[disk][lba as usize].iter().all(|e| e.op == 0)
    }

    /// What may be in each sector of a disk that was ever written after a power cut: which values, and what was read last if that
    /// still holds.
    pub fn survivors(&self, disk: usize) -> Vec<(u64, Vec<u32>, Option<u32>)> {
        let mut all = Vec::new();
        for (lba, entries) in self.sectors[disk].iter().enumerate() {
            if entries.is_empty() {
                continue;
            }
            let lives = |entry: &&Entry| {
                !entries
                    .iter()
                    .any(|over| over.durable && over.is_over(entry))
            };
            let mut versions: Vec<_> = entries.iter().filter(lives).map(|e| e.version).collect();
            versions.sort_unstable();
            versions.dedup();
            let seen = self.seen.as_ref().and_then(|seen| seen.get(&(lba as u64)));
            // What was written since is a matter of the histories.
            let seen = seen.filter(|seen| entries.iter().all(|e| e.op == 0 || e.done <= seen.sent));
            let seen = seen
                .map(|seen| seen.version)
                .filter(|v| versions.contains(v));
            all.push((lba as u64, versions, seen));
        }
        all
    }

    /// Time passes: the present, later than all before.
    pub fn now(&mut self) -> u64 {
        self.tick += 1;
        self.tick
    }

    fn each(&mut self, range: Range, mut f: impl FnMut(&mut Vec<Entry>)) {
        for lba in range.first..range.first + range.count {
            let entries = &mut self.sectors[range.disk][lba as usize];
            if entries.is_empty() {
                entries.push(Entry::base(0, 0));
            }
            f(entries);
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
        let mut sent = 0;
        self.each(range, |entries| {
            if let Some(entry) = entries.iter_mut().rfind(|entry| entry.op == op) {
                sent = entry.sent;
                entry.done = now;
                entry.ok = sure;
                entry.durable = sure && durable;
            }
        });
        if sure {
            self.acknowledged = self.acknowledged.max(sent);
        }
    }

    /// A flush that was sent at `sent` has succeeded.
    pub fn flushed(&mut self, disk: usize, sent: u64) {
        for entry in self.sectors[disk].iter_mut().flatten() {
            entry.durable |= entry.ok && entry.done < sent;
        }
    }

    /// Whether a read that was sent at `sent` may see this in a sector.
    pub fn may_read(
        &mut self,
        disk: usize,
        lba: u64,
        sector: &[u8],
        sent: u64,
    ) -> Result<(), String> {
        let version = self.may_be(disk, lba, sector, "read", |over| over.done < sent)?;
        let done = self.now();
        if let (Some(seen), 0) = (&mut self.seen, disk) {
            let before = seen.insert(
                lba,
                Seen {
                    version,
                    sent,
                    done,
                },
            );
            let entries = &self.sectors[disk][lba as usize];
            if let Some(before) = before
                && before.version != version
                && before.done < sent
                && entries.iter().all(|e| e.op == 0 || e.done <= before.sent)
            {
                return Err(format!(
                    "disk {disk} sector {lba}: {} was read, and now {version}, and nothing was written",
                    before.version
                ));
            }
        }
        Ok(())
    }

    /// Whether something may be in a sector that was read at some moment from `from` to `to`.
    pub fn may_have_been(
        &self,
        disk: usize,
        lba: u64,
        sector: &[u8],
        (from, to): (u64, u64),
    ) -> Result<(), String> {
        let what = "as of an earlier moment";
        let version = self.may_be(disk, lba, sector, what, |over| over.done < from)?;
        let entries = &self.sectors[disk][lba as usize];
        if entries.is_empty() || entries.iter().any(|e| e.version == version && e.sent <= to) {
            return Ok(());
        }
        Err(format!(
            "disk {disk} sector {lba}: write {version} is from a later moment"
        ))
    }

    /// Whether a sector may hold this after a power cut.
    pub fn may_survive(&self, disk: usize, lba: u64, sector: &[u8]) -> Result<(), String> {
        self.may_be(disk, lba, sector, "found after the cut", |over| {
            over.durable
        })
        .map(|_| ())
    }

    fn may_be(
        &self,
        disk: usize,
        lba: u64,
        sector: &[u8],
        what: &str,
        counts: impl Fn(&Entry) -> bool,
    ) -> Result<u32, String> {
        let place = format!("disk {disk} sector {lba}, {what}");
        let version = parse(sector, disk, lba).map_err(|wrong| format!("{place}: {wrong}"))?;
        let entries = &self.sectors[disk][lba as usize];
        if entries.is_empty() && version == 0 {
            return Ok(0);
        }
        let gone = |entry: &Entry| {
            entries
                .iter()
                .find(|over| counts(over) && over.is_over(entry))
        };
        let mut stale = None;
        for entry in entries.iter().filter(|entry| entry.version == version) {
            match gone(entry) {
                None => return Ok(version),
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
    pub fn start_again(&mut self, disk: usize, lba: u64, sector: &[u8]) -> Result<(), String> {
        let now = self.now();
        self.may_survive(disk, lba, sector)?;
        let version = parse(sector, disk, lba)?;
        let entries = &mut self.sectors[disk][lba as usize];
        entries.retain(|entry| entry.done == OPEN);
        entries.push(Entry::base(version, now));
        Ok(())
    }
}

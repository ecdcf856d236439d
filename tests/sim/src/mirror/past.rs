//! What outlives a life of a machine with a mirror besides the media: what clients were promised, and which leg took part in what.
//!
//! *Lines.* As long as nobody forces an array together there is one line of history. A start with `force` begins another one, from
//! what its legs hold. Each leg belongs to a line, and each line says what its sectors may hold after the cut.
//!
//! *Epochs.* Writes that were acknowledged while the same legs were active are an epoch, which those legs have. One leg is behind
//! another if the other has all its epochs and more; two of which each has an epoch that the other lacks are split brain.

use super::LEGS;

/// Lines that a seed may have.
pub const LINES: usize = 6;
/// Words of what a line says.
const WORDS: usize = 1 << 15;
/// No read.
const UNREAD: u32 = u32::MAX;

/// One disk, as a leg.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Leg {
    /// Leg number in the array, plus 1; 0: it is none.
    pub slot: u32,
    pub line: u32,
    /// Epochs that it has, one bit each.
    pub epochs: u64,
    /// Whether it had become equal to the others when the power failed is not known.
    pub doubtful: bool,
    /// Somebody decided, by force, against what it had.
    pub given_up: bool,
}

#[repr(C)]
struct Line {
    length: u32,
    words: [u32; WORDS],
}

/// All zeroes: a machine that has not run yet.
#[repr(C)]
pub struct Past {
    /// There is an array.
    pub created: bool,
    /// Somebody has used force.
    pub forced: bool,
    /// Users have gone to the third disk; its line, plus 1.
    pub moved: u32,
    /// The members did not change when the last life ended.
    pub settled: bool,
    /// Disks that were active legs then, one bit each.
    pub active: u32,
    pub legs: [Leg; LEGS],
    lines: [Line; LINES],
    used_lines: u32,
    epochs: u32,
}

/// What one sector may hold: its place, the values, and what the last read found.
pub type Sector = (u64, Vec<u32>, Option<u32>);

/// One of two lacks something of the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    Same,
    Behind,
    Ahead,
    Divided,
}

impl Past {
    pub fn clear(&mut self) {
        self.created = false;
        self.forced = false;
        self.settled = false;
        self.moved = 0;
        self.active = 0;
        for leg in &mut self.legs {
            *leg = Leg {
                slot: 0,
                line: 0,
                epochs: 0,
                doubtful: false,
                given_up: false,
            };
        }
        for line in &mut self.lines[..self.used_lines as usize] {
            line.length = 0;
        }
        self.used_lines = 1;
        self.epochs = 0;
    }

    /// Disks that are legs, one bit each.
    pub fn members(&self) -> u32 {
        let leg = |(n, leg): (usize, &Leg)| u32::from(leg.slot != 0) << n;
        self.legs.iter().enumerate().map(leg).sum()
    }

    /// Whether it is known what the leg has, and nobody has given that up.
    pub fn is_sure(&self, leg: usize) -> bool {
        !self.legs[leg].doubtful && !self.legs[leg].given_up
    }

    /// These disks are active together: of which that was not known, it is now.
    pub fn settle(&mut self, active: u32) {
        let of = |n: usize| active >> n & 1 != 0;
        let sure = (0..LEGS).find(|n| of(*n) && !self.legs[*n].doubtful);
        for n in (0..LEGS).filter(|n| of(*n)) {
            if let Some(sure) = sure.filter(|_| self.legs[n].doubtful) {
                self.legs[n].epochs = self.legs[sure].epochs;
            }
            self.legs[n].doubtful = false;
        }
    }

    /// Leg `leg` is to be made equal to `other`, whatever it has.
    pub fn give_up(&mut self, leg: usize, other: usize) {
        if self.relation(leg, other) != Relation::Behind {
            self.legs[leg].given_up = true;
        }
    }

    /// Its superblocks say now that leg `leg` is to become equal to `other`, on whose line it is.
    pub fn learnt(&mut self, leg: usize, other: usize) {
        let other = self.legs[other];
        let leg = &mut self.legs[leg];
        leg.epochs &= other.epochs;
        leg.line = other.line;
        leg.given_up = false;
    }

    /// Whether another line may begin.
    pub fn has_line(&self) -> bool {
        (self.used_lines as usize) < LINES
    }

    /// A line that begins; `None`: there were enough.
    pub fn new_line(&mut self) -> Option<u32> {
        let line = self.used_lines;
        if line as usize == LINES {
            return None;
        }
        self.used_lines += 1;
        Some(line)
    }

    pub fn new_epoch(&mut self) -> u64 {
        let epoch = 1 << self.epochs;
        // The last one is for all that follow: it proves less.
        self.epochs = (self.epochs + 1).min(63);
        epoch
    }

    /// What leg `one` is to `other`.
    pub fn relation(&self, one: usize, other: usize) -> Relation {
        let (a, b) = (self.legs[one].epochs, self.legs[other].epochs);
        match (a & !b, b & !a) {
            (0, 0) => Relation::Same,
            (0, _) => Relation::Behind,
            (_, 0) => Relation::Ahead,
            _ => Relation::Divided,
        }
    }

    pub fn write(&mut self, line: u32, sectors: &[Sector]) {
        let line = &mut self.lines[line as usize];
        let mut length = 0;
        let mut put = |word: u32| {
            line.words[length] = word;
            length += 1;
        };
        for (lba, versions, read) in sectors {
            put(*lba as u32);
            put(read.unwrap_or(UNREAD));
            put(versions.len() as u32);
            versions.iter().copied().for_each(&mut put);
        }
        line.length = length as u32;
    }

    pub fn read(&self, line: u32) -> Vec<Sector> {
        let line = &self.lines[line as usize];
        let mut words = line.words[..line.length as usize].iter().copied();
        let mut sectors = Vec::new();
        while let Some(lba) = words.next() {
            let mut word = || words.next().expect("a whole sector");
            let read = Some(word()).filter(|read| *read != UNREAD);
            let count = word();
            let versions = (0..count).map(|_| word()).collect();
            sectors.push((lba.into(), versions, read));
        }
        sectors
    }
}

/// What several lines say together: a sector may hold what any of them says.
pub fn either(mut lines: Vec<Vec<Sector>>) -> Vec<Sector> {
    if lines.len() == 1 {
        return lines.remove(0);
    }
    let mut all = std::collections::BTreeMap::<u64, Vec<u32>>::new();
    for (lba, versions, _) in lines.iter().flatten() {
        all.entry(*lba).or_default().extend(versions);
    }
    for (lba, versions) in &mut all {
        // A line that does not name it has zeroes there.
        if lines
            .iter()
            .any(|line| line.iter().all(|(l, _, _)| l != lba))
        {
            versions.push(0);
        }
        versions.sort_unstable();
        versions.dedup();
    }
    all.into_iter().map(|(lba, v)| (lba, v, None)).collect()
}

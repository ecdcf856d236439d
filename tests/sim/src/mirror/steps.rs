//! What an array is doing, from what it says of itself and from what its legs have been given.

use ironthread::block::node::mirror::regions::Regions;
use ironthread::block::node::mirror::superblock::{self, Standing};

use super::DATA;
use super::array::Role;
use super::life::{World, legs};
use crate::oracle::SECTOR;
use crate::shared::Image;

/// A superblock, as far as it matters here.
#[derive(Clone, PartialEq, Eq)]
struct Record {
    sequence: u64,
    event: u64,
    active: u8,
    regions: Regions,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Update {
    #[default]
    Other,
    Degrade,
    RebuildEnd,
    Intent,
    Clear,
}

/// What is going on.
#[derive(Default)]
pub struct Steps {
    assembling: bool,
    /// The record that is stable, and the one that is being written and why.
    stable: Option<Record>,
    writing: Option<(Record, Update)>,
    /// The record of the degrade that is under way is stable.
    recorded: bool,
}

/// In the order of the kinds.
impl Steps {
    /// How many kinds there are.
    pub const COUNT: usize = crate::shared::KINDS.len() - crate::shared::MIRRORS;
    pub const ONE_LEG: usize = 0;
    pub const UNRECORDED: usize = 1;
    pub const RECORDING: usize = 2;
    pub const RECORDED: usize = 3;
    pub const INTENT: usize = 4;
    pub const CLEAR: usize = 5;
    pub const RESYNC: usize = 6;
    pub const ASSEMBLY: usize = 7;
    pub const REBUILD: usize = 8;
    pub const REBUILD_END: usize = 9;
    pub const MIRROR_JOB: usize = 10;
    pub const PIVOT: usize = 11;
    pub const BACKUP: usize = 12;

    /// After each step.
    pub fn look(&mut self, world: &World, assembling: bool) {
        self.assembling = assembling;
        let end = DATA + world.sectors;
        let mut newest: Option<Record> = None;
        for disk in &world.disks {
            let state = disk.port.state();
            for (_, data, _) in state.writes(|first| first < DATA || first >= end) {
                let record = read(&data);
                if record.as_ref().map(|r| r.sequence) > newest.as_ref().map(|r| r.sequence) {
                    newest = record;
                }
            }
        }
        let Some(record) = newest else {
            if let Some((record, update)) = self.writing.take() {
                self.stable = Some(record);
                self.recorded = update == Update::Degrade;
            }
            self.recorded &= world.info.failing;
            return;
        };
        if self
            .writing
            .as_ref()
            .is_some_and(|(old, _)| old.sequence == record.sequence)
        {
            return;
        }
        // The second place of the same, or the next one.
        let before = self
            .writing
            .take()
            .map(|(record, _)| record)
            .or(self.stable.take());
        let update = before
            .as_ref()
            .map_or(Update::Other, |old| what(old, &record));
        self.stable = before;
        self.writing = Some((record, update));
    }

    /// Whether the power fails now that it may, for that kind.
    pub fn is_ripe(&self, wanted: usize, world: &mut World) -> bool {
        let of = match wanted {
            // The worst moment is when all legs have the superblock and none has flushed it.
            Self::CLEAR
                if !legs(world.active()).all(|leg| world.disks[leg].port.state().flushing()) =>
            {
                60
            }
            // What lasts is cut at any time of it.
            Self::RESYNC | Self::PIVOT => 40,
            Self::REBUILD | Self::MIRROR_JOB | Self::BACKUP => 150,
            _ => 6,
        };
        world.random.chance(1, of)
    }

    /// One bit for each of the kinds that only a machine with a mirror has.
    pub fn during(&self, world: &World) -> u32 {
        let update = self.writing.as_ref().map(|(_, update)| *update);
        let is = |wanted| update == Some(wanted);
        let rebuilding = world.with_role(|role| role == Role::Rebuilding) != 0;
        let failing = world.info.failing;
        let mut during = 0;
        for (kind, whether) in [
            (
                Self::UNRECORDED,
                failing && update.is_none() && !self.recorded,
            ),
            (Self::RECORDING, is(Update::Degrade)),
            (Self::RECORDED, failing && update.is_none() && self.recorded),
            (Self::INTENT, is(Update::Intent)),
            (Self::CLEAR, is(Update::Clear)),
            (Self::RESYNC, world.info.unsynced > 0),
            (Self::REBUILD, rebuilding),
            (Self::REBUILD_END, is(Update::RebuildEnd)),
            (Self::ASSEMBLY, self.assembling),
            (Self::ONE_LEG, on_one_leg(world)),
        ] {
            during |= u32::from(whether) << kind;
        }
        during
    }
}

fn read(data: &[u8]) -> Option<Record> {
    let (_, header) = superblock::decode(data)?;
    let mut regions = Regions::NONE;
    superblock::add_intent(data, &mut regions);
    Some(Record {
        sequence: header.sequence,
        event: header.now.event,
        active: header.standing(Standing::Active),
        regions,
    })
}

fn what(old: &Record, new: &Record) -> Update {
    let mut more = new.regions.clone();
    more.subtract(&old.regions);
    let mut fewer = old.regions.clone();
    fewer.subtract(&new.regions);
    if new.active & !old.active != 0 {
        Update::RebuildEnd
    } else if old.active & !new.active != 0 {
        Update::Degrade
    } else if new.event != old.event {
        Update::Other
    } else if !more.is_empty() {
        Update::Intent
    } else if !fewer.is_empty() {
        Update::Clear
    } else {
        Update::Other
    }
}

/// Whether a leg has done a write that another one still has to do.
fn on_one_leg(world: &World) -> bool {
    if world.info.unsynced > 0 {
        return false;
    }
    let end = DATA + world.sectors;
    let active: Vec<_> = legs(world.active()).collect();
    active.iter().any(|leg| {
        let state = world.disks[*leg].port.state();
        let mut todo = state
            .writes(|first| (DATA..end).contains(&first))
            .filter(|(_, _, done)| !done);
        todo.any(|(first, data, _)| {
            let others = active.iter().filter(|other| *other != leg);
            others.into_iter().any(|other| {
                world.disks[*other]
                    .port
                    .state()
                    .read(first, data.len() / SECTOR)
                    == data
            })
        })
    })
}

/// Regions that may differ, as the newest superblock on a medium says.
pub fn marked(image: &Image, leg_sectors: usize) -> Option<Regions> {
    let size = (leg_sectors * SECTOR) as u64;
    let places = [0, 1].map(|sequence| superblock::places(sequence, size));
    let at = |place: &u64| {
        let first = *place as usize / SECTOR;
        let sectors = superblock::SUPERBLOCK_BYTES / SECTOR;
        let bytes: Vec<u8> = (first..first + sectors)
            .flat_map(|s| image.sector(s))
            .copied()
            .collect();
        read(&bytes)
    };
    let newest = places
        .iter()
        .flatten()
        .filter_map(at)
        .max_by_key(|record| record.sequence);
    newest.map(|record| record.regions)
}

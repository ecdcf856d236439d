//! What happens to an array at random moments: legs fail and are well again, drained sections, moves.

use ironthread::block::DiskState;

use super::jobs::Jobs;
use super::life::{World, legs};
use super::members::Members;
use super::past::Past;
use super::sections::Sections;
use super::steps::Steps;
use crate::device::Ill;
use crate::life::on;

pub struct Actions {
    sections: Sections,
    pub members: Members,
    pub jobs: Jobs,
    winding_up: bool,
}

impl Actions {
    pub fn new() -> Self {
        Self {
            sections: Sections::default(),
            members: Members::default(),
            jobs: Jobs::new(),
            winding_up: false,
        }
    }

    pub fn is_over(&self) -> bool {
        self.winding_up && self.sections.is_over() && self.members.is_over() && self.jobs.is_over()
    }

    pub fn describe(&self) -> String {
        format!(
            "{}, {}, {}",
            self.sections.describe(),
            self.members.describe(),
            self.jobs.describe()
        )
    }

    /// One of them, by chance.
    pub fn some(&mut self, world: &mut World, past: &mut Past) -> Result<(), String> {
        if self.winding_up {
            return Ok(());
        }
        let what = world.random.below(100);
        let disk = world.random.below(world.disks.len());
        world.trace.note("action", [what as u64, disk as u64, 0, 0]);
        match what {
            0..5 => self.fail(world, disk),
            5..12 => self.repair(world, disk),
            20..26 => self.jobs.some(world, None),
            12..20 => self.members.some(world, past),
            50.. => self.sections.some(world),
            _ => {}
        }
        Ok(())
    }

    /// A leg fails, one way or another. Mostly only one at a time.
    fn fail(&mut self, world: &mut World, disk: usize) {
        let others = legs(world.active() & !(1 << disk));
        let well = |leg: usize| {
            let state = world.disks[leg].port.state();
            state.ill == Ill::default() && !state.silent && state.fail == 0
        };
        let other_is_well = others.into_iter().any(well);
        if !other_is_well && !world.random.chance(1, 8) {
            return;
        }
        let kind = world.random.below(8);
        let few = 1 + world.random.below(3) as u32;
        if kind == 7 {
            return world.disks[disk].port.ask_reset();
        }
        let mut state = world.disks[disk].port.state();
        match kind {
            0 => state.ill.writes = true,
            1 => state.ill.flushes = true,
            2 => state.ill.reads = true,
            3 => {
                state.ill = Ill {
                    reads: true,
                    writes: true,
                    flushes: true,
                }
            }
            4 | 5 => state.fail = few,
            _ => state.silent = true,
        }
    }

    fn repair(&mut self, world: &mut World, disk: usize) {
        let sim = &world.disks[disk];
        {
            let mut state = sim.port.state();
            state.ill = Ill::default();
            state.silent = false;
            state.fail = 0;
        }
        if sim.disk.state() != DiskState::Online {
            on(0, || sim.disk.reset());
        }
    }

    /// Has happen what a cut is to fall into.
    pub fn provoke(&mut self, wanted: usize, world: &mut World, past: &mut Past) {
        if !world.random.chance(1, 100) {
            return;
        }
        match wanted {
            Steps::UNRECORDED..=Steps::RECORDED if world.active().count_ones() > 1 => {
                let disk = world.random.below(2);
                self.fail(world, disk);
            }
            Steps::REBUILD | Steps::REBUILD_END => {
                if world.active().count_ones() > 1 && self.members.is_over() {
                    self.members.drop_one(world);
                }
                self.members.rebuild(world, past);
                for disk in 0..world.disks.len() {
                    self.repair(world, disk);
                }
            }
            Steps::MIRROR_JOB..=Steps::BACKUP => {
                self.jobs.some(world, Some(wanted));
                world.pass(100_000_000);
            }
            Steps::CLEAR => {
                // Regions that nobody writes to any more lose their bits after a while.
                world.stopping = true;
                world.pass(1_200_000_000);
            }
            _ => {}
        }
    }

    /// After each step.
    pub fn look(&mut self, world: &mut World, _past: &mut Past) -> Result<(), String> {
        self.members.look();
        self.jobs.look(world)
    }

    /// Towards the end.
    pub fn wind_up(&mut self, world: &mut World) {
        self.winding_up = true;
        self.sections.wind_up();
        self.jobs.wind_up();
        for disk in 0..world.disks.len() {
            self.repair(world, disk);
        }
    }
}

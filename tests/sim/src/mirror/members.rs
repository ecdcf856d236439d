//! Legs that are dropped, added and rebuilt at random moments.

use ironthread::block::job::{Job, Options, rebuild};
use ironthread::block::node::mirror;

use super::array::Role;
use super::life::{World, legs};
use super::past::Past;
use crate::life::on;

/// The rebuild job that is under way.
#[derive(Default)]
pub struct Members {
    job: Option<Job>,
}

impl Members {
    pub fn is_over(&self) -> bool {
        self.job.is_none()
    }

    pub fn describe(&self) -> String {
        let view = self.job.and_then(|job| on(0, || job.view()));
        format!("rebuild {view:?}")
    }

    /// After each step.
    pub fn look(&mut self) {
        self.job = self.job.filter(|job| on(0, || job.view()).is_some());
    }

    /// Changes something, by chance.
    pub fn some(&mut self, world: &mut World, past: &mut Past) {
        let Some(array) = world.array else { return };
        let disk = world.random.below(world.disks.len());
        let node = world.disks[disk].disk.node();
        match world.random.below(8) {
            0 if world.with_role(|_| true) >> disk & 1 != 0 => {
                world.trace.note("drop", [disk as u64, 0, 0, 0]);
                let _ = on(0, || mirror::drop_leg(array, node));
            }
            1 => {
                if let Some(job) = self.job {
                    world.trace.note("cancel", [0; 4]);
                    let _ = on(0, || job.cancel(world.random.chance(1, 2)));
                }
            }
            _ => self.rebuild(world, past),
        }
    }

    /// Rebuilds a leg that is not active; attaches one if there is none.
    pub fn rebuild(&mut self, world: &mut World, past: &mut Past) {
        let Some(array) = world.array else { return };
        if self.job.is_some() {
            return;
        }
        let all = (1 << world.disks.len()) - 1;
        if let Some(leg) = legs(world.with_role(|role| role == Role::Stale)).next() {
            let node = world.disks[leg].disk.node();
            let options = Options {
                id: Some("rebuild"),
                ..Options::DEFAULT
            };
            self.job = on(0, || rebuild::create(array, node, &options)).ok();
            if let (Some(_), Some(other)) = (self.job, legs(world.active()).next()) {
                past.give_up(leg, other);
            }
            let begun = u64::from(self.job.is_some());
            world.trace.note("rebuild", [leg as u64, begun, 0, 0]);
        } else if let Some(leg) = legs(all & !world.with_role(|_| true)).next() {
            let node = world.disks[leg].disk.node();
            let added = on(0, || mirror::add_leg(array, node)).is_ok();
            world.trace.note("add", [leg as u64, added.into(), 0, 0]);
        }
    }

    /// Makes room for a rebuild.
    pub fn drop_one(&mut self, world: &mut World) {
        let active = world.active();
        if let (Some(array), true) = (world.array, active.count_ones() > 1) {
            let leg = legs(active).nth(world.random.below(active.count_ones() as usize));
            let leg = leg.expect("one of them");
            let node = world.disks[leg].disk.node();
            world.trace.note("drop", [leg as u64, 0, 0, 0]);
            let _ = on(0, || mirror::drop_leg(array, node));
        }
    }
}

//! Mirror jobs from the array to a third disk, with a pivot in the end or without, and backups to it.

use std::cell::RefCell;

use ironthread::block::NodeId;
use ironthread::block::job::{Job, Options, Start, StartError, State, backup, mirror};
use ironthread::block::node::partition::{self, PartitionOptions};

use super::life::World;
use super::{DATA, SPARE, steps::Steps};
use crate::life::on;
use crate::oracle::SECTOR;

thread_local! {
    /// What came of the last launch.
    static LAUNCHED: RefCell<Option<bool>> = const { RefCell::new(None) };
}

fn launched(_: usize, result: Result<(), StartError>) {
    LAUNCHED.set(Some(result.is_ok()));
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Mirror,
    Backup,
}

/// The job that is under way.
pub struct Jobs {
    job: Option<(Kind, Job)>,
    /// When it was launched, and when it was known to run.
    from: u64,
    to: Option<u64>,
    /// The user has asked for the switch.
    pivots: bool,
    /// The last state that was seen was its good end.
    good: bool,
    pub made: u64,
}

impl Jobs {
    pub fn new() -> Self {
        Self {
            job: None,
            from: 0,
            to: None,
            pivots: false,
            good: false,
            made: 0,
        }
    }

    pub fn is_over(&self) -> bool {
        self.job.is_none()
    }

    pub fn describe(&self) -> String {
        format!("{:?}", self.job.and_then(|(_, job)| on(0, || job.view())))
    }

    /// Kinds of cuts that it stands for, one bit each.
    pub fn during(&self) -> u32 {
        match self.job {
            Some((Kind::Mirror, _)) if self.pivots => 1 << Steps::PIVOT,
            Some((Kind::Mirror, _)) => 1 << Steps::MIRROR_JOB,
            Some((Kind::Backup, _)) => 1 << Steps::BACKUP,
            None => 0,
        }
    }

    /// Starts one, or does something with the one that is under way.
    pub fn some(&mut self, world: &mut World, wanted: Option<usize>) {
        let Some((kind, job)) = self.job else {
            return self.start(world, wanted);
        };
        let state = on(0, || job.view()).map(|view| view.state);
        match world.random.below(12) {
            0 if wanted.is_none() && world.random.chance(1, 4) => {
                let force = world.random.chance(1, 2);
                world.trace.note("job cancel", [force.into(), 0, 0, 0]);
                let _ = on(0, || job.cancel(force));
            }
            1 => drop(on(0, || job.pause())),
            2 | 3 => drop(on(0, || job.resume())),
            _ if kind == Kind::Mirror
                && state == Some(State::Ready)
                && wanted != Some(Steps::MIRROR_JOB) =>
            {
                self.pivots = on(0, || job.complete()).is_ok();
                world
                    .trace
                    .note("job complete", [self.pivots.into(), 0, 0, 0]);
            }
            _ => {}
        }
    }

    fn start(&mut self, world: &mut World, wanted: Option<usize>) {
        let (Some(array), None) = (world.array, world.moved) else {
            return;
        };
        if !world.is_spare() {
            return;
        }
        let kind = match wanted {
            Some(Steps::BACKUP) => Kind::Backup,
            Some(_) => Kind::Mirror,
            None => world.random.pick(&[Kind::Mirror, Kind::Backup]),
        };
        let target = world.target();
        world.backup = None;
        self.from = world.oracle.now();
        (self.to, self.pivots, self.good) = (None, false, false);
        LAUNCHED.set(None);
        let start = Start {
            options: Options {
                id: Some("copy"),
                // So that its end is seen.
                auto_dismiss: false,
                ..Options::DEFAULT
            },
            ..Start::new(array, target)
        };
        let begun = on(0, || match kind {
            Kind::Mirror => mirror::start(&[start], &launched, 0),
            Kind::Backup => backup::start(&[start], &launched, 0),
        });
        world
            .trace
            .note("job", [kind as u64, begun.is_ok().into(), 0, 0]);
        self.job = begun.ok().map(|jobs| (kind, jobs[0]));
    }

    /// After each step.
    pub fn look(&mut self, world: &mut World) -> Result<(), String> {
        if LAUNCHED.take() == Some(true) {
            self.to = Some(world.oracle.now());
        }
        let Some((kind, job)) = self.job else {
            return Ok(());
        };
        let view = on(0, || job.view());
        if let Some(view) = &view {
            if view.state != State::Concluded {
                return Ok(());
            }
            self.good = view.result.is_ok();
            let _ = on(0, || job.dismiss());
        }
        world
            .trace
            .note("job over", [kind as u64, self.good.into(), 0, 0]);
        self.job = None;
        self.made += u64::from(self.good);
        if let (Kind::Backup, true, Some(to)) = (kind, self.good, self.to) {
            world.backup = Some((self.from, to));
            world.check_backup(|world, lba| world.disks[SPARE].port.state().read(DATA + lba, 1))?;
        }
        Ok(())
    }

    /// Towards the end.
    pub fn wind_up(&mut self) {
        if let Some((_, job)) = self.job {
            let _ = on(0, || job.resume());
            let _ = on(0, || job.cancel(true));
        }
    }
}

/// The part of the third disk where a leg has its data.
pub fn target(disk: NodeId, sectors: usize) -> NodeId {
    let options = PartitionOptions {
        child: disk,
        offset: (DATA * SECTOR) as u64,
        len: Some((sectors * SECTOR) as u64),
    };
    on(0, || partition::create("target", options)).expect("a part of a disk")
}

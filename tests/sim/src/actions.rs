//! What the main loop does at random moments: drained sections, resizing, exports that go and come, disks that break, changes of
//! the graph.

use std::sync::atomic::{AtomicU32, Ordering};

use ironthread::aio::Callback;
use ironthread::block::graph::drain;
use ironthread::block::{self, DiskState, NodeId, ResetOutcome};
use ironthread::export::{self, RemoveMode, nbd};

use crate::changes::Changes;
use crate::device::SECTORS;
use crate::life::{World, on};

/// Sections that have become quiet: of each export's backend, of each disk's node, and last of everything.
static QUIET: [AtomicU32; 9] = [const { AtomicU32::new(0) }; 9];
const ALL: usize = 8;

/// From this one on, of a hundred, the operator has a look at a disk.
const OPERATOR: usize = 85;

fn quiet(which: usize) {
    QUIET[which].fetch_add(1, Ordering::SeqCst);
}

/// Drained sections on one backend or node, or on all.
#[derive(Clone, Copy, Default)]
struct Sections {
    begun: u32,
    ended: u32,
}

/// What was begun and not ended.
pub struct Actions {
    sections: Vec<Sections>,
    all: Sections,
    pub changes: Changes,
    winding_up: bool,
}

/// The node on which section number `n` is.
fn node(world: &World, n: usize) -> NodeId {
    world.disks[n - world.exports.len()].disk.node()
}

/// A disk becomes larger, if it can.
fn grow(world: &mut World, disk: usize) {
    let sim = &world.disks[disk];
    let capacity = sim.port.state().capacity;
    let room = (SECTORS - capacity) / sim.block as usize;
    if room > 0 {
        let more = 1 + world.random.below(room.min(8));
        let capacity = capacity + more * sim.block as usize;
        sim.port.grow(capacity);
        world
            .trace
            .note("grow", [disk as u64, capacity as u64, 0, 0]);
    }
}

fn ask_reset(world: &mut World, disk: usize) {
    world.faults.reset[disk] = true;
    world.disks[disk].port.ask_reset();
}

impl Actions {
    pub fn new(world: &World) -> Self {
        let sections = world.exports.len() + world.disks.len();
        assert!(sections <= ALL);
        Self {
            sections: vec![Sections::default(); sections],
            all: Sections::default(),
            changes: Changes::default(),
            winding_up: false,
        }
    }

    pub fn draining(&self) -> bool {
        self.all.begun > self.all.ended || self.sections.iter().any(|s| s.begun > s.ended)
    }

    pub fn is_over(&self) -> bool {
        self.winding_up && !self.draining() && self.changes.is_over()
    }

    pub fn describe(&self) -> String {
        let quiet: Vec<_> = QUIET.iter().map(|q| q.load(Ordering::SeqCst)).collect();
        let sections: Vec<_> = self.sections.iter().map(|s| (s.begun, s.ended)).collect();
        format!(
            "sections {sections:?} and {:?}, quiet {quiet:?}, {}",
            (self.all.begun, self.all.ended),
            self.changes.describe()
        )
    }

    /// One of them, by chance.
    pub fn some(&mut self, world: &mut World) -> Result<(), String> {
        if self.winding_up {
            return Ok(());
        }
        let export = world.random.below(world.exports.len());
        let disk = world.random.below(world.disks.len());
        let gone = (0..world.served).find(|n| !world.exports[*n].present);
        if let Some(gone) = gone
            && world.random.chance(1, 3)
        {
            self.export(world, gone);
        }
        let section = world.random.below(self.sections.len());
        let mut what = world.random.below(100);
        let ill = world.disks[disk].disk.state() != DiskState::Online;
        if ill && world.random.chance(1, 2) {
            what = OPERATOR;
        }
        world
            .trace
            .note("action", [what as u64, export as u64, disk as u64, 0]);
        match what {
            0..7 => self.begin(world, section),
            7..40 => self.end(world, section),
            40..42 => self.begin_all(),
            42..54 => self.end_all(),
            54..76 => self.changes.some(world),
            76..80 => {
                let mut state = world.disks[disk].port.state();
                state.fail = 1 + world.random.below(3) as u32;
            }
            80..83 => {
                let mut state = world.disks[disk].port.state();
                state.silent = !state.silent;
            }
            83..OPERATOR => ask_reset(world, disk),
            OPERATOR..90 => self.operator(world, disk),
            90..93 => {
                grow(world, disk);
            }
            _ => self.export(world, export),
        }
        Ok(())
    }

    fn begin(&mut self, world: &mut World, n: usize) {
        if self.sections[n].begun - self.sections[n].ended < 3 {
            let done = Callback::new(&quiet, n);
            let begun = on(0, || match world.exports.get(n) {
                Some(export) => export.backend.drain_begin(done),
                None => drain::drain_begin(node(world, n), done),
            });
            begun.expect("a section begins");
            self.sections[n].begun += 1;
        }
    }

    /// Ends a section that has been quiet.
    fn end(&mut self, world: &mut World, n: usize) {
        if QUIET[n].load(Ordering::SeqCst) > self.sections[n].ended {
            self.sections[n].ended += 1;
            on(0, || match world.exports.get(n) {
                Some(export) => export.backend.drain_end(),
                None => drain::drain_end(node(world, n)),
            });
        }
    }

    fn begin_all(&mut self) {
        if self.all.begun == self.all.ended {
            on(0, || block::drain_all_begin(Callback::new(&quiet, ALL))).expect("a section begins");
            self.all.begun += 1;
        }
    }

    fn end_all(&mut self) {
        if QUIET[ALL].load(Ordering::SeqCst) > self.all.ended {
            self.all.ended += 1;
            on(0, block::drain_all_end);
        }
    }

    /// The operator's `disk vdN reset`.
    fn operator(&mut self, world: &mut World, disk: usize) {
        let sim = &world.disks[disk];
        if on(0, || sim.disk.reset()) == ResetOutcome::Started {
            // From now on it refuses everything, also before the device is reset.
            world.faults.reset[disk] = true;
            sim.port.state().faults += 1;
        }
        world.cleared(disk);
    }

    fn export(&mut self, world: &mut World, n: usize) {
        let export = &mut world.exports[n % world.served];
        if export.present {
            let mode = if world.random.chance(1, 2) {
                RemoveMode::Hard
            } else {
                RemoveMode::Safe
            };
            let removed = on(0, || export::remove(&export.name, mode));
            export.present = removed.is_err();
            if removed == Ok(false) {
                nbd::wake_all();
            }
        } else {
            // Its last session may still have requests under way: then the name is in use.
            export.present = on(0, || {
                export::add(&export.name, "again", export.backend, true)
            })
            .is_ok();
        }
    }

    /// After each step: checks what has to hold in a quiet section.
    pub fn look(&mut self, world: &mut World) -> Result<(), String> {
        self.changes.look(world);
        if self.changes.moving() && !self.winding_up && world.random.chance(1, 30) {
            // What a device says while its disk moves must not get lost.
            let disk = world.random.below(world.disks.len());
            if world.random.chance(1, 24) {
                ask_reset(world, disk);
            } else {
                grow(world, disk);
            }
        }
        world.look_for_quiet();
        for (n, export) in world.exports.iter().enumerate() {
            if !world.quiet[n] {
                continue;
            }
            if export.backend.in_flight() != 0 {
                return Err(format!(
                    "{} is quiet with {} requests in flight",
                    export.name,
                    export.backend.in_flight()
                ));
            }
            if world.at_block(n) != export.backend.parked() {
                return Err(format!(
                    "{} is quiet: its sessions wait for {} requests, {} are parked",
                    export.name,
                    world.at_block(n),
                    export.backend.parked()
                ));
            }
        }
        for (n, disk) in world.disks.iter().enumerate() {
            let state = disk.port.state();
            if state.quiet && state.pending() > 0 {
                return Err(format!(
                    "disk {n} has {} requests although all its users are quiet",
                    state.pending()
                ));
            }
        }
        Ok(())
    }

    /// Towards the end: sections that are quiet end, exports come back, disks are reset.
    pub fn wind_up(&mut self, world: &mut World) {
        self.winding_up = true;
        for n in 0..self.sections.len() {
            self.end(world, n);
        }
        self.end_all();
        self.changes.wind_up();
        for n in 0..world.disks.len() {
            if world.disks[n].disk.state() != DiskState::Online {
                self.operator(world, n);
            }
        }
        world.look_for_quiet();
    }
}

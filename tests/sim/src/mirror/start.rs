//! How a life comes by its array: made in the first, then put together from all legs, from some of them, from each alone, with and
//! without force, and what may come of each.

use ironthread::block::node::mirror::{Start as How, Why};

use super::array::Starting;
use super::life::{self, World, legs};
use super::past::{Past, Relation, Sector, either};
use super::{DATA, LEGS};
use crate::life::on;
use crate::oracle::parse;
use crate::random::Random;
use crate::shared::Shared;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attempt {
    Create,
    /// The users are on the third disk, there is no array.
    Moved,
    /// Of these disks.
    Assemble {
        legs: u32,
        force: bool,
    },
}

/// One attempt after the other.
pub struct Start {
    next: Option<Attempt>,
    under_way: Option<(Attempt, u32, Starting)>,
    /// Disks that were legs when the life began.
    members: u32,
    /// The lines of all disks before force was used.
    lines: [u32; LEGS],
    number: usize,
}

impl Start {
    pub fn new(random: &mut Random, past: &Past, disks: usize) -> Self {
        let members = past.members();
        let count = members.count_ones() as usize;
        let next = if past.moved != 0 {
            Attempt::Moved
        } else if !past.created {
            Attempt::Create
        } else {
            let chosen = match random.below(10) {
                0..3 => members,
                // Each alone in turn, as lives go by.
                3..8 => legs(members)
                    .nth(random.below(count))
                    .map_or(0, |leg| 1 << leg),
                _ => members & random.below(1 << disks) as u32,
            };
            Attempt::Assemble {
                legs: if chosen == 0 { members } else { chosen },
                force: false,
            }
        };
        Self {
            next: Some(next),
            under_way: None,
            members,
            lines: [0; LEGS],
            number: 0,
        }
    }

    pub fn under_way(&self) -> bool {
        self.under_way.is_some()
    }

    /// There will be no array in this life.
    pub fn is_hopeless(&self) -> bool {
        self.next.is_none() && self.under_way.is_none()
    }

    /// Begins the next attempt, or takes note of what came of one.
    pub fn look(&mut self, world: &mut World, shared: &mut Shared) -> Result<(), String> {
        let Some((attempt, line, starting)) = &self.under_way else {
            return self.begin(world, shared);
        };
        let Some(outcome) = on(0, || starting.outcome()) else {
            return Ok(());
        };
        let (attempt, line) = (*attempt, *line);
        self.under_way = None;
        world.trace.note(
            "started",
            [self.number as u64, u64::from(outcome.is_ok()), 0, 0],
        );
        let past = &mut shared.past;
        match (attempt, outcome) {
            (Attempt::Create, Ok(node)) => {
                past.created = true;
                world.assembled(node, 0, &[], past);
                // One that failed meanwhile has no superblock, and is none.
                for leg in life::legs(world.active()) {
                    past.legs[leg].slot = leg as u32 + 1;
                }
                Ok(())
            }
            (Attempt::Moved, _) => Err("nothing was started".into()),
            (Attempt::Create, Err(why)) if world.fault_count() == 0 => {
                Err(format!("no array is made: {why:?}"))
            }
            (Attempt::Create, Err(_)) => {
                self.next = Some(Attempt::Create);
                Ok(())
            }
            (Attempt::Assemble { legs, force: true }, Ok(node)) => {
                let sectors = held(legs, &past.read(line), shared);
                world.assembled(node, line, &sectors, &mut shared.past);
                for leg in life::legs(legs & !world.active()) {
                    shared.past.legs[leg].given_up = true;
                    shared.past.legs[leg].line = self.lines[leg];
                }
                self.check_members(legs, world)
            }
            (Attempt::Assemble { legs, force: false }, Ok(node)) => {
                let (line, sectors) = accept(legs, past)?;
                world.assembled(node, line, &sectors, past);
                if world.active() != past.active {
                    // Reads may come from other legs than the last ones of the life before.
                    world.oracle.unsettle(|_| true);
                }
                self.check_members(legs, world)?;
                check_active(legs, world.active(), past)?;
                past.settle(world.active());
                Ok(())
            }
            (Attempt::Assemble { legs, force }, Err(why)) => {
                self.refused(legs, force, why, world, past)
            }
        }
    }

    fn begin(&mut self, world: &mut World, shared: &mut Shared) -> Result<(), String> {
        let Some(attempt) = self.next.take() else {
            return Ok(());
        };
        self.number += 1;
        let nodes = |set: u32| -> Vec<_> {
            let all = legs(set).filter(|leg| *leg < world.disks.len());
            all.map(|leg| world.disks[leg].disk.node()).collect()
        };
        let mut line = 0;
        let (mut nodes, how) = match attempt {
            Attempt::Moved => {
                let target = world.target();
                let line = shared.past.moved - 1;
                let sectors = shared.past.read(line);
                world.moved = Some(target);
                world.assembled(target, line, &sectors, &mut shared.past);
                return Ok(());
            }
            Attempt::Create => {
                let how = How::Create {
                    equal: world.random.chance(3, 4),
                    region: None,
                    // An earlier life may have begun with it.
                    force: true,
                };
                (nodes(0b11), how)
            }
            Attempt::Assemble { legs: set, force } => {
                let past = &mut shared.past;
                if force {
                    line = past.new_line().expect("asked for before");
                    past.forced = true;
                    // Should the power fail now, nobody knows whether it was forced.
                    let mut lines = vec![past.read(past.legs[first(set)].line)];
                    lines.extend(legs(set).map(|leg| past.read(past.legs[leg].line)));
                    let old = either(lines);
                    lines = vec![held(set, &old, shared), old];
                    let past = &mut shared.past;
                    past.write(line, &either(lines));
                    self.lines = past.legs.map(|leg| leg.line);
                    for leg in legs(set) {
                        past.legs[leg].line = line;
                    }
                }
                (nodes(set), How::Assemble { force })
            }
        };
        // Which comes first is nobody's promise.
        if attempt != Attempt::Create && world.random.chance(1, 2) {
            nodes.reverse();
        }
        let starting = on(0, || Starting::begin(&nodes, how));
        world.trace.note("start", [self.number as u64, 0, 0, 0]);
        if world.trace.show {
            eprintln!("       {attempt:?}");
        }
        self.under_way = Some((attempt, line, starting));
        Ok(())
    }

    /// What is done about a refusal, if it is a right one.
    fn refused(
        &mut self,
        set: u32,
        force: bool,
        why: Why,
        world: &mut World,
        past: &Past,
    ) -> Result<(), String> {
        let all = set == self.members;
        let sure = legs(set).all(|leg| !past.legs[leg].doubtful);
        let as_it_was = past.settled && past.active != 0 && past.active & !set == 0;
        if !past.forced && world.fault_count() == 0 && sure && (all || as_it_was) {
            return Err(format!(
                "legs {set:03b} of {:03b} make no array: {why:?}",
                self.members
            ));
        }
        let forces = !force && past.has_line();
        let alone = legs(self.members).nth(world.random.below(self.members.count_ones() as usize));
        self.next = match world.random.below(4) {
            0 if forces => Some(Attempt::Assemble {
                legs: set,
                force: true,
            }),
            _ if !all && !force => Some(Attempt::Assemble {
                legs: self.members,
                force: false,
            }),
            1 | 2 if forces => Some(Attempt::Assemble {
                legs: 1 << alone.unwrap_or(0),
                force: true,
            }),
            _ => None,
        };
        Ok(())
    }

    fn check_members(&self, set: u32, world: &World) -> Result<(), String> {
        let active = world.active();
        if active == 0 || active & !set != 0 {
            return Err(format!("of legs {set:03b}, {active:03b} are active"));
        }
        Ok(())
    }
}

fn first(set: u32) -> usize {
    set.trailing_zeros() as usize
}

/// What these disks hold where any write ever went.
fn held(set: u32, known: &[Sector], shared: &Shared) -> Vec<Sector> {
    let sector = |(lba, _, _): &Sector| {
        let held = |leg: usize| {
            let bytes = shared.images[leg].sector(DATA + *lba as usize);
            parse(bytes, 0, *lba).unwrap_or_else(|wrong| panic!("leg {leg} sector {lba}: {wrong}"))
        };
        let mut versions: Vec<_> = legs(set).map(held).collect();
        versions.sort_unstable();
        versions.dedup();
        (*lba, versions, None)
    };
    known.iter().map(sector).collect()
}

/// An array came of these legs without force: its line, and what its sectors may hold.
fn accept(set: u32, past: &Past) -> Result<(u32, Vec<Sector>), String> {
    let sure = |leg: &usize| past.is_sure(*leg);
    for one in legs(set).filter(sure) {
        for other in legs(set).filter(sure) {
            if past.relation(one, other) == Relation::Divided {
                return Err(format!(
                    "legs {one} and {other} are split brain, and make an array"
                ));
            }
        }
    }
    let behind = |one: usize| move |other: &usize| past.relation(one, *other) == Relation::Behind;
    // What was given up counts only where nothing else is.
    let mut known: Vec<_> = legs(set).filter(|leg| !past.legs[*leg].given_up).collect();
    if known.is_empty() {
        known = legs(set).collect();
    }
    let best = known.iter().filter(|leg| !known.iter().any(behind(**leg)));
    let best: Vec<_> = best.copied().collect();
    for leg in best.iter().filter(|leg| sure(leg)) {
        let same = |other: &usize| past.legs[*other].line == past.legs[*leg].line;
        if let Some(other) = (0..LEGS).filter(sure).filter(same).find(behind(*leg)) {
            return Err(format!(
                "an array is made of leg {leg}, although leg {other} has writes that it lacks"
            ));
        }
    }
    let mut lines: Vec<_> = best.iter().map(|leg| past.legs[*leg].line).collect();
    lines.sort_unstable();
    lines.dedup();
    let sectors = either(lines.iter().map(|line| past.read(*line)).collect());
    Ok((lines[0], sectors))
}

/// No leg is active that lacks what another one of them has.
fn check_active(set: u32, active: u32, past: &Past) -> Result<(), String> {
    for leg in legs(active).filter(|leg| past.is_sure(*leg)) {
        let ahead = |other: &usize| past.relation(leg, *other) == Relation::Behind;
        let other = legs(set).filter(|other| past.is_sure(*other)).find(ahead);
        if let Some(other) = other {
            return Err(format!(
                "leg {leg} is active, although it lacks writes of leg {other}"
            ));
        }
    }
    Ok(())
}

//! Changes of the graph at random moments: a disk moves to another core, filters come and go.

use std::cell::RefCell;

use ironthread::block::graph::{self, Refusal, change};
use ironthread::block::node::{delay, error, throttle};
use ironthread::block::throttle::{Config, Kind, Limit};
use ironthread::block::{BlockError, NodeId, throttle as limits};

use crate::life::{World, on};

/// Filters that stand at once.
const FILTERS: usize = 4;

thread_local! {
    /// Changes that are over, by number, and whether they were made.
    static OVER: RefCell<Vec<(usize, bool)>> = const { RefCell::new(Vec::new()) };
}

fn over(number: usize, result: Result<(), Refusal>) {
    OVER.with_borrow_mut(|over| over.push((number, result.is_ok())));
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Move,
    Insert(NodeId),
    Remove(NodeId),
}

/// What is under way, and what stands.
#[derive(Default)]
pub struct Changes {
    next: usize,
    under_way: Vec<(usize, What)>,
    filters: Vec<NodeId>,
    /// Made and refused.
    pub made: u64,
    pub refused: u64,
}

impl Changes {
    pub fn moving(&self) -> bool {
        self.under_way.iter().any(|(_, what)| *what == What::Move)
    }

    pub fn changing(&self) -> bool {
        self.under_way.iter().any(|(_, what)| *what != What::Move)
    }

    pub fn is_over(&self) -> bool {
        self.under_way.is_empty() && self.filters.is_empty()
    }

    pub fn describe(&self) -> String {
        format!(
            "{} changes under way, {} filters",
            self.under_way.len(),
            self.filters.len()
        )
    }

    /// One change begins, by chance.
    pub fn some(&mut self, world: &mut World) {
        let disk = world.random.below(world.disks.len());
        let node = world.disks[disk].disk.node();
        match world.random.below(10) {
            0..4 => {
                let core = world.random.below(world.cores);
                let number = self.number();
                world.trace.note(
                    "move",
                    [
                        disk as u64,
                        core as u64,
                        number as u64,
                        world.disks[disk].blk.home() as u64,
                    ],
                );
                if on(0, || change::move_begin(node, core, &over, number)).is_ok() {
                    self.under_way.push((number, What::Move));
                } else {
                    self.refused += 1;
                }
            }
            4..8 => self.insert(world, disk),
            _ => {
                if !self.filters.is_empty() {
                    let filter = self
                        .filters
                        .swap_remove(world.random.below(self.filters.len()));
                    self.remove(filter);
                }
            }
        }
    }

    fn number(&mut self) -> usize {
        self.next += 1;
        self.next
    }

    fn insert(&mut self, world: &mut World, disk: usize) {
        let coming = self
            .under_way
            .iter()
            .filter(|(_, what)| matches!(what, What::Insert(_)));
        if self.filters.len() + coming.count() >= FILTERS {
            return;
        }
        let number = self.number();
        let name = format!("filter{number}");
        // Sometimes above what stands there already, maybe on another disk.
        let child = match self.filters.last() {
            Some(filter) if world.random.chance(1, 3) => *filter,
            _ => world.disks[disk].disk.node(),
        };
        let kind = world.random.below(12);
        let strength = 8 + world.random.below(10);
        if kind == 11 {
            // It fails requests of any disk, flushes too, of which the disk then knows nothing.
            for disk in 0..world.disks.len() {
                world.faults.reset[disk] = true;
                world.disks[disk].port.state().faults += 1;
            }
        }
        let seed = world.random.next();
        let filter = on(0, || {
            let filter = create(&name, child, kind, strength, seed)?;
            change::insert_begin(filter, child, &over, number).inspect_err(|_| {
                let _ = graph::delete(filter);
            })?;
            Ok::<_, Refusal>(filter)
        });
        match filter {
            Ok(filter) => self.under_way.push((number, What::Insert(filter))),
            Err(_) => self.refused += 1,
        }
    }

    fn remove(&mut self, filter: NodeId) {
        let number = self.number();
        if on(0, || change::remove_begin(filter, &over, number)).is_ok() {
            self.under_way.push((number, What::Remove(filter)));
        } else {
            self.refused += 1;
            self.filters.push(filter);
        }
    }

    /// Takes note of what is over.
    pub fn look(&mut self, world: &mut World) {
        for (number, made) in OVER.take() {
            world
                .trace
                .note("change over", [number as u64, u64::from(made), 0, 0]);
            self.made += u64::from(made);
            self.refused += u64::from(!made);
            let place = self.under_way.iter().position(|(n, _)| *n == number);
            let (_, what) = self.under_way.swap_remove(place.expect("a change of ours"));
            match (what, made) {
                (What::Insert(filter), true) | (What::Remove(filter), false) => {
                    self.filters.push(filter);
                }
                (What::Insert(filter), false) => {
                    let _ = on(0, || graph::delete(filter));
                }
                _ => {}
            }
        }
    }

    /// Towards the end: every filter goes.
    pub fn wind_up(&mut self) {
        for filter in std::mem::take(&mut self.filters) {
            self.remove(filter);
        }
    }
}

/// A filter on `child`: a throttle, a delay, or one that fails a twentieth of all requests.
fn create(
    name: &str,
    child: NodeId,
    kind: usize,
    strength: usize,
    seed: u64,
) -> Result<NodeId, Refusal> {
    match kind {
        0..6 => {
            let filter = throttle::create(name, throttle::Options { child, group: None })?;
            let limit = Limit {
                avg: 1 << strength,
                ..Limit::NONE
            };
            limits::configure(name, &Config::only(Kind::OpsTotal, limit)).expect("a limit");
            Ok(filter)
        }
        6..11 => {
            let latencies = delay::Latencies {
                read: 1 << strength,
                write: 4 << strength,
                flush: 2 << strength,
            };
            delay::create(name, delay::DelayOptions { child, latencies })
        }
        _ => {
            let filter = error::create(name, child)?;
            let when = if seed & 1 == 0 {
                error::When::Before
            } else {
                error::When::After
            };
            let rule = error::Rule {
                when,
                probability: error::ALWAYS / 20,
                seed,
                ..error::Rule::new(BlockError::Io)
            };
            error::add_rule(filter, rule).expect("a rule");
            Ok(filter)
        }
    }
}

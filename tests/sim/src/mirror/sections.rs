//! Drained sections on an array and its users, and moves of it to other cores, at random moments.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU32, Ordering};

use ironthread::aio::Callback;
use ironthread::block::graph::{self, Refusal, change, drain};
use ironthread::block::{self, Backend, NodeId};

use super::life::World;
use crate::life::on;

/// Sections that have become quiet, by number of what they are on; the last is everything.
static QUIET: [AtomicU32; 6] = [const { AtomicU32::new(0) }; 6];
const ALL: usize = 5;

thread_local! {
    /// Moves that are over.
    static MOVED: RefCell<u32> = const { RefCell::new(0) };
}

fn quiet(which: usize) {
    QUIET[which].fetch_add(1, Ordering::SeqCst);
}

fn moved(_: usize, _: Result<(), Refusal>) {
    MOVED.with_borrow_mut(|moved| *moved += 1);
}

#[derive(Clone, Copy)]
enum Target {
    Backend(&'static Backend),
    Node(NodeId),
    All,
}

struct Section {
    on: Target,
    which: usize,
    begun: u32,
    ended: u32,
}

/// What was begun and not ended.
#[derive(Default)]
pub struct Sections {
    all: Vec<Section>,
    moves: u32,
}

impl Sections {
    pub fn is_over(&self) -> bool {
        self.all.iter().all(|s| s.begun == s.ended) && self.moves == MOVED.with_borrow(|m| *m)
    }

    pub fn describe(&self) -> String {
        let each: Vec<_> = self.all.iter().map(|s| (s.begun, s.ended)).collect();
        format!("sections {each:?}, {} moves", self.moves)
    }

    /// Begins or ends something, by chance.
    pub fn some(&mut self, world: &mut World) {
        let Some(array) = world.array else { return };
        if self.all.is_empty() {
            let backends = world.backends().map(Target::Backend);
            let targets = backends.chain([Target::Node(array)]);
            let section = |(which, on)| Section {
                on,
                which,
                begun: 0,
                ended: 0,
            };
            self.all = targets.enumerate().map(section).collect();
            self.all.push(section((ALL, Target::All)));
            assert!(self.all.len() <= QUIET.len());
        }
        let n = world.random.below(self.all.len());
        match world.random.below(10) {
            0..2 => self.all[n].begin(),
            2 => {
                let core = world.random.below(world.cores);
                if graph::home(array) != Some(core)
                    && on(0, || change::move_begin(array, core, &moved, 0)).is_ok()
                {
                    self.moves += 1;
                }
            }
            _ => self.all[n].end(),
        }
    }

    /// Ends whatever is quiet.
    pub fn wind_up(&mut self) {
        self.all.iter_mut().for_each(Section::end);
    }
}

impl Section {
    fn begin(&mut self) {
        let most = if matches!(self.on, Target::All) { 1 } else { 2 };
        if self.begun - self.ended >= most {
            return;
        }
        self.begun += 1;
        let done = Callback::new(&quiet, self.which);
        on(0, || match self.on {
            Target::Backend(backend) => backend.drain_begin(done),
            Target::Node(node) => drain::drain_begin(node, done),
            Target::All => block::drain_all_begin(done),
        })
        .expect("a section begins");
    }

    /// Ends one that has been quiet.
    fn end(&mut self) {
        if QUIET[self.which].load(Ordering::SeqCst) > self.ended {
            self.ended += 1;
            on(0, || match self.on {
                Target::Backend(backend) => backend.drain_end(),
                Target::Node(node) => drain::drain_end(node),
                Target::All => block::drain_all_end(),
            });
        }
    }
}

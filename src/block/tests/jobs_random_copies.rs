//! A mirror or a backup of a disk in use, with verbs, sections and moves at random moments: whatever comes of it, the client reads what it
//! was told to be written, from the disk that it is left with, and a backup that succeeds is the image of its first moment.

use super::copy_rig::*;
use super::graph_rig::{Section, outcome, outcomes, quiets};
use super::jobs_rig::{KEPT, MANUAL};
use super::model::Random;
use super::*;
use crate::block::graph::change::move_begin;
use crate::block::job::{Job, Options, State};

/// What became of it.
#[derive(Default)]
struct Ends {
    switched: usize,
    copied: usize,
    given_up: usize,
}

struct Play {
    rig: Rig,
    disks: Disks,
    random: Random,
    job: Option<Job>,
    sections: Vec<Section>,
    begun: usize,
    quiet: usize,
    moves: usize,
}

impl Play {
    fn ask(&mut self, job: Job) {
        let what = self.random.below(80);
        if job.state() == State::Concluded {
            // A cancel would be its dismissal.
            return;
        }
        on(0, || {
            let _ = match what {
                0..6 => job.pause(),
                6..14 | 40.. => job.resume(),
                14 => job.set_speed(1 << 20),
                15 => job.set_speed(0),
                16 => job.cancel(false),
                17 => job.cancel(true),
                18..22 => job.complete(),
                22..34 => job.finalize(),
                _ => {
                    job.wake();
                    Ok(())
                }
            };
        });
    }

    fn step(&mut self, what: What) {
        let core = self.random.below(3) as usize;
        match self.random.below(16) {
            0..4 => self.disks.load(&self.rig, 2),
            4..9 => {
                let count = self.random.below(12);
                self.disks.answer(&self.rig, count);
            }
            9 => host::clock::advance(self.random.below(2_000_000)),
            10 | 11 => match self.job {
                Some(job) => self.ask(job),
                None => {
                    keep_images(&[self.disks.source]);
                    let options = if self.random.below(2) == 0 {
                        KEPT
                    } else {
                        MANUAL
                    };
                    let options = Options { ..options };
                    self.job = Some(begin(what, &self.disks, options).unwrap());
                }
            },
            12 if self.sections.len() < 3 => {
                let section = match self.random.below(3) {
                    0 => Section::All,
                    n => Section::Node(self.disks.nodes[n as usize - 1]),
                };
                section.begin();
                self.begun += 1;
                self.sections.push(section);
            }
            13 if !self.sections.is_empty() => {
                self.rest();
                let place = self.random.below(self.sections.len() as u64) as usize;
                self.sections.swap_remove(place).end();
            }
            14 => {
                let node = self.disks.nodes[self.random.below(2) as usize];
                // Too many at once is refused.
                let begun = on(0, || move_begin(node, core, &outcome, 0));
                self.moves += usize::from(begun.is_ok());
            }
            _ => drop(on(core, || aio::context(core).poll(false))),
        }
    }

    /// The devices answer until all sections are quiet.
    fn rest(&mut self) {
        let Self {
            disks,
            rig,
            quiet,
            begun,
            ..
        } = self;
        disks.run_until(rig, || {
            *quiet += quiets();
            quiet == begun
        });
    }

    /// The job is brought to an end of some kind, which is judged.
    fn end(mut self, what: What, ends: &mut Ends) {
        self.rest();
        for section in core::mem::take(&mut self.sections) {
            section.end();
        }
        let patience = 20 + self.random.below(200);
        let mut rounds = 0;
        let job = self.job;
        self.disks.run_until(&self.rig, || {
            rounds += 1;
            job.is_none_or(|job| {
                on(0, || {
                    let _ = job.resume();
                    let _ = job.finalize();
                    if rounds > patience {
                        let _ = job.complete();
                    }
                });
                matches!(job.state(), State::Null | State::Concluded)
            })
        });
        let root = self.disks.backend.root().unwrap();
        let result = job.filter(|job| job.exists()).map(ended);
        match (what, result) {
            (_, None | Some(Err(_))) => {
                assert_eq!(root, self.disks.nodes[0]);
                ends.given_up += 1;
            }
            (What::Mirror, Some(Ok(()))) if root == self.disks.nodes[1] => ends.switched += 1,
            (What::Mirror, Some(Ok(()))) => assert_eq!(root, self.disks.nodes[0]),
            (What::Backup, Some(Ok(()))) => {
                assert_eq!(root, self.disks.nodes[0]);
                assert!(self.disks.target.durable() == images()[0], "another moment");
                ends.copied += 1;
            }
        }
        self.disks.run(&self.rig);
        self.disks.check_client(&self.rig, root);
        let moved = outcomes();
        assert_eq!(moved.len(), self.moves, "moves that never end");
        launches();
        self.rig.finish();
    }
}

fn play(seed: u64, ends: &mut Ends) {
    let mut rig = rig(3);
    outcomes();
    quiets();
    images();
    keep_images(&[]);
    let mut random = Random::new(seed);
    let disks = two_disks(&mut rig, MIB / 2, random.next() >> 40);
    let what = BOTH[random.below(2) as usize];
    let mut play = Play {
        rig,
        disks,
        random,
        job: None,
        sections: Vec::new(),
        begun: 0,
        quiet: 0,
        moves: 0,
    };
    for _ in 0..250 {
        play.step(what);
    }
    play.end(what, ends);
}

#[test]
fn whatever_is_asked_of_copies_the_client_reads_what_it_wrote() {
    // COPY_SEEDS=N plays more of them; a failing one is printed, and COPY_SEED=S plays it alone.
    let number = |name| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    let seeds = match number("COPY_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("COPY_SEEDS").unwrap_or(40),
    };
    let count = seeds.end - seeds.start;
    let mut ends = Ends::default();
    for seed in seeds {
        let played = std::panic::AssertUnwindSafe(|| play(seed, &mut ends));
        if let Err(panic) = std::panic::catch_unwind(played) {
            std::eprintln!("COPY_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
    let made = [ends.switched, ends.copied, ends.given_up];
    std::println!("switched, copied, given up: {made:?}");
    assert!(count < 40 || made.iter().all(|made| *made > 0), "{made:?}");
}

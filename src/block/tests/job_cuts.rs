//! A power cut after any step of a mirror, its pivot, and a backup: what was flushed is there, on the disk that is the users' then.

use super::copy_rig::*;
use super::jobs_rig::KEPT;
use super::*;
use crate::block::job::{Job, State};

const BLOCK: u64 = 4096;
const BLOCKS: usize = 64;

/// What one block was told to hold, one write at a time.
#[derive(Clone, Default)]
struct Written {
    /// All that was ever sent, from the zeroes at the beginning on.
    values: Vec<u8>,
    /// The last that was answered, and the last that a cut must leave, or a later one.
    answered: usize,
    stable: usize,
    busy: bool,
}

/// A client that writes, also with FUA, and flushes.
struct Client {
    backend: &'static Backend,
    blocks: Vec<Written>,
    /// What was answered when each flush was sent.
    flushes: Vec<Option<Vec<usize>>>,
    random: model::Random,
}

const FLUSH: u64 = 1 << 20;
const FUA: u64 = 1 << 21;

impl Client {
    fn new(backend: &'static Backend, seed: u64) -> Self {
        let block = Written {
            values: std::vec![0],
            ..Written::default()
        };
        Self {
            backend,
            blocks: std::vec![block; BLOCKS],
            flushes: Vec::new(),
            random: model::Random::new(seed),
        }
    }

    fn send(&mut self) {
        let core = self.random.below(2) as CoreId;
        let kind = self.random.below(8);
        if kind == 0 {
            let answered = self.blocks.iter().map(|block| block.answered).collect();
            let tag = FLUSH | self.flushes.len() as u64;
            self.flushes.push(Some(answered));
            return submit(core, self.backend, flush(), tag);
        }
        let place = self.random.below(BLOCKS as u64);
        let block = &mut self.blocks[place as usize];
        if block.busy || block.values.len() == 256 {
            return;
        }
        block.busy = true;
        let value = block.values.len() as u8;
        block.values.push(value);
        let ask = write(place * BLOCK, BLOCK, value);
        if kind == 1 {
            submit(core, self.backend, ask.fua(), FUA | place);
        } else {
            submit(core, self.backend, ask, place);
        }
    }

    fn hear(&mut self) {
        for done in done() {
            assert_eq!(done.result, Ok(()));
            if done.tag & FLUSH != 0 {
                let answered = self.flushes[(done.tag & !FLUSH) as usize].take().unwrap();
                for (block, answered) in self.blocks.iter_mut().zip(answered) {
                    block.stable = block.stable.max(answered);
                }
                continue;
            }
            let block = &mut self.blocks[(done.tag & !FUA) as usize];
            block.busy = false;
            block.answered = block.values.len() - 1;
            if done.tag & FUA != 0 {
                block.stable = block.answered;
            }
        }
    }

    /// What a cut would leave on the disk is what was flushed, or newer.
    fn check(&self, disk: &TestDisk, when: &str) {
        let left = disk.durable();
        for (place, block) in self.blocks.iter().enumerate() {
            let bytes = &left[place * BLOCK as usize..][..BLOCK as usize];
            assert!(bytes.iter().all(|byte| *byte == bytes[0]));
            assert!(
                block.values[block.stable..].contains(&bytes[0]),
                "{when}: block {place} holds {} instead of {} or newer",
                bytes[0],
                block.values[block.stable]
            );
        }
    }
}

/// One thing happens: a disk answers, or a client asks.
fn step(rig: &Rig, d: &Disks, client: &mut Client) {
    if client.random.below(3) == 0 {
        client.send();
    }
    let disk = [d.source, d.target][client.random.below(2) as usize];
    if disk.held() > 0 {
        let n = client.random.below(disk.held() as u64) as usize;
        on(disk.core_of(n), || disk.finish(n));
    }
    host::clock::advance(1_000_000);
    rig.settle();
    client.hear();
}

/// Steps until `over`, with a cut considered after each; how many.
fn steps(
    rig: &Rig,
    d: &Disks,
    client: &mut Client,
    when: &str,
    mut over: impl FnMut() -> bool,
) -> usize {
    for count in 0..20_000 {
        if over() {
            return count;
        }
        step(rig, d, client);
        let switched = d.backend.root() == Some(d.nodes[1]);
        let disk = if switched { d.target } else { d.source };
        client.check(disk, when);
    }
    panic!("{when} does not end");
}

/// Disks of zeroes.
fn empty(rig: &mut Rig, seed: u64) -> (Disks, Client) {
    let d = two_disks(rig, BLOCKS as u64 * BLOCK, seed);
    let backend = d.backend;
    let wipe = ask(Operation::WriteZeroes, 0, BLOCKS as u64 * BLOCK);
    submit(0, backend, wipe, 0);
    rig.run(d.source);
    submit(0, backend, flush(), 0);
    rig.run(d.source);
    done();
    (d, Client::new(backend, seed))
}

fn is(job: Job, state: State) -> impl FnMut() -> bool {
    move || job.state() == state
}

#[test]
fn a_cut_at_any_step_of_a_mirror_and_its_pivot_leaves_what_was_flushed() {
    let mut cuts = [0; 4];
    for seed in 0..8 {
        let mut rig = rig(2);
        let (d, mut client) = empty(&mut rig, 40 + seed);
        let c = &mut client;
        cuts[0] += steps(&rig, &d, c, "before", {
            let mut left = 30;
            move || {
                left -= 1;
                left == 0
            }
        });
        let job = begin(What::Mirror, &d, KEPT).unwrap();
        cuts[1] += steps(&rig, &d, c, "mirror", is(job, State::Ready));
        on(0, || job.complete()).unwrap();
        cuts[2] += steps(&rig, &d, c, "end", is(job, State::Concluded));
        assert_eq!(ended(job), Ok(()));
        assert_eq!(d.backend.root(), Some(d.nodes[1]));
        let mut left = 60;
        cuts[3] += steps(&rig, &d, c, "after", || {
            left -= 1;
            left == 0
        });
        rig.run(d.source);
        rig.run(d.target);
        client.hear();
        rig.finish();
    }
    std::println!("cuts before, mirror, end, after: {cuts:?}");
    assert!(cuts.iter().all(|count| *count > 0));
}

#[test]
fn a_cut_at_any_step_of_a_backup_leaves_what_was_flushed_and_a_finished_image_for_good() {
    let mut cuts = [0; 3];
    for seed in 0..8 {
        let mut rig = rig(2);
        let (d, mut client) = empty(&mut rig, 60 + seed);
        let c = &mut client;
        let mut left = 30;
        cuts[0] += steps(&rig, &d, c, "before", || {
            left -= 1;
            left == 0
        });
        keep_images(&[d.source]);
        let job = begin_with(What::Backup, d.nodes, KEPT, |start| {
            start.cluster = Some(1 << 13);
        });
        let job = job.unwrap();
        cuts[1] += steps(&rig, &d, c, "backup", is(job, State::Concluded));
        assert_eq!(ended(job), Ok(()));
        let image = images().remove(0);
        let mut left = 60;
        cuts[2] += steps(&rig, &d, c, "after", || {
            assert!(d.target.durable() == image);
            left -= 1;
            left == 0
        });
        rig.run(d.source);
        rig.run(d.target);
        client.hear();
        rig.finish();
    }
    std::println!("cuts before, backup, after: {cuts:?}");
    assert!(cuts.iter().all(|count| *count > 0));
}

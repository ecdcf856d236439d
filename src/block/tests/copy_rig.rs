//! What the tests of mirror and backup jobs share: disks, a load whose outcome is known, jobs brought to their states.

use super::*;
use crate::block::graph::{self, drain};
use crate::block::job::{Job, Options, Start, StartError, State, backup, mirror};

pub(super) const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;

static LAUNCHED: Mutex<Vec<Result<(), StartError>>> = Mutex::new(Vec::new());

/// Disks of which [`launched`] keeps what they hold: nothing is under way there at that moment.
static SOURCES: Mutex<Vec<&'static TestDisk>> = Mutex::new(Vec::new());
static IMAGES: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

fn launched(_: usize, result: Result<(), StartError>) {
    LAUNCHED.lock().unwrap().push(result);
    let sources = core::mem::take(&mut *SOURCES.lock().unwrap());
    if !sources.is_empty() {
        *IMAGES.lock().unwrap() = sources.iter().map(|disk| disk.visible()).collect();
    }
}

/// The sources of what is launched next.
pub(super) fn keep_images(sources: &[&'static TestDisk]) {
    *SOURCES.lock().unwrap() = sources.to_vec();
}

/// What they held at its first moment.
pub(super) fn images() -> Vec<Vec<u8>> {
    core::mem::take(&mut *IMAGES.lock().unwrap())
}

/// What became of launches since the last call.
pub(super) fn launches() -> Vec<Result<(), StartError>> {
    core::mem::take(&mut *LAUNCHED.lock().unwrap())
}

/// A source in use, and a target.
pub(super) struct Disks {
    pub source: &'static TestDisk,
    pub target: &'static TestDisk,
    pub nodes: [NodeId; 2],
    /// The client's.
    pub backend: &'static Backend,
    /// What the client was told to be written; it writes each block by itself, one write at a time.
    pub model: Mutex<Vec<u8>>,
    /// The block of each write under way, with what it writes.
    under_way: Mutex<Vec<(u64, u8)>>,
    random: Mutex<model::Random>,
    /// Upper half of its requests' tags.
    id: u64,
}

/// Requests that were answered, until those whose they are ask.
static FINISHED: Mutex<Vec<Done>> = Mutex::new(Vec::new());

pub(super) fn two_disks(rig: &mut Rig, size: u64, seed: u64) -> Disks {
    let [a, b] = [0, 1].map(|_| super::verify::disk(with_everything(size)));
    let backend = rig.backend(a.1);
    rig.nodes.push(b.1);
    let disks = Disks {
        source: a.0,
        target: b.0,
        nodes: [a.1, b.1],
        backend,
        model: Mutex::new(std::vec![0; size as usize]),
        under_way: Mutex::new(Vec::new()),
        random: Mutex::new(model::Random::new(seed)),
        id: 1 + (seed << 8) + rig.nodes.len() as u64,
    };
    launches();
    // Something in every block, and zeroes in some.
    for block in (0..size / BLOCK).filter(|block| block % 5 != 0) {
        disks.write(0, block, 1 + (block % 200) as u8);
        if block % 16 == 0 {
            disks.run(rig);
        }
    }
    disks.run(rig);
    disks
}

impl Disks {
    /// One write of the client's.
    pub fn write(&self, core: CoreId, block: u64, fill: u8) {
        self.under_way.lock().unwrap().push((block, fill));
        let tag = self.id << 32 | block;
        submit(core, self.backend, write(block * BLOCK, BLOCK, fill), tag);
    }

    /// Notes what was answered; all is well.
    pub fn note(&self) -> usize {
        let mut finished = FINISHED.lock().unwrap();
        finished.extend(done());
        let (own, others) = core::mem::take(&mut *finished)
            .into_iter()
            .partition(|done| done.tag >> 32 == self.id);
        *finished = others;
        let own: Vec<Done> = own;
        for done in &own {
            assert_eq!(done.result, Ok(()));
            let block = done.tag & 0xffff_ffff;
            let mut under_way = self.under_way.lock().unwrap();
            let place = under_way.iter().position(|(b, _)| *b == block).unwrap();
            let (_, fill) = under_way.swap_remove(place);
            let at = (block * BLOCK) as usize;
            self.model.lock().unwrap()[at..at + BLOCK as usize].fill(fill);
        }
        own.len()
    }

    /// Some writes, from any core, to blocks where none is under way.
    pub fn load(&self, rig: &Rig, count: u64) {
        for _ in 0..count {
            let (core, block, fill) = {
                let mut random = self.random.lock().unwrap();
                let blocks = self.model.lock().unwrap().len() as u64 / BLOCK;
                let core = random.below(rig.cores as u64) as CoreId;
                (core, random.below(blocks), random.below(256) as u8)
            };
            let busy = self
                .under_way
                .lock()
                .unwrap()
                .iter()
                .any(|(b, _)| *b == block);
            if !busy {
                self.write(core, block, fill);
            }
        }
    }

    /// The devices answer some of what they hold, in any order.
    pub fn answer(&self, rig: &Rig, count: u64) {
        for _ in 0..count {
            let (disk, pick) = {
                let mut random = self.random.lock().unwrap();
                let disk = [self.source, self.target][random.below(2) as usize];
                (disk, random.below(1 << 30))
            };
            if disk.held() > 0 {
                let n = pick as usize % disk.held();
                on(disk.core_of(n), || disk.finish(n));
            }
            if pick % 3 == 0 {
                rig.settle();
            }
        }
        rig.settle();
        self.note();
    }

    /// Everything that is under way comes to its end.
    pub fn run(&self, rig: &Rig) {
        loop {
            rig.settle();
            let mut answered = 0;
            for core in 0..rig.cores {
                answered += on(core, || self.source.finish_all() + self.target.finish_all());
            }
            if self.note() + answered == 0 {
                return;
            }
        }
    }

    /// The devices answer one by one, and time passes, until `over`.
    pub fn run_until(&self, rig: &Rig, mut over: impl FnMut() -> bool) {
        for _ in 0..20_000 {
            if over() {
                return;
            }
            self.answer(rig, 1);
            host::clock::advance(1_000_000);
        }
        panic!("it does not come to an end");
    }

    /// A client that goes on writing, with devices that answer and time that passes, until `over`.
    pub fn storm(&self, rig: &Rig, mut over: impl FnMut() -> bool) {
        for _ in 0..20_000 {
            if over() {
                return;
            }
            self.load(rig, 3);
            self.answer(rig, 12);
            host::clock::advance(1_000_000);
        }
        panic!("it does not come to an end");
    }

    /// What the client is left with: nobody but it uses the disks, and it reads what it was told to be written.
    pub fn check_client(&self, rig: &Rig, root: NodeId) {
        self.run(rig);
        assert_eq!(self.backend.root(), Some(root));
        let mut users = 0;
        graph::parent_names(root, |_| users += 1);
        assert_eq!(users, 1, "the job let go");
        for node in self.nodes {
            assert_eq!(on(0, || drain::quiesce_count(node)), 0);
        }
        let disk = [self.source, self.target][usize::from(root == self.nodes[1])];
        assert!(disk.visible() == *self.model.lock().unwrap());
        self.write(0, 7, 0x77);
        self.run(rig);
        assert_eq!(disk.visible()[7 * BLOCK as usize], 0x77);
    }
}

/// Which job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Mirror,
    Backup,
}

pub(super) const BOTH: [What; 2] = [What::Mirror, What::Backup];

/// A job on the disks; it exists at once and runs when its filter is in its place.
pub(super) fn begin(what: What, disks: &Disks, options: Options<'_>) -> Result<Job, StartError> {
    begin_with(what, disks.nodes, options, |_| {})
}

pub(super) fn begin_with(
    what: What,
    nodes: [NodeId; 2],
    options: Options<'_>,
    change: impl FnOnce(&mut Start<'_>),
) -> Result<Job, StartError> {
    let id = unique("copy");
    let mut start = Start::new(nodes[0], nodes[1]);
    start.options = Options {
        id: options.id.or(Some(&id)),
        ..options
    };
    change(&mut start);
    begin_all(what, &[start]).map(|jobs| jobs[0])
}

pub(super) fn begin_all(what: What, starts: &[Start<'_>]) -> Result<Vec<Job>, StartError> {
    let jobs = on(0, || match what {
        What::Mirror => mirror::start(starts, &launched, 0),
        What::Backup => backup::start(starts, &launched, 0),
    })?;
    Ok(jobs.into_iter().collect())
}

/// It is over and forgotten, with this result.
pub(super) fn ended(job: Job) -> Result<(), BlockError> {
    assert_eq!(job.state(), State::Concluded);
    let result = job.result();
    on(0, || job.dismiss()).unwrap();
    result
}

//! One life of a machine with a mirror.

use ironthread::aio;
use ironthread::arch::{CoreId, host};
use ironthread::block::{self, Backend, Disk, NodeId};
use ironthread::export;
use ironthread::virtio::blk::{self, Blk};
use ironthread::virtio::dma::DMA;

use super::actions::Actions;
use super::array::{self, Info, Role};
use super::jobs;
use super::past::{Past, Sector};
use super::start::Start;
use super::steps::Steps;
use super::{DATA, LARGEST, LEG_PAGES, LEGS, MIB, SPARE, STRIDE};
use crate::client::raw::{Place, Raw};
use crate::client::{Around, Client, Faults, Target, Wish};
use crate::device::{Model, PAGE, Port};
use crate::life::on;
use crate::network;
use crate::oracle::{Oracle, SECTOR};
use crate::random::{Random, Trace};
use crate::shared::Shared;

/// What the machine is, in all lives of a seed.
struct Machine {
    cores: usize,
    network: CoreId,
    disks: Vec<(Model, CoreId)>,
    /// Of the array's data.
    sectors: usize,
    exports: usize,
    clients: usize,
}

impl Machine {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(!seed);
        let cores = random.pick(&[1, 2, 2, 3]);
        let block = random.pick(&[512, 512, 4096]);
        let model = |random: &mut Random| Model {
            block,
            // A leg whose cache is lost while it lives is not told from one that lies.
            forgets: false,
            ..Model::new(random)
        };
        Self {
            cores,
            network: random.below(cores),
            disks: (0..2 + random.below(LEGS - 1))
                .map(|_| (model(&mut random), random.below(cores)))
                .collect(),
            sectors: (2 + random.below(LARGEST - 1)) * MIB / SECTOR,
            exports: 1 + random.below(2),
            clients: 1 + random.below(3),
        }
    }
}

/// A disk, from both sides.
pub struct SimDisk {
    pub port: &'static Port,
    pub blk: &'static Blk,
    pub disk: &'static Disk,
    pub(super) edges: u64,
}

/// The whole machine.
pub struct World {
    pub random: Random,
    pub trace: Trace,
    pub cores: usize,
    pub(super) network: CoreId,
    pub disks: Vec<SimDisk>,
    /// Sectors of a logical block.
    pub(super) block: u64,
    /// Sectors of data.
    pub sectors: usize,
    /// The array, once it is there.
    pub array: Option<NodeId>,
    /// The part of the third disk that its users have gone to, or copies go to.
    pub moved: Option<NodeId>,
    pub(super) target: Option<NodeId>,
    /// Disks that were being filled when the array failed.
    pub(super) doubtful: u32,
    /// A backup is on the third disk, and was begun at some moment from, to.
    pub(super) backup: Option<(u64, u64)>,
    /// What it said of itself after the last step.
    pub info: Info,
    /// Its line.
    pub(super) line: u32,
    /// The epoch of writes that are acknowledged now, once there is one.
    pub(super) epoch: Option<u64>,
    /// When the members last changed, and the latest acknowledgement that has been looked at.
    pub(super) since: u64,
    pub(super) looked: u64,
    pub(super) exports_wanted: usize,
    pub(super) exports: Vec<(String, &'static Backend)>,
    pub(super) raw: Option<&'static Backend>,
    pub(super) clients: Vec<Client>,
    pub(super) raws: Vec<Raw>,
    pub oracle: Oracle,
    pub faults: Faults,
    pub(super) faults_seen: u64,
    pub(super) next_version: u32,
    pub(super) next_op: u64,
    pub(super) stopping: bool,
    /// Clients of this life ask for nothing to be durable, so legs differ more after the cut.
    pub(super) careless: bool,
    pub(super) admissions: u64,
    _machine: host::Machine,
}

/// Lives life number `number` of a seed; `last`: no power cut, everything has to come to rest.
pub fn live(
    seed: u64,
    number: u32,
    last: bool,
    shared: &mut Shared,
    show: bool,
) -> Result<(), String> {
    let mut world = World::boot(seed, number, shared, show);
    let result = world.run(seed, number, last, shared);
    shared.next_version = world.next_version;
    let disks = world.disks.iter().map(|disk| disk.blk);
    shared.book(&world.trace, &world.clients, disks, world.admissions);
    result
}

impl World {
    fn boot(seed: u64, number: u32, shared: &mut Shared, show: bool) -> Self {
        let machine = Machine::new(seed);
        let mut random = Random::new(!seed ^ u64::from(number + 1) << 48);
        let host = host::machine(machine.cores);
        host::set_stepped(true);
        host::clock::manual(1_000_000_000);
        for core in 0..machine.cores {
            on(core, || {
                aio::context(core).attach(core);
                block::start_core(core).expect("the block layer starts");
            });
        }
        on(machine.network, || network::start(machine.network));
        let mut disks = Vec::new();
        for (i, (model, home)) in machine.disks.iter().enumerate() {
            if shared.sizes[i] == 0 {
                // The array's end need not be the disk's.
                let more = random.below(MIB / PAGE) * PAGE / SECTOR;
                shared.sizes[i] = (machine.sectors + 2 * DATA + more) as u64;
            }
            let seed = random.next();
            let port = Port::new(
                *model,
                shared.sizes[i] as usize,
                LEG_PAGES * PAGE / SECTOR,
                shared.images[i].pages(),
                Random::new(seed),
            );
            let (blk, disk) = on(0, || {
                let blk = blk::add(port, *home, machine.cores, 500 * 1024, &DMA)
                    .expect("a disk comes up");
                (blk, block::add_disk(blk, *home).expect("a disk"))
            });
            port.booted();
            let edges = port.edges();
            disks.push(SimDisk {
                port,
                blk,
                disk,
                edges,
            });
        }
        let careless = random.chance(1, 3);
        Self {
            random,
            careless,
            trace: Trace {
                hash: shared.hash,
                events: shared.events,
                show,
            },
            cores: machine.cores,
            network: machine.network,
            disks,
            block: u64::from(machine.disks[0].0.block) / SECTOR as u64,
            sectors: machine.sectors,
            array: None,
            moved: None,
            target: None,
            doubtful: 0,
            backup: None,
            info: Info::default(),
            line: 0,
            epoch: None,
            since: 0,
            looked: 0,
            exports_wanted: machine.exports,
            exports: Vec::new(),
            raw: None,
            raws: (0..machine.cores).map(Raw::new).collect(),
            clients: (0..machine.clients).map(Client::new).collect(),
            oracle: Oracle::new(Vec::new()),
            faults: Faults {
                count: [0; crate::life::DISKS],
                // An array tells nobody which of its legs failed a flush, and goes on without it.
                reset: [true; crate::life::DISKS],
                latched: [None; crate::life::DISKS],
                cleared: [0; crate::life::DISKS],
            },
            faults_seen: 0,
            next_version: shared.next_version,
            next_op: 1,
            stopping: false,
            admissions: 0,
            _machine: host,
        }
    }

    fn run(
        &mut self,
        seed: u64,
        number: u32,
        last: bool,
        shared: &mut Shared,
    ) -> Result<(), String> {
        let mut start = Start::new(&mut self.random, &shared.past, self.disks.len());
        let mut actions = Actions::new();
        let mut steps = Steps::default();
        // Into what the power cut is to fall, if it can.
        let wanted = (seed as usize + number as usize) % (Steps::COUNT + 1);
        let mut before = 200 + self.random.below(3000);
        if wanted == Steps::ASSEMBLY && number > 0 {
            before = 0;
        }
        for step in 0..before + 3000 {
            if self.array.is_none() {
                start.look(self, shared)?;
                if self.array.is_none() && start.is_hopeless() {
                    break;
                }
            }
            self.step(&mut actions, &mut shared.past)?;
            steps.look(self, start.under_way());
            if step < before {
                continue;
            }
            actions.provoke(wanted, self, &mut shared.past);
            let during = steps.during(self) | actions.jobs.during();
            if last && self.array.is_some()
                || !last && wanted == Steps::COUNT
                || !last && during & 1 << wanted != 0 && steps.is_ripe(wanted, self)
            {
                break;
            }
        }
        if last && self.array.is_some() {
            self.come_to_rest(&mut actions, &mut shared.past)?;
        } else if !last {
            shared.cuts |= (steps.during(self) | actions.jobs.during()) << crate::shared::MIRRORS;
        }
        let settled = !self.info.failing && !self.info.failed && !start.under_way();
        self.lose_power(settled, shared)
    }

    /// Whether the third disk is free.
    pub fn is_spare(&self) -> bool {
        self.disks.len() > SPARE && self.with_role(|_| true) >> SPARE & 1 == 0
    }

    /// What copies go to.
    pub fn target(&mut self) -> NodeId {
        let (disk, sectors) = (self.disks[SPARE].disk.node(), self.sectors);
        *self
            .target
            .get_or_insert_with(|| jobs::target(disk, sectors))
    }

    /// Of all users of the array.
    pub fn backends(&self) -> impl Iterator<Item = &'static Backend> {
        let exports = self.exports.iter().map(|(_, backend)| *backend);
        exports.chain(self.raw)
    }

    /// Disks that are active legs, one bit each.
    pub fn active(&self) -> u32 {
        self.with_role(|role| role == Role::Active)
    }

    pub fn with_role(&self, which: impl Fn(Role) -> bool) -> u32 {
        let mut all = 0;
        for disk in 0..self.disks.len() {
            let node = self.disks[disk].disk.node();
            if self
                .info
                .legs
                .iter()
                .flatten()
                .any(|(leg, role)| *leg == node && which(*role))
            {
                all |= 1 << disk;
            }
        }
        all
    }

    /// The array is there, on `line`; its sectors may hold what `sectors` says.
    pub fn assembled(&mut self, node: NodeId, line: u32, sectors: &[Sector], past: &mut Past) {
        self.array = Some(node);
        self.info = array::info(node);
        self.line = line;
        let mut found = vec![Vec::new(); self.sectors];
        for (lba, versions, _) in sectors {
            found[*lba as usize].clone_from(versions);
        }
        let read = sectors
            .iter()
            .filter_map(|(lba, _, read)| Some((*lba, (*read)?)));
        self.oracle = Oracle::new(vec![found]);
        self.oracle.steady(read);
        self.since = self.oracle.now();
        for leg in legs(self.active()) {
            past.legs[leg].line = line;
            past.legs[leg].given_up = false;
        }
        self.faults_seen = self.fault_count();
        for n in 0..self.exports_wanted {
            let name = format!("m{n}");
            let backend = on(0, || {
                let backend = Backend::create(&name, "nbd", node).expect("a backend");
                export::add(&name, "simulated", backend, true).expect("an export");
                backend
            });
            self.exports.push((name, backend));
        }
        let raw = on(0, || Backend::create("raw", "simulation", node));
        self.raw = Some(raw.expect("a backend"));
    }

    /// One step of the world.
    pub(super) fn step(&mut self, actions: &mut Actions, past: &mut Past) -> Result<(), String> {
        match self.random.below(100) {
            0..36 => {
                let core = self.random.below(self.cores);
                self.poll(core);
            }
            36..64 => {
                // A write has several of their answers to wait for, one after the other.
                for n in 0..self.disks.len() {
                    if let Some((what, place)) = self.disks[n].port.step() {
                        self.trace.note("disk", [n as u64, what as u64, place, 0]);
                    }
                }
            }
            64..77 => {
                for n in 0..self.disks.len() {
                    if self.random.chance(2, 3) {
                        self.interrupt(n);
                    }
                }
            }
            77..81 => self.raw_step()?,
            81..93 => self.client_step()?,
            93..95 => actions.some(self, past)?,
            95 => {
                // Up to 8 s: what waits for a time out meets it.
                let ns = 1 << self.random.below(34);
                self.pass(ns);
            }
            _ => self.pass(1000),
        }
        actions.look(self, past)?;
        self.look(past)
    }

    pub fn poll(&mut self, core: CoreId) {
        let waits = self.random.chance(1, 2);
        let progress = on(core, || aio::context(core).poll(waits));
        self.trace
            .note("poll", [core as u64, progress.into(), waits.into(), 0]);
        for disk in &self.disks {
            disk.port.observe();
        }
    }

    fn interrupt(&mut self, n: usize) {
        let disk = &mut self.disks[n];
        let edges = disk.port.edges();
        if std::mem::replace(&mut disk.edges, edges) != edges {
            self.trace.note("interrupt", [n as u64, 0, 0, 0]);
            on(disk.blk.home(), || host::interrupt(|| disk.blk.interrupt()));
        }
    }

    pub fn pass(&mut self, ns: u64) {
        host::clock::advance(ns);
        network::look_at_clock();
    }

    fn around(&mut self) -> (Around<'_>, &mut Vec<Client>, &mut Vec<Raw>) {
        let around = Around {
            random: &mut self.random,
            trace: &mut self.trace,
            oracle: &mut self.oracle,
            faults: &mut self.faults,
            next_version: &mut self.next_version,
            next_op: &mut self.next_op,
            stopping: self.stopping,
            careless: self.careless,
        };
        (around, &mut self.clients, &mut self.raws)
    }

    fn raw_step(&mut self) -> Result<(), String> {
        let Some(backend) = self.raw else {
            return Ok(());
        };
        let place = Place {
            backend,
            export: self.exports.len(),
            disk: 0,
            block: self.block,
            stride: STRIDE,
        };
        let n = self.random.below(self.cores);
        let (mut around, _, raws) = self.around();
        raws[n].step(place, &mut around)
    }

    fn client_step(&mut self) -> Result<(), String> {
        if self.exports.is_empty() {
            return Ok(());
        }
        let n = self.random.below(self.clients.len());
        let (mut around, clients, _) = self.around();
        match clients[n].step(&mut around)? {
            Wish::Nothing => {}
            Wish::Connect => {
                let slot = on(self.network, network::open);
                let export = self.random.below(self.exports.len());
                let structured = self.random.chance(1, 2);
                if let Some(slot) = slot {
                    let now = self.oracle.now();
                    let target = Target {
                        export,
                        name: &self.exports[export].0,
                        disk: 0,
                        block: self.block,
                        stride: STRIDE,
                    };
                    self.clients[n].opened(slot, target, structured, now);
                }
            }
            Wish::Admitted { export, opened } => {
                self.admissions += 1;
                for client in &mut self.clients {
                    client.settle(export, opened, &mut self.oracle);
                }
            }
        }
        Ok(())
    }
}

/// The disks of a set.
pub fn legs(set: u32) -> impl Iterator<Item = usize> {
    (0..LEGS).filter(move |leg| set >> leg & 1 != 0)
}

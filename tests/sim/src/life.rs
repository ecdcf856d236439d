//! One life of the machine: boot from the disks as they are, serve, and lose power, or come to rest.
//!
//! Several cores in one thread: in each step the seed says who goes on: a core has a turn of its loop, a disk does
//! something, an interrupt arrives, a client moves, the main loop begins or ends something, or time passes.

use ironthread::aio;
use ironthread::arch::{CoreId, host};
use ironthread::block::graph::drain;
use ironthread::block::{self, Backend, Disk, DiskState};
use ironthread::export::{self, nbd};
use ironthread::net::stream::StreamHandler;
use ironthread::virtio::blk::{self, Blk};
use ironthread::virtio::dma::DMA;

use crate::actions::Actions;
use crate::client::raw::{Place, Raw};
use crate::client::{Around, Client, Faults, Phase, Target, Wish};
use crate::device::{Model, Port, SECTORS};
use crate::network;
use crate::oracle::{Oracle, SECTOR, parse};
use crate::random::{Random, Trace};
use crate::shared::Shared;

/// Most disks.
pub const DISKS: usize = 2;

/// What the machine is, in all lives of a seed.
struct Machine {
    cores: usize,
    network: CoreId,
    disks: Vec<(Model, CoreId)>,
    /// Exports on each disk.
    exports: usize,
    clients: usize,
}

impl Machine {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let cores = random.pick(&[1, 2, 2, 3, 4]);
        Self {
            cores,
            network: random.below(cores),
            disks: (0..1 + random.below(DISKS))
                .map(|_| (Model::new(&mut random), random.below(cores)))
                .collect(),
            exports: 1 + random.below(2),
            clients: 2 + random.below(3),
        }
    }
}

/// A disk, from both sides.
pub struct SimDisk {
    pub port: &'static Port,
    pub blk: &'static Blk,
    pub disk: &'static Disk,
    /// Edges of its interrupt line that were seen.
    edges: u64,
    pub block: u64,
}

/// An export and its backend.
pub struct SimExport {
    pub name: String,
    pub backend: &'static Backend,
    pub disk: usize,
    pub present: bool,
    /// No export: a backend of the users on each core.
    pub raw: bool,
}

/// The whole machine, its disks and its clients.
pub struct World {
    pub random: Random,
    pub trace: Trace,
    pub cores: usize,
    network: CoreId,
    pub disks: Vec<SimDisk>,
    pub exports: Vec<SimExport>,
    /// So many of them are served to clients; the others are raw.
    pub served: usize,
    clients: Vec<Client>,
    raws: Vec<Raw>,
    oracle: Oracle,
    pub faults: Faults,
    /// Exports whose backend is quiet in a drained section.
    pub quiet: Vec<bool>,
    next_version: u32,
    next_op: u64,
    stopping: bool,
    admissions: u64,
    _machine: host::Machine,
}

/// Runs `f` as core `core`.
pub fn on<R>(core: CoreId, f: impl FnOnce() -> R) -> R {
    let _guard = host::enter_core(core);
    f()
}

/// Steps after which a life that should have come to rest has failed.
const PATIENCE: usize = 60_000;

/// Lives life number `number` of a seed; `last`: no power cut, everything has to come to rest.
pub fn live(
    seed: u64,
    number: u32,
    last: bool,
    shared: &mut Shared,
    show: bool,
) -> Result<(), String> {
    let mut world = World::boot(seed, number, shared, show);
    let mut actions = Actions::new(&world);
    let result = world.run(seed, number, last, &mut actions, shared);
    shared.next_version = world.next_version;
    let disks = world.disks.iter().map(|disk| disk.blk);
    shared.book(&world.trace, &world.clients, disks, world.admissions);
    shared.counts[4] += actions.changes.made;
    shared.counts[5] += actions.changes.refused;
    result
}

impl World {
    fn boot(seed: u64, number: u32, shared: &mut Shared, show: bool) -> Self {
        let machine = Machine::new(seed);
        let mut random = Random::new(seed ^ u64::from(number + 1) << 48);
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
                let block = model.block as usize / SECTOR;
                let size = SECTORS / 2 + random.below(SECTORS / 4);
                shared.sizes[i] = (size - size % block) as u64;
            }
            let seed = random.next();
            let port = Port::new(
                *model,
                shared.sizes[i] as usize,
                SECTORS,
                shared.images[i].pages(),
                Random::new(seed),
            );
            let (blk, disk) = on(0, || {
                let blk = blk::add(port, *home, machine.cores, 500 * 1024, &DMA)
                    .expect("a disk comes up");
                (blk, block::add_disk(blk, *home).expect("a disk"))
            });
            port.booted();
            disks.push(SimDisk {
                port,
                blk,
                disk,
                edges: port.edges(),
                block: u64::from(model.block) / SECTOR as u64,
            });
        }
        let mut exports = Vec::new();
        for (i, disk) in disks.iter().enumerate() {
            for j in 0..machine.exports {
                let name = format!("d{i}e{j}");
                let backend = on(0, || {
                    let backend =
                        Backend::create(&name, "nbd", disk.disk.node()).expect("a backend");
                    export::add(&name, "simulated", backend, true).expect("an export");
                    backend
                });
                exports.push(SimExport {
                    name,
                    backend,
                    disk: i,
                    present: true,
                    raw: false,
                });
            }
        }
        let served = exports.len();
        for (i, disk) in disks.iter().enumerate() {
            let name = format!("raw{i}");
            let backend = on(0, || {
                Backend::create(&name, "simulation", disk.disk.node()).expect("a backend")
            });
            exports.push(SimExport {
                name,
                backend,
                disk: i,
                present: false,
                raw: true,
            });
        }
        let found = (0..disks.len()).map(|i| {
            let found = |lba| {
                let version = parse(shared.images[i].sector(lba), i, lba as u64);
                vec![
                    version
                        .unwrap_or_else(|wrong| panic!("disk {i} sector {lba} at boot: {wrong}")),
                ]
            };
            (0..SECTORS).map(found).collect()
        });
        Self {
            random,
            trace: Trace {
                hash: shared.hash,
                events: shared.events,
                show,
            },
            cores: machine.cores,
            network: machine.network,
            disks,
            quiet: vec![false; exports.len()],
            exports,
            served,
            raws: (0..machine.cores).map(Raw::new).collect(),
            clients: (0..machine.clients).map(Client::new).collect(),
            oracle: Oracle::new(found.collect()),
            faults: Faults {
                count: [0; DISKS],
                reset: [false; DISKS],
                latched: [None; DISKS],
                cleared: [0; DISKS],
            },
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
        actions: &mut Actions,
        shared: &mut Shared,
    ) -> Result<(), String> {
        // Into what the power cut is to fall, if it can.
        let wanted = (seed as usize + number as usize) % 6;
        let steps = 300 + self.random.below(7000);
        let end = steps + 2000;
        for step in 0..end {
            self.step(actions)?;
            if step < steps {
                continue;
            }
            let during = self.during(actions);
            if last || wanted == 5 || during & 1 << wanted != 0 && self.random.chance(1, 6) {
                break;
            }
        }
        if last {
            self.come_to_rest(actions)?;
        } else {
            shared.cuts |= self.during(actions);
        }
        for (i, disk) in self.disks.iter().enumerate() {
            let mut state = disk.port.state();
            state.cut();
            shared.sizes[i] = state.capacity as u64;
            state.visible(|sector, bytes| shared.images[i].put(sector, bytes));
        }
        for i in 0..self.disks.len() {
            for lba in 0..SECTORS {
                let sector = shared.images[i].sector(lba);
                self.oracle.may_survive(i, lba as u64, sector)?;
            }
        }
        Ok(())
    }

    /// What is going on, one bit for each of `KINDS`.
    fn during(&self, actions: &Actions) -> u32 {
        use ironthread::export::nbd::wire::command;
        let client = |wanted: fn(u16, bool) -> bool| self.clients.iter().any(|c| c.has(wanted));
        let fua = client(|_, fua| fua);
        let flush = client(|kind, _| kind == command::FLUSH)
            && self.disks.iter().any(|d| d.port.state().flushing());
        u32::from(actions.draining())
            | u32::from(actions.changes.moving()) << 1
            | u32::from(fua) << 2
            | u32::from(flush) << 3
            | u32::from(actions.changes.changing()) << 4
    }

    /// One step of the world.
    fn step(&mut self, actions: &mut Actions) -> Result<(), String> {
        match self.random.below(100) {
            0..38 => {
                let core = self.random.below(self.cores);
                self.poll(core);
            }
            38..62 => {
                let n = self.random.below(self.disks.len());
                self.disk_step(n)?;
            }
            62..75 => {
                let n = self.random.below(self.disks.len());
                self.interrupt(n);
            }
            75..79 => {
                let n = self.random.below(self.raws.len());
                self.raw_step(n)?;
            }
            79..92 => {
                let n = self.random.below(self.clients.len());
                self.client_step(n)?;
            }
            92..94 => actions.some(self)?,
            94 => {
                // Up to 8 s: what waits for a time out meets it.
                let ns = 1 << self.random.below(34);
                self.pass(ns);
            }
            _ => self.pass(1000),
        }
        actions.look(self)
    }

    pub fn poll(&mut self, core: CoreId) -> bool {
        // A turn that may wait goes through all of sleeping and waking; the wait itself is over at once.
        let waits = self.random.chance(1, 2);
        let progress = on(core, || aio::context(core).poll(waits));
        self.trace.note(
            "poll",
            [core as u64, u64::from(progress), u64::from(waits), 0],
        );
        if core == 0 {
            // It may have ended a section: what comes then is no trespass.
            self.look_for_quiet();
        }
        for disk in &self.disks {
            disk.port.observe();
        }
        progress
    }

    /// Which backends are quiet, and so which disks have no user.
    pub fn look_for_quiet(&mut self) {
        on(0, || {
            for (quiet, export) in self.quiet.iter_mut().zip(&self.exports) {
                *quiet = export.backend.is_quiet();
            }
        });
        for (n, disk) in self.disks.iter().enumerate() {
            let mut users = self.exports.iter().zip(&self.quiet);
            disk.port.state().quiet = users.all(|(export, quiet)| export.disk != n || *quiet);
        }
    }

    fn disk_step(&mut self, n: usize) -> Result<(), String> {
        let port = self.disks[n].port;
        if let Some((what, place)) = port.step() {
            self.trace.note("disk", [n as u64, what as u64, place, 0]);
        }
        self.look_at_disk(n)
    }

    /// Takes over what happened to a disk, whoever made it happen.
    fn look_at_disk(&mut self, n: usize) -> Result<(), String> {
        let mut state = self.disks[n].port.state();
        self.faults.count[n] = state.faults;
        if std::mem::take(&mut state.lost) {
            let image = state.read(0, SECTORS);
            drop(state);
            self.trace.note("disk forgot", [n as u64, 0, 0, 0]);
            for (lba, sector) in image.chunks_exact(SECTOR).enumerate() {
                self.oracle.start_again(n, lba as u64, sector)?;
            }
            self.clients
                .iter_mut()
                .for_each(|client| client.disk_forgot(n));
            self.raws.iter_mut().for_each(|raw| raw.disk_forgot(n));
        } else if let Some(what) = &state.slipped {
            return Err(format!("disk {n} in a drained section got {what}"));
        }
        Ok(())
    }

    fn interrupt(&mut self, n: usize) {
        let disk = &mut self.disks[n];
        let edges = disk.port.edges();
        if std::mem::replace(&mut disk.edges, edges) != edges {
            self.trace.note("interrupt", [n as u64, 0, 0, 0]);
            on(disk.blk.home(), || host::interrupt(|| disk.blk.interrupt()));
        }
    }

    fn client_step(&mut self, n: usize) -> Result<(), String> {
        // What went wrong since a disk's own last step, as in a reset that it confirmed at once.
        for disk in 0..self.disks.len() {
            self.look_at_disk(disk)?;
        }
        let mut around = Around {
            random: &mut self.random,
            trace: &mut self.trace,
            oracle: &mut self.oracle,
            faults: &mut self.faults,
            next_version: &mut self.next_version,
            next_op: &mut self.next_op,
            stopping: self.stopping,
            careless: false,
        };
        match self.clients[n].step(&mut around)? {
            Wish::Nothing => {}
            Wish::Connect => {
                let slot = on(self.network, network::open);
                // Mostly where it was.
                let mut export = self.clients[n].export;
                if self.random.chance(1, 4) || !self.exports[export].present {
                    export = self.random.below(self.served);
                }
                let structured = self.random.chance(1, 2);
                if let Some(slot) = slot {
                    let now = self.oracle.now();
                    let export_of = &self.exports[export];
                    let target = Target {
                        export,
                        name: &export_of.name,
                        disk: export_of.disk,
                        block: self.disks[export_of.disk].block,
                        stride: 0,
                    };
                    self.clients[n].opened(slot, target, structured, now);
                    self.trace
                        .note("connect", [n as u64, slot as u64, export as u64, 0]);
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

    fn raw_step(&mut self, n: usize) -> Result<(), String> {
        for disk in 0..self.disks.len() {
            self.look_at_disk(disk)?;
        }
        let export = self.served + self.random.below(self.disks.len());
        let target = &self.exports[export];
        let place = Place {
            backend: target.backend,
            export,
            disk: target.disk,
            block: self.disks[target.disk].block,
            stride: 0,
        };
        let mut around = Around {
            random: &mut self.random,
            trace: &mut self.trace,
            oracle: &mut self.oracle,
            faults: &mut self.faults,
            next_version: &mut self.next_version,
            next_op: &mut self.next_op,
            stopping: self.stopping,
            careless: false,
        };
        self.raws[n].step(place, &mut around)
    }

    pub fn pass(&mut self, ns: u64) {
        host::clock::advance(ns);
        network::look_at_clock();
    }

    /// An operator has cleared a disk, or had it reset.
    pub fn cleared(&mut self, disk: usize) {
        self.faults.latched[disk] = None;
        self.faults.cleared[disk] = self.oracle.now();
    }

    /// Requests of all sessions on an export that are at the block layer.
    pub fn at_block(&self, export: usize) -> u32 {
        if self.exports[export].raw {
            let depths = self.raws.iter().map(|raw| raw.depth(export));
            return depths.sum::<usize>() as u32;
        }
        let mut sum = 0;
        nbd::connections(|connection| {
            if connection.export == self.exports[export].name.as_str() {
                sum += connection.in_flight;
            }
        });
        sum
    }

    /// Clients stop, disks are well again: everything has to end, and nothing may be left over.
    fn come_to_rest(&mut self, actions: &mut Actions) -> Result<(), String> {
        self.stopping = true;
        self.trace.note("come to rest", [0; 4]);
        for _ in 0..PATIENCE {
            for disk in &self.disks {
                let mut state = disk.port.state();
                state.silent = false;
                state.fail = 0;
            }
            self.step(actions)?;
            for core in 0..self.cores {
                self.poll(core);
            }
            if self.random.chance(1, 50) {
                self.pass(50_000_000);
                actions.wind_up(self);
            }
            if self.is_at_rest(actions) {
                return self.nothing_is_left();
            }
        }
        let clients: Vec<_> = self.clients.iter().map(|c| (c.phase, c.depth())).collect();
        let backends: Vec<_> = self
            .exports
            .iter()
            .map(|e| (e.backend.in_flight(), e.backend.parked()))
            .collect();
        let disks: Vec<_> = self
            .disks
            .iter()
            .map(|d| (d.disk.state(), d.port.state().pending()))
            .collect();
        let counts: Vec<_> = on(0, || {
            let backends = self.exports.iter().map(|e| e.backend.quiesce_count());
            let nodes = self
                .disks
                .iter()
                .map(|d| drain::quiesce_count(d.disk.node()));
            backends.chain(nodes).collect()
        });
        Err(format!(
            "does not come to rest: clients {clients:?}, in flight and parked {backends:?}, disks {disks:?}, sections that count {counts:?}, {}",
            actions.describe()
        ))
    }

    fn is_at_rest(&self, actions: &Actions) -> bool {
        actions.is_over()
            && self.clients.iter().all(|c| c.phase == Phase::Idle)
            && self.raws.iter().all(Raw::is_idle)
            && (0..ironthread::config::SESSIONS).all(|slot| nbd::server().ready(slot))
            && self.disks.iter().all(|d| {
                d.disk.state() == DiskState::Online
                    && d.port.state().pending() == 0
                    && d.edges == d.port.edges()
            })
    }

    fn nothing_is_left(&mut self) -> Result<(), String> {
        for _ in 0..20 {
            for core in 0..self.cores {
                self.poll(core);
            }
        }
        for export in &self.exports {
            let left = (export.backend.in_flight(), export.backend.parked());
            if left != (0, 0) {
                return Err(format!(
                    "{}: {left:?} requests are in flight or parked at the end",
                    export.name
                ));
            }
        }
        for export in &self.exports {
            let capacity = self.disks[export.disk].port.state().capacity;
            if export.backend.size() != (capacity * SECTOR) as u64 {
                return Err(format!("{} did not hear of its size", export.name));
            }
        }
        for core in 0..self.cores {
            let used = on(core, || block::request_usage().0);
            if used != 0 {
                return Err(format!("core {core}: {used} request records are lost"));
            }
        }
        for slot in 0..ironthread::config::SESSIONS {
            if nbd::pages(slot).0 != 0 {
                return Err(format!(
                    "slot {slot}: {} pages are lost",
                    nbd::pages(slot).0
                ));
            }
        }
        Ok(())
    }
}

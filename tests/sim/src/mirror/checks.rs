//! What has to hold of an array: after each step, after a power cut, and when all is quiet.

use ironthread::block::{self, DiskState};
use ironthread::config::SESSIONS;
use ironthread::export::nbd;
use ironthread::net::stream::StreamHandler;

use super::actions::Actions;
use super::array::{self, Role};
use super::life::{SimDisk, World, legs};
use super::past::Past;
use super::{DATA, SPARE, STRIDE, steps};
use crate::client::Phase;
use crate::client::raw::Raw;
use crate::device::Port;
use crate::life::on;
use crate::oracle::parse;
use crate::shared::Shared;

/// Steps after which a life that should have come to rest has failed.
const PATIENCE: usize = 120_000;

impl World {
    /// What has gone wrong on any disk in this life.
    pub fn fault_count(&self) -> u64 {
        self.disks.iter().map(|d| d.port.state().faults).sum()
    }

    /// After each step: what the array says of itself, and what that means for the checks.
    pub(super) fn look(&mut self, past: &mut Past) -> Result<(), String> {
        let Some(node) = self.array else {
            return Ok(());
        };
        if let Some(target) = self.target
            && self.moved.is_none()
            && self
                .backends()
                .all(|backend| backend.root() == Some(target))
        {
            self.trace.note("pivot", [0; 4]);
            self.moved = Some(target);
        }
        if !self.is_spare() {
            self.backup = None;
        }
        if self.moved.is_some() && self.disks[SPARE].port.state().faults > 0 {
            self.faults.count[0] = self.fault_count();
        }
        let (before, there) = (self.active(), self.with_role(|_| true));
        let filled = self.with_role(|role| role == Role::Rebuilding);
        self.info = array::info(node);
        let active = self.active();
        if self.info.failed {
            // That it has become active may be on record all the same.
            self.doubtful |= filled;
        }
        if let Some(other) = legs(active).next() {
            for leg in legs(self.with_role(|role| role == Role::Rebuilding)) {
                past.learnt(leg, other);
            }
        }
        let (faults, changed) = (
            self.fault_count(),
            before != active || there != self.with_role(|_| true),
        );
        if changed {
            self.trace
                .note("active", [active.into(), before.into(), 0, 0]);
            for leg in legs(active & !before) {
                // It has been made equal to the others.
                let Some(other) = legs(before).next() else {
                    return Err("a leg is active without another that it is equal to".into());
                };
                past.legs[leg].epochs = past.legs[other].epochs;
                past.legs[leg].line = self.line;
                past.legs[leg].given_up = false;
                past.legs[leg].slot = 1;
            }
            for leg in legs(there & !self.with_role(|_| true)) {
                // Dropped: nobody gives it to the array again but as a new one.
                past.legs[leg].slot = 0;
            }
            self.epoch = None;
            self.since = self.oracle.now();
        }
        if changed || faults != self.faults_seen {
            // What legs do not agree on may be read from another one from now on.
            self.faults_seen = faults;
            let all: Vec<_> = legs(before | active).collect();
            let ports: Vec<_> = all.iter().map(|leg| self.disks[*leg].port).collect();
            self.oracle.unsettle(|lba| {
                let held = |port: &&Port| port.state().read(DATA + lba as usize, 1);
                let Some(first) = ports.first().map(held) else {
                    return true;
                };
                ports[1..].iter().any(|port| held(port) != first)
            });
        }
        if active != 0 && self.oracle.acknowledged > self.looked {
            self.looked = self.oracle.acknowledged;
            if self.looked > self.since && self.epoch.is_none() {
                let epoch = past.new_epoch();
                self.epoch = Some(epoch);
                for leg in legs(active) {
                    past.legs[leg].epochs |= epoch;
                }
            }
        }
        // A client may be told of an error only if there was a time when every active leg had had a fault.
        if legs(active).all(|leg| self.disks[leg].port.state().faults > 0) {
            self.faults.count[0] = self.fault_count().max(1);
        }
        Ok(())
    }

    /// The power is gone: what the media hold is compared with what was promised, and kept for the next life.
    pub(super) fn lose_power(&mut self, settled: bool, shared: &mut Shared) -> Result<(), String> {
        for (i, disk) in self.disks.iter().enumerate() {
            let mut state = disk.port.state();
            state.cut();
            state.visible(|sector, bytes| shared.images[i].put(sector, bytes));
        }
        if self.array.is_none() {
            return Ok(());
        }
        if let Some((from, to)) = self.backup {
            for (lba, _, _) in self.oracle.survivors(0) {
                let bytes = shared.images[SPARE].sector(DATA + lba as usize);
                self.oracle.may_have_been(0, lba, bytes, (from, to))?;
            }
        }
        if self.moved.is_some() {
            return self.lose_power_moved(shared);
        }
        let active = self.active();
        // The same legs without a fault: then it is the same one that is read where they differ.
        let well = self.fault_count() == 0;
        let mut sectors = self.oracle.survivors(0);
        let marked = |leg: usize| steps::marked(&shared.images[leg], shared.sizes[leg] as usize);
        let marked: Vec<_> = legs(active).filter_map(marked).collect();
        for (lba, _, read) in &mut sectors {
            let (mut first, mut found) = (None, false);
            for leg in legs(active) {
                let bytes = shared.images[leg].sector(DATA + *lba as usize);
                self.oracle
                    .may_survive(0, *lba, bytes)
                    .map_err(|why| format!("leg {leg}: {why}"))?;
                let holds = parse(bytes, 0, *lba)?;
                let differs = *first.get_or_insert(holds) != holds;
                if differs && !marked.iter().any(|regions| regions.has(*lba / STRIDE)) {
                    return Err(format!(
                        "sector {lba}: legs differ, and no superblock says so"
                    ));
                }
                found |= *read == Some(holds);
                // Legs that do not agree may be read from another one next time, if this one is not there.
                if !(well && self.oracle.is_as_found(0, *lba)) {
                    read.take_if(|read| *read != holds);
                }
            }
            read.take_if(|_| !found);
        }
        let past = &mut shared.past;
        past.write(self.line, &sectors);
        let doubtful = self.doubtful | self.with_role(|role| role == Role::Rebuilding);
        for (n, leg) in past.legs.iter_mut().enumerate() {
            leg.doubtful = doubtful >> n & 1 != 0;
            if leg.doubtful {
                leg.line = self.line;
                leg.slot = 1;
            }
        }
        past.active = active;
        past.settled = settled && doubtful == 0;
        Ok(())
    }

    /// The same when the users have gone to the third disk.
    fn lose_power_moved(&mut self, shared: &mut Shared) -> Result<(), String> {
        let mut sectors = self.oracle.survivors(0);
        for (lba, _, read) in &mut sectors {
            let bytes = shared.images[SPARE].sector(DATA + *lba as usize);
            self.oracle
                .may_survive(0, *lba, bytes)
                .map_err(|why| format!("after the pivot: {why}"))?;
            let holds = parse(bytes, 0, *lba)?;
            read.take_if(|read| *read != holds);
        }
        shared.past.write(self.line, &sectors);
        shared.past.moved = self.line + 1;
        Ok(())
    }

    /// Whether a backup that is done holds what was there at its moment.
    pub fn check_backup(&self, held: impl Fn(&Self, usize) -> Vec<u8>) -> Result<(), String> {
        let moment = self.backup.expect("a backup");
        for (lba, _, _) in self.oracle.survivors(0) {
            let bytes = held(self, lba as usize);
            self.oracle
                .may_have_been(0, lba, &bytes, moment)
                .map_err(|why| format!("backup: {why}"))?;
        }
        Ok(())
    }

    /// Clients stop, disks are well again: everything has to end, and nothing may be left over.
    pub(super) fn come_to_rest(
        &mut self,
        actions: &mut Actions,
        past: &mut Past,
    ) -> Result<(), String> {
        self.stopping = true;
        self.trace.note("come to rest", [0; 4]);
        for _ in 0..PATIENCE {
            self.step(actions, past)?;
            for core in 0..self.cores {
                self.poll(core);
            }
            if self.random.chance(1, 50) {
                self.pass(500_000_000);
                actions.wind_up(self);
            }
            if self.is_at_rest(actions) {
                return self.nothing_is_left();
            }
        }
        let clients: Vec<_> = self.clients.iter().map(|c| (c.phase, c.depth())).collect();
        let disks: Vec<_> = self
            .disks
            .iter()
            .map(|d| (d.disk.state(), d.port.state().pending()))
            .collect();
        Err(format!(
            "does not come to rest: clients {clients:?}, disks {disks:?}, request records {:?}, array {:?}, {}",
            self.records().collect::<Vec<_>>(),
            self.info,
            actions.describe()
        ))
    }

    /// Request records in use, by core.
    fn records(&self) -> impl Iterator<Item = usize> {
        (0..self.cores).map(|core| on(core, || block::request_usage().0))
    }

    fn is_at_rest(&self, actions: &Actions) -> bool {
        let quiet = |disk: &SimDisk| {
            disk.disk.state() == DiskState::Online
                && disk.port.state().pending() == 0
                && disk.edges == disk.port.edges()
        };
        actions.is_over()
            && (self.info.failed
                || self.info.unsynced == 0 && self.info.marked == 0 && !self.info.failing)
            && self.clients.iter().all(|c| c.phase == Phase::Idle)
            && self.raws.iter().all(Raw::is_idle)
            && (0..SESSIONS).all(|slot| nbd::server().ready(slot))
            && self.disks.iter().all(quiet)
            && self.records().sum::<usize>() == 0
    }

    fn nothing_is_left(&mut self) -> Result<(), String> {
        for _ in 0..20 {
            for core in 0..self.cores {
                self.poll(core);
            }
        }
        for backend in self.backends() {
            let left = (backend.in_flight(), backend.parked());
            if left != (0, 0) {
                return Err(format!(
                    "{left:?} requests are in flight or parked at the end"
                ));
            }
        }
        if self.moved.is_some() {
            let now = self.oracle.now();
            for (lba, _, _) in self.oracle.survivors(0) {
                let sector = self.disks[SPARE].port.state().read(DATA + lba as usize, 1);
                self.oracle.may_read(0, lba, &sector, now)?;
            }
            return Ok(());
        }
        // Nothing is under way: legs that are active are equal, and hold what a read may find.
        let now = self.oracle.now();
        let active: Vec<_> = legs(self.active()).collect();
        for (lba, _, _) in self.oracle.survivors(0) {
            let held = |leg: &usize| self.disks[*leg].port.state().read(DATA + lba as usize, 1);
            let all: Vec<_> = active.iter().map(held).collect();
            for (leg, sector) in active.iter().zip(&all) {
                if *sector != all[0] {
                    return Err(format!("sector {lba}: leg {leg} differs at the end"));
                }
            }
            if let (Some(sector), false) = (all.first(), self.info.failed) {
                self.oracle.may_read(0, lba, sector, now)?;
            }
        }
        Ok(())
    }
}

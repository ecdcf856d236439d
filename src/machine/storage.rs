//! Virtio slots to disks: claim, set up, route the interrupt, name.
//!
//! Slots are taken from the top, so that `vd0` is the first disk on QEMU's command line. Disks get their home contexts
//! round robin over the IOThreads (all cores but 0, when there are others).
#![forbid(unsafe_code)]

use core::fmt::Write as _;

use heapless::String;
use log::{error, info, warn};
use spin::Once;

use super::tree::{Device, MachineInfo};
use crate::arch::aarch64::{
    InterruptError, Trigger, interrupt_can_go_to, register_interrupt, route_interrupt,
};
use crate::arch::{self, CoreId};
use crate::block;
use crate::config::{DISKS, MAX_CORES};
use crate::monitor::format::Size;
use crate::virtio::blk::{self, Blk, InterruptRoute};
use crate::virtio::dma::DMA;
use crate::virtio::mmio::Mmio;
use crate::virtio::probe;

/// Bytes of the DMA arena that disks leave for the rings of a network card.
const RESERVED_FOR_NETWORK: usize = 96 * 1024;

/// What the interrupt handlers find by their argument.
static HANDLED: [Once<&'static Blk>; DISKS] = [const { Once::new() }; DISKS];

/// The interrupt lines of the same disks.
static LINES: [Once<Line>; DISKS] = [const { Once::new() }; DISKS];

/// A line of the interrupt controller, by its number.
pub struct Line(pub u32);

impl InterruptRoute for Line {
    fn check(&self, core: CoreId) -> bool {
        interrupt_can_go_to(self.0, core)
    }

    fn route(&self, core: CoreId) -> bool {
        route_interrupt(self.0, core).is_ok()
    }
}

/// Claims every slot that has a device. Core 0, once.
pub fn claim(machine: &MachineInfo) {
    for (slot, device) in machine.virtio.iter().enumerate() {
        // Empty slots and unknown devices stay unclaimed.
        let _ = probe::claim(slot, device.region.base, device.region.size);
    }
}

/// Gives the interrupt of a slot to `handler` on `core`.
pub(super) fn route(
    device: &Device,
    core: CoreId,
    handler: fn(usize),
    argument: usize,
) -> Result<(), InterruptError> {
    let trigger = if device.edge {
        Trigger::Edge
    } else {
        Trigger::Level
    };
    register_interrupt(device.interrupt, trigger, core, handler, argument)
}

/// Sets every disk up. Core 0, once, after the other cores have come up.
pub fn start(machine: &MachineInfo) {
    let is_disk = |device: &&Mmio| device.identity().device_type == probe::DISK;
    let mut left = probe::devices()
        .filter(|(_, device)| is_disk(device))
        .count();
    let mut shown: String<160> = String::new();
    let mut total = 0;
    for (slot, device) in probe::devices().rev().filter(|(_, device)| is_disk(device)) {
        let home = home_of(total);
        let share = blk::share(&DMA, left, RESERVED_FOR_NETWORK);
        left -= 1;
        if let Err(why) = add(machine, slot, device, home, share) {
            error!("disk in slot {slot}: {why}; left out");
            continue;
        }
        if let Some(disk) = block::disk(total) {
            let view = disk.view();
            // Only asked for here; the main loop will read.
            if let Err(why) = block::partitions::scan(&view.name, disk.node()) {
                warn!("{}: partitions not looked for: {why}", view.name);
            }
            let mut entry: String<48> = String::new();
            let separator = if total == 0 { "" } else { ", " };
            // 48 bytes hold name, serial and size.
            let _ = write!(
                entry,
                "{separator}{} {} {}",
                view.name,
                view.serial,
                Size(view.info.size)
            );
            if shown.push_str(&entry).is_err() && !shown.ends_with("...") {
                let _ = shown.push_str(", ...");
            }
        }
        total += 1;
    }
    info!("disks: {}", if shown.is_empty() { "none" } else { &shown });
}

/// Round robin over the IOThreads.
fn home_of(index: usize) -> CoreId {
    match arch::cores().min(MAX_CORES) {
        0 | 1 => 0,
        cores => 1 + index % (cores - 1),
    }
}

/// Why a disk was left out.
enum Refusal {
    Setup(crate::virtio::transport::SetupError),
    Interrupt(InterruptError),
    Block(block::BlockError),
    TooMany,
}

impl core::fmt::Display for Refusal {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Refusal::Setup(error) => write!(f, "{error}"),
            Refusal::Interrupt(error) => write!(f, "{error}"),
            Refusal::Block(error) => write!(f, "{error}"),
            Refusal::TooMany => f.write_str("too many disks"),
        }
    }
}

fn add(
    machine: &MachineInfo,
    slot: usize,
    device: &'static Mmio,
    home: CoreId,
    share: usize,
) -> Result<(), Refusal> {
    let place = HANDLED
        .iter()
        .position(|place| place.get().is_none())
        .ok_or(Refusal::TooMany)?;
    let blk = blk::add(device, home, arch::cores(), share, &DMA).map_err(Refusal::Setup)?;
    HANDLED[place].call_once(|| blk);
    let line = machine.virtio.get(slot).ok_or(Refusal::TooMany)?;
    blk.set_route(LINES[place].call_once(|| Line(line.interrupt)));
    // Set-up has asked the device for its serial, without interrupts: the line is still up, and an edge-triggered
    // controller sees only lines that rise.
    blk.interrupt();
    route(line, blk.home(), on_interrupt, place).map_err(Refusal::Interrupt)?;
    block::add_disk(blk, home).map_err(Refusal::Block)?;
    Ok(())
}

fn on_interrupt(place: usize) {
    if let Some(blk) = HANDLED.get(place).and_then(Once::get) {
        blk.interrupt();
    }
}

/// Notifications that were written to disks.
pub fn kicks() -> u64 {
    HANDLED
        .iter()
        .filter_map(Once::get)
        .map(|blk| blk.counters().kicks)
        .sum()
}

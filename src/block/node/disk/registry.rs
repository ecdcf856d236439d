//! The list of disks: names, views for the console, the report of requests that hang.
#![forbid(unsafe_code)]

use core::fmt::Write as _;
use core::sync::atomic::{AtomicUsize, Ordering};

use super::{Disk, DiskState, Fixed, Limits, NodeDriver};
use crate::aio::{self, BottomHalf, Callback};
use crate::arch::CoreId;
use crate::block::accounting::Totals;
use crate::block::device::{BlockDevice, DeviceFeatures};
use crate::block::graph;
use crate::block::node::{NodeId, NodeInfo};
use crate::block::{BlockError, Operation, backend, token};
use crate::config::DISKS;
use crate::sync::IrqLock;

static ARENA: [Disk; DISKS] = [const { Disk::new() }; DISKS];
/// Disks in use: the first so many.
static COUNT: AtomicUsize = AtomicUsize::new(0);
static MAIN_BH: IrqLock<Option<BottomHalf>> = IrqLock::new(None);

/// Seconds after which an unanswered request is reported.
const REPORT_AFTER_S: u32 = 30;

/// vdN.
pub type DiskName = heapless::String<8>;

/// A disk, as a person wants to see it.
#[derive(Clone, Debug)]
pub struct DiskView {
    /// vdN.
    pub name: DiskName,
    /// What the device says it is; empty when it does not.
    pub serial: heapless::String<20>,
    /// Core of its control context.
    pub home: CoreId,
    /// Size, block sizes, abilities.
    pub info: NodeInfo,
    /// Request queues in use.
    pub queues: u16,
    /// online, write-error, failed.
    pub state: DiskState,
    /// `write-back` or `write-through` (DUR-4).
    pub mode: &'static str,
    /// Counters.
    pub totals: Totals,
    /// Flushes that the device was given.
    pub device_flushes: u64,
    /// The last error, and of which operation.
    pub last_error: Option<(Operation, BlockError)>,
    /// Requests that it has not answered, waiting ones included.
    pub in_flight: u32,
    /// Of these, how many wait for a place in the device's queue.
    pub waiting: u32,
    /// Age of the oldest, in seconds.
    pub oldest_s: Option<u32>,
}

/// Makes a device a disk: the next vdN, a node of that name. Main loop, or before the loops run; slot order from the top.
///
/// # Errors
/// `NoMemory` when there are too many; `Invalid` for a device with an impossible block size; those of [`graph::add`].
pub fn add_disk(
    device: &'static dyn BlockDevice,
    home: CoreId,
) -> Result<&'static Disk, BlockError> {
    let index = COUNT.load(Ordering::Relaxed);
    let disk = ARENA.get(index).ok_or(BlockError::NoMemory)?;
    disk.open(device, home, index)?;
    COUNT.store(index + 1, Ordering::Release);
    Ok(disk)
}

/// All disks, in the order of their names.
pub fn disks() -> impl Iterator<Item = &'static Disk> {
    ARENA[..COUNT.load(Ordering::Acquire)].iter()
}

/// vdN by number.
pub fn disk(index: usize) -> Option<&'static Disk> {
    disks().nth(index)
}

/// A disk by name (`vd0`) or by serial; a serial that two disks have names neither.
pub fn find_disk(name: &str) -> Option<&'static Disk> {
    if let Some(disk) = disks().find(|d| d.name() == name) {
        return Some(disk);
    }
    let mut matches = disks().filter(|d| !name.is_empty() && d.serial() == name);
    let first = matches.next()?;
    matches.next().is_none().then_some(first)
}

impl Disk {
    /// Takes a device. Once.
    pub(crate) fn open(
        &'static self,
        device: &'static dyn BlockDevice,
        home: CoreId,
        index: usize,
    ) -> Result<(), BlockError> {
        let info = device.info();
        if !info.logical_block.is_power_of_two() || !(512..=65536).contains(&info.logical_block) {
            return Err(BlockError::Invalid);
        }
        let block = u64::from(info.logical_block);
        let at_most = |limit: u64| {
            if limit == 0 {
                u64::MAX
            } else {
                (limit - limit % block).max(block)
            }
        };
        let limits = Limits {
            info,
            max_transfer: at_most(info.max_transfer),
            max_segments: if info.max_segments == 0 {
                usize::MAX
            } else {
                info.max_segments as usize
            },
            max_segment_bytes: if info.max_segment_bytes == 0 {
                u64::MAX
            } else {
                u64::from(info.max_segment_bytes)
            },
            max_discard: at_most(info.max_discard),
            max_zeroes: at_most(info.max_zeroes),
            max_whole: match info.max_segment_bytes {
                0 => at_most(info.max_transfer),
                most => at_most(info.max_transfer).min(u64::from(most)),
            },
        };
        self.index.store(index as u32, Ordering::Relaxed);
        self.home.store(home as u32, Ordering::Relaxed);
        self.capacity
            .store(info.capacity - info.capacity % block, Ordering::Relaxed);
        for (core, queue) in self.queues.iter().enumerate() {
            queue.cell.bind(core);
        }
        self.fixed.call_once(|| Fixed {
            device,
            limits,
            owners: device.owners(),
            mark: token::disk_mark(index),
        });
        let id = graph::add_at(&self.name(), self, home)?;
        self.node.call_once(|| id);
        device.attach(self);
        Ok(())
    }

    /// vdN.
    pub fn name(&self) -> DiskName {
        let mut name = DiskName::new();
        let _ = write!(name, "vd{}", self.index());
        name
    }

    /// Its node.
    pub fn node(&self) -> NodeId {
        match self.node.get() {
            Some(id) => *id,
            None => unreachable!("a disk is listed only once it has its node"),
        }
    }

    /// What the device says it is; empty when it does not.
    pub fn serial(&self) -> &str {
        self.limits().info.serial_str()
    }

    /// Core of its control context.
    pub fn home(&self) -> CoreId {
        self.home.load(Ordering::Relaxed) as CoreId
    }

    /// A snapshot for the console.
    pub fn view(&self) -> DiskView {
        let mut serial = heapless::String::new();
        let _ = serial.push_str(self.serial());
        let (in_flight, oldest_s) = load_of(self.index());
        DiskView {
            name: self.name(),
            serial,
            home: self.home(),
            info: NodeDriver::info(self),
            queues: self.limits().info.queues,
            state: self.state(),
            mode: if self.has(DeviceFeatures::FLUSH) {
                "write-back"
            } else {
                "write-through"
            },
            totals: self.stats(),
            device_flushes: self.device_flushes(),
            last_error: self.last_error(),
            in_flight,
            waiting: self.waiting(),
            oldest_s,
        }
    }
}

/// Requests in flight on a disk, and the age of the oldest.
fn load_of(index: usize) -> (u32, Option<u32>) {
    let (mut count, mut oldest) = (0, None);
    token::for_each_in_flight(|view| {
        if view.disk == Some(index) {
            count += 1;
            oldest = oldest.max(Some(view.age_s));
        }
    });
    (count, oldest)
}

pub(super) fn oldest_age_s(index: usize) -> Option<u32> {
    load_of(index).1
}

pub(crate) fn start(core: CoreId) -> Result<(), BlockError> {
    if core != 0 {
        return Ok(());
    }
    let main = aio::main_context()
        .bottom_half("disk sizes", Callback::new(&tell_sizes, 0))
        .map_err(|_| BlockError::NoMemory)?;
    *MAIN_BH.lock() = Some(main);
    Ok(())
}

/// Has the main loop tell the backends of new sizes. Any core.
pub(super) fn kick() {
    let main = *MAIN_BH.lock();
    if let Some(main) = main {
        main.schedule();
    }
}

fn tell_sizes(_: usize) {
    // What does not change costs a compare; which leaf is whose disk is not known here.
    graph::for_each_node(|id| {
        if graph::children(id).is_empty() {
            graph::changed(id);
        }
    });
}

/// Once a second, from the watch: names the oldest request of a disk that has not answered for 30 s, once until it does.
pub(crate) fn report_slow() {
    if backend::backends().all(|b| b.in_flight() == 0) {
        return;
    }
    for disk in disks() {
        let mut oldest: Option<token::InFlightView> = None;
        token::for_each_in_flight(|view| {
            if view.disk == Some(disk.index()) && oldest.is_none_or(|o| o.age_s < view.age_s) {
                oldest = Some(view);
            }
        });
        let slow = oldest.filter(|view| view.age_s >= REPORT_AFTER_S);
        let before = disk.reported.swap(slow.is_some(), Ordering::Relaxed);
        if let (Some(view), false) = (slow, before) {
            log::warn!(
                "{}: no answer for {} s: {} at {} from core {}",
                disk.name(),
                view.age_s,
                view.operation.name(),
                view.offset,
                view.core
            );
        }
    }
}

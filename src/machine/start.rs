//! From the board's first call to the running loops.
//!
//! ```text
//! core 0: emergency console → tree → memory map → options, clock → interrupts → context 0 → console
//!         → other cores ─▶ (each: interrupt interface → its context → its loop)
//!         → disks → exports → network → "ready" → main loop
//! ```
//! Everything up to "ready" happens in this order and on core 0; a step that the machine cannot do without ends the
//! start with a sentence on the console and the machine stops, any other is reported and left out.
#![forbid(unsafe_code)]

use core::ops::Range as AddressRange;
use core::sync::atomic::{AtomicU32, Ordering};

use heapless::Vec;
use log::{error, info, warn};
use spin::Once;

use super::options::{OnPanic, Options};
use super::tree::{Gic, MAX_BOOTARGS, MAX_TREE_BYTES, MachineInfo, PsciMethod, Region, TreeError};
use super::{exports, network, power, serial, storage, surface};
use crate::arch::aarch64::{self as metal, Conduit, GicAddresses, Range, StopAction};
use crate::arch::{self, CoreId, mmio};
use crate::config::MAX_CORES;
use crate::devices::{fw_cfg, rtc};
use crate::monitor::format::Size;
use crate::monitor::{console, log as kept};
use crate::{aio, block};

/// What a board says of itself.
pub struct Board {
    /// Its name.
    pub name: &'static str,
    /// Addresses that its first table maps as memory: a device tree is only looked for there.
    pub tree_window: AddressRange<usize>,
}

/// How long an IOThread looks for work before it sleeps, at most, in ns: a completion takes about half of it. Console `poll`
/// changes it.
const IOTHREAD_POLL_NS: u64 = 100_000;

/// Cores other than 0 whose loop has come up, one bit each.
static UP: AtomicU32 = AtomicU32::new(0);
static BOARD: Once<&'static Board> = Once::new();
static INFO: Once<MachineInfo> = Once::new();
static OPTIONS: Once<Options> = Once::new();

/// The board, once started.
pub fn board() -> Option<&'static Board> {
    BOARD.get().copied()
}

/// What the device tree said, once read.
pub fn machine() -> Option<&'static MachineInfo> {
    INFO.get()
}

/// The boot options, once read.
pub fn options() -> Option<&'static Options> {
    OPTIONS.get()
}

/// What the start cannot do without. `Display` gives the sentence on the console.
enum StartError {
    Tree(TreeError),
    Map(metal::MapError),
    Reserved(Region),
    Interrupts(metal::GicError),
    Block(block::BlockError),
    Serial(serial::SerialError),
    Console(aio::AioError),
}

impl core::fmt::Display for StartError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            StartError::Tree(error) => write!(f, "{error}"),
            StartError::Map(error) => write!(f, "memory map: {error}"),
            StartError::Reserved(region) => write!(
                f,
                "device tree: it reserves {:#x} to {:#x}, where the image lies",
                region.base,
                region.end()
            ),
            StartError::Interrupts(error) => write!(f, "{error}"),
            StartError::Block(error) => write!(f, "block layer: {error}"),
            StartError::Serial(error) => write!(f, "{error}"),
            StartError::Console(error) => write!(f, "console: {error:?}"),
        }
    }
}

/// Starts the machine whose device tree is at `tree` and runs core 0's loop until power-off. Called once by the board,
/// on core 0, interrupts masked, with the emergency console set.
pub fn run(board: &'static Board, tree: usize) -> ! {
    BOARD.call_once(|| board);
    kept::install(log::LevelFilter::Info, emergency);
    info!("ironthread {} on {}", env!("CARGO_PKG_VERSION"), board.name);
    if let Err(error) = start(board, tree) {
        metal::stop_with(format_args!("{error}"));
    }
    aio::run_loop(aio::main_context());
    power::switch_off()
}

/// Bytes straight to the UART, with line breaks as a terminal wants them.
pub(super) fn emergency(bytes: &[u8]) {
    for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
        match piece.strip_suffix(b"\n") {
            Some(line) => {
                metal::EmergencyConsole.write_bytes(line);
                metal::EmergencyConsole.write_bytes(b"\r\n");
            }
            None => metal::EmergencyConsole.write_bytes(piece),
        }
    }
}

fn start(board: &'static Board, tree: usize) -> Result<(), StartError> {
    let bytes = metal::tree_at(tree, board.tree_window.clone(), MAX_TREE_BYTES);
    let parsed = MachineInfo::parse(bytes).map_err(StartError::Tree)?;
    let machine = INFO.call_once(|| parsed);
    if let Some(method) = machine.psci {
        metal::set_conduit(match method {
            PsciMethod::Hvc => Conduit::Hvc,
            PsciMethod::Smc => Conduit::Smc,
        });
    }
    let image = metal::image();
    let in_image = |region: &&Region| region.base < image.end && image.start < region.end();
    if let Some(region) = machine.reserved.iter().find(in_image) {
        return Err(StartError::Reserved(*region));
    }
    if let Some(hertz) = machine.timer_hertz {
        metal::clock::set_frequency(u64::from(hertz));
    }
    if machine.cores_listed > 1 {
        arch::not_alone();
    }
    map(machine).map_err(StartError::Map)?;
    read_clock(machine);
    read_options(machine);
    start_interrupts(machine)?;
    metal::set_dump_hook(dump_trace);
    aio::main_context().attach(0);
    start_block(0)?;
    serial::start(&machine.uart).map_err(StartError::Serial)?;
    metal::irq_enable();
    start_cores(machine);
    if let Err(error) = aio::start_watch() {
        error!("watchdog: {error}");
    }
    report_memory(machine);
    storage::claim(machine);
    storage::start(machine);
    power::start(machine);
    if let Some(options) = options() {
        exports::start(options);
        network::start(machine, options);
    }
    info!("ready in {} ms", arch::now_ns() / 1_000_000);
    console::start(&serial::SERIAL, &surface::SURFACE).map_err(StartError::Console)
}

fn ranges<const N: usize>(regions: &[Region], make: fn(u64, u64) -> Range) -> Vec<Range, N> {
    regions
        .iter()
        .map(|region| make(region.base, region.size))
        .take(N)
        .collect()
}

/// Joins what lies in the same or the next page, so that 32 virtio slots are one range.
fn join(regions: impl Iterator<Item = Region>) -> Vec<Region, 24> {
    const PAGE: u64 = 4096;
    let mut out: Vec<Region, 24> = Vec::new();
    for region in regions {
        let (start, end) = (
            region.base & !(PAGE - 1),
            region.end().next_multiple_of(PAGE),
        );
        match out
            .iter_mut()
            .find(|known| start <= known.end() && known.base <= end)
        {
            Some(known) => {
                let new_end = known.end().max(end);
                known.base = known.base.min(start);
                known.size = new_end - known.base;
            }
            // A range that does not fit is a device that nobody can claim: its driver says so.
            None => {
                let _ = out.push(Region {
                    base: start,
                    size: end - start,
                });
            }
        }
    }
    out
}

fn map(machine: &MachineInfo) -> Result<(), metal::MapError> {
    let ram = |start, len| Range::Ram { start, len };
    let device = |start, len| Range::Device { start, len };
    let mut all: Vec<Range, 48> = ranges(&machine.memory, ram);
    match &machine.gic {
        Gic::V2 {
            distributor,
            cpu_interface,
        } => all.extend(ranges::<2>(&[*distributor, *cpu_interface], device)),
        Gic::V3 {
            distributor,
            redistributors,
        } => {
            all.extend(ranges::<1>(&[*distributor], device));
            all.extend(ranges::<4>(redistributors, device));
        }
    }
    let devices = join(
        [machine.uart.region]
            .into_iter()
            .chain(machine.rtc)
            .chain(machine.power_key.map(|key| key.controller.region))
            .chain(machine.fw_cfg)
            .chain(machine.virtio.iter().map(|slot| slot.region)),
    );
    all.extend(ranges::<24>(&devices, device));
    metal::map_memory(&all)
}

/// `/chosen/bootargs`, else fw_cfg: `-append` needs `-kernel`, a flash start has none.
fn read_options(machine: &MachineInfo) {
    let mut buffer = [0; MAX_BOOTARGS];
    let text = match &machine.bootargs {
        Some(text) => text.as_str(),
        None => from_fw_cfg(machine, &mut buffer).unwrap_or(""),
    };
    let options = OPTIONS.call_once(|| Options::parse(text));
    log::set_max_level(options.log);
    if options.panic == OnPanic::Reboot {
        metal::set_stop_action(StopAction::Reboot);
    }
    for problem in &options.problems {
        error!("{problem}");
    }
    if options.more_problems > 0 {
        error!(
            "boot options: {} more words not understood",
            options.more_problems
        );
    }
}

fn from_fw_cfg<'a>(machine: &MachineInfo, buffer: &'a mut [u8]) -> Option<&'a str> {
    let region = machine.fw_cfg?;
    let registers = mmio::claim(region.base, region.size)?.into_pointer()?;
    match fw_cfg::read_file(
        &mut fw_cfg::Mmio::new(registers),
        "opt/ironthread/bootargs",
        buffer,
    ) {
        Ok(count) => {
            let text = buffer.get(..count?)?.trim_ascii_end();
            let text = text.strip_suffix(b"\0").unwrap_or(text);
            let text = core::str::from_utf8(text);
            if text.is_err() {
                error!("boot options: opt/ironthread/bootargs is not text; ignored");
            }
            text.ok()
        }
        Err(size) => {
            error!(
                "boot options: opt/ironthread/bootargs has {size} bytes, more than {MAX_BOOTARGS}; ignored"
            );
            None
        }
    }
}

fn read_clock(machine: &MachineInfo) {
    let Some(region) = machine.rtc else { return };
    let seconds = mmio::claim(region.base, region.size)
        .and_then(|region| region.into_pointer())
        .and_then(|registers| rtc::Rtc::new(registers).seconds());
    match seconds {
        Some(seconds) => {
            kept::set_wall(seconds);
            let wall_ns = seconds.saturating_mul(1_000_000_000);
            aio::clock::set_host_offset(wall_ns.saturating_sub(arch::now_ns()));
        }
        None => warn!("clock: no wall time"),
    }
}

fn start_interrupts(machine: &MachineInfo) -> Result<(), StartError> {
    let addresses = match &machine.gic {
        Gic::V2 {
            distributor,
            cpu_interface,
        } => GicAddresses::V2 {
            distributor: distributor.base as usize,
            cpu_interface: cpu_interface.base as usize,
        },
        Gic::V3 {
            distributor,
            redistributors,
        } => GicAddresses::V3 {
            distributor: distributor.base as usize,
            redistributors: redistributors
                .first()
                .map_or(0, |region| region.base as usize),
            redistributors_len: redistributors
                .first()
                .map_or(0, |region| region.size as usize),
        },
    };
    metal::start_gic(addresses, machine.timer_interrupt)
        .and_then(|()| metal::start_gic_core())
        .map_err(StartError::Interrupts)
}

fn start_block(core: CoreId) -> Result<(), StartError> {
    block::start_core(core).map_err(StartError::Block)
}

/// The last events of a core's loop, for a report.
fn dump_trace(core: CoreId, out: &mut dyn core::fmt::Write) {
    const LAST: usize = 24;
    // A report that cannot be written cannot be reported.
    let _ = writeln!(out, "  last events of core {core}:");
    let _ = aio::trace::dump(core, out, LAST);
    if core == 0 {
        // What the console may not have printed any more.
        let mut tail = [0; 1024];
        let (_, end) = kept::bounds();
        let (count, _) = kept::read(end.saturating_sub(tail.len() as u64), &mut tail);
        let _ = writeln!(out, "  end of the log:");
        for line in tail[..count]
            .split(|byte| *byte == b'\n')
            .skip(1)
            .filter(|line| !line.is_empty())
        {
            let _ = writeln!(
                out,
                "    {}",
                core::str::from_utf8(line).unwrap_or("(not text)")
            );
        }
    }
}

/// Starts the other cores; those that do not come up are reported and left out.
fn start_cores(machine: &MachineInfo) {
    let own = metal::own_affinity();
    if machine.psci.is_none() && machine.cores.len() > 1 {
        warn!("cores: the tree names no PSCI, so only core 0 runs");
    } else {
        for affinity in machine.cores.iter().filter(|affinity| **affinity != own) {
            let core = arch::cores();
            if core >= MAX_CORES {
                break;
            }
            if let Err(error) = metal::start_core(core, *affinity, secondary) {
                error!("cores: core {core} (MPIDR {affinity:#x}): {error}");
                if error == metal::StartError::Silent {
                    // It may still come up on the stacks of this index, which nobody else can have.
                    break;
                }
            } else if !wait_until_up(core) {
                error!("cores: core {core} (MPIDR {affinity:#x}): its loop did not start");
            }
        }
    }
    let left_out = machine.cores_listed - arch::cores().min(machine.cores_listed);
    if left_out > 0 && machine.cores_listed > MAX_CORES {
        warn!(
            "cores: {} listed, {} run",
            machine.cores_listed,
            arch::cores()
        );
    }
    info!(
        "cores: {} of {}, GICv{}, started in EL{}",
        arch::cores(),
        machine.cores_listed,
        machine.gic.version(),
        metal::start_level(),
    );
}

/// Waits, for a second at most, until the loop of `core` is about to run and its interrupts can be routed.
fn wait_until_up(core: CoreId) -> bool {
    let end = arch::now_ns() + 1_000_000_000;
    while UP.load(Ordering::Acquire) & (1 << core) == 0 {
        if arch::now_ns() > end {
            return false;
        }
        arch::relax();
    }
    true
}

/// What every other core runs.
fn secondary(core: CoreId) -> ! {
    if let Err(error) = metal::start_gic_core() {
        metal::stop_with(format_args!("core {core}: {error}"));
    }
    let context = aio::context(core);
    context.attach(core);
    if let Err(error) = start_block(core) {
        metal::stop_with(format_args!("core {core}: {error}"));
    }
    context.set_poll_max_ns(IOTHREAD_POLL_NS);
    metal::irq_enable();
    UP.fetch_or(1 << core, Ordering::Release);
    aio::run_loop(context);
    metal::power::park()
}

fn report_memory(machine: &MachineInfo) {
    let total: u64 = machine.memory.iter().map(|region| region.size).sum();
    let image = metal::image();
    info!(
        "memory: {}, image with all pools {}",
        Size(total),
        Size(image.end - image.start)
    );
}

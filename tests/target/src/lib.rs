//! What the target tests' images share: from the board's first call to all cores running, and how an image ends.
//!
//! An image ends with [`pass`], or with a report that begins with the firmware's marker; `tests/target/run` reads
//! both off the console. Which case an image runs, and how many cores it must find, comes in the boot arguments.
#![no_std]
#![cfg(target_os = "none")]

pub mod block;
pub mod cycles;

use core::fmt::Write;
use core::sync::atomic::{AtomicUsize, Ordering};

use ironthread::aio;
use ironthread::arch::aarch64::{
    Conduit, EmergencyConsole, GicAddresses, Range, irq_enable, map_memory, own_affinity,
    power_off, set_conduit, start_core, start_gic, start_gic_core,
};
use ironthread::arch::{self, CoreId};
use ironthread::machine::tree::{Gic, MachineInfo, PsciMethod};

pub use ironthread_qemu_virt::entry;

/// Prints a line on the emergency console. One core at a time.
#[macro_export]
macro_rules! say {
    ($($argument:tt)*) => {
        $crate::write_line(format_args!($($argument)*))
    };
}

/// What [`say!`] calls.
pub fn write_line(text: core::fmt::Arguments<'_>) {
    // The console takes everything.
    let _ = writeln!(EmergencyConsole, "{text}");
}

/// The end of an image that found nothing wrong.
pub fn pass() -> ! {
    say!("PASS");
    EmergencyConsole.drain();
    power_off()
}

/// Largest tree looked at.
const TREE_LIMIT: usize = 2 << 20;

/// Reads the tree. Panics with its reason if it is unusable.
pub fn read_tree(tree: usize) -> MachineInfo {
    let start = core::ptr::with_exposed_provenance::<u8>(tree);
    // SAFETY: QEMU puts a tree at this address, in memory that the first table maps; nobody writes it.
    let header: [u8; 8] = unsafe { start.cast::<[u8; 8]>().read() };
    let len = u32::from_be_bytes([header[4], header[5], header[6], header[7]]) as usize;
    assert!(len <= TREE_LIMIT, "no device tree at {tree:#x}");
    // SAFETY: as above, for the length that its header tells.
    let bytes = unsafe { core::slice::from_raw_parts(start, len) };
    match MachineInfo::parse(bytes) {
        Ok(info) => info,
        Err(error) => panic!("tree: {error}"),
    }
}

/// Reads the tree, maps memory and starts the interrupt controller, on core 0. Interrupts are on when it returns.
pub fn start(tree: usize) -> MachineInfo {
    let info = read_tree(tree);
    match info.psci {
        Some(PsciMethod::Hvc) => set_conduit(Conduit::Hvc),
        Some(PsciMethod::Smc) => set_conduit(Conduit::Smc),
        None => panic!("the tree has no PSCI"),
    }
    let mut ranges = [Range::Ram { start: 0, len: 0 }; 16];
    let mut count = 0;
    let mut add = |range| {
        ranges[count] = range;
        count += 1;
    };
    for region in &info.memory {
        add(Range::Ram {
            start: region.base,
            len: region.size,
        });
    }
    let device = |base, size| Range::Device {
        start: base,
        len: size,
    };
    add(device(info.uart.region.base, info.uart.region.size));
    if let (Some(first), Some(last)) = (info.virtio.first(), info.virtio.last()) {
        // The slots are smaller than a page and lie side by side.
        let start = first.region.base & !0xfff;
        add(device(
            start,
            (last.region.base + last.region.size - start).next_multiple_of(0x1000),
        ));
    }
    let addresses = match &info.gic {
        Gic::V2 {
            distributor,
            cpu_interface,
        } => {
            add(device(distributor.base, distributor.size));
            add(device(cpu_interface.base, cpu_interface.size));
            GicAddresses::V2 {
                distributor: distributor.base as usize,
                cpu_interface: cpu_interface.base as usize,
            }
        }
        Gic::V3 {
            distributor,
            redistributors,
        } => {
            add(device(distributor.base, distributor.size));
            for region in redistributors {
                add(device(region.base, region.size));
            }
            GicAddresses::V3 {
                distributor: distributor.base as usize,
                redistributors: redistributors[0].base as usize,
                redistributors_len: redistributors[0].size as usize,
            }
        }
    };
    if let Err(error) = map_memory(&ranges[..count]) {
        panic!("map: {error}");
    }
    if let Err(error) = start_gic(addresses, info.timer_interrupt).and_then(|()| start_gic_core()) {
        panic!("interrupt controller: {error}");
    }
    irq_enable();
    info
}

/// What [`start_cores`] can run: the core's context, for ever.
pub fn run_loop(core: CoreId) {
    let context = aio::context(core);
    context.attach(core);
    aio::run_loop(context);
}

static SECONDARY: AtomicUsize = AtomicUsize::new(0);

/// Starts every other core of the tree; each runs `main` with interrupts on.
pub fn start_cores(info: &MachineInfo, main: fn(CoreId)) {
    SECONDARY.store(main as usize, Ordering::Release);
    for affinity in info
        .cores
        .iter()
        .filter(|affinity| **affinity != own_affinity())
    {
        let core = arch::cores();
        if let Err(error) = start_core(core, *affinity, secondary) {
            panic!("core {core}: {error}");
        }
    }
}

fn secondary(core: CoreId) -> ! {
    if let Err(error) = start_gic_core() {
        panic!("interrupt controller on core {core}: {error}");
    }
    irq_enable();
    // SAFETY: `start_cores` stored such a function before it started this core.
    let main: fn(CoreId) = unsafe { core::mem::transmute(SECONDARY.load(Ordering::Acquire)) };
    main(core);
    loop {
        let masked = arch::irq_mask();
        arch::wait(None);
        arch::irq_restore(masked);
    }
}

/// The value of `key=value` in the boot arguments.
pub fn argument<'a>(info: &'a MachineInfo, key: &str) -> Option<&'a str> {
    let words = info.bootargs.as_ref()?.split_ascii_whitespace();
    words
        .filter_map(|word| word.split_once('='))
        .find(|(name, _)| *name == key)
        .map(|(_, value)| value)
}

/// A static that is taken once, for what is too large for a stack.
pub struct Once<T> {
    value: core::cell::UnsafeCell<T>,
    taken: core::sync::atomic::AtomicBool,
}

// SAFETY: `take` hands the value to one caller only.
unsafe impl<T: Send> Sync for Once<T> {}

impl<T> Once<T> {
    /// Holds `value`.
    pub const fn new(value: T) -> Once<T> {
        Once {
            value: core::cell::UnsafeCell::new(value),
            taken: core::sync::atomic::AtomicBool::new(false),
        }
    }

    /// The value; panics the second time.
    #[expect(
        clippy::mut_from_ref,
        reason = "the flag lets exactly one caller through"
    )]
    pub fn take(&'static self) -> &'static mut T {
        assert!(!self.taken.swap(true, Ordering::SeqCst), "taken twice");
        // SAFETY: the swap let exactly one caller through.
        unsafe { &mut *self.value.get() }
    }
}

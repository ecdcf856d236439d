//! The last words: emergency console, panic, backtrace, and how the machine stops.
//!
//! The first core that fails reports; the others are halted. Every report begins with [`MARKER`] at the start of a
//! line, which is how scripts see a failure: a machine that PSCI switches off has no exit status.
//!
//! ```text
//! running ── first failure ── reporting ── second failure, same core ── short line ── third ── off at once
//! ```

use core::fmt::{self, Write};
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::{cpu, exceptions, gic, mmio, power, symbols};
use crate::arch::CoreId;

/// Beginning of the first line of every report.
pub const MARKER: &str = "!! ironthread stopped: ";

/// What happens after a report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StopAction {
    /// The machine is switched off.
    #[default]
    PowerOff,
    /// The machine starts anew.
    Reboot,
}

/// Address of a PL011; 0 while there is no console.
static CONSOLE: AtomicUsize = AtomicUsize::new(0);
static REBOOT: AtomicBool = AtomicBool::new(false);
static DUMP_HOOK: spin::Once<DumpHook> = spin::Once::new();
/// Core that reports, plus one.
static REPORTER: AtomicUsize = AtomicUsize::new(0);
/// Failures of the reporting core so far.
static FAILURES: AtomicUsize = AtomicUsize::new(0);

/// Writes what is left to see of a core after its report: the last trace records.
pub type DumpHook = fn(core: CoreId, out: &mut dyn Write);

/// Sets the console for reports and for messages before the real driver is up.
///
/// # Safety
/// `address` is that of a PL011 UART, mapped as device memory in every table that is ever active.
pub unsafe fn set_console(address: usize) {
    CONSOLE.store(address, Ordering::Relaxed);
}

/// Moves the console to the PL011 whose registers `region` holds.
pub fn set_console_region(region: &crate::arch::mmio::MmioRegion) {
    if region.size() > FLAGS + 4 {
        CONSOLE.store(region.base().addr().get(), Ordering::Relaxed);
    }
}

/// Sets what happens after a report (boot option `ironthread.panic`).
pub fn set_stop_action(action: StopAction) {
    REBOOT.store(action == StopAction::Reboot, Ordering::Relaxed);
}

/// Sets the function that dumps the trace ring; the first call wins. It runs after the report, once for each core.
pub fn set_dump_hook(hook: DumpHook) {
    DUMP_HOOK.call_once(|| hook);
}

/// The emergency console: polled, without locks, from any core at any time.
#[derive(Clone, Copy, Debug, Default)]
pub struct EmergencyConsole;

/// PL011 registers and flags (Arm DDI 0183).
const DATA: usize = 0;
const FLAGS: usize = 0x18;
const FLAG_BUSY: u32 = 1 << 3;
const FLAG_TRANSMIT_FULL: u32 = 1 << 5;
/// Turns to wait for the UART before a byte is given up: a dead console must not keep the machine from stopping.
const PATIENCE: u32 = 1_000_000;

impl EmergencyConsole {
    fn wait_while(self, base: usize, flag: u32) {
        for _ in 0..PATIENCE {
            // SAFETY: `set_console` promised a PL011 here.
            if unsafe { mmio::read32(base + FLAGS) } & flag == 0 {
                return;
            }
        }
    }

    /// Sends bytes as they are.
    pub fn write_bytes(self, bytes: &[u8]) {
        let base = CONSOLE.load(Ordering::Relaxed);
        if base == 0 {
            return;
        }
        for &byte in bytes {
            self.wait_while(base, FLAG_TRANSMIT_FULL);
            // SAFETY: `set_console` promised a PL011 here.
            unsafe { mmio::write8(base + DATA, byte) };
        }
    }

    /// Waits until the last byte is on the line.
    pub fn drain(self) {
        let base = CONSOLE.load(Ordering::Relaxed);
        if base != 0 {
            self.wait_while(base, FLAG_BUSY);
        }
    }
}

impl Write for EmergencyConsole {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for line in text.split_inclusive('\n') {
            match line.strip_suffix('\n') {
                Some(line) => {
                    self.write_bytes(line.as_bytes());
                    self.write_bytes(b"\r\n");
                }
                None => self.write_bytes(line.as_bytes()),
            }
        }
        Ok(())
    }
}

/// Reports a panic and stops the machine. A board's panic handler calls it.
pub fn panic(info: &PanicInfo<'_>) -> ! {
    stop(&mut |out: &mut dyn Write| {
        write!(
            out,
            "panic on core {}",
            crate::arch::current_core().unwrap_or(0)
        )?;
        if let Some(place) = info.location() {
            write!(out, " at {place}")?;
        }
        writeln!(out, ": {}", info.message())?;
        write_backtrace(out, frame_pointer(), None, None)
    })
}

/// Stops with one line, for what is wrong with the machine and not with the program (an odd device tree).
pub fn stop_with(reason: fmt::Arguments<'_>) -> ! {
    stop(&mut |out: &mut dyn Write| writeln!(out, "{reason}"))
}

/// Halts the other cores, writes the marker and `report`, dumps the traces, and stops the machine.
pub(super) fn stop(report: &mut dyn FnMut(&mut dyn Write) -> fmt::Result) -> ! {
    let _masked = cpu::irq_mask();
    let core = crate::arch::current_core().unwrap_or(0);
    match REPORTER.compare_exchange(0, core + 1, Ordering::SeqCst, Ordering::SeqCst) {
        Ok(_) => {}
        Err(reporter) if reporter == core + 1 => {}
        Err(_) => power::park(),
    }
    let mut console = EmergencyConsole;
    match FAILURES.fetch_add(1, Ordering::SeqCst) {
        0 => {
            gic::halt_other_cores();
            console.write_bytes(b"\r\n");
            console.write_bytes(MARKER.as_bytes());
            // A formatting error cannot be reported any better than by what has been written.
            let _ = report(&mut console);
            if let Some(hook) = DUMP_HOOK.get() {
                for core in 0..crate::arch::cores() {
                    hook(core, &mut console);
                }
            }
        }
        1 => {
            console.write_bytes(b"\r\n");
            console.write_bytes(MARKER.as_bytes());
            console.write_bytes(b"failed again while reporting: ");
            let _ = report(&mut console);
        }
        _ => {}
    }
    console.drain();
    if REBOOT.load(Ordering::Relaxed) {
        power::reset()
    } else {
        power::power_off()
    }
}

/// x29 of the caller.
#[inline(always)]
fn frame_pointer() -> u64 {
    let value: u64;
    // SAFETY: reads a general register.
    unsafe {
        core::arch::asm!("mov {}, x29", out(reg) value, options(nomem, nostack, preserves_flags))
    };
    value
}

/// Frames printed at most.
const BACKTRACE_FRAMES: usize = 32;

/// Follows frame records from `frame`; `first` and `link` are the exception's PC and x30, which no record holds yet.
pub(super) fn write_backtrace(
    out: &mut dyn Write,
    frame: u64,
    first: Option<u64>,
    link: Option<u64>,
) -> fmt::Result {
    writeln!(out, "  backtrace:")?;
    if let Some(pc) = first {
        writeln!(out, "    {pc:016x}  {}", symbols::Place(pc))?;
    }
    let mut frame = frame as usize;
    let mut known_link = link;
    for _ in 0..BACKTRACE_FRAMES {
        if !frame.is_multiple_of(8) || !exceptions::in_stack(frame, 16) {
            break;
        }
        // SAFETY: the 16 bytes lie in a stack (checked), which is mapped; any content is a valid u64.
        let [next, caller] =
            unsafe { core::ptr::with_exposed_provenance::<[u64; 2]>(frame).read_volatile() };
        // A leaf has no record: its caller is then only in x30.
        if let Some(link) = known_link.take()
            && link != caller
            && symbols::is_code(link)
        {
            writeln!(
                out,
                "    {link:016x}  {} (x30)",
                symbols::Place(link.wrapping_sub(4))
            )?;
        }
        if !symbols::is_code(caller) {
            break;
        }
        // The call, not the instruction after it, which may belong to the next function.
        writeln!(
            out,
            "    {caller:016x}  {}",
            symbols::Place(caller.wrapping_sub(4))
        )?;
        if next as usize == frame {
            break;
        }
        frame = next as usize;
    }
    Ok(())
}

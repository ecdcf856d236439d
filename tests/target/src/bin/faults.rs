//! One deliberate failure, named by the boot argument `case=`: its report must come and the machine must stop.
#![no_std]
#![no_main]

use core::arch::asm;
use core::fmt;
use core::hint::black_box;
use core::sync::atomic::{AtomicUsize, Ordering};

use ironthread::arch::aarch64::{
    StopAction, Trigger, register_interrupt, set_dump_hook, set_stop_action,
};
use ironthread::arch::{self, CoreId};
use ironthread_target_tests::{argument, entry, say, start, start_cores};

entry!(main);

/// Recurses until the guard page; the array keeps the compiler from making a loop of it.
#[inline(never)]
fn overflow(depth: usize) -> usize {
    let mut room = [depth; 64];
    black_box(&mut room);
    if black_box(depth) == usize::MAX {
        0
    } else {
        overflow(depth + 1) + room[depth % 64]
    }
}

/// The same with a frame of several pages, which must not step over the guard.
#[inline(never)]
fn overflow_wide(depth: usize) -> usize {
    let mut room = [depth; 2048];
    black_box(&mut room[1]);
    if black_box(depth) == usize::MAX {
        0
    } else {
        overflow_wide(depth + 1) + room[depth % 2048]
    }
}

/// A value that cannot be printed.
struct Unprintable;

impl fmt::Display for Unprintable {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        panic!("while printing")
    }
}

fn handler(_: usize) {
    panic!("in a handler");
}

#[inline(never)]
fn read_from(address: usize) {
    // SAFETY: not safe: the fault is the test.
    unsafe { asm!("ldr {0}, [{0}]", inout(reg) address => _, options(nostack)) };
}

#[inline(never)]
fn write_to(address: usize) {
    // SAFETY: not safe: the fault is the test.
    unsafe { asm!("str xzr, [{0}]", in(reg) address, options(nostack)) };
}

fn secondary(core: CoreId) {
    match case() {
        "overflow-1" if core == 1 => {
            say!("{}", overflow(0));
        }
        "panic-1" if core == 1 => panic!("on purpose"),
        "data-abort-1" if core == 1 => write_to(0x6660_0000_0000),
        _ => {}
    }
}

/// Index of the case, set by core 0 before the others run.
static CASE: AtomicUsize = AtomicUsize::new(0);

fn case() -> &'static str {
    CASES[CASE.load(Ordering::Acquire)]
}

const CASES: &[&str] = &[
    "data-abort",
    "data-abort-1",
    "null",
    "write-text",
    "write-constant",
    "execute-data",
    "undefined",
    "svc",
    "overflow-0",
    "overflow-wide",
    "overflow-1",
    "panic-0",
    "panic-1",
    "panic-twice",
    "panic-in-handler",
    "overflow-in-handler",
    "wild-stack",
    "reboot",
    "hook-panics",
];

fn main(tree: usize) -> ! {
    let info = start(tree);
    let wanted = argument(&info, "case").unwrap_or("");
    let Some(index) = CASES.iter().position(|case| *case == wanted) else {
        panic!("no such case: {wanted}")
    };
    CASE.store(index, Ordering::Release);
    set_dump_hook(|core, out| {
        if case() == "hook-panics" {
            panic!("in the hook");
        }
        // The report goes on without it.
        let _ = writeln!(out, "  trace of core {core}");
    });
    start_cores(&info, secondary);
    match case() {
        "data-abort" => write_to(0x6660_0000_0000),
        "null" => read_from(8),
        "write-text" => write_to(overflow as *const () as usize),
        "write-constant" => write_to(CASES.as_ptr().addr()),
        "execute-data" => {
            static mut INSTRUCTION: u32 = 0xd65f_03c0;
            let at = &raw const INSTRUCTION;
            // SAFETY: not safe: the fault is the test.
            unsafe { asm!("blr {}", in(reg) at, clobber_abi("C")) };
        }
        // SAFETY: not safe: the fault is the test.
        "undefined" => unsafe { asm!("udf #7") },
        // SAFETY: not safe: there is nobody to answer it.
        "svc" => unsafe { asm!("svc #3") },
        "overflow-wide" => say!("{}", overflow_wide(0)),
        "overflow-0" => say!("{}", overflow(0)),
        "panic-0" | "hook-panics" => panic!("on purpose"),
        "panic-twice" => panic!("{Unprintable}"),
        "reboot" => {
            set_stop_action(StopAction::Reboot);
            panic!("on purpose")
        }
        "panic-in-handler" | "overflow-in-handler" => {
            let handler = if case() == "panic-in-handler" {
                handler
            } else {
                |_| say!("{}", overflow(0))
            };
            let registers =
                core::ptr::with_exposed_provenance_mut::<u32>(info.uart.region.base as usize);
            if let Err(error) =
                register_interrupt(info.uart.interrupt, Trigger::Level, 0, handler, 0)
            {
                say!("{error}");
            }
            // SAFETY: PL011: "transmit" unmasked, and a byte sent to raise it.
            unsafe {
                registers.add(0x38 / 4).write_volatile(1 << 5);
                registers.write_volatile(u32::from(b'\n'));
            }
        }
        // SAFETY: not safe: the next exception must still find its stack.
        "wild-stack" => unsafe {
            asm!(
                "mov x9, #0",
                "mov sp, x9",
                "str xzr, [sp, #-16]!",
                options(noreturn)
            )
        },
        _ => {}
    }
    // The other core's report ends the machine; this is long enough for it, and the end of a test that failed.
    let end = arch::now_ns() + 3_000_000_000;
    while arch::now_ns() < end {
        arch::relax();
    }
    say!("nothing happened");
    ironthread::arch::aarch64::power_off()
}

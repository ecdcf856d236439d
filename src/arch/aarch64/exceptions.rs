//! Exception vectors, and the report of an exception that nobody expects: any but an interrupt of a loop.
//!
//! An exception of a loop (SP_EL0) comes on the core's exception stack, which is good even if the loop's overflowed.
//! An exception of a handler or of the report itself (SP_EL1) starts on the core's emergency stack.

use core::arch::{asm, global_asm};
use core::fmt::{self, Write};

use super::cpu::EMERGENCY_STACK_OFFSET;
use super::entry::{EXCEPTION_TOP, GUARD_BYTES, LOOP_STACK_BYTES, LOOP_TOP, stacks_of};
use super::{interrupts, report};
use crate::config::MAX_CORES;

/// Registers at the exception, as the vectors store them.
#[repr(C)]
pub(super) struct Frame {
    /// x0 to x30.
    pub(super) x: [u64; 31],
    /// Stack pointer of the code that was interrupted.
    pub(super) sp: u64,
    elr: u64,
    spsr: u64,
}

const FRAME_BYTES: usize = size_of::<Frame>();
const _: () = assert!(FRAME_BYTES == 272, "the vectors store by these offsets");

global_asm!(
    r#"
    .macro  fatal_vector kind
    .balign 128
    .if \kind & 4                       // from SP_EL1: on to the emergency stack; EL0 registers are free
    msr     tpidr_el0, x0
    mov     x0, sp
    msr     tpidrro_el0, x0
    mrs     x0, tpidr_el1
    ldr     x0, [x0, #{emergency}]
    mov     sp, x0
    mrs     x0, tpidr_el0
    .endif
    sub     sp, sp, #{frame}
    stp     x0, x1, [sp]
    .if \kind & 4
    mrs     x0, tpidrro_el0
    .else
    mrs     x0, sp_el0
    .endif
    mov     x1, #\kind
    b       fatal_common
    .endm

    .pushsection .text.vectors, "ax"
    .balign 2048
    .global ironthread_vectors
ironthread_vectors:
    fatal_vector 0                      // loop: synchronous
    .balign 128                         // loop: interrupt
    sub     sp, sp, #192
    stp     x0, x1, [sp, #32]
    stp     x2, x3, [sp, #48]
    stp     x4, x5, [sp, #64]
    stp     x6, x7, [sp, #80]
    stp     x8, x9, [sp, #96]
    stp     x10, x11, [sp, #112]
    stp     x12, x13, [sp, #128]
    stp     x14, x15, [sp, #144]
    stp     x16, x17, [sp, #160]
    str     x18, [sp, #176]
    b       interrupt_common
    fatal_vector 2                      // loop: fast interrupt
    fatal_vector 3                      // loop: system error
    fatal_vector 4                      // handler: the same four
    fatal_vector 5
    fatal_vector 6
    fatal_vector 7
    fatal_vector 8                      // EL0, which does not exist here: all eight are bugs
    fatal_vector 9
    fatal_vector 10
    fatal_vector 11
    fatal_vector 8
    fatal_vector 9
    fatal_vector 10
    fatal_vector 11
    .balign 128

interrupt_common:
    mrs     x0, elr_el1
    mrs     x1, spsr_el1
    stp     x29, x0, [sp]               // a frame record: backtraces go on into the loop
    stp     x30, x1, [sp, #16]
    mov     x29, sp
    bl      {interrupt}
    ldp     x29, x0, [sp]
    ldp     x30, x1, [sp, #16]
    msr     elr_el1, x0
    msr     spsr_el1, x1
    ldp     x0, x1, [sp, #32]
    ldp     x2, x3, [sp, #48]
    ldp     x4, x5, [sp, #64]
    ldp     x6, x7, [sp, #80]
    ldp     x8, x9, [sp, #96]
    ldp     x10, x11, [sp, #112]
    ldp     x12, x13, [sp, #128]
    ldp     x14, x15, [sp, #144]
    ldp     x16, x17, [sp, #160]
    ldr     x18, [sp, #176]
    add     sp, sp, #192
    eret

    // x0: interrupted sp, x1: kind, their values already stored.
fatal_common:
    stp     x2, x3, [sp, #16]
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, x15, [sp, #112]
    stp     x16, x17, [sp, #128]
    stp     x18, x19, [sp, #144]
    stp     x20, x21, [sp, #160]
    stp     x22, x23, [sp, #176]
    stp     x24, x25, [sp, #192]
    stp     x26, x27, [sp, #208]
    stp     x28, x29, [sp, #224]
    stp     x30, x0, [sp, #240]
    mrs     x2, elr_el1
    mrs     x3, spsr_el1
    stp     x2, x3, [sp, #256]
    mov     x0, sp
    bl      {fatal}
    b       .
    .popsection
"#,
    emergency = const EMERGENCY_STACK_OFFSET,
    frame = const FRAME_BYTES,
    interrupt = sym interrupts::dispatch,
    fatal = sym fatal,
);

/// Reports the exception and stops the machine.
extern "C" fn fatal(frame: &Frame, kind: u64) -> ! {
    let (esr, far): (u64, u64);
    // SAFETY: reads two registers that the exception set.
    unsafe {
        asm!("mrs {}, esr_el1", "mrs {}, far_el1", out(reg) esr, out(reg) far, options(nomem, nostack, preserves_flags));
    }
    report::stop(&mut |out: &mut dyn Write| write_report(out, frame, kind, esr, far))
}

fn write_report(out: &mut dyn Write, frame: &Frame, kind: u64, esr: u64, far: u64) -> fmt::Result {
    let core = me_index();
    write!(out, "exception on core {core}: ")?;
    match kind & 3 {
        0 => write_syndrome(out, esr, far)?,
        1 => out.write_str("interrupt in a handler")?,
        2 => out.write_str("fast interrupt")?,
        _ => out.write_str("system error (SError)")?,
    }
    match kind & 12 {
        4 => out.write_str(", in an interrupt handler or in a report")?,
        8 => out.write_str(", from EL0")?,
        _ => {}
    }
    writeln!(out)?;
    if kind & 3 == 0 && is_abort(esr) {
        write_guard(out, far)?;
    }
    let place = super::symbols::Place(frame.elr);
    writeln!(out, "  ELR  {:016x}  {place}", frame.elr)?;
    writeln!(
        out,
        "  ESR  {esr:016x}  FAR  {far:016x}  SPSR {:016x}  SP   {:016x}",
        frame.spsr, frame.sp
    )?;
    for (row, chunk) in frame.x.chunks(4).enumerate() {
        for (column, value) in chunk.iter().enumerate() {
            write!(out, "  x{:<2}  {value:016x}", row * 4 + column)?;
        }
        writeln!(out)?;
    }
    report::write_backtrace(out, frame.x[29], Some(frame.elr), Some(frame.x[30]))
}

fn me_index() -> usize {
    crate::arch::current_core().unwrap_or(0).min(MAX_CORES - 1)
}

/// Exception class of a syndrome.
fn class(esr: u64) -> u64 {
    esr >> 26 & 63
}

fn is_abort(esr: u64) -> bool {
    matches!(class(esr), 0x20 | 0x21 | 0x24 | 0x25)
}

/// Says in words what ESR_EL1 says in bits (Arm ARM, D19.2.37).
fn write_syndrome(out: &mut dyn Write, esr: u64, far: u64) -> fmt::Result {
    let iss = esr & 0x1ff_ffff;
    match class(esr) {
        0x00 => out.write_str("undefined instruction"),
        0x01 => out.write_str("trapped WFI or WFE"),
        0x07 => out.write_str("floating point or SIMD instruction"),
        0x0e => out.write_str("illegal execution state"),
        0x15 => write!(out, "SVC {}", iss & 0xffff),
        0x16 => write!(out, "HVC {}", iss & 0xffff),
        0x17 => write!(out, "SMC {}", iss & 0xffff),
        0x18 => out.write_str("trapped system register access"),
        0x20 | 0x21 => write!(out, "instruction abort at {far:#x}: {}", FaultStatus(iss)),
        0x22 => out.write_str("misaligned program counter"),
        0x24 | 0x25 => {
            let access = if iss & 1 << 6 != 0 {
                "write to"
            } else {
                "read of"
            };
            write!(out, "data abort, {access} {far:#x}: {}", FaultStatus(iss))
        }
        0x26 => out.write_str("misaligned stack pointer"),
        0x2f => out.write_str("system error (SError)"),
        0x30..=0x35 => out.write_str("debug exception"),
        0x3c => write!(out, "BRK {:#x}", iss & 0xffff),
        other => write!(out, "class {other:#x}, syndrome {iss:#x}"),
    }
}

/// The fault status code in the low six bits of an abort's syndrome.
struct FaultStatus(u64);

impl fmt::Display for FaultStatus {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = self.0 & 3;
        match self.0 >> 2 & 15 {
            0 => write!(out, "address size fault, level {level}"),
            1 => write!(out, "not mapped, level {level}"),
            2 => write!(out, "access flag fault, level {level}"),
            3 => write!(out, "permission fault, level {level}"),
            4 if level == 0 => out.write_str("external abort"),
            5 => write!(out, "external abort on a table walk, level {level}"),
            8 if level == 1 => out.write_str("misaligned access"),
            12 if level == 0 => out.write_str("TLB conflict"),
            _ => write!(out, "fault status {:#x}", self.0 & 63),
        }
    }
}

/// Names the guard page that `far` lies in.
fn write_guard(out: &mut dyn Write, far: u64) -> fmt::Result {
    let far = far as usize;
    if far < GUARD_BYTES {
        return writeln!(out, "  null pointer");
    }
    for core in 0..MAX_CORES {
        let base = stacks_of(core);
        let guards = [
            ("loop", base),
            ("exception", base + LOOP_TOP),
            ("emergency", base + EXCEPTION_TOP),
        ];
        for (name, guard) in guards {
            if (guard..guard + GUARD_BYTES).contains(&far) {
                return writeln!(
                    out,
                    "  stack overflow: that is the guard page below the {name} stack of core {core}"
                );
            }
        }
    }
    Ok(())
}

/// True if `address` lies in a stack that a backtrace may read, with `bytes` after it.
pub(super) fn in_stack(address: usize, bytes: usize) -> bool {
    (0..MAX_CORES).any(|core| {
        let base = stacks_of(core);
        let stacks = [
            (base + GUARD_BYTES, LOOP_STACK_BYTES),
            (
                base + LOOP_TOP + GUARD_BYTES,
                EXCEPTION_TOP - LOOP_TOP - GUARD_BYTES,
            ),
            (
                base + EXCEPTION_TOP + GUARD_BYTES,
                super::entry::EMERGENCY_STACK_BYTES,
            ),
        ];
        stacks
            .iter()
            .any(|&(start, len)| address >= start && address - start + bytes <= len)
    })
}

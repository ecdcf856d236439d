//! From a core's first instruction to Rust.
//!
//! The board's `_start` jumps to `ironthread_entry` once it runs at its link address (x0 = device tree or 0); PSCI
//! starts the other cores at `ironthread_secondary_entry` (x0 = dense core index). A board also brings its first
//! table, `ironthread_first_table`, and vectors for the moments before there is a stack, `ironthread_early_vectors`
//! (x21 = exception level of the start). Both kinds of core then take the same way:
//!
//! ```text
//! EL2 or EL1, MMU off ── drop to EL1 ── MMU and caches on ── per-core record, vectors, stacks ── Rust
//! ```
//!
//! Core 0 begins with the board's constant table and clears `.bss` before it has a stack; the others begin with the
//! final tables and read no memory before their MMU is on, so no cache maintenance is needed between the cores.
//! The two tables differ in ASID and map nothing global: the switch needs no moment without MMU.

use core::arch::global_asm;
use core::sync::atomic::{AtomicUsize, Ordering};

use super::cpu::{EMERGENCY_STACK_OFFSET, ONLINE, PER_CORE, PerCore};
use super::{clock, cpu, memory, power};
use crate::arch::CoreId;
use crate::config::MAX_CORES;

/// Unmapped page below each stack. One is enough: the compiler touches every page of a large frame in turn.
pub(super) const GUARD_BYTES: usize = 4096;
/// Stack of a core's loop (SP_EL0).
pub(super) const LOOP_STACK_BYTES: usize = 64 * 1024;
/// Stack of a core's exceptions (SP_EL1): interrupt handlers and the report.
pub(super) const EXCEPTION_STACK_BYTES: usize = 16 * 1024;
/// Stack for an exception within an exception; without it an overflow of the exception stack would loop.
pub(super) const EMERGENCY_STACK_BYTES: usize = 8 * 1024;

/// Offsets in the stacks of one core: `guard | loop | guard | exceptions | guard | emergency`; they grow down.
pub(super) const LOOP_TOP: usize = GUARD_BYTES + LOOP_STACK_BYTES;
pub(super) const EXCEPTION_TOP: usize = LOOP_TOP + GUARD_BYTES + EXCEPTION_STACK_BYTES;
pub(super) const EMERGENCY_TOP: usize = EXCEPTION_TOP + GUARD_BYTES + EMERGENCY_STACK_BYTES;

// In a section of their own behind `.bss`, cleared with it: what is not zero has been used.
global_asm!(
    r#"
    .pushsection .stacks, "aw", %nobits
    .balign 4096
    .global ironthread_stacks
ironthread_stacks:
    .space  {bytes}
    .popsection
"#,
    bytes = const EMERGENCY_TOP * MAX_CORES,
);

unsafe extern "C" {
    #[link_name = "ironthread_stacks"]
    static STACKS: u8;
}

/// Address of the stacks of `core`.
pub(super) fn stacks_of(core: CoreId) -> usize {
    (&raw const STACKS).addr() + core * EMERGENCY_TOP
}

/// Bytes of a stack that were ever used, of how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackUse {
    /// The deepest it went, in bytes.
    pub high_water: usize,
    /// Its size in bytes.
    pub size: usize,
}

/// How deep the stacks of `core` ever were: its loop's and that of its interrupt handlers. Reads them whole; for a
/// person who asks, not for a loop.
pub fn stack_use(core: CoreId) -> [StackUse; 2] {
    [(0, LOOP_STACK_BYTES), (LOOP_TOP, EXCEPTION_STACK_BYTES)].map(|(guard, size)| {
        if core >= MAX_CORES {
            return StackUse {
                high_water: 0,
                size,
            };
        }
        let bottom =
            core::ptr::with_exposed_provenance::<u64>(stacks_of(core) + guard + GUARD_BYTES);
        // SAFETY: the words of a stack, which is always mapped. Its core may write them meanwhile: volatile, and any
        // value will do.
        let unused = (0..size / 8)
            .take_while(|&index| unsafe { bottom.add(index).read_volatile() } == 0)
            .count();
        StackUse {
            high_water: size - unused * 8,
            size,
        }
    })
}

/// MAIR_EL1: attribute 0 is Device-nGnRE, 1 is normal memory, write-back, allocating.
pub(super) const MAIR: u64 = 0xff_04;
/// TCR_EL1 without the physical size: 39-bit addresses through TTBR0, 4 KiB pages, tables cached and inner shareable,
/// TTBR1 off, 8-bit ASIDs from TTBR0.
const TCR: u64 = 25 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23;
/// SCTLR_EL1 at the start: the bits that are always one, and with them MMU, caches, SP alignment check.
const SCTLR_OFF: u64 = 0x30d0_0800;
const SCTLR_ON: u64 = SCTLR_OFF | 1 | 1 << 2 | 1 << 3 | 1 << 12;

global_asm!(
    r#"
    .pushsection .text.entry, "ax"

    // x0: device tree address or 0. Runs at the link address, MMU off, EL2 or EL1.
    .global ironthread_entry
ironthread_entry:
    mov     x19, x0
    mov     x20, #0
    ldr     x22, =ironthread_first_table
    bl      enter_el1
    bl      mmu_on
    ldr     x9, =ironthread_early_vectors
    msr     vbar_el1, x9
    isb
    ldr     x9, =__image_end        // less memory than the image needs: found out here, not later
    str     xzr, [x9, #-16]

    // Clear .bss and the stacks before there is a stack in use or Rust looks at them.
    ldr     x0, =__bss_start
    ldr     x1, =__stacks_end
    mrs     x2, dczid_el0
    tbnz    x2, #4, 2f
    and     x2, x2, #15
    mov     x3, #4
    lsl     x2, x3, x2              // bytes a DC ZVA clears
    sub     x3, x2, #1
1:  tst     x0, x3                  // up to its alignment by 16
    b.eq    3f
    cmp     x0, x1
    b.hs    5f
    stp     xzr, xzr, [x0], #16
    b       1b
3:  sub     x4, x1, x0
    cmp     x4, x2
    b.lo    2f
    dc      zva, x0
    add     x0, x0, x2
    b       3b
2:  cmp     x0, x1
    b.hs    5f
    stp     xzr, xzr, [x0], #16
    b       2b
5:
    bl      set_up_core
    mov     x0, x19
    mov     x1, x21
    bl      {first_core}
    b       .

    // x0: dense core index. From PSCI, MMU off, EL2 or EL1.
    .global ironthread_secondary_entry
ironthread_secondary_entry:
    mov     x20, x0
    ldr     x22, ={root}
    orr     x22, x22, #{final_asid}
    bl      enter_el1
    bl      mmu_on
    bl      set_up_core
    mov     x0, x20
    bl      {secondary_core}
    b       .

    // Returns at EL1 with SP_EL1 selected, MMU off, everything masked; x21 = the level it came from. Uses x9, x10.
enter_el1:
    msr     daifset, #15
    mrs     x9, CurrentEL
    lsr     x21, x9, #2
    cmp     x21, #2
    b.eq    1f
    b.hi    .                       // EL3: firmware that starts us there is not supported
    msr     spsel, #1
    ret
1:  mov     x9, #(1 << 31)          // HCR_EL2.RW: EL1 is AArch64; no traps, no stage 2
    msr     hcr_el2, x9
    isb                             // E2H is off from here: it changes what the registers below mean
    mov     x9, #3                  // EL1 reads the physical counter and owns its timer
    msr     cnthctl_el2, x9
    msr     cntvoff_el2, xzr        // virtual time is physical time, the same on every core
    mov     x9, #0x33ff             // no trapping of FP or CPACR_EL1
    msr     cptr_el2, x9
    msr     hstr_el2, xzr
    mrs     x9, mdcr_el2            // keep HPMN, trap no debug
    and     x9, x9, #31
    msr     mdcr_el2, x9
    mrs     x9, midr_el1
    msr     vpidr_el2, x9
    mrs     x9, mpidr_el1
    msr     vmpidr_el2, x9
    mrs     x9, id_aa64pfr0_el1     // GIC system registers exist only beside a GICv3
    ubfx    x9, x9, #24, #4
    cbz     x9, 2f
    mrs     x9, S3_4_C12_C9_5       // ICC_SRE_EL2: system registers on, EL1 may use them
    mov     x10, #9
    orr     x9, x9, x10
    msr     S3_4_C12_C9_5, x9
    isb
    mrs     x9, S3_4_C12_C9_5
    tbz     x9, #0, 2f
    msr     S3_4_C12_C11_0, xzr     // ICH_HCR_EL2: no virtual interrupts
2:  ldr     x9, ={sctlr_off}
    msr     sctlr_el1, x9
    msr     elr_el2, x30
    mov     x9, #0x3c5              // EL1 on SP_EL1, all masked
    msr     spsr_el2, x9
    eret

    // x22: TTBR0. Returns with MMU and caches on. Uses x9, x10.
mmu_on:
    ldr     x9, ={sctlr_off}
    msr     sctlr_el1, x9
    ldr     x9, ={mair}
    msr     mair_el1, x9
    ldr     x9, ={tcr}
    mrs     x10, id_aa64mmfr0_el1
    and     x10, x10, #15           // physical size as the core has it, at most 48 bits
    cmp     x10, #5
    mov     x11, #5
    csel    x10, x10, x11, lo
    bfi     x9, x10, #32, #3
    msr     tcr_el1, x9
    msr     ttbr0_el1, x22
    isb
    tlbi    vmalle1
    ic      iallu
    dsb     nsh
    isb
    ldr     x9, ={sctlr_on}
    msr     sctlr_el1, x9
    isb
    ret

    // x20: dense core index. Returns on SP_EL0 with an empty stack. Uses x9 to x12.
set_up_core:
    ldr     x9, =ironthread_stacks
    ldr     x10, ={stacks_size}
    madd    x9, x20, x10, x9
    ldr     x10, ={exception_top}
    add     x10, x9, x10
    mov     sp, x10
    msr     spsel, #0
    ldr     x10, ={loop_top}
    add     x10, x9, x10
    mov     sp, x10
    ldr     x10, ={emergency_top}
    add     x10, x9, x10
    ldr     x11, ={per_core}
    mov     x12, #{per_core_size}
    madd    x11, x20, x12, x11
    stp     x20, x10, [x11]         // index, emergency stack
    msr     tpidr_el1, x11
    ldr     x9, =ironthread_vectors
    msr     vbar_el1, x9
    isb
    mov     x29, xzr                // end of the frame chain
    ret

    .ltorg
    .popsection
"#,
    first_core = sym first_core,
    secondary_core = sym secondary_core,
    root = sym memory::FINAL_ROOT,
    final_asid = const memory::FINAL_ASID << 48,
    mair = const MAIR,
    tcr = const TCR,
    sctlr_off = const SCTLR_OFF,
    sctlr_on = const SCTLR_ON,
    stacks_size = const EMERGENCY_TOP,
    loop_top = const LOOP_TOP,
    exception_top = const EXCEPTION_TOP,
    emergency_top = const EMERGENCY_TOP,
    per_core = sym PER_CORE,
    per_core_size = const size_of::<PerCore>(),
);

const _: () = assert!(
    EMERGENCY_STACK_OFFSET == 8,
    "set_up_core stores index and emergency stack as a pair"
);

unsafe extern "Rust" {
    /// The board's main function; `entry!` of a board's library defines it.
    fn ironthread_main(tree: usize) -> !;
}

/// The exception level in which core 0 started.
static START_LEVEL: AtomicUsize = AtomicUsize::new(1);

/// 1 or 2: the exception level in which core 0 started.
pub fn start_level() -> usize {
    START_LEVEL.load(Ordering::Relaxed)
}

extern "C" fn first_core(tree: usize, level: usize) -> ! {
    clock::start();
    clock::start_core();
    START_LEVEL.store(level, Ordering::Relaxed);
    PER_CORE[0]
        .affinity
        .store(cpu::own_affinity(), Ordering::Relaxed);
    ONLINE.store(1, Ordering::Relaxed);
    // SAFETY: a board links exactly one `ironthread_main`, with this signature (its `entry!` checks the type).
    unsafe { ironthread_main(tree) }
}

extern "C" fn secondary_core(core: CoreId) -> ! {
    clock::start_core();
    power::run_started(core)
}

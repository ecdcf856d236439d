//! aarch64 at EL1: what the machine layer and the boards need beyond the names that every target shares.
//!
//! | file | what it does |
//! |---|---|
//! | [`device_tree`] | the bytes of the tree |
//! | [`entry`] | from the first instruction of a core to Rust: EL2 drop, MMU on, stacks |
//! | [`cpu`] | per-core record, interrupt mask, wait, kick |
//! | [`clock`] | virtual counter in nanoseconds, one-shot deadline, `DelayNs` |
//! | [`interrupts`] | handler table and dispatch |
//! | [`gic`] | interrupt controller, version 2 and 3 |
//! | [`memory`] | final page tables: W^X, guard pages, device windows |
//! | [`exceptions`] | vectors, decoded report |
//! | [`report`] | emergency console, panic, how the machine stops |
//! | [`symbols`] | address → function name |
//! | [`power`] | PSCI: cores on, machine off, reset |
//! | [`routines`] | `memcpy`, `memmove`, `memset`, `memcmp` |
//!
//! A loop runs on SP_EL0, every exception on SP_EL1: the stack in use tells [`in_interrupt`] where it is, and a
//! stack overflow is reported from a stack that is still good.

pub mod clock;
pub mod cpu;
pub mod device_tree;
pub mod entry;
pub mod exceptions;
pub mod gic;
pub mod interrupts;
pub mod memory;
mod mmio;
pub mod power;
pub mod report;
pub mod routines;
pub mod symbols;

pub use clock::{Delay, now_ns};
pub use cpu::{
    Counters, IrqState, cores, counters, current_core, in_interrupt, irq_enable, irq_mask,
    irq_masked, irq_restore, kick, kicks, own_affinity, relax, wait,
};
pub use device_tree::tree_at;
pub use entry::{StackUse, stack_use, start_level};
pub use gic::{GicAddresses, GicError, start_gic, start_gic_core};
pub use interrupts::{
    InterruptError, Trigger, interrupt_can_go_to, register_interrupt, route_interrupt,
};
pub use memory::{MapError, Range, image, map_memory};
pub use power::{Conduit, StartError, power_off, reset, set_conduit, start_core};
pub use report::{
    EmergencyConsole, StopAction, panic, set_console, set_console_region, set_dump_hook,
    set_stop_action, stop_with,
};

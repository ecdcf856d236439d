//! What QEMU's `virt` machine is, and how a program starts on it.
//!
//! The firmware (`main.rs`) and the target tests' images (`tests/target`) are programs on this library: it brings the
//! first instructions ([`start`]), the constants of the machine, and the panic handler. A program names its main
//! function with [`entry!`]; the linker scripts come from its build script.
#![cfg_attr(target_os = "none", no_std)]

#[cfg(target_os = "none")]
mod start;

/// Where an ELF or flash start finds the device tree: x0 is then 0.
pub const TREE: usize = 0x4000_0000;

/// What the first table maps as memory: where QEMU puts a device tree.
pub const MEMORY: core::ops::Range<usize> = 0x4000_0000..0x1_0000_0000;

/// The first PL011, for messages before the tree is read, or where it cannot be.
pub const UART: usize = 0x0900_0000;

/// Defines the main function of a program: `entry!(main)` with `fn main(tree: usize) -> !`.
///
/// It runs on core 0 at EL1 with interrupts masked, on the board's first table, with the emergency console set;
/// `tree` is the address of the device tree.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        #[unsafe(no_mangle)]
        fn ironthread_main(tree: usize) -> ! {
            let main: fn(usize) -> ! = $main;
            $crate::begin(tree, main)
        }
    };
}

/// What [`entry!`] runs before the program's main function.
#[cfg(target_os = "none")]
pub fn begin(tree: usize, main: fn(usize) -> !) -> ! {
    // SAFETY: `virt` has a PL011 here; the first table maps it, and `machine` keeps it in the final tables.
    unsafe { ironthread::arch::aarch64::set_console(UART) };
    main(if tree == 0 { TREE } else { tree })
}

#[cfg(target_os = "none")]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    ironthread::arch::aarch64::panic(info)
}

//! ironthread on QEMU `virt`.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
ironthread_qemu_virt::entry!(main);

#[cfg(target_os = "none")]
fn main(tree: usize) -> ! {
    static BOARD: ironthread::machine::start::Board = ironthread::machine::start::Board {
        name: "QEMU virt",
        tree_window: ironthread_qemu_virt::MEMORY,
    };
    ironthread::machine::start::run(&BOARD, tree)
}

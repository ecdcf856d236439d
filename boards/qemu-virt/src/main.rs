//! ironthread on QEMU `virt`.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
ironthread_qemu_virt::entry!(main);

#[cfg(target_os = "none")]
fn main(_tree: usize) -> ! {
    panic!("the machine layer is being built")
}

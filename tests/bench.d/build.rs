//! Hands the linker scripts of the board to the image.

fn main() {
    let linker = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../linker");
    println!("cargo:rerun-if-changed=../build.rs");
    for script in ["memory-qemu-virt.x", "sections.ld"] {
        println!("cargo:rerun-if-changed={linker}/{script}");
        println!("cargo:rustc-link-arg-bins=-T{linker}/{script}");
    }
}

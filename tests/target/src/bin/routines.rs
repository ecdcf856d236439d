//! `memcpy`, `memmove`, `memset` and `memcmp` against their definitions, for every small length and alignment and
//! some large ones, with a look at the bytes around; then the speed, aligned and misaligned.
#![no_std]
#![no_main]

use core::hint::black_box;

use ironthread::arch;
use ironthread_target_tests::{entry, pass, read_tree, say};

entry!(main);

unsafe extern "C" {
    fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8;
    fn memmove(to: *mut u8, from: *const u8, count: usize) -> *mut u8;
    fn memset(to: *mut u8, byte: i32, count: usize) -> *mut u8;
    fn memcmp(left: *const u8, right: *const u8, count: usize) -> i32;
}

const BYTES: usize = 4096;

struct Memory {
    from: [u8; BYTES],
    to: [u8; BYTES],
    expected: [u8; BYTES],
}

fn fill(bytes: &mut [u8], seed: usize) {
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = (index.wrapping_mul(31) ^ (index >> 7) ^ seed) as u8;
    }
}

/// Byte by byte, which no compiler turns into a call of what is being tested.
fn copy_slowly(to: &mut [u8], from: &[u8]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = black_box(*from);
    }
}

fn same(left: &[u8], right: &[u8]) -> bool {
    left.iter()
        .zip(right)
        .all(|(left, right)| black_box(*left) == *right)
}

fn lengths() -> impl Iterator<Item = usize> {
    (0..=200).chain([255, 256, 257, 511, 513, 1000, 1023, 1024, 1029, 2048, 3001])
}

fn copies(memory: &mut Memory) {
    for len in lengths() {
        for to in 0..16 {
            for from in 0..16 {
                fill(&mut memory.from, 1);
                if to == 0 && from == 0 || len > 200 {
                    fill(&mut memory.to, 99);
                    fill(&mut memory.expected, 99);
                }
                copy_slowly(
                    &mut memory.expected[64 + to..64 + to + len],
                    &memory.from[from..from + len],
                );
                // SAFETY: both ranges lie in their arrays.
                let result = unsafe {
                    memcpy(
                        memory.to.as_mut_ptr().add(64 + to),
                        memory.from.as_ptr().add(from),
                        len,
                    )
                };
                assert_eq!(result, memory.to[64 + to..].as_mut_ptr());
                assert!(
                    same(&memory.to[..512 + len], &memory.expected[..512 + len]),
                    "memcpy {len} {to} {from}"
                );
            }
        }
    }
}

fn moves(memory: &mut Memory) {
    for len in lengths() {
        for distance in [
            1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 100, 127, 128, 150, 500,
        ] {
            for up in [false, true] {
                let (from, to) = if up {
                    (100, 100 + distance)
                } else {
                    (100 + distance, 100)
                };
                fill(&mut memory.to, 7);
                fill(&mut memory.from, 7);
                fill(&mut memory.expected, 7);
                copy_slowly(
                    &mut memory.expected[to..to + len],
                    &memory.from[from..from + len],
                );
                // SAFETY: both ranges lie in the array.
                unsafe {
                    memmove(
                        memory.to.as_mut_ptr().add(to),
                        memory.to.as_ptr().add(from),
                        len,
                    )
                };
                assert!(
                    same(&memory.to, &memory.expected),
                    "memmove {len} by {distance}, up: {up}"
                );
            }
        }
    }
}

fn sets(memory: &mut Memory) {
    for len in lengths() {
        for start in 64..80 {
            fill(&mut memory.to, 5);
            fill(&mut memory.expected, 5);
            for byte in &mut memory.expected[start..start + len] {
                *byte = black_box(0xa5);
            }
            // SAFETY: the range lies in the array; only the low byte counts.
            unsafe { memset(memory.to.as_mut_ptr().add(start), 0x1a5, len) };
            assert!(
                same(&memory.to, &memory.expected),
                "memset {len} at {start}"
            );
        }
    }
}

fn compares(memory: &mut Memory) {
    fill(&mut memory.from, 3);
    for len in 0..80 {
        for start in 0..9 {
            copy_slowly(&mut memory.to[start..start + len], &memory.from[8..8 + len]);
            let compare = |memory: &Memory| {
                // SAFETY: both ranges lie in their arrays.
                unsafe {
                    memcmp(
                        memory.to.as_ptr().add(start),
                        memory.from.as_ptr().add(8),
                        len,
                    )
                }
            };
            assert_eq!(compare(memory), 0, "memcmp {len}");
            for at in 0..len {
                let old = memory.to[start + at];
                memory.to[start + at] = old.wrapping_add(1);
                let wanted = if old == 255 { -1 } else { 1 };
                // A later difference must not matter.
                let last = memory.to[start + len - 1];
                if at + 1 < len {
                    memory.to[start + len - 1] = if wanted > 0 { 0 } else { 255 };
                }
                assert_eq!(compare(memory).signum(), wanted, "memcmp {len} at {at}");
                memory.to[start + len - 1] = last;
                memory.to[start + at] = old;
            }
        }
    }
}

fn speed(memory: &mut Memory, what: &str, to: usize, from: usize) {
    const TURNS: u64 = 20_000;
    let begin = arch::now_ns();
    for _ in 0..TURNS {
        // SAFETY: both ranges lie in their arrays.
        unsafe {
            memcpy(
                memory.to.as_mut_ptr().add(to),
                black_box(memory.from.as_ptr().add(from)),
                4000,
            )
        };
    }
    let spent = (arch::now_ns() - begin).max(1);
    say!(
        "memcpy 4000 bytes, {what}: {} ns, {} MB/s",
        spent / TURNS,
        TURNS * 4000 * 1000 / spent
    );
}

fn main(tree: usize) -> ! {
    static MEMORY: ironthread_target_tests::Once<Memory> =
        ironthread_target_tests::Once::new(Memory {
            from: [0; BYTES],
            to: [0; BYTES],
            expected: [0; BYTES],
        });
    let _ = read_tree(tree);
    let memory = MEMORY.take();
    copies(memory);
    moves(memory);
    sets(memory);
    compares(memory);
    speed(memory, "aligned", 0, 0);
    speed(memory, "misaligned by 5", 0, 5);
    speed(memory, "misaligned by 3 and 4", 3, 4);
    pass()
}

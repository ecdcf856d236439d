//! `memcpy`, `memmove`, `memset`, `memcmp`, `bcmp` for the whole program.
//!
//! The compiler's own are weak symbols here and copy byte by byte when source and destination are not aligned to each
//! other, as data behind a network header never are. These copy 64 bytes a turn with unaligned loads and stores,
//! which normal memory allows. The target has no vector registers to use.

use core::arch::global_asm;

global_asm!(
    r#"
    .pushsection .text.routines, "ax"

    // x0 = destination (returned), x1 = source, x2 = bytes.
    .global memmove
    .type   memmove, %function
    .balign 64
memmove:
    sub     x3, x0, x1
    cmp     x3, x2                  // unsigned: destination inside the source?
    b.lo    copy_down
    .global memcpy
    .type   memcpy, %function
memcpy:
    cmp     x2, #16
    b.lo    copy_small
    add     x4, x1, x2              // ends
    add     x5, x0, x2
    cmp     x2, #96
    b.hi    copy_large
    // 16 to 96: pairs from both ends, all loaded before the first store, so overlap does no harm.
    ldp     x6, x7, [x1]
    ldp     x8, x9, [x4, #-16]
    cmp     x2, #32
    b.ls    1f
    ldp     x10, x11, [x1, #16]
    ldp     x12, x13, [x4, #-32]
    cmp     x2, #64
    b.ls    2f
    ldp     x14, x15, [x1, #32]
    ldp     x16, x17, [x1, #48]
    stp     x14, x15, [x0, #32]
    stp     x16, x17, [x0, #48]
2:  stp     x10, x11, [x0, #16]
    stp     x12, x13, [x5, #-32]
1:  stp     x6, x7, [x0]
    stp     x8, x9, [x5, #-16]
    ret

copy_large:
    // The first 16 bytes; from there on the destination is aligned. 64 bytes are in flight: loaded, not yet stored.
    and     x16, x0, #15
    ldp     x14, x15, [x1]
    sub     x3, x0, x16             // rounded down; the first aligned store is at +16
    sub     x1, x1, x16
    add     x2, x2, x16
    ldp     x6, x7, [x1, #16]
    ldp     x8, x9, [x1, #32]
    ldp     x10, x11, [x1, #48]
    ldp     x12, x13, [x1, #64]
    stp     x14, x15, [x0]
    add     x1, x1, #64
    subs    x2, x2, #144            // 16 stored, 64 in flight, up to 64 for the end
    b.ls    3f
2:  stp     x6, x7, [x3, #16]
    ldp     x6, x7, [x1, #16]
    stp     x8, x9, [x3, #32]
    ldp     x8, x9, [x1, #32]
    stp     x10, x11, [x3, #48]
    ldp     x10, x11, [x1, #48]
    stp     x12, x13, [x3, #64]
    ldp     x12, x13, [x1, #64]
    add     x1, x1, #64
    add     x3, x3, #64
    subs    x2, x2, #64
    b.hi    2b
3:  // In flight, then the last 64, which may overlap them.
    ldp     x14, x15, [x4, #-64]
    stp     x6, x7, [x3, #16]
    ldp     x6, x7, [x4, #-48]
    stp     x8, x9, [x3, #32]
    ldp     x8, x9, [x4, #-32]
    stp     x10, x11, [x3, #48]
    ldp     x10, x11, [x4, #-16]
    stp     x12, x13, [x3, #64]
    stp     x14, x15, [x5, #-64]
    stp     x6, x7, [x5, #-48]
    stp     x8, x9, [x5, #-32]
    stp     x10, x11, [x5, #-16]
    ret

copy_small:                         // below 16
    add     x4, x1, x2
    add     x5, x0, x2
    tbz     x2, #3, 1f
    ldr     x6, [x1]
    ldr     x7, [x4, #-8]
    str     x6, [x0]
    str     x7, [x5, #-8]
    ret
1:  tbz     x2, #2, 2f
    ldr     w6, [x1]
    ldr     w7, [x4, #-4]
    str     w6, [x0]
    str     w7, [x5, #-4]
    ret
2:  cbz     x2, 3f
    lsr     x3, x2, #1              // 1 to 3: first, middle, last
    ldrb    w6, [x1]
    ldrb    w7, [x1, x3]
    ldrb    w8, [x4, #-1]
    strb    w6, [x0]
    strb    w7, [x0, x3]
    strb    w8, [x5, #-1]
3:  ret

copy_down:                          // overlapping, destination above the source: from the end
    cmp     x2, #64
    b.ls    memcpy                  // those load all before they store
    add     x4, x1, x2
    add     x5, x0, x2
    sub     x2, x2, #64
1:  cmp     x2, #32
    b.lo    2f
    ldp     x6, x7, [x4, #-16]
    ldp     x8, x9, [x4, #-32]
    stp     x6, x7, [x5, #-16]
    stp     x8, x9, [x5, #-32]
    sub     x4, x4, #32
    sub     x5, x5, #32
    sub     x2, x2, #32
    b       1b
2:  // x2 + 64 bytes are left, at most 95: all loaded before the first store.
    ldp     x14, x15, [x1]
    ldp     x16, x17, [x1, #16]
    ldp     x6, x7, [x1, #32]
    ldp     x8, x9, [x1, #48]
    ldp     x10, x11, [x4, #-16]
    ldp     x12, x13, [x4, #-32]
    stp     x10, x11, [x5, #-16]
    stp     x12, x13, [x5, #-32]
    stp     x6, x7, [x0, #32]
    stp     x8, x9, [x0, #48]
    stp     x14, x15, [x0]
    stp     x16, x17, [x0, #16]
    ret
    .size   memmove, . - memmove

    // x0 = destination (returned), w1 = byte, x2 = bytes.
    .global memset
    .type   memset, %function
    .balign 64
memset:
    and     x1, x1, #255
    mov     x3, #0x0101010101010101
    mul     x1, x1, x3
    add     x4, x0, x2
    cmp     x2, #16
    b.lo    3f
    mov     x3, x0
    stp     x1, x1, [x3]
    and     x5, x3, #15
    sub     x3, x3, x5
    add     x3, x3, #16             // aligned; what lies before it is written
1:  sub     x6, x4, x3
    cmp     x6, #64
    b.lt    2f
    stp     x1, x1, [x3]
    stp     x1, x1, [x3, #16]
    stp     x1, x1, [x3, #32]
    stp     x1, x1, [x3, #48]
    add     x3, x3, #64
    b       1b
2:  cmp     x6, #16
    b.lt    5f
    stp     x1, x1, [x3], #16
    sub     x6, x6, #16
    b       2b
5:  stp     x1, x1, [x4, #-16]
    ret
3:  tbz     x2, #3, 4f
    str     x1, [x0]
    str     x1, [x4, #-8]
    ret
4:  tbz     x2, #2, 6f
    str     w1, [x0]
    str     w1, [x4, #-4]
    ret
6:  cbz     x2, 7f
    strb    w1, [x0]
    strb    w1, [x4, #-1]
    lsr     x2, x2, #1
    strb    w1, [x0, x2]
7:  ret
    .size   memset, . - memset

    // x0, x1 = the two, x2 = bytes; w0 = below, at, or above zero.
    .global memcmp
    .global bcmp
    .type   memcmp, %function
    .type   bcmp, %function
    .balign 64
memcmp:
bcmp:
    subs    x2, x2, #8
    b.lo    2f
1:  ldr     x3, [x0], #8
    ldr     x4, [x1], #8
    cmp     x3, x4
    b.ne    5f
    subs    x2, x2, #8
    b.hs    1b
2:  adds    x2, x2, #8              // 0 to 7 left
    b.eq    4f
3:  ldrb    w3, [x0], #1
    ldrb    w4, [x1], #1
    cmp     w3, w4
    b.ne    6f
    subs    x2, x2, #1
    b.ne    3b
4:  mov     w0, #0
    ret
5:  rev     x3, x3                  // the first byte that differs decides: make it the highest
    rev     x4, x4
    cmp     x3, x4
6:  cset    w0, hi
    csinv   w0, w0, wzr, hs
    ret
    .size   memcmp, . - memcmp
    .popsection
"#
);

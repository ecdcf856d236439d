//! The first instructions, the first vectors and the first page table.
//!
//! The flat image begins with the Linux arm64 header; so does the flash image, which is the flat one padded to the
//! flash's size: the same code finds itself at address 0, copies the image to where it was linked, and goes on there.

use core::arch::global_asm;

global_asm!(
    r#"
    .pushsection .text.head, "ax"
    .global _start
_start:
    b       1f                      // code0
    nop                             // code1
    .quad   0                       // text_offset: from a 2 MiB-aligned base
    .quad   __image_size            // image_size, .bss and stacks included
    .quad   2                       // flags: little-endian, 4 KiB pages
    .quad   0
    .quad   0
    .quad   0
    .ascii  "ARM\x64"
    .long   0

1:  adr     x9, _start
    ldr     x10, =_start
    ldr     x12, =ironthread_entry
    cmp     x9, x10
    b.eq    3f
    mov     x0, #0                  // started from flash: nobody passed a tree
    ldr     x11, =__data_end
2:  ldp     x13, x14, [x9], #16
    stp     x13, x14, [x10], #16
    cmp     x10, x11
    b.lo    2b
    dsb     sy
    ic      iallu                   // what was copied is executed next
    dsb     sy
    isb
3:  br      x12
    .ltorg
    .popsection

    // Until core 0 has a stack: say so on the UART, and off. The only known reason is memory that is not there.
    .pushsection .text.early_vectors, "ax"
    .balign 2048
    .global ironthread_early_vectors
ironthread_early_vectors:
    .rept   16
    .balign 128
    b       4f
    .endr
    .balign 128
4:  ldr     x0, ={uart}
    adr     x1, 7f
5:  ldrb    w2, [x1], #1
    cbz     w2, 6f
    strb    w2, [x0]
    mov     x3, #0x4000             // longer than a byte takes; the transmit buffer is 16 deep
8:  sub     x3, x3, #1
    cbnz    x3, 8b
    b       5b
6:  ldr     w0, =0x84000008         // PSCI SYSTEM_OFF, by SMC where EL2 is ours
    cmp     x21, #2
    b.eq    9f
    hvc     #0
    b       .
9:  smc     #0
    b       .
    .ltorg
7:  .asciz  "\r\n!! ironthread stopped: less memory than the image needs (or a fault before there was a stack)\r\n"
    .popsection

    // The first table, until the final ones are built: 2 MiB blocks of devices above the flash (page 0 stays
    // unmapped), then 1 GiB blocks of memory. Non-global, ASID 0.
    .pushsection .rodata.first_table, "a"
    .balign 4096
    .global ironthread_first_table
ironthread_first_table:
    .quad   first_devices + 3
    .set    address, 0x40000000
    .rept   3                       // 1 to 4 GiB: the image and every tree QEMU places
    .quad   address | {ram}
    .set    address, address + 0x40000000
    .endr
    .fill   508, 8, 0
first_devices:
    .fill   64, 8, 0
    .set    address, 0x08000000
    .rept   448
    .quad   address | {device}
    .set    address, address + 0x200000
    .endr
    .popsection
"#,
    // Valid block, accessed, non-global; normal inner-shareable memory, or device memory that never executes.
    ram = const 1 | 1 << 2 | 3 << 8 | 1 << 10 | 1 << 11,
    uart = const crate::UART,
    device = const 1_u64 | 1 << 10 | 1 << 11 | 3 << 53,
);

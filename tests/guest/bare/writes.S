/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Counts, for ever: each number is written to 16 pages of RAM and 16 of the
 * first memory BAR of the device in slot 4.  A page of RAM comes before its page
 * of the device.
 */
    .set MEMORY, 0xe0000000
    .set RAM, 0x200000
    .set PAGES, 0x10000

    .include "entry.inc"

main:
    config_write 4, 0x10, MEMORY
    config_write 4, 0x14, 0
    config_write 4, 0x04, 2
    xor %ebx, %ebx
1:  inc %ebx
    xor %ecx, %ecx
2:  mov %ebx, RAM(%ecx)
    mov %ebx, MEMORY(%ecx)
    add $0x1000, %ecx
    cmp $PAGES, %ecx
    jb 2b
    cmp $100, %ebx
    jne 1b
    mov %ebx, %eax
    say "writing"
    jmp 1b
    .include "vector.inc"

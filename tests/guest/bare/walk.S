/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Goes through the pages of the window of ondemand-mem-pci (slot 4, PAGES of 4
 * KiB), with SPIN rounds of nothing between two: reads the first word of each,
 * and writes the page's address to the third.
 */
    .set MEMORY, 0xa0000000

    .include "entry.inc"

main:
    config_write 4, 0x10, MEMORY
    config_write 4, 0x14, 0
    config_write 4, 0x04, 2
    mov $0, %eax
    say "begin"
    mov $MEMORY, %ebx
1:  mov (%ebx), %eax
    mov %ebx, 8(%ebx)
    mov $SPIN, %ecx
2:  dec %ecx
    jnz 2b
    add $0x1000, %ebx
    cmp $(MEMORY + (PAGES << 12)), %ebx
    jb 1b
    mov $0, %eax
    say "end"
3:  jmp 3b
    .include "vector.inc"

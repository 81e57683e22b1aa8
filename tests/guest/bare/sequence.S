/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Writes COUNT bytes to the debug console: COUNT, COUNT - 1 ... 1, modulo 256. */
    .include "entry.inc"
main:
    mov $COUNT, %ecx
1:  mov %ecx, %eax
    call putc
    dec %ecx
    jnz 1b
    ret
    .include "vector.inc"

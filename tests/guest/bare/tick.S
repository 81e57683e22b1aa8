/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A guest that works: writes '.' to the debug console after each WORK rounds
 * of a loop, for ever.  Each write needs the host's big lock.
 */
    .include "entry.inc"
main:
    mov $WORK, %ecx
1:  dec %ecx
    jnz 1b
    mov $'.', %al
    call putc
    jmp main
    .include "vector.inc"

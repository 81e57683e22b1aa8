/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Reads a register of pci-testdev (slot 4) through a port COUNT times, then
 * ends QEMU by isa-debug-exit at port 0xf4.  For measurements: the difference
 * of two COUNTs is the cost of the reads alone.
 */
    .set TESTPORT, 0xc000

    .include "entry.inc"
main:
    config_write 4, 0x14, TESTPORT
    config_write 4, 0x04, 1
    mov $COUNT, %ecx
    mov $TESTPORT + 8, %edx
1:  in %dx, %al
    dec %ecx
    jnz 1b
    mov $0x10, %al
    out %al, $0xf4
    ret
    .include "vector.inc"

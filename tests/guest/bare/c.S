/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Frame of a payload in C: PAYLOAD.c is linked at 0xf8000 (c.ld), its function
 * payload() comes first, and is called in 32-bit protected mode.
 */
    .include "entry.inc"
main:
    mov $0xf8000, %eax
    jmp *%eax
    .org 0x8000
    .incbin "payload.bin"
    .include "vector.inc"

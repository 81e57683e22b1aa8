/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Reads and writes registers of edu (slot 5, MMIO) and pci-testdev (slot 4,
 * MMIO and ports) COUNT times each, and reports a checksum of all that it
 * read and the devices' own counts.
 */
    .set EDU, 0xe1000000
    .set TESTDEV, 0xe0000000
    .set TESTPORT, 0xc000

    .include "entry.inc"

/* Add %eax to the checksum in %ebp, order matters. */
    .macro mix
    rol $5, %ebp
    add %eax, %ebp
    .endm

main:
    config_write 4, 0x10, TESTDEV
    config_write 4, 0x14, TESTPORT
    config_write 4, 0x04, 3
    config_write 5, 0x10, EDU
    config_write 5, 0x04, 2
    xor %ebp, %ebp

/* edu: identity, then the register that answers with the complement. */
    mov $COUNT, %ecx
1:  movl EDU, %eax
    mix
    movl %ecx, EDU + 4
    movl EDU + 4, %eax
    mix
    dec %ecx
    jnz 1b
    movl EDU, %eax
    say "identity"
    mov %ebp, %eax
    say "edu"

/*
 * pci-testdev, MMIO: test 0 counts the writes of its own data byte, so one
 * write in two counts.
 */
    movb $0, TESTDEV
    movzwl TESTDEV + 4, %ebx
    add $TESTDEV, %ebx
    mov $COUNT, %ecx
1:  movzbl TESTDEV + 8, %eax
    movb %al, (%ebx)
    mix
    not %al
    movb %al, (%ebx)
    dec %ecx
    jnz 1b
    movl TESTDEV + 12, %eax
    say "mmio_count"
    mov %ebp, %eax
    say "mmio"

/* The same through ports. */
    mov $TESTPORT, %dx
    xor %eax, %eax
    out %al, %dx
    mov $TESTPORT + 4, %dx
    in %dx, %ax
    movzwl %ax, %ebx
    add $TESTPORT, %ebx
    mov $COUNT, %ecx
1:  mov $TESTPORT + 8, %edx
    xor %eax, %eax
    in %dx, %al
    mov %ebx, %edx
    out %al, %dx
    mix
    not %al
    out %al, %dx
    dec %ecx
    jnz 1b
    mov $TESTPORT + 12, %edx
    in %dx, %eax
    say "port_count"

/* Last access sizes and an access across registers. */
    movw EDU, %ax
    mix
    movl TESTDEV + 3, %eax
    mix
    movl EDU + 0x2000000, %eax      /* nothing is there */
    mix
    mov %ebp, %eax
    say "checksum"
    mov $0, %eax
    say "end"
    ret
    .include "vector.inc"

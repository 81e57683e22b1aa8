/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One processor writes to the window of ondemand-mem-pci (slot 4, 1 MiB, of a
 * "pc"), again and again, while the other one, after READS reads of its own,
 * ejects the device.
 */
    .set MEMORY, 0xe0000000
    .set SIZE, 0x100000
    .set STEP, 0x404
    .set APIC, 0xfee00000
    .set START, 0x3000              /* where the second one starts */
    .set STOP, 0x9000
    .set STOPPED, 0x9004
    .set BEGUN, 0x9008
    .set EJECT_BUS, 0xae10          /* ACPI's registers for PCI hotplug */
    .set EJECT, 0xae08

    .include "entry.inc"

    .code16
second16:
    cli
    cld
    lgdtl %cs:(gdt_pointer - _start)
    mov %cr0, %eax
    and $0x1fffffff, %eax
    or $1, %eax
    mov %eax, %cr0
    ljmpl $8, $second32

    .code32
second32:
    mov $16, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    movl $1, BEGUN
1:  xor %ebx, %ebx
2:  mov %ebx, MEMORY(%ebx)
    mov MEMORY(%ebx), %eax
    cmpl $0, STOP
    jne 3f
    add $STEP, %ebx
    cmp $SIZE, %ebx
    jb 2b
    jmp 1b
3:  movl $1, STOPPED
4:  cli
    hlt
    jmp 4b

main:
    config_write 4, 0x10, MEMORY
    config_write 4, 0x14, 0
    config_write 4, 0x04, 2
    movl $0, STOP
    movl $0, STOPPED
    movl $0, BEGUN
    movb $0xea, START               /* ljmp $0xf000, $second16 */
    movw $(second16 - _start), START + 1
    movw $0xf000, START + 3
    movl $0x1ff, APIC + 0xf0
    movl $0xc4500, APIC + 0x300     /* INIT, then start, all others */
    mov $0x100000, %ecx
1:  dec %ecx
    jnz 1b
    movl $(0xc4600 | START >> 12), APIC + 0x300
1:  cmpl $1, BEGUN
    jb 1b
    mov $READS, %ecx
    xor %ebx, %ebx
2:  mov MEMORY(%ebx), %eax
    add $STEP, %ebx
    and $(SIZE - 4), %ebx
    dec %ecx
    jnz 2b
    xor %eax, %eax
    mov $EJECT_BUS, %dx
    out %eax, %dx
    mov $(1 << 4), %eax
    mov $EJECT, %dx
    out %eax, %dx
    mov $1000, %ecx
3:  mov MEMORY(%ebx), %eax
    dec %ecx
    jnz 3b
    say "after"
    movl $1, STOP
4:  cmpl $1, STOPPED
    jb 4b
    mov $0, %eax
    say "end"
    ret

    .include "vector.inc"

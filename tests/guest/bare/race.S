/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Two processors write to the window of ondemand-mem-pci (slot 4, 1 MiB) at the
 * same time, side by side, while its granules are filled and its chunks mapped.
 * Each reads back what it wrote; in the end one looks at all of it.
 */
    .set MEMORY, 0xe0000000
    .set WORDS, 0x40000             /* of 4 bytes */
    .set STEP, 8                    /* only one in STEP / 2 is used */
    .set APIC, 0xfee00000
    .set START, 0x3000              /* where the second one starts */
    .set DONE, 0x9000
    .set ERRORS, 0x9004
    .set BEGUN, 0x9008

    .include "entry.inc"

/* work: all words whose number is that in %ebx, modulo STEP */
work:
    lock incl BEGUN
1:  cmpl $2, BEGUN                  /* together */
    jb 1b
2:  imul $0x9e3779b1, %ebx, %eax
    mov %eax, MEMORY(, %ebx, 4)
    cmp %eax, MEMORY(, %ebx, 4)
    je 3f
    lock incl ERRORS
3:  add $STEP, %ebx
    cmp $WORDS, %ebx
    jb 2b
    lock incl DONE
    ret

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
    mov $0x6000, %esp
    mov $1, %ebx
    call work
4:  cli
    hlt
    jmp 4b

main:
    config_write 4, 0x10, MEMORY
    config_write 4, 0x14, 0
    config_write 4, 0x04, 2
    movl $0, DONE
    movl $0, ERRORS
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
    xor %ebx, %ebx
    call work
1:  cmpl $2, DONE
    jb 1b
    mov ERRORS, %eax
    say "errors"

/* What both wrote, and what was between: checksum */
    xor %ebx, %ebx
    xor %ebp, %ebp
1:  rol $5, %ebp
    add MEMORY(, %ebx, 4), %ebp
    inc %ebx
    cmp $WORDS, %ebx
    jb 1b
    mov %ebp, %eax
    say "checksum"
    mov $0, %eax
    say "end"
    ret

    .include "vector.inc"

/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Runs code that lies in the window of ondemand-mem-pci (slot 4, of at least 64
 * KiB), READS reads after it has written there.  With HAMMER it begins with
 * HAMMER reads of what follows the first 32 KiB, whatever these give.
 */
    .ifndef MEMORY                  /* to compare: RAM */
    .set MEMORY, 0xe0000000
    .endif
    .ifndef WRITES                  /* after the reads */
    .set WRITES, 0
    .endif

    .ifndef CODE                    /* where the code is copied to */
    .set CODE, 0x1ffa
    .endif

    .include "entry.inc"

main:
    config_write 4, 0x10, MEMORY
    config_write 4, 0x14, 0
    config_write 4, 0x04, 2

    movzbl MEMORY + 0x1234, %eax
    say "first"
    mov $HAMMER, %ecx
    jecxz 2f
1:  mov MEMORY + 0x8000, %eax
    dec %ecx
    jnz 1b
    say "hammered"

/* Contents, and time to be mapped */
2:  movl $0x12345678, MEMORY + 0x2000
    xor %ebp, %ebp
    mov $READS, %ecx
    jecxz 2f
1:  add MEMORY + 0x2000, %ebp
    dec %ecx
    jnz 1b
2:  mov %ebp, %eax
    say "sum"
    .if WRITES
    mov $WRITES, %ecx
1:  mov %ecx, MEMORY + 0x2000
    dec %ecx
    jnz 1b
    .endif

/* Copy the code there, over the border of two pages, and run it. */
    mov $code, %esi
    mov $(MEMORY + CODE), %edi
    mov $(code_end - code), %ecx
1:  mov (%esi), %al
    mov %al, (%edi)
    inc %esi
    inc %edi
    dec %ecx
    jnz 1b
    mov $(MEMORY + CODE), %eax
    mov $1000, %ecx
    call *%eax
    say "ran"

/* Change the code: what is run must change with it. */
    movb $5, MEMORY + CODE + (changed - code)
    mov $(MEMORY + CODE), %eax
    mov $1000, %ecx
    call *%eax
    say "changed"

/* An atomic operation */
    movl $40, MEMORY + 0x3000
    mov $2, %eax
    lock xadd %eax, MEMORY + 0x3000
    mov MEMORY + 0x3000, %eax
    say "atomic"
    mov $0, %eax
    say "end"
    mov $0x10, %eax                 /* isa-debug-exit, where there is one */
    out %al, $0xf4
    ret

code:
    xor %eax, %eax
1:  .byte 0x83, 0xc0                /* add $3, %eax */
changed:
    .byte 3
    dec %ecx
    jnz 1b
    ret
code_end:
    .include "vector.inc"

/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Runs code that lies in CXL memory.  Plays firmware and driver of a cxl-type3
 * device behind one root port: addresses, then one decoder of 256 MiB at
 * WINDOW, which is above 4 GiB and is seen at 2 GiB by way of paging.  (Long
 * mode, with code of 32 bits: a software KVM has no other paging.)
 * READS reads give the window time, and a reason, to be mapped.
 */
    .set PORT_BUS, 52
    .set DEVICE_BUS, 53
    .set REGISTERS, 0xe0000000
    .set CACHE_MEM, REGISTERS + 0x1000
    .ifndef MEMORY                  /* to compare: RAM */
    .set MEMORY, 0x80000000
    .endif
    .ifndef WRITES                  /* after the reads */
    .set WRITES, 0
    .endif
    .set TABLES, 0x10000            /* two pages of pointers, four directories */

    .include "entry.inc"

/* Write a configuration register of the first device on a bus. */
    .macro bus_write bus, reg, value
    mov $(0x80000000 | (\bus << 16) | \reg), %eax
    mov $0xcf8, %dx
    out %eax, %dx
    mov $\value, %eax
    mov $0xcfc, %dx
    out %eax, %dx
    .endm

/* Map 4 GiB as they are, but 256 MiB at 2 GiB to the window. */
paging:
    mov $(TABLES + 0x5000), %edi
    movl $(TABLES + 0x23), (%edi)
    movl $0, 4(%edi)
    mov $TABLES, %edi
    mov $(TABLES + 0x1023), %eax
    mov $4, %ecx
1:  mov %eax, (%edi)
    movl $0, 4(%edi)
    add $8, %edi
    add $0x1000, %eax
    dec %ecx
    jnz 1b
    mov $(TABLES + 0x1000), %edi
    mov $0xe3, %eax                 /* present, writable, used, 2 MiB */
    mov $2048, %ecx
1:  mov %eax, (%edi)
    movl $0, 4(%edi)
    add $8, %edi
    add $0x200000, %eax
    dec %ecx
    jnz 1b
    mov $(TABLES + 0x3000), %edi    /* of 2 to 3 GiB */
    mov $(WINDOW_LOW | 0xe3), %eax
    mov $128, %ecx
1:  mov %eax, (%edi)
    movl $WINDOW_HIGH, 4(%edi)
    add $8, %edi
    add $0x200000, %eax
    dec %ecx
    jnz 1b
    mov $(TABLES + 0x5000), %eax
    mov %eax, %cr3
    mov %cr4, %eax
    or $0x20, %eax                  /* PAE */
    mov %eax, %cr4
    mov $0xc0000080, %ecx           /* EFER: long mode */
    rdmsr
    or $0x100, %eax
    wrmsr
    mov %cr0, %eax
    or $0x80000000, %eax
    mov %eax, %cr0
    jmp 1f
1:  ret

/* Find the HDM decoders from the capability headers: %ebx. */
find_decoders:
    mov $CACHE_MEM, %esi
    mov CACHE_MEM, %ecx
    shr $24, %ecx
1:  add $4, %esi
    mov (%esi), %eax
    cmp $5, %ax
    je 2f
    dec %ecx
    jnz 1b
2:  shr $20, %eax
    lea CACHE_MEM(%eax), %ebx
    ret

main:
    call paging
    bus_write PORT_BUS, 0x18, (PORT_BUS | DEVICE_BUS << 8 | DEVICE_BUS << 16)
    bus_write PORT_BUS, 0x20, 0xe0f0e000
    bus_write PORT_BUS, 0x04, 6
    bus_write DEVICE_BUS, 0x10, REGISTERS
    bus_write DEVICE_BUS, 0x04, 6
    call find_decoders
    mov %ebx, %eax
    say "decoders"
    movl $WINDOW_LOW, 0x10(%ebx)
    movl $WINDOW_HIGH, 0x14(%ebx)
    movl $0x10000000, 0x18(%ebx)
    movl $0, 0x1c(%ebx)
    movl $0x200, 0x20(%ebx)         /* commit */
    movl 0x20(%ebx), %eax
    say "control"

/* Contents, and time to be mapped */
    movl $0x12345678, MEMORY + 0x2000
    mov $READS, %ecx
    xor %ebp, %ebp
1:  add MEMORY + 0x2000, %ebp
    dec %ecx
    jnz 1b
    mov %ebp, %eax
    say "sum"
    .if WRITES
    mov $WRITES, %ecx
1:  mov %ecx, MEMORY + 0x2000
    dec %ecx
    jnz 1b
    .endif

/* Copy the code there, and run it. */
    mov $code, %esi
    mov $MEMORY, %edi
    mov $(code_end - code), %ecx
1:  mov (%esi), %al
    mov %al, (%edi)
    inc %esi
    inc %edi
    dec %ecx
    jnz 1b
    mov $MEMORY, %eax
    mov $1000, %ecx
    call *%eax
    say "ran"

/* Change the code: what is run must change with it. */
    movb $5, MEMORY + (changed - code)
    mov $MEMORY, %eax
    mov $1000, %ecx
    call *%eax
    say "changed"
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

/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Guest of svm-gif-test: it is the firmware, and all there is.
 *
 * vCPU 0 clears the global interrupt flag, sends an interrupt to itself, and
 * sets the flag again: the interrupt comes then, and not before.  vCPU 1 loads
 * its own FPU environment all the time, which is no business of vCPU 0.
 *
 * The image starts at 0xf0000.  vCPU 0 comes here from the reset vector, vCPU 1
 * from the startup IPI of vCPU 0, both in real mode at f000:0000.
 */

#include "layout.h"

#define VECTOR            0x40
#define APIC              0xfee00000
#define MSR_EFER          0xc0000080
#define EFER_SVME         (1 << 12)

.code16
.globl start
start:
        cli
        lgdtl   %cs:(gdtr - start)
        mov     %cr0, %eax
        or      $1, %eax
        mov     %eax, %cr0
        ljmpl   $8, $protected

.code32
protected:
        mov     $16, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        mov     APIC + 0x20, %ebx
        shr     $24, %ebx
        jnz     load

        mov     $STACK, %esp
        lidtl   idtr
        mov     $MSR_EFER, %ecx
        rdmsr
        or      $EFER_SVME, %eax
        wrmsr
        movl    $0x1ff, APIC + 0xf0     /* enable it */
        fninit
        fnstenv FPU_ENV
        /* Startup IPI to all but self, entry 0xf0000 */
        movl    $0x000c46f0, APIC + 0x300
        xor     %edi, %edi
        sti

round:
        clgi
        movl    $(0x00044000 | VECTOR), APIC + 0x300    /* to self */
        jmp     1f                      /* taken between blocks */
1:
        cmp     %edi, DELIVERED
        je      2f
        incl    EARLY
2:
        stgi
        jmp     3f
3:
        inc     %edi
        cmp     %edi, DELIVERED
        je      5f
        incl    LOST
        /* it comes when the flag is set once more */
4:
        stgi
        jmp     1f
1:
        cmp     %edi, DELIVERED
        jne     4b
5:
        mov     %edi, ROUNDS
        jmp     round

load:
        fldenv  FPU_ENV
        incl    LOADS
        jmp     load

interrupt:
        incl    DELIVERED
        movl    $0, APIC + 0xb0         /* end of interrupt */
        iret

.balign 8
gdt:
        .quad   0
        .quad   0x00cf9b000000ffff
        .quad   0x00cf93000000ffff
gdtr:
        .word   gdtr - gdt - 1
        .long   gdt

/* All vectors but the last are empty. */
.balign 8
idt_base:
        .fill   VECTOR, 8, 0
        .word   interrupt - start       /* the image is at 0xf0000 */
        .word   8
        .word   0x8e00                  /* present, 32-bit interrupt gate */
        .word   0xf
idtr:
        .word   idtr - idt_base - 1
        .long   idt_base

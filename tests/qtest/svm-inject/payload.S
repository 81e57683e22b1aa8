/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Guest of svm-inject-test: it is the firmware, and all there is.
 *
 * A hypervisor runs a nested guest over and over, each time with an injected
 * interrupt, and compares how many of them the nested guest took.  That one
 * has its interrupts disabled, so nothing else may deliver one.
 *
 * The image starts at 0xf0000 and is entered in real mode at f000:0000.
 * Offsets and bits of the VMCB are those of AMD's manual, volume 2, appendix B.
 */

#include "layout.h"

#define VECTOR            0x40
#define CODE              8
#define DATA              16
#define MSR_EFER          0xc0000080
#define EFER_SVME         (1 << 12)
#define MSR_VM_HSAVE_PA   0xc0010117
#define EXIT_VMMCALL      0x81

/* A segment register of the VMCB: selector and attributes, limit, base 0 */
.macro FLAT offset selector attributes
        movl    $((\attributes) << 16 | (\selector)), VMCB + \offset
        movl    $0xffffffff, VMCB + \offset + 4
.endm

.code16
.globl start
start:
        cli
        lgdtl   %cs:(gdtr - start)
        mov     %cr0, %eax
        or      $1, %eax
        mov     %eax, %cr0
        ljmpl   $CODE, $protected

.code32
protected:
        mov     $DATA, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        mov     $STACK, %esp

        mov     $MSR_EFER, %ecx
        rdmsr
        or      $EFER_SVME, %eax
        wrmsr
        mov     $MSR_VM_HSAVE_PA, %ecx
        mov     $HOST_SAVE, %eax
        xor     %edx, %edx
        wrmsr

        movl    $3, VMCB + 0x10         /* intercept VMRUN and VMMCALL */
        movl    $1, VMCB + 0x58         /* ASID */
        FLAT    0x400 DATA 0xc93        /* ES */
        FLAT    0x410 CODE 0xc9b
        FLAT    0x420 DATA 0xc93        /* SS */
        FLAT    0x430 DATA 0xc93
        movl    $(gdtr - gdt - 1), VMCB + 0x464
        movl    $gdt, VMCB + 0x468
        movl    $(idt_end - idt_base - 1), VMCB + 0x484
        movl    $idt_base, VMCB + 0x488
        movl    $EFER_SVME, VMCB + 0x4d0
        movl    $0x11, VMCB + 0x558     /* CR0: PE, ET */
        movl    $0x400, VMCB + 0x560    /* DR7 */
        movl    $0xffff0ff0, VMCB + 0x568
        movl    $2, VMCB + 0x570        /* RFLAGS: interrupts disabled */

round:
        movl    $nested, VMCB + 0x578
        movl    $(STACK - 0x1000), VMCB + 0x5d8
        movl    $(1 << 31 | VECTOR), VMCB + 0xa8
        incl    ROUNDS
        mov     $VMCB, %eax
        vmrun   %eax

        mov     VMCB + 0x70, %eax
        cmp     $EXIT_VMMCALL, %eax
        je      1f
        mov     %eax, BAD_EXIT
1:
        mov     ROUNDS, %eax
        cmp     %eax, DELIVERED
        je      round
        incl    WRONG
        mov     %eax, DELIVERED
        jmp     round

/* Outlast some of the requests to leave the loop of the vCPU. */
nested:
        mov     $300000, %ecx
1:
        dec     %ecx
        jnz     1b
        vmmcall

interrupt:
        incl    DELIVERED
        iret

.balign 8
gdt:
        .quad   0
        .quad   0x00cf9b000000ffff
        .quad   0x00cf93000000ffff
gdtr:
        .word   gdtr - gdt - 1
        .long   gdt

/* All vectors but the last are empty: a wrong one ends in a shutdown exit. */
.balign 8
idt_base:
        .fill   VECTOR, 8, 0
        .word   interrupt - start       /* the image is at 0xf0000 */
        .word   CODE
        .word   0x8e00                  /* present, 32-bit interrupt gate */
        .word   0xf
idt_end:

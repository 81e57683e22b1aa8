/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Guest of tcg-dispatch-test: it is the firmware, and all there is.
 *
 * Each vCPU reads the identification of its own edu device, then writes the
 * number of the round to the liveness register and expects the inverse back.
 * vCPU 0 and 1 do this forever; further ones stay halted.
 *
 * The image starts at 0xf0000.  vCPU 0 comes here from the reset vector, the
 * others from the startup IPI of vCPU 0, all in real mode at f000:0000.
 */

#include "layout.h"

/*
 * What precedes an access.  The loop outlasts a topology change, so that the
 * vCPU is not waiting for the BQL all the while.  The long block is for the
 * request to leave: it is noticed between two blocks only, so that the access
 * at the end of this one finds a new topology and the request still pending.
 */
.macro BUSY
        mov     $20000, %ecx
10:
        dec     %ecx
        jnz     10b
        fld1
.rept 100
        fldl2e
        fyl2x
.endr
        fstp    %st(0)
.endm

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
        fninit

        /* %ebx: vCPU, %edi: its counters, %esi: its device */
        mov     APIC + 0x20, %ebx
        shr     $24, %ebx
        cmp     $2, %ebx
        jae     park
        imul    $COUNTERS_STRIDE, %ebx, %edi
        add     $COUNTERS, %edi
        imul    $EDU_STRIDE, %ebx, %esi
        add     $EDU, %esi
        test    %ebx, %ebx
        jnz     round

        /* The test maps the devices, then says go. */
wait:
        cmpl    $0, GO
        je      wait
        /* Startup IPI to all but self, entry 0xf0000 */
        movl    $0x000c46f0, APIC + 0x300

round:
        BUSY
        mov     (%esi), %eax
        cmp     $EDU_ID, %eax
        je      1f
        incl    WRONG_READS(%edi)
1:
        BUSY
        mov     ROUNDS(%edi), %ecx
        mov     %ecx, EDU_LIVENESS(%esi)
        not     %ecx
        mov     EDU_LIVENESS(%esi), %eax
        cmp     %ecx, %eax
        je      3f
        /* Was it the read or the write that went astray? */
        mov     EDU_LIVENESS(%esi), %eax
        cmp     %ecx, %eax
        je      2f
        incl    WRONG_WRITES(%edi)
        jmp     3f
2:
        incl    WRONG_READS(%edi)
3:
        incl    ROUNDS(%edi)
        jmp     round

park:
        hlt
        jmp     park

.balign 8
gdt:
        .quad   0
        .quad   0x00cf9b000000ffff
        .quad   0x00cf93000000ffff
gdtr:
        .word   gdtr - gdt - 1
        .long   gdt

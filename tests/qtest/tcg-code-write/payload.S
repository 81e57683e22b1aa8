/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Guest of tcg-code-write-test: it is the firmware, and all there is.
 *
 * vCPU 0 changes the constant that a function returns, then tells its number.
 * vCPU 1 calls the function all the time.  Once it has read the number and
 * executed a serializing instruction, the function has to return it, as the
 * manuals of the processors say of cross-modifying code.
 *
 * The image starts at 0xf0000.  vCPU 0 comes here from the reset vector, vCPU 1
 * from the startup IPI of vCPU 0, both in real mode at f000:0000.
 */

#include "layout.h"

#define APIC              0xfee00000

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
        jnz     call

        /* mov $0, %eax; ret.  The constant is aligned. */
        movb    $0xb8, FUNCTION + 3
        movl    $0, FUNCTION + 4
        movb    $0xc3, FUNCTION + 8
wait:
        cmpl    $0, MODE
        je      wait
        /* Startup IPI to all but self, entry 0xf0000 */
        movl    $0x000c46f0, APIC + 0x300
        xor     %edi, %edi

write:
        inc     %edi
        cmpl    $MODE_ATOMIC, MODE
        je      1f
        mov     %edi, FUNCTION + 4
        jmp     2f
1:
        mov     %edi, %eax
        xchg    %eax, FUNCTION + 4
2:
        mov     %edi, WRITTEN
3:
        pause
        cmp     %edi, SEEN
        jne     3b
        jmp     write

call:
        mov     $STACK, %esp
        mov     $(FUNCTION + 3), %edi
        xor     %esi, %esi
again:
        mov     WRITTEN, %ebp
        cmp     %esi, %ebp
        je      1f
        xor     %eax, %eax
        cpuid                           /* serializes; changes %ebx to %edx */
1:
        call    *%edi
        cmp     %esi, %ebp
        je      again
        mov     %ebp, %esi
        cmp     %ebp, %eax
        je      2f
        incl    OLD
2:
        mov     %ebp, SEEN
        jmp     again

.balign 8
gdt:
        .quad   0
        .quad   0x00cf9b000000ffff
        .quad   0x00cf93000000ffff
gdtr:
        .word   gdtr - gdt - 1
        .long   gdt

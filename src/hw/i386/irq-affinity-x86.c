/*
 * Interrupt affinity that follows the vCPU: logical addresses of x86 vCPUs
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/module.h"
#include "cpu.h"
#include "hw/i386/apic_internal.h"
#include "system/hw_accel.h"
#include "system/irq-affinity.h"

/* Bits 31:28 of DFR: all ones is the flat model */
#define DFR_FLAT 0xf

static void read_logical(CPUState *cpu, IRQDestVCPU *dest)
{
    X86CPU *x86 = X86_CPU(cpu);
    APICCommonState *apic;

    if (!x86->apic_state) {
        return;
    }
    apic = APIC_COMMON(x86->apic_state);
    cpu_synchronize_state(cpu);
    dest->x2apic = apic->apicbase & MSR_IA32_APICBASE_EXTD;
    dest->ldr = apic->log_dest;
    dest->cluster = apic->dest_mode != DFR_FLAT;
}

static void register_logical(void)
{
    irq_affinity_set_logical(read_logical);
}

type_init(register_logical)

/*
 * Interrupt affinity that follows the vCPU: which vCPU gets an interrupt
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bitops.h"
#include "system/irq-affinity-dest.h"

#define MSI_BASE 0xfee
#define MSI_ADDR_LOGICAL 2      /* bit */
#define MSI_MODE_FIXED 0
#define MSI_MODE_LOWEST 1

#define XAPIC_BROADCAST 0xff
#define X2APIC_BROADCAST 0xffffffffu

static bool match_logical(const IRQDestVCPU *c, uint32_t dest)
{
    if (c->x2apic) {
        return dest == X2APIC_BROADCAST ||
               (dest >> 16 == c->apic_id >> 4 &&
                extract32(dest, c->apic_id & 15, 1));
    }
    if (dest > XAPIC_BROADCAST) {
        return false;
    }
    if (c->cluster && dest != XAPIC_BROADCAST) {
        return dest >> 4 == c->ldr >> 4 && (dest & c->ldr & 15);
    }
    return dest & c->ldr;
}

static bool match_physical(const IRQDestVCPU *c, uint32_t dest)
{
    if (dest == X2APIC_BROADCAST) {
        return true;
    }
    if (dest == XAPIC_BROADCAST && c->logical_known && !c->x2apic) {
        return true;
    }
    return dest == c->apic_id;
}

int irq_dest_vcpu(uint64_t addr, uint32_t data, const IRQDestVCPU *vcpus,
                  unsigned count)
{
    uint32_t dest = extract64(addr, 12, 8) | (addr >> 32 & 0xffffff00);
    bool logical = extract64(addr, MSI_ADDR_LOGICAL, 1);
    unsigned mode = extract32(data, 8, 3);
    int found = IRQ_DEST_NONE;

    if (extract64(addr, 20, 12) != MSI_BASE ||
        (mode != MSI_MODE_FIXED && mode != MSI_MODE_LOWEST)) {
        return IRQ_DEST_NONE;
    }
    for (unsigned i = 0; i < count; i++) {
        const IRQDestVCPU *c = &vcpus[i];

        /* 0xff is everybody for an xAPIC and one APIC ID for an x2APIC */
        if (!c->logical_known && (logical || dest == XAPIC_BROADCAST)) {
            return IRQ_DEST_ASK;
        }
        if (!(logical ? match_logical(c, dest) : match_physical(c, dest))) {
            continue;
        }
        if (found >= 0) {
            return IRQ_DEST_SEVERAL;
        }
        found = c->vcpu;
    }
    return found;
}

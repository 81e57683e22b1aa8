/*
 * Interrupt affinity that follows the vCPU
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * An assigned device interrupts one host processor while the vCPU that owns
 * the interrupt runs on another; each such interrupt is forwarded by an
 * inter-processor interrupt.  An irq-affinity object finds out which vCPU owns
 * which of the host's interrupts, and where that vCPU runs, and sends the
 * interrupts there (US 9,003,094 and US 8,880,764).
 *
 * Everything is protected by the BQL.
 */

#ifndef SYSTEM_IRQ_AFFINITY_H
#define SYSTEM_IRQ_AFFINITY_H

#include "hw/core/cpu.h"
#include "qom/object.h"
#include "system/irq-affinity-dest.h"

#define TYPE_IRQ_AFFINITY "irq-affinity"
OBJECT_DECLARE_SIMPLE_TYPE(IRQAffinity, IRQ_AFFINITY)

/**
 * struct IRQAffinitySource: where interrupts of a device come from
 * @begin: called before each round of @message, during which no route changes;
 *         or NULL
 * @vectors: number of MSI or MSI-X vectors that it may have
 * @message: the message with which a vector reaches the guest, as of a KVM
 *           route; false: the guest has not set it up, or it goes another way
 * @proof: descriptor of the device's VFIO group or of the device, which shows
 *         a helper that the device is ours; -1: none
 */
typedef struct IRQAffinitySource {
    void (*begin)(void *opaque);
    unsigned (*vectors)(void *opaque);
    bool (*message)(void *opaque, unsigned vector, uint64_t *addr,
                    uint32_t *data);
    int (*proof)(void *opaque);
} IRQAffinitySource;

typedef struct IRQAffinityClient IRQAffinityClient;

/**
 * irq_affinity_attach: let a device's interrupts follow
 * @affinity: the object; the client keeps a reference
 * @source: static
 * @opaque: for @source
 * @device: the device
 * @host: its PCI address in the host, as in /sys/bus/pci/devices
 * @errp: set if they cannot: the vCPUs have no threads of their own, or the
 *        machine's interrupts are not understood
 *
 * Returns: to be given to irq_affinity_detach(); NULL: see @errp.
 */
IRQAffinityClient *irq_affinity_attach(IRQAffinity *affinity,
                                       const IRQAffinitySource *source,
                                       void *opaque, DeviceState *device,
                                       const char *host, Error **errp);

/**
 * irq_affinity_detach: end of that
 * @client: freed; or NULL
 * @restore: give the interrupts the affinity back that they had; false when
 *           the device goes, and they with it
 */
void irq_affinity_detach(IRQAffinityClient *client, bool restore);

/**
 * irq_affinity_changed: interrupts of the host, or routes, may have changed
 *
 * Everything is looked at anew, soon and once for many calls.
 */
void irq_affinity_changed(void);

/**
 * irq_affinity_vcpu_created: a vCPU's thread runs
 * @cpu: the vCPU
 *
 * Context: BQL held, the vCPU's thread.
 */
void irq_affinity_vcpu_created(CPUState *cpu);

/**
 * irq_affinity_vcpu_destroyed: a vCPU's thread ends
 * @cpu: the vCPU
 *
 * Context: BQL held, the vCPU's thread.
 */
void irq_affinity_vcpu_destroyed(CPUState *cpu);

/**
 * irq_affinity_set_logical: tell how to read a vCPU's logical address
 * @read: fills all but @vcpu and @apic_id.  Called in the vCPU's thread with
 *        the BQL held.
 *
 * Called once, by the architecture; without it no device can be attached.
 */
void irq_affinity_set_logical(void (*read)(CPUState *cpu,
                                           IRQDestVCPU *dest));

#endif

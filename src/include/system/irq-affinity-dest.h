/*
 * Interrupt affinity that follows the vCPU: which vCPU gets an interrupt
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A message-signalled interrupt of an x86 machine names its destination by
 * APIC ID or by logical address.  The message is the one of a KVM route:
 * interrupt remapping and the extended destination ID have been dealt with,
 * bits 31:8 of the destination are in the upper half of the address.
 *
 * Source: Intel SDM volume 3, sections 11.6.2, 11.11 and 11.12.10; KVM's
 * api.rst, KVM_SET_GSI_ROUTING with KVM_CAP_X2APIC_API.
 */

#ifndef SYSTEM_IRQ_AFFINITY_DEST_H
#define SYSTEM_IRQ_AFFINITY_DEST_H

/**
 * struct IRQDestVCPU: what decides whether a vCPU is addressed
 * @vcpu: its index
 * @apic_id: physical APIC ID
 * @logical_known: the rest holds; else only physical addresses match
 * @x2apic: its local APIC is in x2APIC mode
 * @ldr: xAPIC: the logical APIC ID, bits 31:24 of LDR.  In x2APIC mode it
 *       follows from @apic_id.
 * @cluster: xAPIC: cluster model, else the flat model (DFR)
 */
typedef struct IRQDestVCPU {
    unsigned vcpu;
    uint32_t apic_id;
    bool logical_known;
    bool x2apic;
    uint8_t ldr;
    bool cluster;
} IRQDestVCPU;

/* In place of a vCPU */
#define IRQ_DEST_NONE (-1)      /* none */
#define IRQ_DEST_SEVERAL (-2)   /* more than one, or it cannot be told */
#define IRQ_DEST_ASK (-3)       /* @logical_known is needed of every vCPU */

/**
 * irq_dest_vcpu: which vCPU a message is for
 * @addr: address of the message
 * @data: its data
 * @vcpus: all vCPUs
 * @count: number of them
 *
 * Returns: index of the only vCPU that gets it, or one of IRQ_DEST_*.
 */
int irq_dest_vcpu(uint64_t addr, uint32_t data, const IRQDestVCPU *vcpus,
                  unsigned count);

#endif

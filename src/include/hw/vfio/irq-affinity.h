/*
 * Interrupt affinity that follows the vCPU: interrupts of vfio-pci devices
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_VFIO_IRQ_AFFINITY_H
#define HW_VFIO_IRQ_AFFINITY_H

#include "system/irq-affinity.h"

struct VFIOPCIDevice;

/**
 * vfio_irq_affinity_realize: begin to follow, if the device has the property
 * @vdev: the device, ready for use
 * @errp: set if that is not possible
 *
 * Returns: false: see @errp.
 */
bool vfio_irq_affinity_realize(struct VFIOPCIDevice *vdev, Error **errp);

/**
 * vfio_irq_affinity_exit: the device goes
 * @vdev: the device, before its interrupts are freed
 */
void vfio_irq_affinity_exit(struct VFIOPCIDevice *vdev);

/**
 * vfio_irq_affinity_class_init: add the property "irq-affinity"
 * @oc: the class
 */
void vfio_irq_affinity_class_init(ObjectClass *oc);

#endif

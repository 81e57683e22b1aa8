/*
 * Failover: the guest has let go of a device that stays plugged
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_PCI_FAILOVER_H
#define HW_PCI_FAILOVER_H

#include "hw/pci/pci_device.h"

/**
 * pci_failover_stop_dma: a failover primary was ejected and stays plugged
 * @dev: the primary; it must not write memory any more
 *
 * Context: BQL held.
 */
void pci_failover_stop_dma(PCIDevice *dev);

#endif

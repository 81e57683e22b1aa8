/*
 * Failover: the guest has let go of a device that stays plugged
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "hw/pci/pci-failover.h"

void pci_failover_stop_dma(PCIDevice *dev)
{
    uint32_t command = dev->config_read(dev, PCI_COMMAND, 2);

    /*
     * A guest's driver does so when it is well-behaved; what a device writes
     * from here on would be nobody's.
     */
    dev->config_write(dev, PCI_COMMAND, command & ~PCI_COMMAND_MASTER, 2);
}

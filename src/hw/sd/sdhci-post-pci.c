/*
 * Posted writes of an SD host controller: the PCI device's configuration
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Upstream's sdhci-pci leaves its PCI configuration out of the stream, so that
 * its registers are gone after a migration.  A transfer that waits for the card
 * would wait for ever.  It is added where posted writes are on, and only there,
 * so that the stream without them stays upstream's.
 */

#include "qemu/osdep.h"
#include "hw/sd/sdhci.h"
#include "migration/vmstate.h"

static const VMStateDescription vmstate_pci = {
    .name = "sdhci-pci",
    .version_id = 1,
    .minimum_version_id = 1,
    .fields = (const VMStateField[]) {
        VMSTATE_PCI_DEVICE(pcidev, SDHCIState),
        VMSTATE_END_OF_LIST()
    },
};

void sdhci_post_pci_realize(SDHCIState *s)
{
    if (s->post.on) {
        vmstate_register(VMSTATE_IF(s), VMSTATE_INSTANCE_ID_ANY, &vmstate_pci,
                         s);
    }
}

void sdhci_post_pci_exit(SDHCIState *s)
{
    if (s->post.on) {
        vmstate_unregister(VMSTATE_IF(s), &vmstate_pci, s);
    }
}

/*
 * Growth of storage without a virtual machine, as in qemu-storage-daemon
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/space-request.h"

void space_vm_init(void)
{
}

bool space_vm_is_running(void)
{
    return true;
}

void space_vm_resolved(void)
{
}

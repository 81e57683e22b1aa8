/*
 * Asynchronous pipes as character devices: where there is no VM
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "../chardev/char-zpipe-vm.h"

bool zpipe_vm_attach(ZpipeChardev *s, bool share_ram, Error **errp)
{
    if (share_ram) {
        error_setg(errp, "zpipe: share-ram=on needs a VM");
        return false;
    }
    return true;
}

void zpipe_vm_detach(ZpipeChardev *s)
{
}

void zpipe_vm_new_handle(ZpipeChardev *s)
{
}

bool zpipe_vm_is_stopped(void)
{
    return false;
}

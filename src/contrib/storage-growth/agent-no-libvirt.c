/*
 * Storage growth: an agent that was built without libvirt
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <gio/gio.h>
#include "agent.h"

bool sg_libvirt_follow(char **uris, GError **error)
{
    g_set_error(error, G_IO_ERROR, G_IO_ERROR_NOT_SUPPORTED,
                "--libvirt: built without libvirt (package libvirt-dev)");
    return false;
}

/*
 * Write tracking where there is no VFIO
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "monitor/hmp.h"
#include "monitor/monitor.h"
#include "qapi/qapi-commands-write-tracking.h"

WriteTrackingInfoList *qmp_query_write_tracking(Error **errp)
{
    return NULL;
}

void hmp_info_write_tracking(Monitor *mon, const QDict *qdict)
{
    monitor_printf(mon, "This target has no assigned devices\n");
}

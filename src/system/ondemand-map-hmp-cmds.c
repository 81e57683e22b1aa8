/*
 * HMP: info ondemand-map
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "monitor/hmp.h"
#include "monitor/monitor.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-ondemand-map.h"

static void print_range(Monitor *mon, const OndemandRange *range)
{
    monitor_printf(mon, "  0x%" PRIx64 "-0x%" PRIx64 " %s", range->address,
                   range->address + range->size - 1,
                   OndemandState_str(range->state));
    if (range->has_refusal) {
        monitor_printf(mon, " (%s)", OndemandRefusal_str(range->refusal));
    }
    monitor_printf(mon, ", hits %" PRIu64 "\n", range->hits);
}

static void print_map(Monitor *mon, const OndemandMapInfo *info)
{
    monitor_printf(mon, "%s: policy %s, threshold %u\n", info->name,
                   info->policy, info->threshold);
    monitor_printf(mon, "  traps %" PRIu64 ", maps %" PRIu64 ", unmaps %"
                   PRIu64 ", refused %" PRIu64 ", forced %" PRIu64
                   ", mapped %" PRIu64 " bytes",
                   info->traps, info->maps, info->unmaps, info->refused,
                   info->forced, info->mapped);
    if (info->has_resident) {
        monitor_printf(mon, ", resident %" PRIu64 " bytes", info->resident);
    }
    monitor_printf(mon, "\n");
    for (OndemandRangeList *r = info->ranges; r; r = r->next) {
        print_range(mon, r->value);
    }
}

void hmp_info_ondemand_map(Monitor *mon, const QDict *qdict)
{
    g_autoptr(OndemandMapInfoList) list = qmp_query_ondemand_map(&error_abort);

    if (!list) {
        monitor_printf(mon, "No device uses an ondemand-policy\n");
    }
    for (OndemandMapInfoList *i = list; i; i = i->next) {
        print_map(mon, i->value);
    }
}

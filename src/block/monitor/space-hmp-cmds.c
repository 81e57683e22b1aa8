/*
 * HMP: info block-space-requests, block_space_resolve
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "monitor/hmp.h"
#include "monitor/monitor.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-space.h"
#include "qobject/qdict.h"

static void print_request(Monitor *mon, const BlockSpaceRequest *r)
{
    monitor_printf(mon, "%" PRIu64 ": %s (%s), %s, %s, attempt %u\n", r->id,
                   r->node_name, r->qom_path ?: "no device",
                   BlockSpaceCause_str(r->cause),
                   BlockSpaceState_str(r->state), r->attempt);
    monitor_printf(mon, "  %s %s, size %" PRIu64, r->driver,
                   r->filename ?: "", r->size);
    if (r->has_available) {
        monitor_printf(mon, ", available %" PRIu64, r->available);
    }
    monitor_printf(mon, ", needed %" PRIu64 ", rate %" PRIu64 "/s\n",
                   r->needed, r->rate);
    monitor_printf(mon, "  held %u%s, for %" PRIu64 " ms\n", r->held,
                   r->stopped ? ", stopped" : "", r->age_ms);
}

void hmp_info_block_space_requests(Monitor *mon, const QDict *qdict)
{
    g_autoptr(BlockSpaceRequestList) list =
        qmp_query_block_space_requests(&error_abort);

    if (!list) {
        monitor_printf(mon, "No storage is requested\n");
    }
    for (BlockSpaceRequestList *i = list; i; i = i->next) {
        print_request(mon, i->value);
    }
}

void coroutine_fn hmp_block_space_resolve(Monitor *mon, const QDict *qdict)
{
    g_autoptr(BlockSpaceAnswer) answer = NULL;
    Error *err = NULL;
    int result;

    result = qapi_enum_parse(&BlockSpaceResult_lookup,
                             qdict_get_str(qdict, "result"), -1, &err);
    if (!err) {
        answer = qmp_block_space_resolve(qdict_get_int(qdict, "id"), result,
                                         &err);
    }
    if (answer) {
        monitor_printf(mon, "%s\n", BlockSpaceOutcome_str(answer->outcome));
    }
    hmp_handle_error(mon, err);
}

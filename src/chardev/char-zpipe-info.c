/*
 * Asynchronous pipes as character devices: what they have done
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/qapi-commands-zpipe.h"
#include "qemu/lockable.h"
#include "chardev-internal.h"
#include "char-zpipe-internal.h"

/* Of chardevs that are gone.  Protected by the BQL. */
static ZpipeTotals gone;

static void add_counts(struct zpipe_count *sum, const struct zpipe_count *add)
{
    for (int i = 0; i < ZPIPE_MECHANISMS; i++) {
        sum[i].messages += add[i].messages;
        sum[i].bytes += add[i].bytes;
    }
}

static void add_lib(struct zpipe_stats *sum, const struct zpipe_stats *add)
{
    add_counts(sum->tx, add->tx);
    add_counts(sum->rx, add->rx);
    for (int i = 0; i < ZPIPE_REASONS; i++) {
        sum->fallback[i] += add->fallback[i];
    }
    sum->kicks += add->kicks;
    sum->kicks_saved += add->kicks_saved;
    sum->connects += add->connects;
    sum->resumed += add->resumed;
    sum->regions += add->regions;
    sum->peer_regions += add->peer_regions;
    sum->refused_regions += add->refused_regions;
    sum->cma_errors += add->cma_errors;
    sum->copied += add->copied;
}

void zpipe_totals_add(ZpipeTotals *sum, const ZpipeTotals *add)
{
    add_lib(&sum->lib, &add->lib);
    sum->lost_bytes += add->lost_bytes;
    sum->dropped_bytes += add->dropped_bytes;
    sum->closed += add->closed;
    sum->refused_clients += add->refused_clients;
    sum->cancelled += add->cancelled;
    sum->yields += add->yields;
    sum->ram_refused += add->ram_refused;
}

void zpipe_totals_add_handle(ZpipeTotals *sum, struct zpipe *zp)
{
    struct zpipe_stats stats;

    zpipe_get_stats(zp, &stats);
    /* levels, which end with it */
    stats.regions = stats.peer_regions = 0;
    add_lib(&sum->lib, &stats);
}

void zpipe_chr_totals(ZpipeChardev *s, ZpipeTotals *totals)
{
    struct zpipe_stats stats;
    struct zpipe_info info;

    QEMU_LOCK_GUARD(&s->lock);
    *totals = s->totals;
    zpipe_get_stats(s->zp, &stats);
    zpipe_get_info(s->zp, &info);
    stats.regions -= info.withheld_regions;
    add_lib(&totals->lib, &stats);
}

void zpipe_totals_keep(ZpipeChardev *s)
{
    zpipe_totals_add_handle(&s->totals, s->zp);
    zpipe_totals_add(&gone, &s->totals);
}

static int add_chardev(Object *obj, void *opaque)
{
    if (object_dynamic_cast(obj, TYPE_CHARDEV_ZPIPE)) {
        ZpipeTotals totals;

        zpipe_chr_totals(CHARDEV_ZPIPE(obj), &totals);
        zpipe_totals_add(opaque, &totals);
    }
    return 0;
}

void zpipe_totals_all(ZpipeTotals *totals)
{
    *totals = gone;
    object_child_foreach(get_chardevs_root(), add_chardev, totals);
}

/* ------------------------------------------------------------ query-zpipe */

static ZpipeState state_of(ZpipeChardev *s)
{
    if (!s->started) {
        return ZPIPE_STATE_WAITING_FOR_VM;
    }
    switch (zpipe_state(s->zp)) {
    case ZPIPE_CONNECTED:
        return ZPIPE_STATE_CONNECTED;
    case ZPIPE_CONNECTING:
        return ZPIPE_STATE_CONNECTING;
    default:
        return CHARDEV(s)->be_open ? ZPIPE_STATE_HELD
                                   : ZPIPE_STATE_DISCONNECTED;
    }
}

static void add_connection(ZpipeInfo *info, struct zpipe *zp)
{
    struct zpipe_info lib;

    zpipe_get_info(zp, &lib);
    info->has_peer_pid = true;
    info->peer_pid = lib.peer_pid;
    info->has_peer_uid = true;
    info->peer_uid = lib.peer_uid;
    info->has_withheld_regions = true;
    info->withheld_regions = lib.withheld_regions;
    info->has_ring_size = true;
    info->ring_size = lib.ring_bytes;
    info->has_peer_ring_size = true;
    info->peer_ring_size = lib.peer_ring_bytes;
    info->has_cma_read = true;
    info->cma_read = lib.cma_read;
    info->has_cma_write = true;
    info->cma_write = lib.cma_write;
}

static ZpipeCountList *count_list(const struct zpipe_stats *stats)
{
    ZpipeCountList *list = NULL;

    for (int i = ZPIPE_MECHANISM__MAX - 1; i > ZPIPE_MECHANISM_AUTO; i--) {
        int m = zpipe_mechanism_parse(ZpipeMechanism_str(i));
        ZpipeCount *count;

        if (m < 0) {
            continue;
        }
        count = g_new0(ZpipeCount, 1);
        count->mechanism = i;
        count->tx_messages = stats->tx[m].messages;
        count->tx_bytes = stats->tx[m].bytes;
        count->rx_messages = stats->rx[m].messages;
        count->rx_bytes = stats->rx[m].bytes;
        QAPI_LIST_PREPEND(list, count);
    }
    return list;
}

static ZpipeFallbackList *fallback_list(const struct zpipe_stats *stats)
{
    ZpipeFallbackList *list = NULL;

    for (int i = ZPIPE_REASONS - 1; i >= 0; i--) {
        ZpipeFallback *fallback = g_new0(ZpipeFallback, 1);

        fallback->reason = g_strdup(zpipe_reason_name(i));
        fallback->count = stats->fallback[i];
        QAPI_LIST_PREPEND(list, fallback);
    }
    return list;
}

static ZpipeInfo *info_new(ZpipeChardev *s)
{
    ZpipeInfo *info = g_new0(ZpipeInfo, 1);
    ZpipeTotals totals;

    zpipe_chr_totals(s, &totals);
    info->label = g_strdup(CHARDEV(s)->label);
    info->path = g_strdup(s->path);
    info->server = s->server;
    info->regions = totals.lib.regions;
    info->peer_regions = totals.lib.peer_regions;
    info->connects = totals.lib.connects;
    info->lost_bytes = totals.lost_bytes;
    info->dropped_bytes = totals.dropped_bytes;
    info->counts = count_list(&totals.lib);
    info->fallbacks = fallback_list(&totals.lib);
    info->error = s->error && *s->error ? g_strdup(s->error) : NULL;

    QEMU_LOCK_GUARD(&s->lock);
    info->state = state_of(s);
    info->tx_requests = s->tx_requests;
    info->rx_requests = s->rx_requests;
    if (info->state == ZPIPE_STATE_CONNECTED) {
        add_connection(info, s->zp);
    }
    return info;
}

static int add_info(Object *obj, void *opaque)
{
    ZpipeInfoList **list = opaque;

    if (object_dynamic_cast(obj, TYPE_CHARDEV_ZPIPE)) {
        QAPI_LIST_PREPEND(*list, info_new(CHARDEV_ZPIPE(obj)));
    }
    return 0;
}

ZpipeInfoList *qmp_query_zpipe(Error **errp)
{
    ZpipeInfoList *list = NULL;

    object_child_foreach(get_chardevs_root(), add_info, &list);
    return list;
}

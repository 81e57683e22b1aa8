/*
 * Second stacks of a virtual machine: properties and statistics
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/query-sizes.h"
#include "monitor/hmp.h"
#include "monitor/monitor.h"
#include "qapi/error.h"
#include "qapi/visitor.h"
#include "qemu/notify.h"
#include "system/async-call-vm.h"
#include "system/hotpath-stats.h"
#include "system/runstate.h"

#define MAX_SITES 16
#define MAX_INFOS 4
#define DEADLINE_PROPERTY "query-block-deadline-ms"

/* Levels, before the counters of the sites */
static const HotpathStat levels[] = {
    { "async-call-parked", STATS_TYPE_INSTANT },
    { "async-call-parked-peak", STATS_TYPE_PEAK },
    { "async-call-jobs", STATS_TYPE_INSTANT },
    { "async-call-jobs-refused", STATS_TYPE_CUMULATIVE },
    { "async-call-threads", STATS_TYPE_INSTANT },
    { "async-call-sizes-left-out", STATS_TYPE_CUMULATIVE },
};

static const struct {
    const char *name;
    size_t offset;
} counters[] = {
    { "inlined", offsetof(AsyncCallSite, inlined) },
    { "parked", offsetof(AsyncCallSite, parked) },
    { "refused", offsetof(AsyncCallSite, refused) },
    { "cancelled", offsetof(AsyncCallSite, cancelled) },
    { "timed-out", offsetof(AsyncCallSite, timed_out) },
};

static AsyncCallSite *sites[MAX_SITES];
static unsigned n_sites;

static AsyncCallInfo *infos[MAX_INFOS];
static unsigned n_infos;

static HotpathStat stats[ARRAY_SIZE(levels) +
                         MAX_SITES * ARRAY_SIZE(counters)];

static uint64_t counter(const AsyncCallSite *site, int i)
{
    return *(const uint64_t *)((const char *)site + counters[i].offset);
}

static bool read_stats(CPUState *cpu, uint64_t *values)
{
    AsyncCallTotals totals;

    async_call_totals(&totals);
    *values++ = totals.parked;
    *values++ = totals.parked_peak;
    *values++ = totals.jobs;
    *values++ = totals.jobs_refused;
    *values++ = totals.threads;
    *values++ = block_sizes_left_out();
    for (int s = 0; s < n_sites; s++) {
        for (int i = 0; i < ARRAY_SIZE(counters); i++) {
            *values++ = counter(sites[s], i);
        }
    }
    return true;
}

static HotpathStatsGroup group = {
    .target = STATS_TARGET_VM,
    .stats = stats,
    .read = read_stats,
};

static void shutdown_notify(Notifier *notifier, void *data)
{
    async_call_cancel_all();
}

static Notifier shutdown_notifier = { .notify = shutdown_notify };

static void init_once(void)
{
    if (!group.count) {
        memcpy(stats, levels, sizeof(levels));
        group.count = ARRAY_SIZE(levels);
        hotpath_stats_register(&group);
        qemu_register_shutdown_notifier(&shutdown_notifier);
    }
}

void async_call_show_site(AsyncCallSite *site)
{
    init_once();
    for (int s = 0; s < n_sites; s++) {
        if (sites[s] == site) {
            return;
        }
    }
    assert(n_sites < MAX_SITES);
    sites[n_sites++] = site;
    for (int i = 0; i < ARRAY_SIZE(counters); i++) {
        stats[group.count++] = (HotpathStat) {
            g_strdup_printf("async-call-%s-%s", site->name, counters[i].name),
            STATS_TYPE_CUMULATIVE,
        };
    }
}

void async_call_show_info(AsyncCallInfo *info)
{
    for (int i = 0; i < n_infos; i++) {
        if (infos[i] == info) {
            return;
        }
    }
    assert(n_infos < MAX_INFOS);
    infos[n_infos++] = info;
}

void hmp_info_async_calls(Monitor *mon, const QDict *qdict)
{
    AsyncCallTotals totals;

    async_call_totals(&totals);
    monitor_printf(mon, "parked: %" PRIu64 " (most: %" PRIu64 ", limit: %u)\n"
                   "host calls in threads: %" PRIu64 " (limit: %u, refused: %"
                   PRIu64 "), threads: %" PRIu64 "\n",
                   totals.parked, totals.parked_peak, ASYNC_CALL_MAX_PARKED,
                   totals.jobs, ASYNC_CALL_MAX_JOBS, totals.jobs_refused,
                   totals.threads);
    for (int s = 0; s < n_sites; s++) {
        monitor_printf(mon, "%s: now %u", sites[s]->name, sites[s]->now);
        for (int i = 0; i < ARRAY_SIZE(counters); i++) {
            monitor_printf(mon, ", %s %" PRIu64, counters[i].name,
                           counter(sites[s], i));
        }
        monitor_printf(mon, "\n");
    }
    for (int i = 0; i < n_infos; i++) {
        infos[i](mon);
    }
}

static void get_deadline(Object *obj, Visitor *v, const char *name,
                         void *opaque, Error **errp)
{
    uint32_t value = block_sizes_deadline();

    visit_type_uint32(v, name, &value, errp);
}

static void set_deadline(Object *obj, Visitor *v, const char *name,
                         void *opaque, Error **errp)
{
    uint32_t value;

    if (!visit_type_uint32(v, name, &value, errp)) {
        return;
    }
    if (value > BLOCK_SIZES_MAX_DEADLINE_MS) {
        error_setg(errp, "Property '%s' is %" PRIu32 ", but must be from 0 to "
                   "%u", name, value, BLOCK_SIZES_MAX_DEADLINE_MS);
        return;
    }
    /*
     * To close one of two descriptors of a file drops the process's POSIX
     * locks on it, and with them the image's.
     */
    if (value && !qemu_has_ofd_lock()) {
        error_setg(errp, "Property '%s' is %" PRIu32 ", but must be 0: this "
                   "host has no open file description locks", name, value);
        return;
    }
    block_sizes_set_deadline(value);
    if (value) {
        async_call_show_site(&block_sizes_query_site);
        async_call_show_site(&block_sizes_fstat_site);
    }
}

void async_call_machine_class_init(ObjectClass *oc)
{
    object_class_property_add(oc, DEADLINE_PROPERTY, "uint32", get_deadline,
                              set_deadline, NULL, NULL);
    object_class_property_set_description(oc, DEADLINE_PROPERTY,
        "How long query-block waits for the allocated sizes of files, without "
        "stopping the guest, before it leaves them out, in milliseconds "
        "(0: as long as it takes, and the guest stops; default: 0)");
}

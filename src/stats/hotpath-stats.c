/*
 * The query-stats provider "hotpath"
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * All mechanisms of the series report here.  Their groups are merged, so that
 * a target has one result, as query-stats promises.  Everything runs under the
 * BQL; groups are never unregistered.
 */

#include "qemu/osdep.h"
#include "system/hotpath-stats.h"

static GPtrArray *groups;

static Stats *stat_new(const char *name, uint64_t value)
{
    Stats *stat = g_new0(Stats, 1);

    stat->name = g_strdup(name);
    stat->value = g_new0(StatsValue, 1);
    stat->value->type = QTYPE_QNUM;
    stat->value->u.scalar = value;
    return stat;
}

/* Put the group's statistics that @names asks for in front of @list. */
static StatsList *group_values(const HotpathStatsGroup *group, CPUState *cpu,
                               strList *names, StatsList *list)
{
    g_autofree uint64_t *values = g_new0(uint64_t, group->count);

    if (!group->read(cpu, values)) {
        return list;
    }
    for (int i = group->count - 1; i >= 0; i--) {
        const char *name = group->stats[i].name;

        if (apply_str_list_filter(name, names)) {
            QAPI_LIST_PREPEND(list, stat_new(name, values[i]));
        }
    }
    return list;
}

static void add_target(StatsResultList **result, StatsTarget target,
                       CPUState *cpu, strList *names)
{
    StatsList *list = NULL;

    for (int i = groups->len - 1; i >= 0; i--) {
        const HotpathStatsGroup *group = g_ptr_array_index(groups, i);

        if (group->target == target) {
            list = group_values(group, cpu, names, list);
        }
    }
    if (list) {
        add_stats_entry(result, STATS_PROVIDER_HOTPATH,
                        cpu ? cpu->parent_obj.canonical_path : NULL, list);
    }
}

static void query_stats(StatsResultList **result, StatsTarget target,
                        strList *names, strList *targets, Error **errp)
{
    CPUState *cpu;

    switch (target) {
    case STATS_TARGET_VM:
        add_target(result, target, NULL, names);
        break;
    case STATS_TARGET_VCPU:
        CPU_FOREACH(cpu) {
            if (apply_str_list_filter(cpu->parent_obj.canonical_path,
                                      targets)) {
                add_target(result, target, cpu, names);
            }
        }
        break;
    default:
        break;
    }
}

static StatsSchemaValueList *group_schema(const HotpathStatsGroup *group,
                                          StatsSchemaValueList *list)
{
    for (int i = group->count - 1; i >= 0; i--) {
        StatsSchemaValue *value = g_new0(StatsSchemaValue, 1);

        value->name = g_strdup(group->stats[i].name);
        value->type = group->stats[i].type;
        QAPI_LIST_PREPEND(list, value);
    }
    return list;
}

static void query_schemas(StatsSchemaList **result, Error **errp)
{
    static const StatsTarget targets[] = {
        STATS_TARGET_VM, STATS_TARGET_VCPU
    };

    for (int t = 0; t < ARRAY_SIZE(targets); t++) {
        StatsSchemaValueList *list = NULL;

        for (int i = groups->len - 1; i >= 0; i--) {
            const HotpathStatsGroup *group = g_ptr_array_index(groups, i);

            if (group->target == targets[t]) {
                list = group_schema(group, list);
            }
        }
        if (list) {
            add_stats_schema(result, STATS_PROVIDER_HOTPATH, targets[t], list);
        }
    }
}

void hotpath_stats_register(const HotpathStatsGroup *group)
{
    if (!groups) {
        groups = g_ptr_array_new();
        add_stats_callbacks(STATS_PROVIDER_HOTPATH, query_stats,
                            query_schemas);
    }
    if (!g_ptr_array_find(groups, group, NULL)) {
        g_ptr_array_add(groups, (gpointer)group);
    }
}

/*
 * The query-stats provider "hotpath"
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef SYSTEM_HOTPATH_STATS_H
#define SYSTEM_HOTPATH_STATS_H

#include "hw/core/cpu.h"
#include "system/stats.h"

/**
 * struct HotpathStat: one statistic
 * @name: ``<mechanism>-<what>``, with the unit in it where there is one
 * @type: cumulative (a counter), instant (a level) or peak
 */
typedef struct HotpathStat {
    const char *name;
    StatsType type;
} HotpathStat;

/**
 * struct HotpathStatsGroup: the statistics of one mechanism for one target
 * @target: STATS_TARGET_VM or STATS_TARGET_VCPU
 * @stats: what there is
 * @count: number of elements of @stats
 * @read: store one value for each element of @stats; return false if this
 *        vCPU has none.  @cpu is NULL when the target is the VM.
 *        Called with the BQL held.
 */
typedef struct HotpathStatsGroup {
    StatsTarget target;
    const HotpathStat *stats;
    unsigned count;
    bool (*read)(CPUState *cpu, uint64_t *values);
} HotpathStatsGroup;

/**
 * hotpath_stats_register: make a mechanism's statistics visible
 * @group: static data; registering it twice is harmless
 *
 * A mechanism registers when it is switched on, so that a VM which uses none
 * has no such provider.
 *
 * Context: BQL held.
 */
void hotpath_stats_register(const HotpathStatsGroup *group);

#endif

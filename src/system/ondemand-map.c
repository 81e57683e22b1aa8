/*
 * On-demand mapping: regions, chunks and commits
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Under TCG a vCPU that runs while a commit is made goes on with the accesses
 * it knows: each vCPU exchanges its view of the memory map together with its
 * TLB (system/physmem.c, tcg_commit_cpu()), and until then its accesses trap
 * and reach the same RAM.  So a commit needs no vCPU to stand still, and the
 * main loop makes it under TCG as well as under KVM.
 */

#include "qemu/osdep.h"
#include "qemu/main-loop.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-ondemand-map.h"
#include "exec/target_page.h"
#include "hw/qdev-core.h"
#include "hw/virtio/vhost.h"
#include "system/address-spaces.h"
#include "system/hotpath-stats.h"
#include "system/kvm.h"
#include "system/ondemand-map.h"
#include "memory-internal.h"
#include "trace.h"

/*
 * Slots left to others (memory hotplug plans with what is free).  KVM of today
 * has 32,764.
 */
#define SLOT_RESERVE 64

/* Each chunk adds itself and cuts the trapping region in two. */
#define SECTIONS_PER_CHUNK 2

static QTAILQ_HEAD(, OndemandMap) maps = QTAILQ_HEAD_INITIALIZER(maps);

/* What regions that are gone counted, and what is not counted per region */
static struct {
    OndemandCounters gone;
    uint64_t commits;
    uint64_t commit_ns;
    uint64_t commit_max_ns;
} totals;

static unsigned batch_chunks;   /* mapped in the commit that is being made */

/*
 * Statistics
 */

enum {
    STAT_TRAPS, STAT_MAPS, STAT_UNMAPS, STAT_COMMITS, STAT_COMMIT_NS,
    STAT_COMMIT_MAX_NS, STAT_MAPPED_BYTES, STAT_MAPPED_CHUNKS, STAT_REFUSED
};

static const HotpathStat stats[] = {
    [STAT_TRAPS] = { "ondemand-map-traps", STATS_TYPE_CUMULATIVE },
    [STAT_MAPS] = { "ondemand-map-maps", STATS_TYPE_CUMULATIVE },
    [STAT_UNMAPS] = { "ondemand-map-unmaps", STATS_TYPE_CUMULATIVE },
    [STAT_COMMITS] = { "ondemand-map-commits", STATS_TYPE_CUMULATIVE },
    [STAT_COMMIT_NS] = { "ondemand-map-commit-ns", STATS_TYPE_CUMULATIVE },
    [STAT_COMMIT_MAX_NS] = { "ondemand-map-commit-max-ns", STATS_TYPE_PEAK },
    [STAT_MAPPED_BYTES] = { "ondemand-map-mapped-bytes", STATS_TYPE_INSTANT },
    [STAT_MAPPED_CHUNKS] = { "ondemand-map-mapped-chunks",
                             STATS_TYPE_INSTANT },
    [STAT_REFUSED + ONDEMAND_REFUSAL_CHUNKS] = {
        "ondemand-map-refused-chunks", STATS_TYPE_CUMULATIVE },
    [STAT_REFUSED + ONDEMAND_REFUSAL_MAX_MAPPED] = {
        "ondemand-map-refused-max-mapped", STATS_TYPE_CUMULATIVE },
    [STAT_REFUSED + ONDEMAND_REFUSAL_SECTIONS] = {
        "ondemand-map-refused-sections", STATS_TYPE_CUMULATIVE },
    [STAT_REFUSED + ONDEMAND_REFUSAL_SLOTS] = {
        "ondemand-map-refused-slots", STATS_TYPE_CUMULATIVE },
    [STAT_REFUSED + ONDEMAND_REFUSAL_VHOST] = {
        "ondemand-map-refused-vhost", STATS_TYPE_CUMULATIVE },
};
QEMU_BUILD_BUG_ON(ARRAY_SIZE(stats) != STAT_REFUSED + ONDEMAND_REFUSAL__MAX);

static void add_counters(OndemandCounters *sum, const OndemandCounters *c)
{
    sum->traps += c->traps;
    sum->maps += c->maps;
    sum->unmaps += c->unmaps;
    for (int i = 0; i < ONDEMAND_REFUSAL__MAX; i++) {
        sum->refused[i] += c->refused[i];
    }
}

static bool read_stats(CPUState *cpu, uint64_t *values)
{
    OndemandCounters sum = totals.gone;
    OndemandMap *map;

    QTAILQ_FOREACH(map, &maps, next) {
        add_counters(&sum, &map->counters);
        values[STAT_MAPPED_BYTES] += map->mapped;
        values[STAT_MAPPED_CHUNKS] += map->chunks_mapped;
    }
    values[STAT_TRAPS] = sum.traps;
    values[STAT_MAPS] = sum.maps;
    values[STAT_UNMAPS] = sum.unmaps;
    values[STAT_COMMITS] = totals.commits;
    values[STAT_COMMIT_NS] = totals.commit_ns;
    values[STAT_COMMIT_MAX_NS] = totals.commit_max_ns;
    for (int i = 0; i < ONDEMAND_REFUSAL__MAX; i++) {
        values[STAT_REFUSED + i] = sum.refused[i];
    }
    return true;
}

static const HotpathStatsGroup stats_group = {
    .target = STATS_TARGET_VM,
    .stats = stats,
    .count = ARRAY_SIZE(stats),
    .read = read_stats,
};

static uint64_t all_refused(const OndemandCounters *c)
{
    uint64_t sum = 0;

    for (int i = 0; i < ONDEMAND_REFUSAL__MAX; i++) {
        sum += c->refused[i];
    }
    return sum;
}

static OndemandMapInfo *map_info(OndemandMap *map)
{
    OndemandMapInfo *info = g_new0(OndemandMapInfo, 1);

    info->name = g_strdup(map->name);
    info->policy = object_get_canonical_path(OBJECT(map->policy));
    info->threshold = ondemand_policy_threshold(map->policy);
    info->traps = map->counters.traps;
    info->maps = map->counters.maps;
    info->unmaps = map->counters.unmaps;
    info->refused = all_refused(&map->counters);
    info->mapped = map->mapped;
    info->ranges = map->ops->ranges(map);
    return info;
}

OndemandMapInfoList *qmp_query_ondemand_map(Error **errp)
{
    OndemandMapInfoList *list = NULL, **tail = &list;
    OndemandMap *map;

    QTAILQ_FOREACH(map, &maps, next) {
        QAPI_LIST_APPEND(tail, map_info(map));
    }
    return list;
}

/*
 * Limits.  What is beyond one aborts QEMU elsewhere, so they are held against
 * what is in use before each mapping.
 */

/* The number of sections of a memory map is held in 12 bits of a TLB entry. */
static bool sections_left(void)
{
    FlatView *view = address_space_get_flatview(&address_space_memory);
    unsigned used = view->nr + batch_chunks * SECTIONS_PER_CHUNK;

    flatview_unref(view);
    return used + SECTIONS_PER_CHUNK <= qemu_target_page_size() / 2;
}

static bool limit_exceeded(OndemandMap *map, uint64_t size,
                           OndemandRefusal *why)
{
    OndemandPolicy *policy = map->policy;

    if (map->chunks_mapped >= policy->chunks) {
        *why = ONDEMAND_REFUSAL_CHUNKS;
    } else if (size > policy->max_mapped - policy->mapped) {
        *why = ONDEMAND_REFUSAL_MAX_MAPPED;
    } else if (!sections_left()) {
        *why = ONDEMAND_REFUSAL_SECTIONS;
    } else if (vhost_get_free_memslots() != UINT_MAX) {
        /*
         * Rings may lie in memory that traps: vhost then uses a copy, and
         * aborts when the ring's address turns out to be elsewhere.
         */
        *why = ONDEMAND_REFUSAL_VHOST;
    } else if (kvm_enabled() &&
               kvm_get_free_memslots() <= SLOT_RESERVE + batch_chunks) {
        *why = ONDEMAND_REFUSAL_SLOTS;
    } else {
        return false;
    }
    return true;
}

/*
 * Chunks
 */

bool ondemand_chunk_map(OndemandMap *map, OndemandChunk *chunk,
                        MemoryRegion *container, hwaddr addr,
                        MemoryRegion *ram, hwaddr offset, uint64_t size,
                        OndemandRefusal *why)
{
    assert(!chunk->alias);
    if (limit_exceeded(map, size, why)) {
        map->counters.refused[*why]++;
        trace_ondemand_map_refused(map->name, addr, size,
                                   OndemandRefusal_str(*why));
        return false;
    }
    chunk->alias = g_new0(MemoryRegion, 1);
    memory_region_init_alias(chunk->alias, memory_region_owner(container),
                             "ondemand-chunk", ram, offset, size);
    /* a slot that grew or shrank would have to be made anew */
    memory_region_set_unmergeable(chunk->alias, true);
    memory_region_add_subregion_overlap(container, addr, chunk->alias, 1);
    map->mapped += size;
    map->chunks_mapped++;
    map->policy->mapped += size;
    map->counters.maps++;
    batch_chunks++;
    trace_ondemand_map_chunk(map->name, addr, size, offset);
    return true;
}

void ondemand_chunk_unmap(OndemandMap *map, OndemandChunk *chunk)
{
    MemoryRegion *alias = chunk->alias;
    uint64_t size;

    if (!alias) {
        return;
    }
    size = memory_region_size(alias);
    trace_ondemand_map_unmap(map->name, alias->addr, size);
    memory_region_del_subregion(alias->container, alias);
    /* no view refers to an alias, only to what it stands for */
    object_unparent(OBJECT(alias));
    g_free(alias);
    chunk->alias = NULL;
    map->mapped -= size;
    map->chunks_mapped--;
    map->policy->mapped -= size;
    map->counters.unmaps++;
}

/*
 * Commits
 */

static void policy_commit(void *opaque)
{
    OndemandPolicy *policy = opaque;
    int64_t start_ns = get_clock(), elapsed_ns;
    OndemandMap *map;

    batch_chunks = 0;
    memory_region_transaction_begin();
    while ((map = QTAILQ_FIRST(&policy->queue))) {
        QTAILQ_REMOVE(&policy->queue, map, queue_next);
        map->queued = false;
        map->ops->commit(map);
    }
    memory_region_transaction_commit();
    elapsed_ns = get_clock() - start_ns;

    policy->next_commit_ns = qemu_clock_get_ns(QEMU_CLOCK_REALTIME) +
        ratelimit_calculate_delay(&policy->limit, 1);
    if (batch_chunks) {
        totals.commits++;
        totals.commit_ns += elapsed_ns;
        totals.commit_max_ns = MAX(totals.commit_max_ns, elapsed_ns);
    }
    trace_ondemand_map_commit(batch_chunks, elapsed_ns);
    batch_chunks = 0;
}

void ondemand_map_queue(OndemandMap *map)
{
    OndemandPolicy *policy = map->policy;

    if (map->queued) {
        return;
    }
    map->queued = true;
    QTAILQ_INSERT_TAIL(&policy->queue, map, queue_next);
    if (qemu_clock_get_ns(QEMU_CLOCK_REALTIME) >= policy->next_commit_ns) {
        qemu_bh_schedule(policy->bh);
    } else {
        timer_mod(policy->timer, policy->next_commit_ns);
    }
}

void ondemand_map_policy_start(OndemandPolicy *policy)
{
    policy->bh = qemu_bh_new(policy_commit, policy);
    policy->timer = timer_new_ns(QEMU_CLOCK_REALTIME, policy_commit, policy);
}

void ondemand_map_policy_stop(OndemandPolicy *policy)
{
    if (policy->bh) {
        qemu_bh_delete(policy->bh);
        timer_free(policy->timer);
    }
}

/*
 * Registration
 */

bool ondemand_map_register(OndemandMap *map, DeviceState *owner,
                           OndemandPolicy *policy, const OndemandMapOps *ops,
                           Error **errp)
{
    /*
     * Devices that access memory by themselves declare that none may be
     * discarded under them; memory that is unmapped is no better.
     */
    if (ram_block_discard_require(true)) {
        error_setg(errp, "Property 'ondemand-policy' cannot be used together "
                   "with assigned devices (VFIO, vDPA): they cannot wait for "
                   "memory to be mapped");
        return false;
    }
    map->name = object_get_canonical_path(OBJECT(owner));
    map->policy = policy;
    map->ops = ops;
    object_ref(policy);
    policy->users++;
    QTAILQ_INSERT_TAIL(&maps, map, next);
    hotpath_stats_register(&stats_group);
    trace_ondemand_map_register(map->name);
    return true;
}

void ondemand_map_unregister(OndemandMap *map)
{
    assert(!map->chunks_mapped);
    trace_ondemand_map_unregister(map->name);
    add_counters(&totals.gone, &map->counters);
    if (map->queued) {
        QTAILQ_REMOVE(&map->policy->queue, map, queue_next);
    }
    QTAILQ_REMOVE(&maps, map, next);
    map->policy->users--;
    object_unref(map->policy);
    g_free(map->name);
    ram_block_discard_require(false);
}

bool ondemand_map_allow_dma(Error **errp)
{
    if (QTAILQ_EMPTY(&maps)) {
        return true;
    }
    error_setg(errp, "Devices cannot be assigned (VFIO) while '%s' has the "
               "property 'ondemand-policy': they cannot wait for memory to be "
               "mapped", QTAILQ_FIRST(&maps)->name);
    return false;
}

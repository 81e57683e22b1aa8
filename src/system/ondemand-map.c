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
#include "qemu/accel.h"
#include "qemu/main-loop.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-ondemand-map.h"
#include "exec/target_page.h"
#include "hw/mem/memory-device.h"
#include "hw/qdev-core.h"
#include "hw/virtio/vhost.h"
#include "migration/misc.h"
#include "system/address-spaces.h"
#include "system/hotpath-stats.h"
#include "system/kvm.h"
#include "system/ondemand-map.h"
#include "system/qtest.h"
#include "system/tcg.h"
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
unsigned ondemand_map_regions;

/* What regions that are gone counted, and what is not counted per region */
static struct {
    OndemandCounters gone;
    uint64_t commits;
    uint64_t commit_ns;
    uint64_t commit_max_ns;
} totals;

static unsigned batch_chunks;   /* mapped in the commit that is being made */
static unsigned all_chunks;     /* mapped in all regions */

/*
 * Statistics
 */

enum {
    STAT_TRAPS, STAT_MAPS, STAT_UNMAPS, STAT_COMMITS, STAT_COMMIT_NS,
    STAT_COMMIT_MAX_NS, STAT_MAPPED_BYTES, STAT_MAPPED_CHUNKS,
    STAT_RESIDENT_BYTES, STAT_REFUSED,
    STAT_FORCED = STAT_REFUSED + ONDEMAND_REFUSAL__MAX
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
    [STAT_RESIDENT_BYTES] = { "ondemand-map-resident-bytes",
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
    [STAT_REFUSED + ONDEMAND_REFUSAL_MIGRATION] = {
        "ondemand-map-refused-migration", STATS_TYPE_CUMULATIVE },
    [STAT_REFUSED + ONDEMAND_REFUSAL_BACKING] = {
        "ondemand-map-refused-backing", STATS_TYPE_CUMULATIVE },
    [STAT_FORCED + ONDEMAND_FORCE_FETCH] = {
        "ondemand-map-forced-fetch", STATS_TYPE_CUMULATIVE },
    [STAT_FORCED + ONDEMAND_FORCE_ATOMIC] = {
        "ondemand-map-forced-atomic", STATS_TYPE_CUMULATIVE },
    [STAT_FORCED + ONDEMAND_FORCE_DMA] = {
        "ondemand-map-forced-dma", STATS_TYPE_CUMULATIVE },
    [STAT_FORCED + ONDEMAND_FORCE_DUMP] = {
        "ondemand-map-forced-dump", STATS_TYPE_CUMULATIVE },
};
QEMU_BUILD_BUG_ON(ARRAY_SIZE(stats) != STAT_FORCED + ONDEMAND_FORCE__MAX);

static void add_counters(OndemandCounters *sum, const OndemandCounters *c)
{
    stat64_add(&sum->traps, stat64_get(&c->traps));
    sum->maps += c->maps;
    sum->unmaps += c->unmaps;
    for (int i = 0; i < ONDEMAND_REFUSAL__MAX; i++) {
        sum->refused[i] += c->refused[i];
    }
    for (int i = 0; i < ONDEMAND_FORCE__MAX; i++) {
        sum->forced[i] += c->forced[i];
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
        if (map->ops->resident) {
            values[STAT_RESIDENT_BYTES] += map->ops->resident(map);
        }
    }
    values[STAT_TRAPS] = stat64_get(&sum.traps);
    values[STAT_MAPS] = sum.maps;
    values[STAT_UNMAPS] = sum.unmaps;
    values[STAT_COMMITS] = totals.commits;
    values[STAT_COMMIT_NS] = totals.commit_ns;
    values[STAT_COMMIT_MAX_NS] = totals.commit_max_ns;
    for (int i = 0; i < ONDEMAND_REFUSAL__MAX; i++) {
        values[STAT_REFUSED + i] = sum.refused[i];
    }
    for (int i = 0; i < ONDEMAND_FORCE__MAX; i++) {
        values[STAT_FORCED + i] = sum.forced[i];
    }
    return true;
}

static const HotpathStatsGroup stats_group = {
    .target = STATS_TARGET_VM,
    .stats = stats,
    .count = ARRAY_SIZE(stats),
    .read = read_stats,
};

static uint64_t sum_of(const uint64_t *values, unsigned count)
{
    uint64_t sum = 0;

    for (unsigned i = 0; i < count; i++) {
        sum += values[i];
    }
    return sum;
}

static OndemandMapInfo *map_info(OndemandMap *map)
{
    OndemandMapInfo *info = g_new0(OndemandMapInfo, 1);

    info->name = g_strdup(map->name);
    info->policy = object_get_canonical_path(OBJECT(map->policy));
    info->threshold = ondemand_policy_threshold(map->policy);
    info->traps = stat64_get(&map->counters.traps);
    info->maps = map->counters.maps;
    info->unmaps = map->counters.unmaps;
    info->refused = sum_of(map->counters.refused, ONDEMAND_REFUSAL__MAX);
    info->forced = sum_of(map->counters.forced, ONDEMAND_FORCE__MAX);
    info->mapped = map->mapped;
    if (map->ops->resident) {
        info->has_resident = true;
        info->resident = map->ops->resident(map);
    }
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

/*
 * The number of sections of a memory map is held in 12 bits of a TLB entry.
 * Chunks of a BAR that the guest has switched off are not in the view, but may
 * be at any time: so all are counted on top of the view, those in it twice.
 */
static bool sections_left(void)
{
    FlatView *view = address_space_get_flatview(&address_space_memory);
    unsigned used = view->nr + all_chunks * SECTIONS_PER_CHUNK;

    flatview_unref(view);
    return used + SECTIONS_PER_CHUNK <= qemu_target_page_size() / 2;
}

/*
 * The same goes for slots: chunks of a BAR that is switched off use none now.
 * Memory devices that will want more have said how many.
 */
static bool slots_left(void)
{
    return kvm_get_free_memslots() > SLOT_RESERVE + all_chunks +
                                     memory_devices_get_reserved_memslots();
}

unsigned ondemand_map_chunks(void)
{
    return all_chunks;
}

static bool limit_exceeded(OndemandMap *map, uint64_t size,
                           OndemandRefusal *why)
{
    OndemandPolicy *policy = map->policy;

    if (map->chunks_mapped >= policy->chunks) {
        *why = ONDEMAND_REFUSAL_CHUNKS;
    } else if (size > policy->max_mapped - policy->mapped) {
        *why = ONDEMAND_REFUSAL_MAX_MAPPED;
    } else if (migration_is_running()) {
        /* users of dirty logs have seen the memory map at its start */
        *why = ONDEMAND_REFUSAL_MIGRATION;
    } else if (!sections_left()) {
        *why = ONDEMAND_REFUSAL_SECTIONS;
    } else if (vhost_get_free_memslots() != UINT_MAX) {
        /*
         * Rings may lie in memory that traps: vhost then uses a copy, and
         * aborts when the ring's address turns out to be elsewhere.
         */
        *why = ONDEMAND_REFUSAL_VHOST;
    } else if (kvm_enabled() && !slots_left()) {
        *why = ONDEMAND_REFUSAL_SLOTS;
    } else {
        return false;
    }
    return true;
}

bool ondemand_map_check_limits(OndemandMap *map, uint64_t size,
                               OndemandRefusal *why)
{
    if (limit_exceeded(map, size, why)) {
        ondemand_map_refused(map, *why);
        return false;
    }
    return true;
}

void ondemand_map_refused(OndemandMap *map, OndemandRefusal why)
{
    map->counters.refused[why]++;
    trace_ondemand_map_refused(map->name, OndemandRefusal_str(why));
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
    if (!ondemand_map_check_limits(map, size, why)) {
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
    all_chunks++;
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
    all_chunks--;
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

/*
 * Forced mappings
 */

/* The one request that is not served yet; @pending protects the others. */
static struct {
    bool pending;               /* qatomic */
    MemoryRegion *mr;           /* a reference is held */
    hwaddr addr;
    OndemandForce why;
    QEMUBH *bh;                 /* from the first region on */
} request;

int ondemand_map_force_state(MemoryRegion *mr, hwaddr addr, OndemandForce why)
{
    OndemandMap *map;

    QTAILQ_FOREACH(map, &maps, next) {
        int state = map->ops->force(map, mr, addr, why);

        if (state >= 0) {
            trace_ondemand_map_force(map->name, addr, OndemandForce_str(why),
                                     OndemandState_str(state));
            return state;
        }
    }
    return -1;
}

static void serve_request(void *opaque)
{
    ondemand_map_force_state(request.mr, request.addr, request.why);
    memory_region_unref(request.mr);
    qatomic_store_release(&request.pending, false);
}

void ondemand_map_request(MemoryRegion *mr, hwaddr addr, OndemandForce why)
{
    if (qatomic_read(&request.pending) ||
        qatomic_xchg(&request.pending, true)) {
        return;
    }
    memory_region_ref(mr);
    request.mr = mr;
    request.addr = addr;
    request.why = why;
    qemu_bh_schedule(request.bh);
}

void ondemand_map_force_all(OndemandForce why)
{
    OndemandMap *map;

    QTAILQ_FOREACH(map, &maps, next) {
        map->ops->force_all(map, why);
        policy_commit(map->policy);
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
    if (!tcg_enabled() && !kvm_enabled() && !qtest_enabled()) {
        error_setg(errp, "An ondemand-policy needs the accelerator 'tcg' or "
                   "'kvm', and this is '%s'", current_accel_name());
        return false;
    }
    /*
     * Devices that access memory by themselves declare that none may be
     * discarded under them; memory that is unmapped is no better.
     */
    if (ram_block_discard_require(true)) {
        error_setg(errp, "An ondemand-policy cannot be used together with "
                   "assigned devices (VFIO, vDPA): they cannot wait for memory "
                   "to be mapped");
        return false;
    }
    if (!request.bh) {
        request.bh = qemu_bh_new(serve_request, NULL);
        ondemand_map_kvm_start();
    }
    map->name = object_get_canonical_path(OBJECT(owner));
    map->policy = policy;
    map->ops = ops;
    object_ref(policy);
    policy->users++;
    QTAILQ_INSERT_TAIL(&maps, map, next);
    qatomic_set(&ondemand_map_regions, ondemand_map_regions + 1);
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
    qatomic_set(&ondemand_map_regions, ondemand_map_regions - 1);
    map->policy->users--;
    ram_block_discard_require(false);
}

void ondemand_map_release(OndemandMap *map)
{
    object_unref(map->policy);
    g_free(map->name);
}

bool ondemand_map_allow_dma(Error **errp)
{
    if (QTAILQ_EMPTY(&maps)) {
        return true;
    }
    error_setg(errp, "Devices cannot be assigned (VFIO) while '%s' has an "
               "ondemand-policy: they cannot wait for memory to be mapped",
               QTAILQ_FIRST(&maps)->name);
    return false;
}

/*
 * On-demand mapping: regions, chunks and commits
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * An OndemandMap stands for the trapped memory of one device.  Its owner counts
 * trapped accesses and, when they exceed the policy's threshold, queues the
 * region.  A bottom half of the main loop then makes one commit for all queued
 * regions of a policy: it asks each to map what it wants, by aliases
 * ("chunks") of RAM on top of the trapping region, in one memory transaction,
 * and no faster than the policy allows.
 *
 * Nothing is mapped in the access itself, which would change the memory map
 * under the code that is looking at it.  A mapping moves no data: what traps
 * and what is mapped reach the same RAM.
 *
 * Everything here is protected by the BQL.
 */

#ifndef SYSTEM_ONDEMAND_MAP_H
#define SYSTEM_ONDEMAND_MAP_H

#include "exec/hwaddr.h"
#include "qapi/qapi-types-ondemand-map.h"
#include "qemu/queue.h"
#include "system/memory.h"
#include "system/ondemand-policy.h"

typedef struct OndemandMap OndemandMap;

/**
 * struct OndemandMapOps: what the owner of a region provides
 * @commit: map what the region wants mapped, with ondemand_chunk_map().
 *          Called in a memory transaction, some time after
 *          ondemand_map_queue().
 * @ranges: return the ranges, in order of their address; the caller frees the
 *          list
 */
typedef struct OndemandMapOps {
    void (*commit)(OndemandMap *map);
    OndemandRangeList *(*ranges)(OndemandMap *map);
} OndemandMapOps;

/**
 * struct OndemandCounters: what a region did since it was registered
 * @traps: accesses that trapped
 * @maps: chunks mapped
 * @unmaps: chunks unmapped
 * @refused: chunks that a limit kept from being mapped, by reason
 */
typedef struct OndemandCounters {
    uint64_t traps;
    uint64_t maps;
    uint64_t unmaps;
    uint64_t refused[ONDEMAND_REFUSAL__MAX];
} OndemandCounters;

/**
 * struct OndemandMap: a region of trapped memory
 *
 * Embedded in its owner.  The fields are private but for @counters.traps,
 * which the owner advances by ondemand_map_trap().
 */
struct OndemandMap {
    char *name;
    OndemandPolicy *policy;
    const OndemandMapOps *ops;
    OndemandCounters counters;
    uint64_t mapped;            /* bytes */
    unsigned chunks_mapped;
    bool queued;
    QTAILQ_ENTRY(OndemandMap) next;
    QTAILQ_ENTRY(OndemandMap) queue_next;
};

/**
 * struct OndemandChunk: a piece of a region that can be mapped
 * @alias: the mapping, or NULL
 */
typedef struct OndemandChunk {
    MemoryRegion *alias;
} OndemandChunk;

/**
 * ondemand_map_register: make a region known
 * @map: the region, zeroed
 * @owner: the device; its QOM path is the region's name
 * @policy: the policy; a reference is held until ondemand_map_unregister()
 * @ops: what the owner provides
 * @errp: set when it fails
 *
 * Fails when a device is there that accesses memory by itself (VFIO, vDPA):
 * it would keep what is mapped now, and find nothing in what is not.
 *
 * Returns: true on success; on failure nothing has to be undone.
 */
bool ondemand_map_register(OndemandMap *map, DeviceState *owner,
                           OndemandPolicy *policy, const OndemandMapOps *ops,
                           Error **errp);

/**
 * ondemand_map_unregister: forget a region
 * @map: the region; none of its chunks is mapped any more
 */
void ondemand_map_unregister(OndemandMap *map);

/**
 * ondemand_map_trap: count a trapped access
 * @map: the region
 */
static inline void ondemand_map_trap(OndemandMap *map)
{
    map->counters.traps++;
    ondemand_policy_trap(map->policy);
}

/**
 * ondemand_map_queue: have @map's commit callback called soon
 * @map: the region
 *
 * As soon as the policy's rate of commits allows; at once if nothing was
 * mapped for a while.  Queueing a region that is queued does nothing.
 */
void ondemand_map_queue(OndemandMap *map);

/**
 * ondemand_chunk_map: map a chunk, if the limits allow it
 * @map: the region
 * @chunk: the chunk, not mapped
 * @container: the trapping region that the chunk is put on
 * @addr: where in @container
 * @ram: RAM with the contents; the owner unmaps the chunk before it goes
 * @offset: of the contents in @ram
 * @size: size of the chunk in bytes
 * @why: set to the reason when it fails
 *
 * Only from the commit callback.
 *
 * Returns: true if the chunk is mapped now.
 */
bool ondemand_chunk_map(OndemandMap *map, OndemandChunk *chunk,
                        MemoryRegion *container, hwaddr addr,
                        MemoryRegion *ram, hwaddr offset, uint64_t size,
                        OndemandRefusal *why);

/**
 * ondemand_chunk_unmap: take a chunk out of the memory map
 * @map: the region
 * @chunk: the chunk; nothing happens if it is not mapped
 *
 * When the outermost memory transaction has been committed, accesses trap
 * again.
 */
void ondemand_chunk_unmap(OndemandMap *map, OndemandChunk *chunk);

/**
 * ondemand_map_allow_dma: may a device that accesses memory by itself be added?
 * @errp: set if not
 *
 * Returns: false if there is a region with on-demand mapping.
 */
bool ondemand_map_allow_dma(Error **errp);

/* For ondemand-policy.c */
void ondemand_map_policy_start(OndemandPolicy *policy);
void ondemand_map_policy_stop(OndemandPolicy *policy);

#endif

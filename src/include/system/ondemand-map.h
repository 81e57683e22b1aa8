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
 * Where emulation is hopeless (code that is fetched, say), others ask by
 * ondemand_map_force() for a mapping without waiting for the threshold.  Limits
 * and the rate of commits hold for these too.
 *
 * Everything here is protected by the BQL, where nothing else is said.
 */

#ifndef SYSTEM_ONDEMAND_MAP_H
#define SYSTEM_ONDEMAND_MAP_H

#include "exec/hwaddr.h"
#include "qapi/qapi-types-ondemand-map.h"
#include "qemu/queue.h"
#include "qemu/stats64.h"
#include "system/memory.h"
#include "system/ondemand-policy.h"

typedef struct OndemandMap OndemandMap;

/**
 * struct OndemandMapOps: what the owner of a region provides
 * @force: if @addr in @mr is a cold range of this region, or a refused one
 *         whose time has come, queue it and count it as forced by @why.
 *         Returns the state of the range (an OndemandState), -1 if there is
 *         none.
 * @force_all: the same for all ranges with contents in RAM, so that the next
 *             commit can map them; called when the user waits for it
 * @commit: map what the region wants mapped, with ondemand_chunk_map().
 *          Called in a memory transaction, some time after
 *          ondemand_map_queue().
 * @ranges: return the ranges, in order of their address; the caller frees the
 *          list
 * @resident: return how many bytes of contents are in RAM; NULL if all are
 */
typedef struct OndemandMapOps {
    void (*commit)(OndemandMap *map);
    OndemandRangeList *(*ranges)(OndemandMap *map);
    uint64_t (*resident)(OndemandMap *map);
    int (*force)(OndemandMap *map, MemoryRegion *mr, hwaddr addr,
                 OndemandForce why);
    void (*force_all)(OndemandMap *map, OndemandForce why);
} OndemandMapOps;

/**
 * struct OndemandCounters: what a region did since it was registered
 * @traps: accesses that trapped; advanced by any thread
 * @maps: chunks mapped
 * @unmaps: chunks unmapped
 * @refused: chunks that a limit kept from being mapped, by reason
 * @forced: ranges queued without waiting for the threshold, by reason
 */
typedef struct OndemandCounters {
    Stat64 traps;
    uint64_t maps;
    uint64_t unmaps;
    uint64_t refused[ONDEMAND_REFUSAL__MAX];
    uint64_t forced[ONDEMAND_FORCE__MAX];
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
 * @policy: the policy; a reference is held until ondemand_map_release()
 * @ops: what the owner provides
 * @errp: set when it fails
 *
 * Fails when a device is there that accesses memory by itself (VFIO, vDPA):
 * it would keep what is mapped now, and find nothing in what is not.  And with
 * an accelerator whose limits are not known here.
 *
 * Returns: true on success; on failure nothing has to be undone.
 */
bool ondemand_map_register(OndemandMap *map, DeviceState *owner,
                           OndemandPolicy *policy, const OndemandMapOps *ops,
                           Error **errp);

/**
 * ondemand_map_unregister: forget a region
 * @map: the region; none of its chunks is mapped any more
 *
 * A thread without the BQL may still be in one of its accesses.
 */
void ondemand_map_unregister(OndemandMap *map);

/**
 * ondemand_map_release: free what accesses to a region use
 * @map: the region, unregistered, and accessed no more
 *
 * In any thread.
 */
void ondemand_map_release(OndemandMap *map);

/**
 * ondemand_map_trap: count a trapped access
 * @map: the region
 *
 * Context: any thread.
 */
static inline void ondemand_map_trap(OndemandMap *map)
{
    stat64_add(&map->counters.traps, 1);
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
 * ondemand_map_check_limits: could a chunk be mapped now?
 * @map: the region
 * @size: size of the chunk in bytes
 * @why: set to the reason when it could not; that is counted as refused
 *
 * For those who have to do work before; ondemand_chunk_map() checks again.
 *
 * Returns: true if no limit is in the way
 */
bool ondemand_map_check_limits(OndemandMap *map, uint64_t size,
                               OndemandRefusal *why);

/**
 * ondemand_map_refused: count a chunk that the owner itself could not map
 * @map: the region
 * @why: the reason
 */
void ondemand_map_refused(OndemandMap *map, OndemandRefusal why);

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

/**
 * ondemand_map_chunks: how many memory slots must be left for what is mapped
 *
 * What is mapped in a BAR that the guest has switched off uses no slot, and may
 * want one at any time.
 *
 * Returns: number of chunks that are mapped, in all regions
 */
unsigned ondemand_map_chunks(void);

/* Number of regions; for ondemand_map_force() */
extern unsigned ondemand_map_regions;

void ondemand_map_request(MemoryRegion *mr, hwaddr addr, OndemandForce why);

/**
 * ondemand_map_force: ask for a mapping without waiting for the threshold
 * @mr: a region whose access traps; need not be one with on-demand mapping
 * @addr: offset in it
 * @why: the reason, to be counted
 *
 * A hint: the main loop queues the range some time later.  Of many requests at
 * a time all but one are lost; who needs it will ask again.
 *
 * Context: any thread, in an RCU read-side critical section; takes no lock.
 */
static inline void ondemand_map_force(MemoryRegion *mr, hwaddr addr,
                                      OndemandForce why)
{
    if (unlikely(qatomic_read(&ondemand_map_regions))) {
        ondemand_map_request(mr, addr, why);
    }
}

/**
 * ondemand_map_force_state: the same at once, and see what becomes of it
 * @mr: as above
 * @addr: as above
 * @why: as above
 *
 * Returns: the OndemandState of the range; -1 if it is none
 */
int ondemand_map_force_state(MemoryRegion *mr, hwaddr addr, OndemandForce why);

/**
 * ondemand_map_force_all: map all that has contents in RAM, for the user
 * @why: the reason
 *
 * The mappings are there when it returns, whatever the rate of commits; what a
 * limit does not allow is refused.
 */
void ondemand_map_force_all(OndemandForce why);

/**
 * ondemand_map_kvm_start: hear of instructions that KVM cannot emulate
 *
 * Else KVM answers those of user mode with an exception in the guest.
 */
void ondemand_map_kvm_start(void);

/**
 * ondemand_map_emulation_failed: KVM cannot emulate an instruction
 * @cpu: the vCPU, in its thread
 *
 * KVM cannot emulate what it fetches from memory that traps.  If the
 * instruction lies in a range that can be mapped, ask for that.  If it does
 * not, and the guest is in user mode, inject what KVM would have injected by
 * itself.
 *
 * Context: BQL not held.
 *
 * Returns: true if the vCPU should go on
 */
bool ondemand_map_emulation_failed(CPUState *cpu);

/* For ondemand-policy.c */
void ondemand_map_policy_start(OndemandPolicy *policy);
void ondemand_map_policy_stop(OndemandPolicy *policy);

#endif

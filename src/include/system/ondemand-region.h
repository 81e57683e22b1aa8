/*
 * On-demand mapping: a window of memory that is filled and mapped as it is used
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The window shows a piece of RAM whose contents are brought there on demand,
 * in granules.  Accesses trap at first.  One that reaches a granule which was
 * never used fills it; from then on the granule lives in RAM.  When the
 * accesses to a chunk, which is some granules, exceed the policy's threshold,
 * all of it is filled, by a worker thread, and mapped.  Those that fill do not
 * count.
 *
 * A granule is COLD (not in RAM), FILLING, or RESIDENT (in RAM; whether it
 * traps or is mapped is the chunk's affair).  It never goes back, but for the
 * load of a snapshot.
 */

#ifndef SYSTEM_ONDEMAND_REGION_H
#define SYSTEM_ONDEMAND_REGION_H

#include "qemu/thread.h"
#include "qom/object.h"
#include "system/memory.h"
#include "system/ondemand-map.h"
#include "system/runstate.h"

#define TYPE_ONDEMAND_REGION "ondemand-region"
OBJECT_DECLARE_SIMPLE_TYPE(OndemandRegion, ONDEMAND_REGION)

/* Most granules of a region: what a migration stream can say in 2 MiB */
#define ONDEMAND_GRANULES_MAX (16 * 1024 * 1024)

/**
 * OndemandFillFn: bring a granule into RAM
 * @opaque: the owner's
 * @offset: offset in the window
 * @size: number of bytes, all in the window
 *
 * Contents have to be written to OndemandRegion.ram_as.
 *
 * Context: any thread, with or without the BQL; several calls at a time, each
 * for another granule.
 *
 * Returns: 0, or a negative errno
 */
typedef int OndemandFillFn(void *opaque, uint64_t offset, uint64_t size);

/**
 * struct OndemandBacking: what is in the window
 * @ram: RAM, its size a multiple of the policy's granule: the window's size.
 *       It must be migrated by the caller.
 * @fill: brings a granule into @ram
 * @opaque: for @fill
 * @outside: what is cold is not in @ram: it is not migrated, and which granules
 *           are resident is.  Else @fill only makes sure that @ram is there.
 * @stop_on_error: stop the VM when an access cannot be served; else answer it
 *                 with an error only
 */
typedef struct OndemandBacking {
    MemoryRegion *ram;
    OndemandFillFn *fill;
    void *opaque;
    bool outside;
    bool stop_on_error;
} OndemandBacking;

typedef enum OndemandGranule {
    ONDEMAND_COLD, ONDEMAND_FILLING, ONDEMAND_RESIDENT,
} OndemandGranule;

typedef struct OndemandRegionChunk OndemandRegionChunk;

/**
 * struct OndemandRegion: the window, a QOM object that its device embeds
 *
 * Initialize it as the device's child, then realize it.  @io is the window.
 */
struct OndemandRegion {
    Object parent_obj;

    /* Fixed when realized */
    MemoryRegion io;            /* the window; chunks are put on it */
    OndemandBacking backing;
    AddressSpace *ram_as;       /* rooted at the backing's RAM */
    DeviceState *owner;
    bool realized;              /* qatomic; the window may be used */
    uint64_t size;              /* bytes, as are the next two */
    uint64_t granule;
    uint64_t chunk_size;
    int32_t nr_granules;
    unsigned nr_chunks;

    /* OndemandGranule; read with qatomic_read(), written under @lock */
    uint8_t *state;
    QemuMutex lock;
    QemuCond filled;            /* some granule is not FILLING any more */
    unsigned nr_resident;       /* as @state */

    /* Protected by the BQL, but for what is said of the chunk's fields */
    OndemandMap map;
    OndemandRegionChunk *chunks;
    QEMUBH *bh;
    VMChangeStateEntry *vmstate;
    int job;                    /* chunk that is being filled, or -1 */
    bool stopping;              /* qatomic; the job should end */
    unsigned long *bitmap;      /* RESIDENT, for the migration stream only */
};

/**
 * ondemand_region_realize: make the window
 * @r: the region
 * @owner: the device
 * @policy: the policy
 * @backing: what is in it; copied
 * @errp: set when it fails
 *
 * Returns: true on success
 */
bool ondemand_region_realize(OndemandRegion *r, DeviceState *owner,
                             OndemandPolicy *policy,
                             const OndemandBacking *backing, Error **errp);

/**
 * ondemand_region_unrealize: take the mappings away and end the work
 * @r: the region; realized or not
 *
 * Accesses that are under way may still call @fill, until the object's end.
 */
void ondemand_region_unrealize(OndemandRegion *r);

/**
 * ondemand_region_stops: how often a window has asked the VM to stop
 *
 * The run state does not tell that it was a window.  What had stopped the VM
 * before an access failed may be over, but the window's error is not.
 *
 * Context: any thread.
 *
 * Returns: a number that grows before the VM stops
 */
unsigned ondemand_region_stops(void);

#endif

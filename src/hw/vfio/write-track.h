/*
 * Write tracking: which memory did an assigned device write?
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Migration has to send again what changed, and what a device writes by DMA
 * changes without QEMU's doing.  A device's DMA is tracked by the first of
 * these that there is:
 *
 *   1. the device logs its DMA (VFIO's DMA_LOGGING_*)
 *   2. the IOMMU keeps dirty bits (iommufd)
 *   3. the vfio-user protocol, on behalf of the server
 *   4. a walker, which reads the device's rings (write-walk.h)
 *   5. type1's "every page that is pinned", or all memory
 *
 * hw/vfio/listener.c and container.c do 1, 2 and 5.  This module is for 3 and
 * 4: a WriteTracker stands for one device, and is asked in a MemoryListener of
 * its own whenever the migration looks for dirty pages.
 *
 * All functions are called with the BQL held, except where noted.
 */

#ifndef HW_VFIO_WRITE_TRACK_H
#define HW_VFIO_WRITE_TRACK_H

#include "qemu/queue.h"
#include "system/memory.h"
#include "qapi/qapi-types-write-tracking.h"

typedef struct WriteTracker WriteTracker;

/** struct WriteTrackSource: where a tracker knows from */
typedef struct WriteTrackSource {
    WriteTrackingSource kind;

    /**
     * @start: begin to track; everything counts as dirty at this time
     * Returns: false, with @errp set, if it cannot; the migration fails then
     */
    bool (*start)(WriteTracker *t, Error **errp);

    /** @stop: tracking is over; called also when the migration failed */
    void (*stop)(WriteTracker *t);

    /**
     * @sync: call write_track_mark() and its relatives for all that was written
     * since the last time, or may have been
     * @last: the VM is stopped, there will be no other time
     * Returns: false, with @errp set, if it cannot say; the migration fails
     */
    bool (*sync)(WriteTracker *t, bool last, Error **errp);

    /**
     * @covers: is it this source that tracks the device now?  NULL: always.
     * When it is not, VFIO's own sync is for the device.
     */
    bool (*covers)(WriteTracker *t);

    /**
     * @by_address: what is marked at a sync is marked by address; so memory
     * that is unmapped before is marked as a whole at that time
     */
    bool by_address;

    /** @armed: how many locations may be written now; may be NULL */
    uint64_t (*armed)(WriteTracker *t);
} WriteTrackSource;

/**
 * struct WriteTrackCounts: what a tracker has done
 * @syncs: times that the source was asked
 * @pages: pages that it made dirty and that were clean
 * @all: times that all memory was marked, because the source could not say
 * @traps: accesses of the guest that trapped for the sake of tracking
 * @time_ns: time spent in syncs
 */
typedef struct WriteTrackCounts {
    uint64_t syncs, pages, all, traps, time_ns;
} WriteTrackCounts;

struct WriteTracker {
    /* Set by the owner, before write_track_add() */
    const char *name;           /* of the device */
    const WriteTrackSource *source;

    /* Private */
    bool logging;
    bool all_marked;            /* all memory is dirty until the next sync */
    WriteTrackCounts total, round, last_round;
    const char *why_all;        /* the last reason; static text */
    QTAILQ_ENTRY(WriteTracker) next;
};

/**
 * write_track_add: have a device's writes tracked from now on
 * @t: embedded in the owner's state
 *
 * Not while a migration runs: devices cannot be added then.
 */
void write_track_add(WriteTracker *t);

/** write_track_del: the device goes; harmless if it was not added */
void write_track_del(WriteTracker *t);

/**
 * write_track_covers: are a device's writes tracked by this module now?
 * @t: of the device, or NULL if it has none
 */
bool write_track_covers(WriteTracker *t);

/**
 * write_track_mark: memory was written
 * @t: by whose device
 * @addr: guest physical address
 * @len: in bytes; what is not RAM is skipped
 */
void write_track_mark(WriteTracker *t, hwaddr addr, hwaddr len);

/**
 * write_track_mark_ram: memory was written
 * @t: by whose device
 * @start: RAM offset
 * @len: in bytes
 *
 * Any thread that holds the BQL or an RCU read lock.
 */
void write_track_mark_ram(WriteTracker *t, ram_addr_t start, ram_addr_t len);

/**
 * write_track_mark_all: any memory may have been written
 * @t: by whose device
 * @why: static text, for the trace and query-write-tracking
 */
void write_track_mark_all(WriteTracker *t, const char *why);

#endif

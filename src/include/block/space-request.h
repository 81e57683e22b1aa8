/*
 * Growth of storage: the requests, and what the parts of it share
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * block/space-guard.c is the filter: it sees that a write failed, measures the
 * storage, and waits.  block/space-request.c is the table of requests: it
 * decides whether a write waits, what an answer means, and tells the monitor.
 * system/space-vm.c resumes the VM and carries requests to another host; tools
 * have stubs/space-vm.c in its place.
 */

#ifndef BLOCK_SPACE_REQUEST_H
#define BLOCK_SPACE_REQUEST_H

#include "block/block_int.h"
#include "qapi/qapi-types-space.h"
#include "qemu/stats64.h"
#include "qemu/timer.h"

/* A multiple of what a file system allocates for itself beside the data */
#define SPACE_SLACK_BYTES (64 * 1024)

typedef struct SpaceGuard SpaceGuard;
typedef struct SpaceRequest SpaceRequest;
typedef struct SpaceHeld SpaceHeld;

/**
 * struct SpaceMeasure: what is known of the storage below a guard
 * @how: size, space or probe; the last if nothing can be measured
 * @size: size of the leaf in bytes, 0 if unknown
 * @available: free bytes in its file system, -1 if unknown
 */
typedef struct SpaceMeasure {
    BlockSpaceVerify how;
    int64_t size;
    int64_t available;
} SpaceMeasure;

/**
 * struct SpaceFailure: an operation that found no space
 * @cause: what it was
 * @offset: where it began, in bytes
 * @bytes: its length
 * @measure: the storage right after it had failed
 * @despite_room: it failed again although @measure says that there is room
 * @may_hold: the operation can wait at all
 * @deadline_ms: until when it may wait, QEMU_CLOCK_REALTIME
 * @probe: set when it waited, and was chosen to tell whether there is room
 */
typedef struct SpaceFailure {
    BlockSpaceCause cause;
    int64_t offset;
    int64_t bytes;
    SpaceMeasure measure;
    bool despite_room;
    bool may_hold;
    int64_t deadline_ms;
    bool probe;
} SpaceFailure;

typedef QTAILQ_HEAD(, SpaceHeld) SpaceHeldList;

/* The state of a space-guard node */
struct SpaceGuard {
    BlockDriverState *bs;

    /* Options; constant after open */
    BlockSpacePolicy policy;
    BlockSpaceVerify verify;
    uint32_t max_hold_ms;
    uint64_t low_water;
    uint32_t lead_ms;

    /* Protected by the requests' lock */
    SpaceRequest *request;
    SpaceHeldList held;
    unsigned n_held;
    bool flush_failed;
    bool flush_keeps;             /* ... and the VM has the data */
    bool cancelling;              /* hold none; set in the main thread only */
    bool no_hold;                 /* its device must not see a drain's error */
    QTAILQ_ENTRY(SpaceGuard) next; /* changed in the main thread only */

    /* Relaxed atomics: each value stands for itself */
    bool watched;                 /* there is a request: report successes */
    Stat64 mark;                  /* ask when a write ends above; bytes */
    Stat64 written;               /* bytes */
    Stat64 look_at;               /* look at the file system at so many */
    Stat64 rate;                  /* bytes per second */
    Stat64 sample_bytes;          /* "written" when that was computed */
    int sampling;                 /* taken by who changes these three */
    int64_t sample_ns;

    /* Main thread only */
    int64_t poll_at_ms;           /* next look at the file system */
    bool polling;
};

/* Counters; the order is that of the names in system/space-vm.c */
typedef enum SpaceStat {
    SPACE_STAT_REQUESTS,          /* requests that were raised */
    SPACE_STAT_LOW_WATER,         /* ... because of a low-water mark */
    SPACE_STAT_HELD,              /* writes that waited */
    SPACE_STAT_EXPIRED,           /* ... for too long */
    SPACE_STAT_DRAINED,           /* ... and were given back to a drain */
    SPACE_STAT_FAILED,            /* operations failed with "no space" */
    SPACE_STAT_FLUSH_FAILED,      /* ... that were flushes */
    SPACE_STAT_RETRIED_ROOM,      /* retried at once: there was room */
    SPACE_STAT_GROWN,             /* answers that were true */
    SPACE_STAT_NOT_GROWN,         /* ... that were not */
    SPACE_STAT_PROBED,            /* ... that only a write could tell */
    SPACE_STAT_DENIED,            /* ... that denied storage */
    SPACE_STAT_RECOVERED,         /* requests that ended without an answer */
    SPACE_STAT_RESUMED,           /* times that the VM was resumed */
    SPACE_STAT__MAX
} SpaceStat;

/* A request on its way to another host */
typedef struct SpaceSaved {
    char *qom_path;
    unsigned index;
    BlockSpaceCause cause;
    bool denied;
    bool stopped;
    uint32_t attempt;
    uint64_t offset, bytes, needed;
} SpaceSaved;

/*
 * block/space-guard.c
 */

/* Number of writes that are held anywhere; changed with the lock held */
extern unsigned space_held_count;

/**
 * space_guard_co_measure: look at the storage below a guard
 * @g: the guard; its node is in flight
 * @m: filled in
 *
 * May wait for a thread that asks the file system, for a second at most: then
 * it counts as one that does not tell.
 */
void coroutine_fn GRAPH_RDLOCK space_guard_co_measure(SpaceGuard *g,
                                                      SpaceMeasure *m);

/* Whether an operation has room, as far as @m can tell */
bool space_measure_has_room(const SpaceMeasure *m, int64_t offset,
                            int64_t bytes);

/* Bytes per second of late; any thread */
uint64_t space_guard_rate(SpaceGuard *g);

/* How much must be left, in bytes; 0: no low-water mark.  Any thread */
uint64_t space_guard_water(SpaceGuard *g);

/* Set the mark anew after the size was read; any thread */
void space_guard_rearm(SpaceGuard *g, const SpaceMeasure *m);

/* Whether a drain waits for the node, or for one above it */
bool GRAPH_RDLOCK space_guard_is_drained(BlockDriverState *bs);

/* The node that holds the data */
BlockDriverState * GRAPH_RDLOCK space_guard_leaf(BlockDriverState *bs);

/**
 * space_guard_device: find the device that uses a guard
 * @index: which of the device's guards it is, in depth-first order
 * @blk: what the device uses
 *
 * Returns: a QOM path, to be freed with g_free(), or NULL.
 *
 * Context: main thread.
 */
char *space_guard_device(SpaceGuard *g, unsigned *index, BlockBackend **blk);

/* The opposite.  Main thread; NULL if there is none. */
SpaceGuard *space_guard_of_device(const char *qom_path, unsigned index);

/*
 * block/space-request.c; any thread unless it says otherwise
 */

/* A guard comes and goes; main thread */
void space_requests_add_guard(SpaceGuard *g);
void space_requests_remove_guard(SpaceGuard *g);

/* Call @fn for each guard, or for each below @blk; main thread */
void space_guard_foreach_below(BlockBackend *blk, void (*fn)(SpaceGuard *g));
void space_requests_foreach_guard(void (*fn)(SpaceGuard *g));

/**
 * space_request_co_failed: an operation found no space
 *
 * Raises a request, or joins the open one, and waits if it may.
 *
 * Returns: true when the operation is to be tried again, false when it is to
 * fail with ENOSPC.
 */
bool coroutine_fn GRAPH_RDLOCK
space_request_co_failed(SpaceGuard *g, SpaceFailure *f);

/* The operation that was to tell whether there is room failed otherwise */
void space_request_probe_lost(SpaceGuard *g);

/* A write succeeded while there was a request */
void space_request_written(SpaceGuard *g, int64_t offset, int64_t bytes);

/* The low-water mark was crossed, or no longer is */
void space_request_low_water(SpaceGuard *g, const SpaceMeasure *m, bool low);

/* Fail all writes that @g holds, because of a drain */
void space_requests_give_back(SpaceGuard *g);

/*
 * Fail all writes that @g holds because one of them is cancelled: that stops no
 * VM.  So those that come later may wait, if nothing else had failed.
 */
void space_requests_cancel(SpaceGuard *g);

/*
 * Between begin and end, @g is to hold no write: nobody can answer while
 * somebody waits for it.  May be nested; main thread.
 */
void space_requests_cancel_begin(void);
void space_requests_will_cancel(SpaceGuard *g);
void space_requests_cancel_end(void);

/* The VM has stopped, and a disk is above @g, or has found no space, too */
void space_requests_vm_has(SpaceGuard *g);
void space_requests_vm_stopped(SpaceGuard *g);

/* Whether a request keeps the VM stopped */
bool space_requests_block_resume(void);

/* The VM runs again: what fails from now on is another attempt */
void space_requests_vm_runs(void);

/* ... because somebody resumed it: what only waited for that is closed */
void space_requests_user_cont(void);

void space_requests_count(SpaceStat stat);
void space_requests_stats(uint64_t values[SPACE_STAT__MAX]);

/* Whether any request is open */
bool space_requests_any(void);

/**
 * space_requests_save: what another host has to know
 * @max: how many at most
 *
 * Returns: an array of SpaceSaved that frees its elements.  Requests that no
 * device is the reason of are left out.
 *
 * Context: main thread.
 */
GPtrArray *space_requests_save(unsigned max);

/* Raise it again here, unless there is room.  Main thread. */
void space_request_restore(SpaceGuard *g, const SpaceSaved *saved);

/*
 * system/space-vm.c
 */

/* A guard exists: be ready.  Main thread; may be called again. */
void space_vm_init(void);

/* Whether the guest can run on while a write waits.  Any thread. */
bool space_vm_is_running(void);

/* A request that may have stopped the VM was resolved.  Any thread. */
void space_vm_resolved(void);

#endif

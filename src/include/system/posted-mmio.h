/*
 * Posted MMIO: the vCPU goes on while a device's write handler waits
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Source: US 2013/0132968, asynchronous I/O by switching between stacks.
 */

#ifndef SYSTEM_POSTED_MMIO_H
#define SYSTEM_POSTED_MMIO_H

#include "qemu/async-call.h"
#include "system/block-backend-io.h"
#include "system/memory.h"
#include "system/runstate.h"

/* Writes that may be queued at a time: of a device, and of all */
#define POSTED_MAX_WRITES 64
#define POSTED_MAX_WRITES_ALL 1024

/* Regions that a device may have posted */
#define POSTED_MAX_REGIONS 4

typedef struct PostedQueue PostedQueue;

/**
 * struct PostedRegion: a region whose writes are posted; private
 * @queue: of the device
 * @mr: the region
 * @guard: re-entrancy guard of the device, or NULL if the region has none
 * @ops: the device's callbacks
 * @opaque: their argument
 * @posted_ops: what @mr has instead
 */
typedef struct PostedRegion {
    PostedQueue *queue;
    MemoryRegion *mr;
    MemReentrancyGuard *guard;
    const MemoryRegionOps *ops;
    void *opaque;
    MemoryRegionOps posted_ops;
} PostedRegion;

/**
 * struct PostedWrite: a write of a vCPU; private
 * @region: index of its region
 * @size: in bytes
 * @addr: offset in the region
 * @data: in the byte order of the host, as a handler gets it
 * @attrs: transaction attributes
 * @attrs_vmstate: @attrs, while they are migrated
 */
typedef struct PostedWrite {
    uint32_t region;
    uint32_t size;
    uint64_t addr;
    uint64_t data;
    MemTxAttrs attrs;
    uint32_t attrs_vmstate;
} PostedWrite;

/**
 * typedef PostedFinish: make happen now what a handler waits for
 * @opaque: as given to posted_mmio_park()
 *
 * Context: BQL held, not in a coroutine, in any thread.
 *
 * Returns: true if async_call_wake() has been called; false if it cannot happen
 * now, since it waits for what only the event loop brings about.
 */
typedef bool PostedFinish(void *opaque);

/**
 * struct PostedQueue: a device's posted writes
 * @on: the device's property ``posted-writes``
 *
 * What else there is, is private.  It is a part of the device, which must exist
 * as long as it has references.  Protected by the BQL.  Zero is a valid state:
 * off.
 */
struct PostedQueue {
    bool on;

    bool stopped;               /* the VM is: nothing may run */
    bool held;                  /* @now has references */
    unsigned running;           /* handlers that run, not parked */
    AsyncCall *call;            /* of the handler that runs */
    AsyncCall *parked;          /* of the handler that waits */
    PostedFinish *finish;
    void *finish_opaque;
    PostedWrite now;            /* what runs or is parked */
    uint32_t num;
    uint32_t num_vmstate;       /* @num, while it is migrated */
    PostedWrite writes[POSTED_MAX_WRITES];
    unsigned num_regions;
    PostedRegion regions[POSTED_MAX_REGIONS];
    DeviceState *dev;
    AsyncCallOwner owner;
    QEMUBH *bh;
    VMChangeStateEntry *vm_state;
};

/**
 * struct PostedMedium: a removable medium that handlers write to; private
 * @removed: of its back end
 * @q: the queue of the device
 */
typedef struct PostedMedium {
    Notifier removed;
    PostedQueue *q;
} PostedMedium;

/**
 * struct PostedTotals: statistics of all devices
 * @now: writes that are queued
 * @queued: writes that were queued behind others
 * @waited: writes for which the vCPU waited because too many were queued
 * @drained: writes of others than vCPUs that waited for what was queued
 * @dropped: writes that a reset, an unplug or the change of a medium dropped,
 *           or for which there was no room while nothing could be waited for
 */
typedef struct PostedTotals {
    uint64_t now;
    uint64_t queued;
    uint64_t waited;
    uint64_t drained;
    uint64_t dropped;
} PostedTotals;

/**
 * posted_mmio_realize: prepare a device's queue if it is on
 * @q: its @on is set
 * @dev: the device
 * @errp: set if it cannot be on: record/replay or icount
 *
 * The device calls posted_mmio_unrealize() and posted_mmio_reset() where their
 * names say, and has vmstate_posted_mmio in a subsection of its state.
 *
 * Context: BQL held.
 *
 * Returns: true, or false with @errp set.
 */
bool posted_mmio_realize(PostedQueue *q, DeviceState *dev, Error **errp);

/**
 * posted_mmio_add: let the writes of a region be posted
 * @q: the device's queue, which is on
 * @mr: an I/O region of the device, not in use yet; its callbacks are replaced
 * @errp: set if @mr is not eligible
 *
 * The write handlers may wait, with posted_blk_pwrite() and the like.  Then
 * the vCPU goes on, and its later writes are queued and run in order.  So:
 *
 * - Handlers run without current_cpu, on a second stack, and must not leave it
 *   by a longjmp.  They must not wait in another way: what a coroutine could
 *   do, such as a bare blk_pwrite(), would carry on in the wrong place.
 * - Reads are not queued and do not wait.  The device's protocol must have an
 *   answer that says "busy", and the device gives it when posted_mmio_busy().
 * - A handler that gets -ECANCELED from a wait was given up, by an unplug or
 *   the end of the VM, and returns.  It may touch its device, nothing beyond.
 *
 * A region without the big lock is refused.
 *
 * Context: BQL held.
 *
 * Returns: true, or false with @errp set.
 */
bool posted_mmio_add(PostedQueue *q, MemoryRegion *mr, Error **errp);

/**
 * posted_mmio_busy: are there writes that have not taken effect?
 * @q: a queue, on or off, or NULL
 */
static inline bool posted_mmio_busy(const PostedQueue *q)
{
    return q && (q->parked || q->num);
}

/**
 * posted_mmio_parked: does a write handler of the device wait?
 * @q: a queue, on or off, or NULL
 */
static inline bool posted_mmio_parked(const PostedQueue *q)
{
    return q && q->parked;
}

/**
 * posted_blk_pwrite: blk_pwrite() in a handler whose write may be posted
 * @q: a queue, on or off, or NULL
 * @blk: back end in the main context
 * @offset: in bytes
 * @bytes: how many
 * @buf: data; a handler that waits does not need it to stay as it is
 *
 * When the handler's write is not a posted one, this is blk_pwrite().
 *
 * Context: BQL held.
 *
 * Returns: 0 or a negative error number; -ECANCELED only if the handler was
 * given up: an error of the disk that is called so becomes -EIO.
 */
int coroutine_mixed_fn posted_blk_pwrite(PostedQueue *q, BlockBackend *blk,
                                         int64_t offset, int64_t bytes,
                                         const void *buf);

/**
 * posted_blk_pread: the same for blk_pread()
 * @q: a queue, on or off, or NULL
 * @blk: back end in the main context
 * @offset: in bytes
 * @bytes: how many
 * @buf: where to store the data
 *
 * Returns: as posted_blk_pwrite().
 */
int coroutine_mixed_fn posted_blk_pread(PostedQueue *q, BlockBackend *blk,
                                        int64_t offset, int64_t bytes,
                                        void *buf);

/**
 * posted_blk_watch_medium: let no write go to a medium that comes later
 * @q: a queue, on or off, or NULL
 * @blk: back end of a drive of the device, which keeps it as long as it exists
 * @m: a part of the drive
 *
 * Before the medium of @blk is removed, all that the guest has written takes
 * effect.  Where it cannot, because the VM is stopped, it is dropped.
 */
void posted_blk_watch_medium(PostedQueue *q, BlockBackend *blk,
                             PostedMedium *m);

/**
 * posted_mmio_park: wait in a handler whose write is a posted one
 * @q: the queue, whose @call is not NULL
 * @finish: makes happen what it waits for
 * @opaque: for @finish
 *
 * The re-entrancy guard is left meanwhile.
 *
 * Returns: what async_call_wake() was given for that call, or -ECANCELED.
 */
int coroutine_fn posted_mmio_park(PostedQueue *q, PostedFinish *finish,
                                  void *opaque);

/**
 * posted_mmio_finish: let the handler that is parked come to its end
 * @q: a queue; what is queued in it stays there
 *
 * It waits as long as a block request takes.
 *
 * Context: BQL held, not in a coroutine, not in a handler of the device.
 *
 * Returns: true, or false if the handler was given up, if another thread is in
 * the middle of an access of the device, or if its disk is being drained by
 * somebody else, such as a block job that waits to be finalized.  Then the
 * handler is still parked, and the device cannot be saved.
 */
bool posted_mmio_finish(PostedQueue *q);

/**
 * posted_mmio_settle: let all that is parked and queued take effect, or drop it
 * @q: a queue
 *
 * It is dropped if it cannot take effect now: the VM is stopped, or see
 * posted_mmio_finish().
 *
 * Context: as posted_mmio_finish().
 */
void posted_mmio_settle(PostedQueue *q);

/**
 * posted_mmio_reset: finish what is parked, or give it up; drop what is queued
 * @q: on or off
 *
 * A block request of a handler that is given up goes on.
 *
 * Context: as posted_mmio_finish().
 */
void posted_mmio_reset(PostedQueue *q);

/**
 * posted_mmio_unrealize: give up what is parked, drop what is queued
 * @q: on or off; then off
 *
 * Context: BQL held.
 */
void posted_mmio_unrealize(PostedQueue *q);

/**
 * posted_mmio_init: the part of posted_mmio_realize() that needs no VM
 * @q: its @on is set
 * @dev: the device
 */
void posted_mmio_init(PostedQueue *q, DeviceState *dev);

/**
 * posted_mmio_give_up: the part of posted_mmio_unrealize() that needs no VM
 * @q: the queue, on; then off
 */
void posted_mmio_give_up(PostedQueue *q);

/**
 * posted_mmio_vm_changed: the VM was stopped or goes on
 * @opaque: the queue, on
 * @running: it goes on
 * @state: not used
 *
 * A stop finishes what is parked, as it does with each block request.  What is
 * queued stays, as state of the device.
 */
void posted_mmio_vm_changed(void *opaque, bool running, RunState state);

/**
 * posted_mmio_needed: for vmstate: is there something to migrate?
 * @q: a queue, on or off, or NULL
 */
static inline bool posted_mmio_needed(const PostedQueue *q)
{
    return q && q->num;
}

/**
 * posted_mmio_pre_load: for vmstate: may queued writes be loaded?
 * @q: a queue, on or off, or NULL; empty if this succeeds
 * @errp: set if it is not on
 */
bool posted_mmio_pre_load(PostedQueue *q, Error **errp);

/**
 * posted_mmio_loaded: queued writes came with the device's state
 * @q: @num_vmstate and @writes were loaded; not trusted; @num is 0
 *
 * Returns: true, or false if they do not fit the device's regions; then the
 * queue is empty.
 */
bool posted_mmio_loaded(PostedQueue *q);

/**
 * posted_mmio_totals: read the statistics
 * @totals: where to store them
 */
void posted_mmio_totals(PostedTotals *totals);

extern AsyncCallSite posted_mmio_site;
extern const VMStateDescription vmstate_posted_mmio;

#endif

/*
 * Write-behind of a flash chip's image
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The chip's contents are in memory, and the guest reads them there; only the
 * image has to wait for the disk.  So no stack is set aside: a write is copied
 * into a queue, and one at a time is in flight.
 *
 * The queue is no state of the device.  It counts as requests in flight when
 * the image is drained; its requests must then not be held back by the drain
 * that waits for them.  A write that comes when the image has been drained, and
 * a job is about to replace it, say, is held back: as any other it must not
 * pass.  It is not queued, then, because the next drain would wait for it.
 */

#include "qemu/osdep.h"
#include "exec/icount.h"
#include "hw/block/pflash-behind.h"
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "system/async-call-vm.h"
#include "system/replay.h"
#include "trace.h"

struct PflashWrite {
    PflashBehind *behind;
    QSIMPLEQ_ENTRY(PflashWrite) next;
    int64_t offset;
    QEMUIOVector qiov;
    uint8_t data[];
};

/* parked: written later; refused: the vCPU waited */
static AsyncCallSite pflash_site = { .name = "pflash" };

static void start_first(PflashBehind *behind);

static void report(int ret)
{
    if (ret < 0) {
        error_report("Could not update PFLASH: %s", strerror(-ret));
    }
}

static void write_now(PflashBehind *behind, int64_t offset, const void *data,
                      int64_t bytes)
{
    report(blk_pwrite(behind->blk, offset, bytes, data, 0));
}

static void write_done(void *opaque, int ret)
{
    PflashWrite *w = opaque;
    PflashBehind *behind = w->behind;

    report(ret);
    trace_pflash_behind_done(w->offset, w->qiov.size, ret);
    QSIMPLEQ_REMOVE_HEAD(&behind->queue, next);
    behind->waiting_bytes -= w->qiov.size;
    qemu_iovec_destroy(&w->qiov);
    g_free(w);
    start_first(behind);
}

static void start_first(PflashBehind *behind)
{
    PflashWrite *w = QSIMPLEQ_FIRST(&behind->queue);

    blk_set_disable_request_queuing(behind->blk, w);
    if (w) {
        blk_aio_pwritev(behind->blk, w->offset, &w->qiov, 0, write_done, w);
    }
}

/* Make it one with the last that waits, if that has the same place. */
static bool merge(PflashBehind *behind, int64_t offset, const void *data,
                  int64_t bytes)
{
    PflashWrite *last = QSIMPLEQ_LAST(&behind->queue, PflashWrite, next);

    if (!last || last == QSIMPLEQ_FIRST(&behind->queue) ||
        last->offset != offset || last->qiov.size != bytes) {
        return false;
    }
    memcpy(last->data, data, bytes);
    return true;
}

void pflash_behind_write(PflashBehind *behind, int64_t offset,
                         const void *data, int64_t bytes)
{
    bool was_empty = QSIMPLEQ_EMPTY(&behind->queue);
    PflashWrite *w;

    if (was_empty && blk_in_drain(behind->blk)) {
        pflash_site.refused++;
        write_now(behind, offset, data, bytes);
        return;
    }
    if (merge(behind, offset, data, bytes)) {
        return;
    }
    if (!was_empty && behind->waiting_bytes + bytes > PFLASH_BEHIND_BYTES) {
        pflash_site.refused++;
        blk_drain(behind->blk);
        was_empty = true;
    }
    pflash_site.parked++;
    w = g_malloc(sizeof(*w) + bytes);
    w->behind = behind;
    w->offset = offset;
    memcpy(w->data, data, bytes);
    qemu_iovec_init(&w->qiov, 1);
    qemu_iovec_add(&w->qiov, w->data, bytes);
    behind->waiting_bytes += bytes;
    QSIMPLEQ_INSERT_TAIL(&behind->queue, w, next);
    if (was_empty) {
        start_first(behind);
    }
}

static bool drained_poll(void *opaque)
{
    PflashBehind *behind = opaque;

    return !QSIMPLEQ_EMPTY(&behind->queue);
}

static const BlockDevOps dev_ops = {
    .drained_poll = drained_poll,
};

bool pflash_behind_realize(PflashBehind *behind, BlockBackend *blk,
                           const char *type, Error **errp)
{
    if (!behind->on) {
        return true;
    }
    if (replay_mode != REPLAY_MODE_NONE || icount_enabled()) {
        error_setg(errp, "Property 'write-behind' of %s is on, but must be "
                   "off with record/replay and icount", type);
        return false;
    }
    if (!blk) {
        behind->on = false;
        return true;
    }
    behind->blk = blk;
    QSIMPLEQ_INIT(&behind->queue);
    blk_set_dev_ops(blk, &dev_ops, behind);
    async_call_show_site(&pflash_site);
    return true;
}

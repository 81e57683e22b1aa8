/*
 * Posted MMIO: block requests of handlers
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/main-loop.h"
#include "qemu/memalign.h"
#include "system/block-backend.h"
#include "system/posted-mmio.h"

/* Held by the handler, until it is given up, and by the request */
typedef struct PostedBlk {
    unsigned refs;
    AsyncCall *call;            /* NULL: given up */
    BlockBackend *blk;
    int64_t offset;
    bool is_write;
    bool started;
    bool done;
    QEMUIOVector qiov;
    void *data;
} PostedBlk;

static void posted_blk_unref(PostedBlk *r)
{
    if (--r->refs) {
        return;
    }
    qemu_iovec_destroy(&r->qiov);
    qemu_vfree(r->data);
    blk_unref(r->blk);
    g_free(r);
}

/* To a handler, -ECANCELED says that it was given up. */
static int disk_result(int ret)
{
    return ret == -ECANCELED ? -EIO : ret;
}

static void posted_blk_done(void *opaque, int ret)
{
    PostedBlk *r = opaque;

    r->done = true;
    if (r->call) {
        async_call_wake(r->call, disk_result(ret));
    }
    posted_blk_unref(r);
}

/*
 * Not on the second stack: what is entered there gets the context of the second
 * stack, which a drain does not poll.
 */
static void posted_blk_start(void *opaque)
{
    PostedBlk *r = opaque;

    if (!r->started) {
        r->started = true;
        r->refs++;
        if (r->is_write) {
            blk_aio_pwritev(r->blk, r->offset, &r->qiov, 0, posted_blk_done, r);
        } else {
            blk_aio_preadv(r->blk, r->offset, &r->qiov, 0, posted_blk_done, r);
        }
    }
}

static void posted_blk_start_bh(void *opaque)
{
    posted_blk_start(opaque);
    posted_blk_unref(opaque);
}

/*
 * A drain ends requests that wait longer otherwise, as in a throttle.  While
 * somebody else has the disk drained, a request waits for the end of that and
 * counts as none; to wait for it here would be for ever.
 */
static bool posted_blk_finish(void *opaque)
{
    PostedBlk *r = opaque;
    bool done;

    r->refs++;
    posted_blk_start(r);
    blk_drain(r->blk);
    while (!r->done && aio_poll(qemu_get_aio_context(), false)) {
        /* its completion is a bottom half */
    }
    done = r->done;
    posted_blk_unref(r);
    return done;
}

static int coroutine_fn posted_blk_rw(PostedQueue *q, BlockBackend *blk,
                                      int64_t offset, int64_t bytes, void *buf,
                                      bool is_write)
{
    PostedBlk *r;
    int ret;

    if (!blk_bs(blk)) {
        /* a medium may come before the request is sent: not for this */
        return -ENOMEDIUM;
    }
    r = g_new0(PostedBlk, 1);
    blk_ref(blk);
    r->refs = 2;                /* the handler's and the bottom half's */
    r->call = q->call;
    r->blk = blk;
    r->offset = offset;
    r->is_write = is_write;
    r->data = blk_blockalign(blk, bytes);
    qemu_iovec_init(&r->qiov, 1);
    qemu_iovec_add(&r->qiov, r->data, bytes);
    if (is_write) {
        memcpy(r->data, buf, bytes);
    }
    aio_bh_schedule_oneshot(qemu_get_aio_context(), posted_blk_start_bh, r);
    ret = posted_mmio_park(q, posted_blk_finish, r);
    if (ret == 0 && !is_write) {
        memcpy(buf, r->data, bytes);
    }
    r->call = NULL;
    posted_blk_unref(r);
    return ret;
}

int coroutine_mixed_fn posted_blk_pwrite(PostedQueue *q, BlockBackend *blk,
                                         int64_t offset, int64_t bytes,
                                         const void *buf)
{
    if (!q || !q->call) {
        return disk_result(blk_pwrite(blk, offset, bytes, buf, 0));
    }
    return posted_blk_rw(q, blk, offset, bytes, (void *)buf, true);
}

int coroutine_mixed_fn posted_blk_pread(PostedQueue *q, BlockBackend *blk,
                                        int64_t offset, int64_t bytes,
                                        void *buf)
{
    if (!q || !q->call) {
        return disk_result(blk_pread(blk, offset, bytes, buf, 0));
    }
    return posted_blk_rw(q, blk, offset, bytes, buf, false);
}

/* The block layer has not begun to remove it. */
static void medium_removed(Notifier *notifier, void *opaque)
{
    posted_mmio_settle(container_of(notifier, PostedMedium, removed)->q);
}

void posted_blk_watch_medium(PostedQueue *q, BlockBackend *blk,
                             PostedMedium *m)
{
    if (q && q->on) {
        m->q = q;
        m->removed.notify = medium_removed;
        blk_add_remove_bs_notifier(blk, &m->removed);
    }
}

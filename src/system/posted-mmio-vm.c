/*
 * Posted MMIO: block requests, migration, statistics
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "exec/icount.h"
#include "hw/qdev-core.h"
#include "migration/vmstate.h"
#include "monitor/monitor.h"
#include "qapi/error.h"
#include "qemu/main-loop.h"
#include "qemu/memalign.h"
#include "system/async-call-vm.h"
#include "system/block-backend.h"
#include "system/hotpath-stats.h"
#include "system/posted-mmio.h"
#include "system/replay.h"

/*
 * Block requests of handlers
 */

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

static void posted_blk_done(void *opaque, int ret)
{
    PostedBlk *r = opaque;

    r->done = true;
    if (r->call) {
        async_call_wake(r->call, ret);
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
    PostedBlk *r = g_new0(PostedBlk, 1);
    int ret;

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
        return blk_pwrite(blk, offset, bytes, buf, 0);
    }
    return posted_blk_rw(q, blk, offset, bytes, (void *)buf, true);
}

int coroutine_mixed_fn posted_blk_pread(PostedQueue *q, BlockBackend *blk,
                                        int64_t offset, int64_t bytes,
                                        void *buf)
{
    if (!q || !q->call) {
        return blk_pread(blk, offset, bytes, buf, 0);
    }
    return posted_blk_rw(q, blk, offset, bytes, buf, false);
}

/*
 * Statistics
 */

static const HotpathStat posted_stats[] = {
    { "posted-mmio-now", STATS_TYPE_INSTANT },
    { "posted-mmio-queued", STATS_TYPE_CUMULATIVE },
    { "posted-mmio-waited", STATS_TYPE_CUMULATIVE },
    { "posted-mmio-drained", STATS_TYPE_CUMULATIVE },
    { "posted-mmio-dropped", STATS_TYPE_CUMULATIVE },
};

static bool read_stats(CPUState *cpu, uint64_t *values)
{
    PostedTotals t;

    posted_mmio_totals(&t);
    values[0] = t.now;
    values[1] = t.queued;
    values[2] = t.waited;
    values[3] = t.drained;
    values[4] = t.dropped;
    return true;
}

static const HotpathStatsGroup posted_stats_group = {
    .target = STATS_TARGET_VM,
    .stats = posted_stats,
    .count = ARRAY_SIZE(posted_stats),
    .read = read_stats,
};

static void show_info(Monitor *mon)
{
    PostedTotals t;

    posted_mmio_totals(&t);
    monitor_printf(mon, "posted writes: %" PRIu64 " queued (limit: %u), %"
                   PRIu64 " were; vCPU waited %" PRIu64 ", others waited %"
                   PRIu64 ", dropped %" PRIu64 "\n", t.now,
                   POSTED_MAX_WRITES_ALL, t.queued, t.waited, t.drained,
                   t.dropped);
}

/*
 * Life
 */

bool posted_mmio_realize(PostedQueue *q, DeviceState *dev, Error **errp)
{
    if (!q->on) {
        return true;
    }
    if (replay_mode != REPLAY_MODE_NONE || icount_enabled()) {
        error_setg(errp, "Property 'posted-writes' of %s is on, but must be "
                   "off with record/replay and icount",
                   object_get_typename(OBJECT(dev)));
        return false;
    }
    posted_mmio_init(q, dev);
    q->vm_state = qdev_add_vm_change_state_handler(dev, posted_mmio_vm_changed,
                                                   NULL, q);
    async_call_show_site(&posted_mmio_site);
    async_call_show_info(show_info);
    hotpath_stats_register(&posted_stats_group);
    return true;
}

void posted_mmio_unrealize(PostedQueue *q)
{
    if (q->vm_state) {
        qemu_del_vm_change_state_handler(g_steal_pointer(&q->vm_state));
        posted_mmio_give_up(q);
    }
}

/*
 * Migration
 */

static int write_pre_save(void *opaque)
{
    PostedWrite *w = opaque;
    MemTxAttrs a = w->attrs;

    w->attrs_vmstate = a.secure | a.space << 1 | a.user << 3 | a.memory << 4 |
                       a.debug << 5 | a.unspecified << 6 |
                       a.address_type << 7 | a.pid << 8 | a.requester_id << 16;
    return 0;
}

static int write_post_load(void *opaque, int version_id)
{
    PostedWrite *w = opaque;
    uint32_t a = w->attrs_vmstate;

    w->attrs = (MemTxAttrs) {
        .secure = a, .space = a >> 1, .user = a >> 3, .memory = a >> 4,
        .debug = a >> 5, .unspecified = a & 0x40, .address_type = a >> 7,
        .pid = a >> 8, .requester_id = a >> 16,
    };
    return 0;
}

static const VMStateDescription vmstate_posted_write = {
    .name = "posted-mmio-write",
    .version_id = 1,
    .minimum_version_id = 1,
    .pre_save = write_pre_save,
    .post_load = write_post_load,
    .fields = (const VMStateField[]) {
        VMSTATE_UINT32(region, PostedWrite),
        VMSTATE_UINT32(size, PostedWrite),
        VMSTATE_UINT64(addr, PostedWrite),
        VMSTATE_UINT64(data, PostedWrite),
        VMSTATE_UINT32(attrs_vmstate, PostedWrite),
        VMSTATE_END_OF_LIST()
    },
};

bool posted_mmio_pre_load(PostedQueue *q, Error **errp)
{
    if (!q || !q->on) {
        error_setg(errp, "Writes are queued in the incoming device, whose "
                   "property 'posted-writes' must be on here, too");
        return false;
    }
    posted_mmio_reset(q);
    return true;
}

static bool num_is_valid(void *opaque, int version_id)
{
    PostedQueue *q = opaque;

    return q->num_vmstate <= POSTED_MAX_WRITES;
}

static int queue_pre_save(void *opaque)
{
    PostedQueue *q = opaque;

    q->num_vmstate = q->num;
    return 0;
}

static int queue_post_load(void *opaque, int version_id)
{
    return posted_mmio_loaded(opaque) ? 0 : -EINVAL;
}

const VMStateDescription vmstate_posted_mmio = {
    .name = "posted-mmio",
    .version_id = 1,
    .minimum_version_id = 1,
    .pre_save = queue_pre_save,
    .post_load = queue_post_load,
    .fields = (const VMStateField[]) {
        VMSTATE_UINT32(num_vmstate, PostedQueue),
        VMSTATE_VALIDATE("too many writes", num_is_valid),
        VMSTATE_STRUCT_VARRAY_UINT32(writes, PostedQueue, num_vmstate, 1,
                                     vmstate_posted_write, PostedWrite),
        VMSTATE_END_OF_LIST()
    },
};

/*
 * Posted MMIO: migration, statistics
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
#include "system/async-call-vm.h"
#include "system/hotpath-stats.h"
#include "system/posted-mmio.h"
#include "system/replay.h"

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

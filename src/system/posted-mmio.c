/*
 * Posted MMIO: the vCPU goes on while a device's write handler waits
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The queue stands between the dispatch of an access and the re-entrancy guard
 * of the device: a handler that is parked inside the guard would make every
 * later access of the device fail.  So a posted region has callbacks of this
 * file, which apply the guard themselves, and the dispatch does not.  Every
 * way to a region leads through its callbacks, and a region that is not posted
 * pays nothing.
 *
 * There is one handler of a device at a time: it runs, or it is parked, and
 * then later writes are queued.  The handler that is parked goes on in the main
 * loop (see async-call.c), and so do those of queued writes, from a bottom half
 * in the same context.  A stop, a reset, a full queue, and a write of somebody
 * who is not a vCPU let the parked handler come to its end at once, wherever
 * that happens: what it waits for is a block request, and to wait for it is
 * what they did without us.
 */

#include "qemu/osdep.h"
#include "hw/core/cpu.h"
#include "hw/qdev-core.h"
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "qemu/main-loop.h"
#include "system/cpus.h"
#include "system/posted-mmio.h"
#include "system/qtest.h"
#include "trace.h"

/* How long a handler waits before it looks again if the guard is free */
#define GUARD_POLL_NS SCALE_MS

AsyncCallSite posted_mmio_site = { .name = "mmio" };

static PostedTotals totals;

static const char *queue_name(const PostedQueue *q)
{
    return q->owner.id;
}

/*
 * The re-entrancy guard, as access_with_adjusted_size() has it
 */

static bool guard_enter(PostedRegion *r, hwaddr addr)
{
    if (!r->guard) {
        return true;
    }
    if (r->guard->engaged_in_io) {
        warn_report_once("Blocked re-entrant IO on MemoryRegion: "
                         "%s at addr: 0x%" HWADDR_PRIX,
                         memory_region_name(r->mr), addr);
        return false;
    }
    r->guard->engaged_in_io = true;
    return true;
}

static void guard_leave(PostedRegion *r)
{
    if (r->guard) {
        r->guard->engaged_in_io = false;
    }
}

/*
 * References: whoever unplugs the device, region and device stay until the
 * write has taken effect or is dropped.
 */

static void hold(PostedQueue *q, const PostedWrite *w)
{
    object_ref(OBJECT(q->dev));
    memory_region_ref(q->regions[w->region].mr);
}

/* May free the queue. */
static void release(PostedQueue *q, const PostedWrite *w)
{
    DeviceState *dev = q->dev;

    memory_region_unref(q->regions[w->region].mr);
    object_unref(OBJECT(dev));
}

/*
 * The queue
 */

static bool push(PostedQueue *q, const PostedWrite *w)
{
    if (q->num == POSTED_MAX_WRITES || totals.now >= POSTED_MAX_WRITES_ALL) {
        trace_posted_mmio_full(queue_name(q), q->num, totals.now);
        return false;
    }
    hold(q, w);
    q->writes[q->num++] = *w;
    totals.now++;
    totals.queued++;
    trace_posted_mmio_queue(queue_name(q), w->region, w->addr, w->data,
                            w->size, q->num);
    return true;
}

static PostedWrite pop(PostedQueue *q)
{
    PostedWrite first = q->writes[0];

    q->num--;
    totals.now--;
    memmove(q->writes, q->writes + 1, q->num * sizeof(first));
    return first;
}

static void drop_all(PostedQueue *q)
{
    if (q->num) {
        trace_posted_mmio_drop(queue_name(q), q->num);
        totals.dropped += q->num;
    }
    while (q->num) {
        PostedWrite w = pop(q);

        release(q, &w);
    }
}

/*
 * Handlers
 */

static MemTxResult call_handler(PostedQueue *q, const PostedWrite *w)
{
    PostedRegion *r = &q->regions[w->region];
    MemTxResult result = MEMTX_OK;

    if (!guard_enter(r, w->addr)) {
        return MEMTX_ACCESS_ERROR;
    }
    q->running++;
    if (r->ops->write) {
        r->ops->write(r->opaque, w->addr, w->data, w->size);
    } else {
        result = r->ops->write_with_attrs(r->opaque, w->addr, w->data,
                                          w->size, w->attrs);
    }
    q->running--;
    guard_leave(r);
    return result;
}

static int coroutine_fn run_on_second_stack(AsyncCall *call, void *opaque)
{
    PostedQueue *q = opaque;
    PostedWrite w = q->now;
    MemTxResult result;

    q->call = call;
    result = call_handler(q, &w);
    q->call = NULL;
    if (async_call_cancelled(call)) {
        /* by a reset: the device has a queue again */
        if (q->on && q->num) {
            qemu_bh_schedule(q->bh);
        }
        release(q, &w);
    }
    return result;
}

/* A handler that was parked has ended.  This does not run for one given up. */
static void parked_done(void *opaque, int ret)
{
    PostedQueue *q = opaque;

    if (q->num) {
        qemu_bh_schedule(q->bh);
    }
    release(q, &q->now);
}

/* @held: @w has references. */
static MemTxResult run(PostedQueue *q, const PostedWrite *w, bool held)
{
    AsyncCallResult how;
    int ret = MEMTX_OK;

    q->now = *w;
    q->held = held;
    how = async_call(&q->owner, &posted_mmio_site, run_on_second_stack,
                     parked_done, q, &ret);
    if (how == ASYNC_CALL_PARKED) {
        /* if not, the handler waits in a way that is not allowed */
        assert(q->parked);
        return MEMTX_OK;
    }
    if (how == ASYNC_CALL_REFUSED) {
        ret = call_handler(q, w);
    }
    if (held) {
        release(q, w);
    }
    return ret;
}

static void run_first(PostedQueue *q)
{
    PostedWrite w = pop(q);

    run(q, &w, true);
}

static void run_queued(void *opaque)
{
    PostedQueue *q = opaque;
    DeviceState *dev = q->dev;

    object_ref(OBJECT(dev));
    while (q->num && !q->parked && !q->running && !q->stopped) {
        run_first(q);
    }
    object_unref(OBJECT(dev));
}

/*
 * The region may be accessed in another thread that has let go of the big
 * lock in the middle of it.
 */
static void coroutine_fn wait_guard_free(AsyncCall *call, PostedRegion *r)
{
    int ret = 0;

    while (ret != -ECANCELED && r->guard && r->guard->engaged_in_io) {
        ret = async_call_park(call, GUARD_POLL_NS);
    }
}

int coroutine_fn posted_mmio_park(PostedQueue *q, PostedFinish *finish,
                                  void *opaque)
{
    AsyncCall *call = q->call;
    PostedRegion *r = &q->regions[q->now.region];
    int ret;

    if (!q->held) {
        q->held = true;
        hold(q, &q->now);
    }
    q->finish = finish;
    q->finish_opaque = opaque;
    q->parked = call;
    q->call = NULL;
    q->running--;
    guard_leave(r);

    ret = async_call_park(call, -1);

    q->finish = NULL;
    wait_guard_free(call, r);
    if (r->guard) {
        r->guard->engaged_in_io = true;
    }
    q->running++;
    q->call = call;
    q->parked = NULL;
    return async_call_cancelled(call) ? -ECANCELED : ret;
}

/*
 * A handler may go on in the main thread, where there is no vCPU; so that it
 * sees the same in any case, there is none from the beginning.
 */
static CPUState *leave_cpu(void)
{
    CPUState *cpu = current_cpu;

    current_cpu = NULL;
    return cpu;
}

static void return_to_cpu(CPUState *cpu)
{
    current_cpu = cpu;
    /* KVM's signal handler has not found us if somebody waits for us */
    if (cpu && unlikely(qatomic_read(&cpu->has_waiter))) {
        qemu_cpu_kick(cpu);
    }
}

bool posted_mmio_finish(PostedQueue *q)
{
    CPUState *cpu = leave_cpu();

    if (q->parked && q->finish && async_call_cancelled(q->parked)) {
        /* it will not go on here, but what it has begun has to happen */
        q->finish(q->finish_opaque);
    }
    while (q->parked && q->finish && !async_call_cancelled(q->parked)) {
        trace_posted_mmio_finish(queue_name(q));
        if (!q->finish(q->finish_opaque)) {
            break;
        }
        async_call_drain(&q->owner, 0);
    }
    return_to_cpu(cpu);
    return !q->parked;
}

/* Let everything that was written take effect. */
static bool drain(PostedQueue *q)
{
    while (posted_mmio_finish(q)) {
        if (!q->num) {
            return true;
        }
        run_first(q);
    }
    return false;
}

void posted_mmio_settle(PostedQueue *q)
{
    CPUState *cpu = leave_cpu();

    if (q->stopped || !drain(q)) {
        drop_all(q);
    }
    return_to_cpu(cpu);
}

/*
 * Accesses
 */

static bool is_vcpu_access(const PostedQueue *q)
{
    if (qemu_in_coroutine() || q->stopped) {
        return false;
    }
    /* the test program is the vCPU */
    return qtest_enabled() ||
           (qemu_in_vcpu_thread() && !cpu_in_exclusive_context(current_cpu));
}

static MemTxResult vcpu_write(PostedQueue *q, const PostedWrite *w)
{
    if (!posted_mmio_busy(q)) {
        return run(q, w, false);
    }
    if (push(q, w)) {
        return MEMTX_OK;
    }
    totals.waited++;
    if (drain(q)) {
        return run(q, w, false);
    }
    totals.dropped++;
    return MEMTX_ACCESS_ERROR;
}

/*
 * DMA, a monitor, a debugger.  Where it cannot wait for its turn, because that
 * needs an event loop and a running VM, it takes it in the queue.
 */
static MemTxResult other_write(PostedQueue *q, const PostedWrite *w)
{
    if (qemu_in_coroutine() || q->stopped) {
        return push(q, w) ? MEMTX_OK : MEMTX_ACCESS_ERROR;
    }
    totals.drained++;
    return drain(q) ? call_handler(q, w) : MEMTX_ACCESS_ERROR;
}

static MemTxResult posted_write(void *opaque, hwaddr addr, uint64_t data,
                                unsigned size, MemTxAttrs attrs)
{
    PostedRegion *r = opaque;
    PostedQueue *q = r->queue;
    PostedWrite w = {
        .region = r - q->regions,
        .size = size,
        .addr = addr,
        .data = data,
        .attrs = attrs,
    };
    bool is_vcpu = is_vcpu_access(q);
    MemTxResult result;
    CPUState *cpu;

    /* from within a handler of the device: its guard decides */
    if (q->running || !(is_vcpu || posted_mmio_busy(q)) || !q->on) {
        return call_handler(q, &w);
    }
    cpu = leave_cpu();
    result = is_vcpu ? vcpu_write(q, &w) : other_write(q, &w);
    return_to_cpu(cpu);
    return result;
}

static MemTxResult posted_read(void *opaque, hwaddr addr, uint64_t *data,
                               unsigned size, MemTxAttrs attrs)
{
    PostedRegion *r = opaque;
    MemTxResult result = MEMTX_OK;

    if (!guard_enter(r, addr)) {
        return MEMTX_ACCESS_ERROR;
    }
    if (r->ops->read) {
        *data = r->ops->read(r->opaque, addr, size);
    } else {
        result = r->ops->read_with_attrs(r->opaque, addr, data, size, attrs);
    }
    guard_leave(r);
    return result;
}

static bool posted_accepts(void *opaque, hwaddr addr, unsigned size,
                           bool is_write, MemTxAttrs attrs)
{
    PostedRegion *r = opaque;

    return r->ops->valid.accepts(r->opaque, addr, size, is_write, attrs);
}

/*
 * Life
 */

void posted_mmio_init(PostedQueue *q, DeviceState *dev)
{
    const char *id = dev ? object_get_typename(OBJECT(dev)) : "posted";

    assert(q->on);
    q->dev = dev;
    q->stopped = true;
    async_call_owner_init(&q->owner, id, ASYNC_CALL_MAX_PARKED_OWNER);
    /* nested event loops do not run this context */
    q->bh = aio_bh_new(iohandler_get_aio_context(), run_queued, q);
}

static const char *not_eligible(const PostedQueue *q, const MemoryRegion *mr)
{
    if (mr->lockless_io) {
        return "it is accessed without the big lock";
    }
    if (!mr->terminates || mr->ram || mr->rom_device || mr->alias ||
        !mr->ops || !(mr->ops->write || mr->ops->write_with_attrs) ||
        !(mr->ops->read || mr->ops->read_with_attrs)) {
        return "it is no I/O region";
    }
    if (q->num_regions == POSTED_MAX_REGIONS) {
        return "the device has 4 posted regions already, which is the limit";
    }
    return NULL;
}

bool posted_mmio_add(PostedQueue *q, MemoryRegion *mr, Error **errp)
{
    const char *why = not_eligible(q, mr);
    PostedRegion *r;

    QEMU_BUILD_BUG_ON(POSTED_MAX_REGIONS != 4);
    if (why) {
        error_setg(errp, "Property 'posted-writes' is on, but writes to region "
                   "'%s' cannot be posted: %s", memory_region_name(mr), why);
        return false;
    }
    r = &q->regions[q->num_regions++];
    *r = (PostedRegion) {
        .queue = q,
        .mr = mr,
        .ops = mr->ops,
        .opaque = mr->opaque,
        .posted_ops = *mr->ops,
    };
    if (mr->dev && !mr->disable_reentrancy_guard) {
        r->guard = &mr->dev->mem_reentrancy_guard;
    }
    r->posted_ops.read = NULL;
    r->posted_ops.write = NULL;
    r->posted_ops.read_with_attrs = posted_read;
    r->posted_ops.write_with_attrs = posted_write;
    if (mr->ops->valid.accepts) {
        r->posted_ops.valid.accepts = posted_accepts;
    }
    mr->ops = &r->posted_ops;
    mr->opaque = r;
    mr->disable_reentrancy_guard = true;
    return true;
}

void posted_mmio_vm_changed(void *opaque, bool running, RunState state)
{
    PostedQueue *q = opaque;

    q->stopped = !running;
    if (running) {
        qemu_bh_schedule(q->bh);
    } else {
        posted_mmio_finish(q);
    }
}

void posted_mmio_reset(PostedQueue *q)
{
    if (q->on) {
        if (!posted_mmio_finish(q)) {
            async_call_cancel(&q->owner);
        }
        drop_all(q);
    }
}

void posted_mmio_give_up(PostedQueue *q)
{
    if (!q->bh) {
        return;
    }
    q->on = false;
    drop_all(q);
    async_call_cancel(&q->owner);
    qemu_bh_delete(g_steal_pointer(&q->bh));
}

static bool fits(const PostedQueue *q, const PostedWrite *w)
{
    uint64_t bytes;

    if (w->region >= q->num_regions || !is_power_of_2(w->size) ||
        w->size > 8) {
        return false;
    }
    bytes = memory_region_size(q->regions[w->region].mr);
    return w->addr < bytes && w->size <= bytes - w->addr;
}

bool posted_mmio_loaded(PostedQueue *q)
{
    uint32_t num = q->num_vmstate;

    if (num > POSTED_MAX_WRITES) {
        return false;
    }
    for (uint32_t i = 0; i < num; i++) {
        if (!fits(q, &q->writes[i])) {
            drop_all(q);
            return false;
        }
        hold(q, &q->writes[i]);
        q->num++;
        totals.now++;
    }
    return true;
}

void posted_mmio_totals(PostedTotals *t)
{
    *t = totals;
}

/*
 * Unit test: posted MMIO
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A device whose write handler waits when the data say so, and notes the order
 * in which writes take effect.  The test is the vCPU and the main loop; what a
 * handler waits for happens when the test, or a thread, says so.
 */

#include "qemu/osdep.h"
#include "block/aio.h"
#include "block/block_int.h"
#include "hw/core/cpu.h"
#include "qapi/error.h"
#include "qemu/main-loop.h"
#include "qemu/timer.h"
#include "qemu/thread.h"
#include "system/block-backend.h"
#include "system/cpus.h"
#include "system/posted-mmio.h"

#define WAITS 0x10000           /* in the data of a write: its handler waits */
#define DISK 0x40000            /* its handler writes a sector: the address */
#define NESTS 0x20000           /* its handler writes to its own region */
#define MAX_LOG 4096

typedef struct Dev {
    PostedQueue q;
    DeviceState state;          /* only its guard is used */
    MemoryRegion mr;
    int refs;
    unsigned count;             /* writes that have taken effect */
    uint64_t log[MAX_LOG];
    MemTxAttrs attrs;           /* of the last */
    AsyncCall *waiting;
    unsigned waits;
    int last_wait;
    MemTxResult nested;
    bool seen_cpu;
    bool seen_guard_free;
    bool stuck;                 /* it cannot be finished */
    BlockBackend *blk;
    int disk_ret;
    PostedMedium medium;
} Dev;

static CPUState *cpu;
static bool in_vcpu = true;
static unsigned kicks;

/*
 * What a VM would bring
 */

__thread CPUState *current_cpu;

bool qemu_in_vcpu_thread(void)
{
    return in_vcpu && current_cpu;
}

void qemu_cpu_kick(CPUState *c)
{
    kicks++;
}

void memory_region_ref(MemoryRegion *mr)
{
    container_of(mr, Dev, mr)->refs++;
}

void memory_region_unref(MemoryRegion *mr)
{
    container_of(mr, Dev, mr)->refs--;
}

uint64_t memory_region_size(MemoryRegion *mr)
{
    return int128_get64(mr->size);
}

const char *memory_region_name(const MemoryRegion *mr)
{
    return "test";
}

/*
 * The device
 */

static bool dev_finish(void *opaque)
{
    Dev *d = opaque;

    if (d->stuck) {
        return false;
    }
    async_call_wake(d->waiting, 1);
    return true;
}

static MemTxResult dev_access(Dev *d, uint64_t data, MemTxAttrs attrs)
{
    return d->mr.ops->write_with_attrs(d->mr.opaque, data & 0xf8, data, 8,
                                       attrs);
}

static MemTxResult dev_write(void *opaque, hwaddr addr, uint64_t data,
                             unsigned size, MemTxAttrs attrs)
{
    Dev *d = opaque;

    g_assert_cmpuint(size, ==, 8);
    g_assert_cmphex(addr, ==, data & 0xf8);
    d->seen_cpu |= current_cpu != NULL;
    d->seen_guard_free |= !d->state.mem_reentrancy_guard.engaged_in_io;
    if (data & NESTS) {
        d->nested = dev_access(d, 1, attrs);
    }
    if (data & DISK) {
        uint8_t sector[BDRV_SECTOR_SIZE];

        memset(sector, 0x5a, sizeof(sector));
        d->disk_ret = posted_blk_pwrite(&d->q, d->blk,
                                        addr / 8 * BDRV_SECTOR_SIZE,
                                        sizeof(sector), sector);
    }
    if ((data & WAITS) && d->q.call) {
        d->waiting = d->q.call;
        d->waits++;
        d->last_wait = posted_mmio_park(&d->q, dev_finish, d);
        d->waiting = NULL;
        if (d->last_wait == -ECANCELED) {
            return MEMTX_OK;
        }
        d->seen_cpu |= current_cpu != NULL;
        d->seen_guard_free |= !d->state.mem_reentrancy_guard.engaged_in_io;
    }
    d->log[d->count++ % MAX_LOG] = data;
    d->attrs = attrs;
    return data & 1 ? MEMTX_ERROR : MEMTX_OK;
}

static uint64_t dev_read(void *opaque, hwaddr addr, unsigned size)
{
    Dev *d = opaque;

    g_assert_true(d->state.mem_reentrancy_guard.engaged_in_io);
    return posted_mmio_busy(&d->q);
}

static const MemoryRegionOps dev_ops = {
    .read = dev_read,
    .write_with_attrs = dev_write,
    .valid.min_access_size = 8,
    .valid.max_access_size = 8,
};

static Dev *dev_new(void)
{
    Dev *d = g_new0(Dev, 1);

    d->mr.terminates = true;
    d->mr.ops = &dev_ops;
    d->mr.opaque = d;
    d->mr.dev = &d->state;
    d->mr.size = int128_make64(0x100);
    d->q.on = true;
    posted_mmio_init(&d->q, NULL);
    g_assert_true(posted_mmio_add(&d->q, &d->mr, &error_abort));
    posted_mmio_vm_changed(&d->q, true, RUN_STATE_RUNNING);
    current_cpu = cpu;
    return d;
}

static void dev_free(Dev *d)
{
    posted_mmio_give_up(&d->q);
    g_assert_cmpint(d->refs, ==, 0);
    g_assert_false(d->seen_cpu);
    g_assert_false(d->seen_guard_free);
    g_assert_false(d->state.mem_reentrancy_guard.engaged_in_io);
    g_free(d);
    current_cpu = NULL;
}

static MemTxResult poke(Dev *d, uint64_t data)
{
    return dev_access(d, data, MEMTXATTRS_UNSPECIFIED);
}

static uint64_t peek(Dev *d)
{
    uint64_t data;

    g_assert_cmpint(d->mr.ops->read_with_attrs(d->mr.opaque, 0, &data, 8,
                                               MEMTXATTRS_UNSPECIFIED), ==,
                    MEMTX_OK);
    return data;
}

/* The main loop has no vCPU. */
static void loop(bool nonblocking)
{
    CPUState *saved = current_cpu;

    current_cpu = NULL;
    main_loop_wait(nonblocking);
    current_cpu = saved;
}

static void loop_until(Dev *d, unsigned count)
{
    while (d->count < count) {
        loop(false);
    }
}

static void loop_until_waiting(Dev *d)
{
    while (!d->waiting) {
        loop(false);
    }
}

static void check_log(Dev *d, unsigned count, ...)
{
    va_list ap;

    g_assert_cmpuint(d->count, ==, count);
    va_start(ap, count);
    for (unsigned i = 0; i < count; i++) {
        g_assert_cmphex(d->log[i], ==, va_arg(ap, int));
    }
    va_end(ap);
}

/*
 * Tests
 */

static void test_inline(void)
{
    uint64_t inlined = posted_mmio_site.inlined;
    Dev *d = dev_new();

    g_assert_cmpint(poke(d, 8), ==, MEMTX_OK);
    g_assert_cmpint(poke(d, 9), ==, MEMTX_ERROR);
    g_assert_true(current_cpu == cpu);
    g_assert_cmpuint(peek(d), ==, 0);
    g_assert_cmpint(d->refs, ==, 0);
    g_assert_cmpuint(posted_mmio_site.inlined, ==, inlined + 2);
    check_log(d, 2, 8, 9);
    dev_free(d);
}

static void test_park(void)
{
    MemTxAttrs attrs = { .requester_id = 0x1234, .secure = 1 };
    Dev *d = dev_new();

    g_assert_cmpint(poke(d, WAITS | 8), ==, MEMTX_OK);
    g_assert_true(current_cpu == cpu);
    g_assert_false(d->state.mem_reentrancy_guard.engaged_in_io);
    g_assert_cmpuint(peek(d), ==, 1);
    g_assert_cmpint(d->refs, ==, 1);
    g_assert_cmpint(poke(d, 2), ==, MEMTX_OK);
    g_assert_cmpint(poke(d, WAITS | 3), ==, MEMTX_OK);
    g_assert_cmpint(dev_access(d, 4, attrs), ==, MEMTX_OK);
    g_assert_cmpint(d->refs, ==, 4);
    check_log(d, 0);

    async_call_wake(d->waiting, 7);
    loop_until(d, 2);
    g_assert_cmpint(d->last_wait, ==, 7);
    g_assert_cmpuint(peek(d), ==, 1);
    check_log(d, 2, WAITS | 8, 2);
    loop_until_waiting(d);
    async_call_wake(d->waiting, 8);
    loop_until(d, 4);
    check_log(d, 4, WAITS | 8, 2, WAITS | 3, 4);
    g_assert_cmphex(d->attrs.requester_id, ==, 0x1234);
    g_assert_true(d->attrs.secure);
    g_assert_false(d->attrs.unspecified);
    g_assert_cmpuint(peek(d), ==, 0);
    dev_free(d);
}

static void test_many_waits(void)
{
    Dev *d = dev_new();

    for (unsigned i = 1; i <= 20; i++) {
        poke(d, WAITS | i);
    }
    for (unsigned i = 1; i <= 20; i++) {
        loop_until_waiting(d);
        async_call_wake(d->waiting, 0);
        loop_until(d, i);
        g_assert_cmphex(d->log[i - 1], ==, WAITS | i);
    }
    dev_free(d);
}

/* What is woken goes on in the main loop, not in a nested event loop. */
static void test_nested_loop(void)
{
    Dev *d = dev_new();

    poke(d, WAITS | 1);
    poke(d, 2);
    async_call_wake(d->waiting, 0);
    for (int i = 0; i < 10; i++) {
        aio_poll(qemu_get_aio_context(), false);
    }
    check_log(d, 0);
    loop_until(d, 2);
    check_log(d, 2, WAITS | 1, 2);
    dev_free(d);
}

/* When it is full the vCPU waits, and nothing changes its place. */
static void test_full(void)
{
    PostedTotals before, after;
    Dev *d = dev_new();

    posted_mmio_totals(&before);
    poke(d, WAITS | 1);
    for (unsigned i = 2; i < 2 + POSTED_MAX_WRITES; i++) {
        poke(d, (i % 7 ? 0 : WAITS) | i);
    }
    g_assert_cmpuint(d->q.num, ==, POSTED_MAX_WRITES);
    check_log(d, 0);
    poke(d, 2 + POSTED_MAX_WRITES);
    posted_mmio_totals(&after);
    g_assert_true(current_cpu == cpu);
    g_assert_cmpuint(after.waited, ==, before.waited + 1);
    g_assert_cmpuint(after.queued, ==, before.queued + POSTED_MAX_WRITES);
    g_assert_cmpuint(d->count, ==, 2 + POSTED_MAX_WRITES);
    for (unsigned i = 0; i < d->count; i++) {
        g_assert_cmphex(d->log[i] & 0xffff, ==, i + 1);
    }
    g_assert_cmpint(d->refs, ==, 0);
    dev_free(d);
}

#define MANY (POSTED_MAX_WRITES_ALL / POSTED_MAX_WRITES + 1)

static void test_full_in_all(void)
{
    PostedTotals t;
    Dev *d[MANY];

    for (unsigned i = 0; i < MANY; i++) {
        d[i] = dev_new();
        poke(d[i], WAITS);
    }
    for (unsigned i = 0; i < MANY - 1; i++) {
        for (unsigned n = 1; n <= POSTED_MAX_WRITES; n++) {
            poke(d[i], n);
        }
    }
    posted_mmio_totals(&t);
    g_assert_cmpuint(t.now, ==, POSTED_MAX_WRITES_ALL);
    poke(d[MANY - 1], 5);
    check_log(d[MANY - 1], 2, WAITS, 5);
    for (unsigned i = 0; i < MANY; i++) {
        posted_mmio_reset(&d[i]->q);
        dev_free(d[i]);
        current_cpu = cpu;
    }
    posted_mmio_totals(&t);
    g_assert_cmpuint(t.now, ==, 0);
}

/* As many handlers are parked as may be: the next one does not park. */
static void test_refused(void)
{
    uint64_t refused = posted_mmio_site.refused;
    g_autofree Dev **d = g_new(Dev *, ASYNC_CALL_MAX_PARKED + 1);

    for (unsigned i = 0; i <= ASYNC_CALL_MAX_PARKED; i++) {
        d[i] = dev_new();
        poke(d[i], WAITS);
    }
    g_assert_cmpuint(posted_mmio_site.refused, ==, refused + 1);
    check_log(d[0], 0);
    check_log(d[ASYNC_CALL_MAX_PARKED], 1, WAITS);
    for (unsigned i = 0; i <= ASYNC_CALL_MAX_PARKED; i++) {
        g_assert_true(posted_mmio_finish(&d[i]->q));
        dev_free(d[i]);
    }
}

static int in_coroutine_result;

static void coroutine_fn write_in_coroutine(void *opaque)
{
    in_coroutine_result = poke(opaque, 3);
}

/* Only a vCPU's writes are posted; the others wait, or queue. */
static void test_others(void)
{
    PostedTotals before, after;
    Dev *d = dev_new();

    posted_mmio_totals(&before);
    /* nothing before it: as ever, whatever it would wait for */
    current_cpu = NULL;
    poke(d, WAITS | 1);
    check_log(d, 1, WAITS | 1);

    current_cpu = cpu;
    poke(d, WAITS | 2);
    qemu_coroutine_enter(qemu_coroutine_create(write_in_coroutine, d));
    g_assert_cmpint(in_coroutine_result, ==, MEMTX_OK);
    check_log(d, 1, WAITS | 1);
    current_cpu = NULL;
    g_assert_cmpint(poke(d, 4), ==, MEMTX_OK);
    check_log(d, 4, WAITS | 1, WAITS | 2, 3, 4);

    current_cpu = cpu;
    poke(d, WAITS | 5);
    cpu->exclusive_context_count = 1;
    g_assert_cmpint(poke(d, 6), ==, MEMTX_OK);
    cpu->exclusive_context_count = 0;
    check_log(d, 6, WAITS | 1, WAITS | 2, 3, 4, WAITS | 5, 6);
    posted_mmio_totals(&after);
    g_assert_cmpuint(after.drained, ==, before.drained + 2);

    /* a vCPU in an exclusive context waits itself, and is one */
    d->seen_cpu = false;
    cpu->exclusive_context_count = 1;
    poke(d, WAITS | 7);
    cpu->exclusive_context_count = 0;
    g_assert_cmpuint(d->count, ==, 7);
    g_assert_true(d->seen_cpu);
    d->seen_cpu = false;
    dev_free(d);
}

static void test_reentry(void)
{
    Dev *d = dev_new();

    poke(d, NESTS | 2);
    g_assert_cmpint(d->nested, ==, MEMTX_ACCESS_ERROR);
    poke(d, WAITS | 3);
    poke(d, NESTS | 4);
    d->nested = MEMTX_OK;
    async_call_wake(d->waiting, 0);
    loop_until(d, 3);
    g_assert_cmpint(d->nested, ==, MEMTX_ACCESS_ERROR);
    check_log(d, 3, NESTS | 2, WAITS | 3, NESTS | 4);
    dev_free(d);
}

static void leave_device(void *opaque)
{
    Dev *d = opaque;

    g_assert_cmpuint(d->count, ==, 0);
    d->state.mem_reentrancy_guard.engaged_in_io = false;
}

/* Woken in the middle of somebody else's access, a handler waits for its end */
static void test_guard_taken(void)
{
    QEMUTimer timer;
    Dev *d = dev_new();

    poke(d, WAITS | 1);
    d->state.mem_reentrancy_guard.engaged_in_io = true;
    async_call_wake(d->waiting, 0);
    timer_init_ms(&timer, QEMU_CLOCK_REALTIME, leave_device, d);
    timer_mod(&timer, qemu_clock_get_ms(QEMU_CLOCK_REALTIME) + 20);
    loop_until(d, 1);
    dev_free(d);
}

static void test_stop(void)
{
    Dev *d = dev_new();

    for (unsigned i = 0; i < 3; i++) {
        d->count = 0;
        poke(d, WAITS | 1);
        poke(d, WAITS | 2);
        poke(d, 3);
        if (i == 1) {
            async_call_wake(d->waiting, 0);
        }
        posted_mmio_vm_changed(&d->q, false, RUN_STATE_PAUSED);
        check_log(d, 1, WAITS | 1);
        g_assert_cmpuint(d->q.num, ==, 2);
        for (int n = 0; n < 5; n++) {
            loop(true);
        }
        /* a debugger: it has to queue */
        current_cpu = NULL;
        poke(d, 4);
        check_log(d, 1, WAITS | 1);
        posted_mmio_vm_changed(&d->q, true, RUN_STATE_RUNNING);
        loop_until(d, 1);
        loop_until_waiting(d);
        async_call_wake(d->waiting, 0);
        loop_until(d, 4);
        check_log(d, 4, WAITS | 1, WAITS | 2, 3, 4);
        current_cpu = cpu;
    }
    dev_free(d);
}

static void test_reset(void)
{
    PostedTotals before, after;
    Dev *d = dev_new();

    posted_mmio_totals(&before);
    poke(d, WAITS | 1);
    poke(d, WAITS | 2);
    poke(d, 3);
    posted_mmio_reset(&d->q);
    posted_mmio_totals(&after);
    g_assert_cmpuint(after.dropped, ==, before.dropped + 2);
    g_assert_cmpint(d->refs, ==, 0);
    check_log(d, 1, WAITS | 1);
    poke(d, 4);
    check_log(d, 2, WAITS | 1, 4);
    dev_free(d);
}

static void test_unplug(void)
{
    AsyncCall *call;
    Dev *d = dev_new();

    poke(d, WAITS | 1);
    poke(d, 2);
    call = d->waiting;
    posted_mmio_give_up(&d->q);
    g_assert_cmpint(d->refs, ==, 1);
    async_call_wake(call, 0);
    while (d->refs) {
        loop(false);
    }
    g_assert_cmpint(d->last_wait, ==, -ECANCELED);
    check_log(d, 0);
    g_assert_false(posted_mmio_busy(&d->q));
    dev_free(d);
}

/* The end of the VM gives up all calls; what comes then must not hang. */
static void test_quit(void)
{
    Dev *d = dev_new();

    poke(d, WAITS | 1);
    poke(d, 2);
    async_call_cancel_all();
    g_assert_false(posted_mmio_finish(&d->q));
    posted_mmio_vm_changed(&d->q, false, RUN_STATE_SHUTDOWN);
    while (d->waiting) {
        loop(false);
    }
    check_log(d, 0);
    dev_free(d);
}

/*
 * What a handler waits for cannot be made to happen: nothing hangs, and a reset
 * gives the handler up.
 */
static void test_stuck(void)
{
    Dev *d = dev_new();

    d->stuck = true;
    poke(d, WAITS | 1);
    poke(d, 2);
    posted_mmio_vm_changed(&d->q, false, RUN_STATE_PAUSED);
    g_assert_true(posted_mmio_parked(&d->q));
    posted_mmio_vm_changed(&d->q, true, RUN_STATE_RUNNING);
    posted_mmio_reset(&d->q);
    poke(d, 4);
    while (posted_mmio_busy(&d->q)) {
        loop(false);
    }
    g_assert_cmpint(d->last_wait, ==, -ECANCELED);
    check_log(d, 1, 4);
    poke(d, 6);
    check_log(d, 2, 4, 6);
    dev_free(d);
}

#define MEDIUM_SECTORS 8

/* Notes which sectors were written, a bit each */
static int coroutine_fn medium_co_pwritev(BlockDriverState *bs, int64_t offset,
                                          int64_t bytes, QEMUIOVector *qiov,
                                          BdrvRequestFlags flags)
{
    unsigned *written = bs->opaque;

    g_assert_cmpint(bytes, ==, BDRV_SECTOR_SIZE);
    *written |= 1 << offset / BDRV_SECTOR_SIZE;
    return 0;
}

static BlockDriver bdrv_medium = {
    .format_name = "medium",
    .instance_size = sizeof(unsigned),
    .bdrv_co_pwritev = medium_co_pwritev,
};

static BlockDriverState *medium_new(const char *name)
{
    BlockDriverState *bs = bdrv_new_open_driver(&bdrv_medium, name, BDRV_O_RDWR,
                                                &error_abort);

    bs->total_sectors = MEDIUM_SECTORS;
    return bs;
}

static unsigned medium_end(BlockDriverState *bs)
{
    unsigned written = *(unsigned *)bs->opaque;

    bdrv_unref(bs);
    return written;
}

/*
 * The medium is changed when a handler is parked and its request is not sent
 * yet, for the main loop has not run since: all goes to the old medium.
 */
static void test_medium(void)
{
    BlockDriverState *media[2] = { medium_new("a"), medium_new("b") };
    Dev *d = dev_new();

    d->blk = blk_new(qemu_get_aio_context(), BLK_PERM_ALL, BLK_PERM_ALL);
    posted_blk_watch_medium(&d->q, d->blk, &d->medium);

    /* what is written to an empty drive waits for no medium */
    poke(d, DISK | 5 << 3);
    g_assert_cmpint(blk_insert_bs(d->blk, media[0], &error_abort), ==, 0);
    loop_until(d, 1);
    g_assert_cmpint(d->disk_ret, ==, -ENOMEDIUM);
    d->count = 0;

    poke(d, DISK | 1 << 3);
    poke(d, DISK | 2 << 3);
    poke(d, DISK | 3 << 3);
    g_assert_true(posted_mmio_parked(&d->q));
    g_assert_cmpuint(d->count, ==, 0);
    blk_remove_bs(d->blk);
    g_assert_cmpint(blk_insert_bs(d->blk, media[1], &error_abort), ==, 0);
    loop_until(d, 3);
    check_log(d, 3, DISK | 1 << 3, DISK | 2 << 3, DISK | 3 << 3);
    g_assert_cmpint(d->disk_ret, ==, 0);

    /* what is written from now on goes to the new one */
    poke(d, DISK | 4 << 3);
    loop_until(d, 4);
    blk_remove_bs(d->blk);
    notifier_remove(&d->medium.removed);
    blk_unref(d->blk);
    g_assert_cmphex(medium_end(media[0]), ==, 0x0e);
    g_assert_cmphex(medium_end(media[1]), ==, 0x10);
    dev_free(d);
}

static void test_not_eligible(void)
{
    Error *err = NULL;
    MemoryRegion mr = {
        .terminates = true, .ops = &dev_ops, .lockless_io = true,
    };
    Dev *d = dev_new();

    g_assert_false(posted_mmio_add(&d->q, &mr, &err));
    g_assert_cmpstr(error_get_pretty(err), ==, "Property 'posted-writes' is "
                    "on, but writes to region 'test' cannot be posted: it is "
                    "accessed without the big lock");
    error_free_or_abort(&err);
    mr.lockless_io = false;
    mr.rom_device = true;
    g_assert_false(posted_mmio_add(&d->q, &mr, &err));
    error_free_or_abort(&err);
    mr.rom_device = false;
    while (d->q.num_regions < POSTED_MAX_REGIONS) {
        mr.ops = &dev_ops;
        g_assert_true(posted_mmio_add(&d->q, &mr, &error_abort));
    }
    g_assert_false(posted_mmio_add(&d->q, &mr, &err));
    error_free_or_abort(&err);
    dev_free(d);
}

static bool load(Dev *d, uint32_t num, PostedWrite bad)
{
    for (unsigned i = 0; i < POSTED_MAX_WRITES; i++) {
        d->q.writes[i] = (PostedWrite) { .size = 8, .addr = 8, .data = 8 };
    }
    d->q.writes[POSTED_MAX_WRITES - 1] = bad;
    d->q.num_vmstate = num;
    return posted_mmio_loaded(&d->q);
}

/* The stream is not trusted. */
static void test_loaded(void)
{
    const PostedWrite good = { .size = 8, .addr = 0xf8, .data = 0xf8 };
    const PostedWrite bad[] = {
        { .size = 8, .addr = 0xf9 },
        { .size = 8, .addr = 0x100 },
        { .size = 8, .addr = UINT64_MAX - 3 },
        { .size = 16 },
        { .size = 3 },
        { .size = 0 },
        { .size = 8, .region = 1 },
        { .size = 8, .region = UINT32_MAX },
    };
    Dev *d = dev_new();

    posted_mmio_vm_changed(&d->q, false, RUN_STATE_INMIGRATE);
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        g_assert_false(load(d, POSTED_MAX_WRITES, bad[i]));
        g_assert_cmpuint(d->q.num, ==, 0);
        g_assert_cmpint(d->refs, ==, 0);
    }
    g_assert_false(load(d, POSTED_MAX_WRITES + 1, good));
    g_assert_false(load(d, UINT32_MAX, good));
    g_assert_true(load(d, POSTED_MAX_WRITES, good));
    g_assert_cmpint(d->refs, ==, POSTED_MAX_WRITES);
    g_assert_cmpuint(d->count, ==, 0);
    posted_mmio_vm_changed(&d->q, true, RUN_STATE_RUNNING);
    loop_until(d, POSTED_MAX_WRITES);
    g_assert_cmphex(d->log[POSTED_MAX_WRITES - 1], ==, 0xf8);
    dev_free(d);
}

/* KVM's signal does not find a vCPU whose handler is posted. */
static void test_waiter(void)
{
    Dev *d = dev_new();

    kicks = 0;
    poke(d, 8);
    g_assert_cmpuint(kicks, ==, 0);
    cpu->has_waiter = true;
    poke(d, 8);
    g_assert_cmpuint(kicks, ==, 1);
    cpu->has_waiter = false;
    dev_free(d);
}

typedef struct Waker {
    Dev *d;
    QemuMutex lock;
    QemuCond cond;
    AsyncCall *call;            /* to be woken */
    bool stop;
} Waker;

static void *wake_in_thread(void *opaque)
{
    Waker *w = opaque;

    qemu_mutex_lock(&w->lock);
    while (!w->stop) {
        if (w->call) {
            async_call_wake(w->call, 0);
            w->call = NULL;
        }
        qemu_cond_wait(&w->cond, &w->lock);
    }
    qemu_mutex_unlock(&w->lock);
    return NULL;
}

/* The thread wakes each wait once. */
static void hand_over(Waker *w, unsigned *handed)
{
    if (w->d->waiting && w->d->waits != *handed) {
        *handed = w->d->waits;
        qemu_mutex_lock(&w->lock);
        w->call = w->d->waiting;
        qemu_cond_signal(&w->cond);
        qemu_mutex_unlock(&w->lock);
    }
}

/* Thousands of writes, woken by a thread: each once, in order. */
static void test_storm(void)
{
    g_autoptr(GRand) rand = g_rand_new_with_seed(1);
    Dev *d = dev_new();
    Waker w = { .d = d };
    unsigned handed = 0;
    QemuThread thread;
    unsigned written = 0;

    qemu_mutex_init(&w.lock);
    qemu_cond_init(&w.cond);
    qemu_thread_create(&thread, "waker", wake_in_thread, &w,
                       QEMU_THREAD_JOINABLE);
    while (written < MAX_LOG || d->count < MAX_LOG) {
        unsigned burst = g_rand_int_range(rand, 0, POSTED_MAX_WRITES / 8);

        while (burst-- && written < MAX_LOG &&
               d->q.num < POSTED_MAX_WRITES) {
            uint64_t waits = g_rand_int_range(rand, 0, 3) ? 0 : WAITS;

            poke(d, waits | (uint64_t)written++ << 20);
        }
        hand_over(&w, &handed);
        loop(true);
    }
    for (unsigned i = 0; i < MAX_LOG; i++) {
        g_assert_cmpuint(d->log[i] >> 20, ==, i);
    }
    qemu_mutex_lock(&w.lock);
    w.stop = true;
    qemu_cond_signal(&w.cond);
    qemu_mutex_unlock(&w.lock);
    qemu_thread_join(&thread);
    qemu_cond_destroy(&w.cond);
    qemu_mutex_destroy(&w.lock);
    dev_free(d);
}

#define PERF_WRITES 2000000
#define PERF_ROUNDS 5

/* What the dispatch does for a region that is not posted: the guard. */
static double time_plain(Dev *d)
{
    /* volatile: the dispatch does not know which function it calls, either */
    const MemoryRegionOps *volatile ops = &dev_ops;
    int64_t start = get_clock();

    for (unsigned i = 0; i < PERF_WRITES; i++) {
        d->state.mem_reentrancy_guard.engaged_in_io = true;
        ops->write_with_attrs(d, 0, 0, 8, MEMTXATTRS_UNSPECIFIED);
        d->state.mem_reentrancy_guard.engaged_in_io = false;
    }
    return (double)(get_clock() - start) / PERF_WRITES;
}

static double time_posted(Dev *d)
{
    int64_t start = get_clock();

    for (unsigned i = 0; i < PERF_WRITES; i++) {
        poke(d, 0);
    }
    return (double)(get_clock() - start) / PERF_WRITES;
}

static void test_perf(void)
{
    Dev *d = dev_new();

    for (int i = 0; i < PERF_ROUNDS; i++) {
        double plain = time_plain(d);

        d->seen_cpu = false;
        g_test_message("ns: plain %.1f posted %.1f", plain, time_posted(d));
    }
    dev_free(d);
}

int main(int argc, char **argv)
{
    int ret;

    bdrv_init();
    qemu_init_main_loop(&error_abort);
    cpu = g_new0(CPUState, 1);
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/posted-mmio/inline", test_inline);
    g_test_add_func("/posted-mmio/park", test_park);
    g_test_add_func("/posted-mmio/many-waits", test_many_waits);
    g_test_add_func("/posted-mmio/nested-loop", test_nested_loop);
    g_test_add_func("/posted-mmio/full", test_full);
    g_test_add_func("/posted-mmio/full-in-all", test_full_in_all);
    g_test_add_func("/posted-mmio/refused", test_refused);
    g_test_add_func("/posted-mmio/others", test_others);
    g_test_add_func("/posted-mmio/reentry", test_reentry);
    g_test_add_func("/posted-mmio/guard-taken", test_guard_taken);
    g_test_add_func("/posted-mmio/stop", test_stop);
    g_test_add_func("/posted-mmio/reset", test_reset);
    g_test_add_func("/posted-mmio/unplug", test_unplug);
    g_test_add_func("/posted-mmio/quit", test_quit);
    g_test_add_func("/posted-mmio/stuck", test_stuck);
    g_test_add_func("/posted-mmio/medium", test_medium);
    g_test_add_func("/posted-mmio/not-eligible", test_not_eligible);
    g_test_add_func("/posted-mmio/loaded", test_loaded);
    g_test_add_func("/posted-mmio/waiter", test_waiter);
    g_test_add_func("/posted-mmio/storm", test_storm);
    if (g_test_perf()) {
        g_test_add_func("/posted-mmio/perf", test_perf);
    }
    ret = g_test_run();
    g_free(cpu);
    return ret;
}

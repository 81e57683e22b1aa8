/*
 * Tests of the filter driver space-guard and of the table of requests
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The storage is a driver whose size, and whose errors, the tests set.  The VM
 * is replaced by counters.
 */

#include "qemu/osdep.h"
#include <sys/statvfs.h>
#include "block/block_int-global-state.h"
#include "block/dirty-bitmap.h"
#include "block/space-guard.h"
#include "block/space-request.h"
#include "block/write-threshold.h"
#include "iothread.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-space.h"
#include "qemu/main-loop.h"
#include "qemu/units.h"
#include "qobject/qdict.h"
#include "system/block-backend.h"

#define KIB 1024

/* The storage; one at a time */
static struct {
    int64_t size;                 /* writes above fail */
    int error;                    /* with this */
    int fail_next;                /* so many writes fail in any case */
    int flush_error;
    int writes;                   /* that were tried */
    int flushes;
} leaf;

/* The VM */
static bool vm_running;
static int vm_resolved;

void space_vm_init(void)
{
}

bool space_vm_is_running(void)
{
    return qatomic_read(&vm_running);
}

void space_vm_resolved(void)
{
    qatomic_inc(&vm_resolved);
}

static int coroutine_fn leaf_co_pwritev(BlockDriverState *bs, int64_t offset,
                                        int64_t bytes, QEMUIOVector *qiov,
                                        BdrvRequestFlags flags)
{
    qatomic_inc(&leaf.writes);
    if (qatomic_read(&leaf.fail_next)) {
        qatomic_dec(&leaf.fail_next);
        return -leaf.error;
    }
    return offset + bytes > qatomic_read(&leaf.size) ? -leaf.error : 0;
}

static int coroutine_fn leaf_co_preadv(BlockDriverState *bs, int64_t offset,
                                       int64_t bytes, QEMUIOVector *qiov,
                                       BdrvRequestFlags flags)
{
    return 0;
}

static int coroutine_fn leaf_co_flush(BlockDriverState *bs)
{
    leaf.flushes++;
    return -leaf.flush_error;
}

static int64_t coroutine_fn leaf_co_getlength(BlockDriverState *bs)
{
    return qatomic_read(&leaf.size);
}

static int leaf_open(BlockDriverState *bs, QDict *options, int flags,
                     Error **errp)
{
    return 0;
}

static BlockDriver bdrv_leaf = {
    .format_name            = "space-test-leaf",
    .protocol_name          = "space-test-leaf",
    .bdrv_open              = leaf_open,
    .bdrv_co_preadv         = leaf_co_preadv,
    .bdrv_co_pwritev        = leaf_co_pwritev,
    .bdrv_co_flush_to_disk  = leaf_co_flush,
    .bdrv_co_getlength      = leaf_co_getlength,
};

/* The file system, for block/space-guard.c; it answers when it is told to */
static bool statvfs_hangs;
static int statvfs_waits;

int statvfs(const char *path, struct statvfs *st)
{
    gint64 limit = g_get_monotonic_time() + 60 * G_USEC_PER_SEC;

    qatomic_inc(&statvfs_waits);
    while (qatomic_read(&statvfs_hangs) && g_get_monotonic_time() < limit) {
        g_usleep(1000);
    }
    qatomic_dec(&statvfs_waits);
    *st = (struct statvfs) { .f_bavail = 1024, .f_frsize = KIB };
    return 0;
}

/* A guard over the leaf; options as in "policy", "hold", ..., NULL */
static BlockBackend *open_guard(Error **errp, ...)
{
    QDict *options = qdict_new();
    const char *name;
    BlockBackend *blk;
    va_list ap;

    qdict_put_str(options, "driver", "space-guard");
    qdict_put_str(options, "node-name", "guard");
    qdict_put_str(options, "file.driver", "space-test-leaf");
    va_start(ap, errp);
    while ((name = va_arg(ap, const char *))) {
        qdict_put_str(options, name, va_arg(ap, const char *));
    }
    va_end(ap);
    blk = blk_new_open(NULL, NULL, options, BDRV_O_RDWR | BDRV_O_RESIZE, errp);
    if (blk) {
        /* a format driver writes above the end, too */
        blk_set_allow_write_beyond_eof(blk, true);
    }
    return blk;
}

static void start(void)
{
    memset(&leaf, 0, sizeof(leaf));
    leaf.size = 64 * KIB;
    leaf.error = ENOSPC;
    vm_running = true;
    vm_resolved = 0;
}

static void finish(BlockBackend *blk)
{
    blk_unref(blk);
    /* let the last request be announced and freed */
    main_loop_wait(true);
}

typedef struct Write {
    bool done;
    int ret;
} Write;

static void write_done(void *opaque, int ret)
{
    Write *w = opaque;

    w->ret = ret;
    qatomic_store_release(&w->done, true);
}

static uint8_t data[4 * KIB];
static QEMUIOVector qiov;

static BlockAIOCB *start_write(BlockBackend *blk, Write *w, int64_t offset)
{
    w->done = false;
    return blk_aio_pwritev(blk, offset, &qiov, 0, write_done, w);
}

static void wait_until(bool *flag)
{
    while (!qatomic_load_acquire(flag)) {
        main_loop_wait(false);
    }
}

static int write_now(BlockBackend *blk, int64_t offset)
{
    Write w;

    start_write(blk, &w, offset);
    wait_until(&w.done);
    return w.ret;
}

static void check_count(unsigned count)
{
    g_autoptr(BlockSpaceRequestList) list =
        qmp_query_block_space_requests(&error_abort);

    g_assert_cmpuint(QAPI_LIST_LENGTH(list), ==, count);
}

/* The only request */
static BlockSpaceRequestList *query(void)
{
    check_count(1);
    return qmp_query_block_space_requests(&error_abort);
}

/* All of them together */
static unsigned count_held(void)
{
    g_autoptr(BlockSpaceRequestList) list =
        qmp_query_block_space_requests(&error_abort);
    unsigned held = 0;

    for (BlockSpaceRequestList *l = list; l; l = l->next) {
        held += l->value->held;
    }
    return held;
}

static void wait_held(unsigned held)
{
    while (count_held() != held) {
        main_loop_wait(true);
    }
}

typedef struct Resolve {
    uint64_t id;
    BlockSpaceResult result;
    BlockSpaceAnswer *answer;
    Error *err;
    bool done;
} Resolve;

static void coroutine_fn resolve_co(void *opaque)
{
    Resolve *r = opaque;

    r->answer = qmp_block_space_resolve(r->id, r->result, &r->err);
    r->done = true;
}

/* Returns -1 on error */
static int resolve_id(uint64_t id, BlockSpaceResult result)
{
    Resolve r = { .id = id, .result = result };
    int outcome = -1;

    aio_co_enter(qemu_get_aio_context(),
                 qemu_coroutine_create(resolve_co, &r));
    wait_until(&r.done);
    g_assert(!r.answer == !!r.err);
    if (r.answer) {
        outcome = r.answer->outcome;
    }
    error_free(r.err);
    qapi_free_BlockSpaceAnswer(r.answer);
    return outcome;
}

static int resolve(BlockSpaceResult result)
{
    g_autoptr(BlockSpaceRequestList) list = query();

    return resolve_id(list->value->id, result);
}

static uint64_t only_id(void)
{
    g_autoptr(BlockSpaceRequestList) list = query();

    return list->value->id;
}

static uint32_t attempt(void)
{
    g_autoptr(BlockSpaceRequestList) list = query();

    return list->value->attempt;
}

static void check_state(BlockSpaceState state, BlockSpaceCause cause,
                        bool stopped, unsigned held)
{
    g_autoptr(BlockSpaceRequestList) list = query();

    g_assert_cmpint(list->value->state, ==, state);
    g_assert_cmpint(list->value->cause, ==, cause);
    g_assert_cmpint(list->value->stopped, ==, stopped);
    g_assert_cmpuint(list->value->held, ==, held);
}

static uint64_t counter(SpaceStat which)
{
    uint64_t values[SPACE_STAT__MAX];

    space_requests_stats(values);
    return values[which];
}

/* When the VM has stopped because the disk could not write */
static bool keeps_vm_stopped(BlockBackend *blk)
{
    space_guard_foreach_below(blk, space_requests_vm_stopped);
    return space_requests_block_resume();
}

static void test_nothing(void)
{
    BlockBackend *blk;

    start();
    blk = open_guard(&error_abort, "policy", "hold", NULL);
    g_assert_cmpint(write_now(blk, 0), ==, 0);
    g_assert_cmpint(write_now(blk, 60 * KIB), ==, 0);
    check_count(0);
    g_assert_cmpint(leaf.writes, ==, 2);
    finish(blk);
}

/* What watches the guard's node sees writes, also those that are passed on */
static void test_watched(void)
{
    BlockBackend *blk;
    BlockDriverState *bs;
    BdrvDirtyBitmap *bitmap;

    start();
    blk = open_guard(&error_abort, NULL);
    bs = blk_bs(blk);

    /* a flush after a write has something to do, and the next has not */
    g_assert_cmpint(write_now(blk, 4 * KIB), ==, 0);
    g_assert_cmpint(blk_flush(blk), ==, 0);
    g_assert_cmpint(leaf.flushes, ==, 1);
    g_assert_cmpint(blk_flush(blk), ==, 0);
    g_assert_cmpint(leaf.flushes, ==, 1);
    g_assert_cmpint(write_now(blk, 4 * KIB), ==, 0);
    g_assert_cmpint(blk_flush(blk), ==, 0);
    g_assert_cmpint(leaf.flushes, ==, 2);
    g_assert_cmpuint(stat64_get(&bs->wr_highest_offset), ==, 8 * KIB);

    bitmap = bdrv_create_dirty_bitmap(bs, 4 * KIB, "b", &error_abort);
    g_assert_cmpint(write_now(blk, 12 * KIB), ==, 0);
    g_assert_cmpint(bdrv_get_dirty_count(bitmap), ==, 4 * KIB);
    bdrv_release_dirty_bitmap(bitmap);

    bdrv_write_threshold_set(bs, 16 * KIB);
    g_assert_cmpint(write_now(blk, 12 * KIB), ==, 0);
    g_assert_cmpuint(bdrv_write_threshold_get(bs), ==, 16 * KIB);
    g_assert_cmpint(write_now(blk, 16 * KIB), ==, 0);
    g_assert_cmpuint(bdrv_write_threshold_get(bs), ==, 0);

    /* its size is that of the storage when it was opened, until more is used */
    leaf.size = 80 * KIB;
    g_assert_cmpint(write_now(blk, 64 * KIB), ==, 0);
    g_assert_cmpint(bs->total_sectors * BDRV_SECTOR_SIZE, ==, 68 * KIB);
    g_assert_cmpint(write_now(blk, 64 * KIB), ==, 0);
    g_assert_cmpint(write_now(blk, 0), ==, 0);
    g_assert_cmpint(leaf.writes, ==, 8);
    check_count(0);
    finish(blk);
}

static void test_hold(void)
{
    BlockBackend *blk;
    Write w;

    start();
    blk = open_guard(&error_abort, "policy", "hold", "verify", "size", NULL);
    start_write(blk, &w, 64 * KIB);
    wait_held(1);
    g_assert_false(w.done);
    check_state(BLOCK_SPACE_STATE_OPEN, BLOCK_SPACE_CAUSE_WRITE, false, 1);

    /* other writes go on */
    g_assert_cmpint(write_now(blk, 0), ==, 0);
    g_assert_false(w.done);

    leaf.size = 128 * KIB;
    g_assert_cmpint(resolve(BLOCK_SPACE_RESULT_GROWN), ==,
                    BLOCK_SPACE_OUTCOME_GROWN);
    wait_until(&w.done);
    g_assert_cmpint(w.ret, ==, 0);
    check_count(0);
    /* no VM was stopped */
    g_assert_cmpint(vm_resolved, ==, 0);
    finish(blk);
}

static void test_stop(void)
{
    BlockBackend *blk;

    start();
    blk = open_guard(&error_abort, "verify", "size", NULL);
    g_assert_cmpint(write_now(blk, 64 * KIB), ==, -ENOSPC);
    g_assert_cmpint(write_now(blk, 68 * KIB), ==, -ENOSPC);
    check_state(BLOCK_SPACE_STATE_OPEN, BLOCK_SPACE_CAUSE_WRITE, true, 0);
    /* unless it was a job that failed */
    g_assert_false(space_requests_block_resume());
    g_assert_true(keeps_vm_stopped(blk));
    g_assert_cmpint(attempt(), ==, 1);

    leaf.size = 128 * KIB;
    g_assert_cmpint(resolve(BLOCK_SPACE_RESULT_GROWN), ==,
                    BLOCK_SPACE_OUTCOME_GROWN);
    g_assert_cmpint(vm_resolved, ==, 1);
    g_assert_false(keeps_vm_stopped(blk));
    g_assert_cmpint(write_now(blk, 64 * KIB), ==, 0);
    finish(blk);
}

/* An answer that is not true, and one that is not true enough */
static void test_lie(void)
{
    BlockBackend *blk;
    Write w;

    start();
    blk = open_guard(&error_abort, "policy", "hold", "verify", "size", NULL);
    start_write(blk, &w, 64 * KIB);
    wait_held(1);
    for (int i = 1; i <= 3; i++) {
        g_assert_cmpint(resolve(BLOCK_SPACE_RESULT_GROWN), ==,
                        BLOCK_SPACE_OUTCOME_NOT_GROWN);
        g_assert_cmpint(attempt(), ==, i + 1);
        leaf.size += KIB;
        g_assert_false(w.done);
    }
    g_assert_cmpint(leaf.writes, ==, 1);
    leaf.size = 68 * KIB;
    g_assert_cmpint(resolve(BLOCK_SPACE_RESULT_GROWN), ==,
                    BLOCK_SPACE_OUTCOME_GROWN);
    wait_until(&w.done);
    g_assert_cmpint(w.ret, ==, 0);
    finish(blk);
}

/* Late, double and wrong answers are errors and nothing else */
static void test_late(void)
{
    BlockBackend *blk;
    uint64_t id;

    start();
    blk = open_guard(&error_abort, "verify", "size", NULL);
    write_now(blk, 64 * KIB);
    id = only_id();
    leaf.size = 128 * KIB;
    g_assert_cmpint(resolve_id(id + 1, BLOCK_SPACE_RESULT_GROWN), ==, -1);
    g_assert_cmpint(resolve_id(0, BLOCK_SPACE_RESULT_DENIED), ==, -1);
    g_assert_cmpint(resolve_id(UINT64_MAX, BLOCK_SPACE_RESULT_GROWN), ==, -1);
    check_state(BLOCK_SPACE_STATE_OPEN, BLOCK_SPACE_CAUSE_WRITE, true, 0);
    g_assert_cmpint(resolve_id(id, BLOCK_SPACE_RESULT_GROWN), ==,
                    BLOCK_SPACE_OUTCOME_GROWN);
    g_assert_cmpint(resolve_id(id, BLOCK_SPACE_RESULT_GROWN), ==, -1);
    g_assert_cmpint(resolve_id(id, BLOCK_SPACE_RESULT_DENIED), ==, -1);
    g_assert_cmpint(vm_resolved, ==, 1);
    finish(blk);
}

static void test_deny(void)
{
    BlockBackend *blk;
    Write w;

    start();
    blk = open_guard(&error_abort, "policy", "hold", "verify", "size",
                     "max-hold-ms", "2000", NULL);
    start_write(blk, &w, 64 * KIB);
    wait_held(1);
    g_assert_cmpint(resolve(BLOCK_SPACE_RESULT_DENIED), ==,
                    BLOCK_SPACE_OUTCOME_DENIED);
    wait_until(&w.done);
    g_assert_cmpint(w.ret, ==, -ENOSPC);
    check_state(BLOCK_SPACE_STATE_DENIED, BLOCK_SPACE_CAUSE_WRITE, true, 0);
    g_assert_true(keeps_vm_stopped(blk));
    g_assert_cmpint(vm_resolved, ==, 0);

    /* somebody resumes it: the next failure asks again, and waits */
    space_requests_vm_runs();
    start_write(blk, &w, 64 * KIB);
    wait_until(&w.done);
    g_assert_cmpint(w.ret, ==, -ENOSPC);
    check_state(BLOCK_SPACE_STATE_OPEN, BLOCK_SPACE_CAUSE_WRITE, true, 0);
    g_assert_cmpint(attempt(), ==, 2);

    leaf.size = 128 * KIB;
    g_assert_cmpint(resolve(BLOCK_SPACE_RESULT_GROWN), ==,
                    BLOCK_SPACE_OUTCOME_GROWN);
    g_assert_cmpint(vm_resolved, ==, 1);
    finish(blk);
}

static void test_expire(void)
{
    uint64_t expired = counter(SPACE_STAT_EXPIRED);
    BlockBackend *blk;

    start();
    blk = open_guard(&error_abort, "policy", "hold", "verify", "size",
                     "max-hold-ms", "20", NULL);
    g_assert_cmpint(write_now(blk, 64 * KIB), ==, -ENOSPC);
    g_assert_cmpint(counter(SPACE_STAT_EXPIRED), ==, expired + 1);
    check_state(BLOCK_SPACE_STATE_OPEN, BLOCK_SPACE_CAUSE_WRITE, true, 0);

    /* as long as the VM is on its way to a stop, nothing is held */
    g_assert_cmpint(write_now(blk, 64 * KIB), ==, -ENOSPC);
    g_assert_cmpint(counter(SPACE_STAT_EXPIRED), ==, expired + 1);
    finish(blk);
}

/* A VM that does not run cannot go on while a write waits */
static void test_stopped_vm(void)
{
    BlockBackend *blk;

    start();
    blk = open_guard(&error_abort, "policy", "hold", "verify", "size", NULL);
    vm_running = false;
    g_assert_cmpint(write_now(blk, 64 * KIB), ==, -ENOSPC);
    finish(blk);
}

static void test_other_errors(void)
{
    BlockBackend *blk;

    start();
    blk = open_guard(&error_abort, "policy", "hold", "verify", "size", NULL);
    leaf.error = EIO;
    g_assert_cmpint(write_now(blk, 64 * KIB), ==, -EIO);
    check_count(0);
    finish(blk);
}

static void test_edquot(void)
{
    BlockBackend *blk;

    start();
    blk = open_guard(&error_abort, "verify", "size", NULL);
    leaf.error = EDQUOT;
    g_assert_cmpint(write_now(blk, 64 * KIB), ==, -ENOSPC);
    check_state(BLOCK_SPACE_STATE_OPEN, BLOCK_SPACE_CAUSE_WRITE, true, 0);
    finish(blk);
}

/* ENOSPC with room: tried once more, then reported as it is */
static void test_room(void)
{
    BlockBackend *blk;

    start();
    blk = open_guard(&error_abort, "policy", "hold", "verify", "size", NULL);
    leaf.fail_next = 1;
    g_assert_cmpint(write_now(blk, 0), ==, 0);
    g_assert_cmpint(leaf.writes, ==, 2);
    check_count(0);

    leaf.fail_next = 2;
    g_assert_cmpint(write_now(blk, 0), ==, -ENOSPC);
    g_assert_cmpint(leaf.writes, ==, 4);
    check_state(BLOCK_SPACE_STATE_OPEN, BLOCK_SPACE_CAUSE_WRITE, true, 0);

    /* the write succeeds by itself: closed without an answer */
    g_assert_cmpint(write_now(blk, 4 * KIB), ==, 0);
    check_count(1);
    g_assert_cmpint(write_now(blk, 0), ==, 0);
    check_count(0);
    g_assert_cmpint(vm_resolved, ==, 1);
    finish(blk);
}

/* Nothing can be measured: one write tries, the others wait */
static void test_probe(void)
{
    BlockBackend *blk;
    Write w[3];

    start();
    blk = open_guard(&error_abort, "policy", "hold", NULL);
    for (int i = 0; i < 3; i++) {
        start_write(blk, &w[i], (64 + 4 * i) * KIB);
    }
    wait_held(3);
    g_assert_cmpint(leaf.writes, ==, 3);

    g_assert_cmpint(resolve(BLOCK_SPACE_RESULT_GROWN), ==,
                    BLOCK_SPACE_OUTCOME_PROBING);
    wait_held(3);
    g_assert_cmpint(leaf.writes, ==, 4);
    check_state(BLOCK_SPACE_STATE_OPEN, BLOCK_SPACE_CAUSE_WRITE, false, 3);
    g_assert_cmpint(attempt(), ==, 2);

    leaf.size = 128 * KIB;
    g_assert_cmpint(resolve(BLOCK_SPACE_RESULT_GROWN), ==,
                    BLOCK_SPACE_OUTCOME_PROBING);
    for (int i = 0; i < 3; i++) {
        wait_until(&w[i].done);
        g_assert_cmpint(w[i].ret, ==, 0);
    }
    g_assert_cmpint(leaf.writes, ==, 7);
    check_count(0);
    finish(blk);
}

/* The write that tries fails with something else */
static void test_probe_lost(void)
{
    BlockBackend *blk;
    Write w[2];

    start();
    blk = open_guard(&error_abort, "policy", "hold", NULL);
    start_write(blk, &w[0], 64 * KIB);
    start_write(blk, &w[1], 68 * KIB);
    wait_held(2);
    leaf.error = EIO;
    g_assert_cmpint(resolve(BLOCK_SPACE_RESULT_GROWN), ==,
                    BLOCK_SPACE_OUTCOME_PROBING);
    while (!w[0].done && !w[1].done) {
        main_loop_wait(false);
    }
    g_assert_cmpint(w[w[1].done].ret, ==, -EIO);
    check_state(BLOCK_SPACE_STATE_OPEN, BLOCK_SPACE_CAUSE_WRITE, false, 1);

    leaf.error = ENOSPC;
    leaf.size = 128 * KIB;
    g_assert_cmpint(resolve(BLOCK_SPACE_RESULT_GROWN), ==,
                    BLOCK_SPACE_OUTCOME_PROBING);
    wait_until(&w[0].done);
    wait_until(&w[1].done);
    check_count(0);
    finish(blk);
}

/* ... and there is no write that could try: the VM is resumed */
static void test_probe_stopped(void)
{
    BlockBackend *blk;

    start();
    blk = open_guard(&error_abort, NULL);
    g_assert_cmpint(write_now(blk, 64 * KIB), ==, -ENOSPC);
    g_assert_cmpint(resolve(BLOCK_SPACE_RESULT_GROWN), ==,
                    BLOCK_SPACE_OUTCOME_PROBING);
    g_assert_cmpint(vm_resolved, ==, 1);
    g_assert_false(keeps_vm_stopped(blk));
    space_requests_vm_runs();
    /* the device tries its writes again */
    g_assert_cmpint(write_now(blk, 64 * KIB), ==, -ENOSPC);
    g_assert_cmpint(write_now(blk, 68 * KIB), ==, -ENOSPC);
    g_assert_cmpint(attempt(), ==, 2);
    g_assert_true(keeps_vm_stopped(blk));

    leaf.size = 128 * KIB;
    g_assert_cmpint(resolve(BLOCK_SPACE_RESULT_GROWN), ==,
                    BLOCK_SPACE_OUTCOME_PROBING);
    space_requests_vm_runs();
    g_assert_cmpint(write_now(blk, 68 * KIB), ==, 0);
    g_assert_cmpint(write_now(blk, 64 * KIB), ==, 0);
    check_count(0);
    finish(blk);
}

static void test_flush(void)
{
    BlockBackend *blk;

    start();
    blk = open_guard(&error_abort, "policy", "hold", "verify", "size", NULL);
    /* a flush without a write before it does nothing */
    g_assert_cmpint(write_now(blk, 0), ==, 0);
    leaf.flush_error = ENOSPC;
    g_assert_cmpint(blk_flush(blk), ==, -ENOSPC);
    check_state(BLOCK_SPACE_STATE_OPEN, BLOCK_SPACE_CAUSE_FLUSH, true, 0);
    g_assert_true(keeps_vm_stopped(blk));

    leaf.flush_error = 0;
    g_assert_cmpint(resolve(BLOCK_SPACE_RESULT_GROWN), ==,
                    BLOCK_SPACE_OUTCOME_MANUAL);
    check_state(BLOCK_SPACE_STATE_MANUAL, BLOCK_SPACE_CAUSE_FLUSH, true, 0);
    g_assert_cmpint(vm_resolved, ==, 0);
    g_assert_true(keeps_vm_stopped(blk));

    space_requests_user_cont();
    check_count(0);
    g_assert_cmpint(vm_resolved, ==, 0);
    g_assert_false(keeps_vm_stopped(blk));
    finish(blk);
}

static void test_low_water(void)
{
    BlockBackend *blk;

    start();
    blk = open_guard(&error_abort, "policy", "hold", "verify", "size",
                     "low-water", "16384", NULL);
    g_assert_cmpint(write_now(blk, 44 * KIB), ==, 0);
    check_count(0);
    g_assert_cmpint(write_now(blk, 45 * KIB), ==, 0);
    check_state(BLOCK_SPACE_STATE_OPEN, BLOCK_SPACE_CAUSE_LOW_WATER, false, 0);
    /* once is enough */
    g_assert_cmpint(write_now(blk, 48 * KIB), ==, 0);
    g_assert_cmpint(attempt(), ==, 1);

    g_assert_cmpint(resolve(BLOCK_SPACE_RESULT_GROWN), ==,
                    BLOCK_SPACE_OUTCOME_NOT_GROWN);
    leaf.size = 128 * KIB;
    g_assert_cmpint(resolve(BLOCK_SPACE_RESULT_GROWN), ==,
                    BLOCK_SPACE_OUTCOME_GROWN);
    check_count(0);

    /* the mark is where it belongs now */
    g_assert_cmpint(write_now(blk, 108 * KIB), ==, 0);
    check_count(0);
    g_assert_cmpint(write_now(blk, 112 * KIB), ==, 0);
    check_count(1);
    finish(blk);
}

/* Storage that grew before anybody asked is noticed at the mark */
static void test_low_water_grown(void)
{
    BlockBackend *blk;

    start();
    blk = open_guard(&error_abort, "verify", "size", "low-water", "16384",
                     NULL);
    leaf.size = 128 * KIB;
    g_assert_cmpint(write_now(blk, 60 * KIB), ==, 0);
    check_count(0);
    g_assert_cmpint(write_now(blk, 110 * KIB), ==, 0);
    check_count(1);
    finish(blk);
}

/* A failed write is more urgent than a mark, and is the same request */
static void test_escalate(void)
{
    BlockBackend *blk;
    uint64_t id;
    Write w;

    start();
    blk = open_guard(&error_abort, "policy", "hold", "verify", "size",
                     "low-water", "16384", NULL);
    g_assert_cmpint(write_now(blk, 60 * KIB), ==, 0);
    id = only_id();
    start_write(blk, &w, 64 * KIB);
    wait_held(1);
    check_state(BLOCK_SPACE_STATE_OPEN, BLOCK_SPACE_CAUSE_WRITE, false, 1);
    g_assert_cmpuint(only_id(), ==, id);
    leaf.size = 128 * KIB;
    g_assert_cmpint(resolve(BLOCK_SPACE_RESULT_GROWN), ==,
                    BLOCK_SPACE_OUTCOME_GROWN);
    wait_until(&w.done);
    g_assert_cmpint(w.ret, ==, 0);
    finish(blk);
}

static void test_remove(void)
{
    BlockBackend *blk;

    start();
    blk = open_guard(&error_abort, "verify", "size", NULL);
    write_now(blk, 64 * KIB);
    check_count(1);
    blk_unref(blk);
    check_count(0);
    main_loop_wait(true);
}

/* A drain does not wait for storage, wherever it begins */
static void do_test_drain(bool in_iothread)
{
    IOThread *iothread = in_iothread ? iothread_new() : NULL;
    AioContext *ctx = in_iothread ? iothread_get_aio_context(iothread)
                                  : qemu_get_aio_context();
    uint64_t drained = counter(SPACE_STAT_DRAINED);
    BlockDriverState *top;
    BlockBackend *blk;
    QDict *options = qdict_new();
    Write w[2];

    start();
    /* a filter above the guard; the guard itself is not drained */
    qdict_put_str(options, "driver", "copy-on-read");
    qdict_put_str(options, "file.driver", "space-guard");
    qdict_put_str(options, "file.policy", "hold");
    qdict_put_str(options, "file.verify", "size");
    qdict_put_str(options, "file.max-hold-ms", "25000");
    qdict_put_str(options, "file.file.driver", "space-test-leaf");
    blk = blk_new_open(NULL, NULL, options, BDRV_O_RDWR | BDRV_O_RESIZE,
                       &error_abort);
    blk_set_allow_write_beyond_eof(blk, true);
    blk_set_allow_aio_context_change(blk, true);
    blk_set_aio_context(blk, ctx, &error_abort);
    top = blk_bs(blk);

    start_write(blk, &w[0], 64 * KIB);
    start_write(blk, &w[1], 68 * KIB);
    wait_held(2);
    bdrv_drained_begin(top);
    g_assert_true(w[0].done && w[1].done);
    g_assert_cmpint(w[0].ret, ==, -ENOSPC);
    bdrv_drained_end(top);
    g_assert_cmpint(counter(SPACE_STAT_DRAINED), ==, drained + 2);
    check_state(BLOCK_SPACE_STATE_OPEN, BLOCK_SPACE_CAUSE_WRITE, true, 0);

    space_requests_vm_runs();
    start_write(blk, &w[0], 64 * KIB);
    wait_held(1);
    bdrv_drain_all();
    g_assert_true(w[0].done);
    g_assert_cmpint(counter(SPACE_STAT_DRAINED), ==, drained + 3);

    leaf.size = 128 * KIB;
    g_assert_cmpint(resolve(BLOCK_SPACE_RESULT_GROWN), ==,
                    BLOCK_SPACE_OUTCOME_GROWN);
    start_write(blk, &w[0], 64 * KIB);
    wait_until(&w[0].done);
    g_assert_cmpint(w[0].ret, ==, 0);
    blk_set_aio_context(blk, qemu_get_aio_context(), &error_abort);
    finish(blk);
    if (iothread) {
        iothread_join(iothread);
    }
}

static void test_drain(void)
{
    do_test_drain(false);
}

static void test_drain_iothread(void)
{
    do_test_drain(true);
}

/* A file system that does not answer does not make a drain wait for ever */
static void test_drain_statvfs(void)
{
    g_autofree char *path = NULL;
    QDict *options = qdict_new();
    int fd = g_file_open_tmp("space-guard-XXXXXX", &path, NULL);
    BlockBackend *blk;
    Write w;

    start();
    g_assert_cmpint(ftruncate(fd, 64 * KIB), ==, 0);
    close(fd);
    qdict_put_str(options, "driver", "space-guard");
    qdict_put_str(options, "low-water", "65536");
    qdict_put_str(options, "file.driver", "file");
    qdict_put_str(options, "file.filename", path);
    blk = blk_new_open(NULL, NULL, options, BDRV_O_RDWR | BDRV_O_RESIZE,
                       &error_abort);

    qatomic_set(&statvfs_hangs, true);
    start_write(blk, &w, 0);
    while (!qatomic_read(&statvfs_waits)) {
        main_loop_wait(true);
    }
    bdrv_drain_all();
    g_assert_cmpint(qatomic_read(&statvfs_waits), >, 0);
    g_assert_true(w.done);
    g_assert_cmpint(w.ret, ==, 0);

    /* it is back: nothing is left of that */
    qatomic_set(&statvfs_hangs, false);
    while (qatomic_read(&statvfs_waits)) {
        main_loop_wait(true);
    }
    g_assert_cmpint(write_now(blk, 4 * KIB), ==, 0);
    bdrv_drain_all();
    finish(blk);
    unlink(path);
}

/* A write that is cancelled stops no VM: later ones may wait as before */
static void test_cancel(void)
{
    BlockBackend *blk;
    Write w[2];

    start();
    blk = open_guard(&error_abort, "policy", "hold", "verify", "size", NULL);
    start_write(blk, &w[0], 64 * KIB);
    wait_held(1);
    space_guard_cancel_begin(blk);
    wait_until(&w[0].done);
    g_assert_cmpint(w[0].ret, ==, -ENOSPC);
    /* one that waited behind it is not held: the BQL is, for the cancel */
    g_assert_cmpint(write_now(blk, 64 * KIB), ==, -ENOSPC);
    space_guard_cancel_end();
    check_state(BLOCK_SPACE_STATE_OPEN, BLOCK_SPACE_CAUSE_WRITE, false, 0);
    g_assert_false(space_requests_block_resume());
    start_write(blk, &w[0], 64 * KIB);
    start_write(blk, &w[1], 68 * KIB);
    wait_held(2);

    /* so may those after a job's */
    bdrv_graph_rdlock_main_loop();
    space_guard_cancel_below(blk_bs(blk));
    bdrv_graph_rdunlock_main_loop();
    wait_until(&w[0].done);
    wait_until(&w[1].done);
    start_write(blk, &w[0], 64 * KIB);
    wait_held(1);

    /* but not after a drain, which stops the VM by an error */
    bdrv_drain_all();
    wait_until(&w[0].done);
    g_assert_cmpint(write_now(blk, 64 * KIB), ==, -ENOSPC);
    space_guard_cancel_begin(blk);
    space_guard_cancel_end();
    g_assert_cmpint(write_now(blk, 64 * KIB), ==, -ENOSPC);
    g_assert_true(keeps_vm_stopped(blk));

    leaf.size = 128 * KIB;
    g_assert_cmpint(resolve(BLOCK_SPACE_RESULT_GROWN), ==,
                    BLOCK_SPACE_OUTCOME_GROWN);
    g_assert_cmpint(vm_resolved, ==, 1);
    finish(blk);
}

/* Nothing waits for storage that a cancelled write had asked for */
static void test_cancel_probe(void)
{
    BlockBackend *blk;
    Write w;

    start();
    blk = open_guard(&error_abort, "policy", "hold", "verify", "probe", NULL);
    blk_aio_cancel(start_write(blk, &w, 64 * KIB));
    g_assert_true(w.done);
    check_state(BLOCK_SPACE_STATE_OPEN, BLOCK_SPACE_CAUSE_WRITE, false, 0);
    g_assert_cmpint(resolve(BLOCK_SPACE_RESULT_GROWN), ==,
                    BLOCK_SPACE_OUTCOME_GROWN);
    check_count(0);
    /* another write may have failed with it and stop the VM right now */
    g_assert_cmpint(vm_resolved, ==, 1);

    /* as here; the VM tells when it has stopped */
    blk_aio_cancel(start_write(blk, &w, 64 * KIB));
    g_assert_true(keeps_vm_stopped(blk));
    check_state(BLOCK_SPACE_STATE_OPEN, BLOCK_SPACE_CAUSE_WRITE, true, 0);
    g_assert_cmpint(resolve(BLOCK_SPACE_RESULT_GROWN), ==,
                    BLOCK_SPACE_OUTCOME_PROBING);
    finish(blk);
}

typedef struct Cancelled {
    BlockBackend *blk;
    BlockErrorAction action;      /* what its device does */
    int ret;
} Cancelled;

static void cancelled_done(void *opaque, int ret)
{
    Cancelled *c = opaque;

    c->ret = ret;
    c->action = blk_get_error_action(c->blk, false, -ret);
}

/* A cancel is the matter of one disk */
static void test_cancel_one_of_two(void)
{
    BlockBackend *blk, *other;
    Cancelled c;
    Write w, later;

    start();
    blk = open_guard(&error_abort, "policy", "hold", "verify", "size", NULL);
    other = open_guard(&error_abort, "policy", "hold", "verify", "size",
                       "node-name", "other", NULL);
    blk_set_on_error(blk, BLOCKDEV_ON_ERROR_REPORT, BLOCKDEV_ON_ERROR_STOP);
    start_write(other, &w, 64 * KIB);
    c.blk = blk;
    c.ret = 1;
    blk_aio_cancel(blk_aio_pwritev(blk, 64 * KIB, &qiov, 0, cancelled_done,
                                   &c));
    g_assert_cmpint(c.ret, ==, -ECANCELED);
    g_assert_cmpint(c.action, ==, BLOCK_ERROR_ACTION_REPORT);
    /* of what nobody has cancelled it is an error like others */
    g_assert_cmpint(blk_get_error_action(blk, false, ECANCELED), ==,
                    BLOCK_ERROR_ACTION_STOP);
    g_assert_false(w.done);
    wait_held(1);
    /* and the next one may wait */
    start_write(blk, &later, 64 * KIB);
    wait_held(2);
    bdrv_drain_all();
    g_assert_true(w.done && later.done);
    blk_unref(other);
    finish(blk);
}

/* Everything at once, in an IOThread: no write is lost, and none hangs */
static void test_stress(void)
{
    IOThread *iothread = iothread_new();
    GRand *rand = g_rand_new_with_seed(g_test_rand_int());
    int64_t end_us = g_get_monotonic_time() +
                     (g_test_slow() ? 30 : 2) * G_USEC_PER_SEC;
    int64_t next = 64 * KIB;
    BlockBackend *blk;
    Write w[16];
    unsigned finished = 0;

    start();
    blk = open_guard(&error_abort, "policy", "hold", "verify", "size",
                     "max-hold-ms", "30", "low-water", "16384", NULL);
    blk_set_allow_aio_context_change(blk, true);
    blk_set_aio_context(blk, iothread_get_aio_context(iothread), &error_abort);
    for (int i = 0; i < ARRAY_SIZE(w); i++) {
        w[i].done = true;
        w[i].ret = 0;
    }
    while (g_get_monotonic_time() < end_us) {
        g_autoptr(BlockSpaceRequestList) list = NULL;

        for (int i = 0; i < ARRAY_SIZE(w); i++) {
            if (!qatomic_load_acquire(&w[i].done)) {
                continue;
            }
            g_assert(w[i].ret == 0 || w[i].ret == -ENOSPC);
            finished++;
            start_write(blk, &w[i], next);
            next += w[i].ret ? 0 : 4 * KIB;
        }
        list = qmp_query_block_space_requests(&error_abort);
        switch (g_rand_int_range(rand, 0, 12)) {
        case 0:
            qatomic_set(&leaf.size, next + 64 * KIB);
            /* fall through */
        case 1:
            if (list) {
                resolve_id(list->value->id, BLOCK_SPACE_RESULT_GROWN);
            }
            break;
        case 2:
            if (list) {
                resolve_id(list->value->id, BLOCK_SPACE_RESULT_DENIED);
            }
            break;
        case 3:
            bdrv_drain_all();
            break;
        case 4:
            space_requests_vm_runs();
            break;
        default:
            main_loop_wait(true);
        }
    }
    bdrv_drain_all();
    for (int i = 0; i < ARRAY_SIZE(w); i++) {
        g_assert_true(w[i].done);
    }
    g_test_message("%u writes", finished);
    g_assert_cmpuint(space_held_count, ==, 0);
    blk_set_aio_context(blk, qemu_get_aio_context(), &error_abort);
    finish(blk);
    iothread_join(iothread);
    g_rand_free(rand);
}

static void check_refused(const char *name, const char *value,
                          const char *why)
{
    Error *err = NULL;
    BlockBackend *blk = open_guard(&err, name, value, NULL);

    g_assert_null(blk);
    g_assert_nonnull(strstr(error_get_pretty(err), name));
    g_assert_nonnull(strstr(error_get_pretty(err), value));
    g_assert_nonnull(strstr(error_get_pretty(err), why));
    error_free(err);
}

static void test_options(void)
{
    start();
    check_refused("max-hold-ms", "0", "from 1 to 25000");
    check_refused("max-hold-ms", "25001", "from 1 to 25000");
    check_refused("policy", "wait", "no value");
    check_refused("verify", "believe", "no value");
    check_refused("lead-ms", "60001", "to 60000");
    check_refused("lead-ms", "100", "low-water");
    check_refused("low-water", "65536", "verify=probe");
    check_refused("verify", "space", "file name");
}

int main(int argc, char **argv)
{
    qemu_init_main_loop(&error_abort);
    bdrv_init();
    bdrv_register(&bdrv_leaf);
    qemu_iovec_init_buf(&qiov, data, sizeof(data));

    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/space-guard/nothing", test_nothing);
    g_test_add_func("/space-guard/watched", test_watched);
    g_test_add_func("/space-guard/hold", test_hold);
    g_test_add_func("/space-guard/stop", test_stop);
    g_test_add_func("/space-guard/lie", test_lie);
    g_test_add_func("/space-guard/late", test_late);
    g_test_add_func("/space-guard/deny", test_deny);
    g_test_add_func("/space-guard/expire", test_expire);
    g_test_add_func("/space-guard/stopped-vm", test_stopped_vm);
    g_test_add_func("/space-guard/other-errors", test_other_errors);
    g_test_add_func("/space-guard/edquot", test_edquot);
    g_test_add_func("/space-guard/room", test_room);
    g_test_add_func("/space-guard/probe", test_probe);
    g_test_add_func("/space-guard/probe-lost", test_probe_lost);
    g_test_add_func("/space-guard/probe-stopped", test_probe_stopped);
    g_test_add_func("/space-guard/flush", test_flush);
    g_test_add_func("/space-guard/low-water", test_low_water);
    g_test_add_func("/space-guard/low-water-grown", test_low_water_grown);
    g_test_add_func("/space-guard/escalate", test_escalate);
    g_test_add_func("/space-guard/remove", test_remove);
    g_test_add_func("/space-guard/drain", test_drain);
    g_test_add_func("/space-guard/drain-iothread", test_drain_iothread);
    g_test_add_func("/space-guard/drain-statvfs", test_drain_statvfs);
    g_test_add_func("/space-guard/cancel", test_cancel);
    g_test_add_func("/space-guard/cancel-probe", test_cancel_probe);
    g_test_add_func("/space-guard/cancel-one-of-two", test_cancel_one_of_two);
    g_test_add_func("/space-guard/stress", test_stress);
    g_test_add_func("/space-guard/options", test_options);
    return g_test_run();
}

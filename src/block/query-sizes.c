/*
 * Allocated sizes for query-block, without waiting for a server under the BQL
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * query-block reports how much of a file is allocated, by an fstat() that
 * takes seconds when the file's server is slow, and all that time the main
 * thread holds the BQL.  Here the files are asked before the command runs, in
 * threads, on descriptors of their own: no lock is held, and no node is
 * referenced or in flight, so it can be deleted meanwhile.  When all have
 * answered, or the deadline is over, the command runs as ever and finds the
 * sizes in a table.
 *
 * A file that has not answered in time is overdue.  It is neither waited for
 * nor asked again until it answers, so polling a VM with a dead server costs
 * one thread for each of its files and the deadline once.
 *
 * Locks: all is under the BQL, in the main thread, but what a node's own
 * thread looks up, which is under sizes_lock as well.
 */

#include "qemu/osdep.h"
#include "block/block_int.h"
#include "block/query-sizes.h"
#include "qemu/main-loop.h"
#include "qobject/qdict.h"
#include "trace.h"

/* Files that are asked at a time; leaves threads to others */
#define MAX_RUNNING (ASYNC_CALL_MAX_JOBS / 2)

/* What a file was asked; belongs to its thread and to the call */
typedef struct SizeStat {
    struct NodeSize *node;      /* for the call, unless it was cancelled */
    int fd;
    int64_t size;
} SizeStat;

typedef struct NodeSize {
    BlockDriverState *bs;
    AsyncCallOwner owner;       /* has a call parked while the file is asked */
    int64_t asked_ns;
    bool wanted;                /* it is to be asked */
    bool overdue;
    int64_t size;               /* -errno: not known */
    QTAILQ_ENTRY(NodeSize) next;
} NodeSize;

/* A command that waits; on its stack */
typedef struct SizeWaiter {
    AsyncCall *call;
    bool asked;                 /* its files are in the table */
    QTAILQ_ENTRY(SizeWaiter) next;
} SizeWaiter;

/* A function that waits; on the heap */
typedef struct SizeFunc {
    BlockSizesFunc *func;
    void *opaque;
} SizeFunc;

AsyncCallSite block_sizes_query_site = { .name = "query-block" };
AsyncCallSite block_sizes_fstat_site = { .name = "fstat" };

static uint32_t deadline_ms;
static AsyncCallOwner query_owner;
static QTAILQ_HEAD(, SizeWaiter) waiters = QTAILQ_HEAD_INITIALIZER(waiters);
static uint64_t left_out;

static QemuMutex sizes_lock;
/* Writes: BQL and sizes_lock; reads: either */
static QTAILQ_HEAD(, NodeSize) nodes = QTAILQ_HEAD_INITIALIZER(nodes);

/* Commands that report from the table; written with the BQL held */
static unsigned reporting;

static void __attribute__((constructor)) block_sizes_init(void)
{
    qemu_mutex_init(&sizes_lock);
    async_call_owner_init(&query_owner, "monitor",
                          ASYNC_CALL_MAX_PARKED_OWNER);
}

void block_sizes_set_deadline(uint32_t ms)
{
    deadline_ms = ms;
}

uint32_t block_sizes_deadline(void)
{
    return deadline_ms;
}

uint64_t block_sizes_left_out(void)
{
    return qatomic_read(&left_out);
}

static int64_t deadline_ns(void)
{
    return (int64_t)deadline_ms * SCALE_MS;
}

static NodeSize *find_node(BlockDriverState *bs)
{
    NodeSize *node;

    QTAILQ_FOREACH(node, &nodes, next) {
        if (node->bs == bs) {
            return node;
        }
    }
    return NULL;
}

static NodeSize *add_node(BlockDriverState *bs)
{
    NodeSize *node = g_new0(NodeSize, 1);

    node->bs = bs;
    node->size = -EINPROGRESS;
    async_call_owner_init(&node->owner, bdrv_get_node_name(bs), 1);
    WITH_QEMU_LOCK_GUARD(&sizes_lock) {
        QTAILQ_INSERT_TAIL(&nodes, node, next);
    }
    return node;
}

static void set_size(NodeSize *node, int64_t size)
{
    QEMU_LOCK_GUARD(&sizes_lock);
    node->size = size;
}

static bool is_running(NodeSize *node)
{
    return node->owner.parked;
}

/* Let commands go on whose files have all answered or are overdue. */
static void wake_waiters(void)
{
    NodeSize *node;
    SizeWaiter *waiter;

    QTAILQ_FOREACH(node, &nodes, next) {
        if (node->wanted || (is_running(node) && !node->overdue)) {
            return;
        }
    }
    QTAILQ_FOREACH(waiter, &waiters, next) {
        if (waiter->asked) {
            async_call_wake(waiter->call, 0);
        }
    }
}

static int stat_file(void *opaque)
{
    SizeStat *st = opaque;
    struct stat buf;

    if (fstat(st->fd, &buf) < 0) {
        st->size = -errno;
    } else {
        st->size = (int64_t)buf.st_blocks * 512;
    }
    return 0;
}

/* To close a file can take as long as fstat(); so the thread does that, too. */
static void stat_done_in_thread(void *opaque)
{
    SizeStat *st = opaque;

    close(st->fd);
    g_atomic_rc_box_release(st);
}

static int coroutine_fn stat_node(AsyncCall *call, void *opaque)
{
    SizeStat *st = opaque;
    int ret;

    ret = async_call_blocking(call, -1, stat_file,
                              g_atomic_rc_box_acquire(st),
                              stat_done_in_thread);
    if (ret == -ECANCELED) {
        g_atomic_rc_box_release(st);
    }
    return ret;
}

static void stat_ended(SizeStat *st, int ret)
{
    /* no thread was free: as good as no answer */
    int64_t size = ret ? -EINPROGRESS : st->size;

    trace_block_sizes_stat(st->node->owner.id, size);
    set_size(st->node, size);
    g_atomic_rc_box_release(st);
}

static void start_wanted(void);

static void stat_parked_ended(void *opaque, int ret)
{
    stat_ended(opaque, ret);
    start_wanted();
    wake_waiters();
}

static void start_stat(NodeSize *node)
{
    int fd = qemu_dup(raw_get_fd(node->bs));
    SizeStat *st;
    int ret;

    node->wanted = false;
    set_size(node, -EINPROGRESS);
    if (fd < 0) {
        return;
    }
    st = g_atomic_rc_box_new0(SizeStat);
    st->node = node;
    st->fd = fd;
    switch (async_call(&node->owner, &block_sizes_fstat_site, stat_node,
                       stat_parked_ended, st, &ret)) {
    case ASYNC_CALL_DONE:
        stat_ended(st, ret);
        break;
    case ASYNC_CALL_REFUSED:
        close(fd);
        g_atomic_rc_box_release(st);
        break;
    case ASYNC_CALL_PARKED:
        break;
    }
}

static void start_wanted(void)
{
    unsigned running = 0;
    NodeSize *node;

    QTAILQ_FOREACH(node, &nodes, next) {
        running += is_running(node);
    }
    QTAILQ_FOREACH(node, &nodes, next) {
        if (running >= MAX_RUNNING) {
            break;
        }
        if (node->wanted) {
            start_stat(node);
            running += is_running(node);
        }
    }
}

/* From a bottom half: the graph may not be walked in a coroutine like this. */
static void ask_files(void *opaque)
{
    int64_t now_ns = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
    BlockDriverState *bs;
    SizeWaiter *waiter;

    GRAPH_RDLOCK_GUARD_MAINLOOP();

    for (bs = bdrv_next_node(NULL); bs; bs = bdrv_next_node(bs)) {
        NodeSize *node;

        if (raw_get_fd(bs) < 0) {
            continue;
        }
        node = find_node(bs) ?: add_node(bs);
        if (!is_running(node) && !node->wanted) {
            node->asked_ns = now_ns;
            node->wanted = true;
            node->overdue = false;
        }
    }
    QTAILQ_FOREACH(waiter, &waiters, next) {
        waiter->asked = true;
    }
    start_wanted();
    wake_waiters();
}

/* The deadline is over of a command that began at @start_ns. */
static void expire(int64_t start_ns)
{
    NodeSize *node;

    QTAILQ_FOREACH(node, &nodes, next) {
        if (node->asked_ns > start_ns + deadline_ns() / 2) {
            continue;           /* another command's, and rather new */
        }
        node->wanted = false;
        if (is_running(node) && !node->overdue) {
            node->overdue = true;
            trace_block_sizes_overdue(node->owner.id);
        }
    }
    wake_waiters();
}

static int coroutine_fn wait_for_sizes(AsyncCall *call, void *opaque)
{
    int64_t start_ns = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
    SizeWaiter waiter = { .call = call };
    int ret;

    QTAILQ_INSERT_TAIL(&waiters, &waiter, next);
    aio_bh_schedule_oneshot(iohandler_get_aio_context(), ask_files, NULL);
    ret = async_call_park(call, deadline_ns());
    QTAILQ_REMOVE(&waiters, &waiter, next);
    if (ret == -ETIMEDOUT) {
        expire(start_ns);
    }
    return ret;
}

static bool is_on(void)
{
    return deadline_ms && !reporting;
}

static bool wants_sizes(QObject *req)
{
    QDict *dict = qobject_to(QDict, req);
    const char *name = dict ? qdict_get_try_str(dict, "execute") : NULL;
    const char *line;

    if (!name) {
        return false;
    }
    if (g_str_equal(name, "query-block") ||
        g_str_equal(name, "query-named-block-nodes")) {
        return true;
    }
    if (!g_str_equal(name, "human-monitor-command")) {
        return false;
    }
    dict = qobject_to(QDict, qdict_get(dict, "arguments"));
    line = dict ? qdict_get_try_str(dict, "command-line") : NULL;
    return line && g_regex_match_simple("^\\s*info\\s+block\\b(?!-)", line,
                                        0, 0);
}

/*
 * monitor_cleanup() waits in the main context for the dispatcher, which takes
 * several bottom halves of the other one to end its command.
 */
static void kick_main_context(void *opaque)
{
    if (reporting) {
        aio_bh_schedule_oneshot(qemu_get_aio_context(), kick_main_context,
                                NULL);
    }
}

bool coroutine_mixed_fn block_sizes_co_begin(QObject *req)
{
    int ret = 0;

    if (!is_on() || !qemu_in_coroutine() || !wants_sizes(req)) {
        return false;
    }
    /* refused or not, in time or not: what there is will be reported */
    async_call(&query_owner, &block_sizes_query_site, wait_for_sizes, NULL,
               NULL, &ret);
    qatomic_set(&reporting, reporting + 1);
    if (ret == -ECANCELED) {
        kick_main_context(NULL);
    }
    return true;
}

void block_sizes_co_end(bool begun)
{
    if (begun) {
        qatomic_set(&reporting, reporting - 1);
    }
}

/* Not in the coroutine that has waited: the caller expects to be in none. */
static void run_func(void *opaque)
{
    g_autofree SizeFunc *f = opaque;

    qatomic_set(&reporting, reporting + 1);
    f->func(f->opaque);
    qatomic_set(&reporting, reporting - 1);
}

static int coroutine_fn wait_for_func(AsyncCall *call, void *opaque)
{
    wait_for_sizes(call, NULL);
    aio_bh_schedule_oneshot(iohandler_get_aio_context(), run_func, opaque);
    return 0;
}

bool block_sizes_when_ready(BlockSizesFunc *func, void *opaque)
{
    SizeFunc *f;
    int ret;

    if (!is_on()) {
        return false;
    }
    f = g_new(SizeFunc, 1);
    f->func = func;
    f->opaque = opaque;
    if (async_call(&query_owner, &block_sizes_query_site, wait_for_func, NULL,
                   f, &ret) == ASYNC_CALL_REFUSED) {
        aio_bh_schedule_oneshot(iohandler_get_aio_context(), run_func, f);
    }
    return true;
}

bool block_sizes_lookup(BlockDriverState *bs, int64_t *size)
{
    NodeSize *node;

    if (likely(!qatomic_read(&reporting))) {
        return false;
    }
    QEMU_LOCK_GUARD(&sizes_lock);
    node = find_node(bs);
    *size = node ? node->size : -EINPROGRESS;
    if (*size == -EINPROGRESS) {
        qatomic_inc(&left_out);
    }
    return true;
}

bool block_sizes_asking(BlockDriverState *bs)
{
    NodeSize *node = find_node(bs);

    return node && is_running(node);
}

void block_sizes_forget(BlockDriverState *bs)
{
    NodeSize *node = find_node(bs);

    if (!node) {
        return;
    }
    async_call_cancel(&node->owner);
    WITH_QEMU_LOCK_GUARD(&sizes_lock) {
        QTAILQ_REMOVE(&nodes, node, next);
    }
    g_free(node);
    wake_waiters();
}

/*
 * Growth of storage: the filter driver space-guard
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The filter is right above the node that holds the data, so it serves every
 * device model, job and export, and sees only what the storage itself says:
 * ENOSPC that a format driver makes up, or that stands for "fall back" in
 * copy offloading, does not pass through it.
 *
 * A held write is a coroutine that waits inside the filter, in the AioContext
 * that submitted it.  It is in flight, so whoever drains the node would wait
 * for it; space_guard_drained_begin() gives it back.
 */

#include "qemu/osdep.h"
#include <sys/statvfs.h>
#include "block/blockjob_int.h"
#include "block/space-guard.h"
#include "block/space-request.h"
#include "qapi/error.h"
#include "qapi/qapi-types-block-core.h"
#include "qemu/cutils.h"
#include "qemu/error-report.h"
#include "qemu/main-loop.h"
#include "qemu/module.h"
#include "qemu/option.h"
#include "qemu/thread.h"
#include "qemu/units.h"
#include "qobject/qdict.h"
#include "trace.h"

#define DEFAULT_MAX_HOLD_MS 10000
/* Guests' SCSI, ATA and NVMe drivers reset the device after 30 seconds */
#define LIMIT_MAX_HOLD_MS 25000
#define LIMIT_LEAD_MS 60000

#define STATVFS_MAX_MS 1000
#define STATVFS_THREADS 64

#define SAMPLE_BYTES (1 * MiB)
#define SAMPLE_NS (10 * SCALE_MS)

#define POLL_MIN_MS 10
#define POLL_MAX_MS 1000
#define POLL_LOW_MS 100

unsigned space_held_count;

static BlockDriver bdrv_space_guard;
static QEMUTimer *poll_timer;

/* What a write, a discard or a write of zeroes is made of */
typedef struct SpaceOp {
    enum { OP_WRITE, OP_ZEROES, OP_DISCARD } type;
    int64_t offset;
    int64_t bytes;
    QEMUIOVector *qiov;
    size_t qiov_offset;
    BdrvRequestFlags flags;
} SpaceOp;

static bool is_guard(BlockDriverState *bs)
{
    return bs->drv == &bdrv_space_guard;
}

static bool is_no_space(int ret)
{
    return ret == -ENOSPC || ret == -EDQUOT;
}

/*
 * The graph
 */

BlockDriverState *space_guard_leaf(BlockDriverState *bs)
{
    BlockDriverState *next;

    while ((next = bdrv_primary_bs(bs))) {
        bs = next;
    }
    return bs;
}

/* Whether a drain waits for @job; that its user has paused it is no drain */
static bool job_is_drained(BlockJob *job)
{
    JOB_LOCK_GUARD();
    return job->job.pause_count > job->job.user_paused;
}

bool space_guard_is_drained(BlockDriverState *bs)
{
    BdrvChild *c;

    if (qatomic_read(&bs->quiesce_counter)) {
        return true;
    }
    QLIST_FOREACH(c, &bs->parents, next_parent) {
        BlockJob *job = block_job_of_child(c);

        if (job ? job_is_drained(job)
                : c->klass->parent_is_bds &&
                  space_guard_is_drained(c->opaque)) {
            return true;
        }
    }
    return false;
}

/*
 * Whether anything but other nodes uses @bs.  While an image is being opened
 * nothing does; that runs in the main thread, which must not wait there for an
 * answer that only it can receive.
 */
static bool GRAPH_RDLOCK has_user(BlockDriverState *bs)
{
    BdrvChild *c;

    QLIST_FOREACH(c, &bs->parents, next_parent) {
        if (!c->klass->parent_is_bds || has_user(c->opaque)) {
            return true;
        }
    }
    return false;
}

/* Find @g, or the guard number @index, below @bs. @n counts guards. */
static SpaceGuard * GRAPH_RDLOCK
find_below(BlockDriverState *bs, const SpaceGuard *g, unsigned index,
           unsigned *n)
{
    BdrvChild *c;

    if (is_guard(bs)) {
        if (g ? bs->opaque == g : *n == index) {
            return bs->opaque;
        }
        (*n)++;
    }
    QLIST_FOREACH(c, &bs->children, next) {
        SpaceGuard *found = find_below(c->bs, g, index, n);

        if (found) {
            return found;
        }
    }
    return NULL;
}

static SpaceGuard *find_in_backend(BlockBackend *blk, const SpaceGuard *g,
                                   unsigned index, unsigned *n)
{
    BlockDriverState *bs = blk_bs(blk);

    GRAPH_RDLOCK_GUARD_MAINLOOP();
    return bs ? find_below(bs, g, index, n) : NULL;
}

char *space_guard_device(SpaceGuard *g, unsigned *index, BlockBackend **blk)
{
    BlockBackend *b = NULL;

    while ((b = blk_all_next(b))) {
        DeviceState *dev = blk_get_attached_dev(b);
        unsigned n = 0;

        if (dev && find_in_backend(b, g, 0, &n)) {
            *index = n;
            *blk = b;
            return object_get_canonical_path(OBJECT(dev));
        }
    }
    return NULL;
}

SpaceGuard *space_guard_of_device(const char *qom_path, unsigned index)
{
    BlockBackend *b = NULL;

    while ((b = blk_all_next(b))) {
        DeviceState *dev = blk_get_attached_dev(b);
        g_autofree char *path =
            dev ? object_get_canonical_path(OBJECT(dev)) : NULL;
        unsigned n = 0;

        if (path && g_str_equal(path, qom_path)) {
            return find_in_backend(b, NULL, index, &n);
        }
    }
    return NULL;
}

bool space_guard_below(BlockBackend *blk)
{
    unsigned n = 0;

    return find_in_backend(blk, NULL, 0, &n);
}

bool space_guard_holds_below(BlockBackend *blk)
{
    return space_vm_is_running() && space_guard_below(blk);
}

static void GRAPH_RDLOCK
foreach_below(BlockDriverState *bs, void (*fn)(SpaceGuard *g))
{
    BdrvChild *c;

    if (is_guard(bs)) {
        fn(bs->opaque);
    }
    QLIST_FOREACH(c, &bs->children, next) {
        foreach_below(c->bs, fn);
    }
}

void space_guard_foreach_below(BlockBackend *blk, void (*fn)(SpaceGuard *g))
{
    BlockDriverState *bs = blk_bs(blk);

    GRAPH_RDLOCK_GUARD_MAINLOOP();
    if (bs) {
        foreach_below(bs, fn);
    }
}

static void GRAPH_RDLOCK foreach_of_job(BlockJob *job,
                                        void (*fn)(SpaceGuard *g))
{
    for (GSList *el = job->nodes; el; el = el->next) {
        foreach_below(((BdrvChild *)el->data)->bs, fn);
    }
}

void space_guard_drained_begin(BlockDriverState *bs)
{
    BdrvChild *c;

    /*
     * Pairs with the barrier in space_request_co_failed(): either that sees
     * the quiesce_counter, or that a job is paused, or this sees the write
     * that is held.
     */
    smp_mb();
    if (!qatomic_read(&space_held_count)) {
        return;
    }
    foreach_below(bs, space_requests_give_back);
    /* a job that works here is waited for, too, and may write elsewhere */
    QLIST_FOREACH(c, &bs->parents, next_parent) {
        BlockJob *job = block_job_of_child(c);

        if (job) {
            foreach_of_job(job, space_requests_give_back);
        }
    }
}

void space_guard_cancel_below(BlockDriverState *bs)
{
    if (qatomic_read(&space_held_count)) {
        foreach_below(bs, space_requests_cancel);
    }
}

/* Whether a job reads or writes @bs, or something below it */
static bool GRAPH_RDLOCK job_is_below(BlockJob *job, BlockDriverState *bs)
{
    BdrvChild *c;

    if (block_job_has_bdrv(job, bs)) {
        return true;
    }
    QLIST_FOREACH(c, &bs->children, next) {
        if (job_is_below(job, c->bs)) {
            return true;
        }
    }
    return false;
}

/* A guest's write may have to wait for a job's, as for a mirror's target */
static void GRAPH_RDLOCK will_cancel_jobs(BlockDriverState *bs)
{
    BlockJob *job = NULL;

    JOB_LOCK_GUARD();
    while ((job = block_job_next_locked(job))) {
        if (job_is_below(job, bs)) {
            foreach_of_job(job, space_requests_will_cancel);
        }
    }
}

static void cancel_if_marked(SpaceGuard *g)
{
    if (g->cancelling) {
        space_requests_cancel(g);
    }
}

void space_guard_cancel_begin(BlockBackend *blk)
{
    BlockBackend *b = NULL;

    space_requests_cancel_begin();
    bdrv_graph_rdlock_main_loop();
    while ((b = blk_all_next(b))) {
        BlockDriverState *bs = blk_bs(b);

        if (bs && (blk ? b == blk : blk_has_cancelled(b))) {
            foreach_below(bs, space_requests_will_cancel);
            will_cancel_jobs(bs);
        }
    }
    bdrv_graph_rdunlock_main_loop();
    /* coroutines run now */
    space_requests_foreach_guard(cancel_if_marked);
}

void space_guard_cancel_end(void)
{
    space_requests_cancel_end();
}

/*
 * Configuration
 */

/*
 * Whether the guest's disk is as large as the storage: there is no format
 * between @bs and a guard whose storage is a device.
 */
static bool GRAPH_RDLOCK is_raw_on_fixed(BlockDriverState *bs)
{
    while (bs && !is_guard(bs)) {
        if (!bs->drv ||
            !(bs->drv->is_filter ||
              g_str_equal(bs->drv->format_name, "raw"))) {
            return false;
        }
        bs = bdrv_primary_bs(bs);
    }
    if (!bs || ((SpaceGuard *)bs->opaque)->verify == BLOCK_SPACE_VERIFY_PROBE) {
        return false;
    }
    bs = space_guard_leaf(bs);
    return bs->drv && g_str_equal(bs->drv->format_name, "host_device");
}

/* Who does has an error policy that says what becomes of it */
static bool keeps_failed_writes(DeviceState *dev)
{
    return object_property_find(OBJECT(dev), "werror");
}

/* While a migration is incoming, what @blk is to have does not count yet */
static bool will_write(BlockBackend *blk, BdrvChild *c)
{
    uint64_t perm = c->perm, shared;

    if (!perm) {
        blk_get_perm(blk, &perm, &shared);
    }
    return perm & BLK_PERM_WRITE;
}

/*
 * A device that writes to @bs and does not keep a write that fails, or NULL.
 * @writer is about to write, if it is not NULL.  A backing file is not
 * written to by who uses the image above it.
 */
static DeviceState * GRAPH_RDLOCK find_careless(BlockDriverState *bs,
                                                BlockBackend *writer)
{
    DeviceState *dev = NULL;
    BdrvChild *c;

    QLIST_FOREACH(c, &bs->parents, next_parent) {
        BlockBackend *blk = NULL;

        if (c->role & BDRV_CHILD_COW) {
            continue;
        }
        if (c->klass->parent_is_bds) {
            dev = find_careless(c->opaque, writer);
            if (dev) {
                return dev;
            }
            continue;
        }
        /* a job is no back end */
        while ((blk = blk_all_next(blk))) {
            if (c->opaque != blk || !(blk == writer || will_write(blk, c))) {
                continue;
            }
            dev = blk_get_attached_dev(blk);
            if (dev && !keeps_failed_writes(dev)) {
                return dev;
            }
        }
    }
    return NULL;
}

static bool GRAPH_RDLOCK check_hold(SpaceGuard *g, BlockBackend *writer,
                                    Error **errp)
{
    DeviceState *dev = NULL;
    g_autofree char *path = NULL;

    if (g->policy == BLOCK_SPACE_POLICY_HOLD) {
        dev = find_careless(g->bs, writer);
    }
    if (!dev) {
        return true;
    }
    path = object_get_canonical_path(OBJECT(dev));
    error_setg(errp, "Property 'policy' of space-guard node '%s' is 'hold', "
               "but must be 'stop' below %s '%s': that device would lose "
               "a write that waits in vain", bdrv_get_node_name(g->bs),
               object_get_typename(OBJECT(dev)), path ?: "");
    return false;
}

bool space_guard_check_writer(BlockBackend *blk, Error **errp)
{
    SpaceGuard *g;
    unsigned n = 0;

    for (unsigned i = 0; (g = find_in_backend(blk, NULL, i, &n)); i++, n = 0) {
        GRAPH_RDLOCK_GUARD_MAINLOOP();
        if (!check_hold(g, blk, errp)) {
            return false;
        }
    }
    return true;
}

bool space_guard_check_backend(BlockBackend *blk, Error **errp)
{
    BlockdevOnError werror = blk_get_on_error(blk, false);
    SpaceGuard *g;
    unsigned n = 0;

    g = find_in_backend(blk, NULL, 0, &n);
    if (!g) {
        return true;
    }
    if (werror == BLOCKDEV_ON_ERROR_REPORT ||
        werror == BLOCKDEV_ON_ERROR_IGNORE) {
        error_setg(errp, "werror=%s cannot be used with the space-guard node "
                   "'%s', it must be 'enospc' or 'stop'",
                   BlockdevOnError_str(werror), bdrv_get_node_name(g->bs));
        return false;
    }

    GRAPH_RDLOCK_GUARD_MAINLOOP();
    if (is_raw_on_fixed(blk_bs(blk))) {
        error_setg(errp, "space-guard node '%s' has nothing to do: a raw disk "
                   "on a device cannot outgrow it", bdrv_get_node_name(g->bs));
        error_append_hint(errp, "Use an image format such as qcow2, or "
                          "verify=probe for a device in a thin pool.\n");
        return false;
    }
    return true;
}

static QemuOptsList space_guard_opts = {
    .name = "space-guard",
    .head = QTAILQ_HEAD_INITIALIZER(space_guard_opts.head),
    .desc = {
        {
            .name = "policy",
            .type = QEMU_OPT_STRING,
            .help = "What to do with a write that finds no space",
        },
        {
            .name = "max-hold-ms",
            .type = QEMU_OPT_NUMBER,
            .help = "How long a write may wait, in milliseconds",
        },
        {
            .name = "verify",
            .type = QEMU_OPT_STRING,
            .help = "How to find out whether storage has grown",
        },
        {
            .name = "low-water",
            .type = QEMU_OPT_SIZE,
            .help = "Ask for more when less is left",
        },
        {
            .name = "lead-ms",
            .type = QEMU_OPT_NUMBER,
            .help = "Raise low-water to what is written in that time",
        },
        { /* end of list */ }
    },
};

static bool parse_enum(QemuOpts *opts, const char *name,
                       const QEnumLookup *lookup, int def, int *value,
                       Error **errp)
{
    const char *str = qemu_opt_get(opts, name);

    *value = str ? qapi_enum_parse(lookup, str, -1, NULL) : def;
    if (*value < 0) {
        error_setg(errp, "Property '%s' of space-guard has no value '%s'",
                   name, str);
        return false;
    }
    return true;
}

static bool parse_number(QemuOpts *opts, const char *name, uint32_t def,
                         uint32_t min, uint32_t max, uint32_t *value,
                         Error **errp)
{
    uint64_t number = qemu_opt_get_number(opts, name, def);

    if (number < min || number > max) {
        error_setg(errp, "Property '%s' of space-guard is %" PRIu64 ", but "
                   "must be from %u to %u", name, number, min, max);
        return false;
    }
    *value = number;
    return true;
}

static bool parse_options(SpaceGuard *g, QDict *options, Error **errp)
{
    QemuOpts *opts = qemu_opts_create(&space_guard_opts, NULL, 0, &error_abort);
    int policy, verify;
    bool ok;

    ok = qemu_opts_absorb_qdict(opts, options, errp) &&
         parse_enum(opts, "policy", &BlockSpacePolicy_lookup,
                    BLOCK_SPACE_POLICY_STOP, &policy, errp) &&
         parse_enum(opts, "verify", &BlockSpaceVerify_lookup,
                    BLOCK_SPACE_VERIFY_AUTO, &verify, errp) &&
         parse_number(opts, "max-hold-ms", DEFAULT_MAX_HOLD_MS, 1,
                      LIMIT_MAX_HOLD_MS, &g->max_hold_ms, errp) &&
         parse_number(opts, "lead-ms", 0, 0, LIMIT_LEAD_MS, &g->lead_ms, errp);
    if (ok) {
        g->policy = policy;
        g->verify = verify;
        g->low_water = qemu_opt_get_size(opts, "low-water", 0);
    }
    qemu_opts_del(opts);
    return ok;
}

/* How the storage is measured when nothing speaks against it */
static BlockSpaceVerify GRAPH_RDLOCK measure_how(SpaceGuard *g,
                                                 BlockDriverState *leaf)
{
    if (g->verify != BLOCK_SPACE_VERIFY_AUTO) {
        return g->verify;
    }
    if (leaf->drv && g_str_equal(leaf->drv->format_name, "host_device")) {
        return BLOCK_SPACE_VERIFY_SIZE;
    }
    if (leaf->drv && g_str_equal(leaf->drv->format_name, "file")) {
        return BLOCK_SPACE_VERIFY_SPACE;
    }
    return BLOCK_SPACE_VERIFY_PROBE;
}

/* Whether they fit @file, which is below or is to come there */
static bool GRAPH_RDLOCK check_options(SpaceGuard *g, BlockDriverState *file,
                                       Error **errp)
{
    BlockDriverState *leaf = space_guard_leaf(file);
    BlockSpaceVerify how = measure_how(g, leaf);

    if (file->drv && file->drv->is_format &&
        !g_str_equal(file->drv->format_name, "raw")) {
        error_setg(errp, "space-guard must be below the image format, not "
                   "above node '%s' (driver '%s')", bdrv_get_node_name(file),
                   file->drv->format_name);
        return false;
    }
    if (how == BLOCK_SPACE_VERIFY_SPACE && !leaf->exact_filename[0]) {
        error_setg(errp, "Property 'verify' of space-guard is 'space', but "
                   "node '%s' has no file name", bdrv_get_node_name(leaf));
        return false;
    }
    if (how == BLOCK_SPACE_VERIFY_SIZE && leaf->drv &&
        g_str_equal(leaf->drv->format_name, "file")) {
        error_setg(errp, "Property 'verify' of space-guard is 'size', but "
                   "must not be for node '%s': a file becomes longer by what "
                   "is written", bdrv_get_node_name(leaf));
        return false;
    }
    if (g->low_water > INT64_MAX / 2) {
        error_setg(errp, "Property 'low-water' of space-guard is %" PRIu64
                   ", but must be at most %" PRId64, g->low_water,
                   INT64_MAX / 2);
        return false;
    }
    if (g->low_water && how == BLOCK_SPACE_VERIFY_PROBE) {
        error_setg(errp, "Property 'low-water' of space-guard is %" PRIu64
                   ", but must be 0: what is left cannot be measured with "
                   "verify=probe", g->low_water);
        return false;
    }
    if (g->lead_ms && !g->low_water) {
        error_setg(errp, "Property 'lead-ms' of space-guard is %u, but must "
                   "be 0 without 'low-water'", g->lead_ms);
        return false;
    }
    return true;
}

/*
 * Measuring
 */

/*
 * A question to the file system, which may never answer.  A node is in flight
 * while it waits, so it does not wait for long, or a drain would wait, too.
 * The thread is of its own: a pool's has to end before its AioContext does.
 */
typedef struct StatvfsJob {
    char *filename;
    int64_t available;            /* -1: it does not tell */
    AioContext *ctx;
    Coroutine *co;
    bool taken;                   /* atomic; by who wakes the coroutine */
    bool late;
    int refs;
} StatvfsJob;

/* That run, waited for or not: QEMU aborts where none can be made; atomic */
static unsigned statvfs_threads;

static void statvfs_unref(StatvfsJob *job)
{
    if (qatomic_fetch_dec(&job->refs) == 1) {
        g_free(job->filename);
        g_free(job);
    }
}

static void *statvfs_thread(void *opaque)
{
    StatvfsJob *job = opaque;
    struct statvfs st;

    if (statvfs(job->filename, &st) == 0) {
        job->available = MIN((double)st.f_bavail * st.f_frsize, INT64_MAX / 2);
    }
    if (!qatomic_xchg(&job->taken, true)) {
        aio_co_schedule(job->ctx, job->co);
    }
    statvfs_unref(job);
    qatomic_dec(&statvfs_threads);
    return NULL;
}

static void statvfs_late(void *opaque)
{
    StatvfsJob *job = opaque;

    if (qatomic_xchg(&job->taken, true)) {
        return;
    }
    job->late = true;
    aio_co_wake(job->co);
}

/* Returns how many bytes are free, or -1 */
static int64_t coroutine_fn co_statvfs(const char *filename)
{
    StatvfsJob *job;
    QEMUTimer timer;
    QemuThread thread;
    int64_t available;

    if (qatomic_fetch_inc(&statvfs_threads) >= STATVFS_THREADS) {
        qatomic_dec(&statvfs_threads);
        return -1;
    }
    job = g_new0(StatvfsJob, 1);
    /* the file may be renamed, or be opened through a descriptor */
    job->filename = g_strdup(filename);
    job->available = -1;
    job->ctx = qemu_get_current_aio_context();
    job->co = qemu_coroutine_self();
    job->refs = 2;
    aio_timer_init(job->ctx, &timer, QEMU_CLOCK_REALTIME, SCALE_MS,
                   statvfs_late, job);
    timer_mod(&timer, qemu_clock_get_ms(QEMU_CLOCK_REALTIME) + STATVFS_MAX_MS);
    qemu_thread_create(&thread, "space-statvfs", statvfs_thread, job,
                       QEMU_THREAD_DETACHED);
    qemu_coroutine_yield();
    timer_del(&timer);
    available = job->late ? -1 : job->available;
    statvfs_unref(job);
    return available;
}

void coroutine_fn space_guard_co_measure(SpaceGuard *g, SpaceMeasure *m)
{
    BlockDriverState *leaf = space_guard_leaf(g->bs);

    *m = (SpaceMeasure) {
        .how = measure_how(g, leaf),
        .available = -1,
    };
    if (m->how == BLOCK_SPACE_VERIFY_SIZE &&
        bdrv_co_refresh_total_sectors(leaf, leaf->total_sectors) < 0) {
        m->how = BLOCK_SPACE_VERIFY_PROBE;
    }
    m->size = MAX(leaf->total_sectors, 0) * BDRV_SECTOR_SIZE;
    if (m->how == BLOCK_SPACE_VERIFY_SPACE) {
        m->available = co_statvfs(leaf->exact_filename);
        if (m->available < 0) {
            m->how = BLOCK_SPACE_VERIFY_PROBE;
        }
    }
    trace_space_guard_measure(bdrv_get_node_name(g->bs),
                              BlockSpaceVerify_str(m->how), m->size,
                              m->available);
}

bool space_measure_has_room(const SpaceMeasure *m, int64_t offset,
                            int64_t bytes)
{
    switch (m->how) {
    case BLOCK_SPACE_VERIFY_SIZE:
        return offset + bytes <= m->size;
    case BLOCK_SPACE_VERIFY_SPACE:
        return m->available >= bytes + SPACE_SLACK_BYTES;
    default:
        return false;
    }
}

/*
 * Rate and low-water marks
 */

static void sample_rate(SpaceGuard *g)
{
    uint64_t written = stat64_get(&g->written);
    int64_t now_ns, elapsed_ns;

    if (qatomic_xchg(&g->sampling, 1)) {
        return;
    }
    now_ns = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
    elapsed_ns = now_ns - g->sample_ns;
    if (elapsed_ns >= SAMPLE_NS) {
        double rate = (double)(written - stat64_get(&g->sample_bytes)) *
                      NANOSECONDS_PER_SECOND / elapsed_ns;

        /* the past counts half, and not at all after a second */
        if (elapsed_ns < NANOSECONDS_PER_SECOND) {
            rate = (rate + stat64_get(&g->rate)) / 2;
        }
        stat64_set(&g->rate, (uint64_t)rate);
        stat64_set(&g->sample_bytes, written);
        g->sample_ns = now_ns;
    }
    qatomic_store_release(&g->sampling, 0);
}

uint64_t space_guard_rate(SpaceGuard *g)
{
    sample_rate(g);
    return stat64_get(&g->rate);
}

uint64_t space_guard_water(SpaceGuard *g)
{
    double lead;

    if (!g->low_water) {
        return 0;
    }
    lead = (double)stat64_get(&g->rate) * g->lead_ms / 1000;
    return MIN(g->low_water + lead, INT64_MAX / 2);
}

void space_guard_rearm(SpaceGuard *g, const SpaceMeasure *m)
{
    int64_t mark = INT64_MAX;

    if (g->low_water && m->how == BLOCK_SPACE_VERIFY_SIZE) {
        mark = MAX(m->size - (int64_t)space_guard_water(g), 0);
    }
    stat64_set(&g->mark, mark);
}

/* A write ended above the mark: @end is the end of data now, more or less */
static void coroutine_fn GRAPH_RDLOCK
guard_co_crossed_mark(SpaceGuard *g, int64_t end)
{
    SpaceMeasure m;

    /* others need not look as well */
    stat64_set(&g->mark, INT64_MAX);
    sample_rate(g);
    space_guard_co_measure(g, &m);
    if (m.how == BLOCK_SPACE_VERIFY_SIZE &&
        end + (int64_t)space_guard_water(g) > m.size) {
        space_request_low_water(g, &m, true);
    } else {
        space_guard_rearm(g, &m);
    }
}

/*
 * The file system was looked at.  Look again when half of what is left above
 * the mark can be gone: by what is written here, or by then at this rate.
 * Returns in how many ms that is.
 */
static int64_t guard_looked(SpaceGuard *g, const SpaceMeasure *m)
{
    uint64_t rate = space_guard_rate(g);
    int64_t water = space_guard_water(g);
    int64_t left = m->available - water;

    space_request_low_water(g, m, left < 0);
    stat64_set(&g->look_at, stat64_get(&g->written) +
                            MAX(MAX(left, 0) / 2, water / 16));
    if (left < 0) {
        return POLL_LOW_MS;
    }
    return rate ? MIN((double)left / rate * 1000 / 2, POLL_MAX_MS)
                : POLL_MAX_MS;
}

static void coroutine_fn GRAPH_RDLOCK guard_co_look(SpaceGuard *g)
{
    SpaceMeasure m;

    /* others need not look as well */
    stat64_set(&g->look_at, UINT64_MAX);
    space_guard_co_measure(g, &m);
    if (m.how == BLOCK_SPACE_VERIFY_SPACE) {
        guard_looked(g, &m);
    }
}

static void coroutine_fn GRAPH_RDLOCK guard_co_written(SpaceGuard *g,
                                                       const SpaceOp *op)
{
    if (op->type == OP_DISCARD) {
        return;
    }
    stat64_add(&g->written, op->bytes);
    if (qatomic_read(&g->watched)) {
        space_request_written(g, op->offset, op->bytes);
    }
    if (!g->low_water) {
        return;
    }
    if (stat64_get(&g->written) - stat64_get(&g->sample_bytes) >=
        SAMPLE_BYTES) {
        sample_rate(g);
        if (g->lead_ms && stat64_get(&g->mark) != INT64_MAX) {
            SpaceMeasure m = {
                .how = BLOCK_SPACE_VERIFY_SIZE,
                .size = space_guard_leaf(g->bs)->total_sectors *
                        BDRV_SECTOR_SIZE,
            };

            space_guard_rearm(g, &m);
        }
    }
    if (op->offset + op->bytes > (int64_t)stat64_get(&g->mark)) {
        guard_co_crossed_mark(g, op->offset + op->bytes);
    }
    if (stat64_get(&g->written) >= stat64_get(&g->look_at)) {
        guard_co_look(g);
    }
}

static void coroutine_fn poll_co(void *opaque)
{
    SpaceGuard *g = opaque;
    int64_t next_ms = POLL_MAX_MS;
    SpaceMeasure m;

    WITH_GRAPH_RDLOCK_GUARD() {
        space_guard_co_measure(g, &m);
    }
    if (m.how == BLOCK_SPACE_VERIFY_SPACE) {
        next_ms = guard_looked(g, &m);
    }
    g->poll_at_ms = qemu_clock_get_ms(QEMU_CLOCK_REALTIME) +
                    MAX(next_ms, POLL_MIN_MS);
    timer_mod_anticipate(poll_timer, g->poll_at_ms);
    g->polling = false;
    bdrv_dec_in_flight(g->bs);
}

static bool poll_must_wait(SpaceGuard *g)
{
    GRAPH_RDLOCK_GUARD_MAINLOOP();
    return space_guard_is_drained(g->bs);
}

static void poll_guard(SpaceGuard *g)
{
    int64_t now_ms = qemu_clock_get_ms(QEMU_CLOCK_REALTIME);

    if (!g->poll_at_ms || g->polling) {
        return;
    }
    if (now_ms >= g->poll_at_ms) {
        g->poll_at_ms = now_ms + POLL_MAX_MS;
        if (!poll_must_wait(g)) {
            g->polling = true;
            bdrv_inc_in_flight(g->bs);
            aio_co_enter(qemu_get_aio_context(),
                         qemu_coroutine_create(poll_co, g));
            return;
        }
    }
    timer_mod_anticipate(poll_timer, g->poll_at_ms);
}

static void poll_cb(void *opaque)
{
    space_requests_foreach_guard(poll_guard);
}

static void GRAPH_RDLOCK start_low_water(SpaceGuard *g)
{
    BlockDriverState *leaf = space_guard_leaf(g->bs);
    SpaceMeasure m = {
        .how = measure_how(g, leaf),
        .size = MAX(leaf->total_sectors, 0) * BDRV_SECTOR_SIZE,
    };

    space_guard_rearm(g, &m);
    stat64_set(&g->look_at, UINT64_MAX);
    if (g->low_water && m.how == BLOCK_SPACE_VERIFY_SPACE) {
        stat64_set(&g->look_at, 0);
        if (!poll_timer) {
            poll_timer = timer_new_ms(QEMU_CLOCK_REALTIME, poll_cb, NULL);
        }
        g->poll_at_ms = qemu_clock_get_ms(QEMU_CLOCK_REALTIME) + POLL_MIN_MS;
        timer_mod_anticipate(poll_timer, g->poll_at_ms);
    }
}

/*
 * I/O
 */

static int coroutine_fn GRAPH_RDLOCK guard_co_do(BlockDriverState *bs,
                                                 const SpaceOp *op)
{
    switch (op->type) {
    case OP_WRITE:
        return bdrv_co_pwritev_part(bs->file, op->offset, op->bytes, op->qiov,
                                    op->qiov_offset, op->flags);
    case OP_ZEROES:
        return bdrv_co_pwrite_zeroes(bs->file, op->offset, op->bytes,
                                     op->flags);
    default:
        return bdrv_co_pdiscard(bs->file, op->offset, op->bytes);
    }
}

/*
 * @op found no space.  Wait for it, if that is the policy, and try again.
 *
 * Something else may have made room in the meantime, or what failed was not
 * the space: a short write of an asynchronous engine also reads as ENOSPC.  So
 * if there is room, try once more before anybody is asked.
 */
static int coroutine_fn GRAPH_RDLOCK
guard_co_no_space(SpaceGuard *g, const SpaceOp *op)
{
    SpaceFailure f = {
        .cause = BLOCK_SPACE_CAUSE_WRITE,
        .offset = op->offset,
        .bytes = op->bytes,
        .deadline_ms = qemu_clock_get_ms(QEMU_CLOCK_REALTIME) + g->max_hold_ms,
    };
    bool retried = false;
    int ret;

    for (;;) {
        space_guard_co_measure(g, &f.measure);
        f.despite_room = space_measure_has_room(&f.measure, op->offset,
                                                op->bytes);
        if (f.despite_room && !retried) {
            retried = true;
            space_requests_count(SPACE_STAT_RETRIED_ROOM);
        } else {
            f.may_hold = has_user(g->bs);
            if (!space_request_co_failed(g, &f)) {
                return -ENOSPC;
            }
            retried = false;
        }
        ret = guard_co_do(g->bs, op);
        if (ret >= 0) {
            guard_co_written(g, op);
            if (f.probe && op->type == OP_DISCARD) {
                /* it went through, so what failed may be tried again */
                space_request_written(g, op->offset, op->bytes);
            }
            return ret;
        }
        if (!is_no_space(ret)) {
            if (f.probe) {
                space_request_probe_lost(g);
            }
            return ret;
        }
    }
}

static int coroutine_fn GRAPH_RDLOCK guard_co_op(BlockDriverState *bs,
                                                 const SpaceOp *op)
{
    int ret = guard_co_do(bs, op);

    if (likely(ret >= 0)) {
        guard_co_written(bs->opaque, op);
        return ret;
    }
    return is_no_space(ret) ? guard_co_no_space(bs->opaque, op) : ret;
}

static int coroutine_fn GRAPH_RDLOCK
guard_co_pwritev_part(BlockDriverState *bs, int64_t offset, int64_t bytes,
                      QEMUIOVector *qiov, size_t qiov_offset,
                      BdrvRequestFlags flags)
{
    SpaceOp op = { OP_WRITE, offset, bytes, qiov, qiov_offset, flags };

    return guard_co_op(bs, &op);
}

/*
 * Whether a write needs nothing of what block/io.c does for this node: it was
 * all inside of it before, and nobody watches the node or waits for what
 * overlaps.  Flags that have to be emulated are: a flush is no write.
 */
static bool GRAPH_RDLOCK may_pass(BlockDriverState *bs, int64_t offset,
                                  int64_t bytes, BdrvRequestFlags flags)
{
    int64_t size = bs->total_sectors * BDRV_SECTOR_SIZE;

    return !(flags & ~bs->supported_write_flags) &&
           bytes > 0 && bytes <= size && offset >= 0 &&
           offset <= size - bytes && bs->bl.request_alignment == 1 &&
           !(bs->open_flags & (BDRV_O_INACTIVE | BDRV_O_NO_IO)) &&
           !bdrv_is_read_only(bs) && QLIST_EMPTY(&bs->dirty_bitmaps) &&
           !bs->write_threshold_offset &&
           bs->detect_zeroes == BLOCKDEV_DETECT_ZEROES_OPTIONS_OFF &&
           !qatomic_read(&bs->copy_on_read) &&
           !qatomic_read(&bs->serialising_in_flight);
}

/*
 * To track, pad and account for a write here costs several times what the
 * guard itself does, and all of it is done again for the node below.
 */
static int coroutine_fn GRAPH_RDLOCK
guard_co_pwritev_pass(BlockDriverState *bs, int64_t offset, int64_t bytes,
                      QEMUIOVector *qiov, size_t qiov_offset,
                      BdrvRequestFlags flags)
{
    SpaceOp op = { OP_WRITE, offset, bytes, qiov, qiov_offset };
    int ret;

    op.flags = flags & ~BDRV_REQ_REGISTERED_BUF;
    if (!may_pass(bs, offset, bytes, op.flags)) {
        return -ENOTSUP;
    }
    bdrv_inc_in_flight(bs);
    ret = guard_co_op(bs, &op);
    qatomic_inc(&bs->write_gen);  /* or the next flush would do nothing */
    stat64_max(&bs->wr_highest_offset, offset + bytes);
    bdrv_dec_in_flight(bs);
    return ret;
}

static int coroutine_fn GRAPH_RDLOCK
guard_co_pwrite_zeroes(BlockDriverState *bs, int64_t offset, int64_t bytes,
                       BdrvRequestFlags flags)
{
    SpaceOp op = { OP_ZEROES, offset, bytes, .flags = flags };

    return guard_co_op(bs, &op);
}

static int coroutine_fn GRAPH_RDLOCK
guard_co_pdiscard(BlockDriverState *bs, int64_t offset, int64_t bytes)
{
    SpaceOp op = { OP_DISCARD, offset, bytes };

    return guard_co_op(bs, &op);
}

static int coroutine_fn GRAPH_RDLOCK
guard_co_preadv_part(BlockDriverState *bs, int64_t offset, int64_t bytes,
                     QEMUIOVector *qiov, size_t qiov_offset,
                     BdrvRequestFlags flags)
{
    return bdrv_co_preadv_part(bs->file, offset, bytes, qiov, qiov_offset,
                               flags);
}

static int coroutine_fn GRAPH_RDLOCK guard_co_flush(BlockDriverState *bs)
{
    int ret = bdrv_co_flush(bs->file->bs);

    if (is_no_space(ret)) {
        SpaceFailure f = { .cause = BLOCK_SPACE_CAUSE_FLUSH };

        space_guard_co_measure(bs->opaque, &f.measure);
        space_request_co_failed(bs->opaque, &f);
        return -ENOSPC;
    }
    return ret;
}

static int64_t coroutine_fn GRAPH_RDLOCK
guard_co_getlength(BlockDriverState *bs)
{
    return bdrv_co_getlength(bs->file->bs);
}

/* There is a node below that was not there before */
static void GRAPH_RDLOCK adopt_file(SpaceGuard *g)
{
    BlockDriverState *file = g->bs->file->bs;

    g->bs->supported_write_flags = BDRV_REQ_WRITE_UNCHANGED |
        (BDRV_REQ_FUA & file->supported_write_flags);
    g->bs->supported_zero_flags = BDRV_REQ_WRITE_UNCHANGED |
        ((BDRV_REQ_FUA | BDRV_REQ_MAY_UNMAP | BDRV_REQ_NO_FALLBACK) &
         file->supported_zero_flags);
    start_low_water(g);
}

static int guard_open(BlockDriverState *bs, QDict *options, int flags,
                      Error **errp)
{
    SpaceGuard *g = bs->opaque;
    int ret;

    g->bs = bs;
    ret = bdrv_open_file_child(NULL, options, "file", bs, errp);
    if (ret < 0) {
        return ret;
    }
    if (!parse_options(g, options, errp)) {
        return -EINVAL;
    }

    GRAPH_RDLOCK_GUARD_MAINLOOP();
    if (!check_options(g, bs->file->bs, errp)) {
        return -EINVAL;
    }
    space_requests_add_guard(g);
    adopt_file(g);
    return 0;
}

/* Whoever comes to write here, or above, asks for permission, now or later */
static int GRAPH_RDLOCK guard_check_perm(BlockDriverState *bs, uint64_t perm,
                                         uint64_t shared, Error **errp)
{
    return check_hold(bs->opaque, NULL, errp) ? 0 : -EINVAL;
}

static void guard_close(BlockDriverState *bs)
{
    space_requests_remove_guard(bs->opaque);
}

/* The options cannot change, but the node below can */
static int guard_reopen_prepare(BDRVReopenState *state,
                                BlockReopenQueue *queue, Error **errp)
{
    const char *name = qdict_get_try_str(state->options, "file");
    BlockDriverState *file = name ? bdrv_lookup_bs(NULL, name, NULL) : NULL;

    GRAPH_RDLOCK_GUARD_MAINLOOP();
    return !file || check_options(state->bs->opaque, file, errp) ? 0 : -EINVAL;
}

static void guard_reopen_commit(BDRVReopenState *state)
{
    GRAPH_RDLOCK_GUARD_MAINLOOP();
    adopt_file(state->bs->opaque);
}

static BlockDriver bdrv_space_guard = {
    .format_name              = "space-guard",
    .instance_size            = sizeof(SpaceGuard),

    .bdrv_open                = guard_open,
    .bdrv_close               = guard_close,
    .bdrv_reopen_prepare      = guard_reopen_prepare,
    .bdrv_reopen_commit       = guard_reopen_commit,
    .bdrv_child_perm          = bdrv_default_perms,
    .bdrv_check_perm          = guard_check_perm,

    .bdrv_co_getlength        = guard_co_getlength,
    .bdrv_co_preadv_part      = guard_co_preadv_part,
    .bdrv_co_pwritev_part     = guard_co_pwritev_part,
    .bdrv_co_pwritev_pass     = guard_co_pwritev_pass,
    .bdrv_co_pwrite_zeroes    = guard_co_pwrite_zeroes,
    .bdrv_co_pdiscard         = guard_co_pdiscard,
    .bdrv_co_flush            = guard_co_flush,

    .is_filter                = true,
};

static void bdrv_space_guard_init(void)
{
    bdrv_register(&bdrv_space_guard);
}

block_init(bdrv_space_guard_init);

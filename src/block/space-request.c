/*
 * Growth of storage: the table of requests
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A guard has at most one request at a time.  It lives until there is proof
 * that the storage has grown, or the node goes:
 *
 *   failed write --> open --- grown, measured ------------------> closed
 *                     ^  `--- grown, not measurable --> probing -> closed
 *                     |`----- denied --> denied           |
 *                     `---- a write fails again ----------'
 *
 * Writes fail in any thread, so everything here is protected by one mutex; it
 * is taken only when storage is short.  Coroutines are woken after it was
 * released, because one of the own AioContext runs at once.  The monitor and
 * QOM want the main thread; announce_bh() runs there, in the AioContext that
 * nested event loops do not poll, so it never meets a half-changed graph.
 */

#include "qemu/osdep.h"
#include "block/space-request.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-space.h"
#include "qapi/qapi-events-space.h"
#include "qemu/lockable.h"
#include "qemu/main-loop.h"
#include "qemu/uuid.h"
#include "system/block-backend.h"
#include "trace.h"

#define BACKOFF_MIN_MS 100
#define BACKOFF_MAX_MS 10000

typedef enum SpaceVerdict {
    VERDICT_NONE,
    VERDICT_RETRY,
    VERDICT_FAIL,
    VERDICT_CANCEL,               /* fail, but that alone stops no VM */
} SpaceVerdict;

/* A write that waits; on the stack of its coroutine */
struct SpaceHeld {
    SpaceGuard *guard;
    Coroutine *co;
    int64_t offset, bytes;
    SpaceVerdict verdict;
    bool probe;                   /* it is the one that tries */
    QEMUTimer timer;
    QTAILQ_ENTRY(SpaceHeld) next;
};

struct SpaceRequest {
    uint64_t id;
    SpaceGuard *guard;            /* NULL when closed */
    char *node_name;
    BlockSpaceCause cause;
    BlockSpaceState state;
    uint64_t offset, bytes, needed;
    uint32_t attempt;
    bool stopped;                 /* an operation was failed since it ran */
    bool cancelled;               /* ... because one was cancelled */
    bool keeps;                   /* the VM has stopped for that */
    bool again;                   /* the next failure is another attempt */
    bool unmeasurable;            /* it failed although there was room */
    bool checking;                /* qmp_block_space_resolve() waits */
    bool probe_out;               /* a write that waited is trying */
    SpaceMeasure base;            /* when it was raised */
    int64_t since_ms;
    int64_t raise_at_ms;          /* 0: not again */
    bool raise;                   /* announce_bh() is to emit the event */
    bool closed;
    BlockSpaceOutcome outcome;    /* when closed */
    QTAILQ_ENTRY(SpaceRequest) next;
};

static QemuMutex lock;
static unsigned cancelling;      /* begins without an end; lock */
static QTAILQ_HEAD(, SpaceGuard) guards = QTAILQ_HEAD_INITIALIZER(guards);
static QTAILQ_HEAD(, SpaceRequest) requests =
    QTAILQ_HEAD_INITIALIZER(requests);
static uint64_t last_id;
static uint64_t stats[SPACE_STAT__MAX];
static QEMUTimer *raise_timer;
static char *instance;

static void __attribute__((constructor)) space_request_init(void)
{
    qemu_mutex_init(&lock);
}

static int64_t now_ms(void)
{
    return qemu_clock_get_ms(QEMU_CLOCK_REALTIME);
}

/*
 * Coroutines to wake when the lock was released
 */

typedef struct WakeList {
    GPtrArray *cos;
} WakeList;

static void wake_all(WakeList *list)
{
    if (list->cos) {
        for (unsigned i = 0; i < list->cos->len; i++) {
            aio_co_wake(g_ptr_array_index(list->cos, i));
        }
        g_ptr_array_free(list->cos, true);
    }
}

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(WakeList, wake_all)

/*
 * A device does not take what was cancelled for an error.  Another write may
 * have failed with it, which stops the VM all the same: nobody knows yet.
 */
static void fail_locked(SpaceRequest *r, bool cancelled)
{
    if (cancelled) {
        r->cancelled = true;
    } else {
        r->stopped = true;
    }
    stats[SPACE_STAT_FAILED]++;
}

static void unlink_locked(SpaceHeld *h, SpaceVerdict verdict)
{
    SpaceGuard *g = h->guard;

    h->verdict = verdict;
    QTAILQ_REMOVE(&g->held, h, next);
    g->n_held--;
    qatomic_set(&space_held_count, space_held_count - 1);
    if (verdict != VERDICT_RETRY && g->request) {
        fail_locked(g->request, verdict == VERDICT_CANCEL);
    }
}

static void release_locked(SpaceHeld *h, SpaceVerdict verdict, WakeList *wake)
{
    unlink_locked(h, verdict);
    if (!wake->cos) {
        wake->cos = g_ptr_array_new();
    }
    g_ptr_array_add(wake->cos, h->co);
}

static void release_all_locked(SpaceGuard *g, SpaceVerdict verdict,
                               WakeList *wake)
{
    SpaceHeld *h, *next;

    QTAILQ_FOREACH_SAFE(h, &g->held, next, next) {
        release_locked(h, verdict, wake);
    }
}

/*
 * Telling the monitor
 */

static BlockSpaceRequest *request_info_locked(SpaceRequest *r, SpaceGuard *g,
                                              char *qom_path,
                                              const char *driver,
                                              const char *filename)
{
    BlockSpaceRequest *info = g_new0(BlockSpaceRequest, 1);

    *info = (BlockSpaceRequest) {
        .id = r->id,
        .instance = g_strdup(instance),
        .node_name = g_strdup(r->node_name),
        .qom_path = qom_path,
        .driver = g_strdup(driver),
        .filename = filename[0] ? g_strdup(filename) : NULL,
        .cause = r->cause,
        .state = r->state,
        .offset = r->offset,
        .bytes = r->bytes,
        .needed = r->needed,
        .size = r->base.size,
        .has_available = r->base.available >= 0,
        .available = MAX(r->base.available, 0),
        .rate = space_guard_rate(g),
        .attempt = r->attempt,
        .held = g->n_held,
        .stopped = r->stopped,
        .age_ms = MAX(now_ms() - r->since_ms, 0),
    };
    return info;
}

/*
 * Main thread, lock not held.  Requests go only in announce_bh() and guards
 * only in the main thread, so @r and its guard stay.
 */
static BlockSpaceRequest *request_info(SpaceRequest *r, SpaceGuard *g)
{
    BlockBackend *blk = NULL;
    unsigned index;
    char *path = space_guard_device(g, &index, &blk);
    BlockdevOnError werror = blk ? blk_get_on_error(blk, false)
                                 : BLOCKDEV_ON_ERROR_ENOSPC;
    g_auto(WakeList) wake = { };

    GRAPH_RDLOCK_GUARD_MAINLOOP();
    BlockDriverState *leaf = space_guard_leaf(g->bs);

    QEMU_LOCK_GUARD(&lock);
    /* the device was refused, but the node may have come below it later */
    g->no_hold = werror == BLOCKDEV_ON_ERROR_REPORT ||
                 werror == BLOCKDEV_ON_ERROR_IGNORE;
    if (g->no_hold) {
        release_all_locked(g, VERDICT_FAIL, &wake);
    }
    return request_info_locked(r, g, path, bdrv_get_format_name(leaf) ?: "",
                               leaf->exact_filename);
}

/* What announce_bh() does next */
static SpaceRequest *next_to_announce(SpaceGuard **g)
{
    SpaceRequest *r;

    QEMU_LOCK_GUARD(&lock);
    QTAILQ_FOREACH(r, &requests, next) {
        if (r->closed ? !r->checking : r->raise) {
            *g = r->guard;
            r->raise = false;
            return r;
        }
    }
    return NULL;
}

static void announce_bh(void *opaque)
{
    SpaceRequest *r;
    SpaceGuard *g;

    while ((r = next_to_announce(&g))) {
        if (g) {
            BlockSpaceRequest *info = request_info(r, g);

            qapi_event_send_block_space_request(info);
            qapi_free_BlockSpaceRequest(info);
            continue;
        }
        WITH_QEMU_LOCK_GUARD(&lock) {
            QTAILQ_REMOVE(&requests, r, next);
        }
        qapi_event_send_block_space_resolved(r->id, instance, r->outcome);
        g_free(r->node_name);
        g_free(r);
    }
}

static void announce(void)
{
    aio_bh_schedule_oneshot(iohandler_get_aio_context(), announce_bh, NULL);
}

static void raise_locked(SpaceRequest *r)
{
    r->raise = true;
    r->raise_at_ms = 0;
    trace_space_request_raise(r->node_name, r->id, r->attempt,
                              BlockSpaceCause_str(r->cause),
                              BlockSpaceState_str(r->state), r->needed);
    announce();
}

/* An answer was not true: ask again, but not at once */
static void raise_later_locked(SpaceRequest *r)
{
    int64_t delay_ms = BACKOFF_MIN_MS;

    r->attempt++;
    r->state = BLOCK_SPACE_STATE_OPEN;
    r->probe_out = false;
    for (uint32_t i = 2; i < r->attempt && delay_ms < BACKOFF_MAX_MS; i++) {
        delay_ms *= 2;
    }
    r->raise_at_ms = now_ms() + MIN(delay_ms, BACKOFF_MAX_MS);
    timer_mod_anticipate(raise_timer, r->raise_at_ms);
}

static void raise_cb(void *opaque)
{
    int64_t now = now_ms();
    SpaceRequest *r;

    QEMU_LOCK_GUARD(&lock);
    QTAILQ_FOREACH(r, &requests, next) {
        if (r->closed || !r->raise_at_ms) {
            continue;
        }
        if (r->raise_at_ms <= now) {
            raise_locked(r);
        } else {
            timer_mod_anticipate(raise_timer, r->raise_at_ms);
        }
    }
}

/*
 * Opening and closing
 */

static SpaceRequest *open_locked(SpaceGuard *g, BlockSpaceCause cause,
                                 const SpaceMeasure *m)
{
    SpaceRequest *r = g_new0(SpaceRequest, 1);

    *r = (SpaceRequest) {
        .id = ++last_id,
        .guard = g,
        .node_name = g_strdup(bdrv_get_node_name(g->bs)),
        .cause = cause,
        .state = BLOCK_SPACE_STATE_OPEN,
        .attempt = 1,
        .base = *m,
        .since_ms = now_ms(),
    };
    g->request = r;
    qatomic_set(&g->watched, true);
    QTAILQ_INSERT_TAIL(&requests, r, next);
    stats[SPACE_STAT_REQUESTS]++;
    return r;
}

static void close_locked(SpaceRequest *r, BlockSpaceOutcome outcome,
                         WakeList *wake)
{
    SpaceGuard *g = r->guard;

    trace_space_request_close(r->node_name, r->id,
                              BlockSpaceOutcome_str(outcome));
    r->closed = true;
    r->outcome = outcome;
    r->guard = NULL;
    g->request = NULL;
    qatomic_set(&g->watched, false);
    if (g->low_water && r->base.how == BLOCK_SPACE_VERIFY_SIZE) {
        stat64_set(&g->mark, 0);  /* the next write looks where it belongs */
    }
    release_all_locked(g, VERDICT_RETRY, wake);
    if (r->stopped || r->cancelled) {
        space_vm_resolved();
    }
    announce();
}

/*
 * A failed operation
 */

/* @r has room for what is asked already, or asks for more */
static void add_need_locked(SpaceRequest *r, const SpaceFailure *f)
{
    uint64_t need;

    if (f->measure.how == BLOCK_SPACE_VERIFY_SIZE) {
        need = MAX(f->offset + f->bytes - f->measure.size, f->bytes);
    } else {
        need = (uint64_t)f->bytes * (r->guard->n_held + 1);
    }
    r->needed = MAX(r->needed, need);
}

static void take_failure_locked(SpaceRequest *r, const SpaceFailure *f)
{
    r->cause = MAX(r->cause, f->cause);
    r->offset = f->offset;
    r->bytes = f->bytes;
    r->base = f->measure;
    r->unmeasurable |= f->despite_room &&
                       r->guard->verify == BLOCK_SPACE_VERIFY_AUTO;
}

static SpaceRequest *join_locked(SpaceGuard *g, const SpaceFailure *f)
{
    SpaceRequest *r = g->request;

    if (!r) {
        r = open_locked(g, f->cause, &f->measure);
        take_failure_locked(r, f);
        add_need_locked(r, f);
        raise_locked(r);
        return r;
    }
    add_need_locked(r, f);
    if (r->state == BLOCK_SPACE_STATE_PROBING && r->probe_out == f->probe) {
        take_failure_locked(r, f);
        raise_later_locked(r);
    } else if (f->cause > r->cause || r->again ||
               r->state == BLOCK_SPACE_STATE_MANUAL) {
        take_failure_locked(r, f);
        if (r->again || r->state != BLOCK_SPACE_STATE_OPEN) {
            r->attempt++;
        }
        r->state = BLOCK_SPACE_STATE_OPEN;
        raise_locked(r);
    }
    r->again = false;
    return r;
}

/* A denied request is one that nothing will come of while the VM runs */
static bool may_hold_locked(SpaceGuard *g, const SpaceFailure *f)
{
    SpaceRequest *r = g->request;

    return f->may_hold && !g->no_hold && !g->cancelling && !r->stopped &&
           g->policy == BLOCK_SPACE_POLICY_HOLD &&
           f->cause == BLOCK_SPACE_CAUSE_WRITE &&
           r->cause != BLOCK_SPACE_CAUSE_FLUSH &&
           r->state != BLOCK_SPACE_STATE_DENIED &&
           (!f->despite_room || g->verify == BLOCK_SPACE_VERIFY_AUTO) &&
           f->deadline_ms > now_ms() && space_vm_is_running();
}

static void expire_cb(void *opaque)
{
    SpaceHeld *h = opaque;
    g_auto(WakeList) wake = { };

    QEMU_LOCK_GUARD(&lock);
    if (h->verdict == VERDICT_NONE) {
        stats[SPACE_STAT_EXPIRED]++;
        release_locked(h, VERDICT_FAIL, &wake);
    }
}

bool coroutine_fn space_request_co_failed(SpaceGuard *g, SpaceFailure *f)
{
    AioContext *ctx = qemu_get_current_aio_context();
    SpaceHeld h = {
        .guard = g,
        .co = qemu_coroutine_self(),
        .offset = f->offset,
        .bytes = f->bytes,
    };

    WITH_QEMU_LOCK_GUARD(&lock) {
        SpaceRequest *r = join_locked(g, f);

        if (f->cause == BLOCK_SPACE_CAUSE_FLUSH) {
            g->flush_failed = true;
            stats[SPACE_STAT_FLUSH_FAILED]++;
        }
        if (!may_hold_locked(g, f)) {
            trace_space_request_fail(r->node_name, r->id, f->offset, f->bytes);
            /* with a cancel it is what was cancelled, or waited behind it */
            fail_locked(r, g->cancelling);
            return false;
        }
        trace_space_request_hold(r->node_name, r->id, f->offset, f->bytes);
        stats[SPACE_STAT_HELD]++;
        QTAILQ_INSERT_TAIL(&g->held, &h, next);
        g->n_held++;
        qatomic_set(&space_held_count, space_held_count + 1);
    }

    /* Pairs with the barrier in space_guard_drained_begin() */
    smp_mb();
    if (space_guard_is_drained(g->bs)) {
        QEMU_LOCK_GUARD(&lock);
        if (h.verdict == VERDICT_NONE) {
            stats[SPACE_STAT_DRAINED]++;
            unlink_locked(&h, g->cancelling ? VERDICT_CANCEL : VERDICT_FAIL);
            return false;
        }
        /* else somebody has woken this coroutine: yield once */
    }

    aio_timer_init(ctx, &h.timer, QEMU_CLOCK_REALTIME, SCALE_MS, expire_cb,
                   &h);
    timer_mod(&h.timer, f->deadline_ms);
    qemu_coroutine_yield();
    timer_del(&h.timer);
    f->probe = h.probe;
    return h.verdict == VERDICT_RETRY;
}

void space_request_probe_lost(SpaceGuard *g)
{
    QEMU_LOCK_GUARD(&lock);
    if (g->request && g->request->probe_out) {
        raise_later_locked(g->request);
    }
}

void space_requests_give_back(SpaceGuard *g)
{
    g_auto(WakeList) wake = { };

    QEMU_LOCK_GUARD(&lock);
    stats[SPACE_STAT_DRAINED] += g->n_held;
    release_all_locked(g, VERDICT_FAIL, &wake);
}

void space_requests_cancel_begin(void)
{
    QEMU_LOCK_GUARD(&lock);
    cancelling++;
}

void space_requests_will_cancel(SpaceGuard *g)
{
    QEMU_LOCK_GUARD(&lock);
    g->cancelling = true;
}

void space_requests_cancel_end(void)
{
    SpaceGuard *g;

    QEMU_LOCK_GUARD(&lock);
    if (--cancelling) {
        return;
    }
    QTAILQ_FOREACH(g, &guards, next) {
        g->cancelling = false;
    }
}

void space_requests_cancel(SpaceGuard *g)
{
    g_auto(WakeList) wake = { };

    QEMU_LOCK_GUARD(&lock);
    stats[SPACE_STAT_DRAINED] += g->n_held;
    release_all_locked(g, VERDICT_CANCEL, &wake);
}

void space_request_written(SpaceGuard *g, int64_t offset, int64_t bytes)
{
    g_auto(WakeList) wake = { };
    SpaceRequest *r;

    QEMU_LOCK_GUARD(&lock);
    r = g->request;
    if (r && r->cause == BLOCK_SPACE_CAUSE_WRITE &&
        offset <= r->offset && r->offset < offset + bytes) {
        bool probing = r->state == BLOCK_SPACE_STATE_PROBING;

        stats[probing ? SPACE_STAT_GROWN : SPACE_STAT_RECOVERED]++;
        close_locked(r, probing ? BLOCK_SPACE_OUTCOME_GROWN
                                : BLOCK_SPACE_OUTCOME_RECOVERED, &wake);
    }
}

void space_request_low_water(SpaceGuard *g, const SpaceMeasure *m, bool low)
{
    g_auto(WakeList) wake = { };
    SpaceRequest *r;

    QEMU_LOCK_GUARD(&lock);
    r = g->request;
    if (low && !r) {
        r = open_locked(g, BLOCK_SPACE_CAUSE_LOW_WATER, m);
        r->needed = space_guard_water(g);
        stats[SPACE_STAT_LOW_WATER]++;
        raise_locked(r);
    } else if (!low && r && r->cause == BLOCK_SPACE_CAUSE_LOW_WATER &&
               !r->checking) {
        stats[SPACE_STAT_RECOVERED]++;
        close_locked(r, BLOCK_SPACE_OUTCOME_RECOVERED, &wake);
    }
}

/*
 * Answers
 */

static bool has_grown_locked(SpaceRequest *r, const SpaceMeasure *m)
{
    if (r->cause != BLOCK_SPACE_CAUSE_LOW_WATER) {
        return space_measure_has_room(m, r->offset, r->bytes);
    }
    if (m->how == BLOCK_SPACE_VERIFY_SIZE) {
        return m->size > r->base.size;
    }
    return m->available > r->base.available ||
           m->available >= space_guard_water(r->guard);
}

/* It cannot be measured: let one write try */
static BlockSpaceOutcome probe_locked(SpaceRequest *r, WakeList *wake)
{
    SpaceHeld *h = QTAILQ_FIRST(&r->guard->held);

    stats[SPACE_STAT_PROBED]++;
    if (!h && !r->stopped) {
        close_locked(r, BLOCK_SPACE_OUTCOME_GROWN, wake);
        return BLOCK_SPACE_OUTCOME_GROWN;
    }
    r->state = BLOCK_SPACE_STATE_PROBING;
    r->raise_at_ms = 0;
    if (h) {
        r->offset = h->offset;
        r->bytes = h->bytes;
        r->probe_out = true;
        h->probe = true;
        release_locked(h, VERDICT_RETRY, wake);
    }
    if (r->stopped || r->cancelled) {
        space_vm_resolved();
    }
    return BLOCK_SPACE_OUTCOME_PROBING;
}

static BlockSpaceOutcome grown_locked(SpaceRequest *r, const SpaceMeasure *m,
                                      WakeList *wake)
{
    bool unmeasurable = m->how == BLOCK_SPACE_VERIFY_PROBE || r->unmeasurable;
    SpaceGuard *g = r->guard;

    if (!unmeasurable && !has_grown_locked(r, m)) {
        stats[SPACE_STAT_NOT_GROWN]++;
        r->base = *m;
        raise_later_locked(r);
        return BLOCK_SPACE_OUTCOME_NOT_GROWN;
    }
    if (r->cause == BLOCK_SPACE_CAUSE_FLUSH) {
        r->state = BLOCK_SPACE_STATE_MANUAL;
        r->raise_at_ms = 0;
        release_all_locked(g, VERDICT_RETRY, wake);
        return BLOCK_SPACE_OUTCOME_MANUAL;
    }
    if (unmeasurable) {
        return probe_locked(r, wake);
    }
    stats[SPACE_STAT_GROWN]++;
    close_locked(r, BLOCK_SPACE_OUTCOME_GROWN, wake);
    return BLOCK_SPACE_OUTCOME_GROWN;
}

static BlockSpaceOutcome deny_locked(SpaceRequest *r, WakeList *wake)
{
    trace_space_request_denied(r->node_name, r->id);
    stats[SPACE_STAT_DENIED]++;
    r->state = BLOCK_SPACE_STATE_DENIED;
    r->raise_at_ms = 0;
    r->probe_out = false;
    release_all_locked(r->guard, VERDICT_FAIL, wake);
    return BLOCK_SPACE_OUTCOME_DENIED;
}

static SpaceRequest *find_locked(uint64_t id, Error **errp)
{
    SpaceRequest *r;

    QTAILQ_FOREACH(r, &requests, next) {
        if (r->id == id && !r->closed) {
            break;
        }
    }
    if (!r) {
        error_setg(errp, "No open request for storage has the id %" PRIu64
                   ", the last one is %" PRIu64, id, last_id);
    } else if (r->checking) {
        error_setg(errp, "Request for storage %" PRIu64
                   " is being checked after an answer", id);
        r = NULL;
    }
    return r;
}

/*
 * Returns the request, which stays until it is no longer checked, with its
 * node in flight; NULL if it needs no check, or on error.
 */
static SpaceRequest *start_check(uint64_t id, BlockSpaceResult result,
                                 BlockSpaceOutcome *outcome, SpaceGuard **g,
                                 Error **errp)
{
    g_auto(WakeList) wake = { };
    SpaceRequest *r;

    QEMU_LOCK_GUARD(&lock);
    r = find_locked(id, errp);
    if (!r) {
        return NULL;
    }
    if (result == BLOCK_SPACE_RESULT_DENIED) {
        *outcome = deny_locked(r, &wake);
        return NULL;
    }
    r->checking = true;
    *g = r->guard;
    bdrv_inc_in_flight((*g)->bs);
    return r;
}

static BlockSpaceOutcome end_check(SpaceRequest *r, const SpaceMeasure *m)
{
    g_auto(WakeList) wake = { };

    QEMU_LOCK_GUARD(&lock);
    r->checking = false;
    if (r->closed) {
        announce();
        return r->outcome;
    }
    return grown_locked(r, m, &wake);
}

BlockSpaceAnswer *coroutine_fn
qmp_block_space_resolve(uint64_t id, BlockSpaceResult result, Error **errp)
{
    ERRP_GUARD();
    BlockSpaceAnswer *answer;
    BlockSpaceOutcome outcome;
    SpaceGuard *g;
    SpaceRequest *r = start_check(id, result, &outcome, &g, errp);

    if (*errp) {
        return NULL;
    }
    if (r) {
        BlockDriverState *bs = g->bs;
        SpaceMeasure m;

        WITH_GRAPH_RDLOCK_GUARD() {
            space_guard_co_measure(g, &m);
        }
        outcome = end_check(r, &m);
        bdrv_dec_in_flight(bs);
    }
    trace_space_request_answer(id, BlockSpaceResult_str(result),
                               BlockSpaceOutcome_str(outcome));
    answer = g_new0(BlockSpaceAnswer, 1);
    answer->outcome = outcome;
    return answer;
}

/* The request after @r, or the first; requests go in this thread only */
static SpaceRequest *next_request(SpaceRequest *r, SpaceGuard **g)
{
    QEMU_LOCK_GUARD(&lock);
    r = r ? QTAILQ_NEXT(r, next) : QTAILQ_FIRST(&requests);
    *g = r ? r->guard : NULL;
    return r;
}

BlockSpaceRequestList *qmp_query_block_space_requests(Error **errp)
{
    BlockSpaceRequestList *list = NULL, **tail = &list;
    SpaceRequest *r = NULL;
    SpaceGuard *g;

    while ((r = next_request(r, &g))) {
        if (g) {
            QAPI_LIST_APPEND(tail, request_info(r, g));
        }
    }
    return list;
}

/*
 * The VM
 */

static void vm_has_locked(SpaceGuard *g)
{
    g->flush_keeps = g->flush_failed;
}

void space_requests_vm_has(SpaceGuard *g)
{
    QEMU_LOCK_GUARD(&lock);
    vm_has_locked(g);
}

void space_requests_vm_stopped(SpaceGuard *g)
{
    SpaceRequest *r;

    QEMU_LOCK_GUARD(&lock);
    vm_has_locked(g);
    r = g->request;
    if (r && (r->stopped || r->cancelled)) {
        r->stopped = true;
        r->keeps = true;
    }
}

bool space_requests_block_resume(void)
{
    SpaceRequest *r;
    SpaceGuard *g;

    QEMU_LOCK_GUARD(&lock);
    QTAILQ_FOREACH(r, &requests, next) {
        if (!r->closed && r->keeps && r->state != BLOCK_SPACE_STATE_PROBING) {
            return true;
        }
    }
    QTAILQ_FOREACH(g, &guards, next) {
        if (g->flush_keeps) {
            return true;
        }
    }
    return false;
}

void space_requests_vm_runs(void)
{
    SpaceRequest *r;

    QEMU_LOCK_GUARD(&lock);
    QTAILQ_FOREACH(r, &requests, next) {
        r->again = r->stopped && r->state != BLOCK_SPACE_STATE_PROBING;
        r->stopped = false;
        r->cancelled = false;
        r->keeps = false;
    }
}

void space_requests_user_cont(void)
{
    g_auto(WakeList) wake = { };
    SpaceRequest *r;
    SpaceGuard *g;

    QEMU_LOCK_GUARD(&lock);
    QTAILQ_FOREACH(g, &guards, next) {
        g->flush_failed = g->flush_keeps = false;
    }
    QTAILQ_FOREACH(r, &requests, next) {
        if (!r->closed && r->state == BLOCK_SPACE_STATE_MANUAL) {
            r->stopped = false;
            close_locked(r, BLOCK_SPACE_OUTCOME_RECOVERED, &wake);
        }
    }
}

void space_requests_count(SpaceStat stat)
{
    QEMU_LOCK_GUARD(&lock);
    stats[stat]++;
}

void space_requests_stats(uint64_t values[SPACE_STAT__MAX])
{
    QEMU_LOCK_GUARD(&lock);
    memcpy(values, stats, sizeof(stats));
}

/*
 * Migration
 */

bool space_requests_any(void)
{
    SpaceRequest *r;

    QEMU_LOCK_GUARD(&lock);
    QTAILQ_FOREACH(r, &requests, next) {
        if (!r->closed) {
            return true;
        }
    }
    return false;
}

static void saved_free(gpointer data)
{
    SpaceSaved *saved = data;

    g_free(saved->qom_path);
    g_free(saved);
}

static SpaceSaved *save_request(SpaceGuard *g)
{
    BlockBackend *blk;
    unsigned index = 0;
    g_autofree char *path = space_guard_device(g, &index, &blk);
    SpaceRequest *r;
    SpaceSaved *saved;

    QEMU_LOCK_GUARD(&lock);
    r = g->request;
    if (!r || !path) {
        return NULL;
    }
    saved = g_new0(SpaceSaved, 1);
    *saved = (SpaceSaved) {
        .qom_path = g_steal_pointer(&path),
        .index = index,
        .cause = r->cause,
        .denied = r->state == BLOCK_SPACE_STATE_DENIED,
        .stopped = r->stopped,
        .attempt = r->attempt,
        .offset = r->offset,
        .bytes = r->bytes,
        .needed = r->needed,
    };
    return saved;
}

GPtrArray *space_requests_save(unsigned max)
{
    GPtrArray *array = g_ptr_array_new_with_free_func(saved_free);
    SpaceGuard *g;

    QTAILQ_FOREACH(g, &guards, next) {
        SpaceSaved *saved = array->len < max ? save_request(g) : NULL;

        if (saved) {
            g_ptr_array_add(array, saved);
        }
    }
    return array;
}

typedef struct RestoreJob {
    SpaceGuard *guard;
    SpaceSaved saved;             /* without the path */
} RestoreJob;

static void restore_locked(SpaceGuard *g, const SpaceSaved *saved,
                           const SpaceMeasure *m)
{
    SpaceRequest *r;

    if (g->request) {
        return;                   /* it has failed here already */
    }
    if (saved->cause == BLOCK_SPACE_CAUSE_WRITE &&
        space_measure_has_room(m, saved->offset, saved->bytes)) {
        stats[SPACE_STAT_RECOVERED]++;
        if (saved->stopped) {
            space_vm_resolved();
        }
        return;
    }
    r = open_locked(g, saved->cause, m);
    r->offset = saved->offset;
    r->bytes = saved->bytes;
    r->needed = saved->needed;
    r->attempt = saved->attempt;
    r->stopped = saved->stopped;
    r->keeps = saved->stopped;    /* the disk's state does not come along */
    r->state = saved->denied ? BLOCK_SPACE_STATE_DENIED
                             : BLOCK_SPACE_STATE_OPEN;
    g->flush_failed = saved->cause == BLOCK_SPACE_CAUSE_FLUSH;
    vm_has_locked(g);
    raise_locked(r);
}

static void coroutine_fn restore_co(void *opaque)
{
    g_autofree RestoreJob *job = opaque;
    BlockDriverState *bs = job->guard->bs;
    SpaceMeasure m;

    WITH_GRAPH_RDLOCK_GUARD() {
        space_guard_co_measure(job->guard, &m);
    }
    WITH_QEMU_LOCK_GUARD(&lock) {
        restore_locked(job->guard, &job->saved, &m);
    }
    bdrv_dec_in_flight(bs);
}

void space_request_restore(SpaceGuard *g, const SpaceSaved *saved)
{
    RestoreJob *job = g_new0(RestoreJob, 1);

    job->guard = g;
    job->saved = *saved;
    job->saved.qom_path = NULL;
    bdrv_inc_in_flight(g->bs);
    aio_co_enter(qemu_get_aio_context(),
                 qemu_coroutine_create(restore_co, job));
}

/*
 * Guards
 */

void space_requests_add_guard(SpaceGuard *g)
{
    GLOBAL_STATE_CODE();

    if (!instance) {
        QemuUUID uuid;

        qemu_uuid_generate(&uuid);
        instance = qemu_uuid_unparse_strdup(&uuid);
        raise_timer = timer_new_ms(QEMU_CLOCK_REALTIME, raise_cb, NULL);
    }
    space_vm_init();

    QEMU_LOCK_GUARD(&lock);
    QTAILQ_INIT(&g->held);
    QTAILQ_INSERT_TAIL(&guards, g, next);
}

void space_requests_remove_guard(SpaceGuard *g)
{
    g_auto(WakeList) wake = { };

    GLOBAL_STATE_CODE();

    QEMU_LOCK_GUARD(&lock);
    assert(!g->n_held);
    if (g->request) {
        close_locked(g->request, BLOCK_SPACE_OUTCOME_WITHDRAWN, &wake);
    }
    QTAILQ_REMOVE(&guards, g, next);
}

void space_requests_foreach_guard(void (*fn)(SpaceGuard *g))
{
    SpaceGuard *g;

    GLOBAL_STATE_CODE();

    /* only this thread changes the list */
    QTAILQ_FOREACH(g, &guards, next) {
        fn(g);
    }
}

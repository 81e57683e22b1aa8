/*
 * Run a function on a second stack; carry on if it blocks
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The second stack is a coroutine's: QEMU pools those, and its backends know
 * about guard pages and sanitizers.  An AsyncCall is a local variable at the
 * bottom of it, so a call that does not block needs no memory, takes no lock
 * and touches no list.
 *
 * A parked call goes on only from resume_bh, in the context of the I/O
 * handlers.  The main loop runs that one, and nested event loops do not: in
 * the middle of somebody's aio_poll(), perhaps in a vCPU thread, a device's
 * handler would meet another device half-way through something.
 *
 * Locks: the BQL for what concerns owners, sites and completions; wake_lock
 * (a leaf) for what a waker in another thread may touch.
 */

#include "qemu/osdep.h"
#include "qemu/async-call.h"
#include "qemu/coroutine_int.h"
#include "qemu/lockable.h"
#include "qemu/main-loop.h"
#include "block/aio-wait.h"
#include "async-call-internal.h"
#include "trace.h"

/* A host call in a thread; freed by the thread */
typedef struct BlockingJob {
    AsyncCall *call;            /* Protected by wake_lock; NULL: given up */
    ThreadPoolFunc *func;
    void *opaque;
    GDestroyNotify destroy;
} BlockingJob;

struct AsyncCall {
    /* Protected by the BQL */
    AsyncCallOwner *owner;      /* NULL: never parked, or cancelled */
    AsyncCallSite *site;
    bool on_own_stack;
    bool parked;
    bool cancelled;
    QTAILQ_ENTRY(AsyncCall) owner_next;
    QTAILQ_ENTRY(AsyncCall) all_next;
    Coroutine *co;

    /* Protected by wake_lock */
    bool waiting;               /* its coroutine is set aside */
    bool woken;
    int wake_ret;
    BlockingJob *job;
    QTAILQ_ENTRY(AsyncCall) ready_next;
};

/* Lives on the first stack, which is gone once the call is parked */
typedef struct AsyncCallStart {
    AsyncCallOwner *owner;
    AsyncCallSite *site;
    AsyncCallFunc *fn;
    AsyncCallDone *done;
    void *opaque;
    bool on_own_stack;
    bool ended;
    int ret;
    AsyncCall *call;
} AsyncCallStart;

/* Protected by the BQL */
static QTAILQ_HEAD(, AsyncCall) all_parked =
    QTAILQ_HEAD_INITIALIZER(all_parked);
static unsigned parked_now;
static unsigned parked_peak;

static QemuMutex wake_lock;
static QemuCond wake_cond;      /* something became ready */
/* Protected by wake_lock: calls that wait and are woken */
static QTAILQ_HEAD(, AsyncCall) ready = QTAILQ_HEAD_INITIALIZER(ready);

/* Made before the first call waits, then constant */
static QEMUBH *resume_bh;

static void __attribute__((constructor)) async_call_init(void)
{
    qemu_mutex_init(&wake_lock);
    qemu_cond_init(&wake_cond);
}

void async_call_owner_init(AsyncCallOwner *owner, const char *id,
                           unsigned max_parked)
{
    *owner = (AsyncCallOwner) { .id = id, .max_parked = max_parked };
    QTAILQ_INIT(&owner->calls);
}

/*
 * The context is where aio_co_wake() would put the coroutine, be it a call's
 * or one that waits for its call, such as the QMP dispatcher.
 */
static void enter(Coroutine *co)
{
    qemu_aio_coroutine_enter(iohandler_get_aio_context(), co);
}

/* Take a call that can go on, of @owner if that is not NULL. */
static AsyncCall *take_ready(AsyncCallOwner *owner)
{
    AsyncCall *call;

    QEMU_LOCK_GUARD(&wake_lock);
    QTAILQ_FOREACH(call, &ready, ready_next) {
        if (!owner || call->owner == owner) {
            QTAILQ_REMOVE(&ready, call, ready_next);
            return call;
        }
    }
    return NULL;
}

static void resume_calls(void *opaque)
{
    AsyncCall *call;

    while ((call = take_ready(NULL))) {
        trace_async_call_resume(call->site->name, call);
        enter(call->co);
    }
}

/* Called with wake_lock held. */
static bool wake_locked(AsyncCall *call, int ret)
{
    if (call->woken) {
        return false;
    }
    call->woken = true;
    call->wake_ret = ret;
    if (call->waiting) {
        QTAILQ_INSERT_TAIL(&ready, call, ready_next);
        qemu_cond_broadcast(&wake_cond);
        qemu_bh_schedule(resume_bh);
        /* for a loop that polls this context between its own, as at exit */
        aio_wait_kick();
    }
    return true;
}

bool async_call_wake(AsyncCall *call, int ret)
{
    QEMU_LOCK_GUARD(&wake_lock);
    return wake_locked(call, ret);
}

static void wait_timed_out(void *opaque)
{
    async_call_wake(opaque, -ETIMEDOUT);
}

/* From now on the call's caller is gone, or waits with it in a coroutine. */
static void note_parked(AsyncCall *call)
{
    AsyncCallOwner *owner = call->owner;

    call->parked = true;
    call->site->parked++;
    call->site->now++;
    owner->parked++;
    QTAILQ_INSERT_TAIL(&owner->calls, call, owner_next);
    QTAILQ_INSERT_TAIL(&all_parked, call, all_next);
    parked_peak = MAX(parked_peak, ++parked_now);
    trace_async_call_park(owner->id, call->site->name, call, owner->parked);
}

static void leave_owner(AsyncCall *call)
{
    if (call->owner) {
        QTAILQ_REMOVE(&call->owner->calls, call, owner_next);
        call->owner->parked--;
        call->owner = NULL;
    }
}

/* Set the stack aside until the call is woken.  Returns false if it was. */
static bool prepare_wait(AsyncCall *call)
{
    QEMU_LOCK_GUARD(&wake_lock);
    call->waiting = !call->woken;
    return call->waiting;
}

/* A job that has not ended must not wake the next wait. */
static int end_wait(AsyncCall *call)
{
    QEMU_LOCK_GUARD(&wake_lock);
    if (call->job) {
        call->job->call = NULL;
        call->job = NULL;
    }
    call->waiting = false;
    call->woken = false;
    return call->wake_ret;
}

static void set_aside(AsyncCall *call, int64_t timeout_ns)
{
    QEMUTimer timer;

    if (!call->parked) {
        note_parked(call);
    }
    if (timeout_ns < 0) {
        qemu_coroutine_yield();
        return;
    }
    aio_timer_init(qemu_get_aio_context(), &timer, QEMU_CLOCK_REALTIME,
                   SCALE_NS, wait_timed_out, call);
    timer_mod(&timer, qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + timeout_ns);
    qemu_coroutine_yield();
    timer_del(&timer);
}

int coroutine_fn async_call_park(AsyncCall *call, int64_t timeout_ns)
{
    int ret;

    if (!resume_bh) {
        resume_bh = aio_bh_new(iohandler_get_aio_context(), resume_calls,
                               NULL);
    }
    call->co = qemu_coroutine_self();
    if (!call->cancelled && prepare_wait(call)) {
        set_aside(call, timeout_ns);
    }
    ret = end_wait(call);
    if (call->cancelled) {
        return -ECANCELED;
    }
    if (ret == -ETIMEDOUT) {
        call->site->timed_out++;
    }
    return ret;
}

bool async_call_cancelled(const AsyncCall *call)
{
    return call->cancelled;
}

static void run_blocking_job(void *opaque)
{
    BlockingJob *job = opaque;
    int ret = job->func(job->opaque);

    WITH_QEMU_LOCK_GUARD(&wake_lock) {
        if (job->call) {
            job->call->job = NULL;
            wake_locked(job->call, ret);
        }
    }
    if (job->destroy) {
        job->destroy(job->opaque);
    }
    g_free(job);
}

int coroutine_fn async_call_blocking(AsyncCall *call, int64_t timeout_ns,
                                     ThreadPoolFunc *func, void *opaque,
                                     GDestroyNotify destroy)
{
    BlockingJob *job = g_new(BlockingJob, 1);

    *job = (BlockingJob) { call, func, opaque, destroy };
    call->job = job;
    if (!async_pool_submit(run_blocking_job, job)) {
        call->job = NULL;
        if (destroy) {
            destroy(opaque);
        }
        g_free(job);
        return -EAGAIN;
    }
    return async_call_park(call, timeout_ns);
}

/* A call that was parked has ended. */
static void finish_parked(AsyncCall *call, AsyncCallDone *done, void *opaque,
                          int ret)
{
    QTAILQ_REMOVE(&all_parked, call, all_next);
    parked_now--;
    call->site->now--;
    leave_owner(call);
    trace_async_call_end(call->site->name, call, ret, call->cancelled);
    if (done && call->on_own_stack && !call->cancelled) {
        done(opaque, ret);
    }
}

static void coroutine_fn run_call(void *opaque)
{
    AsyncCallStart *start = opaque;
    AsyncCallDone *done = start->done;
    void *fn_opaque = start->opaque;
    AsyncCall call = {
        .owner = start->owner,
        .site = start->site,
        .on_own_stack = start->on_own_stack,
    };
    int ret;

    start->call = &call;
    ret = start->fn(&call, fn_opaque);

    if (call.parked) {
        finish_parked(&call, done, fn_opaque, ret);
        if (call.on_own_stack) {
            return;
        }
    } else {
        call.site->inlined++;
    }
    start->ret = ret;
    start->ended = true;
}

AsyncCallResult coroutine_mixed_fn
async_call(AsyncCallOwner *owner, AsyncCallSite *site, AsyncCallFunc *fn,
           AsyncCallDone *done, void *opaque, int *ret)
{
    AsyncCallStart start = {
        .owner = owner,
        .site = site,
        .fn = fn,
        .done = done,
        .opaque = opaque,
    };

    if (unlikely(owner->parked >= owner->max_parked ||
                 parked_now >= ASYNC_CALL_MAX_PARKED)) {
        site->refused++;
        trace_async_call_refused(owner->id, site->name, owner->parked,
                                 parked_now);
        return ASYNC_CALL_REFUSED;
    }
    if (qemu_in_coroutine()) {
        run_call(&start);
    } else {
        start.on_own_stack = true;
        enter(qemu_coroutine_create(run_call, &start));
    }
    if (!start.ended) {
        /* it has not waited itself if a call within it did */
        if (!start.call->parked) {
            note_parked(start.call);
        }
        return ASYNC_CALL_PARKED;
    }
    *ret = start.ret;
    return ASYNC_CALL_DONE;
}

static void cancel_call(AsyncCall *call)
{
    trace_async_call_cancel(call->site->name, call);
    call->cancelled = true;
    call->site->cancelled++;
    leave_owner(call);
    async_call_wake(call, -ECANCELED);
}

unsigned async_call_cancel(AsyncCallOwner *owner)
{
    AsyncCall *call, *next;
    unsigned count = owner->parked;

    QTAILQ_FOREACH_SAFE(call, &owner->calls, owner_next, next) {
        cancel_call(call);
    }
    return count;
}

void async_call_cancel_all(void)
{
    AsyncCall *call;

    QTAILQ_FOREACH(call, &all_parked, all_next) {
        if (!call->cancelled) {
            cancel_call(call);
        }
    }
}

/* Returns false when @deadline_ns is past. */
static bool wait_ready(AsyncCallOwner *owner, int64_t deadline_ns)
{
    int64_t left_ns = deadline_ns - qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
    AsyncCall *call;

    if (left_ns <= 0) {
        return false;
    }
    QEMU_LOCK_GUARD(&wake_lock);
    QTAILQ_FOREACH(call, &ready, ready_next) {
        if (call->owner == owner) {
            return true;
        }
    }
    qemu_cond_timedwait(&wake_cond, &wake_lock,
                        DIV_ROUND_UP(left_ns, SCALE_MS));
    return true;
}

bool async_call_drain(AsyncCallOwner *owner, int64_t timeout_ns)
{
    int64_t deadline_ns = qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + timeout_ns;
    AsyncCall *call;

    assert(!qemu_in_coroutine());
    while (owner->parked) {
        call = take_ready(owner);
        if (call) {
            trace_async_call_resume(call->site->name, call);
            enter(call->co);
        } else if (!wait_ready(owner, deadline_ns)) {
            return false;
        }
    }
    return true;
}

void async_call_totals(AsyncCallTotals *totals)
{
    totals->parked = parked_now;
    totals->parked_peak = parked_peak;
    async_pool_totals(&totals->jobs, &totals->threads, &totals->jobs_refused);
}

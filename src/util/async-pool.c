/*
 * Threads for host calls that may block for ever
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * QEMU's pools wait for their threads when they are freed, count a request in
 * a node's in-flight, or queue it behind others.  With a server that does not
 * answer each of these holds up something that has nothing to do with it.
 * Here a function gets a thread at once or is refused, and nobody ever waits
 * for a thread: they are detached, and process exit ends them.
 */

#include "qemu/osdep.h"
#include "qemu/async-call.h"
#include "qemu/thread.h"
#include "async-call-internal.h"

/* An idle thread goes after this time */
#define IDLE_MS (10 * 1000)

typedef struct AsyncJob {
    AsyncJobFunc *func;
    void *opaque;
    QSIMPLEQ_ENTRY(AsyncJob) next;
} AsyncJob;

static QemuMutex pool_lock;
static QemuCond pool_cond;

/* Protected by pool_lock.  A job in the queue has an idle thread for it. */
static QSIMPLEQ_HEAD(, AsyncJob) pool_queue =
    QSIMPLEQ_HEAD_INITIALIZER(pool_queue);
static unsigned pool_jobs;
static unsigned pool_threads;
static uint64_t pool_refused;

static void __attribute__((constructor)) pool_init(void)
{
    qemu_mutex_init(&pool_lock);
    qemu_cond_init(&pool_cond);
}

/* Called with pool_lock held, which is dropped meanwhile. */
static void run_job(AsyncJob *job)
{
    qemu_mutex_unlock(&pool_lock);
    job->func(job->opaque);
    g_free(job);
    qemu_mutex_lock(&pool_lock);
    pool_jobs--;
}

static void *pool_thread(void *opaque)
{
    bool had_time = true;

    qemu_mutex_lock(&pool_lock);
    while (had_time) {
        AsyncJob *job = QSIMPLEQ_FIRST(&pool_queue);

        if (job) {
            QSIMPLEQ_REMOVE_HEAD(&pool_queue, next);
            run_job(job);
        } else {
            had_time = qemu_cond_timedwait(&pool_cond, &pool_lock, IDLE_MS) ||
                       !QSIMPLEQ_EMPTY(&pool_queue);
        }
    }
    pool_threads--;
    qemu_mutex_unlock(&pool_lock);
    return NULL;
}

/*
 * qemu_thread_create() aborts when the host has no more threads; this must
 * not.  Called with pool_lock held.
 */
static bool start_thread(void)
{
    sigset_t all, old;
    pthread_attr_t attr;
    pthread_t thread;
    int err;

    if (pthread_attr_init(&attr)) {
        return false;
    }
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    err = pthread_create(&thread, &attr, pool_thread, NULL);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attr);
    pool_threads += !err;
    return !err;
}

bool async_pool_submit(AsyncJobFunc *func, void *opaque)
{
    AsyncJob *job;

    QEMU_LOCK_GUARD(&pool_lock);
    if (pool_jobs == ASYNC_CALL_MAX_JOBS ||
        (pool_jobs == pool_threads && !start_thread())) {
        pool_refused++;
        return false;
    }
    pool_jobs++;
    job = g_new(AsyncJob, 1);
    job->func = func;
    job->opaque = opaque;
    QSIMPLEQ_INSERT_TAIL(&pool_queue, job, next);
    qemu_cond_signal(&pool_cond);
    return true;
}

void async_pool_totals(uint64_t *jobs, uint64_t *threads, uint64_t *refused)
{
    QEMU_LOCK_GUARD(&pool_lock);
    *jobs = pool_jobs;
    *threads = pool_threads;
    *refused = pool_refused;
}

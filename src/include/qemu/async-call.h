/*
 * Run a function on a second stack; carry on if it blocks
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Source: US 2013/0132968, asynchronous I/O by switching between stacks.
 */

#ifndef QEMU_ASYNC_CALL_H
#define QEMU_ASYNC_CALL_H

#include "block/thread-pool.h"
#include "qemu/coroutine.h"
#include "qemu/queue.h"

/* Calls that may be parked at a time: all, and by default those of an owner */
#define ASYNC_CALL_MAX_PARKED 1024
#define ASYNC_CALL_MAX_PARKED_OWNER 64

/* Host calls that may be under way in threads at a time */
#define ASYNC_CALL_MAX_JOBS 64

/**
 * typedef AsyncCall: one function on a second stack
 *
 * It lives on that stack, and only until the function returns.
 */
typedef struct AsyncCall AsyncCall;

/**
 * struct AsyncCallSite: a place that makes calls, and its statistics
 * @name: for statistics and trace events; static
 * @inlined: calls that ended without having blocked
 * @parked: calls that blocked and let their caller carry on
 * @refused: calls that were not made because too many are parked
 * @cancelled: parked calls that were given up before they ended
 * @timed_out: times that async_call_park() or async_call_blocking() returned
 *             -ETIMEDOUT
 * @now: calls that are parked at present
 *
 * Static data; all but @name starts as zero.  Protected by the BQL.
 */
typedef struct AsyncCallSite {
    const char *name;
    uint64_t inlined;
    uint64_t parked;
    uint64_t refused;
    uint64_t cancelled;
    uint64_t timed_out;
    unsigned now;
} AsyncCallSite;

/**
 * struct AsyncCallOwner: on whose behalf calls are made, usually a device
 * @id: for trace events; the user keeps it
 * @max_parked: how many calls may be parked at a time
 * @parked: how many are
 * @calls: private
 *
 * Protected by the BQL.
 */
typedef struct AsyncCallOwner {
    const char *id;
    unsigned max_parked;
    unsigned parked;
    QTAILQ_HEAD(, AsyncCall) calls;
} AsyncCallOwner;

/**
 * enum AsyncCallResult: what became of a call
 * @ASYNC_CALL_DONE: it ended, and its result is there
 * @ASYNC_CALL_PARKED: it blocked; its completion is to come
 * @ASYNC_CALL_REFUSED: it was not made, because too many calls are parked
 */
typedef enum AsyncCallResult {
    ASYNC_CALL_DONE,
    ASYNC_CALL_PARKED,
    ASYNC_CALL_REFUSED,
} AsyncCallResult;

/**
 * typedef AsyncCallFunc: what runs on the second stack
 * @call: identifies the call for async_call_park() and the like
 * @opaque: as given to async_call()
 *
 * It may wait only by async_call_park() and async_call_blocking(), and must
 * hold no lock but the BQL when it does.  It starts in the caller's thread and
 * goes on, after each wait, in the main thread, where there is no current_cpu.
 *
 * When a wait returns -ECANCELED the owner has given the call up and may be
 * gone: the function must not touch it, release what it holds itself, and
 * return.
 */
typedef int coroutine_fn AsyncCallFunc(AsyncCall *call, void *opaque);

/**
 * typedef AsyncCallDone: the completion of a call that was parked
 * @opaque: as given to async_call()
 * @ret: what the function returned
 *
 * Runs in the main thread, from a bottom half that no nested event loop runs,
 * with the BQL held; on the second stack, but not to wait there.  It does not
 * run for a call that was cancelled.
 */
typedef void AsyncCallDone(void *opaque, int ret);

/**
 * async_call_owner_init: prepare an owner without calls
 * @owner: what to prepare
 * @id: for trace events; must live as long as @owner
 * @max_parked: how many of its calls may be parked at a time
 */
void async_call_owner_init(AsyncCallOwner *owner, const char *id,
                           unsigned max_parked);

/**
 * async_call: run a function on a second stack, in the caller's thread
 * @owner: on whose behalf
 * @site: where the call is counted
 * @fn: the function
 * @done: its completion if it is parked; may be NULL
 * @opaque: for @fn and @done
 * @ret: where to store what @fn returned, if the result is ASYNC_CALL_DONE
 *
 * @fn runs at once.  If it ends without having waited, it was a function call
 * that cost a switch of stacks and back (ASYNC_CALL_DONE).  If it waits, the
 * second stack is set aside and the caller carries on (ASYNC_CALL_PARKED).
 *
 * In a coroutine there is a second stack already: @fn runs on it, the
 * coroutine waits when @fn does, and the result is never ASYNC_CALL_PARKED.
 * The coroutine must be one that any bottom half of the main thread may enter.
 *
 * When a limit is reached @fn does not run (ASYNC_CALL_REFUSED); the caller
 * then does what it did before it had async_call(), which is to block.
 *
 * Context: BQL held, or the main thread of a tool; not an I/O thread.
 */
AsyncCallResult coroutine_mixed_fn
async_call(AsyncCallOwner *owner, AsyncCallSite *site, AsyncCallFunc *fn,
           AsyncCallDone *done, void *opaque, int *ret);

/**
 * async_call_park: wait on the second stack until somebody wakes the call
 * @call: the call that waits, which is the one that runs
 * @timeout_ns: how long to wait at most, or -1
 *
 * If the call was woken since its last wait, this returns at once.
 *
 * Returns: what async_call_wake() was given, -ETIMEDOUT, or -ECANCELED.
 */
int coroutine_fn async_call_park(AsyncCall *call, int64_t timeout_ns);

/**
 * async_call_wake: let a call go on
 * @call: a call that has not ended; the user has to know that
 * @ret: what async_call_park() is to return
 *
 * Of several wakes for one wait, the first counts.
 *
 * Context: any thread.
 *
 * Returns: true if it was the first.
 */
bool async_call_wake(AsyncCall *call, int ret);

/**
 * async_call_blocking: let a thread make a host call that may block, and wait
 * @call: the call that waits, which is the one that runs
 * @timeout_ns: how long to wait at most, or -1
 * @func: runs in a thread, without any lock; its result is returned
 * @opaque: for @func
 * @destroy: releases @opaque, in some thread, when @func has returned
 *           (also when nobody waits any more), or before this returns -EAGAIN;
 *           may be NULL
 *
 * The thread belongs to nobody: no node is in flight because of it, and nobody
 * joins it.  So @func must work on descriptors and memory of its own, not on
 * the second stack's, which may be gone before a dead server answers.
 *
 * Returns: what @func returned; -EAGAIN if too many threads are busy;
 * -ETIMEDOUT or -ECANCELED if the wait ended earlier.  Then @func still runs.
 */
int coroutine_fn async_call_blocking(AsyncCall *call, int64_t timeout_ns,
                                     ThreadPoolFunc *func, void *opaque,
                                     GDestroyNotify destroy);

/**
 * async_call_cancelled: has the owner given this call up?
 * @call: the call, which runs
 *
 * For a function that made another call on its stack, with another owner: it
 * learns of its own cancellation not before its next wait.
 *
 * Context: BQL held.
 */
bool async_call_cancelled(const AsyncCall *call);

/**
 * async_call_cancel: give up all parked calls of an owner
 * @owner: may be freed when this returns
 *
 * Each call's wait returns -ECANCELED, later and in the main thread; no
 * completion runs any more.  What a thread has begun for a call goes on.
 *
 * Context: BQL held, any thread.
 *
 * Returns: how many calls there were.
 */
unsigned async_call_cancel(AsyncCallOwner *owner);

/**
 * async_call_cancel_all: give up all parked calls, because QEMU is to exit
 *
 * Context: BQL held.
 */
void async_call_cancel_all(void);

/**
 * async_call_drain: run an owner's parked calls to their end
 * @owner: whose calls; those of others stay as they are
 * @timeout_ns: how long to wait at most
 *
 * Waits for threads and other wakers, with the BQL held, without any event
 * loop.  What only an event loop can bring about does not happen; timeouts of
 * the calls' waits do not expire.
 *
 * Context: main thread, BQL held, not in a coroutine.
 *
 * Returns: true if no call is parked any more.
 */
bool async_call_drain(AsyncCallOwner *owner, int64_t timeout_ns);

/**
 * struct AsyncCallTotals: levels of all call sites together
 * @parked: calls that are parked
 * @parked_peak: most that were at a time
 * @jobs: host calls under way in threads
 * @jobs_refused: host calls that no thread was free for
 * @threads: threads there are
 */
typedef struct AsyncCallTotals {
    uint64_t parked;
    uint64_t parked_peak;
    uint64_t jobs;
    uint64_t jobs_refused;
    uint64_t threads;
} AsyncCallTotals;

/**
 * async_call_totals: read the levels
 * @totals: where to store them
 *
 * Context: BQL held.
 */
void async_call_totals(AsyncCallTotals *totals);

/**
 * typedef AsyncJobFunc: runs in a thread without any lock
 */
typedef void AsyncJobFunc(void *opaque);

/**
 * async_pool_submit: have a function run in a thread of its own, at once
 * @func: the function
 * @opaque: its argument
 *
 * Context: any thread.
 *
 * Returns: true, or false if %ASYNC_CALL_MAX_JOBS threads are busy or the
 * host has no more threads; @func does not run then.
 */
bool async_pool_submit(AsyncJobFunc *func, void *opaque);

#endif

/*
 * Threads for host calls that may block for ever
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef UTIL_ASYNC_CALL_INTERNAL_H
#define UTIL_ASYNC_CALL_INTERNAL_H

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

/**
 * async_pool_totals: read levels
 * @jobs: functions that run
 * @threads: threads there are
 */
void async_pool_totals(uint64_t *jobs, uint64_t *threads);

#endif

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
 * async_pool_totals: read levels
 * @jobs: functions that run
 * @threads: threads there are
 * @refused: functions that no thread was free for, since the start
 */
void async_pool_totals(uint64_t *jobs, uint64_t *threads, uint64_t *refused);

#endif

/*
 * Interrupt affinity that follows the vCPU: the scheduler's event
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef SYSTEM_IRQ_AFFINITY_PERF_H
#define SYSTEM_IRQ_AFFINITY_PERF_H

#include <linux/perf_event.h>
#include <sys/syscall.h>

/**
 * irq_perf_open: open the event that tells of moves of a thread
 * @tid: the thread
 *
 * Each record has the processor on which the thread goes on
 * (PERF_SAMPLE_CPU).  It includes the kernel, where the moves happen.
 *
 * Returns: a descriptor; -1: errno is set.
 */
static inline int irq_perf_open(pid_t tid)
{
    struct perf_event_attr attr = {
        .size = sizeof(attr),
        .type = PERF_TYPE_SOFTWARE,
        .config = PERF_COUNT_SW_CPU_MIGRATIONS,
        .sample_period = 1,
        .sample_type = PERF_SAMPLE_CPU,
        .wakeup_events = 1,
    };

    return syscall(SYS_perf_event_open, &attr, tid, -1, -1,
                   PERF_FLAG_FD_CLOEXEC);
}

#endif

/*
 * Interrupt affinity that follows the vCPU: where a thread runs
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A vCPU that stays in the kernel moves without an exit, so QEMU does not see
 * it move.  The scheduler does: a perf software event, cpu-migrations, is
 * written where the thread runs next.  It takes privilege.  (Asked for user
 * space only, which needs none, it opens but never fires.)  Without it, the
 * processor on which the thread ran last can be read at any time.
 *
 * Context: BQL held, main loop.
 */

#ifndef SYSTEM_IRQ_AFFINITY_WATCH_H
#define SYSTEM_IRQ_AFFINITY_WATCH_H

#include "qapi/qapi-types-irq-affinity.h"

typedef struct IRQWatch IRQWatch;

/* The thread was seen on @cpu; if the event has ended, that may be -1. */
typedef void IRQWatchFunc(void *opaque, int cpu);

/**
 * irq_watch_new: watch a thread of this process
 * @root: directory that stands for the root, NULL: the real one; the event
 *        is not used with another
 * @tid: the thread
 * @own_perf: try to open the event in this process
 * @func: called when the event tells a processor, or has ended
 * @opaque: for it
 *
 * Returns: to be freed with irq_watch_free(); never NULL.
 */
IRQWatch *irq_watch_new(const char *root, int tid, bool own_perf,
                        IRQWatchFunc *func, void *opaque);

/**
 * irq_watch_free: end it; or NULL
 */
void irq_watch_free(IRQWatch *w);

/**
 * irq_watch_source: how moves are noticed
 *
 * Returns: IRQ_AFFINITY_SOURCE_NONE if the thread's files cannot be read
 * either.
 */
IrqAffinitySource irq_watch_source(const IRQWatch *w);

/**
 * irq_watch_use_perf: use an event that somebody else opened
 * @w: the watch
 * @fd: consumed in any case
 *
 * Returns: whether it can be used.
 */
bool irq_watch_use_perf(IRQWatch *w, int fd);

/**
 * irq_watch_pause: do not tell of moves for a while, or do so again
 * @w: the watch
 * @pause: which
 *
 * The event stays open.  What it tells after a pause is of moves after that.
 */
void irq_watch_pause(IRQWatch *w, bool pause);

/**
 * irq_watch_cpu: where the thread ran last
 *
 * Returns: -1 if that cannot be told.
 */
int irq_watch_cpu(const IRQWatch *w);

/**
 * irq_watch_run_ns: how long the thread has run
 *
 * Returns: false if that cannot be told.
 */
bool irq_watch_run_ns(const IRQWatch *w, uint64_t *run_ns);

/**
 * irq_watch_parse_stat: the processor in a thread's "stat"
 * @stat: the text; the name in it may have blanks and parentheses
 *
 * Returns: -1 if it is not there.
 */
int irq_watch_parse_stat(const char *stat);

#endif

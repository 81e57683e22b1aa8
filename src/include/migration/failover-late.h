/*
 * Late unplug: a failover pair's fast device goes when RAM has converged
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_FAILOVER_LATE_H
#define MIGRATION_FAILOVER_LATE_H

#include "qapi/error.h"
#include "qemu/queue.h"

typedef enum FailoverUnplug {
    FAILOVER_UNPLUG_EARLY,      /* before the first pass */
    FAILOVER_UNPLUG_LATE,       /* when RAM has converged */
} FailoverUnplug;

/** qdev_prop_failover_unplug: PropertyInfo for a FailoverUnplug */
extern const PropertyInfo qdev_prop_failover_unplug;

/**
 * struct FailoverLate: one pair whose fast device is to go late
 */
typedef struct FailoverLate {
    /* Set by the owner, before failover_late_add() */

    /* Ask the guest to let go of the device.  BQL held. */
    bool (*request)(struct FailoverLate *late, Error **errp);
    /* After request: has the guest not let go yet?  BQL held. */
    bool (*pending)(struct FailoverLate *late);
    const char *name;           /* of the standby device */
    uint32_t timeout_ms;        /* for the guest to let go */

    /* Private; protected by the BQL */
    bool added, requested;
    int64_t deadline_ms;
    QTAILQ_ENTRY(FailoverLate) next;
} FailoverLate;

/**
 * failover_late_add: a migration starts, the device is to go late
 * Context: BQL held.
 */
void failover_late_add(FailoverLate *late);

/**
 * failover_late_del: the migration is over, or the device goes
 * Context: BQL held.  Harmless if it was not added.
 */
void failover_late_del(FailoverLate *late);

/**
 * failover_late_has: is a device to go late in the migration that runs?
 * @name: of its pair, as @name of &struct FailoverLate
 *
 * Context: BQL held.
 */
bool failover_late_has(const char *name);

/**
 * failover_late_ready: RAM has converged; may the migration complete?
 *
 * Asks the guests for the devices when it is called first.  If the VM does not
 * run, or a guest takes longer than it may, the migration's error is set.
 *
 * Context: the migration thread, without the BQL.
 *
 * Returns: true if no device is left to be let go of
 */
bool failover_late_ready(void);

/**
 * failover_late_check: set the migration's error if a guest takes too long
 *
 * For each pass: RAM may not converge any more since the guest was asked.
 *
 * Context: the migration thread, without the BQL.
 */
void failover_late_check(void);

/**
 * migration_skip_time: nothing was to be sent for a while, on purpose
 * @start_ms: since when, up to now, by QEMU_CLOCK_REALTIME
 *
 * What was sent is divided by the rest of the time, which gives the bandwidth,
 * and by it what can be sent in the switchover.
 *
 * Context: the migration thread.
 */
void migration_skip_time(int64_t start_ms);

/**
 * failover_late_pause: a look at the dirty pages is next
 *
 * Waits for up to half a second while a guest is to let go, unless the
 * migration ends.
 *
 * Context: the migration thread, without the BQL.
 */
void failover_late_pause(void);

/**
 * failover_late_wait: the migration was given up
 *
 * A guest that was asked finishes, so that the device can be plugged again;
 * waits for that, for as long as the guest may take.
 *
 * Context: the migration thread, without the BQL.
 */
void failover_late_wait(void);

/**
 * failover_late_end: the migration was cleaned up, another one can begin
 * Context: BQL held.
 */
void failover_late_end(void);

/**
 * failover_late_waits: is a migration that was given up not at its end?
 *
 * Its state may say that it has failed, but it waits for a guest, or is to be
 * cleaned up, so another one cannot begin.
 */
bool failover_late_waits(void);

#endif

/*
 * Late unplug: a failover pair's fast device goes when RAM has converged
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * With the early unplug the guest is asked before the first byte is sent, and
 * has its slow device for the whole migration.  Here the migration runs as if
 * there was nothing special until it could complete; then the guest is asked,
 * and more passes are made until it has let go.
 */

#include "qemu/osdep.h"
#include "qemu/error-report.h"
#include "qemu/main-loop.h"
#include "qemu/timer.h"
#include "hw/core/qdev-prop-internal.h"
#include "hw/qdev-properties.h"
#include "migration/failover-late.h"
#include "migration/misc.h"
#include "migration.h"
#include "options.h"
#include "qemu-file.h"
#include "qapi/util.h"
#include "system/cpu-throttle.h"
#include "system/runstate.h"
#include "trace.h"

#define POLL_MS         10
#define PASS_MS         500     /* between passes that wait for a guest */

static QTAILQ_HEAD(, FailoverLate) pairs = QTAILQ_HEAD_INITIALIZER(pairs);
static unsigned nr_pairs;       /* changed with the BQL, read without */
static bool waits;              /* atomic; for a guest, or to be cleaned up */

static const char *const unplug_names[] = {
    [FAILOVER_UNPLUG_EARLY] = "early",
    [FAILOVER_UNPLUG_LATE] = "late",
};

static const QEnumLookup unplug_lookup = {
    .array = unplug_names,
    .size = ARRAY_SIZE(unplug_names),
};

const PropertyInfo qdev_prop_failover_unplug = {
    .type = "FailoverUnplug",
    .description = "early: before the first pass of a migration, late: when"
                   " RAM has converged",
    .enum_table = &unplug_lookup,
    .get = qdev_propinfo_get_enum,
    .set = qdev_propinfo_set_enum,
    .set_default_value = qdev_propinfo_set_default_value_enum,
};

void failover_late_add(FailoverLate *late)
{
    late->requested = false;
    if (!late->added) {
        late->added = true;
        QTAILQ_INSERT_TAIL(&pairs, late, next);
        qatomic_set(&nr_pairs, nr_pairs + 1);
    }
}

void failover_late_del(FailoverLate *late)
{
    if (late->added) {
        late->added = false;
        QTAILQ_REMOVE(&pairs, late, next);
        qatomic_set(&nr_pairs, nr_pairs - 1);
    }
}

bool failover_late_has(const char *name)
{
    FailoverLate *late;

    QTAILQ_FOREACH(late, &pairs, next) {
        if (!g_strcmp0(late->name, name)) {
            return true;
        }
    }
    return false;
}

static void fail(FailoverLate *late, Error *err)
{
    error_prepend(&err, "%s: failover-unplug=late: ", late->name);
    migration_file_set_error(-EBUSY, err);
}

static bool is_late(FailoverLate *late)
{
    return qemu_clock_get_ms(QEMU_CLOCK_REALTIME) > late->deadline_ms;
}

static bool request(FailoverLate *late)
{
    Error *err = NULL;

    if (!runstate_is_running()) {
        error_setg(&err, "the VM does not run, so its guest cannot let go of"
                   " the device");
        fail(late, err);
        return false;
    }
    trace_failover_late_request(late->name);
    late->requested = true;
    late->deadline_ms = qemu_clock_get_ms(QEMU_CLOCK_REALTIME) +
                        late->timeout_ms;
    if (!late->request(late, &err)) {
        fail(late, err);
        return false;
    }
    return true;
}

/* Has this pair's device gone, whose guest was asked? */
static bool has_gone(FailoverLate *late)
{
    Error *err = NULL;

    if (!late->pending(late)) {
        return true;
    }
    if (is_late(late)) {
        error_setg(&err, "the guest did not let go of the device within %u ms"
                   " (failover-unplug-timeout-ms)%s", late->timeout_ms,
                   runstate_is_running() ? "" : "; the VM does not run");
        fail(late, err);
    }
    return false;
}

static bool ready(FailoverLate *late)
{
    return (late->requested || request(late)) && has_gone(late);
}

/* Neither cancelled nor failed, here or in the stream. */
static bool is_going_on(void)
{
    MigrationState *s = migrate_get_current();

    return qatomic_read(&s->state) == MIGRATION_STATUS_ACTIVE &&
           !migrate_has_error(s) && !qemu_file_get_error(s->to_dst_file);
}

static bool all_ready(void)
{
    FailoverLate *late;
    bool all = true;

    BQL_LOCK_GUARD();
    QTAILQ_FOREACH(late, &pairs, next) {
        all &= ready(late);
    }
    return all;
}

bool failover_late_ready(void)
{
    return !qatomic_read(&nr_pairs) || all_ready();
}

void failover_late_check(void)
{
    FailoverLate *late;

    if (!qatomic_read(&nr_pairs) || !is_going_on()) {
        return;
    }
    BQL_LOCK_GUARD();
    QTAILQ_FOREACH(late, &pairs, next) {
        if (late->requested) {
            has_gone(late);
        }
    }
}

/* A guest was asked, has not let go, and has time to do so. */
static bool any_pending(void)
{
    FailoverLate *late;

    BQL_LOCK_GUARD();
    QTAILQ_FOREACH(late, &pairs, next) {
        if (!late->requested || !late->pending(late)) {
            continue;
        }
        if (!is_late(late)) {
            return true;
        }
        warn_report_once("%s: the guest did not let go of the device, which"
                         " stays", late->name);
    }
    return false;
}

void migration_skip_time(int64_t start_ms)
{
    MigrationState *s = migrate_get_current();

    s->iteration_start_time += qemu_clock_get_ms(QEMU_CLOCK_REALTIME) -
                               MAX(start_ms, s->iteration_start_time);
}

/*
 * While passes are made for its sake the guest dirties about as much as is
 * sent, for which auto-converge slows it down more and more; and a guest that
 * hardly runs does not let go.
 */
static void unthrottle(void)
{
    if (migrate_auto_converge() && cpu_throttle_active()) {
        BQL_LOCK_GUARD();
        cpu_throttle_stop();
        cpu_throttle_dirty_sync_timer(true);
    }
}

/*
 * Each pass has the dirty pages looked for, with the BQL and, with KVM, all of
 * memory write-protected again.  One after the other would starve the guest
 * that is to let go, so there is some time between them.
 */
void failover_late_pause(void)
{
    int64_t start_ms = qemu_clock_get_ms(QEMU_CLOCK_REALTIME);

    if (!qatomic_read(&nr_pairs)) {
        return;
    }
    for (int ms = 0; ms < PASS_MS && is_going_on() && any_pending();
         ms += POLL_MS) {
        unthrottle();
        g_usleep(POLL_MS * 1000);
    }
    migration_skip_time(start_ms);
}

void failover_late_wait(void)
{
    if (!qatomic_read(&nr_pairs) ||
        qatomic_read(&migrate_get_current()->state) ==
        MIGRATION_STATUS_COMPLETED) {
        return;
    }
    qatomic_set(&waits, true);
    while (any_pending()) {
        unthrottle();
        g_usleep(POLL_MS * 1000);
    }
}

void failover_late_end(void)
{
    qatomic_set(&waits, false);
}

bool failover_late_waits(void)
{
    return qatomic_read(&waits);
}

/*
 * Helpers of the tests of second stacks and of what is posted
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_QTEST_ASYNC_CALL_UTIL_H
#define TESTS_QTEST_ASYNC_CALL_UTIL_H

#include "libqtest.h"

/* A statistic of the VM, by its name in query-stats. */
uint64_t async_stat(QTestState *qts, const char *name);

/* Run a command of qemu-io on a device's own back end, given by QOM path. */
void async_qemu_io(QTestState *qts, const char *device, const char *command);

/* Have QEMU, started as @command, refuse with @error. */
void async_check_refused(const char *command, const char *error);

/* Wait for the end of a migration: true if it has worked. */
bool async_migrated(QTestState *qts);

/* Stop the VM and migrate it to a file. */
void async_save(QTestState *qts, const char *path);

/*
 * Run the job snapshot-save or snapshot-load, with all in the qcow2 node
 * "qcow".  Returns false if it failed.
 */
bool async_snapshot(QTestState *qts, const char *command);

/*
 * Convert an image from one format to the other.  Returns false, and marks the
 * test as skipped, if there is no qemu-img.
 */
bool async_convert(const char *from, const char *format, const char *to,
                   const char *to_format);

/* Load a VM started with -incoming defer.  Returns false if that failed. */
bool async_load(QTestState *qts, const char *path);

#endif

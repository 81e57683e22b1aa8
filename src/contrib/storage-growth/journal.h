/*
 * Storage growth: the journal
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A growth is written down, with the size that it leads to, before it begins,
 * and again when it has ended.  After a crash, what had begun is done again:
 * to the same size, so it has no effect if it was done.
 *
 * The file has one record a line, "CRC32 JSON", and is only appended to.  What
 * must be on the disk is that a growth begins; sg_journal_sync() sees to that
 * for all that begin at the same time.  Each record tells how much of the file
 * was synced before it.  So what a crash, a full disk or a power failure left
 * torn, which was not synced, is told from damage, and is cut off.
 */

#ifndef STORAGE_GROWTH_JOURNAL_H
#define STORAGE_GROWTH_JOURNAL_H

#include <glib.h>
#include <stdbool.h>

typedef struct SgJournal SgJournal;

/**
 * struct SgGrowth: one growth
 * @key: what it is for, unique for ever
 * @vm: name of the virtual machine, or ""
 * @path: what QEMU has opened, or ""
 * @resource: what is grown, see provider.h
 * @from: size before, in bytes
 * @target: size after, in bytes
 * @begin_us, @end_us: real time; the clock may have been set in between
 * @ended: it need not be done again
 * @provider_us: how long the provider took, in the process that ended it
 * @denied: why there was no growth, or NULL.  Such a growth has @from and
 *          @target 0.
 */
typedef struct SgGrowth {
    char *key;
    char *vm;
    char *path;
    char *resource;
    uint64_t from;
    uint64_t target;
    int64_t begin_us;
    int64_t end_us;
    bool ended;
    int64_t provider_us;
    char *denied;
} SgGrowth;

/**
 * sg_journal_open: read a journal, or make a new one
 * @path: the file; it is locked, so that only one process uses it
 *
 * What is in it is on the disk then, even if the last process was told that it
 * cannot be written: see sync_loaded() in journal.c.
 *
 * Returns: NULL with @error set if it cannot be read, written or synced, is in
 * use, can be written by others, or has a damaged record that had been synced.
 */
SgJournal *sg_journal_open(const char *path, GError **error);
void sg_journal_close(SgJournal *j);

/* The growth for @key, or NULL; valid until the journal is closed */
SgGrowth *sg_journal_find(SgJournal *j, const char *key);

/* The growths in the order of their beginning */
GPtrArray *sg_journal_all(SgJournal *j);

/**
 * sg_journal_begin: write down that a growth begins
 *
 * It must not begin before sg_journal_sync() has returned true, unless a power
 * failure would leave nothing of it, and sg_journal_must_sync() is false: a
 * process that is killed needs no sync.
 *
 * Returns: the growth, or NULL with @error set; then it must not begin, and
 * the journal is as before.
 */
SgGrowth *sg_journal_begin(SgJournal *j, const char *key, const char *vm,
                           const char *path, const char *resource,
                           uint64_t from, uint64_t target, GError **error);

/**
 * sg_journal_end: write down that a growth has ended
 *
 * Returns: false with @error set if it cannot be written.  It counts as ended
 * nevertheless, until the process ends; then it would be done again.
 */
bool sg_journal_end(SgJournal *j, SgGrowth *g, int64_t provider_us,
                    GError **error);

/* Wait until all that was written down is on the disk */
bool sg_journal_sync(SgJournal *j, GError **error);

/*
 * Whether nothing may begin before sg_journal_sync() has returned true: so much
 * is not on the disk, or the last time it failed.  What the kernel could not
 * write it may forget: then even a process that is killed needs a sync.
 */
bool sg_journal_must_sync(SgJournal *j);

/* Write down that there is no growth for a key, and why */
SgGrowth *sg_journal_deny(SgJournal *j, const char *key, const char *vm,
                          const char *reason, GError **error);

#endif

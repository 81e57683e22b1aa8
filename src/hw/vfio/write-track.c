/*
 * Write tracking: the trackers, the migration and the statistics
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * One MemoryListener serves all trackers.  It has log_sync_global, which is
 * told of the last stage and is called once for each look at the dirty pages
 * (and for each refresh of a display; that asks once more and is harmless).
 * VFIO's own listener cannot have it: log_sync and log_sync_global exclude
 * each other.
 *
 * What a source reports is put into the dirty bitmap at once.  Nothing is kept
 * here that could be forgotten.
 */

#include "qemu/osdep.h"
#include "qemu/bitmap.h"
#include "qemu/error-report.h"
#include "qemu/rcu.h"
#include "qemu/timer.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-write-tracking.h"
#include "exec/ramlist.h"
#include "exec/target_page.h"
#include "migration/misc.h"
#include "migration/qemu-file.h"
#include "monitor/hmp.h"
#include "monitor/monitor.h"
#include "system/address-spaces.h"
#include "system/hotpath-stats.h"
#include "system/physmem.h"
#include "system/ram_addr.h"
#include "system/tcg.h"
#include "trace.h"
#include "write-track.h"

/* All protected by the BQL */
static QTAILQ_HEAD(, WriteTracker) trackers = QTAILQ_HEAD_INITIALIZER(trackers);
static WriteTrackCounts gone;   /* of devices that were unplugged */

/* RAM that was unmapped in this transaction */
typedef struct Removed {
    ram_addr_t start, len;
} Removed;

static GArray *removed;

/* ---------------------------------------------------------------- marking */

/* A block of the bitmap at a time; it may grow meanwhile. */
static uint64_t count_clean(ram_addr_t start, ram_addr_t len)
{
    unsigned long page = start >> qemu_target_page_bits();
    unsigned long end = DIV_ROUND_UP(start + len, qemu_target_page_size());
    uint64_t clean = end - page;
    DirtyMemoryBlocks *blocks;

    RCU_READ_LOCK_GUARD();
    blocks = qatomic_rcu_read(&ram_list.dirty_memory[DIRTY_MEMORY_MIGRATION]);
    while (page < end) {
        unsigned long offset = page % DIRTY_MEMORY_BLOCK_SIZE;
        unsigned long count = MIN(end - page,
                                  DIRTY_MEMORY_BLOCK_SIZE - offset);

        clean -= bitmap_count_one_with_offset(
            blocks->blocks[page / DIRTY_MEMORY_BLOCK_SIZE], offset, count);
        page += count;
    }
    return clean;
}

void write_track_mark_ram(WriteTracker *t, ram_addr_t start, ram_addr_t len)
{
    if (!len) {
        return;
    }
    t->round.pages += count_clean(start, len);
    physical_memory_set_dirty_range(start, len,
                                    tcg_enabled() ? DIRTY_CLIENTS_ALL
                                                  : DIRTY_CLIENTS_NOCODE);
}

static bool is_writable_ram(MemoryRegion *mr)
{
    return memory_region_is_ram(mr) && !memory_region_is_rom(mr) &&
           !memory_region_is_ram_device(mr);
}

void write_track_mark(WriteTracker *t, hwaddr addr, hwaddr len)
{
    RCU_READ_LOCK_GUARD();

    while (len) {
        hwaddr xlat, piece = len;
        MemoryRegion *mr;

        mr = address_space_translate(&address_space_memory, addr, &xlat,
                                     &piece, true, MEMTXATTRS_UNSPECIFIED);
        if (is_writable_ram(mr)) {
            write_track_mark_ram(t, memory_region_get_ram_addr(mr) + xlat,
                                 piece);
        }
        /* a guest's address may be anything: do not wrap around */
        if (piece >= len || addr + piece < addr) {
            break;
        }
        addr += piece;
        len -= piece;
    }
}

static bool mark_range(Int128 start, Int128 len, const MemoryRegion *mr,
                       hwaddr offset, void *opaque)
{
    MemoryRegion *ram = (MemoryRegion *)mr;

    if (is_writable_ram(ram)) {
        write_track_mark_ram(opaque, memory_region_get_ram_addr(ram) + offset,
                             int128_get64(len));
    }
    return false;
}

void write_track_mark_all(WriteTracker *t, const char *why)
{
    t->round.all++;
    t->why_all = why;
    trace_write_track_mark_all(t->name, why);
    if (t->all_marked) {
        /* a guest may provoke it as often as it likes */
        return;
    }
    /* what is marked before the start need not last */
    t->all_marked = t->logging;
    RCU_READ_LOCK_GUARD();
    flatview_for_each_range(address_space_to_flatview(&address_space_memory),
                            mark_range, t);
}

/* ------------------------------------------------------------ the listener */

static void add_counts(WriteTrackCounts *sum, const WriteTrackCounts *counts)
{
    sum->syncs += counts->syncs;
    sum->pages += counts->pages;
    sum->all += counts->all;
    sum->traps += counts->traps;
    sum->time_ns += counts->time_ns;
}

static void stop(WriteTracker *t)
{
    if (t->logging) {
        t->logging = t->all_marked = false;
        t->source->stop(t);
        trace_write_track_stop(t->name, t->total.syncs, t->total.pages,
                               t->total.all);
    }
}

static void log_global_stop(MemoryListener *listener)
{
    WriteTracker *t;

    QTAILQ_FOREACH(t, &trackers, next) {
        stop(t);
    }
}

static bool start(WriteTracker *t, Error **errp)
{
    if (!t->logging) {
        if (!t->source->start(t, errp)) {
            return false;
        }
        t->logging = true;
        trace_write_track_start(t->name,
                                WriteTrackingSource_str(t->source->kind));
    }
    return true;
}

static bool log_global_start(MemoryListener *listener, Error **errp)
{
    WriteTracker *t;

    QTAILQ_FOREACH(t, &trackers, next) {
        if (!start(t, errp)) {
            /* the caller stops only those that were told before this one */
            log_global_stop(listener);
            return false;
        }
    }
    return true;
}

static void fail(WriteTracker *t, Error *err)
{
    error_prepend(&err, "%s: cannot say what the device has written: ",
                  t->name);
    if (migration_is_running()) {
        /* the migration's setup replaces the text by that of the number */
        error_report("%s", error_get_pretty(err));
        migration_file_set_error(-EIO, err);
    } else {
        error_report_err(err);
    }
}

/* What happened since the last sync (traps, say) belongs to this round. */
static void sync_tracker(WriteTracker *t, bool last)
{
    int64_t start_ns = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
    Error *err = NULL;
    static const WriteTrackCounts nothing;
    WriteTrackCounts round;

    if (!t->source->sync(t, last, &err)) {
        fail(t, err);
    }
    t->round.syncs = 1;
    t->round.time_ns = qemu_clock_get_ns(QEMU_CLOCK_REALTIME) - start_ns;
    round = t->round;
    t->last_round = round;
    t->round = nothing;
    add_counts(&t->total, &round);
    trace_write_track_sync(t->name, last, round.pages, round.all, round.traps,
                           round.time_ns);
}

/*
 * Dirty pages were logged, for their rate, when the device came; so nobody said
 * that a migration starts.
 */
static void late_start(WriteTracker *t)
{
    Error *err = NULL;

    if (start(t, &err)) {
        write_track_mark_all(t, "tracking started late");
    } else {
        fail(t, err);
    }
}

static void log_sync_global(MemoryListener *listener, bool last_stage)
{
    WriteTracker *t;

    QTAILQ_FOREACH(t, &trackers, next) {
        if (t->logging) {
            sync_tracker(t, last_stage);
        } else if (migration_is_running()) {
            late_start(t);
        }
        /* the caller takes the bits away now */
        t->all_marked = false;
    }
}

/*
 * The device may have written there up to now, and at the next sync the address
 * leads elsewhere.  VFIO's listener may be called after this one, and the
 * device writes until then: mark it when all have been called.
 */
static void region_del(MemoryListener *listener, MemoryRegionSection *section)
{
    Removed range = { .len = int128_get64(section->size) };

    if (is_writable_ram(section->mr)) {
        range.start = memory_region_get_ram_addr(section->mr) +
                      section->offset_within_region;
        g_array_append_val(removed, range);
    }
}

/* What is new is not among "all memory" that was marked before. */
static void region_add(MemoryListener *listener, MemoryRegionSection *section)
{
    WriteTracker *t;

    QTAILQ_FOREACH(t, &trackers, next) {
        t->all_marked = false;
    }
}

static void commit(MemoryListener *listener)
{
    WriteTracker *t;

    QTAILQ_FOREACH(t, &trackers, next) {
        for (guint i = 0; i < removed->len && t->source->by_address &&
                          write_track_covers(t); i++) {
            Removed *range = &g_array_index(removed, Removed, i);

            trace_write_track_removed(t->name, range->start, range->len);
            write_track_mark_ram(t, range->start, range->len);
        }
    }
    g_array_set_size(removed, 0);
}

static MemoryListener write_track_listener = {
    .name = "write-track",
    .region_add = region_add,
    .region_del = region_del,
    .commit = commit,
    /* fails only when there are trackers, so not when it is registered */
    .log_global_start = log_global_start,
    .log_global_stop = log_global_stop,
    .log_sync_global = log_sync_global,
};

/* -------------------------------------------------------------- statistics */

enum { STAT_SYNCS, STAT_PAGES, STAT_ALL, STAT_TRAPS, STAT_TIME, STAT_ARMED,
       NR_STATS };

static const HotpathStat stat_names[NR_STATS] = {
    [STAT_SYNCS] = { "write-tracking-syncs", STATS_TYPE_CUMULATIVE },
    [STAT_PAGES] = { "write-tracking-marked-pages", STATS_TYPE_CUMULATIVE },
    [STAT_ALL] = { "write-tracking-marked-all", STATS_TYPE_CUMULATIVE },
    [STAT_TRAPS] = { "write-tracking-traps", STATS_TYPE_CUMULATIVE },
    [STAT_TIME] = { "write-tracking-time-ns", STATS_TYPE_CUMULATIVE },
    [STAT_ARMED] = { "write-tracking-armed", STATS_TYPE_INSTANT },
};

static uint64_t armed(WriteTracker *t)
{
    return t->source->armed ? t->source->armed(t) : 0;
}

static bool read_stats(CPUState *cpu, uint64_t *values)
{
    WriteTrackCounts sum = gone;
    WriteTracker *t;

    values[STAT_ARMED] = 0;
    QTAILQ_FOREACH(t, &trackers, next) {
        add_counts(&sum, &t->total);
        add_counts(&sum, &t->round);
        values[STAT_ARMED] += armed(t);
    }
    values[STAT_SYNCS] = sum.syncs;
    values[STAT_PAGES] = sum.pages;
    values[STAT_ALL] = sum.all;
    values[STAT_TRAPS] = sum.traps;
    values[STAT_TIME] = sum.time_ns;
    return true;
}

static const HotpathStatsGroup stats_group = {
    .target = STATS_TARGET_VM,
    .stats = stat_names,
    .count = NR_STATS,
    .read = read_stats,
};

static WriteTrackingRound *last_round(WriteTracker *t)
{
    WriteTrackingRound *round;

    if (!t->last_round.syncs) {
        return NULL;
    }
    round = g_new0(WriteTrackingRound, 1);
    round->marked_pages = t->last_round.pages;
    round->marked_all = t->last_round.all;
    round->traps = t->last_round.traps;
    round->time_ns = t->last_round.time_ns;
    return round;
}

WriteTrackingInfoList *qmp_query_write_tracking(Error **errp)
{
    WriteTrackingInfoList *list = NULL, **tail = &list;
    WriteTracker *t;

    QTAILQ_FOREACH(t, &trackers, next) {
        WriteTrackingInfo *info = g_new0(WriteTrackingInfo, 1);

        info->device = g_strdup(t->name);
        info->source = t->source->kind;
        info->active = write_track_covers(t);
        info->armed = armed(t);
        info->syncs = t->total.syncs;
        info->marked_pages = t->total.pages + t->round.pages;
        info->marked_all = t->total.all + t->round.all;
        info->marked_all_reason = g_strdup(t->why_all);
        info->traps = t->total.traps + t->round.traps;
        info->time_ns = t->total.time_ns;
        info->last_round = last_round(t);
        QAPI_LIST_APPEND(tail, info);
    }
    return list;
}

void hmp_info_write_tracking(Monitor *mon, const QDict *qdict)
{
    g_autoptr(WriteTrackingInfoList) list =
        qmp_query_write_tracking(&error_abort);

    if (!list) {
        monitor_printf(mon, "No device has write tracking of QEMU's own\n");
    }
    for (WriteTrackingInfoList *i = list; i; i = i->next) {
        WriteTrackingInfo *info = i->value;

        monitor_printf(mon, "%s: source %s, %s, armed %" PRIu64 "\n",
                       info->device, WriteTrackingSource_str(info->source),
                       info->active ? "active" : "inactive", info->armed);
        monitor_printf(mon, "  syncs %" PRIu64 ", marked pages %" PRIu64
                       ", marked all %" PRIu64 "%s%s%s, traps %" PRIu64
                       ", time %" PRIu64 " ns\n", info->syncs,
                       info->marked_pages, info->marked_all,
                       info->marked_all_reason ? " (" : "",
                       info->marked_all_reason ?: "",
                       info->marked_all_reason ? ")" : "", info->traps,
                       info->time_ns);
        if (info->last_round) {
            monitor_printf(mon, "  last round: marked pages %" PRIu64
                           ", marked all %" PRIu64 ", traps %" PRIu64
                           ", time %" PRIu64 " ns\n",
                           info->last_round->marked_pages,
                           info->last_round->marked_all,
                           info->last_round->traps,
                           info->last_round->time_ns);
        }
    }
}

/* -------------------------------------------------------------- life cycle */

bool write_track_covers(WriteTracker *t)
{
    return t && t->logging && (!t->source->covers || t->source->covers(t));
}

void write_track_add(WriteTracker *t)
{
    if (QTAILQ_EMPTY(&trackers)) {
        removed = g_array_new(false, false, sizeof(Removed));
        memory_listener_register(&write_track_listener, &address_space_memory);
    }
    QTAILQ_INSERT_TAIL(&trackers, t, next);
    hotpath_stats_register(&stats_group);
    trace_write_track_add(t->name, WriteTrackingSource_str(t->source->kind));
}

void write_track_del(WriteTracker *t)
{
    if (!QTAILQ_IN_USE(t, next)) {
        return;
    }
    stop(t);
    add_counts(&gone, &t->total);
    add_counts(&gone, &t->round);
    QTAILQ_REMOVE(&trackers, t, next);
    if (QTAILQ_EMPTY(&trackers)) {
        memory_listener_unregister(&write_track_listener);
        g_array_free(removed, true);
    }
}

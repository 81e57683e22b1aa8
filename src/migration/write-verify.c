/*
 * Proof mode of write tracking: did each write of a device arrive?
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Two checks.  The one that decides is in the stream: a section with a hash of
 * each page, which is saved after RAM is complete and before any device, and
 * compared when it is loaded.
 *
 * The other says early, and where, that something is missed: at each look at
 * the dirty pages, a page is hashed after the bits were fetched.  If it changed
 * since the last look, then its bit is there now, or the write came after the
 * bits were fetched and the bit is there at the next look, or it was dirty
 * already at the last look and not sent by then (the kernel may forget writes
 * up to the time when such a page is sent).  Else it was missed.  At the last
 * look, with the VM stopped, there is no next one to wait for.
 *
 * So the hash of a page that is dirty is never needed, and not taken: the first
 * look, at which all are, costs nothing.  While the VM runs, looks are made by
 * the migration's thread without the BQL; therefore not in a precopy notifier,
 * as the main thread may remove another one meanwhile.  Auto-converge fetches
 * bits in the main thread as well, while pages are sent; there are no looks
 * with it.
 *
 * The hash is CRC-32: it is to find mistakes, not attacks.
 */

#include "qemu/osdep.h"
#include <zlib.h>
#include "qemu/bitmap.h"
#include "qemu/cutils.h"
#include "qemu/error-report.h"
#include "qemu/main-loop.h"
#include "qemu/rcu.h"
#include "qemu/timer.h"
#include "qapi/error.h"
#include "qapi/qapi-events-write-tracking.h"
#include "exec/ramlist.h"
#include "exec/target_page.h"
#include "migration/failover-late.h"
#include "migration/misc.h"
#include "migration/qemu-file-types.h"
#include "migration/vmstate.h"
#include "migration/write-verify.h"
#include "options.h"
#include "qemu-file.h"
#include "ram.h"
#include "system/hotpath-stats.h"
#include "system/memory.h"
#include "system/ramblock.h"
#include "system/runstate.h"
#include "trace.h"

/* A block of RAM as it was at the last look. */
typedef struct Seen {
    uint64_t pages;
    uint32_t *hash;             /* of pages that were not dirty */
    unsigned long *dirty;       /* was dirty at the last look */
    unsigned long *suspect;     /* changed then, and was not dirty */
    bool in_scope;              /* at this look */
} Seen;

/* Where pages were found, and how many. */
typedef struct Found {
    uint64_t pages, offset;
    char block[256];
} Found;

static unsigned users;          /* BQL */
static Found differ;            /* main thread, while a stream is loaded */
static uint64_t compared;       /* the same */
static uint64_t round_nr, time_ns, missed_pages;    /* migration thread */

/* By name of block; made and used by the thread that migrates. */
static GHashTable *seen;

static uint64_t block_pages(RAMBlock *rb)
{
    return rb->used_length >> qemu_target_page_bits();
}

static uint32_t hash_page(RAMBlock *rb, uint64_t page)
{
    return crc32(0, rb->host + (page << qemu_target_page_bits()),
                 qemu_target_page_size());
}

/* Reading what was discarded would populate it. */
static bool in_scope(RAMBlock *rb)
{
    return rb->host && !memory_region_has_ram_discard_manager(rb->mr);
}

static void found_page(Found *f, const char *block, uint64_t page)
{
    if (!f->pages++) {
        pstrcpy(f->block, sizeof(f->block), block);
        f->offset = page << qemu_target_page_bits();
    }
}

/* ------------------------------------------------------- at each dirty sync */

static void seen_free(gpointer opaque)
{
    Seen *s = opaque;

    g_free(s->hash);
    g_free(s->dirty);
    g_free(s->suspect);
    g_free(s);
}

static Seen *seen_new(RAMBlock *rb)
{
    Seen *s = g_new0(Seen, 1);

    s->pages = block_pages(rb);
    s->hash = g_new0(uint32_t, s->pages);
    s->dirty = bitmap_new(s->pages);
    s->suspect = bitmap_new(s->pages);
    /* nothing is known yet, so nothing is missed at the first look */
    bitmap_set(s->dirty, 0, s->pages);
    g_hash_table_replace(seen, g_strdup(rb->idstr), s);
    return s;
}

static void look_at_page(RAMBlock *rb, Seen *s, uint64_t i, bool last,
                         Found *missed)
{
    bool was_dirty = test_bit(i, s->dirty);
    bool suspect = test_and_clear_bit(i, s->suspect);
    uint32_t hash;

    if (test_bit(i, rb->bmap)) {
        set_bit(i, s->dirty);
        return;
    }
    clear_bit(i, s->dirty);
    if (suspect) {
        found_page(missed, rb->idstr, i);
    }
    hash = hash_page(rb, i);
    if (hash != s->hash[i] && !was_dirty) {
        if (last) {
            found_page(missed, rb->idstr, i);
        } else {
            set_bit(i, s->suspect);
        }
    }
    s->hash[i] = hash;
}

/*
 * With the big lock: a region goes at once with its device, and only the block
 * waits for those who look at it.
 */
static void choose_blocks(void)
{
    RAMBlock *rb;

    RCU_READ_LOCK_GUARD();
    RAMBLOCK_FOREACH_NOT_IGNORED(rb) {
        Seen *s = g_hash_table_lookup(seen, rb->idstr);
        bool wanted = rb->bmap && in_scope(rb);

        if (wanted && (!s || s->pages != block_pages(rb))) {
            s = seen_new(rb);
        }
        if (s) {
            s->in_scope = wanted;
        }
    }
}

static void look_at_all(bool last, Found *missed)
{
    RAMBlock *rb;

    RCU_READ_LOCK_GUARD();
    RAMBLOCK_FOREACH_NOT_IGNORED(rb) {
        Seen *s = g_hash_table_lookup(seen, rb->idstr);

        /* one that came since then has no bitmap */
        if (!s || !s->in_scope || !rb->bmap || s->pages != block_pages(rb)) {
            continue;
        }
        for (uint64_t i = 0; i < s->pages; i++) {
            look_at_page(rb, s, i, last, missed);
        }
    }
}

static void look(bool last)
{
    int64_t start_ns = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
    /* the first look is in the setup, which holds the list of blocks */
    bool alone = seen && runstate_is_running();
    Found missed = {};

    if (!seen) {
        seen = g_hash_table_new_full(g_str_hash, g_str_equal, g_free,
                                     seen_free);
        round_nr = 0;
    }
    round_nr++;
    choose_blocks();
    if (alone) {
        bql_unlock();
    }
    look_at_all(last, &missed);
    if (alone) {
        bql_lock();
    }
    qatomic_set(&time_ns, time_ns + qemu_clock_get_ns(QEMU_CLOCK_REALTIME) -
                          start_ns);
    migration_skip_time(start_ns / SCALE_MS);
    trace_write_verify_look(round_nr, missed.pages);
    if (missed.pages) {
        qatomic_set(&missed_pages, missed_pages + missed.pages);
        warn_report("write-tracking-verify: %" PRIu64 " pages changed without"
                    " being dirty, the first at 0x%" PRIx64 " of '%s'",
                    missed.pages, missed.offset, missed.block);
        qapi_event_send_write_tracking_missed(missed.block, missed.offset,
                                              missed.pages, round_nr);
    }
}

void write_verify_look(bool last)
{
    if (users && !migrate_auto_converge()) {
        look(last);
    }
}

static int precopy_event(NotifierWithReturn *n, void *opaque, Error **errp)
{
    PrecopyNotifyData *data = opaque;

    if (data->reason == PRECOPY_NOTIFY_CLEANUP) {
        g_clear_pointer(&seen, g_hash_table_unref);
    }
    return 0;
}

/* There is no time when all of RAM is at one end. */
static int migration_event(NotifierWithReturn *n, MigrationEvent *e,
                           Error **errp)
{
    if (users && e->type == MIG_EVENT_PRECOPY_SETUP && migrate_postcopy_ram()) {
        error_setg(errp, "write-tracking-verify=on does not work with the"
                   " capability postcopy-ram");
        return -EINVAL;
    }
    return 0;
}

static NotifierWithReturn precopy_notifier = { .notify = precopy_event };
static NotifierWithReturn migration_notifier;

/* ------------------------------------------------------------ in the stream */

/* For each block: name, number of pages, hashes.  An empty name ends it. */
static int put_hashes(QEMUFile *f, void *pv, size_t size,
                      const VMStateField *field, JSONWriter *vmdesc)
{
    RAMBlock *rb;

    RCU_READ_LOCK_GUARD();
    RAMBLOCK_FOREACH_NOT_IGNORED(rb) {
        if (!in_scope(rb)) {
            continue;
        }
        qemu_put_counted_string(f, rb->idstr);
        qemu_put_be64(f, block_pages(rb));
        for (uint64_t i = 0; i < block_pages(rb); i++) {
            qemu_put_be32(f, hash_page(rb, i));
        }
    }
    qemu_put_byte(f, 0);
    return qemu_file_get_error(f);
}

/* The stream is not trusted: a block that is not here ends the load. */
static int get_block(QEMUFile *f, const char *name)
{
    RAMBlock *rb = qemu_ram_block_by_name(name);
    uint64_t pages = qemu_get_be64(f);

    if (!rb || !in_scope(rb) || pages != block_pages(rb)) {
        error_report("write-tracking-verify: no block '%s' of %" PRIu64
                     " pages", name, pages);
        return -EINVAL;
    }
    for (uint64_t i = 0; i < pages; i++) {
        if (qemu_get_be32(f) != hash_page(rb, i)) {
            found_page(&differ, name, i);
        }
        compared++;
    }
    return qemu_file_get_error(f);
}

static int get_hashes(QEMUFile *f, void *pv, size_t size,
                      const VMStateField *field)
{
    char name[256];
    int ret = 0;

    differ.pages = 0;
    compared = 0;
    while (!ret && qemu_get_counted_string(f, name)) {
        ret = get_block(f, name);
    }
    return ret ?: qemu_file_get_error(f);
}

static bool check_loaded(void *opaque, int version_id, Error **errp)
{
    trace_write_verify_loaded(compared, differ.pages);
    if (differ.pages) {
        error_setg(errp, "write-tracking-verify: %" PRIu64 " of %" PRIu64
                   " pages differ from the source, the first at 0x%" PRIx64
                   " of '%s'", differ.pages, compared, differ.offset,
                   differ.block);
        return false;
    }
    return true;
}

static const VMStateInfo hashes_info = {
    .name = "page hashes",
    .get = get_hashes,
    .put = put_hashes,
};

static const VMStateDescription vmstate_write_verify = {
    .name = "write-verify",
    .version_id = 1,
    .minimum_version_id = 1,
    /* right after RAM; what devices do when they are loaded comes later */
    .priority = MIG_PRI_MAX,
    .post_load_errp = check_loaded,
    .fields = (const VMStateField[]) {
        {
            .name = "hashes",
            .info = &hashes_info,
            .flags = VMS_SINGLE,
            .size = sizeof(users),
        },
        VMSTATE_END_OF_LIST()
    },
};

/* -------------------------------------------------------------- life cycle */

enum { STAT_MISSED, STAT_TIME, NR_STATS };

static const HotpathStat stat_names[NR_STATS] = {
    [STAT_MISSED] = { "write-verify-missed-pages", STATS_TYPE_CUMULATIVE },
    [STAT_TIME] = { "write-verify-time-ns", STATS_TYPE_CUMULATIVE },
};

static bool read_stats(CPUState *cpu, uint64_t *values)
{
    values[STAT_MISSED] = qatomic_read(&missed_pages);
    values[STAT_TIME] = qatomic_read(&time_ns);
    return true;
}

static const HotpathStatsGroup stats_group = {
    .target = STATS_TARGET_VM,
    .stats = stat_names,
    .count = NR_STATS,
    .read = read_stats,
};

static void begin(void)
{
    static bool notified;

    vmstate_register(NULL, 0, &vmstate_write_verify, &users);
    hotpath_stats_register(&stats_group);
    if (!notified) {
        notified = true;
        precopy_add_notifier(&precopy_notifier);
        migration_add_notifier(&migration_notifier, migration_event);
    }
}

/* The notifiers stay: a look may be under way, and what it keeps is freed. */
static void end(void)
{
    vmstate_unregister(NULL, &vmstate_write_verify, &users);
}

void write_verify_set(bool *counted, bool on)
{
    if (*counted == on) {
        return;
    }
    *counted = on;
    if (on && !users++) {
        begin();
    } else if (!on && !--users) {
        end();
    }
}

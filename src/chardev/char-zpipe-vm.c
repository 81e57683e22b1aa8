/*
 * Asynchronous pipes as character devices: the VM around them
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Guest RAM: with share-ram=on the peer gets a descriptor, open for reading
 * only, of each block that is a shared memfd.  RAM that comes and goes is
 * followed; a block that is resized is no longer shared.  Discarding RAM would
 * pull pages from under the peer's mapping, so it is disabled; an incoming
 * postcopy, in which pages are not there yet, is refused.
 *
 * Migration: an incoming VM leaves the path alone until it runs, and the
 * source leaves it when the migration is complete.
 *
 * Everything runs with the BQL held.
 */

#include "qemu/osdep.h"
#include "exec/cpu-common.h"
#include "exec/ramlist.h"
#include "qapi/qapi-types-migration.h"
#include "migration/blocker.h"
#include "migration/client-options.h"
#include "migration/misc.h"
#include "migration/postcopy-ram.h"
#include "monitor/hmp.h"
#include "monitor/monitor.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-zpipe.h"
#include "qemu/error-report.h"
#include "qemu/lockable.h"
#include "qemu/main-loop.h"
#include "system/hotpath-stats.h"
#include "system/memory.h"
#include "system/runstate.h"
#include "trace.h"
#include "char-zpipe-internal.h"

/* A block of RAM that the peer may read. */
typedef struct SharedBlock {
    void *host;
    size_t size;
    int region;                 /* of the present handle; < 0: not shared */
    bool fresh;                 /* it is yet to be shared */
    QLIST_ENTRY(SharedBlock) next;
} SharedBlock;

struct ZpipeVM {
    ZpipeChardev *s;
    VMChangeStateEntry *vmstate;
    NotifierWithReturn migration, postcopy;
    RAMBlockNotifier ram;
    QEMUBH *share;              /* NULL: share-ram=off */
    QLIST_HEAD(, SharedBlock) blocks;
    bool discard_disabled, warned;
    Error *cpr_blocker;
};

/* ------------------------------------------------------------- guest RAM */

/* Returns 0 or a negative errno value; ENXIO: not memory to be shared. */
static int block_share(ZpipeVM *vm, SharedBlock *block)
{
    ram_addr_t offset;
    RAMBlock *rb;
    int fd;

    RCU_READ_LOCK_GUARD();
    rb = qemu_ram_block_from_host(block->host, false, &offset);
    if (!rb || !qemu_ram_is_shared(rb)) {
        return -ENXIO;
    }
    fd = qemu_ram_get_fd(rb);
    if (fd < 0) {
        return -ENXIO;
    }

    QEMU_LOCK_GUARD(&vm->s->lock);
    block->region = zpipe_region_add(vm->s->zp, fd,
                                     qemu_ram_get_fd_offset(rb) + offset,
                                     block->host, block->size);
    if (block->region < 0) {
        vm->s->totals.ram_refused++;
        return block->region;
    }
    return 0;
}

static void share_fresh(void *opaque)
{
    ZpipeVM *vm = opaque;
    SharedBlock *block, *next;
    int ret;

    QLIST_FOREACH_SAFE(block, &vm->blocks, next, next) {
        if (!block->fresh) {
            continue;
        }
        block->fresh = false;
        ret = block_share(vm, block);
        trace_zpipe_vm_ram_add(CHARDEV(vm->s)->label, block->host, block->size,
                               ret);
        if (ret < 0) {
            QLIST_REMOVE(block, next);
            g_free(block);
        } else {
            zpipe_chr_kick(vm->s);
        }
    }
}

/*
 * A backend seals its memory against writing after this, since it has to map
 * it before; and what is not sealed is shown to fewer peers.  So look later.
 */
static void block_add(RAMBlockNotifier *n, void *host, size_t size,
                      size_t max_size)
{
    ZpipeVM *vm = container_of(n, ZpipeVM, ram);
    SharedBlock *block = g_new0(SharedBlock, 1);

    block->host = host;
    block->size = size;
    block->region = -1;
    block->fresh = true;
    QLIST_INSERT_HEAD(&vm->blocks, block, next);
    qemu_bh_schedule(vm->share);
}

static void block_drop(ZpipeVM *vm, SharedBlock *block)
{
    trace_zpipe_vm_ram_del(CHARDEV(vm->s)->label, block->host, block->size);
    if (block->region >= 0) {
        WITH_QEMU_LOCK_GUARD(&vm->s->lock) {
            zpipe_region_del(vm->s->zp, block->region);
        }
        zpipe_chr_kick(vm->s);
    }
    QLIST_REMOVE(block, next);
    g_free(block);
}

static void block_find_and_drop(ZpipeVM *vm, void *host)
{
    SharedBlock *block;

    QLIST_FOREACH(block, &vm->blocks, next) {
        if (block->host == host) {
            block_drop(vm, block);
            return;
        }
    }
}

static void block_remove(RAMBlockNotifier *n, void *host, size_t size,
                         size_t max_size)
{
    block_find_and_drop(container_of(n, ZpipeVM, ram), host);
}

static void block_resized(RAMBlockNotifier *n, void *host, size_t old_size,
                          size_t new_size)
{
    block_find_and_drop(container_of(n, ZpipeVM, ram), host);
}

void zpipe_vm_new_handle(ZpipeChardev *s)
{
    SharedBlock *block;

    QLIST_FOREACH(block, &s->vm->blocks, next) {
        if (!block->fresh && block_share(s->vm, block) < 0) {
            block->region = -1;
        }
    }
}

static int postcopy_notify_cb(NotifierWithReturn *n, void *opaque, Error **errp)
{
    ZpipeVM *vm = container_of(n, ZpipeVM, postcopy);
    struct PostcopyNotifyData *data = opaque;

    if (data->reason == POSTCOPY_NOTIFY_PROBE) {
        error_setg(errp, "chardev %s: share-ram=on does not work with postcopy",
                   CHARDEV(vm->s)->label);
        return -ENOENT;
    }
    return 0;
}

/*
 * Pages are missing, or will be, and a peer would find zeros in their place,
 * which then stay there.  A chardev that is there earlier is asked above.
 * A migration that was only announced to be postcopy may end without it.
 */
static bool pages_missing(void)
{
    PostcopyState state = postcopy_state_get();

    if (state == POSTCOPY_INCOMING_ADVISE) {
        return runstate_check(RUN_STATE_INMIGRATE);
    }
    return state != POSTCOPY_INCOMING_NONE && state != POSTCOPY_INCOMING_END;
}

static bool share_ram(ZpipeVM *vm, Error **errp)
{
    if (pages_missing()) {
        error_setg(errp, "zpipe: share-ram=on does not work before an "
                   "incoming postcopy migration is complete");
        return false;
    }
    if (ram_block_discard_disable(true) < 0) {
        error_setg(errp, "zpipe: share-ram=on does not work with devices that "
                   "discard guest RAM, such as virtio-mem");
        return false;
    }
    vm->discard_disabled = true;

    vm->share = qemu_bh_new(share_fresh, vm);
    vm->ram.ram_block_added = block_add;
    vm->ram.ram_block_removed = block_remove;
    vm->ram.ram_block_resized = block_resized;
    ram_block_notifier_add(&vm->ram);

    vm->postcopy.notify = postcopy_notify_cb;
    postcopy_add_notifier(&vm->postcopy);
    return true;
}

/* ------------------------------------------------------- state of the VM */

bool zpipe_vm_is_stopped(void)
{
    return !runstate_is_running();
}

static void vm_changed(void *opaque, bool running, RunState state)
{
    ZpipeVM *vm = opaque;
    ZpipeChardev *s = vm->s;

    if (!running) {
        return;
    }
    share_fresh(vm);
    if (s->share_ram && QLIST_EMPTY(&vm->blocks) && !vm->warned) {
        vm->warned = true;
        warn_report("chardev %s: share-ram=on, but the VM has no RAM to share;"
                    " use memory-backend-memfd with share=on",
                    CHARDEV(s)->label);
    }
    if (!s->started) {
        zpipe_link_start_late(s);
    }
    zpipe_link_resume(s);
}

/* What connects to a peer does not go over with descriptors. */
static bool block_cpr(ZpipeVM *vm, Error **errp)
{
    error_setg(&vm->cpr_blocker, "chardev %s: a zpipe does not go over to "
               "another QEMU by cpr-transfer or cpr-exec",
               CHARDEV(vm->s)->label);
    return migrate_add_blocker_modes(&vm->cpr_blocker,
                                     BIT(MIG_MODE_CPR_TRANSFER) |
                                     BIT(MIG_MODE_CPR_EXEC), errp) == 0;
}

/*
 * There can be no new blocker while a migration runs.  One of a mode that is
 * not to be blocked need not be waited for: block_cpr() follows at its end.
 */
static bool may_block_later(void)
{
    /* at the start there is no mode yet */
    return migration_is_running() &&
        (migrate_mode() == MIG_MODE_NORMAL ||
         migrate_mode() == MIG_MODE_CPR_REBOOT);
}

static int migration_cb(NotifierWithReturn *n, MigrationEvent *e, Error **errp)
{
    ZpipeVM *vm = container_of(n, ZpipeVM, migration);

    if (!vm->cpr_blocker && !migration_is_running()) {
        block_cpr(vm, NULL);
    }
    /* a background snapshot says so, too, of a VM that stays here */
    if (e->type == MIG_EVENT_PRECOPY_DONE && !migrate_background_snapshot()) {
        zpipe_link_stop(vm->s);
    }
    return 0;
}

/* ------------------------------------------------------------ statistics */

enum {
    STAT_KICKS, STAT_KICKS_SAVED, STAT_CONNECTS, STAT_RESUMED, STAT_CLOSED,
    STAT_LOST_BYTES, STAT_REFUSED_CLIENTS, STAT_CANCELLED, STAT_REGIONS,
    STAT_DROPPED_BYTES, STAT_RAM_REFUSED, STAT_PEER_REGIONS,
    STAT_REFUSED_REGIONS,
    STAT_CMA_ERRORS, STAT_COPIED, STAT_YIELDS, STAT_CONSOLE_DROPPED,
    STAT_OTHERS
};

static const HotpathStat other_stats[STAT_OTHERS] = {
    [STAT_KICKS] = { "zpipe-kicks", STATS_TYPE_CUMULATIVE },
    [STAT_KICKS_SAVED] = { "zpipe-kicks-saved", STATS_TYPE_CUMULATIVE },
    [STAT_CONNECTS] = { "zpipe-connects", STATS_TYPE_CUMULATIVE },
    [STAT_RESUMED] = { "zpipe-reconnects", STATS_TYPE_CUMULATIVE },
    [STAT_CLOSED] = { "zpipe-closed", STATS_TYPE_CUMULATIVE },
    [STAT_LOST_BYTES] = { "zpipe-lost-bytes", STATS_TYPE_CUMULATIVE },
    [STAT_DROPPED_BYTES] = { "zpipe-dropped-bytes", STATS_TYPE_CUMULATIVE },
    [STAT_REFUSED_CLIENTS] = { "zpipe-refused-clients",
                               STATS_TYPE_CUMULATIVE },
    [STAT_CANCELLED] = { "zpipe-cancelled", STATS_TYPE_CUMULATIVE },
    [STAT_REGIONS] = { "zpipe-shared-ram-blocks", STATS_TYPE_INSTANT },
    [STAT_RAM_REFUSED] = { "zpipe-share-ram-refused", STATS_TYPE_CUMULATIVE },
    [STAT_PEER_REGIONS] = { "zpipe-peer-regions", STATS_TYPE_INSTANT },
    [STAT_REFUSED_REGIONS] = { "zpipe-peer-regions-refused",
                               STATS_TYPE_CUMULATIVE },
    [STAT_CMA_ERRORS] = { "zpipe-cma-errors", STATS_TYPE_CUMULATIVE },
    [STAT_COPIED] = { "zpipe-copied-bytes", STATS_TYPE_CUMULATIVE },
    [STAT_YIELDS] = { "zpipe-yields", STATS_TYPE_CUMULATIVE },
    [STAT_CONSOLE_DROPPED] = { "zpipe-console-dropped-bytes",
                               STATS_TYPE_CUMULATIVE },
};

/* Two directions, messages and bytes; auto and dma are not counted. */
#define STAT_MECHANISMS (4 * (ZPIPE_DMA - ZPIPE_INLINE))
#define STAT_ASYNC (CHAR_ASYNC_REFUSALS - 1)
#define STATS_MAX (STAT_MECHANISMS + ZPIPE_REASONS + STAT_ASYNC + STAT_OTHERS)

static uint64_t *put_counts(uint64_t *v, const struct zpipe_count *counts)
{
    for (int m = ZPIPE_INLINE; m < ZPIPE_DMA; m++) {
        *v++ = counts[m].messages;
        *v++ = counts[m].bytes;
    }
    return v;
}

static void put_others(uint64_t *v, const ZpipeTotals *t)
{
    v[STAT_KICKS] = t->lib.kicks;
    v[STAT_KICKS_SAVED] = t->lib.kicks_saved;
    v[STAT_CONNECTS] = t->lib.connects;
    v[STAT_RESUMED] = t->lib.resumed;
    v[STAT_CLOSED] = t->closed;
    v[STAT_LOST_BYTES] = t->lost_bytes + char_async_counters.lost_bytes;
    v[STAT_DROPPED_BYTES] = t->dropped_bytes;
    v[STAT_REFUSED_CLIENTS] = t->refused_clients;
    v[STAT_CANCELLED] = t->cancelled;
    v[STAT_REGIONS] = t->lib.regions;
    v[STAT_RAM_REFUSED] = t->ram_refused;
    v[STAT_PEER_REGIONS] = t->lib.peer_regions;
    v[STAT_REFUSED_REGIONS] = t->lib.refused_regions;
    v[STAT_CMA_ERRORS] = t->lib.cma_errors;
    v[STAT_COPIED] = t->lib.copied;
    v[STAT_YIELDS] = t->yields;
    v[STAT_CONSOLE_DROPPED] = char_async_counters.console_dropped_bytes;
}

static bool stats_read(CPUState *cpu, uint64_t *values)
{
    ZpipeTotals totals;
    uint64_t *v = values;

    zpipe_totals_all(&totals);
    v = put_counts(v, totals.lib.tx);
    v = put_counts(v, totals.lib.rx);
    for (int i = 0; i < ZPIPE_REASONS; i++) {
        *v++ = totals.lib.fallback[i];
    }
    for (int i = CHAR_ASYNC_OK + 1; i < CHAR_ASYNC_REFUSALS; i++) {
        *v++ = char_async_counters.refused[i];
    }
    put_others(v, &totals);
    return true;
}

static HotpathStat *name_stat(HotpathStat *stat, char *name)
{
    stat->name = name;
    stat->type = STATS_TYPE_CUMULATIVE;
    return stat + 1;
}

static HotpathStat *name_counts(HotpathStat *stat, const char *direction)
{
    for (int m = ZPIPE_INLINE; m < ZPIPE_DMA; m++) {
        const char *name = zpipe_mechanism_name(m);

        stat = name_stat(stat, g_strdup_printf("zpipe-%s-%s-messages",
                                               direction, name));
        stat = name_stat(stat, g_strdup_printf("zpipe-%s-%s-bytes",
                                               direction, name));
    }
    return stat;
}

static void stats_register(void)
{
    static HotpathStat stats[STATS_MAX];
    static const HotpathStatsGroup group = {
        .target = STATS_TARGET_VM,
        .stats = stats,
        .count = STATS_MAX,
        .read = stats_read,
    };
    HotpathStat *stat = stats;

    if (stats[0].name) {
        return;
    }
    stat = name_counts(stat, "tx");
    stat = name_counts(stat, "rx");
    for (int i = 0; i < ZPIPE_REASONS; i++) {
        stat = name_stat(stat, g_strdup_printf("zpipe-fallback-%s",
                                               zpipe_reason_name(i)));
    }
    for (int i = CHAR_ASYNC_OK + 1; i < CHAR_ASYNC_REFUSALS; i++) {
        stat = name_stat(stat, g_strdup_printf("zpipe-async-refused-%s",
                                               char_async_refusal_name(i)));
    }
    memcpy(stat, other_stats, sizeof(other_stats));
    hotpath_stats_register(&group);
}

/* ------------------------------------------------------------------------ */

bool zpipe_vm_attach(ZpipeChardev *s, bool share, Error **errp)
{
    ZpipeVM *vm = s->vm = g_new0(ZpipeVM, 1);

    vm->s = s;
    QLIST_INIT(&vm->blocks);
    stats_register();
    vm->vmstate = qemu_add_vm_change_state_handler(vm_changed, vm);
    /* the mode may be changed while a migration runs, and picks who is told */
    migration_add_notifier_modes(&vm->migration, migration_cb,
                                 BIT(MIG_MODE_NORMAL) |
                                 BIT(MIG_MODE_CPR_REBOOT) |
                                 BIT(MIG_MODE_CPR_TRANSFER) |
                                 BIT(MIG_MODE_CPR_EXEC));
    if (!may_block_later() && !block_cpr(vm, errp)) {
        return false;
    }
    return !share || share_ram(vm, errp);
}

void zpipe_vm_detach(ZpipeChardev *s)
{
    ZpipeVM *vm = s->vm;
    SharedBlock *block, *next;

    if (!vm) {
        return;
    }
    if (vm->discard_disabled) {
        postcopy_remove_notifier(&vm->postcopy);
        ram_block_notifier_remove(&vm->ram);
        qemu_bh_delete(vm->share);
        QLIST_FOREACH_SAFE(block, &vm->blocks, next, next) {
            block_drop(vm, block);
        }
        ram_block_discard_disable(false);
    }
    migrate_del_blocker(&vm->cpr_blocker);
    migration_remove_notifier(&vm->migration);
    qemu_del_vm_change_state_handler(vm->vmstate);
    g_free(vm);
    s->vm = NULL;
}

static void print_info(Monitor *mon, const ZpipeInfo *info)
{
    monitor_printf(mon, "%s: path=%s, %s, %s", info->label, info->path,
                   info->server ? "server" : "client",
                   ZpipeState_str(info->state));
    if (info->has_peer_pid) {
        monitor_printf(mon, ", peer pid %" PRId64 " uid %" PRId64 ", rings %"
                       PRIu64 " and %" PRIu64 " bytes, cma read %s, write %s",
                       info->peer_pid, info->peer_uid, info->ring_size,
                       info->peer_ring_size,
                       info->cma_read ? "yes" : "no",
                       info->cma_write ? "yes" : "no");
    }
    if (info->has_withheld_regions && info->withheld_regions) {
        monitor_printf(mon, "\n  RAM blocks not shown, the peer could write "
                       "them: %" PRIu64, info->withheld_regions);
    }
    monitor_printf(mon, "\n  connects %" PRIu64 ", lost bytes %" PRIu64
                   ", dropped bytes %" PRIu64
                   ", requests tx %" PRIu64 " rx %" PRIu64
                   ", RAM blocks %" PRIu64 ", peer's regions %" PRIu64 "\n",
                   info->connects, info->lost_bytes, info->dropped_bytes,
                   info->tx_requests,
                   info->rx_requests, info->regions, info->peer_regions);
    for (ZpipeCountList *c = info->counts; c; c = c->next) {
        monitor_printf(mon, "  %-8s tx %10" PRIu64 " messages %14" PRIu64
                       " bytes, rx %10" PRIu64 " messages %14" PRIu64
                       " bytes\n", ZpipeMechanism_str(c->value->mechanism),
                       c->value->tx_messages, c->value->tx_bytes,
                       c->value->rx_messages, c->value->rx_bytes);
    }
    for (ZpipeFallbackList *f = info->fallbacks; f; f = f->next) {
        if (f->value->count) {
            monitor_printf(mon, "  not better: %s %" PRIu64 "\n",
                           f->value->reason, f->value->count);
        }
    }
    if (info->error) {
        monitor_printf(mon, "  last error: %s\n", info->error);
    }
}

void hmp_info_zpipe(Monitor *mon, const QDict *qdict)
{
    ZpipeInfoList *list = qmp_query_zpipe(NULL);

    for (ZpipeInfoList *l = list; l; l = l->next) {
        print_info(mon, l->value);
    }
    qapi_free_ZpipeInfoList(list);
}

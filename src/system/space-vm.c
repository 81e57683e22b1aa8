/*
 * Growth of storage: the virtual machine's run state, and its migration
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A request that was resolved leaves a credit.  The VM is resumed when there
 * is a credit, the run state is exactly io-error, nobody has said "stop", no
 * request keeps it stopped, and no disk has an error that a guard does not
 * know of, nor what is no disk.  This is looked at whenever one of them
 * changes, so the order does not matter: the error that stops a VM is known
 * before it has stopped, and an answer may come in between.
 *
 * Everything runs in the main thread under the BQL unless it says otherwise.
 */

#include "qemu/osdep.h"
#include "block/space-guard.h"
#include "block/space-request.h"
#include "migration/vmstate.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-misc.h"
#include "qemu/cutils.h"
#include "qemu/error-report.h"
#include "qemu/main-loop.h"
#include "system/block-backend.h"
#include "system/dump.h"
#include "system/hotpath-stats.h"
#include "system/ondemand-region.h"
#include "system/runstate.h"
#include "trace.h"

/*
 * How long after an answer a stop can still be on its way: behind an image's
 * lock, or in a thread that gets no time
 */
#define CREDIT_MS 60000
#define LOOK_AGAIN_MS 20

#define MAX_SAVED 256
#define MAX_PATH_BYTES 512

/* A request in the migration stream */
typedef struct SpaceVmEntry {
    uint8_t qom_path[MAX_PATH_BYTES];
    uint32_t index;
    uint8_t cause;
    bool denied;
    bool stopped;
    uint32_t attempt;
    uint64_t offset, bytes, needed;
} SpaceVmEntry;

typedef struct SpaceVm {
    bool initialized;
    bool user_stopped;
    bool error_stopped;           /* by an I/O error; not run since */
    unsigned window_errors;       /* so many were dealt with */
    bool credit;
    int64_t credit_ms;
    QEMUTimer *look_timer;

    /* migration */
    int32_t n_entries;
    SpaceVmEntry *entries;
    bool saved_user_stopped;
    bool saved_credit;
    QEMUTimer *restore_timer;
} SpaceVm;

static SpaceVm vm;

/*
 * Resume
 */

/* Whether a disk has an error that no guard knows of, or what is no disk */
static bool other_error(void)
{
    BlockBackend *blk = NULL;

    if (ondemand_region_stops() != vm.window_errors) {
        return true;
    }
    while ((blk = blk_all_next(blk))) {
        switch (blk_iostatus(blk)) {
        case BLOCK_DEVICE_IO_STATUS_OK:
            break;
        case BLOCK_DEVICE_IO_STATUS_NOSPACE:
            if (space_guard_below(blk)) {
                break;
            }
            /* fall through */
        default:
            return true;
        }
    }
    return false;
}

static void look_again(void)
{
    timer_mod(vm.look_timer,
              qemu_clock_get_ms(QEMU_CLOCK_REALTIME) + LOOK_AGAIN_MS);
}

static void resume(void)
{
    Error *err = NULL;

    trace_space_vm_resume();
    vm.credit = false;
    qmp_cont(&err);
    if (err) {
        warn_reportf_err(err, "Storage has grown, but: ");
        return;
    }
    space_requests_count(SPACE_STAT_RESUMED);
}

/*
 * What keeps the VM stopped: requests of disks that could not write, and a
 * flush that failed below any disk, as one does when the VM stops.  What a job
 * has failed elsewhere does not, nor what was cancelled.  Returns whether a
 * disk could not write.
 */
static bool note_stopped(void)
{
    BlockBackend *blk = NULL;
    bool found = false;

    while ((blk = blk_all_next(blk))) {
        if (blk_iostatus(blk) == BLOCK_DEVICE_IO_STATUS_NOSPACE) {
            space_guard_foreach_below(blk, space_requests_vm_stopped);
            found = true;
        } else if (blk_get_attached_dev(blk)) {
            space_guard_foreach_below(blk, space_requests_vm_has);
        }
    }
    return found;
}

static void look(void)
{
    if (!vm.credit) {
        return;
    }
    switch (runstate_get()) {
    case RUN_STATE_IO_ERROR:
        note_stopped();
        if (vm.user_stopped || space_requests_block_resume() ||
            other_error()) {
            trace_space_vm_stays(vm.user_stopped,
                                 space_requests_block_resume());
            break;                /* until one of them changes */
        }
        if (qemu_system_dump_in_progress()) {
            look_again();
            break;
        }
        resume();
        break;
    case RUN_STATE_RUNNING:
    case RUN_STATE_SUSPENDED:
        break;                    /* until it stops */
    case RUN_STATE_FINISH_MIGRATE:
    case RUN_STATE_SAVE_VM:
    case RUN_STATE_INMIGRATE:
    case RUN_STATE_RESTORE_VM:
        /* these end without telling anybody */
        look_again();
        break;
    default:
        vm.credit = false;
        break;
    }
}

static void look_cb(void *opaque)
{
    look();
}

static void resolved_bh(void *opaque)
{
    vm.credit = true;
    vm.credit_ms = qemu_clock_get_ms(QEMU_CLOCK_REALTIME);
    look();
}

void space_vm_resolved(void)
{
    /* not in a nested event loop, which a part of the VM may wait in */
    aio_bh_schedule_oneshot(iohandler_get_aio_context(), resolved_bh, NULL);
}

static void look_bh(void *opaque)
{
    look();
}

static void vm_state_changed(void *opaque, bool running, RunState state)
{
    vm.error_stopped = state == RUN_STATE_IO_ERROR;
    if (running) {
        /* whatever was said before: a migration that fails resumes it, too */
        vm.user_stopped = false;
        vm.window_errors = ondemand_region_stops();
        space_requests_vm_runs();
    } else if (vm.error_stopped) {
        /* an old answer is none to what else may have stopped it */
        vm.credit &= note_stopped() &&
                     qemu_clock_get_ms(QEMU_CLOCK_REALTIME) - vm.credit_ms <
                     CREDIT_MS;
        if (vm.credit) {
            /* the other handlers and the drain come first */
            aio_bh_schedule_oneshot(iohandler_get_aio_context(), look_bh, NULL);
        }
    }
}

void space_vm_user_stop(void)
{
    vm.user_stopped = true;
}

void space_vm_user_cont(void)
{
    BlockBackend *blk = NULL;

    vm.user_stopped = false;
    vm.window_errors = ondemand_region_stops();
    vm.credit = false;
    space_requests_user_cont();
    if (vm.initialized) {
        /* "cont" leaves out those that have no name, as with -blockdev */
        while ((blk = blk_all_next(blk))) {
            blk_iostatus_reset(blk);
        }
    }
}

bool space_vm_is_running(void)
{
    return runstate_is_running();
}

/*
 * Migration
 */

/* An answer that came when the VM was about to go: it runs where it goes */
static bool vm_credit_needed(void *opaque)
{
    return vm.credit && vm.error_stopped && !vm.user_stopped &&
           !space_requests_block_resume() && !other_error();
}

static bool vm_needed(void *opaque)
{
    return space_requests_any() || vm_credit_needed(opaque);
}

static int vm_pre_save(void *opaque)
{
    SpaceVm *s = opaque;
    g_autoptr(GPtrArray) saved = space_requests_save(MAX_SAVED);

    s->n_entries = 0;
    g_free(s->entries);
    s->entries = g_new0(SpaceVmEntry, saved->len);
    /* other errors do not come along: somebody has to look after them */
    s->saved_user_stopped = s->user_stopped ||
                            (s->error_stopped && other_error());
    for (unsigned i = 0; i < saved->len; i++) {
        const SpaceSaved *from = g_ptr_array_index(saved, i);
        SpaceVmEntry *to = &s->entries[s->n_entries];

        if (strlen(from->qom_path) >= sizeof(to->qom_path)) {
            warn_report("Request for storage of '%s' is not migrated: the "
                        "name is too long", from->qom_path);
            continue;
        }
        pstrcpy((char *)to->qom_path, sizeof(to->qom_path), from->qom_path);
        to->index = from->index;
        to->cause = from->cause;
        to->denied = from->denied;
        to->stopped = from->stopped;
        to->attempt = from->attempt;
        to->offset = from->offset;
        to->bytes = from->bytes;
        to->needed = from->needed;
        s->n_entries++;
    }
    return 0;
}

static int vm_pre_load(void *opaque)
{
    SpaceVm *s = opaque;

    g_free(s->entries);
    s->entries = NULL;
    s->n_entries = 0;
    s->saved_credit = false;
    return 0;
}

static int vm_credit_pre_save(void *opaque)
{
    SpaceVm *s = opaque;

    s->saved_credit = true;
    return 0;
}

static bool is_sane(const SpaceVmEntry *e)
{
    return memchr(e->qom_path, 0, sizeof(e->qom_path)) &&
           e->cause < BLOCK_SPACE_CAUSE__MAX && e->attempt &&
           e->offset <= INT64_MAX / 2 && e->bytes <= INT64_MAX / 2;
}

static int vm_post_load(void *opaque, int version_id)
{
    SpaceVm *s = opaque;

    for (int i = 0; i < s->n_entries; i++) {
        if (!is_sane(&s->entries[i])) {
            error_report("Request for storage %d in the migration stream is "
                         "not valid", i);
            return -EINVAL;
        }
    }
    /* or somebody has said so here, before it came */
    s->user_stopped |= s->saved_user_stopped;
    timer_mod(s->restore_timer, qemu_clock_get_ms(QEMU_CLOCK_REALTIME));
    return 0;
}

/*
 * The source may still fail to hand over, and would then go on with its own
 * requests; so wait until the state of the VM is that of a VM which is here.
 */
static void restore_cb(void *opaque)
{
    SpaceVm *s = opaque;

    if (runstate_check(RUN_STATE_INMIGRATE) ||
        runstate_check(RUN_STATE_RESTORE_VM)) {
        timer_mod(s->restore_timer,
                  qemu_clock_get_ms(QEMU_CLOCK_REALTIME) + LOOK_AGAIN_MS);
        return;
    }
    for (int i = 0; i < s->n_entries; i++) {
        const SpaceVmEntry *e = &s->entries[i];
        SpaceSaved saved = {
            .cause = e->cause,
            .denied = e->denied,
            .stopped = e->stopped && !runstate_is_running(),
            .attempt = e->attempt,
            .offset = e->offset,
            .bytes = e->bytes,
            .needed = e->needed,
        };
        SpaceGuard *g = space_guard_of_device((const char *)e->qom_path,
                                              e->index);

        if (!g) {
            warn_report("Request for storage of '%s' is lost: the device has "
                        "no space-guard here", e->qom_path);
            continue;
        }
        space_request_restore(g, &saved);
    }
    s->error_stopped = runstate_check(RUN_STATE_IO_ERROR);
    if (s->saved_credit) {
        space_vm_resolved();
    }
    vm_pre_load(s);
}

static bool vm_count_is_valid(void *opaque, int version_id)
{
    SpaceVm *s = opaque;

    return s->n_entries >= 0 && s->n_entries <= MAX_SAVED;
}

static const VMStateDescription vmstate_space_entry = {
    .name = "space-guard/request",
    .version_id = 1,
    .minimum_version_id = 1,
    .fields = (const VMStateField[]) {
        VMSTATE_UINT8_ARRAY(qom_path, SpaceVmEntry, MAX_PATH_BYTES),
        VMSTATE_UINT32(index, SpaceVmEntry),
        VMSTATE_UINT8(cause, SpaceVmEntry),
        VMSTATE_BOOL(denied, SpaceVmEntry),
        VMSTATE_BOOL(stopped, SpaceVmEntry),
        VMSTATE_UINT32(attempt, SpaceVmEntry),
        VMSTATE_UINT64(offset, SpaceVmEntry),
        VMSTATE_UINT64(bytes, SpaceVmEntry),
        VMSTATE_UINT64(needed, SpaceVmEntry),
        VMSTATE_END_OF_LIST()
    },
};

static const VMStateDescription vmstate_space_credit = {
    .name = "space-guard/credit",
    .version_id = 1,
    .minimum_version_id = 1,
    .needed = vm_credit_needed,
    .pre_save = vm_credit_pre_save,
    .fields = (const VMStateField[]) {
        VMSTATE_BOOL(saved_credit, SpaceVm),
        VMSTATE_END_OF_LIST()
    },
};

static const VMStateDescription vmstate_space_vm = {
    .name = "space-guard",
    .version_id = 1,
    .minimum_version_id = 1,
    .needed = vm_needed,
    .pre_save = vm_pre_save,
    .pre_load = vm_pre_load,
    .post_load = vm_post_load,
    .fields = (const VMStateField[]) {
        VMSTATE_BOOL(saved_user_stopped, SpaceVm),
        VMSTATE_INT32(n_entries, SpaceVm),
        VMSTATE_VALIDATE("number of requests", vm_count_is_valid),
        VMSTATE_STRUCT_VARRAY_ALLOC(entries, SpaceVm, n_entries, 1,
                                    vmstate_space_entry, SpaceVmEntry),
        VMSTATE_END_OF_LIST()
    },
    .subsections = (const VMStateDescription * const []) {
        &vmstate_space_credit,
        NULL
    }
};

/*
 * Statistics
 */

/* In the order of enum SpaceStat */
static const HotpathStat stat_names[] = {
    { "storage-requests", STATS_TYPE_CUMULATIVE },
    { "storage-low-water", STATS_TYPE_CUMULATIVE },
    { "storage-held", STATS_TYPE_CUMULATIVE },
    { "storage-expired", STATS_TYPE_CUMULATIVE },
    { "storage-drained", STATS_TYPE_CUMULATIVE },
    { "storage-failed", STATS_TYPE_CUMULATIVE },
    { "storage-flush-failed", STATS_TYPE_CUMULATIVE },
    { "storage-retried-room", STATS_TYPE_CUMULATIVE },
    { "storage-grown", STATS_TYPE_CUMULATIVE },
    { "storage-not-grown", STATS_TYPE_CUMULATIVE },
    { "storage-probed", STATS_TYPE_CUMULATIVE },
    { "storage-denied", STATS_TYPE_CUMULATIVE },
    { "storage-recovered", STATS_TYPE_CUMULATIVE },
    { "storage-resumed", STATS_TYPE_CUMULATIVE },
};

QEMU_BUILD_BUG_ON(ARRAY_SIZE(stat_names) != SPACE_STAT__MAX);

static bool read_stats(CPUState *cpu, uint64_t *values)
{
    space_requests_stats(values);
    return true;
}

static const HotpathStatsGroup stats_group = {
    .target = STATS_TARGET_VM,
    .stats = stat_names,
    .count = ARRAY_SIZE(stat_names),
    .read = read_stats,
};

void space_vm_init(void)
{
    if (vm.initialized) {
        return;
    }
    vm.initialized = true;
    vm.look_timer = timer_new_ms(QEMU_CLOCK_REALTIME, look_cb, NULL);
    vm.restore_timer = timer_new_ms(QEMU_CLOCK_REALTIME, restore_cb, &vm);
    qemu_add_vm_change_state_handler(vm_state_changed, NULL);
    vmstate_register_any(NULL, &vmstate_space_vm, &vm);
    hotpath_stats_register(&stats_group);
}

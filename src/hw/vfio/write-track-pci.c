/*
 * Write tracking of assigned PCI devices by a walker
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * While a migration runs, the pages of BAR 0 that hold the registers of rings
 * are covered by windows that trap: the walker is told of a write, then the
 * device gets it.  At all other times the windows are disabled, and the guest
 * reaches the device as if they were not there.
 *
 * The windows are quirks (pci-quirks.c) as far as life time is concerned.
 */

#include "qemu/osdep.h"
#include "qemu/error-report.h"
#include "qemu/units.h"
#include "qapi/error.h"
#include "hw/pci/pci.h"
#include "hw/vfio/vfio-container.h"
#include "migration/misc.h"
#include "migration/client-options.h"
#include "system/address-spaces.h"
#include "system/dma.h"
#include "system/runstate.h"
#include "trace.h"
#include "vfio-migration-internal.h"
#include "write-track-pci.h"
#include "write-walk.h"

#define MAX_TRAPS           8
#define PENDING_MS          1000    /* for transactions to end */

typedef struct PCITracker PCITracker;

typedef struct Trap {
    PCITracker *pt;
    uint32_t offset;                /* of the window in BAR 0 */
} Trap;

struct PCITracker {
    WriteTracker tracker;
    VFIOPCIDevice *vdev;
    WriteWalk *walk;
    VFIOQuirk *windows;
    Trap traps[MAX_TRAPS];
    unsigned nr_traps;
    bool armed;
    bool quiet;                     /* no bus mastering, and all is marked */
    bool by_ports;                  /* registers may differ from those read */
    NotifierWithReturn migration;
    WriteTrackQuiesce quiesce;
};

/* ---------------------------------------------- what the walker reaches by */

static bool read_reg(void *opaque, uint32_t reg, uint32_t *val)
{
    PCITracker *pt = opaque;
    VFIODevice *vbasedev = &pt->vdev->vbasedev;
    uint32_t data;

    if (reg + sizeof(data) > pt->vdev->bars[0].region.size ||
        vbasedev->io_ops->region_read(vbasedev, 0, reg, sizeof(data), &data) !=
        sizeof(data)) {
        return false;
    }
    *val = le32_to_cpu(data);
    return true;
}

static uint16_t command(VFIOPCIDevice *vdev)
{
    return pci_get_word(PCI_DEVICE(vdev)->config + PCI_COMMAND);
}

/* Do I/O ports, which do not trap, lead to the registers now? */
static bool has_ports(VFIOPCIDevice *vdev)
{
    bool ports = false;

    for (int i = 0; i < PCI_ROM_SLOT; i++) {
        ports |= vdev->bars[i].ioport;
    }
    return ports && command(vdev) & PCI_COMMAND_IO;
}

static bool answers(VFIOPCIDevice *vdev)
{
    PCIDevice *pdev = PCI_DEVICE(vdev);
    bool sleeps = (pdev->cap_present & QEMU_PCI_CAP_PM) &&
                  pci_get_word(pdev->config + pdev->pm_cap + PCI_PM_CTRL) &
                  PCI_PM_CTRL_STATE_MASK;

    return !sleeps && command(vdev) & PCI_COMMAND_MEMORY;
}

static bool decodes(void *opaque)
{
    PCITracker *pt = opaque;

    return pt->by_ports || answers(pt->vdev);
}

static bool read_mem(void *opaque, uint64_t addr, void *buf, uint32_t len)
{
    /* a ring in a device's registers is nothing that a driver would set up */
    MemTxAttrs attrs = { .memory = true };

    return address_space_read(&address_space_memory, addr, attrs, buf, len) ==
           MEMTX_OK;
}

static void mark(void *opaque, uint64_t addr, uint64_t len, WriteWalkKind kind)
{
    PCITracker *pt = opaque;

    write_track_mark(&pt->tracker, addr, len);
}

static void mark_all(void *opaque, const char *why)
{
    PCITracker *pt = opaque;

    write_track_mark_all(&pt->tracker, why);
}

static const WriteWalkIO walk_io = {
    .read_reg = read_reg,
    .decodes = decodes,
    .read_mem = read_mem,
    .mark = mark,
    .mark_all = mark_all,
};

/* ---------------------------------------------------------------- the traps */

static uint64_t trap_read(void *opaque, hwaddr addr, unsigned size)
{
    Trap *trap = opaque;

    trap->pt->tracker.round.traps++;
    return vfio_region_read(&trap->pt->vdev->bars[0].region,
                            trap->offset + addr, size);
}

static void trap_write(void *opaque, hwaddr addr, uint64_t data, unsigned size)
{
    Trap *trap = opaque;
    PCITracker *pt = trap->pt;

    pt->tracker.round.traps++;
    if (pt->armed) {
        write_walk_write(pt->walk, trap->offset + addr, data, size);
    }
    vfio_region_write(&pt->vdev->bars[0].region, trap->offset + addr, data,
                      size);
}

static const MemoryRegionOps trap_ops = {
    .read = trap_read,
    .write = trap_write,
    .endianness = DEVICE_LITTLE_ENDIAN,
    .valid = { .min_access_size = 1, .max_access_size = 8 },
    .impl = { .min_access_size = 1, .max_access_size = 8 },
};

static void find_traps(PCITracker *pt)
{
    uint64_t size = pt->vdev->bars[0].region.size;

    for (uint64_t at = 0; at < MIN(size, 128 * KiB); at += WRITE_WALK_PAGE) {
        if (write_walk_traps(pt->walk, at)) {
            assert(pt->nr_traps < MAX_TRAPS);
            pt->traps[pt->nr_traps++] = (Trap) { pt, at };
        }
    }
}

static void add_windows(PCITracker *pt)
{
    VFIOBAR *bar = &pt->vdev->bars[0];

    pt->windows = vfio_quirk_alloc(pt->nr_traps);
    pt->windows->data = pt;
    for (unsigned i = 0; i < pt->nr_traps; i++) {
        MemoryRegion *mr = &pt->windows->mem[i];

        memory_region_init_io(mr, OBJECT(pt->vdev), &trap_ops, &pt->traps[i],
                              "vfio-write-track", WRITE_WALK_PAGE);
        memory_region_set_enabled(mr, false);
        memory_region_add_subregion_overlap(bar->region.mem,
                                            pt->traps[i].offset, mr, 2);
    }
    QLIST_INSERT_HEAD(&bar->quirks, pt->windows, next);
}

static void enable_windows(PCITracker *pt, bool enable)
{
    memory_region_transaction_begin();
    for (unsigned i = 0; i < pt->nr_traps; i++) {
        memory_region_set_enabled(&pt->windows->mem[i], enable);
    }
    memory_region_transaction_commit();
}

/* -------------------------------------------------- the end of a migration */

static bool config_rw(VFIOPCIDevice *vdev, bool write, off_t at, uint16_t *val)
{
    VFIODevice *vbasedev = &vdev->vbasedev;
    uint16_t data = write ? cpu_to_le16(*val) : 0;
    int ret;

    if (write) {
        ret = vbasedev->io_ops->region_write(vbasedev,
                                             VFIO_PCI_CONFIG_REGION_INDEX, at,
                                             sizeof(data), &data, false);
    } else {
        ret = vbasedev->io_ops->region_read(vbasedev,
                                            VFIO_PCI_CONFIG_REGION_INDEX, at,
                                            sizeof(data), &data);
        *val = le16_to_cpu(data);
    }
    return ret == sizeof(data);
}

static bool set_master(VFIOPCIDevice *vdev, bool on)
{
    uint16_t val;

    if (!config_rw(vdev, false, PCI_COMMAND, &val)) {
        return false;
    }
    val = on ? val | PCI_COMMAND_MASTER : val & ~PCI_COMMAND_MASTER;
    return config_rw(vdev, true, PCI_COMMAND, &val);
}

/*
 * Is nothing that the device has begun under way?  A read of its configuration
 * space tells, and pushes the writes ahead that it has posted: the answer to a
 * read does not pass them (PCI Express, ordering rules).  So this has to be the
 * last read, not the first.  Returns: 1 yes, 0 no, -1 not known
 */
static int is_drained(VFIOPCIDevice *vdev)
{
    uint8_t exp = PCI_DEVICE(vdev)->exp.exp_cap;
    uint16_t status;

    if (!config_rw(vdev, false, exp ? exp + PCI_EXP_DEVSTA : PCI_STATUS,
                   &status)) {
        return -1;
    }
    return !(exp && (status & PCI_EXP_DEVSTA_TRPND));
}

static bool wait_drained(VFIOPCIDevice *vdev, Error **errp)
{
    int64_t start = qemu_clock_get_ms(QEMU_CLOCK_REALTIME);
    int drained = is_drained(vdev);

    /* a look may be a message to a server that takes its time */
    while (!drained &&
           qemu_clock_get_ms(QEMU_CLOCK_REALTIME) - start < PENDING_MS) {
        g_usleep(1000);
        drained = is_drained(vdev);
    }
    if (drained > 0) {
        return true;
    }
    trace_write_track_pending(vdev->vbasedev.name);
    if (drained < 0) {
        error_setg(errp, "%s: its status cannot be read, so the device may"
                   " write after the last look", vdev->vbasedev.name);
    } else {
        error_setg(errp, "%s: transactions are pending %d ms after bus"
                   " mastering was cleared, so the device may write after the"
                   " last look", vdev->vbasedev.name, PENDING_MS);
    }
    return false;
}

static bool is_master(VFIOPCIDevice *vdev)
{
    return command(vdev) & PCI_COMMAND_MASTER;
}

/* A device that is not stopped by a migration of its state. */
static bool is_to_be_quiet(WriteTrackQuiesce *q)
{
    return !q->vdev->vbasedev.migration &&
           (q->always || write_track_covers(q->tracker));
}

/* What a guest has begun before it cleared bus mastering counts as well. */
static bool stop_dma(WriteTrackQuiesce *q, Error **errp)
{
    VFIOPCIDevice *vdev = q->vdev;

    if (q->cleared && q->drained) {
        return true;
    }
    if (q->failed) {
        error_setg(errp, "%s: it did not stop writing",
                   vdev->vbasedev.name);
        return false;
    }
    if (!q->cleared && is_master(vdev)) {
        if (!set_master(vdev, false)) {
            error_setg(errp, "%s: bus mastering cannot be cleared, so the"
                       " device may write after the last look",
                       vdev->vbasedev.name);
            return false;
        }
        q->cleared = true;
        trace_write_track_quiesce(vdev->vbasedev.name, q->cleared);
    }
    q->drained = wait_drained(vdev, errp);
    if (q->drained && q->settle) {
        q->settle(vdev);
    }
    q->failed = !q->drained;
    return q->drained;
}

static bool quiesce(WriteTrackQuiesce *q, Error **errp)
{
    return !is_to_be_quiet(q) || stop_dma(q, errp);
}

static void quiesce_or_fail(WriteTrackQuiesce *q)
{
    Error *err = NULL;

    if (!quiesce(q, &err)) {
        migration_file_set_error(-EIO, err);
    }
}

/* If it was reset meanwhile, the guest has to enable it again. */
static void unquiesce(WriteTrackQuiesce *q)
{
    q->failed = false;
    if (q->cleared) {
        q->cleared = q->drained = false;
        if (is_master(q->vdev) && !set_master(q->vdev, true)) {
            error_report("%s: cannot let the device write again after a"
                         " migration that was given up",
                         q->vdev->vbasedev.name);
        }
    }
}

static void quiesce_state_change(void *opaque, bool running, RunState state)
{
    if (running) {
        unquiesce(opaque);
    } else if (state == RUN_STATE_FINISH_MIGRATE) {
        quiesce_or_fail(opaque);
    }
}

/* A VM that is paused, or stopped for a snapshot, does not change its state. */
static int quiesce_precopy(NotifierWithReturn *n, void *opaque, Error **errp)
{
    WriteTrackQuiesce *q = container_of(n, WriteTrackQuiesce, precopy);
    PrecopyNotifyData *data = opaque;

    if (runstate_is_running()) {
        return 0;
    }
    if (data->reason == PRECOPY_NOTIFY_SETUP) {
        q->failed = false;
        return quiesce(q, errp) ? 0 : -EIO;
    }
    if (data->reason == PRECOPY_NOTIFY_COMPLETE) {
        quiesce_or_fail(q);
    }
    return 0;
}

/*
 * A server has mapped memory by itself.  To it a page that has not arrived is
 * one of zeros, and one that a snapshot protects may be written.
 */
static int quiesce_migration(NotifierWithReturn *n, MigrationEvent *event,
                             Error **errp)
{
    WriteTrackQuiesce *q = container_of(n, WriteTrackQuiesce, migration);
    const char *capability = migrate_postcopy_ram() ? "postcopy-ram" :
        migrate_background_snapshot() ? "background-snapshot" : NULL;

    if (event->type != MIG_EVENT_PRECOPY_SETUP || !capability) {
        return 0;
    }
    error_setg(errp, "%s: a vfio-user server does not work with the capability"
               " %s", q->vdev->vbasedev.name, capability);
    return -EINVAL;
}

void write_track_quiesce_init(WriteTrackQuiesce *q, VFIOPCIDevice *vdev,
                              WriteTracker *tracker)
{
    q->vdev = vdev;
    q->tracker = tracker;
    q->cleared = q->drained = q->failed = false;
    q->always = tracker->source->kind == WRITE_TRACKING_SOURCE_VFIO_USER;
    q->handler = qdev_add_vm_change_state_handler(DEVICE(vdev),
                                                  quiesce_state_change, NULL,
                                                  q);
    q->precopy.notify = quiesce_precopy;
    precopy_add_notifier(&q->precopy);
    if (q->always) {
        migration_add_notifier(&q->migration, quiesce_migration);
    }
}

void write_track_quiesce_exit(WriteTrackQuiesce *q)
{
    if (q->handler) {
        qemu_del_vm_change_state_handler(q->handler);
        q->handler = NULL;
        precopy_remove_notifier(&q->precopy);
        if (q->always) {
            migration_remove_notifier(&q->migration);
        }
    }
}

/* -------------------------------------------------------------- the source */

/* A better source makes the walker superfluous. */
static bool is_tracked_otherwise(VFIODevice *vbasedev)
{
    return vbasedev->iommu_dirty_tracking ||
           (vbasedev->migration && vbasedev->dirty_pages_supported &&
            vbasedev->device_dirty_page_tracking != ON_OFF_AUTO_OFF);
}

static void arm(PCITracker *pt)
{
    if (pt->armed || is_tracked_otherwise(&pt->vdev->vbasedev)) {
        return;
    }
    pt->armed = true;
    pt->quiet = false;
    pt->by_ports = has_ports(pt->vdev);
    enable_windows(pt, true);
    write_walk_start(pt->walk);
}

static void disarm(PCITracker *pt)
{
    if (pt->armed) {
        pt->armed = false;
        enable_windows(pt, false);
        write_walk_stop(pt->walk);
    }
}

/*
 * The memory map cannot be changed while listeners are told that logging
 * starts, so the traps come with the migration's setup.
 */
static int migration_event(NotifierWithReturn *notifier, MigrationEvent *event,
                           Error **errp)
{
    PCITracker *pt = container_of(notifier, PCITracker, migration);

    if (event->type == MIG_EVENT_PRECOPY_SETUP) {
        arm(pt);
    } else {
        disarm(pt);
    }
    return 0;
}

static bool source_start(WriteTracker *t, Error **errp)
{
    return true;
}

static void source_stop(WriteTracker *t)
{
}

static bool source_sync(WriteTracker *t, bool last, Error **errp)
{
    PCITracker *pt = container_of(t, PCITracker, tracker);

    if (!pt->armed || pt->quiet) {
        return true;
    }
    /* postcopy's last one is not called so, but the VM is stopped */
    last |= !runstate_is_running();
    if (!is_master(pt->vdev)) {
        /* it is what was its last one, when all of it has arrived */
        pt->quiet = is_drained(pt->vdev) > 0;
        last = true;
    }
    write_walk_sync(pt->walk, last);
    if (answers(pt->vdev)) {
        /* they were read anew */
        pt->by_ports = has_ports(pt->vdev);
    }
    return true;
}

static bool source_covers(WriteTracker *t)
{
    return container_of(t, PCITracker, tracker)->armed;
}

static uint64_t source_armed(WriteTracker *t)
{
    return write_walk_armed(container_of(t, PCITracker, tracker)->walk);
}

static const WriteTrackSource source = {
    .kind = WRITE_TRACKING_SOURCE_WALKER,
    .start = source_start,
    .stop = source_stop,
    .sync = source_sync,
    .covers = source_covers,
    .by_address = true,
    .armed = source_armed,
};

/* --------------------------------------------------------------- life cycle */

static bool check(VFIOPCIDevice *vdev, Error **errp)
{
    const char *mode = WriteTrackingMode_str(vdev->write_tracking);

    if (!write_walk_supports(mode, vdev->vendor_id, vdev->device_id)) {
        error_setg(errp, "write-tracking=%s does not know the device %04x:%04x",
                   mode, vdev->vendor_id, vdev->device_id);
        return false;
    }
    if (vdev->vbasedev.bcontainer->space->as != &address_space_memory) {
        error_setg(errp, "write-tracking=%s does not work behind a vIOMMU",
                   mode);
        return false;
    }
    if (!vdev->bars[0].region.mem || !vdev->bars[0].region.size) {
        error_setg(errp, "write-tracking=%s needs the device's BAR 0", mode);
        return false;
    }
    return true;
}

bool write_track_pci_realize(VFIOPCIDevice *vdev, Error **errp)
{
    bool automatic = vdev->write_tracking == WRITE_TRACKING_MODE_AUTO;
    PCITracker *pt;

    if (vdev->write_tracking == WRITE_TRACKING_MODE_OFF) {
        return true;
    }
    if (!check(vdev, automatic ? NULL : errp)) {
        trace_write_track_none(vdev->vbasedev.name);
        return automatic;
    }
    pt = g_new0(PCITracker, 1);
    pt->vdev = vdev;
    pt->walk = write_walk_new(vdev->vendor_id, vdev->device_id, &walk_io, pt);
    pt->tracker.name = vdev->vbasedev.name;
    pt->tracker.source = &source;
    find_traps(pt);
    add_windows(pt);
    vdev->vbasedev.write_tracker = &pt->tracker;
    write_track_add(&pt->tracker);
    write_track_quiesce_init(&pt->quiesce, vdev, &pt->tracker);
    migration_add_notifier(&pt->migration, migration_event);
    return true;
}

void write_track_pci_exit(VFIOPCIDevice *vdev)
{
    WriteTracker *t = vdev->vbasedev.write_tracker;
    Error *err = NULL;
    PCITracker *pt;

    if (!t || t->source != &source) {
        return;
    }
    pt = container_of(t, PCITracker, tracker);
    if (pt->armed && t->logging) {
        /* a primary that device_del takes away while memory is sent */
        if (!stop_dma(&pt->quiesce, &err)) {
            migration_file_set_error(-EIO, err);
        }
        source_sync(t, true, &error_abort);
    }
    disarm(pt);
    migration_remove_notifier(&pt->migration);
    write_track_quiesce_exit(&pt->quiesce);
    write_track_del(t);
    vdev->vbasedev.write_tracker = NULL;
    g_clear_pointer(&pt->walk, write_walk_free);
    /* the quirk's data: freed when no access can be under way any more */
}

void write_track_pci_command(VFIOPCIDevice *vdev)
{
    WriteTracker *t = vdev->vbasedev.write_tracker;
    PCITracker *pt;

    if (!t || t->source != &source) {
        return;
    }
    pt = container_of(t, PCITracker, tracker);
    /* on and off again between two syncs: it may have written */
    if (is_master(vdev)) {
        pt->quiet = false;
    }
    pt->by_ports |= has_ports(vdev);
}

static int get_mode(Object *obj, Error **errp)
{
    return VFIO_PCI_DEVICE(obj)->write_tracking;
}

static void set_mode(Object *obj, int value, Error **errp)
{
    if (DEVICE(obj)->realized) {
        error_setg(errp, "write-tracking cannot be changed after the device"
                   " was realized");
        return;
    }
    VFIO_PCI_DEVICE(obj)->write_tracking = value;
}

void write_track_pci_class_init(ObjectClass *klass)
{
    object_class_property_add_enum(klass, "write-tracking",
                                   "WriteTrackingMode",
                                   &WriteTrackingMode_lookup, get_mode,
                                   set_mode);
    object_class_property_set_description(klass, "write-tracking",
        "off, or the walker that tracks what the device writes during a"
        " migration");
}

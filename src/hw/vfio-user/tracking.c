/*
 * vfio-user: the server says which memory it has written
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Two messages serve for that.  DEVICE_FEATURE (16) with DMA logging is in the
 * specification; DIRTY_PAGES (14) is older and what libvfio-user has that QEMU
 * bundles.  The latter answers for exactly one region that was mapped, and
 * forgets what it has told; so regions are always asked for as a whole, and all
 * that is told is marked at once.
 *
 * A server tracks regions whose file descriptor it has; in others QEMU writes
 * on its behalf, and knows.
 *
 * Nothing that the server says is believed beyond this: bits make pages dirty,
 * and an answer that is not the one that was asked for is an error, which fails
 * the migration.
 *
 * All functions are called with the BQL held.
 */

#include "qemu/osdep.h"
#include "qemu/bitmap.h"
#include "qemu/error-report.h"
#include "qapi/error.h"
#include "hw/vfio-user/tracking.h"
#include "hw/vfio-user/trace.h"
#include "hw/vfio/vfio-device.h"
#include "system/ramblock.h"

#define VFIO_USER_DEVICE_FEATURE    16

typedef struct {
    VFIOUserHdr hdr;
    uint32_t argsz;
    uint32_t flags;
} DirtyPages;

typedef struct {
    DirtyPages base;
    uint64_t iova;
    uint64_t size;
    VFIOUserBitmap bitmap;
} DirtyPagesGet;

/* imported from struct vfio_device_feature_dma_logging_control */
typedef struct {
    DirtyPages base;            /* struct vfio_device_feature looks the same */
    uint64_t page_size;
    uint32_t num_ranges;
    uint32_t reserved;
} LoggingStart;

typedef struct {
    DirtyPages base;
    uint64_t iova;
    uint64_t length;
    uint64_t page_size;
    char data[];
} LoggingReport;

typedef struct {
    VFIOUserDMAUnmap unmap;
    VFIOUserBitmap bitmap;
} UnmapGet;

typedef struct Region {
    hwaddr iova;
    uint64_t size;
    ram_addr_t ram;
    bool direct;
    QTAILQ_ENTRY(Region) next;
} Region;

struct VFIOUserTracking {
    WriteTracker tracker;
    VFIOUserProxy *proxy;
    bool feature;               /* DEVICE_FEATURE, else DIRTY_PAGES */
    uint64_t pgsize;
    QTAILQ_HEAD(, Region) regions;
};

/* ---------------------------------------------------------------- messages */

/* Send and wait; an error that the server replies becomes @errp. */
static bool ask(VFIOUserTracking *vut, VFIOUserHdr *hdr, uint16_t command,
                uint32_t size, uint32_t reply_size, Error **errp)
{
    vfio_user_request_msg(hdr, command, size, 0);
    if (!vfio_user_send_wait(vut->proxy, hdr, NULL, reply_size, errp)) {
        return false;
    }
    if (hdr->flags & VFIO_USER_ERROR) {
        error_setg_errno(errp, hdr->error_reply,
                         "message %u to the server fails", command);
        return false;
    }
    return true;
}

static bool feature(VFIOUserTracking *vut, uint32_t flags, Error **errp)
{
    DirtyPages msg = { .argsz = sizeof(msg) - sizeof(msg.hdr), .flags = flags };

    return ask(vut, &msg.hdr, VFIO_USER_DEVICE_FEATURE, sizeof(msg),
               sizeof(msg), errp);
}

static bool feature_start(VFIOUserTracking *vut, Error **errp)
{
    LoggingStart msg = {
        .base.argsz = sizeof(msg) - sizeof(msg.base.hdr),
        .base.flags = VFIO_DEVICE_FEATURE_SET |
                      VFIO_DEVICE_FEATURE_DMA_LOGGING_START,
        .page_size = vut->pgsize,
        /* no ranges: all of them */
    };

    return ask(vut, &msg.base.hdr, VFIO_USER_DEVICE_FEATURE, sizeof(msg),
               sizeof(msg), errp);
}

static bool dirty_pages(VFIOUserTracking *vut, uint32_t flags, Error **errp)
{
    DirtyPages msg = { .argsz = sizeof(msg) - sizeof(msg.hdr), .flags = flags };

    return ask(vut, &msg.hdr, VFIO_USER_DIRTY_PAGES, sizeof(msg), sizeof(msg),
               errp);
}

static bool start(VFIOUserTracking *vut, Error **errp)
{
    return vut->feature
           ? feature_start(vut, errp)
           : dirty_pages(vut, VFIO_IOMMU_DIRTY_PAGES_FLAG_START, errp);
}

static bool stop(VFIOUserTracking *vut, Error **errp)
{
    return vut->feature
           ? feature(vut, VFIO_DEVICE_FEATURE_SET |
                          VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP, errp)
           : dirty_pages(vut, VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP, errp);
}

/* ----------------------------------------------------------------- bitmaps */

/* As the library rounds it: whole 64-bit words. */
static uint64_t bitmap_bytes(VFIOUserTracking *vut, Region *r)
{
    return DIV_ROUND_UP(DIV_ROUND_UP(r->size, vut->pgsize), 64) * 8;
}

static uint64_t max_bitmap_bytes(VFIOUserTracking *vut)
{
    uint64_t max = MIN(vut->proxy->max_xfer_size, vut->proxy->max_bitmap);

    return max > sizeof(DirtyPagesGet) ? max - sizeof(DirtyPagesGet) : 0;
}

static bool check_size(VFIOUserTracking *vut, Region *r, Error **errp)
{
    if (bitmap_bytes(vut, r) > max_bitmap_bytes(vut)) {
        error_setg(errp, "the bitmap of a region of %" PRIu64 " MiB takes %"
                   PRIu64 " bytes, a message of the server at most %" PRIu64,
                   r->size >> 20, bitmap_bytes(vut, r), max_bitmap_bytes(vut));
        return false;
    }
    return true;
}

static void mark_region(VFIOUserTracking *vut, Region *r)
{
    write_track_mark_ram(&vut->tracker, r->ram, r->size);
}

/* The bitmap comes from the server; bits beyond the region are ignored. */
static void mark_bits(VFIOUserTracking *vut, Region *r, const void *data)
{
    uint64_t pages = DIV_ROUND_UP(r->size, vut->pgsize);
    g_autofree unsigned long *bits = g_memdup2(data, bitmap_bytes(vut, r));
    unsigned long from = 0;

    while ((from = find_next_bit(bits, pages, from)) < pages) {
        unsigned long to = find_next_zero_bit(bits, pages, from);
        uint64_t end = MIN(to * vut->pgsize, r->size);

        write_track_mark_ram(&vut->tracker, r->ram + from * vut->pgsize,
                             end - from * vut->pgsize);
        from = to;
    }
}

static bool bad_answer(Error **errp)
{
    error_setg(errp, "the server's answer does not fit the question");
    return false;
}

static bool get_dirty_pages(VFIOUserTracking *vut, Region *r, Error **errp)
{
    uint64_t bytes = bitmap_bytes(vut, r);
    size_t size = sizeof(DirtyPagesGet) + bytes;
    g_autofree DirtyPagesGet *msg = g_malloc0(size);

    msg->base.argsz = size - sizeof(msg->base.hdr);
    msg->base.flags = VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP;
    msg->iova = r->iova;
    msg->size = r->size;
    msg->bitmap.pgsize = vut->pgsize;
    msg->bitmap.size = bytes;
    if (!ask(vut, &msg->base.hdr, VFIO_USER_DIRTY_PAGES, sizeof(*msg), size,
             errp)) {
        return false;
    }
    if (msg->base.hdr.size != size || msg->iova != r->iova ||
        msg->size != r->size || msg->bitmap.pgsize != vut->pgsize ||
        msg->bitmap.size != bytes) {
        return bad_answer(errp);
    }
    mark_bits(vut, r, msg->bitmap.data);
    return true;
}

static bool get_report(VFIOUserTracking *vut, Region *r, Error **errp)
{
    size_t size = sizeof(LoggingReport) + bitmap_bytes(vut, r);
    g_autofree LoggingReport *msg = g_malloc0(size);

    msg->base.argsz = size - sizeof(msg->base.hdr);
    msg->base.flags = VFIO_DEVICE_FEATURE_GET |
                      VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT;
    msg->iova = r->iova;
    msg->length = r->size;
    msg->page_size = vut->pgsize;
    if (!ask(vut, &msg->base.hdr, VFIO_USER_DEVICE_FEATURE, sizeof(*msg), size,
             errp)) {
        return false;
    }
    if (msg->base.hdr.size != size || msg->iova != r->iova ||
        msg->length != r->size || msg->page_size != vut->pgsize) {
        return bad_answer(errp);
    }
    mark_bits(vut, r, msg->data);
    return true;
}

static bool get_bits(VFIOUserTracking *vut, Region *r, Error **errp)
{
    if (!r->direct) {
        return true;
    }
    return check_size(vut, r, errp) &&
           (vut->feature ? get_report(vut, r, errp)
                         : get_dirty_pages(vut, r, errp));
}

/* Unmap, and get what was written up to then in the same step. */
static bool unmap_with_bits(VFIOUserTracking *vut, Region *r, Error **errp)
{
    uint64_t bytes = bitmap_bytes(vut, r);
    size_t size = sizeof(UnmapGet) + bytes;
    g_autofree UnmapGet *msg = g_malloc0(size);

    msg->unmap.argsz = size - sizeof(msg->unmap.hdr);
    msg->unmap.flags = VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP;
    msg->unmap.iova = r->iova;
    msg->unmap.size = r->size;
    msg->bitmap.pgsize = vut->pgsize;
    msg->bitmap.size = bytes;
    if (!check_size(vut, r, errp) ||
        !ask(vut, &msg->unmap.hdr, VFIO_USER_DMA_UNMAP, sizeof(*msg), size,
             errp)) {
        return false;
    }
    if (msg->unmap.hdr.size != size || msg->bitmap.size != bytes) {
        /* unmapped it is; only what was written is not known */
        mark_region(vut, r);
        return true;
    }
    mark_bits(vut, r, msg->bitmap.data);
    return true;
}

/* ----------------------------------------------------------------- regions */

void vfio_user_tracking_map(VFIOUserTracking *vut, hwaddr iova, uint64_t size,
                            void *vaddr, bool direct)
{
    Region *r;
    ram_addr_t offset;
    RAMBlock *block;

    if (!vut) {
        return;
    }
    WITH_RCU_READ_LOCK_GUARD() {
        block = qemu_ram_block_from_host(vaddr, false, &offset);
        if (!block) {
            return;             /* a device's registers */
        }
        offset += qemu_ram_get_offset(block);
    }
    r = g_new0(Region, 1);
    *r = (Region) { .iova = iova, .size = size, .ram = offset,
                    .direct = direct };
    QTAILQ_INSERT_TAIL(&vut->regions, r, next);
}

static void remove_region(VFIOUserTracking *vut, Region *r)
{
    QTAILQ_REMOVE(&vut->regions, r, next);
    g_free(r);
}

bool vfio_user_tracking_unmap(VFIOUserTracking *vut, hwaddr iova,
                              uint64_t size, bool all)
{
    Region *r, *next;
    bool done = false;

    if (!vut) {
        return false;
    }
    QTAILQ_FOREACH_SAFE(r, &vut->regions, next, next) {
        Error *err = NULL;
        bool exact = r->iova == iova && r->size == size;

        if (!all && !exact && !(r->iova < iova + size &&
                                iova < r->iova + r->size)) {
            continue;
        }
        if (vut->tracker.logging && r->direct) {
            if (exact && !all && !vut->feature) {
                done = unmap_with_bits(vut, r, &err);
            }
            if (!done) {
                /* over-marking is harmless, and regions seldom go */
                mark_region(vut, r);
                error_free(err);
            }
            trace_vfio_user_tracking_unmap(vut->tracker.name, r->iova, r->size,
                                           done);
        }
        remove_region(vut, r);
    }
    return done;
}

/* -------------------------------------------------------------- the tracker */

static bool source_start(WriteTracker *t, Error **errp)
{
    VFIOUserTracking *vut = container_of(t, VFIOUserTracking, tracker);
    Region *r;

    QTAILQ_FOREACH(r, &vut->regions, next) {
        if (r->direct && !check_size(vut, r, errp)) {
            error_prepend(errp, "%s: ", t->name);
            return false;
        }
    }
    if (!start(vut, errp)) {
        error_prepend(errp, "%s: tracking does not start: ", t->name);
        return false;
    }
    return true;
}

static void source_stop(WriteTracker *t)
{
    VFIOUserTracking *vut = container_of(t, VFIOUserTracking, tracker);
    Error *err = NULL;

    if (!stop(vut, &err)) {
        warn_reportf_err(err, "%s: tracking does not stop: ", t->name);
    }
}

static bool source_sync(WriteTracker *t, bool last, Error **errp)
{
    VFIOUserTracking *vut = container_of(t, VFIOUserTracking, tracker);
    Region *r;

    QTAILQ_FOREACH(r, &vut->regions, next) {
        if (!get_bits(vut, r, errp)) {
            return false;
        }
    }
    return true;
}

static const WriteTrackSource source = {
    .kind = WRITE_TRACKING_SOURCE_VFIO_USER,
    .start = source_start,
    .stop = source_stop,
    .sync = source_sync,
};

WriteTracker *vfio_user_tracking_tracker(VFIOUserTracking *vut)
{
    return &vut->tracker;
}

/* -------------------------------------------------------------- life cycle */

static bool probe(VFIOUserTracking *vut, Error **errp)
{
    Error *err = NULL;

    vut->feature = true;
    if (feature(vut, VFIO_DEVICE_FEATURE_PROBE | VFIO_DEVICE_FEATURE_SET |
                     VFIO_DEVICE_FEATURE_DMA_LOGGING_START, NULL) &&
        feature(vut, VFIO_DEVICE_FEATURE_PROBE | VFIO_DEVICE_FEATURE_GET |
                     VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT, NULL)) {
        return true;
    }
    vut->feature = false;
    if (start(vut, &err) && stop(vut, &err)) {
        return true;
    }
    error_propagate_prepend(errp, err, "enable-migration=on needs a server that"
                            " tracks what it writes: ");
    return false;
}

VFIOUserTracking *vfio_user_tracking_new(VFIODevice *vbasedev, Error **errp)
{
    VFIOUserTracking *vut = g_new0(VFIOUserTracking, 1);

    vut->proxy = vbasedev->proxy;
    vut->pgsize = vut->proxy->migr_pgsize;
    vut->tracker.name = vbasedev->name;
    vut->tracker.source = &source;
    QTAILQ_INIT(&vut->regions);
    if (!is_power_of_2(vut->pgsize)) {
        error_setg(errp, "the server tracks in pages of %" PRIu64
                   " bytes, which is no power of 2", vut->pgsize);
        g_free(vut);
        return NULL;
    }
    if (!probe(vut, errp)) {
        g_free(vut);
        return NULL;
    }
    trace_vfio_user_tracking_new(vbasedev->name, vut->feature, vut->pgsize);
    vbasedev->write_tracker = &vut->tracker;
    write_track_add(&vut->tracker);
    return vut;
}

void vfio_user_tracking_free(VFIOUserTracking *vut)
{
    if (!vut) {
        return;
    }
    write_track_del(&vut->tracker);
    while (!QTAILQ_EMPTY(&vut->regions)) {
        remove_region(vut, QTAILQ_FIRST(&vut->regions));
    }
    g_free(vut);
}

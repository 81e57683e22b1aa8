/*
 * Device access by address hint: windows, the guest-visible half
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Registration, life, use and statistics of hints.  How a vCPU finds the
 * window is in addr-hint.c.inc; what several threads may do to one hint, in
 * addr-hint-slot.c.
 *
 * Locks: hints come and go with the BQL held.  Accesses run without it and read
 * slots under RCU.  The table is freed when the device is finalized, that is
 * when no view holds the window's region any more.
 *
 * An access through KVM's exits finds the window by the vCPU's reference table
 * and never gets to the callbacks below.  They are for TCG, whose TLB leads
 * here, for qtest, and for accesses that no vCPU makes.
 */

#include "qemu/osdep.h"
#include "addr-hint-direct.h"
#include "addr-hint-internal.h"
#include "addr-hint-slot.h"
#include "hw/qdev-core.h"
#include "qemu/bitmap.h"
#include "qemu/bswap.h"
#include "qemu/host-utils.h"
#include "system/addr-hint-window.h"
#include "system/hotpath-stats.h"
#include "system/qtest.h"
#include "system/tcg.h"
#include "trace.h"

/* Protected by the BQL */
static QLIST_HEAD(, AddrHintWindow) windows =
    QLIST_HEAD_INITIALIZER(windows);

/*
 * The path of an access
 */

/* A vCPU counts in its own table, all others together. */
#define ADDR_HINT_WINDOW_COUNT(w, table, field)             \
    do {                                                    \
        if (table) {                                        \
            addr_hint_count(&(table)->counters.field);      \
        } else {                                            \
            qatomic_inc(&(w)->others.field);                \
        }                                                   \
    } while (0)

/* The topology has moved on: does the hint's region still answer there? */
static G_NO_INLINE void addr_hint_refill(AddrHintTable *table,
                                         AddrHintWindow *w, unsigned index,
                                         FlatView *fv,
                                         const AddrHintView *old,
                                         AddrHintView *view)
{
    AddrHintAnswer answer;

    addr_hint_answer(fv, old->addr, &answer);
    addr_hint_slot_refresh(&w->slots[index], old, &answer, view);
    ADDR_HINT_WINDOW_COUNT(w, table, window_refills);
}

/*
 * Find what the hint at @offset of the window stands for, and the address that
 * the access would have had without it; false if there is nothing.
 *
 * Called from RCU critical section.
 */
static inline bool addr_hint_through(AddrHintTable *table, AddrHintWindow *w,
                                     hwaddr offset, bool is_write,
                                     AddrHintFound *found, FlatView **fv,
                                     hwaddr *addr)
{
    unsigned index = offset >> ADDR_HINT_PAGE_BITS;
    unsigned in_page = offset & (ADDR_HINT_PAGE_SIZE - 1);
    const AddrHintView *view;
    AddrHintView renewed;

    view = index < w->nr_hints ? addr_hint_slot_view(&w->slots[index]) : NULL;
    if (unlikely(!view || in_page - view->first >= view->length)) {
        ADDR_HINT_WINDOW_COUNT(w, table, window_refused);
        return false;
    }
    /* set before the first hint */
    *fv = address_space_to_flatview(w->as);
    if (unlikely(view->serial != addr_hint_serial(*fv))) {
        addr_hint_refill(table, w, index, *fv, view, &renewed);
        view = &renewed;
    }
    if (unlikely(!view->live)) {
        ADDR_HINT_WINDOW_COUNT(w, table, window_stale);
        return false;
    }
    ADDR_HINT_WINDOW_COUNT(w, table, window_hits);
    found->mr = view->mr;
    found->offset = view->offset + (in_page - view->first);
    found->sizes = is_write ? view->write_sizes : view->read_sizes;
    *addr = view->addr + (in_page - view->first);
    return true;
}

static MemTxResult addr_hint_dispatch_whole(const AddrHintFound *found,
                                            MemTxAttrs attrs, void *buf,
                                            unsigned size, bool is_write)
{
    bool release_lock = prepare_mmio_access(found->mr);
    MemOp op = size_memop(size) | MO_LE;
    MemTxResult result;
    uint64_t val;

    if (is_write) {
        result = memory_region_dispatch_write(found->mr, found->offset,
                                              ldn_le_p(buf, size), op, attrs);
    } else {
        result = memory_region_dispatch_read(found->mr, found->offset, &val,
                                             op, attrs);
        stn_le_p(buf, size, val);
    }
    if (release_lock) {
        bql_unlock();
    }
    return result;
}

/* Called from RCU critical section */
MemTxResult addr_hint_window_rw(AddrHintTable *table, AddrHintWindow *w,
                                hwaddr offset, MemTxAttrs attrs,
                                void *buf, hwaddr len, bool is_write,
                                bool whole)
{
    AddrHintFound found;
    FlatView *fv;
    hwaddr addr;

    if (unlikely(!addr_hint_through(table, w, offset, is_write, &found, &fv,
                                    &addr))) {
        if (!is_write) {
            memset(buf, 0, len);
        }
        return MEMTX_DECODE_ERROR;
    }
    if (likely(addr_hint_direct(&found, len, is_write))) {
        return addr_hint_rw_direct(&found, attrs, buf, len, is_write);
    }
    if (whole) {
        return addr_hint_dispatch_whole(&found, attrs, buf, len, is_write);
    }
    return addr_hint_rw_generic(fv, addr, found, attrs, buf, len, is_write);
}

MemTxResult addr_hint_window_access(AddrHintWindow *w, hwaddr offset,
                                    MemTxAttrs attrs, void *buf, hwaddr len,
                                    bool is_write, bool whole)
{
    AddrHintTable *table = current_cpu ? current_cpu->addr_hints : NULL;

    return addr_hint_window_rw(table, w, offset, attrs, buf, len, is_write,
                               whole);
}

/*
 * Device code reaches memory with other attributes than a vCPU does: none at
 * all, or with the requester that it is.  The exits of KVM do not come here.
 */
static bool access_is_allowed(AddrHintWindow *w, MemTxAttrs attrs)
{
    return w->allow_dma || qtest_enabled() ||
           (tcg_enabled() && current_cpu && !attrs.unspecified &&
            !attrs.requester_id);
}

static MemTxResult window_access(AddrHintWindow *w, hwaddr offset,
                                 MemTxAttrs attrs, void *buf, unsigned size,
                                 bool is_write)
{
    if (!access_is_allowed(w, attrs)) {
        qatomic_inc(&w->others.window_refused);
        trace_addr_hint_window_dma(w->owner->id ?: "", offset, size);
        return MEMTX_ACCESS_ERROR;
    }
    RCU_READ_LOCK_GUARD();
    /*
     * TCG has split the access by alignment and hands it to a region whole; all
     * others have it split by what the region takes, here eight bytes.
     */
    return addr_hint_window_access(w, offset, attrs, buf, size, is_write,
                                   tcg_enabled() && current_cpu);
}

static MemTxResult window_read(void *opaque, hwaddr offset, uint64_t *data,
                               unsigned size, MemTxAttrs attrs)
{
    uint8_t buf[8] = { 0 };
    MemTxResult result = window_access(opaque, offset, attrs, buf, size,
                                       false);

    *data = ldn_le_p(buf, size);
    return result;
}

static MemTxResult window_write(void *opaque, hwaddr offset, uint64_t data,
                                unsigned size, MemTxAttrs attrs)
{
    uint8_t buf[8];

    stn_le_p(buf, size, data);
    return window_access(opaque, offset, attrs, buf, size, true);
}

/* Whatever the target takes goes through. */
const MemoryRegionOps addr_hint_window_ops = {
    .read_with_attrs = window_read,
    .write_with_attrs = window_write,
    .endianness = DEVICE_LITTLE_ENDIAN,
    .valid = {
        .min_access_size = 1,
        .max_access_size = 8,
        .unaligned = true,
    },
    .impl = {
        .min_access_size = 1,
        .max_access_size = 8,
        .unaligned = true,
    },
};

/*
 * Statistics
 */

static const HotpathStat window_vcpu_stats[] = {
    { "addr-hint-window-hits", STATS_TYPE_CUMULATIVE },
    { "addr-hint-window-refills", STATS_TYPE_CUMULATIVE },
    { "addr-hint-window-stale", STATS_TYPE_CUMULATIVE },
    { "addr-hint-window-refused", STATS_TYPE_CUMULATIVE },
};

static void window_values(const AddrHintCounters *c, uint64_t *values)
{
    values[0] += c->window_hits;
    values[1] += c->window_refills;
    values[2] += c->window_stale;
    values[3] += c->window_refused;
}

static bool window_read_vcpu(CPUState *cpu, uint64_t *values)
{
    AddrHintCounters c;

    if (!cpu->addr_hints) {
        return false;
    }
    addr_hint_table_counters(cpu->addr_hints, &c);
    window_values(&c, values);
    return true;
}

static const HotpathStatsGroup window_vcpu_group = {
    .target = STATS_TARGET_VCPU,
    .stats = window_vcpu_stats,
    .count = ARRAY_SIZE(window_vcpu_stats),
    .read = window_read_vcpu,
};

/* The first four are those of accesses outside vCPU threads. */
static const HotpathStat window_vm_stats[] = {
    { "addr-hint-other-hits", STATS_TYPE_CUMULATIVE },
    { "addr-hint-other-refills", STATS_TYPE_CUMULATIVE },
    { "addr-hint-other-stale", STATS_TYPE_CUMULATIVE },
    { "addr-hint-other-refused", STATS_TYPE_CUMULATIVE },
    { "addr-hint-registered", STATS_TYPE_INSTANT },
    { "addr-hint-registrations", STATS_TYPE_CUMULATIVE },
    { "addr-hint-refusals", STATS_TYPE_CUMULATIVE },
    { "addr-hint-doorbell-writes", STATS_TYPE_CUMULATIVE },
    { "addr-hint-doorbells-shared", STATS_TYPE_INSTANT },
};

static bool window_read_vm(CPUState *cpu, uint64_t *values)
{
    AddrHintWindow *w;

    QLIST_FOREACH(w, &windows, next) {
        AddrHintCounters c;

        addr_hint_window_others(w, &c);
        window_values(&c, values);
        values[4] += w->nr_used;
        values[5] += w->stats.registrations;
        values[6] += w->stats.refusals;
        values[7] += w->stats.doorbell_writes;
        values[8] += w->stats.doorbells_shared;
    }
    return !QLIST_EMPTY(&windows);
}

static const HotpathStatsGroup window_vm_group = {
    .target = STATS_TARGET_VM,
    .stats = window_vm_stats,
    .count = ARRAY_SIZE(window_vm_stats),
    .read = window_read_vm,
};

AddrHintWindow *addr_hint_window_next(AddrHintWindow *w)
{
    return w ? QLIST_NEXT(w, next) : QLIST_FIRST(&windows);
}

void addr_hint_window_others(const AddrHintWindow *w,
                             AddrHintCounters *counters)
{
    addr_hint_counters_read(&w->others, counters);
}

/*
 * Life of a window and its hints
 */

/* A device was removed: nothing that takes its place answers for it. */
static void device_unrealized(DeviceListener *listener, DeviceState *dev)
{
    AddrHintWindow *w;

    RCU_READ_LOCK_GUARD();
    QLIST_FOREACH(w, &windows, next) {
        for (unsigned i = find_first_bit(w->used, w->nr_hints);
             i < w->nr_hints; i = find_next_bit(w->used, w->nr_hints, i + 1)) {
            if (addr_hint_slot_forget(&w->slots[i], dev)) {
                trace_addr_hint_forget(w->owner->id ?: "", i, dev->id ?: "");
            }
        }
    }
}

static DeviceListener device_listener = {
    .unrealize = device_unrealized,
};

void addr_hint_window_init(AddrHintWindow *w, DeviceState *owner,
                           unsigned nr_hints)
{
    uint64_t size = pow2ceil(nr_hints) * (uint64_t)ADDR_HINT_PAGE_SIZE;

    w->owner = owner;
    w->nr_hints = nr_hints;
    w->used = bitmap_new(nr_hints);
    w->slots = g_new0(AddrHintView *, nr_hints);
    memory_region_init_io(&w->mr, OBJECT(owner), &addr_hint_window_ops, w,
                          "addr-hint-window", size);
    /* lock and guard are the target's */
    memory_region_enable_lockless_io(&w->mr);
    if (QLIST_EMPTY(&windows)) {
        device_listener_register(&device_listener);
    }
    QLIST_INSERT_HEAD(&windows, w, next);
    addr_hint_tables_for_windows();
    hotpath_stats_register(&window_vcpu_group);
    hotpath_stats_register(&window_vm_group);
}

void addr_hint_window_exit(AddrHintWindow *w)
{
    for (unsigned i = 0; i < w->nr_hints; i++) {
        addr_hint_window_release(w, i);
    }
    QLIST_REMOVE(w, next);
    if (QLIST_EMPTY(&windows)) {
        device_listener_unregister(&device_listener);
    }
}

void addr_hint_window_finalize(AddrHintWindow *w)
{
    g_clear_pointer(&w->used, g_free);
    g_clear_pointer(&w->slots, g_free);
}

/* Called from RCU critical section */
static unsigned answer_status(AddrHintWindow *w, const AddrHintAnswer *answer,
                              unsigned length)
{
    MemoryRegion *mr = answer->mr;

    if (memory_region_is_iommu(mr)) {
        return ADDR_HINT_IOMMU;
    }
    if (memory_region_is_ram(mr) || mr->rom_device) {
        return ADDR_HINT_MEMORY;
    }
    if (!answer->usable) {
        return ADDR_HINT_NO_DEVICE;
    }
    if (mr->owner && object_dynamic_cast(mr->owner,
                                         object_get_typename(
                                             OBJECT(w->owner)))) {
        return ADDR_HINT_IS_HINT;
    }
    if (answer->bytes < length) {
        return ADDR_HINT_SPANS;
    }
    return ADDR_HINT_OK;
}

static bool range_in_page(hwaddr addr, unsigned length)
{
    return length && length <= ADDR_HINT_PAGE_SIZE -
                               (addr & (ADDR_HINT_PAGE_SIZE - 1));
}

static void put_hint(AddrHintWindow *w, unsigned index,
                     const AddrHintView *view)
{
    set_bit(index, w->used);
    w->nr_used++;
    addr_hint_slot_put(&w->slots[index], view);
}

static unsigned try_register(AddrHintWindow *w, hwaddr addr, unsigned length,
                             unsigned *index)
{
    AddrHintView view = {
        .addr = addr,
        .length = length,
        .first = addr & (ADDR_HINT_PAGE_SIZE - 1),
    };
    AddrHintAnswer answer;
    unsigned status;

    if (!range_in_page(addr, length)) {
        return ADDR_HINT_BAD_REQUEST;
    }
    RCU_READ_LOCK_GUARD();
    addr_hint_answer(address_space_to_flatview(w->as), addr, &answer);
    status = answer_status(w, &answer, length);
    if (status != ADDR_HINT_OK) {
        return status;
    }
    *index = find_first_zero_bit(w->used, w->nr_hints);
    if (*index >= w->nr_hints) {
        return ADDR_HINT_FULL;
    }
    put_hint(w, *index, &view);
    addr_hint_slot_settle(&w->slots[*index], &answer);
    return ADDR_HINT_OK;
}

unsigned addr_hint_window_register(AddrHintWindow *w, hwaddr addr,
                                   unsigned length, unsigned *index)
{
    unsigned status = try_register(w, addr, length, index);

    if (status == ADDR_HINT_OK) {
        w->stats.registrations++;
    } else {
        w->stats.refusals++;
    }
    trace_addr_hint_register(w->owner->id ?: "", addr, length, status,
                             status == ADDR_HINT_OK ? *index : 0);
    return status;
}

void addr_hint_window_load(AddrHintWindow *w, unsigned index, hwaddr addr,
                           unsigned length, bool gone)
{
    const AddrHintView view = {
        .addr = addr,
        .length = length,
        .first = addr & (ADDR_HINT_PAGE_SIZE - 1),
        .gone = gone,
    };

    put_hint(w, index, &view);
}

void addr_hint_window_settle(AddrHintWindow *w)
{
    RCU_READ_LOCK_GUARD();
    for (unsigned i = 0; i < w->nr_hints; i++) {
        const AddrHintView *view = addr_hint_slot_view(&w->slots[i]);
        AddrHintAnswer answer;

        if (view && !view->settled) {
            addr_hint_answer(address_space_to_flatview(w->as), view->addr,
                             &answer);
            addr_hint_slot_settle(&w->slots[i],
                                  view->gone ||
                                  answer_status(w, &answer, view->length)
                                  ? NULL : &answer);
        }
    }
}

bool addr_hint_window_release(AddrHintWindow *w, unsigned index)
{
    if (index >= w->nr_hints || !test_and_clear_bit(index, w->used)) {
        return false;
    }
    w->nr_used--;
    addr_hint_slot_put(&w->slots[index], NULL);
    trace_addr_hint_release(w->owner->id ?: "", index);
    return true;
}

bool addr_hint_window_info(AddrHintWindow *w, unsigned index,
                           AddrHintInfo *info)
{
    const AddrHintView *old;
    AddrHintAnswer answer;
    AddrHintView view;

    if (index >= w->nr_hints || !test_bit(index, w->used)) {
        return false;
    }
    RCU_READ_LOCK_GUARD();
    old = addr_hint_slot_view(&w->slots[index]);
    addr_hint_answer(address_space_to_flatview(w->as), old->addr, &answer);
    addr_hint_slot_refresh(&w->slots[index], old, &answer, &view);
    *info = (AddrHintInfo) {
        .addr = view.addr,
        .length = view.length,
        .live = view.live,
        .region = view.live ? memory_region_name(view.mr) : NULL,
    };
    return true;
}

MemTxResult addr_hint_window_post(AddrHintWindow *w, unsigned index,
                                  uint64_t val, unsigned size)
{
    hwaddr offset = (hwaddr)index << ADDR_HINT_PAGE_BITS;
    const AddrHintView *view;
    uint8_t buf[8];

    RCU_READ_LOCK_GUARD();
    view = addr_hint_slot_view(&w->slots[index]);
    stn_le_p(buf, size, val);
    w->stats.doorbell_writes++;
    return addr_hint_window_access(w, offset | view->first,
                                   MEMTXATTRS_UNSPECIFIED, buf, size, true,
                                   false);
}

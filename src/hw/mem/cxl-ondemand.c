/*
 * CXL memory, mapped on demand
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Which addresses of a window reach which memory follows from the registers of
 * all decoders on the way.  It is worked out anew at each change: the bounds of
 * all decoders cut a window into stretches in which nothing changes, so the
 * first address of a stretch, decoded as the trapping path does it, speaks for
 * all of it.  The result is compared with what is there; what differs is
 * unmapped and starts cold.
 *
 * Data is RAM of a memory backend already, so a range is mapped whole by one
 * alias, and nothing is filled in.  Everything is protected by the BQL.
 */

#include "qemu/osdep.h"
#include "qemu/units.h"
#include "qapi/error.h"
#include "hw/cxl/cxl.h"
#include "hw/cxl/cxl_host.h"
#include "hw/cxl/cxl_ondemand.h"
#include "hw/pci/pci_bridge.h"
#include "hw/pci-bridge/pci_expander_bridge.h"
#include "exec/tb-flush.h"
#include "migration/blocker.h"
#include "system/hostmem.h"
#include "system/ondemand-map.h"
#include "system/tcg.h"

/* How soon a refused range is tried again at the earliest */
#define RETRY_NS NANOSECONDS_PER_SECOND

/* Ranges of a device that are looked at; the rest traps and is not counted */
#define MAX_RANGES 1024

/**
 * struct CXLRange: addresses of a window that reach one piece of memory
 * @fw: the window
 * @hpa: first guest physical address
 * @size: in bytes
 * @ram: the memory; NULL if the range is interleaved
 * @offset: of the contents in @ram
 * @chunk: the mapping
 * @state: what happens to accesses
 * @why: why it is refused, when it is
 * @hits: accesses that trapped since it was last cold
 * @retry_ns: when it may be tried again
 *
 * The first five say what it is, the others belong to its life.
 */
typedef struct CXLRange {
    CXLFixedWindow *fw;
    hwaddr hpa;
    uint64_t size;
    MemoryRegion *ram;
    hwaddr offset;
    OndemandChunk chunk;
    OndemandState state;
    OndemandRefusal why;
    uint64_t hits;
    int64_t retry_ns;
} CXLRange;

/**
 * struct CXLOndemand: the mapping of one device
 * @map: the region
 * @ct3d: the device
 * @ranges: CXLRange, in order of the address
 * @wanted: CXLRange, while the decoders are being worked out
 * @blocker: migration blocker
 */
typedef struct CXLOndemand {
    OndemandMap map;
    CXLType3Dev *ct3d;
    GArray *ranges;
    GArray *wanted;
    Error *blocker;
    QLIST_ENTRY(CXLOndemand) next;
} CXLOndemand;

/* What one decoder of one component says; @ct3d if that is an endpoint */
typedef struct Decoder {
    hwaddr base;
    uint64_t size;
    bool committed;
    bool interleaved;
    CXLType3Dev *ct3d;
} Decoder;

static QLIST_HEAD(, CXLOndemand) devices = QLIST_HEAD_INITIALIZER(devices);

static bool decoder_covers(const Decoder *d, hwaddr addr)
{
    return d->committed && addr >= d->base && addr - d->base < d->size;
}

/*
 * The decoders below a window
 */

static void add_component(GArray *decoders, CXLComponentState *cstate,
                          CXLType3Dev *ct3d)
{
    const int hdm_inc = R_CXL_HDM_DECODER1_BASE_LO - R_CXL_HDM_DECODER0_BASE_LO;
    uint32_t *regs = cstate->crb.cache_mem_registers;
    uint32_t cap = ldl_le_p(regs + R_CXL_HDM_DECODER_CAPABILITY);
    int count = cxl_decoder_count_dec(FIELD_EX32(cap,
                                                 CXL_HDM_DECODER_CAPABILITY,
                                                 DECODER_COUNT));

    for (int i = 0; i < count; i++, regs += hdm_inc) {
        uint32_t ctrl = ldl_le_p(regs + R_CXL_HDM_DECODER0_CTRL);
        uint64_t base_lo = ldl_le_p(regs + R_CXL_HDM_DECODER0_BASE_LO);
        uint64_t base_hi = ldl_le_p(regs + R_CXL_HDM_DECODER0_BASE_HI);
        uint64_t size_lo = ldl_le_p(regs + R_CXL_HDM_DECODER0_SIZE_LO);
        uint64_t size_hi = ldl_le_p(regs + R_CXL_HDM_DECODER0_SIZE_HI);
        Decoder d = {
            .base = (base_hi << 32) | (base_lo & 0xf0000000),
            .size = (size_hi << 32) | (size_lo & 0xf0000000),
            .committed = FIELD_EX32(ctrl, CXL_HDM_DECODER0_CTRL, COMMITTED),
            .interleaved = FIELD_EX32(ctrl, CXL_HDM_DECODER0_CTRL, IW),
            .ct3d = ct3d,
        };

        g_array_append_val(decoders, d);
    }
}

/* The decoders of an endpoint, or of a switch and the endpoints behind it. */
static void add_below_port(GArray *decoders, PCIDevice *port, bool switches)
{
    PCIDevice *dev = pci_bridge_get_sec_bus(PCI_BRIDGE(port))->devices[0];
    PCIBus *bus;

    if (!dev) {
        return;
    }
    if (object_dynamic_cast(OBJECT(dev), TYPE_CXL_TYPE3)) {
        CXLType3Dev *ct3d = CXL_TYPE3(dev);

        add_component(decoders, &ct3d->cxl_cstate, ct3d);
    } else if (switches && object_dynamic_cast(OBJECT(dev), TYPE_CXL_USP)) {
        add_component(decoders, cxl_usp_to_cstate(CXL_USP(dev)), NULL);
        bus = pci_bridge_get_sec_bus(PCI_BRIDGE(dev));
        for (int i = 0; i < ARRAY_SIZE(bus->devices); i++) {
            if (bus->devices[i] &&
                object_dynamic_cast(OBJECT(bus->devices[i]), TYPE_CXL_DSP)) {
                add_below_port(decoders, bus->devices[i], false);
            }
        }
    }
}

static GArray *window_decoders(CXLFixedWindow *fw)
{
    GArray *decoders = g_array_new(false, false, sizeof(Decoder));

    for (int t = 0; t < fw->num_targets; t++) {
        PCIHostState *hb = PCI_HOST_BRIDGE(fw->target_hbs[t]->cxl_host_bridge);

        if (!hb->bus) {
            continue;
        }
        add_component(decoders, cxl_get_hb_cstate(hb), NULL);
        for (int i = 0; i < ARRAY_SIZE(hb->bus->devices); i++) {
            PCIDevice *port = hb->bus->devices[i];

            if (port && object_dynamic_cast(OBJECT(port), TYPE_PCI_BRIDGE)) {
                add_below_port(decoders, port, true);
            }
        }
    }
    return decoders;
}

static void add_bound(GArray *bounds, CXLFixedWindow *fw, hwaddr addr)
{
    if (addr >= fw->base && addr - fw->base <= fw->size) {
        g_array_append_val(bounds, addr);
    }
}

static int compare_addresses(const void *a, const void *b)
{
    hwaddr x = *(const hwaddr *)a, y = *(const hwaddr *)b;

    return x < y ? -1 : x > y;
}

/*
 * A decoder that is not committed hides those after it from the trapping path,
 * so its bounds matter too.
 */
static GArray *window_bounds(CXLFixedWindow *fw, GArray *decoders)
{
    GArray *bounds = g_array_new(false, false, sizeof(hwaddr));

    add_bound(bounds, fw, fw->base);
    add_bound(bounds, fw, fw->base + fw->size);
    for (int i = 0; i < decoders->len; i++) {
        const Decoder *d = &g_array_index(decoders, Decoder, i);

        if (d->size) {
            add_bound(bounds, fw, d->base);
            add_bound(bounds, fw, d->base + d->size);
        }
    }
    g_array_sort(bounds, compare_addresses);
    return bounds;
}

/*
 * What is wanted
 */

static bool starts_decoder(GArray *decoders, CXLType3Dev *ct3d, hwaddr addr)
{
    for (int i = 0; i < decoders->len; i++) {
        const Decoder *d = &g_array_index(decoders, Decoder, i);

        if (d->ct3d == ct3d && d->committed && d->base == addr) {
            return true;
        }
    }
    return false;
}

/*
 * Append a range, or make the last one longer: a bound that another device's
 * decoder makes, while it is being programmed, must not disturb.
 */
static void want(CXLOndemand *od, GArray *decoders, CXLFixedWindow *fw,
                 hwaddr hpa, uint64_t size, MemoryRegion *ram, hwaddr offset)
{
    CXLRange new = {
        .fw = fw, .hpa = hpa, .size = size, .ram = ram, .offset = offset,
        .state = ram ? ONDEMAND_STATE_COLD : ONDEMAND_STATE_INTERLEAVED,
    };
    CXLRange *last;

    if (od->wanted->len) {
        last = &g_array_index(od->wanted, CXLRange, od->wanted->len - 1);
        if (last->fw == fw && last->hpa + last->size == hpa &&
            last->ram == ram && last->offset + (ram ? last->size : 0) == offset
            && !starts_decoder(decoders, od->ct3d, hpa)) {
            last->size += size;
            return;
        }
    }
    if (od->wanted->len < MAX_RANGES) {
        g_array_append_val(od->wanted, new);
    }
}

static MemoryRegion *backend_ram(HostMemoryBackend *backend)
{
    return backend ? host_memory_backend_get_memory(backend) : NULL;
}

/*
 * Find what is at @dpa: memory, if @ram is set, else a hole.
 * Returns: for how many bytes that holds, 0 at the end of the device.
 */
static uint64_t device_piece(CXLType3Dev *ct3d, uint64_t dpa,
                             MemoryRegion **ram, hwaddr *offset)
{
    MemoryRegion *fixed[] = {
        backend_ram(ct3d->hostvmem), backend_ram(ct3d->hostpmem),
    };
    uint64_t base = 0;

    *ram = NULL;
    for (int i = 0; i < ARRAY_SIZE(fixed); i++) {
        uint64_t size = fixed[i] ? memory_region_size(fixed[i]) : 0;

        if (dpa - base < size) {
            *ram = fixed[i];
            *offset = dpa - base;
            return size - *offset;
        }
        base += size;
    }
    for (int i = 0; i < ct3d->dc.num_regions; i++) {
        CXLDCRegion *region = &ct3d->dc.regions[i];
        unsigned long first, end, blocks = region->len / region->block_size;

        if (dpa - region->base >= region->len) {
            continue;
        }
        first = (dpa - region->base) / region->block_size;
        QEMU_LOCK_GUARD(&region->bitmap_lock);
        if (test_bit(first, region->blk_bitmap)) {
            *ram = backend_ram(ct3d->dc.host_dc);
            *offset = dpa - base;
            end = find_next_zero_bit(region->blk_bitmap, blocks, first);
        } else {
            end = find_next_bit(region->blk_bitmap, blocks, first);
        }
        return region->base + end * region->block_size - dpa;
    }
    return 0;
}

static void want_stretch(CXLOndemand *od, GArray *decoders, CXLFixedWindow *fw,
                         hwaddr lo, hwaddr hi)
{
    MemoryRegion *ram;
    hwaddr offset;
    uint64_t dpa, size;

    if (!cxl_ondemand_dpa(od->ct3d, lo, &dpa)) {
        return;
    }
    for (; lo < hi; lo += size, dpa += size) {
        size = MIN(device_piece(od->ct3d, dpa, &ram, &offset), hi - lo);
        if (!size) {
            return;
        }
        if (ram && memory_region_is_ram(ram) && !memory_region_is_rom(ram)) {
            want(od, decoders, fw, lo, size, ram, offset);
        }
    }
}

static bool stretch_is_interleaved(CXLFixedWindow *fw, GArray *decoders,
                                   hwaddr lo)
{
    if (fw->num_targets > 1) {
        return true;
    }
    for (int i = 0; i < decoders->len; i++) {
        const Decoder *d = &g_array_index(decoders, Decoder, i);

        if (d->interleaved && decoder_covers(d, lo)) {
            return true;
        }
    }
    return false;
}

/* Let each device that takes part in an interleaved stretch show it. */
static void want_interleaved(CXLFixedWindow *fw, GArray *decoders,
                             hwaddr lo, hwaddr hi)
{
    for (int i = 0; i < decoders->len; i++) {
        const Decoder *d = &g_array_index(decoders, Decoder, i);

        if (d->ct3d && d->ct3d->ondemand && decoder_covers(d, lo)) {
            want(d->ct3d->ondemand, decoders, fw, lo, hi - lo, NULL, 0);
        }
    }
}

static void work_out_stretch(CXLFixedWindow *fw, GArray *decoders,
                             hwaddr lo, hwaddr hi)
{
    PCIDevice *dev;
    CXLType3Dev *ct3d;

    if (stretch_is_interleaved(fw, decoders, lo)) {
        want_interleaved(fw, decoders, lo, hi);
        return;
    }
    dev = cxl_cfmws_find_device(fw, lo - fw->base);
    if (!dev) {
        return;
    }
    ct3d = CXL_TYPE3(dev);
    if (ct3d->ondemand && !cxl_dev_media_disabled(&ct3d->cxl_dstate)) {
        want_stretch(ct3d->ondemand, decoders, fw, lo, hi);
    }
}

static void work_out_window(CXLFixedWindow *fw)
{
    g_autoptr(GArray) decoders = NULL;
    g_autoptr(GArray) bounds = NULL;

    if (!fw->num_targets || !fw->target_hbs[0]) {
        return;     /* the machine is not complete yet */
    }
    decoders = window_decoders(fw);
    bounds = window_bounds(fw, decoders);
    for (int i = 0; i + 1 < bounds->len; i++) {
        hwaddr lo = g_array_index(bounds, hwaddr, i);
        hwaddr hi = g_array_index(bounds, hwaddr, i + 1);

        if (lo < hi) {
            work_out_stretch(fw, decoders, lo, hi);
        }
    }
}

/*
 * From what is there to what is wanted
 */

static CXLRange *find_range(GArray *ranges, hwaddr hpa)
{
    unsigned low = 0, high = ranges->len;

    while (low < high) {
        unsigned middle = (low + high) / 2;
        CXLRange *r = &g_array_index(ranges, CXLRange, middle);

        if (hpa < r->hpa) {
            high = middle;
        } else if (hpa - r->hpa >= r->size) {
            low = middle + 1;
        } else {
            return r;
        }
    }
    return NULL;
}

static bool same_range(const CXLRange *a, const CXLRange *b)
{
    return a->hpa == b->hpa && a->size == b->size && a->ram == b->ram &&
           a->offset == b->offset;
}

static void queue_range(CXLOndemand *od, CXLRange *r)
{
    r->state = ONDEMAND_STATE_QUEUED;
    ondemand_map_queue(&od->map);
}

/* Keep the ranges that are still right, unmap the others. */
static void reconcile(CXLOndemand *od)
{
    GArray *old = od->ranges;

    for (int i = 0; i < od->wanted->len; i++) {
        CXLRange *new = &g_array_index(od->wanted, CXLRange, i);
        CXLRange *r = find_range(old, new->hpa);

        if (r && same_range(r, new)) {
            *new = *r;
            r->chunk.alias = NULL;      /* has moved */
        } else if (new->ram && !ondemand_policy_threshold(od->map.policy)) {
            queue_range(od, new);
        }
    }
    for (int i = 0; i < old->len; i++) {
        ondemand_chunk_unmap(&od->map, &g_array_index(old, CXLRange, i).chunk);
    }
    od->ranges = od->wanted;
    od->wanted = old;
    g_array_set_size(od->wanted, 0);
}

void cxl_ondemand_update(void)
{
    CXLOndemand *od;
    GSList *windows;

    if (QLIST_EMPTY(&devices)) {
        return;
    }
    windows = cxl_fmws_get_all_sorted();
    for (GSList *w = windows; w; w = w->next) {
        work_out_window(w->data);
    }
    g_slist_free(windows);

    memory_region_transaction_begin();
    QLIST_FOREACH(od, &devices, next) {
        reconcile(od);
    }
    memory_region_transaction_commit();
}

/* The wipe bypasses what finds out that translated code has changed. */
void cxl_ondemand_wiped(CXLType3Dev *ct3d)
{
    if (ct3d->ondemand && tcg_enabled()) {
        queue_tb_flush(first_cpu);
    }
    cxl_ondemand_update();
}

/*
 * From cold to mapped
 */

static bool may_queue(const CXLRange *r)
{
    return r->state == ONDEMAND_STATE_COLD ||
           (r->state == ONDEMAND_STATE_REFUSED &&
            qemu_clock_get_ns(QEMU_CLOCK_REALTIME) >= r->retry_ns);
}

void cxl_ondemand_access(CXLType3Dev *ct3d, hwaddr hpa)
{
    CXLOndemand *od = ct3d->ondemand;
    CXLRange *r = find_range(od->ranges, hpa);

    ondemand_map_trap(&od->map);
    if (!r) {
        return;
    }
    r->hits++;
    if (r->hits > ondemand_policy_threshold(od->map.policy) && may_queue(r)) {
        queue_range(od, r);
    }
}

static int force(OndemandMap *map, MemoryRegion *mr, hwaddr addr,
                 OndemandForce why)
{
    CXLOndemand *od = container_of(map, CXLOndemand, map);
    CXLRange *r = find_range(od->ranges, mr->addr + addr);

    if (!r || mr != &r->fw->mr) {
        return -1;
    }
    if (may_queue(r)) {
        map->counters.forced[why]++;
        queue_range(od, r);
    }
    return r->state;
}

static void force_all(OndemandMap *map, OndemandForce why)
{
    CXLOndemand *od = container_of(map, CXLOndemand, map);

    for (int i = 0; i < od->ranges->len; i++) {
        CXLRange *r = &g_array_index(od->ranges, CXLRange, i);

        force(map, &r->fw->mr, r->hpa - r->fw->base, why);
    }
}

static void commit(OndemandMap *map)
{
    CXLOndemand *od = container_of(map, CXLOndemand, map);

    for (int i = 0; i < od->ranges->len; i++) {
        CXLRange *r = &g_array_index(od->ranges, CXLRange, i);

        if (r->state != ONDEMAND_STATE_QUEUED) {
            continue;
        }
        if (ondemand_chunk_map(map, &r->chunk, &r->fw->mr, r->hpa - r->fw->base,
                               r->ram, r->offset, r->size, &r->why)) {
            r->state = ONDEMAND_STATE_MAPPED;
        } else {
            r->state = ONDEMAND_STATE_REFUSED;
            r->hits = 0;
            r->retry_ns = qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + RETRY_NS;
        }
    }
}

static OndemandRangeList *list_ranges(OndemandMap *map)
{
    CXLOndemand *od = container_of(map, CXLOndemand, map);
    OndemandRangeList *list = NULL, **tail = &list;

    for (int i = 0; i < od->ranges->len; i++) {
        const CXLRange *r = &g_array_index(od->ranges, CXLRange, i);
        OndemandRange *item = g_new0(OndemandRange, 1);

        item->address = r->hpa;
        item->size = r->size;
        item->state = r->state;
        item->hits = r->hits;
        item->has_refusal = r->state == ONDEMAND_STATE_REFUSED;
        item->refusal = r->why;
        QAPI_LIST_APPEND(tail, item);
    }
    return list;
}

static const OndemandMapOps cxl_ondemand_ops = {
    .commit = commit,
    .ranges = list_ranges,
    .force = force,
    .force_all = force_all,
};

/*
 * The device's life
 */

static bool start(CXLType3Dev *ct3d, Error **errp)
{
    CXLOndemand *od = g_new0(CXLOndemand, 1);

    od->ct3d = ct3d;
    error_setg(&od->blocker, "cxl-type3 with the property 'ondemand-policy': "
               "neither the contents of CXL memory nor its decoders are "
               "migrated");
    if (migrate_add_blocker(&od->blocker, errp) < 0) {
        g_free(od);
        return false;
    }
    if (!ondemand_map_register(&od->map, DEVICE(ct3d), ct3d->ondemand_policy,
                               &cxl_ondemand_ops, errp)) {
        migrate_del_blocker(&od->blocker);
        g_free(od);
        return false;
    }
    od->ranges = g_array_new(false, false, sizeof(CXLRange));
    od->wanted = g_array_new(false, false, sizeof(CXLRange));
    QLIST_INSERT_HEAD(&devices, od, next);
    ct3d->ondemand = od;
    return true;
}

static void stop(CXLType3Dev *ct3d)
{
    CXLOndemand *od = ct3d->ondemand;

    if (!od) {
        return;
    }
    g_array_set_size(od->wanted, 0);
    memory_region_transaction_begin();
    reconcile(od);
    memory_region_transaction_commit();
    QLIST_REMOVE(od, next);
    ct3d->ondemand = NULL;
    ondemand_map_unregister(&od->map);
    ondemand_map_release(&od->map);
    migrate_del_blocker(&od->blocker);
    g_array_free(od->ranges, true);
    g_array_free(od->wanted, true);
    g_free(od);
}

static void (*plain_realize)(PCIDevice *dev, Error **errp);
static void (*plain_exit)(PCIDevice *dev);

static void realize(PCIDevice *dev, Error **errp)
{
    ERRP_GUARD();
    CXLType3Dev *ct3d = CXL_TYPE3(dev);

    if (ct3d->ondemand_policy && !start(ct3d, errp)) {
        return;
    }
    plain_realize(dev, errp);
    if (*errp) {
        stop(ct3d);
    }
}

/* The memory is about to lose its address spaces: let nothing lead there. */
static void leave(PCIDevice *dev)
{
    stop(CXL_TYPE3(dev));
    plain_exit(dev);
}

void cxl_ondemand_class_init(ObjectClass *oc)
{
    PCIDeviceClass *pc = PCI_DEVICE_CLASS(oc);

    plain_realize = pc->realize;
    plain_exit = pc->exit;
    pc->realize = realize;
    pc->exit = leave;
}

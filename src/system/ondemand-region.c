/*
 * On-demand mapping: a window of memory that is filled and mapped as it is used
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Threads.  Under KVM the window is accessed without the BQL, so that a vCPU
 * that waits for the backing waits alone; TCG and DMA of the main loop hold the
 * BQL, and then so does the read of a granule.  Whole chunks are filled by a
 * thread of the pool.
 * What a vCPU has to tell the main loop (a chunk is hot) it leaves in the
 * chunk's atomic fields and schedules the bottom half.
 *
 * No write is lost.  Until a granule is RESIDENT nobody but the filler writes
 * to its RAM; from then on its accesses go there, trapped or mapped.
 *
 * Migration.  A granule counts as populated from FILLING on.  FILLING is set
 * before the filler's first write, which goes through the address space and
 * sets dirty bits if logging is on; so when the migration's start looks at the
 * granule too early to see FILLING, the writes come later than the start of the
 * logging, and are seen.  A background snapshot has no log: there all counts.
 */

#include "qemu/osdep.h"
#include "qemu/bitmap.h"
#include "qemu/error-report.h"
#include "qemu/host-utils.h"
#include "qemu/main-loop.h"
#include "qemu/units.h"
#include "qapi/error.h"
#include "qapi/qapi-events-ondemand-map.h"
#include "qapi/qapi-types-migration.h"
#include "block/aio-wait.h"
#include "block/thread-pool.h"
#include "exec/target_page.h"
#include "hw/pci/pci.h"
#include "hw/vmstate-if.h"
#include "migration/client-options.h"
#include "migration/misc.h"
#include "migration/vmstate.h"
#include "system/ondemand-region.h"
#include "system/runstate.h"
#include "trace.h"

/* How soon a refused chunk is tried again at the earliest */
#define RETRY_NS NANOSECONDS_PER_SECOND

/**
 * struct OndemandRegionChunk: what is mapped as one
 * @chunk: the mapping
 * @state: what happens to accesses; others than the main loop read it with
 *         qatomic_read()
 * @why: why it is refused, when it is
 * @retry_ns: when it may be tried again
 * @hits: accesses that trapped since it was last cold, and found their granule
 *        resident; qatomic
 * @hot: the bottom half should look at it; qatomic
 */
struct OndemandRegionChunk {
    OndemandChunk chunk;
    OndemandState state;
    OndemandRefusal why;
    int64_t retry_ns;
    unsigned hits;
    bool hot;
};

static uint64_t chunk_start(OndemandRegion *r, unsigned n)
{
    return n * r->chunk_size;
}

static uint64_t chunk_length(OndemandRegion *r, unsigned n)
{
    return MIN(r->chunk_size, r->size - chunk_start(r, n));
}

/*
 * Granules
 */

/* Make a granule resident, or wait until another thread has done so. */
static int fill_granule(OndemandRegion *r, unsigned g)
{
    int ret;

    if (qatomic_load_acquire(&r->state[g]) == ONDEMAND_RESIDENT) {
        return 0;
    }
    qemu_mutex_lock(&r->lock);
    while (r->state[g] == ONDEMAND_FILLING) {
        qemu_cond_wait(&r->filled, &r->lock);
    }
    if (r->state[g] == ONDEMAND_RESIDENT) {
        qemu_mutex_unlock(&r->lock);
        return 0;
    }
    qatomic_set(&r->state[g], ONDEMAND_FILLING);
    qemu_mutex_unlock(&r->lock);
    smp_mb();       /* FILLING before the writes; see "Migration" above */

    ret = r->backing.fill(r->backing.opaque, g * r->granule, r->granule);
    trace_ondemand_region_fill(r->map.name, g * r->granule, ret);

    qemu_mutex_lock(&r->lock);
    /* pairs with the load above: what was read is there before the state is */
    qatomic_store_release(&r->state[g],
                          ret ? ONDEMAND_COLD : ONDEMAND_RESIDENT);
    if (!ret) {
        qatomic_set(&r->nr_resident, r->nr_resident + 1);
    }
    qemu_cond_broadcast(&r->filled);
    qemu_mutex_unlock(&r->lock);
    return ret;
}

static unsigned first_granule(OndemandRegion *r, unsigned n)
{
    return chunk_start(r, n) / r->granule;
}

static bool granule_is_resident(OndemandRegion *r, hwaddr addr)
{
    return qatomic_read(&r->state[addr / r->granule]) == ONDEMAND_RESIDENT;
}

/* Returns: how many granules of a chunk are resident */
static unsigned resident_in_chunk(OndemandRegion *r, unsigned n)
{
    unsigned first = first_granule(r, n), count = 0;

    for (unsigned i = 0; i < chunk_length(r, n) / r->granule; i++) {
        count += qatomic_load_acquire(&r->state[first + i]) ==
                 ONDEMAND_RESIDENT;
    }
    return count;
}

static bool chunk_is_resident(OndemandRegion *r, unsigned n)
{
    return resident_in_chunk(r, n) == chunk_length(r, n) / r->granule;
}

/* Returns: 0, or a negative errno: -ECANCELED if the work is to end */
static int fill_chunk(OndemandRegion *r, unsigned n)
{
    unsigned first = first_granule(r, n);

    for (unsigned i = 0; i < chunk_length(r, n) / r->granule; i++) {
        int ret = qatomic_read(&r->stopping) ? -ECANCELED
                                             : fill_granule(r, first + i);

        if (ret) {
            return ret;
        }
    }
    return 0;
}

/*
 * RAM has huge pages wherever the host can give them.  Then each granule would
 * cost as much as one; so there are none before a chunk is mapped.
 */
static void allow_huge_pages(OndemandRegion *r, uint64_t start, uint64_t size,
                             bool allow)
{
#ifdef MADV_NOHUGEPAGE
    if (r->backing.outside) {
        uint8_t *host = memory_region_get_ram_ptr(r->backing.ram);

        /* advice only: a kernel without huge pages refuses it */
        madvise(host + start, size, allow ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    }
#endif
}

/*
 * Chunks: from cold to mapped.  All of this runs in the main loop.
 */

static void set_state(OndemandRegion *r, unsigned n, OndemandState state)
{
    qatomic_set(&r->chunks[n].state, state);
    if (state == ONDEMAND_STATE_COLD || state == ONDEMAND_STATE_REFUSED) {
        qatomic_set(&r->chunks[n].hits, 0);
    }
}

static void refuse(OndemandRegion *r, unsigned n, OndemandRefusal why)
{
    r->chunks[n].why = why;
    r->chunks[n].retry_ns = qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + RETRY_NS;
    set_state(r, n, ONDEMAND_STATE_REFUSED);
}

static void send_error(OndemandRegion *r, uint64_t offset, int err,
                       OndemandErrorAction action)
{
    qapi_event_send_ondemand_map_error(r->map.name, offset, action,
                                       strerror(-err));
    trace_ondemand_region_error(r->map.name, offset, err);
}

static void backing_failed(OndemandRegion *r, unsigned n, int err)
{
    /* nobody has asked for these contents yet: no reason to stop */
    ondemand_map_refused(&r->map, ONDEMAND_REFUSAL_BACKING);
    refuse(r, n, ONDEMAND_REFUSAL_BACKING);
    send_error(r, chunk_start(r, n), err, ONDEMAND_ERROR_ACTION_REPORT);
}

static void advance(OndemandRegion *r);

/* In a thread of the pool, which RCU does not know. */
static int fill_job(void *opaque)
{
    OndemandRegion *r = opaque;
    int ret;

    rcu_register_thread();
    ret = fill_chunk(r, r->job);
    rcu_unregister_thread();
    return ret;
}

static void fill_done(void *opaque, int ret)
{
    OndemandRegion *r = opaque;
    int n = r->job;

    r->job = -1;
    if (r->chunks[n].state != ONDEMAND_STATE_QUEUED) {
        /* a dump has done without us what there was to do */
    } else if (ret == -ECANCELED) {
        set_state(r, n, ONDEMAND_STATE_COLD);
    } else if (ret) {
        backing_failed(r, n, ret);
    }
    if (!r->stopping) {
        advance(r);
    }
    aio_wait_kick();
}

/* Have the queued chunks mapped, or filled first: one at a time. */
static void advance(OndemandRegion *r)
{
    for (unsigned n = 0; n < r->nr_chunks; n++) {
        if (r->chunks[n].state != ONDEMAND_STATE_QUEUED || r->job == n) {
            continue;
        }
        if (chunk_is_resident(r, n)) {
            ondemand_map_queue(&r->map);
        } else if (r->job < 0) {
            OndemandRefusal why;

            /* fill nothing that cannot be mapped */
            if (!ondemand_map_check_limits(&r->map, chunk_length(r, n),
                                           &why)) {
                refuse(r, n, why);
                continue;
            }
            r->job = n;
            thread_pool_submit_aio(fill_job, r, fill_done, r);
        }
    }
}

static bool may_queue(const OndemandRegionChunk *c)
{
    return c->state == ONDEMAND_STATE_COLD ||
           (c->state == ONDEMAND_STATE_REFUSED &&
            qemu_clock_get_ns(QEMU_CLOCK_REALTIME) >= c->retry_ns);
}

static void look_at_hot(void *opaque)
{
    OndemandRegion *r = opaque;

    if (r->stopping || runstate_check(RUN_STATE_INMIGRATE)) {
        return;
    }
    for (unsigned n = 0; n < r->nr_chunks; n++) {
        OndemandRegionChunk *c = &r->chunks[n];

        if (!qatomic_xchg(&c->hot, false)) {
            continue;
        }
        if (may_queue(c)) {
            set_state(r, n, ONDEMAND_STATE_QUEUED);
        } else if (c->state == ONDEMAND_STATE_REFUSED) {
            qatomic_set(&c->hits, 0);
        }
    }
    advance(r);
}

/* What became hot before a migration came in has been left where it was. */
static void vm_changes(void *opaque, bool running, RunState state)
{
    OndemandRegion *r = opaque;

    if (running) {
        qemu_bh_schedule(r->bh);
    }
}

static void commit(OndemandMap *map)
{
    OndemandRegion *r = container_of(map, OndemandRegion, map);

    for (unsigned n = 0; n < r->nr_chunks; n++) {
        OndemandRegionChunk *c = &r->chunks[n];

        if (c->state != ONDEMAND_STATE_QUEUED || !chunk_is_resident(r, n)) {
            continue;
        }
        if (ondemand_chunk_map(map, &c->chunk, &r->io, chunk_start(r, n),
                               r->backing.ram, chunk_start(r, n),
                               chunk_length(r, n), &c->why)) {
            set_state(r, n, ONDEMAND_STATE_MAPPED);
            allow_huge_pages(r, chunk_start(r, n), chunk_length(r, n), true);
        } else {
            refuse(r, n, c->why);
        }
    }
}

/* Code need not die of a migration that ends: it waits, as if queued. */
static bool refused_for_now(const OndemandRegionChunk *c, OndemandForce why)
{
    return why == ONDEMAND_FORCE_FETCH && c->state == ONDEMAND_STATE_REFUSED &&
           c->why == ONDEMAND_REFUSAL_MIGRATION;
}

static int force(OndemandMap *map, MemoryRegion *mr, hwaddr addr,
                 OndemandForce why)
{
    OndemandRegion *r = container_of(map, OndemandRegion, map);
    unsigned n = addr / r->chunk_size;

    if (mr != &r->io || n >= r->nr_chunks) {
        return -1;
    }
    if (!r->stopping && may_queue(&r->chunks[n])) {
        map->counters.forced[why]++;
        set_state(r, n, ONDEMAND_STATE_QUEUED);
        qemu_bh_schedule(r->bh);
    }
    return refused_for_now(&r->chunks[n], why) ? ONDEMAND_STATE_QUEUED
                                               : r->chunks[n].state;
}

/* What is outside only is not forced: it can be had from there. */
static void force_all(OndemandMap *map, OndemandForce why)
{
    OndemandRegion *r = container_of(map, OndemandRegion, map);

    for (unsigned n = 0; n < r->nr_chunks; n++) {
        int ret;

        if (r->stopping || r->chunks[n].state == ONDEMAND_STATE_MAPPED ||
            (r->backing.outside && !resident_in_chunk(r, n))) {
            continue;
        }
        map->counters.forced[why]++;
        ret = fill_chunk(r, n);
        if (ret) {
            backing_failed(r, n, ret);
        } else {
            set_state(r, n, ONDEMAND_STATE_QUEUED);
            ondemand_map_queue(map);
        }
    }
}

/* End the work; no new one begins until resume_jobs(). */
static void end_job(OndemandRegion *r)
{
    qatomic_set(&r->stopping, true);
    AIO_WAIT_WHILE_UNLOCKED(NULL, r->job >= 0);
}

/* What became hot, or waits behind what was ended, is looked at again. */
static void resume_jobs(OndemandRegion *r)
{
    qatomic_set(&r->stopping, false);
    qemu_bh_schedule(r->bh);
}

/* End the work, and have everything trap, until resume_jobs(). */
static void quiesce(OndemandRegion *r)
{
    end_job(r);
    memory_region_transaction_begin();
    for (unsigned n = 0; n < r->nr_chunks; n++) {
        ondemand_chunk_unmap(&r->map, &r->chunks[n].chunk);
        set_state(r, n, ONDEMAND_STATE_COLD);
    }
    memory_region_transaction_commit();
    allow_huge_pages(r, 0, r->size, false);
}

static OndemandRangeList *list_ranges(OndemandMap *map)
{
    OndemandRegion *r = container_of(map, OndemandRegion, map);
    OndemandRangeList *list = NULL, **tail = &list;
    hwaddr base = 0;

    /* where the guest has put it, if it has */
    for (MemoryRegion *mr = &r->io; mr; mr = mr->container) {
        base += mr->addr;
    }
    for (unsigned n = 0; n < r->nr_chunks; n++) {
        OndemandRegionChunk *c = &r->chunks[n];
        OndemandRange *item = g_new0(OndemandRange, 1);

        item->address = base + chunk_start(r, n);
        item->size = chunk_length(r, n);
        item->state = c->state;
        item->hits = qatomic_read(&c->hits);
        item->has_refusal = c->state == ONDEMAND_STATE_REFUSED;
        item->refusal = c->why;
        QAPI_LIST_APPEND(tail, item);
    }
    return list;
}

static uint64_t get_resident(OndemandMap *map)
{
    OndemandRegion *r = container_of(map, OndemandRegion, map);

    return qatomic_read(&r->nr_resident) * r->granule;
}

static const OndemandMapOps region_map_ops = {
    .commit = commit,
    .ranges = list_ranges,
    .resident = get_resident,
    .force = force,
    .force_all = force_all,
};

/*
 * Accesses that trap
 */

static void count_hit(OndemandRegion *r, hwaddr addr)
{
    OndemandRegionChunk *c = &r->chunks[addr / r->chunk_size];
    unsigned hits = qatomic_fetch_inc(&c->hits) + 1;
    OndemandState state = qatomic_read(&c->state);

    if (hits > ondemand_policy_threshold(r->map.policy) &&
        (state == ONDEMAND_STATE_COLD || state == ONDEMAND_STATE_REFUSED) &&
        !qatomic_xchg(&c->hot, true)) {
        qemu_bh_schedule(r->bh);
    }
}

/* So often was the VM asked to stop; atomic */
static unsigned n_stops;

unsigned ondemand_region_stops(void)
{
    return qatomic_read(&n_stops);
}

/* The instruction cannot be taken back: it gets all ones. */
static MemTxResult access_failed(OndemandRegion *r, hwaddr addr, int err,
                                 MemTxAttrs attrs)
{
    if (attrs.debug) {
        /* who looks from outside is told, and changes nothing */
    } else if (r->backing.stop_on_error) {
        qemu_system_vmstop_request_prepare();
        qatomic_inc(&n_stops);    /* before anybody can say "cont" to that */
        send_error(r, addr, err, ONDEMAND_ERROR_ACTION_STOP);
        qemu_system_vmstop_request(RUN_STATE_IO_ERROR);
    } else {
        send_error(r, addr, err, ONDEMAND_ERROR_ACTION_REPORT);
    }
    return MEMTX_ERROR;
}

static MemTxResult make_resident(OndemandRegion *r, hwaddr addr, unsigned size,
                                 MemTxAttrs attrs)
{
    for (unsigned g = addr / r->granule; g <= (addr + size - 1) / r->granule;
         g++) {
        int ret = fill_granule(r, g);

        if (ret) {
            return access_failed(r, MAX(addr, g * r->granule), ret, attrs);
        }
    }
    return MEMTX_OK;
}

/*
 * An access that brings a granule in is no hit.  What is used once only is not
 * worth a mapping, for which all the rest of its chunk has to be brought in.
 */
static MemTxResult start_access(OndemandRegion *r, hwaddr addr, unsigned size,
                                MemTxAttrs attrs)
{
    MemTxResult result;
    bool hit;

    if (!qatomic_read(&r->realized)) {
        return MEMTX_DECODE_ERROR;  /* of a vCPU that has an older view */
    }
    hit = granule_is_resident(r, addr);
    result = make_resident(r, addr, size, attrs);
    if (!attrs.debug) {
        ondemand_map_trap(&r->map);
        if (hit || result != MEMTX_OK) {
            count_hit(r, addr);
        }
    }
    return result;
}

/* An access at the window's end may reach beyond it. */
static unsigned inside(OndemandRegion *r, hwaddr addr, unsigned size)
{
    return MIN(size, r->size - addr);
}

static MemTxResult region_read(void *opaque, hwaddr addr, uint64_t *data,
                               unsigned size, MemTxAttrs attrs)
{
    OndemandRegion *r = opaque;
    unsigned length = inside(r, addr, size);
    uint8_t buf[8];
    MemTxResult result;

    memset(buf, 0xff, sizeof(buf));
    result = start_access(r, addr, length, attrs);
    if (result == MEMTX_OK) {
        result = address_space_read(r->ram_as, addr, MEMTXATTRS_UNSPECIFIED,
                                    buf, length);
    }
    *data = ldn_le_p(buf, size);
    return result;
}

static MemTxResult region_write(void *opaque, hwaddr addr, uint64_t data,
                                unsigned size, MemTxAttrs attrs)
{
    OndemandRegion *r = opaque;
    unsigned length = inside(r, addr, size);
    uint8_t buf[8];
    MemTxResult result;

    result = start_access(r, addr, length, attrs);
    if (result != MEMTX_OK) {
        return result;
    }
    stn_le_p(buf, size, data);
    return address_space_write(r->ram_as, addr, MEMTXATTRS_UNSPECIFIED, buf,
                               length);
}

static const MemoryRegionOps region_ops = {
    .read_with_attrs = region_read,
    .write_with_attrs = region_write,
    .endianness = DEVICE_LITTLE_ENDIAN,
    .valid = { .min_access_size = 1, .max_access_size = 8, .unaligned = true },
    .impl = { .min_access_size = 1, .max_access_size = 8, .unaligned = true },
};

/*
 * RamDiscardManager: migration and dump skip what is only in the backing
 */

/*
 * FILLING counts, see "Migration" above.  But where the VM has moved to while
 * its RAM has not yet (postcopy) it must not: the source would be asked for
 * pages that it does not have, and the filler would wait for them for ever.  A
 * background snapshot looks before it stops the VM, and never again.
 */
static bool is_there(OndemandRegion *r, unsigned g)
{
    OndemandGranule state = qatomic_read(&r->state[g]);

    if (migration_is_running() && migrate_background_snapshot()) {
        return true;
    }
    return state == ONDEMAND_RESIDENT ||
           (state == ONDEMAND_FILLING && !migration_in_incoming_postcopy());
}

static uint64_t rdm_granularity(const RamDiscardManager *rdm,
                                const MemoryRegion *mr)
{
    return ONDEMAND_REGION(rdm)->granule;
}

static bool rdm_is_populated(const RamDiscardManager *rdm,
                             const MemoryRegionSection *section)
{
    OndemandRegion *r = ONDEMAND_REGION(rdm);
    uint64_t start = section->offset_within_region;
    uint64_t end = start + int128_get64(section->size);

    for (unsigned g = start / r->granule; g < DIV_ROUND_UP(end, r->granule);
         g++) {
        if (!is_there(r, g)) {
            return false;
        }
    }
    return true;
}

/* Call @fn for each run of granules in @section that are, or are not, there. */
static int replay(OndemandRegion *r, MemoryRegionSection *section, bool there,
                  ReplayRamDiscardState fn, void *opaque)
{
    uint64_t end = section->offset_within_region +
                   int128_get64(section->size);
    unsigned last = DIV_ROUND_UP(end, r->granule);
    unsigned g = section->offset_within_region / r->granule;

    while (g < last) {
        MemoryRegionSection part = *section;
        unsigned first = g;
        int ret;

        while (g < last && is_there(r, g) == there) {
            g++;
        }
        if (g == first) {
            g++;
            continue;
        }
        if (!memory_region_section_intersect_range(&part, first * r->granule,
                                                   (g - first) * r->granule)) {
            continue;
        }
        ret = fn(&part, opaque);
        if (ret) {
            return ret;
        }
    }
    return 0;
}

static int rdm_replay_populated(const RamDiscardManager *rdm,
                                MemoryRegionSection *section,
                                ReplayRamDiscardState fn, void *opaque)
{
    return replay(ONDEMAND_REGION(rdm), section, true, fn, opaque);
}

static int rdm_replay_discarded(const RamDiscardManager *rdm,
                                MemoryRegionSection *section,
                                ReplayRamDiscardState fn, void *opaque)
{
    return replay(ONDEMAND_REGION(rdm), section, false, fn, opaque);
}

/*
 * Those who listen want to map memory for DMA before it is used, from whatever
 * thread uses it first.  ondemand_map_register() and ondemand_map_allow_dma()
 * keep them away.
 */
static void rdm_register_listener(RamDiscardManager *rdm,
                                  RamDiscardListener *rdl,
                                  MemoryRegionSection *section)
{
    error_report_once("%s: memory that is filled on demand cannot be used "
                      "for DMA", ONDEMAND_REGION(rdm)->map.name);
    rdl->section = memory_region_section_new_copy(section);
}

static void rdm_unregister_listener(RamDiscardManager *rdm,
                                    RamDiscardListener *rdl)
{
    memory_region_section_free_copy(rdl->section);
    rdl->section = NULL;
}

/*
 * Migration.  The state goes before the RAM, so that the destination knows what
 * will come, and again at the end, with what was filled meanwhile.
 */

static int region_pre_save(void *opaque)
{
    OndemandRegion *r = opaque;

    bitmap_zero(r->bitmap, r->nr_granules);
    for (int g = 0; g < r->nr_granules; g++) {
        if (qatomic_read(&r->state[g]) == ONDEMAND_RESIDENT) {
            set_bit(g, r->bitmap);
        }
    }
    return 0;
}

/*
 * The thread of the pool does not stop with the VM: it would fill granules when
 * the RAM has been sent, but the state at the end has not.  No other
 * chunk is filled while a migration runs.
 */
static int region_pre_save_early(void *opaque)
{
    OndemandRegion *r = opaque;

    end_job(r);
    resume_jobs(r);
    return region_pre_save(opaque);
}

/* Policy with the threshold 0: all chunks are hot. */
static void map_at_once(OndemandRegion *r)
{
    if (!ondemand_policy_threshold(r->map.policy)) {
        for (unsigned n = 0; n < r->nr_chunks; n++) {
            qatomic_set(&r->chunks[n].hot, true);
        }
        qemu_bh_schedule(r->bh);
    }
}

/* For the load of a snapshot, which makes granules cold again */
static int region_pre_load(void *opaque)
{
    OndemandRegion *r = opaque;

    quiesce(r);
    resume_jobs(r);
    return 0;
}

static int region_post_load(void *opaque, int version_id)
{
    OndemandRegion *r = opaque;

    qemu_mutex_lock(&r->lock);
    for (int g = 0; g < r->nr_granules; g++) {
        qatomic_set(&r->state[g], test_bit(g, r->bitmap) ? ONDEMAND_RESIDENT
                                                         : ONDEMAND_COLD);
    }
    qatomic_set(&r->nr_resident, bitmap_count_one(r->bitmap, r->nr_granules));
    qemu_mutex_unlock(&r->lock);
    return 0;
}

/* The state at the end: what is to be mapped at once can be from now on. */
static int region_post_load_last(void *opaque, int version_id)
{
    region_post_load(opaque, version_id);
    map_at_once(opaque);
    return 0;
}

#define REGION_FIELDS                                                       \
    .version_id = 1,                                                        \
    .minimum_version_id = 1,                                                \
    .pre_load = region_pre_load,                                            \
    .fields = (const VMStateField[]) {                                      \
        VMSTATE_UINT64_EQUAL(size, OndemandRegion,                          \
                             "the window has another size here"),           \
        VMSTATE_UINT64_EQUAL(granule, OndemandRegion,                       \
                             "the policy has another granule here"),        \
        VMSTATE_BITMAP(bitmap, OndemandRegion, 0, nr_granules),             \
        VMSTATE_END_OF_LIST()                                               \
    }

static const VMStateDescription vmstate_region_early = {
    .name = "ondemand-region-early",
    .priority = MIG_PRI_VIRTIO_MEM,
    .early_setup = true,
    .pre_save = region_pre_save_early,
    .post_load = region_post_load,
    REGION_FIELDS
};

static const VMStateDescription vmstate_region = {
    .name = "ondemand-region",
    .pre_save = region_pre_save,
    .post_load = region_post_load_last,
    REGION_FIELDS
};

/*
 * The region's life
 */

static bool check_sizes(MemoryRegion *ram, uint64_t granule, Error **errp)
{
    uint64_t size = memory_region_size(ram);
    uint64_t page = MAX(qemu_ram_pagesize(ram->ram_block),
                        qemu_target_page_size());

    if (granule < page) {
        error_setg(errp, "The policy's 'granule' is %" PRIu64 " bytes, but "
                   "must not be smaller than the pages of the memory, %"
                   PRIu64, granule, page);
        return false;
    }
    if (!size || size % granule) {
        error_setg(errp, "The window's size is %" PRIu64 " bytes, but must be "
                   "a multiple of the policy's 'granule', %" PRIu64, size,
                   granule);
        return false;
    }
    if (size / granule > ONDEMAND_GRANULES_MAX) {
        error_setg(errp, "The window has %" PRIu64 " granules, but at most %u "
                   "are possible: the policy's 'granule', %" PRIu64 ", is too "
                   "small", size / granule, ONDEMAND_GRANULES_MAX, granule);
        return false;
    }
    return true;
}

bool ondemand_region_realize(OndemandRegion *r, DeviceState *owner,
                             OndemandPolicy *policy,
                             const OndemandBacking *backing, Error **errp)
{
    uint64_t size = memory_region_size(backing->ram);

    if (!check_sizes(backing->ram, policy->granule, errp) ||
        !ondemand_map_register(&r->map, owner, policy, &region_map_ops,
                               errp)) {
        return false;
    }
    r->owner = owner;
    r->backing = *backing;
    r->size = size;
    r->granule = policy->granule;
    r->nr_granules = size / r->granule;
    r->chunk_size = MAX(pow2ceil(DIV_ROUND_UP(size, policy->chunks)),
                        r->granule);
    r->nr_chunks = DIV_ROUND_UP(size, r->chunk_size);
    r->chunks = g_new0(OndemandRegionChunk, r->nr_chunks);
    r->state = g_malloc0(r->nr_granules);
    r->bitmap = bitmap_new(r->nr_granules);
    r->bh = qemu_bh_new_guarded(look_at_hot, r, &owner->mem_reentrancy_guard);
    r->ram_as = g_new0(AddressSpace, 1);
    address_space_init(r->ram_as, backing->ram, "ondemand-region");
    memory_region_init_io(&r->io, OBJECT(owner), &region_ops, r,
                          "ondemand-window", size);
    memory_region_enable_lockless_io(&r->io);
    if (backing->outside) {
        memory_region_set_ram_discard_manager(backing->ram,
                                              RAM_DISCARD_MANAGER(r));
        vmstate_register_any(VMSTATE_IF(owner), &vmstate_region_early, r);
        vmstate_register_any(VMSTATE_IF(owner), &vmstate_region, r);
    }
    r->vmstate = qemu_add_vm_change_state_handler(vm_changes, r);
    allow_huge_pages(r, 0, size, false);
    r->realized = true;
    map_at_once(r);
    return true;
}

void ondemand_region_unrealize(OndemandRegion *r)
{
    if (!r->realized) {
        return;
    }
    quiesce(r);
    qemu_del_vm_change_state_handler(r->vmstate);
    if (r->backing.outside) {
        vmstate_unregister(VMSTATE_IF(r->owner), &vmstate_region, r);
        vmstate_unregister(VMSTATE_IF(r->owner), &vmstate_region_early, r);
        memory_region_set_ram_discard_manager(r->backing.ram, NULL);
    }
    qatomic_set(&r->realized, false);
    ondemand_map_unregister(&r->map);
    /*
     * It holds a reference on the device.  Who reads it without the BQL is in
     * an RCU read-side critical section.
     */
    address_space_destroy_free(r->ram_as);
}

static void region_init(Object *obj)
{
    OndemandRegion *r = ONDEMAND_REGION(obj);

    qemu_mutex_init(&r->lock);
    qemu_cond_init(&r->filled);
    r->job = -1;
}

/* The rest is not freed before: a vCPU may be using it without the BQL. */
static void region_finalize(Object *obj)
{
    OndemandRegion *r = ONDEMAND_REGION(obj);

    if (r->bh) {
        qemu_bh_delete(r->bh);
        ondemand_map_release(&r->map);
    }
    g_free(r->chunks);
    g_free(r->state);
    g_free(r->bitmap);
    qemu_cond_destroy(&r->filled);
    qemu_mutex_destroy(&r->lock);
}

static void region_class_init(ObjectClass *oc, const void *data)
{
    RamDiscardManagerClass *rdmc = RAM_DISCARD_MANAGER_CLASS(oc);

    rdmc->get_min_granularity = rdm_granularity;
    rdmc->is_populated = rdm_is_populated;
    rdmc->replay_populated = rdm_replay_populated;
    rdmc->replay_discarded = rdm_replay_discarded;
    rdmc->register_listener = rdm_register_listener;
    rdmc->unregister_listener = rdm_unregister_listener;
}

static const TypeInfo region_types[] = {
    {
        .name = TYPE_ONDEMAND_REGION,
        .parent = TYPE_OBJECT,
        .instance_size = sizeof(OndemandRegion),
        .instance_init = region_init,
        .instance_finalize = region_finalize,
        .class_init = region_class_init,
        .interfaces = (const InterfaceInfo[]) {
            { TYPE_RAM_DISCARD_MANAGER },
            { },
        },
    },
};

DEFINE_TYPES(region_types)

/*
 * Device that compares and measures the dispatch of device accesses
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The dispatch of an access is inside QEMU, behind an accelerator; this device
 * reaches it from a thread of its own that stands for a vCPU.  A test starts it
 * through BAR 0 and reads the outcome there; the registers are in
 * docs/specs/dispatch-testdev.rst.
 *
 * A comparison builds random topologies of random regions in BAR 1 (memory)
 * and BAR 2 (ports).  Each random access is made twice: by address_space_*()
 * and by way of a reference table (system/addr-hint.h).  Result, data and
 * everything that the regions' callbacks saw must be equal.  Or it is made at
 * an address and by a hint (system/addr-hint-window.h) that was given for it.
 *
 * A measurement makes one kind of access in a loop, to be counted from outside.
 *
 * A proof makes the search's own data read-only while accesses are found by the
 * table, and tells how many writes there were all the same.
 *
 * The worker thread runs without the BQL, as a vCPU does.  It takes the BQL to
 * change the topology; the registers are only touched with the BQL held.
 */

#include "qemu/osdep.h"
#include <sys/mman.h>
#include "hw/core/cpu.h"
#include "hw/pci/pci_device.h"
#include "hw/qdev-properties.h"
#include "migration/vmstate.h"
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "qemu/event_notifier.h"
#include "qemu/main-loop.h"
#include "qemu/module.h"
#include "qemu/rcu.h"
#include "qemu/timer.h"
#include "qemu/units.h"
#include "qom/object.h"
#include "system/addr-hint.h"
#include "system/addr-hint-window.h"
#include "system/address-spaces.h"
#include "system/memory.h"
#include "system/qtest.h"

#define TYPE_DISPATCH_TESTDEV "dispatch-testdev"
OBJECT_DECLARE_SIMPLE_TYPE(DispatchTestDev, DISPATCH_TESTDEV)

#define TYPE_DISPATCH_TESTDEV_IOMMU "dispatch-testdev-iommu"
typedef struct TestIommu TestIommu;
DECLARE_INSTANCE_CHECKER(TestIommu, DISPATCH_TESTDEV_IOMMU,
                         TYPE_DISPATCH_TESTDEV_IOMMU)

#define MAGIC 0x48505431
#define CONTROL_SIZE (4 * KiB)
#define MEM_WINDOW_SIZE (32 * MiB)
#define IO_WINDOW_SIZE 256
/* The comparison keeps to the start of BAR 1, so that regions overlap often */
#define FUZZ_WINDOW_SIZE (64 * KiB)
#define RAM_SIZE (16 * KiB)
/* The page that the IOMMU leads to; nothing, above all no IOMMU, overlaps it */
#define BEHIND_IOMMU (MEM_WINDOW_SIZE - 4 * KiB)

#define NR_IO_REGIONS 48
#define NR_RAM_REGIONS 3
#define NR_ALIASES 8
#define NR_CONTAINERS 4
#define NR_REGIONS (NR_IO_REGIONS + NR_RAM_REGIONS + NR_ALIASES + \
                    NR_CONTAINERS + 2)
/* A view has room for 4,096 sections; the machine takes some of them */
#define MAX_BENCH_REGIONS 4000
#define BENCH_PATTERN 8192
#define NR_TEST_HINTS 48
#define MAX_HINT_LENGTH 64
#define MAX_EVENTS 64
#define PAGE_MASK_4K (~0xfffULL)

enum {
    REG_MAGIC = 0x00,           /* RO */
    REG_SEED = 0x04,
    REG_COUNT = 0x08,           /* accesses to make */
    REG_CHANGE_EVERY = 0x0c,    /* accesses between changes, 0: never */
    REG_REGIONS = 0x10,         /* measurement: number of regions */
    REG_FLAGS = 0x14,
    REG_START = 0x18,           /* WO */
    REG_STATUS = 0x1c,          /* RO */
    REG_DIFFERENCES = 0x20,     /* RO */
    REG_CHANGES = 0x24,         /* RO: topology changes made */
    REG_HITS = 0x28,            /* RO, and so on */
    REG_CHECKED = 0x2c,
    REG_MISSES = 0x30,
    REG_REFUSED = 0x34,
    REG_FILLS = 0x38,
    REG_EVICTIONS = 0x3c,
    REG_RENEWALS = 0x40,
    REG_ELAPSED_NS = 0x44,      /* RO: processor time of a measurement */
    REG_WINDOW_HITS = 0x4c,     /* the register above has 64 bits */
    REG_WINDOW_REFILLS = 0x50,
    REG_WINDOW_STALE = 0x54,
    REG_WINDOW_REFUSED = 0x58,
    REG_PLAIN_WRITES = 0x5c,    /* RO: proof, writes of the plain path */
    REG_END = 0x60,
};

enum { START_COMPARE = 1, START_MEASURE = 2, START_PROVE = 3 };
enum { STATUS_IDLE, STATUS_RUNNING, STATUS_DONE, STATUS_REFUSED };

enum {
    FLAG_VCPU_PATH = 1 << 0,    /* as a vCPU's access, else address_space_rw */
    FLAG_WRITE = 1 << 1,
    FLAG_PORTS = 1 << 2,
    FLAG_LOCKLESS = 1 << 3,
    FLAG_OWNED = 1 << 4,        /* by a device, hence guarded */
    FLAG_ZIPF = 1 << 5,         /* else round robin */
    FLAG_WINDOW = 1 << 6,       /* by hints of the first addr-hint device */
};

typedef struct TestRegion {
    DispatchTestDev *dev;
    MemoryRegion mr;
    MemoryRegionOps ops;
    EventNotifier notifier;
    MemoryRegion *parent;       /* container that it is in, or NULL */
    uint64_t size;
    unsigned id;
    bool nests;                 /* its callback accesses the window again */
    bool notifies;              /* has an eventfd at offset 0 */
} TestRegion;

struct TestIommu {
    IOMMUMemoryRegion parent_obj;

    DispatchTestDev *dev;
};

/* What a callback saw of one access */
typedef struct Event {
    uint64_t addr;
    uint64_t value;
    MemTxAttrs attrs;
    unsigned region;
    unsigned size;
    bool is_write;
    bool bql;
    bool guard;
} Event;

/* What one way of making an access led to */
typedef struct Outcome {
    Event events[MAX_EVENTS];
    unsigned count;
    MemTxResult result;
    uint8_t data[16];
    uint64_t notified;          /* bit per region */
} Outcome;

/* A hint, and what the address that it was given for led to then */
typedef struct TestHint {
    bool used;
    bool live;                  /* it leads there now, by the plain path */
    unsigned index;
    hwaddr addr;
    unsigned length;
    MemoryRegion *mr;
    hwaddr offset;
} TestHint;

struct DispatchTestDev {
    PCIDevice parent_obj;

    MemoryRegion control;
    MemoryRegion mem_window;
    MemoryRegion io_window;
    QemuThread worker;
    bool worker_started;

    /* protected by the BQL */
    uint32_t regs[REG_END / 4];

    /* used by the worker only, from its start to its end */
    GRand *rand;
    hwaddr mem_base;
    hwaddr io_base;
    AddrHintTable *table;
    AddrHintCounters counters;
    TestRegion region[NR_IO_REGIONS];
    MemoryRegion ram[NR_RAM_REGIONS];
    MemoryRegion rom_device;
    MemoryRegion alias[NR_ALIASES];
    MemoryRegion container[NR_CONTAINERS];
    TestIommu iommu;
    uint64_t sizes[NR_REGIONS];
    Outcome *outcome;           /* where callbacks record, or NULL */
    unsigned nesting;
    unsigned accepts_phase;
    TestRegion behind_iommu;
    AddrHintWindow *window;
    hwaddr window_base;
    TestHint hint[NR_TEST_HINTS];
    bool stop;                  /* set with the BQL held, read by the worker */

    TestRegion *bench;
    unsigned nr_bench;
    uint64_t bench_value;
    uint64_t elapsed_ns;
    unsigned plain_writes;
};

static uint32_t pick(DispatchTestDev *s, uint32_t below)
{
    return below ? g_rand_int_range(s->rand, 0, below) : 0;
}

static bool chance(DispatchTestDev *s, unsigned percent)
{
    return pick(s, 100) < percent;
}

/*
 * Callbacks of the comparison
 */

static void record(TestRegion *r, hwaddr addr, uint64_t value, unsigned size,
                   MemTxAttrs attrs, bool is_write)
{
    Outcome *outcome = r->dev->outcome;

    if (outcome && outcome->count < MAX_EVENTS) {
        outcome->events[outcome->count] = (Event) {
            .addr = addr,
            .value = value,
            .attrs = attrs,
            .region = r->id,
            .size = size,
            .is_write = is_write,
            .bql = bql_locked(),
            /* without the BQL others may be in the device as well */
            .guard = bql_locked() && r->mr.dev &&
                     r->mr.dev->mem_reentrancy_guard.engaged_in_io,
        };
    }
    if (outcome) {
        outcome->count++;
    }
}

/* An access from inside an access; the guard stops it on a guarded region. */
static void nest(TestRegion *r, hwaddr addr)
{
    DispatchTestDev *s = r->dev;
    MemTxResult result;
    uint32_t val = 0;

    if (!r->nests || s->nesting) {
        return;
    }
    s->nesting++;
    result = address_space_read(&address_space_memory,
                                s->mem_base + (addr * 4) % FUZZ_WINDOW_SIZE,
                                MEMTXATTRS_UNSPECIFIED, &val, sizeof(val));
    s->nesting--;
    record(r, result, val, 0, MEMTXATTRS_UNSPECIFIED, false);
}

/* A value that tells region, address and size, with bits above the size set */
static uint64_t value_of(TestRegion *r, hwaddr addr, unsigned size)
{
    return ((uint64_t)(r->id + 1) * 0x0123456789abcdefULL) ^
           (addr * 0x9e3779b97f4a7c15ULL) ^ size;
}

static uint64_t test_read(void *opaque, hwaddr addr, unsigned size)
{
    TestRegion *r = opaque;

    record(r, addr, 0, size, MEMTXATTRS_UNSPECIFIED, false);
    nest(r, addr);
    return value_of(r, addr, size);
}

static void test_write(void *opaque, hwaddr addr, uint64_t val, unsigned size)
{
    TestRegion *r = opaque;

    record(r, addr, val, size, MEMTXATTRS_UNSPECIFIED, true);
    nest(r, addr);
}

static MemTxResult test_read_attrs(void *opaque, hwaddr addr, uint64_t *data,
                                   unsigned size, MemTxAttrs attrs)
{
    TestRegion *r = opaque;

    record(r, addr, 0, size, attrs, false);
    *data = value_of(r, addr, size);
    return addr & 64 ? MEMTX_ERROR : MEMTX_OK;
}

static MemTxResult test_write_attrs(void *opaque, hwaddr addr, uint64_t val,
                                    unsigned size, MemTxAttrs attrs)
{
    TestRegion *r = opaque;

    record(r, addr, val, size, attrs, true);
    return addr & 64 ? MEMTX_ERROR : MEMTX_OK;
}

/* A rule that depends on state, which changes without a topology change */
static bool test_accepts(void *opaque, hwaddr addr, unsigned size,
                         bool is_write, MemTxAttrs attrs)
{
    TestRegion *r = opaque;

    return ((addr >> 2) + r->dev->accepts_phase + r->id) & 1;
}

static IOMMUTLBEntry test_translate(IOMMUMemoryRegion *iommu, hwaddr addr,
                                    IOMMUAccessFlags flag, int index)
{
    DispatchTestDev *s = DISPATCH_TESTDEV_IOMMU(iommu)->dev;

    return (IOMMUTLBEntry) {
        .target_as = &address_space_memory,
        .iova = addr & PAGE_MASK_4K,
        .translated_addr = s->mem_base + BEHIND_IOMMU,
        .addr_mask = 0xfff,
        .perm = addr & 0x1000 ? IOMMU_RO : IOMMU_RW,
    };
}

static void test_iommu_class_init(ObjectClass *klass, const void *data)
{
    IOMMU_MEMORY_REGION_CLASS(klass)->translate = test_translate;
}

/*
 * Random topologies
 */

static unsigned random_size_limit(DispatchTestDev *s)
{
    return 1 << pick(s, 4);
}

/*
 * Any mixture of rules.  Called only while the region is in no view: rules do
 * not change under a view, as no device changes them.
 */
static void randomize_ops(DispatchTestDev *s, TestRegion *r)
{
    unsigned a = random_size_limit(s), b = random_size_limit(s);
    MemoryRegionOps *ops;

    ops = &r->ops;
    memset(ops, 0, sizeof(*ops));
    if (chance(s, 80)) {
        ops->read = test_read;
        ops->write = test_write;
    } else {
        ops->read_with_attrs = test_read_attrs;
        ops->write_with_attrs = test_write_attrs;
    }
    if (chance(s, 60)) {
        ops->endianness = chance(s, 70) ? DEVICE_LITTLE_ENDIAN
                                        : DEVICE_BIG_ENDIAN;
    }
    if (chance(s, 70)) {
        ops->valid.min_access_size = MIN(a, b);
        ops->valid.max_access_size = MAX(a, b);
    }
    ops->valid.unaligned = chance(s, 30);
    if (chance(s, 10)) {
        ops->valid.accepts = test_accepts;
    }
    a = random_size_limit(s);
    b = random_size_limit(s);
    if (chance(s, 70)) {
        ops->impl.min_access_size = MIN(a, b);
        ops->impl.max_access_size = MAX(a, b);
    }
    ops->impl.unaligned = chance(s, 20);
    r->nests = chance(s, 5);
    memory_region_set_readonly(&r->mr, chance(s, 10));
    r->mr.lockless_io = false;
    r->mr.disable_reentrancy_guard = chance(s, 20);
    if (chance(s, 15)) {
        memory_region_enable_lockless_io(&r->mr);
    }
    if (chance(s, 10)) {
        memory_region_set_flush_coalesced(&r->mr);
    } else {
        memory_region_clear_flush_coalesced(&r->mr);
    }
}

static MemoryRegion *nth_region(DispatchTestDev *s, unsigned n)
{
    if (n < NR_IO_REGIONS) {
        return &s->region[n].mr;
    }
    n -= NR_IO_REGIONS;
    if (n < NR_RAM_REGIONS) {
        return &s->ram[n];
    }
    n -= NR_RAM_REGIONS;
    if (n < NR_ALIASES) {
        return &s->alias[n];
    }
    n -= NR_ALIASES;
    if (n < NR_CONTAINERS) {
        return &s->container[n];
    }
    return n == NR_CONTAINERS ? &s->rom_device
                              : MEMORY_REGION(&s->iommu);
}

static void take_out(DispatchTestDev *s, MemoryRegion *mr)
{
    if (mr->container) {
        memory_region_del_subregion(mr->container, mr);
    }
}

static bool is_container(DispatchTestDev *s, MemoryRegion *mr)
{
    return mr >= s->container && mr < s->container + NR_CONTAINERS;
}

/* Put the region somewhere: port window, memory window or a container in it */
static void put_in(DispatchTestDev *s, MemoryRegion *mr, bool is_plain_io)
{
    uint64_t window = FUZZ_WINDOW_SIZE;
    MemoryRegion *parent = &s->mem_window;
    uint64_t offset;

    if (is_plain_io && chance(s, 40)) {
        window = IO_WINDOW_SIZE;
        parent = &s->io_window;
        memory_region_set_size(mr, 1 + pick(s, 32));
    } else if (!is_container(s, mr) && chance(s, 30)) {
        parent = &s->container[pick(s, NR_CONTAINERS)];
        window = memory_region_size(parent);
    }
    offset = pick(s, window);
    if (chance(s, 50)) {
        offset &= ~7ULL;
    }
    if (!is_plain_io) {
        offset &= PAGE_MASK_4K;
    }
    memory_region_add_subregion_overlap(parent, offset, mr, pick(s, 5));
}

static void change_io_region(DispatchTestDev *s, TestRegion *r)
{
    static const uint64_t sizes[] = { 1, 4, 8, 12, 64, 256, 4 * KiB, 9 * KiB };

    take_out(s, &r->mr);
    randomize_ops(s, r);
    memory_region_set_enabled(&r->mr, chance(s, 90));
    if (chance(s, 20)) {
        return;                 /* stays out, but an alias may show it */
    }
    memory_region_set_size(&r->mr, sizes[pick(s, ARRAY_SIZE(sizes))]);
    put_in(s, &r->mr, true);
}

static void change_alias(DispatchTestDev *s, MemoryRegion *mr)
{
    take_out(s, mr);
    memory_region_set_alias_offset(mr, pick(s, 128));
    put_in(s, mr, chance(s, 50));
}

static void change_topology(DispatchTestDev *s)
{
    unsigned victims[6], n = 1 + pick(s, ARRAY_SIZE(victims));

    BQL_LOCK_GUARD();
    memory_region_transaction_begin();
    for (int i = 0; i < n; i++) {
        victims[i] = pick(s, NR_REGIONS);
        if (victims[i] < NR_IO_REGIONS) {
            memory_region_set_enabled(nth_region(s, victims[i]), false);
        }
    }
    memory_region_transaction_commit();

    memory_region_transaction_begin();
    for (int i = 0; i < n; i++) {
        MemoryRegion *mr = nth_region(s, victims[i]);

        if (victims[i] < NR_IO_REGIONS) {
            change_io_region(s, &s->region[victims[i]]);
        } else if (mr->alias) {
            change_alias(s, mr);
        } else {
            take_out(s, mr);
            put_in(s, mr, false);
            memory_region_set_enabled(mr, chance(s, 80));
        }
    }
    memory_region_rom_device_set_romd(&s->rom_device, chance(s, 50));
    memory_region_transaction_commit();
    s->regs[REG_CHANGES / 4]++;
}

/* An eventfd comes or goes without any change of the view. */
static void change_eventfd(DispatchTestDev *s)
{
    TestRegion *r = &s->region[pick(s, NR_IO_REGIONS)];

    BQL_LOCK_GUARD();
    if (r->notifies) {
        memory_region_del_eventfd(&r->mr, 0, 0, false, 0, &r->notifier);
    } else {
        memory_region_add_eventfd(&r->mr, 0, 0, false, 0, &r->notifier);
    }
    r->notifies = !r->notifies;
}

/*
 * The comparison
 */

typedef struct Access {
    AddressSpace *as;
    hwaddr addr;
    MemTxAttrs attrs;
    unsigned len;
    bool is_write;
    bool is_value;              /* by the ld/st functions */
    bool with_bql;
    uint8_t data[16];
} Access;

static hwaddr random_addr(DispatchTestDev *s, bool ports)
{
    MemoryRegion *mr = nth_region(s, pick(s, NR_IO_REGIONS));
    uint64_t window = ports ? IO_WINDOW_SIZE : FUZZ_WINDOW_SIZE;
    hwaddr base = ports ? s->io_base : s->mem_base;
    MemoryRegion *in = ports ? &s->io_window : &s->mem_window;
    hwaddr offset = pick(s, window);

    if (mr->container == in && chance(s, 80)) {
        /* around a border, or at a register that was used before */
        offset = mr->addr + (chance(s, 30) ? memory_region_size(mr) : 0) +
                 (chance(s, 60) ? pick(s, 4) * 4 : pick(s, 16) - 8);
    }
    return base + offset % window;
}

static Access random_access(DispatchTestDev *s)
{
    bool ports = chance(s, 40);
    Access a = {
        .as = ports ? &address_space_io : &address_space_memory,
        .addr = random_addr(s, ports),
        .attrs = MEMTXATTRS_UNSPECIFIED,
        .len = 1 << pick(s, 4),
        .is_write = chance(s, 50),
        .is_value = chance(s, 40),
        .with_bql = chance(s, 30),
    };

    if (chance(s, 60)) {
        a.addr &= ~(hwaddr)(a.len - 1);
    }
    if (chance(s, 5)) {
        a.len = 1 + pick(s, sizeof(a.data));
    }
    if (a.is_value) {
        a.len = MIN(pow2floor(a.len), 4);
    }
    if (chance(s, 10)) {
        a.attrs = (MemTxAttrs) {
            .requester_id = pick(s, 65536),
            .memory = chance(s, 50),
            .user = chance(s, 50),
        };
    }
    for (int i = 0; i < sizeof(a.data); i++) {
        a.data[i] = pick(s, 256);
    }
    return a;
}

static uint32_t plain_ld(const Access *a, MemTxResult *result)
{
    switch (a->len) {
    case 1:
        return address_space_ldub(a->as, a->addr, a->attrs, result);
    case 2:
        return address_space_lduw(a->as, a->addr, a->attrs, result);
    default:
        return address_space_ldl(a->as, a->addr, a->attrs, result);
    }
}

static void plain_st(const Access *a, uint32_t val, MemTxResult *result)
{
    switch (a->len) {
    case 1:
        address_space_stb(a->as, a->addr, val, a->attrs, result);
        break;
    case 2:
        address_space_stw(a->as, a->addr, val, a->attrs, result);
        break;
    default:
        address_space_stl(a->as, a->addr, val, a->attrs, result);
        break;
    }
}

static MemTxResult value_access(AddrHintTable *table, const Access *a,
                                uint8_t *data)
{
    uint32_t val = ldl_he_p(data);
    MemTxResult result = MEMTX_OK;

    if (a->is_write && table) {
        addr_hint_table_st(table, a->as, a->addr, val, a->attrs, a->len,
                           &result);
    } else if (a->is_write) {
        plain_st(a, val, &result);
    } else {
        val = table ? addr_hint_table_ld(table, a->as, a->addr, a->attrs,
                                         a->len, &result)
                    : plain_ld(a, &result);
        stl_he_p(data, val);
    }
    return result;
}

static void make_access(DispatchTestDev *s, AddrHintTable *table,
                        const Access *a, Outcome *outcome)
{
    memset(outcome, 0, sizeof(*outcome));
    memcpy(outcome->data, a->data, sizeof(outcome->data));
    s->outcome = outcome;
    if (a->with_bql) {
        bql_lock();
    }
    if (a->is_value) {
        outcome->result = value_access(table, a, outcome->data);
    } else if (table) {
        outcome->result = addr_hint_table_rw(table, a->as, a->addr, a->attrs,
                                             outcome->data, a->len,
                                             a->is_write);
    } else {
        outcome->result = address_space_rw(a->as, a->addr, a->attrs,
                                           outcome->data, a->len,
                                           a->is_write);
    }
    if (a->with_bql) {
        bql_unlock();
    }
    s->outcome = NULL;
    for (int i = 0; i < NR_IO_REGIONS; i++) {
        if (s->region[i].notifies &&
            event_notifier_test_and_clear(&s->region[i].notifier)) {
            outcome->notified |= 1ULL << i;
        }
    }
}

static bool same_outcome(const Outcome *x, const Outcome *y)
{
    if (x->result != y->result || x->count != y->count ||
        x->notified != y->notified ||
        memcmp(x->data, y->data, sizeof(x->data))) {
        return false;
    }
    for (int i = 0; i < MIN(x->count, MAX_EVENTS); i++) {
        const Event *e = &x->events[i], *f = &y->events[i];

        if (e->addr != f->addr || e->value != f->value ||
            e->region != f->region || e->size != f->size ||
            e->is_write != f->is_write || e->bql != f->bql ||
            e->guard != f->guard ||
            memcmp(&e->attrs, &f->attrs, sizeof(e->attrs))) {
            return false;
        }
    }
    return true;
}

static void report_difference(const Access *a, const Outcome *plain,
                              const Outcome *hinted)
{
    warn_report("dispatch-testdev: %s of %u bytes at 0x%" HWADDR_PRIX
                " (%s%s): result %u against %u, callbacks %u against %u, "
                "data %02x%02x%02x%02x against %02x%02x%02x%02x",
                a->is_write ? "write" : "read", a->len, a->addr,
                a->as == &address_space_io ? "port" : "memory",
                a->is_value ? ", by value" : "",
                plain->result, hinted->result, plain->count, hinted->count,
                plain->data[0], plain->data[1], plain->data[2],
                plain->data[3], hinted->data[0], hinted->data[1],
                hinted->data[2], hinted->data[3]);
}

static uint32_t compare(DispatchTestDev *s, uint32_t count,
                        uint32_t change_every)
{
    g_autofree Outcome *plain = g_new(Outcome, 1);
    g_autofree Outcome *hinted = g_new(Outcome, 1);
    uint32_t differences = 0;

    for (int i = 0; i < 40 && !qatomic_read(&s->stop); i++) {
        change_topology(s);
    }
    for (uint32_t i = 0; i < count && !qatomic_read(&s->stop); i++) {
        Access a;

        if (change_every && i % change_every == change_every - 1) {
            change_topology(s);
        }
        if (change_every && i % (change_every / 2 + 1) == 0) {
            change_eventfd(s);
        }
        a = random_access(s);
        s->accepts_phase = i / 16;
        make_access(s, NULL, &a, plain);
        make_access(s, s->table, &a, hinted);
        if (!same_outcome(plain, hinted)) {
            if (differences++ < 10) {
                report_difference(&a, plain, hinted);
            }
        }
    }
    return differences;
}

/*
 * The comparison of addresses and hints
 */

/*
 * Does the plain search lead from each byte of the range to the region, and
 * where in it?  Independent of all that is under test.
 */
static bool range_leads_to(const TestHint *hint)
{
    RCU_READ_LOCK_GUARD();
    for (unsigned i = 0; i < hint->length; i++) {
        hwaddr xlat, len = 1;

        if (address_space_translate(&address_space_memory, hint->addr + i,
                                    &xlat, &len, false,
                                    MEMTXATTRS_UNSPECIFIED) != hint->mr ||
            xlat != hint->offset + i) {
            return false;
        }
    }
    return true;
}

/* Called with the BQL held */
static void renew_hint(DispatchTestDev *s, TestHint *hint)
{
    hwaddr len = 1;
    unsigned status;

    if (hint->used) {
        addr_hint_window_release(s->window, hint->index);
    }
    memset(hint, 0, sizeof(*hint));
    hint->addr = random_addr(s, false);
    hint->length = MIN(1 + pick(s, MAX_HINT_LENGTH),
                       -(hint->addr | PAGE_MASK_4K));
    status = addr_hint_window_register(s->window, hint->addr, hint->length,
                                       &hint->index);
    if (status == ADDR_HINT_OK) {
        RCU_READ_LOCK_GUARD();
        hint->used = true;
        hint->mr = address_space_translate(&address_space_memory, hint->addr,
                                           &hint->offset, &len, false,
                                           MEMTXATTRS_UNSPECIFIED);
    }
}

static void renew_hints(DispatchTestDev *s)
{
    BQL_LOCK_GUARD();
    for (int i = 0; i < NR_TEST_HINTS; i++) {
        if (!s->hint[i].used || chance(s, 5)) {
            renew_hint(s, &s->hint[i]);
        }
        s->hint[i].live = s->hint[i].used && range_leads_to(&s->hint[i]);
    }
}

static void release_hints(DispatchTestDev *s)
{
    BQL_LOCK_GUARD();
    for (int i = 0; i < NR_TEST_HINTS; i++) {
        if (s->hint[i].used) {
            addr_hint_window_release(s->window, s->hint[i].index);
            s->hint[i].used = false;
        }
    }
}

/* What an access to nothing leads to */
static void nothing_outcome(const Access *a, Outcome *outcome)
{
    memset(outcome, 0, sizeof(*outcome));
    memcpy(outcome->data, a->data, sizeof(outcome->data));
    if (!a->is_write) {
        memset(outcome->data, 0, a->len);
    }
    outcome->result = MEMTX_DECODE_ERROR;
}

/*
 * An access at an address and one by the hint for it, through a table as a
 * vCPU's of KVM or through the window's callbacks as other accesses.  The
 * callbacks see powers of two only.
 */
static bool same_by_hint(DispatchTestDev *s, Outcome *plain, Outcome *hinted)
{
    TestHint *hint = &s->hint[pick(s, NR_TEST_HINTS)];
    AddrHintTable *table = chance(s, 60) ? s->table : NULL;
    unsigned delta = pick(s, hint->used ? hint->length : 16);
    Access a = random_access(s);
    bool live = hint->live;

    if (chance(s, 10)) {
        delta += pick(s, 8);
        live &= delta < hint->length;
    }
    if (!table && !is_power_of_2(a.len)) {
        a.len = pow2floor(a.len);
    }
    if (!table) {
        a.len = MIN(a.len, 8);
    }
    a.as = &address_space_memory;
    a.attrs.memory = false;
    a.is_value = false;
    if (live) {
        a.addr = hint->addr + delta;
        make_access(s, NULL, &a, plain);
    } else {
        nothing_outcome(&a, plain);
    }
    /* one that is not used has index 0, which another may have */
    a.addr = s->window_base +
             (hint->used ? (hwaddr)hint->index << ADDR_HINT_PAGE_BITS
                         : (hwaddr)NR_TEST_HINTS << ADDR_HINT_PAGE_BITS) +
             ((hint->addr & ~PAGE_MASK_4K) + delta) % ADDR_HINT_PAGE_SIZE;
    make_access(s, table, &a, hinted);
    if (same_outcome(plain, hinted)) {
        return true;
    }
    report_difference(&a, plain, hinted);
    return false;
}

static uint32_t compare_by_hint(DispatchTestDev *s, uint32_t count,
                                uint32_t change_every)
{
    g_autofree Outcome *plain = g_new(Outcome, 1);
    g_autofree Outcome *hinted = g_new(Outcome, 1);
    uint32_t differences = 0;

    for (int i = 0; i < 40 && !qatomic_read(&s->stop); i++) {
        change_topology(s);
    }
    renew_hints(s);
    for (uint32_t i = 0; i < count && !qatomic_read(&s->stop); i++) {
        if (change_every && i % change_every == change_every - 1) {
            change_topology(s);
            renew_hints(s);
        }
        if (change_every && i % (change_every / 2 + 1) == 0) {
            change_eventfd(s);
        }
        s->accepts_phase = i / 16;
        if (!same_by_hint(s, plain, hinted) && ++differences == 10) {
            break;
        }
    }
    release_hints(s);
    return differences;
}

/*
 * The measurement
 */

static uint64_t bench_read(void *opaque, hwaddr addr, unsigned size)
{
    TestRegion *r = opaque;

    return r->id + addr;
}

static void bench_write(void *opaque, hwaddr addr, uint64_t val, unsigned size)
{
    TestRegion *r = opaque;

    r->size += val;
}

static const MemoryRegionOps bench_ops = {
    .read = bench_read,
    .write = bench_write,
    .endianness = DEVICE_LITTLE_ENDIAN,
    .valid = { .min_access_size = 1, .max_access_size = 8 },
    .impl = { .min_access_size = 1, .max_access_size = 8 },
};

/*
 * Regions are made once and kept until the device goes: views that are still
 * in use may refer to them.
 */
static void bench_setup(DispatchTestDev *s, unsigned count, uint32_t flags)
{
    bool ports = flags & FLAG_PORTS, lockless = flags & FLAG_LOCKLESS;
    uint64_t step = ports ? 16 : 4 * KiB;

    BQL_LOCK_GUARD();
    s->nr_bench = MIN(count, ports ? IO_WINDOW_SIZE / 16 : MAX_BENCH_REGIONS);
    if (!s->bench) {
        s->bench = g_new0(TestRegion, MAX_BENCH_REGIONS);
    }
    memory_region_transaction_begin();
    for (unsigned i = 0; i < s->nr_bench; i++) {
        TestRegion *r = &s->bench[i];

        if (!r->dev) {
            r->dev = s;
            r->id = i;
            memory_region_init_io(&r->mr, OBJECT(s), &bench_ops, r, "bench",
                                  step);
        }
        memory_region_set_size(&r->mr, step);
        r->mr.lockless_io = lockless;
        r->mr.disable_reentrancy_guard = lockless;
        r->mr.dev = flags & FLAG_OWNED ? DEVICE(s) : NULL;
        memory_region_add_subregion(ports ? &s->io_window : &s->mem_window,
                                    i * step, &r->mr);
    }
    memory_region_transaction_commit();
}

/* The hints of a fresh device are given in order: region i has hint i. */
static void bench_hints(DispatchTestDev *s)
{
    unsigned index;

    BQL_LOCK_GUARD();
    s->nr_bench = MIN(s->nr_bench, s->window->nr_hints);
    for (unsigned i = 0; i < s->nr_bench; i++) {
        if (addr_hint_window_register(s->window, s->mem_base + i * 4 * KiB,
                                      4 * KiB, &index) != ADDR_HINT_OK ||
            index != i) {
            warn_report("dispatch-testdev: region %u got no hint, or another's",
                        i);
        }
    }
}

static void bench_teardown(DispatchTestDev *s, uint32_t flags)
{
    BQL_LOCK_GUARD();
    for (unsigned i = 0; flags & FLAG_WINDOW && i < s->nr_bench; i++) {
        addr_hint_window_release(s->window, i);
    }
    memory_region_transaction_begin();
    for (unsigned i = 0; i < s->nr_bench; i++) {
        take_out(s, &s->bench[i].mr);
    }
    memory_region_transaction_commit();
}

/* Which region each access of a period goes to */
static uint16_t *bench_pattern(DispatchTestDev *s, bool zipf)
{
    uint16_t *pattern = g_new(uint16_t, BENCH_PATTERN);
    g_autofree double *sum = g_new(double, s->nr_bench + 1);

    sum[0] = 0;
    for (unsigned i = 0; i < s->nr_bench; i++) {
        sum[i + 1] = sum[i] + 1.0 / (i + 1);
    }
    for (unsigned i = 0; i < BENCH_PATTERN; i++) {
        double x = g_rand_double_range(s->rand, 0, sum[s->nr_bench]);
        unsigned low = 0, high = s->nr_bench;

        while (zipf && high - low > 1) {
            unsigned middle = (low + high) / 2;

            if (sum[middle] <= x) {
                low = middle;
            } else {
                high = middle;
            }
        }
        pattern[i] = zipf ? low : i % s->nr_bench;
    }
    return pattern;
}

/* Not inlined, so that a profiler can count just this. */
static G_NO_INLINE void measured_loop(DispatchTestDev *s, uint32_t count,
                                      uint32_t flags, const uint16_t *pattern)
{
    bool ports = flags & FLAG_PORTS, is_write = flags & FLAG_WRITE;
    AddressSpace *as = ports ? &address_space_io : &address_space_memory;
    hwaddr base = flags & FLAG_WINDOW ? s->window_base
                  : ports ? s->io_base : s->mem_base;
    hwaddr step = ports ? 16 : 4 * KiB;
    CPUState *cpu = first_cpu;
    uint32_t val = 1;

    for (uint32_t i = 0; i < count && !qatomic_read(&s->stop); i++) {
        hwaddr addr = base + pattern[i % BENCH_PATTERN] * step;

        if (flags & FLAG_VCPU_PATH) {
            addr_hint_rw(cpu, as, addr, MEMTXATTRS_UNSPECIFIED, &val,
                         sizeof(val), is_write);
        } else {
            address_space_rw(as, addr, MEMTXATTRS_UNSPECIFIED, &val,
                             sizeof(val), is_write);
        }
    }
    s->bench_value += val;
}

static uint64_t thread_time_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return now.tv_sec * NANOSECONDS_PER_SECOND + now.tv_nsec;
}

static void measure(DispatchTestDev *s, uint32_t count, uint32_t flags)
{
    g_autofree uint16_t *pattern = bench_pattern(s, flags & FLAG_ZIPF);
    uint64_t start_ns = thread_time_ns();

    measured_loop(s, count, flags, pattern);
    s->elapsed_ns = thread_time_ns() - start_ns;
}

/*
 * The proof
 */

static void *protected_page;            /* while a proof runs, else NULL */
static void *protected_object;
static unsigned protected_writes;       /* faults in the object */

/* Count a write to the search's data, and let it happen. */
static void protection_fault(int sig, siginfo_t *info, void *context)
{
    size_t page_size = qemu_real_host_page_size();

    if (!protected_page || info->si_addr < protected_page ||
        info->si_addr >= protected_page + page_size) {
        signal(SIGSEGV, SIG_DFL);       /* a fault of another kind */
        return;
    }
    /* its first words are all that an access could write; see physmem.c */
    if (info->si_addr >= protected_object &&
        info->si_addr < protected_object + 64) {
        protected_writes++;
    }
    mprotect(protected_page, page_size, PROT_READ | PROT_WRITE);
}

/*
 * Make accesses to several regions in turn; return how many wrote to the data
 * of the search.  A write by others to the same page of memory takes the
 * protection away unnoticed, so it is put back before each access.
 */
static unsigned writes_of(DispatchTestDev *s, AddrHintTable *table,
                          hwaddr base, uint32_t count)
{
    size_t page_size = qemu_real_host_page_size();
    uint32_t val;

    protected_writes = 0;
    for (uint32_t i = 0; i < count; i++) {
        hwaddr addr = base + i % s->nr_bench * 4 * KiB;

        mprotect(protected_page, page_size, PROT_READ);
        if (table) {
            addr_hint_table_rw(table, &address_space_memory, addr,
                               MEMTXATTRS_UNSPECIFIED, &val, 4, false);
        } else {
            address_space_rw(&address_space_memory, addr,
                             MEMTXATTRS_UNSPECIFIED, &val, 4, false);
        }
        mprotect(protected_page, page_size, PROT_READ | PROT_WRITE);
    }
    return protected_writes;
}

static unsigned prove(DispatchTestDev *s, uint32_t count, hwaddr base,
                      unsigned *plain)
{
    size_t page_size = qemu_real_host_page_size();
    struct sigaction ours = { .sa_sigaction = protection_fault,
                              .sa_flags = SA_SIGINFO }, before;
    unsigned hinted;

    /* with the BQL nobody makes a new view meanwhile */
    BQL_LOCK_GUARD();
    RCU_READ_LOCK_GUARD();
    for (unsigned i = 0; i < s->nr_bench * 2; i++) {
        uint32_t val;

        addr_hint_table_rw(s->table, &address_space_memory,
                           base + i % s->nr_bench * 4 * KiB,
                           MEMTXATTRS_UNSPECIFIED, &val, 4, false);
    }
    protected_object =
        address_space_to_flatview(&address_space_memory)->dispatch;
    protected_page = QEMU_ALIGN_PTR_DOWN(protected_object, page_size);
    sigaction(SIGSEGV, &ours, &before);
    hinted = writes_of(s, s->table, base, count);
    *plain = writes_of(s, NULL, s->mem_base, count);
    sigaction(SIGSEGV, &before, NULL);
    protected_page = NULL;
    return hinted;
}

/*
 * The worker and its registers
 */

static void publish(DispatchTestDev *s, uint32_t differences)
{
    AddrHintCounters c = s->counters;

    s->regs[REG_DIFFERENCES / 4] = differences;
    s->regs[REG_HITS / 4] = c.hits;
    s->regs[REG_CHECKED / 4] = c.checked;
    s->regs[REG_MISSES / 4] = c.misses;
    s->regs[REG_REFUSED / 4] = c.refused;
    s->regs[REG_FILLS / 4] = c.fills;
    s->regs[REG_EVICTIONS / 4] = c.evictions;
    s->regs[REG_RENEWALS / 4] = c.renewals;
    s->regs[REG_WINDOW_HITS / 4] = c.window_hits;
    s->regs[REG_WINDOW_REFILLS / 4] = c.window_refills;
    s->regs[REG_WINDOW_STALE / 4] = c.window_stale;
    s->regs[REG_WINDOW_REFUSED / 4] = c.window_refused;
    s->regs[REG_PLAIN_WRITES / 4] = s->plain_writes;
    s->regs[REG_ELAPSED_NS / 4] = s->elapsed_ns;
    s->regs[REG_ELAPSED_NS / 4 + 1] = s->elapsed_ns >> 32;
    s->regs[REG_STATUS / 4] = STATUS_DONE;
}

static void *worker_main(void *opaque)
{
    DispatchTestDev *s = opaque;
    uint32_t regs[REG_END / 4], count, flags, differences = 0;

    rcu_register_thread();
    bql_lock();
    memcpy(regs, s->regs, sizeof(regs));
    bql_unlock();
    count = regs[REG_COUNT / 4];
    flags = regs[REG_FLAGS / 4];
    s->rand = g_rand_new_with_seed(regs[REG_SEED / 4]);
    s->table = addr_hint_table_new();
    if (regs[REG_START / 4] == START_COMPARE) {
        differences = (flags & FLAG_WINDOW ? compare_by_hint : compare)
                      (s, count, regs[REG_CHANGE_EVERY / 4]);
    } else {
        bench_setup(s, MAX(1, regs[REG_REGIONS / 4]), flags);
        if (flags & FLAG_WINDOW) {
            bench_hints(s);
        }
        if (regs[REG_START / 4] == START_PROVE) {
            differences = prove(s, count, flags & FLAG_WINDOW
                                          ? s->window_base : s->mem_base,
                                &s->plain_writes);
        } else {
            measure(s, count, flags);
        }
        bench_teardown(s, flags);
    }
    addr_hint_table_counters(s->table, &s->counters);
    g_clear_pointer(&s->table, addr_hint_table_free);
    g_clear_pointer(&s->rand, g_rand_free);
    bql_lock();
    publish(s, differences);
    bql_unlock();
    rcu_unregister_thread();
    return NULL;
}

static void join_worker(DispatchTestDev *s)
{
    if (s->worker_started) {
        qemu_thread_join(&s->worker);
        s->worker_started = false;
    }
}

/* Hints are looked up where the registers' user has asked for one before. */
static bool find_window(DispatchTestDev *s)
{
    s->window = addr_hint_window_next(NULL);
    if (!s->window || !s->window->as) {
        return false;
    }
    s->window_base = pci_get_bar_addr(PCI_DEVICE(s->window->owner),
                                      ADDR_HINT_BAR_WINDOW);
    return s->window_base != PCI_BAR_UNMAPPED &&
           s->window->nr_hints > NR_TEST_HINTS;
}

static void start(DispatchTestDev *s, uint32_t what)
{
    bool vcpu_path = s->regs[REG_FLAGS / 4] & FLAG_VCPU_PATH;

    if (s->stop || s->regs[REG_STATUS / 4] == STATUS_RUNNING) {
        return;
    }
    s->mem_base = pci_get_bar_addr(PCI_DEVICE(s), 1);
    s->io_base = pci_get_bar_addr(PCI_DEVICE(s), 2);
    if (what < START_COMPARE || what > START_PROVE ||
        (s->regs[REG_FLAGS / 4] & FLAG_WINDOW && !find_window(s)) ||
        /* a vCPU that runs has its table for itself */
        (what == START_MEASURE && vcpu_path && !qtest_enabled()) ||
        s->mem_base == PCI_BAR_UNMAPPED || s->io_base == PCI_BAR_UNMAPPED) {
        s->regs[REG_STATUS / 4] = STATUS_REFUSED;
        return;
    }
    join_worker(s);
    s->regs[REG_START / 4] = what;
    s->regs[REG_STATUS / 4] = STATUS_RUNNING;
    s->regs[REG_CHANGES / 4] = 0;
    qemu_thread_create(&s->worker, "dispatch-test", worker_main, s,
                       QEMU_THREAD_JOINABLE);
    s->worker_started = true;
}

static uint64_t control_read(void *opaque, hwaddr addr, unsigned size)
{
    DispatchTestDev *s = opaque;

    return addr < REG_END ? s->regs[addr / 4] : 0;
}

static void control_write(void *opaque, hwaddr addr, uint64_t val,
                          unsigned size)
{
    DispatchTestDev *s = opaque;

    switch (addr) {
    case REG_SEED ... REG_FLAGS:
        if (s->regs[REG_STATUS / 4] != STATUS_RUNNING) {
            s->regs[addr / 4] = val;
        }
        break;
    case REG_START:
        start(s, val);
        break;
    default:
        break;
    }
}

static const MemoryRegionOps control_ops = {
    .read = control_read,
    .write = control_write,
    .endianness = DEVICE_LITTLE_ENDIAN,
    .valid = { .min_access_size = 4, .max_access_size = 4 },
    .impl = { .min_access_size = 4, .max_access_size = 4 },
};

static bool init_regions(DispatchTestDev *s, Error **errp)
{
    for (int i = 0; i < NR_IO_REGIONS; i++) {
        TestRegion *r = &s->region[i];

        r->dev = s;
        r->id = i;
        if (event_notifier_init(&r->notifier, 0)) {
            error_setg_errno(errp, errno, "cannot create an eventfd");
            return false;
        }
        r->ops.read = test_read;
        r->ops.write = test_write;
        memory_region_init_io(&r->mr, OBJECT(s), &r->ops, r,
                              "dispatch-test-io", 64);
        if (i % 4 == 0) {
            r->mr.dev = NULL;   /* as of an owner that is no device: no guard */
        }
    }
    for (int i = 0; i < NR_RAM_REGIONS; i++) {
        g_autofree char *name = g_strdup_printf("dispatch-test-ram%d", i);

        if (!memory_region_init_ram_nomigrate(&s->ram[i], OBJECT(s), name,
                                              RAM_SIZE, errp)) {
            return false;
        }
    }
    if (!memory_region_init_rom_device_nomigrate(&s->rom_device, OBJECT(s),
                                                 &s->region[0].ops,
                                                 &s->region[0],
                                                 "dispatch-test-rom",
                                                 RAM_SIZE + 4 * KiB, errp)) {
        return false;
    }
    /*
     * address_space_ld*() reads across the end of a ROM device: only RAM is
     * cut there.  The bytes that follow must exist.
     */
    memory_region_set_size(&s->rom_device, RAM_SIZE);
    for (int i = 0; i < NR_ALIASES; i++) {
        memory_region_init_alias(&s->alias[i], OBJECT(s),
                                 "dispatch-test-alias", &s->region[i].mr, 0,
                                 256);
    }
    for (int i = 0; i < NR_CONTAINERS; i++) {
        memory_region_init(&s->container[i], OBJECT(s),
                           "dispatch-test-container", 8 * KiB);
    }
    memory_region_init_iommu(&s->iommu, sizeof(s->iommu),
                             TYPE_DISPATCH_TESTDEV_IOMMU, OBJECT(s),
                             "dispatch-test-iommu", 8 * KiB);
    s->iommu.dev = s;
    s->behind_iommu = (TestRegion) {
        .dev = s,
        .id = NR_IO_REGIONS,
        .ops = { .read = test_read, .write = test_write },
    };
    memory_region_init_io(&s->behind_iommu.mr, OBJECT(s),
                          &s->behind_iommu.ops, &s->behind_iommu,
                          "dispatch-test-behind-iommu", 4 * KiB);
    memory_region_add_subregion(&s->mem_window, BEHIND_IOMMU,
                                &s->behind_iommu.mr);
    return true;
}

static void exit_regions(DispatchTestDev *s)
{
    memory_region_transaction_begin();
    for (int i = 0; i < NR_IO_REGIONS; i++) {
        TestRegion *r = &s->region[i];

        if (r->notifies) {
            memory_region_del_eventfd(&r->mr, 0, 0, false, 0, &r->notifier);
        }
        take_out(s, &r->mr);
    }
    memory_region_transaction_commit();
    for (int i = 0; i < NR_IO_REGIONS; i++) {
        event_notifier_cleanup(&s->region[i].notifier);
    }
}

static void dispatch_testdev_finalize(Object *obj)
{
    g_free(DISPATCH_TESTDEV(obj)->bench);
}

static void dispatch_testdev_realize(PCIDevice *pdev, Error **errp)
{
    DispatchTestDev *s = DISPATCH_TESTDEV(pdev);

    memory_region_init_io(&s->control, OBJECT(s), &control_ops, s,
                          "dispatch-test-control", CONTROL_SIZE);
    memory_region_init(&s->mem_window, OBJECT(s), "dispatch-test-mem",
                       MEM_WINDOW_SIZE);
    memory_region_init(&s->io_window, OBJECT(s), "dispatch-test-ports",
                       IO_WINDOW_SIZE);
    if (!init_regions(s, errp)) {
        return;
    }
    s->regs[REG_MAGIC / 4] = MAGIC;
    pci_register_bar(pdev, 0, PCI_BASE_ADDRESS_SPACE_MEMORY, &s->control);
    pci_register_bar(pdev, 1, PCI_BASE_ADDRESS_SPACE_MEMORY, &s->mem_window);
    pci_register_bar(pdev, 2, PCI_BASE_ADDRESS_SPACE_IO, &s->io_window);
}

static void dispatch_testdev_exit(PCIDevice *pdev)
{
    DispatchTestDev *s = DISPATCH_TESTDEV(pdev);

    qatomic_set(&s->stop, true);
    bql_unlock();       /* the worker may be waiting for it */
    join_worker(s);
    bql_lock();
    exit_regions(s);
}

static const VMStateDescription vmstate_dispatch_testdev = {
    .name = TYPE_DISPATCH_TESTDEV,
    .unmigratable = 1,
};

static void dispatch_testdev_class_init(ObjectClass *klass, const void *data)
{
    DeviceClass *dc = DEVICE_CLASS(klass);
    PCIDeviceClass *k = PCI_DEVICE_CLASS(klass);

    k->realize = dispatch_testdev_realize;
    k->exit = dispatch_testdev_exit;
    k->vendor_id = PCI_VENDOR_ID_QEMU;
    k->device_id = 0x11e9;
    k->class_id = PCI_CLASS_OTHERS;
    dc->vmsd = &vmstate_dispatch_testdev;
    dc->desc = "Compares and measures the dispatch of device accesses";
    set_bit(DEVICE_CATEGORY_MISC, dc->categories);
}

static const TypeInfo dispatch_testdev_types[] = {
    {
        .name = TYPE_DISPATCH_TESTDEV,
        .parent = TYPE_PCI_DEVICE,
        .instance_size = sizeof(DispatchTestDev),
        .instance_finalize = dispatch_testdev_finalize,
        .class_init = dispatch_testdev_class_init,
        .interfaces = (const InterfaceInfo[]) {
            { INTERFACE_CONVENTIONAL_PCI_DEVICE },
            { },
        },
    }, {
        .name = TYPE_DISPATCH_TESTDEV_IOMMU,
        .parent = TYPE_IOMMU_MEMORY_REGION,
        .instance_size = sizeof(TestIommu),
        .class_init = test_iommu_class_init,
    },
};

DEFINE_TYPES(dispatch_testdev_types)

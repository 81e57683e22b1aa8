/*
 * Unit test of shared hints: what threads may do to one at the same time
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The storm: a thread plugs and unplugs devices, gives and takes hints, while
 * others use the hints, as vCPUs do, without a lock.  A hint must never lead to
 * a device that is not in the reader's view, to another than the one it was
 * given for, or to freed memory.  Worth most under TSan ("scripts/build tsan")
 * and ASan.  HOTPATH_STORM_SECONDS makes it longer, HOTPATH_SEED replays the
 * choices of each thread, not their order.
 */

#include "qemu/osdep.h"
#include "qemu/atomic.h"
#include "qemu/cutils.h"
#include "qemu/rcu.h"
#include "qemu/thread.h"
#include "qemu/tsan.h"
#include "../../system/addr-hint-slot.h"

#define NR_PLACES 8
#define NR_SLOTS 32
#define NR_READERS 3
#define ALIVE 0x600df00d
#define DEAD 0xdeadbeef

/* A device with one region; only @mr's address matters */
typedef struct Device {
    struct rcu_head rcu;
    MemoryRegion mr;
    DeviceState dev;
    uint32_t state;
    uint64_t birth;             /* never the same twice */
} Device;

/* Stands for a dispatch: which device is where */
typedef struct World {
    struct rcu_head rcu;
    uint64_t serial;
    Device *device[NR_PLACES];
    uint64_t birth[NR_PLACES];  /* of the device */
} World;

typedef struct Totals {
    uint64_t live;
    uint64_t stale;
    uint64_t refreshed;
} Totals;

static World *world;
static AddrHintView *slots[NR_SLOTS];
static bool stop;

static hwaddr address_of(unsigned place)
{
    return 0xfe000000 + place * 0x1000 + 0x40;
}

static unsigned place_of(hwaddr addr)
{
    return (addr - 0xfe000000) / 0x1000;
}

/* What address_space_lookup_region() is for the real one */
static AddrHintAnswer answer_in(const World *w, hwaddr addr)
{
    Device *device = w->device[place_of(addr)];

    return (AddrHintAnswer) {
        .serial = w->serial,
        .mr = device ? &device->mr : NULL,
        .offset = addr & 0xfff,
        .bytes = 0x1000 - (addr & 0xfff),
        .usable = device,
        .read_sizes = 15,
        .write_sizes = 7,
    };
}

static AddrHintView hint_at(hwaddr addr)
{
    return (AddrHintView) {
        .addr = addr,
        .length = 0x100,
        .first = addr & 0xfff,
    };
}

/*
 * Single thread
 */

static Device *device_new(void)
{
    static uint64_t births;
    Device *device = g_new0(Device, 1);

    device->state = ALIVE;
    device->mr.dev = &device->dev;
    device->birth = ++births;
    return device;
}

static void test_life(void)
{
    AddrHintView *slot = NULL, view, first = hint_at(address_of(3));
    g_autofree Device *a = device_new(), *b = device_new();
    World w = { .serial = 1, .device[3] = a };
    AddrHintAnswer answer;

    RCU_READ_LOCK_GUARD();
    g_assert_null(addr_hint_slot_view(&slot));
    g_assert_false(addr_hint_slot_forget(&slot, &a->dev));

    /* given, but nothing is known of it yet */
    addr_hint_slot_put(&slot, &first);
    g_assert_false(addr_hint_slot_view(&slot)->live);
    answer = answer_in(&w, first.addr);
    addr_hint_slot_refresh(&slot, addr_hint_slot_view(&slot), &answer, &view);
    g_assert_false(view.live);
    g_assert_false(addr_hint_slot_forget(&slot, NULL));

    addr_hint_slot_settle(&slot, &answer);
    g_assert_true(addr_hint_slot_view(&slot)->live);
    g_assert_true(addr_hint_slot_view(&slot)->mr == &a->mr);
    g_assert_cmpuint(addr_hint_slot_view(&slot)->offset, ==, 0x40);
    g_assert_cmpuint(addr_hint_slot_view(&slot)->read_sizes, ==, 15);
    g_assert_cmpuint(addr_hint_slot_view(&slot)->write_sizes, ==, 7);

    /* moved away, another in its place, back, at another offset, cut short */
    for (int step = 0; step < 6; step++) {
        w.serial++;
        w.device[3] = step == 0 ? NULL : step == 1 ? b : a;
        answer = answer_in(&w, first.addr);
        answer.offset += step == 3 ? 8 : 0;
        answer.bytes = step == 4 ? 0xff : 0x100;
        addr_hint_slot_refresh(&slot, addr_hint_slot_view(&slot), &answer,
                               &view);
        g_assert_cmpint(view.live, ==, step == 2 || step == 5);
        g_assert_cmpuint(view.read_sizes, ==, view.live ? 15 : 0);
        g_assert_cmpuint(addr_hint_slot_view(&slot)->serial, ==, w.serial);
    }

    /* removed: the same region at the same place is not it */
    g_assert_false(addr_hint_slot_forget(&slot, &b->dev));
    g_assert_true(addr_hint_slot_forget(&slot, &a->dev));
    g_assert_false(addr_hint_slot_forget(&slot, &a->dev));
    g_assert_false(addr_hint_slot_view(&slot)->live);
    w.serial++;
    answer = answer_in(&w, first.addr);
    addr_hint_slot_refresh(&slot, addr_hint_slot_view(&slot), &answer, &view);
    g_assert_false(view.live);

    addr_hint_slot_put(&slot, NULL);
    g_assert_null(addr_hint_slot_view(&slot));
    /* nothing answered when it was loaded */
    addr_hint_slot_put(&slot, &first);
    addr_hint_slot_settle(&slot, NULL);
    addr_hint_slot_refresh(&slot, addr_hint_slot_view(&slot), &answer, &view);
    g_assert_false(view.live);
    addr_hint_slot_put(&slot, NULL);
}

/* A refresh that comes too late changes nothing, and says what it found */
static void test_late_refresh(void)
{
    AddrHintView *slot = NULL, view, first = hint_at(address_of(0));
    g_autofree Device *a = device_new();
    World w = { .serial = 1, .device[0] = a };
    AddrHintAnswer answer = answer_in(&w, first.addr);
    const AddrHintView *old;

    RCU_READ_LOCK_GUARD();
    addr_hint_slot_put(&slot, &first);
    addr_hint_slot_settle(&slot, &answer);
    old = addr_hint_slot_view(&slot);
    addr_hint_slot_put(&slot, NULL);
    answer.serial = 2;
    addr_hint_slot_refresh(&slot, old, &answer, &view);
    g_assert_true(view.live);
    g_assert_null(addr_hint_slot_view(&slot));
}

/*
 * The storm
 */

/*
 * TSan does not know grace periods: it is told that what readers did before
 * they left a read section is over when something is freed.  One who is still
 * inside has not said so, and is found out.
 */
static void device_free(Device *device)
{
    QEMU_TSAN_ANNOTATE_HAPPENS_AFTER(&rcu_gp_ctr);
    qatomic_set(&device->state, DEAD);
    g_free(device);
}

static void world_free(World *old)
{
    QEMU_TSAN_ANNOTATE_HAPPENS_AFTER(&rcu_gp_ctr);
    g_free(old);
}

static void world_set(World *new)
{
    World *old = world;
    static uint64_t serial;

    new->serial = ++serial;
    qatomic_rcu_set(&world, new);
    if (old) {
        call_rcu(old, world_free, rcu);
    }
}

static void change_place(unsigned place, Device *device)
{
    World *new = g_new0(World, 1);

    if (world) {
        memcpy(new->device, world->device, sizeof(new->device));
        memcpy(new->birth, world->birth, sizeof(new->birth));
    }
    new->device[place] = device;
    new->birth[place] = device ? device->birth : 0;
    world_set(new);
}

static void unplug(unsigned place)
{
    Device *device = world->device[place];

    if (device) {
        change_place(place, NULL);
        RCU_READ_LOCK_GUARD();
        for (int i = 0; i < NR_SLOTS; i++) {
            addr_hint_slot_forget(&slots[i], &device->dev);
        }
        call_rcu(device, device_free, rcu);
    }
}

/* As the holder of the BQL */
static void storm_step(GRand *rand)
{
    unsigned place = g_rand_int_range(rand, 0, NR_PLACES);
    AddrHintView **slot = &slots[g_rand_int_range(rand, 0, NR_SLOTS)];
    AddrHintView hint = hint_at(address_of(place));

    switch (g_rand_int_range(rand, 0, 5)) {
    case 0:
        unplug(place);
        break;
    case 1:
        if (!world->device[place]) {
            change_place(place, device_new());
        }
        break;
    case 2:
        /* a commit that changes nothing here */
        change_place(place, world->device[place]);
        break;
    case 3:
        addr_hint_slot_put(slot, NULL);
        break;
    default:
        if (world->device[place]) {
            RCU_READ_LOCK_GUARD();
            AddrHintAnswer answer = answer_in(world, hint.addr);

            addr_hint_slot_put(slot, &hint);
            addr_hint_slot_settle(slot, &answer);
        }
        break;
    }
}

/* Called from RCU critical section */
static void use_hint(AddrHintView **slot, Totals *totals)
{
    const AddrHintView *view;
    AddrHintView renewed;
    const Device *device;
    const World *w;

    view = addr_hint_slot_view(slot);
    if (!view) {
        return;
    }
    w = qatomic_rcu_read(&world);
    if (view->serial != w->serial) {
        AddrHintAnswer answer = answer_in(w, view->addr);

        addr_hint_slot_refresh(slot, view, &answer, &renewed);
        view = &renewed;
        totals->refreshed++;
    }
    if (!view->live) {
        totals->stale++;
        return;
    }
    device = w->device[place_of(view->addr)];
    g_assert_true(&device->mr == view->mr);
    g_assert_cmphex(qatomic_read(&device->state), ==, ALIVE);
    g_assert_cmpuint(device->birth, ==, w->birth[place_of(view->addr)]);
    g_assert_true(&device->dev == view->dev);
    g_assert_cmphex(view->offset, ==, view->addr & 0xfff);
    totals->live++;
}

static void *reader(void *opaque)
{
    Totals *totals = opaque;
    unsigned i = 0;

    rcu_register_thread();
    while (!qatomic_read(&stop)) {
        WITH_RCU_READ_LOCK_GUARD() {
            use_hint(&slots[i++ % NR_SLOTS], totals);
            QEMU_TSAN_ANNOTATE_HAPPENS_BEFORE(&rcu_gp_ctr);
        }
    }
    rcu_unregister_thread();
    return NULL;
}

static uint32_t from_environment(const char *name, uint32_t otherwise)
{
    const char *given = g_getenv(name);

    if (given) {
        g_assert_cmpint(qemu_strtoui(given, NULL, 0, &otherwise), ==, 0);
    }
    return otherwise;
}

static void test_storm(void)
{
    uint32_t seconds = from_environment("HOTPATH_STORM_SECONDS", 1);
    uint32_t seed = from_environment("HOTPATH_SEED", g_random_int());
    g_autoptr(GRand) rand = g_rand_new_with_seed(seed);
    QemuThread threads[NR_READERS];
    Totals totals[NR_READERS] = { 0 }, all = { 0 };
    uint64_t steps = 0;
    gint64 end;

    g_test_message("seed %u (HOTPATH_SEED=%u), %u s", seed, seed, seconds);
    change_place(0, device_new());
    for (int i = 0; i < NR_READERS; i++) {
        qemu_thread_create(&threads[i], "reader", reader, &totals[i],
                           QEMU_THREAD_JOINABLE);
    }
    end = g_get_monotonic_time() + seconds * G_USEC_PER_SEC;
    while (g_get_monotonic_time() < end) {
        storm_step(rand);
        if (steps++ % 64 == 0) {
            g_usleep(100);      /* let the readers get at some hits */
        }
    }
    qatomic_set(&stop, true);
    for (int i = 0; i < NR_READERS; i++) {
        qemu_thread_join(&threads[i]);
        all.live += totals[i].live;
        all.stale += totals[i].stale;
        all.refreshed += totals[i].refreshed;
    }
    for (int i = 0; i < NR_SLOTS; i++) {
        addr_hint_slot_put(&slots[i], NULL);
    }
    for (int i = 0; i < NR_PLACES; i++) {
        unplug(i);
    }
    g_test_message("%" PRIu64 " changes; used %" PRIu64 " times, stale %"
                   PRIu64 ", looked up again %" PRIu64, steps, all.live,
                   all.stale, all.refreshed);
    g_assert_cmpuint(all.live, >, 1000);
    g_assert_cmpuint(all.stale, >, 100);
    g_assert_cmpuint(all.refreshed, >, 1000);
    drain_call_rcu();
    g_free(world);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/addr-hint-slot/life", test_life);
    g_test_add_func("/addr-hint-slot/late-refresh", test_late_refresh);
    g_test_add_func("/addr-hint-slot/storm", test_storm);
    return g_test_run();
}

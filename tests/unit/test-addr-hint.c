/*
 * Unit test of the reference table's hash and of its rules for direct calls
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/host-utils.h"
#include "qemu/units.h"
#include "../../system/addr-hint-internal.h"

/*
 * As many devices as an eighth of the sets, at any distance that is a power of
 * two: none may find its set full.
 */
static void check_spread(unsigned (*hash)(hwaddr), unsigned sets,
                         hwaddr base, hwaddr step)
{
    g_autofree unsigned *used = g_new0(unsigned, sets);

    for (unsigned i = 0; i < sets / 8; i++) {
        unsigned set = hash(base + i * step);

        g_assert_cmpuint(set, <, sets);
        g_assert_cmpuint(++used[set], <=, ADDR_HINT_WAYS);
    }
}

static unsigned mem_hash(hwaddr addr)
{
    return addr_hint_mem_hash(addr);
}

static unsigned io_hash(hwaddr addr)
{
    return addr_hint_io_hash(addr);
}

static void test_spread(void)
{
    static const hwaddr bases[] = { 0, 0xe0000000, 0xfebc0000, 0x380000000000 };

    for (int b = 0; b < ARRAY_SIZE(bases); b++) {
        for (hwaddr step = 4 * KiB; step <= 64 * GiB; step <<= 1) {
            check_spread(mem_hash, ADDR_HINT_MEM_SETS, bases[b], step);
        }
    }
    for (hwaddr step = 8; step <= 4 * KiB; step <<= 1) {
        check_spread(io_hash, ADDR_HINT_IO_SETS, 0xc000, step);
    }
}

/* Registers of one page, and of one group of ports, share a set. */
static void test_neighbours(void)
{
    for (unsigned i = 0; i < 4 * KiB; i++) {
        g_assert_cmpuint(mem_hash(0xfebc1000 + i), ==, mem_hash(0xfebc1000));
    }
    for (unsigned i = 0; i < 8; i++) {
        g_assert_cmpuint(io_hash(0x3f8 + i), ==, io_hash(0x3f8));
    }
}

static uint64_t nop_read(void *opaque, hwaddr addr, unsigned size)
{
    return 0;
}

static void nop_write(void *opaque, hwaddr addr, uint64_t val, unsigned size)
{
}

static bool nop_accepts(void *opaque, hwaddr addr, unsigned size,
                        bool is_write, MemTxAttrs attrs)
{
    return true;
}

/*
 * The generic path, step by step, for an aligned access: is it valid, is it
 * not split for the bus, and is it one call for the implementation?
 */
static bool one_call(const MemoryRegionOps *ops, unsigned size)
{
    unsigned bus_max = ops->valid.max_access_size ?: 4;
    unsigned impl_min = ops->impl.min_access_size ?: 1;
    unsigned impl_max = ops->impl.max_access_size ?: 4;

    if (ops->valid.max_access_size &&
        (size > ops->valid.max_access_size ||
         size < ops->valid.min_access_size)) {
        return false;
    }
    if (MIN(size, bus_max) != size) {
        return false;
    }
    return MAX(MIN(size, impl_max), impl_min) == size;
}

static void test_sizes(void)
{
    static const unsigned sizes[] = { 0, 1, 2, 4, 8 };
    const int n = ARRAY_SIZE(sizes);
    unsigned direct = 0;

    for (int i = 0; i < n * n * n * n; i++) {
        const MemoryRegionOps ops = {
            .read = nop_read,
            .write = nop_write,
            .valid.min_access_size = sizes[i % n],
            .valid.max_access_size = sizes[i / n % n],
            .impl.min_access_size = sizes[i / n / n % n],
            .impl.max_access_size = sizes[i / n / n / n],
        };

        if ((ops.impl.min_access_size ?: 1) > (ops.impl.max_access_size ?: 4)) {
            continue;           /* no device says this */
        }
        for (unsigned size = 1; size <= 8; size <<= 1) {
            bool is_direct = addr_hint_direct_sizes(&ops, false) & size;

            g_assert_cmpint(is_direct, ==, one_call(&ops, size));
            direct += is_direct;
        }
        g_assert_cmpuint(addr_hint_direct_sizes(&ops, true), ==,
                         addr_hint_direct_sizes(&ops, false));
    }
    g_assert_cmpuint(direct, >, 0);
}

static void test_never_direct(void)
{
    const MemoryRegionOps read_only = { .read = nop_read };
    const MemoryRegionOps both = { .read = nop_read, .write = nop_write };
    const MemoryRegionOps depends_on_state = {
        .read = nop_read,
        .write = nop_write,
        .valid.accepts = nop_accepts,
    };

    g_assert_cmpuint(addr_hint_direct_sizes(&read_only, false), ==, 1 | 2 | 4);
    g_assert_cmpuint(addr_hint_direct_sizes(&read_only, true), ==, 0);
    g_assert_cmpuint(addr_hint_direct_sizes(&both, true), ==, 1 | 2 | 4);
    g_assert_cmpuint(addr_hint_direct_sizes(&depends_on_state, false), ==, 0);
    g_assert_cmpuint(addr_hint_direct_sizes(&depends_on_state, true), ==, 0);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/addr-hint/spread", test_spread);
    g_test_add_func("/addr-hint/neighbours", test_neighbours);
    g_test_add_func("/addr-hint/sizes", test_sizes);
    g_test_add_func("/addr-hint/never-direct", test_never_direct);
    return g_test_run();
}

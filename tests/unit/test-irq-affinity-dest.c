/*
 * Unit test: which vCPU an interrupt message is for
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "system/irq-affinity-dest.h"

#define FIXED 0
#define LOWEST (1 << 8)
#define SMI (2 << 8)
#define NMI (4 << 8)
#define VECTOR 0x41

/* A message as it stands in a KVM route: bits 31:8 in the upper half */
static uint64_t address(uint32_t dest, bool logical)
{
    return (uint64_t)(dest & 0xffffff00) << 32 | 0xfee00000 |
           (dest & 0xff) << 12 | logical << 2;
}

static uint64_t physical(uint32_t dest)
{
    return address(dest, false);
}

static uint64_t logical(uint32_t dest)
{
    return address(dest, true);
}

typedef struct Row {
    uint64_t addr;
    uint32_t data;
    int vcpu;
} Row;

static void check(const Row *rows, unsigned count, const IRQDestVCPU *vcpus,
                  unsigned vcpu_count)
{
    for (unsigned i = 0; i < count; i++) {
        int vcpu = irq_dest_vcpu(rows[i].addr, rows[i].data | VECTOR, vcpus,
                                 vcpu_count);

        if (vcpu != rows[i].vcpu) {
            g_test_message("row %u: address 0x%" PRIx64 " data 0x%x", i,
                           rows[i].addr, rows[i].data);
        }
        g_assert_cmpint(vcpu, ==, rows[i].vcpu);
    }
}

static void test_physical(void)
{
    static const IRQDestVCPU vcpus[] = {
        { .vcpu = 0, .apic_id = 0 }, { .vcpu = 1, .apic_id = 1 },
        { .vcpu = 2, .apic_id = 4 }, { .vcpu = 3, .apic_id = 0xfe },
    };
    const Row rows[] = {
        { physical(0), FIXED, 0 },
        { physical(1), FIXED, 1 },
        { physical(1), LOWEST, 1 },
        { physical(1) | 8, FIXED, 1 },          /* redirection hint */
        { physical(4), FIXED, 2 },
        { physical(0xfe), FIXED, 3 },
        { physical(2), FIXED, IRQ_DEST_NONE },
        { physical(0xff), FIXED, IRQ_DEST_ASK },
        { physical(1), SMI, IRQ_DEST_NONE },
        { physical(1), NMI, IRQ_DEST_NONE },
        { logical(1), FIXED, IRQ_DEST_ASK },
        { 0xfed00000, FIXED, IRQ_DEST_NONE },
        { 0, FIXED, IRQ_DEST_NONE },
    };

    check(rows, ARRAY_SIZE(rows), vcpus, ARRAY_SIZE(vcpus));
    g_assert_cmpint(irq_dest_vcpu(physical(0), VECTOR, NULL, 0), ==,
                    IRQ_DEST_NONE);
}

static void test_broadcast(void)
{
    const IRQDestVCPU two[] = {
        { .vcpu = 0, .apic_id = 0, .logical_known = true },
        { .vcpu = 1, .apic_id = 1, .logical_known = true },
    };
    const IRQDestVCPU x2apic[] = {
        { .vcpu = 0, .apic_id = 0, .logical_known = true, .x2apic = true },
        { .vcpu = 1, .apic_id = 0xff, .logical_known = true, .x2apic = true },
    };
    const Row xapic_rows[] = {
        { physical(0xff), FIXED, IRQ_DEST_SEVERAL },
        { physical(0xffffffff), FIXED, IRQ_DEST_SEVERAL },
    };
    const Row x2apic_rows[] = {
        { physical(0xff), FIXED, 1 },
        { physical(0xffffffff), FIXED, IRQ_DEST_SEVERAL },
        { logical(0xffffffff), FIXED, IRQ_DEST_SEVERAL },
    };

    check(xapic_rows, ARRAY_SIZE(xapic_rows), two, 2);
    check(x2apic_rows, ARRAY_SIZE(x2apic_rows), x2apic, 2);
    /* a single vCPU gets what everybody gets */
    g_assert_cmpint(irq_dest_vcpu(physical(0xff), VECTOR, two, 1), ==, 0);
}

static void test_flat(void)
{
    static const IRQDestVCPU vcpus[] = {
        { .vcpu = 0, .apic_id = 0, .logical_known = true, .ldr = 0x01 },
        { .vcpu = 1, .apic_id = 1, .logical_known = true, .ldr = 0x02 },
        { .vcpu = 2, .apic_id = 2, .logical_known = true, .ldr = 0x80 },
        /* switched off by its guest: in no set */
        { .vcpu = 3, .apic_id = 3, .logical_known = true, .ldr = 0 },
    };
    const Row rows[] = {
        { logical(0x01), FIXED, 0 },
        { logical(0x02), LOWEST, 1 },
        { logical(0x80), FIXED, 2 },
        { logical(0x03), LOWEST, IRQ_DEST_SEVERAL },
        { logical(0x7f), LOWEST, IRQ_DEST_SEVERAL },
        { logical(0xff), LOWEST, IRQ_DEST_SEVERAL },
        { logical(0x04), FIXED, IRQ_DEST_NONE },
        { logical(0x84), FIXED, 2 },
        { logical(0), FIXED, IRQ_DEST_NONE },
        { logical(0x101), FIXED, IRQ_DEST_NONE },       /* no xAPIC's */
        { physical(3), FIXED, 3 },
    };

    check(rows, ARRAY_SIZE(rows), vcpus, ARRAY_SIZE(vcpus));
}

static void test_cluster(void)
{
    static const IRQDestVCPU vcpus[] = {
        { .vcpu = 0, .apic_id = 0, .logical_known = true, .cluster = true,
          .ldr = 0x01 },
        { .vcpu = 1, .apic_id = 1, .logical_known = true, .cluster = true,
          .ldr = 0x08 },
        { .vcpu = 2, .apic_id = 2, .logical_known = true, .cluster = true,
          .ldr = 0x11 },
        { .vcpu = 3, .apic_id = 3, .logical_known = true, .cluster = true,
          .ldr = 0xe4 },
    };
    const Row rows[] = {
        { logical(0x01), FIXED, 0 },
        { logical(0x08), FIXED, 1 },
        { logical(0x11), FIXED, 2 },    /* the same bit, another cluster */
        { logical(0xe4), FIXED, 3 },
        { logical(0x09), LOWEST, IRQ_DEST_SEVERAL },
        { logical(0x12), FIXED, IRQ_DEST_NONE },
        { logical(0x21), FIXED, IRQ_DEST_NONE },
        { logical(0xff), FIXED, IRQ_DEST_SEVERAL },
    };

    check(rows, ARRAY_SIZE(rows), vcpus, ARRAY_SIZE(vcpus));
}

static void test_x2apic(void)
{
    static const IRQDestVCPU vcpus[] = {
        { .vcpu = 0, .apic_id = 0x00, .logical_known = true, .x2apic = true },
        { .vcpu = 1, .apic_id = 0x0f, .logical_known = true, .x2apic = true },
        { .vcpu = 2, .apic_id = 0x10, .logical_known = true, .x2apic = true },
        { .vcpu = 3, .apic_id = 0x123, .logical_known = true, .x2apic = true },
    };
    const Row rows[] = {
        { logical(0x00000001), FIXED, 0 },
        { logical(0x00008000), FIXED, 1 },
        { logical(0x00008001), LOWEST, IRQ_DEST_SEVERAL },
        { logical(0x00010001), FIXED, 2 },
        { logical(0x00120008), FIXED, 3 },
        { logical(0x00120004), FIXED, IRQ_DEST_NONE },
        { logical(0x00020001), FIXED, IRQ_DEST_NONE },
        { logical(0x00000000), FIXED, IRQ_DEST_NONE },
        { physical(0x123), FIXED, 3 },
        { physical(0x23), FIXED, IRQ_DEST_NONE },
    };

    check(rows, ARRAY_SIZE(rows), vcpus, ARRAY_SIZE(vcpus));
}

/* Every APIC ID that 15 bits can name reaches its own vCPU and no other. */
static void test_15_bit(void)
{
    IRQDestVCPU vcpus[] = {
        { .vcpu = 0, .apic_id = 0 }, { .vcpu = 1 },
    };

    for (uint32_t id = 1; id < 1 << 15; id++) {
        vcpus[1].apic_id = id;
        if (id != 0xff) {
            g_assert_cmpint(irq_dest_vcpu(physical(id), VECTOR, vcpus, 2), ==,
                            1);
        }
        if (id & 0xff && id > 0xff) {
            /* the low eight bits alone are another's */
            g_assert_cmpint(irq_dest_vcpu(physical(id & 0xff), VECTOR, vcpus,
                                          2), ==,
                            (id & 0xff) == 0xff ? IRQ_DEST_ASK
                                                : IRQ_DEST_NONE);
        }
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/irq-affinity/dest/physical", test_physical);
    g_test_add_func("/irq-affinity/dest/broadcast", test_broadcast);
    g_test_add_func("/irq-affinity/dest/flat", test_flat);
    g_test_add_func("/irq-affinity/dest/cluster", test_cluster);
    g_test_add_func("/irq-affinity/dest/x2apic", test_x2apic);
    g_test_add_func("/irq-affinity/dest/15-bit", test_15_bit);
    return g_test_run();
}

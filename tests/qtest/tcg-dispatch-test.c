/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Topology changes while vCPUs run MMIO under TCG
 *
 * The guest (tcg-dispatch/payload.S) reads and writes the registers of an edu
 * device for ever and counts the accesses that reached something else.  The
 * test maps and unmaps the BAR of an unrelated device, or unplugs the device
 * in use, from the main thread.
 */

#include "qemu/osdep.h"
#include "libqtest.h"
#include "libqos/pci-pc.h"
#include "hw/pci/pci_regs.h"
#include "qemu/units.h"
#include "tcg-dispatch/layout.h"
#include "tcg-dispatch/payload.h"

#define TOGGLES         1000
#define UNPLUGS         10
#define CPU_UNPLUGS     3       /* each uses up one TCG context, of maxcpus */
#define CPUHP           0xaf00  /* see docs/specs/acpi_cpu_hotplug.rst */
#define TOGGLED_SLOT    4
#define EDU_SLOT        5       /* of vCPU 0 */
#define ROUND_US        1000    /* about */
#define POLL_US         100
#define HANG_POLLS      1000000

typedef struct Case {
    const char *path;
    GTestDataFunc run;
    const char *thread;
    unsigned vcpus;             /* those that run the loop */
    unsigned cpus;              /* all, the others are halted */
} Case;

typedef struct Guest {
    QTestState *qts;
    char *bios;
    unsigned vcpus;
} Guest;

static void pci_write(Guest *g, unsigned slot, uint8_t reg, uint32_t val)
{
    qtest_outl(g->qts, 0xcf8, 0x80000000u | slot << 11 | reg);
    qtest_outl(g->qts, 0xcfc, val);
}

static void pci_enable(Guest *g, unsigned slot, bool enable)
{
    pci_write(g, slot, PCI_COMMAND, enable ? PCI_COMMAND_MEMORY : 0);
}

static void pci_map(Guest *g, unsigned slot, uint32_t addr)
{
    pci_write(g, slot, PCI_BASE_ADDRESS_0, addr);
    pci_enable(g, slot, true);
}

static uint32_t counter(Guest *g, unsigned vcpu, unsigned which)
{
    return qtest_readl(g->qts, COUNTERS + vcpu * COUNTERS_STRIDE + which);
}

/* Further vCPUs have not counted anything. */
static uint32_t counter_sum(Guest *g, unsigned which)
{
    return counter(g, 0, which) + counter(g, 1, which);
}

static uint32_t wrong_sum(Guest *g)
{
    return counter_sum(g, WRONG_READS) + counter_sum(g, WRONG_WRITES);
}

/* Return when each vCPU has finished @n rounds more; bounded for a hang. */
static void wait_rounds(Guest *g, uint32_t n)
{
    for (unsigned i = 0; i < g->vcpus; i++) {
        uint32_t start = counter(g, i, ROUNDS);
        unsigned polls = 0;

        while (counter(g, i, ROUNDS) - start < n) {
            if (++polls == HANG_POLLS) {
                g_error("vCPU %u hangs in round %u", i, start);
            }
            g_usleep(POLL_US);
        }
    }
}

static char *bios_create(void)
{
    static const uint8_t jump[] = { 0xea, 0x00, 0x00, 0x00, 0xf0 };
    g_autofree uint8_t *image = g_malloc0(64 * KiB);
    GError *err = NULL;
    char *name;
    int fd;

    QEMU_BUILD_BUG_ON(sizeof(payload) > 64 * KiB - 16);
    memcpy(image, payload, sizeof(payload));
    memcpy(image + 64 * KiB - 16, jump, sizeof(jump));  /* reset vector */

    fd = g_file_open_tmp("tcg-dispatch-XXXXXX", &name, &err);
    g_assert_no_error(err);
    g_assert_cmpint(write(fd, image, 64 * KiB), ==, 64 * KiB);
    close(fd);
    return name;
}

static bool guest_start(Guest *g, const Case *c)
{
    if (!qtest_has_accel("tcg")) {
        g_test_skip("this QEMU is built without TCG");
        return false;
    }
    if (!qtest_has_machine("pc") || !qtest_has_device("edu") ||
        !qtest_has_device("pci-testdev")) {
        g_test_skip("machine pc, device edu or pci-testdev is not built in");
        return false;
    }
    g->vcpus = c->vcpus;
    g->bios = bios_create();
    g->qts = qtest_initf("-machine pc -accel tcg,thread=%s -m 16 -cpu qemu64 "
                         "-smp %u,sockets=4,maxcpus=4 -bios %s -nodefaults "
                         "-global apic-common.vapic=off "   /* has a ROM */
                         "-device pci-testdev,addr=%u "
                         "-device edu,id=edu0,addr=%u -device edu,addr=%u",
                         c->thread, c->cpus, g->bios, TOGGLED_SLOT,
                         EDU_SLOT, EDU_SLOT + 1);
    pci_write(g, TOGGLED_SLOT, PCI_BASE_ADDRESS_0, TOGGLED);
    pci_map(g, EDU_SLOT, EDU);
    pci_map(g, EDU_SLOT + 1, EDU + EDU_STRIDE);
    qtest_writel(g->qts, GO, 1);
    wait_rounds(g, 1);
    return true;
}

static void guest_stop(Guest *g)
{
    qtest_quit(g->qts);
    unlink(g->bios);
    g_free(g->bios);
}

static void test_toggle(gconstpointer data)
{
    uint32_t wrong;
    Guest g;

    if (!guest_start(&g, data)) {
        return;
    }
    for (unsigned i = 0; i < TOGGLES; i++) {
        pci_enable(&g, TOGGLED_SLOT, !(i & 1));
        /* Any point of the next round will do. */
        g_usleep(g_test_rand_int_range(0, ROUND_US));
    }
    wait_rounds(&g, 1);
    wrong = wrong_sum(&g);
    g_test_message("%u toggles, %u rounds: %u wrong reads, %u wrong writes",
                   TOGGLES, counter_sum(&g, ROUNDS),
                   counter_sum(&g, WRONG_READS), counter_sum(&g, WRONG_WRITES));
    guest_stop(&g);
    g_assert_cmpuint(wrong, ==, 0);
}

/*
 * Unplug the device that vCPU 0 is using and plug another one in its place.
 * DEVICE_DELETED is sent when the last reference to the device is gone, which
 * includes those of the views that the vCPUs (running, halted or stopped)
 * hold.  Between the two, accesses reach nothing and count as wrong.
 */
static void replug(Guest *g, bool stopped)
{
    uint32_t wrong;

    if (stopped) {
        qtest_qmp_assert_success(g->qts, "{ 'execute': 'stop' }");
    }
    qpci_unplug_acpi_device_test(g->qts, "edu0", EDU_SLOT);
    qtest_qmp_device_add(g->qts, "edu", "edu0", "{ 'addr': %s }",
                         stringify(EDU_SLOT));
    pci_map(g, EDU_SLOT, EDU);
    if (stopped) {
        qtest_qmp_assert_success(g->qts, "{ 'execute': 'cont' }");
    }

    wait_rounds(g, 2);
    wrong = wrong_sum(g);
    wait_rounds(g, 2);
    g_assert_cmpuint(wrong_sum(g), ==, wrong);
}

static void test_unplug(gconstpointer data)
{
    Guest g;

    if (!guest_start(&g, data)) {
        return;
    }
    for (unsigned i = 0; i < UNPLUGS; i++) {
        replug(&g, i & 1);
    }
    guest_stop(&g);
}

/* Views of a vCPU that goes away: add, change the topology, remove. */
/*
 * The base never frees three MemoryRegions of an unplugged x86 vCPU under TCG
 * (target/i386/tcg/system/tcg-cpu.c).  LeakSanitizer sees them in some runs, as
 * stale pointers to them are left in others.  A view that is not dropped needs
 * no sanitizer to show: the unplug would not end.
 */
static bool guest_start_without_leak_check(Guest *g, gconstpointer data)
{
    g_autofree char *before = g_strdup(g_getenv("ASAN_OPTIONS"));
    g_autofree char *now = g_strdup_printf("%s:detect_leaks=0", before ?: "");
    bool started;

    g_setenv("ASAN_OPTIONS", now, true);
    started = guest_start(g, data);
    if (before) {
        g_setenv("ASAN_OPTIONS", before, true);
    } else {
        g_unsetenv("ASAN_OPTIONS");
    }
    return started;
}

static void test_cpu_unplug(gconstpointer data)
{
    g_autofree char *type = g_strdup_printf("qemu64-%s-cpu", qtest_get_arch());
    Guest g;

    if (!guest_start_without_leak_check(&g, data)) {
        return;
    }
    qtest_outl(g.qts, CPUHP, 0);        /* leave the legacy interface */
    for (unsigned i = 0; i < CPU_UNPLUGS; i++) {
        qtest_qmp_device_add(g.qts, type, "cpu1",
                             "{ 'socket-id': 1, 'die-id': 0, 'module-id': 0,"
                             "  'core-id': 0, 'thread-id': 0 }");
        pci_enable(&g, TOGGLED_SLOT, !(i & 1));
        qtest_qmp_device_del_send(g.qts, "cpu1");
        qtest_outl(g.qts, CPUHP, 1);
        qtest_outb(g.qts, CPUHP + 4, 1 << 3);   /* eject */
        qtest_qmp_eventwait(g.qts, "DEVICE_DELETED");
    }
    wait_rounds(&g, 2);
    guest_stop(&g);
}

static const Case cases[] = {
    { "/tcg-dispatch/toggle/multi", test_toggle, "multi", 1, 1 },
    { "/tcg-dispatch/toggle/multi-smp", test_toggle, "multi", 2, 2 },
    { "/tcg-dispatch/toggle/single", test_toggle, "single", 1, 1 },
    { "/tcg-dispatch/unplug/multi", test_unplug, "multi", 2, 3 },
    { "/tcg-dispatch/unplug/single", test_unplug, "single", 1, 1 },
    { "/tcg-dispatch/cpu-unplug", test_cpu_unplug, "multi", 1, 1 },
};

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        qtest_add_data_func(cases[i].path, &cases[i], cases[i].run);
    }
    return g_test_run();
}

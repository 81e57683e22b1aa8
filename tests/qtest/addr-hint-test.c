/*
 * QTest: device access by address hint
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * dispatch-testdev makes each random access twice inside QEMU, by the plain
 * path and by way of a reference table, and counts the differences (see
 * docs/specs/dispatch-testdev.rst).  HOTPATH_SEED replays a run.
 */

#include "qemu/osdep.h"
#include "libqtest.h"
#include "hw/misc/addr-hint-regs.h"
#include "hw/pci/pci_regs.h"
#include "libqos/pci-pc.h"
#include "qemu/cutils.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"

#define DEVFN QPCI_DEVFN(4, 0)
#define CPUHP 0xaf00    /* see docs/specs/acpi_cpu_hotplug.rst */

enum { SEED = 0x04, COUNT = 0x08, CHANGE_EVERY = 0x0c, REGIONS = 0x10,
       FLAGS = 0x14, START = 0x18, STATUS = 0x1c, DIFFERENCES = 0x20,
       CHANGES = 0x24, HITS = 0x28, CHECKED = 0x2c, MISSES = 0x30,
       REFUSED = 0x34, FILLS = 0x38, EVICTIONS = 0x3c, RENEWALS = 0x40,
       WINDOW_HITS = 0x4c, WINDOW_REFILLS = 0x50, WINDOW_STALE = 0x54,
       WINDOW_REFUSED = 0x58, PLAIN_WRITES = 0x5c };
enum { COMPARE = 1, MEASURE = 2, PROVE = 3 };
enum { RUNNING = 1, DONE = 2, REFUSED_START = 3 };
enum { VCPU_PATH = 1, WRITE = 2, PORTS = 4, LOCKLESS = 8, OWNED = 16,
       WINDOW = 64 };

typedef struct TestDev {
    QTestState *qts;
    QPCIBus *bus;
    QPCIDevice *dev;
    QPCIBar control;
} TestDev;

static TestDev *testdev_start(const char *machine_options)
{
    TestDev *t = g_new0(TestDev, 1);

    t->qts = qtest_initf("-machine pc%s -nodefaults "
                         "-device dispatch-testdev,id=dut,addr=04.0",
                         machine_options);
    t->bus = qpci_new_pc(t->qts, NULL);
    t->dev = qpci_device_find(t->bus, DEVFN);
    g_assert_nonnull(t->dev);
    qpci_device_enable(t->dev);
    t->control = qpci_iomap(t->dev, 0, NULL);
    qpci_iomap(t->dev, 1, NULL);
    qpci_iomap(t->dev, 2, NULL);
    return t;
}

static void testdev_end(TestDev *t)
{
    g_free(t->dev);
    qpci_free_pc(t->bus);
    qtest_quit(t->qts);
    g_free(t);
}

static uint32_t reg(TestDev *t, unsigned offset)
{
    return qpci_io_readl(t->dev, t->control, offset);
}

static void set_reg(TestDev *t, unsigned offset, uint32_t value)
{
    qpci_io_writel(t->dev, t->control, offset, value);
}

static void run(TestDev *t, uint32_t what)
{
    set_reg(t, START, what);
    while (reg(t, STATUS) == RUNNING) {
        g_usleep(10 * 1000);
    }
    g_assert_cmpuint(reg(t, STATUS), ==, DONE);
}

static uint32_t test_seed(void)
{
    const char *given = g_getenv("HOTPATH_SEED");
    uint32_t seed = g_random_int();

    if (given) {
        g_assert_cmpint(qemu_strtoui(given, NULL, 0, &seed), ==, 0);
    }
    g_test_message("seed %u (HOTPATH_SEED=%u replays it)", seed, seed);
    return seed;
}

static void compare(TestDev *t, uint32_t seed, uint32_t count,
                    uint32_t change_every)
{
    set_reg(t, SEED, seed);
    set_reg(t, COUNT, count);
    set_reg(t, CHANGE_EVERY, change_every);
    run(t, COMPARE);
    g_test_message("%u accesses, %u changes: hits %u checked %u misses %u "
                   "refused %u fills %u evictions %u renewals %u", count,
                   reg(t, CHANGES), reg(t, HITS), reg(t, CHECKED),
                   reg(t, MISSES), reg(t, REFUSED), reg(t, FILLS),
                   reg(t, EVICTIONS), reg(t, RENEWALS));
    g_assert_cmpuint(reg(t, DIFFERENCES), ==, 0);
    g_assert_cmpuint(reg(t, HITS) + reg(t, CHECKED) + reg(t, REFUSED), ==,
                     count);
}

/* A million accesses with topology changes in between: no difference */
static void test_differential(void)
{
    TestDev *t = testdev_start("");
    uint32_t seed = test_seed();

    compare(t, seed, 400 * 1000, 200);
    g_assert_cmpuint(reg(t, CHANGES), >, 1000);
    g_assert_cmpuint(reg(t, RENEWALS), >, 1000);
    compare(t, seed + 1, 300 * 1000, 1000);
    compare(t, seed + 2, 300 * 1000, 20 * 1000);
    /* every way was gone */
    g_assert_cmpuint(reg(t, HITS), >, 10 * 1000);
    g_assert_cmpuint(reg(t, CHECKED), >, 10 * 1000);
    g_assert_cmpuint(reg(t, REFUSED), >, 10 * 1000);
    g_assert_cmpuint(reg(t, FILLS), >, 100);
    testdev_end(t);
}

/* The device whose hints are compared, mapped, its address space known */
static void map_hint_device(TestDev *t)
{
    QPCIDevice *dev = qpci_device_find(t->bus, QPCI_DEVFN(6, 0));
    QPCIBar regs;

    g_assert_nonnull(dev);
    qpci_device_enable(dev);
    regs = qpci_iomap(dev, ADDR_HINT_BAR_REGISTERS, NULL);
    qpci_iomap(dev, ADDR_HINT_BAR_WINDOW, NULL);
    qpci_io_writel(dev, regs, ADDR_HINT_REG_COMMAND, ADDR_HINT_CMD_REGISTER);
    g_free(dev);
}

static void compare_by_hint(TestDev *t, uint32_t seed, uint32_t count,
                            uint32_t change_every)
{
    set_reg(t, SEED, seed);
    set_reg(t, COUNT, count);
    set_reg(t, CHANGE_EVERY, change_every);
    set_reg(t, FLAGS, WINDOW);
    run(t, COMPARE);
    g_test_message("%u accesses, %u changes: hits %u refills %u stale %u "
                   "refused %u by the table", count, reg(t, CHANGES),
                   reg(t, WINDOW_HITS), reg(t, WINDOW_REFILLS),
                   reg(t, WINDOW_STALE), reg(t, WINDOW_REFUSED));
    g_assert_cmpuint(reg(t, DIFFERENCES), ==, 0);
}

/* The same million at addresses and by the hints for them */
static void test_differential_window(void)
{
    TestDev *t = testdev_start(" -device addr-hint-pci,hints=64,addr=06.0");
    uint32_t seed = test_seed();

    map_hint_device(t);
    compare_by_hint(t, seed, 400 * 1000, 200);
    g_assert_cmpuint(reg(t, CHANGES), >, 1000);
    g_assert_cmpuint(reg(t, WINDOW_REFILLS), >, 1000);
    compare_by_hint(t, seed + 1, 300 * 1000, 1000);
    compare_by_hint(t, seed + 2, 300 * 1000, 20 * 1000);
    g_assert_cmpuint(reg(t, WINDOW_HITS), >, 10 * 1000);
    g_assert_cmpuint(reg(t, WINDOW_STALE), >, 100);
    g_assert_cmpuint(reg(t, WINDOW_REFUSED), >, 100);
    testdev_end(t);
}

/*
 * A hit writes nothing that vCPUs share to find the region: the dispatch is
 * read-only meanwhile.  The plain path does, or this test would prove nothing.
 */
static void test_no_shared_write(void)
{
    TestDev *t = testdev_start("");

    set_reg(t, COUNT, 10000);
    set_reg(t, REGIONS, 8);
    run(t, PROVE);
    g_test_message("writes in 10000 accesses: %u by hint, %u by the plain path",
                   reg(t, DIFFERENCES), reg(t, PLAIN_WRITES));
    g_assert_cmpuint(reg(t, DIFFERENCES), ==, 0);
    g_assert_cmpuint(reg(t, PLAIN_WRITES), >, 5000);
    g_assert_cmpuint(reg(t, HITS), >=, 10000);
    testdev_end(t);
}

/* Nor does one by a hint that the guest asked for */
static void test_no_shared_write_window(void)
{
    TestDev *t = testdev_start(" -device addr-hint-pci,hints=64,addr=06.0");

    map_hint_device(t);
    set_reg(t, COUNT, 10000);
    set_reg(t, REGIONS, 8);
    set_reg(t, FLAGS, WINDOW);
    run(t, PROVE);
    g_assert_cmpuint(reg(t, DIFFERENCES), ==, 0);
    g_assert_cmpuint(reg(t, PLAIN_WRITES), >, 5000);
    g_assert_cmpuint(reg(t, WINDOW_HITS), >=, 10000);
    g_assert_cmpuint(reg(t, HITS), ==, 0);
    testdev_end(t);
}

/*
 * Unplugged in the middle of a comparison.  The windows go away between the two
 * ways of some access; the difference that is reported then is none.
 */
static void test_unplug(void)
{
    TestDev *t = testdev_start("");

    set_reg(t, SEED, test_seed());
    set_reg(t, COUNT, UINT32_MAX);
    set_reg(t, CHANGE_EVERY, 100);
    set_reg(t, START, COMPARE);
    while (reg(t, CHANGES) < 50) {
        g_usleep(1000);
    }
    g_assert_cmpuint(reg(t, STATUS), ==, RUNNING);
    qtest_qmp_device_del_send(t->qts, "dut");
    /* without an operating system to agree, a reset completes the removal */
    qtest_system_reset_nowait(t->qts);
    qtest_qmp_eventwait(t->qts, "DEVICE_DELETED");
    testdev_end(t);
}

/* A start that makes no sense is refused and leaves the device usable */
static void test_refusals(void)
{
    TestDev *t = testdev_start("");

    set_reg(t, START, 77);
    g_assert_cmpuint(reg(t, STATUS), ==, REFUSED_START);
    compare(t, 1, 1000, 0);
    testdev_end(t);
}

static QDict *vcpu_stats(QTestState *qts, QDict **response)
{
    QList *results;

    *response = qtest_qmp(qts, "{ 'execute': 'query-stats', 'arguments': {"
                          "  'target': 'vcpu',"
                          "  'providers': [ { 'provider': 'hotpath' } ] } }");
    results = qdict_get_qlist(*response, "return");
    g_assert_nonnull(results);
    return qlist_empty(results) ? NULL
                                : qobject_to(QDict, qlist_peek(results));
}

static int64_t stat_value(QDict *stats, const char *name)
{
    QListEntry *entry;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(stats, "stats"), entry) {
        QDict *stat = qobject_to(QDict, qlist_entry_obj(entry));

        if (g_str_equal(qdict_get_str(stat, "name"), name)) {
            return qdict_get_int(stat, "value");
        }
    }
    g_test_message("no statistic %s", name);
    g_assert_not_reached();
}

/* The path of a vCPU, of every kind of region, counted in query-stats */
static void test_vcpu_path(void)
{
    static const uint32_t kinds[] = {
        0, WRITE, OWNED, OWNED | WRITE, LOCKLESS, PORTS, PORTS | WRITE | OWNED
    };
    TestDev *t = testdev_start(",dispatch-hints=on");
    int64_t before = 0;

    for (int i = 0; i < ARRAY_SIZE(kinds); i++) {
        QDict *response, *stats;

        set_reg(t, COUNT, 10000);
        set_reg(t, REGIONS, 8);
        set_reg(t, FLAGS, kinds[i] | VCPU_PATH);
        run(t, MEASURE);
        stats = vcpu_stats(t->qts, &response);
        g_assert_nonnull(stats);
        g_assert_cmpstr(qdict_get_str(stats, "provider"), ==, "hotpath");
        /* all but the first access to each region */
        g_assert_cmpint(stat_value(stats, "addr-hint-hits") - before, ==,
                        10000 - 8);
        before = stat_value(stats, "addr-hint-hits");
        g_assert_cmpint(stat_value(stats, "addr-hint-misses"), ==,
                        8 * (i + 1));
        qobject_unref(response);
    }
    testdev_end(t);
}

/* Off: no table, no provider, no counters */
static void test_off(void)
{
    TestDev *t = testdev_start("");
    QDict *response;
    char *info;

    set_reg(t, COUNT, 1000);
    set_reg(t, REGIONS, 8);
    set_reg(t, FLAGS, VCPU_PATH);
    run(t, MEASURE);
    g_assert_null(vcpu_stats(t->qts, &response));
    qobject_unref(response);
    info = qtest_hmp(t->qts, "info addr-hints");
    g_assert_nonnull(strstr(info, "dispatch-hints=on"));
    g_free(info);
    testdev_end(t);
}

static void test_info(void)
{
    TestDev *t = testdev_start(",dispatch-hints=on -smp 2");
    char *info = qtest_hmp(t->qts, "info addr-hints");

    g_assert_nonnull(strstr(info, "CPU #0: hits 0"));
    g_assert_nonnull(strstr(info, "CPU #1: hits 0"));
    g_free(info);
    testdev_end(t);
}

static void test_schema(void)
{
    TestDev *t = testdev_start(",dispatch-hints=on");
    QDict *response = qtest_qmp(t->qts, "{ 'execute': 'query-stats-schemas',"
        " 'arguments': { 'provider': 'hotpath' } }");
    QList *schemas = qdict_get_qlist(response, "return");
    QDict *schema;

    g_assert_cmpuint(qlist_size(schemas), ==, 1);
    schema = qobject_to(QDict, qlist_peek(schemas));
    g_assert_cmpstr(qdict_get_str(schema, "target"), ==, "vcpu");
    g_assert_cmpuint(qlist_size(qdict_get_qlist(schema, "stats")), ==, 7);
    qobject_unref(response);
    testdev_end(t);
}

/* The property can be read, and not be changed once vCPUs exist */
static void test_property(void)
{
    TestDev *t = testdev_start(",dispatch-hints=on");
    QDict *response;

    response = qtest_qmp(t->qts, "{ 'execute': 'qom-get', 'arguments': {"
                         " 'path': '/machine',"
                         " 'property': 'dispatch-hints' } }");
    g_assert_true(qdict_get_bool(response, "return"));
    qobject_unref(response);
    response = qtest_qmp(t->qts, "{ 'execute': 'qom-set', 'arguments': {"
                         " 'path': '/machine',"
                         " 'property': 'dispatch-hints', 'value': false } }");
    g_assert_nonnull(strstr(qdict_get_str(qdict_get_qdict(response, "error"),
                                          "desc"), "dispatch-hints"));
    qobject_unref(response);
    testdev_end(t);
}

/* With the trace events of an access on, the way that contains them is taken */
static void test_traced(void)
{
    TestDev *t = testdev_start(" -D /dev/null"
                               " -trace memory_region_ops_read"
                               " -trace memory_region_ops_write");

    compare(t, test_seed(), 20 * 1000, 1000);
    g_assert_cmpuint(reg(t, HITS), ==, 0);
    g_assert_cmpuint(reg(t, CHECKED), >, 0);
    testdev_end(t);
}

/* Another thread changes the topology elsewhere, all the time */
static void test_concurrent(void)
{
    TestDev *t = testdev_start(" -device edu,addr=05.0");
    QPCIDevice *edu = qpci_device_find(t->bus, QPCI_DEVFN(5, 0));
    unsigned toggles = 0;

    g_assert_nonnull(edu);
    qpci_iomap(edu, 0, NULL);
    set_reg(t, SEED, test_seed());
    set_reg(t, COUNT, 50 * 1000);
    set_reg(t, CHANGE_EVERY, 5000);
    set_reg(t, START, COMPARE);
    while (reg(t, STATUS) == RUNNING) {
        qpci_config_writew(edu, PCI_COMMAND,
                           toggles++ & 1 ? PCI_COMMAND_MEMORY : 0);
    }
    g_test_message("%u toggles, renewals %u", toggles, reg(t, RENEWALS));
    g_assert_cmpuint(toggles, >, 10);
    g_assert_cmpuint(reg(t, DIFFERENCES), ==, 0);
    g_free(edu);
    testdev_end(t);
}

/* vCPUs come and go with their tables */
static void test_cpu_hotplug(void)
{
    g_autofree char *type = g_strdup_printf("qemu64-%s-cpu", qtest_get_arch());
    QTestState *qts = qtest_init("-machine pc,dispatch-hints=on -nodefaults "
                                 "-smp 1,sockets=2,maxcpus=2 -cpu qemu64");
    char *info;

    qtest_outl(qts, CPUHP, 0);          /* leave the legacy interface */
    qtest_qmp_device_add(qts, type, "cpu1",
                         "{ 'socket-id': 1, 'core-id': 0, 'thread-id': 0 }");
    info = qtest_hmp(qts, "info addr-hints");
    g_assert_nonnull(strstr(info, "CPU #1:"));
    g_free(info);

    qtest_qmp_device_del_send(qts, "cpu1");
    qtest_outl(qts, CPUHP, 1);          /* select the vCPU */
    qtest_outb(qts, CPUHP + 4, 1 << 3); /* eject it */
    qtest_qmp_eventwait(qts, "DEVICE_DELETED");
    info = qtest_hmp(qts, "info addr-hints");
    g_assert_nonnull(strstr(info, "CPU #0:"));
    g_assert_null(strstr(info, "CPU #1:"));
    g_free(info);
    qtest_quit(qts);
}

static void test_none(void)
{
    g_test_skip("machine pc or dispatch-testdev is not built in");
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    if (!qtest_has_machine("pc") || !qtest_has_device("dispatch-testdev")) {
        qtest_add_func("/addr-hint/none", test_none);
        return g_test_run();
    }
    qtest_add_func("/addr-hint/differential", test_differential);
    if (qtest_has_device("addr-hint-pci")) {
        qtest_add_func("/addr-hint/differential-window",
                       test_differential_window);
        qtest_add_func("/addr-hint/no-shared-write-window",
                       test_no_shared_write_window);
    }
    qtest_add_func("/addr-hint/no-shared-write", test_no_shared_write);
    qtest_add_func("/addr-hint/traced", test_traced);
    qtest_add_func("/addr-hint/concurrent", test_concurrent);
    qtest_add_func("/addr-hint/unplug", test_unplug);
    qtest_add_func("/addr-hint/refusals", test_refusals);
    qtest_add_func("/addr-hint/vcpu-path", test_vcpu_path);
    qtest_add_func("/addr-hint/off", test_off);
    qtest_add_func("/addr-hint/info", test_info);
    qtest_add_func("/addr-hint/schema", test_schema);
    qtest_add_func("/addr-hint/property", test_property);
    qtest_add_func("/addr-hint/cpu-hotplug", test_cpu_hotplug);
    return g_test_run();
}

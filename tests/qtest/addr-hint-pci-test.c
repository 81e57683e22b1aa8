/*
 * QTest: addr-hint-pci, device access by address hint
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Uses the reference driver.  That an access by a hint has the result and the
 * effects of one by address, for any region, is compared in addr-hint-test.
 */

#include "qemu/osdep.h"
#include "libqtest.h"
#include "qemu/bswap.h"
#include "hw/pci/pci_regs.h"
#include "hw/misc/addr-hint-regs.h"
#include "contrib/addr-hint/addr-hint-driver.h"
#include "libqos/pci-pc.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"

#define EDU_ID 0x010000ed
#define EDU_LIVENESS 4          /* reads as the complement of what is written */
#define PAGE 4096

/* pci-testdev, BAR 0 */
#define TESTDEV_WILDCARD 1
#define TESTDEV_OFFSET(test) (2048 + (test))

typedef struct Dut {
    QTestState *qts;
    QPCIBus *bus;
    QPCIDevice *pci;
    QPCIBar regs;
    QPCIBar bells;
    QPCIBar window;
    struct ahint_device driver;
    QPCIDevice *edu;
    QPCIBar edu_bar;
} Dut;

static uint32_t driver_read(void *opaque, unsigned int offset)
{
    Dut *t = opaque;

    return qpci_io_readl(t->pci, t->regs, offset);
}

static void driver_write(void *opaque, unsigned int offset, uint32_t value)
{
    Dut *t = opaque;

    qpci_io_writel(t->pci, t->regs, offset, value);
}

static void dut_map(Dut *t, unsigned slot)
{
    t->pci = qpci_device_find(t->bus, QPCI_DEVFN(slot, 0));
    g_assert_nonnull(t->pci);
    qpci_device_enable(t->pci);
    t->regs = qpci_iomap(t->pci, ADDR_HINT_BAR_REGISTERS, NULL);
    t->bells = qpci_iomap(t->pci, ADDR_HINT_BAR_DOORBELLS, NULL);
    t->window = qpci_iomap(t->pci, ADDR_HINT_BAR_WINDOW, NULL);
    t->driver.read = driver_read;
    t->driver.write = driver_write;
    t->driver.opaque = t;
    g_assert_cmpint(ahint_open(&t->driver), ==, 0);
}

static Dut *dut_start(const char *options, const char *more)
{
    Dut *t = g_new0(Dut, 1);

    t->qts = qtest_initf("-machine pc -nodefaults "
                         "-device addr-hint-pci,id=dut,addr=04.0%s "
                         "-device edu,id=edu,addr=05.0 %s", options, more);
    t->bus = qpci_new_pc(t->qts, NULL);
    dut_map(t, 4);
    t->edu = qpci_device_find(t->bus, QPCI_DEVFN(5, 0));
    g_assert_nonnull(t->edu);
    qpci_device_enable(t->edu);
    t->edu_bar = qpci_iomap(t->edu, 0, NULL);
    return t;
}

static void dut_end(Dut *t)
{
    g_free(t->edu);
    g_free(t->pci);
    qpci_free_pc(t->bus);
    qtest_quit(t->qts);
    g_free(t);
}

static uint32_t window_readl(Dut *t, uint64_t offset)
{
    return qpci_io_readl(t->pci, t->window, offset);
}

static void window_writel(Dut *t, uint64_t offset, uint32_t value)
{
    qpci_io_writel(t->pci, t->window, offset, value);
}

static struct ahint get_hint(Dut *t, uint64_t addr, uint32_t length)
{
    struct ahint hint;

    g_assert_cmpuint(ahint_get(&t->driver, addr, length, &hint), ==,
                     ADDR_HINT_OK);
    return hint;
}

static void expect_refusal(Dut *t, uint64_t addr, uint32_t length,
                           uint32_t status)
{
    struct ahint hint;

    g_assert_cmpuint(ahint_get(&t->driver, addr, length, &hint), ==, status);
}

static int64_t stat_value(QTestState *qts, const char *target,
                          const char *name)
{
    QDict *response = qtest_qmp(qts, "{ 'execute': 'query-stats', "
        "'arguments': { 'target': %s, "
        "'providers': [ { 'provider': 'hotpath' } ] } }", target);
    QListEntry *result, *entry;
    int64_t sum = -1;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(response, "return"), result) {
        QDict *of = qobject_to(QDict, qlist_entry_obj(result));

        QLIST_FOREACH_ENTRY(qdict_get_qlist(of, "stats"), entry) {
            QDict *stat = qobject_to(QDict, qlist_entry_obj(entry));

            if (g_str_equal(qdict_get_str(stat, "name"), name)) {
                sum = MAX(sum, 0) + qdict_get_int(stat, "value");
            }
        }
    }
    qobject_unref(response);
    return sum;
}

static int64_t vm_stat(Dut *t, const char *name)
{
    int64_t value = stat_value(t->qts, "vm", name);

    g_assert_cmpint(value, >=, 0);
    return value;
}

/* Wait until a statistic has a value; the main loop has work to do first. */
static void wait_stat(Dut *t, const char *name, int64_t value)
{
    for (int i = 0; i < 500 && vm_stat(t, name) != value; i++) {
        g_usleep(10 * 1000);
    }
    g_assert_cmpint(vm_stat(t, name), ==, value);
}

/*
 * Tests
 */

static void test_registers(void)
{
    Dut *t = dut_start(",hints=5,doorbells=3", "");
    uint64_t size;

    g_assert_cmpuint(t->driver.hints, ==, 5);
    g_assert_cmpuint(t->driver.doorbells, ==, 3);
    /* five pages, as a BAR can have */
    t->window = qpci_iomap(t->pci, ADDR_HINT_BAR_WINDOW, &size);
    g_assert_cmpuint(size, ==, 8 * PAGE);
    /* read-only registers, and what is behind the last one */
    driver_write(t, ADDR_HINT_REG_MAGIC, 0);
    driver_write(t, ADDR_HINT_REG_HINTS, 4000);
    driver_write(t, ADDR_HINT_REG_STATUS, 4000);
    driver_write(t, ADDR_HINT_REG_DOORBELL, 0);
    driver_write(t, ADDR_HINT_REG_END, 4000);
    driver_write(t, PAGE - 4, 4000);
    g_assert_cmpint(ahint_open(&t->driver), ==, 0);
    g_assert_cmpuint(t->driver.hints, ==, 5);
    g_assert_cmpuint(driver_read(t, ADDR_HINT_REG_STATUS), ==, 0);
    g_assert_cmpuint(driver_read(t, ADDR_HINT_REG_DOORBELL), ==,
                     ADDR_HINT_DOORBELL_NONE);
    g_assert_cmpuint(driver_read(t, ADDR_HINT_REG_END), ==, 0);
    /* parameters can be read back; other sizes than four bytes are nothing */
    driver_write(t, ADDR_HINT_REG_LENGTH, 0x12345678);
    qpci_io_writeb(t->pci, t->regs, ADDR_HINT_REG_LENGTH, 0xff);
    g_assert_cmpuint(driver_read(t, ADDR_HINT_REG_LENGTH), ==, 0x12345678);
    dut_end(t);
}

/* An access by a hint is one at the address, of each size and direction */
static void test_access(void)
{
    Dut *t = dut_start("", "");
    struct ahint hint = get_hint(t, t->edu_bar.addr, PAGE);
    struct ahint part = get_hint(t, t->edu_bar.addr + EDU_LIVENESS, 4);

    g_assert_cmpuint(part.index, !=, hint.index);
    g_assert_cmpuint(part.window & (PAGE - 1), ==, EDU_LIVENESS);
    for (uint32_t i = 0; i < 100; i++) {
        g_assert_cmphex(window_readl(t, hint.window), ==, EDU_ID);
        window_writel(t, hint.window + EDU_LIVENESS, i);
        g_assert_cmphex(window_readl(t, part.window), ==, ~i);
        window_writel(t, part.window, i * 3);
        g_assert_cmphex(qpci_io_readl(t->edu, t->edu_bar, EDU_LIVENESS), ==,
                        ~(i * 3));
    }
    /* edu takes four bytes there, eight only further on */
    g_assert_cmphex(qpci_io_readw(t->pci, t->window, hint.window), ==,
                    qpci_io_readw(t->edu, t->edu_bar, 0));
    g_assert_cmphex(qpci_io_readq(t->pci, t->window, hint.window), ==,
                    qpci_io_readq(t->edu, t->edu_bar, 0));
    g_assert_cmpint(vm_stat(t, "addr-hint-other-hits"), >=, 400);
    g_assert_cmpint(vm_stat(t, "addr-hint-other-stale"), ==, 0);
    dut_end(t);
}

static void test_refusals(void)
{
    Dut *t = dut_start(",hints=2,doorbells=1",
                       "-device addr-hint-pci,addr=07.0 "
                       "-device virtio-rng-pci,vectors=2,addr=08.0");
    QPCIDevice *other = qpci_device_find(t->bus, QPCI_DEVFN(7, 0));
    QPCIDevice *rng = qpci_device_find(t->bus, QPCI_DEVFN(8, 0));
    uint64_t edu = t->edu_bar.addr;
    struct ahint hint;

    qpci_device_enable(other);
    qpci_device_enable(rng);
    /* commands */
    g_assert_cmpuint(ahint_command(&t->driver, 0), ==, ADDR_HINT_BAD_COMMAND);
    g_assert_cmpuint(ahint_command(&t->driver, 0x10001), ==,
                     ADDR_HINT_BAD_COMMAND);
    g_assert_cmpuint(ahint_put(&t->driver, 0), ==, ADDR_HINT_BAD_HINT);
    g_assert_cmpuint(ahint_put(&t->driver, UINT32_MAX), ==,
                     ADDR_HINT_BAD_HINT);
    g_assert_cmpuint(ahint_check(&t->driver, 2), ==, ADDR_HINT_BAD_HINT);
    /* lengths and pages */
    expect_refusal(t, edu, 0, ADDR_HINT_BAD_REQUEST);
    expect_refusal(t, edu, PAGE + 1, ADDR_HINT_BAD_REQUEST);
    expect_refusal(t, edu + 8, PAGE, ADDR_HINT_BAD_REQUEST);
    expect_refusal(t, edu + 1, UINT32_MAX, ADDR_HINT_BAD_REQUEST);
    /* flags, and what a posted write may be */
    g_assert_cmpuint(ahint_request(&t->driver, edu, 4, 2, 0, &hint), ==,
                     ADDR_HINT_BAD_REQUEST);
    g_assert_cmpuint(ahint_get_posted(&t->driver, edu, 3, 0, &hint), ==,
                     ADDR_HINT_BAD_REQUEST);
    g_assert_cmpuint(ahint_get_posted(&t->driver, edu, 16, 0, &hint), ==,
                     ADDR_HINT_BAD_REQUEST);
    g_assert_cmpuint(ahint_get_posted(&t->driver, edu + 2, 4, 0, &hint), ==,
                     ADDR_HINT_BAD_REQUEST);
    g_assert_cmpuint(ahint_get_posted(&t->driver, edu, 2, 0x10000, &hint), ==,
                     ADDR_HINT_BAD_REQUEST);
    /* what is at the address */
    expect_refusal(t, 0, 4, ADDR_HINT_MEMORY);
    expect_refusal(t, 0xfffff000, PAGE, ADDR_HINT_MEMORY);
    expect_refusal(t, 0x100000000000, 4, ADDR_HINT_NO_DEVICE);
    expect_refusal(t, UINT64_MAX - 3, 4, ADDR_HINT_NO_DEVICE);
    expect_refusal(t, t->regs.addr, 4, ADDR_HINT_IS_HINT);
    expect_refusal(t, t->bells.addr, 4, ADDR_HINT_IS_HINT);
    expect_refusal(t, t->window.addr, 4, ADDR_HINT_IS_HINT);
    expect_refusal(t, qpci_iomap(other, ADDR_HINT_BAR_WINDOW, NULL).addr, 4,
                   ADDR_HINT_IS_HINT);
    /* BAR 1 has the MSI-X table, two vectors, and then nothing */
    expect_refusal(t, qpci_iomap(rng, 1, NULL).addr + 0x1c, 8,
                   ADDR_HINT_SPANS);
    /* the table and the pool */
    g_assert_cmpuint(ahint_get_posted(&t->driver, edu + 4, 4, 0, &hint), ==,
                     ADDR_HINT_OK);
    g_assert_cmpuint(ahint_get_posted(&t->driver, edu + 4, 4, 1, &hint), ==,
                     ADDR_HINT_NO_DOORBELL);
    get_hint(t, edu, 4);
    expect_refusal(t, edu, 4, ADDR_HINT_FULL);
    g_assert_cmpuint(ahint_put(&t->driver, 0), ==, ADDR_HINT_OK);
    g_assert_cmpuint(ahint_put(&t->driver, 0), ==, ADDR_HINT_BAD_HINT);
    g_assert_cmpuint(ahint_get_posted(&t->driver, edu + 4, 4, 1, &hint), ==,
                     ADDR_HINT_OK);
    ahint_put_all(&t->driver);
    get_hint(t, edu, 4);
    get_hint(t, edu, 4);
    g_assert_cmpint(vm_stat(t, "addr-hint-refusals"), ==, 20);
    g_assert_cmpint(vm_stat(t, "addr-hint-registrations"), ==, 5);
    g_assert_cmpint(vm_stat(t, "addr-hint-registered"), ==, 2);
    g_free(rng);
    g_free(other);
    dut_end(t);
}

/* Hints that nobody gave, and accesses beside those that somebody gave */
static void test_forged(void)
{
    Dut *t = dut_start(",hints=5", "");
    struct ahint hint;
    int64_t refused;

    /* before the first hint there is not even an address space */
    g_assert_cmphex(window_readl(t, 0), ==, 0);
    window_writel(t, 3 * PAGE + 4, 1);
    hint = get_hint(t, t->edu_bar.addr + EDU_LIVENESS, 4);
    refused = vm_stat(t, "addr-hint-other-refused");
    g_assert_cmpint(refused, ==, 2);

    window_writel(t, hint.window, 0x1234);
    for (unsigned page = 0; page < 8; page++) {
        g_assert_cmphex(window_readl(t, page * PAGE), ==, 0);
        g_assert_cmphex(window_readl(t, page * PAGE + PAGE - 4), ==, 0);
        window_writel(t, page * PAGE + 8, 0xffffffff);
        refused += 3;
    }
    /* unaligned, around both ends: only the first byte counts */
    g_assert_cmphex(window_readl(t, hint.window - 1), ==, 0);
    g_assert_cmphex(window_readl(t, hint.window + 4), ==, 0);
    g_assert_cmphex(qpci_io_readb(t->pci, t->window, hint.window + 3), ==,
                    qpci_io_readb(t->edu, t->edu_bar, EDU_LIVENESS + 3));
    /* qpci_io_readl() is made of whole accesses; the last byte of the BAR */
    g_assert_cmphex(qpci_io_readb(t->pci, t->window, 8 * PAGE - 1), ==, 0);
    refused += 3;
    g_assert_cmpint(vm_stat(t, "addr-hint-other-refused"), ==, refused);
    g_assert_cmphex(window_readl(t, hint.window), ==, ~0x1234u);
    /* given back, it is as if it had never been given */
    g_assert_cmpuint(ahint_put(&t->driver, hint.index), ==, ADDR_HINT_OK);
    g_assert_cmphex(window_readl(t, hint.window), ==, 0);
    window_writel(t, hint.window, 1);
    g_assert_cmphex(qpci_io_readl(t->edu, t->edu_bar, EDU_LIVENESS), ==,
                    ~0x1234u);
    dut_end(t);
}

static void edu_set_bar(Dut *t, uint32_t addr)
{
    qpci_config_writel(t->edu, PCI_BASE_ADDRESS_0, addr);
}

/* Moved, disabled, back again: an access reaches edu or nothing */
static void test_stale(void)
{
    Dut *t = dut_start("", "");
    uint64_t home = t->edu_bar.addr, elsewhere = 0xf0000000;
    struct ahint hint = get_hint(t, home, PAGE);
    struct ahint posted = {};

    g_assert_cmpuint(ahint_get_posted(&t->driver, home + EDU_LIVENESS, 4, 7,
                                      &posted), ==, ADDR_HINT_OK);
    g_assert_cmphex(window_readl(t, hint.window), ==, EDU_ID);

    edu_set_bar(t, elsewhere);
    g_assert_cmphex(window_readl(t, hint.window), ==, 0);
    window_writel(t, hint.window + EDU_LIVENESS, 1);
    g_assert_cmpuint(ahint_check(&t->driver, hint.index), ==, ADDR_HINT_STALE);
    g_assert_cmphex(driver_read(t, ADDR_HINT_REG_ADDR_LO), ==, (uint32_t)home);
    g_assert_cmpuint(driver_read(t, ADDR_HINT_REG_LENGTH), ==, PAGE);
    /* a doorbell leads to nothing as well */
    qpci_io_writel(t->pci, t->bells, posted.doorbell, 0);
    wait_stat(t, "addr-hint-other-stale", 3);
    qtest_writel(t->qts, elsewhere + EDU_LIVENESS, 5);

    edu_set_bar(t, home);
    g_assert_cmpuint(ahint_check(&t->driver, hint.index), ==, ADDR_HINT_OK);
    g_assert_cmphex(window_readl(t, hint.window), ==, EDU_ID);
    g_assert_cmphex(window_readl(t, hint.window + EDU_LIVENESS), ==, ~5u);

    qpci_config_writew(t->edu, PCI_COMMAND, 0);
    g_assert_cmphex(window_readl(t, hint.window), ==, 0);
    qpci_config_writew(t->edu, PCI_COMMAND, PCI_COMMAND_MEMORY);
    g_assert_cmphex(window_readl(t, hint.window), ==, EDU_ID);

    /* the same region at another offset is not what the hint stands for */
    edu_set_bar(t, home - 0x100000);
    g_assert_cmphex(window_readl(t, hint.window), ==, 0);
    edu_set_bar(t, home);
    g_assert_cmphex(window_readl(t, hint.window), ==, EDU_ID);
    g_assert_cmpint(vm_stat(t, "addr-hint-other-refills"), >=, 5);
    dut_end(t);
}

static void unplug(QTestState *qts, const char *id)
{
    qtest_qmp_device_del_send(qts, id);
    /* without an operating system to agree, a reset completes the removal */
    qtest_system_reset_nowait(qts);
    qtest_qmp_eventwait(qts, "DEVICE_DELETED");
}

/* Make the guest's side of slot's removal without a reset. */
static void eject(Dut *t, const char *id, unsigned slot)
{
    qtest_qmp_device_del_send(t->qts, id);
    qtest_outl(t->qts, 0xae08, 1u << slot);
    qtest_qmp_eventwait(t->qts, "DEVICE_DELETED");
}

/* A device that takes the place of a removed one does not answer for it */
static void test_unplug_target(void)
{
    Dut *t = dut_start("", "");
    uint64_t addr = t->edu_bar.addr;
    struct ahint hint = get_hint(t, addr, PAGE);
    QPCIDevice *again;

    g_assert_cmphex(window_readl(t, hint.window), ==, EDU_ID);
    for (int i = 0; i < 5; i++) {
        eject(t, "edu", 5);
        g_assert_cmphex(window_readl(t, hint.window), ==, 0);
        qtest_qmp_device_add(t->qts, "edu", "edu", "{ 'addr': '05.0' }");
        again = qpci_device_find(t->bus, QPCI_DEVFN(5, 0));
        g_assert_nonnull(again);
        qpci_config_writel(again, PCI_BASE_ADDRESS_0, addr);
        qpci_config_writew(again, PCI_COMMAND, PCI_COMMAND_MEMORY);
        g_free(again);
        g_assert_cmphex(qtest_readl(t->qts, addr), ==, EDU_ID);
        g_assert_cmphex(window_readl(t, hint.window), ==, 0);
        g_assert_cmpuint(ahint_check(&t->driver, hint.index), ==,
                         ADDR_HINT_STALE);
        /* but it can have a hint of its own */
        ahint_put_all(&t->driver);
        hint = get_hint(t, addr, PAGE);
        g_assert_cmphex(window_readl(t, hint.window), ==, EDU_ID);
    }
    dut_end(t);
}

/* The hint device itself is removed, with hints and doorbells in use */
static void test_unplug_device(void)
{
    Dut *t = dut_start("", "");
    struct ahint hint = {};
    char *info;

    for (int i = 0; i < 5; i++) {
        get_hint(t, t->edu_bar.addr, PAGE);
        g_assert_cmpuint(ahint_get_posted(&t->driver, t->edu_bar.addr, 4, 7,
                                          &hint), ==, ADDR_HINT_OK);
        qpci_io_writel(t->pci, t->bells, hint.doorbell, 0);
        eject(t, "dut", 4);
        g_assert_cmpint(stat_value(t->qts, "vm", "addr-hint-registered"), ==,
                        -1);
        qtest_qmp_device_add(t->qts, "addr-hint-pci", "dut",
                             "{ 'addr': '04.0' }");
        g_free(t->pci);
        dut_map(t, 4);
        g_assert_cmpint(vm_stat(t, "addr-hint-registered"), ==, 0);
    }
    unplug(t->qts, "dut");
    info = qtest_hmp(t->qts, "info addr-hints");
    g_assert_null(strstr(info, "addr-hint-pci"));
    g_free(info);
    dut_end(t);
}

#define ECAM 0xb0000000
#define ECAM_64M 5              /* PCIEXBAR: 64 buses, enabled */
#define ECAM_END (ECAM + (64 << 20))
#define SLOT_OFF (PCI_EXP_SLTCTL_PCC | PCI_EXP_SLTCTL_PWR_IND_OFF)

/*
 * A root port, on any bus, with an addr-hint-pci behind it.  Returns the
 * address of the port's slot control register.
 */
static uint64_t self_map(Dut *t, int port_devfn, uint8_t bus, uint64_t bars)
{
    QPCIDevice *host = qpci_device_find(t->bus, 0);
    QPCIDevice *port = qpci_device_find(t->bus, port_devfn);
    uint8_t cap = qpci_find_capability(port, PCI_CAP_ID_EXP, 0);

    qpci_config_writel(host, 0x64, 0);              /* PCIEXBAR of q35 */
    qpci_config_writel(host, 0x60, ECAM | ECAM_64M);
    qpci_config_writeb(port, PCI_SECONDARY_BUS, bus);
    qpci_config_writeb(port, PCI_SUBORDINATE_BUS, bus);
    qpci_config_writew(port, PCI_MEMORY_BASE, bars >> 16);
    qpci_config_writew(port, PCI_MEMORY_LIMIT, bars >> 16);
    qpci_device_enable(port);
    t->bus->mmio_alloc_ptr = bars;
    dut_map(t, bus << 5);
    g_free(port);
    g_free(host);
    return ECAM + ((uint64_t)port_devfn << 12) + cap + PCI_EXP_SLTCTL;
}

static Dut *self_start(const char *devices)
{
    Dut *t = g_new0(Dut, 1);

    t->qts = qtest_initf("-machine q35 -nodefaults -global "
                         "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off "
                         "%s -device addr-hint-pci,id=dut,bus=rp,hints=16",
                         devices);
    t->bus = qpci_new_pc(t->qts, NULL);
    return t;
}

static void self_end(Dut *t)
{
    qtest_qmp_eventwait(t->qts, "DEVICE_DELETED");
    g_assert_cmpint(stat_value(t->qts, "vm", "addr-hint-registered"), ==, -1);
    dut_end(t);
}

/* A doorbell's write, or one in the window, removes the device that makes it */
static void test_unplug_self(const void *posted)
{
    Dut *t = self_start("-device pcie-root-port,id=rp,addr=04.0,chassis=1");
    uint64_t slot = self_map(t, QPCI_DEVFN(4, 0), 1, 0xe0000000);
    struct ahint hint = {};

    g_assert_cmpuint(ahint_get_posted(&t->driver, slot, 2, SLOT_OFF, &hint),
                     ==, ADDR_HINT_OK);
    if (posted) {
        qpci_io_writel(t->pci, t->bells, hint.doorbell, 1);
    } else {
        qpci_io_writew(t->pci, t->window, hint.window, SLOT_OFF);
    }
    self_end(t);
}

/*
 * An access that found the device before it was removed and reaches it
 * afterwards, as that of a vCPU which waits for the BQL can: one long write.
 * It begins at the slot control register of a port at the end of the
 * configuration space and ends in the device's registers (or doorbells) behind
 * that.
 */
static void test_unplug_late(const void *doorbells)
{
    Dut *t = self_start("-device pxb-pcie,id=pxb,bus_nr=63,addr=05.0 "
                        "-device pcie-root-port,id=rp,bus=pxb,addr=1f.7,"
                        "chassis=1");
    uint64_t slot = self_map(t, 63 << 8 | QPCI_DEVFN(31, 7), 64, ECAM_END);
    uint32_t regs[] = {
        [ADDR_HINT_REG_ADDR_LO / 4] = cpu_to_le32(ECAM),
        [ADDR_HINT_REG_LENGTH / 4] = cpu_to_le32(4),
        [ADDR_HINT_REG_FLAGS / 4] = cpu_to_le32(ADDR_HINT_FLAG_POSTED),
        [ADDR_HINT_REG_COMMAND / 4] = cpu_to_le32(ADDR_HINT_CMD_REGISTER),
    };
    size_t before = ECAM_END - slot;
    g_autofree uint8_t *data = g_malloc0(before + sizeof(regs));

    g_assert_cmpuint(slot >> 12, ==, (ECAM_END >> 12) - 1);
    if (doorbells) {
        qpci_config_writel(t->pci, PCI_BASE_ADDRESS_0, ECAM_END + PAGE);
        qpci_config_writel(t->pci, PCI_BASE_ADDRESS_1, ECAM_END);
    }
    stw_le_p(data, SLOT_OFF);
    memcpy(data + before, regs, sizeof(regs));
    qtest_memwrite(t->qts, slot, data, before + sizeof(regs));
    self_end(t);
}

static void test_reset(void)
{
    Dut *t = dut_start("", "");
    struct ahint hint = get_hint(t, t->edu_bar.addr, PAGE);

    g_assert_cmpuint(ahint_get_posted(&t->driver, t->edu_bar.addr, 4, 7,
                                      &hint), ==, ADDR_HINT_OK);
    qtest_system_reset(t->qts);
    g_assert_cmpint(vm_stat(t, "addr-hint-registered"), ==, 0);
    dut_end(t);
}

static uint32_t edu_liveness_becomes(Dut *t, uint32_t value)
{
    for (int i = 0; i < 500; i++) {
        if (qpci_io_readl(t->edu, t->edu_bar, EDU_LIVENESS) == value) {
            break;
        }
        g_usleep(10 * 1000);
    }
    return qpci_io_readl(t->edu, t->edu_bar, EDU_LIVENESS);
}

/* A doorbell makes the write that the hint stands for */
static void test_doorbell(void)
{
    Dut *t = dut_start(",doorbells=4", "");
    struct ahint hint[4];

    for (uint32_t i = 0; i < 4; i++) {
        g_assert_cmpuint(ahint_get_posted(&t->driver,
                                          t->edu_bar.addr + EDU_LIVENESS, 4,
                                          0xabc0 + i, &hint[i]), ==,
                         ADDR_HINT_OK);
        g_assert_cmpuint(hint[i].doorbell, ==, i * ADDR_HINT_DOORBELL_STEP);
    }
    for (uint32_t i = 0; i < 40; i++) {
        qpci_io_writel(t->pci, t->bells, hint[i % 4].doorbell, i);
        g_assert_cmphex(edu_liveness_becomes(t, ~(0xabc0u + i % 4)), ==,
                        ~(0xabc0u + i % 4));
    }
    g_assert_cmpint(vm_stat(t, "addr-hint-doorbell-writes"), ==, 40);
    /* nobody's doorbells, and places where none is */
    g_assert_cmpuint(ahint_put(&t->driver, hint[3].index), ==, ADDR_HINT_OK);
    qpci_io_writel(t->pci, t->bells, hint[3].doorbell, 1);
    qpci_io_writeb(t->pci, t->bells, hint[0].doorbell + 1, 1);
    qpci_io_writel(t->pci, t->bells, 4 * ADDR_HINT_DOORBELL_STEP, 1);
    qpci_io_writel(t->pci, t->bells, PAGE - 4, 1);
    g_assert_cmphex(qpci_io_readl(t->pci, t->bells, 0), ==, 0);
    wait_stat(t, "addr-hint-other-refused", 1);
    g_assert_cmpint(vm_stat(t, "addr-hint-doorbell-writes"), ==, 40);
    dut_end(t);
}

/* Rung while the VM is stopped: answered when it runs */
static void test_doorbell_stopped(void)
{
    Dut *t = dut_start("", "");
    struct ahint hint = {};

    g_assert_cmpuint(ahint_get_posted(&t->driver,
                                      t->edu_bar.addr + EDU_LIVENESS, 4,
                                      0x77, &hint), ==, ADDR_HINT_OK);
    qtest_qmp_assert_success(t->qts, "{ 'execute': 'stop' }");
    qpci_io_writel(t->pci, t->bells, hint.doorbell, 1);
    g_usleep(100 * 1000);
    g_assert_cmpint(vm_stat(t, "addr-hint-doorbell-writes"), ==, 0);
    qtest_qmp_assert_success(t->qts, "{ 'execute': 'cont' }");
    wait_stat(t, "addr-hint-doorbell-writes", 1);
    g_assert_cmphex(edu_liveness_becomes(t, ~0x77u), ==, ~0x77u);
    dut_end(t);
}

/* The write has an ioeventfd: the doorbell goes there, QEMU writes nothing */
static void test_doorbell_shared(void)
{
    Dut *t = dut_start("", "-device pci-testdev,addr=06.0");
    QPCIDevice *dev = qpci_device_find(t->bus, QPCI_DEVFN(6, 0));
    struct ahint hint = {};
    QPCIBar bar;

    qpci_device_enable(dev);
    bar = qpci_iomap(dev, 0, NULL);
    g_assert_cmpuint(ahint_get_posted(&t->driver,
                                      bar.addr +
                                      TESTDEV_OFFSET(TESTDEV_WILDCARD), 1,
                                      1, &hint), ==, ADDR_HINT_OK);
    g_assert_cmpint(vm_stat(t, "addr-hint-doorbells-shared"), ==, 0);
    for (int i = 1; i <= 10; i++) {
        qpci_io_writeb(dev, bar, 0, TESTDEV_WILDCARD);  /* its eventfd comes */
        wait_stat(t, "addr-hint-doorbells-shared", 1);
        qpci_io_writel(t->pci, t->bells, hint.doorbell, 1);
        qpci_io_writel(t->pci, t->bells, hint.doorbell, 1);
        g_assert_cmpint(vm_stat(t, "addr-hint-doorbell-writes"), ==, i - 1);
        /*
         * It goes, and nobody has read it: the write is made after all, and
         * only once.
         */
        qpci_io_writeb(dev, bar, 0, 0);
        wait_stat(t, "addr-hint-doorbells-shared", 0);
        wait_stat(t, "addr-hint-doorbell-writes", i);
    }
    /* it comes where the hint is already, and goes with the hint */
    qpci_io_writeb(dev, bar, 0, TESTDEV_WILDCARD);
    wait_stat(t, "addr-hint-doorbells-shared", 1);
    g_assert_cmpuint(ahint_put(&t->driver, hint.index), ==, ADDR_HINT_OK);
    g_assert_cmpint(vm_stat(t, "addr-hint-doorbells-shared"), ==, 0);
    /* it was there before the hint */
    g_assert_cmpuint(ahint_get_posted(&t->driver,
                                      bar.addr +
                                      TESTDEV_OFFSET(TESTDEV_WILDCARD), 1,
                                      1, &hint), ==, ADDR_HINT_OK);
    g_assert_cmpint(vm_stat(t, "addr-hint-doorbells-shared"), ==, 1);
    /* its device moves away, and back */
    qpci_config_writew(dev, PCI_COMMAND, 0);
    wait_stat(t, "addr-hint-doorbells-shared", 0);
    qpci_config_writew(dev, PCI_COMMAND, PCI_COMMAND_MEMORY);
    wait_stat(t, "addr-hint-doorbells-shared", 1);
    g_free(dev);
    dut_end(t);
}

/* An access that no vCPU makes is served only if the user says so */
static void test_dma(void)
{
    for (int allowed = 0; allowed < 2; allowed++) {
        /* under TCG, qtest's accesses are like those of a device */
        Dut *t = dut_start(allowed ? ",allow-dma=on" : "",
                           "-accel tcg -cpu qemu64 -S");
        struct ahint hint = get_hint(t, t->edu_bar.addr, PAGE);

        g_assert_cmphex(window_readl(t, hint.window), ==,
                        allowed ? EDU_ID : 0);
        g_assert_cmpint(vm_stat(t, "addr-hint-other-refused"), ==, !allowed);
        dut_end(t);
    }
}

/* Behind an IOMMU that translates, no address can have a hint */
static void test_iommu(void)
{
    enum { VTD = 0xfed90000, GCMD = 0x18, RTADDR = 0x20 };
    QTestState *qts = qtest_init("-machine q35 -nodefaults "
                                 "-device intel-iommu "
                                 "-device addr-hint-pci,addr=04.0 "
                                 "-device edu,addr=05.0");
    Dut t = { .qts = qts, .bus = qpci_new_pc(qts, NULL) };
    struct ahint hint;

    dut_map(&t, 4);
    t.edu = qpci_device_find(t.bus, QPCI_DEVFN(5, 0));
    qpci_device_enable(t.edu);
    t.edu_bar = qpci_iomap(t.edu, 0, NULL);
    hint = get_hint(&t, t.edu_bar.addr, PAGE);
    g_assert_cmphex(window_readl(&t, hint.window), ==, EDU_ID);
    /* an empty root table: it translates nothing for anybody */
    qtest_writeq(qts, VTD + RTADDR, 0x100000);
    qtest_writel(qts, VTD + GCMD, 1u << 30);
    qtest_writel(qts, VTD + GCMD, 1u << 31);
    g_assert_cmphex(window_readl(&t, hint.window), ==, 0);
    g_assert_cmphex(qpci_io_readl(t.edu, t.edu_bar, 0), ==, EDU_ID);
    expect_refusal(&t, t.edu_bar.addr, PAGE, ADDR_HINT_IOMMU);
    qtest_writel(qts, VTD + GCMD, 0);
    g_assert_cmphex(window_readl(&t, hint.window), ==, EDU_ID);
    g_free(t.edu);
    g_free(t.pci);
    qpci_free_pc(t.bus);
    qtest_quit(qts);
}

static void test_info(void)
{
    Dut *t = dut_start(",hints=100", "");
    char *info;

    for (int i = 0; i < 70; i++) {
        get_hint(t, t->edu_bar.addr, PAGE);
    }
    info = qtest_hmp(t->qts, "info addr-hints");
    g_assert_nonnull(strstr(info, "addr-hint-pci 'dut': 70 of 100 hints"));
    g_assert_nonnull(strstr(info, "hint 63:"));
    g_assert_nonnull(strstr(info, "edu-mmio"));
    g_assert_null(strstr(info, "hint 64:"));
    g_assert_nonnull(strstr(info, "and 6 more"));
    g_assert_nonnull(strstr(info, "CPU #0: window hits 0"));
    g_free(info);
    qpci_config_writew(t->edu, PCI_COMMAND, 0);
    info = qtest_hmp(t->qts, "info addr-hints");
    g_assert_nonnull(strstr(info, "stale"));
    g_free(info);
    dut_end(t);
}

/* Limits are said with the property, the value and the limit */
static void test_properties(void)
{
    static const struct {
        const char *device, *error;
    } bad[] = {
        { "'hints': 0", "property 'hints' is 0, it must be 1 to 16384" },
        { "'hints': 16385", "property 'hints' is 16385" },
        { "'doorbells': 257", "property 'doorbells' is 257" },
        { "'doorbells': 100", "other devices of this VM have 452" },
    };
    QTestState *qts = qtest_init("-machine pc -nodefaults "
                                 "-device addr-hint-pci,doorbells=256 "
                                 "-device addr-hint-pci,doorbells=196");

    for (int i = 0; i < ARRAY_SIZE(bad); i++) {
        g_autofree char *command = g_strdup_printf(
            "{ 'execute': 'device_add', 'arguments': { 'id': 'x', "
            "'driver': 'addr-hint-pci', %s } }", bad[i].device);
        QDict *response = qtest_qmp(qts, command, NULL);
        const char *desc = qdict_get_str(qdict_get_qdict(response, "error"),
                                         "desc");

        g_test_message("%s", desc);
        g_assert_nonnull(strstr(desc, bad[i].error));
        qobject_unref(response);
    }
    qtest_qmp_device_add(qts, "addr-hint-pci", "x",
                         "{ 'hints': 16384, 'doorbells': 60 }");
    qtest_quit(qts);
}

/*
 * Migration, by way of a file
 */

#define NIC_VET 0x38            /* e1000: reads as it was written */
#define POSTED_DATA 0xfeedfacecafe1234
#define MIGRATED "-device e1000,romfile=,addr=06.0 " \
                 "-device e1000,romfile=,addr=07.0 " \
                 "-device pci-testdev,addr=08.0 "

/* Offsets in a hint's record in the stream, from its data */
enum {
    RECORD_COUNT = -24,         /* before the first record */
    RECORD_INDEX = -20,
    RECORD_ADDR = -16,
    RECORD_LENGTH = -8,
    RECORD_FLAGS = -4,
    RECORD_DATA = 0,
    RECORD_DOORBELL = 8,
    RECORD_SIZE = 34,
};

/* Wait for the end of a migration; return why it failed, NULL if it did not. */
static char *migration_error(QTestState *qts)
{
    for (int i = 0; i < 3000; i++) {
        QDict *response = qtest_qmp(qts, "{ 'execute': 'query-migrate' }");
        QDict *info = qdict_get_qdict(response, "return");
        const char *status = qdict_get_try_str(info, "status") ?: "";
        bool failed = g_str_equal(status, "failed");
        char *error = failed ? g_strdup(qdict_get_try_str(info, "error-desc")
                                        ?: "") : NULL;

        failed |= g_str_equal(status, "completed");
        qobject_unref(response);
        if (failed) {
            return error;
        }
        g_usleep(10 * 1000);
    }
    g_assert_not_reached();
}

/* Return the name of a file with the state of the VM, which stops. */
static char *migrate_out(Dut *t)
{
    char *name;
    int fd = g_file_open_tmp("addr-hint-XXXXXX", &name, NULL);
    g_autofree char *uri = NULL;

    g_assert_cmpint(fd, >=, 0);
    close(fd);
    uri = g_strdup_printf("file:%s", name);
    qtest_qmp_assert_success(t->qts, "{ 'execute': 'migrate', "
                             "'arguments': { 'uri': %s } }", uri);
    g_assert_null(migration_error(t->qts));
    return name;
}

/* Return a VM that took in what is in the file, or why it could not. */
static Dut *migrate_in(const Dut *from, const char *options, const char *name,
                       char **error)
{
    g_autofree char *uri = g_strdup_printf("file:%s", name);
    Dut *t = g_memdup2(from, sizeof(*from));

    t->qts = qtest_initf("-machine pc -nodefaults "
                         "-device addr-hint-pci,id=dut,addr=04.0%s "
                         "-device edu,id=edu,addr=05.0 " MIGRATED
                         "-incoming defer", options);
    qtest_qmp_assert_success(t->qts, "{ 'execute': 'migrate-incoming', "
                             "'arguments': { 'uri': %s, "
                             "'exit-on-error': false } }", uri);
    *error = migration_error(t->qts);
    t->bus = qpci_new_pc(t->qts, NULL);
    t->pci = qpci_device_find(t->bus, QPCI_DEVFN(4, 0));
    t->driver.opaque = t;
    t->edu = NULL;              /* it has no state that could migrate */
    return t;
}

static uint64_t nic_start(Dut *t, unsigned slot)
{
    QPCIDevice *nic = qpci_device_find(t->bus, QPCI_DEVFN(slot, 0));
    uint64_t addr;

    qpci_device_enable(nic);
    addr = qpci_iomap(nic, 0, NULL).addr;
    g_free(nic);
    return addr;
}

static void nic_decode(Dut *t, unsigned slot, bool on)
{
    QPCIDevice *nic = qpci_device_find(t->bus, QPCI_DEVFN(slot, 0));

    qpci_config_writew(nic, PCI_COMMAND, on ? PCI_COMMAND_MEMORY : 0);
    g_free(nic);
}

static Dut *dut_migrate(Dut *from)
{
    g_autofree char *name = migrate_out(from);
    g_autofree char *error = NULL;
    Dut *t = migrate_in(from, "", name, &error);

    g_assert_cmpstr(error, ==, NULL);
    unlink(name);
    dut_end(from);
    return t;
}

/*
 * Hints and doorbells are what they were, what was rung is answered, and what
 * was stale stays so.  The second of the two ways has the VM migrate again
 * before it has run.
 */
static void test_migrate(const void *twice)
{
    Dut *t = dut_start("", MIGRATED);
    uint64_t nic = nic_start(t, 6), other = nic_start(t, 7);
    struct ahint hint[3], stale, posted = {};

    for (int i = 0; i < 3; i++) {
        hint[i] = get_hint(t, nic, PAGE);
    }
    g_assert_cmpuint(ahint_put(&t->driver, hint[0].index), ==, ADDR_HINT_OK);
    stale = get_hint(t, other + PAGE, PAGE);
    g_assert_cmpuint(stale.index, ==, hint[0].index);
    g_assert_cmpuint(ahint_get_posted(&t->driver, nic + NIC_VET, 4, 0x4321,
                                      &posted), ==, ADDR_HINT_OK);
    window_writel(t, hint[1].window + NIC_VET, 0x1234);
    nic_decode(t, 7, false);
    qtest_qmp_assert_success(t->qts, "{ 'execute': 'stop' }");
    qpci_io_writel(t->pci, t->bells, posted.doorbell, 1);

    t = dut_migrate(t);
    if (twice) {
        t = dut_migrate(t);
    }
    nic_decode(t, 7, true);
    g_assert_cmpint(vm_stat(t, "addr-hint-registered"), ==, 4);
    g_assert_cmphex(qtest_readl(t->qts, nic + NIC_VET), ==, 0x1234);
    g_assert_cmpint(vm_stat(t, "addr-hint-doorbell-writes"), ==, 0);
    qtest_qmp_assert_success(t->qts, "{ 'execute': 'cont' }");
    wait_stat(t, "addr-hint-doorbell-writes", 1);
    g_assert_cmphex(window_readl(t, hint[1].window + NIC_VET), ==, 0x4321);
    window_writel(t, hint[2].window + NIC_VET, 0x8765);
    g_assert_cmphex(qtest_readl(t->qts, nic + NIC_VET), ==, 0x8765);
    qpci_io_writel(t->pci, t->bells, posted.doorbell, 1);
    wait_stat(t, "addr-hint-doorbell-writes", 2);
    g_assert_cmphex(window_readl(t, hint[1].window + NIC_VET), ==, 0x4321);
    g_assert_cmphex(window_readl(t, stale.window), ==, 0);
    g_assert_cmpuint(ahint_check(&t->driver, stale.index), ==,
                     ADDR_HINT_STALE);
    g_assert_cmpuint(ahint_check(&t->driver, posted.index), ==, ADDR_HINT_OK);
    g_assert_cmphex(driver_read(t, ADDR_HINT_REG_DATA_LO), ==, 0x4321);
    g_assert_cmpuint(driver_read(t, ADDR_HINT_REG_DOORBELL) *
                     ADDR_HINT_DOORBELL_STEP, ==, posted.doorbell);
    /* the free places are known */
    g_assert_cmpuint(get_hint(t, nic, PAGE).index, ==, 4);
    g_assert_cmpuint(ahint_put(&t->driver, stale.index), ==, ADDR_HINT_OK);
    g_assert_cmpuint(get_hint(t, other, PAGE).index, ==, stale.index);
    dut_end(t);
}

/* Rung by way of an eventfd that nobody has read: the ring is not lost */
static void test_migrate_shared(void)
{
    Dut *t = dut_start("", MIGRATED);
    QPCIDevice *dev = qpci_device_find(t->bus, QPCI_DEVFN(8, 0));
    struct ahint hint = {};
    QPCIBar bar;

    qpci_device_enable(dev);
    bar = qpci_iomap(dev, 0, NULL);
    qpci_io_writeb(dev, bar, 0, TESTDEV_WILDCARD);
    g_assert_cmpuint(ahint_get_posted(&t->driver,
                                      bar.addr +
                                      TESTDEV_OFFSET(TESTDEV_WILDCARD), 1,
                                      1, &hint), ==, ADDR_HINT_OK);
    wait_stat(t, "addr-hint-doorbells-shared", 1);
    qpci_io_writel(t->pci, t->bells, hint.doorbell, 1);
    qtest_qmp_assert_success(t->qts, "{ 'execute': 'stop' }");
    g_free(dev);
    t = dut_migrate(t);
    qtest_qmp_assert_success(t->qts, "{ 'execute': 'cont' }");
    wait_stat(t, "addr-hint-doorbell-writes", 1);
    dut_end(t);
}

/* Either side may have the transparent half or not; and back again */
static void test_migrate_dispatch_hints(void)
{
    static const char *const sides[] = { "on", "off", "on" };
    Dut *t = dut_start("", MIGRATED " -machine dispatch-hints=on"), *to;
    uint64_t nic = nic_start(t, 6);
    struct ahint hint = get_hint(t, nic, PAGE);

    for (int i = 1; i < ARRAY_SIZE(sides); i++) {
        g_autofree char *name = migrate_out(t);
        g_autofree char *options = g_strdup_printf(
            " -machine dispatch-hints=%s", sides[i]);
        g_autofree char *error = NULL;

        to = migrate_in(t, options, name, &error);
        g_assert_cmpstr(error, ==, NULL);
        unlink(name);
        dut_end(t);
        t = to;
        qtest_qmp_assert_success(t->qts, "{ 'execute': 'cont' }");
        window_writel(t, hint.window + NIC_VET, 0x4000 + i);
        g_assert_cmphex(qtest_readl(t->qts, nic + NIC_VET), ==, 0x4000 + i);
        g_assert_cmpint(vm_stat(t, "addr-hint-registered"), ==, 1);
    }
    dut_end(t);
}

/* A destination without the device takes nothing in */
static void test_migrate_absent(void)
{
    Dut *t = dut_start("", MIGRATED);
    g_autofree char *name = NULL;
    g_autofree char *error = NULL;
    g_autofree char *uri = NULL;
    QTestState *to;

    get_hint(t, nic_start(t, 6), PAGE);
    name = migrate_out(t);
    uri = g_strdup_printf("file:%s", name);
    to = qtest_init("-machine pc -nodefaults -device edu,id=edu,addr=05.0 "
                    MIGRATED "-incoming defer");
    qtest_qmp_assert_success(to, "{ 'execute': 'migrate-incoming', "
                             "'arguments': { 'uri': %s, "
                             "'exit-on-error': false } }", uri);
    error = migration_error(to);
    g_assert_nonnull(error);
    g_test_message("%s", error);
    g_assert_nonnull(strstr(error, "addr-hint-pci"));
    unlink(name);
    qtest_quit(to);
    /* nothing is lost: the source goes on */
    qtest_qmp_assert_success(t->qts, "{ 'execute': 'cont' }");
    g_assert_cmpint(vm_stat(t, "addr-hint-registered"), ==, 1);
    dut_end(t);
}

/* A stream that says what no device can have saved */
static void test_migrate_hostile(void)
{
    static const struct {
        const char *what;
        int offset;             /* from the data of the first hint */
        uint32_t value;
        bool ours;              /* the device says it, not the core */
    } bad[] = {
        { "count", RECORD_COUNT, 1025 },
        { "count of all", RECORD_COUNT, UINT32_MAX },
        { "index", RECORD_INDEX, 1024, true },
        { "index of another", RECORD_INDEX, 1, true },
        { "negative index", RECORD_INDEX, UINT32_MAX, true },
        { "address not aligned", RECORD_ADDR + 4, 1, true },
        { "length 0", RECORD_LENGTH, 0, true },
        { "length too small for the data", RECORD_LENGTH, 4, true },
        { "length 16", RECORD_LENGTH, 16, true },
        { "length of all", RECORD_LENGTH, UINT32_MAX, true },
        { "flags", RECORD_FLAGS, 3, true },
        { "not posted, with a doorbell", RECORD_FLAGS, 0, true },
        { "doorbell", RECORD_DOORBELL, 32, true },
        { "doorbell of another", RECORD_DOORBELL, 1, true },
        { "no doorbell", RECORD_DOORBELL, UINT32_MAX, true },
        { "range that leaves its page",
          2 * RECORD_SIZE + RECORD_LENGTH, PAGE + 1, true },
        { "huge range", 2 * RECORD_SIZE + RECORD_LENGTH, UINT32_MAX, true },
    };
    Dut *t = dut_start("", MIGRATED), *to;
    uint64_t nic = nic_start(t, 6);
    g_autofree char *name = NULL;
    g_autofree char *good = NULL;
    g_autofree char *error = NULL;
    char pattern[8], *record;
    struct ahint hint;
    gsize size;

    for (int i = 0; i < 2; i++) {
        g_assert_cmpuint(ahint_get_posted(&t->driver, nic + 8 * i, 8,
                                          POSTED_DATA + i, &hint), ==,
                         ADDR_HINT_OK);
    }
    get_hint(t, nic, PAGE);
    name = migrate_out(t);
    g_assert_true(g_file_get_contents(name, &good, &size, NULL));
    stq_be_p(pattern, POSTED_DATA);
    record = memmem(good, size, pattern, sizeof(pattern));
    g_assert_nonnull(record);
    g_assert_cmpuint(ldl_be_p(record + RECORD_COUNT), ==, 3);
    g_assert_cmphex(ldq_be_p(record + RECORD_SIZE), ==, POSTED_DATA + 1);

    for (int i = 0; i < ARRAY_SIZE(bad); i++) {
        char *place = record + bad[i].offset;
        uint32_t was = ldl_be_p(place);
        g_autofree char *why = NULL;

        stl_be_p(place, bad[i].value);
        g_assert_true(g_file_set_contents(name, good, size, NULL));
        stl_be_p(place, was);
        to = migrate_in(t, "", name, &why);
        g_test_message("%s: %s", bad[i].what, why);
        g_assert_nonnull(why);
        g_assert_cmpint(!!strstr(why, "addr-hint-pci: hint"), ==, bad[i].ours);
        g_assert_cmpint(vm_stat(to, "addr-hint-registered"), ==, 0);
        dut_end(to);
    }
    /* another table; and, as a control, the stream as it was */
    g_assert_true(g_file_set_contents(name, good, size, NULL));
    to = migrate_in(t, ",hints=1000", name, &error);
    g_assert_nonnull(error);
    g_clear_pointer(&error, g_free);
    dut_end(to);
    to = migrate_in(t, "", name, &error);
    g_assert_cmpstr(error, ==, NULL);
    g_assert_cmpint(vm_stat(to, "addr-hint-registered"), ==, 3);
    dut_end(to);
    unlink(name);
    dut_end(t);
}

static void test_none(void)
{
    g_test_skip("machine pc, addr-hint-pci or edu is not built in");
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    if (!qtest_has_machine("pc") || !qtest_has_device("addr-hint-pci") ||
        !qtest_has_device("edu")) {
        qtest_add_func("/addr-hint-pci/none", test_none);
        return g_test_run();
    }
    qtest_add_func("/addr-hint-pci/registers", test_registers);
    qtest_add_func("/addr-hint-pci/access", test_access);
    qtest_add_func("/addr-hint-pci/refusals", test_refusals);
    qtest_add_func("/addr-hint-pci/forged", test_forged);
    qtest_add_func("/addr-hint-pci/stale", test_stale);
    qtest_add_func("/addr-hint-pci/unplug-target", test_unplug_target);
    qtest_add_func("/addr-hint-pci/unplug-device", test_unplug_device);
    if (qtest_has_machine("q35") && qtest_has_device("pcie-root-port")) {
        qtest_add_data_func("/addr-hint-pci/unplug-self", NULL,
                            test_unplug_self);
        qtest_add_data_func("/addr-hint-pci/unplug-self-posted", "posted",
                            test_unplug_self);
        if (qtest_has_device("pxb-pcie")) {
            qtest_add_data_func("/addr-hint-pci/unplug-late", NULL,
                                test_unplug_late);
            qtest_add_data_func("/addr-hint-pci/unplug-late-doorbell",
                                "doorbells", test_unplug_late);
        }
    }
    qtest_add_func("/addr-hint-pci/reset", test_reset);
    qtest_add_func("/addr-hint-pci/doorbell", test_doorbell);
    qtest_add_func("/addr-hint-pci/doorbell-stopped", test_doorbell_stopped);
    if (qtest_has_device("pci-testdev")) {
        qtest_add_func("/addr-hint-pci/doorbell-shared",
                       test_doorbell_shared);
    }
    if (qtest_has_accel("tcg")) {
        qtest_add_func("/addr-hint-pci/dma", test_dma);
    }
    if (qtest_has_device("intel-iommu") && qtest_has_machine("q35")) {
        qtest_add_func("/addr-hint-pci/iommu", test_iommu);
    }
    if (qtest_has_device("e1000") && qtest_has_device("pci-testdev")) {
        qtest_add_data_func("/addr-hint-pci/migrate", NULL, test_migrate);
        qtest_add_data_func("/addr-hint-pci/migrate-twice", "twice",
                            test_migrate);
        qtest_add_func("/addr-hint-pci/migrate-shared", test_migrate_shared);
        qtest_add_func("/addr-hint-pci/migrate-dispatch-hints",
                       test_migrate_dispatch_hints);
        qtest_add_func("/addr-hint-pci/migrate-absent", test_migrate_absent);
        qtest_add_func("/addr-hint-pci/migrate-hostile",
                       test_migrate_hostile);
    }
    qtest_add_func("/addr-hint-pci/info", test_info);
    qtest_add_func("/addr-hint-pci/properties", test_properties);
    return g_test_run();
}

/*
 * QTest: what an assigned device writes during a migration arrives
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The devices are fakes (vfio-fake.c); QEMU's hw/vfio is not.
 */

#include "qemu/osdep.h"
#include <glib/gstdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include "libqtest.h"
#include "hw/pci/pci_regs.h"
#include "libqos/malloc-pc.h"
#include "libqos/pci-pc.h"
#include "libqos/virtio-pci.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"
#include "standard-headers/linux/virtio_config.h"
#include "vfio-tracking-util.h"

#define VIRTIO_NET_F_STANDBY    62
#define ACPI_PCIHP_ADDR_ICH9    0x0cc0
#define PCI_UP_BASE             0x0000
#define PCI_EJ_BASE             0x0008

/* What a guest writes to its slot's control register */
#define SLOT_ON                 PCI_EXP_SLTCTL_PWR_IND_ON
#define SLOT_BUSY               PCI_EXP_SLTCTL_PWR_IND_BLINK
#define SLOT_OFF                (PCI_EXP_SLTCTL_PWR_IND_OFF | \
                                 PCI_EXP_SLTCTL_PWR_OFF)
#define SLOT_EVENTS             (PCI_EXP_SLTSTA_ABP | PCI_EXP_SLTSTA_PDC)

static char *dir;               /* "devices" and the migration's file */
static char *stream;

/* The device of that name, as a vfio-pci argument; the group is the number. */
static char *device(const char *name, int group)
{
    g_autofree char *path = g_strdup_printf("%s/%s", dir, name);
    g_autofree char *link = g_strdup_printf("%s/iommu_group", path);
    g_autofree char *target = g_strdup_printf("/fake/iommu_groups/%d", group);

    g_assert(!g_mkdir_with_parents(path, 0700));
    g_unlink(link);
    g_assert(!symlink(target, link));
    return g_strdup_printf("-device vfio-pci,sysfsdev=%s", path);
}

/* Only QEMU, and only here, sees the fake. */
static void fake_vfio(const char *options)
{
    g_autofree char *self = g_file_read_link("/proc/self/exe", NULL);
    g_autofree char *bin = g_path_get_dirname(self);
    g_autofree char *lib = g_strdup_printf("%s/libvfio-fake.so", bin);
    g_autofree char *asan = NULL;
    const char *asan_options = g_getenv("ASAN_OPTIONS");

    g_assert(g_file_test(lib, G_FILE_TEST_EXISTS));
    g_setenv("LD_PRELOAD", lib, true);
    g_setenv("VFIO_FAKE", options, true);
    /* the sanitizer's library does not come first then */
    asan = g_strdup_printf("%s:verify_asan_link_order=0",
                           asan_options ? asan_options : "");
    g_setenv("ASAN_OPTIONS", asan, true);
}

static void real_vfio(void)
{
    g_unsetenv("LD_PRELOAD");
}

static void migrate_and_compare(TrackedVM *src, const char *args)
{
    g_autofree char *incoming = g_strdup_printf("%s -incoming file:%s -S",
                                                args, stream);
    TrackedVM dst;
    unsigned missed;

    tracked_vm_scribble(src, TESTDEV_CMD_DMA, 50);
    tracked_vm_wait_first_pass(src);
    tracked_vm_scribble(src, TESTDEV_CMD_DMA, 50);
    tracked_vm_wait_switchover(src);
    tracked_vm_scribble(src, TESTDEV_CMD_DMA, 50);
    tracked_vm_finish(src);

    tracked_vm_start(&dst, 0, incoming);
    tracked_vm_wait(&dst, "completed");
    missed = tracked_vm_differences(src, &dst, dir);
    g_test_message("pages missed: %u", missed);
    g_assert_cmpint(missed, ==, 0);
    tracked_vm_stop(&dst);
}

/* One device that can be migrated, with this and that kind of tracking. */
static void test_alone(const char *name, const char *options)
{
    g_autofree char *dev = device(name, 1);
    g_autofree char *args = g_strdup_printf("%s,addr=6.0,enable-migration=on",
                                            dev);
    TrackedVM src;

    fake_vfio(options);
    tracked_vm_start(&src, QPCI_DEVFN(6, 0), args);
    tracked_vm_fill(&src);
    tracked_vm_migrate(&src, stream);
    migrate_and_compare(&src, args);
    tracked_vm_stop(&src);
    real_vfio();
}

static void test_type1(void)
{
    test_alone("dma0", "");
}

static void test_device_log(void)
{
    test_alone("log0", "");
}

/*
 * Neither the device nor the IOMMU tracks, and the user says to migrate
 * nevertheless: all memory counts as dirty each time.
 */
static void test_nothing(void)
{
    test_alone("dma0", "no-cap");
}

/* The guest's driver says that it can do failover; the primary appears. */
static QVirtioPCIDevice *negotiate_standby(TrackedVM *vm)
{
    QPCIAddress addr = { .devfn = QPCI_DEVFN((1 << 5) + 0, 0) };
    QVirtioPCIDevice *net;

    g_assert_cmpint(qpci_secondary_buses_init(vm->bus), ==, 2);
    for (int bus = 1; bus <= 2; bus++) {
        QPCIDevice *port = qpci_device_find(vm->bus, QPCI_DEVFN(bus, 0));

        qpci_device_enable(port);
        /* for a bridge this is its memory window */
        qpci_iomap(port, 4, NULL);
        g_free(port);
    }
    net = virtio_pci_new(vm->bus, &addr);
    g_assert_nonnull(net);
    qvirtio_pci_device_enable(net);
    qvirtio_start_device(&net->vdev);
    qvirtio_set_features(&net->vdev,
                         qvirtio_get_features(&net->vdev) &
                         (1ull << VIRTIO_NET_F_STANDBY |
                          1ull << VIRTIO_F_VERSION_1));
    qvirtio_set_driver_ok(&net->vdev);
    qtest_qmp_eventwait(vm->qts, "FAILOVER_NEGOTIATED");
    return net;
}

/*
 * A failover primary, which has no migration state, shares the container of a
 * device that has.  It stays attached after the guest let go of it.
 */
static void test_beside_primary(void)
{
    g_autofree char *dev = device("dma0", 1);
    g_autofree char *nic = device("nic0", 2);
    g_autofree char *base = g_strdup_printf(
        "-device pcie-root-port,id=root0,addr=1.0,chassis=1 "
        "-device pcie-root-port,id=root1,addr=2.0,chassis=2 "
        "-device virtio-net,bus=root0,id=standby0,failover=on,romfile= "
        "%s,addr=6.0,enable-migration=on", dev);
    g_autofree char *args = g_strdup_printf(
        "%s %s,id=primary0,bus=root1,failover_pair_id=standby0", base, nic);
    QVirtioPCIDevice *net;
    TrackedVM src;

    fake_vfio("");
    tracked_vm_start(&src, QPCI_DEVFN(6, 0), args);
    net = negotiate_standby(&src);
    tracked_vm_fill(&src);
    tracked_vm_migrate(&src, stream);
    qtest_qmp_eventwait(src.qts, "UNPLUG_PRIMARY");
    tracked_vm_wait(&src, "wait-unplug");
    qtest_outl(src.qts, ACPI_PCIHP_ADDR_ICH9 + PCI_EJ_BASE, 1);
    migrate_and_compare(&src, base);
    qos_object_destroy((QOSGraphObject *)net);
    tracked_vm_stop(&src);
    real_vfio();
}

/* ------------------------------------------------------------------- walker */

#define RING            64              /* entries */
#define RING_ADDR       (VM_DMA_START + 0x10000)
/* nobody else's, and sent long before the first pass is over */
#define PORT_BUFFERS    (VM_DMA_START + 0x80000)

typedef struct Driver {
    TrackedVM *vm;
    uint32_t tail;
} Driver;

static void write_reg(TrackedVM *vm, uint32_t reg, uint32_t val)
{
    qpci_io_writel(vm->dev, vm->bar, reg, val);
}

/* Post @count buffers at random places; they may cross pages. */
static void driver_post(Driver *d, unsigned count)
{
    for (; count; count--) {
        uint64_t addr = VM_DMA_START + 0x100000 +
                        2 * tracked_random((VM_DMA_END - VM_DMA_START -
                                            0x200000) / 2);

        qtest_writeq(d->vm->qts, RING_ADDR + 16 * d->tail, addr);
        qtest_writeq(d->vm->qts, RING_ADDR + 16 * d->tail + 8, 0);
        d->tail = (d->tail + 1) % RING;
    }
    write_reg(d->vm, TESTDEV_RDT, d->tail);
}

/* The ring anew; @first, if not 0, is the address of its first buffer. */
static void driver_start_at(Driver *d, TrackedVM *vm, uint64_t first)
{
    *d = (Driver) { .vm = vm };
    write_reg(vm, TESTDEV_RDBAL, RING_ADDR);
    write_reg(vm, TESTDEV_RDBAH, 0);
    write_reg(vm, TESTDEV_RDLEN, RING * 16);
    write_reg(vm, TESTDEV_SRRCTL, TESTDEV_PACKET / 1024 | 1 << 25);
    write_reg(vm, TESTDEV_RDH, 0);
    write_reg(vm, TESTDEV_RDT, 0);
    if (first) {
        qtest_writeq(vm->qts, RING_ADDR, first);
        qtest_writeq(vm->qts, RING_ADDR + 8, 0);
        d->tail = 1;
    }
    driver_post(d, RING - 1 - d->tail);
}

static void driver_start(Driver *d, TrackedVM *vm)
{
    driver_start_at(d, vm, 0);
}

/* The ring wraps: packets come in, and as many buffers are posted again. */
static void driver_traffic(Driver *d, unsigned rounds)
{
    while (rounds--) {
        unsigned count = 1 + tracked_random(RING - 1);

        g_assert_cmpint(tracked_vm_command(d->vm, TESTDEV_CMD_RECEIVE, 0,
                                           count, tracked_random(256)), ==, 0);
        driver_post(d, count);
    }
}

static QDict *tracking_info(TrackedVM *vm)
{
    QDict *rsp = qtest_qmp(vm->qts, "{ 'execute': 'query-write-tracking' }");
    QList *list = qdict_get_qlist(rsp, "return");
    QDict *info;

    g_assert_cmpint(qlist_size(list), ==, 1);
    info = qobject_to(QDict, qlist_pop(list));
    qobject_unref(rsp);
    return info;
}

/* The traps go just after the migration has got the status "completed". */
static QDict *tracking_info_ended(TrackedVM *vm)
{
    for (int i = 0; i < 500; i++) {
        QDict *info = tracking_info(vm);

        if (!qdict_get_bool(info, "active")) {
            return info;
        }
        qobject_unref(info);
        g_usleep(10 * 1000);
    }
    g_error("tracking has not ended");
}

static void test_walker(gconstpointer mode)
{
    g_autofree char *dev = device("igb0", 1);
    g_autofree char *args = g_strdup_printf("%s,addr=6.0,write-tracking=%s",
                                            dev, (char *)mode);
    g_autofree char *incoming = g_strdup_printf("%s -incoming file:%s -S",
                                                args, stream);
    g_autofree char *hmp = NULL;
    TrackedVM src, dst;
    Driver driver;
    QDict *info, *round;
    unsigned missed;

    fake_vfio("");
    tracked_vm_start(&src, QPCI_DEVFN(6, 0), args);
    driver_start(&driver, &src);
    tracked_vm_fill(&src);
    driver_start(&driver, &src);
    driver_traffic(&driver, 10);
    info = tracking_info(&src);
    g_assert_cmpstr(qdict_get_str(info, "source"), ==, "walker");
    g_assert_false(qdict_get_bool(info, "active"));
    g_assert_false(qdict_haskey(info, "last-round"));
    g_assert_cmpint(qdict_get_int(info, "traps"), ==, 0);
    qobject_unref(info);

    tracked_vm_migrate(&src, stream);
    driver_traffic(&driver, 20);
    tracked_vm_wait_first_pass(&src);
    driver_traffic(&driver, 20);
    tracked_vm_wait_switchover(&src);
    g_assert_cmpint(tracked_vm_command(&src, TESTDEV_CMD_RECEIVE, 0, RING,
                                       0x77), ==, 0);
    info = tracking_info(&src);
    g_assert_true(qdict_get_bool(info, "active"));
    g_assert_cmpint(qdict_get_int(info, "armed"), ==, RING);
    qobject_unref(info);
    hmp = qtest_hmp(src.qts, "info write-tracking");
    g_assert_nonnull(strstr(hmp, "source walker, active, armed 64"));
    g_assert_nonnull(strstr(hmp, "last round: marked pages "));
    tracked_vm_finish(&src);

    info = tracking_info_ended(&src);
    g_test_message("syncs %" PRId64 " pages %" PRId64 " traps %" PRId64
                   " time %" PRId64 " ns", qdict_get_int(info, "syncs"),
                   qdict_get_int(info, "marked-pages"),
                   qdict_get_int(info, "traps"),
                   qdict_get_int(info, "time-ns"));
    g_assert_cmpint(qdict_get_int(info, "syncs"), >=, 2);
    g_assert_cmpint(qdict_get_int(info, "traps"), >=, 40);
    g_assert_cmpint(qdict_get_int(info, "marked-all"), ==, 0);
    g_assert_cmpint(qdict_get_int(info, "armed"), ==, 0);
    /* the last packets, what is still in the ring, and what was posted */
    round = qdict_get_qdict(info, "last-round");
    g_assert_cmpint(qdict_get_int(round, "marked-pages"), >, 0);
    g_assert_cmpint(qdict_get_int(round, "marked-pages"), <=,
                    qdict_get_int(info, "marked-pages"));
    g_assert_cmpint(qdict_get_int(round, "marked-all"), ==, 0);
    /* two pages a buffer when it is posted, and the ring at each sync */
    g_assert_cmpint(qdict_get_int(info, "marked-pages"), <,
                    2 * 42 * RING +
                    (qdict_get_int(info, "syncs") + 1) * (2 * RING + 1));
    g_assert_false(qdict_get_bool(info, "active"));
    qobject_unref(info);

    tracked_vm_start(&dst, 0, incoming);
    tracked_vm_wait(&dst, "completed");
    missed = tracked_vm_differences(&src, &dst, dir);
    g_test_message("pages missed: %u", missed);
    g_assert_cmpint(missed, ==, 0);
    tracked_vm_stop(&dst);
    tracked_vm_stop(&src);
    real_vfio();
}

static void set_pam(TrackedVM *vm, uint8_t val)
{
    QPCIDevice *mch = qpci_device_find(vm->bus, QPCI_DEVFN(0, 0));

    qpci_config_writeb(mch, 0x93, val);     /* 0xd0000 to 0xd7fff */
    g_free(mch);
}

/* A ring at 0xd0000, memory that comes and goes by a PAM register */
typedef struct RegionTest {
    char *args;
    TrackedVM src, dst;
    Driver driver;
} RegionTest;

/* Up to where no sync follows but the last. */
static void region_start(RegionTest *t, uint8_t pam)
{
    g_autofree char *dev = device("igb0", 1);

    t->args = g_strdup_printf("%s,addr=6.0,write-tracking=igb", dev);
    fake_vfio("");
    tracked_vm_start(&t->src, QPCI_DEVFN(6, 0), t->args);
    set_pam(&t->src, pam);
    tracked_vm_fill(&t->src);
    driver_start(&t->driver, &t->src);
    tracked_vm_migrate(&t->src, stream);
    tracked_vm_wait_first_pass(&t->src);
    tracked_vm_wait_switchover(&t->src);
}

/* The ring's first buffer is there from now on, and no sync has seen it. */
static void region_receive(RegionTest *t)
{
    driver_start_at(&t->driver, &t->src, 0xd0000);
    g_assert_cmpint(tracked_vm_command(&t->src, TESTDEV_CMD_RECEIVE, 0, 1,
                                       0x42), ==, 0);
    g_assert_cmphex(qtest_readb(t->src.qts, 0xd0000), ==, 0x42);
}

/* Returns: how often all memory was marked */
static int64_t region_arrive(RegionTest *t)
{
    g_autofree char *incoming = g_strdup_printf("%s -incoming file:%s -S",
                                                t->args, stream);
    int64_t marked_all;
    QDict *info;

    tracked_vm_finish(&t->src);
    info = tracking_info(&t->src);
    marked_all = qdict_get_int(info, "marked-all");
    qobject_unref(info);
    tracked_vm_start(&t->dst, 0, incoming);
    tracked_vm_wait(&t->dst, "completed");
    return marked_all;
}

static void region_end(RegionTest *t)
{
    g_assert_cmphex(qtest_readb(t->dst.qts, 0xd0000), ==, 0x42);
    tracked_vm_stop(&t->dst);
    tracked_vm_stop(&t->src);
    g_free(t->args);
    real_vfio();
}

/*
 * A buffer is written, and its memory unmapped before anyone looks; the ring
 * then finds something else at its address.
 */
static void test_walker_region(void)
{
    RegionTest t;

    region_start(&t, 0x33);
    region_receive(&t);
    set_pam(&t.src, 0);
    g_assert_cmpint(region_arrive(&t), ==, 0);
    set_pam(&t.dst, 0x33);
    region_end(&t);
}

/*
 * All memory was marked, and is not marked again before the next sync; then
 * there is more of it, and the walker loses its way once more.
 */
static void test_walker_region_all(void)
{
    RegionTest t;

    region_start(&t, 0);
    /* no sync from here to the end; the tail is outside of the ring */
    write_reg(&t.src, TESTDEV_RDT, RING);
    set_pam(&t.src, 0x33);
    region_receive(&t);
    /* the write-back has destroyed the buffer's address */
    write_reg(&t.src, TESTDEV_RDT, RING);
    g_assert_cmpint(region_arrive(&t), >=, 2);
    g_assert_cmpint(tracked_vm_differences(&t.src, &t.dst, dir), ==, 0);
    region_end(&t);
}

/* ----------------------------------------- registers that cannot be read */

static void set_command(TrackedVM *vm, uint16_t val)
{
    qpci_config_writew(vm->dev, PCI_COMMAND, val);
}

/* What the device receives, with and without memory decode. */
static void config_receive(TrackedVM *vm, unsigned count)
{
    qpci_config_writel(vm->dev, TESTDEV_CFG_RECEIVE, count);
}

typedef struct HiddenTest {
    char *args;
    TrackedVM src;
    Driver driver;
} HiddenTest;

/* All memory is too much for the switchover, the ring's buffers are not. */
static void hidden_start(HiddenTest *t, const char *options)
{
    g_autofree char *dev = device("igb0", 1);

    t->args = g_strdup_printf("%s,addr=6.0,write-tracking=igb", dev);
    fake_vfio(options);
    tracked_vm_start(&t->src, QPCI_DEVFN(6, 0), t->args);
    tracked_vm_fill(&t->src);
    driver_start(&t->driver, &t->src);
    tracked_vm_migrate(&t->src, stream);
    qtest_qmp_assert_success(t->src.qts,
        "{ 'execute': 'migrate-set-parameters', 'arguments': {"
        "  'downtime-limit': 100, 'avail-switchover-bandwidth': %d } }",
        64 << 20);
    driver_traffic(&t->driver, 3);
    write_reg(&t->src, TESTDEV_FILL, 0x5a);
}

static int64_t marked_all(HiddenTest *t)
{
    QDict *info = tracking_info(&t->src);
    int64_t count = qdict_get_int(info, "marked-all");

    qobject_unref(info);
    return count;
}

/* Complete and compare. */
static void hidden_arrive(HiddenTest *t)
{
    g_autofree char *incoming = g_strdup_printf("%s -incoming file:%s -S",
                                                t->args, stream);
    TrackedVM dst;

    tracked_vm_finish(&t->src);
    tracked_vm_start(&dst, 0, incoming);
    tracked_vm_wait(&dst, "completed");
    /* what is posted is written now, too late */
    qpci_config_readw(t->src.dev, PCI_COMMAND);
    g_assert_cmpint(tracked_vm_differences(&t->src, &dst, dir), ==, 0);
    tracked_vm_stop(&dst);
    tracked_vm_stop(&t->src);
    real_vfio();
    g_free(t->args);
}

/* The same; all memory was never marked. */
static void hidden_end(HiddenTest *t)
{
    g_assert_cmpint(marked_all(t), ==, 0);
    hidden_arrive(t);
}

/*
 * The guest turns bus mastering and decode off: the migration converges.  It is
 * on for a moment when nobody looks.
 */
static void test_walker_off(void)
{
    HiddenTest t;

    hidden_start(&t, "decode");
    config_receive(&t.src, 5);
    set_command(&t.src, 0);
    tracked_vm_wait(&t.src, "pre-switchover");
    set_command(&t.src, PCI_COMMAND_MASTER);
    config_receive(&t.src, 20);
    set_command(&t.src, 0);
    hidden_end(&t);
}

/* Decode is off and bus mastering is on: the device receives. */
static void test_walker_hidden(void)
{
    HiddenTest t;

    hidden_start(&t, "decode");
    set_command(&t.src, PCI_COMMAND_MASTER);
    config_receive(&t.src, 5);
    tracked_vm_wait_first_pass(&t.src);
    config_receive(&t.src, 5);
    tracked_vm_wait(&t.src, "pre-switchover");
    config_receive(&t.src, 5);
    hidden_end(&t);
}

/* The same, and then it is used again. */
static void test_walker_hidden_back(void)
{
    HiddenTest t;

    hidden_start(&t, "decode");
    set_command(&t.src, PCI_COMMAND_MASTER);
    config_receive(&t.src, 5);
    tracked_vm_wait(&t.src, "pre-switchover");
    config_receive(&t.src, 5);
    set_command(&t.src, PCI_COMMAND_MASTER | PCI_COMMAND_MEMORY);
    driver_traffic(&t.driver, 5);
    driver_start(&t.driver, &t.src);
    driver_traffic(&t.driver, 5);
    hidden_end(&t);
}

/* What was on its way when the guest turned the device off arrives. */
static void test_walker_posted(void)
{
    HiddenTest t;

    hidden_start(&t, "decode posted");
    tracked_vm_wait(&t.src, "pre-switchover");
    set_command(&t.src, PCI_COMMAND_MASTER);
    config_receive(&t.src, 20);
    set_command(&t.src, 0);
    hidden_end(&t);
}

/* A device that logs its DMA needs no walker, and gets none. */
static void test_walker_superfluous(void)
{
    g_autofree char *dev = device("igb-log0", 1);
    g_autofree char *args = g_strdup_printf("%s,addr=6.0,write-tracking=auto",
                                            dev);
    TrackedVM src;
    Driver driver;
    QDict *info;

    fake_vfio("");
    tracked_vm_start(&src, QPCI_DEVFN(6, 0), args);
    tracked_vm_fill(&src);
    driver_start(&driver, &src);
    tracked_vm_migrate(&src, stream);
    driver_traffic(&driver, 5);
    migrate_and_compare(&src, args);
    info = tracking_info(&src);
    g_assert_cmpint(qdict_get_int(info, "traps"), ==, 0);
    g_assert_cmpint(qdict_get_int(info, "marked-pages"), ==, 0);
    qobject_unref(info);
    tracked_vm_stop(&src);
    real_vfio();
}

/* A card that no walker knows: auto is off, and the migration is right. */
static void test_walker_unknown(void)
{
    g_autofree char *dev = device("i3500", 1);
    g_autofree char *args = g_strdup_printf("%s,addr=6.0,write-tracking=auto",
                                            dev);
    TrackedVM src;
    Driver driver;
    QDict *rsp;

    fake_vfio("");
    tracked_vm_start(&src, QPCI_DEVFN(6, 0), args);
    rsp = qtest_qmp(src.qts, "{ 'execute': 'query-write-tracking' }");
    g_assert_true(qlist_empty(qdict_get_qlist(rsp, "return")));
    qobject_unref(rsp);
    tracked_vm_fill(&src);
    driver_start(&driver, &src);
    tracked_vm_stop(&src);
    real_vfio();
}

/* What a snapshot holds of memory is what it was when it was saved. */
static void test_walker_snapshot(void)
{
    g_autofree char *dev = device("igb0", 1);
    g_autofree char *args = g_strdup_printf("%s,addr=6.0,write-tracking=igb",
                                            dev);
    g_autofree char *before = NULL, *after = NULL, *why = NULL;
    TrackedVM vm;
    Driver driver;
    QDict *info;

    fake_vfio("");
    tracked_vm_start(&vm, QPCI_DEVFN(6, 0), args);
    tracked_vm_add_snapshot_disk(&vm, dir);
    tracked_vm_fill(&vm);
    driver_start(&driver, &vm);
    driver_traffic(&driver, 5);
    before = tracked_vm_ram(&vm, dir);
    why = tracked_vm_snapshot(&vm, "snapshot-save", "one");
    g_assert_cmpstr(why, ==, NULL);
    /* the device goes on, and the walker has not been in its way */
    driver_traffic(&driver, 5);
    info = tracking_info(&vm);
    g_assert_false(qdict_get_bool(info, "active"));
    g_assert_cmpint(qdict_get_int(info, "traps"), ==, 0);
    qobject_unref(info);
    why = tracked_vm_snapshot(&vm, "snapshot-load", "one");
    g_assert_cmpstr(why, ==, NULL);
    after = tracked_vm_ram(&vm, dir);
    g_assert_cmpint(memcmp(before, after, VM_DMA_END - VM_DMA_START), ==, 0);
    tracked_vm_stop(&vm);
    real_vfio();
}

/* Hot-plug says why a device cannot be had with that property. */
static void test_walker_errors(void)
{
    static const struct {
        const char *name, *machine, *mode, *why;
    } cases[] = {
        { "dma0", "", "igb", "write-tracking=igb does not know the device "
                             "1234:0d3a" },
        { "igb0", "", "e1000", "write-tracking=e1000 does not know the device "
                               "8086:10ca" },
        { "igb0", "", "igc", "'igc'" },
        /* the virtual function of an I350: not tried, so not known */
        { "i3500", "", "igb", "write-tracking=igb does not know the device "
                              "8086:1520" },
        { "igb0", "-device intel-iommu,caching-mode=on", "igb",
          "write-tracking=igb does not work behind a vIOMMU" },
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        g_autofree char *unused = device(cases[i].name, 1);
        g_autofree char *path = g_strdup_printf("%s/%s", dir, cases[i].name);
        g_autofree char *args = g_strdup_printf(
            "%s -device pcie-root-port,id=rp0,chassis=1", cases[i].machine);
        TrackedVM vm;
        QDict *rsp;
        const char *desc;

        fake_vfio("");
        tracked_vm_start(&vm, 0, args);
        rsp = qtest_qmp(vm.qts,
            "{ 'execute': 'device_add', 'arguments': { 'bus': 'rp0',"
            "  'driver': 'vfio-pci', 'id': 'dev', 'sysfsdev': %s,"
            "  'write-tracking': %s } }", path, cases[i].mode);
        g_assert_true(qdict_haskey(rsp, "error"));
        desc = qdict_get_str(qdict_get_qdict(rsp, "error"), "desc");
        if (!strstr(desc, cases[i].why)) {
            g_error("\"%s\" is not in \"%s\"", cases[i].why, desc);
        }
        qobject_unref(rsp);
        tracked_vm_stop(&vm);
        real_vfio();
    }
}

/* Another ring, which the guest sets up by I/O ports. */
static void port_ring(TrackedVM *vm, QPCIBar ports)
{
    static const uint32_t regs[][2] = {
        { TESTDEV_RDBAL, RING_ADDR + VM_PAGE },
        { TESTDEV_RDH, 0 }, { TESTDEV_RDT, RING - 1 },
    };

    for (int i = 0; i < RING; i++) {
        qtest_writeq(vm->qts, RING_ADDR + VM_PAGE + 16 * i,
                     PORT_BUFFERS + i * VM_PAGE);
    }
    for (int i = 0; i < ARRAY_SIZE(regs); i++) {
        qpci_io_writel(vm->dev, ports, TESTDEV_IOADDR, regs[i][0]);
        qpci_io_writel(vm->dev, ports, TESTDEV_IODATA, regs[i][1]);
    }
}

/*
 * Memory decode is off, and the rings change all the same: I/O decode is on for
 * a moment when nobody looks, or was on until memory decode was turned off.
 */
static void test_walker_ports(gconstpointer opaque)
{
    bool before = opaque;
    QPCIBar ports;
    HiddenTest t;

    hidden_start(&t, "decode,ioport");
    ports = qpci_iomap(t.src.dev, 2, NULL);
    set_command(&t.src, PCI_COMMAND_MASTER | PCI_COMMAND_MEMORY |
                        (before ? PCI_COMMAND_IO : 0));
    tracked_vm_wait_first_pass(&t.src);
    if (!before) {
        set_command(&t.src, PCI_COMMAND_MASTER);
        tracked_vm_wait(&t.src, "pre-switchover");
        g_assert_cmpint(marked_all(&t), ==, 0);
        set_command(&t.src, PCI_COMMAND_MASTER | PCI_COMMAND_IO);
    } else {
        tracked_vm_wait(&t.src, "pre-switchover");
    }
    port_ring(&t.src, ports);
    set_command(&t.src, PCI_COMMAND_MASTER);
    config_receive(&t.src, 5);
    /* it is this ring */
    g_assert_cmphex(qtest_readb(t.src.qts, PORT_BUFFERS), ==, 0x5a);
    hidden_arrive(&t);
}

/* -------------------------------------------------------------- proof mode */

static int64_t vm_stat(TrackedVM *vm, const char *name)
{
    int64_t value = -1;
    QDict *rsp = qtest_qmp(vm->qts, "{ 'execute': 'query-stats', 'arguments': {"
                                    "  'target': 'vm' } }");
    QDict *provider = qobject_to(QDict, qlist_peek(qdict_get_qlist(rsp,
                                                                   "return")));
    const QListEntry *e;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(provider, "stats"), e) {
        QDict *stat = qobject_to(QDict, qlist_entry_obj(e));

        if (!strcmp(qdict_get_str(stat, "name"), name)) {
            value = qdict_get_int(stat, "value");
        }
    }
    qobject_unref(rsp);
    return value;
}

/* Looks at the dirty pages, up to now. */
static int64_t passes(TrackedVM *vm)
{
    return vm_stat(vm, "write-tracking-syncs");
}

/*
 * A look takes longer than downtime-limit, and what the card may write in that
 * time is sent in no time: the time of the look is not that of the stream.
 */
static void test_verify_slow(void)
{
    g_autofree char *dev = device("igb0", 1);
    g_autofree char *args = g_strdup_printf(
        "%s,addr=6.0,write-tracking=igb,write-tracking-verify=on "
        "-device VGA,vgamem_mb=256,romfile=", dev);
    TrackedVM vm;
    Driver driver;

    fake_vfio("decode");
    tracked_vm_start(&vm, QPCI_DEVFN(6, 0), args);
    tracked_vm_fill(&vm);
    driver_start(&driver, &vm);
    tracked_vm_migrate(&vm, stream);
    /* each look finds all of the ring's buffers, too many for a millisecond */
    set_command(&vm, PCI_COMMAND_MASTER);
    tracked_vm_wait_first_pass(&vm);
    while (passes(&vm) < 5) {
        g_usleep(20 * 1000);
    }
    qtest_qmp_assert_success(vm.qts,
        "{ 'execute': 'migrate-set-parameters', 'arguments': {"
        "  'max-bandwidth': 0, 'downtime-limit': 50 } }");
    tracked_vm_wait(&vm, "pre-switchover");
    g_test_message("%" PRId64 " passes", passes(&vm));
    tracked_vm_finish(&vm);
    tracked_vm_stop(&vm);
    real_vfio();
}

/* ------------------------------------------------------------- late unplug */

typedef struct Pair {
    TrackedVM vm;
    QVirtioPCIDevice *net;
    Driver driver;
    char *base;
} Pair;

static const char *pair_uri;    /* instead of a file */
static unsigned pair_bandwidth; /* for the switchover; 0: as measured */
static const char *pair_options = "";   /* of the fake */
static const char *pair_tracking = "igb";
static bool pair_native;        /* hot-plug by the port, not by ACPI */
static bool pair_private;       /* memory that is no file */
static const char *pair_unplug = "late";

static void pair_migrate(Pair *p)
{
    tracked_vm_wait_idle(&p->vm);
    if (pair_uri) {
        tracked_vm_migrate_to(&p->vm, pair_uri);
    } else {
        tracked_vm_migrate(&p->vm, stream);
    }
    /* a tenth of the memory is few enough, and more than the ring's buffers */
    qtest_qmp_assert_success(p->vm.qts,
        "{ 'execute': 'migrate-set-parameters', 'arguments': {"
        "  'downtime-limit': 100, 'avail-switchover-bandwidth': %u } }",
        pair_bandwidth);
}

static void pair_find(Pair *p)
{
    g_free(p->vm.dev);
    p->vm.dev = qpci_device_find(p->vm.bus, QPCI_DEVFN(2 << 5, 0));
    g_assert_nonnull(p->vm.dev);
    qpci_device_enable(p->vm.dev);
    p->vm.bar = qpci_iomap(p->vm.dev, 0, NULL);
}

/* The register at that offset of the card's port. */
static QPCIDevice *port_find(Pair *p, uint8_t reg, uint8_t *offset)
{
    QPCIDevice *port = qpci_device_find(p->vm.bus, QPCI_DEVFN(2, 0));

    g_assert_nonnull(port);
    *offset = qpci_find_capability(port, PCI_CAP_ID_EXP, 0) + reg;
    return port;
}

static void slot_control(Pair *p, uint16_t val)
{
    uint8_t offset;
    g_autofree QPCIDevice *port = port_find(p, PCI_EXP_SLTCTL, &offset);

    qpci_config_writew(port, offset, val);
}

/* Has anything been plugged since it was called last? */
static bool plug_event(Pair *p)
{
    uint8_t offset;
    g_autofree QPCIDevice *port = port_find(p, PCI_EXP_SLTSTA, &offset);
    uint16_t events = qpci_config_readw(port, offset) & SLOT_EVENTS;

    qpci_config_writew(port, offset, events);
    return pair_native ? events & PCI_EXP_SLTSTA_PDC
                       : qtest_inl(p->vm.qts,
                                   ACPI_PCIHP_ADDR_ICH9 + PCI_UP_BASE);
}

/* A standby that is to be unplugged late, and a card that receives. */
static void pair_open(Pair *p, unsigned timeout_ms)
{
    g_autofree char *vf = device("vf0", 2);
    g_autofree char *args = NULL;

    p->base = g_strdup_printf(
        "-device pcie-root-port,id=root0,addr=1.0,chassis=1 "
        "-device pcie-root-port,id=root1,addr=2.0,chassis=2 "
        "-device virtio-net,bus=root0,id=standby0,failover=on,romfile=,"
        "failover-unplug=%s,failover-unplug-timeout-ms=%u", pair_unplug,
        timeout_ms);
    args = g_strdup_printf("%s %s,id=primary0,bus=root1,write-tracking=%s,"
                           "failover_pair_id=standby0 -global ICH9-LPC."
                           "acpi-pci-hotplug-with-bridge-support=%s", p->base,
                           vf, pair_tracking, pair_native ? "off" : "on");
    fake_vfio(pair_options);
    if (pair_private) {
        tracked_vm_start_private(&p->vm, 0, args);
    } else {
        tracked_vm_start(&p->vm, 0, args);
    }
    p->net = negotiate_standby(&p->vm);
    slot_control(p, SLOT_ON);
    g_assert_true(plug_event(p));
    pair_find(p);
    tracked_vm_fill(&p->vm);
    driver_start(&p->driver, &p->vm);
}

/* The same, and it is migrated. */
static void pair_start(Pair *p, unsigned timeout_ms)
{
    pair_open(p, timeout_ms);
    pair_migrate(p);
    driver_traffic(&p->driver, 3);
}

static void pair_stop(Pair *p)
{
    qos_object_destroy((QOSGraphObject *)p->net);
    tracked_vm_stop(&p->vm);
    real_vfio();
    g_free(p->base);
}

/* The request comes when RAM has converged; the migration goes on. */
static void wait_request(Pair *p)
{
    tracked_vm_wait_first_pass(&p->vm);
    qtest_qmp_eventwait(p->vm.qts, "UNPLUG_PRIMARY");
    tracked_vm_wait(&p->vm, "active");
}

static void eject(Pair *p)
{
    if (pair_native) {
        slot_control(p, SLOT_OFF);
        return;
    }
    qtest_outl(p->vm.qts, ACPI_PCIHP_ADDR_ICH9 + PCI_EJ_BASE, 1);
}

static void check_late(void)
{
    g_autofree char *incoming = NULL;
    TrackedVM dst;
    unsigned missed;
    Pair p;

    pair_start(&p, 30000);
    wait_request(&p);
    /* the guest takes its time, and the card receives until it lets go */
    for (int i = 0; i < 10; i++) {
        driver_traffic(&p.driver, 2);
        g_usleep(20 * 1000);
        tracked_vm_wait(&p.vm, "active");
    }
    eject(&p);
    g_assert_cmpint(tracked_vm_command(&p.vm, TESTDEV_CMD_RECEIVE, 0, 1, 0), ==,
                    -EPERM);
    tracked_vm_wait_switchover(&p.vm);
    tracked_vm_finish(&p.vm);

    incoming = g_strdup_printf("%s -incoming file:%s -S", p.base, stream);
    tracked_vm_start(&dst, 0, incoming);
    tracked_vm_wait(&dst, "completed");
    missed = tracked_vm_differences(&p.vm, &dst, dir);
    g_test_message("pages missed: %u", missed);
    g_assert_cmpint(missed, ==, 0);
    tracked_vm_stop(&dst);
    pair_stop(&p);
}

static void test_late(void)
{
    check_late();
}

/*
 * Nothing tracks the card, and all that is pinned is few enough to be sent:
 * what the sync before the request has marked is sent after the eject.
 */
static void test_late_untracked(void)
{
    pair_tracking = "off";
    pair_bandwidth = INT_MAX;
    check_late();
    pair_tracking = "igb";
    pair_bandwidth = 0;
}

/* The rest of a migration whose guest is about to be asked. */
static void complete(Pair *p)
{
    pair_migrate(p);
    wait_request(p);
    driver_traffic(&p->driver, 2);
    eject(p);
    tracked_vm_wait_switchover(&p->vm);
    tracked_vm_finish(&p->vm);
}

/* The device came back and works, once the guest has enabled it again. */
static void assert_replugged(Pair *p)
{
    tracked_vm_wait_idle(&p->vm);
    g_assert_true(plug_event(p));
    slot_control(p, SLOT_ON);
    g_assert_cmphex(qpci_config_readw(p->vm.dev, PCI_COMMAND) &
                    PCI_COMMAND_MASTER, ==, 0);
    qpci_device_enable(p->vm.dev);
    driver_start(&p->driver, &p->vm);
    driver_traffic(&p->driver, 3);
}

/* It has been there all the time; as the guest saw it, too. */
static void assert_plugged(Pair *p)
{
    tracked_vm_wait_idle(&p->vm);
    g_assert_false(plug_event(p));
    driver_start(&p->driver, &p->vm);
    driver_traffic(&p->driver, 3);
}

/* What has arrived of a migration that was tried again is the same. */
static void complete_and_compare(Pair *p)
{
    g_autofree char *incoming = g_strdup_printf("%s -incoming file:%s -S",
                                                p->base, stream);
    TrackedVM dst;

    complete(p);
    tracked_vm_start(&dst, 0, incoming);
    tracked_vm_wait(&dst, "completed");
    g_assert_cmpint(tracked_vm_differences(&p->vm, &dst, dir), ==, 0);
    tracked_vm_stop(&dst);
}

/* The guest does not let go. */
static void test_late_timeout(void)
{
    g_autofree char *why = NULL;
    Pair p;

    pair_start(&p, 500);
    wait_request(&p);
    why = tracked_vm_wait_failed(&p.vm);
    g_test_message("%s", why);
    g_assert_nonnull(strstr(why, "did not let go of the device within 500 ms"));
    assert_plugged(&p);
    qobject_unref(tracking_info_ended(&p.vm));
    /* what it lets go of when all is over is gone, as after device_del */
    eject(&p);
    qtest_qmp_eventwait(p.vm.qts, "DEVICE_DELETED");
    pair_stop(&p);
}

/*
 * The same without ACPI.  The driver of the port takes the event of something
 * that is plugged for the removal of what it has.
 */
static void test_late_native(void)
{
    pair_native = true;
    test_late_timeout();
    pair_native = false;
}

/* The guest's slot is busy, and cannot be asked; later it can. */
static void test_late_refused(void)
{
    g_autofree char *why = NULL;
    Pair p;

    pair_native = true;
    pair_start(&p, 30000);
    slot_control(&p, SLOT_BUSY);
    why = tracked_vm_wait_failed(&p.vm);
    g_test_message("%s", why);
    g_assert_nonnull(strstr(why, "cannot be unplugged"));
    slot_control(&p, SLOT_ON);
    assert_plugged(&p);
    complete_and_compare(&p);
    pair_stop(&p);
    pair_native = false;
}

/*
 * A snapshot in the background does not converge: the guest is asked at once,
 * and has its device back when it is done, as the VM goes on.
 */
static void test_background(gconstpointer unplug)
{
    g_autofree char *uri = g_strdup_printf("file:%s", stream);
    g_autofree char *incoming = NULL;
    TrackedVM dst;
    Pair p;

    pair_private = true;
    pair_unplug = unplug;
    pair_open(&p, 30000);
    pair_private = false;
    pair_unplug = "late";
    if (tracked_vm_capability_or_skip(&p.vm, "background-snapshot")) {
        qtest_qmp_assert_success(p.vm.qts,
            "{ 'execute': 'migrate', 'arguments': { 'uri': %s } }", uri);
        tracked_vm_wait(&p.vm, "wait-unplug");
        g_usleep(100 * 1000);
        tracked_vm_wait(&p.vm, "wait-unplug");
        eject(&p);
        tracked_vm_wait(&p.vm, "completed");
        assert_replugged(&p);
        /* the device is not in it */
        incoming = g_strdup_printf("%s -incoming file:%s -S", p.base, stream);
        tracked_vm_start_private(&dst, 0, incoming);
        tracked_vm_wait(&dst, "completed");
        tracked_vm_stop(&dst);
    }
    pair_stop(&p);
}

/*
 * One that fails at its begin: the guest has its device back, and QEMU what it
 * had before.
 */
static void test_late_background_fails(void)
{
    g_autofree char *before = NULL, *after = NULL, *why = NULL, *path = NULL;
    int full = open("/dev/full", O_WRONLY);
    Pair p;

    pair_private = true;
    pair_open(&p, 30000);
    pair_private = false;
    path = g_strdup_printf("/proc/%d/fd/0", (int)qtest_pid(p.vm.qts));
    before = g_file_read_link(path, NULL);
    if (tracked_vm_capability_or_skip(&p.vm, "background-snapshot")) {
        qtest_qmp_fds_assert_success(p.vm.qts, &full, 1,
            "{ 'execute': 'getfd', 'arguments': { 'fdname': 'full' } }");
        qtest_qmp_assert_success(p.vm.qts,
            "{ 'execute': 'migrate', 'arguments': { 'uri': 'fd:full' } }");
        tracked_vm_wait(&p.vm, "wait-unplug");
        eject(&p);
        why = tracked_vm_wait_failed(&p.vm);
        g_test_message("%s", why);
        assert_replugged(&p);
        after = g_file_read_link(path, NULL);
        g_assert_nonnull(before);
        g_assert_cmpstr(before, ==, after);
    }
    close(full);
    pair_stop(&p);
}

/* A guest that does not run cannot let go. */
static void test_late_paused(void)
{
    g_autofree char *why = NULL;
    Pair p;

    pair_start(&p, 30000);
    qtest_qmp_assert_success(p.vm.qts, "{ 'execute': 'stop' }");
    why = tracked_vm_wait_failed(&p.vm);
    g_test_message("%s", why);
    g_assert_nonnull(strstr(why, "the VM does not run"));
    qtest_qmp_assert_success(p.vm.qts, "{ 'execute': 'cont' }");
    assert_plugged(&p);
    pair_stop(&p);
}

/* Paused while the guest is to let go, and continued. */
static void test_late_stop_cont(void)
{
    g_autofree char *incoming = NULL;
    TrackedVM dst;
    Pair p;

    pair_start(&p, 120000);
    wait_request(&p);
    driver_traffic(&p.driver, 2);
    qtest_qmp_assert_success(p.vm.qts, "{ 'execute': 'stop' }");
    /* it makes passes, and does not complete with the device plugged */
    for (int i = 0; i < 5; i++) {
        g_usleep(20 * 1000);
        tracked_vm_wait(&p.vm, "active");
    }
    qtest_qmp_assert_success(p.vm.qts, "{ 'execute': 'cont' }");
    driver_traffic(&p.driver, 2);
    eject(&p);
    tracked_vm_wait_switchover(&p.vm);
    tracked_vm_finish(&p.vm);
    incoming = g_strdup_printf("%s -incoming file:%s -S", p.base, stream);
    tracked_vm_start(&dst, 0, incoming);
    tracked_vm_wait(&dst, "completed");
    g_assert_cmpint(tracked_vm_differences(&p.vm, &dst, dir), ==, 0);
    tracked_vm_stop(&dst);
    pair_stop(&p);
}

/* Paused for longer than the guest may take: it fails and says why. */
static void test_late_stop_timeout(void)
{
    g_autofree char *why = NULL;
    Pair p;

    pair_start(&p, 1500);
    wait_request(&p);
    qtest_qmp_assert_success(p.vm.qts, "{ 'execute': 'stop' }");
    why = tracked_vm_wait_failed(&p.vm);
    g_test_message("%s", why);
    g_assert_nonnull(strstr(why, "did not let go of the device within"));
    /* unless the pause came too late for the limit */
    qtest_qmp_assert_success(p.vm.qts, "{ 'execute': 'cont' }");
    assert_plugged(&p);
    pair_stop(&p);
}

/* A destination that takes what it gets, until it is closed. */
typedef struct Sink {
    int listener, conn;
    GThread *thread;
} Sink;

static gpointer sink_run(gpointer opaque)
{
    Sink *sink = opaque;
    char buf[65536];

    qatomic_set(&sink->conn, accept(sink->listener, NULL, NULL));
    while (read(sink->conn, buf, sizeof(buf)) > 0) {
        continue;
    }
    return NULL;
}

static void sink_start(Sink *sink, const char *path)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };

    g_assert_cmpint(strlen(path), <, sizeof(addr.sun_path));
    strcpy(addr.sun_path, path);
    g_unlink(path);
    sink->conn = -1;
    sink->listener = socket(AF_UNIX, SOCK_STREAM, 0);
    g_assert_cmpint(bind(sink->listener, (struct sockaddr *)&addr,
                         sizeof(addr)), ==, 0);
    g_assert_cmpint(listen(sink->listener, 1), ==, 0);
    sink->thread = g_thread_new("sink", sink_run, sink);
}

/* The stream breaks, as when the destination dies. */
static void sink_break(Sink *sink)
{
    while (qatomic_read(&sink->conn) < 0) {
        g_usleep(1000);         /* the source has begun to connect */
    }
    shutdown(sink->conn, SHUT_RDWR);
    g_thread_join(sink->thread);
    close(sink->conn);
    close(sink->listener);
}

/* As pair_start(), to a stream that sink_break() breaks; the guest is asked. */
static void pair_start_sink(Pair *p, Sink *sink, unsigned timeout_ms)
{
    g_autofree char *path = g_strdup_printf("%s/sink", dir);
    g_autofree char *uri = g_strdup_printf("unix:%s", path);

    sink_start(sink, path);
    pair_uri = uri;
    pair_start(p, timeout_ms);
    pair_uri = NULL;
    wait_request(p);
    g_unlink(path);     /* it is connected to */
}

/* The stream breaks while the guest is to let go; it does so, or not. */
static void test_late_break(gconstpointer opaque)
{
    bool lets_go = opaque;
    g_autofree char *why = NULL;
    Sink sink;
    Pair p;

    pair_start_sink(&p, &sink, lets_go ? 120000 : 2000);
    driver_traffic(&p.driver, 2);
    sink_break(&sink);
    if (lets_go) {
        eject(&p);
    }
    /* nothing need be sent before the switchover, so it may get that far */
    why = tracked_vm_push_to_failure(&p.vm);
    g_test_message("%s", why);
    if (lets_go) {
        assert_replugged(&p);
        complete(&p);
    } else {
        assert_plugged(&p);
    }
    pair_stop(&p);
}

static bool try_migrate(Pair *p, const char *expected)
{
    g_autofree char *uri = g_strdup_printf("file:%s", stream);
    QDict *rsp = qtest_qmp(p->vm.qts, "{ 'execute': 'migrate', 'arguments': {"
                                      "  'uri': %s } }", uri);
    QDict *error = qdict_get_qdict(rsp, "error");
    bool done = !error;

    if (error) {
        g_assert_nonnull(strstr(qdict_get_str(error, "desc"), expected));
    }
    qobject_unref(rsp);
    return done;
}

/*
 * A migration has failed, and waits for the guest: no other one can begin, nor
 * a snapshot, nor can it be changed what its end has to clean up.
 */
static void test_late_retry(void)
{
    g_autofree char *why = NULL;
    Sink sink;
    Pair p;

    pair_start_sink(&p, &sink, 120000);
    tracked_vm_add_snapshot_disk(&p.vm, dir);
    sink_break(&sink);
    why = tracked_vm_push_to_failure(&p.vm);
    g_assert_false(try_migrate(&p, "There's a migration process in progress"));
    g_assert_false(tracked_vm_is_idle(&p.vm));
    g_clear_pointer(&why, g_free);
    why = tracked_vm_snapshot(&p.vm, "snapshot-save", "s");
    g_assert_cmpstr(why, ==, "There's a migration process in progress");
    eject(&p);
    /* as soon as it can: all of the last one is over by then */
    while (!try_migrate(&p, "There's a migration process in progress")) {
        continue;
    }
    g_assert_true(plug_event(&p));
    pair_stop(&p);
}

/* One that has failed is not cancelled as well while it waits for the guest. */
static void test_late_failed_cancel(void)
{
    g_autofree char *why = NULL, *still = NULL;
    Sink sink;
    Pair p;

    pair_start_sink(&p, &sink, 120000);
    sink_break(&sink);
    why = tracked_vm_push_to_failure(&p.vm);
    qtest_qmp_assert_success(p.vm.qts, "{ 'execute': 'migrate_cancel' }");
    g_assert_false(tracked_vm_is_idle(&p.vm));
    eject(&p);
    assert_replugged(&p);
    still = tracked_vm_push_to_failure(&p.vm);
    g_assert_cmpstr(why, ==, still);
    complete(&p);
    pair_stop(&p);
}

/*
 * The guest is asked, and RAM does not converge any more: there is time between
 * passes all the same, or the guest would get none.
 */
static void test_late_passes(void)
{
    g_autofree char *why = NULL;
    int64_t before, after;
    Pair p;

    pair_start(&p, 3000);
    wait_request(&p);
    qtest_qmp_assert_success(p.vm.qts,
        "{ 'execute': 'migrate-set-parameters', 'arguments': {"
        "  'avail-switchover-bandwidth': 1000 } }");
    before = passes(&p.vm);
    why = tracked_vm_wait_failed(&p.vm);
    after = passes(&p.vm);
    g_test_message("%" PRId64 " passes", after - before);
    /* two in a second, and those under way */
    g_assert_cmpint(after - before, <=, 3 * 2 + 2);
    assert_plugged(&p);
    pair_stop(&p);
}

static int64_t throttle(TrackedVM *vm)
{
    QDict *rsp = qtest_qmp_assert_success_ref(vm->qts,
                                              "{ 'execute': 'query-migrate' }");
    int64_t percent = qdict_get_try_int(rsp, "cpu-throttle-percentage", 0);

    qobject_unref(rsp);
    return percent;
}

/* With auto-converge the guest is not slowed down while it is to let go. */
static void test_late_auto_converge(void)
{
    int64_t end, percent, highest = 0;
    Pair p;

    pair_open(&p, 120000);
    qtest_qmp_assert_success(p.vm.qts,
        "{ 'execute': 'migrate-set-capabilities', 'arguments': {"
        "  'capabilities': [ { 'capability': 'auto-converge',"
        "                      'state': true } ] } }");
    qtest_qmp_assert_success(p.vm.qts,
        "{ 'execute': 'migrate-set-parameters', 'arguments': {"
        "  'throttle-trigger-threshold': 1, 'cpu-throttle-initial': 20,"
        "  'cpu-throttle-increment': 60 } }");
    pair_migrate(&p);
    wait_request(&p);
    end = passes(&p.vm) + 20;
    while (passes(&p.vm) < end) {
        driver_traffic(&p.driver, 1);
        percent = throttle(&p.vm);
        highest = MAX(highest, percent);
        g_usleep(20 * 1000);
    }
    g_test_message("slowed down by %" PRId64 " %%", highest);
    /* the first step up to the next pass */
    g_assert_cmpint(highest, <=, 20);
    eject(&p);
    tracked_vm_wait_switchover(&p.vm);
    tracked_vm_finish(&p.vm);
    pair_stop(&p);
}

/* A pass begins that takes half a minute: nobody looks for dirty pages. */
static void begin_long_pass(TrackedVM *vm)
{
    const uint64_t half = VM_DMA_END / 2;
    int64_t remaining = 0;

    qtest_qmp_assert_success(vm->qts,
        "{ 'execute': 'migrate-set-parameters', 'arguments': {"
        "  'max-bandwidth': %d } }", 1 << 20);
    qtest_memset(vm->qts, half, 0x12, half);
    while (remaining < half / 2) {
        QDict *rsp = qtest_qmp_assert_success_ref(vm->qts,
                                        "{ 'execute': 'query-migrate' }");

        remaining = qdict_get_int(qdict_get_qdict(rsp, "ram"), "remaining");
        g_assert_cmpstr(qdict_get_str(rsp, "status"), ==, "active");
        qobject_unref(rsp);
        g_usleep(10 * 1000);
    }
}

/* Somebody else unplugs the device; what it wrote up to then arrives. */
static void test_late_deleted(void)
{
    g_autofree char *incoming = NULL;
    int64_t traps, pages;
    TrackedVM dst;
    Pair p;

    /* RAM never converges, as the ring is dirty at each look */
    pair_bandwidth = 1000;
    pair_start(&p, 120000);
    pair_bandwidth = 0;
    qtest_qmp_device_del_send(p.vm.qts, "primary0");
    tracked_vm_wait_first_pass(&p.vm);
    begin_long_pass(&p.vm);
    driver_traffic(&p.driver, 10);
    g_assert_cmpint(tracked_vm_command(&p.vm, TESTDEV_CMD_RECEIVE, 0, RING,
                                       0x66), ==, 0);
    traps = vm_stat(&p.vm, "write-tracking-traps");
    pages = vm_stat(&p.vm, "write-tracking-marked-pages");
    g_assert_cmpint(traps, >, 0);
    eject(&p);
    qtest_qmp_eventwait(p.vm.qts, "DEVICE_DELETED");
    /* its figures stay */
    g_assert_cmpint(vm_stat(&p.vm, "write-tracking-traps"), >=, traps);
    g_assert_cmpint(vm_stat(&p.vm, "write-tracking-marked-pages"), >=, pages);
    qtest_qmp_assert_success(p.vm.qts,
        "{ 'execute': 'migrate-set-parameters', 'arguments': {"
        "  'max-bandwidth': 0, 'avail-switchover-bandwidth': 0 } }");
    tracked_vm_wait_switchover(&p.vm);
    tracked_vm_finish(&p.vm);
    incoming = g_strdup_printf("%s -incoming file:%s -S", p.base, stream);
    tracked_vm_start(&dst, 0, incoming);
    tracked_vm_wait(&dst, "completed");
    g_assert_cmpint(tracked_vm_differences(&p.vm, &dst, dir), ==, 0);
    tracked_vm_stop(&dst);
    pair_stop(&p);
}

static void assert_run_state(Pair *p, const char *wanted)
{
    QDict *rsp = qtest_qmp_assert_success_ref(p->vm.qts,
                                              "{ 'execute': 'query-status' }");

    g_assert_cmpstr(qdict_get_str(rsp, "status"), ==, wanted);
    qobject_unref(rsp);
}

/*
 * Somebody else has asked the guest when RAM converges: it need not be asked
 * again, and what it lets go of is deleted, not kept.
 */
static void test_late_deleted_first(gconstpointer opaque)
{
    QDict *event = NULL;
    Pair p;

    pair_native = opaque;
    pair_open(&p, 120000);
    qtest_qmp_device_del_send(p.vm.qts, "primary0");
    if (pair_native) {
        slot_control(&p, SLOT_BUSY);
    }
    pair_bandwidth = INT_MAX;
    pair_migrate(&p);
    pair_bandwidth = 0;
    /* as often as it looks when RAM has converged, and does not complete */
    while (passes(&p.vm) < 5) {
        tracked_vm_wait(&p.vm, "active");
        g_usleep(20 * 1000);
    }
    driver_traffic(&p.driver, 2);
    eject(&p);
    tracked_vm_wait_switchover(&p.vm);
    /* it comes when the last reference to the device is gone */
    for (int i = 0; !event; i++) {
        g_assert_cmpint(i, <, 1000);
        assert_run_state(&p, "finish-migrate");
        event = qtest_qmp_event_ref(p.vm.qts, "DEVICE_DELETED");
        g_usleep(20 * 1000);
    }
    qobject_unref(event);
    tracked_vm_finish(&p.vm);
    pair_stop(&p);
    pair_native = false;
}

/*
 * Somebody else unplugged the device in a migration that was cancelled; one
 * that is plugged later is asked for like the first.
 */
static void test_late_deleted_again(void)
{
    g_autofree char *path = g_strdup_printf("%s/vf0", dir);
    Pair p;

    pair_bandwidth = 1000;
    pair_start(&p, 120000);
    pair_bandwidth = 0;
    qtest_qmp_device_del_send(p.vm.qts, "primary0");
    tracked_vm_wait_first_pass(&p.vm);
    begin_long_pass(&p.vm);
    driver_traffic(&p.driver, 2);
    eject(&p);
    qtest_qmp_eventwait(p.vm.qts, "DEVICE_DELETED");
    /* far enough that it would be asked for, if it were there */
    qtest_qmp_assert_success(p.vm.qts,
        "{ 'execute': 'migrate-set-parameters', 'arguments': {"
        "  'max-bandwidth': 0, 'avail-switchover-bandwidth': 0 } }");
    tracked_vm_wait_switchover(&p.vm);
    qtest_qmp_assert_success(p.vm.qts, "{ 'execute': 'migrate_cancel' }");
    tracked_vm_wait(&p.vm, "cancelled");
    qtest_qmp_assert_success(p.vm.qts,
        "{ 'execute': 'device_add', 'arguments': { 'bus': 'root1',"
        "  'driver': 'vfio-pci', 'id': 'primary0', 'sysfsdev': %s,"
        "  'write-tracking': 'igb', 'failover_pair_id': 'standby0' } }", path);
    pair_find(&p);
    driver_start(&p.driver, &p.vm);
    complete_and_compare(&p);
    pair_stop(&p);
}

/*
 * When the guest has let go for the migration, it cannot be asked to do so for
 * device_del; when it has the device back it can.
 */
static void test_late_deleted_after(gconstpointer opaque)
{
    QDict *rsp;
    Pair p;

    pair_unplug = opaque;
    pair_open(&p, 5000);
    pair_migrate(&p);
    qtest_qmp_eventwait(p.vm.qts, "UNPLUG_PRIMARY");
    eject(&p);
    rsp = qtest_qmp(p.vm.qts, "{ 'execute': 'device_del', 'arguments': {"
                              "  'id': 'primary0' } }");
    g_assert_true(qdict_haskey(rsp, "error"));
    qobject_unref(rsp);
    tracked_vm_wait_switchover(&p.vm);
    qtest_qmp_assert_success(p.vm.qts, "{ 'execute': 'migrate_cancel' }");
    tracked_vm_wait(&p.vm, "cancelled");
    assert_replugged(&p);
    qtest_qmp_device_del_send(p.vm.qts, "primary0");
    eject(&p);
    qtest_qmp_eventwait(p.vm.qts, "DEVICE_DELETED");
    pair_stop(&p);
    pair_unplug = "late";
}

/* Its transactions do not end after the eject: nobody knows what it writes. */
static void test_late_stuck(void)
{
    g_autofree char *why = NULL;
    Pair p;

    pair_options = "stuck";
    pair_start(&p, 120000);
    pair_options = "";
    wait_request(&p);
    eject(&p);
    why = tracked_vm_push_to_failure(&p.vm);
    g_test_message("%s", why);
    g_assert_nonnull(strstr(why, "transactions are pending"));
    assert_replugged(&p);
    pair_stop(&p);
}

/* Cancelled after the request: it ends when the guest has let go. */
static void test_late_cancel(void)
{
    Pair p;

    pair_start(&p, 30000);
    wait_request(&p);
    qtest_qmp_assert_success(p.vm.qts, "{ 'execute': 'migrate_cancel' }");
    g_usleep(300 * 1000);
    tracked_vm_wait(&p.vm, "cancelling");
    eject(&p);
    tracked_vm_wait(&p.vm, "cancelled");
    assert_replugged(&p);
    /* and it can be had again */
    complete(&p);
    pair_stop(&p);
}

static bool is_master(TrackedVM *vm)
{
    return qpci_config_readw(vm->dev, PCI_COMMAND) & PCI_COMMAND_MASTER;
}

static void set_running(Pair *p, bool running)
{
    if (running) {
        qtest_qmp_assert_success(p->vm.qts, "{ 'execute': 'cont' }");
    } else {
        qtest_qmp_assert_success(p->vm.qts, "{ 'execute': 'stop' }");
    }
}

/*
 * Cancelled, and the guest does not let go, as it does not want to, or cannot:
 * it ends with the guest's time, and the device has never been away.
 */
static void test_late_cancel_timeout(gconstpointer opaque)
{
    bool stopped = opaque;
    Pair p;

    pair_start(&p, 5000);
    wait_request(&p);
    driver_traffic(&p.driver, 2);
    if (stopped) {
        set_running(&p, false);
    }
    qtest_qmp_assert_success(p.vm.qts, "{ 'execute': 'migrate_cancel' }");
    tracked_vm_wait(&p.vm, "cancelling");
    tracked_vm_wait(&p.vm, "cancelled");
    qobject_unref(tracking_info_ended(&p.vm));
    assert_run_state(&p, stopped ? "paused" : "running");
    if (stopped) {
        set_running(&p, true);
    }
    g_assert_true(is_master(&p.vm));
    assert_plugged(&p);
    /* and it can be asked again */
    complete_and_compare(&p);
    pair_stop(&p);
}

/* Cancelled while the VM is paused; the guest lets go when it runs again. */
static void test_late_cancel_stopped(void)
{
    Pair p;

    pair_start(&p, 120000);
    wait_request(&p);
    driver_traffic(&p.driver, 2);
    set_running(&p, false);
    qtest_qmp_assert_success(p.vm.qts, "{ 'execute': 'migrate_cancel' }");
    tracked_vm_wait(&p.vm, "cancelling");
    set_running(&p, true);
    tracked_vm_wait(&p.vm, "cancelling");
    eject(&p);
    tracked_vm_wait(&p.vm, "cancelled");
    assert_run_state(&p, "running");
    assert_replugged(&p);
    complete_and_compare(&p);
    pair_stop(&p);
}

/* Cancelled when the guest has let go: it gets the device back. */
static void test_late_cancel_ejected(void)
{
    Pair p;

    pair_start(&p, 30000);
    wait_request(&p);
    eject(&p);
    tracked_vm_wait_switchover(&p.vm);
    qtest_qmp_assert_success(p.vm.qts, "{ 'execute': 'migrate_cancel' }");
    tracked_vm_wait(&p.vm, "cancelled");
    assert_replugged(&p);
    complete(&p);
    pair_stop(&p);
}

/* Cancelled before the request: the guest has noticed nothing. */
static void test_late_abort(void)
{
    Pair p;

    pair_start(&p, 30000);
    qtest_qmp_assert_success(p.vm.qts, "{ 'execute': 'migrate_cancel' }");
    tracked_vm_wait(&p.vm, "cancelled");
    assert_plugged(&p);
    pair_stop(&p);
}

/* --------------------------------------------------------------- fault loop */

static void cancel(TrackedVM *vm)
{
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'migrate_cancel' }");
}

/* What a driver may do, and what it should not, at some time. */
static void walker_step(Driver *d)
{
    switch (tracked_random(6)) {
    case 0:
        driver_start(d, d->vm);
        break;
    case 1:
        /* the walker loses its way until the ring is set up again */
        write_reg(d->vm, TESTDEV_RDT, RING);
        driver_start(d, d->vm);
        break;
    case 2:
        /* a buffer in memory that goes */
        set_pam(d->vm, 0x33);
        driver_start_at(d, d->vm, 0xd0000);
        g_assert_cmpint(tracked_vm_command(d->vm, TESTDEV_CMD_RECEIVE, 0, 1,
                                           tracked_random(256)), ==, 0);
        if (tracked_random(2)) {
            write_reg(d->vm, TESTDEV_RDT, RING);
        }
        set_pam(d->vm, 0);
        driver_start(d, d->vm);
        break;
    case 3:
        g_usleep(tracked_random(200 * 1000));
        break;
    default:
        driver_traffic(d, 1 + tracked_random(5));
    }
}

static void walker_steps(Driver *d)
{
    for (unsigned i = tracked_random(6); i; i--) {
        walker_step(d);
    }
}

/* The card of a VM that is migrated receives; it is cancelled now and then. */
static void walker_round(void)
{
    g_autofree char *dev = device("igb0", 1);
    g_autofree char *args = g_strdup_printf("%s,addr=6.0,write-tracking=igb",
                                            dev);
    g_autofree char *incoming = g_strdup_printf("%s -incoming file:%s -S",
                                                args, stream);
    unsigned cancels = tracked_random(3);
    TrackedVM src, dst;
    Driver driver;

    fake_vfio("");
    tracked_vm_start(&src, QPCI_DEVFN(6, 0), args);
    tracked_vm_fill(&src);
    driver_start(&driver, &src);
    for (unsigned i = 0; i <= cancels; i++) {
        tracked_vm_migrate(&src, stream);
        walker_steps(&driver);
        if (tracked_random(2)) {
            tracked_vm_wait_first_pass(&src);
            walker_steps(&driver);
        }
        if (i == cancels || tracked_random(2)) {
            tracked_vm_wait_switchover(&src);
            walker_steps(&driver);
        }
        if (i < cancels) {
            cancel(&src);
            tracked_vm_wait(&src, "cancelled");
            qobject_unref(tracking_info_ended(&src));
            walker_steps(&driver);
        }
    }
    tracked_vm_finish(&src);
    g_test_message("walker, cancelled %u times: completed", cancels);

    tracked_vm_start(&dst, 0, incoming);
    tracked_vm_wait(&dst, "completed");
    set_pam(&src, 0x33);
    set_pam(&dst, 0x33);
    g_assert_cmphex(qtest_readb(src.qts, 0xd0000), ==,
                    qtest_readb(dst.qts, 0xd0000));
    g_assert_cmpint(tracked_vm_differences(&src, &dst, dir), ==, 0);
    tracked_vm_stop(&dst);
    tracked_vm_stop(&src);
    real_vfio();
}

typedef struct LateFault {
    enum { LATE_CANCEL, LATE_BREAK, LATE_STOP, LATE_NOTHING, LATE_FAULTS } kind;
    bool lets_go;               /* the guest, when it was asked */
    bool asked, gone;
} LateFault;

/* A guest that lets go does so when it is asked, or some time later. */
static void late_guest(Pair *p, LateFault *f)
{
    QDict *event = qtest_qmp_event_ref(p->vm.qts, "UNPLUG_PRIMARY");

    f->asked |= !!event;
    qobject_unref(event);
    if (f->asked && f->lets_go && !f->gone && tracked_random(2)) {
        eject(p);
        f->gone = true;
    }
}

static void late_fault(Pair *p, LateFault *f, Sink *sink)
{
    switch (f->kind) {
    case LATE_CANCEL:
        cancel(&p->vm);
        break;
    case LATE_BREAK:
        sink_break(sink);
        break;
    case LATE_STOP:
        set_running(p, false);
        g_usleep(tracked_random(700 * 1000));
        /* refused if all has been sent meanwhile */
        qobject_unref(qtest_qmp(p->vm.qts, "{ 'execute': 'cont' }"));
        break;
    default:
        break;
    }
}

/* Push it to its end; returns true if it completed. */
static bool late_end(Pair *p, LateFault *f, char **why)
{
    bool completed;

    tracked_vm_hurry(&p->vm);
    for (int i = 0; i < 6000; i++) {
        late_guest(p, f);
        if (tracked_vm_push_once(&p->vm, &completed, why)) {
            return completed;
        }
        g_usleep(10 * 1000);
    }
    g_error("the migration did not end");
}

/* What ends without success leaves a device that works, and can be repeated. */
static void late_again(Pair *p, LateFault *f)
{
    for (int i = 0; i < 20; i++) {
        late_guest(p, f);       /* it was asked just before the end */
    }
    qobject_unref(tracking_info_ended(&p->vm));
    assert_run_state(p, "running");
    if (f->gone) {
        assert_replugged(p);
    } else {
        g_assert_true(is_master(&p->vm));
        assert_plugged(p);
    }
    complete_and_compare(p);
}

static void late_completed(Pair *p, LateFault *f)
{
    g_autofree char *incoming = g_strdup_printf("%s -incoming file:%s -S",
                                                p->base, stream);
    TrackedVM dst;

    g_assert_cmpint(f->kind, >=, LATE_STOP);
    /* never with the device plugged */
    g_assert_true(f->gone);
    g_assert_cmpint(tracked_vm_command(&p->vm, TESTDEV_CMD_RECEIVE, 0, 1, 0),
                    ==, -EPERM);
    tracked_vm_start(&dst, 0, incoming);
    tracked_vm_wait(&dst, "completed");
    g_assert_cmpint(tracked_vm_differences(&p->vm, &dst, dir), ==, 0);
    tracked_vm_stop(&dst);
}

/* One fault, before or after the guest of a failover pair was asked. */
static void late_round(void)
{
    g_autofree char *path = g_strdup_printf("%s/sink", dir);
    g_autofree char *uri = g_strdup_printf("unix:%s", path);
    g_autofree char *why = NULL;
    LateFault f = { .kind = tracked_random(LATE_FAULTS),
                    .lets_go = tracked_random(4) };
    bool completed;
    Sink sink;
    Pair p;

    if (f.kind == LATE_BREAK) {
        sink_start(&sink, path);
        pair_uri = uri;
    }
    pair_start(&p, f.lets_go ? 120000 : 5000);
    pair_uri = NULL;
    if (tracked_random(2)) {
        wait_request(&p);
        f.asked = true;
        driver_traffic(&p.driver, tracked_random(3));
        late_guest(&p, &f);
    } else {
        g_usleep(tracked_random(tracked_random(2) ? 20 * 1000 : 800 * 1000));
    }
    late_fault(&p, &f, &sink);
    completed = late_end(&p, &f, &why);
    g_test_message("late, fault %d, the guest was %s and %s: %s", f.kind,
                   f.asked ? "asked" : "not asked",
                   f.gone ? "has let go" : "has not let go",
                   completed ? "completed" : why);
    if (completed) {
        late_completed(&p, &f);
    } else {
        late_again(&p, &f);
    }
    pair_stop(&p);
}

static void test_faults(void)
{
    unsigned rounds = tracked_fault_rounds(4);

    for (unsigned i = 0; i < rounds; i++) {
        g_test_message("round %u of %u", i + 1, rounds);
        if (i % 2) {
            late_round();
        } else {
            walker_round();
        }
    }
}

int main(int argc, char **argv)
{
    int ret;

    g_test_init(&argc, &argv, NULL);
    tracked_init_random();
    dir = g_dir_make_tmp("vfio-tracking-XXXXXX", NULL);
    g_assert_nonnull(dir);
    stream = g_strdup_printf("%s/stream", dir);

    qtest_add_func("/vfio-tracking/type1", test_type1);
    qtest_add_func("/vfio-tracking/device-log", test_device_log);
    qtest_add_func("/vfio-tracking/nothing", test_nothing);
    qtest_add_func("/vfio-tracking/beside-primary", test_beside_primary);
    qtest_add_data_func("/vfio-tracking/walker/igb", "igb", test_walker);
    qtest_add_data_func("/vfio-tracking/walker/auto", "auto", test_walker);
    qtest_add_func("/vfio-tracking/walker/region", test_walker_region);
    qtest_add_func("/vfio-tracking/walker/region-all", test_walker_region_all);
    qtest_add_func("/vfio-tracking/walker/off", test_walker_off);
    qtest_add_func("/vfio-tracking/walker/hidden", test_walker_hidden);
    qtest_add_func("/vfio-tracking/walker/hidden-back",
                   test_walker_hidden_back);
    qtest_add_data_func("/vfio-tracking/walker/ports", NULL,
                        test_walker_ports);
    qtest_add_data_func("/vfio-tracking/walker/ports-before", "",
                        test_walker_ports);
    qtest_add_func("/vfio-tracking/walker/posted", test_walker_posted);
    qtest_add_func("/vfio-tracking/walker/superfluous",
                   test_walker_superfluous);
    qtest_add_func("/vfio-tracking/walker/errors", test_walker_errors);
    qtest_add_func("/vfio-tracking/walker/unknown", test_walker_unknown);
    qtest_add_func("/vfio-tracking/walker/snapshot", test_walker_snapshot);
    qtest_add_func("/vfio-tracking/verify/slow", test_verify_slow);
    qtest_add_func("/vfio-tracking/late/unplug", test_late);
    qtest_add_func("/vfio-tracking/late/untracked", test_late_untracked);
    qtest_add_func("/vfio-tracking/late/retry", test_late_retry);
    qtest_add_func("/vfio-tracking/late/failed-cancel",
                   test_late_failed_cancel);
    qtest_add_func("/vfio-tracking/late/passes", test_late_passes);
    qtest_add_func("/vfio-tracking/late/auto-converge",
                   test_late_auto_converge);
    qtest_add_func("/vfio-tracking/late/timeout", test_late_timeout);
    qtest_add_func("/vfio-tracking/late/native", test_late_native);
    qtest_add_func("/vfio-tracking/late/refused", test_late_refused);
    qtest_add_data_func("/vfio-tracking/late/background", "late",
                        test_background);
    qtest_add_data_func("/vfio-tracking/early/background", "early",
                        test_background);
    qtest_add_func("/vfio-tracking/late/background-fails",
                   test_late_background_fails);
    qtest_add_func("/vfio-tracking/late/paused", test_late_paused);
    qtest_add_func("/vfio-tracking/late/cancel", test_late_cancel);
    qtest_add_data_func("/vfio-tracking/late/cancel-timeout", NULL,
                        test_late_cancel_timeout);
    qtest_add_data_func("/vfio-tracking/late/cancel-timeout-stopped", "",
                        test_late_cancel_timeout);
    qtest_add_func("/vfio-tracking/late/cancel-stopped",
                   test_late_cancel_stopped);
    qtest_add_func("/vfio-tracking/late/cancel-ejected",
                   test_late_cancel_ejected);
    qtest_add_func("/vfio-tracking/late/abort", test_late_abort);
    qtest_add_func("/vfio-tracking/late/stop-cont", test_late_stop_cont);
    qtest_add_func("/vfio-tracking/late/stop-timeout", test_late_stop_timeout);
    qtest_add_data_func("/vfio-tracking/late/break", "", test_late_break);
    qtest_add_data_func("/vfio-tracking/late/break-stays", NULL,
                        test_late_break);
    qtest_add_func("/vfio-tracking/late/deleted", test_late_deleted);
    qtest_add_data_func("/vfio-tracking/late/deleted-first", NULL,
                        test_late_deleted_first);
    qtest_add_data_func("/vfio-tracking/late/deleted-first-native", "",
                        test_late_deleted_first);
    qtest_add_func("/vfio-tracking/late/deleted-again",
                   test_late_deleted_again);
    qtest_add_data_func("/vfio-tracking/late/deleted-after", "late",
                        test_late_deleted_after);
    qtest_add_data_func("/vfio-tracking/late/deleted-after-early", "early",
                        test_late_deleted_after);
    qtest_add_func("/vfio-tracking/late/stuck", test_late_stuck);
    qtest_add_func("/vfio-tracking/faults", test_faults);

    ret = g_test_run();

    g_unlink(stream);
    g_free(stream);
    {
        g_autofree char *rm = g_strdup_printf("rm -rf '%s'", dir);

        g_assert(!system(rm));
    }
    g_free(dir);
    return ret;
}

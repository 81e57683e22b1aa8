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
#include "libqtest.h"
#include "libqos/malloc-pc.h"
#include "libqos/pci-pc.h"
#include "libqos/virtio-pci.h"
#include "qobject/qdict.h"
#include "standard-headers/linux/virtio_config.h"
#include "vfio-tracking-util.h"

#define VIRTIO_NET_F_STANDBY    62
#define ACPI_PCIHP_ADDR_ICH9    0x0cc0
#define PCI_EJ_BASE             0x0008

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

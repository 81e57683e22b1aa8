/*
 * QTest: migration with a vfio-user device
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The peer is vfio-user-testdev, a server on top of libvfio-user.
 */

#include "qemu/osdep.h"
#include <glib/gstdio.h>
#include <sys/wait.h>
#include "libqtest.h"
#include "qobject/qdict.h"
#include "vfio-tracking-util.h"

#define ACPI_PCIHP_ADDR_ICH9    0x0cc0
#define PCI_EJ_BASE             0x0008
#define SERVER_START_S          20

typedef struct Server {
    char *path;
    GPid pid;
} Server;

static char *dir;

static void server_start(Server *s, const char *name, const char *option)
{
    g_autofree char *self = g_file_read_link("/proc/self/exe", NULL);
    g_autofree char *bin = g_path_get_dirname(self);
    g_autofree char *prog = g_strdup_printf("%s/vfio-user-testdev", bin);
    char *argv[] = { prog, NULL, (char *)option, NULL };
    GError *err = NULL;

    s->path = g_strdup_printf("%s/%s", dir, name);
    argv[1] = s->path;
    g_unlink(s->path);
    g_spawn_async(NULL, argv, NULL, G_SPAWN_DO_NOT_REAP_CHILD, NULL, NULL,
                  &s->pid, &err);
    g_assert_no_error(err);
    for (int i = 0; access(s->path, F_OK); i++) {
        g_assert_cmpint(i, <, SERVER_START_S * 100);
        g_usleep(10 * 1000);
    }
}

static void server_stop(Server *s)
{
    kill(s->pid, SIGKILL);
    waitpid(s->pid, NULL, 0);
    g_unlink(s->path);
    g_free(s->path);
}

static char *device(Server *s, const char *addr, const char *properties)
{
    return g_strdup_printf(
        "-device '{\"driver\":\"vfio-user-pci\",\"addr\":\"%s\",\"id\":\"dev\","
        "\"socket\":{\"path\":\"%s\",\"type\":\"unix\"}%s}'",
        addr, s->path, properties);
}

static void assert_migrate_refused(TrackedVM *vm, const char *why)
{
    QDict *rsp = qtest_qmp(vm->qts,
                           "{ 'execute': 'migrate', 'arguments': {"
                           "  'uri': 'exec:cat >/dev/null' } }");
    QDict *error = qdict_get_qdict(rsp, "error");
    const char *desc = error ? qdict_get_str(error, "desc") : "(no error)";

    if (!strstr(desc, why)) {
        g_error("\"%s\" is not in \"%s\"", why, desc);
    }
    qobject_unref(rsp);
}

/* The server's state would stay behind, and what it writes would be lost. */
static void test_blocked(gconstpointer option)
{
    g_autofree char *args = NULL;
    Server server;
    TrackedVM vm;

    server_start(&server, "a.sock", option);
    args = device(&server, "6.0", "");
    tracked_vm_start(&vm, QPCI_DEVFN(6, 0), args);
    g_assert_cmpint(tracked_vm_command(&vm, TESTDEV_CMD_DMA, VM_DMA_START,
                                       VM_PAGE, 0x5a), ==, 0);
    g_assert_cmphex(qtest_readb(vm.qts, VM_DMA_START), ==, 0x5a);
    assert_migrate_refused(&vm, "does not migrate its state");
    tracked_vm_stop(&vm);
    server_stop(&server);
}

static void test_unplugged(void)
{
    g_autofree char *dev = NULL;
    g_autofree char *args = NULL;
    Server server;
    TrackedVM vm;

    server_start(&server, "a.sock", NULL);
    dev = device(&server, "0.0", ",\"bus\":\"rp0\"");
    args = g_strdup_printf("-device pcie-root-port,id=rp0,chassis=1 %s", dev);
    tracked_vm_start(&vm, 0, args);
    assert_migrate_refused(&vm, "does not migrate its state");

    qtest_qmp_device_del_send(vm.qts, "dev");
    /* the guest lets go */
    qtest_outl(vm.qts, ACPI_PCIHP_ADDR_ICH9 + PCI_EJ_BASE, 1);
    qtest_qmp_eventwait(vm.qts, "DEVICE_DELETED");
    qtest_qmp_assert_success(vm.qts,
        "{ 'execute': 'migrate', 'arguments': {"
        "  'uri': 'exec:cat >/dev/null' } }");
    tracked_vm_wait(&vm, "completed");
    tracked_vm_stop(&vm);
    server_stop(&server);
}

int main(int argc, char **argv)
{
    int ret;

    g_test_init(&argc, &argv, NULL);
    tracked_init_random();
    dir = g_dir_make_tmp("vfio-user-XXXXXX", NULL);
    g_assert_nonnull(dir);

    qtest_add_data_func("/vfio-user-tracking/blocked", NULL, test_blocked);
    qtest_add_data_func("/vfio-user-tracking/blocked-tracker", "track",
                        test_blocked);
    qtest_add_func("/vfio-user-tracking/unplugged", test_unplugged);

    ret = g_test_run();
    g_rmdir(dir);
    g_free(dir);
    return ret;
}

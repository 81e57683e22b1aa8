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
#include "hw/pci/pci_regs.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"
#include "vfio-tracking-util.h"

#define ACPI_PCIHP_ADDR_ICH9    0x0cc0
#define PCI_EJ_BASE             0x0008
#define SERVER_START_S          20
#define DEATHS                  6

typedef struct Server {
    char *path;
    GPid pid;
} Server;

static char *dir;
static bool lose;               /* servers do not tell what they write */
static const char *program = "vfio-user-testdev";

static void server_start(Server *s, const char *name, const char *option)
{
    g_autofree char *self = g_file_read_link("/proc/self/exe", NULL);
    g_autofree char *bin = g_path_get_dirname(self);
    g_autofree char *prog = g_strdup_printf("%s/%s", bin, program);
    char *argv[] = { prog, NULL, (char *)option, NULL, NULL };
    GError *err = NULL;

    s->path = g_strdup_printf("%s/%s", dir, name);
    argv[1] = s->path;
    if (lose) {
        argv[3] = (char *)"lose";
    }
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

/* The command is taken, and the migration fails. */
static void assert_migrate_fails(TrackedVM *vm, const char *why)
{
    g_autofree char *desc = NULL;
    QDict *rsp = qtest_qmp(vm->qts,
                           "{ 'execute': 'migrate', 'arguments': {"
                           "  'uri': 'exec:cat >/dev/null' } }");

    qobject_unref(rsp);
    desc = tracked_vm_wait_failed(vm);
    if (!strstr(desc, why)) {
        g_error("\"%s\" is not in \"%s\"", why, desc);
    }
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
    program = "vfio-user-testdev";
}

/* -------------------------------------------------------------- tracked */

#define TRACKED ",\"enable-migration\":\"on\""

static const char *properties = TRACKED;

typedef struct Pair {
    Server src_server, dst_server;
    TrackedVM src, dst;
    char *stream;
} Pair;

static void pair_start(Pair *p, const char *option)
{
    g_autofree char *args = NULL;

    p->stream = g_strdup_printf("%s/stream", dir);
    server_start(&p->src_server, "src.sock", option);
    args = device(&p->src_server, "6.0", properties);
    tracked_vm_start(&p->src, QPCI_DEVFN(6, 0), args);
}

static void pair_arrive(Pair *p)
{
    g_autofree char *dev = NULL;
    g_autofree char *args = NULL;

    server_start(&p->dst_server, "dst.sock",
                 !strcmp(program, "vfio-user-testdev") ? "track" : "log");
    dev = device(&p->dst_server, "6.0", properties);
    args = g_strdup_printf("%s -incoming file:%s -S", dev, p->stream);
    tracked_vm_start(&p->dst, 0, args);
    tracked_vm_wait(&p->dst, "completed");
}

static void pair_stop(Pair *p)
{
    tracked_vm_stop(&p->src);
    tracked_vm_stop(&p->dst);
    server_stop(&p->src_server);
    server_stop(&p->dst_server);
    g_unlink(p->stream);
    g_free(p->stream);
}

/* Up to the end of the stream. */
static void migrate_source(Pair *p, const char *option)
{
    pair_start(p, option);
    tracked_vm_fill(&p->src);
    tracked_vm_migrate(&p->src, p->stream);
    tracked_vm_scribble(&p->src, TESTDEV_CMD_DMA, 50);
    tracked_vm_wait_first_pass(&p->src);
    tracked_vm_scribble(&p->src, TESTDEV_CMD_DMA, 50);
    tracked_vm_wait_switchover(&p->src);
    tracked_vm_scribble(&p->src, TESTDEV_CMD_DMA, 50);
    tracked_vm_finish(&p->src);
}

static unsigned migrate(Pair *p, const char *option)
{
    migrate_source(p, option);
    pair_arrive(p);
    return tracked_vm_differences(&p->src, &p->dst, dir);
}

/* ---------------------------------------------------------- proof mode */

#define VERIFY  TRACKED ",\"write-tracking-verify\":true"

/* Load a stream that is not to be loaded; returns the reason. */
static char *pair_arrive_failing(Pair *p)
{
    g_autofree char *dev = NULL;
    g_autofree char *args = NULL;
    g_autofree char *uri = g_strdup_printf("file:%s", p->stream);

    server_start(&p->dst_server, "dst.sock", "track");
    dev = device(&p->dst_server, "6.0", properties);
    args = g_strdup_printf("%s -incoming defer -S", dev);
    tracked_vm_start(&p->dst, 0, args);
    qtest_qmp_assert_success(p->dst.qts,
        "{ 'execute': 'migrate-incoming', 'arguments': {"
        "  'uri': %s, 'exit-on-error': false } }", uri);
    return tracked_vm_wait_failed(&p->dst);
}

static int64_t verify_stat(TrackedVM *vm, const char *name)
{
    int64_t value = -1;
    QDict *rsp = qtest_qmp(vm->qts, "{ 'execute': 'query-stats', 'arguments': {"
                                    "  'target': 'vm' } }");
    QDict *provider;
    const QListEntry *e;

    provider = qobject_to(QDict, qlist_peek(qdict_get_qlist(rsp, "return")));
    QLIST_FOREACH_ENTRY(qdict_get_qlist(provider, "stats"), e) {
        QDict *stat = qobject_to(QDict, qlist_entry_obj(e));

        if (!strcmp(qdict_get_str(stat, "name"), name)) {
            value = qdict_get_int(stat, "value");
        }
    }
    qobject_unref(rsp);
    return value;
}

static void test_verify(void)
{
    unsigned missed;
    Pair p;

    properties = VERIFY;
    missed = migrate(&p, "track");
    g_assert_cmpint(missed, ==, 0);
    g_assert_cmpint(verify_stat(&p.src, "write-verify-missed-pages"), ==, 0);
    g_assert_cmpint(verify_stat(&p.src, "write-verify-time-ns"), >, 0);
    pair_stop(&p);
    properties = TRACKED;
}

/* A server that does not tell what it writes is found out, at both ends. */
static void test_verify_faulty(void)
{
    g_autofree char *why = NULL;
    QDict *event, *data;
    Pair p;

    properties = VERIFY;
    lose = true;
    migrate_source(&p, "track");
    lose = false;
    event = qtest_qmp_eventwait_ref(p.src.qts, "WRITE_TRACKING_MISSED");
    data = qdict_get_qdict(event, "data");
    g_assert_cmpstr(qdict_get_str(data, "block"), ==, "ram");
    g_assert_cmpint(qdict_get_int(data, "offset"), >=, VM_DMA_START);
    g_assert_cmpint(qdict_get_int(data, "offset"), <, VM_DMA_END);
    g_assert_cmpint(qdict_get_int(data, "pages"), >, 0);
    g_assert_cmpint(qdict_get_int(data, "round"), >, 1);
    qobject_unref(event);
    g_assert_cmpint(verify_stat(&p.src, "write-verify-missed-pages"), >, 0);

    why = pair_arrive_failing(&p);
    g_test_message("%s", why);
    g_assert_nonnull(strstr(why, "pages differ from the source"));
    pair_stop(&p);
    properties = TRACKED;
}

static bool is_master(TrackedVM *vm)
{
    return qpci_config_readw(vm->dev, PCI_COMMAND) & PCI_COMMAND_MASTER;
}

/*
 * The server reaches memory by itself, not by way of QEMU's page tables: it
 * would read pages that have not arrived, or write such as are saved later.
 */
static void test_capability_refused(gconstpointer capability)
{
    Pair p;

    pair_start(&p, "track");
    if (tracked_vm_capability_or_skip(&p.src, capability)) {
        g_autofree char *why = g_strdup_printf(
            "a vfio-user server does not work with the capability %s",
            (const char *)capability);

        assert_migrate_fails(&p.src, why);
        g_assert_true(is_master(&p.src));
        /* the VM goes on, and can be migrated without it */
        tracked_vm_wait_idle(&p.src);
        qtest_qmp_assert_success(p.src.qts,
            "{ 'execute': 'migrate-set-capabilities', 'arguments': {"
            "  'capabilities': [ { 'capability': %s, 'state': false } ] } }",
            (const char *)capability);
        qtest_qmp_assert_success(p.src.qts,
            "{ 'execute': 'migrate', 'arguments': {"
            "  'uri': 'exec:cat >/dev/null' } }");
        tracked_vm_wait(&p.src, "completed");
    }
    tracked_vm_stop(&p.src);
    server_stop(&p.src_server);
    g_free(p.stream);
}

/* There is no time when all of RAM is at one end. */
static void test_verify_postcopy(void)
{
    Pair p;

    properties = VERIFY;
    pair_start(&p, "track");
    qtest_qmp_assert_success(p.src.qts,
        "{ 'execute': 'migrate-set-capabilities', 'arguments': {"
        "  'capabilities': [ { 'capability': 'postcopy-ram',"
        "                      'state': true } ] } }");
    assert_migrate_fails(&p.src, "write-tracking-verify=on does not work with"
                                 " the capability postcopy-ram");
    tracked_vm_stop(&p.src);
    server_stop(&p.src_server);
    g_free(p.stream);
    properties = TRACKED;
}

/* Bits are fetched by others as well: only what arrives is looked at. */
static void test_verify_auto_converge(void)
{
    g_autofree char *why = NULL;
    Pair p;

    properties = VERIFY;
    lose = true;
    pair_start(&p, "track");
    lose = false;
    qtest_qmp_assert_success(p.src.qts,
        "{ 'execute': 'migrate-set-capabilities', 'arguments': {"
        "  'capabilities': [ { 'capability': 'auto-converge',"
        "                      'state': true } ] } }");
    tracked_vm_fill(&p.src);
    tracked_vm_migrate(&p.src, p.stream);
    tracked_vm_wait_first_pass(&p.src);
    tracked_vm_scribble(&p.src, TESTDEV_CMD_DMA, 50);
    tracked_vm_wait_switchover(&p.src);
    tracked_vm_finish(&p.src);
    g_assert_cmpint(verify_stat(&p.src, "write-verify-time-ns"), ==, 0);
    why = pair_arrive_failing(&p);
    g_assert_nonnull(strstr(why, "pages differ from the source"));
    pair_stop(&p);
    properties = TRACKED;
}

static void test_tracked(void)
{
    QDict *rsp, *info;
    unsigned missed;
    Pair p;

    missed = migrate(&p, "track");
    g_test_message("pages missed: %u", missed);
    g_assert_cmpint(missed, ==, 0);

    rsp = qtest_qmp(p.src.qts, "{ 'execute': 'query-write-tracking' }");
    info = qobject_to(QDict, qlist_peek(qdict_get_qlist(rsp, "return")));
    g_assert_cmpstr(qdict_get_str(info, "source"), ==, "vfio-user");
    g_assert_cmpint(qdict_get_int(info, "syncs"), >=, 2);
    g_assert_cmpint(qdict_get_int(info, "marked-pages"), >, 100);
    /* 150 writes of at most 4 pages: the rest of memory is not marked */
    g_assert_cmpint(qdict_get_int(info, "marked-pages"), <=, 600);
    qobject_unref(rsp);

    /* for the last sync the device was made quiet */
    g_assert_cmphex(qpci_config_readw(p.src.dev, PCI_COMMAND), ==,
                    PCI_COMMAND_IO | PCI_COMMAND_MEMORY);

    /* what QEMU keeps of the device arrived as well */
    p.dst.dev = qpci_device_find(p.dst.bus, QPCI_DEVFN(6, 0));
    p.dst.bar = p.src.bar;
    g_assert_cmphex(qpci_config_readw(p.dst.dev, PCI_COMMAND), ==,
                    PCI_COMMAND_IO | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
    g_assert_cmphex(qpci_config_readl(p.dst.dev, PCI_BASE_ADDRESS_0), ==,
                    qpci_config_readl(p.src.dev, PCI_BASE_ADDRESS_0));
    g_assert_cmpint(tracked_vm_command(&p.dst, TESTDEV_CMD_DMA, VM_DMA_START,
                                       VM_PAGE, 0x3c), ==, 0);
    g_assert_cmphex(qtest_readb(p.dst.qts, VM_DMA_START), ==, 0x3c);
    pair_stop(&p);
}

/* Given up before the switchover: the device goes on, and it can be repeated */
static void test_cancelled(void)
{
    unsigned missed;
    Pair p;

    pair_start(&p, "track");
    tracked_vm_fill(&p.src);
    tracked_vm_migrate(&p.src, p.stream);
    g_assert_true(is_master(&p.src));
    tracked_vm_wait_switchover(&p.src);
    g_assert_false(is_master(&p.src));
    qtest_qmp_assert_success(p.src.qts, "{ 'execute': 'migrate_cancel' }");
    tracked_vm_wait(&p.src, "cancelled");
    qtest_qmp_eventwait(p.src.qts, "RESUME");
    g_assert_true(is_master(&p.src));

    tracked_vm_scribble(&p.src, TESTDEV_CMD_DMA, 20);
    tracked_vm_migrate(&p.src, p.stream);
    tracked_vm_scribble(&p.src, TESTDEV_CMD_DMA, 20);
    tracked_vm_wait_switchover(&p.src);
    tracked_vm_finish(&p.src);
    pair_arrive(&p);
    missed = tracked_vm_differences(&p.src, &p.dst, dir);
    g_test_message("pages missed: %u", missed);
    g_assert_cmpint(missed, ==, 0);
    pair_stop(&p);
}

static void set_running(TrackedVM *vm, bool running)
{
    if (running) {
        qtest_qmp_assert_success(vm->qts, "{ 'execute': 'cont' }");
    } else {
        qtest_qmp_assert_success(vm->qts, "{ 'execute': 'stop' }");
    }
}

/* A VM that was paused before does not stop once more, but its device does. */
static void test_paused(void)
{
    Pair p;

    pair_start(&p, "track");
    tracked_vm_fill(&p.src);
    set_running(&p.src, false);
    tracked_vm_migrate(&p.src, p.stream);
    tracked_vm_wait_switchover(&p.src);
    g_assert_false(is_master(&p.src));
    qtest_qmp_assert_success(p.src.qts, "{ 'execute': 'migrate_cancel' }");
    tracked_vm_wait(&p.src, "cancelled");
    set_running(&p.src, true);
    g_assert_true(is_master(&p.src));

    /* continued while memory is sent: it writes again, and is asked again */
    set_running(&p.src, false);
    tracked_vm_migrate(&p.src, p.stream);
    set_running(&p.src, true);
    tracked_vm_scribble(&p.src, TESTDEV_CMD_DMA, 20);
    set_running(&p.src, false);
    tracked_vm_wait_switchover(&p.src);
    tracked_vm_finish(&p.src);
    g_assert_false(is_master(&p.src));
    pair_arrive(&p);
    g_assert_cmpint(tracked_vm_differences(&p.src, &p.dst, dir), ==, 0);
    pair_stop(&p);
}

/* A device that was reset does not get back what its guest has not enabled. */
static void test_reset(void)
{
    Pair p;

    pair_start(&p, "track");
    tracked_vm_fill(&p.src);
    tracked_vm_migrate(&p.src, p.stream);
    tracked_vm_scribble(&p.src, TESTDEV_CMD_DMA, 5);
    tracked_vm_wait_switchover(&p.src);
    g_assert_false(is_master(&p.src));
    qtest_qmp_assert_success(p.src.qts, "{ 'execute': 'system_reset' }");
    qtest_qmp_eventwait(p.src.qts, "RESET");
    qtest_qmp_assert_success(p.src.qts, "{ 'execute': 'migrate_cancel' }");
    tracked_vm_wait(&p.src, "cancelled");
    qtest_qmp_eventwait(p.src.qts, "RESUME");
    g_assert_false(is_master(&p.src));
    tracked_vm_stop(&p.src);
    server_stop(&p.src_server);
    g_unlink(p.stream);
    g_free(p.stream);
}

/* A snapshot: memory is as it was, also of a VM that is paused before. */
static void test_snapshot(void)
{
    g_autofree char *before = NULL, *after = NULL, *why = NULL;
    g_autofree char *disk = g_strdup_printf("%s/snapshots.qcow2", dir);
    Pair p;

    properties = VERIFY;
    pair_start(&p, "track");
    tracked_vm_add_snapshot_disk(&p.src, dir);
    tracked_vm_fill(&p.src);
    tracked_vm_scribble(&p.src, TESTDEV_CMD_DMA, 20);
    before = tracked_vm_ram(&p.src, dir);
    why = tracked_vm_snapshot(&p.src, "snapshot-save", "one");
    g_assert_cmpstr(why, ==, NULL);
    g_assert_true(is_master(&p.src));
    tracked_vm_scribble(&p.src, TESTDEV_CMD_DMA, 20);

    set_running(&p.src, false);
    g_assert_true(is_master(&p.src));
    why = tracked_vm_snapshot(&p.src, "snapshot-load", "one");
    g_assert_cmpstr(why, ==, NULL);
    after = tracked_vm_ram(&p.src, dir);
    g_assert_cmpint(memcmp(before, after, VM_DMA_END - VM_DMA_START), ==, 0);
    why = tracked_vm_snapshot(&p.src, "snapshot-save", "two");
    g_assert_cmpstr(why, ==, NULL);
    g_assert_false(is_master(&p.src));
    set_running(&p.src, true);
    g_assert_true(is_master(&p.src));
    tracked_vm_scribble(&p.src, TESTDEV_CMD_DMA, 3);
    tracked_vm_stop(&p.src);
    server_stop(&p.src_server);
    g_unlink(disk);
    g_free(p.stream);
    properties = TRACKED;
}

/* One that is not to be migrated: the snapshot is refused, and says why. */
static void test_snapshot_refused(void)
{
    g_autofree char *args = NULL, *why = NULL;
    g_autofree char *disk = g_strdup_printf("%s/snapshots.qcow2", dir);
    Server server;
    TrackedVM vm;

    server_start(&server, "a.sock", "track");
    args = device(&server, "6.0", "");
    tracked_vm_start(&vm, QPCI_DEVFN(6, 0), args);
    tracked_vm_add_snapshot_disk(&vm, dir);
    why = tracked_vm_snapshot(&vm, "snapshot-save", "one");
    g_assert_nonnull(why);
    g_assert_nonnull(strstr(why, "does not migrate its state"));
    g_assert_true(is_master(&vm));
    tracked_vm_stop(&vm);
    server_stop(&server);
    g_unlink(disk);
}

/* The test would notice: this server does not tell what it writes. */
static void test_faulty_server(void)
{
    unsigned missed;
    Pair p;

    lose = true;
    missed = migrate(&p, "track");
    lose = false;
    g_test_message("pages missed: %u", missed);
    g_assert_cmpint(missed, >, 100);
    pair_stop(&p);
}

static void set_pam(TrackedVM *vm, uint8_t val)
{
    QPCIDevice *mch = qpci_device_find(vm->bus, QPCI_DEVFN(0, 0));

    qpci_config_writeb(mch, 0x93, val);     /* 0xd0000 to 0xd7fff */
    g_free(mch);
}

/* A region that goes takes along what was written into it last. */
static void test_region_removed(void)
{
    Pair p;

    pair_start(&p, "track");
    set_pam(&p.src, 0x33);
    tracked_vm_fill(&p.src);
    g_assert_cmpint(tracked_vm_command(&p.src, TESTDEV_CMD_DMA, 0xd0000,
                                       VM_PAGE, 0x41), ==, 0);
    tracked_vm_migrate(&p.src, p.stream);
    tracked_vm_wait_first_pass(&p.src);
    g_assert_cmpint(tracked_vm_command(&p.src, TESTDEV_CMD_DMA, 0xd0000,
                                       VM_PAGE, 0x42), ==, 0);
    set_pam(&p.src, 0);
    /* and one that comes is tracked */
    set_pam(&p.src, 0x33);
    g_assert_cmpint(tracked_vm_command(&p.src, TESTDEV_CMD_DMA, 0xd1000,
                                       VM_PAGE, 0x43), ==, 0);
    tracked_vm_wait_switchover(&p.src);
    tracked_vm_finish(&p.src);
    pair_arrive(&p);
    g_assert_cmphex(qtest_readb(p.dst.qts, 0xd0000), ==, 0x42);
    g_assert_cmphex(qtest_readb(p.dst.qts, 0xd1000), ==, 0x43);
    pair_stop(&p);
}

static void test_no_tracker(void)
{
    g_autofree char *path = NULL;
    Server server;
    TrackedVM vm;
    QDict *rsp;
    const char *desc;

    server_start(&server, "a.sock", NULL);
    tracked_vm_start(&vm, 0, "-device pcie-root-port,id=rp0,chassis=1");
    rsp = qtest_qmp(vm.qts,
        "{ 'execute': 'device_add', 'arguments': { 'bus': 'rp0', 'id': 'dev',"
        "  'driver': 'vfio-user-pci', 'enable-migration': 'on',"
        "  'socket': { 'type': 'unix', 'path': %s } } }", server.path);
    g_assert_true(qdict_haskey(rsp, "error"));
    desc = qdict_get_str(qdict_get_qdict(rsp, "error"), "desc");
    g_assert_nonnull(strstr(desc, "enable-migration=on needs a server that"
                                  " tracks what it writes"));
    qobject_unref(rsp);
    tracked_vm_stop(&vm);
    server_stop(&server);
}

/* What cannot be asked must not count as clean. */
static void test_server_dies(void)
{
    g_autofree char *why = NULL;
    Pair p;

    pair_start(&p, "track");
    tracked_vm_fill(&p.src);
    tracked_vm_migrate(&p.src, p.stream);
    tracked_vm_wait_switchover(&p.src);
    kill(p.src_server.pid, SIGKILL);
    qtest_qmp_assert_success(p.src.qts,
        "{ 'execute': 'migrate-continue', 'arguments': {"
        "  'state': 'pre-switchover' } }");
    why = tracked_vm_wait_failed(&p.src);
    g_test_message("%s", why);
    g_assert_nonnull(strstr(why, "cannot say what the device has written"));
    tracked_vm_stop(&p.src);
    server_stop(&p.src_server);
    g_unlink(p.stream);
    g_free(p.stream);
}

/* What the server is not told of any more. */
typedef struct RegionDeath {
    bool before;        /* the region is there before the server's death */
    bool switchover;    /* when nobody asks before the end; else at any time */
} RegionDeath;

/*
 * The server dies, and memory comes or goes before anyone knows: the migration
 * fails, and the guest goes on without its device.
 */
static void test_server_dies_region(gconstpointer opaque)
{
    const RegionDeath *c = opaque;
    g_autofree char *why = NULL;
    QDict *rsp;
    Pair p;

    pair_start(&p, "track");
    set_pam(&p.src, c->before ? 0x33 : 0);
    tracked_vm_fill(&p.src);
    tracked_vm_migrate(&p.src, p.stream);
    tracked_vm_wait_first_pass(&p.src);
    if (c->switchover) {
        tracked_vm_wait_switchover(&p.src);
    }
    kill(p.src_server.pid, SIGKILL);
    set_pam(&p.src, c->before ? 0 : 0x33);
    why = tracked_vm_push_to_failure(&p.src);
    g_test_message("%s", why);
    /* whichever is needed first; at the switchover the latter was */
    g_assert_true(strstr(why, "cannot say what the device has written") ||
                  (!c->switchover &&
                   strstr(why, "bus mastering cannot be cleared")));

    /* the other way round, with no migration and no server */
    set_pam(&p.src, c->before ? 0x33 : 0);
    set_pam(&p.src, 0x33);
    qtest_writeb(p.src.qts, 0xd0000, 0x44);
    g_assert_cmphex(qtest_readb(p.src.qts, 0xd0000), ==, 0x44);
    rsp = qtest_qmp_assert_success_ref(p.src.qts,
                                       "{ 'execute': 'query-status' }");
    g_assert_true(qdict_get_bool(rsp, "running"));
    qobject_unref(rsp);
    tracked_vm_stop(&p.src);
    server_stop(&p.src_server);
    g_unlink(p.stream);
    g_free(p.stream);
}

/* The same at any time: it fails, and the VM can be asked and ended. */
static void test_server_dies_anywhere(void)
{
    for (int i = 0; i < DEATHS; i++) {
        g_autofree char *why = NULL;
        unsigned us = tracked_random(i % 2 ? 1000 * 1000 : 20 * 1000);
        Pair p;

        pair_start(&p, "track");
        tracked_vm_fill(&p.src);
        tracked_vm_migrate(&p.src, p.stream);
        g_usleep(us);
        kill(p.src_server.pid, SIGKILL);
        why = tracked_vm_push_to_failure(&p.src);
        g_test_message("after %u us: %s", us, why);
        qtest_qmp_assert_success(p.src.qts, "{ 'execute': 'query-status' }");
        tracked_vm_stop(&p.src);
        server_stop(&p.src_server);
        g_unlink(p.stream);
        g_free(p.stream);
    }
}

/* Some time of a migration, in microseconds: often near its begin. */
static unsigned some_time(void)
{
    return tracked_random(tracked_random(2) ? 20 * 1000 : 800 * 1000);
}

/* Memory comes and goes, or not. */
static void maybe_change_regions(TrackedVM *vm)
{
    for (unsigned i = tracked_random(3); i; i--) {
        set_pam(vm, tracked_random(2) ? 0x33 : 0);
    }
}

static void cancel(TrackedVM *vm)
{
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'migrate_cancel' }");
}

static void fault_begin(Pair *p, const char *prog, const char *mode)
{
    program = prog;
    pair_start(p, mode);
    set_pam(&p->src, 0x33);
    tracked_vm_fill(&p->src);
    tracked_vm_migrate(&p->src, p->stream);
}

/* What has completed has lost nothing, and QEMU lives in any case. */
static void fault_end(Pair *p, bool completed)
{
    qtest_qmp_assert_success(p->src.qts, "{ 'execute': 'query-status' }");
    if (completed) {
        pair_arrive(p);
        g_assert_cmpint(tracked_vm_differences(&p->src, &p->dst, dir), ==, 0);
        tracked_vm_stop(&p->dst);
        server_stop(&p->dst_server);
    }
    tracked_vm_stop(&p->src);
    server_stop(&p->src_server);
    g_unlink(p->stream);
    g_free(p->stream);
    program = "vfio-user-testdev";
    properties = TRACKED;
}

/*
 * Fault loop: a server that is killed, or stalled and let go on, at some time
 * of a migration, while memory comes and goes, and somebody may cancel it.
 */
static void fault_round(const char *prog, const char *mode, bool stall)
{
    g_autofree char *why = NULL;
    unsigned us = some_time();
    bool cancels = !tracked_random(4), completed = false;
    Pair p;

    if (tracked_is_long()) {
        /* some stalls are too long */
        properties = TRACKED ",\"x-msg-timeout\":2000";
    }
    fault_begin(&p, prog, mode);
    tracked_vm_scribble(&p.src, TESTDEV_CMD_DMA, tracked_random(10));
    g_usleep(us);
    kill(p.src_server.pid, stall ? SIGSTOP : SIGKILL);
    maybe_change_regions(&p.src);
    if (cancels) {
        cancel(&p.src);
    }
    if (stall) {
        bool soon = tracked_random(2);

        g_usleep(tracked_random(soon ? 50 * 1000 : tracked_is_long()
                                     ? 4000 * 1000 : 600 * 1000));
        kill(p.src_server.pid, SIGCONT);
    }
    why = tracked_vm_push(&p.src, &completed);
    g_test_message("%s %s%s after %u us: %s", prog,
                   stall ? "stalled" : "killed", cancels ? ", cancelled" : "",
                   us, completed ? "completed" : why);
    g_assert_false((!stall || cancels) && completed);
    fault_end(&p, completed);
}

/* Cancelled at some time, and tried again: what was missed first arrives. */
static void cancel_round(const char *prog, const char *mode)
{
    g_autofree char *why = NULL;
    bool completed = false;
    Pair p;

    fault_begin(&p, prog, mode);
    for (unsigned i = 1 + tracked_random(3); i; i--) {
        tracked_vm_scribble(&p.src, TESTDEV_CMD_DMA, tracked_random(10));
        if (tracked_random(3)) {
            g_usleep(some_time());
        } else {
            tracked_vm_wait_switchover(&p.src);
        }
        maybe_change_regions(&p.src);
        cancel(&p.src);
        tracked_vm_wait(&p.src, "cancelled");
        for (int ms = 0; !is_master(&p.src); ms++) {
            g_assert_cmpint(ms, <, 60 * 1000);
            g_usleep(1000);     /* until the VM runs again */
        }
        tracked_vm_scribble(&p.src, TESTDEV_CMD_DMA, tracked_random(10));
        tracked_vm_migrate(&p.src, p.stream);
    }
    tracked_vm_scribble(&p.src, TESTDEV_CMD_DMA, tracked_random(10));
    maybe_change_regions(&p.src);
    why = tracked_vm_push(&p.src, &completed);
    g_test_message("%s cancelled: %s", prog, completed ? "completed" : why);
    g_assert_true(completed);
    fault_end(&p, completed);
}

/* A server that lies from some report on. */
static void lying_round(void)
{
    static const char *const lies[] = {
        "refuse", "other", "short", "long", "mad"
    };
    const char *lie = lies[tracked_random(ARRAY_SIZE(lies))];
    g_autofree char *mode = g_strdup_printf("%s:%u", lie, tracked_random(12));
    g_autofree char *why = NULL;
    bool completed = false;
    Pair p;

    fault_begin(&p, "vfio-user-rawdev", mode);
    why = tracked_vm_push(&p.src, &completed);
    g_test_message("%s: %s", mode, completed ? "completed" : why);
    /* before it lied, or what it said was only too much */
    fault_end(&p, completed);
}

static void test_faults(void)
{
    unsigned rounds = tracked_fault_rounds(7);

    for (unsigned i = 0; i < rounds; i++) {
        bool raw = i % 2;
        const char *prog = raw ? "vfio-user-rawdev" : "vfio-user-testdev";
        const char *mode = raw ? "log" : "track";

        g_test_message("round %u of %u", i + 1, rounds);
        switch (i % 7 / 2) {
        case 0:
            fault_round(prog, mode, false);
            break;
        case 1:
            fault_round(prog, mode, true);
            break;
        case 2:
            cancel_round(prog, mode);
            break;
        default:
            lying_round();
        }
    }
}

/* ---------------------------- DMA logging, by a server without the library */

static void test_logged(gconstpointer opaque)
{
    const char *mode = opaque;
    unsigned missed;
    Pair p;

    program = "vfio-user-rawdev";
    missed = migrate(&p, mode);
    g_test_message("pages missed: %u", missed);
    g_assert_cmpint(missed, ==, 0);
    pair_stop(&p);
    program = "vfio-user-testdev";
}

/* An answer that is not the one that was asked for fails the migration. */
static void test_bad_answer(gconstpointer opaque)
{
    const char *mode = opaque;
    g_autofree char *why = NULL;
    Pair p;

    program = "vfio-user-rawdev";
    pair_start(&p, mode);
    tracked_vm_fill(&p.src);
    tracked_vm_migrate(&p.src, p.stream);
    why = tracked_vm_wait_failed(&p.src);
    g_test_message("%s", why);
    /* at the first sync, which is in the setup, it is but a number */
    g_assert_true(strstr(why, "cannot say what the device has written") ||
                  strstr(why, "Input/output error"));
    /* the VM and its device go on */
    tracked_vm_scribble(&p.src, TESTDEV_CMD_DMA, 3);
    tracked_vm_stop(&p.src);
    server_stop(&p.src_server);
    g_unlink(p.stream);
    g_free(p.stream);
    program = "vfio-user-testdev";
}

/*
 * The server ends, or is stuck, in an answer or before it.  Nobody waits for
 * one that has ended.
 */
static void test_half(gconstpointer opaque)
{
    const char *mode = opaque;
    g_autofree char *why = NULL;
    QDict *rsp;
    Pair p;

    program = "vfio-user-rawdev";
    properties = !strcmp(mode, "half-mute:1")
                 ? TRACKED ",\"x-msg-timeout\":1000"
                 : TRACKED ",\"x-msg-timeout\":1000000";
    pair_start(&p, mode);
    tracked_vm_fill(&p.src);
    tracked_vm_migrate(&p.src, p.stream);
    why = tracked_vm_wait_failed(&p.src);
    g_test_message("%s", why);
    rsp = qtest_qmp_assert_success_ref(p.src.qts,
                                       "{ 'execute': 'query-status' }");
    g_assert_true(qdict_get_bool(rsp, "running"));
    qobject_unref(rsp);
    tracked_vm_stop(&p.src);
    server_stop(&p.src_server);
    g_unlink(p.stream);
    g_free(p.stream);
    program = "vfio-user-testdev";
    properties = TRACKED;
}

/*
 * An answer is not there in time, or only a part of it is, and the rest comes
 * later: the migration fails, and the device goes on.
 */
static void test_late_answer(gconstpointer opaque)
{
    g_autofree char *why = NULL;
    int tries = 0;
    Pair p;

    program = "vfio-user-rawdev";
    properties = TRACKED ",\"x-msg-timeout\":1000";
    pair_start(&p, opaque);
    tracked_vm_fill(&p.src);
    tracked_vm_migrate(&p.src, p.stream);
    why = tracked_vm_wait_failed(&p.src);
    g_test_message("%s", why);
    tracked_vm_wait_idle(&p.src);
    while (tracked_vm_command(&p.src, TESTDEV_CMD_DMA, VM_DMA_START, VM_PAGE,
                              0x43)) {
        g_assert_cmpint(tries++, <, 30);
    }
    g_assert_cmphex(qtest_readb(p.src.qts, VM_DMA_START), ==, 0x43);

    tracked_vm_migrate(&p.src, p.stream);
    tracked_vm_scribble(&p.src, TESTDEV_CMD_DMA, 20);
    tracked_vm_wait_switchover(&p.src);
    tracked_vm_finish(&p.src);
    pair_arrive(&p);
    g_assert_cmpint(tracked_vm_differences(&p.src, &p.dst, dir), ==, 0);
    pair_stop(&p);
    program = "vfio-user-testdev";
    properties = TRACKED;
}

/* A device whose server behaves so from the Nth map on; an error, or NULL. */
static QDict *map_device_add(TrackedVM *vm, Server *server, const char *mode,
                             unsigned n)
{
    g_autofree char *option = g_strdup_printf("%s:%u", mode, n);
    QDict *rsp, *error;

    server_start(server, "a.sock", option);
    rsp = qtest_qmp(vm->qts,
        "{ 'execute': 'device_add', 'arguments': { 'bus': 'rp0', 'id': 'dev',"
        "  'driver': 'vfio-user-pci', 'x-msg-timeout': 300,"
        "  'enable-migration': 'on',"
        "  'socket': { 'type': 'unix', 'path': %s } } }", server->path);
    error = qdict_get_qdict(rsp, "error");
    qobject_ref(error);
    qobject_unref(rsp);
    return error;
}

/* What the guest's firmware would do, for the device behind the port. */
static void map_device_find(TrackedVM *vm)
{
    QPCIDevice *port = qpci_device_find(vm->bus, QPCI_DEVFN(7, 0));

    g_assert_cmpint(qpci_secondary_buses_init(vm->bus), ==, 1);
    qpci_device_enable(port);
    qpci_iomap(port, 4, NULL);
    g_free(port);
    vm->dev = qpci_device_find(vm->bus, QPCI_DEVFN(1 << 5, 0));
    g_assert_nonnull(vm->dev);
    qpci_device_enable(vm->dev);
    vm->bar = qpci_iomap(vm->dev, 0, NULL);
}

/*
 * A server that does not take all memory, from the Nth region on: the device is
 * not made, and the VM goes on.  What comes later and is not taken has no say
 * in what becomes of the guest; the server cannot write it, nor say whether it
 * did, so a migration fails.
 */
static void test_map_fails(gconstpointer opaque)
{
    const char *mode = opaque;
    int err = !strcmp(mode, "mute-map") ? ETIMEDOUT :
              !strcmp(mode, "long-map") ? EINVAL : EACCES;
    g_autofree char *why = NULL;
    unsigned n = 0;
    Server server;
    TrackedVM vm;
    QDict *error;

    program = "vfio-user-rawdev";
    tracked_vm_start(&vm, 0,
                     "-device pcie-root-port,id=rp0,chassis=1,addr=7.0");
    set_pam(&vm, 0);
    while ((error = map_device_add(&vm, &server, mode, n))) {
        const char *desc = qdict_get_str(error, "desc");

        g_assert_nonnull(strstr(desc, "the server refuses to map memory"));
        g_assert_nonnull(strstr(desc, strerror(err)));
        qobject_unref(error);
        server_stop(&server);
        g_assert_cmpint(++n, <, 60);
    }
    /* RAM alone is more than one region */
    g_assert_cmpint(n, >, 1);

    map_device_find(&vm);
    g_assert_cmpint(tracked_vm_command(&vm, TESTDEV_CMD_DMA, VM_DMA_START,
                                       VM_PAGE, 0x43), ==, 0);
    set_pam(&vm, 0x33);
    qtest_writeb(vm.qts, 0xd0000, 0x44);
    g_assert_cmpint(tracked_vm_command(&vm, TESTDEV_CMD_DMA, 0xd0000, VM_PAGE,
                                       0x45), ==, -EFAULT);
    g_assert_cmphex(qtest_readb(vm.qts, 0xd0000), ==, 0x44);
    g_assert_cmphex(qtest_readb(vm.qts, VM_DMA_START), ==, 0x43);
    qobject_unref(qtest_qmp(vm.qts, "{ 'execute': 'migrate', 'arguments': {"
                                    "  'uri': 'exec:cat >/dev/null' } }"));
    why = tracked_vm_wait_failed(&vm);
    g_test_message("%s", why);
    /* at the first sync, which is in the setup, it is but a number */
    g_assert_true(strstr(why, "cannot say what the device has written") ||
                  strstr(why, "Input/output error"));
    /* the same without that memory */
    set_pam(&vm, 0);
    tracked_vm_wait_idle(&vm);
    tracked_vm_hurry(&vm);
    qtest_qmp_assert_success(vm.qts, "{ 'execute': 'migrate', 'arguments': {"
                                     "  'uri': 'exec:cat >/dev/null' } }");
    tracked_vm_wait(&vm, "completed");
    tracked_vm_stop(&vm);
    server_stop(&server);
    program = "vfio-user-testdev";
}

/* ------------------------------------------------- messages and interrupts */

static void command_later(TrackedVM *vm, uint32_t cmd, uint64_t addr,
                          uint32_t len, uint32_t fill)
{
    qpci_io_writel(vm->dev, vm->bar, TESTDEV_ADDR_LO, addr);
    qpci_io_writel(vm->dev, vm->bar, TESTDEV_ADDR_HI, addr >> 32);
    qpci_io_writel(vm->dev, vm->bar, TESTDEV_LEN, len);
    qpci_io_writel(vm->dev, vm->bar, TESTDEV_FILL, fill);
    qpci_io_writel(vm->dev, vm->bar, TESTDEV_CMD, cmd);
}

/* Memory without a file descriptor: the server writes and reads by messages. */
static void test_messages(void)
{
    g_autofree char *args = NULL;
    Server server;
    TrackedVM vm;

    server_start(&server, "a.sock", NULL);
    args = device(&server, "6.0", "");
    tracked_vm_start_private(&vm, QPCI_DEVFN(6, 0), args);
    qtest_memset(vm.qts, VM_DMA_START, 0x11, 2 * VM_PAGE);
    /* the status cannot be read before the server has its answer */
    command_later(&vm, TESTDEV_CMD_MESSAGE, VM_DMA_START, VM_PAGE, 0x5a);
    for (int i = 0; qtest_readb(vm.qts, VM_DMA_START + VM_PAGE - 1) != 0x5a;
         i++) {
        g_assert_cmpint(i, <, 1000);
        g_usleep(1000);
    }
    g_usleep(100 * 1000);
    g_assert_cmpint(qpci_io_readl(vm.dev, vm.bar, TESTDEV_STATUS), ==, 0);
    for (int i = 0; i < VM_PAGE; i += 64) {
        g_assert_cmphex(qtest_readb(vm.qts, VM_DMA_START + i), ==, 0x5a);
    }
    g_assert_cmphex(qtest_readb(vm.qts, VM_DMA_START + VM_PAGE), ==, 0x11);

    command_later(&vm, TESTDEV_CMD_READ, VM_DMA_START, 256, 0);
    g_usleep(300 * 1000);
    g_assert_cmpint(qpci_io_readl(vm.dev, vm.bar, TESTDEV_STATUS), ==, 0);
    g_assert_cmpint(qpci_io_readl(vm.dev, vm.bar, TESTDEV_FILL), ==,
                    256 * 0x5a);
    tracked_vm_stop(&vm);
    server_stop(&server);
}

/* What the server has sent before bus mastering is off arrives. */
static void test_last_message(void)
{
    g_autofree char *args = NULL;
    g_autofree char *uri = g_strdup_printf("file:%s/stream", dir);
    g_autofree char *incoming = NULL;
    Server a, b;
    TrackedVM src, dst;

    program = "vfio-user-rawdev";
    server_start(&a, "a.sock", "message");
    args = device(&a, "6.0", TRACKED);
    tracked_vm_start_private(&src, QPCI_DEVFN(6, 0), args);
    tracked_vm_fill(&src);
    g_assert_cmpint(tracked_vm_command(&src, TESTDEV_CMD_DMA, VM_DMA_START,
                                       VM_PAGE, 0x5a), ==, 0);
    for (int i = 0; qtest_readb(src.qts, VM_DMA_START + VM_PAGE - 1) != 0x5a;
         i++) {
        g_assert_cmpint(i, <, 1000);
        g_usleep(1000);
    }
    tracked_vm_hurry(&src);
    qtest_qmp_assert_success(src.qts,
        "{ 'execute': 'migrate', 'arguments': { 'uri': %s } }", uri);
    tracked_vm_wait(&src, "completed");
    g_assert_cmphex(qtest_readb(src.qts, VM_DMA_START), ==, 0x5b);

    g_clear_pointer(&args, g_free);
    server_start(&b, "b.sock", "log");
    args = device(&b, "6.0", TRACKED);
    incoming = g_strdup_printf("%s -incoming %s -S", args, uri);
    tracked_vm_start_private(&dst, 0, incoming);
    tracked_vm_wait(&dst, "completed");
    g_assert_cmphex(qtest_readb(dst.qts, VM_DMA_START), ==, 0x5b);
    g_assert_cmpint(tracked_vm_differences(&src, &dst, dir), ==, 0);
    tracked_vm_stop(&dst);
    tracked_vm_stop(&src);
    server_stop(&b);
    server_stop(&a);
    g_unlink(uri + strlen("file:"));
    program = "vfio-user-testdev";
}

static unsigned count_fds(TrackedVM *vm)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/fd",
                                            (int)qtest_pid(vm->qts));
    GDir *fds = g_dir_open(path, 0, NULL);
    unsigned count = 0;

    g_assert_nonnull(fds);
    while (g_dir_read_name(fds)) {
        count++;
    }
    g_dir_close(fds);
    return count;
}

/* File descriptors that the server sends unasked are not kept. */
static void test_fds(void)
{
    g_autofree char *args = NULL;
    unsigned before, after;
    Server server;
    TrackedVM vm;

    program = "vfio-user-rawdev";
    server_start(&server, "a.sock", "fds");
    args = device(&server, "6.0", "");
    tracked_vm_start(&vm, QPCI_DEVFN(6, 0), args);
    tracked_vm_scribble(&vm, TESTDEV_CMD_DMA, 1);
    before = count_fds(&vm);
    tracked_vm_scribble(&vm, TESTDEV_CMD_DMA, 50);
    after = count_fds(&vm);
    g_test_message("%u file descriptors, %u later", before, after);
    /* some may be under way */
    g_assert_cmpint(after, <, before + 25);
    tracked_vm_stop(&vm);
    server_stop(&server);
    program = "vfio-user-testdev";
}

/* The same of a device that is not made, whose requests nobody looks at. */
static void test_fds_map(gconstpointer opaque)
{
    unsigned before, after;
    Server server;
    TrackedVM vm;
    QDict *error;

    program = "vfio-user-rawdev";
    tracked_vm_start(&vm, 0,
                     "-device pcie-root-port,id=rp0,chassis=1,addr=7.0");
    before = count_fds(&vm);
    for (int i = 0; i < 10; i++) {
        error = map_device_add(&vm, &server, opaque, 0);
        g_assert_nonnull(error);
        qobject_unref(error);
        server_stop(&server);
    }
    after = count_fds(&vm);
    g_test_message("%u file descriptors, %u later", before, after);
    g_assert_cmpint(after, <, before + 5);
    tracked_vm_stop(&vm);
    program = "vfio-user-testdev";
}

static unsigned peak_mib(TrackedVM *vm)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/status",
                                            (int)qtest_pid(vm->qts));
    g_autofree char *status = NULL;
    const char *peak;

    g_assert_true(g_file_get_contents(path, &status, NULL, NULL));
    peak = strstr(status, "VmHWM:");
    g_assert_nonnull(peak);
    return g_ascii_strtoull(peak + strlen("VmHWM:"), NULL, 10) >> 10;
}

/* A server that sends more than QEMU keeps is left; the VM goes on. */
static void test_flood(gconstpointer opaque)
{
    g_autofree char *args = NULL;
    unsigned before, after, tries = 0;
    Server server;
    TrackedVM vm;
    QDict *rsp;

    program = "vfio-user-rawdev";
    server_start(&server, "a.sock", opaque);
    args = device(&server, "6.0", "");
    tracked_vm_start_private(&vm, QPCI_DEVFN(6, 0), args);
    qtest_memset(vm.qts, VM_DMA_START, 0x11, VM_PAGE);
    before = peak_mib(&vm);
    /* the main loop waits for the status, which comes after the requests */
    command_later(&vm, TESTDEV_CMD_DMA, VM_DMA_START, VM_PAGE, 0x43);
    while (qpci_io_readl(vm.dev, vm.bar, TESTDEV_STATUS) != UINT32_MAX) {
        g_assert_cmpint(tries++, <, 10);
    }
    after = peak_mib(&vm);
    g_test_message("peak: %u MiB, %u MiB later", before, after);
    /* it sends a GiB; a sanitizer keeps what is freed for a while */
    g_assert_cmpint(after, <, before + 800);
    rsp = qtest_qmp_assert_success_ref(vm.qts, "{ 'execute': 'query-status' }");
    g_assert_true(qdict_get_bool(rsp, "running"));
    qobject_unref(rsp);
    tracked_vm_stop(&vm);
    server_stop(&server);
    program = "vfio-user-testdev";
}

/* Each vector is unmasked in the server when the guest uses it. */
static void test_unmask(void)
{
    g_autofree char *args = NULL;
    Server server;
    TrackedVM vm;

    server_start(&server, "a.sock", "mask");
    args = device(&server, "6.0", "");
    tracked_vm_start(&vm, QPCI_DEVFN(6, 0), args);
    g_assert_cmpint(tracked_vm_command(&vm, TESTDEV_CMD_IRQ, 0, 0, 2), ==,
                    -EAGAIN);
    qpci_msix_enable(vm.dev);
    for (int i = 0; i < TESTDEV_VECTORS; i++) {
        uint64_t entry = vm.dev->msix_table_off + i * PCI_MSIX_ENTRY_SIZE;
        uint64_t message = VM_DMA_START + 64 * i;

        qtest_writel(vm.qts, message, 0);
        qpci_io_writel(vm.dev, vm.dev->msix_table_bar,
                       entry + PCI_MSIX_ENTRY_LOWER_ADDR, message);
        qpci_io_writel(vm.dev, vm.dev->msix_table_bar,
                       entry + PCI_MSIX_ENTRY_UPPER_ADDR, 0);
        qpci_io_writel(vm.dev, vm.dev->msix_table_bar,
                       entry + PCI_MSIX_ENTRY_DATA, 0x1234 + i);
        qpci_io_writel(vm.dev, vm.dev->msix_table_bar,
                       entry + PCI_MSIX_ENTRY_VECTOR_CTRL, 0);
        g_assert_cmpint(tracked_vm_command(&vm, TESTDEV_CMD_IRQ, 0, 0, i), ==,
                        0);
        for (int n = 0; qtest_readl(vm.qts, message) != 0x1234 + i; n++) {
            g_assert_cmpint(n, <, 1000);
            g_usleep(1000);
        }
    }
    tracked_vm_stop(&vm);
    server_stop(&server);
}

int main(int argc, char **argv)
{
    static const RegionDeath goes = { true, false }, comes = { false, false };
    static const RegionDeath goes_late = { true, true };
    static const RegionDeath comes_late = { false, true };
    int ret;

    g_test_init(&argc, &argv, NULL);
    tracked_init_random();
    dir = g_dir_make_tmp("vfio-user-XXXXXX", NULL);
    g_assert_nonnull(dir);

    qtest_add_data_func("/vfio-user-tracking/blocked", NULL, test_blocked);
    qtest_add_data_func("/vfio-user-tracking/blocked-tracker", "track",
                        test_blocked);
    qtest_add_func("/vfio-user-tracking/unplugged", test_unplugged);
    qtest_add_func("/vfio-user-tracking/tracked", test_tracked);
    qtest_add_func("/vfio-user-tracking/cancelled", test_cancelled);
    qtest_add_func("/vfio-user-tracking/paused", test_paused);
    qtest_add_func("/vfio-user-tracking/reset", test_reset);
    qtest_add_func("/vfio-user-tracking/snapshot", test_snapshot);
    qtest_add_func("/vfio-user-tracking/snapshot-refused",
                   test_snapshot_refused);
    qtest_add_func("/vfio-user-tracking/faults", test_faults);
    qtest_add_func("/vfio-user-tracking/faulty-server", test_faulty_server);
    qtest_add_func("/vfio-user-tracking/verify", test_verify);
    qtest_add_func("/vfio-user-tracking/verify-faulty", test_verify_faulty);
    qtest_add_func("/vfio-user-tracking/verify-postcopy",
                   test_verify_postcopy);
    qtest_add_func("/vfio-user-tracking/verify-auto-converge",
                   test_verify_auto_converge);
    qtest_add_func("/vfio-user-tracking/region-removed", test_region_removed);
    qtest_add_func("/vfio-user-tracking/no-tracker", test_no_tracker);
    qtest_add_func("/vfio-user-tracking/server-dies", test_server_dies);
    qtest_add_data_func("/vfio-user-tracking/server-dies-region-goes",
                        &goes, test_server_dies_region);
    qtest_add_data_func("/vfio-user-tracking/server-dies-region-comes",
                        &comes, test_server_dies_region);
    qtest_add_data_func("/vfio-user-tracking/server-dies-region-goes-late",
                        &goes_late, test_server_dies_region);
    qtest_add_data_func("/vfio-user-tracking/server-dies-region-comes-late",
                        &comes_late, test_server_dies_region);
    qtest_add_func("/vfio-user-tracking/server-dies-anywhere",
                   test_server_dies_anywhere);
    qtest_add_data_func("/vfio-user-tracking/logged", "log", test_logged);
    qtest_add_data_func("/vfio-user-tracking/mad", "mad", test_logged);
    qtest_add_data_func("/vfio-user-tracking/refuse", "refuse",
                        test_bad_answer);
    qtest_add_data_func("/vfio-user-tracking/other", "other", test_bad_answer);
    qtest_add_data_func("/vfio-user-tracking/short", "short", test_bad_answer);
    qtest_add_data_func("/vfio-user-tracking/long", "long", test_bad_answer);
    qtest_add_data_func("/vfio-user-tracking/half", "half:1", test_half);
    qtest_add_data_func("/vfio-user-tracking/half-first", "half", test_half);
    qtest_add_data_func("/vfio-user-tracking/half-mute", "half-mute:1",
                        test_half);
    qtest_add_data_func("/vfio-user-tracking/end", "end:1", test_half);
    qtest_add_data_func("/vfio-user-tracking/half-slow", "half-slow:1",
                        test_late_answer);
    qtest_add_data_func("/vfio-user-tracking/slow", "slow:1",
                        test_late_answer);
    qtest_add_data_func("/vfio-user-tracking/postcopy", "postcopy-ram",
                        test_capability_refused);
    qtest_add_data_func("/vfio-user-tracking/background-snapshot",
                        "background-snapshot", test_capability_refused);
    qtest_add_data_func("/vfio-user-tracking/map-refused", "refuse-map",
                        test_map_fails);
    qtest_add_data_func("/vfio-user-tracking/map-mute", "mute-map",
                        test_map_fails);
    qtest_add_data_func("/vfio-user-tracking/map-long", "long-map",
                        test_map_fails);
    qtest_add_func("/vfio-user-tracking/messages", test_messages);
    qtest_add_func("/vfio-user-tracking/last-message", test_last_message);
    qtest_add_func("/vfio-user-tracking/fds", test_fds);
    qtest_add_data_func("/vfio-user-tracking/fds-map", "fds-map", test_fds_map);
    qtest_add_data_func("/vfio-user-tracking/fds-part", "part-map",
                        test_fds_map);
    qtest_add_data_func("/vfio-user-tracking/flood", "flood", test_flood);
    qtest_add_data_func("/vfio-user-tracking/ask", "ask", test_flood);
    qtest_add_func("/vfio-user-tracking/unmask", test_unmask);

    ret = g_test_run();
    g_rmdir(dir);
    g_free(dir);
    return ret;
}

/*
 * Helpers of the tests of write tracking
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <glib/gstdio.h>
#include "libqtest.h"
#include "libqos/pci-pc.h"
#include "qemu/cutils.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"
#include "vfio-tracking-util.h"

#define WAIT_S 60

static GRand *rnd;

void tracked_init_random(void)
{
    const char *given = g_getenv("HOTPATH_SEED");
    unsigned seed = g_random_int();

    if (given) {
        g_assert_cmpint(qemu_strtoui(given, NULL, 0, &seed), ==, 0);
    }
    rnd = g_rand_new_with_seed(seed);
    g_test_message("HOTPATH_SEED=%u", seed);
}

uint32_t tracked_random(uint32_t limit)
{
    return g_rand_int_range(rnd, 0, limit);
}

static void find_device(TrackedVM *vm, int devfn)
{
    vm->bus = qpci_new_pc(vm->qts, NULL);
    if (devfn) {
        vm->dev = qpci_device_find(vm->bus, devfn);
        g_assert_nonnull(vm->dev);
        qpci_device_enable(vm->dev);
        vm->bar = qpci_iomap(vm->dev, 0, NULL);
    }
}

void tracked_vm_start(TrackedVM *vm, int devfn, const char *args)
{
    memset(vm, 0, sizeof(*vm));
    vm->qts = qtest_initf("-M q35,memory-backend=ram -m %d -nodefaults "
                          "-object memory-backend-memfd,id=ram,size=%dM,"
                          "share=on %s", VM_RAM_MIB, VM_RAM_MIB, args);
    find_device(vm, devfn);
}

void tracked_vm_start_private(TrackedVM *vm, int devfn, const char *args)
{
    memset(vm, 0, sizeof(*vm));
    vm->qts = qtest_initf("-M q35 -m %d -nodefaults %s", VM_RAM_MIB, args);
    find_device(vm, devfn);
}

void tracked_vm_stop(TrackedVM *vm)
{
    g_free(vm->dev);
    qpci_free_pc(vm->bus);
    qtest_quit(vm->qts);
}

int tracked_vm_command(TrackedVM *vm, uint32_t cmd, uint64_t addr,
                       uint32_t len, uint32_t fill)
{
    qpci_io_writel(vm->dev, vm->bar, TESTDEV_ADDR_LO, addr);
    qpci_io_writel(vm->dev, vm->bar, TESTDEV_ADDR_HI, addr >> 32);
    qpci_io_writel(vm->dev, vm->bar, TESTDEV_LEN, len);
    qpci_io_writel(vm->dev, vm->bar, TESTDEV_FILL, fill);
    qpci_io_writel(vm->dev, vm->bar, TESTDEV_CMD, cmd);
    return qpci_io_readl(vm->dev, vm->bar, TESTDEV_STATUS);
}

void tracked_vm_scribble(TrackedVM *vm, uint32_t cmd, unsigned writes)
{
    for (unsigned i = 0; i < writes; i++) {
        uint32_t len = 1 + tracked_random(3 * VM_PAGE);
        uint32_t addr = VM_DMA_START +
                        tracked_random(VM_DMA_END - VM_DMA_START - len);

        g_assert_cmpint(tracked_vm_command(vm, cmd, addr, len,
                                           tracked_random(256)), ==, 0);
    }
}

void tracked_vm_fill(TrackedVM *vm)
{
    qtest_memset(vm->qts, VM_DMA_START, 0x11, VM_DMA_END - VM_DMA_START);
}

/* ----------------------------------------------------------- the migration */

bool tracked_vm_capability_or_skip(TrackedVM *vm, const char *capability)
{
    QDict *rsp = qtest_qmp(vm->qts,
        "{ 'execute': 'migrate-set-capabilities', 'arguments': {"
        "  'capabilities': [ { 'capability': %s, 'state': true } ] } }",
        capability);
    QDict *error = qdict_get_qdict(rsp, "error");

    if (error) {
        g_test_skip(qdict_get_str(error, "desc"));
    }
    qobject_unref(rsp);
    return !error;
}

void tracked_vm_migrate(TrackedVM *vm, const char *path)
{
    g_autofree char *uri = g_strdup_printf("file:%s", path);

    tracked_vm_migrate_to(vm, uri);
}

void tracked_vm_migrate_to(TrackedVM *vm, const char *uri)
{
    qtest_qmp_assert_success(vm->qts,
        "{ 'execute': 'migrate-set-capabilities', 'arguments': {"
        "  'capabilities': [ { 'capability': 'pause-before-switchover',"
        "                      'state': true },"
        "                    { 'capability': 'events', 'state': true } ] } }");
    qtest_qmp_assert_success(vm->qts,
        "{ 'execute': 'migrate-set-parameters', 'arguments': {"
        "  'max-bandwidth': %d, 'downtime-limit': 1 } }", 64 << 20);
    qtest_qmp_assert_success(vm->qts,
        "{ 'execute': 'migrate', 'arguments': { 'uri': %s } }", uri);
}

static QDict *query(TrackedVM *vm)
{
    return qtest_qmp_assert_success_ref(vm->qts,
                                        "{ 'execute': 'query-migrate' }");
}

void tracked_vm_wait(TrackedVM *vm, const char *wanted)
{
    for (int i = 0; i < WAIT_S * 50; i++) {
        QDict *state = query(vm);
        const char *status = qdict_get_try_str(state, "status");

        if (!g_strcmp0(status, wanted)) {
            qobject_unref(state);
            return;
        }
        if (!g_strcmp0(status, "failed") || !g_strcmp0(status, "completed")) {
            g_error("migration %s while waiting for %s: %s", status, wanted,
                    qdict_get_try_str(state, "error-desc"));
        }
        qobject_unref(state);
        g_usleep(20 * 1000);
    }
    g_error("no migration status %s within %d s", wanted, WAIT_S);
}

bool tracked_vm_is_idle(TrackedVM *vm)
{
    QDict *rsp = qtest_qmp(vm->qts, "{ 'execute': 'migrate-set-capabilities',"
                                    "  'arguments': { 'capabilities': [] } }");
    bool idle = !qdict_haskey(rsp, "error");

    qobject_unref(rsp);
    return idle;
}

void tracked_vm_wait_idle(TrackedVM *vm)
{
    for (int i = 0; i < WAIT_S * 50; i++) {
        if (tracked_vm_is_idle(vm)) {
            return;
        }
        g_usleep(20 * 1000);
    }
    g_error("the migration was not over within %d s", WAIT_S);
}

void tracked_vm_wait_first_pass(TrackedVM *vm)
{
    for (int i = 0; i < WAIT_S * 50; i++) {
        QDict *state = query(vm);
        const char *status = qdict_get_try_str(state, "status");
        QDict *ram = qdict_get_qdict(state, "ram");
        bool over = !g_strcmp0(status, "pre-switchover") ||
                    (ram && qdict_get_int(ram, "dirty-sync-count") >= 2);

        g_assert_cmpstr(status, !=, "failed");
        qobject_unref(state);
        if (over) {
            return;
        }
        g_usleep(20 * 1000);
    }
    g_error("the first pass was not over within %d s", WAIT_S);
}

void tracked_vm_wait_switchover(TrackedVM *vm)
{
    /* with every page dirty for ever, it converges in no other way */
    qtest_qmp_assert_success(vm->qts,
        "{ 'execute': 'migrate-set-parameters', 'arguments': {"
        "  'downtime-limit': 60000 } }");
    tracked_vm_wait(vm, "pre-switchover");
}

void tracked_vm_finish(TrackedVM *vm)
{
    qtest_qmp_assert_success(vm->qts,
        "{ 'execute': 'migrate-set-parameters', 'arguments': {"
        "  'max-bandwidth': 0 } }");
    qtest_qmp_assert_success(vm->qts,
        "{ 'execute': 'migrate-continue', 'arguments': {"
        "  'state': 'pre-switchover' } }");
    tracked_vm_wait(vm, "completed");
}

char *tracked_vm_wait_failed(TrackedVM *vm)
{
    for (int i = 0; i < WAIT_S * 50; i++) {
        QDict *state = query(vm);
        const char *status = qdict_get_try_str(state, "status");
        char *why = g_strdup(qdict_get_try_str(state, "error-desc"));
        bool failed = !g_strcmp0(status, "failed");

        g_assert_cmpstr(status, !=, "completed");
        qobject_unref(state);
        if (failed) {
            return why;
        }
        g_free(why);
        g_usleep(20 * 1000);
    }
    g_error("the migration did not fail within %d s", WAIT_S);
}

char *tracked_vm_push_to_failure(TrackedVM *vm)
{
    bool completed;
    char *why = tracked_vm_push(vm, &completed);

    g_assert_false(completed);
    return why;
}

bool tracked_vm_push_once(TrackedVM *vm, bool *completed, char **why)
{
    g_autofree char *status = NULL;
    QDict *state = query(vm);

    status = g_strdup(qdict_get_str(state, "status"));
    qobject_unref(state);
    *completed = !strcmp(status, "completed");
    if (!strcmp(status, "pre-switchover")) {
        /* it may be over before this arrives */
        qobject_unref(qtest_qmp(vm->qts,
            "{ 'execute': 'migrate-continue', 'arguments': {"
            "  'state': 'pre-switchover' } }"));
    } else if (!strcmp(status, "failed")) {
        *why = tracked_vm_wait_failed(vm);
        return true;
    } else if (!strcmp(status, "cancelled")) {
        *why = g_strdup(status);
        return true;
    }
    return *completed;
}

char *tracked_vm_push(TrackedVM *vm, bool *completed)
{
    char *why = NULL;

    tracked_vm_hurry(vm);
    for (int i = 0; i < WAIT_S * 50; i++) {
        if (tracked_vm_push_once(vm, completed, &why)) {
            return why;
        }
        g_usleep(20 * 1000);
    }
    g_error("the migration did not end within %d s", WAIT_S);
}

void tracked_vm_hurry(TrackedVM *vm)
{
    qtest_qmp_assert_success(vm->qts,
        "{ 'execute': 'migrate-set-parameters', 'arguments': {"
        "  'max-bandwidth': 0, 'downtime-limit': 60000 } }");
}

bool tracked_is_long(void)
{
    return !g_strcmp0(g_getenv("HOTPATH_LONG"), "1");
}

unsigned tracked_fault_rounds(unsigned few)
{
    const char *given = g_getenv("HOTPATH_ROUNDS");
    unsigned rounds = 300;

    if (!tracked_is_long()) {
        g_test_message("%u rounds of faults (HOTPATH_LONG=1 makes %u)", few,
                       rounds);
        return few;
    }
    if (given) {
        g_assert_cmpint(qemu_strtoui(given, NULL, 0, &rounds), ==, 0);
    }
    return rounds;
}

/* --------------------------------------------------------------- snapshots */

/* Wait for the end of job "j"; returns its error or NULL. */
static char *finish_job(TrackedVM *vm)
{
    for (int i = 0; i < WAIT_S * 50; i++) {
        QDict *rsp = qtest_qmp(vm->qts, "{ 'execute': 'query-jobs' }");
        QDict *job = qobject_to(QDict, qlist_peek(qdict_get_qlist(rsp,
                                                                  "return")));
        bool over = job && !strcmp(qdict_get_str(job, "status"), "concluded");
        char *why = job ? g_strdup(qdict_get_try_str(job, "error")) : NULL;

        qobject_unref(rsp);
        if (over) {
            qtest_qmp_assert_success(vm->qts,
                "{ 'execute': 'job-dismiss', 'arguments': { 'id': 'j' } }");
            return why;
        }
        g_free(why);
        g_usleep(20 * 1000);
    }
    g_error("the job did not end within %d s", WAIT_S);
}

void tracked_vm_add_snapshot_disk(TrackedVM *vm, const char *dir)
{
    g_autofree char *path = g_strdup_printf("%s/snapshots.qcow2", dir);
    char *why;

    qtest_qmp_assert_success(vm->qts,
        "{ 'execute': 'blockdev-create', 'arguments': { 'job-id': 'j',"
        "  'options': { 'driver': 'file', 'filename': %s, 'size': 0 } } }",
        path);
    g_assert_null(finish_job(vm));
    qtest_qmp_assert_success(vm->qts,
        "{ 'execute': 'blockdev-add', 'arguments': { 'node-name': 'file',"
        "  'driver': 'file', 'filename': %s } }", path);
    qtest_qmp_assert_success(vm->qts,
        "{ 'execute': 'blockdev-create', 'arguments': { 'job-id': 'j',"
        "  'options': { 'driver': 'qcow2', 'file': 'file',"
        "               'size': 1048576 } } }");
    why = finish_job(vm);
    g_assert_null(why);
    qtest_qmp_assert_success(vm->qts,
        "{ 'execute': 'blockdev-add', 'arguments': { 'node-name': 'snap',"
        "  'driver': 'qcow2', 'file': 'file' } }");
}

char *tracked_vm_snapshot(TrackedVM *vm, const char *command, const char *tag)
{
    qtest_qmp_assert_success(vm->qts,
        "{ 'execute': %s, 'arguments': { 'job-id': 'j', 'tag': %s,"
        "  'vmstate': 'snap', 'devices': [ 'snap' ] } }", command, tag);
    return finish_job(vm);
}

/* -------------------------------------------------------------- comparison */

static char *save_ram(TrackedVM *vm, const char *dir, const char *name)
{
    g_autofree char *path = g_strdup_printf("%s/%s", dir, name);
    GError *err = NULL;
    char *data;
    size_t len;

    qtest_qmp_assert_success(vm->qts,
        "{ 'execute': 'pmemsave', 'arguments': {"
        "  'val': %d, 'size': %d, 'filename': %s } }",
        VM_DMA_START, VM_DMA_END - VM_DMA_START, path);
    g_file_get_contents(path, &data, &len, &err);
    g_assert_no_error(err);
    g_assert_cmpint(len, ==, VM_DMA_END - VM_DMA_START);
    g_remove(path);
    return data;
}

char *tracked_vm_ram(TrackedVM *vm, const char *dir)
{
    return save_ram(vm, dir, "a");
}

unsigned tracked_vm_differences(TrackedVM *a, TrackedVM *b, const char *dir)
{
    g_autofree char *ram_a = save_ram(a, dir, "a");
    g_autofree char *ram_b = save_ram(b, dir, "b");
    unsigned count = 0;

    for (size_t i = 0; i < VM_DMA_END - VM_DMA_START; i += VM_PAGE) {
        if (memcmp(ram_a + i, ram_b + i, VM_PAGE)) {
            count++;
        }
    }
    return count;
}

/*
 * QTest: which devices may be above a space-guard that lets writes wait
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A device that does not keep a write that failed writes while the vCPU or the
 * main loop waits.  Nobody could answer the request then, and the write would
 * be lost when the wait is over.
 */

#include "qemu/osdep.h"
#include "libqtest.h"
#include "qapi/error.h"
#include "qobject/qdict.h"
#include "qobject/qjson.h"

#define IMAGE_SIZE (4 * 1024 * 1024)
#define HOLD "-blockdev space-guard,node-name=guard,file=data,policy=hold "
#define REFUSED "Property 'policy' of space-guard node 'guard' is 'hold', " \
                "but must be 'stop' below "

static char *path;

static void make_image(void)
{
    int fd = g_file_open_tmp("space-guard-XXXXXX", &path, NULL);

    g_assert_cmpint(ftruncate(fd, IMAGE_SIZE), ==, 0);
    close(fd);
}

/* What QEMU is started with, without the devices */
static char *command(const char *args)
{
    return g_strdup_printf("-m 16 -blockdev file,node-name=data,filename=%s "
                           "%s", path, args);
}

static QTestState *start(const char *args)
{
    g_autofree char *line = command(args);

    return qtest_init(line);
}

static void check_refused(const char *args, const char *who)
{
    g_autofree char *line = command(args);
    g_autofree char *qemu = g_strdup_printf("timeout 60 %s -display none "
                                            "-accel qtest %s",
                                            qtest_qemu_binary(NULL), line);
    g_autofree char *why = g_strconcat(REFUSED, who, NULL);
    g_autofree char *err = NULL;
    g_auto(GStrv) argv = NULL;
    int status;

    g_assert_true(g_shell_parse_argv(qemu, NULL, &argv, NULL));
    g_test_message("%s", qemu);
    g_assert_true(g_spawn_sync(NULL, argv, NULL, G_SPAWN_SEARCH_PATH |
                               G_SPAWN_STDOUT_TO_DEV_NULL, NULL, NULL, NULL,
                               &err, &status, NULL));
    g_assert_cmpint(status, !=, 0);
    g_assert_nonnull(strstr(err, why));
}

static void check_starts(const char *args)
{
    qtest_quit(start(args));
}

/* Returns what is wrong with a command, or NULL */
static char *failure(QTestState *qts, const char *json)
{
    QDict *ret = qtest_qmp(qts, "%p", qobject_from_json(json, &error_abort));
    QDict *error = qdict_get_qdict(ret, "error");
    char *desc = error ? g_strdup(qdict_get_str(error, "desc")) : NULL;

    qobject_unref(ret);
    return desc;
}

static void check_fails(QTestState *qts, const char *json, const char *who)
{
    g_autofree char *desc = failure(qts, json);
    g_autofree char *why = g_strconcat(REFUSED, who, NULL);

    g_assert_nonnull(desc);
    g_assert_nonnull(strstr(desc, why));
}

static void test_refused(void)
{
    check_refused(HOLD "-machine pc,pflash0=guard", "cfi.pflash01");
    check_refused(HOLD "-device sdhci-pci -device sd-card,drive=guard",
                  "sd-card");
    check_refused(HOLD "-device floppy,drive=guard", "floppy");
    check_refused(HOLD "-device nvme,serial=x,drive=guard", "nvme");
    /* behind a format, and behind another filter */
    check_refused(HOLD "-blockdev raw,node-name=raw,file=guard "
                  "-machine pc,pflash0=raw", "cfi.pflash01");
    check_refused(HOLD "-blockdev copy-on-read,node-name=cor,file=guard "
                  "-device sdhci-pci -device sd-card,drive=cor", "sd-card");
    /* its permissions count later */
    check_refused(HOLD "-machine pc,pflash0=guard -incoming defer",
                  "cfi.pflash01");
    check_refused(HOLD "-device sdhci-pci -device sd-card,drive=guard "
                  "-incoming defer", "sd-card");
}

static void test_allowed(void)
{
    check_starts(HOLD "-device virtio-blk-pci,drive=guard");
    check_starts(HOLD "-device virtio-scsi-pci -device scsi-hd,drive=guard");
    check_starts(HOLD "-device ide-hd,drive=guard");
    check_starts(HOLD "-device piix3-usb-uhci -device usb-storage,drive=guard");
    check_starts(HOLD "-device ide-hd,drive=guard -incoming defer");
    /* what does not wait, and what does not write */
    check_starts("-blockdev space-guard,node-name=guard,file=data "
                 "-machine pc,pflash0=guard");
    check_starts("-blockdev space-guard,node-name=guard,file=data "
                 "-device sdhci-pci -device sd-card,drive=guard");
    check_starts("-blockdev space-guard,node-name=guard,file=data,policy=hold,"
                 "read-only=on,auto-read-only=on -machine pc,pflash0=guard");
}

/* The device is there first */
static void test_guard_comes_later(void)
{
    static const char reopen[] =
        "{'execute': 'blockdev-reopen', 'arguments': {'options': [{"
        "'driver': 'raw', 'node-name': 'raw', 'file': 'guard'}]}}";
    QTestState *qts;
    char *desc;

    qts = start(HOLD "-blockdev raw,node-name=raw,file=data "
                "-machine pc,pflash0=raw");
    check_fails(qts, reopen, "cfi.pflash01");
    /* and nothing has changed: the chip is written to as before */
    qtest_writeb(qts, 0x100000000ull - IMAGE_SIZE, 0x40);
    qtest_writeb(qts, 0x100000000ull - IMAGE_SIZE, 0);
    qtest_quit(qts);

    qts = start(HOLD "-blockdev raw,node-name=raw,file=data "
                "-device ide-hd,drive=raw");
    desc = failure(qts, reopen);
    g_assert_null(desc);
    qtest_quit(qts);

    qts = start(HOLD "-device floppy,id=floppy");
    check_fails(qts, "{'execute': 'blockdev-insert-medium', 'arguments': {"
                "'id': 'floppy', 'node-name': 'guard'}}", "floppy");
    qtest_quit(qts);
}

/*
 * The guard is there first.  The NVMe controller does not free what it has
 * when its disk is refused, whatever the reason: AddressSanitizer's report of
 * that is not wanted here.
 */
static void test_device_comes_later(void)
{
    g_autofree char *old = g_strdup(g_getenv("ASAN_OPTIONS"));
    g_autofree char *new = g_strconcat(old ? old : "", ":detect_leaks=0", NULL);
    QTestState *qts;
    char *desc;

    g_setenv("ASAN_OPTIONS", new, true);
    qts = start(HOLD);
    check_fails(qts, "{'execute': 'device_add', 'arguments': {"
                "'driver': 'nvme', 'serial': 'x', 'drive': 'guard'}}", "nvme");
    qtest_quit(qts);
    g_setenv("ASAN_OPTIONS", old ? old : "", true);

    qts = start(HOLD);
    desc = failure(qts, "{'execute': 'device_add', 'arguments': {"
                   "'driver': 'virtio-blk-pci', 'drive': 'guard'}}");
    g_assert_null(desc);
    qtest_quit(qts);
}

int main(int argc, char **argv)
{
    int ret;

    g_test_init(&argc, &argv, NULL);
    make_image();
    qtest_add_func("/space-guard/refused", test_refused);
    qtest_add_func("/space-guard/allowed", test_allowed);
    qtest_add_func("/space-guard/guard-comes-later", test_guard_comes_later);
    qtest_add_func("/space-guard/device-comes-later", test_device_comes_later);
    ret = g_test_run();
    unlink(path);
    g_free(path);
    return ret;
}

/*
 * QTest: write-behind of pflash_cfi01
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The slow disk is blkdebug, which holds a write until it is told to go on.
 */

#include "qemu/osdep.h"
#include "async-call-util.h"

#define FLASH_SIZE (4 * 1024 * 1024)
#define FLASH_BASE (0x100000000ull - FLASH_SIZE)
#define SECTOR 4096             /* of the pc machine's flash */

typedef struct Test {
    QTestState *qts;
    char *path;
    uint8_t *expected;
} Test;

#define BLKDEBUG "-blockdev blkdebug,node-name=slow,image=file"
/* By virtual time, which stands still in a qtest; a drain overrides it */
#define THROTTLE "-object throttle-group,id=tg,x-iops-total=1 " \
                 "-blockdev throttle,node-name=slow,throttle-group=tg,file=file"

static void test_start_on(Test *t, const char *property, const char *node)
{
    int fd = g_file_open_tmp("pflash-behind-XXXXXX", &t->path, NULL);

    t->expected = g_malloc(FLASH_SIZE);
    memset(t->expected, 0xff, FLASH_SIZE);
    g_assert_cmpint(write(fd, t->expected, FLASH_SIZE), ==, FLASH_SIZE);
    close(fd);
    t->qts = qtest_initf("-blockdev file,node-name=file,filename=%s "
                         "%s -machine pc,pflash0=slow -m 16 "
                         "-global driver=cfi.pflash01,"
                         "property=write-behind,value=%s",
                         t->path, node, property);
}

static void test_start(Test *t, const char *property)
{
    test_start_on(t, property, BLKDEBUG);
}

static void check_image(Test *t)
{
    g_autofree char *data = NULL;
    size_t len;

    g_assert_true(g_file_get_contents(t->path, &data, &len, NULL));
    g_assert_cmpuint(len, ==, FLASH_SIZE);
    g_assert_cmpint(memcmp(data, t->expected, len), ==, 0);
}

static void test_free(Test *t)
{
    unlink(t->path);
    g_free(t->path);
    g_free(t->expected);
}

static void test_end(Test *t)
{
    qtest_quit(t->qts);
    check_image(t);
    test_free(t);
}

/* To the chip's own back end: a new one would wait for what is held. */
static void qemu_io(Test *t, const char *command)
{
    async_qemu_io(t->qts, "/machine/system.flash0", command);
}

/* The next write of the image waits for release(). */
static void hold(Test *t)
{
    qemu_io(t, "break pwritev A");
}

static void release(Test *t)
{
    qemu_io(t, "resume A");
}

static void program(Test *t, uint32_t offset, uint8_t value)
{
    qtest_writeb(t->qts, FLASH_BASE + offset, 0x40);
    qtest_writeb(t->qts, FLASH_BASE + offset, value);
    t->expected[offset] = value;
}

static void erase(Test *t, uint32_t offset)
{
    qtest_writeb(t->qts, FLASH_BASE + offset, 0x20);
    qtest_writeb(t->qts, FLASH_BASE + offset, 0xd0);
    memset(t->expected + offset, 0xff, SECTOR);
}

/* A throttle lets one write pass; the others wait for a drain. */
static void program_some(Test *t, unsigned seed)
{
    for (int i = 0; i < 20; i++) {
        program(t, i * 3000 + seed, i + seed);
    }
}

/* What the guest reads is what it wrote, image or not. */
static void check_guest(Test *t, uint32_t offset, unsigned count)
{
    qtest_writeb(t->qts, FLASH_BASE, 0xff);
    for (unsigned i = 0; i < count; i++) {
        g_assert_cmphex(qtest_readb(t->qts, FLASH_BASE + offset + i), ==,
                        t->expected[offset + i]);
    }
}

static void test_off(void)
{
    Test t;

    test_start(&t, "off");
    program(&t, 0, 0x12);
    check_image(&t);
    test_end(&t);
}

/* Without write-behind the first byte would hang. */
static void test_goes_on(void)
{
    Test t;

    test_start(&t, "on");
    hold(&t);
    for (int i = 0; i < 100; i++) {
        program(&t, i * 7, i);
    }
    erase(&t, SECTOR);
    program(&t, SECTOR + 1, 0x34);
    check_guest(&t, 0, 700);
    check_guest(&t, SECTOR, 16);
    g_assert_cmpuint(async_stat(t.qts, "async-call-pflash-parked"), >, 1);
    g_assert_cmpuint(async_stat(t.qts, "async-call-pflash-refused"), ==, 0);
    release(&t);
    test_end(&t);
}

/* A stop waits for the image, as it does for every write to a disk. */
static void test_stop(void)
{
    Test t;

    test_start(&t, "on");
    for (int round = 0; round < 5; round++) {
        hold(&t);
        for (int i = 0; i < 20; i++) {
            program(&t, i * 1000 + round, i + round);
        }
        release(&t);
        qtest_qmp_assert_success(t.qts, "{'execute': 'stop'}");
        check_image(&t);
        qtest_qmp_assert_success(t.qts, "{'execute': 'cont'}");
    }
    test_end(&t);
}

static void test_reset(void)
{
    Test t;

    test_start(&t, "on");
    hold(&t);
    program(&t, 5, 1);
    program(&t, 5000, 2);
    qtest_qmp_assert_success(t.qts, "{'execute': 'system_reset'}");
    qtest_qmp_eventwait(t.qts, "RESET");
    check_guest(&t, 5, 1);
    check_guest(&t, 5000, 1);
    release(&t);
    test_end(&t);
}

/* A drain of the node, as for a snapshot, waits for what waits. */
static void test_drain(void)
{
    Test t;

    test_start(&t, "on");
    for (int i = 0; i < 50; i++) {
        program(&t, i * 3000, i);
    }
    qtest_qmp_assert_success(t.qts, "{'execute': 'blockdev-reopen',"
                             " 'arguments': {'options': [{'driver':"
                             " 'blkdebug', 'node-name': 'slow', 'image':"
                             " 'file'}]}}");
    check_image(&t);
    test_end(&t);
}

/*
 * What a crash would leave while the first of three is on its way: the others
 * are not in the image before it.
 */
static void test_order(void)
{
    g_autofree char *data = NULL;
    Test t;

    test_start(&t, "on");
    hold(&t);
    program(&t, 1000, 2);
    program(&t, 9000, 3);
    program(&t, 5000, 4);
    check_guest(&t, 5000, 1);
    g_assert_true(g_file_get_contents(t.path, &data, NULL, NULL));
    g_assert_cmphex((uint8_t)data[1000], ==, 0xff);
    g_assert_cmphex((uint8_t)data[9000], ==, 0xff);
    g_assert_cmphex((uint8_t)data[5000], ==, 0xff);
    release(&t);
    test_end(&t);
}

/* More than may wait: the vCPU waits until the disk goes on. */
static void test_full(void)
{
    const int sectors = 300;    /* of 4 KiB, erased and programmed */
    Test t;

    test_start_on(&t, "on", THROTTLE);
    for (int i = 0; i < sectors; i++) {
        erase(&t, i * SECTOR);
        program(&t, i * SECTOR, i);
    }
    g_assert_cmpuint(async_stat(t.qts, "async-call-pflash-refused"), ==, 1);
    test_end(&t);
}

static void test_icount_refused(void)
{
    g_autofree char *command = g_strdup_printf(
        "%s -machine pc,pflash0=n -display none -S -accel tcg "
        "-icount shift=1 -blockdev null-co,node-name=n,size=%d,read-zeroes=on "
        "-global driver=cfi.pflash01,property=write-behind,value=on",
        qtest_qemu_binary(NULL), FLASH_SIZE);

    async_check_refused(command, "Property 'write-behind' of cfi.pflash01 is "
                        "on, but must be off with record/replay and icount");
}

/*
 * A job has drained the image and waits for its target, to take its place: what
 * is written now has to get there.
 */
static void test_job_completes(void)
{
    g_autofree char *target = NULL;
    g_autofree char *data = NULL;
    size_t len;
    Test t;

    close(g_file_open_tmp("pflash-behind-XXXXXX", &target, NULL));
    test_start_on(&t, "on", BLKDEBUG);
    g_assert_cmpint(truncate(target, FLASH_SIZE), ==, 0);
    /* quorum flushes both, and one takes a while */
    qtest_qmp_assert_success(t.qts, "{'execute': 'blockdev-add',"
        " 'arguments': {'driver': 'quorum', 'node-name': 'target',"
        " 'vote-threshold': 1, 'rewrite-corrupted': false, 'children': ["
        " {'driver': 'file', 'filename': %s},"
        " {'driver': 'null-co', 'size': %d, 'latency-ns': 300000000}]}}",
        target, FLASH_SIZE);
    qtest_qmp_assert_success(t.qts, "{'execute': 'blockdev-mirror',"
        " 'arguments': {'job-id': 'job', 'device': 'slow', 'target': 'target',"
        " 'sync': 'full'}}");
    qtest_qmp_eventwait(t.qts, "BLOCK_JOB_READY");
    qtest_qmp_assert_success(t.qts, "{'execute': 'block-job-complete',"
                             " 'arguments': {'device': 'job'}}");
    for (int i = 0; i < 20; i++) {
        program(&t, i * SECTOR, i);
        g_usleep(20 * 1000);
    }
    qtest_qmp_eventwait(t.qts, "BLOCK_JOB_COMPLETED");
    qtest_quit(t.qts);
    g_assert_true(g_file_get_contents(target, &data, &len, NULL));
    g_assert_cmpuint(len, ==, FLASH_SIZE);
    g_assert_cmpint(memcmp(data, t.expected, len), ==, 0);
    unlink(target);
    test_free(&t);
}

static void test_migrate(void)
{
    g_autofree char *path = NULL;
    Test t;

    close(g_file_open_tmp("pflash-behind-XXXXXX", &path, NULL));
    test_start_on(&t, "on", THROTTLE);
    program_some(&t, 0);
    async_save(t.qts, path);
    check_image(&t);
    qtest_quit(t.qts);
    t.qts = qtest_initf("-blockdev file,node-name=file,filename=%s "
                        "-machine pc,pflash0=file -m 16 -global driver="
                        "cfi.pflash01,property=write-behind,value=on "
                        "-incoming defer", t.path);
    g_assert_true(async_load(t.qts, path));
    qtest_qmp_assert_success(t.qts, "{'execute': 'cont'}");
    check_guest(&t, 0, 3001);
    program_some(&t, 1);
    test_end(&t);
    unlink(path);
}

#define QCOW "-blockdev qcow2,node-name=qcow,file=file " \
             "-object throttle-group,id=tg,x-iops-total=1 " \
             "-blockdev throttle,node-name=slow,throttle-group=tg,file=qcow"

static void test_snapshot(void)
{
    g_autofree char *raw = NULL;
    g_autofree uint8_t *saved = NULL;
    Test t;

    test_start_on(&t, "off", BLKDEBUG);
    qtest_quit(t.qts);
    raw = t.path;
    t.path = g_strdup_printf("%s.qcow2", raw);
    if (!async_convert(raw, "raw", t.path, "qcow2")) {
        unlink(raw);
        test_free(&t);
        return;
    }
    t.qts = qtest_initf("-blockdev file,node-name=file,filename=%s " QCOW
                        " -machine pc,pflash0=slow -m 16 -global driver="
                        "cfi.pflash01,property=write-behind,value=on", t.path);
    program_some(&t, 0);
    g_assert_true(async_snapshot(t.qts, "snapshot-save"));
    saved = g_memdup2(t.expected, FLASH_SIZE);
    program_some(&t, 1);
    g_assert_true(async_snapshot(t.qts, "snapshot-load"));
    memcpy(t.expected, saved, FLASH_SIZE);
    check_guest(&t, 0, 3001);
    program(&t, 77, 1);
    qtest_quit(t.qts);
    g_assert_true(async_convert(t.path, "qcow2", raw, "raw"));
    unlink(t.path);
    g_free(t.path);
    t.path = g_strdup(raw);
    check_image(&t);
    test_free(&t);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    qtest_add_func("/pflash-behind/off", test_off);
    qtest_add_func("/pflash-behind/goes-on", test_goes_on);
    qtest_add_func("/pflash-behind/stop", test_stop);
    qtest_add_func("/pflash-behind/reset", test_reset);
    qtest_add_func("/pflash-behind/drain", test_drain);
    qtest_add_func("/pflash-behind/order", test_order);
    qtest_add_func("/pflash-behind/job-completes", test_job_completes);
    qtest_add_func("/pflash-behind/migrate", test_migrate);
    qtest_add_func("/pflash-behind/snapshot", test_snapshot);
    qtest_add_func("/pflash-behind/full", test_full);
    qtest_add_func("/pflash-behind/icount-refused", test_icount_refused);
    return g_test_run();
}

/*
 * QTest: posted writes of the floppy disk controller
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The slow disk is blkdebug, which holds a write until it is told to go on, or
 * a throttle: by virtual time, which stands still in a qtest, it holds all
 * writes after the first until a drain overrides it.
 * Transfers go through the controller's data port, byte by byte; the n-th byte
 * of a transfer is pattern(n), so what is lost, doubled or out of order shows.
 */

#include "qemu/osdep.h"
#include "libqtest.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"

#define FDC 0x3f0
#define DOR (FDC + 2)
#define MSR (FDC + 4)
#define FIFO (FDC + 5)
#define DIR (FDC + 7)

#define RQM 0x80
#define DIO 0x40
#define NONDMA 0x20

#define SECTOR 512
#define IMAGE_SIZE (1440 * 1024)
/* The transfer: one sector of each side of the first cylinder */
#define SIDE_1 (18 * SECTOR)
#define BYTES (2 * SECTOR)

/* Where the DMA controller finds the data */
#define DMA_ADDR 0x10000

#define MAX_QUEUED 64
/* A guest that does not look at the main status register */
#define IMPOLITE 10

typedef struct Test {
    QTestState *qts;
    char *path;
    bool throttled;
    unsigned sent;
    uint8_t expected[IMAGE_SIZE];
} Test;

#define BLKDEBUG "-blockdev blkdebug,node-name=slow,image=file"
#define THROTTLE "-object throttle-group,id=tg,x-iops-total=1 " \
                 "-blockdev throttle,node-name=slow,throttle-group=tg,file=file"

static uint8_t pattern(unsigned n)
{
    return (n * 0x9e3779b9u) >> 24 | 1;
}

static QTestState *start_qemu(const char *path, const char *property,
                              const char *node, const char *more)
{
    return qtest_initf("-machine pc -nodefaults -m 16 "
                       "-blockdev file,node-name=file,filename=%s %s "
                       "-global isa-fdc.posted-writes=%s "
                       "-device floppy,id=f0,drive=slow %s",
                       path, node, property, more);
}

static Test *test_start_on(const char *property, const char *node)
{
    Test *t = g_new0(Test, 1);
    int fd = g_file_open_tmp("posted-fdc-XXXXXX", &t->path, NULL);

    g_assert_cmpint(write(fd, t->expected, IMAGE_SIZE), ==, IMAGE_SIZE);
    close(fd);
    t->qts = start_qemu(t->path, property, node, "");
    t->throttled = strstr(node, "throttl");
    return t;
}

static Test *test_start(const char *property)
{
    return test_start_on(property, BLKDEBUG);
}

static void check_image(Test *t)
{
    g_autofree char *data = NULL;
    size_t len;

    g_assert_true(g_file_get_contents(t->path, &data, &len, NULL));
    g_assert_cmpuint(len, ==, IMAGE_SIZE);
    g_assert_cmpint(memcmp(data, t->expected, len), ==, 0);
}

static void test_free(Test *t)
{
    unlink(t->path);
    g_free(t->path);
    g_free(t);
}

static void test_end(Test *t)
{
    qtest_quit(t->qts);
    check_image(t);
    test_free(t);
}

static void qemu_io(Test *t, const char *command)
{
    g_autofree char *reply = qtest_hmp(t->qts, "qemu-io -d f0 \"%s\"", command);

    g_assert_cmpstr(reply, ==, "");
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

static uint64_t stat_value(Test *t, const char *name)
{
    QDict *reply = qtest_qmp(t->qts,
        "{'execute': 'query-stats', 'arguments': {'target': 'vm',"
        " 'providers': [{'provider': 'hotpath', 'names': [%s]}]}}", name);
    QDict *target = qobject_to(QDict, qlist_peek(qdict_get_qlist(reply,
                                                                 "return")));
    QDict *stat = qobject_to(QDict, qlist_peek(qdict_get_qlist(target,
                                                               "stats")));
    uint64_t value = qdict_get_uint(stat, "value");

    qobject_unref(reply);
    return value;
}

static uint8_t msr(Test *t)
{
    return qtest_inb(t->qts, MSR);
}

/* As a driver does. */
static void wait_ready(Test *t, uint8_t dio)
{
    while ((msr(t) & (RQM | DIO)) != (RQM | dio)) {
        if (t->throttled) {
            qtest_qmp_assert_success(t->qts, "{'execute': 'stop'}");
            qtest_qmp_assert_success(t->qts, "{'execute': 'cont'}");
        }
    }
}

static void send_byte(Test *t, uint8_t byte)
{
    wait_ready(t, 0);
    qtest_outb(t->qts, FIFO, byte);
}

static void start_transfer(Test *t)
{
    static const uint8_t command[] = {
        0xc5, 0, 0, 0, 1, 2, 1, 0x1b, 0xff      /* write, both sides */
    };

    qtest_outb(t->qts, DOR, 0x14);              /* without DMA */
    for (int i = 0; i < sizeof(command); i++) {
        send_byte(t, command[i]);
    }
    g_assert_cmphex(msr(t) & (RQM | DIO | NONDMA), ==, RQM | NONDMA);
    t->sent = 0;
}

/* What the image has when the transfer has been sent up to @sent. */
static void expect(Test *t, unsigned sent)
{
    for (unsigned i = 0; i < sent / SECTOR * SECTOR; i++) {
        t->expected[(i < SECTOR ? 0 : SIDE_1 - SECTOR) + i] = pattern(i);
    }
}

static void send_data(Test *t, unsigned count, bool polite)
{
    while (count--) {
        if (polite) {
            wait_ready(t, 0);
        }
        qtest_outb(t->qts, FIFO, pattern(t->sent++));
    }
}

static void finish_transfer(Test *t)
{
    uint8_t result[7];

    send_data(t, BYTES - t->sent, true);
    for (int i = 0; i < sizeof(result); i++) {
        wait_ready(t, DIO);
        result[i] = qtest_inb(t->qts, FIFO);
    }
    g_assert_cmphex(result[0] & 0xc0, ==, 0);
    g_assert_cmphex(result[1], ==, 0);
    expect(t, BYTES);
}

/* One sector that is held, and bytes of the next behind it. */
static void send_and_queue(Test *t)
{
    if (t->throttled) {
        /* has the throttle hold the next write */
        start_transfer(t);
        finish_transfer(t);
    }
    start_transfer(t);
    if (!t->throttled) {
        hold(t);
    }
    send_data(t, SECTOR, true);
    g_assert_cmphex(msr(t) & RQM, ==, 0);
    send_data(t, IMPOLITE, false);
    g_assert_cmpuint(stat_value(t, "posted-mmio-now"), ==, IMPOLITE);
    g_assert_cmpuint(stat_value(t, "async-call-parked"), ==, 1);
    expect(t, SECTOR);
}

static void plain(const char *property)
{
    Test *t = test_start(property);

    for (int i = 0; i < 3; i++) {
        start_transfer(t);
        finish_transfer(t);
        check_image(t);
    }
    test_end(t);
}

static void test_off(void)
{
    plain("off");
}

static void test_on(void)
{
    plain("on");
}

/* Channel 2 of the DMA controller, to or from DMA_ADDR. */
static void set_dma(Test *t, uint8_t mode)
{
    qtest_outb(t->qts, 0x0a, 0x06);             /* masked meanwhile */
    qtest_outb(t->qts, 0x0c, 0);
    qtest_outb(t->qts, 0x04, DMA_ADDR & 0xff);
    qtest_outb(t->qts, 0x04, DMA_ADDR >> 8 & 0xff);
    qtest_outb(t->qts, 0x81, DMA_ADDR >> 16);
    qtest_outb(t->qts, 0x05, (BYTES - 1) & 0xff);
    qtest_outb(t->qts, 0x05, (BYTES - 1) >> 8);
    qtest_outb(t->qts, 0x0b, mode);
    qtest_outb(t->qts, 0x0a, 0x02);
}

static void start_dma(Test *t, uint8_t code, uint8_t mode)
{
    const uint8_t command[] = { code, 0, 0, 0, 1, 2, 1, 0x1b, 0xff };

    qtest_outb(t->qts, DOR, 0x1c);
    set_dma(t, mode);
    for (int i = 0; i < sizeof(command); i++) {
        send_byte(t, command[i]);
    }
}

static void finish_dma(Test *t)
{
    for (int i = 0; i < 7; i++) {
        uint8_t byte;

        wait_ready(t, DIO);
        byte = qtest_inb(t->qts, FIFO);
        g_assert_true(i || !(byte & 0xc0));
    }
}

/* The DMA controller runs the transfer from the last byte of the command. */
static void dma(const char *property, bool held, const char *node)
{
    Test *t = test_start_on(property, node);
    uint8_t data[BYTES];

    for (unsigned i = 0; i < BYTES; i++) {
        data[i] = pattern(i);
    }
    qtest_memwrite(t->qts, DMA_ADDR, data, BYTES);
    for (int round = 0; round < 3; round++) {
        if (held && !t->throttled) {
            hold(t);
        }
        start_dma(t, 0xc5, 0x4a);
        if (held && !t->throttled) {
            g_assert_cmphex(msr(t) & RQM, ==, 0);
            g_assert_cmpuint(stat_value(t, "async-call-parked"), ==, 1);
            release(t);
        }
        finish_dma(t);
    }
    expect(t, BYTES);
    qtest_memset(t->qts, DMA_ADDR, 0, BYTES);
    start_dma(t, 0xc6, 0x46);
    finish_dma(t);
    qtest_memread(t->qts, DMA_ADDR, data, BYTES);
    for (unsigned i = 0; i < BYTES; i++) {
        g_assert_cmphex(data[i], ==, pattern(i));
    }
    test_end(t);
}

static void test_dma(void)
{
    dma("off", false, BLKDEBUG);
    dma("on", false, BLKDEBUG);
    dma("on", true, BLKDEBUG);
}

/* A stop lets the transfer come to its end. */
static void test_dma_stop(void)
{
    dma("on", true, THROTTLE);
}

static bool job_is_pending(Test *t)
{
    g_autoptr(QDict) rsp = qtest_qmp(t->qts, "{'execute': 'query-jobs'}");
    QDict *job = qobject_to(QDict, qlist_peek(qdict_get_qlist(rsp, "return")));

    return g_str_equal(qdict_get_str(job, "status"), "pending");
}

/* A block job that waits to be finalized has the disk drained. */
static char *drain_disk(Test *t)
{
    char *target;
    int fd = g_file_open_tmp("posted-fdc-XXXXXX", &target, NULL);

    g_assert_cmpint(ftruncate(fd, IMAGE_SIZE), ==, 0);
    close(fd);
    qtest_qmp_assert_success(t->qts, "{'execute': 'blockdev-add',"
        " 'arguments': {'driver': 'file', 'node-name': 'target',"
        " 'filename': %s}}", target);
    qtest_qmp_assert_success(t->qts, "{'execute': 'blockdev-mirror',"
        " 'arguments': {'job-id': 'job', 'device': 'slow', 'target': 'target',"
        " 'sync': 'full', 'auto-finalize': false}}");
    qtest_qmp_eventwait(t->qts, "BLOCK_JOB_READY");
    qtest_qmp_assert_success(t->qts, "{'execute': 'job-complete',"
                             " 'arguments': {'id': 'job'}}");
    while (!job_is_pending(t)) {
        g_usleep(1000);
    }
    return target;
}

/* From now on @target, which is taken, is the disk. */
static void undrain_disk(Test *t, char *target)
{
    qtest_qmp_assert_success(t->qts, "{'execute': 'job-finalize',"
                             " 'arguments': {'id': 'job'}}");
    qtest_qmp_eventwait(t->qts, "BLOCK_JOB_COMPLETED");
    unlink(t->path);
    g_free(t->path);
    t->path = target;
}

/* No stop and no reset waits for a disk that is drained. */
static void drained(const char *command)
{
    Test *t = test_start("on");
    char *target = drain_disk(t);

    start_transfer(t);
    send_data(t, SECTOR, true);
    g_assert_cmphex(msr(t) & RQM, ==, 0);
    qtest_qmp_assert_success(t->qts, "{'execute': %s}", command);
    qtest_qmp_assert_success(t->qts, "{'execute': 'cont'}");
    undrain_disk(t, target);
    if (g_str_equal(command, "stop")) {
        finish_transfer(t);
    }
    start_transfer(t);
    finish_transfer(t);
    test_end(t);
}

static void test_drained(void)
{
    drained("stop");
    drained("system_reset");
}

/* Put another medium, of nothing but zeros, into the drive. */
static char *change_medium(Test *t)
{
    g_autofree uint8_t *zeros = g_malloc0(IMAGE_SIZE);
    char *path;
    int fd = g_file_open_tmp("posted-fdc-XXXXXX", &path, NULL);

    g_assert_cmpint(write(fd, zeros, IMAGE_SIZE), ==, IMAGE_SIZE);
    close(fd);
    qtest_qmp_assert_success(t->qts, "{'execute': 'blockdev-change-medium',"
        " 'arguments': {'id': 'f0', 'filename': %s, 'format': 'raw'}}", path);
    return path;
}

/* Nothing was written to the new medium, all to the old one. */
static void end_changed(Test *t, char *path)
{
    g_autofree uint8_t *zeros = g_malloc0(IMAGE_SIZE);
    g_autofree char *data = NULL;
    size_t len;

    while (stat_value(t, "posted-mmio-now") ||
           stat_value(t, "async-call-parked")) {
        g_usleep(1000);
    }
    test_end(t);
    g_assert_true(g_file_get_contents(path, &data, &len, NULL));
    g_assert_cmpuint(len, ==, IMAGE_SIZE);
    g_assert_cmpint(memcmp(data, zeros, len), ==, 0);
    unlink(path);
    g_free(path);
}

/* Other data than those that go through the port */
static uint8_t dma_pattern(unsigned n)
{
    return ~pattern(n);
}

static void put_dma_data(Test *t)
{
    uint8_t data[BYTES];

    for (unsigned i = 0; i < BYTES; i++) {
        data[i] = dma_pattern(i);
    }
    qtest_memwrite(t->qts, DMA_ADDR, data, BYTES);
}

static void expect_dma(Test *t)
{
    for (unsigned i = 0; i < BYTES; i++) {
        t->expected[(i < SECTOR ? 0 : SIDE_1 - SECTOR) + i] = dma_pattern(i);
    }
}

/* The medium is changed in the middle of a transfer by DMA. */
static void test_change_dma(void)
{
    Test *t = test_start_on("on", THROTTLE);

    start_transfer(t);
    finish_transfer(t);
    put_dma_data(t);
    start_dma(t, 0xc5, 0x4a);
    g_assert_cmpuint(stat_value(t, "async-call-parked"), ==, 1);
    expect_dma(t);
    end_changed(t, change_medium(t));
}

/* A driver that does not look: a reset and a command behind the sector */
static void queue_command(Test *t)
{
    static const uint8_t command[] = {
        0xc5, 0, 0, 0, 1, 2, 1, 0x1b, 0xff
    };

    start_transfer(t);
    finish_transfer(t);
    put_dma_data(t);
    set_dma(t, 0x4a);
    start_transfer(t);
    send_data(t, SECTOR, true);
    g_assert_cmphex(msr(t) & RQM, ==, 0);
    qtest_outb(t->qts, DOR, 0x10);
    qtest_outb(t->qts, DOR, 0x1c);
    for (int i = 0; i < sizeof(command); i++) {
        qtest_outb(t->qts, FIFO, command[i]);
    }
    g_assert_cmpuint(stat_value(t, "posted-mmio-now"), ==,
                     2 + sizeof(command));
}

static void test_change_queued(void)
{
    Test *t = test_start_on("on", THROTTLE);

    queue_command(t);
    expect_dma(t);
    end_changed(t, change_medium(t));
}

/* What may not run now must not run later: there is another medium then. */
static void test_change_stopped(void)
{
    Test *t = test_start_on("on", THROTTLE);
    char *path;

    queue_command(t);
    qtest_qmp_assert_success(t->qts, "{'execute': 'stop'}");
    g_assert_cmpuint(stat_value(t, "posted-mmio-now"), ==, 11);
    path = change_medium(t);
    g_assert_cmpuint(stat_value(t, "posted-mmio-now"), ==, 0);
    g_assert_cmpuint(stat_value(t, "posted-mmio-dropped"), ==, 11);
    qtest_qmp_assert_success(t->qts, "{'execute': 'cont'}");
    end_changed(t, path);
}

#define DISK_CANCELS "-blockdev driver=blkdebug,node-name=slow,image=file," \
                     "inject-error.0.event=none,inject-error.0.iotype=write," \
                     "inject-error.0.errno=125,inject-error.0.once=on"

/* A disk whose error has the name of a handler that was given up */
static void test_disk_cancels(void)
{
    for (int on = 0; on < 2; on++) {
        Test *t = test_start_on(on ? "on" : "off", DISK_CANCELS);
        uint8_t status;

        put_dma_data(t);
        start_dma(t, 0xc5, 0x4a);
        wait_ready(t, DIO);
        status = qtest_inb(t->qts, FIFO);
        g_assert_cmphex(status & 0xc0, ==, 0x40);
        for (int i = 1; i < 7; i++) {
            wait_ready(t, DIO);
            qtest_inb(t->qts, FIFO);
        }
        start_transfer(t);
        finish_transfer(t);
        test_end(t);
    }
}

/* The vCPU goes on while the disk does not, and is told so. */
static void test_goes_on(void)
{
    Test *t = test_start("on");

    start_transfer(t);
    hold(t);
    send_data(t, SECTOR, true);
    for (int i = 0; i < 10; i++) {
        g_assert_cmphex(msr(t) & RQM, ==, 0);
        g_assert_cmphex(qtest_inb(t->qts, FIFO), ==, 0);
        g_assert_cmphex(qtest_inb(t->qts, DOR) & 0x1c, ==, 0x14);
        qtest_inb(t->qts, DIR);
    }
    check_image(t);
    g_assert_cmpuint(stat_value(t, "async-call-mmio-parked"), ==, 1);
    g_assert_cmpuint(stat_value(t, "async-call-parked"), ==, 1);
    release(t);
    finish_transfer(t);
    g_assert_cmpuint(stat_value(t, "async-call-mmio-parked"), ==, 2);
    g_assert_cmpuint(stat_value(t, "async-call-parked"), ==, 0);
    test_end(t);
}

static void test_order(void)
{
    g_autofree char *info = NULL;
    Test *t = test_start("on");

    send_and_queue(t);
    g_assert_cmpuint(stat_value(t, "async-call-mmio-parked"), ==, 1);
    info = qtest_hmp(t->qts, "info async-calls");
    g_assert_nonnull(strstr(info, "posted writes: 10 queued"));
    release(t);
    finish_transfer(t);
    g_assert_cmpuint(stat_value(t, "posted-mmio-queued"), ==, IMPOLITE);
    g_assert_cmpuint(stat_value(t, "posted-mmio-now"), ==, 0);
    test_end(t);
}

/* The whole transfer without a look at the status: the vCPU waits at times. */
static void test_full(void)
{
    Test *t = test_start_on("on", THROTTLE);

    for (int i = 0; i < 4; i++) {
        start_transfer(t);
        send_data(t, BYTES, false);
        finish_transfer(t);
    }
    g_assert_cmpuint(stat_value(t, "posted-mmio-waited"), >, 0);
    test_end(t);
}

/* A stop waits for the disk, as ever; what is queued waits for cont. */
static void stop_with_queue(Test *t)
{
    send_and_queue(t);
    qtest_qmp_assert_success(t->qts, "{'execute': 'stop'}");
    g_assert_cmpuint(stat_value(t, "posted-mmio-now"), ==, IMPOLITE);
    g_assert_cmpuint(stat_value(t, "async-call-parked"), ==, 0);
    g_assert_cmphex(msr(t) & RQM, ==, 0);
}

static void test_stop(void)
{
    Test *t = test_start_on("on", THROTTLE);

    for (int i = 0; i < 5; i++) {
        stop_with_queue(t);
        check_image(t);
        qtest_qmp_assert_success(t->qts, "{'execute': 'cont'}");
        finish_transfer(t);
        check_image(t);
    }
    test_end(t);
}

static void test_reset(void)
{
    Test *t = test_start_on("on", THROTTLE);

    send_and_queue(t);
    qtest_qmp_assert_success(t->qts, "{'execute': 'system_reset'}");
    qtest_qmp_eventwait(t->qts, "RESET");
    g_assert_cmpuint(stat_value(t, "posted-mmio-dropped"), ==, IMPOLITE);
    g_assert_cmpuint(stat_value(t, "posted-mmio-now"), ==, 0);
    g_assert_cmphex(msr(t), ==, RQM);
    check_image(t);
    start_transfer(t);
    finish_transfer(t);
    test_end(t);
}

static void migrate_to_file(Test *t, const char *uri)
{
    qtest_qmp_assert_success(t->qts, "{'execute': 'migrate-set-capabilities',"
        " 'arguments': {'capabilities': [{'capability': 'events',"
        " 'state': true}]}}");
    qtest_qmp_assert_success(t->qts, "{'execute': 'migrate',"
                             " 'arguments': {'uri': %s}}", uri);
    for (;;) {
        QDict *event = qtest_qmp_eventwait_ref(t->qts, "MIGRATION");
        g_autofree char *status = g_strdup(qdict_get_str(
            qdict_get_qdict(event, "data"), "status"));

        qobject_unref(event);
        g_assert_cmpstr(status, !=, "failed");
        if (g_str_equal(status, "completed")) {
            return;
        }
    }
}

static void refused_by(Test *t, const char *uri, const char *property)
{
    g_autofree char *command = g_strdup_printf(
        "%s -machine pc,accel=qtest -nodefaults -m 16 -display none "
        "-blockdev file,node-name=file,filename=%s " THROTTLE
        " -global isa-fdc.posted-writes=%s -device floppy,id=f0,drive=slow "
        "-incoming %s", qtest_qemu_binary(NULL), t->path, property, uri);
    g_autofree char *err = NULL;
    int status;

    g_assert_true(g_spawn_command_line_sync(command, NULL, &err, &status,
                                            NULL));
    g_assert_cmpint(status, !=, 0);
    g_assert_nonnull(strstr(err, "property 'posted-writes' must be on here"));
}

static void migrate(bool queued)
{
    g_autofree char *file = NULL;
    g_autofree char *uri = NULL;
    g_autofree char *incoming = NULL;
    Test *t = test_start_on("on", THROTTLE);
    int fd = g_file_open_tmp("posted-fdc-XXXXXX", &file, NULL);

    close(fd);
    uri = g_strdup_printf("file:%s", file);
    incoming = g_strdup_printf("-incoming %s", uri);
    if (queued) {
        stop_with_queue(t);
    } else {
        start_transfer(t);
        send_data(t, 7, true);
        qtest_qmp_assert_success(t->qts, "{'execute': 'stop'}");
    }
    migrate_to_file(t, uri);
    qtest_quit(t->qts);
    if (queued) {
        refused_by(t, uri, "off");
    }
    t->qts = start_qemu(t->path, queued ? "on" : "off", THROTTLE, incoming);
    qtest_qmp_assert_success(t->qts, "{'execute': 'cont'}");
    qtest_qmp_eventwait(t->qts, "RESUME");
    finish_transfer(t);
    test_end(t);
    unlink(file);
}

static void test_migrate(void)
{
    migrate(true);
}

/* Of the state of the controller in a stream, behind its name */
#define STATE_MSR (4 + 4 + 5)           /* instance, version, registers */
#define STATE_DATA_STATE (4 + 4 + 9 + 512 + 8)
#define FORMATTING 0x02

/* Save @t, and load it as a controller that is about to format a sector. */
static void load_formatting(Test *t)
{
    static const char section[] = "\x03" "fdc";
    g_autofree char *file = NULL;
    g_autofree char *uri = NULL;
    g_autofree char *incoming = NULL;
    g_autofree char *data = NULL;
    size_t len;
    char *at;

    close(g_file_open_tmp("posted-fdc-XXXXXX", &file, NULL));
    uri = g_strdup_printf("file:%s", file);
    incoming = g_strdup_printf("-incoming %s", uri);
    qtest_qmp_assert_success(t->qts, "{'execute': 'stop'}");
    migrate_to_file(t, uri);
    qtest_quit(t->qts);
    g_assert_true(g_file_get_contents(file, &data, &len, NULL));
    at = memmem(data, len, section, strlen(section));
    g_assert_nonnull(at);
    at += strlen(section);
    g_assert_cmphex((uint8_t)at[STATE_MSR], ==, RQM);
    g_assert_cmphex(at[STATE_DATA_STATE], ==, 0);
    at[STATE_DATA_STATE] = FORMATTING;
    g_assert_true(g_file_set_contents(file, data, len, NULL));
    t->qts = start_qemu(t->path, "on", BLKDEBUG, incoming);
    qtest_qmp_assert_success(t->qts, "{'execute': 'cont'}");
    qtest_qmp_eventwait(t->qts, "RESUME");
    unlink(file);
}

/*
 * Formatting that was given up has no result.  No command formats in this
 * version of QEMU, but the state in which the next one does can be loaded.
 */
static void test_format_given_up(void)
{
    static const uint8_t command[] = { 0xc5, 0, 0, 0, 1, 2, 0, 0, 1 };
    Test *t = test_start("on");
    char *target;

    load_formatting(t);
    target = drain_disk(t);
    for (int i = 0; i < sizeof(command); i++) {
        send_byte(t, command[i]);
    }
    g_assert_cmpuint(stat_value(t, "async-call-parked"), ==, 1);
    qtest_qmp_assert_success(t->qts, "{'execute': 'system_reset'}");
    qtest_qmp_eventwait(t->qts, "RESET");
    undrain_disk(t, target);
    g_assert_cmpuint(stat_value(t, "async-call-parked"), ==, 0);
    g_assert_cmphex(msr(t), ==, RQM);
    start_transfer(t);
    finish_transfer(t);
    test_end(t);
}

/* Nothing queued: the stream is as ever, for a device that has no queue. */
static void test_migrate_empty(void)
{
    migrate(false);
}

static void hmp(Test *t, const char *command)
{
    g_autofree char *reply = qtest_hmp(t->qts, "%s", command);

    g_assert_cmpstr(reply, ==, "");
}

static void run_qemu_img(const char *format, const char *disk,
                         const char *raw)
{
    g_autofree char *command = g_strdup_printf(format,
                                               getenv("QTEST_QEMU_IMG"), disk,
                                               raw);
    int status;

    g_assert_true(g_spawn_command_line_sync(command, NULL, NULL, &status,
                                            NULL));
    g_assert_cmpint(status, ==, 0);
}

static void test_snapshot(void)
{
    g_autofree char *disk = NULL;
    g_autofree char *node = NULL;
    Test *t;

    if (!have_qemu_img()) {
        g_test_skip("QTEST_QEMU_IMG is not set");
        return;
    }
    close(g_file_open_tmp("posted-fdc-XXXXXX", &disk, NULL));
    run_qemu_img("%s create -q -f qcow2 %s 1440k", disk, NULL);
    /* what is saved goes to the node, behind the drive's throttle */
    node = g_strdup_printf("-drive if=none,id=slow,file=%s,format=qcow2,"
                           "throttling.iops-total=1", disk);
    t = test_start_on("on", node);
    stop_with_queue(t);
    hmp(t, "savevm s");
    for (int i = 0; i < 3; i++) {
        hmp(t, "loadvm s");
        g_assert_cmpuint(stat_value(t, "posted-mmio-now"), ==, IMPOLITE);
        qtest_qmp_assert_success(t->qts, "{'execute': 'cont'}");
        t->sent = SECTOR + IMPOLITE;
        finish_transfer(t);
        g_assert_cmpuint(stat_value(t, "posted-mmio-now"), ==, 0);
        qtest_qmp_assert_success(t->qts, "{'execute': 'stop'}");
    }
    qtest_quit(t->qts);
    run_qemu_img("%s convert -f qcow2 -O raw %s %s", disk, t->path);
    check_image(t);
    unlink(disk);
    test_free(t);
}

/* The end waits for the write on its way, as for one to any disk. */
static void test_quit(void)
{
    Test *t = test_start_on("on", THROTTLE);

    send_and_queue(t);
    qtest_qmp_send(t->qts, "{'execute': 'quit'}");
    qtest_qmp_eventwait(t->qts, "SHUTDOWN");
    qtest_wait_qemu(t->qts);
    test_end(t);
}

static void refused(const char *more, const char *message)
{
    g_autofree char *command = g_strdup_printf(
        "%s -machine pc -display none -S -nodefaults %s -device floppy "
        "-global isa-fdc.posted-writes=on", qtest_qemu_binary(NULL), more);
    g_autofree char *err = NULL;
    int status;

    g_assert_true(g_spawn_command_line_sync(command, NULL, &err, &status,
                                            NULL));
    g_assert_cmpint(status, !=, 0);
    g_assert_nonnull(strstr(err, message));
}

static void test_icount_refused(void)
{
    refused("-accel tcg -icount shift=1", "Property 'posted-writes' of isa-fdc "
            "is on, but must be off with record/replay and icount");
}

/*
 * Random accesses of a controller with, and of one without: same answers, same
 * image.  An answer counts when the queue is empty.
 */
static uint8_t settled_msr(Test *on)
{
    uint8_t value = msr(on);

    while (!(value & RQM) && (stat_value(on, "posted-mmio-now") ||
                              stat_value(on, "async-call-parked"))) {
        value = msr(on);
    }
    return msr(on);
}

static void random_command(Test *const *t, GRand *rand)
{
    static const uint8_t commands[] = {
        0xc5, 0xc5, 0xe6, 0x4d, 0x16, 0x08, 0x07, 0x0f, 0x0a, 0x03, 0x94, 0x0e,
    };
    bool command = true;

    /* to the end of the command, or nearly */
    for (int i = 0; i < 3000; i++) {
        uint8_t value = msr(t[0]);
        uint8_t byte = command ?
            commands[g_rand_int_range(rand, 0, ARRAY_SIZE(commands))] :
            g_rand_int_range(rand, 0, 3);

        g_assert_cmphex(settled_msr(t[1]), ==, value);
        if (!(value & RQM) || !g_rand_int_range(rand, 0, 2000)) {
            break;
        }
        for (int n = 0; n < 2; n++) {
            if (!(value & DIO)) {
                qtest_outb(t[n]->qts, FIFO, byte);
            }
        }
        if (value & DIO) {
            g_assert_cmphex(qtest_inb(t[0]->qts, FIFO), ==,
                            qtest_inb(t[1]->qts, FIFO));
        }
        if (!(value & NONDMA) && (value & DIO)) {
            command = true;
        } else {
            command = false;
        }
    }
    for (int n = 0; n < 2; n++) {
        qtest_outb(t[n]->qts, DOR, 0x10);
        qtest_outb(t[n]->qts, DOR, 0x14);
    }
}

static void test_differential(void)
{
    const char *seed = getenv("HOTPATH_SEED");
    uint32_t number = seed ? atoi(seed) : g_test_rand_int();
    g_autoptr(GRand) rand = g_rand_new_with_seed(number);
    Test *t[2] = { test_start("off"), test_start("on") };
    g_autofree char *data = NULL;

    g_test_message("HOTPATH_SEED=%u", number);
    for (int n = 0; n < 2; n++) {
        qtest_outb(t[n]->qts, DOR, 0x14);
    }
    for (int i = 0; i < 40; i++) {
        random_command(t, rand);
        g_assert_cmphex(settled_msr(t[1]), ==, msr(t[0]));
        g_assert_cmphex(qtest_inb(t[1]->qts, DOR), ==,
                        qtest_inb(t[0]->qts, DOR));
    }
    qtest_quit(t[0]->qts);
    g_assert_true(g_file_get_contents(t[0]->path, &data, NULL, NULL));
    memcpy(t[1]->expected, data, IMAGE_SIZE);
    test_free(t[0]);
    test_end(t[1]);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    qtest_add_func("/posted-fdc/off", test_off);
    qtest_add_func("/posted-fdc/on", test_on);
    qtest_add_func("/posted-fdc/dma", test_dma);
    qtest_add_func("/posted-fdc/dma-stop", test_dma_stop);
    qtest_add_func("/posted-fdc/drained", test_drained);
    qtest_add_func("/posted-fdc/change-dma", test_change_dma);
    qtest_add_func("/posted-fdc/change-queued", test_change_queued);
    qtest_add_func("/posted-fdc/change-stopped", test_change_stopped);
    qtest_add_func("/posted-fdc/disk-cancels", test_disk_cancels);
    qtest_add_func("/posted-fdc/goes-on", test_goes_on);
    qtest_add_func("/posted-fdc/order", test_order);
    qtest_add_func("/posted-fdc/full", test_full);
    qtest_add_func("/posted-fdc/stop", test_stop);
    qtest_add_func("/posted-fdc/reset", test_reset);
    qtest_add_func("/posted-fdc/migrate", test_migrate);
    qtest_add_func("/posted-fdc/migrate-empty", test_migrate_empty);
    qtest_add_func("/posted-fdc/format-given-up", test_format_given_up);
    qtest_add_func("/posted-fdc/snapshot", test_snapshot);
    qtest_add_func("/posted-fdc/quit", test_quit);
    if (qtest_has_accel("tcg")) {
        qtest_add_func("/posted-fdc/icount-refused", test_icount_refused);
    }
    qtest_add_func("/posted-fdc/differential", test_differential);
    return g_test_run();
}

/*
 * QTest: posted writes of the debug console and the parallel port
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The reader is this test, at the other end of a socket that holds little, and
 * reads only when it wants to.  The n-th byte that the guest writes is
 * pattern(n), so what is lost, doubled or out of order shows.
 */

#include "qemu/osdep.h"
#include "async-call-util.h"
#include "qemu/bswap.h"

#define DEBUGCON 0xe9
#define PARALLEL 0x378
#define FIFO_BYTES (64 * 1024)
/* More than the socket holds, less than the FIFO */
#define MANY 3000

#define DEBUGCON_DEVICE "-device isa-debugcon,chardev=c,posted-writes=on"

typedef struct Test {
    QTestState *qts;
    int fd;
    unsigned written;
    unsigned got;
} Test;

static uint8_t pattern(unsigned n)
{
    return (n * 0x9e3779b9u) >> 24;
}

static void test_start(Test *t, const char *devices)
{
    int pair[2];
    int small = 1;

    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), ==, 0);
    setsockopt(pair[1], SOL_SOCKET, SO_SNDBUF, &small, sizeof(small));
    *t = (Test) { .fd = pair[0] };
    g_unix_set_fd_nonblocking(t->fd, true, NULL);
    t->qts = qtest_initf("-machine pc -nodefaults -m 16 "
                         "-chardev socket,id=c,mux=%s,fd=%d %s",
                         strstr(devices, "0x402") ? "on" : "off", pair[1],
                         devices);
    close(pair[1]);
}

static void test_end(Test *t)
{
    qtest_quit(t->qts);
    close(t->fd);
}

static void write_debugcon(Test *t, unsigned count)
{
    while (count--) {
        qtest_outb(t->qts, DEBUGCON, pattern(t->written++));
    }
}

static void write_parallel(Test *t, unsigned count)
{
    while (count--) {
        qtest_outb(t->qts, PARALLEL, pattern(t->written++));
        qtest_outb(t->qts, PARALLEL + 2, 0x0c);
        qtest_outb(t->qts, PARALLEL + 2, 0x0d);
    }
}

/* Read what is there, at most @count bytes, and hold it against the pattern. */
static unsigned read_there(Test *t, unsigned count)
{
    g_autofree uint8_t *data = g_malloc(count);
    ssize_t ret = read(t->fd, data, count);

    g_assert(ret > 0 || (ret < 0 && errno == EAGAIN));
    for (ssize_t i = 0; i < ret; i++) {
        g_assert_cmphex(data[i], ==, pattern(t->got));
        t->got++;
    }
    return MAX(ret, 0);
}

/* Read what the socket holds, of a VM that is stopped. */
static void read_socket(Test *t)
{
    unsigned got;

    do {
        got = read_there(t, 4096);
    } while (got);
}

/* Read all that was written, and see that nothing follows. */
static void read_rest(Test *t)
{
    while (t->got < t->written) {
        if (!read_there(t, 4096)) {
            g_usleep(100);
        }
    }
    qtest_inb(t->qts, DEBUGCON);
    g_assert_cmpuint(read_there(t, 4096), ==, 0);
}

/* Nobody reads: without posted writes the first byte too many would hang. */
static void test_debugcon(void)
{
    Test t;

    test_start(&t, DEBUGCON_DEVICE);
    write_debugcon(&t, MANY);
    g_assert_cmphex(qtest_inb(t.qts, DEBUGCON), ==, 0xe9);
    g_assert_cmpuint(async_stat(t.qts, "async-call-chardev-inlined"), >, 0);
    g_assert_cmpuint(async_stat(t.qts, "async-call-chardev-parked") +
                     async_stat(t.qts, "async-call-chardev-inlined"), ==, MANY);
    read_rest(&t);
    /* with a reader that keeps up, nothing waits */
    write_debugcon(&t, 1);
    read_rest(&t);
    test_end(&t);
}

static void test_parallel(void)
{
    Test t;

    test_start(&t, "-device isa-parallel,chardev=c,posted-writes=on");
    write_parallel(&t, MANY);
    g_assert_cmpuint(async_stat(t.qts, "async-call-chardev-parked"), >, 0);
    while (t.got < t.written) {
        read_there(&t, 4096);
    }
    test_end(&t);
}

static void test_random(void)
{
    Test t;

    test_start(&t, DEBUGCON_DEVICE);
    for (int i = 0; i < 200; i++) {
        write_debugcon(&t, g_test_rand_int_range(0, 100));
        read_there(&t, g_test_rand_int_range(1, 200));
    }
    read_rest(&t);
    test_end(&t);
}

/* Reads nothing before QEMU has been sent a byte too many. */
static void *late_reader(void *opaque)
{
    Test *t = opaque;
    unsigned end = FIFO_BYTES + 2 * MANY;

    while (qatomic_read(&t->written) < FIFO_BYTES) {
        g_usleep(1000);
    }
    /* the next byte or one soon after it is too many; give QEMU time for it */
    g_usleep(500 * 1000);
    while (t->got < end) {
        if (!read_there(t, 4096)) {
            g_usleep(100);
        }
    }
    return NULL;
}

/* More than the FIFO holds: the vCPU waits, as without, and all is in order. */
static void test_full(void)
{
    GThread *thread;
    Test t;

    test_start(&t, DEBUGCON_DEVICE);
    write_debugcon(&t, FIFO_BYTES);
    g_assert_cmpuint(async_stat(t.qts, "async-call-chardev-refused"), ==, 0);
    thread = g_thread_new("reader", late_reader, &t);
    while (t.written < FIFO_BYTES + 2 * MANY) {
        qtest_outb(t.qts, DEBUGCON, pattern(t.written));
        qatomic_set(&t.written, t.written + 1);
    }
    g_thread_join(thread);
    g_assert_cmpuint(async_stat(t.qts, "async-call-chardev-refused"), >, 0);
    g_assert_cmpuint(read_there(&t, 4096), ==, 0);
    test_end(&t);
}

/* Stopped: what waits is state of the device and stays where it is. */
static void test_stop(void)
{
    Test t;

    test_start(&t, DEBUGCON_DEVICE);
    write_debugcon(&t, MANY);
    qtest_qmp_assert_success(t.qts, "{'execute': 'stop'}");
    for (int i = 0; i < 50; i++) {
        read_there(&t, 4096);
        qtest_qmp_assert_success(t.qts, "{'execute': 'query-status'}");
    }
    g_assert_cmpuint(t.got, <, MANY);
    qtest_qmp_assert_success(t.qts, "{'execute': 'cont'}");
    read_rest(&t);
    test_end(&t);
}

static void test_reset(void)
{
    Test t;

    test_start(&t, DEBUGCON_DEVICE);
    write_debugcon(&t, MANY);
    qtest_qmp_assert_success(t.qts, "{'execute': 'system_reset'}");
    qtest_qmp_eventwait(t.qts, "RESET");
    write_debugcon(&t, 10);
    read_rest(&t);
    test_end(&t);
}

static void test_quit(void)
{
    Test t;

    test_start(&t, DEBUGCON_DEVICE);
    write_debugcon(&t, MANY);
    test_end(&t);
}

/* The reader goes away: what waits is lost, as without, and nothing hangs. */
static void test_reader_gone(void)
{
    Test t;

    test_start(&t, DEBUGCON_DEVICE);
    write_debugcon(&t, MANY);
    close(t.fd);
    write_debugcon(&t, MANY);
    qtest_quit(t.qts);
}

typedef struct Saved {
    Test source;
    char *path;
} Saved;

/* A VM that was saved with output waiting; @got is what its reader has. */
static void saved_init(Saved *s, const char *devices)
{
    int fd = g_file_open_tmp("char-post-XXXXXX", &s->path, NULL);

    close(fd);
    test_start(&s->source, devices);
    if (strstr(devices, "parallel")) {
        write_parallel(&s->source, MANY);
    } else {
        write_debugcon(&s->source, MANY);
    }
    async_save(s->source.qts, s->path);
    while (read_there(&s->source, 4096)) {
        qtest_qmp_assert_success(s->source.qts, "{'execute': 'query-status'}");
    }
    g_assert_cmpuint(s->source.got, <, MANY);
}

static void saved_end(Saved *s)
{
    /* it never wrote any more */
    g_assert_cmpuint(read_there(&s->source, 4096), ==, 0);
    test_end(&s->source);
    unlink(s->path);
    g_free(s->path);
}

static void check_migration(const char *devices)
{
    g_autofree char *incoming = g_strdup_printf("%s -incoming defer", devices);
    Saved s;
    Test t;

    saved_init(&s, devices);
    test_start(&t, incoming);
    t.written = s.source.written;
    t.got = s.source.got;
    g_assert_true(async_load(t.qts, s.path));
    qtest_qmp_assert_success(t.qts, "{'execute': 'cont'}");
    while (t.got < t.written) {
        read_there(&t, 4096);
    }
    g_assert_cmpuint(read_there(&t, 4096), ==, 0);
    test_end(&t);
    saved_end(&s);
}

static void test_migrate_debugcon(void)
{
    check_migration(DEBUGCON_DEVICE);
}

static void test_migrate_parallel(void)
{
    check_migration("-device isa-parallel,chardev=c,posted-writes=on");
}

/* Where the property is off there is no place for what waits. */
static void test_migrate_off(void)
{
    Saved s;
    Test t;

    saved_init(&s, DEBUGCON_DEVICE);
    test_start(&t, "-device isa-debugcon,chardev=c -incoming defer");
    g_assert_false(async_load(t.qts, s.path));
    test_end(&t);
    saved_end(&s);
}

/* A stream that points out of the FIFO */
static void test_migrate_hostile(void)
{
    static const char section[] = "\x0cisa-debugcon";
    g_autofree char *data = NULL;
    size_t len;
    uint8_t *at;
    Saved s;
    Test t;

    saved_init(&s, DEBUGCON_DEVICE);
    g_assert_true(g_file_get_contents(s.path, &data, &len, NULL));
    at = memmem(data, len, section, strlen(section));
    g_assert_nonnull(at);
    at += strlen(section) + 4 + 4;      /* instance, version */
    g_assert_cmpuint(ldl_be_p(at), <, FIFO_BYTES);
    for (int field = 0; field < 2; field++) {
        uint32_t good = ldl_be_p(at + field * 4);

        stl_be_p(at + field * 4, FIFO_BYTES + 1);
        g_assert_true(g_file_set_contents(s.path, data, len, NULL));
        test_start(&t, DEBUGCON_DEVICE " -incoming defer");
        g_assert_false(async_load(t.qts, s.path));
        test_end(&t);
        stl_be_p(at + field * 4, good);
    }
    saved_end(&s);
}

/* Nothing of it is in the stream when nothing waits. */
static void test_migrate_empty(void)
{
    g_autofree char *path = NULL;
    g_autofree char *data = NULL;
    size_t len;
    Test t;

    close(g_file_open_tmp("char-post-XXXXXX", &path, NULL));
    test_start(&t, DEBUGCON_DEVICE);
    write_debugcon(&t, 1);
    read_rest(&t);
    async_save(t.qts, path);
    g_assert_true(g_file_get_contents(path, &data, &len, NULL));
    g_assert_null(memmem(data, len, "isa-debugcon", 12));
    test_end(&t);
    unlink(path);
}

/*
 * A snapshot in which nothing waits is loaded while something does: it is not
 * written, for it has not been written yet when the snapshot was made.
 */
static void check_snapshot_empty(const char *device,
                                 void (*write_bytes)(Test *t, unsigned count))
{
    g_autofree char *raw = NULL;
    g_autofree char *qcow = NULL;
    g_autofree char *devices = NULL;
    unsigned saved;
    Test t;

    close(g_file_open_tmp("char-post-XXXXXX", &raw, NULL));
    g_assert_cmpint(truncate(raw, 1024 * 1024), ==, 0);
    qcow = g_strdup_printf("%s.qcow2", raw);
    if (async_convert(raw, "raw", qcow, "qcow2")) {
        devices = g_strdup_printf("-blockdev file,node-name=file,filename=%s "
                                  "-blockdev qcow2,node-name=qcow,file=file %s",
                                  qcow, device);
        test_start(&t, devices);
        write_bytes(&t, 1);
        read_rest(&t);
        g_assert_true(async_snapshot(t.qts, "snapshot-save"));
        saved = t.written;
        write_bytes(&t, MANY);
        qtest_qmp_assert_success(t.qts, "{'execute': 'stop'}");
        read_socket(&t);
        g_assert_cmpuint(t.got, <, t.written);
        g_assert_true(async_snapshot(t.qts, "snapshot-load"));
        qtest_qmp_assert_success(t.qts, "{'execute': 'cont'}");
        qtest_qmp_assert_success(t.qts, "{'execute': 'query-status'}");
        g_assert_cmpuint(read_there(&t, 4096), ==, 0);
        /* the guest is as it was, and writes what it wrote then */
        t.written = t.got = saved;
        write_bytes(&t, MANY);
        read_rest(&t);
        test_end(&t);
        unlink(qcow);
    }
    unlink(raw);
}

static void test_snapshot_empty(void)
{
    check_snapshot_empty(DEBUGCON_DEVICE, write_debugcon);
    check_snapshot_empty("-device isa-parallel,chardev=c,posted-writes=on",
                         write_parallel);
}

/* What waits at a snapshot waits again when it is loaded. */
static void test_snapshot(void)
{
    g_autofree char *raw = NULL;
    g_autofree char *qcow = NULL;
    g_autofree char *devices = NULL;
    unsigned got;
    Test t;

    close(g_file_open_tmp("char-post-XXXXXX", &raw, NULL));
    g_assert_cmpint(truncate(raw, 1024 * 1024), ==, 0);
    qcow = g_strdup_printf("%s.qcow2", raw);
    if (async_convert(raw, "raw", qcow, "qcow2")) {
        devices = g_strdup_printf("-blockdev file,node-name=file,filename=%s "
                                  "-blockdev qcow2,node-name=qcow,file=file "
                                  DEBUGCON_DEVICE, qcow);
        test_start(&t, devices);
        write_debugcon(&t, MANY);
        qtest_qmp_assert_success(t.qts, "{'execute': 'stop'}");
        g_assert_true(async_snapshot(t.qts, "snapshot-save"));
        read_socket(&t);
        got = t.got;
        for (int i = 0; i < 2; i++) {
            qtest_qmp_assert_success(t.qts, "{'execute': 'cont'}");
            read_rest(&t);
            qtest_qmp_assert_success(t.qts, "{'execute': 'stop'}");
            g_assert_true(async_snapshot(t.qts, "snapshot-load"));
            t.got = got;
        }
        test_end(&t);
        unlink(qcow);
    }
    unlink(raw);
}

/* Two devices that write to one chardev: each one's bytes in their order */
static void test_two_writers(void)
{
    unsigned next[2] = { };
    unsigned got = 0;
    Test t;

    test_start(&t, "-device isa-debugcon,chardev=c,posted-writes=on "
               "-device isa-debugcon,chardev=c,iobase=0x402,posted-writes=on");
    for (unsigned i = 0; i < MANY; i++) {
        qtest_outb(t.qts, 0xe9, i % 100);
        qtest_outb(t.qts, 0x402, 0x80 | i % 100);
    }
    while (got < 2 * MANY) {
        uint8_t c;

        if (read(t.fd, &c, 1) != 1) {
            g_assert_cmpint(errno, ==, EAGAIN);
            g_usleep(100);
            continue;
        }
        g_assert_cmpuint(c & 0x7f, ==, next[c >> 7]++ % 100);
        got++;
    }
    test_end(&t);
}

static void test_icount_refused(void)
{
    g_autofree char *command = g_strdup_printf(
        "%s -machine pc -nodefaults -display none -S -accel tcg "
        "-icount shift=1 -chardev null,id=c "
        "-device isa-debugcon,chardev=c,posted-writes=on",
        qtest_qemu_binary(NULL));

    async_check_refused(command, "Property 'posted-writes' of isa-debugcon is "
                        "on, but must be off with record/replay and icount");
}

int main(int argc, char **argv)
{
    signal(SIGPIPE, SIG_IGN);
    g_test_init(&argc, &argv, NULL);
    qtest_add_func("/char-post/debugcon", test_debugcon);
    qtest_add_func("/char-post/parallel", test_parallel);
    qtest_add_func("/char-post/random", test_random);
    qtest_add_func("/char-post/full", test_full);
    qtest_add_func("/char-post/stop", test_stop);
    qtest_add_func("/char-post/reset", test_reset);
    qtest_add_func("/char-post/quit", test_quit);
    qtest_add_func("/char-post/reader-gone", test_reader_gone);
    qtest_add_func("/char-post/two-writers", test_two_writers);
    qtest_add_func("/char-post/migrate/debugcon", test_migrate_debugcon);
    qtest_add_func("/char-post/migrate/parallel", test_migrate_parallel);
    qtest_add_func("/char-post/migrate/off", test_migrate_off);
    qtest_add_func("/char-post/migrate/hostile", test_migrate_hostile);
    qtest_add_func("/char-post/migrate/empty", test_migrate_empty);
    qtest_add_func("/char-post/snapshot", test_snapshot);
    qtest_add_func("/char-post/snapshot-empty", test_snapshot_empty);
    qtest_add_func("/char-post/icount-refused", test_icount_refused);
    return g_test_run();
}

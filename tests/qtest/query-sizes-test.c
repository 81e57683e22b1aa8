/*
 * QTest: query-block does not stop the VM for a slow server
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * slow-fstat.c, preloaded into QEMU, is the server.  "The VM goes on" is shown
 * by QEMU answering the qtest protocol, which its main thread does under the
 * BQL, while a query waits.
 */

#include "qemu/osdep.h"
#include "libqtest.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"

#define HOUR_MS "3600000"
#define SHORT_MS "100"
/* MAX_RUNNING of query-sizes.c */
#define FILES_AT_A_TIME 32
#define IMAGE_SIZE (1024 * 1024)

typedef struct Test {
    QTestState *qts;
    char *dir;
    char *gate;
    char *waiting;
} Test;

static char *shim;

static char *path_in(Test *t, const char *name)
{
    return g_build_filename(t->dir, name, NULL);
}

/* An image with something allocated in it */
static void make_image(Test *t, const char *name, size_t used)
{
    g_autofree char *path = path_in(t, name);
    g_autofree char *data = g_malloc(used);
    /* not a new file: QEMU may have this one open */
    int fd = open(path, O_WRONLY | O_CREAT, 0600);

    memset(data, 0x5a, used);
    g_assert_cmpint(write(fd, data, used), ==, used);
    g_assert_cmpint(ftruncate(fd, IMAGE_SIZE), ==, 0);
    /* some file systems decide what is allocated not before this */
    g_assert_cmpint(fsync(fd), ==, 0);
    close(fd);
}

static void gate_close(Test *t)
{
    g_assert_true(g_file_set_contents(t->gate, "", 0, NULL));
}

static void gate_open(Test *t)
{
    g_assert_cmpint(unlink(t->gate), ==, 0);
}

/* Only in other threads than the main one, which has files to open */
static void threads_close(Test *t)
{
    g_autofree char *gate = g_strdup_printf("%s.threads", t->gate);

    g_assert_true(g_file_set_contents(gate, "", 0, NULL));
}

static void threads_open(Test *t)
{
    g_autofree char *gate = g_strdup_printf("%s.threads", t->gate);

    g_assert_cmpint(unlink(gate), ==, 0);
}

/* How many fstat() calls have ever met the closed gate */
static int gate_waiting(Test *t)
{
    struct stat st;

    return stat(t->waiting, &st) ? 0 : st.st_size;
}

static void gate_wait(Test *t, int calls)
{
    while (gate_waiting(t) < calls) {
        g_usleep(1000);
    }
}

static Test *test_start(const char *deadline_ms, const char *extra)
{
    const char *old = g_getenv("ASAN_OPTIONS");
    g_autofree char *asan = g_strdup_printf("%s%sverify_asan_link_order=0",
                                            old ?: "", old ? ":" : "");
    Test *t = g_new0(Test, 1);

    t->dir = g_dir_make_tmp("query-sizes-XXXXXX", NULL);
    t->gate = path_in(t, "gate");
    t->waiting = path_in(t, "gate.waiting");
    make_image(t, "a.slow", 64 * 1024);
    make_image(t, "b.fast", 128 * 1024);
    g_setenv("SLOW_FSTAT", t->gate, true);
    g_setenv("LD_PRELOAD", shim, true);
    /* its runtime wants to be the first library, which now the shim is */
    g_setenv("ASAN_OPTIONS", asan, true);
    t->qts = qtest_initf("-machine q35,query-block-deadline-ms=%s "
                         "-blockdev file,node-name=slow,filename=%s/a.slow "
                         "-blockdev file,node-name=fast,filename=%s/b.fast "
                         "-blockdev raw,node-name=fmt,file=slow "
                         "-device virtio-blk,drive=fmt,id=disk0 "
                         "-device virtio-blk,drive=fast,id=disk1 %s",
                         deadline_ms, t->dir, t->dir, extra);
    g_unsetenv("LD_PRELOAD");
    return t;
}

static void test_end(Test *t)
{
    const char *name;
    GDir *dir;

    if (t->qts) {
        qtest_quit(t->qts);
    }
    dir = g_dir_open(t->dir, 0, NULL);
    while ((name = g_dir_read_name(dir))) {
        g_autofree char *path = path_in(t, name);

        unlink(path);
    }
    g_dir_close(dir);
    rmdir(t->dir);
    g_free(t->dir);
    g_free(t->gate);
    g_free(t->waiting);
    g_free(t);
}

/* What fstat() says here, where no server is slow */
static int64_t real_size(Test *t, const char *name)
{
    g_autofree char *path = path_in(t, name);
    struct stat st;

    g_assert_cmpint(stat(path, &st), ==, 0);
    return (int64_t)st.st_blocks * 512;
}

static void check_image(QDict *node, int64_t expected)
{
    QDict *image = qdict_get_qdict(node, "image");

    g_assert_cmpint(qdict_get_int(image, "virtual-size"), ==, IMAGE_SIZE);
    g_assert_cmpint(qdict_get_try_int(image, "actual-size", -1), ==, expected);
}

/* Hold a reply of query-block against the sizes; -1: must be left out. */
static void check_block(QDict *reply, int64_t slow, int64_t fast)
{
    const QListEntry *e;
    int seen = 0;

    g_assert_true(qdict_haskey(reply, "return"));
    QLIST_FOREACH_ENTRY(qdict_get_qlist(reply, "return"), e) {
        QDict *info = qobject_to(QDict, qlist_entry_obj(e));
        QDict *inserted = qdict_get_qdict(info, "inserted");
        const char *name;

        if (!inserted) {
            continue;
        }
        name = qdict_get_str(inserted, "node-name");
        check_image(inserted, g_str_equal(name, "fmt") ? slow : fast);
        seen++;
    }
    g_assert_cmpint(seen, ==, 2);
    qobject_unref(reply);
}

static void query_and_check(Test *t, int64_t slow, int64_t fast)
{
    check_block(qtest_qmp(t->qts, "{'execute': 'query-block'}"), slow, fast);
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

/* The main thread serves the guest: this fails the test by its timeout. */
static void check_vm_goes_on(Test *t)
{
    for (int i = 0; i < 100; i++) {
        qtest_outb(t->qts, 0x70, 0x0f);
        qtest_inb(t->qts, 0x71);
        qtest_clock_step(t->qts, 1000);
    }
}

static void test_off(void)
{
    Test *t = test_start("0", "");

    query_and_check(t, real_size(t, "a.slow"), real_size(t, "b.fast"));
    test_end(t);
}

static void test_answers(void)
{
    Test *t = test_start(HOUR_MS, "");
    QDict *reply;
    const QListEntry *e;
    int seen = 0;

    query_and_check(t, real_size(t, "a.slow"), real_size(t, "b.fast"));
    g_assert_cmpuint(stat_value(t, "async-call-query-block-parked"), ==, 1);

    /* what is allocated since then is reported */
    make_image(t, "b.fast", 512 * 1024);
    query_and_check(t, real_size(t, "a.slow"), real_size(t, "b.fast"));

    reply = qtest_qmp(t->qts, "{'execute': 'query-named-block-nodes'}");
    QLIST_FOREACH_ENTRY(qdict_get_qlist(reply, "return"), e) {
        QDict *node = qobject_to(QDict, qlist_entry_obj(e));
        const char *name = qdict_get_str(node, "node-name");

        check_image(node, real_size(t, g_str_equal(name, "fast") ? "b.fast"
                                                                : "a.slow"));
        seen++;
    }
    g_assert_cmpint(seen, ==, 3);
    qobject_unref(reply);
    g_assert_cmpuint(stat_value(t, "async-call-sizes-left-out"), ==, 0);
    test_end(t);
}

static void test_vm_goes_on(void)
{
    Test *t = test_start(HOUR_MS, "");

    gate_close(t);
    qtest_qmp_send(t->qts, "{'execute': 'query-block'}");
    gate_wait(t, 1);
    check_vm_goes_on(t);
    gate_open(t);
    check_block(qtest_qmp_receive(t->qts), real_size(t, "a.slow"),
                real_size(t, "b.fast"));
    test_end(t);
}

static void test_deadline(void)
{
    Test *t = test_start(SHORT_MS, "");

    gate_close(t);
    query_and_check(t, -1, real_size(t, "b.fast"));
    g_assert_cmpuint(stat_value(t, "async-call-query-block-timed-out"), ==, 1);
    g_assert_cmpuint(stat_value(t, "async-call-jobs"), ==, 1);
    g_assert_cmpint(gate_waiting(t), ==, 1);

    /* neither asked nor waited for again */
    for (int i = 0; i < 5; i++) {
        query_and_check(t, -1, real_size(t, "b.fast"));
    }
    g_assert_cmpuint(stat_value(t, "async-call-query-block-timed-out"), ==, 1);
    g_assert_cmpint(gate_waiting(t), ==, 1);

    /* when it has answered it is like any other */
    gate_open(t);
    while (stat_value(t, "async-call-parked")) {
        g_usleep(1000);
    }
    query_and_check(t, real_size(t, "a.slow"), real_size(t, "b.fast"));
    test_end(t);
}

/* A node can be deleted, and another take its name, while its file is asked */
static void test_deleted(void)
{
    Test *t = test_start(SHORT_MS, "");
    g_autofree char *path = path_in(t, "c.slow");

    make_image(t, "c.slow", 256 * 1024);
    qtest_qmp_assert_success(t->qts, "{'execute': 'blockdev-add', 'arguments':"
                             " {'driver': 'file', 'node-name': 'gone',"
                             " 'filename': %s}}", path);
    gate_close(t);
    query_and_check(t, -1, real_size(t, "b.fast"));
    g_assert_cmpint(gate_waiting(t), ==, 2);
    qtest_qmp_assert_success(t->qts, "{'execute': 'blockdev-del', 'arguments':"
                             " {'node-name': 'gone'}}");
    g_assert_cmpuint(stat_value(t, "async-call-fstat-cancelled"), ==, 1);
    g_assert_cmpuint(stat_value(t, "async-call-parked"), ==, 1);
    gate_open(t);
    while (stat_value(t, "async-call-jobs")) {
        g_usleep(1000);
    }
    qtest_qmp_assert_success(t->qts, "{'execute': 'blockdev-add', 'arguments':"
                             " {'driver': 'file', 'node-name': 'gone',"
                             " 'filename': %s}}", path);
    query_and_check(t, real_size(t, "a.slow"), real_size(t, "b.fast"));
    test_end(t);
}

static void test_hmp_in_qmp(void)
{
    Test *t = test_start(HOUR_MS, "");
    QDict *reply;

    gate_close(t);
    qtest_qmp_send(t->qts, "{'execute': 'human-monitor-command', 'arguments':"
                   " {'command-line': ' info block -v'}}");
    gate_wait(t, 1);
    check_vm_goes_on(t);
    gate_open(t);
    reply = qtest_qmp_receive(t->qts);
    g_assert_nonnull(strstr(qdict_get_str(reply, "return"), "a.slow"));
    qobject_unref(reply);

    /* one that asks for no size does not wait */
    gate_close(t);
    reply = qtest_qmp(t->qts, "{'execute': 'human-monitor-command',"
                      " 'arguments': {'command-line': 'info block-jobs'}}");
    g_assert_true(qdict_haskey(reply, "return"));
    qobject_unref(reply);
    gate_open(t);
    test_end(t);
}

static void read_until(int fd, const char *text)
{
    g_autoptr(GString) got = g_string_new(NULL);
    char c;

    while (!strstr(got->str, text)) {
        g_assert_cmpint(read(fd, &c, 1), ==, 1);
        g_string_append_c(got, c);
    }
}

static void write_line(int fd, const char *line)
{
    g_assert_cmpint(write(fd, line, strlen(line)), ==, strlen(line));
}

static void test_hmp(void)
{
    int pair[2];
    g_autofree char *mon = NULL;
    Test *t;

    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), ==, 0);
    mon = g_strdup_printf("-chardev socket,id=hmp,fd=%d "
                          "-mon chardev=hmp,mode=readline", pair[1]);
    t = test_start(HOUR_MS, mon);
    close(pair[1]);
    read_until(pair[0], "(qemu) ");

    gate_close(t);
    write_line(pair[0], "info block -v\n");
    gate_wait(t, 1);
    check_vm_goes_on(t);
    /* what is typed meanwhile waits for its turn */
    write_line(pair[0], "info async-calls\n");
    check_vm_goes_on(t);
    gate_open(t);
    read_until(pair[0], "a.slow");
    read_until(pair[0], "b.fast");
    read_until(pair[0], "query-block: now 0, inlined 0, parked 1");
    read_until(pair[0], "(qemu) ");
    close(pair[0]);
    test_end(t);
}

/* An end while a query waits, for which there is an hour */
static void test_quit(void)
{
    Test *t = test_start(HOUR_MS, "");

    gate_close(t);
    qtest_qmp_send(t->qts, "{'execute': 'query-block'}");
    gate_wait(t, 1);
    qtest_quit(t->qts);
    t->qts = NULL;
    test_end(t);
}

/* Stop and reset meanwhile: nothing waits for a file. */
static void test_stop_reset(void)
{
    Test *t = test_start(SHORT_MS, "");

    gate_close(t);
    query_and_check(t, -1, real_size(t, "b.fast"));
    qtest_qmp_assert_success(t->qts, "{'execute': 'stop'}");
    qtest_qmp_assert_success(t->qts, "{'execute': 'system_reset'}");
    qtest_qmp_eventwait(t->qts, "RESET");
    qtest_qmp_assert_success(t->qts, "{'execute': 'cont'}");
    query_and_check(t, -1, real_size(t, "b.fast"));
    gate_open(t);
    test_end(t);
}

static void test_reopen(void)
{
    Test *t = test_start(SHORT_MS, "");
    QDict *reply;

    gate_close(t);
    query_and_check(t, -1, real_size(t, "b.fast"));
    reply = qtest_qmp(t->qts, "{'execute': 'blockdev-reopen', 'arguments':"
                      " {'options': [{'driver': 'raw', 'node-name': 'fmt',"
                      " 'file': 'slow', 'read-only': false}]}}");
    g_assert_true(qdict_haskey(reply, "return"));
    qobject_unref(reply);
    gate_open(t);
    test_end(t);
}

static char *make_overlay(Test *t, const char *base)
{
    g_autofree char *base_path = path_in(t, base);
    char *path = path_in(t, "top.qcow2");
    const char *argv[] = {
        getenv("QTEST_QEMU_IMG"), "create", "-q", "-f", "qcow2", "-F", "raw",
        "-b", base_path, path, NULL,
    };
    int status;

    g_assert_true(g_spawn_sync(NULL, (char **)argv, NULL, G_SPAWN_DEFAULT,
                               NULL, NULL, NULL, NULL, &status, NULL));
    g_assert_cmpint(status, ==, 0);
    return path;
}

static bool is_locked(const char *path)
{
    int fd = open(path, O_RDWR);
    struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET };

    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(fcntl(fd, F_OFD_GETLK, &lock), ==, 0);
    close(fd);
    return lock.l_type != F_UNLCK;
}

/*
 * A file is opened anew, for writing, while it is asked: what the thread has
 * is a duplicate of the old descriptor and must not keep its locks.
 */
static void test_commit(void)
{
    g_autofree char *base = NULL;
    g_autofree char *top = NULL;
    Test *t;

    if (!have_qemu_img()) {
        g_test_skip("QTEST_QEMU_IMG is not set");
        return;
    }
    t = test_start(SHORT_MS, "-device virtio-scsi,id=scsi");
    make_image(t, "base.slow", 64 * 1024);
    base = path_in(t, "base.slow");
    top = make_overlay(t, "base.slow");
    qtest_qmp_assert_success(t->qts, "{'execute': 'blockdev-add', 'arguments':"
                             " {'driver': 'qcow2', 'node-name': 'top', 'file':"
                             " {'driver': 'file', 'filename': %s}}}", top);
    threads_close(t);
    query_and_check(t, -1, real_size(t, "b.fast"));
    gate_wait(t, 2);
    qtest_qmp_device_add(t->qts, "scsi-hd", "disk2",
                         "{'bus': 'scsi.0', 'drive': 'top'}");
    g_assert_true(is_locked(base));

    qtest_qmp_assert_success(t->qts, "{'execute': 'block-commit', 'arguments':"
                             " {'job-id': 'job', 'device': 'top'}}");
    qtest_qmp_eventwait(t->qts, "BLOCK_JOB_READY");
    g_assert_true(is_locked(base));
    qtest_qmp_assert_success(t->qts, "{'execute': 'job-complete',"
                             " 'arguments': {'id': 'job'}}");
    qtest_qmp_eventwait(t->qts, "BLOCK_JOB_COMPLETED");
    g_assert_true(is_locked(base));
    qtest_qmp_device_del(t->qts, "disk2");
    qtest_qmp_assert_success(t->qts, "{'execute': 'blockdev-del', 'arguments':"
                             " {'node-name': 'top'}}");
    /* the thread still has its descriptor */
    g_assert_cmpuint(stat_value(t, "async-call-jobs"), ==, 2);
    g_assert_false(is_locked(base));
    threads_open(t);
    while (stat_value(t, "async-call-jobs")) {
        g_usleep(1000);
    }
    query_and_check(t, real_size(t, "a.slow"), real_size(t, "b.fast"));
    test_end(t);
}

static void test_bad_value(void)
{
    Test *t = test_start("0", "");
    QDict *reply = qtest_qmp(t->qts, "{'execute': 'qom-set', 'arguments':"
                             " {'path': '/machine', 'property':"
                             " 'query-block-deadline-ms', 'value': 3600001}}");
    QDict *error = qdict_get_qdict(reply, "error");

    g_assert_cmpstr(qdict_get_str(error, "desc"), ==,
                    "Property 'query-block-deadline-ms' is 3600001, but must "
                    "be from 0 to 3600000");
    qobject_unref(reply);
    test_end(t);
}

/* More files than are asked at a time */
static void test_many(void)
{
    const int count = 80;
    Test *t = test_start(HOUR_MS, "");

    for (int i = 0; i < count; i++) {
        g_autofree char *name = g_strdup_printf("m%d.slow", i);
        g_autofree char *path = path_in(t, name);

        make_image(t, name, 4096);
        qtest_qmp_assert_success(t->qts, "{'execute': 'blockdev-add',"
                                 " 'arguments': {'driver': 'file',"
                                 " 'node-name': %s, 'filename': %s}}",
                                 name, path);
    }
    gate_close(t);
    qtest_qmp_send(t->qts, "{'execute': 'query-block'}");
    gate_wait(t, FILES_AT_A_TIME);
    check_vm_goes_on(t);
    g_assert_cmpint(gate_waiting(t), ==, FILES_AT_A_TIME);
    gate_open(t);
    check_block(qtest_qmp_receive(t->qts), real_size(t, "a.slow"),
                real_size(t, "b.fast"));
    g_assert_cmpuint(stat_value(t, "async-call-sizes-left-out"), ==, 0);
    test_end(t);
}

int main(int argc, char **argv)
{
    g_autofree char *self = g_file_read_link("/proc/self/exe", NULL);
    g_autofree char *dir = g_path_get_dirname(self);

    g_test_init(&argc, &argv, NULL);
    shim = g_build_filename(dir, "libslow-fstat.so", NULL);
    g_assert_true(g_file_test(shim, G_FILE_TEST_EXISTS));

    qtest_add_func("/query-sizes/off", test_off);
    qtest_add_func("/query-sizes/answers", test_answers);
    qtest_add_func("/query-sizes/vm-goes-on", test_vm_goes_on);
    qtest_add_func("/query-sizes/deadline", test_deadline);
    qtest_add_func("/query-sizes/deleted", test_deleted);
    qtest_add_func("/query-sizes/hmp-in-qmp", test_hmp_in_qmp);
    qtest_add_func("/query-sizes/hmp", test_hmp);
    qtest_add_func("/query-sizes/quit", test_quit);
    qtest_add_func("/query-sizes/stop-reset", test_stop_reset);
    qtest_add_func("/query-sizes/reopen", test_reopen);
    qtest_add_func("/query-sizes/commit", test_commit);
    qtest_add_func("/query-sizes/bad-value", test_bad_value);
    qtest_add_func("/query-sizes/many", test_many);
    return g_test_run();
}

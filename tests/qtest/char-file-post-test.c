/*
 * QTest: posted output of character device "file"
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * slow-fstat.c, preloaded into QEMU, is the file's server.  A vCPU that waits
 * for it is ended by an alarm.
 */

#include "qemu/osdep.h"
#include "libqtest.h"

#define LIMIT_S 120
#define DEBUGCON 0xe9
/* More than may be on its way */
#define MANY 20000

typedef struct Test {
    QTestState *qts;
    char *dir;
    char *gate;
    char *path;
    unsigned written;
} Test;

static char *shim;

static uint8_t pattern(unsigned n)
{
    return (n * 0x9e3779b9u) >> 24;
}

static void gate_close(Test *t)
{
    g_assert_true(g_file_set_contents(t->gate, "", 0, NULL));
}

static void gate_open(Test *t)
{
    g_assert_cmpint(unlink(t->gate), ==, 0);
}

static void test_start(Test *t, const char *property)
{
    const char *old = g_getenv("ASAN_OPTIONS");
    g_autofree char *asan = g_strdup_printf("%s%sverify_asan_link_order=0",
                                            old ?: "", old ? ":" : "");

    alarm(LIMIT_S);
    *t = (Test) { .dir = g_dir_make_tmp("char-file-post-XXXXXX", NULL) };
    t->gate = g_build_filename(t->dir, "gate", NULL);
    t->path = g_build_filename(t->dir, "out.slow", NULL);
    g_setenv("SLOW_FSTAT", t->gate, true);
    g_setenv("SLOW_CLOSE", "", true);
    g_setenv("LD_PRELOAD", shim, true);
    g_setenv("ASAN_OPTIONS", asan, true);
    t->qts = qtest_initf("-machine pc -nodefaults -m 16 "
                         "-chardev file,id=c,path=%s,posted-writes=on "
                         "-device isa-debugcon,chardev=c,posted-writes=%s",
                         t->path, property);
    g_unsetenv("LD_PRELOAD");
}

static void test_free(Test *t)
{
    g_autofree char *waiting = g_strdup_printf("%s.waiting", t->gate);

    unlink(t->gate);
    unlink(waiting);
    unlink(t->path);
    rmdir(t->dir);
    g_free(t->gate);
    g_free(t->path);
    g_free(t->dir);
    alarm(0);
}

static void write_bytes(Test *t, unsigned count)
{
    while (count--) {
        qtest_outb(t->qts, DEBUGCON, pattern(t->written++));
    }
}

/* Returns how much the file has, in order. */
static unsigned check_file(Test *t)
{
    g_autofree char *data = NULL;
    size_t len;

    g_assert_true(g_file_get_contents(t->path, &data, &len, NULL));
    g_assert_cmpuint(len, <=, t->written);
    for (size_t i = 0; i < len; i++) {
        g_assert_cmphex((uint8_t)data[i], ==, pattern(i));
    }
    return len;
}

/* What was written is in the file when QEMU has ended. */
static void test_end(void)
{
    for (int posted = 0; posted < 2; posted++) {
        Test t;

        test_start(&t, posted ? "on" : "off");
        write_bytes(&t, 3000);
        qtest_quit(t.qts);
        g_assert_cmpuint(check_file(&t), ==, t.written);
        test_free(&t);
    }
}

/* The server does not answer; the vCPU goes on, and a stop does not wait. */
static void test_slow(void)
{
    Test t;

    test_start(&t, "on");
    gate_close(&t);
    write_bytes(&t, MANY);
    g_assert_cmpuint(check_file(&t), ==, 0);
    qtest_qmp_assert_success(t.qts, "{'execute': 'stop'}");
    qtest_qmp_assert_success(t.qts, "{'execute': 'cont'}");
    gate_open(&t);
    while (check_file(&t) < MANY) {
        g_usleep(1000);
    }
    qtest_quit(t.qts);
    g_assert_cmpuint(check_file(&t), ==, MANY);
    test_free(&t);
}

/*
 * It never answers: QEMU ends all the same, by itself.  Nor does a close() that
 * hands over what was written return.
 */
static void test_dead(void)
{
    for (unsigned count = 0; count <= MANY; count += MANY) {
        Test t;

        test_start(&t, "on");
        gate_close(&t);
        write_bytes(&t, count);
        qtest_quit(t.qts);
        g_assert_cmpuint(check_file(&t), ==, 0);
        test_free(&t);
    }
}

/* Nor does the VM stop when one is removed. */
static void test_dead_removed(void)
{
    Test t;

    test_start(&t, "on");
    qtest_qmp_assert_success(t.qts,
        "{'execute': 'chardev-add', 'arguments': {'id': 'x', 'backend': {"
        "'type': 'file', 'data': {'out': %s, 'posted-writes': true}}}}",
        t.path);
    gate_close(&t);
    write_bytes(&t, MANY);
    qtest_qmp_assert_success(t.qts, "{'execute': 'chardev-remove', "
                             "'arguments': {'id': 'x'}}");
    qtest_quit(t.qts);
    test_free(&t);
}

int main(int argc, char **argv)
{
    g_autofree char *self = g_file_read_link("/proc/self/exe", NULL);
    g_autofree char *dir = g_path_get_dirname(self);

    g_test_init(&argc, &argv, NULL);
    shim = g_build_filename(dir, "libslow-fstat.so", NULL);
    g_assert_true(g_file_test(shim, G_FILE_TEST_EXISTS));

    qtest_add_func("/char-file-post/end", test_end);
    qtest_add_func("/char-file-post/slow", test_slow);
    qtest_add_func("/char-file-post/dead", test_dead);
    qtest_add_func("/char-file-post/dead-removed", test_dead_removed);
    return g_test_run();
}

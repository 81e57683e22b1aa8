/*
 * Writers of a character device whose reader is slow
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The reader is this test, at the other end of a socket that holds little.  A
 * writer that waits where it must not is ended by an alarm.
 */

#include "qemu/osdep.h"
#include "chardev/char-fe.h"
#include "chardev/chardev-internal.h"
#include "qapi/error.h"
#include "qemu/config-file.h"
#include "qemu/coroutine.h"
#include "qemu/main-loop.h"
#include "qemu/module.h"
#include "qemu/option.h"
#include "system/system.h"

#define LIMIT_S 60

typedef struct Test {
    Chardev *chr;
    CharFrontend fe;
    int fd;
    char *log;
    GByteArray *got;
    unsigned ended;
} Test;

/* More than the socket takes, all different from what others write */
static uint8_t message[200 * 1024];

static void test_start(Test *t, const char *mux)
{
    g_autofree char *text = NULL;
    int small = 1;
    int pair[2];
    QemuOpts *opts;

    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), ==, 0);
    setsockopt(pair[1], SOL_SOCKET, SO_SNDBUF, &small, sizeof(small));
    g_unix_set_fd_nonblocking(pair[0], true, NULL);
    *t = (Test) { .fd = pair[0], .got = g_byte_array_new() };
    close(g_file_open_tmp("char-writers-XXXXXX", &t->log, NULL));
    text = g_strdup_printf("socket,id=c,fd=%d,mux=%s,logfile=%s", pair[1], mux,
                           t->log);
    opts = qemu_opts_parse_noisily(qemu_find_opts("chardev"), text, true);
    g_assert_nonnull(opts);
    t->chr = qemu_chr_new_from_opts(opts, NULL, &error_abort);
    qemu_opts_del(opts);
    qemu_chr_fe_init(&t->fe, t->chr, &error_abort);
    alarm(LIMIT_S);
}

static void test_end(Test *t)
{
    alarm(0);
    if (t->fe.chr) {
        qemu_chr_fe_deinit(&t->fe, true);
    }
    close(t->fd);
    unlink(t->log);
    g_free(t->log);
    g_byte_array_unref(t->got);
}

/* Read what is there.  Returns: what ended it, 0 at the end of the stream */
static int read_to(Test *t)
{
    uint8_t data[4096];
    ssize_t ret;

    while ((ret = read(t->fd, data, sizeof(data))) > 0) {
        g_byte_array_append(t->got, data, ret);
    }
    return ret < 0 ? errno : 0;
}

static void read_there(Test *t)
{
    g_assert_cmpint(read_to(t), ==, EAGAIN);
}

/* Fill the socket; returns how much it took. */
static unsigned fill(Test *t)
{
    unsigned filled = 0;
    int ret;

    while ((ret = qemu_chr_fe_write(&t->fe, (const uint8_t *)".", 1)) > 0) {
        filled += ret;
    }
    g_assert_cmpint(ret, ==, -1);
    g_assert_cmpint(errno, ==, EAGAIN);
    return filled;
}

static void coroutine_fn write_message(void *opaque)
{
    Test *t = opaque;
    int ret = qemu_chr_fe_write_all(&t->fe, message, sizeof(message));

    g_assert_cmpint(ret, ==, sizeof(message));
    t->ended++;
}

/* Of the coroutine, in order and once; 0xff is of others. */
static void check_message(const uint8_t *data, size_t len)
{
    size_t n = 0;

    for (size_t i = 0; i < len; i++) {
        if (data[i] != 0xff) {
            g_assert_cmpuint(n, <, sizeof(message));
            g_assert_cmpuint(data[i], ==, message[n++]);
        }
    }
    g_assert_cmpuint(n, ==, sizeof(message));
}

/* A coroutine sleeps until there is room; another writer need not. */
static void test_coroutine(void)
{
    g_autofree char *log = NULL;
    unsigned others = 0;
    size_t len;
    Test t;

    test_start(&t, "off");
    for (size_t i = 0; i < sizeof(message); i++) {
        message[i] = i % 100;
    }
    qemu_coroutine_enter(qemu_coroutine_create(write_message, &t));
    g_assert_false(t.ended);
    while (!t.ended) {
        /* with the lock held across the sleep, this waits for ever */
        int ret = qemu_chr_fe_write(&t.fe, (const uint8_t *)"\xff", 1);

        if (ret == 1) {
            others++;
        } else {
            g_assert_cmpint(errno, ==, EAGAIN);
        }
        read_there(&t);
        main_loop_wait(false);
    }
    read_there(&t);
    g_assert_cmpuint(t.got->len, ==, sizeof(message) + others);
    check_message(t.got->data, t.got->len);
    /* the log also has what found no room, as it always had */
    g_assert_true(g_file_get_contents(t.log, &log, &len, NULL));
    check_message((const uint8_t *)log, len);
    test_end(&t);
}

static void coroutine_fn write_in_vain(void *opaque)
{
    Test *t = opaque;
    int ret = qemu_chr_fe_write_all(&t->fe, message, sizeof(message));

    g_assert_cmpint(ret, ==, -1);
    g_assert_cmpint(errno, ==, EPIPE);
    t->ended++;
}

/* The device is removed while coroutines wait for its reader. */
static void test_removed(void)
{
    Test t;

    test_start(&t, "off");
    for (size_t i = 0; i < sizeof(message); i++) {
        message[i] = i % 100;
    }
    for (int i = 0; i < 2; i++) {
        qemu_coroutine_enter(qemu_coroutine_create(write_in_vain, &t));
    }
    g_assert_cmpuint(t.ended, ==, 0);
    qemu_chr_fe_deinit(&t.fe, true);
    g_assert_null(t.fe.chr);
    while (t.ended < 2) {
        main_loop_wait(false);
    }
    /* the device is gone with the last of them, and has closed the socket */
    g_assert_cmpint(read_to(&t), ==, 0);
    g_assert_cmpint(memcmp(t.got->data, message, t.got->len), ==, 0);
    test_end(&t);
}

/* A mux that begins a line with the time is no reason to wait, either. */
static void test_timestamps(void)
{
    unsigned filled;
    MuxChardev *mux;
    Test t;

    test_start(&t, "on");
    filled = fill(&t);
    mux = MUX_CHARDEV(t.chr);
    mux->timestamps = true;
    mux->timestamps_start = -1;
    mux->linestart = true;
    for (int i = 0; i < 3; i++) {
        g_assert_cmpint(qemu_chr_fe_write(&t.fe, (const uint8_t *)"ab\n", 3),
                        ==, -1);
        g_assert_cmpint(errno, ==, EAGAIN);
    }
    read_there(&t);
    g_assert_cmpuint(t.got->len, ==, filled);
    g_assert_cmpint(qemu_chr_fe_write(&t.fe, (const uint8_t *)"ab\n", 3), ==,
                    3);
    read_there(&t);
    g_byte_array_append(t.got, (const uint8_t *)"", 1);
    g_assert_true(g_regex_match_simple("^\\[\\d\\d:\\d\\d:\\d\\d\\.\\d{3}\\] "
                                       "ab\n$", (char *)t.got->data + filled,
                                       0, 0));
    test_end(&t);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    signal(SIGPIPE, SIG_IGN);
    qemu_init_main_loop(&error_abort);
    module_call_init(MODULE_INIT_QOM);
    qemu_add_opts(&qemu_chardev_opts);

    g_test_add_func("/char-writers/coroutine", test_coroutine);
    g_test_add_func("/char-writers/removed", test_removed);
    g_test_add_func("/char-writers/timestamps", test_timestamps);
    return g_test_run();
}

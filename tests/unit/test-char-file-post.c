/*
 * Unit test: posted output of character device "file"
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The file whose server is slow is a pipe that is full.  A writer that waits
 * for it is ended by an alarm.
 */

#include "qemu/osdep.h"
#include "chardev/char-fe.h"
#include "chardev/char-file-post.h"
#include "qapi/error.h"
#include "qemu/async-call.h"

#define LIMIT_S 60
#define MANY (200 * 1024)

typedef struct Test {
    CharFilePost *p;
    int fd;                     /* of the reader */
    unsigned written;
    unsigned got;
} Test;

static uint8_t pattern(unsigned n)
{
    return (n * 0x9e3779b9u) >> 24;
}

static void test_start(Test *t)
{
    int fds[2];

    alarm(LIMIT_S);
    g_assert_cmpint(pipe(fds), ==, 0);
    *t = (Test) { .p = char_file_post_new(fds[1]), .fd = fds[0] };
    g_assert_nonnull(t->p);
    close(fds[1]);
}

/* Write until there is no room. */
static void fill(Test *t, unsigned limit)
{
    int ret = 1;

    while (ret > 0 && t->written < limit) {
        uint8_t data[100];

        for (unsigned i = 0; i < sizeof(data); i++) {
            data[i] = pattern(t->written + i);
        }
        ret = char_file_post_write(t->p, data,
                                   MIN(sizeof(data), limit - t->written));
        g_assert(ret > 0 || errno == EAGAIN);
        t->written += MAX(ret, 0);
    }
}

static void read_some(Test *t, unsigned count)
{
    g_autofree uint8_t *data = g_malloc(count);
    ssize_t ret = read(t->fd, data, count);

    g_assert_cmpint(ret, >, 0);
    for (ssize_t i = 0; i < ret; i++) {
        g_assert_cmphex(data[i], ==, pattern(t->got));
        t->got++;
    }
}

static gboolean has_room(void *do_not_use, GIOCondition cond, void *opaque)
{
    bool *called = opaque;

    *called = true;
    return G_SOURCE_REMOVE;
}

static bool room_seen;

static GSource *watch(Test *t)
{
    GSource *source = char_file_post_watch(t->p);

    room_seen = false;
    g_source_set_callback(source, (GSourceFunc)has_room, &room_seen, NULL);
    g_source_attach(source, NULL);
    return source;
}

static void unwatch(GSource *source)
{
    g_source_destroy(source);
    g_source_unref(source);
}

/* Fill it until nothing seems to move: the thread waits, and more does. */
static void fill_for_good(Test *t)
{
    unsigned before;
    GSource *source;

    do {
        before = t->written;
        fill(t, UINT_MAX);
        source = watch(t);
        g_usleep(1000);
        g_main_context_iteration(NULL, false);
        unwatch(source);
    } while (room_seen || t->written > before);
}

/* A server that is slow: the writer does not wait, and is told of room. */
static void test_slow(void)
{
    GSource *source;
    Test t;

    test_start(&t);
    fill_for_good(&t);
    source = watch(&t);
    while (!room_seen) {
        read_some(&t, 4096);
        g_main_context_iteration(NULL, false);
    }
    unwatch(source);
    while (t.written < MANY || t.got < t.written) {
        fill(&t, MANY);
        read_some(&t, 1000);
    }
    char_file_post_free(t.p);
    close(t.fd);
    alarm(0);
}

/* The end waits for what is on its way, */
static void test_end(void)
{
    Test t;

    test_start(&t);
    fill(&t, 2000);
    g_assert_cmpuint(t.written, ==, 2000);
    char_file_post_free(t.p);
    while (t.got < t.written) {
        read_some(&t, 4096);
    }
    /* and the descriptor was closed with the last reference */
    g_assert_cmpint(read(t.fd, &t.got, 1), ==, 0);
    close(t.fd);
    alarm(0);
}

/* but not for ever; a watch may be there longer. */
static void test_dead(void)
{
    GSource *source;
    Test t;

    test_start(&t);
    fill_for_good(&t);
    source = watch(&t);
    char_file_post_free(t.p);
    while (t.got < t.written) {
        read_some(&t, 4096);
    }
    unwatch(source);
    g_assert_cmpint(read(t.fd, &t.got, 1), ==, 0);
    close(t.fd);
    alarm(0);
}

/* An error of the file is told once, with a later write. */
static void test_error(void)
{
    Test t;
    int ret;

    test_start(&t);
    close(t.fd);
    do {    /* with no room while the thread has not seen it yet */
        ret = char_file_post_write(t.p, (const uint8_t *)"x", 1);
    } while (ret == 1 || errno == EAGAIN);
    g_assert_cmpint(ret, ==, -1);
    g_assert_cmpint(errno, ==, EPIPE);
    char_file_post_free(t.p);
    alarm(0);
}

static void test_not_regular(void)
{
    Error *err = NULL;
    int fds[2];

    g_assert_cmpint(pipe(fds), ==, 0);
    g_assert_null(char_file_post_open(fds[1], "name", &err));
    g_assert_cmpstr(error_get_pretty(err), ==, "Option 'posted-writes' of "
                    "chardev file is on, but 'name' is not a regular file");
    error_free(err);
    close(fds[0]);
    close(fds[1]);
}

/* No thread is free: what is written is written at once. */
static void wait_for_gate(void *opaque)
{
    QemuEvent *gate = opaque;

    qemu_event_wait(gate);
}

static void test_no_thread(void)
{
    static QemuEvent gate;
    unsigned jobs = 0;
    Test t;

    test_start(&t);
    qemu_event_init(&gate, false);
    while (async_pool_submit(wait_for_gate, &gate)) {
        jobs++;
    }
    g_assert_cmpuint(jobs, ==, ASYNC_CALL_MAX_JOBS);
    for (int i = 0; i < 10; i++) {
        fill(&t, t.written + 100);
        read_some(&t, 100);
        g_assert_cmpuint(t.got, ==, t.written);
    }
    qemu_event_set(&gate);
    char_file_post_free(t.p);
    close(t.fd);
    alarm(0);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    signal(SIGPIPE, SIG_IGN);
    g_test_add_func("/char-file-post/slow", test_slow);
    g_test_add_func("/char-file-post/end", test_end);
    g_test_add_func("/char-file-post/dead", test_dead);
    g_test_add_func("/char-file-post/error", test_error);
    g_test_add_func("/char-file-post/not-regular", test_not_regular);
    /* the last: its threads may still be about to see the gate */
    g_test_add_func("/char-file-post/no-thread", test_no_thread);
    return g_test_run();
}

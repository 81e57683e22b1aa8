/*
 * Asynchronous pipes as character devices, and their front end's interface
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The peer is the library itself, in the same process, driven from the same
 * main loop.
 *
 * The clock of this process can be stopped, so that what is waited for can be
 * told without measuring time.
 */

#include "qemu/osdep.h"
#include <glib/gstdio.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "chardev/char-async.h"
#include "chardev/char-fe.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-char.h"
#include "qapi/qapi-commands-yank.h"
#include "qapi/qapi-commands-zpipe.h"
#include "qemu/config-file.h"
#include "qemu/main-loop.h"
#include "qemu/module.h"
#include "qemu/option.h"
#include "qemu/sockets.h"
#include "system/system.h"
#include "../../chardev/char-zpipe-internal.h"
#include "zpipe.h"

#define WAIT_US (20 * 1000 * 1000)

#define NS_PER_S 1000000000

/* In place of the C library's: @step_ns passes from one look to the next. */
static struct {
    bool stopped;
    int64_t now_ns, step_ns;
    unsigned sleeps;
} fake_clock;

int clock_gettime(clockid_t clock, struct timespec *ts)
{
    if (!fake_clock.stopped || clock != CLOCK_MONOTONIC) {
        return syscall(SYS_clock_gettime, clock, ts);
    }
    fake_clock.now_ns += fake_clock.step_ns;
    *ts = (struct timespec) { fake_clock.now_ns / NS_PER_S,
                              fake_clock.now_ns % NS_PER_S };
    return 0;
}

/* What the thread that waits for a client does, see below. */
static struct {
    pid_t thread;
    unsigned failures, sleeps;
} waiting;

int nanosleep(const struct timespec *req, struct timespec *rem)
{
    pid_t waits = qatomic_read(&waiting.thread);

    if (waits && syscall(SYS_gettid) == waits) {
        waiting.sleeps++;
    }
    if (!fake_clock.stopped) {
        return syscall(SYS_nanosleep, req, rem);
    }
    fake_clock.now_ns += req->tv_sec * NS_PER_S + req->tv_nsec;
    fake_clock.sleeps++;
    return 0;
}

static void clock_stop(int64_t step_ns)
{
    fake_clock.now_ns = g_get_monotonic_time() * 1000;
    fake_clock.step_ns = step_ns;
    fake_clock.stopped = true;
}

static void clock_go_on(void)
{
    fake_clock.stopped = false;
}

/* The test's directory, the socket in it, and the front end under test. */
typedef struct Fixture {
    char *dir, *path;
    Chardev *chr;
    CharFrontend fe;
    GByteArray *received;
    int room;
    unsigned opened, closed, changed;
    struct zpipe *peer;
} Fixture;

#define wait_for(f, condition) do {                                     \
        int64_t end = g_get_monotonic_time() + WAIT_US;                 \
        while (!(condition)) {                                          \
            g_assert_cmpint(g_get_monotonic_time(), <, end);            \
            turn(f);                                                    \
        }                                                               \
    } while (0)

/* Both sides get on. */
static void turn(Fixture *f)
{
    struct zpipe_req *req;

    if (f->peer) {
        while ((req = zpipe_reap(f->peer))) {
            *(bool *)req->user = true;
        }
    }
    main_loop_wait(true);
    g_usleep(100);
}

static int fe_can_read(void *opaque)
{
    Fixture *f = opaque;

    return f->room;
}

static void fe_read(void *opaque, const uint8_t *buf, int size)
{
    Fixture *f = opaque;

    g_assert_cmpint(size, <=, f->room);
    g_byte_array_append(f->received, buf, size);
}

static void fe_event(void *opaque, QEMUChrEvent event)
{
    Fixture *f = opaque;

    f->opened += event == CHR_EVENT_OPENED;
    f->closed += event == CHR_EVENT_CLOSED;
}

static int fe_be_change(void *opaque)
{
    Fixture *f = opaque;

    f->changed++;
    qemu_chr_fe_set_handlers(&f->fe, fe_can_read, fe_read, fe_event,
                             fe_be_change, f, NULL, true);
    return 0;
}

static Chardev *chardev_new(const char *id, const char *path,
                            const char *options, Error **errp)
{
    g_autofree char *text = g_strdup_printf("zpipe,id=%s,path=%s%s", id, path,
                                            options);
    QemuOpts *opts = qemu_opts_parse(qemu_find_opts("chardev"), text, true,
                                     errp);
    Chardev *chr;

    if (!opts) {
        return NULL;
    }
    chr = qemu_chr_new_from_opts(opts, NULL, errp);
    qemu_opts_del(opts);
    return chr;
}

static void setup_dir(Fixture *f)
{
    memset(f, 0, sizeof(*f));
    f->dir = g_dir_make_tmp("zpipe-XXXXXX", NULL);
    g_assert_nonnull(f->dir);
    f->path = g_build_filename(f->dir, "s", NULL);
    f->received = g_byte_array_new();
    f->room = INT_MAX;
}

static void attach_frontend(Fixture *f)
{
    qemu_chr_fe_init(&f->fe, f->chr, &error_abort);
    qemu_chr_fe_set_handlers(&f->fe, fe_can_read, fe_read, fe_event,
                             fe_be_change, f, NULL, true);
}

static void setup(Fixture *f, const char *options)
{
    setup_dir(f);
    f->chr = chardev_new("chr", f->path, options, &error_abort);
    attach_frontend(f);
}

static void dial(Fixture *f)
{
    f->peer = zpipe_new(NULL);
    g_assert_nonnull(f->peer);
    g_assert_cmpint(zpipe_connect(f->peer, f->path), ==, 0);
}

static void setup_connected(Fixture *f, const char *options)
{
    setup(f, options);
    dial(f);
    wait_for(f, f->opened && zpipe_state(f->peer) == ZPIPE_CONNECTED);
    g_assert_cmpint(f->opened, ==, 1);
}

static void teardown(Fixture *f)
{
    if (f->peer) {
        zpipe_free(f->peer);
    }
    qemu_chr_fe_deinit(&f->fe, true);
    g_unlink(f->path);
    g_assert_cmpint(g_rmdir(f->dir), ==, 0);
    g_byte_array_free(f->received, true);
    g_free(f->path);
    g_free(f->dir);
}

/* Read @len bytes at the peer. */
static void peer_read(Fixture *f, uint8_t *buf, size_t len)
{
    size_t done = 0;

    while (done < len) {
        ssize_t ret = zpipe_try_read(f->peer, buf + done, len - done);

        if (ret == -EAGAIN) {
            turn(f);
            continue;
        }
        g_assert_cmpint(ret, >, 0);
        done += ret;
    }
}

static void fill(uint8_t *buf, size_t len, uint8_t seed)
{
    for (size_t i = 0; i < len; i++) {
        buf[i] = seed + i * 7 + i / 256;
    }
}

/* --------------------------------------------------------------- classic */

static void test_open_close(void)
{
    g_autofree char *name = NULL;
    Fixture f;

    setup_connected(&f, ",server=on,wait=off");
    name = g_strdup_printf("zpipe:%s,server=on", f.path);
    g_assert_cmpstr(f.chr->filename, ==, name);
    zpipe_free(f.peer);
    f.peer = NULL;
    wait_for(&f, f.closed);
    g_assert_cmpint(f.closed, ==, 1);
    /* another one is welcome */
    dial(&f);
    wait_for(&f, f.opened == 2);
    teardown(&f);
}

static void test_classic(void)
{
    static const char request[] = "hello", answer[] = "world";
    char buf[sizeof(request)];
    Fixture f;

    setup_connected(&f, ",server=on,wait=off");
    g_assert_cmpint(qemu_chr_fe_write_all(&f.fe, (void *)request,
                                          sizeof(request)), ==,
                    sizeof(request));
    peer_read(&f, (uint8_t *)buf, sizeof(buf));
    g_assert_cmpstr(buf, ==, request);

    /* nothing is forced on a front end that has no room */
    f.room = 0;
    g_assert_cmpint(zpipe_try_write(f.peer, answer, sizeof(answer)), ==,
                    sizeof(answer));
    for (int i = 0; i < 20; i++) {
        turn(&f);
    }
    g_assert_cmpint(f.received->len, ==, 0);
    f.room = 2;
    qemu_chr_fe_accept_input(&f.fe);
    wait_for(&f, f.received->len == sizeof(answer));
    g_assert_cmpstr((char *)f.received->data, ==, answer);
    teardown(&f);
}

/* Many of upstream's front ends do not say when they have room again. */
static void test_room(void)
{
    static const char text[] = "hello";
    Fixture f;

    setup_connected(&f, ",server=on,wait=off");
    for (int round = 0; round < 3; round++) {
        f.room = 0;
        g_assert_cmpint(zpipe_try_write(f.peer, text, sizeof(text)), ==,
                        sizeof(text));
        for (int i = 0; i < 20; i++) {
            turn(&f);
        }
        g_assert_cmpint(f.received->len, ==, 0);
        f.room = 2;
        wait_for(&f, f.received->len == sizeof(text));
        g_assert_cmpstr((char *)f.received->data, ==, text);
        g_byte_array_set_size(f.received, 0);
    }
    teardown(&f);
}

static gboolean writable(void *do_not_use, GIOCondition cond, void *opaque)
{
    *(bool *)opaque = true;
    return G_SOURCE_REMOVE;
}

static void test_watch(void)
{
    g_autofree uint8_t *data = g_malloc(64 * 1024);
    g_autofree uint8_t *back = g_malloc(64 * 1024);
    size_t sent = 0, got = 0;
    bool woken = false;
    Fixture f;
    int ret;

    setup_connected(&f, ",server=on,wait=off,ring-size=64k");
    fill(data, 64 * 1024, 1);
    /* a peer that does not read: the memory is bounded */
    while ((ret = qemu_chr_fe_write(&f.fe, data, 4096)) > 0) {
        sent += ret;
        g_assert_cmpint(sent, <=, 1024 * 1024);
    }
    g_assert_cmpint(ret, ==, -1);
    g_assert_cmpint(errno, ==, EAGAIN);
    g_assert_cmpint(qemu_chr_fe_add_watch(&f.fe, G_IO_OUT | G_IO_HUP, writable,
                                          &woken), !=, 0);
    for (int i = 0; i < 20; i++) {
        main_loop_wait(true);
    }
    g_assert_false(woken);
    while (got < sent) {
        size_t n = MIN(sent - got, 4096);

        peer_read(&f, back, n);
        got += n;
    }
    wait_for(&f, woken);
    teardown(&f);
}

static void test_client(void)
{
    int listener, sock;
    Fixture f;

    setup_dir(&f);
    listener = zpipe_listen(f.path);
    g_assert_cmpint(listener, >=, 0);
    f.chr = chardev_new("chr", f.path, "", &error_abort);
    attach_frontend(&f);
    sock = zpipe_accept(listener);
    g_assert_cmpint(sock, >=, 0);
    f.peer = zpipe_new(NULL);
    g_assert_cmpint(zpipe_attach(f.peer, sock, true), ==, 0);
    wait_for(&f, f.opened);
    close(listener);
    teardown(&f);
}

static void test_second_client(void)
{
    struct zpipe *second = zpipe_new(NULL);
    int code = 0;
    Fixture f;

    setup_connected(&f, ",server=on,wait=off");
    g_assert_cmpint(zpipe_connect(second, f.path), ==, 0);
    wait_for(&f, (zpipe_reap(second),
                  zpipe_state(second) == ZPIPE_IDLE));
    g_assert_nonnull(strstr(zpipe_error(second, &code), "busy"));
    g_assert_cmpint(code, <, 0);
    zpipe_free(second);

    /* the first one has not noticed */
    g_assert_cmpint(qemu_chr_fe_write_all(&f.fe, (void *)"x", 1), ==, 1);
    peer_read(&f, (uint8_t *)&code, 1);
    g_assert_cmpint(f.closed, ==, 0);
    teardown(&f);
}

/* A peer that was restarted is none, however much the old one has left. */
static void test_restarted(void)
{
    Fixture f;

    setup_connected(&f, ",server=on,wait=off");
    for (int i = 0; i < 60; i++) {
        g_assert_nonnull(zpipe_buffer_new(f.peer, 4096));
    }
    zpipe_free(f.peer);
    dial(&f);
    wait_for(&f, zpipe_state(f.peer) != ZPIPE_CONNECTING);
    g_assert_cmpstr(zpipe_error(f.peer, NULL), ==, "");
    wait_for(&f, f.opened == 2);
    g_assert_cmpint(f.closed, ==, 1);
    teardown(&f);
}

static void test_yank(void)
{
    YankInstance instance = {
        .type = YANK_INSTANCE_TYPE_CHARDEV, .u.chardev.id = (char *)"chr"
    };
    YankInstanceList list = { .value = &instance };
    Fixture f;

    setup_connected(&f, ",server=on,wait=off");
    qmp_yank(&list, &error_abort);
    wait_for(&f, f.closed);
    teardown(&f);
}

/* ------------------------------------------------------------- reconnect */

static struct zpipe *serve(Fixture *f, int listener, struct zpipe *peer)
{
    int sock = -EAGAIN;

    wait_for(f, (sock = zpipe_accept(listener)) >= 0);
    if (!peer) {
        struct zpipe_config config = {
            .size = sizeof(config), .flags = ZPIPE_PERSISTENT
        };

        peer = zpipe_new(&config);
    }
    g_assert_cmpint(zpipe_attach(peer, sock, true), ==, 0);
    return peer;
}

/* The link is cut again and again; not a byte is lost or comes twice. */
static void test_resume(void)
{
    enum { SIZE = 200 * 1000, STEP = 3001 };
    g_autofree uint8_t *data = g_malloc(SIZE), *back = g_malloc(SIZE);
    size_t sent = 0, got = 0;
    int listener, cuts = 0;
    Fixture f;

    fill(data, SIZE, 3);
    setup_dir(&f);
    listener = zpipe_listen(f.path);
    f.chr = chardev_new("chr", f.path, ",reconnect-ms=10,hold-ms=10000",
                        &error_abort);
    attach_frontend(&f);
    f.peer = serve(&f, listener, NULL);
    wait_for(&f, f.opened);

    while (got < SIZE) {
        int ret = qemu_chr_fe_write(&f.fe, data + sent,
                                    MIN(STEP, SIZE - sent));

        sent += MAX(ret, 0);
        if (sent > 20 * 1000 * (cuts + 1) && cuts < 5) {
            cuts++;
            zpipe_detach(f.peer);
            serve(&f, listener, f.peer);
            wait_for(&f, zpipe_state(f.peer) == ZPIPE_CONNECTED);
        }
        ret = zpipe_try_read(f.peer, back + got, MIN(1009, SIZE - got));
        if (ret > 0) {
            got += ret;
        } else {
            turn(&f);
        }
    }
    g_assert_cmpmem(data, SIZE, back, SIZE);
    g_assert_cmpint(cuts, ==, 5);
    g_assert_cmpint(f.opened, ==, 1);
    g_assert_cmpint(f.closed, ==, 0);
    close(listener);
    teardown(&f);
}

static ZpipeInfo *only_info(ZpipeInfoList *list)
{
    g_assert_nonnull(list);
    g_assert_null(list->next);
    return list->value;
}

static uint64_t dropped_bytes(void)
{
    ZpipeInfoList *list = qmp_query_zpipe(&error_abort);
    uint64_t dropped = only_info(list)->dropped_bytes;

    qapi_free_ZpipeInfoList(list);
    return dropped;
}

static bool is_held(void)
{
    ZpipeInfoList *list = qmp_query_zpipe(&error_abort);
    bool held = only_info(list)->state == ZPIPE_STATE_HELD;

    qapi_free_ZpipeInfoList(list);
    return held;
}

/* A front end that waits, and comes again with the same, has dropped nothing */
static void test_not_dropped(void)
{
    uint8_t data[10] = "kept";
    bool woken = false;
    Fixture f;

    setup_connected(&f, ",server=on,wait=off,hold-ms=10000");
    zpipe_free(f.peer);
    f.peer = NULL;
    wait_for(&f, is_held());
    g_assert_cmpint(qemu_chr_fe_write(&f.fe, data, 1), ==, -1);
    g_assert_cmpint(dropped_bytes(), ==, 1);
    for (int i = 0; i < 3; i++) {
        /* a mux looks twice: it was the first look that counted */
        guint twice;

        g_assert_cmpint(qemu_chr_fe_write(&f.fe, data, 5), ==, -1);
        g_assert_cmpint(errno, ==, EIO);
        g_assert_cmpint(qemu_chr_fe_add_watch(&f.fe, G_IO_OUT, writable,
                                              &woken), !=, 0);
        twice = qemu_chr_fe_add_watch(&f.fe, G_IO_OUT, writable, &woken);
        g_assert_cmpint(twice, !=, 0);
        g_source_remove(twice);
        g_assert_cmpint(dropped_bytes(), ==, 1);
    }
    g_assert_cmpint(qemu_chr_fe_write(&f.fe, data, 7), ==, -1);
    g_assert_cmpint(dropped_bytes(), ==, 8);
    g_assert_false(woken);
    dial(&f);
    wait_for(&f, woken);
    g_assert_cmpint(qemu_chr_fe_write(&f.fe, data, 5), ==, 5);
    memset(data, 0, 5);
    peer_read(&f, data, 5);
    g_assert_cmpstr((char *)data, ==, "kept");
    g_assert_cmpint(dropped_bytes(), ==, 8);
    teardown(&f);
}

static void *write_refused(void *opaque)
{
    CharFrontend *fe = opaque;

    g_assert_cmpint(qemu_chr_fe_write(fe, (void *)"dropped", 5), ==, -1);
    return NULL;
}

/* Of two front ends of a mux one has dropped it, and the other one waits. */
static void test_dropped_by_another(void)
{
    CharFrontend mux[2];
    QemuOpts *opts;
    g_autofree char *options = NULL;
    QemuThread thread;
    bool woken = false;
    uint64_t dropped = 0;
    guint watch;
    Fixture f;

    setup_dir(&f);
    options = g_strdup_printf("zpipe,id=chr,path=%s,server=on,wait=off,mux=on",
                              f.path);
    opts = qemu_opts_parse(qemu_find_opts("chardev"), options, true,
                           &error_abort);
    f.chr = qemu_chr_new_from_opts(opts, NULL, &error_abort);
    qemu_opts_del(opts);
    for (int i = 0; i < 2; i++) {
        qemu_chr_fe_init(&mux[i], f.chr, &error_abort);
        qemu_chr_fe_set_handlers(&mux[i], fe_can_read, fe_read, NULL, NULL, &f,
                                 NULL, true);
    }

    /* by another thread */
    qemu_thread_create(&thread, "writer", write_refused, &mux[0],
                       QEMU_THREAD_JOINABLE);
    qemu_thread_join(&thread);
    watch = qemu_chr_fe_add_watch(&mux[1], G_IO_OUT, writable, &woken);
    g_assert_cmpint(watch, !=, 0);
    g_source_remove(watch);
    g_assert_cmpint(dropped_bytes(), ==, dropped += 5);

    /* earlier */
    write_refused(&mux[0]);
    turn(&f);
    watch = qemu_chr_fe_add_watch(&mux[1], G_IO_OUT, writable, &woken);
    g_assert_cmpint(watch, !=, 0);
    g_source_remove(watch);
    g_assert_cmpint(dropped_bytes(), ==, dropped += 5);

    /* one that never writes, and wants to know of the end */
    write_refused(&mux[0]);
    watch = qemu_chr_fe_add_watch(&mux[1], G_IO_HUP, writable, &woken);
    g_assert_cmpint(watch, !=, 0);
    g_source_remove(watch);
    g_assert_cmpint(dropped_bytes(), ==, dropped += 5);

    /* and the one that does keep it */
    write_refused(&mux[1]);
    watch = qemu_chr_fe_add_watch(&mux[1], G_IO_OUT, writable, &woken);
    g_assert_cmpint(watch, !=, 0);
    g_source_remove(watch);
    g_assert_cmpint(dropped_bytes(), ==, dropped);

    qemu_chr_fe_deinit(&mux[0], false);
    qemu_chr_fe_deinit(&mux[1], true);
    object_unparent(OBJECT(qemu_chr_find("chr-base")));
    g_assert_cmpint(g_rmdir(f.dir), ==, 0);
    g_byte_array_free(f.received, true);
    g_free(f.path);
    g_free(f.dir);
}

/* Nobody comes back: the front end is told, and what was lost is counted. */
static void test_hold_ends(void)
{
    ZpipeInfoList *list;
    uint8_t data[1000] = { };
    uint64_t dropped = 0;
    Fixture f;

    setup_connected(&f, ",server=on,wait=off,hold-ms=100");
    g_assert_cmpint(qemu_chr_fe_write(&f.fe, data, sizeof(data)), ==,
                    sizeof(data));
    zpipe_free(f.peer);
    f.peer = NULL;
    list = NULL;
    for (int i = 0; i < 10; i++) {
        turn(&f);
    }
    if (!f.closed) {
        list = qmp_query_zpipe(&error_abort);
        g_assert_cmpint(only_info(list)->state, ==, ZPIPE_STATE_HELD);
        g_assert_cmpint(qemu_chr_fe_write(&f.fe, data, 5), ==, -1);
        g_assert_cmpint(errno, ==, EIO);
        dropped += 5;
        qapi_free_ZpipeInfoList(list);
    }
    wait_for(&f, f.closed);
    /* it cannot wait, and is told so */
    g_assert_cmpint(qemu_chr_fe_write(&f.fe, data, 7), ==, -1);
    dropped += 7;
    list = qmp_query_zpipe(&error_abort);
    g_assert_cmpint(only_info(list)->state, ==, ZPIPE_STATE_DISCONNECTED);
    g_assert_cmpint(only_info(list)->lost_bytes, ==, sizeof(data));
    g_assert_cmpint(only_info(list)->dropped_bytes, ==, dropped);
    g_assert_cmpint(only_info(list)->connects, ==, 1);
    qapi_free_ZpipeInfoList(list);

    /* the next peer does not get the old data */
    dial(&f);
    wait_for(&f, f.opened == 2);
    g_assert_cmpint(qemu_chr_fe_write(&f.fe, (void *)"y", 1), ==, 1);
    peer_read(&f, data, 1);
    g_assert_cmpint(data[0], ==, 'y');
    teardown(&f);
}

/* A peer that leaves without a word: what it had written comes first. */
static void test_left(void)
{
    uint8_t data[3000];
    Fixture f;

    fill(data, sizeof(data), 4);
    setup_connected(&f, ",server=on,wait=off");
    f.room = 0;
    g_assert_cmpint(zpipe_try_write(f.peer, data, sizeof(data)), ==,
                    sizeof(data));
    zpipe_flush(f.peer);
    zpipe_free(f.peer);
    f.peer = NULL;
    for (int i = 0; i < 20; i++) {
        turn(&f);
    }
    g_assert_cmpint(f.closed, ==, 0);
    f.room = 1000;
    qemu_chr_fe_accept_input(&f.fe);
    wait_for(&f, f.closed);
    g_assert_cmpmem(f.received->data, f.received->len, data, sizeof(data));

    /* a front end that reads nothing keeps nobody */
    dial(&f);
    wait_for(&f, f.opened == 2 && zpipe_state(f.peer) == ZPIPE_CONNECTED);
    f.room = 0;
    g_assert_cmpint(zpipe_try_write(f.peer, data, 10), ==, 10);
    zpipe_free(f.peer);
    f.peer = NULL;
    wait_for(&f, f.closed == 2);

    /* nor the next peer, to whom the rest of the old stream means nothing */
    dial(&f);
    wait_for(&f, f.opened == 3 && zpipe_state(f.peer) == ZPIPE_CONNECTED);
    g_assert_cmpint(zpipe_try_write(f.peer, data, 10), ==, 10);
    zpipe_free(f.peer);
    dial(&f);
    wait_for(&f, f.opened == 4 && zpipe_state(f.peer) == ZPIPE_CONNECTED);
    g_assert_cmpint(f.closed, ==, 3);
    f.room = INT_MAX;
    qemu_chr_fe_accept_input(&f.fe);
    g_assert_cmpint(zpipe_try_write(f.peer, "z", 1), ==, 1);
    zpipe_flush(f.peer);
    wait_for(&f, f.received->len == sizeof(data) + 1);
    g_assert_cmpint(f.received->data[sizeof(data)], ==, 'z');
    teardown(&f);
}

/* The same, of a peer that nobody has seen: it left in the same turn. */
static void test_left_at_once(void)
{
    uint8_t data[3000];
    Fixture f;

    fill(data, sizeof(data), 4);
    setup(&f, ",server=on,wait=off");
    dial(&f);
    while (zpipe_state(f.peer) != ZPIPE_CONNECTED) {
        main_loop_wait(true);
        zpipe_reap(f.peer);
        g_assert_cmpint(zpipe_state(f.peer), !=, ZPIPE_IDLE);
    }
    g_assert_cmpint(f.opened, ==, 0);
    g_assert_cmpint(zpipe_try_write(f.peer, data, sizeof(data)), ==,
                    sizeof(data));
    zpipe_flush(f.peer);
    zpipe_free(f.peer);
    f.peer = NULL;
    wait_for(&f, f.closed);
    g_assert_cmpint(f.opened, ==, 1);
    g_assert_cmpmem(f.received->data, f.received->len, data, sizeof(data));
    teardown(&f);
}

/* Full, and told to wait for its data to go when it is closed. */
static int lingering_socket(int *listener)
{
    struct sockaddr_in addr = {
        .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)
    };
    struct linger linger = { .l_onoff = 1, .l_linger = 600 };
    socklen_t len = sizeof(addr);
    static char data[64 * 1024];
    int fd = qemu_socket(AF_INET, SOCK_STREAM, 0);

    *listener = qemu_socket(AF_INET, SOCK_STREAM, 0);
    g_assert_cmpint(bind(*listener, (void *)&addr, len), ==, 0);
    g_assert_cmpint(listen(*listener, 1), ==, 0);
    getsockname(*listener, (void *)&addr, &len);
    g_assert_cmpint(connect(fd, (void *)&addr, len), ==, 0);
    qemu_set_blocking(fd, false, &error_abort);
    while (write(fd, data, sizeof(data)) > 0) {
        /* until it is full */
    }
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
    return fd;
}

/* A client that was not taken does not keep the path from being closed. */
static void test_never_taken(void)
{
    union {
        struct cmsghdr align;
        char space[CMSG_SPACE(sizeof(int))];
    } control = { };
    struct iovec iov = { (void *)"x", 1 };
    struct msghdr hdr = {
        .msg_iov = &iov, .msg_iovlen = 1,
        .msg_control = &control, .msg_controllen = sizeof(control),
    };
    struct cmsghdr *cmsg = CMSG_FIRSTHDR(&hdr);
    int sock, fd, listener;
    sigset_t set;
    Fixture f;

    setup(&f, ",server=on,wait=off");
    fd = lingering_socket(&listener);
    sock = zpipe_dial(f.path);
    g_assert_cmpint(sock, >=, 0);
    cmsg->cmsg_level = SOL_SOCKET;
    cmsg->cmsg_type = SCM_RIGHTS;
    cmsg->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(cmsg), &fd, sizeof(int));
    g_assert_cmpint(sendmsg(sock, &hdr, 0), ==, 1);
    close(fd);
    /* a close() that waits ends the test; the main loop has it blocked */
    sigemptyset(&set);
    sigaddset(&set, SIGALRM);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    alarm(30);
    teardown(&f);
    alarm(0);
    close(sock);
    close(listener);                    /* which resets the other */
}

/* All numbers below are taken: then a limit leaves no descriptor. */
typedef struct Descriptors {
    int fds[32], n;
    struct rlimit limit;
} Descriptors;

static unsigned threads(void)
{
    g_autoptr(GDir) dir = g_dir_open("/proc/self/task", 0, NULL);
    unsigned n = 0;

    while (g_dir_read_name(dir)) {
        n++;
    }
    return n;
}

static unsigned threads_at_start;

static void take_low_numbers(Descriptors *d)
{
    /* those of earlier tests that close something, and free a number later */
    for (int i = 0; i < 2000 && threads() > threads_at_start; i++) {
        g_usleep(1000);
    }
    d->n = 0;
    do {
        g_assert_cmpint(d->n, <, ARRAY_SIZE(d->fds));
        d->fds[d->n] = dup(STDERR_FILENO);
    } while (d->fds[d->n++] < ARRAY_SIZE(d->fds));
}

static void leave_none(Descriptors *d)
{
    struct rlimit low;

    g_assert_cmpint(getrlimit(RLIMIT_NOFILE, &d->limit), ==, 0);
    low = d->limit;
    low.rlim_cur = ARRAY_SIZE(d->fds);
    g_assert_cmpint(setrlimit(RLIMIT_NOFILE, &low), ==, 0);
}

static void give_back_all(Descriptors *d)
{
    g_assert_cmpint(setrlimit(RLIMIT_NOFILE, &d->limit), ==, 0);
    while (d->n) {
        close(d->fds[--d->n]);
    }
}

/* A client that cannot be taken for that does not keep the main loop awake. */
static void test_no_descriptors(void)
{
    Descriptors d;
    Fixture f;

    take_low_numbers(&d);
    setup(&f, ",server=on,wait=off");
    dial(&f);
    leave_none(&d);
    clock_stop(0);
    for (int i = 0; i < 5; i++) {
        g_main_context_iteration(NULL, false);
    }
    for (int i = 0; i < 50; i++) {
        g_assert_false(g_main_context_iteration(NULL, false));
    }
    clock_go_on();
    give_back_all(&d);
    wait_for(&f, f.opened && zpipe_state(f.peer) == ZPIPE_CONNECTED);
    teardown(&f);
}

int accept4(int fd, struct sockaddr *addr, socklen_t *len, int flags)
{
    int ret = syscall(SYS_accept4, fd, addr, len, flags);

    if (ret < 0 && errno == EMFILE && waiting.thread) {
        qatomic_inc(&waiting.failures);
    }
    return ret;
}

typedef struct LateClient {
    Fixture *f;
    Descriptors d;
} LateClient;

static gpointer late_client(gpointer opaque)
{
    LateClient *late = opaque;
    int64_t end = g_get_monotonic_time() + WAIT_US;

    while (qatomic_read(&waiting.failures) < 4) {
        g_assert_cmpint(g_get_monotonic_time(), <, end);
        g_usleep(1000);
    }
    give_back_all(&late->d);
    while (zpipe_state(late->f->peer) != ZPIPE_CONNECTED) {
        g_assert_cmpint(g_get_monotonic_time(), <, end);
        g_assert_null(zpipe_reap(late->f->peer));
        g_usleep(1000);
    }
    return NULL;
}

/* The same when QEMU waits for a client: it rests after each attempt. */
static void test_wait_no_descriptors(void)
{
    LateClient late;
    GThread *thread;
    Fixture f;

    take_low_numbers(&late.d);
    setup(&f, ",server=on,wait=off");
    dial(&f);
    late.f = &f;
    leave_none(&late.d);
    qatomic_set(&waiting.thread, qemu_get_thread_id());
    thread = g_thread_new("client", late_client, &late);
    g_assert_cmpint(qemu_chr_fe_wait_connected(&f.fe, &error_abort), ==, 0);
    g_thread_join(thread);
    qatomic_set(&waiting.thread, 0);
    g_assert_cmpuint(waiting.sleeps, >=, waiting.failures);
    wait_for(&f, f.opened);
    teardown(&f);
}

/*
 * There is no descriptor for a new handle when the peer has ended its stream.
 * The old one must not take the next peer for one that has ended it, too.
 */
static void test_not_renewed(void)
{
    uint8_t data[1];
    Descriptors d;
    int listener;
    Fixture f;

    take_low_numbers(&d);
    setup_dir(&f);
    listener = zpipe_listen(f.path);
    g_assert_cmpint(listener, >=, 0);
    f.chr = chardev_new("chr", f.path, ",reconnect-ms=10,hold-ms=0",
                        &error_abort);
    attach_frontend(&f);
    f.peer = serve(&f, listener, NULL);
    wait_for(&f, f.opened && zpipe_state(f.peer) == ZPIPE_CONNECTED);
    leave_none(&d);
    zpipe_shutdown(f.peer);
    zpipe_flush(f.peer);
    wait_for(&f, f.closed);
    give_back_all(&d);

    zpipe_free(f.peer);
    f.peer = NULL;
    f.peer = serve(&f, listener, NULL);
    /* there is a time before its hello has come */
    wait_for(&f, f.opened == 2 && zpipe_state(f.peer) == ZPIPE_CONNECTED);
    g_assert_cmpint(qemu_chr_fe_write(&f.fe, (void *)"y", 1), ==, 1);
    peer_read(&f, data, 1);
    g_assert_cmpint(data[0], ==, 'y');
    teardown(&f);
    close(listener);
}

/* A client that gives up in the handshake leaves a main loop that sleeps. */
static void test_failed_handshake(void)
{
    g_autofree uint8_t *data = g_malloc0(64 * 1024);
    bool woken = false;
    int sock;
    Fixture f;

    setup(&f, ",server=on,wait=off");
    for (int i = 0; i < 3; i++) {
        sock = zpipe_dial(f.path);
        g_assert_cmpint(sock, >=, 0);
        for (int k = 0; k < 20; k++) {
            turn(&f);
        }
        g_assert_cmpint(send(sock, "nonsense", 8, MSG_NOSIGNAL), ==, 8);
        close(sock);
        for (int k = 0; k < 20; k++) {
            turn(&f);
        }
    }
    for (int i = 0; i < 50; i++) {
        g_assert_false(g_main_context_iteration(NULL, false));
    }

    /* the same with a writer that waits for room, which will never come */
    dial(&f);
    wait_for(&f, f.opened && zpipe_state(f.peer) == ZPIPE_CONNECTED);
    while (qemu_chr_fe_write(&f.fe, data, 64 * 1024) > 0) {
        /* until it is full */
    }
    qemu_chr_fe_add_watch(&f.fe, G_IO_OUT | G_IO_HUP, writable, &woken);
    zpipe_free(f.peer);
    f.peer = NULL;
    wait_for(&f, f.closed && woken);
    for (int k = 0; k < 20; k++) {
        turn(&f);
    }
    for (int i = 0; i < 50; i++) {
        g_assert_false(g_main_context_iteration(NULL, false));
    }
    teardown(&f);
}

/*
 * Comes again and again, keeps a view of what it was sent and ends its stream:
 * its handle is another one each time, and waits for it the first time only.
 */
static void test_keeps_view(void)
{
    unsigned slept[3];
    Fixture f;

    setup(&f, ",server=on,wait=off");
    clock_stop(0);
    for (int i = 0; i < ARRAY_SIZE(slept); i++) {
        struct zpipe_req view = { .user = &(bool) { false } };

        dial(&f);
        wait_for(&f, f.opened == i + 1);
        g_assert_cmpint(zpipe_read_view(f.peer, &view), ==, 0);
        g_assert_cmpint(qemu_chr_fe_write(&f.fe, (void *)"looked at", 9), ==,
                        9);
        wait_for(&f, *(bool *)view.user);
        g_assert_cmpmem(view.view, view.result, "looked at", 9);
        fake_clock.sleeps = 0;
        zpipe_shutdown(f.peer);
        zpipe_flush(f.peer);
        while (f.closed == i) {
            main_loop_wait(true);
        }
        slept[i] = fake_clock.sleeps;
        zpipe_view_done(f.peer, &view);
        zpipe_free(f.peer);
        f.peer = NULL;
    }
    clock_go_on();
    g_assert_cmpint(slept[0], >, 100);
    g_assert_cmpint(slept[1], ==, 0);
    g_assert_cmpint(slept[2], ==, 0);
    teardown(&f);
}

/* After a migration: that the path cannot be opened in time is no error. */
static void test_opened_late(void)
{
    ZpipeInfoList *list;
    ZpipeChardev *s;
    int listener;
    Fixture f;

    setup(&f, ",server=on,wait=off");
    s = CHARDEV_ZPIPE(f.chr);
    for (int slow = 0; slow < 2; slow++) {
        zpipe_link_stop(s);
        listener = zpipe_listen(f.path);
        g_assert_cmpint(listener, >=, 0);
        if (slow) {
            clock_stop(11ll * NS_PER_S);
        }
        zpipe_link_start_late(s);
        if (slow) {
            clock_go_on();
        }
        list = qmp_query_zpipe(&error_abort);
        g_assert_cmpint(only_info(list)->state, ==, ZPIPE_STATE_DISCONNECTED);
        qapi_free_ZpipeInfoList(list);
        close(listener);
        if (!slow) {
            /* it tries again: then somebody can come */
            wait_for(&f, s->listener >= 0);
            dial(&f);
            wait_for(&f, f.opened);
            zpipe_free(f.peer);
            f.peer = NULL;
            wait_for(&f, f.closed);
        }
    }
    teardown(&f);
}

/* ---------------------------------------------------------- asynchronous */

typedef struct Request {
    CharAsyncReq req;
    struct iovec iov[2];
    unsigned calls;
    bool *in_submit;
    bool inside;
} Request;

static void request_done(void *opaque, CharAsyncReq *req)
{
    Request *r = opaque;

    r->calls++;
    r->inside = *r->in_submit;
}

static bool in_submit;

static void request_init(Request *r, void *buf, size_t len)
{
    size_t half = len / 2;

    memset(r, 0, sizeof(*r));
    r->iov[0] = (struct iovec) { buf, half };
    r->iov[1] = (struct iovec) { buf + half, len - half };
    r->req.iov = half ? r->iov : r->iov + 1;
    r->req.iovcnt = half ? 2 : 1;
    r->req.cb = request_done;
    r->req.opaque = r;
    r->in_submit = &in_submit;
}

static void submit(Fixture *f, Request *r, bool write)
{
    in_submit = true;
    g_assert_cmpint(write ? qemu_chr_fe_submit_write(&f->fe, &r->req)
                          : qemu_chr_fe_submit_read(&f->fe, &r->req), ==, 0);
    qemu_chr_fe_submit_flush(&f->fe);
    in_submit = false;
}

typedef struct Again {
    Request first, second;
    Fixture *f;
    int ret;
} Again;

static void submit_again(void *opaque, CharAsyncReq *req)
{
    Again *a = opaque;

    a->first.calls++;
    a->ret = qemu_chr_fe_submit_write(&a->f->fe, &a->second.req);
}

/*
 * A request that had completed when all were taken back: its callback wants to
 * send more.  Whoever takes back relies on there being none afterwards.
 */
static void test_no_more_while_cancelled(void)
{
    uint8_t data[100] = { 1 }, back[100];
    ZpipeInfoList *list;
    Again a = { };
    Fixture f;

    setup_connected(&f, ",server=on,wait=off");
    a.f = &f;
    request_init(&a.first, data, sizeof(data));
    request_init(&a.second, data, sizeof(data));
    a.first.req.cb = submit_again;
    a.first.req.opaque = &a;
    submit(&f, &a.first, true);
    /* the peer has it; the chardev has not looked yet */
    while (zpipe_try_read(f.peer, back, sizeof(back)) == -EAGAIN) {
        zpipe_reap(f.peer);
    }
    g_assert_cmpint(a.first.calls, ==, 0);
    qemu_chr_async_cancel_all(f.chr);
    g_assert_cmpint(a.first.calls, ==, 1);
    g_assert_cmpint(a.first.req.result, ==, sizeof(data));
    g_assert_cmpint(a.ret, ==, -ECANCELED);
    list = qmp_query_zpipe(&error_abort);
    g_assert_cmpint(only_info(list)->tx_requests, ==, 0);
    qapi_free_ZpipeInfoList(list);

    /* afterwards it may */
    submit(&f, &a.second, true);
    peer_read(&f, back, sizeof(back));
    wait_for(&f, a.second.calls);
    teardown(&f);
}

static void test_async(void)
{
    static const size_t sizes[] = { 1, 64, 112, 113, 4096, 65536, 300 * 1000 };
    g_autofree uint8_t *data = g_malloc(300 * 1000);
    g_autofree uint8_t *back = g_malloc(300 * 1000);
    Fixture f;

    setup_connected(&f, ",server=on,wait=off");
    g_assert_cmpint(qemu_chr_fe_async(&f.fe), ==, CHAR_ASYNC_OK);
    for (int i = 0; i < ARRAY_SIZE(sizes); i++) {
        Request w, r;
        bool peer_done = false;
        struct iovec iov = { data, sizes[i] };
        struct zpipe_req peer_write = { .iov = &iov, .iovcnt = 1,
                                        .user = &peer_done };

        fill(data, sizes[i], i);
        request_init(&w, data, sizes[i]);
        submit(&f, &w, true);
        peer_read(&f, back, sizes[i]);
        wait_for(&f, w.calls);
        g_assert_false(w.inside);
        g_assert_cmpint(w.req.result, ==, sizes[i]);
        g_assert_cmpmem(data, sizes[i], back, sizes[i]);

        /* the read first, all of it */
        memset(back, 0, sizes[i]);
        request_init(&r, back, sizes[i]);
        r.req.min = sizes[i];
        submit(&f, &r, false);
        g_assert_cmpint(zpipe_write(f.peer, &peer_write), ==, 0);
        wait_for(&f, r.calls && peer_done);
        g_assert_false(r.inside);
        g_assert_cmpint(r.req.result, ==, sizes[i]);
        g_assert_cmpint(peer_write.result, ==, sizes[i]);
        g_assert_cmpmem(data, sizes[i], back, sizes[i]);
        g_assert_cmpint(w.calls, ==, 1);
        g_assert_cmpint(r.calls, ==, 1);
    }
    g_assert_cmpint(f.received->len, ==, 0);
    teardown(&f);
}

/* What the peer has taken when a write is cancelled is exact. */
static void test_cancel(void)
{
    enum { SIZE = 1 << 20, TAKEN = 12345 };
    g_autofree uint8_t *data = g_malloc(SIZE), *back = g_malloc(SIZE);
    Request w, next, r;
    Fixture f;

    fill(data, SIZE, 9);
    setup_connected(&f, ",server=on,wait=off");
    request_init(&w, data, SIZE);
    request_init(&next, data, SIZE);
    submit(&f, &w, true);
    submit(&f, &next, true);
    peer_read(&f, back, TAKEN);
    qemu_chr_fe_cancel_all(&f.fe, false, true);
    g_assert_cmpint(w.calls, ==, 1);
    g_assert_cmpint(w.req.result, ==, TAKEN);
    g_assert_cmpint(next.calls, ==, 1);
    g_assert_cmpint(next.req.result, ==, -ECANCELED);

    /* the rest follows without a gap */
    request_init(&w, data + TAKEN, SIZE - TAKEN);
    submit(&f, &w, true);
    peer_read(&f, back + TAKEN, SIZE - TAKEN);
    wait_for(&f, w.calls);
    g_assert_cmpmem(data, SIZE, back, SIZE);

    request_init(&r, back, SIZE);
    submit(&f, &r, false);
    qemu_chr_fe_cancel(&f.fe, &r.req);
    g_assert_cmpint(r.calls, ==, 1);
    g_assert_cmpint(r.req.result, ==, -ECANCELED);
    teardown(&f);
}

/* Requests that wait survive a lost connection if there is a hold. */
static void test_async_resume(void)
{
    enum { SIZE = 500 * 1000, TAKEN = 70 * 1000 };
    g_autofree uint8_t *data = g_malloc(SIZE), *back = g_malloc(SIZE);
    int listener;
    Request w;
    Fixture f;

    fill(data, SIZE, 5);
    setup_dir(&f);
    listener = zpipe_listen(f.path);
    f.chr = chardev_new("chr", f.path, ",reconnect-ms=10,hold-ms=10000",
                        &error_abort);
    attach_frontend(&f);
    f.peer = serve(&f, listener, NULL);
    wait_for(&f, f.opened);
    request_init(&w, data, SIZE);
    submit(&f, &w, true);
    peer_read(&f, back, TAKEN);
    zpipe_detach(f.peer);
    serve(&f, listener, f.peer);
    peer_read(&f, back + TAKEN, SIZE - TAKEN);
    wait_for(&f, w.calls);
    g_assert_cmpint(w.req.result, ==, SIZE);
    g_assert_cmpmem(data, SIZE, back, SIZE);
    close(listener);
    teardown(&f);
}

/* Each of these takes requests back, and has run the callback. */
static void test_cancelled_by_core(void)
{
    uint8_t out[300000] = { }, in[100];
    Request w, r;
    Fixture f;

    setup_connected(&f, ",server=on,wait=off");
    request_init(&w, out, sizeof(out));
    request_init(&r, in, sizeof(in));
    submit(&f, &w, true);
    submit(&f, &r, false);
    qemu_chr_fe_set_handlers(&f.fe, NULL, NULL, NULL, NULL, NULL, NULL, true);
    g_assert_cmpint(w.calls + r.calls, ==, 2);
    g_assert_cmpint(r.req.result, ==, -ECANCELED);

    qemu_chr_fe_set_handlers(&f.fe, fe_can_read, fe_read, fe_event,
                             fe_be_change, &f, NULL, true);
    request_init(&w, out, sizeof(out));
    request_init(&r, in, sizeof(in));
    submit(&f, &w, true);
    submit(&f, &r, false);
    teardown(&f);
    g_assert_cmpint(w.calls + r.calls, ==, 2);
}

/*
 * The VM's state and migrations change a link in the main loop, so no front end
 * may have it in another thread, as a QMP monitor would.
 */
static void test_other_context(void)
{
    Fixture f;

    setup_connected(&f, ",server=on,wait=off");
    g_assert_false(qemu_chr_has_feature(f.fe.chr,
                                        QEMU_CHAR_FEATURE_GCONTEXT));
    teardown(&f);
}

static void change(const char *path, bool to_zpipe, Error **errp)
{
    ChardevBackend backend = { .type = CHARDEV_BACKEND_KIND_NULL };
    ChardevCommon common = { };
    ChardevZpipe zpipe = { .path = (char *)path, .has_server = true,
                           .server = true };

    backend.u.null.data = &common;
    if (to_zpipe) {
        backend.type = CHARDEV_BACKEND_KIND_ZPIPE;
        backend.u.zpipe.data = &zpipe;
    }
    qapi_free_ChardevReturn(qmp_chardev_change("chr", &backend, errp));
}

static void test_change(void)
{
    uint8_t out[300000] = { };
    g_autofree char *other = NULL;
    Error *err = NULL;
    Request w;
    Fixture f;

    setup_connected(&f, ",server=on,wait=off");
    other = g_strdup_printf("%s/other", f.dir);
    request_init(&w, out, sizeof(out));
    submit(&f, &w, true);

    /* to a path in use: nothing changes */
    change(f.path, true, &err);
    error_free_or_abort(&err);
    g_assert_cmpint(w.calls, ==, 0);
    g_assert_cmpint(f.changed, ==, 0);

    change(other, true, &error_abort);
    g_assert_cmpint(w.calls, ==, 1);
    g_assert_cmpint(f.changed, ==, 1);
    g_assert_cmpint(f.closed, ==, 1);
    g_assert_false(g_file_test(f.path, G_FILE_TEST_EXISTS));
    g_assert_cmpint(qemu_chr_fe_async(&f.fe), ==, CHAR_ASYNC_OK);

    change(other, false, &error_abort);
    g_assert_cmpint(qemu_chr_fe_async(&f.fe), ==, CHAR_ASYNC_CLASSIC);
    g_assert_cmpint(qemu_chr_fe_submit_write(&f.fe, &w.req), ==, -ENOTSUP);
    teardown(&f);
}

static void test_refusals(void)
{
    CharFrontend fe = { };
    g_autofree char *options = NULL, *log = NULL;
    Chardev *chr;
    QemuOpts *opts;
    Fixture f;

    setup_dir(&f);
    g_assert_cmpint(qemu_chr_fe_async(&fe), ==, CHAR_ASYNC_NO_BACKEND);

    log = g_strdup_printf("%s/log", f.dir);
    options = g_strdup_printf(",server=on,wait=off,logfile=%s", log);
    f.chr = chardev_new("chr", f.path, options, &error_abort);
    attach_frontend(&f);
    g_assert_cmpint(qemu_chr_fe_async(&f.fe), ==, CHAR_ASYNC_LOGFILE);
    /* and what is written is logged */
    dial(&f);
    wait_for(&f, f.opened);
    g_assert_cmpint(qemu_chr_fe_write_all(&f.fe, (void *)"abc", 3), ==, 3);
    g_assert_true(g_file_test(log, G_FILE_TEST_EXISTS));
    g_unlink(log);
    teardown(&f);

    setup_dir(&f);
    g_free(options);
    options = g_strdup_printf("zpipe,id=chr,path=%s,server=on,wait=off,mux=on",
                              f.path);
    opts = qemu_opts_parse(qemu_find_opts("chardev"), options, true,
                           &error_abort);
    chr = qemu_chr_new_from_opts(opts, NULL, &error_abort);
    qemu_opts_del(opts);
    qemu_chr_fe_init(&f.fe, chr, &error_abort);
    g_assert_cmpint(qemu_chr_fe_async(&f.fe), ==, CHAR_ASYNC_MUX);
    qemu_chr_fe_deinit(&f.fe, false);
    object_unparent(OBJECT(chr));
    object_unparent(OBJECT(qemu_chr_find("chr-base")));
    g_rmdir(f.dir);
    g_byte_array_free(f.received, true);
    g_free(f.path);
    g_free(f.dir);
}

/* ----------------------------------------------------------- bad options */

static void bad(const char *path, const char *options, const char *says)
{
    Error *err = NULL;

    g_assert_null(chardev_new("bad", path, options, &err));
    g_assert_nonnull(err);
    if (!strstr(error_get_pretty(err), says)) {
        g_error("'%s' for '%s' does not say '%s'", error_get_pretty(err),
                options, says);
    }
    error_free(err);
}

static void test_bad_options(void)
{
    g_autofree char *long_path = g_strnfill(108, 'x');
    QemuOpts *opts;
    Error *err = NULL;
    Fixture f;
    int fd;

    setup_dir(&f);
    bad(f.path, ",mechanism=magic", "mechanism=magic");
    bad(long_path, "", "108 bytes");
    bad("", "", "0 bytes");
    bad(f.path, ",server=on,reconnect-ms=5", "reconnect-ms=5");
    bad(f.path, ",wait=on", "wait=on");
    bad(f.path, ",wait=off", "wait=off");
    bad(f.path, ",hold-ms=5", "hold-ms=5");
    bad(f.path, ",reconnect-ms=1,hold-ms=99999999999", "hold-ms=99999999999");
    bad(f.path, ",reconnect-ms=99999999999", "reconnect-ms=99999999999");
    bad(f.path, ",ring-size=100000", "ring-size=100000");
    bad(f.path, ",ring-size=32k", "ring-size=32768");
    bad(f.path, ",ring-size=128M", "ring-size=134217728");
    bad(f.path, ",ring-size=0", "ring-size=0");
    bad(f.path, ",share-ram=on", "share-ram=on");
    bad(f.path, ",frobnicate=on", "frobnicate");
    /* nobody listens there */
    bad(f.path, "", "cannot connect");
    bad("/nonexistent/dir/s", ",server=on,wait=off", "cannot listen");

    opts = qemu_opts_parse(qemu_find_opts("chardev"), "zpipe,id=bad", true,
                           &error_abort);
    g_assert_null(qemu_chr_new_from_opts(opts, NULL, &err));
    g_assert_nonnull(strstr(error_get_pretty(err), "path is missing"));
    error_free(err);
    qemu_opts_del(opts);

    /* somebody listens, or it is no socket */
    fd = zpipe_listen(f.path);
    g_assert_cmpint(fd, >=, 0);
    bad(f.path, ",server=on,wait=off", "in use");
    close(fd);
    g_unlink(f.path);
    g_assert_true(g_file_set_contents(f.path, "x", 1, NULL));
    bad(f.path, ",server=on,wait=off", "cannot listen");
    g_unlink(f.path);

    /* a socket that was left behind is no obstacle */
    fd = zpipe_listen(f.path);
    close(fd);
    f.chr = chardev_new("chr", f.path, ",server=on,wait=off", &error_abort);
    attach_frontend(&f);
    teardown(&f);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    qemu_init_main_loop(&error_abort);
    module_call_init(MODULE_INIT_QOM);
    qemu_add_opts(&qemu_chardev_opts);
    threads_at_start = threads();

    g_test_add_func("/zpipe/open-close", test_open_close);
    g_test_add_func("/zpipe/classic", test_classic);
    g_test_add_func("/zpipe/room", test_room);
    g_test_add_func("/zpipe/watch", test_watch);
    g_test_add_func("/zpipe/client", test_client);
    g_test_add_func("/zpipe/second-client", test_second_client);
    g_test_add_func("/zpipe/restarted", test_restarted);
    g_test_add_func("/zpipe/yank", test_yank);
    g_test_add_func("/zpipe/resume", test_resume);
    g_test_add_func("/zpipe/not-dropped", test_not_dropped);
    g_test_add_func("/zpipe/dropped-by-another", test_dropped_by_another);
    g_test_add_func("/zpipe/hold-ends", test_hold_ends);
    g_test_add_func("/zpipe/left", test_left);
    g_test_add_func("/zpipe/left-at-once", test_left_at_once);
    g_test_add_func("/zpipe/never-taken", test_never_taken);
    g_test_add_func("/zpipe/no-descriptors", test_no_descriptors);
    g_test_add_func("/zpipe/wait-no-descriptors", test_wait_no_descriptors);
    g_test_add_func("/zpipe/not-renewed", test_not_renewed);
    g_test_add_func("/zpipe/failed-handshake", test_failed_handshake);
    g_test_add_func("/zpipe/keeps-view", test_keeps_view);
    g_test_add_func("/zpipe/opened-late", test_opened_late);
    g_test_add_func("/zpipe/async", test_async);
    g_test_add_func("/zpipe/no-more-while-cancelled",
                    test_no_more_while_cancelled);
    g_test_add_func("/zpipe/cancel", test_cancel);
    g_test_add_func("/zpipe/async-resume", test_async_resume);
    g_test_add_func("/zpipe/cancelled-by-core", test_cancelled_by_core);
    g_test_add_func("/zpipe/other-context", test_other_context);
    g_test_add_func("/zpipe/change", test_change);
    g_test_add_func("/zpipe/refusals", test_refusals);
    g_test_add_func("/zpipe/bad-options", test_bad_options);
    return g_test_run();
}

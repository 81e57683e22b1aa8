/*
 * Tests of libzpipe: sleeping and waking
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * In one process nobody else runs: when both ends sleep and a request has not
 * completed, a wake-up was lost.  Idleness is counted in wake-ups, not in time.
 */

#include <sys/resource.h>

#include "common.h"

static bool readable(struct zpipe *zp, int ms)
{
    struct pollfd pfd = { .fd = zpipe_fd(zp), .events = POLLIN };

    return poll(&pfd, 1, ms) > 0;
}

/* An end that waits is not woken when nothing happens. */
static void test_idle(void)
{
    uint8_t buf[100];
    Req *r = req_new(buf, sizeof(buf));
    uint64_t wakeups;
    struct rusage before, after;
    Pair p;

    pair_open(&p, NULL, NULL);
    pass(&p, 100000, 1, 0);
    submit_read(p.rx, r);
    pair_settle(&p);
    wakeups = stats_of(p.rx).wakeups;
    getrusage(RUSAGE_THREAD, &before);
    for (int i = 0; i < 5; i++) {
        g_assert_cmpint(zpipe_wait(p.rx, 40), ==, 0);
        g_assert_cmpint(zpipe_wait(p.tx, 1), ==, 0);
        g_assert_false(readable(p.rx, 40));
    }
    getrusage(RUSAGE_THREAD, &after);
    g_assert_cmpint(stats_of(p.rx).wakeups, ==, wakeups);
    /* it slept once for each call */
    g_assert_cmpint(after.ru_nvcsw - before.ru_nvcsw, <=, 30);
    pair_close(&p);
    req_free(r);
}

/* The descriptor is readable when, and only when, there is something to do. */
static void test_edge(void)
{
    uint8_t out[100], in[100];
    Req *w = req_new(out, sizeof(out)), *r = req_new(in, sizeof(in));
    Pair p;

    pair_open(&p, NULL, NULL);
    for (int i = 0; i < 2000; i++) {
        submit_read(p.rx, r);
        pair_settle(&p);
        g_assert_false(readable(p.rx, 0));
        g_assert_false(readable(p.tx, 0));
        submit_write(p.tx, w);
        zpipe_flush(p.tx);
        g_assert_true(readable(p.rx, HANG_MS));
        reap_all(p.rx);
        g_assert_true(r->done);
        g_assert_true(readable(p.tx, HANG_MS));
        reap_all(p.tx);
        g_assert_true(w->done);
    }
    pair_close(&p);
    req_free(w);
    req_free(r);
}

/* Woken once for each sleep, however much is submitted. */
static void test_one_kick(void)
{
    enum { N = 16 };
    uint8_t out[N], in[N];
    Req *w[N], *r = req_new(in, N);
    uint64_t kicks;
    Pair p;

    pair_open(&p, NULL, NULL);
    r->r.min = N;
    submit_read(p.rx, r);
    pair_settle(&p);
    kicks = stats_of(p.tx).kicks;
    for (int i = 0; i < N; i++) {
        w[i] = req_new(out + i, 1);
        submit_write(p.tx, w[i]);
        zpipe_flush(p.tx);
    }
    g_assert_cmpint(stats_of(p.tx).kicks, ==, kicks + 1);
    pair_wait(&p, w[N - 1]);
    pair_close(&p);
    for (int i = 0; i < N; i++) {
        req_free(w[i]);
    }
    req_free(r);
}

/* Many messages on the socket, and then the peer is to be woken for data. */
static void test_messages_then_data(void)
{
    uint8_t out[100], in[100];
    Req *w = req_new(out, sizeof(out)), *r = req_new(in, sizeof(in));
    Pair p;

    pair_open(&p, NULL, NULL);
    submit_read(p.rx, r);
    for (int i = 0; i < 40; i++) {
        for (int j = 0; j < 30; j++) {
            zpipe_buffer_free(p.tx, zpipe_buffer_new(p.tx, 4096));
        }
        pair_settle(&p);
    }
    g_assert_cmpint(zpipe_state(p.tx), ==, ZPIPE_CONNECTED);
    submit_write(p.tx, w);
    pair_wait(&p, r);
    pair_wait(&p, w);
    pair_close(&p);
    req_free(w);
    req_free(r);
}

typedef struct PingPong {
    struct zpipe *zp;
    bool first;
    int rounds;
    bool waits;         /* in zpipe_wait(), else in poll() */
} PingPong;

static void sleep_until(PingPong *pp, Req *req)
{
    while (!req->done) {
        reap_all(pp->zp);
        if (req->done) {
            return;
        }
        if (pp->waits) {
            g_assert_cmpint(zpipe_wait(pp->zp, HANG_MS), ==, 1);
        } else {
            g_assert_true(readable(pp->zp, HANG_MS));
        }
    }
}

static gpointer ping_pong(gpointer opaque)
{
    PingPong *pp = opaque;
    uint8_t out[64], in[64];
    Req *w = req_new(out, sizeof(out)), *r = req_new(in, sizeof(in));

    for (int i = 0; i < pp->rounds; i++) {
        pat_fill(out, sizeof(out), pp->first, i);
        r->r.min = sizeof(in);
        submit_read(pp->zp, r);
        if (pp->first) {
            submit_write(pp->zp, w);
        }
        sleep_until(pp, r);
        pat_check(in, sizeof(in), !pp->first, i);
        if (!pp->first) {
            submit_write(pp->zp, w);
        }
        sleep_until(pp, w);
    }
    req_free(w);
    req_free(r);
    return NULL;
}

/* Two threads that do nothing but sleep for each other. */
static void ping_pong_case(bool a_waits, bool b_waits, bool spin)
{
    struct zpipe_config config = config_of(ZPIPE_AUTO, 0);
    PingPong pp[2] = { { .waits = a_waits, .rounds = 5000, .first = true },
                       { .waits = b_waits, .rounds = 5000 } };
    GThread *thread;
    Pair p;

    config.no_spin = !spin;
    config.spin_ns = spin ? 5000 : 0;
    pair_open(&p, &config, &config);
    pp[0].zp = p.tx;
    pp[1].zp = p.rx;
    thread = g_thread_new("pong", ping_pong, &pp[1]);
    ping_pong(&pp[0]);
    g_thread_join(thread);
    pair_close(&p);
}

static void test_ping_pong(void)
{
    for (int i = 0; i < 8; i++) {
        ping_pong_case(i & 1, i & 2, i & 4);
    }
}

/* Data come after EAGAIN, and are noticed in a call that cannot return them. */
static void test_late_data(void)
{
    char byte;
    Pair p;

    for (int flush = 0; flush < 2; flush++) {
        pair_open(&p, NULL, NULL);
        pair_settle(&p);
        g_assert_cmpint(zpipe_try_read(p.rx, &byte, 1), ==, -EAGAIN);
        g_assert_cmpint(zpipe_try_write(p.tx, "x", 1), ==, 1);
        zpipe_flush(p.tx);
        if (flush) {
            zpipe_flush(p.rx);
        } else {
            g_assert_null(zpipe_reap(p.rx));
        }
        g_assert_true(readable(p.rx, HANG_MS));
        g_assert_null(zpipe_reap(p.rx));
        g_assert_cmpint(zpipe_try_read(p.rx, &byte, 1), ==, 1);
        pair_close(&p);
    }
}

/* The same with room. */
static void test_late_room(void)
{
    static char data[1 << 20];
    Pair p;

    for (int flush = 0; flush < 2; flush++) {
        pair_open(&p, NULL, NULL);
        pair_settle(&p);
        while (zpipe_try_write(p.tx, data, sizeof(data)) > 0) {
            /* fill it */
        }
        zpipe_flush(p.tx);
        while (zpipe_try_read(p.rx, data, sizeof(data)) > 0) {
            /* empty it */
        }
        zpipe_flush(p.rx);
        if (flush) {
            zpipe_flush(p.tx);
        } else {
            g_assert_null(zpipe_reap(p.tx));
        }
        g_assert_true(readable(p.tx, HANG_MS));
        g_assert_null(zpipe_reap(p.tx));
        g_assert_cmpint(zpipe_try_write(p.tx, "x", 1), ==, 1);
        pair_close(&p);
    }
}

/*
 * A handle that sets itself a time, for a posted read that does not come, does
 * not forget what it has to tell its user at once.
 */
static void test_two_reasons(void)
{
    struct zpipe_config config = config_of(ZPIPE_DIRECT, 0);
    uint8_t *out = g_malloc0(64 * KiB), in[100];
    Req *w = req_new(out, 64 * KiB), *r = req_new(out, 64 * KiB);
    struct pollfd pfd = { .events = POLLIN };
    Pair p;

    pair_open(&p, &config, NULL);
    pfd.fd = zpipe_fd(p.tx);
    g_assert_cmpint(zpipe_try_read(p.tx, in, sizeof(in)), ==, -EAGAIN);
    pair_settle(&p);
    g_assert_cmpint(zpipe_try_write(p.rx, out, sizeof(in)), ==, sizeof(in));
    zpipe_flush(p.rx);
    submit_write(p.tx, w);
    reap_all(p.tx);
    /* less than the time that it waits for a posted read */
    g_assert_cmpint(poll(&pfd, 1, 50), ==, 1);
    g_assert_cmpint(zpipe_try_read(p.tx, in, sizeof(in)), ==, sizeof(in));
    r->r.min = 64 * KiB;
    submit_read(p.rx, r);
    pair_wait(&p, r);
    pair_wait(&p, w);
    req_free(r);
    req_free(w);
    g_free(out);
    pair_close(&p);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/wakeup/idle", test_idle);
    g_test_add_func("/wakeup/edge", test_edge);
    g_test_add_func("/wakeup/one-kick", test_one_kick);
    g_test_add_func("/wakeup/messages-then-data", test_messages_then_data);
    g_test_add_func("/wakeup/late-data", test_late_data);
    g_test_add_func("/wakeup/late-room", test_late_room);
    g_test_add_func("/wakeup/ping-pong", test_ping_pong);
    g_test_add_func("/wakeup/two-reasons", test_two_reasons);
    return g_test_run();
}

/*
 * Tests of libzpipe: a stream behaves as a pipe does
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */

#include "rawpeer.h"

/* ------------------------------------------------- how much a read returns */

static void test_partial_read(void)
{
    uint8_t out[1000], in[4096];
    Req *w = req_new(out, sizeof(out));
    size_t done = 0;
    Pair p;

    pair_open(&p, NULL, NULL);
    pat_fill(out, sizeof(out), 1, 0);
    submit_write(p.tx, w);
    while (done < sizeof(out)) {
        Req *r = req_new(in, 7);

        submit_read(p.rx, r);
        pair_wait(&p, r);
        g_assert_cmpint(r->r.result, ==, MIN(7, sizeof(out) - done));
        pat_check(in, r->r.result, 1, done);
        done += r->r.result;
        req_free(r);
        g_assert_true(!w->done || done == sizeof(out));
    }
    pair_wait(&p, w);
    req_free(w);
    pair_close(&p);
}

/* A read takes what is there and does not wait for more. */
static void test_short_read(void)
{
    uint8_t out[1000], in[4096];
    Req *w = req_new(out, sizeof(out)), *r = req_new(in, sizeof(in));
    Pair p;

    pair_open(&p, NULL, NULL);
    pat_fill(out, sizeof(out), 1, 0);
    submit_read(p.rx, r);
    pair_settle(&p);
    g_assert_false(r->done);
    submit_write(p.tx, w);
    pair_wait(&p, r);
    g_assert_cmpint(r->r.result, ==, sizeof(out));
    pat_check(in, sizeof(out), 1, 0);
    pair_wait(&p, w);
    req_free(w);
    req_free(r);
    pair_close(&p);
}

static void min_case(bool reachable, enum zpipe_mechanism mechanism)
{
    struct zpipe_config tx = config_of(mechanism, 0);
    uint8_t out[900], *in;
    Req *w1 = req_new(out, 300), *w2 = req_new(out + 300, 300);
    Req *w3 = req_new(out + 600, 300), *r;
    Pair p;

    pair_open(&p, &tx, NULL);
    in = reachable ? zpipe_buffer_new(p.rx, 4096) : g_malloc(4096);
    r = req_new(in, 4096);
    r->r.min = 500;
    pat_fill(out, sizeof(out), 1, 0);
    submit_read(p.rx, r);
    pair_settle(&p);
    submit_write(p.tx, w1);
    pair_settle(&p);
    g_assert_false(r->done);
    /* what a read has is given to the writer, also before the read is over */
    submit_write(p.tx, w2);
    pair_wait(&p, r);
    g_assert_cmpint(r->r.result, >=, 500);
    g_assert_cmpint(r->r.result, <=, 600);
    pat_check(in, r->r.result, 1, 0);
    submit_write(p.tx, w3);
    if (r->r.result < 900) {
        size_t have = r->r.result;
        Req *rest = req_new(in, 900 - have);

        rest->r.min = 900 - have;
        submit_read(p.rx, rest);
        pair_wait(&p, rest);
        g_assert_cmpint(rest->r.result, ==, 900 - have);
        pat_check(in, 900 - have, 1, have);
        req_free(rest);
    }
    pair_wait(&p, w3);
    g_assert_true(w1->done && w2->done);
    if (!reachable) {
        g_free(in);
    }
    req_free(w1);
    req_free(w2);
    req_free(w3);
    req_free(r);
    pair_close(&p);
}

static void test_min(void)
{
    min_case(false, ZPIPE_AUTO);
    min_case(false, ZPIPE_INLINE);
    min_case(false, ZPIPE_COPY);
    min_case(true, ZPIPE_AUTO);
    min_case(true, ZPIPE_DIRECT);
}

/* The end of the stream completes a read that has less than its minimum. */
static void test_min_at_end(void)
{
    uint8_t out[300], in[4096];
    Req *w = req_new(out, sizeof(out)), *r = req_new(in, sizeof(in));
    Pair p;

    pair_open(&p, NULL, NULL);
    pat_fill(out, sizeof(out), 1, 0);
    r->r.min = 500;
    submit_read(p.rx, r);
    submit_write(p.tx, w);
    pair_settle(&p);
    g_assert_false(r->done);
    g_assert_cmpint(zpipe_shutdown(p.tx), ==, 0);
    pair_wait(&p, r);
    g_assert_cmpint(r->r.result, ==, sizeof(out));
    pat_check(in, sizeof(out), 1, 0);
    pair_wait(&p, w);
    req_free(w);
    req_free(r);
    pair_close(&p);
}

/* --------------------------------------------------------------- segments */

static void sg_case(enum zpipe_mechanism mechanism, uint32_t flags, int wn,
                    int rn, bool read_first)
{
    const size_t size = 300 * KiB + 17;
    struct zpipe_config config = config_of(mechanism, flags);
    g_autofree uint8_t *in = g_malloc0(size);
    Req *w, *r = req_new_sg(in, size, rn);
    uint8_t *out;
    Pair p;

    pair_open(&p, &config, &config);
    out = zpipe_buffer_new(p.tx, size);
    w = req_new_sg(out, size, wn);
    pat_fill(out, size, 1, 0);
    r->r.min = size;
    if (read_first) {
        submit_read(p.rx, r);
        pair_settle(&p);
        submit_write(p.tx, w);
    } else {
        submit_write(p.tx, w);
        pair_settle(&p);
        submit_read(p.rx, r);
    }
    pair_wait(&p, r);
    pair_wait(&p, w);
    g_assert_cmpint(w->r.result, ==, size);
    g_assert_cmpint(r->r.result, ==, size);
    pat_check(in, size, 1, 0);
    req_free(w);
    req_free(r);
    pair_close(&p);
}

static void test_segments(void)
{
    static const int n[] = { 1, 2, 3, 16, 33, ZPIPE_IOV_MAX };
    static const enum zpipe_mechanism m[] = {
        ZPIPE_AUTO, ZPIPE_COPY, ZPIPE_DIRECT, ZPIPE_MAP,
    };

    for (size_t i = 0; i < G_N_ELEMENTS(n) * G_N_ELEMENTS(n); i++) {
        for (size_t j = 0; j < G_N_ELEMENTS(m); j++) {
            int wn = n[i / G_N_ELEMENTS(n)], rn = n[i % G_N_ELEMENTS(n)];

            sg_case(m[j], 0, wn, rn, false);
            sg_case(m[j], 0, wn, rn, true);
        }
        sg_case(ZPIPE_AUTO, ZPIPE_CMA, n[i / G_N_ELEMENTS(n)],
                n[i % G_N_ELEMENTS(n)], i & 1);
    }
}

/* A piece from private, shown and again private memory, in one request. */
static void test_mixed_segments(void)
{
    const size_t part = 20 * KiB + 1;
    g_autofree uint8_t *a = g_malloc(part), *c = g_malloc(part);
    g_autofree uint8_t *in = g_malloc(3 * part);
    Req *w = req_new_sg(NULL, 0, 3), *r = req_new(in, 3 * part);
    struct zpipe_config tx = config_of(ZPIPE_DIRECT, 0);
    struct zpipe_stats stats;
    uint8_t *b;
    Pair p;

    pair_open(&p, &tx, NULL);
    b = zpipe_buffer_new(p.tx, part);
    pair_settle(&p);
    pat_fill(a, part, 1, 0);
    pat_fill(b, part, 1, part);
    pat_fill(c, part, 1, 2 * part);
    w->iov[0] = (struct iovec) { a, part };
    w->iov[1] = (struct iovec) { b, part };
    w->iov[2] = (struct iovec) { c, part };
    r->r.min = 3 * part;
    submit_write(p.tx, w);
    pair_settle(&p);
    submit_read(p.rx, r);
    pair_wait(&p, r);
    pair_wait(&p, w);
    pat_check(in, 3 * part, 1, 0);
    stats = stats_of(p.tx);
    g_assert_cmpint(stats.tx[ZPIPE_DIRECT].bytes, ==, part);
    g_assert_cmpint(stats.tx[ZPIPE_COPY].bytes, ==, 2 * part);
    g_assert_cmpint(stats.fallback[ZPIPE_WHY_NO_REGION] +
                    stats.fallback[ZPIPE_WHY_READER_PRIVATE], >, 0);
    req_free(w);
    req_free(r);
    pair_close(&p);
}

static void test_bad_requests(void)
{
    uint8_t buf[16];
    struct iovec iov[2] = { { buf, 16 }, { buf, SSIZE_MAX } };
    struct iovec many[ZPIPE_IOV_MAX + 1] = { { buf, 16 } };
    struct zpipe_req req = { .iov = iov, .iovcnt = 0 };
    Pair p;

    pair_open(&p, NULL, NULL);
    /* no segments; fewer than none; no bytes */
    g_assert_cmpint(zpipe_write(p.tx, &req), ==, -EINVAL);
    g_assert_cmpint(zpipe_read(p.tx, &req), ==, -EINVAL);
    req.iovcnt = -1;
    g_assert_cmpint(zpipe_write(p.tx, &req), ==, -EINVAL);
    g_assert_cmpint(zpipe_read(p.tx, &req), ==, -EINVAL);
    iov[0].iov_len = 0;
    req.iovcnt = 1;
    g_assert_cmpint(zpipe_write(p.tx, &req), ==, -EINVAL);
    g_assert_cmpint(zpipe_read(p.tx, &req), ==, -EINVAL);
    /* more than a size can say */
    iov[0].iov_len = 16;
    req.iovcnt = 2;
    g_assert_cmpint(zpipe_write(p.tx, &req), ==, -EINVAL);
    g_assert_cmpint(zpipe_read(p.tx, &req), ==, -EINVAL);
    /* a minimum that cannot be met */
    req.iovcnt = 1;
    req.min = 17;
    g_assert_cmpint(zpipe_read(p.tx, &req), ==, -EINVAL);
    req.min = 0;
    /* too many */
    req.iov = many;
    req.iovcnt = ZPIPE_IOV_MAX + 1;
    g_assert_cmpint(zpipe_write(p.tx, &req), ==, -EINVAL);
    g_assert_cmpint(zpipe_read(p.tx, &req), ==, -EINVAL);
    /* and none of them was taken */
    g_assert_null(zpipe_reap(p.tx));
    pass(&p, 100, 1, 0);
    pair_close(&p);
}

/* ------------------------------------------------------------------ rings */

typedef struct Burst {
    Pair p;
    GRand *rand;
    uint64_t written, read;
    Req *w[8], *r[8];
    uint8_t *out[8], *in[8];
    unsigned int w_head, w_tail, r_head, r_tail;
    bool over;
} Burst;

#define BURST_MAX (24 * KiB)

static void burst_write(Burst *b)
{
    unsigned int i = b->w_head % 8;
    size_t len = g_rand_boolean(b->rand)
                 ? g_rand_int_range(b->rand, 1, 200)
                 : g_rand_int_range(b->rand, 1, BURST_MAX);

    b->w[i] = req_new_sg(b->out[i], len, g_rand_int_range(b->rand, 1, 4));
    pat_fill(b->out[i], len, 1, b->written);
    b->written += len;
    submit_write(b->p.tx, b->w[i]);
    b->w_head++;
}

static void burst_read(Burst *b)
{
    unsigned int i = b->r_head % 8;

    b->r[i] = req_new(b->in[i], g_rand_int_range(b->rand, 1, BURST_MAX));
    submit_read(b->p.rx, b->r[i]);
    b->r_head++;
}

static void burst_collect(Burst *b)
{
    pair_step(&b->p);
    while (b->w_tail < b->w_head && b->w[b->w_tail % 8]->done) {
        req_free(b->w[b->w_tail++ % 8]);
    }
    while (b->r_tail < b->r_head && b->r[b->r_tail % 8]->done) {
        Req *r = b->r[b->r_tail % 8];

        if (r->r.result == -ECANCELED) {
            g_assert_true(b->over);
            r->r.result = 0;
        } else {
            g_assert_cmpint(r->r.result, >, 0);
        }
        pat_check(b->in[b->r_tail % 8], r->r.result, 1, b->read);
        b->read += r->r.result;
        req_free(r);
        b->r_tail++;
    }
}

/* Thousands of messages through the smallest rings. */
static void test_wrap(const void *opaque)
{
    enum zpipe_mechanism mechanism = GPOINTER_TO_INT(opaque);
    struct zpipe_config config = config_of(mechanism, 0);
    Burst b = { .rand = g_rand_new_with_seed(mechanism + 1) };

    pair_open(&b.p, &config, &config);
    for (int i = 0; i < 8; i++) {
        b.out[i] = zpipe_buffer_new(b.p.tx, BURST_MAX);
        b.in[i] = zpipe_buffer_new(b.p.rx, BURST_MAX);
    }
    while (b.w_tail < 8000) {
        if (b.w_head - b.w_tail < 8 && g_rand_boolean(b.rand)) {
            burst_write(&b);
        }
        if (b.r_head - b.r_tail < 8 && g_rand_boolean(b.rand)) {
            burst_read(&b);
        }
        if (g_rand_boolean(b.rand) || b.w_head - b.w_tail == 8) {
            burst_collect(&b);
        }
    }
    b.over = true;
    zpipe_cancel_all(b.p.tx, false, true);
    zpipe_cancel_all(b.p.rx, true, false);
    burst_collect(&b);
    g_assert_cmpint(b.w_tail, ==, b.w_head);
    g_assert_cmpint(b.r_tail, ==, b.r_head);
    g_assert_cmpint(count_of(stats_of(b.p.tx).tx).bytes, ==, b.read);
    g_rand_free(b.rand);
    pair_close(&b.p);
}

/* More requests than a ring has entries, of a byte each. */
static void test_many_small(void)
{
    enum { N = 20000 };
    g_autofree uint8_t *out = g_malloc(N), *in = g_malloc(N);
    g_autofree Req **w = g_new(Req *, N), **r = g_new(Req *, N);
    Pair p;

    pair_open(&p, NULL, NULL);
    pat_fill(out, N, 1, 0);
    for (int i = 0; i < N; i++) {
        r[i] = req_new(in + i, 1);
        submit_read(p.rx, r[i]);
    }
    pair_settle(&p);
    for (int i = 0; i < N; i++) {
        w[i] = req_new(out + i, 1);
        submit_write(p.tx, w[i]);
    }
    pair_wait(&p, r[N - 1]);
    pair_wait(&p, w[N - 1]);
    pat_check(in, N, 1, 0);
    for (int i = 0; i < N; i++) {
        g_assert_true(w[i]->done && r[i]->done);
        g_assert_true(i == 0 || w[i]->seq > w[i - 1]->seq);
        g_assert_true(i == 0 || r[i]->seq > r[i - 1]->seq);
    }
    for (int i = 0; i < N; i++) {
        req_free(w[i]);
        req_free(r[i]);
    }
    pair_close(&p);
}

/* Completions come in the order of the submits, whatever the mechanism. */
static void test_order(void)
{
    static const size_t len[] = { 1, 300000, 50, 70000, 112, 5000, 1 };
    struct zpipe_config config = config_of(ZPIPE_AUTO, 0);
    Req *w[G_N_ELEMENTS(len)], *r[G_N_ELEMENTS(len)];
    uint8_t *out, *in;
    size_t at = 0;
    Pair p;

    pair_open(&p, &config, &config);
    out = zpipe_buffer_new(p.tx, 1 * MiB);
    in = zpipe_buffer_new(p.rx, 1 * MiB);
    pat_fill(out, 1 * MiB, 1, 0);
    for (size_t i = 0; i < G_N_ELEMENTS(len); i++) {
        r[i] = req_new(in + at, len[i]);
        r[i]->r.min = len[i];
        w[i] = req_new(out + at, len[i]);
        submit_read(p.rx, r[i]);
        submit_write(p.tx, w[i]);
        at += len[i];
    }
    pair_wait(&p, w[G_N_ELEMENTS(len) - 1]);
    pat_check(in, at, 1, 0);
    for (size_t i = 0; i < G_N_ELEMENTS(len); i++) {
        g_assert_cmpint(w[i]->r.result, ==, len[i]);
        g_assert_cmpint(r[i]->r.result, ==, len[i]);
        g_assert_true(i == 0 || w[i]->seq > w[i - 1]->seq);
        g_assert_true(i == 0 || r[i]->seq > r[i - 1]->seq);
    }
    for (size_t i = 0; i < G_N_ELEMENTS(len); i++) {
        req_free(w[i]);
        req_free(r[i]);
    }
    pair_close(&p);
}

/* Views are given back in any order; the writes complete in theirs. */
static void test_order_of_views(void)
{
    struct zpipe_config tx = config_of(ZPIPE_MAP, 0);
    Req *w[3], *v[3];
    uint8_t *out;
    Pair p;

    pair_open(&p, &tx, NULL);
    out = zpipe_buffer_new(p.tx, 3 * 4096);
    pat_fill(out, 3 * 4096, 1, 0);
    pair_settle(&p);
    for (int i = 0; i < 3; i++) {
        w[i] = req_new(out + i * 4096, 4096);
        v[i] = req_new_view();
        submit_write(p.tx, w[i]);
        submit_view(p.rx, v[i]);
    }
    for (int i = 0; i < 3; i++) {
        pair_wait(&p, v[i]);
        pat_check(v[i]->r.view, 4096, 1, i * 4096);
    }
    zpipe_view_done(p.rx, &v[2]->r);
    pair_settle(&p);
    g_assert_true(!w[0]->done && !w[1]->done && !w[2]->done);
    zpipe_view_done(p.rx, &v[0]->r);
    pair_settle(&p);
    g_assert_true(w[0]->done && !w[1]->done && !w[2]->done);
    zpipe_view_done(p.rx, &v[1]->r);
    pair_settle(&p);
    g_assert_true(w[1]->done && w[2]->done);
    g_assert_cmpint(w[1]->seq, <, w[2]->seq);
    for (int i = 0; i < 3; i++) {
        req_free(w[i]);
        req_free(v[i]);
    }
    pair_close(&p);
}

/* Data that have no place to be looked at fail the view, and stay. */
static void test_view_without_buffer(void)
{
    struct zpipe_config config = config_of(ZPIPE_DIRECT, ZPIPE_CMA);
    uint8_t out[8192], in[8192];
    Req *w = req_new(out, sizeof(out)), *v = req_new_view();
    Req *r = req_new(in, sizeof(in));
    Pair p;

    pair_open(&p, &config, &config);
    pat_fill(out, sizeof(out), 1, 0);
    submit_write(p.tx, w);
    submit_view(p.rx, v);
    pair_wait(&p, v);
    g_assert_cmpint(v->r.result, ==, -ENOBUFS);
    r->r.min = sizeof(in);
    submit_read(p.rx, r);
    pair_wait(&p, w);
    pat_check(in, sizeof(in), 1, 0);
    req_free(w);
    req_free(v);
    req_free(r);
    pair_close(&p);
}

/* -------------------------------------------------------------- the ends */

static void test_eof(void)
{
    uint8_t out[64], in[64];
    Req *w = req_new(out, sizeof(out)), *r = req_new(in, sizeof(in));
    Pair p;

    pair_open(&p, NULL, NULL);
    pass(&p, 1000, 1, 0);
    submit_read(p.rx, r);
    pair_settle(&p);
    g_assert_cmpint(zpipe_shutdown(p.tx), ==, 0);
    pair_wait(&p, r);
    g_assert_cmpint(r->r.result, ==, 0);
    /* again and again */
    for (int i = 0; i < 3; i++) {
        submit_read(p.rx, r);
        pair_wait(&p, r);
        g_assert_cmpint(r->r.result, ==, 0);
        g_assert_cmpint(zpipe_try_read(p.rx, in, sizeof(in)), ==, 0);
        submit_view(p.rx, r);
        pair_wait(&p, r);
        g_assert_cmpint(r->r.result, ==, 0);
    }
    g_assert_cmpint(zpipe_write(p.tx, &w->r), ==, -EPIPE);
    g_assert_cmpint(zpipe_try_write(p.tx, out, 1), ==, -EPIPE);
    req_free(w);
    req_free(r);
    pair_close(&p);
}

/* The other direction does not end. */
static void test_half_shutdown(void)
{
    Pair p, q;

    pair_open(&p, NULL, NULL);
    pass(&p, 1000, 1, 0);
    g_assert_cmpint(zpipe_shutdown(p.tx), ==, 0);
    pair_settle(&p);
    g_assert_cmpint(zpipe_state(p.tx), ==, ZPIPE_CONNECTED);
    g_assert_cmpint(zpipe_state(p.rx), ==, ZPIPE_CONNECTED);
    q = (Pair) { .tx = p.rx, .rx = p.tx };
    pass(&q, 100000, 2, 0);
    g_assert_cmpint(zpipe_shutdown(q.tx), ==, 0);
    pair_settle(&p);
    pair_close(&p);
}

static void shutdown_queued(enum zpipe_mechanism mechanism)
{
    enum { N = 200, LEN = 5000 };
    struct zpipe_config tx = config_of(mechanism, 0);
    g_autofree uint8_t *in = g_malloc(N * LEN + 1);
    Req *w[N], *r = req_new(in, N * LEN + 1);
    uint8_t *out;
    Pair p;

    pair_open(&p, &tx, NULL);
    out = zpipe_buffer_new(p.tx, N * LEN);
    pat_fill(out, N * LEN, 1, 0);
    for (int i = 0; i < N; i++) {
        w[i] = req_new(out + i * LEN, LEN);
        submit_write(p.tx, w[i]);
    }
    g_assert_cmpint(zpipe_shutdown(p.tx), ==, 0);
    pair_settle(&p);
    r->r.min = N * LEN + 1;             /* the end completes it */
    submit_read(p.rx, r);
    pair_wait(&p, r);
    g_assert_cmpint(r->r.result, ==, N * LEN);
    pat_check(in, N * LEN, 1, 0);
    pair_wait(&p, w[N - 1]);
    for (int i = 0; i < N; i++) {
        g_assert_cmpint(w[i]->r.result, ==, LEN);
        req_free(w[i]);
    }
    req_free(r);
    pair_close(&p);
}

static void test_shutdown_queued(void)
{
    for (int m = ZPIPE_AUTO; m <= ZPIPE_MAP; m++) {
        shutdown_queued(m);
    }
}

/* A shutdown before there is a connection. */
static void test_shutdown_early(void)
{
    uint8_t out[100], in[200];
    Req *w = req_new(out, sizeof(out)), *r = req_new(in, sizeof(in));
    Pair p;

    pair_new(&p, NULL, NULL);
    pat_fill(out, sizeof(out), 1, 0);
    submit_write(p.tx, w);
    g_assert_cmpint(zpipe_shutdown(p.tx), ==, 0);
    pair_attach(&p);
    r->r.min = sizeof(in);
    submit_read(p.rx, r);
    pair_wait(&p, r);
    g_assert_cmpint(r->r.result, ==, sizeof(out));
    pat_check(in, sizeof(out), 1, 0);
    pair_wait(&p, w);
    req_free(w);
    req_free(r);
    pair_close(&p);
}

static void check_over(ssize_t result)
{
    g_assert_true(result == 0 || result == -EPIPE || result == -ECONNRESET ||
                  result == -ECONNABORTED || result == -ENOTCONN);
}

/* The peer goes away: what is under way ends, and no more is taken. */
static void test_peer_gone(void)
{
    uint8_t out[1000], in[1000];
    Req *w = req_new(out, sizeof(out)), *r = req_new(in, sizeof(in));
    int fds, ret;
    Pair p;

    pair_open(&p, NULL, NULL);
    fds = p.fds;
    submit_write(p.tx, w);
    submit_read(p.tx, r);
    pair_step(&p);
    zpipe_free(p.rx);
    wait_req(p.tx, w);
    wait_req(p.tx, r);
    check_over(r->r.result);
    check_over(w->r.result);
    g_assert_cmpint(w->r.result, !=, 0);
    g_assert_cmpint(zpipe_state(p.tx), ==, ZPIPE_IDLE);
    ret = zpipe_write(p.tx, &w->r);
    g_assert_true(ret == -EPIPE || ret == -ENOTCONN);
    ret = zpipe_read(p.tx, &r->r);
    g_assert_true(ret == -EPIPE || ret == -ENOTCONN);
    g_assert_null(zpipe_reap(p.tx));
    zpipe_free(p.tx);
    fd_check(fds);
    req_free(w);
    req_free(r);
}

/* Without a connection requests wait for one. */
static void test_before_connection(void)
{
    uint8_t out[100000], in[100000];
    Req *w = req_new(out, sizeof(out)), *r = req_new(in, sizeof(in));
    Pair p;

    pair_new(&p, NULL, NULL);
    pat_fill(out, sizeof(out), 1, 0);
    submit_write(p.tx, w);
    r->r.min = sizeof(in);
    submit_read(p.rx, r);
    pair_step(&p);
    g_assert_true(!w->done && !r->done);
    g_assert_cmpint(zpipe_state(p.tx), ==, ZPIPE_IDLE);
    g_assert_cmpstr(zpipe_error(p.tx, NULL), ==, "");
    pair_attach(&p);
    pair_wait(&p, r);
    pair_wait(&p, w);
    pat_check(in, sizeof(in), 1, 0);
    req_free(w);
    req_free(r);
    pair_close(&p);
}

/* ------------------------------------------------------------ now or never */

/* Memory is bounded: what is not read stops the writer. */
static void test_try_write_bound(void)
{
    g_autofree uint8_t *out = g_malloc(10 * KiB), *in = g_malloc(10 * KiB);
    uint64_t written = 0, taken = 0;
    ssize_t n;
    Pair p;

    pair_open(&p, NULL, NULL);
    for (int i = 0; i < 5; i++) {
        for (;;) {
            pat_fill(out, 10 * KiB, 1, written);
            n = zpipe_try_write(p.tx, out, 10 * KiB);
            if (n == -EAGAIN) {
                break;
            }
            g_assert_cmpint(n, >, 0);
            g_assert_cmpint(n, <=, 10 * KiB);
            written += n;
            g_assert_cmpint(written - taken, <=, ZPIPE_RING_BYTES_MIN);
        }
        g_assert_cmpint(written - taken, >, ZPIPE_RING_BYTES_MIN / 2);
        pair_settle(&p);
        g_assert_cmpint(zpipe_try_write(p.tx, out, 1), ==, -EAGAIN);
        pair_settle(&p);
        /* read most of it; then the writer hears of it by its descriptor */
        while (written - taken > 20 * KiB) {
            n = zpipe_try_read(p.rx, in, 10 * KiB);
            g_assert_cmpint(n, >, 0);
            pat_check(in, n, 1, taken);
            taken += n;
        }
        zpipe_flush(p.rx);
        reap_all(p.rx);
        g_assert_true(pair_poll(&p, HANG_MS));
        pair_step(&p);
    }
    pair_close(&p);
}

static void test_try_behind_queue(void)
{
    uint8_t out[200000], in[100];
    Req *w = req_new(out, sizeof(out)), *r = req_new(in, sizeof(in));
    Pair p;

    pair_open(&p, NULL, NULL);
    submit_write(p.tx, w);              /* more than there is room for */
    pair_settle(&p);
    g_assert_cmpint(zpipe_try_write(p.tx, in, 1), ==, -EAGAIN);
    submit_read(p.tx, r);
    g_assert_cmpint(zpipe_try_read(p.tx, in, 1), ==, -EAGAIN);
    pair_close(&p);                     /* forgets them */
    g_assert_true(!w->done && !r->done);
    req_free(w);
    req_free(r);
}

static void test_try_unconnected(void)
{
    uint8_t buf[16] = { 0 };
    struct zpipe *zp = zpipe_new(NULL);

    g_assert_cmpint(zpipe_try_read(zp, buf, 16), ==, -ENOTCONN);
    g_assert_cmpint(zpipe_try_write(zp, buf, 16), ==, -ENOTCONN);
    zpipe_free(zp);
}

/* Copied at once: the buffer may change as soon as the call returns. */
static void test_try_write_copies(void)
{
    uint8_t buf[5000], in[5000];
    ssize_t n;
    Pair p;

    pair_open(&p, NULL, NULL);
    pat_fill(buf, sizeof(buf), 1, 0);
    n = zpipe_try_write(p.tx, buf, sizeof(buf));
    g_assert_cmpint(n, ==, sizeof(buf));
    memset(buf, 0, sizeof(buf));
    pair_settle(&p);
    n = zpipe_try_read(p.rx, in, sizeof(in));
    g_assert_cmpint(n, >, 0);
    pat_check(in, n, 1, 0);
    pair_close(&p);
}

/* try_write, requests, try_write: the order is that of the calls. */
static void test_try_and_requests(void)
{
    uint8_t out[3000], in[3000];
    Req *w = req_new(out + 1000, 1000), *r = req_new(in, sizeof(in));
    int64_t end = now_ms() + HANG_MS;
    ssize_t n;
    Pair p;

    pair_open(&p, NULL, NULL);
    pat_fill(out, sizeof(out), 1, 0);
    g_assert_cmpint(zpipe_try_write(p.tx, out, 1000), ==, 1000);
    submit_write(p.tx, w);
    r->r.min = sizeof(in);
    submit_read(p.rx, r);
    do {
        pair_step(&p);
        n = zpipe_try_write(p.tx, out + 2000, 1000);
        g_assert_cmpint(now_ms(), <, end);
    } while (n == -EAGAIN);
    g_assert_cmpint(n, ==, 1000);
    zpipe_flush(p.tx);
    pair_wait(&p, r);
    pat_check(in, sizeof(in), 1, 0);
    req_free(w);
    req_free(r);
    pair_close(&p);
}

static gpointer echo_thread(gpointer opaque)
{
    struct zpipe *zp = opaque;
    g_autofree uint8_t *buf = g_malloc(100 * KiB);
    ssize_t n;

    while ((n = zpipe_read_full(zp, buf, 100 * KiB)) > 0) {
        g_assert_cmpint(zpipe_write_all(zp, buf, n), ==, 0);
    }
    g_assert_cmpint(n, ==, 0);
    g_assert_cmpint(zpipe_shutdown(zp), ==, 0);
    zpipe_flush(zp);
    return NULL;
}

/* The waiting calls, each end in a thread of its own. */
static void test_waiting_calls(void)
{
    const size_t size = 100 * KiB;
    g_autofree uint8_t *out = g_malloc(size), *in = g_malloc(size);
    GThread *thread;
    Pair p;

    pair_open(&p, NULL, NULL);
    thread = g_thread_new("echo", echo_thread, p.rx);
    for (int i = 0; i < 50; i++) {
        /* the last one is short: the end of the stream completes it */
        size_t len = i == 49 ? 1000 : size;

        pat_fill(out, len, 1, i);
        g_assert_cmpint(zpipe_write_all(p.tx, out, len), ==, 0);
        if (i == 49) {
            g_assert_cmpint(zpipe_shutdown(p.tx), ==, 0);
        }
        g_assert_cmpint(zpipe_read_full(p.tx, in, size), ==, len);
        pat_check(in, len, 1, i);
    }
    g_assert_cmpint(zpipe_read_full(p.tx, in, size), ==, 0);
    g_thread_join(thread);
    pair_close(&p);
}

/*
 * What is copied for a request before somebody reads is bounded, whatever the
 * memory for copies; what has no other place may take all of it.
 */
static void test_copy_ahead(void)
{
    struct zpipe_config config = config_of(ZPIPE_COPY, 0);
    const size_t size = 4 * MiB;
    g_autofree uint8_t *out = g_malloc(size), *in = g_malloc(size);
    Req *w = req_new(out, size), *r = req_new(in, size);
    size_t tried = 0;
    ssize_t ret;
    Pair p;

    config.ring_bytes = 1 * MiB;
    pair_open(&p, &config, NULL);
    pat_fill(out, size, 1, 0);
    submit_write(p.tx, w);
    reap_all(p.tx);
    g_assert_cmpint(stats_of(p.tx).copied, ==, 512 * KiB);
    r->r.min = size;
    submit_read(p.rx, r);
    pair_wait(&p, w);
    pair_settle(&p);
    g_assert_true(r->done);
    pat_check(in, size, 1, 0);
    while ((ret = zpipe_try_write(p.tx, out, 4096)) > 0) {
        tried += ret;
    }
    g_assert_cmpint(ret, ==, -EAGAIN);
    g_assert_cmpint(tried, ==, 1 * MiB);
    pair_close(&p);
    req_free(w);
    req_free(r);
}

/* ------------------------------------------------- a reader without reads */

/* Wait until the library has published so many posted writes. */
static void await_published(struct zpipe *zp, RawPeer *raw, uint64_t n)
{
    struct pollfd pfd = { .fd = zpipe_fd(zp), .events = POLLIN };

    for (;;) {
        reap_all(zp);
        if (__atomic_load_n(&raw->peer.ctl->w_prod, __ATOMIC_ACQUIRE) >= n) {
            return;
        }
        /* nobody but the library itself can wake it */
        g_assert_cmpint(poll(&pfd, 1, HANG_MS), ==, 1);
    }
}

/*
 * Posting reads is a service: a peer that does not is served as well, with
 * what only direct was asked for.
 */
static void test_direct_no_reads(void)
{
    struct zpipe_config c = config_of(ZPIPE_DIRECT, 0);
    struct zpipe *zp = zpipe_new(&c);
    g_autofree uint8_t *buf = g_malloc0(2 * 5000);
    Req *w[2] = { req_new(buf, 5000), req_new(buf + 5000, 5000) };
    RawPeer *raw;
    int sv[2];

    socket_pair(sv);
    raw = raw_new(sv[1], true);
    g_assert_cmpint(zpipe_attach(zp, sv[0], false), ==, 0);
    raw_connect(raw, zp);
    submit_write(zp, w[0]);
    submit_write(zp, w[1]);
    await_published(zp, raw, 1);
    g_assert_cmpint(raw->peer.writes[0].type, ==, ZP_W_COPY);
    raw_take(raw, 5000, 1, 1);
    await_published(zp, raw, 2);
    raw_take(raw, 10000, 2, 2);
    reap_all(zp);
    g_assert_true(w[0]->done && w[1]->done);
    g_assert_cmpint(stats_of(zp).fallback[ZPIPE_WHY_READER_BEHIND], ==, 2);
    zpipe_free(zp);
    raw_free(raw);
    req_free(w[0]);
    req_free(w[1]);
}

/* ------------------------------------------------ work that has no end */

/* More than is copied without a look at anything else. */
#define A_PASS (16 * MiB)
#define BUFFER (4 * MiB)
#define BUFFERS 32

/*
 * Requests may be of any size, and their segments may overlap: one turn copies
 * a part of them.
 */
static void test_bounded_push(void)
{
    struct zpipe_config tx = config_of(ZPIPE_DIRECT, 0);
    uint8_t *out = g_malloc0(BUFFER), *in;
    Req *w = req_new_sg(out, BUFFER, BUFFERS), *r[BUFFERS];
    size_t got = 0;
    Pair p;

    pair_open(&p, &tx, NULL);
    in = zpipe_buffer_new(p.rx, BUFFER);
    for (int i = 0; i < BUFFERS; i++) {
        w->iov[i] = (struct iovec) { out, BUFFER };
        r[i] = req_new(in, BUFFER);
        submit_read(p.rx, r[i]);
    }
    pair_settle(&p);
    submit_write(p.tx, w);
    zpipe_flush(p.tx);
    reap_all(p.rx);
    for (int i = 0; i < BUFFERS; i++) {
        got += r[i]->done ? r[i]->r.result : 0;
    }
    g_assert_cmpuint(got, >, 0);
    g_assert_cmpuint(got, <=, A_PASS);
    /* and nobody has to wake it for the rest */
    pair_wait(&p, w);
    for (int i = 0; i < BUFFERS; i++) {
        pair_wait(&p, r[i]);
        req_free(r[i]);
    }
    req_free(w);
    g_free(out);
    pair_close(&p);
}

/* A turn ends, too, while the peer keeps up. */
static void test_bounded_turn(void)
{
    struct zpipe_config tx = config_of(ZPIPE_MAP, 0);
    size_t size = 256 * MiB, part = MiB;
    Req *w = req_new(NULL, size), *r[256];
    uint8_t *in = g_malloc(part), *out;
    int n;
    Pair p;

    tx.ring_bytes = MiB;
    pair_open(&p, &tx, NULL);
    out = zpipe_buffer_new(p.tx, size);
    w->iov[0].iov_base = out;
    pair_settle(&p);
    for (int i = 0; i < 256; i++) {
        r[i] = req_new(in, part);
        submit_read(p.rx, r[i]);
    }
    submit_write(p.tx, w);
    zpipe_flush(p.tx);
    n = reap_all(p.rx);
    g_assert_cmpint(n, >, 0);
    g_assert_cmpint(n * part, <=, 3 * A_PASS);
    for (int i = 0; i < 256; i++) {
        pair_wait(&p, r[i]);
        req_free(r[i]);
    }
    pair_wait(&p, w);
    req_free(w);
    g_free(in);
    pair_close(&p);
}

/* What is there to be read is not all copied because a read is taken back. */
static void test_bounded_cancel(void)
{
    struct zpipe_config big = config_of(ZPIPE_MAP, 0);
    size_t size = 64 * MiB;
    uint8_t *in = g_malloc(size), *out;
    Req *w = req_new(NULL, size), *r = req_new(in, size), *rest;
    size_t got;
    Pair p;

    big.ring_bytes = MiB;
    pair_open(&p, &big, &big);
    out = zpipe_buffer_new(p.tx, size);
    w->iov[0].iov_base = out;
    pat_fill(out, size, 1, 0);
    pair_settle(&p);
    r->r.min = size;
    submit_read(p.rx, r);
    zpipe_flush(p.rx);
    submit_write(p.tx, w);
    zpipe_flush(p.tx);
    zpipe_cancel(p.rx, &r->r);
    reap_all(p.rx);
    g_assert_true(r->done);
    g_assert_cmpint(r->r.result, >, 0);
    g_assert_cmpint(r->r.result, <=, A_PASS);
    got = r->r.result;
    rest = req_new(in + got, size - got);
    rest->r.min = size - got;
    submit_read(p.rx, rest);
    pair_wait(&p, rest);
    pair_wait(&p, w);
    pat_check(in, size, 1, 0);
    req_free(rest);
    req_free(r);
    req_free(w);
    g_free(in);
    pair_close(&p);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/flow/copy-ahead", test_copy_ahead);
    g_test_add_func("/flow/read/partial", test_partial_read);
    g_test_add_func("/flow/read/short", test_short_read);
    g_test_add_func("/flow/read/min", test_min);
    g_test_add_func("/flow/read/min-at-end", test_min_at_end);
    g_test_add_func("/flow/segments", test_segments);
    g_test_add_func("/flow/segments/mixed", test_mixed_segments);
    g_test_add_func("/flow/bad-requests", test_bad_requests);
    g_test_add_data_func("/flow/wrap/auto", GINT_TO_POINTER(ZPIPE_AUTO),
                         test_wrap);
    g_test_add_data_func("/flow/wrap/inline", GINT_TO_POINTER(ZPIPE_INLINE),
                         test_wrap);
    g_test_add_data_func("/flow/wrap/copy", GINT_TO_POINTER(ZPIPE_COPY),
                         test_wrap);
    g_test_add_data_func("/flow/wrap/direct", GINT_TO_POINTER(ZPIPE_DIRECT),
                         test_wrap);
    g_test_add_data_func("/flow/wrap/map", GINT_TO_POINTER(ZPIPE_MAP),
                         test_wrap);
    g_test_add_func("/flow/many-small", test_many_small);
    g_test_add_func("/flow/order", test_order);
    g_test_add_func("/flow/order/views", test_order_of_views);
    g_test_add_func("/flow/view-without-buffer", test_view_without_buffer);
    g_test_add_func("/flow/end/eof", test_eof);
    g_test_add_func("/flow/end/half-shutdown", test_half_shutdown);
    g_test_add_func("/flow/end/shutdown-queued", test_shutdown_queued);
    g_test_add_func("/flow/end/shutdown-early", test_shutdown_early);
    g_test_add_func("/flow/end/peer-gone", test_peer_gone);
    g_test_add_func("/flow/before-connection", test_before_connection);
    g_test_add_func("/flow/try/bound", test_try_write_bound);
    g_test_add_func("/flow/try/behind-queue", test_try_behind_queue);
    g_test_add_func("/flow/try/unconnected", test_try_unconnected);
    g_test_add_func("/flow/try/copies", test_try_write_copies);
    g_test_add_func("/flow/try/and-requests", test_try_and_requests);
    g_test_add_func("/flow/waiting-calls", test_waiting_calls);
    g_test_add_func("/flow/direct-no-reads", test_direct_no_reads);
    g_test_add_func("/flow/bounded/push", test_bounded_push);
    g_test_add_func("/flow/bounded/turn", test_bounded_turn);
    g_test_add_func("/flow/bounded/cancel", test_bounded_cancel);
    return g_test_run();
}

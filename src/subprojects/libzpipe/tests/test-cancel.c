/*
 * Tests of libzpipe: taking requests back
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Whatever a request was doing when it was cancelled, the stream goes on with
 * the next byte: what the reader gets is the part of each write that its
 * result states, in order, and nothing else.
 */

#include "common.h"

#define LEN (100 * KiB)

/* How far the first write has come when it is cancelled. */
typedef enum Stage {
    UNCONNECTED,        /* there is no peer */
    UNSUBMITTED,        /* the peer was not told */
    PUBLISHED,          /* told, but it has not looked */
    HALF,               /* a part was taken */
    PUSHED,             /* in the peer's posted read; it has not looked */
    PUSHED_HALF,        /* the same, with less room than bytes */
    TAKEN,              /* the peer has it all, the writer does not know */
    STAGES
} Stage;

static const char *const stage_name[] = {
    "unconnected", "unsubmitted", "published", "half", "pushed", "pushed-half",
    "taken",
};

typedef struct Case {
    enum zpipe_mechanism mechanism;
    bool shown;
    Stage stage;
} Case;

typedef struct Run {
    const Case *c;
    Pair p;
    uint8_t *a, *b;         /* contents of the two writes */
    uint8_t *in;            /* all that the reader has got */
    size_t got;
} Run;

static void run_read(Run *run, size_t len, size_t min)
{
    Req *r = req_new(run->in + run->got, len);

    r->r.min = min;
    submit_read(run->p.rx, r);
    pair_wait(&run->p, r);
    g_assert_cmpint(r->r.result, >, 0);
    run->got += r->r.result;
    req_free(r);
}

static uint8_t *run_buffer(Run *run, uint64_t seed)
{
    uint8_t *buf = run->c->shown ? zpipe_buffer_new(run->p.tx, LEN)
                                 : g_malloc(LEN);

    g_assert_nonnull(buf);
    pat_fill(buf, LEN, seed, 0);
    return buf;
}

static void run_open(Run *run, const Case *c)
{
    struct zpipe_config tx = config_of(c->mechanism, 0);

    tx.ring_bytes = 1 * MiB;
    memset(run, 0, sizeof(*run));
    run->c = c;
    pair_new(&run->p, &tx, NULL);
    if (c->stage != UNCONNECTED) {
        pair_attach(&run->p);
    }
    run->a = run_buffer(run, 1);
    run->b = run_buffer(run, 2);
    run->in = zpipe_buffer_new(run->p.rx, 4 * LEN);
    if (c->stage != UNCONNECTED) {
        pair_settle(&run->p);
    }
}

static void run_close(Run *run)
{
    pair_close(&run->p);
    if (!run->c->shown) {
        g_free(run->a);
        g_free(run->b);
    }
}

/* Bring the write to its stage; the read that is left posted, if any. */
static Req *run_stage(Run *run, Req *w)
{
    Req *r = NULL;

    switch (run->c->stage) {
    case PUSHED:
    case PUSHED_HALF:
        r = req_new(run->in, run->c->stage == PUSHED ? 2 * LEN : LEN / 3);
        submit_read(run->p.rx, r);
        pair_settle(&run->p);
        submit_write(run->p.tx, w);
        reap_all(run->p.tx);
        break;
    case HALF:
        submit_write(run->p.tx, w);
        run_read(run, LEN / 3, LEN / 3);
        break;
    case PUBLISHED:
        submit_write(run->p.tx, w);
        reap_all(run->p.tx);
        break;
    case TAKEN:
        submit_write(run->p.tx, w);
        reap_all(run->p.tx);
        r = req_new(run->in, LEN);
        r->r.min = LEN;
        submit_read(run->p.rx, r);
        reap_all(run->p.rx);
        break;
    default:
        submit_write(run->p.tx, w);
    }
    return r;
}

static size_t cancelled(Req *w)
{
    if (w->r.result == -ECANCELED) {
        return 0;
    }
    g_assert_cmpint(w->r.result, >, 0);
    g_assert_cmpint(w->r.result, <=, LEN);
    return w->r.result;
}

/* Read all of it, and compare with what the results say. */
static void run_check(Run *run, size_t first, Req *posted)
{
    size_t all = first + LEN;

    if (posted) {
        pair_wait(&run->p, posted);
        g_assert_cmpint(posted->r.result, >, 0);
        run->got += posted->r.result;
    }
    while (run->got < all) {
        run_read(run, 4 * LEN - run->got, 0);
    }
    pair_settle(&run->p);
    g_assert_cmpint(run->got, ==, all);
    pat_check(run->in, first, 1, 0);
    pat_check(run->in + first, LEN, 2, 0);
    g_assert_cmpint(info_of(run->p.tx).tx_offset, ==, all);
    g_assert_cmpint(zpipe_try_read(run->p.rx, run->in, 1), ==, -EAGAIN);
}

static void test_write_case(const void *opaque)
{
    Req *a, *b, *r;
    size_t first;
    Run run;

    run_open(&run, opaque);
    a = req_new(run.a, LEN);
    b = req_new(run.b, LEN);
    r = run_stage(&run, a);
    submit_write(run.p.tx, b);
    zpipe_cancel(run.p.tx, &a->r);
    /* ours again: what the peer has not taken it will not see any more */
    reap_all(run.p.tx);
    g_assert_true(a->done);
    first = cancelled(a);
    if (run.c->stage <= PUBLISHED) {
        g_assert_cmpint(first, ==, 0);
    } else if (run.c->stage == HALF) {
        g_assert_cmpint(first, ==, run.got);
    } else if (run.c->stage == TAKEN) {
        /* "direct" of private memory may have waited for a posted read */
        g_assert_true(first == LEN || (run.c->mechanism == ZPIPE_DIRECT &&
                                       !run.c->shown && !first));
    }
    memset(run.a, 0xee, LEN);
    zpipe_cancel(run.p.tx, &a->r);      /* harmless */
    if (run.c->stage == UNCONNECTED) {
        pair_attach(&run.p);
    }
    run_check(&run, first, r);
    pair_wait(&run.p, b);
    g_assert_cmpint(b->r.result, ==, LEN);
    g_assert_cmpint(zpipe_state(run.p.tx), ==, ZPIPE_CONNECTED);
    req_free(a);
    req_free(b);
    if (r) {
        req_free(r);
    }
    run_close(&run);
}

/* One in the middle of three, and the first and the last. */
static void test_write_which(const void *opaque)
{
    struct zpipe_config tx = config_of(GPOINTER_TO_INT(opaque), 0);
    enum { N = 3000 };
    uint8_t in[3 * N];
    uint8_t *out;
    Req *w[3], *r;
    Pair p;

    for (int victim = 0; victim < 3; victim++) {
        pair_open(&p, &tx, NULL);
        out = zpipe_buffer_new(p.tx, 3 * N);
        pair_settle(&p);
        for (int i = 0; i < 3; i++) {
            pat_fill(out + i * N, N, i, 0);
            w[i] = req_new(out + i * N, N);
            submit_write(p.tx, w[i]);
        }
        reap_all(p.tx);
        zpipe_cancel(p.tx, &w[victim]->r);
        r = req_new(in, sizeof(in));
        r->r.min = 2 * N;
        submit_read(p.rx, r);
        pair_wait(&p, r);
        g_assert_cmpint(r->r.result, ==, 2 * N);
        pat_check(in, N, victim == 0 ? 1 : 0, 0);
        pat_check(in + N, N, victim == 2 ? 1 : 2, 0);
        pair_wait(&p, w[2]);
        pair_wait(&p, w[1]);
        for (int i = 0; i < 3; i++) {
            g_assert_true(w[i]->done);
            g_assert_cmpint(w[i]->r.result, ==,
                            i == victim ? -ECANCELED : N);
            req_free(w[i]);
        }
        req_free(r);
        pair_close(&p);
    }
}

/* The peer looks at it and does not give it back: it loses the connection. */
static void test_write_viewed(void)
{
    struct zpipe_config tx = config_of(ZPIPE_MAP, 0);
    Req *w, *v = req_new_view();
    uint8_t *out;
    Pair p;

    pair_open(&p, &tx, NULL);
    out = zpipe_buffer_new(p.tx, LEN);
    pat_fill(out, LEN, 1, 0);
    pair_settle(&p);
    w = req_new(out, LEN);
    submit_write(p.tx, w);
    submit_view(p.rx, v);
    pair_wait(&p, v);
    zpipe_cancel(p.tx, &w->r);
    reap_all(p.tx);
    g_assert_true(w->done);
    /* the bytes were looked at: they count as handed over */
    g_assert_cmpint(w->r.result, ==, LEN);
    pair_settle(&p);
    zpipe_view_done(p.rx, &v->r);       /* harmless when it has ended */
    pair_settle(&p);
    pair_close(&p);
    req_free(w);
    req_free(v);
}

/* ---------------------------------------------------------------- reads */

static void test_read_empty(void)
{
    uint8_t a[1000], in[1000];
    Req *r = req_new(a, sizeof(a)), *v = req_new_view();
    Pair p;

    pair_open(&p, NULL, NULL);
    submit_read(p.rx, r);
    submit_view(p.rx, v);
    pair_settle(&p);
    zpipe_cancel(p.rx, &r->r);
    zpipe_cancel(p.rx, &v->r);
    reap_all(p.rx);
    g_assert_true(r->done && v->done);
    g_assert_cmpint(r->r.result, ==, -ECANCELED);
    g_assert_cmpint(v->r.result, ==, -ECANCELED);
    /* what is written afterwards goes to the next one */
    pass(&p, sizeof(in), 1, 0);
    pair_close(&p);
    req_free(r);
    req_free(v);
}

/*
 * A read that has less than its minimum; the rest goes to the next one.  The
 * peer may have put the bytes there itself, before or after this side has run.
 */
static void read_partly(bool reachable, bool run_first)
{
    struct zpipe_config tx = config_of(ZPIPE_DIRECT, 0);
    uint8_t out[1000], *in;
    Req *w, *r, *s;
    size_t have;
    Pair p;

    pair_open(&p, &tx, NULL);
    in = reachable ? zpipe_buffer_new(p.rx, 8192) : g_malloc0(8192);
    pat_fill(out, sizeof(out), 1, 0);
    r = req_new(in, 4000);
    r->r.min = 2000;
    submit_read(p.rx, r);
    pair_settle(&p);
    w = req_new(out, sizeof(out));
    submit_write(p.tx, w);
    reap_all(p.tx);
    if (run_first) {
        pair_settle(&p);
    }
    zpipe_cancel(p.rx, &r->r);
    reap_all(p.rx);
    g_assert_true(r->done);
    have = r->r.result == -ECANCELED ? 0 : r->r.result;
    if (run_first) {
        g_assert_cmpint(have, ==, sizeof(out));
    }
    g_assert_cmpint(have, <=, sizeof(out));
    pat_check(in, have, 1, 0);
    if (have < sizeof(out)) {
        s = req_new(in + 4000, 4000);
        s->r.min = sizeof(out) - have;
        submit_read(p.rx, s);
        pair_wait(&p, s);
        g_assert_cmpint(s->r.result, ==, sizeof(out) - have);
        pat_check(in + 4000, s->r.result, 1, have);
        req_free(s);
    }
    pair_wait(&p, w);
    pass(&p, 5000, 2, 0);
    if (!reachable) {
        g_free(in);
    }
    req_free(w);
    req_free(r);
    pair_close(&p);
}

static void test_read_partly(void)
{
    for (int i = 0; i < 4; i++) {
        read_partly(i & 1, i & 2);
    }
}

/* The buffer of a cancelled read is not written any more. */
static void test_read_is_ours(void)
{
    struct zpipe_config tx = config_of(ZPIPE_DIRECT, ZPIPE_CMA);
    struct zpipe_config rx = config_of(ZPIPE_AUTO, ZPIPE_CMA);
    uint8_t out[4096], *in;
    Req *w = req_new(out, sizeof(out)), *r;
    Pair p;

    pair_open(&p, &tx, &rx);
    in = zpipe_buffer_new(p.rx, 4096);
    r = req_new(in, 4096);
    submit_read(p.rx, r);
    pair_settle(&p);
    zpipe_cancel(p.rx, &r->r);
    memset(in, 0x55, 4096);
    memset(out, 0xaa, 4096);
    /* the writer has seen it posted, and has not run since */
    submit_write(p.tx, w);
    pair_settle(&p);
    for (int i = 0; i < 4096; i++) {
        g_assert_cmpint(in[i], ==, 0x55);
    }
    g_assert_cmpint(r->r.result, ==, -ECANCELED);
    pair_close(&p);
    req_free(w);
    req_free(r);
}

/* ------------------------------------------------------------------ more */

static void test_completed(void)
{
    uint8_t out[100], in[100];
    Req *w = req_new(out, 100), *r = req_new(in, 100);
    Pair p;

    pair_open(&p, NULL, NULL);
    submit_write(p.tx, w);
    submit_read(p.rx, r);
    pair_wait(&p, r);
    pair_wait(&p, w);
    zpipe_cancel(p.tx, &w->r);
    zpipe_cancel(p.rx, &r->r);
    zpipe_cancel_all(p.tx, true, true);
    zpipe_cancel_all(p.rx, true, true);
    g_assert_cmpint(w->r.result, ==, 100);
    g_assert_cmpint(r->r.result, ==, 100);
    g_assert_null(zpipe_reap(p.tx));
    g_assert_null(zpipe_reap(p.rx));
    pair_close(&p);
    req_free(w);
    req_free(r);
}

static void cancel_all_case(bool reads, bool writes)
{
    enum { N = 50 };
    g_autofree uint8_t *buf = g_malloc0(LEN);
    Req *w[N], *r[N];
    Pair p;

    pair_open(&p, NULL, NULL);
    for (int i = 0; i < N; i++) {
        w[i] = req_new(buf, LEN);
        r[i] = req_new(buf, 100);
        submit_write(p.tx, w[i]);
        submit_read(p.tx, r[i]);
    }
    pair_settle(&p);
    zpipe_cancel_all(p.tx, reads, writes);
    pair_settle(&p);
    for (int i = 0; i < N; i++) {
        g_assert_cmpint(r[i]->done, ==, reads);
        g_assert_cmpint(w[i]->done, ==, writes);
        g_assert_true(!reads || r[i]->r.result == -ECANCELED);
        g_assert_true(!writes || w[i]->r.result == -ECANCELED);
        g_assert_true(!i || !reads || r[i]->seq > r[i - 1]->seq);
        g_assert_true(!i || !writes || w[i]->seq > w[i - 1]->seq);
    }
    if (writes) {
        pass(&p, 100000, 1, 0);
    }
    pair_close(&p);
    for (int i = 0; i < N; i++) {
        req_free(w[i]);
        req_free(r[i]);
    }
}

static void test_cancel_all(void)
{
    for (int i = 0; i < 4; i++) {
        cancel_all_case(i & 1, i & 2);
    }
}

/* A cancelled request completes without the peer, and is announced. */
static void test_announced(void)
{
    uint8_t buf[100];
    Req *r = req_new(buf, sizeof(buf));
    struct pollfd pfd;
    Pair p;

    pair_open(&p, NULL, NULL);
    submit_read(p.tx, r);
    pair_settle(&p);
    zpipe_cancel(p.tx, &r->r);
    zpipe_flush(p.tx);
    pfd = (struct pollfd) { .fd = zpipe_fd(p.tx), .events = POLLIN };
    g_assert_cmpint(poll(&pfd, 1, HANG_MS), ==, 1);
    reap_all(p.tx);
    g_assert_true(r->done);
    pair_close(&p);
    req_free(r);
}

/* After a shutdown writes can be taken back; the end comes then. */
static void test_shutdown_then_cancel(void)
{
    g_autofree uint8_t *buf = g_malloc0(LEN);
    Req *w = req_new(buf, LEN), *r = req_new(buf, LEN);
    Pair p;

    pair_open(&p, NULL, NULL);
    submit_write(p.tx, w);
    g_assert_cmpint(zpipe_shutdown(p.tx), ==, 0);
    pair_settle(&p);
    zpipe_cancel(p.tx, &w->r);
    pair_settle(&p);
    g_assert_true(w->done);
    g_assert_cmpint(w->r.result, ==, -ECANCELED);
    submit_read(p.rx, r);
    pair_wait(&p, r);
    g_assert_cmpint(r->r.result, ==, 0);
    pair_close(&p);
    req_free(w);
    req_free(r);
}

static void add_stage(enum zpipe_mechanism mechanism, bool shown, Stage stage)
{
    Case c = { mechanism, shown, stage };
    g_autofree char *path =
        g_strdup_printf("/cancel/write/%s/%s/%s", stage_name[stage],
                        zpipe_mechanism_name(mechanism),
                        shown ? "buffer" : "private");

    g_test_add_data_func_full(path, g_memdup2(&c, sizeof(c)), test_write_case,
                              g_free);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    for (int stage = 0; stage < STAGES; stage++) {
        for (int m = ZPIPE_AUTO; m <= ZPIPE_MAP; m++) {
            add_stage(m, false, stage);
            add_stage(m, true, stage);
        }
    }
    for (int m = ZPIPE_COPY; m <= ZPIPE_MAP; m++) {
        g_autofree char *path =
            g_strdup_printf("/cancel/write/which/%s", zpipe_mechanism_name(m));

        g_test_add_data_func(path, GINT_TO_POINTER(m), test_write_which);
    }
    g_test_add_func("/cancel/write/viewed", test_write_viewed);
    g_test_add_func("/cancel/write/after-shutdown", test_shutdown_then_cancel);
    g_test_add_func("/cancel/read/empty", test_read_empty);
    g_test_add_func("/cancel/read/partly", test_read_partly);
    g_test_add_func("/cancel/read/is-ours", test_read_is_ours);
    g_test_add_func("/cancel/completed", test_completed);
    g_test_add_func("/cancel/all", test_cancel_all);
    g_test_add_func("/cancel/announced", test_announced);
    return g_test_run();
}

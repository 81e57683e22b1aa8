/*
 * Tests of libzpipe: every mechanism against every kind of reader
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * For each combination of what the writer is told to use, where its data lie,
 * how the reader reads, who comes first and whether cross-memory access is
 * agreed on: all sizes, byte-exact, counted under the mechanism that must have
 * been taken, or under the reason why not.
 */

#include "common.h"

typedef enum Source { SRC_PRIVATE, SRC_BUFFER, SRC_REGION, SOURCES } Source;
typedef enum Sink { DST_PRIVATE, DST_BUFFER, DST_VIEW, DST_TRY, SINKS } Sink;

static const char *const source_name[] = { "private", "buffer", "region" };
static const char *const sink_name[] = { "private", "buffer", "view", "try" };

typedef struct Case {
    enum zpipe_mechanism mechanism;
    Source source;
    Sink sink;
    bool read_first;
    bool cma;
} Case;

#define SIZE_MAX_TESTED (5 * MiB)
/* A read that wants more than that at once is not pushed into. */
#define PUSHED_MAX (4 * MiB)

static const size_t sizes[] = {
    1, 7, 111, 112, 113, 4095, 4096, 4097, 64 * KiB - 1, 64 * KiB,
    64 * KiB + 1, 1 * MiB - 1, 1 * MiB, 1 * MiB + 1, SIZE_MAX_TESTED,
};

typedef struct Run {
    const Case *c;
    Pair p;
    uint8_t *out, *in;
    int memfd;
    uint64_t pos;
} Run;

static void run_open(Run *run, const Case *c)
{
    uint32_t flags = c->cma ? ZPIPE_CMA : 0;
    struct zpipe_config tx = config_of(c->mechanism, flags);
    struct zpipe_config rx = config_of(ZPIPE_AUTO, flags);

    run->c = c;
    run->pos = 0;
    run->memfd = -1;
    pair_open(&run->p, &tx, &rx);
    switch (c->source) {
    case SRC_BUFFER:
        run->out = zpipe_buffer_new(run->p.tx, SIZE_MAX_TESTED);
        break;
    case SRC_REGION:
        run->memfd = memfd_shown(SIZE_MAX_TESTED, (void **)&run->out);
        run->p.fds++;                   /* the memfd is ours */
        g_assert_cmpint(zpipe_region_add(run->p.tx, run->memfd, 0, run->out,
                                         SIZE_MAX_TESTED), >=, 0);
        break;
    default:
        run->out = g_malloc(SIZE_MAX_TESTED);
    }
    run->in = c->sink == DST_BUFFER
              ? zpipe_buffer_new(run->p.rx, SIZE_MAX_TESTED)
              : g_malloc(SIZE_MAX_TESTED);
    g_assert_true(run->in && run->out);
    /* the regions are known to the peer, and it has answered */
    pair_settle(&run->p);
}

static void run_close(Run *run)
{
    pair_close(&run->p);
    if (run->memfd >= 0) {
        munmap(run->out, SIZE_MAX_TESTED);
        close(run->memfd);
    } else if (run->c->source == SRC_PRIVATE) {
        g_free(run->out);
    }
    if (run->c->sink != DST_BUFFER) {
        g_free(run->in);
    }
}

/* ------------------------------------------------------------- reading */

static void read_posted(Run *run, Req *w, size_t size)
{
    Req *r = req_new(run->in, size);

    r->r.min = size;
    if (run->c->read_first) {
        submit_read(run->p.rx, r);
        pair_settle(&run->p);
        submit_write(run->p.tx, w);
    } else {
        submit_write(run->p.tx, w);
        pair_settle(&run->p);
        submit_read(run->p.rx, r);
    }
    pair_wait(&run->p, r);
    g_assert_cmpint(r->r.result, ==, size);
    pat_check(run->in, size, 1, run->pos);
    req_free(r);
}

static void read_views(Run *run, Req *w, size_t size)
{
    /* where data that cannot be looked at are put */
    Req *r = req_new(run->in, SIZE_MAX_TESTED);
    size_t done = 0;

    if (run->c->read_first) {
        submit_view(run->p.rx, r);
        pair_settle(&run->p);
        submit_write(run->p.tx, w);
    } else {
        submit_write(run->p.tx, w);
        pair_settle(&run->p);
        submit_view(run->p.rx, r);
    }
    for (;;) {
        pair_wait(&run->p, r);
        g_assert_cmpint(r->r.result, >, 0);
        g_assert_cmpint(r->r.result, <=, size - done);
        pat_check(r->r.view, r->r.result, 1, run->pos + done);
        done += r->r.result;
        zpipe_view_done(run->p.rx, &r->r);
        if (done == size) {
            break;
        }
        submit_view(run->p.rx, r);
    }
    req_free(r);
}

static void read_trying(Run *run, Req *w, size_t size)
{
    size_t done = 0;

    submit_write(run->p.tx, w);
    while (done < size) {
        ssize_t n = zpipe_try_read(run->p.rx, run->in + done, size - done);

        if (n == -EAGAIN) {
            pair_step(&run->p);
            n = zpipe_try_read(run->p.rx, run->in + done, size - done);
            if (n == -EAGAIN) {
                g_assert_true(pair_poll(&run->p, HANG_MS));
                continue;
            }
        }
        g_assert_cmpint(n, >, 0);
        done += n;
    }
    g_assert_cmpint(zpipe_try_read(run->p.rx, run->in, 1), ==, -EAGAIN);
    pat_check(run->in, size, 1, run->pos);
}

/* ------------------------------------------------------------- counting */

#define BIT(n) (1u << (n))

static bool shown(const Case *c)
{
    return c->source != SRC_PRIVATE || c->cma;
}

/* The mechanisms that may have been taken. */
static unsigned int expected(const Case *c, size_t size)
{
    const unsigned int any_copy = BIT(ZPIPE_INLINE) | BIT(ZPIPE_COPY);
    bool reachable = c->sink == DST_BUFFER ||
                     (c->cma && c->sink != DST_VIEW && c->sink != DST_TRY);

    switch (c->mechanism) {
    case ZPIPE_INLINE:
        /* the last bytes of what is longer can go in an entry */
        return size <= INLINE_MAX ? BIT(ZPIPE_INLINE) : ~0u;
    case ZPIPE_COPY:
        return BIT(ZPIPE_COPY);
    case ZPIPE_DIRECT:
        if (shown(c)) {
            return BIT(ZPIPE_DIRECT) | (c->sink == DST_VIEW ? BIT(ZPIPE_MAP)
                                                            : 0);
        }
        if (reachable && size <= PUSHED_MAX) {
            return BIT(ZPIPE_DIRECT);
        }
        return reachable ? BIT(ZPIPE_DIRECT) | any_copy : any_copy;
    case ZPIPE_MAP:
        if (c->source != SRC_PRIVATE) {
            return c->sink == DST_VIEW ? BIT(ZPIPE_MAP) : BIT(ZPIPE_DIRECT);
        }
        return BIT(ZPIPE_DIRECT) | any_copy;
    default:
        return ~0u;
    }
}

/* Whether some of it must have been counted as not as good as asked for. */
static bool falls_back(const Case *c, size_t size)
{
    unsigned int best = c->mechanism;

    if (c->mechanism == ZPIPE_INLINE) {
        return size > INLINE_MAX;
    }
    return c->mechanism != ZPIPE_AUTO && !(expected(c, size) & BIT(best));
}

static void check_counts(const Case *c, size_t size,
                         const struct zpipe_stats *old,
                         const struct zpipe_stats *new,
                         const struct zpipe_stats *rx_old,
                         const struct zpipe_stats *rx_new)
{
    uint64_t bytes = 0, fallback = 0;

    for (int i = 0; i < ZPIPE_MECHANISMS; i++) {
        uint64_t n = new->tx[i].bytes - old->tx[i].bytes;
        uint64_t m = new->tx[i].messages - old->tx[i].messages;

        bytes += n;
        g_assert_cmpint(!n, ==, !m);
        if (n && !(expected(c, size) & BIT(i))) {
            g_error("%zu bytes: %" PRIu64 " went by %s", size, n,
                    zpipe_mechanism_name(i));
        }
        /* both sides say the same */
        g_assert_cmpint(rx_new->rx[i].bytes - rx_old->rx[i].bytes, ==, n);
    }
    g_assert_cmpint(bytes, ==, size);
    for (int i = 0; i < ZPIPE_REASONS; i++) {
        fallback += new->fallback[i] - old->fallback[i];
    }
    if (falls_back(c, size)) {
        g_assert_cmpint(fallback, >, 0);
    }
    g_assert_cmpint(rx_new->cma_errors + new->cma_errors, ==, 0);
}

static void transfer_one(Run *run, size_t size)
{
    struct zpipe_stats tx = stats_of(run->p.tx), tx_new;
    struct zpipe_stats rx = stats_of(run->p.rx), rx_new;
    Req *w = req_new(run->out, size);

    pat_fill(run->out, size, 1, run->pos);
    memset(run->in, 0, size);
    switch (run->c->sink) {
    case DST_VIEW:
        read_views(run, w, size);
        break;
    case DST_TRY:
        read_trying(run, w, size);
        break;
    default:
        read_posted(run, w, size);
    }
    pair_wait(&run->p, w);
    g_assert_cmpint(w->r.result, ==, size);
    req_free(w);
    run->pos += size;
    tx_new = stats_of(run->p.tx);
    rx_new = stats_of(run->p.rx);
    check_counts(run->c, size, &tx, &tx_new, &rx, &rx_new);
    g_assert_cmpint(info_of(run->p.tx).tx_offset, ==, run->pos);
    g_assert_cmpint(info_of(run->p.rx).rx_offset, ==, run->pos);
}

static void test_case(const void *opaque)
{
    Run run;

    run_open(&run, opaque);
    for (size_t i = 0; i < G_N_ELEMENTS(sizes); i++) {
        transfer_one(&run, sizes[i]);
    }
    run_close(&run);
}

static void add_case(Case c)
{
    g_autofree char *path =
        g_strdup_printf("/transfer/%s/%s-%s/%s%s",
                        zpipe_mechanism_name(c.mechanism),
                        source_name[c.source], sink_name[c.sink],
                        c.read_first ? "read-first" : "write-first",
                        c.cma ? "/cma" : "");

    g_test_add_data_func_full(path, g_memdup2(&c, sizeof(c)), test_case,
                              g_free);
}

static void add_cases(enum zpipe_mechanism mechanism, Source source, Sink sink)
{
    for (int i = 0; i < 4; i++) {
        Case c = {
            .mechanism = mechanism, .source = source, .sink = sink,
            .read_first = i & 1, .cma = i & 2,
        };

        if (!(c.read_first && sink == DST_TRY)) {
            add_case(c);
        }
    }
}

/* ------------------------------------------------------------- reasons */

static uint64_t reason_after(enum zpipe_mechanism mechanism, size_t size,
                             enum zpipe_reason reason)
{
    struct zpipe_config tx = config_of(mechanism, 0);
    uint64_t n;
    Pair p;

    pair_open(&p, &tx, NULL);
    pass(&p, size, 3, 0);
    n = stats_of(p.tx).fallback[reason];
    pair_close(&p);
    return n;
}

static void test_reason_size(void)
{
    g_assert_cmpint(reason_after(ZPIPE_INLINE, 112, ZPIPE_WHY_SIZE), ==, 0);
    g_assert_cmpint(reason_after(ZPIPE_INLINE, 113, ZPIPE_WHY_SIZE), >, 0);
}

static void test_reason_no_region(void)
{
    g_assert_cmpint(reason_after(ZPIPE_MAP, 4096, ZPIPE_WHY_NO_REGION), >, 0);
    g_assert_cmpint(reason_after(ZPIPE_COPY, 4096, ZPIPE_WHY_NO_REGION), ==,
                    0);
}

static void test_reason_no_view(void)
{
    struct zpipe_config tx = config_of(ZPIPE_MAP, 0);
    uint8_t in[4096];
    Req *w, *r = req_new(in, sizeof(in));
    uint8_t *out;
    Pair p;

    pair_open(&p, &tx, NULL);
    out = zpipe_buffer_new(p.tx, sizeof(in));
    pair_settle(&p);
    w = req_new(out, sizeof(in));
    submit_write(p.tx, w);
    submit_read(p.rx, r);
    pair_wait(&p, w);
    g_assert_cmpint(stats_of(p.tx).fallback[ZPIPE_WHY_NO_VIEW] +
                    stats_of(p.rx).fallback[ZPIPE_WHY_NO_VIEW], >, 0);
    req_free(w);
    req_free(r);
    pair_close(&p);
}

/* A region that the peer's limit refuses: its data go another way. */
static void test_reason_refused(void)
{
    struct zpipe_config tx = config_of(ZPIPE_MAP, 0);
    struct zpipe_config rx = config_of(ZPIPE_AUTO, 0);
    uint8_t in[4096];
    Req *w, *r = req_new(in, sizeof(in));
    uint8_t *out;
    Pair p;

    rx.peer_bytes_max = 64 * KiB;
    pair_open(&p, &tx, &rx);
    out = zpipe_buffer_new(p.tx, 128 * KiB);
    g_assert_nonnull(out);
    pair_settle(&p);
    pat_fill(out, sizeof(in), 1, 0);
    w = req_new(out, sizeof(in));
    submit_write(p.tx, w);
    submit_read(p.rx, r);
    pair_wait(&p, w);
    pat_check(in, sizeof(in), 1, 0);
    g_assert_cmpint(stats_of(p.tx).fallback[ZPIPE_WHY_REFUSED], >, 0);
    g_assert_cmpint(stats_of(p.rx).refused_regions, ==, 1);
    g_assert_cmpint(stats_of(p.rx).peer_regions, ==, 0);
    req_free(w);
    req_free(r);
    pair_close(&p);
}

/* No read of such a handle can be reached, whatever memory it lies in. */
static void test_reads_private(void)
{
    struct zpipe_config tx = config_of(ZPIPE_DIRECT, ZPIPE_CMA);
    struct zpipe_config rx = config_of(ZPIPE_AUTO, ZPIPE_READS_PRIVATE);
    uint8_t out[4096], *in;
    Req *w = req_new(out, sizeof(out)), *r;
    Pair p;

    pair_open(&p, &tx, &rx);
    in = zpipe_buffer_new(p.rx, sizeof(out));
    r = req_new(in, sizeof(out));
    submit_read(p.rx, r);
    pair_settle(&p);
    pat_fill(out, sizeof(out), 1, 0);
    submit_write(p.tx, w);
    reap_all(p.tx);
    /* not there before this side has run */
    g_assert_cmpint(pat_find(in, sizeof(out), 1, 0), ==, 0);
    pair_wait(&p, w);
    pat_check(in, sizeof(out), 1, 0);
    g_assert_cmpint(stats_of(p.tx).tx[ZPIPE_DIRECT].bytes, ==, 0);
    req_free(w);
    req_free(r);
    pair_close(&p);
}

/* Read first, buffer in reach: there before the reader has run at all. */
static void test_pushed(void)
{
    uint8_t out[8192], *in;
    struct zpipe_config tx = config_of(ZPIPE_DIRECT, 0);
    Req *w = req_new(out, sizeof(out)), *r;
    Pair p;

    pair_open(&p, &tx, NULL);
    in = zpipe_buffer_new(p.rx, sizeof(out));
    r = req_new(in, sizeof(out));
    submit_read(p.rx, r);
    pair_settle(&p);
    pat_fill(out, sizeof(out), 1, 0);
    submit_write(p.tx, w);
    reap_all(p.tx);
    pat_check(in, sizeof(out), 1, 0);
    g_assert_false(w->done);            /* the reader has not taken it */
    pair_wait(&p, r);
    g_assert_cmpint(r->r.mechanism, ==, ZPIPE_DIRECT);
    pair_wait(&p, w);
    req_free(w);
    req_free(r);
    pair_close(&p);
}

/* A view is of the writer's own pages: what it changes shows. */
static void test_view_is_no_copy(void)
{
    struct zpipe_config tx = config_of(ZPIPE_MAP, 0);
    Req *w, *v = req_new_view();
    uint8_t *out;
    Pair p;

    pair_open(&p, &tx, NULL);
    out = zpipe_buffer_new(p.tx, 4096);
    pair_settle(&p);
    w = req_new(out, 4096);
    memset(out, 1, 4096);
    submit_write(p.tx, w);
    submit_view(p.rx, v);
    pair_wait(&p, v);
    g_assert_cmpint(v->r.result, ==, 4096);
    g_assert_cmpint(v->r.mechanism, ==, ZPIPE_MAP);
    memset(out, 2, 4096);
    g_assert_cmpint(((const uint8_t *)v->r.view)[4095], ==, 2);
    pair_settle(&p);
    g_assert_false(w->done);            /* not before it is given back */
    zpipe_view_done(p.rx, &v->r);
    pair_wait(&p, w);
    g_assert_cmpint(w->r.result, ==, 4096);
    req_free(w);
    req_free(v);
    pair_close(&p);
}

int main(int argc, char **argv)
{
    static const enum zpipe_mechanism mechanisms[] = {
        ZPIPE_AUTO, ZPIPE_INLINE, ZPIPE_COPY, ZPIPE_DIRECT, ZPIPE_MAP,
    };

    g_test_init(&argc, &argv, NULL);
    for (size_t i = 0; i < G_N_ELEMENTS(mechanisms); i++) {
        for (int source = 0; source < SOURCES; source++) {
            for (int sink = 0; sink < SINKS; sink++) {
                add_cases(mechanisms[i], source, sink);
            }
        }
    }
    g_test_add_func("/transfer/pushed", test_pushed);
    g_test_add_func("/transfer/view-is-no-copy", test_view_is_no_copy);
    g_test_add_func("/transfer/reads-private", test_reads_private);
    g_test_add_func("/transfer/reason/size", test_reason_size);
    g_test_add_func("/transfer/reason/no-region", test_reason_no_region);
    g_test_add_func("/transfer/reason/no-view", test_reason_no_view);
    g_test_add_func("/transfer/reason/refused", test_reason_refused);
    return g_test_run();
}

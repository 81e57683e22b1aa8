/*
 * zpipe bench: round trips of small messages
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>
#include "zpipe-cmd-bench.h"

enum { WARM_UP_MS = 20, BATCH = 8, BATCHES_MAX = 1 << 16 };

/* One round trip, or its second half. */
typedef bool round_fn(struct bench_side *s, void *state);

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

static void count_calls(struct bench_side *s, struct zpipe_stats *stats)
{
    if (s->zp) {
        zpipe_get_stats(s->zp, stats);
    }
}

/*
 * The median of many small batches: a process that polls and is preempted for
 * a time slice would spoil an average.
 */
static void ping(struct bench_side *s, round_fn *once, void *state)
{
    const struct bench_case *what = s->what;
    struct bench_result *res = &s->shared->res;
    uint64_t *took = calloc(BATCHES_MAX, sizeof(*took));
    uint64_t start = bench_now_ns(), last = start, cpu = bench_cpu_ns(), now;
    struct zpipe_stats at_start = { .kicks = 0 }, at_end = { .kicks = 0 };
    unsigned n = 0;
    bool warm = what->rounds, more = true;

    while (more) {
        for (int i = 0; i < BATCH; i++) {
            if (!once(s, state)) {
                bench_die("round trip", EPIPE);
            }
        }
        now = bench_now_ns();
        if (!warm && now - start > WARM_UP_MS * 1000000ull) {
            warm = true;
            start = now;
            cpu = bench_cpu_ns();
            count_calls(s, &at_start);
        } else if (warm) {
            took[n++] = now - last;
            more = n < BATCHES_MAX &&
                   (what->rounds ? n * BATCH < what->rounds :
                    now - start < what->ms * 1000000ull);
        }
        last = now;
    }
    count_calls(s, &at_end);
    qsort(took, n, sizeof(*took), by_value);
    res->count = (double)n * BATCH;
    res->seconds = took[n / 2] / 1e9 * n;
    res->cpu_ns = (bench_cpu_ns() - cpu) / res->count;
    res->kicks = at_end.kicks - at_start.kicks;
    res->wakeups = at_end.wakeups - at_start.wakeups;
    free(took);
}

static void pong(struct bench_side *s, round_fn *once, void *state)
{
    while (once(s, state)) {
        /* until the other side leaves */
    }
}

static bool fd_send(struct bench_side *s, char *buf)
{
    return write(s->fds[1], buf, s->what->size) == (ssize_t)s->what->size;
}

static bool fd_receive(struct bench_side *s, char *buf)
{
    size_t done = 0;

    while (done < s->what->size) {
        ssize_t got = read(s->fds[0], buf + done, s->what->size - done);

        if (got <= 0) {
            return false;
        }
        done += got;
    }
    return true;
}

static bool fd_ping(struct bench_side *s, void *buf)
{
    return fd_send(s, buf) && fd_receive(s, buf);
}

static bool fd_pong(struct bench_side *s, void *buf)
{
    return fd_receive(s, buf) && fd_send(s, buf);
}

struct zp_round {
    struct zpipe_req in, out;
    struct iovec in_iov, out_iov;
    char in_buf[4096], out_buf[4096];
};

static bool zp_round_post(struct bench_side *s, struct zp_round *r)
{
    r->in_iov = (struct iovec){ r->in_buf, s->what->size };
    r->in = (struct zpipe_req){
        .iov = &r->in_iov, .iovcnt = 1, .min = s->what->size,
    };
    return zpipe_read(s->zp, &r->in) == 0;
}

static bool zp_round_send(struct bench_side *s, struct zp_round *r)
{
    r->out_iov = (struct iovec){ r->out_buf, s->what->size };
    r->out = (struct zpipe_req){ .iov = &r->out_iov, .iovcnt = 1 };
    return zpipe_write(s->zp, &r->out) == 0;
}

/* The answer says that the question was taken: both complete together. */
static bool zp_round_wait(struct bench_side *s, struct zp_round *r, bool both)
{
    bool in = false, out = !both;
    struct zpipe_req *req;

    while (!in || !out) {
        while ((!in || !out) && (req = zpipe_reap(s->zp))) {
            if (req->result != (ssize_t)s->what->size) {
                return false;
            }
            in |= req == &r->in;
            out |= req == &r->out;
        }
        if (!in || !out) {
            bench_zp_wait(s);
        }
    }
    return true;
}

static bool zp_ping(struct bench_side *s, void *state)
{
    struct zp_round *r = state;

    return zp_round_post(s, r) && zp_round_send(s, r) &&
           zp_round_wait(s, r, true);
}

static bool zp_pong(struct bench_side *s, void *state)
{
    struct zp_round *r = state;

    /* the read of the next round is posted before the answer goes out */
    return zp_round_wait(s, r, r->out.iov != NULL) && zp_round_post(s, r) &&
           zp_round_send(s, r);
}

static void pingpong_side(struct bench_side *s, bool first)
{
    struct zp_round *r = calloc(1, sizeof(*r));

    if (s->what->way->kind != BENCH_ZPIPE) {
        if (first) {
            ping(s, fd_ping, r->in_buf);
        } else {
            pong(s, fd_pong, r->in_buf);
        }
        return;
    }
    bench_zp_open(s);
    bench_zp_meet(s, !first);
    if (first) {
        ping(s, zp_ping, r);
    } else if (zp_round_post(s, r)) {
        pong(s, zp_pong, r);
    }
}

static void ping_main(struct bench_side *s)
{
    pingpong_side(s, true);
}

static void pong_main(struct bench_side *s)
{
    pingpong_side(s, false);
}

bool bench_pingpong(const struct bench_case *what, struct bench_result *res)
{
    return bench_pair(what, res, ping_main, pong_main);
}

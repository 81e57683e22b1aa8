/*
 * zpipe bench: throughput
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The reader measures, after a warm-up in which pages are faulted in, and says
 * stop.
 */

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>
#include <string.h>
#include "zpipe-cmd-bench.h"

enum {
    FLIGHT_BYTES = 1 << 20,     /* on the way at a time, about: the ring */
    HOT_BYTES = 128 << 10,      /* a writer's buffers that stay in a cache */
    DEPTH_MAX = 256,
    CHUNK_MIN = 64 << 10,       /* a sensible reader's buffer */
    WARM_UP_MS = 20, WARM_UP_MAX_MS = 150,
};

struct meter {
    struct bench_side *side;
    uint64_t begin, start, bytes, start_bytes, start_cpu;
    unsigned calls, mask;
};

/* Use a value, so that what made it is not optimised away. */
static void keep(uint64_t value)
{
    __asm__ volatile("" : : "r"(value));
}

/* Count what came; false when that is enough. */
static bool meter_add(struct meter *m, size_t bytes)
{
    const struct bench_case *what = m->side->what;
    struct bench_result *res = &m->side->shared->res;
    uint64_t now;

    m->bytes += bytes;
    if (++m->calls & m->mask) {
        return true;
    }
    now = bench_now_ns();
    if (!m->start) {
        uint64_t ms = (now - m->begin) / 1000000;

        if (ms >= WARM_UP_MAX_MS ||
            (ms >= WARM_UP_MS && m->bytes >= what->set)) {
            m->start = now;
            m->start_bytes = m->bytes;
            m->start_cpu = bench_cpu_ns();
        }
        return true;
    }
    if (now - m->start < what->ms * 1000000ull) {
        return true;
    }
    res->seconds = (now - m->start) / 1e9;
    res->count = m->bytes - m->start_bytes;
    res->cpu_ns = (bench_cpu_ns() - m->start_cpu) / res->count;
    atomic_store(&m->side->shared->stop, 1);
    return false;
}

static void meter_begin(struct meter *m, struct bench_side *s)
{
    *m = (struct meter){
        .side = s, .begin = bench_now_ns(),
        .mask = s->what->size < 4096 ? 63 : 0,
    };
}

/* --------------------------------------------------- descriptors and memcpy */

static size_t round_set(const struct bench_case *what, size_t least)
{
    size_t set = what->set > least ? what->set : least;

    return set / what->size * what->size;
}

static void fd_writer(struct bench_side *s)
{
    size_t size = s->what->size, set = round_set(s->what, HOT_BYTES);
    char *buf;
    uint64_t sent = 0, cpu = bench_cpu_ns();

    set = set ?: size;
    buf = bench_memory(s, set, false);
    for (size_t at = 0; !atomic_load_explicit(&s->shared->stop,
                                              memory_order_relaxed);
         at = (at + size) % set) {
        for (size_t done = 0; done < size;) {
            ssize_t ret = write(s->fds[1], buf + at + done, size - done);

            if (ret < 0) {
                goto out;       /* the reader has enough */
            }
            done += ret;
            sent += ret;
        }
    }
out:
    s->shared->writer_cpu_ns = (double)(bench_cpu_ns() - cpu) / sent;
}

static void fd_reader(struct bench_side *s)
{
    size_t chunk = s->what->size < CHUNK_MIN ? CHUNK_MIN : s->what->size;
    size_t set = s->what->set > chunk ? s->what->set / chunk * chunk : chunk;
    char *buf = bench_memory(s, set, false);
    struct meter m;
    size_t at = 0;
    ssize_t got;

    meter_begin(&m, s);
    do {
        got = read(s->fds[0], buf + at, chunk);
        if (got <= 0) {
            bench_die("read", got ? errno : EPIPE);
        }
        if (s->what->way->touch) {
            keep(bench_touch(buf + at, got));
        }
        at = (at + chunk) % set;
    } while (meter_add(&m, got));
}

static void memcpy_loop(struct bench_side *s)
{
    size_t size = s->what->size, set = round_set(s->what, size);
    char *from = bench_memory(s, set, false), *to = bench_memory(s, set, false);
    struct meter m;
    size_t at = 0;

    meter_begin(&m, s);
    do {
        memcpy(to + at, from + at, size);
        __asm__ volatile("" : : : "memory");
        at = (at + size) % set;
    } while (meter_add(&m, size));
}

/* -------------------------------------------------------------------- zpipe */

static unsigned depth_of(size_t each)
{
    size_t depth = FLIGHT_BYTES / each;

    return depth < 2 ? 2 : depth > DEPTH_MAX ? DEPTH_MAX : depth;
}

static void zp_writer(struct bench_side *s)
{
    size_t size = s->what->size, set = round_set(s->what, HOT_BYTES);
    unsigned depth = depth_of(size), flying = 0, next = 0;
    struct zpipe_req *reqs = calloc(depth, sizeof(*reqs)), *req;
    struct iovec *iov = calloc(depth, sizeof(*iov));
    struct zpipe_stats stats;
    uint64_t sent = 0, cpu;
    size_t at = 0;
    char *buf;

    set = set ?: size;
    bench_zp_open(s);
    buf = bench_memory(s, set, s->what->way->region);
    bench_zp_meet(s, false);
    cpu = bench_cpu_ns();
    while (!atomic_load_explicit(&s->shared->stop, memory_order_relaxed)) {
        for (; flying < depth; flying++, next = (next + 1) % depth) {
            iov[next] = (struct iovec){ buf + at, size };
            reqs[next] = (struct zpipe_req){ .iov = &iov[next], .iovcnt = 1 };
            if (zpipe_write(s->zp, &reqs[next])) {
                goto out;
            }
            at = (at + size) % set;
        }
        while ((req = zpipe_reap(s->zp))) {
            flying--;
            sent += req->result > 0 ? req->result : 0;
        }
        if (zpipe_state(s->zp) != ZPIPE_CONNECTED) {
            break;
        }
        if (flying == depth) {
            bench_zp_wait(s);
        }
    }
out:
    s->shared->writer_cpu_ns = (double)(bench_cpu_ns() - cpu) / (sent ?: 1);
    zpipe_get_stats(s->zp, &stats);
    s->shared->writer_kicks = stats.kicks;
    s->shared->writer_wakeups = stats.wakeups;
}

struct reading {
    struct zpipe_req *reqs;
    struct iovec *iov;
    char *buf;
    size_t chunk, set, at;
    unsigned depth;
};

static void reading_begin(struct bench_side *s, struct reading *r)
{
    const struct bench_case *what = s->what;

    /*
     * A posted read that is to be filled by the writer is of the message's
     * size; else a reader has a large buffer.
     */
    r->chunk = what->way->read_first || what->size > CHUNK_MIN ? what->size :
               CHUNK_MIN;
    r->depth = depth_of(what->way->view ? what->size : r->chunk);
    r->set = what->set > r->depth * r->chunk ? what->set :
             r->depth * r->chunk;
    r->set = r->set / r->chunk * r->chunk;
    r->at = 0;
    r->reqs = calloc(r->depth, sizeof(*r->reqs));
    r->iov = calloc(r->depth, sizeof(*r->iov));
    r->buf = what->way->view ? NULL :
             bench_memory(s, r->set, what->way->read_first &&
                    !(what->way->flags & ZPIPE_CMA));
}

static int reading_post(struct bench_side *s, struct reading *r, unsigned i)
{
    r->reqs[i] = (struct zpipe_req){ .iovcnt = 0 };
    if (s->what->way->view) {
        return zpipe_read_view(s->zp, &r->reqs[i]);
    }
    r->iov[i] = (struct iovec){ r->buf + r->at, r->chunk };
    r->reqs[i].iov = &r->iov[i];
    r->reqs[i].iovcnt = 1;
    r->at = (r->at + r->chunk) % r->set;
    return zpipe_read(s->zp, &r->reqs[i]);
}

static void zp_reader(struct bench_side *s)
{
    struct zpipe_stats stats;
    struct zpipe_req *req;
    struct reading r;
    struct meter m;
    bool more = true;

    bench_zp_open(s);
    reading_begin(s, &r);
    bench_zp_meet(s, true);
    for (unsigned i = 0; i < r.depth; i++) {
        if (reading_post(s, &r, i)) {
            bench_die("read", EIO);
        }
    }
    meter_begin(&m, s);
    while (more) {
        while (more && (req = zpipe_reap(s->zp))) {
            ssize_t got = req->result;

            if (got <= 0) {
                bench_die("read", got ? -got : EPIPE);
            }
            if (s->what->way->touch) {
                keep(bench_touch(req->view ?: req->iov->iov_base, got));
            }
            if (req->view) {
                zpipe_view_done(s->zp, req);
            }
            more = meter_add(&m, got) &&
                   reading_post(s, &r, req - r.reqs) == 0;
        }
        if (more) {
            bench_zp_wait(s);
        }
    }
    zpipe_get_stats(s->zp, &stats);
    s->shared->res.kicks = stats.kicks;
    s->shared->res.wakeups = stats.wakeups;
    for (int i = 0; i < ZPIPE_MECHANISMS; i++) {
        s->shared->res.mechanism_bytes[i] = stats.rx[i].bytes;
    }
}

static void writer_main(struct bench_side *s)
{
    (s->what->way->kind == BENCH_ZPIPE ? zp_writer : fd_writer)(s);
}

static void reader_main(struct bench_side *s)
{
    switch (s->what->way->kind) {
    case BENCH_MEMCPY:
        memcpy_loop(s);
        break;
    case BENCH_ZPIPE:
        zp_reader(s);
        break;
    default:
        fd_reader(s);
    }
}

bool bench_throughput(const struct bench_case *what, struct bench_result *res)
{
    bool alone = what->way->kind == BENCH_MEMCPY;

    return bench_pair(what, res, alone ? NULL : writer_main, reader_main);
}

/*
 * zpipe bench: its parts
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */

#ifndef ZPIPE_CMD_BENCH_H
#define ZPIPE_CMD_BENCH_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <zpipe.h>

enum bench_kind { BENCH_MEMCPY, BENCH_SOCKET, BENCH_PIPE, BENCH_ZPIPE };

/**
 * struct bench_way: one way to hand data over
 * @read_first: the reads are posted into memory that the writer can reach
 * @region: the writer's buffers are where the reader can reach them
 * @view: the reader looks, it does not copy
 * @touch: and reads every byte
 * @spin_ns, @no_spin: for the handle
 * @poll: never sleep (ping-pong)
 * @apart: each side on a processor of its own
 */
struct bench_way {
    const char *name;
    enum bench_kind kind;
    enum zpipe_mechanism mechanism;
    uint32_t flags;
    bool read_first, region, view, touch;
    bool poll, no_spin, apart;
    uint64_t spin_ns;
};

/**
 * struct bench_case: what to measure
 * @size: of a message, in bytes
 * @set: bytes through which the buffers of each side go round; 0: as few as
 *      the way needs
 * @ms: how long, after the warm-up
 * @rounds: ping-pong: so many instead, 0: for @ms
 */
struct bench_case {
    const struct bench_way *way;
    uint64_t size, set;
    unsigned ms;
    uint64_t rounds;
};

/**
 * struct bench_result: one sample
 * @seconds, @count: time, and bytes or round trips in it (of round trips the
 *      median, times their number)
 * @cpu_ns: processor time of both sides for each of @count
 * @kicks, @wakeups: of a zpipe: of both sides in all, warm-up included; of
 *      round trips, of the side that asks, in @count
 * @mechanism_bytes: by what the reader got the data
 */
struct bench_result {
    double seconds, count, cpu_ns;
    uint64_t kicks, wakeups;
    uint64_t mechanism_bytes[ZPIPE_MECHANISMS];
};

/** Both in processes of their own; false after saying what went wrong. */
bool bench_throughput(const struct bench_case *what, struct bench_result *res);
bool bench_pingpong(const struct bench_case *what, struct bench_result *res);

/** Read a number from 1 to @most ("64K", too); false after saying so. */
bool bench_parse_count(const char *name, const char *text, uint64_t most,
                       uint64_t *value);

/** zpipe bench sink|source WAY PATH EVERY COUNT: a peer for a program. */
int bench_peer(int argc, char **argv);

uint64_t bench_now_ns(void);
uint64_t bench_cpu_ns(void);

/** Read every byte; returns something that depends on all of them. */
uint64_t bench_touch(const void *data, size_t size);

/* ------------------------------------------------- inside of one sample */

/* Shared by the processes of a sample. */
struct bench_shared {
    atomic_int listening, stop;
    struct bench_result res;
    double writer_cpu_ns;       /* for each byte */
    uint64_t writer_kicks, writer_wakeups;
};

/* One process. */
struct bench_side {
    const struct bench_case *what;
    struct bench_shared *shared;
    char path[64];
    int fds[2];                 /* to read from, to write to */
    struct zpipe *zp;
};

typedef void bench_main(struct bench_side *side);

/**
 * bench_pair: run two processes (or one, if @first is NULL)
 *
 * They end by returning, or by bench_die().
 */
bool bench_pair(const struct bench_case *what, struct bench_result *res,
                bench_main *first, bench_main *second);

void bench_die(const char *what, int error) __attribute__((noreturn));

/** Memory of a side, touched; with @reachable the peer can reach it. */
void *bench_memory(struct bench_side *side, size_t size, bool reachable);

/** Make the handle; meet the other side; wait as the way says. */
void bench_zp_open(struct bench_side *side);
void bench_zp_meet(struct bench_side *side, bool server);
void bench_zp_wait(struct bench_side *side);

#endif

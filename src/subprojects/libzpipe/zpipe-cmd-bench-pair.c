/*
 * zpipe bench: the two processes of a sample
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Writer and reader are forked for each sample, so that none sees memory that
 * an earlier one left in a cache.
 */

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "zpipe-cmd.h"
#include "zpipe-cmd-bench.h"

enum { SAMPLE_LIMIT_S = 30 };

uint64_t bench_now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1000000000ull + ts.tv_nsec;
}

uint64_t bench_cpu_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
    return ts.tv_sec * 1000000000ull + ts.tv_nsec;
}

uint64_t bench_touch(const void *data, size_t size)
{
    const uint64_t *words = data;
    const uint8_t *bytes = data;
    uint64_t sum = 0;

    for (size_t i = 0; i < size / 8; i++) {
        sum += words[i];
    }
    for (size_t i = size & ~7ul; i < size; i++) {
        sum += bytes[i];
    }
    return sum;
}

void bench_die(const char *what, int error)
{
    cmd_say("bench: %s: %s", what, strerror(error));
    _exit(CMD_FAILED);
}

void *bench_memory(struct bench_side *s, size_t size, bool reachable)
{
    void *p = reachable ? zpipe_buffer_new(s->zp, size) :
              mmap(NULL, size, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (!p || p == MAP_FAILED) {
        bench_die("memory", errno);
    }
    memset(p, 0x5a, size);
    return p;
}

void bench_zp_open(struct bench_side *s)
{
    const struct bench_way *way = s->what->way;
    struct zpipe_config config = {
        .size = sizeof(config),
        .flags = way->flags,
        .mechanism = way->mechanism,
        .spin_ns = way->spin_ns,
        .no_spin = way->no_spin,
    };

    s->zp = zpipe_new(&config);
    if (!s->zp) {
        bench_die("zpipe_new", errno);
    }
}

/*
 * The one who listens must be the reader itself, and not the parent: the
 * kernel tells the other side its process, for cross-memory access.
 */
void bench_zp_meet(struct bench_side *s, bool server)
{
    int ret;

    if (server) {
        struct pollfd pfd = { .fd = zpipe_listen(s->path), .events = POLLIN };

        if (pfd.fd < 0) {
            bench_die("listen", -pfd.fd);
        }
        atomic_store(&s->shared->listening, 1);
        poll(&pfd, 1, SAMPLE_LIMIT_S * 1000);
        ret = zpipe_attach(s->zp, zpipe_accept(pfd.fd), true);
        close(pfd.fd);
        unlink(s->path);
    } else {
        while (!atomic_load(&s->shared->listening)) {
            usleep(100);
        }
        ret = zpipe_connect(s->zp, s->path);
    }
    ret = ret ?: zpipe_wait_connected(s->zp, SAMPLE_LIMIT_S * 1000);
    if (ret) {
        bench_die("connect", -ret);
    }
}

void bench_zp_wait(struct bench_side *s)
{
    if (!s->what->way->poll) {
        zpipe_wait(s->zp, 1000);
    }
}

/* Two pairs of descriptors: of the first process, of the second. */
static bool open_ends(enum bench_kind kind, int ends[2][2])
{
    int there[2], back[2];

    if (kind == BENCH_SOCKET) {
        if (socketpair(AF_UNIX, SOCK_STREAM, 0, there)) {
            return false;
        }
        ends[0][0] = ends[0][1] = there[0];
        ends[1][0] = ends[1][1] = there[1];
        return true;
    }
    if (pipe(there) || pipe(back)) {
        return false;
    }
    ends[0][0] = back[0];
    ends[0][1] = there[1];
    ends[1][0] = there[0];
    ends[1][1] = back[1];
    return true;
}

static void close_end(const int end[2])
{
    close(end[0]);
    if (end[1] != end[0]) {
        close(end[1]);
    }
}

/* Stay on the @n-th of the processors that we may use. */
static void pin(int n)
{
    cpu_set_t all, one;

    CPU_ZERO(&one);
    if (sched_getaffinity(0, sizeof(all), &all) || CPU_COUNT(&all) < 2) {
        return;
    }
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (CPU_ISSET(cpu, &all) && n-- == 0) {
            CPU_SET(cpu, &one);
        }
    }
    sched_setaffinity(0, sizeof(one), &one);
}

static void start(struct bench_side *side, bench_main *run, const int *other,
                  int n)
{
    pid_t pid = fork();

    if (pid < 0) {
        bench_die("fork", errno);
    }
    if (pid == 0) {
        alarm(SAMPLE_LIMIT_S);
        if (other) {
            close_end(other);   /* or there is no end when the other leaves */
        }
        if (side->what->way->apart) {
            pin(n);
        }
        run(side);
        _exit(CMD_OK);
    }
}

static void run_processes(const struct bench_case *what,
                          struct bench_shared *shared, const char *folder,
                          bench_main *const run[2])
{
    enum bench_kind kind = what->way->kind;
    bool fds = kind == BENCH_SOCKET || kind == BENCH_PIPE;
    int ends[2][2], count = 0, status;

    if (fds && !open_ends(kind, ends)) {
        cmd_say("bench: %s", strerror(errno));
        return;
    }
    for (int i = 0; i < 2; i++) {
        struct bench_side side = { .what = what, .shared = shared };

        if (!run[i]) {
            continue;
        }
        snprintf(side.path, sizeof(side.path), "%s/s", folder);
        if (fds) {
            memcpy(side.fds, ends[i], sizeof(side.fds));
        }
        start(&side, run[i], fds ? ends[!i] : NULL, i);
        count++;
    }
    if (fds) {
        close_end(ends[0]);
        close_end(ends[1]);
    }
    /* each of them has something to tell */
    while (count-- && wait(&status) > 0) {
        if (status) {
            shared->res.count = 0;
        }
    }
}

bool bench_pair(const struct bench_case *what, struct bench_result *res,
                bench_main *first, bench_main *second)
{
    bench_main *const run[2] = { first, second };
    char folder[] = "/tmp/zpipe-bench-XXXXXX";
    struct bench_shared *shared;
    bool good;

    shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
                  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED || !mkdtemp(folder)) {
        cmd_say("bench: %s", strerror(errno));
        return false;
    }
    fflush(NULL);
    run_processes(what, shared, folder, run);
    rmdir(folder);
    *res = shared->res;
    res->cpu_ns += shared->writer_cpu_ns;
    res->kicks += shared->writer_kicks;
    res->wakeups += shared->writer_wakeups;
    good = res->count > 0;
    if (!good) {
        cmd_say("bench: %s, %llu bytes: no result", what->way->name,
                (unsigned long long)what->size);
    }
    munmap(shared, sizeof(*shared));
    return good;
}

/*
 * Stress of libzpipe: two processes that do anything to each other, and sleep
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Usage: stress [SECONDS [SEED]]
 *
 * In rounds of about a second, each with two new processes and new settings:
 * random sizes and mechanisms, cancel, views, connections that are lost and
 * resumed, a shutdown.  Each byte is checked against its position.  A side has
 * nothing to wake it but the other; when neither moves for a while, a wake-up
 * was lost, and the control words of both are shown.
 */

#include <sys/uio.h>

#include "common.h"
#include "zpipe-proto.h"

#define DEPTH 4
#define BUF (4 * MiB)
#define STALL_MS 15000

/* What the processes tell each other, and the parent, past the library. */
typedef struct Side {
    uint64_t written, read;
    uint64_t requests, cancels, losses, resumed, wakeups, kicks;
    uint64_t end;               /* position at which it shut down */
    int ended, seen_end, failed;
} Side;

typedef struct Board {
    Side side[2];
} Board;

typedef struct Port {
    Side *me, *other;
    GRand *rand;
    struct zpipe *zp;
    bool server;
    char *path;
    int listener;
    int64_t until;
    bool waits;                 /* sleeps in zpipe_wait(), else in poll() */
    bool lossy;
    uint8_t *wbuf[DEPTH], *rbuf[DEPTH];
    Req *w[DEPTH], *r[DEPTH];
    bool view[DEPTH];
    unsigned int w_head, w_tail, r_head, r_tail;
    uint64_t submitted;         /* position after the last write */
    uint64_t acked;             /* after the last that has completed */
} Port;

static int pick(Port *p, int n)
{
    return g_rand_int_range(p->rand, 0, n);
}

static size_t pick_size(Port *p)
{
    return 1 + (pick(p, 3) ? pick(p, 1 << pick(p, 17))
                           : pick(p, 1 << pick(p, 23)) % (int)BUF);
}

/* ------------------------------------------------------------ requests */

static void write_one(Port *p)
{
    unsigned int i = p->w_head % DEPTH;
    size_t len = pick_size(p);
    ssize_t n;

    pat_fill(p->wbuf[i], len, p->server, p->submitted);
    if (p->w_head == p->w_tail && pick(p, 4) == 0) {
        n = zpipe_try_write(p->zp, p->wbuf[i], len);
        g_assert_true(n > 0 || n == -EAGAIN || n == -ENOTCONN);
        if (n > 0) {
            p->submitted += n;
            p->acked += n;
        }
        return;
    }
    p->w[i] = req_new_sg(p->wbuf[i], len, 1 + pick(p, 4));
    submit_write(p->zp, p->w[i]);
    p->submitted += len;
    p->w_head++;
    p->me->requests++;
}

static void read_one(Port *p)
{
    unsigned int i = p->r_head % DEPTH;
    size_t len = pick_size(p);

    p->r[i] = req_new(p->rbuf[i], len);
    p->view[i] = pick(p, 4) == 0;
    if (p->view[i]) {
        submit_view(p->zp, p->r[i]);
    } else {
        p->r[i]->r.min = pick(p, 4) ? 0 : 1 + pick(p, MIN((int)len, 1000));
        submit_read(p->zp, p->r[i]);
    }
    p->r_head++;
    p->me->requests++;
}

static void collect_write(Port *p, Req *req)
{
    if (req->r.result != -ECANCELED) {
        g_assert_cmpint(req->r.result, >, 0);
        p->acked += req->r.result;
        p->me->written = p->acked;
    }
    req_free(req);
    p->w_tail++;
}

static void collect_read(Port *p, Req *req, bool view)
{
    ssize_t n = req->r.result;

    if (n == 0) {
        p->me->seen_end = 1;
    } else if (n != -ECANCELED) {
        g_assert_cmpint(n, >, 0);
        pat_check(view && req->r.view ? req->r.view : req->r.iov->iov_base, n,
                  !p->server, p->me->read);
        p->me->read += n;
        if (view) {
            zpipe_view_done(p->zp, &req->r);
        }
    }
    req_free(req);
    p->r_tail++;
}

/* Returns whether anything has completed. */
static bool collect(Port *p)
{
    unsigned int before = p->w_tail + p->r_tail;

    reap_all(p->zp);
    while (p->w_tail != p->w_head && p->w[p->w_tail % DEPTH]->done) {
        collect_write(p, p->w[p->w_tail % DEPTH]);
    }
    while (p->r_tail != p->r_head && p->r[p->r_tail % DEPTH]->done) {
        collect_read(p, p->r[p->r_tail % DEPTH], p->view[p->r_tail % DEPTH]);
    }
    return p->w_tail + p->r_tail != before;
}

static void cancel(Port *p)
{
    bool writes = pick(p, 2);

    p->me->cancels++;
    zpipe_cancel_all(p->zp, !writes, writes);
    collect(p);
    if (writes) {
        g_assert_cmpint(p->w_tail, ==, p->w_head);
        p->submitted = p->acked;        /* the stream goes on there */
    }
}

/* ---------------------------------------------------------- connections */

static void connect_again(Port *p)
{
    int sock;

    if (zpipe_state(p->zp) != ZPIPE_IDLE) {
        return;
    }
    sock = p->server ? zpipe_accept(p->listener) : zpipe_dial(p->path);
    if (sock >= 0) {
        zpipe_attach(p->zp, sock, p->server);
    } else {
        g_usleep(1000);
    }
}

static void update(Port *p)
{
    struct zpipe_stats stats = stats_of(p->zp);

    p->me->resumed = stats.resumed;
    p->me->kicks = stats.kicks;
    p->me->wakeups = stats.wakeups;
}

static void rest(Port *p)
{
    struct pollfd pfd = { .fd = zpipe_fd(p->zp), .events = POLLIN };

    update(p);
    if (zpipe_state(p->zp) == ZPIPE_IDLE) {
        connect_again(p);
    } else if (p->waits) {
        zpipe_wait(p->zp, -1);
    } else {
        poll(&pfd, 1, -1);
    }
}

static void act(Port *p)
{
    if (p->r_head - p->r_tail < DEPTH) {
        read_one(p);
    }
    if (p->w_head - p->w_tail < DEPTH) {
        write_one(p);
    }
    if (pick(p, 50) == 0) {
        cancel(p);
    }
    if (p->lossy && pick(p, 400) == 0) {
        p->me->losses++;
        zpipe_detach(p->zp);
    }
}

static void finish(Port *p)
{
    while (p->w_tail != p->w_head) {
        if (p->r_head - p->r_tail < DEPTH && !p->me->seen_end) {
            read_one(p);
        }
        if (!collect(p)) {
            rest(p);
        }
    }
    p->me->end = p->submitted;
    __atomic_store_n(&p->me->ended, 1, __ATOMIC_RELEASE);
    zpipe_shutdown(p->zp);
    while (!p->me->seen_end) {
        if (p->r_head - p->r_tail < DEPTH) {
            read_one(p);
        }
        if (!collect(p)) {
            rest(p);
        }
    }
    g_assert_true(p->other->ended);
    g_assert_cmpint(p->me->read, ==, p->other->end);
    /* the other may want to hear of it, or to connect once more */
    while (!__atomic_load_n(&p->other->seen_end, __ATOMIC_ACQUIRE)) {
        collect(p);
        zpipe_wait(p->zp, 5);
        connect_again(p);
    }
    collect(p);
}

static void run(Port *p)
{
    while (now_ms() < p->until) {
        act(p);
        while (!collect(p) && p->w_head - p->w_tail == DEPTH &&
               p->r_head - p->r_tail == DEPTH && now_ms() < p->until) {
            rest(p);
        }
        connect_again(p);
    }
    finish(p);
    update(p);
}

static void port_main(Board *board, bool server, char *path, uint32_t seed,
                      int listener)
{
    Port p = {
        .me = &board->side[server], .other = &board->side[!server],
        .rand = g_rand_new_with_seed(seed + server), .server = server,
        .path = path, .listener = listener, .until = now_ms() + 1000,
        .lossy = seed & 1,
    };
    static const uint32_t cma[] = { 0, ZPIPE_CMA, ZPIPE_CMA_USE };
    struct zpipe_config config =
        config_of(pick(&p, ZPIPE_DMA), ZPIPE_PERSISTENT | cma[pick(&p, 3)]);

    config.ring_bytes <<= pick(&p, 5);
    config.no_spin = true;
    p.waits = pick(&p, 2);
    p.zp = zpipe_new(&config);
    for (int i = 0; i < DEPTH; i++) {
        p.wbuf[i] = i & 1 ? zpipe_buffer_new(p.zp, BUF) : g_malloc(BUF);
        p.rbuf[i] = i & 1 ? zpipe_buffer_new(p.zp, BUF) : g_malloc(BUF);
    }
    run(&p);
    zpipe_free(p.zp);
}

/* ------------------------------------------------------------ the parent */

static void dump_arena(pid_t pid, unsigned long addr)
{
    struct zp_ctl c;
    struct iovec here = { &c, sizeof(c) }, there = { (void *)addr, sizeof(c) };

    if (process_vm_readv(pid, &here, 1, &there, 1, 0) == sizeof(c)) {
        printf("  %lx: w_prod %" PRIu64 " taken %" PRIu64 " cur %" PRIu64
               " rel %" PRIu64 " r_prod %" PRIu64 " r_done %" PRIu64
               " r_filled %" PRIu64 " busy %" PRIu64 " sleep %" PRIx64 "\n",
               addr, c.w_prod, c.taken, c.cur, c.rel, c.r_prod, c.r_done,
               c.r_filled, c.busy, c.sleep);
    }
}

/* The arenas that a process has mapped: the writable one is its own. */
static void dump_process(pid_t pid)
{
    g_autofree char *name = g_strdup_printf("/proc/%d/maps", pid);
    FILE *file = fopen(name, "r");
    char line[512];

    printf("process %d\n", pid);
    while (file && fgets(line, sizeof(line), file)) {
        if (strstr(line, "memfd:zpipe-arena")) {
            printf("%s", line);
            dump_arena(pid, strtoul(line, NULL, 16));
        }
    }
    if (file) {
        fclose(file);
    }
}

static void dump_side(const char *name, const Side *s)
{
    printf("%s: written %" PRIu64 " read %" PRIu64 " requests %" PRIu64
           " cancels %" PRIu64 " losses %" PRIu64 " resumed %" PRIu64
           " kicks %" PRIu64 " wakeups %" PRIu64 "\n", name, s->written,
           s->read, s->requests, s->cancels, s->losses, s->resumed, s->kicks,
           s->wakeups);
}

static uint64_t progress(const Board *b)
{
    uint64_t n = 0;

    for (int i = 0; i < 2; i++) {
        n += b->side[i].written + b->side[i].read + b->side[i].requests +
             b->side[i].ended + b->side[i].seen_end;
    }
    return n;
}

/* Until both have ended; false: they stand still, or one has failed. */
static bool watch(Board *board, const pid_t *pid)
{
    uint64_t last = 0;
    int64_t moved = now_ms();
    int left = 2;

    while (left > 0) {
        int status;

        while (left > 0 && waitpid(-1, &status, WNOHANG) > 0) {
            left--;
            if (status) {
                printf("a process failed with status 0x%x\n", status);
                return false;
            }
        }
        if (progress(board) != last) {
            last = progress(board);
            moved = now_ms();
        } else if (now_ms() - moved > STALL_MS) {
            printf("nothing moves\n");
            dump_process(pid[0]);
            dump_process(pid[1]);
            return false;
        }
        g_usleep(2000);
    }
    return true;
}

static bool round_of(Board *board, uint32_t seed, Side *sum)
{
    char *path = path_new();
    int listener = zpipe_listen(path);
    pid_t pid[2];
    bool good;

    memset(board, 0, sizeof(*board));
    fflush(stdout);
    for (int i = 0; i < 2; i++) {
        pid[i] = fork();
        if (pid[i] == 0) {
            port_main(board, i, path, seed, listener);
            _exit(0);
        }
    }
    good = watch(board, pid);
    if (!good) {
        dump_side("client", &board->side[0]);
        dump_side("server", &board->side[1]);
        kill(pid[0], SIGKILL);
        kill(pid[1], SIGKILL);
    }
    close(listener);
    path_free(path);
    for (int i = 0; i < 2; i++) {
        sum->written += board->side[i].written;
        sum->read += board->side[i].read;
        sum->requests += board->side[i].requests;
        sum->cancels += board->side[i].cancels;
        sum->losses += board->side[i].losses;
        sum->resumed += board->side[i].resumed;
        sum->kicks += board->side[i].kicks;
        sum->wakeups += board->side[i].wakeups;
    }
    return good;
}

int main(int argc, char **argv)
{
    int seconds = argc > 1 ? atoi(argv[1]) : 5;
    uint32_t seed = argc > 2 ? strtoul(argv[2], NULL, 0) : g_random_int();
    int64_t until = now_ms() + seconds * 1000;
    Board *board = mmap(NULL, sizeof(*board), PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    Side sum = { 0 };

    g_assert_true(board != MAP_FAILED);
    do {
        printf("seed %u\n", seed);
        if (!round_of(board, seed, &sum)) {
            return 1;
        }
        seed++;
    } while (now_ms() < until);
    dump_side("sum", &sum);
    g_assert_cmpint(sum.read, >, 0);
    return 0;
}

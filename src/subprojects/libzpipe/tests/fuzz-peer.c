/*
 * Fuzzer of libzpipe: a peer that says anything, while a second thread changes
 * the shared memory under the library
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Usage: fuzz-peer [SECONDS [SEED]]
 *
 * Nothing that the peer does may crash the library, keep it, or make it touch
 * memory that it was not given.  Run it under ASan and UBSan.
 */

#include "rawpeer.h"

#define BUF (64 * KiB)
#define REQS 12

typedef struct Fuzz {
    GRand *rand;
    struct zpipe *zp;
    RawPeer *raw;
    uint8_t *shared, *out, *in;     /* of the handle; private */
    Req *req[REQS];
    bool view[REQS];
    int region_fd;
    uint8_t *region;
    int stop;                       /* atomic: ends the racing thread */
    uint32_t race_seed;
    uint64_t connections, steps, completions, failures, changes;
} Fuzz;

static int pick(Fuzz *f, int n)
{
    return g_rand_int_range(f->rand, 0, n);
}

/* ------------------------------------------------------------- the peer */

/* A number that is often nearly right. */
static uint64_t number(GRand *rand, uint64_t near)
{
    static const uint64_t odd[] = {
        0, 1, 32, 33, 112, 113, 4096, 64 * KiB, 64 * KiB + 1, 1 * MiB,
        1ull << 31, UINT32_MAX, 1ull << 32, 1ull << 63, UINT64_MAX,
    };

    switch (g_rand_int_range(rand, 0, 4)) {
    case 0:
        return odd[g_rand_int_range(rand, 0, G_N_ELEMENTS(odd))];
    case 1:
        return (uint64_t)g_rand_int(rand) << 32 | g_rand_int(rand);
    default:
        return near + g_rand_int_range(rand, -2, 4);
    }
}

#define set(p, v) __atomic_store_n((p), (v), __ATOMIC_SEQ_CST)
#define get(p) __atomic_load_n((p), __ATOMIC_SEQ_CST)

static void mutate_ctl(RawPeer *raw, GRand *rand)
{
    struct zp_ctl *own = raw->own.ctl, *peer = raw->peer.ctl;
    uint64_t *word[] = {
        &own->w_prod, &own->taken, &own->cur, &own->rel, &own->r_prod,
        &own->r_done, &own->r_filled, &own->busy, &own->sleep,
    };
    uint64_t near[] = {
        get(&peer->cur), raw->pos, get(&peer->w_prod), get(&peer->w_prod),
        get(&own->r_done), get(&own->r_prod), 0, 0, get(&own->sleep),
    };
    int i = g_rand_int_range(rand, 0, G_N_ELEMENTS(word));

    /* busy for long would only slow this down */
    set(word[i], i == 7 ? g_rand_int_range(rand, 0, 50) == 0
                        : number(rand, near[i]));
}

static void mutate_write(RawPeer *raw, GRand *rand)
{
    struct zp_ctl *peer = raw->peer.ctl;
    uint64_t index = get(&peer->cur) + g_rand_int_range(rand, 0, 3);
    struct zp_write *w = &raw->own.writes[index % raw->own.entries];

    set(&w->type, (uint8_t)g_rand_int_range(rand, 0, 8));
    set(&w->pos, g_rand_int_range(rand, 0, 8) ? get(&peer->taken)
                                              : number(rand, 0));
    set(&w->len, w->type == ZP_W_END ? 0 : (uint32_t)number(rand, 100));
    if (w->type != ZP_W_INLINE) {
        set(&w->addr, w->type == ZP_W_PUSHED
                      ? number(rand, get(&peer->r_done)) : number(rand, 0));
        set(&w->region, (uint32_t)g_rand_int_range(rand, 0, 5));
    }
}

static void mutate_read(RawPeer *raw, GRand *rand)
{
    uint64_t index = get(&raw->own.ctl->r_done) + g_rand_int_range(rand, 0, 3);
    struct zp_read *r = &raw->own.reads[index % raw->own.entries];

    set(&r->reach, (uint32_t)g_rand_int_range(rand, 0, 5));
    set(&r->region, (uint32_t)g_rand_int_range(rand, 0, 5));
    set(&r->addr, number(rand, 0));
    set(&r->len, number(rand, 4096));
    set(&r->min, number(rand, 1));
}

static void mutate_bytes(RawPeer *raw, GRand *rand)
{
    size_t at = g_rand_int_range(rand, 0, raw->own.size);

    raw->own.base[at] = g_rand_int(rand);
}

static void mutate(RawPeer *raw, GRand *rand)
{
    switch (g_rand_int_range(rand, 0, 8)) {
    case 0:
        mutate_bytes(raw, rand);
        break;
    case 1:
    case 2:
        mutate_write(raw, rand);
        break;
    case 3:
        mutate_read(raw, rand);
        break;
    case 4:
        /* one that makes sense, so that there is progress */
        set(&raw->own.ctl->w_prod, get(&raw->peer.ctl->cur) +
                                   g_rand_int_range(rand, 0, 4));
        break;
    case 5:
        set(&raw->own.ctl->rel, get(&raw->peer.ctl->w_prod));
        break;
    default:
        mutate_ctl(raw, rand);
    }
}

static gpointer race(gpointer opaque)
{
    Fuzz *f = opaque;
    GRand *rand = g_rand_new_with_seed(f->race_seed);

    while (!__atomic_load_n(&f->stop, __ATOMIC_ACQUIRE)) {
        mutate(f->raw, rand);
        __atomic_fetch_add(&f->changes, 1, __ATOMIC_RELAXED);
        if (g_rand_int_range(rand, 0, 4) == 0) {
            raw_kick(f->raw);
        }
        if (g_rand_int_range(rand, 0, 64) == 0) {
            g_usleep(g_rand_int_range(rand, 0, 200));
        }
    }
    g_rand_free(rand);
    return NULL;
}

static void say(Fuzz *f)
{
    struct zp_msg msg = { .type = pick(f, 40) ? 4 + pick(f, 4) : pick(f, 12) };
    int fd = f->region_fd;
    int nfds = msg.type == ZP_MSG_REGION_ADD;

    msg.region.id = pick(f, 6) ? (uint64_t)pick(f, 5) : number(f->rand, 127);
    msg.region.flags = pick(f, 4);
    msg.region.size = pick(f, 3) ? BUF : number(f->rand, BUF);
    msg.region.offset = pick(f, 3) ? 0 : number(f->rand, 0);
    msg.region.serial = pick(f, 20);
    if (pick(f, 50) == 0) {
        nfds = pick(f, 3);
    }
    raw_send(f->raw, &msg, (int[]) { fd, fd }, nfds);
}

/* ----------------------------------------------------------- the library */

static void recycle(Fuzz *f, int i)
{
    Req *req = f->req[i];

    if (req && req->done) {
        if (req->r.result > 0) {
            f->completions++;
        } else {
            f->failures++;
        }
        if (f->view[i]) {
            zpipe_view_done(f->zp, &req->r);
        }
        req_free(req);
        f->req[i] = NULL;
    }
}

static void submit(Fuzz *f, int i)
{
    size_t len = 1 + (pick(f, 2) ? pick(f, 200) : pick(f, BUF / 2));
    uint8_t *mem = pick(f, 2) ? f->shared : NULL;
    int kind = pick(f, 3), ret;
    Req *req;

    f->view[i] = kind == 2;
    if (kind == 0) {
        req = req_new_sg(mem ? mem : f->out, len, 1 + pick(f, 3));
        ret = zpipe_write(f->zp, &req->r);
    } else {
        req = req_new((mem ? mem : f->in) + pick(f, BUF / 2), len);
        req->r.min = pick(f, 2) ? 0 : 1 + pick(f, len);
        ret = kind == 1 ? zpipe_read(f->zp, &req->r)
                        : zpipe_read_view(f->zp, &req->r);
    }
    if (ret < 0) {
        req_free(req);
    } else {
        f->req[i] = req;
    }
}

static void step(Fuzz *f)
{
    int i = pick(f, REQS);
    uint8_t buf[200];

    switch (pick(f, 12)) {
    case 0:
        say(f);
        break;
    case 1:
        if (f->req[i]) {
            zpipe_cancel(f->zp, &f->req[i]->r);
        }
        break;
    case 2:
        if (pick(f, 20) == 0) {
            zpipe_cancel_all(f->zp, pick(f, 2), pick(f, 2));
        }
        break;
    case 3:
        zpipe_try_write(f->zp, buf, 1 + pick(f, sizeof(buf)));
        break;
    case 4:
        zpipe_try_read(f->zp, buf, 1 + pick(f, sizeof(buf)));
        break;
    case 5:
        mutate(f->raw, f->rand);
        break;
    case 6:
        raw_turn(f->raw, NULL);
        break;
    case 7:
        zpipe_wait(f->zp, 1);
        break;
    default:
        if (!f->req[i]) {
            submit(f, i);
        }
    }
    reap_all(f->zp);
    for (i = 0; i < REQS; i++) {
        recycle(f, i);
    }
    f->steps++;
}

/* ----------------------------------------------------------- a connection */

static void begin(Fuzz *f)
{
    uint32_t flags = pick(f, 2) ? ZPIPE_PERSISTENT : 0;
    struct zpipe_config config = config_of(pick(f, ZPIPE_DMA), flags);
    bool server = pick(f, 2);
    int sv[2];

    f->zp = zpipe_new(&config);
    g_assert_nonnull(f->zp);
    f->shared = zpipe_buffer_new(f->zp, 2 * BUF);
    socket_pair(sv);
    f->raw = raw_new(sv[1], server);
    g_assert_cmpint(zpipe_attach(f->zp, sv[0], !server), ==, 0);
    raw_connect(f->raw, f->zp);
    for (int i = 0; i < 3; i++) {
        raw_region(f->raw, i, f->region_fd, 0, BUF,
                   i == 1 ? ZP_REGION_WRITE : 0);
    }
    for (int i = 0; i < 4; i++) {
        reap_all(f->zp);
        raw_turn(f->raw, NULL);
    }
    f->connections++;
}

static void end(Fuzz *f)
{
    zpipe_detach(f->zp);
    zpipe_cancel_all(f->zp, true, true);
    reap_all(f->zp);
    for (int i = 0; i < REQS; i++) {
        /* all of them must be over now */
        g_assert_true(!f->req[i] || f->req[i]->done);
        recycle(f, i);
    }
    zpipe_free(f->zp);
    raw_free(f->raw);
    /* what was written was only read */
    pat_check(f->out, BUF, 9, 0);
}

static void connection(Fuzz *f)
{
    GThread *thread;
    int fds = fd_count();

    begin(f);
    f->stop = 0;
    f->race_seed = g_rand_int(f->rand);
    thread = g_thread_new("race", race, f);
    for (int i = 0; i < 300 && zpipe_state(f->zp) == ZPIPE_CONNECTED; i++) {
        step(f);
    }
    __atomic_store_n(&f->stop, 1, __ATOMIC_RELEASE);
    g_thread_join(thread);
    end(f);
    fd_check(fds);
}

int main(int argc, char **argv)
{
    int seconds = argc > 1 ? atoi(argv[1]) : 5;
    uint32_t seed = argc > 2 ? strtoul(argv[2], NULL, 0) : g_random_int();
    int64_t until = now_ms() + seconds * 1000;
    Fuzz f = { .rand = g_rand_new_with_seed(seed) };

    printf("seed %u\n", seed);
    fflush(stdout);
    f.region_fd = memfd_new(BUF, MFD_ALLOW_SEALING, F_SEAL_SHRINK);
    f.region = map_new(f.region_fd, BUF);
    f.out = g_malloc(BUF);
    f.in = g_malloc(2 * BUF);
    pat_fill(f.out, BUF, 9, 0);
    while (now_ms() < until) {
        alarm(30);                      /* a connection that hangs */
        connection(&f);
    }
    printf("connections %" PRIu64 " steps %" PRIu64 " completed %" PRIu64
           " failed %" PRIu64 " changes %" PRIu64 "\n", f.connections,
           f.steps, f.completions, f.failures, f.changes);
    g_assert_cmpint(f.completions, >, 0);
    munmap(f.region, BUF);
    close(f.region_fd);
    g_free(f.out);
    g_free(f.in);
    g_rand_free(f.rand);
    return 0;
}

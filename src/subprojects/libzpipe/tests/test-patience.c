/*
 * Tests of libzpipe: how long a peer is waited for that only says it is busy,
 * and what else takes long
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The linker puts a clock of the test's own before the library (--wrap).  It
 * stands still, but for the library's sleeps, which it adds up: so what is
 * compared is what the library means to wait, whatever the machine does.
 */

#include <pthread.h>
#include <time.h>

#include "rawpeer.h"

#define LEN (16 * KiB)
#define MS 1000000ull
#define SECOND (1000 * MS)
/* One sleep more than the limit. */
#define STEP (MS / 10)

static struct {
    uint64_t now, slept;
} fake = { .now = SECOND };

int __wrap_clock_gettime(clockid_t clock, struct timespec *ts);
int __wrap_clock_gettime(clockid_t clock, struct timespec *ts)
{
    (void)clock;
    *ts = (struct timespec) { fake.now / SECOND, fake.now % SECOND };
    return 0;
}

int __wrap_nanosleep(const struct timespec *req, struct timespec *rem);
int __wrap_nanosleep(const struct timespec *req, struct timespec *rem)
{
    (void)rem;
    fake.now += req->tv_sec * SECOND + req->tv_nsec;
    fake.slept += req->tv_sec * SECOND + req->tv_nsec;
    return 0;
}

/* Bytes that were unmapped at once, by a thread. */
static struct {
    size_t len;
    pthread_t thread;
} large;

int __real_munmap(void *addr, size_t len);
int __wrap_munmap(void *addr, size_t len);
int __wrap_munmap(void *addr, size_t len)
{
    if (len >= 64 * MiB) {
        large.thread = pthread_self();
        __atomic_store_n(&large.len, len, __ATOMIC_RELEASE);
    }
    return __real_munmap(addr, len);
}

static uint64_t slept(void)
{
    uint64_t ns = fake.slept;

    fake.slept = 0;
    return ns;
}

/* A handle with a write under way, and a peer that says that it copies. */
typedef struct Liar {
    struct zpipe *zp;
    RawPeer *raw;
    uint8_t *out;
    Req *w;
    int fds;
} Liar;

static void meet(Liar *liar, uint32_t can)
{
    int sv[2];

    socket_pair(sv);
    liar->raw = raw_new(sv[1], true);
    liar->raw->can = can;
    g_assert_cmpint(zpipe_attach(liar->zp, sv[0], false), ==, 0);
    raw_connect(liar->raw, liar->zp);
    reap_all(liar->zp);
    slept();
    __atomic_store_n(&liar->raw->own.ctl->busy, 1, __ATOMIC_SEQ_CST);
}

static void liar_new(Liar *liar)
{
    struct zpipe_config config = config_of(ZPIPE_AUTO, ZPIPE_PERSISTENT);

    *liar = (Liar) { .fds = fd_count() };
    liar->zp = zpipe_new(&config);
    liar->out = g_malloc0(LEN);
    liar->w = req_new(liar->out, LEN);
    submit_write(liar->zp, liar->w);
    fake.now += 10 * SECOND;        /* no other test's waits */
}

static void leave(Liar *liar)
{
    raw_free(liar->raw);
    liar->raw = NULL;
    g_assert_cmpint(wait_gone(liar->zp), <, 0);
}

static void liar_free(Liar *liar)
{
    if (liar->raw) {
        raw_free(liar->raw);
    }
    zpipe_free(liar->zp);
    req_free(liar->w);
    g_free(liar->out);
    fd_check(liar->fds);
}

/* It comes and goes again and again: that costs one wait a second. */
static void test_comes_again(void)
{
    struct zpipe_config config = config_of(ZPIPE_AUTO, ZPIPE_PERSISTENT);
    struct zpipe *next;
    Liar liar;

    liar_new(&liar);
    for (int second = 0; second < 3; second++) {
        for (int i = 0; i < 5; i++) {
            meet(&liar, 0);
            leave(&liar);
            g_assert_cmpuint(slept(), <=, i ? 0 : 20 * MS + STEP);
        }
        fake.now += SECOND;
        meet(&liar, 0);
        leave(&liar);
        g_assert_cmpuint(slept(), >=, 19 * MS);
        fake.now += SECOND;
    }

    /* a handle in the place of the other one knows it, too */
    meet(&liar, 0);
    leave(&liar);
    g_assert_cmpuint(slept(), >=, 19 * MS);
    zpipe_cancel(liar.zp, &liar.w->r);
    reap_all(liar.zp);
    next = zpipe_new_after(&config, liar.zp);
    g_assert_nonnull(next);
    zpipe_free(liar.zp);
    liar.zp = next;
    submit_write(liar.zp, liar.w);
    meet(&liar, 0);
    leave(&liar);
    g_assert_cmpuint(slept(), ==, 0);
    liar_free(&liar);
}

/* The user's own calls wait as before: a peer cannot make them happen. */
static void test_user_waits(void)
{
    Liar liar;

    liar_new(&liar);
    meet(&liar, 0);
    leave(&liar);
    g_assert_cmpuint(slept(), >=, 19 * MS);
    meet(&liar, 0);
    zpipe_cancel(liar.zp, &liar.w->r);
    g_assert_cmpint(zpipe_state(liar.zp), ==, ZPIPE_IDLE);
    g_assert_cmpuint(slept(), >=, 99 * MS);
    reap_all(liar.zp);
    liar_free(&liar);
}

/* A read that no peer can write into is taken back without any wait. */
static void test_private_read(void)
{
    g_autofree uint8_t *in = g_malloc0(LEN);
    Req *r = req_new(in, LEN);
    Liar liar;

    liar_new(&liar);
    meet(&liar, 0);
    submit_read(liar.zp, r);
    reap_all(liar.zp);
    zpipe_cancel(liar.zp, &r->r);
    g_assert_cmpuint(slept(), ==, 0);
    g_assert_cmpint(zpipe_state(liar.zp), ==, ZPIPE_CONNECTED);
    reap_all(liar.zp);
    g_assert_cmpint(r->r.result, ==, -ECANCELED);
    req_free(r);
    liar_free(&liar);
}

/* A user may end the connection because of what the peer does. */
static void test_detach(void)
{
    Liar liar;

    liar_new(&liar);
    for (int i = 0; i < 3; i++) {
        uint64_t ns;

        meet(&liar, 0);
        zpipe_detach(liar.zp);
        ns = slept();
        g_assert_cmpuint(ns, <=, i ? 0 : 100 * MS + STEP);
        g_assert_cmpuint(ns, >=, i ? 0 : 99 * MS);
        leave(&liar);
    }
    liar_free(&liar);
}

/*
 * It says that it cannot read this side's memory any more.  All that this side
 * waits for then is one wait, although the connection ends as well.
 */
static void take_back_ability(Liar *liar)
{
    struct zp_msg msg = { .type = ZP_MSG_ABILITY };

    meet(liar, ZP_CAN_CMA_READ);
    g_assert_true(raw_send(liar->raw, &msg, NULL, 0));
    g_assert_cmpint(wait_gone(liar->zp), ==, -ETIMEDOUT);
}

static void test_ability(void)
{
    Liar liar;
    uint64_t ns;

    liar_new(&liar);
    take_back_ability(&liar);
    ns = slept();
    g_assert_cmpuint(ns, >=, 99 * MS);
    g_assert_cmpuint(ns, <=, 100 * MS + STEP);
    raw_free(liar.raw);
    take_back_ability(&liar);
    g_assert_cmpuint(slept(), ==, 0);
    liar_free(&liar);
}

/*
 * Who unmaps a peer's memory last frees its pages, which takes time when they
 * are many.  That is not for the program's own thread.
 */
static void test_large_region(void)
{
    Liar liar;
    int fd;

    liar_new(&liar);
    fd = memfd_new(64 * MiB, MFD_ALLOW_SEALING, F_SEAL_SHRINK);
    g_assert_cmpint(fd, >=, 0);
    meet(&liar, 0);
    g_assert_true(raw_region(liar.raw, 3, fd, 0, 64 * MiB, 0));
    close(fd);
    reap_all(liar.zp);
    g_assert_cmpint(stats_of(liar.zp).peer_regions, ==, 1);
    leave(&liar);
    zpipe_detach(liar.zp);
    while (!__atomic_load_n(&large.len, __ATOMIC_ACQUIRE)) {
        g_usleep(1000);
    }
    g_assert_false(pthread_equal(large.thread, pthread_self()));
    liar_free(&liar);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/patience/comes-again", test_comes_again);
    g_test_add_func("/patience/user-waits", test_user_waits);
    g_test_add_func("/patience/private-read", test_private_read);
    g_test_add_func("/patience/detach", test_detach);
    g_test_add_func("/patience/ability", test_ability);
    g_test_add_func("/patience/large-region", test_large_region);
    return g_test_run();
}

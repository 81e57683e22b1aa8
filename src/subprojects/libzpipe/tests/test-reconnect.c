/*
 * Tests of libzpipe: lost connections, killed peers
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */

#include "victim.h"

#define LEN (150 * KiB)

/* ----------------------------------------------------------- the same peer */

/* A connection that ends in the middle: a socket that is cut from outside. */
static void attach_cuttable(Pair *p, int *cut)
{
    int sv[2];

    socket_pair(sv);
    *cut = dup(sv[0]);
    g_assert_cmpint(zpipe_attach(p->tx, sv[0], false), ==, 0);
    g_assert_cmpint(zpipe_attach(p->rx, sv[1], true), ==, 0);
}

static void cut_off(Pair *p, int cut)
{
    shutdown(cut, SHUT_RDWR);
    close(cut);
    pair_settle(p);
    g_assert_cmpint(zpipe_state(p->tx), ==, ZPIPE_IDLE);
    g_assert_cmpint(zpipe_state(p->rx), ==, ZPIPE_IDLE);
}

/* One turn of one side: the smallest step that can be seen from outside. */
static void one_step(Pair *p, int i)
{
    reap_all(i & 1 ? p->rx : p->tx);
}

/* Cut after step @n of a transfer; false: it was over before. */
static bool cut_after(enum zpipe_mechanism mechanism, bool reachable, int n)
{
    struct zpipe_config c = config_of(mechanism, ZPIPE_PERSISTENT);
    Req *w[3], *r[3];
    uint8_t *out, *in;
    bool cut_it;
    Pair p;
    int cut;

    pair_new(&p, &c, &c);
    out = zpipe_buffer_new(p.tx, 3 * LEN);
    in = reachable ? zpipe_buffer_new(p.rx, 3 * LEN) : g_malloc0(3 * LEN);
    pat_fill(out, 3 * LEN, 1, 0);
    for (int i = 0; i < 3; i++) {
        w[i] = req_new(out + i * LEN, LEN);
        r[i] = req_new(in + i * LEN, LEN);
        r[i]->r.min = LEN;
        submit_write(p.tx, w[i]);
        submit_read(p.rx, r[i]);
    }
    attach_cuttable(&p, &cut);
    for (int i = 0; i < n && !w[2]->done; i++) {
        one_step(&p, i);
    }
    cut_it = !w[2]->done;
    cut_off(&p, cut);
    pair_attach(&p);
    pair_wait(&p, r[2]);
    pair_wait(&p, w[2]);
    pat_check(in, 3 * LEN, 1, 0);
    for (int i = 0; i < 3; i++) {
        g_assert_cmpint(w[i]->r.result, ==, LEN);
        g_assert_cmpint(r[i]->r.result, ==, LEN);
    }
    g_assert_cmpint(info_of(p.tx).tx_offset, ==, 3 * LEN);
    g_assert_cmpint(stats_of(p.rx).resumed, ==, stats_of(p.tx).resumed);
    pair_close(&p);
    for (int i = 0; i < 3; i++) {
        req_free(w[i]);
        req_free(r[i]);
    }
    if (!reachable) {
        g_free(in);
    }
    return cut_it;
}

static void test_resume(const void *opaque)
{
    enum zpipe_mechanism mechanism = GPOINTER_TO_INT(opaque);

    for (int i = 0; i < 2; i++) {
        int n = 0;

        while (cut_after(mechanism, i, n)) {
            g_assert_cmpint(n++, <, 10000);
        }
        g_assert_cmpint(n, >, 5);
    }
}

/* What zpipe_try_write() has accepted survives as well. */
static void test_resume_try_write(void)
{
    struct zpipe_config c = config_of(ZPIPE_AUTO, ZPIPE_PERSISTENT);
    uint8_t out[20000], in[20000];
    Req *r = req_new(in + 100, sizeof(in) - 100);
    Pair p;

    pair_open(&p, &c, &c);
    pat_fill(out, sizeof(out), 1, 0);
    g_assert_cmpint(zpipe_try_write(p.tx, out, sizeof(out)), ==, sizeof(out));
    memset(out, 0, sizeof(out));
    pair_settle(&p);
    g_assert_cmpint(zpipe_try_read(p.rx, in, 100), ==, 100);
    zpipe_detach(p.rx);
    pair_settle(&p);
    pair_attach(&p);
    g_assert_true(info_of(p.tx).resumed && info_of(p.rx).resumed);
    r->r.min = sizeof(in) - 100;
    submit_read(p.rx, r);
    pair_wait(&p, r);
    pat_check(in, sizeof(in), 1, 0);
    pair_close(&p);
    req_free(r);
}

/* -------------------------------------------------------------- a new peer */

static void test_new_peer(void)
{
    struct zpipe_config c = config_of(ZPIPE_AUTO, ZPIPE_PERSISTENT);
    g_autofree uint8_t *out = g_malloc(LEN), *in = g_malloc(LEN);
    Req *w = req_new(out, LEN), *r = req_new(in, LEN);
    Pair p;

    pair_open(&p, &c, &c);
    pat_fill(out, LEN, 1, 0);
    submit_write(p.tx, w);
    pair_settle(&p);
    g_assert_cmpint(zpipe_try_read(p.rx, in, 1000), ==, 1000);
    zpipe_free(p.rx);
    wait_gone(p.tx);
    g_assert_false(w->done);
    p.rx = zpipe_new(&c);
    pair_attach(&p);
    g_assert_false(info_of(p.tx).resumed || info_of(p.rx).resumed);
    g_assert_cmpint(info_of(p.rx).rx_offset, ==, 1000);
    r->r.min = LEN - 1000;
    submit_read(p.rx, r);
    pair_wait(&p, r);
    g_assert_cmpint(r->r.result, ==, LEN - 1000);
    pat_check(in, LEN - 1000, 1, 1000);
    pair_wait(&p, w);
    pair_close(&p);
    req_free(w);
    req_free(r);
}

/* Without ZPIPE_PERSISTENT all that was under way ends with it. */
static void test_not_persistent(void)
{
    uint8_t buf[1000] = { 0 };
    Req *w = req_new(buf, sizeof(buf)), *r = req_new(buf, 10);
    Pair p;

    pair_open(&p, NULL, NULL);
    submit_write(p.tx, w);
    submit_read(p.tx, r);
    pair_settle(&p);
    g_assert_cmpint(zpipe_try_read(p.rx, buf, 10), ==, 10);
    zpipe_detach(p.rx);
    wait_gone(p.tx);
    reap_all(p.tx);
    g_assert_true(w->done && r->done);
    g_assert_cmpint(w->r.result, ==, 10);       /* the peer took them */
    g_assert_cmpint(r->r.result, <, 0);
    pair_close(&p);
    req_free(w);
    req_free(r);
}

/* ------------------------------------------------------------- a false peer */

/* A persistent handle that has sent, and lost the connection. */
static RawPeer *lose(Victim *v, uint64_t taken)
{
    RawPeer *old;
    int sv[2];

    victim_open(v, true, ZPIPE_PERSISTENT);
    raw_take(v->raw, taken, 0, 0);
    shutdown(v->raw->sock, SHUT_RDWR);
    wait_gone(v->zp);
    old = v->raw;
    socket_pair(sv);
    v->raw = raw_new(sv[1], true);
    /* the session is the one that it knows */
    memcpy(v->raw->hello.session, old->hello.session,
           sizeof(v->raw->hello.session));
    g_assert_cmpint(zpipe_attach(v->zp, sv[0], false), ==, 0);
    return old;
}

static void claim(uint64_t taken, uint64_t claimed, uint64_t tx_offset,
                  bool good)
{
    Victim v;
    RawPeer *old = lose(&v, taken);

    v.raw->hello.rx_offset = claimed;
    v.raw->hello.tx_offset = tx_offset;
    if (good) {
        raw_connect(v.raw, v.zp);
        g_assert_true(info_of(v.zp).resumed);
        g_assert_cmpint(info_of(v.zp).tx_offset, ==, claimed);
    } else {
        raw_hello(v.raw);
        g_assert_cmpint(wait_gone(v.zp), ==, -EPROTO);
    }
    zpipe_detach(v.zp);
    zpipe_cancel_all(v.zp, true, true);
    raw_free(old);
    victim_close(&v);
}

static void test_gap(void)
{
    claim(20, 20, 0, true);
    claim(20, 19, 0, false);                    /* less than it had */
    claim(20, VICTIM_SENT + 1, 0, false);       /* more than was sent */
    claim(20, UINT64_MAX, 0, false);
    claim(20, 20, 1, false);                    /* it left something out */
    claim(20, 20, UINT64_MAX, false);
}

/* Taken back while there was no connection: it cannot have been taken. */
static void test_cancelled_then_claimed(void)
{
    Victim v;
    RawPeer *old = lose(&v, 20);

    zpipe_cancel_all(v.zp, false, true);
    g_assert_cmpint(reap_all(v.zp), ==, 3);
    g_assert_cmpint(v.write[0]->r.result, ==, 20);
    v.raw->hello.rx_offset = VICTIM_INLINE;
    raw_hello(v.raw);
    g_assert_cmpint(wait_gone(v.zp), ==, -EPROTO);
    zpipe_cancel_all(v.zp, true, true);
    raw_free(old);
    victim_close(&v);
}

/*
 * A peer that was in the middle of a copy when the connection ended, and took
 * long: the rest of that copy counts, if the writes are still there.
 */
static void test_slow_busy(const void *opaque)
{
    bool cancelled = GPOINTER_TO_INT(opaque);
    Victim v;
    RawPeer *old;
    int sv[2];

    victim_open(&v, true, ZPIPE_PERSISTENT);
    old = v.raw;
    __atomic_store_n(&old->own.ctl->busy, 1, __ATOMIC_SEQ_CST);
    shutdown(old->sock, SHUT_RDWR);
    wait_gone(v.zp);
    g_assert_false(v.write[0]->done);
    /* it gets on, and comes back */
    raw_take(old, VICTIM_INLINE + 100, 1, 1);
    __atomic_store_n(&old->own.ctl->busy, 0, __ATOMIC_SEQ_CST);
    socket_pair(sv);
    v.raw = raw_new(sv[1], true);
    memcpy(v.raw->hello.session, old->hello.session,
           sizeof(v.raw->hello.session));
    v.raw->hello.rx_offset = VICTIM_INLINE + 100;
    g_assert_cmpint(zpipe_attach(v.zp, sv[0], false), ==, 0);
    if (cancelled) {
        zpipe_cancel_all(v.zp, false, true);
        g_assert_cmpint(reap_all(v.zp), ==, 3);
        g_assert_cmpint(v.write[0]->r.result, ==, -ECANCELED);
        raw_hello(v.raw);
        g_assert_cmpint(wait_gone(v.zp), ==, -EPROTO);
    } else {
        raw_connect(v.raw, v.zp);
        g_assert_true(info_of(v.zp).resumed);
        g_assert_cmpint(info_of(v.zp).tx_offset, ==, VICTIM_INLINE + 100);
        victim_run(&v);
        g_assert_true(v.write[0]->done);
        g_assert_cmpint(v.raw->peer.writes[0].pos, ==, VICTIM_INLINE + 100);
    }
    zpipe_detach(v.zp);
    zpipe_cancel_all(v.zp, true, true);
    raw_free(old);
    victim_close(&v);
}

/* ----------------------------------------------------------------- kill -9 */

typedef struct Shared {
    uint64_t step;
    uint8_t in[];
} Shared;

#define KILL_BYTES (8 * MiB)

/* Reads into memory that outlives it. */
static void reader_main(int sock, Shared *shared, uint64_t from, bool direct)
{
    struct zpipe_config c = config_of(ZPIPE_AUTO, direct ? ZPIPE_CMA : 0);
    struct zpipe *zp = zpipe_new(&c);
    uint64_t at = from;

    zpipe_attach(zp, sock, true);
    while (at < KILL_BYTES) {
        Req *r = req_new(shared->in + at, MIN(50000, KILL_BYTES - at));

        submit_read(zp, r);
        wait_req(zp, r);
        if (r->r.result <= 0) {
            break;
        }
        at += r->r.result;
        req_free(r);
    }
    _exit(0);
}

/* What counts as taken is in the buffer of the dead, to the byte. */
static uint64_t kill_once(struct zpipe *zp, Shared *shared, Req *w,
                          uint64_t from, int usec, bool direct)
{
    int sv[2], status;
    uint64_t taken;
    int64_t end;
    pid_t pid;

    socket_pair(sv);
    pid = fork();
    if (pid == 0) {
        close(sv[0]);
        reader_main(sv[1], shared, from, direct);
    }
    close(sv[1]);
    g_assert_cmpint(zpipe_attach(zp, sv[0], false), ==, 0);
    end = g_get_monotonic_time() + usec;
    while (!w->done && g_get_monotonic_time() < end &&
           zpipe_state(zp) != ZPIPE_IDLE) {
        reap_all(zp);
        zpipe_wait(zp, 1);
    }
    kill(pid, SIGKILL);
    g_assert_cmpint(waitpid(pid, &status, 0), ==, pid);
    while (zpipe_state(zp) != ZPIPE_IDLE) {
        reap_all(zp);
        zpipe_wait(zp, 100);
    }
    reap_all(zp);
    taken = info_of(zp).tx_offset;
    g_assert_cmpint(taken, >=, from);
    g_assert_cmpint(taken, <=, KILL_BYTES);
    pat_check(shared->in, taken, 1, 0);
    return taken;
}

static void kill_case(enum zpipe_mechanism mechanism, bool direct)
{
    struct zpipe_config c = config_of(mechanism, ZPIPE_PERSISTENT |
                                                 (direct ? ZPIPE_CMA : 0));
    size_t size = sizeof(Shared) + KILL_BYTES;
    Shared *shared = mmap(NULL, size, PROT_READ | PROT_WRITE,
                          MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct zpipe *zp = zpipe_new(&c);
    uint8_t *out = zpipe_buffer_new(zp, KILL_BYTES);
    Req *w = req_new(out, KILL_BYTES);
    uint64_t taken = 0;
    int kills = 0;

    pat_fill(out, KILL_BYTES, 1, 0);
    submit_write(zp, w);
    while (!w->done) {
        taken = kill_once(zp, shared, w, taken,
                          g_test_rand_int_range(100, 4000), direct);
        g_assert_cmpint(kills++, <, 5000);
    }
    g_assert_cmpint(w->r.result, ==, KILL_BYTES);
    g_test_message("%s: %d processes killed", zpipe_mechanism_name(mechanism),
                   kills);
    zpipe_free(zp);
    req_free(w);
    munmap(shared, size);
}

static void test_kill(void)
{
    for (int m = ZPIPE_AUTO; m <= ZPIPE_MAP; m++) {
        kill_case(m, false);
        kill_case(m, true);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    for (int m = ZPIPE_AUTO; m <= ZPIPE_MAP; m++) {
        g_autofree char *path = g_strdup_printf("/reconnect/resume/%s",
                                                zpipe_mechanism_name(m));

        g_test_add_data_func(path, GINT_TO_POINTER(m), test_resume);
    }
    g_test_add_func("/reconnect/resume/try-write", test_resume_try_write);
    g_test_add_func("/reconnect/new-peer", test_new_peer);
    g_test_add_func("/reconnect/not-persistent", test_not_persistent);
    g_test_add_func("/reconnect/gap", test_gap);
    g_test_add_func("/reconnect/cancelled-then-claimed",
                    test_cancelled_then_claimed);
    g_test_add_data_func("/reconnect/slow-busy", GINT_TO_POINTER(0),
                         test_slow_busy);
    g_test_add_data_func("/reconnect/slow-busy-cancelled", GINT_TO_POINTER(1),
                         test_slow_busy);
    g_test_add_func("/reconnect/kill", test_kill);
    return g_test_run();
}

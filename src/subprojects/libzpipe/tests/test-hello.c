/*
 * Tests of libzpipe: a peer that lies in the handshake, or at the end
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */

#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include "victim.h"

typedef void (*Change)(RawPeer *raw);

typedef struct Hello {
    const char *name;
    Change change;
    const char *says;           /* what the error has in it, or NULL */
} Hello;

typedef struct Case {
    const Hello *hello;
    bool server;
} Case;

static void version_3(RawPeer *raw)
{
    raw->hello.version = 3;
}

/* It had one bell for both: the client's hello had one descriptor. */
static void version_1(RawPeer *raw)
{
    raw->hello.version = 1;
    raw->hello_nfds = 1;
}

static void version_0(RawPeer *raw)
{
    raw->hello.version = 0;
}

static void entries_0(RawPeer *raw)
{
    raw->hello.entries = 0;
}

static void entries_odd(RawPeer *raw)
{
    raw->hello.entries = 33;
}

static void entries_few(RawPeer *raw)
{
    raw->hello.entries = 16;
}

static void entries_many(RawPeer *raw)
{
    raw->hello.entries = 1u << 31;
}

static void entries_beyond(RawPeer *raw)
{
    raw->hello.entries = 8192;          /* the arena is smaller */
}

static void copy_0(RawPeer *raw)
{
    raw->hello.copy_bytes = 0;
}

static void copy_odd(RawPeer *raw)
{
    raw->hello.copy_bytes = RAW_COPY + 1;
}

static void copy_small(RawPeer *raw)
{
    raw->hello.copy_bytes = RAW_COPY / 2;
}

static void copy_large(RawPeer *raw)
{
    raw->hello.copy_bytes = 1u << 31;
}

static void copy_beyond(RawPeer *raw)
{
    raw->hello.copy_bytes = RAW_COPY * 2;
}

static void no_fds(RawPeer *raw)
{
    raw->hello_nfds = 0;
}

static void one_fd_less(RawPeer *raw)
{
    raw->hello_nfds--;
}

static void one_fd_more(RawPeer *raw)
{
    raw->hello_fds[raw->hello_nfds++] = raw->rope;
}

static void many_fds(RawPeer *raw)
{
    while (raw->hello_nfds < RAW_FDS_MAX) {
        raw->hello_fds[raw->hello_nfds++] = raw->rope;
    }
}

static void use_arena(RawPeer *raw, int fd)
{
    g_assert_cmpint(fd, >=, 0);
    close(raw->arena_fd);
    raw->arena_fd = raw->hello_fds[0] = fd;
}

static void arena_unsealed(RawPeer *raw)
{
    use_arena(raw, raw_arena_fd(RAW_ENTRIES, RAW_COPY, 0));
}

static void arena_grow_only(RawPeer *raw)
{
    use_arena(raw, raw_arena_fd(RAW_ENTRIES, RAW_COPY, F_SEAL_GROW));
}

static void arena_small(RawPeer *raw)
{
    size_t size = raw_arena_size(RAW_ENTRIES, RAW_COPY) - 4096;

    use_arena(raw, memfd_new(size, MFD_ALLOW_SEALING, F_SEAL_SHRINK));
}

static void arena_empty(RawPeer *raw)
{
    use_arena(raw, memfd_new(0, MFD_ALLOW_SEALING, F_SEAL_SHRINK));
}

static void arena_hugetlb(RawPeer *raw)
{
    int fd = memfd_new(2 * MiB, MFD_ALLOW_SEALING | MFD_HUGETLB,
                       F_SEAL_SHRINK);

    if (fd >= 0) {
        use_arena(raw, fd);
    } else {
        raw->hello.entries = 0;         /* a lie all the same */
    }
}

static void arena_pipe(RawPeer *raw)
{
    int fds[2];

    g_assert_cmpint(pipe(fds), ==, 0);
    close(fds[1]);
    use_arena(raw, fds[0]);
}

static void arena_zero(RawPeer *raw)
{
    use_arena(raw, open("/dev/zero", O_RDWR | O_CLOEXEC));
}

static void arena_path(RawPeer *raw)
{
    use_arena(raw, open("/", O_PATH | O_CLOEXEC));
}

static void offset_claimed(RawPeer *raw)
{
    raw->hello.rx_offset = 1;           /* nothing was sent */
    raw->hello.session[0] ^= 99;
}

static const Hello hellos[] = {
    { "version-3", version_3, "3" },
    { "version-1", version_1, "1" },
    { "version-0", version_0, "0" },
    { "entries-0", entries_0 },
    { "entries-odd", entries_odd },
    { "entries-few", entries_few },
    { "entries-many", entries_many },
    { "entries-beyond", entries_beyond },
    { "copy-0", copy_0 },
    { "copy-odd", copy_odd },
    { "copy-small", copy_small },
    { "copy-large", copy_large },
    { "copy-beyond", copy_beyond },
    { "no-fds", no_fds },
    { "one-fd-less", one_fd_less },
    { "one-fd-more", one_fd_more },
    { "many-fds", many_fds },
    { "arena-unsealed", arena_unsealed },
    { "arena-grow-only", arena_grow_only },
    { "arena-small", arena_small },
    { "arena-empty", arena_empty },
    { "arena-hugetlb", arena_hugetlb },
    { "arena-pipe", arena_pipe },
    { "arena-zero", arena_zero },
    { "arena-path", arena_path },
};

/* It has ended, and not because the time for a handshake was over. */
static void check_refused(Victim *v)
{
    int code = victim_gone(v);

    g_assert_cmpint(code, <, 0);
    g_assert_cmpint(code, !=, -ETIMEDOUT);
}

static void test_hello(const void *opaque)
{
    const Case *c = opaque;
    Victim v;

    victim_new(&v, c->server, 0);
    c->hello->change(v.raw);
    g_assert_true(raw_hello(v.raw));
    check_refused(&v);
    if (c->hello->says) {
        g_assert_nonnull(strstr(zpipe_error(v.zp, NULL), c->hello->says));
    }
    victim_close(&v);
}

/* A server that says that it has what nobody sent. */
static void test_offset_claimed(void)
{
    Victim v;

    victim_new(&v, true, 0);
    offset_claimed(v.raw);
    raw_hello(v.raw);
    check_refused(&v);
    victim_close(&v);
}

/* The cookie is not where it says, or nowhere: do without. */
static void bad_cookie(uint64_t addr)
{
    Victim v;

    victim_new(&v, true, ZPIPE_CMA);
    v.raw->hello.offers = ZP_OFFER_CMA_READ | ZP_OFFER_CMA_WRITE;
    v.raw->hello.cookie_addr = addr;
    memset(v.raw->hello.cookie, 0x5a, sizeof(v.raw->hello.cookie));
    raw_connect(v.raw, v.zp);
    g_assert_false(info_of(v.zp).cma_read || info_of(v.zp).cma_write);
    g_assert_cmpint(info_of(v.zp).cma_error, !=, 0);
    victim_close(&v);
}

static void test_cookie(void)
{
    static uint8_t other[16];

    bad_cookie(0);
    bad_cookie(8);
    bad_cookie(UINT64_MAX - 4);
    bad_cookie(1ull << 63);
    bad_cookie((uintptr_t)other);
}

/* What is out of its turn. */
static void out_of_turn(uint32_t type, bool server)
{
    Victim v;

    victim_new(&v, server, 0);
    g_assert_true(raw_send_type(v.raw, type));
    check_refused(&v);
    victim_close(&v);
}

static void test_out_of_turn(void)
{
    for (int server = 0; server < 2; server++) {
        for (uint32_t type = ZP_MSG_READY; type <= ZP_MSG_BYE + 1; type++) {
            out_of_turn(type, server);
        }
    }
}

/* The peer closes after each step of the handshake. */
static void test_close_early(void)
{
    for (int i = 0; i < 6; i++) {
        bool server = i & 1;
        Victim v;

        victim_new(&v, server, 0);
        if (i / 2 >= 1) {
            raw_hello(v.raw);
            victim_run(&v);
        }
        if (i / 2 >= 2) {
            raw_send_type(v.raw, ZP_MSG_READY);
        }
        shutdown(v.raw->sock, SHUT_RDWR);
        check_refused(&v);
        victim_close(&v);
    }
}

/* A peer that says nothing. */
static void test_time(void)
{
    struct zpipe_config config = { .size = sizeof(config), .handshake_ms = 20 };
    struct zpipe *zp = zpipe_new(&config);
    int ends[2], code;

    g_assert_cmpint(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0,
                               ends), ==, 0);
    g_assert_cmpint(zpipe_attach(zp, ends[0], true), ==, 0);
    g_assert_cmpint(zpipe_wait_connected(zp, -1), ==, -ETIMEDOUT);
    g_assert_cmpint(zpipe_state(zp), ==, ZPIPE_IDLE);
    g_assert_cmpstr(zpipe_error(zp, &code), ==,
                    "the peer did not finish the handshake");
    g_assert_cmpint(code, ==, -ETIMEDOUT);
    zpipe_free(zp);
    close(ends[1]);
}

/* Only half of a hang-up: the bell is kept, or the socket. */
static void test_bell_kept(void)
{
    Victim v;
    int bell;

    victim_open(&v, true, 0);
    bell = dup(v.raw->bell);
    shutdown(v.raw->sock, SHUT_RDWR);
    for (int i = 0; i < 2; i++) {
        wait_req(v.zp, v.read[i]);
    }
    g_assert_cmpint(zpipe_state(v.zp), ==, ZPIPE_IDLE);
    close(bell);
    victim_close(&v);
}

static void test_bell_cut(void)
{
    Victim v;

    victim_open(&v, true, 0);
    shutdown(v.raw->bell, SHUT_RDWR);
    victim_run(&v);                     /* and does not run for ever */
    zpipe_cancel_all(v.zp, true, true);
    victim_run(&v);
    victim_close(&v);
}

/* A bell that is rung until nothing fits does not block anybody. */
static void test_bell_full(void)
{
    Victim v;

    victim_open(&v, true, 0);
    while (send(v.raw->bell, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL) > 0) {
        /* go on */
    }
    while (send(v.raw->rope, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL) > 0) {
        /* the other way: what the library would send */
    }
    victim_run(&v);
    zpipe_cancel_all(v.zp, true, true);
    victim_run(&v);
    for (int i = 0; i < 3; i++) {
        g_assert_true(v.write[i]->done);
    }
    victim_close(&v);
}

/*
 * In a process of its own: receive into memory that is not there, so that it
 * ends only when the process is killed, which somebody else does after a time.
 */
static void receive_slowly(int sock, int ready)
{
    void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct uffdio_api api = { .api = UFFD_API };
    struct uffdio_register reg = {
        .range = { (uintptr_t)page, 4096 },
        .mode = UFFDIO_REGISTER_MODE_MISSING,
    };
    int fd = syscall(SYS_userfaultfd, O_CLOEXEC);
    pid_t self = getpid();

    if (fd < 0 || ioctl(fd, UFFDIO_API, &api) ||
        ioctl(fd, UFFDIO_REGISTER, &reg)) {
        return;
    }
    if (fork() == 0) {
        struct uffd_msg msg;

        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (read(fd, &msg, sizeof(msg)) == sizeof(msg) &&
            write(ready, "", 1) == 1) {
            sleep(20);
            kill(self, SIGKILL);
        }
        _exit(0);
    }
    close(ready);
    recv(sock, page, 1, 0);
}

/*
 * The peer has kept the socket that it gave to the library, and is in the
 * middle of receiving from it.  The kernel has others who do so wait for that.
 */
static void test_bell_held(void)
{
    int ready[2], status;
    pid_t pid;
    Victim v;
    char c;

    victim_open(&v, true, 0);
    g_assert_cmpint(send(v.raw->ear, "", 1, MSG_NOSIGNAL), ==, 1);
    g_assert_cmpint(pipe(ready), ==, 0);
    pid = fork();
    if (pid == 0) {
        close(ready[0]);
        receive_slowly(v.raw->rope, ready[1]);
        _exit(0);
    }
    close(ready[1]);
    if (read(ready[0], &c, 1) == 1) {
        for (int i = 0; i < 200; i++) {
            victim_run(&v);             /* it empties its bell now and then */
            raw_kick(v.raw);
        }
        zpipe_detach(v.zp);
        /* it has not been waited for */
        g_assert_cmpint(waitpid(pid, &status, WNOHANG), ==, 0);
    } else {
        g_test_skip("there is no userfaultfd here");
    }
    close(ready[0]);
    kill(pid, SIGKILL);
    g_assert_cmpint(waitpid(pid, &status, 0), ==, pid);
    victim_close(&v);
}

/* Control messages without end do not keep zpipe_reap(). */
static gpointer flood(gpointer opaque)
{
    RawPeer *raw = opaque;
    struct zp_msg msg = { .magic = ZP_MAGIC, .type = ZP_MSG_REGION_DEL,
                          .region.id = 5 };
    int64_t end = now_ms() + 300;

    while (now_ms() < end) {
        raw_send(raw, &msg, NULL, 0);
    }
    return NULL;
}

static void test_flood(void)
{
    GThread *thread;
    Victim v;
    int turns = 0;

    victim_open(&v, true, 0);
    thread = g_thread_new("flood", flood, v.raw);
    for (int64_t end = now_ms() + 300; now_ms() < end; turns++) {
        reap_all(v.zp);
    }
    g_thread_join(thread);
    g_assert_cmpint(turns, >, 10);
    victim_close(&v);
}

/* A turn takes some of them, and leaves the rest to the next. */
static void test_messages_a_turn(void)
{
    enum { N = 100 };
    Victim v;

    victim_open(&v, true, 0);
    for (int i = 0; i < N; i++) {
        int fd = memfd_new(4096, MFD_ALLOW_SEALING, F_SEAL_SHRINK);

        g_assert_true(raw_region(v.raw, i, fd, 0, 4096, 0));
        close(fd);
    }
    g_assert_null(zpipe_reap(v.zp));
    g_assert_cmpint(stats_of(v.zp).peer_regions, <, N);
    victim_run(&v);
    g_assert_cmpint(stats_of(v.zp).peer_regions, ==, N);
    victim_close(&v);
}

/* A peer that reads no messages: an end, or it is borne; no wait, no heap. */
static void test_deaf(void)
{
    Victim v;

    victim_open(&v, true, 0);
    for (int i = 0; i < 5000; i++) {
        void *buf = zpipe_buffer_new(v.zp, 4096);

        g_assert_nonnull(buf);
        zpipe_buffer_free(v.zp, buf);
        reap_all(v.zp);
    }
    victim_close(&v);
}

/* Busy for ever: what is taken back comes back, the connection does not. */
static void test_busy(const void *opaque)
{
    bool reads = GPOINTER_TO_INT(opaque);
    Victim v;

    victim_open(&v, true, 0);
    __atomic_store_n(&v.raw->own.ctl->busy, 1, __ATOMIC_SEQ_CST);
    zpipe_cancel_all(v.zp, reads, !reads);
    g_assert_cmpint(victim_gone(&v), ==, -ETIMEDOUT);
    for (int i = 0; i < 3; i++) {
        g_assert_true(v.write[i]->done);
    }
    victim_close(&v);
}

/*
 * A peer that keeps a view, then is busy, each for less than it may: to whoever
 * cancels that is one wait, and too long.
 */
static gpointer slow_main(gpointer opaque)
{
    RawPeer *raw = opaque;

    g_usleep(70 * 1000);
    __atomic_store_n(&raw->own.ctl->busy, 1, __ATOMIC_SEQ_CST);
    raw_take(raw, VICTIM_INLINE, 1, 1);
    g_usleep(70 * 1000);
    __atomic_store_n(&raw->own.ctl->busy, 0, __ATOMIC_SEQ_CST);
    return NULL;
}

static void test_one_patience(void)
{
    GThread *thread;
    Victim v;

    victim_open(&v, true, 0);
    raw_take(v.raw, VICTIM_INLINE, 1, 0);
    thread = g_thread_new("slow", slow_main, v.raw);
    zpipe_cancel_all(v.zp, true, true);
    g_assert_cmpint(zpipe_state(v.zp), ==, ZPIPE_IDLE);
    g_assert_cmpint(victim_gone(&v), ==, -ETIMEDOUT);
    g_thread_join(thread);
    victim_close(&v);
}

/*
 * A peer that is in the middle of writing into a read, or of reading what is
 * written by its address.  The memory is its owner's again when the connection
 * ends: the peer is told to stop, and waited for.
 */
typedef struct Touching {
    Victim v;
    bool write;
    int stopped, left;          /* the peer has; the call has returned */
} Touching;

static bool taken_back(Touching *t)
{
    struct zp_ctl *ctl = t->v.raw->peer.ctl;

    return t->write ? __atomic_load_n(&ctl->w_prod, __ATOMIC_ACQUIRE) == 1
                    : __atomic_load_n(&ctl->r_prod, __ATOMIC_ACQUIRE) == 0;
}

static gpointer touching_main(gpointer opaque)
{
    Touching *t = opaque;

    while (!taken_back(t) && !g_atomic_int_get(&t->left)) {
        g_usleep(100);
    }
    g_atomic_int_set(&t->stopped, 1);
    __atomic_store_n(&t->v.raw->own.ctl->busy, 0, __ATOMIC_SEQ_CST);
    return NULL;
}

/* What is copied stays, for the peer to read when we are gone. */
static void touching_write(Touching *t, Req *w[2])
{
    struct zpipe_config config = config_of(ZPIPE_AUTO, ZPIPE_CMA_EXPOSE_READ);
    struct zp_msg ready = {
        .magic = ZP_MAGIC, .type = ZP_MSG_READY,
        .ability.can = ZP_CAN_CMA_READ,
    };
    RawPeer *raw;
    int sv[2];

    t->v.fds = fd_count();
    t->v.zp = zpipe_new(&config);
    socket_pair(sv);
    t->v.raw = raw = raw_new(sv[1], true);
    g_assert_cmpint(zpipe_attach(t->v.zp, sv[0], false), ==, 0);
    raw_hello(raw);
    raw_send(raw, &ready, NULL, 0);
    victim_run(&t->v);
    g_assert_cmpint(zpipe_state(t->v.zp), ==, ZPIPE_CONNECTED);
    w[0] = req_new(g_malloc0(100), 100);
    w[1] = req_new(g_malloc0(64 * KiB), 64 * KiB);
    submit_write(t->v.zp, w[0]);
    submit_write(t->v.zp, w[1]);
    victim_run(&t->v);
    g_assert_cmpint(raw->peer.writes[0].type, ==, ZP_W_INLINE);
    g_assert_cmpint(raw->peer.writes[1].type, ==, ZP_W_CMA);
}

static Req *touching_read(Touching *t)
{
    Req *r;

    victim_new(&t->v, true, 0);
    raw_connect(t->v.raw, t->v.zp);
    t->v.rbuf = zpipe_buffer_new(t->v.zp, VICTIM_READ);
    victim_run(&t->v);
    r = req_new(t->v.rbuf, VICTIM_READ);
    submit_read(t->v.zp, r);
    victim_run(&t->v);
    g_assert_cmpint(t->v.raw->peer.reads[0].reach, ==, ZP_R_REGION);
    g_assert_cmpint(t->v.raw->peer.ctl->r_prod, ==, 1);
    return r;
}

static void test_touching(const void *opaque)
{
    int way = GPOINTER_TO_INT(opaque);
    bool detach = way == 0;
    Touching t = { .write = way == 2 };
    Req *r = NULL, *w[2] = { NULL, NULL };
    GThread *thread;

    if (t.write) {
        touching_write(&t, w);
    } else {
        r = touching_read(&t);
    }
    __atomic_store_n(&t.v.raw->own.ctl->busy, 1, __ATOMIC_SEQ_CST);
    thread = g_thread_new("touching", touching_main, &t);
    if (detach) {
        zpipe_detach(t.v.zp);
    } else {
        zpipe_free(t.v.zp);
    }
    g_assert_true(g_atomic_int_get(&t.stopped));
    g_assert_true(taken_back(&t));
    g_atomic_int_set(&t.left, 1);
    g_thread_join(thread);
    if (detach) {
        g_assert_cmpint(reap_all(t.v.zp), ==, 1);
        g_assert_cmpint(r->r.result, ==, -ECONNABORTED);
        zpipe_free(t.v.zp);
    }
    raw_free(t.v.raw);
    for (int i = 0; i < 2 && t.write; i++) {
        g_free(w[i]->iov->iov_base);
        req_free(w[i]);
    }
    if (r) {
        req_free(r);
    }
    fd_check(t.v.fds);
}

/* A peer that is stopped, with the library's own code in it. */
static void test_stopped(void)
{
    static uint8_t buf[1 * MiB];
    Req *w = req_new(buf, sizeof(buf)), *r = req_new(buf, 100);
    int sv[2], status, fds = fd_count();
    struct zpipe *zp = zpipe_new(NULL);
    pid_t pid;

    socket_pair(sv);
    pid = fork();
    if (pid == 0) {
        close(sv[0]);
        zp = zpipe_new(NULL);
        zpipe_attach(zp, sv[1], true);
        zpipe_wait_connected(zp, HANG_MS);
        raise(SIGSTOP);
        _exit(0);
    }
    close(sv[1]);
    g_assert_cmpint(zpipe_attach(zp, sv[0], false), ==, 0);
    g_assert_cmpint(zpipe_wait_connected(zp, HANG_MS), ==, 0);
    g_assert_cmpint(waitpid(pid, &status, WUNTRACED), ==, pid);
    submit_write(zp, w);
    submit_read(zp, r);
    reap_all(zp);
    g_assert_true(!w->done && !r->done);
    zpipe_cancel_all(zp, true, true);
    reap_all(zp);
    g_assert_true(w->done && r->done);
    kill(pid, SIGKILL);
    g_assert_cmpint(waitpid(pid, &status, 0), ==, pid);
    zpipe_free(zp);
    fd_check(fds);
    req_free(w);
    req_free(r);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    for (int i = 0; i < 2 * (int)G_N_ELEMENTS(hellos); i++) {
        Case c = { &hellos[i / 2], i & 1 };
        g_autofree char *path = g_strdup_printf("/hello/%s/%s", c.server ?
                                                "server" : "client",
                                                c.hello->name);

        g_test_add_data_func_full(path, g_memdup2(&c, sizeof(c)), test_hello,
                                  g_free);
    }
    g_test_add_func("/hello/offset-claimed", test_offset_claimed);
    g_test_add_func("/hello/cookie", test_cookie);
    g_test_add_func("/hello/out-of-turn", test_out_of_turn);
    g_test_add_func("/hello/close-early", test_close_early);
    g_test_add_func("/hello/time", test_time);
    g_test_add_func("/bell/kept", test_bell_kept);
    g_test_add_func("/bell/cut", test_bell_cut);
    g_test_add_func("/bell/full", test_bell_full);
    g_test_add_func("/bell/held", test_bell_held);
    g_test_add_func("/peer/flood", test_flood);
    g_test_add_func("/peer/messages-a-turn", test_messages_a_turn);
    g_test_add_func("/peer/deaf", test_deaf);
    g_test_add_data_func("/peer/busy/writes", GINT_TO_POINTER(0), test_busy);
    g_test_add_data_func("/peer/busy/reads", GINT_TO_POINTER(1), test_busy);
    g_test_add_func("/peer/one-patience", test_one_patience);
    g_test_add_data_func("/peer/touching/detach", GINT_TO_POINTER(0),
                         test_touching);
    g_test_add_data_func("/peer/touching/free-reads", GINT_TO_POINTER(1),
                         test_touching);
    g_test_add_data_func("/peer/touching/free-writes", GINT_TO_POINTER(2),
                         test_touching);
    g_test_add_func("/peer/stopped", test_stopped);
    return g_test_run();
}

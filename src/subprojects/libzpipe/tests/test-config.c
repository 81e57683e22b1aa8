/*
 * Tests of libzpipe: settings, names, sockets
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */

#include <sys/prctl.h>

#include "common.h"

/* ----------------------------------------------------------------- config */

static void bad_config(struct zpipe_config config)
{
    int fds = fd_count();

    errno = 0;
    g_assert_null(zpipe_new(&config));
    g_assert_cmpint(errno, ==, EINVAL);
    fd_check(fds);
}

static void test_bad_config(void)
{
    const struct zpipe_config good = config_of(ZPIPE_AUTO, 0);
    struct zpipe_config c;
    static const uint32_t rings[] = {
        1, 4096, ZPIPE_RING_BYTES_MIN - 1, ZPIPE_RING_BYTES_MIN / 2,
        ZPIPE_RING_BYTES_MIN + 1, ZPIPE_RING_BYTES_MIN * 3,
        ZPIPE_RING_BYTES_MAX + 1, ZPIPE_RING_BYTES_MAX * 2, UINT32_MAX,
        1u << 31,
    };

    for (size_t i = 0; i < G_N_ELEMENTS(rings); i++) {
        c = good;
        c.ring_bytes = rings[i];
        bad_config(c);
    }
    c = good;
    c.size = 0;
    bad_config(c);
    c.size = 4;
    bad_config(c);
    c = good;
    c.mechanism = ZPIPE_MECHANISMS;
    bad_config(c);
    c.mechanism = -1;
    bad_config(c);
    for (int bit = 7; bit < 32; bit++) {
        c = good;
        c.flags = 1u << bit;
        bad_config(c);
    }
}

static void test_good_config(void)
{
    for (uint32_t ring = ZPIPE_RING_BYTES_MIN; ring <= ZPIPE_RING_BYTES_MAX;
         ring *= 2) {
        struct zpipe_config c = config_of(ZPIPE_AUTO, ring == 64 * KiB
                                                      ? 0 : ZPIPE_PERSISTENT);
        struct zpipe_info info;
        Pair p;

        c.ring_bytes = ring;
        pair_open(&p, &c, NULL);
        info = info_of(p.tx);
        g_assert_cmpint(info.ring_bytes, ==, ring);
        g_assert_cmpint(info.peer_ring_bytes, ==, ZPIPE_RING_BYTES_MIN);
        g_assert_cmpint(info_of(p.rx).peer_ring_bytes, ==, ring);
        g_assert_cmpint(info.peer_pid, ==, getpid());
        g_assert_false(info.resumed || info.cma_read || info.cma_write ||
                       info.peer_cma_read);
        pass(&p, 200000, 1, 0);
        pair_close(&p);
    }
}

/* Cross-memory access is used where it was asked for by both, and nowhere. */
static void test_cma_agreement(void)
{
    static const uint32_t flags[] = {
        0, ZPIPE_CMA_USE, ZPIPE_CMA_EXPOSE_READ, ZPIPE_CMA_EXPOSE_WRITE,
        ZPIPE_CMA,
    };
    const size_t n = G_N_ELEMENTS(flags);

    for (size_t i = 0; i < n * n; i++) {
        uint32_t a = flags[i / n], b = flags[i % n];
        struct zpipe_config tx = config_of(ZPIPE_DIRECT, a);
        struct zpipe_config rx = config_of(ZPIPE_DIRECT, b);
        struct zpipe_info info;
        Pair p;

        pair_open(&p, &tx, &rx);
        pair_settle(&p);
        info = info_of(p.tx);
        g_assert_cmpint(info.cma_error, ==, 0);
        g_assert_cmpint(info.cma_read, ==,
                        (a & ZPIPE_CMA_USE) && (b & ZPIPE_CMA_EXPOSE_READ));
        g_assert_cmpint(info.cma_write, ==,
                        (a & ZPIPE_CMA_USE) && (b & ZPIPE_CMA_EXPOSE_WRITE));
        g_assert_cmpint(info.peer_cma_read, ==,
                        (b & ZPIPE_CMA_USE) && (a & ZPIPE_CMA_EXPOSE_READ));
        pass(&p, 100000, 1, 0);
        g_assert_cmpint(stats_of(p.tx).cma_errors, ==, 0);
        pair_close(&p);
    }
}

static void test_names(void)
{
    g_assert_true(g_str_has_prefix(zpipe_version(), "0.1"));
    for (int i = 0; i < ZPIPE_MECHANISMS; i++) {
        g_assert_cmpint(zpipe_mechanism_parse(zpipe_mechanism_name(i)), ==, i);
    }
    for (int i = 0; i < ZPIPE_REASONS; i++) {
        g_assert_cmpstr(zpipe_reason_name(i), !=, "");
        for (int j = 0; j < i; j++) {
            g_assert_cmpstr(zpipe_reason_name(i), !=, zpipe_reason_name(j));
        }
    }
    g_assert_cmpstr(zpipe_mechanism_name(ZPIPE_COPY), ==, "copy");
    g_assert_cmpstr(zpipe_reason_name(ZPIPE_WHY_CMA_DENIED), ==,
                    "cma-denied");
    g_assert_cmpint(zpipe_mechanism_parse(""), ==, -EINVAL);
    g_assert_cmpint(zpipe_mechanism_parse("cop"), ==, -EINVAL);
    g_assert_cmpint(zpipe_mechanism_parse("COPY"), ==, -EINVAL);
}

/* ---------------------------------------------------------------- sockets */

static void test_path_too_long(void)
{
    g_autofree char *dir = g_dir_make_tmp("zpipe-XXXXXX", NULL);
    g_autofree char *path = g_malloc0(ZPIPE_PATH_MAX + 2);
    struct zpipe *zp = zpipe_new(NULL);
    int fds = fd_count(), fd;

    memset(path, 'x', ZPIPE_PATH_MAX + 1);
    memcpy(path, dir, strlen(dir));
    path[strlen(dir)] = '/';
    g_assert_cmpint(zpipe_listen(path), ==, -ENAMETOOLONG);
    g_assert_cmpint(zpipe_dial(path), ==, -ENAMETOOLONG);
    g_assert_cmpint(zpipe_connect(zp, path), ==, -ENAMETOOLONG);
    g_assert_cmpint(zpipe_state(zp), ==, ZPIPE_IDLE);
    fd_check(fds);
    /* the longest that fits */
    path[ZPIPE_PATH_MAX] = 0;
    fd = zpipe_listen(path);
    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(zpipe_connect(zp, path), ==, 0);
    zpipe_free(zp);
    close(fd);
    unlink(path);
    rmdir(dir);
}

static void test_bad_paths(void)
{
    char *path = path_new();
    int fd, other;

    g_assert_cmpint(zpipe_dial(path), ==, -ENOENT);
    g_assert_cmpint(zpipe_dial(""), <, 0);
    g_assert_cmpint(zpipe_listen(""), <, 0);
    /* another file is left alone */
    g_assert_true(g_file_set_contents(path, "precious", -1, NULL));
    g_assert_cmpint(zpipe_listen(path), ==, -EADDRINUSE);
    g_assert_cmpint(zpipe_dial(path), <, 0);
    g_assert_true(g_file_test(path, G_FILE_TEST_IS_REGULAR));
    unlink(path);
    /* in use */
    fd = zpipe_listen(path);
    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(zpipe_listen(path), ==, -EADDRINUSE);
    other = zpipe_dial(path);
    g_assert_cmpint(other, >=, 0);
    close(other);
    /* left behind by a process that has died */
    close(fd);
    g_assert_cmpint(zpipe_dial(path), ==, -ECONNREFUSED);
    fd = zpipe_listen(path);
    g_assert_cmpint(fd, >=, 0);
    close(fd);
    path_free(path);
}

static void test_listener(void)
{
    char *path = path_new();
    int fd = zpipe_listen(path);

    g_assert_true(fcntl(fd, F_GETFL) & O_NONBLOCK);
    g_assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
    g_assert_cmpint(zpipe_accept(fd), ==, -EAGAIN);
    g_assert_cmpint(zpipe_accept(-1), <, 0);
    close(fd);
    path_free(path);
}

/*
 * Two servers at once, on a path with a left-over or none: one gets it, and is
 * there.
 */
typedef struct Race {
    const char *path;
    gint *ready;
} Race;

static gpointer race_main(gpointer opaque)
{
    Race *race = opaque;

    g_atomic_int_inc(race->ready);
    while (g_atomic_int_get(race->ready) < 2) {
        /* both at the same time */
    }
    return GINT_TO_POINTER(zpipe_listen(race->path));
}

static void leave_socket(const char *path)
{
    int fd = zpipe_listen(path);

    g_assert_cmpint(fd, >=, 0);
    close(fd);
}

static void test_listen_race(void)
{
    char *path = path_new();

    for (int round = 0; round < 500; round++) {
        gint ready = 0;
        Race race = { path, &ready };
        GThread *other;
        int a, b, c;

        unlink(path);
        if (round & 1) {
            leave_socket(path);
        }
        other = g_thread_new("race", race_main, &race);
        a = GPOINTER_TO_INT(race_main(&race));
        b = GPOINTER_TO_INT(g_thread_join(other));
        g_assert_cmpint(MIN(a, b), ==, -EADDRINUSE);
        g_assert_cmpint(MAX(a, b), >=, 0);
        c = zpipe_dial(path);
        g_assert_cmpint(c, >=, 0);
        close(c);
        close(MAX(a, b));
    }
    path_free(path);
}

static void test_listen_and_connect(void)
{
    char *path = path_new();
    int listener = zpipe_listen(path), sock;
    Pair p;

    pair_new(&p, NULL, NULL);
    g_assert_cmpint(zpipe_connect(p.tx, path), ==, 0);
    g_assert_cmpint(zpipe_connect(p.tx, path), ==, -EISCONN);
    g_assert_cmpint(zpipe_state(p.tx), ==, ZPIPE_CONNECTING);
    sock = zpipe_accept(listener);
    g_assert_cmpint(sock, >=, 0);
    g_assert_true(fcntl(sock, F_GETFD) & FD_CLOEXEC);
    g_assert_cmpint(zpipe_attach(p.rx, sock, true), ==, 0);
    pair_settle(&p);
    g_assert_cmpint(zpipe_wait_connected(p.tx, HANG_MS), ==, 0);
    g_assert_cmpint(zpipe_wait_connected(p.rx, HANG_MS), ==, 0);
    pass(&p, 10000, 1, 0);
    /* the one that was dialled and found the handle in use */
    sock = zpipe_accept(listener);
    if (sock >= 0) {
        close(sock);
    }
    pair_close(&p);
    close(listener);
    path_free(path);
}

static void test_nobody_accepts(void)
{
    char *path = path_new();
    int listener = zpipe_listen(path), ret;
    struct zpipe *zp = zpipe_new(NULL);

    g_assert_cmpint(zpipe_connect(zp, path), ==, 0);
    ret = zpipe_wait_connected(zp, 50);
    g_assert_cmpint(ret, ==, -ETIMEDOUT);
    zpipe_free(zp);
    close(listener);
    path_free(path);
}

/* Somebody who only looks, again and again, gets there as well. */
static void test_wait_looks(void)
{
    int sv[2], tx = -ETIMEDOUT, rx = -ETIMEDOUT;
    Pair p;

    pair_new(&p, NULL, NULL);
    socket_pair(sv);
    g_assert_cmpint(zpipe_attach(p.tx, sv[0], false), ==, 0);
    g_assert_cmpint(zpipe_attach(p.rx, sv[1], true), ==, 0);
    for (int i = 0; i < 1000 && (tx || rx); i++) {
        tx = zpipe_wait_connected(p.tx, 0);
        rx = zpipe_wait_connected(p.rx, 0);
        g_assert_true((!tx || tx == -ETIMEDOUT) && (!rx || rx == -ETIMEDOUT));
    }
    g_assert_cmpint(tx, ==, 0);
    g_assert_cmpint(rx, ==, 0);
    pair_close(&p);
}

static void refuse_with(const char *why)
{
    char *path = path_new();
    int listener = zpipe_listen(path), fds = fd_count();
    struct zpipe *zp = zpipe_new(NULL);
    uint8_t buf[10] = { 0 };
    Req *w = req_new(buf, sizeof(buf));
    int code;

    submit_write(zp, w);
    g_assert_cmpint(zpipe_connect(zp, path), ==, 0);
    zpipe_refuse(zpipe_accept(listener), why);
    g_assert_cmpint(zpipe_wait_connected(zp, HANG_MS), <, 0);
    g_assert_cmpint(zpipe_state(zp), ==, ZPIPE_IDLE);
    g_assert_nonnull(strstr(zpipe_error(zp, &code), strlen(why) < 100 ?
                                                    why : "xxxxxxxx"));
    g_assert_cmpint(code, <, 0);
    wait_req(zp, w);
    g_assert_cmpint(w->r.result, <, 0);
    zpipe_free(zp);
    fd_check(fds);
    close(listener);
    path_free(path);
    req_free(w);
}

static void test_refuse(void)
{
    g_autofree char *lengthy = g_strnfill(5000, 'x');

    refuse_with("busy: another client is connected");
    refuse_with(lengthy);
}

/* The second client is told, and the first does not notice. */
static void test_two_clients(void)
{
    char *path = path_new();
    int listener = zpipe_listen(path);
    struct zpipe *second;
    Pair p;

    pair_new(&p, NULL, NULL);
    second = zpipe_new(NULL);
    g_assert_cmpint(zpipe_connect(p.tx, path), ==, 0);
    g_assert_cmpint(zpipe_attach(p.rx, zpipe_accept(listener), true), ==, 0);
    g_assert_cmpint(zpipe_connect(second, path), ==, 0);
    zpipe_refuse(zpipe_accept(listener), "there is one already");
    pair_settle(&p);
    g_assert_cmpint(wait_gone(second), <, 0);
    g_assert_nonnull(strstr(zpipe_error(second, NULL),
                            "there is one already"));
    pass(&p, 10000, 1, 0);
    zpipe_free(second);
    pair_close(&p);
    close(listener);
    path_free(path);
}

/* A socket is closed whatever becomes of it. */
static void test_bad_attach(void)
{
    struct zpipe *zp = zpipe_new(NULL);
    int fds = fd_count(), sv[2];

    g_assert_cmpint(zpipe_attach(zp, -1, true), <, 0);
    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM, 0, sv), ==, 0);
    g_assert_cmpint(zpipe_attach(zp, sv[0], true), <, 0);
    close(sv[1]);
    fd_check(fds);
    g_assert_cmpint(pipe(sv), ==, 0);
    g_assert_cmpint(zpipe_attach(zp, sv[0], true), <, 0);
    close(sv[1]);
    fd_check(fds);
    g_assert_cmpint(zpipe_state(zp), ==, ZPIPE_IDLE);
    zpipe_free(zp);
}

static void test_attach_twice(void)
{
    int sv[2];
    Pair p;

    pair_open(&p, NULL, NULL);
    socket_pair(sv);
    g_assert_cmpint(zpipe_attach(p.tx, sv[0], false), ==, -EISCONN);
    close(sv[1]);
    pass(&p, 100, 1, 0);
    pair_close(&p);
}

/* Both think that they are the server, or the client: an end, not a hang. */
static void test_same_role(void)
{
    struct zpipe_config config = { .size = sizeof(config), .handshake_ms = 50 };

    for (int server = 0; server < 2; server++) {
        int sv[2];
        Pair p;

        pair_new(&p, &config, &config);
        socket_pair(sv);
        g_assert_cmpint(zpipe_attach(p.tx, sv[0], server), ==, 0);
        g_assert_cmpint(zpipe_attach(p.rx, sv[1], server), ==, 0);
        /* at the latest when the time of a handshake is over */
        wait_gone(p.tx);
        wait_gone(p.rx);
        pair_close(&p);
    }
}

static void test_detach(void)
{
    uint8_t buf[100] = { 0 };
    Req *w = req_new(buf, 100), *r = req_new(buf, 100);
    int code;
    Pair p;

    pair_open(&p, NULL, NULL);
    submit_write(p.tx, w);
    submit_read(p.tx, r);
    pair_settle(&p);
    zpipe_detach(p.tx);
    g_assert_cmpint(zpipe_state(p.tx), ==, ZPIPE_IDLE);
    reap_all(p.tx);
    g_assert_true(w->done && r->done);
    g_assert_cmpint(w->r.result, ==, -ECONNABORTED);
    g_assert_cmpint(r->r.result, ==, -ECONNABORTED);
    zpipe_detach(p.tx);                 /* harmless */
    g_assert_cmpint(wait_gone(p.rx), <, 0);
    g_assert_cmpstr(zpipe_error(p.rx, &code), !=, "");
    g_assert_cmpint(code, <, 0);
    pair_close(&p);
    req_free(w);
    req_free(r);
}

/*
 * Somebody else, a child perhaps, has the descriptors, too: closing ours does
 * not end what is known of them.
 */
static void test_detach_shared(void)
{
    int sv[2], status;
    Pair p;
    pid_t pid;

    pair_new(&p, NULL, NULL);
    socket_pair(sv);
    g_assert_cmpint(zpipe_attach(p.tx, sv[0], false), ==, 0);
    g_assert_cmpint(zpipe_attach(p.rx, sv[1], true), ==, 0);
    pair_settle(&p);
    g_assert_cmpint(zpipe_state(p.tx), ==, ZPIPE_CONNECTED);
    g_assert_cmpint(zpipe_state(p.rx), ==, ZPIPE_CONNECTED);
    pid = fork();
    if (!pid) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;) {
            pause();
        }
    }
    zpipe_detach(p.tx);
    g_assert_cmpint(wait_gone(p.rx), <, 0);
    for (int i = 0; i < 10; i++) {
        reap_all(p.tx);
        reap_all(p.rx);
    }
    g_assert_false(pair_poll(&p, 0));
    kill(pid, SIGKILL);
    g_assert_cmpint(waitpid(pid, &status, 0), ==, pid);
    pair_close(&p);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/config/bad", test_bad_config);
    g_test_add_func("/config/good", test_good_config);
    g_test_add_func("/config/cma-agreement", test_cma_agreement);
    g_test_add_func("/config/names", test_names);
    g_test_add_func("/socket/path-too-long", test_path_too_long);
    g_test_add_func("/socket/bad-paths", test_bad_paths);
    g_test_add_func("/socket/listener", test_listener);
    g_test_add_func("/socket/listen-race", test_listen_race);
    g_test_add_func("/socket/listen-and-connect", test_listen_and_connect);
    g_test_add_func("/socket/nobody-accepts", test_nobody_accepts);
    g_test_add_func("/socket/wait-looks", test_wait_looks);
    g_test_add_func("/socket/refuse", test_refuse);
    g_test_add_func("/socket/two-clients", test_two_clients);
    g_test_add_func("/socket/bad-attach", test_bad_attach);
    g_test_add_func("/socket/attach-twice", test_attach_twice);
    g_test_add_func("/socket/same-role", test_same_role);
    g_test_add_func("/socket/detach", test_detach);
    g_test_add_func("/socket/detach-shared", test_detach_shared);
    return g_test_run();
}

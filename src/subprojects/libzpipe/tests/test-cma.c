/*
 * Tests of libzpipe: whose memory is written
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The peer's process ends, another has its socket, and a third gets its
 * number: that one's memory is nobody's business.  In a PID namespace of its
 * own, where numbers can be chosen; skipped where that is not allowed.  The
 * same of a peer's process that executes another program.
 */

#include <sched.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include "common.h"

#define CANNOT 77
#define LEN (64 * KiB)

/* At the same address in all that were forked from here. */
static uint8_t area[LEN];

static void tell(int fd)
{
    g_assert_cmpint(write(fd, "x", 1), ==, 1);
}

static void await(int fd)
{
    char c;

    g_assert_cmpint(read(fd, &c, 1), ==, 1);
}

/* Post a read, leave the socket to a child, and end. */
static void peer_process(const char *path, int ready)
{
    struct zpipe_config config = config_of(ZPIPE_AUTO, ZPIPE_CMA);
    struct zpipe *zp = zpipe_new(&config);
    Req *r = req_new(area, LEN);

    g_assert_cmpint(zpipe_connect(zp, path), ==, 0);
    g_assert_cmpint(zpipe_wait_connected(zp, HANG_MS), ==, 0);
    submit_read(zp, r);
    reap_all(zp);
    if (!fork()) {
        for (;;) {
            pause();
        }
    }
    tell(ready);
    _exit(0);
}

/* The next process that is made gets this number. */
static bool choose_number(pid_t pid)
{
    int fd = open("/proc/sys/kernel/ns_last_pid", O_WRONLY | O_CLOEXEC);
    g_autofree char *text = g_strdup_printf("%d", pid - 1);
    bool good = fd >= 0 && write(fd, text, strlen(text)) > 0;

    if (fd >= 0) {
        close(fd);
    }
    return good;
}

/* The first process of the namespace: all others end with it. */
static int first_process(void)
{
    struct zpipe_config config = config_of(ZPIPE_DIRECT, ZPIPE_CMA);
    struct zpipe *zp = zpipe_new(&config);
    char *path = path_new();
    int listener = zpipe_listen(path), ready[2], check[2], status;
    uint8_t *out = g_malloc(LEN);
    Req *w = req_new(out, LEN);
    pid_t peer, other;

    g_assert_cmpint(listener, >=, 0);
    g_assert_true(!pipe(ready) && !pipe(check));
    peer = fork();
    if (!peer) {
        peer_process(path, ready[1]);
    }
    g_assert_cmpint(poll(&(struct pollfd) { listener, POLLIN }, 1, HANG_MS),
                    ==, 1);
    g_assert_cmpint(zpipe_attach(zp, zpipe_accept(listener), true), ==, 0);
    g_assert_cmpint(zpipe_wait_connected(zp, HANG_MS), ==, 0);
    await(ready[0]);
    path_free(path);
    g_assert_cmpint(waitpid(peer, &status, 0), ==, peer);
    g_assert_cmpint(status, ==, 0);
    g_assert_true(info_of(zp).cma_write);
    g_assert_cmpint(info_of(zp).peer_pid, ==, peer);

    memset(area, 0x77, LEN);
    if (!choose_number(peer)) {
        return CANNOT;
    }
    other = fork();
    if (!other) {
        await(check[0]);
        for (size_t i = 0; i < LEN; i++) {
            if (area[i] != 0x77) {
                _exit(1);
            }
        }
        _exit(0);
    }
    if (other != peer) {
        /* a thread that TSan has made in the other child took it */
        return CANNOT;
    }
    memset(out, 0x11, LEN);
    submit_write(zp, w);
    reap_all(zp);
    tell(check[1]);
    g_assert_cmpint(waitpid(other, &status, 0), ==, other);
    g_assert_cmpint(status, ==, 0);
    g_assert_cmpint(stats_of(zp).cma_errors, ==, 1);
    g_assert_cmpint(info_of(zp).cma_error, ==, ESRCH);
    g_assert_false(info_of(zp).cma_write);
    return 0;
}

static int in_namespace(void)
{
    int status;
    pid_t pid;

    if (unshare(CLONE_NEWPID) < 0) {
        return CANNOT;
    }
    pid = fork();
    if (!pid) {
        _exit(first_process());
    }
    g_assert_cmpint(waitpid(pid, &status, 0), ==, pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

static void test_reused_number(void)
{
    pid_t pid = fork();
    int status;

    if (!pid) {
        _exit(in_namespace());
    }
    g_assert_cmpint(waitpid(pid, &status, 0), ==, pid);
    g_assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == CANNOT) {
        g_test_skip("cannot choose the numbers of processes");
        return;
    }
    g_assert_cmpint(WEXITSTATUS(status), ==, 0);
}

/* ------------------------------------------- a process with another program */

/* argv[1] of this program when it is executed by itself. */
#define AS_PEER "--as-peer"
#define AS_OTHER "--as-other"

static char *own_path;

static void execute(const char *as, const char *path, int ready, int check)
{
    g_autofree char *fds = g_strdup_printf("%d,%d,%p", ready, check, area);

    execl(own_path, own_path, as, path, fds, NULL);
    _exit(2);
}

/* Post a read and run another program, which keeps the socket. */
static void be_peer(const char *path, int ready, int check)
{
    struct zpipe_config config = config_of(ZPIPE_AUTO, ZPIPE_CMA);
    struct zpipe *zp = zpipe_new(&config);

    g_assert_cmpint(zpipe_connect(zp, path), ==, 0);
    g_assert_cmpint(zpipe_wait_connected(zp, HANG_MS), ==, 0);
    submit_read(zp, req_new(area, LEN));
    reap_all(zp);
    for (int fd = 3; fd < 64; fd++) {
        fcntl(fd, F_SETFD, 0);
    }
    execute(AS_OTHER, path, ready, check);
}

/*
 * That program: nobody has asked it for its memory.  If that is not where the
 * first one's was, nothing is seen of whether it is left alone.
 */
static void be_other(int ready, int check, const void *first)
{
    memset(area, 0x77, LEN);
    tell(ready);
    await(check);
    for (size_t i = 0; i < LEN; i++) {
        if (area[i] != 0x77) {
            _exit(1);
        }
    }
    _exit(area == first ? 0 : CANNOT);
}

static void test_other_program(void)
{
    struct zpipe_config config = config_of(ZPIPE_DIRECT, ZPIPE_CMA);
    struct zpipe *zp = zpipe_new(&config);
    char *path = path_new();
    int listener = zpipe_listen(path), ready[2], check[2], status;
    uint8_t *out = g_malloc0(LEN);
    Req *w = req_new(out, LEN);
    pid_t peer;

    g_assert_true(!pipe(ready) && !pipe(check));
    peer = fork();
    if (!peer) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        /* so that @area is in the same place in both programs, if it may */
        personality(ADDR_NO_RANDOMIZE);
        execute(AS_PEER, path, ready[1], check[0]);
    }
    g_assert_cmpint(poll(&(struct pollfd) { listener, POLLIN }, 1, HANG_MS),
                    ==, 1);
    g_assert_cmpint(zpipe_attach(zp, zpipe_accept(listener), true), ==, 0);
    g_assert_cmpint(zpipe_wait_connected(zp, HANG_MS), ==, 0);
    await(ready[0]);
    if (info_of(zp).cma_write) {
        submit_write(zp, w);
        reap_all(zp);
    }
    tell(check[1]);
    g_assert_cmpint(waitpid(peer, &status, 0), ==, peer);
    g_assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == CANNOT) {
        g_test_skip("may not choose where a program's memory is");
    } else {
        g_assert_cmpint(WEXITSTATUS(status), ==, 0);
    }
    if (!stats_of(zp).cma_errors || info_of(zp).cma_error != ESRCH) {
        g_test_message("cma error %d", info_of(zp).cma_error);
        g_test_skip("may not reach the memory of the peer");
    }
    zpipe_free(zp);
    req_free(w);
    g_free(out);
    close(listener);
    path_free(path);
    for (int i = 0; i < 2; i++) {
        close(ready[i]);
        close(check[i]);
    }
}

int main(int argc, char **argv)
{
    void *first;
    int fds[2];

    own_path = g_file_read_link("/proc/self/exe", NULL);
    if (argc == 4 &&
        sscanf(argv[3], "%d,%d,%p", &fds[0], &fds[1], &first) == 3) {
        if (!strcmp(argv[1], AS_PEER)) {
            be_peer(argv[2], fds[0], fds[1]);
        } else {
            be_other(fds[0], fds[1], first);
        }
    }
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/cma/other-program", test_other_program);
    g_test_add_func("/cma/reused-number", test_reused_number);
    return g_test_run();
}

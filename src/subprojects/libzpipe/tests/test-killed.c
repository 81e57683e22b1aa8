/*
 * Tests of libzpipe: the peer is killed at each step of the protocol
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The peer is a process with the library in it, and both streams use every kind
 * of piece.  The linker puts the functions below in front of what the library
 * calls (--wrap): the peer ends with SIGKILL at the first, the second, ...
 * call, until it gets through: before and after messages, mappings, wake-ups
 * and copies of pieces.  How many calls there are differs a little from run to
 * run; so it is also killed at each kind of message by name.
 */

#include <sys/uio.h>
#include "common.h"
#include "zpipe-proto.h"

#define PIECES 3
#define STREAM (50u + 5000u + 20000u)

static const size_t piece_len[PIECES] = { 50, 5000, 20000 };

/* What the two processes know of each other; it outlives both. */
typedef struct Steps {
    long at;                    /* die at that call, or */
    uint32_t type;              /* at a message of that type: */
    bool received;              /* after it was received; else before sending */
    long n;                     /* calls so far */
    uint8_t in[STREAM];         /* what the peer has read */
    uint64_t got;
} Steps;

static Steps *steps;            /* NULL: not in the peer */

static void step(void)
{
    if (steps) {
        steps->n++;
        if (steps->n == steps->at) {
            raise(SIGKILL);
        }
    }
}

static void message_step(const struct msghdr *msg, bool received)
{
    const struct zp_msg *m = msg->msg_iov->iov_base;

    if (steps && received == steps->received && m->type == steps->type) {
        raise(SIGKILL);
    }
    step();
}

ssize_t __real_sendmsg(int fd, const struct msghdr *msg, int flags);
ssize_t __wrap_sendmsg(int fd, const struct msghdr *msg, int flags);
ssize_t __wrap_sendmsg(int fd, const struct msghdr *msg, int flags)
{
    message_step(msg, false);
    return __real_sendmsg(fd, msg, flags);
}

ssize_t __real_recvmsg(int fd, struct msghdr *msg, int flags);
ssize_t __wrap_recvmsg(int fd, struct msghdr *msg, int flags);
ssize_t __wrap_recvmsg(int fd, struct msghdr *msg, int flags)
{
    ssize_t ret = __real_recvmsg(fd, msg, flags);

    if (ret > 0) {
        message_step(msg, true);
    }
    return ret;
}

#define WRAP(type, name, params, args)                      \
    type __real_##name params;                              \
    type __wrap_##name params;                              \
    type __wrap_##name params                               \
    {                                                       \
        step();                                             \
        return __real_##name args;                          \
    }

WRAP(ssize_t, send, (int fd, const void *buf, size_t len, int flags),
     (fd, buf, len, flags))
WRAP(void *, mmap, (void *addr, size_t len, int prot, int flags, int fd,
                    off_t offset), (addr, len, prot, flags, fd, offset))
WRAP(void *, mmap64, (void *addr, size_t len, int prot, int flags, int fd,
                      off_t offset), (addr, len, prot, flags, fd, offset))
WRAP(int, munmap, (void *addr, size_t len), (addr, len))
WRAP(ssize_t, process_vm_readv,
     (pid_t pid, const struct iovec *local, unsigned long n,
      const struct iovec *remote, unsigned long m, unsigned long flags),
     (pid, local, n, remote, m, flags))
WRAP(ssize_t, process_vm_writev,
     (pid_t pid, const struct iovec *local, unsigned long n,
      const struct iovec *remote, unsigned long m, unsigned long flags),
     (pid, local, n, remote, m, flags))

/* Of a piece; smaller ones are the compiler's, with sanitizers. */
void *__real_memcpy(void *to, const void *from, size_t len);
void *__wrap_memcpy(void *to, const void *from, size_t len);
void *__wrap_memcpy(void *to, const void *from, size_t len)
{
    if (len > sizeof(struct zp_msg)) {
        step();
    }
    return __real_memcpy(to, from, len);
}

/* --------------------------------------------------------------- a side */

typedef struct Side {
    struct zpipe *zp;
    uint8_t *out, *in;          /* the library's memory, and */
    uint8_t *own_out, *own_in;  /* private memory */
    Req *w[PIECES], *r[PIECES];
} Side;

/* Some from and into memory that the peer reaches, some private. */
static void side_start(Side *s, uint64_t seed)
{
    size_t at = 0;

    s->out = zpipe_buffer_new(s->zp, STREAM);
    s->in = zpipe_buffer_new(s->zp, STREAM);
    g_assert_true(s->out && s->in);
    s->own_out = g_malloc(STREAM);
    s->own_in = g_malloc0(STREAM);
    pat_fill(s->out, STREAM, seed, 0);
    pat_fill(s->own_out, STREAM, seed, 0);
    for (int i = 0; i < PIECES; i++, at += piece_len[i - 1]) {
        s->w[i] = req_new((i == 1 ? s->own_out : s->out) + at, piece_len[i]);
        s->r[i] = req_new((i == 1 ? s->own_in : s->in) + at, piece_len[i]);
        s->r[i]->r.min = piece_len[i];
        submit_read(s->zp, s->r[i]);
        submit_write(s->zp, s->w[i]);
    }
}

static bool side_done(const Side *s)
{
    for (int i = 0; i < PIECES; i++) {
        if (!s->w[i]->done || !s->r[i]->done) {
            return false;
        }
    }
    return true;
}

static void side_free(Side *s)
{
    zpipe_free(s->zp);
    for (int i = 0; i < PIECES; i++) {
        req_free(s->w[i]);
        req_free(s->r[i]);
    }
    g_free(s->own_out);
    g_free(s->own_in);
}

/* What has been read is the peer's stream, as far as it came. */
static void side_check(const Side *s, uint64_t seed)
{
    size_t at = 0;

    for (int i = 0; i < PIECES; i++) {
        ssize_t result = s->r[i]->r.result;

        if (result > 0) {
            pat_check(s->r[i]->iov->iov_base, result, seed, at);
        }
        if (result != (ssize_t)piece_len[i]) {
            return;
        }
        at += result;
    }
}

/* ------------------------------------------------------------ the two sides */

static void peer_main(int sock, bool server, uint32_t flags, Steps *shared)
{
    struct zpipe_config c = config_of(ZPIPE_AUTO, flags);
    Side s = { 0 };

    steps = shared;
    s.zp = zpipe_new(&c);
    if (zpipe_attach(s.zp, sock, server)) {
        _exit(1);
    }
    side_start(&s, 2);
    while (!side_done(&s)) {
        reap_all(s.zp);
        if (!side_done(&s)) {
            zpipe_wait(s.zp, HANG_MS);
        }
    }
    side_check(&s, 1);
    zpipe_buffer_free(s.zp, s.out);
    zpipe_shutdown(s.zp);
    reap_all(s.zp);
    zpipe_free(s.zp);
    _exit(0);
}

/* Returns whether the peer was killed. */
static bool kill_once(bool server, uint32_t flags, Steps *shared)
{
    struct zpipe_config c = config_of(ZPIPE_AUTO, flags);
    int fds = fd_count(), sv[2], status, ret;
    Side s = { .zp = zpipe_new(&c) };
    pid_t pid;

    shared->n = 0;
    socket_pair(sv);
    pid = fork();
    if (pid == 0) {
        close(sv[0]);
        peer_main(sv[1], server, flags & ~ZPIPE_PERSISTENT, shared);
    }
    close(sv[1]);
    ret = zpipe_attach(s.zp, sv[0], !server);
    if (ret) {
        /* it was faster, and we speak first */
        g_assert_cmpint(ret, ==, -ECONNRESET);
        g_assert_cmpint(waitpid(pid, &status, 0), ==, pid);
        zpipe_free(s.zp);
        fd_check(fds);
        return WIFSIGNALED(status);
    }
    side_start(&s, 1);
    while (zpipe_state(s.zp) != ZPIPE_IDLE) {
        reap_all(s.zp);
        if (zpipe_state(s.zp) != ZPIPE_IDLE &&
            zpipe_wait(s.zp, HANG_MS) == 0) {
            g_error("killed at call %ld, message %u: it was not noticed",
                    shared->at, shared->type);
        }
    }
    reap_all(s.zp);
    g_assert_cmpint(waitpid(pid, &status, 0), ==, pid);
    zpipe_cancel_all(s.zp, true, true);
    reap_all(s.zp);
    g_assert_true(side_done(&s));
    side_check(&s, 2);
    side_free(&s);
    fd_check(fds);
    g_assert_true(WIFSIGNALED(status) || WEXITSTATUS(status) == 0);
    return WIFSIGNALED(status);
}

typedef struct Case {
    bool server;
    uint32_t flags;
} Case;

static void test_killed(const void *opaque)
{
    static const uint32_t types[] = {
        ZP_MSG_HELLO, ZP_MSG_READY, ZP_MSG_REGION_ADD, ZP_MSG_REGION_ANSWER,
        ZP_MSG_REGION_DEL
    };
    const Case *c = opaque;
    Steps *shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
                         MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    for (size_t i = 0; i < G_N_ELEMENTS(types); i++) {
        shared->type = types[i];
        shared->received = false;
        g_assert_true(kill_once(c->server, c->flags, shared));
        shared->received = true;
        /* we take no region away */
        g_assert_true(types[i] == ZP_MSG_REGION_DEL ||
                      kill_once(c->server, c->flags, shared));
    }
    shared->type = 0;
    do {
        g_assert_cmpint(shared->at++, <, 2000);
    } while (kill_once(c->server, c->flags, shared));
    g_test_message("killed at %ld calls, one after the other",
                   shared->at - 1);
    munmap(shared, sizeof(*shared));
}

int main(int argc, char **argv)
{
    static const uint32_t flags[] = {
        0, ZPIPE_PERSISTENT, ZPIPE_CMA, ZPIPE_CMA | ZPIPE_PERSISTENT
    };

    g_test_init(&argc, &argv, NULL);
    for (size_t i = 0; i < 2 * G_N_ELEMENTS(flags); i++) {
        Case c = { .server = i & 1, .flags = flags[i / 2] };
        g_autofree char *path = g_strdup_printf("/killed/%s/flags-%x",
                                                c.server ? "server"
                                                         : "client", c.flags);

        g_test_add_data_func_full(path, g_memdup2(&c, sizeof(c)), test_killed,
                                  g_free);
    }
    return g_test_run();
}

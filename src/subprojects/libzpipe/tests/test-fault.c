/*
 * Tests of libzpipe: the Nth call of the system fails, for each N
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The linker puts the functions below in front of what the library calls
 * (--wrap).  A scenario is run again and again, with the first, the second, ...
 * call failing, until it gets through without.  After each run nothing may be
 * left: no descriptor, no memory, no mapping; and no data may be wrong.
 */

#include <stdarg.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/timerfd.h>
#include <sys/uio.h>

#include "common.h"

static struct {
    bool armed, persistent;
    long n, at;             /* calls so far; the one that fails */
    bool hit;
    int err;
    const char *name;
    long blocks;            /* of memory, allocated and not freed */
} fault;

static bool fails(const char *name)
{
    if (!fault.armed) {
        return false;
    }
    fault.n++;
    if (fault.n != fault.at && !(fault.persistent && fault.n > fault.at)) {
        return false;
    }
    if (!fault.hit) {
        fault.name = name;
    }
    fault.hit = true;
    errno = fault.err;
    return true;
}

#define WRAP(type, name, params, args)                      \
    type __real_##name params;                              \
    type __wrap_##name params;                              \
    type __wrap_##name params                               \
    {                                                       \
        return fails(#name) ? (type)-1 : __real_##name args; \
    }

WRAP(int, memfd_create, (const char *name, unsigned int flags), (name, flags))
WRAP(int, ftruncate, (int fd, off_t size), (fd, size))
WRAP(int, ftruncate64, (int fd, off_t size), (fd, size))
WRAP(void *, mmap, (void *addr, size_t len, int prot, int flags, int fd,
                    off_t offset), (addr, len, prot, flags, fd, offset))
WRAP(void *, mmap64, (void *addr, size_t len, int prot, int flags, int fd,
                      off_t offset), (addr, len, prot, flags, fd, offset))
WRAP(int, epoll_create1, (int flags), (flags))
WRAP(int, epoll_ctl, (int epfd, int op, int fd, struct epoll_event *event),
     (epfd, op, fd, event))
WRAP(int, timerfd_create, (int clock, int flags), (clock, flags))
WRAP(int, socketpair, (int domain, int type, int protocol, int sv[2]),
     (domain, type, protocol, sv))
WRAP(int, getsockopt, (int fd, int level, int name, void *value,
                       socklen_t *len), (fd, level, name, value, len))
WRAP(ssize_t, getrandom, (void *buf, size_t len, unsigned int flags),
     (buf, len, flags))
WRAP(ssize_t, sendmsg, (int fd, const struct msghdr *msg, int flags),
     (fd, msg, flags))
WRAP(ssize_t, recvmsg, (int fd, struct msghdr *msg, int flags),
     (fd, msg, flags))
WRAP(int, fstat, (int fd, struct stat *st), (fd, st))
WRAP(int, fstat64, (int fd, struct stat64 *st), (fd, st))
WRAP(int, fchmod, (int fd, mode_t mode), (fd, mode))
WRAP(ssize_t, process_vm_readv,
     (pid_t pid, const struct iovec *local, unsigned long n,
      const struct iovec *remote, unsigned long m, unsigned long flags),
     (pid, local, n, remote, m, flags))
WRAP(ssize_t, process_vm_writev,
     (pid_t pid, const struct iovec *local, unsigned long n,
      const struct iovec *remote, unsigned long m, unsigned long flags),
     (pid, local, n, remote, m, flags))

#define WRAP_FCNTL(name)                                    \
    int __real_##name(int fd, int cmd, ...);                \
    int __wrap_##name(int fd, int cmd, ...);                \
    int __wrap_##name(int fd, int cmd, ...)                 \
    {                                                       \
        va_list ap;                                         \
        int arg;                                            \
                                                            \
        va_start(ap, cmd);                                  \
        arg = va_arg(ap, int);                              \
        va_end(ap);                                         \
        return fails(#name) ? -1 : __real_##name(fd, cmd, arg); \
    }

#define WRAP_OPEN(name)                                     \
    int __real_##name(const char *path, int flags, ...);    \
    int __wrap_##name(const char *path, int flags, ...);    \
    int __wrap_##name(const char *path, int flags, ...)     \
    {                                                       \
        return fails(#name) ? -1 : __real_##name(path, flags); \
    }

/* By one name or the other, as _FILE_OFFSET_BITS has it. */
WRAP_FCNTL(fcntl)
WRAP_FCNTL(fcntl64)
WRAP_OPEN(open)
WRAP_OPEN(open64)

long __real_syscall(long number, ...);
long __wrap_syscall(long number, ...);
long __wrap_syscall(long number, ...)
{
    va_list ap;
    long a, b;

    va_start(ap, number);
    a = va_arg(ap, long);
    b = va_arg(ap, long);
    va_end(ap);
    return fails("syscall") ? -1 : __real_syscall(number, a, b);
}

void *__real_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size)
{
    void *p = fails("calloc") ? NULL : __real_calloc(n, size);

    fault.blocks += fault.armed && p;
    return p;
}

void __real_free(void *p);
void __wrap_free(void *p);
void __wrap_free(void *p)
{
    fault.blocks -= fault.armed && p;
    __real_free(p);
}

/* ------------------------------------------------------------- a scenario */

#define LEN (100 * KiB)

typedef struct Run {
    struct zpipe *zp[2];
    uint8_t *out, *in;          /* private */
    uint8_t *shown, *reach;     /* of the two handles */
    Req *w[3], *r[3];
    int memfd;
    uint8_t *region;
} Run;

static void disarm(void)
{
    fault.armed = false;
}

static void arm(void)
{
    fault.armed = true;
}

/* Both ends for a while; there may be nothing more to come. */
static void turns(Run *run)
{
    for (int i = 0; i < 40; i++) {
        reap_all(run->zp[0]);
        reap_all(run->zp[1]);
    }
}

static bool attach(Run *run)
{
    int sv[2], ret[2];

    disarm();
    socket_pair(sv);
    arm();
    ret[0] = zpipe_attach(run->zp[0], sv[0], false);
    ret[1] = zpipe_attach(run->zp[1], sv[1], true);
    turns(run);
    return !ret[0] && !ret[1];
}

static void submit(Run *run, int i, uint8_t *out, uint8_t *in)
{
    disarm();
    run->w[i] = req_new(out, LEN);
    run->r[i] = req_new(in, LEN);
    run->r[i]->r.min = LEN;
    pat_fill(out, LEN, i, 0);
    arm();
    if (zpipe_write(run->zp[0], &run->w[i]->r) < 0) {
        run->w[i]->done = true;
        run->w[i]->r.result = -1;
    }
    turns(run);
    if (zpipe_read(run->zp[1], &run->r[i]->r) < 0) {
        run->r[i]->done = true;
        run->r[i]->r.result = -1;
    }
    turns(run);
}

static bool make_handles(Run *run, uint32_t flags)
{
    for (int i = 0; i < 2; i++) {
        struct zpipe_config c = config_of(ZPIPE_DIRECT, flags);

        run->zp[i] = zpipe_new(&c);
        if (!run->zp[i]) {
            g_assert_true(fault.hit);
            return false;
        }
    }
    return true;
}

static void transfer(Run *run)
{
    run->shown = zpipe_buffer_new(run->zp[0], LEN);
    run->reach = zpipe_buffer_new(run->zp[1], LEN);
    zpipe_region_add(run->zp[0], run->memfd, 0, run->region, LEN);
    turns(run);
    submit(run, 0, run->out, run->reach ? run->reach : run->in);
    submit(run, 1, run->region, run->in + LEN);
    submit(run, 2, run->shown ? run->shown : run->out + LEN,
           run->in + 2 * LEN);
}

/*
 * What is said to have been read is right: the reads have the bytes of the
 * writes, in order.  After a failure they may end early.
 */
static void check_bytes(Run *run)
{
    for (int i = 0; i < 3; i++) {
        Req *w = run->w[i], *r = run->r[i];

        if (!r || !r->done || r->r.result < 0) {
            return;
        }
        pat_check(r->iov->iov_base, r->r.result, i, 0);
        if (r->r.result < LEN) {
            return;
        }
        if (w->done && w->r.result >= 0) {
            g_assert_cmpint(w->r.result, <=, LEN);
        }
    }
}

static void scenario(Run *run, uint32_t flags)
{
    if (!make_handles(run, flags)) {
        return;
    }
    attach(run);
    transfer(run);
    check_bytes(run);
    if (flags & ZPIPE_PERSISTENT) {
        uint8_t some[300] = { 0 };

        zpipe_try_write(run->zp[1], some, sizeof(some));
        zpipe_detach(run->zp[0]);
        turns(run);
        attach(run);
        turns(run);
        check_bytes(run);
    }
    for (int i = 0; i < 2; i++) {
        zpipe_cancel_all(run->zp[i], true, true);
        zpipe_detach(run->zp[i]);
    }
    turns(run);
    for (int i = 0; i < 3; i++) {
        /* whatever has failed: nothing is left behind */
        g_assert_true(!run->w[i] || run->w[i]->done);
        g_assert_true(!run->r[i] || run->r[i]->done);
    }
}

/* ---------------------------------------------------------------- the loop */

static int mappings(void)
{
    g_autofree char *text = NULL;
    int n = 0;

    g_assert_true(g_file_get_contents("/proc/self/maps", &text, NULL, NULL));
    for (const char *p = text; (p = strstr(p, "memfd:")); p++) {
        n++;
    }
    return n;
}

/* Returns whether the fault was met. */
static bool one_run(uint32_t flags, long at, int err, bool persistent)
{
    Run run = { 0 };
    int fds, maps;

    run.out = g_malloc0(2 * LEN);
    run.in = g_malloc0(3 * LEN);
    run.memfd = memfd_shown(LEN, (void **)&run.region);
    fds = fd_count();
    maps = mappings();
    memset(&fault, 0, sizeof(fault));
    fault.at = at;
    fault.err = err;
    fault.persistent = persistent;
    arm();
    scenario(&run, flags);
    disarm();
    if (!fault.hit) {
        /* nothing failed: then all of it went through */
        for (int i = 0; i < 3; i++) {
            g_assert_cmpint(run.w[i]->r.result, ==, LEN);
            g_assert_cmpint(run.r[i]->r.result, ==, LEN);
        }
    }
    arm();
    fault.at = 0;
    fault.persistent = false;
    zpipe_free(run.zp[0]);
    zpipe_free(run.zp[1]);
    disarm();
    fd_check(fds);
    if (mappings() != maps || fault.blocks) {
        g_error("call %ld (%s, errno %d): %d mappings, %ld blocks are left",
                at, fault.name, err, mappings() - maps, fault.blocks);
    }
    for (int i = 0; i < 3; i++) {
        if (run.w[i]) {
            req_free(run.w[i]);
            req_free(run.r[i]);
        }
    }
    munmap(run.region, LEN);
    close(run.memfd);
    g_free(run.out);
    g_free(run.in);
    return fault.hit;
}

typedef struct Case {
    uint32_t flags;
    int err;
    bool persistent;
} Case;

static void test_fault(const void *opaque)
{
    const Case *c = opaque;
    long n = 1;

    while (one_run(c->flags, n, c->err, c->persistent)) {
        g_assert_cmpint(n++, <, 20000);
    }
    g_test_message("%ld calls failed, one after the other", n - 1);
    g_assert_cmpint(n, >, 20);
}

int main(int argc, char **argv)
{
    static const int errors[] = { ENOMEM, EMFILE, EPERM, ECONNRESET, EAGAIN };

    g_test_init(&argc, &argv, NULL);
    for (size_t i = 0; i < G_N_ELEMENTS(errors) * 6; i++) {
        static const uint32_t flags[] = { 0, ZPIPE_CMA, ZPIPE_PERSISTENT };
        Case c = {
            .flags = flags[i % 3], .err = errors[i / 6],
            .persistent = i / 3 % 2,
        };
        g_autofree char *path =
            g_strdup_printf("/fault/%s/errno-%d/flags-%x",
                            c.persistent ? "for-good" : "once", c.err,
                            c.flags);

        g_test_add_data_func_full(path, g_memdup2(&c, sizeof(c)), test_fault,
                                  g_free);
    }
    return g_test_run();
}

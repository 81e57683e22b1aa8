/*
 * Tests of libzpipe: what they share
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */

#include <dirent.h>

#include "common.h"

/* ------------------------------------------------------------- contents */

static uint64_t pat_word(uint64_t seed, uint64_t word)
{
    uint64_t x = (word + 1) * 0x9e3779b97f4a7c15ull ^
                 (seed + 1) * 0xc2b2ae3d27d4eb4full;

    x ^= x >> 29;
    x *= 0xbf58476d1ce4e5b9ull;
    return x ^ x >> 32;
}

void pat_fill(void *buf, size_t len, uint64_t seed, uint64_t pos)
{
    uint8_t *p = buf;

    while (len > 0) {
        uint64_t word = pat_word(seed, pos / 8);
        size_t skip = pos % 8;
        size_t n = MIN(8 - skip, len);

        memcpy(p, (uint8_t *)&word + skip, n);
        p += n;
        pos += n;
        len -= n;
    }
}

ssize_t pat_find(const void *buf, size_t len, uint64_t seed, uint64_t pos)
{
    const uint8_t *p = buf;
    size_t done = 0;

    while (done < len) {
        uint64_t word = pat_word(seed, (pos + done) / 8);
        size_t skip = (pos + done) % 8;
        size_t n = MIN(8 - skip, len - done);

        if (memcmp(p + done, (uint8_t *)&word + skip, n) != 0) {
            while (p[done] == ((uint8_t *)&word)[skip]) {
                done++;
                skip++;
            }
            return done;
        }
        done += n;
    }
    return -1;
}

void pat_check(const void *buf, size_t len, uint64_t seed, uint64_t pos)
{
    ssize_t bad = pat_find(buf, len, seed, pos);

    if (bad >= 0) {
        g_error("stream %" PRIu64 ": byte %zd of %zu, at position %" PRIu64
                ", is wrong", seed, bad, len, pos + bad);
    }
}

/* ------------------------------------------------------------- requests */

Req *req_new_sg(void *buf, size_t len, int n)
{
    Req *req = g_new0(Req, 1);
    size_t at = 0;

    req->iov = g_new0(struct iovec, n);
    for (int i = 0; i < n; i++) {
        size_t left = len - at;
        /* uneven, some of them empty */
        size_t part = i == n - 1 ? left
                                 : left / (n - i) * (i % 3);

        part = MIN(part, left);
        req->iov[i].iov_base = (uint8_t *)buf + at;
        req->iov[i].iov_len = part;
        at += part;
    }
    req->r.iov = req->iov;
    req->r.iovcnt = n;
    return req;
}

Req *req_new(void *buf, size_t len)
{
    return req_new_sg(buf, len, 1);
}

Req *req_new_view(void)
{
    return g_new0(Req, 1);
}

void req_free(Req *req)
{
    g_free(req->iov);
    g_free(req);
}

void submit_write(struct zpipe *zp, Req *req)
{
    req->done = false;
    g_assert_cmpint(zpipe_write(zp, &req->r), ==, 0);
}

void submit_read(struct zpipe *zp, Req *req)
{
    req->done = false;
    g_assert_cmpint(zpipe_read(zp, &req->r), ==, 0);
}

void submit_view(struct zpipe *zp, Req *req)
{
    req->done = false;
    g_assert_cmpint(zpipe_read_view(zp, &req->r), ==, 0);
}

/* ---------------------------------------------------------------- pairs */

struct zpipe_config config_of(enum zpipe_mechanism mechanism, uint32_t flags)
{
    return (struct zpipe_config) {
        .size = sizeof(struct zpipe_config),
        .flags = flags,
        .ring_bytes = ZPIPE_RING_BYTES_MIN,
        .mechanism = mechanism,
    };
}

static struct zpipe *handle_new(const struct zpipe_config *config)
{
    struct zpipe_config plain = config_of(ZPIPE_AUTO, 0);
    struct zpipe *zp = zpipe_new(config ? config : &plain);

    if (!zp) {
        g_error("zpipe_new: %s", strerror(errno));
    }
    return zp;
}

void pair_new(Pair *p, const struct zpipe_config *tx,
              const struct zpipe_config *rx)
{
    p->fds = fd_count();
    p->tx = handle_new(tx);
    p->rx = handle_new(rx);
}

void pair_attach(Pair *p)
{
    int sv[2];

    socket_pair(sv);
    g_assert_cmpint(zpipe_attach(p->tx, sv[0], false), ==, 0);
    g_assert_cmpint(zpipe_attach(p->rx, sv[1], true), ==, 0);
    for (;;) {
        pair_step(p);
        if (zpipe_state(p->tx) == ZPIPE_CONNECTED &&
            zpipe_state(p->rx) == ZPIPE_CONNECTED) {
            return;
        }
        if (zpipe_state(p->tx) == ZPIPE_IDLE ||
            zpipe_state(p->rx) == ZPIPE_IDLE) {
            g_error("handshake: '%s', '%s'", zpipe_error(p->tx, NULL),
                    zpipe_error(p->rx, NULL));
        }
        if (!pair_poll(p, HANG_MS)) {
            g_error("both sleep in the handshake");
        }
    }
}

void pair_open(Pair *p, const struct zpipe_config *tx,
               const struct zpipe_config *rx)
{
    pair_new(p, tx, rx);
    pair_attach(p);
}

void pair_close(Pair *p)
{
    zpipe_free(p->tx);
    zpipe_free(p->rx);
    p->tx = p->rx = NULL;
    fd_check(p->fds);
}

int reap_all(struct zpipe *zp)
{
    static gint seq;            /* of all handles, in all threads */
    struct zpipe_req *r;
    int n = 0;

    while ((r = zpipe_reap(zp))) {
        Req *req = (Req *)r;

        g_assert_false(req->done);
        req->done = true;
        req->seq = g_atomic_int_add(&seq, 1) + 1;
        n++;
    }
    return n;
}

int pair_step(Pair *p)
{
    int n = reap_all(p->tx);

    return n + reap_all(p->rx);
}

bool pair_poll(Pair *p, int ms)
{
    struct pollfd pfd[2] = {
        { .fd = zpipe_fd(p->tx), .events = POLLIN },
        { .fd = zpipe_fd(p->rx), .events = POLLIN },
    };
    int ret = poll(pfd, 2, ms);

    g_assert_true(ret >= 0 || errno == EINTR);
    return ret > 0;
}

void pair_settle(Pair *p)
{
    int turns = 0;

    do {
        pair_step(p);
        /* two ends that wake each other for ever would be caught here */
        g_assert_cmpint(turns++, <, 100000);
    } while (pair_poll(p, 0));
}

void pair_wait(Pair *p, Req *req)
{
    for (int turns = 0; ; turns++) {
        pair_step(p);
        if (req->done) {
            return;
        }
        if (!pair_poll(p, HANG_MS)) {
            g_error("both sleep, and a request has not completed ('%s', '%s')",
                    zpipe_error(p->tx, NULL), zpipe_error(p->rx, NULL));
        }
        g_assert_cmpint(turns, <, 1000000);
    }
}

void wait_req(struct zpipe *zp, Req *req)
{
    int64_t end = now_ms() + HANG_MS;

    for (;;) {
        reap_all(zp);
        if (req->done) {
            return;
        }
        zpipe_wait(zp, 1000);
        g_assert_cmpint(now_ms(), <, end);
    }
}

int wait_gone(struct zpipe *zp)
{
    int64_t end = now_ms() + HANG_MS;
    int code = 0;

    for (;;) {
        reap_all(zp);
        if (zpipe_state(zp) == ZPIPE_IDLE) {
            break;
        }
        zpipe_wait(zp, 1000);
        g_assert_cmpint(now_ms(), <, end);
    }
    g_assert_cmpstr(zpipe_error(zp, &code), !=, "");
    return code;
}

void pass(Pair *p, size_t len, uint64_t seed, uint64_t pos)
{
    g_autofree uint8_t *out = g_malloc(len);
    g_autofree uint8_t *in = g_malloc0(len);
    Req *w = req_new(out, len), *r = req_new(in, len);

    pat_fill(out, len, seed, pos);
    r->r.min = len;
    submit_write(p->tx, w);
    submit_read(p->rx, r);
    pair_wait(p, r);
    pair_wait(p, w);
    g_assert_cmpint(w->r.result, ==, len);
    g_assert_cmpint(r->r.result, ==, len);
    pat_check(in, len, seed, pos);
    req_free(w);
    req_free(r);
}

/* ------------------------------------------------------------- the rest */

static int entries(const char *name)
{
    DIR *dir = opendir(name);
    int n = 0;

    g_assert_nonnull(dir);
    while (readdir(dir)) {
        n++;
    }
    closedir(dir);
    return n;
}

int fd_count(void)
{
    static int usual;
    int threads = entries("/proc/self/task");

    /*
     * Some descriptors are closed by threads, which end.  Others do not: the
     * test's, or TSan's.
     */
    for (int i = 0; usual && threads > usual && i < 1000; i++) {
        g_usleep(1000);
        threads = entries("/proc/self/task");
    }
    usual = threads;
    return entries("/proc/self/fd");
}

void fd_check(int expected)
{
    int64_t end = now_ms() + HANG_MS;

    while (entries("/proc/self/fd") != expected && now_ms() < end) {
        g_usleep(1000);
    }
    g_assert_cmpint(entries("/proc/self/fd"), ==, expected);
}

int memfd_shown(size_t size, void **mem)
{
    int fd = memfd_new(size, MFD_ALLOW_SEALING, F_SEAL_SHRINK);

    g_assert_cmpint(fd, >=, 0);
    *mem = map_new(fd, size);
    g_assert_cmpint(fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE), ==, 0);
    return fd;
}

int memfd_new(size_t size, unsigned int mfd_flags, int seals)
{
    int fd = memfd_create("zpipe-test", MFD_CLOEXEC | mfd_flags);

    if (fd < 0) {
        return -1;
    }
    if (ftruncate(fd, size) < 0 ||
        (seals && fcntl(fd, F_ADD_SEALS, seals) < 0)) {
        close(fd);
        return -1;
    }
    return fd;
}

void *map_new(int fd, size_t size)
{
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    g_assert_true(p != MAP_FAILED);
    return p;
}

void socket_pair(int sv[2])
{
    g_assert_cmpint(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv),
                    ==, 0);
}

char *path_new(void)
{
    g_autofree char *dir = g_dir_make_tmp("zpipe-XXXXXX", NULL);

    g_assert_nonnull(dir);
    return g_build_filename(dir, "sock", NULL);
}

void path_free(char *path)
{
    g_autofree char *dir = g_path_get_dirname(path);

    unlink(path);
    g_assert_cmpint(rmdir(dir), ==, 0);
    g_free(path);
}

struct zpipe_count count_of(const struct zpipe_count *counts)
{
    struct zpipe_count sum = { 0 };

    for (int i = 0; i < ZPIPE_MECHANISMS; i++) {
        sum.messages += counts[i].messages;
        sum.bytes += counts[i].bytes;
    }
    return sum;
}

struct zpipe_stats stats_of(const struct zpipe *zp)
{
    struct zpipe_stats stats;

    zpipe_get_stats(zp, &stats);
    return stats;
}

struct zpipe_info info_of(const struct zpipe *zp)
{
    struct zpipe_info info;

    zpipe_get_info(zp, &info);
    return info;
}

int64_t now_ms(void)
{
    return g_get_monotonic_time() / 1000;
}

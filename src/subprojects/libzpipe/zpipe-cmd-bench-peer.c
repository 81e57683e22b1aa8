/*
 * zpipe bench sink, source: the peer of a program that is measured
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The same work for a socket and for a zpipe: take bytes and forget them, or
 * send bytes that are there already.
 */

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include "zpipe-cmd.h"
#include "zpipe-cmd-bench.h"

enum { DEPTH = 16, CHUNK = 256 << 10 };

/* Their product, and what is read beyond it, fits into 64 bits. */
#define EVERY_MAX (1ull << 40)
#define COUNT_MAX (1ull << 20)

static const struct peer_way {
    const char *name;
    bool socket, view, touch;
    enum zpipe_mechanism mechanism;
    uint32_t flags;
} peer_ways[] = {
    { "socket", .socket = true },
    { "socket-touch", .socket = true, .touch = true },
    { "copy", .mechanism = ZPIPE_COPY, .flags = ZPIPE_READS_PRIVATE },
    { "direct", .mechanism = ZPIPE_DIRECT },
    { "map", .mechanism = ZPIPE_MAP, .view = true },
    { "map-touch", .mechanism = ZPIPE_MAP, .view = true, .touch = true },
};
enum { PEER_WAYS = sizeof(peer_ways) / sizeof(peer_ways[0]) };

struct peer {
    const char *path;
    uint64_t every, count, bytes, lines;
    bool source, view, touch;
    struct zpipe_config config;
};

/* Print what is due; false when that was all, or could not be printed. */
static bool account(struct peer *p, size_t bytes)
{
    p->bytes += bytes;
    while (p->lines < p->count && p->bytes >= (p->lines + 1) * p->every) {
        p->lines++;
        printf("{\"bytes\": %" PRIu64 ", \"cpu_ns\": %" PRIu64
               ", \"now_ns\": %" PRIu64 "}\n", p->bytes, bench_cpu_ns(),
               bench_now_ns());
        if (!cmd_flush()) {
            return false;
        }
    }
    return p->lines < p->count;
}

static int socket_peer(struct peer *p)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    char *buf = malloc(CHUNK);
    ssize_t got;

    strncpy(addr.sun_path, p->path, sizeof(addr.sun_path) - 1);
    if (fd < 0 || !buf ||
        connect(fd, (struct sockaddr *)&addr, sizeof(addr))) {
        cmd_say("bench: connect %s: %s", p->path, strerror(errno));
        return CMD_FAILED;
    }
    memset(buf, 0x5a, CHUNK);
    do {
        got = p->source ? write(fd, buf, CHUNK) : read(fd, buf, CHUNK);
        if (got <= 0) {
            cmd_say("bench: %s: the connection has ended", p->path);
            return CMD_FAILED;
        }
        if (p->touch) {
            __asm__ volatile("" : : "r"(bench_touch(buf, got)));
        }
    } while (account(p, got));
    return cmd_finish(CMD_OK);
}

static int submit(struct peer *p, struct zpipe *zp, struct zpipe_req *req,
                  const struct iovec *iov)
{
    *req = (struct zpipe_req){ .iov = iov, .iovcnt = 1 };
    return p->source ? zpipe_write(zp, req) :
           p->view ? zpipe_read_view(zp, req) : zpipe_read(zp, req);
}

/* The same in the place of one that was taken; false after saying why not. */
static bool submit_again(struct peer *p, struct zpipe *zp,
                         struct zpipe_req *req, const struct iovec *iov)
{
    int ret = submit(p, zp, req, iov);

    if (ret) {
        cmd_say("bench: %s: %s", p->path, *zpipe_error(zp, NULL) ?
                zpipe_error(zp, NULL) : strerror(-ret));
    }
    return !ret;
}

static bool take(struct peer *p, struct zpipe *zp, struct zpipe_req *req)
{
    ssize_t got = req->result;

    if (got <= 0) {
        cmd_say("bench: %s: %s", p->path, *zpipe_error(zp, NULL) ?
                zpipe_error(zp, NULL) : "the stream has ended");
        return false;
    }
    if (p->touch) {
        __asm__ volatile("" : : "r"(bench_touch(req->view ?:
                                                req->iov->iov_base, got)));
    }
    if (req->view) {
        zpipe_view_done(zp, req);
    }
    return account(p, got);
}

static int zpipe_peer(struct peer *p)
{
    struct zpipe *zp = zpipe_new(&p->config);
    struct zpipe_req reqs[DEPTH], *req;
    struct iovec iov[DEPTH];
    /* who copies needs one buffer, as with a socket; who is pushed to, many */
    int depth = p->config.flags & ZPIPE_READS_PRIVATE ? 1 : DEPTH;
    bool more = true;
    int ret;

    ret = zp ? zpipe_connect(zp, p->path) : -errno;
    ret = ret ?: zpipe_wait_connected(zp, 10000);
    for (int i = 0; i < depth && !ret; i++) {
        iov[i] = (struct iovec){ zpipe_buffer_new(zp, CHUNK), CHUNK };
        if (!iov[i].iov_base) {
            ret = -errno;
            break;
        }
        memset(iov[i].iov_base, 0x5a, CHUNK);
        ret = submit(p, zp, &reqs[i], &iov[i]);
    }
    if (ret) {
        cmd_say("bench: %s: %s", p->path, strerror(-ret));
        return CMD_FAILED;
    }
    while (more) {
        while (more && (req = zpipe_reap(zp))) {
            more = take(p, zp, req) &&
                   submit_again(p, zp, req, &iov[req - reqs]);
        }
        if (more) {
            zpipe_wait(zp, -1);
        }
    }
    zpipe_free(zp);
    return cmd_finish(p->lines == p->count ? CMD_OK : CMD_FAILED);
}

static const struct peer_way *find_way(const char *name)
{
    for (int i = 0; i < PEER_WAYS; i++) {
        if (!strcmp(peer_ways[i].name, name)) {
            return &peer_ways[i];
        }
    }
    cmd_say("bench: there is no way \"%s\"; see zpipe bench --help", name);
    return NULL;
}

int bench_peer(int argc, char **argv)
{
    struct peer p = { .config = { .size = sizeof(p.config) } };
    const struct peer_way *way;

    if (argc != 5) {
        cmd_say("usage: zpipe bench %s WAY PATH EVERY COUNT", argv[0]);
        return CMD_USAGE;
    }
    way = find_way(argv[1]);
    p.path = argv[2];
    if (!way || !cmd_path_good(p.path) ||
        !bench_parse_count("EVERY", argv[3], EVERY_MAX, &p.every) ||
        !bench_parse_count("COUNT", argv[4], COUNT_MAX, &p.count)) {
        return CMD_USAGE;
    }
    p.source = !strcmp(argv[0], "source");
    p.view = way->view;
    p.touch = way->touch;
    p.config.mechanism = way->mechanism;
    p.config.flags = way->flags;
    return way->socket ? socket_peer(&p) : zpipe_peer(&p);
}

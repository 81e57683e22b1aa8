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

struct peer {
    const char *path;
    uint64_t every, count, bytes, lines;
    bool source, socket, view, touch;
    struct zpipe_config config;
};

/* Print what is due; false when that was all. */
static bool account(struct peer *p, size_t bytes)
{
    p->bytes += bytes;
    while (p->lines < p->count && p->bytes >= (p->lines + 1) * p->every) {
        p->lines++;
        printf("{\"bytes\": %" PRIu64 ", \"cpu_ns\": %" PRIu64
               ", \"now_ns\": %" PRIu64 "}\n", p->bytes, bench_cpu_ns(),
               bench_now_ns());
        fflush(stdout);
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
    return CMD_OK;
}

static int submit(struct peer *p, struct zpipe *zp, struct zpipe_req *req,
                  const struct iovec *iov)
{
    *req = (struct zpipe_req){ .iov = iov, .iovcnt = 1 };
    return p->source ? zpipe_write(zp, req) :
           p->view ? zpipe_read_view(zp, req) : zpipe_read(zp, req);
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
                   submit(p, zp, req, &iov[req - reqs]) == 0;
        }
        if (more) {
            zpipe_wait(zp, -1);
        }
    }
    zpipe_free(zp);
    return p->lines == p->count ? CMD_OK : CMD_FAILED;
}

int bench_peer(int argc, char **argv)
{
    struct peer p = { .config = { .size = sizeof(p.config) } };
    const char *way;

    if (argc != 5 || !cmd_parse_size(argv[3], &p.every) || !p.every ||
        !cmd_parse_size(argv[4], &p.count) || !p.count) {
        cmd_say("usage: zpipe bench %s WAY PATH EVERY COUNT", argv[0]);
        return CMD_USAGE;
    }
    way = argv[1];
    p.source = !strcmp(argv[0], "source");
    p.path = argv[2];
    p.socket = !strncmp(way, "socket", 6);
    p.view = !strncmp(way, "map", 3);
    p.touch = strstr(way, "-touch");
    if (!p.socket) {
        int mechanism = zpipe_mechanism_parse(p.view ? "map" : way);

        if (mechanism < 0) {
            cmd_say("bench: there is no way \"%s\"", way);
            return CMD_USAGE;
        }
        p.config.mechanism = mechanism;
        p.config.flags = mechanism == ZPIPE_COPY ? ZPIPE_READS_PRIVATE : 0;
    }
    return p.socket ? socket_peer(&p) : zpipe_peer(&p);
}

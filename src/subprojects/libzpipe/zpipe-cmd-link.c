/*
 * zpipe: where the command's connections come from
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */

#include <errno.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "zpipe-cmd.h"

/* What to do about an error of connect or listen. */
static const char *advice(int error)
{
    switch (error) {
    case ENOENT:
        return "; start the side that listens first, or use --reconnect=MS";
    case ECONNREFUSED:
        return "; the socket is a left-over, nobody listens: start the side "
               "that listens, or use --reconnect=MS";
    case EPROTOTYPE:
        return "; this socket is of another kind (a -chardev socket? it must "
               "be a -chardev zpipe)";
    case EADDRINUSE:
        return "; somebody listens there already, or it is no socket: take "
               "another path";
    case EACCES:
        return "; the socket or a directory before it is not ours: see the "
               "permissions";
    default:
        return "";
    }
}

bool cmd_link_open(struct cmd_link *link, const struct cmd_options *opt)
{
    link->opt = opt;
    link->listener = -1;
    if (opt->server) {
        link->listener = zpipe_listen(opt->path);
        if (link->listener < 0) {
            cmd_say("listen %s: %s%s", opt->path,
                    strerror(-link->listener), advice(-link->listener));
            return false;
        }
    }
    return true;
}

void cmd_link_close(struct cmd_link *link)
{
    if (link->listener >= 0) {
        unlink(link->opt->path);
        close(link->listener);
        link->listener = -1;
    }
}

static bool wait_client(struct cmd_link *link, struct zpipe *zp)
{
    struct pollfd pfd = { .fd = link->listener, .events = POLLIN };
    int sock, ret;

    for (;;) {
        if (cmd_poll(&pfd, 1, -1) < 0 && cmd_signal()) {
            return false;
        }
        sock = zpipe_accept(link->listener);
        if (sock == -EAGAIN || sock == -EINTR || sock == -ECONNABORTED) {
            continue;
        }
        if (sock < 0) {
            cmd_say("accept %s: %s", link->opt->path, strerror(-sock));
            return false;
        }
        ret = zpipe_attach(zp, sock, true);
        if (ret == 0) {
            return true;
        }
        cmd_say("%s: a client was not taken: %s", link->opt->path,
                strerror(-ret));
        if (ret != -ECONNRESET && ret != -ENOTCONN && ret != -EPIPE) {
            return false;
        }
    }
}

static bool dial(struct cmd_link *link, struct zpipe *zp)
{
    const struct cmd_options *opt = link->opt;
    int ret;

    for (;;) {
        ret = zpipe_connect(zp, opt->path);
        if (ret == 0) {
            return true;
        }
        if (opt->reconnect_ms < 0 ||
            (ret != -ENOENT && ret != -ECONNREFUSED && ret != -EAGAIN)) {
            cmd_say("connect %s: %s%s", opt->path, strerror(-ret),
                    advice(-ret));
            return false;
        }
        if (cmd_poll(NULL, 0, opt->reconnect_ms) < 0 && cmd_signal()) {
            return false;
        }
    }
}

bool cmd_link_attach(struct cmd_link *link, struct zpipe *zp)
{
    return link->listener >= 0 ? wait_client(link, zp) : dial(link, zp);
}

static int64_t now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1000LL + ts.tv_nsec / 1000000;
}

/* Without requests in flight zpipe_reap() only drives the handshake. */
static bool handshake(struct cmd_link *link, struct zpipe *zp)
{
    int64_t deadline = now_ms() + link->opt->timeout_ms;
    struct pollfd pfd = { .fd = zpipe_fd(zp), .events = POLLIN };

    for (;;) {
        int64_t left;

        zpipe_reap(zp);
        if (zpipe_state(zp) == ZPIPE_CONNECTED) {
            return true;
        }
        if (zpipe_state(zp) == ZPIPE_IDLE) {
            cmd_say("%s: %s", link->opt->path, zpipe_error(zp, NULL));
            return false;
        }
        left = deadline - now_ms();
        if (left <= 0) {
            cmd_say("%s: the peer did not finish the handshake within %d ms; "
                    "is it stopped, or serving another client?",
                    link->opt->path, link->opt->timeout_ms);
            zpipe_detach(zp);
            return false;
        }
        if (cmd_poll(&pfd, 1, left) < 0 && cmd_signal()) {
            return false;
        }
    }
}

bool cmd_link_join(struct cmd_link *link, struct zpipe *zp)
{
    for (;;) {
        if (!cmd_link_attach(link, zp)) {
            return false;
        }
        if (handshake(link, zp)) {
            return true;
        }
        if (cmd_signal() || link->listener < 0) {
            return false;
        }
    }
}

void cmd_link_refuse(struct cmd_link *link)
{
    int sock;

    while ((sock = zpipe_accept(link->listener)) >= 0) {
        zpipe_refuse(sock, "another client is connected");
    }
}

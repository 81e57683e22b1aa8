/*
 * zpipe: where the command's connections come from
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */

#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "zpipe-cmd.h"

/* Sent away in one turn. */
enum { CLIENTS_MAX = 8 };

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
    case EAGAIN:
        return "; others wait there already: try again, or use --reconnect=MS";
    case EBUSY:
        return "; the directory is locked by another program";
    case EACCES:
        return "; the socket or a directory before it is not ours: see the "
               "permissions";
    default:
        return "";
    }
}

static int64_t now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1000LL + ts.tv_nsec / 1000000;
}

bool cmd_link_open(struct cmd_link *link, const struct cmd_options *opt)
{
    struct stat st;

    *link = (struct cmd_link){ .opt = opt, .listener = -1 };
    if (opt->server) {
        link->listener = zpipe_listen(opt->path);
        if (link->listener < 0) {
            cmd_say("listen %s: %s%s", opt->path,
                    strerror(-link->listener), advice(-link->listener));
            return false;
        }
        if (!lstat(opt->path, &st)) {
            link->dev = st.st_dev;
            link->ino = st.st_ino;
        }
    }
    return true;
}

void cmd_link_close(struct cmd_link *link)
{
    struct stat st;

    if (link->listener >= 0) {
        /* no server replaces it while we listen, so look before that ends */
        if (!lstat(link->opt->path, &st) && st.st_dev == link->dev &&
            st.st_ino == link->ino) {
            unlink(link->opt->path);
        }
        close(link->listener);
        link->listener = -1;
    }
}

static bool wait_client(struct cmd_link *link, struct zpipe *zp)
{
    struct pollfd pfd = { .fd = link->listener, .events = POLLIN };
    int sock, ret;

    for (;;) {
        cmd_poll(&pfd, 1, -1);
        if (cmd_signal()) {
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

/* May another attempt go better? */
static bool may_pass(int error)
{
    return error == -ENOENT || error == -ECONNREFUSED || error == -EAGAIN ||
           error == -ECONNRESET || error == -EPIPE || error == -ETIMEDOUT;
}

/* A connection lives for some time, or the next attempt has to wait for it. */
static bool await_turn(struct cmd_link *link)
{
    int64_t left;

    while ((left = link->next_ms - now_ms()) > 0) {
        cmd_poll(NULL, 0, left < INT_MAX ? left : INT_MAX);
        if (cmd_signal()) {
            return false;
        }
    }
    link->next_ms = now_ms() + link->opt->reconnect_ms;
    return true;
}

static bool dial(struct cmd_link *link, struct zpipe *zp)
{
    const struct cmd_options *opt = link->opt;

    while (await_turn(link)) {
        int sock = zpipe_dial(opt->path);
        int ret = sock < 0 ? sock : zpipe_attach(zp, sock, false);

        if (ret == 0) {
            return true;
        }
        if (opt->reconnect_ms < 0 || !may_pass(ret)) {
            int code;
            const char *why = zpipe_error(zp, &code);

            cmd_say("connect %s: %s%s", opt->path,
                    sock >= 0 && code == ret ? why : strerror(-ret),
                    sock >= 0 ? "" : advice(-ret));
            return false;
        }
        if (sock >= 0) {
            cmd_link_say_failed(link, zp);
        }
    }
    return false;
}

bool cmd_link_attach(struct cmd_link *link, struct zpipe *zp)
{
    return link->listener >= 0 ? wait_client(link, zp) : dial(link, zp);
}

void cmd_link_say_failed(struct cmd_link *link, const struct zpipe *zp)
{
    char text[sizeof(link->said)];
    const char *why;
    int code;

    why = zpipe_error(zp, &code);
    if (code == -ETIMEDOUT) {
        snprintf(text, sizeof(text), "%s within %u ms; is it stopped, or "
                 "serving another client?", why,
                 link->opt->config.handshake_ms);
    } else {
        snprintf(text, sizeof(text), "%s", why);
    }
    if (strcmp(text, link->said)) {
        cmd_say("%s: %s", link->opt->path, text);
        strcpy(link->said, text);
    }
}

static uint64_t connects(const struct zpipe *zp)
{
    struct zpipe_stats stats;

    zpipe_get_stats(zp, &stats);
    return stats.connects;
}

/*
 * Without requests in flight zpipe_reap() only drives the handshake.  The
 * library ends one that takes too long.  A peer that has left already, after
 * it, may have left something to read.
 */
static bool handshake(struct cmd_link *link, struct zpipe *zp)
{
    struct pollfd pfd = { .fd = zpipe_fd(zp), .events = POLLIN };
    uint64_t before = connects(zp);

    while (!cmd_signal()) {
        zpipe_reap(zp);
        if (connects(zp) != before) {
            return true;
        }
        if (zpipe_state(zp) == ZPIPE_IDLE) {
            cmd_link_say_failed(link, zp);
            return false;
        }
        cmd_poll(&pfd, 1, -1);
    }
    return false;
}

bool cmd_link_join(struct cmd_link *link, struct zpipe *zp)
{
    int code;

    do {
        if (!cmd_link_attach(link, zp)) {
            return false;
        }
        if (handshake(link, zp)) {
            link->said[0] = 0;
            return true;
        }
        zpipe_error(zp, &code);
    } while (!cmd_signal() && (link->listener >= 0 ||
                               (link->opt->reconnect_ms >= 0 &&
                                may_pass(code))));
    return false;
}

void cmd_link_refuse(struct cmd_link *link)
{
    for (int i = 0; i < CLIENTS_MAX; i++) {
        int sock = zpipe_accept(link->listener);

        if (sock < 0) {
            return;
        }
        zpipe_refuse(sock, "another client is connected");
    }
}

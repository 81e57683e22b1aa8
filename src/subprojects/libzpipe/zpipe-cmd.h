/*
 * zpipe: the command's own parts
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */

#ifndef ZPIPE_CMD_H
#define ZPIPE_CMD_H

#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <zpipe.h>

/** Exit codes; see zpipe.1. */
enum { CMD_OK = 0, CMD_FAILED = 1, CMD_USAGE = 2 };

/**
 * struct cmd_options: the command line
 * @path: of the socket
 * @config: for zpipe_new()
 * @server: listen, do not connect
 * @keep: serve the next client after this one
 * @view: look at what comes instead of having it copied
 * @send_only: leave when all of the input was taken
 * @receive_only: do not read the input
 * @verbose, @quiet, @json: what to print
 * @reconnect_ms: time between attempts to connect; -1: one attempt
 * @timeout_ms: for the handshake
 */
struct cmd_options {
    const char *path;
    struct zpipe_config config;
    bool server, keep, view, send_only, receive_only;
    bool verbose, quiet, json;
    int reconnect_ms;
    int timeout_ms;
};

/** Print "zpipe: ..." to standard error. */
void cmd_say(const char *format, ...) __attribute__((format(printf, 1, 2)));

/** The number of a signal that asks us to end, or 0. */
int cmd_signal(void);

/** End as if by that signal. */
void cmd_die_by(int signal) __attribute__((noreturn));

/**
 * cmd_poll: poll() that a signal can interrupt
 *
 * SIGINT, SIGTERM and SIGHUP are blocked everywhere else.  Returns as poll().
 */
int cmd_poll(struct pollfd *fds, unsigned count, int timeout_ms);

/** Read "64K", "1M"; false if it is no such number. */
bool cmd_parse_size(const char *text, uint64_t *value);

/* ----------------------------------------------------------- the connection */

/**
 * struct cmd_link: where connections come from
 * @listener: the listening socket, or -1
 */
struct cmd_link {
    const struct cmd_options *opt;
    int listener;
};

/** Prepare; false after saying why not. */
bool cmd_link_open(struct cmd_link *link, const struct cmd_options *opt);
void cmd_link_close(struct cmd_link *link);

/**
 * cmd_link_attach: get a connection for a handle and begin the handshake
 *
 * Waits for a client, or tries again where --reconnect says so.  False after
 * saying why not, or when a signal came.
 */
bool cmd_link_attach(struct cmd_link *link, struct zpipe *zp);

/**
 * cmd_link_join: attach, and finish the handshake
 *
 * A server waits for the next client when the handshake of one fails.
 */
bool cmd_link_join(struct cmd_link *link, struct zpipe *zp);

/** Send away all who want to connect now. */
void cmd_link_refuse(struct cmd_link *link);

/* ---------------------------------------------------------------- the parts */

int cmd_join(const struct cmd_options *opt);
int cmd_info(const struct cmd_options *opt);
int cmd_bench(int argc, char **argv);

/** Print a handle's statistics to standard error. */
void cmd_print_stats(const struct zpipe *zp);

#endif

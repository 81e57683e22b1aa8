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
 */
struct cmd_options {
    const char *path;
    struct zpipe_config config;
    bool server, keep, view, send_only, receive_only;
    bool verbose, quiet, json;
    int reconnect_ms;
};

/** Print "zpipe: ..." to standard error, not with --quiet: what went wrong. */
void cmd_say(const char *format, ...) __attribute__((format(printf, 1, 2)));

/** The same with --quiet, too: what --verbose asks for. */
void cmd_tell(const char *format, ...) __attribute__((format(printf, 1, 2)));

/** Write out what was printed to standard output; false if that failed. */
bool cmd_flush(void);

/**
 * cmd_finish: end what was printed to standard output
 *
 * Returns @code; after saying why it could not be written, CMD_FAILED.
 */
int cmd_finish(int code);

/**
 * cmd_signal: the number of a signal that asks us to end, or 0
 *
 * A system call.  Ask after each step of work, not only when cmd_poll() was
 * interrupted: it is not while descriptors are ready.
 */
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

/** Can it be the path of a socket?  False after saying why not. */
bool cmd_path_good(const char *path);

/* ----------------------------------------------------------- the connection */

/**
 * struct cmd_link: where connections come from
 * @listener: the listening socket, or -1
 * @dev, @ino: its file
 * @next_ms: when the next attempt to connect may begin
 * @said: the last reason for which an attempt failed
 */
struct cmd_link {
    const struct cmd_options *opt;
    int listener;
    dev_t dev;
    ino_t ino;
    int64_t next_ms;
    char said[512];
};

/** Prepare; false after saying why not. */
bool cmd_link_open(struct cmd_link *link, const struct cmd_options *opt);
/** Remove the socket, if its file is still ours. */
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
 * A server waits for the next client when the handshake of one fails; a client
 * tries again where --reconnect says so.
 */
bool cmd_link_join(struct cmd_link *link, struct zpipe *zp);

/** Say why the handshake has failed, the same once. */
void cmd_link_say_failed(struct cmd_link *link, const struct zpipe *zp);

/** Send away who wants to connect now, some at a time. */
void cmd_link_refuse(struct cmd_link *link);

/* ---------------------------------------------------------------- the parts */

int cmd_join(const struct cmd_options *opt);
int cmd_info(const struct cmd_options *opt);
int cmd_bench(int argc, char **argv);

/** Print a handle's statistics to standard error. */
void cmd_print_stats(const struct zpipe *zp);

#endif

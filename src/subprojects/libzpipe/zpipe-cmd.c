/*
 * zpipe: join standard input and output to a zpipe, and more
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Here: the command line, signals, messages.
 */

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>
#include "zpipe-cmd.h"

enum {
    OPT_CMA = 256, OPT_VIEW, OPT_KEEP, OPT_RECONNECT, OPT_JSON,
    OPT_TIMEOUT, OPT_NO_DUMP,
};

/* Which subcommand knows an option. */
enum { LISTEN = 1, CONNECT = 2, INFO = 4, JOIN = LISTEN | CONNECT };

static const struct {
    const char *name;
    int letter;
    const char *arg;
    unsigned where;
    const char *text;
} option_table[] = {
    { "mechanism", 'm', "NAME", JOIN,
      "auto (default), inline, copy, direct or map: how to send" },
    { "ring-size", 'b', "SIZE", JOIN | INFO,
      "memory for copies, a power of two (64K to 64M; default 1M)" },
    { "cma", OPT_CMA, NULL, JOIN | INFO,
      "let the peer read and write our buffers, and do so with its" },
    { "view", OPT_VIEW, NULL, JOIN,
      "write out straight from the peer's memory where possible" },
    { "send-only", 's', NULL, JOIN,
      "leave when all of the input was taken by the peer" },
    { "receive-only", 'r', NULL, JOIN, "do not read standard input" },
    { "keep", 'k', NULL, LISTEN, "serve the next client after this one" },
    { "reconnect", OPT_RECONNECT, "MS", JOIN,
      "when the connection is lost go on with the same stream; connect\n"
      "tries every MS milliseconds (1 or more), also at the start" },
    { "timeout", OPT_TIMEOUT, "MS", JOIN | INFO,
      "limit for a handshake, in milliseconds (default 10000)" },
    { "non-dumpable", OPT_NO_DUMP, NULL, JOIN | INFO,
      "forbid other processes to read our memory (prctl)" },
    { "json", OPT_JSON, NULL, INFO, "print JSON" },
    { "verbose", 'v', NULL, JOIN, "print statistics at the end" },
    { "quiet", 'q', NULL, JOIN | INFO, "print no errors" },
    { "help", 'h', NULL, JOIN | INFO, "this text" },
};
enum { OPTIONS = sizeof(option_table) / sizeof(option_table[0]) };

static const char usage_text[] =
    "usage: zpipe listen [OPTION...] PATH     wait for a peer at a socket\n"
    "       zpipe connect [OPTION...] PATH    connect to one that waits\n"
    "       zpipe info [OPTION...] PATH       connect, tell what was "
    "negotiated, leave\n"
    "       zpipe bench [OPTION...]           measure; see zpipe bench --help\n"
    "       zpipe --version | --help\n"
    "\n"
    "listen and connect send standard input to the peer and write what it "
    "sends to\n"
    "standard output.  The end of the input ends this direction; they leave "
    "when both\n"
    "directions have ended.  See zpipe(1).\n";

static bool quiet;
static int output_error;         /* an errno value */
static sigset_t old_mask, end_mask;
static volatile sig_atomic_t caught;

static const int end_signals[] = { SIGINT, SIGTERM, SIGHUP };
enum { END_SIGNALS = sizeof(end_signals) / sizeof(end_signals[0]) };

static void print_message(const char *format, va_list args)
{
    fputs("zpipe: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
}

void cmd_say(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    if (!quiet) {
        print_message(format, args);
    }
    va_end(args);
}

void cmd_tell(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    print_message(format, args);
    va_end(args);
}

/* A failed fflush() may throw its bytes away: the next one has no error. */
bool cmd_flush(void)
{
    errno = 0;
    if ((fflush(stdout) || ferror(stdout)) && !output_error) {
        output_error = errno ? errno : EIO;
    }
    return !output_error;
}

int cmd_finish(int code)
{
    if (!cmd_flush()) {
        cmd_say("standard output: %s", strerror(output_error));
        return CMD_FAILED;
    }
    return code;
}

static void catch(int number)
{
    caught = number;
}

static void catch_signals(void)
{
    struct sigaction action = { .sa_handler = catch };

    sigprocmask(SIG_BLOCK, NULL, &old_mask);
    sigemptyset(&end_mask);
    for (int i = 0; i < END_SIGNALS; i++) {
        struct sigaction old;

        sigaction(end_signals[i], NULL, &old);
        if (old.sa_handler == SIG_IGN ||
            sigismember(&old_mask, end_signals[i])) {
            continue;           /* nohup, or a shell's background job */
        }
        sigaction(end_signals[i], &action, NULL);
        sigaddset(&end_mask, end_signals[i]);
    }
    sigprocmask(SIG_BLOCK, &end_mask, NULL);
    signal(SIGPIPE, SIG_IGN);
}

/* ppoll() lets none in while descriptors are ready: so look for those, too. */
int cmd_signal(void)
{
    sigset_t pending;

    if (caught || sigpending(&pending)) {
        return caught;
    }
    for (int i = 0; i < END_SIGNALS; i++) {
        if (sigismember(&end_mask, end_signals[i]) &&
            sigismember(&pending, end_signals[i])) {
            caught = end_signals[i];
        }
    }
    return caught;
}

void cmd_die_by(int number)
{
    sigset_t mask;

    signal(number, SIG_DFL);
    sigemptyset(&mask);
    sigaddset(&mask, number);
    sigprocmask(SIG_UNBLOCK, &mask, NULL);
    raise(number);
    _exit(128 + number);
}

int cmd_poll(struct pollfd *fds, unsigned count, int timeout_ms)
{
    struct timespec limit = {
        .tv_sec = timeout_ms / 1000,
        .tv_nsec = timeout_ms % 1000 * 1000000L,
    };

    return ppoll(fds, count, timeout_ms < 0 ? NULL : &limit, &old_mask);
}

bool cmd_parse_size(const char *text, uint64_t *value)
{
    static const char units[] = "KMG";
    char *end;
    const char *unit;
    int shift = 0;

    errno = 0;
    *value = strtoull(text, &end, 10);
    if (errno || end == text || *text == '-') {
        return false;
    }
    if (*end) {
        unit = strchr(units, *end & ~0x20);
        if (!unit || !*unit || end[1]) {
            return false;
        }
        shift = 10 * (unit - units + 1);
    }
    if (*value > UINT64_MAX >> shift) {
        return false;
    }
    *value <<= shift;
    return true;
}

bool cmd_path_good(const char *path)
{
    size_t len = strlen(path);

    if (!len || len > ZPIPE_PATH_MAX) {
        cmd_say("path '%s': the path of a socket has 1 to %d bytes, this one "
                "has %zu", path, ZPIPE_PATH_MAX, len);
        return false;
    }
    return true;
}

static void print_help(unsigned where)
{
    fputs(usage_text, stdout);
    fputs("\noptions:\n", stdout);
    for (int i = 0; i < OPTIONS; i++) {
        const char *text = option_table[i].text, *line;
        char left[40];

        if (!text || !(option_table[i].where & where)) {
            continue;
        }
        snprintf(left, sizeof(left), "%c%c%s--%s%s%s",
                 option_table[i].letter < 256 ? '-' : ' ',
                 option_table[i].letter < 256 ? option_table[i].letter : ' ',
                 option_table[i].letter < 256 ? ", " : "  ",
                 option_table[i].name, option_table[i].arg ? "=" : "",
                 option_table[i].arg ?: "");
        while ((line = strchr(text, '\n'))) {
            printf("  %-22s %.*s\n", left, (int)(line - text), text);
            left[0] = 0;
            text = line + 1;
        }
        printf("  %-22s %s\n", left, text);
    }
    fputs("\nexit status: 0 all was sent and received; 1 it was not; 2 usage\n",
          stdout);
}

static bool number_option(const char *name, uint64_t most, uint64_t *value)
{
    char *end;

    errno = 0;
    *value = strtoull(optarg, &end, 10);
    if (errno || end == optarg || *end || *optarg == '-' || !*value ||
        *value > most) {
        cmd_say("--%s=%s: must be a number from 1 to %llu", name, optarg,
                (unsigned long long)most);
        return false;
    }
    return true;
}

static bool ring_option(struct cmd_options *opt)
{
    uint64_t value;

    if (!cmd_parse_size(optarg, &value) || value < ZPIPE_RING_BYTES_MIN ||
        value > ZPIPE_RING_BYTES_MAX || (value & (value - 1))) {
        cmd_say("--ring-size=%s: must be a power of two from %uK to %uM",
                optarg, ZPIPE_RING_BYTES_MIN >> 10,
                ZPIPE_RING_BYTES_MAX >> 20);
        return false;
    }
    opt->config.ring_bytes = value;
    return true;
}

static bool mechanism_option(struct cmd_options *opt)
{
    int value = zpipe_mechanism_parse(optarg);

    if (value < 0 || value == ZPIPE_DMA) {
        cmd_say("--mechanism=%s: must be auto, inline, copy, direct or map",
                optarg);
        return false;
    }
    opt->config.mechanism = value;
    return true;
}

/* Returns false when the option's value is wrong, and says so. */
static bool take_option(struct cmd_options *opt, int letter)
{
    uint64_t value;

    switch (letter) {
    case 'm':
        return mechanism_option(opt);
    case 'b':
        return ring_option(opt);
    case OPT_CMA:
        opt->config.flags |= ZPIPE_CMA;
        return true;
    case OPT_VIEW:
        opt->view = true;
        return true;
    case 's':
        opt->send_only = true;
        return true;
    case 'r':
        opt->receive_only = true;
        return true;
    case 'k':
        opt->keep = true;
        return true;
    case OPT_RECONNECT:
        if (!number_option("reconnect", INT_MAX, &value)) {
            return false;
        }
        opt->reconnect_ms = value;
        opt->config.flags |= ZPIPE_PERSISTENT;
        return true;
    case OPT_TIMEOUT:
        if (!number_option("timeout", INT_MAX, &value)) {
            return false;
        }
        opt->config.handshake_ms = value;
        return true;
    case OPT_NO_DUMP:
        if (prctl(PR_SET_DUMPABLE, 0)) {
            cmd_say("--non-dumpable: %s", strerror(errno));
            return false;
        }
        return true;
    case OPT_JSON:
        opt->json = true;
        return true;
    case 'v':
        opt->verbose = true;
        return true;
    case 'q':
        opt->quiet = quiet = true;
        return true;
    }
    return false;
}

/* Returns -1 to go on, else the exit code. */
static int parse(struct cmd_options *opt, unsigned where, int argc,
                 char **argv)
{
    struct option longs[OPTIONS + 1] = { { 0 } };
    char shorts[3 * OPTIONS + 1] = "";
    int letter, n = 0;

    for (int i = 0; i < OPTIONS; i++) {
        if (!(option_table[i].where & where)) {
            continue;
        }
        longs[n++] = (struct option){
            option_table[i].name,
            option_table[i].arg ? required_argument : no_argument,
            NULL, option_table[i].letter,
        };
        if (option_table[i].letter < 256) {
            snprintf(shorts + strlen(shorts), 3, "%c%s",
                     option_table[i].letter, option_table[i].arg ? ":" : "");
        }
    }
    while ((letter = getopt_long(argc, argv, shorts, longs, NULL)) != -1) {
        if (letter == 'h') {
            print_help(where);
            return cmd_finish(CMD_OK);
        }
        if (letter == '?' || !take_option(opt, letter)) {
            cmd_say("try zpipe %s --help", argv[0]);
            return CMD_USAGE;
        }
    }
    if (argc - optind != 1) {
        cmd_say("%s: name one PATH; try zpipe %s --help", argv[0], argv[0]);
        return CMD_USAGE;
    }
    if (opt->send_only && opt->receive_only) {
        cmd_say("--send-only and --receive-only exclude each other");
        return CMD_USAGE;
    }
    if (opt->keep && opt->reconnect_ms >= 0) {
        cmd_say("--keep and --reconnect exclude each other: a client is "
                "either the next one or the old one again");
        return CMD_USAGE;
    }
    opt->path = argv[optind];
    return cmd_path_good(opt->path) ? -1 : CMD_USAGE;
}

/*
 * Standard descriptors that the caller has closed would be given to a socket,
 * and what is meant for stderr sent through it.
 */
static bool fill_standard_fds(void)
{
    int fd;

    do {
        fd = open("/dev/null", O_RDWR);
    } while (fd >= 0 && fd <= STDERR_FILENO);
    return fd >= 0 && !close(fd);
}

int main(int argc, char **argv)
{
    struct cmd_options opt = {
        .config = { .size = sizeof(opt.config), .handshake_ms = 10000 },
        .reconnect_ms = -1,
    };
    const char *verb = argc > 1 ? argv[1] : "";
    unsigned where;
    int code;

    if (!fill_standard_fds()) {
        return CMD_FAILED;
    }
    if (!strcmp(verb, "--help") || !strcmp(verb, "-h") ||
        !strcmp(verb, "help")) {
        print_help(JOIN | INFO);
        return cmd_finish(CMD_OK);
    }
    if (!strcmp(verb, "--version") || !strcmp(verb, "-V")) {
        printf("zpipe %s\n", zpipe_version());
        return cmd_finish(CMD_OK);
    }
    if (!strcmp(verb, "bench")) {
        return cmd_bench(argc - 1, argv + 1);
    }
    where = !strcmp(verb, "listen") ? LISTEN :
            !strcmp(verb, "connect") ? CONNECT :
            !strcmp(verb, "info") ? INFO : 0;
    if (!where) {
        cmd_say(*verb ? "there is no command \"%s\"" : "name a command%s",
                verb);
        fputs(usage_text, stderr);
        return CMD_USAGE;
    }
    opt.server = where == LISTEN;
    code = parse(&opt, where, argc - 1, argv + 1);
    if (code >= 0) {
        return code;
    }
    catch_signals();
    return where == INFO ? cmd_info(&opt) : cmd_join(&opt);
}

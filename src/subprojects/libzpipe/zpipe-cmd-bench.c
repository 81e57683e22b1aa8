/*
 * zpipe bench: compare a zpipe with a socket, a pipe and memcpy()
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * All ways take turns in each repetition, so that what else the machine does
 * meets all of them; the median of the repetitions counts.
 */

#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "zpipe-cmd.h"
#include "zpipe-cmd-bench.h"

enum { SIZES_MAX = 32, WAYS_MAX = 32, REPEATS_MAX = 99 };

static const uint64_t cold_set = 64ull << 20;

static const struct bench_way throughput_ways[] = {
    { "memcpy", BENCH_MEMCPY },
    { "pipe", BENCH_PIPE },
    { "socket", BENCH_SOCKET },
    { "copy", BENCH_ZPIPE, ZPIPE_COPY },
    { "push", BENCH_ZPIPE, ZPIPE_DIRECT, .read_first = true },
    { "pull", BENCH_ZPIPE, ZPIPE_DIRECT, ZPIPE_READS_PRIVATE, .region = true },
    { "cma-push", BENCH_ZPIPE, ZPIPE_DIRECT, ZPIPE_CMA, .read_first = true },
    { "cma-pull", BENCH_ZPIPE, ZPIPE_DIRECT,
      ZPIPE_CMA_USE | ZPIPE_CMA_EXPOSE_READ | ZPIPE_READS_PRIVATE },
    { "map", BENCH_ZPIPE, ZPIPE_MAP, .region = true, .view = true },
    { "auto", BENCH_ZPIPE, ZPIPE_AUTO, .read_first = true, .region = true },
    { "socket-touch", BENCH_SOCKET, .touch = true },
    { "map-touch", BENCH_ZPIPE, ZPIPE_MAP, .region = true, .view = true,
      .touch = true },
};

static const struct bench_way pingpong_ways[] = {
    { "pipe", BENCH_PIPE },
    { "socket", BENCH_SOCKET },
    { "sleep", BENCH_ZPIPE, .no_spin = true },
    { "socket-2", BENCH_SOCKET, .apart = true },
    { "sleep-2", BENCH_ZPIPE, .no_spin = true, .apart = true },
    { "spin-2", BENCH_ZPIPE, .spin_ns = 50000, .apart = true },
    { "poll-2", BENCH_ZPIPE, .poll = true, .no_spin = true, .apart = true },
};

static const char help_text[] =
    "usage: zpipe bench [OPTION...]\n"
    "       zpipe bench sink|source WAY PATH EVERY COUNT\n"
    "\n"
    "Measures throughput and round trips between two processes, each way in "
    "turn.\n"
    "\n"
    "  --tests=LIST     throughput,pingpong (default: both)\n"
    "  --sets=LIST      hot,cold: small buffers, or 64 MiB each side (both)\n"
    "  --sizes=LIST     of messages (64,1K,4K,16K,64K,256K,1M,4M)\n"
    "  --ways=LIST      memcpy,pipe,socket,copy,push,pull,cma-push,cma-pull,"
    "map,auto,\n"
    "                   socket-touch,map-touch; ping-pong: pipe,socket,sleep,"
    "socket-2,\n"
    "                   sleep-2,spin-2,poll-2 (-2: on two processors)\n"
    "  --repeats=N      median of so many (5)\n"
    "  --ms=N           length of a sample after the warm-up (60)\n"
    "  --rounds=N       ping-pong: so many round trips instead\n"
    "  --json           a line of JSON for each sample instead of a table\n"
    "\n"
    "push, pull: one copy, by the writer or by the reader; cma-: by "
    "process_vm_writev()\n"
    "and process_vm_readv(); map: the reader looks, -touch: and reads every "
    "byte.\n"
    "\n"
    "sink and source connect to a program and print, each EVERY bytes (up to "
    "1024G) and\n"
    "COUNT times (up to 1M), the processor time they have used; WAY: socket, "
    "copy,\n"
    "direct, map; socket-touch and map-touch read every byte.\n";

struct plan {
    const char *tests, *sets, *ways;
    uint64_t sizes[SIZES_MAX];
    unsigned nsizes, repeats, ms;
    uint64_t rounds;
    bool json;
};

/* A row of the table: one size, all ways. */
struct row {
    const char *test, *set;
    uint64_t size, set_bytes;
    const struct bench_way *ways;
    unsigned nways;
    double values[WAYS_MAX][REPEATS_MAX];
};

static bool in_list(const char *list, const char *name)
{
    size_t len = strlen(name);

    if (!list) {
        return true;
    }
    for (const char *at = list; (at = strstr(at, name)); at += len) {
        if ((at == list || at[-1] == ',') && (!at[len] || at[len] == ',')) {
            return true;
        }
    }
    return false;
}

/* Each name of a list must be one that we know. */
static bool list_known(const char *option, const char *list,
                       const char *const *names)
{
    char *copy = strdup(list), *rest = copy, *name;
    bool good = true;

    while (good && (name = strsep(&rest, ","))) {
        int i;

        for (i = 0; names[i] && strcmp(names[i], name); i++) {
            /* look for it */
        }
        if (!names[i]) {
            cmd_say("bench: --%s: there is no \"%s\"; see zpipe bench --help",
                    option, name);
            good = false;
        }
    }
    free(copy);
    return good;
}

static bool parse_sizes(struct plan *plan, const char *list)
{
    char *copy = strdup(list), *rest = copy, *text;

    plan->nsizes = 0;
    while ((text = strsep(&rest, ","))) {
        uint64_t *size = &plan->sizes[plan->nsizes];

        if (plan->nsizes == SIZES_MAX || !cmd_parse_size(text, size) ||
            !*size || *size > 32u << 20) {
            cmd_say("bench: --sizes: \"%s\" must be 1 to 32M, and the list "
                    "have at most %d", text, SIZES_MAX);
            free(copy);
            return false;
        }
        plan->nsizes++;
    }
    free(copy);
    return true;
}

bool bench_parse_count(const char *name, const char *text, uint64_t most,
                       uint64_t *value)
{
    if (!cmd_parse_size(text, value) || !*value || *value > most) {
        cmd_say("bench: %s=%s: must be 1 to %" PRIu64, name, text, most);
        return false;
    }
    return true;
}

static bool print_sample(const struct row *row, const struct bench_way *way,
                         unsigned turn, const struct bench_result *res)
{
    printf("{\"test\": \"%s\", \"set\": \"%s\", \"size\": %" PRIu64
           ", \"way\": \"%s\", \"turn\": %u, \"seconds\": %.6f, "
           "\"count\": %.0f, \"cpu_ns\": %.4f, \"kicks\": %" PRIu64
           ", \"wakeups\": %" PRIu64, row->test, row->set, row->size,
           way->name, turn, res->seconds, res->count, res->cpu_ns, res->kicks,
           res->wakeups);
    for (int i = 0; i < ZPIPE_MECHANISMS; i++) {
        if (res->mechanism_bytes[i]) {
            printf(", \"%s\": %" PRIu64, zpipe_mechanism_name(i),
                   res->mechanism_bytes[i]);
        }
    }
    printf("}\n");
    return cmd_flush();
}

/* GiB/s, or us for each round trip. */
static double value_of(const struct row *row, const struct bench_result *res)
{
    return strcmp(row->test, "pingpong") ?
           res->count / res->seconds / (1 << 30) :
           res->seconds / res->count * 1e6;
}

static bool measure_row(const struct plan *plan, struct row *row,
                        unsigned turn)
{
    bool ping = !strcmp(row->test, "pingpong");

    for (unsigned i = 0; i < row->nways; i++) {
        struct bench_case what = {
            .way = &row->ways[i], .size = row->size, .set = row->set_bytes,
            .ms = plan->ms, .rounds = ping ? plan->rounds : 0,
        };
        struct bench_result res;

        if (!in_list(plan->ways, what.way->name)) {
            continue;
        }
        if (!(ping ? bench_pingpong : bench_throughput)(&what, &res)) {
            return false;
        }
        row->values[i][turn] = value_of(row, &res);
        if (plan->json && !print_sample(row, what.way, turn, &res)) {
            return false;
        }
    }
    return true;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static void print_head(const struct plan *plan, const struct row *row)
{
    printf("\n%s\n%-10s", strcmp(row->test, "pingpong") ?
           "throughput, GiB/s" : "round trip, us", "");
    for (unsigned i = 0; i < row->nways; i++) {
        if (in_list(plan->ways, row->ways[i].name)) {
            printf(" %9.9s", row->ways[i].name);
        }
    }
    putchar('\n');
}

static void print_row(const struct plan *plan, struct row *row)
{
    printf("%-4s%6" PRIu64, row->set, row->size);
    for (unsigned i = 0; i < row->nways; i++) {
        if (in_list(plan->ways, row->ways[i].name)) {
            qsort(row->values[i], plan->repeats, sizeof(double), by_value);
            printf(" %9.2f", row->values[i][plan->repeats / 2]);
        }
    }
    putchar('\n');
    cmd_flush();
}

static struct row *add_row(struct row *row, const char *test, const char *set,
                           uint64_t size)
{
    bool ping = !strcmp(test, "pingpong");

    row->test = test;
    row->set = set;
    row->size = size;
    row->set_bytes = strcmp(set, "cold") ? 0 : cold_set;
    row->ways = ping ? pingpong_ways : throughput_ways;
    row->nways = ping ? sizeof(pingpong_ways) / sizeof(pingpong_ways[0]) :
                 sizeof(throughput_ways) / sizeof(throughput_ways[0]);
    return row + 1;
}

static struct row *add_rows(const struct plan *plan, struct row *end)
{
    static const char *const sets[] = { "hot", "cold" };

    if (in_list(plan->tests, "pingpong")) {
        end = add_row(end, "pingpong", "", 64);
    }
    for (int s = 0; s < 2 && in_list(plan->tests, "throughput"); s++) {
        for (unsigned i = 0; i < plan->nsizes && in_list(plan->sets, sets[s]);
             i++) {
            end = add_row(end, "throughput", sets[s], plan->sizes[i]);
        }
    }
    return end;
}

static int run_plan(const struct plan *plan)
{
    struct row *rows = calloc(2 * SIZES_MAX + 1, sizeof(*rows)), *end;
    int code = CMD_OK;

    if (!rows) {
        return CMD_FAILED;
    }
    end = add_rows(plan, rows);
    for (unsigned turn = 0; turn < plan->repeats && code == CMD_OK; turn++) {
        for (struct row *row = rows; row < end && code == CMD_OK; row++) {
            if (isatty(STDERR_FILENO)) {
                fprintf(stderr, "\r%u of %u: %s %s %" PRIu64 "    ", turn + 1,
                        plan->repeats, row->test, row->set, row->size);
            }
            code = measure_row(plan, row, turn) ? CMD_OK : CMD_FAILED;
        }
    }
    if (isatty(STDERR_FILENO)) {
        fputs("\r                                                  \r",
              stderr);
    }
    for (struct row *row = rows; row < end && !plan->json && code == CMD_OK;
         row++) {
        if (row == rows || row->test != row[-1].test) {
            print_head(plan, row);
        }
        print_row(plan, row);
    }
    free(rows);
    return code;
}

static const char *const known_tests[] = { "throughput", "pingpong", NULL };
static const char *const known_sets[] = { "hot", "cold", NULL };

static bool ways_known(const char *list)
{
    enum { THROUGHPUT = sizeof(throughput_ways) / sizeof(throughput_ways[0]),
           PINGPONG = sizeof(pingpong_ways) / sizeof(pingpong_ways[0]) };
    const char *names[THROUGHPUT + PINGPONG + 1] = { NULL };
    int n = 0;

    for (int i = 0; i < THROUGHPUT; i++) {
        names[n++] = throughput_ways[i].name;
    }
    for (int i = 0; i < PINGPONG; i++) {
        names[n++] = pingpong_ways[i].name;
    }
    return list_known("ways", list, names);
}

static bool take_option(struct plan *plan, int letter)
{
    uint64_t value = 0;
    bool good;

    switch (letter) {
    case 't':
        plan->tests = optarg;
        return list_known("tests", optarg, known_tests);
    case 'e':
        plan->sets = optarg;
        return list_known("sets", optarg, known_sets);
    case 's':
        return parse_sizes(plan, optarg);
    case 'w':
        plan->ways = optarg;
        return ways_known(optarg);
    case 'r':
        good = bench_parse_count("--repeats", optarg, REPEATS_MAX, &value);
        plan->repeats = value;
        return good;
    case 'm':
        good = bench_parse_count("--ms", optarg, 10000, &value);
        plan->ms = value;
        return good;
    case 'n':
        return bench_parse_count("--rounds", optarg, 500000,
                                 &plan->rounds);
    case 'j':
        plan->json = true;
        return true;
    default:
        return false;
    }
}

int cmd_bench(int argc, char **argv)
{
    static const struct option longs[] = {
        { "tests", required_argument, NULL, 't' },
        { "sets", required_argument, NULL, 'e' },
        { "sizes", required_argument, NULL, 's' },
        { "ways", required_argument, NULL, 'w' },
        { "repeats", required_argument, NULL, 'r' },
        { "ms", required_argument, NULL, 'm' },
        { "rounds", required_argument, NULL, 'n' },
        { "json", no_argument, NULL, 'j' },
        { "help", no_argument, NULL, 'h' },
        { 0 }
    };
    struct plan plan = { .repeats = 5, .ms = 60 };
    int letter;

    /* a writer whose reader has enough still has to say what it has used */
    signal(SIGPIPE, SIG_IGN);
    if (argc > 1 && (!strcmp(argv[1], "sink") || !strcmp(argv[1], "source"))) {
        return bench_peer(argc - 1, argv + 1);
    }
    parse_sizes(&plan, "64,1K,4K,16K,64K,256K,1M,4M");
    while ((letter = getopt_long(argc, argv, "h", longs, NULL)) != -1) {
        if (letter == 'h') {
            fputs(help_text, stdout);
            return cmd_finish(CMD_OK);
        }
        if (!take_option(&plan, letter)) {
            return CMD_USAGE;
        }
    }
    if (optind != argc) {
        cmd_say("bench: there is no test \"%s\"; see zpipe bench --help",
                argv[optind]);
        return CMD_USAGE;
    }
    return cmd_finish(run_plan(&plan));
}

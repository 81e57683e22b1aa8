/*
 * zpipe info: what was negotiated; and statistics for the other commands
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include "zpipe-cmd.h"

static const char *yes(bool value)
{
    return value ? "yes" : "no";
}

static const char *truth(bool value)
{
    return value ? "true" : "false";
}

static const char *cma_reason(const struct zpipe_info *info, bool asked)
{
    if (info->cma_error) {
        return strerror(info->cma_error);
    }
    return info->cma_read || info->cma_write ? "proven" :
           asked ? "the peer did not offer it" : "not asked for (--cma)";
}

static void print_text(const struct zpipe_info *info, bool asked)
{
    printf("protocol version  %" PRIu32 "\n", info->version);
    printf("peer              %s%d\n", info->peer_pid ? "process " :
           "in another process namespace, ", info->peer_pid);
    printf("ring memory       ours %" PRIu32 " KiB, the peer's %" PRIu32
           " KiB\n", info->ring_bytes >> 10, info->peer_ring_bytes >> 10);
    printf("cross-memory      we read: %s, we write: %s, the peer reads: %s "
           "(%s)\n", yes(info->cma_read), yes(info->cma_write),
           yes(info->peer_cma_read), cma_reason(info, asked));
    printf("stream positions  sent %" PRIu64 ", received %" PRIu64 "%s\n",
           info->tx_offset, info->rx_offset,
           info->resumed ? ", an old session" : "");
}

static void print_json(const struct zpipe_info *info, bool asked)
{
    printf("{\"library\": \"%s\", \"version\": %" PRIu32
           ", \"peer-pid\": %d,\n \"ring-bytes\": %" PRIu32
           ", \"peer-ring-bytes\": %" PRIu32 ",\n", zpipe_version(),
           info->version, info->peer_pid, info->ring_bytes,
           info->peer_ring_bytes);
    printf(" \"cma-read\": %s, \"cma-write\": %s, \"peer-cma-read\": %s, "
           "\"cma-error\": %d, \"cma-reason\": \"%s\",\n",
           truth(info->cma_read), truth(info->cma_write),
           truth(info->peer_cma_read), info->cma_error,
           cma_reason(info, asked));
    printf(" \"resumed\": %s, \"tx-offset\": %" PRIu64 ", \"rx-offset\": %"
           PRIu64 "}\n", truth(info->resumed), info->tx_offset,
           info->rx_offset);
}

int cmd_info(const struct cmd_options *opt)
{
    struct zpipe *zp = zpipe_new(&opt->config);
    struct cmd_link link;
    struct zpipe_info info;
    int code = CMD_FAILED;

    if (!zp) {
        cmd_say("%s", strerror(errno));
        return CMD_FAILED;
    }
    if (cmd_link_open(&link, opt) && cmd_link_join(&link, zp)) {
        zpipe_get_info(zp, &info);
        (opt->json ? print_json : print_text)(&info,
                                              opt->config.flags & ZPIPE_CMA);
        code = cmd_finish(CMD_OK);
        /* leave as one who has nothing to send, not as one who died */
        zpipe_shutdown(zp);
        zpipe_reap(zp);
    }
    zpipe_free(zp);
    if (cmd_signal()) {
        cmd_die_by(cmd_signal());
    }
    return code;
}

static void print_counts(const char *way, const struct zpipe_count *counts)
{
    for (int i = 0; i < ZPIPE_MECHANISMS; i++) {
        if (counts[i].messages) {
            cmd_tell("%s %s messages=%" PRIu64 " bytes=%" PRIu64, way,
                     zpipe_mechanism_name(i), counts[i].messages,
                     counts[i].bytes);
        }
    }
}

void cmd_print_stats(const struct zpipe *zp)
{
    struct zpipe_stats stats;

    zpipe_get_stats(zp, &stats);
    print_counts("sent", stats.tx);
    print_counts("received", stats.rx);
    for (int i = 0; i < ZPIPE_REASONS; i++) {
        if (stats.fallback[i]) {
            cmd_tell("fallback %s=%" PRIu64, zpipe_reason_name(i),
                     stats.fallback[i]);
        }
    }
    cmd_tell("kicks=%" PRIu64 " kicks-saved=%" PRIu64 " wakeups=%" PRIu64
             " spins=%" PRIu64 " copied-bytes=%" PRIu64 " connects=%" PRIu64
             " resumed=%" PRIu64 " regions=%" PRIu64 " peer-regions=%" PRIu64
             " refused-regions=%" PRIu64 " cma-errors=%" PRIu64, stats.kicks,
             stats.kicks_saved, stats.wakeups, stats.spins, stats.copied,
             stats.connects, stats.resumed, stats.regions, stats.peer_regions,
             stats.refused_regions, stats.cma_errors);
}

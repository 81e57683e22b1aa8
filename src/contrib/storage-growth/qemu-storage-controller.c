/*
 * qemu-storage-controller: grows the storage that agents ask for
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <glib-unix.h>
#include "policy.h"
#include "server.h"

static char *listen_address, *config, *journal_path;
static SgTlsFiles tls;

static const GOptionEntry entries[] = {
    { "listen", 'l', 0, G_OPTION_ARG_STRING, &listen_address,
      "unix:/PATH or tls:ADDRESS:PORT (numeric)", "ADDRESS" },
    { "config", 'c', 0, G_OPTION_ARG_FILENAME, &config,
      "the policies", "FILE" },
    { "journal", 'j', 0, G_OPTION_ARG_FILENAME, &journal_path,
      "where to keep what was done", "FILE" },
    { NULL }
};

static gboolean quit(gpointer loop)
{
    g_main_loop_quit(loop);
    return G_SOURCE_REMOVE;
}

int main(int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GMainLoop) loop = g_main_loop_new(NULL, false);
    g_autoptr(GOptionContext) context = g_option_context_new(NULL);
    SgController *controller;

    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);     /* the journal's write fails instead */
    g_option_context_set_summary(context, "Grow the storage of virtual "
                                 "machines when an agent asks for it.");
    g_option_context_add_main_entries(context, entries, NULL);
    sg_tls_add_options(context, &tls);
    if (!g_option_context_parse(context, &argc, &argv, &error) ||
        !sg_need_option(listen_address, "--listen", &error) ||
        !sg_need_option(config, "--config", &error) ||
        !sg_need_option(journal_path, "--journal", &error)) {
        g_printerr("%s: %s\n", g_get_prgname(), error->message);
        return 1;
    }
    controller = sg_controller_open(config, journal_path, &error);
    if (!controller ||
        !sg_server_listen(controller, listen_address, &tls, &error)) {
        g_printerr("%s: %s\n", g_get_prgname(), error->message);
        return 1;
    }
    g_unix_signal_add(SIGTERM, quit, loop);
    g_unix_signal_add(SIGINT, quit, loop);
    g_main_loop_run(loop);
    return 0;
}

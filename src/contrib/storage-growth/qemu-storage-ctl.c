/*
 * qemu-storage-ctl: look after a qemu-storage-controller
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "conn.h"
#include "qemu/cutils.h"
#include "qobject/qjson.h"
#include "qobject/qlist.h"
#include "server.h"

static char *address;
static SgTlsFiles tls;
static GMainLoop *loop;
static int status = 1;

static const GOptionEntry entries[] = {
    { "controller", 'C', 0, G_OPTION_ARG_STRING, &address,
      "unix:/PATH or tls:HOST:PORT", "ADDRESS" },
    { NULL }
};

static void got_object(SgConn *conn, QDict *d, void *opaque)
{
    const char *type = qdict_get_try_str(d, "type") ?: "";
    const char *result = qdict_get_try_str(d, "result");
    QList *list = qobject_to(QList, qdict_get(d, "list"));
    const QListEntry *entry;

    if (list) {
        QLIST_FOREACH_ENTRY(list, entry) {
            GString *line = qobject_to_json(qlist_entry_obj(entry));

            puts(line->str);
            g_string_free(line, true);
        }
    }
    if (list && qdict_get_try_bool(d, "more", false)) {
        return;
    }
    if (result) {
        puts(result);
    }
    status = g_str_equal(type, "reply") ||
             (result && g_str_equal(result, "grown")) ? 0 : 1;
    if (status) {
        g_printerr("%s: %s\n", g_get_prgname(),
                   qdict_get_try_str(d, "reason") ?: "not understood");
    }
    sg_conn_close(conn);
    g_main_loop_quit(loop);
}

static void got_closed(SgConn *conn, const char *why, void *opaque)
{
    g_printerr("%s: %s\n", g_get_prgname(), why);
    g_main_loop_quit(loop);
}

static const SgConnOps ops = {
    .object = got_object,
    .closed = got_closed,
};

static QDict *command_from(int argc, char **argv)
{
    QDict *d = qdict_new();
    const char *verb = argc > 1 ? argv[1] : "";
    int64_t bytes = 0;

    qdict_put_str(d, "type", verb);
    if (argc == 2 && (g_str_equal(verb, "list") ||
                      g_str_equal(verb, "history"))) {
        return d;
    }
    if (argc == 3 && (g_str_equal(verb, "pause") ||
                      g_str_equal(verb, "continue"))) {
        qdict_put_str(d, "vm", argv[2]);
        return d;
    }
    if ((argc == 4 || argc == 5) && g_str_equal(verb, "grow") &&
        (argc == 4 || (qemu_strtoi64(argv[4], NULL, 10, &bytes) == 0 &&
                       bytes > 0))) {
        qdict_put_str(d, "vm", argv[2]);
        qdict_put_str(d, "path", argv[3]);
        qdict_put_int(d, "bytes", bytes);
        return d;
    }
    qobject_unref(d);
    return NULL;
}

int main(int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GSocketClient) client = NULL;
    g_autoptr(GOptionContext) context =
        g_option_context_new("list | history | pause VM | continue VM | "
                             "grow VM PATH [BYTES]");
    GSocketConnectable *to;
    GSocketConnection *conn;
    QDict *command;

    signal(SIGPIPE, SIG_IGN);
    g_option_context_add_main_entries(context, entries, NULL);
    sg_tls_add_options(context, &tls);
    if (!g_option_context_parse(context, &argc, &argv, &error) ||
        !sg_need_option(address, "--controller", &error)) {
        g_printerr("%s: %s\n", g_get_prgname(), error->message);
        return 1;
    }
    client = sg_client_for(address, &tls, &to, &error);
    if (!client) {
        g_printerr("%s: %s\n", g_get_prgname(), error->message);
        return 1;
    }
    command = command_from(argc, argv);
    if (!command) {
        g_printerr("%s: wrong command, see --help; BYTES is a number\n",
                   g_get_prgname());
        return 1;
    }
    conn = g_socket_client_connect(client, to, NULL, &error);
    if (!conn) {
        g_printerr("%s: %s\n", g_get_prgname(), error->message);
        return 1;
    }
    loop = g_main_loop_new(NULL, false);
    sg_conn_send(sg_conn_new(G_IO_STREAM(conn), &ops, NULL), command);
    g_main_loop_run(loop);
    return status;
}

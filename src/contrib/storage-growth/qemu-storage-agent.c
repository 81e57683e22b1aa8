/*
 * qemu-storage-agent: passes virtual machines' requests for storage on
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The agent keeps nothing: what is requested is known by the virtual machines,
 * what was done by the controller.  It asks each machine when it has connected
 * to it, and all of them when it has connected to the controller, so it may be
 * killed at any time.
 */

#include "qemu/osdep.h"
#include <gio/gunixsocketaddress.h>
#include <glib-unix.h>
#include "agent.h"
#include "conn.h"
#include "server.h"

#define RETRY_MS 200
#define ATTEMPTS_MAX 1000         /* a machine that has more is ill */

static char *qmp_dir, *controller_address, *config, *journal_path;
static char **libvirt_uris;
static SgTlsFiles tls;

static const GOptionEntry entries[] = {
    { "qmp-dir", 'd', 0, G_OPTION_ARG_FILENAME, &qmp_dir,
      "directory with QMP sockets NAME.qmp of virtual machines", "DIR" },
    { "libvirt", 'L', 0, G_OPTION_ARG_STRING_ARRAY, &libvirt_uris,
      "follow the domains of this libvirt; may be given again", "URI" },
    { "controller", 'C', 0, G_OPTION_ARG_STRING, &controller_address,
      "unix:/PATH or tls:HOST:PORT", "ADDRESS" },
    { "config", 'c', 0, G_OPTION_ARG_FILENAME, &config,
      "be the controller, too, with these policies", "FILE" },
    { "journal", 'j', 0, G_OPTION_ARG_FILENAME, &journal_path,
      "... and this journal", "FILE" },
    { NULL }
};

typedef struct QmpVm {
    SgVm vm;
    char *socket;
    SgConn *conn;
    bool connecting;
    bool ready;
    bool seen;                    /* its socket is still there */
} QmpVm;

static GHashTable *vms;           /* name: SgVm */
static SgConn *controller;
static SgController *local;
static GSocketClient *client;
static GSocketConnectable *client_to;

/*
 * The controller
 */

/* QEMU knows an answer by its id only: one that is late must not count */
static bool is_old(SgVm *vm, int64_t id, int64_t attempt)
{
    int64_t *last = vm->attempts ? g_hash_table_lookup(vm->attempts, &id)
                                 : NULL;

    return last && *last != attempt;
}

static void controller_object(SgConn *conn, QDict *d, void *opaque)
{
    const char *type = qdict_get_try_str(d, "type") ?: "";
    const char *name = qdict_get_try_str(d, "vm");
    const char *instance = qdict_get_try_str(d, "instance");
    const char *result = qdict_get_try_str(d, "result");
    SgVm *vm = name ? g_hash_table_lookup(vms, name) : NULL;
    int64_t id = qdict_get_try_int(d, "id", 0);
    int64_t attempt = qdict_get_try_int(d, "attempt", 0);
    g_autofree char *reason =
        sg_one_line(qdict_get_try_str(d, "reason") ?: "?");

    if (g_str_equal(type, "error")) {
        g_warning("controller: %s", reason);
    } else if (!g_str_equal(type, "answer") || !instance || !result) {
        g_warning("controller: not understood");
    } else if (vm && vm->instance && g_str_equal(vm->instance, instance)) {
        if (is_old(vm, id, attempt)) {
            g_message("%s: an answer to an earlier attempt", name);
            return;
        }
        if (qdict_haskey(d, "reason")) {
            g_message("%s: %s: %s", name, result, reason);
        }
        vm->resolve(vm, id, attempt, result);
    }
}

static void connect_controller(void);

static gboolean reconnect(gpointer opaque)
{
    connect_controller();
    return G_SOURCE_REMOVE;
}

static void controller_closed(SgConn *conn, const char *why, void *opaque)
{
    g_message("controller: %s", why);
    controller = NULL;
    g_timeout_add(RETRY_MS, reconnect, NULL);
}

static const SgConnOps controller_ops = {
    .object = controller_object,
    .closed = controller_closed,
};

static void controller_connected(GIOStream *stream)
{
    GHashTableIter iter;
    gpointer vm;
    QDict *hello;

    controller = sg_conn_new(stream, &controller_ops, NULL);
    hello = qdict_new();
    qdict_put_str(hello, "type", "hello");
    sg_conn_send(controller, hello);
    g_hash_table_iter_init(&iter, vms);
    while (g_hash_table_iter_next(&iter, NULL, &vm)) {
        ((SgVm *)vm)->query(vm);
    }
}

static void connect_done(GObject *source, GAsyncResult *result,
                         gpointer opaque)
{
    static char *told;            /* do not repeat it all the time */
    g_autoptr(GError) error = NULL;
    GSocketConnection *conn =
        g_socket_client_connect_finish(client, result, &error);

    if (conn) {
        g_clear_pointer(&told, g_free);
        controller_connected(G_IO_STREAM(conn));
    } else {
        if (g_strcmp0(told, error->message)) {
            g_free(told);
            told = g_strdup(error->message);
            g_message("controller: %s", told);
        }
        g_timeout_add(RETRY_MS, reconnect, NULL);
    }
}

static void connect_controller(void)
{
    g_socket_client_connect_async(client, client_to, NULL, connect_done, NULL);
}

static bool make_client(GError **error)
{
    client = sg_client_for(controller_address, &tls, &client_to, error);
    return client;
}

static GIOStream *stream_of(int fd)
{
    g_autoptr(GSocket) socket = g_socket_new_from_fd(fd, NULL);

    return G_IO_STREAM(g_socket_connection_factory_create_connection(socket));
}

/* Be the controller: the two halves talk over a pair of sockets */
static bool connect_local(GError **error)
{
    int fds[2];

    local = sg_controller_open(config, journal_path, error);
    if (!local) {
        return false;
    }
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_FAILED, "socketpair: %s",
                    g_strerror(errno));
        return false;
    }
    sg_controller_serve(local, stream_of(fds[0]));
    controller_connected(stream_of(fds[1]));
    return true;
}

/*
 * What all virtual machines do
 */

void sg_agent_add(SgVm *vm)
{
    /* with its own name as the key: that of a namesake goes with it */
    g_hash_table_replace(vms, vm->name, vm);
}

void sg_agent_remove(SgVm *vm)
{
    if (g_hash_table_lookup(vms, vm->name) == vm) {
        g_hash_table_remove(vms, vm->name);
    }
    g_clear_pointer(&vm->instance, g_free);
    g_clear_pointer(&vm->attempts, g_hash_table_unref);
}

static void note_attempt(SgVm *vm, int64_t id, int64_t attempt)
{
    if (!vm->attempts) {
        vm->attempts = g_hash_table_new_full(g_int64_hash, g_int64_equal,
                                             g_free, g_free);
    }
    if (g_hash_table_size(vm->attempts) >= ATTEMPTS_MAX) {
        g_hash_table_remove_all(vm->attempts);
    }
    g_hash_table_insert(vm->attempts, g_memdup2(&id, sizeof(id)),
                        g_memdup2(&attempt, sizeof(attempt)));
}

void sg_agent_request(SgVm *vm, QDict *request)
{
    static const char *const numbers[] = { "id", "attempt", "needed", "rate" };
    int64_t attempt = qdict_get_try_int(request, "attempt", 0);
    const char *instance = qdict_get_try_str(request, "instance");
    const char *state = qdict_get_try_str(request, "state");
    const char *path = qdict_get_try_str(request, "filename");
    QDict *d;

    /* what is denied stays so until a write fails again, or by hand */
    if (!instance || !state || !g_str_equal(state, "open")) {
        return;
    }
    g_free(vm->instance);
    vm->instance = g_strdup(instance);
    note_attempt(vm, qdict_get_try_int(request, "id", 0), attempt);
    if (!controller) {
        return;                   /* asked again when it is there */
    }
    d = qdict_new();
    qdict_put_str(d, "type", "request");
    qdict_put_str(d, "vm", vm->name);
    qdict_put_str(d, "instance", instance);
    qdict_put_str(d, "path", path ?: "");
    qdict_put_str(d, "cause", qdict_get_try_str(request, "cause") ?: "");
    for (int i = 0; i < G_N_ELEMENTS(numbers); i++) {
        qdict_put_int(d, numbers[i],
                      qdict_get_try_int(request, numbers[i], 0));
    }
    if (attempt == 1) {
        /* later ones were raised later, and QEMU does not tell when */
        qdict_put_int(d, "age-ms", qdict_get_try_int(request, "age-ms", 0));
    }
    sg_conn_send(controller, d);
}

void sg_agent_requests(SgVm *vm, QList *list)
{
    const QListEntry *entry;

    if (vm->attempts) {
        g_hash_table_remove_all(vm->attempts);
    }
    QLIST_FOREACH_ENTRY(list, entry) {
        QDict *request = qobject_to(QDict, qlist_entry_obj(entry));

        if (request) {
            sg_agent_request(vm, request);
        }
    }
}

void sg_agent_outcome(SgVm *vm, int64_t id, int64_t attempt,
                      const char *outcome)
{
    QDict *d;

    if (controller) {
        d = qdict_new();
        qdict_put_str(d, "type", "outcome");
        qdict_put_str(d, "vm", vm->name);
        qdict_put_int(d, "id", id);
        qdict_put_int(d, "attempt", attempt);
        qdict_put_str(d, "outcome", outcome);
        sg_conn_send(controller, d);
    }
}

/*
 * QMP sockets
 */

static void qmp_execute(QmpVm *v, const char *command, char *id,
                        QDict *arguments)
{
    QDict *d = qdict_new();

    qdict_put_str(d, "execute", command);
    qdict_put_str(d, "id", id);
    if (arguments) {
        qdict_put(d, "arguments", arguments);
    }
    sg_conn_send(v->conn, d);
    g_free(id);
}

static void qmp_query(SgVm *vm)
{
    QmpVm *v = container_of(vm, QmpVm, vm);

    if (v->ready) {
        qmp_execute(v, "query-block-space-requests", g_strdup("query"), NULL);
    }
}

static void qmp_resolve(SgVm *vm, int64_t id, int64_t attempt,
                        const char *result)
{
    QmpVm *v = container_of(vm, QmpVm, vm);
    QDict *arguments;

    if (v->ready) {
        arguments = qdict_new();
        qdict_put_int(arguments, "id", id);
        qdict_put_str(arguments, "result", result);
        qmp_execute(v, "block-space-resolve",
                    g_strdup_printf("resolve %" PRId64 " %" PRId64, id,
                                    attempt), arguments);
    }
}

static void qmp_returned(QmpVm *v, const char *id, QDict *d)
{
    QObject *ret = qdict_get(d, "return");
    QDict *failed = qobject_to(QDict, qdict_get(d, "error"));
    int64_t request, attempt;

    if (g_str_equal(id, "capabilities") && ret) {
        v->ready = true;
        sg_agent_add(&v->vm);
        qmp_query(&v->vm);
    } else if (g_str_equal(id, "query") && qobject_to(QList, ret)) {
        sg_agent_requests(&v->vm, qobject_to(QList, ret));
    } else if (sscanf(id, "resolve %" SCNd64 " %" SCNd64, &request,
                      &attempt) == 2) {
        QDict *answer = qobject_to(QDict, ret);

        sg_agent_outcome(&v->vm, request, attempt,
                         answer ? qdict_get_try_str(answer, "outcome") ?: "?"
                                : "error");
    } else if (failed) {
        g_autofree char *desc =
            sg_one_line(qdict_get_try_str(failed, "desc") ?: "?");

        g_warning("%s: a command failed: %s", v->vm.name, desc);
    }
}

static void qmp_object(SgConn *conn, QDict *d, void *opaque)
{
    const char *event = qdict_get_try_str(d, "event");
    const char *id = qdict_get_try_str(d, "id");
    QDict *data = qobject_to(QDict, qdict_get(d, "data"));
    QmpVm *v = opaque;

    if (qdict_haskey(d, "QMP")) {
        qmp_execute(v, "qmp_capabilities", g_strdup("capabilities"), NULL);
    } else if (event && data && g_str_equal(event, "BLOCK_SPACE_REQUEST")) {
        sg_agent_request(&v->vm, data);
    } else if (!event && id) {
        qmp_returned(v, id, d);
    }
}

static void qmp_closed(SgConn *conn, const char *why, void *opaque)
{
    QmpVm *v = opaque;

    g_message("%s: %s", v->vm.name, why);
    v->conn = NULL;
    v->ready = false;
    sg_agent_remove(&v->vm);
}

static const SgConnOps qmp_ops = {
    .object = qmp_object,
    .closed = qmp_closed,
};

static void qmp_connected(GObject *source, GAsyncResult *result,
                          gpointer opaque)
{
    QmpVm *v = opaque;
    GSocketConnection *conn = g_socket_client_connect_finish(
        G_SOCKET_CLIENT(source), result, NULL);

    v->connecting = false;
    if (conn) {
        v->conn = sg_conn_new(G_IO_STREAM(conn), &qmp_ops, v);
    }
    g_object_unref(source);
}

static void qmp_connect(QmpVm *v)
{
    g_autoptr(GSocketAddress) address = NULL;

    if (v->conn || v->connecting) {
        return;
    }
    v->connecting = true;
    address = g_unix_socket_address_new(v->socket);
    g_socket_client_connect_async(g_socket_client_new(),
                                  G_SOCKET_CONNECTABLE(address), NULL,
                                  qmp_connected, v);
}

static gboolean qmp_gone(gpointer key, gpointer value, gpointer opaque)
{
    QmpVm *v = value;

    if (v->seen || v->conn || v->connecting) {
        v->seen = false;
        return false;
    }
    g_free(v->vm.name);
    g_free(v->socket);
    g_free(v);
    return true;
}

static gboolean scan(gpointer opaque)
{
    static GHashTable *sockets;   /* path: QmpVm */
    g_autoptr(GDir) dir = g_dir_open(qmp_dir, 0, NULL);
    const char *entry;

    if (!sockets) {
        sockets = g_hash_table_new(g_str_hash, g_str_equal);
    }
    while (dir && (entry = g_dir_read_name(dir))) {
        g_autofree char *path = g_build_filename(qmp_dir, entry, NULL);
        QmpVm *v = g_hash_table_lookup(sockets, path);

        if (!g_str_has_suffix(entry, ".qmp")) {
            continue;
        }
        if (!v) {
            v = g_new0(QmpVm, 1);
            v->vm.name = g_strndup(entry, strlen(entry) - strlen(".qmp"));
            v->vm.query = qmp_query;
            v->vm.resolve = qmp_resolve;
            v->socket = g_steal_pointer(&path);
            g_hash_table_insert(sockets, v->socket, v);
        }
        v->seen = true;
        qmp_connect(v);
    }
    g_hash_table_foreach_remove(sockets, qmp_gone, NULL);
    return G_SOURCE_CONTINUE;
}

static gboolean quit(gpointer loop)
{
    g_main_loop_quit(loop);
    return G_SOURCE_REMOVE;
}

static bool check_options(GError **error)
{
    if (!qmp_dir && !libvirt_uris) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT,
                    "--qmp-dir or --libvirt is missing");
        return false;
    }
    if (!controller_address == !config || !config != !journal_path) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT,
                    "give either --controller, or --config and --journal");
        return false;
    }
    return true;
}

int main(int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GMainLoop) loop = g_main_loop_new(NULL, false);
    g_autoptr(GOptionContext) context = g_option_context_new(NULL);

    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);     /* the journal's write fails instead */
    g_option_context_set_summary(context, "Pass requests of virtual machines "
                                 "for storage on to a controller.");
    g_option_context_add_main_entries(context, entries, NULL);
    sg_tls_add_options(context, &tls);
    vms = g_hash_table_new(g_str_hash, g_str_equal);
    if (!g_option_context_parse(context, &argc, &argv, &error) ||
        !check_options(&error) ||
        (libvirt_uris && !sg_libvirt_follow(libvirt_uris, &error)) ||
        (config && !connect_local(&error)) ||
        (controller_address && !make_client(&error))) {
        g_printerr("%s: %s\n", g_get_prgname(), error->message);
        return 1;
    }
    if (client) {
        connect_controller();
    }
    if (qmp_dir) {
        scan(NULL);
        g_timeout_add(RETRY_MS, scan, NULL);
    }
    g_unix_signal_add(SIGTERM, quit, loop);
    g_unix_signal_add(SIGINT, quit, loop);
    g_main_loop_run(loop);
    return 0;
}

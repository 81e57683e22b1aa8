/*
 * Storage growth: sockets of the controller
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <gio/gunixsocketaddress.h>
#include <sys/resource.h>
#include "conn.h"
#include "policy.h"
#include "server.h"

/* Descriptors for what is no connection: pipes of providers above all */
#define OTHER_DESCRIPTORS 512

#define STALE_TRIES 20
#define STALE_WAIT_US 50000

bool sg_need_option(const char *value, const char *name, GError **error)
{
    if (!value) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT,
                    "%s is missing", name);
    }
    return value;
}

SgController *sg_controller_open(const char *config, const char *journal_path,
                                 GError **error)
{
    SgLimits limits;
    g_autoptr(GPtrArray) policies = sg_policies_load(config, &limits, error);
    SgJournal *journal;

    journal = policies ? sg_journal_open(journal_path, error) : NULL;
    return journal ? sg_controller_new(g_steal_pointer(&policies), &limits,
                                       journal)
                   : NULL;
}

void sg_tls_add_options(GOptionContext *context, SgTlsFiles *files)
{
    const GOptionEntry entries[] = {
        { "tls-ca", 0, 0, G_OPTION_ARG_FILENAME, &files->ca,
          "who signs the peer's certificate", "PEM" },
        { "tls-certificate", 0, 0, G_OPTION_ARG_FILENAME, &files->certificate,
          "our certificate, with its key", "PEM" },
        { NULL }
    };

    g_option_context_add_main_entries(context, entries, NULL);
}

typedef struct Server {
    SgController *controller;
    GTlsDatabase *ca;
    GTlsCertificate *certificate;
} Server;

static bool load_tls(const SgTlsFiles *files, GTlsDatabase **ca,
                     GTlsCertificate **certificate, GError **error)
{
    if (!sg_need_option(files->ca, "--tls-ca", error) ||
        !sg_need_option(files->certificate, "--tls-certificate", error)) {
        return false;
    }
    if (!g_tls_backend_supports_tls(g_tls_backend_get_default())) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_NOT_SUPPORTED,
                    "GLib has no TLS here (package glib-networking)");
        return false;
    }
    *ca = g_tls_file_database_new(files->ca, error);
    *certificate = *ca ? g_tls_certificate_new_from_file(files->certificate,
                                                         error) : NULL;
    return *certificate;
}

/*
 * A server is always asked.  The database has only our CA, so a certificate
 * without errors is one that it has signed.
 */
static gboolean accept_known(GTlsConnection *conn, GTlsCertificate *peer,
                             GTlsCertificateFlags errors, gpointer opaque)
{
    return !errors;
}

static gboolean incoming(GSocketService *service, GSocketConnection *conn,
                         GObject *source, gpointer opaque)
{
    Server *s = opaque;
    g_autoptr(GError) error = NULL;
    GIOStream *stream = g_object_ref(G_IO_STREAM(conn));

    if (s->certificate) {
        GIOStream *secure = g_tls_server_connection_new(stream, s->certificate,
                                                        &error);

        g_object_unref(stream);
        if (!secure) {
            g_warning("TLS: %s", error->message);
            return true;
        }
        g_tls_connection_set_database(G_TLS_CONNECTION(secure), s->ca);
        g_object_set(secure, "authentication-mode",
                     G_TLS_AUTHENTICATION_REQUIRED, NULL);
        g_signal_connect(secure, "accept-certificate",
                         G_CALLBACK(accept_known), NULL);
        stream = secure;
    }
    sg_controller_serve(s->controller, stream);
    return true;
}

/*
 * A socket that nobody listens on is left from a process that was killed.  A
 * child of it may have it for a moment longer, as in lock_file().
 */
static void remove_stale(GSocketAddress *address)
{
    g_autoptr(GSocketClient) client = g_socket_client_new();
    const char *path =
        g_unix_socket_address_get_path(G_UNIX_SOCKET_ADDRESS(address));
    struct stat st;

    /* a file that is no socket refuses connections just so */
    if (lstat(path, &st) < 0 || !S_ISSOCK(st.st_mode)) {
        return;
    }
    for (int i = 0; i < STALE_TRIES; i++) {
        g_autoptr(GError) error = NULL;
        g_autoptr(GSocketConnection) conn =
            g_socket_client_connect(client, G_SOCKET_CONNECTABLE(address),
                                    NULL, &error);

        if (!conn) {
            if (g_error_matches(error, G_IO_ERROR,
                                G_IO_ERROR_CONNECTION_REFUSED)) {
                unlink(path);
            }
            break;
        }
        g_usleep(STALE_WAIT_US);
    }
}

/* When there are none left, accept() fails all the time */
static bool have_descriptors(unsigned connections, GError **error)
{
    rlim_t need = (rlim_t)connections + OTHER_DESCRIPTORS;
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < need) {
        limit.rlim_cur = need;
        if (limit.rlim_max < need || setrlimit(RLIMIT_NOFILE, &limit) < 0) {
            g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT,
                        "'connections' is %u, but may be %" PRIu64 " here: "
                        "this process may have %" PRIu64 " open files "
                        "(LimitNOFILE, ulimit -Hn), of which %d are for other "
                        "things", connections,
                        (uint64_t)(limit.rlim_max > OTHER_DESCRIPTORS
                                   ? limit.rlim_max - OTHER_DESCRIPTORS : 0),
                        (uint64_t)limit.rlim_max, OTHER_DESCRIPTORS);
            return false;
        }
    }
    return true;
}

bool sg_server_listen(SgController *c, const char *address,
                      const SgTlsFiles *tls, GError **error)
{
    GSocketService *service = g_socket_service_new();
    g_autoptr(GSocketConnectable) where = NULL;
    Server *s = g_new0(Server, 1);
    bool is_tls;

    s->controller = c;
    where = sg_address_parse(address, &is_tls, error);
    if (!where || !have_descriptors(sg_controller_connections(c), error)) {
        return false;
    }
    g_signal_connect(service, "incoming", G_CALLBACK(incoming), s);
    if (is_tls) {
        GNetworkAddress *net = G_NETWORK_ADDRESS(where);
        g_autoptr(GInetAddress) inet =
            g_inet_address_new_from_string(g_network_address_get_hostname(net));
        g_autoptr(GSocketAddress) socket_address = NULL;

        if (!load_tls(tls, &s->ca, &s->certificate, error)) {
            return false;
        }
        if (!inet) {
            g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT,
                        "'%s' is no address of this host", address);
            return false;
        }
        socket_address = g_inet_socket_address_new(
            inet, g_network_address_get_port(net));
        return g_socket_listener_add_address(
            G_SOCKET_LISTENER(service), socket_address, G_SOCKET_TYPE_STREAM,
            G_SOCKET_PROTOCOL_TCP, NULL, NULL, error);
    }
    remove_stale(G_SOCKET_ADDRESS(where));
    umask(0077);
    return g_socket_listener_add_address(
        G_SOCKET_LISTENER(service), G_SOCKET_ADDRESS(where),
        G_SOCKET_TYPE_STREAM, G_SOCKET_PROTOCOL_DEFAULT, NULL, NULL, error);
}

static void client_event(GSocketClient *client, GSocketClientEvent event,
                         GSocketConnectable *connectable, GIOStream *stream,
                         gpointer opaque)
{
    Server *s = opaque;

    if (event == G_SOCKET_CLIENT_TLS_HANDSHAKING) {
        g_tls_connection_set_database(G_TLS_CONNECTION(stream), s->ca);
        g_tls_connection_set_certificate(G_TLS_CONNECTION(stream),
                                         s->certificate);
    }
}

static void client_server_free(gpointer opaque, GClosure *closure)
{
    Server *s = opaque;

    g_clear_object(&s->ca);
    g_clear_object(&s->certificate);
    g_free(s);
}

GSocketClient *sg_client_for(const char *address, const SgTlsFiles *tls,
                             GSocketConnectable **to, GError **error)
{
    g_autoptr(GSocketClient) client = g_socket_client_new();
    Server *s;
    bool is_tls;

    *to = sg_address_parse(address, &is_tls, error);
    if (!*to) {
        return NULL;
    }
    if (is_tls) {
        s = g_new0(Server, 1);
        g_signal_connect_data(client, "event", G_CALLBACK(client_event), s,
                              client_server_free, 0);
        if (!load_tls(tls, &s->ca, &s->certificate, error)) {
            return NULL;
        }
        g_socket_client_set_tls(client, true);
    }
    return g_steal_pointer(&client);
}

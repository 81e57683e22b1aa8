/*
 * Storage growth: JSON objects over a stream, one a line
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The peer is not trusted: lines and what waits to be sent have a limit, and
 * what is no object ends the connection.
 */

#include "qemu/osdep.h"
#include <gio/gunixsocketaddress.h>
#include "qapi/error.h"
#include "qobject/qjson.h"
#include "conn.h"

struct SgConn {
    GIOStream *stream;
    const SgConnOps *ops;
    void *opaque;
    GCancellable *cancel;
    int refs;                     /* the user, a read, a write */
    bool dead;
    char chunk[16 * 1024];
    GByteArray *in;
    GString *out;                 /* waits */
    GString *writing;             /* is being written, or NULL */
};

static void conn_unref(SgConn *c)
{
    if (--c->refs) {
        return;
    }
    g_io_stream_close_async(c->stream, G_PRIORITY_DEFAULT, NULL, NULL, NULL);
    g_object_unref(c->stream);
    g_object_unref(c->cancel);
    g_byte_array_unref(c->in);
    g_string_free(c->out, true);
    g_free(c);
}

static void conn_die(SgConn *c, const char *why)
{
    if (c->dead) {
        return;
    }
    c->dead = true;
    g_cancellable_cancel(c->cancel);
    c->ops->closed(c, why, c->opaque);
    conn_unref(c);
}

void sg_conn_close(SgConn *c)
{
    if (c && !c->dead) {
        c->dead = true;
        g_cancellable_cancel(c->cancel);
        conn_unref(c);
    }
}

/* The socket itself; with TLS it is below the stream */
static GSocket *socket_of(SgConn *c)
{
    g_autoptr(GIOStream) base = NULL;

    if (!G_IS_TLS_CONNECTION(c->stream)) {
        return g_socket_connection_get_socket(G_SOCKET_CONNECTION(c->stream));
    }
    g_object_get(c->stream, "base-io-stream", &base, NULL);
    return g_socket_connection_get_socket(G_SOCKET_CONNECTION(base));
}

void sg_conn_abort(SgConn *c)
{
    /* a handshake is in a thread, and minds nothing else */
    shutdown(g_socket_get_fd(socket_of(c)), SHUT_RDWR);
    sg_conn_close(c);
}

static void take_line(SgConn *c, const char *line)
{
    Error *err = NULL;
    QObject *object = qobject_from_json(line, &err);
    QDict *dict = qobject_to(QDict, object);

    if (dict) {
        c->ops->object(c, dict, c->opaque);
    } else {
        conn_die(c, err ? error_get_pretty(err) : "not a JSON object");
    }
    error_free(err);
    qobject_unref(object);
}

static void take_lines(SgConn *c)
{
    uint8_t *end;

    while (!c->dead && (end = memchr(c->in->data, '\n', c->in->len))) {
        size_t len = end - c->in->data;
        g_autofree char *line = g_strndup((char *)c->in->data, len);
        bool has_nul = memchr(line, 0, len);

        g_byte_array_remove_range(c->in, 0, len + 1);
        if (has_nul) {
            conn_die(c, "a line has a NUL character");
        } else if (line[strspn(line, " \t\r")]) {
            take_line(c, line);
        }
    }
    if (c->in->len > SG_LINE_MAX) {
        conn_die(c, "a line is too long");
    }
}

static void start_read(SgConn *c);

static void read_done(GObject *source, GAsyncResult *result, gpointer opaque)
{
    SgConn *c = opaque;
    g_autoptr(GError) error = NULL;
    gssize n = g_input_stream_read_finish(G_INPUT_STREAM(source), result,
                                          &error);

    if (!c->dead) {
        if (n > 0) {
            g_byte_array_append(c->in, (uint8_t *)c->chunk, n);
            take_lines(c);
        } else {
            conn_die(c, error ? error->message : "the peer has closed it");
        }
    }
    if (!c->dead) {
        start_read(c);
    }
    conn_unref(c);
}

static void start_read(SgConn *c)
{
    c->refs++;
    g_input_stream_read_async(g_io_stream_get_input_stream(c->stream),
                              c->chunk, sizeof(c->chunk), G_PRIORITY_DEFAULT,
                              c->cancel, read_done, c);
}

static void start_write(SgConn *c);

static void write_done(GObject *source, GAsyncResult *result, gpointer opaque)
{
    SgConn *c = opaque;
    g_autoptr(GError) error = NULL;

    g_output_stream_write_all_finish(G_OUTPUT_STREAM(source), result, NULL,
                                     &error);
    g_string_free(c->writing, true);
    c->writing = NULL;
    if (error) {
        conn_die(c, error->message);
    } else if (!c->dead && c->out->len) {
        start_write(c);
    }
    conn_unref(c);
}

static void start_write(SgConn *c)
{
    c->refs++;
    c->writing = c->out;
    c->out = g_string_new(NULL);
    g_output_stream_write_all_async(g_io_stream_get_output_stream(c->stream),
                                    c->writing->str, c->writing->len,
                                    G_PRIORITY_DEFAULT, c->cancel, write_done,
                                    c);
}

/* From the main loop: the caller of sg_conn_send() still uses the connection */
static gboolean queue_overflow(gpointer opaque)
{
    SgConn *c = opaque;

    conn_die(c, "the peer does not read");
    conn_unref(c);
    return G_SOURCE_REMOVE;
}

void sg_conn_send(SgConn *c, QDict *object)
{
    GString *text = qobject_to_json(QOBJECT(object));

    qobject_unref(object);
    if (!c->dead && c->out->len > SG_QUEUE_MAX) {
        c->refs++;
        g_idle_add_full(G_PRIORITY_HIGH, queue_overflow, c, NULL);
    } else if (!c->dead) {
        g_string_append_len(c->out, text->str, text->len);
        g_string_append_c(c->out, '\n');
        if (!c->writing) {
            start_write(c);
        }
    }
    g_string_free(text, true);
}

static gboolean peer_speaks(GSocket *sock, GIOCondition condition,
                            gpointer opaque)
{
    SgConn *c = opaque;

    if (!c->dead) {
        start_read(c);
    }
    conn_unref(c);
    return G_SOURCE_REMOVE;
}

/* A handshake keeps a thread of GLib's, of which there are few */
static void wait_for_peer(SgConn *c)
{
    GSource *source = g_socket_create_source(socket_of(c), G_IO_IN, c->cancel);

    c->refs++;
    g_source_set_callback(source, G_SOURCE_FUNC(peer_speaks), c, NULL);
    g_source_attach(source, NULL);
    g_source_unref(source);
}

SgConn *sg_conn_new(GIOStream *stream, const SgConnOps *ops, void *opaque)
{
    SgConn *c = g_new0(SgConn, 1);

    c->stream = stream;
    c->ops = ops;
    c->opaque = opaque;
    c->cancel = g_cancellable_new();
    c->refs = 1;
    c->in = g_byte_array_new();
    c->out = g_string_new(NULL);
    if (G_IS_TLS_SERVER_CONNECTION(stream)) {
        wait_for_peer(c);
    } else {
        start_read(c);
    }
    return c;
}

char *sg_one_line(const char *text)
{
    return g_strdelimit(g_strdup(text), "\n\r", ' ');
}

GSocketConnectable *sg_address_parse(const char *text, bool *tls,
                                     GError **error)
{
    *tls = g_str_has_prefix(text, "tls:");
    if (*tls) {
        return g_network_address_parse(text + 4, 16515, error);
    }
    if (g_str_has_prefix(text, "unix:/")) {
        return G_SOCKET_CONNECTABLE(g_unix_socket_address_new(text + 5));
    }
    g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT,
                "Address '%s' is neither unix:/PATH nor tls:HOST:PORT", text);
    return NULL;
}

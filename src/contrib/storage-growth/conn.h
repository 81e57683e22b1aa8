/*
 * Storage growth: JSON objects over a stream, one a line
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef STORAGE_GROWTH_CONN_H
#define STORAGE_GROWTH_CONN_H

#include <gio/gio.h>
#include "qobject/qdict.h"

/* A peer that sends longer lines, or reads nothing for so long, is dropped */
#define SG_LINE_MAX (1024 * 1024)
#define SG_QUEUE_MAX (16 * 1024 * 1024)

typedef struct SgConn SgConn;

/**
 * struct SgConnOps: what to do with what happens
 * @object: an object was received
 * @closed: the connection has ended and is freed after this; @why says the
 *          reason.  Not called after sg_conn_close().
 */
typedef struct SgConnOps {
    void (*object)(SgConn *conn, QDict *object, void *opaque);
    void (*closed)(SgConn *conn, const char *why, void *opaque);
} SgConnOps;

/* Takes over a reference to @stream; everything happens in the main loop */
SgConn *sg_conn_new(GIOStream *stream, const SgConnOps *ops, void *opaque);

/* Sends @object, and drops the reference to it */
void sg_conn_send(SgConn *conn, QDict *object);

/* Ends the connection; @conn must not be used afterwards.  NULL is allowed. */
void sg_conn_close(SgConn *conn);

/* ... and what it does at the moment, be it a TLS handshake */
void sg_conn_abort(SgConn *conn);

/* A copy of what a peer said, for one line of the log; free with g_free() */
char *sg_one_line(const char *text);

/**
 * sg_address_parse: "unix:PATH" or "tls:HOST:PORT"
 * @tls: whether TLS is wanted
 *
 * Returns: what to connect to or listen on; NULL with @error set on error.
 */
GSocketConnectable *sg_address_parse(const char *text, bool *tls,
                                     GError **error);

#endif

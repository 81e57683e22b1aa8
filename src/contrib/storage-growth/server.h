/*
 * Storage growth: sockets of the controller
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef STORAGE_GROWTH_SERVER_H
#define STORAGE_GROWTH_SERVER_H

#include "controller.h"

/* PEM files; both sides show a certificate that the other's CA has signed */
typedef struct SgTlsFiles {
    char *ca;
    char *certificate;            /* with its key */
} SgTlsFiles;

/* Let the options --tls-ca and --tls-certificate set @files */
void sg_tls_add_options(GOptionContext *context, SgTlsFiles *files);

bool sg_need_option(const char *value, const char *name, GError **error);

/* Read the files and make a controller; NULL with @error set on error */
SgController *sg_controller_open(const char *config, const char *journal,
                                 GError **error);

/* Listen at an address, see sg_address_parse(); false with @error set */
bool sg_server_listen(SgController *c, const char *address,
                      const SgTlsFiles *tls, GError **error);

/**
 * sg_client_for: make a client for an address
 * @to: what to connect to; owned by the caller
 *
 * Returns: NULL with @error set on error.
 */
GSocketClient *sg_client_for(const char *address, const SgTlsFiles *tls,
                             GSocketConnectable **to, GError **error);

#endif

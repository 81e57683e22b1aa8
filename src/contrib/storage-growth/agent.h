/*
 * Storage growth: virtual machines that an agent follows
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef STORAGE_GROWTH_AGENT_H
#define STORAGE_GROWTH_AGENT_H

#include <glib.h>
#include "qobject/qdict.h"
#include "qobject/qlist.h"

typedef struct SgVm SgVm;

/**
 * struct SgVm: a virtual machine, however it is reached
 * @name: unique
 * @instance: of the requests that were seen last, or NULL
 * @attempts: the last attempt by id of these, or NULL
 * @query: ask it what is requested; leads to sg_agent_requests()
 * @resolve: answer it; leads to sg_agent_outcome()
 */
struct SgVm {
    char *name;
    char *instance;
    GHashTable *attempts;
    void (*query)(SgVm *vm);
    void (*resolve)(SgVm *vm, int64_t id, int64_t attempt,
                    const char *result);
};

/* A machine can be reached, or no longer */
void sg_agent_add(SgVm *vm);
void sg_agent_remove(SgVm *vm);

/* The machine requests storage: a BlockSpaceRequest, or all of them */
void sg_agent_request(SgVm *vm, QDict *request);
void sg_agent_requests(SgVm *vm, QList *list);

/* What the machine said to an answer */
void sg_agent_outcome(SgVm *vm, int64_t id, int64_t attempt,
                      const char *outcome);

/**
 * sg_libvirt_follow: follow the domains of libvirt daemons
 * @uris: connection URIs, NULL-terminated; remote ones are allowed
 *
 * A daemon that cannot be reached, or no longer, is tried again.
 *
 * Returns: false with @error set if this was built without libvirt.
 */
bool sg_libvirt_follow(char **uris, GError **error);

#endif

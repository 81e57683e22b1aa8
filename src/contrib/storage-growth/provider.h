/*
 * Storage growth: providers of storage
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A provider can tell the size of a resource and make it at least as large as
 * a given size.  To do that twice has the effect of doing it once.
 */

#ifndef STORAGE_GROWTH_PROVIDER_H
#define STORAGE_GROWTH_PROVIDER_H

#include "policy.h"

/* @size is in bytes, or -1; then @error says why.  Never called at once. */
typedef void SgProviderDone(int64_t size, const char *error, void *opaque);

/**
 * sg_provider_resource: what is to be grown
 * @path: what QEMU has opened
 *
 * Returns: a name that begins with that of the provider; free with g_free().
 */
char *sg_provider_resource(const SgPolicy *policy, const char *path);

/* Whether a resource of both policies, with one name, is one thing */
bool sg_provider_is_same(const SgPolicy *a, const SgPolicy *b);

/**
 * sg_provider_size: tell the size of @resource
 * @vm: for the exec provider, to tell
 */
void sg_provider_size(const SgPolicy *policy, const char *resource,
                      const char *vm, SgProviderDone *done, void *opaque);

/**
 * sg_provider_grow: make a resource larger
 * @vm, @key: for the exec provider, to tell
 * @target: size in bytes to make it at least
 * @done: called with the size that it has then
 */
void sg_provider_grow(const SgPolicy *policy, const char *resource,
                      const char *vm, const char *key, uint64_t target,
                      SgProviderDone *done, void *opaque);

#endif

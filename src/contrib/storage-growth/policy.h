/*
 * Storage growth: what may be grown, by how much, and how
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef STORAGE_GROWTH_POLICY_H
#define STORAGE_GROWTH_POLICY_H

#include <glib.h>
#include <stdbool.h>

typedef enum SgProviderType {
    SG_PROVIDER_TMPFS,            /* a tmpfs is mounted again, larger */
    SG_PROVIDER_FILE,             /* a sparse file is made longer */
    SG_PROVIDER_LOOP,             /* a loop device and its file */
    SG_PROVIDER_LVM,              /* lvextend */
    SG_PROVIDER_RBD,              /* rbd resize */
    SG_PROVIDER_EXEC,             /* any program */
    SG_PROVIDER__MAX
} SgProviderType;

/**
 * struct SgPolicy: one entry of the configuration
 * @vm, @path: patterns with * and ?; both must match
 * @provider: how to grow
 * @resource: what to grow instead of what QEMU has opened, or NULL
 * @command: program and arguments of the exec provider
 * @chunk: add at least so many bytes
 * @percent: ... and so many percent of the size
 * @lead_ms: ... and what is written in so many ms at the present rate
 * @align: sizes are multiples of it
 * @max: never make it larger than so many bytes
 * @timeout_ms: how long a provider may take
 * @attempts: refuse a request that was answered so often in vain
 */
typedef struct SgPolicy {
    char *vm;
    char *path;
    SgProviderType provider;
    char *resource;
    char **command;
    uint64_t chunk, percent, lead_ms, align, max;
    uint32_t timeout_ms;
    uint32_t attempts;
} SgPolicy;

/**
 * struct SgLimits: what the configuration says beside the policies
 * @connections: so many peers at a time
 * @hello_ms: how long one may take to say something, TLS included
 */
typedef struct SgLimits {
    uint32_t connections;
    uint32_t hello_ms;
} SgLimits;

/**
 * sg_policies_load: read a configuration
 * @limits: filled in
 *
 * Returns: an array of SgPolicy that frees them, or NULL with @error set; it
 * names the member, the value and the limit.
 */
GPtrArray *sg_policies_load(const char *path, SgLimits *limits,
                            GError **error);
GPtrArray *sg_policies_parse(const char *text, SgLimits *limits,
                             GError **error);

/* Whether the patterns of a policy match */
bool sg_policy_matches(const SgPolicy *policy, const char *vm,
                       const char *path);

/* The first that matches, or NULL */
const SgPolicy *sg_policy_find(GPtrArray *policies, const char *vm,
                               const char *path);

/**
 * sg_policy_target: the size to grow to
 * @size: size now, in bytes
 * @needed: how many bytes are needed at least
 * @rate: bytes written per second
 * @target: the result: larger than @size by @needed or more, at most @max
 *
 * Returns: NULL, or the reason why it cannot grow.
 */
const char *sg_policy_target(const SgPolicy *policy, int64_t size,
                             uint64_t needed, uint64_t rate,
                             uint64_t *target);

/**
 * sg_policy_is_volatile: whether what grows does not outlive the host's kernel
 *
 * A tmpfs goes when the power fails, with what it has grown by: whoever asks
 * for the same growth again, as a virtual machine that was saved to a disk may,
 * does not get it twice.  A loop device goes, too, but its file remains, with
 * its size.
 */
bool sg_policy_is_volatile(const SgPolicy *policy);

const char *sg_provider_name(SgProviderType type);

#endif

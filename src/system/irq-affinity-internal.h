/*
 * Interrupt affinity that follows the vCPU: what its files share
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Everything is protected by the BQL.
 */

#ifndef SYSTEM_IRQ_AFFINITY_INTERNAL_H
#define SYSTEM_IRQ_AFFINITY_INTERNAL_H

#include "qemu/queue.h"
#include "qemu/timer.h"
#include "system/irq-affinity.h"
#include "system/irq-affinity-policy.h"
#include "irq-affinity-client.h"
#include "irq-affinity-host.h"
#include "irq-affinity-watch.h"

/* In place of a vCPU, besides IRQ_DEST_*: the guest has not set it up */
#define IRQ_OWNER_NO_ROUTE (-4)

/**
 * struct IRQFollowed: one vector of a device
 * @v: what the policy keeps
 * @client: the device
 * @vector: its number there
 * @host: the host's interrupt, NULL: none
 * @owner: index of the vCPU, or one of IRQ_DEST_*, IRQ_OWNER_NO_ROUTE
 * @unowned: it was given back because nothing is there to follow
 * @returning: that it is given back was asked for last, and is not done
 * @seen: used during a rescan
 *
 * It is known to the policy while @host is not NULL.
 */
typedef struct IRQFollowed {
    IRQVector v;
    IRQAffinityClient *client;
    unsigned vector;
    IRQHostIRQ *host;
    int owner;
    bool unowned;
    bool returning;
    bool seen;
} IRQFollowed;

/**
 * struct IRQFollowedVCPU: one vCPU
 * @affinity: the object
 * @cpu: the vCPU
 * @watch: its thread, NULL: it shares it with another
 * @parked: it owns no vector, only its event is kept
 * @sampled_run_ns: run time when sampled last
 * @sample_due_ns: when to sample again
 * @sample_step_ns: time between samples, longer while it sleeps
 */
typedef struct IRQFollowedVCPU {
    IRQAffinity *affinity;
    CPUState *cpu;
    IRQWatch *watch;
    bool parked;
    uint64_t sampled_run_ns;
    int64_t sample_due_ns;
    int64_t sample_step_ns;
} IRQFollowedVCPU;

struct IRQAffinityClient {
    IRQAffinity *affinity;
    const IRQAffinitySource *source;
    void *opaque;
    char *path;
    char *host;
    GPtrArray *vectors;         /* IRQFollowed, by number */
    QTAILQ_ENTRY(IRQAffinityClient) next;
};

struct IRQAffinity {
    Object parent_obj;

    /* Properties, fixed after creation */
    IrqAffinityPolicy policy;
    IrqAffinityLocality locality;
    uint32_t forward_threshold;
    uint32_t forward_window_ms;
    uint32_t min_interval_ms;
    uint32_t max_moves_per_s;
    uint32_t sample_interval_ms;
    char *helper;
    char *host_root;

    /* State */
    bool complete;
    bool told;                  /* that nothing can be moved */
    bool told_return;           /* that something was not given back */
    bool told_unreadable;       /* that something cannot be read */
    bool told_foreign;          /* that something is left alone */
    IRQHost *host;
    IRQClient *client;          /* NULL: without helper */
    IRQPolicy *engine;
    QEMUTimer *timer;
    QEMUTimer *rescan;          /* armed: look at everything anew */
    int64_t rescanned_ns;       /* when that was done last */
    bool unknown;               /* not all could be told then */
    GPtrArray *vcpus;           /* IRQFollowedVCPU or NULL, by index */
    uint64_t wake_ups;
    QTAILQ_HEAD(, IRQAffinityClient) clients;
    QTAILQ_ENTRY(IRQAffinity) next;
};

/**
 * irq_affinity_start: a new object takes up its work
 *
 * Returns: false: see @errp.
 */
bool irq_affinity_start(IRQAffinity *a, Error **errp);

/**
 * irq_affinity_stop: an object goes
 */
void irq_affinity_stop(IRQAffinity *a);

/**
 * irq_affinity_source: how the moves of a vCPU are noticed
 */
IrqAffinitySource irq_affinity_source(const IRQFollowedVCPU *vcpu);

typedef QTAILQ_HEAD(IRQAffinityList, IRQAffinity) IRQAffinityList;

/**
 * irq_affinity_all: the objects that exist
 */
const IRQAffinityList *irq_affinity_all(void);

#endif

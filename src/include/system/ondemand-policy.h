/*
 * On-demand mapping: when trapped memory is worth a mapping
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * An access to trapped memory is emulated.  When the accesses to a location
 * exceed a threshold, the location is mapped and traps no more (US 9,342,450).
 * An ondemand-policy object says how many accesses that takes and sets the
 * limits that a guest cannot exceed.  Several regions may share one policy;
 * limits in bytes and per second are for all of them together, the number of
 * chunks is for each.
 */

#ifndef SYSTEM_ONDEMAND_POLICY_H
#define SYSTEM_ONDEMAND_POLICY_H

#include "qemu/queue.h"
#include "qemu/ratelimit.h"
#include "qom/object.h"

#define TYPE_ONDEMAND_POLICY "ondemand-policy"
OBJECT_DECLARE_SIMPLE_TYPE(OndemandPolicy, ONDEMAND_POLICY)

/* Most chunks that one region may have mapped, whatever the policy says */
#define ONDEMAND_CHUNKS_MAX 256

/**
 * struct OndemandTuner: the threshold of ``threshold=auto``
 * @threshold: accesses, as it stands now; others read it with qatomic_read()
 * @traps: accesses trapped since @start_ns
 * @start_ns: begin of the present interval, QEMU_CLOCK_REALTIME
 *
 * The threshold is halved while more accesses trap in a second than
 * ONDEMAND_TUNER_TARGET, and doubled while less than half as many do.
 */
typedef struct OndemandTuner {
    uint32_t threshold;
    uint32_t traps;
    int64_t start_ns;
} OndemandTuner;

/* Trapped accesses a second that are aimed at: about 1 % of a vCPU's time */
#define ONDEMAND_TUNER_TARGET 1000
#define ONDEMAND_TUNER_MIN 1
#define ONDEMAND_TUNER_MAX 4096
#define ONDEMAND_TUNER_START 64
#define ONDEMAND_TUNER_INTERVAL_NS (100 * 1000 * 1000)

/**
 * ondemand_tuner_trap: count one trapped access, and tune
 * @tuner: the state
 * @now_ns: the time, QEMU_CLOCK_REALTIME
 */
void ondemand_tuner_trap(OndemandTuner *tuner, int64_t now_ns);

struct OndemandMap;

/**
 * struct OndemandPolicy: one -object ondemand-policy
 *
 * The properties are fixed while @users is not 0.  Everything else is protected
 * by the BQL, where nothing else is said.
 */
struct OndemandPolicy {
    Object parent_obj;

    /* Properties */
    bool threshold_auto;
    uint32_t threshold;         /* accesses */
    uint64_t granule;           /* bytes, filled as one */
    uint32_t chunks;            /* mapped at a time, per region */
    uint64_t max_mapped;        /* bytes */
    uint32_t max_commits_per_s;

    /* State */
    unsigned users;             /* regions */
    uint64_t mapped;            /* bytes, of all its regions */
    QemuMutex tuner_lock;       /* protects @tuner but for its threshold */
    OndemandTuner tuner;
    RateLimit limit;
    int64_t next_commit_ns;     /* not before, QEMU_CLOCK_REALTIME */
    QEMUBH *bh;
    QEMUTimer *timer;
    QTAILQ_HEAD(, OndemandMap) queue;   /* regions with something to map */
};

/**
 * ondemand_policy_threshold: what an access count must exceed
 * @policy: the policy
 *
 * Returns: number of accesses that are emulated before a mapping is made; 0:
 * map without waiting for any access.
 */
uint32_t ondemand_policy_threshold(const OndemandPolicy *policy);

/**
 * ondemand_policy_trap: tell the policy of a trapped access
 * @policy: the policy
 *
 * Context: any thread.
 */
void ondemand_policy_trap(OndemandPolicy *policy);

#endif

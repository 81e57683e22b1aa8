/*
 * On-demand mapping: the policy object
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/cutils.h"
#include "qemu/error-report.h"
#include "qemu/host-utils.h"
#include "qemu/lockable.h"
#include "qemu/units.h"
#include "qapi/error.h"
#include "qapi/visitor.h"
#include "qom/object_interfaces.h"
#include "system/ondemand-map.h"
#include "system/ondemand-policy.h"
#include "system/replay.h"

#define DEFAULT_THRESHOLD 64
#define DEFAULT_GRANULE (64 * KiB)
#define DEFAULT_CHUNKS 64
#define DEFAULT_MAX_COMMITS_PER_S 50

#define MAX_THRESHOLD 1000000000
#define MIN_GRANULE (4 * KiB)
#define MAX_GRANULE (1 * GiB)
#define MIN_MAX_MAPPED (4 * KiB)
#define MAX_MAX_COMMITS_PER_S 1000

void ondemand_tuner_trap(OndemandTuner *tuner, int64_t now_ns)
{
    int64_t elapsed_ns;
    double rate;

    if (!tuner->traps++) {
        tuner->start_ns = now_ns;
    }
    elapsed_ns = now_ns - tuner->start_ns;
    if (elapsed_ns < ONDEMAND_TUNER_INTERVAL_NS) {
        return;
    }
    rate = (double)tuner->traps * NANOSECONDS_PER_SECOND / elapsed_ns;
    if (rate > ONDEMAND_TUNER_TARGET) {
        qatomic_set(&tuner->threshold,
                    MAX(tuner->threshold / 2, ONDEMAND_TUNER_MIN));
    } else if (rate < ONDEMAND_TUNER_TARGET / 2) {
        qatomic_set(&tuner->threshold,
                    MIN(tuner->threshold * 2, ONDEMAND_TUNER_MAX));
    }
    tuner->traps = 0;
}

uint32_t ondemand_policy_threshold(const OndemandPolicy *policy)
{
    return policy->threshold_auto ? qatomic_read(&policy->tuner.threshold)
                                  : policy->threshold;
}

void ondemand_policy_trap(OndemandPolicy *policy)
{
    if (policy->threshold_auto) {
        QEMU_LOCK_GUARD(&policy->tuner_lock);
        ondemand_tuner_trap(&policy->tuner,
                            qemu_clock_get_ns(QEMU_CLOCK_REALTIME));
    }
}

static bool may_change(OndemandPolicy *policy, const char *name, Error **errp)
{
    if (policy->users) {
        error_setg(errp, "Property '%s' of " TYPE_ONDEMAND_POLICY " cannot be "
                   "changed while %u regions use it", name, policy->users);
        return false;
    }
    return true;
}

static char *get_threshold(Object *obj, Error **errp)
{
    OndemandPolicy *policy = ONDEMAND_POLICY(obj);

    return policy->threshold_auto ? g_strdup("auto")
                                  : g_strdup_printf("%u", policy->threshold);
}

static void set_threshold(Object *obj, const char *value, Error **errp)
{
    OndemandPolicy *policy = ONDEMAND_POLICY(obj);
    unsigned number = 0;
    bool automatic = g_str_equal(value, "auto");

    if (!may_change(policy, "threshold", errp)) {
        return;
    }
    if (!automatic && (qemu_strtoui(value, NULL, 10, &number) ||
                       number > MAX_THRESHOLD)) {
        error_setg(errp, "Property 'threshold' of " TYPE_ONDEMAND_POLICY
                   " is '%s', but must be 'auto' or a number from 0 to %u",
                   value, MAX_THRESHOLD);
        return;
    }
    policy->threshold_auto = automatic;
    policy->threshold = number;
}

/* Values and their limits; all are stored as uint64_t or uint32_t */
typedef struct NumberProperty {
    const char *name;
    size_t offset;
    bool is_size;
    uint64_t min, max;
    const char *description;
} NumberProperty;

static const NumberProperty numbers[] = {
    { "granule", offsetof(OndemandPolicy, granule), true,
      MIN_GRANULE, MAX_GRANULE,
      "how much is filled as one, in bytes, where contents come on demand" },
    { "chunks", offsetof(OndemandPolicy, chunks), false,
      1, ONDEMAND_CHUNKS_MAX,
      "how many pieces of a region may be mapped at a time" },
    { "max-mapped", offsetof(OndemandPolicy, max_mapped), true,
      MIN_MAX_MAPPED, UINT64_MAX,
      "how much may be mapped at a time, in bytes, in all regions with this "
      "policy" },
    { "max-commits-per-s", offsetof(OndemandPolicy, max_commits_per_s), false,
      1, MAX_MAX_COMMITS_PER_S,
      "how often the memory map may be changed to map something, times per "
      "second" },
};

static void *number_field(OndemandPolicy *policy, const NumberProperty *p)
{
    return (char *)policy + p->offset;
}

static void get_number(Object *obj, Visitor *v, const char *name, void *opaque,
                       Error **errp)
{
    const NumberProperty *p = opaque;
    void *field = number_field(ONDEMAND_POLICY(obj), p);

    if (p->is_size) {
        visit_type_size(v, name, field, errp);
    } else {
        visit_type_uint32(v, name, field, errp);
    }
}

static void set_number(Object *obj, Visitor *v, const char *name, void *opaque,
                       Error **errp)
{
    OndemandPolicy *policy = ONDEMAND_POLICY(obj);
    const NumberProperty *p = opaque;
    uint64_t value;
    uint32_t value32;

    if (!may_change(policy, name, errp)) {
        return;
    }
    if (p->is_size ? !visit_type_size(v, name, &value, errp)
                   : !visit_type_uint32(v, name, &value32, errp)) {
        return;
    }
    if (!p->is_size) {
        value = value32;
    }
    if (value < p->min || value > p->max) {
        error_setg(errp, "Property '%s' of " TYPE_ONDEMAND_POLICY " is %" PRIu64
                   ", but must be from %" PRIu64 " to %" PRIu64, name, value,
                   p->min, p->max);
        return;
    }
    if (p->is_size) {
        *(uint64_t *)number_field(policy, p) = value;
    } else {
        *(uint32_t *)number_field(policy, p) = value;
    }
}

static void policy_complete(UserCreatable *uc, Error **errp)
{
    OndemandPolicy *policy = ONDEMAND_POLICY(uc);

    if (!is_power_of_2(policy->granule) ||
        policy->granule < qemu_real_host_page_size()) {
        error_setg(errp, "Property 'granule' of " TYPE_ONDEMAND_POLICY " is %"
                   PRIu64 ", but must be a power of two and at least the "
                   "host's page size, %zu", policy->granule,
                   (size_t)qemu_real_host_page_size());
        return;
    }
    if (replay_mode != REPLAY_MODE_NONE) {
        /* when a mapping is made depends on the host's clock */
        error_setg(errp, "Record/replay is not supported with "
                   TYPE_ONDEMAND_POLICY);
        return;
    }
    ratelimit_set_speed(&policy->limit, policy->max_commits_per_s,
                        NANOSECONDS_PER_SECOND / policy->max_commits_per_s);
    policy->tuner.threshold = ONDEMAND_TUNER_START;
    ondemand_map_policy_start(policy);
}

static bool policy_can_be_deleted(UserCreatable *uc)
{
    return !ONDEMAND_POLICY(uc)->users;
}

static void policy_init(Object *obj)
{
    OndemandPolicy *policy = ONDEMAND_POLICY(obj);

    policy->threshold = DEFAULT_THRESHOLD;
    policy->granule = DEFAULT_GRANULE;
    policy->chunks = DEFAULT_CHUNKS;
    policy->max_mapped = UINT64_MAX;
    policy->max_commits_per_s = DEFAULT_MAX_COMMITS_PER_S;
    QTAILQ_INIT(&policy->queue);
    ratelimit_init(&policy->limit);
    qemu_mutex_init(&policy->tuner_lock);
}

static void policy_finalize(Object *obj)
{
    OndemandPolicy *policy = ONDEMAND_POLICY(obj);

    ondemand_map_policy_stop(policy);
    ratelimit_destroy(&policy->limit);
    qemu_mutex_destroy(&policy->tuner_lock);
}

static void policy_class_init(ObjectClass *oc, const void *data)
{
    UserCreatableClass *ucc = USER_CREATABLE_CLASS(oc);

    ucc->complete = policy_complete;
    ucc->can_be_deleted = policy_can_be_deleted;
    object_class_property_add_str(oc, "threshold", get_threshold,
                                  set_threshold);
    object_class_property_set_description(oc, "threshold",
        "number of accesses to emulate before mapping (0: map at once), or "
        "'auto'");
    for (int i = 0; i < ARRAY_SIZE(numbers); i++) {
        const NumberProperty *p = &numbers[i];

        object_class_property_add(oc, p->name, p->is_size ? "size" : "uint32",
                                  get_number, set_number, NULL, (void *)p);
        object_class_property_set_description(oc, p->name, p->description);
    }
}

static const TypeInfo policy_types[] = {
    {
        .name = TYPE_ONDEMAND_POLICY,
        .parent = TYPE_OBJECT,
        .instance_size = sizeof(OndemandPolicy),
        .instance_init = policy_init,
        .instance_finalize = policy_finalize,
        .class_init = policy_class_init,
        .interfaces = (const InterfaceInfo[]) {
            { TYPE_USER_CREATABLE },
            { },
        },
    },
};

DEFINE_TYPES(policy_types)

/*
 * Interrupt affinity that follows the vCPU: the object and its query
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-irq-affinity.h"
#include "qapi/visitor.h"
#include "qom/object_interfaces.h"
#include "irq-affinity-internal.h"

#define DEFAULT_FORWARD_THRESHOLD 16
#define DEFAULT_FORWARD_WINDOW_MS 100
#define DEFAULT_MIN_INTERVAL_MS 10
#define DEFAULT_MAX_MOVES_PER_S 200
#define DEFAULT_SAMPLE_INTERVAL_MS 5

/*
 * QMP
 */

static IrqAffinityRefusalCountList *refusal_list(const uint64_t *counts)
{
    IrqAffinityRefusalCountList *list = NULL, **tail = &list;

    for (int i = 0; i < IRQ_AFFINITY_REFUSAL__MAX; i++) {
        IrqAffinityRefusalCount *one;

        if (!counts[i]) {
            continue;
        }
        one = g_new0(IrqAffinityRefusalCount, 1);
        one->reason = i;
        one->count = counts[i];
        QAPI_LIST_APPEND(tail, one);
    }
    return list;
}

/* That somebody else has it may not have been noticed: nobody looks for it. */
static bool is_left_alone(const IRQFollowed *f)
{
    return f->v.stood_down ||
           (!f->v.pending && irq_host_mask(f->host) == IRQ_MASK_FOREIGN);
}

static IrqAffinityState vector_state(const IRQFollowed *f, int vcpu_cpu)
{
    const IRQAffinity *a = f->client->affinity;
    int place = f->v.target >= 0 ? f->v.target : f->v.at;

    if (!f->host) {
        return IRQ_AFFINITY_STATE_NO_IRQ;
    }
    switch (f->owner) {
    case IRQ_OWNER_NO_ROUTE:
        return IRQ_AFFINITY_STATE_NO_ROUTE;
    case IRQ_DEST_SEVERAL:
        return IRQ_AFFINITY_STATE_SEVERAL_VCPUS;
    }
    if (vcpu_cpu < 0) {
        return IRQ_AFFINITY_STATE_NO_VCPU;
    }
    if (is_left_alone(f)) {
        return IRQ_AFFINITY_STATE_STOOD_DOWN;
    }
    if (place >= 0 && irq_host_near(a->host, place, vcpu_cpu)) {
        return IRQ_AFFINITY_STATE_FOLLOWING;
    }
    return irq_policy_quiet(a->engine, &f->v,
                            qemu_clock_get_ns(QEMU_CLOCK_REALTIME))
           ? IRQ_AFFINITY_STATE_IDLE_OR_POSTED : IRQ_AFFINITY_STATE_BEHIND;
}

static IrqAffinityVector *vector_info(const IRQFollowed *f)
{
    const IRQAffinity *a = f->client->affinity;
    IrqAffinityVector *info = g_new0(IrqAffinityVector, 1);
    int cpu = f->owner >= 0 ? irq_policy_vcpu_cpu(a->engine, f->owner) : -1;

    info->device = g_strdup(f->client->path);
    info->host = g_strdup(f->client->host);
    info->vector = f->vector;
    info->state = vector_state(f, cpu);
    info->has_irq = f->host != NULL;
    info->irq = f->host ? irq_host_number(f->host) : 0;
    info->has_vcpu = f->owner >= 0;
    info->vcpu = f->owner;
    info->has_vcpu_host_cpu = cpu >= 0;
    info->vcpu_host_cpu = cpu;
    info->has_taken_on = f->host && f->v.at >= 0;
    info->taken_on = f->v.at;
    info->has_sent_to = f->host && f->v.target >= 0;
    info->sent_to = f->v.target;
    info->interrupts = f->v.interrupts;
    info->forwards = f->v.forwards;
    info->moves = f->v.moves;
    info->refusals = refusal_list(f->v.refusals);
    info->has_last_refusal = info->refusals != NULL;
    info->last_refusal = f->v.last_refusal;
    return info;
}

static IrqAffinityVectorList *vector_list(const IRQAffinity *a)
{
    IrqAffinityVectorList *list = NULL, **tail = &list;
    IRQAffinityClient *c;

    QTAILQ_FOREACH(c, &a->clients, next) {
        for (unsigned i = 0; i < c->vectors->len; i++) {
            QAPI_LIST_APPEND(tail, vector_info(g_ptr_array_index(c->vectors,
                                                                 i)));
        }
    }
    return list;
}

static IrqAffinityVcpuList *vcpu_list(const IRQAffinity *a)
{
    IrqAffinityVcpuList *list = NULL, **tail = &list;

    for (unsigned i = 0; i < a->vcpus->len; i++) {
        const IRQFollowedVCPU *vcpu = g_ptr_array_index(a->vcpus, i);
        IrqAffinityVcpu *info;
        int cpu = irq_policy_vcpu_cpu(a->engine, i);

        if (!vcpu || vcpu->parked) {
            continue;
        }
        info = g_new0(IrqAffinityVcpu, 1);
        info->cpu_index = i;
        info->thread_id = vcpu->cpu->thread_id;
        info->source = irq_affinity_source(vcpu);
        info->has_host_cpu = cpu >= 0;
        info->host_cpu = cpu;
        info->notices = irq_policy_vcpu_notices(a->engine, i);
        QAPI_LIST_APPEND(tail, info);
    }
    return list;
}

IrqAffinityInfoList *qmp_query_irq_affinity(Error **errp)
{
    IrqAffinityInfoList *list = NULL, **tail = &list;
    const IRQAffinity *a;

    QTAILQ_FOREACH(a, irq_affinity_all(), next) {
        const IRQPolicyStats *stats = irq_policy_stats(a->engine);
        IrqAffinityInfo *info = g_new0(IrqAffinityInfo, 1);

        info->id = g_strdup(object_get_canonical_path_component(OBJECT(a)));
        info->policy = a->policy;
        info->has_helper = a->client != NULL;
        info->helper = a->client && irq_client_connected(a->client);
        info->moves = stats->moves;
        info->held = stats->held;
        info->over_budget = stats->over_budget;
        info->foreign = stats->foreign;
        info->resets = stats->resets;
        info->wake_ups = a->wake_ups;
        info->refusals = refusal_list(stats->refusals);
        info->vcpus = vcpu_list(a);
        info->vectors = vector_list(a);
        QAPI_LIST_APPEND(tail, info);
    }
    return list;
}

/*
 * Properties
 */

static bool may_change(IRQAffinity *a, const char *name, Error **errp)
{
    if (a->complete) {
        error_setg(errp, "Property '%s' of " TYPE_IRQ_AFFINITY " cannot be "
                   "changed after creation", name);
        return false;
    }
    return true;
}

/* Values and their limits */
typedef struct NumberProperty {
    const char *name;
    size_t offset;
    uint32_t min, max;
    const char *description;
} NumberProperty;

static const NumberProperty numbers[] = {
    { "forward-threshold", offsetof(IRQAffinity, forward_threshold),
      1, 1000000,
      "forwarded interrupts of a vector within the window that make the "
      "pessimistic rule move it" },
    { "forward-window-ms", offsetof(IRQAffinity, forward_window_ms),
      1, 10000,
      "length of the window, in milliseconds" },
    { "min-interval-ms", offsetof(IRQAffinity, min_interval_ms),
      0, 60000,
      "least time between two moves of one vCPU's interrupts, in "
      "milliseconds" },
    { "max-moves-per-s", offsetof(IRQAffinity, max_moves_per_s),
      1, IRQ_POLICY_MOVES_MAX,
      "most attempts to move an interrupt, per second" },
    { "sample-interval-ms", offsetof(IRQAffinity, sample_interval_ms),
      1, 1000,
      "how often to look where a vCPU runs if the scheduler does not tell, "
      "in milliseconds" },
};

static uint32_t *number_field(Object *obj, const NumberProperty *p)
{
    return (uint32_t *)((char *)IRQ_AFFINITY(obj) + p->offset);
}

static void get_number(Object *obj, Visitor *v, const char *name, void *opaque,
                       Error **errp)
{
    visit_type_uint32(v, name, number_field(obj, opaque), errp);
}

static void set_number(Object *obj, Visitor *v, const char *name, void *opaque,
                       Error **errp)
{
    const NumberProperty *p = opaque;
    uint32_t value;

    if (!may_change(IRQ_AFFINITY(obj), name, errp) ||
        !visit_type_uint32(v, name, &value, errp)) {
        return;
    }
    if (value < p->min || value > p->max) {
        error_setg(errp, "Property '%s' of " TYPE_IRQ_AFFINITY " is %" PRIu32
                   ", but must be from %" PRIu32 " to %" PRIu32, name, value,
                   p->min, p->max);
        return;
    }
    *number_field(obj, p) = value;
}

static int get_policy(Object *obj, Error **errp)
{
    return IRQ_AFFINITY(obj)->policy;
}

static void set_policy(Object *obj, int value, Error **errp)
{
    if (may_change(IRQ_AFFINITY(obj), "policy", errp)) {
        IRQ_AFFINITY(obj)->policy = value;
    }
}

static int get_locality(Object *obj, Error **errp)
{
    return IRQ_AFFINITY(obj)->locality;
}

static void set_locality(Object *obj, int value, Error **errp)
{
    if (may_change(IRQ_AFFINITY(obj), "locality", errp)) {
        IRQ_AFFINITY(obj)->locality = value;
    }
}

static char *get_helper(Object *obj, Error **errp)
{
    return g_strdup(IRQ_AFFINITY(obj)->helper);
}

static void set_helper(Object *obj, const char *value, Error **errp)
{
    IRQAffinity *a = IRQ_AFFINITY(obj);

    if (!may_change(a, "helper", errp)) {
        return;
    }
    if (!*value || strlen(value) >= IRQ_CLIENT_PATH_MAX) {
        error_setg(errp, "Property 'helper' of " TYPE_IRQ_AFFINITY " is '%s', "
                   "but must be the path of a socket, of at most %d bytes",
                   value, IRQ_CLIENT_PATH_MAX - 1);
        return;
    }
    g_free(a->helper);
    a->helper = g_strdup(value);
}

static char *get_host_root(Object *obj, Error **errp)
{
    return g_strdup(IRQ_AFFINITY(obj)->host_root);
}

static void set_host_root(Object *obj, const char *value, Error **errp)
{
    IRQAffinity *a = IRQ_AFFINITY(obj);

    if (may_change(a, "x-host-root", errp)) {
        g_free(a->host_root);
        a->host_root = g_strdup(value);
    }
}

/*
 * The object
 */

static void affinity_complete(UserCreatable *uc, Error **errp)
{
    IRQAffinity *a = IRQ_AFFINITY(uc);

    a->complete = irq_affinity_start(a, errp);
}

static bool affinity_can_be_deleted(UserCreatable *uc)
{
    return QTAILQ_EMPTY(&IRQ_AFFINITY(uc)->clients);
}

static void affinity_init(Object *obj)
{
    IRQAffinity *a = IRQ_AFFINITY(obj);

    a->policy = IRQ_AFFINITY_POLICY_OPTIMISTIC;
    a->locality = IRQ_AFFINITY_LOCALITY_CPU;
    a->forward_threshold = DEFAULT_FORWARD_THRESHOLD;
    a->forward_window_ms = DEFAULT_FORWARD_WINDOW_MS;
    a->min_interval_ms = DEFAULT_MIN_INTERVAL_MS;
    a->max_moves_per_s = DEFAULT_MAX_MOVES_PER_S;
    a->sample_interval_ms = DEFAULT_SAMPLE_INTERVAL_MS;
    QTAILQ_INIT(&a->clients);
}

static void affinity_finalize(Object *obj)
{
    IRQAffinity *a = IRQ_AFFINITY(obj);

    if (a->complete) {
        irq_affinity_stop(a);
    }
    g_free(a->helper);
    g_free(a->host_root);
}

static void affinity_class_init(ObjectClass *oc, const void *data)
{
    UserCreatableClass *ucc = USER_CREATABLE_CLASS(oc);

    ucc->complete = affinity_complete;
    ucc->can_be_deleted = affinity_can_be_deleted;
    object_class_property_add_enum(oc, "policy", "IrqAffinityPolicy",
                                   &IrqAffinityPolicy_lookup, get_policy,
                                   set_policy);
    object_class_property_set_description(oc, "policy",
        "when an interrupt is moved");
    object_class_property_add_enum(oc, "locality", "IrqAffinityLocality",
                                   &IrqAffinityLocality_lookup, get_locality,
                                   set_locality);
    object_class_property_set_description(oc, "locality",
        "how near to its vCPU an interrupt is left where it is");
    for (int i = 0; i < ARRAY_SIZE(numbers); i++) {
        const NumberProperty *p = &numbers[i];

        object_class_property_add(oc, p->name, "uint32", get_number,
                                  set_number, NULL, (void *)p);
        object_class_property_set_description(oc, p->name, p->description);
    }
    object_class_property_add_str(oc, "helper", get_helper, set_helper);
    object_class_property_set_description(oc, "helper",
        "path of the socket of qemu-irq-affinity-helper");
    object_class_property_add_str(oc, "x-host-root", get_host_root,
                                  set_host_root);
    object_class_property_set_description(oc, "x-host-root",
        "directory in the place of the host's root, for tests");
}

static const TypeInfo affinity_types[] = {
    {
        .name = TYPE_IRQ_AFFINITY,
        .parent = TYPE_OBJECT,
        .instance_size = sizeof(IRQAffinity),
        .instance_init = affinity_init,
        .instance_finalize = affinity_finalize,
        .class_init = affinity_class_init,
        .interfaces = (const InterfaceInfo[]) {
            { TYPE_USER_CREATABLE },
            { },
        },
    },
};

DEFINE_TYPES(affinity_types)

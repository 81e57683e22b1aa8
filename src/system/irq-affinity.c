/*
 * Interrupt affinity that follows the vCPU: devices, vCPUs, moves
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Everything happens in the main loop under the BQL: one timer looks at
 * interrupts and routes anew, soon after any of them changed and not more
 * often than every 20 ms, since a guest can change them; another samples vCPUs
 * that cannot be watched otherwise and runs what the policy has planned.
 * While no device is attached, or nothing is planned and no vCPU is sampled,
 * neither is armed.
 */

#include "qemu/osdep.h"
#include "qemu/error-report.h"
#include "qemu/main-loop.h"
#include "qapi/error.h"
#include "qapi/qapi-events-irq-affinity.h"
#include "hw/qdev-core.h"
#include "system/hotpath-stats.h"
#include "irq-affinity-internal.h"
#include "trace.h"

/* Least time between two looks at everything: the guest can ask for them */
#define RESCAN_MIN_NS (20 * SCALE_MS)

/* Until everything is looked at again when something could not be told */
#define RESCAN_UNKNOWN_NS (1000 * SCALE_MS)

/* Longest time between two samples of a vCPU that sleeps */
#define SAMPLE_MAX_NS (1000 * SCALE_MS)

static IRQAffinityList all = QTAILQ_HEAD_INITIALIZER(all);
static unsigned attached;       /* devices, of all objects */

/* Logical addresses of the vCPUs, by index; read again when asked for */
static GArray *logical;         /* IRQDestVCPU */
static void (*logical_read)(CPUState *cpu, IRQDestVCPU *dest);
static unsigned generation;     /* of routes */
static unsigned logical_generation;

const IRQAffinityList *irq_affinity_all(void)
{
    return &all;
}

static int64_t now_ns(void)
{
    return qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
}

static void rescan_soon(IRQAffinity *a)
{
    timer_mod_anticipate_ns(a->rescan, MAX(now_ns(),
                                           a->rescanned_ns + RESCAN_MIN_NS));
}

static const char *object_id(IRQAffinity *a)
{
    return object_get_canonical_path_component(OBJECT(a)) ?: "";
}

/*
 * What the policy asks
 */

static IRQFollowed *followed(IRQVector *v)
{
    return container_of(v, IRQFollowed, v);
}

static IRQFollowedVCPU *vcpu_at(const IRQAffinity *a, unsigned index)
{
    return index < a->vcpus->len ? g_ptr_array_index(a->vcpus, index) : NULL;
}

static bool world_counts(void *opaque, IRQVector *v, uint32_t *counts)
{
    return irq_host_counts(followed(v)->host, counts);
}

static bool world_run_ns(void *opaque, unsigned index, uint64_t *run_ns)
{
    IRQFollowedVCPU *vcpu = vcpu_at(opaque, index);

    return vcpu && vcpu->watch && irq_watch_run_ns(vcpu->watch, run_ns);
}

static bool world_near(void *opaque, int a, int b)
{
    return irq_host_near(((IRQAffinity *)opaque)->host, a, b);
}

/* With irqbalance that would be all of them, before long. */
static void tell_foreign(IRQAffinity *a, const IRQFollowed *f)
{
    if (!a->told_foreign) {
        a->told_foreign = true;
        warn_report("irq-affinity '%s': IRQ %d of '%s' stays where it is: "
                    "somebody else, perhaps irqbalance, has changed its "
                    "affinity; it is said once", object_id(a),
                    irq_host_number(f->host), f->client->path);
    }
}

static IRQMask world_mask(void *opaque, IRQVector *v)
{
    IRQAffinity *a = opaque;
    IRQFollowed *f = followed(v);
    IRQMask mask = irq_host_mask(f->host);

    if (mask == IRQ_MASK_FOREIGN) {
        trace_irq_affinity_foreign(object_id(a), f->client->path,
                                   irq_host_number(f->host));
        tell_foreign(a, f);
    }
    return mask;
}

/* An object whose moves are all denied would else be useless in silence. */
static void tell_denied(IRQAffinity *a, int err)
{
    IrqAffinityRefusal reason = irq_policy_refusal(err);

    if (a->told || (reason != IRQ_AFFINITY_REFUSAL_DENIED &&
                    reason != IRQ_AFFINITY_REFUSAL_NO_HELPER)) {
        return;
    }
    a->told = true;
    if (!a->helper) {
        warn_report("irq-affinity '%s': interrupts stay where they are: no "
                    "helper is set, and QEMU may not write "
                    "/proc/irq/N/smp_affinity_list: %s", object_id(a),
                    strerror(err));
    } else if (reason == IRQ_AFFINITY_REFUSAL_DENIED) {
        warn_report("irq-affinity '%s': an interrupt stays where it is: the "
                    "helper at '%s' does not allow to move it: %s",
                    object_id(a), a->helper, strerror(err));
    } else {
        int why = irq_client_error(a->client);

        warn_report("irq-affinity '%s': interrupts stay where they are: there "
                    "is no connection to the helper at '%s'%s%s; it is tried "
                    "again", object_id(a), a->helper, why ? ": " : "",
                    why ? strerror(why) : "");
    }
}

static void refused(IRQAffinity *a, IRQFollowed *f, int cpu, int err)
{
    IrqAffinityRefusal reason = irq_policy_refusal(err);
    int number = irq_host_number(f->host);

    trace_irq_affinity_refused(object_id(a), f->client->path, number, cpu,
                               IrqAffinityRefusal_str(reason));
    qapi_event_send_irq_affinity_refused(object_id(a), f->client->path, number,
                                         true, cpu, reason);
    tell_denied(a, err);
    if (reason == IRQ_AFFINITY_REFUSAL_GONE) {
        rescan_soon(a);
    }
}

static void told_move(IRQAffinity *a, IRQFollowed *f, int cpu, int err)
{
    if (err) {
        refused(a, f, cpu, err);
    } else {
        trace_irq_affinity_move(object_id(a), f->client->path, f->vector,
                                irq_host_number(f->host), cpu);
    }
}

static int ask_helper(IRQAffinity *a, IRQFollowed *f, int cpu)
{
    IRQAffinityClient *c = f->client;
    IRQFollowedVCPU *vcpu = vcpu_at(a, f->owner);

    return vcpu ? irq_client_move(a->client, f, irq_host_number(f->host),
                                  c->host, c->source->proof(c->opaque),
                                  vcpu->cpu->thread_id, cpu)
                : -EINVAL;
}

static int world_move(void *opaque, IRQVector *v, int cpu)
{
    IRQAffinity *a = opaque;
    IRQFollowed *f = followed(v);
    int ret = a->client ? ask_helper(a, f, cpu) : irq_host_move(f->host, cpu);

    if (ret != -EINPROGRESS) {
        told_move(a, f, cpu, -ret);
    }
    return ret;
}

static const IRQWorld world = {
    .counts = world_counts,
    .run_ns = world_run_ns,
    .near = world_near,
    .mask = world_mask,
    .move = world_move,
};

/*
 * Giving back
 */

/* An interrupt stays where it was sent, though nobody follows it any more. */
static void not_returned(IRQAffinity *a, const char *path, int number, int err)
{
    IrqAffinityRefusal reason = irq_policy_refusal(err);

    irq_policy_not_returned(a->engine, err);
    qapi_event_send_irq_affinity_refused(object_id(a), path, number, false, 0,
                                         reason);
    if (!a->told_return) {
        a->told_return = true;
        warn_report("irq-affinity '%s': IRQ %d of '%s' did not get back the "
                    "affinity that it had: %s (%s); it is said once",
                    object_id(a), number, path, strerror(err),
                    IrqAffinityRefusal_str(reason));
    }
}

static void told_return(IRQAffinity *a, const IRQRestore *what, int err)
{
    trace_irq_affinity_return(object_id(a), what->path, what->irq, err,
                              what->other);
    /* one that was freed meanwhile has nothing to get back */
    if (err && irq_policy_refusal(err) != IRQ_AFFINITY_REFUSAL_GONE) {
        not_returned(a, what->path, what->irq, err);
    }
}

/* A move that is under way comes first; what it leads to is not known yet. */
static bool is_ours(const IRQFollowed *f)
{
    return f->v.pending || (irq_host_was_moved(f->host) &&
                            irq_host_mask(f->host) != IRQ_MASK_FOREIGN);
}

static void give_back(IRQFollowed *f)
{
    IRQAffinity *a = f->client->affinity;
    IRQRestore what = {
        .irq = irq_host_number(f->host), .device = f->client->host,
        .path = f->client->path, .list = irq_host_original(f->host),
    };
    int ret;

    /* what was asked for will do: the guest can have this asked all the time */
    if (f->returning || !is_ours(f)) {
        return;
    }
    irq_policy_returning(a->engine, &f->v);
    if (a->client) {
        /* its owner may be gone, and may be held to few processors */
        ret = irq_client_restore(a->client, f, &what,
                                 f->client->source->proof(f->client->opaque),
                                 getpid());
    } else {
        ret = irq_host_restore(f->host);
    }
    f->returning = ret == -EINPROGRESS;
    if (!f->returning) {
        told_return(a, &what, -ret);
        irq_policy_returned(a->engine, &f->v, now_ns());
    }
}

/*
 * Time
 */

static void arm_timer(IRQAffinity *a, int64_t due_ns)
{
    for (unsigned i = 0; i < a->vcpus->len; i++) {
        IRQFollowedVCPU *vcpu = vcpu_at(a, i);

        if (vcpu && vcpu->watch) {
            due_ns = MIN(due_ns, vcpu->sample_due_ns);
        }
    }
    if (due_ns == IRQ_POLICY_NEVER) {
        timer_del(a->timer);
    } else {
        timer_mod_ns(a->timer, due_ns);
    }
}

static void run(IRQAffinity *a)
{
    arm_timer(a, irq_policy_run(a->engine, now_ns()));
}

static void vcpu_seen(void *opaque, int cpu)
{
    IRQFollowedVCPU *vcpu = opaque;
    IRQAffinity *a = vcpu->affinity;

    if (irq_watch_source(vcpu->watch) == IRQ_AFFINITY_SOURCE_SAMPLE &&
        vcpu->sample_due_ns == IRQ_POLICY_NEVER) {
        /* it was the last that the event told */
        vcpu->sample_due_ns = now_ns();
        run(a);
    }
    if (cpu != irq_policy_vcpu_cpu(a->engine, vcpu->cpu->cpu_index)) {
        trace_irq_affinity_vcpu(object_id(a), vcpu->cpu->cpu_index, cpu);
        irq_policy_vcpu_at(a->engine, vcpu->cpu->cpu_index, cpu, now_ns());
        run(a);
    }
}

/*
 * A thread that has not run since is where it was; it is looked at less
 * often, until it runs again.
 */
static void sample(IRQFollowedVCPU *vcpu, int64_t now)
{
    IRQAffinity *a = vcpu->affinity;
    int64_t step_ns = (int64_t)a->sample_interval_ms * SCALE_MS;
    uint64_t run_ns = 0;
    int cpu;

    if (irq_watch_run_ns(vcpu->watch, &run_ns) &&
        run_ns == vcpu->sampled_run_ns) {
        vcpu->sample_step_ns = MIN(vcpu->sample_step_ns * 2,
                                   MAX(SAMPLE_MAX_NS, step_ns));
    } else {
        vcpu->sample_step_ns = step_ns;
        cpu = irq_watch_cpu(vcpu->watch);
        if (cpu >= 0) {         /* else the next time */
            vcpu->sampled_run_ns = run_ns;
            irq_policy_vcpu_at(a->engine, vcpu->cpu->cpu_index, cpu, now);
        }
    }
    vcpu->sample_due_ns = now + vcpu->sample_step_ns;
}

static void timer_cb(void *opaque)
{
    IRQAffinity *a = opaque;
    int64_t now = now_ns();

    a->wake_ups++;
    for (unsigned i = 0; i < a->vcpus->len; i++) {
        IRQFollowedVCPU *vcpu = vcpu_at(a, i);

        if (vcpu && vcpu->watch && vcpu->sample_due_ns <= now) {
            sample(vcpu, now);
        }
    }
    run(a);
}

/* Confined, as by libvirt, QEMU may see nothing: not in silence. */
static void tell_unreadable(IRQAffinity *a, Error *err)
{
    if (a->told_unreadable) {
        error_free(err);
        return;
    }
    a->told_unreadable = true;
    warn_reportf_err(err, "irq-affinity '%s': interrupts stay where they are: ",
                     object_id(a));
}

/*
 * vCPUs
 */

static IRQDestVCPU *logical_of(CPUState *cpu)
{
    if (!logical) {
        logical = g_array_new(false, true, sizeof(IRQDestVCPU));
    }
    if (logical->len <= cpu->cpu_index) {
        g_array_set_size(logical, cpu->cpu_index + 1);
    }
    return &g_array_index(logical, IRQDestVCPU, cpu->cpu_index);
}

static bool shares_thread(CPUState *cpu)
{
    CPUState *other;

    CPU_FOREACH(other) {
        if (other != cpu && other->created &&
            other->thread_id == cpu->thread_id) {
            return true;
        }
    }
    return false;
}

IrqAffinitySource irq_affinity_source(const IRQFollowedVCPU *vcpu)
{
    return vcpu->watch ? irq_watch_source(vcpu->watch)
                       : IRQ_AFFINITY_SOURCE_NONE;
}

static void vcpu_free(void *opaque)
{
    IRQFollowedVCPU *vcpu = opaque;

    if (vcpu) {
        irq_watch_free(vcpu->watch);
        g_free(vcpu);
    }
}

static void vcpu_forget(IRQAffinity *a, unsigned index)
{
    if (vcpu_at(a, index)) {
        if (a->client) {
            irq_client_forget(a->client, a->vcpus->pdata[index]);
        }
        vcpu_free(a->vcpus->pdata[index]);
        a->vcpus->pdata[index] = NULL;
        irq_policy_vcpu_at(a->engine, index, -1, now_ns());
    }
}

/*
 * A vCPU that owns no interrupt at the moment.  The guest can have that change
 * all the time, and a helper opens so many events for a connection: one that
 * it has opened is kept.
 */
static void vcpu_park(IRQAffinity *a, unsigned index)
{
    IRQFollowedVCPU *vcpu = vcpu_at(a, index);

    if (!vcpu || !a->client || QTAILQ_EMPTY(&a->clients) ||
        irq_affinity_source(vcpu) != IRQ_AFFINITY_SOURCE_PERF) {
        vcpu_forget(a, index);
    } else if (!vcpu->parked) {
        vcpu->parked = true;
        irq_watch_pause(vcpu->watch, true);
        irq_policy_vcpu_at(a->engine, index, -1, now_ns());
    }
}

static void vcpu_unpark(IRQAffinity *a, IRQFollowedVCPU *vcpu)
{
    vcpu->parked = false;
    irq_watch_pause(vcpu->watch, false);
    irq_policy_vcpu_at(a->engine, vcpu->cpu->cpu_index,
                       irq_watch_cpu(vcpu->watch), now_ns());
}

/* The helper may open the event; until it has, the vCPU is sampled. */
static void ask_watch(IRQFollowedVCPU *vcpu)
{
    if (vcpu->affinity->client && !vcpu->affinity->host_root) {
        irq_client_watch(vcpu->affinity->client, vcpu, vcpu->cpu->thread_id);
    }
}

static void vcpu_follow(IRQAffinity *a, CPUState *cpu)
{
    unsigned index = cpu->cpu_index;
    IRQFollowedVCPU *vcpu = vcpu_at(a, index);

    if (vcpu && vcpu->parked) {
        vcpu_unpark(a, vcpu);
    }
    if (vcpu && (!vcpu->watch ||
                 irq_affinity_source(vcpu) != IRQ_AFFINITY_SOURCE_NONE)) {
        return;
    }
    vcpu_forget(a, index);      /* its files could not be opened */
    if (index >= a->vcpus->len) {
        g_ptr_array_set_size(a->vcpus, index + 1);
    }
    vcpu = g_new0(IRQFollowedVCPU, 1);
    vcpu->affinity = a;
    vcpu->cpu = cpu;
    vcpu->sample_due_ns = IRQ_POLICY_NEVER;
    a->vcpus->pdata[index] = vcpu;
    if (shares_thread(cpu)) {
        return;
    }
    vcpu->watch = irq_watch_new(a->host_root, cpu->thread_id, !a->client,
                                vcpu_seen, vcpu);
    if (irq_affinity_source(vcpu) == IRQ_AFFINITY_SOURCE_NONE) {
        Error *err = NULL;

        a->unknown = true;
        error_setg(&err, "'stat' of thread %d, vCPU %u, cannot be opened",
                   cpu->thread_id, index);
        tell_unreadable(a, err);
    }
    if (irq_watch_source(vcpu->watch) == IRQ_AFFINITY_SOURCE_SAMPLE) {
        vcpu->sample_due_ns = now_ns();
        ask_watch(vcpu);
    }
    irq_policy_vcpu_at(a->engine, index, irq_watch_cpu(vcpu->watch),
                       now_ns());
    trace_irq_affinity_follow(object_id(a), index, cpu->thread_id,
                              IrqAffinitySource_str(
                                  irq_affinity_source(vcpu)));
}

/* Follow the vCPUs that own an interrupt, and no others. */
static void follow_owners(IRQAffinity *a)
{
    g_autoptr(GHashTable) owners = g_hash_table_new(NULL, NULL);
    IRQAffinityClient *c;
    CPUState *cpu;

    QTAILQ_FOREACH(c, &a->clients, next) {
        for (unsigned i = 0; i < c->vectors->len; i++) {
            IRQFollowed *f = g_ptr_array_index(c->vectors, i);

            if (f->host && f->owner >= 0) {
                g_hash_table_add(owners, GINT_TO_POINTER(f->owner + 1));
            }
        }
    }
    for (unsigned i = 0; i < a->vcpus->len; i++) {
        if (!g_hash_table_contains(owners, GINT_TO_POINTER(i + 1))) {
            vcpu_park(a, i);
        }
    }
    CPU_FOREACH(cpu) {
        if (cpu->created && g_hash_table_contains(
                owners, GINT_TO_POINTER(cpu->cpu_index + 1))) {
            vcpu_follow(a, cpu);
        }
    }
}

void irq_affinity_vcpu_created(CPUState *cpu)
{
    irq_affinity_changed();
}

void irq_affinity_vcpu_destroyed(CPUState *cpu)
{
    IRQAffinity *a;

    QTAILQ_FOREACH(a, &all, next) {
        vcpu_forget(a, cpu->cpu_index);
    }
    logical_of(cpu)->logical_known = false;
    irq_affinity_changed();
}

/*
 * Owners
 */

void irq_affinity_set_logical(void (*read)(CPUState *cpu, IRQDestVCPU *dest))
{
    logical_read = read;
}

/*
 * In the vCPU's thread, BQL held: only it can read its local APIC without a
 * wait.
 */
static void read_logical(CPUState *cpu, run_on_cpu_data data)
{
    IRQDestVCPU *dest = logical_of(cpu);
    IRQAffinity *a;

    logical_read(cpu, dest);
    dest->logical_known = true;
    QTAILQ_FOREACH(a, &all, next) {
        rescan_soon(a);
    }
}

/* Once for each change of routes. */
static void ask_logical(void)
{
    CPUState *cpu;

    if (logical_generation == generation) {
        return;
    }
    logical_generation = generation;
    CPU_FOREACH(cpu) {
        if (cpu->created) {
            async_run_on_cpu(cpu, read_logical, RUN_ON_CPU_NULL);
        }
    }
}

/* Returns: (transfer full): IRQDestVCPU of each vCPU. */
static GArray *destinations(void)
{
    GArray *list = g_array_new(false, false, sizeof(IRQDestVCPU));
    CPUState *cpu;

    CPU_FOREACH(cpu) {
        IRQDestVCPU dest;

        if (!cpu->created) {
            continue;           /* or not any more */
        }
        dest = *logical_of(cpu);
        dest.vcpu = cpu->cpu_index;
        dest.apic_id = cpu->cc->get_arch_id(cpu);
        g_array_append_val(list, dest);
    }
    return list;
}

static int owner_of(IRQFollowed *f, const GArray *list)
{
    IRQAffinityClient *c = f->client;
    uint64_t addr;
    uint32_t data;
    int owner;

    if (!c->source->message(c->opaque, f->vector, &addr, &data)) {
        return IRQ_OWNER_NO_ROUTE;
    }
    owner = irq_dest_vcpu(addr, data, (IRQDestVCPU *)list->data, list->len);
    if (owner == IRQ_DEST_ASK) {
        ask_logical();
        return owner;
    }
    if (!(addr & 4) || list->len < 2) {
        return owner;
    }
    /* a logical address: it may have changed with the route */
    ask_logical();
    return owner;
}

/*
 * Interrupts
 */

/* What is told of a vector outlives an incarnation of its interrupt. */
static void vector_reset(IRQVector *v)
{
    IRQVector before = *v;

    *v = (IRQVector) {
        .interrupts = before.interrupts,
        .forwards = before.forwards,
        .moves = before.moves,
        .last_refusal = before.last_refusal,
    };
    memcpy(v->refusals, before.refusals, sizeof(v->refusals));
}

static void interrupt_lost(IRQAffinity *a, IRQFollowed *f)
{
    if (f->host) {
        if (a->client) {
            irq_client_forget(a->client, f);
        }
        irq_policy_remove(a->engine, &f->v);
        irq_host_close(f->host);
        f->host = NULL;
        f->returning = false;
    }
}

static void interrupt_found(IRQAffinity *a, IRQFollowed *f, IRQHostIRQ *host)
{
    interrupt_lost(a, f);
    f->host = host;
    vector_reset(&f->v);
    irq_policy_add(a->engine, &f->v, MAX(f->owner, -1), now_ns());
    trace_irq_affinity_irq(object_id(a), f->client->path, f->vector,
                           irq_host_number(host), f->owner);
}

static IRQFollowed *vector_get(IRQAffinityClient *c, unsigned vector)
{
    while (c->vectors->len <= vector) {
        IRQFollowed *f = g_new0(IRQFollowed, 1);

        f->client = c;
        f->vector = c->vectors->len;
        f->owner = IRQ_OWNER_NO_ROUTE;
        g_ptr_array_add(c->vectors, f);
    }
    return g_ptr_array_index(c->vectors, vector);
}

/* Nothing can be told of interrupt @number, or of all: -1; @err is why. */
static void scan_unknown(IRQAffinityClient *c, int number, bool shortage,
                         Error *err)
{
    c->affinity->unknown |= shortage;
    tell_unreadable(c->affinity, err);
    for (unsigned i = 0; i < c->vectors->len; i++) {
        IRQFollowed *f = vector_get(c, i);

        if (f->host && (number < 0 || irq_host_number(f->host) == number)) {
            f->seen = irq_host_alive(f->host);
        }
    }
}

static void scan_interrupt(IRQAffinityClient *c, int number)
{
    IRQAffinity *a = c->affinity;
    unsigned vector = 0;
    bool shortage;
    Error *err = NULL;
    IRQHostIRQ *host = irq_host_open(a->host, c->host, number, &vector,
                                     &shortage, &err);
    IRQFollowed *f;

    if (err) {
        scan_unknown(c, number, shortage, err);
        return;
    }
    if (!host || vector >= c->source->vectors(c->opaque)) {
        irq_host_close(host);
        return;
    }
    f = vector_get(c, vector);
    f->seen = true;
    if (f->host && irq_host_number(f->host) == number &&
        irq_host_alive(f->host)) {
        irq_host_close(host);
    } else {
        interrupt_found(a, f, host);
    }
}

/*
 * When its vCPU has gone, or there are several, nothing is there to follow: it
 * is given back, once until it has an owner again.
 */
static void check_unowned(IRQFollowed *f)
{
    if (f->owner != IRQ_DEST_NONE && f->owner != IRQ_DEST_SEVERAL) {
        f->unowned = false;
    } else if (!f->unowned && f->host) {
        f->unowned = true;
        give_back(f);
    }
}

static void scan_client(IRQAffinityClient *c, const GArray *list)
{
    bool shortage;
    Error *err = NULL;
    g_autoptr(GArray) numbers = irq_host_numbers(c->affinity->host, c->host,
                                                 &shortage, &err);

    if (c->source->begin) {
        c->source->begin(c->opaque);
    }
    for (unsigned i = 0; i < c->vectors->len; i++) {
        vector_get(c, i)->seen = false;
    }
    if (!numbers) {
        scan_unknown(c, -1, shortage, err);
    }
    for (unsigned i = 0; numbers && i < numbers->len; i++) {
        scan_interrupt(c, g_array_index(numbers, int, i));
    }
    for (unsigned i = 0; i < c->vectors->len; i++) {
        IRQFollowed *f = vector_get(c, i);

        if (!f->seen) {
            interrupt_lost(c->affinity, f);
        }
        f->owner = owner_of(f, list);
        if (f->host) {
            irq_policy_set_owner(c->affinity->engine, &f->v,
                                 MAX(f->owner, -1), now_ns());
        }
        check_unowned(f);
    }
}

static void rescan_cb(void *opaque)
{
    IRQAffinity *a = opaque;
    IRQAffinityClient *c;
    g_autoptr(GArray) list = destinations();

    a->unknown = false;
    QTAILQ_FOREACH(c, &a->clients, next) {
        scan_client(c, list);
    }
    follow_owners(a);
    trace_irq_affinity_rescan(object_id(a));
    /* from its end: it takes time */
    a->rescanned_ns = now_ns();
    if (a->unknown) {
        timer_mod_anticipate_ns(a->rescan,
                                a->rescanned_ns + RESCAN_UNKNOWN_NS);
    }
    run(a);
}

void irq_affinity_changed(void)
{
    IRQAffinity *a;

    if (!attached) {
        return;
    }
    generation++;
    QTAILQ_FOREACH(a, &all, next) {
        if (!QTAILQ_EMPTY(&a->clients)) {
            rescan_soon(a);
        }
    }
}

/*
 * The helper
 */

static void helper_connected(void *opaque)
{
    IRQAffinity *a = opaque;

    for (unsigned i = 0; i < a->vcpus->len; i++) {
        IRQFollowedVCPU *vcpu = vcpu_at(a, i);

        if (vcpu &&
            irq_affinity_source(vcpu) == IRQ_AFFINITY_SOURCE_SAMPLE) {
            ask_watch(vcpu);
        }
    }
    irq_policy_retry(a->engine, IRQ_AFFINITY_REFUSAL_NO_HELPER, now_ns());
    run(a);
}

static void helper_moved(void *opaque, void *tag, int cpu, int err)
{
    IRQAffinity *a = opaque;
    IRQFollowed *f = tag;

    if (!err) {
        irq_host_moved(f->host, cpu);
    } else if (err == ENOTCONN) {
        /* it may have been done all the same */
        irq_host_maybe_moved(f->host, cpu);
    }
    told_move(a, f, cpu, err);
    irq_policy_moved(a->engine, &f->v, cpu, -err, now_ns());
    run(a);
}

static void helper_watched(void *opaque, void *tag, int fd)
{
    IRQAffinity *a = opaque;
    IRQFollowedVCPU *vcpu = tag;

    if (fd >= 0 && irq_watch_use_perf(vcpu->watch, fd)) {
        vcpu->sample_due_ns = IRQ_POLICY_NEVER;
        trace_irq_affinity_follow(object_id(a), vcpu->cpu->cpu_index,
                                  vcpu->cpu->thread_id, "perf");
        /* it may have moved before the event was there */
        vcpu_seen(vcpu, irq_watch_cpu(vcpu->watch));
        run(a);
    }
}

/* @f took for its own affinity what it was about to lose. */
static void adopt_vector(IRQFollowed *f, const IRQRestore *what, int err)
{
    IRQAffinity *a = f->client->affinity;

    if (!f->v.pending && !irq_host_was_moved(f->host)) {
        irq_host_returned(f->host);
        return;
    }
    if (err) {
        return;
    }
    /* it may be about to get back another one */
    f->returning = false;
    if (irq_host_adopt(f->host, what->list) && !f->v.pending) {
        irq_policy_astray(a->engine, &f->v, now_ns());
        run(a);
    }
}

/* By now another object may have the device, or the same one anew. */
static void adopt(const IRQRestore *what, int err)
{
    IRQAffinity *a;
    IRQAffinityClient *c;

    QTAILQ_FOREACH(a, &all, next) {
        QTAILQ_FOREACH(c, &a->clients, next) {
            if (!g_str_equal(c->host, what->device)) {
                continue;
            }
            for (unsigned i = 0; i < c->vectors->len; i++) {
                IRQFollowed *f = vector_get(c, i);

                if (f->host && irq_host_number(f->host) == what->irq) {
                    adopt_vector(f, what, err);
                }
            }
        }
    }
}

static void helper_restored(void *opaque, void *tag, const IRQRestore *what,
                            int err)
{
    IRQAffinity *a = opaque;
    IRQFollowed *f = tag;

    told_return(a, what, err);
    if (!f) {
        adopt(what, err);
        return;
    }
    f->returning = false;
    if (!err) {
        irq_host_returned(f->host);
    } else if (err == ENOTCONN) {
        irq_host_maybe_returned(f->host);
    }
    irq_policy_returned(a->engine, &f->v, now_ns());
    run(a);
}

static const IRQClientOps client_ops = {
    .connected = helper_connected,
    .moved = helper_moved,
    .watched = helper_watched,
    .restored = helper_restored,
};

/*
 * Devices
 */

static bool can_follow(Error **errp)
{
    CPUState *cpu;

    if (!logical_read) {
        error_setg(errp, "Property 'irq-affinity' is not supported by this "
                   "machine: it needs an x86 machine");
        return false;
    }
    CPU_FOREACH(cpu) {
        if (shares_thread(cpu)) {
            error_setg(errp, "Property 'irq-affinity' needs a thread for each "
                       "vCPU, but the accelerator runs them all in one");
            return false;
        }
    }
    return true;
}

IRQAffinityClient *irq_affinity_attach(IRQAffinity *a,
                                       const IRQAffinitySource *source,
                                       void *opaque, DeviceState *device,
                                       const char *host, Error **errp)
{
    IRQAffinityClient *c;

    if (!can_follow(errp)) {
        return NULL;
    }
    c = g_new0(IRQAffinityClient, 1);
    c->affinity = a;
    c->source = source;
    c->opaque = opaque;
    c->path = object_get_canonical_path(OBJECT(device));
    c->host = g_strdup(host);
    c->vectors = g_ptr_array_new_with_free_func(g_free);
    object_ref(a);
    QTAILQ_INSERT_TAIL(&a->clients, c, next);
    attached++;
    if (a->client) {
        irq_client_start(a->client);
    }
    trace_irq_affinity_attach(object_id(a), c->path, host);
    irq_affinity_changed();
    return c;
}

void irq_affinity_detach(IRQAffinityClient *c, bool restore)
{
    IRQAffinity *a;

    if (!c) {
        return;
    }
    a = c->affinity;
    trace_irq_affinity_detach(object_id(a), c->path, restore);
    for (unsigned i = 0; i < c->vectors->len; i++) {
        IRQFollowed *f = vector_get(c, i);

        if (restore && f->host) {
            give_back(f);
        }
        interrupt_lost(a, f);
    }
    QTAILQ_REMOVE(&a->clients, c, next);
    attached--;
    if (a->client && QTAILQ_EMPTY(&a->clients)) {
        irq_client_stop(a->client);
    }
    follow_owners(a);
    run(a);
    g_ptr_array_free(c->vectors, true);
    g_free(c->path);
    g_free(c->host);
    g_free(c);
    object_unref(a);
}

/*
 * Statistics: of all objects
 */

static const HotpathStat stats[] = {
    { "irq-affinity-notices", STATS_TYPE_CUMULATIVE },
    { "irq-affinity-interrupts", STATS_TYPE_CUMULATIVE },
    { "irq-affinity-forwards", STATS_TYPE_CUMULATIVE },
    { "irq-affinity-moves", STATS_TYPE_CUMULATIVE },
    { "irq-affinity-held", STATS_TYPE_CUMULATIVE },
    { "irq-affinity-over-budget", STATS_TYPE_CUMULATIVE },
    { "irq-affinity-foreign", STATS_TYPE_CUMULATIVE },
    { "irq-affinity-resets", STATS_TYPE_CUMULATIVE },
    { "irq-affinity-wake-ups", STATS_TYPE_CUMULATIVE },
    { "irq-affinity-refusals", STATS_TYPE_CUMULATIVE },
};

static bool read_stats(CPUState *cpu, uint64_t *values)
{
    IRQAffinity *a;

    memset(values, 0, ARRAY_SIZE(stats) * sizeof(*values));
    QTAILQ_FOREACH(a, &all, next) {
        const IRQPolicyStats *s = irq_policy_stats(a->engine);
        const uint64_t one[] = {
            s->notices, s->interrupts, s->forwards, s->moves, s->held,
            s->over_budget, s->foreign, s->resets, a->wake_ups,
        };

        for (int i = 0; i < ARRAY_SIZE(one); i++) {
            values[i] += one[i];
        }
        for (int i = 0; i < IRQ_AFFINITY_REFUSAL__MAX; i++) {
            values[ARRAY_SIZE(one)] += s->refusals[i];
        }
    }
    return true;
}

static const HotpathStatsGroup stats_group = {
    .target = STATS_TARGET_VM,
    .stats = stats,
    .count = ARRAY_SIZE(stats),
    .read = read_stats,
};

/*
 * Objects
 */

bool irq_affinity_start(IRQAffinity *a, Error **errp)
{
    IRQPolicyConfig config = {
        .optimistic = a->policy != IRQ_AFFINITY_POLICY_PESSIMISTIC,
        .pessimistic = a->policy != IRQ_AFFINITY_POLICY_OPTIMISTIC,
        .forward_threshold = a->forward_threshold,
        .forward_window_ns = (int64_t)a->forward_window_ms * SCALE_MS,
        .min_interval_ns = (int64_t)a->min_interval_ms * SCALE_MS,
        .max_moves_per_s = a->max_moves_per_s,
    };

    a->host = irq_host_new(a->host_root, a->locality, errp);
    if (!a->host) {
        return false;
    }
    a->engine = irq_policy_new(&config, &world, a, irq_host_cpus(a->host));
    if (a->helper) {
        a->client = irq_client_new(a->helper, &client_ops, a);
    }
    a->timer = timer_new_ns(QEMU_CLOCK_REALTIME, timer_cb, a);
    a->rescan = timer_new_ns(QEMU_CLOCK_REALTIME, rescan_cb, a);
    a->vcpus = g_ptr_array_new_with_free_func(vcpu_free);
    QTAILQ_INSERT_TAIL(&all, a, next);
    hotpath_stats_register(&stats_group);
    return true;
}

void irq_affinity_stop(IRQAffinity *a)
{
    unsigned lost;

    QTAILQ_REMOVE(&all, a, next);
    g_ptr_array_free(a->vcpus, true);
    lost = irq_client_free(a->client);
    if (lost) {
        warn_report("irq-affinity '%s': %u interrupts did not get back the "
                    "affinity that they had: the helper is too slow",
                    object_id(a), lost);
    }
    timer_free(a->rescan);
    timer_free(a->timer);
    irq_policy_free(a->engine);
    irq_host_free(a->host);
}

/*
 * Interrupt affinity that follows the vCPU: when to move what
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The vectors of one vCPU form a group and are decided on together: if one of
 * two busy vectors stays behind, nearly all the inter-processor interrupts
 * stay with it.  A group is looked at when its vCPU moved, when a vector was
 * added, and again and again while one of its vectors is not where its vCPU
 * is, first every window, then less and less often up to once a minute while
 * nothing counts.  When all are in place there is nothing to do.
 *
 * A quiet vector is left where it is at first: a vCPU that sleeps most of the
 * time may move often.  When it has stayed for a second the optimistic rule
 * takes the quiet ones after it as well, so that they need not be looked at any
 * more.  That cannot be known of one that has never counted, which may be
 * posted.
 */

#include "qemu/osdep.h"
#include "system/irq-affinity-policy.h"

#define SECOND_NS (1000 * 1000 * 1000LL)

typedef struct IRQGroup {
    int cpu;                /* where the vCPU is, -1: not known */
    bool mixed;             /* it was elsewhere in a part of the interval */
    bool ran_known;
    bool told;              /* that a decision was put off: counted once */
    bool blind;             /* nothing but what never counted is waited for */
    uint64_t run_ns;
    uint64_t notices;
    int64_t noticed_ns;     /* when it was told that the vCPU moved */
    int64_t moved_ns;       /* last attempt to move */
    int64_t looked_ns;      /* last look that found nothing to follow */
    int64_t window_ns;      /* start of the window of forwards */
    int64_t due_ns;
    int64_t step_ns;        /* between looks */
} IRQGroup;

struct IRQPolicy {
    IRQPolicyConfig config;
    const IRQWorld *world;
    void *opaque;
    unsigned cpus;
    GPtrArray *vectors;
    GArray *groups;         /* by index of the vCPU */
    uint32_t *scratch;      /* @cpus counts */
    int64_t *attempts;      /* the last max_moves_per_s times, a ring */
    unsigned oldest;        /* of @attempts */
    int first_in_line;      /* vCPU that waits for the budget, -1: none */
    IRQPolicyStats stats;
};

/* Between two looks whether the first in line has been served */
#define IN_LINE_STEP_NS (1000 * 1000LL)

/* Between looks for each move of a vCPU, as long as nothing is to follow it */
#define LOOK_MIN_NS (10 * 1000 * 1000LL)

/* Far enough back for any difference, and no overflow in it */
#define LONG_AGO (INT64_MIN / 2)

IRQPolicy *irq_policy_new(const IRQPolicyConfig *config, const IRQWorld *world,
                          void *opaque, unsigned cpus)
{
    IRQPolicy *p = g_new0(IRQPolicy, 1);

    p->config = *config;
    p->world = world;
    p->opaque = opaque;
    p->cpus = cpus;
    p->vectors = g_ptr_array_new();
    p->groups = g_array_new(false, false, sizeof(IRQGroup));
    p->scratch = g_new0(uint32_t, cpus);
    p->first_in_line = -1;
    p->attempts = g_new(int64_t, config->max_moves_per_s);
    for (unsigned i = 0; i < config->max_moves_per_s; i++) {
        p->attempts[i] = LONG_AGO;
    }
    return p;
}

void irq_policy_free(IRQPolicy *p)
{
    if (!p) {
        return;
    }
    g_assert(!p->vectors->len);
    g_ptr_array_free(p->vectors, true);
    g_array_free(p->groups, true);
    g_free(p->scratch);
    g_free(p->attempts);
    g_free(p);
}

static IRQGroup *group_at(const IRQPolicy *p, unsigned vcpu)
{
    return &g_array_index(p->groups, IRQGroup, vcpu);
}

static IRQGroup *group_get(IRQPolicy *p, unsigned vcpu)
{
    while (p->groups->len <= vcpu) {
        IRQGroup group = {
            .cpu = -1,
            .noticed_ns = LONG_AGO,
            .moved_ns = LONG_AGO,
            .looked_ns = LONG_AGO,
            .window_ns = LONG_AGO,
            .due_ns = IRQ_POLICY_NEVER,
            .step_ns = p->config.forward_window_ns,
        };

        g_array_append_val(p->groups, group);
    }
    return group_at(p, vcpu);
}

static void group_due(IRQPolicy *p, int vcpu, int64_t now_ns)
{
    IRQGroup *g;

    if (vcpu < 0) {
        return;
    }
    g = group_get(p, vcpu);
    g->due_ns = now_ns;
    g->step_ns = p->config.forward_window_ns;
}

void irq_policy_add(IRQPolicy *p, IRQVector *v, int vcpu, int64_t now_ns)
{
    v->vcpu = vcpu;
    v->at = v->target = -1;
    v->counts = g_new0(uint32_t, p->cpus);
    v->rose_ns = v->retry_ns = LONG_AGO;
    g_ptr_array_add(p->vectors, v);
    group_due(p, vcpu, now_ns);
}

void irq_policy_remove(IRQPolicy *p, IRQVector *v)
{
    g_ptr_array_remove_fast(p->vectors, v);
    g_clear_pointer(&v->counts, g_free);
}

void irq_policy_set_owner(IRQPolicy *p, IRQVector *v, int vcpu, int64_t now_ns)
{
    if (v->vcpu != vcpu) {
        v->vcpu = vcpu;
        v->window_forwards = 0;
        v->counted = false;
        group_due(p, vcpu, now_ns);
    }
}

void irq_policy_vcpu_at(IRQPolicy *p, unsigned vcpu, int cpu, int64_t now_ns)
{
    IRQGroup *g = group_get(p, vcpu);
    int64_t interval_ns = g->moved_ns + p->config.min_interval_ns;

    if (cpu >= (int)p->cpus) {
        cpu = -1;
    }
    if (g->cpu == cpu) {
        return;
    }
    if (g->cpu >= 0 && cpu >= 0) {
        g->notices++;
        p->stats.notices++;
    }
    g->cpu = cpu;
    g->noticed_ns = now_ns;
    g->mixed = true;
    if (!g->blind) {
        g->step_ns = p->config.forward_window_ns;
    }
    /* not before the interval is over: then it may be back already */
    if (interval_ns > now_ns && !g->told) {
        g->told = true;
        p->stats.held++;
    }
    /* the scheduler can move it all the time, and a look takes time */
    g->due_ns = MAX(MAX(now_ns, interval_ns),
                    g->looked_ns + MIN(p->config.min_interval_ns,
                                       LOOK_MIN_NS));
}

/*
 * Looking
 */

/* Whether the vCPU has run since the last look, all the time where it is now */
static bool group_ran(IRQPolicy *p, unsigned vcpu)
{
    IRQGroup *g = group_at(p, vcpu);
    bool mixed = g->mixed, known = g->ran_known;
    uint64_t before = g->run_ns;

    g->mixed = false;
    g->ran_known = p->world->run_ns(p->opaque, vcpu, &g->run_ns);
    return known && g->ran_known && !mixed && g->run_ns != before;
}

/*
 * The host counts in 32 bits, which wrap.  An interrupt that was taken
 * elsewhere while the vCPU slept woke it up, and where it then runs is the
 * scheduler's choice: not a forward.
 */
static void vector_look(IRQPolicy *p, IRQVector *v, const IRQGroup *g,
                        bool ran, int64_t now_ns)
{
    uint32_t most = 0;
    uint64_t sum = 0, forwards = 0;

    memcpy(p->scratch, v->counts, p->cpus * sizeof(*v->counts));
    if (!p->world->counts(p->opaque, v, p->scratch)) {
        return;
    }
    for (unsigned cpu = 0; v->counted && cpu < p->cpus; cpu++) {
        uint32_t rose = p->scratch[cpu] - v->counts[cpu];

        sum += rose;
        if (rose > most) {
            most = rose;
            v->at = cpu;
        }
        if (rose && ran && !p->world->near(p->opaque, cpu, g->cpu)) {
            forwards += rose;
        }
    }
    memcpy(v->counts, p->scratch, p->cpus * sizeof(*v->counts));
    v->counted = true;
    if (sum) {
        v->rose_ns = now_ns;
        v->interrupts += sum;
        v->forwards += forwards;
        v->window_forwards += forwards;
        p->stats.interrupts += sum;
        p->stats.forwards += forwards;
    }
}

bool irq_policy_quiet(const IRQPolicy *p, const IRQVector *v, int64_t now_ns)
{
    return now_ns - v->rose_ns > p->config.forward_window_ns;
}

/*
 * Moving
 */

/* When @count more attempts are within the budget */
static int64_t budget_from(const IRQPolicy *p, unsigned count)
{
    unsigned size = p->config.max_moves_per_s;

    count = MIN(count, size);
    return p->attempts[(p->oldest + count - 1) % size] + SECOND_NS;
}

static void budget_take(IRQPolicy *p, int64_t now_ns)
{
    p->attempts[p->oldest] = now_ns;
    p->oldest = (p->oldest + 1) % p->config.max_moves_per_s;
}

IrqAffinityRefusal irq_policy_refusal(int err)
{
    switch (err) {
    case EINVAL:
        return IRQ_AFFINITY_REFUSAL_INVALID;
    case ERANGE:
    case EOVERFLOW:
        return IRQ_AFFINITY_REFUSAL_RANGE;
    case ENOSPC:
        return IRQ_AFFINITY_REFUSAL_NO_VECTOR;
    case EBUSY:
        return IRQ_AFFINITY_REFUSAL_BUSY;
    case EIO:
    case ENOENT:
        return IRQ_AFFINITY_REFUSAL_GONE;
    case EACCES:
    case EPERM:
    case EROFS:
        return IRQ_AFFINITY_REFUSAL_DENIED;
    case EAGAIN:
        return IRQ_AFFINITY_REFUSAL_HELPER_LIMIT;
    case ENOTCONN:
        return IRQ_AFFINITY_REFUSAL_NO_HELPER;
    default:
        return IRQ_AFFINITY_REFUSAL_OTHER;
    }
}

static void vector_refused(IRQPolicy *p, IRQVector *v, int err, int64_t now_ns)
{
    IrqAffinityRefusal reason = irq_policy_refusal(err);
    unsigned shift = MIN(v->refused_in_row, 20);

    v->refused_in_row++;
    v->refusals[reason]++;
    v->last_refusal = reason;
    p->stats.refusals[reason]++;
    v->retry_ns = now_ns + MIN(IRQ_POLICY_BACKOFF_MIN_NS << shift,
                               IRQ_POLICY_BACKOFF_MAX_NS);
}

static void move_ended(IRQPolicy *p, IRQVector *v, int cpu, int err,
                       int64_t now_ns)
{
    if (err) {
        vector_refused(p, v, -err, now_ns);
    } else {
        v->target = cpu;
        v->window_forwards = 0;
        v->refused_in_row = 0;
        v->retry_ns = LONG_AGO;
        v->moves++;
        p->stats.moves++;
    }
}

static void request_ended(IRQVector *v)
{
    g_assert(v->pending);
    v->pending--;
}

void irq_policy_moved(IRQPolicy *p, IRQVector *v, int cpu, int err,
                      int64_t now_ns)
{
    request_ended(v);
    move_ended(p, v, cpu, err, now_ns);
    /* its vCPU may have gone on */
    group_due(p, v->vcpu, now_ns);
}

void irq_policy_returning(IRQPolicy *p, IRQVector *v)
{
    v->pending++;
}

void irq_policy_returned(IRQPolicy *p, IRQVector *v, int64_t now_ns)
{
    request_ended(v);
    irq_policy_astray(p, v, now_ns);
}

void irq_policy_astray(IRQPolicy *p, IRQVector *v, int64_t now_ns)
{
    v->target = -1;
    group_due(p, v->vcpu, now_ns);
}

void irq_policy_not_returned(IRQPolicy *p, int err)
{
    p->stats.refusals[irq_policy_refusal(err)]++;
}

void irq_policy_retry(IRQPolicy *p, IrqAffinityRefusal reason, int64_t now_ns)
{
    for (unsigned i = 0; i < p->vectors->len; i++) {
        IRQVector *v = g_ptr_array_index(p->vectors, i);

        if (v->refused_in_row && v->last_refusal == reason) {
            v->refused_in_row = 0;
            v->retry_ns = LONG_AGO;
            group_due(p, v->vcpu, now_ns);
        }
    }
}

static void vector_move(IRQPolicy *p, IRQVector *v, int cpu, int64_t now_ns)
{
    int ret;

    switch (p->world->mask(p->opaque, v)) {
    case IRQ_MASK_FOREIGN:
        v->stood_down = true;
        p->stats.foreign++;
        return;
    case IRQ_MASK_RESET:
        v->target = -1;
        p->stats.resets++;
        break;
    case IRQ_MASK_KNOWN:
        break;
    }
    budget_take(p, now_ns);
    ret = p->world->move(p->opaque, v, cpu);
    if (ret == -EINPROGRESS) {
        v->pending++;
    } else {
        move_ended(p, v, cpu, ret, now_ns);
    }
}

/*
 * Deciding
 */

typedef struct Verdict {
    unsigned wanted;    /* vectors that would be moved */
    bool now;           /* and a rule says so */
    bool waiting;       /* some vector is not, or may not be, in place */
    bool blind;         /* it is not known where, of all of these */
    bool busy;          /* one of these counts */
    bool follows;       /* one that is in place counts: the next move is its */
    int64_t rest_ns;    /* when a quiet one will be taken along */
    int64_t retry_ns;   /* the first that was refused may be tried again */
} Verdict;

static int64_t rest_from(const IRQVector *v, const IRQGroup *g)
{
    return MAX(v->rose_ns, g->noticed_ns) + IRQ_POLICY_REST_NS;
}

static void judge(IRQPolicy *p, IRQVector *v, const IRQGroup *g,
                  Verdict *verdict, int64_t now_ns)
{
    int place = v->target >= 0 ? v->target : v->at;

    v->wanted = false;
    if (v->stood_down || v->pending) {
        return;
    }
    if (place >= 0 && p->world->near(p->opaque, place, g->cpu)) {
        verdict->follows |= !irq_policy_quiet(p, v, now_ns);
        return;
    }
    if (place >= 0 && now_ns < v->retry_ns) {
        verdict->retry_ns = MIN(verdict->retry_ns, v->retry_ns);
        return;
    }
    verdict->waiting = true;
    if (place < 0) {
        return;
    }
    verdict->blind = false;
    if (!irq_policy_quiet(p, v, now_ns)) {
        verdict->busy = true;
    } else if (!p->config.optimistic) {
        return;
    } else if (now_ns < rest_from(v, g)) {
        verdict->rest_ns = MIN(verdict->rest_ns, rest_from(v, g));
        return;
    }
    verdict->wanted++;
    v->wanted = true;
    if (p->config.optimistic ||
        v->window_forwards >= p->config.forward_threshold) {
        verdict->now = true;
    }
}

/*
 * The budget is for all groups.  One that waits for it is served before any
 * other: else small groups would take what a large one needs together, and
 * those that come first what the last one needs.
 */
static int64_t group_budget_from(IRQPolicy *p, unsigned vcpu, unsigned wanted,
                                 int64_t now_ns)
{
    if (p->first_in_line >= 0 && p->first_in_line != (int)vcpu) {
        return MAX(group_at(p, p->first_in_line)->due_ns,
                   now_ns + IN_LINE_STEP_NS);
    }
    return budget_from(p, wanted);
}

static void leave_line(IRQPolicy *p, unsigned vcpu)
{
    if (p->first_in_line == (int)vcpu) {
        p->first_in_line = -1;
    }
}

/* Returns: when to try again if the group may not be moved now, else 0. */
static int64_t group_move(IRQPolicy *p, unsigned vcpu, unsigned wanted,
                          int64_t now_ns)
{
    IRQGroup *g = group_at(p, vcpu);
    int64_t interval_ns = g->moved_ns + p->config.min_interval_ns;
    int64_t budget_ns = group_budget_from(p, vcpu, wanted, now_ns);

    if (now_ns < interval_ns || now_ns < budget_ns) {
        if (now_ns >= interval_ns && p->first_in_line < 0) {
            p->first_in_line = vcpu;
        }
        if (!g->told) {
            g->told = true;
            if (now_ns < interval_ns) {
                p->stats.held++;
            } else {
                p->stats.over_budget++;
            }
        }
        return MAX(interval_ns, budget_ns);
    }
    leave_line(p, vcpu);
    g->told = false;
    g->moved_ns = now_ns;
    for (unsigned i = 0; i < p->vectors->len; i++) {
        IRQVector *v = g_ptr_array_index(p->vectors, i);

        if (v->vcpu == vcpu && v->wanted) {
            if (now_ns < budget_from(p, 1)) {
                return budget_from(p, 1);
            }
            vector_move(p, v, g->cpu, now_ns);
        }
    }
    return 0;
}

static Verdict group_judge(IRQPolicy *p, unsigned vcpu, int64_t now_ns)
{
    Verdict verdict = {
        .blind = true,
        .rest_ns = IRQ_POLICY_NEVER,
        .retry_ns = IRQ_POLICY_NEVER,
    };

    for (unsigned i = 0; i < p->vectors->len; i++) {
        IRQVector *v = g_ptr_array_index(p->vectors, i);

        if (v->vcpu == vcpu) {
            judge(p, v, group_at(p, vcpu), &verdict, now_ns);
        }
    }
    return verdict;
}

static void group_look(IRQPolicy *p, unsigned vcpu, int64_t now_ns)
{
    bool ran = group_ran(p, vcpu);

    for (unsigned i = 0; i < p->vectors->len; i++) {
        IRQVector *v = g_ptr_array_index(p->vectors, i);

        if (v->vcpu == vcpu) {
            vector_look(p, v, group_at(p, vcpu), ran, now_ns);
        }
    }
}

/* When to look again: soon after a reason, then when a quiet one is due. */
static void group_wait(IRQPolicy *p, IRQGroup *g, const Verdict *verdict,
                       int64_t now_ns)
{
    int64_t window_ns = p->config.forward_window_ns;
    int64_t next_ns = now_ns + g->step_ns;

    if (!verdict->busy && g->step_ns > window_ns &&
        verdict->rest_ns != IRQ_POLICY_NEVER) {
        next_ns = verdict->rest_ns;
    }
    g->due_ns = MIN(g->due_ns, next_ns);
    g->step_ns = verdict->busy
                 ? window_ns
                 : MIN(g->step_ns * 2, MAX(IRQ_POLICY_LOOK_MAX_NS, window_ns));
}

static void group_decide(IRQPolicy *p, unsigned vcpu, int64_t now_ns)
{
    IRQGroup *g = group_at(p, vcpu);
    Verdict verdict;

    g->due_ns = IRQ_POLICY_NEVER;
    if (g->cpu < 0) {
        leave_line(p, vcpu);
        return;
    }
    group_look(p, vcpu, now_ns);
    verdict = group_judge(p, vcpu, now_ns);
    if (!verdict.now) {
        leave_line(p, vcpu);
        g->looked_ns = verdict.follows ? LONG_AGO : now_ns;
    }
    if (verdict.now) {
        int64_t later_ns = group_move(p, vcpu, verdict.wanted, now_ns);

        if (later_ns) {
            g->due_ns = MIN(verdict.retry_ns, later_ns);
            return;
        }
        /* what was moved, or refused, need not be looked at */
        verdict = group_judge(p, vcpu, now_ns);
    } else if (!verdict.wanted) {
        g->told = false;
    }
    g->due_ns = verdict.retry_ns;
    g->blind = verdict.waiting && verdict.blind;
    if (verdict.waiting) {
        group_wait(p, g, &verdict, now_ns);
    }
}

/* Start the next window of forwards when this one is over. */
static void group_window(IRQPolicy *p, unsigned vcpu, int64_t now_ns)
{
    IRQGroup *g = group_at(p, vcpu);

    if (now_ns - g->window_ns < p->config.forward_window_ns) {
        return;
    }
    g->window_ns = now_ns;
    for (unsigned i = 0; i < p->vectors->len; i++) {
        IRQVector *v = g_ptr_array_index(p->vectors, i);

        if (v->vcpu == vcpu) {
            v->window_forwards = 0;
        }
    }
}

int64_t irq_policy_run(IRQPolicy *p, int64_t now_ns)
{
    int64_t next_ns = IRQ_POLICY_NEVER;

    for (unsigned i = 0; i < p->groups->len; i++) {
        if (group_at(p, i)->due_ns <= now_ns) {
            group_decide(p, i, now_ns);
            group_window(p, i, now_ns);
        }
        next_ns = MIN(next_ns, group_at(p, i)->due_ns);
    }
    return next_ns;
}

int irq_policy_vcpu_cpu(const IRQPolicy *p, unsigned vcpu)
{
    return vcpu < p->groups->len ? group_at(p, vcpu)->cpu : -1;
}

uint64_t irq_policy_vcpu_notices(const IRQPolicy *p, unsigned vcpu)
{
    return vcpu < p->groups->len ? group_at(p, vcpu)->notices : 0;
}

const IRQPolicyStats *irq_policy_stats(const IRQPolicy *p)
{
    return &p->stats;
}

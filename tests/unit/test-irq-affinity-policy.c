/*
 * Unit test: when an interrupt is moved after its vCPU
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The world is simulated, its clock as well: a device interrupts at a rate,
 * each interrupt is counted on the processor to which its vector is sent.
 */

#include "qemu/osdep.h"
#include "system/irq-affinity-policy.h"

#define MS (1000 * 1000LL)
#define SECOND (1000 * MS)
#define CPUS 4
#define VECTORS 3
#define STEP (MS / 4)

typedef struct SimVector {
    IRQVector v;
    uint32_t counts[CPUS];
    int cpu;                /* where it is taken */
    int mask_cpu;           /* as the policy left it, -1: untouched */
    int64_t period_ns;      /* between interrupts, 0: idle */
    int64_t next_ns;
    bool foreign;
    bool reset;
    bool posted;            /* the host counts nothing */
    unsigned cut;           /* so many of the last processors are not told */
} SimVector;

typedef struct Sim {
    IRQPolicy *p;
    int64_t now;
    SimVector vectors[VECTORS];
    int vcpu_cpu[2];
    uint64_t run_ns[2];
    bool asleep[2];
    int error;              /* of all moves */
    bool in_progress;
    bool offline[CPUS];
    int core_size;          /* processors that count as one place */
    unsigned attempts;
    unsigned looks;         /* readings of counts */
    int64_t due;
    GArray *attempt_times;
    uint64_t local, remote; /* interrupts of vCPU 0's vectors */
} Sim;

static bool sim_counts(void *opaque, IRQVector *v, uint32_t *counts)
{
    Sim *s = opaque;
    const SimVector *sv = container_of(v, SimVector, v);

    s->looks++;
    memcpy(counts, sv->counts, (CPUS - sv->cut) * sizeof(*counts));
    return true;
}

static bool sim_run_ns(void *opaque, unsigned vcpu, uint64_t *run_ns)
{
    Sim *s = opaque;

    if (vcpu >= ARRAY_SIZE(s->run_ns)) {
        return false;
    }
    *run_ns = s->run_ns[vcpu];
    return true;
}

static bool sim_near(void *opaque, int a, int b)
{
    Sim *s = opaque;

    return a / s->core_size == b / s->core_size;
}

static IRQMask sim_mask(void *opaque, IRQVector *v)
{
    SimVector *sv = container_of(v, SimVector, v);

    if (sv->reset) {
        sv->reset = false;
        return IRQ_MASK_RESET;
    }
    return sv->foreign ? IRQ_MASK_FOREIGN : IRQ_MASK_KNOWN;
}

static int sim_move(void *opaque, IRQVector *v, int cpu)
{
    Sim *s = opaque;
    SimVector *sv = container_of(v, SimVector, v);

    s->attempts++;
    g_array_append_val(s->attempt_times, s->now);
    if (s->error) {
        return s->error;
    }
    if (s->offline[cpu]) {
        return -EINVAL;
    }
    sv->cpu = sv->mask_cpu = cpu;
    return s->in_progress ? -EINPROGRESS : 0;
}

static const IRQWorld sim_world = {
    .counts = sim_counts,
    .run_ns = sim_run_ns,
    .near = sim_near,
    .mask = sim_mask,
    .move = sim_move,
};

static const IRQPolicyConfig optimistic = {
    .optimistic = true,
    .forward_threshold = 16,
    .forward_window_ns = 100 * MS,
    .min_interval_ns = 10 * MS,
    .max_moves_per_s = 200,
};

static const IRQPolicyConfig pessimistic = {
    .pessimistic = true,
    .forward_threshold = 16,
    .forward_window_ns = 100 * MS,
    .min_interval_ns = 10 * MS,
    .max_moves_per_s = 200,
};

/* All vectors belong to vCPU 0 on CPU 0, are taken on CPU 0, 1,000 a second. */
static void sim_start(Sim *s, const IRQPolicyConfig *config)
{
    *s = (Sim) { .now = 5 * SECOND, .core_size = 1, .due = 0 };
    s->attempt_times = g_array_new(false, false, sizeof(int64_t));
    s->p = irq_policy_new(config, &sim_world, s, CPUS);
    for (int i = 0; i < VECTORS; i++) {
        SimVector *sv = &s->vectors[i];

        sv->mask_cpu = -1;
        sv->period_ns = MS;
        sv->next_ns = s->now;
        irq_policy_add(s->p, &sv->v, 0, s->now);
    }
    irq_policy_vcpu_at(s->p, 0, 0, s->now);
}

static void sim_end(Sim *s)
{
    for (int i = 0; i < VECTORS; i++) {
        irq_policy_remove(s->p, &s->vectors[i].v);
    }
    irq_policy_free(s->p);
    g_array_free(s->attempt_times, true);
}

static void sim_tell(Sim *s, unsigned vcpu, int cpu)
{
    s->vcpu_cpu[vcpu] = cpu;
    irq_policy_vcpu_at(s->p, vcpu, cpu, s->now);
    s->due = irq_policy_run(s->p, s->now);
}

static void sim_interrupts(Sim *s)
{
    for (int i = 0; i < VECTORS; i++) {
        SimVector *sv = &s->vectors[i];

        if (!sv->period_ns || s->now < sv->next_ns) {
            continue;
        }
        sv->next_ns += sv->period_ns;
        if (sv->posted) {
            continue;
        }
        sv->counts[sv->cpu]++;
        if (sv->cpu == s->vcpu_cpu[0]) {
            s->local++;
        } else {
            s->remote++;
        }
    }
}

static void sim_run(Sim *s, int64_t ns)
{
    for (int64_t end = s->now + ns; s->now < end; s->now += STEP) {
        for (int i = 0; i < 2; i++) {
            if (!s->asleep[i]) {
                s->run_ns[i] += STEP;
            }
        }
        sim_interrupts(s);
        if (s->now >= s->due) {
            s->due = irq_policy_run(s->p, s->now);
            g_assert_cmpint(s->due, >, s->now);
        }
    }
}

/* No second has more attempts than the budget. */
static void assert_budget(Sim *s, unsigned budget)
{
    for (unsigned i = budget; i < s->attempt_times->len; i++) {
        g_assert_cmpint(g_array_index(s->attempt_times, int64_t, i) -
                        g_array_index(s->attempt_times, int64_t, i - budget),
                        >=, SECOND);
    }
}

static void test_optimistic(void)
{
    Sim s;

    sim_start(&s, &optimistic);
    sim_run(&s, 200 * MS);
    g_assert_cmpuint(s.attempts, ==, 0);        /* all is where it ought */
    sim_tell(&s, 0, 2);
    for (int i = 0; i < VECTORS; i++) {         /* at once, and together */
        g_assert_cmpint(s.vectors[i].cpu, ==, 2);
        g_assert_cmpint(s.vectors[i].v.target, ==, 2);
        g_assert_cmpuint(s.vectors[i].v.moves, ==, 1);
    }
    sim_run(&s, SECOND);
    g_assert_cmpuint(s.attempts, ==, VECTORS);
    g_assert_cmpuint(irq_policy_stats(s.p)->moves, ==, VECTORS);
    g_assert_cmpuint(irq_policy_vcpu_notices(s.p, 0), ==, 1);
    g_assert_cmpuint(s.remote, ==, 0);
    sim_end(&s);
}

/* A policy that comes late finds the interrupts elsewhere. */
static void test_first_decision(void)
{
    Sim s;

    sim_start(&s, &optimistic);
    for (int i = 0; i < VECTORS; i++) {
        s.vectors[i].cpu = 3;
    }
    sim_run(&s, 110 * MS);
    for (int i = 0; i < VECTORS; i++) {
        g_assert_cmpint(s.vectors[i].cpu, ==, 0);
    }
    sim_end(&s);
}

/* When all is in place, nothing is due: no timer, no reading. */
static void test_rest(void)
{
    Sim s;
    unsigned looks;

    sim_start(&s, &optimistic);
    sim_run(&s, SECOND);
    sim_tell(&s, 0, 1);
    sim_run(&s, SECOND);
    g_assert_cmpint(s.due, ==, IRQ_POLICY_NEVER);
    looks = s.looks;
    sim_run(&s, 10 * SECOND);
    g_assert_cmpuint(s.looks, ==, looks);
    sim_end(&s);
}

/* A quiet vector stays until its vCPU has stayed for a second. */
static void test_quiet(void)
{
    Sim s;
    unsigned looks;

    sim_start(&s, &optimistic);
    sim_run(&s, 200 * MS);
    s.vectors[1].period_ns = 0;
    s.vectors[2].posted = true;
    sim_run(&s, SECOND);
    sim_tell(&s, 0, 1);         /* shows that both counted before */
    sim_run(&s, 3 * SECOND);
    sim_tell(&s, 0, 2);
    sim_run(&s, 900 * MS);
    g_assert_cmpint(s.vectors[0].cpu, ==, 2);
    g_assert_cmpint(s.vectors[1].cpu, ==, 1);
    g_assert_cmpint(s.vectors[2].cpu, ==, 1);
    g_assert_true(irq_policy_quiet(s.p, &s.vectors[2].v, s.now));
    for (int i = 0; i < 10; i++) {      /* it does not stay */
        sim_tell(&s, 0, 3 - (i & 1));
        sim_run(&s, 900 * MS);
    }
    g_assert_cmpint(s.vectors[0].cpu, ==, 2);
    g_assert_cmpint(s.vectors[1].cpu, ==, 1);
    g_assert_cmpint(s.vectors[2].cpu, ==, 1);
    sim_run(&s, 4 * SECOND);
    g_assert_cmpint(s.vectors[1].cpu, ==, 2);
    g_assert_cmpint(s.vectors[2].cpu, ==, 2);
    /* all are in place: it is no more looked at any */
    g_assert_cmpint(s.due, ==, IRQ_POLICY_NEVER);
    looks = s.looks;
    sim_run(&s, 10 * SECOND);
    g_assert_cmpuint(s.looks, ==, looks);
    g_assert_cmpuint(s.vectors[2].v.moves, ==, 2);
    sim_end(&s);
}

/* Between the move of its vCPU and its own, a quiet one is hardly looked at. */
static void test_quiet_looks(void)
{
    Sim s;
    unsigned looks;

    sim_start(&s, &optimistic);
    sim_run(&s, 200 * MS);
    sim_tell(&s, 0, 1);
    for (int i = 0; i < VECTORS; i++) {
        s.vectors[i].period_ns = 0;
    }
    sim_run(&s, 3 * SECOND);
    looks = s.looks;
    sim_tell(&s, 0, 2);         /* at once, after a window, after a second */
    sim_run(&s, SECOND - STEP);
    g_assert_cmpuint(s.attempts, ==, VECTORS);
    sim_run(&s, 2 * STEP);
    g_assert_cmpuint(s.attempts, ==, 2 * VECTORS);
    g_assert_cmpuint(s.looks - looks, ==, 3 * VECTORS);
    /* all is known of what was moved */
    g_assert_cmpint(s.due, ==, IRQ_POLICY_NEVER);
    /* one that counts again meanwhile does not wait longer */
    sim_run(&s, 3 * SECOND);
    sim_tell(&s, 0, 3);
    sim_run(&s, 200 * MS);
    s.vectors[1].period_ns = MS;
    s.vectors[1].next_ns = s.now;
    sim_run(&s, 800 * MS + 2 * STEP);
    for (int i = 0; i < VECTORS; i++) {
        g_assert_cmpint(s.vectors[i].cpu, ==, 3);
    }
    sim_end(&s);
}

/* That its vCPU moves about is no reason to look for what has never counted. */
static void test_never_counted_moves(void)
{
    Sim s;
    unsigned looks;

    sim_start(&s, &optimistic);
    for (int i = 0; i < VECTORS; i++) {
        s.vectors[i].posted = true;
    }
    sim_run(&s, 200 * SECOND);
    looks = s.looks;
    for (int i = 0; i < 20; i++) {
        sim_tell(&s, 0, i & 3);
        sim_run(&s, 10 * SECOND);
    }
    /* once a move */
    g_assert_cmpuint(s.looks - looks, <=, 20 * VECTORS);
    s.vectors[1].posted = false;
    sim_run(&s, 20 * MS);
    sim_tell(&s, 0, 1);
    g_assert_cmpint(s.vectors[0].cpu, ==, 0);
    g_assert_cmpint(s.vectors[1].cpu, ==, 1);
    sim_end(&s);
}

/* A vCPU that moves all the time: not a look for each of its moves. */
static void test_looks_of_moves(void)
{
    for (int n = 0; n < 3; n++) {
        IRQPolicyConfig config = optimistic;
        bool posted = n >= 1;
        Sim s;
        unsigned looks = 0, held = 0;

        /* between moves, not between looks */
        config.min_interval_ns = n == 2 ? 60 * SECOND : 10 * MS;
        sim_start(&s, &config);
        if (n < 2) {            /* these have counted before */
            sim_run(&s, 200 * MS);
        }
        for (int i = 0; i < VECTORS; i++) {
            s.vectors[i].posted = posted;
            s.vectors[i].period_ns = posted ? MS : 0;
        }
        sim_run(&s, 2 * SECOND);
        for (int i = 0; i < 1195; i++) {        /* 1 kHz */
            if (i == 200) {     /* what counted before is quiet by now */
                looks = s.looks;
                held = irq_policy_stats(s.p)->held;
            }
            sim_tell(&s, 0, i & 1);
            sim_run(&s, MS);
        }
        /* one in 10 ms */
        g_assert_cmpuint(s.looks - looks, <=, 101 * VECTORS);
        g_assert_cmpuint(s.looks - looks, >=, 90 * VECTORS);
        g_assert_cmpuint(irq_policy_stats(s.p)->held, ==, held);
        /* what counts again follows as soon */
        sim_tell(&s, 0, 2);
        for (int i = 0; i < VECTORS; i++) {
            s.vectors[i].posted = false;
            s.vectors[i].period_ns = MS;
            s.vectors[i].next_ns = s.now;
        }
        sim_run(&s, 11 * MS);
        for (int i = 0; i < VECTORS; i++) {
            g_assert_cmpint(s.vectors[i].cpu, ==, 2);
        }
        sim_end(&s);
    }
}

/* What has never counted stays, and is looked at ever less; then it counts. */
static void test_never_counted(void)
{
    Sim s;
    unsigned looks;

    sim_start(&s, &optimistic);
    for (int i = 0; i < VECTORS; i++) {
        s.vectors[i].posted = true;
    }
    sim_tell(&s, 0, 2);
    sim_run(&s, 7 * SECOND);    /* at 0.1, 0.3, 0.7, 1.5, 3.1 and 6.3 s */
    looks = s.looks;
    sim_run(&s, 10 * SECOND);   /* and at 12.7 s */
    g_assert_cmpuint(s.looks - looks, <=, VECTORS);
    sim_run(&s, 200 * SECOND);
    looks = s.looks;
    sim_run(&s, 600 * SECOND);
    g_assert_cmpuint(s.looks - looks, ==, 10 * VECTORS);
    g_assert_cmpuint(s.attempts, ==, 0);
    s.vectors[1].posted = false;
    sim_run(&s, 61 * SECOND);
    g_assert_cmpint(s.vectors[0].cpu, ==, 0);
    g_assert_cmpint(s.vectors[1].cpu, ==, 2);
    g_assert_cmpint(s.vectors[2].cpu, ==, 0);
    sim_end(&s);
}

/* The pessimistic rule moves nothing that was not forwarded. */
static void test_quiet_pessimistic(void)
{
    Sim s;
    unsigned looks;

    sim_start(&s, &pessimistic);
    sim_run(&s, 200 * MS);
    for (int i = 0; i < VECTORS; i++) {
        s.vectors[i].period_ns = 0;
    }
    sim_run(&s, SECOND);
    sim_tell(&s, 0, 2);
    sim_run(&s, 7 * SECOND);
    looks = s.looks;
    sim_run(&s, 10 * SECOND);
    g_assert_cmpuint(s.looks - looks, <=, VECTORS);
    g_assert_cmpuint(s.attempts, ==, 0);
    sim_end(&s);
}

/* Given back: as if it had not been moved, and not moved while that lasts. */
static void test_returned(void)
{
    Sim s;

    sim_start(&s, &optimistic);
    sim_run(&s, 200 * MS);
    sim_tell(&s, 0, 1);
    irq_policy_set_owner(s.p, &s.vectors[1].v, -1, s.now);
    irq_policy_returning(s.p, &s.vectors[1].v);
    irq_policy_set_owner(s.p, &s.vectors[1].v, 0, s.now);
    sim_run(&s, 200 * MS);
    sim_tell(&s, 0, 2);
    sim_run(&s, 200 * MS);
    g_assert_cmpint(s.vectors[0].cpu, ==, 2);
    g_assert_cmpint(s.vectors[1].cpu, ==, 1);
    s.vectors[1].cpu = 0;
    irq_policy_returned(s.p, &s.vectors[1].v, s.now);
    g_assert_cmpint(s.vectors[1].v.target, ==, -1);
    s.due = s.now;
    sim_run(&s, 200 * MS);
    g_assert_cmpint(s.vectors[1].cpu, ==, 2);
    irq_policy_not_returned(s.p, EPERM);
    g_assert_cmpuint(irq_policy_stats(s.p)
                     ->refusals[IRQ_AFFINITY_REFUSAL_DENIED], ==, 1);
    sim_end(&s);
}

static void test_pessimistic(void)
{
    Sim s;

    sim_start(&s, &pessimistic);
    sim_run(&s, 200 * MS);
    sim_tell(&s, 0, 2);
    g_assert_cmpuint(s.attempts, ==, 0);        /* not at once */
    sim_run(&s, 250 * MS);
    for (int i = 0; i < VECTORS; i++) {
        g_assert_cmpint(s.vectors[i].cpu, ==, 2);
    }
    g_assert_cmpuint(irq_policy_stats(s.p)->forwards, >=, 3 * 16);
    g_assert_cmpuint(irq_policy_stats(s.p)->forwards, <=, 3 * 250);
    sim_end(&s);
}

/* Fewer than the threshold in each window: never. */
static void test_threshold(void)
{
    IRQPolicyConfig config = pessimistic;
    Sim s;

    sim_start(&s, &config);
    for (int i = 0; i < VECTORS; i++) {
        s.vectors[i].period_ns = 10 * MS;       /* 10 in a window */
    }
    sim_run(&s, 200 * MS);
    sim_tell(&s, 0, 2);
    sim_run(&s, 5 * SECOND);
    g_assert_cmpuint(s.attempts, ==, 0);
    g_assert_cmpuint(irq_policy_stats(s.p)->forwards, >, 1000);
    sim_end(&s);

    config.forward_threshold = 9;
    sim_start(&s, &config);
    for (int i = 0; i < VECTORS; i++) {
        s.vectors[i].period_ns = 10 * MS;
    }
    sim_run(&s, 200 * MS);
    sim_tell(&s, 0, 2);
    sim_run(&s, SECOND);
    g_assert_cmpuint(s.attempts, ==, VECTORS);
    sim_end(&s);
}

/* The interrupt of a vCPU that sleeps wakes it up: that is no forward. */
static void test_asleep(void)
{
    Sim s;

    sim_start(&s, &pessimistic);
    sim_run(&s, 200 * MS);
    s.asleep[0] = true;
    sim_tell(&s, 0, 2);
    sim_run(&s, 3 * SECOND);
    g_assert_cmpuint(s.attempts, ==, 0);
    g_assert_cmpuint(irq_policy_stats(s.p)->forwards, ==, 0);
    sim_end(&s);
}

/* "both" does at once what it may, and what it may not then, later. */
static void test_both(void)
{
    IRQPolicyConfig config = optimistic;
    Sim s;

    config.pessimistic = true;
    sim_start(&s, &config);
    sim_run(&s, 200 * MS);
    sim_tell(&s, 0, 2);
    g_assert_cmpuint(s.attempts, ==, VECTORS);
    sim_run(&s, 2 * MS);
    sim_tell(&s, 0, 3);
    g_assert_cmpuint(s.attempts, ==, VECTORS);
    sim_run(&s, 300 * MS);
    g_assert_cmpint(s.vectors[0].cpu, ==, 3);
    sim_end(&s);
}

/* A vCPU that comes back within the interval has not moved. */
static void test_hysteresis(void)
{
    Sim s;

    sim_start(&s, &optimistic);
    sim_run(&s, 200 * MS);
    sim_tell(&s, 0, 1);
    g_assert_cmpuint(s.attempts, ==, VECTORS);
    sim_run(&s, 3 * MS);
    sim_tell(&s, 0, 2);
    sim_run(&s, 3 * MS);
    sim_tell(&s, 0, 1);
    sim_run(&s, 100 * MS);
    g_assert_cmpuint(s.attempts, ==, VECTORS);
    g_assert_cmpuint(irq_policy_stats(s.p)->held, ==, 1);
    sim_end(&s);
}

static void test_ping_pong(void)
{
    static const unsigned budgets[] = { 1, 2, 7, 50, 200 };

    for (int b = 0; b < ARRAY_SIZE(budgets); b++) {
        IRQPolicyConfig config = optimistic;
        Sim s;

        config.max_moves_per_s = budgets[b];
        config.min_interval_ns = b & 1 ? 0 : 10 * MS;
        sim_start(&s, &config);
        sim_run(&s, 200 * MS);
        for (int i = 0; i < 5000; i++) {        /* 1 kHz for 5 s */
            sim_tell(&s, 0, i & 1);
            sim_run(&s, MS);
        }
        assert_budget(&s, budgets[b]);
        g_assert_cmpuint(s.attempts, >=, budgets[b] * 4);
        g_assert_cmpuint(irq_policy_stats(s.p)->over_budget +
                         irq_policy_stats(s.p)->held, >, 0);
        /* and comes to rest where the vCPU does */
        sim_run(&s, 5 * SECOND);
        for (int i = 0; i < VECTORS; i++) {
            g_assert_cmpint(s.vectors[i].cpu, ==, s.vcpu_cpu[0]);
        }
        sim_end(&s);
    }
}

/* A vCPU that moves all the time does not take the budget from another. */
static void test_budget_shared(void)
{
    for (int small = 0; small < 2; small++) {
        IRQPolicyConfig config = optimistic;
        int large = !small;
        Sim s;

        config.max_moves_per_s = 2;
        config.min_interval_ns = 0;
        sim_start(&s, &config);
        irq_policy_set_owner(s.p, &s.vectors[0].v, small, s.now);
        irq_policy_set_owner(s.p, &s.vectors[1].v, large, s.now);
        irq_policy_set_owner(s.p, &s.vectors[2].v, large, s.now);
        sim_tell(&s, 0, 0);
        sim_tell(&s, 1, 0);
        sim_run(&s, 200 * MS);
        for (int i = 0; i < 3000; i++) {
            sim_tell(&s, small, i & 1);
            sim_run(&s, MS);
        }
        sim_tell(&s, large, 2);
        for (int i = 0; i < 2000; i++) {
            sim_tell(&s, small, i & 1);
            sim_run(&s, MS);
        }
        g_assert_cmpint(s.vectors[1].cpu, ==, 2);
        g_assert_cmpint(s.vectors[2].cpu, ==, 2);
        /* nor does the other keep it, when it is gone or served */
        sim_tell(&s, large, 3);
        sim_tell(&s, large, -1);
        sim_run(&s, 2 * SECOND);
        g_assert_cmpint(s.vectors[0].cpu, ==, s.vcpu_cpu[small]);
        assert_budget(&s, config.max_moves_per_s);
        sim_end(&s);
    }
}

static void test_refusals(void)
{
    static const struct {
        int err;
        IrqAffinityRefusal reason;
    } rows[] = {
        { EINVAL, IRQ_AFFINITY_REFUSAL_INVALID },
        { ERANGE, IRQ_AFFINITY_REFUSAL_RANGE },
        { EOVERFLOW, IRQ_AFFINITY_REFUSAL_RANGE },
        { ENOSPC, IRQ_AFFINITY_REFUSAL_NO_VECTOR },
        { EBUSY, IRQ_AFFINITY_REFUSAL_BUSY },
        { EIO, IRQ_AFFINITY_REFUSAL_GONE },
        { EACCES, IRQ_AFFINITY_REFUSAL_DENIED },
        { EPERM, IRQ_AFFINITY_REFUSAL_DENIED },
        { EAGAIN, IRQ_AFFINITY_REFUSAL_HELPER_LIMIT },
        { ENOTCONN, IRQ_AFFINITY_REFUSAL_NO_HELPER },
        { ENOMEM, IRQ_AFFINITY_REFUSAL_OTHER },
    };

    for (int i = 0; i < ARRAY_SIZE(rows); i++) {
        Sim s;

        sim_start(&s, &optimistic);
        sim_run(&s, 200 * MS);
        s.error = -rows[i].err;
        sim_tell(&s, 0, 1);
        g_assert_cmpuint(s.attempts, ==, VECTORS);
        g_assert_cmpuint(s.vectors[0].v.refusals[rows[i].reason], ==, 1);
        g_assert_cmpint(s.vectors[0].v.last_refusal, ==, rows[i].reason);
        g_assert_cmpint(s.vectors[0].v.target, ==, -1);
        g_assert_cmpuint(irq_policy_stats(s.p)->refusals[rows[i].reason], ==,
                         VECTORS);
        sim_end(&s);
    }
}

/* 0.1 + 0.2 + 0.4 ... s, then a minute: some ten attempts in two minutes. */
static void test_backoff(void)
{
    Sim s;

    sim_start(&s, &optimistic);
    sim_run(&s, 200 * MS);
    s.error = -ENOSPC;
    sim_tell(&s, 0, 1);
    sim_run(&s, 120 * SECOND);
    g_assert_cmpuint(s.attempts, >=, 10 * VECTORS);
    g_assert_cmpuint(s.attempts, <=, 13 * VECTORS);
    /* moving about does not get round it */
    for (int i = 0; i < 20; i++) {
        sim_tell(&s, 0, i & 1 ? 1 : 2);
        sim_run(&s, 20 * MS);
    }
    g_assert_cmpuint(s.attempts, <=, 13 * VECTORS);
    s.error = 0;
    sim_run(&s, 61 * SECOND);
    g_assert_cmpint(s.vectors[0].cpu, ==, 1);
    g_assert_cmpuint(s.vectors[0].v.refused_in_row, ==, 0);
    sim_end(&s);
}

/* The helper is back: what failed for want of it is tried at once. */
static void test_retry(void)
{
    Sim s;

    sim_start(&s, &optimistic);
    sim_run(&s, 200 * MS);
    s.error = -ENOTCONN;
    sim_tell(&s, 0, 1);
    sim_run(&s, 60 * SECOND);
    g_assert_cmpuint(s.attempts, <=, 11 * VECTORS);
    s.error = 0;
    irq_policy_retry(s.p, IRQ_AFFINITY_REFUSAL_BUSY, s.now);
    s.due = irq_policy_run(s.p, s.now);
    g_assert_cmpint(s.vectors[0].cpu, ==, 0);
    irq_policy_retry(s.p, IRQ_AFFINITY_REFUSAL_NO_HELPER, s.now);
    s.due = irq_policy_run(s.p, s.now);
    for (int i = 0; i < VECTORS; i++) {
        g_assert_cmpint(s.vectors[i].cpu, ==, 1);
    }
    sim_end(&s);
}

static void test_foreign(void)
{
    Sim s;

    sim_start(&s, &optimistic);
    sim_run(&s, 200 * MS);
    sim_tell(&s, 0, 1);
    sim_run(&s, 200 * MS);
    s.vectors[1].foreign = true;
    for (int i = 0; i < 10; i++) {
        sim_tell(&s, 0, 2 + (i & 1));
        sim_run(&s, 200 * MS);
    }
    g_assert_true(s.vectors[1].v.stood_down);
    g_assert_cmpuint(s.vectors[1].v.moves, ==, 1);
    g_assert_cmpuint(s.vectors[0].v.moves, ==, 11);
    g_assert_cmpuint(irq_policy_stats(s.p)->foreign, ==, 1);
    sim_end(&s);
}

/* The target goes offline: the host resets the mask, the vCPU is elsewhere. */
static void test_offline(void)
{
    Sim s;

    sim_start(&s, &optimistic);
    sim_run(&s, 200 * MS);
    sim_tell(&s, 0, 2);
    sim_run(&s, 200 * MS);
    s.offline[2] = true;
    for (int i = 0; i < VECTORS; i++) {
        s.vectors[i].cpu = 0;
        s.vectors[i].reset = true;
    }
    sim_tell(&s, 0, 3);
    sim_run(&s, 200 * MS);
    for (int i = 0; i < VECTORS; i++) {
        g_assert_cmpint(s.vectors[i].cpu, ==, 3);
        g_assert_false(s.vectors[i].v.stood_down);
    }
    g_assert_cmpuint(irq_policy_stats(s.p)->resets, ==, VECTORS);
    /* told of a vCPU there a moment too late: refused, not fatal */
    sim_tell(&s, 0, 2);
    g_assert_cmpuint(s.vectors[0].v.refusals[IRQ_AFFINITY_REFUSAL_INVALID], ==,
                     1);
    sim_run(&s, 20 * MS);
    sim_tell(&s, 0, 1);
    sim_run(&s, 200 * MS);
    g_assert_cmpint(s.vectors[0].cpu, ==, 1);
    sim_end(&s);
}

static void test_locality(void)
{
    Sim s;

    sim_start(&s, &optimistic);
    s.core_size = 2;
    sim_run(&s, 200 * MS);
    sim_tell(&s, 0, 1);
    sim_run(&s, 200 * MS);
    g_assert_cmpuint(s.attempts, ==, 0);
    sim_tell(&s, 0, 3);
    g_assert_cmpuint(s.attempts, ==, VECTORS);
    sim_end(&s);
}

/* A helper answers late; the vCPU has gone on meanwhile. */
static void test_late_answer(void)
{
    Sim s;

    sim_start(&s, &optimistic);
    sim_run(&s, 200 * MS);
    s.in_progress = true;
    sim_tell(&s, 0, 1);
    g_assert_cmpuint(s.attempts, ==, VECTORS);
    sim_run(&s, 50 * MS);
    sim_tell(&s, 0, 2);
    sim_run(&s, 50 * MS);
    g_assert_cmpuint(s.attempts, ==, VECTORS);  /* not two at a time */
    s.in_progress = false;
    for (int i = 0; i < VECTORS; i++) {
        irq_policy_moved(s.p, &s.vectors[i].v, 1, 0, s.now);
    }
    s.due = 0;
    sim_run(&s, 50 * MS);
    for (int i = 0; i < VECTORS; i++) {
        g_assert_cmpint(s.vectors[i].cpu, ==, 2);
    }
    sim_end(&s);
}

/* A return that was asked for after a move ends after it, and holds as long. */
static void test_move_and_return(void)
{
    Sim s;
    IRQVector *v = &s.vectors[0].v;

    sim_start(&s, &optimistic);
    sim_run(&s, 200 * MS);
    s.in_progress = true;
    sim_tell(&s, 0, 1);
    irq_policy_returning(s.p, v);
    for (int i = 0; i < VECTORS; i++) {
        irq_policy_moved(s.p, &s.vectors[i].v, 1, 0, s.now);
    }
    sim_tell(&s, 0, 2);
    sim_run(&s, 200 * MS);
    g_assert_cmpint(s.vectors[1].cpu, ==, 2);
    g_assert_cmpint(s.vectors[0].cpu, ==, 1);
    g_assert_cmpuint(v->pending, ==, 1);
    irq_policy_returned(s.p, v, s.now);
    s.due = s.now;
    sim_run(&s, 200 * MS);
    g_assert_cmpint(s.vectors[0].cpu, ==, 2);
    sim_end(&s);
}

/* Its processor is found not to be the one to which it was sent. */
static void test_astray(void)
{
    Sim s;

    sim_start(&s, &optimistic);
    sim_run(&s, 200 * MS);
    sim_tell(&s, 0, 1);
    sim_run(&s, 200 * MS);
    s.vectors[0].cpu = 3;
    sim_run(&s, 200 * MS);
    g_assert_cmpint(s.vectors[0].cpu, ==, 3);
    irq_policy_astray(s.p, &s.vectors[0].v, s.now);
    s.due = s.now;
    sim_run(&s, 200 * MS);
    g_assert_cmpint(s.vectors[0].cpu, ==, 1);
    sim_end(&s);
}

/* The guest sends a vector to another vCPU. */
static void test_owner(void)
{
    Sim s;

    sim_start(&s, &optimistic);
    sim_tell(&s, 1, 3);
    sim_run(&s, 200 * MS);
    irq_policy_set_owner(s.p, &s.vectors[0].v, 1, s.now);
    s.due = 0;
    sim_run(&s, 300 * MS);
    g_assert_cmpint(s.vectors[0].cpu, ==, 3);
    g_assert_cmpint(s.vectors[1].cpu, ==, 0);
    irq_policy_set_owner(s.p, &s.vectors[0].v, -1, s.now);
    sim_tell(&s, 1, 2);
    sim_run(&s, 300 * MS);
    g_assert_cmpint(s.vectors[0].cpu, ==, 3);
    sim_end(&s);
}

/* The host's counters have 32 bits. */
static void test_wrap(void)
{
    Sim s;

    sim_start(&s, &optimistic);
    for (int i = 0; i < VECTORS; i++) {
        s.vectors[i].counts[0] = UINT32_MAX - 50;
    }
    sim_run(&s, 300 * MS);
    g_assert_cmpuint(s.vectors[0].v.interrupts, <, 1000);
    sim_tell(&s, 0, 1);
    g_assert_cmpint(s.vectors[0].cpu, ==, 1);
    g_assert_cmpuint(s.vectors[0].v.interrupts, <, 1000);
    sim_end(&s);
}

/* The host's text grew: the last processors are not told any more. */
static void test_cut(void)
{
    Sim s;
    const IRQVector *v = &s.vectors[0].v;

    sim_start(&s, &optimistic);
    s.vectors[0].counts[3] = 1000;
    sim_run(&s, 300 * MS);
    s.vectors[0].cut = 2;
    sim_tell(&s, 0, 1);
    g_assert_cmpuint(v->interrupts, <, 1000);
    g_assert_cmpint(s.vectors[0].cpu, ==, 1);
    sim_run(&s, 300 * MS);
    sim_tell(&s, 0, 0);
    g_assert_cmpint(s.vectors[0].cpu, ==, 0);
    g_assert_cmpuint(v->interrupts, <, 1000);
    sim_end(&s);
}

/* A host processor that cannot be, and a vCPU that is gone. */
static void test_no_cpu(void)
{
    Sim s;

    sim_start(&s, &optimistic);
    sim_run(&s, 200 * MS);
    sim_tell(&s, 0, CPUS);
    sim_run(&s, 200 * MS);
    sim_tell(&s, 0, -1);
    sim_run(&s, 200 * MS);
    irq_policy_vcpu_at(s.p, 5, 1, s.now);
    irq_policy_run(s.p, s.now);
    g_assert_cmpuint(s.attempts, ==, 0);
    g_assert_cmpint(irq_policy_vcpu_cpu(s.p, 0), ==, -1);
    g_assert_cmpint(irq_policy_vcpu_cpu(s.p, 99), ==, -1);
    sim_end(&s);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
#define ADD(name, func) g_test_add_func("/irq-affinity/policy/" name, func)
    ADD("optimistic", test_optimistic);
    ADD("first-decision", test_first_decision);
    ADD("rest", test_rest);
    ADD("quiet", test_quiet);
    ADD("quiet-looks", test_quiet_looks);
    ADD("never-counted-moves", test_never_counted_moves);
    ADD("never-counted", test_never_counted);
    ADD("looks-of-moves", test_looks_of_moves);
    ADD("quiet-pessimistic", test_quiet_pessimistic);
    ADD("returned", test_returned);
    ADD("pessimistic", test_pessimistic);
    ADD("threshold", test_threshold);
    ADD("asleep", test_asleep);
    ADD("both", test_both);
    ADD("hysteresis", test_hysteresis);
    ADD("ping-pong", test_ping_pong);
    ADD("budget-shared", test_budget_shared);
    ADD("refusals", test_refusals);
    ADD("backoff", test_backoff);
    ADD("retry", test_retry);
    ADD("foreign", test_foreign);
    ADD("offline", test_offline);
    ADD("locality", test_locality);
    ADD("late-answer", test_late_answer);
    ADD("move-and-return", test_move_and_return);
    ADD("astray", test_astray);
    ADD("owner", test_owner);
    ADD("wrap", test_wrap);
    ADD("cut", test_cut);
    ADD("no-cpu", test_no_cpu);
#undef ADD
    return g_test_run();
}

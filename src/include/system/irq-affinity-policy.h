/*
 * Interrupt affinity that follows the vCPU: when to move what
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Two rules.  Optimistic (US 9,003,094): a vCPU is found to have moved to
 * another processor, so the interrupts of its devices are sent there at once.
 * Pessimistic (US 8,880,764): a processor took interrupts and had to forward
 * them to the one where the vCPU was running; when that has happened often
 * enough, further ones are sent there directly.
 *
 * This part decides only.  It has no clock, no timer and no files; what it
 * knows of the world it is told or asks through IRQWorld.  A caller tells it
 * of moved vCPUs and calls irq_policy_run() when it says so.
 *
 * All times are in ns of one monotonic clock.  Nothing here locks: the caller
 * serialises.
 */

#ifndef SYSTEM_IRQ_AFFINITY_POLICY_H
#define SYSTEM_IRQ_AFFINITY_POLICY_H

#include "qapi/qapi-types-irq-affinity.h"

#define IRQ_POLICY_NEVER INT64_MAX

/* Pause after a first refusal, doubled with each further one, and its limit */
#define IRQ_POLICY_BACKOFF_MIN_NS (100 * 1000 * 1000LL)
#define IRQ_POLICY_BACKOFF_MAX_NS (60 * 1000 * 1000 * 1000LL)

/* Longest pause between two looks at an interrupt that is not in place */
#define IRQ_POLICY_LOOK_MAX_NS (60 * 1000 * 1000 * 1000LL)

/* A vCPU that was not seen to move for so long stays where it is */
#define IRQ_POLICY_REST_NS (1000 * 1000 * 1000LL)

/* Most moves per second that a budget can allow */
#define IRQ_POLICY_MOVES_MAX 10000

/**
 * struct IRQPolicyConfig: the rules
 * @optimistic: move when a vCPU has moved
 * @pessimistic: move when interrupts were forwarded
 * @forward_threshold: how many forwarded interrupts of a vector in a window
 *                     make @pessimistic move it; at least 1
 * @forward_window_ns: length of the window; an interrupt without one in that
 *                     time is quiet
 * @min_interval_ns: between two moves of the interrupts of one vCPU
 * @max_moves_per_s: most attempts to move an interrupt in any second, 1 to
 *                   IRQ_POLICY_MOVES_MAX
 */
typedef struct IRQPolicyConfig {
    bool optimistic;
    bool pessimistic;
    uint32_t forward_threshold;
    int64_t forward_window_ns;
    int64_t min_interval_ns;
    uint32_t max_moves_per_s;
} IRQPolicyConfig;

/**
 * enum IRQMask: how an interrupt's mask is found before it is changed
 * @IRQ_MASK_KNOWN: as it was found first, or as it was left by the last move
 * @IRQ_MASK_RESET: the host has reset it, as when its processor goes offline
 * @IRQ_MASK_FOREIGN: somebody else changed it
 */
typedef enum IRQMask {
    IRQ_MASK_KNOWN,
    IRQ_MASK_RESET,
    IRQ_MASK_FOREIGN,
} IRQMask;

/**
 * struct IRQVector: one interrupt of a device
 * @vcpu: index of the only vCPU that gets it, -1: none or several
 * @at: processor that took most of it when last looked, -1: not known
 * @target: processor to which it was moved last, -1: it was not
 * @pending: moves and returns that are under way; at most one is a move
 * @stood_down: somebody else changed its mask, it is left alone
 * @wanted: used during a decision
 * @counted: @counts holds an earlier reading
 * @counts: interrupts by processor as last read
 * @rose_ns: when it was last seen to have counted, INT64_MIN: never
 * @retry_ns: not tried before
 * @refused_in_row: refusals since the last move
 * @window_forwards: forwarded in this window
 * @interrupts: taken while it was looked at
 * @forwards: of these, forwarded
 * @moves: how often it was moved
 * @refusals: by reason
 * @last_refusal: valid if any of @refusals is not 0
 *
 * Filled by this part; only @vcpu is set through irq_policy_set_owner().  Part
 * of a larger struct of the caller.
 */
typedef struct IRQVector {
    int vcpu;
    int at;
    int target;
    unsigned pending;
    bool stood_down;
    bool wanted;
    bool counted;
    uint32_t *counts;
    int64_t rose_ns;
    int64_t retry_ns;
    unsigned refused_in_row;
    uint32_t window_forwards;
    uint64_t interrupts;
    uint64_t forwards;
    uint64_t moves;
    uint64_t refusals[IRQ_AFFINITY_REFUSAL__MAX];
    IrqAffinityRefusal last_refusal;
} IRQVector;

/**
 * struct IRQWorld: what the rules ask
 * @counts: read how often each of the @cpus processors took @v; of one that
 *          is not told its last reading stays; false: cannot be told
 * @run_ns: read how long a vCPU has run; false: cannot be told
 * @near: whether a vCPU on processor @b counts as being where its interrupt
 *        is, on @a; true if @a == @b
 * @mask: see there
 * @move: send @v to @cpu.  Returns: 0, a negative errno, or -EINPROGRESS, in
 *        which case irq_policy_moved() follows, not from within this call.
 */
typedef struct IRQWorld {
    bool (*counts)(void *opaque, IRQVector *v, uint32_t *counts);
    bool (*run_ns)(void *opaque, unsigned vcpu, uint64_t *run_ns);
    bool (*near)(void *opaque, int a, int b);
    IRQMask (*mask)(void *opaque, IRQVector *v);
    int (*move)(void *opaque, IRQVector *v, int cpu);
} IRQWorld;

/**
 * struct IRQPolicyStats: what was done, of all vectors and since the start
 * @notices: vCPUs found on another processor
 * @interrupts: taken while they were looked at
 * @forwards: of these, forwarded
 * @moves: that succeeded
 * @held: decisions put off because of the interval between moves
 * @over_budget: decisions put off because of the budget
 * @foreign: vectors left alone because somebody else changed their mask
 * @resets: masks that the host had reset
 * @refusals: by reason, of moves and returns
 */
typedef struct IRQPolicyStats {
    uint64_t notices;
    uint64_t interrupts;
    uint64_t forwards;
    uint64_t moves;
    uint64_t held;
    uint64_t over_budget;
    uint64_t foreign;
    uint64_t resets;
    uint64_t refusals[IRQ_AFFINITY_REFUSAL__MAX];
} IRQPolicyStats;

typedef struct IRQPolicy IRQPolicy;

/**
 * irq_policy_new: start deciding
 * @config: copied
 * @world: static
 * @opaque: for @world
 * @cpus: number of host processors that @world counts
 *
 * Returns: to be freed with irq_policy_free().
 */
IRQPolicy *irq_policy_new(const IRQPolicyConfig *config, const IRQWorld *world,
                          void *opaque, unsigned cpus);

/**
 * irq_policy_free: end it
 * @p: no vector of it may be left; or NULL
 */
void irq_policy_free(IRQPolicy *p);

/**
 * irq_policy_add: take a vector up
 * @p: the policy
 * @v: the caller's, zeroed; stays valid until irq_policy_remove()
 * @vcpu: its owner, or -1
 * @now_ns: the time
 */
void irq_policy_add(IRQPolicy *p, IRQVector *v, int vcpu, int64_t now_ns);

/**
 * irq_policy_remove: let a vector go; frees what belongs to it
 * @p: the policy
 * @v: the vector
 */
void irq_policy_remove(IRQPolicy *p, IRQVector *v);

/**
 * irq_policy_set_owner: another vCPU, or none, gets a vector
 * @p: the policy
 * @v: the vector
 * @vcpu: index, or -1
 * @now_ns: the time
 */
void irq_policy_set_owner(IRQPolicy *p, IRQVector *v, int vcpu,
                          int64_t now_ns);

/**
 * irq_policy_vcpu_at: tell where a vCPU runs
 * @p: the policy
 * @vcpu: index
 * @cpu: host processor; -1: the vCPU is gone, or nobody knows
 * @now_ns: the time
 *
 * Costs little if it is where it was.
 */
void irq_policy_vcpu_at(IRQPolicy *p, unsigned vcpu, int cpu, int64_t now_ns);

/**
 * irq_policy_run: decide what is due
 * @p: the policy
 * @now_ns: the time
 *
 * Returns: when to call again, IRQ_POLICY_NEVER: not before something else
 * was told.
 */
int64_t irq_policy_run(IRQPolicy *p, int64_t now_ns);

/**
 * irq_policy_moved: end of a move that was under way
 * @p: the policy
 * @v: the vector
 * @cpu: where to
 * @err: 0 or a negative errno
 * @now_ns: the time
 */
void irq_policy_moved(IRQPolicy *p, IRQVector *v, int cpu, int err,
                      int64_t now_ns);

/**
 * irq_policy_returning: a vector is given back, it may take a while
 * @p: the policy
 * @v: the vector; not moved until irq_policy_returned()
 */
void irq_policy_returning(IRQPolicy *p, IRQVector *v);

/**
 * irq_policy_returned: end of that
 * @p: the policy
 * @v: the vector
 * @now_ns: the time
 */
void irq_policy_returned(IRQPolicy *p, IRQVector *v, int64_t now_ns);

/**
 * irq_policy_astray: a vector is not where it was sent any more
 * @p: the policy
 * @v: the vector
 * @now_ns: the time
 */
void irq_policy_astray(IRQPolicy *p, IRQVector *v, int64_t now_ns);

/**
 * irq_policy_not_returned: count that an interrupt could not be given back
 * @p: the policy
 * @err: positive errno
 */
void irq_policy_not_returned(IRQPolicy *p, int err);

/**
 * irq_policy_retry: a reason for refusals has gone
 * @p: the policy
 * @reason: which; vectors that were last refused for it may be tried at once
 * @now_ns: the time
 */
void irq_policy_retry(IRQPolicy *p, IrqAffinityRefusal reason, int64_t now_ns);

/**
 * irq_policy_quiet: whether a vector has not counted for a window
 * @p: the policy
 * @v: the vector
 * @now_ns: the time
 *
 * Returns: true also for one that posted interrupts deliver: the host does
 * not count them.
 */
bool irq_policy_quiet(const IRQPolicy *p, const IRQVector *v, int64_t now_ns);

/**
 * irq_policy_vcpu_cpu: where a vCPU was last told to run
 * @p: the policy
 * @vcpu: index
 *
 * Returns: host processor, or -1.
 */
int irq_policy_vcpu_cpu(const IRQPolicy *p, unsigned vcpu);

/**
 * irq_policy_vcpu_notices: how often a vCPU was found on another processor
 * @p: the policy
 * @vcpu: index
 */
uint64_t irq_policy_vcpu_notices(const IRQPolicy *p, unsigned vcpu);

/**
 * irq_policy_stats: what was done so far
 * @p: the policy
 */
const IRQPolicyStats *irq_policy_stats(const IRQPolicy *p);

/**
 * irq_policy_refusal: the reason behind an errno
 * @err: positive errno
 */
IrqAffinityRefusal irq_policy_refusal(int err);

#endif

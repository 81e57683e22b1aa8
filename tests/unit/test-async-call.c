/*
 * Unit test: functions on a second stack
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/async-call.h"
#include "qemu/main-loop.h"
#include "qemu/thread.h"
#include <sys/resource.h>

#define NEVER_NS (3600 * NANOSECONDS_PER_SECOND)

static AsyncCallSite site = { .name = "test" };
static AsyncCallOwner owner;
static GThread *main_thread;

/* One call of a test: what it is to do, and what became of it */
typedef struct Try {
    AsyncCall *call;
    int64_t timeout_ns;
    int waits;                  /* how often it waits */
    int steps;                  /* how often it went on */
    int last;                   /* what the last wait returned */
    int completions;
    int ret;
} Try;

static int coroutine_fn wait_some(AsyncCall *call, void *opaque)
{
    Try *t = opaque;

    t->call = call;
    while (t->waits--) {
        t->last = async_call_park(call, t->timeout_ns ?: -1);
        g_assert(g_thread_self() == main_thread);
        t->steps++;
        if (t->last == -ECANCELED) {
            break;
        }
    }
    t->call = NULL;
    return t->last;
}

static void completed(void *opaque, int ret)
{
    Try *t = opaque;

    t->completions++;
    t->ret = ret;
}

static AsyncCallResult try(Try *t)
{
    return async_call(&owner, &site, wait_some, completed, t, &t->ret);
}

/* Let the main loop run as often as it likes, and until @done. */
static void loop_until(bool (*done)(void *), void *opaque)
{
    while (!done(opaque)) {
        main_loop_wait(false);
    }
}

static bool is_complete(void *opaque)
{
    return ((Try *)opaque)->completions;
}

static bool nothing_parked(void *opaque)
{
    AsyncCallTotals totals;

    async_call_totals(&totals);
    return !totals.parked;
}

/* A thread is counted until a moment after it has woken its call. */
static void wait_no_jobs(void)
{
    AsyncCallTotals totals;

    do {
        main_loop_wait(true);
        async_call_totals(&totals);
    } while (totals.jobs);
}

static void setup(void)
{
    site = (AsyncCallSite) { .name = "test" };
    async_call_owner_init(&owner, "owner", ASYNC_CALL_MAX_PARKED_OWNER);
    g_assert_true(nothing_parked(NULL));
}

static void test_done(void)
{
    Try t = { .last = 42 };

    setup();
    g_assert_cmpint(try(&t), ==, ASYNC_CALL_DONE);
    g_assert_cmpint(t.ret, ==, 42);
    g_assert_cmpint(t.completions, ==, 0);
    g_assert_cmpuint(site.inlined, ==, 1);
    g_assert_cmpuint(site.parked, ==, 0);
}

static void test_parked(void)
{
    Try t = { .waits = 2 };

    setup();
    g_assert_cmpint(try(&t), ==, ASYNC_CALL_PARKED);
    g_assert_cmpuint(owner.parked, ==, 1);
    g_assert_cmpuint(site.now, ==, 1);

    g_assert_true(async_call_wake(t.call, 7));
    g_assert_false(async_call_wake(t.call, 8));
    g_assert_cmpint(t.steps, ==, 0);
    while (t.steps < 1) {
        main_loop_wait(false);
    }
    g_assert_cmpint(t.last, ==, 7);
    g_assert_cmpint(t.completions, ==, 0);

    async_call_wake(t.call, 9);
    loop_until(is_complete, &t);
    g_assert_cmpint(t.ret, ==, 9);
    g_assert_cmpint(t.completions, ==, 1);
    g_assert_cmpuint(owner.parked, ==, 0);
    g_assert_cmpuint(site.now, ==, 0);
    g_assert_cmpuint(site.inlined, ==, 0);
    g_assert_cmpuint(site.parked, ==, 1);
}

/* Woken before it waits: no reason to leave the caller. */
static int coroutine_fn wake_self(AsyncCall *call, void *opaque)
{
    async_call_wake(call, 5);
    return async_call_park(call, -1);
}

static void test_woken_before(void)
{
    int ret;

    setup();
    g_assert_cmpint(async_call(&owner, &site, wake_self, completed, NULL,
                               &ret), ==, ASYNC_CALL_DONE);
    g_assert_cmpint(ret, ==, 5);
    g_assert_cmpuint(site.inlined, ==, 1);
}

static void test_timeout(void)
{
    Try t = { .waits = 1, .timeout_ns = 1000000 };

    setup();
    g_assert_cmpint(try(&t), ==, ASYNC_CALL_PARKED);
    loop_until(is_complete, &t);
    g_assert_cmpint(t.ret, ==, -ETIMEDOUT);
    g_assert_cmpuint(site.timed_out, ==, 1);
}

/*
 * An event loop that runs inside something must not let a call go on, but the
 * main loop must, after it.
 */
static void test_nested_loop(void)
{
    AioContext *ctx = qemu_get_aio_context();
    Try t = { .waits = 1 };

    setup();
    try(&t);
    async_call_wake(t.call, 0);
    for (int i = 0; i < 100; i++) {
        aio_poll(ctx, false);
    }
    g_assert_cmpint(t.steps, ==, 0);
    loop_until(is_complete, &t);
    g_assert_cmpint(t.steps, ==, 1);
}

static void test_order(void)
{
    Try t[ASYNC_CALL_MAX_PARKED_OWNER] = { };
    AsyncCall *order[ARRAY_SIZE(t)];
    int first = 0;

    setup();
    for (int i = 0; i < ARRAY_SIZE(t); i++) {
        t[i].waits = 1;
        g_assert_cmpint(try(&t[i]), ==, ASYNC_CALL_PARKED);
        order[i] = t[i].call;
    }
    /* the last that parked is woken first */
    for (int i = ARRAY_SIZE(t) - 1; i >= 0; i--) {
        async_call_wake(order[i], ++first);
    }
    loop_until(nothing_parked, NULL);
    for (int i = 0; i < ARRAY_SIZE(t); i++) {
        g_assert_cmpint(t[i].completions, ==, 1);
        g_assert_cmpint(t[i].ret, ==, ARRAY_SIZE(t) - i);
    }
}

static void test_owner_limit(void)
{
    Try t[ASYNC_CALL_MAX_PARKED_OWNER + 1] = { };
    AsyncCallOwner other;
    int last = ARRAY_SIZE(t) - 1;

    setup();
    async_call_owner_init(&other, "other", 1);
    for (int i = 0; i < last; i++) {
        t[i].waits = 1;
        g_assert_cmpint(try(&t[i]), ==, ASYNC_CALL_PARKED);
    }
    g_assert_cmpint(try(&t[last]), ==, ASYNC_CALL_REFUSED);
    g_assert_cmpuint(site.refused, ==, 1);
    g_assert_cmpint(t[last].steps, ==, 0);

    /* another owner has its own limit */
    t[last].waits = 1;
    g_assert_cmpint(async_call(&other, &site, wait_some, completed, &t[last],
                               &t[last].ret), ==, ASYNC_CALL_PARKED);
    g_assert_cmpuint(async_call_cancel(&other), ==, 1);

    /* one that ends makes room for one */
    async_call_wake(t[0].call, 0);
    loop_until(is_complete, &t[0]);
    t[0] = (Try) { .waits = 1 };
    g_assert_cmpint(try(&t[0]), ==, ASYNC_CALL_PARKED);
    g_assert_cmpint(try(&(Try) { }), ==, ASYNC_CALL_REFUSED);

    g_assert_cmpuint(async_call_cancel(&owner), ==, last);
    loop_until(nothing_parked, NULL);
}

static void test_global_limit(void)
{
    g_autofree Try *t = g_new0(Try, ASYNC_CALL_MAX_PARKED);
    AsyncCallTotals totals;

    setup();
    owner.max_parked = UINT_MAX;
    for (int i = 0; i < ASYNC_CALL_MAX_PARKED; i++) {
        t[i].waits = 1;
        g_assert_cmpint(try(&t[i]), ==, ASYNC_CALL_PARKED);
    }
    g_assert_cmpint(try(&(Try) { }), ==, ASYNC_CALL_REFUSED);
    async_call_totals(&totals);
    g_assert_cmpuint(totals.parked, ==, ASYNC_CALL_MAX_PARKED);
    g_assert_cmpuint(totals.parked_peak, ==, ASYNC_CALL_MAX_PARKED);
    async_call_cancel(&owner);
    loop_until(nothing_parked, NULL);
}

/* A call on a stack that is a second one already */
static int coroutine_fn nest(AsyncCall *call, void *opaque)
{
    int ret = -1;

    g_assert_cmpint(async_call(&owner, &site, wait_some, completed, opaque,
                               &ret), ==, ASYNC_CALL_DONE);
    g_assert_false(async_call_cancelled(call));
    return ret + 1;
}

static void test_nested_call(void)
{
    Try inner = { .waits = 1 };
    int ret = -1;

    setup();
    g_assert_cmpint(async_call(&owner, &site, nest, completed, &inner, &ret),
                    ==, ASYNC_CALL_PARKED);
    /* the outer call itself does not wait, but its caller has gone on */
    g_assert_cmpuint(owner.parked, ==, 2);
    async_call_wake(inner.call, 10);
    loop_until(nothing_parked, NULL);
    g_assert_cmpint(inner.last, ==, 10);
    /* the completion is the outer call's */
    g_assert_cmpint(inner.completions, ==, 1);
    g_assert_cmpint(inner.ret, ==, 11);
    g_assert_cmpint(ret, ==, -1);
    g_assert_cmpuint(site.parked, ==, 2);
    g_assert_cmpuint(owner.parked, ==, 0);
}

static void test_cancel(void)
{
    Try t = { .waits = 3 };
    AsyncCallOwner *gone = g_new(AsyncCallOwner, 1);

    setup();
    async_call_owner_init(gone, "gone", 1);
    g_assert_cmpint(async_call(gone, &site, wait_some, completed, &t, &t.ret),
                    ==, ASYNC_CALL_PARKED);
    g_assert_cmpuint(async_call_cancel(gone), ==, 1);
    g_assert_cmpuint(async_call_cancel(gone), ==, 0);
    memset(gone, 0xff, sizeof(*gone));
    g_free(gone);
    g_assert_cmpint(t.steps, ==, 0);
    loop_until(nothing_parked, NULL);
    g_assert_cmpint(t.last, ==, -ECANCELED);
    g_assert_cmpint(t.steps, ==, 1);
    g_assert_cmpint(t.completions, ==, 0);
    g_assert_cmpuint(site.cancelled, ==, 1);
}

/* Its result was on the way: still nothing of it reaches the owner. */
static void test_cancel_woken(void)
{
    Try t = { .waits = 1 };

    setup();
    try(&t);
    async_call_wake(t.call, 0);
    g_assert_cmpuint(async_call_cancel(&owner), ==, 1);
    loop_until(nothing_parked, NULL);
    g_assert_cmpint(t.last, ==, -ECANCELED);
    g_assert_cmpint(t.completions, ==, 0);
}

/* A device that is reset while calls are parked serves the next at once. */
static void test_reset(void)
{
    Try old[3] = { { .waits = 1 }, { .waits = 1 }, { .waits = 1 } };
    Try new = { .waits = 1 };

    setup();
    for (int i = 0; i < ARRAY_SIZE(old); i++) {
        try(&old[i]);
    }
    async_call_cancel(&owner);
    g_assert_cmpuint(owner.parked, ==, 0);
    g_assert_cmpint(try(&new), ==, ASYNC_CALL_PARKED);
    async_call_wake(new.call, 1);
    loop_until(is_complete, &new);
    loop_until(nothing_parked, NULL);
    for (int i = 0; i < ARRAY_SIZE(old); i++) {
        g_assert_cmpint(old[i].completions, ==, 0);
    }
}

static void test_quit(void)
{
    Try t[2] = { { .waits = 1 }, { .waits = 1 } };
    AsyncCallOwner other;

    setup();
    async_call_owner_init(&other, "other", 1);
    try(&t[0]);
    async_call(&other, &site, wait_some, completed, &t[1], &t[1].ret);
    async_call_cancel_all();
    g_assert_cmpuint(owner.parked + other.parked, ==, 0);
    loop_until(nothing_parked, NULL);
    g_assert_cmpint(t[0].last, ==, -ECANCELED);
    g_assert_cmpint(t[1].last, ==, -ECANCELED);
}

/* A host call that takes until the gate opens; on the heap, as it has to be */
typedef struct Gate {
    QemuMutex lock;
    QemuCond cond;
    bool open;
    int entered;
    int left;
    int destroyed;
} Gate;

static Gate gate;

static void gate_init(void)
{
    gate = (Gate) { };
    qemu_mutex_init(&gate.lock);
    qemu_cond_init(&gate.cond);
}

static void gate_open(void)
{
    QEMU_LOCK_GUARD(&gate.lock);
    gate.open = true;
    qemu_cond_broadcast(&gate.cond);
}

static int gate_read(int *what)
{
    QEMU_LOCK_GUARD(&gate.lock);
    return *what;
}

static void gate_destroy(void)
{
    wait_no_jobs();
    qemu_mutex_destroy(&gate.lock);
    qemu_cond_destroy(&gate.cond);
}

static int pass_gate(void *opaque)
{
    int *value = opaque;

    g_assert(g_thread_self() != main_thread);
    QEMU_LOCK_GUARD(&gate.lock);
    gate.entered++;
    while (!gate.open) {
        qemu_cond_wait(&gate.cond, &gate.lock);
    }
    gate.left++;
    return ++*value;
}

static void destroy_value(void *opaque)
{
    WITH_QEMU_LOCK_GUARD(&gate.lock) {
        gate.destroyed++;
    }
    g_free(opaque);
}

static int coroutine_fn call_host(AsyncCall *call, void *opaque)
{
    Try *t = opaque;
    int *value = g_new(int, 1);

    *value = t->waits;
    t->last = async_call_blocking(call, t->timeout_ns ?: -1, pass_gate, value,
                                  destroy_value);
    t->steps++;
    return t->last;
}

static AsyncCallResult try_host(Try *t)
{
    return async_call(&owner, &site, call_host, completed, t, &t->ret);
}

static void test_blocking(void)
{
    Try t = { .waits = 41 };

    setup();
    gate_init();
    g_assert_cmpint(try_host(&t), ==, ASYNC_CALL_PARKED);
    gate_open();
    loop_until(is_complete, &t);
    g_assert_cmpint(t.ret, ==, 42);
    gate_destroy();
    g_assert_cmpint(gate.destroyed, ==, 1);
}

/*
 * A server that is dead: the wait ends in time, the thread stays, the next
 * wait of the same call is not woken by the last one's thread.
 */
static int coroutine_fn call_dead_host(AsyncCall *call, void *opaque)
{
    Try *t = opaque;

    call_host(call, t);
    g_assert_cmpint(t->last, ==, -ETIMEDOUT);
    gate_open();
    while (gate_read(&gate.destroyed) == 0) {
        g_usleep(100);
    }
    return async_call_park(call, 1000000);
}

static void test_dead_host(void)
{
    Try t = { .timeout_ns = 1000000 };

    setup();
    gate_init();
    g_assert_cmpint(async_call(&owner, &site, call_dead_host, completed, &t,
                               &t.ret), ==, ASYNC_CALL_PARKED);
    loop_until(is_complete, &t);
    g_assert_cmpint(t.ret, ==, -ETIMEDOUT);
    g_assert_cmpuint(site.timed_out, ==, 2);
    gate_destroy();
}

static void test_cancel_host(void)
{
    Try t = { .waits = 1 };

    setup();
    gate_init();
    try_host(&t);
    while (!gate_read(&gate.entered)) {
        g_usleep(100);
    }
    async_call_cancel(&owner);
    loop_until(nothing_parked, NULL);
    g_assert_cmpint(t.last, ==, -ECANCELED);
    g_assert_cmpint(gate_read(&gate.left), ==, 0);
    gate_open();
    gate_destroy();
    g_assert_cmpint(gate.destroyed, ==, 1);
    g_assert_cmpint(t.completions, ==, 0);
}

static void test_pool_exhausted(void)
{
    g_autofree Try *t = g_new0(Try, ASYNC_CALL_MAX_JOBS);
    Try extra = { };
    AsyncCallTotals before, totals;

    setup();
    gate_init();
    async_call_totals(&before);
    for (int i = 0; i < ASYNC_CALL_MAX_JOBS; i++) {
        t[i].waits = i;
        g_assert_cmpint(try_host(&t[i]), ==, ASYNC_CALL_PARKED);
    }
    owner.max_parked++;
    g_assert_cmpint(try_host(&extra), ==, ASYNC_CALL_DONE);
    g_assert_cmpint(extra.ret, ==, -EAGAIN);
    g_assert_cmpint(gate_read(&gate.destroyed), ==, 1);
    async_call_totals(&totals);
    g_assert_cmpuint(totals.jobs, ==, ASYNC_CALL_MAX_JOBS);
    g_assert_cmpuint(totals.threads, ==, ASYNC_CALL_MAX_JOBS);
    g_assert_cmpuint(totals.jobs_refused, ==, before.jobs_refused + 1);

    gate_open();
    loop_until(nothing_parked, NULL);
    for (int i = 0; i < ASYNC_CALL_MAX_JOBS; i++) {
        g_assert_cmpint(t[i].completions, ==, 1);
        g_assert_cmpint(t[i].ret, ==, i + 1);
    }
    gate_destroy();

    /* there are threads again, and none is started for it */
    gate_init();
    gate_open();
    extra = (Try) { };
    if (try_host(&extra) == ASYNC_CALL_PARKED) {
        loop_until(is_complete, &extra);
    }
    g_assert_cmpint(extra.ret, ==, 1);
    async_call_totals(&totals);
    g_assert_cmpuint(totals.threads, ==, ASYNC_CALL_MAX_JOBS);
    gate_destroy();
}

static void test_drain(void)
{
    Try t = { }, other_try = { .waits = 1 };
    AsyncCallOwner other;

    setup();
    gate_init();
    async_call_owner_init(&other, "other", 1);
    async_call(&other, &site, wait_some, completed, &other_try,
               &other_try.ret);
    async_call_wake(other_try.call, 0);
    g_assert_true(async_call_drain(&owner, 0));

    try_host(&t);
    g_assert_false(async_call_drain(&owner, 1000000));
    g_assert_cmpint(t.completions, ==, 0);
    gate_open();
    g_assert_true(async_call_drain(&owner, NEVER_NS));
    g_assert_cmpint(t.completions, ==, 1);

    /* it is not for this owner to let the other go on */
    g_assert_cmpint(other_try.steps, ==, 0);
    loop_until(is_complete, &other_try);
    gate_destroy();
}

/* Wakers in threads of their own, against timeouts and cancellation */
static int wake_from_thread(void *opaque)
{
    g_usleep(g_random_int_range(0, 200));
    return 1;
}

static int coroutine_fn race(AsyncCall *call, void *opaque)
{
    Try *t = opaque;

    while (t->waits--) {
        t->last = async_call_blocking(call, t->timeout_ns, wake_from_thread,
                                      NULL, NULL);
        t->steps++;
        if (t->last == -ECANCELED) {
            break;
        }
        g_assert(t->last == 1 || t->last == -ETIMEDOUT || t->last == -EAGAIN);
    }
    return t->last;
}

static void test_races(void)
{
    uint32_t seed = g_test_rand_int();
    int ended = 0;
    Try t[8];

    setup();
    g_random_set_seed(seed);
    g_test_message("seed %" PRIu32, seed);
    for (int round = 0; round < 50; round++) {
        for (int i = 0; i < ARRAY_SIZE(t); i++) {
            t[i] = (Try) {
                .waits = 10,
                .timeout_ns = g_random_int_range(1, 200000),
            };
            async_call(&owner, &site, race, completed, &t[i], &t[i].ret);
        }
        for (int i = g_random_int_range(0, 30); i; i--) {
            main_loop_wait(true);
        }
        if (round % 2) {
            async_call_cancel(&owner);
        }
        loop_until(nothing_parked, NULL);
        for (int i = 0; i < ARRAY_SIZE(t); i++) {
            g_assert_cmpint(t[i].completions, ==, t[i].last != -ECANCELED);
            ended += t[i].completions;
        }
    }
    g_assert_cmpuint(ended + site.cancelled, ==, 50 * ARRAY_SIZE(t));
    g_assert_cmpuint(owner.parked, ==, 0);
    wait_no_jobs();
}

#if !defined(QEMU_SANITIZE_ADDRESS) && !defined(QEMU_SANITIZE_THREAD)
/* The host has no memory for another thread's stack. */
static void test_no_thread_subprocess(void)
{
    Try t = { };
    struct rlimit none = { .rlim_cur = 0, .rlim_max = RLIM_INFINITY };

    setup();
    gate_init();
    try(&t);                    /* its stack is in the pool from now on */
    setrlimit(RLIMIT_AS, &none);
    g_assert_cmpint(try_host(&t), ==, ASYNC_CALL_DONE);
    g_assert_cmpint(t.ret, ==, -EAGAIN);
}

static void test_no_thread(void)
{
    g_test_trap_subprocess("/async-call/no-thread/subprocess", 0, 0);
    g_test_trap_assert_passed();
}
#endif

static void coroutine_fn do_nothing(void *opaque)
{
}

static int return_one(void *opaque)
{
    return 1;
}

static int coroutine_fn call_thread(AsyncCall *call, void *opaque)
{
    return async_call_blocking(call, -1, return_one, NULL, NULL);
}

/* Nanoseconds for each of @count calls of one of the ways to do nothing */
static double time_way(int way, unsigned count)
{
    /* volatile: the compiler is not to see through a direct call */
    AsyncCallFunc *volatile fn = wait_some;
    int64_t start_ns = get_clock();
    Try t = { };

    for (unsigned i = 0; i < count; i++) {
        t.waits = 0;
        switch (way) {
        case 0:
            fn(NULL, &t);
            break;
        case 1:
            try(&t);
            break;
        case 2:
            qemu_coroutine_enter(qemu_coroutine_create(do_nothing, NULL));
            break;
        case 3:
            t.completions = 0;
            if (async_call(&owner, &site, call_thread, completed, &t,
                           &t.ret) == ASYNC_CALL_PARKED) {
                loop_until(is_complete, &t);
            }
        }
    }
    return (double)(get_clock() - start_ns) / count;
}

/* For tests/bench; the ways take turns, so that they share what disturbs. */
static void test_perf(void)
{
    setup();
    for (int i = 0; i < 9; i++) {
        double direct = time_way(0, 1000 * 1000);
        double call = time_way(1, 1000 * 1000);
        double coroutine = time_way(2, 1000 * 1000);
        double thread = time_way(3, 10 * 1000);

        g_test_message("ns: direct %.1f async-call %.1f coroutine %.1f "
                       "thread %.1f", direct, call, coroutine, thread);
    }
}

int main(int argc, char **argv)
{
    main_thread = g_thread_self();
    qemu_init_main_loop(&error_abort);
    g_test_init(&argc, &argv, NULL);

    g_test_add_func("/async-call/done", test_done);
    g_test_add_func("/async-call/parked", test_parked);
    g_test_add_func("/async-call/woken-before", test_woken_before);
    g_test_add_func("/async-call/timeout", test_timeout);
    g_test_add_func("/async-call/nested-loop", test_nested_loop);
    g_test_add_func("/async-call/order", test_order);
    g_test_add_func("/async-call/limit/owner", test_owner_limit);
    g_test_add_func("/async-call/limit/global", test_global_limit);
    g_test_add_func("/async-call/nested-call", test_nested_call);
    g_test_add_func("/async-call/cancel", test_cancel);
    g_test_add_func("/async-call/cancel-woken", test_cancel_woken);
    g_test_add_func("/async-call/reset", test_reset);
    g_test_add_func("/async-call/quit", test_quit);
    g_test_add_func("/async-call/blocking", test_blocking);
    g_test_add_func("/async-call/dead-host", test_dead_host);
    g_test_add_func("/async-call/cancel-host", test_cancel_host);
    g_test_add_func("/async-call/pool-exhausted", test_pool_exhausted);
    g_test_add_func("/async-call/drain", test_drain);
    g_test_add_func("/async-call/races", test_races);
#if !defined(QEMU_SANITIZE_ADDRESS) && !defined(QEMU_SANITIZE_THREAD)
    g_test_add_func("/async-call/no-thread", test_no_thread);
    g_test_add_func("/async-call/no-thread/subprocess",
                    test_no_thread_subprocess);
#endif
    if (g_test_perf()) {
        g_test_add_func("/async-call/perf", test_perf);
    }
    return g_test_run();
}

/*
 * Unit test: the policy of on-demand mapping
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/module.h"
#include "qemu/timer.h"
#include "qom/object_interfaces.h"
#include "system/ondemand-map.h"

#define SECOND NANOSECONDS_PER_SECOND

void ondemand_map_policy_start(OndemandPolicy *policy)
{
}

void ondemand_map_policy_stop(OndemandPolicy *policy)
{
}

/* @per_s accesses a second, evenly, for @seconds; returns the time after. */
static int64_t trap(OndemandTuner *t, int64_t now_ns, unsigned per_s,
                    unsigned seconds)
{
    for (unsigned i = 0; i < per_s * seconds; i++) {
        ondemand_tuner_trap(t, now_ns + i * (SECOND / per_s));
    }
    return now_ns + seconds * SECOND;
}

static void test_tuner_bounds(void)
{
    OndemandTuner t = { .threshold = ONDEMAND_TUNER_START };
    int64_t now = trap(&t, 12345, 100000, 3);

    g_assert_cmpuint(t.threshold, ==, ONDEMAND_TUNER_MIN);
    now = trap(&t, now, 20, 10);
    g_assert_cmpuint(t.threshold, ==, ONDEMAND_TUNER_MAX);
    trap(&t, now, 100000, 3);
    g_assert_cmpuint(t.threshold, ==, ONDEMAND_TUNER_MIN);
}

/* At the rate that is aimed at, or a little below, nothing moves. */
static void test_tuner_rest(void)
{
    OndemandTuner t = { .threshold = ONDEMAND_TUNER_START };

    trap(&t, 0, ONDEMAND_TUNER_TARGET * 3 / 4, 10);
    g_assert_cmpuint(t.threshold, ==, ONDEMAND_TUNER_START);
}

/* One burst must not turn the threshold over: one step per interval. */
static void test_tuner_interval(void)
{
    OndemandTuner t = { .threshold = ONDEMAND_TUNER_START };

    for (int i = 0; i < 100000; i++) {
        ondemand_tuner_trap(&t, ONDEMAND_TUNER_INTERVAL_NS - 1);
    }
    g_assert_cmpuint(t.threshold, ==, ONDEMAND_TUNER_START);
    ondemand_tuner_trap(&t, 2 * ONDEMAND_TUNER_INTERVAL_NS);
    g_assert_cmpuint(t.threshold, ==, ONDEMAND_TUNER_START / 2);
    g_assert_cmpuint(t.traps, ==, 0);
}

/* A clock that stands still or goes back must not divide by zero. */
static void test_tuner_clock(void)
{
    OndemandTuner t = { .threshold = ONDEMAND_TUNER_START };

    ondemand_tuner_trap(&t, SECOND);
    ondemand_tuner_trap(&t, SECOND);
    ondemand_tuner_trap(&t, 0);
    g_assert_cmpuint(t.threshold, ==, ONDEMAND_TUNER_START);
}

/*
 * A guest that touches @fresh new places a second, each over and over: about
 * fresh * threshold accesses trap.  The tuner must come to rest near its aim.
 */
static void test_tuner_settles(void)
{
    for (unsigned fresh = 1; fresh <= 512; fresh *= 2) {
        OndemandTuner t = { .threshold = ONDEMAND_TUNER_START };
        double rate = 0, due = 0;

        for (int ms = 0; ms < 60 * 1000; ms++) {
            rate = fresh * (t.threshold + 1);
            for (due += rate / 1000; due >= 1; due--) {
                ondemand_tuner_trap(&t, ms * (SECOND / 1000));
            }
        }
        g_assert_cmpfloat(rate, <=, 4 * ONDEMAND_TUNER_TARGET);
        if (t.threshold < ONDEMAND_TUNER_MAX) {
            g_assert_cmpfloat(rate, >=, ONDEMAND_TUNER_TARGET / 4);
        }
    }
}

static OndemandPolicy *new_policy(const char *threshold)
{
    return ONDEMAND_POLICY(object_new_with_props(TYPE_ONDEMAND_POLICY,
        object_get_objects_root(), "policy", &error_abort,
        "threshold", threshold, NULL));
}

static void test_threshold(void)
{
    OndemandPolicy *p = new_policy("7");

    g_assert_cmpuint(ondemand_policy_threshold(p), ==, 7);
    for (int i = 0; i < 10000; i++) {
        ondemand_policy_trap(p);
    }
    g_assert_cmpuint(ondemand_policy_threshold(p), ==, 7);
    g_assert_cmpuint(p->tuner.traps, ==, 0);
    object_unparent(OBJECT(p));

    p = new_policy("auto");
    g_assert_cmpuint(ondemand_policy_threshold(p), ==, ONDEMAND_TUNER_START);
    ondemand_policy_trap(p);
    g_assert_cmpuint(p->tuner.traps, ==, 1);
    object_unparent(OBJECT(p));
}

/* Commits are spaced by the limit; the first is not delayed. */
static void test_limit(void)
{
    OndemandPolicy *p = ONDEMAND_POLICY(object_new_with_props(
        TYPE_ONDEMAND_POLICY, object_get_objects_root(), "policy",
        &error_abort, "max-commits-per-s", "20", NULL));
    int64_t delay;

    g_assert_cmpint(p->next_commit_ns, ==, 0);
    delay = ratelimit_calculate_delay(&p->limit, 1);
    g_assert_cmpint(delay, >, 0);
    g_assert_cmpint(delay, <=, SECOND / 20);
    object_unparent(OBJECT(p));
}

static void test_granule(void)
{
    static const struct {
        const char *value;
        bool good;
    } cases[] = {
        { "64k", true }, { "1g", true }, { "96k", false }, { "2k", false },
        { "2g", false }, { "0", false }, { "65537", false },
    };

    for (int i = 0; i < ARRAY_SIZE(cases); i++) {
        Error *err = NULL;
        Object *obj = object_new_with_props(TYPE_ONDEMAND_POLICY,
            object_get_objects_root(), "policy", &err,
            "granule", cases[i].value, NULL);

        g_assert_cmpint(obj != NULL, ==, cases[i].good);
        if (obj) {
            object_unparent(obj);
        } else {
            error_free_or_abort(&err);
        }
    }
}

static void test_in_use(void)
{
    OndemandPolicy *p = new_policy("7");
    UserCreatable *uc = USER_CREATABLE(p);
    static const char *const names[] = {
        "granule", "chunks", "max-mapped", "max-commits-per-s",
    };

    p->users = 1;
    for (int i = 0; i < ARRAY_SIZE(names); i++) {
        Error *err = NULL;

        object_property_set_int(OBJECT(p), names[i], 65536, &err);
        error_free_or_abort(&err);
    }
    g_assert_false(user_creatable_can_be_deleted(uc));
    p->users = 0;
    g_assert_true(user_creatable_can_be_deleted(uc));
    object_property_set_int(OBJECT(p), "chunks", 7, &error_abort);
    g_assert_cmpuint(p->chunks, ==, 7);
    object_unparent(OBJECT(p));
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    module_call_init(MODULE_INIT_QOM);
    g_test_add_func("/ondemand-policy/tuner/bounds", test_tuner_bounds);
    g_test_add_func("/ondemand-policy/tuner/rest", test_tuner_rest);
    g_test_add_func("/ondemand-policy/tuner/interval", test_tuner_interval);
    g_test_add_func("/ondemand-policy/tuner/clock", test_tuner_clock);
    g_test_add_func("/ondemand-policy/tuner/settles", test_tuner_settles);
    g_test_add_func("/ondemand-policy/threshold", test_threshold);
    g_test_add_func("/ondemand-policy/limit", test_limit);
    g_test_add_func("/ondemand-policy/granule", test_granule);
    g_test_add_func("/ondemand-policy/in-use", test_in_use);
    return g_test_run();
}

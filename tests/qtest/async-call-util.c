/*
 * Helpers of the tests of second stacks and of what is posted
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "async-call-util.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"

uint64_t async_stat(QTestState *qts, const char *name)
{
    QDict *reply = qtest_qmp(qts,
        "{'execute': 'query-stats', 'arguments': {'target': 'vm',"
        " 'providers': [{'provider': 'hotpath', 'names': [%s]}]}}", name);
    QDict *target = qobject_to(QDict, qlist_peek(qdict_get_qlist(reply,
                                                                 "return")));
    QDict *stat = qobject_to(QDict, qlist_peek(qdict_get_qlist(target,
                                                               "stats")));
    uint64_t value = qdict_get_uint(stat, "value");

    qobject_unref(reply);
    return value;
}

void async_qemu_io(QTestState *qts, const char *device, const char *command)
{
    g_autofree char *reply = qtest_hmp(qts, "qemu-io -d %s \"%s\"", device,
                                       command);

    g_assert_cmpstr(reply, ==, "");
}

void async_check_refused(const char *command, const char *error)
{
    g_autofree char *err = NULL;
    int status;

    g_assert_true(g_spawn_command_line_sync(command, NULL, &err, &status,
                                            NULL));
    g_assert_cmpint(status, !=, 0);
    g_assert_nonnull(strstr(err, error));
}

bool async_migrated(QTestState *qts)
{
    for (;;) {
        QDict *reply = qtest_qmp(qts, "{'execute': 'query-migrate'}");
        QDict *info = qdict_get_qdict(reply, "return");
        const char *status = qdict_get_try_str(info, "status");
        bool completed = !g_strcmp0(status, "completed");
        bool failed = !g_strcmp0(status, "failed");

        qobject_unref(reply);
        if (completed || failed) {
            return completed;
        }
        g_usleep(1000);
    }
}

void async_save(QTestState *qts, const char *path)
{
    g_autofree char *uri = g_strdup_printf("file:%s", path);

    qtest_qmp_assert_success(qts, "{'execute': 'stop'}");
    qtest_qmp_assert_success(qts, "{'execute': 'migrate', 'arguments':"
                             " {'uri': %s}}", uri);
    g_assert_true(async_migrated(qts));
}

bool async_snapshot(QTestState *qts, const char *command)
{
    bool worked = false;
    bool ended = false;

    qtest_qmp_assert_success(qts, "{'execute': %s, 'arguments': {'job-id': 'j',"
                             " 'tag': 'tag', 'vmstate': 'qcow',"
                             " 'devices': ['qcow']}}", command);
    while (!ended) {
        QDict *reply = qtest_qmp(qts, "{'execute': 'query-jobs'}");
        QDict *job = qobject_to(QDict, qlist_peek(qdict_get_qlist(reply,
                                                                  "return")));

        ended = !strcmp(qdict_get_str(job, "status"), "concluded");
        worked = !qdict_haskey(job, "error");
        if (!worked) {
            g_test_message("%s: %s", command, qdict_get_str(job, "error"));
        }
        qobject_unref(reply);
        g_usleep(1000);
    }
    qtest_qmp_assert_success(qts, "{'execute': 'job-dismiss',"
                             " 'arguments': {'id': 'j'}}");
    return worked;
}

bool async_convert(const char *from, const char *format, const char *to,
                   const char *to_format)
{
    const char *qemu_img = getenv("QTEST_QEMU_IMG");
    const char *argv[] = {
        qemu_img, "convert", "-f", format, "-O", to_format, from, to, NULL,
    };
    int status;

    if (!qemu_img) {
        g_test_skip("QTEST_QEMU_IMG is not set, so there is no qemu-img");
        return false;
    }
    g_assert_true(g_spawn_sync(NULL, (char **)argv, NULL, G_SPAWN_DEFAULT,
                               NULL, NULL, NULL, NULL, &status, NULL));
    g_assert_cmpint(status, ==, 0);
    return true;
}

bool async_load(QTestState *qts, const char *path)
{
    g_autofree char *uri = g_strdup_printf("file:%s", path);

    qtest_qmp_assert_success(qts, "{'execute': 'migrate-incoming',"
                             " 'arguments': {'uri': %s,"
                             " 'exit-on-error': false}}", uri);
    return async_migrated(qts);
}

/*
 * HMP commands that report allocated sizes
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * handle_hmp_command() waits for a command that is a coroutine in a nested
 * event loop, with the BQL held, which is what must not happen here.  So the
 * monitor is suspended, as for "migrate", and the command runs again later.
 */

#include "qemu/osdep.h"
#include "block/query-sizes.h"
#include "block/query-sizes-hmp.h"
#include "monitor/hmp.h"
#include "qobject/qdict.h"

typedef struct DeferredCmd {
    Monitor *mon;
    QDict *qdict;
    void (*cmd)(Monitor *mon, const QDict *qdict);
} DeferredCmd;

static void run_deferred(void *opaque)
{
    g_autofree DeferredCmd *d = opaque;

    d->cmd(d->mon, d->qdict);
    qobject_unref(d->qdict);
    monitor_resume(d->mon);
}

bool block_sizes_hmp_defer(Monitor *mon, const QDict *qdict,
                           void (*cmd)(Monitor *mon, const QDict *qdict))
{
    DeferredCmd *d;

    if (!block_sizes_deadline() || monitor_suspend(mon) < 0) {
        return false;
    }
    d = g_new(DeferredCmd, 1);
    d->mon = mon;
    d->qdict = qdict_clone_shallow(qdict);
    d->cmd = cmd;
    if (block_sizes_when_ready(run_deferred, d)) {
        return true;
    }
    qobject_unref(d->qdict);
    g_free(d);
    monitor_resume(mon);
    return false;
}

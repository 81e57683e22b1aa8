/*
 * Asynchronous requests of a character device's front end
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The rules are in the header.  Nothing is kept here: a back end knows which
 * requests it has.
 */

#include "qemu/osdep.h"
#include "chardev/char-async.h"
#include "chardev/char-fe.h"
#include "system/replay.h"
#include "chardev-internal.h"

CharAsyncCounters char_async_counters;

const char *char_async_refusal_name(CharAsyncRefusal refusal)
{
    static const char *const names[CHAR_ASYNC_REFUSALS] = {
        [CHAR_ASYNC_OK] = "none",
        [CHAR_ASYNC_NO_BACKEND] = "no-backend",
        [CHAR_ASYNC_CLASSIC] = "classic",
        [CHAR_ASYNC_MUX] = "mux",
        [CHAR_ASYNC_REPLAY] = "replay",
        [CHAR_ASYNC_LOGFILE] = "logfile",
    };

    return names[refusal];
}

static CharAsyncRefusal refusal(Chardev *chr)
{
    if (!chr) {
        return CHAR_ASYNC_NO_BACKEND;
    }
    /* the slot first: to look for a type takes longer, for each request */
    if (!CHARDEV_GET_CLASS(chr)->chr_submit_write) {
        return CHARDEV_IS_MUX(chr) || CHARDEV_IS_HUB(chr) ? CHAR_ASYNC_MUX
                                                          : CHAR_ASYNC_CLASSIC;
    }
    if (replay_mode != REPLAY_MODE_NONE) {
        return CHAR_ASYNC_REPLAY;
    }
    if (chr->logfd >= 0) {
        return CHAR_ASYNC_LOGFILE;
    }
    return CHAR_ASYNC_OK;
}

CharAsyncRefusal qemu_chr_fe_async(CharFrontend *fe)
{
    CharAsyncRefusal why = refusal(fe->chr);

    char_async_counters.refused[why]++;
    return why;
}

int qemu_chr_fe_submit_write(CharFrontend *fe, CharAsyncReq *req)
{
    if (refusal(fe->chr) != CHAR_ASYNC_OK) {
        return -ENOTSUP;
    }
    return CHARDEV_GET_CLASS(fe->chr)->chr_submit_write(fe->chr, req);
}

int qemu_chr_fe_submit_read(CharFrontend *fe, CharAsyncReq *req)
{
    if (refusal(fe->chr) != CHAR_ASYNC_OK) {
        return -ENOTSUP;
    }
    return CHARDEV_GET_CLASS(fe->chr)->chr_submit_read(fe->chr, req);
}

void qemu_chr_fe_submit_flush(CharFrontend *fe)
{
    if (fe->chr && CHARDEV_GET_CLASS(fe->chr)->chr_submit_flush) {
        CHARDEV_GET_CLASS(fe->chr)->chr_submit_flush(fe->chr);
    }
}

void qemu_chr_fe_cancel(CharFrontend *fe, CharAsyncReq *req)
{
    if (fe->chr && CHARDEV_GET_CLASS(fe->chr)->chr_cancel) {
        CHARDEV_GET_CLASS(fe->chr)->chr_cancel(fe->chr, req, false, false);
    }
}

void qemu_chr_fe_cancel_all(CharFrontend *fe, bool reads, bool writes)
{
    if (fe->chr && CHARDEV_GET_CLASS(fe->chr)->chr_cancel) {
        CHARDEV_GET_CLASS(fe->chr)->chr_cancel(fe->chr, NULL, reads, writes);
    }
}

void qemu_chr_async_cancel_all(Chardev *chr)
{
    if (CHARDEV_GET_CLASS(chr)->chr_cancel) {
        CHARDEV_GET_CLASS(chr)->chr_cancel(chr, NULL, true, true);
    }
}

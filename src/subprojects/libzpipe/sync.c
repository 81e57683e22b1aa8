/*
 * zpipe: the calls that wait
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */

#include <errno.h>
#include "zpipe-int.h"

/* Wait until @req is complete. */
static ssize_t finish(struct zpipe *zp, struct zpipe_req *req)
{
    for (;;) {
        struct zpipe_req *done;

        while ((done = zpipe_reap(zp))) {
            if (done == req) {
                return req->result;
            }
        }
        zpipe_wait(zp, -1);
    }
}

int zpipe_write_all(struct zpipe *zp, const void *buf, size_t len)
{
    struct iovec iov = { (void *)buf, len };
    struct zpipe_req req = { .iov = &iov, .iovcnt = 1 };
    ssize_t ret;

    if (!len) {
        return 0;
    }
    ret = zpipe_write(zp, &req);
    if (!ret) {
        ret = finish(zp, &req);
    }
    if (ret >= 0 && (size_t)ret < len) {
        return zp->error ? zp->error : -EPIPE;
    }
    return ret < 0 ? ret : 0;
}

ssize_t zpipe_read_full(struct zpipe *zp, void *buf, size_t len)
{
    struct iovec iov = { buf, len };
    struct zpipe_req req = { .iov = &iov, .iovcnt = 1, .min = len };
    ssize_t ret;

    if (!len) {
        return 0;
    }
    ret = zpipe_read(zp, &req);
    return ret ? ret : finish(zp, &req);
}

int zpipe_wait_connected(struct zpipe *zp, int timeout_ms)
{
    uint64_t end = now_ns() + timeout_ms * 1000000ull;
    int left_ms = timeout_ms;

    while (zpipe_state(zp) == ZPIPE_CONNECTING) {
        int ret = link_poll(zp, left_ms);

        if (ret < 0 && ret != -EINTR) {
            return ret;
        }
        /* at least one look, so that one that asks again gets there */
        if (timeout_ms >= 0 && zpipe_state(zp) == ZPIPE_CONNECTING) {
            uint64_t now = now_ns();

            if (now >= end) {
                return -ETIMEDOUT;
            }
            left_ms = (end - now + 999999) / 1000000;
        }
    }
    return zpipe_state(zp) == ZPIPE_CONNECTED ? 0
           : zp->error ? zp->error : -ENOTCONN;
}

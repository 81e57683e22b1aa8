/*
 * zpipe: cross-memory access
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The kernel lets a process read and write another's memory when it may trace
 * it.  Whether it does is proven at connect: the peer names a random cookie and
 * where it lies.  That also proves that the process is the one that speaks on
 * the socket, whatever the name spaces.  Its pidfd tells after each call that
 * the number still meant that process, and before each write, so that a process
 * that has got the number meanwhile is not written to.  The cookie, each time,
 * tells that the process runs the program that offered its memory: it can
 * execute another, which may be one with more rights.  (There is no such call
 * that takes a pidfd: what ends between the two is not seen in time.)
 */

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>
#include "zpipe-int.h"

static int still_there(const struct zpipe *zp)
{
    struct pollfd pfd = { .fd = zp->peer_pidfd, .events = POLLIN };

    return poll(&pfd, 1, 0) == 0 ? 0 : -ESRCH;
}

static int transfer(struct zpipe *zp, bool write, const struct iovec *local,
                    int n, uint64_t remote, size_t len)
{
    while (len) {
        struct iovec there = { (void *)(uintptr_t)remote, len };
        struct iovec here[ZP_SLICE_MAX];
        size_t want = 0;
        ssize_t ret;
        int k;

        /* as many as hold @len bytes */
        for (k = 0; k < n && k < ZP_SLICE_MAX && want < len; k++) {
            here[k] = local[k];
            here[k].iov_len = MIN(here[k].iov_len, len - want);
            want += here[k].iov_len;
        }
        there.iov_len = want;
        ret = write ? process_vm_writev(zp->peer_pid, here, k, &there, 1, 0)
                    : process_vm_readv(zp->peer_pid, here, k, &there, 1, 0);
        if (ret < 0) {
            return -errno;
        }
        if ((size_t)ret != want) {
            return -EFAULT;         /* a part of it is not mapped there */
        }
        remote += ret;
        len -= ret;
        local += k;
        n -= k;
    }
    return 0;
}

/* Is it still there, and its memory with what it said at connect? */
static int check_cookie(struct zpipe *zp)
{
    uint8_t found[sizeof(zp->peer_cookie)];
    struct iovec here = { found, sizeof(found) };
    int ret = transfer(zp, false, &here, 1, zp->peer_cookie_addr,
                       sizeof(found));

    if (ret == -EFAULT ||
        (!ret && memcmp(found, zp->peer_cookie, sizeof(found)))) {
        ret = -ESRCH;           /* another process, or another program */
    }
    return ret ? ret : still_there(zp);
}

int cma_read(struct zpipe *zp, const struct iovec *local, int n,
             uint64_t remote, size_t len)
{
    int ret = transfer(zp, false, local, n, remote, len);

    if (!ret) {
        ret = check_cookie(zp);
    }
    zp->stats.cma_errors += ret != 0;
    return ret;
}

int cma_write(struct zpipe *zp, const struct iovec *local, int n,
              uint64_t remote, size_t len)
{
    /* before, too: what was written to another process is not undone */
    int ret = check_cookie(zp);

    if (!ret) {
        ret = transfer(zp, true, local, n, remote, len);
    }
    if (!ret) {
        ret = still_there(zp);
    }
    zp->stats.cma_errors += ret != 0;
    return ret;
}

static int prove(struct zpipe *zp, const struct zp_hello *hello)
{
    if (zp->peer_pid <= 0 || !hello->cookie_addr) {
        return -ESRCH;
    }
    zp->peer_pidfd = syscall(SYS_pidfd_open, zp->peer_pid, 0);
    if (zp->peer_pidfd < 0) {
        return -errno;
    }
    zp->peer_cookie_addr = hello->cookie_addr;
    memcpy(zp->peer_cookie, hello->cookie, sizeof(zp->peer_cookie));
    return check_cookie(zp);
}

void cma_prove(struct zpipe *zp, const struct zp_hello *hello)
{
    zp->cma_read = zp->cma_write = false;
    zp->cma_error = 0;
    if (!(zp->cfg.flags & ZPIPE_CMA_USE) || !hello->offers) {
        return;
    }
    zp->cma_error = -prove(zp, hello);
    if (zp->cma_error) {
        zp->stats.cma_errors++;
        cma_close(zp);
        return;
    }
    zp->cma_read = hello->offers & ZP_OFFER_CMA_READ;
    zp->cma_write = hello->offers & ZP_OFFER_CMA_WRITE;
}

void cma_close(struct zpipe *zp)
{
    zp->cma_read = zp->cma_write = false;
    if (zp->peer_pidfd >= 0) {
        close(zp->peer_pidfd);
        zp->peer_pidfd = -1;
    }
}

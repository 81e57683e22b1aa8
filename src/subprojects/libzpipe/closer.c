/*
 * zpipe: closing what a peer has sent
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A peer can send any descriptor.  close() of one can wait: a file of a FUSE
 * daemon that does not answer, a TCP socket that lingers.  What is neither a
 * memfd nor a UNIX socket has no use here, and is closed by a thread made for
 * that.  A few may be stuck at a time, over all handles; then no message is
 * received any more until they get on.
 */

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>
#include "zpipe-int.h"

#define CLOSING_MAX 32

static unsigned closing;

static bool closes_at_once(int fd)
{
    int domain;
    socklen_t len = sizeof(domain);

    /* neither question leaves the kernel */
    return fcntl(fd, F_GET_SEALS) >= 0 ||
           (!getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) &&
            domain == AF_UNIX);
}

static void *close_it(void *opaque)
{
    close((int)(intptr_t)opaque);
    __atomic_sub_fetch(&closing, 1, __ATOMIC_RELEASE);
    return NULL;
}

static bool close_in_thread(int fd)
{
    sigset_t all, old;
    pthread_attr_t attr;
    pthread_t thread;
    bool good;

    if (pthread_attr_init(&attr)) {
        return false;
    }
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attr, MAX(PTHREAD_STACK_MIN, 64 << 10));
    /* signals are for the program's own threads */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    __atomic_add_fetch(&closing, 1, __ATOMIC_RELAXED);
    good = !pthread_create(&thread, &attr, close_it, (void *)(intptr_t)fd);
    if (!good) {
        __atomic_sub_fetch(&closing, 1, __ATOMIC_RELAXED);
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attr);
    return good;
}

void close_received(int fd)
{
    if (closes_at_once(fd) || !close_in_thread(fd)) {
        close(fd);
    }
}

bool closing_too_many(void)
{
    return __atomic_load_n(&closing, __ATOMIC_ACQUIRE) >= CLOSING_MAX;
}

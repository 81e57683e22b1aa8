/*
 * Storage that fails once: preloaded into QEMU by tests
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * FAILING_READ=FLAG: when the file FLAG is there, the next pread() of a thread
 * that is not the main one does not return before the main thread waits for a
 * condition; then it fails with EIO.  FLAG is removed when it has begun.
 */

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/types.h>
#include <unistd.h>

static atomic_int main_waits;

int pthread_cond_wait(pthread_cond_t *cond, pthread_mutex_t *mutex)
{
    static int (*real)(pthread_cond_t *, pthread_mutex_t *);

    if (!real) {
        /* where there are two versions, dlsym() may find the old one */
        real = dlvsym(RTLD_NEXT, "pthread_cond_wait", "GLIBC_2.3.2");
        if (!real) {
            real = dlsym(RTLD_NEXT, "pthread_cond_wait");
        }
    }
    if (gettid() == getpid()) {
        main_waits = 1;
    }
    return real(cond, mutex);
}

ssize_t pread64(int fd, void *buf, size_t count, off64_t offset)
{
    static ssize_t (*real)(int, void *, size_t, off64_t);
    const char *flag = getenv("FAILING_READ");

    if (!real) {
        real = dlsym(RTLD_NEXT, "pread64");
    }
    if (flag && gettid() != getpid() && !access(flag, F_OK)) {
        main_waits = 0;
        unlink(flag);
        while (!main_waits) {
            usleep(1000);
        }
        errno = EIO;
        return -1;
    }
    return real(fd, buf, count, offset);
}

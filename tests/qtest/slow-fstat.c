/*
 * A file server that does not answer: preloaded into QEMU by tests
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * SLOW_FSTAT=GATE: while the file GATE exists, fstat() of a file whose name
 * ends in ".slow", and write() to it, do not return; with SLOW_CLOSE, close()
 * of it does not, either; while GATE.threads exists, they do in the main thread
 * only.  Each that waits adds a byte to GATE.waiting.
 */

#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static int is_slow(int fd)
{
    char link[64], name[4096];
    ssize_t len;

    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    len = readlink(link, name, sizeof(name) - 1);
    if (len < 5) {
        return 0;
    }
    name[len] = 0;
    return !strcmp(name + len - 5, ".slow");
}

static void wait_for_gate(const char *gate, const char *counter)
{
    char name[4096];
    int fd;

    if (access(gate, F_OK)) {
        return;
    }
    snprintf(name, sizeof(name), "%s.waiting", counter);
    fd = open(name, O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (fd < 0 || write(fd, "x", 1) != 1) {
        abort();
    }
    close(fd);
    while (!access(gate, F_OK)) {
        usleep(1000);
    }
}

static void wait_in_thread(const char *gate)
{
    char name[4096];

    if (syscall(SYS_gettid) != getpid()) {
        snprintf(name, sizeof(name), "%s.threads", gate);
        wait_for_gate(name, gate);
    }
}

static void wait_if_slow(int fd)
{
    const char *gate = getenv("SLOW_FSTAT");

    if (gate && is_slow(fd)) {
        wait_for_gate(gate, gate);
        wait_in_thread(gate);
    }
}

int fstat64(int fd, struct stat64 *buf)
{
    static int (*real)(int, struct stat64 *);

    if (!real) {
        real = dlsym(RTLD_NEXT, "fstat64");
    }
    wait_if_slow(fd);
    return real(fd, buf);
}

ssize_t write(int fd, const void *buf, size_t count)
{
    static ssize_t (*real)(int, const void *, size_t);

    if (!real) {
        real = dlsym(RTLD_NEXT, "write");
    }
    wait_if_slow(fd);
    return real(fd, buf, count);
}

int close(int fd)
{
    static int (*real)(int);

    if (!real) {
        real = dlsym(RTLD_NEXT, "close");
    }
    if (getenv("SLOW_CLOSE")) {
        wait_if_slow(fd);
    }
    return real(fd);
}

ssize_t writev(int fd, const struct iovec *iov, int count)
{
    static ssize_t (*real)(int, const struct iovec *, int);

    if (!real) {
        real = dlsym(RTLD_NEXT, "writev");
    }
    wait_if_slow(fd);
    return real(fd, iov, count);
}

/*
 * A host with few memory slots: preloaded into QEMU by tests
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * KVM_SLOTS=N: KVM says that it has N slots for memory, as an older one would.
 * QEMU takes that for the limit, and aborts when it needs one more.
 */

#include <dlfcn.h>
#include <linux/kvm.h>
#include <stdarg.h>
#include <stdlib.h>

int ioctl(int fd, unsigned long request, ...)
{
    static int (*real)(int, unsigned long, void *);
    const char *slots = getenv("KVM_SLOTS");
    va_list args;
    void *arg;

    va_start(args, request);
    arg = va_arg(args, void *);
    va_end(args);
    if (!real) {
        real = dlsym(RTLD_NEXT, "ioctl");
    }
    if (slots && request == KVM_CHECK_EXTENSION &&
        arg == (void *)KVM_CAP_NR_MEMSLOTS) {
        return atoi(slots);
    }
    return real(fd, request, arg);
}

/*
 * Interrupt affinity that follows the vCPU: connection to the helper
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Nothing here waits: a request is sent, its answer comes to a callback, not
 * from within the call.  When the connection breaks, or the helper is silent
 * for too long, what is under way ends with ENOTCONN and a new connection is
 * tried, at intervals.
 *
 * A socket takes some hundred requests.  A move that does not fit is refused,
 * to be tried again; an affinity to be given back is sent as soon as it fits,
 * and the connection is kept for it.
 *
 * Context: BQL held, main loop.
 */

#ifndef SYSTEM_IRQ_AFFINITY_CLIENT_H
#define SYSTEM_IRQ_AFFINITY_CLIENT_H

#include <sys/un.h>

typedef struct IRQClient IRQClient;

/* Longest path of a socket, with the NUL byte */
#define IRQ_CLIENT_PATH_MAX \
    ((int)sizeof(((struct sockaddr_un *)0)->sun_path))

/**
 * struct IRQRestore: an interrupt that gets back what it had
 * @irq: its number
 * @device: PCI address in the host
 * @path: QOM path of the device
 * @list: of processors
 * @other: told to @restored: it got another list, as far as that was allowed
 */
typedef struct IRQRestore {
    int irq;
    const char *device;
    const char *path;
    const char *list;
    bool other;
} IRQRestore;

/**
 * struct IRQClientOps: what the helper's answers lead to
 * @connected: the connection stands
 * @moved: end of a move: 0 or an errno
 * @watched: the event of a vCPU's thread, consumed; -1: there is none
 * @restored: end of a restoration: 0 or an errno; @tag may be NULL
 */
typedef struct IRQClientOps {
    void (*connected)(void *opaque);
    void (*moved)(void *opaque, void *tag, int cpu, int err);
    void (*watched)(void *opaque, void *tag, int fd);
    void (*restored)(void *opaque, void *tag, const IRQRestore *what, int err);
} IRQClientOps;

/**
 * irq_client_new: a client that is not connected yet
 * @path: of the helper's socket
 * @ops: static
 * @opaque: for @ops
 *
 * Returns: to be freed with irq_client_free().
 */
IRQClient *irq_client_new(const char *path, const IRQClientOps *ops,
                          void *opaque);

/**
 * irq_client_free: end it, without callbacks; or NULL
 *
 * Returns: restorations that could not be sent.
 */
unsigned irq_client_free(IRQClient *c);

/**
 * irq_client_start: connect, and connect again whenever it is lost
 */
void irq_client_start(IRQClient *c);

/**
 * irq_client_stop: disconnect, as soon as all restorations are answered
 *
 * Only @restored follows.
 */
void irq_client_stop(IRQClient *c);

/**
 * irq_client_connected: whether the helper can be asked
 */
bool irq_client_connected(const IRQClient *c);

/**
 * irq_client_error: why the last attempt to connect failed
 *
 * Returns: a positive errno; 0: it did not.
 */
int irq_client_error(const IRQClient *c);

/**
 * irq_client_move: send an interrupt to a processor
 * @c: the client
 * @tag: for @moved
 * @irq: number of the interrupt
 * @device: PCI address in the host
 * @proof: descriptor of its VFIO group or of the device; stays the caller's
 * @tid: thread of the vCPU
 * @cpu: where to
 *
 * Returns: -EINPROGRESS, or another negative errno.
 */
int irq_client_move(IRQClient *c, void *tag, int irq, const char *device,
                    int proof, int tid, int cpu);

/**
 * irq_client_restore: give an interrupt an affinity that it had
 * @c: the client
 * @tag: for @restored, or NULL
 * @what: copied
 * @proof: as above
 * @tid: thread of this process
 *
 * Returns: -EINPROGRESS, or another negative errno.
 */
int irq_client_restore(IRQClient *c, void *tag, const IRQRestore *what,
                       int proof, int tid);

/**
 * irq_client_watch: ask for the event of a thread
 * @c: the client
 * @tag: for @watched
 * @tid: the thread
 */
void irq_client_watch(IRQClient *c, void *tag, int tid);

/**
 * irq_client_forget: no callback shall have this tag any more
 *
 * What was to be told of it, except for @restored, is not told.
 */
void irq_client_forget(IRQClient *c, void *tag);

#endif

/*
 * qemu-irq-affinity-helper: what is granted to whom
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The peer is not trusted.  It may move an interrupt if it holds the VFIO
 * group or device (it passes a descriptor of it), and only to a processor on
 * which one of its threads may run and which the administrator allows.
 *
 * After fork() all processes share one count of what was done to each device;
 * nothing else is shared, and nothing locks.
 */

#ifndef TOOLS_IRQ_AFFINITY_SERVE_H
#define TOOLS_IRQ_AFFINITY_SERVE_H

#include "system/irq-affinity-proto.h"

typedef struct IRQServe IRQServe;

/**
 * struct IRQPeer: one connection
 * @pid: the process that connected; 0: in no PID namespace of this process
 * @uid: its effective user then
 * @pidfd: of it, to notice that it ended; -1: not known
 * @fd: the connection, to notice that it hung up: MOVE is refused then, RESTORE
 *      is not
 * @greeted: HELLO was received
 * @watches: events that were opened for it
 */
typedef struct IRQPeer {
    pid_t pid;
    uid_t uid;
    int pidfd;
    int fd;
    bool greeted;
    unsigned watches;
} IRQPeer;

/*
 * Most events that are opened for one connection: one for each vCPU.  Each that
 * a thread has costs time whenever it is switched to.
 */
#define IRQ_SERVE_WATCHES_MAX 1024

/**
 * irq_serve_new: begin
 * @root: directory that stands for the root; "": the real one
 * @cpus: list of the processors to which interrupts may be sent, NULL: all
 * @max_moves_per_s: per device, and as many restorations
 *
 * Returns: to be freed with irq_serve_free(); NULL: @cpus is no list.
 */
IRQServe *irq_serve_new(const char *root, const char *cpus,
                        unsigned max_moves_per_s);

/**
 * irq_serve_free: end
 */
void irq_serve_free(IRQServe *s);

/**
 * enum IRQServeResult: what became of a message
 * @IRQ_SERVE_END: the peer does not keep to the protocol, end the connection
 * @IRQ_SERVE_ANSWER: the reply is to be sent
 * @IRQ_SERVE_LATER: too fast; to be asked again, after some time
 */
typedef enum IRQServeResult {
    IRQ_SERVE_END,
    IRQ_SERVE_ANSWER,
    IRQ_SERVE_LATER,
} IRQServeResult;

/**
 * irq_serve_request: answer one message
 * @s: the state
 * @peer: who sent it
 * @msg: what was received
 * @len: its length in bytes
 * @fd: descriptor that came with it, -1: none; remains the caller's
 * @reply: filled in
 * @reply_fd: descriptor to send along, -1: none; the caller's
 * @now_ns: monotonic time
 *
 * Whatever is done with @fd may take as long as its owner likes.
 */
IRQServeResult irq_serve_request(IRQServe *s, IRQPeer *peer, const void *msg,
                                 size_t len, int fd, IRQHelperReply *reply,
                                 int *reply_fd, int64_t now_ns);

#endif

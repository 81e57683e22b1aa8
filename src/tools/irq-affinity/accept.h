/*
 * qemu-irq-affinity-helper: which connection is served next
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * One process, the acceptor, accepts all connections.  Each user may have some
 * that wait to be served; what is more is refused at once.  Users take turns,
 * so who opens connections in a loop delays nobody else.
 *
 * The acceptor hands one connection at a time to the first process's next
 * child, through a pair of sockets, and goes on.
 */

#ifndef TOOLS_IRQ_AFFINITY_ACCEPT_H
#define TOOLS_IRQ_AFFINITY_ACCEPT_H

#include <sys/socket.h>
#include "qemu/queue.h"

/* a connection counts until its process has ended, however long that takes */
#define IRQ_CONNECTIONS_MAX 400
#define IRQ_CONNECTIONS_PER_USER_MAX 200
#define IRQ_CONNECTIONS_PER_PROCESS_MAX 16
/* Connections that wait to be served */
#define IRQ_WAITING_MAX 400
#define IRQ_WAITING_PER_USER_MAX 100
/* Processes, with those that do not end */
#define IRQ_SLOTS 1024
/* Acceptors that may be ending before one ends only when it has to */
#define IRQ_ENDING_MAX 64

typedef enum IRQSlotState {
    IRQ_SLOT_FREE,
    IRQ_SLOT_STARTING,
    IRQ_SLOT_SERVED,
    IRQ_SLOT_ACCEPTING,
    IRQ_SLOT_ENDING,
} IRQSlotState;

/**
 * struct IRQSlot: a process, and the connection that it has
 * @pid: the first process's
 * @state: an IRQSlotState; from STARTING its process changes it
 * @peer: valid when SERVED
 */
typedef struct IRQSlot {
    pid_t pid;
    uint32_t state;
    struct ucred peer;
} IRQSlot;

/**
 * enum IRQOffer: of the connection that is handed over
 * @IRQ_OFFER_NONE: the acceptor may send one
 * @IRQ_OFFER_SENDING: it may have a descriptor of it as well
 * @IRQ_OFFER_READY: it has not; the first process makes a child that takes it
 */
typedef enum IRQOffer {
    IRQ_OFFER_NONE,
    IRQ_OFFER_SENDING,
    IRQ_OFFER_READY,
} IRQOffer;

/**
 * struct IRQShared: shared by all processes
 * @offer: an IRQOffer; NONE -> SENDING -> READY is the acceptor's, the rest the
 *         first process's
 * @slots: the processes
 */
typedef struct IRQShared {
    uint32_t offer;
    IRQSlot slots[IRQ_SLOTS];
} IRQShared;

/**
 * struct IRQWaiting: a connection that waits to be served
 * @fd: it
 * @peer: whose it is
 * @turn: of those that wait, the lowest is next
 */
typedef struct IRQWaiting {
    int fd;
    struct ucred peer;
    uint64_t turn;
    QTAILQ_ENTRY(IRQWaiting) next;
} IRQWaiting;

/**
 * struct IRQQueue: those that wait, in the order of their turns
 * @turn: of the last one that was taken
 */
typedef struct IRQQueue {
    QTAILQ_HEAD(, IRQWaiting) list;
    uint64_t turn;
} IRQQueue;

/**
 * irq_queue_init: begin, with none
 */
void irq_queue_init(IRQQueue *q);

/**
 * irq_queue_add: let a connection wait
 * @q: the queue
 * @slots: IRQ_SLOTS, those that are served
 * @fd: the connection
 * @peer: whose it is
 *
 * Returns: false: it is one too many, of all, of its user's or its process's.
 */
bool irq_queue_add(IRQQueue *q, const IRQSlot *slots, int fd,
                   const struct ucred *peer);

/**
 * irq_queue_take: the next one, which waits no more
 *
 * Returns: its @fd; -1: there is none.
 */
int irq_queue_take(IRQQueue *q);

/**
 * irq_too_many: is this one more than may be served?
 * @slots: IRQ_SLOTS; that of the connection counts, if it is there
 * @peer: whose the connection is
 */
bool irq_too_many(const IRQSlot *slots, const struct ucred *peer);

/**
 * struct IRQAcceptor: what the acceptor works with
 * @listener: does not block
 * @to: where connections are handed over; does not block
 * @news: eventfd that wakes the first process
 * @more: eventfd that wakes the acceptor: there is no offer any more
 * @shared: all processes
 * @slot: its own one of these
 */
typedef struct IRQAcceptor {
    int listener;
    int to;
    int news;
    int more;
    IRQShared *shared;
    IRQSlot *slot;
} IRQAcceptor;

/**
 * irq_accept: be the acceptor
 *
 * Returns: the process has to end.
 */
void irq_accept(const IRQAcceptor *acceptor);

/**
 * irq_accept_take: the connection that was handed over
 * @from: other end of what the acceptor sends to
 *
 * Returns: -1: there is none.
 */
int irq_accept_take(int from);

#endif
